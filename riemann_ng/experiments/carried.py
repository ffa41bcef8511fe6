"""Methods that are begun in a network or in its twin, with what they take along, and the paths that they go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..elements import Covector, Vector
from ..inner_products import InnerProduct
from ..metrics import FixedMetric, MetricAverage, NamedFrame, RiemannianMetric, RootMeanSquare
from ..natural_gradient import natural_gradient
from ..networks import Network
from ..norms import Spectral, norm_at
from ..reparametrize import Twin
from .framed import Problem

Method = Callable[[Network, Twin | None], "Stepper"]
"""A method begun in a network, or in its twin, with what it takes along there."""
Stepper = Callable[[Tensor, Tensor], Vector]
"""What the method subtracts from the parameters, for one batch."""


def sharp_of(metric: RiemannianMetric, rate: float) -> Method:
    return lambda network, twin: lambda x, y: natural_gradient(network, metric, x, y) * rate


def spectral(between: RiemannianMetric | None, rate: float) -> Method:
    """Steps of norm `rate`."""

    def begun(network: Network, twin: Twin | None) -> Stepper:
        return lambda x, y: norm_at(Spectral(between), network, x).sharp(network.differential(x, y)) * rate

    return begun


def adam(network: Network, metric: RiemannianMetric, rate: float) -> Stepper:
    """Both moments, corrected for their start."""
    average, kept = MetricAverage(metric, 0.99), dict[str, Covector]()
    count = 0

    def step(x: Tensor, y: Tensor) -> Vector:
        nonlocal count
        count += 1
        with network.observe(x, metric.estimator(y)) as seen:
            g = average.update(seen)
        df = network.differential(x, y)
        kept["mean"] = 0.1 * df if count == 1 else 0.9 * kept["mean"] + 0.1 * df
        return g.sharp((1 / (1 - 0.9**count)) * kept["mean"]) * rate

    return step


def damped_by(
    start: InnerProduct,
    damp: Callable[[RiemannianMetric], RiemannianMetric],
    rate: float,
    of: Callable[[RiemannianMetric, float], Method] = sharp_of,
) -> Method:
    """K-FAC damped by a form that was made in the network, and goes along to its twins."""

    def begun(network: Network, twin: Twin | None) -> Stepper:
        form = start if twin is None else twin.transport(start)
        return of(damp(FixedMetric(form, "K-FAC at the start")), rate)(network, twin)

    return begun


def adam_in(frame: NamedFrame, rate: float) -> Method:
    def begun(network: Network, twin: Twin | None) -> Stepper:
        assert isinstance(frame.form, InnerProduct)
        there = frame if twin is None else NamedFrame(twin.transport(frame.form), frame.name)
        return adam(network, RootMeanSquare(1e-8, frame=there), rate)

    return begun


def plain_adam(rate: float) -> Method:
    return lambda network, twin: adam(network, RootMeanSquare(1e-8), rate)


@contextmanager
def put_back(network: Network) -> Iterator[None]:
    kept = {name: p.detach().clone() for name, p in network.parameters.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, p in network.parameters.items():
                p.copy_(kept[name])


def path(problem: Problem, method: Method, twin: Twin | None = None, steps: int = 5) -> Tensor:
    """Predictions on other inputs at the start and after every step, in the network or in a twin."""
    network = problem.network if twin is None else twin.network
    x, others = (t if twin is None else twin.inputs(t) for t in (problem.x, problem.others))
    found = []
    with put_back(network):
        step = method(network, twin)
        for k in range(steps + 1):
            z = network.outputs(others)
            found.append(torch.sigmoid(z if twin is None else twin.to_original(z)).detach())
            if k < steps:
                network.move_(step(x, problem.y), -1.0)
    return torch.stack(found)
