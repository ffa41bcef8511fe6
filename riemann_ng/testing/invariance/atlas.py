"""The atlas: known methods, and the largest group of changes of frame that each keeps, measured and compared.

    atlas = run_atlas(progress=True)
    print(atlas)                     # a row for each method; what differs from theory is listed at the end
    assert not atlas.mismatches

Not every group is tried on every method. What keeps a group keeps its subgroups, what loses one loses all that contain
it; so the largest groups that theory says are kept and the smallest that it says are lost are tried first, and where
they turn out as it says, that is a certificate for all the others. Where they do not, the others are tried too.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from ...errors import InvalidSetting
from ...likelihoods import FromDistribution
from ...reparametrize.groups import JOINT
from ...symmetry import WITHIN, Symmetry
from . import atlas_natural, atlas_norms, atlas_presets, atlas_subjects
from .atlas_rows import GROUP, KEPT, Row
from .probes import FrameProbe, Probe
from .problem_probes import LossScale
from .problems import Problem, problem_of
from .records import HELD, REFUTED, Cell
from .running import Runner

COLUMNS = ("activations", "hidden", "outputs", "joint", "loss")
SHORT = {name: short for short, name in GROUP.items()}
INSIDE = {g: {SHORT[h] for h in WITHIN.get(GROUP[g], ())} | {g} for g in GROUP}
"""The groups sampled that lie in each, itself among them."""
Kept = str | bool | None


@dataclass(frozen=True)
class AtlasRow:
    """What was found for one method: the largest group kept in each column, or whether the scale is kept at all."""

    name: str
    family: str
    expected: Mapping[str, Kept]
    measured: Mapping[str, Kept]
    mismatches: tuple[str, ...]
    worst_held: float
    """The largest discrepancy among cells that held."""
    least_lost: float | None
    """The smallest among cells that were refuted."""
    displacement: float
    cases: int
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Atlas:
    """The rows, in order."""

    rows: tuple[AtlasRow, ...]
    seconds: float = 0.0

    def __getitem__(self, name: str) -> AtlasRow:
        return next(row for row in self.rows if row.name == name)

    @property
    def mismatches(self) -> list[str]:
        """Where measurement and theory differ, in words."""
        return [f"{row.name}: {what}" for row in self.rows for what in row.mismatches]

    def to_json(self, indent: int | None = 2) -> str:
        return json.dumps(asdict(self), indent=indent, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Atlas:
        data = json.loads(text)
        rows = (AtlasRow(**{**row, "mismatches": tuple(row["mismatches"])}) for row in data["rows"])
        return cls(tuple(rows), data["seconds"])

    def __str__(self) -> str:
        wide = max((len(row.name) for row in self.rows), default=0)
        head = f"{'':<{wide}}  {'𝒜':<5} {'𝒮':<5} {'outputs':<8} {'joint':<6} {'loss':<5} {'held':>6} {'lost':>6}"
        lines = [head]
        for row in self.rows:
            groups = [told(row.measured[column]) for column in COLUMNS]
            found = "{:<5} {:<5} {:<8} {:<6} {:<5}".format(*groups)
            lost = "" if row.least_lost is None else f"{row.least_lost:.0e}"
            mark = "  ← differs" if row.mismatches else ""
            lines.append(f"{row.name:<{wide}}  {found} {row.worst_held:>6.0e} {lost:>6}{mark}")
        cases = sum(row.cases for row in self.rows)
        lines += ["", f"{len(self.rows)} methods, {cases} cases in {self.seconds:.0f} s"]
        if self.mismatches:
            lines += ["", f"MEASUREMENT DIFFERS FROM THEORY in {len(self.mismatches)} places:"]
            lines += [f"  {what}" for what in self.mismatches]
        else:
            lines.append("Measurement agrees with theory in every cell.")
        return "\n".join(lines)


def told(kept: Kept) -> str:
    """A cell in a few letters."""
    return {True: "yes", False: "no", None: "?"}[kept] if not isinstance(kept, str) else kept


def all_rows(quick: bool = False) -> list[Row]:
    """The subjects, in the order of the table; `quick` are about a dozen of all kinds."""
    makers: tuple[Callable[[], Iterator[Row]], ...] = (
        atlas_subjects.first_order, atlas_subjects.adaptive, atlas_subjects.matrixwise, atlas_norms.rows,
        atlas_natural.kfac, atlas_natural.others, atlas_presets.rows,
    )  # fmt: skip
    return [row for row in itertools.chain.from_iterable(make() for make in makers) if row.quick or not quick]


# The problem


def with_reference_class(z: Tensor) -> Categorical:
    """Classes, the last of which has the logit 0: outputs are free, and no direction of them is without effect."""
    return Categorical(logits=torch.cat([z, torch.zeros_like(z[..., :1])], -1))


def network_with(biases: bool, generator: torch.Generator) -> nn.Module:
    """tanh, 4-4-4-4; with orthogonal weights all factors, and the Fisher, are well conditioned (3e3)."""
    layers = [nn.Linear(4, 4, bias=biases, dtype=torch.float64) for _ in range(3)]
    for layer in layers:
        with torch.no_grad():
            layer.weight.copy_(1.3 * torch.linalg.qr(drawn(generator, 4, 4))[0])
            if biases:
                layer.bias.copy_(0.3 * drawn(generator, 4))
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


def drawn(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@cache
def problem(biases: bool = True) -> Problem:
    """A small classification problem, of 160 examples and 40 held out."""
    generator = torch.Generator().manual_seed(3)
    x = 1.2 * drawn(generator, 200, 4) * torch.tensor([0.6, 0.8, 1.0, 1.3]) + 0.3
    with torch.random.fork_rng(devices=[]):
        model = network_with(biases, generator)
    y = torch.randint(0, 5, (200,), generator=generator)
    return problem_of(model, x, y, FromDistribution(with_reference_class), held_out=0.2)


class Shared(Probe):
    """A probe whose moved problems are kept, for all subjects on the same problem."""

    def __init__(self, probe: Probe):
        self.probe, self.on, self.group = probe, probe.on, probe.group
        self._kept: dict[tuple[int, int, float], Problem] = {}

    def moved(self, problem: Problem, seed: int, size: float = 1.0) -> Problem:
        key = (id(problem), seed, size)
        if key not in self._kept:
            self._kept[key] = self.probe.moved(problem, seed, size)
        return self._kept[key]

    def claim(self, symmetry: Symmetry, problem: Problem) -> tuple[bool | None, str]:
        return self.probe.claim(symmetry, problem)


@cache
def probe_of(column: str, group: str) -> Probe:
    if column == "loss":
        return LossScale()
    if column == "joint":
        return Shared(FrameProbe("layers", JOINT))
    if column == "hidden":
        return Shared(FrameProbe("pre-activations", GROUP[group], only=("0.S", "2.S")))
    return Shared(FrameProbe(column, GROUP[group]))


# A row


def tried_first(expected: str) -> list[str]:
    """The groups in the order in which they are tried: largest of those kept, smallest of those lost, all others."""
    kept = KEPT[expected]
    lost = set(GROUP) - kept
    largest = [g for g in GROUP if g in kept and not any(g in INSIDE[h] - {h} for h in kept)]
    smallest = [g for g in GROUP if g in lost and not (INSIDE[g] - {g}) & lost]
    return list(dict.fromkeys([*largest, *smallest, *GROUP]))


def label(held: frozenset[str]) -> str:
    """The name of a set of groups."""
    known = next((name for name, groups in KEPT.items() if groups == held), None)
    return known or "+".join(g for g in GROUP if g in held and not any(g in INSIDE[h] - {h} for h in held))


def measure(row: Row, cases: int = 2) -> AtlasRow:
    """Every column of a row, with as many random elements of each group tried."""
    started = time.perf_counter()
    runner = Runner(row.subject(), problem(), row.steps)
    expected: dict[str, Kept] = dict(zip(COLUMNS, row.claims, strict=True))
    measured: dict[str, Kept] = {}
    cells: list[Cell] = []
    mismatches: list[str] = []
    for column in ("activations", "hidden", "outputs"):
        want = str(expected[column])
        found, tried = largest_kept(runner, column, want, cases)
        cells += tried
        held = frozenset(g for g, verdict in found.items() if verdict == HELD)
        known = set(found.values()) <= {HELD, REFUTED}
        measured[column] = label(held) if known else f"{label(held)}?"
        if label(held) != want or (not known and not row.coarse):
            evidence = "; ".join(str(cell) for cell in tried)
            mismatches.append(f"{column}: expected {want}, measured {measured[column]} ({evidence})")
    for column, at in (("joint", Runner(row.subject(), problem(False), row.steps)), ("loss", runner)):
        cell = at.cell(probe_of(column, ""), cases)
        cells.append(cell)
        measured[column] = {HELD: True, REFUTED: False}.get(cell.verdict)
        if expected[column] is not None and measured[column] is not expected[column]:
            mismatches.append(
                f"{column}: expected {told(expected[column])}, measured {told(measured[column])} ({cell})"
            )
    held_at = [c.discrepancy for c in cells if c.verdict == HELD and c.discrepancy is not None]
    lost_at = [c.discrepancy for c in cells if c.verdict == REFUTED and c.discrepancy is not None]
    return AtlasRow(
        row.name, row.family, expected, measured, tuple(mismatches), max(held_at, default=0.0),
        min(lost_at, default=None), runner.displacement, sum(c.cases for c in cells), time.perf_counter() - started,
        row.note,
    )  # fmt: skip


def largest_kept(runner: Runner, column: str, expected: str, cases: int) -> tuple[dict[str, str], list[Cell]]:
    """The verdict on every group, tried or implied, with the cells that were tried."""
    found: dict[str, str] = {}
    tried = []
    for group in tried_first(expected):
        if group in found:
            continue
        cell = runner.cell(probe_of(column, group), cases)
        tried.append(cell)
        found[group] = cell.verdict
        for other in GROUP:
            if (cell.verdict == HELD and other in INSIDE[group]) or (
                cell.verdict == REFUTED and group in INSIDE[other]
            ):
                found.setdefault(other, cell.verdict)
    return found, tried


# All of them


def run_atlas(
    quick: bool = False,
    names: Sequence[str] | None = None,
    jobs: int = 1,
    cases: int = 2,
    progress: Callable[[int, int, AtlasRow], None] | None = None,
) -> Atlas:
    """The rows measured, in `jobs` processes. `progress` is called with the number done, that of all, and the row."""
    started = time.perf_counter()
    rows = all_rows(quick and names is None)
    if names is not None:
        known = {row.name: row for row in rows}
        if missing := [name for name in names if name not in known]:
            raise InvalidSetting(
                f"InvalidSetting in run_atlas: no method is called {missing[0]!r}. There are {', '.join(known)}."
            )
        rows = [known[name] for name in names]
    done = []
    for k, row in enumerate(_measured(rows, jobs, 1 if quick else cases), 1):
        done.append(row)
        if progress is not None:
            progress(k, len(rows), row)
    return Atlas(tuple(done), time.perf_counter() - started)


def _measured(rows: Sequence[Row], jobs: int, cases: int) -> Iterator[AtlasRow]:
    if jobs < 1:
        raise InvalidSetting(f"InvalidSetting in run_atlas: jobs={jobs!r}, expected at least 1.")
    if jobs == 1:
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(1)  # matrices of 4 × 5: threads only wait for each other
            yield from (measure(row, cases) for row in rows)
        finally:
            torch.set_num_threads(threads)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        yield from pool.map(_by_name, [row.name for row in rows], [cases] * len(rows))


def _by_name(name: str, cases: int) -> AtlasRow:
    return measure(next(row for row in all_rows() if row.name == name), cases)
