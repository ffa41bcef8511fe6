"""Twins of native layers: every layer with parameters between two fixed changes of frame, in the same composition."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from math import prod

import torch
from torch import Tensor

from ..layers import Compose, Composite, Embedding, Layer, ParameterFreeLayer, Recurrent
from ..layers.base import join_path
from ..layers.convolution import PatchLayer
from ..layers.evaluation import EvaluationLayer, ParametricLayer
from ..linear_maps import LinearMap
from ..spaces import AffineSpace, DirectSum, Family, VectorSpace
from .frame import Frame
from .groups import InvalidFrames, NoTwin
from .leaves import BlockMove
from .transport import sum_map

ByKey = Mapping[str, Frame]


class FrameLayer(ParameterFreeLayer):
    """A change of frame as a layer: fixed, affine, the same at every site."""

    def __init__(self, domain: AffineSpace, codomain: AffineSpace, frame: Frame):
        self.domain, self.codomain, self.frame = domain, codomain, frame

    def _forward(self, x: Tensor) -> Tensor:
        return self.frame(x)

    def _differential(self, x: Tensor, dx: Tensor) -> Tensor:
        return self.frame.on_vectors(dx)

    def _transpose(self, x: Tensor, dy: Tensor) -> Tensor:
        return self.frame.pulled(dy)


def primed(space: AffineSpace) -> AffineSpace:
    """The same space seen in another frame: another name."""
    return AffineSpace(f"{space.name}'", space.dim)


def moved_space(V: VectorSpace, space: AffineSpace) -> VectorSpace:
    """Translations, hull or family of them, of a space in place of another."""
    if isinstance(V, Family):
        return Family(moved_space(V.of, space), V.members)
    return space.hull if V.dim > space.dim else space.translations


def leaf_move(layer: ParametricLayer, path: str, frames: ByKey) -> BlockMove:
    """What frames do to the tangents of one layer; refuses a frame of another size."""
    family = isinstance(layer.output_space, Family)
    members = layer.output_space.members if isinstance(layer.output_space, Family) else 1
    taps = prod(layer.kernel) if isinstance(layer, PatchLayer) else 1
    A, S = frames.get(f"{path or 'self'}.A"), frames.get(f"{path or 'self'}.S")
    for role, frame, space in (("A", A, layer.domain), ("S", S, layer.codomain)):
        if role == "A" and isinstance(layer, Embedding):
            continue  # tokens, which have no frames
        if frame is not None and (frame.members, frame.members * frame.dim) != (members, space.dim):
            raise InvalidFrames(
                f"InvalidFrames in reparametrize_layer: '{path or 'self'}.{role}' is a space of {members} members of "
                f"dimension {space.dim // members}, got {frame}."
            )
    bias = isinstance(layer, EvaluationLayer) and layer.weight.shape[-1] > layer.feature_space.dim
    return BlockMove(A, S, family, taps, True, bias, taps_first=True)


def moved_leaf(layer: ParametricLayer, path: str, frames: ByKey) -> Layer:
    move = leaf_move(layer, path, frames)
    A, S = move.A, move.S
    if A is None and S is None:
        return layer
    name, twin = path or "self", copy(layer)
    trained = isinstance(layer, Embedding) or move.bias
    frozen = layer.frozen_bias if isinstance(layer, EvaluationLayer) else None
    if A is not None and (isinstance(layer, Embedding) or (not A.linear_only and not trained)):
        reason = "tokens are a finite set" if isinstance(layer, Embedding) else "no trained bias absorbs a translation"
        raise NoTwin(f"not applicable: a frame on '{name}.A': no twin in the model class. {name!r}: {reason}.")
    if S is not None and not S.linear_only and not trained and frozen is None:
        raise NoTwin(f"not applicable: a translation of '{name}.S': no twin in the model class. {name!r} has no bias.")
    data = move.apply(layer.weight)
    shift = None if S is None else S.shift.to(data).reshape(data.shape[:-1])
    if shift is not None and isinstance(layer, Embedding):
        data = data + shift[..., None]
    elif shift is not None and move.bias:
        data = torch.cat([data[..., :-1], data[..., -1:] + shift[..., None]], -1)
    twin.weight = data
    if frozen is not None and S is not None and isinstance(twin, EvaluationLayer) and shift is not None:
        twin.frozen_bias = S.on_vectors(frozen.flatten()).reshape(frozen.shape) + shift.reshape(frozen.shape)
    into, out = layer.domain, layer.codomain
    parts: dict[str, Layer] = {}
    if A is not None:
        twin.domain = primed(into)
        parts["into the frame"] = FrameLayer(into, twin.domain, A)
        assert isinstance(twin, EvaluationLayer)
        twin.feature_space = primed(twin.feature_space)
        twin.input_space = moved_space(layer.input_space, twin.feature_space)
        if isinstance(twin, PatchLayer):
            twin.padding = A(twin.padding)
    parts[""] = twin
    if S is not None:
        twin.codomain = primed(out)
        base = layer.output_space.of if isinstance(layer.output_space, Family) else layer.output_space
        twin.output_space = moved_space(layer.output_space, AffineSpace(f"{base.bases[0]}'", base.dim))
        parts["out of the frame"] = FrameLayer(twin.codomain, out, S.inverse())
    return Compose(parts)


def _within(layer: Layer, path: str, frames: ByKey) -> Layer:
    if isinstance(layer, ParametricLayer):
        return moved_leaf(layer, path, frames)
    twin = copy(layer)
    if isinstance(twin, Composite):
        twin.parts = {name: _within(part, join_path(path, name), frames) for name, part in twin.parts.items()}
    elif isinstance(twin, Recurrent):
        twin.cell = _within(twin.cell, path, frames)
    return twin


def leaves_of(layer: Layer, path: str = "") -> dict[str, ParametricLayer]:
    """The layers with parameters of their own, by path."""
    if isinstance(layer, ParametricLayer):
        return {path: layer}
    if isinstance(layer, Recurrent):
        return leaves_of(layer.cell, path)
    parts = layer.parts if isinstance(layer, Composite) else {}
    return {at: leaf for name, part in parts.items() for at, leaf in leaves_of(part, join_path(path, name)).items()}


def reparametrize_layer(layer: Layer, frames: Mapping[str, Frame]) -> Layer:
    """The twin of a native layer: the same map, its parameters in other frames.

    Keys are "fc1.A" and "fc1.S" for the layer at the path "fc1" ("self" for a lone one), "input" and "output" for the
    domain and the codomain of the whole. Paths of blocks are as they were. Padding points move along.
    """
    known = {f"{path or 'self'}.{role}" for path in leaves_of(layer) for role in "AS"} | {"input", "output"}
    if strange := sorted(set(frames) - known):
        raise InvalidFrames(
            f"InvalidFrames in reparametrize_layer: there is no space {strange[0]!r}; there are "
            f"{', '.join(sorted(known))}."
        )
    parts = {"": _within(layer, "", frames)}
    if "input" in frames:
        entry = FrameLayer(primed(layer.domain), layer.domain, frames["input"].inverse())
        parts = {"entry": entry, **parts}
    if "output" in frames:
        parts["exit"] = FrameLayer(layer.codomain, primed(layer.codomain), frames["output"])
    return parts[""] if len(parts) == 1 else Compose(parts)


def layer_tangent_map(layer: Layer, twin: Layer, frames: Mapping[str, Frame]) -> LinearMap:
    """From the tangent space of a native layer to that of its twin: D' = Φ D α̂⁻¹ on every block."""
    moves = {path: leaf_move(leaf, path, frames) for path, leaf in leaves_of(layer).items()}
    domain, codomain = layer.tangent_space, twin.tangent_space
    assert domain is not None and codomain is not None
    if isinstance(domain, DirectSum) and isinstance(codomain, DirectSum):
        return sum_map(domain, codomain, moves)
    (move,) = moves.values()

    def acting(how: str) -> object:
        return lambda x: getattr(move, how)(x.unflatten(-1, domain.shape)).flatten(x.ndim - 1)

    return LinearMap.from_functions(domain, codomain, acting("apply"), acting("transpose"), "twin", natural=True)  # type: ignore[arg-type]
