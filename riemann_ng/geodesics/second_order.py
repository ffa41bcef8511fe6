"""Outputs of a network along a straight line of parameters, to second order, and the transpose of the first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedLayer
from ..networks import Network
from ..networks.running import untouched_randomness
from .plain import PlainNorms

Tensors = dict[str, Tensor]


def outputs(network: Network, parameters: Tensors, x: Any) -> Tensor:
    """The outputs as a function of parameters that can be differentiated again and again."""
    with PlainNorms():
        return network._functional(parameters, x)


def along(network: Network, x: Any, points: Tensors, moves: Tensors) -> tuple[Tensor, Tensor, Tensor]:
    """z, J v and D²z(v, v): one forward pass that carries two derivatives along.

    Where a part of the module has no forward differentiation it is done by three backward passes.
    """

    def first(parameters: Tensors) -> tuple[Tensor, Tensor]:
        z, moved, *_ = torch.func.jvp(lambda at: outputs(network, at, x), (parameters,), (moves,))
        return z, moved

    with untouched_randomness(network.module):
        try:
            (z, moved), (_, second), *_ = torch.func.jvp(first, (points,), (moves,))
            return z, moved, second
        except (NotImplementedError, RuntimeError):  # the latter of functions written for backward passes alone
            pass
    return backwards(network, x, points, moves)


@torch.enable_grad()
def backwards(network: Network, x: Any, points: Tensors, moves: Tensors) -> tuple[Tensor, Tensor, Tensor]:
    """The same by reverse differentiation: <c, D²z(v, v)> is the derivative along v, twice, of <c, z>."""
    at = {name: p.detach().requires_grad_() for name, p in points.items()}
    with untouched_randomness(network.module):
        z = outputs(network, at, x)
    c = torch.zeros_like(z, requires_grad=True)
    try:
        first = derivative((c * z).sum(), at, moves)
        second = derivative(first, at, moves)
        if any(cut_off(t) for t in (first, second)):
            raise RuntimeError("it is marked as differentiable once")
        found = [torch.autograd.grad(t, c, retain_graph=True, materialize_grads=True)[0] for t in (first, second)]
    except (RuntimeError, NotImplementedError) as error:
        raise UnsupportedLayer(
            f"UnsupportedLayer in christoffel: a part of {type(network.module).__name__} has no second derivative in "
            f"torch: {error}\nmidpoint_step needs first derivatives alone."
        ) from error
    return z.detach(), found[0], found[1]


def cut_off(t: Tensor) -> bool:
    """Whether a function took part that may be differentiated once: torch leaves it out of what is differentiated."""
    waiting, seen = [t.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name() == "torch::autograd::Error":
            return True
        seen.add(node)
        waiting += [edge for edge, _ in node.next_functions]
    return False


def derivative(scalar: Tensor, at: Tensors, moves: Mapping[str, Tensor]) -> Tensor:
    if not scalar.requires_grad:
        return torch.zeros_like(scalar)
    names = list(at)
    slopes = torch.autograd.grad(scalar, [at[name] for name in names], create_graph=True, allow_unused=True)
    parts = [(g * moves[name]).sum() for name, g in zip(names, slopes, strict=True) if g is not None]
    return torch.stack(parts).sum() if parts else 0.0 * scalar


def pulled(network: Network, x: Any, points: Tensors, w: Tensor) -> Tensors:
    """Jᵀ w, by parameter name."""
    at = {name: p.detach().requires_grad_() for name, p in points.items()}
    with torch.enable_grad(), untouched_randomness(network.module):
        z = network._functional(at, x)
        found = torch.autograd.grad(z, list(at.values()), w.to(z.dtype), allow_unused=True)
    pairs = zip(at.items(), found, strict=True)
    return {name: torch.zeros_like(p) if g is None else g.detach() for (name, p), g in pairs}
