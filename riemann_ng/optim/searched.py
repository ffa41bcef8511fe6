"""Factored damping whose strength is found by trial, apart from the λ of the quadratic model: K-FAC's own."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InvalidSetting
from .damping import DampingOf, Factored, LevenbergMarquardt


@dataclass(frozen=True)
class Searched(DampingOf):
    """λ is the business of `of`; what the metric is damped with is a number γ² of its own, which begins as λ.

    Every `every` steps, where factorizations are due, γ is tried as it is, and times and over rate^every; the one stays
    whose step has the lowest quadratic model. It is kept between `floor` and `ceiling`, which are of γ².
    """

    of: LevenbergMarquardt | Factored = LevenbergMarquardt(Factored(1.0), rate=19 / 20, every=5)
    every: int = 20
    rate: float = (19 / 20) ** 0.5
    floor: float = 1e-5
    ceiling: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.of, (LevenbergMarquardt, Factored)):
            raise InvalidSetting(
                f"InvalidSetting in Searched: of={self.of!r}, expected Factored(...), or LevenbergMarquardt of one."
            )
        whole = isinstance(self.every, int) and not isinstance(self.every, bool) and self.every >= 1
        if not whole or not 0 < self.rate < 1 or not 0 < self.floor <= self.ceiling:
            raise InvalidSetting(
                f"InvalidSetting in {self!r}: expected every of at least 1, a rate in (0, 1), and floor <= ceiling."
            )

    @property
    def adapts_every(self) -> int:  # type: ignore[override]
        return self.of.adapts_every

    def adapted(self, damping: float, ratio: float) -> float:
        return self.of.adapted(damping, ratio)

    def tried(self, strength: float, step: int) -> tuple[float, ...]:
        if step == 0 or step % self.every:
            return ()
        factor = self.rate ** (2 * self.every)
        among = (min(max(s, self.floor), self.ceiling) for s in (strength, strength * factor, strength / factor))
        return tuple(dict.fromkeys(among))
