"""A nonlinear autoencoder, trained by the online natural gradient and by gradient descent."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from ..likelihoods import Gaussian
from ..metrics import KFAC
from ..networks import MonteCarlo
from ..optim import Constant, Factored, NaturalGradient
from .base import Run
from .digits import digits
from .records import Panel, Picture, Series

RATES = (0.3, 0.1, 0.03, 0.01, 0.003)


def autoencoder(widths: tuple[int, ...], generator: torch.Generator) -> nn.Sequential:
    """Tanh units between linear layers, drawn with variance 1 / fan-in."""
    layers: list[nn.Module] = []
    for n, m in pairwise(widths):
        layer = nn.Linear(n, m)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(m, n, generator=generator) / n**0.5)
            layer.bias.zero_()
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def trained(
    run: Run, widths: tuple[int, ...], x: Tensor, epochs: int, rate: float, how: str, batch: int = 128
) -> list[float]:
    """The loss on all of x at the start and after every epoch: squared errors of an image, halved."""
    model = autoencoder(widths, run.generator("autoencoder"))
    L, likelihood = len(widths) - 1, Gaussian()
    optimizer: torch.optim.Optimizer
    if how == "natural":
        optimizer = NaturalGradient(
            model, likelihood, KFAC(), lr=rate / L, momentum=0.0, damping=Factored(1e-2), decay=0.95,
            estimator=MonteCarlo(1), step_size=Constant(),
        )  # fmt: skip
    else:
        optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9 if how == "momentum" else 0.0)
    order, losses = run.generator("order"), []
    for epoch in range(epochs + 1):
        with torch.no_grad():
            losses.append(float((model(x) - x).square().sum() / (2 * len(x))))
        if epoch == epochs or not losses[-1] < 10 * losses[0]:
            break
        for rows in torch.randperm(len(x), generator=order).split(batch):
            optimizer.zero_grad()
            likelihood.loss(model(x[rows]), x[rows]).backward()
            optimizer.step()
    if isinstance(optimizer, NaturalGradient):
        optimizer.close()
    return losses


def nonlinear_autoencoder(run: Run) -> None:
    """One label drawn from the model for every example, factors averaged and damped, steps divided by the depth."""
    data = digits(run.data, side=run.choose(quick=8, full=None), dtype=torch.float32, most=run.choose(1400, 20_000))
    run.results.data = data.name
    pixels, epochs = data.flat.shape[1], run.choose(quick=8, full=40)
    widths = run.choose(quick=(pixels, 32, 12, 32, pixels), full=(pixels, 200, 100, 30, 100, 200, pixels))
    curves, ends = {}, {}
    ways = {"natural": "natural gradient, 1/L", "plain": "gradient descent", "momentum": "momentum 0.9"}
    for how, words in ways.items():
        tried = {rate: trained(run, widths, data.flat, epochs, rate, how) for rate in RATES}
        whole = {rate: losses for rate, losses in tried.items() if len(losses) == epochs + 1}
        best = min(whole, key=lambda rate: whole[rate][-1])
        curves[words], ends[how] = whole[best], whole[best][-1]
        run.number(f"autoencoder: best rate of {words}", best)
        run.number(f"autoencoder: loss of {words}", whole[best][-1])
    mean = data.flat - data.flat.mean(0)
    run.number("autoencoder: loss of the mean image", mean.square().sum() / (2 * len(mean)))
    start = curves["gradient descent"][0]
    claim = "autoencoder: natural gradient is below gradient descent after equal epochs"
    run.below(claim, ends["natural"], ends["plain"], "each at its best rate of one grid; qualitative")  # fmt: skip
    run.below("autoencoder: it learns at all", ends["natural"], 0.2 * start, "a fifth of the loss at the start")
    panel = Panel(
        f"autoencoder {'-'.join(map(str, widths))}", "epoch", "squared error / 2",
        [Series(words, range(epochs + 1), losses) for words, losses in curves.items()], log="y",
    )  # fmt: skip
    run.picture(Picture("autoencoder", f"Online natural gradient on {data.name}, against gradient descent.", [panel]))
