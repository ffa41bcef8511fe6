"""Samples and their measures: masks, draws, sites, one-hot and chunked data, all against dense sums."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from riemann_ng.elements import Covector, Vector
from riemann_ng.errors import ShapeMismatch, SpaceMismatch
from riemann_ng.linear_maps import LinearMap
from riemann_ng.samples import Chunked, Measure, OneHot, Sample
from riemann_ng.spaces import AffineSpace, Hom, Space

V = Space("V", 3)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_force(x, weight):
    """Σ w x xᵀ by a loop over elements."""
    n, k, t, d = x.shape
    total = torch.zeros(d, d, dtype=x.dtype)
    for i in range(n):
        for j in range(k):
            for s in range(t):
                total += weight(i, j, s) * torch.outer(x[i, j, s], x[i, j, s])
    return total


counts = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))


@given(counts, st.sampled_from(["probability", "exact", "monte_carlo"]), st.booleans(), st.integers(0, 99))
def test_weights_are_those_of_the_definition(shape, kind, masked, seed):
    n, k, t = shape
    x = randn(n, k, t, 3, seed=seed)
    mask = torch.rand(n, t, generator=torch.Generator().manual_seed(seed)) < 0.7 if masked else None
    if masked:
        mask[0, 0] = True
    present = mask if masked else torch.ones(n, t, dtype=torch.bool)
    sample = Sample(V, x, getattr(Measure, kind)(mask))
    unit = {"probability": 1 / (k * int(present.sum())), "exact": 1 / n, "monte_carlo": 1 / (n * k)}[kind]
    expected = brute_force(x, lambda i, j, s: unit * float(present[i, s]))
    assert torch.allclose(sample.moment(), expected)
    rows = torch.cat(list(sample.weighted_pieces()))
    assert torch.allclose(rows.mT @ rows, expected)


@given(counts, st.booleans(), st.integers(0, 99))
def test_reduced_is_the_mean_of_inputs_and_the_sum_of_cotangents(shape, masked, seed):
    n, k, t = shape
    x = randn(n, k, t, 3, seed=seed)
    mask = torch.rand(n, t, generator=torch.Generator().manual_seed(seed)) < 0.7 if masked else torch.ones(n, t) > 0
    mask[:, 0] = True  # every example has a site
    given_mask = mask if masked else None
    share = mask.to(x)[:, None, :, None]
    mean = (x * share).sum(2) / share.sum(2)
    total = (x * share).sum(2)
    inputs = Sample(V, x, Measure.probability(given_mask)).reduced()
    cotangents = Sample(V, x, Measure.exact(given_mask)).reduced()
    assert inputs.counts == cotangents.counts == (n, k, 1)
    assert torch.allclose(inputs.dense()[:, :, 0], mean)
    assert torch.allclose(cotangents.dense()[:, :, 0], total)
    assert torch.allclose(inputs.moment(), torch.einsum("nki,nkj->ij", mean, mean) / (n * k))
    assert torch.allclose(cotangents.moment(), torch.einsum("nki,nkj->ij", total, total) / n)


def test_points_of_a_hull_keep_their_one():
    A = AffineSpace("A", 2)
    x = torch.cat([randn(5, 1, 4, 2), torch.ones(5, 1, 4, 1, dtype=torch.float64)], -1)
    mask = torch.arange(4) < torch.tensor([[4], [2], [1], [3], [4]])
    sample = Sample(A.hull, x, Measure.probability(mask))
    assert torch.isclose(sample.moment()[-1, -1], torch.tensor(1.0, dtype=torch.float64))
    assert torch.allclose(sample.reduced().dense()[..., -1], torch.ones(1, dtype=torch.float64))
    # control: a sum over sites would leave the hull's affine slice
    assert not torch.allclose(x.sum(2)[..., -1], torch.ones(1, dtype=torch.float64))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_chunked_samples_are_dense_ones_in_pieces(axis, masked):
    x = randn(6, 5, 2, 3)
    mask = torch.arange(2) < torch.tensor([[2], [1], [2], [2], [1], [1]]) if masked else None
    measure = Measure.exact(mask)
    dense, chunked = Sample(V, x, measure), Sample(V, Chunked(lambda: iter(x.split(2, axis)), (6, 5, 2), axis), measure)
    v = Vector(V.dual, randn(3))
    assert torch.allclose(chunked.moment(), dense.moment())
    assert torch.equal(chunked.dense(), dense.dense())
    assert torch.equal(chunked(v), dense(v))
    assert torch.allclose(chunked.mean().data, dense.mean().data)
    assert torch.allclose(chunked.reduced().moment(), dense.reduced().moment())
    assert (chunked.dtype, chunked.device) == (dense.dtype, dense.device)


def test_one_hot_data_are_their_dense_form():
    indices = torch.tensor([[[0, 2, 2]], [[1, 2, 0]]])
    sample = Sample(V, OneHot(indices, torch.float64))
    dense = Sample(V, torch.nn.functional.one_hot(indices, 3).double())
    assert torch.allclose(torch.diag(sample.moment()), dense.moment())
    assert torch.equal(sample.dense(), dense.dense())
    assert torch.allclose(sample.reduced().moment(), dense.reduced().moment())
    assert (sample.counts, sample.dtype) == ((2, 1, 3), torch.float64)
    masked = Measure.probability(torch.tensor([[True, True, False], [True, False, False]]))
    assert torch.allclose(torch.diag(Sample(V, OneHot(indices, torch.float64), masked).moment()),
                          Sample(V, dense.dense(), masked).moment())  # fmt: skip
    assert Sample(V, OneHot(torch.tensor([0, 1]))).counts == (2, 1, 1)


def test_weighted_measures():
    x, w = randn(4, 2, 3, 3), torch.rand(4, 1, 3, dtype=torch.float64)
    w[0, 0, 1] = 0
    assert torch.allclose(Sample(V, x, Measure.weighted(w)).moment(), brute_force(x, lambda i, j, s: float(w[i, 0, s])))
    sums, means = Sample(V, x, Measure.weighted(w)).reduced(), Sample(V, x, Measure.weighted(w, "mean")).reduced()
    assert torch.allclose(sums.dense()[:, :, 0], (x * (w > 0)[..., None]).sum(2))
    assert torch.allclose(means.dense()[:, :, 0], (x * w[..., None]).sum(2) / w.sum(-1, keepdim=True))
    assert torch.allclose(means.measure.weights(means.counts), w.sum(-1, keepdim=True).expand(4, 2, 1))
    assert torch.allclose(sums.measure.weights(sums.counts), w.amax(-1, keepdim=True).expand(4, 2, 1))


def test_mean_pairing_and_maps():
    x = randn(5, 2, 1, 3)
    sample = Sample(V, x)
    assert torch.allclose(sample.mean().data, x.mean((0, 1, 2)))
    xi = Covector(V, randn(3))
    assert torch.allclose(sample(xi), x @ xi.data)
    phi = LinearMap(V, Space("W", 2), randn(2, 3))
    assert torch.allclose(sample.map(phi).moment(), phi.matrix() @ sample.moment() @ phi.matrix().mT)
    W = Hom(V, V)
    assert Sample(W, randn(5, 3, 3)).dense().shape == (5, 1, 1, 9)


def test_cotangents_live_in_the_dual():
    sample = Sample.of_cotangents(V, randn(5, 2, 1, 3))
    assert sample.space == V.dual and sample.measure.kind == "exact"
    assert Sample.of_cotangents(V, randn(5, 3), draws="monte carlo").measure.kind == "monte carlo"
    assert str(sample) == "cotangents of V*"
    assert repr(sample) == "Sample(Space('V', 3).dual, 'cotangents', examples=5, draws=2, sites=1, exact)"


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Sample(V, randn(5, 4)), ShapeMismatch, "an element of V has components [..., 3]"),
        (lambda: Sample(V, randn(5, 2, 3)), ShapeMismatch, "Insert the missing dimensions of size one"),
        (lambda: Sample(V, randn(0, 3)), ShapeMismatch, "no elements of V: counts (0, 1, 1)"),
        (lambda: Sample(V, OneHot(torch.tensor([0, 3]))), ShapeMismatch, "integers below 3"),
        (lambda: Sample(V, OneHot(torch.tensor([0.0]))), ShapeMismatch, "got float32[1]"),
        (lambda: Sample(V, randn(4, 1, 2, 3), Measure.exact(torch.ones(3) > 0)), ShapeMismatch, "sites) = (4, 2)"),
        (lambda: Measure.weighted(torch.tensor([-1.0])), ShapeMismatch, "finite and not negative"),
        (lambda: Measure.weighted(torch.tensor([torch.nan])), ShapeMismatch, "finite and not negative"),
        (lambda: Sample(V, randn(5, 3))(Vector(V, randn(3))), SpaceMismatch, "expected an element of V*"),
        (lambda: Sample(V, randn(5, 3)).map(LinearMap(V.dual, V, randn(3, 3))), SpaceMismatch, "not take elements"),
        (lambda: Sample(V, Chunked(lambda: iter([randn(2, 1, 1, 3)]), (5, 1, 1))).moment(), ShapeMismatch, "2 of 5"),
    ],
)
def test_errors(make, error, text):
    with pytest.raises(error, match=re.escape(text)):
        make()
