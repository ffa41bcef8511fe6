"""What every process sends, in bytes, known from the sizes of layers before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..schedule import Schedule
from .factorizations import Assignment
from .statistics import Layout


@dataclass(frozen=True)
class Plan:
    """Who does what and what it costs: bytes that one process gives to the wire, by what they are for.

    `statistics` for one joint observation, `gradients` for one backward pass, `factorizations` of every process
    whenever they are made, `natural_gradients` at every step (0 where all hold all inverses). Agreement on a step takes
    some hundred bytes more, which are counted and not planned.
    """

    ranks: int
    statistics: int
    gradients: int
    factorizations: tuple[int, ...]
    natural_gradients: int
    assignment: Assignment

    @classmethod
    def of(cls, layout: Layout, dims: Mapping[str, int], ranks: int, assignment: Assignment, beside: int) -> Plan:
        """`dims` numbers are trained in each layer; `beside` bytes go with their gradients."""
        made = tuple(layout.item * assignment.numbers(rank) for rank in range(ranks))
        spread = sum(dims[path] for path in assignment.group) if assignment.holders < ranks else 0
        gradients = layout.item * sum(dims.values()) + beside
        return cls(ranks, layout.bytes(ranks), gradients, made, layout.item * spread, assignment)

    def bytes(self, rank: int, steps: int, schedule: Schedule) -> dict[str, int]:
        """What one process sends in the first so many steps of a run, one backward pass each."""
        seen = sum(schedule.statistics_due(step) for step in range(steps))
        made = sum(schedule.factorization_due(step) for step in range(steps))
        return {
            "statistics": seen * self.statistics,
            "gradients": steps * self.gradients,
            "factorizations": made * self.factorizations[rank],
            "natural gradients": steps * self.natural_gradients,
        }

    def __str__(self) -> str:
        loads = [self.assignment.load(rank) for rank in range(self.ranks)]
        rows = [f"{self.ranks} ranks; of one rank, in bytes:"]
        rows += [f"  statistics {self.statistics}, gradients {self.gradients}"]
        rows += [f"  factorizations {max(self.factorizations)}, natural gradients {self.natural_gradients}"]
        for i, job in enumerate(self.assignment.jobs):
            many = f"{job.members} × " if job.members > 1 else ""
            rows.append(f"  {job.path or 'self'}: {many}{job.side}³ on rank {self.assignment.owner[i]}")
        return "\n".join([*rows, f"  busiest rank: {max(loads) / sum(loads):.0%} of the work" if sum(loads) else ""])
