"""The preconditioner of the public code of ONG, as it stands: for comparison, and for nothing else.

Its eigenvectors stand in the columns of U, and a gradient is turned by U_S g U_Aᵀ, where the eigenframe is U_Sᵀ g U_A;
what the turned gradient is divided by is its own square, where second moments of examples belong. So g ↦ g/(g² + ε) is
no linear map, and no inner product makes it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidSetting
from ..inner_products import InnerProduct, Kronecker


@dataclass(frozen=True)
class AsPublished:
    """The map of covectors, with the eigenvectors (U_S, U_A) of the factors of each block."""

    frames: tuple[tuple[Tensor, Tensor], ...]
    epsilon: float

    @classmethod
    def of(cls, g: InnerProduct, epsilon: float) -> AsPublished:
        """With the factors of a product of two in each layer."""
        parts = g.summands()
        if parts is None:
            raise refused("the whole space", g)
        return cls(tuple(eigenvectors(path, part) for path, part in parts.items()), epsilon)

    def __call__(self, covectors: Tensor) -> Tensor:
        """The rows (k, dim), preconditioned."""
        done, start = [], 0
        for left, right in self.frames:
            stop = start + len(left) * len(right)
            y = left @ covectors[:, start:stop].reshape(len(covectors), len(left), len(right)) @ right.mT
            done.append((left.mT @ (y / (y.square() + self.epsilon)) @ right).flatten(1))
            start = stop
        return torch.cat(done, -1)


def eigenvectors(path: str, g: InnerProduct) -> tuple[Tensor, Tensor]:
    if not isinstance(g, Kronecker) or len(g.factors) != 2 or g.members > 1:
        raise refused(repr(path), g)
    left, right = (torch.linalg.eigh(factor.matrix())[1] for factor in g.factors)
    return left, right


def refused(where: str, g: InnerProduct) -> InvalidSetting:
    return InvalidSetting(
        f"InvalidSetting in ONG: the published preconditioner turns a layer by the eigenvectors of two factors, and "
        f"for {where} the metric has {g!r}. Use metric=KFAC(...) and layers without groups, or published=False."
    )
