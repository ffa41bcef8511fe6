"""Exact damped steps: the minimum of a quadratic model of the loss, plus λ times a named inner product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..elements import Vector
from ..errors import InvalidSetting
from ..inner_products import InnerProduct
from ..likelihoods import OutputMetric
from ..metrics import RiemannianMetric
from ..metrics.base import value_at
from ..natural_gradient import damping_metric
from ..networks import InputsOnly, Network
from ..solvers import Riccati
from ..solvers.recursion import factorize_chain
from .quadratic import Activations, LossModel, gauss_newton_model, newton_model

Damping = RiemannianMetric | InnerProduct | float


@dataclass(frozen=True, eq=False)
class Step:
    """The vector at which the damped model is least, and how far below the loss the model is there: `change`.

    change = -½ g(C + λR)⁻¹g, found by the sweep from the outputs to the inputs alone.
    """

    vector: Vector
    change: Tensor


def gauss_newton_step(
    network: Network,
    x: Any,
    y: Any,
    damping: Damping,
    output: OutputMetric | None = None,
    activations: Activations | None = None,
    penalty: Damping | None = None,
    solver: Riccati = Riccati(),
) -> Step:
    """-(JᵀHJ + Σ Jᵢᵀ hᵢ Jᵢ + λR)⁻¹ g, with H the Fisher of the likelihood or another output metric.

    `activations` are the hᵢ, inner products on the pre-activations of hidden layers (see `gauss_newton_model`).
    `penalty` is a cost ½ h(θ, θ) on the parameters, as of weight decay: it counts in g and in the curvature.
    """
    return minimum(network, gauss_newton_model(network, x, y, output, activations), x, damping, penalty, solver)


def newton_step(
    network: Network,
    x: Any,
    y: Any,
    damping: Damping,
    activations: Activations | None = None,
    penalty: Damping | None = None,
    solver: Riccati = Riccati(),
) -> Step:
    """-(Hessian of the loss + λR)⁻¹ g, exactly; `NotAnInnerProduct` names the stage where λ is too small for a minimum.

    Penalties and inner products on activations are those of `gauss_newton_step`.
    """
    model = newton_model(network, x, y, activations, solver.limit)
    return minimum(network, model, x, damping, penalty, solver)


def minimum(
    network: Network, model: LossModel, x: Any, damping: Damping, penalty: Damping | None, solver: Riccati
) -> Step:
    g = model.differential
    with network.observe(x, InputsOnly()) as seen:
        forms = [value_at(damping_metric(form, network), seen) for form in (damping, penalty) if form is not None]
    R = forms[0]
    if penalty is not None:
        here = Vector._of(network.tangent_space, network.parameters_point().data)
        g = g + forms[1].flat(here)
        R = R + forms[1]
    parts = R.summands()
    if parts is None:
        raise InvalidSetting(
            f"InvalidSetting in {model.kind.lower()} step: the damping is {R!r}, and going layer by layer needs a form "
            f"for each layer and nothing between them: direct_sum({{path: h}}), or λ * EuclideanMetric()."
        )
    factor = factorize_chain(model.stages.damped(parts), g.components, solver.limit)
    vector = Vector._of(network.tangent_space, factor.solve(-g.components))
    return Step(vector, factor.best(g.components))
