"""Forms on families, member by member."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..factorizations import tolerance_of
from ..spaces import Family, VectorSpace


class OnFamily(Protocol):
    @property
    def space(self) -> VectorSpace: ...
    @property
    def dtype(self) -> torch.dtype | None: ...
    @property
    def device(self) -> torch.device | None: ...
    def flat_components(self, x: Tensor) -> Tensor: ...


class InBlocks(Protocol):
    def dense_blocks(self) -> Tensor | None: ...


class Dense(Protocol):
    @property
    def entries(self) -> Tensor: ...
    @property
    def triangle(self) -> Tensor: ...


def uncoupled(g: OnFamily) -> bool:
    """Whether nothing but rounding stands between the members, tried on one random vector in each."""
    space = g.space
    if not isinstance(space, Family) or space.members == 1:
        return True
    m, d = space.members, space.of.dim
    dtype, device = g.dtype or torch.float64, g.device or torch.device("cpu")
    with torch.no_grad():
        vectors = torch.randn(m, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device, dtype)
        pairings = g.flat_components(torch.block_diag(*vectors[:, None])).reshape(m, m, d) * vectors
        own = pairings.sum(-1).diagonal().clamp(min=0).sqrt()
        between = torch.where(torch.eye(m, dtype=torch.bool, device=device), 0.0, pairings.sum(-1).abs())
        return bool((between <= 1e2 * tolerance_of(pairings) * own[:, None] * own).all())


def blocks(g: OnFamily, like: Tensor) -> Tensor:
    """The matrices (m, d, d) of a form that goes member by member: each basis vector in all members at once."""
    space = g.space
    assert isinstance(space, Family)
    m, d = space.members, space.of.dim
    columns = g.flat_components(torch.eye(d, dtype=like.dtype, device=like.device).repeat(1, m))
    return columns.reshape(d, m, d).movedim(0, 1)


def blended_onto(g: InBlocks, form: Dense, weight: float) -> tuple[Tensor, bool] | None:
    """(1 - weight) times the form's matrix + weight times g's `dense_blocks`, if of the same shape; or None.

    With it comes whether it is so above the diagonal too: on and below it, it is.
    """
    blocks = g.dense_blocks()
    if blocks is None or blocks.ndim != form.triangle.ndim:
        return None
    return form.entries.lerp(blocks, weight), True
