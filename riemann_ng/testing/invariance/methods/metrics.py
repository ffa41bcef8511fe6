"""Metrics of the literature that differ from the library's own in what they name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ....inner_products import Euclidean, Gram, InnerProduct, euclidean_on_translations, second_moment
from ....metrics import LayerwiseMetric, RiemannianMetric
from ....networks import Empirical, Estimator
from ....networks.observation import LayerObservation, Observation
from ....spaces import Hull


@dataclass(frozen=True, repr=False)
class InputsDamped(LayerwiseMetric):
    """K-FAC with the covariance of inputs damped on the translations, the factor of cotangents as it is.

    `relative` measures the damping in units of the mean variance of the inputs.
    """

    damping: float
    relative: bool = False

    def at_layer(self, layer: LayerObservation) -> InnerProduct:
        return second_moment(layer.cotangents) * damped_inputs(layer, self.damping, self.relative)


@dataclass(frozen=True, repr=False)
class Whitening(LayerwiseMetric):
    """PRONG as an update (Desjardins et al. 2015): descent where inputs are centred and white, Euclidean on 𝒮."""

    eps: float = 0.0

    def at_layer(self, layer: LayerObservation) -> InnerProduct:
        return Euclidean(layer.S) * damped_inputs(layer, self.eps)


def damped_inputs(layer: LayerObservation, damping: float, relative: bool = False) -> InnerProduct:
    A: InnerProduct = second_moment(layer.inputs)
    if not damping:
        return A
    if relative:
        variances = layer.inputs.moment().diagonal()
        if isinstance(A.space.dual, Hull):
            variances = (variances - layer.inputs.mean().data.square())[:-1]
        damping *= float(variances.mean())
    return A + damping * euclidean_on_translations(A.space)


@dataclass(frozen=True, repr=False)
class EmpiricalFisher(RiemannianMetric):
    """The second moment of the gradients of the examples, labels from the data; no Fisher, for all its name."""

    def at(self, observation: Observation) -> InnerProduct:
        return second_moment(observation.gradients)

    def estimator(self, targets: Any = None) -> Estimator:
        return Empirical(targets)


@dataclass(frozen=True, repr=False)
class FlipFlop(LayerwiseMetric):
    """The matrix-normal fit to per-example gradients: L = E[ξ R⁻¹ ξᵀ] and R = E[ξᵀ L⁻¹ ξ] in turns, R from one.

    What "Shampoo" is once converged. After few iterations the start R = 1 is still seen on 𝒜.
    """

    iterations: int = 30

    def at_layer(self, layer: LayerObservation) -> InnerProduct:
        xi = layer.gradients.dense().reshape(-1, *layer.space.shape)
        m, n = xi.shape[-2:]
        R = torch.eye(n, dtype=xi.dtype)
        L = torch.eye(m, dtype=xi.dtype)
        for _ in range(self.iterations):
            L = torch.einsum("kij,kjl->il", xi @ torch.linalg.inv(R), xi.mT) / n
            R = torch.einsum("kij,kjl->il", xi.mT @ torch.linalg.inv(L), xi) / m
        return Gram(layer.S, (L + L.mT) / 2) * Gram(layer.A.dual, (R + R.mT) / 2)
