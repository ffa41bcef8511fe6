"""Per-example gradients of one layer that are never written down: Σ over sites of cotangent ⊗ input.

Cotangents g are (examples, draws, sites, *S.shape). For n examples, k draws, t sites, o outputs and i inputs, B or Bᵀ
costs 2 n t (o i + k o) flops, a row (n k o i) numbers would not be needed for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..factorizations import DiagonalFactor, Factorization, IdentityFactor
from ..inner_products import InnerProduct
from ..networks.observation import LayerObservation, contract, dense_inputs
from ..samples import OneHot
from ..spaces import Family

BUDGET = 1 << 25
"""Numbers that one piece of a product may hold."""


class LayerRows:
    """B of one layer, for cotangents given anew at every call."""

    def __init__(self, layer: LayerObservation):
        self.path, self.space, self.S, self.A = layer.path, layer.space, layer.S, layer.A
        self.members = isinstance(layer.S, Family) and isinstance(layer.A, Family)
        self.sample = layer.inputs
        self.indices = layer.inputs.data.indices[:, 0] if isinstance(layer.inputs.data, OneHot) else None
        self.a = dense_inputs(layer.inputs)[:, 0] if self.indices is None else layer.inputs.tensor()
        self.n, _, self.t = layer.inputs.counts
        self.o, self.i = layer.S.shape[-1], layer.A.shape[-1]

    def push(self, x: Tensor, g: Tensor) -> Tensor:
        """B x for x (b, dim): (n, k, b)."""
        V = x.reshape(len(x), *self.space.shape)
        if self.indices is not None:
            u = V.mT[:, self.indices].permute(1, 2, 3, 0)  # (n, t, o, b)
        elif self.members:
            u = torch.einsum("ntmi,bmoi->ntmob", self.a, V)
        else:
            u = torch.einsum("nti,boi->ntob", self.a, V)
        return g.flatten(2) @ u.flatten(1, -2)

    def pull(self, y: Tensor, g: Tensor) -> Tensor:
        """Bᵀ y for y (n, k, b): (b, dim)."""
        b = y.shape[-1]
        h = (g.flatten(2).mT @ y).reshape(self.n, *g.shape[2:], b)
        if self.indices is not None:
            out = y.new_zeros(self.i, self.o, b).index_add_(0, self.indices.flatten(), h.flatten(0, 1))
            return out.permute(2, 1, 0).reshape(b, self.space.dim)
        pattern = "ntmob,ntmi->bmoi" if self.members else "ntob,nti->boi"
        return torch.einsum(pattern, h, self.a).reshape(b, self.space.dim)

    def rows(self, g: Tensor, at: slice = slice(None)) -> Tensor:
        """The per-example gradients of some examples, (n, k, dim)."""
        a = dense_inputs(self.sample)[at] if self.indices is not None else self.a[at, None]
        g = g[at]
        return contract(g, a).reshape(*g.shape[:2], self.space.dim)

    def squares(self, g: Tensor, weights: Tensor | float) -> Tensor:
        """Σ w ψ² over examples and draws, (dim,); weights broadcast to (n, k)."""
        w = weights if isinstance(weights, float) else weights.to(g).broadcast_to(g.shape[:2])
        if self.t == 1 and self.indices is None:
            weigh = w if isinstance(w, float) else w.reshape(*g.shape[:2], *[1] * (g.ndim - 2))
            left = (g.square() * weigh).sum(1)
            pattern = "ntmo,ntmi->moi" if self.members else "nto,nti->oi"
            return torch.einsum(pattern, left, self.a.square()).flatten()
        total = g.new_zeros(self.space.dim)
        size = max(1, BUDGET // (g.shape[1] * self.space.dim))
        for start in range(0, self.n, size):
            at = slice(start, start + size)
            each = w if isinstance(w, float) else w[at, :, None]
            total += (self.rows(g, at).square() * each).sum((0, 1))
        return total

    # The kernel

    def by_sites(self, reference: InnerProduct, k: int) -> bool:
        """Whether pairs of sites are cheaper than per-example gradients."""
        if self.members or isinstance(self.space, Family) or reference.factors_on((self.S, self.A.dual)) is None:
            return False
        pairs, gradients = self.costs(k)
        return pairs <= gradients or self.indices is not None

    def costs(self, k: int) -> tuple[float, float]:
        """Flops of the kernel, one triangle, from pairs of sites and from per-example gradients."""
        n, t, rows = float(self.n), float(self.t), float(self.n * k)
        pairs = n**2 * k * self.o * (k if t == 1 else t * (t + k)) + (n * t) ** 2 * self.i
        return pairs, 2 * rows * t * self.space.dim + rows**2 * self.space.dim

    def add_kernel(self, K: Tensor, reference: InnerProduct, g: Tensor, weights: Tensor | float) -> None:
        """K += B R⁻¹ Bᵀ, (n k, n k), of weighted rows, below the diagonal: `weights` (roots) broadcast to (n, k)."""
        root = weights if isinstance(weights, float) else weights.to(g).reshape(*weights.shape, *[1] * (g.ndim - 2))
        g = g * root
        factors = reference.factors_on((self.S, self.A.dual))
        if factors is not None and self.by_sites(reference, g.shape[1]):
            G, A = (f.factorization(g) for f in factors)
            self._add_pairs(K, G.coframe(g).to(K), *self._inputs(A, K.dtype))
        else:
            self._add_gradients(K, reference, factors, g)

    def _inputs(self, A: Factorization, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """The inputs in the frame of A, or for one-hot inputs and a diagonal A what a hit is worth."""
        if self.indices is None:
            return A.coframe(self.a).to(dtype), None
        if isinstance(A, IdentityFactor):
            return None, torch.ones((), dtype=dtype, device=self.indices.device)
        if isinstance(A, DiagonalFactor):
            return None, A.entries.reciprocal()[self.indices].to(dtype)
        return A.coframe(dense_inputs(self.sample)[:, 0]).to(dtype), None

    def _add_pairs(self, K: Tensor, g: Tensor, a: Tensor | None, hit: Tensor | None) -> None:
        """Σ over pairs of sites of <g, g'> <a, a'>, for blocks of examples below the diagonal."""
        n, k, t = g.shape[:3]
        size = max(1, min(-(-n // 8) if n * k > 256 else n, BUDGET // (n * (k + t) * t * max(k, self.o))))
        for start in range(0, n, size):
            stop = min(start + size, n)
            m = stop - start
            if a is not None:
                aa = a[start:stop].flatten(0, 1) @ a[:stop].flatten(0, 1).mT
            else:
                assert self.indices is not None and hit is not None
                same = self.indices[start:stop].flatten()[:, None] == self.indices[:stop].flatten()
                aa = same * (hit if hit.ndim == 0 else hit[:stop].flatten())
            if t == 1:  # inputs repeated along the draws of one side, so that memory is read in order
                gg = g[start:stop].flatten(0, 2) @ g[:stop].flatten(0, 2).mT
                wide = aa.repeat_interleave(k, 1)[:, None].expand(m, k, stop * k)
                K[start * k : stop * k, : stop * k].view(m, k, -1).addcmul_(gg.view(m, k, -1), wide)
                continue
            theirs = g[:stop].flatten(2).mT  # (stop, t o, k)
            for example, pairs in zip(range(start, stop), aa.view(m, t, stop * t), strict=True):
                moved = (pairs.mT @ g[example]).view(k, stop, -1)  # Σ over its sites, at every site of the others
                found = moved.transpose(0, 1) @ theirs
                K[example * k : (example + 1) * k, : stop * k] += found.transpose(0, 1).reshape(k, stop * k)

    def _add_gradients(
        self, K: Tensor, reference: InnerProduct, factors: tuple[InnerProduct, ...] | None, g: Tensor
    ) -> None:
        n, k = g.shape[:2]
        if factors is None or isinstance(self.space, Family) or self.indices is not None:
            psi = reference.factorization(g).coframe(self.rows(g).flatten(0, 1))
            add_gram(K, psi.to(K))
            return
        G, A = (f.factorization(g) for f in factors)
        white, a = G.coframe(g).to(K), A.coframe(self.a).to(K)[:, None]
        size = max(1, BUDGET // (n * k * self.i))
        for part in white.split(size, -1):
            add_gram(K, contract(part, a).reshape(n * k, -1))


def add_gram(K: Tensor, rows: Tensor) -> None:
    """K += rows rowsᵀ, below the diagonal."""
    size = max(64, -(-len(rows) // 8))
    for start in range(0, len(rows), size):
        stop = min(start + size, len(rows))
        K[start:stop, :stop].addmm_(rows[start:stop], rows[:stop].mT)


def mirrored_(K: Tensor) -> Tensor:
    """A symmetric matrix known below the diagonal."""
    size = max(64, -(-len(K) // 16))
    for start in range(0, len(K), size):
        stop = min(start + size, len(K))
        block = K[start:stop, start:stop]
        block.copy_(block.tril() + block.tril(-1).mT)
        K[:start, start:stop] = K[start:stop, :start].mT
    return K
