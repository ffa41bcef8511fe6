"""Subjects that train: optimizers of torch, and functions that make one step."""

from __future__ import annotations

import copy
import inspect
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...likelihoods import Likelihood
from .directions import Subject
from .naming import named, second_is_likelihood
from .problems import CALL, InvalidSubject, Problem


class Training(Subject):
    """A loop of several steps on a copy of the module."""

    steps = 4

    def run(self, problem: Problem, steps: int, rate: float = 1.0) -> Tensor:
        problem = self.prepared(problem)
        module = copy.deepcopy(problem.module)
        shapes = {name: p.shape for name, p in module.named_parameters()}
        step = self.started(module, problem, rate)
        seen = [problem.predictions(module)]
        for _ in range(steps):
            step()
            after = {name: p.shape for name, p in module.named_parameters()}
            if after != shapes:
                changed = sorted(name for name in shapes.keys() | after.keys() if shapes.get(name) != after.get(name))
                raise InvalidSubject(
                    f"InvalidSubject in {CALL}: {self.name} changes the structure of the model: {', '.join(changed)} "
                    f"came, went or changed shape. A subject moves the parameters that are there; change the structure "
                    f"before, and pass the changed model."
                )
            seen.append(problem.predictions(module))
        return torch.stack(seen)

    def prepared(self, problem: Problem) -> Problem:
        return problem.folded()

    @abstractmethod
    def started(self, module: nn.Module, problem: Problem, rate: float) -> Callable[[], None]:
        """What makes one step."""


class OptimizerFactory(Training):
    """A torch optimizer, made anew for every run."""

    has_rate = True

    def __init__(self, factory: Callable[..., Any], name: str | None = None, of: str = "model"):
        self.factory, self.name, self.of = factory, name or named(factory), of
        self.source = named(factory) if named(factory).startswith("lambda ") else ""
        self.takes_likelihood = of == "model" and second_is_likelihood(factory)

    def prepared(self, problem: Problem) -> Problem:
        return problem if self.takes_likelihood else problem.folded()

    def started(self, module: nn.Module, problem: Problem, rate: float) -> Callable[[], None]:
        made = self.made(module, problem.likelihood)
        for group in made.param_groups:
            if rate != 1 and isinstance(group.get("lr"), int | float):
                group["lr"] *= rate

        def step() -> None:
            made.zero_grad()
            problem.loss(module).backward()
            made.step()

        return step

    def made(self, module: nn.Module, likelihood: Likelihood) -> torch.optim.Optimizer:
        parameters = [p for p in module.parameters() if p.requires_grad]
        if self.of == "parameters":
            made = self.factory(parameters)
        elif self.takes_likelihood:
            made = self.factory(module, likelihood)
        else:
            try:
                made = self.factory(module)
            except (TypeError, AttributeError) as error:  # it wants parameters; if it does not, its own error is told
                try:
                    made = self.factory(parameters)
                except Exception:
                    raise error from None
                self.of = "parameters"
        if not isinstance(made, torch.optim.Optimizer):
            raise InvalidSubject(
                f"InvalidSubject in {CALL}: {self.name} must return a torch optimizer, got {type(made).__name__}. "
                f"A function that moves the parameters itself is update(f), f(model, x, y)."
            )
        closure = inspect.signature(made.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise InvalidSubject(
                f"InvalidSubject in {CALL}: {type(made).__name__}.step needs a closure that evaluates the loss, "
                f"several times a step. Write the loop yourself: update(f), where f(model, x, y) makes one step."
            )
        return made


class Update(Training):
    """A function f(model, x, y) that makes one step in place. It has its own loss: outputs are as the original's."""

    brings_loss = True

    def __init__(self, function: Callable[[nn.Module, Any, Any], Any], name: str | None = None):
        self.function, self.name = function, name or named(function)

    def started(self, module: nn.Module, problem: Problem, rate: float) -> Callable[[], None]:
        def step() -> None:
            returned = self.function(module, problem.x, problem.y)
            if isinstance(returned, nn.Module) and returned is not module:
                raise InvalidSubject(
                    f"InvalidSubject in {CALL}: {self.name} returns another model. An update moves the parameters of "
                    f"the one it is given, in place: with torch.no_grad(): p.add_(...)."
                )

        return step
