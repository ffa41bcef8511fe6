"""What a metric sees of a batch: typed samples, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..errors import ObservationMismatch
from ..inner_products import InnerProduct
from ..likelihoods import OutputMetric
from ..linear_maps import LinearMap
from ..samples import (
    Chunked,
    Compact,
    Counts,
    Folded,
    OneHot,
    Sample,
    WithOne,
    all_of,
    folded,
    grams,
    sum_of_squares,
    whole_folded,
)
from ..solvers import Stages
from ..spaces import DirectSum, Family, VectorSpace
from ..symmetry import Symmetry
from .estimators import Estimator


class LayerObservation:
    """The samples of one block: the inputs its parameters were evaluated at, the cotangents that came back.

    `inputs` is a sample of `A`, `cotangents` one of `S.dual`, and `gradients` of `space.dual`: per example and draw the
    sum over sites of cotangent ⊗ input. `cotangents` may be fewer draws with the same second moments, rotated for this
    layer alone (see `recompression.py`); draw k of `aligned` is the same direction in every layer.
    """

    def __init__(
        self,
        path: str,
        A: VectorSpace,
        S: VectorSpace,
        inputs: Sample,
        cotangents: Sample | None,
        aligned: Sample | None = None,
        map_of: Callable[[], Tensor] | None = None,
        estimator: Estimator | None = None,
    ):
        self.path, self.A, self.S, self.space = path, A, S, S * A.dual
        self._inputs, self._cotangents, self._aligned, self._map_of = inputs, cotangents, aligned, map_of
        self._estimator = estimator

    @property
    def inputs(self) -> Sample:
        return self._inputs

    @property
    def cotangents(self) -> Sample:
        if self._cotangents is None:
            raise ObservationMismatch(
                f"ObservationMismatch: {self.path!r} was observed with {self._estimator or 'its inputs alone'}, and "
                f"cotangents are asked for. Observe with Exact(), MonteCarlo(...) or Empirical(targets)."
            )
        return self._cotangents

    @property
    def aligned(self) -> Sample:
        """The cotangents to pair with those of other layers, draw by draw."""
        return self.cotangents if self._aligned is None else self._aligned

    @property
    def values(self) -> Tensor:
        """What the layer gave at its inputs, (examples, 1, sites, *S.shape): points of 𝒮, by their coordinates.

        Its own parameters at the inputs; read them before these move.
        """
        if self._map_of is None:
            raise ObservationMismatch(
                f"ObservationMismatch: the values of {self.path!r} are asked for, and of this layer only samples are "
                f"known, or only a part of its parameters is trained. Thaw the rest, or use a metric without values."
            )
        D, m = self._map_of(), "m" if self.space.levels else ""
        if isinstance(self.inputs.data, OneHot) and not m:
            return D.mT[self.inputs.data.indices]
        a = dense_inputs(self.inputs)
        return torch.einsum(f"{m}oi,nkt{m if self.A.levels else ''}i->nkt{m}o", D.to(a), a)

    @property
    def sites(self) -> int:
        return self._inputs.counts[2]

    @property
    def gradients(self) -> Sample:
        """Per-example covectors on the block's own space; made example by example when they are read."""
        inputs, cotangents = self.inputs, self.cotangents
        n, k, _ = cotangents.counts
        lazy = isinstance(cotangents.data, (Chunked, Compact)) and cotangents.data.axis == 1

        def draws() -> Iterator[Tensor]:
            a = dense_inputs(inputs)
            for chunk, _ in cotangents._pieces():
                for g in chunk.reshape(*chunk.shape[:3], *self.S.shape).split(1, 1):
                    yield contract(g, a).reshape(n, 1, 1, *self.space.shape)

        def chunks() -> Iterator[Tensor]:
            a, g = dense_inputs(inputs), cotangents.dense()
            g = g.reshape(*g.shape[:3], *self.S.shape)
            for i in range(n):
                yield contract(g[i : i + 1], a[i : i + 1]).reshape(1, k, 1, *self.space.shape)

        data = Chunked(draws, (n, k, 1), 1, inputs.tensor()[:0]) if lazy else Chunked(chunks, (n, k, 1))
        gradients = Sample(self.space.dual, data, cotangents.measure.reduced((n, k, 1)), "gradients")
        gradients.through = cotangents.through
        return gradients

    def returning(self, cotangents: Sample | None, aligned: Sample | None = None) -> LayerObservation:
        """The same layer with other cotangents."""
        return self._with(self._inputs, cotangents, aligned)

    def _with(self, inputs: Sample, cotangents: Sample | None, aligned: Sample | None) -> LayerObservation:
        known = self._map_of, self._estimator
        return LayerObservation(self.path, self.A, self.S, inputs, cotangents, aligned, *known)

    def reduced(self) -> LayerObservation:
        """One site per example: the mean of the inputs, the sum of the cotangents."""
        cotangents = None if self._cotangents is None else self._cotangents.reduced()
        aligned = None if self._aligned is None else self._aligned.reduced()
        return self._with(self._inputs.reduced(), cotangents, aligned)

    def __repr__(self) -> str:
        return f"LayerObservation({self.path!r}, {self.inputs!r}, {self._cotangents!r})"


def observation_folded(observation: Observation) -> Observation:
    """The same, with samples by their second moments where these are smaller; masked ones as they are."""
    layers = {
        path: layer._with(sample_folded(layer.inputs), None if back is None else sample_folded(back), None)
        for path, layer in observation.layers.items()
        for back in (layer._cotangents,)
    }
    return Observation(
        observation.space, layers, observation.outputs, observation.estimator, observation.output,
        observation.output_symmetry,
    )  # fmt: skip


def sample_folded(s: Sample) -> Sample:
    weight = s.measure.weights(s.counts)
    if not isinstance(weight, float) or isinstance(s.data, Chunked):
        return s
    data = s.data.reshape(*s.counts, *s.space.shape) if isinstance(s.data, Tensor) else s.data
    known = folded(data, s.space, weight)
    if not isinstance(known, Folded):
        return s
    mine = Sample(s.space, known, s.measure, s.name)
    mine.through = s.through
    return mine


def dense_inputs(inputs: Sample) -> Tensor:
    """(examples, 1, sites, *shape)."""
    x = inputs.dense()
    return x.reshape(*x.shape[:3], *inputs.space.shape)


def in_shape(x: Tensor, space: VectorSpace) -> Tensor:
    """Elements (examples, draws, sites, *) in the shape of their space."""
    return x.reshape(*x.shape[:3], *space.shape)


def contract(g: Tensor, a: Tensor) -> Tensor:
    """Σ over sites of g ⊗ a: (n, k, t, [m], o) with (n, 1, t, [m], i) to (n, k, [m], o, i)."""
    m = "m" if g.ndim == 5 and a.ndim == 5 else ""
    return torch.einsum(f"nkt{m}o,nt{m}i->nk{m}oi", g, a[:, 0])


class Observation:
    """A batch as a network saw it: the outputs, and for every block its samples. A mapping from paths to layers.

    It says how it was made: `estimator`, and `output`, the inner product on the outputs.
    """

    def __init__(
        self,
        space: DirectSum,
        layers: Mapping[str, LayerObservation],
        outputs: Tensor,
        estimator: Estimator,
        output: OutputMetric,
        output_symmetry: Symmetry | None = None,
    ):
        self.space, self._layers, self.outputs = space, dict(layers), outputs
        self.estimator, self.output = estimator, output
        self.output_symmetry = Symmetry.natural() if output_symmetry is None else output_symmetry
        self.pulled_back_again: Callable[[], InnerProduct] | None = None
        """What `pulled_back` would be, by a forward pass of its own, where the batch is still known."""

    @property
    def layers(self) -> dict[str, LayerObservation]:
        """The samples of every block, by path."""
        return self._layers

    def __getitem__(self, path: str) -> LayerObservation:
        if path not in self.layers:
            self.space[path]
        return self.layers[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def examples(self) -> int:
        return self.outputs.shape[0]

    @property
    def gradients(self) -> Sample:
        """Per-example covectors on the whole tangent space: their second moment is the Fisher, across layers too."""
        parts = [layer.gradients for layer in self.layers.values()]
        n, k, _ = parts[0].counts

        def chunks() -> Iterator[Tensor]:
            for pieces in zip(*(part._pieces() for part in parts), strict=True):
                yield torch.cat([piece for piece, _ in pieces], dim=-1)

        gradients = Sample(self.space.dual, Chunked(chunks, (n, k, 1)), parts[0].measure, "gradients")
        gradients.through = parts[0].through
        return gradients

    def together(self) -> Iterator[dict[str, Tensor]]:
        """The cotangents (examples, draws, sites, *shape) of all layers, the same draws in each, some at a time.

        A layer that the batch did not use may be missing.
        """
        yield {path: in_shape(layer.aligned.dense(), layer.S) for path, layer in self.layers.items()}

    @property
    def products(self) -> InnerProduct | None:
        """The second moment of `gradients` as a form that knows its products without reading them, if there is one."""
        return None

    @property
    def differential_map(self) -> LinearMap:
        """J, from the tangent space to the outputs of the batch, flat; only of `Linearized()`."""
        raise self._not_linearized("differential_map")

    @property
    def pulled_back(self) -> InnerProduct:
        """The output metric, averaged over the examples, pulled back along J; only of `Linearized()`."""
        raise self._not_linearized("pulled_back")

    def stages(self) -> Stages | None:
        """The stages between the inputs and the outputs with the output metric at the end; None where none are known.

        Raises `UnsupportedLayer` of a network that is no chain.
        """
        return None if self.pulled_back_again is None else self.pulled_back_again().stages()

    def _not_linearized(self, what: str) -> ObservationMismatch:
        return ObservationMismatch(
            f"ObservationMismatch in .{what}: the batch was observed with {self.estimator}, which keeps samples and no "
            f"differential of the network. Observe with Linearized(), or take network.linearize(x)."
        )

    def __enter__(self) -> Observation:
        return self

    def __exit__(self, *exception: object) -> None:
        self._layers.clear()
        self.pulled_back_again = None

    def __repr__(self) -> str:
        made = f"{self.estimator}, output={self.output}"
        return f"Observation({len(self.space.parts)} layers, {self.examples} examples, {made})"


def joined(samples: Sequence[Tensor | OneHot | Compact], space: VectorSpace) -> Tensor | OneHot | Compact:
    """The sites of several calls, one after the other."""
    first = samples[0]
    if len(samples) == 1:
        return first
    if any(isinstance(s, Folded) for s in samples):
        parts = [whole_folded(s, space) for s in samples if not isinstance(s, OneHot)]
        n, k = parts[0].counts[:2]
        return all_of(parts, (n, k, sum(part.counts[2] for part in parts)))
    if isinstance(first, OneHot):
        return OneHot(torch.cat([s.indices for s in samples if isinstance(s, OneHot)], dim=2), first.dtype)
    if isinstance(first, WithOne):
        return WithOne(torch.cat([s.points for s in samples if isinstance(s, WithOne)], dim=2))
    return torch.cat([s.dense() if isinstance(s, Compact) else s for s in samples if not isinstance(s, OneHot)], dim=2)


class Draws(Compact):
    """Cotangents (examples, sites, *shape) of several draws, not stacked."""

    def __init__(self, draws: list[Tensor], members: int):
        self.draws, self.members = draws, members
        n, sites = draws[0].shape[:2]
        self.counts: Counts = (n, len(draws), sites)

    def tensor(self) -> Tensor:
        return self.draws[0]

    def dense(self) -> Tensor:
        return torch.stack(self.draws, 1)

    def squares(self) -> Tensor:
        return torch.stack([sum_of_squares(draw) for draw in self.draws]).sum()

    def moments(self, weight: float) -> Tensor:
        draws = (draw.reshape(*draw.shape[:2], self.members, -1) for draw in self.draws)
        return torch.stack([grams(draw, weight) for draw in draws]).sum(0)


def in_draws(cotangents: list[Tensor], space: VectorSpace) -> Tensor | Compact:
    """The cotangents (n, sites, *shape) of each draw together, (n, draws, sites, *shape)."""
    first, members = cotangents[0], space.members if isinstance(space, Family) else 1
    if len(cotangents) == 1:
        return first.unsqueeze(1)
    if first.shape[:2].numel() < space.dim // members:  # a product with few rows costs most in writing the result
        return torch.stack(cotangents, 1)
    return Draws(cotangents, members)
