"""What the elements of a sample weigh."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..elements import describe
from ..errors import DtypeMismatch, InvalidSetting, ShapeMismatch
from ..spaces import VectorSpace

Counts = tuple[int, int, int]
KINDS, SITES = ("probability", "exact", "monte carlo", "weighted"), ("sum", "mean")


def check_choice(call: str, given: object, choices: tuple[str, ...]) -> None:
    if given not in choices:
        raise InvalidSetting(f"InvalidSetting in {call}: got {given!r}, expected {' or '.join(map(repr, choices))}.")


def times(x: Tensor, weights: Tensor | float) -> Tensor:
    """Elements (..., dim) times their weights (...). What weighs nothing is absent: NaN in padding stays there."""
    if isinstance(weights, float):
        return x * weights
    w = weights.to(x)[..., None]
    return torch.where(w != 0, x * w, 0.0)


@dataclass(frozen=True, eq=False)
class Measure:
    """How much each element of a sample counts, and how the sites of one example combine.

    Build one with `probability`, `exact`, `monte_carlo` or `weighted`. `mask` (examples, sites) is true where there is
    data, false on padding and ignored targets; so is one of (examples, 1, sites).
    """

    kind: str
    mask: Tensor | None = None
    given: Tensor | None = None
    sites: str = "sum"

    def __post_init__(self) -> None:
        check_choice("Measure", self.kind, KINDS)
        check_choice("Measure(sites=...)", self.sites, SITES)
        if (self.kind == "weighted") != (self.given is not None) or (self.given is not None and self.mask is not None):
            raise InvalidSetting(
                f"InvalidSetting in Measure({self.kind!r}): weights of its own belong to a weighted measure, which "
                f"has no mask beside them. Use Measure.weighted(weights), with weights of zero on padding."
            )
        if self.mask is not None and self.mask.dtype != torch.bool:
            raise DtypeMismatch(
                f"DtypeMismatch in Measure: a mask is of booleans, true where there is data, got "
                f"{describe(self.mask)}. Give mask.bool(); weights go into Measure.weighted(weights)."
            )

    @classmethod
    def probability(cls, mask: Tensor | None = None) -> Measure:
        """Inputs: all weights together are one, and one example's sites combine to their mean."""
        return cls("probability", mask, sites="mean")

    @classmethod
    def exact(cls, mask: Tensor | None = None) -> Measure:
        """Cotangents along exact output directions: 1/n each, summed over draws and sites."""
        return cls("exact", mask)

    @classmethod
    def monte_carlo(cls, mask: Tensor | None = None) -> Measure:
        """Cotangents drawn at random: 1/(n K) for each of K draws, summed over sites."""
        return cls("monte carlo", mask)

    @classmethod
    def weighted(cls, weights: Tensor, sites: str = "sum") -> Measure:
        """The weights themselves: one for each example, (examples,), or (examples, draws, sites) with size one where
        they do not differ; not negative."""
        if not bool(((weights >= 0) & weights.isfinite()).all()):
            raise ShapeMismatch(
                f"ShapeMismatch in Measure.weighted: weights must be finite and not negative, got {weights}."
            )
        return cls("weighted", given=weights, sites=sites)

    def on(self, space: VectorSpace, counts: Counts) -> Measure:
        """The measure of a sample of these counts, or the reason why it is none."""
        n, _, t = counts
        if self.mask is not None:
            if tuple(self.mask.shape) not in ((n, t), (n, 1, t)):
                raise ShapeMismatch(
                    f"ShapeMismatch in Sample: a mask of {space} is (examples, sites) = ({n}, {t}), "
                    f"got {list(self.mask.shape)}."
                )
            if self.kind == "probability" and not bool(self.mask.any()):
                raise ShapeMismatch(
                    f"ShapeMismatch in Sample: the mask leaves no elements of {space}, and a probability of nothing is "
                    f"none. Leave out batches that are padding alone."
                )
        if self.given is None:
            return self
        given = self.given.reshape(-1, 1, 1) if self.given.ndim < 2 else self.given
        if given.ndim != 3 or any(size not in (1, count) for size, count in zip(given.shape, counts, strict=True)):
            raise ShapeMismatch(
                f"ShapeMismatch in Sample: weights of {space} are ({n},), one for each example, or (examples, draws, "
                f"sites) = {counts} with size one where they do not differ, got {list(self.given.shape)}."
            )
        return replace(self, given=given)

    def weights(self, counts: Counts) -> Tensor | float:
        """One weight for all elements, or a tensor that broadcasts to (examples, draws, sites)."""
        n, k, t = counts
        if self.given is not None:
            return self.given.broadcast_to(counts)
        if self.mask is None:
            return {"probability": 1 / (n * k * t), "exact": 1 / n, "monte carlo": 1 / (n * k)}[self.kind]
        present = self.mask.reshape(n, 1, t).double()  # a bool divided would be a float32
        if self.kind == "probability":
            return present / (present.sum() * k)
        return present / (n if self.kind == "exact" else n * k)

    def share_of_sites(self, counts: Counts) -> Tensor | float:
        """What each site contributes to its example's mean or sum, broadcast to (examples, draws, sites)."""
        n, _, t = counts
        if self.given is not None:
            shares = self.given.broadcast_to(counts)
            if self.sites == "sum":
                return (shares > 0).to(shares)
            total = shares.sum(-1, keepdim=True)
            return shares / torch.where(total > 0, total, 1)
        if self.mask is None:
            return 1 / t if self.sites == "mean" else 1.0
        present = self.mask.reshape(n, 1, t).double()
        return present / present.sum(-1, keepdim=True).clamp(min=1) if self.sites == "mean" else present

    def reduced(self, counts: Counts) -> Measure:
        """The measure of one element per example and draw."""
        if self.given is not None:
            shares = self.given.broadcast_to(counts)
            over = shares.sum(-1, keepdim=True) if self.sites == "mean" else shares.amax(-1, keepdim=True)
            return replace(self, given=over)
        return replace(self, mask=None if self.mask is None else self.mask.any(-1, keepdim=True))
