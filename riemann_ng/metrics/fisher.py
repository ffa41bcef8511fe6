"""The Fisher and Gauss-Newton metrics: the geometry of the outputs pulled back along the network.

F = E[Jᵀ H J] with H an inner product on the outputs: the likelihood's Fisher information for `Fisher`, any other for
`GaussNewton`. `structure` says what of it is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..errors import InvalidSetting, ObservationMismatch
from ..inner_products import BlockDiagonal, Gram, InnerProduct
from ..inner_products.pencils import LARGEST
from ..likelihoods import EuclideanOutput, Likelihood, OutputMetric
from ..networks import Empirical, Estimator, Exact, InputsOnly, Linearized
from ..networks.observation import LayerObservation, Observation
from . import structures
from .base import RiemannianMetric, named
from .gradient_moment import GradientMoment
from .outputs import check_output

Kept = Literal["full", "dense", "matrix-free", "dual", "block-diagonal", "unit-wise", "quasi-diagonal", "diagonal"]
LAYERWISE: dict[str, Callable[[LayerObservation], InnerProduct]] = {
    "block-diagonal": structures.block_diagonal,
    "unit-wise": structures.unit_wise,
    "quasi-diagonal": structures.quasi_diagonal,
    "diagonal": structures.diagonal,
}


class PulledBack(RiemannianMetric):
    """What the two share.

    | structure | what is kept |
    | --- | --- |
    | "full" | all of it as one lazy form, solved as `Auto` finds cheapest: by its matrix, its kernel, or products |
    | "dense" | all of it as a matrix |
    | "matrix-free" | its products alone; observed with `Linearized()` they cost about one pass each |
    | "dual" | all of it, solved through the kernel matrix of the examples' output directions |
    | "block-diagonal" | the block of every layer, with what stands between sites and between inputs and outputs |
    | "unit-wise" | of every layer the block of each output unit |
    | "quasi-diagonal" | of every unit the bias exact, and the diagonal beside it |
    | "diagonal" | the diagonal |
    """

    structure: Kept

    def _check_structure(self) -> None:
        if self.structure not in get_args(Kept):
            raise InvalidSetting(
                f"InvalidSetting in {type(self).__name__}: structure={self.structure!r}, expected one of "
                f"{', '.join(map(repr, get_args(Kept)))}."
            )

    def estimator(self, targets: Any = None) -> Estimator:
        return Linearized() if self.structure == "matrix-free" else Exact()

    def at(self, observation: Observation) -> InnerProduct:
        self._check(observation)
        if isinstance(observation.estimator, Linearized) and self.structure == "matrix-free":
            return observation.pulled_back
        with named(self):
            if self.structure in LAYERWISE:
                return self._layerwise(LAYERWISE[self.structure], observation)
            self._check_cotangents(observation)
            form = GradientMoment(observation, f"{self}", self.structure)
            if self.structure == "dense":
                if form.space.dim**2 > LARGEST:
                    raise InvalidSetting(
                        f"InvalidSetting in {self!r}: {form.space.dim} parameters make a matrix of "
                        f"{form.space.dim**2:.2g} numbers. Leave structure out: the same form without its matrix."
                    )
                return Gram.of(form.space, form.dense_matrix(), f"{self}", form.symmetry)
            return form

    def _layerwise(self, part: Callable[[LayerObservation], InnerProduct], observation: Observation) -> InnerProduct:
        parts = {}
        for path, layer in observation.layers.items():
            with named(self, path):
                parts[path] = part(layer)
        return BlockDiagonal(parts)

    def _check(self, observation: Observation) -> None:
        check_output(self, observation)
        if isinstance(observation.estimator, Empirical):
            raise ObservationMismatch(
                f"ObservationMismatch in {self!r}: the batch was observed with the data's own labels, {Empirical()}, "
                f"whose gradients have a covariance that is no Fisher. Observe with Exact() or MonteCarlo(...); "
                f"GradientCovariance() is what empirical labels give, and KFAC() takes any."
            )
        if isinstance(observation.estimator, InputsOnly) or (
            isinstance(observation.estimator, Linearized) and self.structure != "matrix-free"
        ):
            raise ObservationMismatch(
                f"ObservationMismatch in {self!r}: the batch was observed with {observation.estimator}, and of layer "
                f"{next(iter(observation.space.summands))!r}, as of every other, cotangents are needed. Observe with "
                f"{self.estimator()} or MonteCarlo(...)."
            )

    def _check_cotangents(self, observation: Observation) -> None:
        for path, layer in observation.layers.items():
            with named(self, path):
                _ = layer.cotangents


@dataclass(frozen=True, repr=False)
class Fisher(PulledBack):
    """The Fisher metric of the network's distribution. No label is needed, and those of the data are refused."""

    structure: Kept = "full"

    def __post_init__(self) -> None:
        self._check_structure()

    def _check(self, observation: Observation) -> None:
        super()._check(observation)
        if not isinstance(observation.output, Likelihood):
            raise ObservationMismatch(
                f"ObservationMismatch in {self!r}: the batch was observed with {observation.output!r} on the outputs, "
                f"which is no likelihood and has no Fisher information. Observe without output=..., or take "
                f"GaussNewton(output={observation.output!r})."
            )


@dataclass(frozen=True, repr=False)
class GaussNewton(PulledBack):
    """Any inner product on the outputs pulled back: Euclidean ones, the user's, a Riemannian metric's.

    A metric on the outputs that names coordinates there loses symmetries of the last layer and of nothing else.
    """

    output: OutputMetric = EuclideanOutput()
    structure: Kept = "full"

    def __post_init__(self) -> None:
        if not isinstance(self.output, OutputMetric):
            raise InvalidSetting(
                f"InvalidSetting in GaussNewton: output={self.output!r}, expected an output metric: EuclideanOutput(), "
                f"OutputForm(z -> matrices), or a likelihood, whose Gauss-Newton metric is Fisher()."
            )
        self._check_structure()
