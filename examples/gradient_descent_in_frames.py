"""Plain SGD where every layer sees centred and whitened inputs, whitened anew along the way, beside plain SGD.

python examples/gradient_descent_in_frames.py
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from riemann_ng.likelihoods import Categorical
from riemann_ng.metrics import PRONG
from riemann_ng.networks import Network
from riemann_ng.reparametrize import in_frames


def problem(n=1024):
    """Inputs far from the origin and far from round, three classes."""
    torch.manual_seed(0)
    round_ones, sizes = torch.randn(n, 6), torch.tensor([3.0, 2.0, 1.0, 0.3, 0.1, 0.03])
    return sizes * round_ones + 2, round_ones[:, 3:].argmax(1)


def make():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


def train(model, optimizer, x, y, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()


def main():
    x, y = problem()
    metric = PRONG(1e-3)

    plain = make()
    train(plain, torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9), x, y, 100)

    model = make()
    network = Network.from_torch(model, Categorical(), x)
    framed = in_frames(network, metric.at(network.observe(x)))
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(10):
        train(model, sgd, x, y, 10)
        before = model(x).detach()
        with framed.off():
            framed.refresh(metric.at(network.observe(x)), sgd)
        assert (model(x) - before).abs().max() < 1e-4 * before.abs().max()
    framed.remove()

    losses = [float(cross_entropy(m(x), y).detach()) for m in (plain, model)]
    print("loss after 100 steps of SGD: {:.3f} in the coordinates, {:.3f} in frames of PRONG".format(*losses))
    return losses, model


if __name__ == "__main__":
    (coordinates, frames), model = main()
    assert frames < 0.1 * coordinates and list(model.state_dict()) == list(make().state_dict())
