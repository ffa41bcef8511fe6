"""Maps of one vector, applied to batches of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def by_row(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A map of vectors, applied to every one of a batch."""
    if x.ndim == 1:
        return f(x)
    rows = [by_row(f, row) for row in x.unbind()]
    return rows[0][None] if len(rows) == 1 else torch.stack(rows)
