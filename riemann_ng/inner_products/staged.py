"""Chains of stages of sums and multiples: the stages of the one term that has some, damped by the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..elements import Scalar
from ..solvers.stages import Stages
from ..spaces import DirectSum
from .base import InnerProduct


def stages_of_sum(terms: Sequence[tuple[Scalar, InnerProduct]]) -> Stages | None:
    """None where no term knows stages, or another one does not fall apart into the layers."""
    found: list[Stages] = []
    others: list[tuple[Scalar, InnerProduct]] = []
    for c, g in terms:
        stages = scaled_stages(c, g)
        if stages is None:
            others.append((c, g))
        else:
            found.append(stages)
    if len(found) != 1:
        return None
    damping: dict[str, InnerProduct] = {}
    for c, g in others:
        parts = g.summands()
        if parts is None or not isinstance(g.space, DirectSum):
            return None
        for name, part in parts.items():
            damping[name] = c * part + damping[name] if name in damping else c * part
    return replace(found[0], damping=damping) if damping else found[0]


def scaled_stages(c: Scalar, g: InnerProduct) -> Stages | None:
    stages = g.stages()
    return stages if stages is None or stages.damping is not None else stages.scaled(float(c))
