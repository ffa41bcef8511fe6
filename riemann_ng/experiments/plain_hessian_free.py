"""Hessian-free optimization as it was published, in plain torch: Gauss-Newton products of a loss, and no metric."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vjp

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of outputs and targets, a mean over examples."""


class HessianFree:
    """One model and its loss: λ, and the last solution of conjugate gradients.

    Each step solves (Jᵀ H J + λ) v = -df, with H the second derivative of the loss in the outputs, by conjugate
    gradients that begin at 0.95 of the last solution and end where little progress is made. The loss says which of
    some iterates to take, and how far to go along it; λ changes by 2/3 by how well the quadratic model foretold it.
    """

    def __init__(self, model: nn.Module, loss: Loss, damping: float, most: int):
        self.model, self.loss, self.damping, self.most = model, loss, damping, most
        self.solution = torch.zeros_like(self.point)

    @property
    def point(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])

    def outputs(self, point: Tensor, x: Tensor) -> Tensor:
        parts, start = {}, 0
        for name, p in self.model.named_parameters():
            parts[name] = point[start : start + p.numel()].view_as(p)
            start += p.numel()
        z: Tensor = functional_call(self.model, parts, (x,))
        return z

    def product(self, point: Tensor, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Jᵀ H J v, without the damping."""

        def here(w: Tensor) -> Tensor:
            return self.outputs(w, x)

        z, Jv = jvp(here, (point,), (v,))  # type: ignore[misc]

        def there(u: Tensor) -> Tensor:
            return self.loss(u, y)

        HJv = jvp(grad(there), (z,), (Jv,))[1]
        Fv: Tensor = vjp(here, point)[1](HJv)[0]
        return Fv

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Moves the parameters, and returns them."""
        point = self.point
        value: Tensor = self.loss(self.outputs(point, x), y)
        g = grad(lambda w: self.loss(self.outputs(w, x), y))(point)
        kept = self.solved(point, g, x, y)
        heights = [float(self.loss(self.outputs(point + v, x), y)) for v in kept]
        best = len(kept) - 1
        while best > 0 and heights[best - 1] <= heights[best]:
            best -= 1
        d, rate = kept[best], 1.0
        slope = float(g @ d)
        after = heights[best]
        while after > float(value) + 0.01 * rate * slope:
            rate *= 0.8
            after = float(self.loss(self.outputs(point + rate * d, x), y))
        bend = float(d @ self.product(point, x, y, d))
        ratio = (after - float(value)) / (rate * slope + 0.5 * rate**2 * bend)
        self.damping *= 2 / 3 if ratio > 0.75 else 1.5 if ratio < 0.25 else 1.0
        with torch.no_grad():
            nn.utils.vector_to_parameters(point + rate * d, self.model.parameters())
        return self.point

    def solved(self, point: Tensor, g: Tensor, x: Tensor, y: Tensor) -> list[Tensor]:
        """Iterates of conjugate gradients whose numbers grow by 1.3, and the last one."""

        def flat(v: Tensor) -> Tensor:
            return self.product(point, x, y, v) + self.damping * v

        v = 0.95 * self.solution
        r = -g - flat(v)
        p, rho = r, r @ r
        heights, kept, following = [float(0.5 * v @ (g - r))], [], 1
        for k in range(1, self.most + 1):
            q = flat(p)
            alpha = rho / (p @ q)
            v, r = v + alpha * p, r - alpha * q
            p, rho = r + (r @ r) / rho * p, r @ r
            heights.append(float(0.5 * v @ (g - r)))
            gap = max(10, math.ceil(k / 10))
            ends = k > gap and heights[-1] < 0 and (heights[-1] - heights[-1 - gap]) / heights[-1] < gap * 5e-4
            if k >= following or ends or k == self.most:
                kept.append(v)
            if k >= following:
                following = max(following + 1, math.ceil(1.3 * following))
            if ends:
                break
        self.solution = v
        return kept
