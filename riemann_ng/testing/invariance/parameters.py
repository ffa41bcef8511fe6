"""Changes of all parameters together, θ = ψ(u): linear ones, which a step can commute with, and smooth ones, with
which it can commute to first order in the learning rate.

They mix the parameters of different layers. A method that treats layers, tensors or matrices one by one has no
counterpart after such a change, and the verdict is "not applicable": that is found out by ψ = id, which only forgets
what the layers were.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from ...errors import RiemannError
from ...networks import Network
from ...reparametrize import Change, LinearChange, SmoothChange, reparametrize_parameters
from .carriers import ParameterTwin
from .probes import Probe
from .problems import InvalidSubject, Problem
from .records import HELD, NOT_APPLICABLE, REFUTED, UNDECIDED, Cell, Counterexample
from .running import Runner, displacement, same_randomness
from .subjects import Direction, Subject
from .verdicts import DIFFERENT, LOUD, SAME, STANDSTILL

LARGEST = 2048
"""The largest number of parameters that a matrix is made for."""
HALVINGS = 14
"""How often the learning rate is halved at most."""
STEEP, FLAT = 0.8, 0.3
"""Slopes, of log mismatch / displacement over log rate: first order, and no order at all."""
STRAIGHT = 0.1
"""How far the slope of the displacement may be from one where orders are told."""


class ParameterProbe(Probe):
    """θ = ψ(u) for all trained parameters, one after the other."""

    on = "parameters"

    @abstractmethod
    def change(self, n: int, seed: int, size: float) -> Change:
        """ψ for n parameters."""

    def reason(self, problem: Problem, subject: Subject) -> str:
        n = sum(p.numel() for p in problem.network.parameters.values())
        if n > LARGEST:
            return f"a change of all {n} parameters together is a matrix with {n} rows; {LARGEST} at most are tried"
        off = mixing(problem, subject)
        if off < DIFFERENT:
            return ""
        return (
            "the subject treats layers or tensors one by one: with all parameters in one vector, and nothing else "
            f"changed, it {'fails' if math.isinf(off) else 'makes another step'}. Frames on the layers' spaces are the "
            "changes that it can keep"
        )

    def moved(self, problem: Problem, seed: int, size: float = 1.0) -> Problem:
        n = sum(p.numel() for p in problem.network.parameters.values())
        return changed(problem, self.change(n, seed, size))

    def told(self, problem: Problem, seed: int) -> tuple[tuple[str, ...], str]:
        n = sum(p.numel() for p in problem.network.parameters.values())
        return (), f"θ = ψ(u) for all {n} parameters"


@dataclass(frozen=True)
class LinearParameters(ParameterProbe):
    """θ = P u, for a matrix P on all parameters. Whatever comes from the function alone commutes with it exactly."""

    group: str = "linear"

    def change(self, n: int, seed: int, size: float) -> Change:
        return LinearChange.draw(n, "general", seed, size)


@dataclass(frozen=True)
class SmoothParameters(ParameterProbe):
    """θ = ψ(u), curved everywhere. No finite step commutes with it; how fast the mismatch shrinks tells who follows
    the same flow: the mismatch, in units of the displacement, halves with the learning rate.

    One step of a metric is compared as a tangent vector, and so exactly.
    """

    group: str = "smooth"
    strength: float = 0.3

    def change(self, n: int, seed: int, size: float) -> Change:
        return SmoothChange(n, self.strength * size, seed)

    def cell(self, runner: Runner, cases: int) -> Cell:
        if isinstance(runner.subject, Direction):
            return runner.cell(self, cases)
        reason = self.reason(runner.problem, runner.subject)
        if not reason and not runner.subject.has_rate:
            reason = (
                "the order of the mismatch is seen at smaller and smaller steps, and the subject has no learning rate. "
                "Give optimizer(factory), of a torch optimizer with one"
            )
        if reason:
            return Cell(self.on, self.group, NOT_APPLICABLE, reason=reason)
        if runner.standstill:
            return Cell(self.on, self.group, UNDECIDED, reason=runner.standstill)
        return self.by_slope(runner, [runner.seed + 17 * k + 1 for k in range(cases)])

    def by_slope(self, runner: Runner, seeds: Sequence[int]) -> Cell:
        steps = 1 if displacement(runner.base()[:2]) > STANDSTILL else runner.steps
        found = []
        for seed in seeds:
            moved = self.moved(runner.problem, seed)
            found.append(refined(partial(mismatch, runner, moved, steps), runner.noise))
        verdicts = {finding for finding, _ in found}
        verdict = verdicts.pop() if len(verdicts) == 1 else UNDECIDED
        worst = max(range(len(found)), key=lambda k: (found[k][0] != HELD, found[k][1][-1]))
        ratios = found[worst][1]
        told = ", ".join(f"{r:.1e}" for r in ratios)
        reason = f"mismatch / displacement {told} as the learning rate halves, slope {slope(ratios):.2f}"
        example = None
        if verdict == REFUTED:
            element = self.told(runner.problem, seeds[worst])[1]
            example = Counterexample(ratios[-1], seeds[worst], (), element, steps)
        return Cell(self.on, self.group, verdict, ratios[-1], runner.noise, len(found), example, reason=reason)


def mismatch(runner: Runner, moved: Problem, steps: int, rate: float) -> tuple[float, float]:
    """The difference of two short runs in units of the displacement, and the displacement."""
    with same_randomness():
        base, run = (runner.subject.run(problem, steps, rate).detach() for problem in (runner.problem, moved))
    return runner.compared(run, base), displacement(base)


def refined(at: Callable[[float], tuple[float, float]], noise: float) -> tuple[str, list[float]]:
    """The verdict on one element, and the last three ratios: at learning rates that halve until an order shows."""
    ratios: list[float] = []
    moves: list[float] = []
    finding = UNDECIDED
    for k in range(HALVINGS):
        ratio, move = at(0.5**k)
        if move < STANDSTILL and len(ratios) >= 3:
            break
        ratios, moves = [*ratios, ratio][-3:], [*moves, move][-3:]
        if len(ratios) == 3 and (finding := judged(ratios, moves, noise)) != UNDECIDED:
            break
    return finding, ratios


def slope(ratios: Sequence[float]) -> float:
    """The order in the learning rate, which halves from one ratio to the next."""
    if ratios[-1] <= 0:
        return math.inf
    return math.log2(ratios[0] / ratios[-1]) / (len(ratios) - 1)


def judged(ratios: Sequence[float], moves: Sequence[float], noise: float) -> str:
    """Of three learning rates. Where the displacement itself does not halve yet, steps are too long to see an order."""
    if not all(map(math.isfinite, [*ratios, *moves])):
        return UNDECIDED
    if max(ratios) <= SAME:
        return HELD
    if min(moves) <= 0 or any(abs(math.log2(a / b) - 1) > STRAIGHT for a, b in pairwise(moves)):
        return UNDECIDED
    if slope(ratios) >= STEEP and all(b < a for a, b in pairwise(ratios)):
        return HELD
    if slope(ratios) <= FLAT and ratios[-1] >= max(DIFFERENT, LOUD * noise):
        return REFUTED
    return UNDECIDED


class Unchanged(Change):
    """ψ = id."""

    def __call__(self, u: Tensor) -> Tensor:
        return 1.0 * u

    def inverse(self, theta: Tensor) -> Tensor:
        return theta


def changed(problem: Problem, psi: Change) -> Problem:
    """The problem with its parameters given by u."""
    module = reparametrize_parameters(problem.module, psi)
    network = Network.from_torch(module, problem.likelihood, problem.x, read=problem.read)
    u = module.u.detach().clone()

    def jacobian() -> Tensor:
        return torch.func.jacfwd(psi)(u)

    return replace(problem, module=module, twin=ParameterTwin(problem.network, network, jacobian))


def mixing(problem: Problem, subject: Subject) -> float:
    """How far a step goes elsewhere, in units of the step, when all parameters are one vector and nothing else is
    changed; infinite where the subject fails then."""
    here = stepped(subject, problem)
    try:
        there = stepped(subject, changed(problem, Unchanged()))
    except InvalidSubject:
        raise
    except (RiemannError, ArithmeticError, RuntimeError, ValueError, IndexError):
        return math.inf
    off = (there - here).abs().max() / (here - here[0]).abs().max()
    return float(off) if bool(off.isfinite()) else math.inf


def stepped(subject: Subject, problem: Problem) -> Tensor:
    with same_randomness():
        return subject.run(problem, 1).detach()


OF_PARAMETERS: tuple[Probe, ...] = (LinearParameters(), SmoothParameters())
