"""The variances of the estimators' diagonals while a sigmoid classifier of digits is trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, vmap
from torch.nn.functional import cross_entropy

from ..likelihoods import Categorical, EuclideanOutput
from ..networks import Exact, Network
from .base import Run
from .digits import digits
from .label_estimators import Model


@dataclass
class Training:
    """By layer and epoch: variances of one label's estimators, means over inputs of sums over the layer's diagonal."""

    data: str
    first: dict[str, list[float]] = field(default_factory=dict)
    second: dict[str, list[float]] = field(default_factory=dict)
    first_ratio: list[float] = field(default_factory=list)
    """The largest ratio of a variance to its bound."""
    second_ratio: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    accuracy: float = 0.0
    oracle: float = 0.0
    """How far the diagonal of the Hessians is from that of full ones, on a small network."""


def sigmoid_classifier(widths: tuple[int, ...], generator: torch.Generator) -> nn.Sequential:
    """Weights with deviation 4/√fan-in, so that signals pass the sigmoids, whose slope is a quarter."""
    layers: list[nn.Module] = []
    for n, m in pairwise(widths):
        layer = nn.Linear(n, m, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(4 * torch.randn(m, n, generator=generator, dtype=torch.float64) / n**0.5)
            layer.bias.copy_(-layer.weight.sum(1) / 2 if layers else torch.zeros(m))  # sigmoids are 1/2 in the middle
        layers += [layer, nn.Sigmoid()]
    return nn.Sequential(*layers[:-1])


def second_derivatives(model: nn.Sequential, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Of every linear layer its inputs with a one, (n, in + 1), and ∂²h_a/∂s_i² (n, classes, out), at its outputs.

    The second derivative of h_a by the weight from j to i is ∂²h_a/∂s_i² times the square of input j.
    """
    found, h = {}, x
    for k, layer in enumerate(model):
        if isinstance(layer, nn.Linear):
            a = torch.cat([h, h.new_ones(len(h), 1)], 1)
            tail = nn.Sequential(*list(model)[k + 1 :])
            parameters: dict[str, Tensor] = dict(tail.named_parameters())

            def logits(s: Tensor, tail: nn.Module = tail, parameters: dict[str, Tensor] = parameters) -> Tensor:
                z: Tensor = functional_call(tail, parameters, (s,))
                return z

            s = layer(h).detach()
            curved = (
                vmap(hessian(logits))(s).diagonal(dim1=-2, dim2=-1) if len(tail) else s.new_zeros(*s.shape, s.shape[1])
            )
            found[str(k)] = (a.detach(), curved.detach())
        h = layer(h).detach()
    return found


@torch.no_grad()
def variances(network: Network, x: Tensor) -> dict[str, tuple[float, float, float, float]]:
    """Of every layer the two variances and their bounds: sums over the diagonal, means over the inputs."""
    model = network.module
    assert isinstance(model, nn.Sequential)
    p = network.outputs(x).softmax(1)
    identity = torch.eye(p.shape[1], dtype=p.dtype)
    d = identity - p[:, None]  # (n, labels, classes)
    I = torch.diag_embed(p) - p[:, :, None] * p[:, None]  # noqa: E741
    K = torch.einsum("ny,nya,nyb,nyc,nyd->nabcd", p, d, d, d, d)
    excess = (K - torch.einsum("nab,ncd->nabcd", I, I)).reshape(len(x), p.shape[1] ** 2, -1)
    spread, spectral = torch.linalg.matrix_norm(excess, 2), torch.linalg.matrix_norm(I, 2)
    with torch.enable_grad():
        observation = network.observe(x, Exact(), output=EuclideanOutput())
        curved = second_derivatives(model, x)
    found = {}
    for path, layer in observation.layers.items():
        J = layer.gradients.dense().reshape(len(x), p.shape[1], -1)
        s = torch.einsum("nya,nai->nyi", d, J)
        fisher = torch.einsum("ny,nyi->ni", p, s.square())
        first = (torch.einsum("ny,nyi->ni", p, s.square().square()) - fisher.square()).sum(1)
        a, H = curved[path]
        quartic = a.square().square().sum(1)
        second = torch.einsum("nai,nbi,nab->n", H, H, I) * quartic
        first_bound = J.square().sum(1).square().sum(1) * spread
        second_bound = H.square().sum((1, 2)) * quartic * spectral
        found[path] = (first.mean(), second.mean(), first_bound.mean(), second_bound.mean())
    return {path: tuple(map(float, values)) for path, values in found.items()}  # type: ignore[misc]


def agreement(run: Run) -> float:
    """The diagonal of the Hessians against full ones, on a small network."""
    model = sigmoid_classifier((4, 3, 3, 3, 3), run.generator("small classifier"))
    network = Network.from_torch(model, Categorical(), run.normal("small batch", 3, 4))
    x = run.normal("small input", 1, 4)
    space = network.tangent_space
    found = variances(network, x)

    def logits(flat: Tensor) -> Tensor:
        parts = {path: flat[where].reshape(space[path].shape) for path, where in space.slices.items()}
        z: Tensor = functional_call(model, network.to_parameters(parts), (x,))[0]
        return z

    here = network.vector({name: p.detach() for name, p in network.parameters.items()}).components
    v1, v2 = (v.diagonal() for v in Model.at(logits, here).variances())
    worst = 0.0
    for path, where in space.slices.items():
        for mine, full in zip(found[path], (v1[where].sum(), v2[where].sum()), strict=False):
            worst = max(worst, abs(mine - float(full)) / max(float(full), 1e-9))
    return worst


def training(run: Run) -> Training:
    """Adam on the mean cross-entropy, and the variances after every epoch on some inputs of the test set."""
    data = digits(run.data, side=run.choose(quick=8, full=None), most=run.choose(quick=None, full=20_000))
    pixels, epochs, looked_at = data.flat.shape[1], run.choose(quick=8, full=20), run.choose(quick=40, full=200)
    widths = (pixels, *run.choose(quick=(24, 24, 24), full=(64, 64, 64)), 10)
    model = sigmoid_classifier(widths, run.generator("classifier"))
    looked = data.test_flat[:looked_at]
    network = Network.from_torch(model, Categorical(), looked)
    record = Training(data.name, oracle=agreement(run))
    names = {path: f"layer {k}" for k, path in enumerate(network.blocks, 1)}
    optimizer, order = torch.optim.Adam(model.parameters(), 3e-3), run.generator("order")
    for epoch in range(epochs + 1):
        for path, (first, second, first_bound, second_bound) in variances(network, looked).items():
            record.first.setdefault(names[path], []).append(first)
            record.second.setdefault(names[path], []).append(second)
            record.first_ratio.append(first / first_bound)
            record.second_ratio.append(second / second_bound if second_bound else 0.0)
        with torch.no_grad():
            record.loss.append(float(cross_entropy(model(data.flat), data.labels)))
        if epoch == epochs:
            break
        for rows in torch.randperm(len(data.labels), generator=order).split(64):
            optimizer.zero_grad()
            cross_entropy(model(data.flat[rows]), data.labels[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        record.accuracy = float((model(data.test_flat).argmax(1) == data.test_labels).double().mean())
    return record
