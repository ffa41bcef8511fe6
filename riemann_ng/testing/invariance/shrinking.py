"""A refuted case, shrunk: to two layers of two units where it shows there, one space, and the plainest element.

It is told as code that shows it again, complete where the subject can be written down.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InvalidSetting, RiemannError
from ...likelihoods import Likelihood
from ...networks import Network
from ...reparametrize import Frame, Frames, NoTwin, spaces
from ...reparametrize.groups import JOINT
from .printing import program
from .probes import FrameProbe, Probe, in_frames, shown
from .problems import Problem, problem_of
from .records import REFUTED, Cell, Counterexample
from .running import Runner
from .subjects import Subject, subject_of
from .verdicts import DIFFERENT, LOUD

LINEAR = {
    "general": ("stretch", "flip", "swap", "rotation"), "orthogonal": ("flip", "swap", "rotation"),
    "monomial": ("stretch", "flip", "swap"), "scaling": ("stretch",), "signed permutations": ("flip", "swap"),
    "permutations": ("swap",), "uniform scale": ("double",), JOINT: ("double",), "translations": (),
}  # fmt: skip
LINEAR |= {"isometries": LINEAR["orthogonal"], "affine": LINEAR["general"]}
SHIFTING = ("translations", "isometries", "affine")
SMALL = "nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)).double()"
EXAMPLES = 24


def plain_elements(group: str, dim: int, members: int) -> Iterator[Frame]:
    """Elements of a group that a reader sees through, the plainest first."""
    eye, zero = torch.eye(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
    kinds = ("shift", *LINEAR[group]) if group in SHIFTING else LINEAR[group]
    for kind in kinds:
        linear, shift = eye.clone(), zero.clone()
        if kind == "shift":
            shift[0] = 1
        elif kind == "double":
            linear *= 2
        elif kind in ("stretch", "flip"):
            linear[0, 0] = 2 if kind == "stretch" else -1
        elif dim < 2:
            continue
        elif kind == "swap":
            linear[:2, :2] = linear[:2, :2].flip(0)
        else:
            linear[:2, :2] = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
        yield Frame(linear.expand(members, dim, dim).contiguous(), shift.expand(members, dim).contiguous())


def shrunk(cell: Cell, probe: Probe, runner: Runner, small: Runner | None) -> Cell:
    """The cell with a smaller counterexample, and its code."""
    if cell.verdict != REFUTED or cell.counterexample is None or not isinstance(probe, FrameProbe):
        return cell
    for at in (small, runner):
        if at is None or at.standstill:
            continue
        for frames in plain_frames(at.problem, probe):
            found = difference(at, frames)
            if found is not None:
                return replace(cell, counterexample=told(at, at is small, frames, found, cell.counterexample))
    return replace(cell, counterexample=replace(cell.counterexample, code=as_found(runner, probe, cell)))


def plain_frames(problem: Problem, probe: FrameProbe) -> Iterator[Frames]:
    """One space at a time, and those that are one with it."""
    try:
        keys = list(probe.frames(problem, 0))
    except NoTwin:
        return
    places = spaces(problem.network, problem.x)
    if probe.group == JOINT:
        layers: dict[str, list[str]] = {}
        for key in keys:
            layers.setdefault(places.layer_of(places.linked.get(key, key)), []).append(key)
        units = list(layers.values())
    else:
        roots: dict[str, list[str]] = {}
        for key in keys:
            roots.setdefault(places.linked.get(key, key), []).append(key)
        units = list(roots.values())
    for unit in units:
        first = places.slots[unit[0]]
        for k, frame in enumerate(plain_elements(probe.group, first.dim, first.members)):
            yield Frames(
                {
                    key: frame
                    if (s := places.slots[key]).dim == frame.dim and s.members == frame.members
                    else list(plain_elements(probe.group, s.dim, s.members))[k]
                    for key in unit
                },
                probe.group,
            )


def difference(runner: Runner, frames: Frames) -> float | None:
    """The discrepancy in these frames, where it is beyond doubt."""
    try:
        found = runner.compared(runner.run(in_frames(runner.problem, frames)), runner.base())
    except (RiemannError, RuntimeError):
        return None
    return found if DIFFERENT * 2 < found < float("inf") and found > LOUD * runner.noise else None


def small_runner(subject: Subject, likelihood: Likelihood, steps: int) -> Runner | None:
    """The subject on the smallest network, if it runs there: two layers of two units."""
    try:
        model, x = small_model()
        return Runner(apart(subject), problem_of(model, x, None, likelihood, 0.2), steps)
    except Exception:  # a subject may be made for one model, and fail on any other in its own way
        return None


def small_model() -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)).double()
        return model, torch.randn(EXAMPLES, 2, dtype=torch.float64)


def apart(subject: Subject) -> Subject:
    """The subject with a memory of its own of the problem that it is checked on."""
    return copy.copy(subject)


def told(runner: Runner, small: bool, frames: Frames, found: float, first: Counterexample) -> Counterexample:
    root = {key: frames[key] for key in written_keys(runner.problem, frames)}
    words = "; ".join(f"{key}: {shown(frame)}" for key, frame in root.items())
    code = program(runner.subject, runner.problem, root, found, runner.steps, SMALL if small else "", EXAMPLES)
    model = SMALL.removesuffix(".double()") if small else first.model
    return replace(first, discrepancy=found, moved=tuple(root), element=words, model=model, code=code)


def as_found(runner: Runner, probe: FrameProbe, cell: Cell) -> str:
    """The code of a case that no plain element shows."""
    example = cell.counterexample
    assert example is not None
    frames = probe.frames(runner.problem, example.seed)
    root = {key: frames[key] for key in written_keys(runner.problem, frames)}
    return program(runner.subject, runner.problem, root, example.discrepancy, runner.steps, "", EXAMPLES)


def written_keys(problem: Problem, frames: Frames) -> list[str]:
    """One key for each space: the layer's, where it has one."""
    places = spaces(problem.network, problem.x)
    seen: dict[str, str] = {}
    for key in frames:
        seen.setdefault(places.linked.get(key, key), key)
        if seen[places.linked.get(key, key)] in ("input", "output"):
            seen[places.linked.get(key, key)] = key
    return list(seen.values())


def discrepancy(
    subject: object,
    model: nn.Module | Network,
    x: Any,
    y: Any,
    likelihood: Likelihood | None,
    frames: Mapping[str, Frame] | Frames,
    steps: int | None = None,
    held_out: float = 0.2,
) -> float:
    """How far the predictions of a subject differ between a model and its twin in these frames.

    In units of how far they move. Keys are those of `reparametrize.spaces(network, x)`: "0.A", the activations that
    enter layer "0", "0.S", the pre-activations that leave it, "input", "output". Spaces that are one move together.
    """
    runner = Runner(apart(subject_of(subject)), problem_of(model, x, y, likelihood, held_out), steps)
    if runner.standstill:
        raise InvalidSetting(f"InvalidSetting in discrepancy: {runner.standstill}.")
    places = spaces(runner.problem.network, runner.problem.x)
    given = dict(frames.by_key if isinstance(frames, Frames) else frames)
    whole = dict(given)
    for key, frame in given.items():
        root = places.linked.get(key, key)
        together = {root, *(k for k, to in places.linked.items() if to == root)} if root in places.slots else {key}
        whole |= dict.fromkeys(together, frame)
    return runner.compared(runner.run(in_frames(runner.problem, Frames(whole))), runner.base())
