"""The leaves of random expressions: moments and other data, which move, and constants, which do not; and maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from ..inner_products import Diagonal, Euclidean, Gram, InnerProduct, LowRank, second_moment
from ..linear_maps import LinearMap
from ..samples import Measure, OneHot, Sample
from ..spaces import DirectSum, Family, Hull, VectorSpace
from .draws import Draw
from .frames import TOKENS, A, Build, Frames, S, V


class Leaves(ABC):
    """The leaves of random expressions and the maps between; all choices and numbers come from a `Draw`."""

    def __init__(self, draw: Draw, depth: int = 3):
        self.draw, self.depth = draw, depth

    @abstractmethod
    def form(self, space: VectorSpace, depth: int) -> Build:
        """An expression on the space, of nodes so deep."""

    # Spaces

    def atom(self) -> VectorSpace:
        U = self.draw.one_of([A.hull.dual, A.hull.dual, A.translations, S.translations, S.translations, S.hull, V, V])
        return self.draw.one_of([U, U, U.dual])

    def space(self) -> VectorSpace:
        U, W = self.atom(), self.draw.one_of([self.atom(), self.atom(), TOKENS])
        sort = self.draw.integer(0, 9)
        if sort < 3:
            return U
        if sort < 7:
            return self.draw.one_of([U * W, W * U, S.translations * A.hull.dual])
        if sort < 9:
            return DirectSum({"x": U, "y": self.draw.one_of([W, W, A.translations * W])})
        return Family(self.draw.one_of([U, U * TOKENS]), 2)

    # Leaves

    def rows(self, space: VectorSpace, n: int) -> Tensor:
        """Elements: points of a hull have height one, as in observed inputs."""
        x = self.draw.normal(n, space.dim)
        if isinstance(space, Hull):
            x[:, -1] = 1
        return x

    def moment(self, space: VectorSpace, any_kind: bool = True) -> Build:
        U = space.dual
        if U == TOKENS and any_kind and self.draw.integer(0, 1):
            hot = Sample(U, OneHot(torch.arange(12) % U.dim, torch.float64))
            return lambda frames: second_moment(hot)
        n, centred, draws = 2 * U.dim + 4, self.draw.integer(0, 3) == 0, self.draw.one_of([1, 2])
        x, weights = self.rows(U, n), self.draw.between(0.3, 2.0, n // 2, 2, 1)

        def build(frames: Frames) -> InnerProduct:
            moved = frames.moved(U, x)
            if centred and not isinstance(U, Hull):
                moved = moved - moved.mean(0)
            moved = moved.reshape(-1, 2, 1, *U.shape)
            measure = Measure.weighted(weights) if draws == 1 else Measure.monte_carlo()
            return second_moment(Sample(U, moved, measure), joint=isinstance(U, Family) and any_kind and draws == 1)

        return build

    def gram(self, space: VectorSpace) -> Build:
        of, batch = (space.of, [space.members]) if isinstance(space, Family) else (space, [])
        M, natural, name = self.draw.positive(of.dim, *batch), bool(self.draw.integer(0, 1)), self.draw.name("M")

        def build(frames: Frames) -> InnerProduct:
            matrix = frames.moved(of.dual, frames.moved(of.dual, M).mT) if natural else M
            return Gram(space, (matrix + matrix.mT) / 2, name=name, natural=natural)

        return build

    def low_rank(self, space: VectorSpace) -> Build:
        rows, natural, name = self.rows(space.dual, space.dim + 2), bool(self.draw.integer(0, 1)), self.draw.name("R")

        def build(frames: Frames) -> InnerProduct:
            return LowRank(space, frames.moved(space.dual, rows) if natural else rows, name, natural)

        return build

    def constant(self, space: VectorSpace) -> Build:
        entries, name, sort = self.draw.between(0.3, 3.0, *space.shape), self.draw.name("D"), self.draw.integer(0, 5)
        if sort == 0:
            return lambda frames: Diagonal(space, entries, name)
        if sort < 3:
            return lambda frames: Diagonal(space.dual, entries, name).dual
        return lambda frames: Euclidean(space)

    def leaf(self, space: VectorSpace) -> Build:
        leaves = [self.moment, self.moment, self.gram, self.low_rank, self.constant, self.constant]
        return self.draw.one_of(leaves)(space)

    # Maps

    def map(self, domain: VectorSpace, codomain: VectorSpace) -> Callable[[Frames], LinearMap]:
        """A map without structure, of full rank: data that moves, or a constant."""
        tall = domain.dim <= codomain.dim
        matrix = self.draw.tall(codomain.dim, domain.dim) if tall else self.draw.tall(domain.dim, codomain.dim).mT
        natural, name = self.draw.integer(0, 2) > 0, self.draw.name("φ")

        def build(frames: Frames) -> LinearMap:
            if not natural:
                return LinearMap(domain, codomain, matrix, name)
            moved = frames.moved(codomain, frames.moved(domain.dual, matrix).mT).mT
            return LinearMap(domain, codomain, moved, name, natural=True)

        return build
