"""Training with a metric's running average and a first moment beside it, and digits by eight methods in one loop."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..elements import Covector
from ..likelihoods import Categorical
from ..metrics import (
    EKFAC,
    KFAC,
    SOAP,
    BatchNormalization,
    EuclideanMetric,
    MetricAverage,
    RiemannianMetric,
    RootMeanSquare,
    Shampoo,
    Whitening,
)
from ..metrics.averages import Schedule
from ..networks import Network
from .base import Run
from .descent import Batches, best_of, minibatches
from .digits import digits
from .records import Panel, Picture, Series, Table


@dataclass
class Averaged:
    """A metric's running average, and a running mean of covectors beside it, both corrected for their start."""

    metric: RiemannianMetric
    decay: float
    beta: float = 0.0
    schedule: Schedule = "corrected"
    silent: int = 0
    """First steps that move nothing."""

    def train(
        self, network: Network, batches: Batches, rate: Callable[[int], float], after: Callable[[], None]
    ) -> None:
        average, mean = MetricAverage(self.metric, self.decay, self.schedule), None
        for k, (x, y) in enumerate(batches):
            t = k + 1 - self.silent
            with network.observe(x, self.metric.estimator(y)) as seen:
                g = average.update(seen)
            if t > 0:
                df = network.differential(x, y)
                mean = (1 - self.beta) * df if mean is None else self.beta * mean + (1 - self.beta) * df
                network.move_(g.sharp(corrected(mean, self.beta, t)), -rate(t))
            after()


def corrected(mean: Covector, beta: float, t: int) -> Covector:
    return (1 / (1 - beta**t)) * mean


TRAINED: dict[str, tuple[Averaged, tuple[float, ...]]] = {
    "gradient descent": (Averaged(EuclideanMetric(), 0.0, 0.9), (3.0, 1.0, 0.3, 0.1)),
    "Adam": (Averaged(RootMeanSquare(1e-8), 0.99, 0.9), (0.1, 0.03)),
    "Shampoo": (Averaged(Shampoo(1e-4), 0.95, 0.9), (0.3, 0.1)),
    "SOAP": (Averaged(SOAP(1e-8), 0.95, 0.9, silent=1), (0.1, 0.03)),
    "batch normalization": (Averaged(BatchNormalization(epsilon=1e-2), 0.9, 0.9), (1.0, 0.3, 0.1)),
    "whitening": (Averaged(Whitening("activations", 1e-2), 0.9, 0.9), (1.0, 0.3, 0.1)),
    "K-FAC": (Averaged(KFAC().damp_factors(1e-2), 0.9, 0.9), (1.0, 0.3, 0.1)),
    "EKFAC": (Averaged(EKFAC() + 1e-2 * EuclideanMetric(), 0.9, 0.9), (1.0, 0.3, 0.1)),
}
"""Metrics with their averages, first moments of 0.9, and the rates that are tried."""


def training(run: Run) -> None:
    """Digits, at equal steps, with the time they take; every method by one loop, at its best rate of three."""
    data = digits(run.data, side=8, most=run.choose(1400, 6000))
    run.results.data = data.name
    steps, x, y = run.choose(quick=40, full=100), data.images[:, None], data.labels
    torch.manual_seed(run.number_of("classifier"))
    models = {
        "dense": nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)),
        "convolutional": nn.Sequential(
            nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(96, 10)
        ),
    }
    rows: list[tuple[str | float, ...]] = []
    panels = []
    for kind, model in models.items():
        start = model.double()
        batches = minibatches(x, y, 100, steps, run.generator(f"order, {kind}"))
        curves, times, best = {}, {}, {}
        for name, (method, rates) in TRAINED.items():
            began = time.process_time()
            rate, curves[name] = best_of(rates, losses(start, method, batches, x, y))
            times[name] = (time.process_time() - began) / (steps * len(rates))
            rows.append((name, kind, rate, float(curves[name][0]), float(curves[name][-1]), 1e3 * times[name]))
            run.number(f"digits, {kind}: loss, {name}", curves[name][-1])
            best[name] = rate
        off = float((adam_of_torch(start, batches, x, y, best["Adam"]) - curves["Adam"]).abs().max())
        run.below(f"digits, {kind}: Adam's curve is that of torch.optim.Adam", off, 1e-6, "float64, all steps")
        plain_end = curves["gradient descent"][-1]
        for name in ("K-FAC", "EKFAC"):
            claim = f"digits, {kind}: {name} ends below gradient descent"
            run.below(claim, curves[name][-1], plain_end, "equal steps, each at its best rate; qualitative")
        worst = max(float(curve[-1] / curve[0]) for curve in curves.values())
        run.below(f"digits, {kind}: all of them learn", worst, 0.5, "half the loss at the start")
        lines = [Series(name, range(steps + 1), curve) for name, curve in curves.items()]
        panels.append(Panel(f"{data.name}, {kind}", "step", "training loss", lines, log="y"))
    columns = ("method", "network", "rate", "loss at the start", "at the end", "ms of CPU a step")
    run.table(Table(f"{steps} steps of 100 examples, statistics made anew at every one", columns, rows))
    run.picture(Picture("training", "One loop, one metric each: training at equal steps.", panels))


def adam_of_torch(start: nn.Module, batches: Batches, x: Tensor, y: Tensor, rate: float) -> Tensor:
    model, loss = copy.deepcopy(start), cross_entropy
    adam = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.9, 0.99))
    found = [loss(model(x), y).detach()]
    for a, b in batches:
        adam.zero_grad()
        loss(model(a), b).backward()
        adam.step()
        found.append(loss(model(x), y).detach())
    return torch.stack(found)


def losses(start: nn.Module, method: Averaged, batches: Batches, x: Tensor, y: Tensor) -> Callable[[float], Tensor]:
    """The curve at a rate."""

    def curve(rate: float) -> Tensor:
        model = copy.deepcopy(start)
        network = Network.from_torch(model, Categorical(), x[:100])
        found: list[float] = []

        @torch.no_grad()
        def look() -> None:
            found.append(float(cross_entropy(model(x), y)))

        look()
        method.train(network, batches, lambda t: rate, look)
        return torch.tensor(found, dtype=torch.float64)

    return curve
