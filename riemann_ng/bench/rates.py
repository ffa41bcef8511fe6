"""How fast this machine is at what a step consists of, measured in about two seconds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

from ..errors import InvalidSetting
from ..samples import gram
from .loops import RECIPES, Loop
from .quantities import Factors
from .timing import Clock, Work
from .workloads import autoencoder, copied

SIDES = (16, 64, 128, 256, 512, 1024)
ROWS = 1024
Table = dict[int, float]


@dataclass(frozen=True)
class Rates:
    """Operations a second by side (of products, symmetric products, inverses), bytes a second by size, and seconds.

    `inverse` is of d³ operations, Cholesky's and the inverse's together; `function` is of numbers that tanh is taken
    of. `call` are seconds of a call that does nothing, `layer` what the library itself takes for a layer in a step, and
    `applied` of that for the inverse alone.
    """

    device: str
    threads: int
    gemm: Table
    syrk: Table
    cholesky: Table
    inverse: Table
    convolution: Table
    bandwidth: Table
    function: float
    call: float
    layer: float
    applied: float

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", "utf-8")

    @classmethod
    def load(cls, path: Path) -> Rates:
        """From a file that `save` wrote, or one written by hand for a machine that is not here."""
        try:
            given = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise InvalidSetting(f"{path} cannot be read as rates: {error}.") from None
        names = set(cls.__dataclass_fields__)
        if not isinstance(given, dict) or set(given) != names:
            raise InvalidSetting(f"{path} is not of rates: expected {', '.join(sorted(names))}.")
        made: dict[str, Any] = {
            k: {int(d): float(r) for d, r in v.items()} if isinstance(v, dict) else v for k, v in given.items()
        }
        return cls(**made)


def at(table: Table, side: float) -> float:
    """Between measured sides, on logarithms; beyond them as at the last."""
    sides = sorted(table)
    if side <= sides[0]:
        return table[sides[0]] * max(side, 1.0) / sides[0]
    for low, high in pairwise(sides):
        if side <= high:
            w = math.log(side / low) / math.log(high / low)
            return math.exp((1 - w) * math.log(table[low]) + w * math.log(table[high]))
    return table[sides[-1]]


def fastest(work: Work, clock: Clock, seconds: float = 0.03, least: int = 3) -> float:
    """The median of a few, each long enough to be measured."""
    work()
    taken: list[float] = []
    began = clock()
    while len(taken) < least or clock() - began < seconds:
        start = clock()
        work()
        taken.append(clock() - start)
    return sorted(taken)[len(taken) // 2]


def by_side(
    make: Callable[[int], Work], operations: Callable[[int], float], clock: Clock, sides: Sequence[int] = SIDES
) -> Table:
    return {d: operations(d) / fastest(make(d), clock) for d in sides}


def measured(device_name: str, clock: Clock = perf_counter) -> Rates:
    """Of this machine, in float32 on its CPU, as it is now."""

    def multiplied(d: int) -> Work:
        x, y = torch.randn(ROWS, d), torch.randn(d, d)
        return lambda: x @ y

    def squared(d: int) -> Work:
        x = torch.randn(ROWS, d)
        return lambda: gram(x)

    def definite(d: int) -> torch.Tensor:
        return torch.eye(d).mul_(4.0).add_(1 / d)

    def factorized(d: int) -> Work:
        M = definite(d)
        return lambda: torch.linalg.cholesky(M)

    def inverted(d: int) -> Work:
        M = definite(d)
        return lambda: torch.cholesky_inverse(torch.linalg.cholesky(M))

    def convolved(c: int) -> Work:
        conv, x = nn.Conv2d(c, c, 3), torch.randn(max(1, 1024 // c), c, 18, 18, requires_grad=True)
        return lambda: conv(x).sum().backward()

    def copied(megabytes: int) -> Work:
        x = torch.randn(megabytes * 2**17)
        y = torch.empty_like(x)
        return lambda: y.copy_(x)

    numbers = torch.randn(2**20)
    one = torch.zeros(1)
    return Rates(
        device_name,
        torch.get_num_threads(),
        by_side(multiplied, lambda d: 2.0 * ROWS * d * d, clock),
        by_side(squared, lambda d: 2.0 * ROWS * d * d, clock),
        by_side(factorized, lambda d: float(d) ** 3 / 3, clock),
        by_side(inverted, lambda d: float(d) ** 3, clock, (*SIDES, 2 * SIDES[-1])),
        by_side(convolved, lambda c: 3 * 2.0 * max(1, 1024 // c) * 256 * 9 * c * c, clock, (4, 16, 64, 256)),
        {m * 2**19: 2.0 * m * 2**19 / fastest(copied(m), clock) for m in (1, 8, 128)},
        numbers.numel() / fastest(lambda: numbers.tanh(), clock),
        fastest(lambda: one.add(one), clock, least=200),
        *own_time(clock),
    )


def own_time(clock: Clock) -> tuple[float, float]:
    """Seconds that the library takes for a layer in a step with statistics, beyond all arithmetic, and in `sharp`."""
    work = autoencoder(batch=4, widths=(4,) * 13)
    loop = Loop(work, RECIPES["empirical"])
    loop.turn()
    of = Factors.of(copied(work))
    ready, many = of.ready(), len(of.pairs)
    whole = fastest(loop.ten, clock) / 10 - fastest(work.plain, clock)
    return whole / many, fastest(lambda: ready.sharp(of.gradient), clock) / many
