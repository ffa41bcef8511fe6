"""Natural gradient where some parameters lie on manifolds, in the ordinary loop of `optim.NaturalGradient`.

Two policies of the one optimizer do it: how its metric is solved, on the tangent space instead of on all components,
and how far it goes, along a retraction instead of a straight line. What it remembers comes along by the projection that
geomstats has to the new tangent space: the last displacement by it, an average of gradients by its transpose. An
average of metrics is of components, and is restricted to the tangent space where it is used.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...elements import Covector, Vector
from ...errors import InvalidSetting
from ...factorizations import Factorization
from ...inner_products import InnerProduct
from ...likelihoods import Likelihood
from ...networks import Network
from ...networks.structure import Block, plain_module
from ...optim import GeodesicCorrected, Midpoint, NaturalGradient, StepRule
from ...optim.steps import Displacement, Situation
from ...solvers import Auto, Solver, SolveReport
from ...solvers.base import Solvable, relative_residual
from ...solvers.iterative import IterativeFactor
from ...spaces import VectorSpace
from .places import OnManifold, declared, in_double
from .tangent import Chart, InBasis, chart_of, tangent_space

CALL = "ManifoldNaturalGradient"
DENSE_UP_TO = 2048
"""Larger tangent spaces are solved by conjugate gradients: they are new at every step."""


class Places:
    """Which parameters of one network lie where."""

    def __init__(self, manifolds: Mapping[str, OnManifold]):
        self.manifolds = dict(manifolds)
        self._network: Network | None = None

    @property
    def network(self) -> Network:
        if self._network is None:
            raise InvalidSetting(
                f"InvalidSetting in OnTangentSpaces: it is part of {CALL}(model, likelihood, manifolds), and "
                f"solves for that model."
            )
        return self._network

    def attach(self, network: Network) -> None:
        self._network = network
        self.check()
        with in_double():
            for name, place in self.manifolds.items():
                place.check_retraction(CALL, name, network.parameters[name])

    def check(self) -> None:
        """That all parameters are where they belong."""
        parameters = self.network.parameters
        with in_double():
            self._check(parameters)

    def _check(self, parameters: Mapping[str, Tensor]) -> None:
        for name in self.manifolds.keys() & parameters.keys():  # one that is gone, the network speaks of
            self.manifolds[name].check(CALL, name, parameters[name])

    def onto_tangent(self, df: Covector) -> Covector:
        """The covector that is equal on tangent vectors, and zero on what geomstats' projection leaves out."""
        network, parts = self.network, df.to_parameters()
        with in_double():
            for name, place in self.manifolds.items():
                p = network.parameters[name]
                pulled = place.pulled_back(place.points(parts[name]), place.mended(place.points(p)))
                parts[name] = place.held(pulled, p).to(parts[name])
        return network.covector(parts)

    def blocks_on(self, space: VectorSpace) -> list[tuple[Block, slice]]:
        """The blocks that a form on this space is about, and where they are in its components."""
        network = self.network
        if space == network.tangent_space:
            slices = network.tangent_space.slices
            return [(block, slices[path]) for path, block in network.blocks.items()]
        return [(block, slice(0, space.dim)) for block in network.blocks.values() if block.space == space][:1]


@dataclass(frozen=True)
class OnTangentSpaces(Solver):
    """Solves on the tangent spaces of parameters that lie on manifolds, by another solver or as the forms find best.

    The vector returned is the one of the tangent space on which flat(v) and ξ agree there, and the residual is what
    they differ by there. A block with no such parameter is solved as it always is.
    """

    places: Places = field(repr=False, compare=False)
    of: Solver | None = None

    def factorize(self, g: Solvable, like: Tensor | None = None) -> Factorization:
        """Nothing is kept: the tangent space is where the parameters are when it is asked for."""
        return IterativeFactor(self, g)  # type: ignore[arg-type]

    def run(self, g: Solvable, x: Tensor) -> tuple[Tensor, SolveReport]:
        blocks = self.places.blocks_on(g.space)
        names = {name for block, _ in blocks for name in block.names.values()}
        placed = {name: place for name, place in self.places.manifolds.items() if name in names}
        if not placed:
            if self.of is not None:
                return self.of.run(g, x)
            value = g.factorization(x).solve(x)
            return value, SolveReport(self.brief, relative_residual(g, value, x), note="on no manifold")
        assert isinstance(g, InnerProduct)
        parameters = self.places.network.parameters
        with in_double():
            charts = {name: chart_of(name, place, parameters[name]) for name, place in placed.items()}
        own = {name for name, place in placed.items() if place.metric == "own"}
        value, residual = torch.zeros_like(x), 0.0
        if names != own:
            i = tangent_space(g.space, blocks, charts, still=own)
            restricted, xi = g.pullback(i), i._transpose(x)
            v = restricted.sharp(Covector(i.domain, xi), self.of or Auto(limit=DENSE_UP_TO)).components
            value, residual = i._apply(v), relative_residual(restricted, v, xi)
        for name in own:
            i = tangent_space(g.space, blocks, charts, still=names - {name})
            form = own_form(name, charts[name])
            xi = i._transpose(x)
            v = form.sharp(Covector(form.space, xi.reshape(*xi.shape[:-1], *form.space.shape))).components
            value, residual = value + i._apply(v), max(residual, relative_residual(form, v, xi))
        return value, SolveReport(self.brief, residual, note=f"on the tangent space of {', '.join(placed)}")


def own_form(name: str, chart: Chart) -> InnerProduct:
    """The manifold's own metric on the tangent space of one parameter."""
    if not isinstance(chart, InBasis):
        raise InvalidSetting(
            f"InvalidSetting in {CALL}: {name!r} is a point of {chart.place.size} numbers on {chart.place.name}, too "
            f"large for metric='own'. Use metric='pulled back', with EuclideanMetric() for that of the components."
        )
    return chart.gram(name)


@dataclass(frozen=True)
class Retracted(StepRule):
    """The displacement of another rule, taken along retractions where parameters lie on manifolds.

    Momentum is the last displacement projected to the new tangent space. How long a step may be is said where the
    parameter's place is, and one that leads out of an open set is halved until it does not, for each point.
    """

    of: StepRule
    places: Places = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("needs_batch", "needs_metric", "smoothing"):
            object.__setattr__(self, name, getattr(self.of, name))

    def displacement(self, here: Situation) -> Displacement:
        network, manifolds = here.batch.network, self.places.manifolds
        held = {name: network.parameters[name] for name in manifolds}
        with in_double():
            points = {name: place.mended(place.points(held[name])) for name, place in manifolds.items()}
        before = here.before
        if before is not None:
            tangent = self._tangent(points, before)
            before = replaced(network, before, {k: manifolds[k].held(v, held[k]) for k, v in tangent.items()})
        chosen = self.of.displacement(replace(here, before=before))
        if not bool(chosen.vector.data.isfinite().all()):
            return chosen  # the step is skipped
        tangent = self._tangent(points, chosen.vector)
        self._check_tangent(chosen.vector, tangent)
        secants = {}
        with in_double():
            for name, v in tangent.items():
                end = manifolds[name].held(manifolds[name].stepped(v, points[name], held[name].dtype), held[name])
                secants[name] = end - held[name]  # of rounded ends: the parameter will be this, to the last bit or two
        return replace(chosen, vector=replaced(network, chosen.vector, secants))

    def _tangent(self, points: Mapping[str, Tensor], v: Vector) -> dict[str, Tensor]:
        """The parts of a vector at these points, projected to their tangent spaces."""
        parts, manifolds = v.to_parameters(), self.places.manifolds
        return {
            name: manifolds[name].to_tangent(manifolds[name].points(parts[name]), at) for name, at in points.items()
        }

    def _check_tangent(self, v: Vector, tangent: Mapping[str, Tensor]) -> None:
        parts = v.to_parameters()
        for name, part in tangent.items():
            given = self.places.manifolds[name].points(parts[name])
            off, size = float((given - part).abs().max()), float(given.abs().max())
            if off > 1e-3 * size:
                raise InvalidSetting(
                    f"InvalidSetting in {CALL}: {self.of!r} proposes a step of {name!r} that is not tangent to "
                    f"{self.places.manifolds[name].name}: {off / size:.0e} of it points away. Use a rule that goes "
                    f"along the proposal and the last displacement, as QuadraticModel(), Constant() or KLClip()."
                )


def replaced(network: Network, v: Vector, parts: Mapping[str, Tensor]) -> Vector:
    """The vector with these parts of parameters instead."""
    found = v.to_parameters()
    return network.vector({name: parts[name].to(old) if name in parts else old for name, old in found.items()})


def ManifoldNaturalGradient(
    model: nn.Module,
    likelihood: Likelihood,
    manifolds: Mapping[str, Any],
    step_size: StepRule | None = None,
    solver: Solver | None = None,
    **settings: Any,
) -> NaturalGradient:
    """`NaturalGradient` where some parameters lie on manifolds of geomstats, beside ordinary ones.

    `manifolds` says which, by name: a manifold, or `OnManifold(...)` with what is to be different. The metric is the
    optimizer's, damping included, restricted to the tangent space, or the manifold's own; layers with no such
    parameter keep their structure. Steps are taken along a retraction, momentum is projected to the new tangent space.
    A parameter that is not on its manifold is refused, here and at every step; see `project_`. All other settings are
    those of `NaturalGradient`; weight decay and averages of iterates lead off a manifold and are refused.
    """
    usual = inspect.signature(NaturalGradient).parameters["step_size"].default
    trained = {name: p for name, p in plain_module(model).named_parameters() if p.requires_grad}
    places = Places(declared(CALL, manifolds, trained, moves=True))
    rule = usual if step_size is None else step_size
    if not isinstance(rule, StepRule) or isinstance(rule, (GeodesicCorrected, Midpoint)):
        raise InvalidSetting(
            f"InvalidSetting in {CALL}: step_size={rule!r}, expected a rule that goes along the proposal and the last "
            f"displacement, as QuadraticModel(), Constant() or KLClip()."
        )
    if settings.get("averaging") is not None:
        raise InvalidSetting(
            f"InvalidSetting in {CALL}: averaging={settings['averaging']!r}: the average of points of a manifold is "
            f"not one. Leave it out."
        )
    opt = NaturalGradient(
        model, likelihood, solver=OnTangentSpaces(places, solver), step_size=Retracted(rule, places), **settings
    )
    try:
        places.attach(opt.network)
        check_whole(opt, places)
        check_decay(opt, places)
    except BaseException:
        opt.close()
        raise

    def before_each_step(*_: Any) -> None:
        places.check()
        check_decay(opt, places)

    opt.register_step_pre_hook(before_each_step)
    opt.gradients.onto = places.onto_tangent
    return opt


def check_decay(opt: NaturalGradient, places: Places) -> None:
    parameters = opt.network.parameters
    for group in opt.param_groups:
        held = [name for name in places.manifolds if any(p is parameters.get(name) for p in group["params"])]
        if group["weight_decay"] and held:
            raise InvalidSetting(
                f"InvalidSetting in {CALL}: weight_decay={group['weight_decay']} shrinks {held[0]!r} off "
                f"{places.manifolds[held[0]].name}. Give the ordinary parameters a group of their own: params=[...]."
            )


def check_whole(opt: NaturalGradient, places: Places) -> None:
    for name in places.manifolds:
        blocks = [path for path, block in opt.network.blocks.items() if name in block.names.values()]
        if len(blocks) > 1:
            raise InvalidSetting(
                f"InvalidSetting in {CALL}: {name!r} is shared out between {', '.join(map(repr, blocks))}, and a "
                f"point of {places.manifolds[name].name} lies in one layer. Hold it as a parameter of its own."
            )
