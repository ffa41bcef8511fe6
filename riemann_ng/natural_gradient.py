"""The natural gradient: the differential of the loss, made a vector by a metric.

    v = natural_gradient(network, KFAC(), x, y, damping=1e-3 * EuclideanMetric())
    network.move_(v, step=-0.1)

Generic over metrics: `v = g.sharp(df)` for `g = metric.at(observation)`, and nothing in it knows which metric it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any

from torch import Tensor, nn

from .elements import Vector
from .errors import DegenerateMetric, InvalidSetting, RiemannError, SpaceMismatch
from .inner_products import InnerProduct
from .likelihoods import Likelihood
from .metrics.base import RiemannianMetric, given, value_at
from .metrics.constant import EuclideanMetric, FixedMetric
from .networks import Empirical, Estimator, Network
from .networks.functions import keeping
from .networks.running import draws_undone
from .norms import Norm, steepest_ascent
from .solvers import Solver

CALL = "natural_gradient"


def natural_gradient(
    network: Network | Callable[..., Any],
    metric: RiemannianMetric | Norm,
    x: Any,
    y: Any,
    estimator: Estimator | None = None,
    solver: Solver | None = None,
    damping: RiemannianMetric | InnerProduct | float | Tensor | None = None,
    mask: Tensor | None = None,
    modulo_kernel: RiemannianMetric | InnerProduct | None = None,
    parameters: Any = None,
    likelihood: Likelihood | None = None,
) -> Vector:
    """The tangent vector v with g(v, ·) = df: the steepest *ascent* of the mean loss, as `metric` measures steps.

    `estimator` says which labels the metric is observed with, by default those the metric itself asks for; those of
    `Empirical()` are y. `damping` is added to the metric: another metric, an inner product on the tangent space, or a
    float λ, which means λ * EuclideanMetric() and with it the coordinates. Where the metric has a kernel,
    `modulo_kernel` is the metric for which v is the shortest solution. `mask` is that of `observe`; the loss itself
    leaves out the targets that the likelihood ignores.

    A norm in place of the metric gives the v that maximizes df(v) - ½ norm(v)², `norms.steepest_ascent`: for the norm
    of an inner product the same. Damping is then a matter of the metric that the norm is made of.

    A plain function f(parameters, x) takes the place of a network with `parameters`, a tensor or a tree of them, and
    `likelihood`; `v.to_parameters()` then has the names of `Network.from_function`. A loop makes that network once: a
    call with a function reads and verifies it anew, and random estimators start over.

    Laws: `metric.at(network.observe(x, ...)).flat(v) == network.differential(x, y)`; after an error everything is as
    before.
    """
    read = network_of(network, x, parameters, likelihood)
    if isinstance(metric, Norm):
        if solver is not None or damping is not None or modulo_kernel is not None:
            raise InvalidSetting(
                f"InvalidSetting in {CALL}: a norm with solver, damping or modulo_kernel. These are of the metric that "
                f"it is made of: norms.Spectral(between=KFAC().damp_factors(λ), modulo_kernel=...)."
            )
        v = steepest_ascent(read, metric, x, y, estimator, mask)
        return v if read is network else keeping(read, v)
    total = checked_metric(metric, "metric")
    total = total if damping is None else total + damping_metric(damping, read)
    reference = None if modulo_kernel is None else constant(modulo_kernel, read, "modulo_kernel")
    if reference is not None and solver is not None:
        raise InvalidSetting(
            f"InvalidSetting in {CALL}: a solver and modulo_kernel. The solution that is shortest for {reference!r} is "
            f"found by diagonalizing the two together; leave one of them out."
        )
    df = read.differential(x, y)
    with draws_undone(read), naming(total):
        chosen = total.estimator(y) if estimator is None else estimator
        if isinstance(chosen, Empirical) and chosen.targets is None:
            chosen = Empirical(y)
        with read.observe(x, chosen, output=total.output, mask=mask) as seen:
            g = value_at(total, seen)
            v = g.sharp(df, solver) if reference is None else g.sharp_modulo_kernel(df, value_at(reference, seen))
    return v if read is network else keeping(read, v)


def network_of(network: object, x: Any, parameters: Any, likelihood: Likelihood | None) -> Network:
    if isinstance(network, Network):
        if parameters is not None or likelihood is not None:
            raise InvalidSetting(
                f"InvalidSetting in {CALL}: a network has parameters and a likelihood of its own. Leave them out; they "
                f"go with a plain function f(parameters, x)."
            )
        return network
    if isinstance(network, nn.Module):
        raise InvalidSetting(
            f"InvalidSetting in {CALL}: expected a network, got the module {type(network).__name__}. Read it: "
            f"Network.from_torch(module, likelihood=...)."
        )
    if not callable(network) or isinstance(network, type):
        raise InvalidSetting(
            f"InvalidSetting in {CALL}: expected a network or a function f(parameters, x), got {given(network)}."
        )
    if parameters is None or likelihood is None:
        missing = " and ".join(k for k, v in (("parameters", parameters), ("likelihood", likelihood)) if v is None)
        raise InvalidSetting(
            f"InvalidSetting in {CALL}: a function f(parameters, x) comes without {missing}. Give "
            f"parameters=..., likelihood=...; or make it a network: Network.from_function(f, parameters, likelihood)."
        )
    return Network.from_function(network, parameters, likelihood, example=x)


def checked_metric(metric: object, name: str) -> RiemannianMetric:
    if isinstance(metric, RiemannianMetric):
        return metric
    hint = "a RiemannianMetric"
    if isinstance(metric, type) and issubclass(metric, RiemannianMetric):
        hint = f"an instance, with brackets: {metric.__name__}()"
    elif isinstance(metric, InnerProduct):
        hint = "a metric; one inner product everywhere is FixedMetric(g)"
    raise InvalidSetting(f"InvalidSetting in {CALL}: {name} must be {hint}, got {given(metric)}.")


def damping_metric(damping: object, network: Network) -> RiemannianMetric:
    """The metric that is added; a float λ is λ * EuclideanMetric()."""
    number = isinstance(damping, Real) or (isinstance(damping, Tensor) and damping.ndim == 0)
    if isinstance(damping, bool) or not number:
        return constant(damping, network, "damping")
    damping = float(damping)  # type: ignore[arg-type]
    if not (damping > 0 and math.isfinite(damping)):
        raise InvalidSetting(
            f"InvalidSetting in {CALL}: damping={damping!r} means {damping!r} * EuclideanMetric(), and the multiple "
            f"must be positive and finite. Leave damping out, or name a metric."
        )
    return damping * EuclideanMetric()


def constant(form: object, network: Network, name: str) -> RiemannianMetric:
    """A metric as it is; an inner product as the same everywhere."""
    if not isinstance(form, InnerProduct):
        return checked_metric(form, name)
    if form.space != network.tangent_space:
        raise SpaceMismatch(
            f"SpaceMismatch in {CALL}: {name} lives on {form.space}, and the tangent space of {network.name} is "
            f"{network.tangent_space}. Put one form per layer together with direct_sum({{path: h}})."
        )
    return FixedMetric(form, name)


@contextmanager
def naming(metric: RiemannianMetric) -> Iterator[None]:
    """Errors say for which metric, and of a degenerate one what to write here."""
    try:
        yield
    except RiemannError as error:
        said = str(error)
        if f"In the metric {metric!r}" not in said:
            said += f"\nIn the metric {metric!r}."
        if isinstance(error, DegenerateMetric):
            said += f"\nIn {CALL}: damping=λ * EuclideanMetric(), or modulo_kernel=EuclideanMetric(), or other metrics."
        error.args = (said,)
        raise
