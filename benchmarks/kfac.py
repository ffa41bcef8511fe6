"""What K-FAC costs after its statistics: averaging, factorizing and solving, in plain forward and backward passes.

"average" takes the moments of a batch into running averages, their products not counted; "invert" damps all factors
and makes their inverses; "apply" is `sharp` of a typed gradient, by the inverses, and "solve" the same by triangular
solves. "bare" does the same to the same matrices in lean torch: `lerp`, `cholesky_inverse(cholesky(M + c 1))`, two
products. All take turns within a round; medians of the ratio to the plain pass of the same round, with quartiles.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor
from workloads import WORKLOADS

import riemann_ng as rng
from riemann_ng.inner_products import made_ready
from riemann_ng.metrics import KFAC, RunningAverage

PEERS = {"invert": {"W1": 1.74, "W2": 0.77, "W3": 2.10}, "apply": {"W1": 0.68, "W2": 0.07, "W3": 0.33}}
"""The best peer's ratios, two threads, taken on another occasion."""
PARTS = ("average", "invert", "apply", "solve")
Run = Callable[[], object]


def works(name: str) -> dict[str, Run]:
    workload = WORKLOADS[name]()
    network = rng.Network.from_torch(workload.module, workload.likelihood, workload.x)
    g = KFAC().at(network.observe(workload.x, rng.MonteCarlo(1)))
    forms = [f for part in g.summands().values() for f in part.factors]
    moments = [f.member_matrices() for f in forms]
    reference = rng.euclidean_on_translations(network.tangent_space)
    workload.plain()
    grads = {name: p.grad for name, p in network.parameters.items()}
    gradient = network.covector(grads)
    blocks = [gradient.component(path).data for path in network.tangent_space]
    average = RunningAverage()
    average.add(g)

    def inverted() -> rng.InnerProduct:
        return made_ready(rng.damp_factors(g, 1e-2, reference))

    ready = inverted()
    solving = rng.damp_factors(g, 1e-2, reference)
    solving.sharp(gradient)
    inverses = [bare_inverse(M) for M in moments]

    def bare_apply() -> list[Tensor]:
        return [
            G @ x @ A if A.ndim > 1 else G @ x * A
            for G, A, x in zip(inverses[::2], inverses[1::2], blocks, strict=True)
        ]

    return {
        "plain": workload.plain,
        "average": lambda: average.add(g),
        "invert": inverted,
        "apply": lambda: ready.sharp(gradient),
        "solve": lambda: solving.sharp(gradient),
        "bare average": lambda: [M.lerp(M, 0.05) for M in moments],
        "bare invert": lambda: [bare_inverse(M) for M in moments],
        "bare apply": bare_apply,
    }


def bare_inverse(M: Tensor) -> Tensor:
    if M.ndim == 1:  # of one-hot inputs
        return (M + 1e-1).reciprocal()
    damped = M.clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(1e-1)
    return torch.cholesky_inverse(torch.linalg.cholesky(damped))


def measure(name: str, rounds: int, threads: int) -> list[dict[str, object]]:
    torch.set_num_threads(threads)
    runs = list(works(name).items())
    times: dict[str, list[float]] = {key: [] for key, _ in runs}
    for i in range(rounds + 3):
        for key, run in runs[i % len(runs) :] + runs[: i % len(runs)]:
            start = perf_counter()
            run()
            if i >= 3:
                times[key].append(perf_counter() - start)
    rows: list[dict[str, object]] = []
    for part in PARTS:
        ratios = [t / p for t, p in zip(times[part], times["plain"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        bare = times.get(f"bare {part}")
        rows.append({
            "workload": name, "part": part, "threads": threads, "rounds": rounds,
            "plain_ms": 1e3 * statistics.median(times["plain"]), "typed": middle, "quartiles": [low, high],
            "of_minima": min(times[part]) / min(times["plain"]), "peer": PEERS.get(part, {}).get(name),
            "bare": None if bare is None else min(bare) / min(times["plain"]),
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--workloads", nargs="+", default=["W1", "W2", "W3"])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    arguments = parser.parse_args()
    rows = [
        row for t in arguments.threads for name in arguments.workloads for row in measure(name, arguments.rounds, t)
    ]
    if arguments.json:
        print(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1))
        return
    print(f"{'':4} {'part':8} threads  plain ms   typed       quartiles  minima  bare (minima)  peer")
    for r in rows:
        low, high = r["quartiles"]  # type: ignore[misc]
        bare = "" if r["bare"] is None else f"{r['bare']:.2f}"
        print(
            f"{r['workload']:4} {r['part']:8} {r['threads']:7} {r['plain_ms']:9.2f} {r['typed']:7.2f} "
            f"{f'[{low:.2f}-{high:.2f}]':>15} {r['of_minima']:7.2f} {bare:>14} {r['peer'] or ''}"
        )


if __name__ == "__main__":
    main()
