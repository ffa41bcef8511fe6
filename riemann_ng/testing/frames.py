"""Frames on a few spaces, what they make of data, and expressions that are built from both data and constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..inner_products import InnerProduct
from ..spaces import AffineSpace, DirectSum, Dual, Family, Hull, Product, Space, VectorSpace
from ..symmetry import Symmetry
from .draws import Draw

A, S, V, TOKENS = AffineSpace("A", 3), AffineSpace("S", 4), Space("V", 3), Space("tokens", 5)
MOVED: dict[str, int] = {"A": 3, "S": 4, "V": 3}
"""The spaces that frames act on, with their dimensions; tokens, a finite set, stay where they are."""


class Frames:
    """a ↦ Ωa + γ on some of the spaces, and with it a linear map on every space made of them."""

    def __init__(self, maps: Mapping[str, tuple[Tensor, Tensor]], jitter: Draw | None = None, size: float = 1e-10):
        self.maps, self.jitter, self.size = maps, jitter, size
        self.asked: set[str] = set()
        self._kept: dict[VectorSpace, Tensor] = {}

    def on(self, space: VectorSpace) -> Tensor:
        """The matrix on components of elements."""
        if space not in self._kept:
            self._kept[space] = self._on(space).contiguous()
        return self._kept[space]

    def _on(self, space: VectorSpace) -> Tensor:
        if isinstance(space, Dual):
            return torch.linalg.inv(self.on(space.of)).mT
        if isinstance(space, (Product, DirectSum)):
            parts = [self.on(U) for U in space.made_of]
            if isinstance(space, DirectSum):
                return torch.block_diag(*parts)
            total = parts[0]
            for part in parts[1:]:
                total = torch.kron(total, part)
            return total
        if isinstance(space, Family):
            return torch.block_diag(*[self.on(space.of)] * space.members)
        base = space.bases[0] if space.bases else ""
        hull = isinstance(space, Hull)
        self.asked.add(base)
        if base not in self.maps:
            return torch.eye(space.dim, dtype=torch.float64)
        linear, shift = self.maps[base]
        if not hull:
            return linear
        last = torch.zeros(1, space.dim, dtype=linear.dtype)
        last[0, -1] = 1
        return torch.cat([torch.cat([linear, shift[:, None]], dim=1), last])

    def moved(self, space: VectorSpace, x: Tensor) -> Tensor:
        """Data, flat components of elements of the space: moved, and shaken where there is jitter."""
        if self.jitter is not None:
            x = x + self.size * x.abs().max() * self.jitter.normal(*x.shape)
        return x @ self.on(space).mT


HERE = Frames({})
Build = Callable[[Frames], InnerProduct]


@dataclass(frozen=True)
class Expression:
    """A form, and what it is finished to: `value` is seen from the frame where the numbers were drawn."""

    form: Build
    finish: str
    value: Callable[[InnerProduct, Frames], Tensor]
    symmetry: Callable[[InnerProduct], Symmetry]

    def claim(self) -> Symmetry:
        return self.symmetry(self.form(HERE))

    def seen(self, frames: Frames) -> Tensor:
        return self.value(self.form(frames), frames)

    def __str__(self) -> str:
        return f"{self.finish} of {self.form(HERE).expression()}"
