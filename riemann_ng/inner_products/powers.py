"""Powers of forms relative to the coordinates: the roots of adaptive methods.

A form has no root of itself; relative to another, h, it has: h (h⁻¹ g)ᵖ. Here h is Euclidean, which names the basis,
and on a hull the origin; of a form that is diagonal in a frame it is the one for which that frame is orthonormal. A
power is kept with the form that it is of, so that running averages are taken before it, as adaptive methods take them.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import cached_property

import torch
from torch import Tensor

from ..errors import NotAnInnerProduct
from ..factorizations import Factorization
from ..solvers import Structure
from ..spaces import Family, VectorSpace
from ..symmetry import Symmetry
from .base import InnerProduct, State, kind
from .common import bracketed
from .diagonal import Diagonal, Euclidean
from .kronecker import Kronecker
from .pencils import DIAGONAL
from .rotated import RotatedDiagonal
from .symmetries import of_euclidean


@kind("power")
class Power(InnerProduct):
    """(g + before · E)ᵖ + after · E for the Euclidean form E, of a form or of each factor of a product.

    Of products each factor is taken to the power, `before` is added to each, and `after` to none. Of a
    `RotatedDiagonal` E is its own reference, and powers are of the spectrum.
    """

    def __init__(self, of: InnerProduct, power: float, before: float = 0.0, after: float = 0.0):
        if isinstance(of, Kronecker) and after:
            raise NotAnInnerProduct(
                f"NotAnInnerProduct in Power: after={after} beside a product, whose factors are taken to the power one "
                f"by one. Give before=..., or add the form itself: Power(g, p) + c * Euclidean(V)."
            )
        if not 0 < power <= 1 or before < 0 or after < 0:
            raise NotAnInnerProduct(
                f"NotAnInnerProduct in Power: power={power}, before={before}, after={after}. Expected a power in "
                f"(0, 1] and additions that are not negative."
            )
        self.of, self.space = of, of.space
        self.power, self.before, self.after = float(power), float(before), float(after)

    @cached_property
    def value(self) -> InnerProduct:
        """The form written out: diagonal in the coordinates, or in a frame of each factor."""
        if isinstance(self.of, Kronecker):
            return Kronecker([self._powered(f) for f in self.of.factors])
        return self._powered(self.of)

    def _powered(self, f: InnerProduct) -> InnerProduct:
        if isinstance(f, RotatedDiagonal):
            return f.with_spectrum(self._of_values(f.spectrum), f.made_with)
        if f.structure.kind in DIAGONAL:
            return Diagonal.of(f.space, self._of_values(f.diagonal_entries()), self.expression(), self.symmetry)
        blocks = f.dense_blocks() if isinstance(f.space, Family) else f.dense_matrix()
        values, vectors = torch.linalg.eigh(f.dense_matrix() if blocks is None else blocks)
        spectrum = self._of_values(values.clamp(min=0))
        return RotatedDiagonal(Euclidean(f.space), [vectors], spectrum, self.expression(), True, validate=False)

    def _of_values(self, values: Tensor) -> Tensor:
        return (values + self.before) ** self.power + self.after

    def flat_components(self, x: Tensor) -> Tensor:
        return self.value.flat_components(x)

    def tensors(self) -> Iterator[Tensor]:
        return self.of.tensors()

    @property
    def by_members(self) -> bool:
        return self.of.by_members

    @property
    def structure(self) -> Structure:
        s = self.of.structure
        return s if s.kind in DIAGONAL else Structure("power", s.dim, 20.0 * s.dim**1.5, 4 * s.apply, s.dim)

    def diagonal_entries(self, like: Tensor | None = None) -> Tensor:
        return self.value.diagonal_entries(like)

    def direct_factorization(self, method: str) -> Factorization | None:
        return self.value.direct_factorization(method)

    @property
    def symmetry(self) -> Symmetry:
        source = f"the power {self.power:.4g} of {self.of.expression()}"
        factors = self.of.factors if isinstance(self.of, Kronecker) else (self.of,)
        total: Symmetry | None = None
        for f in factors:
            unit = f.reference.symmetry if isinstance(f, RotatedDiagonal) else of_euclidean(f.space, source)
            inside = f.symmetry + unit if self.before else f.symmetry
            powered = inside if self.power == 1 else unit * (inside * unit**-1) ** Fraction(self.power)
            powered = powered + unit if self.after else powered
            total = powered if total is None else total * powered
        assert total is not None
        return total

    def expression(self) -> str:
        additions = "".join(f", {name}={x:.4g}" for name, x in (("before", self.before), ("after", self.after)) if x)
        return f"Power({bracketed(self.of.expression())}, {self.power:.4g}{additions})"

    def blended(self, other: InnerProduct, weight: float) -> InnerProduct:
        mine = (self.power, self.before, self.after)
        if not isinstance(other, Power) or (other.power, other.before, other.after) != mine:
            return super().blended(other, weight)
        return Power(self.of.blend(other.of, weight), *mine)

    def own_state(self) -> State:
        return {"of": self.of.state(), "power": self.power, "before": self.before, "after": self.after}

    @classmethod
    def restore(cls, space: VectorSpace, state: State) -> Power:
        of = InnerProduct.from_state(space, state["of"])
        return cls(of, state["power"], state["before"], state["after"])
