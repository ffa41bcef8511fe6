"""What a factorization is, and the short causes of its failures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor


@cache
def rounding_unit(dtype: torch.dtype) -> float:
    """`torch.finfo(dtype).eps`, which takes longer to ask for than a small solve."""
    return float(torch.finfo(dtype).eps)


class RankDeficient(Exception):
    """The short cause that the public call turns into DegenerateMetric."""

    def __init__(self, rank: int, dim: int):
        super().__init__(f"rank {rank} of {dim}")
        self.rank, self.dim = rank, dim


class Indefinite(Exception):
    """The short cause that the public call turns into NotAnInnerProduct."""

    def __init__(self, lowest: float, highest: float):
        super().__init__(f"eigenvalues, at unit diagonal, from {lowest:.2e} to {highest:.2e}")


class NotFinite(Exception):
    """The short cause that the public call turns into NonFinite."""


class TooNarrow(Exception):
    """The short cause that the public call turns into DtypeMismatch."""

    def __init__(self, dtype: torch.dtype):
        super().__init__(f"{dtype}")


def check_width(matrix: Tensor) -> None:
    """Sixteen bits hold data, not what is solved: torch factorizes nothing in them."""
    if matrix.dtype in (torch.float16, torch.bfloat16):
        raise TooNarrow(matrix.dtype)


class Factorization(ABC):
    """M⁻¹ and a root of it, for a symmetric positive matrix M of dimension `dim`.

    Elements are rows (..., dim) in `solve`, `frame` and `coframe`, columns (dim, m) in the methods called so, of
    which the structured kinds are made. A matrix (m, d, d) stands for a block-diagonal one of dimension m d.

    Laws, each tested against the dense matrix: `M solve(x) == x`; `frame(coframe(x)) == solve(x)`; `coframe` is the
    transpose of `frame`; `logdet == log det M`; a batch is solved row by row.
    """

    dim: int
    name: str
    worth_keeping: bool = True
    """Whether work went into making it; one that only remembers a form and a solver need not be kept."""

    @abstractmethod
    def solve_columns(self, B: Tensor) -> Tensor:
        """M⁻¹B for B (dim, m)."""

    @abstractmethod
    def frame_columns(self, Z: Tensor) -> Tensor:
        """E Z, with E Eᵀ = M⁻¹."""

    @abstractmethod
    def coframe_columns(self, B: Tensor) -> Tensor:
        """Eᵀ B."""

    @property
    @abstractmethod
    def logdet(self) -> Tensor: ...

    def solve(self, x: Tensor) -> Tensor:
        return by_rows(self.solve_columns, x)

    def solve_shaped(self, x: Tensor, rank: int) -> Tensor:
        """`solve` of elements whose last `rank` dimensions are the components."""
        return self.solve(x) if rank == 1 else self.solve(x.flatten(-rank)).reshape(x.shape)

    def for_many_solves(self) -> Factorization:
        """The same, solving by products with explicit inverses where that is faster in the long run.

        For one element a product and two triangular solves take as many flops, and the product runs at several times
        the speed. Making the inverse costs twice a Cholesky factorization.
        """
        return self

    def frame(self, z: Tensor) -> Tensor:
        return by_rows(self.frame_columns, z)

    def coframe(self, x: Tensor) -> Tensor:
        return by_rows(self.coframe_columns, x)


class RowFactorization(Factorization):
    """One that works on rows: a kind writes `solve`, `frame` and `coframe`, and columns follow."""

    @abstractmethod
    def solve(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def frame(self, z: Tensor) -> Tensor: ...

    @abstractmethod
    def coframe(self, x: Tensor) -> Tensor: ...

    def solve_columns(self, B: Tensor) -> Tensor:
        return self.solve(B.mT).mT

    def frame_columns(self, Z: Tensor) -> Tensor:
        return self.frame(Z.mT).mT

    def coframe_columns(self, B: Tensor) -> Tensor:
        return self.coframe(B.mT).mT


def by_rows(columns: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A map of columns applied to rows (..., dim)."""
    return columns(x.reshape(-1, x.shape[-1]).mT).mT.reshape(x.shape)


def triangle(rows: Tensor) -> Tensor:
    """The R of a QR, differentiable where the rows are: torch's mode "r" is not."""
    check_width(rows)
    R: Tensor = torch.linalg.qr(rows, mode="reduced" if rows.requires_grad else "r")[1]
    return R


def solve_triangular(L: Tensor, B: Tensor, upper: bool, left: bool = True) -> Tensor:
    solved: Tensor = torch.linalg.solve_triangular(L, B, upper=upper, left=left)
    return solved
