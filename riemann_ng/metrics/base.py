"""What a metric is: an inner product at every point, made from what a network saw of a batch there.

A metric never sees a module, a hook or a loss: it sees typed samples. One of your own is a class with one method:

    class MyMetric(LayerwiseMetric):
        def at_layer(self, layer):
            return second_moment(layer.cotangents) * second_moment(layer.inputs)

`layer` offers `inputs, cotangents, gradients, space, S, A, sites, reduced()`; what is returned lives on `layer.space`.
Everything else works on it unchanged: sums and multiples, damping, `natural_gradient`, the optimizer, the invariance
suite.

Laws: (g + h).at(o) == g.at(o) + h.at(o);  (c * g).at(o) == c * g.at(o);  at(o) lives on o.space and depends on o alone.
A metric is a value: its repr is the expression that makes it.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any

from torch import Tensor

from ..elements import describe
from ..errors import DegenerateMetric, InvalidSetting, NotAnInnerProduct, RiemannError, SpaceMismatch
from ..inner_products import BlockDiagonal, Euclidean, InnerProduct, damp_factors
from ..inner_products.damping import Split
from ..likelihoods import OutputMetric
from ..networks import Estimator, Exact
from ..networks.observation import LayerObservation, Observation
from ..spaces import VectorSpace
from .outputs import check_output, one_output
from .spectra import spectrum


class RiemannianMetric(ABC):
    """A field of inner products on the parameters of networks."""

    output: OutputMetric | None = None
    """The inner product on the outputs that observations for it are made with; None: the likelihood's Fisher."""
    sees_outputs: bool = True
    """Whether the output's geometry matters at all."""

    @abstractmethod
    def at(self, observation: Observation) -> InnerProduct:
        """The inner product on `observation.space`."""

    def estimator(self, targets: Any = None) -> Estimator:
        """The label source that this metric is best observed with, where nobody says otherwise."""
        return Exact()

    def sees_moments_alone(self) -> bool:
        """Whether of the samples of a layer nothing is read but their second moments, by `second_moment(...)`.

        Then what observes for it need not keep a batch until the metric is made.
        """
        return False

    def refreshed(self, previous: InnerProduct, observation: Observation) -> InnerProduct:
        """The inner product at an observation in the form of an earlier value, so that the two `blend`.

        A metric in frames of its own keeps those of the earlier value; any other is made anew.
        """
        return self.at(observation)

    def spectrum(self, observation: Observation, relative_to: RiemannianMetric | InnerProduct) -> Tensor:
        """The numbers λ with g = λ h along some direction, of the two metrics' values at an observation; ascending.

        They are the only eigenvalues of a metric that do not depend on coordinates. See `metrics.spectrum`.
        """
        h = relative_to if isinstance(relative_to, InnerProduct) else value_at(relative_to, observation)
        return spectrum(value_at(self, observation), h)

    def damp_factors(
        self, damping: float, reference: RiemannianMetric | None = None, split: Split = "trace"
    ) -> FactorsDamped:
        """The metric with each factor of its products damped: factored Tikhonov, by a reference metric.

        Without one it is by `EuclideanMetric()`. That of the translations alone keeps those of 𝒜, and leaves a bias no
        more damping than the factor on S has: too little where that factor is small. What is no product is damped
        exactly.
        """
        return FactorsDamped(self, damping, reference, split)

    def expression(self) -> str:
        """The expression that makes the metric."""
        return call_of(self) if dataclasses.is_dataclass(self) else f"{type(self).__name__}()"

    def __repr__(self) -> str:
        return self.expression()

    def __add__(self, other: RiemannianMetric) -> RiemannianMetric:
        if not isinstance(other, RiemannianMetric):
            raise SpaceMismatch(
                f"SpaceMismatch in +: the metric {self!r} plus {given(other)}. Damping names its metric: "
                f"metric + λ * EuclideanMetric(); a constant inner product g becomes one as FixedMetric(g)."
            )
        mine, theirs = (m.terms if isinstance(m, Sum) else (m,) for m in (self, other))
        return Sum((*mine, *theirs))

    def __radd__(self, other: object) -> RiemannianMetric:
        if isinstance(other, int) and not isinstance(other, bool) and other == 0:  # where `sum([g, h])` starts
            return self
        raise SpaceMismatch(f"SpaceMismatch in +: {given(other)} plus the metric {self!r}. Metrics add to metrics.")

    def __mul__(self, scalar: float) -> RiemannianMetric:
        value = scalar.item() if isinstance(scalar, Tensor) and scalar.ndim == 0 else scalar
        good = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value) and value > 0
        if not good:
            raise NotAnInnerProduct(
                f"NotAnInnerProduct in *: {given(scalar)} times the metric {self!r}. A multiple of a metric is by a "
                f"positive finite number; leave a term of weight zero out."
            )
        if isinstance(self, Sum):
            return Sum(tuple(term * value for term in self.terms))
        return Scaled(value * self.scalar, self.of) if isinstance(self, Scaled) else Scaled(value, self)

    __rmul__ = __mul__

    def __truediv__(self, scalar: float) -> RiemannianMetric:
        number = isinstance(scalar, Real) or (isinstance(scalar, Tensor) and scalar.ndim == 0)
        if not number or scalar == 0:
            raise NotAnInnerProduct(f"NotAnInnerProduct in /: the metric {self!r} by {given(scalar)}.")
        return self * (1 / scalar)


class LayerwiseMetric(RiemannianMetric):
    """A metric without terms between layers: the direct sum of what it is in each."""

    @abstractmethod
    def at_layer(self, layer: LayerObservation) -> InnerProduct:
        """The inner product on `layer.space`."""

    def at(self, observation: Observation) -> InnerProduct:
        check_output(self, observation)
        parts = {}
        for path, layer in observation.layers.items():
            with named(self, path):
                parts[path] = self.checked(self.at_layer(layer), layer.space, path)
        return BlockDiagonal(parts)

    def checked(self, g: object, space: VectorSpace, path: str) -> InnerProduct:
        if isinstance(g, InnerProduct) and g.space == space:
            return g
        what = f"one on {g.space}" if isinstance(g, InnerProduct) else given(g)
        raise SpaceMismatch(
            f"SpaceMismatch in {type(self).__name__}.at_layer: for layer {path!r} it must return an inner product on "
            f"{space}, and returned {what}. The moment of cotangents is one on S, that of inputs on Â*: their product "
            f"in this order lives on layer.space."
        )


@contextmanager
def named(metric: RiemannianMetric, path: str | None = None) -> Iterator[None]:
    """Errors from inside say in which metric, and in which layer."""
    where = f"In the metric {metric!r}" + (f", layer {path!r}." if path is not None else ".")
    try:
        yield
    except DegenerateMetric as error:
        raise DegenerateMetric(f"{error}\n{where}", error.space, error.rank) from None
    except RiemannError as error:
        if where in str(error) or type(error).__init__ is not Exception.__init__:
            raise
        raise type(error)(f"{error}\n{where}") from None


@dataclasses.dataclass(frozen=True, repr=False)
class Sum(RiemannianMetric):
    """Terms added up; exact damping where one of them is a multiple of a reference."""

    terms: tuple[RiemannianMetric, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", one_output(self.terms))
        object.__setattr__(self, "sees_outputs", any(term.sees_outputs for term in self.terms))

    def at(self, observation: Observation) -> InnerProduct:
        return sum_of([value_at(term, observation) for term in self.terms])

    def estimator(self, targets: Any = None) -> Estimator:
        return next((t.estimator(targets) for t in self.terms if t.sees_outputs), self.terms[0].estimator(targets))

    def sees_moments_alone(self) -> bool:
        return all(term.sees_moments_alone() for term in self.terms)

    def refreshed(self, previous: InnerProduct, observation: Observation) -> InnerProduct:
        return self.at(observation)

    def expression(self) -> str:
        return " + ".join(term.expression() for term in self.terms)


@dataclasses.dataclass(frozen=True, repr=False)
class Scaled(RiemannianMetric):
    """A positive multiple."""

    scalar: float
    of: RiemannianMetric

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", self.of.output)
        object.__setattr__(self, "sees_outputs", self.of.sees_outputs)

    def at(self, observation: Observation) -> InnerProduct:
        return self.scalar * value_at(self.of, observation)

    def estimator(self, targets: Any = None) -> Estimator:
        return self.of.estimator(targets)

    def sees_moments_alone(self) -> bool:
        return self.of.sees_moments_alone()

    def refreshed(self, previous: InnerProduct, observation: Observation) -> InnerProduct:
        return self.scalar * self.of.refreshed(previous, observation)

    def expression(self) -> str:
        return f"{written(self.scalar)} * {self.of.expression()}"


@dataclasses.dataclass(frozen=True, repr=False)
class FactorsDamped(RiemannianMetric):
    """Products with each factor damped, λ split between the two: see `inner_products.damp_factors`."""

    of: RiemannianMetric
    damping: float
    reference: RiemannianMetric | None = None
    split: Split = "trace"

    def __post_init__(self) -> None:
        if self.reference is not None and not isinstance(self.reference, RiemannianMetric):
            raise InvalidSetting(
                f"InvalidSetting in damp_factors: reference={given(self.reference)}, expected a metric. An inner "
                f"product g becomes one as FixedMetric(g)."
            )
        parts = (self.of,) if self.reference is None else (self.of, self.reference)
        object.__setattr__(self, "output", one_output(parts))
        object.__setattr__(self, "sees_outputs", any(part.sees_outputs for part in parts))

    def at(self, observation: Observation) -> InnerProduct:
        return self.damped(value_at(self.of, observation), observation)

    def damped(self, g: InnerProduct, observation: Observation) -> InnerProduct:
        """A form damped, as it was found on this observation or averaged over several."""
        given = self.reference
        reference = Euclidean(g.space) if given is None else value_at(given, observation)
        with named(self):
            return damp_factors(g, self.damping, reference, self.split)

    def estimator(self, targets: Any = None) -> Estimator:
        return self.of.estimator(targets)

    def sees_moments_alone(self) -> bool:
        return self.of.sees_moments_alone() and (self.reference is None or self.reference.sees_moments_alone())

    def expression(self) -> str:
        split = "" if self.split == "trace" else f", split={self.split!r}"
        reference = ", EuclideanMetric()" if self.reference is None else f", {self.reference}"
        of = f"({self.of})" if isinstance(self.of, (Sum, Scaled)) else f"{self.of}"
        return f"{of}.damp_factors({written(self.damping)}{reference}{split})"


def value_at(metric: RiemannianMetric, observation: Observation) -> InnerProduct:
    """`metric.at(observation)`, held against what it must be."""
    if not isinstance(metric, RiemannianMetric):
        hint = "an instance, with brackets" if isinstance(metric, type) else "a RiemannianMetric"
        raise InvalidSetting(f"InvalidSetting: expected a metric, {hint}, got {given(metric)}.")
    g = metric.at(observation)
    if not isinstance(g, InnerProduct) or g.space != observation.space:
        what = f"one on {g.space}" if isinstance(g, InnerProduct) else given(g)
        raise SpaceMismatch(
            f"SpaceMismatch in {type(metric).__name__}.at: it must return an inner product on {observation.space}, and "
            f"returned {what}. One for each layer is put together by direct_sum({{path: g}})."
        )
    return g


def sum_of(forms: list[InnerProduct]) -> InnerProduct:
    total = forms[0]
    for form in forms[1:]:
        total = total + form
    return total


def call_of(value: Any) -> str:
    """The call that makes a dataclass, without what is left at its default."""
    said = []
    for f in dataclasses.fields(value):
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        x = getattr(value, f.name)
        if x is not default and repr(x) != repr(default):
            said.append(f"{f.name}={x!r}")
    return f"{type(value).__name__}({', '.join(said)})"


def written(x: float) -> str:
    """A number in few digits where these are all, and else as it is: a repr makes the same metric again."""
    few = f"{x:.4g}"
    return few if float(few) == x else repr(float(x))


def given(x: object) -> str:
    return f"the class {x.__name__}" if isinstance(x, type) else describe(x) if isinstance(x, Tensor) else f"{x!r}"
