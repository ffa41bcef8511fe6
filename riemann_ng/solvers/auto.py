"""The solver that picks a solver."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..factorizations import Factorization
from .base import Solvable, Solver
from .cg import CG
from .direct import DENSE_LIMIT, Cholesky, Dual


@dataclass(frozen=True)
class Auto(Solver):
    """Reads the structure and an estimate of the cost, and picks. `explain(g)` says what, and why."""

    limit: int = DENSE_LIMIT

    def choose(self, g: Solvable) -> tuple[Solver, str]:
        s = g.structure
        costs: dict[str, float] = {}
        if s.direct is not None:
            costs["direct"] = s.direct
        if s.low_rank is not None:
            costs["dual"] = 4.0 * s.low_rank**2 * s.dim + s.low_rank**3 / 3
        if s.direct is None and s.dim <= self.limit:
            costs["dense"] = s.apply * s.dim + s.dim**3 / 3
        if not costs:
            return CG(), f"{s.kind} of dimension {s.dim}: too large to factorize, {s.apply:.1e} flops a product"
        best = min(costs, key=lambda name: costs[name])
        why = ", ".join(f"{name} {cost:.1e} flops" for name, cost in sorted(costs.items(), key=lambda item: item[1]))
        solver: Solver = Dual() if best == "dual" else Cholesky(self.limit)
        return solver, f"{s.kind} of dimension {s.dim}: {why}"

    def factorize(self, g: Solvable, like: Tensor | None = None) -> Factorization:
        return self.choose(g)[0].factorize(g, like)


def explain(g: Solvable) -> str:
    """What `Auto` will do for this form, and why."""
    solver, why = Auto().choose(g)
    return f"{solver!r} because it is {why}"
