"""Likelihoods to test, each with outputs, and an independent account of what targets it expects at one site."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, distributions

from riemann_ng import likelihoods as lk

WEIGHT = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """`nodes(z)` of one site's parameters: targets (K,), their probabilities, and the loss (K,) of each at any z'."""

    name: str
    likelihood: lk.SiteLikelihood
    shape: tuple[int, ...]
    nodes: Callable[[Tensor], tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]
    parameters: int = 1
    shift: float = 0.0
    """Added to outputs, to stay where the oracle is accurate."""

    def __str__(self) -> str:
        return self.name

    def outputs(self, n: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
        z = torch.randn(n, *self.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return (z + self.shift).to(dtype)

    def targets(self, z: Tensor, seed: int = 1) -> Tensor:
        return self.likelihood.sample(z, torch.Generator().manual_seed(seed))[0]


def categorical_loss(z: Tensor, y: Tensor, weight: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    return torch.nn.functional.cross_entropy(
        z.expand(len(y), -1), y.long(), weight=weight, label_smoothing=smoothing, reduction="none"
    )


def classes(z: Tensor) -> tuple[Tensor, Tensor]:
    return torch.arange(len(z)), z.softmax(-1)


def counts(top: int, make: Callable[[Tensor], distributions.Distribution]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def nodes(z: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.arange(top, dtype=z.dtype)
        return y, make(z).log_prob(y).exp()

    return nodes


def line(make: Callable[[Tensor], distributions.Distribution], chart: str) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The trapezoidal rule on a chart in which the density falls off at both ends: spectrally accurate."""

    def nodes(z: Tensor) -> tuple[Tensor, Tensor]:
        t = torch.linspace(-300 if chart == "log" else -40, 40, 40_001, dtype=z.dtype)
        y = {"identity": t, "log": t.exp(), "logit": t.sigmoid()}[chart]
        slope = {"identity": torch.ones_like(t), "log": y, "logit": t.sigmoid() * (-t).sigmoid()}[chart]
        inside = (y > 1e-15) & (y < 1 - 1e-15) if chart == "logit" else y > -math.inf
        y, slope = y[inside], slope[inside]
        return y, make(z).log_prob(y).exp() * slope * (t[1] - t[0])

    return nodes


def angles(z: Tensor) -> tuple[Tensor, Tensor]:
    y = torch.arange(2000, dtype=z.dtype) * (2 * math.pi / 2000)
    return y, (z[0] * y.cos() + z[1] * y.sin()).softmax(0)


def von_mises_loss(z: Tensor, y: Tensor) -> Tensor:
    grid = torch.arange(2000, dtype=z.dtype) * (2 * math.pi / 2000)
    log_normalizer = torch.logsumexp(z[0] * grid.cos() + z[1] * grid.sin(), 0) + math.log(2 * math.pi / 2000)
    return log_normalizer - z[0] * y.cos() - z[1] * y.sin()


def normal(z: Tensor) -> distributions.Normal:
    return distributions.Normal(z[0], z[1].exp(), validate_args=False)


def gamma(z: Tensor) -> distributions.Gamma:
    return distributions.Gamma(z[0].exp(), z[1].exp(), validate_args=False)


def beta(z: Tensor) -> distributions.Beta:
    return distributions.Beta(z[0].exp(), z[1].exp(), validate_args=False)


def fixed(z: Tensor) -> distributions.Normal:
    return distributions.Normal(z[0], 0.7, validate_args=False)


def poisson(z: Tensor) -> distributions.Poisson:
    return distributions.Poisson(z[0].exp(), validate_args=False)


def negative_binomial(z: Tensor) -> distributions.NegativeBinomial:
    return distributions.NegativeBinomial(2.5, logits=z[0], validate_args=False)


def bernoulli(z: Tensor) -> distributions.Bernoulli:
    return distributions.Bernoulli(logits=z[0], validate_args=False)


def minus_log(make: Callable[[Tensor], distributions.Distribution]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda z, y: -make(z).log_prob(y)


WEIGHTED = lk.Categorical(weight=WEIGHT, label_smoothing=0.2)

CASES = [
    Case("categorical", lk.Categorical(), (4,), classes, categorical_loss, 4),
    Case("categorical tokens", lk.Categorical(), (3, 4), classes, categorical_loss, 4),
    Case("categorical pixels", lk.Categorical(dim=1), (4, 2, 3), classes, categorical_loss, 4),
    Case("categorical minimal", lk.Categorical(dim=1, minimal=True), (4, 3), classes, categorical_loss, 4),
    Case("categorical mean", lk.Categorical(sites="mean"), (3, 4), classes, categorical_loss, 4),
    Case(
        "categorical weighted", WEIGHTED, (3, 4), classes,
        lambda z, y: categorical_loss(z, y, WEIGHT, 0.2), 4,
    ),
    Case(
        "categorical smoothed", lk.Categorical(label_smoothing=0.3), (3, 4), classes,
        lambda z, y: categorical_loss(z, y, None, 0.3), 4,
    ),
    Case("bernoulli", lk.Bernoulli(), (5,), counts(2, bernoulli), minus_log(bernoulli)),
    Case("bernoulli mean", lk.Bernoulli(sites="mean"), (2, 3), counts(2, bernoulli), minus_log(bernoulli)),
    Case("gaussian", lk.Gaussian(0.7), (2, 3), line(fixed, "identity"), minus_log(fixed)),
    Case("gaussian short", lk.Gaussian(0.7, full=False), (4,), line(fixed, "identity"), minus_log(fixed)),
    Case("poisson", lk.Poisson(), (4,), counts(150, poisson), minus_log(poisson)),
    Case(
        "negative binomial", lk.NegativeBinomial(2.5), (4,),
        counts(900, negative_binomial), minus_log(negative_binomial),
    ),
    Case("gaussian mean scale", lk.GaussianMeanScale(), (6,), line(normal, "identity"), minus_log(normal), 2),
    Case(
        "gaussian mean scale pixels", lk.GaussianMeanScale(dim=1), (4, 3),
        line(normal, "identity"), minus_log(normal), 2,
    ),
    Case("gamma", lk.Gamma(), (3, 2), line(gamma, "log"), minus_log(gamma), 2),
    Case("beta", lk.Beta(dim=1), (4, 2), line(beta, "logit"), minus_log(beta), 2, shift=2.0),
    Case("von mises", lk.VonMises(), (4,), angles, von_mises_loss, 2),
    Case("von mises mean", lk.VonMises(sites="mean"), (4,), angles, von_mises_loss, 2),
]  # fmt: skip


def check_roots(metric: lk.OutputMetric, z: torch.Tensor) -> None:
    """The laws of square roots at these outputs."""
    dz = torch.randn(z.shape, generator=torch.Generator().manual_seed(5), dtype=z.dtype)
    s = metric.directions(z)
    assert s.shape == (z.shape[0], metric.count(z), *z.shape[1:])
    flat, h = s.flatten(2), metric.matrix(z)
    applied = torch.einsum("nij,nj->ni", h, dz.flatten(1)).reshape(z.shape)
    assert torch.allclose(metric.apply(z, dz), applied, atol=1e-11)
    paired = metric.pair(z, dz)
    assert torch.allclose(paired, torch.einsum("nki,ni->nk", flat, dz.flatten(1)), atol=1e-11)
    assert torch.allclose(metric.combine(z, paired), applied, atol=1e-11)
    w = torch.randn(paired.shape, generator=torch.Generator().manual_seed(6), dtype=z.dtype)
    assert torch.allclose(metric.combine(z, w), torch.einsum("nk,nki->ni", w, flat).reshape(z.shape), atol=1e-11)
    cut = metric.count(z) // 2
    assert torch.equal(torch.cat([metric.directions(z, 0, cut), metric.directions(z, cut)], 1), s)
    assert torch.equal(metric.directions(z, cut, cut + 1), s[:, cut : cut + 1])
    assert torch.allclose(metric.combine(z, metric.preimage(z, applied)), applied, atol=1e-10)
    kernel = metric.kernel(z)
    if kernel is not None:
        ranks = torch.linalg.matrix_rank(h, rtol=1e-10)
        assert bool((ranks == z[0].numel() - len(kernel)).all())
        for direction in kernel:
            assert float(metric.apply(z, direction.expand(z.shape)).abs().max()) < 1e-12
