"""Whole steps: the library's loop by recipe, and the same loop bare."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..networks import Empirical, MonteCarlo
from ..optim import Constant, NaturalGradient, Schedule
from .floor import Heard, Pair, applied, averaged, block, inverses, moments, parts
from .kernels import Kernels
from .matrix_free import curvature
from .workloads import Workload


@dataclass(frozen=True)
class Recipe:
    """How often what is done. `model` is every how many steps a quadratic model is made, 0 for never."""

    name: str
    sampled: bool
    statistics: int = 1
    factorize: int = 10
    warmup: int = 0
    model: int = 0
    damping: float = 1e-1
    lr: float = 1e-3
    decay: float = 0.9
    momentum: float = 0.9
    settings: dict[str, Any] = field(default_factory=dict)

    def due(self, every: int, step: int) -> bool:
        return step < self.warmup or step % every == 0


FIXED: dict[str, Any] = {
    "schedule": Schedule(1, 10, warmup=0), "step_size": Constant(), "damping": 1e-1, "lr": 1e-3,
}  # fmt: skip
RECIPES = {
    "empirical": Recipe("empirical", False, settings={"estimator": Empirical(), **FIXED}),
    "sampled": Recipe("sampled", True, settings={"estimator": MonteCarlo(1), **FIXED}),
    "default": Recipe("default", True, 5, 10, 3, 5, 1.0),
}
"""Statistics at every step from the loss's own backward pass, or from a sampled label, factorizations at every tenth;
and what `NaturalGradient` does where nothing is said."""


class Loop:
    """The training loop of the library on a workload."""

    def __init__(self, work: Workload, recipe: Recipe):
        self.of = work
        self.opt = NaturalGradient(work.module, work.likelihood, **recipe.settings)

    def turn(self) -> None:
        self.opt.zero_grad()
        self.of.loss(self.of.module(self.of.x)).backward()
        self.opt.step()

    def ten(self) -> None:
        for _ in range(10):
            self.turn()


class BareLoop:
    """The same bare. With a fixed recipe it takes the library's steps; the default's model is the same products, and
    its rules for λ and the step are left out: steps are short."""

    def __init__(self, work: Workload, recipe: Recipe, kernels: Kernels):
        self.of, self.recipe, self.kernels = work, recipe, kernels
        self.heard, self.step = Heard(work), 0
        self.average: list[Pair] = []
        self.inverted: list[Pair] = []
        self.before: list[Tensor] = []
        self.mean: list[Tensor] = []
        self.seen = 0
        self.parameters = [p for m in self.heard.layers for p in own(m)]
        self.names = {id(p): name for name, p in work.module.named_parameters()}

    def ten(self) -> None:
        for _ in range(10):
            self.turn()

    def turn(self) -> None:
        recipe, work = self.recipe, self.of
        wanted = recipe.due(recipe.statistics, self.step)
        if wanted:
            z, calls = self.heard.forward()
            ys = [y for _, _, y in calls]
            if recipe.sampled:
                g = torch.autograd.grad(z, ys, self.heard.sampled(z), retain_graph=True)
                self.look(calls, g, 1 / len(z))
                gradients = torch.autograd.grad(work.loss(z), self.parameters)
            else:
                found = torch.autograd.grad(work.loss(z), [*ys, *self.parameters])
                self.look(calls, found[: len(ys)], float(len(z)))
                gradients = found[len(ys) :]
        else:
            gradients = torch.autograd.grad(work.loss(work.module(work.x)), self.parameters)
        with torch.no_grad():
            self.move(list(gradients))
        self.step += 1

    def look(self, calls: Any, g: Any, weight: float) -> None:
        self.seen += 1
        kept = 1 - (1 - self.recipe.decay) / (1 - self.recipe.decay**self.seen)
        if not self.average:
            self.average = moments(self.kernels, calls, g, weight)
        else:
            averaged(self.kernels, calls, g, weight, self.average, kept)

    def move(self, gradients: list[Tensor]) -> None:
        recipe = self.recipe
        if recipe.model:  # it averages gradients too
            for mean, g in zip(self.mean, gradients, strict=False):
                mean.lerp_(g, 0.1)
            self.mean = gradients = self.mean or gradients
        if recipe.due(recipe.factorize, self.step):
            self.inverted = inverses([(full(G), full(A)) for G, A in self.average], recipe.damping)
        rest = iter(gradients)
        blocks = []
        for m in self.heard.layers:
            taken = [next(rest) for _ in own(m)]
            blocks.append(block(m, taken[0], taken[1] if len(taken) > 1 else None))
        proposal = applied(self.inverted, blocks)
        alpha, mu = recipe.lr, recipe.momentum
        if recipe.model and self.before and self.step % recipe.model == 0:
            self.quadratic(proposal, self.before)
        if self.before:
            step = [b.mul_(mu).add_(v, alpha=-alpha) for v, b in zip(proposal, self.before, strict=True)]
        else:
            step = [v.mul_(-alpha) for v in proposal]
        self.before = step
        for m, x in zip(self.heard.layers, step, strict=True):
            for p, part in zip(own(m), parts(m, x), strict=True):
                p.add_(part)

    def quadratic(self, first: list[Tensor], second: list[Tensor]) -> None:
        """The Fisher of a quarter of the batch on two directions, and the outputs after a step."""
        work, n = self.of, max(1, len(self.of.x) // 4, min(128, len(self.of.x)))
        x, both = work.x[:n], []
        for direction in (first, second):
            tangents = {}
            for m, block_of in zip(self.heard.layers, direction, strict=True):
                for p, part in zip(own(m), parts(m, block_of), strict=True):
                    tangents[self.names[id(p)]] = part
            both.append(tangents)
        parameters = {self.names[id(p)]: p.detach() for p in self.parameters}
        with sdpa_kernel(SDPBackend.MATH):
            moved: list[Any] = [
                torch.func.jvp(lambda q: functional_call(work.module, q, (x,)), (parameters,), (t,)) for t in both
            ]
        z = moved[0][0]
        for _, t in moved:
            (t * curvature(work, z, t)).sum()
        work.module(x)


def own(m: nn.Module) -> list[nn.Parameter]:
    return list(m.parameters(recurse=False))


def full(M: Tensor) -> Tensor:
    """What was averaged on and below the diagonal alone, on both sides of it."""
    if M.ndim != 2:
        return M
    return torch.tril(M).add_(torch.tril(M, -1).mT)
