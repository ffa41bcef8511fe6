"""The matrix sign of rectangular matrices: every singular value to 1, the kernel to 0. Numbers only, no spaces.

`msgn(X) = U_r V_rᵀ`, the partial isometry of X = U_r Σ_r V_rᵀ: what odd polynomials that fix 1 tend to, and the only
choice that commutes with rotations where X has a kernel. Laws:

    msgn(c X) == sign(c) msgn(X);  msgn(Xᵀ) == msgn(X)ᵀ;  msgn(P X Q) == P msgn(X) Q for orthogonal P and Q
    msgn(msgn(X)) == msgn(X);  <X, msgn(X)> is the nuclear norm
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidSetting


class MatrixSign(ABC):
    """How a matrix sign is computed. A value: its fields are its settings and show in its repr."""

    @abstractmethod
    def __call__(self, X: Tensor) -> Tensor:
        """The sign of each matrix of a batch (..., m, n), in the dtype given."""


def _singular_dtype(X: Tensor) -> Tensor:
    return X.float() if X.dtype in (torch.float16, torch.bfloat16) else X  # no SVD in half precision


def singular_values(X: Tensor) -> Tensor:
    s: Tensor = torch.linalg.svdvals(_singular_dtype(X))
    return s.to(X.dtype)


@dataclass(frozen=True)
class SVD(MatrixSign):
    """By a singular value decomposition; singular values below `rtol` times the largest count as the kernel.

    The default, eps^(2/3) of the dtype, lies well above what rounding leaves of a zero, in ill-conditioned frames too.
    """

    rtol: float | None = None

    def __post_init__(self) -> None:
        if self.rtol is not None and not 0 <= self.rtol < 1:
            raise InvalidSetting(
                f"InvalidSetting in SVD: rtol is a number from 0 to 1, got {self.rtol}. Leave it out for eps^(2/3)."
            )

    def __call__(self, X: Tensor) -> Tensor:
        rtol = torch.finfo(X.dtype).eps ** (2 / 3) if self.rtol is None else self.rtol
        U, s, Vt = torch.linalg.svd(_singular_dtype(X), full_matrices=False)
        sign: Tensor = (U * (s > rtol * s[..., :1])[..., None, :]) @ Vt
        return sign.to(X.dtype)


@dataclass(frozen=True)
class NewtonSchulz(MatrixSign):
    """By an odd polynomial `a X + b X XᵀX + c X (XᵀX)²`, `steps` times, from X at Frobenius norm 1: products only.

    The default coefficients are those of Muon: fast, and near the sign only: what is above 0.002 ends in 0.68 to 1.21.
    `NewtonSchulz.cubic()` converges, quadratically once a singular value is near 1; below that they grow by a half at
    each step, so `steps` is also a tolerance for the rank: what starts far below 1.5^-steps stays near 0. The number of
    steps is fixed, no test of convergence looks at the coordinates.
    """

    steps: int = 5
    coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315)

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise InvalidSetting(f"InvalidSetting in NewtonSchulz: steps is a positive integer, got {self.steps!r}.")
        if len(self.coefficients) != 3 or not all(map(math.isfinite, self.coefficients)):
            raise InvalidSetting(
                f"InvalidSetting in NewtonSchulz: three finite coefficients (a, b, c) are needed, "
                f"got {self.coefficients!r}."
            )

    @classmethod
    def cubic(cls, steps: int = 40) -> NewtonSchulz:
        """The convergent one, (3X - X XᵀX) / 2."""
        return cls(steps, (1.5, -0.5, 0.0))

    def __call__(self, X: Tensor) -> Tensor:
        a, b, c = self.coefficients
        if X.shape[-2] > X.shape[-1]:
            return self(X.mT).mT  # the Gram matrix of the shorter side
        tiny = torch.finfo(X.dtype).tiny
        X = X / X.abs().amax(dim=(-2, -1), keepdim=True).clamp(min=tiny)  # squares neither overflow nor vanish
        X = X / X.norm(dim=(-2, -1), keepdim=True).clamp(min=tiny)
        for _ in range(self.steps):
            gram = X @ X.mT
            X = a * X + (b * gram + c * gram @ gram if c else b * gram) @ X
        return X
