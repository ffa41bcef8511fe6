"""An invariance report as text: a matrix of groups and spaces, then in words what was lost and why.

The table fits the width given: a matrix where it has room for one, a list where it has not.
"""

from __future__ import annotations

import shutil
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence

from ...symmetry import COMPOSITE, GROUPS, WITHIN
from .records import HELD, NOT_APPLICABLE, REFUTED, SYMBOLS, UNDECIDED, Cell, InvarianceReport

SPACES = ("inputs", "activations", "pre-activations", "outputs")
"""What frames move; the other kinds are changes of the training problem, with groups of their own."""
PLAIN = {HELD: "ok", REFUTED: "NO", UNDECIDED: "?", NOT_APPLICABLE: "-"}
"""Symbols for a terminal that has only ASCII."""
NARROWEST = 40


def terminal_table(report: InvarianceReport, width: int | None = None, unicode: bool = True) -> str:
    """The report as lines no longer than `width`, by default that of the terminal."""
    width = max(NARROWEST, shutil.get_terminal_size((100, 24)).columns if width is None else width)
    signs = SYMBOLS if unicode else PLAIN
    return "\n".join(line.rstrip() for line in _lines(report, width, signs))


def fits(symbols: str, encoding: str | None) -> bool:
    """Whether a terminal of this encoding can show these characters."""
    try:
        symbols.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def number(x: float | None) -> str:
    """A discrepancy in at most five characters: '0.32', '3e-14'."""
    if x is None:
        return ""
    if x != x:
        return "nan"
    return f"{x:.2g}" if 0.01 <= x < 100 else "0" if x == 0 else f"{x:.0e}"


def summary(report: InvarianceReport) -> str:
    """The verdicts counted, in words: '21 held, 7 refuted, 2 undecided'."""
    counts = [(len(report.of(verdict)), verdict) for verdict in (HELD, REFUTED, UNDECIDED, NOT_APPLICABLE)]
    return ", ".join(f"{n} {verdict}" for n, verdict in counts if n) or "nothing tried"


def largest_kept(report: InvarianceReport) -> dict[str, list[str]]:
    """On each kind of spaces the groups held that lie in no larger one that is held."""
    kept = {}
    for on in (on for on in report.on if on in SPACES):
        held = {cell.group for cell in report.held if cell.on == on and cell.group in (*GROUPS, *COMPOSITE)}
        inside = {small for large in held for small in (*WITHIN.get(large, ()), *COMPOSITE.get(large, ()))}
        inside |= {small for large in inside for small in WITHIN.get(large, ())}
        if {"translations", "general"} <= held:
            held, inside = {"affine"}, set()
        kept[on] = [group for group in (*COMPOSITE, *GROUPS) if group in held - inside]
    return kept


def _lines(report: InvarianceReport, width: int, signs: dict[str, str]) -> Iterator[str]:
    yield from _wrapped(report.subject, width)
    yield from _wrapped(f"on {report.model}", width, "   ", "   ")
    yield ""
    columns = [on for on in report.on if on in SPACES]
    matrix = list(_matrix(report, columns, signs)) if columns else []
    if matrix and max(map(columns_of, matrix)) <= width:
        yield from matrix
        rest = [on for on in report.on if on not in SPACES]
    else:
        rest = report.on
    for on in rest:
        yield from _list(report, on, width, signs)
    if kept := largest_kept(report):
        yield ""
        told = "; ".join(f"{on} {' and '.join(groups) or 'nothing'}" for on, groups in kept.items())
        yield from _wrapped(f"Largest groups kept: {told}", width, "", "   ")
    yield from _accounts(report, width)
    for note in report.notes:
        yield ""
        yield from _wrapped(f"Note: {note}", width, "", "   ")
    yield ""
    tried = sum(cell.cases for cell in report)
    yield from _wrapped(f"{summary(report)}; {tried} cases in {report.seconds:.1f} s", width)
    legend = "  ".join(f"{sign} {verdict}" for verdict, sign in signs.items())
    yield from _wrapped(f"{legend}  ! claimed, but refuted  + not claimed, but held", width)


def _matrix(report: InvarianceReport, columns: Sequence[str], signs: dict[str, str]) -> Iterator[str]:
    groups = list(dict.fromkeys(cell.group for cell in report if cell.on in columns))
    rows = [["", *columns]]
    for group in groups:
        cells = (report.cells.get((on, group)) for on in columns)
        rows.append([group, *("" if cell is None else _short(cell, signs) for cell in cells)])
    widths = [max(columns_of(row[k]) for row in rows) for k in range(len(columns) + 1)]
    for n, row in enumerate(rows):
        yield "  " + "   ".join(_padded(text, w) for text, w in zip(row, widths, strict=True)).rstrip()
        if n == 0:
            yield "  " + "   ".join(("─" if signs is SYMBOLS else "-") * w for w in widths)


def _list(report: InvarianceReport, on: str, width: int, signs: dict[str, str]) -> Iterator[str]:
    cells = [cell for cell in report if cell.on == on]
    yield ""
    yield f"  {on}"
    wide = max(columns_of(cell.group) for cell in cells)
    for cell in cells:
        evidence = f"{cell.verdict} {number(cell.discrepancy)}".rstrip() + _mark(cell)
        yield from _wrapped(
            f"    {_padded(signs[cell.verdict], 2)} {_padded(cell.group, wide)}  {evidence}", width, "", " " * 8
        )


def _accounts(report: InvarianceReport, width: int) -> Iterator[str]:
    """Why: refuted cells with the terms to blame, and the reasons of the others; cells of one reason together."""
    for verdict, title in ((REFUTED, "Refuted"), (UNDECIDED, "Undecided"), (NOT_APPLICABLE, "Not applicable")):
        said: dict[str, list[Cell]] = {}
        for cell in report.of(verdict):
            said.setdefault(cell.blame if verdict == REFUTED else cell.reason, []).append(cell)
        for why, cells in said.items():
            if not why:
                continue
            yield ""
            what = "; ".join(f"{', '.join(c.group for c in cells if c.on == on)} of {on}" for on in _kinds(cells))
            by = "lost at " if verdict == REFUTED else ""
            yield from _wrapped(f"{title}: {what} — {by}{why}", width, "", "   ")
    example = next((cell for cell in report.refuted if cell.counterexample and cell.counterexample.code), None)
    if example is not None and example.counterexample is not None:
        yield ""
        yield f"A counterexample ({example.group} of {example.on}):"
        yield from textwrap.indent(example.counterexample.code.strip(), "   ").splitlines()


def _kinds(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.on for cell in cells))


def _short(cell: Cell, signs: dict[str, str]) -> str:
    return f"{_padded(signs[cell.verdict], 1)} {number(cell.discrepancy)}{_mark(cell).replace(' ', '')[:1]}".rstrip()


def _mark(cell: Cell) -> str:
    return " ! claimed" if cell.surprising else " + not claimed" if cell.exceeds else ""


def columns_of(text: str) -> int:
    """How many columns of a terminal a text takes: combining marks none, wide characters two."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def _padded(text: str, width: int) -> str:
    return text + " " * (width - columns_of(text))


def _wrapped(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False) or [""]
