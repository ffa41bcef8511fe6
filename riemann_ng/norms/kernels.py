"""Frames of a form with a kernel: of the complement that is orthogonal for a reference, the kernel left out."""

from __future__ import annotations

import torch
from torch import Tensor

from ..factorizations import RankDeficient
from ..factorizations.base import RowFactorization
from ..inner_products import InnerProduct
from ..spaces import Family
from .base import InvalidNorm


def kernel_tolerance(x: Tensor) -> float:
    """Relative to the largest, the eigenvalue below which it counts as the kernel; well above what rounding leaves."""
    return float(torch.finfo(x.dtype).eps ** (2 / 3))


class ImageFrame(RowFactorization):
    """E with E Eᵀ M E = E for a form M with a kernel, and zero columns in place of it: sharps are the shortest ones.

    Made of the eigenvectors of M relative to a reference: (members, d, d).
    """

    name = "image"

    def __init__(self, E: Tensor):
        self.E, self.dim = E, E.shape[0] * E.shape[1]

    @classmethod
    def of(cls, g: InnerProduct, reference: InnerProduct, like: Tensor) -> ImageFrame:
        members = g.space.members if isinstance(g.space, Family) else 1
        M, R = (by_members(form.dense_matrix(like), members) for form in (g, reference))
        C, failed = torch.linalg.cholesky_ex(R)
        if bool(failed.any()):
            raise InvalidNorm(
                f"InvalidNorm in Spectral: modulo_kernel, {reference!r}, has a kernel of its own. Name a form that "
                f"measures every direction, as EuclideanMetric()."
            )
        half = torch.linalg.solve_triangular(C, M, upper=False)
        values, Q = torch.linalg.eigh(torch.linalg.solve_triangular(C, half.mT, upper=False))
        kept = values > kernel_tolerance(M) * values[..., -1:]
        lengths = torch.where(kept, values, torch.ones_like(values)).rsqrt() * kept
        return cls(torch.linalg.solve_triangular(C.mT, Q * lengths[..., None, :], upper=True))

    def _each(self, x: Tensor, E: Tensor) -> Tensor:
        rows = x.reshape(*x.shape[:-1], E.shape[0], 1, E.shape[1])
        return (rows @ E).reshape(x.shape)

    def solve(self, x: Tensor) -> Tensor:
        return self.frame(self.coframe(x))

    def frame(self, z: Tensor) -> Tensor:
        return self._each(z, self.E.mT)

    def coframe(self, x: Tensor) -> Tensor:
        return self._each(x, self.E)

    @property
    def logdet(self) -> Tensor:
        raise RankDeficient(int((self.E != 0).any(-2).sum()), self.dim)


def by_members(matrix: Tensor, members: int) -> Tensor:
    """The blocks of a block-diagonal matrix, (members, d, d)."""
    d = matrix.shape[-1] // members
    return matrix.reshape(members, d, members, d).diagonal(dim1=0, dim2=2).movedim(-1, 0)
