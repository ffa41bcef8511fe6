"""Samples: elements of a space with a measure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..elements import Covector, Element, Vector, check_components, check_same_kind, describe, element
from ..errors import ShapeMismatch, SpaceMismatch
from ..linear_maps import LinearMap
from ..spaces import Family, VectorSpace, check_vector_space
from .data import Chunked, Compact, Data, OneHot, sum_of_squares
from .measures import Counts, Measure, check_choice, times
from .products import grams, grams_into


class Sample:
    """Elements of `space`, weighted by `measure` (default: a probability).

    `data` is a tensor (examples, draws, sites, *space.shape) or (examples, *space.shape), a `OneHot`, `Chunked` or
    `Compact`.
    One rule ties it to inner products: a sample of U has its second moment as an inner product on U.dual.
    """

    __slots__ = ("counts", "data", "measure", "name", "space", "through")

    def __init__(self, space: VectorSpace, data: Data, measure: Measure | None = None, name: str = "sample"):
        self.space, self.name = check_vector_space("Sample", space), name
        self.through: tuple[LinearMap, ...] = ()  # maps that are not natural: the elements do not move as others do
        self.data = data
        if isinstance(data, OneHot):
            indices = data.indices
            if (
                indices.is_floating_point()
                or indices.ndim not in (1, 3)
                or not bool(((indices >= 0) & (indices < space.dim)).all())
            ):
                raise ShapeMismatch(
                    f"ShapeMismatch in Sample: one-hot data of {space} are integers below {space.dim}, "
                    f"shaped (examples,) or (examples, draws, sites); got {describe(indices)}."
                )
            self.data = replace(data, indices=indices.reshape(-1, 1, 1) if indices.ndim == 1 else indices)
            self.counts: Counts = tuple(self.data.indices.shape)  # type: ignore[assignment]
        elif isinstance(data, (Chunked, Compact)):
            self.counts = data.counts
        else:
            tensor = check_components("Sample", space, space.shape, data)
            lead = tuple(tensor.shape[: tensor.ndim - len(space.shape)])
            if len(lead) not in (1, 3):
                raise ShapeMismatch(
                    f"ShapeMismatch in Sample: data of {space} are (examples, draws, sites, *{list(space.shape)}) or "
                    f"(examples, *{list(space.shape)}), got {describe(data)}. "
                    f"Insert the missing dimensions of size one."
                )
            self.counts = (lead[0], 1, 1) if len(lead) == 1 else lead  # type: ignore[assignment]
            self.data = tensor.reshape(*self.counts, space.dim)
        if 0 in self.counts:
            raise ShapeMismatch(f"ShapeMismatch in Sample: no elements of {space}: counts {self.counts}.")
        self.measure = Measure.probability() if measure is None else measure.on(space, self.counts)

    @classmethod
    def of_cotangents(cls, space: VectorSpace, data: Data, draws: str = "exact", name: str = "cotangents") -> Sample:
        """Covectors on `space`: `draws` are "exact" output directions or "monte carlo" ones."""
        check_vector_space("Sample.of_cotangents", space)
        check_choice("Sample.of_cotangents(draws=...)", draws, ("exact", "monte carlo"))
        return cls(space.dual, data, Measure.exact() if draws == "exact" else Measure.monte_carlo(), name)

    def _pieces(self) -> Iterator[tuple[Tensor, Tensor | float]]:
        """Flat elements (n, k, t, dim) and what they weigh, piece by piece."""
        return self._pieces_with(self.measure.weights(self.counts))

    def _pieces_with(self, weights: Tensor | float) -> Iterator[tuple[Tensor, Tensor | float]]:
        if isinstance(self.data, (Chunked, Compact)):
            start, axis = 0, self.data.axis
            for chunk in self.data.chunks():
                flat = self._flat(chunk, self.counts[axis] - start)
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

    def _flat(self, chunk: Tensor, left: int) -> Tensor:
        """A chunk as (n, k, t, dim), if it is one: of the sample's counts but for its axis, where so many are left."""
        assert isinstance(self.data, (Chunked, Compact))
        space, axis, lead = self.space, self.data.axis, tuple(chunk.shape[:3])
        rest = tuple(chunk.shape[3:])
        fits = len(lead) == 3 and all(lead[i] == self.counts[i] for i in range(3) if i != axis)
        if not fits or lead[axis] > left or rest not in (space.shape, (space.dim,)):
            shape = [f"at most {left}" if i == axis else str(self.counts[i]) for i in range(3)]
            raise ShapeMismatch(
                f"ShapeMismatch in Sample: a chunk of {self.name} along axis {axis} is "
                f"[{', '.join([*shape, *map(str, space.shape)])}], elements of {space}, got {describe(chunk)}."
            )
        return chunk.reshape(*lead, space.dim)

    def dense(self) -> Tensor:
        """All elements, (examples, draws, sites, dim)."""
        if isinstance(self.data, Tensor):
            return self.data
        if isinstance(self.data, OneHot):
            return torch.nn.functional.one_hot(self.data.indices, self.space.dim).to(self.data.dtype)
        if isinstance(self.data, Compact):
            return self.data.dense().reshape(*self.counts, self.space.dim)
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
        if isinstance(self.data, Compact):
            return self.data.tensor()
        if isinstance(self.data, Chunked) and self.data.like is not None:
            return self.data.like
        return self.data if isinstance(self.data, Tensor) else next(self.data.chunks())

    def weighted_pieces(self) -> Iterator[Tensor]:
        """The elements times the roots of their weights, one a row, piece by piece: RᵀR is the second moment."""
        for x, w in self._pieces():
            yield times(x, w**0.5 if isinstance(w, float) else w.to(x).sqrt()).flatten(0, 2)

    def moment(self) -> Tensor:
        """The second moment Σ w x xᵀ as a matrix; of one-hot data only its diagonal, as a vector."""
        if isinstance(self.data, OneHot):
            weights = torch.as_tensor(self.measure.weights(self.counts), dtype=self.data.dtype, device=self.device)
            indices = self.data.indices.flatten()
            return torch.zeros(self.space.dim, dtype=self.data.dtype, device=self.device).index_add(
                0, indices, weights.broadcast_to(self.counts).flatten()
            )
        return self._moments(1)[0]

    def member_moments(self) -> Tensor:
        """One second moment for each member of a family, (members, d, d)."""
        return self._moments(self.space.members if isinstance(self.space, Family) else 1)

    def blended_moments(self, base: Tensor, weight: float) -> Tensor:
        """(1 - weight) base + weight times the moment, in one pass; `base` is (d, d), or (members, d, d) of a family.

        It holds on and below the diagonals, and so much is asked of the base. Not of one-hot data.
        """
        if base.ndim == 3:
            return self._moments(base.shape[0], base, weight)
        return self._moments(1, base[None], weight)[0]

    @property
    def blends_in_place(self) -> bool:
        """Whether `blend_moments_into` has anything to offer: not of one-hot data, of pieces, or of absent elements."""
        return not isinstance(self.data, (OneHot, Chunked)) and isinstance(self.measure.weights(self.counts), float)

    def blend_moments_into(self, base: Tensor, weight: float) -> None:
        """As `blended_moments`, over the base itself. Asked for where `blends_in_place`."""
        given, kept = self.measure.weights(self.counts), 1 - weight
        assert isinstance(given, float)
        base = base if base.ndim == 3 else base[None]
        members = base.shape[0]
        if isinstance(self.data, Compact):
            if self.data.members == members:
                self.data.moments_into(base, kept, given * weight)
            else:
                base.copy_(self._moments(members, base, weight))
        else:
            grams_into(self.dense().unflatten(-1, (members, -1)), given * weight, base, kept)

    def squares(self) -> Tensor:
        """Of the size of Σ |x|²: a number that is finite only where the second moment is. Asked for as above."""
        return self.data.squares() if isinstance(self.data, Compact) else sum_of_squares(self.dense())

    def _moments(self, members: int, base: Tensor | None = None, share: float = 1.0) -> Tensor:
        """The moments, or their blend with a base, in which they have this share."""
        given, kept = self.measure.weights(self.counts), 1 - share
        if isinstance(self.data, Compact) and isinstance(given, float) and self.data.members == members:
            return self.data.moments(given) if base is None else self.data.moments_onto(base, kept, given * share)
        total: Tensor | None = None
        for x, w in self._pieces():
            x = x if isinstance(w, float) else times(x, w.to(x).sqrt())
            x, weight = x.unflatten(-1, (members, -1)), (w if isinstance(w, float) else 1.0) * share
            total = grams(x, weight, base, kept) if total is None else total + grams(x, weight)
        assert total is not None
        return total

    def mean(self) -> Vector | Covector:
        """Σ w x / Σ w."""
        total, mass = None, None
        for x, w in self._pieces():
            weights = torch.as_tensor(w, dtype=x.dtype, device=x.device).broadcast_to(x.shape[:3])
            present = x if isinstance(w, float) else times(x, (weights != 0).to(x))
            part, share = torch.tensordot(weights, present, dims=3), weights.sum()
            total, mass = (part, share) if total is None or mass is None else (total + part, mass + share)
        assert total is not None and mass is not None
        if not bool(mass > 0):
            raise ShapeMismatch(f"ShapeMismatch in {self.name}.mean: all elements of {self.space} weigh nothing.")
        return element(self.space, total / mass)

    def __call__(self, other: Element) -> Tensor:
        """Every element paired with one element of the dual: (examples, draws, sites)."""
        if not isinstance(other, Element) or other.lives_in != self.space.dual:
            raise SpaceMismatch(f"SpaceMismatch in {self.name}: expected an element of {self.space.dual}, got {other}.")
        pieces = []
        for x, _ in self._pieces():
            if x.dtype != other.dtype or x.device != other.device:
                check_same_kind(self.name, self, other)
            pieces.append(x @ other.components)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=self.data.axis)  # type: ignore[union-attr]

    def reduced(self) -> Sample:
        """One element per example and draw: the mean of inputs over sites, the sum of cotangents."""
        n, k, t = self.counts
        if t == 1 and self.measure.mask is None and self.measure.given is None:
            return self
        shares = self.measure.share_of_sites(self.counts)

        def chunks() -> Iterator[Tensor]:
            for x, share in self._pieces_with(shares):
                yield times(x, share).sum(2, keepdim=True).reshape(*x.shape[:2], 1, *self.space.shape)

        data: Data
        if isinstance(self.data, (Chunked, Compact)) and self.data.axis == 1:
            data = Chunked(chunks, (n, k, 1), 1, self.tensor())
        else:
            data = torch.cat(list(chunks()))
        reduced = Sample(self.space, data, self.measure.reduced(self.counts), f"{self.name}, reduced")
        reduced.through = self.through
        return reduced

    def map(self, phi: LinearMap) -> Sample:
        """The sample of the images: same measure, elements carried by a linear map."""
        if phi.domain != self.space:
            raise SpaceMismatch(f"SpaceMismatch in Sample.map: {phi} does not take elements of {self.space}.")
        elements = self.dense()
        phi._check_kind("Sample.map", self, (elements,))
        images = phi._apply(elements)
        data = images.reshape(*images.shape[:3], *phi.codomain.shape)
        mapped = Sample(phi.codomain, data, self.measure, self.name)
        mapped.through = self.through if phi.natural else (*self.through, phi)
        return mapped

    def __repr__(self) -> str:
        n, k, t = self.counts
        return f"Sample({self.space!r}, {self.name!r}, examples={n}, draws={k}, sites={t}, {self.measure.kind})"

    def __str__(self) -> str:
        return f"{self.name} of {self.space}"
