"""Forms of few rows that are never written down, and their sums with definite ones."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..elements import Element, Scalar, Vector
from ..errors import DegenerateMetric
from ..factorizations import (
    LOST,
    DualFactor,
    Factorization,
    Indefinite,
    NotFinite,
    RankDeficient,
    least_by_dual,
    rounding_unit,
)
from ..solvers.base import checked_covector
from ..solvers.direct import DENSE_LIMIT
from .base import InnerProduct
from .common import check_reference, degenerate_of


class Dualized(InnerProduct):
    """BᵀB with B known by its products, of `count` rows. Beside a definite form it is solved through their kernel.

    Laws: `pull` is the transpose of `push`; `flat_components == pull ∘ push`; `kernel(R) == B R⁻¹ Bᵀ`.
    """

    count: int
    by_dual_alone: bool = False
    """Whether no other way to solve it is to be offered."""
    lasting: bool = False
    """Whether a running average of it can be kept."""

    @abstractmethod
    def push(self, x: Tensor) -> Tensor:
        """B x, (..., dim) to (..., count)."""

    @abstractmethod
    def pull(self, y: Tensor) -> Tensor:
        """Bᵀ y, (..., count) to (..., dim)."""

    @abstractmethod
    def kernel(self, reference: InnerProduct, wide: bool = False) -> Tensor:
        """B R⁻¹ Bᵀ for a definite R, (count, count); `wide`: added up in double precision."""

    @abstractmethod
    def cost_of_kernel(self, reference: InnerProduct) -> float:
        """In flops."""

    def flat_components(self, x: Tensor) -> Tensor:
        return self.pull(self.push(x))

    def settled_kernel(self, reference: InnerProduct, c: float = 1.0) -> Tensor:
        """In double precision where a single one would lose the identity beside c times it."""
        K = self.kernel(reference)
        unit = rounding_unit(K.dtype)
        if unit > 1e-10 and float(K.diagonal().max()) * c * unit > LOST:
            K = self.kernel(reference, wide=True)
        return K

    def sharp_modulo_kernel(self, covector: Element, reference: InnerProduct) -> Vector:
        if self.count > min(self.space.dim, DENSE_LIMIT):
            return super().sharp_modulo_kernel(covector, reference)
        x = checked_covector(self, covector, "sharp_modulo_kernel")
        check_reference(self, reference, "sharp_modulo_kernel")
        with degenerate_of(self.space, self.rank, "sharp_modulo_kernel: ξ does not vanish on the kernel"):
            base, K = reference.factorization(x), self.kernel(reference, wide=True)
            return Vector._of(self.space, least_by_dual(base, self.push, self.pull, K, rounding_unit(x.dtype), x))


@dataclass(frozen=True)
class DualPair:
    """c BᵀB + R with R definite."""

    c: Scalar
    form: Dualized
    base: InnerProduct

    @property
    def offered(self) -> bool:
        """Whether the kernel can be held."""
        return self.form.count <= DENSE_LIMIT

    @property
    def cost(self) -> float:
        return self.form.cost_of_kernel(self.base) + self.form.count**3 / 3

    def factorization(self, like: Tensor) -> Factorization:
        c, form = self.c, self.form
        root = c**0.5
        K = form.settled_kernel(self.base, float(c)) * c
        base = self.base.factorization(like)
        return DualFactor(
            base,
            lambda x: form.flat_components(x) * c + self.base.flat_components(x),
            lambda x: form.push(x) * root,
            lambda y: form.pull(y) * root,
            K,
            rounding_unit(like.dtype),
        )


def dual_pair(terms: Sequence[tuple[Scalar, InnerProduct]], base: InnerProduct) -> DualPair | None:
    """The one form among the terms that is known by products, beside a definite one."""
    found = [(c, form) for c, form in terms if isinstance(form, Dualized)]
    return DualPair(*found[0], base) if len(found) == 1 else None


def definite(g: InnerProduct, like: Tensor) -> bool:
    """Whether a form is found definite when it is factorized."""
    try:
        factorization = g.factorization(like)
        factorization.logdet  # noqa: B018  a diagonal finds out here
    except (RankDeficient, DegenerateMetric, Indefinite, NotFinite):  # the sum is judged as a whole
        return False
    return True
