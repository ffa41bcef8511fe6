"""Structured natural gradient: gradient descent between inserted layers that are a metric's frames."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from ..likelihoods import Bernoulli, Categorical
from ..metrics import EKFAC, KFAC, EuclideanMetric, Fisher, RelativeFisher, RiemannianMetric
from ..natural_gradient import natural_gradient
from ..networks import Network
from .base import Experiment, Run
from .descent import Descent, best_of, minibatches
from .digits import digits
from .framed import SHAPES, Problem, apart
from .plain_kfac import factors
from .records import Panel, Picture, Series, Table

BROKEN = 1e-4
"""A difference of paths, in units of the path, that no rounding explains."""
SAME = 1e-9
ROUNDING = "damped forms of condition below 1e5, in float64"
METRICS: dict[str, RiemannianMetric] = {
    "K-FAC, factors damped": KFAC().damp_factors(0.1),
    "EKFAC": EKFAC() + 0.1 * EuclideanMetric(),
    "blocks of the Fisher": Fisher("block-diagonal") + 0.1 * EuclideanMetric(),
    "relative Fisher": RelativeFisher("tanh") + 0.1 * EuclideanMetric(),
}


def descent(problem: Problem, momentum: float = 0.9, steps: int = 6, rate: float | None = None) -> Descent:
    """All of the batch at every step, other inputs watched; two refreshes."""
    batches = [(problem.x, problem.y)] * steps
    return Descent(
        problem.network, batches, problem.x, lambda model: torch.sigmoid(model(problem.others)),
        0.3 * problem.step if rate is None else rate, momentum, every=2,
    )  # fmt: skip


def step_by_step(run: Run) -> None:
    """`torch.optim.SGD` on raw parameters against vectors of the network, with momentum and through refreshes."""
    rows: list[tuple[str | float, ...]] = []
    for kind in SHAPES:
        loop, found = descent(Problem.draw(run, kind)), []
        for name, metric in METRICS.items():
            natural = loop.natural(metric)
            framed, jump = loop.framed(metric)
            found.append(apart(natural, framed))
            run.below(f"descent in frames is the natural gradient, {kind}, {name}", found[-1], SAME, ROUNDING)
            run.below(f"a refresh leaves the function, {kind}, {name}", jump, SAME, ROUNDING)
        lost = apart(natural, loop.plain(loop.rate))
        run.above(f"descent in the coordinates is another, {kind}", lost, BROKEN, control=True)
        rows.append((kind, *found, lost))
    columns = ("network", *METRICS, "in the coordinates")
    run.table(Table("SGD in frames against the natural gradient: difference of paths", columns, rows))


class Inserted(nn.Module):
    """A linear layer between two fixed ones: s = E_S W' E_Aᵀ (a, 1). Only W' is trained."""

    def __init__(self, W: Tensor, left: Tensor, right: Tensor):
        super().__init__()
        self.left, self.right = left, right
        self.raw = nn.Parameter(torch.linalg.solve(left, torch.linalg.solve(right.mT, W, left=False)))

    @property
    def W(self) -> Tensor:
        """What it stands for."""
        W: Tensor = self.left @ self.raw @ self.right.mT
        return W

    def forward(self, a: Tensor) -> Tensor:
        hull = torch.cat([a, a.new_ones(len(a), 1)], 1)
        s: Tensor = hull @ self.right @ self.raw.mT @ self.left.mT
        return s


def frame(form: Tensor, kind: str, turn: Tensor) -> Tensor:
    """E with E Eᵀ the inverse of a form: its symmetric root, a triangular one, or that turned."""
    values, axes = torch.linalg.eigh(form)
    if kind == "symmetric":
        return (axes * values.rsqrt()) @ axes.mT
    if kind == "inverse of it":  # a mistake
        return (axes * values.sqrt()) @ axes.mT
    E = torch.linalg.inv(torch.linalg.cholesky(form)).mT
    return E @ turn if kind == "turned" else E


def inserted_layers(run: Run) -> None:
    """By hand and without the library: moments by hooks, two fixed layers around each W', SGD, and anew at each step.

    The w' = G^½ w of the paper is the symmetric root; every other root of the inverse takes the same steps.
    """
    problem = Problem.draw(run, "dense")
    steps, rate = 5, problem.step
    kfac = problem.path(lambda twin: KFAC(), steps=steps)
    layers = [m for m in problem.network.module.children() if isinstance(m, nn.Linear)]
    turns = {d: torch.linalg.qr(run.normal(f"turn {d}", d, d)).Q for d in range(2, 8)}
    for kind in ("symmetric", "triangular", "turned", "inverse of it"):
        weights = [torch.cat([m.weight, m.bias[:, None]], 1).detach() for m in layers]
        path = [kfac[0]]
        for _ in range(steps):
            plain = plain_model(weights)
            moments = factors(plain, problem.x, lambda z: torch.diag_embed((z.sigmoid() * (1 - z.sigmoid())).sqrt()))
            parts = [
                Inserted(W, frame(G, kind, turns[len(G)]), frame(A, kind, turns[len(A)]))
                for W, (G, A) in zip(weights, moments.values(), strict=True)
            ]
            model = nn.Sequential(*(m for part in parts for m in (part, nn.Tanh())))[:-1]
            sgd = torch.optim.SGD(model.parameters(), lr=rate)
            Bernoulli().loss(model(problem.x), problem.y).backward()
            sgd.step()
            weights = [part.W.detach() for part in parts]
            path.append(torch.sigmoid(plain_model(weights)(problem.others)).detach())
        off = apart(kfac, torch.stack(path)) if all(bool(p.isfinite().all()) for p in path) else 1.0
        claim = f"two inserted layers make descent K-FAC, {kind} roots"
        if kind == "inverse of it":
            run.above("with roots of the moments in place of roots of inverses it is not", off, BROKEN, control=True)
        else:
            run.below(claim, off, 1e-7, "moments of condition below 1e5, and five steps")


def plain_model(weights: list[Tensor]) -> nn.Module:
    layers: list[nn.Module] = []
    for W in weights:
        layer = nn.Linear(W.shape[1] - 1, W.shape[0], dtype=W.dtype)
        with torch.no_grad():
            layer.weight.copy_(W[:, :-1])
            layer.bias.copy_(W[:, -1])
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def rectifiers(run: Run, widths: tuple[int, ...] = (5, 7, 6, 3)) -> tuple[Network, Tensor, Tensor]:
    layers: list[nn.Module] = []
    for k, (n, m) in enumerate(pairwise(widths)):
        layer = nn.Linear(n, m, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(run.normal(f"rectifiers {k}", m, n) / n**0.5)
            layer.bias.copy_(0.3 * run.normal(f"biases {k}", m))
        layers += [layer, nn.ReLU()]
    x = run.normal("inputs of rectifiers", 120, widths[0])
    y = (x @ run.normal("classes of rectifiers", widths[0], widths[-1])).argmax(1)
    return Network.from_torch(nn.Sequential(*layers[:-1]), Categorical(), x), x, y


def published(model: nn.Module, x: Tensor, y: Tensor, ridge: float) -> dict[str, Tensor]:
    """The step of the published code, by hand: a matrix for each hidden unit, one for the first and last layers."""
    parameters = dict(model.named_parameters())
    loss = nn.functional.cross_entropy(model(x), y)
    gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    linear = [(name, m) for name, m in model.named_children() if isinstance(m, nn.Linear)]
    found, h = {}, x
    for k, (name, layer) in enumerate(linear):
        a = torch.cat([h, torch.ones_like(h[:, :1])], 1)
        s = layer(h).detach()
        D = torch.cat([gradients[f"{name}.weight"], gradients[f"{name}.bias"][:, None]], 1)
        rows = []
        for o in range(len(D)):
            weight = torch.ones_like(s[:, o]) if k in (0, len(linear) - 1) else torch.sigmoid(s[:, o]).square()
            G = (a * weight[:, None]).mT @ a / len(a)
            rows.append(torch.linalg.solve(G + ridge * torch.eye(len(G), dtype=G.dtype), D[o]))
        step = torch.stack(rows)
        found[f"{name}.weight"], found[f"{name}.bias"] = step[:, :-1], step[:, -1]
        h = torch.relu(s)
    return found


def relative_fisher(run: Run) -> None:
    """What the published code computes: relative Fisher information, unit by unit, of rectifiers."""
    network, x, y = rectifiers(run)
    ridge = 1e-2
    expected = published(network.module, x, y, ridge)
    flat = torch.cat([expected[name].flatten() for name in network.parameters])

    def off(metric: RiemannianMetric) -> float:
        v = natural_gradient(network, metric + ridge * EuclideanMetric(), x, y).to_parameters()
        return float((torch.cat([v[name].flatten() for name in network.parameters]) - flat).norm() / flat.norm())

    run.below("the published code is the natural gradient of a relative Fisher", off(RelativeFisher()), 1e-10, ROUNDING)
    exact = off(RelativeFisher("rectifier"))
    run.above("with the slope of rectifiers itself it is another", exact, BROKEN, control=True)
    loop = Descent(network, [(x, y)] * 6, x, lambda model: model(x).softmax(1), 0.05, 0.9, every=2)
    metric = RelativeFisher() + ridge * EuclideanMetric()
    found = apart(loop.natural(metric), loop.framed(metric)[0])
    run.below("and descent in its frames", found, SAME, ROUNDING)
    problem = Problem.draw(run, "dense")
    form = RelativeFisher("tanh")
    base = problem.path(lambda twin: form, step=0.02)
    for space, group, keeps in (("activations", "affine", True), ("pre-activations", "scaling", False)):
        twin = problem.twin(group, run.number_of(f"{space} {group}"), (space,))
        found = apart(base, problem.path(lambda twin: form, twin, step=0.02))
        if keeps:
            run.below(f"it keeps {group} frames of {space}", found, problem.rounding(twin), "five steps, undamped")
        else:
            run.above(f"and does not keep {group} of {space}", found, BROKEN, control=True)


def refreshing(run: Run) -> None:
    """When frames change, raw parameters and velocities have to change with them."""
    rows: list[tuple[str | float, ...]] = []
    for kind in SHAPES:
        loop = descent(Problem.draw(run, kind))
        metric = METRICS["K-FAC, factors damped"]
        natural = loop.natural(metric)
        framed, jump = loop.framed(metric, "parameters left")
        run.above(f"raw parameters left as they are: the function jumps, {kind}", jump, BROKEN, control=True)
        parameters = apart(natural, framed)
        run.above(f"and the path is another, {kind}", parameters, BROKEN, control=True)
        framed, still = loop.framed(metric, "velocity left")
        velocity = apart(natural, framed)
        run.below(f"a velocity left as it is: the function stays, {kind}", still, SAME, ROUNDING)
        run.above(f"and the path is another all the same, {kind}", velocity, BROKEN, control=True)
        plain = descent(Problem.draw(run, kind), momentum=0.0)
        unmoved = apart(plain.natural(metric), plain.framed(metric, "velocity left")[0])
        run.below(f"without momentum there is no velocity to leave, {kind}", unmoved, SAME, ROUNDING)
        rows.append((kind, jump, parameters, velocity))
    run.table(Table(
        "what is lost when frames are refreshed wrongly",
        ("network", "jump of probabilities", "path, parameters left", "path, velocity left"), rows,
    ))  # fmt: skip


def training(run: Run) -> None:
    """A classifier of digits, with K-FAC's frames made anew every ten steps."""
    data = digits(run.data, side=8, most=run.choose(1400, 6000))
    run.results.data = data.name
    steps, hidden = run.choose(quick=60, full=300), run.choose(quick=20, full=60)
    torch.manual_seed(run.number_of("classifier"))
    model = nn.Sequential(nn.Linear(64, hidden), nn.Tanh(), nn.Linear(hidden, 10)).double()
    x, y = data.flat, data.labels
    network = Network.from_torch(model, Categorical(), x[:200])
    batches = minibatches(x, y, 100, steps, run.generator("order"))

    def loss(model: nn.Module) -> Tensor:
        return nn.functional.cross_entropy(model(x), y)

    loop = Descent(network, batches, x[:600], loss, 0.03, 0.9, every=10)
    metric = KFAC().damp_factors(1e-2)
    rate, plain = best_of((1.0, 0.3, 0.1, 0.03), loop.plain)
    natural, (framed, _) = loop.natural(metric), loop.framed(metric)
    wrong, jump = loop.framed(metric, "parameters left")
    off = float(((framed - natural) / natural).abs().max())
    run.below("digits: losses in frames are those of the natural gradient", off, 1e-7, "some hundred steps in float64")
    run.below("digits: lower than gradient descent at its best rate", framed[-1], plain[-1], "equal steps; qualitative")
    run.above("digits: raw parameters left as they are, the loss jumps", jump, 0.1, control=True)
    for name, value in (("rate of descent", rate), ("loss of descent", plain[-1]), ("loss in frames", framed[-1]),
                        ("loss in frames refreshed wrongly", wrong[-1])):  # fmt: skip
        run.number(f"digits: {name}", value)
    at = range(steps + 1)
    wrong = wrong[: int((wrong < 2 * wrong[0]).long().cumprod(0).sum())]
    lines = [
        Series("gradient descent", at, plain), Series("natural gradient", at, natural),
        Series("descent in its frames", list(at)[::3], framed[::3], "points"),
        Series("the same, refreshed wrongly", range(len(wrong)), wrong, "dashes"),
    ]  # fmt: skip
    panel = Panel(f"{data.name}, 64-{hidden}-10", "step", "training loss", lines, log="y")
    run.picture(Picture("training", "Descent in frames takes the steps of the natural gradient.", [panel]))


EXPERIMENT = Experiment(
    "structured",
    "Structured natural gradient",
    "SNGD 2021, arXiv:2109.10100, and the code published with it",
    "Gradient descent in a network with inserted layers, which are orthonormal frames of a metric, is the natural "
    "gradient in the network without them; with momentum and refreshes too, as long as raw parameters and velocities "
    "change with the frames. What the published code computes is a relative Fisher; the paper's numbers are not known.",
    (
        ("step by step", step_by_step), ("inserted layers", inserted_layers), ("relative Fisher", relative_fisher),
        ("refreshing", refreshing), ("training", training),
    ),
)  # fmt: skip
