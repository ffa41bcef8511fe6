"""Step rules that make another one's steps shorter, or say what the gradient promises of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..errors import InvalidSetting
from .corrected import check_rule
from .quadratic import Model
from .steps import Constant, Displacement, Situation, StepRule


@dataclass(frozen=True)
class OverDepth(StepRule):
    """The displacement of another rule over the number of layers: what each of L layers does adds up in the function.

    In a deep linear network every layer's block of the natural gradient moves the product by all that is wanted, so
    that of L of them it is L times too far.
    """

    of: StepRule = Constant()

    def __post_init__(self) -> None:
        check_rule("OverDepth", self.of)
        if self.of.needs_batch or self.of.proposes:
            raise InvalidSetting(
                f"InvalidSetting in OverDepth: of={self.of!r} measures how far to go, and 1/L is told beforehand. Use "
                f"Constant(), KLClip(...) or TrustRegion(...)."
            )
        object.__setattr__(self, "smoothing", self.of.smoothing)
        object.__setattr__(self, "needs_metric", self.of.needs_metric)

    def displacement(self, here: Situation) -> Displacement:
        return self.of.displacement(replace(here, learning_rate=here.learning_rate / len(here.proposal.blocks)))


@dataclass(frozen=True)
class Promised(StepRule):
    """The displacement of another rule, with what the gradient promises of it: df(v), a model that is linear.

    The ratio that an adaptive damping goes by is then that of pascanur/natgrad: it tends to one for short steps.
    """

    of: StepRule = Constant()
    needs_batch = True

    def __post_init__(self) -> None:
        check_rule("Promised", self.of)
        for name in ("smoothing", "needs_metric", "proposes", "needs_loss"):
            object.__setattr__(self, name, getattr(self.of, name))

    def displacement(self, here: Situation) -> Displacement:
        chosen = self.of.displacement(here)
        slope = torch.stack([here.df(chosen.vector)]).double().cpu()
        linear = Model(slope, torch.zeros(1, 1, dtype=torch.float64))
        return replace(chosen, model=linear, coefficients=torch.ones(1, dtype=torch.float64))
