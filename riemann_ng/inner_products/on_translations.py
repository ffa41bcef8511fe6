"""The Euclidean form on the translations: linear parts of affine functionals are measured, constants are not."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from ..errors import SpaceMismatch
from ..factorizations import DiagonalFactor, Factorization, factorize_centred, factorize_dense
from ..solvers import Structure
from ..spaces import DirectSum, Dual, Family, Hull, Product, VectorSpace, tensor_product
from ..symmetry import Symmetry
from .base import InnerProduct, State, kind
from .diagonal import Diagonal, Euclidean
from .symmetries import of_euclidean


@kind("euclidean on translations")
class EuclideanOnTranslations(InnerProduct):
    """Diagonal in the coordinates, with ones, and with zeros where an element is a constant; of any dtype.

    Made by `euclidean_on_translations`, which gives the Euclidean form itself where there are no constants.
    """

    def __init__(self, space: VectorSpace):
        self.space = space
        self._ones: dict[tuple[object, object], Tensor] = {}

    def flat_components(self, x: Tensor) -> Tensor:
        return x * self.diagonal_entries(x)

    @property
    def by_members(self) -> bool:
        return True

    def diagonal_entries(self, like: Tensor | None = None) -> Tensor:
        options = self._options(like)
        key = (options["dtype"], str(options["device"]))
        if key not in self._ones:
            self._ones[key] = ones_on_translations(self.space).to(**options)
        return self._ones[key]

    @property
    def structure(self) -> Structure:
        d = self.space.dim
        return Structure("diagonal", d, float(d), float(d), self._rank)

    @cached_property
    def _rank(self) -> int:
        return linear_parts(self.space).dim

    def rank(self, like: Tensor | None = None) -> int:
        return self._rank

    def factorization(self, like: Tensor | None = None) -> Factorization:
        return DiagonalFactor(self.diagonal_entries(like))

    def direct_factorization(self, method: str) -> Factorization:
        return DiagonalFactor(ones_on_translations(self.space).to(torch.int8))  # dividing by it keeps any dtype

    def factors_on(self, spaces: tuple[VectorSpace, ...]) -> tuple[InnerProduct, ...] | None:
        if len(spaces) == 1 or tensor_product(*spaces) != self.space:
            return super().factors_on(spaces)
        return tuple(euclidean_on_translations(V) for V in spaces)

    def summands(self) -> dict[str, InnerProduct] | None:
        if not isinstance(self.space, DirectSum):
            return None
        return {name: euclidean_on_translations(V) for name, V in self.space.parts}

    @property
    def symmetry(self) -> Symmetry:
        return symmetry_on(self.space)

    def expression(self) -> str:
        return f"euclidean_on_translations({self.space})"

    def blended(self, other: InnerProduct, weight: float) -> InnerProduct:
        if isinstance(other, EuclideanOnTranslations):
            return self
        multiple = other.kind == "multiple" and other.structure.kind == "diagonal"
        if multiple or isinstance(other, Diagonal) or other.dense_blocks() is not None:  # they are closed under it
            return other.blended(self, 1 - weight)
        return super().blended(other, weight)

    def own_state(self) -> State:
        return {}

    @classmethod
    def restore(cls, space: VectorSpace, state: State) -> EuclideanOnTranslations:
        return cls(space)


def euclidean_on_translations(space: VectorSpace) -> InnerProduct:
    """The Euclidean form with every Â* measured on the translations alone: |f|² is that of f's linear part.

    It vanishes on constants and names no origin, so damping by it keeps the translations of 𝒜: isometries in place of
    rotations about the origin. On a layer's `Hom(Â, S)` it is the square of the weight, without the bias; on a space
    without a hull it is `Euclidean` itself. It is diagonal, so that damping by it costs no more than by `Euclidean`.
    """
    points = next(points_in(space), None)
    if points is not None:
        raise SpaceMismatch(
            f"SpaceMismatch in euclidean_on_translations: on {points} lengths of translations say nothing of points "
            f"without an origin. It is for affine functionals, {points.dual}, and products with them."
        )
    return Euclidean(space) if linear_parts(space) == space else EuclideanOnTranslations(space)


def has_constants(space: VectorSpace) -> bool:
    """Whether it is Â*, whose constants are no linear parts; on the one-point space all there is are constants."""
    return isinstance(space, Dual) and isinstance(space.of, Hull) and space.of.of.dim > 0


def points_in(space: VectorSpace) -> Iterator[VectorSpace]:
    """The hulls, of more than one point, whose elements take part."""
    if isinstance(space, Hull) and space.of.dim > 0:
        yield space
    for part in () if isinstance(space, Dual) else space.made_of:
        yield from points_in(part)


def linear_parts(space: VectorSpace) -> VectorSpace:
    """The space with every Â* replaced by A⃗*."""
    if isinstance(space, DirectSum):
        return DirectSum([(name, linear_parts(V)) for name, V in space.parts])
    if isinstance(space, Family):
        return Family(linear_parts(space.of), space.members)
    if isinstance(space, Product):
        return tensor_product(*(linear_parts(V) for V in space.of))
    if has_constants(space):
        assert isinstance(space, Dual) and isinstance(space.of, Hull)
        return space.of.of.translations.dual
    return space


def on_hull(space: VectorSpace) -> bool:
    """Whether it is Â*, or a family of them."""
    return has_constants(space.of if isinstance(space, Family) else space)


def factorize_on(space: VectorSpace, matrix: Tensor, method: str) -> Factorization:
    """A matrix, or one for each member: of affine functionals seen from their mean, wherever the origin is."""
    return factorize_centred(matrix, method) if on_hull(space) else factorize_dense(matrix, method)


def symmetry_on(space: VectorSpace) -> Symmetry:
    """That of the Euclidean form on linear parts, each named by itself; to take linear parts loses nothing."""
    if isinstance(space, DirectSum):
        return Symmetry.direct_sum([symmetry_on(V) for _, V in space.parts])
    if isinstance(space, Family):
        return symmetry_on(space.of)
    if isinstance(space, Product):
        symmetry = Symmetry.natural()
        for V in space.of:
            symmetry = symmetry * symmetry_on(V)
        return symmetry
    linear = linear_parts(space)
    return of_euclidean(linear, f"Euclidean({linear})")


def ones_on_translations(space: VectorSpace) -> Tensor:
    """One for each component that is no constant."""
    if isinstance(space, DirectSum):
        return torch.cat([ones_on_translations(V) for _, V in space.parts])
    if isinstance(space, Family):
        return ones_on_translations(space.of).repeat(space.members)
    ones = torch.ones(space.dim, dtype=torch.bool)
    if isinstance(space, Product):
        parts = [ones_on_translations(V) for V in space.of]
        ones = parts[0]
        for part in parts[1:]:
            ones = (ones[:, None] & part).flatten()
    elif has_constants(space):
        ones[-1] = False
    return ones
