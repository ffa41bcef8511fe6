"""Which input sites an output site looks at: the one index map behind convolutions and poolings.

Along one axis of sites a window map is an integer tensor (output sites, taps): the input site that a tap of an output
site sees, or -1 where there is none. Padding, in every mode, dilation, stride, the holes of a transposed convolution
and adaptive pooling are all such maps; where there is no site stands a padding point.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from ..errors import ShapeMismatch

Pair = tuple[int, int]
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def sliding(size: int, kernel: int, stride: int, padding: Pair, dilation: int, mode: str = "zeros") -> Tensor:
    """Windows that slide over an axis of `size` sites, padded before and after."""
    sites = (size + sum(padding) - dilation * (kernel - 1) - 1) // stride + 1
    if sites < 1:
        raise ShapeMismatch(
            f"{size} sites with padding {padding} are fewer than a window of {dilation * (kernel - 1) + 1}. "
            f"Give a larger field or more padding."
        )
    at = torch.arange(sites)[:, None] * stride + torch.arange(kernel) * dilation - padding[0]
    outside = (at < 0) | (at >= size)
    if mode == "zeros":
        return at.masked_fill(outside, -1)
    if mode == "replicate":
        return at.clamp(0, size - 1)
    reach = size - 1 if mode == "reflect" else size
    if max(padding) > reach:
        raise ShapeMismatch(f"padding {padding} in mode {mode!r} reaches further than the {size} sites. Pad less.")
    return at % size if mode == "circular" else (size - 1 - (size - 1 - at.abs()).abs())


def transposed(size: int, kernel: int, stride: int, padding: int, dilation: int, output_padding: int) -> Tensor:
    """Windows of a transposed convolution: input site i reaches output site i·stride + tap·dilation - padding."""
    sites = (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1
    if sites < 1:
        raise ShapeMismatch(f"{size} sites with padding {padding} leave no output sites. Pad less.")
    at = torch.arange(sites)[:, None] + padding - torch.arange(kernel) * dilation
    source = at.div(stride, rounding_mode="floor")
    return source.masked_fill((at % stride != 0) | (source < 0) | (source >= size), -1)


def adaptive(size: int, sites: int) -> Tensor:
    """Windows that share an axis out among a given number of output sites, as evenly as integers allow."""
    starts = [i * size // sites for i in range(sites)]
    stops = [-(-(i + 1) * size // sites) for i in range(sites)]
    taps = torch.arange(max(b - a for a, b in zip(starts, stops, strict=True)))
    at = torch.tensor(starts)[:, None] + taps
    return at.masked_fill(at >= torch.tensor(stops)[:, None], -1)


Windows = Sequence[Tensor]


def _axes(windows: Windows) -> str:
    return " ".join(f"(o{d} k{d})" for d in range(len(windows)))


def _taps_last(windows: Windows) -> str:
    outs, taps = (" ".join(f"{letter}{d}" for d in range(len(windows))) for letter in "ok")
    return f"n {outs} ({taps}) c"


def gather(x: Tensor, windows: Windows, padding: Tensor) -> Tensor:
    """The patches (examples, *output sites, taps, channels) of a field; `padding`, the point outside, is (channels)."""
    for axis, at in enumerate(windows, start=1):
        index = at.flatten().to(x.device)
        if bool((at < 0).any()):
            edge = padding.expand(*x.shape[:axis], 1, *x.shape[axis + 1 : -1], -1)
            index = torch.where(index < 0, x.shape[axis], index)
            x = torch.cat([x, edge], dim=axis)
        x = x.index_select(axis, index)
    sizes = {f"k{d}": at.shape[1] for d, at in enumerate(windows)}
    return rearrange(x, f"n {_axes(windows)} c -> {_taps_last(windows)}", **sizes)


def scatter(patches: Tensor, windows: Windows, sites: Sequence[int]) -> Tensor:
    """The transpose of `gather` with zero padding: what every tap holds, summed over at the site that it sees."""
    sizes = {f"k{d}": at.shape[1] for d, at in enumerate(windows)}
    x = rearrange(patches, f"{_taps_last(windows)} -> n {_axes(windows)} c", **sizes)
    for axis in range(len(windows), 0, -1):
        index, size = windows[axis - 1].flatten().to(x.device), sites[axis - 1]
        shape = (*x.shape[:axis], size + 1, *x.shape[axis + 1 :])
        index = torch.where(index < 0, size, index)
        x = x.new_zeros(shape).index_add_(axis, index, x).narrow(axis, 0, size)
    return x


def present(windows: Windows, like: Tensor) -> Tensor:
    """Whether a tap sees a site, (1, *output sites, taps, 1), as ones and zeros."""
    ones = like.new_ones(1, *(int(at.max()) + 1 for at in windows), 1)
    return gather(ones, windows, like.new_zeros(1))
