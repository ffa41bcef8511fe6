"""The second moment of per-example gradients about their mean."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ..errors import NotClosed
from ..factorizations import Factorization, RankDeficient, factorize_dense
from ..inner_products import Dualized, Gram, InnerProduct, LowRank
from ..inner_products.base import State
from ..inner_products.pencils import LARGEST
from ..solvers import Structure
from ..symmetry import Symmetry
from .gradients import PerExample, rank_of_kernel


class CentredGradients(Dualized):
    """Σ w (ψ - μ) ⊗ (ψ - μ) with μ the mean of ψ: BᵀPB, for B of the moment and P the projection along the mean.

    P = 1 - u uᵀ with u the unit vector of the roots of the weights, so everything that the moment does lazily is done
    lazily here too.
    """

    def __init__(self, of: InnerProduct, name: str):
        assert isinstance(of, PerExample)
        self.of, self.space, self.name, self.count = of, of.space, name, of.count
        self.by_dual_alone, self.lasting = of.by_dual_alone, of.lasting

    def _centred(self, y: Tensor) -> Tensor:
        """P y along the last dimension."""
        w = self.of.weights
        if isinstance(w, float):
            return y - y.mean(-1, keepdim=True)
        u = w.to(y).broadcast_to(self.of.n, self.of.k).flatten().sqrt()
        u = u / u.norm()
        return y - (y @ u)[..., None] * u

    def push(self, x: Tensor) -> Tensor:
        return self._centred(self.of.push(x))

    def pull(self, y: Tensor) -> Tensor:
        return self.of.pull(self._centred(y))

    def kernel(self, reference: InnerProduct, wide: bool = False) -> Tensor:
        K = self._centred(self.of.kernel(reference, wide))
        return self._centred(K.mT.contiguous())

    def cost_of_kernel(self, reference: InnerProduct) -> float:
        return self.of.cost_of_kernel(reference)

    def rows(self) -> Tensor | None:
        rows = self.of.rows()
        return None if rows is None else self._centred(rows.mT).mT.contiguous()

    def dense_matrix(self, like: Tensor | None = None) -> Tensor:
        rows, d = self.rows(), self.space.dim
        if d * d > LARGEST:
            raise NotClosed(
                f"NotClosed: {self.expression()} would be a matrix [{d}, {d}]. Damp the form, g + λ * h, and keep no "
                f"average of it: decay=0."
            )
        return super().dense_matrix(like) if rows is None else rows.mT @ rows

    def dense_blocks(self) -> Tensor | None:
        return self.dense_matrix() if self.lasting else None

    @property
    def structure(self) -> Structure:
        s, d = self.of.structure, self.space.dim
        few = self.count - 1 < d
        return Structure("gradients", d, 0.0 if few else s.direct, s.apply, min(self.count - 1, d))

    def direct_factorization(self, method: str) -> Factorization | None:
        d = self.space.dim
        if self.count - 1 < d:
            raise RankDeficient(rank_of_kernel(self, self.of.unit), d)
        return factorize_dense(self.dense_matrix(), method)

    def tensors(self) -> Iterator[Tensor]:
        return self.of.tensors()

    @property
    def symmetry(self) -> Symmetry:
        return self.of.symmetry

    def expression(self) -> str:
        return self.name

    def blended(self, other: InnerProduct, weight: float) -> InnerProduct:
        if not self.lasting:
            return self.of.blended(other, weight)
        return self._gram(f"average of {self.expression()}").blended(other, weight)

    def _gram(self, name: str) -> Gram:
        return Gram.of(self.space, self.dense_matrix(), name, self.symmetry)

    def state(self) -> State:
        if self.lasting:
            return self._gram(self.expression()).state()
        rows = self.rows()
        if rows is None:
            return self.of.state()
        plain = LowRank.restore(self.space, {"rows": rows, "name": self.name, "symmetry": self.symmetry.to_state()})
        return plain.state()
