"""A likelihood of one's own: any family of torch.distributions, and its Fisher comes with it.

Robust regression: targets are Laplace about a line, with a width that is learned too. What the library finds from the
log density alone is held against the formula, H = diag(1/b², 1) in the outputs (location, log b).

    python examples/your_own_likelihood.py
"""

import torch
from torch import nn
from torch.distributions import Laplace

import riemann_ng as rng
from riemann_ng.likelihoods import FromDistribution


def laplace(z):
    """Outputs are the location and the logarithm of the width."""
    return Laplace(z[:, :1], z[:, 1:].exp())


def data(n):
    """A line with noise of width 0.2, and every tenth target far off."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    y = 2 * x - 1 + 0.2 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    y[::10] += 20
    return x, y


def main():
    likelihood = FromDistribution(laplace)
    z = torch.tensor([[0.3, -1.0], [5.0, 0.5]], dtype=torch.float64)
    formula = torch.diag_embed(torch.stack([(-2 * z[:, 1]).exp(), torch.ones(2, dtype=z.dtype)], 1))
    assert torch.allclose(likelihood.matrix(z), formula, rtol=1e-6)
    print(f"Fisher of {likelihood} by {likelihood.method_at(z)}:", likelihood.matrix(z), sep="\n")

    x, y = data(500)
    model = nn.Linear(1, 2).double()
    with torch.no_grad():
        model.weight.zero_(), model.bias.zero_()
    network = rng.Network.from_torch(model, likelihood, example=x)
    for step in range(200):
        network.move_(rng.natural_gradient(network, rng.Fisher(), x, y), step=-1 / (1 + 0.1 * step))
    slope, intercept = model.weight[0].item(), model.bias[0].item()
    squares = torch.linalg.lstsq(torch.cat([x, torch.ones_like(x)], 1), y).solution.flatten()
    print(f"slope {slope:.3f}, intercept {intercept:.3f}; by least squares {squares[0]:.3f}, {squares[1]:.3f}")
    assert abs(squares[1] + 1) > 1, "least squares follow the targets that are far off"
    return max(abs(slope - 2), abs(intercept + 1))


if __name__ == "__main__":
    assert main() < 0.1
