"""What is held on each kind of spaces by itself, tried on all of them at once.

Invariance on each space, at all points and for all data, gives it on all together. A check sees few points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...reparametrize import Frame, Frames, NoTwin
from ...reparametrize.groups import JOINT
from .probes import FrameProbe, Probe, in_frames
from .records import HELD, Cell, Key
from .running import BREAKS, Runner
from .verdicts import DIFFERENT, LOUD

LARGEST = (
    "affine", "general", "isometries", "monomial", "orthogonal", "scaling", "signed permutations", "permutations",
    "translations", "uniform scale",
)  # fmt: skip


def not_together(runner: Runner, probes: Sequence[Probe], cells: Mapping[Key, Cell]) -> str:
    """What went wrong, or ""; nothing where fewer than two kinds are held."""
    frames: dict[str, Frame] = {}
    chosen = []
    for on in ("activations", "pre-activations"):
        held = [p for p in probes if isinstance(p, FrameProbe) and p.on == on and cells[p.key].verdict == HELD]
        held = [p for p in held if p.group != JOINT]
        if not held:
            continue
        best = min(held, key=lambda p: LARGEST.index(p.group))
        chosen.append(best)
        frames |= best.frames(runner.problem, runner.seed + 101).by_key
    if len(chosen) < 2:
        return ""
    try:
        found = runner.compared(runner.run(in_frames(runner.problem, Frames(frames))), runner.base())
    except (NoTwin, *BREAKS):
        return ""
    if not found > max(DIFFERENT, LOUD * runner.noise):
        return ""
    names = " and ".join(f"{p.group} of {p.on}" for p in chosen)
    return f"{names} are held one by one, and not together: a discrepancy of {found:.1e}"
