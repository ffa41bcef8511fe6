"""The torch modules that are read as affine maps."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from ..errors import UnsupportedLayer
from ..samples import Compact, OneHot, WithOne
from ..spaces import AffineSpace, Family, Space, VectorSpace
from .blocks import Arrange, Parameters, Reader, register_layer
from .patches import Patches


@register_layer(nn.Linear)
class LinearReader(Reader):
    module: nn.Linear

    def spaces(self) -> tuple[VectorSpace, VectorSpace]:
        return self.affine(self.module.in_features, self.module.out_features)

    def leading(self, y: Tensor) -> int:
        return y.ndim - 1

    def features(self, x: Tensor) -> Tensor:
        return self.with_one(x).unsqueeze(-2)

    def compact(self, x: Tensor, n: int, arrange: Arrange) -> Compact | None:
        return WithOne(arrange(x.unsqueeze(-2))) if self.weight and self.bias else None

    def values(self, y: Tensor) -> Tensor:
        return y.unsqueeze(-2)

    def to_parameters(self, data: Tensor) -> Parameters:
        return self.split(data)

    def from_parameters(self, tensors: Parameters) -> Tensor:
        return self.join(tensors)


@register_layer("transformers.pytorch_utils.Conv1D", "transformers.modeling_utils.Conv1D")
class TransposedLinearReader(LinearReader):
    """`y = x @ weight + bias` with weight (inputs, outputs), as in GPT-2's Conv1D; register it for such a type."""

    def spaces(self) -> tuple[VectorSpace, VectorSpace]:
        weight = self.module.weight
        return self.affine(weight.shape[0], weight.shape[1])

    def to_parameters(self, data: Tensor) -> Parameters:
        parts = self.split(data)
        return {k: t.mT if k == "weight" else t for k, t in parts.items()}

    def from_parameters(self, tensors: Parameters) -> Tensor:
        return self.join({k: t.mT if k == "weight" else t for k, t in tensors.items()})


@register_layer(nn.Conv1d, nn.Conv2d, nn.Conv3d)
class ConvolutionReader(Reader):
    """Features are patches: channels × taps, in torch's order. Groups are a family."""

    module: nn.Conv1d | nn.Conv2d | nn.Conv3d

    def spaces(self) -> tuple[VectorSpace, VectorSpace]:
        m = self.module
        taps = 1
        for k in m.kernel_size:
            taps *= k
        into, out = self.affine(m.in_channels // m.groups * taps, m.out_channels // m.groups)
        return (into, out) if m.groups == 1 else (Family(into, m.groups), Family(out, m.groups))

    def leading(self, y: Tensor) -> int:
        return y.ndim - 1 - len(self.module.kernel_size)

    def features(self, x: Tensor) -> Tensor:
        m = self.module
        d = len(m.kernel_size)
        lead = x.shape[: x.ndim - 1 - d]
        x = x.reshape(-1, *x.shape[x.ndim - 1 - d :])
        patches = unfold(x, m)  # (items, channels, *sites, *taps)
        n, sites = x.shape[0], patches.shape[2 : 2 + d].numel()
        per_group = m.in_channels // m.groups
        patches = patches.reshape(n, m.groups, per_group, sites, -1).permute(0, 3, 1, 2, 4).flatten(3)
        features = self.with_one(patches)
        return features.reshape(*lead, sites, *self.input_space.shape)

    def compact(self, x: Tensor, n: int, arrange: Arrange) -> Compact | None:
        m = self.module
        if m.groups > 1 or m.stride[0] > 1 or not self.weight or type(self).features is not ConvolutionReader.features:
            return None
        items = padded(x.reshape(-1, *x.shape[-1 - len(m.kernel_size) :]), m)
        return Patches(items, m.kernel_size, m.stride, m.dilation, self.bias, n, lambda: arrange(self.features(x)))

    def values(self, y: Tensor) -> Tensor:
        d = len(self.module.kernel_size)
        return y.flatten(-d).mT.reshape(*y.shape[: y.ndim - 1 - d], -1, *self.output_space.shape)

    def to_parameters(self, data: Tensor) -> Parameters:
        m, batch = self.module, data.shape[: data.ndim - len(self.space.shape)]
        parts = self.split(data)
        shapes = {"weight": m.weight.shape, "bias": (m.out_channels,)}
        return {k: t.reshape(*batch, *shapes[k]) for k, t in parts.items()}

    def from_parameters(self, tensors: Parameters) -> Tensor:
        m = self.module
        batch = next((t.shape[: t.ndim - getattr(m, k).ndim] for k, t in tensors.items()))
        rows = (m.groups, m.out_channels // m.groups) if m.groups > 1 else (m.out_channels,)
        shapes = {"weight": (*rows, -1), "bias": rows}
        return self.join({k: t.reshape(*batch, *shapes[k]) for k, t in tensors.items()})


def unfold(x: Tensor, m: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Tensor:
    """(items, channels, *sites, *taps): a view of the padded input."""
    x = padded(x, m)
    for axis in range(len(m.kernel_size)):
        reach = m.dilation[axis] * (m.kernel_size[axis] - 1) + 1
        x = x.unfold(2 + axis, reach, m.stride[axis])[..., :: m.dilation[axis]]
    return x


def padded(x: Tensor, m: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Tensor:
    if m.padding_mode != "zeros":
        return nn.functional.pad(x, m._reversed_padding_repeated_twice, mode=m.padding_mode)
    if m.padding == "same":
        return nn.functional.pad(x, m._reversed_padding_repeated_twice)
    if isinstance(m.padding, tuple) and any(m.padding):
        return nn.functional.pad(x, [size for size in reversed(m.padding) for _ in range(2)])
    return x


@register_layer(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
class TransposedConvolutionReader(ConvolutionReader):
    """Features of an output site are the inputs that reach it, tap by tap; a 0 where none does."""

    module: nn.ConvTranspose2d  # type: ignore[assignment]

    def features(self, x: Tensor) -> Tensor:
        m = self.module
        d = len(m.kernel_size)
        lead = x.shape[: x.ndim - 1 - d]
        x = x.reshape(-1, *x.shape[x.ndim - 1 - d :])
        stretched = x.new_zeros(*x.shape[:2], *((s - 1) * k + 1 for s, k in zip(x.shape[2:], m.stride, strict=True)))
        stretched[(slice(None), slice(None), *(slice(None, None, k) for k in m.stride))] = x
        pad: list[int] = []
        for axis in reversed(range(d)):
            edge = m.dilation[axis] * (m.kernel_size[axis] - 1) - int(m.padding[axis])
            pad += [edge, edge + self.output_padding[axis]]
        y = nn.functional.pad(stretched, pad)
        for axis in range(d):
            reach = m.dilation[axis] * (m.kernel_size[axis] - 1) + 1
            y = y.unfold(2 + axis, reach, 1)[..., :: m.dilation[axis]].flip(-1)
        n, sites, per_group = x.shape[0], y.shape[2 : 2 + d].numel(), m.in_channels // m.groups
        patches = y.reshape(n, m.groups, per_group, sites, -1).permute(0, 3, 1, 2, 4).flatten(3)
        return self.with_one(patches).reshape(*lead, sites, *self.input_space.shape)

    @property
    def output_padding(self) -> tuple[int, ...]:
        return tuple(int(p) for p in self.module.output_padding)

    def to_parameters(self, data: Tensor) -> Parameters:
        m, batch = self.module, data.shape[: data.ndim - len(self.space.shape)]
        parts, g, taps = self.split(data), self.module.groups, self.module.weight.shape[2:]
        if "weight" in parts:
            w = parts["weight"].reshape(*batch, g, m.out_channels // g, m.in_channels // g, *taps)
            w = w.movedim(len(batch) + 2, len(batch) + 1)
            parts["weight"] = w.reshape(*batch, m.in_channels, m.out_channels // g, *taps)
        if "bias" in parts:
            parts["bias"] = parts["bias"].reshape(*batch, m.out_channels)
        return parts

    def from_parameters(self, tensors: Parameters) -> Tensor:
        m, g = self.module, self.module.groups
        batch = next((t.shape[: t.ndim - getattr(m, k).ndim] for k, t in tensors.items()))
        tensors, rows = dict(tensors), (g, m.out_channels // g) if g > 1 else (m.out_channels,)
        if "weight" in tensors:
            w = tensors["weight"].reshape(*batch, g, m.in_channels // g, m.out_channels // g, -1)
            tensors["weight"] = w.movedim(len(batch) + 2, len(batch) + 1).reshape(*batch, *rows, -1)
        if "bias" in tensors:
            tensors["bias"] = tensors["bias"].reshape(*batch, *rows)
        return self.join(tensors)


@register_layer(nn.Embedding)
class EmbeddingReader(Reader):
    """Maps of tokens: the features are one-hot, and data (dim, tokens) is the transposed table.

    The row of a padding token is as torch has it: part of the parameters, and no gradient ever comes back to it.
    """

    module: nn.Embedding
    parameters = ("weight",)

    def spaces(self) -> tuple[VectorSpace, VectorSpace]:
        m = self.module
        if m.max_norm is not None or m.scale_grad_by_freq or m.sparse:
            raise UnsupportedLayer(f"{self.name}: an embedding with max_norm, scale_grad_by_freq or sparse gradients")
        tokens = Space(f"{self.name}.tokens", m.num_embeddings)
        return tokens, AffineSpace(f"{self.name}.S", m.embedding_dim).translations

    def leading(self, y: Tensor) -> int:
        return y.ndim - 1

    def features(self, x: Tensor) -> OneHot:
        return OneHot(x[..., None], self.module.weight.dtype)

    def onward(self, x: Tensor, y: Tensor) -> Tensor:
        padding = self.module.padding_idx
        return y if padding is None else torch.where((x == padding)[..., None], y.detach(), y)

    def values(self, y: Tensor) -> Tensor:
        return y.unsqueeze(-2)

    def to_parameters(self, data: Tensor) -> Parameters:
        return {"weight": data.mT}

    def from_parameters(self, tensors: Parameters) -> Tensor:
        return tensors["weight"].mT


class ScaleShiftReader(Reader):
    """Elementwise `y = weight * x̂ + bias` on `count` normalized numbers, one affine map of a line for each."""

    @abstractmethod
    def normalized(self, x: Tensor) -> Tensor:
        """x̂ with its numbers last: (*leading, sites, count)."""

    def spaces(self) -> tuple[VectorSpace, VectorSpace]:
        into, out = self.affine(1, 1)
        count = math.prod(self.own_shape)
        return Family(into, count), Family(out, count)

    def features(self, x: Tensor) -> Tensor:
        return self.with_one(self.normalized(x)[..., None])

    def compact(self, x: Tensor, n: int, arrange: Arrange) -> Compact | None:
        return WithOne(arrange(self.normalized(x)[..., None])) if self.weight and self.bias else None

    def to_parameters(self, data: Tensor) -> Parameters:
        parts = self.split(data[..., 0, :])
        return {
            k: t.reshape(*t.shape[: t.ndim - (2 if k == "weight" else 1)], *self.own_shape) for k, t in parts.items()
        }

    @property
    def own_shape(self) -> tuple[int, ...]:
        return tuple(next(p for p in self.module._parameters.values() if p is not None).shape)

    def from_parameters(self, tensors: Parameters) -> Tensor:
        rank = len(self.own_shape)
        flat = {k: t.flatten(t.ndim - rank) for k, t in tensors.items()}
        if "weight" in flat:
            flat["weight"] = flat["weight"][..., None]
        return self.join(flat)[..., None, :]


@register_layer(nn.LayerNorm, *([nn.RMSNorm] if hasattr(nn, "RMSNorm") else []))
class LayerNormReader(ScaleShiftReader):
    module: nn.LayerNorm

    def leading(self, y: Tensor) -> int:
        return y.ndim - len(self.module.normalized_shape)

    def normalized(self, x: Tensor) -> Tensor:
        m = self.module
        if isinstance(m, nn.LayerNorm):
            x = nn.functional.layer_norm(x, m.normalized_shape, eps=m.eps)
        else:
            x = nn.functional.rms_norm(x, m.normalized_shape, eps=m.eps)
        return x.flatten(x.ndim - len(m.normalized_shape)).unsqueeze(-2)

    def values(self, y: Tensor) -> Tensor:
        return y.flatten(y.ndim - len(self.module.normalized_shape))[..., None, :, None]


class ChannelNormReader(ScaleShiftReader):
    """Channels second: (items, channels, *sites)."""

    def leading(self, y: Tensor) -> int:
        return 1

    def channels_last(self, x: Tensor) -> Tensor:
        return x.flatten(2).mT if x.ndim > 2 else x[:, None]

    def values(self, y: Tensor) -> Tensor:
        return self.channels_last(y)[..., None]


@register_layer(nn.GroupNorm)
class GroupNormReader(ChannelNormReader):
    module: nn.GroupNorm

    def normalized(self, x: Tensor) -> Tensor:
        return self.channels_last(nn.functional.group_norm(x, self.module.num_groups, eps=self.module.eps))


@register_layer(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
class BatchNormReader(ChannelNormReader):
    """The input is normalized when it is seen, with the statistics of that moment: an observation runs batch norm as in
    evaluation, for a batch's own statistics couple examples; a training loop that is watched may use those.
    """

    module: nn.BatchNorm2d

    def kept(self, x: Tensor) -> Tensor:
        m = self.module
        own = m.training or m.running_mean is None
        return nn.functional.batch_norm(
            x, None if own else m.running_mean, None if own else m.running_var, training=own, eps=m.eps
        )

    def normalized(self, x: Tensor) -> Tensor:
        return self.channels_last(x)
