"""What an optimizer remembers of parameters in frames, brought along when the frames change.

The buffer of momentum is a velocity of the raw parameters, a vector: in new frames it has other components. What
other methods keep (squares of gradients, say) are numbers of one frame, and mean nothing in another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..errors import InvalidSetting
from ..networks.structure import Block

VELOCITY = "momentum_buffer"
Change = Callable[[Tensor], Tensor]


def velocities(optimizer: object, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The buffers of momentum of these parameters, by name; refused where the optimizer keeps other numbers too."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InvalidSetting(
            f"InvalidSetting: optimizer={optimizer!r}, expected the torch optimizer that trains the raw parameters, or "
            f"None where it has no momentum."
        )
    found: dict[str, Tensor] = {}
    for name, p in parameters.items():
        state = optimizer.state.get(p, {})
        kept = {key: t for key, t in state.items() if isinstance(t, Tensor) and t.shape == p.shape and t.ndim > 0}
        if others := sorted(set(kept) - {VELOCITY}):
            raise InvalidSetting(
                f"InvalidSetting: {type(optimizer).__name__} keeps {', '.join(others)} of {name!r}, numbers of the "
                f"frames that it was in. Only a velocity, as the {VELOCITY} of SGD, has components in every frame. Use "
                f"SGD, or leave the optimizer out and let it start over: optimizer.state.clear()."
            )
        if VELOCITY in kept:
            found[name] = kept[VELOCITY]
    return found


def change_velocities(found: Mapping[str, Tensor], blocks: Mapping[str, tuple[Block, Change]]) -> None:
    """Each layer's velocity by the change of its components, in place; where a parameter has none yet it is zero."""
    for block, change in blocks.values():
        names = list(block.names.values())
        known = [found[name] for name in names if name in found]
        if not known:
            continue
        whole = {name: found[name] if name in found else torch.zeros_like(known[0]) for name in names}
        into = {name: t.clone() for name, t in whole.items()}
        block.scatter(change(block.gather(whole)), into, whole)
        for name in names:
            if name in found:
                found[name].copy_(into[name])
