"""A fuzzer for symmetries: random expressions over the whole algebra, each claim tested in twins.

A claim that an expression keeps a change of frame says that the form built from moved data is the moved form, and that
a step computed from moved data is the moved step. `measure` finds for each cell, a space with a group or a joint
scaling, how far that is from true; `unsound` and `pessimistic` compare it with what the inferred symmetry says. A claim
that fails is unsound, a bug. What holds and is not claimed is pessimistic, a pity.

    report = fuzz(range(5000))      # one random expression for each seed
    assert not report.unsound, report

Where a jitter of 1e-10 in the data shows beyond 1e-7, an expression is too close to singular to say anything: skipped.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from ..errors import RiemannError
from ..symmetry import GL, GROUPS, SP, D, M, O, P, R, Symmetry, T
from .draws import Draw
from .frames import MOVED, Expression, Frames
from .random_expressions import Writer

SINGULAR: Final = (RiemannError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]
JITTER, VISIBLE = 1e-10, 1e-7
HELD, REFUTED = 1e-7, 1e-4
"""Relative to the size of the outcome: held below the one, refuted above the other, undecided between."""

Cell = tuple[tuple[str, str | int], ...]
"""`(("A", "general"),)`, a group on each of some spaces, or a joint scaling, `(("A", 1), ("S", -1))`."""
Errors = dict[Cell, float]
CELLS: tuple[Cell, ...] = (
    *(((space, group),) for space in MOVED for group in GROUPS),
    *(((x, 1), (y, p)) for x, y in itertools.combinations(MOVED, 2) for p in (1, -1)),
    (("A", GL), ("S", GL)), (("A", T), ("S", O)), (("A", O), ("S", O), ("V", O)), (("A", M), ("S", SP), ("V", D)),
)  # fmt: skip


def element(group: str | int, n: int, draw: Draw) -> tuple[Tensor, Tensor]:
    """Ω and γ of a ↦ Ωa + γ, in this group and in none that is smaller; for a number, the scaling to that power."""
    eye, none = torch.eye(n, dtype=draw.dtype), torch.zeros(n, dtype=draw.dtype)
    if not isinstance(group, str):
        return 1.6**group * eye, none
    if group == T:
        v = draw.normal(n)
        return eye, v / v.norm()
    rotation, other = (torch.linalg.qr(draw.normal(n, n))[0] for _ in range(2))
    spread = torch.diag(torch.linspace(-0.6, 0.7, n, dtype=draw.dtype).exp())
    order = torch.randperm(n, generator=draw.generator)
    cycle = torch.zeros_like(eye)
    cycle[order.roll(1), order] = 1  # through all axes: none stays where it is
    signs = torch.where(torch.arange(n) == draw.integer(0, n - 1), -1.0, 1.0).to(eye)
    return {
        O: rotation, D: spread, P: cycle, SP: cycle * signs, M: cycle * signs @ spread, R: 1.6 * eye,
    }.get(group, rotation @ spread @ other), none  # fmt: skip


def claimed(symmetry: Symmetry, cell: Cell) -> bool:
    scaling = {space: int(p) for space, p in cell if not isinstance(p, str)}
    groups = [(space, group) for space, group in cell if isinstance(group, str)]
    return symmetry.keeps_joint(scaling) and all(symmetry.keeps(space, group) for space, group in groups)


def measure(expression: Expression, seed: int) -> Errors | None:
    """How far each cell is from kept, of spaces that take part; NaN where rounding does not allow to say.

    None where that is so in every frame.
    """
    draw = Draw.seeded(seed)
    try:
        with torch.no_grad():
            here = expression.seen(untouched := Frames({}))
            if not off(expression.seen(Frames({}, draw, JITTER)), here) <= VISIBLE:
                return None
    except SINGULAR:
        return None
    cells = (cell for cell in CELLS if all(space in untouched.asked for space, _ in cell))
    return {cell: _measured(expression, cell, here, draw) for cell in cells}


def _measured(expression: Expression, cell: Cell, here: Tensor, draw: Draw) -> float:
    maps = {space: element(group, MOVED[space], draw) for space, group in cell}
    try:
        with torch.no_grad():
            there = expression.seen(Frames(maps))
            error = off(there, here)
            if error > HELD and not off(expression.seen(Frames(maps, draw, JITTER)), there) <= VISIBLE:
                return float("nan")
    except SINGULAR:
        return float("nan")
    return error


def off(x: Tensor, y: Tensor) -> float:
    return float((x - y).abs().max() / y.abs().max())


def unsound(symmetry: Symmetry, errors: Errors) -> Errors:
    """What is claimed and does not hold."""
    return {cell: error for cell, error in errors.items() if error >= REFUTED and claimed(symmetry, cell)}


def pessimistic(symmetry: Symmetry, errors: Errors) -> Errors:
    """What holds and is not claimed."""
    return {cell: error for cell, error in errors.items() if error <= HELD and not claimed(symmetry, cell)}


@dataclass
class Report:
    """Counts, and the cells in question with the seeds that bring them back."""

    expressions: int = 0
    skipped: int = 0
    cells: int = 0
    undecided: int = 0
    claims: int = 0
    unsound: dict[int, Errors] = field(default_factory=dict)
    pessimistic: dict[int, Errors] = field(default_factory=dict)

    @property
    def share_of_pessimistic(self) -> float:
        return sum(map(len, self.pessimistic.values())) / max(self.cells, 1)

    def add(self, seed: int, symmetry: Symmetry, errors: Errors) -> None:
        self.expressions += 1
        self.cells += len(errors)
        self.undecided += sum(not (error <= HELD or error >= REFUTED) for error in errors.values())
        self.claims += sum(claimed(symmetry, cell) for cell in errors)
        for found, kept in ((unsound, self.unsound), (pessimistic, self.pessimistic)):
            if cells := found(symmetry, errors):
                kept[seed] = cells

    def __str__(self) -> str:
        """The counts, and the shortest of the expressions that claim too much."""
        wrong = sorted((len(text := f"{written(seed)}"), seed, text, cells) for seed, cells in self.unsound.items())
        shown = (f"\nseed {seed}, {text}: {cells}" for _, seed, text, cells in wrong[:5])
        return (
            f"{self.expressions} expressions and {self.skipped} skipped; {self.cells} cells "
            f"({self.undecided} undecided), "
            f"{self.claims} claims, {sum(map(len, self.unsound.values()))} unsound; "
            f"{self.share_of_pessimistic:.1%} pessimistic{''.join(shown)}"
        )


def written(seed: int) -> Expression:
    """The expression of this seed, always the same."""
    return Writer(Draw.seeded(seed)).expression()


def fuzz(seeds: Iterable[int]) -> Report:
    """One random expression for each seed."""
    report = Report()
    for seed in seeds:
        expression = written(seed)
        errors = measure(expression, seed)
        if errors is None:
            report.skipped += 1
        else:
            report.add(seed, expression.claim(), errors)
    return report
