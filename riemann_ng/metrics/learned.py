"""Learned inverse preconditioners: the step -U g with U of a given structure, made to lower a quadratic model.

The model of the loss is L + g(u) + ½ C(u, u), with C the Fisher of the batch across all layers (or another output
metric's Gauss-Newton form) plus damping. Its minimum over all u is the exact step. Here u = -U g with U a direct sum
over the layers, so that the form can be kept and used for the gradients of later batches:

    J(U) = ½ C(Ug, Ug) - g(Ug),   dJ = (C u + g)(du),   du = -dU g.

C u + g is one sweep forward through the layers and one back; then follows the chain rule in the parameters of U.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidSetting, NonFinite, ObservationMismatch
from ..factorizations import Factorization, InverseFactor
from ..inner_products import BlockDiagonal, InnerProduct, kind
from ..inner_products.base import State
from ..inner_products.common import bracketed
from ..likelihoods import OutputMetric
from ..networks import Empirical, Estimator
from ..networks.observation import Observation
from ..solvers import Structure
from ..spaces import VectorSpace
from ..symmetry import Symmetry
from .base import RiemannianMetric, named, value_at
from .learned_structures import STRUCTURES, Inverse, Structured
from .outputs import check_output


@kind("learned inverse")
class LearnedInverse(InnerProduct):
    """The form whose dual is U: `sharp` multiplies by U. Averages are those of U."""

    def __init__(self, of: InnerProduct):
        self.of, self.space = of, of.space.dual

    def flat_components(self, x: Tensor) -> Tensor:
        return self.of.factorization(x).solve(x)

    def tensors(self) -> Iterator[Tensor]:
        return self.of.tensors()

    @property
    def structure(self) -> Structure:
        s = self.of.structure
        return Structure("learned inverse", s.dim, s.apply, 2.0 * s.dim**2, s.dim)

    def direct_factorization(self, method: str) -> Factorization | None:
        return None if self.dtype is None else InverseFactor(self.of.flat_components, self.of.factorization())

    @property
    def symmetry(self) -> Symmetry:
        return self.of.symmetry**-1

    def expression(self) -> str:
        return f"{bracketed(self.of.expression(), '+*')}.dual"

    def blended(self, other: InnerProduct, weight: float) -> InnerProduct:
        if not isinstance(other, LearnedInverse):
            return super().blended(other, weight)
        return LearnedInverse(self.of.blend(other.of, weight))

    def own_state(self) -> State:
        return {"of": self.of.state()}

    @classmethod
    def restore(cls, space: VectorSpace, state: State) -> LearnedInverse:
        return cls(InnerProduct.from_state(space.dual, state["of"]))


@dataclass(frozen=True, eq=False)
class Lesson:
    """What was learned on a batch: the inner product, and J before every step of learning and after the last."""

    value: BlockDiagonal
    objective: tuple[float, ...] = field(repr=False)


@dataclass(frozen=True, repr=False)
class LearnedPreconditioner(RiemannianMetric):
    """The metric whose inverse is learned: U of a structure in every layer, U g near the step of the whole model.

    | structure | U of a layer | averages |
    | --- | --- | --- |
    | "scalar" | s² | yes |
    | "diagonal" | squares of the entries | yes |
    | "dense" | L Lᵀ | yes |
    | "kfac" | P Pᵀ ⊗ Q Qᵀ | factor by factor |
    | "ekfac" | E D² Eᵀ, E = P ⊗ Q | no |
    | "low-rank" | s² + VᵀV, `rank` rows | no |

    Every one is a square, so it is symmetric and positive: an inverse with free factors that is not symmetric is no
    inner product's, and there is none here. It is observed with the labels of the data, `Empirical(y)`, whose gradient
    is g. `steps` of gradient descent with `momentum` at rate `lr`, gradients clipped to the norm `clip`; `damping` is
    added to C, a metric or a multiple of `EuclideanMetric()`. `refreshed` goes on from an earlier value, and
    `MetricAverage` averages what it gives.

    J depends on U through U g alone: one batch leaves the rest of U where it was, at the identity of the coordinates,
    and these the form therefore names. So it is no block of an inverse Fisher.
    """

    structure: Structured = "kfac"
    steps: int = 50
    lr: float = 1e-3
    momentum: float = 0.9
    clip: float = 5.0
    damping: RiemannianMetric | None = None
    rank: int = 4
    output: OutputMetric | None = None

    def __post_init__(self) -> None:
        if self.structure not in STRUCTURES:
            raise self._refused("structure", f"one of {', '.join(map(repr, STRUCTURES))}; all are symmetric")
        for name, least in (("steps", 0), ("rank", 1)):
            n = getattr(self, name)
            if isinstance(n, bool) or not isinstance(n, int) or n < least:
                raise self._refused(name, f"a whole number from {least} on")
        for name in ("lr", "clip"):
            if not (isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise self._refused(name, "positive and finite")
        if not 0 <= self.momentum < 1:
            raise self._refused("momentum", "a number in [0, 1)")
        if self.damping is not None and not isinstance(self.damping, RiemannianMetric):
            raise self._refused("damping", "a metric, such as 1e-3 * EuclideanMetric()")

    def _refused(self, name: str, expected: str) -> InvalidSetting:
        return InvalidSetting(
            f"InvalidSetting in LearnedPreconditioner: {name}={getattr(self, name)!r}, expected {expected}."
        )

    def _diverged(self, step: int, what: str) -> NonFinite:
        return NonFinite(
            f"NonFinite in LearnedPreconditioner: after {step} steps {what}. The rate lr={self.lr} is too large for "
            f"this model; lower it, or clip more."
        )

    def estimator(self, targets: Any = None) -> Estimator:
        return Empirical(targets)

    def at(self, observation: Observation) -> InnerProduct:
        return self.learn(observation).value

    def refreshed(self, previous: InnerProduct, observation: Observation) -> InnerProduct:
        return self.learn(observation, previous).value

    def learn(self, observation: Observation, previous: InnerProduct | None = None) -> Lesson:
        """Learns on a batch, from the identity or from where an earlier value ended."""
        g, C = self._model(observation)
        with named(self):
            inverses = self._start(observation, next(iter(g.values())), previous)
            objective = self._descend(inverses, g, C)
        value = BlockDiagonal({path: LearnedInverse(U.form()) for path, U in inverses.items()}, observation.space)
        return Lesson(value, tuple(objective))

    def _model(self, observation: Observation) -> tuple[dict[str, Tensor], InnerProduct]:
        """The differential by layer, and C."""
        check_output(self, observation)
        again = observation.pulled_back_again
        if not isinstance(observation.estimator, Empirical) or again is None:
            raise ObservationMismatch(
                f"ObservationMismatch in {self!r}: it learns on the gradient of labelled data, and the batch was "
                f"observed with {observation.estimator}"
                f"{' by a tape' if isinstance(observation.estimator, Empirical) else ''}. Observe it by itself: "
                f"network.observe(x, Empirical(y))."
            )
        C = again()
        if self.damping is not None:
            C = C + value_at(self.damping, observation)
        g = {path: layer.gradients.mean().data for path, layer in observation.layers.items()}
        return g, C

    def _start(self, observation: Observation, like: Tensor, previous: InnerProduct | None) -> dict[str, Inverse]:
        kinds, parts = STRUCTURES[self.structure], {} if previous is None else previous.summands() or {}
        found = {}
        for path, layer in observation.layers.items():
            part = parts.get(path)
            if part is not None and not isinstance(part, LearnedInverse):
                raise ObservationMismatch(
                    f"ObservationMismatch in {self!r}: to go on from {part!r} is not possible; an earlier value of the "
                    f"same metric is."
                )
            start = kinds.start(layer, like, self.rank) if part is None else kinds.parameters_of(part.of)
            found[path] = kinds(layer, start)
        return found

    def _descend(self, inverses: dict[str, Inverse], g: dict[str, Tensor], C: InnerProduct) -> list[float]:
        covector = torch.cat([g[path].flatten() for path in inverses])
        free = [p for U in inverses.values() for p in U.parameters]
        velocity = [torch.zeros_like(p) for p in free]
        objective: list[float] = []
        for step in range(self.steps + 1):
            with torch.enable_grad():
                u = -torch.cat([U.applied(g[path]).flatten() for path, U in inverses.items()])
            value, slope = sweep(C, covector, u.detach())
            if not isfinite(value):
                raise self._diverged(step, f"J is {value}")
            objective.append(value)
            if step == self.steps:
                break
            gradients = torch.autograd.grad(u, free, slope)
            size = torch.stack([t.square().sum() for t in gradients]).sum().sqrt()
            if not bool(size.isfinite()):
                raise self._diverged(step, f"the gradient of J is {float(size)}")
            shrink = float(self.clip / size.clamp(min=self.clip))
            with torch.no_grad():
                for p, v, t in zip(free, velocity, gradients, strict=True):
                    v.mul_(self.momentum).add_(t, alpha=shrink)
                    p.sub_(v, alpha=self.lr)
        return objective


def sweep(C: InnerProduct, g: Tensor, u: Tensor) -> tuple[float, Tensor]:
    """J at the step u, ½ C(u, u) + g(u), and its differential C u + g: forward through the layers and back."""
    with torch.no_grad():
        Cu = C.flat_components(u)
        return float(0.5 * (Cu @ u) + g @ u), Cu + g
