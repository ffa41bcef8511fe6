"""The steepest direction of a norm: the differential of the loss, made a vector by a duality map."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..elements import Vector, describe
from ..networks import Empirical, Estimator, Network
from ..networks.running import draws_undone
from .base import InvalidNorm, Norm

CALL = "steepest_ascent"


def norm_at(
    norm: Norm,
    network: Network,
    x: Any,
    y: Any = None,
    estimator: Estimator | None = None,
    mask: Tensor | None = None,
) -> Norm:
    """The norm on the network's tangent space, at its parameters: observed on x where it is made of a metric.

    `estimator` is by default the one that the metric asks for; y are the labels of `Empirical()`.
    """
    if not isinstance(norm, Norm):
        hint = f"an instance, with brackets: {norm.__name__}()" if isinstance(norm, type) else "as norms.Spectral()"
        raise InvalidNorm(f"InvalidNorm in {CALL}: expected a norm, {hint}, got {describe(norm)}.")
    there = norm.over(network)
    metric = there.metric
    if metric is None:
        return there
    chosen = metric.estimator(y) if estimator is None else estimator
    if isinstance(chosen, Empirical) and chosen.targets is None:
        chosen = Empirical(y)
    with draws_undone(network), network.observe(x, chosen, output=metric.output, mask=mask) as seen:
        return there.at(seen)


def steepest_ascent(
    network: Network,
    norm: Norm,
    x: Any,
    y: Any,
    estimator: Estimator | None = None,
    mask: Tensor | None = None,
    unit: bool = False,
) -> Vector:
    """The tangent vector that maximizes v ↦ df(v) - ½ norm(v)²: the steepest *ascent* of the mean loss.

    It is `dual_norm(df) * sharp(df)`; `unit=True` gives `sharp(df)`, of norm 1, as Muon and sign descent go. For the
    norm of an inner product it is the natural gradient.

    Laws: `norm(v) == dual_norm(df)`; `df(v) == dual_norm(df)²`; network and random state are as before.
    """
    there = norm_at(norm, network, x, y, estimator, mask)
    df = network.differential(x, y)
    v = there.sharp(df)
    return v if unit else there.dual_norm(df) * v
