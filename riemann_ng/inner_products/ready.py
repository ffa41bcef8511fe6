"""Forms made ready for many solves, as between two refreshes of an optimizer."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

from .base import InnerProduct
from .common import degenerate_of
from .direct_sum import BlockDiagonal

G = TypeVar("G", bound=InnerProduct)


def made_ready(g: G, like: Tensor | None = None) -> G:
    """The form itself, factorized now and with explicit inverses where that pays: `sharp` is then a few products.

    What is kept holds until a tensor of the form is changed in place, as any factorization does.
    """
    if isinstance(g, BlockDiagonal):
        for part in g.parts.values():
            made_ready(part, like)
        return g
    with degenerate_of(g.space, g.rank, "made_ready"):
        g.keep(g.factorization(like).for_many_solves())
    return g
