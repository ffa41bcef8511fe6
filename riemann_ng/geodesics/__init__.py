"""Finite steps and distances: Christoffel symbols, corrected steps, geodesics, the volume element.

An inner product is about directions. How far a step really goes, and where, is about how the inner product changes
from point to point.
"""

from .christoffel import christoffel, pulled_back_christoffel
from .manifold import Manifold, Path
from .numerical import numerical_christoffel
from .outputs import output_christoffel
from .steps import geodesic_correction, geodesic_step, midpoint_step
from .volume import log_volume, volume

__all__ = [
    "Manifold",
    "Path",
    "christoffel",
    "geodesic_correction",
    "geodesic_step",
    "log_volume",
    "midpoint_step",
    "numerical_christoffel",
    "output_christoffel",
    "pulled_back_christoffel",
    "volume",
]
