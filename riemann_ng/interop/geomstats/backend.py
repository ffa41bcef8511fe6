"""What is used of geomstats, started on torch tensors, and what both directions say of points."""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ...elements import describe
from ...errors import DtypeMismatch, MissingDependency, NonFinite, ShapeMismatch

BACKEND = "pytorch"
FLOATS = {torch.float32: "float32", torch.float64: "float64"}


@contextmanager
def on_torch() -> Iterator[None]:
    """geomstats takes its backend from the environment, once, and sets torch's default dtype: both are put back."""
    running = sys.modules.get("geomstats._backend")
    if running is not None and running.BACKEND_NAME != BACKEND:
        raise MissingDependency(
            f"MissingDependency in riemann_ng.interop.geomstats: geomstats was started on its "
            f"{running.BACKEND_NAME!r} backend and cannot change it; {BACKEND!r} is needed. Set "
            f"GEOMSTATS_BACKEND={BACKEND} before geomstats is imported, or import riemann_ng.interop.geomstats first."
        )
    chosen, dtype = os.environ.get("GEOMSTATS_BACKEND"), torch.get_default_dtype()
    os.environ["GEOMSTATS_BACKEND"] = BACKEND
    try:
        yield
    except (ImportError, AttributeError) as cause:
        raise MissingDependency(
            f"MissingDependency in riemann_ng.interop.geomstats: geomstats does not import: {cause}. "
            f"Install it with pip install 'geomstats>=2.8' 'numpy<2.4'; geomstats 2.8.0 fails with a newer numpy."
        ) from cause
    finally:
        if chosen is None:
            del os.environ["GEOMSTATS_BACKEND"]
        else:
            os.environ["GEOMSTATS_BACKEND"] = chosen
        if running is None:
            torch.set_default_dtype(dtype)


with on_torch():
    FIRST = "geomstats" not in sys.modules
    import geomstats.backend as gs
    from geomstats.geometry.base import VectorSpace as FlatManifold
    from geomstats.geometry.base import VectorSpaceOpenSet
    from geomstats.geometry.complex_manifold import ComplexManifold
    from geomstats.geometry.euclidean import Euclidean as EuclideanManifold
    from geomstats.geometry.euclidean import EuclideanMetric
    from geomstats.geometry.hyperboloid import Hyperboloid
    from geomstats.geometry.manifold import Manifold
    from geomstats.geometry.poincare_ball import PoincareBall
    from geomstats.geometry.riemannian_metric import RiemannianMetric
    from geomstats.geometry.scalar_product_metric import ScalarProductMetric
    from geomstats.geometry.spd_matrices import SPDMatrices
    from geomstats.numerics.geodesic import ExpODESolver, LogSolver, PathStraightening
    from geomstats.numerics.ivp import GSIVPIntegrator
    from geomstats.numerics.optimization import ScipyMinimize

__all__ = [
    "ComplexManifold",
    "EuclideanManifold",
    "EuclideanMetric",
    "ExpODESolver",
    "FlatManifold",
    "GSIVPIntegrator",
    "Hyperboloid",
    "LogSolver",
    "Manifold",
    "PathStraightening",
    "PoincareBall",
    "RiemannianMetric",
    "SPDMatrices",
    "ScalarProductMetric",
    "ScipyMinimize",
    "VectorSpaceOpenSet",
    "check_point",
    "geomstats_in",
    "gs",
    "text_of",
]

if FIRST and torch.get_default_dtype() in FLOATS:
    gs.set_default_dtype(FLOATS[torch.get_default_dtype()])  # one default for geomstats and torch: it relies on that


@contextmanager
def geomstats_in(dtype: torch.dtype) -> Iterator[None]:
    """geomstats makes its constants in its default dtype: in a narrower one than the point's they spoil the result."""
    theirs, ours = gs.get_default_dtype(), torch.get_default_dtype()
    if theirs == ours == dtype:  # to change it takes as long as a small exp
        yield
        return
    try:
        gs.set_default_dtype(FLOATS[dtype])
        yield
    finally:
        gs.set_default_dtype(FLOATS[theirs])
        torch.set_default_dtype(ours)


def check_point(call: str, where: str, shape: tuple[int, ...], point: object) -> None:
    if not isinstance(point, Tensor) or tuple(point.shape) != tuple(shape):
        raise ShapeMismatch(
            f"ShapeMismatch in {call}: one point of {where} has components {list(shape)}, got {describe(point)}."
        )
    if point.dtype not in FLOATS:
        raise DtypeMismatch(
            f"DtypeMismatch in {call}: geomstats computes in float32 or float64, got {describe(point)} for {where}."
        )
    if not bool(point.isfinite().all()):
        raise NonFinite(f"NonFinite in {call}: the point of {where} holds NaN or infinity.")


def text_of(point: Tensor) -> str:
    """A point in a name: short, and different for different points."""
    numbers = point.detach().flatten().tolist()
    if len(numbers) <= 3:
        return f"({', '.join(map(repr, numbers))})"
    return f"({numbers[0]:.4g}, {numbers[1]:.4g}, … #{zlib.crc32(repr(numbers).encode()):08x})"
