"""Layers: smooth maps between fields of points, with hand-written differentials.

Activations are tensors (examples, *sites, dim): at every site (pixel, token, time step) of every example stands a point
of one affine space, its components last. A tangent `dx` and a cotangent `dy` are tensors of the same shape; a cotangent
has the components that autodiff returns. Nothing here uses autograd.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from ..elements import Covector, Element, Vector, describe
from ..errors import DtypeMismatch, NonFinite, ShapeMismatch, SpaceMismatch
from ..samples import Data, OneHot, Sample
from ..spaces import AffineSpace, DirectSum, VectorSpace

Sites = tuple[int, ...]
Blocks = Mapping[str, Tensor]
L = TypeVar("L", bound="Layer")


def product_space(*spaces: AffineSpace) -> AffineSpace:
    """The product of affine spaces: its points are tuples of points, their components side by side."""
    return AffineSpace(" × ".join(space.name for space in spaces), sum(space.dim for space in spaces))


def join_path(*names: str) -> str:
    """The path of a part inside a part; an empty name leaves no trace."""
    return ".".join(name for name in names if name)


@dataclass(frozen=True, eq=False)
class Use:
    """What one block of parameters met: the points it was evaluated at and the cotangents that came back.

    A tangent dW of `output_space * input_space.dual` moves the pre-activations of a site by dW·input, so its pairing
    with the covector is Σ cotangent(dW·input) over examples and sites: the covector is Σ cotangent ⊗ input. Inputs are
    (examples, 1, sites, *input_space.shape), cotangents (examples, 1, sites, *output_space.shape).
    """

    input_space: VectorSpace
    output_space: VectorSpace
    inputs: Data
    cotangents: Tensor

    @property
    def covector(self) -> Tensor:
        """Σ cotangent ⊗ input, in the layout of the tangent space."""
        cotangents = self.cotangents.flatten(0, 2)
        if isinstance(self.inputs, OneHot):
            columns = cotangents.new_zeros(self.input_space.dim, self.output_space.dim)
            return columns.index_add(0, self.inputs.indices.flatten(), cotangents).mT
        assert isinstance(self.inputs, Tensor)
        m = "m" if cotangents.ndim == 3 else ""
        return torch.einsum(f"b{m}o,b{m}i->{m}oi", cotangents, self.inputs.flatten(0, 2))

    def samples(self, draws: str = "exact") -> tuple[Sample, Sample]:
        """The inputs as a sample of points, the cotangents as a sample of covectors; what a metric sees."""
        return Sample(self.input_space, self.inputs, name="inputs"), Sample.of_cotangents(
            self.output_space, self.cotangents, draws
        )

    @staticmethod
    def at_all(uses: Sequence[Use]) -> Use:
        """One block used many times: the sites of all its uses, one after the other."""
        inputs = torch.cat([use.inputs for use in uses if isinstance(use.inputs, Tensor)], dim=2)
        cotangents = torch.cat([use.cotangents for use in uses], dim=2)
        return Use(uses[0].input_space, uses[0].output_space, inputs, cotangents)


Uses = dict[str, Use]


class Layer(ABC):
    """A smooth map from fields of points of `domain` to fields of points of `codomain`, and its parameters.

    Parameters are a point of an affine space whose translations are `tangent_space` (None without parameters): the one
    block's own space, or the direct sum of the blocks of a composition, named by path. Writing φ for the map and w for
    its parameters:

    - `forward(x)` is φ_w(x);
    - `pushforward(x, dx, dw)` is the differential: d/dt of `moved(dw, t).forward(x + t dx)` at 0, linear in (dx, dw);
    - `pullback(x, dy)` is its transpose, (dx, dw) as covectors: <dy, pushforward(x, v, w)> = <dx, v> + dw(w); the first
      is example by example, the second a sum over examples and sites;
    - `moved(vector, step)` is the same layer at parameters moved by step·vector; the layer itself never changes;
    - `samples(x, dy)` has for every path the sample of inputs and that of cotangents, (examples, 1, sites, ...) each,
      of which the covector is the contraction: Σ cotangent ⊗ input.

    Examples never mix. The public methods validate and run without autograd; a kind of layer writes `_forward`, `_push`
    and `_pull`, on tensors that have been checked.
    """

    domain: AffineSpace
    codomain: AffineSpace

    @property
    @abstractmethod
    def parameter_spaces(self) -> dict[str, VectorSpace]:
        """The space of every block by its path, "" for the only block of a layer that is no composition."""

    @property
    @abstractmethod
    def parameters(self) -> dict[str, Tensor]:
        """The point of the parameters: every block by its path, in the layout of its space."""

    @abstractmethod
    def _forward(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _push(self, x: Tensor, dx: Tensor, dw: Blocks | None) -> Tensor: ...

    @abstractmethod
    def _pull(self, x: Tensor, dy: Tensor) -> tuple[Tensor, Uses]: ...

    @abstractmethod
    def _moved(self: L, by: Blocks) -> L: ...

    def output_sites(self, sites: Sites) -> Sites:
        """The sites of the output for those of the input; raises where the layer does not fit."""
        return sites

    @cached_property
    def tangent_space(self) -> VectorSpace | None:
        spaces = self.parameter_spaces
        if not spaces:
            return None
        return spaces[""] if set(spaces) == {""} else DirectSum(spaces)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self._check_input("forward", x)
            y = self._forward(x)
            if not bool(torch.isfinite(y).all()):
                raise NonFinite(
                    f"NonFinite in {self}.forward: finite activations gave NaN or infinity in {self.culprit(x)}. "
                    f"Look at its parameters and at the size of its input."
                )
            return y

    def pushforward(self, x: Tensor, dx: Tensor | None, dw: Vector | None = None) -> Tensor:
        """How the output moves when the input moves by `dx` (None: it stays) and the parameters by `dw`."""
        with torch.no_grad():
            self._check_input("pushforward", x)
            shape = self.tangent_shape(x)
            dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()  # of no components
            tangent = torch.zeros(shape, dtype=dtype, device=x.device) if dx is None else dx
            self._check_field("pushforward", "dx", tangent, shape, self.domain, x)
            return self._push(x, tangent, None if dw is None else self._blocks_of("pushforward", dw))

    def pullback(self, x: Tensor, dy: Tensor) -> tuple[Tensor, Covector | None]:
        with torch.no_grad():
            dx, uses = self._checked_pull("pullback", x, dy)
            space = self.tangent_space
            if space is None:
                return dx, None
            if not isinstance(space, DirectSum):
                return dx, Covector(space, uses[""].covector)
            return dx, Covector(space, {path: uses[path].covector for path in space})

    def samples(self, x: Tensor, dy: Tensor, draws: str = "exact") -> dict[str, tuple[Sample, Sample]]:
        """The typed samples of every block; `draws` says what `dy` is, "exact" or "monte carlo"."""
        with torch.no_grad():
            return {path: use.samples(draws) for path, use in self._checked_pull("samples", x, dy)[1].items()}

    def moved(self: L, vector: Vector, step: float = 1.0) -> L:
        blocks = self._blocks_of("moved", vector)
        with torch.no_grad():
            return self._moved({path: step * block for path, block in blocks.items()})

    def culprit(self, x: Tensor) -> str:
        """The part that makes finite activations infinite, for the error message."""
        return str(self)

    def check_points(self, call: str, x: Tensor) -> None:
        """Whether `x` is a field of points of the domain; raises if not."""
        if not isinstance(x, Tensor) or x.ndim < 2 or x.shape[-1] != self.domain.dim:
            raise ShapeMismatch(
                f"ShapeMismatch in {self}.{call}: activations are points of {self.domain}, (examples, *sites, "
                f"{self.domain.dim}), got {describe(x)}. Components come last: move the channels to the last axis."
            )
        if 0 in x.shape[:-1]:
            raise ShapeMismatch(f"ShapeMismatch in {self}.{call}: no examples or no sites in {describe(x)}.")
        self._check_numbers(call, "activations", x)
        self.output_sites(tuple(x.shape[1:-1]))

    def tangent_shape(self, x: Tensor) -> tuple[int, ...]:
        """The shape of a tangent at the field `x`."""
        return tuple(x.shape)

    def _check_input(self, call: str, x: Tensor) -> None:
        self.check_points(call, x)
        strange = {weight.dtype for weight in self.parameters.values()} - {x.dtype}
        if x.is_floating_point() and strange:
            raise DtypeMismatch(
                f"DtypeMismatch in {self}.{call}: activations are {x.dtype}, the parameters "
                f"{', '.join(sorted(map(str, strange)))}. Bring one to the other with .to(...)."
            )

    def _checked_pull(self, call: str, x: Tensor, dy: Tensor) -> tuple[Tensor, Uses]:
        self._check_input(call, x)
        tangent = self.tangent_shape(x)
        shape = (tangent[0], *self.output_sites(tangent[1:-1]), self.codomain.dim)
        self._check_field(call, "dy", dy, shape, self.codomain, x)
        return self._pull(x, dy)

    def _check_field(
        self, call: str, what: str, field: Tensor, shape: tuple[int, ...], space: AffineSpace, x: Tensor
    ) -> None:
        if not isinstance(field, Tensor) or tuple(field.shape) != shape:
            raise ShapeMismatch(
                f"ShapeMismatch in {self}.{call}: {what} at these activations is {list(shape)}, one element of "
                f"{space} per example and site, got {describe(field)}."
            )
        if x.is_floating_point() and field.dtype != x.dtype:
            raise DtypeMismatch(
                f"DtypeMismatch in {self}.{call}: {what} is {field.dtype}, the activations are {x.dtype}. "
                f"Bring one to the other with .to(...)."
            )
        self._check_numbers(call, what, field)

    def _check_numbers(self, call: str, what: str, field: Tensor) -> None:
        if not field.dtype.is_floating_point:
            raise DtypeMismatch(
                f"DtypeMismatch in {self}.{call}: {what} must be floating point, got {describe(field)}. "
                f"Convert with .to(torch.float32) or .to(torch.float64)."
            )
        if not bool(torch.isfinite(field).all()):
            count = int((~torch.isfinite(field)).sum())
            raise NonFinite(
                f"NonFinite in {self}.{call}: {count} of {field.numel()} components of the {what} are NaN or infinite. "
                f"Look at what comes before this layer."
            )

    def _blocks_of(self, call: str, element: object) -> dict[str, Tensor]:
        space, given = self.tangent_space, element if isinstance(element, Element) else describe(element)
        if space is None:
            raise SpaceMismatch(
                f"SpaceMismatch in {self}.{call}: the layer has no parameters, got {given}. Leave it out."
            )
        if not isinstance(element, Element) or element.lives_in != space:
            covector = isinstance(element, Element) and element.lives_in == space.dual
            fix = (
                "A covector becomes a vector only through an inner product: use g.sharp(covector)."
                if covector
                else "Tangents of another layer do not act here: wrap the tensor as Vector(layer.tangent_space, t)."
            )
            raise SpaceMismatch(f"SpaceMismatch in {self}.{call}: expected a vector of {space}, got {given}. {fix}")
        if any(element.dtype != weight.dtype for weight in self.parameters.values()):
            dtypes = ", ".join(sorted({str(weight.dtype) for weight in self.parameters.values()}))
            raise DtypeMismatch(
                f"DtypeMismatch in {self}.{call}: the vector is {element.dtype}, the parameters {dtypes}. "
                f"Bring one to the other with .to(...)."
            )
        if element.batch:
            raise ShapeMismatch(
                f"ShapeMismatch in {self}.{call}: expected one vector, got a batch {list(element.batch)}. "
                f"Take one of them."
            )
        if not bool(torch.isfinite(element.data).all()):
            raise NonFinite(f"NonFinite in {self}.{call}: the vector of {space} has NaN or infinite components.")
        return element.blocks if isinstance(space, DirectSum) else {"": element.data}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.domain!r}, {self.codomain!r})"

    def __str__(self) -> str:
        return f"{type(self).__name__}({self.codomain} ← {self.domain})"


class ParameterFreeLayer(Layer):
    """A layer without parameters: a kind writes `_forward`, `_differential` and `_transpose`."""

    @property
    def parameter_spaces(self) -> dict[str, VectorSpace]:
        return {}

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {}

    @abstractmethod
    def _differential(self, x: Tensor, dx: Tensor) -> Tensor: ...

    @abstractmethod
    def _transpose(self, x: Tensor, dy: Tensor) -> Tensor: ...

    def _push(self, x: Tensor, dx: Tensor, dw: Blocks | None) -> Tensor:
        return self._differential(x, dx)

    def _pull(self, x: Tensor, dy: Tensor) -> tuple[Tensor, Uses]:
        return self._transpose(x, dy), {}

    def _moved(self: L, by: Blocks) -> L:
        return copy(self)


def check_dims(kind: str, what: str, space: AffineSpace, expected: int) -> None:
    """That a space given to a constructor has the dimension that the rest asks for."""
    if space.dim != expected:
        raise SpaceMismatch(
            f"SpaceMismatch in {kind}: {what} {space} has dimension {space.dim}, the layer needs {expected}. "
            f"Give an AffineSpace of dimension {expected}."
        )
