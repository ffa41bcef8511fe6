"""When statistics are gathered, and when factorizations are made of them."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InvalidSetting


@dataclass(frozen=True)
class Schedule:
    """Statistics every so many steps, on a `fraction` of the batch; factorizations every so many.

    In the first `warmup` steps both are made at every step. A fraction of one shares the loop's own forward; a smaller
    one has a forward of its own, on the first examples of the batch.
    """

    statistics: int = 5
    factorize: int = 10
    fraction: float = 1.0
    warmup: int = 3

    def __post_init__(self) -> None:
        for name, value in (("statistics", self.statistics), ("factorize", self.factorize)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidSetting(
                    f"InvalidSetting in Schedule: {name}={value!r}, expected a number of steps, 1 or more."
                )
        if not 0 < self.fraction <= 1:
            raise InvalidSetting(f"InvalidSetting in Schedule: fraction={self.fraction!r}, expected one in (0, 1].")
        if isinstance(self.warmup, bool) or not isinstance(self.warmup, int) or self.warmup < 0:
            raise InvalidSetting(f"InvalidSetting in Schedule: warmup={self.warmup!r}, expected a number of steps.")

    def statistics_due(self, step: int) -> bool:
        """Steps are counted from 0."""
        return step < self.warmup or step % self.statistics == 0

    def factorization_due(self, step: int) -> bool:
        return step < self.warmup or step % self.factorize == 0
