"""Matrices on a hull's dual, factorized with the constant eliminated first."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Factorization, RankDeficient, RowFactorization
from .leaves import MatrixFactor
from .making import factorize_dense


class CentredFactor(RowFactorization):
    """M = [[S + m μμᵀ, mμ], [mμᵀ, m]] by its Schur complement S, for each of m members where there are several.

    M is a form on affine functionals: mass m, mean μ, and S the part that is centred. What a far origin does to the
    condition of M it does not do to that of S.
    """

    def __init__(self, of: Factorization, mean: Tensor, mass: Tensor):
        self.of, self.mean, self.mass, self.name = of, mean, mass, f"centred {of.name}"
        self.members = mean.shape[0]
        self.dim = of.dim + self.members

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., members, n) and (..., members)."""
        y = x.unflatten(-1, (self.members, -1))
        return y[..., :-1], y[..., -1]

    def _joined(self, linear: Tensor, last: Tensor) -> Tensor:
        return torch.cat([linear, last[..., None]], -1).flatten(-2)

    def _less_mean(self, x: Tensor) -> tuple[Tensor, Tensor]:
        linear, last = self._split(x)
        return (linear - last[..., None] * self.mean).flatten(-2), last

    def _placed(self, w: Tensor, last: Tensor) -> Tensor:
        linear = w.unflatten(-1, (self.members, -1))
        return self._joined(linear, last - (linear * self.mean).sum(-1))

    def solve(self, x: Tensor) -> Tensor:
        linear, last = self._less_mean(x)
        return self._placed(self.of.solve(linear), last / self.mass)

    def frame(self, z: Tensor) -> Tensor:
        linear, last = self._split(z)
        return self._placed(self.of.frame(linear.flatten(-2)), last * self.mass.rsqrt())

    def coframe(self, x: Tensor) -> Tensor:
        linear, last = self._less_mean(x)
        w = self.of.coframe(linear).unflatten(-1, (self.members, -1))
        return self._joined(w, last * self.mass.rsqrt())

    def for_many_solves(self) -> Factorization:
        of = self.of.for_many_solves()
        if not isinstance(of, MatrixFactor):
            return self
        S = of.inverse if of.inverse.ndim == 3 else of.inverse[None]
        side = (S @ self.mean[..., None]).squeeze(-1)
        inverse = S.new_empty(len(S), S.shape[1] + 1, S.shape[1] + 1)
        inverse[:, :-1, :-1] = S
        inverse[:, :-1, -1] = inverse[:, -1, :-1] = -side
        inverse[:, -1, -1] = self.mass.reciprocal() + (side * self.mean).sum(-1)
        return MatrixFactor(inverse if of.inverse.ndim == 3 else inverse[0], lambda: self, f"inverse of {self.name}")

    @property
    def logdet(self) -> Tensor:
        return self.of.logdet + self.mass.log().sum()


def factorize_centred(matrix: Tensor, method: str = "cholesky") -> Factorization:
    """A symmetric matrix (d, d) or (m, d, d) whose last component is that of the constants."""
    M = matrix if matrix.ndim == 3 else matrix[None]
    mass, side = M[:, -1, -1], M[:, -1, :-1]
    if method != "cholesky" or not bool((mass.detach() > 0).all()):
        return factorize_dense(matrix, method)
    mean = side / mass[:, None]
    schur = torch.baddbmm(M[:, :-1, :-1], side[:, :, None], mean[:, None, :], alpha=-1)
    try:
        return CentredFactor(factorize_dense(schur if matrix.ndim == 3 else schur[0], method), mean, mass)
    except RankDeficient as short:
        raise RankDeficient(short.rank + len(M), short.dim + len(M)) from None
