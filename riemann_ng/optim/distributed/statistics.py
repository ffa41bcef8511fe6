"""Statistics of a joint batch: every process's second moments, weighted by what they are of, added up.

They are started as soon as they are known, and travel while the backward pass computes gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...networks import Network
from ...networks.observation import Observation
from ..listening import Pass
from .pieces import Piece, filled, hollowed, mass_of, sample_of
from .wire import Sent, Wire, buckets_of


@dataclass(eq=False)
class Launched:
    """Sums on their way: moments times masses in buckets; masses, and whose numbers are not finite, beside them."""

    passes: list[Pass]
    hollow: Observation | None
    buckets: list[Sent]
    control: Sent
    error: Exception | None = None

    def wait(self) -> None:
        for sent in (*self.buckets, self.control):
            sent.wait()


@dataclass(frozen=True)
class Layout:
    """Which moments travel, and how."""

    pieces: tuple[Piece, ...]
    dtype: torch.dtype
    bucket: int
    """In bytes."""

    @property
    def item(self) -> int:
        """The bytes of one number."""
        return torch.empty(0, dtype=self.dtype).element_size()

    @property
    def buckets(self) -> list[slice]:
        return buckets_of([p.numbers * self.item for p in self.pieces], self.bucket)

    def bytes(self, ranks: int) -> int:
        """What one process gives to the wire for one set of statistics."""
        return self.item * sum(p.numbers for p in self.pieces) + 8 * (len(self.pieces) + ranks)


def layout_dtype(network: Network) -> torch.dtype:
    double = any(p.dtype == torch.float64 for p in network.parameters.values())
    return torch.float64 if double else torch.float32


def launch(wire: Wire, layout: Layout, passes: list[Pass], seen: Sequence[Observation], flag: float) -> Launched:
    """Starts the sums of these observations' moments. Without any this process adds nothing; `flag` says why."""
    count = len(layout.pieces)
    control = torch.zeros(count + wire.size, dtype=torch.float64, device=wire.device)
    sent = []
    for part in layout.buckets:
        flat = []
        for i, p in zip(range(part.start, part.stop), layout.pieces[part], strict=True):
            total = torch.zeros(p.numbers, dtype=layout.dtype, device=wire.device)
            for sample in (sample_of(one.layers[p.path], p.cotangents) for one in seen):
                mass = mass_of(sample)
                control[i] += mass
                total.add_(p.packed(sample, layout.dtype), alpha=mass)
            flat.append(total)
        whole = torch.cat(flat)
        control[count + wire.rank] += (~whole.sum().isfinite()).double()
        sent.append(wire.start_sum(whole, "statistics"))
    control[count + wire.rank] += flag
    hollow = hollowed(seen[0]) if seen else None
    return Launched(passes, hollow, sent, wire.start_sum(control, "statistics"))


def arrived(layout: Layout, groups: Sequence[Launched], n: int) -> tuple[Observation | None, list[float]]:
    """The observation of all n examples of these sums together, and what the processes say of theirs.

    None where one of them has anything to say, or nothing was seen.
    """
    control = torch.stack([group.control.wait() for group in groups]).sum(0)
    flat = [
        torch.stack([sent.wait() for sent in parts]).sum(0) for parts in zip(*(g.buckets for g in groups), strict=True)
    ]
    masses, flags = control[: len(layout.pieces)], control[len(layout.pieces) :].tolist()
    hollow = next((g.hollow for g in groups if g.hollow is not None), None)
    if any(flags) or hollow is None:
        return None, flags
    numbers = torch.cat(flat).split([p.numbers for p in layout.pieces])
    shares = torch.where(masses > 0, 1 / masses, 0.0).to(layout.dtype)
    moments: list[Tensor] = [x * share for x, share in zip(numbers, shares, strict=True)]
    return filled(hollow, layout.pieces, moments, n), flags
