"""What can be checked: metrics, norms, directions, optimizers and updates, each a way of running a problem.

    optimizer(lambda model: torch.optim.Adam(model.parameters(), lr=1e-2))
    optimizer(torch.optim.Adagrad)                                  # of the parameters
    optimizer(lambda model, likelihood: NaturalGradient(model, likelihood))
    update(f)                                                       # f(model, x, y) moves the parameters in place
    metric(lambda network: KFAC() + FixedMetric(form_on(network)))  # constants that depend on the network
    norm(lambda network: Spectral(between=KFAC() + FixedMetric(form_on(network))))
    direction(lambda network, x, y: vector)                         # any tangent vector

Constants inside a metric given as a value are *transported* to twins (`FixedMetric`, likelihoods); a `EuclideanMetric`
names the coordinates of whatever network it meets, and so does all that a function makes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ...elements import Vector
from ...metrics import RiemannianMetric
from ...networks import Network
from ...norms import Norm
from ...solvers import Solver
from .directions import Direction as Direction
from .directions import Metric as Metric
from .directions import OfNorm as OfNorm
from .directions import Subject as Subject
from .naming import check_callable
from .problems import CALL, InvalidSubject
from .training import OptimizerFactory as OptimizerFactory
from .training import Training as Training
from .training import Update as Update


def optimizer(factory: Callable[..., Any], name: str | None = None) -> Subject:
    """A factory of torch optimizers: of the model, of the model and its `likelihood`, or of the parameters."""
    check_callable(factory, "optimizer")
    if isinstance(factory, type) and issubclass(factory, torch.optim.Optimizer):
        first = next(iter(inspect.signature(factory).parameters), "")
        return OptimizerFactory(factory, name or factory.__name__, "parameters" if "param" in first else "model")
    return OptimizerFactory(factory, name)


def update(function: Callable[[nn.Module, Any, Any], Any], name: str | None = None) -> Subject:
    """A function f(model, x, y) that makes one step on the model's parameters, in place."""
    check_callable(function, "update")
    return Update(function, name)


def metric(
    of: RiemannianMetric | Callable[[Network], RiemannianMetric], solver: Solver | None = None, name: str | None = None
) -> Subject:
    """A metric, or a function that makes one for a network; `solver` is how it is inverted."""
    return Metric(of, solver, name)


def norm(of: Norm | Callable[[Network], Norm], name: str | None = None) -> Subject:
    """A norm, or a function that makes one for a network; what it is made of is carried to twins."""
    return OfNorm(of, name)


def direction(function: Callable[[Network, Any, Any], Vector], name: str | None = None) -> Subject:
    """A function f(network, x, y) that gives a tangent vector."""
    check_callable(function, "direction")
    return Direction(function, name)


def subject_of(given: object) -> Subject:
    """Any subject as one; a bare function is a factory of optimizers."""
    if isinstance(given, Subject):
        return given
    if isinstance(given, RiemannianMetric):
        return Metric(given)
    if isinstance(given, Norm):
        return OfNorm(given)
    if isinstance(given, torch.optim.Optimizer):
        raise InvalidSubject(
            f"InvalidSubject in {CALL}: {type(given).__name__} is an optimizer at work, and one is made for every run. "
            f"Give what makes it: optimizer(lambda model: {type(given).__name__}(model.parameters(), ...))."
        )
    if isinstance(given, type) and issubclass(given, RiemannianMetric):
        raise InvalidSubject(f"InvalidSubject in {CALL}: give an instance of the metric: {given.__name__}().")
    if callable(given) and not isinstance(given, nn.Module):
        return optimizer(given)
    raise InvalidSubject(
        f"InvalidSubject in {CALL}: expected a metric, a norm, optimizer(factory), update(f), or a function of the "
        f"parameters that returns a torch optimizer, got {given!r}."
    )
