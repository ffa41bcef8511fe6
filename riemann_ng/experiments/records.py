"""What a reproduction leaves behind: checks of its claims, numbers, tables and pictures. Values, and no drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from ..errors import InvalidSetting

Relation = Literal["below", "above", "near"]
Cell = str | float


@dataclass(frozen=True)
class Check:
    """One claim, measured. `relation` says how `measured` stands to `expected`: below, above, or near, up to `within`.

    A control is a case in which theory says that the claim fails: it holds when the failure is seen. `why` tells where
    the bound comes from.
    """

    claim: str
    measured: float
    relation: Relation
    expected: float
    within: float = 0.0
    control: bool = False
    why: str = ""

    @property
    def held(self) -> bool:
        """Never where the measured number is not finite."""
        if not (math.isfinite(self.measured) and math.isfinite(self.expected)):
            return False
        if self.relation == "near":
            return abs(self.measured - self.expected) <= self.within
        return self.measured < self.expected if self.relation == "below" else self.measured > self.expected

    @property
    def bound(self) -> str:
        """What was expected, in a word."""
        if self.relation == "near":
            return f"{number(self.expected)} ± {number(self.within)}" if self.within else number(self.expected)
        return f"{'<' if self.relation == 'below' else '>'} {number(self.expected)}"

    def __str__(self) -> str:
        word = "control" if self.control else "claim"
        return f"{word}: {self.claim}: expected {self.bound}, measured {number(self.measured)}"


@dataclass(frozen=True)
class Series:
    """One curve of a panel. `look` is a "line", "dashes", "points", or "bars"; a `label` of "" stays out of the key."""

    label: str
    x: Sequence[float] | Tensor
    y: Sequence[float] | Tensor
    look: Literal["line", "dashes", "points", "bars"] = "line"
    color: int | None = None
    """Which of the palette's colours; None is the next one. Curves that belong together take the same."""

    def __post_init__(self) -> None:
        for name in ("x", "y"):
            values = getattr(self, name)
            flat = values.detach().flatten().tolist() if isinstance(values, Tensor) else [float(v) for v in values]
            object.__setattr__(self, name, tuple(flat))
        if len(self.x) != len(self.y):
            raise InvalidSetting(
                f"InvalidSetting in Series {self.label!r}: a curve has as many x as y, got {len(self.x)} and "
                f"{len(self.y)}."
            )


@dataclass(frozen=True)
class Panel:
    """One pair of axes. `log` names those that are logarithmic; `categories` are words at x = 0, 1, 2, ..."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    log: Literal["", "x", "y", "xy"] = ""
    categories: Sequence[str] = ()
    limit: float | None = None
    """A horizontal line: a bound."""


@dataclass(frozen=True)
class Picture:
    """Panels side by side, under one name, which becomes the file's."""

    name: str
    caption: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Table:
    """Rows of words and numbers under a head."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.columns)]
        if wrong:
            raise InvalidSetting(
                f"InvalidSetting in Table {self.caption!r}: {len(self.columns)} columns, and a row of {len(wrong[0])}."
            )


@dataclass(frozen=True)
class Fault:
    """A part of an experiment that stopped with an error."""

    part: str
    error: str


@dataclass
class Results:
    """All that one run of an experiment has found."""

    name: str
    seed: int
    size: Literal["quick", "full"]
    data: str = ""
    """Which images were used, if any."""
    checks: list[Check] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if not check.held]

    @property
    def held(self) -> bool:
        """Whether every claim held and every control failed as it must, with nothing left out."""
        return bool(self.checks) and not self.failed and not self.faults


def number(value: float) -> str:
    """A number in a few characters."""
    if not math.isfinite(value):
        return str(value)
    if value == 0 or (value == round(value) and abs(value) < 1e5):
        return str(round(value))
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e5 else f"{value:.1e}"
