"""Sums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from ..factorizations import (
    DiagonalFactor,
    Factorization,
    FrameFactor,
    RankDeficient,
    factorize_rows,
)
from ..solvers import Structure
from ..solvers.direct import DENSE_LIMIT
from ..solvers.stages import Stages
from ..spaces import Family, VectorSpace
from ..symmetry import Symmetry
from .base import InnerProduct, State, kind
from .dualized import Dualized, DualPair, definite, dual_pair
from .kronecker import Kronecker
from .likeness import same_form
from .members import blocks
from .on_translations import factorize_on
from .pencils import DIAGONAL, both_diagonal, cost_of_pencil
from .rotated import RotatedDiagonal
from .scaled import Scaled as Scaled
from .scaled import unscaled as unscaled
from .staged import stages_of_sum
from .units import by_units, cost_by_units, factorize_by_units

DENSE = (*DIAGONAL, "dense", "low rank")
"""The kinds of structure whose sum is best had by its matrix."""


@kind("sum")
class Sum(InnerProduct):
    """A sum of different forms on one space.

    Two tensor products along the same factors, one of them definite, are diagonalized together: exact Tikhonov damping
    in any named reference. A low-rank form plus a definite one is left to the dual solver; anything else is dense.
    """

    def __init__(self, terms: Sequence[InnerProduct]):
        self.terms, self.space = tuple(terms), terms[0].space

    def flat_components(self, x: Tensor) -> Tensor:
        y = self.terms[0].flat_components(x)
        for c, form in map(unscaled, self.terms[1:]):
            z = form.flat_components(x)
            y = y + z * c if isinstance(c, Tensor) else torch.add(y, z, alpha=c)
        return y

    def tensors(self) -> Iterator[Tensor]:
        for term in self.terms:
            yield from term.tensors()

    def dense_matrix(self, like: Tensor | None = None) -> Tensor:
        probe = torch.empty(0, **self._options(like))
        matrix = self.terms[0].dense_matrix(probe)
        for term in self.terms[1:]:
            if term.structure.kind in DIAGONAL:  # without a matrix of zeros
                matrix = matrix.clone()
                matrix.diagonal().add_(term.diagonal_entries(probe))
            else:
                matrix = matrix + term.dense_matrix(probe)
        return matrix

    def diagonal_entries(self, like: Tensor | None = None) -> Tensor:
        probe = torch.empty(0, **self._options(like))
        return torch.stack([term.diagonal_entries(probe) for term in self.terms]).sum(0)

    @property
    def by_members(self) -> bool:
        return all(term.by_members for term in self.terms)  # each at its own scale: where one vanishes the other counts

    def dense_blocks(self) -> Tensor | None:
        blocks = [term.dense_blocks() for term in self.terms]
        kept = [block for block in blocks if block is not None]
        return sum(kept[1:], kept[0]) if len(kept) == len(blocks) and len({b.shape for b in kept}) == 1 else None

    def rows(self) -> Tensor | None:
        rows = [term.rows() for term in self.terms]
        return None if any(r is None for r in rows) else torch.cat([r for r in rows if r is not None])

    def _rotated(self) -> FrameFactor | None:
        """A form diagonal in a frame that is orthonormal for the other term: damped, it is so still."""
        if len(self.terms) != 2:
            return None
        for g, other in (self.terms, self.terms[::-1]):
            (c, form), (b, named) = unscaled(g), unscaled(other)
            if isinstance(form, RotatedDiagonal):
                a, reference = unscaled(form.reference)
                if same_form(reference, named):
                    return FrameFactor(form.axes, form.spectrum * c + b / a)
        return None

    def _tikhonov(self) -> tuple[Kronecker, InnerProduct, Kronecker] | None:
        """A product, alone and as it stands, and a reference along the same factors, if they are all of the sum."""
        if len(self.terms) != 2:
            return None
        for g, reference in (self.terms, self.terms[::-1]):
            product = unscaled(g)[1]
            if isinstance(product, Kronecker) and (product.members == 1 or product.by_members):
                along = reference.factors_on(tuple(f.space for f in product.factors))
                if along is not None and (product.members == 1 or all(h.by_members for h in along)):
                    return product, g, Kronecker(along)
        return None

    def _cost(self) -> float | None:
        """Of the sum's own factorization, in flops."""
        parts, V = [term.structure for term in self.terms], self.space
        if all(p.kind in DIAGONAL for p in parts) or self._rotated() is not None:
            return float(V.dim)
        if by_units(unscaled_terms := [unscaled(term) for term in self.terms]):
            return cost_by_units(unscaled_terms)
        options: list[float] = []
        if (pair := self._tikhonov()) is not None:
            product, _, reference = pair
            if all(g.space.dim <= DENSE_LIMIT or both_diagonal(g, h) or isinstance(g.space, Family)
                   for g, h in zip(product.factors, reference.factors, strict=True)):  # fmt: skip
                factors = zip(product.factors, reference.factors, strict=True)
                options.append(sum(cost_of_pencil(g, h) for g, h in factors))
        if self._cost_of_members is not None:
            options.append(self._cost_of_members)
        if not options and pair is None and all(p.direct is not None and p.kind in DENSE for p in parts):
            options.append(V.dim**3 / 3 + V.dim**2)
        return min(options, default=None)

    @cached_property
    def _cost_of_members(self) -> float | None:
        """Of factorizing a matrix for each member, where nothing stands between them."""
        V = self.space
        if not isinstance(V, Family) or V.members == 1 or V.of.dim > DENSE_LIMIT or not self.by_members:
            return None
        return V.members * V.of.dim**3 / 3 + V.of.dim * sum(term.structure.apply for term in self.terms)

    @property
    def structure(self) -> Structure:
        parts, d = [term.structure for term in self.terms], self.space.dim
        own = self._dual if self._dual is not None and self._dual.offered else None
        split = self.low_rank_parts() if own is None else None
        few = own.form.count if own is not None else None if split is None else len(split[1])
        if all(p.kind in DIAGONAL for p in parts):
            kind = "diagonal"
        elif self._rotated() is not None:
            kind = "rotated diagonal"
        elif by_units([unscaled(term) for term in self.terms]):
            kind = "unit-wise"
        elif self._tikhonov() is not None:
            kind = "product + product"
        else:
            kind = "low rank + definite" if few else "sum"
        cost = float("inf") if own is not None and own.form.by_dual_alone else self._cost()
        dual, rank = None if own is None else own.cost, min(d, sum(p.rank for p in parts))
        return Structure(kind, d, cost, sum(p.apply for p in parts), rank, few, dual)

    def low_rank_parts(self) -> tuple[InnerProduct, Tensor] | None:
        low = [term for term in self.terms if term.structure.rank < self.space.dim and term.rows() is not None]
        if not low or self._base is None:
            return None
        return self._base, torch.cat([r for r in (term.rows() for term in low) if r is not None])

    @cached_property
    def _base(self) -> InnerProduct | None:
        """What stands beside the low-rank terms, if it is definite."""
        return self._definite([t for t in self.terms if t.structure.rank == self.space.dim or t.rows() is None])

    @cached_property
    def _dual(self) -> DualPair | None:
        """A term that is known by products, and what stands beside it, if this is definite."""
        base = self._definite([t for t in self.terms if not isinstance(unscaled(t)[1], Dualized)])
        return None if base is None else dual_pair([unscaled(term) for term in self.terms], base)

    def _definite(self, terms: Sequence[InnerProduct]) -> InnerProduct | None:
        """The sum of some terms, if it has a factorization, and this finds it definite."""
        if len(terms) in (0, len(self.terms)) or any(term.structure.direct is None for term in terms):
            return None
        base = terms[0] if len(terms) == 1 else Sum(terms)
        return base if definite(base, torch.empty(0, **self._options(None))) else None

    def dual_factorization(self) -> Factorization | None:
        return None if self._dual is None else self._dual.factorization(torch.empty(0, **self._options(None)))

    def stages(self) -> Stages | None:
        return stages_of_sum([unscaled(term) for term in self.terms])

    def direct_factorization(self, method: str) -> Factorization | None:
        if self.dtype is None:
            return None
        if all(term.structure.kind in DIAGONAL for term in self.terms):
            return DiagonalFactor(self.diagonal_entries())
        if (rotated := self._rotated()) is not None:
            return rotated
        if by_units(unscaled_terms := [unscaled(term) for term in self.terms]):
            return factorize_by_units(unscaled_terms, torch.empty(0, **self._options(None)), method)
        cost = self._cost()
        if cost is None:
            return None
        if cost == self._cost_of_members:
            return factorize_on(self.space, blocks(self, torch.empty(0, **self._options(None))), method)
        if (pair := self._tikhonov()) is not None:
            return self._pencil(pair[1], pair[2])
        rows = self.rows()
        return factorize_on(self.space, self.dense_matrix(), method) if rows is None else factorize_rows(rows)

    def _pencil(self, g: InnerProduct, reference: InnerProduct) -> Factorization | None:
        """The pair diagonalized together, if one is definite; None leaves the sum to its dense matrix.

        In the frame of the reference if that is well conditioned, else in that of the better conditioned of the two.
        """
        if self.differentiable:  # an eigendecomposition has no derivative where eigenvalues meet
            return None
        probe, untold = torch.empty(0, **self._options(None)), None
        best, least = None, float("inf")
        for first, second in ((g, reference), (reference, g)):
            try:
                frame = first.pencil_with(second, probe)
            except RankDeficient:
                continue
            spread = frame.spread(second.diagonal_entries(probe).sum())
            if spread >= least:
                continue
            try:
                best, least = frame.shifted(1.0), spread
            except RankDeficient as short:
                untold = short
            if least <= 10:
                break
        if best is None and untold is not None:
            raise untold
        return best

    @property
    def symmetry(self) -> Symmetry:
        symmetry = self.terms[0].symmetry
        for term in self.terms[1:]:
            symmetry = symmetry + term.symmetry
        return symmetry

    def expression(self) -> str:
        return " + ".join(term.expression() for term in self.terms)

    def blended(self, other: InnerProduct, weight: float) -> InnerProduct:
        if not isinstance(other, Sum) or len(other.terms) != len(self.terms):
            return super().blended(other, weight)
        return Sum([g.blend(h, weight) for g, h in zip(self.terms, other.terms, strict=True)])

    def own_state(self) -> State:
        return {"terms": [term.state() for term in self.terms]}

    @classmethod
    def restore(cls, space: VectorSpace, state: State) -> Sum:
        return cls([InnerProduct.from_state(space, term) for term in state["terms"]])
