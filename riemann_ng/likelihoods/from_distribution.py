"""Any family of torch.distributions, through its log density."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, distributions
from torch.distributions import Distribution, kl_divergence

from ..elements import describe
from ..errors import RiemannError, ShapeMismatch
from .base import Likelihood, check_option
from .forms import psd_root
from .layout import Layout
from .roots import BlockRoot, Root
from .sampling import draw_from

# Families whose closed-form divergence is smooth. Others have kinks where the two distributions agree (Laplace), which
# autograd would pass over in silence.
ANALYTIC = (
    distributions.ExponentialFamily,
    distributions.Binomial,
    distributions.Geometric,
    distributions.Gumbel,
    distributions.LogNormal,
    distributions.LowRankMultivariateNormal,
    distributions.MultivariateNormal,
    distributions.OneHotCategorical,
)
METHODS = ("kl", "enumerate", "quadrature", "monte carlo")


@dataclass(frozen=True, eq=False, repr=False)
class FromDistribution(Likelihood):
    """`make(z)` is a regular torch distribution (differentiable in z, support independent of z) with examples first.

    nll sums -log_prob over everything but the examples. H is dense over one example's outputs, found by `method`:

        "kl"           the Hessian of torch's own closed-form KL divergence, by autograd: exact where that is smooth
        "enumerate"    Σ_y p(y) s sᵀ over a finite support: exact
        "quadrature"   the same over equal slices of probability, where each target is a number with a known quantile
                       function: to about 1e-8
        "monte carlo"  the mean of s sᵀ over `draws` sampled targets, seeded with `seed`: noisy, never more than its
        draws say

    with s the score. "auto" takes the first that the family can do; `method_at(z)` says which. `kl` is by the same
    method.
    """

    make: Callable[[Tensor], Distribution]
    method: str = "auto"
    draws: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        check_option("FromDistribution", "method", self.method, ("auto", *METHODS))

    def distribution(self, z: Tensor) -> Distribution:
        Layout(None).check(repr(self), z)
        made = self.make(z)
        if (tuple(made.batch_shape) + tuple(made.event_shape))[:1] != (z.shape[0],) or not made.batch_shape:
            raise ShapeMismatch(
                f"ShapeMismatch in {self}: for outputs {describe(z)} the distribution must have examples first, "
                f"got batch shape {list(made.batch_shape)} and event shape {list(made.event_shape)}."
            )
        return made

    def validate(self, z: Tensor, y: Tensor) -> None:
        support = self._expecting(z, y).support
        if support is not None and not bool(torch.as_tensor(support.check(y)).all()):
            raise self.refused(f"targets lie outside the support, {support}.")

    def _expecting(self, z: Tensor, y: Tensor) -> Distribution:
        """The distribution, after a look at the shape of the targets."""
        made = self.distribution(z)
        expected = made.batch_shape + made.event_shape
        if not isinstance(y, Tensor) or y.shape != expected:
            raise self.refused(f"expected targets {list(expected)}, got {describe(y)}.")
        return made

    def nll(self, z: Tensor, y: Tensor) -> Tensor:
        return -_per_example(self._expecting(z, y).log_prob(y))

    def score(self, z: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            at = z.detach().clone().requires_grad_()
            (score,) = torch.autograd.grad(-self._expecting(at, y).log_prob(y).sum(), at)
        return score

    def sampled_cotangents(self, z: Tensor, generator: torch.Generator, draws: int = 1) -> Tensor:
        drawn = self.sample(z, generator, draws)
        return torch.stack([self.score(z, y) for y in drawn], 1)

    def method_at(self, z: Tensor) -> str:
        """How H is found at these outputs."""
        if self.method != "auto":
            return self.method
        made = self.distribution(z.detach())
        family = made.base_dist if isinstance(made, distributions.Independent) else made
        if isinstance(family, ANALYTIC) and _answers(lambda: kl_divergence(made, made)):
            return "kl"
        if made.has_enumerate_support:
            return "enumerate"
        if not made.event_shape and _answers(lambda: made.icdf(torch.full((1,), 0.5).to(z))):
            return "quadrature"
        return "monte carlo"

    def information(self, z: Tensor) -> Tensor:
        """H, (examples, D, D)."""
        method, z = self.method_at(z), z.detach()
        n, size = z.shape[0], z.shape[1:].numel()
        with torch.enable_grad():
            if method == "kl":
                at = z.clone().requires_grad_()
                divergence = kl_divergence(self.distribution(z), self.distribution(at)).sum()
                (slope,) = torch.autograd.grad(divergence, at, create_graph=True)
                rows = torch.eye(size, dtype=z.dtype, device=z.device)[:, None].expand(size, n, size)
                grads = [torch.autograd.grad(slope, at, row.reshape(z.shape), retain_graph=True)[0] for row in rows]
                h = torch.stack([grad.reshape(n, size) for grad in grads], 1)
                return 0.5 * (h + h.mT)
            y, weights = self._nodes(z, method)
            at = z.expand(len(y), *z.shape).flatten(0, 1).requires_grad_()  # every node is an example of its own
            log_p = self.distribution(at).log_prob(y.flatten(0, 1)).reshape(len(at), -1)
            h, mean = z.new_zeros(n, size, size), z.new_zeros(n, size)
            for part in range(log_p.shape[-1]):  # independent given z: their informations add
                (s,) = torch.autograd.grad(log_p[:, part].sum(), at, retain_graph=True)
                s, w = s.reshape(len(y), n, size), weights[..., part]
                h += torch.einsum("kn,kni,knj->nij", w, s, s)
                mean += torch.einsum("kn,kni->ni", w, s)
        if method != "monte carlo" and not bool((mean.norm(dim=-1) <= 1e-3 * h.norm(dim=(-2, -1)).sqrt()).all()):
            raise RiemannError(
                f"{self}: the scores do not have mean zero: the family is not regular (its support moves with z), and "
                f"has no Fisher information."
            )
        return h

    def _nodes(self, z: Tensor, method: str) -> tuple[Tensor, Tensor]:
        """Targets (nodes, *targets' shape) and their probabilities (nodes, examples, parts)."""
        made, n = self.distribution(z), z.shape[0]
        if method == "enumerate":
            y = made.enumerate_support()
            return y, made.log_prob(y).exp().reshape(len(y), n, -1)
        if method == "quadrature":
            u, w = _unit_interval(z)
            y = made.icdf(u.reshape(-1, *(1 for _ in made.batch_shape)).expand(-1, *made.batch_shape))
            return y, w.reshape(-1, 1, 1).expand(-1, n, made.batch_shape[1:].numel())
        generator = torch.Generator(z.device).manual_seed(self.seed)
        y = draw_from(made, self.draws, generator, z.device)
        return y, z.new_full((self.draws, n, made.batch_shape[1:].numel()), 1 / self.draws)

    def root(self, z: Tensor) -> Root:
        return BlockRoot(Layout(None), z.shape, psd_root(repr(self), self.information(z), z)[:, None])

    def kernel(self, z: Tensor) -> Tensor | None:
        return None

    def kl(self, z: Tensor, other: Tensor) -> Tensor:
        self._check_tangent("kl", z, other)
        method, made, moved = self.method_at(z), self.distribution(z), self.distribution(other)
        if method == "kl":
            return _per_example(kl_divergence(made, moved))
        y, weights = self._nodes(z.detach(), method)
        ratio = (made.log_prob(y) - moved.log_prob(y)).reshape(weights.shape)
        return (weights * ratio).sum((0, 2))


def _per_example(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1).sum(-1)


def _answers(question: Callable[[], object]) -> bool:
    try:
        question()
    except NotImplementedError:
        return False
    return True


def _unit_interval(like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the tanh-sinh rule on each half of (0, 1): it bears singular ends, and a kink at the
    median.
    """
    t = torch.linspace(-3.0, 3.0, 121, dtype=torch.float64)
    half = torch.sigmoid(math.pi * t.sinh()) / 2
    w = t.cosh() * half * (1 - 2 * half)
    half, w = half[half > 1e-14], w[half > 1e-14]
    u, w = torch.cat([half, 1 - half]), torch.cat([w, w])
    return u.to(like), (w / w.sum()).to(like)
