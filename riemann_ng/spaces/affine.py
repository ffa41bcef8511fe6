"""Affine spaces: points without an origin, their translations and their vector hull."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from unicodedata import normalize

from ..errors import InvalidSpace
from .vector import Atom, VectorSpace, check_name_and_dim, check_vector_space

COMBINING_HAT, COMBINING_ARROW = "\u0302", "\u20d7"


@dataclass(frozen=True)
class AffineSpace:
    """A space of points: differences are vectors of `translations`, and no point is special.

    Its vector `hull` has one dimension more: a point `a` is `(a, 1)` there, a translation `v` is `(v, 0)`. The dual of
    the hull is the space of affine functionals, the features with bias. An affine space `over` a vector space has that
    one for its translations: the parameters of a network are such a space.
    """

    name: str
    dim: int
    over: VectorSpace | None = None

    def __post_init__(self) -> None:
        check_name_and_dim("AffineSpace", self.name, self.dim)
        if self.over is not None and check_vector_space("AffineSpace", self.over).dim != self.dim:
            raise InvalidSpace(
                f"InvalidSpace in AffineSpace({self.name!r}, {self.dim}): its translations {self.over} have dimension "
                f"{self.over.dim}. Give AffineSpace(name, V.dim, over=V)."
            )

    @cached_property
    def translations(self) -> VectorSpace:
        if self.over is not None:
            return self.over
        if self.dim == 0:
            raise InvalidSpace(
                "InvalidSpace in OnePoint.translations: one point has no translations. Use OnePoint.hull."
            )
        return Translations(self)

    @cached_property
    def hull(self) -> VectorSpace:
        return Hull(self)

    def __repr__(self) -> str:
        over = "" if self.over is None else f", over={self.over!r}"
        return f"AffineSpace({self.name!r}, {self.dim}{over})" if self.dim else "OnePoint"

    def __str__(self) -> str:
        return self.name


def _one_point() -> AffineSpace:
    point = object.__new__(AffineSpace)
    object.__setattr__(point, "name", "•")
    object.__setattr__(point, "dim", 0)
    object.__setattr__(point, "over", None)
    return point


OnePoint = _one_point()
"""The affine space of one point. Its hull is ℝ; parameters without a layer are affine maps out of it."""


@dataclass(frozen=True)
class Translations(Atom):
    """The vector space of differences of points of an affine space."""

    of: AffineSpace

    @property
    def dim(self) -> int:
        return self.of.dim

    @cached_property
    def bases(self) -> tuple[str, ...]:
        return (self.of.name,)

    def __repr__(self) -> str:
        return f"{self.of!r}.translations"

    def __str__(self) -> str:
        return f"{self.of}{COMBINING_ARROW}"


@dataclass(frozen=True)
class Hull(Atom):
    """The vector space around an affine space, one dimension larger."""

    of: AffineSpace

    @property
    def dim(self) -> int:
        return self.of.dim + 1

    @cached_property
    def bases(self) -> tuple[str, ...]:
        return (self.of.name,) if self.of.dim else ()

    def __repr__(self) -> str:
        return f"{self.of!r}.hull"

    def __str__(self) -> str:
        return normalize("NFC", f"{self.of}{COMBINING_HAT}") if self.of.dim else "ℝ"
