"""The interfaces of output metrics and likelihoods, and their laws.

A network's raw output z has examples first. An `OutputMetric` is an inner product H(z) on the outputs of one
example, at every z; a `Likelihood` is the one that comes from a distribution of targets. Everything is per example
and unreduced: the mean over examples belongs to whoever averages.

Laws of an output metric, at every z:

    apply(z, dz) == Σ_k S_k <S_k, dz> with S = directions(z);  combine(z, pair(z, dz)) == apply(z, dz)
    matrix(z) is symmetric and positive, perhaps degenerate;  kernel(z) spans its kernel where that is known

Laws of a likelihood:

    H(z) is the Hessian in z', at z' = z, of the expected loss E[nll(z', y)] over labels y drawn at z
    sampled_cotangents have mean 0 and covariance H;  score(z, y) is the derivative of nll(z, y)
    where nll is minus a log density (`proper`): sampled_cotangents are the scores of sampled labels, and H is also the
    Hessian of kl(z, z') in z', at z' = z: the Fisher information

The sites of one example (tokens, pixels, entries) are summed, or averaged with `sites="mean"`. H, `kl` and the
covariance of `sampled_cotangents` take the same factor 1/sites as the loss, so a step does not change (a draw is then
1/√sites times a score). The mean divides by all sites of z, ignored or not: H never sees a label.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..elements import describe
from ..errors import InvalidTargets, NotClosed, RiemannError, ShapeMismatch
from .roots import DiagonalRoot, Root
from .sampling import draw_from


class OutputMetric(ABC):
    """An inner product on the output space at every output. A kind defines `root`; the rest follows."""

    diagonal: ClassVar[bool] = False
    """Whether H is diagonal in the entries of z: then column k is `diagonal_roots(z)` at the flat entry k alone."""

    @abstractmethod
    def root(self, z: Tensor) -> Root:
        """S with S Sᵀ = H, in its structure. Keep it where H is applied more than once at one z."""

    @abstractmethod
    def kernel(self, z: Tensor) -> Tensor | None:
        """Directions (k, *z.shape[1:]) that span the kernel of H at every z; None where only a decomposition can
        tell.
        """

    def count(self, z: Tensor) -> int:
        """How many directions there are."""
        return self.root(z).count

    def apply(self, z: Tensor, dz: Tensor) -> Tensor:
        """H(z) dz, shaped like z."""
        self._check_tangent("apply", z, dz)
        return self.root(z).apply(dz)

    def pair(self, z: Tensor, dz: Tensor) -> Tensor:
        """Sᵀ dz, (examples, count)."""
        self._check_tangent("pair", z, dz)
        return self.root(z).pair(dz)

    def combine(self, z: Tensor, w: Tensor) -> Tensor:
        """S w for w (examples, count), shaped like z: a random cotangent where w are independent signs."""
        root = self.root(z)
        if w.shape != (z.shape[0], root.count):
            raise ShapeMismatch(
                f"ShapeMismatch in {self}.combine: expected one number per example and direction, "
                f"[{z.shape[0]}, {root.count}], got {describe(w)}."
            )
        return root.combine(w)

    def preimage(self, z: Tensor, xi: Tensor) -> Tensor:
        """The least w (examples, count) with S w = ξ, for a covector ξ that vanishes on the kernel of H, as scores
        do.
        """
        self._check_tangent("preimage", z, xi)
        return self.root(z).preimage(xi)

    def directions(self, z: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Square-root directions `start` up to `stop`, (examples, directions, *z.shape[1:])."""
        return self.root(z).columns(start, stop)

    def diagonal_roots(self, z: Tensor) -> Tensor:
        """√diag(H), shaped like z; only of a diagonal metric."""
        root = self.root(z)
        if not isinstance(root, DiagonalRoot):
            raise NotClosed(
                f"NotClosed in {self}.diagonal_roots: H is not diagonal in the output's entries. Use directions(z)."
            )
        return root.d

    def matrix(self, z: Tensor) -> Tensor:
        """H, dense: (examples, D, D) on flat outputs. For tests and small outputs."""
        s = self.directions(z).flatten(2)
        return s.mT @ s

    def _check_tangent(self, call: str, z: Tensor, dz: Tensor) -> None:
        if dz.shape != z.shape:
            raise ShapeMismatch(
                f"ShapeMismatch in {self}.{call}: what belongs to outputs {describe(z)} has their shape, "
                f"got {describe(dz)}."
            )

    def __repr__(self) -> str:
        return expression(self)


class Likelihood(OutputMetric):
    """A distribution of targets for every output, and its Fisher inner product."""

    proper: bool = True
    """Whether nll is minus a log density or log probability, up to terms without z."""

    @abstractmethod
    def nll(self, z: Tensor, y: Tensor) -> Tensor:
        """The loss of each example, (examples,)."""

    @abstractmethod
    def score(self, z: Tensor, y: Tensor) -> Tensor:
        """The derivative of nll in z, per example, shaped like z: a covector on the outputs."""

    @abstractmethod
    def distribution(self, z: Tensor) -> Distribution:
        """The distribution of the targets of a batch; its samples are shaped like targets."""

    @abstractmethod
    def sampled_cotangents(self, z: Tensor, generator: torch.Generator, draws: int = 1) -> Tensor:
        """Independent covectors (examples, draws, *z.shape[1:]) of mean 0 and covariance H."""

    @abstractmethod
    def kl(self, z: Tensor, other: Tensor) -> Tensor:
        """KL(distribution at z ‖ distribution at other) of each example, (examples,)."""

    @abstractmethod
    def validate(self, z: Tensor, y: Tensor) -> None:
        """Raises `ShapeMismatch` for outputs and `InvalidTargets` for targets that this likelihood cannot take.

        `loss` looks at the values of targets through this; `nll` and `score` only at shapes and types, so that they
        work under `torch.func.vmap` and wait for no device.
        """

    def loss(self, z: Tensor, y: Tensor) -> Tensor:
        """The mean of nll over examples, of validated targets."""
        self.validate(z, y)
        return self.nll(z, y).mean()

    def sample(self, z: Tensor, generator: torch.Generator, draws: int = 1) -> Tensor:
        """Targets drawn at z, (draws, *targets' shape), from `generator` and nothing else."""
        return draw_from(self.distribution(z), draws, generator, z.device)

    def mask(self, y: Tensor) -> Tensor | None:
        """(examples, sites), true where there is a target; None where every target counts."""
        return None

    def refused(self, reason: str) -> InvalidTargets:
        return InvalidTargets(f"InvalidTargets in {self}: {reason}")


def expression(value: object) -> str:
    """The call that makes a dataclass, without what is left at its default."""
    assert dataclasses.is_dataclass(value)
    said = []
    for field in dataclasses.fields(value):
        given = getattr(value, field.name)
        if isinstance(given, Tensor):
            said.append(f"{field.name}={given.tolist() if given.numel() <= 8 else describe(given)}")
        elif callable(given):
            said.append(f"{field.name}={getattr(given, '__name__', repr(given))}")
        elif field.default is dataclasses.MISSING or given != field.default:
            said.append(f"{field.name}={given!r}")
    return f"{type(value).__name__}({', '.join(said)})"


def check_option(owner: str, name: str, given: object, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise RiemannError(f"{owner}: {name} is one of {', '.join(map(repr, allowed))}, got {given!r}.")
