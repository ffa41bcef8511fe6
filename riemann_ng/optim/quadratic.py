"""The quadratic model of a loss along a few directions, with the exact Fisher of a batch, and what the loss really did.

    M(δ) = df(δ) + ½ (F(δ, δ) + λ h(δ, δ))

F(u, v) is the mean over examples of <Sᵀ J u, Sᵀ J v>, for a square root S of the outputs' inner product: it takes
J u alone, one forward differentiation for each direction and no backward pass. M is exact wherever the directions come
from, and free of coordinates if h is.

No label is needed to tell how the loss has changed when the outputs have moved from z to z':

    KL(p_z ‖ p_z') + <score, z' - z>

with the loss's own gradient at the outputs as the score. This is exact where z are natural parameters (Categorical,
Bernoulli, Poisson, the mean of a Gaussian of given scale), for the loss of such a model is A(z) - <y, z> and its KL
divergence A(z') - A(z) - <A'(z), z' - z>. Elsewhere the two agree to second order in z' - z.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..elements import Covector, Vector
from ..inner_products import InnerProduct
from ..likelihoods import OutputMetric
from ..networks import Network
from ..networks.outputs import first_examples
from ..networks.precision import at_least_single
from ..networks.pushing import pushed_together
from .listening import Pass
from .ranks import Alone, Ranks


@dataclass
class Batch:
    """The examples of a step. What is computed on them has the dropout masks of the loop's own forward."""

    network: Network
    passes: Sequence[Pass]
    output: OutputMetric
    ranks: Ranks = field(default_factory=Alone)

    @property
    def examples(self) -> int:
        """Of all processes."""
        return self.ranks.examples(self.own)

    @property
    def own(self) -> int:
        return sum(p.examples for p in self.passes)

    @contextmanager
    def _as_in(self, p: Pass) -> Iterator[None]:
        assert p.began is not None
        with p.began.again():
            yield

    def fisher(self, directions: Sequence[Vector], fraction: float = 1.0) -> Tensor:
        """F(u, v) for all pairs of directions, on the first examples of every forward, in double precision."""
        total, examples = torch.zeros(len(directions), len(directions), dtype=torch.float64), 0
        for p in self.passes:
            n = p.examples if fraction == 1 else max(1, round(fraction * p.examples))
            x = p.x if n == p.examples else first_examples(p.x, n)
            z, moved = self._pushed(p, directions, x)
            root = self.output.root(at_least_single(z.detach()))
            rows = torch.stack([root.pair(at_least_single(w).detach()).flatten() for w in moved]).double()
            total, examples = total.to(rows) + rows @ rows.mT, examples + n
        sums = self.ranks.sums(torch.cat([total.flatten(), total.new_tensor([examples])]))
        return sums[:-1].reshape(total.shape) / sums[-1]

    def _pushed(self, p: Pass, directions: Sequence[Vector], x: Any) -> tuple[Tensor, list[Tensor]]:
        """The outputs, and how they move along each direction."""
        with self._as_in(p):
            together = pushed_together(self.network, directions, x)
        if together is not None:
            return together
        moved = []
        for v in directions:
            with self._as_in(p):
                moved.append(self.network.pushforward(v, x))
        with self._as_in(p):
            return self.network.outputs(x), moved

    def outputs(self) -> list[Tensor]:
        """The outputs of every forward where the parameters are now."""
        found = []
        for p in self.passes:
            with self._as_in(p):
                found.append(at_least_single(self.network.outputs(p.x).detach()))
        return found

    def outputs_before(self) -> list[Tensor]:
        """Those of the loop's own forwards, or computed where another forward would not give the same."""
        if all(p.plain for p in self.passes) and not couples(self.network.module):
            return [at_least_single(p.z) for p in self.passes]
        return self.outputs()

    def change(self, before: Sequence[Tensor], unit: float) -> float | None:
        """How the mean loss has changed since the outputs were those; scores are to be multiplied by `unit`.

        None where a forward's output received no gradient.
        """
        return self.ranks.mean(self._own_change(before, unit), self.own)

    def _own_change(self, before: Sequence[Tensor], unit: float) -> float | None:
        total = 0.0
        for p, z, moved in zip(self.passes, before, self.outputs(), strict=True):
            if p.score is None:
                return None
            divergence = self.network.likelihood.kl(z, moved).double().sum() / self.own
            total += float(divergence + unit * (at_least_single(p.score).double() * (moved - z).double()).sum())
        return total


def couples(module: nn.Module) -> bool:
    """Whether a forward in the loop uses the statistics of its batch, where the network's own has them frozen."""
    kinds = nn.modules.batchnorm._BatchNorm
    return any(isinstance(m, kinds) and m.training and m.running_mean is not None for m in module.modules())


@dataclass(frozen=True)
class Model:
    """M restricted to the span of some directions: its linear part and its matrix, in double precision."""

    slope: Tensor
    curvature: Tensor

    @classmethod
    def along(
        cls,
        directions: Sequence[Vector],
        df: Covector,
        batch: Batch,
        fraction: float,
        reference: InnerProduct | None,
        damping: float,
    ) -> Model:
        slope = torch.stack([df(v) for v in directions]).double().cpu()
        curvature = batch.fisher(directions, fraction).cpu()
        if reference is not None and damping:
            pairs = [[reference.inner(u, v) for v in directions] for u in directions]
            curvature = curvature + damping * torch.stack([torch.stack(row) for row in pairs]).double().cpu()
        return cls(slope, curvature)

    def minimum(self, bound: float = math.inf) -> Tensor:
        """The coefficients of the minimum, all but the first within a bound.

        Along what is flat they are the shortest, and zero where nothing is left.
        """
        best = self._solved(self.slope, self.curvature)
        outside = best[1:].abs() > bound
        if bool(outside.any()):
            rest = best[1:].clamp(-bound, bound)
            first = self._solved(self.slope[:1] + self.curvature[:1, 1:] @ rest, self.curvature[:1, :1])
            best = torch.cat([first, rest])
        return best

    @staticmethod
    def _solved(slope: Tensor, curvature: Tensor) -> Tensor:
        scale = curvature.diagonal().clamp(min=0).sqrt()
        scale = torch.where(scale > 0, scale, 1.0)
        unit = curvature / scale[:, None] / scale
        if not bool(unit.isfinite().all()):
            return torch.full_like(slope, torch.nan)
        inverse = torch.linalg.pinv(unit, rtol=1e-7, hermitian=True)
        return -(inverse @ (slope / scale)) / scale

    def length(self, coefficients: Tensor) -> float:
        """√(F(δ, δ) + λ h(δ, δ))"""
        c = coefficients.double()
        return max(float(c @ self.curvature @ c), 0.0) ** 0.5

    def __call__(self, coefficients: Tensor) -> float:
        c = coefficients.double()
        return float(c @ self.slope + 0.5 * c @ self.curvature @ c)
