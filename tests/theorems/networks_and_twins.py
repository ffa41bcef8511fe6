"""Small tanh networks read by the library, and their twins in other frames."""

from itertools import pairwise

import torch
from exact_matrices import Draws
from torch import Tensor, nn

import riemann_ng as rng
from riemann_ng.reparametrize import Twin

EVERYWHERE = ("inputs", "activations", "pre-activations", "outputs")


def tanh_network(draws: Draws, widths: tuple[int, ...], n: int = 40) -> tuple[rng.Network, Tensor, Tensor]:
    """A network with squared errors, a batch and its targets."""
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        layers += [nn.Tanh()] * (i > 0) + [nn.Linear(inputs, outputs).double()]
        with torch.no_grad():
            for p in layers[-1].parameters():
                p.copy_(draws.normal(*p.shape))
    x, y = draws.normal(n, widths[0]), draws.normal(n, widths[-1])
    return rng.Network.from_torch(nn.Sequential(*layers), rng.Gaussian(), x), x, y


def seen_by_hand(network: rng.Network, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Of every layer its inputs with a one, and the Jacobian (examples, outputs, units) of the outputs: by autograd."""
    features, values, h = [], [], x
    for layer in network.module:
        if isinstance(layer, nn.Linear):
            features.append(torch.cat([h, h.new_ones(len(h), 1)], -1).detach())
            values.append(layer(h))
        h = values[-1] if isinstance(layer, nn.Linear) else layer(h)
    rows = [torch.autograd.grad(h[:, o].sum(), values, retain_graph=True) for o in range(h.shape[1])]
    return features, [torch.stack(part, 1) for part in zip(*rows, strict=True)]


def twin_of(network: rng.Network, x: Tensor, seed: int, group: str = "affine") -> Twin:
    return rng.reparametrize(network, rng.Frames.draw(network, x, EVERYWHERE, group, seed), x)


def off(u: rng.Vector, v: rng.Vector) -> float:
    return float((u.components - v.components).norm() / v.components.norm())


def step_is_off(
    network: rng.Network, x: Tensor, metric: rng.RiemannianMetric, seed: int, group: str = "affine"
) -> float:
    """By how much the step of the twin differs from the step, taken along. Labels are drawn in neither."""
    twin = twin_of(network, x, seed, group)
    xi = rng.Covector(network.tangent_space, Draws(seed).normal(network.tangent_space.dim))
    here = metric.at(network.observe(x)).sharp(xi)
    there = metric.at(twin.network.observe(twin.inputs(x))).sharp(twin.transport(xi))
    return off(there, twin.transport(here))
