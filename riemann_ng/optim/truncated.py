"""Truncated natural gradient: conjugate gradients stopped early, and told when by the loss. Hessian-free optimization.

The quadratic model df(v) + ½ g(v, v) is minimized by conjugate gradients in the geometry of a reference M. The iterates
are a path from the last solution to the natural gradient, on which later points fit the model better and are believed
less; the loss says how far along it to go.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..elements import Vector
from ..errors import InvalidSetting
from ..inner_products import InnerProduct
from .carried import Carried
from .quadratic import Model
from .searching import Armijo
from .steps import Displacement, Situation, StepRule, check_positive

Map = Callable[[Tensor], Tensor]
NEGATIVE = "negative curvature met by conjugate gradients: the path ends before it"
NO_DESCENT = "conjugate gradients gave no descent: the gradient's own direction was taken"
NOTHING_LOWER = "a line search found nothing lower"


@dataclass
class Path:
    """Iterates of conjugate gradients: some of them, the last one always, with the number of steps made for each.

    `values` are those of the model, one for every step, from the start on.
    """

    points: list[Tensor] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    negative: bool = False

    def take(self, v: Tensor, step: int) -> None:
        if not self.steps or self.steps[-1] != step:
            self.points.append(v)
            self.steps.append(step)


def cg_path(
    flat: Map, sharp: Map, xi: Tensor, start: Tensor | None, most: int, progress: float = 5e-4, apart: float = 1.3
) -> Path:
    """The path to the minimum of ξ(v) + ½ <v, flat(v)>, from a start.

    It ends where over the last k' = max(10, k / 10) of k steps the model fell by less than k' * `progress` of all that
    it fell so far, at a direction of curvature zero or below, or after `most` steps. Kept are iterates whose numbers
    grow by the factor `apart`.
    """
    path, v = Path(), torch.zeros_like(xi) if start is None else start
    r = -xi if start is None else -xi - flat(v)
    path.values.append(float(torch.dot(v, xi - r)) / 2)
    z = sharp(r)
    p, rho = z, float(torch.dot(r, z))
    following, steepest = 1, 0.0
    for k in range(1, most + 1):
        if not rho > 0:
            break
        q = flat(p)
        curvature, size = float(torch.dot(p, q)), rho
        steepest = max(steepest, curvature / size)
        if not curvature > 1e-14 * steepest * size:
            path.negative = not curvature >= 0 or steepest <= 0
            break
        alpha = rho / curvature
        v, r = v + alpha * p, r - alpha * q
        z = sharp(r)
        rho, last = float(torch.dot(r, z)), rho
        p = z + (rho / last) * p
        path.values.append(float(torch.dot(v, xi - r)) / 2)
        if k >= following:
            path.take(v, k)
            following = max(following + 1, math.ceil(apart * following))
        back = max(10, math.ceil(k / 10))
        value = path.values[-1]
        if k > back and value < 0 and value - path.values[-1 - back] > back * progress * value:
            path.take(v, k)
            break
    path.take(v, len(path.values) - 1)
    return path


def sharp_by(M: InnerProduct, like: Tensor) -> Map:
    """M.sharp on components, with one factorization."""
    return M.factorization(like).solve


def element(here: Situation, x: Tensor) -> Vector:
    return Vector._of(here.df.lives_in.dual, x.reshape(here.df.lives_in.dual.shape))


def model_along(here: Situation, v: Vector) -> Model:
    """The quadratic model along one direction, without the damping: what it promises is of the loss itself."""
    bend = here.metric.inner(v, v)
    if here.reference is not None and here.damping:
        bend = bend - here.damping * here.reference.inner(v, v)
    slope = torch.stack([here.df(v)]).double().cpu()
    return Model(slope, bend.double().cpu().reshape(1, 1).clamp(min=0))


@dataclass(frozen=True)
class TruncatedNewton(StepRule):
    """Conjugate gradients from `warm` times the last solution, at most `most` steps; then the loss decides.

    The path is measured by the reference of the damping, which is also its preconditioner. With `backtracking` the
    iterates are looked at from the last one back, as long as the loss falls; a line search goes along the one that is
    found, from the learning rate on. The metric is used by its products alone, so it may be one that is nothing else,
    as `Fisher("matrix-free")`.

    What the model promises, for a damping that adapts, is without the damping, if that is Tikhonov's.
    """

    most: int = 250
    progress: float = 5e-4
    warm: float = 0.95
    backtracking: bool = True
    apart: float = 1.3
    search: Armijo = Armijo()
    needs_batch = True
    proposes = True
    needs_loss = True

    def __post_init__(self) -> None:
        for name in ("most", "progress"):
            check_positive("TruncatedNewton", name, getattr(self, name))
        if not 0 <= self.warm <= 1 or not self.apart >= 1 or not isinstance(self.search, Armijo):
            raise InvalidSetting(
                f"InvalidSetting in {self!r}: expected warm in [0, 1], apart of at least 1 and a search, as Armijo()."
            )

    def displacement(self, here: Situation) -> Displacement:
        assert here.loss is not None and here.reference is not None
        loss, xi = here.loss, here.df.components
        last = here.kept.vectors.get("solution")
        sharp = sharp_by(here.reference, xi)
        start = None if last is None or not self.warm else self.warm * last.components
        path = cg_path(here.metric.flat_components, sharp, xi, start, self.most, self.progress, self.apart)
        v, note = self._believed(here, path), NEGATIVE if path.negative else ""
        if not float(here.df(v)) < 0:
            v, note = element(here, -sharp(xi)), NEGATIVE if path.negative else NO_DESCENT
        slope = float(here.df(v))
        if slope == 0:
            return Displacement(v * 0.0, 0.0, 0.0)
        found = self.search.along(lambda t: loss.change(v * t), slope, here.learning_rate)
        if found is None:
            return Displacement(v * 0.0, 0.0, 0.0, failed=NOTHING_LOWER)
        rate, actual = found[0], (found[1] if loss.examples is None else None)
        kept = Carried({"solution": element(here, path.points[-1])})
        coefficients = torch.tensor([rate], dtype=torch.float64)
        return Displacement(
            v * rate, rate, 0.0, model_along(here, v), coefficients, along=v, note=note, kept=kept, actual=actual
        )

    def _believed(self, here: Situation, path: Path) -> Vector:
        assert here.loss is not None
        best = element(here, path.points[-1])
        if not self.backtracking:
            return best
        lowest = here.loss.change(best)
        for x in path.points[-2::-1]:
            v = element(here, x)
            value = here.loss.change(v)
            if value > lowest:
                break
            best, lowest = v, value
        return best
