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
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..elements import Covector, Vector
from ..errors import InvalidSetting, NonFinite
from ..likelihoods import Likelihood
from ..metrics import KFAC, RiemannianMetric
from ..networks import Estimator, Network
from ..networks.coverage import Coverage
from ..networks.outputs import read_output
from ..solvers import Solver
from .averaging import Averaged, IterateAverage
from .conditions import worst_conditioned
from .damping import Damping, LevenbergMarquardt, damping_policy
from .fallback import ConstantBlocks
from .finite import finite
from .groups import check_group, decay_weights, gradient_of, grouped, relative_rates
from .inverse_free import Factorized, Inversion
from .listeners import Heard, wants_conditions
from .listening import Listener, Wanted, is_compiled
from .memory import Memory
from .quadratic import Batch
from .report import StepReport, Tally, number_of
from .resuming import OWN, checked_state, contiguous, state_of, take_over
from .scaling import Units, units_of
from .schedule import Schedule
from .settings import check_settings, estimator_for, recipe_of
from .steps import Displacement, QuadraticModel, Situation, StepRule, Taken, taken


class NaturalGradient(torch.optim.Optimizer):
    """`NaturalGradient(model, likelihood=...)`: the model's parameters along the natural gradient of a metric.

    `metric` is any `RiemannianMetric`; `estimator` says where its statistics come from (by default labels drawn from
    the model, one each; `Empirical()` is the loss's own backward pass), `decay` is that of their running average (0: no
    memory), `schedule` when they are gathered and factorized, `inversion` how the damped metric is made ready to be
    inverted, `solver` how it is solved, if not as it finds best itself; `constants` what
    a layerwise metric keeps of parameters without a layer. `damping` is a policy, or a number for factored damping,
    or None. `step_size` says how far to go, `lr` multiplies that, `momentum` is of displacements. `weight_decay` is
    decoupled: after the step, weights shrink by lr * weight_decay. `params` are parameter groups with lr and
    weight_decay of their own. `divided_by` is what the loss divides the sum over all examples since the last step by,
    where that is not their number.

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
        lr: float = 0.5,
        momentum: float = 0.9,
        damping: Damping | float | None = LevenbergMarquardt(),
        weight_decay: float = 0.0,
        estimator: Estimator | None = None,
        decay: float = 0.9,
        schedule: Schedule = Schedule(),
        step_size: StepRule = QuadraticModel(0.25, every=5),
        inversion: Inversion = Factorized(),
        solver: Solver | None = None,
        constants: ConstantBlocks = ConstantBlocks(),
        averaging: IterateAverage | None = None,
        params: Iterable[Any] | None = None,
        divided_by: float | None = None,
        read: Callable[[Any], Tensor] = read_output,
    ):
        self.policy = damping_policy(damping)
        self.estimator = estimator_for(metric) if estimator is None else estimator
        self.metric, self.momentum, self.constants = metric, momentum, constants
        self.inversion, self.solver = inversion, solver
        self.step_size, self.schedule, self.divided_by = step_size, schedule, divided_by
        lasts = check_settings(self, likelihood, decay, averaging)
        self.network = Network.from_torch(model, likelihood, read=read)
        self._complete = False
        super().__init__(grouped(self.network, params), {"lr": lr, "weight_decay": weight_decay})
        self._complete = True
        self.memory = Memory(constants.applied(metric), self.policy, decay, solver, inversion, lasts)
        self.averaged = None if averaging is None else Averaged(averaging)
        self.steps = 0
        self.tally, self.report = Tally(), StepReport(0, self.memory.damping)
        self.listeners: list[Heard] = []
        self.scaler: torch.amp.GradScaler | None = None
        self._before: Vector | None = None
        self._last: Taken | None = None
        self._loaded: dict[str, Tensor] | None = None
        self._trouble: list[str] = []
        self._listener = Listener(self.network, self.estimator, metric.output, schedule.fraction, is_compiled(model))
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
            report = self._step() if finite_loss else self._skipped("a loss that is not finite")
        except NonFinite:  # of numbers that are finite and too large
            back()
            report = self._skipped("a metric that is not finite")
        except BaseException:
            back()
            raise
        finally:
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

    def _expect(self) -> None:
        statistics, adapts = self._statistics_due(), self._adapts()
        again = adapts or self.step_size.needs_batch or (statistics and not self._listener.shares)
        self._listener.expect(Wanted(statistics, again, adapts))

    def _step(self) -> StepReport:
        self.network.check_unchanged()
        passes = self._listener.passes()
        units = units_of(self, sum(p.examples for p in passes), self.divided_by)
        if units.overflow:
            return self._skipped("an overflow of the scaled gradient")
        df = gradient_of(self.network, units.gradient)
        if df is None:
            return self._skipped("no gradient")
        if not finite(df):
            return self._skipped("a gradient that is not finite")
        self._settle()
        batch = Batch(
            self.network, passes, self.network.likelihood if self.metric.output is None else self.metric.output
        )
        if self.step_size.needs_batch and not passes:
            raise InvalidSetting(
                f"InvalidSetting in NaturalGradient.step: {self.step_size!r} looks at the batch, and the model was not "
                f"called since the last step. Call the model itself in the loop, or use step_size=Constant()."
            )
        statistics = self._statistics_due() and self._look(units)
        if self.memory.value is None:
            return self._skipped("no statistics yet")
        proposal, factorized = self._proposal(df)
        chosen = self.step_size.displacement(self._situation(df, proposal, batch))
        if not finite(chosen.vector):
            self.memory.distrust()
            return self._skipped("a displacement that is not finite")
        actual = self._move(chosen, batch, units)
        if actual is not None and not math.isfinite(actual):
            self._before, self._last = None, None
            return self._skipped("a step after which the loss was far above the model")
        self._before = contiguous(chosen.vector) if self.momentum else None
        self._last = taken(chosen, df, proposal, self._last)
        if self.averaged is not None:
            self.averaged.add(self.network.parameters, self.steps)
        self.steps += 1
        worst, condition = self._worst() if factorized else ("", None)
        return StepReport(
            self.steps, self.memory.damping, chosen.alpha, chosen.mu, chosen.predicted, actual, statistics, factorized,
            worst=worst, condition=condition,
        )  # fmt: skip

    def _situation(self, df: Covector, proposal: Vector, batch: Batch) -> Situation:
        assert self.memory.damped is not None
        return Situation(
            df,
            relative_rates(self.network, self.param_groups, proposal),
            self._before,
            max(float(group["lr"]) for group in self.param_groups),
            self.momentum,
            self.memory.damped,
            batch,
            self.memory.reference,
            self.memory.damping,
            self._last,
            self.steps,
            self._adapts(),
        )

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
            self._before, self._last = None, None
            self._note("a layer that is read anew: the memory starts over")
        if self._loaded is not None:
            self._before, self._loaded = Vector(self.network.tangent_space, self._loaded), None

    def _look(self, units: Units) -> bool:
        """Statistics of the loop's forwards, averaged; False where they were refused."""
        try:
            observation = self._listener.observation(units.divided_by)
            if observation is not None:
                self.memory.update(observation)
                return True
        except NonFinite:
            pass
        self._note("statistics that are not finite" if self._listener.passes() else "statistics of no forward")
        return False

    def _proposal(self, df: Covector) -> tuple[Vector, bool]:
        """Minus the natural gradient, and whether factorizations were made for it.

        Where they fail the last ones stay, if there were any, and an adaptive damping grows.
        """
        due = self.memory.damped is None or self.schedule.factorization_due(self.steps)
        if not due:
            return -self.memory.sharp(df), False
        renewed = self.memory.renewed_sharp(df)
        if renewed is not None:
            return -renewed, True
        self._note("a factorization that failed")
        self.memory.damping = self.policy.adapted(self.memory.damping, math.nan)
        return -self.memory.sharp(df), False

    def _move(self, chosen: Displacement, batch: Batch, units: Units) -> float | None:
        """Moves the parameters, and where the damping is due, looks at what became of the loss and adapts it.

        Where the loss has become far larger, or is not finite any more, everything but the damping is put back.
        """
        parameters = self.network.parameters
        adapts = self._adapts() and chosen.predicted is not None
        kept = {name: p.detach().clone() for name, p in parameters.items()} if adapts else {}
        before = batch.outputs_before() if adapts else []
        moves = chosen.vector.to_parameters()
        torch._foreach_add_(list(parameters.values()), [moves[name].to(p.dtype) for name, p in parameters.items()])
        actual = batch.change(before, units.score) if adapts else None
        if adapts and actual is None:
            self._note("no gradient at the outputs: the damping is not adapted")
        if actual is not None and chosen.predicted is not None:
            ratio = actual / chosen.predicted if chosen.predicted else math.nan
            self.memory.damping = self.policy.adapted(self.memory.damping, ratio)
            if not actual < abs(chosen.predicted):  # the loss has grown by more than the model promised to lose
                for name, p in parameters.items():
                    p.copy_(kept[name])
                return math.inf
        decay_weights(self.param_groups)
        return actual

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
        self._listener.forget()
        self._expect()

    def __getstate__(self) -> NoReturn:
        raise InvalidSetting(
            "InvalidSetting in a copy of NaturalGradient: it listens to one model, and cannot be copied or pickled. "
            "Copy the model, make another optimizer for the copy, and give it this one's state: "
            "other.load_state_dict(opt.state_dict())."
        )

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={value!r}" for name, value in self.recipe().items())
        return f"{type(self).__name__}(model, {said})"

    def recipe(self) -> dict[str, Any]:
        """Everything that decides the run, by name: `repr` is the call that makes the optimizer anew."""
        return recipe_of(self)
