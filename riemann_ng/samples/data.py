"""The kinds of data that a sample can hold, apart from a plain tensor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidSetting
from .measures import Counts
from .products import bordered, gram, grams, grams_into, onto, with_borders


@dataclass(frozen=True, eq=False)
class OneHot:
    """Indices (examples, draws, sites) that stand for the basis elements of a space of that many classes."""

    indices: Tensor
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True, eq=False)
class Chunked:
    """Data too large to stack: `chunks()` yields tensors that follow each other along `axis`, 0 examples or 1 draws.

    `counts` is (examples, draws, sites) of the whole.
    """

    chunks: Callable[[], Iterator[Tensor]]
    counts: Counts
    axis: int = 0
    like: Tensor | None = None
    """A tensor of their dtype and device; without, the first chunk is made to find out."""

    def __post_init__(self) -> None:
        if self.axis not in (0, 1):
            raise InvalidSetting(
                f"InvalidSetting in Chunked: chunks follow each other along examples, axis=0, or draws, axis=1; "
                f"got axis={self.axis!r}."
            )


class Compact(ABC):
    """Data kept smaller than its elements, which knows their second moment without making them."""

    counts: Counts
    members: int = 1
    """Of how many members of a family each element consists."""
    axis: int = 0
    dear: bool = False
    """Whether the elements cost much more than their second moment: forms are then solved from its matrix."""

    @abstractmethod
    def tensor(self) -> Tensor:
        """What is kept."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The elements, (examples, draws, sites, *space.shape)."""

    def chunks(self) -> Iterator[Tensor]:
        """The elements in pieces along `axis`, as those of `Chunked`."""
        yield self.dense()

    @abstractmethod
    def moments(self, weight: float) -> Tensor:
        """weight Σ x xᵀ for every member, (members, d, d)."""

    def moments_onto(self, base: Tensor, kept: float, weight: float) -> Tensor:
        """kept base + moments(weight), a new tensor. Above the diagonals there may be anything, in the base too."""
        return onto(self.moments(weight), base, kept)

    def moments_into(self, base: Tensor, kept: float, weight: float) -> None:
        """As `moments_onto`, bit for bit, over the base itself: whether others hold it changes no number."""
        base.copy_(self.moments_onto(base, kept, weight))

    def squares(self) -> Tensor:
        """Of the size of Σ |x|²: a number that is finite only where the second moment is."""
        return sum_of_squares(self.dense())


class WithOne(Compact):
    """Points of an affine space, (examples, draws, sites, *[members], d), as elements of its hull: (a, 1)."""

    def __init__(self, points: Tensor):
        self.points = points
        self.counts: Counts = tuple(points.shape[:3])  # type: ignore[assignment]
        self.members = points.shape[3] if points.ndim == 5 else 1

    def tensor(self) -> Tensor:
        return self.points

    def dense(self) -> Tensor:
        return torch.cat([self.points, self.points.new_ones(*self.points.shape[:-1], 1)], dim=-1)

    def moments(self, weight: float) -> Tensor:
        return self._moments(weight, None, 0.0)

    def moments_onto(self, base: Tensor, kept: float, weight: float) -> Tensor:
        return self._moments(weight, base, kept)

    def moments_into(self, base: Tensor, kept: float, weight: float) -> None:
        if self.members > 1:
            return super().moments_into(base, kept, weight)
        x = self.points.reshape(*self.counts, self.members, -1)
        total, mass = x.flatten(0, 2).sum(0) * weight, weight * x.shape[:3].numel()
        grams_into(x, weight, base[:, :-1, :-1], kept)
        bordered(base, torch.add(total, base[:, -1, :-1], alpha=kept), mass + kept * base[:, -1, -1])

    def squares(self) -> Tensor:
        return sum_of_squares(self.points)

    def _moments(self, weight: float, base: Tensor | None, kept: float) -> Tensor:
        x = self.points.reshape(*self.counts, self.members, -1)
        total, mass = x.flatten(0, 2).sum(0) * weight, weight * x.shape[:3].numel()
        if self.members > 1 or x.requires_grad:
            return onto(with_borders(grams(x, weight), total, mass), base, kept)
        d = x.shape[-1]
        out = x.new_empty(1, d + 1, d + 1)
        inner = None if base is None else base[0, :d, :d]
        gram(x.flatten(0, 3), weight, out[0, :d, :d], inner, kept)
        if base is None:
            return bordered(out, total, mass)
        return bordered(out, torch.add(total, base[:, -1, :-1], alpha=kept), mass + kept * base[:, -1, -1])


class Multiple(Compact):
    """Elements (examples, draws, sites, *[members], d) times one number, multiplied when they are read."""

    def __init__(self, factor: float, elements: Tensor, members: int = 1):
        self.factor, self.elements, self.members = factor, elements, members
        self.counts: Counts = tuple(elements.shape[:3])  # type: ignore[assignment]

    def tensor(self) -> Tensor:
        return self.elements

    def dense(self) -> Tensor:
        return self.elements * self.factor

    def moments(self, weight: float) -> Tensor:
        return grams(self._by_member(), weight * self.factor**2)

    def moments_onto(self, base: Tensor, kept: float, weight: float) -> Tensor:
        return grams(self._by_member(), weight * self.factor**2, base, kept)

    def moments_into(self, base: Tensor, kept: float, weight: float) -> None:
        grams_into(self._by_member(), weight * self.factor**2, base, kept)

    def squares(self) -> Tensor:
        return sum_of_squares(self.elements) * self.factor**2

    def _by_member(self) -> Tensor:
        return self.elements.reshape(*self.counts, self.members, -1)


def sum_of_squares(x: Tensor) -> Tensor:
    x = x.detach()
    if x.is_contiguous():
        flat = x.view(-1)
        return torch.dot(flat, flat)
    return torch.linalg.vector_norm(x).square()


Data = Tensor | OneHot | Chunked | Compact
