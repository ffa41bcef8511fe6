"""Forms that go unit by unit: on S ⊗ Â*, one form on Â* for each element of the basis of S."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from ..elements import Scalar, describe
from ..errors import DtypeMismatch, NonFinite, NotAnInnerProduct, ShapeMismatch, SpaceMismatch
from ..factorizations import Factorization, FrameFactor, RankDeficient, factorize_dense, tolerance_of
from ..solvers import Structure
from ..solvers.base import degenerate_named
from ..spaces import Family, VectorSpace, check_vector_space
from ..symmetry import Symmetry
from .base import InnerProduct, State, kind
from .common import known_as
from .kronecker import Kronecker
from .members import blocks
from .pencils import DIAGONAL, pencil_of_blocks
from .quasi_diagonal import CompletedSquares, QuasiDiagonal, named_by_units, units_and_rest
from .symmetries import of_matrix

DEFAULT_NAME = "matrices"


@kind("unit-wise")
class UnitWise(InnerProduct):
    """One form on the last factor of a product for each basis element of the others, the *units*: (*units, d, d).

    On Hom(Â, S) these are the output units of a layer. Nothing stands between units, so it names their lines:
    `natural=True` says that the matrices come from data, and that these lines are all it names; else they are a
    constant, known by its `name`. Sums with forms of this kind, with diagonal ones and with products D ⊗ h, D diagonal,
    are solved unit by unit too.
    """

    def __init__(
        self,
        space: VectorSpace,
        matrices: Tensor,
        name: str = DEFAULT_NAME,
        natural: bool = False,
        validate: bool = True,
    ):
        check_vector_space("UnitWise", space)
        if units_and_rest(space) is None:
            raise SpaceMismatch(
                f"SpaceMismatch in UnitWise: {space} is no product: units are the basis elements of S in S ⊗ V. On one "
                f"space, and on a family of them, it is a Gram."
            )
        shape = (*space.shape, space.shape[-1])
        if not isinstance(matrices, Tensor) or tuple(matrices.shape) != shape:
            raise ShapeMismatch(
                f"ShapeMismatch in UnitWise: a form on {space} has matrices {list(shape)}, got {describe(matrices)}."
            )
        if not matrices.dtype.is_floating_point:
            raise DtypeMismatch(
                f"DtypeMismatch in UnitWise: the matrices on {space} must be floating point, got {describe(matrices)}."
            )
        self._set(space, matrices, name, named_by_units(space, f"UnitWise({space}, {name})") if natural else None)
        if validate:
            self._validate()

    def _set(self, space: VectorSpace, matrices: Tensor, name: str, symmetry: Symmetry | None) -> None:
        d = space.shape[-1]
        self.space, self.name, self._given_symmetry = space, name, symmetry
        self.entries = matrices.reshape(-1, d, d)

    @classmethod
    def of(cls, space: VectorSpace, matrices: Tensor, name: str, symmetry: Symmetry) -> UnitWise:
        """Without validation, with a symmetry known from where the matrices came from."""
        form = object.__new__(cls)
        form._set(space, matrices, name, symmetry)
        return form

    def _validate(self) -> None:
        M = self.entries.detach()
        if not bool(M.isfinite().all()):
            raise NonFinite(f"NonFinite in UnitWise: the matrices on {self.space} hold NaN or infinity.")
        lengths = M.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
        lengths = torch.where(lengths > 0, lengths, 1.0)
        gap = float(((M - M.mT) / lengths[..., :, None] / lengths[..., None, :]).abs().max())
        if gap > 1e2 * tolerance_of(M):
            raise NotAnInnerProduct(
                f"NotAnInnerProduct in UnitWise: a matrix on {self.space} is not symmetric: it differs from its "
                f"transpose by {gap:.2e}, at unit diagonal. Pass (M + M.mT) / 2 if that is what is meant."
            )
        with degenerate_named(self.space, "UnitWise"), torch.no_grad():
            try:
                factorize_dense(M)
            except RankDeficient:
                return

    def flat_components(self, x: Tensor) -> Tensor:
        units, d = self.entries.shape[:2]
        return (x.reshape(*x.shape[:-1], units, 1, d) @ self.entries).reshape(x.shape)

    def tensors(self) -> Iterator[Tensor]:
        yield self.entries

    def dense_matrix(self, like: Tensor | None = None) -> Tensor:
        return torch.block_diag(*self.entries)

    @property
    def by_members(self) -> bool:
        return True

    def diagonal_entries(self, like: Tensor | None = None) -> Tensor:
        return self.entries.diagonal(dim1=-2, dim2=-1).flatten()

    @property
    def structure(self) -> Structure:
        d, side = self.space.dim, self.entries.shape[-1]
        return Structure("unit-wise", d, d * side**2 / 3, 2.0 * d * side, d)

    def direct_factorization(self, method: str) -> Factorization:
        return factorize_dense(self.entries, method)

    def pencil_with(self, reference: InnerProduct, like: Tensor | None = None) -> FrameFactor:
        theirs = unit_blocks(reference, self.entries)
        if theirs is None:
            return super().pencil_with(reference, like)
        return pencil_of_blocks(self.entries, theirs)

    @property
    def symmetry(self) -> Symmetry:
        return self._of_constant if self._given_symmetry is None else self._given_symmetry

    @cached_property
    def _of_constant(self) -> Symmetry:
        return of_matrix(self.space, known_as(self.name, DEFAULT_NAME, self.entries), self.expression())

    def expression(self) -> str:
        return f"UnitWise({self.space}, {self.name})"

    def blended(self, other: InnerProduct, weight: float) -> InnerProduct:
        theirs = unit_blocks(other, self.entries)
        if theirs is None:
            return super().blended(other, weight)
        return UnitWise.of(self.space, self.entries.lerp(theirs, weight), self.name, self.symmetry + other.symmetry)

    def own_state(self) -> State:
        return {"matrices": self.entries, "name": self.name, "symmetry": self.symmetry.to_state()}

    @classmethod
    def restore(cls, space: VectorSpace, state: State) -> UnitWise:
        return cls.of(space, state["matrices"], state["name"], Symmetry.from_state(state["symmetry"]))


def unit_blocks(g: InnerProduct, like: Tensor) -> Tensor | None:
    """The matrices (units, d, d) of a form without terms between units, where its kind shows that it is one."""
    space = g.space
    if isinstance(g, UnitWise):
        return g.entries
    if isinstance(g, QuasiDiagonal):
        return g.unit_matrices()
    if g.structure.kind in DIAGONAL and units_and_rest(space) is not None:
        return torch.diag_embed(g.diagonal_entries(like).reshape(-1, space.shape[-1]))
    if not (isinstance(g, Kronecker) and _last_alone(g)):
        return None
    *leading, last = g.factors
    weights = torch.ones(g.members, 1, dtype=like.dtype, device=like.device)
    for D in leading:
        own = D.diagonal_entries(like).reshape(g.members if isinstance(D.space, Family) else 1, -1)
        weights = (weights[:, :, None] * own[:, None, :]).flatten(1)
    each = blocks(last, like) if isinstance(last.space, Family) else last.dense_matrix(like)[None]
    return (weights[:, :, None, None] * each[:, None]).flatten(0, 1)


def _last_alone(g: Kronecker) -> bool:
    """Whether all factors but the last are diagonal, and that one goes member by member."""
    *leading, last = g.factors
    member = last.space.of if isinstance(last.space, Family) else last.space
    diagonal = all(D.structure.kind in DIAGONAL for D in leading)
    return diagonal and len(member.factors) == 1 and last.by_members


Terms = Sequence[tuple[Scalar, InnerProduct]]


def by_units(terms: Terms) -> bool:
    """Whether a sum goes unit by unit, and is no plain diagonal."""
    forms = [form for _, form in terms]
    return any(isinstance(form, (UnitWise, QuasiDiagonal)) for form in forms) and all(
        isinstance(form, (UnitWise, QuasiDiagonal))
        or form.structure.kind in DIAGONAL
        or (isinstance(form, Kronecker) and _last_alone(form))
        for form in forms
    )


def cost_by_units(terms: Terms) -> float:
    """In flops."""
    space, like = terms[0][1].space, sum(isinstance(form, QuasiDiagonal) for _, form in terms)
    plain = all(isinstance(form, QuasiDiagonal) or form.structure.kind in DIAGONAL for _, form in terms)
    return 12.0 * space.dim if plain and like == 1 else space.dim * space.shape[-1] ** 2 / 3


def factorize_by_units(terms: Terms, like: Tensor, method: str) -> Factorization:
    """A quasi-diagonal form damped by diagonals stays as cheap; anything else unit by unit."""
    quasi = [(c, form) for c, form in terms if isinstance(form, QuasiDiagonal)]
    others = [(c, form) for c, form in terms if not isinstance(form, QuasiDiagonal)]
    if len(quasi) == 1 and all(form.structure.kind in DIAGONAL for _, form in others):
        (c, g), added = quasi[0], torch.zeros(terms[0][1].space.dim, dtype=like.dtype, device=like.device)
        for b, form in others:
            added = added + b * form.diagonal_entries(like)
        added = added.reshape(len(g.pivots), -1)
        rest = c * g.rest + added[:, :-1]
        if bool((rest > 0).all()):
            return CompletedSquares(c * g.pivots, g.slopes, rest, added[:, -1])
    total: Tensor | None = None
    for c, form in terms:
        M = unit_blocks(form, like)
        assert M is not None
        total = c * M if total is None else total + c * M
    assert total is not None
    return factorize_dense(total, method)
