"""Layer by layer: the exact damped solve by the Riccati recursion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidSetting, NotClosed
from ..factorizations import Factorization
from .base import Solvable, Solver
from .recursion import factorize_chain


@dataclass(frozen=True)
class Riccati(Solver):
    """Of a form that knows the chain of stages it was made along, and a damping for each layer: exact, no iteration.

    A sweep from the outputs to the inputs eliminates one stage after the other (see `recursion.py`), a sweep back gives
    the step. `Fisher() + λ * h` and `GaussNewton(...) + λ * h` are such forms, observed with `Exact()` or
    `Linearized()` on networks that are chains, with h a direct sum over the layers. `limit` bounds the numbers that one
    stage may hold at once.
    """

    limit: int = 2**27

    def __post_init__(self) -> None:
        if isinstance(self.limit, bool) or not isinstance(self.limit, int) or self.limit < 1:
            raise InvalidSetting(f"InvalidSetting in Riccati: limit is a positive number, got {self.limit!r}.")

    def factorize(self, g: Solvable, like: Tensor | None = None) -> Factorization:
        chain = g.stages()
        if chain is None:
            raise NotClosed(
                f"NotClosed in Riccati: the form on {g.space} does not know the stages it was made along. Those that "
                f"do are Fisher() and GaussNewton(...) with structure 'full', 'matrix-free' or 'dual', observed with "
                f"Exact() or Linearized(), plus a damping that is a direct sum over the layers, such as "
                f"λ * EuclideanMetric(). Any other form has solvers.Auto()."
            )
        dtype = g.dtype or (torch.get_default_dtype() if like is None else like.dtype)
        device = g.device or (None if like is None else like.device)
        return factorize_chain(chain, torch.empty(0, dtype=dtype, device=device), self.limit)
