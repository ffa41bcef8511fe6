"""Which spaces a network has that frames can move, and which of them a group can move."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..likelihoods.sites import SiteLikelihood
from ..networks import Network
from ..networks.expansions import BilinearReader, PartReader
from ..networks.outputs import call_module
from ..networks.recording import frozen_statistics
from ..networks.running import untouched_randomness
from ..networks.structure import inside, read_module
from .groups import JOINT, InvalidFrames, parts, trivial
from .leaves import Leaf, Place, Slot
from .opened import OPENED, Made, opened, put_in_place

KINDS = ("inputs", "activations", "pre-activations", "outputs", "constants", "layers")
"""What can be moved. Activations include the network's input, pre-activations the output of the last layer; constants
are parameters without a layer; layers are both sides of every layer, for joint scales."""
LARGEST = 4096
"""The largest dimension of a parameter without a layer that gets a frame, which is a matrix."""


@dataclass(frozen=True)
class Seen:
    """One use of a layer in a forward pass."""

    leaf: Leaf
    x: Tensor
    y: Tensor
    untouched: bool
    """Whether the batch was still as it was given."""
    version: int
    """Of the output when it came."""


@dataclass
class Places:
    """The spaces of a network by key. `linked` spaces have the frame of another one: those of the network's input are
    one space with it, the output of the last layer is one with the network's.
    """

    module: nn.Module
    leaves: dict[str, Leaf]
    slots: dict[str, Slot] = field(default_factory=dict)
    linked: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    entry: int = 0
    """Which tensor of a batch the input is."""

    def of_kinds(self, kinds: Collection[str]) -> list[str]:
        """The keys of the spaces of these kinds; where one is linked, all that are linked with it."""
        roles = {"activations": "A", "pre-activations": "S", "constants": "W", "inputs": "input", "outputs": "output"}
        wanted = {roles[kind] for kind in kinds if kind in roles} | ({"A", "S"} if "layers" in kinds else set())
        keys = {key for key, slot in self.slots.items() if slot.role in wanted}
        if "A" in wanted and "input" in self.slots:
            keys.add("input")
        linked = {self.linked.get(key, key) for key in keys} | keys
        linked |= {key for key, root in self.linked.items() if root in linked}
        return [key for key in self.slots if key in linked]

    def refusal(self, key: str, group: str) -> str:
        """Why no element of the group has a twin on this space, and on what is linked with it, or ""."""
        linear, shifted = parts(group)
        root = self.linked.get(key, key)
        for at in [key, root, *(k for k, to in self.linked.items() if to == root)]:
            slot = self.slots[at]
            reason = (slot.no_linear if linear else "") or (slot.no_translations if shifted else "")
            if reason or (reason := trivial(group, slot.dim)):
                return reason
        return ""

    def swappable(self, keys: Collection[str]) -> dict[str, int]:
        """Layers that are families with both sides among the keys and neither seen from outside, and their members."""
        pairs = {path: (f"{path}.A", f"{path}.S") for path, leaf in self.leaves.items() if leaf.members > 1}
        return {
            path: self.leaves[path].members
            for path, both in pairs.items()
            if all(key in keys and key not in self.linked and not self.slots[key].no_linear for key in both)
        }

    def reasons(self, kinds: Collection[str]) -> dict[str, str]:
        """Why spaces of these kinds are not there."""
        roles = {"inputs": "input", "outputs": "output"}
        return {roles[kind]: self.missing[roles[kind]] for kind in kinds if roles.get(kind) in self.missing}

    def layer_of(self, key: str) -> str:
        """The layer whose joint scale a space has; layers that share their input share it."""
        linked = [k for k, root in self.linked.items() if root == key]
        path = self.slots[linked[0] if linked else key].path
        return "input" if self.linked.get(f"{path}.A") == "input" else path

    def check(self, key: str) -> Slot:
        if key not in self.slots:
            known = ", ".join(self.slots)
            raise InvalidFrames(f"InvalidFrames: the network has no space {key!r}. Its spaces are {known}.")
        return self.slots[key]


def chosen_kinds(call: str, on: str | Collection[str], group: str) -> tuple[str, ...]:
    """The kinds of spaces that are meant, checked against the group."""
    kinds = (on,) if isinstance(on, str) else tuple(on)
    parts(group)
    for kind in kinds or ("",):
        if kind not in KINDS:
            raise InvalidFrames(
                f"InvalidFrames in {call}: no space is of kind {kind!r}. The kinds are {', '.join(KINDS)}."
            )
    both = {"activations", "pre-activations"} <= set(kinds) or "layers" in kinds
    if group == JOINT and not both:
        raise InvalidFrames(
            f"InvalidFrames in {call}: a joint scale moves both sides of every layer: on='layers', not {list(kinds)}."
        )
    return ("layers",) if group == JOINT else kinds


def not_applicable(group: str, kinds: Collection[str], reasons: Mapping[str, str]) -> str:
    told = "; ".join(f"{key}: {reason}" for key, reason in list(reasons.items())[:4]) or "the network has no such space"
    return f"not applicable: {group} on {', '.join(kinds)}: no twin in the model class. {told}."


def admissible(network: Network, x: Any, on: str | Collection[str], group: str) -> str | None:
    """None where a group has a twin of the network, on at least one of the spaces named; else the reason why not."""
    kinds, places = chosen_kinds("admissible", on, group), spaces(network, x)
    refusals = {key: places.refusal(key, group) for key in places.of_kinds(kinds)}
    if any(not reason for reason in refusals.values()):
        return None
    return not_applicable(group, kinds, refusals or places.reasons(kinds))


def spaces(network: Network, x: Any) -> Places:
    """The spaces of a network, read off a forward pass of a batch. Nothing of the network is changed."""
    network.check_unchanged()
    if not network._verified_on:
        network.verify(x)
    module = opened_copy(network)
    alive = {path for path, block in network.blocks.items() if block.reader is not None}
    reading = read_module(module, network.name)
    at: dict[str, list[str]] = {}
    for where, path in reading.listeners.items():
        at.setdefault(path, []).append(where)
    modules = dict(module.named_modules(remove_duplicate=False))

    def others(paths: list[str]) -> set[int]:
        mine = {id(modules[where]) for where in paths}
        return {id(p) for m in module.modules() if id(m) not in mine for p in m._parameters.values() if p is not None}

    leaves = {
        path: Leaf(path, block.reader, tuple(at.get(path, ())), others(at.get(path, [])))
        for path, block in reading.blocks.items()
        if block.reader is not None and path in alive
        if isinstance(block.reader, BilinearReader) or not isinstance(block.reader, PartReader)
    }
    places = Places(module, leaves)
    for leaf in leaves.values():
        places.slots |= {slot.key: slot for slot in leaf.slots}
    for path, block in network.blocks.items():
        if block.reader is None:
            places.slots[f"{path}.W"] = constant_slot(path, block.shape, module)
    add_ports(places, network, x)
    return places


def opened_copy(network: Network) -> nn.Module:
    """A copy of the module with those fused modules opened whose parts have been read."""
    module = copy.deepcopy(network.module)
    made: Made = {}
    modules = dict(module.named_modules())
    for path in network._expansions:
        if path and isinstance(modules[path], OPENED) and any(inside(at, path) for at in network.blocks):
            module = put_in_place(module, modules[path], opened(modules[path], made))
    for m in module.modules():
        if isinstance(m, nn.TransformerEncoder):  # its fast path takes the parameters of its layers by itself
            m.enable_nested_tensor = m.use_nested_tensor = False
    return module


def constant_slot(path: str, shape: tuple[int, ...], module: nn.Module) -> Slot:
    """A parameter without a layer: it is trained in a frame of its own."""
    reason, p = "", dict(module.named_parameters())[path]
    holders = [m for m in module.modules() if any(q is p for q in m._parameters.values())]
    if prod(shape) > LARGEST:
        reason = f"a frame of {path!r} would be a matrix of {prod(shape)} rows"
    elif any(isinstance(m, nn.RNNBase) for m in holders):
        reason = f"{path!r} is inside a fused recurrent module that was not opened"
    return Slot(f"{path}.W", path, "W", max(prod(shape), 1), 1, None, reason, reason)


def add_ports(places: Places, network: Network, x: Any) -> None:
    """Finds the layers that see the network's input, and the one that gives its output."""
    given = [t for t in tree_leaves(x) if isinstance(t, Tensor)]
    met: list[Seen] = []
    versions = [t._version for t in given]
    handles = []
    modules = dict(places.module.named_modules())

    def hook(leaf: Leaf) -> Any:
        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Any) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            untouched = all(t._version == version for t, version in zip(given, versions, strict=True))
            met.append(Seen(leaf, x, y, untouched, y._version))

        return note

    for leaf in places.leaves.values():
        for path in leaf.at:
            handles.append(modules[path].register_forward_hook(hook(leaf), with_kwargs=True))
    try:
        with untouched_randomness(places.module), frozen_statistics(places.module), torch.no_grad():
            returned = call_module(places.module, x)
            z = network.read(returned)
    finally:
        for handle in handles:
            handle.remove()
    add_input(places, given, met)
    add_output(places, network, returned, z, met)


def add_input(places: Places, given: list[Tensor], met: list[Seen]) -> None:
    for use in met:
        leaf, seen = use.leaf, use.x
        slot = leaf.slots[0]
        if not use.untouched or leaf.normalizes or not seen.is_floating_point():
            continue
        for i, t in enumerate(given):
            place, own = view_of(t, seen, slot), places.slots.get("input")
            if place is None:
                continue
            found = Slot("input", "input", "input", slot.dim, slot.members, place)
            if own is None or (own == found and places.entry == i):  # layers that see it alike are one space with it
                places.entry, places.linked[slot.key], places.slots["input"] = i, "input", found
    if "input" not in places.slots:
        tokens = any(not t.is_floating_point() for t in given)
        places.missing["input"] = (
            "the network takes tokens, a finite set: nothing moves them"
            if tokens
            else "no layer takes the network's input as it comes"
        )


def view_of(given: Tensor, seen: Tensor, slot: Slot) -> Place | None:
    """Where the components of a layer's input stand in a tensor of the batch, if that is what the layer sees."""
    count = slot.dim * slot.members
    if given.data_ptr() != seen.data_ptr() or given.numel() != seen.numel() or slot.place is None:
        return None
    if given.shape == seen.shape and given.stride() == seen.stride():
        return slot.place
    if slot.place.axis != -1 or not given.is_contiguous():
        return None
    if given.shape[-1] == count == seen.shape[-1] and seen.stride(-1) == 1:
        return Place(-1)
    flat = given.ndim > 1 and given[0].numel() == count and seen.is_contiguous()
    return Place(1, None) if flat else None


def add_output(places: Places, network: Network, returned: Any, z: Tensor, met: list[Seen]) -> None:
    if not isinstance(returned, Tensor):
        places.missing["output"] = f"the module returns a {type(returned).__name__}, not a tensor"
        return
    for use in reversed(met):
        y, slot = use.y, use.leaf.slots[1]
        same = y.data_ptr() == z.data_ptr() and y.shape == z.shape and y.stride() == z.stride()
        if same and z._version == use.version and slot.place is not None:
            places.slots["output"] = Slot("output", "output", "output", slot.dim, slot.members, slot.place)
            places.linked[slot.key] = "output"
            return
    if z.ndim < 2:
        places.missing["output"] = "the output is one number for each example, without an axis of its own"
        return
    likelihood = network.likelihood
    axis = likelihood.layout.dim if isinstance(likelihood, SiteLikelihood) else None
    place = Place(-1 if axis is None else axis)
    places.slots["output"] = Slot("output", "output", "output", place.size(z), 1, place)
