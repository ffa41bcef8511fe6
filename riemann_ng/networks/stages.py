"""A forward pass cut into stages: the chain that a network is, where it is one.

A *cut* is a use of a layer through which everything before it reaches the output: its values are a state, and what
lies between two cuts is a stage, with the parameters that are used there. So layers in a row are one stage each,
together with the pointwise maps, the pooling and the normalizations before them; branches that meet again (a residual
block) belong to the stage of the next cut. A use is none where

- an earlier use reaches the output around it, or
- parameters are used on both sides of it (tied weights, recurrent networks).

A network of several layers without any cut between them is no chain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from ..errors import UnsupportedLayer
from ..linear_maps import LinearMap
from ..solvers import Stage, Stages
from ..spaces import DirectSum, Space
from .directions import kept_graph, transported
from .precision import at_least_single
from .recording import Arrangement, Call
from .rows import by_row
from .uses import LinearUse, Use

LARGEST = 2**24
"""How many numbers the Jacobians of all examples may have."""


class Linearized(Protocol):
    """What of a linearized network is needed here."""

    z: Tensor
    space: DirectSum
    outputs: Space
    calls: tuple[Call, ...]
    uses: list[tuple[str, Use]]
    bare: list[str]
    targets: list[GradientEdge]


@dataclass(frozen=True, eq=False)
class Place:
    """Where a state stands in the graph: the values of a use, or the outputs."""

    name: str
    edge: GradientEdge
    shape: tuple[int, ...]
    space: Space
    apart: bool = True
    """Whether its first dimension is the examples', which no stage mixes."""

    @property
    def each(self) -> int:
        """The dimension of one example."""
        return torch.Size(self.shape[1:]).numel()


class Segment:
    """The way from one place to the next: how the values there move with those here and with parameters in between."""

    def __init__(
        self, z: Tensor, before: Place | None, after: Place, uses: Sequence[tuple[str, Use]],
        bare: Mapping[str, GradientEdge], whole: DirectSum, idle: Sequence[str] = (),
    ):  # fmt: skip
        self.z, self.before, self.after, self.uses, self.bare = z, before, after, list(uses), list(bare)
        paths = dict.fromkeys([path for path, _ in uses] + self.bare + list(idle))
        self.blocks = tuple(path for path in whole if path in paths)
        self.controls = DirectSum({path: whole[path] for path in self.blocks}) if self.blocks else None
        self.edges = [*(use.call.edge for _, use in uses), *bare.values()]
        self.jacobian: Tensor | None = None
        self.kept: dict[bool, tuple[Tensor, list[tuple[int, Tensor]]]] = {}

    @property
    def A(self) -> LinearMap | None:
        if self.before is None:
            return None
        return LinearMap.from_functions(
            self.before.space, self.after.space, lambda x: by_row(self._push_state, x),
            self._pull_states, f"{self.after.name} by {self.before.name}", natural=True,
        )  # fmt: skip

    @property
    def B(self) -> LinearMap | None:
        if self.controls is None:
            return None
        return LinearMap.from_functions(
            self.controls, self.after.space, lambda u: by_row(self._push_controls, u),
            self._pull_all_controls, f"{self.after.name} by its parameters", natural=True,
        )  # fmt: skip

    def _cotangent(self, row: Tensor) -> Tensor:
        return row.view(self.after.shape).to(self.z.dtype)

    def _pull_states(self, rows: Tensor) -> Tensor:
        """Many rows by the Jacobian of each example, made of as many rows as one example has components."""
        before, after = self.before, self.after
        assert before is not None
        few = rows.ndim != 2 or len(rows) <= after.each or not (before.apart and after.apart)
        if few or before.space.dim * after.each > LARGEST:
            return by_row(self._pull_state, rows)
        n = after.shape[0]
        if self.jacobian is None:
            basis = torch.eye(after.each, dtype=rows.dtype, device=rows.device)
            found = [self._pull_state(e.expand(n, -1).flatten()).view(n, -1) for e in basis]
            self.jacobian = torch.stack(found, 1)
        return torch.einsum("kno,noi->kni", rows.view(len(rows), n, -1), self.jacobian).flatten(1)

    def _pull_all_controls(self, rows: Tensor) -> Tensor:
        """Of a stage with one linear layer, whose values are its end, all rows together."""
        use = self.uses[0][1] if len(self.uses) == 1 and not self.bare else None
        plain = isinstance(use, LinearUse) and use.call.x.ndim == 2 and len(self.blocks) == 1
        if rows.ndim != 2 or not plain or not same_edge(self.edges[0], self.after.edge):
            return by_row(self._pull_controls, rows)
        assert use is not None
        x = at_least_single(use.call.x)
        x = torch.cat([x, x.new_ones(len(x), 1)], -1) if use.call.reader.bias else x
        return torch.einsum("kno,ni->koi", rows.view(len(rows), *self.after.shape), x).flatten(1)

    @torch.no_grad()
    def _pull_state(self, row: Tensor) -> Tensor:
        assert self.before is not None
        (found,) = transported_from(self.after.edge, self._cotangent(row), [self.before.edge])
        return row.new_zeros(self.before.space.dim) if found is None else at_least_single(found).flatten()

    @torch.no_grad()
    def _pull_controls(self, row: Tensor) -> Tensor:
        assert self.controls is not None
        found = transported_from(self.after.edge, self._cotangent(row), self.edges)
        out = row.new_zeros(self.controls.dim)
        blocks = self._blocks(out)
        for (path, use), g in zip(self.uses, found, strict=False):
            if g is not None:
                use.add_to(blocks[path], at_least_single(use.seen(g)), 1.0)
        for path, g in zip(self.bare, found[len(self.uses) :], strict=True):
            if g is not None:
                blocks[path].add_(g.reshape(blocks[path].shape))
        return out

    def _blocks(self, flat: Tensor) -> dict[str, Tensor]:
        assert self.controls is not None
        return {name: flat[at].view(self.controls[name].shape) for name, at in self.controls.slices.items()}

    @torch.no_grad()
    def _push_state(self, row: Tensor) -> Tensor:
        assert self.before is not None
        shape = self.before.shape
        return self._carried(True, lambda i, end: row.view(shape).to(end.dtype))

    @torch.no_grad()
    def _push_controls(self, row: Tensor) -> Tensor:
        blocks = self._blocks(row)

        def moved(i: int, end: Tensor) -> Tensor:
            if i < len(self.uses):
                path, use = self.uses[i]
                return use.moved(blocks[path])
            return blocks[self.bare[i - len(self.uses)]].reshape(end.shape)

        return self._carried(False, moved)

    def _carried(self, state: bool, tangent: Tangent) -> Tensor:
        """Forward, by differentiating what goes back in the cotangent that it is linear in."""
        if state not in self.kept:
            self.kept[state] = self._keep(state)
        start, ends = self.kept[state]
        none = at_least_single(torch.zeros_like(start)).flatten()
        if not ends:
            return none
        with kept_graph():
            (moved,) = torch.autograd.grad(
                [end for _, end in ends], [start], [tangent(i, end) for i, end in ends], retain_graph=True,
                allow_unused=True,
            )  # fmt: skip
        return none if moved is None else at_least_single(moved).flatten()

    def _keep(self, state: bool) -> tuple[Tensor, list[tuple[int, Tensor]]]:
        assert self.before is not None or not state
        targets = [self.before.edge] if state and self.before is not None else self.edges
        with torch.enable_grad():
            start = torch.zeros(self.after.shape, dtype=self.z.dtype, device=self.z.device, requires_grad=True)
            with kept_graph():
                found = torch.autograd.grad(self.after.edge, targets, start, create_graph=True, allow_unused=True)
            seen = []
            for i, g in enumerate(found):
                if g is not None:
                    seen.append((i, g if state or i >= len(self.uses) else self.uses[i][1].seen(g)))
        return start, [(i, g) for i, g in seen if g.requires_grad]


class Tangent(Protocol):
    def __call__(self, i: int, end: Tensor) -> Tensor: ...


def transported_from(edge: GradientEdge, cotangent: Tensor, to: Sequence[GradientEdge]) -> list[Tensor | None]:
    return transported(edge, cotangent, to) if to else []


def segments_of(lin: Linearized, network: str) -> list[Segment]:
    """The forward pass cut wherever it can be, the first segment first."""
    calls, z = lin.calls, lin.z
    bare = dict(zip(lin.bare, lin.targets[len(calls) :], strict=True))
    end = Place("the output", get_gradient_edge(z), tuple(z.shape), lin.outputs)
    numbers, why = cuts(z, calls, bare)
    places = [
        Place(
            calls[i].path,
            calls[i].edge,
            calls[i].shape,
            Space(f"{network}/{calls[i].path}.values", size(calls[i])),
            calls[i].arrangement == Arrangement(0) and calls[i].shape[0] == z.shape[0],
        )
        for i in numbers
    ]
    if numbers and same_edge(places[-1].edge, end.edge):
        places[-1] = replace(end, name=places[-1].name)
    else:
        places, numbers = [*places, end], [*numbers, len(calls) - 1]
    if len(places) == 1 and len(lin.space.parts) > 1 and (len(calls) > 1 or bare):
        raise UnsupportedLayer(
            f"UnsupportedLayer in Riccati: {network} is no chain: {why}. Every stage needs a layer through which all "
            f"that is before it passes; solvers.Auto() and solvers.CG(...) solve for any network."
        )
    found: list[Segment] = []
    before: Place | None = None
    start = 0
    left = dict(bare)
    for place, last in zip(places, numbers, strict=True):
        region = reached(place.edge, None if before is None else before.edge)
        mine = {path: edge for path, edge in left.items() if edge.node in region}
        left = {path: edge for path, edge in left.items() if path not in mine}
        used = {path for path, _ in lin.uses} | set(bare) - set(left)
        idle = [path for path in lin.space if path not in used] if place is places[-1] else []
        found.append(Segment(z, before, place, lin.uses[start : last + 1], mine, lin.space, idle))
        before, start = place, last + 1
    return found


def stages_of(lin: Linearized, rows: LinearMap) -> Stages:
    """The chain of a linearized network whose cost is at its outputs, given by a root."""
    segments = segments_of(lin, lin.outputs.name.removesuffix(".outputs"))
    stages = [Stage(s.after.name, s.blocks, s.after.space, s.A, s.B) for s in segments]
    last = stages[-1]
    stages[-1] = Stage(last.name, last.blocks, last.outputs, last.A, last.B, rows)
    return Stages(lin.space, tuple(stages))


def cuts(z: Tensor, calls: Sequence[Call], bare: Mapping[str, GradientEdge]) -> tuple[list[int], str]:
    """The uses that everything before them passes through, by number, and why the last other one is none."""
    uses: dict[str, list[int]] = {}
    for i, call in enumerate(calls):
        uses.setdefault(call.path, []).append(i)
    found, why = [], "its layers are used in no order"
    for i, call in enumerate(calls):
        tied = [path for path, used in uses.items() if used[0] <= i < used[-1]]
        around = reached(get_gradient_edge(z), call.edge)
        passing = [before.path for before in calls[:i] if before.edge.node in around]
        upstream = reached(call.edge, None)
        both = [path for path, edge in bare.items() if edge.node in around - {call.edge.node} and edge.node in upstream]
        if tied or both:
            why = f"the parameters of {(tied + both)[0]!r} are used on both sides of {call.path!r}"
        elif passing:
            why = f"{passing[0]!r} reaches the output around {call.path!r}"
        elif call.edge.node in around:
            found.append(i)
    return found, why


def reached(start: GradientEdge, border: GradientEdge | None) -> set[Node]:
    """The nodes of the graph from a start on, what is only reached through a border left out.

    A border is one output of its node: another output of the same node does not stand for it.
    """
    seen: set[Node] = set()
    open_: set[Node] = set()
    todo: list[tuple[Node, int]] = [(start.node, start.output_nr)]
    while todo:
        node, number = todo.pop()
        seen.add(node)
        at_border = border is not None and node is border.node and number == border.output_nr
        if at_border or node in open_:
            continue
        open_.add(node)
        todo += [(following, nr) for following, nr in node.next_functions if following is not None]
    return seen


def same_edge(a: GradientEdge, b: GradientEdge) -> bool:
    return a.node is b.node and a.output_nr == b.output_nr


def size(call: Call) -> int:
    return torch.Size(call.shape).numel()
