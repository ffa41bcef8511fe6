"""Softmax attention as a map without parameters, and multi-head attention as affine maps around it."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor

from ..errors import NonFinite, ShapeMismatch, SpaceMismatch
from ..spaces import AffineSpace
from .affine import Affine
from .base import ParameterFreeLayer, Sites, check_dims, product_space
from .composition import Compose, Fan

SPLIT, JOIN = "n t (h d) -> n h t d", "n h t d -> n t (h d)"


class SoftmaxAttention(ParameterFreeLayer):
    """Values averaged with weights softmax(scale · q·k), head by head: from fields over Q × K × V to the codomain.

    A point of the domain is (q, k, v) of one token. The pairing of queries with keys makes the keys of each head the
    dual of its queries; `scale` defaults to one over the root of a head's dimension. `causal` lets a token see itself
    and those before; `mask` (tokens, tokens) is true where the row's token may see the column's.
    """

    def __init__(
        self,
        queries: AffineSpace,
        keys: AffineSpace,
        values: AffineSpace,
        codomain: AffineSpace,
        heads: int = 1,
        causal: bool = False,
        mask: Tensor | None = None,
        scale: float | None = None,
    ):
        check_dims("SoftmaxAttention", "the space of keys", keys, queries.dim)
        check_dims("SoftmaxAttention", "the codomain", codomain, values.dim)
        if heads < 1 or queries.dim % heads or values.dim % heads:
            raise SpaceMismatch(
                f"SpaceMismatch in SoftmaxAttention: queries of dimension {queries.dim} and values of dimension "
                f"{values.dim} do not split into {heads} heads. Both are multiples of the number of heads."
            )
        if mask is not None and (mask.dtype != torch.bool or mask.ndim != 2 or not bool(mask.any(-1).all())):
            raise ShapeMismatch(
                "ShapeMismatch in SoftmaxAttention: a mask is boolean, (tokens, tokens), true where the row's token "
                "may see the column's, and every token sees one at least."
            )
        self.domain, self.codomain = product_space(queries, keys, values), codomain
        self.heads, self.causal, self.mask = heads, causal, mask
        self.sizes = [queries.dim, keys.dim, values.dim]
        self.scale = 1 / math.sqrt(queries.dim // heads) if scale is None else scale

    def output_sites(self, sites: Sites) -> Sites:
        if len(sites) != 1 or (self.mask is not None and tuple(self.mask.shape) != (*sites, *sites)):
            expected = "any number of tokens" if self.mask is None else f"{self.mask.shape[0]} tokens"
            raise ShapeMismatch(
                f"ShapeMismatch in {self}: sites are one axis, {expected}; the field has {list(sites)}."
            )
        return sites

    def _heads(self, x: Tensor) -> list[Tensor]:
        return [rearrange(part, SPLIT, h=self.heads) for part in x.split(self.sizes, dim=-1)]

    def _weights(self, q: Tensor, k: Tensor) -> Tensor:
        scores = self.scale * q @ k.mT
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device)
        seen = seen.tril() if self.causal else seen
        seen = seen if self.mask is None else seen & self.mask.to(q.device)
        if not bool(seen.any(-1).all()):
            raise NonFinite(
                f"NonFinite in {self}: the mask and causality leave a token that sees nothing. Let it see itself."
            )
        return torch.softmax(scores.masked_fill(~seen, -torch.inf), dim=-1)

    def _forward(self, x: Tensor) -> Tensor:
        q, k, v = self._heads(x)
        return rearrange(self._weights(q, k) @ v, JOIN)

    def _differential(self, x: Tensor, dx: Tensor) -> Tensor:
        (q, k, v), (dq, dk, dv) = self._heads(x), self._heads(dx)
        p = self._weights(q, k)
        dp = _softmax_differential(p, self.scale * (dq @ k.mT + q @ dk.mT))
        return rearrange(dp @ v + p @ dv, JOIN)

    def _transpose(self, x: Tensor, dy: Tensor) -> Tensor:
        q, k, v = self._heads(x)
        p, d = self._weights(q, k), rearrange(dy, SPLIT, h=self.heads)
        ds = self.scale * _softmax_differential(p, d @ v.mT)
        return torch.cat([rearrange(part, JOIN) for part in (ds @ k, ds.mT @ q, p.mT @ d)], dim=-1)


def _softmax_differential(p: Tensor, ds: Tensor) -> Tensor:
    """The differential of softmax at probabilities p, which is symmetric: diag(p) - p pᵀ."""
    return p * (ds - (p * ds).sum(-1, keepdim=True))


def multihead_attention(
    domain: AffineSpace,
    codomain: AffineSpace,
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    biases: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None] = (None, None, None, None),
    heads: int = 1,
    causal: bool = False,
    mask: Tensor | None = None,
) -> Compose:
    """Self-attention with affine queries, keys, values and output: blocks "q", "k", "v" and "out".

    `weights` and `biases` are those of the four, each weight (outputs, inputs).
    """
    spaces = [AffineSpace(f"{codomain.name} {part}", w.shape[0]) for part, w in zip("qkv", weights, strict=False)]
    heads_out = AffineSpace(f"{codomain.name} heads", weights[2].shape[0])
    triples = zip("qkv", spaces, weights, biases, strict=False)
    projections = Fan({part: Affine(domain, space, w, b) for part, space, w, b in triples})
    q, k, v = spaces
    attention = SoftmaxAttention(q, k, v, heads_out, heads=heads, causal=causal, mask=mask)
    return Compose({"": projections, "attention": attention, "out": Affine(heads_out, codomain, weights[3], biases[3])})
