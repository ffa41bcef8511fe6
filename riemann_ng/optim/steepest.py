"""Steepest descent in a norm, in an ordinary training loop: Muon, sign descent, modular duality, and their like.

    opt = SteepestDescent(model, likelihood=Categorical(), norm=norms.Modular(), lr=0.1)

Momentum is of covectors: gradients are averaged, and the duality map makes a step of the average. A norm made of a
metric is observed in the loop's own passes, as `NaturalGradient` does; any other looks at nothing but `.grad`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from ..elements import Covector
from ..errors import InvalidSetting, NonFinite
from ..inner_products import InnerProduct
from ..likelihoods import Likelihood
from ..metrics.averages import MetricAverage
from ..metrics.base import given, value_at
from ..networks import Estimator, Network
from ..networks.outputs import read_output
from ..norms import NewtonSchulz, Norm, Spectral
from .finite import finite
from .groups import check_group, decay_weights, gradient_of, grouped, relative_rates
from .listeners import Heard
from .listening import Listener, Wanted, is_compiled
from .report import StepReport, Tally, number_of
from .resuming import OWN
from .settings import alike, estimator_for


class SteepestDescent(torch.optim.Optimizer):
    """Moves the parameters by -lr * sharp(average of the gradients), a step of norm lr.

    `norm` is any norm over the network; the default is Muon's, weight by weight, biases as columns. With
    `length="dual"` the step is dual_norm times that, minimizing df(v) + ½ norm(v)²/lr: of an inner product's norm, the
    natural gradient. The average is `momentum * average + (1 - momentum) * gradient`; `nesterov` looks one step ahead,
    as in Muon. `weight_decay` is decoupled: before the step, weights shrink by lr * weight_decay. `params` are
    parameter groups with lr and weight_decay of their own.

    For a norm made of a metric: `estimator` says where statistics come from (by default labels drawn from the model,
    one each), `decay` is that of the metric's running average (0: no memory), `every` how many steps go by from one
    look to the next, `divided_by` what the loss divides the sum over all examples by, where that is not their number.

    What goes wrong leaves the state untouched: a gradient that is not finite skips the step, statistics that are not
    finite are not averaged. `tally` counts them, `report` is the account of the last step.
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        norm: Norm = Spectral(method=NewtonSchulz(), scale="original", bias="separate"),
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        length: Literal["unit", "dual"] = "unit",
        estimator: Estimator | None = None,
        decay: float = 0.9,
        every: int = 1,
        params: Iterable[Any] | None = None,
        divided_by: float | None = None,
        read: Callable[[Any], Tensor] = read_output,
    ):
        check(norm, likelihood, momentum, decay, every, length, divided_by)
        self.norm, self.momentum, self.nesterov, self.length = norm, float(momentum), bool(nesterov), length
        self.decay, self.every, self.divided_by = float(decay), every, divided_by
        self.network = Network.from_torch(model, likelihood, read=read)
        self._complete = False
        super().__init__(grouped(self.network, params), {"lr": lr, "weight_decay": weight_decay})
        self._complete = True
        self.steps, self.tally, self.report = 0, Tally(), StepReport(0, 0.0)
        self.listeners: list[Heard] = []
        self._buffer: Covector | None = None
        self._here: Norm | None = None
        self._value: InnerProduct | None = None
        self._average: MetricAverage | None = None
        self._loaded: dict[str, Any] | None = None
        self._trouble: list[str] = []
        self.estimator, self._listener = estimator, None
        if norm.metric is not None:
            self.estimator = estimator_for(norm.metric) if estimator is None else estimator
            self._average = MetricAverage(norm.metric, self.decay) if self.decay else None
            output, compiled = norm.metric.output, is_compiled(model)
            self._listener = Listener(self.network, self.estimator, output, 1.0, compiled)
        else:
            norm.over(self.network)  # what a norm has to refuse it refuses here
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
        kept = self._mark()
        try:
            fine = number is None or math.isfinite(number)
            report = self._step() if fine else self._skipped("a loss that is not finite")
        except NonFinite:
            kept()
            report = self._skipped("a norm that is not finite")
        except BaseException:
            kept()
            raise
        finally:
            if self._listener is not None:
                self._listener.forget()
            self._expect()
        self.report = replace(report, loss=number, trouble=tuple(self._trouble))
        for listener in self.listeners:
            listener(self.report)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        if self._listener is not None:
            self._listener.zero()

    def stated(self) -> dict[str, str]:
        """By the path of a layer, the norm of its parameters, as an expression."""
        there = self._here if self._here is not None else self.norm.over(self.network)
        parts = there.summands()
        if parts is None:
            return {path: there.expression() for path in self.network.blocks}
        return {path: norm.expression() for path, norm in parts.items()}

    def close(self) -> None:
        """Removes every hook from the model."""
        if self._listener is not None:
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

    @property
    def _due(self) -> bool:
        empty = self._value is None and (self._loaded is None or self._loaded["value"] is None)
        return self._listener is not None and (empty or self.steps % self.every == 0)

    def _expect(self) -> None:
        if self._listener is not None:
            self._listener.expect(Wanted(self._due, self._due and not self._listener.shares))

    def _step(self) -> StepReport:
        self.network.check_unchanged()
        examples = 0 if self._listener is None else sum(p.examples for p in self._listener.passes())
        share = None if self.divided_by is None or not examples else self.divided_by / examples
        df = gradient_of(self.network, share)
        if df is None:
            return self._skipped("no gradient")
        if not finite(df):
            return self._skipped("a gradient that is not finite")
        self._settle()
        looked = self._due and self._look(float(examples if self.divided_by is None else self.divided_by))
        if self._here is None:
            return self._skipped("no statistics yet")
        buffer = self._averaged(df)
        ahead = blend(df, buffer, self.momentum) if self.nesterov else buffer
        v = self._here.sharp(ahead)
        if self.length == "dual":
            v = self._here.dual_norm(ahead) * v
        if not finite(v):
            return self._skipped("a displacement that is not finite")
        rate = max(float(group["lr"]) for group in self.param_groups)
        moves = relative_rates(self.network, self.param_groups, v).to_parameters()
        parameters = self.network.parameters
        decay_weights(self.param_groups)
        parts = [moves[name].to(p.dtype) for name, p in parameters.items()]
        torch._foreach_add_(list(parameters.values()), parts, alpha=-rate)
        self._buffer = buffer
        self.steps += 1
        return StepReport(self.steps, 0.0, rate, statistics=looked)

    def _averaged(self, df: Covector) -> Covector:
        before = self._buffer
        if before is None:
            return df * (1 - self.momentum)
        return blend(before, df, 1 - self.momentum)

    def _look(self, divided_by: float) -> bool:
        """Statistics of the loop's forwards, averaged; False where they were refused."""
        listener, metric = self._listener, self.norm.metric
        assert listener is not None and metric is not None
        try:
            seen = listener.observation(divided_by)
            if seen is not None:
                value = value_at(metric, seen) if self._average is None else self._average.update(seen)
                self._take(value)
                return True
        except NonFinite:
            pass
        self._note("statistics that are not finite" if listener.passes() else "statistics of no forward")
        return False

    def _take(self, value: InnerProduct) -> None:
        """The norm with a value of its metric, which is kept as its matrices: then it does not hold its batch."""
        held = next(iter(value.tensors()), None) is not None
        self._value = InnerProduct.from_state(value.space, value.state()) if held else value
        self._here = self.norm.with_value(self._value)

    def _settle(self) -> None:
        """What is remembered, on the tangent space as the network has it by now."""
        space = self.network.tangent_space
        if self._loaded is not None:
            loaded, self._loaded = self._loaded, None
            if loaded["buffer"] is not None:
                self._buffer = Covector(space, loaded["buffer"])
            if self._average is not None and loaded["average"] is not None:
                self._average.load_state(space, loaded["average"])
            if loaded["value"] is not None:
                self._take(InnerProduct.from_state(space, loaded["value"]))
        known = self._here.space if self._here is not None else None
        if known is not None and known != space:
            self._note("a layer that is read anew: the memory starts over")
            self._here, self._value, self._buffer = None, None, None
            self._average = MetricAverage(self._average.metric, self.decay) if self._average is not None else None
        if self._here is None and self.norm.metric is None:
            self._here = self.norm.over(self.network)

    def _skipped(self, why: str) -> StepReport:
        """Nothing has moved, and the step does not count."""
        self.tally.add(why)
        return StepReport(self.steps, 0.0, skipped=why)

    def _note(self, trouble: str) -> None:
        self.tally.add(trouble)
        self._trouble.append(trouble)

    def _mark(self) -> Callable[[], None]:
        """A function that puts the memory back to where it is now."""
        kept = (self._buffer, self._here, self._value, self._loaded, self._average)
        averages = [] if self._average is None else [(a, a.value, a.count) for a in self._average.averages]

        def back() -> None:
            self._buffer, self._here, self._value, self._loaded, self._average = kept
            for average, value, count in averages:
                average.value, average.count = value, count

        return back

    # State

    def state_dict(self) -> dict[str, Any]:
        """The state of the run, of tensors, numbers and strings: a run resumed from it goes on bit for bit."""
        own = self._loaded or {
            "buffer": None if self._buffer is None else dict(self._buffer.blocks),
            "average": None if self._average is None or self._value is None else self._average.state(),
            "value": None if self._value is None else self._value.state(),
        }
        counts = {"steps": self.steps, "observations": self.network._observations, "tally": dict(self.tally.counts)}
        return {**super().state_dict(), OWN: {"norm": repr(self.norm), **counts, **own}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave, of an optimizer made alike for a model made alike."""
        own = copy.deepcopy(state_dict.get(OWN, {}))
        if own.get("norm") != repr(self.norm):
            raise InvalidSetting(
                f"InvalidSetting in load_state_dict: the state is of norm={own.get('norm')}, and this optimizer has "
                f"norm={self.norm!r}. Make it alike."
            )
        super().load_state_dict({k: v for k, v in state_dict.items() if k != OWN})
        self.steps, self.network._observations = own["steps"], own["observations"]
        self._buffer, self._here, self._value = None, None, None
        self._loaded = {key: own[key] for key in ("buffer", "average", "value")}
        self.tally.counts.clear()
        self.tally.counts.update(own["tally"])
        if self._listener is not None:
            self._listener.forget()
        self._expect()

    def __getstate__(self) -> NoReturn:
        raise InvalidSetting(
            "InvalidSetting in a copy of SteepestDescent: it belongs to one model, and cannot be copied or pickled. "
            "Copy the model, make another optimizer for the copy, and give it this one's state: "
            "other.load_state_dict(opt.state_dict())."
        )

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={value!r}" for name, value in self.recipe().items())
        return f"{type(self).__name__}(model, {said})"

    def recipe(self) -> dict[str, Any]:
        """Everything that decides the run, by name: `repr` is the call that makes the optimizer anew."""
        rates, decays = ([g.get(f"initial_{k}", g[k]) for g in self.param_groups] for k in ("lr", "weight_decay"))
        own = {
            "likelihood": self.network.likelihood, "norm": self.norm, "lr": alike(rates), "momentum": self.momentum,
            "nesterov": self.nesterov, "weight_decay": alike(decays), "length": self.length,
        }  # fmt: skip
        if self.norm.metric is not None:
            own |= {"estimator": self.estimator, "decay": self.decay, "every": self.every}
        return own | ({} if self.divided_by is None else {"divided_by": self.divided_by})


def blend(a: Covector, b: Covector, weight: float) -> Covector:
    """(1 - weight) a + weight b, in one pass over the blocks, rounded as torch's lerp is."""
    return Covector._of(a.lives_in, None, {path: t.lerp(b[path], weight) for path, t in a.blocks.items()})


def check(
    norm: object, likelihood: object, momentum: object, decay: object, every: object, length: object, divided: object
) -> None:
    if not isinstance(norm, Norm):
        hint = f": {norm.__name__}()" if isinstance(norm, type) else ", as norms.Spectral()"
        raise refused(f"norm={given(norm)}, expected a norm, an instance{hint}. A metric is for NaturalGradient.")
    if not isinstance(likelihood, Likelihood):
        raise refused(f"likelihood={given(likelihood)}, expected one, an instance, as Categorical().")
    for name, number in (("momentum", momentum), ("decay", decay)):
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number < 1:
            raise refused(f"{name}={number!r}, expected a number in [0, 1).")
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise refused(f"every={every!r}, expected a positive number of steps.")
    if length not in ("unit", "dual"):
        raise refused(f"length={length!r}, expected 'unit' or 'dual'.")
    if divided is not None and (isinstance(divided, bool) or not isinstance(divided, (int, float)) or not divided > 0):
        raise refused(f"divided_by={divided!r}, expected a positive number, or None for the number of examples.")


def refused(reason: str) -> InvalidSetting:
    return InvalidSetting(f"InvalidSetting in SteepestDescent: {reason}")
