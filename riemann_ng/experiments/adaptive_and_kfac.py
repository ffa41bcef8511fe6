"""Adaptive methods, normalization and K-FAC side by side: each one expression, with its symmetry and its step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..likelihoods import Bernoulli
from ..metrics import (
    EKFAC,
    KFAC,
    SOAP,
    BatchNormalization,
    EuclideanMetric,
    RiemannianMetric,
    RootMeanSquare,
    Shampoo,
    Whitening,
)
from ..natural_gradient import natural_gradient
from ..networks import Network
from ..testing.invariance import check_invariance
from . import plain_adaptive as plain
from .adaptive_training import Averaged, training
from .base import Experiment, Run
from .descent import Batches
from .plain_kfac import directions
from .records import Table

SAME = 1e-9
ROUNDING = "solves and roots of forms of condition below 1e6, in float64"
GROUPS = ("translations", "general", "orthogonal", "scaling", "signed permutations")
SIDES = ("activations", "pre-activations")
ALL, ROTATED = frozenset(GROUPS), frozenset({"orthogonal", "signed permutations"})
MOVED, SIGNED = frozenset({"translations"}), frozenset({"signed permutations"})
UNITS = MOVED | SIGNED | {"scaling"}

KEEPS: dict[str, tuple[RiemannianMetric, frozenset[str], frozenset[str]]] = {
    "gradient descent": (EuclideanMetric(), ROTATED, ROTATED | MOVED),
    "Adam": (RootMeanSquare(1e-2), SIGNED, SIGNED | MOVED),
    "Shampoo": (Shampoo(1e-2), ROTATED, ROTATED | MOVED),
    "SOAP": (SOAP(1e-2, of="examples"), ROTATED, ROTATED | MOVED),
    "batch normalization": (BatchNormalization(epsilon=0.0), UNITS, ROTATED | MOVED),
    "whitening": (Whitening("activations", 0.0), ALL, ROTATED | MOVED),
    "K-FAC": (KFAC(), ALL, ALL),
    "K-FAC, factors damped": (KFAC().damp_factors(0.1), ROTATED, ROTATED | MOVED),
    "EKFAC": (EKFAC() + 0.1 * EuclideanMetric(), ROTATED, ROTATED | MOVED),
}
"""What theory says is kept of activations and of pre-activations, among GROUPS."""


@dataclass
class Small:
    """A small network with three binary outputs, and its batch."""

    network: Network
    x: Tensor
    y: Tensor

    @classmethod
    def draw(cls, run: Run, kind: str, square: bool = False) -> Small:
        layers: dict[str, tuple[Callable[[], nn.Module], ...]] = {
            "dense": (lambda: nn.Linear(4, 5), nn.Tanh, lambda: nn.Linear(5, 3)),
            "convolutional": (
                lambda: nn.Conv2d(2, 3, 3, padding=1), nn.Tanh, nn.Flatten, lambda: nn.Linear(48, 3),
            ),
        }  # fmt: skip
        if square:  # every gradient has full rank, as a matrix
            layers = {
                "dense": (lambda: nn.Linear(4, 4, bias=False), nn.Tanh, lambda: nn.Linear(4, 4, bias=False)),
                "convolutional": (
                    lambda: nn.Conv2d(1, 4, 2, bias=False), nn.Tanh, lambda: nn.AvgPool2d(3), nn.Flatten,
                    lambda: nn.Linear(4, 4, bias=False),
                ),
            }  # fmt: skip
        model = nn.Sequential(*(make() for make in layers[kind])).double()
        for name, p in model.named_parameters():
            with torch.no_grad():
                fan = p[0].numel() if p.ndim > 1 else 10
                p.copy_((run.normal(f"{kind}{square}: {name}", p.numel()) / fan**0.5).view(p.shape))
        shape = (4,) if kind == "dense" else (1, 4, 4) if square else (2, 4, 4)
        x = run.normal(f"{kind}: inputs", 120, *shape) + 0.3
        outputs = 4 if square else 3
        y = (run.normal(f"{kind}: labels", 120, outputs) > 0).double()
        return cls(Network.from_torch(model, Bernoulli(), x), x, y)

    def batches(self, steps: int) -> Batches:
        parts = [slice(0, 60), slice(60, 120), slice(30, 90)]
        return [(self.x[parts[t % 3]], self.y[parts[t % 3]]) for t in range(steps)]

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return self.network.likelihood.loss(model(x), y)

    def fresh(self) -> Network:
        return Network.from_torch(copy.deepcopy(self.network.module), self.network.likelihood, self.x)


KINDS = ("dense", "convolutional")


def symmetries(run: Run) -> None:
    """The expression, what it claims, what random elements of the groups show, and what theory says."""
    columns = ("method", "its metric", "keeps of activations", "keeps of pre-activations")
    rows: dict[str, tuple[str, str, str, str]] = {}
    for kind in KINDS:
        problem = Small.draw(run, kind)
        for name, (metric, of_A, of_S) in KEEPS.items():
            report = check_invariance(
                metric, problem.network, problem.x, problem.y, Bernoulli(),
                cells=[(side, group) for side in SIDES for group in GROUPS], examples=1,
                seed=run.number_of(f"{kind} {name}") % 10_000, shrink=False, progress=False,
            )  # fmt: skip
            held = {side: frozenset(c.group for c in report if c.on == side and c.verdict == "held") for side in SIDES}
            lost = {
                side: frozenset(c.group for c in report if c.on == side and c.verdict == "refuted") for side in SIDES
            }
            claimed = {side: frozenset(c.group for c in report if c.on == side and c.claimed) for side in SIDES}
            expected = dict(zip(SIDES, (of_A, of_S), strict=True))
            unlike = sum(len(held[s] ^ expected[s]) + len(lost[s] ^ (ALL - expected[s])) for s in SIDES)
            run.near(f"{name}, {kind}: what is measured is what theory says", unlike, 0, 0, "of ten cells")
            unlike = sum(len(claimed[side] ^ expected[side]) for side in SIDES)
            run.near(f"{name}, {kind}: and what the expression claims", unlike, 0, 0, "of ten cells")
            said = [", ".join(g for g in GROUPS if g in held[s]) if held[s] != ALL else "all" for s in SIDES]
            rows[name] = (name, repr(metric), said[0], said[1])
    run.table(
        Table("one expression each; groups of changes of frame that leave the step", columns, list(rows.values()))
    )


# --- steps against what others compute --------------------------------------------------------------------------------


def by_torch(problem: Small, make: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer], steps: int) -> Tensor:
    model = copy.deepcopy(problem.network.module)
    optimizer = make(model.parameters())
    for x, y in problem.batches(steps):
        optimizer.zero_grad()
        problem.loss(model, x, y).backward()
        optimizer.step()
    return flat(model)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def by_hand(problem: Small, step: Callable[[plain.Matrices], plain.Matrices | None], rate: float, steps: int) -> Tensor:
    """Gradients by autograd, as matrices [W b], and what an oracle makes of them."""
    model = copy.deepcopy(problem.network.module)
    for x, y in problem.batches(steps):
        found = step(plain.gradients(model, problem.loss(model, x, y)))
        if found is not None:
            with torch.no_grad():
                for name, t in plain.parameters(model, found).items():
                    model.get_parameter(name).sub_(rate * t)
    return flat(model)


def outside(run: Run) -> None:
    """Trajectories of twelve steps over three minibatches: the metric's, and those of torch and of plain formulas."""
    rows: list[tuple[str | float, ...]] = []
    for kind in KINDS:
        problem, square = Small.draw(run, kind), Small.draw(run, kind, square=True)

        def ours(method: Averaged, rate: Callable[[int], float], p: Small = problem) -> Tensor:
            network = p.fresh()
            method.train(network, p.batches(12), rate, lambda: None)
            return flat(network.module)

        adam, rms = RootMeanSquare(1e-8), RootMeanSquare(0.0)
        shampoo, soap = plain.Shampoo(0.8, 1e-2), plain.SOAP(0.95, 3)
        pairs = {
            "Adam": (
                by_torch(problem, lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.9, 0.99)), 12),
                ours(Averaged(adam, 0.99, 0.9), lambda t: 0.01), problem,
            ),
            "RMSProp": (
                by_torch(problem, lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.9, eps=0.0), 12),
                ours(Averaged(rms, 0.9), lambda t: 0.01 / (1 - 0.9**t) ** 0.5), problem,
            ),
            "Adagrad": (
                by_torch(problem, lambda p: torch.optim.Adagrad(p, lr=0.02, eps=0.0), 12),
                ours(Averaged(rms, 0.9999, schedule="growing"), lambda t: 0.02 / t**0.5), problem,
            ),
            "Shampoo": (
                by_hand(problem, shampoo.step, 0.05, 12), ours(Averaged(Shampoo(1e-2), 0.8), lambda t: 0.05), problem,
            ),
            "SOAP": (
                by_hand(square, soap.step, 0.01, 12),
                ours(Averaged(SOAP(0.0, every=3), 0.95, silent=1), lambda t: 0.01, square), square,
            ),
        }  # fmt: skip
        for name, (theirs, mine, p) in pairs.items():
            moved = float((theirs - flat(p.network.module)).norm())
            off = float((theirs - mine).norm()) / moved
            run.below(f"{name}, {kind}: the metric's trajectory is the optimizer's", off, SAME, ROUNDING)
            rows.append((name, kind, "twelve steps", off))
        wrong = ours(Averaged(adam, 0.99, 0.9), lambda t: 0.01 * (1 - 0.9**t))
        off = float((wrong - pairs["Adam"][0]).norm() / (wrong - flat(problem.network.module)).norm())
        run.above(f"Adam without the correction of its first moment is another, {kind}", off, 1e-3, control=True)
        rows += one_step(run, kind, problem)
    run.table(Table("against torch and plain formulas", ("method", "network", "what", "distance, relative"), rows))


def one_step(run: Run, kind: str, problem: Small) -> list[tuple[str | float, ...]]:
    """The sharp of a metric against a formula."""
    network, x, y = problem.network, problem.x, problem.y
    D = plain.gradients(network.module, problem.loss(network.module, x, y))

    def root(z: Tensor) -> Tensor:
        return torch.diag_embed((z.sigmoid() * (1 - z.sigmoid())).sqrt())

    kfac = directions(network.module, x, root, lambda z: Bernoulli().loss(z, y))
    expected = {
        "whitening": (Whitening("activations", 0.1), plain.normalized_step(network.module, x, D, True, 0.1)),
        "batch normalization": (
            BatchNormalization(epsilon=0.1),
            plain.normalized_step(network.module, x, D, False, 0.1),
        ),
        "K-FAC": (KFAC(), plain.matrices(network.module, kfac)),
        "EKFAC": (EKFAC() + 0.1 * EuclideanMetric(), plain.ekfac_step(network.module, x, root, D, 0.1)),
    }
    rows: list[tuple[str | float, ...]] = []
    found, lengths = {}, {}
    for name, (metric, theirs) in expected.items():
        v = plain.matrices(network.module, natural_gradient(network, metric, x, y).to_parameters())
        off = sum(float((v[k] - theirs[k]).square().sum()) for k in v) ** 0.5
        lengths[name] = sum(float(t.square().sum()) for t in theirs.values()) ** 0.5
        run.below(f"{name}, {kind}: the metric's step is the formula's", off / lengths[name], SAME, ROUNDING)
        found[name] = v
        rows.append((name, kind, "one step", off / lengths[name]))
    for one, other in (("whitening", "batch normalization"), ("K-FAC", "EKFAC")):
        off = sum(float((found[one][k] - expected[other][1][k]).square().sum()) for k in found[one]) ** 0.5
        run.above(f"{one} is not {other}, {kind}", off / lengths[other], 1e-3, control=True)
    return rows


EXPERIMENT = Experiment(
    "adaptive-and-kfac",
    "Adaptive methods, normalization and K-FAC as metrics",
    "The view of natural-gradient surveys; Kingma & Ba 2015, Gupta et al. 2018, Vyas et al. 2024, George et al. 2018",
    "Adam and its kin, Shampoo, SOAP, batch normalization, whitening, K-FAC and EKFAC are each the sharp of one "
    "metric; its expression tells which changes of frame the method does not see, and its running average takes "
    "the steps of the optimizer.",
    (("symmetries", symmetries), ("steps", outside), ("training", training)),
)
