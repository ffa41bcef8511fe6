"""Step rules whose steps depend on the coordinates of the parameters in third order only, where the metric does not.

See `riemann_ng.geodesics`, which has the same steps as functions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..elements import Covector, Vector
from ..errors import InvalidSetting
from ..geodesics import pulled_back_christoffel
from ..metrics.base import given
from .quadratic import Batch
from .steps import Constant, Displacement, Situation, StepRule, check_positive


@dataclass(frozen=True)
class GeodesicCorrected(StepRule):
    """The displacement v of another rule, bent along the geodesic: v - ½ Γ(v, v).

    Γ is that of the exact Fisher of the batch (or of the metric's own geometry of outputs), raised by the optimizer's
    damped metric. With `metric=Fisher()`, no memory and damping that comes along this is the geodesic to second order.
    With K-FAC it is the acceleration that is right for the function, measured by K-FAC: it keeps what K-FAC keeps, all
    changes of frame, and follows no geodesic of K-FAC's. Momentum is added as components, and limits the order to
    second.

    A correction that is longer than `longest` times the displacement, in the metric, is made so long: there the second
    order says no more than that steps are too long. It costs about four forward and backward passes.
    """

    of: StepRule = Constant()
    longest: float = 0.5
    needs_batch = True

    def __post_init__(self) -> None:
        check_rule("GeodesicCorrected", self.of)
        check_positive("GeodesicCorrected", "longest", self.longest)
        for name in ("smoothing", "proposes", "needs_loss"):
            object.__setattr__(self, name, getattr(self.of, name))

    def displacement(self, here: Situation) -> Displacement:
        chosen = self.of.displacement(here)
        v = chosen.vector
        bend = here.metric.sharp(christoffel_of(here.batch, v), here.solver) * -0.5
        length, most = float(here.metric.norm(bend)), self.longest * float(here.metric.norm(v))
        bent = v + (bend if length <= most else bend * (most / length))
        return replace(chosen, vector=bent, actual=None)  # a search has seen the loss at the end of the straight one


def christoffel_of(batch: Batch, v: Vector) -> Covector:
    """Γ_♭(v, v) of the mean over all examples of a step, each forward with the dropout masks of the loop's own."""
    total = None
    for p in batch.passes:
        with batch._as_in(p):
            part = (p.examples / batch.examples) * pulled_back_christoffel(batch.network, batch.output, p.x, v)
        total = part if total is None else total + part
    assert total is not None
    return total


@dataclass(frozen=True)
class Midpoint(StepRule):
    """Two calls of `step` make one: half of it, and from its start all of it, along the gradient found halfway.

    For any metric and any loss: what is halfway is seen by the loop's own forward and backward pass. On one batch twice
    the two calls are `midpoint_step`, if statistics are seen at every call and not averaged
    (`schedule=Schedule(1, 1), decay=0`). How far to go is what another rule says at the start.

    The optimizer remembers the half step as its last displacement, so `momentum` must not be zero; its value is not
    used.
    """

    of: StepRule = Constant()

    def __post_init__(self) -> None:
        check_rule("Midpoint", self.of)
        if self.of.needs_batch:
            raise InvalidSetting(
                f"InvalidSetting in Midpoint: of={self.of!r} makes a model of the loss for every call, and of two "
                f"calls one step is made. Use Constant(), KLClip(...) or TrustRegion(...)."
            )

    def displacement(self, here: Situation) -> Displacement:
        if here.momentum == 0:
            raise InvalidSetting(
                "InvalidSetting in Midpoint: the way back to the start is the last displacement, which an optimizer "
                "without momentum forgets. Give it any momentum, as momentum=0.9: the value is not used."
            )
        if here.step % 2 == 0 or here.before is None or here.last is None:
            chosen = self.of.displacement(replace(here, before=None, momentum=0.0))
            return Displacement(chosen.vector * 0.5, 0.5 * chosen.alpha, 0.0)
        alpha = 2 * here.last.alpha
        return Displacement(here.proposal * alpha - here.before, alpha, -1.0)


def check_rule(call: str, rule: object) -> None:
    if not isinstance(rule, StepRule):
        raise InvalidSetting(
            f"InvalidSetting in {call}: of={given(rule)}, expected a step rule, an instance, as Constant()."
        )
