"""What a step asks of the processes that train one model together. One process alone agrees with itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..elements import Covector
from ..networks import Estimator
from ..networks.observation import Observation
from .finite import finite
from .groups import gradient_of
from .inverse_free import Inversion
from .scaling import Units, units_of

if TYPE_CHECKING:
    from .listening import Listener, Pass
    from .natural_gradient import NaturalGradient


class Refused(Exception):
    """A step that all processes leave out alike; `why` is for the report."""

    def __init__(self, why: str):
        super().__init__(why)
        self.why = why


class Ranks(ABC):
    """The processes that make one step together.

    Whatever is decided by numbers of a batch is asked here, so that all of them decide alike.
    """

    sharing: Any = None
    """How the work is shared, if the processes were made into one by a setting: part of the recipe."""

    @abstractmethod
    def estimator(self, estimator: Estimator) -> Estimator:
        """What this process observes with: where labels are drawn, each process draws its own."""

    @abstractmethod
    def inversion(self, inversion: Inversion) -> Inversion:
        """How factorizations are made, each by whom."""

    @abstractmethod
    def listen(self, opt: NaturalGradient, listener: Listener) -> None:
        """Is told once who listens to the loop."""

    @abstractmethod
    def agreed(self, why: str) -> str:
        """Why a step is left out, if any process has a reason; "" where none has."""

    @abstractmethod
    def gradient(self, opt: NaturalGradient, passes: Sequence[Pass]) -> tuple[Units, Covector | None, str]:
        """The units of this process's passes, the differential of the joint batch, and why there is none."""

    @abstractmethod
    def observation(self, listener: Listener, divided_by: float) -> Observation | None:
        """What metrics see of the joint batch."""

    @abstractmethod
    def joined(self, make: Callable[[], Observation | None]) -> Observation | None:
        """The observations of all processes as one."""

    @abstractmethod
    def examples(self, own: int) -> int:
        """How many examples the joint batch has, of which `own` are here."""

    @abstractmethod
    def sums(self, values: Tensor) -> Tensor:
        """Numbers of every process, added up."""

    @abstractmethod
    def mean(self, value: float | None, examples: int) -> float | None:
        """The mean of a number that is the mean over so many examples here; None where any process has none."""


class Alone(Ranks):
    """One process, or several that know nothing of each other."""

    def estimator(self, estimator: Estimator) -> Estimator:
        return estimator

    def inversion(self, inversion: Inversion) -> Inversion:
        return inversion

    def listen(self, opt: NaturalGradient, listener: Listener) -> None:
        pass

    def agreed(self, why: str) -> str:
        return why

    def gradient(self, opt: NaturalGradient, passes: Sequence[Pass]) -> tuple[Units, Covector | None, str]:
        return own_gradient(opt, passes)

    def observation(self, listener: Listener, divided_by: float) -> Observation | None:
        return listener.observation(divided_by)

    def joined(self, make: Callable[[], Observation | None]) -> Observation | None:
        return make()

    def examples(self, own: int) -> int:
        return own

    def sums(self, values: Tensor) -> Tensor:
        return values

    def mean(self, value: float | None, examples: int) -> float | None:
        return value


NO_GRADIENT = "no gradient"
WRONG = ("", "an overflow of the scaled gradient", NO_GRADIENT, "a gradient that is not finite")
"""Why there is no differential to step along."""


def own_gradient(opt: NaturalGradient, passes: Sequence[Pass]) -> tuple[Units, Covector | None, str]:
    """The units of a step, the differential that `.grad` holds, and what is wrong with it."""
    units = units_of(opt, sum(p.examples for p in passes), opt.divided_by)
    if units.overflow:
        return units, None, WRONG[1]
    df = gradient_of(opt.network, units.gradient)
    if df is None:
        return units, None, WRONG[2]
    return units, df, "" if finite(df) else WRONG[3]
