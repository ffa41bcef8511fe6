"""The differential of a network's outputs, made once at a batch and applied often, and its Fisher-vector products.

J v = Σ ds(V a) over the uses of all blocks: a block moves its own output by V a, and the module carries that to the
outputs. The transpose of carrying is backpropagation to the outputs of the uses, kept as a graph; since it is linear in
the cotangent, a second backward pass through that graph carries forward. So neither way computes anything again, no
weight's gradient is made only to be copied, and the parameters are never touched.

Where a part of the module has no second derivative (fused recurrent cells), or computes in half precision, the forward
way is `Network.pushforward`, which runs the module anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..elements import Vector
from ..inner_products import InnerProduct, Pullback
from ..likelihoods import OutputMetric
from ..linear_maps import LinearMap
from ..solvers import Structure
from ..spaces import DirectSum, Space
from ..symmetry import Symmetry
from .directions import kept_graph, transported
from .output_symmetry import output_bases, symmetry_of_output
from .precision import HALVES, at_least_single
from .recording import Call
from .rows import by_row
from .stages import stages_of
from .twice import CheapNorms
from .uses import use_of

if TYPE_CHECKING:
    from .network import Network


class Linearization:
    """J at a batch: `push` is J and `pull` its transpose, on flat components. The graph lives as long as this does.

    `bare` are parameters, by path, that have no layer. `pushforward` is the way forward that needs no graph.
    """

    def __init__(
        self,
        z: Tensor,
        calls: Sequence[Call],
        space: DirectSum,
        outputs: Space,
        bare: dict[str, Tensor],
        pushforward: Callable[[Vector], Tensor],
    ):
        self.z, self.space, self.outputs, self.pushforward = z, space, outputs, pushforward
        self.uses = [(call.path, use_of(call, z.shape[0])) for call in calls]
        self.bare = list(bare)
        self.targets = [*(call.edge for call in calls), *(get_gradient_edge(p) for p in bare.values())]
        self.kept: tuple[Tensor, list[tuple[int, Tensor]]] | None = None
        self.twice = z.dtype not in HALVES and not torch.is_autocast_enabled(z.device.type)
        self.calls = tuple(calls)

    def form(self, output: OutputMetric, there: Tensor | None = None) -> Pullback:
        """The output metric, averaged over the examples, pulled back along J; `there` is zero on padding."""
        bases = output_bases(self.outputs.name.removesuffix(".outputs"), self.z, self.calls)
        at_outputs = OutputForm(self.outputs, self.z, output, symmetry_of_output(output, bases), there)
        return Pullback(self.map, at_outputs, lambda: stages_of(self, at_outputs.rows_map))

    @property
    def map(self) -> LinearMap:
        """J as a natural map from the tangent space to the outputs of the batch, flat."""
        return LinearMap.from_functions(self.space, self.outputs, self.push, self.pull, "J", natural=True)

    def push(self, x: Tensor) -> Tensor:
        """J v, (..., dim) to (..., examples * outputs)."""
        return by_row(self._push, x)

    def pull(self, y: Tensor) -> Tensor:
        """Jᵀ ξ, (..., examples * outputs) to (..., dim)."""
        return by_row(self._pull, y)

    def _blocks(self, flat: Tensor) -> dict[str, Tensor]:
        return {name: flat[at].view(self.space[name].shape) for name, at in self.space.slices.items()}

    @torch.no_grad()
    def _pull(self, xi: Tensor) -> Tensor:
        found = transported(self.z, xi.view(self.z.shape).to(self.z.dtype), self.targets)
        out = xi.new_empty(self.space.dim)
        blocks, written = self._blocks(out), set()
        for (path, use), g in zip(self.uses, found, strict=False):
            if g is not None:
                use.add_to(blocks[path], at_least_single(use.seen(g)), float(path in written))
                written.add(path)
        for path, g in zip(self.bare, found[len(self.uses) :], strict=True):
            if g is not None:
                blocks[path].copy_(g.reshape(blocks[path].shape))
                written.add(path)
        for path in blocks.keys() - written:
            blocks[path].zero_()
        return out

    @torch.no_grad()
    def _push(self, v: Tensor) -> Tensor:
        if self.twice:
            try:
                return self._push_through_kept(v)
            except (RuntimeError, NotImplementedError) as error:
                if not any(text in str(error) for text in ("not implemented", "does not require grad")):
                    raise
                self.twice, self.kept = False, None
        return at_least_single(self.pushforward(Vector._of(self.space, v)).detach()).flatten()

    def _push_through_kept(self, v: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = self._keep()
        start, ends = self.kept
        blocks = self._blocks(v)
        tangents = []
        for i, end in ends:
            if i < len(self.uses):
                path, use = self.uses[i]
                tangents.append(use.moved(blocks[path]))
            else:
                tangents.append(blocks[self.bare[i - len(self.uses)]].reshape(end.shape))
        if not ends:
            return torch.zeros_like(start).flatten()
        with_respect = [end for _, end in ends]
        with kept_graph():
            (moved,) = torch.autograd.grad(with_respect, [start], tangents, retain_graph=True, allow_unused=True)
        return torch.zeros_like(start).flatten() if moved is None else moved.flatten()

    def _keep(self) -> tuple[Tensor, list[tuple[int, Tensor]]]:
        """Backpropagation of a cotangent that is not fixed yet, as a graph: where it starts and where it ends."""
        with torch.enable_grad():
            start = torch.zeros_like(self.z, requires_grad=True)
            found = torch.autograd.grad(self.z, self.targets, start, create_graph=True, allow_unused=True)
            ends = [(i, g) for i, g in enumerate(found) if g is not None]
            seen = [(i, self.uses[i][1].seen(g) if i < len(self.uses) else g) for i, g in ends]
        return start, [(i, g) for i, g in seen if g.requires_grad]


def linearized(network: Network, x: Any) -> Linearization:
    """A network at a batch. Its reading is verified first where that has not happened."""
    network.check_unchanged()
    held = {name for block in network.blocks.values() if block.reader is not None for name in block.names.values()}
    typed = [p for name, p in network.parameters.items() if name in held]
    with sdpa_kernel(SDPBackend.MATH), CheapNorms(typed):  # fused attention has no second derivative
        z, calls = network._seen(x)
    return linearization_of(network, x, z, calls)


def linearization_of(network: Network, x: Any, z: Tensor, calls: Sequence[Call]) -> Linearization:
    """The same of a forward pass that has been watched already."""
    parameters = network.parameters
    bare = {
        path: parameters[block.names["value"]]
        for path, block in network.blocks.items()
        if block.reader is None and path not in network._spreading
    }
    outputs = Space(f"{network.name}.outputs", z.numel())
    return Linearization(z, calls, network.tangent_space, outputs, bare, lambda v: network.pushforward(v, x))


class OutputForm(InnerProduct):
    """The mean over examples of an output metric, on the outputs of a batch; `there` is zero on padding, else one."""

    def __init__(self, space: Space, z: Tensor, output: OutputMetric, symmetry: Symmetry, there: Tensor | None = None):
        self.space, self.output, self.there, self._symmetry = space, output, there, symmetry
        self.shape, self.root = z.shape, output.root(at_least_single(z.detach()))
        self._like = at_least_single(z.detach())

    def flat_components(self, x: Tensor) -> Tensor:
        return by_row(self._flat, x).div_(self.shape[0])

    def _flat(self, row: Tensor) -> Tensor:
        dz = row.view(self.shape)
        if self.there is None:
            return self.root.apply(dz).flatten()
        return (self.root.apply(dz * self.there) * self.there).flatten()

    @property
    def rows_map(self) -> LinearMap:
        """A root of the form, from the outputs to one number for each example and direction."""
        n, count = self.shape[0], self.root.count
        there = 1.0 if self.there is None else self.there

        def pair(row: Tensor) -> Tensor:
            return self.root.pair(row.view(self.shape) * there).flatten()

        def combine(row: Tensor) -> Tensor:
            return (self.root.combine(row.view(n, count)) * there).flatten()

        return LinearMap.from_functions(
            self.space,
            Space(f"directions of {self.space}", n * count),
            lambda x: by_row(pair, x) / n**0.5,
            lambda y: by_row(combine, y) / n**0.5,
            f"root of {self.output}",
            natural=True,
        )

    def tensors(self) -> Iterator[Tensor]:
        yield self._like

    @property
    def structure(self) -> Structure:
        d = self.space.dim
        return Structure("outputs", d, None, 4.0 * d, min(d, self.shape[0] * self.root.count))

    @property
    def symmetry(self) -> Symmetry:
        return self._symmetry

    def expression(self) -> str:
        return f"mean of {self.output}"
