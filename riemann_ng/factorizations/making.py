"""Which factorization a matrix gets, and whether it is definite at all.

Definiteness is found by Cholesky, or by QR for rows; eigenvalues are only computed where these fail or look
doubtful. All judgements are made at unit diagonal, so a form is not called singular for the units its axes are
measured in. The look is in two steps: small pivots raise the doubt, which costs nothing, and inverse iteration
settles most doubts at the price of a few solves. What is left goes to the eigenvalues, which alone may say that a
form is degenerate, and of what rank.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt

import torch
from torch import Tensor

from .base import (
    Factorization,
    Indefinite,
    NotFinite,
    RankDeficient,
    check_width,
    rounding_unit,
    solve_triangular,
    triangle,
)
from .leaves import CholeskyFactor, FrameFactor


def tolerance_of(matrix: Tensor) -> float:
    """The relative size below which an eigenvalue, or a singular value of rows this wide, is rounding.

    Measured on singular matrices of dimension 3 to 512, the eigenvalues that should vanish stay below a sixth of
    it.
    """
    return 4.0 * sqrt(matrix.shape[-1]) * rounding_unit(matrix.dtype)


def least_told(matrix: Tensor) -> float:
    """Below the smallest normal number digits are lost: a square of this size may be anything, also zero."""
    return torch.finfo(matrix.dtype).tiny


def factorize_dense(matrix: Tensor, method: str = "cholesky") -> Factorization:
    """A symmetric matrix (d, d) or (m, d, d), by "cholesky" or "eigen"; it is read on and below its diagonal alone."""
    check_width(matrix)
    L: Tensor | None = None
    if method == "cholesky":
        L, info = cholesky(matrix)
        failed = bool(info.any() if info.ndim else info)
        if not failed and not _doubtful(L, matrix.diagonal(dim1=-2, dim2=-1), tolerance_of(matrix), 1):
            return CholeskyFactor(L)
        L = None if failed else L
    matrix = matrix if matrix.requires_grad else matrix.tril()
    diagonal = matrix.detach().diagonal(dim1=-2, dim2=-1)
    safe = torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal)).sqrt()
    safe = torch.where((diagonal > 0) & (diagonal < least_told(matrix)), torch.inf, safe)  # nothing told is zero
    _check_finite(matrix)
    values, vectors = torch.linalg.eigh(matrix / (safe[..., :, None] * safe[..., None, :]))
    seen, tolerance = values.detach(), tolerance_of(matrix)
    sizes = seen.abs().amax(-1, keepdim=True)
    if bool((seen < -10 * tolerance * sizes).any()):
        raise Indefinite(float(seen.min()), float(seen.max()))
    rank = int((seen > tolerance * sizes).sum())
    if rank < seen.numel():
        raise RankDeficient(rank, seen.numel())
    if L is not None:
        return CholeskyFactor(L)
    return FrameFactor([vectors / safe[..., :, None]], values, -safe.log().sum())


def cholesky(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.linalg.cholesky_ex`, on the CPU not with columns that lie a multiple of 128 apart.

    Those compete for the same few lines of the cache: in dimension 512 the factorization takes three times as long.
    """
    d = matrix.shape[-1]
    if d % 128 or d == 0 or matrix.ndim > 2 or matrix.device.type != "cpu" or matrix.requires_grad:
        return torch.linalg.cholesky_ex(matrix)
    apart = matrix.new_zeros(d + 8, d + 8)
    apart[:d, :d] = matrix
    apart.diagonal()[d:] = 1.0
    L, info = torch.linalg.cholesky_ex(apart)
    return L[:d, :d], info


def factorize_rows(rows: Tensor) -> Factorization:
    """RᵀR from R (n, d), or (m, n, d) for m blocks, by QR, not through the product: cond(R) counts, not its square."""
    check_width(rows)
    n, d = rows.shape[-2:]
    R: Tensor | None = None
    norms = torch.linalg.vector_norm(rows.detach(), dim=-2)
    if n >= d:
        R = triangle(rows)
        if not _doubtful(R.mT, norms.square(), tolerance_of(rows), 2):
            return CholeskyFactor(R.mT, "QR")
    _check_finite(rows)
    safe = torch.where(norms > 0, norms, torch.ones_like(norms))
    singular = torch.linalg.svdvals((rows if R is None else R).detach() / safe[..., None, :])
    rank = int((singular > tolerance_of(rows) * singular[..., :1]).sum())
    if R is None or rank < norms.numel():
        raise RankDeficient(rank, norms.numel())
    return CholeskyFactor(R.mT, "QR")


def _doubtful(L: Tensor, diagonal: Tensor, tolerance: float, power: int) -> bool:
    """Whether L Lᵀ, seen at unit diagonal, may have an eigenvalue below tolerance^power times the largest.

    A pivot is at least the smallest eigenvalue, and a vanishing one shows as a pivot far below the root of the
    tolerance, if not as small as itself. Where there is such a pivot, two steps of inverse iteration from a few
    fixed vectors tell.
    """
    roots = L.diagonal(dim1=-2, dim2=-1)
    least = float(roots.detach().abs().min()) ** 2
    lost = power == 1 and least < least_told(L)
    if least > tolerance ** (power / 2) * float(diagonal.detach().max()) and not lost:
        return False
    pivots = roots.square()
    if lost or bool((pivots > tolerance ** (power / 2) * diagonal).all()):  # with a NaN it is false
        return lost
    if not bool((pivots > 0).all()):
        return True
    L, scale = L.detach(), diagonal.detach().sqrt()[..., None]
    d = scale.shape[-2]
    start = torch.arange(1, 4 * d + 1, dtype=L.dtype, device=L.device).mul_(2.4).sin_().reshape(d, 4)
    up = down = start.expand(*scale.shape[:-2], d, 4)
    for _ in range(2):
        up, down = _unit(up), _unit(down)
        up = (L @ (L.mT @ (up / scale))) / scale
        half = solve_triangular(L, down * scale, upper=False)
        down = solve_triangular(L.mT, half, upper=True) * scale
    highest = torch.linalg.vector_norm(up, dim=-2).amax(-1)
    lowest_inverse = torch.linalg.vector_norm(down, dim=-2).amax(-1)
    return not bool((lowest_inverse * highest * (4 * tolerance**power) < 1).all())


def _unit(Z: Tensor) -> Tensor:
    return torch.nn.functional.normalize(Z, dim=-2, eps=0.0)


def _check_finite(matrix: Tensor) -> None:
    if not bool(matrix.isfinite().all()):
        raise NotFinite


def fold_rows(pieces: Iterable[Tensor]) -> Tensor:
    """At most 2 d rows with the same RᵀR as all the pieces (n, d) together; one piece at a time is in memory."""
    held: list[Tensor] = []
    for piece in pieces:
        held.append(piece)
        if sum(map(len, held)) > 2 * piece.shape[1]:
            held = [triangle(torch.cat(held))]
    return held[0] if len(held) == 1 else torch.cat(held)


def pencil(matrix: Tensor, reference: Factorization) -> FrameFactor:
    """The frame, orthonormal for the reference, in which the matrix is diagonal."""
    check_width(matrix)
    eye = torch.eye(reference.dim, dtype=matrix.dtype, device=matrix.device)
    E = reference.frame_columns(eye)
    whitened = E.mT @ matrix @ E
    values, vectors = torch.linalg.eigh((whitened + whitened.mT) / 2)
    tolerance = tolerance_of(matrix)
    return FrameFactor([E @ vectors], _rounded(values, tolerance), -reference.logdet / 2, tolerance)


def rows_pencil(rows: Tensor, reference: Factorization) -> FrameFactor:
    """As `pencil`, for RᵀR given by R: singular values of R in the frame, never squared before they are found."""
    check_width(rows)
    whitened = reference.coframe(rows)
    _, singular, Vt = torch.linalg.svd(whitened, full_matrices=len(rows) < rows.shape[1])
    values = torch.nn.functional.pad(singular.square(), (0, rows.shape[1] - len(singular)))
    tolerance = tolerance_of(rows) ** 2
    return FrameFactor([reference.frame_columns(Vt.mT)], _rounded(values, tolerance), -reference.logdet / 2, tolerance)


def _rounded(values: Tensor, tolerance: float) -> Tensor:
    """What cannot be told from zero is zero: as noise it would compete with a small damping."""
    seen = values.detach()
    return torch.where(seen > tolerance * seen.max(), values, torch.zeros_like(values))
