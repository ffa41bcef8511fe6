"""What carries constants to a moved problem: twins by frames, and those of other changes, which are made here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ...inner_products import InnerProduct, Pullback
from ...likelihoods import Categorical, OutputMetric
from ...linear_maps import LinearMap
from ...networks import Network
from ...reparametrize import Twin


class Carrier(Protocol):
    """A problem's network and the one it came from, with what takes constants from there to here."""

    @property
    def original(self) -> Network: ...
    @property
    def network(self) -> Network: ...
    def transport(self, thing: InnerProduct) -> InnerProduct: ...
    def output_metric(self, metric: OutputMetric) -> OutputMetric: ...


class ParameterTwin:
    """A network with other parameters: `to_original` is the differential of θ = ψ(u), a matrix on flat parameters."""

    def __init__(self, original: Network, network: Network, jacobian: Callable[[], Tensor]):
        self.original, self.network, self._jacobian = original, network, jacobian

    @cached_property
    def to_original(self) -> LinearMap:
        here, there = self.network.tangent_space, self.original.tangent_space
        matrix = torch.linalg.inv(flat_parameters(self.original)) @ self._jacobian() @ flat_parameters(self.network)
        return LinearMap(here, there, matrix.contiguous(), "Dψ", natural=True)

    def transport(self, thing: InnerProduct) -> InnerProduct:
        return Pullback(self.to_original, thing)

    def output_metric(self, metric: OutputMetric) -> OutputMetric:
        return metric


class SplitTwin(ParameterTwin):
    """The same parameters by other names; `renamed` gives the name in the original."""

    def __init__(self, original: Network, network: Network, renamed: Callable[[str], str]):
        super().__init__(original, network, self._reorder)
        self._renamed = renamed

    def _reorder(self) -> Tensor:
        sizes = {name: p.numel() for name, p in self.original.parameters.items()}
        starts = dict(zip(sizes, torch.tensor([0, *sizes.values()]).cumsum(0)[:-1].tolist(), strict=True))
        names = [self._renamed(name) for name in self.network.parameters]
        order = torch.cat([torch.arange(sizes[name]) + starts[name] for name in names])
        return torch.eye(len(order), dtype=torch.float64)[:, order]


class RelabelledTwin:
    """A twin whose classes have other names: its likelihood enumerates them anew."""

    def __init__(self, twin: Twin, order: Tensor, x: object):
        likelihood = twin.original.likelihood
        assert isinstance(likelihood, Categorical)
        self._twin, self._order, self.original = twin, order, twin.original
        self.likelihood = self._renamed(likelihood)
        self.network = Network.from_torch(twin.module, self.likelihood, x, twin.name, twin.original.read)

    def _renamed(self, likelihood: Categorical) -> Categorical:
        weight = likelihood.weight
        return likelihood if weight is None else replace(likelihood, weight=weight[self._order])

    def transport(self, thing: InnerProduct) -> InnerProduct:
        return self._twin.transport(thing)

    def output_metric(self, metric: OutputMetric) -> OutputMetric:
        return self._renamed(metric) if isinstance(metric, Categorical) else self._twin.output_metric(metric)


def flat_parameters(network: Network) -> Tensor:
    """The matrix from components on the tangent space to trained parameters one after the other."""
    size = network.tangent_space.dim
    eye = torch.eye(size, dtype=torch.float64)
    blocks = {path: eye[:, where].reshape(size, *network.tangent_space[path].shape)
              for path, where in network.tangent_space.slices.items()}  # fmt: skip
    tensors = network.to_parameters(blocks)
    return torch.cat([t.reshape(size, -1) for t in tensors.values()], dim=1).mT


def renamed_parameters(paths: list[str]) -> Callable[[str], str]:
    """From names where the layers at these paths are in halves to names where they are whole."""

    def renamed(name: str) -> str:
        for path in paths:
            inside = f"{path}." if path else ""
            for half in ("layer.", "other."):
                if name.startswith(inside + half):
                    return inside + name.removeprefix(inside + half)
        return name

    return renamed
