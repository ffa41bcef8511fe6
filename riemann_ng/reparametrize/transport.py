"""Spaces, elements and inner products of a network, taken along to its twin."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..elements import Element
from ..errors import SpaceMismatch
from ..inner_products import Dual as DualForm
from ..inner_products import Euclidean, InnerProduct, Kronecker, Pullback, Scaled, Sum, direct_sum
from ..linear_maps import LinearMap
from ..spaces import AffineSpace, Derived, DirectSum, Family, Space, VectorSpace
from ..spaces.affine import Hull, Translations
from ..spaces.vector import Dual, Product, tensor_product
from .frame import Frame
from .leaves import BlockMove

Base = Callable[[str], tuple[str, Tensor, Tensor] | None]
"""From the name of a base space: its name at the twin, and its frame, a matrix and a shift."""


def sum_map(domain: DirectSum, codomain: DirectSum, moves: Mapping[str, BlockMove]) -> LinearMap:
    """The isomorphism of two tangent spaces that acts on every block by itself."""

    def each(x: Tensor, into: DirectSum, out_of: DirectSum, how: Callable[[BlockMove, Tensor], Tensor]) -> Tensor:
        lead, y = x.shape[:-1], {}
        for name, where in out_of.slices.items():
            data = x[..., where].reshape(*lead, *out_of[name].shape)
            y[name] = how(moves[name], data).reshape(*lead, -1)
        return torch.cat([y[name] for name in into], dim=-1)

    def apply(x: Tensor) -> Tensor:
        return each(x, codomain, domain, BlockMove.apply)

    def transpose(x: Tensor) -> Tensor:
        return each(x, domain, codomain, BlockMove.transpose)

    return LinearMap.from_functions(domain, codomain, apply, transpose, "twin", natural=True)


class Transport:
    """Takes elements and inner products of a network's spaces to a twin. `tangent_map` is what it does to tangents."""

    def __init__(self, forth: LinearMap, back: LinearMap, base: Base):
        self.forth, self.back, self._base = forth, back, base

    def element(self, x: Element) -> Element:
        if x.lives_in == self.forth.domain:
            return self.forth(x)
        if x.lives_in == self.forth.domain.dual:
            return self.back.pullback(x)
        return self.along(x.lives_in)[0](x)

    def along(self, V: VectorSpace) -> tuple[LinearMap, LinearMap]:
        """The isomorphism from a space of the network to that of the twin, and its inverse."""
        if self.forth.domain == V:
            return self.forth, self.back
        if self.forth.domain.dual == V:
            return self.back.transpose, self.forth.transpose
        target, matrix = self._of(V)
        return (
            LinearMap(V, target, matrix, "twin", natural=True),
            LinearMap(target, V, torch.linalg.inv(matrix), "twin⁻¹", natural=True),
        )

    def _of(self, V: VectorSpace) -> tuple[VectorSpace, Tensor]:
        """A space at the twin, and the matrix from one to the other."""
        if isinstance(V, Dual):
            target, M = self._of(V.of)
            return target.dual, torch.linalg.inv(M).mT.contiguous()
        if isinstance(V, Family):
            target, M = self._of(V.of)
            return Family(target, V.members), torch.block_diag(*[M] * V.members)
        if isinstance(V, Product):
            made = [self._of(factor) for factor in V.of]
            total = made[0][1]
            for _, M in made[1:]:
                total = torch.kron(total, M)
            return tensor_product(*(W for W, _ in made)), total
        if isinstance(V, DirectSum):
            parts = {name: self._of(part) for name, part in V.parts}
            return DirectSum({k: W for k, (W, _) in parts.items()}), torch.block_diag(*[M for _, M in parts.values()])
        return self._of_atom(V)

    def _of_atom(self, V: VectorSpace) -> tuple[VectorSpace, Tensor]:
        eye = torch.eye(V.dim, dtype=torch.float64)
        if isinstance(V, Hull) and not V.bases:
            return V, eye
        found = self._base(V.bases[0]) if V.bases and not isinstance(V, Derived) else None
        if found is None:
            raise SpaceMismatch(
                f"SpaceMismatch in transport: {V} is no space of the network {self.forth.domain}, or has no one frame. "
                f"Transport what lives on its tangent space, its layers' spaces, and what these make."
            )
        name, linear, shift = found
        if isinstance(V, Translations):
            return AffineSpace(name, V.dim).translations, linear
        if isinstance(V, Hull):
            last = eye[-1:]
            return AffineSpace(name, V.of.dim).hull, torch.cat([torch.cat([linear, shift[:, None]], 1), last])
        assert isinstance(V, Space)
        return Space(name, V.dim), linear

    def inner_product(self, g: InnerProduct) -> InnerProduct:
        """g' with g'(T u, T v) = g(u, v); sums, products and direct sums stay such."""
        parts = g.summands() if g.space == self.forth.domain else None
        if parts is not None:
            return direct_sum({name: self.inner_product(part) for name, part in parts.items()})
        if isinstance(g, Scaled):
            return g.scalar * self.inner_product(g.of)
        if isinstance(g, Sum):
            total = self.inner_product(g.terms[0])
            for term in g.terms[1:]:
                total = total + self.inner_product(term)
            return total
        factors = g.factors if isinstance(g, Kronecker) else ()
        if isinstance(g, Euclidean) and isinstance(g.space, Product):
            factors = tuple(Euclidean(V) for V in g.space.of)
        if factors:
            product = self.inner_product(factors[0])
            for factor in factors[1:]:
                product = product * self.inner_product(factor)
            return product
        if isinstance(g, DualForm):
            return self.inner_product(g.of).dual
        return Pullback(self.along(g.space)[1], g)


def repeated(frame: Frame, taps: int) -> tuple[Tensor, Tensor]:
    """A frame of channels on patches, channels × taps: the same at every tap."""
    eye = torch.eye(taps, dtype=frame.linear.dtype)
    return torch.kron(frame.linear[0].contiguous(), eye), frame.shift[0].repeat_interleave(taps)
