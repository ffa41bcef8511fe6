"""Networks with twins, beside those of the zoo, and what tests of twins share."""

import torch
from networks_zoo import ZOO
from torch import nn

from riemann_ng.elements import Vector
from riemann_ng.inner_products import direct_sum, second_moment
from riemann_ng.likelihoods import Bernoulli
from riemann_ng.networks import Network
from riemann_ng.reparametrize import Frames, reparametrize

MOVABLE = ("inputs", "activations", "pre-activations", "outputs", "constants")


class Attending(nn.Module):
    """Attention between two linear maps, with keys of another width, learned keys and a residual path."""

    def __init__(self):
        super().__init__()
        self.into = nn.Linear(3, 4)
        self.attn = nn.MultiheadAttention(4, 2, kdim=3, vdim=3, batch_first=True, add_bias_kv=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        h = self.into(x)
        return self.out((h + self.attn(h, x, x, need_weights=False)[0]).mean(1))


class Gated(nn.Module):
    """Two layers of a GRU, in both directions, and a cell after them."""

    def __init__(self):
        super().__init__()
        self.gru, self.cell = nn.GRU(2, 3, 2, bidirectional=True), nn.LSTMCell(6, 3)
        self.out = nn.Linear(3, 2)

    def forward(self, x):
        h = self.gru(x.transpose(0, 1))[0][-1]
        return self.out(self.cell(h, self.cell(h))[0])


class Product(nn.Module):
    def __init__(self):
        super().__init__()
        self.bilinear, self.out = nn.Bilinear(3, 3, 2), nn.Linear(2, 3)

    def forward(self, x, y):
        return self.out(torch.tanh(self.bilinear(x, y)))


class Named(nn.Module):
    """Takes keyword arguments, one of them tokens."""

    def __init__(self):
        super().__init__()
        self.embed, self.into, self.out = nn.Embedding(5, 3), nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, tokens, values):
        return self.out(torch.tanh(self.embed(tokens) + self.into(values)))


def normalized():
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1, bias=True), nn.GroupNorm(2, 4), nn.Tanh(),
        nn.Conv1d(4, 4, 3, padding="same", groups=2), nn.BatchNorm1d(4), nn.Flatten(), nn.LayerNorm(20),
        nn.Linear(20, 3),
    )  # fmt: skip


CASES = {
    **ZOO,
    "attention": (Attending, lambda n: torch.randn(n, 4, 3)),
    "gates": (Gated, lambda n: torch.randn(n, 3, 2)),
    "encoder": (
        lambda: nn.Sequential(
            nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 6, 0.1, batch_first=True), 2),
            nn.Flatten(),
            nn.Linear(12, 3),
        ),
        lambda n: torch.randn(n, 3, 4),
    ),
    "bilinear": (Product, lambda n: (torch.randn(n, 3), torch.randn(n, 3))),
    "named": (Named, lambda n: {"tokens": torch.randint(0, 5, (n,)), "values": torch.randn(n, 2)}),
    "normalized": (normalized, lambda n: torch.randn(n, 2, 5)),
    "frozen": (lambda: freeze(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))), lambda n: torch.randn(n, 3)),
    "images": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 3, padding=(1, 0))),
        lambda n: torch.randn(n, 2, 4, 4),
    ),
}


def freeze(model):
    model[0].bias.requires_grad_(False)
    model[2].weight.requires_grad_(False)
    return model


def case(name, n=6, likelihood=None):
    """A network of the zoo with a batch; biases, which often start at zero, are moved."""
    make, batch = CASES[name]
    torch.manual_seed(0)
    model, x = make(), batch(n)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return Network.from_torch(model, likelihood or Bernoulli(), x), x


def twin_of(network, x, on=MOVABLE, group="general", seed=1, **options):
    return reparametrize(network, Frames.draw(network, x, on, group, seed, **options), x)


def kfac(observation):
    layers = observation.layers.items()
    return direct_sum({path: second_moment(o.cotangents) * second_moment(o.inputs) for path, o in layers})


def trajectory(network, x, y, update, seen, steps=5):
    """Predictions after some steps; the parameters are put back."""
    before = {name: p.detach().clone() for name, p in network.parameters.items()}
    try:
        for _ in range(steps):
            network.move_(update(network, x, y))
        return seen(network.outputs(x).detach())
    finally:
        with torch.no_grad():
            for name, p in network.parameters.items():
                p.copy_(before[name])


def kfac_step(lr, damp=None):
    def update(network, x, y):
        g = kfac(network.observe(x))
        return -lr * (g if damp is None else g + damp(network)).sharp(network.differential(x, y))

    return update


def descent_step(lr):
    def update(network, x, y):
        return Vector(network.tangent_space, -lr * network.differential(x, y).data)

    return update
