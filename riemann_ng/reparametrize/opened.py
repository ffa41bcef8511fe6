"""Modules with several affine maps inside, as modules of linear layers: what a frame can reach.

The linear layers stand at the paths that `Network` gives to the parts of the fused module, "attn.q" or "rnn.l0.input",
and hold the same numbers. Parameters that modules share stay shared.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..networks.blocks import register_layer
from ..networks.expansions import attended
from ..networks.readers import ScaleShiftReader
from ..networks.recurrent import step_of
from .frame import Frame
from .groups import NoTwin

Made = dict[tuple[object, ...], nn.Linear]
"""Linear layers by the parameters that they were made of."""
OPENED = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)


def linear_of(weight: nn.Parameter, bias: nn.Parameter | None, made: Made, rows: slice = slice(None)) -> nn.Linear:
    """A linear layer with some rows of a weight and a bias; the same one where they have been met before."""
    key = (id(weight), id(bias), rows.start, rows.stop)
    if key not in made:
        part = weight.detach()[rows]
        layer = nn.Linear(part.shape[1], part.shape[0], bias is not None, device="meta")
        layer.weight = nn.Parameter(part.clone(), weight.requires_grad)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach()[rows].clone(), bias.requires_grad)
        made[key] = layer
    return made[key]


class OpenAttention(nn.Module):
    """`nn.MultiheadAttention` with its queries, keys, values and outputs as linear layers."""

    in_proj_weight = in_proj_bias = None  # where an encoder layer looks for them, it then leaves its fast path
    _qkv_same_embed_dim = False

    def __init__(self, m: nn.MultiheadAttention, made: Made):
        super().__init__()
        E, same = m.embed_dim, m._qkv_same_embed_dim
        for i, part in enumerate("qkv"):
            rows = slice(i * E, (i + 1) * E)
            bias, key = m.in_proj_bias, (id(m), part)
            if same:
                layer = linear_of(m.in_proj_weight, bias, made, rows)
            else:
                layer = nn.Linear(1, 1, bias is not None)
                layer.weight = getattr(m, f"{part}_proj_weight")
                layer.out_features, layer.in_features = layer.weight.shape
                if bias is not None:
                    layer.bias = nn.Parameter(bias.detach()[rows].clone(), bias.requires_grad)
                layer = made.setdefault(key, layer)
            self.add_module(part, layer)
        self.out = m.out_proj
        self.bias_k, self.bias_v = m.bias_k, m.bias_v
        self.embed_dim, self.num_heads, self.head_dim = E, m.num_heads, m.head_dim
        self.batch_first, self.dropout, self.add_zero_attn = m.batch_first, m.dropout, m.add_zero_attn

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if is_causal and attn_mask is None and key_padding_mask is None and not need_weights:
            time = query.shape[1 if query.dim() == 3 and self.batch_first else 0]
            attn_mask = nn.Transformer.generate_square_subsequent_mask(time, query.device, query.dtype)
            is_causal = False
        return attended(
            self, self._project, self.out, query, key, value, key_padding_mask, need_weights, attn_mask,
            average_attn_weights, is_causal,
        )  # fmt: skip

    def _project(self, *inputs: Tensor) -> list[Tensor]:
        return [self.get_submodule(part)(x) for part, x in zip("qkv", inputs, strict=True)]


class OpenSweep(nn.Module):
    """One layer of a recurrent module in one direction: its input map, its recurrent map and its projection."""

    def __init__(self, m: nn.RNNBase, suffix: str, made: Made):
        super().__init__()
        bi, bh = (getattr(m, f"bias_{k}{suffix}") if m.bias else None for k in ("ih", "hh"))
        self.input = linear_of(getattr(m, f"weight_ih{suffix}"), bi, made)
        self.hidden = linear_of(getattr(m, f"weight_hh{suffix}"), bh, made)
        self.projection = linear_of(getattr(m, f"weight_hr{suffix}"), None, made) if m.proj_size else None
        self.step = step_of(m)

    def forward(self, x: Tensor, state: tuple[Tensor, ...], reverse: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        inputs = self.input(x).unbind()
        after = list(inputs)
        for t in reversed(range(len(x))) if reverse else range(len(x)):
            state = self.step(inputs[t], self.hidden(state[0]), state)
            if self.projection is not None:
                state = (self.projection(state[0]), *state[1:])
            after[t] = state[0]
        return torch.stack(after), state


class OpenRecurrent(nn.Module):
    """`nn.RNN`, `nn.LSTM` or `nn.GRU` with its maps as linear layers, "l0.input" and "l0.hidden" for the first."""

    def __init__(self, m: nn.RNNBase, made: Made):
        super().__init__()
        self.directions = 2 if m.bidirectional else 1
        self.num_layers, self.dropout, self.batch_first, self.lstm = m.num_layers, m.dropout, m.batch_first, m.mode
        self.input_size, self.hidden_size, self.bidirectional = m.input_size, m.hidden_size, m.bidirectional
        self.sizes = [m.proj_size or m.hidden_size] + [m.hidden_size] * isinstance(m, nn.LSTM)
        for layer in range(m.num_layers):
            for reverse in range(self.directions):
                self.add_module(f"l{layer}{'r' * reverse}", OpenSweep(m, f"_l{layer}{'_reverse' * reverse}", made))

    def flatten_parameters(self) -> None:
        """There is nothing to lay out for a fused kernel."""

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        if isinstance(input, PackedSequence):
            raise NoTwin("NoTwin: a twin takes padded sequences, not packed ones. Give the padded batch.")
        given = None if hx is None else tuple(hx) if self.lstm == "LSTM" else (hx,)
        single = input.dim() == 2
        x = input[:, None] if single else input.transpose(0, 1) if self.batch_first else input
        if given is None:
            count = self.num_layers * self.directions
            given = tuple(x.new_zeros(count, x.shape[1], size) for size in self.sizes)
        elif single:
            given = tuple(s[:, None] for s in given)
        last: list[tuple[Tensor, ...]] = []
        for layer in range(self.num_layers):
            made = []
            for reverse in range(self.directions):
                start = tuple(s[layer * self.directions + reverse] for s in given)
                y, end = self.get_submodule(f"l{layer}{'r' * reverse}")(x, start, bool(reverse))
                made.append(y)
                last.append(end)
            x = torch.cat(made, -1) if self.directions > 1 else made[0]
            if layer + 1 < self.num_layers and self.dropout and self.training:
                x = nn.functional.dropout(x, self.dropout)
        ends = tuple(torch.stack(states) for states in zip(*last, strict=True))
        if single:
            x, ends = x[:, 0], tuple(s[:, 0] for s in ends)
        elif self.batch_first:
            x = x.transpose(0, 1)
        return x, ends if self.lstm == "LSTM" else ends[0]


class OpenCell(nn.Module):
    """`nn.RNNCell`, `nn.LSTMCell` or `nn.GRUCell` with its two maps as linear layers."""

    def __init__(self, m: nn.RNNCellBase, made: Made):
        super().__init__()
        own = m._parameters
        for role, k in (("input", "ih"), ("hidden", "hh")):
            weight = own[f"weight_{k}"]
            assert weight is not None
            self.add_module(role, linear_of(weight, own.get(f"bias_{k}"), made))
        self.step, self.lstm, self.hidden_size = step_of(m), isinstance(m, nn.LSTMCell), m.hidden_size

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        zeros = input.new_zeros(*input.shape[:-1], self.hidden_size)
        state = (zeros, zeros) if hx is None else tuple(hx) if self.lstm else (hx,)
        new = self.step(self.get_submodule("input")(input), self.get_submodule("hidden")(state[0]), state)
        return new if self.lstm else new[0]


def opened(m: nn.Module, made: Made) -> nn.Module:
    """The same function with its affine maps as layers of their own."""
    if isinstance(m, nn.MultiheadAttention):
        return OpenAttention(m, made)
    if isinstance(m, nn.RNNBase):
        return OpenRecurrent(m, made)
    assert isinstance(m, nn.RNNCellBase)
    return OpenCell(m, made)


def put_in_place(root: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """`new` wherever `old` is held; the root itself may be it."""
    new.train(old.training)
    for m in list(root.modules()):
        for name, child in m._modules.items():
            if child is old:
                m._modules[name] = new
    return new if root is old else root


class Scale(nn.Module):
    """A normalization whose scale and shift are a layer: what they act on can be moved.

    Called with x, it is normalized and moved by `frame` before `forward`, the scale and shift, sees it.
    """

    def __init__(self, norm: nn.Module, trailing: int):
        super().__init__()
        weight, bias = norm._parameters["weight"], norm._parameters.get("bias")
        assert weight is not None
        self.weight, self.bias, self.trailing = weight, bias, trailing
        self.normalization = norm
        norm._parameters["weight"] = None
        if bias is not None:
            norm._parameters["bias"] = None
        self.frame: Frame | None = None

    def __call__(self, x: Tensor) -> Any:
        y = self.normalization(x)
        if self.frame is not None:
            y = self.frame(y.flatten(-self.trailing)).reshape(y.shape) if self.trailing else self._by_channel(y)
        return super().__call__(y)

    def _by_channel(self, y: Tensor) -> Tensor:
        assert self.frame is not None
        return self.frame(y.movedim(1, -1)).movedim(-1, 1)

    def forward(self, x: Tensor) -> Tensor:
        shape = self.weight.shape if self.trailing else (-1, *(1,) * (x.ndim - 2))
        y = x * self.weight.view(shape)
        return y if self.bias is None else y + self.bias.view(shape)


@register_layer(Scale)
class ScaleReader(ScaleShiftReader):
    module: Scale

    def leading(self, y: Tensor) -> int:
        return y.ndim - self.module.trailing if self.module.trailing else 1

    def normalized(self, x: Tensor) -> Tensor:
        if self.module.trailing:
            return x.flatten(-self.module.trailing).unsqueeze(-2)
        return x.flatten(2).mT if x.ndim > 2 else x[:, None]

    def values(self, y: Tensor) -> Tensor:
        return self.normalized(y)[..., None]
