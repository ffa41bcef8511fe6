"""Models with parameters on manifolds, and formulas of their own that they are held against."""

import torch
from torch import nn
from torch.distributions import MultivariateNormal

from riemann_ng.interop.geomstats import OnManifold, project_
from riemann_ng.likelihoods import FromDistribution

# isort: split
# geomstats takes the backend that the import above has chosen
from geomstats.geometry.hyperboloid import Hyperboloid
from geomstats.geometry.hypersphere import Hypersphere
from geomstats.geometry.poincare_ball import PoincareBall
from geomstats.geometry.spd_matrices import SPDMatrices
from geomstats.geometry.stiefel import Stiefel

CE = nn.functional.cross_entropy
F64 = torch.float64


def draw(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


class Direction(nn.Module):
    """x · w for a point w of a sphere."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x):
        return x @ self.w[:, None]


class Covariance(nn.Module):
    """The covariance of a centred normal distribution, the same at every input."""

    def __init__(self, sigma):
        super().__init__()
        self.sigma = nn.Parameter(sigma)

    def forward(self, x):
        return self.sigma.expand(len(x), *self.sigma.shape)


def normal(z):
    return MultivariateNormal(z.new_zeros(z.shape[:-1]), covariance_matrix=z, validate_args=False)


NORMAL = FromDistribution(normal)


class Everything(nn.Module):
    """Classes of tokens, by points of two hyperbolic planes, a frame, a point of a sphere and a covariance."""

    def __init__(self):
        super().__init__()
        self.sheet, self.ball = nn.Embedding(6, 3), nn.Embedding(6, 2)
        self.encoder, self.head = nn.Linear(5, 4), nn.Linear(4, 3)
        self.prototype = nn.Parameter(draw(4, seed=3, dtype=torch.get_default_dtype()))
        self.sigma = nn.Parameter(torch.eye(4))

    def forward(self, tokens):
        h = self.encoder(torch.cat([self.sheet(tokens), self.ball(tokens)], dim=-1)).tanh()
        return self.head(h @ self.sigma - self.prototype)


EVERYTHING = {
    "sheet.weight": OnManifold(Hyperboloid(2)),
    "ball.weight": OnManifold(PoincareBall(2), metric="own"),
    "encoder.weight": OnManifold(Stiefel(5, 4), transposed=True, retraction="projection"),
    "prototype": Hypersphere(3),
    "sigma": SPDMatrices(4),
}


def everything(dtype=F64, seed=0):
    torch.manual_seed(seed)
    model = Everything().to(dtype)
    with torch.no_grad():
        model.ball.weight.mul_(0.2)
    project_(model, EVERYTHING)
    return model


def tokens(n=40, seed=1):
    x = torch.randint(6, (n,), generator=torch.Generator().manual_seed(seed))
    return x, (x * 2 + x // 4) % 3


def errors_of(model):
    """How far each parameter of `Everything` is off, from the equations of its manifold."""
    p = {name: t.detach().double() for name, t in model.named_parameters()}
    x, W, s = p["sheet.weight"], p["encoder.weight"], p["sigma"]
    first = (1 + x[:, 1:].square().sum(-1)).sqrt()
    return {
        "sheet.weight": float(((x[:, 0] - first) / first).abs().max()),
        "ball.weight": float((p["ball.weight"].norm(dim=-1) - 1).clamp(min=0).max()),
        "encoder.weight": float((W @ W.mT - torch.eye(4, dtype=F64)).abs().max()),
        "prototype": float((p["prototype"].norm() - 1).abs()),
        "sigma": max(float((s - s.mT).abs().max()), -float(torch.linalg.eigvalsh(s).min())),
    }


def step(model, opt, x, y, criterion=CE):
    opt.zero_grad()
    loss = criterion(model(x), y)
    loss.backward()
    opt.step()
    return float(loss.detach())
