"""Several passes as one observation: their examples one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from ..samples import Compact, Folded, OneHot, Sample, all_of, whole_folded
from .estimators import Estimator
from .observation import Observation


def stacked(parts: Sequence[Observation], estimator: Estimator) -> Observation:
    """One observation of all the examples. Fewer sites in one part than in another are padding."""
    first = parts[0]
    if len(parts) == 1:
        first.estimator = estimator
        return first
    layers = {}
    for path, layer in first.layers.items():
        mine = [part.layers[path] for part in parts]
        inputs = samples_stacked([each.inputs for each in mine])
        back = [each._cotangents for each in mine if each._cotangents is not None]
        returned = samples_stacked(back) if back else None
        layers[path] = layer._with(inputs, returned, None)
    outputs = [part.outputs for part in parts]
    for axis in range(1, outputs[0].ndim):
        widest = max(z.shape[axis] for z in outputs)
        outputs = [padded(z, widest, axis) for z in outputs]
    return Observation(first.space, layers, torch.cat(outputs), estimator, first.output, first.output_symmetry)


def samples_stacked(samples: Sequence[Sample]) -> Sample:
    first = samples[0]
    sites = [s.counts[2] for s in samples]
    longest = max(sites)
    if any(isinstance(s.data, Folded) for s in samples):
        return folded_stacked(samples)
    mask = None
    if len(set(sites)) > 1 or any(s.measure.mask is not None for s in samples):
        mask = torch.cat([padded(present(s), longest, 1) for s in samples])
    data: Tensor | OneHot
    if all(isinstance(s.data, OneHot) for s in samples):
        indices = [padded(s.data.indices, longest, 2) for s in samples if isinstance(s.data, OneHot)]
        data = OneHot(torch.cat(indices), first.dtype)
    else:
        data = torch.cat([padded(s.dense(), longest, 2) for s in samples])
        data = data.reshape(*data.shape[:3], *first.space.shape)
    whole = Sample(first.space, data, replace(first.measure, mask=mask), first.name)
    whole.through = first.through
    return whole


def folded_stacked(samples: Sequence[Sample]) -> Sample:
    """Of samples that were folded, or can be: their sites need no padding, for none is told from another."""
    first = samples[0]
    parts = [whole_folded(s.data, s.space) for s in samples if isinstance(s.data, (Tensor, Compact))]
    n, k = sum(s.counts[0] for s in samples), first.counts[1]
    longest, elements = max(s.counts[2] for s in samples), sum(prod(s.counts) for s in samples)
    counts = (n, k, longest)
    data = all_of(parts, counts)
    if first.measure.kind == "probability":  # all weights together are one, also where some have fewer sites
        data = data.times((prod(counts) / elements) ** 0.5)
    whole = Sample(first.space, data, first.measure, first.name)
    whole.through = first.through
    return whole


def present(s: Sample) -> Tensor:
    n, _, t = s.counts
    mask = s.measure.mask
    return torch.ones(n, t, dtype=torch.bool, device=s.device) if mask is None else mask.reshape(n, t)


def padded(t: Tensor, size: int, axis: int) -> Tensor:
    """Zeros behind, along an axis."""
    if t.shape[axis] == size:
        return t
    shape = list(t.shape)
    shape[axis] = size - shape[axis]
    return torch.cat([t, t.new_zeros(shape)], dim=axis)
