"""Factored Tikhonov damping: damp each factor of a product rather than the product.

`g + λ * h` is exact damping in the reference h. Damping the factors is another operation, with a symmetry of its own,
and costs Cholesky factorizations only:

    damp_factors(G * A, λ, h_S * h_A) == (G + √λ/π * h_S) * (A + √λ π * h_A)

where π balances the two: "trace" by traces relative to the references, "frobenius" by Frobenius norms, "none" is π = 1,
as it is where a factor is zero. With balanced factors the result does not depend on how a scale is split between G
and A.

The reference decides which symmetries survive. `Euclidean(W)` names the origin of every hull, and translations are lost
at it; `euclidean_on_translations(W)` measures linear parts alone and keeps them, in exact damping and in factored
damping with split="none".
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from ..errors import DegenerateMetric, NotAnInnerProduct, SpaceMismatch
from ..factorizations import RankDeficient
from ..linear_maps import LinearMap
from ..spaces import DirectSum, Dual, Family, Hull, Product, VectorSpace
from ..symmetry import Symmetry
from .base import InnerProduct
from .diagonal import Euclidean
from .direct_sum import BlockDiagonal
from .kronecker import Kronecker
from .maps import OnMembers
from .sums import Scaled

Split = Literal["trace", "frobenius", "none"]


def damp_factors(
    g: InnerProduct, damping: float | Tensor, reference: InnerProduct, split: Split = "trace"
) -> InnerProduct:
    """A product of two factors with each factor damped; a direct sum of such, summand by summand."""
    if split not in ("trace", "frobenius", "none"):
        raise NotAnInnerProduct(
            f"NotAnInnerProduct in damp_factors: split is 'trace', 'frobenius' or 'none', got {split!r}."
        )
    value = float(damping.detach() if isinstance(damping, Tensor) else damping)
    if not 0 < value < math.inf:
        raise NotAnInnerProduct(f"NotAnInnerProduct in damp_factors: damping must be positive and finite, got {value}.")
    if reference.space != g.space:
        raise SpaceMismatch(f"SpaceMismatch in damp_factors: {reference!r} is no reference for {g!r}.")
    if isinstance(g, BlockDiagonal):
        references = reference.summands()
        if references is None:
            raise SpaceMismatch(f"SpaceMismatch in damp_factors: {reference!r} is no direct sum of references.")
        return BlockDiagonal({k: damp_factors(part, damping, references[k], split) for k, part in g.parts.items()})
    scalar, product = (g.scalar, g.of) if isinstance(g, Scaled) else (1.0, g)
    factors = product.factors if isinstance(product, Kronecker) else ()
    references_on = reference.factors_on(tuple(f.space for f in factors)) if len(factors) == 2 else None
    if references_on is None:
        raise SpaceMismatch(
            f"SpaceMismatch in damp_factors: {g!r} damped by {reference!r}: a product of two factors is needed, and a "
            f"reference that is one along the same factors. Use g + λ * reference for other forms."
        )
    (G, A), (h_S, h_A) = factors, references_on
    damping = damping / scalar
    if split == "none":
        pi: Tensor | float = 1.0
        pi_symmetry = Symmetry.natural()
    else:
        probe = torch.empty(0, **(reference if product.dtype is None else product)._options(None))
        sizes = [size(f, h, split, probe) for f, h in ((G, h_S), (A, h_A))]
        known = bool(sizes[0] > 0) and bool(sizes[1] > 0)  # a factor that is zero has no scale to balance
        pi = (sizes[1] / sizes[0]).sqrt() if known else torch.ones_like(sizes[0])
        pi_symmetry = (A.symmetry * h_A.symmetry**-1 * (G.symmetry * h_S.symmetry**-1) ** -1) ** Fraction(1, 2)
    root = damping**0.5
    damped_G = G + Scaled(root / pi, h_S, pi_symmetry**-1)
    damped_A = A + Scaled(root * pi, h_A, pi_symmetry)
    return scalar * (damped_G * damped_A)


def size(g: InnerProduct, reference: InnerProduct, split: Split, like: Tensor) -> Tensor:
    """The mean eigenvalue of g relative to the reference, or their root mean square."""
    d = g.space.dim
    if isinstance(reference, Euclidean) and split == "trace":
        return g.diagonal_entries(like).sum() / d
    try:
        relative = reference.factorization(like).solve(g.dense_matrix(like))
    except RankDeficient as short:
        raise DegenerateMetric(
            f"DegenerateMetric in damp_factors: no traces and norms relative to {reference!r}, it has {short}. "
            f"Use split='none', or a definite reference.",
            reference.space,
            short.rank,
        ) from None
    return relative.diagonal().sum() / d if split == "trace" else ((relative * relative.mT).sum() / d).sqrt()


def euclidean_on_translations(space: VectorSpace) -> InnerProduct:
    """The Euclidean form with every Â* measured on the translations alone: |f|² is that of f's linear part.

    It vanishes on constants and names no origin, so damping by it keeps the translations of 𝒜: isometries in place of
    rotations about the origin. On a layer's `Hom(Â, S)` it is the square of the weight, without the bias. Factored
    damping by it takes split="none": a form with a kernel has no traces to balance by.
    """
    if isinstance(space, DirectSum):
        return BlockDiagonal({name: euclidean_on_translations(V) for name, V in space.parts})
    if not _has_hull(space):
        return Euclidean(space)
    if isinstance(space, Product):
        return Kronecker([euclidean_on_translations(V) for V in space.of])
    if isinstance(space, Family) and isinstance(space.of, Product):
        first, *others = space.of.of
        return Kronecker([euclidean_on_translations(V) for V in (Family(first, space.members), *others)])
    member = space.of if isinstance(space, Family) else space
    if not isinstance(member, Dual):
        raise SpaceMismatch(
            f"SpaceMismatch in euclidean_on_translations: on {member} lengths of translations say nothing of points "
            f"without an origin. It is for affine functionals, {member.dual}, and products with them."
        )
    assert isinstance(member.of, Hull)
    linear_part = LinearMap.translations(member.of.of).transpose
    if isinstance(space, Family):
        linear_part = _of_each(linear_part, space.members)
    return Euclidean(linear_part.codomain).pullback(linear_part)


def _has_hull(space: VectorSpace) -> bool:
    """Whether a hull of more than one point takes part."""
    return (isinstance(space, Hull) and space.of.dim > 0) or any(map(_has_hull, space.made_of))


def _of_each(phi: LinearMap, members: int) -> LinearMap:
    """The map on each member of a family."""
    domain, codomain = Family(phi.domain, members), Family(phi.codomain, members)

    apply, transpose = OnMembers(phi._apply, members), OnMembers(phi._transpose, members)
    return LinearMap.from_functions(domain, codomain, apply, transpose, phi.name, phi.symmetry)
