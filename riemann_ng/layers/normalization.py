"""Normalizations without parameters; their scale and shift are a layer of their own, `ScaleShift`."""

from __future__ import annotations

from abc import abstractmethod

import torch
from einops import rearrange
from torch import Tensor

from ..errors import ShapeMismatch, SpaceMismatch
from ..points import Point
from ..spaces import AffineSpace
from .base import ParameterFreeLayer, check_dims


class Normalization(ParameterFreeLayer):
    """Divides by the root of the mean square over some components, first centred or not.

    A kind says which components go together: `_gather` brings them to the last axis, `_scatter` back. With y = x / r
    the differential is dy = (dx - y mean(y·dx)) / r, of centred dx where x is centred: symmetric, so its own transpose.
    """

    epsilon: float
    centred: bool

    @abstractmethod
    def _gather(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _scatter(self, x: Tensor, like: Tensor) -> Tensor: ...

    def _normalized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The normalized components and 1/r."""
        x = self._gather(x)
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        rate = torch.rsqrt((x**2).mean(-1, keepdim=True) + self.epsilon)
        return x * rate, rate

    def _forward(self, x: Tensor) -> Tensor:
        return self._scatter(self._normalized(x)[0], x)

    def _differential(self, x: Tensor, dx: Tensor) -> Tensor:
        y, rate = self._normalized(x)
        d = self._gather(dx)
        d = d - d.mean(-1, keepdim=True) if self.centred else d
        return self._scatter(rate * (d - y * (y * d).mean(-1, keepdim=True)), x)

    def _transpose(self, x: Tensor, dy: Tensor) -> Tensor:
        return self._differential(x, dy)


class LayerNormalization(Normalization):
    """Over the components of each site; with `centred=False`, root-mean-square normalization."""

    def __init__(self, domain: AffineSpace, codomain: AffineSpace, epsilon: float = 1e-5, centred: bool = True):
        check_dims("LayerNormalization", "the codomain", codomain, domain.dim)
        self.domain, self.codomain, self.epsilon, self.centred = domain, codomain, epsilon, centred

    def _gather(self, x: Tensor) -> Tensor:
        return x

    def _scatter(self, x: Tensor, like: Tensor) -> Tensor:
        return x


class GroupNormalization(Normalization):
    """Over all sites and the channels of one group; as many groups as channels make instance normalization."""

    centred = True

    def __init__(self, domain: AffineSpace, codomain: AffineSpace, groups: int, epsilon: float = 1e-5):
        check_dims("GroupNormalization", "the codomain", codomain, domain.dim)
        if groups < 1 or domain.dim % groups:
            raise ShapeMismatch(
                f"ShapeMismatch in GroupNormalization: {domain.dim} channels are not {groups} equal groups."
            )
        self.domain, self.codomain, self.groups, self.epsilon = domain, codomain, groups, epsilon

    def _gather(self, x: Tensor) -> Tensor:
        return rearrange(x.flatten(1, -2) if x.ndim > 2 else x[:, None], "n t (g c) -> n g (t c)", g=self.groups)

    def _scatter(self, x: Tensor, like: Tensor) -> Tensor:
        return rearrange(x, "n g (t c) -> n t (g c)", c=like.shape[-1] // self.groups).reshape(like.shape)


class BatchNormalization(ParameterFreeLayer):
    """With frozen statistics: an affine map, whose mean is a point of the domain.

    With the statistics of the batch examples would mix, which no layer does.
    """

    def __init__(
        self, domain: AffineSpace, codomain: AffineSpace, mean: Point, variance: Tensor, epsilon: float = 1e-5
    ):
        check_dims("BatchNormalization", "the codomain", codomain, domain.dim)
        if mean.space != domain or mean.data.shape != (domain.dim,):
            raise SpaceMismatch(f"SpaceMismatch in BatchNormalization: the mean is one point of {domain}, got {mean}.")
        if tuple(variance.shape) != (domain.dim,) or not bool((variance + epsilon > 0).all()):
            raise ShapeMismatch(f"ShapeMismatch in BatchNormalization: expected {domain.dim} variances, none negative.")
        self.domain, self.codomain, self.mean = domain, codomain, mean
        self.rate = torch.rsqrt(variance.detach() + epsilon)

    def _forward(self, x: Tensor) -> Tensor:
        return (x - self.mean.data.to(x)) * self.rate.to(x)

    def _differential(self, x: Tensor, dx: Tensor) -> Tensor:
        return dx * self.rate.to(dx)

    def _transpose(self, x: Tensor, dy: Tensor) -> Tensor:
        return dy * self.rate.to(dy)
