"""Kinds that only affine functionals have, drawn together with their matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from ..inner_products import Gram, InnerProduct, euclidean_on_translations
from ..spaces import AffineSpace, Family
from .draws import Draw


def damped_on_translations(draw: Draw) -> tuple[InnerProduct, Tensor]:
    """A form on Â*, or one for each of a few, with lengths of linear parts added."""
    space, members = AffineSpace(draw.name("A"), draw.integer(1, 3)).hull.dual, draw.integer(1, 2)
    M = draw.positive(space.dim, members)
    ones = torch.ones(members, space.dim, dtype=M.dtype, device=M.device)
    ones[:, -1] = 0
    g = Gram(space, M[0]) if members == 1 else Gram(Family(space, members), M)
    return g + 0.5 * euclidean_on_translations(g.space), torch.block_diag(*M) + 0.5 * torch.diag(ones.flatten())
