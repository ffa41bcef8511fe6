"""The covariance of gradients, often called the empirical Fisher.

The gradients are those of the data's own labels. At a perfect fit they vanish, and their second moment with them, while
the Fisher does not: it is another metric, with another name. It measures how gradients scatter from example to example.
Centred, it is what TONGA (Le Roux, Manzagol & Bengio 2008) descends by: steps on which examples disagree are short.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from ..errors import InvalidSetting, ObservationMismatch
from ..inner_products import BlockDiagonal, Diagonal, Gram, InnerProduct, LowRank, second_moment
from ..inner_products.symmetries import of_euclidean, with_lines
from ..networks import Empirical, Estimator
from ..networks.observation import LayerObservation, Observation
from . import structures
from .base import RiemannianMetric, named
from .centred import CentredGradients
from .fisher import LAYERWISE
from .gradient_moment import GradientMoment
from .layer_moment import LayerMoment

Kept = Literal["full", "dense", "dual", "block-diagonal", "unit-wise", "quasi-diagonal", "diagonal"]
WHOLE = ("full", "dense", "dual")
CENTRED = (*WHOLE, "block-diagonal", "diagonal")


@dataclass(frozen=True, repr=False)
class GradientCovariance(RiemannianMetric):
    """E[∇ ∇ᵀ] over the gradients of single examples, or with `centred` E[(∇ - E∇)(∇ - E∇)ᵀ], which is their covariance.

    `structure` is as in `Fisher`. `rank` keeps the largest principal axes alone, of all parameters together ("full") or
    of each layer ("block-diagonal"), found from the inner products of gradients; largest in the coordinates, which it
    names. It is degenerate wherever there are fewer examples than parameters: damp it. Only data's own labels will do,
    those that `Fisher` refuses.
    """

    centred: bool = False
    structure: Kept = "full"
    rank: int | None = None

    def __post_init__(self) -> None:
        allowed = CENTRED if self.centred else get_args(Kept)
        if self.structure not in allowed:
            raise InvalidSetting(
                f"InvalidSetting in GradientCovariance: structure={self.structure!r}"
                f"{' of the centred one' if self.centred else ''}, expected one of {', '.join(map(repr, allowed))}."
            )
        if self.rank is None:
            return
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise InvalidSetting(
                f"InvalidSetting in GradientCovariance: rank={self.rank!r}, expected a number of axes, 1 or more."
            )
        if self.structure not in ("full", "block-diagonal"):
            raise InvalidSetting(
                f"InvalidSetting in GradientCovariance: rank={self.rank} with structure={self.structure!r}. Axes are "
                f"found of 'full' and of 'block-diagonal'; leave the rank out of others."
            )

    def at(self, observation: Observation) -> InnerProduct:
        if not isinstance(observation.estimator, Empirical):
            raise ObservationMismatch(
                f"ObservationMismatch in {self!r}: the batch was observed with {observation.estimator}, whose "
                f"gradients are not those of the data's labels. Observe with Empirical(targets); of labels from the "
                f"model the second moment is Fisher()."
            )
        with named(self):
            return self._whole(observation) if self.structure in WHOLE else self._layerwise(observation)

    def estimator(self, targets: Any = None) -> Estimator:
        return Empirical(targets)

    def _whole(self, observation: Observation) -> InnerProduct:
        solved = "full" if self.structure == "dense" else self.structure
        form: InnerProduct = GradientMoment(observation, f"{self}", solved)
        if self.centred:
            form = CentredGradients(form, f"{self}")
        if self.rank is not None:
            return truncated(form, self.rank, f"{self}")
        if self.structure == "dense":
            return Gram.of(form.space, form.dense_matrix(), f"{self}", form.symmetry)
        return form

    def _layerwise(self, observation: Observation) -> InnerProduct:
        parts: dict[str, InnerProduct] = {}
        for path, layer in observation.layers.items():
            with named(self, path):
                part = self._centred(layer) if self.centred else LAYERWISE[self.structure](layer)
                parts[path] = part if self.rank is None else truncated(part, self.rank, f"{self} of {path}")
        return BlockDiagonal(parts)

    def _centred(self, layer: LayerObservation) -> InnerProduct:
        gradients = layer.gradients
        if self.structure == "diagonal":
            mean = gradients.mean().components
            whole = structures.diagonal(layer)
            n, k, t = gradients.counts
            mass = torch.as_tensor(gradients.measure.weights(gradients.counts)).expand(n, k, t).sum().to(mean)
            entries = whole.entries - mass * mean.square()
            told = entries > 64 * torch.finfo(entries.dtype).eps * whole.entries
            name = f"centred diagonal of {layer.path}"
            return Diagonal.of(
                layer.space, torch.where(told, entries, 0.0), name, with_lines(whole.symmetry, layer.space, name)
            )
        return CentredGradients(LayerMoment(layer), f"centred {second_moment(gradients).expression()}")


def truncated(form: InnerProduct, rank: int, name: str) -> InnerProduct:
    """The largest principal axes of a form that was made of rows, in the coordinates."""
    rows = form.rows()
    if rows is None:
        raise InvalidSetting(
            f"InvalidSetting in GradientCovariance: rank={rank}, and the gradients of {form.space} are too many to be "
            f"written down. Take fewer examples, or structure='block-diagonal'."
        )
    if rank < min(rows.shape):
        kept = torch.linalg.eigh((rows @ rows.mT).double())[1][:, -rank:].to(rows)
        rows = kept.mT @ rows
    chosen = of_euclidean(form.space, f"the largest axes of {name}")
    symmetry = form.symmetry * (chosen * chosen**-1)
    return LowRank.restore(form.space, {"rows": rows, "name": name, "symmetry": symmetry.to_state()})
