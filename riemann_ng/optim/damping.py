"""What is added to the metric before it is inverted, and how much of it.

A policy is a value; the damping λ itself belongs to the optimizer's state, where adaptive policies change it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import get_args

from ..errors import InvalidSetting
from ..inner_products import InnerProduct
from ..inner_products.damping import Split, damp_factors
from ..metrics import EuclideanMetric, RiemannianMetric
from ..metrics.base import given, value_at
from ..networks import Estimator
from ..networks.observation import Observation
from .steps import check_positive


@dataclass(frozen=True, repr=False)
class AtStart(RiemannianMetric):
    """The value of a metric at the first statistics, kept ever after: a reference for *transported* damping.

    It is data and no choice of coordinates, so damping by it loses no symmetry that the metric itself has.
    """

    of: RiemannianMetric

    def __post_init__(self) -> None:
        check_reference("AtStart", self.of)
        object.__setattr__(self, "output", self.of.output)
        object.__setattr__(self, "sees_outputs", self.of.sees_outputs)

    def at(self, observation: Observation) -> InnerProduct:
        g = value_at(self.of, observation)
        return InnerProduct.from_state(g.space, g.state())  # its matrices: it outlives the batch

    def refreshed(self, previous: InnerProduct, observation: Observation) -> InnerProduct:
        return previous if previous.space == observation.space else self.at(observation)

    def estimator(self, targets: object = None) -> Estimator:
        return self.of.estimator(targets)

    def sees_moments_alone(self) -> bool:
        return self.of.sees_moments_alone()

    def expression(self) -> str:
        return f"AtStart({self.of})"


def check_reference(call: str, reference: object) -> None:
    if not isinstance(reference, RiemannianMetric):
        raise InvalidSetting(
            f"InvalidSetting in {call}: the reference is a metric, as EuclideanMetric() or AtStart(KFAC()), got "
            f"{given(reference)}."
        )


class Damping(ABC):
    """How the metric is damped by a multiple λ of a reference, and how λ changes."""

    start: float
    reference: RiemannianMetric
    adapts_every: int = 0
    """After how many steps λ is looked at again; 0 is never."""

    @abstractmethod
    def damped(self, g: InnerProduct, damping: float, reference: InnerProduct) -> InnerProduct:
        """The metric with λ of the reference."""

    def adapted(self, damping: float, ratio: float) -> float:
        """λ after a step in which the loss changed by `ratio` times what the quadratic model promised."""
        return damping

    def tried(self, strength: float, step: int) -> tuple[float, ...]:
        """What the metric is damped with on trial before a step, the lowest model deciding; none: with λ itself."""
        return ()


@dataclass(frozen=True)
class Undamped(Damping):
    """The metric as it is; a degenerate one cannot be inverted, and says so."""

    start: float = 0.0
    reference: RiemannianMetric = EuclideanMetric()

    def damped(self, g: InnerProduct, damping: float, reference: InnerProduct) -> InnerProduct:
        return g


@dataclass(frozen=True)
class Factored(Damping):
    """Each factor of a product damped, √λ split between the two; forms that are no products get λ of the reference.

    Cholesky factorizations only. `EuclideanMetric(on="translations")` as the reference keeps the translations of 𝒜, and
    leaves a bias no more damping than the factor on S has, which is too little where that factor is small.
    """

    start: float = 1e-3
    reference: RiemannianMetric = EuclideanMetric()
    split: Split = "trace"

    def __post_init__(self) -> None:
        check_positive("Factored", "start", self.start)
        check_reference("Factored", self.reference)
        if self.split not in get_args(Split):
            raise InvalidSetting(
                f"InvalidSetting in Factored: split={self.split!r}, expected one of {', '.join(get_args(Split))}."
            )

    def damped(self, g: InnerProduct, damping: float, reference: InnerProduct) -> InnerProduct:
        return damp_factors(g, damping, reference, self.split)


@dataclass(frozen=True)
class Tikhonov(Damping):
    """g + λ h, exactly: forms that are products are diagonalized together, an eigendecomposition each refresh."""

    start: float = 1e-3
    reference: RiemannianMetric = EuclideanMetric()

    def __post_init__(self) -> None:
        check_positive("Tikhonov", "start", self.start)
        check_reference("Tikhonov", self.reference)

    def damped(self, g: InnerProduct, damping: float, reference: InnerProduct) -> InnerProduct:
        return g + damping * reference


class DampingOf(Damping):
    """A policy about how much: how the metric is damped, and where λ starts, is the business of `of`."""

    of: Damping

    @property
    def start(self) -> float:  # type: ignore[override]
        return self.of.start

    @property
    def reference(self) -> RiemannianMetric:  # type: ignore[override]
        return self.of.reference

    def damped(self, g: InnerProduct, damping: float, reference: InnerProduct) -> InnerProduct:
        return self.of.damped(g, damping, reference)


@dataclass(frozen=True)
class LevenbergMarquardt(DampingOf):
    """λ by how well the quadratic model foretells the loss: ×rateᵉᵛᵉʳʸ where well (ratio > ¾), ÷ where badly (< ¼).

    `of` says how the metric is damped. It needs a step rule that makes a model: `QuadraticModel`.
    """

    of: Damping = Factored(1.0)
    rate: float = 0.9
    every: int = 5
    floor: float = 1e-2
    ceiling: float = 1e3

    def __post_init__(self) -> None:
        if not isinstance(self.of, (Factored, Tikhonov)):
            raise InvalidSetting(
                f"InvalidSetting in LevenbergMarquardt: of={self.of!r}, expected Factored(...) or Tikhonov(...)."
            )
        whole = isinstance(self.every, int) and not isinstance(self.every, bool)
        if not 0 < self.rate < 1 or not whole or self.every < 1 or not 0 < self.floor <= self.ceiling:
            raise InvalidSetting(
                f"InvalidSetting in {self!r}: expected a rate in (0, 1), every of at least 1, and floor <= ceiling."
            )

    @property
    def adapts_every(self) -> int:  # type: ignore[override]
        return self.every

    def adapted(self, damping: float, ratio: float) -> float:
        factor = self.rate**self.every
        if ratio > 0.75:
            damping *= factor
        elif not ratio >= 0.25:  # also where it is no number
            damping /= factor
        return min(max(damping, self.floor), self.ceiling)


def damping_policy(given: object) -> Damping:
    """What a user may say for damping, as a policy: a number is that of factored damping."""
    if given is None:
        return Undamped()
    if isinstance(given, Damping):
        return given
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        return Factored(float(given))
    raise InvalidSetting(
        f"InvalidSetting: damping={given!r}, expected a number, a policy as optim.Factored(1e-3), or None. Damping "
        f"that is part of the metric is written there: KFAC() + 1e-3 * EuclideanMetric()."
    )
