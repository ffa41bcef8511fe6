"""Reproductions of published results, and the data that they need and nobody ships."""

from .curves import checksum as checksum
from .curves import control_points as control_points
from .curves import curves_like as curves_like
from .curves import draw_curves as draw_curves

__all__ = ["checksum", "control_points", "curves_like", "draw_curves"]
