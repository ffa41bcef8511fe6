"""Second-order steps as optimal control along the layers, and the inverse preconditioners that are learned from it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from ..inner_products import Gram, InnerProduct, direct_sum
from ..layerwise import gauss_newton_step, newton_model, newton_step
from ..likelihoods import Categorical, EuclideanOutput
from ..metrics import EuclideanMetric, Fisher, FixedMetric, LearnedPreconditioner, MetricAverage, RiemannianMetric
from ..metrics.learned_structures import Structured
from ..natural_gradient import natural_gradient
from ..networks import Empirical, Network
from ..reparametrize import Twin
from ..solvers import Riccati
from .base import Experiment, Run
from .descent import best_of, minibatches
from .digits import digits
from .framed import Problem, apart
from .plain_lqr import dense_form, dense_hessian, recursion, stages_of
from .records import Panel, Picture, Series, Table

SAME = 1e-9
BROKEN = 1e-3
LEARNED: tuple[Structured, ...] = ("scalar", "diagonal", "kfac")
ROUNDING = "damped forms of condition below 1e4, in float64"


@dataclass
class Small:
    """A classifier small enough for dense Hessians, and its batch."""

    network: Network
    x: Tensor
    y: Tensor

    @classmethod
    def draw(
        cls, run: Run, act: type[nn.Module] = nn.Tanh, widths: tuple[int, ...] = (3, 4, 4, 3), n: int = 6
    ) -> Small:
        layers: list[nn.Module] = []
        for k, (i, o) in enumerate(pairwise(widths)):
            layer = nn.Linear(i, o, dtype=torch.float64)
            with torch.no_grad():
                layer.weight.copy_(1.2 * run.normal(f"W{k}", o, i) / i**0.5)
                layer.bias.copy_(0.3 * run.normal(f"b{k}", o))
            layers += [layer, act()]
        x = run.normal("x", n, widths[0])
        y = torch.randint(widths[-1], (n,), generator=run.generator("y"))
        return cls(Network.from_torch(nn.Sequential(*layers[:-1]), Categorical(), x), x, y)

    @property
    def model(self) -> nn.Sequential:
        assert isinstance(self.network.module, nn.Sequential)
        return self.network.module

    def loss(self, z: Tensor) -> Tensor:
        return cross_entropy(z, self.y)

    def at_outputs(self, f: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Gradient and Hessian of a function of the outputs."""
        z = self.model(self.x).detach()
        H = torch.autograd.functional.hessian(f, z).reshape(z.numel(), z.numel())
        return torch.autograd.functional.jacobian(f, z).flatten(), H

    @property
    def gradient(self) -> Tensor:
        g = torch.autograd.grad(self.loss(self.model(self.x)), list(self.model.parameters()))
        return torch.cat([t.flatten() for t in g])

    def eyes(self, scale: float) -> list[Tensor]:
        """Of every layer a multiple of the identity on its parameters."""
        sizes = [sum(p.numel() for p in m.parameters()) for m in self.model if isinstance(m, nn.Linear)]
        return [scale * torch.eye(n, dtype=torch.float64) for n in sizes]

    def flat(self, v: object) -> Tensor:
        return torch.cat([v.to_parameters()[name].flatten() for name in self.network.parameters])  # type: ignore[attr-defined]


def miss(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def steps(run: Run) -> None:
    """The recursion, in plain torch and in the library, against dense solves."""
    rows: list[tuple[str | float, ...]] = []
    for act in (nn.Tanh, nn.ReLU):
        problem = Small.draw(run, act)
        network, x, y, n = problem.network, problem.x, problem.y, len(problem.x)
        costate, of_loss = problem.at_outputs(problem.loss)
        euclidean = torch.eye(len(costate), dtype=torch.float64) / n
        H = dense_hessian(problem.model, problem.loss, x)
        strength = 0.5 + 1.5 * max(0.0, -float(torch.linalg.eigvalsh(H)[0]))
        none = torch.zeros_like(costate)
        kinds = {
            "Newton": (strength, costate, of_loss, H, newton_step(network, x, y, strength)),
            "Fisher": (
                0.1, none, of_loss, dense_form(problem.model, x, of_loss), gauss_newton_step(network, x, y, 0.1),
            ),
            "Gauss-Newton": (
                0.1, none, euclidean, dense_form(problem.model, x, euclidean),
                gauss_newton_step(network, x, y, 0.1, output=EuclideanOutput()),
            ),
        }  # fmt: skip
        g = problem.gradient
        for kind, (damping, p, form, dense, step) in kinds.items():
            word = f"{kind}, {act.__name__}"
            C = dense + damping * torch.eye(len(g), dtype=g.dtype)
            expected, value = -torch.linalg.solve(C, g), -0.5 * float(g @ torch.linalg.solve(C, g))
            by_stages, change = recursion(stages_of(problem.model, x, p, problem.eyes(damping)), costate, form)
            found = miss(problem.flat(step.vector), expected)
            run.below(
                f"the recursion as published is the damped solve, {word}", miss(by_stages, expected), SAME, ROUNDING
            )
            run.below(f"and that of the library, {word}", found, SAME, ROUNDING)
            run.near(f"the sweep back gives -½ g C⁻¹ g, {word}", change, value, SAME * abs(value), ROUNDING)
            run.near(f"in the library too, {word}", float(step.change), value, SAME * abs(value), ROUNDING)
            layerwise = torch.block_diag(*blocks(C, [len(R) for R in problem.eyes(1.0)]))
            cut = miss(-torch.linalg.solve(layerwise, g), expected)
            run.above(f"each layer for itself takes another step, {word}", cut, 1e-2, control=True)
            rows.append((kind, act.__name__, miss(by_stages, expected), found, cut))
        for kind, metric in (("Fisher", Fisher()), ("Gauss-Newton", None)):
            if metric is not None:
                v = natural_gradient(network, metric, x, y, damping=0.1, solver=Riccati())
                found = miss(-problem.flat(v), problem.flat(kinds[kind][-1].vector))
                run.below(f"as a solver of the metric, {act.__name__}", found, SAME, ROUNDING)
    columns = ("model", "units", "plain recursion", "library", "layers apart")
    run.table(Table("distance from the dense damped solve, relative", columns, rows))


def blocks(C: Tensor, sizes: list[int]) -> list[Tensor]:
    starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
    return [C[a:b, a:b] for a, b in pairwise(starts)]


def curvature(run: Run) -> None:
    """Where second derivatives of stages come from: the costate, and the units."""
    for act in (nn.Tanh, nn.ReLU):
        problem = Small.draw(run, act)
        z = problem.model(problem.x).detach()

        def divergence(moved: Tensor, z: Tensor = z) -> Tensor:
            return kl_div(moved.log_softmax(1), z.softmax(1), reduction="batchmean")

        slope, form = problem.at_outputs(divergence)
        run.below(f"the divergence has no slope where it starts, {act.__name__}", slope.abs().max(), 1e-15, "float64")
        costate, of_loss = problem.at_outputs(problem.loss)
        same = float((form - of_loss).abs().max())
        run.below(f"and its Hessian is that of the loss in the logits, {act.__name__}", same, 1e-12, "both the Fisher")
        by_divergence, _ = recursion(stages_of(problem.model, problem.x, slope, problem.eyes(0.1)), costate, form)
        expected = problem.flat(gauss_newton_step(problem.network, problem.x, problem.y, 0.1).vector)
        claim = f"so with its costates Q and M vanish, and the Fisher step results, {act.__name__}"
        run.below(claim, miss(by_divergence, expected), SAME, ROUNDING)
        stages = stages_of(problem.model, problem.x, costate, problem.eyes(0.0))
        Q, M, R = (max(float(getattr(s, k).abs().max()) for s in stages) for k in "QMR")
        if act is nn.ReLU:
            run.near("rectifiers: Q and R are zero", Q + R, 0.0, 0.0, "piecewise linear, a weight used once")
        else:
            run.above("smooth units have Q", Q, BROKEN, control=True)
            run.above("and R", R, BROKEN, control=True)
        run.above(f"M is not zero, {act.__name__}", M, 1e-2, control=True)
        each = [s.curvature for s in newton_model(problem.network, problem.x, problem.y).stages.each]
        seen = [k.Q is not None for k in each], [k.M is not None for k in each]
        run.near(f"the library carries no more, {act.__name__}", any(seen[0]), act is nn.Tanh, 0)
        run.near(f"and no less, {act.__name__}", any(seen[1]), True, 0)


def equivariance(run: Run) -> None:
    """Three steps in affine frames on every space: the damping moves along, or is λ times the coordinates."""
    whole = Problem.draw(run, "dense", examples=20)
    R = positive_forms(run, whole.network)
    twins = {group: whole.twin(group, run.number_of(group)) for group in ("affine", "orthogonal")}
    rows: list[tuple[str | float, ...]] = []
    for kind, strength, rate in (("Fisher", 0.1, 0.2), ("Newton", 3.0, 1.0)):
        for name, moves in (("transported", True), ("λ times the coordinates", False)):
            damping = strength * (FixedMetric(R, "R") if moves else EuclideanMetric())

            def form(
                twin: Twin, moves: bool = moves, damping: RiemannianMetric = damping, s: float = strength
            ) -> RiemannianMetric:
                return s * FixedMetric(twin.transport(R), "R") if moves else damping

            base = path(whole, kind, damping, rate)
            found = {group: apart(base, path(whole, kind, form(twin), rate, twin)) for group, twin in twins.items()}
            rows.append((kind, name, *found.values()))
            if moves:
                bound = max(whole.rounding(twin) for twin in twins.values())
                run.below(f"{kind}, R transported: the same path in affine frames", found["affine"], bound, "rounding")
            else:
                run.above(f"{kind}, λ times the coordinates: another", found["affine"], BROKEN, control=True)
                run.below(f"{kind}, λ times the coordinates: the same in rotated frames", found["orthogonal"], 1e-9)
    run.table(Table("three steps: difference of predictions", ("step", "damping", *twins), rows))


def positive_forms(run: Run, network: Network) -> InnerProduct:
    parts: dict[str, InnerProduct] = {}
    for path, V in network.tangent_space.parts:
        root = run.normal(f"R of {path}", V.dim, V.dim)
        parts[path] = Gram(V, root @ root.mT / V.dim + 0.3 * torch.eye(V.dim, dtype=root.dtype))
    return direct_sum(parts)


def path(problem: Problem, kind: str, damping: RiemannianMetric, rate: float, twin: Twin | None = None) -> Tensor:
    """Predictions on other inputs, at the start and after each of three steps."""
    network = problem.network if twin is None else twin.network
    x, others = (t if twin is None else twin.inputs(t) for t in (problem.x, problem.others))
    kept = {name: p.detach().clone() for name, p in network.parameters.items()}
    found = []
    try:
        for k in range(4):
            z = network.outputs(others)
            found.append(torch.sigmoid(z if twin is None else twin.to_original(z)).detach())
            if k < 3:
                make = newton_step if kind == "Newton" else gauss_newton_step
                network.move_(make(network, x, problem.y, damping).vector, rate)
    finally:
        with torch.no_grad():
            for name, p in network.parameters.items():
                p.copy_(kept[name])
    return torch.stack(found)


def learned(run: Run) -> None:
    """The model J(U) = ½ C(Ug, Ug) - g(Ug) is lowered, never below its minimum over all steps."""
    problem, strength = Small.draw(run, widths=(3, 5, 3), n=20), 0.1
    damping = strength * EuclideanMetric()
    exact = gauss_newton_step(problem.network, problem.x, problem.y, damping)
    least, g = float(exact.change), problem.network.differential(problem.x, problem.y)
    rows, lines, ends = [], [], {}
    for structure in get_args(Structured):
        teacher = LearnedPreconditioner(structure, steps=run.choose(200, 600), lr=0.03, damping=damping)
        with problem.network.observe(problem.x, Empirical(problem.y)) as seen:
            lesson = teacher.learn(seen)
        J = lesson.objective
        ends[structure] = share = (J[-1] - J[0]) / (least - J[0])
        run.above(f"learning lowers the model: share of what is to be had, {structure}", share, 0.0)
        run.below(f"which is never more than all, {structure}", share, 1 + 1e-9, "C is positive")
        v = lesson.value.sharp(g)
        rows.append((structure, J[0], J[-1], share, miss(-problem.flat(v), problem.flat(exact.vector))))
        lines.append(Series(structure, range(len(J)), [j - least for j in J]))
        if structure == "dense":
            U = [part.of.matrix() for part in lesson.value.parts.values()]  # type: ignore[attr-defined]
    run.above(
        "blocks without a structure come near the step of all layers: share of J", ends["dense"], 0.9, "one batch"
    )
    run.above("one number per layer is left behind", ends["dense"] - ends["scalar"], 0.01, control=True)
    C = problem.network.fisher(problem.x).matrix() + strength * torch.eye(
        problem.network.tangent_space.dim, dtype=torch.float64
    )
    inverses = [torch.linalg.inv(C[at, at]) for at in problem.network.tangent_space.slices.values()]
    off = max(float((a - b).norm() / b.norm()) for a, b in zip(U, inverses, strict=True))
    run.above("and are no inverses of the Fisher's blocks: J sees U through U g alone", off, 0.1, control=True)
    columns = ("structure", "J at the start", "J learned", "share", "step, off the exact one")
    run.table(Table(f"learned on one batch; the minimum is {least:.4g}", columns, rows))
    panel = Panel("J above its minimum", "step of learning", "J - min J", lines, log="y")
    run.picture(Picture("learning", "Inverse preconditioners learn the quadratic model of one batch.", [panel]))


def training(run: Run) -> None:
    """Digits: gradient descent with a learned inverse, kept for twenty steps and averaged, against plain descent."""
    data = digits(run.data, side=8, most=run.choose(1400, 6000))
    run.results.data = data.name
    number, hidden = run.choose(quick=80, full=400), run.choose(quick=16, full=50)
    torch.manual_seed(run.number_of("classifier"))
    start = nn.Sequential(nn.Linear(64, hidden), nn.Tanh(), nn.Linear(hidden, 10)).double()
    x, y = data.flat, data.labels
    batches = minibatches(x, y, 100, number, run.generator("order"))

    def curve(rate: float, structure: Structured | None) -> Tensor:
        model = copy.deepcopy(start)
        network = Network.from_torch(model, Categorical(), x[:100])
        average, g, losses = None, None, []
        if structure is not None:
            teacher = LearnedPreconditioner(structure, steps=40, lr=0.1, damping=0.05 * EuclideanMetric())
            average = MetricAverage(teacher, decay=0.8)
        for t, (a, b) in enumerate(batches):
            with torch.no_grad():
                losses.append(cross_entropy(model(x), y))
            if average is not None and t % 20 == 0:
                with network.observe(a, Empirical(b)) as seen:
                    g = average.update(seen)
            df = network.differential(a, b)
            v = EuclideanMetric().at(network.observe(a)).sharp(df) if g is None else g.sharp(df)
            network.move_(v, -rate)
        with torch.no_grad():
            losses.append(cross_entropy(model(x), y))
        return torch.stack(losses)

    rates = (3.0, 1.0, 0.3, 0.1)
    curves: dict[str, Tensor] = {}
    compared: dict[str, Structured | None] = {"gradient descent": None, **{f"learned, {s}": s for s in LEARNED}}
    for words, structure in compared.items():
        rate, curves[words] = best_of(rates, lambda rate, s=structure: curve(rate, s))  # type: ignore[misc]
        run.number(f"digits: best rate, {words}", rate)
        run.number(f"digits: loss, {words}", curves[words][-1])
    last, plain = curves["learned, kfac"][-1], curves["gradient descent"][-1]
    run.below(
        "digits: a learned inverse ends below gradient descent", last, plain, "equal steps, each at its best rate"
    )
    run.below("digits: it learns at all", last, 0.2 * curves["learned, kfac"][0], "a fifth of the loss at the start")
    lines = [Series(words, range(number + 1), losses) for words, losses in curves.items()]
    panel = Panel(f"{data.name}, 64-{hidden}-10", "step", "training loss", lines, log="y")
    run.picture(Picture("training", "A learned inverse, kept for twenty steps, against gradient descent.", [panel]))


EXPERIMENT = Experiment(
    "layerwise-lqr",
    "Second-order steps by optimal control along the layers",
    "Dufort-Labbé, Bacon, Pascanu, Lacoste-Julien & Baratin 2026, arXiv:2605.04230",
    "The damped Newton, Gauss-Newton and Fisher steps across all layers are those of a linear-quadratic regulator, "
    "whose state is a change of activations and whose controls are the parameters; with damping that moves along "
    "they see no affine frame. Structured inverses that are learned on its objective lower it. The paper's own "
    "numbers are not known, so curves of training are qualitative.",
    (
        ("steps", steps), ("curvature", curvature), ("equivariance", equivariance), ("learned", learned),
        ("training", training),
    ),
)  # fmt: skip
