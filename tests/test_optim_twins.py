"""The optimizer in twin networks: the same functions at every step, whatever the frames."""

import pytest
import torch
from optim_cases import mlp

import riemann_ng as rng
from riemann_ng.likelihoods import Bernoulli
from riemann_ng.networks import Exact, Network
from riemann_ng.optim import (
    AtStart,
    Constant,
    Factored,
    InverseFree,
    KLClip,
    LevenbergMarquardt,
    NaturalGradient,
    QuadraticModel,
    Schedule,
    Tikhonov,
    TrustRegion,
)
from riemann_ng.reparametrize import Frames, reparametrize

TRANSPORTED = AtStart(rng.KFAC())
RULES = {
    "fixed": (Tikhonov(0.1, TRANSPORTED), Constant()),
    "factored": (Factored(0.1, TRANSPORTED), KLClip(0.5)),
    "trust region": (Tikhonov(0.1, TRANSPORTED), TrustRegion(0.3)),
    "quadratic": (Factored(0.1, TRANSPORTED), QuadraticModel()),
    "smoothed": (Factored(0.1, TRANSPORTED), QuadraticModel(smoothing=0.8)),
    "adaptive": (LevenbergMarquardt(Factored(0.1, TRANSPORTED), every=2), QuadraticModel()),
}


def batches(steps=8):
    torch.manual_seed(5)
    for _ in range(steps):
        x = torch.randn(40, 4, dtype=torch.float64)
        yield x, (x[:, :3] + 0.5 * torch.randn(40, 3, dtype=torch.float64) > 0).double()


def outputs_along(model, x_of, likelihood, settings, z_of=lambda z: z):
    opt = NaturalGradient(model, likelihood, **settings)
    probe, seen = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(5, 4), []
    for x, y in batches():
        opt.zero_grad()
        likelihood.loss(opt.network.read(model(x_of(x))), y).backward()
        opt.step()
        with torch.no_grad():
            seen.append(z_of(model(x_of(probe))))
    return torch.stack(seen), opt


def twins(settings, group="general"):
    network = Network.from_torch(mlp(), Bernoulli(), next(iter(batches(1)))[0])
    x = next(iter(batches(1)))[0]
    frames = Frames.draw(network, x, ("inputs", "activations", "pre-activations"), group, 3)
    twin = reparametrize(network, frames, x)
    own, opt = outputs_along(mlp(), lambda x: x, Bernoulli(), settings)
    seen, _ = outputs_along(twin.module, twin.inputs, twin.likelihood, settings, twin.to_original)
    return own, seen, opt


@pytest.mark.parametrize("name", RULES)
def test_with_transported_damping_the_trajectory_is_the_same_in_an_affine_twin(name):
    damping, rule = RULES[name]
    settings = {"damping": damping, "step_size": rule, "estimator": Exact(), "schedule": Schedule(2, 3, warmup=1)}
    own, seen, opt = twins(settings)
    assert torch.allclose(own, seen, rtol=1e-6, atol=1e-7 * float(own.abs().max()))
    assert opt.steps == 8 and not torch.allclose(own[0], own[-1], rtol=1e-1)


@pytest.mark.parametrize(
    "damping", [Factored(0.1), Tikhonov(0.1), LevenbergMarquardt()], ids=["factored", "fixed", "adaptive"]
)
def test_with_damping_by_coordinates_it_is_not(damping):
    own, seen, _ = twins({"damping": damping, "step_size": QuadraticModel(), "estimator": Exact()})
    assert not torch.allclose(own, seen, rtol=1e-2)


@pytest.mark.parametrize(("start", "same"), [("first", True), ("identity", False)])
def test_inverse_free_frames_that_start_from_the_metric(start, same):
    settings = {"damping": Factored(0.1, TRANSPORTED), "step_size": QuadraticModel(), "estimator": Exact()}
    own, seen, _ = twins(settings | {"inversion": InverseFree(start=start)})
    assert torch.allclose(own, seen, rtol=1e-5, atol=1e-6) is same


def test_the_reference_stays_what_it_was_at_the_start():
    model = mlp()
    opt = NaturalGradient(model, Bernoulli(), damping=Tikhonov(0.1, TRANSPORTED), step_size=Constant(), lr=0.1)
    references = []
    for x, y in batches():
        opt.zero_grad()
        Bernoulli().loss(model(x), y).backward()
        opt.step()
        references.append(opt.memory.reference)
    assert all(r is references[0] for r in references) and repr(TRANSPORTED) == "AtStart(KFAC())"
