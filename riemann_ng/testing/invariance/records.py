"""What an invariance check found: a verdict for every group on every kind of space, and the evidence for it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

HELD, REFUTED, UNDECIDED, NOT_APPLICABLE = "held", "refuted", "undecided", "not applicable"
VERDICTS = (HELD, REFUTED, UNDECIDED, NOT_APPLICABLE)
SYMBOLS = {HELD: "✓", REFUTED: "✗", UNDECIDED: "?", NOT_APPLICABLE: "–"}

ON = ("inputs", "activations", "pre-activations", "outputs", "layers", "parameters", "loss", "batch")
"""What is moved, in the order of tables. "layers" are both sides of every layer together, for joint scales."""

Key = tuple[str, str]
"""What is moved and the group: ("activations", "general")."""


@dataclass(frozen=True)
class Counterexample:
    """One case in which the two runs differ: what was moved, by how much they differ, and code that shows it again."""

    discrepancy: float
    """Difference of the two runs' predictions, in units of how far the predictions moved."""
    seed: int
    """Of the element of the group."""
    moved: tuple[str, ...] = ()
    """The spaces that were moved, such as "fc1.A"; empty where no frame was."""
    element: str = ""
    """The element in words and numbers: "x → x + [1, 0, 0]"."""
    steps: int = 1
    model: str = ""
    """The model, where it was shrunk to a smaller one; else its repr."""
    code: str = ""
    """A program that shows the discrepancy again."""


@dataclass(frozen=True)
class Cell:
    """The verdict on one group of changes, on one kind of space (or on the parameters, the loss, the batch)."""

    on: str
    group: str
    verdict: str
    discrepancy: float | None = None
    """The worst over the cases; in units of how far the predictions moved. None where nothing was run."""
    noise: float | None = None
    """The discrepancy that rounding alone explains, measured by perturbing the inputs."""
    cases: int = 0
    counterexample: Counterexample | None = None
    claimed: bool | None = None
    """What the static symmetry of the expression says; None where the subject makes no claim."""
    reason: str = ""
    """Why the verdict is "undecided" or "not applicable"; of a held cell, what it is limited to (some layers, say)."""
    blame: str = ""
    """The terms of the expression, or the state of the optimizer, that lose the symmetry."""

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"ValueError in Cell: a verdict is one of {', '.join(VERDICTS)}, got {self.verdict!r}.")

    @property
    def key(self) -> Key:
        return self.on, self.group

    @property
    def surprising(self) -> bool:
        """Whether the measurement contradicts the claim: a claimed symmetry was refuted."""
        return self.claimed is True and self.verdict == REFUTED

    @property
    def exceeds(self) -> bool:
        """Whether the measurement found more than was claimed."""
        return self.claimed is False and self.verdict == HELD

    def __str__(self) -> str:
        text = f"{self.group} of {self.on}: {self.verdict}"
        if self.discrepancy is not None:
            text += f" ({self.discrepancy:.1e}, {self.cases} cases)"
        return text + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True)
class InvarianceReport:
    """The verdicts on one subject with one model: `report["activations", "general"].verdict`. `str` is a table."""

    subject: str
    model: str
    cells: Mapping[Key, Cell]
    seconds: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Numbers of examples, steps and cases, thresholds, seed; and `displacement`, how far the predictions moved."""
    notes: tuple[str, ...] = ()
    """What holds for the whole report: a claim that was refuted, refuters that disagree."""

    def __getitem__(self, key: Key) -> Cell:
        if key not in self.cells:
            known = ", ".join(f"({on!r}, {group!r})" for on, group in self.cells)
            raise KeyError(f"KeyError in InvarianceReport: {key!r} was not tried. There are {known}.")
        return self.cells[key]

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells.values())

    def __len__(self) -> int:
        return len(self.cells)

    def of(self, verdict: str) -> list[Cell]:
        """The cells of one verdict."""
        return [cell for cell in self if cell.verdict == verdict]

    @property
    def held(self) -> list[Cell]:
        return self.of(HELD)

    @property
    def refuted(self) -> list[Cell]:
        return self.of(REFUTED)

    @property
    def on(self) -> list[str]:
        """The kinds of spaces that were moved, in the order of the table."""
        present = dict.fromkeys(cell.on for cell in self)
        return [k for k in ON if k in present] + [k for k in present if k not in ON]

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(cell.group for cell in self))

    def to_json(self, indent: int | None = 2) -> str:
        """As text; numbers that are not finite are written as null."""
        data = {**asdict(self), "cells": [asdict(cell) for cell in self]}
        return json.dumps(_finite(data), indent=indent, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> InvarianceReport:
        data = json.loads(text)
        cells = {}
        for entry in data.pop("cells"):
            found = entry.pop("counterexample")
            if found is not None:
                found = Counterexample(**{**found, "moved": tuple(found["moved"])})
            cell = Cell(**entry, counterexample=found)
            cells[cell.key] = cell
        return cls(**{**data, "notes": tuple(data["notes"]), "cells": cells})

    def __str__(self) -> str:
        lines = [f"{self.subject} on {self.model}"]
        width = max((len(g) for g in self.groups), default=0)
        for on in self.on:
            lines.append(f"  {on}")
            for cell in (c for c in self if c.on == on):
                lines.append(f"    {SYMBOLS[cell.verdict]} {cell.group:<{width}}  {_evidence(cell)}".rstrip())
        lines += [f"  note: {note}" for note in self.notes]
        tried = sum(cell.cases for cell in self)
        lines.append(f"  {tried} cases in {self.seconds:.1f} s; ✓ held  ✗ refuted  ? undecided  – not applicable")
        return "\n".join(lines)


def _evidence(cell: Cell) -> str:
    parts = [f"{cell.discrepancy:.0e}"] if cell.discrepancy is not None else []
    if cell.surprising:
        parts.append("claimed, but refuted")
    elif cell.exceeds:
        parts.append("not claimed, but held")
    if cell.blame and cell.verdict == REFUTED:
        parts.append(f"by {cell.blame}")
    return "  ".join([*parts, cell.reason] if cell.reason else parts)


def _finite(x: Any) -> Any:
    if isinstance(x, float) and not math.isfinite(x):
        return None
    if isinstance(x, Mapping):
        return {str(k): _finite(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [_finite(v) for v in x]
    return x
