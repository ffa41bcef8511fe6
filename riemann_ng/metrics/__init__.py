"""Metrics: an inner product at every point, from what a network saw of a batch."""

from .averages import MetricAverage, RunningAverage
from .base import LayerwiseMetric, RiemannianMetric
from .constant import EuclideanMetric, FixedMetric
from .ekfac import EKFAC
from .fisher import Fisher, GaussNewton
from .gradient_moment import GradientMoment
from .kfac import KFAC

__all__ = [
    "EKFAC",
    "KFAC",
    "EuclideanMetric",
    "Fisher",
    "FixedMetric",
    "GaussNewton",
    "GradientMoment",
    "LayerwiseMetric",
    "MetricAverage",
    "RiemannianMetric",
    "RunningAverage",
]
