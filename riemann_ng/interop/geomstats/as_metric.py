"""From here to geomstats: inner products and fields of them as Riemannian metrics."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...elements import describe
from ...errors import DegenerateMetric, NonFinite, NotAnInnerProduct, NotConverged, ShapeMismatch, SpaceMismatch
from ...factorizations import tolerance_of
from ...geodesics import Manifold
from ...inner_products import Gram, InnerProduct
from ...spaces import VectorSpace
from .backend import (
    EuclideanManifold,
    EuclideanMetric,
    ExpODESolver,
    GSIVPIntegrator,
    LogSolver,
    PathStraightening,
    RiemannianMetric,
    ScipyMinimize,
    VectorSpaceOpenSet,
    check_point,
    gs,
    text_of,
)

Field = Callable[[Tensor], InnerProduct | Tensor]
"""A metric: from the coordinates of a point, (dim,), to the inner product there or to its matrix."""

Region = Callable[[Tensor], Tensor]
"""Which of the points [..., dim] belong to an open set."""


def as_geomstats(
    metric: InnerProduct | Manifold | Field, space: VectorSpace | None = None, contains: Region | None = None
) -> InnerProductMetric | FieldMetric:
    """An inner product, the same at every point, or a metric, one at each, as a geomstats `RiemannianMetric`.

    A metric is a function of the coordinates of a point, a tensor (dim,). It returns an inner product on `space` or its
    matrix, made with torch operations: its derivatives are autograd's. It lives on the open set of the points that
    `contains` accepts, without it on all of ℝ^dim; the geomstats manifold is `.manifold`. The metric of a network's
    parameters is a `geodesics.Manifold`, which knows its space.

    Christoffel symbols, `exp`, `log` and `dist` of geomstats are batched, and differentiable in points, vectors and
    whatever else the metric is made of. Geodesics take Runge-Kutta steps: `metric.exp_solver.integrator.n_steps`.
    """
    result: InnerProductMetric | FieldMetric
    if isinstance(metric, Manifold):
        if space not in (None, metric.space):
            raise SpaceMismatch(f"SpaceMismatch in as_geomstats: {metric!r} has the tangent space {metric.space}.")
        space, metric = metric.space, metric.matrix
    if isinstance(metric, InnerProduct):
        if space not in (None, metric.space):
            raise SpaceMismatch(f"SpaceMismatch in as_geomstats: {metric!r} is no inner product on {space}.")
        result = CoordinateManifold(metric.space, contains).equip_with_metric(InnerProductMetric, form=metric).metric
    elif callable(metric) and isinstance(space, VectorSpace):
        result = CoordinateManifold(space, contains).equip_with_metric(FieldMetric, field=metric).metric
    else:
        raise SpaceMismatch(
            f"SpaceMismatch in as_geomstats: expected an inner product, or a function of a point together with the "
            f"space of its values, got {describe(metric)} and {space!r}. Write as_geomstats(field, Space('θ', 2))."
        )
    return result


class CoordinateManifold(VectorSpaceOpenSet):  # type: ignore[misc]
    """An open set of ℝ^dim whose tangent vectors are the vectors of `tangent_space`."""

    def __init__(self, tangent_space: VectorSpace, contains: Region | None = None):
        self.tangent_space, self.contains = tangent_space, contains
        embedding = EuclideanManifold(tangent_space.dim, equip=False)
        super().__init__(embedding_space=embedding, dim=tangent_space.dim, equip=False)

    def belongs(self, point: Tensor, atol: float = gs.atol) -> Tensor:
        if tuple(point.shape[-1:]) != self.shape:
            return torch.zeros(point.shape[:-1], dtype=torch.bool)
        inside = point.isfinite().all(-1)
        return inside if self.contains is None else inside & self.contains(point)

    def random_point(self, n_samples: int = 1, bound: float = 1.0) -> Tensor:
        """Uniform on the part of the open set in the box [-bound, bound]^dim."""
        drawn: Tensor = bound * (2 * gs.random.rand(1000 * n_samples, self.dim) - 1)
        points = drawn[self.belongs(drawn)]
        if len(points) < n_samples:
            raise SpaceMismatch(
                f"SpaceMismatch in random_point: of {len(drawn)} points in the box of side {2 * bound} only "
                f"{len(points)} lie on the manifold of {self.tangent_space}. Give another bound."
            )
        return points[0] if n_samples == 1 else points[:n_samples]


class InnerProductMetric(EuclideanMetric):  # type: ignore[misc]
    """One inner product at every point: geodesics are straight."""

    def __init__(self, space: CoordinateManifold, form: InnerProduct):
        super().__init__(space, metric_matrix=form.matrix())
        self.manifold, self.form = space, form

    def at(self, point: Tensor) -> InnerProduct:
        """The inner product at a point."""
        check_point("at", f"the manifold of {self.form.space}", self.manifold.shape, point)
        return self.form

    def metric_matrix(self, base_point: Tensor | None = None) -> Tensor:
        matrix = self.form.matrix(base_point)
        return matrix if base_point is None else matrix.expand(*base_point.shape[:-1], -1, -1)


class FieldMetric(RiemannianMetric):  # type: ignore[misc]
    """A field of inner products on an open set of ℝ^dim."""

    def __init__(self, space: CoordinateManifold, field: Field):
        super().__init__(space)
        self.manifold, self.field = space, field
        self.exp_solver = ExpODESolver(space, integrator=GSIVPIntegrator(n_steps=24, step_type="rk4"))
        self.log_solver = Shooting(space)

    def at(self, point: Tensor) -> InnerProduct:
        """The inner product at a point."""
        check_point("at", f"the manifold of {self.manifold.tangent_space}", self.manifold.shape, point)
        return self._at(point)

    def _at(self, point: Tensor) -> InnerProduct:
        value, V = self.field(point), self.manifold.tangent_space
        if isinstance(value, Tensor):
            return Gram(V, value, name=f"matrix at {text_of(point)}")
        if not isinstance(value, InnerProduct) or value.space != V:
            raise SpaceMismatch(
                f"SpaceMismatch in as_geomstats: the field gives {value!r} at {text_of(point)}; "
                f"expected an inner product on {V} or its matrix."
            )
        return value

    def metric_matrix(self, base_point: Tensor | None = None) -> Tensor:
        x, d = self._points(base_point), self.manifold.dim
        matrices = [self._at(point).matrix(point) for point in x.reshape(-1, d)]
        return torch.stack(matrices).reshape(*x.shape[:-1], d, d)

    def cometric_matrix(self, base_point: Tensor | None = None) -> Tensor:
        matrix = self.metric_matrix(base_point)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if bool(failed.any()):
            self._refuse(self._points(base_point)[failed > 0][0], matrix.detach()[failed > 0][0])
        return torch.cholesky_inverse(factor)

    def _refuse(self, point: Tensor, matrix: Tensor) -> None:
        V = self.manifold.tangent_space
        if not bool(matrix.isfinite().all()):
            raise NonFinite(f"NonFinite in as_geomstats: the field at {text_of(point)} holds NaN or infinity on {V}.")
        eigenvalues = torch.linalg.eigvalsh(matrix)
        rank = int((eigenvalues > tolerance_of(matrix) * eigenvalues[-1]).sum())
        raise DegenerateMetric(
            f"DegenerateMetric in as_geomstats: the field at {text_of(point)} has rank {rank} of {V.dim} on {V}; "
            f"geodesics need a definite one. Damp it by a named h (g + λ * h), or leave its kernel out of the "
            f"coordinates.",
            V,
            rank,
        )

    def inner_product_derivative_matrix(self, base_point: Tensor | None = None) -> Tensor:
        """∂g_ij/∂x_k at [..., i, j, k], with a graph where gradients can flow: that of geomstats is cut off."""
        points, d = self._points(base_point), self.manifold.dim
        keep = torch.is_grad_enabled() and (points.requires_grad or self.metric_matrix(points).requires_grad)
        with torch.enable_grad():
            x = points if points.requires_grad else points.detach().requires_grad_()
            matrix = self.metric_matrix(x)
            if not matrix.requires_grad:
                return x.new_zeros(*matrix.shape, d)

            def derivative(i: int, j: int) -> Tensor:
                total = matrix[..., i, j].sum()  # of points that do not see each other
                found = torch.autograd.grad(total, x, retain_graph=True, create_graph=keep, materialize_grads=True)
                return found[0]

            upper = {(i, j): derivative(i, j) for i in range(d) for j in range(i, d)}
            rows = [torch.stack([upper[min(i, j), max(i, j)] for j in range(d)], dim=-2) for i in range(d)]
            return torch.stack(rows, dim=-3)

    def _points(self, base_point: Tensor | None) -> Tensor:
        if not isinstance(base_point, Tensor) or tuple(base_point.shape[-1:]) != self.manifold.shape:
            V = self.manifold.tangent_space
            raise ShapeMismatch(
                f"ShapeMismatch in as_geomstats: a metric on {V} is taken at points [..., {V.dim}], "
                f"got {describe(base_point)}."
            )
        return base_point


class Shooting(LogSolver):  # type: ignore[misc]
    """The vector v with exp(v) = point: a polygon of least energy for a start, damped Newton steps on `exp` from there.

    Where gradients can flow one more step is taken, differentiably: by the implicit function theorem its derivative is
    that of the logarithm.
    """

    def __init__(self, space: CoordinateManifold, steps: int = 30):
        super().__init__(solves_bvp=False)
        self.manifold, self.steps = space, steps
        self.nodes = 12
        self.polygon = PathStraightening(space, n_nodes=self.nodes, optimizer=Descent(), symmetric=True)

    def log(self, point: Tensor, base_point: Tensor) -> Tensor:
        point, base_point = torch.broadcast_tensors(point, base_point)
        v = self._solution(point.detach(), base_point.detach())
        missed = self._missed(v, point, base_point)
        return v - _times(self._inverse(v, base_point.detach()), missed) if missed.requires_grad else v

    @torch.no_grad()
    def _solution(self, point: Tensor, base_point: Tensor) -> Tensor:
        size = float(torch.maximum(point.abs(), (point - base_point).abs()).max())
        enough, least, error = 1e3 * torch.finfo(point.dtype).eps * size, math.inf, math.inf
        v = reached = self._start(point, base_point)
        step = torch.zeros_like(v)
        for _ in range(self.steps):
            try:
                missed = self._missed(v, point, base_point)
                error = float(missed.abs().max())
            except (DegenerateMetric, NonFinite, NotAnInnerProduct):
                if math.isinf(least):
                    raise
                error = math.inf  # a step too long, out of where the field is a metric
            if error <= enough:
                return v
            if error < least:
                if math.isinf(least) or error > least / 10:  # else the slope of an earlier step is good enough
                    inverse = self._inverse(v, base_point)
                reached, least, step = v, error, _times(inverse, missed)
            else:
                step = step / 2
            v = reached - step
        raise NotConverged(
            f"NotConverged in log: after {self.steps} Newton steps geodesics of {self.manifold.tangent_space} miss "
            f"their end points by up to {min(least, error):.2e}. Take points closer together, or let exp take more "
            f"steps: metric.exp_solver.integrator.n_steps."
        )

    def _start(self, point: Tensor, base_point: Tensor) -> Tensor:
        path: Tensor = self.polygon.discrete_geodesic_bvp(point, base_point).to(point)
        first, second, third = path[..., 0, :], path[..., 1, :], path[..., 2, :]
        return (self.nodes - 1) * (4 * second - 3 * first - third) / 2

    def _missed(self, v: Tensor, point: Tensor, base_point: Tensor) -> Tensor:
        end: Tensor = self.manifold.metric.exp(v, base_point)
        return end - point

    def _inverse(self, v: Tensor, base_point: Tensor) -> Tensor:
        """The inverse of the derivative of exp in the direction v."""
        with torch.enable_grad():
            v = v.detach().requires_grad_()
            end = self.manifold.metric.exp(v, base_point)
            rows = [torch.autograd.grad(x.sum(), v, retain_graph=True)[0] for x in end.unbind(-1)]
        inverse: Tensor = torch.linalg.inv(torch.stack(rows, dim=-2))
        return inverse


class Descent(ScipyMinimize):  # type: ignore[misc]
    """L-BFGS with slopes from autograd that are written to no parameter's `.grad`."""

    @torch.enable_grad()
    def minimize(self, fun: Callable[[Tensor], Tensor], x0: Tensor) -> Any:
        def value(x: Tensor) -> float:
            return float(fun(x).detach())

        def slope(x: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            found: Tensor = torch.autograd.grad(fun(x), x)[0]
            return found

        return super().minimize(value, x0, fun_jac=slope)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]
