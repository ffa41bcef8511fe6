"""Parameters that lie on manifolds of geomstats: where they may be, how far off they are, how they move.

Everything here is computed in double precision on the CPU, whatever the parameter is in; what comes back is rounded to
the parameter's precision once. Points are (points, *shape of the manifold): a parameter may hold many, a row each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ...elements import describe
from ...errors import DtypeMismatch, InvalidSetting, NonFinite, RiemannError, ShapeMismatch
from .backend import FlatManifold, Hyperboloid, Manifold, PoincareBall, SPDMatrices, VectorSpaceOpenSet, geomstats_in

Retraction = Callable[[Tensor, Tensor], Tensor]
"""From tangent vectors and the points they start at, in this order as in geomstats, to points."""
Measure = Literal["pulled back", "own"]
HALVINGS = 12
"""How often a step is halved that leads out of an open set, before it is not taken."""
FROM_THE_EDGE = 1e-5
"""How far inside the ball a point is put that was outside."""


def in_double() -> AbstractContextManager[None]:
    """geomstats in double precision; once around several calls is faster than in each."""
    return geomstats_in(torch.float64)


class OffManifold(RiemannError):
    """A parameter that is not on the manifold it was declared to lie on."""


@dataclass(frozen=True, eq=False)
class OnManifold:
    """Where a parameter lies: a manifold of geomstats, how steps are measured there, and how they are taken.

    `metric` is "pulled back", the optimizer's metric restricted to the tangent space, or "own", that of the manifold.
    `retraction` is "exp", the exponential map of the manifold's own metric, "projection", the sum projected back, or a
    function of tangent vectors and points that is one, as `StiefelCanonicalMetric.retraction`. `transposed` is for a
    parameter that holds points with their last two dimensions swapped, as the weight of a linear layer holds frames of
    its inputs. A parameter that is further off than `tolerance`, relative to its size, is refused.

    A step of one point is at most `longest` in the manifold's own metric, if it has one: a retraction is close to the
    step for so long, and at the edge of a hyperbolic plane no length in components is short. None is no bound.
    """

    manifold: Any
    metric: Measure = "pulled back"
    retraction: Literal["exp", "projection"] | Retraction = "exp"
    transposed: bool = False
    longest: float | None = 1.0
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        if not isinstance(self.manifold, Manifold):
            raise InvalidSetting(
                f"InvalidSetting in OnManifold: expected a manifold of geomstats, an instance, as Hypersphere(2), got "
                f"{self.manifold!r}."
            )
        if self.metric not in get_args(Measure):
            raise InvalidSetting(
                f"InvalidSetting in OnManifold: metric={self.metric!r}, expected 'pulled back' for the optimizer's or "
                f"'own' for that of {self.name}."
            )
        if self.retraction not in ("exp", "projection") and not callable(self.retraction):
            raise InvalidSetting(
                f"InvalidSetting in OnManifold: retraction={self.retraction!r}, expected 'exp', 'projection' or a "
                f"function of (tangent vectors, points)."
            )
        if (self.retraction == "exp" or self.metric == "own") and self._equipped is None:
            asked = "retraction='exp'" if self.retraction == "exp" else "metric='own'"
            raise InvalidSetting(
                f"InvalidSetting in OnManifold: {asked} needs a metric, and this {self.name} has none. Equip it, "
                f"manifold.equip_with_metric(), or use retraction='projection' and metric='pulled back'."
            )
        if self.longest is not None and not 0 < self.longest < math.inf:
            raise InvalidSetting(
                f"InvalidSetting in OnManifold: longest={self.longest!r}, expected a positive length, or None."
            )
        if not 0 < self.tolerance < 1:
            raise InvalidSetting(
                f"InvalidSetting in OnManifold: tolerance={self.tolerance!r}, expected a number in (0, 1)."
            )

    @property
    def name(self) -> str:
        return type(self.manifold).__name__.lstrip("_")

    @property
    def _equipped(self) -> Any:
        return self.manifold.__dict__.get("metric")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one point, as the parameter holds it."""
        shape = tuple(self.manifold.shape)
        return (*shape[:-2], shape[-1], shape[-2]) if self.transposed else shape

    @property
    def size(self) -> int:
        """How many numbers one point is."""
        return math.prod(self.manifold.shape)

    # From the parameter to points, and back

    def points(self, data: Tensor) -> Tensor:
        """What a parameter holds, as (points, *shape) in double precision."""
        data = data.detach().mT if self.transposed else data.detach()
        return data.to("cpu", torch.float64).reshape(-1, *self.manifold.shape)

    def held(self, points: Tensor, like: Tensor) -> Tensor:
        """Points as the parameter holds them."""
        last = len(self.manifold.shape)
        data = points.reshape(*like.shape[: like.ndim - last], *self.manifold.shape)
        return (data.mT if self.transposed else data).to(like.device, like.dtype)

    # What geomstats says

    def mended(self, points: Tensor) -> Tensor:
        """Points on the manifold, of points that rounding has taken off it; on an open set, in its vector space."""
        with in_double():
            if isinstance(self.manifold, Hyperboloid):  # geomstats divides by the first coordinate here
                first = (1 + points[..., 1:].square().sum(-1, keepdim=True)).sqrt()
                return torch.cat([first, points[..., 1:]], dim=-1)
            if isinstance(self.manifold, VectorSpaceOpenSet):
                flat: Tensor = self.manifold.embedding_space.to_tangent(points, points)
                return flat
            if isinstance(self.manifold, FlatManifold):
                return points
            try:
                on: Tensor = self.manifold.projection(points)
            except NotImplementedError:  # then geomstats has no way back
                return points
            return on

    def belong(self, points: Tensor, margin: float = 0.0) -> Tensor:
        """Which mended points belong: on open sets that is a question. Where numbers fail close to an edge, or far out,
        a margin keeps away from there.
        """
        finite = points.isfinite().flatten(1).all(-1)
        if isinstance(self.manifold, Hyperboloid):
            return finite & (margin * points[..., 0].square() < 1)
        if not isinstance(self.manifold, VectorSpaceOpenSet) or not bool(finite.all()):
            return finite
        with in_double():
            found = torch.as_tensor(self.manifold.belongs(points)).expand(len(points))
        if isinstance(self.manifold, SPDMatrices):
            values = torch.linalg.eigvalsh(points)
            found = found & (values[..., 0] > margin * values[..., -1])
        if isinstance(self.manifold, PoincareBall):
            found = found & (1 - points.square().sum(-1) > margin)
        return found

    def inside(self, points: Tensor) -> bool:
        return bool(self.belong(points).all())

    def projected(self, points: Tensor) -> Tensor:
        """The points put on the manifold, from wherever they are."""
        mended = self.mended(points)
        if self.inside(mended):
            return mended
        if isinstance(self.manifold, PoincareBall):  # geomstats leaves negative coordinates where they are
            length = torch.linalg.vector_norm(points, dim=-1, keepdim=True)
            return points * ((1 - FROM_THE_EDGE) / length).clamp(max=1)
        with in_double():
            found: Tensor = self.manifold.projection(points)
        return found

    def distance(self, points: Tensor) -> float:
        """How far the worst component is from where the projection puts it, relative to the largest one or to 1."""
        size = max(1.0, float(points.abs().max()))
        off = float((points - self.mended(points)).abs().max()) / size
        if off <= self.tolerance and not self.inside(self.mended(points)):
            off = max(off, float((points - self.projected(points)).abs().max()) / size)
            return max(off, 2 * self.tolerance)  # on the edge itself
        return off

    def to_tangent(self, vectors: Tensor, points: Tensor) -> Tensor:
        with in_double():
            tangent: Tensor = self.manifold.to_tangent(vectors, points)
        return tangent

    def pulled_back(self, covectors: Tensor, points: Tensor) -> Tensor:
        """The covectors v ↦ ξ(to_tangent(v)): equal on tangent vectors, and zero on what the projection leaves out."""
        with torch.enable_grad():
            start = torch.zeros_like(covectors, requires_grad=True)
            (pulled,) = torch.autograd.grad(self.to_tangent(start, points), start, covectors)
        return pulled

    def retracted(self, vectors: Tensor, points: Tensor) -> Tensor:
        """Where tangent vectors lead from points; NaN, or off the manifold, where they lead out of an open set."""
        if self.retraction == "projection":
            return self.mended(points + vectors)
        with in_double():
            move = self.manifold.metric.exp if self.retraction == "exp" else self.retraction
            try:
                reached = move(vectors, points)
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
                return torch.full_like(points, math.nan)
        return self.mended(reached) if bool(reached.isfinite().all()) else reached

    def stepped(self, vectors: Tensor, points: Tensor, dtype: torch.dtype) -> Tensor:
        """Where steps end that stay on the manifold: no longer than the longest, and on open sets off the edge.

        A step that leads out is halved until it does not, or not taken.
        """
        vectors = self.shortened(vectors, points)
        margin = max(1e-10, 100 * torch.finfo(dtype).eps)
        share = torch.ones(len(points), *[1] * (points.ndim - 1), dtype=points.dtype)
        for _ in range(HALVINGS):
            ends = self.retracted(share * vectors, points)
            well = self.belong(ends, margin).reshape(share.shape)
            if bool(well.all()):
                return ends
            share = torch.where(well, share, share / 2)
        return torch.where(well, ends, points)

    def shortened(self, vectors: Tensor, points: Tensor) -> Tensor:
        """Tangent vectors, each brought to the longest that a step may be."""
        if self.longest is None or self._equipped is None:
            return vectors
        with in_double():
            length = self.manifold.metric.squared_norm(vectors, points).clamp(min=0).sqrt()
        share = (self.longest / length.clamp(min=torch.finfo(torch.float64).tiny)).clamp(max=1)
        return vectors * share.reshape(-1, *[1] * (vectors.ndim - 1))

    # Checks

    def check(self, call: str, name: str, data: Tensor) -> None:
        """That what a parameter holds is on the manifold."""
        last = len(self.manifold.shape)
        if tuple(data.shape[data.ndim - last :]) != self.shape or data.ndim < last:
            swapped = (*self.shape[:-2], *self.shape[-2:][::-1])
            hint = ""
            if last > 1 and tuple(data.shape[data.ndim - last :]) == swapped:
                hint = f" It holds them transposed: OnManifold(..., transposed={not self.transposed})."
            raise ShapeMismatch(
                f"ShapeMismatch in {call}: points of {self.name} are {list(self.shape)}, and {name!r} is "
                f"{list(data.shape)}; expected these as its last dimensions.{hint}"
            )
        if data.dtype not in (torch.float32, torch.float64):
            raise DtypeMismatch(
                f"DtypeMismatch in {call}: a point of {self.name} is held in float32 or float64, got "
                f"{describe(data)} for {name!r}; fewer digits do not tell whether it is one."
            )
        points = self.points(data)
        if not bool(points.isfinite().all()):
            raise NonFinite(
                f"NonFinite in {call}: {name!r}, on {self.name}, holds NaN or infinity. Load a good state; nothing "
                f"was changed."
            )
        off = self.distance(points)
        if off > self.tolerance:
            raise OffManifold(
                f"OffManifold in {call}: {name!r} is {off:.1e} off {self.name}, more than {self.tolerance:.0e}, "
                f"relative to its size. Something else has written to it, or it was never there. Put it on the "
                f"manifold with interop.geomstats.project_(model, {{{name!r}: ...}}), or load a state that is; nothing "
                f"was changed."
            )

    def check_retraction(self, call: str, name: str, data: Tensor) -> None:
        """That the retraction exists, stays where it is for no step, and sets out along the step."""
        points = self.mended(self.points(data))
        shape = points.shape
        generator = torch.Generator().manual_seed(7)
        any_two = torch.randn(2, *shape, generator=generator, dtype=torch.float64)  # one may be normal to the manifold
        one, two = (self.to_tangent(v, points) for v in any_two)
        size, other = (v.flatten(1).norm(dim=1).reshape(-1, *[1] * (v.ndim - 1)) for v in (one, two))
        v = 1e-4 * torch.where(size > other, one / size, two / other)
        edge = 1.0
        while not self.inside(points + edge * v) and edge > 1e-12:  # close to the edge of an open set
            edge /= 2
        v = edge * v
        try:
            still, ahead = self.retracted(torch.zeros_like(v), points), self.retracted(v, points)
        except NotImplementedError as cause:
            raise InvalidSetting(
                f"InvalidSetting in {call}: {self.name} has no retraction {self.retraction!r} in geomstats, for "
                f"{name!r} ({cause}). Use retraction='projection', or a function of (tangent vectors, points)."
            ) from cause
        length = float(v.abs().max())
        missed = max(float((still - points).abs().max()), float((ahead - points - v).abs().max()))
        if still.shape != shape or not missed <= 0.1 * length:
            raise InvalidSetting(
                f"InvalidSetting in {call}: retraction={self.retraction!r} is none at {name!r}: along a step of "
                f"{length:.0e} it ends {missed:.1e} from where the step leads. It takes (tangent vectors, points), "
                f"is still for no step, and sets out with the step's own velocity."
            )


def declared(
    call: str, manifolds: Mapping[str, Any], parameters: Mapping[str, Tensor], moves: bool = False
) -> dict[str, OnManifold]:
    """What a user said of parameters, checked against those that there are."""
    if not isinstance(manifolds, Mapping) or not manifolds:
        raise InvalidSetting(
            f"InvalidSetting in {call}: manifolds={manifolds!r}, expected one or more by parameter: "
            f"{{'0.weight': Stiefel(5, 2)}}."
        )
    if unknown := [name for name in manifolds if name not in parameters]:
        raise InvalidSetting(
            f"InvalidSetting in {call}: no trained parameter is called {', '.join(map(repr, unknown))}; there are "
            f"{', '.join(map(repr, parameters))}."
        )
    retraction: Literal["exp", "projection"] = "exp" if moves else "projection"
    given = manifolds.items()
    return {name: m if isinstance(m, OnManifold) else OnManifold(m, retraction=retraction) for name, m in given}


@torch.no_grad()
def project_(model: nn.Module, manifolds: Mapping[str, Any]) -> None:
    """Puts parameters on their manifolds, in place: to start with, or where something else has written to them.

    Most manifolds take the nearest point; the hyperboloid keeps all but the first coordinate; a symmetric matrix has
    its eigenvalues made positive, just so: start from a good one.
    """
    parameters = dict(model.named_parameters())
    found = {}
    for name, place in declared("project_", manifolds, parameters).items():
        p = parameters[name]
        with suppress(OffManifold):
            place.check("project_", name, p)
        points = place.projected(place.points(p))
        if not place.inside(points) or place.distance(points) > place.tolerance:
            raise OffManifold(
                f"OffManifold in project_: geomstats has no projection to {place.name} that takes {name!r} there. Set "
                f"it to a point, as manifold.random_point(); nothing was changed."
            )
        found[name] = place.held(points, p)
    for name, value in found.items():
        parameters[name].copy_(value)


def constraint_errors(model: nn.Module, manifolds: Mapping[str, Any]) -> dict[str, float]:
    """How far parameters are off their manifolds: the largest component of the way back, relative to their size."""
    parameters = dict(model.named_parameters())
    places = declared("constraint_errors", manifolds, parameters)
    return {name: place.distance(place.points(parameters[name])) for name, place in places.items()}
