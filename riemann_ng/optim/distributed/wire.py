"""What goes over the wire between processes, all of it, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class Wire:
    """Collectives of one group. `counted` is how many bytes of payload were given to them here, by purpose.

    Every process calls the same ones in the same order. What was started is waited for in `Sent.wait`.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device):
        self.group, self.device = group, device
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.counted: Counter[str] = Counter()

    def count(self, t: Tensor, purpose: str) -> None:
        self.counted[purpose] += t.numel() * t.element_size()

    def start_sum(self, t: Tensor, purpose: str) -> Sent:
        """Adds a tensor up over all processes, in place, once it is waited for."""
        self.count(t, purpose)
        return Sent(t, dist.all_reduce(t, group=self.group, async_op=True))

    def start_broadcast(self, t: Tensor, source: int, purpose: str) -> Sent:
        """Gives everyone the tensor of one process, in place."""
        self.count(t, purpose)
        return Sent(t, dist.broadcast(t, group=self.group, group_src=source, async_op=True))

    def start_giving(self, t: Tensor, source: int, members: Sequence[int], purpose: str) -> Sent:
        """Gives some processes, who all call this, the tensor of one of them, in place."""
        if len(members) == self.size:
            return self.start_broadcast(t, source, purpose)
        if len(members) == 1:
            return Sent(t)
        self.count(t, purpose)
        if source == self.rank:
            to = [m for m in members if m != source]
            return Sent(t, *(dist.isend(t, group=self.group, group_dst=m) for m in to))
        return Sent(t, dist.irecv(t, group=self.group, group_src=source))

    def table(self, row: Sequence[float]) -> list[list[float]]:
        """A row of numbers of every process."""
        mine = torch.tensor(row, dtype=torch.float64, device=self.device)
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        self.count(mine, "agreement")
        dist.all_gather(rows, mine, group=self.group)
        found: list[list[float]] = torch.stack(rows).tolist()
        return found

    def sums(self, values: Tensor) -> Tensor:
        """A few numbers added up, in double precision."""
        moved = values.detach().to(self.device, torch.float64)
        moved = moved.clone() if moved.data_ptr() == values.data_ptr() else moved
        return self.start_sum(moved, "agreement").wait().to(values.device)

    def texts(self, text: str) -> list[str]:
        """A text of every process; only where something went wrong, and not counted."""
        found: list[str] = [""] * self.size
        dist.all_gather_object(found, text, group=self.group)
        return found


class Sent:
    """A tensor on its way."""

    def __init__(self, tensor: Tensor, *works: dist.Work | None):
        self.tensor, self.works = tensor, works

    def wait(self) -> Tensor:
        for work in self.works:
            if work is not None:
                work.wait()
        self.works = ()
        return self.tensor


def buckets_of(sizes: Sequence[int], most: int) -> list[slice]:
    """Consecutive pieces of these sizes in as few buckets of at most so many as their order allows."""
    found, start, held = [], 0, 0
    for i, size in enumerate(sizes):
        if i > start and held + size > most:
            found.append(slice(start, i))
            start, held = i, 0
        held += size
    return [*found, slice(start, len(sizes))] if sizes else []
