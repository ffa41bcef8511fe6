"""What a solver is, and all that it may know of an inner product.

A solver sees structure, not origin: the abstract face `Solvable`, never a kind. `factorize` does the work that is
worth keeping; the factorization then solves any number of covectors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, is_dataclass
from math import isfinite
from typing import Protocol

import torch
from torch import Tensor

from ..elements import Element, Vector, describe
from ..errors import DegenerateMetric, DtypeMismatch, InvalidSetting, NonFinite, NotAnInnerProduct, SpaceMismatch
from ..factorizations import Factorization, Indefinite, NotFinite, RankDeficient, TooNarrow, rounding_unit
from ..spaces import VectorSpace
from ..symmetry import Symmetry
from .stages import Stages

WAYS_OUT = (
    "Three ways out: damp it by a named inner product, g + λ * h; take the h-shortest of the solutions, "
    "g.sharp_modulo_kernel(ξ, reference=h); or leave the kernel out, g.quotient(kernel)."
)


@dataclass(frozen=True)
class Structure:
    """What a solver may know of a form before it chooses.

    `direct` is the cost in flops of the kind's own factorization (None: it has none), `apply` that of one `flat`,
    `rank` a bound on the rank, `low_rank` the number of rows of a low-rank part beside a definite one (None: not of
    that form), `dual` the cost of solving through these where the form has a way of its own to do that.
    """

    kind: str
    dim: int
    direct: float | None
    apply: float
    rank: int
    low_rank: int | None = None
    dual: float | None = None


class Solvable(Protocol):
    """The face that inner products show to solvers, also those that a solver takes as a preconditioner."""

    @property
    def space(self) -> VectorSpace: ...

    @property
    def structure(self) -> Structure: ...

    @property
    def symmetry(self) -> Symmetry: ...

    @property
    def dtype(self) -> torch.dtype | None: ...

    @property
    def device(self) -> torch.device | None: ...

    def flat_components(self, x: Tensor) -> Tensor:
        """`flat` on components (..., dim)."""
        ...

    def direct_factorization(self, method: str) -> Factorization | None:
        """The kind's own factorization by "cholesky" or "eigen", None if it has none."""
        ...

    def factorization(self, like: Tensor | None = None) -> Factorization:
        """What `Auto` makes of the form, kept with it."""
        ...

    def dense_matrix(self, like: Tensor | None = None) -> Tensor: ...

    def low_rank_parts(self) -> tuple[Solvable, Tensor] | None:
        """A definite form B and rows R with the form equal to B + RᵀR, None if it is not of that kind."""
        ...

    def dual_factorization(self) -> Factorization | None:
        """Where the form knows such rows without writing them down, its factorization through their kernel."""
        ...

    def stages(self) -> Stages | None:
        """The form as the cost of a chain of stages, None if it is not known as one."""
        ...


@dataclass(frozen=True)
class SolveReport:
    """What a solver did: how many iterations, and the residual |flat(v) - ξ| / |ξ|, measured when it was done.

    `norm` says in which norm of covectors; of a batch it is the largest residual. `converged` says whether the
    residual, or for least squares its gradient, met the tolerance; a solve that was to end after so many steps may
    say no. The tolerance of a factorization is the root of the rounding unit.
    """

    solver: str
    residual: float
    iterations: int = 0
    converged: bool = True
    note: str = ""
    norm: str = "coordinates"

    def __str__(self) -> str:
        steps = f", {self.iterations} iterations" if self.iterations else ""
        note = f", {self.note}" if self.note else ""
        return f"{self.solver}: residual {self.residual:.1e} in the norm of {self.norm}{steps}{note}"


@dataclass(frozen=True)
class Solution:
    value: Vector
    report: SolveReport


class Solver(ABC):
    """How a sharp is computed. A value: its fields are its settings, and its repr shows them all.

    Laws: `flat(solve(g, ξ).value) == ξ` up to the residual reported; a batch is solved as its elements one by one;
    a value is only returned where the solver did what it was asked to, otherwise it raises.
    """

    @abstractmethod
    def factorize(self, g: Solvable, like: Tensor | None = None) -> Factorization:
        """The reusable part of the work; `like` gives dtype and device where the form has none of its own."""

    def solve(self, g: Solvable, covector: Element) -> Solution:
        """The vector v with flat(v) = ξ, and an account of how it was found."""
        call = f"{type(self).__name__}.solve"
        x = checked_covector(g, covector, call)
        check_kind(g, x, call)
        with degenerate_named(g.space, call):
            value, report = self.run(g, x)
        return Solution(Vector._of(g.space, value.reshape(*x.shape[:-1], *g.space.shape)), report)

    def prepare(self, g: Solvable, like: Tensor | None = None) -> Prepared:
        """`factorize` for typed covectors: the work that is worth keeping is done here, once."""
        with degenerate_named(g.space, f"{type(self).__name__}.prepare"):
            return Prepared(self, g, self.factorize(g, like))

    def run(self, g: Solvable, x: Tensor) -> tuple[Tensor, SolveReport]:
        """The solution for flat components x (..., dim), and the account."""
        factorization = self.factorize(g, x)
        value = factorization.solve(x)
        residual = relative_residual(g, value, x)
        converged = residual <= rounding_unit(x.dtype) ** 0.5
        return value, SolveReport(self.brief, residual, converged=converged, note=factorization.name)

    @property
    def brief(self) -> str:
        """The solver with the settings that are not the usual ones."""
        if not is_dataclass(self):
            return repr(self)
        settings = ((f.name, getattr(self, f.name), f.default) for f in fields(self))
        unusual = ", ".join(f"{name}={x!r}" for name, x, usual in settings if x is not usual and x != usual)
        return f"{type(self).__name__}({unusual})"

    def symmetry_of(self, g: Solvable) -> Symmetry:
        """The symmetry of the form as this solver inverts it: that of g, unless what the solver names shows."""
        return g.symmetry


@dataclass(frozen=True, eq=False)
class Prepared:
    """A form as a solver made it ready, for any number of covectors; later changes of the form do not reach it."""

    solver: Solver
    g: Solvable
    factorization: Factorization

    def sharp(self, covector: Element) -> Vector:
        """The vector v with flat(v) = ξ."""
        call = f"{self.solver.brief}, prepared"
        x = checked_covector(self.g, covector, call)
        check_kind(self.g, x, call)
        with degenerate_named(self.g.space, call):
            value = self.factorization.solve(x)
        return Vector._of(self.g.space, value.reshape(*x.shape[:-1], *self.g.space.shape))


def check_solver(solver: object, call: str) -> None:
    if not isinstance(solver, Solver):
        given = f"the class {solver.__name__}" if isinstance(solver, type) else describe(solver)
        raise InvalidSetting(f"InvalidSetting in {call}: expected a solver, as solvers.CG(1e-6), got {given}.")


def relative_residual(g: Solvable, value: Tensor, x: Tensor) -> float:
    """The largest |flat(v) - ξ| / |ξ| of a batch, in the coordinates."""
    if not x.numel():
        return 0.0
    scale = largest(x)
    size = torch.linalg.vector_norm(x / scale, dim=-1)
    residual = torch.linalg.vector_norm((g.flat_components(value) - x) / scale, dim=-1)
    return float((residual / torch.where(size > 0, size, torch.ones_like(size))).max())


def largest(x: Tensor) -> Tensor:
    """The size of the largest component, (..., 1), one for zero: by it x is divided before it is squared."""
    size = x.detach().abs().amax(-1, keepdim=True)
    return torch.where(size > 0, size, torch.ones_like(size))


def checked_covector(g: Solvable, covector: Element, call: str) -> Tensor:
    """The flat components of a finite covector on the form's space."""
    check_covector(g, covector, call)
    check_finite(covector, call)
    return covector.components


def check_covector(g: Solvable, covector: Element, call: str) -> None:
    dual = g.space.dual
    if not isinstance(covector, Element) or (covector.lives_in is not dual and covector.lives_in != dual):
        given = covector if isinstance(covector, Element) else describe(covector)
        raise SpaceMismatch(
            f"SpaceMismatch in {call}: expected a covector on {g.space}, got {given}.\n"
            f"Gradients from autograd are covectors: wrap them with Covector(space, grad)."
        )


def check_finite(covector: Element, call: str) -> None:
    x = covector.data
    # the sum first: `Tensor.isfinite` takes as long as a small solve
    if not isfinite(float(x.detach().sum())) and not bool(x.isfinite().all()):
        raise NonFinite(
            f"NonFinite in {call}: {covector} holds NaN or infinity. Look for the layer and the batch it came from."
        )


def check_kind(g: Solvable, x: Tensor, call: str) -> None:
    if g.dtype not in (None, x.dtype) or g.device not in (None, x.device):
        raise DtypeMismatch(
            f"DtypeMismatch in {call}: a covector on {g.space} in {x.dtype} on {x.device} with {g!r} in {g.dtype} on "
            f"{g.device}. Bring one to the other with .to(...)."
        )


class degenerate_named:
    """Turns the short causes of the numbers into errors that name the space and the ways out."""

    def __init__(self, space: VectorSpace, call: str):
        self.space, self.call = space, call

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RankDeficient):
            raise DegenerateMetric(
                f"DegenerateMetric in {self.call}: the form on {self.space} has {error}. {WAYS_OUT}",
                self.space,
                error.rank,
            ) from None
        if isinstance(error, Indefinite):
            raise NotAnInnerProduct(
                f"NotAnInnerProduct in {self.call}: the form on {self.space} is indefinite ({error}). "
                f"An inner product is positive; a second moment, or its sum with one, always is."
            ) from None
        if isinstance(error, TooNarrow):
            raise DtypeMismatch(
                f"DtypeMismatch in {self.call}: the form on {self.space} is in {error}, too narrow to factorize. "
                f"Make it in float32 or wider, of tensors brought there with .to(...)."
            ) from None
        if isinstance(error, NotFinite):
            raise NonFinite(
                f"NonFinite in {self.call}: the form on {self.space} holds NaN or infinity. "
                f"Look for the layer and the batch it was made from."
            ) from None
