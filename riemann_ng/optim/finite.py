"""Whether an element holds numbers only: one look at all blocks, by their sums, to wait for the device once."""

from __future__ import annotations

import torch

from ..elements import Covector, Vector


def finite(v: Vector | Covector) -> bool:
    sums = torch.stack([t.sum() for t in v.blocks.values()])
    return bool(sums.isfinite().all())
