"""Small networks, and whether a method takes the same path in other frames: what several reproductions share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..likelihoods import Bernoulli
from ..metrics import KFAC, RiemannianMetric
from ..natural_gradient import natural_gradient
from ..networks import Network
from ..reparametrize import Frames, Twin, reparametrize
from .base import Run

EVERYWHERE = ("inputs", "activations", "pre-activations", "outputs")
MetricIn = Callable[[Twin | None], RiemannianMetric]
"""A metric, as it is in a twin; None is the network itself."""


class Recurrent(nn.Module):
    """h ← tanh(A h + B x_t) over the steps of x (n, steps, 2), and an output of the last h."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.hidden, self.out = nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.into(x[:, 0]))
        for t in range(1, x.shape[1]):
            h = torch.tanh(self.hidden(h) + self.into(x[:, t]))
        y: Tensor = self.out(h)
        return y


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 3, padding=1), nn.Tanh(), nn.Flatten(),
        nn.Linear(32, 3),
    )  # fmt: skip


SHAPES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], float]] = {
    "dense": (dense, (4,), 0.1),
    "convolutional": (convolutional, (2, 4, 4), 0.05),
    "recurrent": (Recurrent, (5, 2), 0.05),
}
"""The module, the shape of an input, and a step size."""


@dataclass
class Problem:
    """A network with three binary outputs, its batch, and other inputs to look at its predictions on."""

    network: Network
    x: Tensor
    y: Tensor
    others: Tensor
    step: float

    @classmethod
    def draw(cls, run: Run, kind: str, examples: int = 200) -> Problem:
        make, shape, step = SHAPES[kind]
        model = make().double()
        draw = torch.randn(sum(p.numel() for p in model.parameters()), generator=run.generator(f"{kind}: parameters"))
        with torch.no_grad():
            start = 0
            for p in model.parameters():
                fan = p[0].numel() if p.ndim > 1 else 1
                p.copy_((1.0 if p.ndim > 1 else 0.3) * draw[start : start + p.numel()].reshape(p.shape) / fan**0.5)
                start += p.numel()
        x = run.normal(f"{kind}: inputs", examples, *shape)
        chance = torch.sigmoid(x.flatten(1) @ run.normal(f"{kind}: targets", x[0].numel(), 3))
        y = torch.bernoulli(chance, generator=run.generator(f"{kind}: labels"))
        network = Network.from_torch(model, Bernoulli(), x)
        return cls(network, x, y, run.normal(f"{kind}: other inputs", 40, *shape), step)

    def twin(self, group: str, seed: int, on: tuple[str, ...] = EVERYWHERE, keep_padding: bool = False) -> Twin:
        frames = Frames.draw(self.network, self.x, on, group, seed)
        return reparametrize(self.network, frames, self.x, keep_padding=keep_padding)

    def path(self, metric: MetricIn, twin: Twin | None = None, step: float | None = None, steps: int = 5) -> Tensor:
        """Predictions on the other inputs at the start and after every step, in the network or in a twin."""
        network = self.network if twin is None else twin.network
        x = self.x if twin is None else twin.inputs(self.x)

        def seen() -> Tensor:
            z = network.outputs(self.others if twin is None else twin.inputs(self.others))
            return torch.sigmoid(z if twin is None else twin.to_original(z)).detach()

        kept = {name: p.detach().clone() for name, p in network.parameters.items()}
        try:
            predictions = [seen()]
            for _ in range(steps):
                network.move_(natural_gradient(network, metric(twin), x, self.y), -(step or self.step))
                predictions.append(seen())
        finally:
            with torch.no_grad():
                for name, p in network.parameters.items():
                    p.copy_(kept[name])
        return torch.stack(predictions)

    def rounding(self, twin: Twin, steps: int = 5) -> float:
        """What rounding explains of a difference of paths: steps · ε · the condition of the worst layer, tenfold."""
        worst = 1.0
        for network, x in ((self.network, self.x), (twin.network, twin.inputs(self.x))):
            for layer in network.observe(x).layers.values():
                G, A = KFAC().factors(layer)
                worst = max(worst, float(torch.linalg.cond(G.matrix()) * torch.linalg.cond(A.matrix())))
        return 10 * steps * torch.finfo(torch.float64).eps * worst


def apart(path: Tensor, other: Tensor) -> float:
    """The largest difference of two paths, in units of how far the first one goes."""
    return float((path - other).abs().max() / (path - path[0]).abs().max())
