"""Normalizations by their formulas: torch's own treat what they keep for the backward pass as constants.

Second derivatives of a layer norm, of an instance norm and of a weight norm that are made of torch's first ones are
wrong, without a word: the mean, the deviation and the norm that were kept are not differentiated again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import group_norm, instance_norm, layer_norm
from torch.overrides import TorchFunctionMode

Function = Callable[..., Any]


class PlainNorms(TorchFunctionMode):
    """While it is on, normalizations are computed of sums, products and roots alone."""

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return PLAIN.get(func, func)(*args, **(kwargs or {}))


def standardized(x: Tensor, over: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(over, keepdim=True)
    return centred * (centred.square().mean(over, keepdim=True) + eps).rsqrt()


def plain_layer_norm(
    x: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    y = standardized(x, tuple(range(-len(shape), 0)), eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def by_channel(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    shape = (1, -1, *(1 for _ in y.shape[2:]))
    y = y if weight is None else y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


def plain_group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    y = standardized(x.reshape(x.shape[0], num_groups, -1), (-1,), eps)
    return by_channel(y.reshape(x.shape), weight, bias)


def plain_instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return instance_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    return by_channel(standardized(input, tuple(range(2, input.ndim)), eps), weight, bias)


def plain_weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    over = tuple(i for i in range(v.ndim) if i != dim % v.ndim) if dim != -1 else tuple(range(v.ndim))
    return v * (g / v.square().sum(over, keepdim=True).sqrt())


PLAIN: dict[Function, Function] = {
    layer_norm: plain_layer_norm,
    group_norm: plain_group_norm,
    instance_norm: plain_instance_norm,
    torch._weight_norm: plain_weight_norm,
    torch._weight_norm_interface: lambda *args: (plain_weight_norm(*args), None),
}
