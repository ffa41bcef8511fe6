"""Ordinary differential equations of second order, and shooting at a point along them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import DegenerateMetric, NonFinite, NotConverged

State = tuple[Tensor, Tensor]
ADVICE = "Take points closer together, or more steps."


def runge_kutta(flow: Callable[[State], State], state: State, h: float) -> State:
    """One step of the classical method of fourth order."""

    def after(slope: State, t: float) -> State:
        return state[0] + t * slope[0], state[1] + t * slope[1]

    k1 = flow(state)
    k2 = flow(after(k1, h / 2))
    k3 = flow(after(k2, h / 2))
    k4 = flow(after(k3, h))
    first, second = ((a + 2 * b + 2 * c + d) / 6 for a, b, c, d in zip(k1, k2, k3, k4, strict=True))
    return after((first, second), h)


def shoot(
    missed: Callable[[Tensor], Tensor], w: Tensor, tolerance: float, inverse: Tensor | None = None, shots: int = 60
) -> tuple[Tensor, Tensor]:
    """The w with missed(w) = 0, and the inverse of the slope there: Newton steps with a slope that is kept up to date.

    It is found by differences where it is not given, and then corrected by what every shot has shown (Broyden).
    """
    w, miss = started(missed, w)
    if inverse is None:
        h = torch.finfo(w.dtype).eps ** 0.5 * max(1.0, float(w.abs().max()))
        eye = torch.eye(len(w), dtype=w.dtype, device=w.device)
        inverse = torch.linalg.inv(torch.stack([(missed(w + h * e) - miss) / h for e in eye], -1))
    for _ in range(shots):
        if float(miss.abs().max()) <= tolerance:
            return w, inverse
        moved, found = shortened(missed, w, -inverse @ miss, miss)
        turned = inverse @ (found - miss)
        inverse = inverse + torch.outer(moved - turned, moved @ inverse) / (moved @ turned)
        w, miss = w + moved, found
    raise NotConverged(f"NotConverged in log: geodesics miss their end by {float(miss.abs().max()):.2e}. {ADVICE}")


def started(missed: Callable[[Tensor], Tensor], w: Tensor) -> State:
    """A shot along w that stays where there is a metric, shorter where it must be, and what it misses."""
    for _ in range(8):
        try:
            return w, missed(w)
        except (DegenerateMetric, NonFinite) as error:
            cause, w = error, w / 2
    raise NotConverged(f"NotConverged in log: no shot along the straight line is a geodesic. {ADVICE}\n{cause}")


def shortened(missed: Callable[[Tensor], Tensor], w: Tensor, step: Tensor, miss: Tensor) -> tuple[Tensor, Tensor]:
    """A step and where it leads, made shorter while that is no place of the metric, or much farther than before."""
    for _ in range(10):
        try:
            found = missed(w + step)
            if bool(found.isfinite().all()) and float(found.norm()) < 2 * float(miss.norm()):
                return step, found
        except (DegenerateMetric, NonFinite):
            pass
        step = step / 2
    raise NotConverged(
        f"NotConverged in log: no geodesic near the last one comes closer than {float(miss.abs().max()):.2e} to the "
        f"end. {ADVICE}"
    )
