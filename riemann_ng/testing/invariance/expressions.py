"""The second refuter, for metrics: move the data of the expression, and leave the network where it is.

What a metric saw of a batch is carried to the spaces of a twin, sample by sample; its constants are not. The step found
there and carried back is e(r·d; c), which is r·e(d; r⁻¹·c): the constants have moved. No twin network is run, so a
twin that is not what it should be, and a metric that looks at more than it was shown, differ from the first refuter.
"""

from __future__ import annotations

import math

from torch import Tensor

from ...likelihoods import Likelihood
from ...metrics.base import value_at
from ...networks import Linearized
from ...networks.observation import LayerObservation, Observation
from ...reparametrize import Twin
from ...reparametrize.output import moved_output
from ...samples import Sample
from .probes import FrameProbe, Probe
from .problems import Problem
from .records import HELD, REFUTED, Cell
from .running import BREAKS, Runner, same_randomness
from .subjects import Metric
from .verdicts import LOUD, SAME


def by_moved_data(runner: Runner, moved: Problem) -> float | None:
    """The discrepancy that moving the data finds; None where this refuter has nothing to say."""
    subject, problem, twin = runner.subject, runner.problem, moved.twin
    if not isinstance(subject, Metric) or not isinstance(twin, Twin):
        return None
    with same_randomness():
        metric = subject.at(problem)
        output, place = metric.output, twin._output_place
        frame = twin.frames.get("output")
        if output is not None and not isinstance(output, Likelihood) and frame is not None and place is not None:
            output = moved_output(output, frame.inverse(), place)  # a constant of the twin, seen from here
        network = problem.network
        seen = network.observe(problem.x, metric.estimator(problem.y), output=output)
        if type(seen) is not Observation or isinstance(seen.estimator, Linearized):
            return None
        with seen:
            there = subject.at(moved)
            found = carried_observation(seen, twin)
            found.output = twin.likelihood if there.output is None else there.output
            v = subject.solved(value_at(there, found), twin.transport(subject.differential(problem)), moved)
        back = twin._transport.back(v)
        run = subject.shown(problem, back)  # type: ignore[arg-type]
    return runner.compared(run, runner.base())


def carried_observation(seen: Observation, twin: Twin) -> Observation:
    """What was seen, on the spaces of a twin: inputs α̂a, cotangents Φ⁻ᵀg."""
    layers = {}
    for path, layer in seen.layers.items():
        block = twin.network.blocks[path]
        A, S = block.input_space, block.output_space
        inputs = carried_sample(layer.inputs, twin)
        back = carried_sample(layer.cotangents, twin) if layer._cotangents is not None else None
        layers[path] = LayerObservation(path, A, S, inputs, back)
    return Observation(
        twin.network.tangent_space, layers, twin.outputs(seen.outputs), seen.estimator, seen.output,
        seen.output_symmetry,
    )  # fmt: skip


def carried_sample(sample: Sample, twin: Twin) -> Sample:
    forth = twin._transport.along(sample.space)[0]
    x: Tensor = sample.dense()
    flat = x.reshape(*x.shape[:3], -1)
    moved = flat @ forth.matrix(flat).mT
    return Sample(forth.codomain, moved.reshape(*x.shape[:3], *forth.codomain.shape), sample.measure, sample.name)


def disagreement(runner: Runner, probe: Probe, cell: Cell) -> str:
    """What is wrong where the two refuters do not agree on a decided cell, or ""."""
    if cell.verdict not in (HELD, REFUTED) or not isinstance(probe, FrameProbe) or runner.last is None:
        return ""
    of, moved, expected = runner.last
    if of is not probe:
        return ""
    try:
        found = by_moved_data(runner, moved)
    except BREAKS:  # one side alone is too close to singular: nothing to compare
        return ""
    if found is None:
        return ""
    room = max(SAME, LOUD * max(expected.noise, 0.0)) * max(1.0, expected.discrepancy)
    if math.isfinite(found) and abs(found - expected.discrepancy) <= room:
        return ""
    return (
        f"the two refuters disagree on {probe.group} of {probe.on}: a twin differs by {expected.discrepancy:.1e}, "
        f"moved data by {found:.1e}. Either the metric looks at more than its observation, or riemann_ng "
        f"has an error here"
    )
