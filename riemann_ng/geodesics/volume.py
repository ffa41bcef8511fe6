"""The volume element of an inner product, relative to another: √det g has a meaning only as a ratio."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import DegenerateMetric
from ..inner_products import InnerProduct
from ..metrics import spectrum


def log_volume(
    g: InnerProduct, relative_to: InnerProduct, modulo_kernel: bool = False, like: Tensor | None = None
) -> Tensor:
    """log √(det g / det h), the logarithm of how much larger the volume of a box is for g than for h.

    It is the same in all coordinates, if h comes along. With h the coordinates themselves, `Euclidean(space)`, it is
    the density of g's volume in them: of the Fisher metric, Jeffreys' prior, which under other coordinates takes the
    factor |det D|. `modulo_kernel` measures both forms on the quotient by the kernel of g, where a class is as long
    for h as its shortest member.
    """
    values = spectrum(g, relative_to, like)
    alive = values > 0
    if not modulo_kernel and not bool(alive.all()):
        rank = int(alive.sum())
        raise DegenerateMetric(
            f"DegenerateMetric in log_volume: {g!r} has rank {rank} of {g.space.dim}, and every box along its kernel "
            f"has volume zero. modulo_kernel=True measures what is left on the quotient by the kernel; or damp the "
            f"form by a named h, g + λ * h.",
            g.space,
            rank,
        )
    return 0.5 * values[alive].log().sum()


def volume(
    g: InnerProduct, relative_to: InnerProduct, modulo_kernel: bool = False, like: Tensor | None = None
) -> Tensor:
    """√(det g / det h): see `log_volume`."""
    return torch.exp(log_volume(g, relative_to, modulo_kernel, like))
