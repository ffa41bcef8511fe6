"""What moves a problem: an element of a group, drawn by a seed, that gives the same problem in other coordinates.

A probe of your own is a subclass of `Probe`; `checking.all_probes` has those that a check runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ...reparametrize import Frame, Frames, Twin, admissible, reparametrize
from ...reparametrize.groups import JOINT
from ...symmetry import Symmetry
from .problems import Problem, as_given
from .records import Cell, Key
from .subjects import Subject

if TYPE_CHECKING:
    from .running import Runner


class Probe(ABC):
    """A group acting on something. Law: the moved problem computes the same predictions before any step."""

    on: str
    group: str

    @property
    def key(self) -> Key:
        return self.on, self.group

    def reason(self, problem: Problem, subject: Subject) -> str:
        """Why the group is not applicable, or ""."""
        return ""

    @abstractmethod
    def moved(self, problem: Problem, seed: int, size: float = 1.0) -> Problem:
        """The problem moved by the element of this seed."""

    def nearby(self, problem: Problem, seed: int, size: float) -> Problem | None:
        """The problem moved by next to nothing, which shows what jumps; None where the group has no such element."""
        return None

    def cell(self, runner: Runner, cases: int) -> Cell:
        """The verdict, of that many elements at least; a probe with a rule of its own has its own."""
        return runner.cell(self, cases)

    def claim(self, symmetry: Symmetry, problem: Problem) -> tuple[bool | None, str]:
        """Whether the static symmetry of a metric keeps the group, with the terms to blame where not."""
        return None, ""

    def told(self, problem: Problem, seed: int) -> tuple[tuple[str, ...], str]:
        """The spaces that the element of this seed moves, and the element in words."""
        return (), ""


@dataclass(frozen=True)
class FrameProbe(Probe):
    """Changes of frame on one kind of spaces, all at once."""

    on: str
    group: str
    only: tuple[str, ...] = ()
    """Where given, the spaces that are moved, the others left."""

    def reason(self, problem: Problem, subject: Subject) -> str:
        found = admissible(problem.network, problem.x, self.on, self.group)
        return "" if found is None else found.split("model class. ", 1)[-1].rstrip(".")

    def frames(self, problem: Problem, seed: int, size: float = 1.0) -> Frames:
        drawn = Frames.draw(problem.network, problem.x, self.on, self.group, seed, size)
        return drawn.only(*self.only) if self.only else drawn

    def moved(self, problem: Problem, seed: int, size: float = 1.0) -> Problem:
        return in_frames(problem, self.frames(problem, seed, size))

    def nearby(self, problem: Problem, seed: int, size: float) -> Problem | None:
        """Frames next to the identity. A basis chosen where nothing tells one from another jumps even there."""
        generator = torch.Generator().manual_seed(seed)
        made: dict[int, Frame] = {}
        drawn = self.frames(problem, seed).by_key
        for frame in drawn.values():
            if id(frame) not in made:
                noise = torch.randn(frame.linear.shape[-2:], generator=generator, dtype=torch.float64)
                here = Frame.identity(frame.dim, frame.members)
                made[id(frame)] = Frame.known((here.linear + size * noise).contiguous(), here.shift)
        return in_frames(problem, Frames({key: made[id(frame)] for key, frame in drawn.items()}))

    def claim(self, symmetry: Symmetry, problem: Problem) -> tuple[bool | None, str]:
        network, keys = problem.network, list(self.frames(problem, 0))
        if self.group == JOINT:
            return joint_claim(symmetry, network.name, keys)
        bases = [f"{network.name}/{key}" for key in keys if key.endswith((".A", ".S", ".W"))]
        if "output" in keys:
            bases.append(f"{network.name}.outputs")
        lost = [term for base in bases for term in symmetry.blame(base, self.group)]
        return not lost, ", ".join(dict.fromkeys(map(str, lost)))

    def told(self, problem: Problem, seed: int) -> tuple[tuple[str, ...], str]:
        frames = self.frames(problem, seed)
        return tuple(frames), "; ".join(f"{key}: {shown(frames[key])}" for key in list(frames)[:2])


def in_frames(problem: Problem, frames: Frames) -> Problem:
    """The problem in other frames."""
    twin: Twin = reparametrize(problem.network, frames, problem.x)
    return replace(
        problem,
        module=twin.module,
        likelihood=twin.likelihood,
        x=twin.inputs(problem.x),
        seen=twin.inputs(problem.seen),
        to_original=twin.to_original if "output" in frames.by_key else as_given,
        twin=twin,
    )


def joint_claim(symmetry: Symmetry, name: str, keys: Sequence[str]) -> tuple[bool, str]:
    """a → ca, s → cs in one layer, for every layer; those that share their input have one c."""
    paths = dict.fromkeys(key.rpartition(".")[0] for key in keys if key.endswith((".A", ".S")))
    joint = {path: {f"{name}/{key}": 1 for key in keys if key in (f"{path}.A", f"{path}.S")} for path in paths}
    lost = [path for path, exponents in joint.items() if not symmetry.keeps_joint(exponents)]
    about = [s for base in symmetry.spaces for s in symmetry.blame(base, "uniform scale")] if lost else []
    return not lost, ", ".join(dict.fromkeys(map(str, about)))


def shown(frame: Frame) -> str:
    """x → Ωx + γ in numbers, rounded; only what is not the identity."""
    linear, shift = frame.linear[0], frame.shift[0]
    parts = []
    if not torch.equal(linear, torch.eye(frame.dim, dtype=linear.dtype)):
        parts.append(f"{rounded(linear)} x" if frame.dim <= 4 else f"Ω x, Ω of size {frame.dim}")
    else:
        parts.append("x")
    if not frame.linear_only:
        parts.append(rounded(shift) if frame.dim <= 6 else "γ")
    return "x → " + " + ".join(parts)


def rounded(t: torch.Tensor) -> str:
    return str([[round(float(v), 2) for v in row] for row in t] if t.ndim > 1 else [round(float(v), 2) for v in t])
