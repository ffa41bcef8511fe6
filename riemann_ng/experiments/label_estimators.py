"""The two estimators of the Fisher at one input, by plain torch: their values for every label, and their covariances.

For a model exp(<t(y), h> - F(h)) with h = h_θ(x): s = Jᵀ(t - μ) is minus the score, and

    first(y) = s sᵀ        second(y) = Jᵀ I J - Σ_a (t - μ)_a Hᵃ, the Hessian of the loss
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import hessian, jacrev

Logits = Callable[[Tensor], Tensor]
"""From flat parameters (P,) to the natural parameters of a softmax, (m,)."""


@dataclass
class Model:
    """Probabilities p (m,), J (m, P), H (m, P, P), and the moments of t - μ."""

    p: Tensor
    J: Tensor
    H: Tensor

    @classmethod
    def at(cls, logits: Logits, parameters: Tensor) -> Model:
        return cls(logits(parameters).softmax(0).detach(), jacrev(logits)(parameters), hessian(logits)(parameters))

    @property
    def deviations(self) -> Tensor:
        """t(y) - μ for every label, (labels, m)."""
        return torch.eye(len(self.p), dtype=self.p.dtype) - self.p

    @property
    def I(self) -> Tensor:  # noqa: E743  the letter of the paper
        return torch.diag(self.p) - torch.outer(self.p, self.p)

    @property
    def K(self) -> Tensor:
        """Fourth moments of t - μ."""
        d = self.deviations
        return torch.einsum("y,ya,yb,yc,yd->abcd", self.p, d, d, d, d)

    @property
    def excess(self) -> Tensor:
        """K - I ⊗ I."""
        return self.K - torch.einsum("ab,cd->abcd", self.I, self.I)

    @property
    def fisher(self) -> Tensor:
        return self.J.mT @ self.I @ self.J

    def first(self) -> Tensor:
        """For every label, (labels, P, P)."""
        s = self.deviations @ self.J
        return s[:, :, None] * s[:, None, :]

    def second(self) -> Tensor:
        return self.fisher - torch.einsum("ya,aij->yij", self.deviations, self.H)

    def covariance(self, values: Tensor) -> Tensor:
        """Of values (labels, P, P), by enumeration: (P, P, P, P)."""
        mean = torch.einsum("y,yij->ij", self.p, values)
        return torch.einsum("y,yij,ykl->ijkl", self.p, values, values) - torch.einsum("ij,kl->ijkl", mean, mean)

    def first_covariance(self) -> Tensor:
        """J J J J (K - I ⊗ I)."""
        return torch.einsum("ai,bj,ck,dl,abcd->ijkl", *[self.J] * 4, self.excess)

    def second_covariance(self) -> Tensor:
        """H H I."""
        return torch.einsum("aij,bkl,ab->ijkl", self.H, self.H, self.I)

    def variances(self) -> tuple[Tensor, Tensor]:
        """Of every entry of the two, (P, P), without the covariances."""
        J, H = self.J, self.H
        second_moment = torch.einsum("y,yij->ij", self.p, self.first().square())
        return second_moment - self.fisher.square(), torch.einsum("aij,bij,ab->ij", H, H, self.I).reshape(
            J.shape[1], -1
        )

    def bounds(self) -> tuple[float, float, float]:
        """On the Frobenius norms of the covariances: of the first, of the second, and a tighter one of the second."""
        J, H = self.J.norm(), self.H.norm()
        spectral = torch.linalg.matrix_norm(self.I, 2)
        return float(J**4 * self.excess.norm()), float(H**2 * self.I.norm()), float(H**2 * spectral)
