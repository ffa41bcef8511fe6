"""Factored Tikhonov damping: damp each factor of a product rather than the product.

`g + λ * h` is exact damping in the reference h. Damping the factors is another operation, with a symmetry of its own,
and costs Cholesky factorizations only:

    damp_factors(G * A, λ, h_S * h_A) == (G + √λ/π * h_S) * (A + √λ π * h_A)

where π balances the two: π² is the size of A relative to h_A over that of G relative to h_S. "trace" takes mean
eigenvalues for sizes, "frobenius" their root mean squares, and "none" is π = 1, as it is where a factor is zero, or
the two together are lost beside λ in rounding. With balanced factors the result does not depend on how a scale is split
between G and A.

The reference decides which symmetries survive. `Euclidean(W)` names the origin of every hull, and translations are
lost at it. `euclidean_on_translations(W)` measures linear parts alone, so that translations are kept: relative to a
form that vanishes on constants, the size of A is that of the centred covariance, the Schur complement of A, on V*.
Relative to data (factors of an earlier batch, say) nothing is lost at all.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ..errors import DegenerateMetric, NotAnInnerProduct, SpaceMismatch
from ..factorizations import RankDeficient, factorize_dense, rounding_unit, tolerance_of
from ..spaces import Family
from ..symmetry import Symmetry
from .base import InnerProduct
from .damped import light_symmetry, plus
from .diagonal import Euclidean
from .direct_sum import BlockDiagonal
from .kronecker import Kronecker
from .members import blocks
from .on_translations import EuclideanOnTranslations, on_hull
from .pencils import DIAGONAL
from .sums import Scaled

Split = Literal["trace", "frobenius", "none"]


class FactorsDampable(InnerProduct):
    """A form made of products that is no direct sum of them, and knows itself what it is with its factors damped."""

    @abstractmethod
    def factors_damped(self, damping: float | Tensor, reference: InnerProduct, split: Split) -> InnerProduct:
        """`damp_factors(self, damping, reference, split)`, checked already."""


def damp_factors(
    g: InnerProduct, damping: float | Tensor, reference: InnerProduct, split: Split = "trace"
) -> InnerProduct:
    """A product of two factors with each factor damped; a direct sum of such, summand by summand.

    Where there are no two factors to damp, the damping is exact: g + λ * reference. So it is of a form that is no
    product, and of parameters without a layer, whose only input is the one point. `damping` may be a tensor of no
    dimension; on an accelerator it is not looked at.
    """
    if split not in ("trace", "frobenius", "none"):
        raise NotAnInnerProduct(
            f"NotAnInnerProduct in damp_factors: split is 'trace', 'frobenius' or 'none', got {split!r}."
        )
    if not isinstance(damping, Tensor) or damping.device.type == "cpu":  # elsewhere a look would wait for the device
        value = float(damping.detach() if isinstance(damping, Tensor) else damping)
        if not 0 < value < math.inf:
            raise NotAnInnerProduct(
                f"NotAnInnerProduct in damp_factors: damping must be positive and finite, got {value}."
            )
    if reference.space != g.space:
        raise SpaceMismatch(f"SpaceMismatch in damp_factors: {reference!r} is no reference for {g!r}.")
    if isinstance(g, FactorsDampable):
        return g.factors_damped(damping, reference, split)
    if isinstance(g, BlockDiagonal):
        references = reference.summands()
        if references is None:
            raise SpaceMismatch(f"SpaceMismatch in damp_factors: {reference!r} is no direct sum of references.")
        return BlockDiagonal({k: damp_factors(part, damping, references[k], split) for k, part in g.parts.items()})
    scalar, product = (g.scalar, g.of) if isinstance(g, Scaled) else (1.0, g)
    if not isinstance(product, Kronecker) or len(product.factors) != 2:
        return g + Scaled(damping, reference)
    along = reference.factors_on(tuple(f.space for f in product.factors))
    if along is None:
        raise SpaceMismatch(
            f"SpaceMismatch in damp_factors: {g!r} damped by {reference!r}: a product of two factors needs a "
            f"reference that is one along the same factors. Use g + λ * reference for others."
        )
    (G, A), (h_S, h_A) = product.factors, along
    probe = torch.empty(0, **(reference if product.dtype is None else product)._options(None))
    if A.space.dim == 1 and not A.space.bases:
        mass, length = A.diagonal_entries(probe)[0], h_A.diagonal_entries(probe)[0]
        return Kronecker([plus(Scaled(scalar * mass, G), Scaled(damping * length, h_S)), Euclidean(A.space)])
    root = (damping / scalar) ** 0.5
    if split == "none":
        return scalar * Kronecker([plus(G, Scaled(root, h_S)), plus(A, Scaled(root, h_A))])
    pi = balance(size(A, h_A, split, probe), size(G, h_S, split, probe), damping / scalar)
    of_G, of_A = light_symmetry(G), light_symmetry(A)
    damped_G = plus(G, Scaled(root / pi, h_S, partial(symmetry_of_balance, of_G, h_S, of_A, h_A)))
    damped_A = plus(A, Scaled(root * pi, h_A, partial(symmetry_of_balance, of_A, h_A, of_G, h_S)))
    return scalar * Kronecker([damped_G, damped_A])


def symmetry_of_balance(
    g: Callable[[], Symmetry], reference: InnerProduct, other: Callable[[], Symmetry], its: InnerProduct
) -> Symmetry:
    """That of the root of a form's size over another's."""
    return (g() * reference.symmetry**-1 * (other() * its.symmetry**-1) ** -1) ** Fraction(1, 2)


def balance(of_A: Tensor, of_G: Tensor, damping: float | Tensor) -> Tensor:
    """π, which is one where a size is zero: a factor that is zero has no scale to balance.

    What is left of zero in rounding has none either, and without the constants in the reference biases would have no
    other damping than by it. The product of the sizes tells, which stays where a scale moves from one to the other.
    """
    known, one = of_A * of_G > rounding_unit(of_A.dtype) * damping, torch.ones_like(of_A)
    return (torch.where(known, of_A, one) / torch.where(known, of_G, one)).sqrt()


def size(g: InnerProduct, reference: InnerProduct, split: Split, like: Tensor) -> Tensor:
    """The mean eigenvalue of g relative to the reference, or their root mean square.

    Relative to a form whose kernel are the constants of Â*, that of the centred covariance relative to it on V*.
    """
    d = g.space.dim
    if isinstance(reference, Euclidean):
        return g.diagonal_entries(like).sum() / d if split == "trace" else frobenius(g, like) / d**0.5
    if isinstance(reference, EuclideanOnTranslations) and split == "trace":
        if g.structure.kind in ("diagonal", "identity"):
            members = g.space.members if isinstance(g.space, Family) else 1
            return g.diagonal_entries(like).reshape(members, -1)[:, :-1].mean()
        return told_variances(member_matrices(g, like)).mean()
    if isinstance(reference, EuclideanOnTranslations) or vanishes_on_constants(reference, like):
        return size_on_translations(g, reference, split, like)
    try:
        relative = reference.factorization(like).solve(g.dense_matrix(like))
    except RankDeficient as short:
        raise DegenerateMetric(
            f"DegenerateMetric in damp_factors: no traces and norms relative to {reference!r}, it has {short}. Use "
            f"split='none', or a reference that is definite, but for the constants of Â* which it may vanish on.",
            reference.space,
            short.rank,
        ) from None
    return relative.diagonal().sum() / d if split == "trace" else ((relative * relative.mT).sum() / d).sqrt()


def frobenius(g: InnerProduct, like: Tensor) -> Tensor:
    """The norm of the matrix, which is written down only where it has no fewer rows that it is made of."""
    if g.structure.kind in DIAGONAL:
        return g.diagonal_entries(like).norm()
    rows = g.rows() if g.structure.rank < g.space.dim else None
    return (g.dense_matrix(like) if rows is None else rows @ rows.mT).norm()


def vanishes_on_constants(reference: InnerProduct, like: Tensor) -> bool:
    if not on_hull(reference.space):
        return False
    M = member_matrices(reference, like)
    sizes = M.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    return bool((M[..., -1].abs() <= 1e2 * tolerance_of(M) * sizes * sizes.amax(-1, keepdim=True)).all())


def member_matrices(g: InnerProduct, like: Tensor) -> Tensor:
    """(members, d, d)."""
    M = g.dense_blocks()
    if M is None:
        M = blocks(g, like) if isinstance(g.space, Family) and g.by_members else g.dense_matrix(like)
    if M.ndim == 2 and isinstance(g.space, Family):  # what stands between members is not seen
        m, d = g.space.members, g.space.of.dim
        M = M.reshape(m, d, m, d).diagonal(dim1=0, dim2=2).movedim(-1, 0)
    return M if M.ndim == 3 else M[None]


def centred(M: Tensor) -> Tensor:
    """The Schur complement on V* of matrices (m, d, d) on Â*: lengths of the shortest functional with a linear part."""
    mean, told = M[:, :-1, -1], told_variances(M) > 0
    covariance = M[:, :-1, :-1] - mean[:, :, None] * mean[:, None, :] / mass_of(M)[..., None]
    return torch.where(told[:, :, None] & told[:, None, :], covariance, 0.0)


def told_variances(M: Tensor) -> Tensor:
    """The diagonal of the centred covariance; what cannot be told from zero is zero."""
    squares = M.diagonal(dim1=-2, dim2=-1)[:, :-1]
    variances = squares - M[:, :-1, -1].square() / mass_of(M)
    return torch.where(variances > tolerance_of(M) * squares, variances, 0.0)


def mass_of(M: Tensor) -> Tensor:
    """(m, 1); where it is zero, nothing stands beside it either."""
    mass = M[:, -1:, -1]
    return torch.where(mass > 0, mass, 1.0)


def size_on_translations(g: InnerProduct, reference: InnerProduct, split: Split, like: Tensor) -> Tensor:
    covariance = centred(member_matrices(g, like))
    h = member_matrices(reference, like)[:, :-1, :-1]
    m, n = covariance.shape[:2]
    try:
        relative = factorize_dense(h.expand(m, n, n)).solve_columns(covariance.reshape(m * n, n)).reshape(m, n, n)
    except RankDeficient as short:
        raise DegenerateMetric(
            f"DegenerateMetric in damp_factors: no traces and norms relative to {reference!r}, which on the "
            f"translations has {short}. Use split='none', or a reference that is definite there.",
            reference.space,
            short.rank,
        ) from None
    if split == "trace":
        return relative.diagonal(dim1=-2, dim2=-1).mean()
    return ((relative * relative.mT).sum((-2, -1)).mean() / n).sqrt()
