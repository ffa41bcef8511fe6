"""Christoffel symbols of any metric by numerical differentiation: an oracle, and a way for small networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..elements import Covector, Vector
from ..errors import InvalidSetting
from ..likelihoods import OutputMetric
from ..metrics import RiemannianMetric
from ..metrics.base import value_at
from ..networks import Network

LARGEST = 512
"""The most parameters that a metric is differentiated along."""
STENCIL = ((1, 8 / 12), (-1, -8 / 12), (2, -1 / 12), (-2, 1 / 12))
"""Steps and weights of the central difference that is exact on polynomials of degree four."""


def numerical_christoffel(
    network: Network,
    metric: RiemannianMetric,
    x: Any,
    v: Vector,
    output: OutputMetric | None = None,
    mask: Tensor | None = None,
) -> Covector:
    """Γ_♭(v, v) = (∂_v g) v - ½ grad g(v, v), by central differences of the metric's values along every parameter.

    The error is about the precision to the power 4/5: 1e-12 in double precision, times what cancels.
    """
    V = network.tangent_space
    if V.dim > LARGEST:
        raise InvalidSetting(
            f"InvalidSetting in numerical_christoffel: {V.dim} parameters take {4 * V.dim + 4} observations of "
            f"{metric!r}; {LARGEST} at most are tried. midpoint_step takes two, whatever the metric."
        )
    network._moves("numerical_christoffel", v)

    def flat_at(move: Tensor) -> Tensor:
        with moved(network, Vector(V, move)):
            estimator = metric.estimator()
            with network.observe(x, estimator, output=metric.output if output is None else output, mask=mask) as seen:
                return value_at(metric, seen).flat(v).data

    here = network.parameters_point().data
    h = torch.finfo(v.dtype).eps ** 0.2 * max(1.0, float(here.abs().max()))
    length = float(v.data.abs().max())
    if length == 0:
        return Covector(V, torch.zeros_like(v.data))
    turned = torch.zeros_like(v.data)
    for k, weight in STENCIL:
        turned += weight / h * length * flat_at(k * h / length * v.data)
    slope = torch.zeros_like(v.data)
    for i in range(V.dim):
        axis = torch.zeros_like(v.data)
        axis[i] = h
        slope[i] = sum(weight / h * (flat_at(k * axis) @ v.data) for k, weight in STENCIL)
    return Covector(V, turned - 0.5 * slope)


@contextmanager
def moved(network: Network, v: Vector) -> Iterator[None]:
    """Inside, the parameters are moved along a vector; afterwards they are as before, bit for bit."""
    kept = {name: p.detach().clone() for name, p in network.parameters.items()}
    network.move_(v)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, p in network.parameters.items():
                p.copy_(kept[name])
