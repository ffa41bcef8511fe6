"""Whether an observation was made with the output geometry that a metric is about."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from ..errors import InvalidSetting, ObservationMismatch
from ..likelihoods import OutputMetric
from ..networks.observation import Observation


class SeesOutputs(Protocol):
    @property
    def output(self) -> OutputMetric | None: ...
    @property
    def sees_outputs(self) -> bool: ...


def check_output(metric: SeesOutputs, observation: Observation) -> None:
    if metric.output is not None and metric.sees_outputs and not same_output(metric.output, observation.output):
        raise ObservationMismatch(
            f"ObservationMismatch in {metric!r}: it is about {metric.output!r} on the outputs, and the observation was "
            f"made with {observation.output!r}. Observe with network.observe(x, output=metric.output), or leave that "
            f"to natural_gradient."
        )


def one_output(metrics: Sequence[SeesOutputs]) -> OutputMetric | None:
    """The output geometry of metrics that are to see one observation."""
    seeing = [m for m in metrics if m.sees_outputs]
    for m in seeing[1:]:
        if not same_output(m.output, seeing[0].output):
            names = ["the likelihood's Fisher" if x.output is None else repr(x.output) for x in (seeing[0], m)]
            raise InvalidSetting(
                f"InvalidSetting in +: {seeing[0]!r} is about {names[0]} on the outputs, {m!r} about {names[1]}, and "
                f"one observation has one. Add the inner products of two observations instead."
            )
    return seeing[0].output if seeing else None


def same_output(a: OutputMetric | None, b: OutputMetric | None) -> bool:
    if a is None or b is None or type(a) is not type(b) or not dataclasses.is_dataclass(a):
        return a is b
    return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))


def same(x: object, y: object) -> bool:
    if isinstance(x, Tensor) or isinstance(y, Tensor):
        return isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape == y.shape and bool((x == y).all())
    return x is y or bool(x == y)
