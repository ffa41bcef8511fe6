"""Works that take turns, and what their times say of each other."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter

import torch

Work = Callable[[], object]
Clock = Callable[[], float]
LEAST = 4
"""Rounds without which there is no spread to speak of."""


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(middle, low, high)

    def times(self, factor: float) -> Spread:
        return Spread(factor * self.median, factor * self.low, factor * self.high)


def synchronized(work: Work, device: str) -> Work:
    """The work with all that it leaves to the device done before it returns."""
    if device == "cpu":
        return work

    def run() -> None:
        work()
        torch.cuda.synchronize()

    return run


def taking_turns(
    works: Mapping[str, Work], rounds: int | None = None, seconds: float = 6.0, clock: Clock = perf_counter
) -> dict[str, list[float]]:
    """Seconds of each work in each round; a slow spell of the machine hits all of them.

    The order is turned from round to round. Without `rounds` there are as many as fit into `seconds`, and at least a
    few. A first round warms up and does not count.
    """
    names = list(works)
    times: dict[str, list[float]] = {name: [] for name in names}
    began = perf_counter()
    turn = 0
    while True:
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = clock()
            works[name]()
            if turn:
                times[name].append(clock() - start)
        turn += 1
        if turn > rounds if rounds is not None else turn > LEAST and perf_counter() - began > seconds:
            return times


def ratio(times: Mapping[str, list[float]], of: str, to: str) -> Spread:
    """Of neighbours in the same round."""
    return Spread.of([a / b for a, b in zip(times[of], times[to], strict=True)])
