"""Likelihoods with one parameter for every entry of the output: H is diagonal."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, distributions
from torch.distributions import Distribution
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from ..elements import describe
from ..errors import RiemannError, ShapeMismatch
from .layout import Layout
from .roots import DiagonalRoot
from .sampling import at_least_single, normal, uniform
from .sites import SiteLikelihood

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


class Elementwise(SiteLikelihood):
    """Targets are shaped like outputs. A kind says what one entry does, on tensors of entries."""

    diagonal: ClassVar[bool] = True

    @property
    def layout(self) -> Layout:
        return Layout(1)

    @abstractmethod
    def entry_score(self, z: Tensor, y: Tensor) -> Tensor: ...

    @abstractmethod
    def entry_root(self, z: Tensor) -> Tensor:
        """The root of the Fisher information of one entry."""

    @abstractmethod
    def entry_distribution(self, z: Tensor) -> Distribution: ...

    def site_score(self, b: Tensor, y: Tensor) -> Tensor:
        return self.entry_score(b[..., 0], y)[..., None]

    def sites_root(self, z: Tensor) -> DiagonalRoot:
        return DiagonalRoot(self.entry_root(z))

    def site_distribution(self, b: Tensor) -> Distribution:
        return self.entry_distribution(b[..., 0])


@dataclass(frozen=True, eq=False, repr=False)
class Bernoulli(Elementwise):
    """Logits. Targets lie in [0, 1]; those between (grey pixels) are expectations, as in torch's own loss.

    `loss` is `F.binary_cross_entropy_with_logits(z, y, reduction="sum") / examples`. H = p (1 - p).
    """

    sites: str = "sum"
    expects: ClassVar[str] = "numbers in [0, 1]"

    def unfit(self, y: Tensor) -> str | None:
        return None if bool(((y >= 0) & (y <= 1)).all()) else f"got values from {value_range(y)}"

    def entry_distribution(self, z: Tensor) -> distributions.Bernoulli:
        return distributions.Bernoulli(logits=z, validate_args=False)

    def site_nll(self, b: Tensor, y: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(b[..., 0], y, reduction="none")

    def entry_score(self, z: Tensor, y: Tensor) -> Tensor:
        return z.sigmoid() - y

    def entry_root(self, z: Tensor) -> Tensor:
        small = (-0.5 * z.abs()).exp()  # √(p (1 - p)) without cancellation where p is near 1
        return small / (1 + small * small)

    def site_kl(self, b: Tensor, other: Tensor) -> Tensor:
        z, w = b[..., 0], other[..., 0]
        return z.sigmoid() * (softplus(-w) - softplus(-z)) + (-z).sigmoid() * (softplus(w) - softplus(z))

    def sample(self, z: Tensor, generator: torch.Generator, draws: int = 1) -> Tensor:
        self.check_outputs(z)
        p = z.detach().to(at_least_single(z.dtype)).sigmoid()
        return (uniform((draws, *z.shape), generator, p) < p).to(z.dtype)


@dataclass(frozen=True, eq=False, repr=False)
class Gaussian(Elementwise):
    """Means; one known `scale`, a number or a tensor that broadcasts over one example's outputs.

    nll = ½‖y - z‖²/scale² + Σ log(scale √(2π)); `full=False` leaves out what does not depend on z. With scale 1 that is
    `F.mse_loss(z, y, reduction="sum") / (2 examples)`; in full it is
    `F.gaussian_nll_loss(z, y, var, full=True, reduction="sum") / examples`. H = 1/scale².
    """

    scale: float | Tensor = 1.0
    full: bool = True
    sites: str = "sum"
    expects: ClassVar[str] = "finite numbers"

    def check_options(self) -> None:
        if not bool((torch.as_tensor(self.scale) > 0).all()):
            raise RiemannError(f"Gaussian: scale must be positive, got {self.scale}.")

    def _scale(self, z: Tensor) -> Tensor:
        """Broadcasts over draws and examples."""
        scale = torch.as_tensor(self.scale, dtype=z.dtype, device=z.device)
        return scale.expand(z.shape)

    def unfit(self, y: Tensor) -> str | None:
        return None if bool(y.isfinite().all()) else "got NaN or infinity"

    def entry_distribution(self, z: Tensor) -> distributions.Normal:
        return distributions.Normal(z, self._scale(z), validate_args=False)

    def site_nll(self, b: Tensor, y: Tensor) -> Tensor:
        z = b[..., 0]
        scale = self._scale(z)
        square = 0.5 * ((y - z) / scale).square()
        return square + scale.log() + HALF_LOG_TWO_PI if self.full else square

    def entry_score(self, z: Tensor, y: Tensor) -> Tensor:
        return (z - y) / self._scale(z).square()

    def entry_root(self, z: Tensor) -> Tensor:
        return self._scale(z).reciprocal()

    def site_kl(self, b: Tensor, other: Tensor) -> Tensor:
        z = b[..., 0]
        return 0.5 * ((other[..., 0] - z) / self._scale(z)).square()

    def sample(self, z: Tensor, generator: torch.Generator, draws: int = 1) -> Tensor:
        self.check_outputs(z)
        return (z.detach() + self._scale(z) * normal((draws, *z.shape), generator, z)).to(z.dtype)

    def check_outputs(self, z: Tensor) -> None:
        self.layout.check(repr(self), z)
        shape = torch.as_tensor(self.scale).shape
        pairs = zip(reversed(shape), reversed(z.shape[1:]), strict=False)
        if len(shape) >= z.ndim or any(s not in (1, t) for s, t in pairs):
            raise ShapeMismatch(
                f"ShapeMismatch in Gaussian: a scale {list(shape)} does not broadcast over one example of "
                f"{describe(z)}."
            )


@dataclass(frozen=True, eq=False, repr=False)
class Poisson(Elementwise):
    """Log-rates. H = exp z.

    nll = exp z - y z + log y!; `full=False` leaves out log y!, and is then
    `F.poisson_nll_loss(z, y, log_input=True, reduction="sum") / examples` (whose own `full` is an approximation).
    """

    full: bool = True
    sites: str = "sum"
    expects: ClassVar[str] = "counts"

    def unfit(self, y: Tensor) -> str | None:
        return not_counts(y)

    def entry_distribution(self, z: Tensor) -> distributions.Poisson:
        return distributions.Poisson(z.exp(), validate_args=False)

    def site_nll(self, b: Tensor, y: Tensor) -> Tensor:
        z = b[..., 0]
        nll = z.exp() - y * z
        return nll + (y + 1).lgamma() if self.full else nll

    def entry_score(self, z: Tensor, y: Tensor) -> Tensor:
        return z.exp() - y

    def entry_root(self, z: Tensor) -> Tensor:
        return (0.5 * z).exp()

    def site_kl(self, b: Tensor, other: Tensor) -> Tensor:
        z, step = b[..., 0], other[..., 0] - b[..., 0]
        return z.exp() * (step.expm1() - step)

    def sample(self, z: Tensor, generator: torch.Generator, draws: int = 1) -> Tensor:
        self.check_outputs(z)
        rates = z.detach().to(generator.device, at_least_single(z.dtype)).exp()
        return torch.poisson(rates.expand(draws, *z.shape), generator=generator).to(z)


@dataclass(frozen=True, eq=False, repr=False)
class NegativeBinomial(Elementwise):
    """Logits of success, until `total_count` failures (a positive number, known): targets count the successes.

    The mean is total_count · exp z, so z is a log-mean up to a constant. With p = sigmoid z, H = total_count · p.
    """

    total_count: float
    sites: str = "sum"
    expects: ClassVar[str] = "counts"

    def check_options(self) -> None:
        if not self.total_count > 0:
            raise RiemannError(f"NegativeBinomial: total_count must be positive, got {self.total_count!r}.")

    def unfit(self, y: Tensor) -> str | None:
        return not_counts(y)

    def entry_distribution(self, z: Tensor) -> distributions.NegativeBinomial:
        return distributions.NegativeBinomial(torch.full_like(z, self.total_count), logits=z, validate_args=False)

    def entry_score(self, z: Tensor, y: Tensor) -> Tensor:
        return self.total_count * z.sigmoid() - y * (-z).sigmoid()

    def entry_root(self, z: Tensor) -> Tensor:
        root: Tensor = self.total_count**0.5 * z.sigmoid().sqrt()
        return root

    def site_kl(self, b: Tensor, other: Tensor) -> Tensor:
        z, w = b[..., 0], other[..., 0]
        kl: Tensor = self.total_count * (z.exp() * (z - w) + (1 + z.exp()) * (softplus(w) - softplus(z)))
        return kl


def not_counts(y: Tensor) -> str | None:
    if not bool((y >= 0).all()) or not bool((y == y.round()).all()):
        return f"got values from {value_range(y)} that are negative or no integers"
    return None


def value_range(y: Tensor) -> str:
    return f"{float(y.min()):g} to {float(y.max()):g}"
