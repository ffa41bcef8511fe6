"""The largest of several norms: over the summands of a direct sum, over the slices along a finite set.

The dual norm is the sum of the parts' dual norms, and `sharp` takes each part for itself, all at full length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..elements import Element, Vector, describe
from ..errors import SpaceMismatch
from ..inner_products import InnerProduct
from ..spaces import DirectSum, Family, VectorSpace, tensor_product
from ..symmetry import Symmetry
from .base import InvalidNorm, Norm
from .coordinates import of_units


class Max(Norm):
    """max ‖v_k‖_k on a direct sum: `Max({"fc1": norm1, "fc2": norm2})`. `on` may put the summands in another order."""

    def __init__(self, parts: Mapping[str, Norm]):
        if not isinstance(parts, Mapping) or not parts or not all(isinstance(norm, Norm) for norm in parts.values()):
            raise InvalidNorm(f"InvalidNorm in Max: expected a norm for each name of a summand, got {describe(parts)}.")
        self.parts = dict(parts)
        spaces = [(name, norm.space) for name, norm in parts.items()]
        known = [(name, V) for name, V in spaces if V is not None]
        self.space = DirectSum(known) if len(known) == len(spaces) else None

    def on(self, space: VectorSpace) -> Norm:
        return self if self.space == space else self.bound_to(space)

    def summands(self) -> dict[str, Norm]:
        return dict(self.parts)

    def with_forms(self, change: Callable[[Any], Any]) -> Norm:
        return Max({name: norm.with_forms(change) for name, norm in self.parts.items()})

    def norm_of(self, v: Element) -> Tensor:
        return torch.stack([norm.norm_of(v.component(name)) for name, norm in self.parts.items()]).amax(0)

    def dual_norm_of(self, covector: Element) -> Tensor:
        return torch.stack([norm.dual_norm_of(covector.component(name)) for name, norm in self.parts.items()]).sum(0)

    def sharp_of(self, covector: Element) -> Vector:
        blocks = {name: norm.sharp_of(covector.component(name)).data for name, norm in self.parts.items()}
        return Vector._of(covector.lives_in.dual, None, blocks)

    def bound_to(self, space: VectorSpace) -> Norm:
        if not isinstance(space, DirectSum) or set(space.summands) != set(self.parts):
            raise SpaceMismatch(
                f"SpaceMismatch in on: {self!r} needs a direct sum of {', '.join(map(repr, self.parts))}, got {space}."
            )
        return Max({name: self.parts[name].on(V) for name, V in space.parts})

    @property
    def symmetry(self) -> Symmetry:
        return Symmetry.direct_sum([norm.symmetry for norm in self.parts.values()])

    def expression(self) -> str:
        return f"Max({', '.join(f'{name}: {norm.expression()}' for name, norm in self.parts.items())})"

    def forms(self) -> Iterator[InnerProduct]:
        for norm in self.parts.values():
            yield from norm.forms()


class PerSlice(Norm):
    """The largest norm of a slice along one factor of a product: `PerSlice(norm on S ⊗ C*, taps)` on S ⊗ C* ⊗ taps.

    `over` is the factor, `position` where it stands among the factors, by default last. It names its axes: what is
    sliced is a finite set (taps of a kernel, tokens of a vocabulary), not a space to be mixed.
    """

    space: VectorSpace

    def __init__(self, norm: Norm, over: VectorSpace, position: int | None = None):
        if not isinstance(norm, Norm) or norm.space is None:
            raise InvalidNorm(
                f"InvalidNorm in PerSlice: expected a norm that knows its space, got {describe(norm)}. Use norm.on(V)."
            )
        if isinstance(over, (Family, DirectSum)) or len(over.factors) != 1:
            raise InvalidNorm(f"InvalidNorm in PerSlice: slices are taken along one factor of a product, got {over}.")
        family = norm.space if isinstance(norm.space, Family) else None
        factors = list((norm.space if family is None else family.of).factors)
        self.position = len(factors) if position is None else position
        if not 0 <= self.position <= len(factors):
            raise InvalidNorm(f"InvalidNorm in PerSlice: position {position} of {len(factors) + 1} factors.")
        self.slice_norm, self.sliced = norm, over
        self.axis = -1 - sum(len(V.shape) for V in factors[self.position :])
        factors.insert(self.position, over)
        space = tensor_product(*factors)
        self.space = space if family is None else Family(space, family.members)

    def _slices(self, e: Element, lives_in: VectorSpace) -> Vector:
        rank = len(lives_in.shape)
        return Vector._of(lives_in, e.data.movedim(self.axis, -rank - 1))

    @property
    def _slice_space(self) -> VectorSpace:
        assert self.slice_norm.space is not None
        return self.slice_norm.space

    def norm_of(self, v: Element) -> Tensor:
        return self.slice_norm.norm_of(self._slices(v, self._slice_space)).amax(-1)

    def dual_norm_of(self, covector: Element) -> Tensor:
        return self.slice_norm.dual_norm_of(self._slices(covector, self._slice_space.dual)).sum(-1)

    def sharp_of(self, covector: Element) -> Vector:
        v = self.slice_norm.sharp_of(self._slices(covector, self._slice_space.dual)).data
        return Vector._of(self.space, v.movedim(-len(self._slice_space.shape) - 1, self.axis))

    @property
    def symmetry(self) -> Symmetry:
        return self.slice_norm.symmetry * of_units(self.sliced, f"slices along {self.sliced}")

    def expression(self) -> str:
        return f"PerSlice({self.slice_norm.expression()}, {self.sliced})"

    def forms(self) -> Iterator[InnerProduct]:
        return self.slice_norm.forms()


class Viewed(Norm):
    """A norm on a space whose components, in their order, are those of the space of another norm."""

    space: VectorSpace

    def __init__(self, norm: Norm, space: VectorSpace):
        if norm.space is None or norm.space.dim != space.dim:
            raise InvalidNorm(f"InvalidNorm in Viewed: {norm!r} on {space}, which has other components.")
        self.of, self.space = norm, space

    def _there(self, e: Element, dual: bool) -> Vector:
        assert self.of.space is not None
        V, lead = self.of.space, e.data.shape[: e.data.ndim - len(self.space.shape)]
        return Vector._of(V.dual if dual else V, e.data.reshape(*lead, *V.shape))

    def norm_of(self, v: Element) -> Tensor:
        return self.of.norm_of(self._there(v, False))

    def dual_norm_of(self, covector: Element) -> Tensor:
        return self.of.dual_norm_of(self._there(covector, True))

    def sharp_of(self, covector: Element) -> Vector:
        return Vector._of(self.space, self.of.sharp_of(self._there(covector, True)).data.reshape(covector.data.shape))

    @property
    def symmetry(self) -> Symmetry:
        return self.of.symmetry

    def expression(self) -> str:
        return self.of.expression()

    def forms(self) -> Iterator[InnerProduct]:
        return self.of.forms()
