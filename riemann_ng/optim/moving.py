"""The step itself, and what became of the loss."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from .groups import decay_weights
from .quadratic import Batch
from .scaling import Units
from .steps import Displacement

if TYPE_CHECKING:
    from .natural_gradient import NaturalGradient


def move(opt: NaturalGradient, chosen: Displacement, batch: Batch, units: Units) -> float | None:
    """Moves the parameters, and where the damping is due, looks at what became of the loss and adapts it.

    Where the loss has become far larger, or is not finite any more, everything but the damping is put back.
    """
    if chosen.note:
        opt._note(chosen.note)
    parameters = opt.network.parameters
    adapts = opt._adapts() and chosen.predicted is not None
    looks = adapts and chosen.actual is None
    kept = {name: p.detach().clone() for name, p in parameters.items()} if looks else {}
    before = batch.outputs_before() if looks else []
    moves = chosen.vector.to_parameters()
    torch._foreach_add_(list(parameters.values()), [moves[name].to(p.dtype) for name, p in parameters.items()])
    actual = batch.change(before, units.score) if looks else chosen.actual
    if adapts and actual is None:
        opt._note("no gradient at the outputs: the damping is not adapted")
    if adapts and actual is not None and chosen.predicted is not None:
        ratio = actual / chosen.predicted if chosen.predicted else math.nan
        opt.memory.damping = opt.policy.adapted(opt.memory.damping, ratio)
        if looks and not actual < abs(chosen.predicted):  # the loss has grown by more than the model promised to lose
            for name, p in parameters.items():
                p.copy_(kept[name])
            return math.inf
    decay_weights(opt.param_groups)
    return actual
