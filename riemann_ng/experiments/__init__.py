"""Reproductions of published results, and the data that they need and nobody ships."""

from .base import Experiment as Experiment
from .base import Run as Run
from .curves import checksum as checksum
from .curves import control_points as control_points
from .curves import curves_like as curves_like
from .curves import draw_curves as draw_curves
from .digits import Digits as Digits
from .digits import digits as digits
from .idx import CorruptData as CorruptData
from .idx import read_idx as read_idx
from .idx import read_mnist as read_mnist
from .records import Check as Check
from .records import Panel as Panel
from .records import Picture as Picture
from .records import Results as Results
from .records import Series as Series
from .records import Table as Table
from .registry import EXPERIMENTS as EXPERIMENTS
from .registry import UnknownExperiment as UnknownExperiment
from .registry import experiment as experiment

__all__ = [
    "EXPERIMENTS", "Check", "CorruptData", "Digits", "Experiment", "Panel", "Picture", "Results", "Run", "Series",
    "Table", "UnknownExperiment", "checksum", "control_points", "curves_like", "digits", "draw_curves", "experiment",
    "read_idx", "read_mnist",
]  # fmt: skip
