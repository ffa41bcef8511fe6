"""An affine bijection of one space."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..elements import describe
from .groups import InvalidFrames


@dataclass(frozen=True, eq=False)
class Frame:
    """An affine bijection of one space, x' = linear x + shift: (members, dim, dim) and (members, dim).

    A space that is no family has one member. The members of a family may change places besides: member j of x' is then
    what came of member `order[j]`. Laws: `f.inverse()(f(x)) == x`; `f.then(g)(x) == g(f(x))`.
    """

    linear: Tensor
    shift: Tensor
    order: Tensor | None = None

    def __post_init__(self) -> None:
        if self.linear.ndim == 2:
            object.__setattr__(self, "linear", self.linear[None])
        if self.shift.ndim == 1:
            object.__setattr__(self, "shift", self.shift[None])
        m, d = self.shift.shape[:1].numel(), self.shift.shape[-1]
        if self.linear.shape != (m, d, d) or not self.linear.is_floating_point():
            raise InvalidFrames(
                f"InvalidFrames in Frame: a bijection of a space of dimension d is a matrix [d, d] and a shift [d] "
                f"(of a family: [members, d, d] and [members, d]), got {describe(self.linear)} and "
                f"{describe(self.shift)}."
            )
        inverse, failed = torch.linalg.inv_ex(self.linear)
        condition = torch.linalg.matrix_norm(self.linear, 1) * torch.linalg.matrix_norm(inverse, 1)
        if bool(failed.any()) or not bool((condition < 1e8 * d).all() & self.shift.isfinite().all()):
            raise InvalidFrames("InvalidFrames in Frame: the matrix is singular or not finite; a frame has an inverse.")

    @classmethod
    def known(cls, linear: Tensor, shift: Tensor, order: Tensor | None = None) -> Frame:
        """Without checks, of tensors that are known to make a frame."""
        frame = object.__new__(cls)
        frame.__dict__.update(linear=linear, shift=shift, order=order)
        return frame

    @classmethod
    def identity(cls, dim: int, members: int = 1) -> Frame:
        eye = torch.eye(dim, dtype=torch.float64).expand(members, dim, dim)
        return cls.known(eye, torch.zeros(members, dim, dtype=torch.float64))

    @property
    def members(self) -> int:
        return self.linear.shape[0]

    @property
    def dim(self) -> int:
        """Of one member."""
        return self.linear.shape[-1]

    @property
    def shift_there(self) -> Tensor:
        """The shift, members where they come to stand."""
        return self.shift if self.order is None else self.shift[self.order]

    @property
    def linear_only(self) -> bool:
        return not bool(self.shift.any())

    def __call__(self, x: Tensor) -> Tensor:
        """Points (..., members · dim)."""
        moved = self.on_vectors(x)
        return moved if self.linear_only else moved + self.shift_there.to(x).flatten()

    def on_vectors(self, x: Tensor) -> Tensor:
        """Translations: the linear part alone."""
        if self.members == 1:
            return x @ self.linear[0].to(x).mT
        each = x.unflatten(-1, (self.members, self.dim))
        moved = torch.einsum("...mi,mji->...mj", each, self.linear.to(x))
        return (moved if self.order is None else moved[..., self.order, :]).flatten(-2)

    def pulled(self, x: Tensor) -> Tensor:
        """Covectors on what the frame leads to, pulled back: ξ ↦ Ωᵀξ."""
        if self.order is not None:
            x = x.unflatten(-1, (self.members, self.dim))[..., self.order.argsort(), :].flatten(-2)
        return Frame.known(self.linear.mT, torch.zeros_like(self.shift)).on_vectors(x)

    def inverse(self) -> Frame:
        linear = torch.linalg.inv(self.linear)
        shift = -torch.einsum("mij,mj->mi", linear, self.shift)
        if self.order is None:
            return Frame.known(linear, shift)
        return Frame.known(linear[self.order], shift[self.order], self.order.argsort())

    def then(self, other: Frame) -> Frame:
        here = torch.arange(self.members) if self.order is None else self.order
        linear, shift = other.linear[here.argsort()], other.shift[here.argsort()]
        order = None if self.order is None and other.order is None else here
        if order is not None and other.order is not None:
            order = order[other.order]
        return Frame.known(linear @ self.linear, torch.einsum("mij,mj->mi", linear, self.shift) + shift, order)

    def __repr__(self) -> str:
        return f"Frame({describe(self.linear)}, {describe(self.shift)})"
