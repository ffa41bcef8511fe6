"""The solver that picks a solver."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ..factorizations import Factorization
from ..symmetry import Symmetry
from .base import Solvable, Solver, SolveReport, Structure
from .cg import CG
from .direct import DENSE_LIMIT, Cholesky, Dual


@dataclass(frozen=True)
class Auto(Solver):
    """Reads the structure and an estimate of the cost, and picks. `explain(g)` says what, and why.

    The cheapest of the kind's own factorization, the dual one for few rows, and a dense one up to dimension
    `limit`; where there is none of these, conjugate gradients to `tolerance`. On a larger space the kind's own may
    cost what an eigendecomposition of dimension `limit` does.
    """

    limit: int = DENSE_LIMIT
    tolerance: float = 1e-6

    def choose(self, g: Solvable) -> tuple[Solver, str]:
        """The solver, and the reason."""
        s, options = g.structure, self._options(g.structure)
        what = f"{s.kind} of dimension {s.dim}"
        if not options:
            reason = f"too large to factorize (limit {self.limit}), {s.apply:.1e} flops a product"
            return CG(self.tolerance), f"{what}: {reason}"
        return options[0][2], f"{what}: {', '.join(f'{name} {flops:.1e} flops' for flops, name, _ in options)}"

    def _options(self, s: Structure) -> list[tuple[float, str, Solver]]:
        """What can be factorized, the cheapest first."""
        options: list[tuple[float, str, Solver]] = []
        if s.direct is not None and (s.dim <= self.limit or s.direct <= 12.0 * self.limit**3):
            options.append((s.direct, "its own factorization", Cholesky(self.limit)))
        if s.low_rank is not None:
            cost = 4.0 * s.low_rank**2 * s.dim + s.low_rank**3 if s.dual is None else s.dual
            options.append((cost, f"dual of {s.low_rank} rows", Dual()))
        if s.direct is None and s.dim <= self.limit:
            options.append((s.apply * s.dim + s.dim**3 / 3, "dense matrix", Cholesky(self.limit)))
        return sorted(options, key=lambda option: option[0])

    def _solver(self, g: Solvable) -> Solver:
        options = self._options(g.structure)
        return options[0][2] if options else CG(self.tolerance)

    def factorize(self, g: Solvable, like: Tensor | None = None) -> Factorization:
        return self._solver(g).factorize(g, like)

    def run(self, g: Solvable, x: Tensor) -> tuple[Tensor, SolveReport]:
        value, report = self._solver(g).run(g, x)
        return value, replace(report, solver=f"{self.brief} chose {report.solver}")

    def symmetry_of(self, g: Solvable) -> Symmetry:
        return self._solver(g).symmetry_of(g)


def explain(g: Solvable) -> str:
    """What `Auto` will do for this form, and why."""
    solver, why = Auto().choose(g)
    return f"{solver.brief} because it is {why}"
