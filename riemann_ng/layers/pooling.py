"""Layers that join sites: maximum, average and adaptive average over windows, and flattening."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from einops import rearrange
from torch import Tensor

from ..errors import ShapeMismatch
from ..points import Point
from ..spaces import AffineSpace
from . import windows
from .base import ParameterFreeLayer, Sites, check_dims
from .convolution import Sizes, checked_point, per_axis
from .windows import Windows


class _Windowed(ParameterFreeLayer):
    """Sliding windows over as many axes of sites as the kernel has."""

    def _set(
        self, domain: AffineSpace, kernel: Sequence[int], stride: Sizes | None, padding: Sizes, dilation: Sizes
    ) -> None:
        kind, axes = type(self).__name__, len(kernel)
        self.domain = self.codomain = domain
        self.kernel = per_axis(f"{kind}'s kernel", kernel, axes, 1)
        self.stride = per_axis(f"{kind}'s stride", self.kernel if stride is None else stride, axes, 1)
        self.margins = per_axis(f"{kind}'s padding", padding, axes, 0)
        self.dilation = per_axis(f"{kind}'s dilation", dilation, axes, 1)
        if any(2 * p > k for p, k in zip(self.margins, self.kernel, strict=True)):
            raise ShapeMismatch(
                f"ShapeMismatch in {self}: a window {list(self.kernel)} padded by {list(self.margins)} may see no site "
                f"at all. Pad by at most half of the kernel."
            )

    def windows(self, sites: Sites) -> Windows:
        if len(sites) != len(self.kernel):
            raise ShapeMismatch(
                f"ShapeMismatch in {self}: windows are over {len(self.kernel)} axes of sites, "
                f"the field has {list(sites)}."
            )
        options = zip(sites, self.kernel, self.stride, self.margins, self.dilation, strict=True)
        try:
            return [windows.sliding(size, k, s, (p, p), d) for size, k, s, p, d in options]
        except ShapeMismatch as cause:
            raise ShapeMismatch(f"ShapeMismatch in {self}: {cause}") from None

    def output_sites(self, sites: Sites) -> Sites:
        return tuple(at.shape[0] for at in self.windows(sites))


class MaxPool(_Windowed):
    """The largest of each component over a window; ties go to the first tap. Padding never wins."""

    def __init__(
        self,
        domain: AffineSpace,
        kernel: Sequence[int],
        stride: Sizes | None = None,
        padding: Sizes = 0,
        dilation: Sizes = 1,
    ):
        self._set(domain, kernel, stride, padding, dilation)

    def _winners(self, x: Tensor) -> tuple[Windows, Tensor, Tensor]:
        at = self.windows(tuple(x.shape[1:-1]))
        patches = windows.gather(x, at, x.new_full((x.shape[-1],), -torch.inf))
        return at, patches, patches.argmax(-2, keepdim=True)

    def _forward(self, x: Tensor) -> Tensor:
        _, patches, winners = self._winners(x)
        return patches.gather(-2, winners).squeeze(-2)

    def _differential(self, x: Tensor, dx: Tensor) -> Tensor:
        at, _, winners = self._winners(x)
        return windows.gather(dx, at, dx.new_zeros(dx.shape[-1])).gather(-2, winners).squeeze(-2)

    def _transpose(self, x: Tensor, dy: Tensor) -> Tensor:
        at, patches, winners = self._winners(x)
        d = torch.zeros_like(patches).scatter_(-2, winners, dy.unsqueeze(-2))
        return windows.scatter(d, at, x.shape[1:-1])


class AveragePool(_Windowed):
    """The barycentre of a window.

    Sites outside do not count, unless there is a padding point: then each of them counts as that point, and with a
    padding point of zeros this is the average that counts its padding.
    """

    def __init__(
        self,
        domain: AffineSpace,
        kernel: Sequence[int],
        stride: Sizes | None = None,
        padding: Sizes = 0,
        padding_point: Point | None = None,
    ):
        self._set(domain, kernel, stride, padding, 1)
        self.padding_point = padding_point
        if padding_point is not None:
            checked_point(str(self), padding_point, domain, padding_point.data)

    def _shares(self, at: Windows, x: Tensor) -> Tensor:
        """What every tap counts, (1, *output sites, taps, 1)."""
        here = windows.present(at, x)
        if self.padding_point is not None:
            return torch.ones_like(here) / here.shape[-2]
        return here / here.sum(-2, keepdim=True)

    def _forward(self, x: Tensor) -> Tensor:
        outside = x.new_zeros(x.shape[-1]) if self.padding_point is None else self.padding_point.data.to(x)
        return self._mean(x, outside)

    def _mean(self, x: Tensor, outside: Tensor) -> Tensor:
        at = self.windows(tuple(x.shape[1:-1]))
        return (windows.gather(x, at, outside) * self._shares(at, x)).sum(-2)

    def _differential(self, x: Tensor, dx: Tensor) -> Tensor:
        return self._mean(dx, dx.new_zeros(dx.shape[-1]))

    def _transpose(self, x: Tensor, dy: Tensor) -> Tensor:
        at = self.windows(tuple(x.shape[1:-1]))
        return windows.scatter(dy.unsqueeze(-2) * self._shares(at, x), at, x.shape[1:-1])


class AdaptiveAveragePool(ParameterFreeLayer):
    """Barycentres of windows that share the field out among `sites` output sites; all ones is the mean over sites."""

    def __init__(self, domain: AffineSpace, sites: Sequence[int]):
        self.domain = self.codomain = domain
        self.sites = per_axis("AdaptiveAveragePool", sites, len(sites), 1)

    def output_sites(self, sites: Sites) -> Sites:
        if len(sites) != len(self.sites):
            raise ShapeMismatch(
                f"ShapeMismatch in {self}: asked for sites {list(self.sites)}, the field has {list(sites)}."
            )
        return self.sites

    def _windows(self, x: Tensor) -> tuple[Windows, Tensor]:
        at = [windows.adaptive(size, sites) for size, sites in zip(x.shape[1:-1], self.sites, strict=True)]
        here = windows.present(at, x)
        return at, here / here.sum(-2, keepdim=True)

    def _forward(self, x: Tensor) -> Tensor:
        at, shares = self._windows(x)
        return (windows.gather(x, at, x.new_zeros(x.shape[-1])) * shares).sum(-2)

    def _differential(self, x: Tensor, dx: Tensor) -> Tensor:
        return self._forward(dx)

    def _transpose(self, x: Tensor, dy: Tensor) -> Tensor:
        at, shares = self._windows(x)
        return windows.scatter(dy.unsqueeze(-2) * shares, at, x.shape[1:-1])


class Flatten(ParameterFreeLayer):
    """All sites of a field as one point of a product space; channels first, as torch does, or last."""

    def __init__(self, domain: AffineSpace, codomain: AffineSpace, channels_first: bool = True):
        self.domain, self.codomain, self.channels_first = domain, codomain, channels_first

    def output_sites(self, sites: Sites) -> Sites:
        check_dims("Flatten", f"at sites {list(sites)} the codomain", self.codomain, prod(sites) * self.domain.dim)
        return ()

    @property
    def _pattern(self) -> tuple[str, str]:
        return "n t c", "n (c t)" if self.channels_first else "n (t c)"

    def _forward(self, x: Tensor) -> Tensor:
        field, point = self._pattern
        return rearrange(x.reshape(x.shape[0], -1, x.shape[-1]), f"{field} -> {point}")

    def _differential(self, x: Tensor, dx: Tensor) -> Tensor:
        return self._forward(dx)

    def _transpose(self, x: Tensor, dy: Tensor) -> Tensor:
        field, point = self._pattern
        return rearrange(dy, f"{point} -> {field}", c=x.shape[-1]).reshape(x.shape)
