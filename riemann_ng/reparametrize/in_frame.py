"""Layers of a module in frames: raw parameters z in place of the layer's own, which are E z.

A layer is one affine map, so a frame mixes its weight and its bias: both are taken from the layer's raw data together.
Raw parameters keep the names that torch gives them, `0.parametrizations.weight.original`, and the shapes of the
parameters that they stand for; they are the same `Parameter` objects, so an optimizer that has these goes on.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..networks.structure import Block
from .block_frames import BlockFrame
from .groups import InvalidFrames

Holder = tuple[nn.Module, str]
"""A module, and its own name for a parameter."""


@dataclass(frozen=True, eq=False)
class FramedBlock:
    """A layer and its frame; where its parameters are held, by the network's names, the first holder of each."""

    block: Block
    frame: BlockFrame
    holders: Mapping[str, Holder]

    def raw(self) -> dict[str, Tensor]:
        return {name: raw_of(*holder) for name, holder in self.holders.items()}

    def value(self, raw: Mapping[str, Tensor], columns: slice) -> Tensor:
        """E z, of the layer's data; only these columns count, the others are zero."""
        z = self.block.gather(raw)
        wide = torch.promote_types(z.dtype, torch.float32)
        w = self.frame(z.to(wide), columns).to(z.dtype)
        start, stop, _ = columns.indices(z.shape[-1])
        return nn.functional.pad(w, (start, z.shape[-1] - stop))

    def coordinates(self, plain: Mapping[str, Tensor]) -> Tensor:
        """E⁻¹ w."""
        w = self.block.gather(plain)
        wide = torch.promote_types(w.dtype, torch.float32)
        return self.frame.inverse(w.to(wide)).to(w.dtype)


def raw_of(module: nn.Module, local: str) -> Tensor:
    raw: Tensor = module.parametrizations[local].original  # type: ignore[index, union-attr]
    return raw


class InFrame(nn.Module):
    """The parametrization of one parameter: what it is, from the raw parameters of the layers that it belongs to."""

    def __init__(self, name: str, parts: Iterable[FramedBlock]):
        super().__init__()
        self.name, self.parts = name, tuple(parts)
        self.columns = tuple(columns_of(part.block, name) for part in self.parts)
        first = [part.frame for part in self.parts if next(iter(part.holders)) == name]
        self.frames = nn.ModuleList(first)  # held once, by the first parameter of a layer

    def forward(self, original: Tensor) -> Tensor:
        into: dict[str, Tensor] = {}
        for part, columns in zip(self.parts, self.columns, strict=True):
            if self.name not in into and any(self.name == name for name in with_rows(part.block)):
                into[self.name] = original.clone()  # other rows may be in no frame
            raw = {**part.raw(), self.name: original}
            part.block.scatter(part.value(raw, columns), into, raw)
        return into[self.name]

    def extra_repr(self) -> str:
        return "; ".join(f"{part.block.path}: {part.frame.said()}" for part in self.parts)


def with_rows(block: Block) -> list[str]:
    """The parameters of which a block holds some rows only."""
    rows = {} if block.reader is None else block.reader.rows
    return [block.names[local] for local in block.names if local in rows]


def columns_of(block: Block, name: str) -> slice:
    """The columns of a layer's data that a parameter is found in: all but the last for a weight, that for a bias."""
    local = next(local for local, held in block.names.items() if held == name)
    d = block.space.shape[-1]
    found = block.to_parameters(torch.arange(block.space.dim).reshape(block.space.shape))[local] % d
    return slice(int(found.min()), int(found.max()) + 1)


def without_values(block: Block) -> Block:
    """A block whose reader knows the shapes of its module's parameters and asks no module for their values."""
    reader = block.reader
    if reader is None:
        return block
    standing = object.__new__(type(reader.module))
    standing.__dict__.update(reader.module.__dict__)
    held = reader.module._parameters.items()
    shapes = {k: None if p is None else nn.Parameter(p.detach().to("meta")) for k, p in held}
    standing.__dict__.update(_parameters=shapes, _modules=dict(reader.module._modules))
    known = copy.copy(reader)
    known.module = standing
    return replace(block, reader=known)


def holders_of(module: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, list[Holder]]:
    """Every place where a parameter is held: several where it is tied."""
    names = {id(p): name for name, p in parameters.items()}
    found: dict[str, list[Holder]] = {name: [] for name in parameters}
    for m in module.modules():
        for local, p in m._parameters.items():
            if p is not None and id(p) in names:
                found[names[id(p)]].append((m, local))
    return found


def put_in(holders: Iterable[Holder], parametrization: InFrame) -> None:
    """Puts a parametrization in every place of a parameter, whose numbers are left as they are."""
    for module, local in holders:
        parametrize.register_parametrization(module, local, parametrization, unsafe=True)


def take_out(holders: Iterable[Holder], orders: Mapping[nn.Module, list[str]]) -> None:
    """Takes it out again; the numbers stay raw. Parameters come in the order in which they were."""
    for module, local in holders:
        parametrize.remove_parametrizations(module, local, leave_parametrized=False)
        held = module._parameters
        order = [k for k in orders[module] if k in held] + [k for k in held if k not in orders[module]]
        kept = {k: held[k] for k in order}
        held.clear()
        held.update(kept)
        if isinstance(module, nn.RNNBase) and not parametrize.is_parametrized(module):
            module._init_flat_weights()  # recurrent modules keep a second list of their parameters


def check_in_place(name: str, holders: Iterable[Holder], parametrization: InFrame, parameter: nn.Parameter) -> None:
    """Refuses a model in which somebody has meddled with the frame of a parameter."""
    for module, local in holders:
        change = ""
        if not parametrize.is_parametrized(module, local):
            change = "is in no frame any more"
        else:
            held = module.parametrizations[local]  # type: ignore[index]
            if len(held) != 1 or held[0] is not parametrization:
                change = "has another parametrization beside its frame"
            elif raw_of(module, local) is not parameter:
                change = "is another one than when it was put in its frame"
        if change:
            raise InvalidFrames(
                f"InvalidFrames: the parameter {name!r} {change}. Nothing was changed. Undo what was done to it, or "
                f"make the model anew and put it in frames again."
            )
