"""What the elements of a sample weigh."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ..errors import ShapeMismatch

Counts = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Measure:
    """How much each element of a sample counts, and how the sites of one example combine.

    Build one with `probability`, `exact`, `monte_carlo` or `weighted`. `mask` (examples, sites) is true where there is
    data, false on padding and ignored targets.
    """

    kind: str
    mask: Tensor | None = None
    given: Tensor | None = None
    sites: str = "sum"

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
        """The weights themselves, broadcast to (examples, draws, sites); not negative."""
        if not bool((weights >= 0).all()):
            raise ShapeMismatch(
                f"ShapeMismatch in Measure.weighted: weights must be finite and not negative, got {weights}."
            )
        return cls("weighted", given=weights, sites=sites)

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
            return shares / shares.sum(-1, keepdim=True) if self.sites == "mean" else (shares > 0).to(shares)
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
