"""Factorizations made of others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from .base import Factorization, RowFactorization, check_width, solve_triangular, triangle

Columns = Callable[[Tensor], Tensor]


class ScaledFactor(Factorization):
    """A positive multiple."""

    def __init__(self, scalar: float | Tensor, of: Factorization):
        self.scalar, self.of, self.dim, self.name = scalar, of, of.dim, of.name

    def solve_columns(self, B: Tensor) -> Tensor:
        return self.of.solve_columns(B) / self.scalar

    def solve(self, x: Tensor) -> Tensor:
        return self.of.solve(x) / self.scalar

    def for_many_solves(self) -> Factorization:
        return ScaledFactor(self.scalar, self.of.for_many_solves())

    def frame_columns(self, Z: Tensor) -> Tensor:
        return self.of.frame_columns(Z) / self.scalar**0.5

    def coframe_columns(self, B: Tensor) -> Tensor:
        return self.of.coframe_columns(B) / self.scalar**0.5

    @property
    def logdet(self) -> Tensor:
        logdet = self.of.logdet
        return logdet + self.dim * torch.as_tensor(self.scalar, dtype=logdet.dtype, device=logdet.device).log()


class InverseFactor(Factorization):
    """The factorization of M⁻¹ where M itself is at hand, as `multiply` on rows: solving is multiplying."""

    name = "inverse"

    def __init__(self, multiply: Callable[[Tensor], Tensor], of: Factorization):
        self.multiply, self.of, self.dim = multiply, of, of.dim

    def solve(self, x: Tensor) -> Tensor:
        return self.multiply(x)

    def solve_columns(self, B: Tensor) -> Tensor:
        return self.multiply(B.mT).mT

    def frame_columns(self, Z: Tensor) -> Tensor:
        return self.multiply(self.of.frame_columns(Z).mT).mT  # E⁻ᵀ = M E, since E Eᵀ = M⁻¹

    def coframe_columns(self, B: Tensor) -> Tensor:
        return self.of.coframe_columns(self.multiply(B.mT).mT)

    @property
    def logdet(self) -> Tensor:
        return -self.of.logdet


class BlockFactor(Factorization):
    """Blocks along the diagonal, one after the other."""

    name = "blocks"

    def __init__(self, blocks: Sequence[Factorization]):
        self.blocks, self.sizes = list(blocks), [block.dim for block in blocks]
        self.dim = sum(self.sizes)

    def for_many_solves(self) -> Factorization:
        return BlockFactor([block.for_many_solves() for block in self.blocks])

    def _each(self, maps: Sequence[Columns], B: Tensor) -> Tensor:
        return torch.cat([columns(piece) for columns, piece in zip(maps, B.split(self.sizes), strict=True)])

    def solve_columns(self, B: Tensor) -> Tensor:
        return self._each([block.solve_columns for block in self.blocks], B)

    def frame_columns(self, Z: Tensor) -> Tensor:
        return self._each([block.frame_columns for block in self.blocks], Z)

    def coframe_columns(self, B: Tensor) -> Tensor:
        return self._each([block.coframe_columns for block in self.blocks], B)

    @property
    def logdet(self) -> Tensor:
        return sum((block.logdet for block in self.blocks[1:]), self.blocks[0].logdet)


class KroneckerFactor(RowFactorization):
    """A tensor product of factorizations; with `members`, one product for each member of a family.

    A factor of dimension `d` is common to all members, one of dimension `members * d` has its own block for each.
    """

    def __init__(self, factors: Sequence[Factorization], dims: Sequence[int], members: int = 1):
        self.factors, self.dims, self.members = list(factors), list(dims), members
        self.dim = members * prod(dims)
        self.name = " ⊗ ".join(f.name for f in factors)

    def for_many_solves(self) -> Factorization:
        return KroneckerFactor([f.for_many_solves() for f in self.factors], self.dims, self.members)

    def _each(self, maps: Sequence[Columns], x: Tensor) -> Tensor:
        y = x.reshape(-1, self.members, *self.dims)
        for axis, (columns, factor, d) in enumerate(zip(maps, self.factors, self.dims, strict=True), start=2):
            own = factor.dim != d or self.members == 1  # (members, axis, ...) as columns of (members * d)
            moved = y.movedim((1, axis), (0, 1)) if own else y.movedim(axis, 0)
            moved = columns(moved.reshape(factor.dim, -1)).reshape(moved.shape)
            y = moved.movedim((0, 1), (1, axis)) if own else moved.movedim(0, axis)
        return y.reshape(x.shape)

    def solve(self, x: Tensor) -> Tensor:
        if len(self.dims) == 2 and self.members == 1 and x.numel() == self.dim:
            return self.solve_shaped(x.reshape(self.dims), 2).reshape(x.shape)
        return self._each([f.solve_columns for f in self.factors], x)

    def solve_shaped(self, x: Tensor, rank: int) -> Tensor:
        if x.ndim == rank == len(self.dims) == 2 and self.members == 1:
            left, right = self.factors  # one element: a solve from each side and nothing else
            return right.solve(left.solve_columns(x))
        return super().solve_shaped(x, rank)

    def frame(self, z: Tensor) -> Tensor:
        return self._each([f.frame_columns for f in self.factors], z)

    def coframe(self, x: Tensor) -> Tensor:
        return self._each([f.coframe_columns for f in self.factors], x)

    @property
    def logdet(self) -> Tensor:
        parts = [f.logdet * (self.dim // f.dim) for f in self.factors]
        return sum(parts[1:], parts[0])


class WoodburyFactor(Factorization):
    """M = B + RᵀR with B definite and R of few rows.

    With B⁻¹ = E Eᵀ and the QR of EᵀRᵀ = Q T, M⁻¹ = E (1 - Q Qᵀ + Q (1 + T Tᵀ)⁻¹ Qᵀ) Eᵀ. The two parts are kept
    apart: the textbook's difference B⁻¹ - B⁻¹Rᵀ(1 + R B⁻¹Rᵀ)⁻¹R B⁻¹ cancels to noise where B is tiny beside RᵀR,
    which is what a small damping makes. 1 + T Tᵀ is never formed either.
    """

    name = "Woodbury"

    def __init__(self, base: Factorization, rows: Tensor):
        self.base, self.dim = base, base.dim
        check_width(rows)
        Q, T = torch.linalg.qr(base.coframe(rows).mT)
        self.Q: Tensor = Q
        stacked = torch.cat([T.mT, torch.eye(len(T), dtype=T.dtype, device=T.device)])
        self.C = triangle(stacked).mT  # C Cᵀ = 1 + T Tᵀ, C lower triangular

    def _apart(self, Z: Tensor) -> tuple[Tensor, Tensor]:
        """Z as a part orthogonal to Q and its coordinates along Q; projected twice, once leaves rounding along Q."""
        along = self.Q.mT @ Z
        across = Z - self.Q @ along
        return across - self.Q @ (self.Q.mT @ across), along

    def solve_columns(self, B: Tensor) -> Tensor:
        return self.frame_columns(self.coframe_columns(B))

    def frame_columns(self, Z: Tensor) -> Tensor:
        across, along = self._apart(Z)
        return self.base.frame_columns(across + self.Q @ solve_triangular(self.C.mT, along, upper=True))

    def coframe_columns(self, B: Tensor) -> Tensor:
        across, along = self._apart(self.base.coframe_columns(B))
        return across + self.Q @ solve_triangular(self.C, along, upper=False)

    @property
    def logdet(self) -> Tensor:
        return self.base.logdet + 2 * self.C.diagonal().abs().log().sum()
