"""Plain gradient descent in frames beside the natural gradient, step by step: what two reproductions share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import NonFinite
from ..inner_products import InnerProduct
from ..metrics import RiemannianMetric
from ..metrics.base import value_at
from ..networks import Network
from ..reparametrize import InFrames, in_frames

Refresh = Literal["right", "parameters left", "velocity left"]
"""What becomes of raw parameters and of their velocity when the frames change; the last two are mistakes."""
Batches = Sequence[tuple[Tensor, Tensor]]


@dataclass
class Descent:
    """How to train: minibatches, the examples that metrics are made of, and what to look at after every step.

    A metric stands still for `every` steps, and is then made anew.
    """

    network: Network
    batches: Batches
    seen: Tensor
    watch: Callable[[nn.Module], Tensor]
    rate: float
    momentum: float = 0.0
    every: int = 3

    def fresh(self) -> Network:
        """A copy, to be trained."""
        return Network.from_torch(copy.deepcopy(self.network.module), self.network.likelihood, self.seen)

    def natural(self, metric: RiemannianMetric, rate: float | None = None) -> Tensor:
        """B ← momentum · B + g⁻¹ df, w ← w - rate · B, with vectors of the network's tangent space."""
        network, velocity, g = self.fresh(), None, None
        found = [self._look(network.module)]
        for t, (x, y) in enumerate(self.batches):
            if g is None or t % self.every == 0:
                g = self._value(metric, network)
            v = g.sharp(network.differential(x, y))
            velocity = v if velocity is None else self.momentum * velocity + v
            network.move_(velocity, -(self.rate if rate is None else rate))
            found.append(self._look(network.module))
        return torch.stack(found)

    def framed(self, metric: RiemannianMetric, refresh: Refresh = "right") -> tuple[Tensor, float]:
        """`torch.optim.SGD` on the raw parameters, and the largest change of what is watched at a refresh."""
        network = self.fresh()
        frames = in_frames(network, self._value(metric, network))
        sgd = torch.optim.SGD(network.module.parameters(), lr=self.rate, momentum=self.momentum)
        found, jump = [self._look(network.module)], 0.0
        for t, (x, y) in enumerate(self.batches):
            if t and t % self.every == 0:
                with frames.off() as seen:
                    g = self._value(metric, seen)
                refreshed(frames, g, sgd, refresh)
                jump = max(jump, float((self._look(network.module) - found[-1]).abs().max()))
            self._step(network, sgd, x, y)
            found.append(self._look(network.module))
        return torch.stack(found), jump

    def plain(self, rate: float) -> Tensor:
        """`torch.optim.SGD` in the coordinates."""
        network = self.fresh()
        sgd = torch.optim.SGD(network.module.parameters(), lr=rate, momentum=self.momentum)
        found = [self._look(network.module)]
        for x, y in self.batches:
            self._step(network, sgd, x, y)
            found.append(self._look(network.module))
        return torch.stack(found)

    def _step(self, network: Network, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        network.likelihood.loss(network.module(x), y).backward()
        optimizer.step()

    def _value(self, metric: RiemannianMetric, network: Network) -> InnerProduct:
        with network.observe(self.seen, metric.estimator(None)) as observation:
            return value_at(metric, observation)

    @torch.no_grad()
    def _look(self, model: nn.Module) -> Tensor:
        return self.watch(model).detach().clone()


def refreshed(frames: InFrames, g: InnerProduct, sgd: torch.optim.Optimizer, how: Refresh) -> None:
    """Puts a model in other frames, rightly or with one of the mistakes."""
    raw = [p for group in sgd.param_groups for p in group["params"]]
    kept = [p.detach().clone() for p in raw]
    frames.refresh(g, None if how == "velocity left" else sgd)
    if how == "parameters left":
        with torch.no_grad():
            for p, old in zip(raw, kept, strict=True):
                p.copy_(old)


def minibatches(x: Tensor, y: Tensor, size: int, steps: int, generator: torch.Generator) -> Batches:
    """Epochs in mixed orders, one after the other."""
    found: list[tuple[Tensor, Tensor]] = []
    while len(found) < steps:
        found += [(x[rows], y[rows]) for rows in torch.randperm(len(x), generator=generator).split(size)]
    return found[:steps]


def best_of(rates: Sequence[float], curve: Callable[[float], Tensor]) -> tuple[float, Tensor]:
    """Of several rates the one that ends lowest, with its curve. One at which the numbers overflow is out."""
    whole = {}
    for rate in rates:
        try:
            losses = curve(rate)
        except NonFinite:
            continue
        if bool(losses.isfinite().all()):
            whole[rate] = losses
    best = min(whole, key=lambda rate: float(whole[rate][-1]))
    return best, whole[best]
