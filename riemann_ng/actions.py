"""What linear maps do to flat components, [..., dim of the domain] to [..., dim of the codomain].

They are data, not closures: a map made of them can be pickled, and a copy shares nothing with its original.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from .spaces import VectorSpace

Action = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Same:
    def __call__(self, x: Tensor) -> Tensor:
        return x


@dataclass(frozen=True, eq=False)
class Times:
    matrix: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.matrix.mT


@dataclass(frozen=True, eq=False)
class TimesTransposed:
    matrix: Tensor

    def __call__(self, y: Tensor) -> Tensor:
        return y @ self.matrix


@dataclass(frozen=True, eq=False)
class Pad:
    """Zeros before and after; the transpose of `Cut`."""

    before: int
    after: int

    def __call__(self, x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (self.before, self.after))


@dataclass(frozen=True, eq=False)
class Cut:
    start: int
    stop: int

    def __call__(self, x: Tensor) -> Tensor:
        return x[..., self.start : self.stop]


@dataclass(frozen=True, eq=False)
class AlongPoint:
    """A number s to s (p, 1)."""

    point: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([x * self.point.to(x), x], dim=-1)


@dataclass(frozen=True, eq=False)
class ValueAt:
    """An affine functional to its value at p; the transpose of `AlongPoint`."""

    point: Tensor

    def __call__(self, y: Tensor) -> Tensor:
        return y[..., :-1] @ self.point.to(y)[:, None] + y[..., -1:]


@dataclass(frozen=True, eq=False)
class LessPoint:
    """(a, s) to a - s p."""

    point: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x[..., :-1] - x[..., -1:] * self.point.to(x)


@dataclass(frozen=True, eq=False)
class ZeroAt:
    """A linear functional to the affine one of that slope that vanishes at p; the transpose of `LessPoint`."""

    point: Tensor

    def __call__(self, y: Tensor) -> Tensor:
        return torch.cat([y, -(y @ self.point.to(y)[:, None])], dim=-1)


@dataclass(frozen=True, eq=False)
class Then:
    first: Action
    second: Action

    def __call__(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


@dataclass(frozen=True, eq=False)
class OnBoth:
    """Two actions on the two factors of a tensor product."""

    actions: tuple[Action, Action]
    domains: tuple[VectorSpace, VectorSpace]
    codomains: tuple[VectorSpace, VectorSpace]

    def __call__(self, x: Tensor) -> Tensor:
        first, second = self.actions
        x = second(_factors_apart(x, *self.domains))
        return _factors_together(first(x.mT).mT, *self.codomains)


def _factors_apart(x: Tensor, V: VectorSpace, W: VectorSpace) -> Tensor:
    """Elements of V * W as (..., dim V, dim W). The members of a family W come first in the product."""
    members = prod(W.levels)
    return x.unflatten(-1, (members, V.dim, W.dim // members)).transpose(-3, -2).flatten(-2)


def _factors_together(x: Tensor, V: VectorSpace, W: VectorSpace) -> Tensor:
    members = prod(W.levels)
    return x.unflatten(-1, (members, W.dim // members)).transpose(-3, -2).flatten(-3)
