"""What a step of K-FAC will cost: time and memory by layer sizes and the rates of a machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidSetting
from ..optim import Schedule
from ..optim.distributed import Sharing
from ..optim.distributed.factorizations import Assignment, Job
from .rates import Rates, at
from .shapes import Layer

ITEM = 4
"""Bytes of a number: statistics and inverses are float32."""


@dataclass(frozen=True)
class Wire:
    """What ranks are joined by: bytes and seconds of one message between two."""

    ranks: int
    bandwidth: float
    latency: float

    def reduced(self, size: float) -> float:
        """Seconds of an all-reduce of so many bytes in a ring: each is sent twice, but for one part."""
        n = self.ranks
        return 2 * (n - 1) / n * size / self.bandwidth + 2 * math.log2(n) * self.latency if n > 1 else 0.0

    def gathered(self, size: float) -> float:
        """Seconds until all have what the ranks hold together."""
        n = self.ranks
        return (n - 1) / n * size / self.bandwidth + math.log2(n) * self.latency if n > 1 else 0.0


@dataclass(frozen=True)
class Plan:
    """Seconds and bytes of one rank. A step is the mean over a long run by the schedule."""

    ranks: int
    passes: float
    statistics: float
    factorization: float
    application: float
    averaging: float
    step: float
    sent: dict[str, float]
    waiting: dict[str, float]
    memory: dict[str, float]
    operations: dict[str, float]
    busiest: float
    """The share of all factorizations that the busiest rank makes, times the number of ranks: 1 is even."""

    @property
    def bytes(self) -> float:
        return sum(self.memory.values())

    def as_json(self) -> dict[str, Any]:
        return {**{k: getattr(self, k) for k in self.__dataclass_fields__}, "bytes": self.bytes}


def jobs_of(layers: Sequence[Layer]) -> list[Job]:
    """Factorizations, of each layer by itself."""
    return [
        Job(f"{layer.path}.{k}", layer.members, d)
        for layer in layers
        for k in range(layer.uses)
        for d, diagonal in layer.factors
        if not diagonal
    ]


def seconds_of_statistics(layers: Sequence[Layer], examples: int, rates: Rates) -> float:
    """Of the symmetric products alone."""
    total = 0.0
    panel = 64 * rates.threads
    for layer in layers:
        for rows, side, operations in layer.products(examples, panel):
            whole = 2.0 * rows * side**2
            kind = rates.syrk if operations < whole or layer.image is None else rates.gemm
            # a rate of symmetric products is of both triangles
            total += (whole if kind is rates.syrk and layer.image is None else operations) / at(kind, side)
        if layer.members > 1 or layer.diagonal_inputs:
            n = examples * layer.sites
            total += layer.uses * 6.0 * ITEM * n * layer.members * layer.out / at(rates.bandwidth, n * layer.members)
    return total


def seconds_of_job(job: Job, rates: Rates) -> float:
    copies = 3.0 * ITEM * job.members * job.side**2
    return job.members * float(job.side) ** 3 / at(rates.inverse, job.side) + copies / at(rates.bandwidth, copies)


def seconds_of_application(layers: Sequence[Layer], rates: Rates) -> float:
    total = 0.0
    for layer in layers:
        for (d, diagonal), other in zip(layer.factors, (layer.into, layer.out), strict=True):
            operations = 2.0 * layer.uses * layer.members * layer.out * layer.into * d
            if not diagonal and layer.members == 1:
                total += operations / at(rates.gemm, min(d, other))
        moved = 3.0 * ITEM * layer.parameters
        total += moved / at(rates.bandwidth, moved) + layer.uses * rates.applied
    return total


def made(
    layers: Sequence[Layer], examples: int, passes: float, rates: Rates, schedule: Schedule, sampled: bool = False,
    wire: Wire | None = None, sharing: Sharing = Sharing(), activations: float | None = None,
) -> Plan:  # fmt: skip
    """`passes` are seconds of a plain forward and backward pass of one rank's examples.

    With `sampled` statistics need a backward pass of their own to the layers' outputs, a third of a plain pass.
    """
    wire = wire or Wire(1, math.inf, 0.0)
    jobs, ranks = jobs_of(layers), wire.ranks
    plan = Assignment.of(jobs, ranks, sharing)
    each = [seconds_of_job(job, rates) for job in jobs]
    busy = [0.0] * ranks
    for seconds, owner in zip(each, plan.owner, strict=True):
        busy[owner] += seconds
    many = sum(layer.uses for layer in layers)
    parameters = sum(layer.parameters for layer in layers)
    entries, packed = sum(x.entries for x in layers), sum(x.packed for x in layers)
    products = seconds_of_statistics(layers, examples, rates)
    statistics = products + (passes / 3 if sampled else 0.0)
    factorization = max(busy)
    application = seconds_of_application(layers, rates)
    averaging = 4.0 * ITEM * parameters / at(rates.bandwidth, ITEM * parameters)
    sent: dict[str, float] = {"gradients": ITEM * parameters, "statistics": ITEM * packed, "inverses": ITEM * packed}
    waiting = {
        "gradients": wire.reduced(sent["gradients"]), "statistics": wire.reduced(sent["statistics"]),
        "inverses": wire.gathered(sent["inverses"]),
    }  # fmt: skip
    held = plan.holders / ranks
    if held < 1:
        sent["natural gradients"] = ITEM * parameters
        waiting["natural gradients"] = wire.gathered(sent["natural gradients"])
    step = (
        passes + application + averaging + many * max(rates.layer - rates.applied, 0.0)
        + (statistics + waiting["statistics"]) / schedule.statistics
        + (factorization + waiting["inverses"] * held) / schedule.factorize
        + waiting["gradients"] + waiting.get("natural gradients", 0.0)
    )  # fmt: skip
    largest = max((d * d for layer in layers for d, diagonal in layer.factors if not diagonal), default=0)
    rows = sum(x.uses * x.members * (x.into * (0 if x.diagonal_inputs else 1) + x.out) * x.sites for x in layers)
    memory = {
        "parameters and gradients": 2.0 * ITEM * parameters,
        "displacements": 2.0 * ITEM * parameters,
        "averages": float(ITEM * entries),
        "inverses": ITEM * entries * held,
        "inverses being made": ITEM * (entries * held + 2.0 * largest),
        "samples": ITEM * examples * rows if activations is None else activations,
    }
    return Plan(
        ranks, passes, statistics, factorization, application, averaging, step, sent, waiting, memory,
        {
            "statistics": sum(f for x in layers for _, _, f in x.products(examples, 64 * rates.threads)),
            "factorization": sum(x.inversions for x in layers), "application": sum(x.applications for x in layers),
        },
        max(busy) / sum(busy) * ranks if sum(busy) else 1.0,
    )  # fmt: skip


def check_ranks(ranks: int) -> int:
    if not 1 <= ranks <= 65536:
        raise InvalidSetting(f"{ranks} ranks: expected 1 to 65,536.")
    return ranks
