"""Elements that are gone: what is left of them is their second moment."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..errors import ObservationMismatch
from ..spaces import Family, VectorSpace
from .data import Compact, OneHot
from .measures import Counts
from .products import grams_into


class Folded(Compact):
    """Σ x xᵀ of elements that were let go, for every member of a family.

    `matrices` (members, d, d) is `unit` times that, on and below the diagonals. Weights are those of the whole: no
    element can be told from another any more, so samples with a mask are not folded.
    """

    dear = True

    def __init__(self, matrices: Tensor, unit: float, counts: Counts):
        self.matrices, self.unit, self.counts, self.members = matrices, unit, counts, len(matrices)

    @classmethod
    def of(cls, data: Tensor | Compact, members: int, d: int, unit: float) -> Folded:
        """Of elements (examples, draws, sites, *[members], d), or of those kept smaller."""
        if isinstance(data, Folded):
            return data
        if isinstance(data, Compact):
            whole, counts = data.tensor().new_zeros(members, d, d), data.counts
            data.moments_into(whole, 0.0, unit)
        else:
            n, k, t = data.shape[:3]
            whole, counts = data.new_zeros(members, d, d), (n, k, t)
            grams_into(data.reshape(*counts, members, d), unit, whole, 0.0)
        return cls(whole, unit, counts)

    def tensor(self) -> Tensor:
        return self.matrices

    def dense(self) -> Tensor:
        raise ObservationMismatch(
            f"ObservationMismatch: {self.counts[0]} examples were folded into their second moment as they came, and "
            f"now each of them is asked for. A metric whose sees_moments_alone() is true reads samples through "
            f"second_moment(...) only; let it be false where a metric reads more."
        )

    def squares(self) -> Tensor:
        return self.matrices.diagonal(dim1=-2, dim2=-1).sum() / self.unit

    def moments(self, weight: float) -> Tensor:
        lower = self.matrices.tril()
        return (lower + lower.tril(-1).mT) * (weight / self.unit)

    def moments_onto(self, base: Tensor, kept: float, weight: float) -> Tensor:
        out = base.clone()
        self.moments_into(out, kept, weight)
        return out

    def moments_into(self, base: Tensor, kept: float, weight: float) -> None:
        share = weight / self.unit
        if abs(kept + share - 1) < 1e-12:
            base.lerp_(self.matrices, share)
        else:
            base.mul_(kept).add_(self.matrices, alpha=share)

    def times(self, factor: float) -> Folded:
        """The elements times a number."""
        return Folded(self.matrices, self.unit / factor**2, self.counts)


def all_of(parts: Sequence[Folded], counts: Counts) -> Folded:
    """The elements of all parts, which together are so many."""
    unit, total = parts[0].unit, parts[0].matrices.clone()
    for part in parts[1:]:
        total.add_(part.matrices, alpha=unit / part.unit)
    return Folded(total, unit, counts)


def whole_folded(data: Tensor | Compact, space: VectorSpace) -> Folded:
    """The elements by their second moment, whatever it costs."""
    members = space.members if isinstance(space, Family) else 1
    return Folded.of(data, members, space.dim // members, 1.0)


def folded(data: Tensor | OneHot | Compact, space: VectorSpace, unit: float) -> Tensor | OneHot | Compact:
    """The elements by their second moment, where that is no larger than what is kept of them; else as they are."""
    members = space.members if isinstance(space, Family) else 1
    d = space.dim // members
    if isinstance(data, (OneHot, Folded)) or (isinstance(data, Compact) and data.members != members):
        return data
    kept = data.tensor() if isinstance(data, Compact) else data
    if kept.requires_grad or kept.numel() < members * d * d:
        return data
    return Folded.of(data, members, d, unit)
