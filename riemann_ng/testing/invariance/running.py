"""Runs a subject on a problem and on what probes make of it, and compares the two."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...errors import DegenerateMetric, RiemannError
from ...reparametrize import NoTwin
from .probes import Probe
from .problems import CALL, InvalidSubject, Problem
from .records import NOT_APPLICABLE, REFUTED, UNDECIDED, Cell, Counterexample
from .subjects import Direction, Subject
from .verdicts import STANDSTILL, Case, verdict

SHAKE = 1e-13
"""450 roundings in float64."""
REPEATS = 1e-9
"""What two runs may differ by: sums depend on where in memory their terms stand."""
BREAKS = (RiemannError, ArithmeticError, RuntimeError)
"""What a subject may raise on one side only: torch's linear algebra raises RuntimeErrors."""


class Precision(TorchDispatchMode):
    """Notes the coarsest type that matrices are computed in; single numbers, such as counts of steps, do not matter."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.eps = torch.finfo(torch.float64).eps

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and (made := coarsest(out)) > self.eps:  # a matrix that is only made so, of ones, is exact
            self.eps = max(self.eps, min(made, coarsest((args, kwargs))))
        return out


def coarsest(tree: Any) -> float:
    """The rounding of the coarsest matrix in a tree."""
    leaves = (t for t in tree_leaves(tree) if isinstance(t, Tensor) and t.is_floating_point() and t.numel() > 1)
    return max((torch.finfo(t.dtype).eps for t in leaves), default=0.0)


class Runner:
    """A subject with the problem that it is checked on: the run there, its noise, and comparisons with other runs."""

    def __init__(self, subject: Subject, problem: Problem, steps: int | None = None, seed: int = 0):
        self.subject, self.problem, self.seed = subject, problem, seed
        self.steps = subject.steps if steps is None or isinstance(subject, Direction) else steps
        if isinstance(subject, Direction):
            subject.forget()
        self._bases: dict[float, Tensor] = {}
        self.last: tuple[Probe, Problem, Case] | None = None
        self.singular = ""
        with Precision() as precision:
            try:
                self.base()
            except DegenerateMetric as error:
                self.singular = str(error).split(". ")[0]
        self.eps = precision.eps
        self.shake = SHAKE if self.eps < 1e-12 else 2 * self.eps
        self.displacement = self.noise = math.nan
        if self.singular:
            return
        self._check_repeats()
        self.displacement = displacement(self.base())
        if self.moves:
            try:
                self.noise = self._noise(self.problem, self.base(), (1, 2))
            except BREAKS:  # as close to singular as that
                self.noise = math.inf

    @property
    def moves(self) -> bool:
        return math.isfinite(self.displacement) and self.displacement >= STANDSTILL

    @property
    def standstill(self) -> str:
        """Why nothing can be compared, or ""."""
        if self.moves:
            return ""
        if self.singular:
            return (
                f"there is no step: {self.singular}. Damp the metric, by a form that is carried to twins or by another"
            )
        if not math.isfinite(self.displacement):
            return "the subject diverges: its predictions are not finite. Lower its learning rate"
        return (
            f"the subject barely moves the predictions, by {self.displacement:.0e} in {self.steps} steps. Raise its "
            f"learning rate, or give more steps"
        )

    def base(self, rate: float = 1.0) -> Tensor:
        """The run on the problem itself."""
        if rate not in self._bases:
            self._bases[rate] = self.run(self.problem, rate)
        return self._bases[rate]

    def run(self, problem: Problem, rate: float = 1.0) -> Tensor:
        with same_randomness():
            return self.subject.run(problem, self.steps, rate).detach()

    def _check_repeats(self) -> None:
        again, base = self.run(self.problem), self.base()
        if bool(base.isfinite().all()) and not torch.allclose(again, base, rtol=0, atol=REPEATS * displacement(base)):
            raise InvalidSubject(
                f"InvalidSubject in {CALL}: two runs of {self.subject.name} from one start differ. It keeps state "
                f"between runs, or draws random numbers that no seed of torch fixes. Make what it keeps anew for every "
                f"run (in the factory, or on the model it is given), and draw from torch's own generator."
            )

    def _noise(self, problem: Problem, seen: Tensor, seeds: tuple[int, ...]) -> float:
        worst = 0.0
        for seed in seeds:
            with problem.shaken(self.shake, seed) as shaken:
                worst = max(worst, self.compared(self.run(shaken), seen))
        return worst

    def compared(self, run: Tensor, base: Tensor) -> float:
        """The largest difference of predictions, in units of how far they moved."""
        off = (run - base).abs().max() / (base - base[0]).abs().max()
        return float(off) if bool(off.isfinite()) else math.inf

    def case(self, probe: Probe, seed: int, rate: float = 1.0, size: float = 1.0) -> Case:
        """One element. Where the two runs differ, the noise is measured on the moved side too."""
        moved = probe.moved(self.problem, seed, size)
        run, base = self.run(moved, rate), self.base(rate)
        found = Case(seed, self.compared(run, base), self.noise)
        self.last = probe, moved, found
        if found.same or not math.isfinite(found.discrepancy):
            return found
        try:
            there = self._noise(moved, run, (seed,)) if rate == 1 else self.noise
            if (near := probe.nearby(self.problem, seed, self.shake)) is not None:
                there = max(there, self.compared(self.run(near, rate), base))
        except BREAKS:
            there = math.inf
        return Case(seed, found.discrepancy, max(self.noise, there))

    def cell(self, probe: Probe, cases: int = 2) -> Cell:
        """The verdict on a group: that many elements, more where they disagree."""
        on, group = probe.key
        if reason := probe.reason(self.problem, self.subject):
            return Cell(on, group, NOT_APPLICABLE, reason=reason)
        if self.standstill:
            return Cell(on, group, UNDECIDED, reason=self.standstill)
        done: list[Case] = []
        broken = ""
        for k in range(cases + 3):
            seed, half = self.seed + 17 * k + 1, bool(done and done[-1].different and self.subject.has_rate)
            try:
                done.append(self.case(probe, seed, 0.5 if half else 1.0))
            except NoTwin as error:
                return Cell(on, group, NOT_APPLICABLE, reason=str(error))
            except InvalidSubject:
                raise
            except BREAKS as error:
                broken = f"the subject works on the original and fails on its twin: {str(error).splitlines()[0]}"
                break
            kinds, least = {(case.same, case.different) for case in done}, cases if done[0].same else max(cases, 2)
            if sum(case.different for case in done) >= 2 or (len(done) >= least and len(kinds) == 1):
                break
        finding, reason = verdict(done)
        if broken:
            finding, reason = UNDECIDED, broken
        worst = max(done, key=lambda case: case.discrepancy, default=None)
        first = next((case for case in done if case.different), None)
        example = None
        if finding == REFUTED and first is not None:
            keys, element = probe.told(self.problem, first.seed)
            example = Counterexample(first.discrepancy, first.seed, keys, element, self.steps)
        return Cell(
            on, group, finding,
            discrepancy=None if worst is None else worst.discrepancy,
            noise=None if worst is None else worst.noise,
            cases=len(done), counterexample=example, reason=reason,
        )  # fmt: skip


@contextmanager
def same_randomness() -> Iterator[None]:
    """Every run draws the same numbers, and leaves the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed writes down a traceback for every device
        yield


def displacement(run: Tensor) -> float:
    """How far the predictions moved from where they were."""
    return float((run - run[0]).abs().max()) if bool(run.isfinite().all()) else math.inf
