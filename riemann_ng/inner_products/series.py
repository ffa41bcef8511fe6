"""Forms of time series: what the steps of a recurrent layer, whose weight is used at each, make of two factors.

With per-step moments A₀ and A₁ = E[a_{t+1} a_tᵀ], G₀ and G₁ of inputs and cotangents, and what is further apart as in a
linear Gaussian chain, T steps give F = Σ over pairs of steps of G_{t-t'} ⊗ A_{t-t'} (Martens, Ba & Johnson 2018). In
frames E of A₀ and G₀ the lags are P = Eᵀ A₁ E, contractions, and Ψ = P_G ⊗ P_A:

    symmetrized   P symmetric: F is diagonal, s(x) = Σ (T - |d|) x^|d|, x the products of the eigenvalues of P
    limit         T → ∞: F = T (1 - Ψ)⁻¹ (1 - Ψ Ψᵀ) (1 - Ψ)⁻ᵀ

Singular values relative to A₀ are free of coordinates; those that an estimate puts above one are brought back to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

from ..errors import DegenerateMetric, SpaceMismatch
from ..factorizations import Factorization, FrameFactor, RankDeficient
from ..factorizations.base import RowFactorization
from ..solvers import Structure
from ..spaces import VectorSpace
from ..symmetry import Symmetry
from .base import InnerProduct, State, kind
from .damping import FactorsDampable, Split, damp_factors
from .kronecker import Kronecker

Approximation = Literal["symmetrized", "limit"]
MARGIN = 1e-6
"""How far below one a product of two correlations is kept."""
NEAR = 1e-2
"""Where 1 - x is smaller than this the closed form of s(x) cancels, and the sum is taken."""


def steps(x: Tensor, length: int) -> Tensor:
    """s(x) = Σ (T - |d|) x^|d| over |d| < T: T² at x = 1."""
    closed = (length * (1 - x * x) - 2 * x * (1 - x**length)) / (1 - x).square()
    near = (1 - x).abs() < NEAR
    if not bool(near.any()):
        return closed
    total, u = torch.zeros_like(x[near]), x[near]
    for d in range(length - 1, 0, -1):
        total = (total + (length - d)) * u
    closed[near] = length + 2 * total
    return closed


class LimitFactor(RowFactorization):
    """F⁻¹ = E (1 - Ψᵀ) (1 - Ψ Ψᵀ)⁻¹ (1 - Ψ) Eᵀ / T."""

    name = "series"

    def __init__(self, factors: tuple[Factorization, Factorization], lags: tuple[Tensor, Tensor], length: float):
        self.factors, self.lags, self.length = factors, lags, length
        self.shape = tuple(f.dim for f in factors)
        self.dim = self.shape[0] * self.shape[1]
        pairs = [torch.linalg.eigh(P @ P.mT) for P in lags]
        self.axes = [vectors for _, vectors in pairs]
        explained = [values.clamp(0, 1) for values, _ in pairs]
        self.rest = 1 - explained[0][:, None] * explained[1]

    def whitened(self, x: Tensor) -> Tensor:
        """Eᵀ x, as matrices."""
        G, A = self.factors
        V = x.reshape(*x.shape[:-1], *self.shape)
        return G.coframe(A.coframe(V).mT).mT

    def back(self, V: Tensor) -> Tensor:
        """E V, flat."""
        G, A = self.factors
        return G.frame(A.frame(V).mT).mT.flatten(-2)

    def lagged(self, V: Tensor) -> Tensor:
        """V - Ψ V."""
        return V - self.lags[0] @ V @ self.lags[1].mT

    def lagged_back(self, V: Tensor) -> Tensor:
        """V - Ψᵀ V."""
        return V - self.lags[0].mT @ V @ self.lags[1]

    def solve(self, x: Tensor) -> Tensor:
        return self.frame(self.coframe(x))

    def coframe(self, x: Tensor) -> Tensor:
        U, W = self.axes
        Z = U.mT @ self.lagged(self.whitened(x)) @ W
        return (Z * (self.rest * self.length).rsqrt()).flatten(-2)

    def frame(self, z: Tensor) -> Tensor:
        U, W = self.axes
        Z = z.reshape(*z.shape[:-1], *self.shape) * (self.rest * self.length).rsqrt()
        return self.back(self.lagged_back(U @ Z @ W.mT))

    def unlagged(self, V: Tensor, transposed: bool) -> Tensor:
        """(1 - Ψ)⁻¹ V or (1 - Ψᵀ)⁻¹ V, the sum of all powers, their number doubled at each turn."""
        P, Q = (L.mT if transposed else L for L in self.lags)
        for _ in range(64):
            told = P @ V @ Q.mT
            V = V + told
            if not bool(told.abs().amax() > torch.finfo(V.dtype).eps * V.abs().amax()):
                break
            P, Q = P @ P, Q @ Q
        return V

    @property
    def logdet(self) -> Tensor:
        mu, nu = (torch.linalg.eigvals(P.double()) for P in self.lags)
        lagged = (1 - mu[:, None] * nu).abs().log().sum()
        G, A = self.factors
        product = G.logdet.double() * self.shape[1] + A.logdet.double() * self.shape[0]
        return product + (self.rest.double() * self.length).log().sum() - 2 * lagged


@kind("series")
class Series(FactorsDampable):
    """The form of T steps with these moments, on S ⊗ Â*: `product` is G₀ * A₀, `lags` are G₁ and A₁.

    `lengths` says which share of the examples has how many steps. The lags are taken to be data, of the samples that
    the product is of. `damp_factors` damps G₀ and A₀, by λ over the mean number of steps.
    """

    def __init__(
        self,
        product: Kronecker,
        lags: tuple[Tensor, Tensor],
        lengths: Mapping[int, float],
        approximation: Approximation = "symmetrized",
    ):
        dims = [f.space.dim for f in product.factors] if isinstance(product, Kronecker) else []
        if len(dims) != 2 or [tuple(L.shape) for L in lags] != [(d, d) for d in dims] or product.members > 1:
            raise SpaceMismatch(
                f"SpaceMismatch in Series: {product!r} with lags {' and '.join(str(list(L.shape)) for L in lags)}. "
                f"Expected a product of two factors, and for each the square matrix of its moments one step apart."
            )
        self.product, self.lags, self.space = product, lags, product.space
        self.lengths, self.approximation = dict(lengths), approximation

    @property
    def mean_length(self) -> float:
        return sum(length * share for length, share in self.lengths.items())

    def direct_factorization(self, method: str) -> Factorization:
        forms = self.product.factors
        probe = self.lags[0]
        factors = told(forms[0], probe), told(forms[1], probe)
        lags = [f.coframe(f.coframe(L).mT).mT for f, L in zip(factors, self.lags, strict=True)]
        if self.approximation == "limit":
            return LimitFactor(factors, (contraction(lags[0]), contraction(lags[1])), self.mean_length)
        axes, values = [], []
        for f, P in zip(factors, lags, strict=True):
            psi, U = torch.linalg.eigh((P + P.mT) / 2)
            axes.append(f.frame(U.mT).mT.contiguous())
            values.append(psi)
        return FrameFactor(axes, self.spectrum(values[0][:, None] * values[1]))

    def spectrum(self, x: Tensor) -> Tensor:
        """The mean of s(x) over the examples."""
        x = x.clamp(MARGIN - 1, 1 - MARGIN)
        return torch.stack([share * steps(x, length) for length, share in self.lengths.items()]).sum(0)

    def flat_components(self, x: Tensor) -> Tensor:
        factor = self.factorization(self.lags[0])
        y = self.product.flat_components(x)  # E⁻¹ = Eᵀ (G₀ ⊗ A₀)
        if isinstance(factor, FrameFactor):
            return self.product.flat_components(factor.from_axes(factor.to_axes(y) * factor.spectrum))
        assert isinstance(factor, LimitFactor)
        V = factor.unlagged(factor.whitened(y), transposed=True)
        U, W = factor.axes
        V = U @ ((U.mT @ V @ W) * factor.rest * factor.length) @ W.mT
        return self.product.flat_components(factor.back(factor.unlagged(V, transposed=False)))

    def tensors(self) -> Iterator[Tensor]:
        yield from self.product.tensors()
        yield from self.lags

    @property
    def structure(self) -> Structure:
        s, sides = self.product.structure, sum(L.shape[0] for L in self.lags)
        turns = 4 if self.approximation == "limit" else 1
        cost = (s.direct or 0.0) + sum(20.0 * L.shape[0] ** 3 for L in self.lags)
        return Structure("series", s.dim, cost, s.apply + 2.0 * turns * s.dim * sides, s.rank)

    @property
    def symmetry(self) -> Symmetry:
        return self.product.symmetry

    def expression(self) -> str:
        lengths = ", ".join(f"{length}" for length in sorted(self.lengths))
        return f"Series({self.product.expression()}, steps={lengths}, {self.approximation})"

    def factors_damped(self, damping: float | Tensor, reference: InnerProduct, split: Split) -> InnerProduct:
        damped = damp_factors(self.product, damping / self.mean_length, reference, split)
        assert isinstance(damped, Kronecker)
        return Series(damped, self.lags, self.lengths, self.approximation)

    def blended(self, other: InnerProduct, weight: float) -> InnerProduct:
        if not isinstance(other, Series) or other.approximation != self.approximation:
            return super().blended(other, weight)
        product = self.product.blend(other.product, weight)
        assert isinstance(product, Kronecker)
        lengths = {length: share * (1 - weight) for length, share in self.lengths.items()}
        for length, share in other.lengths.items():
            lengths[length] = lengths.get(length, 0.0) + share * weight
        lags = self.lags[0].lerp(other.lags[0], weight), self.lags[1].lerp(other.lags[1], weight)
        return Series(product, lags, {k: v for k, v in lengths.items() if v}, self.approximation)

    def own_state(self) -> State:
        return {
            "product": self.product.state(), "lags": list(self.lags), "approximation": self.approximation,
            "lengths": [list(pair) for pair in self.lengths.items()],
        }  # fmt: skip

    @classmethod
    def restore(cls, space: VectorSpace, state: State) -> Series:
        product = InnerProduct.from_state(space, state["product"])
        assert isinstance(product, Kronecker)
        lengths = {int(length): share for length, share in state["lengths"]}
        return cls(product, (state["lags"][0], state["lags"][1]), lengths, state["approximation"])


def told(factor: InnerProduct, like: Tensor) -> Factorization:
    """The factorization of one of the two moments. Even the form itself is made in its frame, so it must have one."""
    try:
        return factor.factorization(like)
    except RankDeficient as short:
        raise DegenerateMetric(
            f"DegenerateMetric in Series: {factor!r} on {factor.space} has {short}, and moments one step apart are "
            f"taken relative to it. Damp the two factors by a named inner product: damp_factors(g, λ, h).",
            factor.space,
            short.rank,
        ) from None


def contraction(P: Tensor) -> Tensor:
    """With singular values of at most √(1 - MARGIN): those of a true lag are no larger than one."""
    U, s, Vt = torch.linalg.svd(P)
    return (U * s.clamp(max=(1 - MARGIN) ** 0.5)) @ Vt
