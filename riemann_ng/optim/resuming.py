"""The state of a run: what a state dict holds beyond torch's own, and how it is taken over."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..elements import Vector
from ..errors import InvalidSetting
from . import remembering
from .steps import Taken

if TYPE_CHECKING:
    from .natural_gradient import NaturalGradient

OWN = "riemann_ng"


def state_of(opt: NaturalGradient) -> dict[str, Any]:
    return {
        "steps": opt.steps,
        "observations": opt.network._observations,
        "memory": opt.memory.state(),
        "displacement": opt._loaded if opt._before is None else dict(opt._before.blocks),
        "last": None if opt._last is None else dataclasses.asdict(opt._last),
        "gradients": opt.gradients.state(),
        "carried": opt.carrying.state(),
        "averaged": None if opt.averaged is None else opt.averaged.state(),
        "tally": dict(opt.tally.counts),
        "remembered": remembering.state_of(opt),
    }


def checked_state(opt: NaturalGradient, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the part that is ours; `InvalidSetting` where it cannot be taken over."""
    if OWN not in state_dict:
        raise InvalidSetting(
            "InvalidSetting in load_state_dict: this is not the state of a NaturalGradient. "
            "Load what its own state_dict() gave."
        )
    own = copy.deepcopy(state_dict[OWN])
    opt.memory.check_loadable(own["memory"])
    remembering.check_loadable(opt, own.get("remembered"))
    if (own["averaged"] is None) is not (opt.averaged is None):
        raise InvalidSetting(
            f"InvalidSetting in load_state_dict: the state is of a run {'with' if own['averaged'] else 'without'} "
            f"averages of iterates, and this optimizer has averaging={opt.recipe()['averaging']!r}. Make it alike."
        )
    return own


def take_over(opt: NaturalGradient, own: Mapping[str, Any]) -> None:
    opt.steps, opt.network._observations = own["steps"], own["observations"]
    opt.memory.load(own["memory"])
    opt._before, opt._loaded = None, own["displacement"]
    opt._last = None if own["last"] is None else Taken(**own["last"])
    opt.gradients.load(own["gradients"])
    opt.carrying.load(own.get("carried"))
    if opt.averaged is not None:
        opt.averaged.load(own["averaged"])
    remembering.load_into(opt, own.get("remembered"))
    opt.tally.counts.clear()
    opt.tally.counts.update(own["tally"])


def contiguous(v: Vector) -> Vector:
    """As it would be restored from a state: products of tensors depend on their layout, in the last bit."""
    return Vector._of(v.lives_in, None, {path: t.contiguous() for path, t in v.blocks.items()})


def not_copied() -> InvalidSetting:
    return InvalidSetting(
        "InvalidSetting in a copy of NaturalGradient: it listens to one model, and cannot be copied or pickled. "
        "Copy the model, make another optimizer for the copy, and give it this one's state: "
        "other.load_state_dict(opt.state_dict())."
    )
