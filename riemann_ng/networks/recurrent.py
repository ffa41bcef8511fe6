"""Recurrent modules in the open: an input map and a recurrent map per layer and direction, time steps as sites."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from .blocks import FUSED, Fused, Reader, Record
from .expansions import PartReader, with_trained

State = tuple[Tensor, ...]
"""The hidden state first; an LSTM has the state of its cells beside it."""
Step = Callable[[Tensor, Tensor, State], State]
"""From the input map's output, the recurrent map's output and the state before to the state after."""


def tanh_step(gi: Tensor, gh: Tensor, state: State) -> State:
    return (torch.tanh(gi + gh),)


def relu_step(gi: Tensor, gh: Tensor, state: State) -> State:
    return (torch.relu(gi + gh),)


def lstm_step(gi: Tensor, gh: Tensor, state: State) -> State:
    i, f, g, o = (gi + gh).chunk(4, -1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru_step(gi: Tensor, gh: Tensor, state: State) -> State:
    ri, zi, ni = gi.chunk(3, -1)
    rh, zh, nh = gh.chunk(3, -1)
    z, n = torch.sigmoid(zi + zh), torch.tanh(ni + torch.sigmoid(ri + rh) * nh)
    return (n + z * (state[0] - n),)


def step_of(module: nn.RNNBase | nn.RNNCellBase) -> Step:
    if isinstance(module, (nn.LSTM, nn.LSTMCell)):
        return lstm_step
    if isinstance(module, (nn.GRU, nn.GRUCell)):
        return gru_step
    assert isinstance(module, (nn.RNN, nn.RNNCell))
    return tanh_step if module.nonlinearity == "tanh" else relu_step


def zeros(like: Tensor, *shape: int) -> Tensor:
    """Zeros that gradients can be asked for."""
    return like.new_zeros(shape, requires_grad=True)


def sweep(
    module: nn.RNNBase, suffix: str, x: Tensor, state: State, alive: Tensor | None, reverse: bool, record: Record
) -> tuple[Tensor, State]:
    """One layer in one direction over x (time, examples, features): the hidden states in time, and the last state.

    Cotangents of all time steps arrive at one tensor: at the input map's output where the two outputs are only added,
    else at zeros that are added to the recurrent map's outputs. A projection has zeros of its own.
    """
    step, added = step_of(module), not isinstance(module, nn.GRU)
    recurrent = getattr(module, f"weight_hh{suffix}")
    bi, bh = (getattr(module, f"bias_{k}{suffix}") if module.bias else None for k in ("ih", "hh"))
    projection = getattr(module, f"weight_hr{suffix}") if module.proj_size else None
    gi = linear(x, getattr(module, f"weight_ih{suffix}"), bi)
    gi = gi if gi.requires_grad else gi + zeros(gi)  # where no parameter before it is trained
    arrival = gi if added else zeros(gi, *gi.shape)
    projected = zeros(gi, *x.shape[:2], module.proj_size)
    inputs, probes, projections = gi.unbind(), arrival.unbind(), projected.unbind()
    before, cells, after = list(inputs), list(inputs), list(inputs)
    for t in reversed(range(len(x))) if reverse else range(len(x)):
        before[t] = state[0].detach()
        gh = linear(state[0], recurrent, bh)
        new = step(inputs[t], gh if added else gh + probes[t], state)
        if projection is not None:
            cells[t] = new[0].detach()
            new = (linear(new[0], projection) + projections[t], *new[1:])
        state = new if alive is None else tuple(torch.where(alive[t], a, b) for a, b in zip(new, state, strict=True))
        after[t] = state[0]
    record("input", x, gi)
    record("hidden", torch.stack(before), arrival)
    if projection is not None:
        record("projection", torch.stack(cells), projected)
    return torch.stack(after), state


def open_recurrent(module: nn.Module, record: Record) -> Callable[..., Any]:
    """The same as torch's fused kernels, for padded and packed sequences."""
    assert isinstance(module, nn.RNNBase)
    m = module
    directions = 2 if m.bidirectional else 1

    def layers(x: Tensor, initial: State, alive: Tensor | None) -> tuple[Tensor, State]:
        last: list[State] = []
        for layer in range(m.num_layers):
            made = []
            for reverse in range(directions):
                part, suffix = f"l{layer}{'r' * reverse}", f"_l{layer}{'_reverse' * reverse}"

                def note(of: str, x: Tensor, y: Tensor, part: str = part) -> None:
                    record(f"{part}.{of}", x, y)

                start = tuple(s[layer * directions + reverse] for s in initial)
                y, end = sweep(m, suffix, x, start, alive, bool(reverse), note)
                made.append(y)
                last.append(end)
            x = torch.cat(made, -1) if directions > 1 else made[0]
            if layer + 1 < m.num_layers and m.dropout and m.training:
                x = nn.functional.dropout(x, m.dropout)
        return x, tuple(torch.stack(states) for states in zip(*last, strict=True))

    def starting(x: Tensor, hx: State | None) -> State:
        """(time, examples, features) and a given state to the state of every layer and direction."""
        if hx is not None:
            return hx
        sizes = [m.proj_size or m.hidden_size] + [m.hidden_size] * isinstance(m, nn.LSTM)
        return tuple(x.new_zeros(m.num_layers * directions, x.shape[1], size) for size in sizes)

    @wraps(m.forward)
    def forward(input: Tensor | PackedSequence, hx: Any = None) -> Any:
        given = None if hx is None else tuple(hx) if isinstance(m, nn.LSTM) else (hx,)
        output: Tensor | PackedSequence
        if isinstance(input, PackedSequence):
            at = input._replace(data=torch.arange(1, len(input.data) + 1, device=input.data.device))
            number, _ = pad_packed_sequence(at)  # (time, examples): from 1 on, 0 where there is nothing
            alive = (number > 0)[..., None]
            x = torch.where(alive, input.data[number - 1], 0)
            y, last = layers(x, starting(x, given), alive)
            output = input._replace(data=y[alive[..., 0]][number[alive[..., 0]].argsort()])
        elif input.dim() == 2:
            y, last = layers(input[:, None], starting(input[:, None], given and tuple(s[:, None] for s in given)), None)
            output, last = y[:, 0], tuple(s[:, 0] for s in last)
        else:
            x = input.transpose(0, 1) if m.batch_first else input
            y, last = layers(x, starting(x, given), None)
            output = y.transpose(0, 1) if m.batch_first else y
        return output, last if isinstance(m, nn.LSTM) else last[0]

    return forward


def recurrent_parts(module: nn.Module, name: str, trained: Collection[str]) -> dict[str, Reader]:
    assert isinstance(module, nn.RNNBase)
    parts = {}
    hidden, directions = module.proj_size or module.hidden_size, 2 if module.bidirectional else 1
    for layer in range(module.num_layers):
        for reverse in range(directions):
            part, suffix = f"l{layer}{'r' * reverse}", f"_l{layer}{'_reverse' * reverse}"
            gates = getattr(module, f"weight_ih{suffix}").shape[0]
            features = hidden * directions if layer else module.input_size
            for role, k, size in (("input", "ih", features), ("hidden", "hh", hidden)):
                own = {"weight": f"weight_{k}{suffix}", "bias": f"bias_{k}{suffix}"}
                at = f"{part}.{role}"
                parts[at] = PartReader(module, f"{name}.{at}", trained, own, (size, gates))
            if module.proj_size:
                own, at = {"weight": f"weight_hr{suffix}"}, f"{part}.projection"
                parts[at] = PartReader(module, f"{name}.{at}", trained, own, (module.hidden_size, hidden))
    return with_trained(parts)


def open_cell(module: nn.Module, record: Record) -> Callable[..., Any]:
    assert isinstance(module, nn.RNNCellBase)
    m, step = module, step_of(module)

    @wraps(m.forward)
    def forward(input: Tensor, hx: Any = None) -> Any:
        zeros = input.new_zeros(*input.shape[:-1], m.hidden_size)
        state = (zeros, zeros) if hx is None else tuple(hx) if isinstance(m, nn.LSTMCell) else (hx,)
        gi, gh = linear(input, m.weight_ih, m.bias_ih), linear(state[0], m.weight_hh, m.bias_hh)
        record("input", input, gi)
        record("hidden", state[0], gh)
        new = step(gi, gh, state)
        return new if isinstance(m, nn.LSTMCell) else new[0]

    return forward


def cell_parts(module: nn.Module, name: str, trained: Collection[str]) -> dict[str, Reader]:
    assert isinstance(module, nn.RNNCellBase)
    parts = {}
    for part, k, size in (("input", "ih", module.input_size), ("hidden", "hh", module.hidden_size)):
        own = {"weight": f"weight_{k}", "bias": f"bias_{k}"}
        parts[part] = PartReader(module, f"{name}.{part}", trained, own, (size, module.weight_ih.shape[0]))
    return with_trained(parts)


FUSED.update(dict.fromkeys((nn.RNN, nn.LSTM, nn.GRU), Fused(recurrent_parts, open_recurrent)))
FUSED.update(dict.fromkeys((nn.RNNCell, nn.LSTMCell, nn.GRUCell), Fused(cell_parts, open_cell)))
