"""The product of two factors that is nearest to the second moment of gradients, as Gaussians are near: KL-Shampoo.

Of all L ⊗ R on S ⊗ Â*, the Gaussian on gradients with this covariance is nearest in Kullback-Leibler divergence to
that of the moment E[D ⊗ D] itself where

    L = E[D R⁻¹ Dᵀ] / dim Â,    R = E[Dᵀ L⁻¹ D] / dim S,

each the moment of the gradients measured in the other (Lin et al. 2025; the fit of a matrix normal distribution, solved
in turns since Dutilleul 1999). Where a factor has a kernel, its rank stands for the dimension. Shampoo's factors are
one round of it from R = 1 and L = 1. Nothing in the equations names a frame: the solution, with power 1, keeps every
affine frame, where Shampoo keeps rotations. A root of it, ε, and rounds that were not gone to the end name the
coordinates. The product alone is determined: where ε is added, the two are brought to one mean eigenvalue.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import DegenerateMetric, InvalidSetting, SpaceMismatch
from ..inner_products import BlockDiagonal, Euclidean, Gram, InnerProduct, Kronecker, Power
from ..networks import Empirical, Estimator
from ..networks.observation import LayerObservation, Observation
from ..samples.measures import times
from ..spaces import Family
from ..symmetry import Symmetry
from . import structures
from .adaptive import Adaptive, check_labels, check_of, mean_gradient
from .base import LayerwiseMetric, named
from .per_example import gradients, root

SETTLED, ROUNDS = 1e-13, 2000
"""Factors that change less in a round, relative to their size, have settled; and how many rounds that may take."""
PROBED, DETERMINED = 50, 1e-7
"""For how many rounds a random change is followed, and how much smaller it must get in the last of them."""
KERNEL = 1e-12
"""Eigenvalues of a factor smaller than this, relative to the largest, are none: gradients have no part there."""


@dataclass(frozen=True, repr=False)
class KLShampoo(Adaptive):
    """(L + ε)ᵖ ⊗ (R + ε)ᵖ with L = E[D R⁻¹ Dᵀ] / dim Â and R = E[Dᵀ L⁻¹ D] / dim S.

    Over `of="examples"`, the gradients of single examples, the two equations are solved, or gone through `rounds`
    times from R = 1. Of the "batch" there is one gradient, which does not determine the factors: they start as
    Shampoo's, and in an average each is measured in what the other has become, (R + ε)⁻¹. `power=1` takes the factors
    themselves, ½ is the authors' root. `observed` says where the examples' gradients come from: by default labels of
    the data.
    """

    epsilon: float = 0.0
    of: Literal["batch", "examples"] = "examples"
    power: float = 0.5
    rounds: int | None = None
    observed: Estimator | None = None

    def __post_init__(self) -> None:
        self._check()
        check_of(self, self.of)
        rounds = self.rounds
        if rounds is not None and (isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1):
            raise InvalidSetting(
                f"InvalidSetting in KLShampoo: rounds={rounds!r}, expected a number of rounds, or None: until the "
                f"factors have settled."
            )

    def estimator(self, targets: Any = None) -> Estimator:
        return Empirical(targets) if self.observed is None else self.observed

    def at(self, observation: Observation) -> InnerProduct:
        if self.of == "batch":
            check_labels(self, observation)
        return LayerwiseMetric.at(self, observation)

    def at_layer(self, layer: LayerObservation) -> InnerProduct:
        D = self._gradients(layer)
        left, right = ones(layer.S, D), ones(layer.A, D)
        if self.of == "batch":
            return self._form(layer, *self._measured(layer, D, left, right))
        return self._form(layer, *self._fitted(layer, D, right))

    def refreshed(self, previous: InnerProduct, observation: Observation) -> InnerProduct:
        """Each factor measured in the other one of the earlier value."""
        if self.of == "batch":
            check_labels(self, observation)
        before = previous.summands() if previous.space == observation.space else None
        parts: dict[str, InnerProduct] = {}
        for path, layer in observation.layers.items():
            g = None if before is None else before[path]
            if not isinstance(g, Power) or not isinstance(g.of, Kronecker):
                raise SpaceMismatch(
                    f"SpaceMismatch in KLShampoo.refreshed: expected an earlier value of this metric on "
                    f"{observation.space}, got {previous!r}. Make the first one with at(observation)."
                )
            with named(self, path):
                left, right = (matrix_of(f) for f in g.of.factors)
                found = self._measured(layer, self._gradients(layer), left, right)
                symmetries = [f.symmetry for f in g.of.factors]
                parts[path] = self._form(layer, *found, before=(symmetries[0], symmetries[1]))
        return BlockDiagonal(parts)

    def _gradients(self, layer: LayerObservation) -> Tensor:
        """Gradients times the roots of their weights, (number, [members], dim S, dim Â)."""
        if self.of == "batch":
            return mean_gradient(layer)[None]
        parts = [times(D.flatten(2), root(w)).reshape(-1, *layer.space.shape) for D, w in gradients(layer)]
        return torch.cat(parts)

    def _measured(self, layer: LayerObservation, D: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Each factor in the other as it is given."""
        return self._left(layer, D, right, self.epsilon), self._right(layer, D, left, self.epsilon)

    def _left(self, layer: LayerObservation, D: Tensor, right: Tensor, epsilon: float = 0.0) -> Tensor:
        measure, dim = inverse(right, epsilon)
        L = (D @ measure @ D.mT).sum(0) / dim
        L = (L + L.mT) / 2
        return L.mean(0) if L.ndim == 3 and not isinstance(layer.S, Family) else L

    def _right(self, layer: LayerObservation, D: Tensor, left: Tensor, epsilon: float = 0.0) -> Tensor:
        measure, dim = inverse(left, epsilon)
        R = (D.mT @ measure @ D).sum(0) / dim
        R = (R + R.mT) / 2
        return R.mean(0) if R.ndim == 3 and not isinstance(layer.A, Family) else R

    def _fitted(self, layer: LayerObservation, D: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        left = self._left(layer, D, right)
        for k in range(self.rounds or ROUNDS):
            before = left, right
            right = self._right(layer, D, left)
            if k + 1 == self.rounds:
                return left, right
            left = self._left(layer, D, right)
            if self.rounds is None and max(apart(left, before[0]), apart(right, before[1])) < SETTLED:
                if not determined(D, left, right):
                    break
                return balanced(left, right) if self.epsilon else (left, right)
        raise DegenerateMetric(
            f"DegenerateMetric in KLShampoo: {len(D)} gradients of {D.shape[-2]} × {D.shape[-1]} numbers determine no "
            f"product on {layer.space}. Take a larger batch, or go a number of rounds from the start: rounds=2.",
            layer.space,
            int(min(len(D), layer.space.dim)),
        )

    def _form(
        self, layer: LayerObservation, left: Tensor, right: Tensor, before: tuple[Symmetry, Symmetry] | None = None
    ) -> InnerProduct:
        factors: list[InnerProduct] = []
        sides = (layer.S, left, "left"), (layer.A.dual, right, "right")
        for (space, M, side), s in zip(sides, self._symmetries(layer, before), strict=True):
            factors.append(Gram.of(space, M, f"{side} factor of {layer.path}", s))
        return Power(Kronecker(factors, layer.space), self.power, before=self.epsilon)

    def _symmetries(
        self, layer: LayerObservation, before: tuple[Symmetry, Symmetry] | None
    ) -> tuple[Symmetry, Symmetry]:
        """What the factors name: the frames in which they were ones at the start, where that has not been forgotten."""
        F = structures.block_diagonal(layer).symmetry
        S, A = Euclidean(layer.S).symmetry, Euclidean(layer.A.dual).symmetry
        if before is None and self.of == "batch":
            before = S, A
        if before is not None:
            left, right = (s + e if self.epsilon else s for s, e in zip(before, (S, A), strict=True))
            return F * right**-1, F * left**-1
        if self.epsilon and self.rounds is None:
            half = Fraction(1, 2)
            return F**half * S**half * A**-half, F**half * S**-half * A**half
        return (F, Symmetry.natural()) if self.rounds is None else (F * A**-1, F * (F * A**-1) ** -1)


def ones(space: Any, like: Tensor) -> Tensor:
    """The identity, one for each member of a family."""
    if isinstance(space, Family):
        return torch.eye(space.of.dim, dtype=like.dtype, device=like.device).repeat(space.members, 1, 1)
    return torch.eye(space.dim, dtype=like.dtype, device=like.device)


def matrix_of(f: InnerProduct) -> Tensor:
    blocks = f.dense_blocks()
    return f.dense_matrix() if blocks is None else blocks


def inverse(M: Tensor, epsilon: float) -> tuple[Tensor, Tensor | int]:
    """(M + ε)⁻¹, and the dimension; without ε on the support of M, and the rank.

    What is measured lies in the support, so that no choice of an inverse is seen.
    """
    values, vectors, kept = on_support(M, epsilon)
    inverses = torch.where(kept, torch.where(kept, values, 1.0).reciprocal(), 0.0)
    dim = M.shape[-1] if epsilon else kept.sum(-1).clamp(min=1)[..., None, None]
    return (vectors * inverses[..., None, :]) @ vectors.mT, dim


def on_support(M: Tensor, epsilon: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues and vectors, and which of them are no rounding."""
    values, vectors = torch.linalg.eigh(M)
    values = values.clamp(min=0) + epsilon
    kept = values > (0.0 if epsilon else KERNEL) * values.amax(-1, keepdim=True)
    return values, vectors, kept


def determined(D: Tensor, left: Tensor, right: Tensor) -> bool:
    """Whether no other factors solve the equations too.

    In frames orthonormal for both, X ↦ E[D E[Dᵀ X D] Dᵀ] is what one round does to a small change X of L. It keeps the
    identity, a change of scale; one more change that it keeps is another solution.
    """
    whitened, ranks = D, []
    for M in (left, right):
        values, vectors, kept = on_support(M)
        K = vectors * torch.where(kept, torch.where(kept, values, 1.0).rsqrt(), 0.0)[..., None, :]
        whitened = K.mT @ whitened if M is left else whitened @ K
        ranks.append(kept.sum(-1).clamp(min=1)[..., None, None])
    generator = torch.Generator().manual_seed(0)
    d = D.shape[-2]
    X = torch.randn(*D.shape[1:-2], d, d, generator=generator, dtype=torch.float64).to(D)
    one = (whitened @ whitened.mT).sum(0) / ranks[1]
    ratio = torch.zeros(())
    for _ in range(PROBED):
        X = (X + X.mT) / 2
        X = X - (X * one).sum((-2, -1), keepdim=True) / one.square().sum((-2, -1), keepdim=True) * one
        size = X.square().sum((-2, -1), keepdim=True).sqrt()
        X = X / size.clamp(min=torch.finfo(X.dtype).tiny)
        Y = (whitened.mT @ X @ whitened).sum(0) / ranks[0]
        X = (whitened @ Y @ whitened.mT).sum(0) / ranks[1]
        ratio = X.square().sum((-2, -1)).sqrt()
    return bool((ratio < 1 - DETERMINED).all())


def apart(M: Tensor, before: Tensor) -> float:
    return float((M - before).abs().max() / M.abs().max().clamp(min=torch.finfo(M.dtype).tiny))


def balanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The same product, with one mean eigenvalue for both factors: ε is added to each."""
    sizes = [M.diagonal(dim1=-2, dim2=-1).mean().clamp(min=torch.finfo(M.dtype).tiny) for M in (left, right)]
    c = (sizes[1] / sizes[0]).sqrt()
    return left * c, right / c
