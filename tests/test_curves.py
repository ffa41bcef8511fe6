"""The curves-like images: calibrated to the statistics that the recipe is known by, and the same everywhere."""

import math

import pytest
import torch

from riemann_ng.errors import InvalidSetting
from riemann_ng.experiments import checksum, control_points, curves_like, draw_curves
from riemann_ng.experiments.curves import SAMPLES, curve_samples


@pytest.fixture(scope="module")
def images():
    return curves_like(10_000, dtype=torch.float64)


def left_by_components(images):
    """The variance that remains after k principal components, by k."""
    off = images - images.mean(0)
    spectrum = torch.linalg.eigvalsh(off.T @ off / len(off)).flip(0)
    return spectrum.sum() - torch.cat([torch.zeros(1, dtype=torch.float64), spectrum.cumsum(0)])


def test_calibration(images):
    """The numbers of the recipe at this pen; of the original data, 18 components leave 5.90."""
    left = left_by_components(images)
    assert float(images.mean()) == pytest.approx(0.0372, rel=0.01)
    assert float(images.square().sum(1).mean()) == pytest.approx(19.7, rel=0.01)
    expected = {0: 15.5, 6: 10.1, 18: 5.92, 30: 3.9, 50: 2.2}
    assert {k: float(left[k]) for k in expected} == pytest.approx(expected, rel=0.03)


def test_a_finer_pen_is_another_data_set(images):
    left = left_by_components(curves_like(2_000, pen=0.5, dtype=torch.float64))
    assert float(left[0]) < 14 and float(left[6]) < 9.5


def test_images_are_the_same_everywhere(images):
    assert checksum(images) == "1f305142648203a6"
    assert checksum(curves_like(1_000, seed=1, dtype=torch.float64)) == "717386594f96936e"


def test_seeds(images):
    assert torch.equal(curves_like(300, dtype=torch.float64), images[:300])  # more begin alike, whatever the chunks
    assert not torch.equal(curves_like(10, seed=1), curves_like(10, seed=2))
    before = torch.random.get_rng_state()
    x = curves_like(7)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert x.shape == (7, 784) and x.dtype == torch.float32 and curves_like(0).shape == (0, 784)
    assert float(x.min()) == 0 and 0.9 < float(x.max()) <= 1
    assert float(x[x > 0].min()) > 1e-13


def test_curves_pass_their_points():
    points = control_points(50, seed=3)
    samples = curve_samples(points)
    assert samples.shape == (50, SAMPLES, 2)
    for k, t in ((0, 0.0), (2, 1.0)):
        assert torch.allclose(samples[:, int(t * (SAMPLES - 1))], points[:, k])
    middle = (samples[:, SAMPLES // 2 - 1] + samples[:, SAMPLES // 2]) / 2  # t = 1/2 up to the curve's bend
    assert float((middle - points[:, 1]).abs().max()) < 0.1
    third = samples[:, 3:] - 3 * samples[:, 2:-1] + 3 * samples[:, 1:-2] - samples[:, :-3]
    inside = ((samples > 0) & (samples < 27)).all(1).all(1)
    assert inside.any() and float(third[inside].abs().max()) < 1e-12  # parabolas


def test_pixels_by_their_definition():
    points = control_points(3, seed=4)
    samples, drawn = curve_samples(points), draw_curves(points, pen=0.6)
    for n in range(3):
        for row, column in ((10, 12), (15, 8), (20, 20), (int(points[n, 0, 1]), int(points[n, 0, 0]))):
            d2 = min((float(x) - column) ** 2 + (float(y) - row) ** 2 for x, y in samples[n])
            expected = math.exp(-d2 / (2 * 0.6**2))
            assert float(drawn[n, row, column]) == pytest.approx(expected if expected > 1e-12 else 0.0, rel=1e-12)


def test_bad_settings():
    with pytest.raises(InvalidSetting, match=r"images=-1, expected none or more"):
        control_points(-1)
    with pytest.raises(InvalidSetting, match=r"pen=0, expected a positive number of pixels"):
        draw_curves(control_points(1), pen=0)
    with pytest.raises(InvalidSetting, match=r"three points of the plane, \(n, 3, 2\), got float64\[4, 2\]"):
        draw_curves(torch.zeros(4, 2, dtype=torch.float64))
