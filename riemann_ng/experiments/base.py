"""What a reproduction is: a few parts that compute, and say of every claim what was expected and what was measured.

    def slope(run: Run) -> None:
        steps = run.choose(quick=100, full=2000)
        run.near("the loss falls by (1 - η)² a step", measured, expected, within=1e-3, why="second order in η")

    EXPERIMENT = Experiment("falling", "How the loss falls", "Somebody 2018", "It falls ...", (("slope", slope),))

A new one is a file like this beside the others, and one line in `registry.py`.
"""

from __future__ import annotations

import hashlib
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import InvalidSetting, RiemannError
from .records import Check, Fault, Picture, Relation, Results, Table

T = TypeVar("T")


@dataclass(frozen=True)
class Experiment:
    """A published result: `claim` in words, `source` where it stands, and the parts that reproduce it, in order.

    The parts are independent: each draws what it needs from `run.generator`, and one that stops with an error does not
    keep the others from running.
    """

    name: str
    title: str
    source: str
    claim: str
    parts: tuple[tuple[str, Callable[[Run], None]], ...]

    def run(
        self,
        quick: bool = True,
        seed: int = 0,
        data: Path | None = None,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Results:
        """Everything that the parts found. `data` is a folder of MNIST's files; `progress` is told of every part.

        The default dtype, the global random state and the gradient mode are as before.
        """
        results = Results(self.name, seed, "quick" if quick else "full")
        run, start = Run(results, data), time.perf_counter()
        for k, (title, part) in enumerate(self.parts):
            if progress is not None:
                progress(k, len(self.parts), f"{self.name}: {title}")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(run.number_of(title))
                try:
                    part(run)
                except RiemannError as error:
                    results.faults.append(Fault(title, str(error)))
                except Exception:
                    results.faults.append(Fault(title, traceback.format_exc().strip()))
        results.seconds = time.perf_counter() - start
        if progress is not None:
            progress(len(self.parts), len(self.parts), self.name)
        return results


@dataclass
class Run:
    """One run of an experiment: its settings, and where its parts put what they find."""

    results: Results
    data: Path | None = None

    @property
    def quick(self) -> bool:
        return self.results.size == "quick"

    def choose(self, quick: T, full: T) -> T:
        """A size of the problem."""
        return quick if self.quick else full

    # Randomness

    def number_of(self, stream: str) -> int:
        """A seed that depends on the run's, on the experiment, and on a word for what it is used for."""
        text = f"{self.results.seed}/{self.results.name}/{stream}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:6], "big")

    def generator(self, stream: str) -> torch.Generator:
        return torch.Generator().manual_seed(self.number_of(stream))

    def normal(self, stream: str, *shape: int) -> Tensor:
        """Standard normal numbers in float64: the same for the same word."""
        return torch.randn(*shape, generator=self.generator(stream), dtype=torch.float64)

    # What is found

    def number(self, name: str, value: float | Tensor) -> float:
        """A number for the record."""
        if name in self.results.numbers:
            raise InvalidSetting(f"InvalidSetting in {self.results.name}: two numbers are called {name!r}.")
        self.results.numbers[name] = float(value)
        return float(value)

    def below(
        self, claim: str, measured: float | Tensor, bound: float | Tensor, why: str = "", control: bool = False
    ) -> None:
        """Claims measured < bound."""
        self._check(claim, measured, "below", bound, 0.0, why, control)

    def above(
        self, claim: str, measured: float | Tensor, bound: float | Tensor, why: str = "", control: bool = False
    ) -> None:
        """Claims measured > bound."""
        self._check(claim, measured, "above", bound, 0.0, why, control)

    def near(
        self,
        claim: str,
        measured: float | Tensor,
        expected: float | Tensor,
        within: float | Tensor,
        why: str = "",
        control: bool = False,
    ) -> None:
        """Claims |measured - expected| <= within."""
        self._check(claim, measured, "near", expected, within, why, control)

    def _check(
        self,
        claim: str,
        measured: float | Tensor,
        relation: Relation,
        expected: float | Tensor,
        within: float | Tensor,
        why: str,
        control: bool,
    ) -> None:
        if any(check.claim == claim for check in self.results.checks):
            raise InvalidSetting(f"InvalidSetting in {self.results.name}: two checks claim {claim!r}.")
        self.results.checks.append(
            Check(claim, float(measured), relation, float(expected), float(within), control, why)
        )

    def table(self, table: Table) -> None:
        self.results.tables.append(table)

    def picture(self, picture: Picture) -> None:
        self.results.pictures.append(picture)
