"""Two forms made diagonal together: what exact damping is solved by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..errors import NotClosed
from ..factorizations import (
    DiagonalFactor,
    FrameFactor,
    RankDeficient,
    factorize_dense,
    pencil,
    rows_pencil,
    tolerance_of,
)
from ..solvers.base import Solvable
from ..spaces import Family
from .members import blocks

LARGEST = 1 << 32
"""The most numbers that a frame may have."""
DIAGONAL = ("diagonal", "identity")
"""The kinds of structure that have nothing but a diagonal."""


class Paired(Solvable, Protocol):
    @property
    def by_members(self) -> bool: ...
    def rows(self) -> Tensor | None: ...
    def diagonal_entries(self, like: Tensor | None = None) -> Tensor: ...


def both_diagonal(g: Paired, h: Paired) -> bool:
    return g.structure.kind in DIAGONAL and h.structure.kind in DIAGONAL


def pencil_of(g: Paired, reference: Paired, like: Tensor | None) -> FrameFactor:
    """The frame orthonormal for the reference in which g is diagonal."""
    if both_diagonal(g, reference):
        lengths = reference.diagonal_entries(like)
        if (short := DiagonalFactor(lengths)).zero is not None:
            raise RankDeficient(short.dim - int(short.zero.sum()), short.dim)
        return FrameFactor([lengths.rsqrt()], g.diagonal_entries(like) / lengths)
    if g.space.dim**2 > LARGEST:
        raise NotClosed(
            f"NotClosed: a frame in which {g!r} is diagonal would be a matrix [{g.space.dim}, {g.space.dim}]. Damp the "
            f"form, g + λ * h, or take one that is solved by its kernel, as Fisher() is."
        )
    rows, factor = g.rows(), reference.factorization(like)
    return pencil(g.dense_matrix(like), factor) if rows is None else rows_pencil(rows, factor)


def pencil_of_members(g: Paired, reference: Paired, like: Tensor) -> FrameFactor:
    """As `pencil_of`, for each member of a family by itself, with its own notion of what is zero."""
    return pencil_of_blocks(blocks(g, like), blocks(reference, like))


def pencil_of_blocks(matrices: Tensor, references: Tensor) -> FrameFactor:
    """The frames, orthonormal for each of the references (m, d, d), in which the matrices are diagonal one by one."""
    factor = factorize_dense(references)
    m, d = matrices.shape[:2]
    eye = torch.eye(d, dtype=matrices.dtype, device=matrices.device)
    frames = factor.frame(eye.repeat(1, m)).reshape(d, m, d).permute(1, 2, 0)
    whitened = frames.mT @ matrices @ frames
    values, vectors = torch.linalg.eigh((whitened + whitened.mT) / 2)
    told = values > tolerance_of(matrices) * values.amax(-1, keepdim=True)
    return FrameFactor([frames @ vectors], torch.where(told, values, 0.0), -factor.logdet / 2)


def pencil_of_factors(
    pairs: Sequence[tuple[Paired, Paired]], members: int, like: Tensor
) -> tuple[list[Tensor], Tensor, float]:
    """Axes, spectrum and tolerance of a product, from those of the factors; with families (members, d₁, ...)."""
    axes, tolerance = [], 0.0
    spectrum = torch.ones((members,) if members > 1 else (), dtype=like.dtype, device=like.device)
    for g, h in pairs:
        own = members > 1 and isinstance(g.space, Family)
        part = pencil_of_members(g, h, like) if own else pencil_of(g, h, like)
        axes += part.axes
        each = part.spectrum.reshape(members, *[1] * (spectrum.ndim - 1), -1) if own else part.spectrum
        spectrum, tolerance = spectrum[..., None] * each, max(tolerance, part.tolerance)
    return axes, spectrum, tolerance


def cost_of_pencil(g: Paired, reference: Paired) -> float:
    """In flops."""
    if isinstance(g.space, Family):
        return 12.0 * g.space.members * g.space.of.dim**3
    return float(g.space.dim) if both_diagonal(g, reference) else 12.0 * g.space.dim**3
