"""Natural gradient in an ordinary training loop.

    opt = NaturalGradient(model, likelihood=Categorical())
    for x, y in batches:
        opt.zero_grad()
        criterion(model(x), y).backward()
        opt.step()

The criterion is the mean over examples of the likelihood's negative log-density. The optimizer adds memory to a
metric, and nothing geometric of its own: running averages of its values, when to look, when to factorize, damping,
how far to go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from ..elements import Vector
from ..errors import InvalidSetting, NonFinite
from ..likelihoods import Likelihood
from ..metrics import KFAC, RiemannianMetric
from ..networks import Estimator, Network
from ..networks.coverage import Coverage
from ..networks.outputs import read_output
from ..solvers import Solver
from . import aside
from .averaging import Averaged, IterateAverage
from .carried import Carrying
from .choosing import choose
from .conditions import worst_conditioned
from .damping import Damping, LevenbergMarquardt, damping_policy
from .distributed import Sharing, ranks_of
from .fallback import ConstantBlocks
from .finite import finite
from .groups import check_group, grouped
from .inverse_free import Factorized, Inversion
from .landscape import Examples, Landscape
from .listeners import Heard, wants_conditions
from .listening import Listener, Wanted, is_compiled
from .memory import Memory
from .moving import move
from .projected import remember
from .quadratic import Batch
from .ranks import Refused
from .report import StepReport, Tally, number_of
from .resuming import OWN, checked_state, contiguous, not_copied, state_of, take_over
from .schedule import Schedule
from .settings import check_settings, estimator_for, recipe_of
from .smoothing import GradientAverage
from .steps import QuadraticModel, StepRule, Taken, taken


class NaturalGradient(torch.optim.Optimizer):
    """`NaturalGradient(model, likelihood=...)`: the model's parameters along the natural gradient of a metric.

    `metric` is any `RiemannianMetric`; `estimator` says where its statistics come from (by default labels drawn from
    the model, one each; `Empirical()` is the loss's own backward pass), `decay` is that of their running average (0: no
    memory), `schedule` when they are gathered and factorized, `inversion` how the damped metric is made ready to be
    inverted, `solver` how it is solved, if not as it finds best itself; `constants` what
    a layerwise metric keeps of parameters without a layer. `damping` is a policy, or a number for factored damping,
    or None. `step_size` says how far to go, `lr` multiplies that. `momentum` is of displacements, or with
    `momentum_of="gradients"` the decay of an average of covectors, with bias correction, that the natural gradient is
    made of. `averages="growing"` lets the metric's average be the plain mean until 1 / (1 - decay) statistics have
    come. `weight_decay` is decoupled: after the step, weights shrink by lr * weight_decay. `params` are parameter
    groups with lr and weight_decay of their own. `divided_by` is what the loss divides the sum over all examples since
    the last step by, where that is not their number.

    What goes wrong leaves the state untouched: a gradient that is not finite skips the step, statistics that are not
    finite are not averaged, a factorization that fails leaves the last one in place. `tally` counts them; `report` is
    the account of the last step, and is given to everything in `listeners`. `scaler` is the loop's gradient scaler,
    to be set where the loop itself calls `scaler.unscale_`.
    """

    _step_supports_amp_scaling = True

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        metric: RiemannianMetric = KFAC(),
        lr: float = 0.75,
        momentum: float = 0.9,
        damping: Damping | float | None = LevenbergMarquardt(),
        weight_decay: float = 0.0,
        estimator: Estimator | None = None,
        decay: float = 0.9,
        schedule: Schedule = Schedule(),
        step_size: StepRule = QuadraticModel(0.25, every=5, smoothing=0.9),
        inversion: Inversion = Factorized(),
        solver: Solver | None = None,
        constants: ConstantBlocks = ConstantBlocks(),
        averaging: IterateAverage | None = None,
        params: Iterable[Any] | None = None,
        divided_by: float | None = None,
        read: Callable[[Any], Tensor] = read_output,
        momentum_of: Literal["displacements", "gradients"] = "displacements",
        averages: Literal["corrected", "growing"] = "corrected",
        sharing: Sharing | None = None,
    ):
        self.policy = damping_policy(damping)
        self.estimator = estimator_for(metric) if estimator is None else estimator
        self.metric, self.momentum, self.constants = metric, momentum, constants
        self.inversion, self.solver = inversion, solver
        self.step_size, self.schedule, self.divided_by = step_size, schedule, divided_by
        self.momentum_of, self.averages = momentum_of, averages
        lasts = check_settings(self, likelihood, decay, averaging)
        self.ranks = ranks_of(model, sharing)
        self.network = Network.from_torch(model, likelihood, read=read)
        self.step_size = step_size.begun(self)
        self._complete = False
        super().__init__(grouped(self.network, params), {"lr": lr, "weight_decay": weight_decay})
        self._complete = True
        self.memory = Memory(
            constants.applied(metric), self.policy, decay, solver, self.ranks.inversion(inversion), lasts,
            not step_size.needs_metric, step_size.proposes, averages,
        )  # fmt: skip
        self.averaged = None if averaging is None else Averaged(averaging)
        self.steps = 0
        self.tally, self.report = Tally(), StepReport(0, self.memory.damping)
        self.listeners: list[Heard] = []
        self.scaler: torch.amp.GradScaler | None = None
        self._before: Vector | None = None
        self._last: Taken | None = None
        self.gradients = GradientAverage(momentum if momentum_of == "gradients" else step_size.smoothing)
        self.carrying = Carrying()
        self._observed: aside.Observed | None = None
        self._examples: Examples | None = None
        self._loaded: dict[str, Tensor] | None = None
        self._trouble: list[str] = []
        self._later: Callable[[], None] | None = None
        folds = self.memory.metric.sees_moments_alone() and self.policy.reference.sees_moments_alone()
        seen = self.ranks.estimator(self.estimator)
        self._listener = Listener(self.network, seen, metric.output, schedule.fraction, is_compiled(model), folds)
        self.ranks.listen(self, self._listener)
        self._expect()

    # The loop's face

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Moves the parameters. A closure evaluates the loss and its gradients first, as for any optimizer of torch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._trouble = []
        number = number_of(loss)
        back = self.memory.mark()
        try:
            finite_loss = number is None or math.isfinite(number)
            why = "" if number is None else self.ranks.agreed("" if finite_loss else "a loss that is not finite")
            report = self._skipped(why) if why else self._step()
            if self._later is not None:
                self._later()
        except NonFinite:  # of numbers that are finite and too large
            back()
            report = self._skipped("a metric that is not finite")
        except Refused as refusal:
            back()
            report = self._skipped(refusal.why)
        except BaseException:
            back()
            raise
        finally:
            self._later, self._observed, self._examples = None, None, None
            self._listener.forget()
            self._expect()
        self.report = replace(report, loss=number, trouble=tuple(self._trouble))
        for listener in self.listeners:
            listener(self.report)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self._listener.zero()

    def averaged_parameters(self) -> AbstractContextManager[None]:
        """Inside, the parameters are the average of the iterates; without `averaging` they are as they are."""
        if self.averaged is None:
            return nullcontext()
        return self.averaged.standing_in(self.network.parameters)

    def coverage(self) -> Coverage:
        """One line per trained parameter: its place in the network, and what the metric keeps where it has no layer."""
        return self.constants.said(self.network.coverage())

    def observe(self, x: Any, y: Any = None) -> None:
        """The next step's statistics, if any are due, are of these inputs and not of the loop's own.

        Labels are for estimators that look at them, and refused by others. What is given here is for one step, and is
        no part of the state.
        """
        self._observed = aside.observed(self, x, y)
        self._expect()

    def evaluate_on(self, x: Any, y: Any) -> None:
        """Where the next step's rule searches on the loss, it is that of these examples, by the likelihood.

        Without it, it is that of the loop's own batch. For one step, as `observe`.
        """
        self._examples = aside.examples(self, x, y)

    def remember(self, x: Any, y: Any = None, outputs: Sequence[int] | None = None) -> None:
        """Keeps outputs at x as they are: all, those of labels y, or some. For step rules as `Protected`."""
        remember(self, x, y, outputs)

    def close(self) -> None:
        """Removes every hook from the model."""
        self._listener.close()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if self.__dict__.get("_complete", False):
            raise InvalidSetting(
                "InvalidSetting in add_param_group: the parameters are those of the model, and their tangent space is "
                "laid out. Give groups as params=[...] when the optimizer is made; make another for another model."
            )
        super().add_param_group(param_group)
        check_group(self.param_groups[-1])

    # One step

    def _adapts(self) -> bool:
        every = self.policy.adapts_every
        return bool(every) and (self.steps + 1) % every == 0

    def _statistics_due(self) -> bool:
        return self.memory.empty or self.schedule.statistics_due(self.steps)

    def _factorization_due(self) -> bool:
        return self.memory.damped is None or self.schedule.factorization_due(self.steps)

    def _expect(self) -> None:
        statistics, adapts = self._statistics_due(), self._adapts()
        statistics = statistics and self._observed is None
        again = adapts or self.step_size.needs_batch or (statistics and not self._listener.shares)
        self._listener.expect(Wanted(statistics, again, adapts or self.step_size.needs_loss))

    def _step(self) -> StepReport:
        self.network.check_unchanged()
        passes = self._listener.passes()
        units, df, why = self.ranks.gradient(self, passes)
        if why or df is None:
            return self._skipped(why)
        self._settle()
        output = self.network.likelihood if self.metric.output is None else self.metric.output
        batch = Batch(self.network, passes, output, self.ranks)
        if self.step_size.needs_batch and not batch.examples:
            raise InvalidSetting(
                f"InvalidSetting in NaturalGradient.step: {self.step_size!r} looks at the batch, and the model was not "
                f"called since the last step. Call the model itself in the loop, or use step_size=Constant()."
            )
        statistics = self._statistics_due() and aside.look(self, units)
        if self.memory.empty:
            return self._skipped("no statistics yet")
        averaged = self.gradients.after(df)
        loss = Landscape(batch, units.score, self._examples) if self.step_size.needs_loss else None
        choice = choose(self, df, averaged, batch, loss)
        chosen, proposal, factorized = choice.displacement, choice.proposal, choice.factorized
        if chosen.failed:
            self.memory.damping = self.policy.adapted(self.memory.damping, math.nan)
            self._forget_the_way()
            return self._skipped(chosen.failed)
        if not finite(chosen.vector):
            self.memory.distrust()
            return self._skipped("a displacement that is not finite")
        actual = move(self, chosen, batch, units)
        if actual is not None and not math.isfinite(actual):
            self._forget_the_way()
            return self._skipped("a step after which the loss was far above the model")
        self._before = contiguous(chosen.vector) if self.momentum and self.momentum_of == "displacements" else None
        self.carrying.take(chosen.kept)
        self._last = taken(chosen, averaged, proposal, self._last)
        self.gradients.take(averaged)
        if self.averaged is not None:
            self.averaged.add(self.network.parameters, self.steps)
        self.steps += 1
        worst, condition = self._worst() if factorized else ("", None)
        return StepReport(
            self.steps, self.memory.damping, chosen.alpha, chosen.mu, chosen.predicted, actual, statistics, factorized,
            worst=worst, condition=condition,
        )  # fmt: skip

    def _skipped(self, why: str) -> StepReport:
        """Nothing has moved, and the step does not count."""
        self.tally.add(why)
        return StepReport(self.steps, self.memory.damping, skipped=why)

    def _note(self, trouble: str) -> None:
        self.tally.add(trouble)
        self._trouble.append(trouble)

    def _settle(self) -> None:
        """What is remembered, on the tangent space as the network has it by now."""
        if self.memory.settle(self.network.tangent_space):
            self._forget_the_way()
            self.gradients.forget()
            self._note("a layer that is read anew: the memory starts over")
        self.gradients.settle(self.network.tangent_space)
        self.carrying.settle(self.network.tangent_space)
        if self._loaded is not None:
            self._before, self._loaded = Vector(self.network.tangent_space, self._loaded), None

    def _forget_the_way(self) -> None:
        self._before, self._last = None, None
        self.carrying.forget()

    def _worst(self) -> tuple[str, float | None]:
        """The worst-conditioned layer, if a listener asks for it."""
        assert self.memory.damped is not None
        return worst_conditioned(self.memory.damped) if wants_conditions(self.listeners) else ("", None)

    # State

    def state_dict(self) -> dict[str, Any]:
        """The state of the run, of tensors, numbers and strings: a run resumed from it goes on bit for bit."""
        return {**super().state_dict(), OWN: state_of(self)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave, of an optimizer made alike for a model made alike."""
        own = checked_state(self, state_dict)
        super().load_state_dict({k: v for k, v in state_dict.items() if k != OWN})
        take_over(self, own)
        self._observed, self._examples = None, None
        self._listener.forget()
        self._expect()

    def __getstate__(self) -> NoReturn:
        raise not_copied()

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={value!r}" for name, value in self.recipe().items())
        return f"{type(self).__name__}(model, {said})"

    def recipe(self) -> dict[str, Any]:
        """Everything that decides the run, by name: `repr` is the call that makes the optimizer anew."""
        return recipe_of(self)
