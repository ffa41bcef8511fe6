"""The subjects of the atlas that see nothing but gradients, with the claims that theory makes for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from .atlas_rows import Row, torch_optimizer
from .methods import matrices


def split(model: nn.Module, weights: Callable[[Any], Optimizer], biases: Callable[[Any], Optimizer]) -> Optimizer:
    """Two optimizers, one for matrices and one for the rest."""
    parameters = list(model.parameters())
    both = [weights([p for p in parameters if p.ndim == 2])]
    if vectors := [p for p in parameters if p.ndim != 2]:
        both.append(biases(vectors))
    return Together(parameters, both)


class Together(Optimizer):
    """Several optimizers, each with parameters of its own, that step together."""

    def __init__(self, parameters: list[nn.Parameter], parts: list[Optimizer]):
        super().__init__(parameters, {})
        self.parts = parts

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()


def two_rates(model: nn.Module, factory: Callable[..., Optimizer], weights: Any, biases: Any) -> Optimizer:
    """One optimizer with two groups, settings of their own for matrices and for the rest."""
    groups = [{"params": [p for p in model.parameters() if p.ndim == 2], **weights}]
    if vectors := [p for p in model.parameters() if p.ndim != 2]:
        groups.append({"params": vectors, **biases})
    return factory(groups)


def first_order() -> Iterator[Row]:
    opt, OR, TO = torch.optim, "O", "T.O"

    def row(name: str, make: Callable[..., Optimizer], *claims: Any, **more: Any) -> Row:
        return Row(name, "gradient", torch_optimizer(name, make), *claims, **more)

    yield row("SGD", lambda m: opt.SGD(m.parameters(), 0.8), OR, TO, TO, True, False, quick=True)
    yield row("SGD, momentum", lambda m: opt.SGD(m.parameters(), 0.3, 0.9), OR, TO, TO, True, False)
    yield row("SGD, Nesterov", lambda m: opt.SGD(m.parameters(), 0.2, 0.9, nesterov=True), OR, TO, TO, True, False)
    yield row("normalized SGD", lambda m: matrices.NormalizedSGD(m, 0.2), OR, TO, TO, True, True, quick=True)
    yield row(
        "SGD, other rate for biases", lambda m: two_rates(m, opt.SGD, {"lr": 0.8}, {"lr": 0.2}), OR, TO, TO, True, False
    )
    yield row("SGD, weight decay", lambda m: opt.SGD(m.parameters(), 0.8, weight_decay=0.1), OR, OR, OR, True, False)
    yield row("LARS", lambda m: matrices.LARS(m, 0.1), OR, "CO", "CO", True, True)


def adaptive() -> Iterator[Row]:
    opt, SP, TSP = torch.optim, "SP", "T.SP"

    def row(name: str, make: Callable[..., Optimizer], *claims: Any, **more: Any) -> Row:
        return Row(name, "entry by entry", torch_optimizer(name, make), *claims, **more)

    def step(factory: Callable[..., Optimizer], lr: float, **options: Any) -> Callable[[nn.Module], Optimizer]:
        return lambda m: factory(m.parameters(), lr=lr, **options)

    yield row("Adam", step(opt.Adam, 0.1, eps=0), SP, TSP, TSP, True, True, quick=True, note="ε = 0")
    yield row("RMSprop", step(opt.RMSprop, 0.02, eps=0), SP, TSP, TSP, True, True, note="ε = 0")
    yield row("Adagrad", step(opt.Adagrad, 0.1, eps=0), SP, TSP, TSP, True, True, note="ε = 0")
    yield row("sign descent", lambda m: matrices.SignDescent(m, 0.05), SP, TSP, TSP, True, True)
    yield row("Lion", lambda m: matrices.Lion(m, 0.05), SP, TSP, TSP, True, True)
    yield row("NAdam", step(opt.NAdam, 0.1, eps=0), SP, TSP, TSP, True, True, note="ε = 0")
    yield row("Adamax", step(opt.Adamax, 0.1, eps=1e-300), SP, TSP, TSP, True, True, note="ε = 0")
    yield row("Rprop", step(opt.Rprop, 0.05), SP, TSP, TSP, True, True)
    yield row("Adadelta", step(opt.Adadelta, 1.0, eps=1e-3), SP, TSP, TSP, True, False, note="ε = 1e-3")
    yield row("AdamW", step(opt.AdamW, 0.1, eps=0, weight_decay=0.5), SP, SP, SP, True, True, note="ε = 0")
    yield row("Adam with L2", step(opt.Adam, 0.1, eps=0, weight_decay=0.1), SP, SP, SP, True, False, note="ε = 0")
    yield row(
        "AdamW, biases not decayed",
        lambda m: two_rates(
            m, lambda g: opt.AdamW(g, lr=0.1, eps=0), {"weight_decay": 0.5}, {"weight_decay": 0.0}
        ),
        SP, TSP, TSP, True, True, note="ε = 0",
    )  # fmt: skip
    yield row("Adafactor", step(opt.Adafactor, 0.1, eps=(0, 1e-3)), "CSP", "CSP", "CSP", True, True, note="ε = 0")
    yield row("Adam without root", lambda m: matrices.RootlessAdam(m, 3e-3), "M", "T.M", "T.M", True, False, quick=True)


def matrixwise() -> Iterator[Row]:
    opt, OR, TO, TSP = torch.optim, "O", "T.O", "T.SP"

    def row(name: str, make: Callable[..., Optimizer], *claims: Any, **more: Any) -> Row:
        return Row(name, "matrix by matrix", torch_optimizer(name, make), *claims, **more)

    def shipped(weights: Any) -> Optimizer:
        return opt.Muon(weights, lr=0.1, weight_decay=0.0)

    yield row("Muon", lambda m: matrices.Muon(m, 0.05), OR, TO, TO, True, True, quick=True, note="float64, bias inside")
    yield row(
        "Muon, Adam for biases",
        lambda m: split(m, lambda p: matrices.Muon(m, 0.05, biases=False), lambda p: opt.Adam(p, 0.05, eps=0)),
        OR, TSP, TSP, True, True, note="float64",
    )  # fmt: skip
    yield row(
        "torch.optim.Muon, Adam for biases",
        lambda m: split(m, shipped, lambda p: opt.Adam(p, 0.05, eps=0)),
        "SP", TSP, TSP, True, None, note="Newton-Schulz in bfloat16", coarse=True,
    )  # fmt: skip
    yield row("Shampoo", lambda m: matrices.Shampoo(m, 0.2), OR, TO, TO, True, True, quick=True, note="ε = 0")
    soap = "float64, bias inside; frames after four steps of descent"
    yield row("SOAP", lambda m: matrices.SOAP(m, 0.15), OR, TO, TO, True, True, note=soap, steps=8)
