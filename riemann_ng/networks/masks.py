"""Padding: which sites of a batch are there at all.

A mask (examples, *sites) is true where there is a token. An output, and a use of a layer, is taken to be per token when
it has as many sites as the mask; anything else (before an unfolding, after a pooling) is not masked. Directions at
outputs that are not there are zero, and sites that are not there weigh nothing among inputs and cotangents. Per-example
gradients still sum over every site, so what flows through a site that is masked and yet used stays in the full Fisher.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..elements import describe
from ..errors import ShapeMismatch
from ..likelihoods import OutputMetric
from ..likelihoods.sites import SiteLikelihood


def check_mask(mask: Tensor, n: int) -> None:
    """Refuses what is no mask of n examples."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.ndim < 2 or mask.shape[0] != n:
        raise ShapeMismatch(
            f"ShapeMismatch in observe: a mask is bool, ({n} examples, sites), true where there is a token; "
            f"got {describe(mask)}."
        )
    if not bool(mask.any()):
        raise ShapeMismatch("ShapeMismatch in observe: the mask leaves no site at all.")


def output_mask(mask: Tensor, z: Tensor, output: OutputMetric) -> Tensor | None:
    """What to multiply cotangents of the output by; None where the output is not per token."""
    flat = mask.flatten(1)
    if isinstance(output, SiteLikelihood):
        layout = output.layout
        if layout.sites(z.shape) == flat.shape[1]:
            parameters = z.numel() // flat.numel()
            return layout.join(flat[..., None].expand(*flat.shape, parameters), z.shape)
        if layout.parameters != 1:
            return None
    if z.ndim > mask.ndim and z.shape[: mask.ndim] == mask.shape:
        return mask.reshape(*mask.shape, *(1,) * (z.ndim - mask.ndim))
    return None


def block_mask(mask: Tensor, sites: Sequence[int]) -> Tensor | None:
    """The mask of a block whose uses have so many sites each, one after the other; None where no use is per token."""
    flat = mask.flatten(1)
    if flat.shape[1] not in sites:
        return None
    parts = [flat if t == flat.shape[1] else flat.new_ones(len(flat), t) for t in sites]
    return torch.cat(parts, dim=1)
