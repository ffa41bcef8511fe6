"""A metric of one's own, from definition to training: `ForwardOnly` looks at inputs alone and never back from the loss.

On a layer it is ⟨·,·⟩ on S times the moment of the inputs: a step is measured by how far it moves the pre-activations.
Whitening is what it amounts to, without a whitened network: however badly the inputs are scaled and mixed, descent is
the same, because the expression keeps every affine frame of the activations. Gradient descent is held against it.

    python examples/your_own_metric.py
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import riemann_ng as rng
from riemann_ng.metrics import EuclideanMetric, LayerwiseMetric, RiemannianMetric
from riemann_ng.natural_gradient import natural_gradient
from riemann_ng.networks import Estimator, InputsOnly, LayerObservation


class ForwardOnly(LayerwiseMetric):
    """How far the pre-activations move, in their coordinates, on the inputs seen."""

    sees_outputs = False

    def at_layer(self, layer: LayerObservation) -> rng.InnerProduct:
        return rng.Euclidean(layer.S) * rng.second_moment(layer.inputs)

    def estimator(self, targets: Any = None) -> Estimator:
        return InputsOnly()


def problem(features: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, labels, and the same inputs in a bad frame: mixed, stretched a hundredfold, off centre."""
    x = torch.randn(200, features)
    y = (torch.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] > 0).long()
    axes = torch.linalg.qr(torch.randn(features, features)).Q
    stretched = (x * torch.logspace(-1, 1, features)) @ axes + 3 * torch.randn(features)
    return x, y, stretched


def network_at(x: Tensor, like: Tensor | None = None) -> rng.Network:
    """A small classifier; `like` is the same batch in the frame in which its first layer was drawn."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(x.shape[1], 16), nn.Tanh(), nn.Linear(16, 2))
    if like is not None:  # the same function of the batch in the frame of x
        hull = torch.cat([x, torch.ones(len(x), 1)], 1)
        first = torch.linalg.lstsq(hull, model[0](like).detach()).solution.mT
        with torch.no_grad():
            model[0].weight.copy_(first[:, :-1])
            model[0].bias.copy_(first[:, -1])
    return rng.Network.from_torch(model, likelihood=rng.Categorical(), example=x)


def losses(network: rng.Network, metric: RiemannianMetric, x: Tensor, y: Tensor, step: float, steps: int) -> Tensor:
    found = []
    for _ in range(steps):
        network.move_(natural_gradient(network, metric, x, y), step=-step)
        found.append(network.likelihood.loss(network.outputs(x), y).detach())
    return torch.stack(found)


def main() -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    x, y, stretched = problem()

    value = ForwardOnly().at(network_at(x).observe(x, InputsOnly()))
    print("On the first layer it is", (value.summands() or {})["0"])
    print(rng.explain_symmetry(value))

    print(f"{'metric':18} {'good frame':>12} {'bad frame':>12} {'apart':>9}")
    for metric, step in ((ForwardOnly(), 0.5), (EuclideanMetric(), 0.02)):
        here = losses(network_at(x), metric, x, y, step, steps=30)
        there = losses(network_at(stretched, like=x), metric, stretched, y, step, steps=30)
        apart = float((here - there).abs().max())
        print(f"{metric!r:18} {here[-1].item():12.6f} {there[-1].item():12.6f} {apart:9.0e}")
        if isinstance(metric, ForwardOnly):
            assert apart < 1e-8  # the same descent, to rounding
            assert here[-1] < 0.9 * here[0]
        else:
            assert apart > 1e-3


if __name__ == "__main__":
    main()
