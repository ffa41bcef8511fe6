"""The norm of the coordinates: the largest of them."""

from __future__ import annotations

from torch import Tensor

from ..elements import Element, Vector
from ..spaces import Derived, DirectSum, Dual, Family, Hull, Product, VectorSpace
from ..symmetry import Structure, Symmetry
from .base import Norm, symmetry_unknown


class Sign(Norm):
    """ℓ∞ in the coordinates: `sharp(ξ)` is the sign of each component, the dual norm their sum. It names the units.

    `Sign()` takes the coordinates of any space, `Sign(V)` those of V.
    """

    def __init__(self, space: VectorSpace | None = None):
        self.space = space

    def norm_of(self, v: Element) -> Tensor:
        return v.components.abs().amax(-1)

    def dual_norm_of(self, covector: Element) -> Tensor:
        return covector.components.abs().sum(-1)

    def sharp_of(self, covector: Element) -> Vector:
        return Vector._of(covector.lives_in.dual, covector.data.sign())

    def bound_to(self, space: VectorSpace) -> Norm:
        return Sign(space)

    def summands(self) -> dict[str, Norm] | None:
        return {name: Sign(V) for name, V in self.space.parts} if isinstance(self.space, DirectSum) else None

    @property
    def symmetry(self) -> Symmetry:
        if self.space is None:
            raise symmetry_unknown(self)
        return of_units(self.space, self.expression())

    def expression(self) -> str:
        return "Sign()" if self.space is None else f"Sign({self.space})"


def of_units(space: VectorSpace, source: str) -> Symmetry:
    """Of what names the axes and their lengths; on a hull an origin too, for its last axis is a point."""
    if isinstance(space, DirectSum):
        return Symmetry.direct_sum([of_units(V, source) for _, V in space.parts])
    if isinstance(space, Family):
        return of_units(space.of, source)
    symmetry = Symmetry.natural()
    if isinstance(space, Product):
        for V in space.of:
            symmetry = symmetry * of_units(V, source)
        return symmetry
    plain, sign = (space.of, -1) if isinstance(space, Dual) else (space, 1)
    if isinstance(plain, Derived):
        kinds = ("frame", "origin")
        return Symmetry.naming(*(Structure(base, kind, source=source) for base in space.bases for kind in kinds))
    for base in space.bases:
        symmetry = Symmetry.naming(Structure(base, "units", source=source), weight={base: sign})
        if isinstance(plain, Hull):
            symmetry = symmetry + Symmetry.naming(Structure(base, "origin", source=source))  # its last unit weighs 0
    return symmetry
