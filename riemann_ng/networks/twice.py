"""Layer norm whose backward pass is cheap to differentiate in the direction it is linear in.

torch's own derivative of it also prepares derivatives in the input, which a linearized network never asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm
from torch.overrides import TorchFunctionMode

BACKWARD = torch.ops.aten.native_layer_norm_backward


class CheapNorms(TorchFunctionMode):
    """While it is on, layer norms are `Norm` where nobody asks for the gradients of their scales through the graph.

    `typed` are the parameters that layers hold: their gradients come from samples.
    """

    def __init__(self, typed: Collection[Tensor]):
        super().__init__()
        self.typed = {id(p) for p in typed}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = self._norm(*args, **(kwargs or {})) if func is layer_norm else None
        return func(*args, **(kwargs or {})) if found is None else found

    def _norm(
        self, x: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
    ) -> Tensor | None:
        if not self._fits(x, weight, bias):
            return None
        plain = [None if p is None else p.detach() for p in (weight, bias)]
        found: Tensor = Norm.apply(x, list(shape), *plain, eps)  # type: ignore[no-untyped-call]
        return found

    def _fits(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
        return x.requires_grad and x.dtype in (torch.float32, torch.float64) and all(
            p is None or not p.requires_grad or id(p) in self.typed for p in (weight, bias)
        ) and not torch.is_autocast_enabled(x.device.type)  # fmt: skip


class Norm(torch.autograd.Function):
    """Layer norm as a function of its input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        y, mean, rstd = torch.native_layer_norm(x, shape, weight, bias, eps)
        ctx.shape, ctx.weight = shape, weight
        ctx.save_for_backward(x, mean, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd = ctx.saved_tensors
        back: Tensor = Back.apply(gradients[0], x.detach(), ctx.shape, mean, rstd, ctx.weight)  # type: ignore[no-untyped-call]
        return back, None, None, None, None


class Back(torch.autograd.Function):
    """g ↦ P (w g) / σ with P the projection across constants and across the input: linear in g."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, shape: list[int], mean: Tensor, rstd: Tensor, weight: Tensor | None
    ) -> Tensor:
        ctx.shape, ctx.rest = shape, (x, mean, rstd, weight)
        return moved(g, x, shape, mean, rstd, weight)

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, weight = ctx.rest
        back = moved(tangents[0], x, ctx.shape, mean, rstd, None)
        return back if weight is None else back * weight, None, None, None, None, None


def moved(g: Tensor, x: Tensor, shape: list[int], mean: Tensor, rstd: Tensor, weight: Tensor | None) -> Tensor:
    found: Tensor = BACKWARD(g.contiguous(), x, shape, mean, rstd, weight, None, [True, False, False])[0]
    return found
