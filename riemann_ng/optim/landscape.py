"""The loss around the point where the parameters are, for rules that search on it.

On the batch of the step no label is needed: see `quadratic`. That is exact where the outputs are natural parameters
(Categorical, Bernoulli, Poisson, the mean of a Gaussian) and right to second order elsewhere. On examples given by
`optimizer.evaluate_on(x, y)` it is the likelihood's own loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..elements import Covector, Vector
from ..errors import InvalidSetting
from ..networks.outputs import standing_in
from ..networks.precision import at_least_single
from .quadratic import Batch
from .random_state import RandomState


@dataclass(frozen=True)
class Examples:
    """Inputs and targets beside those of the loop."""

    x: Any
    y: Any
    began: RandomState


class Landscape:
    """How the mean loss changes when the parameters move by a vector. What is not finite is infinitely high.

    The parameters themselves stay where they are. `looks` counts what was asked.
    """

    def __init__(self, batch: Batch, unit: float, examples: Examples | None):
        """Scores that arrived at the outputs are to be multiplied by `unit`."""
        self.batch, self.unit, self.examples, self.looks = batch, unit, examples, 0
        self._start: float | None = None
        self._before: list[Tensor] | None = None

    def change(self, v: Vector) -> float:
        """The loss there minus the loss here."""
        start, before = self._here()
        with self._moved(v):
            found = self._given() - start if self.examples is not None else self.batch.change(before, self.unit)
        assert found is not None
        return found if math.isfinite(found) else math.inf

    def differential(self, v: Vector) -> tuple[float, Covector]:
        """The change, and the differential of the loss there, as a covector of the affine space of parameters."""
        start, before = self._here()
        network, total = self.batch.network, 0.0
        with self._moved(v) as parameters, torch.enable_grad():
            sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
            for p in parameters.values():
                p.requires_grad_()
            for part in self._parts(before):
                found = torch.autograd.grad(part, list(parameters.values()), allow_unused=True)
                total += float(part.detach())
                for name, g in zip(parameters, found, strict=True):
                    if g is not None:
                        sums[name] += g
        change = total - start
        return change if math.isfinite(change) else math.inf, network.covector(sums)

    def _here(self) -> tuple[float, list[Tensor]]:
        """What changes are counted from: the loss on other examples, or the outputs of the step's own."""
        self.looks += 1
        if self.examples is not None:
            if self._start is None:
                self._start = self._given()
            return self._start, []
        if any(p.score is None for p in self.batch.passes):
            raise InvalidSetting(
                "InvalidSetting in a search on the loss: no gradient arrived at the outputs of the model, so that it "
                "is not known which loss is meant. Compute it from what the model returns, or give examples: "
                "optimizer.evaluate_on(x, y)."
            )
        if self._before is None:
            self._before = self.batch.outputs_before()
        return 0.0, self._before

    def _given(self) -> float:
        assert self.examples is not None
        with torch.no_grad():
            return float(self._loss(self.examples))

    def _loss(self, given: Examples) -> Tensor:
        network = self.batch.network
        with given.began.again():
            return network.likelihood.loss(at_least_single(network.outputs(given.x)), given.y)

    def _parts(self, before: list[Tensor]) -> Iterator[Tensor]:
        """Whose sum is the change, or the loss on other examples; with graphs."""
        if self.examples is not None:
            yield self._loss(self.examples)
            return
        for p, z in zip(self.batch.passes, before, strict=True):
            assert p.score is not None
            with self.batch._as_in(p):
                there = at_least_single(self.batch.network.outputs(p.x))
            divergence = self.batch.network.likelihood.kl(z, there).sum() / self.batch.examples
            yield divergence + self.unit * (at_least_single(p.score) * (there - z)).sum()

    @contextmanager
    def _moved(self, v: Vector) -> Iterator[dict[str, Tensor]]:
        """Inside, others stand in for the parameters, which themselves are not touched: graphs that hold them last."""
        moves = v.to_parameters()
        there = {name: p.detach() + moves[name].to(p.dtype) for name, p in self.batch.network.parameters.items()}
        with standing_in(self.batch.network.module, there):
            yield there
