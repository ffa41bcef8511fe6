"""A small problem for metrics of gradients, and what their tests share."""

import copy
import itertools

import torch
from torch import nn

from riemann_ng.likelihoods import Bernoulli
from riemann_ng.networks import Network
from riemann_ng.testing.invariance import check_invariance

SIDES = ("activations", "pre-activations")


def off(a, b):
    a, b = a.detach(), b.detach()
    return float((a - b).norm() / b.norm())


def small(widths=(4, 5, 3), n=120, seed=0, biases=True):
    """A network whose layers are square nowhere, unless told so; binary targets leave no direction without effect."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(a, b, bias=biases) for a, b in itertools.pairwise(widths)]
        model = nn.Sequential(*(m for layer in layers for m in (layer, nn.Tanh())))[:-1]
        x, y = torch.randn(n, widths[0]) + 0.3, torch.randint(0, 2, (n, widths[-1])).to(torch.get_default_dtype())
    return Network.from_torch(model, Bernoulli(), x), x, y


def kept_by(metric, problem, likelihood=None, **options):
    """The groups that are held on each side, after a check that claims are what is measured, both ways."""
    network, x, y = problem
    report = check_invariance(metric, network, x, y, likelihood or Bernoulli(), on=SIDES, shrink=False, **options)
    assert report.notes == (), report.notes
    for cell in report:
        assert cell.verdict in ("held", "refuted") and cell.claimed is (cell.verdict == "held"), str(cell)
    return {side: {cell.group for cell in report if cell.on == side and cell.verdict == "held"} for side in SIDES}


EVERYTHING = {
    "translations", "general", "orthogonal", "monomial", "scaling", "signed permutations", "permutations",
    "uniform scale", "isometries",
}  # fmt: skip
ROTATIONS = {"orthogonal", "signed permutations", "permutations"}
ISOMETRIES = ROTATIONS | {"translations", "isometries"}
SIGNED = {"signed permutations", "permutations"}
UNITS = {"translations", "monomial", "scaling", *SIGNED, "uniform scale"}


def on_batches(optimizer_of, loss_of, model, batches):
    """The parameters after every step of an optimizer of torch."""
    model = copy.deepcopy(model)
    optimizer, seen = optimizer_of(model), []
    for x, y in batches:
        optimizer.zero_grad()
        loss_of(model(x), y).backward()
        optimizer.step()
        seen.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    return torch.stack(seen)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])
