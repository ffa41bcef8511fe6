"""Geodesics of the Fisher metric of Gaussians, by geomstats, from a metric written down here.

The model has two parameters, the mean μ and the deviation σ. Its Fisher metric is the second moment of the score; its
matrix is never written. geomstats makes geodesics of it. Two Gaussians that are sharp and far apart are joined through
blurred ones: the straight line in (μ, σ) is longer.

    python examples/geomstats_geodesics.py [picture.png]
"""

import math
import sys
from importlib.util import find_spec

import torch
from torch import Tensor

import riemann_ng as rng
from riemann_ng.interop.geomstats import FieldMetric, as_geomstats

PARAMETERS = rng.Space("(μ, σ)", 2)


def fisher(point: Tensor) -> rng.InnerProduct:
    """E[score ⊗ score], by the quadrature with three nodes, which is exact for these polynomials."""
    _, sigma = point
    z, weights = point.new_tensor([-math.sqrt(3), 0, math.sqrt(3)]), point.new_tensor([1, 4, 1]) / 6
    score = torch.stack([z / sigma, (z**2 - 1) / sigma], dim=-1)
    return rng.LowRank(PARAMETERS, weights.sqrt()[:, None] * score, name="score", natural=True)


def length(metric: FieldMetric, path: Tensor) -> Tensor:
    """The length of a path of many points: its pieces, measured in the middle."""
    return metric.norm(path.diff(dim=0), (path[1:] + path[:-1]) / 2).sum()


def closed_form(a: Tensor, b: Tensor) -> Tensor:
    """√2 times the distance in the hyperbolic plane of the points (μ / √2, σ)."""
    (m, s), (n, t) = a, b
    return math.sqrt(2) * torch.acosh(1 + ((m - n) ** 2 / 2 + (s - t) ** 2) / (2 * s * t))


def ellipse(point: Tensor, radius: float = 0.13) -> Tensor:
    """The vectors of one length at a point: a circle, seen through an orthonormal frame."""
    angle = torch.linspace(0, 2 * math.pi, 60, dtype=point.dtype)
    E = fisher(point).frame(point)
    circle = rng.Vector(E.domain, radius * torch.stack([angle.cos(), angle.sin()], dim=-1))
    return point + E(circle).data


def draw(path: str, curves: list[Tensor], straight: Tensor) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for mu in torch.linspace(-2, 2, 9, dtype=torch.float64):
        for sigma in (0.4, 0.8, 1.2, 1.6):
            axes.fill(*ellipse(torch.stack([mu, mu.new_tensor(sigma)])).mT, color="0.87")
    for curve in curves:
        axes.plot(*curve.detach().mT)
    axes.plot(*straight.mT, "k--", linewidth=1)
    axes.set(xlabel="mean μ", ylabel="deviation σ", aspect="equal", title="geodesics and balls of the Fisher metric")
    figure.savefig(path, dpi=150, bbox_inches="tight")


def main(picture: str) -> None:
    metric = as_geomstats(fisher, PARAMETERS, contains=lambda point: point[..., 1] > 0)
    a = torch.tensor([-1.5, 0.5], dtype=torch.float64)
    ends = torch.tensor([[1.5, 0.5], [0.0, 1.8], [1.5, 1.0]], dtype=torch.float64)
    times = torch.linspace(0, 1, 51, dtype=torch.float64)
    straight = torch.lerp(a, ends[0], times[:, None])

    curves = [metric.geodesic(a, end_point=b)(times) for b in ends]
    for curve, b in zip(curves, ends, strict=True):
        found, exact = length(metric, curve), closed_form(a, b)
        print(f"from {a.tolist()} to {b.tolist()}: length {found:.6f}, closed form {exact:.6f}")
        assert abs(found - exact) < 1e-3 * exact
        torch.testing.assert_close(curve[-1], b, rtol=0, atol=1e-8)

    detour = length(metric, straight)
    print(f"along the straight line: {detour:.6f}; the geodesic rises to a deviation of {curves[0][:, 1].max():.3f}")
    assert detour > 1.1 * length(metric, curves[0])

    curvature = metric.sectional_curvature(*torch.eye(2, dtype=torch.float64), a)
    print(f"curvature {curvature:.6f}, everywhere")
    torch.testing.assert_close(curvature, torch.tensor(-0.5, dtype=torch.float64))

    if find_spec("matplotlib"):
        draw(picture, curves, straight)
        print(f"see {picture}")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["geomstats_geodesics.png"]))
