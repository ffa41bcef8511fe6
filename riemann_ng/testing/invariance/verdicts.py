"""From discrepancies to a verdict.

A discrepancy is in units of how far the predictions moved. Noise is the discrepancy that shaking the inputs and the
parameters makes, by a few hundred roundings: it shows a bad condition, a jump, a library that computes in float32.

    held        every case is at most HELD, or within a noise that is itself small
    refuted     two cases are beyond REFUTED and far beyond the noise, the second of them at half the learning rate
    undecided   anything else; never counted as held
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .records import HELD, REFUTED, UNDECIDED

SAME, QUIET, DIFFERENT, LOUD = 1e-6, 1e-5, 1e-3, 30.0
"""At most SAME is the same. Noise up to QUIET is allowed for; DIFFERENT and LOUD times the noise is a difference."""
STANDSTILL = 1e-6
"""Predictions that move less than this are too close to rounding to compare."""


@dataclass(frozen=True)
class Case:
    """One element of the group."""

    seed: int
    discrepancy: float
    noise: float
    """NaN where it was not measured on this side."""

    @property
    def same(self) -> bool:
        return self.discrepancy <= max(SAME, min(self.noise, QUIET))

    @property
    def different(self) -> bool:
        return math.isfinite(self.discrepancy) and self.discrepancy >= max(DIFFERENT, LOUD * self.noise)


def verdict(cases: Sequence[Case]) -> tuple[str, str]:
    """The verdict, and the reason where it is undecided."""
    if not cases:
        return UNDECIDED, "no case was run"
    if all(case.same for case in cases):
        return HELD, ""
    different = [case for case in cases if case.different]
    if len(different) >= 2:
        return REFUTED, ""
    worst = max(cases, key=lambda case: case.discrepancy if math.isfinite(case.discrepancy) else math.inf)
    if not math.isfinite(worst.discrepancy):
        return UNDECIDED, "the steps are not finite on one of the two sides"
    if worst.noise > QUIET / 10:
        return UNDECIDED, f"a discrepancy of {worst.discrepancy:.0e} beside a rounding noise of {worst.noise:.0e}"
    if different:
        return UNDECIDED, f"a discrepancy of {worst.discrepancy:.0e} in one element of {len(cases)}, not reproduced"
    return UNDECIDED, f"a discrepancy of {worst.discrepancy:.0e}, between what is the same and what is different"
