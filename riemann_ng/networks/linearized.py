"""Observations that hold the linearized network instead of cotangents."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..inner_products import InnerProduct
from ..likelihoods import OutputMetric
from ..linear_maps import LinearMap
from ..solvers import Stages
from .estimators import Linearized
from .linearization import Linearization, linearized
from .masks import output_mask
from .observation import LayerObservation, Observation
from .observing import assembled

if TYPE_CHECKING:
    from .network import Network


class LinearizedObservation(Observation):
    """What products need. The samples of the layers, inputs alone, are made when they are asked for."""

    def __init__(
        self,
        network: Network,
        x: Any,
        linearization: Linearization,
        estimator: Linearized,
        output: OutputMetric,
        mask: Tensor | None,
    ):
        super().__init__(network.tangent_space, {}, linearization.z.detach(), estimator, output)
        self._linearization, self._network, self._x, self._mask = linearization, network, x, mask

    @property
    def layers(self) -> dict[str, LayerObservation]:
        if not self._layers:
            calls = self._linearization.calls
            none: list[list[Tensor | None]] = [[] for _ in calls]
            seen = assembled(
                self._network, self._x, self._linearization.z, calls, none, [], self.estimator, self.output, self._mask
            )
            self._layers.update(seen.layers)
        return self._layers

    @property
    def differential_map(self) -> LinearMap:
        return self._linearization.map

    @cached_property
    def pulled_back(self) -> InnerProduct:
        z = self._linearization.z
        there = None if self._mask is None else output_mask(self._mask, z, self.output)
        return self._linearization.form(self.output, there)

    def stages(self) -> Stages | None:
        return self.pulled_back.stages()

    def __exit__(self, *exception: object) -> None:
        self._layers.clear()
        del self._linearization


def observed_linearized(
    network: Network, x: Any, estimator: Linearized, output: OutputMetric | None, mask: Tensor | None
) -> Observation:
    output = network.likelihood if output is None else output
    return LinearizedObservation(network, x, linearized(network, x), estimator, output, mask)
