"""Likelihoods with two parameters for each output: `GaussianMeanScale`, `Gamma`, `Beta`, `VonMises`.

Axis `dim` of the network's output, of size 2 m, holds the first parameter of all m outputs, then the second.
Targets have m there; for one output they may leave the axis out. Parameters are unconstrained. Information is
computed in double precision: its determinant is a small difference of polygammas or Bessel functions.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, distributions
from torch.special import i0e, i1e

from .layout import Layout
from .roots import BlockRoot, DiagonalRoot, Root
from .sites import SiteLikelihood


class TwoParameters(SiteLikelihood):
    """A kind with parameters (b[..., 0], b[..., 1]) at each site."""

    dim: int

    @property
    def layout(self) -> Layout:
        return Layout(2, self.dim)


class FullInformation(TwoParameters):
    """A kind whose two parameters inform of each other."""

    def sites_root(self, z: Tensor) -> Root:
        blocks = self.site_factor(self.layout.split(z).double()).to(z.dtype)
        return BlockRoot(self.layout, z.shape, blocks)

    @abstractmethod
    def site_factor(self, b: Tensor) -> Tensor:
        """(..., 2, 2) whose product with its transpose is the information of one site."""


@dataclass(frozen=True, eq=False, repr=False)
class GaussianMeanScale(TwoParameters):
    """Mean and log scale σ of each output. H = diag(1/σ², 2)."""

    dim: int = -1
    sites: str = "sum"
    diagonal: ClassVar[bool] = True
    expects: ClassVar[str] = "finite numbers"

    def unfit(self, y: Tensor) -> str | None:
        return None if bool(y.isfinite().all()) else "got NaN or infinity"

    def site_distribution(self, b: Tensor) -> distributions.Normal:
        return distributions.Normal(b[..., 0], b[..., 1].exp(), validate_args=False)

    def site_nll(self, b: Tensor, y: Tensor) -> Tensor:
        return b[..., 1] + 0.5 * ((y - b[..., 0]) * (-b[..., 1]).exp()).square() + 0.5 * math.log(2 * math.pi)

    def site_score(self, b: Tensor, y: Tensor) -> Tensor:
        precise = (-b[..., 1]).exp()
        residual = (b[..., 0] - y) * precise
        return torch.stack([residual * precise, 1 - residual.square()], -1)

    def sites_root(self, z: Tensor) -> DiagonalRoot:
        log_scale = self.layout.split(z)[..., 1]
        d = torch.stack([(-log_scale).exp(), torch.full_like(log_scale, math.sqrt(2))], -1)
        return DiagonalRoot(self.layout.join(d, z.shape))

    def site_kl(self, b: Tensor, other: Tensor) -> Tensor:
        step = other - b
        moved = (step[..., 0] * (-other[..., 1]).exp()).square()
        return step[..., 1] + 0.5 * ((-2 * step[..., 1]).expm1() + moved)


@dataclass(frozen=True, eq=False, repr=False)
class Gamma(FullInformation):
    """Log concentration (of α) and log rate (of β). H = [[α² ψ'(α), -α], [-α, α]]."""

    dim: int = -1
    sites: str = "sum"
    expects: ClassVar[str] = "positive numbers"

    def unfit(self, y: Tensor) -> str | None:
        return None if bool(((y > 0) & y.isfinite()).all()) else "got values that are not"

    def site_distribution(self, b: Tensor) -> distributions.Gamma:
        return distributions.Gamma(b[..., 0].exp(), b[..., 1].exp(), validate_args=False)

    def site_score(self, b: Tensor, y: Tensor) -> Tensor:
        alpha, scaled = b[..., 0].exp(), b[..., 1].exp() * y
        return torch.stack([alpha * (alpha.digamma() - scaled.log()), scaled - alpha], -1)

    def site_factor(self, b: Tensor) -> Tensor:
        alpha = b[..., 0].exp()
        root, rest = alpha.sqrt(), alpha * trigamma_excess(alpha).sqrt()
        return _matrix(root, rest, -root, torch.zeros_like(root))


@dataclass(frozen=True, eq=False, repr=False)
class Beta(FullInformation):
    """Log concentrations (of a and b). H = [[a² (ψ'(a) - t), -a b t], [-a b t, b² (ψ'(b) - t)]] with t = ψ'(a + b)."""

    dim: int = -1
    sites: str = "sum"
    expects: ClassVar[str] = "numbers strictly between 0 and 1"

    def unfit(self, y: Tensor) -> str | None:
        return None if bool(((y > 0) & (y < 1)).all()) else "got values that are not"

    def site_distribution(self, b: Tensor) -> distributions.Beta:
        return distributions.Beta(b[..., 0].exp(), b[..., 1].exp(), validate_args=False)

    def site_score(self, b: Tensor, y: Tensor) -> Tensor:
        c = b.exp()
        logs = torch.stack([y.log(), (-y).log1p()], -1)
        return c * (c.digamma() - c.sum(-1, keepdim=True).digamma() - logs)

    def site_factor(self, b: Tensor) -> Tensor:
        x, y = b.exp().unbind(-1)
        s = x + y
        tx, ty, ts = trigamma_excess(x), trigamma_excess(y), trigamma_excess(s)
        first = y / (x * s) + tx - ts  # ψ'(x) - ψ'(s)
        # the determinant without its leading terms, which cancel
        det = tx * x / (y * s) + ty * y / (x * s) - ts * s / (x * y) + tx * ty - ts * (tx + ty)
        root = first.sqrt()
        return _matrix(x * root, torch.zeros_like(root), -y * (1 / s + ts) / root, y * (det / first).sqrt())


@dataclass(frozen=True, eq=False, repr=False)
class VonMises(FullInformation):
    """An angle. The two parameters are one vector of the plane, κ (cos μ, sin μ): its direction is the mean
    direction, its length the concentration, its zero the uniform distribution. Smooth everywhere, as an angle is
    not.

    With A = I₁(κ)/I₀(κ), H is 1 - A/κ - A² along the vector and A/κ across it.
    """

    dim: int = -1
    sites: str = "sum"
    expects: ClassVar[str] = "finite angles in radians"

    def unfit(self, y: Tensor) -> str | None:
        return None if bool(y.isfinite().all()) else "got NaN or infinity"

    def site_distribution(self, b: Tensor) -> distributions.VonMises:
        kappa = torch.linalg.vector_norm(b, dim=-1).clamp(min=1e-6)  # its sampler divides by the concentration
        return distributions.VonMises(torch.atan2(b[..., 1], b[..., 0]), kappa, validate_args=False)

    def site_nll(self, b: Tensor, y: Tensor) -> Tensor:
        return _log_i0(b) + math.log(2 * math.pi) - b[..., 0] * y.cos() - b[..., 1] * y.sin()

    def site_score(self, b: Tensor, y: Tensor) -> Tensor:
        return _mean_resultant(b)[1] * b - torch.stack([y.cos(), y.sin()], -1)

    def site_factor(self, b: Tensor) -> Tensor:
        kappa, across = _mean_resultant(b)
        a = kappa * across  # A = I₁/I₀
        far = kappa.clamp(min=1)
        tail = (0.5 + (0.25 + (0.375 + (25 / 32 + 65 / 32 / far) / far) / far) / far) / far.square()
        along = torch.where(kappa > 300, tail, (1 - across - a * a).clamp(min=0))
        east = torch.tensor([1.0, 0.0], dtype=b.dtype, device=b.device)
        unit = torch.where(kappa > 0, b / kappa.clamp(min=1e-300), east)
        turned = torch.stack([-unit[..., 1], unit[..., 0]], -1)
        return torch.stack([unit * along.sqrt(), turned * across.sqrt()], -1)

    def site_kl(self, b: Tensor, other: Tensor) -> Tensor:
        mean = _mean_resultant(b)[1] * b
        return ((b - other) * mean).sum(-1) - _log_i0(b) + _log_i0(other)


def trigamma_excess(x: Tensor) -> Tensor:
    """ψ'(x) - 1/x > 0, also where the difference would cancel."""
    far = x.clamp(min=100.0)
    series = (0.5 + (1 / 6 - (1 / 30 - 1 / 42 / far.square()) / far.square()) / far) / far.square()
    return torch.where(x > 100, series, torch.polygamma(1, x) - 1 / x)


def _matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return torch.stack([torch.stack([a, b], -1), torch.stack([c, d], -1)], -2)


def _mean_resultant(b: Tensor) -> tuple[Tensor, Tensor]:
    """κ and A(κ)/κ, with the last axis kept at size one."""
    kappa = torch.linalg.vector_norm(b, dim=-1, keepdim=True)
    ratio = torch.where(kappa > 1e-4, i1e(kappa) / (i0e(kappa) * kappa.clamp(min=1e-30)), 0.5 - kappa.square() / 16)
    return kappa, ratio


def _log_i0(b: Tensor) -> Tensor:
    kappa = torch.linalg.vector_norm(b, dim=-1)
    log: Tensor = i0e(kappa).log() + kappa
    return log
