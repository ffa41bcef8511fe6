"""Step rules that leave old outputs as they are, and the one that means to.

What must not change is given by covectors α_i, differentials of old outputs. A displacement v with α_i(v) = 0 moves
them in second order only, and that is a condition on v with no metric in it. The metric M chooses the best such step:
minus the natural gradient, M-orthogonally projected on the annihilator,

    v = -M⁻¹ (ξ - Σ c_i α_i),   (αᵀM⁻¹α) c = αᵀM⁻¹ξ

It minimizes ξ(v) + ½ M(v, v) among all v with α_i(v) = 0, moves with every frame as M does, and ξ(v) ≤ 0.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

from ..elements import Covector, Element, Vector
from ..errors import InvalidSetting
from ..inner_products import InnerProduct
from .annihilator import Complement, complement
from .corrected import check_rule
from .old_outputs import covectors_at, given
from .published import AsPublished
from .remembering import Remembered, Remembering, in_pieces, raised_by
from .steps import Constant, Displacement, Situation, StepRule, check_positive

if TYPE_CHECKING:
    from .natural_gradient import NaturalGradient

NOTHING_LEFT = "the gradient is a combination of what is remembered: there is no way to go"
R = TypeVar("R", bound="Remembers")


class Remembers(StepRule):
    """What rules with a memory of old outputs have in common: they project what they hand on to another rule.

    The step of the other rule is projected again: that takes out what rounding left, and what the rule bent.
    """

    of: StepRule
    memory: Remembering
    remembered: Remembered | None
    _kept: dict[str, Any]

    def _check(self) -> None:
        name = type(self).__name__
        check_rule(name, self.of)
        if not isinstance(self.memory, Remembering):
            raise InvalidSetting(f"InvalidSetting in {name}: memory={self.memory!r}, expected Remembering(...).")
        if self.of.proposes or isinstance(self.of, Remembers):
            raise InvalidSetting(
                f"InvalidSetting in {name}: of={self.of!r} finds its directions itself: there is no natural gradient "
                f"to project. Take a rule that says how far to go, as Constant(), KLClip(...) or QuadraticModel(...)."
            )
        for trait in ("smoothing", "needs_batch", "needs_metric", "needs_loss"):
            object.__setattr__(self, trait, getattr(self.of, trait))

    def displacement(self, here: Situation) -> Displacement:
        if self.remembered is not None:
            self.remembered.settle(here.batch.network)
        if self.remembered is None or self.remembered.rows is None:
            return replace(self.of.displacement(here), along=here.proposal)
        there = self.complement_at(here, self.remembered.rows)
        proposal = projected(here.proposal, there)
        if vanished(proposal, here.proposal):
            zero = proposal * 0.0
            return Displacement(zero, 0.0, 0.0, along=zero, note=NOTHING_LEFT)
        before = None if here.before is None else projected(here.before, there)
        chosen = self.of.displacement(replace(here, proposal=proposal, before=before))
        return replace(chosen, vector=projected(chosen.vector, there), along=proposal)

    def complement_at(self, here: Situation, rows: Tensor) -> Complement:
        """What is taken out of a displacement, kept until the metric is factorized anew, or the rows change."""
        kept = self._kept.get("complement")
        if kept is None or kept[0] is not here.metric or kept[1] is not rows:
            kept = self._kept["complement"] = here.metric, rows, self.made(here, rows)
        made: Complement = kept[2]
        return made

    @abstractmethod
    def made(self, here: Situation, rows: Tensor) -> Complement:
        """What is taken out, of the rows that are remembered."""

    @abstractmethod
    def take(self, opt: NaturalGradient, pieces: Iterable[Tensor]) -> None:
        """Remembers covectors, (some, dim) at a time."""


@dataclass(frozen=True)
class Protected(Remembers):
    """Another rule, in the annihilator of what `opt.remember(...)` was given: old outputs stay, to second order.

    Proposal and last displacement are projected in the optimizer's metric, damped as it is, so momentum stays in the
    annihilator too. `memory` bounds what is remembered. Covectors whose combinations are shorter than `tolerance`,
    relative to their lengths in the metric, count as dependent; None is what rounding leaves. Where nothing is left of
    the gradient the step is zero, and the report says so. With nothing remembered this is the other rule.

    A memory lives in one optimizer: `NaturalGradient(..., step_size=Protected(...))` makes one of its own.
    """

    of: StepRule = Constant()
    memory: Remembering = Remembering()
    tolerance: float | None = None
    remembered: Remembered | None = field(default=None, init=False, repr=False, compare=False)
    _kept: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check()
        check_tolerance("Protected", self.tolerance)

    def begun(self, opt: NaturalGradient) -> StepRule:
        return with_memory(replace(self), Remembered(self.memory, opt.network, Covector))

    def take(self, opt: NaturalGradient, pieces: Iterable[Tensor]) -> None:
        assert self.remembered is not None
        self.remembered.take(pieces, raised_by(opt))

    def made(self, here: Situation, rows: Tensor) -> Complement:
        space = here.proposal.lives_in.dual
        raised = in_pieces(rows, lambda part: here.metric.sharp(Covector._of(space, part), here.solver).components)
        return complement(rows, raised, self.tolerance)


@dataclass(frozen=True)
class Deflected(Remembers):
    """Another rule, orthogonal to the natural gradients of old outputs as they were when they were remembered.

    The vectors b_i = M_old⁻¹α_i are kept, and what is taken out of a displacement is their span, orthogonally in the
    metric of the step (`within="metric"`) or in the coordinates. Since M(b_i, v) = α_i(M_old⁻¹ M v), old outputs are
    left alone where M is what it was, and not otherwise; in the coordinates not even there. `Protected` keeps the α_i
    and has no such trouble: this is for comparison.

    `published=ε` takes, for the natural gradients, the preconditioner of the public code of the method: see `ONG`.
    """

    of: StepRule = Constant()
    memory: Remembering = Remembering()
    within: Literal["metric", "coordinates"] = "metric"
    published: float | None = None
    tolerance: float | None = None
    remembered: Remembered | None = field(default=None, init=False, repr=False, compare=False)
    _kept: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check()
        object.__setattr__(self, "needs_metric", True)
        check_tolerance("Deflected", self.tolerance)
        if self.within not in ("metric", "coordinates"):
            raise InvalidSetting(
                f"InvalidSetting in Deflected: within={self.within!r}, expected 'metric' or 'coordinates'."
            )
        if self.published is not None:
            check_positive("Deflected", "published", self.published)
        if self.memory.overflow == "compress":
            raise InvalidSetting("InvalidSetting in Deflected: overflow='compress' is for covectors: use Protected.")

    def begun(self, opt: NaturalGradient) -> StepRule:
        return with_memory(replace(self), Remembered(self.memory, opt.network, Vector))

    def take(self, opt: NaturalGradient, pieces: Iterable[Tensor]) -> None:
        assert self.remembered is not None
        damped, raised = opt.memory.damped, raised_by(opt)
        if damped is None or raised is None:
            raise InvalidSetting(
                "InvalidSetting in remember: natural gradients are remembered, and before the first step there is no "
                "metric to make them with. Make a step first; Protected(...) needs none."
            )
        if self.published is not None:
            raised = self._preconditioner(damped, self.published)
        self.remembered.take(map(raised, pieces), None)

    def displacement(self, here: Situation) -> Displacement:
        if self.published is not None:
            df = here.df if here.averaged is None else here.averaged
            preconditioned = self._preconditioner(here.metric, self.published)(df.components[None])[0]
            here = replace(here, proposal=Vector._of(here.proposal.lives_in, -preconditioned))
        return super().displacement(here)

    def _preconditioner(self, g: InnerProduct, epsilon: float) -> AsPublished:
        kept = self._kept.get("preconditioner")
        if kept is None or kept[0] is not g:
            kept = self._kept["preconditioner"] = g, AsPublished.of(g, epsilon)
        made: AsPublished = kept[1]
        return made

    def made(self, here: Situation, rows: Tensor) -> Complement:
        space = here.proposal.lives_in
        flat = rows
        if self.within == "metric":
            flat = in_pieces(rows, lambda part: here.metric.flat(Vector._of(space, part)).components)
        return complement(flat, rows, self.tolerance)


def with_memory(rule: R, remembered: Remembered) -> R:
    object.__setattr__(rule, "remembered", remembered)
    return rule


def projected(v: Vector, there: Complement) -> Vector:
    return Vector._of(v.lives_in, there.projected(v.components))


def vanished(v: Vector, was: Vector) -> bool:
    """Whether nothing but rounding is left."""
    left, size = (torch.linalg.vector_norm(u.components) for u in (v, was))
    return bool((size > 0) & (left <= torch.finfo(v.dtype).eps ** 0.75 * size))


def check_tolerance(call: str, tolerance: float | None) -> None:
    if tolerance is not None:
        check_positive(call, "tolerance", tolerance)


def remember(opt: NaturalGradient, x: Any, y: Any = None, outputs: Sequence[int] | None = None) -> None:
    """Outputs at a batch, as they are where the parameters are now, into what the optimizer's step rule protects."""
    rule = opt.step_size
    if not isinstance(rule, Remembers) or rule.remembered is None:
        raise InvalidSetting(
            f"InvalidSetting in remember: {rule!r} keeps no outputs as they are. Use ProjectedNaturalGradient(model, "
            f"likelihood), or give NaturalGradient step_size=Protected(...)."
        )
    if any(group["weight_decay"] for group in opt.param_groups):
        raise InvalidSetting(
            "InvalidSetting in remember: weight_decay moves parameters along themselves, and with them what is to stay "
            "as it is. Set weight_decay=0; what holds parameters near a point is Consolidation(...)."
        )
    if y is not None and outputs is not None:
        raise InvalidSetting("InvalidSetting in remember: give labels y, or the numbers of outputs, not both.")
    ready = isinstance(x, Element)
    if ready and (y is not None or outputs is not None):
        raise InvalidSetting("InvalidSetting in remember: covectors stand for themselves, without labels or outputs.")
    with torch.no_grad():
        pieces = given(opt.network, x) if ready else covectors_at(opt.network, x, y, outputs)
        first = next(pieces)  # by now the network has been read
        opt._settle()
        rule.remembered.settle(opt.network)
        rule.take(opt, chain([first], pieces))
