"""The three networks that costs are measured on, with random data; a plain forward and backward pass is the unit."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, scaled_dot_product_attention

from riemann_ng.likelihoods import Bernoulli, Categorical, Likelihood

WIDTHS = (784, 400, 200, 100, 50, 25, 6, 25, 50, 100, 200, 400, 784)


@dataclass
class Workload:
    name: str
    module: nn.Module
    likelihood: Likelihood
    x: Tensor
    loss: Callable[[Tensor], Tensor]

    def plain(self) -> None:
        """One forward and backward pass."""
        self.module.zero_grad()
        self.loss(self.module(self.x)).backward()


def autoencoder(seed: int = 0) -> Workload:
    """W1: tanh, a linear code of width 6, batch 512, Bernoulli pixels."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(WIDTHS)):
        layer = nn.Linear(a, b)
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.Tanh()] if i not in (5, 11) else [layer]
    x = torch.rand(512, 784)
    return Workload(
        "W1 autoencoder",
        nn.Sequential(*layers),
        Bernoulli(),
        x,
        lambda z: binary_cross_entropy_with_logits(z, x, reduction="sum") / len(z),
    )


def convolutional() -> Workload:
    """W2: three convolutions, ReLU, pooling after the first two, batch 128."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10),
    )  # fmt: skip
    x, y = torch.randn(128, 1, 28, 28), torch.randint(0, 10, (128,))
    return Workload("W2 convolutional", module, Categorical(), x, lambda z: cross_entropy(z, y))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).movedim(2, 0).transpose(2, 3).unbind(0)
        mixed: Tensor = self.out(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return mixed


class DecoderLayer(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(width), Attention(width, heads), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return y


class Decoder(nn.Module):
    """W3: two pre-norm layers, width 128, 4 heads, context 64, 96 tokens; q, k, v in one matrix."""

    def __init__(self, tokens: int = 96, context: int = 64, width: int = 128, heads: int = 4, depth: int = 2):
        super().__init__()
        self.embed, self.position = nn.Embedding(tokens, width), nn.Embedding(context, width)
        self.layers = nn.Sequential(*(DecoderLayer(width, heads) for _ in range(depth)))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        position = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        z: Tensor = self.out(self.norm(self.layers(self.embed(tokens) + self.position(position))))
        return z


def transformer() -> Workload:
    torch.manual_seed(0)
    x, y = torch.randint(0, 96, (2, 8, 64))
    return Workload(
        "W3 transformer",
        Decoder(),
        Categorical(),
        x,
        lambda z: cross_entropy(z.flatten(0, 1), y.flatten(), reduction="sum") / 8,
    )


WORKLOADS: dict[str, Callable[[], Workload]] = {"W1": autoencoder, "W2": convolutional, "W3": transformer}


def interleaved(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each work; they take turns, so that a slow spell of the machine hits all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for round in range(rounds + 1):
        for name, work in works.items():
            start = perf_counter()
            work()
            if round:  # the first one warms up
                seconds[name].append(perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}
