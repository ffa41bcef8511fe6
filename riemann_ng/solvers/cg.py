"""Conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DegenerateMetric, NotAnInnerProduct
from ..factorizations import rounding_unit
from .base import WAYS_OUT
from .iterative import Iterative, Problem


@dataclass(frozen=True)
class CG(Iterative):
    """Conjugate gradients, for definite forms known by their products; one product and one M.sharp a step.

    A direction of negative length is found if the iteration meets one, and refused: then the form is no inner
    product. One of length zero is a degenerate form; `MinresQLP` takes these.
    """

    def correct(self, problem: Problem, r: Tensor, target: Tensor, steps: int) -> tuple[Tensor, int]:
        value, z = torch.zeros_like(r), problem.sharp(r)
        rho = problem.square(r, z)
        p, p_square = (
            z,
            rho,
        )  # p_square is |p|² for M, kept up: the residual's sharp is orthogonal to the last direction
        steepest = torch.zeros_like(rho)
        taken = 0
        while taken < steps:
            active = rho.sqrt() > target
            if not bool(active.any()):
                break
            q = problem.flat(p)
            curvature = torch.linalg.vecdot(p, q)
            steepest = torch.maximum(steepest, (curvature / p_square).abs().where(active, steepest))
            _check_curvature(problem, curvature / p_square, steepest, active)
            # columns that are done stand still, so that each is solved as it would be alone
            alpha = (rho / curvature).where(active, torch.zeros_like(rho))[:, None]
            value, r = value + alpha * p, r - alpha * q
            z = problem.sharp(r)
            rho, last = problem.square(r, z), rho
            beta = (rho / last).where(active, torch.zeros_like(rho))
            p = z + beta[:, None] * p
            p_square = rho + beta.square() * p_square
            taken += 1
        return value, taken


def _check_curvature(problem: Problem, curvature: Tensor, steepest: Tensor, active: Tensor) -> None:
    """g(p, p) / M(p, p) of the directions, against the steepest met: what is below rounding has no sign."""
    noise = 4 * rounding_unit(curvature.dtype) * steepest
    if not bool((active & (curvature <= noise)).any()):
        return
    lowest, highest = float(curvature[active].min()), float(steepest.max())
    met = f"g(p, p) = {lowest:.1e} M(p, p) along one direction, {highest:.1e} along another"
    if bool((active & (curvature < -noise)).any()):
        raise NotAnInnerProduct(
            f"NotAnInnerProduct in {problem.call}: the form on {problem.g.space} is indefinite, {met}. "
            f"Conjugate gradients need an inner product; for an indefinite system use solvers.MinresQLP(...)."
        )
    raise DegenerateMetric(
        f"DegenerateMetric in {problem.call}: the form on {problem.g.space} has a kernel, {met}. {WAYS_OUT} "
        f"Or use solvers.MinresQLP(...), which returns the shortest solution.",
        problem.g.space,
    )
