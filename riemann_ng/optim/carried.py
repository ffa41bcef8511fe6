"""What a step rule remembers from one step to the next.

A rule is a value, and its memory belongs to the run: it hands on vectors, covectors and numbers with a displacement,
and is given them back. They are elements of the tangent space and of its dual, so they go along with every frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..elements import Covector, Vector
from ..spaces import VectorSpace

State = dict[str, Any]


@dataclass(frozen=True)
class Carried:
    """Vectors, covectors and numbers, by name."""

    vectors: Mapping[str, Vector] = field(default_factory=dict)
    covectors: Mapping[str, Covector] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)

    def owned(self) -> Carried:
        """As it would be restored from a state, with tensors that nobody else writes to."""
        return Carried(
            {name: Vector._of(v.lives_in, None, own(v)) for name, v in self.vectors.items()},
            {name: Covector._of(xi.lives_in, None, own(xi)) for name, xi in self.covectors.items()},
            dict(self.numbers),
        )

    def state(self) -> State:
        return {
            "vectors": {name: dict(v.blocks) for name, v in self.vectors.items()},
            "covectors": {name: dict(xi.blocks) for name, xi in self.covectors.items()},
            "numbers": dict(self.numbers),
        }

    @classmethod
    def from_state(cls, space: VectorSpace, state: Mapping[str, Any]) -> Carried:
        return cls(
            {name: Vector(space, blocks) for name, blocks in state["vectors"].items()},
            {name: Covector(space, blocks) for name, blocks in state["covectors"].items()},
            dict(state["numbers"]),
        )


def own(x: Vector | Covector) -> dict[str, Any]:
    return {path: t.contiguous().clone() for path, t in x.blocks.items()}


class Carrying:
    """What is carried so far in one run."""

    def __init__(self) -> None:
        self.value = Carried()
        self._loaded: Mapping[str, Any] | None = None

    def take(self, kept: Carried | None) -> None:
        self.value = Carried() if kept is None else kept.owned()

    def forget(self) -> None:
        self.value, self._loaded = Carried(), None

    def state(self) -> State:
        return self.value.state() if self._loaded is None else dict(self._loaded)

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Keeps a state until the space that it is on is known."""
        self.value, self._loaded = Carried(), state

    def settle(self, space: VectorSpace) -> None:
        if self._loaded is not None:
            self.value, self._loaded = Carried.from_state(space, self._loaded), None
