"""Learning one task after the other: presets that leave what was learned as it is.

    opt = ProjectedNaturalGradient(model, likelihood=Categorical())
    for x, y in tasks:
        train(model, opt, x, y)
        opt.remember(x[:20], y[:20])

All of them are the one optimizer with another step rule. `OGD` and `ONG` are there to be compared with.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

from torch import nn

from ..likelihoods import Likelihood
from ..metrics import EKFAC, KFAC, EuclideanMetric, RiemannianMetric
from ..networks import Empirical
from .natural_gradient import NaturalGradient
from .projected import Deflected, Protected
from .remembering import Overflow, Remembering
from .schedule import Schedule
from .steps import Constant, StepRule

NEVER = 1 << 62


def ProjectedNaturalGradient(
    model: nn.Module,
    likelihood: Likelihood,
    metric: RiemannianMetric = KFAC(),
    step_size: StepRule | None = None,
    capacity: int = 1000,
    capacity_bytes: int | None = None,
    overflow: Overflow = "refuse",
    **settings: Any,
) -> NaturalGradient:
    """Natural gradient that leaves old outputs as they are, to second order in the step.

    `opt.remember(x)` keeps all outputs at a batch, `opt.remember(x, y)` those of the true labels, and
    `opt.remember(x, outputs=[0, 2])` those of these numbers, as they are where the parameters are now: their
    differentials α become covectors that every displacement v, momentum included, is to vanish on, α(v) = 0. The step
    is minus the natural gradient, projected orthogonally in the metric (see `Protected`); it keeps the symmetry that
    the metric keeps, damping included. `capacity`, `capacity_bytes` and `overflow` bound the memory: `Remembering`.
    With nothing remembered it is `NaturalGradient`, whose `settings` and defaults it has.
    """
    usual: StepRule = signature(NaturalGradient).parameters["step_size"].default
    rule = Protected(usual if step_size is None else step_size, Remembering(capacity, capacity_bytes, overflow))
    return NaturalGradient(model, likelihood, metric=metric, step_size=rule, **settings)


def OGD(
    model: nn.Module,
    likelihood: Likelihood,
    lr: float = 1e-3,
    momentum: float = 0.0,
    capacity: int = 1000,
    capacity_bytes: int | None = None,
    overflow: Overflow = "refuse",
    **settings: Any,
) -> NaturalGradient:
    """Orthogonal gradient descent (Farajtabar et al. 2020): gradients, orthogonal to those of old outputs.

    It is `ProjectedNaturalGradient` with the coordinates for a metric. So it protects as well, to second order, and
    its trajectory is another one in every other frame: it keeps the isometries of the coordinates.
    """
    own: dict[str, Any] = {"schedule": Schedule(NEVER, NEVER, warmup=0), "decay": 0.0, **settings}
    rule = Protected(Constant(), Remembering(capacity, capacity_bytes, overflow))
    return NaturalGradient(
        model, likelihood, metric=EuclideanMetric(), lr=lr, momentum=momentum, damping=None, step_size=rule, **own
    )


def ONG(
    model: nn.Module,
    likelihood: Likelihood,
    lr: float = 1e-3,
    epsilon: float = 0.1,
    every: int = 50,
    decay: float = 0.95,
    published: bool = True,
    metric: RiemannianMetric | None = None,
    momentum: float = 0.0,
    capacity: int = 1000,
    capacity_bytes: int | None = None,
    overflow: Overflow = "refuse",
    **settings: Any,
) -> NaturalGradient:
    """Orthogonal natural gradient descent (Yadav, Mendoza, Korrapati 2025), for comparison.

    Natural gradients of old outputs are remembered, as they are at that time, and taken out of later ones by
    Gram-Schmidt in the Kronecker-factored product of the step. Its authors say themselves that the naive combination
    has its troubles; a coordinate-free reading tells which.

    By default it is the method as its public code runs it, with what seems not meant:

    - gradients are turned by U_S g U_Aᵀ, with eigenvectors in columns, where the eigenframe is U_Sᵀ g U_A;
    - they are divided by the square of the batch's own mean gradient plus ε, where EKFAC has the mean square over
      examples: for small ones the map is a multiplication by 1/ε, for large ones an inversion of each entry;
    - the product that Gram-Schmidt is done in is not what gradients were preconditioned with;
    - cotangents are those of the data's labels.

    Not kept are the damping that adds up in the running factors, and their scale by the batch size: neither moves an
    eigenvector. The factors in Gram-Schmidt have factored damping ε instead.

    With `published=False` these are repaired: `metric` (EKFAC), damped by ε, is what preconditions and what is
    orthogonal. What remains is the idea itself. A step v orthogonal to M_old⁻¹α has α(M_old⁻¹ M v) = 0, which protects
    the output behind α where M is still M_old; elsewhere old outputs change in first order.
    `ProjectedNaturalGradient` remembers α itself.
    """
    own: dict[str, Any] = {"schedule": Schedule(every, every, warmup=1), **settings}
    memory = Remembering(capacity, capacity_bytes, overflow)
    if metric is None:
        metric = KFAC(observed=Empirical()) if published else EKFAC()
    rule = Deflected(Constant(), memory, published=epsilon if published else None)
    own = {"damping": epsilon, **own}
    return NaturalGradient(
        model, likelihood, metric=metric, lr=lr, momentum=momentum, decay=decay, step_size=rule, **own
    )
