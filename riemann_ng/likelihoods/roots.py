"""Square roots S of an output metric: H = S Sᵀ for each example, in whatever structure they have.

A root is made once at an output z and applied often. Laws, for every root:

    combine(pair(dz)) == apply(dz);  Σ_k columns()[:, k] columns()[:, k]ᵀ == H
    pair(dz)[:, k] == <columns()[:, k], dz>;  combine(w) == Σ_k w[:, k] columns()[:, k]
    combine(preimage(ξ)) == ξ for ξ in the image;  scaled(c) is a root of c² H
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from .layout import Layout


class Root(ABC):
    """S at every example of one output z, which has shape `shape`; `count` columns."""

    shape: torch.Size
    count: int

    @abstractmethod
    def pair(self, dz: Tensor) -> Tensor:
        """Sᵀ dz, (examples, count)."""

    @abstractmethod
    def combine(self, w: Tensor) -> Tensor:
        """S w for w (examples, count), shaped like z."""

    @abstractmethod
    def preimage(self, xi: Tensor) -> Tensor:
        """The least w (examples, count) with S w = ξ, for ξ in the image of S."""

    @abstractmethod
    def columns(self, start: int = 0, stop: int | None = None) -> Tensor:
        """The columns from `start` up to `stop`, (examples, columns, *z.shape[1:])."""

    @abstractmethod
    def scaled(self, c: float) -> Root:
        """c S."""

    def apply(self, dz: Tensor) -> Tensor:
        """H dz, shaped like z."""
        return self.combine(self.pair(dz))


class DiagonalRoot(Root):
    """S = diag(d): column k is d_k times the k-th basis vector of the flat output."""

    def __init__(self, d: Tensor):
        self.d, self.shape, self.count = d, d.shape, d.shape[1:].numel()

    def pair(self, dz: Tensor) -> Tensor:
        return (self.d * dz).reshape(self.shape[0], self.count)

    def combine(self, w: Tensor) -> Tensor:
        return self.d * w.reshape(self.shape)

    def apply(self, dz: Tensor) -> Tensor:
        return self.d.square() * dz

    def preimage(self, xi: Tensor) -> Tensor:
        return (xi / self.d).reshape(self.shape[0], self.count)

    def columns(self, start: int = 0, stop: int | None = None) -> Tensor:
        d = self.d.reshape(self.shape[0], self.count)[:, start:stop]
        k = torch.arange(d.shape[1], device=d.device)
        out = d.new_zeros(d.shape[0], d.shape[1], self.count)
        out[:, k, k + start] = d
        return out.reshape(*out.shape[:2], *self.shape[1:])

    def scaled(self, c: float) -> DiagonalRoot:
        return DiagonalRoot(c * self.d)


class SiteRoot(Root):
    """Sites are independent: S is block diagonal, and column k belongs to site k // (columns of one site)."""

    layout: Layout
    each: int

    @abstractmethod
    def site_columns(self, site: Tensor, column: Tensor) -> Tensor:
        """(examples, k, parameters): column `column[k]` of the block of site `site[k]`."""

    def columns(self, start: int = 0, stop: int | None = None) -> Tensor:
        k = torch.arange(*slice(start, stop).indices(self.count))
        site = k // self.each
        found = self.site_columns(site, k % self.each)
        out = found.new_zeros(found.shape[0], len(k), self.count // self.each, found.shape[-1])
        out[:, torch.arange(len(k)), site] = found
        return self.layout.join(out, self.shape)


class BlockRoot(SiteRoot):
    """One dense block (parameters, columns) for each site: `blocks` is (examples, sites, parameters, columns)."""

    def __init__(self, layout: Layout, shape: torch.Size, blocks: Tensor):
        self.layout, self.shape, self.blocks = layout, shape, blocks
        self.each = blocks.shape[-1]
        self.count = blocks.shape[1] * self.each

    def pair(self, dz: Tensor) -> Tensor:
        return torch.einsum("nspk,nsp->nsk", self.blocks, self.layout.split(dz)).flatten(1)

    def combine(self, w: Tensor) -> Tensor:
        ws = w.reshape(w.shape[0], -1, self.each)
        return self.layout.join(torch.einsum("nspk,nsk->nsp", self.blocks, ws), self.shape)

    def preimage(self, xi: Tensor) -> Tensor:
        return torch.einsum("nskp,nsp->nsk", torch.linalg.pinv(self.blocks), self.layout.split(xi)).flatten(1)

    def site_columns(self, site: Tensor, column: Tensor) -> Tensor:
        return self.blocks[:, site, :, column].movedim(0, 1)

    def scaled(self, c: float) -> BlockRoot:
        return BlockRoot(self.layout, self.shape, c * self.blocks)


class SoftmaxRoot(SiteRoot):
    """S = c (diag √p - p √pᵀ) at each site, columns c √p_j (e_j - p); never stored as a matrix.

    `minimal`: S Q with one column fewer, where the columns of Q span the complement of √p: those of the reflection that
    takes √p to -e_C, without the last. The last class's √p_C >= 0 makes it free of cancellation.
    """

    def __init__(
        self, layout: Layout, shape: torch.Size, log_p: Tensor, scale: Tensor | float = 1.0, minimal: bool = False
    ):
        self.layout, self.shape, self.log_p, self.scale, self.minimal = layout, shape, log_p, scale, minimal
        self.p, self.r = log_p.exp(), (0.5 * log_p).exp()
        self.each = log_p.shape[-1] - minimal
        self.count = log_p.shape[1] * self.each

    def apply(self, dz: Tensor) -> Tensor:
        d = self.layout.split(dz)
        moved = self.p * (d - (self.p * d).sum(-1, keepdim=True))
        return self.layout.join(self.scale * self.scale * moved, self.shape)

    def pair(self, dz: Tensor) -> Tensor:
        d, r = self.layout.split(dz), self.r
        centred = r * (d - (self.p * d).sum(-1, keepdim=True))
        return self._minimal(self.scale * centred).flatten(1)

    def _minimal(self, w: Tensor) -> Tensor:
        """Qᵀ w for w orthogonal to √p."""
        return w[..., :-1] - w[..., -1:] * self.r[..., :-1] / (1 + self.r[..., -1:]) if self.minimal else w

    def preimage(self, xi: Tensor) -> Tensor:
        x = self.layout.split(xi)  # a class without probability has x = 0, but for the label itself
        return self._minimal((x / (self.scale * self.r)).where(x != 0, 0.0)).flatten(1)

    def combine(self, w: Tensor) -> Tensor:
        r, ws = self.r, w.reshape(w.shape[0], -1, self.each)
        if self.minimal:
            along = (r[..., :-1] * ws).sum(-1, keepdim=True)
            share = along / (1 + r[..., -1:])
            moved = r * torch.cat([ws - share * r[..., :-1], -along], -1)
        else:
            moved = r * ws - self.p * (r * ws).sum(-1, keepdim=True)
        return self.layout.join(self.scale * moved, self.shape)

    def site_columns(self, site: Tensor, column: Tensor) -> Tensor:
        r, p = self.r[:, site], self.p[:, site]
        chosen = torch.nn.functional.one_hot(column, p.shape[-1]).to(p)
        r_j = r.gather(-1, column.to(r.device).expand(r.shape[0], -1)[..., None])
        if self.minimal:
            last = torch.nn.functional.one_hot(torch.full_like(column, p.shape[-1] - 1), p.shape[-1]).to(p)
            found = r * (chosen - (r + last) * r_j / (1 + r[..., -1:]))
        else:
            found = r_j * (chosen - p)
        return found * (self.scale[:, site] if isinstance(self.scale, Tensor) else self.scale)

    def scaled(self, c: float) -> SoftmaxRoot:
        return SoftmaxRoot(self.layout, self.shape, self.log_p, c * self.scale, self.minimal)
