"""The interface of norms, its laws, and positive multiples.

A norm turns a covector into a step as an inner product does, by a duality map that need not be linear. Laws, each with
one generic test that every kind enters:

    norm(c v) == |c| norm(v);  norm(v + w) <= norm(v) + norm(w);  norm(v) > 0 unless v is 0
    ξ(v) <= dual_norm(ξ) norm(v);  ξ(sharp(ξ)) == dual_norm(ξ);  norm(sharp(ξ)) == 1;  sharp(0) == 0
    sharp(c ξ) == sign(c) sharp(ξ);  dual_norm(c ξ) == |c| dual_norm(ξ)
    dual_norm(ξ) sharp(ξ) maximizes v ↦ ξ(v) - ½ norm(v)²;  -sharp(ξ) is the direction of steepest descent
    sharp is natural under the frames that `symmetry` keeps: φ(sharp(ξ∘φ)) == sharp(ξ)

Where several vectors of unit norm attain the maximum, `sharp` is one that names nothing more than the norm does: on
what ξ does not see it is zero. A batch of elements is taken one by one.

Over the parameters of a network a norm is a field: `over(network)` puts it there, and one that is made of a `metric`
is a norm at every point, `at(observation)`, as a metric is an inner product there.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..elements import Covector, Element, Vector, describe
from ..errors import DtypeMismatch, NonFinite, RiemannError, SpaceMismatch
from ..inner_products import InnerProduct
from ..metrics import RiemannianMetric
from ..metrics.base import value_at
from ..networks import Network
from ..networks.observation import Observation
from ..spaces import DirectSum, VectorSpace
from ..symmetry import Symmetry


class InvalidNorm(RiemannError):
    """A norm that cannot exist: between things that are no two spaces, of no parts, scaled by a number not positive."""


def symmetry_unknown(norm: Norm) -> InvalidNorm:
    if norm.metric is not None:
        return InvalidNorm(
            f"InvalidNorm in symmetry: {norm!r} is a norm at every point, with the symmetry of the metric's value "
            f"there: norm.at(observation).symmetry."
        )
    return InvalidNorm(
        f"InvalidNorm in symmetry: {norm!r} takes the coordinates of any space, so it is not known which it names. "
        f"Bind it: norm.on(V).symmetry."
    )


class Norm(ABC):
    """A norm on `space`, with its dual norm and its duality map.

    One that knows no space yet (`space` is None) takes the coordinates of whatever it is given; `on(V)` binds it.
    """

    space: VectorSpace | None
    metric: RiemannianMetric | None = None
    """The metric it is made of: then it is a norm at each point, `at(observation)`. None: it is the same everywhere."""

    # What a kind says of itself; elements are checked already, and `space` is known

    @abstractmethod
    def norm_of(self, v: Element) -> Tensor:
        """`norm`, unchecked."""

    @abstractmethod
    def dual_norm_of(self, covector: Element) -> Tensor:
        """`dual_norm`, unchecked."""

    @abstractmethod
    def sharp_of(self, covector: Element) -> Vector:
        """`sharp`, unchecked."""

    @property
    @abstractmethod
    def symmetry(self) -> Symmetry:
        """The changes of frame that commute with the norm, inferred from the constants it names."""

    @abstractmethod
    def expression(self) -> str:
        """The expression, with named leaves."""

    def forms(self) -> Iterator[InnerProduct]:
        """The inner products it is made of: they give dtype and device."""
        return iter(())

    # The interface

    def norm(self, v: Element) -> Tensor:
        """‖v‖, one number for each element of the batch."""
        return self._checked(v, "norm", False).norm_of(v)

    def dual_norm(self, covector: Element) -> Tensor:
        """The largest value of ξ on a vector of norm 1."""
        return self._checked(covector, "dual_norm", True).dual_norm_of(covector)

    def sharp(self, covector: Element) -> Vector:
        """The vector of norm 1 on which ξ is largest, zero for ξ = 0. Multiply by `dual_norm` for the step of ½‖·‖²."""
        return self._checked(covector, "sharp", True).sharp_of(covector)

    def on(self, space: VectorSpace) -> Norm:
        """The norm on this space: itself if it lives there."""
        if self.space == space:
            return self
        return self.bound_to(space) if self.space is None else Norm.bound_to(self, space)

    def bound_to(self, space: VectorSpace) -> Norm:
        """`on` for a norm that knows no space; others refuse."""
        if self.metric is not None:
            raise needs_a_point(self, "on")
        raise SpaceMismatch(
            f"SpaceMismatch in on: {self!r} is a norm on {self.space}, not on {space}. Build the norm on {space}."
        )

    # Over the parameters of a network

    def over(self, network: Network) -> Norm:
        """The norm on this network's tangent space; one made of a metric has still to be taken `at` a point."""
        check_network(self, network)
        return self if self.metric is not None else self.on(network.tangent_space)

    def at(self, observation: Observation) -> Norm:
        """The norm on `observation.space` where the observation was made."""
        if self.metric is None:
            return self.on(observation.space)
        return self.with_value(value_at(self.metric, observation))

    def with_value(self, g: InnerProduct) -> Norm:
        """`at` where the metric's value, or its average, is known to be g."""
        return self.on(g.space)

    def with_forms(self, change: Callable[[Any], Any]) -> Norm:
        """The norm with its metrics and inner products replaced: as they are carried to another network, say."""
        return self

    def as_read(self, network: Network) -> Norm:
        """The norm with what it reads of a module read once, of this one: for others that compute the same."""
        return self

    def summands(self) -> dict[str, Norm] | None:
        """The norms of which it is the largest, by the names of the summands of its space; None where it is not."""
        return None

    def __rmul__(self, c: float) -> Norm:
        return Scaled(c, self)

    __mul__ = __rmul__

    def __repr__(self) -> str:
        return self.expression() if self.space is None else f"{self.expression()} : ℝ ← {self.space}"

    def _checked(self, e: object, call: str, dual: bool) -> Norm:
        """The norm that is meant, on the space of the element."""
        call = f"{type(self).__name__}.{call}"
        wanted = "a covector on" if dual else "a vector of"
        where = "a vector space" if self.space is None else f"{self.space}"
        if not isinstance(e, Element):
            raise SpaceMismatch(
                f"SpaceMismatch in {call}: expected {wanted} {where}, got {describe(e)}. "
                f"Wrap the tensor: {'Covector' if dual else 'Vector'}(space, tensor)."
            )
        space = e.lives_in.dual if dual else e.lives_in
        wrong_kind = not isinstance(e, Covector if dual else Vector) and e.lives_in.starred != dual
        if wrong_kind if self.space is None else space != self.space:
            raise SpaceMismatch(
                f"SpaceMismatch in {call}: expected {wanted} {where}, got {e}.\n"
                f"Gradients from autograd are covectors: Covector(space, grad); their length is the dual_norm."
            )
        norm = self.on(space)
        for form in self.forms():
            if form.dtype not in (None, e.dtype) or form.device not in (None, e.device):
                raise DtypeMismatch(
                    f"DtypeMismatch in {call}: {e} on {e.device} with {form!r} in {form.dtype} on {form.device}. "
                    f"Bring one to the other with .to(...)."
                )
        _check_finite(e, call)
        return norm


def needs_a_point(norm: Norm, call: str) -> InvalidNorm:
    return InvalidNorm(
        f"InvalidNorm in {call}: {norm!r} is a norm at every point, made of what was observed there. Take it at one: "
        f"norm.at(network.observe(x))."
    )


def _check_finite(e: Element, call: str) -> None:
    parts = {"": e.data} if e.in_one_piece else e.blocks
    if all(bool(t.sum().isfinite()) or bool(t.isfinite().all()) for t in parts.values()):
        return
    blocks = e.blocks if isinstance(e.lives_in, DirectSum) else {}
    bad = ", ".join(repr(name) for name, t in blocks.items() if not bool(t.isfinite().all()))
    raise NonFinite(
        f"NonFinite in {call}: {e} holds NaN or infinity{f' in {bad}' if bad else ''}. "
        f"Look for the layer and the batch it came from."
    )


def positive(call: str, name: str, number: object) -> float:
    """A positive finite number, or the reason why not."""
    value = number.item() if isinstance(number, Tensor) and number.ndim == 0 else number
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        shown = value if isinstance(value, (int, float)) else describe(number)
        raise InvalidNorm(f"InvalidNorm in {call}: {name} must be a positive finite number, got {shown}.")
    return float(value)


def reciprocal(x: Tensor) -> Tensor:
    """1/x, and 0 where x is 0: the steepest direction of nothing is nothing."""
    return torch.where(x > 0, x, torch.ones_like(x)).reciprocal() * (x > 0)


class Scaled(Norm):
    """c * norm for a positive number c. Its unit ball is c times smaller, and so is its sharp."""

    def __init__(self, scalar: float, of: Norm):
        self.scalar, self.of, self.space = positive("*", f"a multiple of {of!r}", scalar), of, of.space
        self.metric = of.metric

    def norm_of(self, v: Element) -> Tensor:
        return self.of.norm_of(v) * self.scalar

    def dual_norm_of(self, covector: Element) -> Tensor:
        return self.of.dual_norm_of(covector) / self.scalar

    def sharp_of(self, covector: Element) -> Vector:
        return self.of.sharp_of(covector) / self.scalar

    def bound_to(self, space: VectorSpace) -> Norm:
        return Scaled(self.scalar, self.of.on(space))

    def over(self, network: Network) -> Norm:
        return Scaled(self.scalar, self.of.over(network))

    def with_value(self, g: InnerProduct) -> Norm:
        return Scaled(self.scalar, self.of.with_value(g))

    def with_forms(self, change: Callable[[Any], Any]) -> Norm:
        return Scaled(self.scalar, self.of.with_forms(change))

    def as_read(self, network: Network) -> Norm:
        return Scaled(self.scalar, self.of.as_read(network))

    def summands(self) -> dict[str, Norm] | None:
        parts = self.of.summands()
        return None if parts is None else {name: Scaled(self.scalar, norm) for name, norm in parts.items()}

    @property
    def symmetry(self) -> Symmetry:
        return self.of.symmetry

    def expression(self) -> str:
        return f"{self.scalar:.4g} * {self.of.expression()}"

    def forms(self) -> Iterator[InnerProduct]:
        return self.of.forms()


def check_network(norm: Norm, network: object) -> None:
    if not isinstance(network, Network):
        raise InvalidNorm(
            f"InvalidNorm in over: {norm!r} over {describe(network)}, expected a network: "
            f"Network.from_torch(module, likelihood)."
        )
