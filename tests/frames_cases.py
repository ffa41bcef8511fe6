"""Models whose layers are put in frames, and a loop that trains one in frames beside its natural gradient."""

import copy

import torch
from torch import nn

from riemann_ng.likelihoods import Categorical
from riemann_ng.networks import Network
from riemann_ng.reparametrize import in_frames

CE = nn.functional.cross_entropy


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x):
        return self.out(self.lstm(x)[0][:, -1])


class Attention(nn.Module):
    """Tokens, fused projections, the scale and shift of a normalization."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Embedding(6, 4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm, self.out = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, tokens):
        h = self.embed(tokens)
        return self.out(self.norm(h + self.mix(h, h, h)[0]).mean(1))


class Tied(nn.Module):
    """Two modules that share their parameters, a layer without a bias, a parameter without a layer, a frozen one."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3, bias=False)
        self.right.weight, self.right.bias = self.left.weight, self.left.bias
        self.gain, self.still = nn.Parameter(torch.randn(4)), nn.Parameter(torch.ones(4), requires_grad=False)

    def forward(self, x):
        return self.out(torch.tanh(self.left(x) + self.right(x.sin())) * self.gain * self.still)


def mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def convolutions():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.GroupNorm(2, 4), nn.Tanh(), nn.ConvTranspose2d(4, 2, 2), nn.Flatten(),
        nn.Linear(50, 3),
    )  # fmt: skip


MODELS = {"mlp": mlp, "convolutions": convolutions, "recurrent": Recurrent, "attention": Attention, "tied": Tied}


def problem(name, n=40):
    """A model, a batch and its labels, in float64."""
    torch.manual_seed(0)
    model = MODELS[name]().double()
    shapes = {"convolutions": (2, 6, 6), "recurrent": (5, 2)}
    x = torch.randint(0, 6, (n, 5)) if name == "attention" else torch.randn(n, *shapes.get(name, (4,)))
    return model, x.double() if x.is_floating_point() else x, torch.randint(0, 3, (n,))


def network_of(model, x):
    return Network.from_torch(model, Categorical(), x, name="net")


def step(model, optimizer, x, y):
    optimizer.zero_grad()
    loss = CE(model(x), y)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def side_by_side(name, metric, steps=6, refresh_at=3, lr=0.1, momentum=0.9, transport=True):
    """Gradient descent in frames and the natural gradient: both models, the frames, the optimizer, the velocity."""
    model, x, y = problem(name)
    framed_model = copy.deepcopy(model)
    network, other = network_of(model, x), network_of(framed_model, x)
    g = metric.at(network.observe(x))
    framed = in_frames(other, metric.at(other.observe(x)))
    sgd = torch.optim.SGD(framed_model.parameters(), lr=lr, momentum=momentum)
    velocity = None
    for t in range(steps):
        if t == refresh_at:
            g = metric.at(network.observe(x))
            with framed.off() as seen:
                framed.refresh(metric.at(seen.observe(x)), sgd if transport else None)
        step(framed_model, sgd, x, y)
        v = g.sharp(network.differential(x, y))
        velocity = v if velocity is None else momentum * velocity + v
        network.move_(velocity, -lr)
    return model, framed_model, framed, sgd, velocity, x
