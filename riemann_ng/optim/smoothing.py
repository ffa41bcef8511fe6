"""The running average of gradients that a proposal is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..elements import Covector
from ..spaces import VectorSpace

State = dict[str, Any]


class GradientAverage:
    """The mean of the gradients so far, with weights that fall by `decay` a step and add up to one; 0 keeps none.

    The parameters are points of an affine space, so covectors at two of them can be added, and the average moves with
    every frame as they do.
    """

    onto: Callable[[Covector], Covector] | None = None
    """What a gradient, and then the average, goes through before it is used: where parameters do not lie in an affine
    space, covectors of other points are brought to the one at hand."""

    def __init__(self, decay: float):
        self.decay = decay
        self.value: Covector | None = None
        self.weight = 0.0
        self._loaded: dict[str, Tensor] | None = None

    def after(self, df: Covector) -> Covector:
        """The average with this gradient in it, which is not taken in yet: a step may be refused."""
        df = df if self.onto is None or self.decay == 0 else self.onto(df)
        if self.decay == 0 or self.value is None:
            return df
        share = 1 / self._next_weight
        kept = self.value.blocks
        mean = Covector._of(df.lives_in, None, {path: kept[path].lerp(t, share) for path, t in df.blocks.items()})
        return mean if self.onto is None else self.onto(mean)

    def take(self, average: Covector) -> None:
        """Keeps what `after` returned. The first one is copied, for its tensors may be those of the gradients."""
        if self.decay:
            own = {path: t.clone() if self.value is None else t for path, t in average.blocks.items()}
            self.value = Covector._of(average.lives_in, None, {path: t.contiguous() for path, t in own.items()})
            self.weight = self._next_weight

    @property
    def share(self) -> float:
        """What the next gradient weighs in the average; zero where none is made."""
        return 1 / self._next_weight if self.decay else 0.0

    @property
    def _next_weight(self) -> float:
        return self.decay * self.weight + 1

    def forget(self) -> None:
        self.value, self.weight, self._loaded = None, 0.0, None

    def state(self) -> State:
        value = self._loaded if self.value is None else dict(self.value.blocks)
        return {"value": value, "weight": self.weight}

    def load(self, state: Mapping[str, Any]) -> None:
        """Keeps a state until the space that it is on is known."""
        self.value, self.weight, self._loaded = None, state["weight"], state["value"]

    def settle(self, space: VectorSpace) -> None:
        if self._loaded is not None:
            self.value, self._loaded = Covector(space, self._loaded), None
