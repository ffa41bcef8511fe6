"""Likelihoods and output metrics on outputs that are seen in another frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..likelihoods import Likelihood, OutputMetric
from ..likelihoods.roots import Root
from .frame import Frame
from .leaves import Place


class MovedRoot(Root):
    """Φ^-T S: the root of the same form where vectors are moved by Φ."""

    def __init__(self, root: Root, back: Frame, place: Place):
        self.root, self.back, self.place = root, back, place
        self.shape, self.count = root.shape, root.count

    def _covectors(self, xi: Tensor, lead: int = 1) -> Tensor:
        """Covectors at the outputs as they were, taken along."""
        flat = xi.flatten(0, lead - 1)
        return self.place.pulled(self.back, flat).reshape(xi.shape)

    def pair(self, dz: Tensor) -> Tensor:
        return self.root.pair(self.place.on_vectors(self.back, dz))

    def combine(self, w: Tensor) -> Tensor:
        return self._covectors(self.root.combine(w))

    def preimage(self, xi: Tensor) -> Tensor:
        return self.root.preimage(self.place.pulled(self.back.inverse(), xi))

    def columns(self, start: int = 0, stop: int | None = None) -> Tensor:
        return self._covectors(self.root.columns(start, stop), 2)

    def scaled(self, c: float) -> Root:
        return MovedRoot(self.root.scaled(c), self.back, self.place)


@dataclass(frozen=True, eq=False, repr=False)
class MovedOutput(OutputMetric):
    """An output metric seen at z' = Φz + τ: H' = Φ^-T H(z) Φ⁻¹. `back` leads from z' to z."""

    of: OutputMetric
    back: Frame
    place: Place
    diagonal: ClassVar[bool] = False

    def z(self, moved: Tensor) -> Tensor:
        """The outputs as they were."""
        return self.place.apply(self.back, moved)

    def root(self, z: Tensor) -> Root:
        return MovedRoot(self.of.root(self.z(z)), self.back, self.place)

    def kernel(self, z: Tensor) -> Tensor | None:
        found = self.of.kernel(self.z(z))
        return None if found is None else self.place.on_vectors(self.back.inverse(), found)


@dataclass(frozen=True, eq=False, repr=False)
class MovedLikelihood(MovedOutput, Likelihood):
    """A likelihood of z, as one of z' = Φz + τ: the same distributions of targets."""

    of: Likelihood

    @property
    def proper(self) -> bool:  # type: ignore[override]
        return self.of.proper

    def nll(self, z: Tensor, y: Tensor) -> Tensor:
        return self.of.nll(self.z(z), y)

    def score(self, z: Tensor, y: Tensor) -> Tensor:
        return self.place.pulled(self.back, self.of.score(self.z(z), y))

    def distribution(self, z: Tensor) -> Distribution:
        return self.of.distribution(self.z(z))

    def sampled_cotangents(self, z: Tensor, generator: torch.Generator, draws: int = 1) -> Tensor:
        found = self.of.sampled_cotangents(self.z(z), generator, draws)
        return self.place.pulled(self.back, found.flatten(0, 1)).reshape(found.shape)

    def kl(self, z: Tensor, other: Tensor) -> Tensor:
        return self.of.kl(self.z(z), self.z(other))

    def validate(self, z: Tensor, y: Tensor) -> None:
        self.of.validate(self.z(z), y)

    def sample(self, z: Tensor, generator: torch.Generator, draws: int = 1) -> Tensor:
        return self.of.sample(self.z(z), generator, draws)

    def mask(self, y: Tensor) -> Tensor | None:
        return self.of.mask(y)


def moved_output(metric: OutputMetric, frame: Frame | None, place: Place | None) -> OutputMetric:
    """A metric on the outputs, or a likelihood, taken along into a frame; as it is where there is none."""
    if frame is None or place is None:
        return metric
    made = MovedLikelihood if isinstance(metric, Likelihood) else MovedOutput
    return made(metric, frame.inverse(), place)  # type: ignore[arg-type]
