"""What was measured, as values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .timing import Spread

SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """One quantity of one workload by one library.

    `milliseconds`, `passes` (in plain forward and backward passes) and `over_floor` are medians with quartiles, of
    ratios within a round; `share` is that of a step, `mebibytes` a peak. `short` says what it misses.
    """

    workload: str
    quantity: str
    who: str
    rounds: int = 0
    milliseconds: Spread | None = None
    passes: Spread | None = None
    over_floor: Spread | None = None
    share: float | None = None
    mebibytes: float | None = None
    note: str = ""
    short: tuple[str, ...] = ()


@dataclass(frozen=True)
class Left:
    """What was not measured, and why."""

    workload: str
    quantity: str
    who: str
    why: str


@dataclass
class Report:
    """A run."""

    device: str
    threads: int
    clock: str
    versions: dict[str, str]
    plain: dict[str, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}


COLUMNS = ("", "quantity", "", "ms", "passes", "quartiles", "of floor", "quartiles", "falls short")


def cells(r: Row) -> tuple[str, ...]:
    ms = "" if r.milliseconds is None else f"{r.milliseconds.median:.2f}"
    if r.mebibytes is not None:
        ms = f"{r.mebibytes:.0f} MiB"
    passes, low = ("", "") if r.passes is None else (f"{r.passes.median:.2f}", between(r.passes))
    if r.share is not None:
        passes = f"{100 * r.share:.1f} %"
    over, high = ("", "") if r.over_floor is None else (f"{r.over_floor.median:.2f}", between(r.over_floor))
    said = "; ".join(r.short) + (f" ({r.note})" if r.note else "")
    return r.workload, r.quantity, r.who, ms, passes, low, over, high, said.strip()


def between(s: Spread) -> str:
    return f"{s.low:.2f}-{s.high:.2f}"


def table(report: Report) -> str:
    """For a terminal."""
    lines = [COLUMNS, *map(cells, report.rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    right = range(3, 8)
    out = [head(report)]
    for line in lines:
        padded = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        out.append("  ".join(padded).rstrip())
    out += [f"left out: {' '.join(filter(None, (x.workload, x.quantity, x.who)))}: {x.why}" for x in report.left]
    return "\n".join(out)


def markdown(report: Report) -> str:
    """For a page: figures that fall short are in italics, with what they miss."""
    out = [head(report), "", "| " + " | ".join(COLUMNS) + " |", "| " + " | ".join("---" for _ in COLUMNS) + " |"]
    for r in report.rows:
        line = list(cells(r))
        if r.short:
            line[4] = f"*{line[4]}*" if line[4] else ""
        out.append("| " + " | ".join(line) + " |")
    if report.left:
        out += ["", "Left out:", ""]
        out += [f"- {' '.join(filter(None, (x.workload, x.quantity, x.who)))}: {x.why}" for x in report.left]
    return "\n".join(out) + "\n"


def head(report: Report) -> str:
    versions = ", ".join(f"{name} {v}" for name, v in report.versions.items())
    plain = ", ".join(f"{name} {ms:.2f} ms" for name, ms in report.plain.items())
    return f"{report.device}, {report.threads} thread(s), {report.clock} time; {versions}.\nA plain pass: {plain}."
