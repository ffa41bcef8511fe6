"""The laws of output metrics and likelihoods, each for every kind, against enumeration, quadrature and autograd."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from likelihood_cases import CASES, Case, check_roots

from riemann_ng import likelihoods as lk
from riemann_ng.likelihoods.layout import Layout


def hessian(f):
    """By reverse mode twice: forward mode brings a deprecation warning of torch's own."""
    return torch.func.jacrev(torch.func.jacrev(f))


every = pytest.mark.parametrize("case", CASES, ids=str)


def one_site(case: Case, z: torch.Tensor) -> torch.Tensor:
    """H of one site with those parameters, sites summed: the Hessian of the expected loss, labels held."""
    y, p = case.nodes(z)
    assert float(p.sum()) == pytest.approx(1, abs=1e-10)
    return hessian(lambda at: (p * case.loss(at, y)).sum())(z)


def expected_form(case: Case, z: torch.Tensor) -> torch.Tensor:
    """H, (examples, D, D), by that oracle at each site, put together without the library's own layout."""
    axis = getattr(case.likelihood, "dim", None)
    n, size = z.shape[0], z.shape[1:].numel()
    places = torch.arange(size).reshape(z.shape[1:])
    if axis is None:
        groups = places.reshape(-1, 1)
    else:
        moved = places.movedim(axis if axis < 0 else axis - 1, -1)
        m = moved.shape[-1] // case.parameters
        groups = torch.stack([moved[..., j::m].reshape(-1, case.parameters) for j in range(m)]).flatten(0, 1)
    h = z.new_zeros(n, size, size)
    for i in range(n):
        for group in groups:
            h[i, group[:, None], group] = one_site(case, z[i].flatten()[group])
    return h / (len(groups) if case.likelihood.sites == "mean" else 1)


# --- H ----------------------------------------------------------------------------------------------------------------


@every
def test_h_is_the_hessian_of_the_expected_loss(case):
    z = case.outputs(n=2)
    assert torch.allclose(case.likelihood.matrix(z), expected_form(case, z), rtol=1e-7, atol=1e-9)


@every
def test_h_is_the_hessian_of_kl(case):
    likelihood, z = case.likelihood, case.outputs(n=2)
    for i in range(2):
        at = z[i : i + 1]
        h = hessian(lambda other, at=at: likelihood.kl(at, other).sum())(at).reshape(at.numel(), -1)
        found = likelihood.matrix(at)[0]
        if "weighted" in case.name:  # kl is that of the distributions; H also carries the expected weight of each site
            assert not torch.allclose(found, h, rtol=1e-2)
        else:
            assert torch.allclose(found, h, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("case", [c for c in CASES if c.likelihood.proper], ids=str)
def test_h_is_the_covariance_of_the_scores_of_one_site(case):
    likelihood, z = case.likelihood, case.outputs(n=1).flatten()[: case.parameters]
    y, p = case.nodes(z)
    dims = {"dim": 1} if case.parameters > 1 else {}
    alone = type(likelihood)(**dims) if not isinstance(likelihood, (lk.Gaussian, lk.NegativeBinomial)) else likelihood
    outputs = z.expand(len(y), -1)
    targets = y if isinstance(alone, lk.Categorical) else y[:, None]
    scores = alone.score(outputs, targets)
    assert float((p[:, None] * scores).sum(0).abs().max()) < 1e-9
    covariance = torch.einsum("k,ki,kj->ij", p, scores, scores)
    assert torch.allclose(alone.matrix(z[None])[0], covariance, rtol=1e-7, atol=1e-9)
    # Labels from elsewhere give no Fisher.
    other = torch.ones_like(p) / len(p)
    assert not torch.allclose(torch.einsum("k,ki,kj->ij", other, scores, scores), covariance, rtol=1e-2)


# --- square roots -----------------------------------------------------------------------------------------------------


@every
def test_the_square_root_directions(case):
    check_roots(case.likelihood, case.outputs())


@every
def test_a_diagonal_metric_says_its_roots(case):
    z = case.outputs()
    if not case.likelihood.diagonal:
        with pytest.raises(lk.base.NotClosed, match=r"diagonal_roots: H is not diagonal in the output's entries"):
            case.likelihood.diagonal_roots(z)
        return
    d = case.likelihood.diagonal_roots(z)
    assert d.shape == z.shape
    assert torch.equal(case.likelihood.directions(z).flatten(2), torch.diag_embed(d.flatten(1)))


def test_a_wrong_root_is_seen():
    z = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p = z.softmax(-1)
    right = lk.Categorical().matrix(z)
    forgotten = torch.diag_embed(p)  # diag p: the centring left out
    one_per_class = (torch.eye(4, dtype=z.dtype) - p[:, None]) * p[:, :, None]  # p_c (e_c - p): the root left out
    assert not torch.allclose(forgotten, right, atol=1e-3)
    assert not torch.allclose(one_per_class.mT @ one_per_class, right, atol=1e-3)


def test_the_minimal_root_has_one_direction_fewer():
    z = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    full, minimal = lk.Categorical(), lk.Categorical(minimal=True)
    assert (full.count(z), minimal.count(z)) == (20, 15)
    assert torch.allclose(full.matrix(z), minimal.matrix(z), atol=1e-14)
    assert bool((torch.linalg.matrix_rank(minimal.directions(z).flatten(2)) == 15).all())


@given(st.integers(1, 3), st.lists(st.integers(1, 3), min_size=1, max_size=3), st.data())
def test_a_layout_is_read_and_written_back(n, own, data):
    dim = data.draw(st.sampled_from([None, *range(1, len(own) + 1), *range(-len(own), 0)]))
    parameters = data.draw(st.sampled_from([None, 1, 2] if dim is not None else [None, 1]))
    if dim is not None and parameters == 2:
        own[dim if dim < 0 else dim - 1] *= 2
    layout, z = Layout(parameters, dim), torch.arange(n * math.prod(own), dtype=torch.float64).reshape(n, *own)
    blocks = layout.split(z)
    assert blocks.shape[:2] == (n, layout.sites(z.shape))
    assert torch.equal(layout.join(blocks, z.shape), z)
    draws = torch.stack([z, -z], 1)
    assert torch.equal(layout.join(layout.split(draws, lead=2), z.shape), draws)
    assert torch.equal(layout.split(draws, lead=2)[:, 1], -blocks)


# --- losses, scores, divergences --------------------------------------------------------------------------------------


@every
def test_the_score_is_the_derivative_of_nll(case):
    z = case.outputs().requires_grad_()
    y = case.targets(z.detach())
    nll = case.likelihood.nll(z, y)
    assert nll.shape == (len(z),)
    (by_autograd,) = torch.autograd.grad(nll.sum(), z)
    assert torch.allclose(case.likelihood.score(z.detach(), y), by_autograd, atol=1e-10)
    assert torch.allclose(case.likelihood.loss(z, y), nll.mean())


@pytest.mark.parametrize("case", [c for c in CASES if c.likelihood.proper and "short" not in c.name], ids=str)
def test_nll_is_minus_the_log_density_of_the_distribution(case):
    z = case.outputs()
    y = case.targets(z)
    log_density = case.likelihood.distribution(z).log_prob(y).reshape(len(z), -1).sum(1)
    scale = case.likelihood.share(z)
    # torch's von Mises uses a polynomial for its Bessel function
    tolerance = 1e-6 if isinstance(case.likelihood, lk.VonMises) else 1e-12
    assert torch.allclose(case.likelihood.nll(z, y), -scale * log_density, atol=tolerance)


@every
def test_kl_is_the_expected_log_ratio_of_one_site(case):
    if not case.likelihood.proper:
        return
    z, other = case.outputs(n=2, seed=3).reshape(2, -1)[:, : case.parameters]
    y, p = case.nodes(z)
    expected = float((p * (case.loss(other, y) - case.loss(z, y))).sum())
    dims = {"dim": 1} if case.parameters > 1 else {}
    given_alone = isinstance(case.likelihood, (lk.Gaussian, lk.NegativeBinomial))
    alone = case.likelihood if given_alone else type(case.likelihood)(**dims)
    assert float(alone.kl(z[None], other[None])) == pytest.approx(expected, rel=1e-8)
    if not isinstance(case.likelihood, lk.Gaussian):  # symmetric
        assert float(alone.kl(other[None], z[None])) != pytest.approx(expected, rel=1e-3)


@every
def test_kl_agrees_with_torch(case):
    likelihood, z, other = case.likelihood, case.outputs(), case.outputs(seed=7)
    try:
        kl = torch.distributions.kl_divergence(likelihood.distribution(z), likelihood.distribution(other))
    except NotImplementedError:  # torch knows none for these two
        assert isinstance(likelihood, (lk.VonMises, lk.NegativeBinomial))
        return
    assert torch.allclose(likelihood.kl(z, other), likelihood.share(z) * kl.reshape(len(z), -1).sum(1), atol=1e-12)
    assert float(likelihood.kl(z, z).abs().max()) < 1e-12


def test_losses_are_those_of_torch():
    f, g = torch.nn.functional, torch.Generator().manual_seed(0)
    z, images = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((6, 5), (6, 5, 2, 3)))
    y = torch.randint(5, (6,), generator=g)
    pixels = torch.randint(5, (6, 2, 3), generator=g)
    weight = torch.rand(5, generator=g, dtype=torch.float64)
    grey = torch.rand(6, 5, generator=g, dtype=torch.float64)
    counts = torch.randint(9, (6, 5), generator=g).double()
    ignored = pixels.clone()
    ignored[0, 0], ignored[3] = -100, -100
    options = {"weight": weight, "label_smoothing": 0.1}
    soft = torch.rand(6, 5, generator=g, dtype=torch.float64).softmax(-1)
    pairs = [
        (lk.Categorical().loss(z, y), f.cross_entropy(z, y)),
        (lk.Categorical(label_smoothing=0.1).loss(z, y), f.cross_entropy(z, y, label_smoothing=0.1)),
        (lk.Categorical().loss(z, soft), f.cross_entropy(z, soft)),
        (lk.Categorical(**options).loss(z, soft), f.cross_entropy(z, soft, **options)),
        (lk.Categorical(dim=1).loss(images, pixels), f.cross_entropy(images, pixels, reduction="sum") / 6),
        (lk.Categorical(dim=1, sites="mean").loss(images, pixels), f.cross_entropy(images, pixels)),
        (
            lk.Categorical(dim=1, **options).loss(images, ignored),
            f.cross_entropy(images, ignored, reduction="sum", **options) / 6,
        ),
        (lk.Bernoulli().loss(z, grey), f.binary_cross_entropy_with_logits(z, grey, reduction="sum") / 6),
        (lk.Bernoulli(sites="mean").loss(z, grey), f.binary_cross_entropy_with_logits(z, grey)),
        (lk.Gaussian(full=False).loss(z, grey), f.mse_loss(z, grey, reduction="sum") / 12),
        (
            lk.Gaussian(2.0).loss(z, grey),
            f.gaussian_nll_loss(z, grey, torch.full_like(z, 4.0), full=True, reduction="sum") / 6,
        ),
        (lk.Poisson(full=False).loss(z, counts), f.poisson_nll_loss(z, counts, reduction="sum") / 6),
    ]
    for ours, theirs in pairs:
        assert float(ours) == pytest.approx(float(theirs), rel=1e-13)
    two = torch.cat([z, z.flip(0)], 1)
    ours = lk.GaussianMeanScale().loss(two, grey)
    theirs = f.gaussian_nll_loss(z, grey, (2 * z.flip(0)).exp(), full=True, reduction="sum") / 6
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)  # torch clamps the variance by 1e-6
