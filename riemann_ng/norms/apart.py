"""Weight apart from bias: the larger of two norms, one of the linear part and one of the value at the origin."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..elements import Element, Vector
from ..inner_products import InnerProduct
from ..spaces import Dual, Family, Hull, OnePoint, VectorSpace, tensor_product
from ..symmetry import Structure, Symmetry
from .base import Norm


def apart(space: VectorSpace) -> tuple[VectorSpace, VectorSpace] | None:
    """Of Hom(Â, S), or a family of it, the spaces Hom(A⃗, S) of weights and Hom(ℝ, S) of biases; None of others."""
    member = space.of if isinstance(space, Family) else space
    *rest, last = member.factors
    if not rest or not isinstance(last, Dual) or not isinstance(last.of, Hull) or last.of.of.dim == 0:
        return None
    both = (tensor_product(*rest, V.dual) for V in (last.of.of.translations, OnePoint.hull))
    weight, bias = (Family(V, space.members) if isinstance(space, Family) else V for V in both)
    return weight, bias


class BiasApart(Norm):
    """max(‖W‖, ‖b‖) on Hom(Â, S) with [W b] split at the coordinate origin of 𝒜, which it names."""

    space: VectorSpace

    def __init__(self, space: VectorSpace, weight: Norm, bias: Norm, text: str = ""):
        self.space, self.weight, self.bias, self.text = space, weight, bias, text

    def _split(self, e: Element, dual: bool) -> tuple[Vector, Vector]:
        parts = []
        for norm, data in ((self.weight, e.data[..., :-1]), (self.bias, e.data[..., -1:])):
            assert norm.space is not None
            parts.append(Vector._of(norm.space.dual if dual else norm.space, data.contiguous()))
        return parts[0], parts[1]

    def norm_of(self, v: Element) -> Tensor:
        weight, bias = self._split(v, False)
        return torch.maximum(self.weight.norm_of(weight), self.bias.norm_of(bias))

    def dual_norm_of(self, covector: Element) -> Tensor:
        weight, bias = self._split(covector, True)
        return self.weight.dual_norm_of(weight) + self.bias.dual_norm_of(bias)

    def sharp_of(self, covector: Element) -> Vector:
        weight, bias = self._split(covector, True)
        parts = [self.weight.sharp_of(weight).data, self.bias.sharp_of(bias).data]
        return Vector._of(covector.lives_in.dual, torch.cat(parts, dim=-1))

    @property
    def symmetry(self) -> Symmetry:
        member = self.space.of if isinstance(self.space, Family) else self.space
        origins = (Structure(base, "origin", source=f"bias apart in {self.expression()}")
                   for base in member.factors[-1].bases)  # fmt: skip
        return Symmetry.direct_sum([self.weight.symmetry, self.bias.symmetry]).with_structure(*origins)

    def expression(self) -> str:
        return self.text or f"BiasApart({self.weight.expression()}, {self.bias.expression()})"

    def forms(self) -> Iterator[InnerProduct]:
        yield from self.weight.forms()
        yield from self.bias.forms()
