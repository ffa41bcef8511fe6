"""Products of rows with themselves. They are symmetric, so where it pays only one triangle is multiplied out."""

from __future__ import annotations

import torch
from torch import Tensor

PANEL = 64
"""Rows of the result that one thread computes at a time."""


def gram(x: Tensor, weight: float = 1.0, out: Tensor | None = None) -> Tensor:
    """weight xᵀx for rows x (n, d)."""
    d = x.shape[1]
    panel = PANEL * torch.get_num_threads()
    if x.requires_grad or x.device.type != "cpu" or d <= panel:
        whole = (x.mT @ x) * weight if x.requires_grad else (x.mT @ x).mul_(weight)
        return whole if out is None else out.copy_(whole)
    out = x.new_empty(d, d) if out is None else out
    for start in range(0, d, panel):
        stop = min(start + panel, d)
        below = out[start:stop, :stop]
        torch.addmm(below, x[:, start:stop].mT, x[:, :stop], beta=0, alpha=weight, out=below)
        out[:start, start:stop] = below[:, :start].mT
    return out


def grams(x: Tensor, weight: float = 1.0) -> Tensor:
    """weight Σ x xᵀ over all but the last two dimensions: (examples, draws, sites, members, d) to (members, d, d)."""
    m, d = x.shape[-2:]
    if m == 1:
        x = x.squeeze(-2)
        if d > 1 and x.stride(-1) != 1 and x.stride(-2) == 1 and d <= x.shape[-2]:  # channels before sites, not copied
            x = x.flatten(0, -3)
            return ((x.mT @ x).sum(0) * weight)[None]
        return gram(x.flatten(0, -2), weight)[None]
    rows = x.flatten(0, -3)
    if d == 1:
        return rows.square().sum(0)[..., None] * weight
    rows = rows.movedim(1, 0)
    return (rows.mT @ rows) * weight


def with_borders(inner: Tensor, total: Tensor, mass: float) -> Tensor:
    """The moments of (a, 1), (members, d + 1, d + 1), from those of a, their sums (members, d), and the mass."""
    m, d = total.shape
    out = inner.new_empty(m, d + 1, d + 1)
    out[:, :d, :d] = inner
    return bordered(out, total, mass)


def bordered(out: Tensor, total: Tensor, mass: float) -> Tensor:
    """The same where the moments of a are in `out` already."""
    out[:, :-1, -1], out[:, -1, :-1], out[:, -1, -1] = total, total, mass
    return out
