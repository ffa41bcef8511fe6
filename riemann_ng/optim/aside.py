"""Examples beside those of the loop: inputs that the metric is observed on, and examples that searches look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InvalidSetting, NonFinite
from ..networks import Empirical, Estimator
from ..networks.observation import Observation
from .landscape import Examples
from .random_state import RandomState
from .scaling import Units

if TYPE_CHECKING:
    from .natural_gradient import NaturalGradient


@dataclass(frozen=True)
class Observed:
    """Inputs for the statistics of one step, and what is sent back from them."""

    x: Any
    estimator: Estimator


def observed(opt: NaturalGradient, x: Any, y: Any) -> Observed:
    """Of an estimator that looks at labels they are wanted, of any other refused."""
    if isinstance(opt.estimator, Empirical):
        if y is None:
            raise InvalidSetting(
                f"InvalidSetting in observe: {opt.metric!r} is observed with {opt.estimator!r}, which looks at the "
                f"data's own labels. Give them, optimizer.observe(x, y), or, if the metric allows it, take "
                f"estimator=MonteCarlo(1), which needs none."
            )
        return Observed(x, Empirical(y))
    if y is not None:
        raise InvalidSetting(
            f"InvalidSetting in observe: labels are given, and {opt.estimator!r} looks at none. Leave them out: "
            f"optimizer.observe(x)."
        )
    return Observed(x, opt.estimator)


def examples(opt: NaturalGradient, x: Any, y: Any) -> Examples:
    if not opt.step_size.needs_loss:
        raise InvalidSetting(
            f"InvalidSetting in evaluate_on: {opt.step_size!r} searches on no loss. It is for step rules that do, as "
            f"TruncatedNewton(), KrylovSubspace() or PlaneSearch('loss')."
        )
    return Examples(x, y, RandomState.now(next(iter(opt.network.parameters.values())).device))


def look(opt: NaturalGradient, units: Units) -> bool:
    """Statistics averaged, of the loop's forwards or of what was given; False where they were refused."""
    try:
        observation = observation_of(opt, units)
        if observation is not None:
            if opt.memory.overwrites and not opt._factorization_due():
                opt._later = opt.memory.update_over(observation)
            else:
                opt.memory.update(observation)
            return True
    except NonFinite:
        pass
    seen = opt._observed is not None or bool(opt._listener.passes())
    opt._note("statistics that are not finite" if seen else "statistics of no forward")
    return False


def observation_of(opt: NaturalGradient, units: Units) -> Observation | None:
    given = opt._observed
    if given is None:
        return opt.ranks.observation(opt._listener, units.divided_by)
    estimator = opt.ranks.estimator(given.estimator)
    return opt.ranks.joined(lambda: opt.network.observe(given.x, estimator, opt.metric.output, opt.schedule.fraction))
