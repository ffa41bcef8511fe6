"""Fused modules in the open: their affine maps one by one, in a forward that computes the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import wraps
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..spaces import VectorSpace
from .blocks import FUSED, Fused, Parameters, Reader, Record
from .readers import LinearReader


class PartReader(LinearReader):
    """One affine map of a fused module.

    `own` says which of the module's parameters are its weight and its bias, `rows` which rows of those it has where
    it shares them with other parts.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        trained: Collection[str],
        own: Mapping[str, str],
        size: tuple[int, int],
        rows: Mapping[str, slice] | None = None,
    ):
        self.own, self.size = {role: local for role, local in own.items() if local in trained}, size
        super().__init__(module, name, tuple(self.own))
        self.trained = tuple(self.own.values())
        self.rows = {local: rows[local] for local in self.trained if local in rows} if rows else {}

    def spaces(self) -> tuple[VectorSpace, VectorSpace]:
        return self.affine(*self.size)

    def to_parameters(self, data: Tensor) -> Parameters:
        return {self.own[role]: t for role, t in self.split(data).items()}

    def from_parameters(self, tensors: Parameters) -> Tensor:
        return self.join({role: tensors[local] for role, local in self.own.items()})


def with_trained(parts: Mapping[str, PartReader]) -> dict[str, Reader]:
    return {part: reader for part, reader in parts.items() if reader.trained}


def attention_parts(module: nn.Module, name: str, trained: Collection[str]) -> dict[str, Reader]:
    """Queries, keys and values; the output map is a linear layer of its own inside the module."""
    assert isinstance(module, nn.MultiheadAttention)
    E, parts = module.embed_dim, {}
    for i, (part, features) in enumerate((("q", E), ("k", module.kdim), ("v", module.vdim))):
        weight = "in_proj_weight" if module._qkv_same_embed_dim else f"{part}_proj_weight"
        own = {"weight": weight, "bias": "in_proj_bias"}
        rows = dict.fromkeys(("in_proj_weight", "in_proj_bias"), slice(i * E, (i + 1) * E))
        parts[part] = PartReader(module, f"{name}.{part}", trained, own, (features, E), rows)
    return with_trained(parts)


def open_attention(module: nn.Module, record: Record) -> Callable[..., Any]:
    """The same as `torch.nn.functional.multi_head_attention_forward`, examples first."""
    assert isinstance(module, nn.MultiheadAttention)
    m, plain = module, module.forward

    def project(query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        if m._qkv_same_embed_dim:
            weights = m.in_proj_weight.chunk(3)
        else:
            weights = (m.q_proj_weight, m.k_proj_weight, m.v_proj_weight)
        biases = (None,) * 3 if m.in_proj_bias is None else m.in_proj_bias.chunk(3)
        made = []
        for part, x, w, b in zip("qkv", (query, key, value), weights, biases, strict=True):
            made.append(linear(x, w, b))
            record(part, x, made[-1])
        return made

    @wraps(plain)
    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if query.is_nested or (is_causal and attn_mask is None):
            return plain(query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)

        def out(mixed: Tensor) -> Tensor:
            y = linear(mixed, m.out_proj.weight, m.out_proj.bias)
            record("out", mixed, y)
            return y

        return attended(
            m, project, out, query, key, value, key_padding_mask, need_weights, attn_mask,
            average_attn_weights, is_causal,
        )  # fmt: skip

    return forward


class Attention(Protocol):
    """What is to be known of an attention module beside its affine maps."""

    num_heads: int
    head_dim: int
    embed_dim: int
    batch_first: bool
    dropout: float
    add_zero_attn: bool
    bias_k: Tensor | None
    bias_v: Tensor | None
    training: bool


def attended(
    m: Attention,
    project: Callable[[Tensor, Tensor, Tensor], Sequence[Tensor]],
    out: Callable[[Tensor], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    need_weights: bool,
    attn_mask: Tensor | None,
    average_attn_weights: bool,
    is_causal: bool,
) -> tuple[Tensor, Tensor | None]:
    """`nn.MultiheadAttention` with its affine maps given: `project` to queries, keys and values, and `out`."""
    batched, first = query.dim() == 3, m.batch_first
    if not batched:
        query, key, value = (x[None] for x in (query, key, value))
        key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
    elif not first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    n, heads, width = query.shape[0], m.num_heads, m.head_dim
    q, k, v = project(query, key, value)
    if m.bias_k is not None and m.bias_v is not None:
        k = torch.cat([k, m.bias_k.expand(n, 1, -1)], 1)
        v = torch.cat([v, m.bias_v.expand(n, 1, -1)], 1)
    if m.add_zero_attn:
        k, v = (torch.cat([t, t.new_zeros(n, 1, m.embed_dim)], 1) for t in (k, v))
    q, k, v = (t.unflatten(-1, (heads, width)).transpose(1, 2) for t in (q, k, v))
    # torch takes the hint for the mask in this case; appended keys are then hidden from all queries
    causal = is_causal and key_padding_mask is None and not need_weights
    mask = None if causal else merged_mask(attn_mask, key_padding_mask, q, k)
    dropout = m.dropout if m.training else 0.0
    weights = None
    if need_weights:
        scores = (q * math.sqrt(1 / width)) @ k.mT
        weights = torch.softmax(scores if mask is None else scores + mask, -1)
        weights = nn.functional.dropout(weights, dropout) if dropout else weights
        mixed = weights @ v
        weights = weights.mean(1) if average_attn_weights else weights
    else:
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
    y = out(mixed.permute(2, 0, 1, 3).flatten(-2))  # time first in memory, as torch has it: dropout goes by memory
    if not batched:
        return y[:, 0], None if weights is None else weights[0]
    return (y.transpose(0, 1) if first else y), weights


def merged_mask(attention: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """What is added to the scores (n, heads, queries, keys); keys appended after the given ones are seen by all."""
    total: Tensor | None = None
    if attention is not None:
        total = added(attention, q)
        total = total.unflatten(0, (-1, q.shape[1])) if total.dim() == 3 else total
        total = nn.functional.pad(total, (0, k.shape[2] - total.shape[-1]))
    if padding is not None:
        padding = added(padding, q)[:, None, None]
        padding = nn.functional.pad(padding, (0, k.shape[2] - padding.shape[-1]))
        total = padding if total is None else total + padding
    return total


def added(mask: Tensor, like: Tensor) -> Tensor:
    if mask.is_floating_point():
        return mask.to(like.dtype)
    return like.new_zeros(mask.shape).masked_fill(mask, -math.inf)


FUSED[nn.MultiheadAttention] = Fused(attention_parts, open_attention, {"out_proj": "out"})


class BilinearReader(PartReader):
    """`y_o = x₁ᵀ W_o x₂ + b_o`: affine in the features x₁ ⊗ x₂."""

    module: nn.Bilinear  # type: ignore[assignment]

    def to_parameters(self, data: Tensor) -> Parameters:
        into = (self.module.in1_features, self.module.in2_features)
        return {k: t.unflatten(-1, into) if k == "weight" else t for k, t in self.split(data).items()}

    def from_parameters(self, tensors: Parameters) -> Tensor:
        return self.join({k: t.flatten(-2) if k == "weight" else t for k, t in tensors.items()})


def bilinear_parts(module: nn.Module, name: str, trained: Collection[str]) -> dict[str, Reader]:
    assert isinstance(module, nn.Bilinear)
    size = (module.in1_features * module.in2_features, module.out_features)
    return with_trained({"": BilinearReader(module, name, trained, {"weight": "weight", "bias": "bias"}, size)})


def open_bilinear(module: nn.Module, record: Record) -> Callable[..., Any]:
    assert isinstance(module, nn.Bilinear)

    @wraps(module.forward)
    def forward(input1: Tensor, input2: Tensor) -> Tensor:
        y = nn.functional.bilinear(input1, input2, module.weight, module.bias)
        record("", (input1[..., :, None] * input2[..., None, :]).flatten(-2), y)
        return y

    return forward


FUSED[nn.Bilinear] = Fused(bilinear_parts, open_bilinear)
