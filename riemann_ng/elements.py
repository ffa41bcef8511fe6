"""Vectors and covectors: a tensor that knows where it lives.

`Vector(V, t)` lives in V, `Covector(V, t)` lives in V.dual; a vector of V.dual is accepted wherever a covector of V is.
The only free product is the pairing `ξ(v)`. Every operation computes and checks the space of its result before it
touches a tensor; nothing is copied by wrapping. Leading dimensions of the tensor are a batch of elements.

An element of a direct sum keeps its tensor as it came: flat, or one block per summand. `.data` is flat, `.blocks` is by
name, `element[name]` is the tensor of one summand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, TypeVar
from weakref import WeakMethod

import torch
from torch import Tensor

from .errors import DtypeMismatch, ShapeMismatch, SpaceMismatch
from .spaces import DirectSum, VectorSpace, check_vector_space

Scalar = float | Tensor
E = TypeVar("E", bound="Element")
Layout = Callable[[dict[str, Tensor]], dict[str, Tensor]]
LAYOUTS: dict[VectorSpace, WeakMethod[Layout]] = {}
"""How the tangent spaces of networks lie in parameters: the network's business, which it registers while it lives."""


def register_layout(space: VectorSpace, layout: Layout) -> None:
    """`layout` is a method of the network: it takes blocks by path to tensors by parameter name."""
    for gone in [V for V, method in LAYOUTS.items() if method() is None]:
        del LAYOUTS[gone]
    LAYOUTS[space] = WeakMethod(layout)


def describe(data: object) -> str:
    """A tensor in an error message: `float32[256, 785]`."""
    if not isinstance(data, Tensor):
        return f"{type(data).__name__} {data!r}" if not isinstance(data, (list, tuple, dict)) else type(data).__name__
    return f"{str(data.dtype).removeprefix('torch.')}{list(data.shape)}"


def check_components(call: str, space: object, shape: tuple[int, ...], data: object) -> Tensor:
    """`data` as components of elements of `space`, or the reason why not."""
    if not isinstance(data, Tensor):
        raise ShapeMismatch(f"ShapeMismatch in {call}: expected a tensor [..., {_dims(shape)}], got {describe(data)}.")
    if not data.dtype.is_floating_point:
        raise DtypeMismatch(
            f"DtypeMismatch in {call}: components on {space} must be floating point, got {describe(data)}. "
            f"Convert with .to(torch.float32) or .to(torch.float64)."
        )
    if data.shape[data.ndim - len(shape) :] != shape or data.ndim < len(shape):
        raise ShapeMismatch(
            f"ShapeMismatch in {call}: an element of {space} has components [..., {_dims(shape)}], "
            f"got {describe(data)}. Reshape it, or check which space it belongs to; batch dimensions come first."
        )
    return data


def _dims(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


class Typed(Protocol):
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...


def check_same_kind(call: str, a: Typed, b: Typed) -> None:
    if a.dtype != b.dtype or a.device != b.device:
        raise DtypeMismatch(
            f"DtypeMismatch in {call}: {a} with {b}: {a.dtype} on {a.device}, {b.dtype} on {b.device}. "
            f"Bring one to the other with .to(...)."
        )


def broadcast(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return all(m == n or 1 in (m, n) for m, n in zip(reversed(shape), reversed(other), strict=False))


class Batched(Protocol):
    @property
    def batch(self) -> tuple[int, ...]: ...


def check_same_batch(call: str, a: Batched, b: Batched) -> None:
    if not broadcast(a.batch, b.batch):
        raise ShapeMismatch(
            f"ShapeMismatch in {call}: {a} with {b}: batches {list(a.batch)} and {list(b.batch)} do not broadcast. "
            f"Give them the same batch shape, or size one where one element meets many."
        )


class Element:
    """What vectors and covectors share: addition, scaling, pairing, components. Not for use by itself."""

    __slots__ = ("_blocks", "_data", "lives_in")
    kind: ClassVar[str]
    lives_in: VectorSpace
    _data: Tensor | None
    _blocks: dict[str, Tensor] | None

    def __init__(self, lives_in: VectorSpace, data: Tensor | Mapping[str, Tensor]):
        self.lives_in = check_vector_space(type(self).__name__, lives_in)
        if isinstance(data, Mapping):
            self._data, self._blocks = None, self._checked_blocks(data)
        else:
            self._data = check_components(type(self).__name__, self.space, lives_in.shape, data)
            self._blocks = None

    def _checked_blocks(self, data: Mapping[str, Tensor]) -> dict[str, Tensor]:
        call, space = type(self).__name__, self.lives_in
        if not isinstance(space, DirectSum) or set(space.summands) != set(data):
            raise SpaceMismatch(
                f"SpaceMismatch in {call}: got blocks {', '.join(map(repr, data))} for {self.space}. "
                f"Give a tensor, or one block for each summand of a DirectSum."
            )
        blocks = {name: check_components(call, V, V.shape, data[name]) for name, V in space.parts}
        batches = {block.shape[: block.ndim - len(space[name].shape)] for name, block in blocks.items()}
        if len(batches) > 1:
            raise ShapeMismatch(f"ShapeMismatch in {call}: blocks with different batch shapes {sorted(batches)}.")
        return blocks

    @classmethod
    def _of(cls: type[E], lives_in: VectorSpace, data: Tensor | None, blocks: dict[str, Tensor] | None = None) -> E:
        """Without validation, for results whose space is known."""
        element = object.__new__(cls)
        element.lives_in, element._data, element._blocks = lives_in, data, blocks
        return element

    @property
    def space(self) -> VectorSpace:
        """The space it is called an element of: V for a vector of V and for a covector on V."""
        return self.lives_in

    @property
    def data(self) -> Tensor:
        """The components, a tensor [*batch, *space.shape]."""
        if self._data is None:
            assert self._blocks is not None
            self._data = torch.cat([self._flat_block(name) for name in self._blocks], dim=-1)
        return self._data

    def _flat_block(self, name: str) -> Tensor:
        assert self._blocks is not None and isinstance(self.lives_in, DirectSum)
        block, V = self._blocks[name], self.lives_in.summands[name]
        return block.reshape(*block.shape[: block.ndim - len(V.shape)], V.dim)

    @property
    def components(self) -> Tensor:
        """The components flattened, [*batch, dim]: a view where the layout allows."""
        data, rank = self.data, len(self.lives_in.shape)
        return data if rank == 1 else data.reshape(*data.shape[: data.ndim - rank], self.lives_in.dim)

    @property
    def blocks(self) -> dict[str, Tensor]:
        """The tensor of each summand; views of `data` if the element came as one tensor."""
        if self._blocks is None:
            if not isinstance(self.lives_in, DirectSum):
                raise SpaceMismatch(f"SpaceMismatch in .blocks: {self.lives_in} is not a direct sum; use .data.")
            batch, data = self.batch, self.data
            slices = self.lives_in.slices
            self._blocks = {name: data[..., slices[name]].reshape(*batch, *V.shape) for name, V in self.lives_in.parts}
        return self._blocks

    def __getitem__(self, name: str) -> Tensor:
        if isinstance(self.lives_in, DirectSum) and name not in self.lives_in.summands:
            self.lives_in[name]  # raises, with the names there are
        return self.blocks[name]

    def component(self: E, name: str) -> E:
        """The part in one summand, as an element of it."""
        block = self[name]
        assert isinstance(self.lives_in, DirectSum)
        return type(self)._of(self.lives_in.summands[name], block)

    def _any(self) -> Tensor:
        return self._data if self._data is not None else next(iter(self.blocks.values()))

    @property
    def batch(self) -> tuple[int, ...]:
        if self._data is not None:
            return tuple(self._data.shape[: self._data.ndim - len(self.lives_in.shape)])
        assert self._blocks is not None and isinstance(self.lives_in, DirectSum)
        name, V = self.lives_in.parts[0]
        return tuple(self._blocks[name].shape[: self._blocks[name].ndim - len(V.shape)])

    @property
    def in_one_piece(self) -> bool:
        """Whether the components came as one tensor, not in blocks."""
        return self._data is not None

    @property
    def dtype(self) -> torch.dtype:
        return self._any().dtype

    @property
    def device(self) -> torch.device:
        return self._any().device

    def to_parameters(self) -> dict[str, Tensor]:
        """As tensors named and shaped like the trained parameters of the network whose tangent space this is."""
        registered = LAYOUTS.get(self.space)
        layout = None if registered is None else registered()
        if layout is None:
            raise SpaceMismatch(
                f"SpaceMismatch in to_parameters: {self.space} is no tangent space of a network. Use .data or .blocks."
            )
        return layout(self.blocks)

    def to(self: E, *args: Any, **kwargs: Any) -> E:
        """As `Tensor.to`."""
        return self._map(lambda t: t.to(*args, **kwargs))

    def detach(self: E) -> E:
        return self._map(Tensor.detach)

    def _map(self: E, f: Callable[[Tensor], Tensor]) -> E:
        if self._data is not None:
            return type(self)._of(self.lives_in, f(self._data))
        assert self._blocks is not None
        return type(self)._of(self.lives_in, None, {k: f(t) for k, t in self._blocks.items()})

    def _combine(self: E, other: object, alpha: float, sign: str) -> E:
        if not isinstance(other, Element):
            fix = "Wrap the tensor" if isinstance(other, (Tensor, int, float)) else "Write point + vector, or wrap it"
            text = f"SpaceMismatch in {sign}: {self} and {describe(other)}. {fix}: {type(self).__name__}(space, t)."
            raise SpaceMismatch(text)
        if self.lives_in is not other.lives_in and self.lives_in != other.lives_in:
            raise SpaceMismatch(self._why_not(other, sign))
        check_same_kind(sign, self, other)
        if self._any().shape != other._any().shape:
            check_same_batch(sign, self, other)
        if self._data is None and other._data is None:
            mine, its = self.blocks, other.blocks
            return type(self)._of(self.lives_in, None, {k: mine[k].add(its[k], alpha=alpha) for k in mine})
        return type(self)._of(self.lives_in, self.data.add(other.data, alpha=alpha))

    def _why_not(self, other: Element, sign: str) -> str:
        text = f"SpaceMismatch in {sign}: {self} and {other}. "
        if self.lives_in == other.lives_in.dual:
            return text + "A covector becomes a vector only through an inner product: use g.sharp(covector)."
        return text + "Only elements of one space add up; a LinearMap carries elements from one space to another."

    def __add__(self: E, other: object) -> E:
        return self._combine(other, 1.0, "+")

    def __sub__(self: E, other: object) -> E:
        return self._combine(other, -1.0, "-")

    def __neg__(self: E) -> E:
        return self._map(Tensor.neg)

    def __mul__(self: E, scalar: Scalar) -> E:
        if isinstance(scalar, Element):
            raise SpaceMismatch(
                f"SpaceMismatch in *: {self} times {scalar}. Pair a covector with a vector as ξ(v); "
                f"the tensor product is v.outer(w)."
            )
        if isinstance(scalar, Tensor) and scalar.ndim:  # one scalar for each element of the batch
            if not broadcast(self.batch, scalar.shape):
                raise ShapeMismatch(
                    f"ShapeMismatch in *: {self} times {describe(scalar)}. Give one scalar, or one for each element."
                )
            scalars = scalar.reshape(*scalar.shape, *(1,) * len(self.lives_in.shape))
            return type(self)._of(self.lives_in, self.data * scalars)
        return self._map(lambda t: t * scalar)

    __rmul__ = __mul__

    def __truediv__(self: E, scalar: Scalar) -> E:
        return self * (1.0 / scalar)

    def __call__(self, other: Element) -> Tensor:
        """The pairing of a covector with a vector; batches broadcast."""
        if not isinstance(other, Element):
            raise SpaceMismatch(f"SpaceMismatch in pairing: {self} and {describe(other)}. Wrap it: Vector(space, t).")
        dual = self.lives_in.dual
        if dual is not other.lives_in and dual != other.lives_in:
            raise SpaceMismatch(
                f"SpaceMismatch in pairing: {self} with {other}. A covector of V pairs with a vector of V alone; "
                f"two elements of one space need an inner product: g.inner(v, w)."
            )
        check_same_kind("pairing", self, other)
        if self._any().shape != other._any().shape:
            check_same_batch("pairing", self, other)
        if self._data is None and other._data is None:
            flat = [(self._flat_block(name), other._flat_block(name)) for name in self._blocks or ()]
            return torch.stack([torch.linalg.vecdot(x, y) for x, y in flat]).sum(0)
        return torch.linalg.vecdot(self.components, other.components)

    def outer(self, other: Element) -> Vector:
        """The tensor product, an element of the product of the two spaces: of families member by member."""
        if not isinstance(other, Element):
            raise SpaceMismatch(f"SpaceMismatch in outer: {self} and {describe(other)}. Wrap it: Vector(space, t).")
        product = self.lives_in * other.lives_in
        check_same_kind("outer", self, other)
        check_same_batch("outer", self, other)
        depth = len(product.levels)
        data = self._by_member(depth)[..., :, None] * other._by_member(depth)[..., None, :]
        return Vector._of(product, data.reshape(*data.shape[: data.ndim - depth - 2], *product.shape))

    def _by_member(self, depth: int) -> Tensor:
        """[*batch, *levels, dim of a member], with `depth` levels: those that the space lacks are of size one."""
        levels = self.lives_in.levels
        return self.components.reshape(*self.batch, *levels, *(1,) * (depth - len(levels)), -1)

    @classmethod
    def zeros(cls: type[E], space: VectorSpace, *batch: int, like: Tensor | None = None) -> E:
        """The zero of the space, of the dtype and on the device of `like`."""
        zeros = torch.zeros if like is None else like.new_zeros
        return cls(space, zeros((*batch, *check_vector_space(cls.__name__, space).shape)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.space!r}, {describe(self._any())})"

    def __str__(self) -> str:
        batch = f", batch {list(self.batch)}" if self.batch else ""
        return f"{self.kind} {self.space} ({str(self.dtype).removeprefix('torch.')}{list(self.lives_in.shape)}{batch})"


class Vector(Element):
    """An element of V: `Vector(V, tensor)`; the tensor has shape `[*batch, *V.shape]`."""

    __slots__ = ()
    kind = "a vector of"


class Covector(Element):
    """An element of V.dual, what differentiation returns: `Covector(V, tensor)`."""

    __slots__ = ()
    kind = "a covector on"

    def __init__(self, space: VectorSpace, data: Tensor | Mapping[str, Tensor]):
        super().__init__(check_vector_space("Covector", space).dual, data)

    @property
    def space(self) -> VectorSpace:
        return self.lives_in.dual


def element(lives_in: VectorSpace, data: Tensor) -> Vector | Covector:
    """Flat components as an element, called by the kind its space suggests; without validation."""
    shaped = data if len(lives_in.shape) == 1 else data.reshape(*data.shape[:-1], *lives_in.shape)
    return Covector._of(lives_in, shaped) if lives_in.starred else Vector._of(lives_in, shaped)
