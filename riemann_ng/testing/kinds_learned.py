"""Forms known by an inverse that was learned."""

from __future__ import annotations

import torch

from ..inner_products import Diagonal, Gram
from ..metrics.learned import LearnedInverse
from .draws import Draw
from .matrices import Drawn, kron


def learned_inverse(draw: Draw) -> Drawn:
    """Of a matrix, of a diagonal one, or of a product."""
    how, V, W = draw.integer(0, 2), draw.simple_space(1, 3), draw.simple_space(1, 3)
    if how == 2:
        first, second = draw.positive(V.dim), draw.positive(W.dim)
        return LearnedInverse(Gram(V, first) * Gram(W, second)), torch.linalg.inv(kron(first, second)).contiguous()
    M = draw.positive(V.dim)
    if how == 1:
        entries = M.diagonal().clone()
        return LearnedInverse(Diagonal(V, entries, name=draw.name("d"))), torch.diag(1 / entries)
    return LearnedInverse(Gram(V, M, name=draw.name("M"))), torch.linalg.inv(M).contiguous()
