"""Torch optimizers made of metrics. Only what a training loop is concerned with is here."""

from .averaging import IterateAverage
from .carried import Carried
from .conjugate import ConjugateDirections, Flat, PlaneSearch, Transport
from .consolidation import Consolidation
from .continual import OGD, ONG, ProjectedNaturalGradient
from .corrected import GeodesicCorrected, Midpoint
from .damping import AtStart, Damping, Factored, LevenbergMarquardt, Tikhonov, Undamped
from .distributed import Sharing
from .fallback import ConstantBlocks
from .from_gradient import FromGradient
from .in_frames import PRONG, SNGD
from .inverse_free import Factorized, InverseFree, Inversion
from .krylov import KrylovSubspace
from .listeners import Progress, StepListener, TensorBoard
from .natural_gradient import NaturalGradient
from .plain import OverDepth, Promised
from .presets import (
    TONGA,
    Adam,
    GeodesicNaturalGradient,
    HessianFree,
    KrylovSubspaceDescent,
    MinresNaturalGradient,
    Muon,
    NaturalConjugateGradient,
    OnlineNaturalGradient,
    PublishedKFAC,
    SpectralNaturalGradient,
)
from .projected import Deflected, Protected
from .remembering import Remembering
from .report import StepReport
from .schedule import Schedule
from .searched import Searched
from .searching import Armijo
from .steepest import SteepestDescent
from .steps import Constant, KLClip, QuadraticModel, StepRule, TrustRegion
from .truncated import TruncatedNewton

__all__ = [
    "OGD",
    "ONG",
    "PRONG",
    "SNGD",
    "TONGA",
    "Adam",
    "Armijo",
    "AtStart",
    "Carried",
    "ConjugateDirections",
    "Consolidation",
    "Constant",
    "ConstantBlocks",
    "Damping",
    "Deflected",
    "Factored",
    "Factorized",
    "Flat",
    "FromGradient",
    "GeodesicCorrected",
    "GeodesicNaturalGradient",
    "HessianFree",
    "InverseFree",
    "Inversion",
    "IterateAverage",
    "KLClip",
    "KrylovSubspace",
    "KrylovSubspaceDescent",
    "LevenbergMarquardt",
    "Midpoint",
    "MinresNaturalGradient",
    "Muon",
    "NaturalConjugateGradient",
    "NaturalGradient",
    "OnlineNaturalGradient",
    "OverDepth",
    "PlaneSearch",
    "Progress",
    "ProjectedNaturalGradient",
    "Promised",
    "Protected",
    "PublishedKFAC",
    "QuadraticModel",
    "Remembering",
    "Schedule",
    "Searched",
    "Sharing",
    "SpectralNaturalGradient",
    "SteepestDescent",
    "StepListener",
    "StepReport",
    "StepRule",
    "TensorBoard",
    "Tikhonov",
    "Transport",
    "TruncatedNewton",
    "TrustRegion",
    "Undamped",
]
