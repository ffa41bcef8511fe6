"""The exact Fisher of a batch as a form that knows the samples of all layers.

`second_moment(observation.gradients)` is its definition: F = (1/N) Σ ψ ⊗ ψ over examples n and output directions c,
with ψ = ⊕ over layers of Σ over sites g ⊗ a. Here the ψ are never written down where that can be avoided: F = BᵀB with
(B v)_nc = N^-½ Σ g · V a. Sites, uses of a tied weight, members of a family and layers are all in the sum, with every
term between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from ..errors import NotClosed
from ..inner_products import InnerProduct, LowRank
from ..inner_products.base import State
from ..networks.observation import Observation
from ..solvers import Stages
from ..spaces import DirectSum
from ..symmetry import Symmetry
from .gradients import PerExample
from .layer_rows import LayerRows


class GradientMoment(PerExample):
    """The second moment of gradients across layers. `solved` says by which means: see `Fisher`."""

    space: DirectSum

    def __init__(self, observation: Observation, name: str = "F", solved: str = "full"):
        self.space, self.name, self.solved = observation.space, name, solved
        self.by_dual_alone = solved == "dual"
        gradients = observation.gradients
        self._weigh(gradients.measure, *gradients.counts[:2])
        self._layers = {path: LayerRows(layer) for path, layer in observation.layers.items()}
        self._observation, self._symmetry = observation, observation.output_symmetry

    @property
    def layers(self) -> Mapping[str, LayerRows]:
        return self._layers

    @property
    def slices(self) -> Mapping[str, slice]:
        return self.space.slices

    def references(self, reference: InnerProduct) -> Mapping[str, InnerProduct] | None:
        return reference.summands()

    def together(self) -> Iterator[dict[str, Tensor]]:
        return self._observation.together()

    @property
    def products(self) -> InnerProduct | None:
        return self._observation.products

    @property
    def symmetry(self) -> Symmetry:
        return self._symmetry

    def stages(self) -> Stages | None:
        return self._observation.stages()

    def expression(self) -> str:
        return self.name

    def blended(self, other: InnerProduct, weight: float) -> InnerProduct:
        raise NotClosed(
            f"NotClosed in blend: {self.expression()} holds the samples of one batch, and an average would hold those "
            f"of all. Average a metric with a matrix for each layer, such as structure='block-diagonal' or KFAC(), or "
            f"one with structure='dense'; or keep none: decay=0."
        )

    def state(self) -> State:
        """The samples are not kept in it: the form comes back as the moment of its rows."""
        rows = self.rows()
        if rows is None:
            raise NotClosed(
                f"NotClosed in state: {self.expression()} has {self.count} rows of dimension {self.space.dim}, too "
                f"many to be stored. Store the parameters and the batch, and observe again."
            )
        plain = LowRank.restore(self.space, {"rows": rows, "name": self.name, "symmetry": self.symmetry.to_state()})
        return plain.state()
