"""Several tangent vectors pushed forward together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..elements import Vector

if TYPE_CHECKING:
    from .network import Network


def pushed_together(network: Network, vectors: Sequence[Vector], x: Any) -> tuple[Tensor, list[Tensor]] | None:
    """The outputs at a batch and J v for every vector, by one forward pass that carries all of them along.

    None where a part of the module refuses that: it has no forward differentiation, or none of a batch of tangents.
    Then it is to be done one by one, `Network.pushforward`; the refusal is remembered.
    """
    if network._refuses_batches:
        return None
    points = {name: p.detach() for name, p in network.parameters.items()}
    moves = [network._moves("pushforward", v) for v in vectors]
    tangents = {name: [m[name].to(p.dtype) for m in moves] for name, p in points.items()}

    def both(t: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        z, moved, *_ = torch.func.jvp(lambda ps: network._functional(ps, x), (points,), (t,))
        return z, moved

    try:
        if len(vectors) == 1:
            z, moved = both({name: ts[0] for name, ts in tangents.items()})
            return z, [moved]
        stacked = {name: torch.stack(ts) for name, ts in tangents.items()}
        z, moved = torch.func.vmap(both, out_dims=(None, 0), randomness="same")(stacked)  # type: ignore[arg-type]
    except (NotImplementedError, RuntimeError, ValueError):
        network._refuses_batches = True
        return None
    return z, list(moved.unbind())
