"""What the library adds to the papers: more methods that see no coordinates, each with one beside it that does."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy

from ..elements import Vector
from ..geodesics import geodesic_step, midpoint_step
from ..inner_products import InnerProduct, Kronecker, damp_factors, direct_sum
from ..likelihoods import Bernoulli, Categorical
from ..likelihoods.two_parameters import GaussianMeanScale
from ..metrics import KFAC, EuclideanMetric, Fisher, NamedFrame, RiemannianMetric
from ..natural_gradient import natural_gradient
from ..networks import Network
from ..norms import Spectral, norm_at
from ..reparametrize import Frames, SmoothChange, Twin, reparametrize, reparametrize_parameters
from .base import Experiment, Run
from .carried import Method, Stepper, adam_in, damped_by, path, plain_adam, put_back, sharp_of, spectral
from .digits import digits
from .framed import SHAPES, Problem, apart
from .records import Panel, Picture, Series, Table

BROKEN = 1e-3
"""A difference of paths, in units of the path, that no rounding explains."""
ROUNDING = "ten times steps · ε · the condition of the worst layer's factors, and at least 1e-8"


def compared(run: Run, kind: str, problem: Problem, methods: dict[str, tuple[Method, bool]]) -> list[float]:
    """The difference of paths in affine frames of all spaces, and a check of each: whether it keeps them."""
    seeds = range(run.choose(quick=2, full=8))
    twins = [problem.twin("affine", run.number_of(f"{kind}: frames {seed}")) for seed in seeds]
    bound = max(1e-8, *(problem.rounding(twin) for twin in twins))
    found = []
    for name, (method, keeps) in methods.items():
        base = path(problem, method)
        off = [apart(base, path(problem, method, twin)) for twin in twins]
        found.append(max(off) if keeps else min(off))
        if keeps:
            run.below(f"{name}: the same path in affine frames, {kind}", max(off), bound, ROUNDING)
        else:
            run.above(f"{name}: takes others, {kind}", min(off), BROKEN, control=True)
    return found


def spectral_steps(run: Run) -> None:
    """The operator norm between the spaces of K-FAC, and Muon, which is that between coordinates."""
    methods = {
        "spectral between K-FAC's spaces": (spectral(KFAC(), 0.05), True),
        "Muon": (spectral(None, 0.05), False),
    }
    rows: list[tuple[str | float, ...]] = [
        (kind, *compared(run, kind, Problem.draw(run, kind), methods)) for kind in SHAPES
    ]
    run.table(Table("spectral steps, five in affine frames: difference of paths", ("network", *methods), rows))
    problem = Problem.draw(run, "dense")
    twin = problem.twin("orthogonal", run.number_of("rotations"))
    muon, _ = methods["Muon"]
    kept = apart(path(problem, muon), path(problem, muon, twin))
    run.below("Muon keeps rotations", kept, 1e-8, "singular values of condition below 1e6")
    network, x = problem.network, problem.x
    df, norm = network.differential(x, problem.y), norm_at(Spectral(KFAC()), network, x)
    v = norm.sharp(df)
    for name, layer in network.observe(x).layers.items():
        G, A = (f.matrix() for f in KFAC().factors(layer))
        roots = [inverse_root(M) for M in (G, A)]
        U, s, Vt = torch.linalg.svd(roots[0] @ df[name] @ roots[1], full_matrices=False)
        told = s > 1e-10 * s[0]
        expected = roots[0] @ U[:, told] @ Vt[told] @ roots[1]
        off = float((v[name] - expected).norm() / expected.norm())
        run.below(f"a step is G^-½ msgn(G^-½ DW A^-½) A^-½, layer {name}", off, 1e-8, "roots by eigenvectors")


def inverse_root(M: Tensor) -> Tensor:
    values, axes = torch.linalg.eigh(M)
    return (axes * values.rsqrt()) @ axes.mT


def damping(run: Run) -> None:
    """Damping by K-FAC as it was at the start, in the two ways, and by the coordinates."""
    strength = 0.1
    rows: list[tuple[str | float, ...]] = []
    for kind in SHAPES:
        problem = Problem.draw(run, kind)
        start, rate = KFAC().at(problem.network.observe(problem.x)), problem.step
        coordinates = EuclideanMetric()
        methods = {
            "+ λ · K-FAC at the start": (damped_by(start, lambda h: KFAC() + strength * h, rate), True),
            "factors damped by it": (damped_by(start, lambda h: KFAC().damp_factors(strength, h), rate), True),
            "the same with π of traces in the coordinates": (with_trace(start, strength, rate), False),
            "+ λ · coordinates": (sharp_of(KFAC() + strength * coordinates, rate), False),
            "factors damped by coordinates": (sharp_of(KFAC().damp_factors(strength), rate), False),
        }
        rows.append((kind, *compared(run, kind, problem, methods)))
    run.table(Table("damped with λ = 0.1, five steps: difference of paths", ("network", *methods), rows))
    problem = Problem.draw(run, "dense")
    here, strength = KFAC().at(problem.network.observe(problem.x)), 0.1
    reference = KFAC().at(problem.network.observe(problem.others))
    damped = damp_factors(here, strength, reference).summands()
    assert damped is not None
    for name, (G, A) in products(here).items():
        h_S, h_A = products(reference)[name]
        G_, A_, S_, R_ = (form.matrix() for form in (G, A, h_S, h_A))
        of_A = torch.linalg.solve(R_, A_).diagonal().mean()
        of_G = torch.linalg.solve(S_, G_).diagonal().mean()
        pi = (of_A / of_G).sqrt()
        by_hand = torch.kron(G_ + strength**0.5 / pi * S_, A_ + strength**0.5 * pi * R_)
        found = damped[name].matrix()
        off = float((found - by_hand).norm() / by_hand.norm())
        run.below(f"π² is (tr A_ref⁻¹A / dim) / (tr G_ref⁻¹G / dim), layer {name}", off, 1e-10, "traces of solves")


def products(form: InnerProduct) -> dict[str, tuple[InnerProduct, InnerProduct]]:
    parts = form.summands()
    assert parts is not None
    found = {}
    for name, g in parts.items():
        assert isinstance(g, Kronecker)
        G, A = g.factors
        found[name] = (G, A)
    return found


def with_trace(start: InnerProduct, strength: float, rate: float) -> Method:
    """Factors damped by transported references, and π² = (tr A / dim) / (tr G / dim): a choice of coordinates."""

    def begun(network: Network, twin: Twin | None) -> Stepper:
        references = products(start if twin is None else twin.transport(start))

        def step(x: Tensor, y: Tensor) -> Vector:
            damped = {}
            for name, (G, A) in products(KFAC().at(network.observe(x))).items():
                h_S, h_A = references[name]
                pi = float((A.matrix().diagonal().mean() / G.matrix().diagonal().mean()).sqrt())
                damped[name] = (G + strength**0.5 / pi * h_S) * (A + strength**0.5 * pi * h_A)
            return direct_sum(damped).sharp(network.differential(x, y)) * rate

        return step

    return begun


def finite_steps(run: Run) -> None:
    """How the end of one step depends on the parameters that it is made in: orders two and three."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)).double()
    centre = (((1.2, -0.5), (0.4, 1.1)), (0.3, -0.2), ((0.9, 0.7), (-0.6, 1.0)), (0.1, 0.2))
    with torch.no_grad():  # near a point where the Fisher is well-conditioned: steps are small as measured by it
        for k, (p, values) in enumerate(zip(model.parameters(), centre, strict=True)):
            p.copy_(torch.tensor(values) + 0.1 * run.normal(f"model {k}", *p.shape))
    x = 1.5 * run.normal("inputs", 60, 2)
    y = torch.bernoulli(torch.sigmoid(2 * model(x).detach() + 0.5), generator=run.generator("labels"))
    network = Network.from_torch(model, Bernoulli(), x)
    twin = reparametrize_parameters(model, SmoothChange(12, 0.3, seed=run.number_of("change") % 10_000))
    there = Network.from_torch(twin, Bernoulli(), x)
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])

    def mismatch(rule: Rule, eta: float, metric: RiemannianMetric) -> float:
        here = torch.cat([t.flatten() for t in rule(network, metric, x, y, -eta).to_parameters().values()])
        u = twin.u.detach() + rule(there, metric, x, y, -eta).to_parameters()["u"]
        return float((twin.psi(u) - theta - here).norm())

    lines = [orders(run, "smooth change of all parameters", mismatch, Fisher())]
    by_coordinates = Fisher() + 0.1 * EuclideanMetric()
    etas, found = curve(lambda eta: mismatch(midpoint_step, eta, by_coordinates))
    run.near(
        "damped by the coordinates the order is one, for midpoints too", slope(etas, found), 1.0, 0.1, control=True
    )
    lines[0].append(Series("midpoint, damped by coordinates", etas, found, "dashes"))

    def normal(parameters: Tensor, x: Tensor) -> Tensor:
        mu, sigma = parameters
        return torch.stack([mu, sigma.log()]).expand(len(x), 2)

    def logarithmic(parameters: Tensor, x: Tensor) -> Tensor:
        return parameters.expand(len(x), 2)

    data = 0.5 + 1.3 * run.normal("sample of a normal", 200, 1)
    at = torch.tensor([-0.5, 0.7], dtype=torch.float64)
    nothing = torch.zeros(200, 1, dtype=torch.float64)
    one = Network.from_function(normal, at, GaussianMeanScale(), nothing)
    other = Network.from_function(logarithmic, torch.stack([at[0], at[1].log()]), GaussianMeanScale(), nothing)

    def between(rule: Rule, eta: float, metric: RiemannianMetric) -> float:
        v, w = (rule(net, metric, nothing, data, -eta).components for net in (one, other))
        here = at + v
        moved = torch.stack([at[0] + w[0], (at[1].log() + w[1]).exp()])
        return float((here - moved).norm())

    lines.append(orders(run, "μ, σ against μ, log σ", between, Fisher()))
    titles = ("a network, smooth change", "a normal distribution")
    panels = [
        Panel(t, "step size", "mismatch of one step", series, log="xy") for t, series in zip(titles, lines, strict=True)
    ]
    run.picture(Picture("orders", "One step in other parameters: corrected steps agree to third order.", panels))


Rule = Callable[[Network, RiemannianMetric, Tensor, Tensor, float], Vector]


def straight(network: Network, metric: RiemannianMetric, x: Tensor, y: Tensor, step: float) -> Vector:
    return natural_gradient(network, metric, x, y) * step


def orders(
    run: Run, what: str, mismatch: Callable[[Rule, float, RiemannianMetric], float], metric: RiemannianMetric
) -> list[Series]:
    lines = []
    rules: tuple[tuple[str, Rule, int], ...] = (
        ("straight", straight, 2), ("geodesic-corrected", geodesic_step, 3), ("midpoint", midpoint_step, 3),
    )  # fmt: skip
    for name, rule, order in rules:
        etas, found = curve(lambda eta, rule=rule: mismatch(rule, eta, metric))  # type: ignore[misc]
        fitted = slope(etas, found)
        run.near(f"{name}: order {order}, {what}", fitted, order, 0.1, "the next order, η, of a fit by least squares")
        lines.append(Series(name, etas, found))
    return lines


def curve(of: Callable[[float], float]) -> tuple[list[float], list[float]]:
    etas = [0.004 * 2.0**-k for k in range(4)]
    return etas, [of(eta) for eta in etas]


def slope(x: list[float], y: list[float]) -> float:
    a, b = (torch.tensor([math.log(t) for t in v], dtype=torch.float64) for v in (x, y))
    a = a - a.mean()
    return float(a @ b / (a @ a))


def adam_in_frames(run: Run) -> None:
    """Entry by entry, but in a frame that is data and moves along."""
    rows: list[tuple[str | float, ...]] = []
    for kind in SHAPES:
        problem = Problem.draw(run, kind)
        frame = NamedFrame.of(KFAC(), problem.network.observe(problem.x), "K-FAC at the start")
        methods = {"Adam in K-FAC's frame": (adam_in(frame, 0.02), True), "Adam": (plain_adam(0.02), False)}
        rows.append((kind, *compared(run, kind, problem, methods)))
    run.table(Table("Adam, five steps in affine frames: difference of paths", ("network", *methods), rows))


def training(run: Run) -> None:
    """A classifier and its twin, trained on the same minibatches: one curve, or two."""
    data = digits(run.data, side=8, most=1400)
    run.results.data = data.name
    x, y = avg_pool2d(data.images[:, None], 2).flatten(1), data.labels
    torch.manual_seed(run.number_of("classifier"))
    model = nn.Sequential(nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 10)).double()
    network = Network.from_torch(model, Categorical(), x[:300])
    frames = Frames.draw(
        network, x[:300], ("inputs", "activations", "pre-activations"), "affine", run.number_of("frames")
    )
    twin = reparametrize(network, frames, x[:300])
    steps, generator = run.choose(quick=40, full=150), run.generator("order")
    rows = [torch.randperm(len(x), generator=generator)[:300] for _ in range(steps)]

    @torch.no_grad()
    def loss(there: Twin | None) -> float:
        z = model(x) if there is None else there.to_original(there.module(there.inputs(x)))
        return float(cross_entropy(z, y))

    def trained(method: Method, there: Twin | None) -> list[float]:
        net, found = (network if there is None else there.network), [loss(there)]
        with put_back(net):
            step = method(net, there)
            for some in rows:
                a = x[some] if there is None else there.inputs(x[some])
                net.move_(step(a, y[some]), -1.0)
                found.append(loss(there))
        return found

    # softmax has a direction that no probability sees, so all is damped by what was there at the start
    start = KFAC().damp_factors(1e-2).at(network.observe(x[:300]))
    frame = NamedFrame.of(KFAC().damp_factors(1e-2), network.observe(x[:300]), "damped K-FAC at the start")

    methods: dict[str, tuple[Method, bool]] = {
        "K-FAC, transported damping": (damped_by(start, lambda h: KFAC().damp_factors(1e-2, h), 0.2), True),
        "spectral, K-FAC's spaces": (
            damped_by(start, lambda h: KFAC().damp_factors(1e-2, h), 0.02, spectral),
            True,
        ),
        "Adam in K-FAC's frame": (adam_in(frame, 0.01), True),
        "K-FAC, damped by coordinates": (sharp_of(KFAC().damp_factors(1e-2), 0.2), False),
        "Muon": (spectral(None, 0.05), False),
        "Adam": (plain_adam(0.02), False),
        "gradient descent": (sharp_of(EuclideanMetric(), 0.3), False),
    }
    panels: dict[bool, list[Series]] = {True: [], False: []}
    for k, (name, (method, keeps)) in enumerate(methods.items()):
        here, there = trained(method, None), trained(method, twin)
        off = max(abs(a - b) / a for a, b in zip(here, there, strict=True))
        if keeps:
            run.below(f"training: one curve in both frames, {name}", off, 1e-5, "rounding, grown over the steps")
            run.below(f"training: it learns, {name}", here[-1], 0.7 * here[0], "seven tenths of the loss at the start")
        else:
            run.above(f"training: two curves, {name}", off, 0.02, control=True)
        run.number(f"training: loss, {name}", here[-1])
        run.number(f"training: largest difference of losses, {name}", off)
        shown = [t for t in there if t < 3 * there[0]]
        panels[keeps] += [
            Series(name, range(steps + 1), here, color=k),
            Series("", range(len(shown)), shown, "points", k),
        ]
    titles = {True: "the twin's curve lies on the network's", False: "and here it does not"}
    pictured = [Panel(titles[k], "step", "training loss", panels[k], log="y") for k in (True, False)]
    run.picture(
        Picture("twins", "A network (lines) and its twin in affine frames (points), same minibatches.", pictured)
    )


EXPERIMENT = Experiment(
    "beyond",
    "What does not see coordinates, beyond K-FAC",
    "This library; finite steps after Song, Song & Ermon 2018, arXiv:1803.01273",
    "Steepest descent in the operator norm between K-FAC's spaces, Adam in K-FAC's frame, and damping by a reference "
    "that moves along, with an invariant π, take the same path in every affine frame; Muon, Adam and damping by "
    "numbers do not. Geodesic-corrected and midpoint steps agree to third order under smooth changes of the "
    "parameters, straight ones to second.",
    (
        ("spectral steps", spectral_steps), ("transported damping", damping), ("finite steps", finite_steps),
        ("Adam in frames", adam_in_frames), ("training of twins", training),
    ),
)  # fmt: skip
