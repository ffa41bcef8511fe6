"""The networks that costs are measured on, with random data; a plain forward and backward pass is the unit."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, scaled_dot_product_attention

from ..errors import InvalidSetting
from ..likelihoods import Bernoulli, Categorical, Likelihood

WIDTHS = (784, 400, 200, 100, 50, 25, 6, 25, 50, 100, 200, 400, 784)


@dataclass
class Workload:
    """A network with a batch. `loss` is of its outputs, the mean over examples, `targets` are its labels."""

    name: str
    module: nn.Module
    likelihood: Likelihood
    x: Tensor
    targets: Tensor
    loss: Callable[[Tensor], Tensor]

    def plain(self) -> None:
        """One forward and backward pass."""
        self.module.zero_grad()
        self.loss(self.module(self.x)).backward()


def bernoulli(name: str, module: nn.Module, x: Tensor) -> Workload:
    """An autoencoder of pixels."""

    def loss(z: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(z, x, reduction="sum") / len(z)

    return Workload(name, module, Bernoulli(), x, x, loss)


def categorical(name: str, module: nn.Module, x: Tensor, y: Tensor) -> Workload:
    """One label an example, or one for each token."""

    def loss(z: Tensor) -> Tensor:
        return cross_entropy(z.flatten(0, -2), y.flatten(), reduction="sum") / len(z)

    return Workload(name, module, Categorical(), x, y, loss)


def mlp(widths: tuple[int, ...], linear: tuple[int, ...] = ()) -> nn.Sequential:
    """Tanh between linear layers, but for the last and those that are named `linear`."""
    layers: list[nn.Module] = []
    last = len(widths) - 2
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        layer = nn.Linear(a, b)
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
        layers += [layer] if i in (*linear, last) else [layer, nn.Tanh()]
    return nn.Sequential(*layers)


def autoencoder(seed: int = 0, batch: int = 512, widths: tuple[int, ...] = WIDTHS) -> Workload:
    """W1: tanh, a linear code of width 6, batch 512, Bernoulli pixels."""
    torch.manual_seed(seed)
    module = mlp(widths, (len(widths) // 2 - 1,))
    return bernoulli("W1 autoencoder", module, torch.rand(batch, widths[0]))


def convolutional(seed: int = 0, batch: int = 128) -> Workload:
    """W2: three convolutions, ReLU, pooling after the first two, batch 128."""
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10),
    )  # fmt: skip
    x, y = torch.randn(batch, 1, 28, 28), torch.randint(0, 10, (batch,))
    return categorical("W2 convolutional", module, x, y)


class Attention(nn.Module):
    """Causal, with queries, keys and values in one matrix."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).movedim(2, 0).transpose(2, 3).unbind(0)
        mixed: Tensor = self.out(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return mixed


class DecoderLayer(nn.Module):
    """Pre-norm: attention, then a GELU of four times the width."""

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


def transformer(
    seed: int = 0, batch: int = 8, context: int = 64, tokens: int = 96, width: int = 128, heads: int = 4, depth: int = 2
) -> Workload:
    """W3: a decoder with 8 windows of 64 tokens."""
    torch.manual_seed(seed)
    x, y = torch.randint(0, tokens, (2, batch, context))
    return categorical("W3 transformer", Decoder(tokens, context, width, heads, depth), x, y)


def wide(seed: int = 0, batch: int = 256, width: int = 2048) -> Workload:
    """W4: 784-2048-2048-10, tanh, batch 256."""
    torch.manual_seed(seed)
    x, y = torch.randn(batch, 784), torch.randint(0, 10, (batch,))
    return categorical("W4 wide MLP", mlp((784, width, width, 10)), x, y)


class Residual(nn.Module):
    """Two 3x3 convolutions with group norms; the shortcut is a 1x1 convolution where shapes change."""

    def __init__(self, into: int, out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(8, out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(8, out)
        self.shortcut = nn.Conv2d(into, out, 1, stride, bias=False) if stride > 1 or into != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


def residual(seed: int = 0, batch: int = 32, width: int = 32, size: int = 32) -> Workload:
    """W5: eight residual blocks as of ResNet-18, half as wide, with group norms, on 32x32 images."""
    torch.manual_seed(seed)
    widths = [width * 2**i for i in range(4)]
    blocks: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.GroupNorm(8, width), nn.ReLU()]
    into = width
    for i, out in enumerate(widths):
        blocks += [Residual(into, out, 2 if i else 1), Residual(out, out, 1)]
        into = out
    module = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(into, 10))
    x, y = torch.randn(batch, 3, size, size), torch.randint(0, 10, (batch,))
    return categorical("W5 residual", module, x, y)


def language() -> Workload:
    """W6: GPT-2 small's twelve layers of width 768 on 4 windows of 1,024 tokens; 8,192 tokens, for a factor's sake."""
    work = transformer(0, 4, 1024, 8192, 768, 12, 12)
    work.name = "W6 language model"
    return work


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "W1": autoencoder, "W2": convolutional, "W3": transformer, "W4": wide, "W5": residual, "W6": language,
}  # fmt: skip
NEEDS_GPU = ("W6",)


def workload(name: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Workload:
    """A workload by its name, on a device."""
    if name not in WORKLOADS:
        raise InvalidSetting(f"there is no workload {name!r}; there are {', '.join(WORKLOADS)}.")
    return placed(WORKLOADS[name](), device, dtype)


def placed(work: Workload, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Workload:
    """The same on a device, in a precision."""

    def moved(t: Tensor) -> Tensor:
        return t.to(device=device, dtype=dtype if t.is_floating_point() else t.dtype)

    return remade(work, work.module.to(device=device, dtype=dtype), moved(work.x), moved(work.targets))


def remade(work: Workload, module: nn.Module, x: Tensor, targets: Tensor) -> Workload:
    if isinstance(work.likelihood, Bernoulli):
        return bernoulli(work.name, module, x)
    return categorical(work.name, module, x, targets)


def copied(work: Workload) -> Workload:
    """The same batch, with a module of its own that nothing listens to."""
    module = copy.deepcopy(work.module)
    module.zero_grad()
    return remade(work, module, work.x, work.targets)


def small() -> Iterator[Workload]:
    """Networks of the same kinds that fit into a test, in float64."""
    torch.manual_seed(0)
    conv = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.GroupNorm(2, 4), nn.ReLU(),
        nn.Flatten(), nn.Linear(36, 4),
    )  # fmt: skip
    made = (
        autoencoder(batch=9, widths=(6, 5, 3, 5, 6)),
        categorical("convolutional", conv, torch.randn(7, 2, 8, 8), torch.randint(0, 4, (7,))),
        transformer(batch=3, context=5, tokens=7, width=8, heads=2, depth=1),
    )
    for work in made:
        yield placed(work, dtype=torch.float64)
