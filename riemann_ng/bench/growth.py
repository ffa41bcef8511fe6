"""How cost grows with a network: exponents fitted on logarithms, beside those of counted operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import process_time

import torch
from torch import nn

from ..networks import Exact, MonteCarlo
from .quantities import Factors, network_of, statistics
from .shapes import Layer, layers_of
from .timing import Clock, Spread, Work, taking_turns
from .workloads import Workload, categorical, mlp

Count = Callable[[Sequence[Layer], int], float]


@dataclass(frozen=True)
class Curve:
    """Cost against one size of a network: `theory` is the exponent in the limit."""

    along: str
    quantity: str
    theory: float
    sizes: tuple[int, ...]
    make: Callable[[int], Workload]


@dataclass(frozen=True)
class Fit:
    """Milliseconds by size, and the exponents: measured, of the counted operations at these sizes, and in the limit.

    Nothing is counted where the operations are not those of formulas.
    """

    curve: Curve
    milliseconds: tuple[float, ...]
    measured: float
    counted: float | None


def labelled(module: nn.Module, x: torch.Tensor, outputs: int) -> Workload:
    return categorical("growth", module, x, torch.randint(0, outputs, (len(x),)))


def of_width(width: int, batch: int = 512, depth: int = 2, outputs: int = 10) -> Workload:
    torch.manual_seed(0)
    return labelled(mlp((width,) * (depth + 1) + (outputs,)), torch.randn(batch, width), outputs)


def of_depth(depth: int) -> Workload:
    return of_width(192, 256, depth)


def of_batch(batch: int) -> Workload:
    return of_width(256, batch)


def of_outputs(outputs: int) -> Workload:
    return of_width(128, 64, 2, outputs)


def of_sites(size: int) -> Workload:
    torch.manual_seed(0)
    conv = nn.Sequential(
        nn.Conv2d(8, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    return labelled(conv, torch.randn(8, 8, size, size), 10)


WIDTHS, DEPTHS, BATCHES = (256, 512, 1024), (2, 4, 8, 16), (256, 512, 1024, 2048)
OUTPUTS, SIDES = (8, 16, 32, 64), (16, 32, 64)
CURVES = (
    Curve("width", "passes", 2, WIDTHS, of_width),
    Curve("width", "statistics", 2, WIDTHS, of_width),
    Curve("width", "invert", 3, WIDTHS, of_width),
    Curve("width", "apply", 3, WIDTHS, of_width),
    Curve("depth", "statistics", 1, DEPTHS, of_depth),
    Curve("depth", "invert", 1, DEPTHS, of_depth),
    Curve("depth", "apply", 1, DEPTHS, of_depth),
    Curve("batch", "statistics", 1, BATCHES, of_batch),
    Curve("batch", "invert", 0, BATCHES, of_batch),
    Curve("outputs", "exact", 1, OUTPUTS, of_outputs),
    Curve("sites", "statistics", 2, SIDES, of_sites),
    Curve("sites", "invert", 0, SIDES, of_sites),
)
"""`sites` is along the side of an image, whose square the sites are."""


def work_of(quantity: str, work: Workload) -> Work:
    if quantity == "passes":
        return work.plain
    if quantity in ("statistics", "exact"):
        return statistics(work, MonteCarlo(1) if quantity == "statistics" else Exact())
    of = Factors.of(work)
    if quantity == "invert":
        return of.ready
    ready = of.ready()
    return lambda: ready.sharp(of.gradient)


def counted(quantity: str, work: Workload) -> float | None:
    """Operations by formula: of statistics the products alone."""
    layers = layers_of(network_of(work), work.x)
    if quantity == "statistics":
        return sum(f for x in layers for _, _, f in x.products(len(work.x)))
    if quantity in ("invert", "apply"):
        return sum(x.inversions if quantity == "invert" else x.applications for x in layers)
    return None


def exponent(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """The slope of the least-squares line through the logarithms."""
    xs, ys = [math.log(s) for s in sizes], [math.log(c) for c in costs]
    mx, my = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True)) / sum((x - mx) ** 2 for x in xs)


def fitted(curve: Curve, rounds: int = 5, clock: Clock = process_time) -> Fit:
    made = {size: curve.make(size) for size in curve.sizes}
    times = taking_turns({str(s): work_of(curve.quantity, w) for s, w in made.items()}, rounds, clock=clock)
    medians = [Spread.of(times[str(s)]).median for s in curve.sizes]
    counts = [counted(curve.quantity, w) for w in made.values()]
    known = [c for c in counts if c is not None]
    return Fit(
        curve, tuple(1e3 * m for m in medians), exponent(curve.sizes, medians),
        exponent(curve.sizes, known) if len(known) == len(counts) else None,
    )  # fmt: skip


def markdown(fits: Sequence[Fit]) -> str:
    lines = ["| along | quantity | sizes | ms | measured | of the operations | in the limit |", "| " + "--- | " * 7]
    for f in fits:
        c = f.curve
        sizes, ms = (
            "-".join(map(str, (f.curve.sizes[0], f.curve.sizes[-1]))),
            f"{f.milliseconds[0]:.3g}-{f.milliseconds[-1]:.3g}",
        )
        count = "" if f.counted is None else f"{f.counted:.2f}"
        lines.append(f"| {c.along} | {c.quantity} | {sizes} | {ms} | {f.measured:.2f} | {count} | {c.theory:g} |")
    return "\n".join(line.rstrip() for line in lines) + "\n"
