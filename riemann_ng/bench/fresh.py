"""What is measured in fresh processes: peaks of memory, and the import."""

from __future__ import annotations

import statistics
import subprocess
import sys

from .kernels import Plain
from .loops import RECIPES, BareLoop, Loop
from .workloads import workload

TORCH = "import torch"
LIBRARY = """import torch, riemann_ng
on_request = {"testing", "interop", "experiments", "plots"}
for name in set(riemann_ng.__all__) - on_request: getattr(riemann_ng, name)"""
"""All public names are asked for, so that nothing is hidden by importing late."""
TURNS = 25


def kilobytes(what: str) -> int:
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith(what)).split()[1])


def peak(name: str, who: str, recipe: str) -> float:
    """Of this process, in MiB, over what it held with its loop made and not yet run."""
    work = workload(name)
    if who == "plain":
        turn = work.plain
    elif who == "riemann_ng":
        turn = Loop(work, RECIPES[recipe]).turn
    else:
        turn = BareLoop(work, RECIPES[recipe], Plain()).turn
    before = kilobytes("VmRSS")
    for _ in range(TURNS):
        turn()
    return (kilobytes("VmHWM") - before) / 1024


def peak_elsewhere(name: str, who: str, recipe: str) -> float:
    call = [sys.executable, "-m", "riemann_ng.bench.fresh", name, who, recipe]
    return float(subprocess.run(call, capture_output=True, text=True, check=True).stdout)


def milliseconds(code: str) -> float:
    """How long code runs in a fresh interpreter, without the interpreter's own start."""
    timed = f"from time import perf_counter\nstart = perf_counter()\n{code}\nprint(1e3 * (perf_counter() - start))"
    return float(subprocess.run([sys.executable, "-c", timed], check=True, capture_output=True, text=True).stdout)


def import_times(rounds: int) -> tuple[float, list[float]]:
    """Median milliseconds of torch alone, and what the library's public names cost beyond it, by round."""
    milliseconds(LIBRARY)  # fills the file cache and writes the bytecode
    pairs = [(milliseconds(TORCH), milliseconds(LIBRARY)) for _ in range(rounds)]
    return statistics.median(a for a, _ in pairs), [b - a for a, b in pairs]


if __name__ == "__main__":
    print(peak(*sys.argv[1:]))
