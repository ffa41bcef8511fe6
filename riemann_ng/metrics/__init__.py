"""Metrics: an inner product at every point, from what a network saw of a batch."""

from .adaptive import RootMeanSquare, Shampoo
from .averages import MetricAverage, RunningAverage
from .base import LayerwiseMetric, RiemannianMetric
from .constant import EuclideanMetric, FixedMetric
from .covariance import GradientCovariance
from .ekfac import EKFAC
from .fisher import Fisher, GaussNewton
from .gradient_moment import GradientMoment
from .kfac import KFAC
from .kl_shampoo import KLShampoo
from .learned import LearnedPreconditioner
from .named_frames import NamedFrame
from .normalization import BatchNormalization, Whitening
from .one_sided import PRONG, CotangentsOnly, ForwardOnly
from .recurrent import RecurrentKFAC
from .relative_fisher import RelativeFisher
from .soap import SOAP
from .spectra import spectrum
from .tridiagonal import BlockTridiagonalKFAC

__all__ = [
    "EKFAC",
    "KFAC",
    "PRONG",
    "SOAP",
    "BatchNormalization",
    "BlockTridiagonalKFAC",
    "CotangentsOnly",
    "EuclideanMetric",
    "Fisher",
    "FixedMetric",
    "ForwardOnly",
    "GaussNewton",
    "GradientCovariance",
    "GradientMoment",
    "KLShampoo",
    "LayerwiseMetric",
    "LearnedPreconditioner",
    "MetricAverage",
    "NamedFrame",
    "RecurrentKFAC",
    "RelativeFisher",
    "RiemannianMetric",
    "RootMeanSquare",
    "RunningAverage",
    "Shampoo",
    "Whitening",
    "spectrum",
]
