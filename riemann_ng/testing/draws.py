"""Random spaces, matrices and elements for tests: well conditioned, and the same again for the same seed.

A `Draw` takes small integers (sizes, choices) from a function and numbers from a generator: Hypothesis supplies the
integers and shrinks them, `check_laws` supplies them from a seed. Nothing here needs Hypothesis.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ..elements import Covector, Vector
from ..linear_maps import LinearMap
from ..samples import Sample
from ..spaces import AffineSpace, DirectSum, Family, Space, VectorSpace

T = TypeVar("T")
Integers = Callable[[int, int], int]
"""An integer between two bounds, both included."""

CONDITION = 30.0
"""Bound on the condition number of every matrix drawn, so that tolerances can be stated in advance."""


class Draw:
    """Where a test gets its randomness from; `again(seed)` repeats the integers and changes the numbers."""

    def __init__(self, integers: Integers, seed: int, dtype: torch.dtype = torch.float64, device: str = "cpu"):
        self._integers, self.dtype, self.device = integers, dtype, device
        self.generator = torch.Generator().manual_seed(seed)
        self._made: list[int] = []
        self._names = 0

    @classmethod
    def seeded(cls, seed: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Draw:
        return cls(random.Random(seed).randint, seed, dtype, device)

    def again(self, seed: int) -> Draw:
        """A draw of the same sizes, choices and names, with other numbers."""
        made = iter(tuple(self._made))
        return Draw(lambda low, high: next(made), seed, self.dtype, self.device)

    # Integers and spaces

    def integer(self, low: int, high: int) -> int:
        self._made.append(self._integers(low, high))
        return self._made[-1]

    def one_of(self, choices: Sequence[T]) -> T:
        return choices[self.integer(0, len(choices) - 1)]

    def name(self, letter: str = "V") -> str:
        self._names += 1
        return f"{letter}{self._names}"

    def simple_space(self, low: int = 2, high: int = 4) -> VectorSpace:
        """A named space, translations, or a hull; or the dual of one."""
        dim, name = self.integer(low, high), self.name()
        affine = AffineSpace(name, dim)
        space = self.one_of([Space(name, dim), affine.translations, AffineSpace(name, max(dim - 1, 1)).hull])
        return self.one_of([space, space.dual])

    def space(self, high: int = 3) -> VectorSpace:
        """A space of any sort."""
        V, W = self.simple_space(1, high), self.simple_space(2, high)
        sorts = [V, V * W, DirectSum({"a": V, "b": W}), Family(V, 3), DirectSum({"a": V * W, "b": V}), Family(V * W, 2)]
        return self.one_of(sorts)

    # Numbers

    def normal(self, *shape: int) -> Tensor:
        """Drawn in float64, so that another dtype sees the same numbers rounded."""
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64).to(self.device, self.dtype)

    def between(self, low: float, high: float, *shape: int) -> Tensor:
        """Positive numbers, evenly distributed on the logarithmic scale."""
        u = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return (low * (high / low) ** u).to(self.device, self.dtype)

    def positive(self, d: int, *batch: int) -> Tensor:
        """Symmetric positive matrices (*batch, d, d) of condition at most CONDITION."""
        Q = torch.linalg.qr(self.normal(*batch, d, d).double())[0]
        spectrum = self.between(CONDITION**-0.5, CONDITION**0.5, *batch, d).double()
        M = (Q * spectrum[..., None, :]) @ Q.mT
        return ((M + M.mT) / 2).to(self.dtype)

    def invertible(self, d: int) -> Tensor:
        """A matrix of condition at most √CONDITION, neither symmetric nor orthogonal."""
        Q = torch.linalg.qr(self.normal(d, d).double())[0]
        P = torch.linalg.qr(self.normal(d, d).double())[0]
        return (Q * self.between(CONDITION**-0.25, CONDITION**0.25, d).double() @ P).to(self.dtype)

    def tall(self, n: int, d: int) -> Tensor:
        """A matrix (n, d), n >= d, of full rank d and of condition at most √CONDITION."""
        Q = torch.linalg.qr(self.normal(n, d).double())[0]
        return (Q @ self.invertible(d).double()).to(self.dtype)

    def isomorphism(self, V: VectorSpace) -> LinearMap:
        """An isomorphism onto V from a space of its own."""
        return LinearMap(Space(self.name("U"), V.dim), V, self.invertible(V.dim))

    def vector(self, V: VectorSpace, *batch: int) -> Vector:
        return Vector(V, self._away_from_zero(V, batch))

    def covector(self, V: VectorSpace, *batch: int) -> Covector:
        return Covector(V, self._away_from_zero(V, batch))

    def _away_from_zero(self, V: VectorSpace, batch: tuple[int, ...]) -> Tensor:
        x = self.normal(*batch, V.dim)
        return (x / x.norm(dim=-1, keepdim=True) * self.between(0.5, 2.0, *batch, 1)).reshape(*batch, *V.shape)

    def sample(self, V: VectorSpace) -> Sample:
        """A sample of V whose second moment is definite and well conditioned."""
        draws, sites = self.integer(1, 2), self.integer(1, 2)
        examples = V.dim + self.integer(1, 3)
        x = self.tall(examples * draws * sites, V.dim) * examples**0.5
        return Sample(V, x.reshape(examples, draws, sites, *V.shape), name=f"sample of {V}")
