"""Conjugate gradients."""
from __future__ import annotations
from dataclasses import dataclass
from torch import Tensor
from ..factorizations import Factorization
from .base import Solvable, Solver


@dataclass(frozen=True)
class CG(Solver):
    """Placeholder, being written."""

    def factorize(self, g: Solvable, like: Tensor | None = None) -> Factorization:
        raise NotImplementedError
