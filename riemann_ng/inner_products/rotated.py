"""Forms that are diagonal in a frame: an orthonormal frame of a named reference plus a spectrum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from ..elements import describe
from ..errors import DtypeMismatch, NonFinite, NotAnInnerProduct, ShapeMismatch
from ..factorizations import Factorization, FrameFactor, rounding_unit
from ..solvers import Structure
from ..spaces import Family, VectorSpace
from ..symmetry import Symmetry
from .base import InnerProduct, State, kind
from .common import check_name, known_as
from .diagonal import Euclidean
from .symmetries import with_frame

DEFAULT_NAME = "frame"
PROBES = 3
"""Random vectors that a frame is tried on."""


@kind("rotated diagonal")
class RotatedDiagonal(InnerProduct):
    """Σ sᵢ fⁱ ⊗ fⁱ for a frame fᵢ that is orthonormal for `reference`, and its dual basis fⁱ.

    The frame is a tensor product of square matrices, one for each factor of the space, whose columns are its vectors;
    `spectrum` has one entry for each. A diagonal matrix may be given as a vector, and on a family a factor may have a
    matrix for each of the m members, (m, d, d), with spectrum (m, d₁, ...). `natural=True` says that frame and spectrum
    were computed from data with the reference as the only constant (as in EKFAC): then the form depends on the
    reference only up to its scale; `made_with` is the symmetry of the data themselves. A frame that is not
    orthonormal, up to the root of rounding, is refused; `validate=False` takes it as it comes.
    """

    def __init__(
        self,
        reference: InnerProduct,
        axes: Sequence[Tensor],
        spectrum: Tensor,
        name: str = DEFAULT_NAME,
        natural: bool = False,
        validate: bool = True,
        made_with: Symmetry | None = None,
    ):
        self.reference, self.space, self.axes, self.name = reference, reference.space, tuple(axes), name
        self.spectrum, self.natural = spectrum, natural
        self.made_with = Symmetry.natural() if made_with is None else made_with
        self._check_shapes()
        self._factor = FrameFactor(self.axes, spectrum)
        if validate:
            check_name(name, "RotatedDiagonal")
            self._validate()

    def _check_shapes(self) -> None:
        axes, spectrum, reference = self.axes, self.spectrum, self.reference
        sides, m = [P.shape[-1] for P in axes if P.ndim], self.space.members if isinstance(self.space, Family) else 1
        by_members = any(P.ndim == 3 for P in axes) or prod(sides) != self.space.dim
        each = self.space.dim // m if by_members else self.space.dim
        wrong = any(
            P.ndim not in (1, 2, 3) or (P.ndim > 1 and P.shape[-2] != P.shape[-1]) or (P.ndim == 3 and len(P) != m)
            for P in axes
        )
        if wrong or prod(sides) != each or (by_members and not isinstance(self.space, Family)):
            of_each = (
                f" (or to {self.space.dim // m}, for each of {m} members)" if isinstance(self.space, Family) else ""
            )
            raise ShapeMismatch(
                f"ShapeMismatch in RotatedDiagonal: the axes of a frame of {self.space} are square matrices whose "
                f"sizes multiply to {self.space.dim}{of_each}, got {', '.join(map(describe, axes))}."
            )
        sides = [m, *sides] if by_members else sides
        if list(spectrum.shape) != sides:
            raise ShapeMismatch(
                f"ShapeMismatch in RotatedDiagonal: one entry for each frame vector, {sides}, got {describe(spectrum)}."
            )
        kinds = dict.fromkeys((t.dtype, t.device) for t in (*axes, spectrum))
        if reference.dtype is not None and reference.device is not None:
            kinds[reference.dtype, reference.device] = None
        if len(kinds) > 1 or not spectrum.dtype.is_floating_point:
            raise DtypeMismatch(
                f"DtypeMismatch in RotatedDiagonal: axes, spectrum and reference on {self.space} must be floating "
                f"point, of one dtype on one device, got {', '.join(f'{t} on {where}' for t, where in kinds)}. "
                f"Bring one to the other with .to(...)."
            )

    def _validate(self) -> None:
        axes, spectrum = self.axes, self.spectrum
        if not all(bool(t.isfinite().all()) for t in (*axes, spectrum)):
            raise NonFinite(
                f"NonFinite in RotatedDiagonal: the frame or the spectrum on {self.space} holds NaN or infinity."
            )
        if bool((spectrum < 0).any()):
            raise NotAnInnerProduct(
                f"NotAnInnerProduct in RotatedDiagonal: the spectrum on {self.space} goes down to "
                f"{float(spectrum.min()):.3g}."
            )
        with torch.no_grad():
            z = torch.randn(PROBES, self.space.dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            z = z.to(spectrum)
            back = self._coordinates(self._factor.from_axes(z.reshape(PROBES, *spectrum.shape))).flatten(1)
            gap = float((torch.linalg.vector_norm(back - z, dim=-1) / torch.linalg.vector_norm(z, dim=-1)).max())
        if not gap <= rounding_unit(spectrum.dtype) ** 0.5:
            raise NotAnInnerProduct(
                f"NotAnInnerProduct in RotatedDiagonal: the frame is not orthonormal for {self.reference!r}: PᵀhP is "
                f"off the identity by {gap:.2e}. Take the eigenvectors relative to it, or name the form that they are "
                f"orthonormal for."
            )

    def _coordinates(self, x: Tensor) -> Tensor:
        """P⁻¹x = Pᵀ h x, since the frame is orthonormal for h."""
        return self._factor.to_axes(self.reference.flat_components(x))

    @property
    def by_members(self) -> bool:
        return self.spectrum.ndim > len(self.axes) or super().by_members

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

    def pencil_with(self, reference: InnerProduct, like: Tensor | None = None) -> FrameFactor:
        same = reference is self.reference or (
            isinstance(reference, Euclidean) and isinstance(self.reference, Euclidean)
        )
        return self._factor if same else super().pencil_with(reference, like)

    @property
    def symmetry(self) -> Symmetry:
        up_to_scale = (
            self.reference.symmetry * self.reference.symmetry**-1 * self.made_with
        )  # of all summands one scale
        return up_to_scale if self.natural else with_frame(up_to_scale, self.space, self._known_as, self.expression())

    @cached_property
    def _known_as(self) -> str:
        return known_as(self.name, DEFAULT_NAME, torch.cat([P.flatten() for P in self.axes]))

    def expression(self) -> str:
        return f"RotatedDiagonal({self.name}, orthonormal for {self.reference.expression()})"

    def blended(self, other: InnerProduct, weight: float) -> InnerProduct:
        if not isinstance(other, RotatedDiagonal) or [*map(id, self.axes)] != [*map(id, other.axes)]:
            return super().blended(other, weight)
        spectrum = self.spectrum.lerp(other.spectrum, weight)
        return self.with_spectrum(spectrum, self.made_with + other.made_with)

    def with_spectrum(self, spectrum: Tensor, made_with: Symmetry) -> RotatedDiagonal:
        """Another spectrum in the same frame; unchecked."""
        return RotatedDiagonal(self.reference, self.axes, spectrum, self.name, self.natural, False, made_with)

    def own_state(self) -> State:
        return {
            "reference": self.reference.state(), "axes": list(self.axes), "spectrum": self.spectrum,
            "name": self.name, "natural": self.natural, "symmetry": self.made_with.to_state(),
        }  # fmt: skip

    @classmethod
    def restore(cls, space: VectorSpace, state: State) -> RotatedDiagonal:
        reference = InnerProduct.from_state(space, state["reference"])
        made_with = Symmetry.from_state(state["symmetry"])
        return cls(reference, state["axes"], state["spectrum"], state["name"], state["natural"], False, made_with)
