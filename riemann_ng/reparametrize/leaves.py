"""What a frame can do to one kind of layer: where its spaces lie in tensors, and what it does to the parameters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ..networks.blocks import Reader
from ..networks.expansions import BilinearReader, bilinear_parts
from ..networks.readers import (
    ConvolutionReader,
    EmbeddingReader,
    LayerNormReader,
    LinearReader,
    ScaleShiftReader,
    TransposedConvolutionReader,
)
from ..spaces import Family
from .frame import Frame
from .opened import Scale


@dataclass(frozen=True)
class Place:
    """Where the components of a space stand in a tensor: `rank` axes from `axis` on; None is all that follow."""

    axis: int
    rank: int | None = 1

    def apply(self, frame: Frame, x: Tensor) -> Tensor:
        """Points, moved."""
        return self._along(frame, x, Frame.__call__)

    def pulled(self, frame: Frame, x: Tensor) -> Tensor:
        return self._along(frame, x, Frame.pulled)

    def on_vectors(self, frame: Frame, x: Tensor) -> Tensor:
        return self._along(frame, x, Frame.on_vectors)

    def _along(self, frame: Frame, x: Tensor, how: Callable[[Frame, Tensor], Tensor]) -> Tensor:
        start = self.axis % x.ndim
        stop = x.ndim if self.rank is None else start + self.rank
        y = x.flatten(start, stop - 1) if stop - start > 1 else x
        y = how(frame, y.movedim(start, -1)).movedim(-1, start).contiguous()
        return y.unflatten(start, x.shape[start:stop]) if stop - start > 1 else y

    def size(self, x: Tensor) -> int:
        start = self.axis % x.ndim
        return x.shape[start:].numel() if self.rank is None else prod(x.shape[start : start + self.rank])


@dataclass(frozen=True)
class Slot:
    """One space that frames can move, with the reasons why some of them cannot: "" where they can.

    `members` and `dim` are of a frame there; `place` says where points of the space stand in tensors.
    """

    key: str
    path: str
    role: str
    dim: int
    members: int = 1
    place: Place | None = None
    no_linear: str = ""
    no_translations: str = ""


class Leaf:
    """A layer of the network, by the reader that reads all of its parameters, trained or not.

    `modules` are the paths at which it is held, `elsewhere` the parameters (by id) that other layers hold too.
    """

    def __init__(self, path: str, reader: Reader, modules: tuple[str, ...], elsewhere: Collection[int] = ()):
        m = reader.module
        self.path, self.trained, self.at, self.module, self.elsewhere = path, reader, modules, m, elsewhere
        own = [k for k in reader.parameters if (p := m._parameters.get(k)) is not None and id(p) not in elsewhere]
        self.computed = "weight" not in own and not isinstance(reader, ScaleShiftReader)
        if self.computed:
            self.reader = reader
        elif isinstance(reader, BilinearReader):
            self.reader = bilinear_parts(m, reader.name, own)[""]
        else:
            self.reader = type(reader)(m, reader.name, own)
        self.has_bias = self.reader.bias
        into, out = self.reader.input_space, self.reader.output_space
        self.family = isinstance(out, Family)
        self.members = out.members if isinstance(out, Family) else 1
        one = out.of if isinstance(out, Family) else out
        self.outputs, self.taps = one.dim, 1
        columns = (into.of if isinstance(into, Family) else into).dim - self.has_bias
        if isinstance(self.reader, ConvolutionReader):
            self.taps = prod(m.kernel_size)  # type: ignore[arg-type]
        self.features = 1 if self.computed else columns // self.taps
        self.slots = (self._input_slot(), self._output_slot())

    def _input_slot(self) -> Slot:
        r, key = self.reader, f"{self.path}.A"
        kind = type(self.module).__name__
        linear = shift = ""
        if self.computed:
            linear = shift = (
                f"the weight of '{self.path}' is tied with another layer's, or computed by a parametrization"
            )
        elif isinstance(r, EmbeddingReader):
            linear = shift = f"'{self.path}' takes tokens, a finite set: nothing moves them"
        elif isinstance(r, BilinearReader):
            linear = shift = f"'{self.path}' is bilinear: a product of two inputs is no point of an affine space"
        elif not isinstance(r, (LinearReader, ConvolutionReader, ScaleShiftReader)):
            linear = shift = f"nothing is known of where the input of a {kind} has its components"
        elif not self.has_bias:
            shift = (
                f"'{self.path}' is a {kind} without bias, which nothing can absorb a translation of its input. "
                f"Give it a bias, or move it by linear maps"
            )
        elif self.trained.weight and not self.trained.bias:
            shift = (
                f"the bias of '{self.path}' is frozen, and would have to move with the weight to absorb a translation "
                f"of the input. Train the bias, or move it by linear maps"
            )
        elif isinstance(r, TransposedConvolutionReader):
            shift = (
                f"'{self.path}' is a {kind}, where zeros stand for the inputs that do not reach an output: marked "
                f"points that torch cannot move"
            )
        return Slot(key, self.path, "A", self.features, self.members, self._input_place(), linear, shift)

    def _output_slot(self) -> Slot:
        r, linear, shift = self.reader, "", ""
        known = (LinearReader, ConvolutionReader, ScaleShiftReader, EmbeddingReader)
        kind = type(self.module).__name__
        if not isinstance(r, known):
            linear = shift = f"nothing is known of where the output of a {kind} has its components"
        elif self.computed:
            linear = self.not_its_own
        elif isinstance(r, EmbeddingReader):
            pass
        elif not self.has_bias:
            shift = (
                f"'{self.path}' is a {kind} without bias, which nothing can add a translation to. "
                f"Give it a bias, or move it by linear maps"
            )
        return Slot(f"{self.path}.S", self.path, "S", self.outputs, self.members, self._output_place(), linear, shift)

    def _input_place(self) -> Place | None:
        return None if isinstance(self.reader, (EmbeddingReader, BilinearReader)) else self._place()

    def _output_place(self) -> Place:
        return Place(-1) if isinstance(self.reader, EmbeddingReader) else self._place()

    def _place(self) -> Place:
        m = self.module
        if isinstance(self.reader, ConvolutionReader):
            return Place(-1 - len(m.kernel_size))  # type: ignore[arg-type]
        if isinstance(m, Scale):
            return Place(-m.trailing, m.trailing) if m.trailing else Place(1)
        if isinstance(self.reader, LayerNormReader):
            rank = len(m.normalized_shape)  # type: ignore[arg-type]
            return Place(-rank, rank)
        return Place(1) if isinstance(self.reader, ScaleShiftReader) else Place(-1)

    @property
    def not_its_own(self) -> str:
        return f"the weight of '{self.path}' is tied with another layer's, or computed by a parametrization"

    @property
    def normalizes(self) -> bool:
        """Whether it is a normalization, whose scale acts on numbers that are made inside."""
        return isinstance(self.reader, ScaleShiftReader) and not isinstance(self.module, Scale)

    def move_parameters(self, A: Frame | None, S: Frame | None) -> None:
        """The parameters of the same map in other frames, in place: W' = Φ W Ω⁻¹, and a bias takes up γ and τ."""
        own = {k: p for k, p in self.module._parameters.items() if p is not None and k in self.reader.parameters}
        if self.computed:
            if S is not None:
                own["bias"].data.add_(S.shift.to(own["bias"]).flatten())
            return
        move = BlockMove(A, S, self.family, self.taps, self.reader.weight, self.has_bias)
        data = move.apply(self.reader.from_parameters({k: own[k].detach() for k in self.reader.trained}))
        if S is not None and not S.linear_only:
            shift = S.shift_there.to(data).reshape(data.shape[:-1])
            if isinstance(self.reader, EmbeddingReader):
                data = data + shift[..., None]
            else:
                data[..., -1] += shift
        for local, moved in self.reader.to_parameters(data).items():
            own[local].data.copy_(moved.reshape(own[local].shape))

    def on_tangents(self, frames: Mapping[str, Frame]) -> BlockMove:
        """What frames do to tangents of the block, those of the parameters that are trained."""
        A, S = frames.get(f"{self.path}.A"), frames.get(f"{self.path}.S")
        t = self.trained
        return BlockMove(A, S, self.family, self.taps, t.weight, t.bias)


@dataclass(frozen=True)
class BlockMove:
    """D' = Φ D α̂⁻¹ on the data of a block, (*batch, [members], outputs, features · taps + 1), and its transpose.

    Where only the weight is trained the last column is missing, where only the bias, the others are.
    """

    A: Frame | None
    S: Frame | None
    family: bool
    taps: int
    weight: bool
    bias: bool
    taps_first: bool = False

    def apply(self, data: Tensor) -> Tensor:
        W, b = self._split(data)
        W, b = self._left(W, False), self._left(b, False)
        if self.A is not None and self.weight:
            W = torch.einsum("...moit,mij->...mojt", W, torch.linalg.inv(self.A.linear).to(W))
            if self.bias:
                b = b - torch.einsum("...moit,mi->...mo", W, self.A.shift.to(W))[..., None, None]
        if (order := self.order) is not None:
            W, b = W[..., order, :, :, :], b[..., order, :, :, :]
        return self._join(W, b, data)

    @property
    def order(self) -> Tensor | None:
        """How the members change places, the same on both sides."""
        return None if self.S is None else self.S.order

    def transpose(self, data: Tensor) -> Tensor:
        """Covectors on where `apply` leads to, pulled back."""
        W, b = self._split(data)
        if (order := self.order) is not None:
            W, b = W[..., order.argsort(), :, :, :], b[..., order.argsort(), :, :, :]
        if self.A is not None and self.weight:
            if self.bias:
                W = W - b * self.A.shift.to(W)[:, None, :, None]
            W = torch.einsum("...moit,mji->...mojt", W, torch.linalg.inv(self.A.linear).to(W))
        return self._join(self._left(W, True), self._left(b, True), data)

    def inverse(self) -> BlockMove:
        A, S = (None if f is None else f.inverse() for f in (self.A, self.S))
        return BlockMove(A, S, self.family, self.taps, self.weight, self.bias, self.taps_first)

    def _left(self, x: Tensor, transposed: bool) -> Tensor:
        if self.S is None:
            return x
        linear = self.S.linear.to(x)
        return torch.einsum("mpo,...moit->...mpit", linear.mT if transposed else linear, x)

    def _split(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """(*batch, members, outputs, features, taps) and (*batch, members, outputs, 1, 1)."""
        each = data if self.family else data.unsqueeze(-3)
        columns = each[..., : each.shape[-1] - self.bias] if self.weight else each[..., :0]
        W = columns[..., None]
        if self.weight and self.taps_first:
            W = columns.unflatten(-1, (self.taps, -1)).mT
        elif self.weight:
            W = columns.unflatten(-1, (-1, self.taps))
        return W, (each[..., -1:] if self.bias else each[..., :0])[..., None]

    def _join(self, W: Tensor, b: Tensor, like: Tensor) -> Tensor:
        parts = [(W.mT if self.taps_first else W).flatten(-2)] * self.weight + [b[..., 0]] * self.bias
        return torch.cat(parts, -1).reshape(like.shape)
