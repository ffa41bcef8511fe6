"""A small problem and what the optimizer's tests share."""

import torch
from torch import nn

from riemann_ng.likelihoods import Categorical
from riemann_ng.optim import NaturalGradient

CE = nn.functional.cross_entropy


def mlp(dtype=torch.float64, seed=0, outputs=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, outputs)).to(dtype)


def data(n=24, dtype=torch.float64, seed=1):
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.to(dtype), (x @ torch.arange(12.0, dtype=torch.float64).reshape(4, 3).cos()).argmax(1)


def batches(steps, n=24, dtype=torch.float64):
    return [data(n, dtype, seed) for seed in range(1, steps + 1)]


def step(model, opt, x, y, criterion=CE):
    opt.zero_grad()
    loss = criterion(model(x), y)
    loss.backward()
    opt.step()
    return float(loss.detach())


def run(steps=6, model=None, data_of=None, **settings):
    """The model after some steps of the plain loop, and its optimizer."""
    model = mlp() if model is None else model
    opt = NaturalGradient(model, Categorical(), **settings)
    for x, y in data_of or batches(steps):
        step(model, opt, x, y)
    return model, opt


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def hooks(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return sum(len(getattr(m, kind)) for m in model.modules() for kind in kinds)
