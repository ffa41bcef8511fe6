"""Finite steps whose dependence on coordinates is of third order: geodesic-corrected and midpoint steps.

A natural gradient v, as a displacement with the step size in it, is a vector. θ + v is not free of the coordinates
that parameters are written in: another smooth system of coordinates leads elsewhere, by O(|v|²). Following the
geodesic to second order, θ + v - ½ Γ(v, v), or taking the direction from halfway, leaves O(|v|³).

That holds where the metric comes along. Damping by the coordinates does not: its own difference is of first order,
as without any correction. A fixed form that is carried over at the point leaves second order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ..elements import Covector, Vector
from ..errors import RiemannError
from ..inner_products import InnerProduct
from ..likelihoods import Likelihood
from ..metrics import RiemannianMetric
from ..metrics.base import value_at
from ..natural_gradient import checked_metric, constant, damping_metric, naming, network_of
from ..networks import Empirical, Estimator, Network
from ..networks.functions import keeping
from ..networks.running import draws_undone
from ..solvers import Solver
from .christoffel import christoffel
from .numerical import moved

Form = RiemannianMetric | InnerProduct
Step = Callable[[Covector], Vector]


def geodesic_correction(
    network: Network,
    metric: RiemannianMetric,
    x: Any,
    v: Vector,
    damping: Form | float | Tensor | None = None,
    estimator: Estimator | None = None,
    solver: Solver | None = None,
    mask: Tensor | None = None,
    modulo_kernel: Form | None = None,
    numerical: bool = False,
) -> Vector:
    """-½ Γ(v, v), for a displacement v: what is added to θ + v to follow the geodesic to second order.

    It is a vector under affine changes of the parameters alone. `numerical` is that of `christoffel`, the rest that of
    `natural_gradient`.
    """
    with saying("geodesic_correction"):
        read = network_of(network, x, None, None)
        total = totalled(metric, damping, read)
        with solving(read, total, x, None, estimator, solver, mask, modulo_kernel) as sharp:
            return sharp(christoffel(read, total, x, v, mask, numerical)) * -0.5


def geodesic_step(
    network: Network | Callable[..., Any],
    metric: RiemannianMetric,
    x: Any,
    y: Any,
    step: float,
    estimator: Estimator | None = None,
    solver: Solver | None = None,
    damping: Form | float | Tensor | None = None,
    mask: Tensor | None = None,
    modulo_kernel: Form | None = None,
    parameters: Any = None,
    likelihood: Likelihood | None = None,
    numerical: bool = False,
) -> Vector:
    """The displacement v - ½ Γ(v, v) with v = step * natural_gradient(...), whose arguments are the same.

    A negative `step` goes downhill. `network.move_(displacement)` makes the step; nothing is moved here.
    """
    with saying("geodesic_step"):
        read = network_of(network, x, parameters, likelihood)
        total = totalled(metric, damping, read)
        df = read.differential(x, y)
        with solving(read, total, x, y, estimator, solver, mask, modulo_kernel) as sharp:
            v = sharp(df) * step
            found = v - sharp(christoffel(read, total, x, v, mask, numerical)) * 0.5
        return found if read is network else keeping(read, found)


def midpoint_step(
    network: Network | Callable[..., Any],
    metric: RiemannianMetric,
    x: Any,
    y: Any,
    step: float,
    estimator: Estimator | None = None,
    solver: Solver | None = None,
    damping: Form | float | Tensor | None = None,
    mask: Tensor | None = None,
    modulo_kernel: Form | None = None,
    parameters: Any = None,
    likelihood: Likelihood | None = None,
) -> Vector:
    """The displacement step * natural_gradient, taken at θ + ½ step * natural_gradient: two natural gradients.

    It needs no derivative of the metric, so any metric will do. The arguments are those of `natural_gradient`;
    parameters are put back, bit for bit, also after an error.
    """
    with saying("midpoint_step"):
        read = network_of(network, x, parameters, likelihood)
        total = totalled(metric, damping, read)

        def gradient() -> Vector:
            df = read.differential(x, y)
            with solving(read, total, x, y, estimator, solver, mask, modulo_kernel) as sharp:
                return sharp(df)

        with draws_undone(read), moved(read, gradient() * (0.5 * step)):
            found = gradient() * step
        return found if read is network else keeping(read, found)


def totalled(metric: RiemannianMetric, damping: Form | float | Tensor | None, network: Network) -> RiemannianMetric:
    total = checked_metric(metric, "metric")
    return total if damping is None else total + damping_metric(damping, network)


@contextmanager
def solving(
    network: Network,
    metric: RiemannianMetric,
    x: Any,
    y: Any,
    estimator: Estimator | None,
    solver: Solver | None,
    mask: Tensor | None,
    modulo_kernel: Form | None,
) -> Iterator[Step]:
    """♯ of the metric's value at the network's parameters, as observed on a batch."""
    reference = None if modulo_kernel is None else constant(modulo_kernel, network, "modulo_kernel")
    with draws_undone(network), naming(metric):
        chosen = metric.estimator(y) if estimator is None else estimator
        if isinstance(chosen, Empirical) and chosen.targets is None and y is not None:
            chosen = Empirical(y)
        with network.observe(x, chosen, output=metric.output, mask=mask) as seen:
            g = value_at(metric, seen)
            if reference is None:
                yield lambda covector: g.sharp(covector, solver)
            else:
                h = value_at(reference, seen)
                yield lambda covector: g.sharp_modulo_kernel(covector, h)


@contextmanager
def saying(call: str) -> Iterator[None]:
    """Errors of settings that are those of `natural_gradient` name the call that was made."""
    try:
        yield
    except RiemannError as error:
        error.args = (str(error).replace("n natural_gradient:", f"n {call}:"),)
        raise
