"""What a step did, for whoever wants to know."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class StepReport:
    """One step: how far it went, what was promised and what came of it.

    `step` counts the steps taken. `predicted` and `actual` are changes of the mean loss on the step's batch; None
    where no model was made, or where the damping was not looked at. `skipped` says why nothing moved, "" where it did.
    `trouble` are the things that went wrong and were got over. `loss` is the closure's. `worst` and `condition` are
    the worst-conditioned layer of the last factorization, if a listener asked for it.
    """

    step: int
    damping: float
    alpha: float = 0.0
    mu: float = 0.0
    predicted: float | None = None
    actual: float | None = None
    statistics: bool = False
    factorized: bool = False
    skipped: str = ""
    trouble: tuple[str, ...] = ()
    loss: float | None = None
    worst: str = ""
    condition: float | None = None

    def __str__(self) -> str:
        parts = [f"step {self.step}"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4g}")
        parts += [f"λ={self.damping:.2e}", f"α={self.alpha:.3g}"]
        if self.mu:
            parts.append(f"μ={self.mu:.3g}")
        if self.predicted is not None:
            parts.append(f"predicted {self.predicted:.3g}")
        if self.actual is not None:
            parts.append(f"actual {self.actual:.3g}")
        if self.condition is not None:
            parts.append(f"worst {self.worst!r} {self.condition:.1e}")
        parts += [f"skipped: {self.skipped}"] if self.skipped else []
        return ", ".join([*parts, *self.trouble])


@dataclass
class Tally:
    """What went wrong so far, by kind, and how often."""

    counts: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str) -> None:
        self.counts[kind] += 1

    def __getitem__(self, kind: str) -> int:
        return self.counts[kind]

    def __str__(self) -> str:
        return ", ".join(f"{n} × {kind}" for kind, n in self.counts.items()) or "nothing"


def number_of(loss: Any) -> float | None:
    """What a closure returned, if it is one number."""
    if isinstance(loss, Tensor):
        return float(loss.detach()) if loss.numel() == 1 else None
    return float(loss) if isinstance(loss, (int, float)) else None
