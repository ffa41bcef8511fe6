"""Modules that the tests read: every supported leaf, and the ways in which hooks can be fooled."""

import torch
from torch import nn

from riemann_ng.elements import Vector


def oracle(model, network, x):
    """The Jacobian (examples, outputs, parameters) by plain backward passes, one output at a time."""
    model = model.eval() if any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in model.modules()) else model
    parameters = list(network.parameters.values())
    z = model(*x) if isinstance(x, tuple) else model(x)
    rows = []
    for entry in z.flatten():
        gradients = torch.autograd.grad(entry, parameters, retain_graph=True, allow_unused=True)
        pairs = zip(parameters, gradients, strict=True)
        rows.append(torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in pairs]))
    return torch.stack(rows).reshape(*z.shape[:1], -1, len(rows[0]))


def in_parameters(network):
    """The matrix from components on the tangent space to flat parameters."""
    eye = Vector(network.tangent_space, torch.eye(network.tangent_space.dim))
    return torch.cat([t.reshape(len(t), -1) for t in eye.to_parameters().values()], dim=1)


class Tokens(nn.Module):
    """Embedding, a bare position parameter, layer norm, a linear map applied time first, and an output per token."""

    def __init__(self):
        super().__init__()
        self.embed, self.position = nn.Embedding(6, 4), nn.Parameter(torch.randn(3, 4))
        self.norm, self.mix, self.out = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 6)

    def forward(self, tokens):
        h = self.norm(self.embed(tokens) + self.position)
        h = h + torch.tanh(self.mix(h.transpose(0, 1)).transpose(0, 1))
        return self.out(h)


class Merged(nn.Module):
    """Examples and sites in one dimension, in both orders."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, x):
        n, t, _ = x.shape
        h = torch.tanh(self.first(x.reshape(n * t, 2))).reshape(n, t, 3)
        h = self.second(h.transpose(0, 1).reshape(t * n, 3)).reshape(t, n, 2)
        return h.transpose(0, 1).sum(1)


class Tied(nn.Module):
    """A module used twice, a weight shared by two linear maps, an embedding that is the output map transposed."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(6, 4), nn.Linear(4, 6)
        self.twice, self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.out.weight = self.embed.weight
        self.right.weight, self.right.bias = self.left.weight, self.left.bias

    def forward(self, tokens):
        h = self.twice(torch.tanh(self.twice(self.embed(tokens))))
        return self.out(torch.tanh(self.left(h) + self.right(torch.sin(h))))


class WeightElsewhere(nn.Module):
    """Uses a weight behind its module's back."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.second(torch.tanh(nn.functional.linear(self.first(x), self.first.weight)))


class InPlace(nn.Module):
    """Changes the output of a layer in place, and later the input of a layer whose weight is frozen."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.second.weight.requires_grad_(False)

    def forward(self, x):
        h = self.first(x).tanh_() * 2
        z = self.second(h)
        h.mul_(3)
        return z + h.sum(-1, keepdim=True)


class Spoiled(nn.Module):
    """An in-place change that breaks backpropagation."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = self.first(x) * 2
        z = self.second(h)
        h.mul_(0)
        return z


class Recurrent(nn.Module):
    """A fused LSTM, which vmap refuses."""

    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x):
        return self.out(self.lstm(x)[0][:, -1])


class Coupled(nn.Module):
    """An output that mixes examples inside a layer's reach: no per-example reading of `first` exists."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 2)

    def forward(self, x):
        return self.first(x - x.mean(0))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, stride=2, groups=2),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(4, 2, (3, 2), stride=2, output_padding=1, groups=2, dilation=(2, 1), padding=1),
        nn.GroupNorm(2, 2),
        nn.Conv2d(2, 3, 2, padding="same", padding_mode="circular", bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 3),
    )


ZOO = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)),
        lambda n: torch.randn(n, 4),
    ),
    "convolutional": (convolutional, lambda n: torch.randn(n, 2, 6, 6)),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(3, 3, 3, dilation=2, groups=3), nn.Tanh(), nn.Flatten(), nn.Linear(9, 2)),
        lambda n: torch.randn(n, 3, 7),
    ),
    "conv3d": (
        lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.ConvTranspose3d(2, 1, 2), nn.Flatten(), nn.Linear(27, 2)),
        lambda n: torch.randn(n, 1, 3, 3, 3),
    ),
    "tokens": (Tokens, lambda n: torch.randint(0, 6, (n, 3))),
    "merged": (Merged, lambda n: torch.randn(n, 3, 2)),
    "tied": (Tied, lambda n: torch.randint(0, 6, (n, 3))),
    "weight elsewhere": (WeightElsewhere, lambda n: torch.randn(n, 3)),
    "in place": (InPlace, lambda n: torch.randn(n, 3)),
    "recurrent": (Recurrent, lambda n: torch.randn(n, 4, 2)),
    "lone leaf": (lambda: nn.Linear(3, 2), lambda n: torch.randn(n, 3)),
    "weight norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)),
        lambda n: torch.randn(n, 3),
    ),
    "batch norm 1d": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4).eval(), nn.Tanh(), nn.RMSNorm(4), nn.Linear(4, 2)),
        lambda n: torch.randn(n, 3),
    ),
}
