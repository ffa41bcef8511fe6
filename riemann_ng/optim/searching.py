"""Searches for the minimum of a function of one or of a few numbers. What is infinite or no number is never taken."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidSetting

Values = Callable[[Tensor], float]
Slopes = Callable[[Tensor], tuple[float, Tensor]]


@dataclass(frozen=True)
class Armijo:
    """Steps along a direction, each `shrink` times the last, until the loss has fallen by `sufficient` of its slope.

    None where `most` of them do not do.
    """

    sufficient: float = 1e-2
    shrink: float = 0.8
    most: int = 60

    def __post_init__(self) -> None:
        whole = isinstance(self.most, int) and not isinstance(self.most, bool)
        if not (0 <= self.sufficient < 1 and 0 < self.shrink < 1 and whole and self.most >= 1):
            raise InvalidSetting(
                f"InvalidSetting in {self!r}: expected sufficient in [0, 1), shrink in (0, 1) and most of at least 1."
            )

    def along(self, f: Callable[[float], float], slope: float, start: float = 1.0) -> tuple[float, float] | None:
        """How far to go and the value there, for f(0) = 0 with that slope."""
        rate = start
        for _ in range(self.most):
            value = f(rate)
            if value <= self.sufficient * rate * slope and value < 0:
                return rate, value
            rate *= self.shrink
        return None


def bfgs(f: Slopes, inverse: Tensor, iterations: int, tolerance: float = 1e-10) -> tuple[Tensor, float]:
    """From zero, where f is zero, to a minimum, by the rule of Broyden, Fletcher, Goldfarb and Shanno.

    `inverse` is the first guess of the inverse Hessian. Returns the lowest point met, and its value.
    """
    x = torch.zeros(len(inverse), dtype=torch.float64)
    value, slope = f(x)
    first = float(slope @ inverse @ slope)
    for _ in range(iterations):
        p = -(inverse @ slope)
        along = float(slope @ p)
        if not (along < 0 and math.isfinite(along)) or -along <= tolerance**2 * first:
            break
        found = stepped(f, x, p, value, along)
        if found is None:
            break
        step, value, new = found
        x, change, slope = x + step, new - slope, new
        bend = float(change @ step)
        if bend > 1e-12 * float(step.norm() * change.norm()):
            V = torch.eye(len(x), dtype=x.dtype) - torch.outer(step, change) / bend
            inverse = V @ inverse @ V.mT + torch.outer(step, step) / bend
    return x, value


def stepped(f: Slopes, x: Tensor, p: Tensor, value: float, along: float) -> tuple[Tensor, float, Tensor] | None:
    """A step along p that is low enough, the value and the slope there; each point is looked at once."""
    slope = p

    def risen(t: float) -> float:
        nonlocal slope
        there, slope = f(x + t * p)
        return there - value

    found = Armijo(1e-4, 0.5, 40).along(risen, along)
    return None if found is None else (found[0] * p, value + found[1], slope)


def nelder_mead(f: Values, start: Tensor, sizes: Tensor, evaluations: int) -> tuple[Tensor, float]:
    """The lowest point that the simplex method of Nelder and Mead meets from a start, without any derivative."""
    n = len(start)
    points = [start] + [start + sizes[i] * torch.eye(n, dtype=start.dtype)[i] for i in range(n)]
    simplex = [(f(x), k, x) for k, x in enumerate(points)]
    used = n + 1
    while used < evaluations:
        simplex.sort(key=lambda entry: (entry[0], entry[1]))
        (_, _, _), (worst, _, x) = simplex[0], simplex[-1]
        centre = torch.stack([p for _, _, p in simplex[:-1]]).mean(0)
        used += 1
        reflected = (f(2 * centre - x), used, 2 * centre - x)
        if reflected[0] < simplex[0][0]:
            used += 1
            expanded = (f(3 * centre - 2 * x), used, 3 * centre - 2 * x)
            simplex[-1] = min(reflected, expanded, key=lambda entry: entry[0])
        elif reflected[0] < simplex[-2][0]:
            simplex[-1] = reflected
        else:
            towards = (2 * centre - x) if reflected[0] < worst else x
            used += 1
            contracted = (f((centre + towards) / 2), used, (centre + towards) / 2)
            if contracted[0] < min(worst, reflected[0]):
                simplex[-1] = contracted
            else:
                best = simplex[0][2]
                shrunk = [((p + best) / 2) for _, _, p in simplex[1:]]
                simplex[1:] = [(f(p), used + k, p) for k, p in enumerate(shrunk, 1)]
                used += n
    value, _, x = min(simplex, key=lambda entry: (entry[0], entry[1]))
    return x, value
