"""The unifying page: every method as one expression, what it keeps as claimed and as measured, and what it costs.

    python -m riemann_ng.testing.invariance.page docs/methods.md    # writes its tables anew, in a few minutes

Nothing in the tables is typed by hand. Expressions are what the objects print; claims are those of the expression's
symmetry for metrics and norms, and of theory for optimizers (the atlas); both are measured by the same probes on the
same small classifier; costs are operations, counted.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import DegenerateMetric, InvalidSetting
from ...likelihoods import FromDistribution
from ...metrics import KFAC
from ...metrics.table import methods
from ...norms import Modular, NewtonSchulz, Norm, Sign, Spectral
from .atlas import all_rows, drawn, label, largest_kept, measure, probe_of, problem, with_reference_class
from .atlas_rows import GROUP, WORDS, NaturalTraining, Row
from .claims import static_symmetry
from .costs import one_direction, step_cost
from .directions import Direction, Metric, OfNorm, Subject
from .methods.natural import Descent
from .problems import Problem, problem_of
from .records import HELD
from .running import Runner
from .training import OptimizerFactory, Training

COLUMNS = ("activations", "hidden", "outputs")
WIDTHS = (16, 32)
BEGIN, END = "<!-- {}: generated, see riemann_ng/testing/invariance/page.py -->", "<!-- end of {} -->"
NAMES = re.compile(r"\bnet\d*/")


@dataclass(frozen=True)
class Line:
    """One method: what it keeps of activations, hidden pre-activations and outputs, and passes per step by width."""

    method: str
    expression: str
    claimed: tuple[str, ...]
    measured: tuple[str, ...]
    cost: tuple[float | None, ...]


@cache
def sized(width: int) -> Problem:
    """A problem like the atlas's, n-n-n-4, with more examples than a full Fisher needs to be definite."""
    generator = torch.Generator().manual_seed(0)
    dims = [width, width, width, 4]
    layers = [nn.Linear(n, m, dtype=torch.float64) for n, m in itertools.pairwise(dims)]
    with torch.no_grad():
        for layer in layers:
            nn.init.orthogonal_(layer.weight, 1.3, generator=generator)
            layer.bias.copy_(0.3 * drawn(generator, layer.out_features))
    x, y = drawn(generator, 960, width), torch.randint(0, 5, (960,), generator=generator)
    module = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])
    return problem_of(module, x, y, FromDistribution(with_reference_class), held_out=0.2)


# Directions: metrics and norms


def directions(at: Problem) -> Iterator[tuple[str, Direction]]:
    """The metrics of the table in docs/metrics.md, and the norms, by name, for a problem's network."""
    for name, metric in methods(at.network, at.x[::2], last="4"):
        yield name, Metric(metric)
    muon = Spectral(method=NewtonSchulz(), scale="original", bias="separate")
    norms: list[tuple[str, Norm]] = [
        ("spectral norm", Spectral()),
        ("spectral norm as in Muon", muon),
        ("spectral norm between K-FAC's spaces", Spectral(KFAC())),
        ("the same by Newton-Schulz", Spectral(KFAC(), NewtonSchulz())),
        ("largest entry, sign descent", Sign()),
        ("modular norm", Modular()),
    ]
    for name, norm in norms:
        yield name, OfNorm(norm)


def of_direction(name: str, cases: int = 2) -> Line:
    """A metric or a norm at the atlas's problem: the claim is that of its expression."""
    at = problem()
    subject = dict(directions(at))[name]
    runner, symmetry = Runner(subject, at), static_symmetry(subject, at)
    claimed, measured = [], []
    for column in COLUMNS:
        kept = frozenset(g for g in GROUP if symmetry and probe_of(column, g).claim(symmetry, at)[0])
        claimed.append(label(kept))
        found, _ = largest_kept(runner, column, claimed[-1], cases)
        measured.append(label(frozenset(g for g, verdict in found.items() if verdict == HELD)))
    cost = tuple(counted(lambda p: one_direction(dict(directions(p))[name], p), width) for width in WIDTHS)
    return Line(name, plain(subject.name), tuple(claimed), tuple(measured), cost)


def plain(said: str) -> str:
    """Without the accidental name of a network."""
    return NAMES.sub("", said)


def counted(count: Callable[[Problem], float], width: int) -> float | None:
    """A count at a width; None where the method has no step there."""
    try:
        return count(sized(width))
    except DegenerateMetric:
        return None


# Optimizers


def of_row(row: Row, cases: int = 2) -> Line:
    """A row of the atlas: the claim is that of theory."""
    found, subject = measure(row, cases), row.subject()
    cost = tuple(counted(lambda p: operations(row, p), width) for width in WIDTHS)
    claimed, measured = (tuple(str(side[column]) for column in COLUMNS) for side in (found.expected, found.measured))
    return Line(row.name, expression(subject), claimed, measured, cost)


def operations(row: Row, at: Problem) -> float:
    """Operations of a step of a row, in passes."""
    subject = row.subject()
    if isinstance(subject, Direction):
        return one_direction(subject, at)
    assert isinstance(subject, Training)
    return step_cost(subject, at, row.steps or subject.steps)


def expression(subject: Subject) -> str:
    """What makes the steps: a metric with what is done to its step, or an optimizer with what is not its default."""
    at = problem()
    if isinstance(subject, OfNorm):
        return repr(subject.of)
    if isinstance(subject, NaturalTraining):
        method = subject.make(at.network)
        if not isinstance(method, Descent):
            return plain(type(method).__name__)
        metric = method.metric(at.network, at.x) if callable(method.metric) else method.metric
        changes = [getattr(change, "__name__", type(change).__name__) for change in method.changes]
        said = f"Spectral(between={metric!r})" if method.spectral else repr(metric)
        return plain(", ".join([said, *(c.split(".")[-1] for c in changes)]))
    assert isinstance(subject, OptimizerFactory)
    return described(subject.made(copy.deepcopy(at.module), at.likelihood))  # an optimizer may listen to its model


def described(optimizer: torch.optim.Optimizer) -> str:
    """The call that makes it, without the learning rate and what is as it is by default."""
    if parts := getattr(optimizer, "parts", None):
        return " + ".join(map(described, parts))
    default = {n: p.default for n, p in inspect.signature(type(optimizer)).parameters.items()}
    recipe: dict[str, Any] = getattr(optimizer, "recipe", lambda: optimizer.defaults)()
    own = {n: v for n, v in recipe.items() if n in default and n not in ("lr", "likelihood")}
    given = {n: v for n, v in own.items() if repr(v) != repr(default[n])}
    return f"{type(optimizer).__name__}({', '.join(f'{n}={v!r}' for n, v in given.items())})"


# The page


def markdown(title: str, lines: Sequence[Line]) -> str:
    """A table, between its markers."""
    wide = " | ".join(f"passes, {width} wide" for width in WIDTHS)
    rows = [
        f"| method | expression | keeps on 𝒜 | on hidden 𝒮 | on outputs | {wide} |",
        "| --- | --- | --- | --- | --- |" + " --- |" * len(WIDTHS),
    ]
    for line in lines:
        kept = " | ".join(told(c, m) for c, m in zip(line.claimed, line.measured, strict=True))
        cost = " | ".join("none" if c is None else f"{c:.3g}" for c in line.cost)
        rows.append(f"| {line.method} | `{line.expression}` | {kept} | {cost} |")
    return "\n".join([BEGIN.format(title), *rows, END.format(title)])


def told(claimed: str, measured: str) -> str:
    """A cell: one word where claim and measurement agree."""
    said, found = WORDS.get(claimed, claimed), WORDS.get(measured, measured)
    if measured == f"{claimed}?":
        return f"{said}; of more nothing can be told in half precision"
    return said if claimed == measured else f"claimed {said}, **measured {found}**"


def updated(page: str, title: str, lines: Sequence[Line]) -> str:
    """A page with one table made anew between its markers."""
    before, begin, rest = page.partition(BEGIN.format(title))
    _, end, after = rest.partition(END.format(title))
    if not (begin and end):
        raise InvalidSetting(
            f"InvalidSetting in page.updated: the page has no place for a table, "
            f"{BEGIN.format(title)} ... {END.format(title)}."
        )
    return before + markdown(title, lines) + after


def tables() -> dict[str, list[Line]]:
    return {
        "directions": [of_direction(name) for name, _ in directions(problem())],
        "optimizers": [of_row(row) for row in all_rows()],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    made = tables()
    for path in map(Path, sys.argv[1:]):
        text = path.read_text("utf-8")
        for title, lines in made.items():
            text = updated(text, title, lines)
        path.write_text(text, "utf-8")
