"""K-FAC is the natural gradient of a Riemannian metric, and so it does not see affine frames."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ..elements import Vector
from ..inner_products import InnerProduct
from ..likelihoods import EuclideanOutput, OutputForm, OutputMetric
from ..metrics import EKFAC, KFAC, EuclideanMetric, FixedMetric, RecurrentKFAC, RiemannianMetric
from ..networks import Network
from ..reparametrize import Frame, Frames, Twin, reparametrize
from .base import Experiment, Run
from .framed import SHAPES, MetricIn, Problem, apart
from .plain_kfac import directions
from .records import Panel, Picture, Series, Table

BROKEN = 1e-3
"""A difference of paths, in units of the path, that no rounding explains."""
SKEW = torch.tensor([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]], dtype=torch.float64)


def slopes(z: Tensor) -> Tensor:
    p = torch.sigmoid(z)
    return p * (1 - p)


OUTPUTS: dict[str, tuple[OutputMetric | None, Callable[[Tensor], Tensor]]] = {
    "Fisher": (None, lambda z: torch.diag_embed(slopes(z).sqrt())),
    "Euclidean outputs": (EuclideanOutput(), lambda z: torch.eye(3, dtype=z.dtype).expand(len(z), 3, 3)),
    "one skew form": (OutputForm(lambda z: SKEW), lambda z: torch.linalg.cholesky(SKEW).expand(len(z), 3, 3)),
    "distance of probabilities": (
        OutputForm(lambda z: torch.diag_embed(slopes(z).square())), lambda z: torch.diag_embed(slopes(z)),
    ),
}  # fmt: skip
"""Inner products on the outputs: for the library, and as a root S with S Sᵀ = H for the oracle."""


def kfac_with(output: OutputMetric | None) -> MetricIn:
    """K-FAC with an output metric, which twins take along."""

    def metric(twin: Twin | None) -> RiemannianMetric:
        return KFAC(output=output if twin is None or output is None else twin.output_metric(output))

    return metric


def always(metric: RiemannianMetric) -> MetricIn:
    """The same expression in every frame."""
    return lambda twin: metric


def identity(run: Run) -> None:
    """g(D, D') = E G(D a, D' a), evaluated example by example; with a and G of one example it is the Fisher."""
    problem = Problem.draw(run, "dense")
    observation = problem.network.observe(problem.x)
    wrong, joint = 0.0, []
    for path, layer in observation.layers.items():
        g = KFAC().at_layer(layer)
        fisher = observation.layers[path].gradients.moment()
        D, E = (Vector(layer.space, run.normal(f"{path}: {k}", *layer.space.shape)) for k in "DE")
        a, xi = layer.inputs.dense()[:, 0, 0], layer.cotangents.dense()[:, :, 0]
        pairs = torch.einsum("nkp,mp->nkm", xi, a @ D.data.mT) * torch.einsum("nkp,mp->nkm", xi, a @ E.data.mT)
        independent = pairs.sum(1).mean()  # every G with every a
        together = pairs.sum(1).diagonal().mean()  # of one example
        scale = g.norm(D) * g.norm(E)
        wrong = max(wrong, float((g.inner(D, E) - independent).abs() / scale))
        of_fisher = D.components @ fisher.reshape(D.components.numel(), -1) @ E.components
        wrong = max(wrong, float((together - of_fisher).abs() / scale))
        joint.append(float((together - g.inner(D, E)).abs() / scale))
    run.below("metric identity: g(D, D') is E G(D a, D' a)", wrong, 1e-12, "sums of 200² terms in float64")
    run.above(
        "with a and G of the same example the sum is another metric, the Fisher's", max(joint), 1e-2, control=True
    )


def sharp(run: Run) -> None:
    """The sharp of the library's metric against K-FAC in plain torch."""
    rows: list[tuple[str | float, ...]] = []
    for kind in SHAPES:
        problem = Problem.draw(run, kind)
        found = []
        for output, root in OUTPUTS.values():
            expected = directions(problem.network.module, problem.x, root, lambda z, y=problem.y: loss(z, y))  # type: ignore[misc]
            df = problem.network.differential(problem.x, problem.y)
            metric = KFAC(output=output)
            g = metric.at(problem.network.observe(problem.x, output=output))
            found.append(off(g.sharp(df).to_parameters(), expected))
        rows.append((kind, *found))
        run.below(f"sharp is K-FAC, {kind}", max(found), 1e-9, "two solves by factors of condition below 1e5")
        swapped = off(EuclideanMetric().at(problem.network.observe(problem.x)).sharp(df).to_parameters(), expected)
        run.above(f"the gradient in the coordinates is not, {kind}", swapped, 0.1, control=True)
    run.table(Table("sharp of the library against K-FAC in plain torch", ("network", *OUTPUTS), rows))


def loss(z: Tensor, y: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(z, y, reduction="sum") / len(z)


def off(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The difference of two directions over the length of the second."""
    a, b = (torch.cat([d[name].flatten() for name in expected]) for d in (found, expected))
    return float((a - b).norm() / b.norm())


def whitened(run: Run) -> None:
    """Gradient descent where activations are white and centred and cotangents white, taken back, is the K-FAC step."""
    problem = Problem.draw(run, "dense")
    network, x, y = problem.network, problem.x, problem.y
    step = KFAC().at(network.observe(x)).sharp(network.differential(x, y))

    def miss(frames: Frames) -> tuple[float, float]:
        twin = reparametrize(network, frames, x)
        df = twin.network.differential(twin.inputs(x), y)
        seen = twin.network.observe(twin.inputs(x))
        moments = [m.moment() for layer in seen.layers.values() for m in (layer.inputs, layer.cotangents)]
        white = max(float((m - torch.eye(len(m))).abs().max()) for m in moments)
        expected = twin.transport(step)
        return float((df.components - expected.components).norm() / expected.components.norm()), white

    both, white = miss(whitening(network, x))
    run.below(
        "in the whitened twin all moments are identities", white, 1e-10, "roots of moments of condition below 1e5"
    )
    run.below("gradient descent in the whitened twin is the K-FAC step", both, 1e-9, "the same")
    run.above("with activations whitened alone it is not", miss(whitening(network, x, S=False))[0], 0.1, control=True)
    run.above("nor with whitening but no centring", miss(whitening(network, x, centred=False))[0], 1e-2, control=True)


def whitening(network: Network, x: Tensor, S: bool = True, centred: bool = True) -> Frames:
    frames = {}
    for path, layer in network.observe(x).layers.items():
        M = layer.inputs.moment()
        mean = M[:-1, -1] if centred else torch.zeros_like(M[:-1, -1])
        root = power(M[:-1, :-1] - torch.outer(mean, mean), -0.5)
        frames[f"{path}.A"] = Frame(root, -root @ mean)
        if S:
            G = layer.cotangents.moment()
            frames[f"{path}.S"] = Frame(power(G, 0.5), torch.zeros(len(G), dtype=G.dtype))
    return Frames(frames)


def power(matrix: Tensor, p: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values**p) @ vectors.mT


def trajectories(run: Run) -> None:
    """Five steps in random affine frames on every space, the inputs and the outputs too."""
    seeds = range(run.choose(quick=2, full=20))
    rows: list[tuple[str | float, ...]] = []
    dots: dict[str, list[float]] = {name: [] for name in (*OUTPUTS, "gradient descent")}
    for kind in SHAPES:
        problem = Problem.draw(run, kind)
        twins = [problem.twin("affine", run.number_of(f"{kind}: frames {seed}")) for seed in seeds]
        bound = max(problem.rounding(twin) for twin in twins)
        for name, (output, _) in OUTPUTS.items():
            metric, step = kfac_with(output), problem.step * (0.3 if name == "distance of probabilities" else 1)
            base = problem.path(metric, step=step)
            worst = max(apart(base, problem.path(metric, twin, step)) for twin in twins)
            dots[name].append(worst)
            run.below(f"the same path in every affine frame, {kind}, {name}", worst, max(bound, 1e-9), ROUNDING)
        descent = always(EuclideanMetric())
        base = problem.path(descent)
        lost = min(apart(base, problem.path(descent, twin)) for twin in twins)
        dots["gradient descent"].append(lost)
        run.above(f"gradient descent takes others, {kind}", lost, BROKEN, control=True)
        rows.append((kind, *(found[-1] for found in dots.values())))
        kept = [
            apart(problem.path(always(KFAC(output=EuclideanOutput()))), problem.path(OUTPUT_KEPT, t)) for t in twins
        ]
        run.above(f"an output metric that is not taken along breaks it, {kind}", min(kept), BROKEN, control=True)
    run.table(Table("largest difference between predictions, in units of the path", ("network", *dots), rows))
    panel = Panel(
        "five steps in affine frames", "", "difference of paths",
        [Series(name, range(len(SHAPES)), found, "points") for name, found in dots.items()],
        log="y", categories=tuple(SHAPES),
    )  # fmt: skip
    problem = Problem.draw(run, "dense")
    twin = problem.twin("affine", run.number_of("dense: frames 0"))
    pictured = (("K-FAC", always(KFAC()), 0), ("K-FAC, damped", always(KFAC() + 0.1 * EuclideanMetric()), 3))
    lines = []
    for name, metric, color in (*pictured, ("gradient descent", always(EuclideanMetric()), 1)):
        for label, look, where in ((name, "line", None), ("", "points", twin)):
            path = problem.path(metric, where, steps=8)
            lines.append(Series(label, range(9), path[:, 0, 0], "points" if look == "points" else "line", color))
    shown = Panel("one prediction: lines in the network, points in its twin", "step", "probability", lines)
    run.picture(
        Picture("paths", "K-FAC takes the same path in every affine frame; other methods do not.", [shown, panel])
    )


ROUNDING = "ten times steps · ε · the condition of the worst layer's factors, and at least 1e-9"
OUTPUT_KEPT = always(KFAC(output=EuclideanOutput()))


def shared(run: Run) -> None:
    """What is special where a weight is used more than once: the pad is a point, and steps of time share one frame."""
    problem = Problem.draw(run, "convolutional")
    base, kfac = problem.path(always(KFAC())), always(KFAC())
    seed = run.number_of("pad")
    for keep in (False, True):
        twin = problem.twin("translations", seed, ("activations",), keep_padding=keep)
        found = apart(base, problem.path(kfac, twin))
        if keep:
            run.above("a pad that stays zero under translations breaks it", found, BROKEN, control=True)
        else:
            run.below(
                "under translations the pad moves as a point of the space", found, problem.rounding(twin), ROUNDING
            )
    problem = Problem.draw(run, "recurrent")
    twin = problem.twin("affine", run.number_of("steps of time"))
    for structure in ("independent", "symmetrized", "limit"):
        form: RiemannianMetric = RecurrentKFAC(structure, layers=("into", "hidden"))
        if structure == "limit":  # with so few steps of time it nearly has a kernel; K-FAC damps it and sees no frame
            form = form + 0.1 * KFAC()
        metric = always(form)
        found = apart(problem.path(metric), problem.path(metric, twin))
        claim = f"recurrent, steps of time {structure}: the same path"
        run.below(claim, found, max(problem.rounding(twin), 1e-9), ROUNDING)
    problem = Problem.draw(run, "dense")
    twin = problem.twin("translations", run.number_of("bias"), ("activations",))
    lost = always(KFAC(bias="separate"))
    found = apart(problem.path(lost), problem.path(lost, twin))
    run.above("without the homogeneous coordinate translations are lost", found, BROKEN, control=True)
    linear = problem.twin("general", run.number_of("bias"), ("activations",))
    found = apart(problem.path(lost), problem.path(lost, linear))
    run.below("and linear maps are kept", found, problem.rounding(linear), ROUNDING)


GROUPS = ("affine", "isometries", "orthogonal", "translations")
ALL, NONE = set(GROUPS), set[str]()


def damping(run: Run) -> None:
    """Damping that keeps every frame, and damping that keeps the isometries of what it names."""
    problem = Problem.draw(run, "dense")
    start = KFAC().at(problem.network.observe(problem.x))
    strength = 0.1

    def by_start(factored: bool) -> MetricIn:
        def metric(twin: Twin | None) -> RiemannianMetric:
            form: InnerProduct = start if twin is None else twin.transport(start)
            reference = FixedMetric(form, "K-FAC at the start")
            return KFAC().damp_factors(strength, reference) if factored else KFAC() + strength * reference

        return metric

    coordinates, weights = EuclideanMetric(), EuclideanMetric(on="translations")
    methods: dict[str, tuple[MetricIn, set[str]]] = {
        "K-FAC": (always(KFAC()), ALL),
        "+ λ · K-FAC at the start": (by_start(False), ALL),
        "factors damped by those at the start": (by_start(True), ALL),
        "+ λ · coordinates": (always(KFAC() + strength * coordinates), {"orthogonal"}),
        "factors damped by coordinates": (always(KFAC().damp_factors(strength, coordinates)), {"orthogonal"}),
        "+ λ · coordinates of the weights": (always(KFAC() + strength * weights), ALL - {"affine"}),
        "factors damped by those of the weights": (
            always(KFAC().damp_factors(strength, weights)), ALL - {"affine"},
        ),
        "EKFAC + λ · coordinates": (always(EKFAC() + strength * coordinates), {"orthogonal"}),
        "gradient descent": (always(coordinates), {"orthogonal"}),
    }  # fmt: skip
    twins = {group: problem.twin(group, run.number_of(f"damping: {group}")) for group in GROUPS}
    rows: list[tuple[str | float, ...]] = []
    mistaken = 0
    for name, (metric, kept) in methods.items():
        base = problem.path(metric)
        found = {group: apart(base, problem.path(metric, twin)) for group, twin in twins.items()}
        rows.append((name, *found.values()))
        keeping = [found[group] for group in GROUPS if group in kept]
        losing = [found[group] for group in GROUPS if group not in kept]
        bound = max(problem.rounding(twin) for twin in twins.values())
        if keeping:
            words = "every frame" if kept == ALL else ", ".join(group for group in GROUPS if group in kept)
            run.below(f"{name}: keeps {words}", max(keeping), bound, ROUNDING)
        if losing:
            words = ", ".join(group for group in GROUPS if group not in kept)
            run.above(f"{name}: loses {words}", min(losing), BROKEN, control=True)
        claimed = metric(None).at(problem.network.observe(problem.x)).symmetry
        spaces = [f"{problem.network.name}/{path}.{side}" for path in problem.network.blocks for side in "AS"]
        for group in GROUPS:
            mistaken += all(claimed.keeps(space, group) for space in spaces) != (group in kept)
    run.near("the symmetry that the library infers is the one measured", mistaken, 0, 0)
    run.table(Table("five steps, damped with λ = 0.1: difference of paths", ("method", *GROUPS), rows))
    panel = Panel(
        "damping: what it keeps", "", "difference of paths",
        [Series(str(row[0]), range(4), [float(v) for v in row[1:]], "points") for row in rows],
        log="y", categories=GROUPS,
    )  # fmt: skip
    run.picture(Picture("damping", "Damping by a reference that moves along keeps every frame.", [panel]))


EXPERIMENT = Experiment(
    "kfac-as-metric",
    "K-FAC as the natural gradient of a metric",
    "Luk & Grosse 2018, arXiv:1808.10340",
    "The K-FAC step is the sharp of the differential in the metric E G(D a, D' a); so whole trajectories are the same "
    "in every affine frame of activations and pre-activations, with any output metric, for shared weights, and with "
    "damping as long as its reference moves along.",
    (
        ("metric identity", identity), ("sharp", sharp), ("whitened twin", whitened), ("trajectories", trajectories),
        ("shared weights", shared), ("damping", damping),
    ),
)  # fmt: skip
