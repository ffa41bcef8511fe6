"""K-FAC as a Riemannian metric.

On one layer it is g(D, D') = E[G(D(a), D'(a))]: the moment G of the cotangents, an inner product on S, pulled back
along evaluation at the inputs and averaged over them. As an expression it is the moment of cotangents times that of
inputs. The exact block of the Fisher averages the two together; what K-FAC leaves out is their dependence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..errors import InvalidSetting
from ..inner_products import InnerProduct, second_moment
from ..likelihoods import OutputMetric
from ..networks import Estimator, Exact
from ..networks.observation import LayerObservation
from .base import LayerwiseMetric
from .bias import apart

Sharing = Literal["expand", "reduce"]
Bias = Literal["joint", "separate"]


@dataclass(frozen=True, repr=False)
class KFAC(LayerwiseMetric):
    """The moment of cotangents times the moment of inputs, in every layer.

    `sharing` says how the sites of one example (pixels, tokens, uses of a shared weight) take part: "expand", each
    by itself, or "reduce", the mean of inputs and the sum of cotangents. `bias="separate"` makes weight and bias
    orthogonal, about the coordinate origin of 𝒜: its translations are lost, and the symmetry says so. `output` is the
    geometry of the outputs, by default the likelihood's Fisher. Any estimator will do; `observed` is the one that is
    used where nobody says otherwise.
    """

    sharing: Sharing = "expand"
    bias: Bias = "joint"
    output: OutputMetric | None = None
    observed: Estimator = Exact()

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("sharing", self.sharing, ("expand", "reduce")),
            ("bias", self.bias, ("joint", "separate")),
        ):
            if value not in choices:
                raise InvalidSetting(
                    f"InvalidSetting in {type(self).__name__}: {name}={value!r}, expected "
                    f"{' or '.join(map(repr, choices))}."
                )

    def at_layer(self, layer: LayerObservation) -> InnerProduct:
        G, A = self.factors(layer)
        return G * A

    def factors(self, layer: LayerObservation) -> tuple[InnerProduct, InnerProduct]:
        """The inner products on S and on Â*."""
        seen = layer.reduced() if self.sharing == "reduce" else layer
        A: InnerProduct = second_moment(seen.inputs)
        return second_moment(seen.cotangents), apart(A) if self.bias == "separate" else A

    def sees_moments_alone(self) -> bool:
        return self.sharing == "expand" and self.bias == "joint"

    def estimator(self, targets: Any = None) -> Estimator:
        return self.observed
