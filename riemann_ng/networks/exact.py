"""Observations with more exact directions than are worth stacking: every sample is made when it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from ..inner_products import InnerProduct
from ..samples import Chunked, Compact, Counts, Measure, Sample
from ..solvers import Stages
from ..spaces import Family, VectorSpace
from .directions import Directions
from .linearization import Linearization
from .observation import LayerObservation, Observation, contract, dense_inputs, in_shape
from .output_symmetry import marked
from .recompression import BUDGET, WIDEST, Recompression


class Propagated(Compact):
    """Cotangents that are made anew at every reading, a few directions at a time; their moment is made once."""

    axis = 1

    def __init__(
        self,
        counts: Counts,
        space: VectorSpace,
        chunks: Callable[[], Iterator[Tensor]],
        total: Callable[[], Tensor],
        like: Tensor,
        dear: bool,
    ):
        self.counts, self.members = counts, space.members if isinstance(space, Family) else 1
        self._chunks, self._total, self._like, self.dear = chunks, total, like, dear

    def tensor(self) -> Tensor:
        return self._like

    def chunks(self) -> Iterator[Tensor]:
        return self._chunks()

    def dense(self) -> Tensor:
        return torch.cat(list(self._chunks()), 1)

    def moments(self, weight: float) -> Tensor:
        total = self._total()
        return (total if total.ndim == 3 else total[None]) * weight


def exact_observation(
    seen: Observation, directions: Directions, masked: bool, linearization: Callable[[], Linearization]
) -> Observation:
    """What `InputsOnly` saw, with cotangents. Where padding is masked, directions are not recompressed."""
    recompression = Recompression(directions, recompress=not masked)
    layers = {path: exact_layer(layer, directions, recompression, masked) for path, layer in seen.layers.items()}
    for layer in layers.values():
        for sample in (layer.cotangents, layer.aligned):
            marked(sample, seen.output, seen.output_symmetry)
    return ExactObservation(seen, layers, directions, linearization)


def exact_layer(
    layer: LayerObservation, directions: Directions, recompression: Recompression, masked: bool
) -> LayerObservation:
    path, S, n = layer.path, layer.S, directions.examples
    measure, name = Measure.exact(layer.inputs.measure.mask), f"cotangents of {layer.path}"
    like = layer.inputs.tensor()[:0]
    if path not in recompression.draws:
        if path in directions.names:
            return layer.returning(one_by_one(path, S, directions, 1, measure, like))
        # not used in this forward: the Fisher is zero there
        return layer.returning(Sample(S.dual, like.new_zeros(n, 1, 1, *S.shape), measure, name))
    counts = (n, directions.count, layer.sites)
    if S.shape[-1] > WIDEST and not recompression.rotated(path):
        return layer.returning(one_by_one(path, S, directions, layer.sites, measure, like))
    every = Propagated(
        counts, S, partial(honest, directions, path), partial(recompression.moment, path), like, dear=not masked
    )
    aligned = Sample(S.dual, every, measure, name)
    if not recompression.rotated(path):
        return layer.returning(aligned)
    few = Propagated(
        (n, recompression.draws[path], layer.sites),
        S,
        partial(recompression.cotangents, path),
        partial(recompression.moment, path),
        like,
        dear=False,
    )
    return layer.returning(Sample(S.dual, few, measure, name), aligned)


def one_by_one(path: str, S: VectorSpace, directions: Directions, sites: int, measure: Measure, like: Tensor) -> Sample:
    """All directions at one block, with no second moment ready."""
    counts = (directions.examples, directions.count, sites)
    return Sample(S.dual, Chunked(partial(honest, directions, path), counts, 1, like), measure, f"cotangents of {path}")


def honest(directions: Directions, path: str) -> Iterator[Tensor]:
    """The cotangents of one block, none of them rotated."""
    for found in directions.of([path]):
        yield found[path]


class ExactObservation(Observation):
    """An observation that keeps the graph of its forward pass, and sends directions through it when they are asked for.

    Its per-example gradients are of the directions themselves, the same in every layer: the Fisher across layers.
    """

    def __init__(
        self,
        seen: Observation,
        layers: dict[str, LayerObservation],
        directions: Directions,
        linearization: Callable[[], Linearization],
    ):
        super().__init__(seen.space, layers, seen.outputs, seen.estimator, seen.output, seen.output_symmetry)
        self._directions, self._linearization = directions, linearization

    @property
    def products(self) -> InnerProduct:
        return self._linearization().form(self.output, self._directions.there)

    def stages(self) -> Stages | None:
        return self.products.stages()

    def together(self) -> Iterator[dict[str, Tensor]]:
        for found in self._directions.of(list(self.layers)):
            yield {path: in_shape(g, self.layers[path].S) for path, g in found.items()}

    @property
    def gradients(self) -> Sample:
        directions, layers = self._directions, self.layers
        n, k = directions.examples, directions.count
        size = min(directions.chunk, max(1, BUDGET // (n * self.space.dim)))

        def chunks() -> Iterator[Tensor]:
            inputs = {path: dense_inputs(layer.inputs) for path, layer in layers.items()}
            for found in directions.of(list(layers), size):
                parts = []
                for path, layer in layers.items():
                    g = found[path] if path in found else inputs[path].new_zeros(n, 1, 1, *layer.S.shape)
                    g = g.reshape(*g.shape[:3], *layer.S.shape)
                    part = contract(g, inputs[path]).reshape(n, g.shape[1], 1, layer.space.dim)
                    parts.append(part)
                width = max(part.shape[1] for part in parts)
                yield torch.cat([part.expand(n, width, 1, part.shape[-1]) for part in parts], -1)

        first = next(iter(layers.values())).inputs.tensor()
        gradients = Sample(self.space.dual, Chunked(chunks, (n, k, 1), 1, first[:0]), Measure.exact(), "gradients")
        return marked(gradients, self.output, self.output_symmetry)

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        del self._directions, self._linearization
