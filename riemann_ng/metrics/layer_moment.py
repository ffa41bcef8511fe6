"""The block of the exact Fisher of one layer, as a form that knows the layer's samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

from torch import Tensor

from ..errors import NotClosed
from ..inner_products import Gram, InnerProduct, second_moment
from ..inner_products.base import State
from ..inner_products.pencils import LARGEST
from ..networks.observation import LayerObservation
from ..samples import Chunked, Compact
from ..samples.measures import times
from ..symmetry import Symmetry
from .gradients import PerExample
from .layer_rows import LayerRows
from .per_example import inputs_of, weights_of


class LayerMoment(PerExample):
    """`second_moment(layer.gradients, joint=True)` is its definition: members of a family are in the sum together.

    Products, the kernel and the rank need no per-example gradient; a running average has a matrix.
    """

    lasting = True

    def __init__(self, layer: LayerObservation):
        self.space, self.layer, self.moment = layer.space, layer, second_moment(layer.gradients, joint=True)
        self._weigh(self.moment.sample.measure, *layer.cotangents.counts[:2])

    @cached_property
    def _layers(self) -> dict[str, LayerRows]:
        rows = LayerRows(self.layer)
        if rows.indices is None and not isinstance(self.weights, float):
            rows.a = inputs_of(self.layer)
        return {self.layer.path: rows}

    @property
    def layers(self) -> Mapping[str, LayerRows]:
        return self._layers

    @cached_property
    def slices(self) -> Mapping[str, slice]:
        return {self.layer.path: slice(0, self.space.dim)}

    def references(self, reference: InnerProduct) -> Mapping[str, InnerProduct] | None:
        return {self.layer.path: reference}

    def together(self) -> Iterator[dict[str, Tensor]]:
        sample, weights = self.layer.cotangents, weights_of(self.layer)
        if isinstance(sample.data, (Chunked, Compact)) and sample.data.axis == 1:
            pieces = sample._pieces_with(weights)
        else:
            pieces = iter([(sample.dense(), weights)])
        for g, w in pieces:
            if not isinstance(w, float):
                g = times(g, (w > 0).to(g))
            yield {self.layer.path: g.reshape(*g.shape[:3], *self.layer.S.shape)}

    def tensors(self) -> Iterator[Tensor]:
        inputs, cotangents = self.layer.inputs, self.layer.cotangents
        yield inputs.tensor()
        if isinstance(cotangents.data, Tensor):
            yield cotangents.data
        yield from (t for t in (cotangents.measure.given, cotangents.measure.mask) if t is not None)

    @property
    def symmetry(self) -> Symmetry:
        return self.moment.symmetry

    def expression(self) -> str:
        return self.moment.expression()

    # As a matrix, which is what an average of it has

    def dense_matrix(self, like: Tensor | None = None) -> Tensor:
        d = self.space.dim
        if d * d > LARGEST:
            raise NotClosed(
                f"NotClosed: {self.expression()} of layer {self.layer.path!r} would be a matrix [{d}, {d}]. Take a "
                f"metric that is smaller there, KFAC(), EKFAC() or Fisher(structure='diagonal'), or keep no average of "
                f"this one: decay=0."
            )
        return super().dense_matrix(like)

    def dense_blocks(self) -> Tensor:
        return self.dense_matrix()

    def _gram(self, name: str) -> Gram:
        return Gram.of(self.space, self.dense_matrix(), name, self.symmetry)

    def blended(self, other: InnerProduct, weight: float) -> InnerProduct:
        return self._gram(f"average of {self.expression()}").blended(other, weight)

    def state(self) -> State:
        """The samples are not kept in it: it comes back as its matrix."""
        return self._gram(self.expression()).state()
