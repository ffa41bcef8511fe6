"""Tensor products of inner products: `g * h` on `V * W`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import Tensor

from ..errors import SpaceMismatch
from ..factorizations import Factorization, FrameFactor, KroneckerFactor
from ..solvers import Eigen, Structure
from ..spaces import Family, VectorSpace, tensor_product
from ..symmetry import Symmetry
from .base import InnerProduct, State, kind
from .common import bracketed, cost
from .pencils import pencil_of_factors


@kind("product")
class Kronecker(InnerProduct):
    """The tensor product: (g * h)(v ⊗ w, v' ⊗ w') = g(v, v') h(w, w'). With families, one product for each member.

    `flat(D) = G D A` and `sharp(ξ) = G⁻¹ ξ A⁻¹` on two factors: K-FAC is of this kind.
    """

    def __init__(self, factors: Sequence[InnerProduct], space: VectorSpace | None = None):
        """`space`, where the tensor product is at hand, is taken for that of the factors."""
        self.factors = tuple(factors)
        self.space = tensor_product(*(g.space for g in factors)) if space is None else space
        self.members = self.space.members if isinstance(self.space, Family) else 1
        self.dims = [g.space.of.dim if isinstance(g.space, Family) else g.space.dim for g in factors]

    def flat_components(self, x: Tensor) -> Tensor:
        y = x.reshape(*x.shape[:-1], self.members, *self.dims)
        lead = x.ndim - 1
        for axis, g in enumerate(self.factors, start=lead + 1):
            moved = y.movedim(axis, -1)  # (..., members, other axes, axis)
            if isinstance(g.space, Family):
                moved = moved.movedim(lead, -2)
                moved = g.flat_components(moved.reshape(*moved.shape[:-2], g.space.dim)).reshape(moved.shape)
                y = moved.movedim(-2, lead).movedim(-1, axis)
            else:
                y = g.flat_components(moved).movedim(-1, axis)
        return y.reshape(x.shape)

    def tensors(self) -> Iterator[Tensor]:
        for g in self.factors:
            yield from g.tensors()

    @property
    def dtype(self) -> torch.dtype | None:
        return next((g.dtype for g in self.factors if g.dtype is not None), None)

    @property
    def device(self) -> torch.device | None:
        return next((g.device for g in self.factors if g.device is not None), None)

    def diagonal_entries(self, like: Tensor | None = None) -> Tensor:
        total = torch.ones(1, 1, **self._options(like))
        for g in self.factors:
            own = self.members if isinstance(g.space, Family) else 1
            entries = g.diagonal_entries(like if self.dtype is None else total).reshape(own, -1)
            total = (total[:, :, None] * entries[:, None, :]).flatten(1)
        return total.expand(self.members, -1).flatten()

    def dense_matrix(self, like: Tensor | None = None) -> Tensor:
        if self.members > 1:
            return super().dense_matrix(like)
        probe = torch.empty(0, **self._options(like))
        total = torch.ones(1, 1, **self._options(like))
        for g in self.factors:
            total = torch.einsum("ij,kl->ikjl", total, g.dense_matrix(probe)).flatten(2).flatten(0, 1)
        return total

    @property
    def by_members(self) -> bool:
        return all(g.by_members for g in self.factors)

    @property
    def structure(self) -> Structure:
        parts = [g.structure for g in self.factors]
        each = [self.space.dim // p.dim for p in parts]
        direct = sum(cost(p) for p in parts)
        apply = sum(e * p.apply for e, p in zip(each, parts, strict=True))
        rank = min(self.space.dim, prod(p.rank for p in parts))
        return Structure("product", self.space.dim, direct, apply, rank)

    @property
    def always_direct(self) -> bool:  # type: ignore[override]
        return all(g.always_direct for g in self.factors)

    def direct_factorization(self, method: str) -> Factorization | None:
        """The product of what `Auto` makes of the factors, kept with them: one in two products is factorized once."""
        if self.dtype is None and any(g.structure.kind != "identity" for g in self.factors):
            return None  # made for the dtype asked for, which only a dense matrix is
        probe = torch.empty(0, **self._options(None))
        parts = [g.factorization(probe) if method == "cholesky" else Eigen().factorize(g, probe) for g in self.factors]
        return KroneckerFactor(parts, self.dims, self.members)

    def rank(self, like: Tensor | None = None) -> int:
        if self.members > 1:
            return super().rank(like)
        return prod(g.rank(torch.empty(0, **self._options(like))) for g in self.factors)

    def factors_on(self, spaces: tuple[VectorSpace, ...]) -> tuple[InnerProduct, ...] | None:
        return self.factors if spaces == tuple(g.space for g in self.factors) else super().factors_on(spaces)

    def pencil_with(self, reference: InnerProduct, like: Tensor | None = None) -> FrameFactor:
        spaces = tuple(g.space for g in self.factors)
        references = reference.factors_on(spaces)
        if references is None or not self.by_members:
            return super().pencil_with(reference, like)
        pairs = list(zip(self.factors, references, strict=True))
        axes, spectrum, tolerance = pencil_of_factors(pairs, self.members, torch.empty(0, **self._options(like)))
        return FrameFactor(axes, spectrum, tolerance=tolerance)

    @property
    def symmetry(self) -> Symmetry:
        symmetry = self.factors[0].symmetry
        for g in self.factors[1:]:
            symmetry = symmetry * g.symmetry
        return symmetry

    def expression(self) -> str:
        return " * ".join(bracketed(g.expression()) for g in self.factors)

    def blended(self, other: InnerProduct, weight: float) -> InnerProduct:
        theirs = other.factors_on(tuple(g.space for g in self.factors))
        if theirs is None:
            return super().blended(other, weight)
        return Kronecker([g.blend(h, weight) for g, h in zip(self.factors, theirs, strict=True)], self.space)

    def own_state(self) -> State:
        return {
            "factors": [g.state() for g in self.factors],
            "arities": [len(member_of(g.space).factors) for g in self.factors],
            "families": [isinstance(g.space, Family) for g in self.factors],
        }

    @classmethod
    def restore(cls, space: VectorSpace, state: State) -> Kronecker:
        atoms, factors, start = member_of(space).factors, [], 0
        for inner, arity, family in zip(state["factors"], state["arities"], state["families"], strict=True):
            part = tensor_product(*atoms[start : start + arity])
            whole = Family(part, space.members) if family and isinstance(space, Family) else part
            factors.append(InnerProduct.from_state(whole, inner))
            start += arity
        if start != len(atoms):
            raise SpaceMismatch(f"SpaceMismatch in from_state: the state of a product does not fit {space}.")
        return cls(factors)


def member_of(space: VectorSpace) -> VectorSpace:
    return space.of if isinstance(space, Family) else space
