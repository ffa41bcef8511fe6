"""A row of the atlas: a method, and the largest groups that theory says it keeps.

Each row is a way of training and five claims: the largest group kept by the activations (inputs included), by the
hidden pre-activations and by the outputs, whether joint scales of a layer without biases are kept, and whether the
scale of the loss is. The claims are data, written down from the theory; the atlas measures and compares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ... import optim as natural_optim
from ...likelihoods import Likelihood
from ...networks import Exact, Network
from .methods.natural import Descent, Natural
from .problems import Problem
from .subjects import Subject, Training, optimizer

KEPT: dict[str, frozenset[str]] = {
    "nothing": frozenset(),
    "SP": frozenset({"SP", "P"}),
    "M": frozenset({"M", "D", "SP", "P", "R"}),
    "O": frozenset({"O", "SP", "P"}),
    "CO": frozenset({"O", "SP", "P", "R"}),
    "GL": frozenset({"GL", "O", "M", "D", "SP", "P", "R"}),
    "T": frozenset({"T"}),
}
"""Groups by short names, as the sets of those sampled that lie in them."""
KEPT["CSP"] = KEPT["SP"] | {"R"}
KEPT |= {f"T.{name}": KEPT[name] | {"T"} for name in ("SP", "M", "O", "CO")} | {"Aff": KEPT["GL"] | {"T"}}

GROUP = {
    "T": "translations", "GL": "general", "O": "orthogonal", "M": "monomial", "D": "scaling",
    "SP": "signed permutations", "P": "permutations", "R": "uniform scale",
}  # fmt: skip
WORDS = {
    "Aff": "affine", "GL": "general linear", "O": "orthogonal", "T.O": "isometries", "CO": "conformal linear",
    "T.CO": "similarities", "M": "monomial", "T.M": "translations, monomial", "SP": "signed permutations",
    "T.SP": "translations, signed permutations", "CSP": "signed permutations, uniform scale",
    "T": "translations", "nothing": "nothing",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A method and what it keeps in theory. `joint` and `loss` may be None: no claim is made."""

    name: str
    family: str
    subject: Callable[[], Subject]
    activations: str
    hidden: str
    outputs: str
    joint: bool | None
    loss: bool | None
    quick: bool = False
    """Whether it is in the short version."""
    note: str = ""
    coarse: bool = False
    """Whether it computes in half precision: then a group that is lost may stay undecided."""

    steps: int | None = None
    """More than the four of other rows, where a method begins as another one."""

    @property
    def claims(self) -> tuple[str, str, str, bool | None, bool | None]:
        """What it keeps in theory, column by column."""
        return self.activations, self.hidden, self.outputs, self.joint, self.loss


class NaturalTraining(Training):
    """A `Natural` method in a loop, with the twin's likelihood."""

    def __init__(self, make: Callable[[Network], Natural], name: str):
        self.make, self.name = make, name

    def prepared(self, problem: Problem) -> Problem:
        return problem

    def started(self, module: nn.Module, problem: Problem, rate: float) -> Callable[[], None]:
        method = self.make(Network.from_torch(module, problem.likelihood, problem.x, read=problem.read))
        method.loss_scale = problem.loss_scale
        return lambda: method.step(problem.x, problem.y)


def natural(name: str, metric: Any, lr: float, *changes: Callable[[], Any], **options: Any) -> Callable[[], Subject]:
    """Descent by a metric; what has a memory is made anew for every run, so changes are functions that make them."""
    return lambda: NaturalTraining(lambda n: Descent(n, metric, lr, *(c() for c in changes), **options), name)


def torch_optimizer(name: str, make: Callable[..., Optimizer]) -> Callable[[], Subject]:
    return lambda: optimizer(make, name)


def library(lr: float, **options: Any) -> Callable[[nn.Module, Likelihood], Optimizer]:
    """The library's own optimizer, undamped and with exact factors unless the options say otherwise."""
    settings: dict[str, Any] = {
        "damping": None, "momentum": 0.0, "decay": 0.0, "estimator": Exact(), "step_size": natural_optim.Constant(),
        "schedule": natural_optim.Schedule(statistics=1, factorize=1, fraction=1.0),
    }  # fmt: skip

    def make(model: nn.Module, likelihood: Likelihood) -> Optimizer:
        return natural_optim.NaturalGradient(model, likelihood, lr=lr, **{**settings, **options})

    return make
