"""Methods with what they are invariant to, by theory, on every network: none of it may ever be refuted."""

import torch

from riemann_ng.metrics import EKFAC, KFAC, EuclideanMetric, Fisher, GaussNewton
from riemann_ng.networks import MonteCarlo
from riemann_ng.testing.invariance import optimizer
from riemann_ng.testing.invariance.checking import all_probes, check_cells

A, S, OUT = "activations", "pre-activations", "outputs"
LINEAR = ("general", "orthogonal", "monomial", "scaling", "signed permutations", "permutations", "uniform scale")
EVERY = ("translations", *LINEAR, "isometries")
ISOMETRIES = ("translations", "orthogonal", "isometries", "signed permutations", "permutations")
AXES = ("signed permutations", "permutations")


def cells(**groups):
    names = {"a": ("inputs", A), "s": (S, OUT)}
    return {(on, group) for key, kept in groups.items() for on in names[key] for group in kept}


def descent(**options):
    return optimizer(lambda model: torch.optim.SGD(model.parameters(), **options))


PROBLEM = {("batch", "order"), ("batch", "duplication")}
CLAIMS = {
    "K-FAC": (KFAC(), cells(a=EVERY, s=EVERY) | PROBLEM | {("layers", "joint scale")}),
    "K-FAC, sampled": (KFAC(observed=MonteCarlo(2)), cells(a=EVERY, s=EVERY)),
    "K-FAC, biases apart": (KFAC(bias="separate"), cells(a=LINEAR, s=EVERY) | PROBLEM),
    "K-FAC, damped on translations": (
        KFAC() + 0.1 * EuclideanMetric(on="translations"),
        cells(a=ISOMETRIES, s=ISOMETRIES) | PROBLEM,
    ),
    "Fisher": (Fisher(), cells(a=EVERY, s=EVERY) | PROBLEM | {("layers", "joint scale")}),
    "Fisher, diagonal": (
        Fisher(structure="diagonal"), cells(a=("monomial", "scaling", *AXES), s=("translations", "scaling", *AXES)),
    ),
    "Fisher, by units": (Fisher(structure="unit-wise"), cells(a=EVERY, s=("translations", "scaling", *AXES))),
    "Gauss-Newton": (GaussNewton(), {(A, g) for g in EVERY} | {(OUT, g) for g in ISOMETRIES} | PROBLEM),
    "EKFAC": (EKFAC(), cells(a=AXES, s=AXES)),
    "descent": (descent(lr=0.01, momentum=0.9), cells(a=("orthogonal", *AXES), s=ISOMETRIES) | PROBLEM),
    "Adam": (
        optimizer(lambda model: torch.optim.Adam(model.parameters(), lr=1e-3)),
        cells(a=AXES, s=("translations", *AXES)),
    ),
}  # fmt: skip


def verdicts(name, case, some=None):
    """The cells that the theory claims, on a network; `some` chooses among them."""
    subject, claimed = CLAIMS[name]
    probes = [p for p in all_probes() if p.key in claimed]
    probes = probes if some is None else [p for k, p in enumerate(probes) if k % len(probes) == some % len(probes)]
    return check_cells(subject, case.module(), case.x, case.y, probes, case.likelihood, held_out=0.0)
