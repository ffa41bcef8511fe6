"""How expressions are put together: scalars move out, like terms collect, sums go into direct sums."""

from __future__ import annotations

import math

from torch import Tensor

from ..elements import Scalar, describe
from ..errors import NotAnInnerProduct, NotClosed
from ..linear_maps import NATURAL, LinearMap
from ..spaces import Family
from .base import InnerProduct
from .common import Algebra, one_kind
from .diagonal import Diagonal, Euclidean
from .direct_sum import BlockDiagonal
from .functors import Dual, Pullback, Quotient
from .kronecker import Kronecker
from .on_translations import EuclideanOnTranslations
from .sums import Scaled, Sum
from .symmetries import with_frame, with_lines

COORDINATE_FORMS = (Euclidean, EuclideanOnTranslations)
"""Kinds of which there is one form on each space."""


class Expressions(Algebra[InnerProduct]):
    def sum(self, g: InnerProduct, h: InnerProduct) -> InnerProduct:
        one_kind(g, h, "+")
        if not (isinstance(g, Euclidean) and isinstance(h, Euclidean)):
            ours, theirs = g.summands(), h.summands()
            if ours is not None and theirs is not None:
                return BlockDiagonal({name: ours[name] + theirs[name] for name in ours})
        collected: list[tuple[Scalar, InnerProduct]] = []
        for c, form in terms(g) + terms(h):
            for i, (b, like) in enumerate(collected):
                if like is form or (isinstance(like, COORDINATE_FORMS) and type(like) is type(form)):
                    collected[i] = (b + c, like)
                    break
            else:
                collected.append((c, form))
        forms = [self.scale(c, form) for c, form in collected]
        return forms[0] if len(forms) == 1 else Sum(forms)

    def scale(self, c: Scalar, g: InnerProduct) -> InnerProduct:
        value = number(c)
        if value is None or not math.isfinite(value) or value <= 0:
            raise NotAnInnerProduct(
                f"NotAnInnerProduct in *: {g!r} times {describe(c) if value is None else value}. "
                f"A multiple of an inner product is by a positive finite number; leave a term of weight zero out."
            )
        if isinstance(c, (int, float)) and c == 1:
            return g
        if isinstance(g, Scaled) and g.c_symmetry == type(g.c_symmetry).natural():
            return self.scale(c * g.scalar, g.of)
        if isinstance(g, Sum):
            return Sum([self.scale(c, term) for term in g.terms])
        if isinstance(g, BlockDiagonal):
            return BlockDiagonal({name: self.scale(c, part) for name, part in g.parts.items()})
        return Scaled(c, g)

    def product(self, g: InnerProduct, h: InnerProduct) -> InnerProduct:
        one_kind(g, h, "*")
        if isinstance(g, Euclidean) and isinstance(h, Euclidean):
            return Euclidean(g.space * h.space)
        scalars: Scalar = 1.0
        factors: list[InnerProduct] = []
        for form in (g, h):
            if isinstance(form, Scaled) and form.c_symmetry == type(form.c_symmetry).natural():
                scalars, form = scalars * form.scalar, form.of
            factors += form.factors if isinstance(form, Kronecker) else [form]
        nested = [form for form in factors if len(form.space.levels) > 1]
        if len(nested) > 1:
            raise NotClosed(
                f"NotClosed in *: {' and '.join(map(repr, nested))} live on families of families, which do not "
                f"multiply. Make each one family, of all members."
            )
        on_families = [form for form in factors if isinstance(form.space, Family)]
        for form in on_families if len(on_families) > 1 else []:
            if not form.by_members:
                raise NotClosed(
                    f"NotClosed in *: {form!r} has terms between the members of {form.space}, and families multiply "
                    f"member by member. Make it one form for each member: a second moment without joint=True, Gram "
                    f"with matrices (members, dim, dim), or .diagonal()."
                )
        return self.scale(scalars, Kronecker(factors))

    def dual(self, g: InnerProduct) -> InnerProduct:
        if isinstance(g, Dual):
            return g.of
        if isinstance(g, Euclidean):
            return Euclidean(g.space.dual)
        if isinstance(g, Kronecker):
            return Kronecker([form.dual for form in g.factors])
        if isinstance(g, BlockDiagonal):
            return BlockDiagonal({name: form.dual for name, form in g.parts.items()})
        if isinstance(g, Scaled):
            return Scaled(1 / g.scalar, g.of.dual, g.c_symmetry**-1)
        return Dual(g)

    def pullback(self, phi: LinearMap, g: InnerProduct) -> InnerProduct:
        return Pullback(g.phi @ phi, g.of) if isinstance(g, Pullback) else Pullback(phi, g)

    def diagonal(self, g: InnerProduct, basis: LinearMap | None) -> InnerProduct:
        if basis is None:
            if g.structure.kind in ("identity", "diagonal"):
                return g
            name = f"diagonal of {g.expression()}"
            return Diagonal.of(
                g.space, g.diagonal_entries(), name, with_lines(g.symmetry, g.space, f"({g.expression()}).diagonal()")
            )
        in_frame = g.pullback(basis)
        name = f"diagonal of {g.expression()} in {basis.name}"
        symmetry = with_frame(g.symmetry, g.space, basis.name, name)
        entries = Diagonal.of(basis.domain, in_frame.diagonal_entries(), name, symmetry)
        inverse = basis.inverse(entries.entries)
        inverse.symmetry = NATURAL  # its constants are in the symmetry already
        return Pullback(inverse, entries)

    def quotient(self, g: InnerProduct, kernel: LinearMap) -> InnerProduct:
        return Quotient(g, kernel)


def number(c: object) -> float | None:
    """The value of a number or of a tensor of no dimension, None for anything else."""
    if isinstance(c, Tensor):
        return float(c.detach()) if c.ndim == 0 and c.dtype.is_floating_point else None
    return float(c) if isinstance(c, (int, float)) and not isinstance(c, bool) else None


def terms(g: InnerProduct) -> list[tuple[Scalar, InnerProduct]]:
    if isinstance(g, Sum):
        return [pair for term in g.terms for pair in terms(term)]
    if isinstance(g, Scaled) and g.c_symmetry == type(g.c_symmetry).natural():
        return [(g.scalar, g.of)]
    return [(1.0, g)]


InnerProduct.algebra = Expressions()
