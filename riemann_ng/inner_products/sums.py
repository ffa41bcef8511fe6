"""Sums and positive multiples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..elements import Scalar
from ..factorizations import (
    DiagonalFactor,
    Factorization,
    FrameFactor,
    RankDeficient,
    ScaledFactor,
    factorize_dense,
    factorize_rows,
)
from ..solvers import Structure
from ..spaces import VectorSpace
from ..symmetry import Symmetry
from .base import InnerProduct, State, kind
from .common import bracketed
from .diagonal import Euclidean
from .kronecker import Kronecker


@kind("multiple")
class Scaled(InnerProduct):
    """c * g for a positive number c; `c_symmetry` is what c itself names, if constants helped to compute it."""

    def __init__(self, scalar: Scalar, of: InnerProduct, c_symmetry: Symmetry | None = None):
        self.scalar, self.of, self.space = scalar, of, of.space
        self.c_symmetry = Symmetry.natural() if c_symmetry is None else c_symmetry

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

    def dense_blocks(self) -> Tensor | None:
        blocks = self.of.dense_blocks()
        return None if blocks is None else blocks * self.scalar

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
        if isinstance(other, Scaled) and bool(other.scalar == self.scalar):
            return Scaled(self.scalar, self.of.blend(other.of, weight), self.c_symmetry)
        return Scaled(
            self.scalar, self.of.blend(Scaled(1 / self.scalar, other, self.c_symmetry**-1), weight), self.c_symmetry
        )

    def own_state(self) -> State:
        c = self.scalar.detach() if isinstance(self.scalar, Tensor) else self.scalar
        return {"scalar": float(c), "of": self.of.state(), "symmetry": self.c_symmetry.to_state()}

    @classmethod
    def restore(cls, space: VectorSpace, state: State) -> Scaled:
        return cls(state["scalar"], InnerProduct.from_state(space, state["of"]), Symmetry.from_state(state["symmetry"]))


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
        for term in self.terms[1:]:
            y = y + term.flat_components(x)
        return y

    def tensors(self) -> Iterator[Tensor]:
        for term in self.terms:
            yield from term.tensors()

    def dense_matrix(self, like: Tensor | None = None) -> Tensor:
        probe = torch.empty(0, **self._options(like))
        matrix = self.terms[0].dense_matrix(probe)
        for term in self.terms[1:]:
            if isinstance(term, Scaled) and isinstance(term.of, Euclidean):  # without an identity matrix
                matrix = matrix.clone()
                matrix.diagonal().add_(term.scalar)
            else:
                matrix = matrix + term.dense_matrix(probe)
        return matrix

    def diagonal_entries(self, like: Tensor | None = None) -> Tensor:
        probe = torch.empty(0, **self._options(like))
        return torch.stack([term.diagonal_entries(probe) for term in self.terms]).sum(0)

    def dense_blocks(self) -> Tensor | None:
        blocks = [term.dense_blocks() for term in self.terms]
        kept = [block for block in blocks if block is not None]
        return sum(kept[1:], kept[0]) if len(kept) == len(blocks) and len({b.shape for b in kept}) == 1 else None

    def rows(self) -> Tensor | None:
        rows = [term.rows() for term in self.terms]
        return None if any(r is None for r in rows) else torch.cat([r for r in rows if r is not None])

    def _tikhonov(self) -> tuple[InnerProduct, InnerProduct] | None:
        """A product and a definite reference of the same shape, if that is what the sum is made of."""
        if len(self.terms) != 2:
            return None
        for g, reference in (self.terms, self.terms[::-1]):
            product = g.of if isinstance(g, Scaled) else g
            if isinstance(product, Kronecker) and product.members == 1:  # noqa: SIM102
                if reference.factors_on(tuple(f.space for f in product.factors)) is not None:
                    return g, reference
        return None

    @property
    def structure(self) -> Structure:
        parts, d = [term.structure for term in self.terms], self.space.dim
        direct: float | None = None
        if (pair := self._tikhonov()) is not None:
            product = pair[0].of if isinstance(pair[0], Scaled) else pair[0]
            direct = sum(12.0 * g.space.dim**3 for g in product.factors)  # type: ignore[attr-defined]
        elif all(p.direct is not None and p.kind in ("dense", "diagonal", "identity", "low rank") for p in parts):
            direct = d**3 / 3 + d**2
        diagonal = all(p.kind in ("diagonal", "identity") for p in parts)
        if diagonal:
            direct = float(d)
        split = self.low_rank_parts()
        few = None if split is None else len(split[1])
        kind = "diagonal" if diagonal else "product + product" if pair else "low rank + definite" if few else "sum"
        return Structure(kind, d, direct, sum(p.apply for p in parts), min(d, sum(p.rank for p in parts)), few)

    def low_rank_parts(self) -> tuple[InnerProduct, Tensor] | None:
        low = [term for term in self.terms if term.structure.rank < self.space.dim and term.rows() is not None]
        rest = [term for term in self.terms if all(term is not t for t in low)]
        if not low or not rest or any(term.structure.direct is None for term in rest):
            return None
        rows = torch.cat([r for r in (term.rows() for term in low) if r is not None])
        return (rest[0] if len(rest) == 1 else Sum(rest)), rows

    def direct_factorization(self, method: str) -> Factorization | None:
        if self.dtype is None:
            return None
        if (pair := self._tikhonov()) is not None:
            return self._pencil(pair)
        if self.structure.kind == "diagonal":
            return DiagonalFactor(self.diagonal_entries())
        if self.structure.direct is None:
            return None
        rows = self.rows()
        return factorize_dense(self.dense_matrix(), method) if rows is None else factorize_rows(rows)

    def _pencil(self, pair: tuple[InnerProduct, InnerProduct]) -> Factorization | None:
        """The pair diagonalized together, if one is definite; None leaves the sum to its dense matrix."""
        if self.differentiable:  # an eigendecomposition has no derivative where eigenvalues meet
            return None
        probe = torch.empty(0, **self._options(None))
        for g, reference in (pair, pair[::-1]):
            try:
                return g.pencil_with(reference, probe).shifted(1.0)
            except RankDeficient:
                continue
        return None

    @property
    def symmetry(self) -> Symmetry:
        symmetry = self.terms[0].symmetry
        for term in self.terms[1:]:
            symmetry = symmetry + term.symmetry
        return symmetry

    def expression(self) -> str:
        return " + ".join(term.expression() for term in self.terms)

    def own_state(self) -> State:
        return {"terms": [term.state() for term in self.terms]}

    @classmethod
    def restore(cls, space: VectorSpace, state: State) -> Sum:
        return cls([InnerProduct.from_state(space, term) for term in state["terms"]])
