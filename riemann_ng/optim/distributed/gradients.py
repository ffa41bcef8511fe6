"""Gradients of a joint batch: every process's weighted by the examples, or by what else its loss was divided by."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

from ...elements import Covector
from ...errors import InvalidSetting
from .wire import Sent, Wire, buckets_of


class Weigher:
    """Takes the place of the plain mean in `DistributedDataParallel`: Σ D g / Σ D, overlapped with the backward.

    D is what a process's loss divides its sum over examples by. With equal ones it is the plain mean.
    """

    def __init__(self) -> None:
        self.divisor: Callable[[], float] = lambda: 1.0
        self.wire: Wire | None = None
        self._own: float = 1.0
        self._total: Sent | None = None
        self.local: list[Tensor] = []
        """Of every bucket one number, which is finite where this process's own gradients are."""

    def reduced(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        wire = self.wire
        assert wire is not None
        if bucket.index() == 0:
            self._own, self.local = self.divisor(), []
            total = torch.tensor([self._own], dtype=torch.float64, device=wire.device)
            self._total = wire.start_sum(total, "gradients")
        sent = self._total
        assert sent is not None
        flat = bucket.buffer()
        self.local.append(flat.sum())
        wire.count(flat, "gradients")
        work = dist.all_reduce(flat.mul_(self._own), group=wire.group, async_op=True)
        assert work is not None

        def divided(done: torch.futures.Future[Any]) -> Tensor:
            summed: Tensor = done.value()[0]
            return summed.div_(sent.wait().to(summed.dtype))

        return work.get_future().then(divided)

    @property
    def finite(self) -> bool:
        """Whether this process's own gradients were, in the last backward pass."""
        return not self.local or bool(torch.stack(self.local).isfinite().all())


WEIGHERS: weakref.WeakKeyDictionary[DistributedDataParallel, Weigher] = weakref.WeakKeyDictionary()


def weigher_of(ddp: DistributedDataParallel, wire: Wire) -> Weigher:
    """The one of a wrapper, which can be told once how it is to reduce; a later optimizer takes it over."""
    if ddp not in WEIGHERS:
        weigher = Weigher()
        weigher.wire = wire
        try:
            ddp.register_comm_hook(weigher, lambda state, bucket: state.reduced(bucket))  # annotations are refused
        except RuntimeError:
            raise InvalidSetting(
                "InvalidSetting in NaturalGradient: the model's DistributedDataParallel has a communication hook of "
                "its own, and gradients are weighted by examples there. Make the wrapper without register_comm_hook."
            ) from None
        WEIGHERS[ddp] = weigher
    WEIGHERS[ddp].wire = wire
    return WEIGHERS[ddp]


def mean_over_ranks(wire: Wire, df: Covector, share: float, bucket: int) -> Covector:
    """Σ share df, over all processes, in flat buckets."""
    blocks = list(df.blocks.items())
    sent = []
    parts = buckets_of([t.numel() * t.element_size() for _, t in blocks], bucket)
    for part in parts:
        flat = torch.cat([t.flatten() for _, t in blocks[part]]) * share
        sent.append(wire.start_sum(flat, "gradients"))
    found: dict[str, Tensor] = {}
    for part, one in zip(parts, sent, strict=True):
        pieces = one.wait().split([t.numel() for _, t in blocks[part]])
        found |= {path: flat.reshape(t.shape) for (path, t), flat in zip(blocks[part], pieces, strict=True)}
    return Covector._of(df.lives_in, None, found)
