"""How the parameters of a torch module sit in typed spaces, and how its calls become samples.

A block is one summand of a network's tangent space: affine maps `S ← Â` whose data (dim S, dim A + 1) hold weight and
bias. At every use of the module, `dy = D a` for the features `a` of its input. A reader knows one type of module: its
spaces, the features, the cotangents, and the way between data and parameters. `register_layer` adds a user's type.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ..errors import UnsupportedLayer
from ..samples import Compact, OneHot
from ..spaces import AffineSpace, OnePoint, VectorSpace

Parameters = dict[str, Tensor]
Arrange = Callable[[Tensor], Tensor]
READERS: dict[type[nn.Module] | str, type[Reader]] = {}
R = TypeVar("R", bound="type[Reader]")
T = TypeVar("T")


class Reader(ABC):
    """One parametrized leaf, read as affine maps.

    `weight` and `bias` say which of the two is trained: with a bias the features carry a 1, a bias alone is a map of
    the one-point space. Tensors keep their leading dimensions here; which of them are examples is found out
    elsewhere.
    """

    parameters: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def __init__(self, module: nn.Module, name: str, trained: Collection[str]):
        self.rows: dict[str, slice] = {}  # which rows of its parameters a part of a fused module holds; else all
        self.module, self.name, self.trained = module, name, tuple(trained)
        self.weight, self.bias = "weight" in trained, "bias" in trained
        self.input_space, self.output_space = self.spaces()
        self.space: VectorSpace = self.output_space * self.input_space.dual

    @abstractmethod
    def spaces(self) -> tuple[VectorSpace, VectorSpace]:
        """Where the features live and where the values do."""

    def kept(self, x: Tensor) -> Tensor:
        """What of an input to keep at the time of a call: the input itself, unless the module's state matters."""
        return x

    def onward(self, x: Tensor, y: Tensor) -> Tensor:
        """The output as the forward goes on with it: detached where torch gives the parameters no gradient from it."""
        return y

    @abstractmethod
    def features(self, x: Tensor) -> Tensor | OneHot:
        """The features of an input: (*leading, sites, *input_space.shape)."""

    def compact(self, x: Tensor, n: int, arrange: Arrange) -> Compact | None:
        """The features of n examples kept smaller than they are, where that is known; must agree with `features`.

        `arrange` takes features (*leading, sites, *shape) to (n, 1, sites, *shape).
        """
        return None

    @abstractmethod
    def values(self, y: Tensor) -> Tensor:
        """Outputs, or cotangents of outputs, as (*leading, sites, *output_space.shape)."""

    @abstractmethod
    def leading(self, y: Tensor) -> int:
        """How many leading dimensions an output has before its sites."""

    @abstractmethod
    def to_parameters(self, data: Tensor) -> Parameters:
        """Data (*batch, *space.shape) as the module's own trained tensors."""

    @abstractmethod
    def from_parameters(self, tensors: Parameters) -> Tensor:
        """The inverse."""

    def affine(self, features: int, outputs: int) -> tuple[VectorSpace, VectorSpace]:
        """Spaces of `outputs` affine functions of `features` numbers, as far as they are trained."""
        A, S = AffineSpace(f"{self.name}.A", features), AffineSpace(f"{self.name}.S", outputs).translations
        if not self.weight:
            return OnePoint.hull, S
        return (A.hull if self.bias else A.translations), S

    def with_one(self, x: Tensor) -> Tensor:
        """Features with the 1 of the hull where there is a bias; the 1 alone where there is nothing else."""
        one = x.new_ones(*x.shape[:-1], 1)
        if not self.weight:
            return one
        return torch.cat([x, one], dim=-1) if self.bias else x

    def split(self, data: Tensor) -> Parameters:
        """Data (..., outputs, inputs) as weight (..., outputs, features) and bias (..., outputs)."""
        if not self.bias:
            return {"weight": data}
        bias = {"bias": data[..., -1]}
        return {"weight": data[..., :-1], **bias} if self.weight else bias

    def join(self, tensors: Parameters) -> Tensor:
        parts = [tensors["weight"]] if self.weight else []
        return torch.cat([*parts, tensors["bias"][..., None]], dim=-1) if self.bias else parts[0]


Record = Callable[[str, Tensor, Tensor], None]
"""Notes a use: the part of the module, the input of its affine map, the output."""
Expansion = Callable[[nn.Module, Record], Callable[..., Any]]
"""From a fused module, a forward that computes the same with its affine maps in the open."""


@dataclass(frozen=True)
class Fused:
    """How to read a module that holds several affine maps: a reader for each part, and a forward in the open.

    `parts` takes the module, the name of its spaces and its trained parameters; the part "" is the whole module. The
    forward reports each part, and also `children`: modules inside, by name, whose affine map is a part, although the
    fused module never calls them.
    """

    parts: Callable[[nn.Module, str, Collection[str]], dict[str, Reader]]
    expand: Expansion
    children: Mapping[str, str] = field(default_factory=dict)


FUSED: dict[type[nn.Module] | str, Fused] = {}


def within(path: str, part: str) -> str:
    """The path of a part of a module."""
    return ".".join(filter(None, (path, part)))


def register_layer(*types: type[nn.Module] | str) -> Callable[[R], R]:
    """Registers a reader for modules of exactly these types, and for subclasses that keep their forward.

    A type of a package that need not be installed is given by its full name, "package.module.Type".
    """

    def register(reader: R) -> R:
        READERS.update(dict.fromkeys(types, reader))
        return reader

    return register


def known_as(module: nn.Module, registry: Mapping[type[nn.Module] | str, T]) -> T | None:
    """The entry for a module's type, or for a base whose forward it has kept."""
    for cls in type(module).__mro__:
        if not issubclass(cls, nn.Module) or type(module).forward is not cls.forward:
            continue
        for key in (cls, f"{cls.__module__}.{cls.__qualname__}"):
            if key in registry:
                return registry[key]
    return None


def fused_as(module: nn.Module) -> Fused | None:
    """How to open a fused module; not one whose forward has been replaced."""
    return None if "forward" in vars(module) else known_as(module, FUSED)


def reading_of(module: nn.Module, name: str, trained: Collection[str]) -> tuple[dict[str, Reader], str]:
    """The readers of a leaf by part ("" is the whole), and the reason why a parameter has none."""
    reader, fused = known_as(module, READERS), fused_as(module)
    try:
        if reader is not None and (known := [local for local in trained if local in reader.parameters]):
            return {"": reader(module, name, known)}, f"no parameter that a {type(module).__name__} has of itself"
        if fused is not None and trained:
            return fused.parts(module, name, trained), f"in none of the affine maps of {type(module).__name__}"
    except UnsupportedLayer as error:
        return {}, str(error)
    return {}, f"{type(module).__name__} has no reader"
