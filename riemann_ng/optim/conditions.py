"""How well the forms of the layers are conditioned. An eigendecomposition each: made when a listener asks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..inner_products import InnerProduct, Kronecker
from ..inner_products.base import InnerProduct as Form

LARGEST = 4096
"""Forms of more numbers are not looked at."""


def worst_conditioned(g: InnerProduct) -> tuple[str, float | None]:
    """The summand of the largest condition number, and that number; None where none could be looked at."""
    found = {path: condition(part) for path, part in (g.summands() or {"": g}).items()}
    known = {path: number for path, number in found.items() if number is not None}
    if not known:
        return "", None
    worst = max(known, key=lambda path: known[path])
    return worst, known[worst]


def condition(g: Form) -> float | None:
    """The ratio of the largest eigenvalue to the smallest, factor by factor for products."""
    if isinstance(g, Kronecker):
        factors = [condition(factor) for factor in g.factors]
        return None if None in factors else math.prod(f for f in factors if f is not None)
    if g.structure.kind in ("diagonal", "identity"):
        return ratio(g.diagonal_entries(torch.empty(0)))
    return None if g.space.dim > LARGEST else ratio(torch.linalg.eigvalsh(g.matrix(torch.empty(0)).double()))


def ratio(values: Tensor) -> float:
    least, most = float(values.min()), float(values.max())
    return most / least if least > 0 else math.inf
