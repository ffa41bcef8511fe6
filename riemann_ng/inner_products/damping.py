"""Factored Tikhonov damping: damp each factor of a product rather than the product.

`g + λ * h` is exact damping in the reference h. Damping the factors is another operation, with a symmetry of its own, and
costs Cholesky factorizations only:

    damp_factors(G * A, λ, h_S * h_A) == (G + √λ/π * h_S) * (A + √λ π * h_A)

where π balances the two: "trace" by traces relative to the references, "frobenius" by Frobenius norms, "none" is π = 1.
With balanced factors the result does not depend on how a scale is split between G and A.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from ..errors import NotAnInnerProduct, SpaceMismatch
from ..symmetry import Symmetry
from .base import InnerProduct
from .direct_sum import BlockDiagonal
from .kronecker import Kronecker
from .sums import Scaled

Split = Literal["trace", "frobenius", "none"]


def damp_factors(g: InnerProduct, damping: float | Tensor, reference: InnerProduct, split: Split = "trace") -> InnerProduct:
    """A product of two factors with each factor damped; a direct sum of such, summand by summand."""
    if split not in ("trace", "frobenius", "none"):
        raise NotAnInnerProduct(f"NotAnInnerProduct in damp_factors: split is 'trace', 'frobenius' or 'none', got {split!r}.")
    if not float(damping) > 0:
        raise NotAnInnerProduct(f"NotAnInnerProduct in damp_factors: damping must be positive, got {float(damping)}.")
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
        sizes = [size(f, h, split) for f, h in ((G, h_S), (A, h_A))]
        pi = (sizes[1] / sizes[0]).sqrt()
        pi_symmetry = (A.symmetry * h_A.symmetry**-1 * (G.symmetry * h_S.symmetry**-1) ** -1) ** Fraction(1, 2)
    root = damping**0.5
    damped_G = G + Scaled(root / pi, h_S, pi_symmetry**-1)
    damped_A = A + Scaled(root * pi, h_A, pi_symmetry)
    return scalar * (damped_G * damped_A)



def size(g: InnerProduct, reference: InnerProduct, split: Split) -> Tensor:
    """The mean eigenvalue of g relative to the reference, or their root mean square."""
    if reference.structure.kind == "identity":
        trace, squares = g.diagonal_entries().sum(), None
        if split == "frobenius":
            squares = g.dense_matrix().square().sum()
    else:
        probe = torch.empty(0, **g._options(None))
        relative = reference.factorization(probe).solve(g.dense_matrix())
        trace = relative.diagonal().sum()
        squares = (relative * relative.mT).sum() if split == "frobenius" else None
    d = g.space.dim
    return trace / d if squares is None else (squares / d).sqrt()
