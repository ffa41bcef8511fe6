"""Natural gradient in a plain training loop, stopped halfway and resumed.

python examples/plain_loop.py
"""

import io

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from riemann_ng.likelihoods import Categorical
from riemann_ng.optim import NaturalGradient, Progress, QuadraticModel


def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))
    return model, NaturalGradient(model, likelihood=Categorical(), step_size=QuadraticModel())


def spirals(n, seed):
    """Two spirals, and which of them a point is on."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % 2
    r = torch.rand(n, generator=generator)
    angle = 4 * r + label * torch.pi
    x = torch.stack([r * angle.cos(), r * angle.sin()], 1)
    return 3 * (x + 0.01 * torch.randn(n, 2, generator=generator)), label


def train(model, opt, steps):
    progress = Progress()
    opt.listeners.append(progress)
    for seed in steps:
        x, y = spirals(256, seed)
        opt.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        progress.loss = loss.item()
        opt.step()


def main():
    model, opt = make()
    train(model, opt, range(40))
    file = io.BytesIO()
    torch.save([model.state_dict(), opt.state_dict()], file)
    train(model, opt, range(40, 80))

    file.seek(0)
    other, resumed = make()
    for thing, state in zip((other, resumed), torch.load(file, weights_only=True), strict=True):
        thing.load_state_dict(state)
    train(other, resumed, range(40, 80))
    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))

    x, y = spirals(1000, seed=1000)
    with torch.no_grad():
        right = (model(x).argmax(1) == y).float().mean()
    print(f"{100 * right:.1f} % right after 80 steps, whether stopped and resumed or not; in trouble: {opt.tally}")
    return float(right)


if __name__ == "__main__":
    assert main() > 0.9
