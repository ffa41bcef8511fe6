"""Which parameter gets which place: from a module to its blocks, before any forward pass."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from math import prod
from operator import is_
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UnsupportedLayer
from ..spaces import OnePoint, Space, VectorSpace
from .blocks import Expansion, Parameters, Reader, fused_as, reading_of, within


@dataclass(frozen=True)
class Block:
    """One summand of the tangent space: its path, its spaces, the parameters it holds, what was assumed about it.

    `names` maps the reader's own names ("weight", "bias") to parameters of the network. Without a reader the block is
    constant: maps of the one-point space, `names` is {"value": parameter} and `shape` that parameter's.
    """

    path: str
    input_space: VectorSpace
    output_space: VectorSpace
    names: dict[str, str]
    reader: Reader | None = None
    shape: tuple[int, ...] = ()
    assumed: str = ""

    @cached_property
    def space(self) -> VectorSpace:
        return self.output_space * self.input_space.dual

    @property
    def partly_frozen(self) -> bool:
        """Whether the layer has a weight or a bias that is not trained: then the block is not all of its map."""
        reader = self.reader
        if reader is None:
            return False
        return not reader.weight or (not reader.bias and getattr(reader.module, "bias", None) is not None)

    def gather(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The block's data from tensors named and shaped like the network's parameters."""
        rows = self.reader.rows if self.reader is not None else {}
        whole = {local: tensors[name] for local, name in self.names.items()}
        return self.from_parameters({k: t[rows[k]] if k in rows else t for k, t in whole.items()})

    def scatter(self, data: Tensor, into: dict[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
        """The inverse: the block's data written into tensors named and shaped like the network's parameters."""
        rows = self.reader.rows if self.reader is not None else {}
        batch = data.shape[: data.ndim - len(self.space.shape)]
        for local, part in self.to_parameters(data).items():
            name = self.names[local]
            if local not in rows:
                into[name] = part
            else:
                whole = into.setdefault(name, data.new_zeros(*batch, *parameters[name].shape))
                whole.narrow(len(batch), rows[local].start, rows[local].stop - rows[local].start).copy_(part)

    def to_parameters(self, data: Tensor) -> Parameters:
        """Data (*batch, *space.shape) as the trained tensors of the block, by the reader's own names."""
        if self.reader is not None:
            return self.reader.to_parameters(data)
        return {"value": data.reshape((*data.shape[:-2], *self.shape))}

    def from_parameters(self, tensors: Parameters) -> Tensor:
        if self.reader is not None:
            return self.reader.from_parameters(tensors)
        value = tensors["value"]
        return value.reshape(*value.shape[: value.ndim - len(self.shape)], *self.space.shape)


@dataclass(frozen=True)
class Reading:
    """All blocks of a module by path, where their readers listen, and the parameters left out as frozen.

    `listeners` are the modules (by path) whose calls are uses of a block; `expansions` the fused modules that run in
    the open while they are watched.
    """

    blocks: dict[str, Block]
    listeners: dict[str, str]
    expansions: dict[str, Expansion]
    frozen: tuple[str, ...]


def plain_module(module: nn.Module) -> nn.Module:
    """The module inside wrappers that only schedule: data parallel and compiled ones."""
    if isinstance(module, DistributedDataParallel):
        return plain_module(module.module)
    compiler = sys.modules.get("torch._dynamo.eval_frame")  # to import it costs 50 MiB and a second
    if compiler is not None and isinstance(module, compiler.OptimizedModule):
        return plain_module(module._orig_mod)
    return module


def check_readable(module: nn.Module) -> None:
    """Refuses modules whose parameters are not there yet, or are nothing that has a tangent space here."""
    for path, m in module.named_modules():
        if isinstance(m, nn.DataParallel):
            raise UnsupportedLayer(
                f"UnsupportedLayer in Network: {path or 'the module'!r} is an nn.DataParallel, which copies its layers "
                f"at every forward. Read its .module, or use DistributedDataParallel."
            )
    for name, p in module.named_parameters():
        if isinstance(p, nn.parameter.UninitializedParameter):
            reason, fix = "is lazy and has no shape yet", "Run the module on one batch first"
        elif p.is_complex():
            reason, fix = "is complex", "Hold its real and imaginary parts as two parameters"
        elif p.is_meta:
            reason, fix = "is on the meta device and has no values", "Load it: module.to_empty(...), load_state_dict"
        else:
            continue
        raise UnsupportedLayer(f"UnsupportedLayer in Network: the parameter {name!r} {reason}. {fix}.")


class Held:
    """What a module held when it was looked at: modules, parameters, which of them are trained.

    To see that it still does takes microseconds, where to list them takes a tenth of a millisecond.
    """

    def __init__(self, module: nn.Module):
        self._modules = list(module.modules())
        self._names, self._values = self._look()
        everything = dict(module.named_parameters())
        self._flags = [(p, p.requires_grad) for p in everything.values()]
        self.trained = {name: p for name, p in everything.items() if p.requires_grad}

    def _look(self) -> tuple[list[str], list[object]]:
        held: list[dict[str, Any]] = [d for m in self._modules for d in (m._parameters, m._modules)]
        return list(chain.from_iterable(held)), list(chain.from_iterable(map(dict.values, held)))

    @property
    def still(self) -> bool:
        names, values = self._look()
        return (
            names == self._names
            and all(map(is_, values, self._values))
            and all(p.requires_grad is flag for p, flag in self._flags)
        )


def check_unchanged(module: nn.Module, as_read: Mapping[str, nn.Parameter], frozen: Collection[str]) -> None:
    """Refuses a module whose parameters are not those it was read with, or are not trained as they were."""
    now = dict(module.named_parameters())
    for name in [*as_read, *now]:
        if name not in now:
            change = "is gone"
        elif name not in as_read:
            change = "is new"
        elif now[name] is not as_read[name]:
            change = "is another one"
        elif now[name].requires_grad is (name in frozen):
            change = "is trained" if name in frozen else "was frozen"
        else:
            continue
        raise UnsupportedLayer(
            f"UnsupportedLayer in Network: the parameter {name!r} {change} since the module was read. "
            f"Read it again: Network.from_torch(module, ...)."
        )


def constant(network: str, name: str, shape: tuple[int, ...], assumed: str) -> Block:
    space = Space(f"{network}/{name}", prod(shape))
    return Block(name, OnePoint.hull, space, {"value": name}, None, shape, assumed)


def read_module(module: nn.Module, network: str) -> Reading:
    """Every trained parameter's block. Modules of one type that share all their parameters share a block."""
    check_readable(module)
    names = {id(p): name for name, p in module.named_parameters()}
    frozen = tuple(name for name, p in module.named_parameters() if not p.requires_grad)
    groups: dict[tuple[object, ...], list[str]] = {}
    owned: dict[str, tuple[nn.Module, dict[str, nn.Parameter]]] = {}
    expansions: dict[str, Expansion] = {}
    claimed: dict[str, tuple[str, str]] = {}  # modules whose map a fused one holds: the part they are, its block's path
    for path, m in module.named_modules():
        if (fused := fused_as(m)) is not None:
            expansions[path] = fused.expand
            for child, part in fused.children.items():
                claimed[within(path, child)] = within(path, part), within(path or "self", part)
        own = {local: p for local, p in m._parameters.items() if p is not None and p.requires_grad}
        if own:
            owned[path] = (m, own)
            groups.setdefault((type(m), *sorted((local, id(p)) for local, p in own.items())), []).append(path)
    if not owned:
        raise UnsupportedLayer(
            f"UnsupportedLayer in Network: {type(module).__name__} has no trainable parameters "
            f"({len(frozen)} frozen ones). Set requires_grad on those that are to be trained."
        )
    holders = Counter(id(p) for paths in groups.values() for p in owned[paths[0]][1].values())
    blocks: dict[str, Block] = {}
    listeners: dict[str, str] = {}
    for paths in groups.values():
        m, own = owned[paths[0]]
        places = [claimed.get(path, (path, ""))[0] for path in paths]
        path = claimed.get(paths[0], (paths[0], paths[0] or "self"))[1]
        alone = {local: p for local, p in own.items() if holders[id(p)] == 1}
        assumed = f"tied with {', '.join(paths[1:])}: the uses of all are its sites" if paths[1:] else ""
        readers, reason = reading_of(m, f"{network}/{path}", tuple(alone))
        read: set[str] = set()
        for part, reader in readers.items():
            at = within(path, part)
            mine = {local: names[id(alone[local])] for local in reader.trained}
            blocks[at] = Block(at, reader.input_space, reader.output_space, mine, reader, assumed=assumed)
            read |= set(mine)
            listeners.update({within(place, part): at for place in places})
        for local, p in own.items():
            if local not in read and names[id(p)] not in blocks:
                why = reason if holders[id(p)] == 1 else "tied between layers of different types"
                blocks[names[id(p)]] = constant(network, names[id(p)], tuple(p.shape), why)
    return Reading(blocks, listeners, {p: e for p, e in expansions.items() if heard(p, listeners)}, frozen)


def heard(path: str, listeners: Collection[str]) -> bool:
    """Whether a module, or a part of it, is listened to."""
    return any(inside(at, path) for at in listeners)


def inside(at: str, path: str) -> bool:
    """Whether a path is that of a module or of something in it."""
    return not path or at == path or at.startswith(f"{path}.")
