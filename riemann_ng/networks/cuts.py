"""Where the directions of one example can be replaced by fewer: the cuts of a forward pass, and the steps between them.

A *cut* is a use of a linear layer through which everything before it reaches the output. It is recognized when

- its block has this one use, and no block is used on both sides of it (shared layers);
- its output is (examples, width), and verification found the examples apart;
- in the graph of the forward pass no earlier use reaches the output around it (residual branches).

Between two cuts, where the map is pointwise and a plain `nn.Linear` with one use follows, the step is one of matrices,
ξ ↦ (ξ W) ∘ scale. Both claims are tested on the batch, not read off names: the transpose of a pointwise map takes a
random v to v times what it takes 1 to, and that of the layer takes it to v W. Anything else between two cuts is opaque.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from .directions import Directions, transported
from .forms import fits, smaller
from .readers import LinearReader
from .recording import Arrangement, Call


@dataclass(frozen=True)
class Step:
    """From one cut (`source`; None is the output) to the next one upstream, `target`; None ends at the input.

    With a `scale` the transpose is ξ ↦ (ξ W) ∘ scale; without, the step is opaque, and `calls` are the uses on its
    way, the target's too.
    """

    source: Call | None
    target: Call | None
    calls: tuple[Call, ...] = ()
    weight: Tensor | None = None
    scale: Tensor | None = None

    def per_example(self) -> int:
        """About how many numbers the step holds for one example, where it is no opaque one."""
        inputs = 0 if self.scale is None else self.scale.shape[1]
        outputs = inputs if self.weight is None else self.weight.shape[0]
        return inputs * inputs + (inputs + outputs) * (outputs if self.source is not None else 1)


def draws_left(steps: Sequence[Step], count: int) -> dict[str, int]:
    """How many cotangents of an example each block gets: all, or what is left of them after a rotation."""
    left: dict[str, int] = {}
    rank, dense = count, False
    for step in steps:
        width = 0 if step.target is None else step.target.shape[1]
        if step.scale is None:
            left |= dict.fromkeys((call.path for call in step.calls), rank)
            dense = smaller(width, rank)
        else:
            dense = fits(width, rank) if dense else smaller(width, rank)
        if step.target is not None:
            left[step.target.path] = count if dense and step.scale is not None else rank
        rank = width if dense else rank
    return left


def plan(directions: Directions) -> list[Step]:
    """The steps from the output to the input; a single opaque one where no cut is narrower than the directions."""
    calls = directions.calls_in_order
    steps: list[Step] = []
    source: Call | None = None
    end, rank = len(calls), directions.count
    for i in cuts(directions):
        target = calls[i]
        width = target.shape[1]
        step = pointwise(directions, source, target) if i + 1 == end else None
        if step is None and width > rank:
            continue  # an opaque way to a wider place gains nothing
        steps.append(Step(source, target, tuple(calls[i:end])) if step is None else step)
        source, end, rank = target, i, min(rank, width) if width > 1 else rank
    if rank == directions.count:
        return one_by_one(directions)
    return [*steps, Step(source, None, tuple(calls[:end]))] if end else steps


def one_by_one(directions: Directions) -> list[Step]:
    """All directions through the whole graph."""
    return [Step(None, None, directions.calls_in_order)]


def cuts(directions: Directions) -> Iterator[int]:
    """The calls that everything before them passes through, by number, the last one first."""
    calls, n = directions.calls_in_order, directions.examples
    numbers: dict[str, list[int]] = {}
    for i, call in enumerate(calls):
        numbers.setdefault(call.path, []).append(i)
    for i in reversed(range(len(calls))):
        call = calls[i]
        single = isinstance(call.reader, LinearReader) and len(call.shape) == 2 and call.shape[0] == n
        if not single or call.arrangement != Arrangement(0) or len(numbers[call.path]) > 1:
            continue
        if any(used[0] < i < used[-1] for used in numbers.values()):
            continue
        around = reached(directions.z.grad_fn, call.edge.node)
        if call.edge.node in around and not any(before.edge.node in around for before in calls[:i]):
            yield i


def reached(start: Node | None, border: Node) -> set[Node]:
    """The nodes of the graph between a start and a border, with both."""
    seen: set[Node] = set()
    todo = [] if start is None else [start]
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if node is not border:
            todo += [following for following, _ in node.next_functions if following is not None]
    return seen


def pointwise(directions: Directions, source: Call | None, target: Call) -> Step | None:
    """The step from a place to the next cut in matrices, if on this batch it is a pointwise map and a linear layer."""
    z, generator = directions.z.detach(), torch.Generator().manual_seed(0)
    start: Tensor | GradientEdge
    weight: Tensor | None = None

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=z.dtype).to(z)

    if source is None:
        start, shape = directions.z, z.shape
    else:
        module = source.reader.module
        if type(source.reader) is not LinearReader or not isinstance(module, nn.Linear) or source.entry is None:
            return None
        start, shape, weight = source.entry, source.x.shape, module.weight.detach()
        if weight.dtype != z.dtype:
            return None
        u = noise(*source.shape)
        if not same(transported(source.edge, u, [start])[0], u @ weight, 1e3):
            return None
    if shape[1:].numel() != target.shape[1]:
        return None
    v = noise(*shape)
    ones, through = (transported(start, t, [target.edge])[0] for t in (torch.ones_like(v), v))
    if ones is None or not same(through, v.reshape(ones.shape) * ones, 64):
        return None
    return Step(source, target, weight=weight, scale=ones)


def same(given: Tensor | None, expected: Tensor, roundings: float) -> bool:
    """Equal up to some roundings of the largest number."""
    if given is None:
        return False
    return bool((given - expected).abs().max() <= roundings * torch.finfo(expected.dtype).eps * expected.abs().max())
