"""What one step of `NaturalGradient` costs, in plain forward and backward passes of the same batch, and where it goes.

The unit is ten plain passes; a recipe is ten turns of the loop `zero_grad, backward, step`, with factorizations made
once. Recipes and unit take turns; medians of the ratio of neighbours, with quartiles. Then the parts of one recipe,
timed inside the optimizer: "watch" is what hooks add to the loop's own passes, with the moments that are folded there,
"observe" makes samples of what they heard, "moments" takes them into the running average, "factorize" damps and inverts
(a tenth of it, as it comes every tenth step), "apply" is `sharp`, "model" the step rule, "rest" all else. "bare" is
lean torch for the same matrices: `lerp_` of xᵀx, `cholesky_inverse(cholesky(M + c 1))`, two products.

`--memory` prints instead the peak of resident memory of 25 turns in a fresh process, over that of the loop made and not
yet run, in MiB; plain passes beside it.

`--clock cpu` counts the process's own time, which a busy machine disturbs less; only with one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from time import perf_counter, process_time
from typing import Any

import torch
from kfac import bare_inverse
from torch import Tensor
from workloads import WORKLOADS, Workload

import riemann_ng as rng
from riemann_ng.optim import Constant, NaturalGradient, Schedule

EVERY = {"schedule": Schedule(1, 10, warmup=0), "step_size": Constant(), "damping": 1e-1, "lr": 1e-3}
RECIPES: dict[str, dict[str, Any]] = {
    "empirical 1/10": {"estimator": rng.Empirical(), **EVERY},
    "one sample 1/10": dict(EVERY),
    "apply alone": {**EVERY, "schedule": Schedule(10**6, 10**6, warmup=1)},
    "default": {},
}
GOALS = {
    "empirical 1/10": {"W1": 2.5, "W2": 2.5, "W3": 2.4},
    "one sample 1/10": {"W1": 3.1, "W2": 3.0, "W3": 3.0},
    "default": {"W1": 1.9, "W2": 1.3, "W3": 1.6},
}
PEERS = {
    "empirical 1/10": {"W1": 2.89, "W2": 3.00, "W3": 2.76},
    "one sample 1/10": {"W1": 3.81, "W2": 3.50, "W3": 3.56},
}
"""The best peer's ratios, two threads, taken on another occasion."""
PARTS = ("watch", "observe", "moments", "factorize", "apply", "model", "rest")
TIMED = ("passes", "look", "update", "commit", "made", "sharp", "rule", "step")
Run = Callable[[], object]


class Loop:
    """A training loop on a workload, which can say what its parts took."""

    def __init__(self, name: str, recipe: str, clock: Callable[[], float]):
        self.of: Workload = WORKLOADS[name]()
        self.opt = NaturalGradient(self.of.module, self.of.likelihood, **RECIPES[recipe])
        self.clock, self.taken = (
            clock,
            dict.fromkeys(TIMED, 0.0),
        )

    def turn(self) -> None:
        self.opt.zero_grad()
        self.of.loss(self.of.module(self.of.x)).backward()
        self.opt.step()

    def ten(self) -> None:
        for _ in range(10):
            self.turn()

    def timed(self, what: str, f: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            start = self.clock()
            try:
                return f(*args)
            finally:
                self.taken[what] += self.clock() - start

        return run

    def listen(self) -> None:
        """From here on the parts are timed."""
        opt, memory = self.opt, self.opt.memory
        for holder, method, what in (
            (opt, "_look", "look"), (memory, "update", "update"), (memory, "_made", "made"), (memory, "sharp", "sharp"),
            (opt.step_size, "displacement", "rule"), (opt, "step", "step"),
        ):  # fmt: skip
            object.__setattr__(holder, method, self.timed(what, getattr(holder, method)))
        over = memory.update_over
        object.__setattr__(memory, "update_over", lambda seen: self.timed("commit", over(seen)))
        passes = self.timed("passes", lambda: self.of.loss(self.of.module(self.of.x)).backward())

        def turn() -> None:
            opt.zero_grad()
            passes()
            opt.step()

        self.turn = turn  # type: ignore[method-assign]

    def parts(self, plain: float) -> dict[str, float]:
        t = self.taken
        inside = t["look"] + t["made"] + t["sharp"] + t["rule"]
        return {
            "watch": t["passes"] - plain, "observe": t["look"] - t["update"], "moments": t["update"] + t["commit"],
            "factorize": t["made"], "apply": t["sharp"], "model": t["rule"],
            "rest": t["step"] - inside - t["commit"],
        }  # fmt: skip


def bare(name: str) -> dict[str, Run]:
    """The same matrices in lean torch."""
    w = WORKLOADS[name]()
    network = rng.Network.from_torch(w.module, w.likelihood, w.x)
    seen = network.observe(w.x, rng.MonteCarlo(1))
    w.plain()
    df = network.covector({key: p.grad for key, p in network.parameters.items() if p.grad is not None})
    pairs = [(layer, df[path]) for path, layer in seen.layers.items() if df[path].ndim == 2]
    dense = [(layer, x) for layer, x in pairs if not isinstance(layer.inputs.data, rng.OneHot)]
    rows = [s.dense().flatten(0, 2).contiguous() for layer, _ in dense for s in (layer.cotangents, layer.inputs)]
    averages = [x.mT @ x / len(x) for x in rows]
    inverses = [bare_inverse(M) for M in averages]

    def moments() -> None:
        for M, x in zip(averages, rows, strict=True):
            M.lerp_((x.mT @ x).div_(len(x)), 0.05)

    def apply() -> list[Tensor]:
        return [G @ x @ A for G, A, (_, x) in zip(inverses[::2], inverses[1::2], dense, strict=True)]

    return {"moments": moments, "factorize": lambda: [bare_inverse(M) for M in averages], "apply": apply}


def medians(times: dict[str, list[float]], unit: str, by: float = 1.0) -> dict[str, list[float]]:
    """Quartiles of the ratio to the unit of the same round."""
    return {
        key: statistics.quantiles([by * t / u for t, u in zip(taken, times[unit], strict=True)], n=4)
        for key, taken in times.items()
        if key != unit
    }


def taking_turns(works: dict[str, Run], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {key: [] for key in works}
    for i in range(rounds + 1):
        for key, work in works.items():
            start = clock()
            work()
            if i:
                times[key].append(clock() - start)
    return times


def measure(name: str, rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    w = WORKLOADS[name]()

    def plain() -> None:
        for _ in range(10):
            w.plain()

    works: dict[str, Run] = {"plain": plain, **{recipe: Loop(name, recipe, clock).ten for recipe in RECIPES}}
    wholes = taking_turns(works, rounds, clock)
    parts: dict[str, dict[str, float]] = {}
    for recipe in RECIPES:
        loop = Loop(name, recipe, clock)
        loop.ten()
        loop.listen()
        unit = 0.0
        for _ in range(rounds):
            start = clock()
            plain()
            unit += clock() - start
            loop.ten()
        parts[recipe] = {part: t / unit for part, t in loop.parts(unit).items()}
    floor = medians(taking_turns({"plain": w.plain, **bare(name)}, 4 * rounds, clock), "plain")
    floors = {part: middle / (10 if part == "factorize" else 1) for part, (_, middle, _) in floor.items()}
    return {
        "workload": name, "threads": torch.get_num_threads(), "rounds": rounds,
        "plain_ms": 1e2 * statistics.median(wholes["plain"]), "recipes": medians(wholes, "plain"), "parts": parts,
        "bare": floors, "floor": 1 + sum(floors.values()),
    }  # fmt: skip


def kilobytes(what: str) -> int:
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith(what)).split()[1])


def peak(name: str, recipe: str) -> float:
    """Of this process, which is to be a fresh one."""
    turn = WORKLOADS[name]().plain if recipe == "plain" else Loop(name, recipe, perf_counter).turn
    before = kilobytes("VmRSS")
    for _ in range(25):
        turn()
    return (kilobytes("VmHWM") - before) / 1024


def peaks(name: str) -> dict[str, float]:
    """Of fresh processes."""
    call = [sys.executable, __file__, "--workloads", name, "--peak"]
    recipes = ("plain", *(recipe for recipe in RECIPES if recipe != "apply alone"))
    return {r: float(subprocess.run([*call, r], capture_output=True, check=True).stdout) for r in recipes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--workloads", nargs="+", default=["W1", "W2", "W3"])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--memory", action="store_true", help="peaks of memory instead of times")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.clock == "cpu" and arguments.threads > 1:
        parser.error("--clock cpu adds up the time of all threads: use it with --threads 1")
    torch.set_num_threads(arguments.threads)
    if arguments.peak is not None:
        print(peak(arguments.workloads[0], arguments.peak))
        return
    if arguments.memory:
        for name in arguments.workloads:
            print(name, ", ".join(f"{recipe} {mib:.0f}" for recipe, mib in peaks(name).items()))
        return
    clock = process_time if arguments.clock == "cpu" else perf_counter
    found = [measure(name, arguments.rounds, clock) for name in arguments.workloads]
    if arguments.json:
        print(json.dumps({"torch": torch.__version__, "clock": arguments.clock, "workloads": found}, indent=1))
        return
    for of in found:
        name = of["workload"]
        print(f"{name}, {of['threads']} thread(s), plain {of['plain_ms']:.2f} ms, floor {of['floor']:.2f}")
        print(
            f"  {'':16} {'ratio':>6} {'quartiles':>11} {'goal':>5} {'peer':>5}  " + " ".join(f"{p:>9}" for p in PARTS)
        )
        for recipe, (low, middle, high) in of["recipes"].items():
            goal, peer = GOALS.get(recipe, {}).get(name, ""), PEERS.get(recipe, {}).get(name, "")
            parts = " ".join(f"{of['parts'][recipe][part]:9.3f}" for part in PARTS)
            print(f"  {recipe:16} {middle:6.2f} {f'{low:.2f}-{high:.2f}':>11} {goal!s:>5} {peer!s:>5}  {parts}")
        print(f"  {'bare':16} {'':30}  " + " ".join(f"{of['bare'].get(p, float('nan')):9.3f}" for p in PARTS))


if __name__ == "__main__":
    main()
