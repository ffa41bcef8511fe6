"""Forms made ready for many solves, as between two refreshes of an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import TypeVar

import torch
from torch import Tensor

from ..factorizations import Factorization, InverseFactor, MatrixFactor, factorize_dense
from ..solvers import Structure
from ..spaces import Family, VectorSpace
from ..symmetry import Symmetry
from .base import InnerProduct, State, kind
from .common import degenerate_of
from .damped import Damped, light_symmetry
from .diagonal import Diagonal
from .direct_sum import BlockDiagonal
from .gram import Gram
from .kronecker import Kronecker
from .pencils import DIAGONAL
from .sums import Scaled

G = TypeVar("G", bound=InnerProduct)


def made_ready(g: G, like: Tensor | None = None) -> G:
    """The form itself, factorized now and with explicit inverses where that pays: `sharp` is then a few products.

    What is kept holds until a tensor of the form is changed in place, as any factorization does.
    """
    if isinstance(g, BlockDiagonal):
        for part in g.parts.values():
            made_ready(part, like)
        return g
    with degenerate_of(g.space, g.rank, "made_ready"):
        g.keep(g.factorization(like).for_many_solves())
    return g


@kind("by its inverse")
class ByInverse(InnerProduct):
    """A form known by the matrix of its dual, (d, d), or (m, d, d) on a family: `sharp` is a product.

    It holds that matrix and nothing else; `symmetry` finds on request what the form keeps. Where more is asked of it,
    the inverse is factorized, and rounding has been through it twice.
    """

    always_direct = True

    def __init__(self, space: VectorSpace, inverse: Tensor, name: str, symmetry: Callable[[], Symmetry]):
        self.space, self.inverse, self.name, self._symmetry = space, inverse, name, symmetry

    def flat_components(self, x: Tensor) -> Tensor:
        return factorize_dense(self.inverse).solve(x)

    def tensors(self) -> Iterator[Tensor]:
        yield self.inverse

    @property
    def by_members(self) -> bool:
        return self.inverse.ndim == 3 or super().by_members

    @property
    def structure(self) -> Structure:
        d, side = self.space.dim, self.inverse.shape[-1]
        return Structure("inverse", d, 0.0, 2.0 * d * side, d)

    def direct_factorization(self, method: str) -> Factorization:
        return MatrixFactor(self.inverse, partial(roots_of, self.inverse))

    @cached_property
    def symmetry(self) -> Symmetry:
        return self._symmetry()

    def expression(self) -> str:
        return self.name

    def own_state(self) -> State:
        return {"inverse": self.inverse, "name": self.name, "symmetry": self.symmetry.to_state()}

    @classmethod
    def restore(cls, space: VectorSpace, state: State) -> ByInverse:
        return cls(space, state["inverse"], state["name"], partial(Symmetry.from_state, state["symmetry"]))


def roots_of(P: Tensor) -> Factorization:
    """What a factorization of P says of its inverse."""
    of = factorize_dense(P)
    return InverseFactor(MatrixFactor(P, partial(constantly, of)).solve, of)


def constantly(f: Factorization) -> Factorization:
    return f


def inverted(g: InnerProduct) -> InnerProduct | None:
    """The form by the explicit inverses of its dense factors, which holds nothing of what it was made of.

    None where a part has no such inverse that pays: then nothing has been computed. One factor is damped, factorized
    and inverted after the other.
    """
    return _inverted(g) if has_inverses(g) else None


def has_inverses(g: InnerProduct) -> bool:
    """Whether it is put together of dense matrices, damped ones and diagonal ones."""
    if isinstance(g, BlockDiagonal):
        return all(has_inverses(part) for part in g.parts.values())
    if isinstance(g, Kronecker):
        return all(has_inverses(factor) for factor in g.factors)
    if isinstance(g, Scaled):
        return isinstance(g.scalar, float) and has_inverses(g.of)
    return not g.differentiable and (isinstance(g, (Gram, Damped, ByInverse)) or g.structure.kind in DIAGONAL)


def _inverted(g: InnerProduct) -> InnerProduct:
    if isinstance(g, BlockDiagonal):
        return BlockDiagonal({name: _inverted(part) for name, part in g.parts.items()}, g.space)
    if isinstance(g, Kronecker):
        return Kronecker([_inverted(factor) for factor in g.factors], g.space)
    if isinstance(g, Scaled):
        return Scaled(g.scalar, _inverted(g.of))
    if g.dtype is None or isinstance(g, ByInverse):  # a constant that holds no tensor
        return g
    if g.structure.kind in DIAGONAL:
        return Diagonal.of(g.space, g.diagonal_entries().clone(), f"diagonal on {g.space}", g.symmetry)
    with degenerate_of(g.space, g.rank, "inverted"):
        f = g.direct_factorization("cholesky")
        assert f is not None
        ready = f.for_many_solves()
    P = ready.inverse if isinstance(ready, MatrixFactor) else matrix_of_inverse(ready, g)
    return ByInverse(g.space, P, f"by_inverse({g.space})", light_symmetry(g))


def matrix_of_inverse(f: Factorization, g: InnerProduct) -> Tensor:
    """Where it came out of no Cholesky factorization."""
    V = g.space
    m, d = (V.members, V.of.dim) if isinstance(V, Family) and g.by_members else (1, V.dim)
    P = f.solve(torch.eye(d, dtype=g.dtype, device=g.device).repeat(1, m)).reshape(d, m, d).movedim(0, 1)
    return P if isinstance(V, Family) and g.by_members else P[0]
