"""Whether two expressions are one form, so that a sum of them is simpler than it looks."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import InnerProduct
from .diagonal import Diagonal, Euclidean
from .gram import Gram
from .kronecker import Kronecker
from .moment import SecondMoment
from .on_translations import EuclideanOnTranslations


def same_form(g: InnerProduct, h: InnerProduct) -> bool:
    """Whether two forms are one by what they hold, also where they were put together twice, or stored and restored."""
    if g is h or g.space != h.space:
        return g is h
    if isinstance(g, Kronecker) and isinstance(h, Kronecker):
        return len(g.factors) == len(h.factors) and all(map(same_form, g.factors, h.factors))
    mine, theirs = _numbers(g), _numbers(h)
    if mine is not None and theirs is not None:
        alike = (mine.shape, mine.dtype, mine.device) == (theirs.shape, theirs.dtype, theirs.device)
        return mine is theirs or (alike and torch.equal(mine, theirs))
    return type(g) is type(h) and isinstance(g, (Euclidean, EuclideanOnTranslations))


def _numbers(g: InnerProduct) -> Tensor | None:
    """Those of a leaf that has a matrix; of a diagonal one they are a vector."""
    if isinstance(g, (Gram, Diagonal)):
        return g.entries
    return g.member_matrices() if isinstance(g, SecondMoment) else None
