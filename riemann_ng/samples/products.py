"""Products of rows with themselves. They are symmetric, so where it pays only one triangle is multiplied out."""

from __future__ import annotations

import torch
from torch import Tensor

PANEL = 64
"""Rows of the result that one thread computes at a time."""


def gram(
    x: Tensor, weight: float = 1.0, out: Tensor | None = None, base: Tensor | None = None, kept: float = 0.0
) -> Tensor:
    """weight xᵀx for rows x (n, d); with a `base`, `kept` times that besides, on and below the diagonal alone.

    The base itself may be `out`: then nothing is copied.
    """
    d = x.shape[1]
    panel = PANEL * torch.get_num_threads()
    if x.requires_grad or x.device.type != "cpu" or 2 * d <= 3 * panel:
        if x.requires_grad or base is None:
            whole = (x.mT @ x) * weight if x.requires_grad else (x.mT @ x).mul_(weight)
            whole = onto(whole, base, kept)
        elif out is not None:
            return torch.addmm(base, x.mT, x, beta=kept, alpha=weight, out=out)
        else:
            whole = torch.addmm(base, x.mT, x, beta=kept, alpha=weight)
        return whole if out is None else out.copy_(whole)
    out = x.new_empty(d, d) if out is None else out
    for start in range(0, d, panel):
        stop = min(start + panel, d)
        below = out[start:stop, :stop]
        before = below if base is None else base[start:stop, :stop]
        torch.addmm(before, x[:, start:stop].mT, x[:, :stop], beta=kept, alpha=weight, out=below)
        if base is None:
            out[:start, start:stop] = below[:, :start].mT
    return out


def onto(M: Tensor, base: Tensor | None, kept: float) -> Tensor:
    return M if base is None else torch.add(M, base, alpha=kept)


def grams_into(x: Tensor, weight: float, base: Tensor, kept: float) -> None:
    """base becomes kept base + weight Σ x xᵀ, on and below the diagonals: what `grams` gives on it, bit for bit."""
    if in_rows(x):
        gram(x.squeeze(-2).flatten(0, -2), weight, base[0], base[0], kept)
    else:
        torch.add(grams(x, weight), base, alpha=kept, out=base)


def in_rows(x: Tensor) -> bool:
    """Whether elements of one member lie so that their rows are multiplied as they stand."""
    m, d = x.shape[-2:]
    return m == 1 and (d == 1 or x.stride(-1) == 1 or x.stride(-3) != 1 or d > x.shape[-3])


def grams(x: Tensor, weight: float = 1.0, base: Tensor | None = None, kept: float = 0.0) -> Tensor:
    """weight Σ x xᵀ over all but the last two dimensions: (examples, draws, sites, members, d) to (members, d, d).

    With a `base` of that shape, `kept` times that besides, on and below the diagonals.
    """
    m, d = x.shape[-2:]
    if m == 1:
        x = x.squeeze(-2)
        if d > 1 and x.stride(-1) != 1 and x.stride(-2) == 1 and d <= x.shape[-2]:  # channels before sites, not copied
            x = x.flatten(0, -3)
            return onto(((x.mT @ x).sum(0) * weight)[None], base, kept)
        return gram(x.flatten(0, -2), weight, base=None if base is None else base[0], kept=kept)[None]
    rows = x.flatten(0, -3)
    if d == 1:
        return onto(rows.square().sum(0)[..., None] * weight, base, kept)
    rows = rows.movedim(1, 0)
    return onto((rows.mT @ rows) * weight, base, kept)


def with_borders(inner: Tensor, total: Tensor, mass: float) -> Tensor:
    """The moments of (a, 1), (members, d + 1, d + 1), from those of a, their sums (members, d), and the mass."""
    m, d = total.shape
    out = inner.new_empty(m, d + 1, d + 1)
    out[:, :d, :d] = inner
    return bordered(out, total, mass)


def bordered(out: Tensor, total: Tensor, mass: float | Tensor) -> Tensor:
    """The same where the moments of a are in `out` already."""
    out[:, :-1, -1], out[:, -1, :-1], out[:, -1, -1] = total, total, mass
    return out
