"""Subjects of one step: metrics, norms, and any function that gives a tangent vector."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...elements import Covector, Vector
from ...errors import DegenerateMetric
from ...inner_products import Euclidean, InnerProduct
from ...likelihoods import Likelihood
from ...metrics import RiemannianMetric
from ...metrics.base import value_at
from ...networks import Network
from ...networks.observation import Observation
from ...norms import Norm, Spectral, norm_at
from ...solvers import Solver
from .carriers import Carrier
from .naming import named
from .problems import CALL, InvalidSubject, Problem


class Subject(ABC):
    """A way of training. `run` gives the predictions at every step of a problem, (steps + 1, numbers).

    Laws: a run changes nothing outside a copy of the module; two runs of one problem are equal.
    """

    name: str
    steps: int
    """How many steps a run makes where nobody says otherwise."""
    brings_loss = False
    """Whether it computes a loss of its own, so that neither the loss nor its scale can be set from outside."""

    @abstractmethod
    def run(self, problem: Problem, steps: int, rate: float = 1.0) -> Tensor:
        """Predictions before and after every step. `rate` multiplies the learning rate where there is one."""

    has_rate = False
    """Whether `rate` means anything."""

    def __repr__(self) -> str:
        return self.name


class Direction(Subject):
    """One step: J v, shown as predictions at outputs moved along it. How far is chosen on the original problem."""

    steps = 1

    def __init__(self, function: Callable[..., Vector], name: str | None = None):
        self.function, self.name = function, name or named(function)
        self._far: dict[int, float] = {}

    def vector(self, problem: Problem) -> Vector:
        v = self.function(problem.network, problem.x, problem.y)
        if not isinstance(v, Vector) or v.lives_in != problem.network.tangent_space:
            raise InvalidSubject(
                f"InvalidSubject in {CALL}: {self.name} must return a tangent vector of the network, got {v!r}."
            )
        return v

    def differential(self, problem: Problem) -> Covector:
        df = problem.network.differential(problem.x, problem.y)
        return df if problem.loss_scale == 1 else problem.loss_scale * df

    def run(self, problem: Problem, steps: int, rate: float = 1.0) -> Tensor:
        return self.shown(problem, self.vector(problem))

    def shown(self, problem: Problem, v: Vector) -> Tensor:
        """Where the outputs go along v, at one step size for all problems."""
        z = problem.network.outputs(problem.seen).detach()
        if not bool(v.data.isfinite().all()):
            return torch.stack([problem.predicted(problem.to_original(z))] * 2) * torch.nan
        dz = problem.network.pushforward(v, problem.seen).detach()
        here, there = problem.to_original(z), problem.to_original(z + dz)
        far = self._far.setdefault(0, float((there - here).abs().max().clamp(min=1e-300)))
        return torch.stack([problem.predicted(here), problem.predicted(here + (here - there) / far)])

    def forget(self) -> None:
        """A new original problem."""
        self._far = {}


class Metric(Direction):
    """The natural gradient of a metric. One with a kernel is solved with a reference that is carried to twins."""

    def __init__(self, of: RiemannianMetric | Callable[[Network], RiemannianMetric], solver: Solver | None = None,
                 name: str | None = None):  # fmt: skip
        fixed = of if isinstance(of, RiemannianMetric) else None
        super().__init__(self._vector, name or (repr(of) if fixed is not None else named(of)))
        self.fixed, self.of, self.solver = fixed, of, solver
        self.degenerate: str | None = None

    def forget(self) -> None:
        super().forget()
        self.degenerate = None

    def at(self, problem: Problem) -> RiemannianMetric:
        """The metric on a problem, its data carried there."""
        if self.fixed is None:
            assert not isinstance(self.of, RiemannianMetric)
            made = self.of(problem.network)
            if not isinstance(made, RiemannianMetric):
                raise InvalidSubject(f"InvalidSubject in {CALL}: {self.name} must return a metric, got {made!r}.")
            return made
        fixed = self.fixed if problem.opened is None else carried(self.fixed, problem.opened)
        return fixed if problem.twin is None else carried(fixed, problem.twin)

    def observed(self, problem: Problem) -> tuple[RiemannianMetric, Observation]:
        metric = self.at(problem)
        return metric, problem.network.observe(problem.x, metric.estimator(problem.y), output=metric.output)

    def vector(self, problem: Problem) -> Vector:
        metric, observation = self.observed(problem)
        with observation:
            return self.solved(value_at(metric, observation), self.differential(problem), problem)

    def solved(self, g: InnerProduct, df: Covector, problem: Problem) -> Vector:
        """g♯(df), the same choice of a solution on every problem."""
        if self.degenerate is None:
            try:
                return g.sharp(df, self.solver)
            except DegenerateMetric as error:
                if problem.twin is not None:
                    raise
                self.degenerate = str(error).split(". ")[0]
        return g.sharp_modulo_kernel(df, self.reference(problem))

    def reference(self, problem: Problem) -> InnerProduct:
        """For which the solution is shortest: the original's coordinates, wherever the problem is."""
        return reference_on(problem)

    def _vector(self, network: Network, x: Any, y: Any) -> Vector:
        raise NotImplementedError


class OfNorm(Direction):
    """Steepest descent of a norm: dual norm times sharp. One with a kernel is solved with a carried reference."""

    def __init__(self, of: Norm | Callable[[Network], Norm], name: str | None = None):
        super().__init__(self._vector, name or (repr(of) if isinstance(of, Norm) else named(of)))
        self.of = of
        self._original: Norm | None = None
        self.degenerate = False

    def forget(self) -> None:
        super().forget()
        self._original, self.degenerate = None, False

    def at(self, problem: Problem, degenerate: bool = False) -> Norm:
        """The norm on a problem, as it was read at the original, its data carried there, at the parameters."""
        norm = self.of if self._original is None else self._original
        if not isinstance(norm, Norm):
            norm = norm(problem.network)
            if not isinstance(norm, Norm):
                raise InvalidSubject(f"InvalidSubject in {CALL}: {self.name} must return a norm, got {norm!r}.")
        if self._original is None and problem.twin is None:
            self._original = norm = norm.as_read(problem.network)
        for carrier in (problem.opened, problem.twin):
            if carrier is not None:
                norm = norm.with_forms(partial(carried, twin=carrier))
        if degenerate and isinstance(norm, Spectral) and norm.modulo_kernel is None:
            norm = Spectral(norm.between, norm.method, norm.scale, modulo_kernel=reference_on(problem))
        return norm_at(norm, problem.network, problem.x, problem.y)

    def vector(self, problem: Problem) -> Vector:
        df = self.differential(problem)
        try:
            return self._steepest(self.at(problem, self.degenerate), df)
        except DegenerateMetric:
            if self.degenerate or problem.twin is not None:
                raise
            self.degenerate = True
            return self._steepest(self.at(problem, True), df)

    def _steepest(self, norm: Norm, df: Covector) -> Vector:
        norm = norm.on(df.lives_in.dual)
        return norm.dual_norm(df) * norm.sharp(df)

    def _vector(self, network: Network, x: Any, y: Any) -> Vector:
        raise NotImplementedError


def reference_on(problem: Problem) -> InnerProduct:
    """For which solutions are shortest: the original's coordinates, wherever the problem is."""
    if problem.twin is None:
        return Euclidean(problem.network.tangent_space)
    return problem.twin.transport(Euclidean(problem.twin.original.tangent_space))


def carried(thing: Any, twin: Carrier) -> Any:
    """A metric at a twin: fixed forms and likelihoods inside it are carried there, constants stay what they name."""
    if isinstance(thing, InnerProduct):
        return twin.transport(thing)
    if isinstance(thing, Likelihood):
        return twin.output_metric(thing)
    if isinstance(thing, tuple):
        return tuple(carried(part, twin) for part in thing)
    if isinstance(thing, Mapping):
        return {key: carried(part, twin) for key, part in thing.items()}
    if isinstance(thing, RiemannianMetric) and dataclasses.is_dataclass(thing):
        old = {f.name: getattr(thing, f.name) for f in dataclasses.fields(thing) if f.init}
        new = {name: carried(value, twin) for name, value in old.items()}
        changed = any(new[name] is not old[name] and not same_tuple(new[name], old[name]) for name in old)
        return dataclasses.replace(thing, **new) if changed else thing
    return thing


def same_tuple(x: Any, y: Any) -> bool:
    return isinstance(x, tuple) and len(x) == len(y) and all(a is b for a, b in zip(x, y, strict=True))
