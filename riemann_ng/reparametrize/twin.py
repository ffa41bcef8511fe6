"""The same function in other coordinates."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, overload

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..elements import Covector, Element, Vector
from ..errors import SpaceMismatch
from ..inner_products import InnerProduct
from ..likelihoods import Likelihood, OutputMetric
from ..linear_maps import LinearMap
from ..networks import Network
from .frame import Frame
from .frames import Frames
from .groups import NoTwin
from .leaves import BlockMove, Slot
from .output import moved_output
from .places import Places
from .transport import Transport, repeated, sum_map

X = TypeVar("X", Vector, Covector)
NUMBERS = itertools.count(1)


class Twin:
    """A network in other frames: `module`, whose parameters are W' = Φ∘W∘Ω⁻¹, and `likelihood`, that of its outputs.

    `module(twin.inputs(x))` is `twin.outputs(model(x))`. Every layer sees a' = Ωa + γ and gives s' = Φs + τ, for hooks
    and gradients too; what is between two layers is the original's, run between Φ⁻¹ and Ω. The module is an ordinary
    one: its parameters have the names, the types and the owners that they have in the original, but for fused modules
    (attention, recurrent ones), which are opened into linear layers. Where a model has such, compare a twin with the
    twin in `Frames.identity()`.
    """

    def __init__(self, original: Network, frames: Frames, places: Places, module: nn.Module):
        self.original, self.frames, self.module, self._places = original, frames, module, places
        slot = places.slots.get("output")
        self._input, self._output = frames.get("input"), frames.get("output")
        self._output_place = None if slot is None else slot.place
        self.likelihood: Likelihood = moved_output(original.likelihood, self._output, self._output_place)  # type: ignore[assignment]
        self.name = f"{original.name}/frame{next(NUMBERS)}"
        self._example: Any = None

    # The problem
    def inputs(self, x: Any) -> Any:
        """A batch as the twin takes it, x' = Ω₀x + γ₀."""
        if self._input is None:
            return x
        return Entering(self._places.slots["input"], self._places.entry, self._input)(x)

    def outputs(self, z: Tensor) -> Tensor:
        """Outputs of the original as the twin gives them, z' = Φz + τ."""
        if self._output is None or self._output_place is None:
            return z
        return self._output_place.apply(self._output, z)

    def to_original(self, z: Tensor) -> Tensor:
        """Outputs of the twin as the original gives them."""
        if self._output is None or self._output_place is None:
            return z
        return self._output_place.apply(self._output.inverse(), z)

    def output_metric(self, metric: OutputMetric) -> OutputMetric:
        """A metric on the outputs, taken along. A likelihood becomes that of z'."""
        return moved_output(metric, self._output, self._output_place)

    # The network
    @cached_property
    def network(self) -> Network:
        """The twin's module, read: its blocks are those of the original, by path."""
        read = Network.from_torch(self.module, self.likelihood, self._example, self.name, self.original.read)
        for path, block in self.original.blocks.items():
            own = read.blocks.get(path)
            if own is None or own.space.shape != block.space.shape or (own.reader is None) != (block.reader is None):
                raise NoTwin(
                    f"NoTwin: the block {path!r} of {self.original.name} is {block.space}, and in the twin it is "
                    f"{'missing' if own is None else own.space}. Read the original with an example, and leave {path!r} "
                    f"out of the frames."
                )
        return read

    @cached_property
    def _moves(self) -> dict[str, BlockMove]:
        moves = {}
        for path, block in self.original.blocks.items():
            if path in self._places.leaves:
                moves[path] = self._places.leaves[path].on_tangents(self.frames.by_key)
            elif block.reader is None:
                moves[path] = BlockMove(None, self.frames.get(f"{path}.W"), False, 1, False, True)
            else:
                moves[path] = BlockMove(None, None, block.space.levels != (), 1, True, False)
        return moves

    @cached_property
    def tangent_map(self) -> LinearMap:
        """The isomorphism of the tangent spaces, D' = Φ D α̂⁻¹ on every block: what a change of frames does to steps."""
        return sum_map(self.original.tangent_space, self.network.tangent_space, self._moves)

    @cached_property
    def _transport(self) -> Transport:
        back = {path: move.inverse() for path, move in self._moves.items()}
        into = sum_map(self.network.tangent_space, self.original.tangent_space, back)
        return Transport(self.tangent_map, into, self._base)

    def _base(self, name: str) -> tuple[str, Tensor, Tensor] | None:
        """The twin's name for a base space of the original, and its frame on all of that space."""
        own = f"{self.original.name}/"
        if not name.startswith(own):
            return None
        key = name.removeprefix(own)
        path, _, role = key.rpartition(".")
        if path in self.original.blocks and role in ("A", "S") and path in self._places.leaves:
            leaf, slot = self._places.leaves[path], self._places.slots[key]
            frame = self.frames.get(key) or Frame.identity(slot.dim)
            if frame.order is not None or not bool(
                (frame.linear == frame.linear[:1]).all() and (frame.shift == frame.shift[:1]).all()
            ):
                return None  # a family whose members have frames of their own
            linear, shift = repeated(frame, leaf.taps if role == "A" else 1)
        else:
            space = next((V for V in self._atoms() if name in V.bases), None)
            if space is None:
                return None
            frame = self.frames.get(f"{key}.W") or Frame.identity(space.dim)
            linear, shift = frame.linear[0], frame.shift[0]
        return f"{self.name}/{key}", linear, shift

    def _atoms(self) -> list[Any]:
        return [V for b in self.original.blocks.values() for V in (b.input_space, b.output_space) if not V.levels]

    @overload
    def transport(self, thing: X) -> X: ...
    @overload
    def transport(self, thing: InnerProduct) -> InnerProduct: ...
    def transport(self, thing: Any) -> Any:
        """A vector, a covector or an inner product of the original's spaces, taken along to the twin's.

        Those are its tangent space, the spaces of its layers, and what duals, products and sums make of them. Pairings
        and lengths stay as they are: g'(T u, T v) = g(u, v).
        """
        if isinstance(thing, Element):
            return self._transport.element(thing)
        if isinstance(thing, InnerProduct):
            return self._transport.inner_product(thing)
        raise SpaceMismatch(
            f"SpaceMismatch in transport: expected a vector, a covector or an inner product of the original's spaces, "
            f"got {type(thing).__name__}. Batches are taken along by twin.inputs(x), outputs by twin.outputs(z)."
        )

    def __repr__(self) -> str:
        return f"Twin({self.name!r}, {self.frames!r})"


@dataclass(frozen=True)
class Entering:
    """A batch with its input, its tensor number `entry`, in another frame."""

    slot: Slot
    entry: int
    frame: Frame

    def __call__(self, x: Any) -> Any:
        assert self.slot.place is not None
        flat, spec = tree_flatten(x)
        at = [i for i, t in enumerate(flat) if isinstance(t, Tensor)][self.entry]
        flat[at] = self.slot.place.apply(self.frame, flat[at])
        return tree_unflatten(flat, spec)
