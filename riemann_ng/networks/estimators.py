"""How the cotangents of an observation are made. An estimator is a value, and metrics show it in their repr."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors import RiemannError


@dataclass(frozen=True)
class Estimator:
    """The label source of an observation. Abstract; use one of the kinds below."""


@dataclass(frozen=True)
class Exact(Estimator):
    """All square-root directions of the output inner product: no sampling, and a cost that grows with the outputs.

    `chunk` bounds how many directions are kept at a time. More than that are not stacked: the observation keeps the
    graph, propagates directions when samples are read, and where a chain of layers is narrow replaces them by fewer
    (see `recompression.py`). Read such an observation before the parameters move.
    """

    chunk: int = 32


@dataclass(frozen=True)
class MonteCarlo(Estimator):
    """Scores of labels drawn from the model, `samples` an example, from a generator of its own.

    The generator is seeded by `seed` and the number of the observation, so two observations differ and a run repeats.
    """

    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise RiemannError(f"RiemannError in MonteCarlo: samples must be positive, got {self.samples}.")


@dataclass(frozen=True)
class CurvatureProp(Estimator):
    """Random signs on the square-root directions, one independent sign per direction and example: one backward pass.

    Unbiased for any output inner product, and no scores: never use them for likelihood gradients.
    """

    seed: int = 0


@dataclass(frozen=True)
class Empirical(Estimator):
    """The scores of the data's own labels: a covariance of gradients, not a Fisher.

    Without targets, in a training loop, the loss's own backward is meant.
    """

    targets: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class InputsOnly(Estimator):
    """No cotangents at all: for metrics that look at inputs alone."""


@dataclass(frozen=True)
class Linearized(Estimator):
    """No cotangents, but the linearized network: its differential J, and the output metric pulled back along it.

    For metrics that are used by their products alone. The observation keeps the graph of its forward pass; read it
    before the parameters move.
    """
