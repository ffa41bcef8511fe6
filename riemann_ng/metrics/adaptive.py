"""Adaptive methods as metrics: roots of moments of gradients, in the coordinates, which they name.

Adam, RMSProp and Adagrad divide a gradient by the root of its mean square, entry by entry: a sharp of the diagonal form
√v. Shampoo takes fourth roots of two factors. Their moments are of the whole batch's gradient, averaged over time; a
metric says what one step adds, and the running average (`MetricAverage`, an optimizer's `decay`) is taken before the
root. With bias correction that of squares is Adam's own. The first moment is momentum, which is no part of a metric.

The root of a form is one relative to another, here the coordinates, or a `NamedFrame`: Adam in K-FAC's frame is
`RootMeanSquare(frame=NamedFrame.of(KFAC(), ...))`, which keeps every affine frame. It is gradient descent by Adam in a
network that is seen in that frame: `reparametrize`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import InvalidSetting, ObservationMismatch
from ..factorizations import rounding_unit
from ..inner_products import BlockDiagonal, Diagonal, Euclidean, Gram, InnerProduct, Kronecker, RotatedDiagonal
from ..inner_products.powers import Power
from ..inner_products.symmetries import with_lines
from ..networks import Empirical, Estimator
from ..networks.observation import LayerObservation, Observation
from ..samples.measures import times
from ..spaces import Family
from . import structures
from .base import LayerwiseMetric, named
from .ekfac import spectrum_of
from .named_frames import Axes, NamedFrame, axes_of, check_frame, factor_in, naming
from .per_example import gradients


class Adaptive(LayerwiseMetric):
    """What adaptive metrics have in common: gradients of the data's own labels, and a power of their moments."""

    power: float
    epsilon: float

    def _check(self) -> None:
        for name, x, good in (
            ("power", self.power, isinstance(self.power, (int, float)) and 0 < self.power <= 1),
            ("epsilon", self.epsilon, isinstance(self.epsilon, (int, float)) and 0 <= self.epsilon < math.inf),
        ):
            if isinstance(x, bool) or not good:
                raise InvalidSetting(
                    f"InvalidSetting in {type(self).__name__}: {name}={x!r}, expected "
                    f"{'a power in (0, 1]' if name == 'power' else 'a number, zero or more'}."
                )

    def at(self, observation: Observation) -> InnerProduct:
        check_labels(self, observation)
        return super().at(observation)

    def estimator(self, targets: Any = None) -> Estimator:
        return Empirical(targets)


@dataclass(frozen=True, repr=False)
class RootMeanSquare(Adaptive):
    """The diagonal √v + ε, v the square of the batch's gradient, entry by entry: Adam, RMSProp, Adagrad.

    `of="examples"` takes the mean square of the gradients of single examples instead, the diagonal of
    `GradientCovariance()`: then v does not depend on the size of the batch. `power=1` leaves the root out. `frame` says
    in which frame the entries are, the coordinates where there is none.
    """

    epsilon: float = 1e-8
    of: Literal["batch", "examples"] = "batch"
    power: float = 0.5
    frame: NamedFrame | None = None

    def __post_init__(self) -> None:
        self._check()
        check_of(self, self.of)
        check_frame(self, self.frame)

    def at_layer(self, layer: LayerObservation) -> InnerProduct:
        h = None if self.frame is None else self.frame.on(layer)
        if h is not None and not isinstance(h, Euclidean):
            return self._in_frame(layer, h, axes_of(h, layer.inputs.tensor()))
        if self.of == "examples":
            return Power(structures.diagonal(layer), self.power, after=self.epsilon)
        name = f"squares of {layer.path}"
        symmetry = with_lines(structures.block_diagonal(layer).symmetry, layer.space, name)
        squares = Diagonal.of(layer.space, mean_gradient(layer).square().flatten(), name, symmetry)
        return Power(squares, self.power, after=self.epsilon)

    def _in_frame(self, layer: LayerObservation, h: InnerProduct, axes: Axes) -> InnerProduct:
        assert self.frame is not None
        name = self.frame.name
        symmetry = naming(structures.block_diagonal(layer).symmetry, h, name)
        squares = squares_in(layer, axes, self.of)
        in_frame = RotatedDiagonal(h, axes, squares, name, natural=True, validate=False, made_with=symmetry)
        return Power(in_frame, self.power, after=self.epsilon)

    def refreshed(self, previous: InnerProduct, observation: Observation) -> InnerProduct:
        """With the axes of the earlier value, so that the two blend."""
        before = previous.summands() if previous.space == observation.space else None
        if self.frame is None or before is None:
            return self.at(observation)
        check_labels(self, observation)
        parts: dict[str, InnerProduct] = {}
        for path, layer in observation.layers.items():
            g = before[path]
            with named(self, path):
                if isinstance(g, Power) and isinstance(g.of, RotatedDiagonal):
                    parts[path] = self._in_frame(layer, g.of.reference, g.of.axes)
                else:
                    parts[path] = self.at_layer(layer)
        return BlockDiagonal(parts)


@dataclass(frozen=True, repr=False)
class Shampoo(Adaptive):
    """(D Dᵀ + ε)^¼ ⊗ (Dᵀ D + ε)^¼ for the batch's gradient D (Gupta, Koren & Singer 2018).

    The step of one batch is a root of D Dᵀ, D and a root of DᵀD, so that of all its singular values alike: the averages
    over time make it more than that. `power` is that of each factor, ½ in some of its descendants.
    """

    epsilon: float = 1e-6
    power: float = 0.25

    def __post_init__(self) -> None:
        self._check()

    def at_layer(self, layer: LayerObservation) -> InnerProduct:
        D = mean_gradient(layer)
        symmetry = structures.block_diagonal(layer).symmetry
        factors: list[InnerProduct] = []
        for space, M, side in ((layer.S, D @ D.mT, "left"), (layer.A.dual, D.mT @ D, "right")):
            if isinstance(layer.space, Family) and not isinstance(space, Family):
                M = M.sum(0)
            factors.append(Gram.of(space, M, f"{side} factor of {layer.path}", symmetry))
        return Power(Kronecker(factors), self.power, before=self.epsilon)


def check_labels(metric: object, observation: Observation) -> None:
    if not isinstance(observation.estimator, Empirical):
        raise ObservationMismatch(
            f"ObservationMismatch in {metric!r}: the batch was observed with {observation.estimator}, and adaptive "
            f"methods are made of the gradients of the data's own labels. Observe with Empirical(targets)."
        )


def check_of(metric: object, of: object) -> None:
    if of not in ("batch", "examples"):
        raise InvalidSetting(f"InvalidSetting in {type(metric).__name__}: of={of!r}, expected 'batch' or 'examples'.")


def squares_in(layer: LayerObservation, axes: Axes, of: str) -> Tensor:
    """Squares of the components of gradients along axes, of the batch's gradient or on average over examples."""
    if of == "examples" and len(axes) == 2:
        return spectrum_of(layer, axes)
    factor = factor_in(axes, layer.space)
    if of == "batch":
        total = factor.to_axes(mean_gradient(layer).flatten()).square()
    else:
        total = torch.zeros_like(factor.spectrum)
        for D, w in gradients(layer):
            total = total + times(factor.to_axes(D.flatten(2)).square().flatten(2), w).sum((0, 1)).reshape(total.shape)
    noise = (16 * rounding_unit(total.dtype)) ** 2  # what is left of a kernel: the square of rounding
    return torch.where(total > noise * total.max(), total, 0.0)


def mean_gradient(layer: LayerObservation) -> Tensor:
    """Of the batch: the mean over examples, shaped as the layer's space."""
    n = layer.gradients.counts[0]
    total: Tensor | None = None
    for x, w in layer.gradients._pieces():
        part = torch.tensordot(torch.as_tensor(w, dtype=x.dtype, device=x.device).broadcast_to(x.shape[:3]), x, dims=3)
        total = part if total is None else total + part
    assert total is not None and n
    return total.reshape(layer.space.shape)
