"""How one use of a block moves its own output when the block's data move, and the transpose."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from ..samples import OneHot
from .readers import ConvolutionReader, LinearReader, ScaleShiftReader
from .recording import Call


class Use(ABC):
    """How one use of a block moves its own output, V ↦ V a, in the layout `seen` gives to gradients."""

    def __init__(self, call: Call, n: int):
        self.call, self.n = call, n

    def seen(self, gradient: Tensor) -> Tensor:
        """The gradient at the output, differentiably, as the other two take and give it."""
        return gradient

    @abstractmethod
    def moved(self, data: Tensor) -> Tensor:
        """V a for the block's data."""

    @abstractmethod
    def add_to(self, data: Tensor, gradient: Tensor, keep: float) -> None:
        """data ← keep · data + the transpose of `moved`; with keep = 0 what was there does not matter."""


class LinearUse(Use):
    """A plain linear layer whose weight is trained."""

    def moved(self, data: Tensor) -> Tensor:
        features = self.call.x.shape[-1]
        bias = data[:, features] if self.call.reader.bias else None
        return nn.functional.linear(self.call.x, data[:, :features], bias)

    def add_to(self, data: Tensor, gradient: Tensor, keep: float) -> None:
        x, g = self.call.x.flatten(0, -2), gradient.flatten(0, -2)
        weight = data[:, : x.shape[1]]
        torch.addmm(weight, g.mT, x, beta=keep, out=weight)
        if self.call.reader.bias:
            assign(data[:, x.shape[1]], g.sum(0), keep)


class ConvolutionUse(Use):
    """A convolution padded with zeros whose weight is trained, by torch's own kernels."""

    def __init__(self, call: Call, n: int):
        super().__init__(call, n)
        module = call.reader.module
        assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and not isinstance(module.padding, str)
        self.module = module
        self.options: tuple[Any, ...] = (module.stride, module.padding, module.dilation)

    def moved(self, data: Tensor) -> Tensor:
        parts, m = self.call.reader.to_parameters(data), self.module
        moved: Tensor = torch.ops.aten.convolution(
            self.call.x, parts["weight"].contiguous(), parts.get("bias"), *self.options,
            False, [0] * len(m.kernel_size), m.groups,
        )  # fmt: skip
        return moved

    def add_to(self, data: Tensor, gradient: Tensor, keep: float) -> None:
        m, bias = self.module, self.call.reader.bias
        _, weight_gradient, bias_gradient = torch.ops.aten.convolution_backward(
            gradient, self.call.x, m.weight.detach(), [m.out_channels], *self.options,
            False, [0] * len(m.kernel_size), m.groups, [False, True, bias],
        )  # fmt: skip
        found = {"weight": weight_gradient} | ({"bias": bias_gradient} if bias else {})
        assign(data, self.call.reader.from_parameters(found), keep)


class FeatureUse(Use):
    """Any other use, from its features and cotangents."""

    def __init__(self, call: Call, n: int):
        super().__init__(call, n)
        features = call.features(n)
        self.features = features.indices[:, 0] if isinstance(features, OneHot) else features[:, 0]
        self.one_hot = isinstance(features, OneHot)

    def seen(self, gradient: Tensor) -> Tensor:
        return self.call.cotangents(gradient, self.n)

    def moved(self, data: Tensor) -> Tensor:
        if self.one_hot:
            return data.mT[self.features]
        return torch.einsum("ntmi,moi->ntmo" if data.ndim == 3 else "nti,oi->nto", self.features, data)

    def add_to(self, data: Tensor, gradient: Tensor, keep: float) -> None:
        if self.one_hot:
            table = data.mul_(keep) if keep else data.zero_()
            table.mT.index_add_(0, self.features.flatten(), gradient.flatten(0, 1))
        else:
            pattern = "ntmo,ntmi->moi" if data.ndim == 3 else "nto,nti->oi"
            assign(data, torch.einsum(pattern, gradient, self.features), keep)


class ScaleUse(FeatureUse):
    """A trained scale, with or without a shift, of normalized numbers: elementwise, on (n, sites, count, 1)."""

    def __init__(self, call: Call, n: int):
        super().__init__(call, n)
        self.features = self.features[..., 0].contiguous()

    def seen(self, gradient: Tensor) -> Tensor:
        return super().seen(gradient)[..., 0]

    def moved(self, data: Tensor) -> Tensor:
        scaled = self.features * data[:, 0, 0]
        return scaled.add_(data[:, 0, 1]) if self.call.reader.bias else scaled

    def add_to(self, data: Tensor, gradient: Tensor, keep: float) -> None:
        assign(data[:, 0, 0], (gradient * self.features).sum((0, 1)), keep)
        if self.call.reader.bias:
            assign(data[:, 0, 1], gradient.sum((0, 1)), keep)


def use_of(call: Call, n: int) -> Use:
    """The cheapest way for a call."""
    reader, module = call.reader, call.reader.module
    if type(reader) is LinearReader and reader.weight and call.x.ndim > 1:
        return LinearUse(call, n)
    plain = type(reader) is ConvolutionReader and reader.weight and call.x.ndim == 2 + len(reader.module.kernel_size)
    if plain and module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return ConvolutionUse(call, n)
    if isinstance(reader, ScaleShiftReader) and reader.weight:
        return ScaleUse(call, n)
    return FeatureUse(call, n)


def assign(into: Tensor, value: Tensor, keep: float) -> None:
    if keep:
        into.mul_(keep).add_(value)
    else:
        into.copy_(value)
