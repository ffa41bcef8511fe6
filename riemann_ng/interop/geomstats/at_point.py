"""From geomstats to here: a metric at a point as an inner product on the tangent space."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...errors import SpaceMismatch
from ...inner_products import Gram, InnerProduct
from ...inner_products.symmetries import of_matrix
from ...linear_maps import LinearMap
from ...spaces import Space, VectorSpace
from ...symmetry import Structure
from .as_metric import FieldMetric, InnerProductMetric
from .backend import (
    ComplexManifold,
    EuclideanMetric,
    FlatManifold,
    RiemannianMetric,
    ScalarProductMetric,
    VectorSpaceOpenSet,
    check_point,
    geomstats_in,
    text_of,
)


def from_geomstats(metric: Any, point: Tensor, space: VectorSpace | None = None) -> InnerProduct:
    """A geomstats metric at a point of its manifold, as an inner product on the tangent space there.

    Its coordinates are those of `tangent_inclusion(metric, point)`, and so is its space unless one is given. Gradients
    flow to the point where the tangent space is the same at all points.

    The form is a structure declared on the manifold and known by its name and its point: no change of frame carries it
    along. A metric that varies keeps nothing, for even translations lead to another of its values. Say
    `Gram(space, form.matrix(), natural=True)` of one that does move with the frames.
    """
    if isinstance(metric, (InnerProductMetric, FieldMetric)):
        form = metric.at(point)
        return form if space in (None, form.space) else Gram(_of_dim(space, form.space.dim), form.matrix(point))
    inclusion = tangent_inclusion(metric, point, space)
    manifold, basis, d = metric._space, inclusion.matrix().mT, inclusion.domain.dim
    rows = basis.repeat_interleave(d, 0).reshape(d * d, *manifold.shape)
    columns = basis.repeat(d, 1).reshape(d * d, *manifold.shape)
    with geomstats_in(point.dtype):
        points = (point if _one_for_all(manifold) else point.detach()).expand(d * d, *manifold.shape)
        matrix = metric.inner_product(rows, columns, points).reshape(d, d).to(point.dtype)
    V, name = inclusion.domain, f"{_name(metric)} at {text_of(point)}"
    symmetry = of_matrix(V, name, name)
    if not isinstance(metric, EuclideanMetric):
        symmetry = symmetry.with_structure(*(Structure(base, "origin", name, name) for base in V.bases))
    Gram(V, matrix, name=name)  # says what is wrong with it
    return Gram.of(V, matrix, name, symmetry)


def tangent_inclusion(metric: Any, point: Tensor, space: VectorSpace | None = None) -> LinearMap:
    """The tangent space at a point of a geomstats manifold, included into the space of geomstats' components.

    On an open set of a vector space it is the same everywhere and named after the manifold; its coordinates are the
    components, of symmetric matrices those of the upper triangle. Elsewhere each point has a tangent space of its own,
    named after both; its coordinates belong to a basis that is orthonormal for the components.
    """
    known = isinstance(metric, (RiemannianMetric, ScalarProductMetric))
    if not known or isinstance(metric._space, ComplexManifold):
        raise SpaceMismatch(
            f"SpaceMismatch in from_geomstats: expected a Riemannian metric of geomstats, got {metric!r}. "
            f"A manifold has its metric in .metric; that of a complex manifold is Hermitian, not Riemannian."
        )
    manifold = metric._space
    name, n = _name(manifold), math.prod(manifold.shape)
    check_point("from_geomstats", name, manifold.shape, point)
    with torch.no_grad(), geomstats_in(point.dtype):
        if not bool(manifold.belongs(point)):
            raise SpaceMismatch(
                f"SpaceMismatch in from_geomstats: {text_of(point)} does not lie on {name}, as geomstats sees it."
            )
        every = torch.eye(n, dtype=point.dtype, device=point.device).reshape(n, *manifold.shape)
        tangent = manifold.to_tangent(every, point.expand(n, *manifold.shape)).reshape(n, n)
        rank = int(torch.linalg.matrix_rank(tangent))
    if rank != manifold.dim:
        raise SpaceMismatch(
            f"SpaceMismatch in from_geomstats: {name} has dimension {manifold.dim}, but its vectors at "
            f"{text_of(point)} span {rank}: geomstats has no tangent spaces for these coordinates. Use others."
        )
    same = _one_for_all(manifold)
    basis = _echelon_basis(tangent) if same else torch.linalg.svd(tangent.mT)[0][:, :rank].contiguous()
    own = Space(name if same else f"{name} at {text_of(point)}", rank)
    domain = own if space is None else _of_dim(space, rank)
    return LinearMap(domain, Space(f"components of {name}", n), basis, "inclusion", natural=True)


def _one_for_all(manifold: Any) -> bool:
    """Whether the tangent space is the same at all points."""
    return isinstance(manifold, (FlatManifold, VectorSpaceOpenSet)) or math.prod(manifold.shape) == manifold.dim


def _echelon_basis(rows: Tensor) -> Tensor:
    """The reduced echelon form of the span of the rows, in columns: coordinates are components that are free."""
    basis: list[Tensor] = []
    for column in range(rows.shape[1]):
        pivot = rows[rows[:, column].abs().argmax()]
        if float(pivot[column].abs()) > 1e-4:
            leader = pivot / pivot[column]
            rows = rows - rows[:, column, None] * leader
            basis = [row - row[column] * leader for row in basis] + [leader]
    return torch.stack(basis, dim=1)


def _of_dim(space: VectorSpace | None, dim: int) -> VectorSpace:
    if not isinstance(space, VectorSpace) or space.dim != dim:
        raise SpaceMismatch(
            f"SpaceMismatch in from_geomstats: the tangent space has dimension {dim}, so it cannot be {space!r}."
        )
    return space


def _name(thing: Any) -> str:
    return type(thing).__name__.lstrip("_")
