"""Vector spaces: named ones, and what duals, products, sums and families make of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

from ..errors import InvalidSpace, SpaceMismatch
from ..symmetry import LOSS


def check_name_and_dim(kind: str, name: object, dim: object) -> None:
    if not isinstance(name, str) or not name:
        raise InvalidSpace(
            f"InvalidSpace in {kind}: a space is known by its name, got {name!r}. Give a non-empty string."
        )
    if name == LOSS:
        raise InvalidSpace(f"InvalidSpace in {kind}: {name!r} is kept for the scale of the loss. Name it otherwise.")
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
        raise InvalidSpace(
            f"InvalidSpace in {kind}({name!r}, {dim!r}): the dimension must be a positive integer. "
            f"Leave a zero-dimensional space out; the one-point affine space is OnePoint."
        )


def check_vector_space(call: str, space: object) -> VectorSpace:
    """`space`, where a vector space belongs, or the reason why not."""
    if not isinstance(space, VectorSpace):
        raise SpaceMismatch(
            f"SpaceMismatch in {call}: expected a vector space, got {space!r}. "
            f"An affine space takes part through its .translations or its .hull."
        )
    return space


def _dual_pair(space: VectorSpace, dual: VectorSpace) -> VectorSpace:
    dual.__dict__["dual"] = space  # the dual's cached dual: comparing spaces is then comparing identities
    return dual


class VectorSpace(ABC):
    """A finite-dimensional real vector space.

    `dim` is its dimension, `shape` the shape of the components of one element (`prod(shape) == dim`), `dual` its dual,
    `bases` the names of the spaces it is built from: what a change of frame acts on.
    """

    @property
    @abstractmethod
    def dim(self) -> int: ...

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.dim,)

    @property
    @abstractmethod
    def dual(self) -> VectorSpace: ...

    @property
    def made_of(self) -> tuple[VectorSpace, ...]:
        return ()

    @cached_property
    def bases(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for V in self.made_of for name in V.bases))

    @property
    def starred(self) -> bool:
        """Whether elements are called covectors: whether the first space it is made of is a dual."""
        return self.made_of[0].starred if self.made_of else False

    @property
    def factors(self) -> tuple[VectorSpace, ...]:
        """The factors of a tensor product; a space that is none is its own only factor."""
        return (self,)

    @property
    def levels(self) -> tuple[int, ...]:
        """The number of members of a family, and of each member that is a family again; () of other spaces."""
        return ()

    def __mul__(self, other: VectorSpace) -> VectorSpace:
        return tensor_product(self, other) if isinstance(other, VectorSpace) else NotImplemented

    def __add__(self, other: VectorSpace) -> DirectSum:
        if not isinstance(other, VectorSpace):
            return NotImplemented
        parts: list[tuple[str, VectorSpace]] = []
        for space in (self, other):
            parts += space.parts if isinstance(space, DirectSum) else [(str(space), space)]
        return DirectSum(parts)


class Atom(VectorSpace):
    """A space that is no product, sum or family: it has a base of its own, and its dual is a new space."""

    @cached_property
    def dual(self) -> VectorSpace:
        return Dual(self)


@dataclass(frozen=True)
class Space(Atom):
    """A vector space known by its name: `Space("V", 3)`."""

    name: str
    dim: int = 0

    def __post_init__(self) -> None:
        check_name_and_dim("Space", self.name, self.dim)

    @cached_property
    def bases(self) -> tuple[str, ...]:
        return (self.name,)

    def __repr__(self) -> str:
        return f"Space({self.name!r}, {self.dim})"

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Derived(Atom):
    """A space that a computation chose coordinates for: classes modulo a kernel, an orthonormal frame `of` a space.

    No change of frame acts on it but through the space it is made of, and what that does to its coordinates is not
    known: a constant on it names all of that space's. Where they are known `up_to_rotation`, a Euclidean form is none.
    """

    name: str
    of: VectorSpace
    dim: int = 0
    up_to_rotation: bool = False

    def __post_init__(self) -> None:
        check_name_and_dim("Derived", self.name, self.dim)

    @cached_property
    def bases(self) -> tuple[str, ...]:
        return self.of.bases

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Dual(VectorSpace):
    """The dual of a named space, a space of translations or a hull; other duals are built from these."""

    of: VectorSpace

    @property
    def dim(self) -> int:
        return self.of.dim

    @property
    def dual(self) -> VectorSpace:
        return self.of

    @property
    def made_of(self) -> tuple[VectorSpace, ...]:
        return (self.of,)

    @property
    def starred(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"{self.of!r}.dual"

    def __str__(self) -> str:
        return f"{self.of}*"


@dataclass(frozen=True)
class Product(VectorSpace):
    """A tensor product. Write `V * W`; products of products are flat."""

    of: tuple[VectorSpace, ...]

    @cached_property
    def dim(self) -> int:
        return prod(V.dim for V in self.of)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return sum((V.shape for V in self.of), ())

    @cached_property
    def dual(self) -> VectorSpace:
        return _dual_pair(self, Product(tuple(V.dual for V in self.of)))

    @property
    def made_of(self) -> tuple[VectorSpace, ...]:
        return self.of

    factors = made_of

    def __repr__(self) -> str:
        return " * ".join(f"({V!r})" if isinstance(V, DirectSum) else repr(V) for V in self.of)

    def __str__(self) -> str:
        first, last = self.of[0], self.of[-1]
        if len(self.of) == 2 and isinstance(last, Dual) and not isinstance(first, (Dual, DirectSum)):
            return f"{first} ← {last.of}"
        if len(self.of) == 2 and isinstance(first, Dual) and not isinstance(last, (Dual, DirectSum)):
            return f"({self.dual})*"
        return " ⊗ ".join(f"({V})" if isinstance(V, DirectSum) else str(V) for V in self.of)


@dataclass(frozen=True, init=False)
class DirectSum(VectorSpace):
    """A sum of named summands: `DirectSum({"fc1": V, "fc2": W})`, or `V + W` named by the spaces themselves.

    An element's components are those of the summands, flattened, one after the other.
    """

    parts: tuple[tuple[str, VectorSpace], ...]

    def __init__(self, summands: Mapping[str, VectorSpace] | list[tuple[str, VectorSpace]]):
        parts = tuple(summands.items()) if isinstance(summands, Mapping) else tuple(summands)
        names = [name for name, _ in parts]
        if not parts:
            raise InvalidSpace("InvalidSpace in DirectSum: a sum of none has dimension 0. Give at least one summand.")
        for name, space in parts:
            if not isinstance(name, str) or not name or not isinstance(space, VectorSpace):
                raise InvalidSpace(
                    f"InvalidSpace in DirectSum: expected a name and a vector space, got {name!r}: {space!r}. "
                    f"An affine space takes part through its .translations or its .hull."
                )
            if names.count(name) > 1:
                raise InvalidSpace(
                    f"InvalidSpace in DirectSum: two summands are named {name!r}. "
                    f"Name them apart with DirectSum({{...}}), or use Family(V, m) for m copies of one space."
                )
        object.__setattr__(self, "parts", parts)

    @cached_property
    def dim(self) -> int:
        return sum(V.dim for _, V in self.parts)

    @cached_property
    def dual(self) -> VectorSpace:
        return _dual_pair(self, DirectSum([(name, V.dual) for name, V in self.parts]))

    @property
    def made_of(self) -> tuple[VectorSpace, ...]:
        return tuple(V for _, V in self.parts)

    @cached_property
    def summands(self) -> dict[str, VectorSpace]:
        return dict(self.parts)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each summand's components stand."""
        slices, start = {}, 0
        for name, V in self.parts:
            slices[name] = slice(start, start + V.dim)
            start += V.dim
        return slices

    def __getitem__(self, name: str) -> VectorSpace:
        try:
            return self.summands[name]
        except KeyError:
            raise SpaceMismatch(
                f"SpaceMismatch: {self} has no summand {name!r}; it has {', '.join(map(repr, self.summands))}."
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.summands)

    def __repr__(self) -> str:
        return f"DirectSum({{{', '.join(f'{name!r}: {V!r}' for name, V in self.parts)}}})"

    def __str__(self) -> str:
        return " ⊕ ".join(f"({V})" if isinstance(V, (Product, DirectSum)) else str(V) for _, V in self.parts)


@dataclass(frozen=True)
class Family(VectorSpace):
    """`m` copies of one space, side by side and never mixed: groups of a convolution, heads, scale parameters.

    Products go member by member: `Family(V, m) * Family(W, m) == Family(V * W, m)` and `Family(V, m) * W ==
    Family(V * W, m)`. The members may be permuted, not combined; where they may be, use a `Product` or a `DirectSum`.
    """

    of: VectorSpace
    members: int

    def __post_init__(self) -> None:
        if not isinstance(self.of, VectorSpace):
            raise InvalidSpace(f"InvalidSpace in Family: expected a vector space, got {self.of!r}.")
        check_name_and_dim("Family", str(self.of), self.members)

    @property
    def dim(self) -> int:
        return self.members * self.of.dim

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.members, *self.of.shape)

    @property
    def levels(self) -> tuple[int, ...]:
        return (self.members, *self.of.levels)

    @cached_property
    def dual(self) -> VectorSpace:
        return _dual_pair(self, Family(self.of.dual, self.members))

    @property
    def made_of(self) -> tuple[VectorSpace, ...]:
        return (self.of,)

    def __repr__(self) -> str:
        return f"Family({self.of!r}, {self.members})"

    def __str__(self) -> str:
        return f"({self.of})^{self.members}"


def tensor_product(*spaces: VectorSpace) -> VectorSpace:
    """The tensor product, flat, and member by member where families take part."""
    families = [V for V in spaces if isinstance(V, Family)]
    if families:
        sizes = {V.members for V in families}
        if len(sizes) > 1:
            raise SpaceMismatch(
                f"SpaceMismatch in *: families multiply member by member, got {' and '.join(map(str, families))}. "
                f"Give them the same number of members."
            )
        members = (V.of if isinstance(V, Family) else V for V in spaces)
        return Family(tensor_product(*members), families[0].members)
    flat = tuple(factor for V in spaces for factor in V.factors)
    return flat[0] if len(flat) == 1 else Product(flat)


def Hom(V: VectorSpace, W: VectorSpace) -> VectorSpace:
    """The space of linear maps from V to W, which is `W * V.dual`."""
    return check_vector_space("Hom", W) * check_vector_space("Hom", V).dual
