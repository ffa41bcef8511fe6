"""One-sided metrics: on one side of a layer the data, on the other a named reference.

With the reference h on S the metric is g(D, D') = E[h(D(a), D'(a))]: how far outputs of the layer move, on the inputs
that come. It keeps every affine frame of 𝒜, and of 𝒮 what h keeps. Gradient descent in a network whose layers see
centred and whitened inputs is the natural gradient of this metric with h the coordinates (PRONG, Desjardins et al.
2015), and what whitening adds to the covariance is its damping.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, get_args

from ..errors import InvalidSetting, SpaceMismatch
from ..inner_products import (
    BlockDiagonal,
    Euclidean,
    InnerProduct,
    Scaled,
    euclidean_on_translations,
    second_moment,
)
from ..likelihoods import OutputMetric
from ..networks import Estimator, Exact, InputsOnly
from ..networks.observation import LayerObservation, Observation
from .base import LayerwiseMetric, RiemannianMetric, given, named, value_at
from .constant import EuclideanMetric
from .kfac import Sharing
from .outputs import check_output, one_output


def check_sharing(metric: object, sharing: object) -> None:
    if sharing not in get_args(Sharing):
        raise InvalidSetting(
            f"InvalidSetting in {type(metric).__name__}: sharing={sharing!r}, expected "
            f"{' or '.join(map(repr, get_args(Sharing)))}."
        )


class OneSided(RiemannianMetric):
    """What the two have in common: a reference that is a product in every layer, and one of its factors is kept."""

    reference: RiemannianMetric
    sharing: Sharing

    def _check(self) -> None:
        check_sharing(self, self.sharing)
        if not isinstance(self.reference, RiemannianMetric):
            raise InvalidSetting(
                f"InvalidSetting in {type(self).__name__}: reference={given(self.reference)}, expected a metric. An "
                f"inner product g becomes one as FixedMetric(g)."
            )

    def at(self, observation: Observation) -> InnerProduct:
        check_output(self, observation)
        references, parts = value_at(self.reference, observation).summands(), {}
        for path, layer in observation.layers.items():
            with named(self, path):
                h = None if references is None else references[path].factors_on((layer.S, layer.A.dual))
                if h is None:
                    raise SpaceMismatch(
                        f"SpaceMismatch in {type(self).__name__}: the reference {self.reference!r} is no product along "
                        f"{layer.S} and {layer.A.dual}, so it has no side to take. Take EuclideanMetric(), or a "
                        f"FixedMetric of KFAC at another batch."
                    )
                parts[path] = self.in_layer(layer.reduced() if self.sharing == "reduce" else layer, h[0], h[1])
        return BlockDiagonal(parts)

    @abstractmethod
    def in_layer(self, layer: LayerObservation, h_S: InnerProduct, h_A: InnerProduct) -> InnerProduct:
        """The inner product on `layer.space`; h_S and h_A are the references on S and on Â*."""


@dataclass(frozen=True, repr=False)
class ForwardOnly(OneSided):
    """A reference on S times the moment of inputs. No cotangent is looked at.

    Of `reference` the factor on S is taken: the coordinates, unless it is data (`FixedMetric` of K-FAC at another
    batch), and then every affine frame is kept. `sharing` is as in `KFAC`.
    """

    reference: RiemannianMetric = EuclideanMetric()
    sharing: Sharing = "expand"

    def __post_init__(self) -> None:
        self._check()
        object.__setattr__(self, "output", self.reference.output)
        object.__setattr__(self, "sees_outputs", self.reference.sees_outputs)

    def in_layer(self, layer: LayerObservation, h_S: InnerProduct, h_A: InnerProduct) -> InnerProduct:
        return h_S * second_moment(layer.inputs)

    def estimator(self, targets: Any = None) -> Estimator:
        return self.reference.estimator(targets)


@dataclass(frozen=True, repr=False)
class CotangentsOnly(OneSided):
    """The moment of cotangents times a reference on Â*. No input is looked at.

    Of `reference` the factor on Â* is taken, by default the coordinates with their origin. `output`, `observed` and
    `sharing` are as in `KFAC`.
    """

    reference: RiemannianMetric = EuclideanMetric()
    sharing: Sharing = "expand"
    output: OutputMetric | None = None
    observed: Estimator = Exact()

    def __post_init__(self) -> None:
        self._check()
        if self.reference.sees_outputs:
            one_output([self, self.reference])

    def in_layer(self, layer: LayerObservation, h_S: InnerProduct, h_A: InnerProduct) -> InnerProduct:
        return second_moment(layer.cotangents) * h_A

    def estimator(self, targets: Any = None) -> Estimator:
        return self.observed


@dataclass(frozen=True, repr=False)
class PRONG(LayerwiseMetric):
    """The coordinates of S times the moment of inputs, `epsilon` added to their *centred* covariance.

    The sharp of a gradient D is D [[Σ + ε + ccᵀ, c], [cᵀ, 1]]⁻¹, for the mean c of the inputs and their covariance Σ:
    the step of gradient descent on V, d where the layer is V U (a - c) + d with Uᵀ U = (Σ + ε)⁻¹, whichever root U is.
    A layer without a bias is whitened about the origin; parameters without a layer are left to gradient descent.
    ε = 0 keeps every affine frame of 𝒜, ε > 0 its isometries; of 𝒮 isometries are kept.
    """

    epsilon: float = 1e-3
    sharing: Sharing = "expand"
    sees_outputs = False

    def __post_init__(self) -> None:
        epsilon = self.epsilon
        good = isinstance(epsilon, (int, float)) and not isinstance(epsilon, bool)
        if not good or not 0 <= epsilon < math.inf:
            raise InvalidSetting(
                f"InvalidSetting in PRONG: epsilon={epsilon!r}, expected a number, zero or more: what is added to the "
                f"covariance of inputs before it is whitened."
            )
        check_sharing(self, self.sharing)

    def at_layer(self, layer: LayerObservation) -> InnerProduct:
        inputs = (layer.reduced() if self.sharing == "reduce" else layer).inputs
        A: InnerProduct = second_moment(inputs)
        if self.epsilon and A.space.bases:
            A = A + Scaled(float(self.epsilon), euclidean_on_translations(A.space))
        return Euclidean(layer.S) * A

    def estimator(self, targets: Any = None) -> Estimator:
        return InputsOnly()
