"""K-FAC with what stands between neighbouring layers: the block-tridiagonal inverse of Martens & Grosse (2015).

K-FAC's approximation of the Fisher has blocks between layers too, E[g g'ᵀ] ⊗ E[a a'ᵀ]. Kept between neighbours alone,
and extended so that the *inverse* couples neighbours alone, they make a Gaussian chain: `inner_products.chain`. Moments
across layers are data as those within, so the metric keeps every affine frame.

Next to a linear layer one layer explains all of the other, and the chain is singular: damp its factors, by a reference
that is data where frames are to be kept. What is damped are the forms on the layers, before anything is regressed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from ..errors import UnsupportedLayer
from ..inner_products import InnerProduct, Kronecker, second_moment
from ..inner_products.chain import Chain, Link
from ..likelihoods import OutputMetric
from ..networks import Estimator, Exact
from ..networks.observation import LayerObservation, Observation, dense_inputs
from ..samples import OneHot
from ..samples.measures import times
from ..spaces import Family
from .base import RiemannianMetric, named
from .kfac import Sharing
from .one_sided import check_sharing
from .outputs import check_output


@dataclass(frozen=True, repr=False)
class BlockTridiagonalKFAC(RiemannianMetric):
    """K-FAC's factors in every layer, linked with those of the next: an inverse that is block-tridiagonal.

    Layers follow each other in the order of the network. Linked are neighbours that are affine maps with dense inputs:
    a family of maps, a vocabulary or a parameter without a layer stands by itself, and the chain breaks there. Sites
    of neighbours are paired one by one; where their numbers differ, `sharing="reduce"` is needed. `output` and
    `observed` are as in `KFAC`. Damp it by `.damp_factors(λ, reference)`.
    """

    sharing: Sharing = "expand"
    output: OutputMetric | None = None
    observed: Estimator = Exact()

    def __post_init__(self) -> None:
        check_sharing(self, self.sharing)

    def at(self, observation: Observation) -> InnerProduct:
        check_output(self, observation)
        layers = dict(observation.layers)
        if self.sharing == "reduce":
            layers = {path: layer.reduced() for path, layer in layers.items()}
        parts: dict[str, InnerProduct] = {}
        for path, layer in layers.items():
            with named(self, path):
                parts[path] = Kronecker([second_moment(layer.cotangents), second_moment(layer.inputs)])
        linked = {path for path, layer in layers.items() if linkable(layer)}
        pairs = [(path, after) for path, after in pairwise(layers) if {path, after} <= linked]
        for path, after in pairs:
            with named(self, path):
                check_sites(layers[path], layers[after])
        G = self._between(observation, layers, pairs)
        A = {path: between_inputs(layers[path], layers[after]) for path, after in pairs}
        return Chain(parts, {path: Link(G[path], A[path]) for path, _ in pairs})

    def _between(
        self, observation: Observation, layers: dict[str, LayerObservation], pairs: list[tuple[str, str]]
    ) -> dict[str, Tensor]:
        """Σ w g g'ᵀ, with the same directions in both layers."""
        total: dict[str, Tensor] = {}
        for found in self._together(observation, layers):
            for path, after in pairs:
                g, h = found[path], found[after]
                w = layers[path].aligned.measure.weights((g.shape[0], layers[path].aligned.counts[1], g.shape[2]))
                w = w if isinstance(w, float) or w.shape[1] == 1 else w[:, : g.shape[1]]
                part = weighted(g, w).flatten(0, 2).mT @ weighted(h, w).flatten(0, 2)
                total[path] = part if path not in total else total[path].add_(part)
        return total

    def _together(self, observation: Observation, layers: dict[str, LayerObservation]) -> Iterator[dict[str, Tensor]]:
        """The cotangents of all layers (examples, draws, sites, dim); zeros of one that was not used."""
        for found in observation.together():
            n, k = max((g.shape[:2] for g in found.values()), key=lambda shape: shape[1])
            out = {}
            for path, layer in layers.items():
                if not linkable(layer):
                    continue
                g = found.get(path)
                if g is None or g.shape[1] != k:
                    g = layer.inputs.tensor().new_zeros(n, k, observation.layers[path].sites, layer.S.dim)
                g = g.reshape(*g.shape[:3], -1)
                if self.sharing == "reduce":
                    measure = observation.layers[path].aligned.measure
                    g = times(g, measure.share_of_sites((g.shape[0], g.shape[1], g.shape[2])))
                    g = g.sum(2, keepdim=True)
                out[path] = g
            yield out

    def estimator(self, targets: Any = None) -> Estimator:
        return self.observed


def linkable(layer: LayerObservation) -> bool:
    """Whether it is one affine map of dense inputs."""
    return bool(layer.A.bases) and not isinstance(layer.space, Family) and not isinstance(layer.inputs.data, OneHot)


def check_sites(layer: LayerObservation, after: LayerObservation) -> None:
    if layer.sites != after.sites:
        raise UnsupportedLayer(
            f"UnsupportedLayer in BlockTridiagonalKFAC: {layer.path!r} has {layer.sites} sites and {after.path!r}, "
            f"which follows it, {after.sites}, so there is no telling which belong together. Take sharing='reduce', "
            f"one site for each example."
        )


def weighted(x: Tensor, w: Tensor | float) -> Tensor:
    """Times the root of the weight: then padding is absent on both sides."""
    return times(x, w**0.5 if isinstance(w, float) else w.sqrt())


def between_inputs(layer: LayerObservation, after: LayerObservation) -> Tensor:
    """E[a a'ᵀ] over examples and sites."""
    a, b = dense_inputs(layer.inputs)[:, 0], dense_inputs(after.inputs)[:, 0]
    n, t = a.shape[:2]
    w = layer.inputs.measure.weights((n, 1, t))
    w = w if isinstance(w, float) else w[:, 0]
    return weighted(a, w).flatten(0, 1).mT @ weighted(b, w).flatten(0, 1)
