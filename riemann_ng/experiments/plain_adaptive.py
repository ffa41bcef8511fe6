"""Shampoo, SOAP, EKFAC and normalized descent in plain torch, layer by layer on matrices [W b]: oracles.

Nothing of the library is used here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from .plain_kfac import factors, features

Matrices = dict[str, Tensor]


def layers_of(model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    return {name: m for name, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}


def matrices(model: nn.Module, tensors: Matrices) -> Matrices:
    """[W b] of every layer, of tensors by the names of parameters; leading dimensions stay."""
    found = {}
    for name, layer in layers_of(model).items():
        W = tensors[f"{name}.weight"]
        lead = W.ndim - layer.weight.ndim
        M = W.flatten(lead + 1)
        b = tensors.get(f"{name}.bias")
        found[name] = M if b is None else torch.cat([M, b[..., None]], -1)
    return found


def parameters(model: nn.Module, found: Matrices) -> Matrices:
    """The way back."""
    tensors = {}
    for name, layer in layers_of(model).items():
        M = found[name]
        if layer.bias is not None:
            M, tensors[f"{name}.bias"] = M[:, :-1], M[:, -1]
        tensors[f"{name}.weight"] = M.reshape(layer.weight.shape)
    return tensors


def gradients(model: nn.Module, loss: Tensor) -> Matrices:
    names, values = zip(*model.named_parameters(), strict=True)
    return matrices(model, dict(zip(names, torch.autograd.grad(loss, values), strict=True)))


def power(M: Tensor, p: float) -> Tensor:
    values, vectors = torch.linalg.eigh(M)
    return (vectors * values**p) @ vectors.mT


@dataclass
class Shampoo:
    """(L + ε)^-¼ D (R + ε)^-¼, with averages of D Dᵀ and Dᵀ D that are corrected for their start."""

    decay: float
    epsilon: float
    count: int = 0
    L: Matrices = field(default_factory=dict)
    R: Matrices = field(default_factory=dict)

    def step(self, D: Matrices) -> Matrices:
        self.count += 1
        found = {}
        for name, d in D.items():
            for kept, new in ((self.L, d @ d.mT), (self.R, d.mT @ d)):
                kept[name] = self.decay * kept.get(name, torch.zeros_like(new)) + (1 - self.decay) * new
            scale = 1 - self.decay**self.count
            left, right = (
                M / scale + self.epsilon * torch.eye(len(M), dtype=d.dtype) for M in (self.L[name], self.R[name])
            )
            found[name] = power(left, -0.25) @ d @ power(right, -0.25)
        return found


@dataclass
class SOAP:
    """Adam's second moment in the eigenbasis of D Dᵀ and Dᵀ D. The first gradient makes a basis and no step."""

    decay: float
    every: int
    count: int = 0
    moments: dict[str, list[Tensor]] = field(default_factory=dict)
    bases: dict[str, list[Tensor]] = field(default_factory=dict)
    squares: Matrices = field(default_factory=dict)

    def step(self, D: Matrices) -> Matrices | None:
        found = {}
        for name, d in D.items():
            new = [d @ d.mT, d.mT @ d]
            if not self.count:
                self.moments[name] = [(1 - self.decay) * M for M in new]
                self.bases[name] = [torch.linalg.eigh(M).eigenvectors.flip(1) for M in new]
                continue
            left, right = self.bases[name]
            turned = left.mT @ d @ right
            v = self.decay * self.squares.get(name, torch.zeros_like(d)) + (1 - self.decay) * turned.square()
            found[name] = left @ (turned / (v / (1 - self.decay**self.count)).sqrt()) @ right.mT
            self.squares[name] = v
            self.moments[name] = [
                self.decay * M + (1 - self.decay) * m for M, m in zip(self.moments[name], new, strict=True)
            ]
            if self.count % self.every == 0:
                self._refresh(name)
        self.count += 1
        return found or None

    def _refresh(self, name: str) -> None:
        """One power iteration and a QR, in the order of the eigenvalues."""
        for axis, (M, Q) in enumerate(zip(self.moments[name], self.bases[name], strict=True)):
            order = (Q.mT @ M @ Q).diagonal().argsort(descending=True)
            self.squares[name] = self.squares[name].index_select(axis, order)
            self.bases[name][axis] = torch.linalg.qr(M @ Q[:, order]).Q


def ekfac_step(model: nn.Module, x: Tensor, root: Callable[[Tensor], Tensor], D: Matrices, damping: float) -> Matrices:
    """The gradient in the eigenframe of K-FAC's factors over s + λ, s the squares of each example's gradients there."""
    named = {name: p.detach() for name, p in model.named_parameters()}

    def outputs(p: Matrices, a: Tensor) -> Tensor:
        z: Tensor = functional_call(model, p, (a[None],))[0]
        return z

    S, found = root(model(x).detach()), {}
    jacobians = matrices(model, vmap(jacrev(outputs), (None, 0))(named, x))  # (n, outputs, *)
    for name, (G, A) in factors(model, x, root).items():
        left, right = (torch.linalg.eigh(M).eigenvectors for M in (G, A))
        each = torch.einsum("nzk,nzij->nkij", S, jacobians[name])
        s = (left.mT @ each @ right).square().sum(1).mean(0)
        found[name] = left @ (left.mT @ D[name] @ right / (s + damping)) @ right.mT
    return found


def inputs_of(model: nn.Module, x: Tensor) -> Matrices:
    """What the weights of every layer act on, with a one, (rows, in + 1)."""
    found, hooks = {}, []
    for name, layer in layers_of(model).items():

        def hear(m: nn.Module, args: tuple[Tensor, ...], y: Tensor, name: str = name) -> None:
            found[name] = features(m, args[0].detach()).flatten(0, -2)

        hooks.append(layer.register_forward_hook(hear))
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def normalized_step(model: nn.Module, x: Tensor, D: Matrices, whole: bool, epsilon: float = 0.0) -> Matrices:
    """D A⁻¹, with A of the inputs' mean and their covariance, all of it or its diagonal, and ε on it."""
    found = {}
    for name, a in inputs_of(model, x).items():
        mean = a.mean(0)
        covariance = torch.cov(a.mT, correction=0)
        covariance = covariance if whole else torch.diag(covariance.diagonal())
        ridge = torch.full_like(mean, epsilon)
        ridge[-1] = 0
        A = covariance + torch.diag(ridge) + torch.outer(mean, mean)
        found[name] = torch.linalg.solve(A, D[name], left=False)
    return found
