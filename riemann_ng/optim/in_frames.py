"""Gradient descent in orthonormal frames, as PRONG and SNGD run it, in an ordinary training loop.

Both train a network whose layers have been rewritten, w = E z with E Eᵀ the inverse of a metric, by plain gradient
descent on z, and rewrite it anew every so many steps. Told in the parameters that the model has, this is

    B ← momentum · B + lr · E Eᵀ df,    w ← w - B,

the natural gradient of a metric that stands still between two refreshes; a refresh leaves w and B where they are. So
the model is left as it is, and the presets are the one optimizer with its policies set. The rewritten network itself is
`reparametrize.in_frames`, and takes the same steps.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .. import metrics
from ..likelihoods import Likelihood
from ..metrics import RelativeFisher, RiemannianMetric
from ..metrics.kfac import Sharing
from .damping import Damping
from .natural_gradient import NaturalGradient
from .schedule import Schedule
from .steps import Constant


def PRONG(
    model: nn.Module,
    likelihood: Likelihood,
    lr: float = 0.001,
    momentum: float = 0.0,
    epsilon: float = 0.01,
    every: int = 100,
    statistics: int = 10,
    decay: float = 0.9,
    warmup: int = 10,
    sharing: Sharing = "expand",
    **settings: Any,
) -> NaturalGradient:
    """Natural neural networks: gradient descent where every layer sees centred and whitened inputs.

    A step is [dW db] = -lr · DW · A_ε⁻¹, with A_ε = [[Σ + ε + ccᵀ, c], [cᵀ, 1]] for the mean c and the covariance Σ of
    the layer's inputs as they were when it was last whitened: the metric `metrics.PRONG(epsilon)`. That is every
    `every` steps, from an average over batches (each `statistics`-th, of which the last counts 1 - `decay`); in the
    first `warmup` steps every batch counts, and layers are whitened anew, for one batch alone does not show all of Σ.
    No label is looked at, and nothing knows the scale of the loss: one that is summed over many outputs wants a smaller
    `lr`. ε = 0 keeps every affine frame of activations, ε > 0 their isometries; pre-activations keep
    isometries. `settings` are those of `NaturalGradient`.
    """
    own: dict[str, Any] = {"step_size": Constant(), "damping": None, **settings}
    return NaturalGradient(
        model,
        likelihood,
        metric=metrics.PRONG(epsilon, sharing),
        lr=lr,
        momentum=momentum,
        decay=decay,
        schedule=Schedule(statistics, every, warmup=warmup),
        **own,
    )


def SNGD(
    model: nn.Module,
    likelihood: Likelihood,
    metric: RiemannianMetric = RelativeFisher(),
    lr: float = 0.01,
    momentum: float = 0.0,
    damping: Damping | float | None = 0.01,
    every: int = 100,
    statistics: int = 10,
    decay: float = 0.95,
    warmup: int = 10,
    **settings: Any,
) -> NaturalGradient:
    """Structured natural gradient: gradient descent between two fixed maps, which make a metric's frame of each layer.

    `metric` is any layerwise one. By default it is the relative Fisher that the method's code runs on: one matrix for
    each hidden unit, one in common for the units of the first and of the last layer. `KFAC()` gives the two fixed maps
    W = E_S W' E_Aᵀ; with `damping=None`, or `Tikhonov(λ, AtStart(KFAC()))`, every affine frame of activations and
    pre-activations is kept. A number for `damping` is that of each factor, by the coordinates. When frames are made is
    as in `PRONG`. `settings` are those of `NaturalGradient`.
    """
    own: dict[str, Any] = {"step_size": Constant(), **settings}
    return NaturalGradient(
        model,
        likelihood,
        metric=metric,
        lr=lr,
        momentum=momentum,
        damping=damping,
        decay=decay,
        schedule=Schedule(statistics, every, warmup=warmup),
        **own,
    )
