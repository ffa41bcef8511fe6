"""How much the output of a module can move with what goes into it, in root mean squares: the rules, one by one.

A slope bounds |∂y|/|∂x| where weights, and what goes into every layer, have the size 1 in their norms (a normalized
layer's input is of that size by construction). Reshaping and selecting count 1.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Slope:
    """Of a module: in its input, and in the output of each of its `parts` that holds parameters ("" is all of it)."""

    input: float = 1.0
    parts: Mapping[str, float] = field(default_factory=lambda: {"": 1.0})


def _attention(m: nn.MultiheadAttention) -> Slope:
    """Scores q·k/√d of heads of width d: √d in q and in k, 1 in v, for q, k and v of size 1."""
    width = math.sqrt(m.head_dim)
    return Slope(2 * width + 1, {"q": width, "k": width, "v": 1.0, "out": 1.0, "": 1.0})


def _window(m: Any) -> Slope:
    size = m.kernel_size if isinstance(m.kernel_size, tuple) else (m.kernel_size,) * _dimension(m)
    return Slope(math.sqrt(math.prod(size)))


def _average(m: Any) -> Slope:
    """A mean, but where its divisor was given."""
    size = m.kernel_size if isinstance(m.kernel_size, tuple) else (m.kernel_size,) * _dimension(m)
    return Slope(1.0 if m.divisor_override is None else math.prod(size) / abs(m.divisor_override))


def _dimension(m: nn.Module) -> int:
    return int(type(m).__name__[-2])


GELU, SILU = 1.129, 1.0999
ONE: tuple[type[nn.Module], ...] = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
    nn.ReLU, nn.ReLU6, nn.Tanh, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Hardshrink, nn.Softshrink,
    nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
    nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d,
)  # fmt: skip
MODULES: dict[type[nn.Module], Callable[[Any], Slope]] = {
    **dict.fromkeys(ONE, lambda m: Slope()),
    nn.Sigmoid: lambda m: Slope(0.25),
    nn.GELU: lambda m: Slope(GELU),
    nn.SiLU: lambda m: Slope(SILU),
    nn.ELU: lambda m: Slope(max(1.0, m.alpha)),
    nn.CELU: lambda m: Slope(1.0),
    nn.LeakyReLU: lambda m: Slope(max(1.0, abs(m.negative_slope))),
    nn.Softmax: lambda m: Slope(0.5),
    nn.AvgPool2d: _average,
    nn.AvgPool3d: _average,
    nn.MaxPool1d: _window,
    nn.MaxPool2d: _window,
    nn.MaxPool3d: _window,
    nn.MultiheadAttention: _attention,
}

FUNCTIONS: dict[Any, float] = {
    **dict.fromkeys((operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub), 1.0),
    **dict.fromkeys((operator.neg, torch.neg, operator.getitem, torch.cat, torch.concat, torch.stack), 1.0),
    **dict.fromkeys((torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.movedim, torch.squeeze), 1.0),
    **dict.fromkeys((torch.unsqueeze, torch.chunk, torch.split, torch.unbind, torch.narrow, torch.mean), 1.0),
    **dict.fromkeys((torch.relu, F.relu, torch.tanh, F.tanh, F.dropout, F.layer_norm, F.avg_pool2d, F.softplus), 1.0),
    **dict.fromkeys((F.adaptive_avg_pool1d, F.adaptive_avg_pool2d), 1.0),
    **dict.fromkeys((torch.sigmoid, F.sigmoid), 0.25),
    **dict.fromkeys((torch.softmax, F.softmax), 0.5),
    F.gelu: GELU,
    F.silu: SILU,
}
METHODS: dict[str, float] = {
    **dict.fromkeys(
        (
            "add", "sub", "neg", "view", "reshape", "flatten", "unflatten", "permute", "transpose", "movedim", "mT",
            "contiguous", "squeeze", "unsqueeze", "expand", "expand_as", "chunk", "split", "unbind", "narrow", "clone",
            "mean", "relu", "tanh", "to", "float", "double", "type_as",
        ),
        1.0,
    ),
    "sigmoid": 0.25,
    "softmax": 0.5,
}  # fmt: skip
SHAPES = {getattr, torch.arange, len, operator.floordiv}
"""What gives numbers and shapes, which do not move."""
SIZES = {"size", "dim", "numel", "long", "new_zeros"}
MULTIPLES = {operator.mul, operator.imul, torch.mul, operator.truediv, torch.div, "mul", "div"}
