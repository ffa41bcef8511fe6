"""Sampled targets and cotangents: their moments, and where their randomness comes from."""

import pytest
import torch
from likelihood_cases import CASES
from torch import distributions

from riemann_ng import likelihoods as lk
from riemann_ng.likelihoods.two_parameters import trigamma_excess

every = pytest.mark.parametrize("case", CASES, ids=str)
DRAWS = 40_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def deviations(cotangents: torch.Tensor, h: torch.Tensor) -> tuple[float, float]:
    """How many standard errors the mean is from 0, and the second moment from h: the worst entry of each."""
    flat = cotangents.flatten(2)
    k = flat.shape[1]
    squares = flat[..., :, None] * flat[..., None, :]
    off_mean = flat.mean(1).abs() / (flat.std(1) / k**0.5 + 1e-12)
    off_moment = (squares.mean(1) - h).abs() / (squares.std(1) / k**0.5 + 1e-12)
    return float(off_mean.max()), float(off_moment.max())


@every
def test_sampled_cotangents_have_mean_zero_and_covariance_h(case):
    z = case.outputs(n=1)
    cotangents = case.likelihood.sampled_cotangents(z, generator(), DRAWS)
    assert cotangents.shape == (1, DRAWS, *z.shape[1:])
    h = case.likelihood.matrix(z)
    off_mean, off_moment = deviations(cotangents, h)
    assert off_mean < 4.5
    assert off_moment < 4.5
    # Not of any form of the same size: the test would see one that is a tenth too large.
    assert deviations(cotangents, 1.1 * h)[1] > 4.5


@every
def test_sampled_cotangents_are_scores_of_samples(case):
    z = case.outputs()
    likelihood = case.likelihood
    cotangents = likelihood.sampled_cotangents(z, generator(3), 2)
    y = likelihood.sample(z, generator(3), 2)
    assert y.shape[:2] == (2, len(z))
    if not likelihood.proper:
        return
    for k in range(2):
        assert torch.allclose(cotangents[:, k], likelihood.score(z, y[k]) / likelihood.share(z) ** 0.5, atol=1e-12)


def test_labels_of_the_data_give_no_fisher():
    z = torch.tensor([[2.0, 0.0, -1.0]], dtype=torch.float64)
    p = z.softmax(-1)
    elsewhere = torch.multinomial(torch.tensor([0.1, 0.1, 0.8]), DRAWS, replacement=True, generator=generator())
    scores = (p - torch.nn.functional.one_hot(elsewhere, 3))[None]
    off_mean, off_moment = deviations(scores, lk.Categorical().matrix(z))
    assert off_mean > 10
    assert off_moment > 10


def test_one_cotangent_of_independent_signs_has_covariance_h():
    z = torch.randn(1, 2, 3, dtype=torch.float64, generator=generator(1))
    for likelihood in (lk.Categorical(), lk.Categorical(minimal=True)):
        signs = 2.0 * torch.randint(2, (DRAWS, likelihood.count(z)), generator=generator()) - 1
        cotangents = likelihood.combine(z.expand(DRAWS, -1, -1), signs.double())[None]
        off_mean, off_moment = deviations(cotangents, likelihood.matrix(z))
        assert off_mean < 4.5
        assert off_moment < 4.5


@every
def test_samples_come_from_the_given_generator_alone(case):
    z = case.outputs()
    before = torch.get_rng_state()
    first = case.likelihood.sampled_cotangents(z, generator(5), 3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert torch.equal(case.likelihood.sampled_cotangents(z, generator(5), 3), first)
    assert not torch.equal(case.likelihood.sampled_cotangents(z, generator(6), 3), first)
    moving = generator(5)
    case.likelihood.sampled_cotangents(z, moving, 3)
    assert not torch.equal(case.likelihood.sampled_cotangents(z, moving, 3), first)


def test_samples_of_any_family_leave_the_global_generator():
    likelihood = lk.FromDistribution(lambda z: distributions.Laplace(z, torch.ones_like(z)))
    z, before = torch.zeros(2, 3), torch.get_rng_state()
    first = likelihood.sample(z, generator(5), 4)
    assert first.shape == (4, 2, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(likelihood.sample(z, generator(5), 4), first)
    # Its own sampler does move it.
    likelihood.distribution(z).sample()
    assert not torch.equal(torch.get_rng_state(), before)


def test_half_precision_outputs_are_sampled_in_single():
    p = 1e-3
    z = torch.tensor(p).logit().expand(200_000, 1).to(torch.bfloat16)
    drawn = lk.Bernoulli().sample(z, generator())
    expected = float(z[0].double().sigmoid())
    assert drawn.dtype == torch.bfloat16
    assert abs(float(drawn.double().mean()) - expected) < 4.5 * (expected / 200_000) ** 0.5
    coarse = torch.rand(200_000, generator=generator(), dtype=torch.bfloat16) < z[:, 0].sigmoid()
    assert abs(float(coarse.double().mean()) - expected) > 4.5 * (expected / 200_000) ** 0.5
    for likelihood in (lk.Categorical(), lk.Gaussian(), lk.Poisson()):
        assert likelihood.sampled_cotangents(z[:4].expand(4, 3), generator(), 2).dtype == torch.bfloat16


@pytest.mark.parametrize("size", [1e3, 1e-3, 80.0])
@pytest.mark.parametrize("likelihood", [lk.Categorical(), lk.Categorical(minimal=True), lk.Bernoulli()], ids=repr)
def test_extreme_logits_in_float32_stay_finite(likelihood, size):
    signs = torch.tensor([[1.0, -1.0, 0.0], [-1.0, -1.0, 1.0], [1.0, 1.0, 1.0]])
    z = size * signs
    other, dz = -z, torch.ones_like(z)
    y = torch.tensor([1, 0, 2]) if isinstance(likelihood, lk.Categorical) else torch.tensor([[1.0, 1.0, 0.0]] * 3)
    found = [
        likelihood.nll(z, y), likelihood.score(z, y), likelihood.kl(z, other), likelihood.apply(z, dz),
        likelihood.pair(z, dz), likelihood.directions(z), likelihood.sampled_cotangents(z, generator(), 5),
    ]  # fmt: skip
    assert all(bool(x.isfinite().all()) for x in found)
    assert all(x.dtype == torch.float32 for x in found)
    exact = likelihood.matrix(z.double())
    assert torch.allclose(likelihood.matrix(z).double(), exact, atol=1e-6)


def test_the_bernoulli_root_keeps_its_digits_where_p_rounds_to_one():
    z = torch.tensor([[30.0, -30.0]])
    assert float((lk.Bernoulli().diagonal_roots(z) / torch.tensor(-15.0).exp() - 1).abs().max()) < 1e-5
    p = z.sigmoid()
    assert float((p * (1 - p))[0, 0]) == 0  # the plain formula loses it


@pytest.mark.parametrize("log_size", [-8.0, 0.0, 5.0, 9.0, 14.0])
def test_nearly_degenerate_information_keeps_its_digits(log_size):
    """Determinants against their leading terms for large and small concentrations, in float32 outputs."""
    z = torch.full((1, 2), log_size)
    size = torch.tensor(log_size, dtype=torch.float64).exp()
    gamma = torch.linalg.det(lk.Gamma().matrix(z.double()))
    beta = torch.linalg.det(lk.Beta().matrix(z.double()))
    if log_size > 4:
        assert float(gamma / (size / 2)) == pytest.approx(1, rel=2 / float(size))
        assert float(beta / (size / 4)) == pytest.approx(1, rel=4 / float(size))
    for likelihood in (lk.Gamma(), lk.Beta(), lk.VonMises()):
        low, high = likelihood.directions(z), likelihood.directions(z.double())
        assert low.dtype == torch.float32
        assert torch.allclose(low.double(), high, rtol=1e-6)
        assert bool((torch.linalg.matrix_rank(high.flatten(2), rtol=1e-9) == 2).all())


def test_the_series_of_trigamma_takes_over_without_a_step():
    x = torch.tensor([99.0, 101.0, 150.0], dtype=torch.float64)
    assert torch.allclose(trigamma_excess(x), torch.polygamma(1, x) - 1 / x, rtol=1e-11, atol=0)


@pytest.mark.parametrize("kappa", [0.0, 1e-9, 1e-3, 1.0, 30.0, 290.0, 310.0, 1e4])
def test_von_mises_information_at_every_concentration(kappa):
    z = torch.tensor([[0.6, 0.8]], dtype=torch.float64) * kappa
    eps = torch.tensor(max(kappa, 1.0) * 1e-5)
    h = lk.VonMises().matrix(z)[0]
    for unit in (torch.tensor([0.6, 0.8]), torch.tensor([-0.8, 0.6])):
        ahead, behind = (lk.VonMises().score(z + s * eps * unit, z[:, :1])[0] for s in (1, -1))
        assert torch.allclose(h @ unit.double(), (ahead - behind) / (2 * eps), rtol=1e-4, atol=3e-11 / float(eps))


def test_von_mises_information_is_one_function_where_its_series_takes_over():
    direction = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    below, above = (lk.VonMises().matrix(direction * kappa)[0, 0, 0] for kappa in (300 - 1e-7, 300 + 1e-7))
    assert float(below / above) == pytest.approx(1, rel=1e-8)
