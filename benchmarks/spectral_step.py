"""One step in the spectral norm against torch.optim.Muon, on the same weights: median ratios of interleaved runs.

Weights alone, no biases: torch's Muon takes nothing else. Both keep a momentum with Nesterov's look ahead. "bfloat16"
is Muon's own precision, `NewtonSchulz(precision=torch.bfloat16)`; "float32" the default. "sign" is the matrix signs
alone, against torch's function, and "K-FAC" the duality map between K-FAC's spaces with factors made before.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from itertools import pairwise
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim._muon import _zeropower_via_newtonschulz
from workloads import WIDTHS

import riemann_ng as rng
from riemann_ng.norms import NewtonSchulz, Spectral
from riemann_ng.optim import SteepestDescent

GOAL = 1.3
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
SHAPES: dict[str, list[tuple[int, int]]] = {
    "W1": [(b, a) for a, b in pairwise(WIDTHS)],
    "transformer, 2 layers of width 512": [(1536, 512), (512, 512), (2048, 512), (512, 2048)] * 2,
}
HALF = torch.bfloat16
Run = Callable[[], Any]


class Weights(nn.Module):
    """Linear maps side by side, with gradients that stay."""

    def __init__(self, shapes: list[tuple[int, int]]):
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(n, m, bias=False) for m, n in shapes)
        for p in self.parameters():
            p.grad = torch.randn_like(p)


def kfac(module: Weights) -> Run:
    """The duality map between K-FAC's spaces, on moments of random samples."""
    network = rng.Network.from_torch(module, rng.Gaussian())
    parts: dict[str, rng.InnerProduct] = {}
    for path, block in network.blocks.items():
        factors = []
        for V in (block.output_space, block.input_space.dual):
            rows = torch.randn(2 * V.dim, V.dim)
            factors.append(rng.Gram(V, rows.mT @ rows / len(rows), natural=True))
        parts[path] = factors[0] * factors[1]
    norm = Spectral(between=rng.direct_sum(parts), method=NewtonSchulz(precision=HALF))
    df = network.covector({name: p.grad for name, p in network.parameters.items() if p.grad is not None})
    return lambda: norm.sharp(df)


def works(shapes: list[tuple[int, int]]) -> dict[str, Run]:
    gradients = [torch.randn(shape) for shape in shapes]

    def signs(of: Callable[[Tensor], Tensor]) -> Run:
        return lambda: [of(x) for x in gradients]

    def typed(precision: torch.dtype | None) -> Run:
        norm = Spectral(method=NewtonSchulz(precision=precision), scale="original")
        return SteepestDescent(Weights(shapes), rng.Gaussian(), norm, lr=1e-3).step

    return {
        "Muon": torch.optim.Muon(Weights(shapes).parameters(), lr=1e-3, weight_decay=0.0).step,
        "Muon sign": signs(lambda x: _zeropower_via_newtonschulz(x, COEFFICIENTS, 5, 1e-7)),
        "bfloat16": typed(HALF),
        "float32": typed(None),
        "bfloat16 sign": signs(NewtonSchulz(precision=HALF)),
        "float32 sign": signs(NewtonSchulz()),
        "K-FAC": kfac(Weights(shapes)),
    }


def measure(name: str, rounds: int, clock: Callable[[], float]) -> list[dict[str, Any]]:
    runs = list(works(SHAPES[name]).items())
    times: dict[str, list[float]] = {key: [] for key, _ in runs}
    for i in range(rounds + 2):
        for key, run in runs[i % len(runs) :] + runs[: i % len(runs)]:
            start = clock()
            run()
            if i >= 2:
                times[key].append(clock() - start)
    rows = []
    for key, _ in runs:
        if key.startswith("Muon"):
            continue
        unit = times["Muon sign" if key.endswith("sign") else "Muon"]
        low, middle, high = statistics.quantiles([t / u for t, u in zip(times[key], unit, strict=True)], n=4)
        rows.append({
            "shapes": name, "work": key, "ratio": middle, "quartiles": [low, high],
            "muon_ms": 1e3 * statistics.median(unit), "ms": 1e3 * statistics.median(times[key]),
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="cpu")
    arguments = parser.parse_args()
    if arguments.clock == "cpu" and arguments.threads > 1:
        parser.error("--clock cpu adds up the time of all threads: use it with --threads 1")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    clock = process_time if arguments.clock == "cpu" else perf_counter
    rows = [row for name in SHAPES for row in measure(name, arguments.rounds, clock)]
    if arguments.json:
        print(json.dumps({"torch": torch.__version__, "goal": GOAL, "rows": rows}, indent=1))
        return
    print(f"{'':35} {'work':14} {'Muon ms':>8} {'ms':>8} {'ratio':>6}  quartiles")
    for r in rows:
        low, high = r["quartiles"]
        times = f"{r['muon_ms']:8.2f} {r['ms']:8.2f} {r['ratio']:6.2f}"
        print(f"{r['shapes']:35} {r['work']:14} {times}  {low:.2f}-{high:.2f}")


if __name__ == "__main__":
    main()
