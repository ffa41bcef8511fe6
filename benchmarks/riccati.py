"""Exact damped Fisher steps: through the stages, by the dense matrix, by the kernel of the output directions.

CPU time of a whole `natural_gradient`, observation included, median of the rounds; and of an exact Newton step through
the stages. `RxC` is so many examples times output directions, `θ` the number of parameters.
"""

import argparse
import json
import statistics
import time
from itertools import pairwise

import torch
from torch import nn

import riemann_ng as rng

CASES = {
    "deep, few directions": ((16, 32, 32, 32, 32, 2), 16),
    "wide": ((32, 64, 64, 10), 32),
    "many examples": ((8, 12, 12, 3), 256),
    "many parameters": ((64, 128, 128, 10), 32),
}
WAYS = {
    "stages": (rng.Fisher(), rng.solvers.Riccati()),
    "dense": (rng.Fisher(structure="dense"), rng.solvers.Cholesky()),
    "dual": (rng.Fisher(structure="dual"), None),
}


def problem(widths: tuple[int, ...], examples: int) -> tuple[rng.Network, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.Tanh())][:-1]
    x, y = torch.randn(examples, widths[0]).double(), torch.randint(0, widths[-1], (examples,))
    return rng.Network.from_torch(nn.Sequential(*layers).double(), rng.Categorical(), x), x, y


def spent(work: object, rounds: int) -> float:
    taken = []
    for _ in range(rounds + 1):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return statistics.median(taken[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--damping", type=float, default=1e-2)
    parser.add_argument("--newton", type=float, default=10.0, help="the damping of the Newton step")
    parser.add_argument("--dense-limit", type=int, default=6000, help="parameters above which nothing dense is made")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    report = {}
    for name, (widths, examples) in CASES.items():
        network, x, y = problem(widths, examples)
        size = network.tangent_space.dim
        row: dict[str, object] = {"θ": size, "RxC": f"{examples}x{widths[-1]}"}
        for way, (metric, solver) in WAYS.items():
            if way == "dense" and size > args.dense_limit:
                continue
            step = lambda m=metric, s=solver, n=network, a=x, b=y: rng.natural_gradient(  # noqa: E731
                n, m, a, b, damping=args.damping, solver=s
            )
            row[way + " ms"] = round(1e3 * spent(step, args.rounds), 1)
        if size <= args.dense_limit:
            newton = lambda n=network, a=x, b=y: rng.layerwise.newton_step(n, a, b, damping=args.newton)  # noqa: E731
            row["Newton ms"] = round(1e3 * spent(newton, 1), 1)
        report[name] = row
    for name, row in report.items():
        print(f"{name:>22}: " + ", ".join(f"{k} {v}" for k, v in row.items()))
    if args.json:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
