"""The interface of inner products, its laws, and how expressions are put together.

An inner product g on V is an expression. It turns vectors into covectors (`flat`) and back (`sharp`); every optimizer
is the choice of one. Laws, each with one generic test in `riemann_ng.testing.laws` that every kind enters:

    flat(v)(w) == inner(v, w) == inner(w, v);  inner(v, v) > 0;  sharp(flat(v)) == v;  flat(sharp(ξ)) == ξ
    g.dual.flat == g.sharp;  g.dual.dual acts as g;  frame().frame()ᵀ == sharp;  logdet(g.dual) == -logdet(g)
    (g.pullback(φ)).inner(u, u) == g.inner(φ u, φ u);  (c g + h).flat == c g.flat + h.flat
    sharp is natural: for an isomorphism φ: U → V, φ (g.pullback(φ).sharp(φ.pullback(ξ))) == g.sharp(ξ)

A new kind sets `space`, defines `flat_components`, `tensors` and `expression`, and overrides what it can do better:
the rest follows densely. `riemann_ng.testing.check_laws` runs the laws on it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ..elements import Covector, Element, Scalar, Vector
from ..errors import NotAnInnerProduct, NotClosed, SpaceMismatch
from ..factorizations import Factorization, FrameFactor, RankDeficient, pencil, rows_pencil
from ..linear_maps import LinearMap
from ..solvers import Auto, Solver, Structure
from ..solvers.base import check_covector, check_finite, checked_covector
from ..spaces import Derived, DirectSum, VectorSpace
from ..symmetry import Symmetry
from . import common
from .common import Algebra
from .symmetries import of_matrix

State = dict[str, Any]
KINDS: dict[str, type[InnerProduct]] = {}
K = TypeVar("K", bound="type[InnerProduct]")


def kind(name: str) -> Callable[[K], K]:
    """Names a kind of inner product, for `state` and `from_state`."""

    def register(cls: K) -> K:
        cls.kind, KINDS[name] = name, cls
        return cls

    return register


class InnerProduct(ABC):
    """An inner product, or a degenerate positive form, on `space`."""

    kind: ClassVar[str] = "custom"
    always_direct: bool = False
    """Whether `Auto` would pick the kind's own factorization in any case: then it is not asked."""
    algebra: ClassVar[Algebra[InnerProduct]]
    space: VectorSpace

    # What a kind says of itself

    @abstractmethod
    def flat_components(self, x: Tensor) -> Tensor:
        """`flat` on flat components (..., dim)."""

    @abstractmethod
    def expression(self) -> str:
        """The expression, with named leaves."""

    @property
    def symmetry(self) -> Symmetry:
        """The changes of frame that commute with this expression, inferred from the constants it names.

        A kind that says nothing is taken for a constant, known by its expression: the least that can be claimed.
        """
        return of_matrix(self.space, self.expression(), self.expression())

    def tensors(self) -> Iterator[Tensor]:
        """The tensors the form holds: they give its dtype and its device (numbers, of no dimension, give none)."""
        return iter(())

    @cached_property
    def _traits(self) -> tuple[torch.dtype | None, torch.device | None, bool]:
        dtype, device, differentiable = None, None, False
        for t in self.tensors():
            differentiable = differentiable or t.requires_grad
            if dtype is None and t.ndim:
                dtype, device = t.dtype, t.device
        return dtype, device, differentiable

    @property
    def dtype(self) -> torch.dtype | None:
        """None for a form that takes any."""
        return self._traits[0]

    @property
    def device(self) -> torch.device | None:
        return self._traits[1]

    @property
    def differentiable(self) -> bool:
        """Whether gradients flow through the form: what is computed from it is then not kept."""
        return self._traits[2]

    @property
    def structure(self) -> Structure:
        d = self.space.dim
        return Structure(self.kind, d, None, 2.0 * d * d, d)

    def direct_factorization(self, method: str) -> Factorization | None:
        return None

    def low_rank_parts(self) -> tuple[InnerProduct, Tensor] | None:
        return None

    def rows(self) -> Tensor | None:
        """Rows R with the form equal to RᵀR, where the form was made of them: it is then never solved through RᵀR."""
        return None

    def dense_matrix(self, like: Tensor | None = None) -> Tensor:
        return self.flat_components(torch.eye(self.space.dim, **self._options(like)))

    def diagonal_entries(self, like: Tensor | None = None) -> Tensor:
        """The diagonal of the matrix."""
        return self.dense_matrix(like).diagonal()

    def _options(self, like: Tensor | None) -> dict[str, Any]:
        dtype = self.dtype or (like.dtype if like is not None else torch.get_default_dtype())
        device = self.device or (like.device if like is not None else None)
        return {"dtype": dtype, "device": device}

    def factors_on(self, spaces: tuple[VectorSpace, ...]) -> tuple[InnerProduct, ...] | None:
        """The form as a tensor product of forms on these spaces, or None."""
        return (self,) if spaces == (self.space,) else None

    def summands(self) -> dict[str, InnerProduct] | None:
        """The form as a direct sum along the summands of its space, or None."""
        return None

    def dense_blocks(self) -> Tensor | None:
        """The matrix (d, d), or one (m, d, d) for each member of a family, where the form is kept as such; or None."""
        return None

    # Flat, sharp and what follows from them

    def flat(self, v: Element) -> Covector:
        """The covector w ↦ inner(v, w)."""
        return Covector._of(self.space.dual, self._shaped(self.flat_components(self._checked(v, "flat")), v))

    def sharp(self, covector: Element, solver: Solver | None = None) -> Vector:
        """The vector v with flat(v) = ξ. The factorization is kept with the form unless a solver is given."""
        call = f"{self.expression()}.sharp" if not isinstance(covector, Element) else "sharp"
        check_covector(self, covector, call)
        self._same_kind(covector, "sharp")
        check_finite(covector, call)
        if solver is not None:
            return solver.solve(self, covector).value
        data = covector.data
        with common.degenerate_of(self.space, self.rank, "sharp"):
            return Vector._of(self.space, self.factorization(data).solve_shaped(data, len(self.space.shape)))

    def inner(self, v: Element, w: Element) -> Tensor:
        """g(v, w)."""
        x, y = self._checked(v, "inner"), self._checked(w, "inner")
        return torch.linalg.vecdot(self.flat_components(x), y)

    def norm(self, v: Element) -> Tensor:
        return self.inner(v, v).clamp(min=0).sqrt()

    def matrix(self, like: Tensor | None = None) -> Tensor:
        """The dense matrix on flat components, in the dtype of `like` where the form has none of its own."""
        return self.dense_matrix(like)

    def logdet(self, like: Tensor | None = None) -> Tensor:
        """log det of the matrix. Only differences of two are free of coordinates."""
        with common.degenerate_of(self.space, self.rank, "logdet"):
            return self.factorization(like).logdet.to(**self._options(like))

    def frame(self, like: Tensor | None = None) -> LinearMap:
        """An orthonormal frame, E from a space of its own with E Eᵀ = sharp. Unique up to a rotation of that space."""
        with common.degenerate_of(self.space, self.rank, "frame"):
            f = self.factorization(like)
            f.frame(torch.zeros(self.space.dim, **self._options(like)))  # a kernel shows here, not when E is used
        source = Derived(f"frame of {self.expression()}", self.space, self.space.dim, up_to_rotation=True)
        return LinearMap.from_functions(source, self.space, f.frame, f.coframe, "E", self.symmetry ** Fraction(-1, 2))

    def random_vector(
        self, generator: torch.Generator | None = None, *batch: int, like: Tensor | None = None
    ) -> Vector:
        """A Gaussian vector whose precision is this form."""
        z = torch.randn(*batch, self.space.dim, generator=generator, **self._options(like))
        with common.degenerate_of(self.space, self.rank, "random_vector"):
            x = self.factorization(z).frame(z)
        return Vector._of(self.space, x.reshape(*batch, *self.space.shape))

    def sharp_modulo_kernel(self, covector: Element, reference: InnerProduct) -> Vector:
        """Of all v with flat(v) = ξ the one that is shortest for the reference. ξ must vanish on the kernel."""
        x = checked_covector(self, covector, "sharp_modulo_kernel")
        if reference.space != self.space:
            raise SpaceMismatch(
                f"SpaceMismatch in sharp_modulo_kernel: {reference!r} is no reference for {self.space}."
            )
        with common.degenerate_of(self.space, self.rank, "sharp_modulo_kernel: ξ does not vanish on the kernel"):
            return Vector._of(self.space, self._shaped(self.pencil_with(reference, x).solve_modulo_kernel(x), covector))

    def pencil_with(self, reference: InnerProduct, like: Tensor | None = None) -> FrameFactor:
        """The frame orthonormal for the reference in which this form is diagonal."""
        rows, factor = self.rows(), reference.factorization(like)
        return pencil(self.dense_matrix(like), factor) if rows is None else rows_pencil(rows, factor)

    def rank(self, like: Tensor | None = None) -> int:
        """The numerical rank."""
        try:
            f = self.factorization(like)
            f.logdet  # noqa: B018  a diagonal finds out here
        except RankDeficient as short:
            return short.rank if short.dim == self.space.dim else common.rank_of(self.dense_matrix(like))
        return self.space.dim

    # Factorizations, made once

    def factorization(self, like: Tensor | None = None) -> Factorization:
        """What `Auto` makes of this form, kept."""
        factorization = self.__dict__.get("_factorization")
        if factorization is None:
            direct = self.direct_factorization("cholesky") if self.always_direct else None
            factorization = Auto().factorize(self, like) if direct is None else direct
            if factorization.worth_keeping and self.dtype is not None and not self.differentiable:
                self.__dict__["_factorization"] = factorization
        return factorization

    # The algebra

    @cached_property
    def dual(self) -> InnerProduct:
        """The inner product of covectors, on V.dual."""
        return self.algebra.dual(self)

    def __add__(self, other: InnerProduct) -> InnerProduct:
        if not isinstance(other, InnerProduct):
            raise common.no_damping(self, other)
        if self.space != other.space:
            raise SpaceMismatch(f"SpaceMismatch in +: {self!r} and {other!r} live on different spaces.")
        return self.algebra.sum(self, other)

    __radd__ = __add__

    def __sub__(self, other: object) -> InnerProduct:
        raise common.no_difference(self, other)

    def __mul__(self, other: InnerProduct | Scalar) -> InnerProduct:
        if isinstance(other, InnerProduct):
            return self.algebra.product(self, other)
        return self.algebra.scale(other, self)

    def __rmul__(self, scalar: Scalar) -> InnerProduct:
        return self.algebra.scale(scalar, self)

    def __truediv__(self, scalar: float) -> InnerProduct:
        if isinstance(scalar, (int, float)) and scalar == 0:
            raise NotAnInnerProduct(f"NotAnInnerProduct in /: {self!r} over 0. Divide by a positive number.")
        return self.algebra.scale(1.0 / scalar, self)

    def pullback(self, phi: LinearMap) -> InnerProduct:
        """The form u, u' ↦ g(φ u, φ u') on the domain of φ."""
        return self.algebra.pullback(phi, self)

    def restrict(self, to: str | LinearMap) -> InnerProduct:
        """The form on a summand, by name, or on the domain of an inclusion."""
        if isinstance(to, LinearMap):
            return self.pullback(to)
        if not isinstance(self.space, DirectSum):
            raise SpaceMismatch(f"SpaceMismatch in restrict: {self.space} is not a direct sum; give an inclusion map.")
        self.space[to]
        summands = self.summands()
        return summands[to] if summands is not None else self.pullback(LinearMap.inclusion(self.space, to))

    def quotient(self, kernel: LinearMap) -> InnerProduct:
        """The form on V/K for an inclusion of K: the length of a class is that of its shortest member.

        The result knows its `projection` V → V/K.
        """
        return self.algebra.quotient(self, kernel)

    def diagonal(self, basis: LinearMap | None = None) -> InnerProduct:
        """The part of the form that is diagonal in a basis, a frame `basis` or else the coordinates."""
        return self.algebra.diagonal(self, basis)

    def blend(self, other: InnerProduct, weight: float) -> InnerProduct:
        """The running average (1 - weight) g + weight h, kept in one form of this kind.

        A product blends factor by factor, which is not the mean of the two inner products. Refused where the kind is
        not closed under it.
        """
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= 1:
            raise NotAnInnerProduct(f"NotAnInnerProduct in blend: the weight is between 0 and 1, got {weight}.")
        if not isinstance(other, InnerProduct) or other.space != self.space:
            raise SpaceMismatch(f"SpaceMismatch in blend: {self!r} with {other!r}: one space is needed.")
        common.one_kind(self, other, "blend")
        return self.blended(other, weight)

    def blended(self, other: InnerProduct, weight: float) -> InnerProduct:
        raise common.no_common_kind(self, other)

    # State and text

    def state(self) -> State:
        """Tensors, numbers and strings to rebuild the form with `InnerProduct.from_state(space, state)`."""
        return {"kind": self.kind, "shape": list(self.space.shape), **self.own_state()}

    def own_state(self) -> State:
        raise common.no_state(self)

    @classmethod
    def restore(cls, space: VectorSpace, state: State) -> InnerProduct:
        """The inverse of `own_state`."""
        raise NotClosed(
            f"NotClosed in from_state: the kind {cls.kind!r} does not say how it is restored: define restore."
        )

    @staticmethod
    def from_state(space: VectorSpace, state: Mapping[str, Any]) -> InnerProduct:
        if state.get("kind") not in KINDS:
            raise NotClosed(f"NotClosed in from_state: unknown kind {state.get('kind')!r}; known: {', '.join(KINDS)}.")
        if state.get("shape") != list(space.shape):
            raise common.not_fitting(state, space)
        return KINDS[state["kind"]].restore(space, dict(state))

    def __repr__(self) -> str:
        source, target = (
            f"({V})" if " " in f"{V}" and not f"{V}".startswith("(") else f"{V}" for V in (self.space, self.space.dual)
        )
        return f"{self.expression()} : {target} ← {source}"

    def _checked(self, v: Element, call: str) -> Tensor:
        if not isinstance(v, Element) or (v.lives_in is not self.space and v.lives_in != self.space):
            raise common.not_a_vector(self, v, call)
        self._same_kind(v, call)
        return v.components

    def _same_kind(self, v: Element, call: str) -> None:
        dtype, device, _ = self._traits
        if dtype not in (None, v.dtype) or device not in (None, v.device):
            raise common.of_another_kind(self, v, call)

    def _shaped(self, x: Tensor, like: Element) -> Tensor:
        shape = self.space.shape
        return x if len(shape) == 1 else x.reshape(*x.shape[:-1], *shape)
