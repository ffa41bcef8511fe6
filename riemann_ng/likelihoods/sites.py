"""Likelihoods whose sites are independent: each is a small distribution with its own few parameters.

A kind says what one site does, on blocks (..., parameters) and targets (...); layout, reduction over sites, checks and
draws are here, once.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from ..elements import describe
from .base import Likelihood, check_option
from .layout import Layout
from .roots import Root


class SiteLikelihood(Likelihood):
    """A product over sites. `sites` is "sum" or "mean"."""

    sites: str
    expects: ClassVar[str]
    """What targets are, for errors."""

    def __post_init__(self) -> None:
        check_option(type(self).__name__, "sites", self.sites, ("sum", "mean"))
        self.check_options()

    def check_options(self) -> None:
        """Refuses options that mean nothing."""
        return None

    # What one site does

    @property
    @abstractmethod
    def layout(self) -> Layout: ...

    @abstractmethod
    def site_distribution(self, b: Tensor) -> Distribution:
        """Of blocks (..., parameters): a distribution with batch shape (...)."""

    def site_nll(self, b: Tensor, y: Tensor) -> Tensor:
        return -torch.as_tensor(self.site_distribution(b).log_prob(y))

    @abstractmethod
    def site_score(self, b: Tensor, y: Tensor) -> Tensor: ...

    @abstractmethod
    def sites_root(self, z: Tensor) -> Root:
        """The root at outputs z, sites summed."""

    def site_kl(self, b: Tensor, other: Tensor) -> Tensor:
        return torch.as_tensor(kl_divergence(self.site_distribution(b), self.site_distribution(other)))

    def site_cotangent(self, b: Tensor, y: Tensor) -> Tensor:
        """What has covariance H for labels y drawn at b."""
        return self.site_score(b, y)

    def unfit(self, y: Tensor) -> str | None:
        """Why these values are no targets, or None."""
        return None

    # What follows

    def check_outputs(self, z: Tensor) -> None:
        """Raises `ShapeMismatch` for outputs that are none of this likelihood."""
        self.layout.check(repr(self), z)

    def share(self, z: Tensor) -> float:
        """What one site counts in the loss of its example."""
        return 1 / self.layout.sites(z.shape) if self.sites == "mean" else 1.0

    def blocks(self, z: Tensor) -> Tensor:
        """z as (examples, *sites' axes, parameters)."""
        self.check_outputs(z)
        return self.layout.grouped(z)

    def targets(self, z: Tensor, y: Tensor) -> Tensor:
        """Targets of checked shape and type, as (examples, *sites' axes), in the dtype of z."""
        shapes = [self.layout.target_shape(z.shape)]
        if self._outputs_have_an_axis:
            axis = self.layout.axis(z.ndim) % z.ndim
            if shapes[0][axis] == 1:
                shapes.append((*shapes[0][:axis], *shapes[0][axis + 1 :]))
        if not isinstance(y, Tensor) or tuple(y.shape) not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            raise self.refused(
                f"expected {self.expects}, shaped {wanted} for outputs {describe(z)}, got {describe(y)}."
            )
        if y.is_complex():
            raise self.refused(f"expected {self.expects}, got {describe(y)}.")
        return self._sites_last(y.to(z), y.ndim == z.ndim, z.ndim)

    def validate(self, z: Tensor, y: Tensor) -> None:
        self.check_outputs(z)
        self.targets(z, y)
        reason = self.unfit(y.to(z))
        if reason is not None:
            raise self.refused(f"expected {self.expects}, {reason}.")

    def nll(self, z: Tensor, y: Tensor) -> Tensor:
        return self._reduced(z, self.site_nll(self.blocks(z), self.targets(z, y)))

    def score(self, z: Tensor, y: Tensor) -> Tensor:
        score = self.site_score(self.blocks(z), self.targets(z, y))
        return self.layout.ungrouped(self.share(z) * score, z.shape)

    def distribution(self, z: Tensor) -> Distribution:
        groups = self.blocks(z)
        if self._outputs_have_an_axis:
            groups = groups.movedim(-2, self.layout.axis(z.ndim) - 1)
        return self.site_distribution(groups)

    def root(self, z: Tensor) -> Root:
        self.check_outputs(z)
        root = self.sites_root(z)
        return root if self.sites == "sum" else root.scaled(self.share(z) ** 0.5)

    def kernel(self, z: Tensor) -> Tensor | None:
        return z.new_zeros(0, *z.shape[1:])

    def sampled_cotangents(self, z: Tensor, generator: torch.Generator, draws: int = 1) -> Tensor:
        b, y = self.blocks(z), self.sample(z, generator, draws).movedim(0, 1)
        cotangents = self.site_cotangent(b[:, None], self._sites_last(y, y.ndim > z.ndim, z.ndim))
        return self.layout.ungrouped(self.share(z) ** 0.5 * cotangents, z.shape, lead=2)

    def kl(self, z: Tensor, other: Tensor) -> Tensor:
        self._check_tangent("kl", z, other)
        return self._reduced(z, self.site_kl(self.blocks(z), self.blocks(other)))

    @property
    def _outputs_have_an_axis(self) -> bool:
        """Whether targets keep the parameters' axis: that of the outputs, each of which has several parameters."""
        return self.layout.dim is not None and self.layout.parameters is not None

    def _sites_last(self, y: Tensor, has_axis: bool, ndim: int) -> Tensor:
        """Targets with their axes in the order of blocks."""
        if not self._outputs_have_an_axis:
            return y
        return y.movedim(self.layout.axis(ndim), -1) if has_axis else y.unsqueeze(-1)

    def _reduced(self, z: Tensor, x: Tensor) -> Tensor:
        return self.share(z) * x.reshape(x.shape[0], -1).sum(-1)
