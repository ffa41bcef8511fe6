"""What an optimizer keeps of damped factors: their inverses alone."""

from __future__ import annotations

import torch

from ..inner_products import Euclidean, Gram, damp_factors, inverted
from ..spaces import Family
from .draws import Draw
from .matrices import Drawn, kron


def by_inverses(draw: Draw) -> Drawn:
    """Of a matrix, of one for each member of a family, or of a product with damped factors."""
    how = draw.integer(0, 2)
    if how == 2:
        g, G = draw.simple_space(2, 3), draw.simple_space(2, 4)
        matrices = [draw.positive(V.dim) for V in (g, G)]
        c = float(draw.between(0.01, 1.0))
        product = Gram(g, matrices[0]) * Gram(G, matrices[1])
        form = damp_factors(product, c, Euclidean(product.space), "none")
        M = kron(*(M + c**0.5 * torch.eye(len(M), dtype=M.dtype, device=M.device) for M in matrices))
    elif how == 1:
        V = Family(draw.simple_space(1, 3), draw.integer(1, 3))
        blocks = draw.positive(V.of.dim, V.members)
        form, M = Gram(V, blocks), torch.block_diag(*blocks)
    else:
        W = draw.simple_space()
        M = draw.positive(W.dim)
        form = Gram(W, M, name=draw.name("M"))
    kept = inverted(form)
    assert kept is not None
    return kept, M
