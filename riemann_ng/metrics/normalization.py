"""Batch normalization and whitening as metrics: gradient descent in a network whose layers see normalized units.

A layer that sees its inputs as (a - c) / σ, unit by unit, and learns there by gradient descent, moves as the natural
gradient of the metric Euclidean ⊗ [[diag(σ²) + ccᵀ, c], [cᵀ, 1]]: on Â* the diagonal of the *centred* covariance,
beside the mean. Whitening has all of the covariance, and is PRONG's. A layer that gives its outputs as (s - μ) / σ
moves as that of diag(σ²)⁻¹ ⊗ Euclidean, since a covariance of points of 𝒮 is a form on S*, and the metric on S its
dual. In both ε is added to variances. Statistics are those of the batch, and are held while the gradient is taken.
Values of a layer with more outputs than inputs lie in a plane, and their covariance has a kernel: there ε must be
positive.

What is normalized by units keeps their scales, their order and their origin; whitening keeps every affine frame. What
is not normalized is measured in the coordinates.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..errors import DegenerateMetric, InvalidSetting
from ..inner_products import Diagonal, Euclidean, Gram, InnerProduct, euclidean_on_translations, second_moment
from ..inner_products.on_translations import on_hull
from ..inner_products.symmetries import with_lines
from ..networks import Estimator, InputsOnly
from ..networks.observation import LayerObservation, dense_inputs
from ..samples import OneHot
from ..symmetry import Structure, Symmetry
from .base import LayerwiseMetric
from .kfac import Sharing
from .one_sided import check_sharing

Side = Literal["activations", "pre-activations", "both"]


class Normalization(LayerwiseMetric):
    """What the two have in common: sides that are normalized, the others measured in the coordinates."""

    on: Side
    epsilon: float
    sharing: Sharing
    sees_outputs = False

    def _check(self) -> None:
        epsilon = self.epsilon
        good = isinstance(epsilon, (int, float)) and not isinstance(epsilon, bool) and 0 <= epsilon < math.inf
        if not good:
            raise InvalidSetting(
                f"InvalidSetting in {type(self).__name__}: epsilon={epsilon!r}, expected a number, zero or more: what "
                f"is added to variances."
            )
        if self.on not in get_args(Side):
            raise InvalidSetting(
                f"InvalidSetting in {type(self).__name__}: on={self.on!r}, expected "
                f"{' or '.join(map(repr, get_args(Side)))}."
            )
        check_sharing(self, self.sharing)

    def at_layer(self, layer: LayerObservation) -> InnerProduct:
        layer = layer.reduced() if self.sharing == "reduce" else layer
        left = Euclidean(layer.S) if self.on == "activations" else self.of_outputs(layer).dual
        right = Euclidean(layer.A.dual) if self.on == "pre-activations" else self.of_inputs(layer)
        return left * right

    def of_inputs(self, layer: LayerObservation) -> InnerProduct:
        """The form on Â*."""
        g = self.seen(layer)
        return g + self.epsilon * euclidean_on_translations(g.space) if self.epsilon and g.space.bases else g

    def of_outputs(self, layer: LayerObservation) -> InnerProduct:
        """The form on S*, whose dual measures S."""
        g = self.given(layer)
        if self.epsilon:
            return g + self.epsilon * Euclidean(g.space)
        if (rank := g.rank()) < g.space.dim:
            raise DegenerateMetric(
                f"DegenerateMetric in {type(self).__name__}: values of {layer.path!r} on this batch vary in {rank} of "
                f"{g.space.dim} directions, and in the others nothing can be normalized. Give epsilon=..., which is "
                f"added to variances, or take on='activations'.",
                g.space,
                rank,
            )
        return g

    @abstractmethod
    def seen(self, layer: LayerObservation) -> InnerProduct:
        """What is kept of the covariance of inputs, with their mean, on Â*."""

    @abstractmethod
    def given(self, layer: LayerObservation) -> InnerProduct:
        """What is kept of the covariance of the layer's values, on S*."""

    def estimator(self, targets: Any = None) -> Estimator:
        return InputsOnly()


@dataclass(frozen=True, repr=False)
class BatchNormalization(Normalization):
    """Each unit by its own variance, on the side named: "activations", "pre-activations", or "both".

    `epsilon` is added to variances; `sharing` is as in `KFAC`, "expand" takes every site for an example, as torch does.
    A layer without a bias is normalized about the origin.
    """

    on: Side = "activations"
    epsilon: float = 1e-5
    sharing: Sharing = "expand"

    def __post_init__(self) -> None:
        self._check()

    def seen(self, layer: LayerObservation) -> InnerProduct:
        A, name = layer.A.dual, f"variances of inputs of {layer.path}"
        if isinstance(layer.inputs.data, OneHot):
            return second_moment(layer.inputs)  # diagonal as it is
        x, w = points(layer, dense_inputs(layer.inputs))
        if not on_hull(A):
            symmetry = with_lines(second_moment(layer.inputs).symmetry, A, name)
            return Diagonal.of(A, variances(x, w).flatten(), name, symmetry)
        mean = weighted(x, w)
        whole = mean[..., :, None] * mean[..., None, :]
        whole = whole + torch.diag_embed(variances(x - mean, w))
        lines = (Structure(base, "lines", source=name) for base in A.bases)
        return Gram.of(A, whole, name, second_moment(layer.inputs).symmetry.with_structure(*lines))

    def given(self, layer: LayerObservation) -> InnerProduct:
        S, name = layer.S.dual, f"variances of values of {layer.path}"
        x, w = points(layer, layer.values)
        found = variances(x - weighted(x, w), w)
        return Diagonal.of(S, found.flatten(), name, with_lines(Symmetry.natural(), S, name))


@dataclass(frozen=True, repr=False)
class Whitening(Normalization):
    """All of the covariance, on the side named: of "activations" it is `PRONG`.

    `epsilon` is added to the covariance; `sharing` is as in `KFAC`. With "both" and ε = 0 every affine frame is kept,
    without a look at a single cotangent. A layer without a bias is whitened about the origin.
    """

    on: Side = "activations"
    epsilon: float = 1e-3
    sharing: Sharing = "expand"

    def __post_init__(self) -> None:
        self._check()

    def seen(self, layer: LayerObservation) -> InnerProduct:
        return second_moment(layer.inputs)

    def given(self, layer: LayerObservation) -> InnerProduct:
        x, w = points(layer, layer.values)
        rows = (x - weighted(x, w)) * w.sqrt()[(..., *[None] * (x.ndim - 1))]
        rows = rows.movedim(0, -2)  # ([members], number, dim)
        return Gram.of(layer.S.dual, rows.mT @ rows, f"covariance of values of {layer.path}", Symmetry.natural())


def points(layer: LayerObservation, x: Tensor) -> tuple[Tensor, Tensor]:
    """Points (number, [members], dim) of every example and site that is there, and what they weigh, in all one."""
    counts = layer.inputs.counts
    w = torch.as_tensor(layer.inputs.measure.weights(counts), dtype=x.dtype, device=x.device).broadcast_to(counts)
    present = w.flatten() > 0
    return x.flatten(0, 2)[present], w.flatten()[present] / w.sum()


def weighted(x: Tensor, w: Tensor) -> Tensor:
    return torch.tensordot(w, x, dims=1)


def variances(x: Tensor, w: Tensor) -> Tensor:
    """Mean squares."""
    return weighted(x.square(), w)
