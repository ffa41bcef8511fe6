"""Images of curves through three random points: a stand-in for the CURVES data of autoencoder experiments.

The original images, 28×28 with intensities in [0, 1] from three points in the plane, were published as a file and not
as a recipe; how a curve was drawn is not known. Here it is the parabola through the points, drawn with a soft round
pen. With a pen of 0.7 the error of 18 principal components is that of the original (5.9 squared per image); other
numbers are close and not equal. So say "curves-like", and do not compare losses with those published for CURVES.

    images = curves_like(20_000, seed=0)        # (20000, 784), float32
    test = curves_like(10_000, seed=1)
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from ..elements import describe
from ..errors import InvalidSetting

SIZE = 28
LOW, HIGH = 6.0, 21.0
"""The square that the three points are drawn in, in pixels."""
SAMPLES = 40
"""Points on a curve at which the pen is set down."""
PEN = 0.7
"""Its standard deviation, in pixels."""
FAINT = 1e-12
"""Less ink is none: numbers near the smallest of float32 make training slow."""
CHUNK = 256
"""Images drawn at a time, so that they stay in the cache."""


def curves_like(images: int, seed: int = 0, pen: float = PEN, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images (images, 784), intensities in [0, 1]. The same seed gives the same images; more of them begin alike."""
    return draw_curves(control_points(images, seed), pen).flatten(1).to(dtype)


def control_points(images: int, seed: int = 0) -> Tensor:
    """Three points for each image, (images, 3, 2): the six numbers that it is made of."""
    if images < 0:
        raise InvalidSetting(f"InvalidSetting in control_points: images={images!r}, expected none or more.")
    uniform = torch.rand(images, 3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return LOW + (HIGH - LOW) * uniform


def curve_samples(points: Tensor) -> Tensor:
    """Points (n, SAMPLES, 2) on the parabolas that pass (n, 3, 2) at t = 0, 1/2, 1, kept inside the image."""
    t = torch.linspace(0, 1, SAMPLES, dtype=points.dtype)
    lagrange = torch.stack([2 * (t - 0.5) * (t - 1), 4 * t * (1 - t), 2 * t * (t - 0.5)], dim=1)
    return (lagrange @ points).clamp(0, SIZE - 1)


def draw_curves(points: Tensor, pen: float = PEN) -> Tensor:
    """Images (n, 28, 28) of the curves through points (n, 3, 2): exp(-d²/2pen²), d the distance to the nearest sample.

    Computed in float64, so that rounding does not show in `checksum`.
    """
    if points.ndim != 3 or points.shape[1:] != (3, 2) or not points.is_floating_point():
        raise InvalidSetting(
            f"InvalidSetting in draw_curves: a curve is drawn through three points of the plane, (n, 3, 2), got "
            f"{describe(points)}."
        )
    if not (pen > 0 and math.isfinite(pen)):
        raise InvalidSetting(f"InvalidSetting in draw_curves: pen={pen!r}, expected a positive number of pixels.")
    samples, pixels = curve_samples(points.double()), torch.arange(SIZE, dtype=torch.float64)
    images = torch.empty(len(points), SIZE, SIZE, dtype=torch.float64)
    for start in range(0, len(points), CHUNK):
        off = (samples[start : start + CHUNK, :, :, None] - pixels).square()  # (n, samples, axis, pixels)
        x, y = off[:, :, 0, None, :], off[:, :, 1, :, None]
        nearest = torch.full((len(off), SIZE, SIZE), torch.inf, dtype=torch.float64)
        for k in range(SAMPLES):
            torch.minimum(nearest, x[:, k] + y[:, k], out=nearest)
        ink = nearest.mul_(-0.5 / pen**2).exp_()
        images[start : start + CHUNK] = torch.where(ink < FAINT, 0.0, ink)
    return images


def checksum(images: Tensor) -> str:
    """Of the intensities in 255ths, as 16 digits: tells whether two machines have the same images.

    Give it float64: in float32 some intensities round to the next 255th.
    """
    return hashlib.sha256((255 * images.double()).round().to(torch.uint8).numpy().tobytes()).hexdigest()[:16]
