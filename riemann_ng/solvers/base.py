"""What a solver is, and all that it may know of an inner product.

A solver sees structure, not origin: the abstract face `Solvable`, never a kind. `factorize` does the work that is worth
keeping; the factorization then solves any number of covectors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..elements import Element, Vector
from ..errors import DegenerateMetric, NonFinite, NotAnInnerProduct, SpaceMismatch
from ..factorizations import Factorization, Indefinite, RankDeficient
from ..spaces import VectorSpace

WAYS_OUT = (
    "Three ways out: damp it by a named inner product, g + λ * h; take the h-shortest of the solutions, "
    "g.sharp_modulo_kernel(ξ, reference=h); or leave the kernel out, g.quotient(kernel)."
)


@dataclass(frozen=True)
class Structure:
    """What a solver may know of a form before it chooses.

    `direct` is the cost in flops of the kind's own factorization (None: it has none), `apply` that of one `flat`, `rank`
    a bound on the rank, `low_rank` the number of rows of a low-rank part beside a definite one (None: not of that form).
    """

    kind: str
    dim: int
    direct: float | None
    apply: float
    rank: int
    low_rank: int | None = None


class Solvable(Protocol):
    """The face that inner products show to solvers."""

    @property
    def space(self) -> VectorSpace: ...

    @property
    def structure(self) -> Structure: ...

    def flat_components(self, x: Tensor) -> Tensor:
        """`flat` on components (..., dim)."""
        ...

    def direct_factorization(self, method: str) -> Factorization | None:
        """The kind's own factorization by "cholesky" or "eigen", None if it has none."""
        ...

    def dense_matrix(self, like: Tensor | None = None) -> Tensor: ...

    def low_rank_parts(self) -> tuple[Solvable, Tensor] | None:
        """A definite form B and rows R with the form equal to B + RᵀR, None if it is not of that kind."""
        ...


@dataclass(frozen=True)
class SolveReport:
    """What a solver did: how many iterations, and the residual |flat(v) - ξ| / |ξ| it measured in the coordinates."""

    solver: str
    residual: float
    iterations: int = 0
    converged: bool = True
    note: str = ""

    def __str__(self) -> str:
        steps = f", {self.iterations} iterations" if self.iterations else ""
        return f"{self.solver}: residual {self.residual:.1e}{steps}{', ' + self.note if self.note else ''}"


@dataclass(frozen=True)
class Solution:
    value: Vector
    report: SolveReport


class Solver(ABC):
    """How a sharp is computed. A value: its fields are its settings and show in its repr."""

    @abstractmethod
    def factorize(self, g: Solvable, like: Tensor | None = None) -> Factorization:
        """The reusable part of the work; `like` gives dtype and device where the form has none of its own."""

    def solve(self, g: Solvable, covector: Element) -> Solution:
        """The vector v with flat(v) = ξ, and an account of how it was found. Raises rather than return a wrong one."""
        x = checked_covector(g, covector, f"{type(self).__name__}.solve")
        with degenerate_named(g.space, f"{type(self).__name__}.solve"):
            value, iterations, note = self.run(self.factorize(g, x), x)
        residual = relative_residual(g, value, x)
        vector = Vector._of(g.space, value.reshape(*x.shape[:-1], *g.space.shape))
        return Solution(vector, SolveReport(repr(self), residual, iterations, note=note))

    def run(self, factorization: Factorization, x: Tensor) -> tuple[Tensor, int, str]:
        """The solution with the number of iterations and a word on what was done."""
        return factorization.solve(x), 0, factorization.name


def relative_residual(g: Solvable, value: Tensor, x: Tensor) -> float:
    size = float(x.norm())
    return float((g.flat_components(value) - x).norm()) / size if size else 0.0


def checked_covector(g: Solvable, covector: Element, call: str) -> Tensor:
    dual = g.space.dual
    if not isinstance(covector, Element) or (covector.lives_in is not dual and covector.lives_in != dual):
        raise SpaceMismatch(
            f"SpaceMismatch in {call}: expected a covector on {g.space}, got {covector}.\n"
            f"Gradients from autograd are covectors: wrap them with Covector(space, grad)."
        )
    x = covector.components
    if not bool(x.sum().isfinite()) and not bool(x.isfinite().all()):
        raise NonFinite(f"NonFinite in {call}: {covector} holds NaN or infinity. Look for the layer and the batch it came from.")
    return x


class degenerate_named:
    """Turns the short causes of the numbers into errors that name the space and the ways out."""

    def __init__(self, space: VectorSpace, call: str):
        self.space, self.call = space, call

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RankDeficient):
            raise DegenerateMetric(
                f"DegenerateMetric in {self.call}: the form on {self.space} has {error}. {WAYS_OUT}", self.space, error.rank
            ) from None
        if isinstance(error, Indefinite):
            raise NotAnInnerProduct(
                f"NotAnInnerProduct in {self.call}: the form on {self.space} is indefinite ({error}). "
                f"An inner product is positive; a second moment, or its sum with one, always is."
            ) from None
