"""What a backward pass sends by, and what is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import ObservationMismatch
from ..samples import Compact, Folded, folded
from ..spaces import VectorSpace
from .recording import Call, graph_is_kept


class Arrived:
    """The gradient that a backward pass sends through one edge; several passes through it add up."""

    def __init__(self) -> None:
        self.total: Tensor | Compact | None = None
        self.open = True
        self.fold: Callable[[Tensor], Tensor | Compact] | None = None
        """What to keep of a gradient in its place, if no other is to come."""

    def add(self, index: int) -> Callable[[Sequence[Tensor | None]], None]:
        """A hook for the node behind the edge. It knows this box and not the edge: no cycle through the graph."""

        def hook(gradients: Sequence[Tensor | None]) -> None:
            g = gradients[index]
            if not self.open or g is None:
                return
            if self.total is None:
                again = self.fold is None or graph_is_kept()
                self.total = g.detach() if again or self.fold is None else self.fold(g.detach())
            elif isinstance(self.total, Tensor):
                self.total = self.total + g.detach() if self.total.numel() else self.total
            else:
                raise twice()

        return hook


def folded_call(call: Call, inputs: VectorSpace, outputs: VectorSpace, n: int, g: Tensor) -> Tensor | Compact:
    """What is kept of the gradient at a call's output; the call lets its input go."""
    with torch.no_grad(), torch.autocast(g.device.type, enabled=False):
        call.let_go(inputs, n)
        there = folded(call.cotangents(g, n).unsqueeze(1), outputs, float(n))
    return there if isinstance(there, Folded) else g


def trace_of(g: Tensor) -> Tensor | Compact:
    """What is kept where only the arrival counts."""
    return g.new_empty(0)


def twice() -> ObservationMismatch:
    return ObservationMismatch(
        "ObservationMismatch in Tape: a second gradient arrived at a layer after a backward pass that freed its graph, "
        "and the first one was let go by then. Give retain_graph=True to every backward pass but the last."
    )
