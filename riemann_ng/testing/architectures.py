"""The kinds of small networks that tests draw: every layer that has a reader, each in a net around it.

A kind is a function of a `Draw`. Its integers shrink towards the first choice and the smallest size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .draws import Draw


class Call:
    """A call that can be made again and again, and is printed as code: `Call(nn.Linear, 3, 4)` is nn.Linear(3, 4)."""

    def __init__(self, f: Callable[..., Any], *args: Any, **options: Any):
        self.f, self.args, self.options = f, args, options

    def __call__(self) -> Any:
        made = [a() if isinstance(a, Call) else a for a in self.args]
        return self.f(*made, **self.options)

    def __repr__(self) -> str:
        room = "nn." if self.f.__module__.startswith("torch.nn") else ""
        said = [repr(a) for a in self.args] + [f"{k}={v!r}" for k, v in self.options.items()]
        return f"{room}{self.f.__name__}({', '.join(said)})"


class Twice(nn.Module):
    """One module, used twice in a row."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(torch.tanh(self.module(x)))


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return x + self.module(x)


class MeanOfSites(nn.Module):
    """The mean over tokens or time steps, the dimension after the examples."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class LastStep(nn.Module):
    """The last output of a recurrent module that has the examples first."""

    def __init__(self, module: nn.RNNBase):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)[0][:, -1]


class Attention(nn.Module):
    """Attention of a sequence to itself."""

    def __init__(self, module: nn.MultiheadAttention):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x, x, x, need_weights=False)[0]


class TiedTokens(nn.Module):
    """An embedding whose weight is that of the output map, and in between two linear maps that share theirs."""

    def __init__(self, vocabulary: int, width: int):
        super().__init__()
        self.embed, self.out = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary)
        self.left, self.right = nn.Linear(width, width), nn.Linear(width, width)
        self.out.weight, self.right.weight, self.right.bias = self.embed.weight, self.left.weight, self.left.bias

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        return self.out(torch.tanh(self.left(h) + self.right(torch.sin(h))))


@dataclass(frozen=True)
class Architecture:
    """How a module is made, the shape of one input, how many numbers a site of its output has, and the largest number
    of features of a layer, with their 1.
    """

    make: Call
    shape: tuple[int, ...]
    outputs: int
    features: int
    tokens: int = 0


def chain(*calls: Call | None) -> Call:
    return Call(nn.Sequential, *[call for call in calls if call is not None])


def linear(draw: Draw, inputs: int, outputs: int) -> Call:
    bias = draw.integer(0, 2) < 2  # shrinks to a bias
    return Call(nn.Linear, inputs, outputs) if bias else Call(nn.Linear, inputs, outputs, bias=False)


def activation(draw: Draw) -> Call:
    return Call(draw.one_of([nn.Tanh, nn.Softplus, nn.SiLU, nn.Sigmoid]))


def mlp(draw: Draw) -> Architecture:
    widths = [draw.integer(1, 4) for _ in range(draw.integer(2, 4))]
    calls: list[Call] = []
    for i, (a, b) in enumerate(pairwise(widths)):
        calls += [activation(draw)] * (i > 0) + [linear(draw, a, b)]
    return Architecture(chain(*calls), (widths[0],), widths[-1], max(widths) + 1)


def convolution(draw: Draw, axes: int, transposed: bool = False) -> Architecture:
    groups = draw.integer(1, 2)
    into, out = groups * draw.integer(1, 2), groups * draw.integer(1, 2)
    kernel, stride, dilation = draw.integer(1, 2 if axes > 1 else 3), draw.integer(1, 2), draw.integer(1, 2)
    padding = min(draw.integer(0, 1), kernel - 1)
    name = f"Conv{'Transpose' * transposed}{axes}d"
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if not transposed and draw.integer(0, 3) == 3:  # torch warns of "same" with an even kernel
        options |= {"padding": "same", "stride": 1}
        kernel += 1 - kernel % 2
    if not transposed and options["padding"] and draw.integer(0, 3) == 3:
        options["padding_mode"] = "circular"
    if draw.integer(0, 2) == 2:
        options["bias"] = False
    usual = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    layer = Call(getattr(nn, name), into, out, kernel, **{k: v for k, v in options.items() if usual.get(k) != v})
    shape = (into, *[dilation * (kernel - 1) + 2 + 2 * (axes == 1)] * axes)
    pool = getattr(nn, f"AdaptiveAvgPool{axes}d")
    outputs = draw.integer(1, 3)
    made = chain(layer, activation(draw), Call(pool, 1), Call(nn.Flatten), linear(draw, out, outputs))
    return Architecture(made, shape, outputs, max(into // groups * kernel**axes, out) + 1)


def normalization(draw: Draw) -> Architecture:
    """Two inputs at least: one number, normalized, is a sign."""
    inputs, width, outputs = draw.integer(2, 3), 2 * draw.integer(1, 2), draw.integer(1, 3)
    layer = draw.one_of([
        Call(nn.LayerNorm, width), Call(nn.RMSNorm, width, eps=1e-2), Call(nn.GroupNorm, 2, width),
        Call(nn.BatchNorm1d, width), Call(nn.LayerNorm, width, bias=False),
    ])  # fmt: skip
    if layer.f is nn.LayerNorm and width == 2:  # two normalized numbers are plus and minus one
        width, layer = 3, Call(nn.LayerNorm, 3, **layer.options)
    if layer.f is nn.GroupNorm:
        width, layer = 6, Call(nn.GroupNorm, 2, 6)
    made = chain(linear(draw, inputs, width), layer, activation(draw), linear(draw, width, outputs))
    return Architecture(made, (inputs,), outputs, max(inputs, width) + 1)


def sentences(draw: Draw) -> Architecture:
    """Embedded tokens, a linear map at every site, and one output for each token or for all of them."""
    vocabulary, width, sites = draw.integer(2, 4), draw.integer(1, 3), draw.integer(1, 3)
    outputs = draw.integer(1, 3)
    pooled = Call(MeanOfSites) if draw.integer(0, 1) == 0 else None
    made = chain(
        Call(nn.Embedding, vocabulary, width), linear(draw, width, width), activation(draw), pooled,
        linear(draw, width, outputs),
    )  # fmt: skip
    return Architecture(made, (sites,), outputs, max(vocabulary, width + 1), vocabulary)


def recurrent(draw: Draw) -> Architecture:
    module = draw.one_of([nn.RNN, nn.GRU, nn.LSTM])
    inputs, width, outputs = draw.integer(1, 2), draw.integer(1, 2), draw.integer(1, 3)
    options: dict[str, Any] = {"batch_first": True}
    if draw.integer(0, 3) == 3:
        options["num_layers"] = 2
    both = draw.integer(0, 3) == 3
    if both:
        options["bidirectional"] = True
    seen = width * (2 if both else 1)
    made = chain(Call(LastStep, Call(module, inputs, width, **options)), linear(draw, seen, outputs))
    return Architecture(made, (draw.integer(1, 3), inputs), outputs, max(inputs, seen) + 1)


def attention(draw: Draw) -> Architecture:
    heads, inputs, outputs = draw.integer(1, 2), draw.integer(1, 3), draw.integer(1, 3)
    width = heads * draw.integer(1, 2)
    inner = Call(Attention, Call(nn.MultiheadAttention, width, heads, batch_first=True))
    made = chain(linear(draw, inputs, width), Call(Residual, inner), Call(MeanOfSites), linear(draw, width, outputs))
    return Architecture(made, (draw.integer(2, 3), inputs), outputs, max(inputs, width) + 1)


def tied(draw: Draw) -> Architecture:
    width = draw.integer(1, 3)
    if draw.integer(0, 1) == 0:
        outputs = draw.integer(1, 3)
        made = chain(Call(Twice, linear(draw, width, width)), activation(draw), linear(draw, width, outputs))
        return Architecture(made, (width,), outputs, width + 1)
    vocabulary = draw.integer(2, 4)
    made = Call(TiedTokens, vocabulary, width)
    return Architecture(made, (draw.integer(1, 3),), vocabulary, max(vocabulary, width) + 1, vocabulary)


HELPERS = {module.__name__: module for module in (Twice, Residual, MeanOfSites, LastStep, Attention, TiedTokens)}
"""The modules that are no torch modules, by name."""

ARCHITECTURES: dict[str, Callable[[Draw], Architecture]] = {
    "mlp": mlp,
    "conv1d": lambda draw: convolution(draw, 1),
    "conv2d": lambda draw: convolution(draw, 2),
    "transposed": lambda draw: convolution(draw, draw.integer(1, 2), transposed=True),
    "normalization": normalization,
    "tokens": sentences,
    "recurrent": recurrent,
    "attention": attention,
    "tied": tied,
}
"""The kinds of networks by name, the simplest first."""
