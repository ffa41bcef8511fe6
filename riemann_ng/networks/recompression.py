"""Exact second moments of all layers' cotangents without paying for all output directions.

Seen from one example, whatever flows back through a layer of width w lies in w dimensions: after C directions have
passed a narrow layer they can be replaced by w of them with the same sum of squares. `cuts.py` says where that is so.
From cut to cut the per-example form G' = D Wᵀ G W D is carried by matrix products in chunks of examples: dense (w, w)
where that is smaller than a factor, as a factor R Rᵀ from the narrowest layer on. Opaque steps see as many directions
as are left. Without a narrow cut all directions are looped over.

A new factor is a rotation of the old directions, so draws of layers with different rotations do not belong together.
They cannot be paired by mistake: rotations happen only where the number of draws falls, hence layers with as many draws
have the same ones, and never fewer than two, so nothing broadcasts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cuts import Step, draws_left, one_by_one, plan
from .directions import Directions, moved
from .forms import Dense, Diagonal, Factor, PerExample, smaller

BUDGET = 1 << 26
"""Numbers that one chunk of per-example forms may hold."""
WIDEST = 1 << 12
"""No second moments are summed on the way for blocks that are wider: nobody may ever ask for so large a matrix."""


@dataclass
class Carried:
    """The sum of squares of a block's cotangents, or where few draws are left these, (n, draws, sites, *shape)."""

    moment: Tensor | None = None
    rows: Tensor | None = None

    def add(self, moment: Tensor) -> None:
        self.moment = moment if self.moment is None else self.moment + moment


class Recompression:
    """The per-example forms of one observation, carried from cut to cut when a layer is first asked for.

    `draws` says for each block how many cotangents an example has; fewer than all directions where they were rotated.
    """

    def __init__(self, directions: Directions, recompress: bool = True):
        self.directions = directions
        with torch.autocast(directions.z.device.type, enabled=False):
            self.steps = plan(directions) if recompress else one_by_one(directions)
        self.draws = draws_left(self.steps, directions.count)
        self.versions = [(s.weight, s.weight._version) for s in self.steps if s.weight is not None]
        self._carried: dict[str, Carried] = {}

    def rotated(self, path: str) -> bool:
        return self.draws[path] < self.directions.count

    def moment(self, path: str) -> Tensor:
        """Σ g gᵀ over the examples, draws and sites of a block, (d, d); of a family (members, d, d)."""
        found = self.carried()[path]
        if found.moment is None:
            assert found.rows is not None
            found.moment = moment_of(found.rows)
        return found.moment

    def cotangents(self, path: str) -> Iterator[Tensor]:
        """The cotangents (n, draws, sites, *shape) of a block whose directions were rotated."""
        rows = self.carried()[path].rows
        assert rows is not None
        yield rows

    def carried(self) -> dict[str, Carried]:
        if not self._carried:
            if any(weight._version != version for weight, version in self.versions):
                raise moved()
            with torch.no_grad(), torch.autocast(self.directions.z.device.type, enabled=False):
                self._carried = self._run()
        return self._carried

    def _run(self) -> dict[str, Carried]:
        into = {path: Carried() for path in self.draws}
        state: PerExample | None = None  # None: the directions themselves, not yet made
        at = 0
        while at < len(self.steps):
            stretch = at
            while stretch < len(self.steps) and self.steps[stretch].scale is not None:
                stretch += 1
            if stretch > at:
                state = self._along(self.steps[at:stretch], state, into)
            else:
                state = self._through(self.steps[at], state, into)
                stretch = at + 1
            at = stretch
        return into

    def _along(self, steps: Sequence[Step], state: PerExample | None, into: dict[str, Carried]) -> PerExample | None:
        """A run of steps between cuts, in chunks of examples; the form at its end, where something follows."""
        n = self.directions.examples
        follows = steps[-1] is not self.steps[-1]
        chunks = -(-n * max(step.per_example() for step in steps) // BUDGET)
        size = -(-n // chunks)
        ends: list[Tensor] = []
        kept: dict[str, list[Tensor]] = {}
        for start in range(0, n, size):
            rows = slice(start, min(start + size, n))
            form = self._start(rows) if state is None else Factor(state.factored().rows[rows])
            for step in steps:
                assert step.scale is not None and step.target is not None
                form = form.pulled(step.weight, step.scale[rows])
                path = step.target.path
                if not self.rotated(path):
                    into[path].add(form.moment())
                else:
                    assert isinstance(form, Factor)
                    kept.setdefault(path, []).append(form.rows)
            if follows:
                ends.append(form.factored().rows)
        for path, parts in kept.items():
            into[path].rows = torch.cat(parts)[:, :, None]
        return Factor(torch.cat(ends)) if follows else None

    def _start(self, rows: slice) -> PerExample:
        """The output metric at some examples."""
        z, output = self.directions.z.detach()[rows], self.directions.output
        if output.diagonal:
            return Diagonal(output.diagonal_roots(z).flatten(1))
        return Factor(output.directions(z).flatten(2))

    def _through(self, step: Step, state: PerExample | None, into: dict[str, Carried]) -> PerExample | None:
        """An opaque step: the directions that are left, one after the other, through the graph."""
        d = self.directions
        source = d.z if step.source is None else step.source.edge
        left = d.count if state is None else state.rank
        dense = step.target is not None and smaller(step.target.shape[1], left)
        total: Tensor | None = None
        kept: dict[str, list[Tensor]] = {}
        for columns in d.columns() if state is None else state.factored().rows.split(d.chunk, 1):
            stacks = [d.back(source, column, step.calls) for column in columns.unbind(1)]
            chunk: dict[str, list[Tensor]] = {}
            for call, *parts in zip(step.calls, *stacks, strict=True):
                chunk.setdefault(call.path, []).append(torch.stack(parts, 1))
            for path, arrived in chunk.items():
                if left < d.count:
                    kept.setdefault(path, []).append(torch.cat(arrived, 2))
                else:
                    for g in arrived if arrived[0].shape[-1] <= WIDEST else []:
                        into[path].add(moment_of(g))
            if step.target is not None:
                rows = chunk[step.target.path][0].flatten(2)
                if dense:
                    total = rows.mT @ rows if total is None else torch.baddbmm(total, rows.mT, rows)
                else:
                    total = rows if total is None else torch.cat([total, rows], 1)
        for path, parts in kept.items():
            into[path].rows = torch.cat(parts, 1)
        if step.target is None:
            return None
        assert total is not None
        return Dense(total) if dense else Factor(total)


def moment_of(g: Tensor) -> Tensor:
    """Σ g gᵀ over examples, draws and sites of (n, k, sites, *shape), for each member of a family by itself."""
    flat = g.flatten(0, 2)
    return flat.mT @ flat if flat.ndim == 2 else torch.einsum("nmi,nmj->mij", flat, flat)
