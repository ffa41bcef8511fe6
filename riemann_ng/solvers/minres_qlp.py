"""MINRES-QLP (Choi, Paige and Saunders, SIAM J. Sci. Comput. 33, 2011): symmetric systems, singular ones too.

Lanczos, in the geometry of the preconditioner M, turns g into a tridiagonal T = Vᵀ g V with VᵀM V = 1. Reflections
from the left make T upper triangular, reflections from the right make that lower triangular, L. The last unknowns
of L u = t stay provisional for two steps; where a pivot of L vanishes its unknown is zero, and this is what makes
the solution the shortest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import hypot

import torch
from torch import Tensor

from ..errors import InvalidSetting
from ..factorizations import rounding_unit
from ..symmetry import Symmetry
from .base import Solvable, SolveReport
from .iterative import Iterative, Problem, up_to_scale


@dataclass(frozen=True)
class MinresQLP(Iterative):
    """For (g - shift * M) v = ξ with g symmetric, indefinite or singular; M is the preconditioner or the
    coordinates' form.

    Where the system is singular and ξ vanishes on the kernel, the solution is the one closest to `start` (to zero)
    for M. Where ξ does not vanish there, the system has no solution: `NotConverged`, unless `least_squares=True`
    asks for the v closest to `start` of all with |ξ - (g - shift * M) v| least, in the norm of M's dual. This takes
    two solves, one that splits off the part of ξ on the kernel and one for the rest: a single one stops at the root
    of the rounding unit.

    condition_limit  gives up where the condition number met exceeds it, or a tenth of what the precision can hold.
    """

    shift: float = 0.0
    condition_limit: float = 1e14
    least_squares: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.condition_limit > 1:
            raise InvalidSetting(
                f"InvalidSetting in MinresQLP: condition_limit is above 1, got {self.condition_limit!r}."
            )
        if not abs(self.shift) < float("inf"):
            raise InvalidSetting(f"InvalidSetting in MinresQLP: shift is a finite number, got {self.shift!r}.")

    def symmetry_of(self, g: Solvable) -> Symmetry:
        """A shift is a multiple of the measure, and of many solutions the measure picks one, whatever its scale."""
        symmetry, measure = super().symmetry_of(g), self.measure(g)
        if self.least_squares or g.structure.rank < g.space.dim:
            symmetry = symmetry * up_to_scale(measure)
        return symmetry + measure if self.shift else symmetry

    def problem(self, g: Solvable, x: Tensor) -> Problem:
        return Problem(self, g, x, self.shift)

    def iterate(self, problem: Problem, xi: Tensor, start: Tensor | None) -> tuple[Tensor, SolveReport]:
        if not self.least_squares:
            return super().iterate(problem, xi, start)
        exactly = replace(self, least_squares=False)
        image = problem.flat(problem.sharp(xi))
        across, first = exactly.solve_rows(problem, image, None)  # M⁻¹ξ without its part in the kernel
        flat_across = across if problem.M is None else problem.M.flat_components(across)
        value, second = exactly.solve_rows(problem, flat_across, start)
        r = xi - problem.flat(value)
        gradient = problem.relative(problem.flat(problem.sharp(r)), image)
        return value, SolveReport(
            self.brief,
            problem.relative(r, xi),
            first.iterations + second.iterations,
            first.converged and second.converged,
            f"least squares: the residual's gradient g M⁻¹ r is {gradient:.1e} of what it was",
            problem.norm_name,
        )

    def correct(self, problem: Problem, r: Tensor, target: Tensor, steps: int) -> tuple[Tensor, int, Tensor | None]:
        columns = [self._column(problem, *each, steps) for each in zip(r, target.tolist(), strict=True)]
        return torch.stack([value for value, _ in columns]), max(taken for _, taken in columns), None

    def _column(self, problem: Problem, z: Tensor, target: float, steps: int) -> tuple[Tensor, int]:
        process, truncated = Lanczos(problem, z), self.iterations is not None
        phi, settled = process.beta, torch.zeros_like(z)
        if phi == 0 or (phi <= target and not truncated):
            return settled, 0
        eps = rounding_unit(z.dtype)
        limit, flattest = min(self.condition_limit, 0.1 / eps), 1.0
        older, old, row = Row(settled), Row(settled), Row(settled)  # none so far: their reflections are trivial
        c, s, delta, epsilon = -1.0, 0.0, 0.0, 0.0
        highest, lowest, u3, u4 = 0.0, float("inf"), 0.0, 0.0
        for k in range(1, steps + 1):
            v, alpha, beta = process.step()
            # from the left: the column of T becomes (fill, above, pivot), a column of an upper triangle
            above, pivot = c * delta + s * alpha, s * delta - c * alpha
            delta, epsilon, fill = -c * beta, s * beta, epsilon
            flattest = min(flattest, hypot(pivot, delta) / process.norm)  # |g M⁻¹ r| / |g| |r|, of the last residual
            pivot, c, s = _reflection(pivot, beta)
            older, old, row = old, row, Row(v, tau=c * phi)
            phi *= s
            # from the right: columns k - 2 and k, then k - 1 and k, of the triangle and of the basis
            older.gamma, c2, s2 = _reflection(older.gamma, fill)
            old.theta, above = c2 * old.theta + s2 * above, s2 * old.theta - c2 * above
            row.eta, pivot = s2 * pivot, -c2 * pivot
            older.w, row.w = c2 * older.w + s2 * row.w, s2 * older.w - c2 * row.w
            old.gamma, c1, s1 = _reflection(old.gamma, above)
            row.theta, row.gamma = s1 * pivot, -c1 * pivot
            old.w, row.w = c1 * old.w + s1 * row.w, s1 * old.w - c1 * row.w
            # L u = t by substitution; only the unknown of the older row is final
            highest = max(highest, *(abs(each.gamma) for each in (older, old, row)))
            u2 = older.unknown(u4, u3, eps * highest)
            u1 = old.unknown(u3, u2, eps * highest)
            u0 = row.unknown(u2, u1, eps * highest)
            settled = settled + u2 * older.w
            u3, u4 = u2, u3
            if k > 2:
                lowest = min(lowest, abs(older.gamma))
            ill = highest > limit * lowest
            if beta == 0 or ((phi <= target or ill) and not truncated):
                break
        if phi > target and flattest < 10 * eps**0.5:
            problem.note = INCOMPATIBLE
        elif phi > target and ill:
            problem.note = f"The condition number met is {highest / lowest:.1e}: damp the form, or raise the limit."
        return settled + u1 * old.w + u0 * row.w, k


INCOMPATIBLE = (
    "The residual that is left lies in the kernel, as far as can be told: the covector does not vanish there, and "
    "there is no solution. Ask for MinresQLP(least_squares=True), damp the form by a named inner product, g + λ * h, "
    "or, if only rounding brought that part in, ask for a larger tolerance."
)


class Row:
    """A row (eta, theta, gamma) of the lower triangle, its right-hand side, and the basis vector of its unknown."""

    __slots__ = ("eta", "gamma", "tau", "theta", "w")

    def __init__(self, w: Tensor, tau: float = 0.0):
        self.w, self.tau = w, tau
        self.eta = self.theta = self.gamma = 0.0

    def unknown(self, second_last: float, last: float, floor: float) -> float:
        if abs(self.gamma) <= floor:
            return 0.0
        return (self.tau - self.eta * second_last - self.theta * last) / self.gamma


class Lanczos:
    """Vectors v₁, v₂, ... orthonormal for M with g v_k = β_k M v_(k-1) + α_k M v_k + β_(k+1) M v_(k+1)."""

    def __init__(self, problem: Problem, z: Tensor):
        self.problem, self.z, self.before = problem, z, torch.zeros_like(z)
        self.q = problem.sharp(z)
        self.beta = float(problem.square(z, self.q).sqrt())
        self.norm = 0.0  # of g, from below

    def step(self) -> tuple[Tensor, float, float]:
        """v_k, α_k and β_(k+1); the last is zero where the process has come to its end."""
        v, flat_v = self.q / self.beta, self.z / self.beta
        p = self.problem.g.flat_components(v) - self.problem.shift * flat_v
        alpha = float(torch.linalg.vecdot(p, v))
        self.z = p - alpha * flat_v - self.beta * self.before
        self.q = self.problem.sharp(self.z)
        beta = float(self.problem.square(self.z, self.q).sqrt())
        self.norm = max(self.norm, hypot(self.beta if bool(self.before.any()) else 0.0, alpha, beta))
        if beta <= 10 * rounding_unit(p.dtype) * self.norm:
            beta = 0.0
        self.before, self.beta = flat_v, beta
        return v, alpha, beta


def _reflection(a: float, b: float) -> tuple[float, float, float]:
    """r, c, s of the reflection [[c, s], [s, -c]] that takes (a, b) to (r, 0)."""
    r = hypot(a, b)
    return (r, a / r, b / r) if r else (0.0, 1.0, 0.0)
