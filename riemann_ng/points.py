"""Points of affine spaces."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .elements import Element, Vector, check_components, check_same_batch, check_same_kind, describe
from .errors import InvalidSetting, ShapeMismatch, SpaceMismatch
from .spaces import AffineSpace


class Point:
    """A point of an affine space. Points subtract to vectors; a vector moves a point; points do not add."""

    __slots__ = ("data", "space")

    def __init__(self, space: AffineSpace, data: Tensor):
        if not isinstance(space, AffineSpace):
            raise SpaceMismatch(
                f"SpaceMismatch in Point: expected an affine space, got {space!r}. "
                f"An element of a vector space is a Vector or a Covector."
            )
        self.space = space
        self.data = check_components("Point", space, (space.dim,), data)

    @property
    def batch(self) -> tuple[int, ...]:
        return tuple(self.data.shape[:-1])

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    @property
    def device(self) -> torch.device:
        return self.data.device

    def to(self, *args: Any, **kwargs: Any) -> Point:
        """As `Tensor.to`."""
        return Point(self.space, self.data.to(*args, **kwargs))

    def detach(self) -> Point:
        return Point(self.space, self.data.detach())

    def in_hull(self) -> Vector:
        """The point (a, 1) of the vector hull."""
        return Vector._of(self.space.hull, torch.cat([self.data, torch.ones_like(self.data[..., :1])], dim=-1))

    def __sub__(self, other: Point | Vector) -> Vector | Point:
        if isinstance(other, Point) and self.space == other.space:
            check_same_kind("-", self, other)
            check_same_batch("-", self, other)
            difference, V = self.data - other.data, self.space.translations
            return Vector._of(V, difference.reshape(*difference.shape[:-1], *V.shape))
        if isinstance(other, Vector):
            return self + (-other)
        raise SpaceMismatch(f"SpaceMismatch in -: {self} and {other}. Points of one affine space subtract.")

    def __add__(self, vector: Vector) -> Point:
        if not isinstance(vector, Element) or vector.lives_in != self.space.translations:
            raise SpaceMismatch(
                f"SpaceMismatch in +: {self} and {vector}. A point moves by a vector of {self.space.translations}; "
                f"points themselves do not add: use barycenter(points, weights)."
            )
        check_same_kind("+", self, vector)
        check_same_batch("+", self, vector)
        return Point(self.space, self.data + vector.components)

    def __repr__(self) -> str:
        return f"Point({self.space!r}, {describe(self.data)})"

    def __str__(self) -> str:
        return f"a point of {self.space} ({describe(self.data)})"


def barycenter(points: Point, weights: Tensor | None = None) -> Point:
    """The weighted mean of a batch of points, along its first dimension; weights default to equal ones."""
    if weights is None:
        return Point(points.space, points.data.mean(0))
    if points.batch[:1] != tuple(weights.shape):
        raise ShapeMismatch(
            f"ShapeMismatch in barycenter: {points} with weights {describe(weights)}. "
            f"Give one weight to each element of the first batch dimension."
        )
    weights = weights.to(points.data)
    total = weights.sum()
    if not bool(total.isfinite() & (total != 0)):
        raise InvalidSetting(
            f"InvalidSetting in barycenter: the weights of {points} sum to {float(total)}, and shares of that are no "
            f"numbers. Give finite weights whose sum is not zero."
        )
    return Point(points.space, torch.tensordot(weights / total, points.data, dims=([0], [0])))


def translation_in_hull(space: AffineSpace, vector: Vector) -> Vector:
    """The translation v as (v, 0) in the hull."""
    if vector.lives_in != space.translations:
        raise SpaceMismatch(
            f"SpaceMismatch in translation_in_hull: expected a vector of {space.translations}, got {vector}."
        )
    return Vector._of(space.hull, torch.cat([vector.data, torch.zeros_like(vector.data[..., :1])], dim=-1))
