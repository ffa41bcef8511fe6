"""Averages of the iterates themselves, which lie on an affine space: no symmetry is lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidSetting


@dataclass(frozen=True)
class IterateAverage:
    """Parameters averaged over the steps with weight max(1/t, 1 - decay), from step `start` on."""

    decay: float = 0.99
    start: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.start, bool) or not isinstance(self.start, int) or not 0 <= self.decay < 1 or self.start < 0:
            raise InvalidSetting(f"InvalidSetting in {self!r}: expected a decay in [0, 1) and a start of 0 or more.")


class Averaged:
    """The average so far, by parameter name."""

    def __init__(self, policy: IterateAverage):
        self.policy, self.count = policy, 0
        self.values: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, parameters: Mapping[str, Tensor], step: int) -> None:
        if step < self.policy.start:
            return
        self.count += 1
        weight = max(1 / self.count, 1 - self.policy.decay)
        for name, p in parameters.items():
            if name in self.values:
                self.values[name].lerp_(p.detach(), weight)
            else:
                self.values[name] = p.detach().clone()

    def state(self) -> dict[str, Any]:
        return {"count": self.count, "values": {name: t.clone() for name, t in self.values.items()}}

    def load(self, state: Mapping[str, Any]) -> None:
        self.count, self.values = state["count"], dict(state["values"])

    @contextmanager
    def standing_in(self, parameters: Mapping[str, Tensor]) -> Iterator[None]:
        """The parameters are the average inside, and afterwards what they were."""
        with torch.no_grad():
            own = {name: p.detach().clone() for name, p in parameters.items() if name in self.values}
            for name in own:
                parameters[name].copy_(self.values[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in own.items():
                    parameters[name].copy_(value)
