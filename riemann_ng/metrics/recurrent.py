"""K-FAC for layers that are used at every step of time (Martens, Ba & Johnson 2018).

The gradient of a weight that is used at T steps is Σ g_t ⊗ a_t, and its second moment has T² terms. Which of them are
kept is the structure: those of one step alone, as K-FAC has it, or, by moments one step apart, all of a linear Gaussian
chain. See `inner_products.series`. Moments across steps are data like others: every affine frame is kept, the same map
at each step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..errors import InvalidSetting
from ..inner_products import InnerProduct, Kronecker, second_moment
from ..inner_products.series import Series
from ..likelihoods import OutputMetric
from ..networks import Estimator, Exact
from ..networks.observation import LayerObservation, dense_inputs
from ..samples import Measure, Sample
from ..samples.measures import times
from .base import LayerwiseMetric
from .tridiagonal import linkable

Steps = Literal["independent", "symmetrized", "limit"]


@dataclass(frozen=True, repr=False)
class RecurrentKFAC(LayerwiseMetric):
    """K-FAC where the sites of a layer are steps of time, in order.

    `structure` says how steps are taken to hang together: "independent" of each other, which is `KFAC()`; as a linear
    Gaussian chain whose lags are "symmetrized", for the number of steps there is; or as any such chain in the "limit"
    of many steps. `layers` names those whose sites are steps, by default all with more than one site; padding comes
    last. One-hot inputs, families of maps and parameters without a layer have independent steps. `output` and
    `observed` are as in `KFAC`.
    """

    structure: Steps = "symmetrized"
    layers: tuple[str, ...] | None = None
    output: OutputMetric | None = None
    observed: Estimator = Exact()

    def __post_init__(self) -> None:
        if self.structure not in get_args(Steps):
            raise InvalidSetting(
                f"InvalidSetting in RecurrentKFAC: structure={self.structure!r}, expected one of "
                f"{', '.join(map(repr, get_args(Steps)))}."
            )
        if self.layers is not None and (
            isinstance(self.layers, str) or not all(isinstance(path, str) for path in self.layers)
        ):
            raise InvalidSetting(
                f"InvalidSetting in RecurrentKFAC: layers={self.layers!r}, expected a tuple of the layers' paths."
            )

    def at_layer(self, layer: LayerObservation) -> InnerProduct:
        named = self.layers is None or layer.path in self.layers
        if self.structure == "independent" or not named or layer.sites == 1 or not linkable(layer):
            return second_moment(layer.cotangents) * second_moment(layer.inputs)
        return series_of(layer, self.structure)

    def estimator(self, targets: Any = None) -> Estimator:
        return self.observed


def series_of(layer: LayerObservation, approximation: Literal["symmetrized", "limit"]) -> InnerProduct:
    """The form of a layer with steps; of one step where there are no two in a row."""
    n, _, t = layer.inputs.counts
    mask = layer.inputs.measure.mask
    there = torch.ones(n, t, dtype=torch.bool) if mask is None else mask.reshape(n, t).cpu()
    counts = there.sum(1)
    if bool((there[:, 1:] & ~there[:, :-1]).any()):
        raise InvalidSetting(
            f"InvalidSetting in RecurrentKFAC: in {layer.path!r} a step comes after one that is masked, and moments "
            f"one step apart are of steps in a row. Let padding come last, or leave the layer out of layers=(...)."
        )
    found = [int(c) for c in counts if c]
    lengths = {length: found.count(length) / n for length in sorted(set(found))}
    mean = sum(length * share for length, share in lengths.items())
    pairs = there[:, 1:] & there[:, :-1]
    if not bool(pairs.any()):
        return second_moment(layer.cotangents) * second_moment(layer.inputs)
    a, g = dense_inputs(layer.inputs), layer.cotangents.dense().reshape(*layer.cotangents.counts, -1)
    pair = pairs.to(a.device)[:, None]
    A = lag(a, pair) / pair.sum()
    sites = layer.cotangents.measure.weights(layer.cotangents.counts)
    each = sites if isinstance(sites, float) else float(sites.max())  # what one cotangent weighs: 1/n, or 1/(n K)
    G = lag(g, pair) * (each * n / float(pair.sum()))
    moment = second_moment(per_step(layer.cotangents, mean))
    product = Kronecker([moment, second_moment(layer.inputs)])
    return Series(product, (G, A), lengths, approximation)


def lag(x: Tensor, pairs: Tensor) -> Tensor:
    """Σ x_{t+1} x_tᵀ over the pairs of steps that are there, of (examples, draws, steps, dim)."""
    before, after = (times(part, pairs) for part in (x[:, :, :-1], x[:, :, 1:]))
    return after.flatten(0, 2).mT @ before.flatten(0, 2)


def per_step(cotangents: Sample, mean: float) -> Sample:
    """The sample whose moment is the mean over steps, where that of the cotangents is the sum."""
    weights = cotangents.measure.weights(cotangents.counts)
    if isinstance(weights, float):
        weights = torch.full((1, 1, 1), weights, dtype=torch.float64, device=cotangents.device)
    data = cotangents.dense().reshape(*cotangents.counts, *cotangents.space.shape)
    made = Sample(cotangents.space, data, Measure.weighted(weights / mean), cotangents.name)
    made.through = cotangents.through
    return made
