"""What iterative solvers share: where they start, when they stop, and how they give up.

They need products with the form only. Lengths of covectors, and with them the stopping test, are those of the
preconditioner's dual, |r|² = r(M.sharp(r)); without a preconditioner they are those of the coordinates. The
iterates, the test and the number of steps therefore commute with every change of frame that the form and the
preconditioner commute with.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from ..elements import Element, Vector, describe
from ..errors import InvalidSetting, NonFinite, NotAnInnerProduct, NotClosed, NotConverged, SpaceMismatch
from ..factorizations import Factorization, rounding_unit
from ..linear_maps import LinearMap
from ..spaces import Derived, DirectSum, Dual, Family, Hull, VectorSpace
from ..symmetry import Structure as Named
from ..symmetry import Symmetry
from .base import Solvable, Solver, SolveReport, check_kind, degenerate_named, largest


@dataclass(frozen=True)
class Iterative(Solver):
    """Stops where |flat(v) - ξ| <= tolerance * |ξ|, or after exactly `iterations` steps if that many are asked for.

    tolerance       of the residual, measured at the end and not only estimated on the way (but for truncated
                    conjugate gradients, which would need one more product). In the norm of the preconditioner's dual;
                    without a preconditioner of the coordinates.
    max_iterations  after which the solver gives up: `NotConverged`, with its report, and no vector.
    preconditioner  an inner product M on the same space, solved by its own factorization.
    start           a vector to start from, the last solution say. It is taken to move with the frames as that one does.
    iterations      exactly so many steps: a truncation on purpose, and part of what is computed. The tolerance then
                    only decides what the report calls converged.
    """

    tolerance: float = 1e-6
    max_iterations: int = 1000
    preconditioner: Solvable | None = None
    start: Vector | None = None
    iterations: int | None = None

    def __post_init__(self) -> None:
        call = type(self).__name__
        if not 0 < self.tolerance < 1:
            raise InvalidSetting(
                f"InvalidSetting in {call}: tolerance is relative, between 0 and 1, got {self.tolerance!r}."
            )
        M = self.preconditioner
        if isinstance(M, (Tensor, Element, LinearMap, Solver, type, str, int, float)):
            raise InvalidSetting(
                f"InvalidSetting in {call}: a preconditioner is an inner product, as Gram(V, matrix); got "
                f"{describe(M)}."
            )
        for name, steps in (("max_iterations", self.max_iterations), ("iterations", self.iterations)):
            if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool) or steps < 1):
                raise InvalidSetting(f"InvalidSetting in {call}: {name} is a positive number of steps, got {steps!r}.")

    def factorize(self, g: Solvable, like: Tensor | None = None) -> Factorization:
        """There is nothing to keep but the form and the settings; frames and determinants need a direct solver."""
        return IterativeFactor(self, g)

    def problem(self, g: Solvable, x: Tensor) -> Problem:
        return Problem(self, g, x)

    @abstractmethod
    def correct(self, problem: Problem, r: Tensor, target: Tensor, steps: int) -> tuple[Tensor, int, Tensor | None]:
        """From zero and residuals r (m, dim): rows d with |r - flat(d)| <= target, or the best of so many steps.

        And how many were taken, and r - flat(d) where it was kept up. In a truncated solve the target is what rounding
        leaves of the covectors.
        """

    def run(self, g: Solvable, x: Tensor) -> tuple[Tensor, SolveReport]:
        problem = self.problem(g, x)
        rows = x.reshape(-1, x.shape[-1])
        if not len(rows):
            return x, SolveReport(self.brief, 0.0, norm=problem.norm_name)
        start = None if self.start is None else problem.start(x).expand(x.shape).reshape(rows.shape)
        value, report = self.solve_rows(problem, rows, start)
        return value.reshape(x.shape), report

    def solve_rows(self, problem: Problem, x: Tensor, start: Tensor | None) -> tuple[Tensor, SolveReport]:
        """Of covectors (m, dim), each brought to a size whose square is far from underflow and overflow."""
        scale = largest(x)
        value, report = self.iterate(problem, x / scale, None if start is None else start / scale)
        return value * scale, report

    def iterate(self, problem: Problem, xi: Tensor, start: Tensor | None) -> tuple[Tensor, SolveReport]:
        size, truncated = problem.length(xi), self.iterations is not None
        target = self.tolerance * size
        stop = rounding_unit(xi.dtype) * size if truncated else target
        value, residual, length = torch.zeros_like(xi), xi, size
        if start is not None:
            value = start if truncated else start * (size > 0)[:, None]  # relative to nothing no start is close enough
            residual = xi - problem.flat(value)
            length = problem.length(residual)
        taken, done = 0, length <= target
        while truncated or not bool(done.all()):
            left = self.iterations or self.max_iterations - taken
            correction, used, kept_up = self.correct(problem, residual, stop, left)
            taken, before = taken + used, length
            value = correction if start is None and taken == used else value + correction
            residual = kept_up if truncated and kept_up is not None else xi - problem.flat(value)
            length = problem.length(residual)
            done = length <= target
            # the residual kept up on the way was rounded: starting again from the measured one mends that, or nothing
            if truncated or taken >= self.max_iterations or not bool((done | (length <= before / 2)).all()):
                break
        relative = problem.relative(residual, xi)
        return value, self._account(problem, relative, taken, bool(done.all()))

    def _account(self, problem: Problem, relative: float, taken: int, converged: bool) -> SolveReport:
        note = f"truncated on purpose after {taken} steps" if self.iterations is not None else ""
        report = SolveReport(self.brief, relative, taken, converged, note, problem.norm_name)
        if converged or self.iterations is not None:
            return report
        stopped = "which is all it may take" if taken >= self.max_iterations else "where it no longer improves"
        raise NotConverged(
            f"NotConverged in {problem.call}: on {problem.g.space} the residual in the norm of {problem.norm_name} is "
            f"{relative:.1e} after {taken} iterations, {stopped}; asked for {self.tolerance:.1e}. "
            f"{problem.note or self._advice}",
            report,
        )

    @property
    def _advice(self) -> str:
        return (
            f"Give a preconditioner close to the form, more iterations or a wider precision, damp the form, or, if a "
            f"truncated solve is what is meant, {type(self).__name__}(iterations=k)."
        )

    def symmetry_of(self, g: Solvable) -> Symmetry:
        """Converged, that of g up to the tolerance; truncated, met with the preconditioner's, of whatever scale it
        is.

        The scalars of the iteration mix all summands, so the scales of all summands must agree.
        """
        if self.iterations is None:
            return g.symmetry
        return g.symmetry * up_to_scale(g.symmetry) * up_to_scale(self.measure(g))

    def measure(self, g: Solvable) -> Symmetry:
        """The symmetry of what lengths are measured by."""
        M = self.preconditioner
        return of_coordinates(g.space, f"{type(self).__name__} without a preconditioner") if M is None else M.symmetry


def up_to_scale(symmetry: Symmetry) -> Symmetry:
    return symmetry * symmetry**-1


def of_coordinates(space: VectorSpace, source: str) -> Symmetry:
    """What the identity matrix names: an orthonormal basis; on a hull an origin too, which weighs otherwise."""
    if isinstance(space, DirectSum):
        return Symmetry.direct_sum([of_coordinates(V, source) for _, V in space.parts])
    if isinstance(space, Family):
        return of_coordinates(space.of, source)
    if len(space.factors) > 1:
        symmetry = Symmetry.natural()
        for V in space.factors:
            symmetry = symmetry * of_coordinates(V, source)
        return symmetry
    plain, sign = (space.of, -1) if isinstance(space, Dual) else (space, 1)
    if not space.bases or (isinstance(plain, Derived) and plain.up_to_rotation):
        return Symmetry.natural()
    if isinstance(plain, Derived):
        kinds = ("frame", "origin")
        return Symmetry.naming(*(Named(base, kind, source=source) for base in space.bases for kind in kinds))
    (base,) = space.bases
    form = Symmetry.naming(Named(base, "form", source=source), weight={base: 2 * sign})
    return form + Symmetry.naming(Named(base, "origin", source=source)) if isinstance(plain, Hull) else form


class Problem:
    """One form and one preconditioner: products with them, and lengths."""

    def __init__(self, solver: Iterative, g: Solvable, x: Tensor, shift: float = 0.0):
        self.g, self.shift, self.M, self._solver = g, shift, solver.preconditioner, solver
        self.call = f"{type(solver).__name__}.solve"
        self.note = ""  # what the iteration has to say if it fails
        if self.M is None:
            self.norm_name = "coordinates"
            return
        self.norm_name = f"the dual of {self.M!r}"
        if self.M.space != g.space:
            raise SpaceMismatch(
                f"SpaceMismatch in {self.call}: the preconditioner lives on {self.M.space}, the form on "
                f"{g.space}. Build the preconditioner on {g.space}, from that space's own samples."
            )
        check_kind(self.M, x, f"{self.call}, preconditioner")
        with degenerate_named(g.space, f"{self.call}, preconditioner"):
            self._factorization = self.M.factorization(x)

    def start(self, x: Tensor) -> Tensor:
        start, space = self._solver.start, self.g.space
        if not isinstance(start, Vector) or start.lives_in != space:
            given = start if isinstance(start, Element) else describe(start)
            raise SpaceMismatch(
                f"SpaceMismatch in {self.call}: start is a vector of {space}, the space of the solution; got {given}."
            )
        v = start.components.to(x)
        if v.shape[:-1] != x.shape[:-1] and v.ndim > 1:
            raise SpaceMismatch(
                f"SpaceMismatch in {self.call}: start is one vector, or one for each covector of the batch "
                f"{list(x.shape[:-1])}; got {start}."
            )
        return v

    def flat(self, v: Tensor) -> Tensor:
        """Of the form to be solved, g - shift * M."""
        y = self.g.flat_components(v)
        if not self.shift:
            return y
        return y - self.shift * (v if self.M is None else self.M.flat_components(v))

    def sharp(self, r: Tensor) -> Tensor:
        """M.sharp, without a preconditioner the identity of the coordinates."""
        return r if self.M is None else self._factorization.solve(r)

    def square(self, r: Tensor, z: Tensor) -> Tensor:
        """|r|² for z = M.sharp(r), checked."""
        square: Tensor = torch.linalg.vecdot(r, z)
        if not bool(square.isfinite().all()):
            raise NonFinite(
                f"NonFinite in {self.call}: products with the form on {self.g.space} overflowed in {r.dtype} or "
                f"came out as NaN. Look for the batch the form was made from, or scale the form."
            )
        if bool((square < 0).any()):
            raise NotAnInnerProduct(
                f"NotAnInnerProduct in {self.call}: the preconditioner {self.M!r} is not positive: a covector on "
                f"{self.g.space} has the square {float(square.min()):.1e}. Give a second moment, or its sum with one."
            )
        return square

    def length(self, r: Tensor) -> Tensor:
        return self.square(r, self.sharp(r)).sqrt()

    def relative(self, r: Tensor, to: Tensor) -> float:
        """The largest |r| / |to| of a batch; a covector that is zero counts as one of length one."""
        scale = largest(to)
        size = self.length(to / scale)
        return float((self.length(r / scale) / torch.where(size > 0, size, torch.ones_like(size))).max())


class IterativeFactor(Factorization):
    """A form with the solver it is solved by. Raises `NotConverged` as the solver does."""

    worth_keeping = False  # nothing went into it, and kept with its form it would be a cycle

    def __init__(self, solver: Iterative, g: Solvable):
        self.solver, self.g, self.dim, self.name = solver, g, g.space.dim, repr(solver)

    def solve(self, x: Tensor) -> Tensor:
        return self.solver.run(self.g, x)[0]

    def solve_columns(self, B: Tensor) -> Tensor:
        return self.solve(B.mT).mT

    def _refuse(self, what: str) -> NoReturn:
        raise NotClosed(
            f"NotClosed in {what}: {self.solver!r} solves with {self.g!r} and knows no more of it. "
            f"Factorize it: solvers.Cholesky(limit={self.dim}).factorize(g)."
        )

    def frame_columns(self, Z: Tensor) -> Tensor:
        self._refuse("frame")

    def coframe_columns(self, B: Tensor) -> Tensor:
        self._refuse("frame")

    @property
    def logdet(self) -> Tensor:
        self._refuse("logdet")
