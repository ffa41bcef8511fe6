"""Dense forms with a multiple of a diagonal one added: the factors of factored damping."""

from __future__ import annotations

from ..factorizations import Factorization
from ..solvers.direct import DENSE_LIMIT
from ..spaces import Family
from .base import InnerProduct
from .gram import Gram
from .moment import SecondMoment
from .on_translations import factorize_on
from .pencils import DIAGONAL
from .sums import Scaled, Sum

FEW = 4
"""A moment of so many times fewer rows than its dimension is left to the sum's own choice, which may be the dual."""


class Damped(Sum):
    """The sum of a form that is kept as a matrix, or as one for each member, and of a diagonal one.

    What any sum finds out by looking at its terms is known of this one: it is factorized by its matrix, to which the
    diagonal is added. An optimizer makes two for each layer at every refresh.
    """

    always_direct = True

    def __init__(self, form: InnerProduct, damping: Scaled):
        super().__init__([form, damping])

    def direct_factorization(self, method: str) -> Factorization | None:
        form, damping = self.terms
        blocks = form.dense_blocks()
        if blocks is None:
            return super().direct_factorization(method)
        entries = damping.diagonal_entries(blocks).reshape(blocks.shape[:-1])
        matrix = blocks.clone()
        matrix.diagonal(dim1=-2, dim2=-1).add_(entries)
        return factorize_on(self.space, matrix, method)


def plus(g: InnerProduct, damping: Scaled) -> InnerProduct:
    """The sum as it stands: to collect like terms would be to look at the scalars, and to wait for the device."""
    if g.summands() is not None:
        return g + damping
    dense = isinstance(g, Gram) or (isinstance(g, SecondMoment) and not g.one_hot)
    if dense and damping.of.structure.kind in DIAGONAL:
        s = g.structure
        side = g.space.of.dim if isinstance(g.space, Family) else s.dim
        if side <= DENSE_LIMIT and FEW * s.rank >= s.dim:
            return Damped(g, damping)
    return Sum([*(g.terms if isinstance(g, Sum) else (g,)), damping])
