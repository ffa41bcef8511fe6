"""How a twin is made, and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..likelihoods import Likelihood
from ..networks import Network
from ..networks.outputs import call_module
from ..networks.readers import ConvolutionReader, TransposedConvolutionReader
from ..networks.recording import frozen_statistics
from ..networks.running import untouched_randomness
from .frame import Frame
from .frames import Frames
from .groups import InvalidFrames, NoTwin
from .leaves import Leaf
from .moved import PORTS, Into, moves_of, own_frames
from .opened import Scale, ScaleReader, put_in_place
from .places import Places, spaces
from .twin import Entering, Twin


def reparametrize(
    network: Network | nn.Module,
    frames: Frames,
    x: Any,
    likelihood: Likelihood | None = None,
    keep_padding: bool = False,
) -> Twin:
    """The twin of a network in other frames: the same function, checked on the batch `x`.

    Every layer's parameters are transported, W' = Φ∘W∘Ω⁻¹; the points of its padding move along, unless
    `keep_padding`, which keeps zeros (then translations are no symmetry of anything: a negative control, not checked).
    A module is read with the `likelihood` given. Raises `InvalidFrames` where a frame does not fit its space, `NoTwin`
    where the module class has no such network, or where a layer's weight is used behind its back; the network given is
    never changed.
    """
    if isinstance(network, nn.Module):
        if likelihood is None:
            raise NoTwin(
                "NoTwin in reparametrize: outputs are moved with their likelihood, and a module has none. Give "
                "likelihood=..., or a network: Network.from_torch(module, likelihood)."
            )
        network = Network.from_torch(network, likelihood, x)
    twin = moved_twin(network, frames, x, keep_padding)
    if not keep_padding and (off := difference(twin, x)) is not None:
        for key in frames:
            if difference(moved_twin(network, frames.only(key), x, keep_padding), x) is not None:
                raise NoTwin(
                    f"NoTwin in reparametrize: with {key!r} moved the module computes another function (off by "
                    f"{off:.1e}). Its parameters are used behind its back, or its input is changed on the way. Leave "
                    f"{key!r} out: Frames.only(...)."
                )
        raise NoTwin(
            f"NoTwin in reparametrize: in these frames the module computes another function, off by {off:.1e}."
        )
    return twin


def moved_twin(network: Network, frames: Frames, x: Any, keep_padding: bool) -> Twin:
    """The twin, not checked."""
    places = spaces(network, x)
    for key, frame in frames.by_key.items():
        check_fits(places, frames.by_key, key, frame)
    root = places.module
    for path, leaf in list(places.leaves.items()):
        A, S = frames.get(f"{path}.A"), frames.get(f"{path}.S")
        if A is not None and leaf.normalizes:
            root, leaf = with_scale(root, leaf)
            places.leaves[path] = leaf
        move_leaf(root, leaf, A, S, keep_padding)
    constants = {key.removesuffix(".W"): f for key, f in frames.by_key.items() if places.slots[key].role == "W"}
    named = dict(root.named_parameters())
    own_frames(root, {id(named[name]): frame for name, frame in constants.items()})
    lone = any("" in leaf.at for leaf in places.leaves.values())
    if (entry := frames.get("input")) is not None:
        moves = moves_of(root) if lone else moves_of(root, PORTS)
        (moves.whole if lone else moves.entering).append(Entering(places.slots["input"], places.entry, entry.inverse()))
    slot, leaving = places.slots.get("output"), frames.get("output")
    if leaving is not None and slot is not None and slot.place is not None:
        moves = moves_of(root) if lone else moves_of(root, PORTS)
        (moves.after if lone else moves.leaving).append(Into(leaving, slot.place))
    places.module = root
    twin = Twin(network, frames, places, root)
    twin._example = twin.inputs(x)
    return twin


def check_fits(places: Places, by_key: Mapping[str, Frame], key: str, frame: Frame) -> None:
    """Refuses a frame of another size than its space, and one that has no twin there."""
    slot = places.check(key)
    if (frame.members, frame.dim) != (slot.members, slot.dim):
        size = f"{slot.members} members of dimension {slot.dim}" if slot.members > 1 else f"dimension {slot.dim}"
        raise InvalidFrames(f"InvalidFrames in reparametrize: {key!r} is a space of {size}, got {frame}.")
    if slot.role in ("A", "S"):
        other = by_key.get(f"{slot.path}.{'S' if slot.role == 'A' else 'A'}")
        orders = [None if f is None or f.order is None else f.order.tolist() for f in (frame, other)]
        if orders[0] != orders[1]:
            raise NoTwin(
                f"not applicable: a frame on {key!r}: no twin in the model class. The members of a family change "
                f"places alike on both sides of {slot.path!r}, or not at all."
            )
    eye = torch.eye(frame.dim, dtype=frame.linear.dtype)
    reason = "" if bool((frame.linear == eye).all()) else slot.no_linear
    reason = reason or ("" if frame.linear_only else slot.no_translations)
    if reason:
        raise NoTwin(f"not applicable: a frame on {key!r}: no twin in the model class. {reason}.")


def with_scale(root: nn.Module, leaf: Leaf) -> tuple[nn.Module, Leaf]:
    """A normalization with its scale and shift in the open."""
    place = leaf.slots[0].place
    assert place is not None
    scale = Scale(leaf.module, -place.axis if place.axis < 0 else 0)
    root = put_in_place(root, leaf.module, scale)
    return root, Leaf(leaf.path, ScaleReader(scale, leaf.trained.name, leaf.trained.trained), leaf.at, leaf.elsewhere)


def move_leaf(root: nn.Module, leaf: Leaf, A: Frame | None, S: Frame | None, keep_padding: bool) -> None:
    if A is None and S is None:
        return
    leaf.move_parameters(A, S)
    into, out = leaf.slots
    modules = dict(root.named_modules(remove_duplicate=False))
    for m in {id(modules[path]): modules[path] for path in leaf.at}.values():
        if A is not None:
            assert into.place is not None
            if isinstance(m, Scale):
                m.frame = A
            else:
                pad = () if keep_padding or A.linear_only else padding_taken_from(leaf, m)
                moves_of(m).before.append(Into(A, into.place, pad))
        if S is not None:
            assert out.place is not None
            moves_of(m).after.append(Into(S.inverse(), out.place))


def padding_taken_from(leaf: Leaf, m: nn.Module) -> tuple[int, ...]:
    """The zeros around the input of a convolution, which from now on does not pad. Other modes repeat points."""
    reader = leaf.reader
    if not isinstance(reader, ConvolutionReader) or isinstance(reader, TransposedConvolutionReader):
        return ()
    assert isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    pad = tuple(m._reversed_padding_repeated_twice)
    if m.padding_mode != "zeros" or not any(pad):
        return ()
    m.padding = (0,) * len(m.kernel_size)
    m._reversed_padding_repeated_twice = [0] * len(pad)
    return pad


def difference(twin: Twin, x: Any) -> float | None:
    """How far the twin is from the original on a batch, relative to its outputs; None at rounding."""
    with torch.no_grad():
        z = twin.to_original(seeded(twin.module, twin.original, twin.inputs(x)))
        expected = seeded(twin.original.module, twin.original, x)
    scale = float(expected.abs().max().clamp(min=1e-3))
    off = float((z - expected).abs().max()) / scale
    eps = max(torch.finfo(t.dtype).eps for t in tree_leaves((z, list(twin.module.parameters()))))
    return None if off <= 2e4 * eps else off


def seeded(module: nn.Module, network: Network, x: Any) -> Tensor:
    """The outputs, with the same dropout and the statistics of batch norm frozen."""
    with untouched_randomness(module), frozen_statistics(module):
        torch.manual_seed(0)
        return network.read(call_module(module, x))
