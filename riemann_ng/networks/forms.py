"""Positive forms on the cotangents of one place, for each example, and how they are pulled back through a layer."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class PerExample(ABC):
    """A positive form on the cotangents of one place, for each example of a chunk.

    `rank` bounds its rank, `width` is the dimension of the place.
    """

    rank: int
    width: int

    @abstractmethod
    def pulled(self, weight: Tensor | None, scale: Tensor) -> PerExample:
        """The form D Wᵀ · W D, with weight (outputs, inputs), None for the identity, and scale (n, inputs)."""

    @abstractmethod
    def moment(self) -> Tensor:
        """The sum over the examples, (width, width)."""

    @abstractmethod
    def factored(self) -> Factor:
        """The same as a sum of squares."""


class Diagonal(PerExample):
    """Squares of `root` (n, width)."""

    def __init__(self, root: Tensor):
        self.root, self.rank, self.width = root, root.shape[1], root.shape[1]

    def pulled(self, weight: Tensor | None, scale: Tensor) -> PerExample:
        if weight is None:
            return Diagonal(self.root * scale)
        if smaller(weight.shape[1], self.rank):
            return Dense(pair_products(self.root.square(), weight, scale))
        return Factor(self.root[:, :, None] * weight * scale[:, None])

    def moment(self) -> Tensor:
        return torch.diag(self.root.square().sum(0))

    def factored(self) -> Factor:
        return Factor(torch.diag_embed(self.root))


class Dense(PerExample):
    """Matrices (n, width, width)."""

    def __init__(self, matrices: Tensor):
        self.matrices, self.rank, self.width = matrices, matrices.shape[1], matrices.shape[1]

    def pulled(self, weight: Tensor | None, scale: Tensor) -> PerExample:
        if weight is None:
            return Dense(scaled_(self.matrices.clone(), scale, scale))
        if not fits(weight.shape[1], self.width):
            return self.factored().pulled(weight, scale)
        return Dense(scaled_(weight.mT @ (self.matrices @ weight), scale, scale))

    def moment(self) -> Tensor:
        return self.matrices.sum(0)

    def factored(self) -> Factor:
        values, vectors = torch.linalg.eigh(self.matrices)
        return Factor((vectors * values.clamp(min=0).sqrt()[:, None]).mT)


class Factor(PerExample):
    """Sums of squares of rows (n, rank, width)."""

    def __init__(self, rows: Tensor):
        self.rows, self.rank, self.width = rows, rows.shape[1], rows.shape[2]

    def pulled(self, weight: Tensor | None, scale: Tensor) -> PerExample:
        rows = (self.rows if weight is None else self.rows @ weight) * scale[:, None]
        return Dense(rows.mT @ rows) if smaller(rows.shape[2], self.rank) else Factor(rows)

    def moment(self) -> Tensor:
        flat = self.rows.flatten(0, 1)
        return flat.mT @ flat

    def factored(self) -> Factor:
        return self


def smaller(width: int, rank: int) -> bool:
    """Whether a place of this width holds fewer directions than arrive; one alone would broadcast with others."""
    return 1 < width < rank


def fits(width: int, rank: int) -> bool:
    """Whether a dense form stays dense on a place of this width."""
    return 1 < width <= rank


def scaled_(matrices: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return matrices.mul_(left[:, :, None]).mul_(right[:, None])


def pair_products(h: Tensor, weight: Tensor, scale: Tensor, block: int = 16) -> Tensor:
    """D Wᵀ diag(h) W D for each row of h: one product of h with the pairs W_ki W_kj, i <= j, a few i at a time."""
    n, w = h.shape[0], weight.shape[1]
    out = h.new_empty(n, w, w)
    for i in range(0, w, block):
        pairs = weight[:, i : i + block, None] * weight[:, None, i:]
        rows = scaled_((h @ pairs.flatten(1)).view(n, *pairs.shape[1:]), scale[:, i : i + block], scale[:, i:])
        out[:, i : i + block, i:] = rows
        out[:, i + block :, i : i + block] = rows[:, :, block:].mT
    return out
