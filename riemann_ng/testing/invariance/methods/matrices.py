"""Methods that see nothing but the gradient, on the matrices [W b] of linear layers, bias inside.

What they keep and lose is what their formulas do: no float32 inside, no special rules for biases. Each is an optimizer
of torch that takes the model, since a bare list of parameters does not say which bias belongs to which weight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ....norms import SVD, MatrixSign


class OnMatrices(torch.optim.Optimizer, ABC):
    """Every matrix M = [W b] along a direction of its own, M - lr * direction(gradient, M, state).

    Without `biases` it is W alone, and biases stay where they are.
    """

    def __init__(self, model: nn.Module, lr: float, biases: bool = True):
        self.linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m.weight.requires_grad]
        self.biases = biases
        super().__init__([p for layer in self.linear for p in self._of(layer)], {"lr": lr})

    def _of(self, layer: nn.Linear) -> list[Tensor]:
        return [layer.weight] if layer.bias is None or not self.biases else [layer.weight, layer.bias]

    def _matrix(self, layer: nn.Linear) -> Tensor:
        return joined([p.detach() for p in self._of(layer)])

    def _gradient(self, layer: nn.Linear) -> Tensor:
        return joined([p.grad for p in self._of(layer) if p.grad is not None])

    @abstractmethod
    def direction(self, gradient: Tensor, point: Tensor, state: dict[str, Any]) -> Tensor:
        """What is taken away, times the learning rate. `state` is this matrix's own, empty at the start."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Moves every matrix."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = [self._gradient(layer) for layer in self.linear]
        self._prepare(gradients)
        for layer, gradient in zip(self.linear, gradients, strict=True):
            D = self.param_groups[0]["lr"] * self.direction(gradient, self._matrix(layer), self.state[layer.weight])
            for p, part in zip(self._of(layer), D.split(layer.weight.shape[1], 1), strict=True):
                p.sub_(part.reshape(p.shape))
        return loss

    def _prepare(self, gradients: list[Tensor]) -> None:
        """A look at all gradients together, before the first matrix is moved."""


def joined(parts: list[Tensor]) -> Tensor:
    """[W b]."""
    return torch.cat([p if p.ndim == 2 else p[:, None] for p in parts], 1)


class NormalizedSGD(OnMatrices):
    """The gradient divided by its Euclidean length, all layers together."""

    def _prepare(self, gradients: list[Tensor]) -> None:
        self.length = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()

    def direction(self, gradient: Tensor, point: Tensor, state: dict[str, Any]) -> Tensor:
        return gradient / self.length


class SignDescent(OnMatrices):
    """The signs of the entries."""

    def direction(self, gradient: Tensor, point: Tensor, state: dict[str, Any]) -> Tensor:
        return gradient.sign()


class Lion(OnMatrices):
    """The sign of one running mean of gradients, with another kept (Chen et al. 2023)."""

    def direction(self, gradient: Tensor, point: Tensor, state: dict[str, Any]) -> Tensor:
        kept = state.get("mean", torch.zeros_like(gradient))
        state["mean"] = 0.99 * kept + 0.01 * gradient
        return (0.9 * kept + 0.1 * gradient).sign()


class LARS(OnMatrices):
    """The gradient times |M| / |gradient|, layer by layer (You et al. 2017)."""

    def direction(self, gradient: Tensor, point: Tensor, state: dict[str, Any]) -> Tensor:
        return gradient * (point.norm() / gradient.norm())


class RootlessAdam(OnMatrices):
    """Adam without the root: the mean of gradients over the mean of their squares."""

    def direction(self, gradient: Tensor, point: Tensor, state: dict[str, Any]) -> Tensor:
        mean = averaged(state, "mean", gradient, 0.9)
        return mean / averaged(state, "square", gradient.square(), 0.99)


class Muon(OnMatrices):
    """The matrix sign of a momentum of gradients (Jordan et al. 2024), exact unless `sign` says otherwise."""

    def __init__(
        self, model: nn.Module, lr: float, momentum: float = 0.9, sign: MatrixSign = SVD(), biases: bool = True
    ):
        super().__init__(model, lr, biases)
        self.momentum, self.sign = momentum, sign

    def direction(self, gradient: Tensor, point: Tensor, state: dict[str, Any]) -> Tensor:
        state["momentum"] = self.momentum * state.get("momentum", torch.zeros_like(gradient)) + gradient
        return self.sign(gradient + self.momentum * state["momentum"])


class Shampoo(OnMatrices):
    """L^-1/4 ξ R^-1/4 with the sums L of ξξᵀ and R of ξᵀξ over the steps (Gupta et al. 2018).

    Powers are on the support: the first gradients of a layer have no full rank, and ε would name another scale.
    """

    def direction(self, gradient: Tensor, point: Tensor, state: dict[str, Any]) -> Tensor:
        state["L"] = state.get("L", 0.0) + gradient @ gradient.mT
        state["R"] = state.get("R", 0.0) + gradient.mT @ gradient
        return power(state["L"], -0.25) @ gradient @ power(state["R"], -0.25)


class SOAP(OnMatrices):
    """Adam in the eigenframes of Shampoo's factors (Vyas et al. 2024).

    The factors start from the first gradient of several steps' worth: eigenvectors of a kernel would be an accident, so
    frames are fixed after `warmup` steps of descent, and what is kept in them is turned when they turn.
    """

    def __init__(self, model: nn.Module, lr: float, warmup: int = 4, descent: float = 0.5, eps: float = 0.0):
        super().__init__(model, lr)
        self.warmup, self.descent, self.eps = warmup, descent, eps

    def direction(self, gradient: Tensor, point: Tensor, state: dict[str, Any]) -> Tensor:
        steps = state["steps"] = state.get("steps", 0) + 1
        L, R = (
            averaged(state, key, moment, 0.9)
            for key, moment in (("L", gradient @ gradient.mT), ("R", gradient.mT @ gradient))
        )
        if steps <= self.warmup:
            return gradient * (self.descent / gradient.norm())
        P, Q = (torch.linalg.eigh(F)[1] for F in (L, R))
        if "frames" in state:
            before = state["frames"]
            turn = [P.mT @ before[0], Q.mT @ before[1]]
            state["mean"] = turn[0] @ state["mean"] @ turn[1].mT
        state["frames"] = (P, Q)
        seen = P.mT @ gradient @ Q
        mean, square = averaged(state, "mean", seen, 0.9), averaged(state, "square", seen.square(), 0.99)
        return P @ (mean / (square.sqrt() + self.eps)) @ Q.mT


def averaged(state: dict[str, Any], key: str, x: Tensor, decay: float) -> Tensor:
    """The running average of what was given under this name, without the pull of its start at zero."""
    kept, weight = state.get(key, torch.zeros_like(x)), state.get(f"{key} weight", 0.0)
    state[key], state[f"{key} weight"] = decay * kept + (1 - decay) * x, decay * weight + (1 - decay)
    average: Tensor = state[key] / state[f"{key} weight"]
    return average


def power(form: Tensor, p: float, rtol: float = 1e-10) -> Tensor:
    """A power of a symmetric matrix on its support."""
    values, vectors = torch.linalg.eigh(form)
    kept = values > rtol * values[-1]
    scaled = torch.where(kept, values.clamp(min=torch.finfo(values.dtype).tiny) ** p, torch.zeros_like(values))
    return (vectors * scaled) @ vectors.mT
