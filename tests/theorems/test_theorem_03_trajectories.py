"""Theorem 3: whole K-FAC trajectories do not depend on affine frames."""

from itertools import pairwise

import torch
from exact_matrices import Draws
from hypothesis import given, settings
from hypothesis import strategies as st
from networks_and_twins import tanh_network, twin_of
from torch import Tensor, nn

import riemann_ng as rng

WIDTHS = (3, 4, 2)


class Framed(nn.Module):
    """A tanh network of two layers seen in affine frames, given as matrices on hulls: alpha of activations, sigma of
    pre-activations. With identities it is the network itself; its outputs are always in the original frame."""

    def __init__(self, alpha: list[Tensor], sigma: list[Tensor]):
        super().__init__()
        draws = Draws(11)
        self.alpha, self.sigma = alpha, sigma
        self.layers = nn.ModuleList(nn.Linear(n, m).double() for n, m in pairwise(WIDTHS))
        for k, layer in enumerate(self.layers):
            m, n = layer.weight.shape
            own = torch.cat([draws.normal(m, n + 1), torch.eye(n + 1, dtype=torch.float64)[-1:]])
            weight = sigma[k] @ own @ torch.linalg.inv(alpha[k])
            with torch.no_grad():
                layer.weight.copy_(weight[:m, :n])
                layer.bias.copy_(weight[:m, n])

    def forward(self, x: Tensor) -> Tensor:
        h = apply(torch.linalg.inv(self.sigma[0]), self.layers[0](apply(self.alpha[0], x))).tanh()
        return apply(torch.linalg.inv(self.sigma[1]), self.layers[1](apply(self.alpha[1], h)))


def apply(frame: Tensor, x: Tensor) -> Tensor:
    n = frame.shape[0] - 1
    return x @ frame[:n, :n].mT + frame[:n, n]


def kfac(network: rng.Network, x: Tensor) -> rng.InnerProduct:
    observation = network.observe(x)
    layers = {path: observation[path] for path in network.blocks}
    return rng.direct_sum({p: rng.second_moment(s.cotangents) * rng.second_moment(s.inputs) for p, s in layers.items()})


def euclidean(network: rng.Network, x: Tensor) -> rng.InnerProduct:
    return rng.direct_sum({path: rng.Euclidean(network.tangent_space[path]) for path in network.blocks})


def trajectory(metric, alpha: list[Tensor], sigma: list[Tensor], rate: float, steps: int = 5) -> Tensor:
    """Outputs on other inputs, at the start and after every step."""
    draws = Draws(7)
    x, y, others = draws.normal(60, 3), draws.normal(60, 2), draws.normal(20, 3)
    model = Framed(alpha, sigma)
    network = rng.Network.from_torch(model, likelihood=rng.Gaussian(), example=x)
    outputs = [model(others).detach()]
    for _ in range(steps):
        network.move_(metric(network, x).sharp(network.differential(x, y)), -rate)
        outputs.append(model(others).detach())
    return torch.stack(outputs)


def mismatch(metric, alpha: list[Tensor], sigma: list[Tensor], rate: float) -> float:
    """Largest difference to the trajectory in the own frames, in units of the distance that it goes."""
    own = trajectory(metric, *identities(), rate)
    return float((trajectory(metric, alpha, sigma, rate) - own).abs().max() / (own - own[0]).abs().max())


def identities() -> tuple[list[Tensor], list[Tensor]]:
    eye = lambda n: torch.eye(n + 1, dtype=torch.float64)  # noqa: E731
    return [eye(n) for n in WIDTHS[:-1]], [eye(n) for n in WIDTHS[1:]]


def frames(seed: int) -> tuple[list[Tensor], list[Tensor]]:
    draws = Draws(seed)
    return [draws.affine(n) for n in WIDTHS[:-1]], [draws.affine(n) for n in WIDTHS[1:]]


@settings(max_examples=settings.default.max_examples // 10)
@given(st.integers(0, 10**6))
def test_theorem_03_kfac_takes_the_same_path_in_every_affine_frame(seed):
    assert mismatch(kfac, *frames(seed), rate=0.3) < 1e-7


def test_theorem_03_fails_for_gradient_descent():
    assert mismatch(euclidean, *frames(0), rate=0.05) > 0.1


def test_theorem_03_fails_for_frames_that_are_not_affine():
    """A homogeneous coordinate that is not kept: the twin is another model, whose bias sees something else than 1."""
    alpha, sigma = frames(0)
    alpha[1][-1, 0] = 0.5
    assert mismatch(kfac, alpha, sigma, rate=0.3) > 0.1


def path_is_off(metric: rng.RiemannianMetric, seed: int, rate: float, steps: int = 5) -> float:
    """The largest difference of the twin's outputs to the network's, in units of the distance that these go."""
    network, x, y = tanh_network(Draws(3), (3, 4, 2), n=60)
    twin, others = twin_of(network, x, seed), Draws(7).normal(20, 3)
    own, theirs = [network.outputs(others).detach()], []
    for _ in range(steps):
        v = rng.natural_gradient(network, metric, x, y)
        u = rng.natural_gradient(twin.network, metric, twin.inputs(x), y)
        network.move_(v, -rate)
        twin.network.move_(u, -rate)
        own.append(network.outputs(others).detach())
        theirs.append(twin.to_original(twin.module(twin.inputs(others))).detach())
    path = torch.stack(own)
    return float((torch.stack(theirs) - path[1:]).abs().max() / (path - path[0]).abs().max())


@settings(max_examples=settings.default.max_examples // 10)
@given(st.integers(0, 10**6))
def test_theorem_03_of_the_library(seed):
    """`natural_gradient` by `KFAC` in the twins of `reparametrize`: every space is moved, and the targets stay."""
    assert path_is_off(rng.KFAC(), seed, rate=0.3) < 1e-7


def test_theorem_03_of_the_library_fails_for_gradient_descent_and_damping():
    assert path_is_off(rng.EuclideanMetric(), 0, rate=0.05) > 0.1
    assert path_is_off(rng.KFAC() + 0.1 * rng.EuclideanMetric(), 0, rate=0.3) > 0.01
