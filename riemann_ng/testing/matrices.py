"""Dense matrices put together without the library: what the kinds are drawn with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..inner_products import InnerProduct
from .draws import Draw

Drawn = tuple[InnerProduct, Tensor]
Factory = Callable[[Draw], Drawn]


def kron(*matrices: Tensor) -> Tensor:
    total = matrices[0]
    for matrix in matrices[1:]:
        total = torch.kron(total, matrix)
    return total


def by_member(members: int, matrices: Sequence[Tensor]) -> Tensor:
    """One product for each member, of matrices (d, d) common to all and (members, d, d) of each."""
    blocks = [kron(*(M if M.ndim == 2 else M[i] for M in matrices)) for i in range(members)]
    return torch.block_diag(*blocks)


def moment(x: Tensor, weights: Tensor | float) -> Tensor:
    """Σ w x xᵀ by a loop over the elements (examples, draws, sites, dim)."""
    w = torch.as_tensor(weights, dtype=x.dtype, device=x.device).broadcast_to(x.shape[:3])
    return torch.einsum("nkt,nkti,nktj->ij", w, x, x).contiguous()  # its strides depend on what orders the contraction
