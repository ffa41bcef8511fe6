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

    def correct(self, problem: Problem, r: Tensor, target: Tensor, steps: int) -> tuple[Tensor, int, Tensor | None]:
        value, z = torch.zeros_like(r), problem.sharp(r)
        rho = problem.square(r, z)
        # p_square is |p|² for M, kept up: the residual's sharp is orthogonal to the last direction
        p, p_square = z, rho
        steepest = torch.zeros_like(rho)
        taken = 0
        fresh = True  # before the first step r and p are not this solve's own to write to
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
            value = plus(value, alpha, p, own=True)
            r = plus(r, -alpha, q, own=not fresh)
            z = problem.sharp(r)
            rho, last = problem.square(r, z), rho
            beta = (rho / last).where(active, torch.zeros_like(rho))
            p = plus(z, beta[:, None], p, own=False) if fresh or p.requires_grad else p.mul_(beta[:, None]).add_(z)
            p_square = rho + beta.square() * p_square
            taken, fresh = taken + 1, False
        return value, taken, r


def plus(x: Tensor, c: Tensor, d: Tensor, own: bool) -> Tensor:
    """x + c d, written over x where it is one's own and no gradient flows."""
    if own and not (x.requires_grad or c.requires_grad or d.requires_grad):
        return x.addcmul_(c, d)
    return torch.addcmul(x, c, d)


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
