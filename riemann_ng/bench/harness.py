"""Runs what was asked for, one case after the other."""

from __future__ import annotations

import gc
import platform
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from time import perf_counter, process_time

import torch

from .._version import __version__
from ..errors import RiemannError
from .fresh import import_times, peak_elsewhere
from .goals import IMPORT, SHARE, shortfalls
from .loops import RECIPES
from .parts import profile
from .peers import PEERS, Absent
from .quantities import OTHERS, QUANTITIES, SMALL, Case, Skipped
from .records import Left, Report, Row
from .timing import LEAST, Clock, Spread, Work, ratio, synchronized, taking_turns
from .workloads import NEEDS_GPU, Workload, workload

PLAIN, OURS = "plain", "riemann_ng"
Say = Callable[[str], None]
Keep = Callable[[Report], None]
"""Called whenever there is more in the report."""


def device_name(device: str) -> str:
    """What the machine calls itself."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


class Harness:
    """What all cases of a run share."""

    def __init__(
        self, device: str = "cpu", rounds: int | None = None, seconds: float = 3.0, clock: str = "wall",
        peers: bool = False, say: Say = lambda text: None, keep: Keep = lambda report: None,
    ):  # fmt: skip
        self.device, self.rounds, self.seconds, self.peers = device, rounds, seconds, peers
        self.say, self.keep = say, keep
        self.clock: Clock = process_time if clock == "cpu" else perf_counter
        versions = {"riemann_ng": __version__, "torch": torch.__version__}
        if peers:
            versions |= {name: peer.version() for name, peer in PEERS.items()}
        self.report = Report(device_name(device), torch.get_num_threads(), clock, versions)

    def run(self, workloads: Sequence[str], quantities: Iterable[str]) -> Report:
        chosen = list(quantities)
        for name in workloads:
            if name in NEEDS_GPU and self.device != "cuda":
                self.report.left.append(Left(name, "", "", "needs a GPU, and runs with --device cuda"))
                continue
            work = workload(name, self.device)
            for quantity in chosen:
                if quantity == "import":
                    continue
                self.say(f"{name} {quantity}")
                self.one(name, work, quantity)
                work.module.zero_grad()
                gc.collect()
                self.keep(self.report)
        if "import" in chosen:
            self.say("import")
            self.of_import()
        self.keep(self.report)
        return self.report

    def one(self, name: str, work: Workload, quantity: str) -> None:
        try:
            if quantity in QUANTITIES:
                self.timed(name, work, quantity)
            elif quantity in SMALL:
                self.small(name, work, quantity)
            elif quantity == "profile":
                self.profile(name, work)
            else:
                self.memory(name)
        except (Skipped, RiemannError) as why:
            self.report.left.append(Left(name, quantity, OURS, str(why).splitlines()[0]))

    def turns(self, works: dict[str, Work]) -> dict[str, list[float]]:
        return taking_turns(
            {who: synchronized(run, self.device) for who, run in works.items()}, self.rounds, self.seconds, self.clock
        )

    def timed(self, name: str, work: Workload, quantity: str) -> None:
        torch.manual_seed(0)
        case = QUANTITIES[quantity][0](work)
        works = {PLAIN: case.plain or work.plain, **case.works}
        if self.peers and case.plain is None:
            works |= self.of_peers(name, work, quantity, case)
        times = self.turns(works)
        if case.plain is None:
            self.report.plain.setdefault(name, 1e3 * Spread.of(times[PLAIN]).median)
        scaled = {who: [t / case.per.get(who, 1.0) for t in taken] for who, taken in times.items()}
        self.report.rows += rows_of(name, quantity, scaled, case.note)

    def of_peers(self, name: str, work: Workload, quantity: str, case: Case) -> dict[str, Work]:
        works: dict[str, Work] = {}
        for who, peer in PEERS.items():
            if not peer.knows(quantity):
                continue
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    run, per = peer.work(quantity, work)
                    run()
            except (Absent, Skipped) as why:
                self.report.left.append(Left(name, quantity, who, str(why)))
            except Exception as failed:  # another library's own failure is a finding, and no reason to stop
                text = str(failed).splitlines() or [""]
                self.report.left.append(Left(name, quantity, who, f"fails with {type(failed).__name__}: {text[0]}"))
            else:
                works[who], case.per[who] = run, per
        return works

    def small(self, name: str, work: Workload, quantity: str) -> None:
        case = SMALL[quantity][0](work)
        full = QUANTITIES["step-empirical"][0](work)
        times = self.turns({**case.works, "step": full.works[OURS]})
        more = [(a - b) / 10 for a, b in zip(times[OURS], times["floor"], strict=True)]
        share = Spread.of([10 * x / s for x, s in zip(more, times["step"], strict=True)]).median
        most = SHARE.get(quantity)
        short = () if most is None or share <= most else (f"{100 * share:.1f} % of a step, at most {100 * most:g} %",)
        self.report.rows.append(
            Row(name, quantity, OURS, len(more), Spread.of(more).times(1e3), share=share, short=short)
        )

    def profile(self, name: str, work: Workload) -> None:
        for recipe in RECIPES:
            for part, passes in profile(work, recipe, min(self.rounds or LEAST, LEAST), self.clock).items():
                spread = Spread(passes, passes, passes)
                self.report.rows.append(Row(name, "profile", part, LEAST, passes=spread, note=recipe))

    def memory(self, name: str) -> None:
        if self.device != "cpu":
            raise Skipped("the peak of resident memory is measured on the CPU")
        self.report.rows.append(Row(name, "memory", PLAIN, mebibytes=peak_elsewhere(name, PLAIN, "empirical")))
        for recipe in RECIPES:
            for who in (OURS, "floor") if recipe == "empirical" else (OURS,):
                found = peak_elsewhere(name, who, recipe)
                self.report.rows.append(Row(name, "memory", who, mebibytes=found, note=recipe))

    def of_import(self) -> None:
        alone, more = import_times(self.rounds or 5)
        spread = Spread.of(more)
        short = () if spread.median <= IMPORT else (f"{spread.median:.0f} ms, at most {IMPORT:g}",)
        note = f"beyond {alone:.0f} ms of torch"
        self.report.rows.append(Row("", "import", OURS, len(more), spread, note=note, short=short))


def rows_of(name: str, quantity: str, times: dict[str, list[float]], note: str) -> list[Row]:
    """A line for each that took part; the floor is the faster of its two kinds."""
    bare = {who: sorted(taken)[len(taken) // 2] for who, taken in times.items() if who.startswith("floor")}
    floor = min(bare, key=lambda who: bare[who]) if bare else None
    peers = [who for who in times if who not in (PLAIN, OURS) and who not in bare]
    passes = {who: ratio(times, who, PLAIN) for who in times}
    rows = []
    for who in times:
        if who == PLAIN:
            continue
        over = None if floor is None or who == floor else ratio(times, who, floor)
        short: list[str] = []
        if who == OURS:
            found = {p: passes[p].median for p in peers}
            short = shortfalls(name, quantity, passes[who].median, None if over is None else over.median, found)
        rows.append(Row(
            name, quantity, who, len(times[who]), Spread.of(times[who]).times(1e3), passes[who], over,
            note=note if who == OURS else "", short=tuple(short),
        ))  # fmt: skip
    return rows


ALL = (*QUANTITIES, *SMALL, *OTHERS)
