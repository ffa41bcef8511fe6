"""The Christoffel symbols of a metric on a network's parameters, of one vector twice, without a derivative of a matrix.

For g = E[Jᵀ H J], the mean over examples of an output metric pulled back along the network z(θ),

    Γ_♭(v, v) = (∂_v g) v - ½ grad g(v, v) = E[Jᵀ (H D²z(v, v) + Γ^H_♭(J v, J v))]

with Γ^H the connection of the output metric. D²z(v, v) is a forward pass with two derivatives carried along, Jᵀ one
pass back. The symbols are those of the parameters as coordinates: a covector under affine changes of them alone.
Inner products that are the same everywhere have none, and symbols of a sum are the sum of symbols.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..elements import Covector, Vector
from ..errors import InvalidSetting, NonFinite
from ..likelihoods import OutputMetric
from ..metrics import EuclideanMetric, FixedMetric, RiemannianMetric
from ..metrics.base import Scaled, Sum
from ..metrics.fisher import PulledBack
from ..networks import Network
from ..networks.masks import check_mask, output_mask
from ..networks.outputs import examples_in
from ..networks.precision import at_least_single
from .numerical import numerical_christoffel
from .outputs import output_christoffel
from .second_order import along, pulled

CALL = "christoffel"
WHOLE = ("full", "dense", "matrix-free", "dual")
"""Structures that keep all of E[Jᵀ H J]."""


def christoffel(
    network: Network,
    metric: RiemannianMetric,
    x: Any,
    v: Vector,
    mask: Tensor | None = None,
    numerical: bool = False,
) -> Covector:
    """Γ_♭(v, v) of a metric at the network's parameters, as it is observed on a batch.

    Known of `Fisher()` and `GaussNewton(...)` with all of their blocks, of metrics that are one inner product
    everywhere, and of sums of these. Of any other metric it is found by `numerical` differentiation, which takes
    four observations for every parameter. `mask` is that of `observe`.
    """
    output = network.likelihood if metric.output is None else metric.output
    return of_metric(network, metric, output, x, v, mask, numerical)


def of_metric(
    network: Network,
    metric: RiemannianMetric,
    output: OutputMetric,
    x: Any,
    v: Vector,
    mask: Tensor | None,
    numerical: bool,
) -> Covector:
    if isinstance(metric, Sum):
        total, *rest = (of_metric(network, term, output, x, v, mask, numerical) for term in metric.terms)
        for part in rest:
            total = total + part
        return total
    if isinstance(metric, Scaled):
        return metric.scalar * of_metric(network, metric.of, output, x, v, mask, numerical)
    if isinstance(metric, (EuclideanMetric, FixedMetric)):
        network._moves(CALL, v)
        return Covector(network.tangent_space, torch.zeros_like(v.data))
    if isinstance(metric, PulledBack) and metric.structure in WHOLE:
        return pulled_back_christoffel(network, output, x, v, mask)
    if numerical:
        return numerical_christoffel(network, metric, x, v, output, mask)
    raise InvalidSetting(
        f"InvalidSetting in {CALL}: the derivative of {metric!r} along the parameters is not known. midpoint_step "
        f"needs none; of a small network numerical=True finds it by four observations for every parameter."
    )


def pulled_back_christoffel(
    network: Network, output: OutputMetric, x: Any, v: Vector, mask: Tensor | None = None
) -> Covector:
    """Γ_♭(v, v) of the mean over examples of an output metric, pulled back along the network."""
    n = examples_in(x)
    if network._verified_on < min(n, 2):
        network.verify(x)
    points = {name: p.detach() for name, p in network.parameters.items()}
    moves = {name: t.detach().to(points[name].dtype) for name, t in network._moves(CALL, v).items()}
    if mask is not None:
        check_mask(mask, n)
    z, first, second = along(network, x, points, moves)
    w = force(output, z, first, second, mask) / n
    if not bool(w.isfinite().all()):
        raise NonFinite(
            f"NonFinite in {CALL}: the second derivative of the outputs of {network.name} along the vector holds NaN "
            f"or infinity. Activations with kinks of infinite curvature, or a vector that is too long, do that."
        )
    return network.covector(pulled(network, x, points, w))


def force(output: OutputMetric, z: Tensor, first: Tensor, second: Tensor, mask: Tensor | None = None) -> Tensor:
    """H a + Γ^H_♭(u, u) at outputs that move with velocity u and acceleration a; padding has no part in it."""
    z, u, a = (at_least_single(t.detach()) for t in (z, first, second))
    there = None if mask is None else output_mask(mask, z, output)
    if there is not None:
        u, a = u * there, a * there
    found = output.apply(z, a) + output_christoffel(output, z, u)
    return found if there is None else found * there
