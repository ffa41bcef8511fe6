"""`check_invariance`: the table of what a subject is invariant to. `assert_invariant`: that it is, or an error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from ...errors import InvalidSetting
from ...likelihoods import Likelihood
from ...networks import Network
from ...reparametrize import GROUPS
from ...reparametrize.groups import JOINT
from .claims import claimed, static_symmetry
from .expressions import disagreement
from .parameters import OF_PARAMETERS
from .probes import FrameProbe, Probe
from .problem_probes import OF_THE_PROBLEM
from .problems import problem_of
from .records import HELD, ON, UNDECIDED, Cell, InvarianceReport, Key
from .running import Runner
from .shrinking import shrunk, small_runner
from .subjects import subject_of
from .together import not_together
from .verdicts import DIFFERENT, SAME

SPACES = ("inputs", "activations", "pre-activations", "outputs")
FRAMES: tuple[Probe, ...] = (
    *(FrameProbe(on, group) for on in SPACES for group in GROUPS if group not in (JOINT, "affine")),
    FrameProbe("layers", JOINT),
)
Progress = Callable[[int, int, Cell], None]


def check_invariance(
    subject: object,
    model: nn.Module | Network,
    x: Any,
    y: Any = None,
    likelihood: Likelihood | None = None,
    on: str | Collection[str] | None = None,
    groups: str | Collection[str] | None = None,
    examples: int = 2,
    steps: int | None = None,
    seed: int = 0,
    held_out: float = 0.2,
    cells: Iterable[Key] | None = None,
    name: str | None = None,
    shrink: bool = True,
    progress: bool | Progress | None = None,
) -> InvarianceReport:
    """To which changes of coordinates is a subject blind, on this model and batch?

    `subject` is a metric, a norm, `optimizer(factory)`, `update(f)`, or a function of the parameters that returns a
    torch optimizer; see `subjects`. The `model` is copied, to float64, and not touched. Every group (`groups`, by
    default all) on every kind of spaces (`on`), or those named in `cells`, is tried with `examples` random elements,
    more where they disagree; trajectories are compared by the predictive distribution on the batch, the share
    `held_out` of it included that is not trained on. `y` is drawn from the model where it is not given. What is refuted
    is shrunk to a small case with its code, unless `shrink` is false. `progress` shows a line on a terminal, by default
    where there is one; or is called with the number done, the number of all, and the cell.

    A metric is refuted twice, by twins and by moving the data of its expression; where the two disagree, `notes` say
    so, as they do where a claim of its own is refuted, or what is held one by one is not held together.
    """
    probes = chosen_probes(on, groups) if cells is None else named_probes(list(cells))
    return check_cells(
        subject, model, x, y, probes, likelihood, examples, steps, seed, held_out, name, shrink, progress, cells is None
    )


def check_cells(
    subject: object, model: nn.Module | Network, x: Any, y: Any, probes: Sequence[Probe],
    likelihood: Likelihood | None = None, examples: int = 2, steps: int | None = None, seed: int = 0,
    held_out: float = 0.2, name: str | None = None, shrink: bool = False, progress: bool | Progress | None = False,
    together: bool = False,
) -> InvarianceReport:  # fmt: skip
    """`check_invariance` with probes of your own; `together` tries what was held on several spaces at once."""
    started = time.perf_counter()
    chosen = subject_of(subject)
    if examples < 1:
        raise InvalidSetting(f"InvalidSetting in check_invariance: examples={examples!r}, expected at least 1.")
    problem = problem_of(model, x, y, likelihood, held_out)
    runner = Runner(chosen, problem, steps, seed)
    found, notes = run_probes(runner, probes, examples, shower(progress))
    if shrink and any(cell.counterexample for cell in found.values()):
        small = small_runner(chosen, problem.predictive, runner.steps)
        found = {p.key: shrunk(found[p.key], p, runner, small) for p in probes}
    if together and (apart := not_together(runner, probes, found)):
        notes.append(apart)
    return report_of(runner, name, found, notes, time.perf_counter() - started, examples)


def run_probes(
    runner: Runner, probes: Sequence[Probe], examples: int, show: Progress
) -> tuple[dict[Key, Cell], list[str]]:
    symmetry = static_symmetry(runner.subject, runner.problem)
    cells: dict[Key, Cell] = {}
    notes: list[str] = []
    for k, probe in enumerate(probes, 1):
        cell = claimed(probe.cell(runner, examples), probe, symmetry, runner.problem)
        if wrong := disagreement(runner, probe, cell):
            notes.append(wrong)
            cell = replace(cell, verdict=UNDECIDED, counterexample=None, reason="the two refuters disagree: see notes")
        if cell.surprising:
            notes.append(f"{cell.group} of {cell.on} is claimed by the expression and refuted by measurement")
        cells[cell.key] = cell
        show(k, len(probes), cell)
    return cells, notes


def report_of(
    runner: Runner, name: str | None, cells: dict[Key, Cell], notes: list[str], seconds: float, examples: int
) -> InvarianceReport:
    if runner.standstill:
        notes.append(runner.standstill)
    if runner.eps > 1e-12:
        notes.append(f"the subject computes with a precision of {runner.eps:.0e}, which bounds what can be told")
    settings = {
        "examples": examples, "steps": runner.steps, "seed": runner.seed, "held at": SAME, "refuted at": DIFFERENT,
        "displacement": runner.displacement, "noise": runner.noise,
    }  # fmt: skip
    module = runner.problem.module
    model = " ".join(repr(module).split())
    model = model if len(model) <= 160 else type(module).__name__
    return InvarianceReport(name or runner.subject.name, model, cells, seconds, settings, tuple(notes))


def assert_invariant(
    subject: object,
    model: nn.Module | Network,
    x: Any,
    y: Any = None,
    under: Iterable[Key] | Key | Literal["claims"] = (),
    likelihood: Likelihood | None = None,
    **options: Any,
) -> InvarianceReport:
    """Raises AssertionError unless every group named by `under` is held: `under=[("activations", "general"), ...]`.

    `under="claims"` means all that the expression of a metric or a norm claims. The error shows the cells, with code
    that shows a counterexample; what was undecided or has no twin is not held either. `options` are those of
    `check_invariance`.
    """
    if under == "claims":
        report = check_invariance(subject, model, x, y, likelihood, progress=False, **options)
        claims = [cell for cell in report if cell.claimed]
        if not claims:
            raise InvalidSetting(
                f"InvalidSetting in assert_invariant: {report.subject} claims nothing: only metrics and norms are "
                f"expressions. Name cells: under=[('activations', 'general')]."
            )
        return all_held(report, claims)
    wanted = [under] if isinstance(under, tuple) and len(under) == 2 and isinstance(under[0], str) else list(under)
    if not wanted:
        raise InvalidSetting(
            "InvalidSetting in assert_invariant: under=[] asks for nothing. Name cells: "
            "under=[('activations', 'general')]."
        )
    report = check_invariance(subject, model, x, y, likelihood, cells=wanted, progress=False, **options)
    return all_held(report, list(report))


def all_held(report: InvarianceReport, cells: Sequence[Cell]) -> InvarianceReport:
    failed = [cell for cell in cells if cell.verdict != HELD]
    if failed:
        told = "\n".join(account(cell) for cell in failed)
        raise AssertionError(f"{report.subject} is not shown to be invariant:\n{told}")
    return report


def account(cell: Cell) -> str:
    """A cell that failed, and what shows it."""
    text, example = f"  {cell}", cell.counterexample
    if example is None:
        return text
    text += f"\n    with {example.element}" if example.element else ""
    return text + (f"\n\n{example.code}" if example.code else "")


def all_probes() -> list[Probe]:
    """The probes of a whole table."""
    found = [*FRAMES, *OF_PARAMETERS, *OF_THE_PROBLEM]
    return sorted(found, key=lambda probe: ON.index(probe.on))


def named_probes(cells: Sequence[Key]) -> list[Probe]:
    """The probes of these cells."""
    known = {probe.key: probe for probe in [*all_probes(), *(FrameProbe(on, "affine") for on in SPACES)]}
    for key in cells:
        if key not in known:
            raise InvalidSetting(
                f"InvalidSetting in check_invariance: {key!r} is no cell. A cell is what is moved and a group: "
                f"{', '.join(map(str, known))}."
            )
    return [known[key] for key in cells]


def chosen_probes(on: str | Collection[str] | None, groups: str | Collection[str] | None) -> list[Probe]:
    """The probes of these kinds and groups, None for all; what is unknown is refused by name."""
    probes = all_probes()
    kinds = None if on is None else [on] if isinstance(on, str) else list(on)
    names = None if groups is None else [groups] if isinstance(groups, str) else list(groups)
    for what, given, known in (
        ("on", kinds, dict.fromkeys([*ON, *(p.on for p in probes)])),
        ("groups", names, dict.fromkeys([*(p.group for p in probes), "affine"])),
    ):
        for item in given or ():
            if item not in known:
                raise InvalidSetting(
                    f"InvalidSetting in check_invariance: {what}={item!r} is unknown. There are {', '.join(known)}."
                )
    if names is not None and "affine" in names:
        probes += [FrameProbe(kind, "affine") for kind in SPACES]
    chosen = [p for p in probes if (kinds is None or p.on in kinds) and (names is None or p.group in names)]
    if not chosen:
        raise InvalidSetting(f"InvalidSetting in check_invariance: no group of {groups!r} acts on {on!r}.")
    return chosen


def shower(progress: bool | Progress | None) -> Progress:
    """How to show what is done: a line on the terminal, a function, or nothing."""
    if callable(progress):
        return progress
    if progress is False or (progress is None and not sys.stderr.isatty()):
        return lambda done, total, cell: None

    def line(done: int, total: int, cell: Cell) -> None:
        text = f"{done}/{total} {cell.group} of {cell.on}: {cell.verdict}"
        sys.stderr.write("\r" + text[:79].ljust(79) + ("\r" + " " * 79 + "\r" if done == total else ""))
        sys.stderr.flush()

    return line
