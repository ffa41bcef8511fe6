"""Output metrics without a distribution, for Gauss-Newton-type metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..elements import describe
from ..errors import NonFinite, NotAnInnerProduct, RiemannError, ShapeMismatch
from .base import OutputMetric
from .layout import Layout
from .roots import BlockRoot, DiagonalRoot, Root


@dataclass(frozen=True, eq=False, repr=False)
class EuclideanOutput(OutputMetric):
    """H = scale · 1: the raw outputs as a Euclidean space. It names their basis, and keeps only its symmetries."""

    scale: float = 1.0
    diagonal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise RiemannError(f"EuclideanOutput: scale must be positive, got {self.scale!r}.")

    def root(self, z: Tensor) -> DiagonalRoot:
        Layout(1).check(repr(self), z)
        return DiagonalRoot(torch.full_like(z, self.scale**0.5))

    def kernel(self, z: Tensor) -> Tensor:
        return z.new_zeros(0, *z.shape[1:])


@dataclass(frozen=True, eq=False, repr=False)
class OutputForm(OutputMetric):
    """Your own: `form(z)` is a symmetric positive matrix on flat outputs, (examples, D, D), or (D, D) for all of them.

    A Riemannian metric of another library is one of these: `OutputForm(lambda z: metric.metric_matrix(z))`.
    """

    form: Callable[[Tensor], Tensor]

    def root(self, z: Tensor) -> Root:
        layout = Layout(None)
        layout.check(repr(self), z)
        return BlockRoot(layout, z.shape, psd_root(repr(self), self.form(z), z)[:, None])

    def kernel(self, z: Tensor) -> Tensor | None:
        return None


def psd_root(call: str, matrix: Tensor, z: Tensor) -> Tensor:
    """R (examples, D, D) with R Rᵀ = matrix; refuses what is no positive form. Eigenvalues that are rounding are
    zero.
    """
    size = z.shape[1:].numel()
    if not isinstance(matrix, Tensor) or matrix.shape not in ((size, size), (z.shape[0], size, size)):
        raise ShapeMismatch(
            f"ShapeMismatch in {call}: on outputs {describe(z)} a form is [{z.shape[0]}, {size}, {size}] or "
            f"[{size}, {size}], got {describe(matrix)}."
        )
    matrix = matrix.to(z).broadcast_to(z.shape[0], size, size)
    if not bool(matrix.isfinite().all()):
        raise NonFinite(f"NonFinite in {call}: the form has entries that are NaN or infinite.")
    scale = matrix.abs().amax((-2, -1), keepdim=True)
    tolerance = 100 * size * torch.finfo(z.dtype).eps
    if not bool(((matrix - matrix.mT).abs() <= tolerance * scale).all()):
        raise NotAnInnerProduct(
            f"NotAnInnerProduct in {call}: the form is not symmetric. Symmetrize it with (H + H.mT) / 2."
        )
    values, vectors = torch.linalg.eigh(0.5 * (matrix + matrix.mT))
    if not bool((values >= -tolerance * scale[..., 0]).all()):
        raise NotAnInnerProduct(
            f"NotAnInnerProduct in {call}: the form has an eigenvalue {float(values.min()):.3g} below zero."
        )
    kept = values.where(values > tolerance * scale[..., 0], 0.0)
    root: Tensor = vectors * kept.sqrt()[..., None, :]
    return root
