"""What of a module is read, how, and at what cost: a value to assert on, and a table to read."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from .constants import LARGEST
from .structure import Block

MANY = 10_000
"""How many examples × draws a batch may well have."""


@dataclass(frozen=True)
class Row:
    """One trained parameter.

    `block` is "affine" for a place in a layer, "constant" for one without; `factor_bytes` is what the two factors of a
    product of second moments on its block would hold.
    """

    parameter: str
    layer: str
    space: str
    block: str
    size: int
    factor_bytes: int
    assumed: str


@dataclass(frozen=True)
class Coverage:
    """Every trained parameter once, in the module's order; `frozen` are left out; `verified` says whether a batch was
    seen.
    """

    rows: tuple[Row, ...]
    frozen: tuple[str, ...]
    verified: bool

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, parameter: str) -> Row:
        return next(row for row in self.rows if row.parameter == parameter)

    @property
    def constant(self) -> tuple[str, ...]:
        """The parameters known by their per-example gradients alone."""
        return tuple(row.parameter for row in self.rows if row.block == "constant")

    def __str__(self) -> str:
        head = ("parameter", "layer", "space", "block", "size", "factors", "assumed")
        table = [head] + [
            (r.parameter, r.layer, r.space, r.block, f"{r.size:,}", in_bytes(r.factor_bytes), r.assumed)
            for r in self.rows
        ]
        widths = [max(len(line[i]) for line in table) for i in range(len(head))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in table]
        notes = [f"frozen, left out: {', '.join(self.frozen)}"] if self.frozen else []
        notes += [] if self.verified else ["not verified yet: the first batch will be held against autograd"]
        return "\n".join(lines + notes)


def cover(
    blocks: Mapping[str, Block],
    parameters: Mapping[str, Tensor],
    frozen: tuple[str, ...],
    verified: bool,
    spread: Collection[str] = (),
) -> Coverage:
    """`spread` are the blocks that the examples of a batch share."""
    rows: dict[str, Row] = {}
    for path, block in blocks.items():
        for name in block.names.values():
            p = parameters[name]
            into, out = (V.shape for V in (block.input_space, block.output_space))
            members = into[0] if len(into) > 1 else 1
            entries = members * (into[-1] ** 2 + out[-1] ** 2)
            kind = "constant" if block.reader is None else "affine"
            layer, space, held = path, str(block.space), entries * p.element_size()
            if name in rows:  # a fused parameter: several blocks have rows of it
                before = rows[name]
                layer, space = f"{before.layer}, {layer}", f"{before.space}, {space}"
                held += before.factor_bytes
            said = [block.assumed, "shared by the examples: spread over them, as a view" if path in spread else ""]
            if kind == "constant" and p.numel() * MANY > LARGEST:
                said.append(f"at most {LARGEST // p.numel():,} examples × draws at a time")
            rows[name] = Row(name, layer, space, kind, p.numel(), held, "; ".join(filter(None, said)))
    return Coverage(tuple(rows[name] for name in parameters), frozen, verified)


def in_bytes(count: int) -> str:
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.3g} {unit}"
