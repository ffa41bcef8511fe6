"""Iterative solvers that begin at the gradient, and take what they have after so many steps: pascanur/natgrad."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..errors import InvalidSetting
from ..factorizations import Factorization
from ..metrics.base import given
from ..solvers import Iterative, MinresQLP, Solver, SolveReport
from ..solvers.base import Solvable, largest
from ..solvers.iterative import IterativeFactor, of_coordinates
from ..symmetry import Symmetry


@dataclass(frozen=True)
class FromGradient(Solver):
    """Begins at the vector that has the covector's components, both brought to length one in effect: it is linear.

    That names the coordinates. The solver ends at its tolerance, or after its `max_iterations` with what it has: a
    truncation on purpose.
    """

    of: Iterative = MinresQLP(tolerance=1e-4, max_iterations=30)

    def __post_init__(self) -> None:
        plain = isinstance(self.of, Iterative) and self.of.start is None and self.of.iterations is None
        if not plain:
            raise InvalidSetting(
                f"InvalidSetting in FromGradient: of={given(self.of)}, expected an iterative solver without a start "
                f"and without iterations, as MinresQLP(tolerance=1e-4, max_iterations=30)."
            )

    def factorize(self, g: Solvable, like: Tensor | None = None) -> Factorization:
        return IterativeFactor(self, g)  # type: ignore[arg-type]

    def run(self, g: Solvable, x: Tensor) -> tuple[Tensor, SolveReport]:
        problem = self.of.problem(g, x)
        rows = x.reshape(-1, x.shape[-1])
        scale = largest(rows)
        start = rows / scale
        residual = start - problem.flat(start)
        target = self.of.tolerance * problem.length(start)
        correction, taken, _ = self.of.correct(problem, residual, target, self.of.max_iterations)
        value = start + correction
        length = problem.length(start - problem.flat(value))
        relative = float((length / problem.length(start).clamp(min=1e-300)).max())
        report = SolveReport(
            self.brief, relative, taken, bool((length <= target).all()), "from the gradient", problem.norm_name
        )
        return (value * scale).reshape(x.shape), report

    def symmetry_of(self, g: Solvable) -> Symmetry:
        return g.symmetry + of_coordinates(g.space, f"{self.brief}: the gradient as a vector")
