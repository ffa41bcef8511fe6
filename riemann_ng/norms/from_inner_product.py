"""The norm of an inner product: the linear case, whose duality map is the sharp at unit length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from ..elements import Element, Vector, describe
from ..inner_products import Euclidean, InnerProduct
from ..spaces import VectorSpace
from ..symmetry import Symmetry
from .base import InvalidNorm, Norm, Scaled, reciprocal


class FromInnerProduct(Norm):
    """`‖v‖ = √g(v, v)`. `dual_norm(ξ) * sharp(ξ) == g.sharp(ξ)`."""

    space: VectorSpace

    def __init__(self, g: InnerProduct):
        if not isinstance(g, InnerProduct):
            raise InvalidNorm(
                f"InvalidNorm in FromInnerProduct: expected an inner product, got {describe(g)}. "
                f"A matrix is Gram(V, matrix)."
            )
        self.g, self.space = g, g.space

    def with_forms(self, change: Callable[[Any], Any]) -> Norm:
        return FromInnerProduct(change(self.g))

    def norm_of(self, v: Element) -> Tensor:
        v, size = _at_unit_size(v)
        return self.g.norm(v) * size

    def _solved(self, covector: Element) -> tuple[Vector, Tensor, Tensor]:
        covector, size = _at_unit_size(covector)
        v = self.g.sharp(covector)
        return v, covector(v).clamp(min=0).sqrt(), size

    def dual_norm_of(self, covector: Element) -> Tensor:
        _, length, size = self._solved(covector)
        return length * size

    def sharp_of(self, covector: Element) -> Vector:
        v, length, _ = self._solved(covector)
        return v * reciprocal(length)

    @property
    def symmetry(self) -> Symmetry:
        return self.g.symmetry ** Fraction(1, 2)

    def expression(self) -> str:
        return f"FromInnerProduct({self.g.expression()})"

    def forms(self) -> Iterator[InnerProduct]:
        yield self.g


def _at_unit_size(e: Element) -> tuple[Element, Tensor]:
    """The element with its largest component 1, so that squares neither overflow nor vanish, and what it was."""
    size = e.components.abs().amax(-1).clamp(min=torch.finfo(e.dtype).tiny)
    return e * size.reciprocal(), size


def root_mean_square(space: VectorSpace) -> Norm:
    """The Euclidean norm over the root of the dimension: 1 where all coordinates are ±1."""
    return Scaled(space.dim**-0.5, FromInnerProduct(Euclidean(space)))
