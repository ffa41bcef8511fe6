"""Forms that are diagonal in the coordinates: the Euclidean one, which names a basis alone, and weighted ones."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from ..elements import describe
from ..errors import DtypeMismatch, NonFinite, NotAnInnerProduct, ShapeMismatch
from ..factorizations import DiagonalFactor, Factorization, IdentityFactor
from ..solvers import Structure
from ..spaces import DirectSum, VectorSpace, check_vector_space, tensor_product
from ..symmetry import Symmetry
from .base import InnerProduct, State, kind
from .common import check_name, known_as
from .symmetries import of_euclidean, of_matrix

DEFAULT_NAME = "entries"


@kind("euclidean")
class Euclidean(InnerProduct):
    """The form whose orthonormal basis is the coordinates, of any dtype on any device. It keeps only their symmetries.

    On a hull it also names the coordinate origin; to keep translations, damp by `euclidean_on_translations`.
    """

    def __init__(self, space: VectorSpace):
        self.space = check_vector_space("Euclidean", space)

    def flat_components(self, x: Tensor) -> Tensor:
        return x

    @property
    def by_members(self) -> bool:
        return True

    def diagonal_entries(self, like: Tensor | None = None) -> Tensor:
        return torch.ones(self.space.dim, **self._options(like))

    @property
    def structure(self) -> Structure:
        return Structure("identity", self.space.dim, 0.0, 0.0, self.space.dim)

    def direct_factorization(self, method: str) -> Factorization:
        return IdentityFactor(self.space.dim)

    def factors_on(self, spaces: tuple[VectorSpace, ...]) -> tuple[InnerProduct, ...] | None:
        return tuple(Euclidean(V) for V in spaces) if tensor_product(*spaces) == self.space else None

    def summands(self) -> dict[str, InnerProduct] | None:
        if not isinstance(self.space, DirectSum):
            return None
        return {name: Euclidean(V) for name, V in self.space.parts}

    @property
    def symmetry(self) -> Symmetry:
        return of_euclidean(self.space, self.expression())

    def expression(self) -> str:
        return f"Euclidean({self.space})"

    def blended(self, other: InnerProduct, weight: float) -> InnerProduct:
        if isinstance(other, Euclidean):
            return self
        multiple = other.kind == "multiple" and other.structure.kind == "identity"
        if multiple or isinstance(other, Diagonal) or other.dense_blocks() is not None:  # they are closed under it
            return other.blended(self, 1 - weight)
        return super().blended(other, weight)

    def own_state(self) -> State:
        return {}

    @classmethod
    def restore(cls, space: VectorSpace, state: State) -> Euclidean:
        return cls(space)


@kind("diagonal")
class Diagonal(InnerProduct):
    """`Diagonal(V, entries)` with entries of shape V.shape, not negative. As a constant it is known by its `name`."""

    def __init__(self, space: VectorSpace, entries: Tensor, name: str = DEFAULT_NAME):
        check_vector_space("Diagonal", space)
        check_name(name, "Diagonal")
        if not isinstance(entries, Tensor) or tuple(entries.shape) not in (space.shape, (space.dim,)):
            raise ShapeMismatch(
                f"ShapeMismatch in Diagonal: entries on {space} have shape {list(space.shape)}, "
                f"got {describe(entries)}."
            )
        if not entries.dtype.is_floating_point:
            raise DtypeMismatch(
                f"DtypeMismatch in Diagonal: the entries on {space} must be floating point, got {describe(entries)}."
            )
        if not bool(entries.isfinite().all()):
            raise NonFinite(f"NonFinite in Diagonal: the entries on {space} hold NaN or infinity.")
        if bool((entries < 0).any()):
            raise NotAnInnerProduct(
                f"NotAnInnerProduct in Diagonal: an entry on {space} is {float(entries.min()):.3g}. "
                f"Entries of an inner product are positive; zero is allowed until something is solved."
            )
        self._set(space, entries.reshape(-1), name, None)

    def _set(self, space: VectorSpace, entries: Tensor, name: str, symmetry: Symmetry | None) -> None:
        self.space, self.entries, self.name, self._given_symmetry = space, entries, name, symmetry

    @classmethod
    def of(cls, space: VectorSpace, entries: Tensor, name: str, symmetry: Symmetry) -> Diagonal:
        """Without validation, with a symmetry known from where the entries came from."""
        form = object.__new__(cls)
        form._set(space, entries, name, symmetry)
        return form

    def flat_components(self, x: Tensor) -> Tensor:
        return x * self.entries

    def tensors(self) -> Iterator[Tensor]:
        yield self.entries

    @property
    def by_members(self) -> bool:
        return True

    def diagonal_entries(self, like: Tensor | None = None) -> Tensor:
        return self.entries

    @property
    def structure(self) -> Structure:
        d = self.space.dim
        return Structure("diagonal", d, float(d), float(d), d)

    def direct_factorization(self, method: str) -> Factorization:
        return DiagonalFactor(self.entries)

    @property
    def symmetry(self) -> Symmetry:
        return self._of_constant if self._given_symmetry is None else self._given_symmetry

    @cached_property
    def _of_constant(self) -> Symmetry:
        return of_matrix(self.space, known_as(self.name, DEFAULT_NAME, self.entries), self.expression())

    def expression(self) -> str:
        return f"Diagonal({self.space}, {self.name})"

    def blended(self, other: InnerProduct, weight: float) -> InnerProduct:
        if other.structure.kind not in ("diagonal", "identity"):
            return super().blended(other, weight)
        entries = self.entries.lerp(other.diagonal_entries(self.entries), weight)
        return Diagonal.of(self.space, entries, self.name, self.symmetry + other.symmetry)

    def own_state(self) -> State:
        return {"entries": self.entries, "name": self.name, "symmetry": self.symmetry.to_state()}

    @classmethod
    def restore(cls, space: VectorSpace, state: State) -> Diagonal:
        return cls.of(space, state["entries"], state["name"], Symmetry.from_state(state["symmetry"]))
