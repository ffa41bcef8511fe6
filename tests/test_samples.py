"""Samples and their measures: masks, draws, sites, one-hot and chunked data, all against dense sums."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from riemann_ng.elements import Covector, Vector
from riemann_ng.errors import DtypeMismatch, InvalidSetting, ShapeMismatch, SpaceMismatch
from riemann_ng.linear_maps import LinearMap
from riemann_ng.samples import Chunked, Measure, OneHot, Sample, WithOne
from riemann_ng.spaces import AffineSpace, Family, Hom, Space

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


def test_one_weight_for_each_example():
    x, w = randn(3, 1, 3, 3), torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)
    sample = Sample(V, x, Measure.weighted(w))
    assert torch.allclose(sample.moment(), brute_force(x, lambda i, j, s: float(w[i])))
    assert torch.allclose(
        sample.reduced().moment(), Sample(V, x, Measure.weighted(w[:, None, None])).reduced().moment()
    )
    # control: of as many sites as examples, and the weights are not those of the sites
    assert not torch.allclose(sample.moment(), brute_force(x, lambda i, j, s: float(w[s])))
    assert torch.allclose(Sample(V, x, Measure.weighted(w[1:2] + 1)).moment(), brute_force(x, lambda i, j, s: 1.0))


def in_chunks(x):
    return Chunked(lambda: iter(x.split(1)), tuple(x.shape[:3]))


@pytest.mark.parametrize("data", [torch.clone, in_chunks], ids=["dense", "chunked"])
@pytest.mark.parametrize("hole", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("kind", ["probability", "exact", "sum", "mean"])
def test_what_weighs_nothing_is_absent_whatever_it_holds(data, hole, kind):
    x, mask = randn(4, 2, 3, 3), torch.arange(3) < torch.tensor([[3], [2], [1], [0]])
    weights = mask[:, None].double()
    measure = Measure.weighted(weights, kind) if kind in ("sum", "mean") else getattr(Measure, kind)(mask)
    present = mask[:, None, :, None]
    sample = Sample(V, data(x.where(present, torch.tensor(hole, dtype=x.dtype))), measure)
    plain = Sample(V, data(x.where(present, torch.tensor(0.0, dtype=x.dtype))), measure)
    assert torch.equal(sample.moment(), plain.moment())
    assert torch.equal(sample.mean().data, plain.mean().data)
    assert torch.equal(sample.reduced().moment(), plain.reduced().moment()) and bool(plain.moment().isfinite().all())
    assert torch.equal(torch.cat([*sample.weighted_pieces()]), torch.cat([*plain.weighted_pieces()]))
    # control: what does weigh shows
    assert not Sample(V, sample.dense()).moment().isfinite().all()


def test_nan_in_the_padding_of_families_and_hulls():
    mask = torch.tensor([[True, True], [True, False]])
    points = randn(2, 1, 2, 4, 3)
    holes = points.clone()
    holes[1, :, 1] = torch.nan
    hulls = Family(AffineSpace("A", 3).hull, 4)
    sample, plain = (Sample(hulls, WithOne(x), Measure.probability(mask)) for x in (holes, points))
    assert torch.equal(sample.member_moments(), plain.member_moments())


def test_examples_without_sites_add_nothing():
    x, mask = randn(2, 1, 3, 3), torch.tensor([[True, True, False], [False, False, False]])
    for measure in (Measure.probability(mask), Measure.exact(mask), Measure.weighted(mask[:, None].double(), "mean")):
        assert torch.equal(Sample(V, x, measure).reduced().dense()[1], torch.zeros(1, 1, 3, dtype=x.dtype))
    assert not Sample(V, x, Measure.exact(~mask & mask)).moment().any()


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


def chunk_of(*shape, axis=0):
    return Chunked(lambda: iter([randn(*shape)]), (5, 1, 2), axis)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Sample(V, randn(5, 4)), ShapeMismatch, "an element of V has components [..., 3]"),
        (lambda: Sample(V, randn(5, 2, 3)), ShapeMismatch, "Insert the missing dimensions of size one"),
        (lambda: Sample(V, randn(0, 3)), ShapeMismatch, "no elements of V: counts (0, 1, 1)"),
        (lambda: Sample(V, OneHot(torch.tensor([0, 3]))), ShapeMismatch, "integers below 3"),
        (lambda: Sample(V, OneHot(torch.tensor([0.0]))), ShapeMismatch, "got float32[1]"),
        (lambda: Sample(V, randn(4, 1, 2, 3), Measure.exact(torch.ones(3) > 0)), ShapeMismatch, "sites) = (4, 2)"),
        (
            lambda: Sample(V, randn(4, 1, 2, 3), Measure.exact(torch.ones(2, 4) > 0)),
            ShapeMismatch,
            "ShapeMismatch in Sample: a mask of V is (examples, sites) = (4, 2), got [2, 4].",
        ),
        (lambda: Sample(V, randn(4, 1, 2, 3), Measure.exact(torch.ones(8) > 0)), ShapeMismatch, "got [8]"),
        (
            lambda: Measure.probability(torch.ones(4, 2)),
            DtypeMismatch,
            "a mask is of booleans, true where there is data, got float32[4, 2]. Give mask.bool(); weights go into",
        ),
        (
            lambda: Sample(V, randn(2, 1, 2, 3), Measure.probability(torch.zeros(2, 2) > 0)),
            ShapeMismatch,
            "the mask leaves no elements of V, and a probability of nothing is none. Leave out batches that are",
        ),
        (
            lambda: Sample(V, randn(3, 3), Measure.weighted(torch.zeros(3))).mean(),
            ShapeMismatch,
            "ShapeMismatch in sample.mean: all elements of V weigh nothing.",
        ),
        (
            lambda: Sample(V, randn(4, 1, 3, 3), Measure.weighted(torch.ones(3))),
            ShapeMismatch,
            "weights of V are (4,), one for each example, or (examples, draws, sites) = (4, 1, 3) with size one",
        ),
        (lambda: Sample(V, randn(4, 3, 3, 3), Measure.weighted(torch.ones(3, 3))), ShapeMismatch, "differ, got [3, 3]"),
        (lambda: Measure.weighted(torch.tensor([torch.inf])), ShapeMismatch, "finite and not negative"),
        (
            lambda: Measure.weighted(torch.ones(1), sites="bogus"),
            InvalidSetting,
            "InvalidSetting in Measure(sites=...): got 'bogus', expected 'sum' or 'mean'.",
        ),
        (
            lambda: Measure("bogus"),
            InvalidSetting,
            "in Measure: got 'bogus', expected 'probability' or 'exact' or 'monte carlo' or 'weighted'.",
        ),
        (
            lambda: Measure("exact", given=torch.ones(1)),
            InvalidSetting,
            "belong to a weighted measure, which has no mask",
        ),
        (
            lambda: Measure("weighted"),
            InvalidSetting,
            "Use Measure.weighted(weights), with weights of zero on padding.",
        ),
        (
            lambda: Measure("weighted", torch.ones(1, 1) > 0, torch.ones(1)),
            InvalidSetting,
            "InvalidSetting in Measure('weighted'): weights of its own belong to a weighted measure, which has no mask",
        ),
        (
            lambda: Sample.of_cotangents(V, randn(5, 3), draws="Exact"),
            InvalidSetting,
            "in Sample.of_cotangents(draws=...): got 'Exact', expected 'exact' or 'monte carlo'.",
        ),
        (lambda: Sample.of_cotangents(AffineSpace("A", 3), randn(5, 3)), SpaceMismatch, "in Sample.of_cotangents: exp"),
        (
            lambda: Sample(AffineSpace("A", 3), randn(5, 3)),
            SpaceMismatch,
            "SpaceMismatch in Sample: expected a vector space, got AffineSpace('A', 3). An affine space takes part",
        ),
        (
            lambda: Sample(V, randn(5, 3))(Covector(V, randn(3).float())),
            DtypeMismatch,
            "DtypeMismatch in sample: sample of V with a covector on V (float32[3]): torch.float64 on cpu",
        ),
        (
            lambda: Sample(V, randn(5, 3)).map(LinearMap(V, V, randn(3, 3).float())),
            DtypeMismatch,
            "DtypeMismatch in Sample.map: φ : V ← V with sample of V: torch.float32 on cpu, torch.float64 on cpu",
        ),
        (lambda: Chunked(lambda: iter([]), (5, 1, 1), 2), InvalidSetting, "or draws, axis=1; got axis=2."),
        (
            lambda: Sample(V, chunk_of(2, 1, 3, 3)).moment(),
            ShapeMismatch,
            "a chunk of sample along axis 0 is [at most 5, 1, 2, 3], elements of V, got float64[2, 1, 3, 3].",
        ),
        (lambda: Sample(V, chunk_of(5, 1, 2, 4)).dense(), ShapeMismatch, "elements of V, got float64[5, 1, 2, 4]."),
        (lambda: Sample(V, chunk_of(6, 1, 2, 3)).mean(), ShapeMismatch, "elements of V, got float64[6, 1, 2, 3]."),
        (lambda: Sample(V, chunk_of(5, 3)).reduced(), ShapeMismatch, "elements of V, got float64[5, 3]."),
        (lambda: Sample(V, chunk_of(5, 2, 2, 3, axis=1)).mean(), ShapeMismatch, "axis 1 is [5, at most 1, 2, 3]"),
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
