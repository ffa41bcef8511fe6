"""Orthogonal natural gradient descent: what it protects, what it does not, and the step that was meant."""

from __future__ import annotations

import torch

from .base import Experiment, Run
from .framed import Problem, apart
from .orthogonal_steps import METHODS, WAYS, Given, Two, annihilated, inequivariance, ong, ong_in_metric, protection
from .records import Panel, Picture, Series, Table
from .task_sequences import METHODS as LEARNERS
from .task_sequences import PUBLISHED, QUICK, Record, Stream, images_for, nothing, sequence, trained

SHOWN = 1e-2
"""A protection error, or a difference of steps in units of the step, that no rounding explains."""
ROUNDING = "solves by forms of condition 100, and by a random map and its inverse"


def formulas(run: Run) -> None:
    """Random ξ, α, M, M_old of 9 dimensions: which of the published formulas has which property."""
    draws = run.choose(quick=100, full=1000)
    generator = run.generator("formulas")
    g, T = Given.draw(generator), torch.randn(9, 9, generator=generator, dtype=torch.float64)
    ill = [Given.draw(generator, condition=1e6) for _ in range(draws)]
    rows: list[tuple[str | float, ...]] = []
    for name, (way, protects, covariant, descends) in WAYS.items():
        off, apart_, up = protection(g, way(g)), inequivariance(way, g, T), float(sum(h.xi @ way(h) > 0 for h in ill))
        rows.append((name, off, apart_, up / draws))
        for words, found, holds in (
            ("it leaves old outputs alone", off, protects), ("its step is the same in every frame", apart_, covariant),
        ):  # fmt: skip
            if holds:
                run.below(f"{name}: {words}", found, 1e-9, ROUNDING)
            else:
                run.above(f"{name}: it is not so that {words}", found, SHOWN, control=True)
        if descends:
            run.near(f"{name}: it never ascends", up, 0, within=0, why=f"{draws} draws of condition 1e6")
        else:
            run.above(f"{name}: it ascends on some", up, 0, f"of {draws} draws of condition 1e6", control=True)
    head = ("formula", "|α(v)| / |α||v|", "apart in another frame", "share that ascends")
    run.table(Table("what the formulas keep, on random matrices of condition 100", head, rows))
    unmoved = Given(g.xi, g.alpha, g.now, g.now)
    v = annihilated(unmoved)
    there, off = (float((way(unmoved) - v).norm() / v.norm()) for way in (ong_in_metric, ong))
    run.below("ONG in the metric is the annihilator's step if the metric has not moved", there, 1e-9, ROUNDING)
    run.above("ONG in the coordinates is not, even then", off, SHOWN, control=True)


def one_step(run: Run) -> None:
    """The library's optimizers on a network: how old outputs change with η, and which frames are not seen."""
    problem = Problem.draw(run, "dense")
    second = run.normal("second task", 200, 4) - 1
    labels = (run.normal("its labels", 200, 3) > 0).double()
    two = Two(problem, run.normal("old inputs", 4, 4) + 1, second, labels)
    twins = {group: problem.twin(group, run.number_of(f"frames: {group}")) for group in ("affine", "orthogonal")}
    bound = max(1e-9, 100 * max(problem.rounding(twin) for twin in twins.values()))
    rates = [10.0**-k for k in (2.0, 2.5, 3.0, 3.5, 4.0)]
    rows: list[tuple[str | float, ...]] = []
    lines = []
    for name, (make, order, affine, rotations) in METHODS.items():
        found = [two.change(make, rate) for rate in rates]
        moved = torch.tensor([change for change, _ in found])
        slope = float((moved[-1] / moved[0]).log() / torch.tensor(rates[-1] / rates[0]).log())
        error = max(off for _, off in found)
        run.near(f"{name}: old outputs change as η^{order}", slope, order, within=0.1, why="a term of higher order")
        if order == 2:
            run.below(f"{name}: α(v) = 0", error, 1e-9, "a step of 1e-4 beside parameters of 1")
        else:
            run.above(f"{name}: α(v) is not 0", error, 1e-3, control=True)
        base, differences = two.path(make), []
        for (group, twin), kept in zip(twins.items(), (affine, rotations), strict=True):
            differences.append(apart(base, two.path(make, twin)))
            if kept:
                run.below(f"{name}: the same path in {group} frames", differences[-1], bound, "conditions of factors")
            else:
                run.above(f"{name}: another path in {group} frames", differences[-1], 1e-3, control=True)
        rows.append((name, error, slope, *differences))
        lines.append(Series(name, rates, moved))
    head = ("method", "|α(v)| / |α||v|", "order in η", "affine frames", "orthogonal frames")
    run.table(Table("steps on a second task, and four steps in other frames", head, rows))
    panel = Panel("old outputs after one step", "rate η", "change", lines, log="xy")
    run.picture(Picture("slopes", "Only steps in the annihilator change old outputs in second order.", [panel]))


def permuted(run: Run) -> None:
    """Digits with their pixels in another order for each task."""
    training(run, "permuted")


def rotated(run: Run) -> None:
    """Digits turned further with each task."""
    training(run, "rotated")


def training(run: Run, stream: Stream) -> None:
    protocol = run.choose(quick=QUICK, full=PUBLISHED)
    data = images_for(run, protocol)
    run.results.data = data.name
    tasks = sequence(run, stream, protocol, data)
    best: dict[str, Record] = {}
    for name, (make, rates) in LEARNERS.items():
        tried = {rate: trained(run, tasks, protocol, make, rate) for rate in rates}
        rate = max(tried, key=lambda r, of=tried: of[r].average)  # type: ignore[misc]
        best[name] = tried[rate]
        run.number(f"{stream}, {name}: best rate", rate)
    kept, plain, published, repaired = (best[n] for n in ("annihilator", "SGD", "ONG, published", "ONG, repaired"))
    why = "each at the best of its rates; qualitative"
    others = max(best[name].average for name in ("SGD", "EWC", "OGD", "ONG, published"))
    run.above(f"{stream}: the annihilator is better than SGD, EWC, OGD and published ONG", kept.average, others, why)
    run.above(f"{stream}: ONG is better repaired than published", repaired.average, published.average, why)
    run.below(f"{stream}: the annihilator forgets less than published ONG", kept.forgotten, published.forgotten, why)
    for name in ("annihilator", "OGD"):
        run.below(f"{stream}: {name} forgets less than SGD", best[name].forgotten, plain.forgotten - 0.05, why)
    make, rate = LEARNERS["annihilator"][0], run.results.numbers[f"{stream}, annihilator: best rate"]
    bare = trained(run, tasks, protocol, lambda m, r, room: (make(m, r, room)[0], nothing, nothing), rate)
    run.above(
        f"{stream}: without a memory the same optimizer moves old outputs further", bare.moved, 1.1 * kept.moved,
        control=True,
    )  # fmt: skip
    rows = [(name, r.average, r.forgotten, r.learned, r.moved) for name, r in {**best, "no memory": bare}.items()]
    head = ("method", "average accuracy", "forgotten", "accuracy when learned", "old outputs moved")
    run.table(Table(f"{protocol.tasks} {stream} tasks of {data.name}", head, rows))
    for name, record in best.items():
        run.number(f"{stream}, {name}: average accuracy", record.average)
        run.number(f"{stream}, {name}: forgotten", record.forgotten)
    so_far = [Series(name, range(1, len(tasks) + 1), seen_so_far(record)) for name, record in best.items()]
    first = [Series(name, range(1, len(tasks) + 1), record.after[:, 0]) for name, record in best.items()]
    panels = [
        Panel(f"tasks so far, {stream}", "tasks", "average accuracy", so_far),
        Panel("the first task", "tasks", "accuracy", first),
    ]
    run.picture(Picture(stream, f"{data.name}, {stream}: every method at its best rate.", panels))


def seen_so_far(record: Record) -> list[float]:
    """The average over the tasks there have been, after each."""
    return [float(row[: t + 1].mean()) for t, row in enumerate(record.after)]


EXPERIMENT = Experiment(
    "orthogonal-natural-gradient",
    "Learning without forgetting: orthogonal natural gradients, and the annihilator that they mean",
    "Yadav, Mendoza, Korrapati 2025 (arXiv 2508.17169); Farajtabar et al. 2020; Kirkpatrick et al. 2017",
    "Natural gradients that are orthogonal to old natural gradients change old outputs in first order, unless the "
    "metric has not moved; projected on the annihilator of old outputs' differentials they change them in second "
    "order, in every frame, and forget less.",
    (("formulas", formulas), ("one step", one_step), ("permuted", permuted), ("rotated", rotated)),
)
