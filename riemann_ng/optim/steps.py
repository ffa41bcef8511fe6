"""How far to go: from the natural gradient and the last displacement to the next one.

A rule is a value. It sees vectors, the gradient as a covector and inner products, and returns a displacement; the
learning rate multiplies what it proposes, so that schedulers act on every rule alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..elements import Covector, Vector
from ..errors import InvalidSetting
from ..inner_products import InnerProduct
from ..solvers import Solver
from .carried import Carried
from .landscape import Landscape
from .quadratic import Batch, Model

if TYPE_CHECKING:
    from .natural_gradient import NaturalGradient
    from .remembering import Remembered


@dataclass(frozen=True)
class Situation:
    """What a rule may look at. `proposal` is minus the natural gradient, `before` the last displacement.

    `df` is the gradient at hand; `averaged` is what the proposal was made of, where the rule smooths gradients, and
    `share` what the gradient at hand weighs in it.

    `metric` is damped, as the proposal was made with it; the quadratic model adds `damping` times `reference` to the
    exact Fisher of the `batch`. `last` is how the last displacement was made. `looked_at` says that what becomes of the
    loss will be looked at after this step, so a rule that makes a model makes one. `kept` is what the rule handed on
    with its last displacement; `loss` is there for rules that search on it.
    """

    df: Covector
    proposal: Vector
    before: Vector | None
    learning_rate: float
    momentum: float
    metric: InnerProduct
    batch: Batch
    reference: InnerProduct | None
    damping: float
    last: Taken | None = None
    step: int = 0
    looked_at: bool = True
    averaged: Covector | None = None
    share: float = 0.0
    solver: Solver | None = None
    kept: Carried = Carried()
    loss: Landscape | None = None


@dataclass(frozen=True)
class Taken:
    """How a displacement was made: its coefficients, |proposal|² in the metric, the last length that was measured."""

    alpha: float
    mu: float
    squared: float
    length: float | None


@dataclass(frozen=True)
class Displacement:
    """Where to go, how it is made of the two directions, and what a quadratic model promises of it, if one was made.

    `along` is what alpha multiplies, where that is not the proposal; `note` is for the report. `kept` is for the rule's
    next step, `actual` what has become of the loss, where the rule has seen it. `failed` says why there is no step to
    take: nothing moves, and an adaptive damping grows.
    """

    vector: Vector
    alpha: float
    mu: float
    model: Model | None = None
    coefficients: torch.Tensor | None = None
    along: Vector | None = None
    note: str = ""
    kept: Carried | None = None
    actual: float | None = None
    failed: str = ""

    @property
    def predicted(self) -> float | None:
        """The change of the loss that the model promises."""
        return None if self.model is None or self.coefficients is None else self.model(self.coefficients)

    @property
    def length(self) -> float | None:
        """How long the model measures it to be."""
        return None if self.model is None or self.coefficients is None else self.model.length(self.coefficients)


def taken(chosen: Displacement, df: Covector, proposal: Vector, last: Taken | None) -> Taken | None:
    """What the next step may want to know of this one, whose proposal was made of `df`.

    A length that was not measured is the last that was.
    """
    length = chosen.length if chosen.model is not None else None if last is None else last.length
    proposal = proposal if chosen.along is None else chosen.along
    return Taken(chosen.alpha, chosen.mu, max(-float(df(proposal)), 0.0), length)


class StepRule(ABC):
    """How far to go along the natural gradient, and along the last displacement."""

    needs_batch: bool = False
    """Whether the batch itself is looked at, beyond its gradient."""
    smoothing: float = 0.0
    """The decay of a running average of gradients, which the proposal is made of; 0 is the gradient at hand."""
    needs_metric: bool = True
    """Whether `here.metric` is looked at, which is then kept beside its inverses."""
    proposes: bool = False
    """Whether it finds its directions itself, by products with the metric: no sharp is made for it, and
    `here.proposal` is zero."""
    needs_loss: bool = False
    """Whether it looks at `here.loss`."""

    remembered: Remembered | None = None
    """What it keeps of old outputs in one run, if anything: part of the optimizer's state."""

    @abstractmethod
    def displacement(self, here: Situation) -> Displacement:
        """The next displacement of the parameters."""

    def begun(self, opt: NaturalGradient) -> StepRule:
        """The rule in a run of this optimizer: itself, or one with a memory of its own."""
        return self


def heavy_ball(here: Situation, alpha: float) -> Displacement:
    """alpha times the proposal plus momentum times the last displacement."""
    if here.before is None or here.momentum == 0:
        return Displacement(here.proposal * alpha, alpha, 0.0)
    return Displacement(combined(here.proposal, alpha, here.before, here.momentum), alpha, here.momentum)


def combined(v: Vector, alpha: float, w: Vector, mu: float) -> Vector:
    """alpha v + mu w, with one new tensor for each block."""
    if v.in_one_piece or w.in_one_piece:
        return v * alpha + w * mu
    total = torch._foreach_mul(list(v.blocks.values()), alpha)
    torch._foreach_add_(total, [w.blocks[name] for name in v.blocks], alpha=mu)
    return Vector._of(v.lives_in, None, dict(zip(v.blocks, total, strict=True)))


@dataclass(frozen=True)
class Constant(StepRule):
    """The learning rate, and momentum on displacements."""

    needs_metric = False

    def displacement(self, here: Situation) -> Displacement:
        return heavy_ball(here, here.learning_rate)


@dataclass(frozen=True)
class KLClip(StepRule):
    """The learning rate, made smaller where a step without momentum would be longer than √bound in the metric.

    Half the square of that length is, to second order, the KL divergence of the step.
    """

    bound: float = 1e-2

    def __post_init__(self) -> None:
        check_positive("KLClip", "bound", self.bound)

    def displacement(self, here: Situation) -> Displacement:
        squared = float(here.metric.inner(here.proposal, here.proposal))
        longest = (self.bound / squared) ** 0.5 if squared > 0 else float("inf")
        return heavy_ball(here, min(here.learning_rate, longest))


@dataclass(frozen=True)
class TrustRegion(StepRule):
    """The learning rate and momentum, and the whole displacement brought to at most `radius` in the metric."""

    radius: float = 0.1

    def __post_init__(self) -> None:
        check_positive("TrustRegion", "radius", self.radius)

    def displacement(self, here: Situation) -> Displacement:
        free = heavy_ball(here, here.learning_rate)
        length = float(here.metric.norm(free.vector))
        if not length > self.radius:
            return free
        c = self.radius / length
        return Displacement(free.vector * c, free.alpha * c, free.mu * c)


@dataclass(frozen=True)
class QuadraticModel(StepRule):
    """Both coefficients from the minimum of the quadratic model, with the exact Fisher on a `fraction` of the batch.

    The learning rate multiplies the minimum: one for batches so large that their noise does not count, less where the
    minimum would fit it. The fraction is of `at_least` so many examples: curvature seen on a few is too small along
    directions that others bend. The momentum of the optimizer bounds the share of the last displacement: beyond one the
    model would extrapolate what it has just done. Along a degenerate pair of directions the shorter combination is
    taken.

    A model is made every so many steps; in between the coefficients stay. No displacement is more than `growth` times
    as long as the last one, as the model measures both, nor in between the share of the proposal, as the metric does:
    at a cliff the gradient promises what no step can give.

    With `smoothing` the proposal is made of a running average of gradients, and the model still has the slope of the
    gradient at hand. What is noise in a batch then counts for little in the direction, and the slope along it is nearly
    that of a fresh batch, which promises less than a batch does along its own gradient. Nearly: half the share that the
    gradient at hand has in the average, which at first is all, is taken for noise, and the step made so much shorter.
    """

    fraction: float = 1.0
    at_least: int = 128
    every: int = 1
    growth: float = 2.0
    smoothing: float = 0.0
    needs_batch = True
    needs_metric = False

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise InvalidSetting(
                f"InvalidSetting in QuadraticModel: fraction={self.fraction!r}, expected one in (0, 1]."
            )
        smoothing = self.smoothing
        if isinstance(smoothing, bool) or not isinstance(smoothing, (int, float)) or not 0 <= smoothing < 1:
            raise InvalidSetting(
                f"InvalidSetting in QuadraticModel: smoothing={smoothing!r}, expected a number in [0, 1)."
            )
        for name in ("at_least", "every", "growth"):
            check_positive("QuadraticModel", name, getattr(self, name))

    def displacement(self, here: Situation) -> Displacement:
        last = here.last
        if last is not None and not here.looked_at and (here.step + 1) % self.every:
            squared = -float((here.df if here.averaged is None else here.averaged)(here.proposal))
            longest = self.growth * abs(last.alpha) * last.squared**0.5
            alpha = min(max(last.alpha, -longest / squared**0.5), longest / squared**0.5) if squared > 0 else last.alpha
            if here.before is None or here.momentum == 0:
                return Displacement(here.proposal * alpha, alpha, 0.0)
            return Displacement(combined(here.proposal, alpha, here.before, last.mu), alpha, last.mu)
        directions = [here.proposal]
        if here.before is not None and here.momentum:
            directions.append(here.before)
        fraction = min(1.0, max(self.fraction, self.at_least / here.batch.examples))
        model = Model.along(directions, here.df, here.batch, fraction, here.reference, here.damping)
        best = model.minimum(here.momentum) * (here.learning_rate * (1 - here.share / 2))
        if last is not None and last.length and (length := model.length(best)) > self.growth * last.length:
            best = best * (self.growth * last.length / length)
        alpha, mu = float(best[0]), float(best[1]) if len(best) > 1 else 0.0
        single = len(best) == 1
        vector = here.proposal * alpha if single else combined(here.proposal, alpha, directions[1], mu)
        return Displacement(vector, alpha, mu, model, best)


def check_positive(call: str, name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise InvalidSetting(f"InvalidSetting in {call}: {name}={value!r}, expected a positive number.")
