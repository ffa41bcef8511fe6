"""The training race: three networks by the clock.

    python benchmarks/race.py --task autoencoder --seconds 120 --seeds 0 1 2
    python benchmarks/race.py --task digits --seconds 20 --tune

`autoencoder` is W1 on 10,000 curves-like images, `digits` a small convolutional classifier of the digits that
scikit-learn ships, `text` the transformer W3 on the characters of this repository's own pages. Marks are seconds of
training, evaluation not counted. Ours runs with nothing given but the likelihood; peers with the best learning rate of
a grid, which `--tune` tries for a quarter of the time each. `--clock cpu` counts the process's own time, which a busy
machine disturbs less; only with one thread. The table has medians over the seeds with the range, and says when ours had
the loss that the best peer ends with, read off between marks. Muon trains matrices, and AdamW beside it the rest.
SOAP needs the package pytorch_optimizer.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from time import perf_counter, process_time

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from workloads import Decoder, autoencoder

import riemann_ng as rng
from riemann_ng.experiments.curves import curves_like
from riemann_ng.likelihoods import Likelihood

SHARES = (1 / 12, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 3 / 4, 1.0)
"""Of the time, where the loss is looked at."""
PAGES = Path(__file__).parent.parent


@dataclass
class Task:
    """A network, its data and its loss; `test` is data that it does not see."""

    module: nn.Module
    likelihood: Likelihood
    loss: Callable[[Tensor, Tensor], Tensor]
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    batch: int
    looked_at: int = 10_000

    @torch.no_grad()
    def evaluated(self, data: tuple[Tensor, Tensor]) -> float:
        """The loss on the first examples, as many as are looked at."""
        xs, ys = (t[: self.looked_at] for t in data)
        pairs = zip(xs.split(500), ys.split(500), strict=True)
        return sum(float(self.loss(self.module(x), y)) * len(x) for x, y in pairs) / len(xs)


def images(seed: int) -> Task:
    torch.manual_seed(seed)
    work = autoencoder(seed)
    train, test = curves_like(10_000, seed), curves_like(2_000, seed + 1_000)

    def loss(z: Tensor, x: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(z, x, reduction="sum") / len(z)

    return Task(work.module, work.likelihood, loss, (train, train), (test, test), 512)


def digits(seed: int) -> Task:
    data = import_module("sklearn.datasets").load_digits()
    x, y = torch.tensor(data.images / 16.0, dtype=torch.float32)[:, None], torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    return Task(module, rng.Categorical(), cross_entropy, (x[:1_500], y[:1_500]), (x[1_500:], y[1_500:]), 128)


def text(seed: int) -> Task:
    pages = [PAGES / "README.md", *sorted((PAGES / "docs").glob("*.md")), *sorted((PAGES / "proofs").glob("*.md"))]
    written = "".join(page.read_text("utf-8") for page in pages)
    codes = torch.tensor([ord(c) - 32 if 32 <= ord(c) < 127 else 95 for c in written])
    windows = codes.unfold(0, 65, 16)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
    held_out = windows[len(windows) * 9 // 10 :]
    windows = windows[: len(windows) * 9 // 10]
    windows = windows[order[order < len(windows)]]
    torch.manual_seed(seed)

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(z.flatten(0, 1), y.flatten(), reduction="sum") / len(z)

    pairs = ((windows[:, :-1], windows[:, 1:]), (held_out[:, :-1], held_out[:, 1:]))
    return Task(Decoder(), rng.Categorical(), loss, *pairs, batch=32, looked_at=1_000)


def ours(task: Task, lr: float) -> Iterator[torch.optim.Optimizer]:
    yield rng.optim.NaturalGradient(task.module, likelihood=task.likelihood)


def muon(task: Task, lr: float) -> Iterator[torch.optim.Optimizer]:
    parameters = list(task.module.parameters())
    yield torch.optim.Muon([p for p in parameters if p.ndim == 2], lr=lr, weight_decay=0.0)
    yield torch.optim.AdamW([p for p in parameters if p.ndim != 2], lr=1e-3, weight_decay=0.0)


def soap(task: Task, lr: float) -> Iterator[torch.optim.Optimizer]:
    kind = import_module("pytorch_optimizer").SOAP
    yield kind(task.module.parameters(), lr=lr, weight_decay=0.0, precondition_frequency=10)


def adamw(task: Task, lr: float) -> Iterator[torch.optim.Optimizer]:
    yield torch.optim.AdamW(task.module.parameters(), lr=lr, weight_decay=0.0)


def sgd(task: Task, lr: float) -> Iterator[torch.optim.Optimizer]:
    yield torch.optim.SGD(task.module.parameters(), lr=lr, momentum=0.9, nesterov=True)


TASKS: dict[str, Callable[[int], Task]] = {"autoencoder": images, "digits": digits, "text": text}
OURS = "riemann_ng"
METHODS = {OURS: ours, "Muon": muon, "SOAP": soap, "AdamW": adamw, "SGD": sgd}
GRID = {"Muon": (3e-3, 1e-2, 3e-2), "SOAP": (1e-3, 3e-3, 1e-2), "AdamW": (1e-3, 3e-3, 1e-2), "SGD": (1e-3, 1e-2, 1e-1)}
TUNED = {OURS: 1.0, "Muon": 1e-2, "SOAP": 3e-3, "AdamW": 1e-3, "SGD": 1e-2}
Row = dict[str, float]
Clock = Callable[[], float]


def run(name: str, method: str, lr: float, seconds: float, seed: int, clock: Clock = perf_counter) -> list[Row]:
    """Train and test loss at the marks; a run that diverges stays at infinity."""
    task = TASKS[name](seed)
    optimizers, (xs, ys) = list(METHODS[method](task, lr)), task.train
    generator = torch.Generator().manual_seed(seed)
    marks, spent, steps = [seconds * share for share in SHARES], 0.0, 0
    rows: list[Row] = []
    order, at = torch.randperm(len(xs), generator=generator), 0
    while marks:
        if at + task.batch > len(xs):
            order, at = torch.randperm(len(xs), generator=generator), 0
        x, y = xs[order[at : at + task.batch]], ys[order[at : at + task.batch]]
        at += task.batch
        start = clock()
        for optimizer in optimizers:
            optimizer.zero_grad()
        task.loss(task.module(x), y).backward()
        for optimizer in optimizers:
            optimizer.step()
        spent, steps = spent + clock() - start, steps + 1
        if spent >= marks[0]:
            row = {"seconds": marks.pop(0), "steps": steps, "train": task.evaluated(task.train)}
            rows.append(row | {"test": task.evaluated(task.test)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="autoencoder", choices=list(TASKS))
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.clock == "cpu" and given.threads != 1:
        parser.error("--clock cpu counts the time of all threads: give --threads 1")
    clock = process_time if given.clock == "cpu" else perf_counter
    torch.set_num_threads(given.threads)
    rates = dict(TUNED)
    for method in [m for m in given.methods if given.tune and m in GRID]:
        ends = {lr: run(given.task, method, lr, given.seconds / 4, 0, clock)[-1]["train"] for lr in GRID[method]}
        rates[method] = min(ends, key=lambda lr: ends[lr] if ends[lr] == ends[lr] else float("inf"))
        print(f"{method}: " + ", ".join(f"lr {lr:g}: {end:.4g}" for lr, end in ends.items()), flush=True)
    results: dict[str, list[list[Row]]] = {}
    for seed in given.seeds:
        for method in given.methods:  # they take turns, so that a slow spell of the machine hits all of them
            rows = run(given.task, method, rates[method], given.seconds, seed, clock)
            results.setdefault(method, []).append(rows)
            line = "  ".join(f"{r['seconds']:.3g} s {r['train']:.4g} ({r['test']:.4g})" for r in rows)
            print(f"seed {seed}  {method:10s} lr {rates[method]:g}  {rows[-1]['steps']:.0f} steps: {line}", flush=True)
    print(table(results))
    if given.json:
        given.json.write_text(json.dumps({"task": given.task, "rates": rates, "results": results}, indent=1))


def table(results: dict[str, list[list[Row]]]) -> str:
    """Training loss at the marks and test loss at the end, medians over the seeds with the range."""
    marks = [f"{row['seconds']:.3g} s" for row in next(iter(results.values()))[0]]
    lines = [f"| method | {' | '.join(marks)} | test | steps |", "| --- |" + " --- |" * (len(marks) + 2)]
    for method, seeds in results.items():
        cells = [spread([rows[i]["train"] for rows in seeds]) for i in range(len(marks))]
        cells += [spread([rows[-1]["test"] for rows in seeds]), spread([rows[-1]["steps"] for rows in seeds])]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    peers = {m: statistics.median(rows[-1]["train"] for rows in seeds) for m, seeds in results.items() if m != OURS}
    if peers and OURS in results:
        best = min(peers, key=lambda m: peers[m])
        pairs = zip(results[OURS], results[best], strict=True)
        when = ", ".join(reached(mine, its[-1]["train"]) for mine, its in pairs)
        lines.append(f"What {best} ends with is reached by {OURS} after, by seed: {when}.")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """The median, and the range of several."""
    around = f" ({min(values):.4g}-{max(values):.4g})" if len(values) > 1 else ""
    return f"{statistics.median(values):.4g}{around}"


def reached(rows: list[Row], target: float) -> str:
    """When a run has come down to a loss, on the straight line between marks."""
    for before, row in zip([None, *rows], rows, strict=False):
        if row["train"] <= target:
            if before is None:
                return f"less than {row['seconds']:.3g} s"
            share = (before["train"] - target) / (before["train"] - row["train"])
            return f"{before['seconds'] + share * (row['seconds'] - before['seconds']):.3g} s"
    return "more"


if __name__ == "__main__":
    main()
