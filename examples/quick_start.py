"""Quick start: a module, a likelihood, a metric; one natural gradient step by hand, then a training loop.

python examples/quick_start.py
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import riemann_ng as rng


def main():
    torch.manual_seed(0)
    x = torch.randn(256, 4, dtype=torch.float64)
    y = (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 1).long()
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)).double()

    # The module, read as maps between typed spaces. The gradient is a covector; only an inner product makes it a step.
    network = rng.Network.from_torch(model, likelihood=rng.Categorical(), example=x)
    print(network.coverage())
    df = network.differential(x, y)
    metric = rng.KFAC() + 1e-2 * rng.EuclideanMetric()
    step = rng.natural_gradient(network, metric, x, y)
    assert torch.allclose(metric.at(network.observe(x)).flat(step).data, df.data)

    before = cross_entropy(model(x), y).item()
    network.move_(step, step=-0.3)
    after = cross_entropy(model(x), y).item()
    print(f"one step with {metric}: loss {before:.3f} -> {after:.3f}")

    # The same in a loop, with a recipe that needs no tuning.
    opt = rng.optim.NaturalGradient(model, likelihood=rng.Categorical())
    for _ in range(100):
        opt.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        opt.step()
    print(f"100 steps of {type(opt).__name__}: loss {loss.item():.4f}")
    assert after < before
    return loss.item()


if __name__ == "__main__":
    assert main() < 0.05
