"""The Fisher metric of a network with two parameters: its ellipses, and geodesics by geomstats, as a picture.

The model is a dose-response curve: a patient responds with probability σ(a x + b) to a dose x. Where the curve is
steep few doses are informative, and the ellipses of vectors of one length are long. A geodesic between two curves goes
through curves that differ as little as can be; the straight line in (a, b) does not, and in other parameters it would
be another one, while the geodesic is the same.

    python examples/ellipses_and_geodesics.py [picture.svg]
"""

import math
import sys

import torch
from torch import Tensor

import riemann_ng as rng
from riemann_ng.geodesics import Manifold
from riemann_ng.interop.geomstats import as_geomstats

DOSES = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
LEFT, RIGHT, LOW, HIGH, ZOOM = -0.5, 4.5, -3.0, 3.0, 120.0
START = torch.tensor([0.8, -1.5], dtype=torch.float64)
ENDS = torch.tensor([[0.8, 1.5], [3.5, 0.0], [3.5, 2.0]], dtype=torch.float64)


def by_slope_and_offset(parameters: Tensor, x: Tensor) -> Tensor:
    a, b = parameters
    return a * x + b


def by_steepness_and_median(parameters: Tensor, x: Tensor) -> Tensor:
    """The same curves, by log a and the dose -b/a to which half of the patients respond."""
    steepness, median = parameters
    return steepness.exp() * (x - median)


def other(point: Tensor) -> Tensor:
    return torch.stack([point[0].log(), -point[1] / point[0]])


def manifold(curve, parameters: Tensor) -> Manifold:
    network = rng.Network.from_function(curve, parameters.clone(), rng.Bernoulli(), example=DOSES)
    return Manifold(network, rng.Fisher(), DOSES)


def placed(point: Tensor) -> str:
    return f"{ZOOM * (point[0] - LEFT):.1f},{ZOOM * (HIGH - point[1]):.1f}"


def line(points: Tensor, style: str) -> str:
    return f'<polyline points="{" ".join(map(placed, points))}" {style}/>'


def ellipse(M: Manifold, point: Tensor, radius: float = 0.05) -> Tensor:
    """The vectors of one length at a point: a circle, seen through an orthonormal frame."""
    E = M.at(rng.Point(M.here.space, point)).frame(point)
    angle = torch.linspace(0, 2 * math.pi, 49, dtype=point.dtype)
    circle = rng.Vector(E.domain, radius * torch.stack([angle.cos(), angle.sin()], dim=-1))
    return point + E(circle).components


def picture(M: Manifold, curves: list[Tensor]) -> str:
    size = f"{ZOOM * (RIGHT - LEFT):.0f} {ZOOM * (HIGH - LOW):.0f}"
    drawn = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" role="img">']
    drawn.append("<title>Ellipses of the Fisher metric, and geodesics, over slope and offset of a curve</title>")
    drawn.append('<rect width="100%" height="100%" fill="white"/>')
    for a in torch.arange(0.0, 4.1, 0.5):
        for b in torch.arange(-2.5, 2.6, 0.5):
            points = ellipse(M, torch.stack([a, b]).double())
            drawn.append(line(points, 'fill="#e4e4ee" stroke="#a8a8c0"'))
    for curve, end, color in zip(curves, ENDS, ("#c03028", "#2860c0", "#208048"), strict=True):
        drawn.append(line(torch.stack([START, end]), 'fill="none" stroke="#606060" stroke-dasharray="6 6"'))
        drawn.append(line(curve.detach(), f'fill="none" stroke="{color}" stroke-width="3"'))
    return "\n".join([*drawn, "</svg>", ""])


def main(path: str) -> None:
    M = manifold(by_slope_and_offset, START)
    metric = as_geomstats(M)
    metric.exp_solver.integrator.n_steps = 8
    times = torch.linspace(0, 1, 10, dtype=torch.float64)
    curves = []
    for end in ENDS:
        ended = rng.Point(M.here.space, end)
        v = M.log(ended, steps=8)  # by shooting, with Christoffel symbols of the network
        curves.append(metric.geodesic(START, initial_tangent_vec=v.components)(times))  # by geomstats
        torch.testing.assert_close(curves[-1][-1], end, rtol=0, atol=1e-3)

        N = manifold(by_steepness_and_median, other(START))
        distance = float(M.at().norm(v))
        there = N.distance(rng.Point(N.here.space, other(end)), steps=8)
        v = ended - M.here
        pieces = [M.at(rng.Point(ended.space, START + t * v.components)).norm(v) for t in times]
        straight = float(torch.trapezoid(torch.stack(pieces), times))
        print(f"to {end.tolist()}: geodesic {distance:.5f}, in other parameters {there:.5f}, straight {straight:.5f}")
        assert abs(there - distance) < 1e-3 * distance < straight - distance

    with open(path, "w", encoding="utf-8") as file:
        file.write(picture(M, curves))
    print(f"see {path}")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["ellipses_and_geodesics.svg"]))
