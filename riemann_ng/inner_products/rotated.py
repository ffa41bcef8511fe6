"""Forms that are diagonal in a frame: an orthonormal frame of a named reference plus a spectrum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

from torch import Tensor

from ..elements import describe
from ..errors import NonFinite, NotAnInnerProduct, ShapeMismatch
from ..factorizations import Factorization, FrameFactor
from ..solvers import Structure
from ..spaces import VectorSpace
from ..symmetry import Symmetry
from .base import InnerProduct, State, kind
from .symmetries import with_frame


@kind("rotated diagonal")
class RotatedDiagonal(InnerProduct):
    """Σ sᵢ fⁱ ⊗ fⁱ for a frame fᵢ that is orthonormal for `reference`, and its dual basis fⁱ.

    The frame is a tensor product of square matrices, one for each factor of the space, whose columns are its vectors;
    `spectrum` has one entry for each. `natural=True` says that frame and spectrum were computed from data with the
    reference as the only constant (as in EKFAC): then the form depends on the reference only up to its scale.
    """

    def __init__(
        self,
        reference: InnerProduct,
        axes: Sequence[Tensor],
        spectrum: Tensor,
        name: str = "frame",
        natural: bool = False,
    ):
        self.reference, self.space, self.axes, self.name = reference, reference.space, tuple(axes), name
        self.spectrum, self.natural = spectrum, natural
        sides = [P.shape[-1] for P in axes]
        if any(P.ndim != 2 or P.shape[0] != P.shape[1] for P in axes) or prod(sides) != self.space.dim:
            raise ShapeMismatch(
                f"ShapeMismatch in RotatedDiagonal: the axes of a frame of {self.space} are square matrices whose "
                f"sizes multiply to {self.space.dim}, got {', '.join(map(describe, axes))}."
            )
        if list(spectrum.shape) != sides:
            raise ShapeMismatch(
                f"ShapeMismatch in RotatedDiagonal: one entry for each frame vector, {sides}, got {describe(spectrum)}."
            )
        if not all(bool(t.isfinite().all()) for t in (*axes, spectrum)):
            raise NonFinite(
                f"NonFinite in RotatedDiagonal: the frame or the spectrum on {self.space} holds NaN or infinity."
            )
        if bool((spectrum < 0).any()):
            raise NotAnInnerProduct(
                f"NotAnInnerProduct in RotatedDiagonal: the spectrum on {self.space} goes down to "
                f"{float(spectrum.min()):.3g}."
            )
        self._factor = FrameFactor(self.axes, spectrum)

    def _coordinates(self, x: Tensor) -> Tensor:
        """P⁻¹x = Pᵀ h x, since the frame is orthonormal for h."""
        return self._factor.to_axes(self.reference.flat_components(x))

    def flat_components(self, x: Tensor) -> Tensor:
        return self.reference.flat_components(self._factor.from_axes(self._coordinates(x) * self.spectrum))

    def tensors(self) -> Iterator[Tensor]:
        yield from self.axes
        yield self.spectrum

    @property
    def structure(self) -> Structure:
        d = self.space.dim
        apply = sum(4.0 * d * P.shape[0] for P in self.axes) + 2 * self.reference.structure.apply
        return Structure("rotated diagonal", d, float(d), apply, d)

    def direct_factorization(self, method: str) -> Factorization:
        return self._factor

    @property
    def symmetry(self) -> Symmetry:
        up_to_scale = self.reference.symmetry * self.reference.symmetry**-1  # of all summands one scale
        return up_to_scale if self.natural else with_frame(up_to_scale, self.space, self.name, self.expression())

    def expression(self) -> str:
        return f"RotatedDiagonal({self.name}, orthonormal for {self.reference.expression()})"

    def blended(self, other: InnerProduct, weight: float) -> InnerProduct:
        same = isinstance(other, RotatedDiagonal) and all(p is q for p, q in zip(self.axes, other.axes, strict=True))
        if not same:
            return super().blended(other, weight)
        spectrum = self.spectrum.lerp(other.spectrum, weight)  # type: ignore[attr-defined]
        return RotatedDiagonal(self.reference, self.axes, spectrum, self.name, self.natural)

    def own_state(self) -> State:
        return {
            "reference": self.reference.state(), "axes": list(self.axes), "spectrum": self.spectrum,
            "name": self.name, "natural": self.natural,
        }  # fmt: skip

    @classmethod
    def restore(cls, space: VectorSpace, state: State) -> RotatedDiagonal:
        reference = InnerProduct.from_state(space, state["reference"])
        return cls(reference, state["axes"], state["spectrum"], state["name"], state["natural"])
