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


@dataclass(frozen=True, repr=False)
class NewtonSchulz(MatrixSign):
    """By an odd polynomial `a X + b X XᵀX + c X (XᵀX)²`, `steps` times, from X at Frobenius norm 1: products only.

    The default coefficients are those of Muon: fast, and near the sign only: what is above 0.002 ends in 0.68 to 1.21.
    `NewtonSchulz.cubic()` converges, quadratically once a singular value is near 1; below that they grow by a half at
    each step, so `steps` is also a tolerance for the rank: what starts far below 1.5^-steps stays near 0. The number of
    steps is fixed, no test of convergence looks at the coordinates.

    `precision` is the dtype of the products, by default that of X; torch.bfloat16 is what torch.optim.Muon has. It
    rounds, to a part in a hundred or so, and rounding names the coordinates.
    """

    steps: int = 5
    coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315)
    precision: torch.dtype | None = None

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise InvalidSetting(f"InvalidSetting in NewtonSchulz: steps is a positive integer, got {self.steps!r}.")
        if len(self.coefficients) != 3 or not all(map(math.isfinite, self.coefficients)):
            raise InvalidSetting(
                f"InvalidSetting in NewtonSchulz: three finite coefficients (a, b, c) are needed, "
                f"got {self.coefficients!r}."
            )
        if self.precision is not None and not (
            isinstance(self.precision, torch.dtype) and self.precision.is_floating_point
        ):
            raise InvalidSetting(
                f"InvalidSetting in NewtonSchulz: precision is a floating-point dtype as torch.bfloat16, or None for "
                f"that of the matrix, got {self.precision!r}."
            )

    def __repr__(self) -> str:
        precision = "" if self.precision is None else f", precision={self.precision}"
        return f"NewtonSchulz(steps={self.steps}, coefficients={self.coefficients}{precision})"

    @classmethod
    def cubic(cls, steps: int = 40) -> NewtonSchulz:
        """The convergent one, (3X - X XᵀX) / 2."""
        return cls(steps, (1.5, -0.5, 0.0))

    def __call__(self, X: Tensor) -> Tensor:
        if X.shape[-2] > X.shape[-1]:
            return self(X.mT).mT  # the Gram matrix of the shorter side
        lead, dtype = X.shape[:-2], X.dtype
        Y = at_unit_size(X.reshape(-1, *X.shape[-2:])).to(self.precision or dtype)
        Y = Y[0] if len(Y) == 1 else Y  # products of single matrices are the faster ones
        m, n = Y.shape[-2:]
        Y = self._through_gram(Y) if self._is_long(m, n, Y.dtype) else self._step_by_step(Y)
        return Y.to(dtype).reshape(*lead, m, n)

    def _is_long(self, m: int, n: int, dtype: torch.dtype) -> bool:
        """Whether m x m matrices alone take fewer products, and lose nothing that counts.

        Below the rounding of the Gram matrix its eigenvalues are noise, and noise grows by a² at each step.
        """
        noise = float(torch.finfo(dtype).eps) * self.coefficients[0] ** (2 * self.steps)
        products, long = 2 * n * self.steps + m * self.steps, 2 * n + m * (4 * self.steps - 3)
        return self.steps <= 8 and noise < 0.05 and long < 0.9 * products

    def _polynomial(self, gram: Tensor) -> Tensor:
        """b G + c G²."""
        _, b, c = self.coefficients
        return plus(gram, gram, gram, b, c) if c else b * gram

    def _step_by_step(self, X: Tensor) -> Tensor:
        for _ in range(self.steps):
            X = plus(X, self._polynomial(X @ X.mT), X, self.coefficients[0])
        return X

    def _through_gram(self, X: Tensor) -> Tensor:
        """With P = a + b G + c G², X becomes P X and G becomes P G P: the factors are gathered, and applied once."""
        G, gathered = X @ X.mT, None
        for step in range(self.steps):
            P = self._polynomial(G)
            P.diagonal(dim1=-2, dim2=-1).add_(self.coefficients[0])
            gathered = P if gathered is None else gathered @ P
            if step < self.steps - 1:
                G = P @ (G @ P)
        assert gathered is not None
        return gathered @ X


def plus(X: Tensor, A: Tensor, B: Tensor, x: float, ab: float = 1.0) -> Tensor:
    """x X + ab A B, in one pass."""
    fused = torch.addmm if X.ndim == 2 else torch.baddbmm
    return fused(X, A, B, beta=x, alpha=ab)


def at_unit_size(X: Tensor) -> Tensor:
    """Each matrix at Frobenius norm 1, and zero at zero; squares neither overflow nor vanish."""
    tiny = torch.finfo(X.dtype).tiny
    size = torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True)
    if bool(((size > tiny**0.5 * 1e3) & size.isfinite()).all()):
        return X / size
    X = X / X.abs().amax(dim=(-2, -1), keepdim=True).clamp(min=tiny)
    return X / torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True).clamp(min=tiny)
