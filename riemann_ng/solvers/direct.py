"""Solvers that factorize: through the kind's own factorization where it has one, through its matrix where not."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..errors import NotClosed
from ..factorizations import Factorization, WoodburyFactor, factorize_dense
from .base import Solvable, Solver, degenerate_named

DENSE_LIMIT = 8192


def dense(g: Solvable, method: str, like: Tensor | None, limit: int) -> Factorization:
    if g.space.dim > limit:
        raise NotClosed(
            f"NotClosed in {method}: {g.space} has dimension {g.space.dim}, too large for a matrix (limit {limit}). "
            f"Use solvers.CG(...) or solvers.MinresQLP(...), or damp by a form of the same structure."
        )
    return factorize_dense(g.dense_matrix(like), method)


@dataclass(frozen=True)
class Cholesky(Solver):
    """The form's own Cholesky (or QR, for samples); `limit` bounds the dimension of a matrix made for the purpose."""

    limit: int = DENSE_LIMIT

    def factorize(self, g: Solvable, like: Tensor | None = None) -> Factorization:
        return g.direct_factorization("cholesky") or dense(g, "cholesky", like, self.limit)


@dataclass(frozen=True)
class Eigen(Solver):
    """As `Cholesky`, by eigendecompositions at unit diagonal: ten times slower, and an account of the spectrum."""

    limit: int = DENSE_LIMIT

    def factorize(self, g: Solvable, like: Tensor | None = None) -> Factorization:
        return g.direct_factorization("eigen") or dense(g, "eigen", like, self.limit)


@dataclass(frozen=True)
class Dual(Solver):
    """For B + RᵀR with few rows R: a system as large as their number (Woodbury, the kernel trick)."""

    def factorize(self, g: Solvable, like: Tensor | None = None) -> Factorization:
        own = g.dual_factorization()
        if own is not None:
            return own
        parts = g.low_rank_parts()
        if parts is None:
            raise NotClosed(
                f"NotClosed in Dual: the form on {g.space} is not a low-rank form plus a definite one. "
                f"Add a named damping, second_moment(sample) + λ * h."
            )
        base, rows = parts
        with degenerate_named(g.space, "Dual, the part beside the low-rank one"):
            return WoodburyFactor(Cholesky().factorize(base, rows), rows)
