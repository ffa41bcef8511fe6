"""Exact output directions, sent back in chunks and only when something asks for them.

Stacked, the cotangents of the 784 directions of an autoencoder or of the thousands of a language model would be
gigabytes. So they are kept as one forward pass and the root of the output metric, and every reading propagates them
again, some directions at a time. Draw k is the same direction in every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ..errors import ObservationMismatch
from ..likelihoods import OutputMetric
from .precision import at_least_single
from .recording import Call

PerExampleGradients = Callable[[Tensor], dict[str, Tensor]]


class Directions:
    """The square-root directions of an output metric at one forward pass, at most `chunk` of them at a time.

    `calls` are the uses of all blocks that have a layer, in their order; `constants` takes cotangents
    (n, k, *z.shape[1:]) to the per-example gradients (n, k, 1, dim) of the blocks that have none, `names`. `there`
    multiplies cotangents of the output: zero on padding.
    """

    def __init__(
        self,
        z: Tensor,
        output: OutputMetric,
        chunk: int,
        calls: Sequence[Call],
        constants: PerExampleGradients,
        names: Sequence[str] = (),
        there: Tensor | None = None,
    ):
        self.z, self.output, self.chunk, self.constants = z, output, max(1, chunk), constants
        self.calls_in_order = tuple(calls)
        self.calls: dict[str, list[Call]] = {}
        for call in calls:
            self.calls.setdefault(call.path, []).append(call)
        self.names, self.there = tuple(names), there
        self.root = output.root(at_least_single(z.detach()))

    @property
    def count(self) -> int:
        return self.root.count

    @property
    def examples(self) -> int:
        return self.z.shape[0]

    def columns(self, size: int | None = None) -> Iterator[Tensor]:
        """Output cotangents (n, k, *z.shape[1:]), a few directions at a time."""
        size = self.chunk if size is None else size
        for start in range(0, self.count, size):
            columns = self.root.columns(start, min(start + size, self.count))
            yield columns if self.there is None else columns * self.there[:, None]

    def of(self, paths: Sequence[str], size: int | None = None) -> Iterator[dict[str, Tensor]]:
        """The cotangents (n, k, sites, *shape) of some blocks, chunk by chunk of the directions."""
        typed = [path for path in paths if path in self.calls]
        flat = [call for path in typed for call in self.calls[path]]
        for columns in self.columns(size):
            stacks = [self.back(self.z, column, flat) for column in columns.unbind(1)] if flat else []
            arrived = iter([torch.stack(parts, 1) for parts in zip(*stacks, strict=True)])
            found = {path: torch.cat([next(arrived) for _ in self.calls[path]], 2) for path in typed}
            if any(path in paths for path in self.names):
                found |= {path: g for path, g in self.constants(columns).items() if path in paths}
            yield found

    def back(self, source: Tensor | GradientEdge, cotangent: Tensor, calls: Sequence[Call]) -> list[Tensor]:
        """The cotangents (n, sites, *shape) that arrive at the outputs of calls."""
        sent = cotangent.to(source.dtype) if isinstance(source, Tensor) else cotangent
        arrived = transported(source, sent, [call.edge for call in calls])
        return [
            call.cotangents(call.zeros(self.z) if g is None else g, self.examples)
            for call, g in zip(calls, arrived, strict=True)
        ]


def transported(source: Tensor | GradientEdge, cotangent: Tensor, to: Sequence[GradientEdge]) -> list[Tensor | None]:
    """A cotangent carried back from one place of a kept graph to others; None where nothing arrives."""
    with kept_graph():
        return list(torch.autograd.grad(source, list(to), cotangent, retain_graph=True, allow_unused=True))


@contextmanager
def kept_graph() -> Iterator[None]:
    """Says why where a graph that was kept is no longer good."""
    try:
        yield
    except RuntimeError as error:
        if "modified by an inplace operation" in str(error):
            raise moved() from None
        if "a second time" in str(error):
            raise ObservationMismatch(
                "ObservationMismatch: the graph of the forward pass was freed by another backward pass, and is used "
                "whenever something is read. Observe the batch by itself."
            ) from None
        raise


def moved() -> ObservationMismatch:
    return ObservationMismatch(
        "ObservationMismatch: the parameters have moved since the batch was observed, and its graph is used whenever "
        "something is read. Read second moments before the step, or observe again."
    )
