"""The training race: the deep autoencoder on curve-like images, every method by the clock.

    python benchmarks/race.py --seconds 120 --seeds 0 1 2

Every method trains its own copy of W1 (784-400-200-100-50-25-6-25-50-100-200-400-784) on 10,000 images; marks are
seconds of training, evaluation not counted. Ours runs with nothing given but the likelihood and the metric. Peers run
with the best learning rate of the grid in `PEERS`; `--tune` tries the grid. SOAP needs the package pytorch_optimizer.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from workloads import autoencoder

import riemann_ng as rng
from riemann_ng.experiments.curves import curves_like

MARKS = (10, 20, 30, 40, 60, 90, 120)
EXAMPLES, HELD_OUT = 10_000, 2_000
Stepper = Callable[[], object]


def ours(model: nn.Module, lr: float) -> Iterator[torch.optim.Optimizer]:
    yield rng.optim.NaturalGradient(model, likelihood=rng.Bernoulli(), metric=rng.KFAC())


def muon(model: nn.Module, lr: float) -> Iterator[torch.optim.Optimizer]:
    yield torch.optim.Muon([p for p in model.parameters() if p.ndim == 2], lr=lr, weight_decay=0.0)
    yield torch.optim.AdamW([p for p in model.parameters() if p.ndim != 2], lr=1e-3, weight_decay=0.0)


def soap(model: nn.Module, lr: float) -> Iterator[torch.optim.Optimizer]:
    from pytorch_optimizer import SOAP

    yield SOAP(model.parameters(), lr=lr, weight_decay=0.0, precondition_frequency=10)


def adamw(model: nn.Module, lr: float) -> Iterator[torch.optim.Optimizer]:
    yield torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)


Method = Callable[[nn.Module, float], Iterator[torch.optim.Optimizer]]
METHODS: dict[str, Method] = {"riemann_ng": ours, "Muon": muon, "SOAP": soap, "AdamW": adamw}
PEERS = {"Muon": (3e-3, 1e-2, 2e-2), "SOAP": (1e-3, 3e-3, 6e-3), "AdamW": (5e-4, 1e-3, 2e-3)}
BEST = {"riemann_ng": 1.0, "Muon": 1e-2, "SOAP": 3e-3, "AdamW": 1e-3}


def nll(z: Tensor, x: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(z, x, reduction="sum") / len(z)


@torch.no_grad()
def evaluated(model: nn.Module, data: Tensor) -> float:
    total = sum(float(nll(model(part), part)) * len(part) for part in data.split(2_000))
    return total / len(data)


def run(method: str, lr: float, seconds: float, seed: int, batch: int) -> list[dict[str, float]]:
    """Train and test loss at the marks up to `seconds`."""
    train, test = curves_like(EXAMPLES, seed), curves_like(HELD_OUT, seed + 1_000)
    torch.manual_seed(seed)
    model = autoencoder(seed).module
    optimizers = list(METHODS[method](model, lr))
    generator = torch.Generator().manual_seed(seed)
    marks, spent, steps, rows = [m for m in MARKS if m <= seconds], 0.0, 0, []
    order, at = torch.randperm(EXAMPLES, generator=generator), 0
    while marks:
        if at + batch > EXAMPLES:
            order, at = torch.randperm(EXAMPLES, generator=generator), 0
        x = train[order[at : at + batch]]
        at += batch
        start = perf_counter()
        for optimizer in optimizers:
            optimizer.zero_grad()
        nll(model(x), x).backward()
        for optimizer in optimizers:
            optimizer.step()
        spent, steps = spent + perf_counter() - start, steps + 1
        if spent >= marks[0]:
            row = {"seconds": marks.pop(0), "steps": steps, "train": evaluated(model, train)}
            rows.append(row | {"test": evaluated(model, test)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tune", action="store_true", help="try the peers' grid for a quarter of the time")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rates = dict(BEST)
    for method in [m for m in given.methods if given.tune and m in PEERS]:
        ends = {lr: run(method, lr, given.seconds / 4, 0, given.batch)[-1]["train"] for lr in PEERS[method]}
        rates[method] = min(ends, key=lambda lr: ends[lr])
        print(f"{method}: " + ", ".join(f"lr {lr:g}: {end:.1f}" for lr, end in ends.items()), flush=True)
    results: dict[str, list[list[dict[str, float]]]] = {}
    for seed in given.seeds:
        for method in given.methods:  # they take turns, so that a slow spell of the machine hits all of them
            rows = run(method, rates[method], given.seconds, seed, given.batch)
            results.setdefault(method, []).append(rows)
            line = "  ".join(f"{r['seconds']:.0f} s {r['train']:.1f} ({r['test']:.1f})" for r in rows)
            print(f"seed {seed}  {method:10s} lr {rates[method]:g}  {rows[-1]['steps']:.0f} steps: {line}", flush=True)
    print(table(results))
    if given.json:
        given.json.write_text(json.dumps({"rates": rates, "batch": given.batch, "results": results}, indent=1))


def table(results: dict[str, list[list[dict[str, float]]]]) -> str:
    """Training loss, nats an image, median over the seeds with the range, and the test loss at the end."""
    marks = [int(row["seconds"]) for row in next(iter(results.values()))[0]]
    lines = ["| method | " + " | ".join(f"{m} s" for m in marks) + " | test |", "| --- |" + " --- |" * (len(marks) + 1)]
    for method, seeds in results.items():
        cells = []
        for i in range(len(marks)):
            values = [rows[i]["train"] for rows in seeds]
            spread = f" ({min(values):.1f}-{max(values):.1f})" if len(values) > 1 else ""
            cells.append(f"{statistics.median(values):.1f}{spread}")
        lines.append(f"| {method} | {' | '.join(cells)} | {statistics.median(r[-1]['test'] for r in seeds):.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
