"""A definite form plus one of few rows, solved through a matrix as large as these are many."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from .base import Factorization, NotFinite, RankDeficient, RowFactorization, rounding_unit
from .making import tolerance_of

Action = Callable[[Tensor], Tensor]


LOST = 1e-3
"""Where K times the rounding unit exceeds this, the identity beside it is lost but for double precision."""


class DualFactor(RowFactorization):
    """M = R + BᵀB with R definite, B known by its products and K = B R⁻¹ Bᵀ by its entries.

    The textbook's M⁻¹ξ = R⁻¹ξ - R⁻¹Bᵀ(1 + K)⁻¹B R⁻¹ξ cancels where R is small, by a factor as large as K. Where that
    shows, the residual is measured and solved for once more. Where it would be too much for this, another form of the
    same is used, true for every u:

        R⁻¹ (ξ' + Bᵀ (1 + K)⁻¹ (u - B R⁻¹ ξ')),  ξ' = ξ - Bᵀu.

    With u = (K + δ)⁻¹ B R⁻¹ξ next to nothing of ξ is left in ξ' that B sees, and nothing cancels. δ is rounding beside
    the largest entry of K.

    `push` is B on rows (..., dim), `pull` its transpose, `flat` M; `unit` is their rounding unit. K may be wider.
    """

    name = "dual"

    def __init__(self, base: Factorization, flat: Action, push: Action, pull: Action, K: Tensor, unit: float):
        self.base, self.flat, self.push, self.pull, self.K, self.dim = base, flat, push, pull, K, base.dim
        largest = K.diagonal().max()
        if not bool(largest.isfinite()):
            raise NotFinite
        cancels = float(largest) * unit
        self.refined, self.split = bool(largest > 8), cancels > LOST
        self.L = shifted_cholesky(K, 1.0)
        self.S = shifted_cholesky(K, max(unit, 4 * rounding_unit(K.dtype) * len(K)) * float(largest), self.split)

    def _small(self, L: Tensor, y: Tensor) -> Tensor:
        """The system of the rows, for y (..., rows)."""
        wide = y.to(L.dtype).reshape(-1, y.shape[-1])
        return torch.cholesky_solve(wide.mT, L).mT.reshape(y.shape).to(y.dtype)

    def solve(self, x: Tensor) -> Tensor:
        once = self._split if self.split else self._plain
        value = once(x)
        return value + once(x - self.flat(value)) if self.refined else value

    def _plain(self, x: Tensor) -> Tensor:
        seen = self.push(self.base.solve(x))
        return self.base.solve(x - self.pull(self._small(self.L, seen)))

    def _split(self, x: Tensor) -> Tensor:
        u = self._small(self.S, self.push(self.base.solve(x)))
        rest = x - self.pull(u)
        left = self.push(self.base.solve(rest))
        return self.base.solve(rest + self.pull(self._small(self.L, u - left)))

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.K)
        return values.clamp(min=0), vectors

    def _root(self, y: Tensor) -> Tensor:
        """f(K) y with 1 - k f(k) = (1 + k)^(-1/2): of B̃ᵀB̃ + 1 it makes the inverse root, 1 - B̃ᵀ f(K) B̃."""
        k, U = self._eigen
        root = (1 + k).sqrt()
        return (((y.to(k.dtype) @ U) / (root * (1 + root))) @ U.mT).to(y.dtype)

    def frame(self, z: Tensor) -> Tensor:
        v = self.base.frame(z)
        return v - self.base.solve(self.pull(self._root(self.push(v))))

    def coframe(self, x: Tensor) -> Tensor:
        return self.base.coframe(x - self.pull(self._root(self.push(self.base.solve(x)))))

    @property
    def logdet(self) -> Tensor:
        return self.base.logdet + 2 * self.L.diagonal().log().sum()


def shifted_cholesky(K: Tensor, shift: float, wanted: bool = True) -> Tensor:
    """Of K + shift, from its lower triangle; empty if it is not wanted."""
    if not wanted:
        return K.new_empty(0)
    L = K.clone()
    L.diagonal().add_(shift)
    factor: Tensor = torch.linalg.cholesky(L)
    return factor


def least_by_dual(base: Factorization, push: Action, pull: Action, K: Tensor, unit: float, x: Tensor) -> Tensor:
    """Of all v with BᵀB v = x the R-shortest, R⁻¹Bᵀ(K⁺)²B R⁻¹x; x must vanish where B does, or it is RankDeficient."""
    values, vectors = torch.linalg.eigh(K)
    tolerance = max(tolerance_of(K), 16 * len(K) * unit**2)
    kept = values > tolerance * values[-1].clamp(min=torch.finfo(K.dtype).tiny)
    inverse = torch.where(kept, values, torch.ones_like(values)).reciprocal() * kept

    def through(y: Tensor) -> Tensor:
        """K⁺ y."""
        return (((y.to(K.dtype) @ vectors) * inverse) @ vectors.mT).to(y.dtype)

    def shortest(xi: Tensor) -> Tensor:
        u = through(push(base.solve(xi)))
        return base.solve(pull(through(u)))

    value = shortest(x)
    left = x - pull(push(value))
    value = value + shortest(left)
    left = base.coframe(x - pull(push(value))).norm(dim=-1)
    if bool((left > 100 * unit**0.5 * base.coframe(x).norm(dim=-1)).any()):
        raise RankDeficient(int(kept.sum()), base.dim)
    return value
