"""Inner products given by a matrix, and sums of squares given by rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from ..elements import describe
from ..errors import DtypeMismatch, NonFinite, NotAnInnerProduct, ShapeMismatch
from ..factorizations import Factorization, RankDeficient, factorize_dense, factorize_rows, tolerance_of
from ..solvers import Structure
from ..solvers.base import degenerate_named
from ..spaces import Family, VectorSpace, check_vector_space
from ..symmetry import Symmetry
from .base import InnerProduct, State, kind
from .common import known_as
from .symmetries import of_matrix

DEFAULT_NAME, DEFAULT_ROWS_NAME = "matrix", "rows"


@kind("gram")
class Gram(InnerProduct):
    """The form with a given matrix: `Gram(V, matrix)`, on a family `Gram(Family(V, m), matrices)` with (m, d, d).

    Asymmetric and indefinite matrices are refused at once; a degenerate one is allowed until something is solved. The
    matrix is a constant known by its `name`, or without one by its entries: it claims few symmetries, unless
    `natural=True` says that it was computed from data and moves with the frames.
    """

    always_direct = True

    def __init__(
        self,
        space: VectorSpace,
        matrix: Tensor,
        validate: bool = True,
        name: str = DEFAULT_NAME,
        natural: bool = False,
    ):
        self._check_shape(space, matrix)
        self._set(space, matrix, name, Symmetry.natural() if natural else None)
        if validate:
            self._validate()

    @staticmethod
    def _check_shape(space: VectorSpace, M: object) -> None:
        check_vector_space("Gram", space)
        shape = (space.members, space.of.dim, space.of.dim) if isinstance(space, Family) else (space.dim, space.dim)
        if not isinstance(M, Tensor) or tuple(M.shape) != shape:
            raise ShapeMismatch(
                f"ShapeMismatch in Gram: a form on {space} has a matrix {list(shape)}, got {describe(M)}."
            )
        if not M.dtype.is_floating_point:
            raise DtypeMismatch(
                f"DtypeMismatch in Gram: the matrix on {space} must be floating point, got {describe(M)}."
            )

    def _set(self, space: VectorSpace, matrix: Tensor, name: str, symmetry: Symmetry | None) -> None:
        self.space, self.entries, self.name, self._given_symmetry = space, matrix, name, symmetry

    @classmethod
    def of(cls, space: VectorSpace, matrix: Tensor, name: str, symmetry: Symmetry) -> Gram:
        """Without validation, with a symmetry known from where the matrix came from."""
        gram = object.__new__(cls)
        gram._set(space, matrix, name, symmetry)
        return gram

    def _validate(self) -> None:
        M, space = self.entries, self.space
        if not bool(M.isfinite().all()):
            raise NonFinite(f"NonFinite in Gram: the matrix on {space} holds NaN or infinity.")
        at_unit_diagonal = _at_unit_diagonal(M.detach())
        gap = float((at_unit_diagonal - at_unit_diagonal.mT).abs().max())
        size = float(at_unit_diagonal.abs().max())
        if gap > 1e2 * tolerance_of(M) * size:
            raise NotAnInnerProduct(
                f"NotAnInnerProduct in Gram: the matrix on {space} is not symmetric: it differs from its transpose "
                f"by {gap:.2e} with entries up to {size:.2e}, at unit diagonal. Pass (M + M.mT) / 2 if that is what is "
                f"meant."
            )
        with degenerate_named(space, "Gram"), torch.inference_mode(False), torch.no_grad():
            try:
                factorization = factorize_dense(M)
            except RankDeficient:
                return
        self.keep(factorization)

    def flat_components(self, x: Tensor) -> Tensor:
        if self.entries.ndim == 2:
            return x @ self.entries
        m, d = self.entries.shape[:2]
        return (x.reshape(*x.shape[:-1], m, 1, d) @ self.entries).reshape(x.shape)

    def tensors(self) -> Iterator[Tensor]:
        yield self.triangle

    def dense_matrix(self, like: Tensor | None = None) -> Tensor:
        return self.entries if self.entries.ndim == 2 else torch.block_diag(*self.entries)

    @property
    def by_members(self) -> bool:
        return self.triangle.ndim == 3 or super().by_members

    def dense_blocks(self) -> Tensor:
        return self.entries

    def diagonal_entries(self, like: Tensor | None = None) -> Tensor:
        return self.triangle.diagonal(dim1=-2, dim2=-1).flatten()

    @property
    def structure(self) -> Structure:
        d, side = self.space.dim, self.triangle.shape[-1]
        return Structure("dense", d, d * side**2 / 3, 2.0 * d * side, d)

    def direct_factorization(self, method: str) -> Factorization:
        return factorize_dense(self.entries, method)

    @property
    def symmetry(self) -> Symmetry:
        return self._of_constant if self._given_symmetry is None else self._given_symmetry

    @cached_property
    def _of_constant(self) -> Symmetry:
        return of_matrix(self.space, known_as(self.name, DEFAULT_NAME, self.entries), self.expression())

    def expression(self) -> str:
        return f"Gram({self.space}, {self.name})"

    def blended(self, other: InnerProduct, weight: float) -> InnerProduct:
        symmetry = self.symmetry + other.symmetry
        if other.structure.kind in ("diagonal", "identity"):
            entries = other.diagonal_entries(self.entries).reshape(self.entries.shape[:-1])
            return Gram.of(self.space, self.entries.lerp(torch.diag_embed(entries), weight), self.name, symmetry)
        blend = other.blended_onto(self, weight)
        if blend is None:
            return super().blended(other, weight)
        matrix, whole = blend
        return (Gram if whole else Halved).of(self.space, matrix, self.name, symmetry)

    @property
    def triangle(self) -> Tensor:
        """The matrix on and below its diagonal; above it there may be anything."""
        return self.entries

    def own_state(self) -> State:
        return {"matrix": self.entries, "name": self.name, "symmetry": self.symmetry.to_state()}

    @classmethod
    def restore(cls, space: VectorSpace, state: State) -> Gram:
        return cls.of(space, state["matrix"], state["name"], Symmetry.from_state(state["symmetry"]))


class Halved(Gram):
    """A matrix of data that was computed on and below the diagonal. The rest is filled in when it is read.

    A running average takes a moment in at every step, and is factorized at every tenth: nine mirror images are saved.
    Its diagonal bounds it, as it does that of any form, so whether it is finite can be seen there.
    """

    def _set(self, space: VectorSpace, matrix: Tensor, name: str, symmetry: Symmetry | None) -> None:
        self.space, self.name, self._given_symmetry = space, name, symmetry
        self._triangle, self._whole = matrix, False

    @property
    def entries(self) -> Tensor:  # type: ignore[override]
        if not self._whole:
            lower = self._triangle.tril()
            self._triangle, self._whole = lower + lower.tril(-1).mT, True
        return self._triangle

    @property
    def triangle(self) -> Tensor:
        return self._triangle


def _at_unit_diagonal(M: Tensor) -> Tensor:
    """The matrix in units in which its axes have length one; an axis of length zero is left as it is."""
    lengths = M.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    lengths = torch.where(lengths > 0, lengths, torch.ones_like(lengths))
    return M / lengths[..., :, None] / lengths[..., None, :]


@kind("low rank")
class LowRank(InnerProduct):
    """The sum of squares Σ ξᵢ ⊗ ξᵢ of the rows of a matrix (rank, dim): `LowRank(V, rows)`."""

    def __init__(self, space: VectorSpace, rows: Tensor, name: str = DEFAULT_ROWS_NAME, natural: bool = False):
        check_vector_space("LowRank", space)
        if not isinstance(rows, Tensor) or rows.ndim != 2 or rows.shape[1] != space.dim:
            raise ShapeMismatch(
                f"ShapeMismatch in LowRank: rows on {space} have shape [rank, {space.dim}], got {describe(rows)}."
            )
        if not rows.dtype.is_floating_point:
            raise DtypeMismatch(
                f"DtypeMismatch in LowRank: the rows on {space} must be floating point, got {describe(rows)}."
            )
        if not bool(rows.isfinite().all()):
            raise NonFinite(f"NonFinite in LowRank: the rows on {space} hold NaN or infinity.")
        self.space, self._rows, self.name = space, rows, name
        self._given_symmetry = Symmetry.natural() if natural else None

    def flat_components(self, x: Tensor) -> Tensor:
        return (x @ self._rows.mT) @ self._rows

    def tensors(self) -> Iterator[Tensor]:
        yield self._rows

    def rows(self) -> Tensor:
        return self._rows

    def dense_matrix(self, like: Tensor | None = None) -> Tensor:
        return self._rows.mT @ self._rows

    def diagonal_entries(self, like: Tensor | None = None) -> Tensor:
        return self._rows.square().sum(0)

    @property
    def structure(self) -> Structure:
        r, d = self._rows.shape
        return Structure("low rank", d, 2.0 * r * d * min(r, d), 4.0 * r * d, min(r, d))

    def direct_factorization(self, method: str) -> Factorization:
        return factorize_rows(self._rows)

    @property
    def symmetry(self) -> Symmetry:
        return self._of_constant if self._given_symmetry is None else self._given_symmetry

    @cached_property
    def _of_constant(self) -> Symmetry:
        source = f"LowRank({self.space}, {self.name})"
        return of_matrix(self.space, known_as(self.name, DEFAULT_ROWS_NAME, self._rows), source)

    def expression(self) -> str:
        return f"LowRank({self.space}, {self.name}[{len(self._rows)}])"

    def own_state(self) -> State:
        return {"rows": self._rows, "name": self.name, "symmetry": self.symmetry.to_state()}

    @classmethod
    def restore(cls, space: VectorSpace, state: State) -> LowRank:
        form = cls(space, state["rows"], state["name"])
        form._given_symmetry = Symmetry.from_state(state["symmetry"])
        return form
