"""A base class for the tests of your own method.

    class TestMyOptimizer(InvarianceSuite):
        subject = optimizer(lambda model: MyOptimizer(model.parameters(), lr=0.1))
        held = [("activations", "orthogonal"), ("pre-activations", "isometries")]
        refuted = [("activations", "general")]

pytest runs one test for every cell named. `problem` gives the model and the batch, by default a small network; a claim
that a metric's own expression makes is tested besides.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...errors import InvalidSetting
from ...likelihoods import Categorical, Likelihood
from .checking import check_invariance
from .records import HELD, REFUTED, InvarianceReport, Key


class InvarianceSuite:
    """Subclass it, and say what the subject is and what it is invariant to."""

    subject: ClassVar[Any] = None
    held: ClassVar[Iterable[Key]] = ()
    """What must hold."""
    refuted: ClassVar[Iterable[Key]] = ()
    """What must not: the claim is exact. Each of these is a negative control, too."""
    likelihood: ClassVar[Likelihood] = Categorical()
    examples: ClassVar[int] = 3
    steps: ClassVar[int | None] = None

    def problem(self) -> tuple[nn.Module, Any, Any]:
        """A model, inputs and targets. Overwrite it for a model of your own."""
        return small_problem()

    def report(self) -> InvarianceReport:
        """The cells named, checked; once for a class."""
        cls = type(self)
        if "_report" not in cls.__dict__:
            if cls.subject is None:
                raise InvalidSetting(f"InvalidSetting in {cls.__name__}: give it a `subject`.")
            named = [*cls.held, *cls.refuted]
            if not named:
                raise InvalidSetting(f"InvalidSetting in {cls.__name__}: name cells in `held` or `refuted`.")
            model, x, y = self.problem()
            cls._report = check_invariance(  # type: ignore[attr-defined]
                cls.subject, model, x, y, cls.likelihood, cells=named, examples=cls.examples, steps=cls.steps,
                shrink=True, progress=False, name=cls.__name__,
            )  # fmt: skip
        return cls._report  # type: ignore[attr-defined]

    def test_what_must_hold_is_held(self) -> None:
        self._verdicts_are(self.held, HELD)

    def test_what_must_not_hold_is_refuted(self) -> None:
        self._verdicts_are(self.refuted, REFUTED)

    def test_what_the_expression_claims_is_not_refuted(self) -> None:
        wrong = [cell for cell in self.report() if cell.surprising]
        assert not wrong, "\n".join(map(str, wrong))

    def _verdicts_are(self, keys: Iterable[Key], expected: str) -> None:
        report = self.report()
        wrong = [cell for cell in (report[key] for key in keys) if cell.verdict != expected]
        told = [f"{cell}{code(cell)}" for cell in wrong]
        assert not wrong, f"expected {expected}:\n" + "\n".join(told)


def code(cell: Any) -> str:
    example = cell.counterexample
    return f"\n{example.code}" if example is not None and example.code else ""


def small_problem(seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """Three layers of unequal widths with biases that are not zero, and examples enough for well-posed factors."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
        return model, torch.randn(120, 4, dtype=torch.float64), torch.randint(0, 3, (120,))
