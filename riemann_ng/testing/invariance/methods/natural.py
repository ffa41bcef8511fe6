"""Methods that observe the network: a metric, what is done to its step, and memories that known codes have.

Each is a `Natural`: it is made for one network and moves it. What is done to a step is a function of `Seen`, so that a
method is a list of the things that it does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ....elements import Covector, Vector
from ....inner_products import InnerProduct
from ....metrics import KFAC, FixedMetric, MetricAverage, NamedFrame, RiemannianMetric
from ....metrics.base import value_at
from ....networks import Network
from ....networks.observation import Observation
from ....norms import Spectral
from ....spaces import Hull


class Natural(ABC):
    """A method on one network. `loss_scale` multiplies the loss, and so its differential."""

    loss_scale = 1.0

    def __init__(self, network: Network):
        self.network = network

    def differential(self, x: Any, y: Any) -> Covector:
        return self.loss_scale * self.network.differential(x, y)

    @abstractmethod
    def displacement(self, x: Any, y: Any) -> Vector:
        """By what the parameters move next, with the memory brought up to date."""

    def step(self, x: Any, y: Any) -> None:
        """Moves the parameters."""
        self.network.move_(self.displacement(x, y))


@dataclass
class Seen:
    """What a step was made of: v = -lr g.sharp(df), before anything else is done to it."""

    network: Network
    observation: Observation
    start: Vector
    metric: InnerProduct
    df: Covector
    v: Vector
    lr: float


Change = Callable[[Seen], Vector]
"""Another displacement in place of `seen.v`."""


class Descent(Natural):
    """Steps -lr g.sharp(df), changed by one thing after the other.

    `metric` may be a function of the network and the batch: for references that are data. `norm` is made of the value
    of the metric, where the step is a duality map that is no inner product's. `l2` is added to the loss.
    """

    def __init__(
        self,
        network: Network,
        metric: RiemannianMetric | Callable[[Network, Any], RiemannianMetric],
        lr: float,
        *changes: Change,
        spectral: bool = False,
        l2: float = 0.0,
    ):
        super().__init__(network)
        self.metric, self.lr, self.changes, self.spectral, self.l2 = metric, lr, changes, spectral, l2
        self.start = point(network)

    def displacement(self, x: Any, y: Any) -> Vector:
        metric = self.metric if isinstance(self.metric, RiemannianMetric) else self.metric(self.network, x)
        df = self.differential(x, y)
        if self.l2:
            df = df + Covector(df.space, self.l2 * point(self.network).data)
        with self.network.observe(x, metric.estimator(y), output=metric.output) as observation:
            g = value_at(metric, observation)
            v = -self.lr * (Spectral(between=g).sharp(df) if self.spectral else g.sharp(df))
            seen = Seen(self.network, observation, self.start, g, df, v, self.lr)
            for change in self.changes:
                seen.v = change(seen)
        return seen.v


def point(network: Network) -> Vector:
    """The parameters as a displacement from zero: what names the origins."""
    return network.vector({name: p.detach().clone() for name, p in network.parameters.items()})


# References that are data


def damped_by_the_start(damping: float) -> Callable[[Network, Any], RiemannianMetric]:
    """K-FAC damped by its own value at the first batch: a function for one network."""
    first: list[FixedMetric] = []

    def metric(network: Network, x: Any) -> RiemannianMetric:
        if not first:
            first.append(FixedMetric(KFAC().at(network.observe(x)), "KFAC at the start"))
        return KFAC() + damping * first[0]

    return metric


def half_of_the_batch(network: Network, x: Tensor) -> FixedMetric:
    """K-FAC's value at every second example."""
    return FixedMetric(KFAC().at(network.observe(x[::2])), "KFAC of half of the batch")


def frame_of_half(network: Network, x: Tensor) -> NamedFrame:
    """A frame that is orthonormal for it."""
    return NamedFrame.of(KFAC(), network.observe(x[::2]), "K-FAC of half of the batch")


# What is done to steps


def euclidean_clip(bound: float) -> Change:
    """Steps whose entries, all layers together, are longer than `bound` are brought to it."""

    def clipped(seen: Seen) -> Vector:
        return seen.v * min(1.0, bound / float(seen.v.data.norm()))

    return clipped


def decay(rate: float, of: str = "all", to_start: bool = False) -> Change:
    """Parameters pulled to zero, or to where they started; `of` all of them or the weights alone."""

    def decayed(seen: Seen) -> Vector:
        away = point(seen.network) - seen.start if to_start else point(seen.network)
        blocks = {path: -seen.lr * rate * D for path, D in away.blocks.items()}
        if of == "weights":
            blocks = {path: D - bias_of(D, seen, path) for path, D in blocks.items()}
        return seen.v + Vector(seen.v.space, blocks)

    return decayed


def bias_of(D: Tensor, seen: Seen, path: str, at: Tensor | None = None) -> Tensor:
    """The constant map in an affine one: its value at the origin, or at a point of the hull."""
    constant = torch.zeros_like(D)
    if isinstance(seen.observation[path].A, Hull):
        constant[:, -1] = D[:, -1] if at is None else D @ at
    return constant


def bias_rate(factor: float, at_the_mean: bool = False) -> Change:
    """Biases with another learning rate. `at_the_mean` takes for the bias of a step its value at the mean input."""

    def changed(seen: Seen) -> Vector:
        blocks = {}
        for path, D in seen.v.blocks.items():
            mean = seen.observation[path].inputs.mean().data if at_the_mean else None
            blocks[path] = D + (factor - 1) * bias_of(D, seen, path, mean)
        return Vector(seen.v.space, blocks)

    return changed


# Memories


@dataclass
class Factors:
    """The two factors of a layer, on S and on Â*, as matrices."""

    G: Tensor
    A: Tensor

    @classmethod
    def of(cls, observation: Observation, path: str) -> Factors:
        layer = observation[path]
        return cls(layer.cotangents.moment(), layer.inputs.moment())


class IdentityStarted(Natural):
    """K-FAC whose running averages of factors start at the identity matrix."""

    def __init__(self, network: Network, lr: float, keep: float = 0.8):
        super().__init__(network)
        self.lr, self.keep = lr, keep
        self.factors: dict[str, Factors] = {}

    def displacement(self, x: Any, y: Any) -> Vector:
        df, blocks = self.differential(x, y), {}
        observation = self.network.observe(x)
        for path, xi in df.blocks.items():
            new = Factors.of(observation, path)
            old = self.factors.get(path, Factors(torch.eye(len(new.G)).to(new.G), torch.eye(len(new.A)).to(new.A)))
            kept = Factors(*(self.keep * a + (1 - self.keep) * b for a, b in ((old.G, new.G), (old.A, new.A))))
            self.factors[path] = kept
            blocks[path] = -self.lr * torch.linalg.solve(kept.G, torch.linalg.solve(kept.A, xi, left=False))
        return Vector(df.space, blocks)


@dataclass
class Roots:
    """Frames C of S and K of Â*, CCᵀ and KKᵀ in place of the inverses of the factors."""

    C: Tensor
    K: Tensor


class InverseFree(Natural):
    """IKFAC and dense SINGD (Lin et al. 2023): frames follow the factors by multiplications, without any inverse.

    K ← K (1 - β/2 (KᵀAK - 1)), and likewise C. They start at the identity matrix, or at frames of the first factors.
    """

    def __init__(self, network: Network, lr: float, rate: float = 0.1, from_factors: bool = False):
        super().__init__(network)
        self.lr, self.rate, self.from_factors = lr, rate, from_factors
        self.roots: dict[str, Roots] = {}

    def displacement(self, x: Any, y: Any) -> Vector:
        df, blocks = self.differential(x, y), {}
        observation = self.network.observe(x)
        for path, xi in df.blocks.items():
            new = Factors.of(observation, path)
            old = self.roots.get(path, self._first(new))
            roots = self.roots[path] = Roots(self._followed(old.C, new.G), self._followed(old.K, new.A))
            blocks[path] = -self.lr * roots.C @ roots.C.mT @ xi @ roots.K @ roots.K.mT
        return Vector(df.space, blocks)

    def _first(self, factors: Factors) -> Roots:
        if self.from_factors:
            C, K = (torch.linalg.inv(torch.linalg.cholesky(F)).mT for F in (factors.G, factors.A))
            return Roots(C, K)
        return Roots(torch.eye(len(factors.G)).to(factors.G), torch.eye(len(factors.A)).to(factors.A))

    def _followed(self, root: Tensor, factor: Tensor) -> Tensor:
        change = root.mT @ factor @ root - torch.eye(len(root)).to(root)
        return root @ (torch.eye(len(root)).to(root) - 0.5 * self.rate * change)


@dataclass
class GradientMomentum:
    """A change with a memory of covectors: the differentials averaged, and the metric of now applied to the average."""

    keep: float = 0.8
    kept: Covector | None = field(default=None, init=False)

    def __call__(self, seen: Seen) -> Vector:
        self.kept = seen.df if self.kept is None else self.keep * self.kept + (1 - self.keep) * seen.df
        return -seen.lr * seen.metric.sharp(self.kept)


class OverTime(Natural):
    """The running average of a metric over the steps, frames and all that it remembers, and minus lr its sharp."""

    def __init__(self, network: Network, metric: RiemannianMetric, lr: float, decay: float = 0.8):
        super().__init__(network)
        self.metric, self.lr, self.average = metric, lr, MetricAverage(metric, decay)

    def displacement(self, x: Any, y: Any) -> Vector:
        with self.network.observe(x, self.metric.estimator(y), output=self.metric.output) as observation:
            return -self.lr * self.average.update(observation).sharp(self.differential(x, y))
