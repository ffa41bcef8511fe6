"""Training by natural gradients under other names: inputs without labels, data in order, and an autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy

from ..likelihoods import Bernoulli, Categorical, Likelihood
from ..metrics import Fisher
from ..networks import Network
from ..optim import HessianFree, MinresNaturalGradient, NaturalConjugateGradient, NaturalGradient, Tikhonov
from .base import Run
from .curves import curves_like
from .digits import Digits, digits
from .records import Panel, Picture, Series, Table

MODES = ("same batch", "another batch", "unlabelled")
Make = Callable[[nn.Module], torch.optim.Optimizer]
Rated = Callable[[nn.Module, float], torch.optim.Optimizer]


def network_of(
    widths: Sequence[int], generator: torch.Generator, dtype: torch.dtype, unit: type[nn.Module] = nn.Sigmoid
) -> nn.Sequential:
    """Drawn with variance 2 / fan-in."""
    layers: list[nn.Module] = []
    for n, m in pairwise(widths):
        layer = nn.Linear(n, m, dtype=dtype)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(m, n, generator=generator) * (2 / n) ** 0.5)
            layer.bias.zero_()
        layers += [layer, unit()]
    return nn.Sequential(*layers[:-1])


def classifier(run: Run, data: Digits, stream: str) -> nn.Sequential:
    widths = (data.flat.shape[1], run.choose(quick=20, full=100), 10)
    return network_of(widths, run.generator(stream), data.flat.dtype, nn.Tanh)


def small_digits(run: Run) -> Digits:
    data = digits(run.data, side=8, dtype=torch.float32, most=run.choose(quick=1400, full=10_000))
    run.results.data = data.name
    return data


def unlabelled(run: Run) -> None:
    """Few labels; the metric is seen on the batch of the gradient, on another one, or on inputs without labels."""
    data, steps, batch = small_digits(run), run.choose(quick=30, full=200), run.choose(quick=50, full=250)
    repeats = run.choose(quick=3, full=10)
    order = torch.randperm(len(data.labels), generator=run.generator("labelled"))
    few = order[: 3 * batch]
    rest = order[3 * batch :]
    curves: dict[str, Tensor] = {}
    for mode in MODES:
        found = []
        for repeat in range(repeats):
            model, chosen = classifier(run, data, f"{repeat}"), run.generator(f"batches {repeat}")
            opt = MinresNaturalGradient(model, Categorical(), damping=1.0, iterations=15)
            losses = []
            for _ in range(steps):
                rows, other, bare = (
                    pool[torch.randperm(len(pool), generator=chosen)[:batch]] for pool in (few, few, rest)
                )
                opt.zero_grad()
                cross_entropy(model(data.flat[rows]), data.labels[rows]).backward()
                if mode != MODES[0]:
                    opt.observe(data.flat[other if mode == MODES[1] else bare])
                opt.step()
                with torch.no_grad():
                    losses.append(float(cross_entropy(model(data.test_flat), data.test_labels)))
            found.append(losses)
        curves[mode] = torch.tensor(found)
        run.number(f"unlabelled: test loss, metric of {mode}", curves[mode][:, -1].mean())
        run.below(
            f"it learns with the metric of {mode}", curves[mode][:, -1].max(), 1.5, "guessing has 2.3; qualitative"
        )
    seen = lengths_by_damping(run, data)
    short, long = (max(ratios) for ratios in seen.values())
    run.above(
        "another batch's metric, of fewer directions than parameters, makes longer steps", short, 3.0,
        "where its metric vanishes the gradient is divided by λ alone",
    )  # fmt: skip
    run.below("of many more examples it does not", long, 0.5 * short, control=True)
    run.number("unlabelled: length by another batch's metric over length by its own", short)
    lines = [Series(mode, range(1, steps + 1), curve.mean(0)) for mode, curve in curves.items()]
    ratios = [Series(f"{size} examples", DAMPINGS, found) for size, found in seen.items()]
    panels = [
        Panel("where the metric is seen", "step", "test loss", lines, log="y"),
        Panel("steps by another batch's metric", "damping", "length over that by its own", ratios, log="xy"),
    ]
    run.picture(Picture("unlabelled", f"{data.name}: metrics of the same and of other inputs.", panels))


DAMPINGS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def lengths_by_damping(run: Run, data: Digits) -> dict[int, list[float]]:
    """How long steps are by the metric of another batch, over how long by that of their own; 220 parameters."""
    x = avg_pool2d(data.images[:, None], 2)[:, 0].flatten(1).double()
    model = network_of((16, 8, 10), run.generator("lengths"), torch.float64)
    network = Network.from_torch(model, Categorical(), x[:4])
    found: dict[int, list[float]] = {}
    for size in (10, 600):
        own, other = torch.randperm(len(x), generator=run.generator(f"lengths {size}"))[: 2 * size].chunk(2)
        df = network.differential(x[own], data.labels[own]).components
        forms = [Fisher("dense").at(network.observe(x[rows])).matrix() for rows in (own, other)]
        eye = torch.eye(len(df), dtype=df.dtype)
        pairs = [[torch.linalg.solve(F + damping * eye, df).norm() for F in forms] for damping in DAMPINGS]
        found[size] = [float(b / a) for a, b in pairs]
    return found


def natural(model: nn.Module, rate: float, damping: float) -> NaturalGradient:
    return MinresNaturalGradient(model, Categorical(), lr=rate, damping=Tikhonov(damping), iterations=12)


def order_of_data(run: Run) -> None:
    """One pass over a stream; one segment of it at a time is drawn anew, and the trained network's outputs vary."""
    data, seeds = small_digits(run), run.choose(quick=3, full=10)
    segments, batch, each = 5, 20, run.choose(quick=180, full=1500)
    order = torch.randperm(len(data.labels), generator=run.generator("stream"))
    fixed, pool = order[: segments * each].split(each), order[segments * each :]
    ways: dict[str, tuple[Rated, tuple[float, ...]]] = {
        "gradient descent": (lambda m, lr: torch.optim.SGD(m.parameters(), lr), (1.0, 0.5, 0.2)),
        "natural gradient": (
            lambda m, lr: MinresNaturalGradient(m, Categorical(), lr=lr, damping=Tikhonov(0.1), iterations=12),
            (0.2, 0.1),
        ),
    }  # fmt: skip
    found: dict[str, list[float]] = {}
    rows: list[tuple[str | float, ...]] = []

    def trained(make: Rated, rate: float, stream: Sequence[Tensor]) -> Tensor:
        model = classifier(run, data, "order")
        opt = make(model, rate)
        for chosen in torch.cat(list(stream)).split(batch):
            opt.zero_grad()
            cross_entropy(model(data.flat[chosen]), data.labels[chosen]).backward()
            opt.step()
        if isinstance(opt, NaturalGradient):
            opt.close()
        with torch.no_grad():
            z: Tensor = model(data.test_flat)
        return z

    def variance(make: Rated, rate: float, k: int) -> float:
        outputs = []
        for seed in range(seeds):
            drawn = pool[torch.randperm(len(pool), generator=run.generator(f"segment {k}, {seed}"))[:each]]
            stream = [drawn if i == k else part for i, part in enumerate(fixed)]
            outputs.append(trained(make, rate, stream).softmax(1))
        return float(torch.stack(outputs).var(0).sum(1).mean())

    for name, (make, rates) in ways.items():
        ends = {lr: float(cross_entropy(trained(make, lr, fixed), data.test_labels)) for lr in rates}
        rate = min(ends, key=lambda r, of=ends: of[r])  # type: ignore[misc]
        variances = [variance(make, rate, k) for k in range(segments)]
        found[name] = variances
        rows.append((name, rate, ends[rate], *variances))
        run.number(f"order: mean variance, {name}", sum(variances) / segments)
        run.number(f"order: test loss, {name}", ends[rate])
    own, plain = found["natural gradient"], found["gradient descent"]
    loss = {name: run.results.numbers[f"order: test loss, {name}"] for name in ways}
    why = "each at the best of its rates; qualitative"
    run.below("order: the natural gradient's outputs vary less", sum(own), 0.5 * sum(plain), why)
    run.below("order: and it has learned no less", loss["natural gradient"], 1.05 * loss["gradient descent"], why)
    rash = variance(lambda m, lr: natural(m, lr, 1e-3), 0.2, 0)
    run.above("order: with a hundredth of the damping they vary more", rash, 3 * own[0], control=True)
    run.number("order: variance with a hundredth of the damping", rash)
    head = ("method", "rate", "test loss", *(f"segment {k + 1}" for k in range(segments)))
    run.table(Table(f"variance of outputs when one segment is drawn anew, {seeds} draws", head, rows))
    lines = [Series(name, range(1, segments + 1), variances) for name, variances in found.items()]
    panel = Panel("order of the data", "segment drawn anew", "variance of the outputs", lines)
    run.picture(Picture("order", f"One pass over {data.name}; rates by the loss at the end.", [panel]))


def autoencoder(run: Run) -> None:
    """Curves-like images, the whole set in every step: what is left after as many steps."""
    count, steps = run.choose(quick=200, full=2000), run.choose(quick=25, full=200)
    images = curves_like(count, seed=run.number_of("curves") % 2**31, dtype=torch.float64)
    x = images if not run.quick else avg_pool2d(images.view(-1, 1, 28, 28), 4).flatten(1)
    n = x.shape[1]
    widths = run.choose(quick=(n, 24, 6, 24, n), full=(n, 200, 100, 50, 6, 50, 100, 200, n))
    likelihood: Likelihood = Bernoulli()

    def curve(make: Make) -> list[float]:
        model = network_of(widths, run.generator("autoencoder"), torch.float64)
        opt, losses = make(model), []
        for _ in range(steps + 1):
            opt.zero_grad()
            loss = likelihood.loss(model(x), x)
            losses.append(float(loss.detach()))
            loss.backward()
            opt.step()
        return losses

    settings: dict[str, Any] = {"damping": run.choose(quick=3.0, full=45.0)}
    made: dict[str, list[list[float]]] = {
        "SGD": [curve(lambda m, r=lr: torch.optim.SGD(m.parameters(), r)) for lr in (0.3, 0.1, 0.03)],  # type: ignore[misc]
        "SGD, momentum": [
            curve(lambda m, r=lr: torch.optim.SGD(m.parameters(), r, momentum=0.9)) for lr in (0.1, 0.03, 0.01)  # type: ignore[misc]
        ],
        "natural gradient": [curve(lambda m: MinresNaturalGradient(m, likelihood, **settings))],
        "natural conjugate gradient": [curve(lambda m: NaturalConjugateGradient(m, likelihood))],
        "Hessian-free": [curve(lambda m: HessianFree(m, likelihood, iterations=50, **settings))],
    }  # fmt: skip
    curves = {name: min(tried, key=lambda c: c[-1] if c[-1] == c[-1] else float("inf")) for name, tried in made.items()}
    floor = float(likelihood.loss(torch.logit(x.clamp(1e-12, 1 - 1e-12)), x))
    mean = float(likelihood.loss(torch.logit(x.mean(0).clamp(1e-12, 1 - 1e-12)).expand_as(x), x))
    run.number("autoencoder: loss of the mean image", mean - floor)
    for name, losses in curves.items():
        run.number(f"autoencoder: loss of {name}", losses[-1] - floor)
    for name in ("natural gradient", "natural conjugate gradient", "Hessian-free"):
        run.below(
            f"autoencoder: {name} is below SGD after as many steps", curves[name][-1] - floor,
            curves["SGD"][-1] - floor, "SGD at its best rate of three; qualitative",
        )  # fmt: skip
    run.below(
        "autoencoder: Hessian-free is below the mean image", curves["Hessian-free"][-1] - floor, 0.8 * (mean - floor)
    )
    panel = Panel(
        f"curves-like, {'-'.join(map(str, widths))}", "step", "cross-entropy beyond the images' own",
        [Series(name, range(steps + 1), [v - floor for v in losses]) for name, losses in curves.items()], log="y",
    )  # fmt: skip
    run.picture(Picture("autoencoder", "Whole-batch training of an autoencoder.", [panel]))
