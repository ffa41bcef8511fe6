"""Tasks one after the other, each heard of once: permuted and rotated digits, and how much is forgotten of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, pad

from ..likelihoods import Categorical
from ..optim import OGD, ONG, Consolidation, Constant, NaturalGradient, ProjectedNaturalGradient
from .base import Run
from .digits import Digits, digits

Stream = Literal["permuted", "rotated"]
Task = tuple[Tensor, Tensor, Tensor, Tensor]
"""Inputs and labels for training, and for testing."""


@dataclass(frozen=True)
class Protocol:
    """How many tasks, what the network is, how long it hears of each, and how many outputs are remembered of each."""

    tasks: int
    side: int
    padding: int
    hidden: int
    epochs: int
    stored: int
    batch: int = 32
    turn: float = 5.0
    """Degrees from one rotated task to the next."""

    @property
    def widths(self) -> tuple[int, ...]:
        return ((self.side + 2 * self.padding) ** 2, self.hidden, self.hidden, 10)


QUICK = Protocol(tasks=4, side=12, padding=1, hidden=40, epochs=4, stored=50, turn=25.0)
PUBLISHED = Protocol(tasks=15, side=28, padding=2, hidden=100, epochs=5, stored=100)


def sequence(run: Run, stream: Stream, protocol: Protocol, data: Digits) -> list[Task]:
    """The digits as they are, then with their pixels in an order of each task's own, or turned."""
    x, x_test = (pad(images[:, None], [protocol.padding] * 4)[:, 0] for images in (data.images, data.test_images))
    found = []
    for k in range(protocol.tasks):
        if stream == "rotated":
            own, other = (turned(images, protocol.turn * k).flatten(1) for images in (x, x_test))
        else:
            order = torch.randperm(x[0].numel(), generator=run.generator(f"permutation {k}"))
            own, other = (images.flatten(1)[:, order] if k else images.flatten(1) for images in (x, x_test))
        found.append((own, data.labels, other, data.test_labels))
    return found


def turned(images: Tensor, degrees: float) -> Tensor:
    """By so many degrees around the middle, bilinear."""
    angle = torch.deg2rad(torch.tensor(degrees, dtype=images.dtype))
    c, s, o = angle.cos(), angle.sin(), torch.zeros_like(angle)
    matrix = torch.stack([torch.stack([c, -s, o]), torch.stack([s, c, o])]).expand(len(images), 2, 3)
    grid = affine_grid(matrix, [len(images), 1, *images.shape[1:]], align_corners=False)
    return grid_sample(images[:, None], grid, align_corners=False)[:, 0]


Method = tuple[torch.optim.Optimizer, Callable[[], Any], Callable[[Tensor, Tensor], Any]]
"""An optimizer, a penalty of the loss, and what is to be done when a task is over."""
Make = Callable[[nn.Module, float, int], Method]
"""Of a model, a rate, and how many outputs there are to be remembered."""


def nothing(*given: object) -> float:
    return 0.0


def sgd(model: nn.Module, rate: float, room: int) -> Method:
    return torch.optim.SGD(model.parameters(), rate), nothing, nothing


def ewc(model: nn.Module, rate: float, room: int) -> Method:
    hold = Consolidation(model, Categorical(), strength=3.0)
    return torch.optim.SGD(model.parameters(), rate), hold.penalty, lambda x, y: hold.remember(x)


def remembering(make: Callable[..., NaturalGradient], **settings: Any) -> Make:
    def method(model: nn.Module, rate: float, room: int) -> Method:
        opt = make(model, Categorical(), lr=rate, capacity=room, **settings)
        return opt, nothing, opt.remember

    return method


METHODS: dict[str, tuple[Make, tuple[float, ...]]] = {
    "SGD": (sgd, (0.1, 0.05)),
    "EWC": (ewc, (0.1, 0.05)),
    "OGD": (remembering(OGD), (0.1, 0.05)),
    "ONG, published": (remembering(ONG), (0.03, 0.01)),
    "ONG, repaired": (remembering(ONG, published=False), (0.03, 0.01)),
    "annihilator": (
        remembering(ProjectedNaturalGradient, momentum=0.0, damping=0.1, step_size=Constant()), (0.03, 0.01),
    ),
}  # fmt: skip
"""Each with the rates that are tried."""


@dataclass
class Record:
    """Accuracies `after[t][i]` on task i when t was over, and how far remembered outputs of the first have moved."""

    after: Tensor
    moved: float

    @property
    def average(self) -> float:
        """Over all tasks, when the last one is over."""
        return float(self.after[-1].mean())

    @property
    def forgotten(self) -> float:
        """What is gone of the best accuracy that each earlier task had, on average."""
        best = self.after[:-1].max(0).values
        return float((best - self.after[-1])[:-1].mean())

    @property
    def learned(self) -> float:
        """Of each task when it was over, on average: the diagonal."""
        return float(self.after.diagonal().mean())


def trained(run: Run, tasks: list[Task], protocol: Protocol, make: Make, rate: float) -> Record:
    """All tasks one after the other, with one network and one output for each class."""
    model = perceptron(protocol.widths, run.generator("network"))
    opt, penalty, remember = make(model, rate, protocol.tasks * protocol.stored)
    order, rows = run.generator("order"), []
    first, kept = tasks[0][0][: protocol.stored], torch.empty(0)
    for k, (x, y, _, _) in enumerate(tasks):
        for _ in range(protocol.epochs):
            for batch in torch.randperm(len(x), generator=order).split(protocol.batch):
                opt.zero_grad()
                (cross_entropy(model(x[batch]), y[batch]) + penalty()).backward()
                opt.step()
        with torch.no_grad():
            rows.append([float((model(t).argmax(1) == labels).double().mean()) for _, _, t, labels in tasks])
            if k == 0:
                kept = model(first)
        if k < len(tasks) - 1:
            remember(x[: protocol.stored], y[: protocol.stored])
    with torch.no_grad():
        labels = tasks[0][1][: protocol.stored, None]
        moved = (model(first) - kept).gather(1, labels).norm() / kept.gather(1, labels).norm()
    return Record(torch.tensor(rows), float(moved))


def perceptron(widths: tuple[int, ...], generator: torch.Generator) -> nn.Sequential:
    """ReLU units between linear layers without biases, drawn with variance 2 / fan-in."""
    layers: list[nn.Module] = []
    for n, m in pairwise(widths):
        layer = nn.Linear(n, m, bias=False)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(m, n, generator=generator) * (2 / n) ** 0.5)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def images_for(run: Run, protocol: Protocol) -> Digits:
    return digits(run.data, side=protocol.side, dtype=torch.float32, most=run.choose(quick=800, full=6000))
