"""Dense forms with a multiple of a diagonal one added: the factors of factored damping."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..factorizations import Factorization
from ..solvers.direct import DENSE_LIMIT
from ..spaces import Family
from ..symmetry import Symmetry
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
        lower = isinstance(form, Gram) and method == "cholesky"  # what is above the diagonal is not read
        blocks = form.triangle if lower and isinstance(form, Gram) else form.dense_blocks()
        if blocks is None:
            return super().direct_factorization(method)
        entries = damping.diagonal_entries(blocks).reshape(blocks.shape[:-1])
        matrix = blocks.clone()
        matrix.diagonal(dim1=-2, dim2=-1).add_(entries)
        return factorize_on(self.space, matrix, method)

    def light_symmetry(self) -> Callable[[], Symmetry]:
        """A function that finds the symmetry on request and holds no tensor of the form that is damped."""
        form, damping = self.terms
        assert isinstance(damping, Scaled)
        return partial(symmetry_of_sum, light_symmetry(form), damping.of, damping._named)


def light_symmetry(g: InnerProduct) -> Callable[[], Symmetry]:
    """A function that finds a form's symmetry on request; it does not hold the form where the symmetry is at hand."""
    if isinstance(g, Damped):
        return g.light_symmetry()
    return partial(identical, g.symmetry) if isinstance(g, (Gram, SecondMoment)) else partial(symmetry_of, g)


def symmetry_of_sum(
    form: Callable[[], Symmetry], reference: InnerProduct, of_c: Symmetry | Callable[[], Symmetry] | None
) -> Symmetry:
    """That of `form + c * reference`."""
    named = of_c() if callable(of_c) else of_c or Symmetry.natural()
    return form() + named * reference.symmetry


def symmetry_of(g: InnerProduct) -> Symmetry:
    return g.symmetry


def identical(symmetry: Symmetry) -> Symmetry:
    return symmetry


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
