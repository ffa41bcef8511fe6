"""Half precision is for activations: samples, vectors and covectors hold at least single precision."""

from __future__ import annotations

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)


def at_least_single(t: Tensor) -> Tensor:
    """float32 for half precision, which it holds exactly; anything else as it is."""
    return t.float() if t.dtype in HALVES else t


def dense(gradient: Tensor) -> Tensor:
    """A gradient without holes."""
    return gradient.to_dense() if gradient.layout != torch.strided else gradient


def tolerance(*tensors: Tensor | None) -> float:
    """How far two computations that agree may be apart, relatively, where these tensors took part."""
    coarsest = max(torch.finfo(t.dtype).eps for t in tensors if t is not None)
    return min(1e3 * coarsest, 0.1)
