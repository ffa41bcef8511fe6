"""Positive matrices made ready to be inverted: numbers only, no spaces.

A factorization F of a symmetric positive matrix M offers `solve` (M⁻¹x), a frame E with E Eᵀ = M⁻¹, and `logdet`.
Elements are rows (..., dim); `solve_columns` takes columns (dim, m) and is what the structured kinds are made of. A matrix
(m, d, d) stands for a block-diagonal one of dimension m d.

Definiteness is found by Cholesky; an eigendecomposition is only made where Cholesky fails or doubts. The doubt is measured
on the matrix scaled to unit diagonal, so a matrix is not called singular for the units its axes are measured in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from math import prod

import torch
from torch import Tensor


class RankDeficient(Exception):
    """The short cause that the public call turns into DegenerateMetric."""

    def __init__(self, rank: int, dim: int):
        super().__init__(f"rank {rank} of {dim}")
        self.rank, self.dim = rank, dim


class Indefinite(Exception):
    """The short cause that the public call turns into NotAnInnerProduct."""

    def __init__(self, lowest: float, highest: float):
        super().__init__(f"eigenvalues, at unit diagonal, from {lowest:.2e} to {highest:.2e}")


class Factorization(ABC):
    dim: int
    name: str

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

    def frame(self, z: Tensor) -> Tensor:
        return by_rows(self.frame_columns, z)

    def coframe(self, x: Tensor) -> Tensor:
        return by_rows(self.coframe_columns, x)


def by_rows(columns: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A map of columns applied to rows (..., dim)."""
    return columns(x.reshape(-1, x.shape[-1]).mT).mT.reshape(x.shape)


def _by_member(B: Tensor, L: Tensor) -> Tensor:
    return B if L.ndim == 2 else B.reshape(L.shape[0], L.shape[1], -1)


class CholeskyFactor(Factorization):
    """M = L Lᵀ, from Cholesky or from the R of a QR; L (d, d) or (m, d, d)."""

    name = "Cholesky"

    def __init__(self, L: Tensor, name: str = "Cholesky"):
        self.L, self.name = L, name
        self.dim = L.shape[-1] * (L.shape[0] if L.ndim == 3 else 1)

    def solve_columns(self, B: Tensor) -> Tensor:
        return torch.cholesky_solve(_by_member(B, self.L), self.L).reshape(B.shape)

    def frame_columns(self, Z: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.L.mT, _by_member(Z, self.L), upper=True).reshape(Z.shape)

    def coframe_columns(self, B: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.L, _by_member(B, self.L), upper=False).reshape(B.shape)

    @property
    def logdet(self) -> Tensor:
        return 2 * self.L.diagonal(dim1=-2, dim2=-1).abs().log().sum()


class DiagonalFactor(Factorization):
    """M = diag(entries). Where an entry is zero the right-hand side must be zero too, and so is the solution."""

    name = "diagonal"

    def __init__(self, entries: Tensor):
        self.entries, self.dim = entries, entries.shape[0]
        zero = entries == 0
        self.zero = zero if bool(zero.any()) else None

    def _checked(self, B: Tensor) -> Tensor:
        if self.zero is None:
            return self.entries[:, None]
        if bool((B[self.zero] != 0).any()):
            self._degenerate()
        return torch.where(self.zero, torch.ones_like(self.entries), self.entries)[:, None]

    def _degenerate(self) -> None:
        if self.zero is not None:
            raise RankDeficient(self.dim - int(self.zero.sum()), self.dim)

    def solve_columns(self, B: Tensor) -> Tensor:
        return B / self._checked(B)

    def frame_columns(self, Z: Tensor) -> Tensor:
        self._degenerate()
        return Z * self.entries.rsqrt()[:, None]

    coframe_columns = frame_columns

    @property
    def logdet(self) -> Tensor:
        self._degenerate()
        return self.entries.log().sum()


class IdentityFactor(Factorization):
    name = "identity"

    def __init__(self, dim: int):
        self.dim = dim

    def solve_columns(self, B: Tensor) -> Tensor:
        return B

    frame_columns = coframe_columns = solve_columns

    @property
    def logdet(self) -> Tensor:
        return torch.zeros(())


class ScaledFactor(Factorization):
    def __init__(self, scalar: float | Tensor, of: Factorization):
        self.scalar, self.of, self.dim, self.name = scalar, of, of.dim, of.name

    def solve_columns(self, B: Tensor) -> Tensor:
        return self.of.solve_columns(B) / self.scalar

    def solve(self, x: Tensor) -> Tensor:
        return self.of.solve(x) / self.scalar

    def frame_columns(self, Z: Tensor) -> Tensor:
        return self.of.frame_columns(Z) / self.scalar**0.5

    def coframe_columns(self, B: Tensor) -> Tensor:
        return self.of.coframe_columns(B) / self.scalar**0.5

    @property
    def logdet(self) -> Tensor:
        logdet = self.of.logdet
        return logdet + self.dim * torch.as_tensor(self.scalar, dtype=logdet.dtype, device=logdet.device).log()


class InverseFactor(Factorization):
    """The factorization of M⁻¹ where M itself is at hand: solving is multiplying."""

    name = "inverse"

    def __init__(self, multiply: Callable[[Tensor], Tensor], of: Factorization, root: Factorization):
        self.multiply, self.of, self.root, self.dim = multiply, of, root, of.dim

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

    def _each(self, method: str, B: Tensor) -> Tensor:
        pieces = B.split(self.sizes)
        return torch.cat([getattr(block, method)(piece) for block, piece in zip(self.blocks, pieces, strict=True)])

    def solve_columns(self, B: Tensor) -> Tensor:
        return self._each("solve_columns", B)

    def frame_columns(self, Z: Tensor) -> Tensor:
        return self._each("frame_columns", Z)

    def coframe_columns(self, B: Tensor) -> Tensor:
        return self._each("coframe_columns", B)

    @property
    def logdet(self) -> Tensor:
        return torch.stack([block.logdet for block in self.blocks]).sum()


class KroneckerFactor(Factorization):
    """A tensor product of factorizations; with `members`, one product for each member of a family.

    A factor of dimension `d` is common to all members, one of dimension `members * d` has its own block for each.
    """

    def __init__(self, factors: Sequence[Factorization], dims: Sequence[int], members: int = 1):
        self.factors, self.dims, self.members = list(factors), list(dims), members
        self.dim = members * prod(dims)
        self.name = " ⊗ ".join(f.name for f in factors)

    def _each(self, method: str, x: Tensor) -> Tensor:
        if len(self.dims) == 2 and self.members == 1 and x.numel() == self.dim:
            first, second = self.factors  # one element: two solves and nothing else
            y = getattr(first, method)(x.reshape(self.dims))
            return getattr(second, method)(y.mT).mT.reshape(x.shape)
        y = x.reshape(-1, self.members, *self.dims)
        for axis, (factor, d) in enumerate(zip(self.factors, self.dims, strict=True), start=2):
            own = factor.dim != d or self.members == 1  # (members, axis, ...) as columns of (members * d)
            moved = y.movedim((1, axis), (0, 1)) if own else y.movedim(axis, 0)
            columns = moved.reshape(factor.dim, -1)
            moved = getattr(factor, method)(columns).reshape(moved.shape)
            y = moved.movedim((0, 1), (1, axis)) if own else moved.movedim(0, axis)
        return y.reshape(x.shape)

    def solve(self, x: Tensor) -> Tensor:
        return self._each("solve_columns", x)

    def frame(self, z: Tensor) -> Tensor:
        return self._each("frame_columns", z)

    def coframe(self, x: Tensor) -> Tensor:
        return self._each("coframe_columns", x)

    def solve_columns(self, B: Tensor) -> Tensor:
        return self.solve(B.mT).mT

    def frame_columns(self, Z: Tensor) -> Tensor:
        return self.frame(Z.mT).mT

    def coframe_columns(self, B: Tensor) -> Tensor:
        return self.coframe(B.mT).mT

    @property
    def logdet(self) -> Tensor:
        whole = self.dim
        return torch.stack([f.logdet.double() * (whole // f.dim) for f in self.factors]).sum()


class FrameFactor(Factorization):
    """M = P⁻ᵀ diag(spectrum) P⁻¹ with P a tensor product of square matrices, one for each axis of the spectrum.

    Eigendecompositions, pencils (two forms diagonalized together) and rotated diagonals are of this kind. Axis matrices are
    (d, d), or (m, d, d) for the m members of a family, whose spectrum is then (m, d₁, ...).
    """

    name = "eigen"

    def __init__(self, axes: Sequence[Tensor], spectrum: Tensor, logdet_axes: Tensor | None = None, tolerance: float = 0.0):
        self.axes, self.spectrum, self.dim = list(axes), spectrum, spectrum.numel()
        self.logdet_axes = logdet_axes
        self.tolerance = tolerance

    def shifted(self, scalar: float | Tensor) -> FrameFactor:
        """The same frame with `scalar` added to the spectrum: M + scalar * (the form for which P is orthonormal)."""
        return FrameFactor(self.axes, self.spectrum + scalar, self.logdet_axes)

    @property
    def rank(self) -> int:
        return int((self.spectrum > self.tolerance * self.spectrum.max()).sum())

    def to_axes(self, x: Tensor) -> Tensor:
        """Pᵀx, shaped (..., *spectrum.shape)."""
        return self._multiply([P.mT for P in self.axes], x.reshape(*x.shape[:-1], *self.spectrum.shape))

    def from_axes(self, y: Tensor) -> Tensor:
        """P y, flat."""
        z = self._multiply(self.axes, y)
        return z.reshape(*z.shape[: z.ndim - self.spectrum.ndim], self.dim)

    def _multiply(self, axes: Sequence[Tensor], x: Tensor) -> Tensor:
        if len(axes) == 1:
            return (axes[0] @ x[..., None])[..., 0] if axes[0].ndim == 3 else x @ axes[0].mT
        if len(axes) == 2:
            return axes[0] @ x @ axes[1].mT
        for axis, P in enumerate(axes):
            x = torch.tensordot(P, x, dims=([1], [x.ndim - len(axes) + axis])).movedim(0, x.ndim - len(axes) + axis)
        return x

    def _definite(self) -> Tensor:
        rank = self.rank
        if rank < self.dim:
            raise RankDeficient(rank, self.dim)
        return self.spectrum

    def solve(self, x: Tensor) -> Tensor:
        return self.from_axes(self.to_axes(x) / self._definite())

    def solve_modulo_kernel(self, x: Tensor) -> Tensor:
        """The solution orthogonal, in the frame, to the kernel; x must vanish there."""
        kept = self.spectrum > self.tolerance * self.spectrum.max()
        y = self.to_axes(x)
        outside = torch.where(kept, torch.zeros_like(y), y)
        if bool(outside.abs().max() > self.tolerance**0.5 * y.abs().max()):
            raise RankDeficient(int(kept.sum()), self.dim)
        inverse = torch.where(kept, self.spectrum, torch.ones_like(self.spectrum)).reciprocal()
        return self.from_axes(torch.where(kept, y * inverse, torch.zeros_like(y)))

    def frame(self, z: Tensor) -> Tensor:
        return self.from_axes(z.reshape(*z.shape[:-1], *self.spectrum.shape) * self._definite().rsqrt())

    def coframe(self, x: Tensor) -> Tensor:
        y = self.to_axes(x) * self._definite().rsqrt()
        return y.reshape(x.shape)

    def solve_columns(self, B: Tensor) -> Tensor:
        return self.solve(B.mT).mT

    def frame_columns(self, Z: Tensor) -> Tensor:
        return self.frame(Z.mT).mT

    def coframe_columns(self, B: Tensor) -> Tensor:
        return self.coframe(B.mT).mT

    @property
    def logdet(self) -> Tensor:
        logdet = self._definite().log().sum()
        if self.logdet_axes is not None:
            return logdet - 2 * self.logdet_axes
        for P in self.axes:
            each = self.dim // (P.shape[-1] * (P.shape[0] if P.ndim == 3 else 1))
            logdet = logdet - 2 * each * torch.linalg.slogdet(P)[1].sum()
        return logdet


class WoodburyFactor(Factorization):
    """M = B + RᵀR with B definite and R of few rows, through the kernel I + R B⁻¹ Rᵀ."""

    name = "Woodbury"

    def __init__(self, base: Factorization, rows: Tensor):
        self.base, self.dim = base, base.dim
        self.rows = rows
        self.back = base.solve(rows)  # R B⁻¹
        kernel = self.back @ rows.mT
        self.inner = torch.linalg.cholesky(kernel + torch.eye(len(rows), dtype=rows.dtype, device=rows.device))

    def solve_columns(self, B: Tensor) -> Tensor:
        correction = torch.cholesky_solve(self.back @ B, self.inner)
        return self.base.solve_columns(B) - self.back.mT @ correction

    def _root(self, Z: Tensor) -> Tensor:
        # (I + WᵀW)^-1/2 Z with W = R E: on the span of W's rows by an eigendecomposition, elsewhere the identity
        W = self.base.coframe(self.rows)
        values, vectors = torch.linalg.eigh(W @ W.mT)
        values = values.clamp(min=0)
        shrink = -(1 + values).rsqrt() / (1 + (1 + values).sqrt())  # ((1 + k)^-1/2 - 1) / k, without the 0 / 0
        return Z + W.mT @ (vectors @ (shrink[:, None] * (vectors.mT @ (W @ Z))))

    def frame_columns(self, Z: Tensor) -> Tensor:
        return self.base.frame_columns(self._root(Z))

    def coframe_columns(self, B: Tensor) -> Tensor:
        return self._root(self.base.coframe_columns(B))

    @property
    def logdet(self) -> Tensor:
        return self.base.logdet + 2 * self.inner.diagonal().log().sum()


def tolerance_of(matrix: Tensor) -> float:
    """The relative size below which an eigenvalue of a matrix this large is rounding."""
    return 4 * max(matrix.shape[-2:]) * torch.finfo(matrix.dtype).eps


def factorize_dense(matrix: Tensor, method: str = "cholesky") -> Factorization:
    """A symmetric matrix (d, d) or (m, d, d), by "cholesky" or "eigen"."""
    if method == "cholesky":
        L, info = torch.linalg.cholesky_ex(matrix)
        pivots = L.diagonal(dim1=-2, dim2=-1) ** 2 / matrix.diagonal(dim1=-2, dim2=-1)
        if bool(((info == 0)[..., None] & (pivots > tolerance_of(matrix))).all()):
            return CholeskyFactor(L)
    scale = matrix.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    values, vectors = torch.linalg.eigh(matrix / (safe[..., :, None] * safe[..., None, :]))
    lowest, highest = float(values.min()), float(values.max())
    tolerance = tolerance_of(matrix)
    if lowest < -tolerance * max(abs(highest), abs(lowest)) * 1e2:
        raise Indefinite(lowest, highest)
    rank = int((values > tolerance * highest).sum())
    if rank < values.numel():
        raise RankDeficient(rank, values.numel())
    return FrameFactor([vectors / safe[..., :, None]], values, -safe.log().sum())


def factorize_rows(rows: Tensor) -> Factorization:
    """RᵀR from R (n, d), or (m, n, d) for m blocks, by QR, never through the product: cond(R) counts, not its square."""
    n, d = rows.shape[-2:]
    norms = torch.linalg.vector_norm(rows, dim=-2)
    if n >= d:
        R = torch.linalg.qr(rows, mode="r")[1]
        if bool((R.diagonal(dim1=-2, dim2=-1).abs() > tolerance_of(rows) * norms).all()):
            return CholeskyFactor(R.mT, "QR")
    safe = torch.where(norms > 0, norms, torch.ones_like(norms))
    _, singular, Vt = torch.linalg.svd(rows / safe[..., None, :], full_matrices=False)
    rank = int((singular > tolerance_of(rows) * singular[..., :1]).sum())
    if rank < norms.numel():
        raise RankDeficient(rank, norms.numel())
    return FrameFactor([Vt.mT / safe[..., :, None]], singular**2, -safe.log().sum())


def fold_rows(pieces: Iterable[Tensor]) -> Tensor:
    """At most d rows with the same RᵀR as all the pieces (n, d) together, one piece in memory at a time."""
    folded: Tensor | None = None
    for piece in pieces:
        folded = piece if folded is None else torch.cat([folded, piece])
        if len(folded) > 2 * folded.shape[1]:
            folded = torch.linalg.qr(folded, mode="r")[1]
    assert folded is not None
    return folded


def pencil(matrix: Tensor, reference: Factorization) -> FrameFactor:
    """The frame, orthonormal for the reference, in which the matrix is diagonal."""
    eye = torch.eye(reference.dim, dtype=matrix.dtype, device=matrix.device)
    E = reference.frame_columns(eye)
    whitened = E.mT @ matrix @ E
    values, vectors = torch.linalg.eigh((whitened + whitened.mT) / 2)
    return FrameFactor([E @ vectors], values.clamp(min=0), -reference.logdet / 2, tolerance_of(matrix))


def rows_pencil(rows: Tensor, reference: Factorization) -> FrameFactor:
    """As `pencil`, for RᵀR given by R: singular values of R in the frame, never squared before they are found."""
    whitened = reference.coframe(rows)
    _, singular, Vt = torch.linalg.svd(whitened, full_matrices=len(rows) < rows.shape[1])
    values = torch.zeros(rows.shape[1], dtype=rows.dtype, device=rows.device)
    values[: len(singular)] = singular**2
    return FrameFactor([reference.frame_columns(Vt.mT)], values, -reference.logdet / 2, tolerance_of(rows) ** 2)
