"""What a layerwise metric does with parameters that have no layer: bare ones, tied ones, those of opaque modules.

They are constant maps of the one-point space, known by their per-example gradients; a metric that keeps a matrix for
every layer would keep one of all their numbers squared.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ..errors import InvalidSetting
from ..inner_products import BlockDiagonal, InnerProduct, second_moment
from ..metrics import EKFAC, LayerwiseMetric, RiemannianMetric
from ..metrics.base import FactorsDamped, Scaled, Sum, value_at
from ..networks import Estimator
from ..networks.coverage import Coverage
from ..networks.observation import LayerObservation, Observation
from ..spaces import DirectSum


@dataclass(frozen=True)
class ConstantBlocks:
    """A full block for a parameter without a layer up to so many numbers, and above that the block's diagonal.

    The diagonal names the coordinates of that parameter. Per-example gradients are needed in any case: where they
    would exhaust the memory, the parameter is named in an error, with what can be done.
    """

    full: int = 1024

    def __post_init__(self) -> None:
        if isinstance(self.full, bool) or not isinstance(self.full, int) or self.full < 0:
            raise InvalidSetting(
                f"InvalidSetting in ConstantBlocks: full={self.full!r}, expected a number of parameters, 0 or more."
            )

    def applied(self, metric: RiemannianMetric) -> RiemannianMetric:
        """The metric with this rule in each of its layerwise terms; any other term has no blocks of its own."""
        if isinstance(metric, Sum):
            return Sum(tuple(self.applied(term) for term in metric.terms))
        if isinstance(metric, (Scaled, FactorsDamped)):
            return dataclasses.replace(metric, of=self.applied(metric.of))
        return DiagonalAbove(metric, self.full) if isinstance(metric, (LayerwiseMetric, EKFAC)) else metric

    def said(self, coverage: Coverage) -> Coverage:
        """A coverage that says of every constant block what a layerwise metric keeps of it."""
        rows = []
        for row in coverage.rows:
            if row.block == "constant":
                kept = "its diagonal" if row.size > self.full else "its full block"
                row = dataclasses.replace(row, assumed="; ".join(filter(None, [row.assumed, f"metric: {kept}"])))
            rows.append(row)
        return dataclasses.replace(coverage, rows=tuple(rows))


@dataclass(frozen=True, repr=False)
class DiagonalAbove(RiemannianMetric):
    """A layerwise metric, and the diagonal of the Fisher on every constant block of more than `full` numbers."""

    of: RiemannianMetric
    full: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", self.of.output)
        object.__setattr__(self, "sees_outputs", self.of.sees_outputs)

    def at(self, observation: Observation) -> InnerProduct:
        large = self._large(observation)
        if not large:
            return value_at(self.of, observation)
        rest = without(observation, large)
        return self._joined(value_at(self.of, rest) if len(rest) else None, observation, large)

    def refreshed(self, previous: InnerProduct, observation: Observation) -> InnerProduct:
        large = self._large(observation)
        if not large:
            return self.of.refreshed(previous, observation)
        rest, before = without(observation, large), previous.summands() or {}
        kept = BlockDiagonal({path: g for path, g in before.items() if path not in large}) if len(rest) else None
        return self._joined(None if kept is None else self.of.refreshed(kept, rest), observation, large)

    def estimator(self, targets: object = None) -> Estimator:
        return self.of.estimator(targets)

    def sees_moments_alone(self) -> bool:
        return self.of.sees_moments_alone()

    def expression(self) -> str:
        return self.of.expression()

    def _large(self, observation: Observation) -> set[str]:
        layers = observation.layers.items()
        return {path for path, layer in layers if is_constant(layer) and layer.space.dim > self.full}

    def _joined(self, g: InnerProduct | None, observation: Observation, large: set[str]) -> InnerProduct:
        small = {} if g is None else g.summands()
        assert small is not None
        return BlockDiagonal(
            {path: diagonal(layer) if path in large else small[path] for path, layer in observation.layers.items()}
        )


def is_constant(layer: LayerObservation) -> bool:
    """Whether it is a constant map: its only input is the one point, whose hull is ℝ."""
    return layer.A.dim == 1 and not layer.A.bases


def diagonal(layer: LayerObservation) -> InnerProduct:
    return second_moment(layer.cotangents).diagonal() * second_moment(layer.inputs)


def without(observation: Observation, paths: set[str]) -> Observation:
    """The observation of the other layers."""
    layers = {path: layer for path, layer in observation.layers.items() if path not in paths}
    space = DirectSum({path: layer.space for path, layer in layers.items()}) if layers else observation.space
    return Observation(
        space, layers, observation.outputs, observation.estimator, observation.output, observation.output_symmetry
    )
