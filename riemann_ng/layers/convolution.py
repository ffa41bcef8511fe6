"""Convolutions and transposed convolutions, over any number of axes of sites.

A convolution is an affine map of patches: every output site evaluates the same parameters at its patch, the taps'
points of the activation space side by side. A frame of the activations acts on a patch per channel, at every tap alike
(`taps * channels` components, taps first). A patch reaches over the edge, so the layer carries a point of the
activation space that stands there, `padding_point`: zero by default, and moved along by a change of frame.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from math import prod

import torch
from einops import rearrange
from torch import Tensor

from ..errors import ShapeMismatch, SpaceMismatch
from ..points import Point
from ..spaces import AffineSpace
from . import windows
from .base import Sites
from .evaluation import EvaluationLayer
from .windows import PADDING_MODES, Pair, Windows

Sizes = int | Sequence[int]


def per_axis(what: str, sizes: Sizes, axes: int, least: int) -> tuple[int, ...]:
    """One integer per axis of sites."""
    given = (sizes,) * axes if isinstance(sizes, int) else tuple(sizes)
    if len(given) != axes or min(given) < least:
        raise ShapeMismatch(f"ShapeMismatch in {what}: expected {axes} integers of at least {least}, got {sizes!r}.")
    return given


def checked_point(kind: str, point: Point | None, domain: AffineSpace, like: Tensor) -> Tensor:
    """The components of a padding point of the domain; zero where none is given."""
    if point is None:
        return like.new_zeros(domain.dim)
    if point.space != domain or point.data.shape != (domain.dim,):
        raise SpaceMismatch(f"SpaceMismatch in {kind}: the padding is one point of {domain}, got {point}.")
    return point.data.to(like)


class PatchLayer(EvaluationLayer):
    """What convolutions share: features are patches. A kind says which windows it looks through."""

    padding: Tensor
    kernel: tuple[int, ...]
    groups: int

    def _set_patches(
        self,
        domain: AffineSpace,
        codomain: AffineSpace,
        weight: Tensor,
        bias: Tensor | None,
        groups: int,
        padding_point: Point | None,
        bias_trains: bool,
    ) -> None:
        """`weight` is (groups, outputs, channels, *kernel), of one group."""
        self.domain, self.codomain, self.groups = domain, codomain, groups
        channels, outputs, self.kernel = domain.dim // groups, codomain.dim // groups, tuple(weight.shape[3:])
        if tuple(weight.shape[:3]) != (groups, outputs, channels) or channels * groups != domain.dim:
            raise ShapeMismatch(
                f"ShapeMismatch in {self}: {groups} groups of {outputs} outputs and {channels} channels each, with a "
                f"kernel over {weight.ndim - 3} axes, do not fit the weight: {list(weight.shape)} by group. "
                f"Both dimensions are multiples of the number of groups."
            )
        share = "" if groups == 1 else " group"
        patches = AffineSpace(f"{domain.name}{share} patches", prod(self.kernel) * channels)
        values = codomain if groups == 1 else AffineSpace(f"{codomain.name} group", outputs)
        by_group = rearrange(weight, "g o c ... -> g o (... c)")
        if groups == 1:
            self._set_parameters(patches, values, by_group[0], bias, bias_trains)
        else:
            by_group_bias = None if bias is None else bias.reshape(groups, outputs)
            self._set_parameters(patches, values, by_group, by_group_bias, bias_trains, groups)
        self.padding = checked_point(str(self), padding_point, domain, weight)

    @property
    def padding_point(self) -> Point:
        return Point(self.domain, self.padding)

    def windows(self, sites: Sites) -> Windows:
        """What the taps of every output site see, axis by axis."""
        if len(sites) != len(self.kernel):
            raise ShapeMismatch(
                f"ShapeMismatch in {self}: the kernel is over {len(self.kernel)} axes of sites, "
                f"the field has {list(sites)}."
            )
        try:
            return [self._windows_along(axis, size) for axis, size in enumerate(sites)]
        except ShapeMismatch as cause:
            raise ShapeMismatch(f"ShapeMismatch in {self}: {cause}") from None

    @abstractmethod
    def _windows_along(self, axis: int, size: int) -> Tensor: ...

    def output_sites(self, sites: Sites) -> Sites:
        return tuple(at.shape[0] for at in self.windows(sites))

    def _patches(self, x: Tensor, padding: Tensor) -> Tensor:
        patches = windows.gather(x, self.windows(tuple(x.shape[1:-1])), padding)
        if self.groups == 1:
            return patches.flatten(-2)
        return rearrange(patches, "... k (g c) -> ... g (k c)", g=self.groups)

    def _features(self, x: Tensor) -> Tensor:
        return self._patches(x, self.padding)

    def _linear_features(self, dx: Tensor) -> Tensor:
        return self._patches(dx, torch.zeros_like(self.padding))

    def _features_transpose(self, x: Tensor, d: Tensor) -> Tensor:
        k, sites = prod(self.kernel), tuple(x.shape[1:-1])
        pattern = "... (k c) -> ... k c" if self.groups == 1 else "... g (k c) -> ... k (g c)"
        return windows.scatter(rearrange(d, pattern, k=k), self.windows(sites), sites)

    def _by_group(self, data: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The weight as (groups, outputs, channels, *kernel), and the bias, if trained, over all outputs."""
        parts = self._split(data)
        weight = parts["weight"] if self.groups > 1 else parts["weight"][None]
        weight = weight.unflatten(-1, (*self.kernel, -1)).movedim(-1, 2)
        return weight, {"bias": parts["bias"].flatten()} if "bias" in parts else {}


class Convolution(PatchLayer):
    """A convolution: `Convolution(A, S, weight, bias)`, with weight (dim S, dim A / groups, *kernel).

    `padding` is an integer, one per axis, a pair (before, after) per axis, or "same". `mode` is "zeros" (the padding
    point, that is), "reflect", "replicate" or "circular". Grouped, its parameters are a family, a member per group.
    """

    def __init__(
        self,
        domain: AffineSpace,
        codomain: AffineSpace,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        stride: Sizes = 1,
        padding: Sizes | Sequence[Pair] | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        mode: str = "zeros",
        padding_point: Point | None = None,
        bias_trains: bool = True,
    ):
        if weight.ndim < 3 or groups < 1 or weight.shape[0] % groups:
            raise ShapeMismatch(
                f"ShapeMismatch in Convolution: a weight is (outputs, channels / groups, *kernel), got "
                f"{list(weight.shape)} with {groups} groups."
            )
        if mode not in PADDING_MODES:
            raise ShapeMismatch(f"ShapeMismatch in Convolution: no padding mode {mode!r}. Use one of {PADDING_MODES}.")
        axes, kernel = weight.ndim - 2, weight.shape[2:]
        self.mode, self.stride = mode, per_axis("Convolution's stride", stride, axes, 1)
        self.dilation = per_axis("Convolution's dilation", dilation, axes, 1)
        self.margins = _margins(padding, kernel, self.dilation)
        by_group = rearrange(weight, "(g o) c ... -> g o c ...", g=groups)
        self._set_patches(domain, codomain, by_group, bias, groups, padding_point, bias_trains)

    def _windows_along(self, axis: int, size: int) -> Tensor:
        margin, dilation = self.margins[axis], self.dilation[axis]
        return windows.sliding(size, self.kernel[axis], self.stride[axis], margin, dilation, self.mode)

    def as_parameters(self, data: Tensor) -> dict[str, Tensor]:
        weight, bias = self._by_group(data)
        return {"weight": weight.flatten(0, 1), **bias}


class TransposedConvolution(PatchLayer):
    """A transposed convolution: `TransposedConvolution(A, S, weight, bias)`, weight (dim A, dim S / groups, *kernel).

    An output site sees through its taps the input sites that reach it; where a tap meets a hole of the stride or the
    outside, it sees the padding point. So it is a convolution of patches like the other, and a frame acts alike.
    """

    def __init__(
        self,
        domain: AffineSpace,
        codomain: AffineSpace,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        stride: Sizes = 1,
        padding: Sizes = 0,
        output_padding: Sizes = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        padding_point: Point | None = None,
        bias_trains: bool = True,
    ):
        if weight.ndim < 3 or groups < 1 or weight.shape[0] % groups:
            raise ShapeMismatch(
                f"ShapeMismatch in TransposedConvolution: a weight is (channels, outputs / groups, *kernel), got "
                f"{list(weight.shape)} with {groups} groups."
            )
        axes, kind = weight.ndim - 2, "TransposedConvolution"
        self.stride = per_axis(f"{kind}'s stride", stride, axes, 1)
        self.margins = per_axis(f"{kind}'s padding", padding, axes, 0)
        self.output_padding = per_axis(f"{kind}'s output_padding", output_padding, axes, 0)
        self.dilation = per_axis(f"{kind}'s dilation", dilation, axes, 1)
        by_group = rearrange(weight, "(g c) o ... -> g o c ...", g=groups)
        self._set_patches(domain, codomain, by_group, bias, groups, padding_point, bias_trains)

    def _windows_along(self, axis: int, size: int) -> Tensor:
        stride, margin, extra = self.stride[axis], self.margins[axis], self.output_padding[axis]
        return windows.transposed(size, self.kernel[axis], stride, margin, self.dilation[axis], extra)

    def as_parameters(self, data: Tensor) -> dict[str, Tensor]:
        weight, bias = self._by_group(data)
        return {"weight": rearrange(weight, "g o c ... -> (g c) o ..."), **bias}


def _margins(padding: Sizes | Sequence[Pair] | str, kernel: Sequence[int], dilation: Sequence[int]) -> tuple[Pair, ...]:
    """What is added before and after, axis by axis."""
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    sides = (padding,) * len(kernel) if isinstance(padding, int) else padding
    pairs = [side if isinstance(side, tuple) else (side, side) for side in sides if not isinstance(side, str)]
    if len(pairs) != len(kernel) or any(len(pair) != 2 or min(pair) < 0 for pair in pairs):
        raise ShapeMismatch(
            f"ShapeMismatch in Convolution: padding is an integer, {len(kernel)} integers or pairs, or 'same', "
            f"none negative; got {padding!r}."
        )
    return tuple(pairs)
