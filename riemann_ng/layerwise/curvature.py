"""Second derivatives of one stage: of p(f(x, w)) for the costate p of its output."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ..errors import UnsupportedLayer
from ..linear_maps import LinearMap
from ..networks import Network
from ..networks.recording import names_in_graph
from ..networks.stages import Segment
from ..solvers import Curvature

Inputs = list[GradientEdge]
ONCE = "torch::autograd::Error"
"""What stands in the graph where it cannot be differentiated again."""


class Differentiated:
    """The differential of p(f(x, w)) of a stage, kept as a graph so that it can be differentiated again."""

    def __init__(self, segment: Segment, network: Network, costate: Tensor):
        self.segment, self.network = segment, network
        parameters = network.parameters
        names = {name for path in segment.blocks for name in network.blocks[path].names.values()}
        self.parameters = {name: parameters[name] for name in parameters if name in names}
        self.leaves = [get_gradient_edge(p) for p in self.parameters.values()]
        self.by: Inputs = [*([] if segment.before is None else [segment.before.edge]), *self.leaves]
        with torch.enable_grad():
            p = costate.view(segment.after.shape).to(segment.z.dtype)
            self.found = list(
                torch.autograd.grad(segment.after.edge, self.by, p, create_graph=True, allow_unused=True)
            ) if self.by else []  # fmt: skip
        self.states = 0 if segment.before is None else 1
        if any(g is not None and ONCE in names_in_graph(g) for g in self.found):
            raise self._once("a function of the user's own is marked so")

    @property
    def bends(self) -> bool:
        """Whether the stage is other than linear in its parameters, as far as the graph can tell."""
        ones = {i + self.states: torch.ones_like(p) for i, p in enumerate(self.parameters.values())}
        return any(g is not None for g in self.again(ones, self.leaves))

    def again(self, tangents: dict[int, Tensor], by: Inputs) -> list[Tensor | None]:
        """The differential's change along tangents, given by number, as covectors on `by`."""
        moving = {i: t for i, t in tangents.items() if self.found[i] is not None and self.found[i].requires_grad}
        if not moving or not by:
            return [None] * len(by)
        try:
            return list(
                torch.autograd.grad(
                    [self.found[i] for i in moving], by, [t.to(self.found[i].dtype) for i, t in moving.items()],
                    retain_graph=True, allow_unused=True,
                )
            )  # fmt: skip
        except (RuntimeError, NotImplementedError) as error:
            if "not implemented" not in str(error):
                raise
            raise self._once(str(error)) from None

    def _once(self, why: str) -> UnsupportedLayer:
        return UnsupportedLayer(
            f"UnsupportedLayer in newton_step: stage {self.segment.after.name!r} has a part that torch differentiates "
            f"only once: {why}. Take gauss_newton_step, or write that part in differentiable ones."
        )

    def on_controls(self, found: list[Tensor | None]) -> Tensor:
        """Covectors on the stage's parameters, by tensor, as one on its blocks."""
        pairs = zip(self.parameters.items(), found, strict=True)
        tensors = {name: torch.zeros_like(p) if g is None else g for (name, p), g in pairs}
        return torch.cat([self.network.blocks[path].gather(tensors).flatten() for path in self.segment.blocks])


def curvature_of(segment: Segment, network: Network, costate: Tensor) -> Curvature:
    """Q, M and H as matrices; None where they vanish."""
    seen = Differentiated(segment, network, costate)
    X = None if segment.before is None else segment.before.space
    W = segment.controls
    Q = M = H = None
    if X is not None and segment.before is not None:
        rows, columns = [], []
        for e in torch.eye(X.dim, dtype=segment.z.dtype, device=segment.z.device):
            at_state, *at_controls = seen.again({0: e.view(segment.before.shape)}, seen.by)
            rows.append(torch.zeros_like(e) if at_state is None else at_state.flatten())
            if W is not None:
                columns.append(seen.on_controls(at_controls))
        Q = LinearMap(X, X.dual, torch.stack(rows), "Q", natural=True)
        M = None if W is None else LinearMap(X, W.dual, torch.stack(columns, 1), "M", natural=True)
    if W is not None and seen.bends:
        rows = []
        point = {name: p.detach() for name, p in seen.parameters.items()}
        for path in segment.blocks:
            block = network.blocks[path]
            for e in torch.eye(block.space.dim, dtype=segment.z.dtype, device=segment.z.device):
                into: dict[str, Tensor] = {name: torch.zeros_like(p) for name, p in point.items()}
                block.scatter(e.view(block.space.shape), into, point)
                tangents = {i + seen.states: into[name] for i, name in enumerate(point)}
                rows.append(seen.on_controls(seen.again(tangents, seen.leaves)))
        H = LinearMap(W, W.dual, torch.stack(rows), "H", natural=True)
    return Curvature(some(Q), some(M), some(H))


def some(phi: LinearMap | None) -> LinearMap | None:
    """None for zero: what vanishes is not carried along."""
    return None if phi is None or not bool(phi.matrix().any()) else phi
