"""What a forward pass shares between examples, spread over them, so that cotangents arrive example by example.

Positions are embedded once for a whole batch, and bare parameters are added by broadcasting: neither has the examples'
dimension, and what comes back is a sum. Expanded over the examples, as a view, the same forward gives the same
outputs, and the gradients come apart. Where it does not, or where they do not, verification goes back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..samples import OneHot
from ..spaces import OnePoint, Space, VectorSpace
from .blocks import Parameters, Reader


@dataclass(frozen=True)
class Spread:
    """`new` leading dimensions of size one, and the one at `axis` expanded to the number of examples."""

    new: int
    axis: int

    def first(self, t: Tensor, n: int) -> Tensor:
        """A view with examples first."""
        t = t[(None,) * self.new]
        return t.movedim(self.axis, 0).expand(n, *(s for i, s in enumerate(t.shape) if i != self.axis))

    def back(self, t: Tensor) -> Tensor:
        """The examples where the forward expects them."""
        return t.movedim(0, self.axis)


Spreading = Mapping[str, Mapping[int, Spread]]
"""For the path of a block (of a bare parameter: its name) the uses that are spread, by their number in the forward."""

REFORMING = "Expand Slice Select Unsqueeze Squeeze View UnsafeView ReshapeAlias Transpose Permute Repeat ToCopy Clone T"
POINTWISE = "Neg Exp Log Sigmoid Tanh Softplus Relu Gelu Silu Pow Abs Sqrt Rsqrt Sin Cos NativeLayerNorm NativeDropout"
MEETING = "Add Sub Mul Div Maximum Minimum Cat Stack Where Mm Bmm Addmm Baddbmm Index IndexSelect Gather Embedding"
FOLLOWED, JOINING = frozenset(f"{REFORMING} {POINTWISE}".split()), frozenset(MEETING.split())
"""Kinds of nodes of torch's graph: of what stays one thing, and of what puts two together."""


def spreads(shape: tuple[int, ...], new: int) -> Iterator[Spread]:
    """Where examples could come in: at a dimension of size one, or in front of up to `new` added ones."""
    yield from (Spread(0, axis) for axis, size in enumerate(shape) if size == 1)
    yield from (Spread(count + 1, 0) for count in range(new))


class BareReader(Reader):
    """A parameter in the forward once for every example: what arrives is its gradient, example by example."""

    def __init__(self, module: nn.Module, name: str, shape: tuple[int, ...]):
        self.size = prod(shape)
        super().__init__(module, name, ())

    def spaces(self) -> tuple[VectorSpace, VectorSpace]:
        return OnePoint.hull, Space(self.name, self.size)

    def features(self, x: Tensor) -> Tensor | OneHot:
        return x.new_ones(len(x), 1, 1)

    def values(self, y: Tensor) -> Tensor:
        return y.reshape(len(y), 1, self.size)

    def leading(self, y: Tensor) -> int:
        return 1

    def to_parameters(self, data: Tensor) -> Parameters:
        return {"value": data}

    def from_parameters(self, tensors: Parameters) -> Tensor:
        return tensors["value"]


class Graph:
    """The graph of an output, read from the leaves on: who takes what."""

    def __init__(self, z: Tensor):
        self.takers: dict[Any, list[Any]] = {}
        seen, ahead = set(), [z.grad_fn]
        while ahead:
            node = ahead.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            for before, _ in node.next_functions:
                if before is not None:
                    self.takers.setdefault(before, []).append(node)
                    ahead.append(before)

    def robust(self, start: Any) -> bool:
        """Whether what comes from a node meets only broadcasting, reshaping and products, up to the first meeting.

        Those refuse shapes that do not fit. Other code, of a kernel or of LAPACK, may read out of bounds.
        """
        seen, ahead = set(), list(self.takers.get(start, []))
        while ahead:
            node = ahead.pop()
            kind = node.name().rstrip("0123456789").removesuffix("Backward")
            if kind in FOLLOWED and node not in seen:
                seen.add(node)
                ahead += self.takers.get(node, [])
            elif kind not in FOLLOWED and kind not in JOINING:
                return False
        return True


@contextmanager
def lookups_checked() -> Iterator[None]:
    """A lookup out of range is an error here on every device; one on an accelerator would end the process."""
    with _CheckedLookups():  # type: ignore[no-untyped-call]
        yield


class _CheckedLookups(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("index", "_unsafe_index"):
            for axis, index in enumerate(args[1]):
                if index is not None and index.dtype != torch.bool:
                    check_range(index, args[0].shape[axis])
        elif name == "embedding":
            check_range(args[1], args[0].shape[0])
        elif name in ("gather", "index_select", "take_along_dim") and args[0].ndim:
            check_range(args[2], args[0].shape[args[1]])
        return func(*args, **(kwargs or {}))


def check_range(index: Tensor, size: int) -> None:
    if index.numel() and not (-size <= int(index.min()) and int(index.max()) < size):
        raise IndexError(f"index out of range for a dimension of size {size}")
