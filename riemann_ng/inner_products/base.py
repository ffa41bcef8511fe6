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
from ..errors import SpaceMismatch
from ..factorizations import Factorization, FrameFactor, Kept, keep, normally
from ..linear_maps import LinearMap
from ..solvers import Auto, Solver, Structure
from ..solvers.base import check_covector, check_finite, check_solver, checked_covector
from ..solvers.stages import Stages
from ..spaces import AffineSpace, Space, VectorSpace
from ..symmetry import Symmetry
from . import common, members
from .common import Algebra
from .pencils import pencil_of
from .states import converted, on_bases
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

    def keeps(self, space: Space | AffineSpace | str, group: str) -> bool:
        """Whether the form does not see this group act on this one of the spaces that it is made on."""
        return self.symmetry.keeps(common.base_of(self, space), group)

    def tensors(self) -> Iterator[Tensor]:
        """The tensors the form holds: they give its dtype and its device (numbers, of no dimension, give none)."""
        return iter(())

    @cached_property
    def _traits(self) -> tuple[torch.dtype | None, torch.device | None, bool, tuple[Tensor, ...]]:
        dtype, device, differentiable, tensors = None, None, False, tuple(self.tensors())
        for t in tensors:
            differentiable = differentiable or t.requires_grad
            if dtype is None and t.ndim:
                dtype, device = t.dtype, t.device
        return dtype, device, differentiable, tensors

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

    def dual_factorization(self) -> Factorization | None:
        return None

    def stages(self) -> Stages | None:
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
        dtype = torch.get_default_dtype() if like is None else like.dtype
        return {"dtype": self.dtype or dtype, "device": self.device or (None if like is None else like.device)}

    def factors_on(self, spaces: tuple[VectorSpace, ...]) -> tuple[InnerProduct, ...] | None:
        """The form as a tensor product of forms on these spaces, or None."""
        return (self,) if spaces == (self.space,) else None

    def summands(self) -> dict[str, InnerProduct] | None:
        """The form as a direct sum along the summands of its space, or None."""
        return None

    def dense_blocks(self) -> Tensor | None:
        """The matrix (d, d), or one (m, d, d) for each member of a family, where the form is kept as such; or None."""
        return None

    blended_onto = members.blended_onto

    @property
    def by_members(self) -> bool:
        """Whether it is one form for each member of a family, with nothing between them."""
        return members.uncoupled(self)

    def flat(self, v: Element) -> Covector:
        """The covector w ↦ inner(v, w)."""
        return Covector._of(self.space.dual, self._shaped(self.flat_components(self._checked(v, "flat"))))

    def sharp(self, covector: Element, solver: Solver | None = None) -> Vector:
        """The vector v with flat(v) = ξ. The factorization is kept with the form unless a solver is given."""
        call = f"{self.expression()}.sharp" if not isinstance(covector, Element) else "sharp"
        check_covector(self, covector, call)
        self._same_kind(covector, "sharp")
        check_finite(covector, call)
        if solver is not None:
            check_solver(solver, call)
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
        symmetry = self.symmetry ** Fraction(-1, 2)
        return LinearMap.from_functions(self._frame_space, self.space, f.frame, f.coframe, "E", symmetry)

    @cached_property
    def _frame_space(self) -> VectorSpace:
        return common.frame_space(self.space, self.expression())

    def random_vector(
        self, generator: torch.Generator | None = None, *batch: int, like: Tensor | None = None
    ) -> Vector:
        """A Gaussian vector whose precision is this form."""
        z = torch.randn(*batch, self.space.dim, generator=generator, **self._options(like))
        with common.degenerate_of(self.space, self.rank, "random_vector"):
            return Vector._of(self.space, self.factorization(z).frame(z).reshape(*batch, *self.space.shape))

    def sharp_modulo_kernel(self, covector: Element, reference: InnerProduct) -> Vector:
        """Of all v with flat(v) = ξ the one that is shortest for the reference. ξ must vanish on the kernel."""
        x = checked_covector(self, covector, "sharp_modulo_kernel")
        common.check_reference(self, reference, "sharp_modulo_kernel")
        with common.degenerate_of(self.space, self.rank, "sharp_modulo_kernel: ξ does not vanish on the kernel"):
            return Vector._of(self.space, self._shaped(self.pencil_with(reference, x).solve_modulo_kernel(x)))

    def pencil_with(self, reference: InnerProduct, like: Tensor | None = None) -> FrameFactor:
        """The frame orthonormal for the reference in which this form is diagonal."""
        return pencil_of(self, reference, like)

    def rank(self, like: Tensor | None = None) -> int:
        """The numerical rank."""
        return common.rank_by(self, like)

    # Factorizations, made once

    def factorization(self, like: Tensor | None = None) -> Factorization:
        """What `Auto` makes of this form, kept until one of its tensors is changed in place."""
        kept: Kept[Factorization] | None = self.__dict__.get("_kept_factorization")
        if kept is not None and kept.fresh:
            return kept.value
        if torch.is_inference_mode_enabled():
            return normally(self.factorization, like)
        direct = self.direct_factorization("cholesky") if self.always_direct else None
        return self.keep(Auto().factorize(self, like) if direct is None else direct)

    def keep(self, factorization: Factorization) -> Factorization:
        dtype, _, differentiable, tensors = self._traits
        if dtype is not None and not differentiable and factorization.worth_keeping:
            self.__dict__["_kept_factorization"] = keep(factorization, tensors)
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

    def __radd__(self, other: object) -> InnerProduct:
        if isinstance(other, int) and not isinstance(other, bool) and other == 0:  # where `sum([g, h])` starts
            return self
        raise common.no_damping(self, other)

    def __sub__(self, other: object) -> InnerProduct:
        raise common.no_difference(self, other)

    def __mul__(self, other: InnerProduct | Scalar) -> InnerProduct:
        return self.algebra.product(self, other) if isinstance(other, InnerProduct) else self.algebra.scale(other, self)

    def __rmul__(self, scalar: Scalar) -> InnerProduct:
        return self.algebra.scale(scalar, self)

    def __truediv__(self, scalar: float) -> InnerProduct:
        return self.algebra.scale(common.reciprocal(self, scalar), self)

    def pullback(self, phi: LinearMap) -> InnerProduct:
        """The form u, u' ↦ g(φ u, φ u') on the domain of φ."""
        return self.algebra.pullback(phi, self)

    def restrict(self, to: str | LinearMap) -> InnerProduct:
        """The form on a summand, by name, or on the domain of an inclusion."""
        summands = self.summands() or {}
        return summands[to] if to in summands else self.pullback(common.inclusion(self.space, to))

    def quotient(self, kernel: LinearMap) -> InnerProduct:
        """On V/K, for an inclusion of K: a class is as long as its shortest member. It knows its `projection`."""
        return self.algebra.quotient(self, kernel)

    def diagonal(self, basis: LinearMap | None = None) -> InnerProduct:
        """The part of the form that is diagonal in a basis, a frame `basis` or else the coordinates."""
        return self.algebra.diagonal(self, basis)

    def blend(self, other: InnerProduct, weight: float) -> InnerProduct:
        """The running average (1 - weight) g + weight h, kept in one form of this kind.

        A product blends factor by factor, which is not the mean of the two inner products, a sum term by term. Refused
        where the kind is not closed under it.
        """
        common.check_blend(self, other if isinstance(other, InnerProduct) else None, other, weight)
        return self.blended(other, weight)

    def blended(self, other: InnerProduct, weight: float) -> InnerProduct:
        raise common.no_common_kind(self, other)

    def state(self) -> State:
        """Tensors, numbers and strings to rebuild the form with `InnerProduct.from_state(space, state)`."""
        shape, bases = list(self.space.shape), list(self.space.bases)
        return {"kind": self.kind, "shape": shape, "bases": bases, **self.own_state()}

    def own_state(self) -> State:
        raise common.no_state(self)

    @classmethod
    def restore(cls, space: VectorSpace, state: State) -> InnerProduct:
        """The inverse of `own_state`."""
        raise common.no_restore(cls.kind)

    @staticmethod
    def from_state(space: VectorSpace, state: Mapping[str, Any]) -> InnerProduct:
        """The form on a space of the shape it was made for. Of a space of other bases, it names these."""
        common.check_state(state, space, KINDS)
        return KINDS[state["kind"]].restore(space, on_bases(state, space))

    def to(self, *to: torch.dtype | torch.device | str) -> InnerProduct:
        """The form in another dtype, on another device, by way of its state: a moment comes back as its matrix."""
        return self.from_state(self.space, converted(self.state(), *to))

    def __repr__(self) -> str:
        return f"{self.expression()} : {common.arrow(self.space.dual, self.space)}"

    def _checked(self, v: Element, call: str) -> Tensor:
        if not isinstance(v, Element) or (v.lives_in is not self.space and v.lives_in != self.space):
            raise common.not_a_vector(self, v, call)
        self._same_kind(v, call)
        return v.components

    def _same_kind(self, v: Element, call: str) -> None:
        dtype, device, *_ = self._traits
        if dtype not in (None, v.dtype) or device not in (None, v.device):
            raise common.of_another_kind(self, v, call)

    def _shaped(self, x: Tensor) -> Tensor:
        return x if len(self.space.shape) == 1 else x.reshape(*x.shape[:-1], *self.space.shape)
