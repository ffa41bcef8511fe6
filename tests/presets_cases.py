"""What the tests of the presets share: each on a small problem, and Hessian-free optimization in plain torch."""

import math

import torch
from optim_cases import CE, mlp, step
from torch import nn

from riemann_ng import metrics, optim
from riemann_ng.inner_products import Gram
from riemann_ng.likelihoods import Categorical

PRESETS = {
    "published K-FAC": lambda m, p: optim.PublishedKFAC(m, p, damping=1.0, fraction=0.5),
    "online": optim.OnlineNaturalGradient,
    "Hessian-free": lambda m, p: optim.HessianFree(m, p, damping=1.0, iterations=6),
    "Krylov": lambda m, p: optim.KrylovSubspaceDescent(m, p, size=6, iterations=4),
    "conjugate": optim.NaturalConjugateGradient,
    "conjugate on the model": lambda m, p: optim.NaturalConjugateGradient(m, p, search="model"),
    "joint on the loss": lambda m, p: optim.NaturalConjugateGradient(m, p, method="joint"),
    "joint on the model": lambda m, p: optim.NaturalConjugateGradient(m, p, method="joint", search="model"),
    "MINRES": optim.MinresNaturalGradient,
    "TONGA": optim.TONGA,
    "TONGA, low rank": lambda m, p: optim.TONGA(m, p, rank=3),
    "geodesic": optim.GeodesicNaturalGradient,
    "Adam": optim.Adam,
    "Muon": optim.Muon,
    "spectral": optim.SpectralNaturalGradient,
    "PRONG": lambda m, p: optim.PRONG(m, p, lr=0.05),
    "SNGD": lambda m, p: optim.SNGD(m, p, lr=0.05),
}


def params(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def trained(make, batches, model=None, likelihood=None, criterion=CE):
    """Parameters after every step, and the optimizer."""
    model = mlp() if model is None else model
    opt, seen = make(model, Categorical() if likelihood is None else likelihood), []
    for x, y in batches:
        step(model, opt, x, y, criterion)
        seen.append(params(model))
    return torch.stack(seen), opt


class Fixed(metrics.RiemannianMetric):
    """One matrix at every point, of any signature."""

    def __init__(self, matrix, name="fixed"):
        self.matrix, self.name = matrix, name

    def at(self, observation):
        return Gram(observation.space, self.matrix, validate=False)

    def expression(self):
        return f"Fixed({self.name})"


def line(n=40, features=4, targets=3, seed=0):
    """A linear network, and data: half its squared errors are a quadratic loss."""
    g = torch.Generator().manual_seed(seed)
    scales = torch.linspace(0.4, 1.6, features, dtype=torch.float64)
    x = torch.randn(n, features, generator=g, dtype=torch.float64) * scales
    y = torch.randn(n, targets, generator=g, dtype=torch.float64)
    torch.manual_seed(seed)
    return nn.Linear(features, targets).double(), x, y


def half_squares(z, y):
    return 0.5 * (z - y).square().sum() / len(y)


def random_form(n, seed=0, condition=50.0):
    g = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))[0]
    values = torch.logspace(0, math.log10(condition), n, dtype=torch.float64)
    return Q @ torch.diag(values) @ Q.mT, torch.randn(n, generator=g, dtype=torch.float64)


class HandMadeHessianFree:
    """Martens's method for cross-entropy: products with the Gauss-Newton matrix by two backward passes, no library."""

    def __init__(self, model, damping=1.0, most=250, wrong=""):
        self.model, self.damping, self.most, self.wrong = model, damping, most, wrong
        self.params = list(model.parameters())
        self.solution = torch.zeros_like(params(model))

    def flat(self, tensors):
        return torch.cat([t.flatten() for t in tensors])

    def split(self, v):
        parts, at = [], 0
        for p in self.params:
            parts.append(v[at : at + p.numel()].view_as(p))
            at += p.numel()
        return parts

    def product(self, x, v):
        """JᵀHJ v / n with J v by a backward pass through the backward pass."""
        z = self.model(x)
        u = torch.zeros_like(z, requires_grad=True)
        back = torch.autograd.grad(z, self.params, u, create_graph=True)
        Jv = torch.autograd.grad(back, u, self.split(v))[0]
        p = z.detach().softmax(1)
        HJv = p * Jv - p * (p * Jv).sum(1, keepdim=True)
        if self.wrong == "outputs":
            HJv = Jv
        Fv = self.flat(torch.autograd.grad(self.model(x), self.params, HJv / len(x)))
        return Fv + self.damping * v

    def loss_at(self, x, y, start, v):
        with torch.no_grad():
            for p, a, b in zip(self.params, self.split(start), self.split(v), strict=True):
                p.copy_(a + b)
            found = float(CE(self.model(x), y))
            for p, a in zip(self.params, self.split(start), strict=True):
                p.copy_(a)
        return found

    def step(self, x, y):
        start = params(self.model)
        loss = CE(self.model(x), y)
        g = self.flat(torch.autograd.grad(loss, self.params))
        v = (0.0 if self.wrong == "cold" else 0.95) * self.solution
        r = -g - self.product(x, v)
        p, rho = r.clone(), r @ r
        heights, kept, stored = [float(0.5 * v @ (g - r))], [], 1
        for k in range(1, self.most + 1):
            q = self.product(x, p)
            alpha = rho / (p @ q)
            v, r = v + alpha * p, r - alpha * q
            p, rho = r + (r @ r) / rho * p, r @ r
            heights.append(float(0.5 * v @ (g - r)))
            gap = max(10, math.ceil(k / 10))
            ends = k > gap and heights[-1] < 0 and (heights[-1] - heights[-1 - gap]) / heights[-1] < gap * 5e-4
            if k >= stored or ends or k == self.most:
                kept.append(v)
            if k >= stored:
                stored = max(stored + 1, math.ceil(1.3 * stored))
            if ends:
                break
        self.solution = v
        values = [self.loss_at(x, y, start, u) for u in kept]
        best = len(kept) - 1
        while best > 0 and values[best - 1] <= values[best]:
            best -= 1
        if self.wrong == "believing":
            best = len(kept) - 1
        d, rate = kept[best], 1.0
        before, slope = float(loss.detach()), float(g @ d)
        while self.loss_at(x, y, start, rate * d) > before + 0.01 * rate * slope:
            rate *= 0.8
        after = self.loss_at(x, y, start, rate * d)
        bend = float(d @ self.product(x, d) - self.damping * d @ d)
        ratio = (after - before) / (rate * slope + 0.5 * rate**2 * bend)
        with torch.no_grad():
            for p, u in zip(self.params, self.split(start + rate * d), strict=True):
                p.copy_(u)
        self.damping *= 2 / 3 if ratio > 0.75 else 1.5 if ratio < 0.25 else 1.0
        return params(self.model)
