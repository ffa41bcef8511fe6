"""Torch optimizers made of metrics. Only what a training loop is concerned with is here."""

from .averaging import IterateAverage
from .damping import AtStart, Damping, Factored, LevenbergMarquardt, Tikhonov, Undamped
from .fallback import ConstantBlocks
from .inverse_free import Factorized, InverseFree, Inversion
from .listeners import Progress, StepListener, TensorBoard
from .natural_gradient import NaturalGradient
from .report import StepReport
from .schedule import Schedule
from .steps import Constant, KLClip, QuadraticModel, StepRule, TrustRegion

__all__ = [
    "AtStart",
    "Constant",
    "ConstantBlocks",
    "Damping",
    "Factored",
    "Factorized",
    "InverseFree",
    "Inversion",
    "IterateAverage",
    "KLClip",
    "LevenbergMarquardt",
    "NaturalGradient",
    "Progress",
    "QuadraticModel",
    "Schedule",
    "StepListener",
    "StepReport",
    "StepRule",
    "TensorBoard",
    "Tikhonov",
    "TrustRegion",
    "Undamped",
]
