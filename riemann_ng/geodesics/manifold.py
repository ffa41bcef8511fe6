"""The parameters of a small network as a Riemannian manifold: geodesics, logarithms and distances."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..elements import Vector
from ..errors import DegenerateMetric, InvalidSetting, NonFinite, NotConverged, SpaceMismatch
from ..inner_products import Gram, InnerProduct
from ..likelihoods import OutputMetric
from ..metrics import EuclideanMetric, FixedMetric, RiemannianMetric
from ..metrics.base import Scaled, Sum
from ..metrics.fisher import PulledBack
from ..networks import Network
from ..networks.outputs import examples_in
from ..points import Point
from ..spaces import DirectSum
from .christoffel import WHOLE, force
from .outputs import applied
from .second_order import along, outputs
from .shooting import State, runge_kutta, shoot

LARGEST = 512
"""The most parameters: a matrix is made and factorized at every point."""


@dataclass(frozen=True)
class Path:
    """A geodesic: points (steps + 1) at equal times from 0 to 1, and the velocity at each."""

    points: Point
    velocities: Vector
    speed: float
    """√g(v, v), the same at all times."""
    drift: float
    """How far the speed has changed from the start to the end, relatively: the error of the integration shows in it."""

    @property
    def end(self) -> Point:
        return Point(self.points.space, self.points.data[-1])


class Manifold:
    """A network's parameters with a metric that is seen on one batch.

    The metric is one whose derivatives are known: `Fisher()`, `GaussNewton(...)`, forms that are the same everywhere,
    and sums. Points are those of `network.parameters_point()`, where the network is, or such a point plus a tangent
    vector. Nothing here moves the network.
    """

    def __init__(self, network: Network, metric: RiemannianMetric, x: Any):
        if network._verified_on < min(examples_in(x), 2):
            network.verify(x)
        parts = terms_of(metric)
        if network.tangent_space.dim > LARGEST:
            raise InvalidSetting(
                f"InvalidSetting in Manifold: {network.tangent_space.dim} parameters; geodesics factorize the metric's "
                f"matrix at every point, and are made of {LARGEST} at most. geodesic_step is for larger networks."
            )
        self.network, self.metric, self.x = network, metric, x
        self.output: OutputMetric = network.likelihood if metric.output is None else metric.output
        self._share = sum(c for c, term in parts if isinstance(term, PulledBack))
        self._constant: Tensor | float = 0.0
        for c, term in parts:
            with network.observe(x, term.estimator(), output=self.output) as seen:
                g = term.at(seen)  # says what is wrong with the output, of one that is pulled back
            if not isinstance(term, PulledBack):
                self._constant = self._constant + c * g.matrix(self.here.data)

    def __repr__(self) -> str:
        return f"Manifold({self.network!r}, {self.metric!r})"

    @property
    def space(self) -> DirectSum:
        """The tangent space, the same at every point."""
        return self.network.tangent_space

    @property
    def here(self) -> Point:
        """Where the network's parameters are."""
        return self.network.parameters_point()

    def at(self, point: Point | None = None) -> InnerProduct:
        """The metric's value at a point, by default `here`."""
        matrix = self.matrix(self._coordinates(point)).detach()
        return Gram(self.space, matrix, name=f"{self.metric} at a point", validate=False)

    def matrix(self, theta: Tensor) -> Tensor:
        """The matrix of the metric at the coordinates of a point, (dim,), with a graph to these."""
        return self._pulled_back(*self._linearized(theta))

    def _linearized(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """J, (*outputs, dim), and z."""

        def value(at: Tensor) -> tuple[Tensor, Tensor]:
            z = outputs(self.network, self._parameters(at), self.x)
            return z, z

        J, z = torch.func.jacrev(value, has_aux=True)(theta)
        return J, z

    def _pulled_back(self, J: Tensor, z: Tensor) -> Tensor:
        columns = [applied(self.output, z, column).flatten() for column in J.unbind(-1)]
        return self._share / z.shape[0] * J.flatten(0, -2).mT @ torch.stack(columns, -1) + self._constant

    def christoffel(self, v: Vector, point: Point | None = None) -> Vector:
        """Γ(v, v) at a point: minus the acceleration of the geodesic that leaves it with velocity v."""
        acceleration = self._acceleration(self._coordinates(point), self._tangent(v))
        return Vector(self.space, -acceleration.reshape(self.space.shape))

    def geodesic(self, v: Vector, start: Point | None = None, steps: int = 32, tolerance: float = 1e-6) -> Path:
        """The geodesic that leaves a point, by default `here`, with velocity v, for a unit of time.

        So many Runge-Kutta steps of fourth order are taken. The speed of a geodesic is constant: a drift of more than
        the tolerance, relatively, is an error.
        """
        states = [(self._coordinates(start), self._tangent(v))]
        for _ in range(steps):
            states.append(runge_kutta(self._flow, states[-1], 1 / steps))
        before, after = (self._length(*state) for state in (states[0], states[-1]))
        drift = abs(after - before) / before if before else 0.0
        if not drift <= tolerance:
            raise NotConverged(
                f"NotConverged in geodesic: after {steps} steps the speed is {after:.8g}, and it was {before:.8g}. "
                f"Take more steps or a shorter vector; a point where the metric degenerates may lie on the way."
            )
        points = Point(self.here.space, torch.stack([theta for theta, _ in states]))
        velocities = torch.stack([w for _, w in states]).reshape(-1, *self.space.shape)
        return Path(points, Vector(self.space, velocities), before, drift)

    def exp(self, v: Vector, start: Point | None = None, steps: int = 32) -> Point:
        """Where the geodesic ends."""
        return self.geodesic(v, start, steps).end

    def log(self, end: Point, start: Point | None = None, steps: int = 32, tolerance: float = 1e-10) -> Vector:
        """The vector v with exp(v) = end, by shooting from the straight line of the coordinates.

        The miss is at most the tolerance, relative to the coordinates of the end where these are large.
        """
        a, b = self._coordinates(start), self._coordinates(end)

        def missed(w: Tensor, n: int) -> Tensor:
            state = (a, w)
            for _ in range(n):
                state = runge_kutta(self._flow, state, 1 / n)
            return state[0] - b

        w, inverse, size = b - a, None, max(1.0, float(b.abs().max()))
        with suppress(NotConverged, NonFinite, DegenerateMetric):  # few steps find most of the way
            w, inverse = shoot(lambda w: missed(w, max(6, steps // 4)), w, 1e-3 * size)
        w, _ = shoot(lambda w: missed(w, steps), w, tolerance * size, inverse)
        return Vector(self.space, w.reshape(self.space.shape))

    def distance(self, end: Point, start: Point | None = None, steps: int = 32) -> float:
        """The length of the geodesic that `log` finds."""
        return self._length(self._coordinates(start), self.log(end, start, steps).components)

    # Coordinates

    def _parameters(self, theta: Tensor) -> dict[str, Tensor]:
        blocks = {name: theta[at].view(self.space[name].shape) for name, at in self.space.slices.items()}
        return self.network.to_parameters(blocks)

    def _coordinates(self, point: Point | None) -> Tensor:
        here = self.here
        if point is None:
            return here.data
        if not isinstance(point, Point) or point.space != here.space:
            raise SpaceMismatch(
                f"SpaceMismatch in Manifold: expected a point of {here.space}, got {point}. Tangent vectors move "
                f"points: manifold.here + v is one."
            )
        return point.data.detach()

    def _tangent(self, v: Vector) -> Tensor:
        self.network._moves("Manifold", v)
        return v.components.detach()

    def _length(self, theta: Tensor, w: Tensor) -> float:
        return float((w @ self.matrix(theta).detach() @ w).clamp(min=0).sqrt())

    def _flow(self, state: State) -> State:
        return state[1], self._acceleration(*state)

    def _acceleration(self, theta: Tensor, w: Tensor) -> Tensor:
        """-Γ(w, w)"""
        z, first, second = along(self.network, self.x, self._parameters(theta), self._parameters(w))
        J, _ = self._linearized(theta)
        pull = J.flatten(0, -2).mT @ force(self.output, z, first, second).flatten()
        lowered, matrix = self._share / z.shape[0] * pull, self._pulled_back(J, z).detach()
        if not bool(lowered.isfinite().all()) or not bool(matrix.isfinite().all()):
            raise NonFinite("NonFinite in Manifold: the geodesic has left the points where the metric is finite.")
        factor, failed = torch.linalg.cholesky_ex(matrix)
        least = (len(matrix) * torch.finfo(matrix.dtype).eps) ** 0.5 * matrix.diagonal().clamp(min=0).sqrt()
        if bool(failed) or bool((factor.diagonal() <= least).any()):
            rank = int(torch.linalg.matrix_rank(matrix, hermitian=True))
            raise DegenerateMetric(
                f"DegenerateMetric in Manifold: {self.metric!r} has rank {rank} of {self.space.dim} at a point of the "
                f"geodesic, which then does not know where to go. Leave the kernel out of the parameters, or add a "
                f"named metric: {self.metric!r} + λ * EuclideanMetric().",
                self.space,
                rank,
            )
        return -torch.cholesky_solve(lowered[:, None], factor)[:, 0]


def terms_of(metric: RiemannianMetric) -> list[tuple[float, RiemannianMetric]]:
    """A metric as a sum of multiples of metrics whose derivatives are known."""
    if isinstance(metric, Sum):
        return [part for term in metric.terms for part in terms_of(term)]
    if isinstance(metric, Scaled):
        return [(metric.scalar * c, term) for c, term in terms_of(metric.of)]
    constant = isinstance(metric, (EuclideanMetric, FixedMetric))
    if constant or (isinstance(metric, PulledBack) and metric.structure in WHOLE):
        return [(1.0, metric)]
    raise InvalidSetting(
        f"InvalidSetting in Manifold: the derivatives of {metric!r} are not known. Fisher() and GaussNewton(...) have "
        f"geodesics, forms that are the same everywhere, and sums of these."
    )
