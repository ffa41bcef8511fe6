"""Positive multiples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

from torch import Tensor

from ..elements import Scalar
from ..factorizations import Factorization, FrameFactor, ScaledFactor
from ..solvers import Structure
from ..solvers.stages import Stages
from ..spaces import VectorSpace
from ..symmetry import Symmetry
from .base import InnerProduct, State, kind
from .common import bracketed
from .diagonal import Euclidean
from .on_translations import EuclideanOnTranslations
from .staged import scaled_stages


@kind("multiple")
class Scaled(InnerProduct):
    """c * g for a positive number c; `c_symmetry`, or a function that finds it on request, is what c itself names."""

    def __init__(self, scalar: Scalar, of: InnerProduct, c_symmetry: Symmetry | Callable[[], Symmetry] | None = None):
        self.scalar, self.of, self.space, self._named = scalar, of, of.space, c_symmetry

    @cached_property
    def c_symmetry(self) -> Symmetry:
        return self._named() if callable(self._named) else self._named or Symmetry.natural()

    def flat_components(self, x: Tensor) -> Tensor:
        return self.of.flat_components(x) * self.scalar

    def tensors(self) -> Iterator[Tensor]:
        yield from self.of.tensors()
        if isinstance(self.scalar, Tensor):
            yield self.scalar

    def dense_matrix(self, like: Tensor | None = None) -> Tensor:
        return self.of.dense_matrix(like) * self.scalar

    def diagonal_entries(self, like: Tensor | None = None) -> Tensor:
        return self.of.diagonal_entries(like) * self.scalar

    @property
    def structure(self) -> Structure:
        return self.of.structure

    def direct_factorization(self, method: str) -> Factorization | None:
        inner = self.of.factorization() if method == "cholesky" and self.of.structure.direct is not None else None
        inner = inner or self.of.direct_factorization(method)
        return None if inner is None else ScaledFactor(self.scalar, inner)

    def rows(self) -> Tensor | None:
        rows = self.of.rows()
        return None if rows is None else rows * self.scalar**0.5

    def factors_on(self, spaces: tuple[VectorSpace, ...]) -> tuple[InnerProduct, ...] | None:
        factors = self.of.factors_on(spaces)
        return None if factors is None else (Scaled(self.scalar, factors[0], self.c_symmetry), *factors[1:])

    def rank(self, like: Tensor | None = None) -> int:
        return self.of.rank(like)

    def summands(self) -> dict[str, InnerProduct] | None:
        summands = self.of.summands()
        return None if summands is None else {k: Scaled(self.scalar, g, self.c_symmetry) for k, g in summands.items()}

    @property
    def by_members(self) -> bool:
        return self.of.by_members

    def dense_blocks(self) -> Tensor | None:
        blocks = self.of.dense_blocks()
        return None if blocks is None else blocks * self.scalar

    def stages(self) -> Stages | None:
        return scaled_stages(self.scalar, self.of)

    def pencil_with(self, reference: InnerProduct, like: Tensor | None = None) -> FrameFactor:
        inner = self.of.pencil_with(reference, like)
        return FrameFactor(inner.axes, inner.spectrum * self.scalar, inner.logdet_axes, inner.tolerance)

    @property
    def symmetry(self) -> Symmetry:
        return self.c_symmetry * self.of.symmetry

    def expression(self) -> str:
        c = self.scalar.detach() if isinstance(self.scalar, Tensor) else self.scalar
        return f"{float(c):.4g} * {bracketed(self.of.expression())}"

    def blended(self, other: InnerProduct, weight: float) -> InnerProduct:
        """The multiple of the blend with what the other is a multiple of, or with 1/c of it."""
        (c, mine, s), (d, theirs, t) = multiple_of(self), multiple_of(other)
        if type(mine) is type(theirs) and isinstance(mine, (Euclidean, EuclideanOnTranslations)):  # one on each space
            mean = (1 - weight) * c + weight * d
            known = not (isinstance(mean, Tensor) and mean.requires_grad)
            return Scaled(float(mean) if known else mean, mine, s if s == t else s + t)
        alike = isinstance(other, Scaled) and bool(other.scalar == self.scalar)
        rest = unscaled(other)[1] if alike else Scaled(1 / self.scalar, other, self.c_symmetry**-1)
        return Scaled(self.scalar, self.of.blend(rest, weight), self.c_symmetry)

    def own_state(self) -> State:
        c = self.scalar.detach() if isinstance(self.scalar, Tensor) else self.scalar
        return {"scalar": float(c), "of": self.of.state(), "symmetry": self.c_symmetry.to_state()}

    @classmethod
    def restore(cls, space: VectorSpace, state: State) -> Scaled:
        return cls(state["scalar"], InnerProduct.from_state(space, state["of"]), Symmetry.from_state(state["symmetry"]))


def unscaled(g: InnerProduct) -> tuple[Scalar, InnerProduct]:
    return (g.scalar, g.of) if isinstance(g, Scaled) else (1.0, g)


def multiple_of(g: InnerProduct) -> tuple[Scalar, InnerProduct, Symmetry]:
    """All of the number that a form is multiplied by, what is multiplied, and what the number names."""
    c: Scalar = 1.0
    symmetry = Symmetry.natural()
    while isinstance(g, Scaled):
        c, symmetry, g = c * g.scalar, symmetry * g.c_symmetry, g.of
    return c, g, symmetry
