"""Second moments: the forms that come from data, and therefore move with every change of frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..errors import NotClosed, SpaceMismatch
from ..factorizations import (
    DiagonalFactor,
    Factorization,
    Kept,
    factorize_dense,
    factorize_rows,
    fold_rows,
    keep,
    normally,
)
from ..samples import Chunked, Compact, OneHot, Sample
from ..solvers import Structure
from ..solvers.direct import DENSE_LIMIT
from ..spaces import Family, VectorSpace
from ..symmetry import Symmetry
from .base import InnerProduct, State, kind
from .common import given
from .diagonal import Diagonal
from .gram import Gram
from .members import Dense
from .symmetries import along


@kind("second moment")
class SecondMoment(InnerProduct):
    """`second_moment(sample)`: a sample of U has Σ w x ⊗ x as an inner product on U.dual, which knows its sample.

    It is solved from the rows of the sample by QR, never through the matrix. On a family it is one form for each
    member, unless `joint`. One-hot samples have diagonal moments.
    """

    def __init__(self, sample: Sample, joint: bool = False):
        self.space, self.sample, self.joint = sample.space.dual, sample, joint
        self.members = self.space.members if isinstance(self.space, Family) and not joint else 1
        self._kept: dict[str, Kept[Tensor] | None] = {}

    def _keep(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """What was computed once, until a tensor of the sample is changed in place."""
        kept = self._kept.get(name)
        if kept is not None and kept.fresh:
            return kept.value
        value = normally(compute) if torch.is_inference_mode_enabled() else compute()
        self._kept[name] = None if self.differentiable else keep(value, self._traits[3])
        return value

    @property
    def one_hot(self) -> bool:
        return isinstance(self.sample.data, OneHot)

    @property
    def dear(self) -> bool:
        """Whether only the matrix is to be had at a fair price."""
        return isinstance(self.sample.data, Compact) and self.sample.data.dear

    def member_matrices(self) -> Tensor:
        """The matrix (d, d); on a family (m, d, d); of a one-hot sample its diagonal."""
        whole = self.members == 1 or self.one_hot  # no two members take part in one element of a basis
        return self._keep("matrix", self.sample.moment if whole else self.sample.member_moments)

    def member_rows(self) -> Tensor:
        """Rows R (n, d), on a family (m, n, d), with RᵀR the moment; at most 2 d of them kept from chunked samples."""
        return self._keep("rows", self._rows)

    def _rows(self) -> Tensor:
        if self.members == 1:
            return fold_rows(self.sample.weighted_pieces())
        rows = torch.cat(list(self.sample.weighted_pieces()))
        return rows.reshape(len(rows), self.members, -1).movedim(1, 0).contiguous()

    def rows(self) -> Tensor | None:
        return self.member_rows() if self.members == 1 and not self.one_hot and not self.dear else None

    def tensors(self) -> Iterator[Tensor]:
        data, measure = self.sample.data, self.sample.measure
        tensor = self.sample.tensor()
        if isinstance(data, Chunked) and data.like is None:  # a chunk, which is not to be held
            tensor = tensor.detach().new_empty(0).requires_grad_(tensor.requires_grad)
        yield tensor
        if isinstance(data, OneHot):
            yield data.indices
        yield from (t for t in (measure.given, measure.mask) if t is not None)

    def flat_components(self, x: Tensor) -> Tensor:
        n, k, t = self.sample.counts
        if self.one_hot:
            return x * self.member_matrices()
        if self.members == 1 and n * k * t < self.space.dim and not self.dear:
            rows = self.member_rows()
            return (x @ rows.mT) @ rows
        return Gram.of(self.space, self.member_matrices(), "", self.symmetry).flat_components(x)

    def dense_matrix(self, like: Tensor | None = None) -> Tensor:
        M = self.member_matrices()
        if self.one_hot:
            return torch.diag(M)
        return M if M.ndim == 2 else torch.block_diag(*M)

    @property
    def by_members(self) -> bool:
        return self.members > 1 or self.one_hot or super().by_members

    def dense_blocks(self) -> Tensor | None:
        return None if self.one_hot else self.member_matrices()

    def blended_onto(self, form: Dense, weight: float) -> tuple[Tensor, bool] | None:
        kept = self._kept.get("matrix")
        known = self.one_hot or self.differentiable or (kept is not None and kept.fresh)
        if known or form.triangle.ndim != 2 + (self.members > 1):
            return super().blended_onto(form, weight)
        return self.sample.blended_moments(form.triangle, weight), False

    def blends_over(self, form: InnerProduct) -> bool:
        """Whether `blend_over` can write an average of this form over the matrix of another."""
        return (
            isinstance(form, Gram)
            and form.triangle.ndim == 2 + (self.members > 1)
            and self.sample.blends_in_place
            and not self.differentiable
            and not form.differentiable
        )

    def blend_over(self, triangle: Tensor, weight: float) -> None:
        """triangle becomes (1 - weight) triangle + weight times the matrix, on and below the diagonal."""
        self.sample.blend_moments_into(triangle, weight)

    def diagonal_entries(self, like: Tensor | None = None) -> Tensor:
        n, k, t = self.sample.counts
        if self.members == 1 and n * k * t < self.space.dim and not self.one_hot and not self.dear:
            return self.member_rows().square().sum(0)
        return self.member_matrices() if self.one_hot else self.member_matrices().diagonal(dim1=-2, dim2=-1).flatten()

    @property
    def structure(self) -> Structure:
        n, k, t = self.sample.counts
        size, d = n * k * t, self.space.dim
        if self.one_hot:
            return Structure("diagonal", d, float(d), float(d), d)
        side = d // self.members
        qr = 2.0 * size * d * min(size, side)
        return Structure("dense", d, qr, 2.0 * d * min(size, side), min(size * self.members, d))

    def direct_factorization(self, method: str) -> Factorization:
        if self.one_hot:
            return DiagonalFactor(self.member_matrices())
        return (
            factorize_rows(self.member_rows())
            if method == "cholesky" and not self.dear
            else factorize_dense(self.member_matrices(), method)
        )

    @property
    def symmetry(self) -> Symmetry:
        symmetry = Symmetry.natural()
        for phi in self.sample.through:
            symmetry = along(symmetry, phi.transpose, f"{self.sample} through {phi.name}")
        return symmetry

    def expression(self) -> str:
        return f"second_moment({self.sample})"

    def blended(self, other: InnerProduct, weight: float) -> InnerProduct:
        mine, name = self._lasting("blend"), f"average of {self.expression()}"
        of = Diagonal.of if self.one_hot else Gram.of
        return of(self.space, mine, name, self.symmetry).blended(other, weight)

    def _lasting(self, call: str) -> Tensor:
        """Its matrix, without the sample; refused before it is made where none would ever be factorized."""
        d = self.space.dim // self.members
        if not self.one_hot and d**3 / 3 > 12.0 * DENSE_LIMIT**3:
            raise NotClosed(
                f"NotClosed in {call}: {self.expression()} would be kept as a matrix [{d}, {d}]. Of one-hot inputs the "
                f"moment is diagonal while every site stands by itself: KFAC(sharing='expand'). Else keep no average "
                f"of it, decay=0: the sample of one batch needs no matrix."
            )
        return self.member_matrices()

    def own_state(self) -> State:
        return {
            "matrix": self._lasting("state"), "name": self.expression(), "one hot": self.one_hot,
            "symmetry": self.symmetry.to_state(),
        }  # fmt: skip

    @classmethod
    def restore(cls, space: VectorSpace, state: State) -> InnerProduct:
        """The sample is not kept in the state: the moment comes back as a natural matrix."""
        of = Diagonal.of if state["one hot"] else Gram.of
        return of(space, state["matrix"], state["name"], Symmetry.from_state(state["symmetry"]))


def second_moment(sample: Sample, joint: bool = False) -> SecondMoment:
    """The second moment of a sample of U, an inner product on U.dual."""
    if not isinstance(sample, Sample):
        raise SpaceMismatch(
            f"SpaceMismatch in second_moment: expected a sample, got {given(sample)}. Elements with weights are a "
            f"Sample(space, data, measure)."
        )
    return SecondMoment(sample, joint)
