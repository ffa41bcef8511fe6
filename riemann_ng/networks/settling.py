"""What verification tries before it gives a reading up, and what it holds against the module as it runs by itself.

A fused module in the open must give the network the outputs and gradients it has without, in evaluation mode, where
nothing is random; otherwise it is closed. A use without the examples' dimension is spread over the examples, if that
leaves the outputs as they are and brings the gradients apart (see `spreading.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from .blocks import Expansion
from .constants import LARGEST
from .precision import tolerance
from .recording import Call, Recording
from .spreading import Graph, Spread, Spreading, lookups_checked, spreads
from .structure import Block
from .verification import SHARED, agree, examine

Forward = Callable[[Mapping[str, Expansion]], Tensor]
"""The outputs with these modules in the open."""
Trial = Callable[[Spreading], tuple[Tensor, Recording]]
"""A watched forward, spread like this."""


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """All modules in evaluation mode, each in its own mode afterwards."""
    training = [m for m in module.modules() if m.training]
    try:
        for m in training:
            m.training = False
        yield
    finally:
        for m in training:
            m.training = True


def unfaithful(
    module: nn.Module, expansions: Mapping[str, Expansion], forward: Forward, parameters: Mapping[str, Tensor]
) -> dict[str, str]:
    """The expansions that change the network's outputs or gradients, with the reason."""
    if not expansions:
        return {}
    # in evaluation mode cuDNN has no backward pass
    with evaluating(module), torch.backends.cudnn.flags(enabled=False):
        plain = probed(forward({}), parameters)
        if not all(bool(t.isfinite().all()) for t in plain):
            return {}

        def difference(opened: Mapping[str, Expansion]) -> str | None:
            try:
                here = probed(forward(opened), parameters)
            except Exception as error:  # whatever it is, the module itself runs
                return f"run in the open, it raises {type(error).__name__}"
            for t, own, what in zip(here, plain, ("outputs", "gradients"), strict=True):
                if not agree(t, own, tolerance(plain[0], *parameters.values())):
                    return f"run in the open, it gives other {what}"
            return None

        if difference(expansions) is None:
            return {}
        alone = {path: difference({path: expand}) for path, expand in expansions.items()}
    found = {path: reason for path, reason in alone.items() if reason is not None}
    return found or dict.fromkeys(expansions, "run in the open together, fused modules give other outputs")


def probed(z: Tensor, parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Outputs, and the gradients of a random covector at them, all in one."""
    cotangent = torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(z)
    found = torch.autograd.grad(z, list(parameters.values()), cotangent, allow_unused=True)
    pairs = zip(parameters.values(), found, strict=True)
    return z.detach(), torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs])


def spread_uses(
    trial: Trial,
    z: Tensor,
    calls: Sequence[Call],
    failed: Mapping[str, str],
    blocks: Mapping[str, Block],
    parameters: Mapping[str, Tensor],
    spreading: Spreading,
) -> Spreading:
    """Spreads uses of layers that the examples share, where the reading then holds."""
    graph = Graph(z)
    for path in (path for path, reason in failed.items() if reason == SHARED):
        mine = [call for call in calls if call.path == path]
        shared = [k for k, call in enumerate(mine) if call.arrangement is None]
        if not all(graph.robust(mine[k].edge.node) for k in shared):
            continue
        for how in spreads(mine[shared[0]].lead, new=2):
            tried = {**spreading, path: dict.fromkeys(shared, how)}
            if holds(trial, z, path, tried, blocks, parameters):
                spreading = tried
                break
    return spreading


def spread_parameters(
    trial: Trial, z: Tensor, blocks: Mapping[str, Block], parameters: Mapping[str, Tensor], spreading: Spreading
) -> Spreading:
    """Lets constant blocks stand in the forward once for every example, where the reading then holds."""
    graph = Graph(z)
    for path, block in blocks.items():
        if block.reader is not None or path in spreading or len(z) * block.space.dim > LARGEST:
            continue
        if not graph.robust(get_gradient_edge(parameters[path]).node):
            continue
        for how in spreads(block.shape, new=3):
            tried: dict[str, Mapping[int, Spread]] = {**spreading, path: {0: how}}
            if holds(trial, z, path, tried, blocks, parameters):
                spreading = tried
                break
    return spreading


def holds(
    trial: Trial,
    z: Tensor,
    path: str,
    spreading: Spreading,
    blocks: Mapping[str, Block],
    parameters: Mapping[str, Any],
) -> bool:
    """Whether the outputs stay as they are, and what arrives at one block are its gradients, example by example."""
    try:
        with lookups_checked():
            w, watch = trial(spreading)
        calls = [call for call in watch.calls if call.path == path]
        same = bool(calls) and agree(w, z, tolerance(z, *parameters.values()))
        return same and not examine(w, calls, {path: blocks[path]}, parameters)
    except Exception:  # shapes that do not fit end in any error; the forward as it stands has none
        return False
