"""Metrics that do not look at the data: references for damping, and steepest descent in the coordinates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import InvalidSetting, SpaceMismatch
from ..inner_products import Euclidean, InnerProduct, direct_sum, euclidean_on_translations
from ..inner_products.common import check_name
from ..networks import Estimator, InputsOnly
from ..networks.observation import Observation
from .base import RiemannianMetric


@dataclass(frozen=True, repr=False)
class EuclideanMetric(RiemannianMetric):
    """The coordinates of the parameters as an orthonormal basis: gradient descent, and the usual Tikhonov damping.

    It names a basis on every space and an origin on every 𝒜. `on="translations"` measures weights alone and leaves
    the biases out: a degenerate form, which damps without losing the translations of 𝒜.
    """

    on: Literal["parameters", "translations"] = "parameters"
    sees_outputs = False

    def __post_init__(self) -> None:
        if self.on not in ("parameters", "translations"):
            raise InvalidSetting(
                f"InvalidSetting in EuclideanMetric: on={self.on!r}, expected 'parameters' or 'translations'."
            )

    def at(self, observation: Observation) -> InnerProduct:
        space = observation.space
        return Euclidean(space) if self.on == "parameters" else euclidean_on_translations(space)

    def estimator(self, targets: Any = None) -> Estimator:
        return InputsOnly()

    def sees_moments_alone(self) -> bool:
        return True


@dataclass(frozen=True, repr=False, eq=False)
class FixedMetric(RiemannianMetric):
    """One inner product everywhere: the value of a metric at the start, say, or forms declared on the layers' spaces.

    `form` is an inner product on the tangent space, or a mapping of layers' paths to inner products. As a reference
    for damping it is *transported*: data, not a choice of coordinates, so that no symmetry is lost.
    """

    form: InnerProduct | Mapping[str, InnerProduct]
    name: str = "fixed"
    sees_outputs = False

    def __post_init__(self) -> None:
        check_name(self.name, "FixedMetric")
        if not isinstance(self.form, InnerProduct):
            object.__setattr__(self, "form", direct_sum(self.form))

    def at(self, observation: Observation) -> InnerProduct:
        assert isinstance(self.form, InnerProduct)
        if self.form.space != observation.space:
            raise SpaceMismatch(
                f"SpaceMismatch in {self!r}: it is one inner product, on {self.form.space}, and the network's tangent "
                f"space is {observation.space}. Make it of forms on this network's spaces; a twin's are carried there "
                f"by its transport."
            )
        return self.form

    def estimator(self, targets: Any = None) -> Estimator:
        return InputsOnly()

    def sees_moments_alone(self) -> bool:
        return True

    def expression(self) -> str:
        return f"FixedMetric({self.name})"
