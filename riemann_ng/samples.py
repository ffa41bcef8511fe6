"""Samples: many elements of one space, with a measure that says how much each counts.

A sample has examples, draws (output directions or Monte Carlo draws of one example) and sites (pixels, tokens, time
steps): its data has shape (examples, draws, sites, *space.shape). Inputs are a probability sample. Cotangents weigh 1/n
per exact direction, 1/(n K) per Monte Carlo draw, and add up over sites. Padding weighs zero. So the second moment of the
inputs has (1, 1) entry one in a hull, and a product of two second moments needs no scale factor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .elements import Covector, Element, Vector, check_components, describe, element
from .errors import ShapeMismatch, SpaceMismatch
from .linear_maps import LinearMap
from .spaces import VectorSpace

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
            raise ShapeMismatch(f"ShapeMismatch in Measure.weighted: weights must be finite and not negative, got {weights}.")
        return cls("weighted", given=weights, sites=sites)

    def weights(self, counts: Counts) -> Tensor | float:
        """One weight for all elements, or a tensor that broadcasts to (examples, draws, sites)."""
        n, k, t = counts
        if self.given is not None:
            return self.given.broadcast_to(counts)
        if self.mask is None:
            return {"probability": 1 / (n * k * t), "exact": 1 / n, "monte carlo": 1 / (n * k)}[self.kind]
        present = self.mask.reshape(n, 1, t)
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
        present = self.mask.reshape(n, 1, t)
        return present / present.sum(-1, keepdim=True).clamp(min=1) if self.sites == "mean" else present

    def reduced(self, counts: Counts) -> Measure:
        """The measure of one element per example and draw."""
        if self.given is not None:
            shares = self.given.broadcast_to(counts)
            over = shares.sum(-1, keepdim=True) if self.sites == "mean" else shares.amax(-1, keepdim=True)
            return replace(self, given=over)
        return replace(self, mask=None if self.mask is None else self.mask.any(-1, keepdim=True))


@dataclass(frozen=True, eq=False)
class OneHot:
    """Indices (examples, draws, sites) that stand for the basis elements of a space of that many classes."""

    indices: Tensor
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True, eq=False)
class Chunked:
    """Data too large to stack: `chunks()` yields tensors that follow each other along `axis`, 0 examples or 1 draws.

    `counts` is (examples, draws, sites) of the whole.
    """

    chunks: Callable[[], Iterator[Tensor]]
    counts: Counts
    axis: int = 0


Data = Tensor | OneHot | Chunked


class Sample:
    """Elements of `space`, weighted by `measure` (default: a probability).

    `data` is a tensor (examples, draws, sites, *space.shape) or (examples, *space.shape), a `OneHot` or a `Chunked`.
    One rule ties it to inner products: a sample of U has its second moment as an inner product on U.dual.
    """

    __slots__ = ("counts", "data", "measure", "name", "space")

    def __init__(self, space: VectorSpace, data: Data, measure: Measure | None = None, name: str = "sample"):
        self.space, self.name = space, name
        self.measure = Measure.probability() if measure is None else measure
        self.data = data
        if isinstance(data, OneHot):
            indices = data.indices
            if indices.is_floating_point() or indices.ndim not in (1, 3) or not bool(
                ((indices >= 0) & (indices < space.dim)).all()
            ):
                raise ShapeMismatch(
                    f"ShapeMismatch in Sample: one-hot data of {space} are integers below {space.dim}, shaped (examples,) "
                    f"or (examples, draws, sites); got {describe(indices)}."
                )
            self.data = replace(data, indices=indices.reshape(-1, 1, 1) if indices.ndim == 1 else indices)
            self.counts: Counts = tuple(self.data.indices.shape)  # type: ignore[assignment]
        elif isinstance(data, Chunked):
            self.counts = data.counts
        else:
            tensor = check_components("Sample", space, space.shape, data)
            lead = tuple(tensor.shape[: tensor.ndim - len(space.shape)])
            if len(lead) not in (1, 3):
                raise ShapeMismatch(
                    f"ShapeMismatch in Sample: data of {space} are (examples, draws, sites, *{list(space.shape)}) or "
                    f"(examples, *{list(space.shape)}), got {describe(data)}. Insert the missing dimensions of size one."
                )
            self.counts = (lead[0], 1, 1) if len(lead) == 1 else lead  # type: ignore[assignment]
            self.data = tensor.reshape(*self.counts, space.dim)
        if 0 in self.counts:
            raise ShapeMismatch(f"ShapeMismatch in Sample: no elements of {space}: counts {self.counts}.")
        if self.measure.mask is not None and self.measure.mask.numel() != self.counts[0] * self.counts[2]:
            raise ShapeMismatch(
                f"ShapeMismatch in Sample: a mask of {space} is (examples, sites) = "
                f"({self.counts[0]}, {self.counts[2]}), got {list(self.measure.mask.shape)}."
            )

    @classmethod
    def of_cotangents(cls, space: VectorSpace, data: Data, draws: str = "exact", name: str = "cotangents") -> Sample:
        """Covectors on `space`: `draws` are "exact" output directions or "monte carlo" ones."""
        return cls(space.dual, data, Measure.exact() if draws == "exact" else Measure.monte_carlo(), name)

    def _pieces(self) -> Iterator[tuple[Tensor, Tensor | float]]:
        """Flat elements (n, k, t, dim) and what they weigh, piece by piece."""
        weights = self.measure.weights(self.counts)
        if isinstance(self.data, Chunked):
            start, axis = 0, self.data.axis
            for chunk in self.data.chunks():
                flat = chunk.reshape(*chunk.shape[:3], self.space.dim)
                size = flat.shape[axis]
                narrow = isinstance(weights, Tensor) and weights.shape[axis] > 1
                yield flat, weights.narrow(axis, start, size) if narrow else weights  # type: ignore[union-attr]
                start += size
            if start != self.counts[axis]:
                raise ShapeMismatch(
                    f"ShapeMismatch in Sample: the chunks of {self.name} hold {start} of {self.counts[axis]} "
                    f"{'examples' if axis == 0 else 'draws'} of {self.space}."
                )
        else:
            yield self.dense(), weights

    def dense(self) -> Tensor:
        """All elements, (examples, draws, sites, dim)."""
        if isinstance(self.data, Tensor):
            return self.data
        if isinstance(self.data, OneHot):
            return torch.nn.functional.one_hot(self.data.indices, self.space.dim).to(self.data.dtype)
        return torch.cat([flat for flat, _ in self._pieces()], dim=self.data.axis)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor().dtype

    @property
    def device(self) -> torch.device:
        return self.tensor().device

    def tensor(self) -> Tensor:
        """A tensor of the data, for its dtype and device; of one-hot data an empty one."""
        if isinstance(self.data, OneHot):
            return torch.empty(0, dtype=self.data.dtype, device=self.data.indices.device)
        return self.data if isinstance(self.data, Tensor) else next(self.data.chunks())

    def weighted_pieces(self) -> Iterator[Tensor]:
        """The elements times the roots of their weights, one a row, piece by piece: RᵀR is the second moment."""
        for x, w in self._pieces():
            yield (x * (w**0.5 if isinstance(w, float) else w.to(x).sqrt()[..., None])).flatten(0, 2)

    def moment(self) -> Tensor:
        """The second moment Σ w x xᵀ as a matrix; of one-hot data only its diagonal, as a vector."""
        if isinstance(self.data, OneHot):
            weights = torch.as_tensor(self.measure.weights(self.counts), dtype=self.data.dtype, device=self.device)
            indices = self.data.indices.flatten()
            return torch.zeros(self.space.dim, dtype=self.data.dtype, device=self.device).index_add(
                0, indices, weights.broadcast_to(self.counts).flatten()
            )
        total: Tensor | None = None
        for x, w in self._pieces():
            flat = x.flatten(0, 2)
            if isinstance(w, float):
                part = (flat.mT @ flat).mul_(w) if not flat.requires_grad else (flat.mT @ flat) * w
            else:
                part = (flat * w.to(x).broadcast_to(x.shape[:3]).reshape(-1, 1)).mT @ flat
            total = part if total is None else total + part
        assert total is not None
        return total

    def mean(self) -> Vector | Covector:
        """Σ w x / Σ w."""
        total, mass = None, None
        for x, w in self._pieces():
            weights = torch.as_tensor(w, dtype=x.dtype, device=x.device).broadcast_to(x.shape[:3])
            part, share = torch.tensordot(weights, x, dims=3), weights.sum()
            total, mass = (part, share) if total is None or mass is None else (total + part, mass + share)
        assert total is not None and mass is not None
        return element(self.space, total / mass)

    def __call__(self, other: Element) -> Tensor:
        """Every element paired with one element of the dual: (examples, draws, sites)."""
        if not isinstance(other, Element) or other.lives_in != self.space.dual:
            raise SpaceMismatch(f"SpaceMismatch in {self.name}: expected an element of {self.space.dual}, got {other}.")
        pieces = [x @ other.components for x, _ in self._pieces()]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=self.data.axis)  # type: ignore[union-attr]

    def reduced(self) -> Sample:
        """One element per example and draw: the mean of inputs over sites, the sum of cotangents."""
        shares = self.measure.share_of_sites(self.counts)
        x = self.dense()
        combined = (x * (shares.to(x)[..., None] if isinstance(shares, Tensor) else shares)).sum(2, keepdim=True)
        data = combined.reshape(*combined.shape[:3], *self.space.shape)
        return Sample(self.space, data, self.measure.reduced(self.counts), f"{self.name}, reduced")

    def map(self, phi: LinearMap) -> Sample:
        """The sample of the images: same measure, elements carried by a linear map."""
        if phi.domain != self.space:
            raise SpaceMismatch(f"SpaceMismatch in Sample.map: {phi} does not take elements of {self.space}.")
        images = phi._apply(self.dense())
        data = images.reshape(*images.shape[:3], *phi.codomain.shape)
        return Sample(phi.codomain, data, self.measure, self.name)

    def __repr__(self) -> str:
        n, k, t = self.counts
        return f"Sample({self.space!r}, {self.name!r}, examples={n}, draws={k}, sites={t}, {self.measure.kind})"

    def __str__(self) -> str:
        return f"{self.name} of {self.space}"
