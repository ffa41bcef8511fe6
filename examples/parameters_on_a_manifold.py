"""A layer whose weight is a frame of orthonormal vectors, trained by the Fisher metric restricted to the tangent space.

A classifier sees its inputs through two orthonormal features. The frame is a point of a Stiefel manifold of geomstats;
the layers after it are ordinary ones, and have K-FAC's products. Beside it two ways that are not this one: a step in
all components leaves the manifold, and solving there and projecting afterwards is a different direction.

    python examples/parameters_on_a_manifold.py
"""

import torch
from torch import nn

import riemann_ng as rng
from riemann_ng.interop.geomstats import ManifoldNaturalGradient, OnManifold, constraint_errors, project_

# isort: split
# geomstats takes the backend that the import above has chosen
from geomstats.geometry.stiefel import Stiefel


def make() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 2), nn.Tanh(), nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    project_(model, FRAME)
    return model


def train(model: nn.Module, opt: torch.optim.Optimizer, steps: int) -> float:
    for _ in range(steps):
        opt.zero_grad()
        loss = nn.functional.cross_entropy(model(X), Y)
        loss.backward()
        opt.step()
    return float(loss.detach())


FRAME = {"0.weight": OnManifold(Stiefel(10, 2), transposed=True)}
G = torch.Generator().manual_seed(0)
SCALES = torch.linspace(0.4, 4, 10, dtype=torch.float64)
X = SCALES * torch.randn(400, 10, generator=G, dtype=torch.float64)
HIDDEN = torch.linalg.qr(torch.randn(10, 2, generator=G, dtype=torch.float64))[0]  # what the labels depend on
Y = 2 * (X @ HIDDEN[:, 0] > 0).long() + (X @ HIDDEN[:, 1] > 0).long()


def main() -> None:
    model = make()
    opt = ManifoldNaturalGradient(model, rng.Categorical(), FRAME)
    loss = train(model, opt, 150)
    W = model[0].weight.detach()
    off = constraint_errors(model, FRAME)["0.weight"]
    seen = torch.linalg.svdvals(W @ HIDDEN)
    print(f"loss {loss:.4f}; the frame is off its manifold by {off:.1e}")
    print(f"cosines of the angles between the features found and those that labels depend on: {seen.tolist()}")
    assert off < 1e-12 and loss < 0.2 and float(seen.min()) > 0.95

    free = make()
    train(free, rng.optim.NaturalGradient(free, rng.Categorical()), 20)
    off = constraint_errors(free, FRAME)["0.weight"]
    print(f"20 steps in all components: off by {off:.2f}")
    assert off > 0.01

    model = make()
    network = rng.Network.from_torch(model, rng.Categorical(), X)
    g = rng.KFAC().at(network.observe(X)).summands()["0"] + 1e-3 * rng.Euclidean(network.tangent_space["0"])
    df = network.differential(X, Y).component("0")
    W = model[0].weight.detach()

    def tangent(v: torch.Tensor) -> torch.Tensor:
        """[weight bias] with the weight projected to the tangent space of frames."""
        weight, bias = v[..., :-1], v[..., -1:]
        across = weight @ W.mT
        return torch.cat([weight - (across + across.mT) / 2 @ W, bias], dim=-1)

    every = torch.eye(22, dtype=torch.float64).reshape(22, 2, 11)
    basis = torch.linalg.svd(tangent(every).reshape(22, 22).mT)[0][:, :19]  # 22 numbers, 3 equations
    T = rng.LinearMap(rng.Space("T", 19), g.space, basis, "inclusion", natural=True)
    on_the_manifold = T(g.restrict(T).sharp(T.pullback(df)))
    projected = rng.Vector(g.space, tangent(g.sharp(df).data))
    cosine = g.inner(on_the_manifold, projected) / g.norm(on_the_manifold) / g.norm(projected)
    print(f"solved in all components and then projected: cosine {float(cosine):.3f} with the restricted gradient")
    assert torch.isclose(df(on_the_manifold), g.inner(on_the_manifold, on_the_manifold))
    assert float(cosine) < 0.999


if __name__ == "__main__":
    main()
