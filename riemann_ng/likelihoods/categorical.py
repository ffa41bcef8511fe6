"""One of C classes at every site, by logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Categorical as CategoricalDistribution
from torch.nn.functional import cross_entropy, one_hot

from ..elements import describe
from ..errors import RiemannError, ShapeMismatch
from .layout import Layout
from .roots import SoftmaxRoot
from .sampling import at_least_single
from .sites import SiteLikelihood


@dataclass(frozen=True, eq=False, repr=False)
class Categorical(SiteLikelihood):
    """Logits along axis `dim`: (examples, *sites, C), or `dim=1` for images (examples, C, height, width).

    Targets are integer classes (examples, *sites), or probabilities shaped like the logits. `loss` is
    `F.cross_entropy(z, y, reduction="sum") / examples` with the same options; where there is one site, no class
    weights and nothing ignored, that is `F.cross_entropy(z, y)` itself.

    H = diag p - p pᵀ at each site; its kernel is the constant shift of a site's logits. Its directions are the C
    columns √p_c (e_c - p), or with `minimal` C - 1 that span the same form.

    Class weights and label smoothing make the loss -Σ w_c q_c log p_c, with q the smoothed label: no negative log
    likelihood any more. H stays what the law says, the Hessian of the loss expected at labels drawn from p, which
    is (Σ_c p_c v_c) (diag p - p pᵀ) with v = (1 - smoothing) w + smoothing mean(w). So smoothing alone leaves the
    Fisher of the softmax as it is (a Hessian of -Σ q_c log p_c does not see q); weights scale it, site by site, by
    the weight expected there. `Categorical()` as the output metric gives the Fisher without them. `kl` is that of
    the distributions p.
    """

    dim: int = -1
    ignore_index: int | None = -100
    weight: Tensor | None = None
    label_smoothing: float = 0.0
    sites: str = "sum"
    minimal: bool = False
    expects: ClassVar[str] = "integer classes"

    def check_options(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise RiemannError(f"Categorical: label_smoothing lies in [0, 1), got {self.label_smoothing!r}.")
        if self.weight is not None and not (self.weight.ndim == 1 and bool((self.weight >= 0).all())):
            raise RiemannError(f"Categorical: weight is one number per class, none negative, got {self.weight}.")

    @property
    def proper(self) -> bool:  # type: ignore[override]
        return self.weight is None and self.label_smoothing == 0

    @property
    def layout(self) -> Layout:
        return Layout(None, self.dim)

    def site_distribution(self, b: Tensor) -> CategoricalDistribution:
        return CategoricalDistribution(logits=b, validate_args=False)

    def nll(self, z: Tensor, y: Tensor) -> Tensor:
        logits, labels = self.blocks(z), self._labels(z, y)
        losses = cross_entropy(
            logits.flatten(0, -2),
            labels.flatten(0, -2) if labels.is_floating_point() else labels.flatten(),
            weight=None if self.weight is None else self.weight.to(z),
            ignore_index=-100 if self.ignore_index is None else self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        return self._reduced(z, losses.reshape(logits.shape[:-1]))

    def validate(self, z: Tensor, y: Tensor) -> None:
        self.check_outputs(z)
        labels, classes = self._labels(z, y), z.shape[self.dim]
        if labels.is_floating_point():
            if not bool((labels >= 0).all()) or not bool(((labels.sum(-1) - 1).abs() < 1e-3).all()):
                raise self.refused("probabilities of the classes must not be negative, and sum to 1 over each site.")
            return
        outside = (labels < 0) | (labels >= classes)
        if self.ignore_index is not None:
            outside &= labels != self.ignore_index
        if bool(outside.any()):
            ignored = "" if self.ignore_index is None else f" (or {self.ignore_index}, ignored)"
            raise self.refused(f"classes are 0 to {classes - 1}{ignored}, got {int(labels[outside][0])}.")

    def _labels(self, z: Tensor, y: Tensor) -> Tensor:
        """Integers (examples, *sites' axes), or probabilities (examples, *sites' axes, C)."""
        if self.weight is not None and len(self.weight) != z.shape[self.dim]:
            raise ShapeMismatch(
                f"ShapeMismatch in {self}: {len(self.weight)} class weights for the {z.shape[self.dim]} classes of "
                f"{describe(z)}."
            )
        if isinstance(y, Tensor) and y.is_floating_point() and y.shape == z.shape:
            return self.layout.grouped(y).to(z)
        expected = self.layout.target_shape(z.shape)
        if not isinstance(y, Tensor) or tuple(y.shape) != expected:
            raise self.refused(
                f"expected integer classes {list(expected)} or probabilities {list(z.shape)} for outputs "
                f"{describe(z)}, got {describe(y)}. The classes are on axis {self.dim} of the outputs (dim={self.dim})."
            )
        if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
            raise self.refused(f"expected integer classes, got {describe(y)}. Convert with .long().")
        return y.to(z.device).long()

    def targets(self, z: Tensor, y: Tensor) -> Tensor:
        """(examples, *sites' axes, C): u with nll = -Σ_c u_c log p_c, that is w_c q_c, and zero where ignored."""
        labels = self._labels(z, y)
        if labels.is_floating_point():
            return self._weigh(self._smooth(labels))
        if self.ignore_index is None:
            return self._weigh(self._smooth(one_hot(labels, z.shape[self.dim]).to(z.dtype)))
        kept = labels != self.ignore_index
        u = self._weigh(self._smooth(one_hot(labels.where(kept, 0), z.shape[self.dim]).to(z.dtype)))
        return u * kept[..., None]

    def mask(self, y: Tensor) -> Tensor | None:
        if self.ignore_index is None or y.is_floating_point():
            return None
        kept = (y != self.ignore_index).reshape(y.shape[0], -1)
        return None if bool(kept.all()) else kept

    def _smooth(self, q: Tensor) -> Tensor:
        return q if self.label_smoothing == 0 else (1 - self.label_smoothing) * q + self.label_smoothing / q.shape[-1]

    def _weigh(self, q: Tensor) -> Tensor:
        return q if self.weight is None else self.weight.to(q) * q

    def _expected_weight(self, p: Tensor) -> Tensor | None:
        if self.weight is None:
            return None
        w = self.weight.to(p)
        return (p @ ((1 - self.label_smoothing) * w + self.label_smoothing * w.mean()))[..., None]

    # One site

    def site_score(self, b: Tensor, y: Tensor) -> Tensor:
        return y.sum(-1, keepdim=True) * b.softmax(-1) - y

    def site_cotangent(self, b: Tensor, y: Tensor) -> Tensor:
        p = b.softmax(-1)
        scale = self._expected_weight(p)
        drawn = p - one_hot(y.long(), p.shape[-1]).to(p)
        return drawn if scale is None else scale.sqrt() * drawn

    def sites_root(self, z: Tensor) -> SoftmaxRoot:
        log_p = self.layout.split(z).log_softmax(-1)
        scale = self._expected_weight(log_p.exp())
        return SoftmaxRoot(self.layout, z.shape, log_p, 1.0 if scale is None else scale.sqrt(), self.minimal)

    def site_kl(self, b: Tensor, other: Tensor) -> Tensor:
        log_p = b.log_softmax(-1)
        return (log_p.exp() * (log_p - other.log_softmax(-1))).sum(-1)

    def kernel(self, z: Tensor) -> Tensor:
        self.check_outputs(z)
        sites, classes = self.layout.sites(z.shape), z.shape[self.dim]
        shifts = torch.eye(sites, dtype=z.dtype, device=z.device)[..., None].expand(sites, sites, classes)
        return self.layout.join(shifts, z.shape)

    def sample(self, z: Tensor, generator: torch.Generator, draws: int = 1) -> Tensor:
        p = self.blocks(z.detach().to(at_least_single(z.dtype))).softmax(-1)
        below = p.reshape(-1, p.shape[-1]).to(generator.device, torch.float64).cumsum(-1)
        u = torch.rand(len(below), draws, generator=generator, device=below.device, dtype=below.dtype)
        drawn = torch.searchsorted(below, u * below[:, -1:], right=True)  # an empty class holds no u
        return drawn.mT.reshape(draws, *self.layout.target_shape(z.shape)).to(z.device)
