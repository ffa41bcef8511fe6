"""Factorizations of one matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from .base import Factorization, RankDeficient, RowFactorization, rounding_unit, solve_triangular


class CholeskyFactor(Factorization):
    """M = L Lᵀ, from Cholesky or from the R of a QR (whose diagonal may be negative); L (d, d) or (m, d, d)."""

    def __init__(self, L: Tensor, name: str = "Cholesky"):
        self.L, self.name = L, name
        self.dim = L.shape[-1] * (L.shape[0] if L.ndim == 3 else 1)

    def _by_member(self, B: Tensor) -> Tensor:
        return B.reshape(*self.L.shape[:2], -1) if self.L.ndim == 3 else B

    def solve_columns(self, B: Tensor) -> Tensor:
        if self.L.ndim == 2:
            return torch.cholesky_solve(B, self.L)
        return torch.cholesky_solve(self._by_member(B), self.L).reshape(B.shape)

    def solve(self, x: Tensor) -> Tensor:
        if self.L.ndim == 3 or x.ndim != 2:
            return super().solve(x)
        return torch.cholesky_solve(x.mT, self.L).mT

    def for_many_solves(self) -> Factorization:
        if self.L.requires_grad:
            return self
        return MatrixFactor(torch.cholesky_inverse(self.L), lambda: self, f"inverse of {self.name}")

    def frame_columns(self, Z: Tensor) -> Tensor:
        return solve_triangular(self.L.mT, self._by_member(Z), upper=True).reshape(Z.shape)

    def coframe_columns(self, B: Tensor) -> Tensor:
        return solve_triangular(self.L, self._by_member(B), upper=False).reshape(B.shape)

    @property
    def logdet(self) -> Tensor:
        return 2 * self.L.diagonal(dim1=-2, dim2=-1).abs().log().sum()


class MatrixFactor(Factorization):
    """M by its inverse, a matrix (d, d) or (m, d, d) at hand; all but solving is left to a factorization.

    `of` makes that, or knows it: where nobody asks for more than solving, nothing but the inverse need be held.
    """

    def __init__(self, inverse: Tensor, of: Callable[[], Factorization], name: str = "inverse"):
        self.inverse, self._made, self.name = inverse, of, name
        self.dim = inverse.shape[-1] * (inverse.shape[0] if inverse.ndim == 3 else 1)

    @cached_property
    def of(self) -> Factorization:
        return self._made()

    def solve_columns(self, B: Tensor) -> Tensor:
        if self.inverse.ndim == 2:
            return self.inverse @ B
        return (self.inverse @ B.reshape(*self.inverse.shape[:2], -1)).reshape(B.shape)

    def solve(self, x: Tensor) -> Tensor:
        return x @ self.inverse if self.inverse.ndim == 2 else super().solve(x)

    def frame_columns(self, Z: Tensor) -> Tensor:
        return self.of.frame_columns(Z)

    def coframe_columns(self, B: Tensor) -> Tensor:
        return self.of.coframe_columns(B)

    @property
    def logdet(self) -> Tensor:
        return self.of.logdet


class DiagonalFactor(Factorization):
    """M = diag(entries). Where an entry is zero the right-hand side must be zero too, and so is the solution."""

    name = "diagonal"

    def __init__(self, entries: Tensor):
        self.entries, self.dim = entries, entries.shape[0]
        zero = entries.detach() == 0
        self.zero = zero if bool(zero.any()) else None

    def solve(self, x: Tensor) -> Tensor:
        if self.zero is None:
            return x / self.entries
        if bool((x[..., self.zero] != 0).any()):
            self._degenerate()
        return x / torch.where(self.zero, torch.ones_like(self.entries), self.entries)

    def _degenerate(self) -> None:
        if self.zero is not None:
            raise RankDeficient(self.dim - int(self.zero.sum()), self.dim)

    def solve_columns(self, B: Tensor) -> Tensor:
        return self.solve(B.mT).mT

    def frame_columns(self, Z: Tensor) -> Tensor:
        self._degenerate()
        return Z * self.entries.rsqrt()[:, None]

    def coframe_columns(self, B: Tensor) -> Tensor:
        return self.frame_columns(B)

    @property
    def logdet(self) -> Tensor:
        self._degenerate()
        return self.entries.log().sum()


class IdentityFactor(Factorization):
    """Of any dtype; its `logdet` is a zero of the widest one, to which others are added without loss."""

    name = "identity"

    def __init__(self, dim: int):
        self.dim = dim

    def solve(self, x: Tensor) -> Tensor:
        return x

    def solve_columns(self, B: Tensor) -> Tensor:
        return B

    def frame_columns(self, Z: Tensor) -> Tensor:
        return Z

    def coframe_columns(self, B: Tensor) -> Tensor:
        return B

    @property
    def logdet(self) -> Tensor:
        return torch.zeros((), dtype=torch.float64)


class FrameFactor(RowFactorization):
    """M = P⁻ᵀ diag(spectrum) P⁻¹ with P a tensor product of square matrices, one for each axis of the spectrum.

    Eigendecompositions, pencils (two forms diagonalized together) and rotated diagonals are of this kind. Axis
    matrices are (d, d), (d,) where they are diagonal, or (m, d, d) for the m members of a family, whose spectrum is
    then (m, d₁, ...).
    `logdet_axes` is log |det P| where it is known; entries of the spectrum below `tolerance` times the largest
    count as zero. Those that are zero in a frame of positive tolerance were rounded to it when the frame was found.
    """

    name = "eigen"

    def __init__(
        self, axes: Sequence[Tensor], spectrum: Tensor, logdet_axes: Tensor | None = None, tolerance: float = 0.0
    ):
        self.axes, self.spectrum, self.dim = list(axes), spectrum, spectrum.numel()
        self.logdet_axes = logdet_axes
        self.tolerance = tolerance

    def shifted(self, scalar: float | Tensor) -> FrameFactor:
        """The same frame with `scalar` added to the spectrum: M + scalar * (the form for which P is orthonormal).

        Exact on the kernel, as far as that can be told: what was rounded to zero is unknown up to the rounding of the
        largest, and to add less than that to it says nothing.
        """
        seen = self.spectrum.detach()
        known = min(self.tolerance, rounding_unit(seen.dtype)) * float(seen.max())
        if known and float(scalar) <= known and bool((seen == 0).any()):
            raise RankDeficient(int((seen > 0).sum()), self.dim)
        return FrameFactor(self.axes, self.spectrum + scalar, self.logdet_axes)

    def spread(self, trace: Tensor) -> float:
        """How far from a multiple of the identity the form of this trace is for which P is orthonormal: one, or more.

        tr N tr N⁻¹ / d², between one and the condition number, which the error of the frame grows with.
        """
        sizes = (P.detach().square().sum((-2, -1) if P.ndim > 1 else -1) for P in self.axes)
        members = self.spectrum.shape[0] if self.spectrum.ndim > len(self.axes) else 1
        inverse = prod(sizes, start=trace.new_ones(members))
        return float(trace.detach() * inverse.sum()) / self.dim**2

    @cached_property
    def _kept(self) -> Tensor:
        spectrum = self.spectrum.detach()
        return spectrum > self.tolerance * spectrum.max()

    @cached_property
    def rank(self) -> int:
        return int(self._kept.sum())

    def to_axes(self, x: Tensor) -> Tensor:
        """Pᵀx, shaped (..., *spectrum.shape)."""
        transposed = [P.mT if P.ndim > 1 else P for P in self.axes]
        return self._multiply(transposed, x.reshape(*x.shape[:-1], *self.spectrum.shape))

    def from_axes(self, y: Tensor) -> Tensor:
        """P y, flat."""
        z = self._multiply(self.axes, y)
        return z.reshape(*z.shape[: z.ndim - self.spectrum.ndim], self.dim)

    def _multiply(self, axes: Sequence[Tensor], x: Tensor) -> Tensor:
        if len(axes) == 1 and axes[0].ndim > 1:
            return (axes[0] @ x[..., None])[..., 0] if axes[0].ndim == 3 else x @ axes[0].mT
        if len(axes) == 2 and all(P.ndim > 1 for P in axes):
            return axes[0] @ x @ axes[1].mT
        for axis, P in enumerate(axes, start=-len(axes)):
            moved = x.movedim(axis, -1)
            if P.ndim == 3:  # beside the members stand the other axes
                P = P.reshape(len(P), *[1] * (len(axes) - 2), *P.shape[1:])
            x = (moved * P if P.ndim == 1 else moved @ P.mT).movedim(-1, axis)
        return x

    def _definite(self) -> Tensor:
        if self.rank < self.dim:
            raise RankDeficient(self.rank, self.dim)
        return self.spectrum

    def solve(self, x: Tensor) -> Tensor:
        return self.from_axes(self.to_axes(x) / self._definite())

    def solve_modulo_kernel(self, x: Tensor) -> Tensor:
        """The solution orthogonal, in the frame, to the kernel; x vanishes there, up to the root of rounding."""
        y = self.to_axes(x)
        outside = torch.where(self._kept, torch.zeros_like(y), y).detach().abs().reshape(x.shape).amax(-1)
        size = y.detach().abs().reshape(x.shape).amax(-1)
        if bool((outside > rounding_unit(x.dtype) ** 0.5 * size).any()):
            raise RankDeficient(self.rank, self.dim)
        inverse = torch.where(self._kept, self.spectrum, torch.ones_like(self.spectrum)).reciprocal()
        return self.from_axes(torch.where(self._kept, y * inverse, torch.zeros_like(y)))

    def frame(self, z: Tensor) -> Tensor:
        return self.from_axes(z.reshape(*z.shape[:-1], *self.spectrum.shape) * self._definite().rsqrt())

    def coframe(self, x: Tensor) -> Tensor:
        y = self.to_axes(x) * self._definite().rsqrt()
        return y.reshape(x.shape)

    @property
    def logdet(self) -> Tensor:
        logdet = self._definite().log().sum()
        if self.logdet_axes is not None:
            return logdet - 2 * self.logdet_axes
        for P in self.axes:
            each = self.dim // (P.shape[-1] * (P.shape[0] if P.ndim == 3 else 1))
            logdet = logdet - 2 * each * (P.log() if P.ndim == 1 else torch.linalg.slogdet(P)[1]).sum()
        return logdet
