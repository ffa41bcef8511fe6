"""The M-orthogonal projection onto the annihilator of a few covectors.

The vectors v with α_i(v) = 0 for all i are a subspace that no metric enters; M chooses the way there:

    v ↦ v - Σ p_i(v) q_i,   p_i in the span of the α, q_i in that of the M⁻¹α, p_i(q_j) = δ_ij

What a form of the α tells of them, its eigenvalues, are squares: two covectors that are closer than the root of the
rounding unit are one to it. So where they are far from even the pairs are found in rounds, those of the largest
eigenvalues first, and what is left of the others is looked at anew. Small systems are solved in double precision,
whatever the covectors are in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PIECE = 1 << 24
"""Numbers that are brought to double precision at a time."""
DROP = 1e-6
"""Eigenvalues below this share of the largest one are left to the next round."""
EVEN = 1e-4
"""Where none is below this share, covectors and vectors are taken as they are."""


@dataclass(frozen=True)
class Complement:
    """Covectors p (rank, dim), vectors q (rank, dim), and the inverse of the matrix q_i(p_j), in double precision."""

    covectors: Tensor
    vectors: Tensor
    between: Tensor

    @property
    def rank(self) -> int:
        return self.covectors.shape[0]

    def projected(self, x: Tensor) -> Tensor:
        """The components (..., dim) of vectors, brought into the annihilator."""
        shares = (x @ self.covectors.mT).double() @ self.between
        return x - shares.to(x.dtype) @ self.vectors


def complement(covectors: Tensor, vectors: Tensor, tolerance: float | None = None) -> Complement:
    """Of covectors (k, dim) and the vectors (k, dim) that a metric makes of them.

    Each counts as of length one in the metric; combinations shorter than the tolerance count as zero. By default that
    is what rounding leaves of one.
    """
    whole = products(covectors, vectors)
    there = whole.diagonal() > 0
    size = whole.diagonal()[there].rsqrt()
    unit = whole[there][:, there] * size * size[:, None]
    values = torch.linalg.eigvalsh((unit + unit.mT) / 2)
    if bool(there.all()) and bool(values[0] > EVEN * values[-1]):
        return Complement(covectors, vectors, torch.linalg.inv(unit.mT) * size * size[:, None])
    scale = size[:, None].to(covectors.dtype)
    floor = default_tolerance(covectors) if tolerance is None else tolerance
    return in_rounds(covectors[there] * scale, vectors[there] * scale, floor)


def in_rounds(alpha: Tensor, raised: Tensor, floor: float) -> Complement:
    """Orthonormal combinations, those of the largest eigenvalues first."""
    ps, qs = [alpha[:0]], [raised[:0]]
    while len(alpha):
        values, axes = torch.linalg.eigh(gram(alpha, raised))
        largest = float(values[-1])
        if not largest > floor**2:
            break
        large = values > max(DROP * largest, floor**2)
        turn = axes[:, large] * values[large].rsqrt()
        p, q = combined(turn, alpha), combined(turn, raised)
        alpha, raised = combined(axes[:, ~large], alpha), combined(axes[:, ~large], raised)
        for earlier_p, earlier_q in (*zip(ps, qs, strict=True), (p, q)):  # what rounding has left of them
            alpha, raised = without(alpha, raised, earlier_p, earlier_q)
        ps.append(p)
        qs.append(q)
    p, q = torch.cat(ps), torch.cat(qs)
    return Complement(p, q, torch.linalg.inv(products(q, p)))


def default_tolerance(x: Tensor) -> float:
    return 64 * max(len(x), 1) ** 0.5 * torch.finfo(x.dtype).eps


def gram(covectors: Tensor, vectors: Tensor) -> Tensor:
    """α_i(v_j), symmetrized, in double precision."""
    total = products(covectors, vectors)
    return (total + total.mT) / 2


def products(covectors: Tensor, vectors: Tensor) -> Tensor:
    """α_i(v_j), some columns at a time."""
    width = max(1, PIECE // max(1, len(covectors) + len(vectors)))
    pieces = zip(covectors.split(width, 1), vectors.split(width, 1), strict=True)
    return torch.stack([a.double() @ v.double().mT for a, v in pieces]).sum(0)


def combined(turn: Tensor, x: Tensor) -> Tensor:
    return turn.mT.to(x.dtype) @ x


def without(alpha: Tensor, raised: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """What is left of covectors and of their vectors when pairs are taken out of both."""
    return alpha - (alpha @ q.mT) @ p, raised - (raised @ p.mT) @ q
