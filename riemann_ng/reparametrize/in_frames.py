"""A model trained in orthonormal frames of an inner product: there gradient descent is the natural gradient.

With E Eᵀ = g⁻¹ and parameters w = E z, a step of gradient descent on z is dw = -η E Eᵀ df = -η g⁻¹ df, and momentum
on z is momentum along natural gradients. `in_frames` puts the layers of a model in such frames in place, by
`torch.nn.utils.parametrize`: the function stays, the parameters to be trained are z. When the inner product has
changed, `refresh` changes the frames and again leaves the function, z ← E_new⁻¹ E_old z, and velocities with it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from ..errors import DegenerateMetric, SpaceMismatch
from ..inner_products import InnerProduct
from ..networks import Network
from ..networks.coverage import Coverage
from ..networks.structure import Block
from .block_frames import BlockFrame, frame_of
from .groups import InvalidFrames
from .in_frame import FramedBlock, Holder, InFrame, check_in_place, holders_of, put_in, take_out, without_values
from .velocities import Change, change_velocities, velocities


def in_frames(
    network: Network,
    g: InnerProduct,
    layers: Collection[str] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> InFrames:
    """Puts the layers of a network's module in orthonormal frames of an inner product, in place.

    `g` lives on `network.tangent_space` and has nothing between layers: the value of any layerwise metric, damped or
    not. `layers` are the paths of those to be put in frames, by default all, parameters without a layer among them;
    the others are left as they are. An `optimizer` that has momentum already has its velocities brought along.
    A degenerate g has no frame, and nothing is changed then.
    """
    return InFrames(network, g, layers, optimizer)


class InFrames:
    """A model whose layers are in frames; `in_frames` makes one.

    `network` is the network that was read, in the original spaces. It works inside `with framed.off()`, where the
    model is as it was; a network that is read from the model in frames has the raw parameters for its own, without
    layers.
    """

    def __init__(
        self,
        network: Network,
        g: InnerProduct,
        layers: Collection[str] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ):
        if not isinstance(network, Network):
            raise InvalidFrames(
                f"InvalidFrames in in_frames: expected a network, got {type(network).__name__}. Read the module first: "
                f"Network.from_torch(module, likelihood)."
            )
        network.check_unchanged()
        self.network, self._space = network, network.tangent_space
        self._parameters: dict[str, nn.Parameter] = {
            name: p for name, p in network.module.named_parameters() if p.requires_grad
        }
        self._holders = holders_of(network.module, self._parameters)
        left = left_alone(network, self._holders, layers)
        chosen = {path: block for path, block in network.blocks.items() if path not in left}
        frames = self._frames("in_frames", g, chosen)
        found = {} if optimizer is None else velocities(optimizer, self._names(chosen))
        self._on = False
        self._orders = {m: list(m._parameters) for at in self._holders.values() for m, _ in at}
        self._blocks: dict[str, FramedBlock] = {}
        for path, block in chosen.items():
            first = {name: self._holders[name][0] for name in block.names.values()}
            self._blocks[path] = FramedBlock(without_values(block), frames[path], first)
        self._in: dict[str, InFrame] = {}
        for name in self._names(chosen):
            self._in[name] = InFrame(name, [f for f in self._blocks.values() if name in f.holders])
        self._coverage = said(network.coverage(), self._blocks, left)
        self._change_velocities(found, {path: f.frame.inverse for path, f in self._blocks.items()})
        self._put_on(self._plain())

    # What there is

    @property
    def layers(self) -> tuple[str, ...]:
        """The paths of the layers that are in frames."""
        return tuple(self._blocks)

    def frame(self, path: str) -> BlockFrame:
        """The frame of a layer, a linear map of its data."""
        if path not in self._blocks:
            raise InvalidFrames(
                f"InvalidFrames: no layer {path!r} is in a frame; those are {', '.join(map(repr, self._blocks))}."
            )
        return self._blocks[path].frame

    def coverage(self) -> Coverage:
        """One line per parameter, as of the network, that ends with its frame, or why it is left as it is."""
        rows = []
        for row in self._coverage.rows:
            paths = [path for path in row.layer.split(", ") if path in self._blocks]
            frames = [f"frame: {self._blocks[path].frame.said()}" for path in paths]
            rows.append(replace(row, assumed="; ".join(filter(None, [row.assumed, *frames]))))
        return replace(self._coverage, rows=tuple(rows))

    # Changing the frames

    def refresh(self, g: InnerProduct, optimizer: torch.optim.Optimizer | None = None) -> None:
        """The frames of another inner product. The function stays, to rounding; gradients of raw parameters are gone.

        The `optimizer` that trains the raw parameters has its velocities brought along: without it momentum goes on
        in a direction that means something else by now. If anything fails, nothing has changed.
        """
        self._check("refresh")
        frames = self._frames("refresh", g, {path: f.block for path, f in self._blocks.items()})
        found = {} if optimizer is None else velocities(optimizer, self._names(self._blocks))
        plain = self._plain()
        changes: dict[str, Change] = {}
        for path, f in self._blocks.items():
            old = BlockFrame(**dict(f.frame.named_buffers()))
            changes[path] = lambda z, old=old, new=frames[path]: new.inverse(old(z))  # type: ignore[misc]
        self._change_velocities(found, changes)
        for path, f in self._blocks.items():
            f.frame.take(frames[path])
        if self._on:
            self._write(self._raw(plain))

    @contextmanager
    def off(self) -> Iterator[Network]:
        """Inside, the model is an ordinary one again, with its own parameters, and `network` can observe it.

        Afterwards it is in its frames: those of a `refresh` inside, if there was one.
        """
        self._check("off")
        if not self._on:
            yield self.network
            return
        self._take_off()
        try:
            yield self.network
        finally:
            self.network.check_unchanged()
            self._put_on(self._plain())

    def remove(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Gives the ordinary module back, with the same function and the same `Parameter` objects.

        Velocities of the `optimizer` are brought along.
        """
        self._check("remove")
        found = {} if optimizer is None else velocities(optimizer, self._names(self._blocks))
        self._change_velocities(found, {path: f.frame for path, f in self._blocks.items()})
        if self._on:
            self._take_off()
        self._blocks, self._in = {}, {}

    # Inside

    def _check(self, call: str) -> None:
        if not self._blocks:
            raise InvalidFrames(
                f"InvalidFrames in {call}: the frames were removed. Put the model in frames again: in_frames(...)."
            )
        if self._on:
            for name, parametrization in self._in.items():
                check_in_place(name, self._holders[name], parametrization, self._parameters[name])

    def _frames(self, call: str, g: InnerProduct, blocks: Mapping[str, Block]) -> dict[str, BlockFrame]:
        if not isinstance(g, InnerProduct) or g.space != self._space:
            what = f"one on {g.space}" if isinstance(g, InnerProduct) else repr(g)
            raise SpaceMismatch(
                f"SpaceMismatch in {call}: expected an inner product on the tangent space of {self.network.name}, got "
                f"{what}. A metric has one at an observation: metric.at(network.observe(x))."
            )
        parts = g.summands()
        if parts is None:
            raise InvalidFrames(
                f"InvalidFrames in {call}: {g!r} has terms between layers, and a frame of all of them together belongs "
                f"to no layer. Take a layerwise metric, as KFAC(), or Fisher('block-diagonal')."
            )
        frames = {}
        for path, block in blocks.items():
            like = next(self._parameters[name] for name in block.names.values())
            try:
                frames[path] = frame_of(parts[path], like)
            except DegenerateMetric as error:
                raise DegenerateMetric(
                    f"{error}\nIn {call}, layer {path!r}: a degenerate form has no orthonormal frame. Nothing was "
                    f"changed.",
                    error.space,
                    error.rank,
                ) from None
            except InvalidFrames as error:
                raise InvalidFrames(f"{error}\nIn {call}, layer {path!r}. Nothing was changed.") from None
        return frames

    def _names(self, blocks: Mapping[str, Any]) -> dict[str, nn.Parameter]:
        """The parameters of these layers."""
        held = [name for path in blocks for name in self.network.blocks[path].names.values()]
        return {name: p for name, p in self._parameters.items() if name in held}

    @torch.no_grad()
    def _change_velocities(self, found: Mapping[str, Tensor], changes: Mapping[str, Change]) -> None:
        change_velocities(found, {path: (self._blocks[path].block, changes[path]) for path in changes})

    @torch.no_grad()
    def _plain(self) -> dict[str, Tensor]:
        """What the parameters are, in no frame."""
        if not self._on:
            return {name: self._parameters[name] for name in self._in}
        return {name: getattr(*self._holders[name][0]).clone() for name in self._in}

    @torch.no_grad()
    def _raw(self, plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
        into = {name: t.clone() for name, t in plain.items()}
        for f in self._blocks.values():
            f.block.scatter(f.coordinates(plain), into, plain)
        return into

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self._parameters[name].copy_(value)
            self._parameters[name].grad = None  # a gradient of another frame

    def _put_on(self, plain: Mapping[str, Tensor]) -> None:
        self._write(self._raw(plain))
        for name, parametrization in self._in.items():
            put_in(self._holders[name], parametrization)
        self._on = True

    def _take_off(self) -> None:
        plain = self._plain()
        for name in self._in:
            take_out(self._holders[name], self._orders)
        self._write(plain)
        self._on = False

    def __repr__(self) -> str:
        return f"InFrames({self.network.name}: {', '.join(self._blocks) or 'removed'})"


def left_alone(network: Network, holders: Mapping[str, list[Holder]], layers: Collection[str] | None) -> dict[str, str]:
    """The layers that are put in no frame, with the reason."""
    if isinstance(layers, str) or (layers is not None and (unknown := sorted(set(layers) - set(network.blocks)))):
        what = f"layers={layers!r}, expected a collection of paths" if isinstance(layers, str) else ""
        what = what or f"no layer is called {', '.join(map(repr, unknown))}"
        raise InvalidFrames(f"InvalidFrames in in_frames: {what}; there are {', '.join(map(repr, network.blocks))}.")
    left = {path: "left as it is" for path in network.blocks if layers is not None and path not in layers}
    for path, block in network.blocks.items():
        held = [m for name in block.names.values() for m, _ in holders[name] if isinstance(m, ParametrizationList)]
        if any(isinstance(m[0], InFrame) for m in held):
            raise InvalidFrames(
                f"InvalidFrames in in_frames: {path!r} is in a frame already. Use refresh(g) of what put it there, or "
                f"remove() first."
            )
        if held and layers is not None and path in layers:
            raise InvalidFrames(
                f"InvalidFrames in in_frames: {path!r} is what another parametrization is made of. Remove that, or "
                f"leave this one out of layers."
            )
        if held:
            left[path] = "left as it is: another parametrization is made of it"
    if len(left) == len(network.blocks):
        raise InvalidFrames("InvalidFrames in in_frames: no layer is left to be put in a frame.")
    return left


def said(coverage: Coverage, blocks: Mapping[str, FramedBlock], left: Mapping[str, str]) -> Coverage:
    """A coverage that says what is left as it is."""
    rows = []
    for row in coverage.rows:
        why = [
            f"{path}: {left[path]}" if "," in row.layer else left[path]
            for path in row.layer.split(", ")
            if path in left
        ]
        rows.append(replace(row, assumed="; ".join(filter(None, [row.assumed, *why]))))
    return replace(coverage, rows=tuple(rows))
