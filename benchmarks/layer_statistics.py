"""What K-FAC's statistics cost, in plain forward and backward passes of the same batch.

The whole call is timed: `network.observe` and, for every layer, the two second-moment matrices. Beside it stands a
floor, the same passes and products bare in torch with nothing shared or cleverly halved; it is no lower bound. All
variants alternate within a round and the order is turned from round to round; medians of the ratio to the plain pass
of the same round, with quartiles, and the ratio of the minima. `--memory` measures peaks in fresh processes instead.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from time import perf_counter

import torch
from torch import Tensor, nn
from workloads import WORKLOADS, Workload

import riemann_ng as rng

IMPORTED = (rng.Network, rng.MonteCarlo, rng.Exact, rng.Bernoulli, rng.Categorical, rng.second_moment)  # names are lazy
GOALS = {("W1", "MC-1"): 1.9, ("W2", "MC-1"): 2.1, ("W3", "MC-1"): 1.75, ("W2", "exact"): 5.0}
VARIANTS = ("plain", "typed", "bare")
Run = Callable[[], object]


def typed(workload: Workload, estimator: rng.Estimator) -> Run:
    likelihood = workload.likelihood  # the shorter root, of as many columns as the rank
    likelihood = rng.Categorical(minimal=True) if isinstance(likelihood, rng.Categorical) else likelihood
    network = rng.Network.from_torch(workload.module, likelihood, workload.x)

    def run() -> list[Tensor]:
        with network.observe(workload.x, estimator) as seen:
            return [
                rng.second_moment(sample).member_matrices()
                for layer in seen.layers.values()
                for sample in (layer.inputs, layer.cotangents)
            ]

    return run


def bare(workload: Workload, exact: bool) -> Run:
    """Affine layers alone, by hooks: no embedding, no normalization, no checks."""
    model, x, likelihood = workload.module, workload.x, workload.likelihood
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    seed = count()

    def run() -> list[Tensor]:
        calls: list[tuple[nn.Module, Tensor, Tensor]] = []

        def note(m: nn.Module, args: tuple[Tensor], y: Tensor) -> None:
            calls.append((m, args[0].detach(), y))

        hooks = [m.register_forward_hook(note) for m in layers]
        z = model(x)
        for hook in hooks:
            hook.remove()
        p = z.detach()
        if exact:
            cotangents = list(likelihood.directions(p).unbind(1))
        elif isinstance(likelihood, rng.Bernoulli):
            p = p.sigmoid()
            cotangents = [p - torch.bernoulli(p, generator=torch.Generator().manual_seed(next(seed)))]
        else:
            p = p.softmax(-1)
            drawn = torch.multinomial(p.flatten(0, -2), 1, generator=torch.Generator().manual_seed(next(seed)))
            cotangents = [p - torch.zeros_like(p).scatter_(-1, drawn.view(*p.shape[:-1], 1), 1)]
        ys = [y for _, _, y in calls]
        moments = [product(inputs(m, a)) for m, a, _ in calls]
        for k, c in enumerate(cotangents):
            grads = torch.autograd.grad(z, ys, c, retain_graph=k + 1 < len(cotangents))
            moments += [product(outputs(m, g)) for (m, _, _), g in zip(calls, grads, strict=True)]
        return moments

    return run


def inputs(m: nn.Module, a: Tensor) -> Tensor:
    rows = nn.functional.unfold(a, m.kernel_size).mT.flatten(0, 1) if isinstance(m, nn.Conv2d) else a.flatten(0, -2)
    return torch.cat([rows, rows.new_ones(len(rows), 1)], 1)


def outputs(m: nn.Module, g: Tensor) -> Tensor:
    return g.flatten(2).mT.flatten(0, 1) if isinstance(m, nn.Conv2d) else g.flatten(0, -2)


def product(rows: Tensor) -> Tensor:
    return (rows.mT @ rows).div_(len(rows))


def variant(kind: str, workload: Workload, exact: bool) -> Run:
    if kind == "plain":
        return workload.plain
    return typed(workload, rng.Exact() if exact else rng.MonteCarlo(1)) if kind == "typed" else bare(workload, exact)


def measure(name: str, exact: bool, rounds: int, threads: int) -> dict[str, object]:
    torch.set_num_threads(threads)
    workload = WORKLOADS[name]()
    runs = [(kind, variant(kind, workload, exact)) for kind in VARIANTS]
    times: dict[str, list[float]] = {key: [] for key, _ in runs}
    for i in range(rounds + 3):
        for key, run in runs[i % 3 :] + runs[: i % 3]:
            start = perf_counter()
            run()
            if i >= 3:
                times[key].append(perf_counter() - start)
    row: dict[str, object] = {"workload": name, "statistics": "exact" if exact else "MC-1", "threads": threads,
                              "rounds": rounds, "plain_ms": 1e3 * statistics.median(times["plain"])}  # fmt: skip
    for key in ("typed", "bare"):
        ratios = [t / p for t, p in zip(times[key], times["plain"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        row |= {key: middle, f"{key}_quartiles": [low, high], f"{key}_of_minima": min(times[key]) / min(times["plain"])}
    row["goal"] = GOALS.get((name, str(row["statistics"])))
    return row


def peak(name: str, kind: str, exact: bool) -> None:
    """Prints the peak of resident memory during the runs, over that with imports, model and batch alone, in MiB."""
    torch.set_num_threads(1)
    workload = WORKLOADS[name]()
    before = memory("VmRSS")
    run = variant(kind, workload, exact)
    run()  # loads code, and a typed network is verified on its first batch: once, not in every call
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")  # forgets the peak so far
    for _ in range(5):
        run()
    print(memory("VmHWM") - before)


def in_fresh_process(name: str, kind: str, exact: bool) -> float:
    command = [sys.executable, __file__, "--workloads", name, "--peak", kind, "exact" if exact else "MC-1"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def memory(what: str) -> float:
    with open("/proc/self/status") as f:
        return next(float(line.split()[1]) for line in f if line.startswith(what)) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--workloads", nargs="+", default=["W1", "W2", "W3"])
    parser.add_argument("--exact", action="store_true", help="exact statistics too, of W2")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--peak", nargs=2, metavar=("VARIANT", "KIND"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    kinds = [(name, exact) for exact in (False, True) for name in arguments.workloads
             if not exact or (arguments.exact and name == "W2")]  # fmt: skip
    if arguments.peak:
        peak(arguments.workloads[0], arguments.peak[0], arguments.peak[1] == "exact")
        return
    if arguments.memory:
        for name, exact in kinds:
            peaks = {
                kind: statistics.median(in_fresh_process(name, kind, exact) for _ in range(3)) for kind in VARIANTS
            }
            print(name, "exact" if exact else "MC-1", {kind: f"{peak:.0f} MiB" for kind, peak in peaks.items()})
        return
    rows = [measure(name, exact, arguments.rounds, t) for t in arguments.threads for name, exact in kinds]
    if arguments.json:
        print(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1))
        return
    titles = ("plain ms", "typed", "quartiles", "minima", "bare")
    print(f"{'':4} {'kind':6} threads {'{:>9} {:>7} {:>15} {:>7} {:>7}'.format(*titles)} goal")
    for r in rows:
        low, high = r["typed_quartiles"]  # type: ignore[misc]
        print(
            f"{r['workload']:4} {r['statistics']:6} {r['threads']:7} {r['plain_ms']:9.2f} {r['typed']:7.2f} "
            f"{f'[{low:.2f}-{high:.2f}]':>15} {r['typed_of_minima']:7.2f} {r['bare']:7.2f} {r['goal'] or ''}"
        )


if __name__ == "__main__":
    main()
