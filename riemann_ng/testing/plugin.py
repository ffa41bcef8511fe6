"""A plugin for pytest: fixtures for the invariance of your own methods, and `--riemann-examples`.

    def test_my_optimizer(invariance):
        invariance.holds(make_optimizer, under=[("activations", "orthogonal")])
        invariance.fails(make_optimizer, under=[("activations", "general")])

`--riemann-examples N` is how many random elements of each group are tried, in classes of `InvarianceSuite` too: few at
the desk, many at night.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest

from ..likelihoods import Categorical, Likelihood
from .invariance import InvarianceReport, InvarianceSuite, check_invariance
from .invariance.records import HELD, REFUTED, Key
from .invariance.suite import small_problem

EXAMPLES = 3


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("riemann", "invariance of metrics and optimizers")
    group.addoption(
        "--riemann-examples", type=int, default=None, metavar="N",
        help=f"random elements tried of each group of changes of coordinates ({EXAMPLES})",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    given = config.getoption("--riemann-examples")
    if given is not None and given < 1:
        raise pytest.UsageError(f"--riemann-examples is at least 1, got {given}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    given = config.getoption("--riemann-examples")
    for item in items:
        cls = item.cls if isinstance(item, pytest.Function) else None
        if given is not None and cls is not None and issubclass(cls, InvarianceSuite):
            cls.examples = given


@dataclass(frozen=True)
class Invariance:
    """What the fixture `invariance` is. Without a model of yours it is a small network, with classes."""

    examples: int

    def report(
        self,
        subject: Any,
        model: Any = None,
        x: Any = None,
        y: Any = None,
        likelihood: Likelihood | None = None,
        **options: Any,
    ) -> InvarianceReport:
        """`check_invariance` with the number of examples that was asked for."""
        if model is None:
            model, x, y = small_problem()
            likelihood = likelihood or Categorical()
        return check_invariance(
            subject, model, x, y, likelihood, **{"examples": self.examples, "progress": False, **options}
        )

    def holds(self, subject: Any, *problem: Any, under: Iterable[Key], **options: Any) -> InvarianceReport:
        """Fails the test unless every cell named is held."""
        return self._is(HELD, subject, problem, list(under), options)

    def fails(self, subject: Any, *problem: Any, under: Iterable[Key], **options: Any) -> InvarianceReport:
        """Fails the test unless every cell named is refuted: the negative control."""
        return self._is(REFUTED, subject, problem, list(under), options)

    def _is(self, verdict: str, subject: Any, problem: Any, cells: list[Key], options: Any) -> InvarianceReport:
        report = self.report(subject, *problem, cells=cells, **options)
        wrong = [cell for cell in report if cell.verdict != verdict]
        if wrong:
            told = "\n".join(f"  {cell}" for cell in wrong)
            pytest.fail(f"expected {verdict}, of {report.subject}:\n{told}", pytrace=False)
        return report


@pytest.fixture
def riemann_examples(request: pytest.FixtureRequest) -> int:
    """The number of `--riemann-examples`."""
    given = request.config.getoption("--riemann-examples")
    return EXAMPLES if given is None else int(given)


@pytest.fixture
def invariance(riemann_examples: int) -> Invariance:
    """Checks the invariance of a metric, an optimizer or an update: `holds`, `fails`, `report`."""
    return Invariance(riemann_examples)
