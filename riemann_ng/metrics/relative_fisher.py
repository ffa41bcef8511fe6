"""The relative Fisher: every unit by itself, as if its output alone were observed.

A unit y = φ(w â) with noise of unit variance on y has the Fisher E[φ'(s)² â âᵀ] for its own weights: how far its output
moves, on the inputs that come (Sun & Nielsen 2017). Nothing behind the unit takes part, so no cotangent is looked at.
The code of SNGD (2021) has one such metric for every unit of the hidden layers, with the logistic function in place of
the derivative of a rectifier, and one metric E[â âᵀ] for all units of the first and of the last.

The weights φ'(s)² see the numbers s, with their origin and their scale: of frames of 𝒮 nothing is kept. Of 𝒜 all are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..errors import InvalidSetting, UnsupportedLayer
from ..inner_products import BlockDiagonal, Diagonal, Euclidean, InnerProduct, UnitWise, second_moment
from ..networks import Estimator, InputsOnly
from ..networks.observation import LayerObservation, Observation, dense_inputs
from ..samples import OneHot
from ..samples.measures import times
from ..spaces import Family
from ..symmetry import Structure, Symmetry
from .base import RiemannianMetric, named
from .per_example import BUDGET, LARGEST

Slope = Literal["logistic", "rectifier", "tanh", "sigmoid", "identity"]
SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "logistic": torch.sigmoid,
    "rectifier": lambda s: (s > 0).to(s),
    "tanh": lambda s: 1 - s.tanh().square(),
    "sigmoid": lambda s: s.sigmoid() * (1 - s.sigmoid()),
    "identity": torch.ones_like,
}


@dataclass(frozen=True, repr=False)
class RelativeFisher(RiemannianMetric):
    """For every output unit o of a layer E[φ'(s_o)² â âᵀ] on Â*, and nothing between units.

    `slope` is φ': of "tanh" or "sigmoid" units, of a "rectifier", "logistic" for the logistic function itself, which
    smooths a rectifier's, or "identity". `shared` names the layers whose units have E[â âᵀ] in common; by default the
    first and the last, in the order of the network's layers. Parameters without a layer are always among them.
    """

    slope: Slope = "logistic"
    shared: tuple[str, ...] | None = None
    sees_outputs = False

    def __post_init__(self) -> None:
        if self.slope not in get_args(Slope):
            raise InvalidSetting(
                f"InvalidSetting in RelativeFisher: slope={self.slope!r}, expected one of "
                f"{', '.join(map(repr, get_args(Slope)))}."
            )
        given = self.shared
        if given is not None and (isinstance(given, str) or not all(isinstance(path, str) for path in given)):
            raise InvalidSetting(
                f"InvalidSetting in RelativeFisher: shared={given!r}, expected a tuple of the layers' paths."
            )
        if given is not None:
            object.__setattr__(self, "shared", tuple(given))

    def at(self, observation: Observation) -> InnerProduct:
        real = [path for path, layer in observation.layers.items() if layer.A.bases]
        shared = {*real[:1], *real[-1:]} if self.shared is None else set(self.shared)
        unknown = sorted(shared - set(observation.layers))
        if unknown:
            raise InvalidSetting(
                f"InvalidSetting in {self!r}: no layer is called {', '.join(map(repr, unknown))}; there are "
                f"{', '.join(map(repr, observation.layers))}."
            )
        parts: dict[str, InnerProduct] = {}
        for path, layer in observation.layers.items():
            with named(self, path):
                parts[path] = in_common(layer) if path in shared or not layer.A.bases else self.by_units(layer)
        return BlockDiagonal(parts)

    def by_units(self, layer: LayerObservation) -> InnerProduct:
        """The inner product on `layer.space` where every unit has its own."""
        n, _, t = layer.inputs.counts
        slopes = SLOPES[self.slope](layer.values).square()
        weights = times(slopes.reshape(n, 1, t, -1), layer.inputs.measure.weights((n, 1, t)))
        name = f"relative Fisher of {layer.path}"
        symmetry = second_moment(layer.inputs).symmetry * seeing_values(layer, f"the values of {layer.path}")
        if isinstance(layer.inputs.data, OneHot) and not isinstance(layer.space, Family):
            return Diagonal.of(layer.space, by_tokens(layer, weights), name, symmetry)
        return UnitWise.of(layer.space, moments(layer, weights), name, symmetry)

    def estimator(self, targets: Any = None) -> Estimator:
        return InputsOnly()


def in_common(layer: LayerObservation) -> InnerProduct:
    """All units alike: the coordinates of S times the moment of inputs."""
    return Euclidean(layer.S) * second_moment(layer.inputs)


def seeing_values(layer: LayerObservation, source: str) -> Symmetry:
    """A function of the numbers s, entry by entry, names their axes, scales and signs, and their origin."""
    named = (Structure(base, kind, source=source) for base in layer.S.bases for kind in ("frame", "origin"))
    return Symmetry.naming(*named)


def by_tokens(layer: LayerObservation, weights: Tensor) -> Tensor:
    """Σ w over the uses of each token: the diagonal, flat."""
    assert isinstance(layer.inputs.data, OneHot)
    total = weights.new_zeros(layer.A.dim, weights.shape[-1])
    total.index_add_(0, layer.inputs.data.indices.flatten(), weights.reshape(-1, weights.shape[-1]))
    return total.mT.flatten()


def moments(layer: LayerObservation, weights: Tensor) -> Tensor:
    """Σ w_o â âᵀ, (*units, d, d)."""
    *lead, d = layer.space.shape
    units = layer.space.dim // d
    if units * d * d > LARGEST:
        raise UnsupportedLayer(
            f"UnsupportedLayer in RelativeFisher: {layer.path!r} has {units} units with a matrix [{d}, {d}] each, "
            f"{units * d * d:.2g} numbers. Name it in shared=(...), whose units have one matrix in common."
        )
    m = layer.space.members if isinstance(layer.space, Family) else 1
    a = dense_inputs(layer.inputs)[:, 0].flatten(0, 1)
    a = a.movedim(1, 0) if isinstance(layer.A, Family) else a[None]  # (m, examples and sites, d)
    w = weights.reshape(a.shape[1], m, -1).permute(1, 2, 0)  # (m, o, examples and sites)
    parts = []
    for some in w.sqrt().split(max(1, BUDGET // (m * a.shape[1] * d)), 1):
        rows = times(a[:, None], some)
        parts.append(rows.mT @ rows)
    return torch.cat(parts, 1).reshape(*lead, d, d)
