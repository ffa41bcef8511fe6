"""Seams of the wider family of metrics, norms and steps: each of these was once wrong."""

from typing import Any

import pytest
import torch
from optim_cases import CE, batches, mlp
from torch import Tensor, nn

import riemann_ng as rng
from riemann_ng import norms
from riemann_ng.errors import InvalidSetting, NotClosed
from riemann_ng.metrics import MetricAverage
from riemann_ng.networks import Linearized
from riemann_ng.norms import InvalidNorm
from riemann_ng.optim import (
    GeodesicCorrected,
    LevenbergMarquardt,
    NaturalGradient,
    Schedule,
    Tikhonov,
    TruncatedNewton,
)


@pytest.fixture(autouse=True)
def double() -> object:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


# --- slopes of functions, read by torch.fx ----------------------------------------------------------------------------


class Applied(nn.Module):
    def __init__(self, f: Any) -> None:
        super().__init__()
        self.inner, self.f = nn.Linear(16, 16), f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self.inner(x))


def budget(f: Any) -> float:
    network = rng.Network.from_torch(Applied(f), rng.Gaussian(1.0), torch.randn(5, 16))
    return norms.Modular().budgets(network)["inner.weight"]


def square(h: Tensor) -> Tensor:
    return h.unflatten(-1, (1, 4, 4))


def pooled(h: Tensor) -> Tensor:
    return nn.functional.avg_pool2d(square(h), 2, divisor_override=1)


@pytest.mark.parametrize(
    ("f", "slope"),
    [
        (lambda h: torch.add(torch.tanh(h), h, alpha=5.0), 10.0),
        (lambda h: torch.sub(torch.tanh(h), h, alpha=-4.0), 8.0),
        (lambda h: torch.tanh(h).add(h, alpha=0.5), 2.0),
        (lambda h: h + h, 2.0),
        (lambda h: h / 4, 0.25),
    ],
    ids=["add alpha", "sub alpha", "method alpha", "twice", "quotient"],
)
def test_a_step_within_the_budget_moves_the_output_by_no_more_than_one(f: Any, slope: float) -> None:
    assert budget(f) == pytest.approx(0.5 / slope)  # half for the bias
    h, direction = torch.randn(9, 16), torch.randn(9, 16)
    moved = torch.func.jvp(f, (h,), (direction,))[1]
    assert float(moved.norm()) <= slope * float(direction.norm())


@pytest.mark.parametrize(("divisor", "slope"), [(None, 1.0), (1, 4.0), (-8, 0.5)], ids=str)
def test_an_average_with_a_divisor_of_its_own_is_a_multiple_of_one(divisor: int | None, slope: float) -> None:
    pool = nn.Sequential(nn.Unflatten(-1, (1, 4, 4)), nn.AvgPool2d(2, divisor_override=divisor), nn.Flatten())
    network = rng.Network.from_torch(nn.Sequential(nn.Linear(16, 16), pool), rng.Gaussian(1.0), torch.randn(5, 16))
    assert norms.Modular().budgets(network)["0.weight"] == pytest.approx(0.5 / slope)
    ones = torch.ones(1, 16)
    assert float(pool(ones).abs().max()) == pytest.approx(slope)  # attained


@pytest.mark.parametrize(
    ("f", "text"),
    [
        (lambda h: 2.0 / (3 + torch.tanh(h)), "a number divided by a tensor"),
        (lambda h: torch.div(1.0, 3 + torch.tanh(h)), "a number divided by a tensor"),
        (pooled, "divisor_override"),
    ],
    ids=["2 / h", "div(1, h)", "pool"],
)
def test_what_has_no_slope_is_refused(f: Any, text: str) -> None:
    with pytest.raises(InvalidNorm, match=text):
        budget(f)


# --- averages of forms whose multiple of the coordinates comes from data ----------------------------------------------


class Ridged(rng.LayerwiseMetric):
    """Damped in itself, relative to the data's own size."""

    def __init__(self, on: str) -> None:
        self.on = on

    def at_layer(self, layer: Any) -> rng.InnerProduct:
        size = float(layer.inputs.moment().trace())
        if self.on == "sum":
            return rng.second_moment(layer.gradients) + size * rng.Euclidean(layer.space)
        if self.on == "translations":
            return rng.second_moment(layer.gradients) + size * rng.euclidean_on_translations(layer.space)
        if self.on == "factor":
            ridge = size * rng.euclidean_on_translations(layer.A.dual)
            return rng.Euclidean(layer.S) * (rng.second_moment(layer.inputs) + ridge)
        return size * rng.Euclidean(layer.space)

    def expression(self) -> str:
        return f"Ridged({self.on!r})"


@pytest.mark.parametrize("on", ["sum", "translations", "factor", "alone"])
def test_an_average_takes_multiples_of_the_coordinates_that_change(on: str) -> None:
    network = rng.Network.from_torch(mlp(), rng.Categorical(), torch.randn(6, 4))
    seen = [network.observe(scale * torch.randn(20, 4)) for scale in (1.0, 3.0, 0.2, 1.0)]
    average, mean = MetricAverage(Ridged(on), 0.7), None
    for t, observation in enumerate(seen, 1):
        weight, M = 0.3 / (1 - 0.7**t), Ridged(on).at(observation).matrix()
        mean = M if mean is None else (1 - weight) * mean + weight * M
        value = average.update(observation)
        if t == 2:  # goes on bit for bit
            again = MetricAverage(Ridged(on), 0.7)
            again.load_state(network.tangent_space, average.state())
        elif t > 2:
            assert torch.equal(again.update(observation).matrix(), value.matrix())
    torch.testing.assert_close(value.matrix(), mean, rtol=1e-13, atol=1e-13)
    last = Ridged(on).at(seen[-1]).matrix()
    assert not torch.allclose(last, value.matrix(), rtol=1e-2)  # the mean is not the last one


def test_a_multiple_of_the_coordinates_blends_with_no_other_form() -> None:
    V = rng.Space("V", 3)
    c = (2.0 * rng.Euclidean(V)).blend(rng.Euclidean(V), 0.25)
    torch.testing.assert_close(c.matrix(), 1.75 * torch.eye(3))
    torch.testing.assert_close(rng.Euclidean(V).blend(2.0 * rng.Euclidean(V), 0.25).matrix(), 1.25 * torch.eye(3))
    rows = rng.LowRank(V, torch.randn(2, 3))
    with pytest.raises(NotClosed, match="no common kind"):
        rng.Euclidean(V).blend(2.0 * rows, 0.25)


# --- a corrected step is not the one that a search has tried ----------------------------------------------------------


def test_what_became_of_the_loss_is_that_at_the_end_of_the_bent_step() -> None:
    model = mlp()
    opt = NaturalGradient(
        model, rng.Categorical(), rng.Fisher("matrix-free"), lr=1.0, momentum=0.0, estimator=Linearized(), decay=0.0,
        schedule=Schedule(1, 1), damping=LevenbergMarquardt(Tikhonov(1.0), 2 / 3, 1),
        step_size=GeodesicCorrected(TruncatedNewton(20)),
    )  # fmt: skip
    for x, y in batches(3):
        opt.zero_grad()
        before = CE(model(x), y)
        before.backward()
        opt.step()
        after = CE(model(x), y)
        assert opt.report.actual == pytest.approx(float((after - before).detach()), abs=1e-12)


# --- what is given in place of what is wanted -------------------------------------------------------------------------


def test_wrong_types_are_named() -> None:
    model = mlp()
    network = rng.Network.from_torch(model, rng.Categorical(), torch.randn(6, 4))
    with pytest.raises(InvalidSetting, match="expected a metric and an observation"):
        rng.NamedFrame.of(rng.KFAC(), torch.randn(6, 4), name="at the start")  # type: ignore[arg-type]
    for norm in (norms.Modular(), norms.Spectral(), norms.Sign()):
        with pytest.raises(InvalidNorm, match=r"expected a network: Network\.from_torch"):
            norm.over(model)  # type: ignore[arg-type]
    with pytest.raises(InvalidNorm, match=r"masses=.*expected a mapping"):
        norms.Modular(masses=[1.0])  # type: ignore[arg-type]
    with pytest.raises(rng.RiemannError, match="with structure 'full', 'matrix-free' or 'dual'"):
        rng.natural_gradient(
            network, rng.Fisher("dense"), torch.randn(6, 4), torch.randint(0, 3, (6,)),
            damping=0.1 * rng.EuclideanMetric(), solver=rng.solvers.Riccati(),
        )  # fmt: skip
