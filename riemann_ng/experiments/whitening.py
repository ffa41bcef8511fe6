"""Natural neural networks and batch normalization: descent where layers see whitened or normalized units."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..likelihoods import Gaussian
from ..metrics import KFAC, PRONG, BatchNormalization, EuclideanMetric, RiemannianMetric, Whitening
from ..natural_gradient import natural_gradient
from ..networks import Network
from .autoencoders import autoencoder
from .base import Experiment, Run
from .curves import curves_like
from .descent import Descent, best_of, minibatches
from .digits import digits
from .framed import SHAPES, Problem, apart
from .records import Panel, Picture, Series, Table

BROKEN = 1e-4
"""A difference, in units of the step or of the path, that no rounding explains."""
SAME = 1e-9
ROUNDING = "covariances of condition below 1e4, in float64"
EPSILON = 0.3
Statistics = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Of what a layer sees: U and c."""
ROOTS = ("ZCA", "PCA", "triangular")


def root(form: Tensor, kind: str) -> Tensor:
    """U with Uᵀ U the inverse of a covariance."""
    if kind == "triangular":
        return torch.linalg.inv(torch.linalg.cholesky(form))
    values, axes = torch.linalg.eigh(form)
    scaled = values.rsqrt()[:, None] * axes.mT
    return axes @ scaled if kind == "ZCA" else scaled


class Seen(nn.Module):
    """s = V U (h - c) + d: a layer that sees whitened or normalized inputs. V and d are trained.

    `live` says that U and c are functions of the batch, and are differentiated with it, as torch's batch normalization
    does in training mode; otherwise they are held.
    """

    def __init__(self, W: Tensor, b: Tensor, make: Statistics, live: bool = False):
        super().__init__()
        self.make, self.live = make, live
        self.V, self.d = nn.Parameter(torch.empty_like(W)), nn.Parameter(torch.empty_like(b))
        self.start: tuple[Tensor, Tensor] | None = (W, b)
        self.held: tuple[Tensor, Tensor] | None = None

    def forward(self, h: Tensor) -> Tensor:
        if self.live or self.held is None:
            U, c = self.make(h if self.live else h.detach())
        else:
            U, c = self.held
        if self.start is not None:  # at the first batch: V = W U⁻¹ and d = b + W c, so that the function stays
            (W, b), self.held, self.start = self.start, (U.detach(), c.detach()), None
            with torch.no_grad():
                self.V.copy_(torch.linalg.solve(U.detach(), W, left=False))
                self.d.copy_(b + W @ c.detach())
        s: Tensor = (h - c) @ U.mT @ self.V.mT + self.d
        return s

    def plain(self) -> tuple[Tensor, Tensor]:
        """The weight and the bias that it stands for."""
        assert self.held is not None
        U, c = self.held
        W = self.V.detach() @ U
        return W, self.d.detach() - W @ c


def moments(h: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cov(h.mT, correction=0), h.mean(0)


def whitener(kind: str, epsilon: float) -> Statistics:
    def make(h: Tensor) -> tuple[Tensor, Tensor]:
        covariance, mean = moments(h)
        return root(covariance + epsilon * torch.eye(len(covariance), dtype=h.dtype), kind), mean

    return make


def normalizer(epsilon: float) -> Statistics:
    def make(h: Tensor) -> tuple[Tensor, Tensor]:
        return torch.diag((h.var(0, correction=0) + epsilon).rsqrt()), h.mean(0)

    return make


def stepped(problem: Problem, make: Statistics, live: bool = False) -> tuple[dict[str, Tensor], float]:
    """One step of gradient descent of length one in the rewritten network, told in its own parameters, downhill.

    And how far the function of the rewritten network is from that of the network.
    """
    model = problem.network.module
    assert isinstance(model, nn.Sequential)
    layers = {name: m for name, m in model.named_children() if isinstance(m, nn.Linear)}
    rewritten = nn.Sequential(*(
        Seen(m.weight.detach(), m.bias.detach(), make, live) if isinstance(m, nn.Linear) else m for m in model
    ))  # fmt: skip
    z = rewritten(problem.x)
    jump = float((z - model(problem.x)).detach().abs().max())
    before = {name: rewritten[int(name)].plain() for name in layers}  # type: ignore[operator]
    problem.network.likelihood.loss(z, problem.y).backward()
    torch.optim.SGD(rewritten.parameters(), lr=1.0).step()
    found = {}
    for name in layers:
        W, b = rewritten[int(name)].plain()  # type: ignore[operator]
        found[f"{name}.weight"], found[f"{name}.bias"] = before[name][0] - W, before[name][1] - b
    return found, jump


def off(problem: Problem, found: dict[str, Tensor], metric: RiemannianMetric) -> float:
    """How far a step is from the natural gradient of a metric, relative to it."""
    v = natural_gradient(problem.network, metric, problem.x, problem.y).to_parameters()
    flat, expected = (torch.cat([t[name].flatten() for name in v]) for t in (found, v))
    return float((flat - expected).norm() / expected.norm())


def inputs_of(problem: Problem) -> dict[str, Tensor]:
    """What every layer sees."""
    found, h = {}, problem.x
    for name, m in problem.network.module.named_children():
        if isinstance(m, nn.Linear):
            found[name] = h
        h = m(h).detach()
    return found


def step_identity(run: Run) -> None:
    """[dW db] = -η DW A_ε⁻¹ with A_ε = [[Σ + ε + ccᵀ, c], [cᵀ, 1]], whatever the root."""
    problem = Problem.draw(run, "dense")
    df = problem.network.differential(problem.x, problem.y)
    formula = {}
    for name, h in inputs_of(problem).items():
        covariance, c = moments(h)
        one = torch.ones(1, 1, dtype=h.dtype)
        upper = covariance + EPSILON * torch.eye(len(c), dtype=h.dtype) + torch.outer(c, c)
        A = torch.cat([torch.cat([upper, c[:, None]], 1), torch.cat([c[None], one], 1)])
        step = torch.linalg.solve(A, df[name], left=False)
        formula[f"{name}.weight"], formula[f"{name}.bias"] = step[:, :-1], step[:, -1]
    run.below(
        "DW A_ε⁻¹ is the natural gradient of PRONG's metric", off(problem, formula, PRONG(EPSILON)), SAME, ROUNDING
    )
    for epsilon in (0.0, EPSILON):
        for kind in ROOTS:
            found, jump = stepped(problem, whitener(kind, epsilon))
            word = f"{kind}, ε = {epsilon:g}"
            run.below(f"whitening leaves the function, {word}", jump, 1e-10, ROUNDING)
            run.below(
                f"descent in whitened layers is its step, {word}", off(problem, found, PRONG(epsilon)), SAME, ROUNDING
            )
    found, _ = stepped(problem, whitener("PCA", EPSILON))
    whole = off(problem, found, PRONG(0.0) + EPSILON * EuclideanMetric())
    run.above("damping all of the uncentred moment is another step", whole, BROKEN, control=True)
    run.above("and so is K-FAC", off(problem, found, KFAC()), BROKEN, control=True)
    run.above("and gradient descent", off(problem, found, EuclideanMetric()), BROKEN, control=True)
    half = problem.x[: len(problem.x) // 2]
    stale = Network.from_torch(problem.network.module, problem.network.likelihood, half)
    first = PRONG(EPSILON).at(stale.observe(half))
    v = first.sharp(stale.differential(problem.x, problem.y)).to_parameters()
    kept = inputs_of(Problem(problem.network, half, problem.y, problem.others, problem.step))
    order = iter(kept.values())
    found, _ = stepped(problem, lambda h: whitener("ZCA", EPSILON)(next(order)))
    flat, expected = (torch.cat([t[name].flatten() for name in v]) for t in (found, v))
    miss = float((flat - expected).norm() / expected.norm())
    run.below("with statistics of other examples too", miss, SAME, ROUNDING)
    run.above("which are other steps", off(problem, found, PRONG(EPSILON)), BROKEN, control=True)


def covariance(run: Run) -> None:
    """What whitened layers see has the covariance Σ^½ (Σ + ε)⁻¹ Σ^½, up to rotation; the identity where ε = 0."""
    problem = Problem.draw(run, "dense")
    for epsilon in (0.0, EPSILON):
        worst, white = 0.0, 0.0
        for h in inputs_of(problem).values():
            sigma, c = moments(h)
            values, axes = torch.linalg.eigh(sigma)
            expected = (axes * (values / (values + epsilon))) @ axes.mT
            for kind in ROOTS:
                U = root(sigma + epsilon * torch.eye(len(sigma), dtype=h.dtype), kind)
                seen = torch.cov(((h - c) @ U.mT).mT, correction=0)
                spectrum = torch.linalg.eigvalsh(seen) - torch.linalg.eigvalsh(expected)
                worst = max(worst, float(spectrum.abs().max()))
                if kind == "ZCA":
                    worst = max(worst, float((seen - expected).abs().max()))
                white = max(white, float((seen - torch.eye(len(seen), dtype=h.dtype)).abs().max()))
        run.below(f"covariance of what layers see, ε = {epsilon:g}", worst, 1e-10, ROUNDING)
        if epsilon:
            run.above("which is not the identity where ε > 0", white, 0.1, control=True)
        else:
            run.below("which is the identity where ε = 0", white, 1e-10, ROUNDING)


def batch_normalization(run: Run) -> None:
    """Descent in layers that see normalized units is a natural gradient too, statistics held."""
    problem = Problem.draw(run, "dense")
    for epsilon in (0.0, EPSILON):
        found, jump = stepped(problem, normalizer(epsilon))
        metric = BatchNormalization("activations", epsilon)
        run.below(f"normalizing leaves the function, ε = {epsilon:g}", jump, 1e-10, ROUNDING)
        miss = off(problem, found, metric)
        run.below(f"descent in normalized layers is a natural gradient, ε = {epsilon:g}", miss, SAME, ROUNDING)
    other = off(problem, found, Whitening("activations", EPSILON))
    run.above("and not that of whitening", other, BROKEN, control=True)
    live, _ = stepped(problem, normalizer(EPSILON), live=True)
    run.above("nor where the batch's statistics are differentiated", off(problem, live, metric), BROKEN, control=True)
    last = str(len(problem.network.module) - 1)  # type: ignore[arg-type]
    same = max(float((live[f"{last}.{p}"] - found[f"{last}.{p}"]).abs().max()) for p in ("weight", "bias"))
    run.below("which changes no gradient of the last layer, behind which there are none", same, 1e-12, "float64")


KEEPS: dict[str, tuple[RiemannianMetric, dict[tuple[str, str], bool]]] = {
    "PRONG, ε = 0": (PRONG(0.0), {
        ("activations", "affine"): True, ("pre-activations", "isometries"): True, ("pre-activations", "general"): False,
    }),
    "PRONG, ε > 0": (PRONG(EPSILON), {
        ("activations", "isometries"): True, ("activations", "general"): False,
        ("pre-activations", "isometries"): True,
    }),
    "batch normalization": (BatchNormalization(epsilon=0.0), {
        ("activations", "scaling"): True, ("activations", "translations"): True, ("activations", "orthogonal"): False,
        ("pre-activations", "isometries"): True,
    }),
    "gradient descent": (EuclideanMetric(), {
        ("activations", "orthogonal"): True, ("activations", "translations"): False, ("activations", "scaling"): False,
    }),
}  # fmt: skip


def symmetry(run: Run) -> None:
    """Five steps in other frames of what layers see, and of what they give."""
    problem = Problem.draw(run, "dense")
    rows: list[tuple[str | float, ...]] = []
    for name, (metric, cells) in KEEPS.items():
        base = problem.path(lambda twin, m=metric: m)  # type: ignore[misc]
        for (space, group), kept in cells.items():
            twin = problem.twin(group, run.number_of(f"{space} {group}"), (space,))
            found = apart(base, problem.path(lambda twin, m=metric: m, twin))  # type: ignore[misc]
            rows.append((name, space, group, found))
            if kept:
                bound = max(problem.rounding(twin), SAME)
                run.below(f"{name} keeps {group} of {space}", found, bound, "rounding by the worst condition")
            else:
                run.above(f"{name} loses {group} of {space}", found, BROKEN, control=True)
    run.table(Table("five steps in other frames: difference of paths", ("method", "spaces", "group", "apart"), rows))


def refreshing(run: Run) -> None:
    """Whitened anew every two steps, with momentum: function, parameters and velocity."""
    rows: list[tuple[str | float, ...]] = []
    for kind in SHAPES:
        problem = Problem.draw(run, kind)
        batches = [(problem.x, problem.y)] * 6
        loop = Descent(
            problem.network, batches, problem.x, lambda model, p=problem: torch.sigmoid(model(p.others)),  # type: ignore[misc]
            0.1 * problem.step, 0.9, every=2,
        )  # fmt: skip
        metric = PRONG(1e-2)
        natural, (framed, jump) = loop.natural(metric), loop.framed(metric)
        found = apart(natural, framed)
        run.below(f"whitened layers go the natural gradient's way, {kind}", found, SAME, ROUNDING)
        run.below(f"whitening anew leaves the function, {kind}", jump, SAME, ROUNDING)
        wrong, jump = loop.framed(metric, "parameters left")
        run.above(f"with V and d left as they are it jumps, {kind}", jump, BROKEN, control=True)
        velocity = apart(natural, loop.framed(metric, "velocity left")[0])
        run.above(f"with the velocity left the path is another, {kind}", velocity, BROKEN, control=True)
        rows.append((kind, found, jump, apart(natural, wrong), velocity))
    columns = ("network", "right", "jump, parameters left", "path, parameters left", "path, velocity left")
    run.table(Table("whitened anew every two steps, momentum 0.9", columns, rows))


def training(run: Run) -> None:
    """Autoencoders, of digits and in full size of curves-like images, against gradient descent at its best rate."""
    if run.quick:
        data = digits(run.data, side=8, most=1400)
        x, name, widths = data.flat, data.name, DIGITS
    else:
        x, name, widths = curves_like(2000, run.number_of("curves")).double(), "curves-like images", CURVES
    run.results.data = name
    steps, every = run.choose(quick=100, full=150), 20
    network = Network.from_torch(autoencoder(widths, run.generator("autoencoder")).double(), Gaussian(), x[:100])
    batches = minibatches(x, x, 100, steps, run.generator("order"))
    watched = x[:1000]

    def loss(model: nn.Module) -> Tensor:
        return (model(watched) - watched).square().sum() / (2 * len(watched))

    loop = Descent(network, batches, watched, loss, 0.0, 0.9, every)
    rates = (0.1, 0.03, 0.01, 0.003, 0.001)
    rate, plain = best_of(rates, loop.plain)
    curves = {"gradient descent": plain}
    run.number("autoencoder: best rate, gradient descent", rate)
    metric = PRONG(run.choose(quick=1e-2, full=1e-1))
    best, natural = best_of(rates, lambda rate: loop.natural(metric, rate))
    curves["whitened layers"] = natural
    run.number("autoencoder: best rate, whitened layers", best)
    normal = BatchNormalization(epsilon=1e-2)
    also, normalized = best_of(rates, lambda rate: loop.natural(normal, rate))
    curves["normalized layers"] = normalized
    run.number("autoencoder: best rate, normalized layers", also)
    loop.rate = best
    framed, jump = loop.framed(metric)
    apart_by = float(((framed - natural) / natural).abs().max())
    run.below("autoencoder: losses in whitened layers are the natural gradient's", apart_by, 1e-6, "float64, all steps")
    run.below("autoencoder: whitening anew leaves the loss", jump / float(natural[-1]), 1e-8, ROUNDING)
    claim = "autoencoder: whitened layers end below gradient descent"
    run.below(claim, natural[-1], plain[-1], "equal steps, each at its best rate; qualitative")
    _, jump = loop.framed(metric, "parameters left")
    run.above("autoencoder: V and d left as they are, the loss jumps", jump, 0.1, control=True)
    for words, curve in curves.items():
        run.number(f"autoencoder: loss, {words}", curve[-1])
    at = range(steps + 1)
    lines = [Series(words, at, curve) for words, curve in curves.items()]
    lines.append(Series("SGD in frames", list(at)[::5], framed[::5], "points"))
    panel = Panel(f"autoencoder {'-'.join(map(str, widths))}", "step", "squared error / 2", lines, log="y")
    run.picture(Picture("training", f"Whitened layers on {name}: descent there is a natural gradient.", [panel]))


DIGITS: tuple[int, ...] = (64, 24, 8, 24, 64)
CURVES: tuple[int, ...] = (784, 100, 30, 6, 30, 100, 784)

EXPERIMENT = Experiment(
    "whitening",
    "Natural neural networks and batch normalization",
    "Desjardins, Simonyan, Pascanu & Kavukcuoglu 2015, arXiv:1507.00210",
    "Gradient descent in a network whose layers see whitened inputs is the natural gradient of a one-sided metric, "
    "E[|D a|²] with the centred covariance damped; with units normalized one by one, of its diagonal kin. Whitening "
    "anew leaves the function, the parameters and the velocity. The paper's own curves are not known, so those of "
    "training are qualitative.",
    (
        ("step identity", step_identity), ("covariance", covariance), ("batch normalization", batch_normalization),
        ("symmetry", symmetry), ("refreshing", refreshing), ("training", training),
    ),
)  # fmt: skip
