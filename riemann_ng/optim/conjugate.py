"""Nonlinear conjugate gradients in a metric, and the search in the plane of the last two directions.

Only pairings of covectors with vectors are needed. With v = g⁻¹ df the rule of Polak and Ribière is

    β = (df - df')(v) / df'(v'),   d = -v + β d'

for the step before, dashed. df - df' subtracts covectors of two points, and d' is a vector of the point before: both
have to be brought here, by a transport, which is an argument. The parameters of a network are points of an affine
space, whose own transport leaves components as they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..elements import Covector, Vector
from ..errors import InvalidSetting
from ..metrics.base import given
from .carried import Carried
from .quadratic import Model
from .searching import Armijo, nelder_mead
from .steps import Displacement, Situation, StepRule
from .truncated import NOTHING_LOWER


class Transport(ABC):
    """How vectors and covectors are brought from the point before to this one, along the displacement between them.

    Law: `covector(ξ)(vector(v)) == ξ(v)`.
    """

    @abstractmethod
    def vector(self, v: Vector, along: Vector) -> Vector: ...

    @abstractmethod
    def covector(self, xi: Covector, along: Vector) -> Covector: ...


@dataclass(frozen=True)
class Flat(Transport):
    """That of the affine space of parameters: components stay."""

    def vector(self, v: Vector, along: Vector) -> Vector:
        return v

    def covector(self, xi: Covector, along: Vector) -> Covector:
        return xi


@dataclass(frozen=True)
class ConjugateDirections(StepRule):
    """Directions by the rule of Polak and Ribière, started over where β would be negative, or every `restart` steps.

    `search` says how far along: "model", the minimum of the quadratic model with the exact Fisher of the batch;
    "armijo", from there back until the loss itself has fallen enough. On a quadratic loss with the exact search and
    one metric throughout it ends after as many steps as there are dimensions.
    """

    search: Literal["model", "armijo"] = "model"
    restart: int | None = None
    transport: Transport = Flat()
    back: Armijo = Armijo(1e-4, 0.5, 40)
    needs_batch = True
    needs_metric = False

    def __post_init__(self) -> None:
        if self.search not in ("model", "armijo"):
            raise InvalidSetting(
                f"InvalidSetting in ConjugateDirections: search={self.search!r}, expected 'model' or 'armijo'."
            )
        whole = isinstance(self.restart, int) and not isinstance(self.restart, bool) and self.restart >= 1
        if self.restart is not None and not whole:
            raise InvalidSetting(
                f"InvalidSetting in ConjugateDirections: restart={self.restart!r}, expected a number of steps, or None."
            )
        if not isinstance(self.transport, Transport) or not isinstance(self.back, Armijo):
            raise InvalidSetting(
                f"InvalidSetting in ConjugateDirections: transport={given(self.transport)}, back={given(self.back)}, "
                f"expected instances, as Flat() and Armijo()."
            )
        object.__setattr__(self, "needs_loss", self.search == "armijo")

    def displacement(self, here: Situation) -> Displacement:
        beta, before, since = self._beta(here)
        d, note = here.proposal, ""
        if before is not None and beta > 0:
            d = here.proposal + before * beta
        if not float(here.df(d)) < 0:
            d, beta, since = here.proposal, 0.0, 0
        slope = float(here.df(d))
        if slope == 0:
            return Displacement(d * 0.0, 0.0, 0.0)
        if not slope < 0:
            return Displacement(d * 0.0, 0.0, 0.0, failed=NO_DESCENT_AT_ALL)
        model = Model.along([d], here.df, here.batch, 1.0, here.reference, here.damping)
        alpha, actual = float(model.minimum()[0]) * here.learning_rate, None
        if not 0 < alpha < float("inf"):
            alpha = here.learning_rate
        if self.search == "armijo":
            assert here.loss is not None
            look = here.loss.change
            found = self.back.along(lambda t: look(d * t), slope, alpha)
            if found is None:
                return Displacement(d * 0.0, 0.0, 0.0, failed=NOTHING_LOWER)
            alpha, actual = found
        actual = None if here.loss is None or here.loss.examples is not None else actual
        kept = Carried(
            {"direction": d, "displacement": d * alpha},
            {"gradient": here.df},
            {"square": -float(here.df(here.proposal)), "since": since + 1.0},
        )
        coefficients = torch.tensor([alpha], dtype=torch.float64)
        return Displacement(d * alpha, alpha, beta, model, coefficients, along=d, note=note, kept=kept, actual=actual)

    def _beta(self, here: Situation) -> tuple[float, Vector | None, float]:
        """β, the last direction brought here, and the number of steps since directions were started over."""
        kept = here.kept
        if "direction" not in kept.vectors:
            return 0.0, None, 0.0
        since, square = kept.numbers["since"], kept.numbers["square"]
        if (self.restart is not None and since >= self.restart) or not square > 0:
            return 0.0, None, 0.0
        along = kept.vectors["displacement"]
        difference = here.df - self.transport.covector(kept.covectors["gradient"], along)
        beta = -float(difference(here.proposal)) / square
        if not 0 < beta < float("inf"):
            return 0.0, None, 0.0
        return beta, self.transport.vector(kept.vectors["direction"], along), since


NO_DESCENT_AT_ALL = "a metric that gave no direction of descent"


@dataclass(frozen=True)
class PlaneSearch(StepRule):
    """Both coefficients of the natural gradient and of the last displacement at once.

    `on="model"`: the minimum of the quadratic model with the exact Fisher of the batch and the damping. This is how
    K-FAC's authors rescale a step, and on a quadratic loss it is conjugate gradients. `on="loss"`: a search on the loss
    that needs no derivative, `evaluations` of it, from that minimum on. Unlike `QuadraticModel` nothing bounds the
    coefficients: it is for batches so large that their noise does not count.
    """

    on: Literal["model", "loss"] = "model"
    evaluations: int = 30
    transport: Transport = Flat()
    needs_batch = True
    needs_metric = False

    def __post_init__(self) -> None:
        whole = isinstance(self.evaluations, int) and not isinstance(self.evaluations, bool) and self.evaluations >= 4
        if self.on not in ("model", "loss") or not whole or not isinstance(self.transport, Transport):
            raise InvalidSetting(
                f"InvalidSetting in {self!r}: expected on='model' or 'loss', evaluations of at least 4, and a "
                f"transport, as Flat()."
            )
        object.__setattr__(self, "needs_loss", self.on == "loss")

    def displacement(self, here: Situation) -> Displacement:
        before = here.kept.vectors.get("displacement")
        directions = [here.proposal]
        if before is not None:
            directions.append(self.transport.vector(before, before))
        if float(here.df(here.proposal)) == 0 and before is None:
            return Displacement(here.proposal * 0.0, 0.0, 0.0)
        model = Model.along(directions, here.df, here.batch, 1.0, here.reference, here.damping)
        best, actual = model.minimum() * here.learning_rate, None
        if self.on == "loss":
            best, lowest = self._searched(here, directions, best)
            if not lowest < 0:
                return Displacement(here.proposal * 0.0, 0.0, 0.0, failed=NOTHING_LOWER)
            actual = lowest if here.loss is not None and here.loss.examples is None else None
        v = spanned(directions, best)
        mu = float(best[1]) if len(best) > 1 else 0.0
        kept = Carried({"displacement": v})
        return Displacement(v, float(best[0]), mu, model, best, kept=kept, actual=actual)

    def _searched(self, here: Situation, directions: list[Vector], start: Tensor) -> tuple[Tensor, float]:
        """The simplex is as large as the start is far; a start that is not lower is first brought nearer."""
        assert here.loss is not None
        look = here.loss.change
        for _ in range(40):
            if look(spanned(directions, start)) < 0:
                break
            start = start / 2
        scale = float(start.abs().max())
        sizes = torch.where(start != 0, 0.5 * start.abs(), 0.1 * scale)
        return nelder_mead(lambda c: look(spanned(directions, c)), start, sizes, self.evaluations)


def spanned(directions: list[Vector], c: Tensor) -> Vector:
    v = directions[0] * float(c[0])
    for d, x in zip(directions[1:], c[1:], strict=True):
        v = v + d * float(x)
    return v
