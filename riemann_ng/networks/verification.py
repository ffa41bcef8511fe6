"""Holding the typed reading of a network against autograd.

Hooks can be fooled: a weight used by `F.linear`, an activation changed in place, examples and sites merged by a
reshape, time before examples. So an example is singled out: a random cotangent at its output alone is sent back. Of
every call, the gradient must vanish outside the example, which shows where the examples stand among its leading
dimensions; and the samples must contract to the gradients of the parameters that autograd returns. A block that does
not agree is read as constant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import UnsupportedLayer
from ..samples import OneHot
from .observation import contract
from .precision import at_least_single, tolerance
from .recording import Arrangement, Call, arrangements, backpropagate
from .structure import Block

SHARED = "its examples cannot be told apart: they are shared, mixed, or folded away"
ELSEWHERE = (
    "its gradient is not what its inputs and cotangents give: the weight is used elsewhere, or the input changed"
)


def examine(
    z: Tensor, calls: Sequence[Call], blocks: Mapping[str, Block], parameters: Mapping[str, Tensor]
) -> dict[str, str]:
    """Settles the arrangement of every call; the blocks whose reading does not hold, with the reason."""
    n = z.shape[0]
    singled = sorted({n // 2, 0})  # two, for one could be the only site that an output looks at
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(z.shape[1:], generator=generator).to(z)
    heard = {call.path for call in calls}
    typed = {path: block for path, block in blocks.items() if block.reader is not None or path in heard}
    names = sorted({name for block in typed.values() for name in block.names.values()})
    tensors = [parameters[name] for name in names]
    gradients: list[dict[str, Tensor]] = []
    arrived: list[list[Tensor | None]] = []
    for one in singled:
        cotangent = torch.zeros_like(z)
        cotangent[one] = random
        found = differentiated(z, tensors, cotangent)
        pairs = zip(names, tensors, found, strict=True)
        gradients.append({k: at_least_single(torch.zeros_like(p) if g is None else g) for k, p, g in pairs})
        arrived.append(backpropagate(z, cotangent, calls, keep=True))
    allowed = tolerance(z, *tensors, *(g for each in arrived for g in each))
    failed: dict[str, str] = {}
    for path, block in typed.items():
        mine = [(call, g) for call, *g in zip(calls, *arrived, strict=True) if call.path == path]
        for call, g in mine:
            call.arrangement = arranged(call, g, n, singled)
        if any(call.arrangement is None for call, _ in mine):
            failed[path] = SHARED
            continue
        for k, one in enumerate(singled):
            expected = block.gather(gradients[k])
            with torch.autocast(z.device.type, enabled=False):
                total, size = contraction([(call, g[k]) for call, g in mine], n, one, expected)
            gap = (total - expected).abs().max()
            if not bool(gap <= allowed * torch.maximum(size, expected.abs()).max()):
                failed[path] = ELSEWHERE
    return failed


def differentiated(z: Tensor, tensors: Sequence[Tensor], cotangent: Tensor) -> Sequence[Tensor | None]:
    try:
        return torch.autograd.grad(z, tensors, cotangent, retain_graph=True, allow_unused=True) if tensors else ()
    except RuntimeError as error:
        if "inplace operation" not in str(error):
            raise
        raise UnsupportedLayer(
            "UnsupportedLayer in Network: an activation is changed in place after it was needed: the module cannot be "
            "differentiated at all. Torch says: " + str(error).split(". Hint")[0]
        ) from None


def arranged(call: Call, gradients: Sequence[Tensor | None], n: int, singled: Sequence[int]) -> Arrangement | None:
    """Where the examples stand: the first arrangement in which a gradient for one example is zero at all others."""
    candidates = arrangements(call.lead, n)
    pairs = [(g, one) for g, one in zip(gradients, singled, strict=True) if g is not None and bool(g.any())]
    for candidate in candidates:
        if not any(bool(elsewhere(candidate, call, g, n, one).any()) for g, one in pairs):
            return candidate
    return None


def elsewhere(candidate: Arrangement, call: Call, gradient: Tensor, n: int, one: int) -> Tensor:
    others = torch.arange(n, device=gradient.device) != one
    return candidate.apply(call.reader.values(gradient), len(call.lead), n)[others]


def agree(z: Tensor, w: Tensor, allowed: float) -> bool:
    """Whether two ways to compute the same gave the same, up to a relative difference."""
    return z.shape == w.shape and bool((z - w).abs().max() <= allowed * w.abs().max())


def contraction(calls: list[tuple[Call, Tensor | None]], n: int, one: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Σ cotangent ⊗ input over the sites of one example, from the samples, and the same sum of absolute values.

    Where the sum cancels (the bias of attention's keys has no gradient at all) its rounding is that of the terms.
    """
    total, size = torch.zeros_like(like), torch.zeros_like(like)
    for call, gradient in calls:
        if gradient is None:
            continue
        g = call.cotangents(gradient, n)[one : one + 1, None]
        a = call.features(n)
        if isinstance(a, OneHot):
            dense = torch.nn.functional.one_hot(a.indices[one : one + 1], like.shape[-1]).to(g)
        else:
            dense = a[one : one + 1]
        total, size = total + contract(g, dense)[0, 0], size + contract(g.abs(), dense.abs())[0, 0]
    return total, size
