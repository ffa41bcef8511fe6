"""Who may be told of every step: a function of its report, or one of these.

opt.listeners.append(Progress())
opt.listeners.append(TensorBoard("runs/first"))
"""

from __future__ import annotations

import importlib
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from ..errors import MissingDependency
from .report import StepReport


class StepListener(ABC):
    """Told of every step. `conditions` asks for the worst-conditioned layer at every factorization.

    In a loop without closures nobody says what the loss is: set `loss` to it, a number, whenever it is known.
    """

    conditions: bool = False
    loss: float | None = None

    @abstractmethod
    def __call__(self, report: StepReport) -> None:
        """Called after every step, skipped ones too."""

    def loss_of(self, report: StepReport) -> float | None:
        return self.loss if report.loss is None else report.loss


Heard = Callable[[StepReport], None]


def wants_conditions(listeners: Iterable[Heard]) -> bool:
    return any(isinstance(listener, StepListener) and listener.conditions for listener in listeners)


class Progress(StepListener):
    """One line about the last step, written over itself, where `file` is a terminal; nothing otherwise."""

    def __init__(self, every: float = 0.2, conditions: bool = False, file: TextIO | None = None):
        self.every, self.conditions, self.file = every, conditions, sys.stderr if file is None else file
        self._last, self._width = 0.0, 0
        self._worst = ""

    def __call__(self, report: StepReport) -> None:
        if report.condition is not None:
            self._worst = f", worst {report.worst!r} {report.condition:.1e}"
        now = time.monotonic()
        if not self.file.isatty() or now - self._last < self.every:
            return
        loss = self.loss_of(report)
        said = "" if loss is None or report.loss is not None else f"loss {loss:.4g}, "
        line = f"{said}{report}{'' if report.condition is not None else self._worst}"
        self.file.write("\r" + line.ljust(self._width))
        self.file.flush()
        self._last, self._width = now, len(line)


class TensorBoard(StepListener):
    """Loss, damping, step size, promised and actual change of the loss, and conditions, for TensorBoard."""

    def __init__(self, directory: str, conditions: bool = True):
        self.conditions = conditions
        try:
            writing = importlib.import_module("torch.utils.tensorboard")
        except ImportError as missing:
            raise MissingDependency(
                f"MissingDependency in TensorBoard: tensorboard cannot be imported ({missing}). Install it: "
                f"pip install tensorboard."
            ) from None
        self.writer: Any = writing.SummaryWriter(directory)

    def __call__(self, report: StepReport) -> None:
        values = {
            "loss": self.loss_of(report),
            "damping": report.damping,
            "step/alpha": None if report.skipped else report.alpha,
            "step/mu": None if report.skipped else report.mu,
            "change/predicted": report.predicted,
            "change/actual": report.actual,
            "condition": report.condition,
        }
        for name, value in values.items():
            if value is not None:
                self.writer.add_scalar(name, value, report.step)
        troubles = [*report.trouble, *([f"skipped: {report.skipped}"] if report.skipped else [])]
        if troubles or report.worst:
            said = [f"worst-conditioned: {report.worst!r}"] if report.worst else []
            self.writer.add_text("notes", "; ".join([*troubles, *said]), report.step)

    def close(self) -> None:
        self.writer.close()
