"""Settings of the optimizer, held against each other before anything is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import InvalidSetting
from ..likelihoods import Likelihood
from ..metrics import RiemannianMetric
from ..metrics.base import given
from ..networks import Empirical, Estimator, Exact, Linearized, MonteCarlo
from ..solvers import Solver
from .averaging import IterateAverage
from .fallback import ConstantBlocks
from .inverse_free import Inversion
from .schedule import Schedule
from .steps import StepRule

if TYPE_CHECKING:
    from .natural_gradient import NaturalGradient


def estimator_for(metric: object) -> Estimator:
    """What a metric is observed with in a loop: one sampled label where it would like all directions."""
    wanted = checked_metric(metric).estimator()
    return MonteCarlo(1) if isinstance(wanted, Exact) else wanted


def checked_metric(metric: object) -> RiemannianMetric:
    if not isinstance(metric, RiemannianMetric):
        hint = f": {metric.__name__}()" if isinstance(metric, type) else ", as KFAC()"
        raise refused(f"metric={given(metric)}, expected a metric, an instance{hint}.")
    return metric


def check_settings(opt: NaturalGradient, likelihood: object, decay: float, averaging: object) -> bool:
    """Whether what is made of statistics is of use beyond the step that it is made in."""
    checked_metric(opt.metric)
    for name, value, kind, example in (
        ("likelihood", likelihood, Likelihood, "Categorical()"),
        ("estimator", opt.estimator, Estimator, "MonteCarlo(1)"),
        ("schedule", opt.schedule, Schedule, "optim.Schedule(statistics=1)"),
        ("step_size", opt.step_size, StepRule, "optim.Constant()"),
        ("inversion", opt.inversion, Inversion, "optim.Factorized()"),
        ("constants", opt.constants, ConstantBlocks, "optim.ConstantBlocks(full=1024)"),
    ):
        if not isinstance(value, kind):
            raise refused(f"{name}={given(value)}, expected one, an instance, as {example}.")
    if opt.solver is not None and not isinstance(opt.solver, Solver):
        raise refused(f"solver={given(opt.solver)}, expected one, an instance, as solvers.CG(), or None.")
    if averaging is not None and not isinstance(averaging, IterateAverage):
        raise refused(f"averaging={given(averaging)}, expected optim.IterateAverage(...) or None.")
    for name, number in (("momentum", opt.momentum), ("decay", decay)):
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number < 1:
            raise refused(f"{name}={number!r}, expected a number in [0, 1).")
    check_momentum(opt)
    divided = opt.divided_by
    if divided is not None and (isinstance(divided, bool) or not isinstance(divided, (int, float)) or not divided > 0):
        raise refused(f"divided_by={divided!r}, expected a positive number, or None for the number of examples.")
    if opt.policy.adapts_every and not opt.step_size.needs_batch:
        raise refused(
            f"{opt.policy!r} adapts to a quadratic model, and {opt.step_size!r} makes none. Use "
            f"step_size=QuadraticModel(...), or a damping that stays, as damping=1e-3."
        )
    if isinstance(opt.estimator, Empirical) and (opt.estimator.targets is not None or opt.schedule.fraction != 1):
        raise refused(
            f"estimator={opt.estimator!r} with targets, or with {opt.schedule!r}. In a loop it is the loss's own "
            f"backward pass: Empirical() without targets, on the whole batch."
        )
    if opt.solver is not None and opt.inversion.remembers:
        raise refused(
            f"inversion={opt.inversion!r} inverts by frames, and solver={opt.solver!r} would do so otherwise. Leave "
            f"one of them out."
        )
    every_step = opt.schedule.statistics == opt.schedule.factorize == 1
    lasts = decay > 0 or not every_step or opt.inversion.remembers
    if lasts and isinstance(opt.estimator, Linearized):
        raise refused(
            f"{opt.metric!r} is known by its products alone, which last as long as their batch. Use decay=0, "
            f"schedule=Schedule(statistics=1, factorize=1), and a solver that needs no more, as CG()."
        )
    return lasts


def check_momentum(opt: NaturalGradient) -> None:
    for name, value, allowed in (
        ("momentum_of", opt.momentum_of, ("displacements", "gradients")),
        ("averages", opt.averages, ("corrected", "growing")),
    ):
        if value not in allowed:
            raise refused(f"{name}={value!r}, expected {allowed[0]!r} or {allowed[1]!r}.")
    if opt.momentum_of == "gradients" and opt.step_size.smoothing:
        raise refused(
            f"momentum_of='gradients' averages gradients, and {opt.step_size!r} has an average of its own. Leave one "
            f"of them out: smoothing=0, or momentum_of='displacements'."
        )


def refused(reason: str) -> InvalidSetting:
    return InvalidSetting(f"InvalidSetting in NaturalGradient: {reason}")


def recipe_of(opt: NaturalGradient) -> dict[str, Any]:
    """The settings by name. A learning rate is the one that the run started with, not what a scheduler made of it."""
    groups = opt.param_groups
    rates, decays = ([group.get(f"initial_{name}", group[name]) for group in groups] for name in ("lr", "weight_decay"))
    return {
        "likelihood": opt.network.likelihood,
        "metric": opt.metric,
        "lr": alike(rates),
        "momentum": opt.momentum,
        "damping": opt.policy,
        "weight_decay": alike(decays),
        "estimator": opt.estimator,
        "decay": opt.memory.decay,
        "schedule": opt.schedule,
        "step_size": opt.step_size,
        "inversion": opt.inversion,
        "solver": opt.solver,
        "constants": opt.constants,
        "averaging": None if opt.averaged is None else opt.averaged.policy,
        "divided_by": opt.divided_by,
        "momentum_of": opt.momentum_of,
        "averages": opt.averages,
        **({} if opt.ranks.sharing is None else {"sharing": opt.ranks.sharing}),
    }


def alike(values: list[Any]) -> Any:
    """The value of all groups, or a list of each."""
    return values[0] if all(v == values[0] for v in values) else values
