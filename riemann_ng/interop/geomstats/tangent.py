"""The tangent space of parameters on manifolds, as a subspace of where their metric lives.

The subspace is the image of a linear map i. A metric g is restricted to it as g|T = i*g, a covector as i*df, and the
natural gradient on the manifold is i (g|T).sharp(i*df): whatever i is, as long as its image is T. There are two:

    of a basis       the columns are orthonormal for the components, one basis for each point: i is injective
    of a projection  geomstats' own, for points too large for a basis: i has a kernel, where i*df vanishes too
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from ...errors import SpaceMismatch
from ...inner_products import Gram
from ...linear_maps import LinearMap
from ...networks.structure import Block
from ...spaces import Family, Space, VectorSpace
from .places import OnManifold, in_double

BASIS_UP_TO = 256
"""Points of more numbers have no basis made for their tangent space."""


class Chart(ABC):
    """How coordinates of tangent vectors, (..., dim), make the components of one parameter, (..., *shape)."""

    dim: int

    def __init__(self, place: OnManifold, parameter: Tensor):
        self.place, self.shape = place, tuple(parameter.shape)
        self.points = place.mended(place.points(parameter))

    @abstractmethod
    def include(self, c: Tensor) -> Tensor: ...

    @abstractmethod
    def restrict(self, xi: Tensor) -> Tensor:
        """The transpose."""

    def _rows(self, components: Tensor) -> Tensor:
        """(..., *shape) as (..., points, numbers of one)."""
        batch = components.shape[: components.ndim - len(self.shape)]
        turned = components.mT if self.place.transposed else components
        return turned.reshape(*batch, len(self.points), self.place.size)

    def _components(self, rows: Tensor) -> Tensor:
        batch, own = rows.shape[:-2], tuple(self.place.manifold.shape)
        lead = self.shape[: len(self.shape) - len(own)]
        data = rows.reshape(*batch, *lead, *own)
        return data.mT if self.place.transposed else data


class InBasis(Chart):
    """Coordinates along a basis of the tangent space at each point."""

    def __init__(self, name: str, place: OnManifold, parameter: Tensor):
        super().__init__(place, parameter)
        n, m = place.size, len(self.points)
        every = torch.eye(n, dtype=torch.float64).reshape(n, 1, *place.manifold.shape)
        at = self.points.expand(n, *self.points.shape)
        images = place.to_tangent(every.expand(at.shape), at).reshape(n, m, n).transpose(0, 1)
        U, S, _ = torch.linalg.svd(images.mT)
        rank = place.manifold.dim
        ranks = set((S > 1e-3).sum(-1).tolist())  # what is not zero of a projection is one or more
        if ranks != {rank}:
            spanned = " or ".join(map(str, sorted(ranks)))
            raise SpaceMismatch(
                f"SpaceMismatch in the tangent space of {name!r}: {place.name} has dimension {place.manifold.dim}, "
                f"but its vectors there span {spanned}: geomstats has no tangent spaces for these coordinates. Use "
                f"others."
            )
        self.basis = U[..., :rank].to(parameter.device, parameter.dtype)
        self.dim = m * rank

    def include(self, c: Tensor) -> Tensor:
        m, _, d = self.basis.shape
        rows = torch.einsum("mnd,...md->...mn", self.basis.to(c), c.reshape(*c.shape[:-1], m, d))
        return self._components(rows)

    def restrict(self, xi: Tensor) -> Tensor:
        return torch.einsum("mnd,...mn->...md", self.basis.to(xi), self._rows(xi)).flatten(-2)

    def gram(self, name: str) -> Gram:
        """The manifold's own metric, one form for each point."""
        m, _, d = self.basis.shape
        B = self.basis.to("cpu", torch.float64).mT.reshape(m, d, *self.place.manifold.shape)
        shape = (m, d, d, *self.place.manifold.shape)
        v, w = B[:, :, None].expand(shape).flatten(0, 2), B[:, None].expand(shape).flatten(0, 2)
        points = self.points[:, None, None].expand(shape).flatten(0, 2)
        with in_double():
            found = self.place.manifold.metric.inner_product(v, w, points)
        matrices = found.reshape(m, d, d).to(self.basis)
        T = Space(f"T({name} on {self.place.name})", d)
        space: VectorSpace = Family(T, m) if m > 1 else T
        return Gram(space, (matrices if m > 1 else matrices[0]), name=f"{self.place.name}'s own")


class Projected(Chart):
    """All components, projected to the tangent space: for points that are too large to make a basis."""

    def __init__(self, name: str, place: OnManifold, parameter: Tensor):
        super().__init__(place, parameter)
        self.dim = parameter.numel()

    def _project(self, rows: Tensor) -> Tensor:
        batch = rows.shape[:-2]
        at = self.points.expand(*batch, *self.points.shape)
        tangent = self.place.to_tangent(rows.reshape(at.shape), at)
        return tangent.reshape(rows.shape)

    def include(self, c: Tensor) -> Tensor:
        rows = c.to("cpu", torch.float64).reshape(*c.shape[:-1], len(self.points), self.place.size)
        return self._components(self._project(rows).to(c))

    def restrict(self, xi: Tensor) -> Tensor:
        rows = self._rows(xi).to("cpu", torch.float64)
        at = self.points.expand(*rows.shape[:-2], *self.points.shape)
        return self.place.pulled_back(rows.reshape(at.shape), at).reshape(rows.shape).to(xi).flatten(-2)


def chart_of(name: str, place: OnManifold, parameter: Tensor) -> Chart:
    return (InBasis if place.size <= BASIS_UP_TO else Projected)(name, place, parameter)


def tangent_space(
    space: VectorSpace,
    blocks: Sequence[tuple[Block, slice]],
    charts: Mapping[str, Chart],
    still: Collection[str] = (),
) -> LinearMap:
    """The inclusion of what the blocks of a network may do, into the space that they make up.

    Parameters with a chart move along it, those that are `still` do not move, all others are free.
    """
    parts: list[list[tuple[str, tuple[int, ...], Chart | None, int]]] = []
    for block, _ in blocks:
        part = []
        for local, t in block.to_parameters(torch.zeros(block.space.shape)).items():
            name = block.names[local]
            chart = None if name in still else charts.get(name)
            part.append(
                (local, tuple(t.shape), chart, 0 if name in still else t.numel() if chart is None else chart.dim)
            )
        parts.append(part)
    dims = [dim for part in parts for *_, dim in part]

    def include(c: Tensor) -> Tensor:
        pieces, batch = iter(c.split(dims, dim=-1)), c.shape[:-1]
        made = []
        for (block, _), part in zip(blocks, parts, strict=True):
            tensors = {}
            for local, shape, chart, dim in part:
                piece = next(pieces)
                if chart is not None:
                    tensors[local] = chart.include(piece)
                else:
                    tensors[local] = piece.reshape(*batch, *shape) if dim else c.new_zeros(*batch, *shape)
            made.append(block.from_parameters(tensors).reshape(*batch, block.space.dim))
        return torch.cat(made, dim=-1)

    def restrict(xi: Tensor) -> Tensor:
        found, batch = [], xi.shape[:-1]
        for (block, where), part in zip(blocks, parts, strict=True):
            tensors = block.to_parameters(xi[..., where].reshape(*batch, *block.space.shape))
            for local, _, chart, dim in part:
                if chart is not None:
                    found.append(chart.restrict(tensors[local]))
                elif dim:
                    found.append(tensors[local].reshape(*batch, dim))
        return torch.cat(found, dim=-1)

    said = ", ".join(f"{name} on {chart.place.name}" for name, chart in charts.items() if name not in still)
    T = Space(f"T({said or 'the rest'})", sum(dims))
    return LinearMap.from_functions(T, space, include, restrict, "inclusion", natural=True)
