"""From the gradient of a step to its displacement: the natural gradient, and what the step rule makes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..elements import Covector, Vector
from ..errors import InvalidSetting
from .groups import relative_rates
from .landscape import Landscape
from .quadratic import Batch
from .steps import Displacement, Situation

if TYPE_CHECKING:
    from .natural_gradient import NaturalGradient


@dataclass(frozen=True)
class Choice:
    displacement: Displacement
    proposal: Vector
    factorized: bool


def choose(opt: NaturalGradient, df: Covector, averaged: Covector, batch: Batch, loss: Landscape | None) -> Choice:
    """The next displacement. Where the damping tries several strengths, that of the lowest model, which it then has."""
    due = opt._factorization_due()
    strengths = opt.policy.tried(opt.memory.strength, opt.steps) if due else ()
    if not strengths:
        return chosen_with(opt, df, averaged, batch, loss)
    begun, best = opt.memory.mark(), None
    for strength in strengths:
        begun()
        opt.memory.strength = strength
        choice = chosen_with(opt, df, averaged, batch, loss)
        height = choice.displacement.predicted
        height = math.inf if height is None or math.isnan(height) else height
        if best is None or height < best[0]:
            best = height, choice, opt.memory.mark()
    assert best is not None
    best[2]()
    return best[1]


def chosen_with(opt: NaturalGradient, df: Covector, averaged: Covector, batch: Batch, loss: Landscape | None) -> Choice:
    proposal, factorized = proposed(opt, averaged)
    return Choice(opt.step_size.displacement(situation(opt, df, averaged, proposal, batch, loss)), proposal, factorized)


def proposed(opt: NaturalGradient, df: Covector) -> tuple[Vector, bool]:
    """Minus the natural gradient, and whether factorizations were made for it.

    Where they fail the last ones stay, if there were any, and an adaptive damping grows.
    """
    memory = opt.memory
    if not opt._factorization_due():
        return -memory.sharp(df), False
    renewed = memory.renewed_sharp(df)
    if renewed is not None:
        return -renewed, True
    opt._note("a factorization that failed")
    memory.damping = opt.policy.adapted(memory.damping, math.nan)
    return -memory.sharp(df), False


def situation(
    opt: NaturalGradient, df: Covector, averaged: Covector, proposal: Vector, batch: Batch, loss: Landscape | None
) -> Situation:
    assert opt.memory.damped is not None
    rates = [float(group["lr"]) for group in opt.param_groups]
    if opt.step_size.proposes and len(set(rates)) > 1:
        raise InvalidSetting(
            f"InvalidSetting in NaturalGradient.step: {opt.step_size!r} finds directions in all parameters together, "
            f"and the groups have learning rates of their own, {rates}. Give them one."
        )
    return Situation(
        df,
        relative_rates(opt.network, opt.param_groups, proposal),
        opt._before,
        max(rates),
        opt.momentum if opt.momentum_of == "displacements" else 0.0,
        opt.memory.damped,
        batch,
        opt.memory.reference,
        opt.memory.damping,
        opt._last,
        opt.steps,
        opt._adapts(),
        averaged,
        opt.gradients.share,
        opt.solver,
        opt.carrying.value,
        loss,
    )
