"""What goes wrong on one process, said on all of them."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import RiemannError
from ..ranks import Refused
from .wire import Wire

NOT_FINITE, ERROR, NOTHING = 1.0, 1e3, 1e6
"""What a process says of its statistics; such flags are added up, each at most a few times."""


class RankFailed(RiemannError):
    """Something went wrong on another process, and the step is given up on all."""


def named(ranks: Sequence[int]) -> str:
    return f" on rank {', '.join(map(str, ranks))}"


def raise_failures(wire: Wire, flags: Sequence[float], error: Exception | None) -> None:
    """Raises on all processes alike what is wrong with the statistics of some."""
    failed = [rank for rank, flag in enumerate(flags) if flag % NOTHING >= ERROR]
    if failed:
        said = wire.texts("" if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        raise RankFailed(
            f"RankFailed in NaturalGradient.step: rank {failed[0]} could not observe its batch, and no process has "
            f"made the step. It said: {said[failed[0]]}"
        )
    wrong = [rank for rank, flag in enumerate(flags) if flag % ERROR >= NOT_FINITE]
    if wrong:
        raise Refused("statistics that are not finite" + named(wrong))
    silent = [rank for rank, flag in enumerate(flags) if flag >= NOTHING]
    if silent and len(silent) < len(flags):
        raise Refused("statistics of no forward" + named(silent))


def check_alike(rows: Sequence[Sequence[float]]) -> None:
    """Raises on all processes alike where one of them is not where the others are."""
    for column, what, mend in (
        (5, "has read the layers of the network otherwise", "Give all of them the same model"),
        (6, "is at another step", "Call step() equally often, and load the same state"),
        (7, "has another damping", "Make all optimizers alike, and load the same state"),
        (4, "has made other forwards", "Call forward and backward alike, apart from what is inside no_sync()"),
    ):
        strange = [rank for rank, row in enumerate(rows) if row[column] != rows[0][column]]
        if strange:
            raise RankFailed(f"RankFailed in NaturalGradient.step: rank {strange[0]} {what} than rank 0. {mend}.")
