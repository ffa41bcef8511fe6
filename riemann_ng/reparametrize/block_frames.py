"""The orthonormal frame of one layer's inner product as tensors: a linear map of the layer's data, and its inverse.

Of a product of two forms the frame is a matrix on either side, w = E_S z E_Aᵀ. Two products that are diagonalized
together (exact damping) put a scale on every number before them. What is no product has a matrix for each unit, or one
for the whole layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..factorizations import (
    CholeskyFactor,
    DiagonalFactor,
    Factorization,
    FrameFactor,
    IdentityFactor,
    KroneckerFactor,
    MatrixFactor,
    ScaledFactor,
)
from ..inner_products import InnerProduct
from .groups import InvalidFrames

LARGEST = 4096
"""The dimension up to which a layer is given one dense matrix."""
NAMES = ("left", "right", "scale", "blocks")


class BlockFrame(nn.Module):
    """z ↦ E z on data of a layer's shape (members?, outputs, inputs), with E Eᵀ the inverse of its inner product.

    Either every number is multiplied by its `scale`, and then `left` and `right`, (d, d) or (members, d, d), act on
    the two sides; or `blocks` (b, k, k) divide the data into b pieces. None is the identity. They are buffers: part of
    a model's state, and moved with it. Law: `frame.inverse(frame(z)) == z`.
    """

    left: Tensor | None
    right: Tensor | None
    scale: Tensor | None
    blocks: Tensor | None

    def __init__(self, **tensors: Tensor | None):
        super().__init__()
        for name in NAMES:
            tensor = tensors.get(name)
            self.register_buffer(name, None if tensor is None else tensor.detach().contiguous())

    def forward(self, z: Tensor, columns: slice = slice(None)) -> Tensor:
        """E z, or some columns of it; those of a product are had for less than all."""
        if self.blocks is not None:
            return (self.blocks @ z.reshape(*self.blocks.shape[:2], 1)).reshape(z.shape)[..., columns]
        y = z if self.scale is None else z * self.scale
        y = y[..., columns] if self.right is None else y @ self.right[..., columns, :].mT
        return y if self.left is None else self.left @ y

    def inverse(self, w: Tensor) -> Tensor:
        """The z with E z = w."""
        if self.blocks is not None:
            return solved(self.blocks, w.reshape(*self.blocks.shape[:2], 1)).reshape(w.shape)
        z = w if self.right is None else solved(self.right, w.mT).mT
        z = z if self.left is None else solved(self.left, z)
        return z if self.scale is None else z / self.scale

    def take(self, other: BlockFrame) -> None:
        """Becomes another frame."""
        self._buffers.update({name: other._buffers[name] for name in NAMES})

    def like(self, parameter: Tensor) -> BlockFrame:
        """Where a parameter is and of its dtype, but at least in single precision."""
        return self.to(device=parameter.device, dtype=torch.promote_types(parameter.dtype, torch.float32))

    def said(self) -> str:
        """In words, for a table."""
        if self.blocks is not None:
            b, k = self.blocks.shape[:2]
            return f"a matrix [{k}, {k}]" + (f" for each of {b}" if b > 1 else "")
        sides = [(self.left, "on S"), (self.right, "on Â"), (self.scale, "a number each")]
        return ", ".join(f"{list(t.shape)} {which}" for t, which in sides if t is not None) or "the identity"


def solved(matrix: Tensor, columns: Tensor) -> Tensor:
    z: Tensor = torch.linalg.solve(matrix, columns.contiguous())
    return z


def frame_of(g: InnerProduct, like: Tensor) -> BlockFrame:
    """The frame of an inner product on a layer's space; a degenerate one says so. `like` gives dtype and device."""
    wide = torch.empty(0, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
    with torch.no_grad():
        g.frame(wide)  # a kernel shows here, and the error names the ways out
        tensors = tensors_of(g.factorization(wide), tuple(g.space.shape), wide)
        if tensors is None:
            d = g.space.dim
            if d > LARGEST:
                raise InvalidFrames(
                    f"InvalidFrames: the frame of {g!r} would be one matrix [{d}, {d}], of more than {LARGEST:,} "
                    f"rows. Take a metric that is a product or a diagonal there, or name the layers to be put in "
                    f"frames: layers=[...]."
                )
            tensors = {"blocks": in_blocks(g.factorization(wide), 1, wide)}
        return BlockFrame(**tensors).like(like)


def tensors_of(f: Factorization, shape: tuple[int, ...], like: Tensor) -> dict[str, Tensor] | None:
    """The frame of a factorization, where it has one that is smaller than a dense matrix."""
    if isinstance(f, MatrixFactor):
        return tensors_of(f.of, shape, like)
    if isinstance(f, IdentityFactor):
        return {}
    if isinstance(f, DiagonalFactor):
        return {"scale": f.entries.rsqrt().reshape(shape)}
    if isinstance(f, ScaledFactor):
        inner = tensors_of(f.of, shape, like)
        return None if inner is None else scaled(inner, f.scalar, like)
    if isinstance(f, FrameFactor):
        return of_axes(f, shape)
    if isinstance(f, CholeskyFactor) and f.L.ndim == 3:
        return {"blocks": in_blocks(f, f.L.shape[0], like)}
    return of_sides(f, like) if isinstance(f, KroneckerFactor) and len(f.dims) == 2 else None


def scaled(tensors: dict[str, Tensor], scalar: Any, like: Tensor) -> dict[str, Tensor]:
    root = torch.as_tensor(scalar, dtype=like.dtype, device=like.device) ** -0.5
    name = "blocks" if "blocks" in tensors else "scale"
    return {**tensors, name: tensors[name] * root if name in tensors else root.reshape(1, 1)}


def of_axes(f: FrameFactor, shape: tuple[int, ...]) -> dict[str, Tensor] | None:
    root = f.spectrum.rsqrt()
    if len(f.axes) == 1:
        P = f.axes[0]
        if P.ndim == 1:
            return {"scale": (P * root.reshape(P.shape)).reshape(shape)}
        return {"blocks": (P if P.ndim == 3 else P[None]) * root.reshape(-1, 1, P.shape[-1])}
    if len(f.axes) != 2:
        return None
    tensors, scale = {}, root.reshape(shape)
    for name, P, beside in (("left", f.axes[0], (-1, 1)), ("right", f.axes[1], (1, -1))):
        if P.ndim == 1:
            scale = scale * P.reshape(beside)
        else:
            tensors[name] = P
    return {**tensors, "scale": scale}


def of_sides(f: KroneckerFactor, like: Tensor) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, factor, d, beside in zip(("left", "right"), f.factors, f.dims, ((-1, 1), (1, -1)), strict=True):
        own = factor.dim // d  # members with a form of their own
        numbers = factor.of if isinstance(factor, ScaledFactor) else factor
        if isinstance(numbers, (IdentityFactor, DiagonalFactor)):
            each = factor.frame_columns(torch.ones(factor.dim, 1, dtype=like.dtype, device=like.device))
            each = each.reshape(*([own] if own > 1 else []), *beside)
            if not isinstance(factor, IdentityFactor):
                tensors["scale"] = each * tensors["scale"] if "scale" in tensors else each
        else:
            tensors[name] = in_blocks(factor, own, like) if own > 1 else in_blocks(factor, 1, like)[0]
    return tensors


def in_blocks(f: Factorization, count: int, like: Tensor) -> Tensor:
    """The matrices (count, d, d) of a frame that has nothing between its blocks."""
    d = f.dim // count
    eye = torch.eye(d, dtype=like.dtype, device=like.device)
    return f.frame_columns(eye.repeat(count, 1)).reshape(count, d, d)
