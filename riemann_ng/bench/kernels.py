"""The products that second moments consist of, bare, in the two ways there are to compute them."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, unfold

from ..networks.patches import Patches
from ..samples import gram


class Kernels(ABC):
    """Products of rows with themselves, and of the patches of a convolution."""

    name: str

    @abstractmethod
    def square(self, rows: Tensor, weight: float, onto: Tensor | None = None, kept: float = 0.0) -> Tensor:
        """weight rowsᵀrows; with `onto` that is added over `kept` times it, and it is what is returned."""

    @abstractmethod
    def patches(self, m: nn.Conv2d, a: Tensor, weight: float) -> Tensor:
        """weight Σ p pᵀ over all patches, with the 1 of the bias where there is one."""


class Plain(Kernels):
    """One product of torch for each, of patches that are written down."""

    name = "plain"

    def square(self, rows: Tensor, weight: float, onto: Tensor | None = None, kept: float = 0.0) -> Tensor:
        if onto is None:
            return (rows.mT @ rows).mul_(weight)
        return onto.addmm_(rows.mT, rows, beta=kept, alpha=weight)

    def patches(self, m: nn.Conv2d, a: Tensor, weight: float) -> Tensor:
        rows = unfold(a, m.kernel_size, m.dilation, m.padding, m.stride).mT.flatten(0, 1)  # type: ignore[arg-type]
        return self.square(with_one(rows) if m.bias is not None else rows, weight)


class Halved(Plain):
    """One triangle of each in panels, and overlapping patches multiplied as images: the library's own products."""

    name = "halved"

    def square(self, rows: Tensor, weight: float, onto: Tensor | None = None, kept: float = 0.0) -> Tensor:
        return gram(rows, weight) if onto is None else gram(rows, weight, onto, onto, kept)

    def patches(self, m: nn.Conv2d, a: Tensor, weight: float) -> Tensor:
        if m.stride[0] > 1:
            return super().patches(m, a, weight)
        rows, columns = (int(p) for p in m.padding)
        x = pad(a, (columns, columns, rows, rows)) if rows or columns else a
        one = m.bias is not None
        return Patches(x, m.kernel_size, m.stride, m.dilation, one, len(a), lambda: a).moments(weight)[0]


def with_one(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
