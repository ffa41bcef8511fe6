"""Two tasks, and oracles for what is remembered of the first one."""

import torch
from optim_cases import CE, flat, mlp
from torch import nn

import riemann_ng as rng
from riemann_ng.likelihoods import Categorical
from riemann_ng.networks import Exact
from riemann_ng.optim import (
    OGD,
    ONG,
    AtStart,
    Constant,
    Deflected,
    NaturalGradient,
    ProjectedNaturalGradient,
    Protected,
    Schedule,
    Tikhonov,
)  # fmt: skip

__all__ = [
    "CE", "EVERY", "OGD", "ONG", "Categorical", "Constant", "Deflected", "Exact", "NaturalGradient",
    "ProjectedNaturalGradient", "Protected", "Tikhonov", "Transported", "differentials", "displacements", "flat",
    "in_order", "mlp", "nn", "rng", "taken", "task",
]  # fmt: skip

EVERY = {"schedule": Schedule(1, 1), "decay": 0.0, "estimator": Exact(), "momentum": 0.0}
Transported = Tikhonov(0.1, AtStart(rng.KFAC() + rng.EuclideanMetric()))


def task(seed, n=30, dtype=torch.float64):
    """Inputs around a place of their own, and labels by a map of their own."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=g, dtype=torch.float64) + torch.randn(4, generator=g, dtype=torch.float64)
    return x.to(dtype), (x @ torch.randn(4, 3, generator=g, dtype=torch.float64)).argmax(1)


def taken(model, opt, x, y):
    """One step of the loop, and the displacement of all parameters."""
    before = flat(model)
    opt.zero_grad()
    CE(model(x), y).backward()
    opt.step()
    return flat(model) - before


def displacements(model, opt, tasks):
    return torch.stack([taken(model, opt, x, y) for x, y in tasks])


def differentials(model, x, of=lambda z: z.flatten()):
    """The Jacobian of numbers made of outputs, a row each, by autograd alone."""
    rows = [torch.autograd.grad(z, list(model.parameters()), retain_graph=True) for z in of(model(x))]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


def in_order(opt, rows):
    """Rows on the tangent space, in the order of `flat`."""
    parameters = rng.Vector(opt.network.tangent_space, rows).to_parameters()
    return torch.cat([parameters[name].flatten(1) for name in opt.network.parameters], 1)
