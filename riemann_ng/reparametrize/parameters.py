"""The same function of other parameters: θ = ψ(u), trained in u."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..elements import describe
from ..networks.outputs import standing_in
from .groups import InvalidFrames, linear_element, rotation

R = TypeVar("R", bound="Reparametrized")


class Change(ABC):
    """A smooth bijection of ℝⁿ, differentiable by autograd. Law: `psi(psi.inverse(x)) == x`."""

    @abstractmethod
    def __call__(self, u: Tensor) -> Tensor:
        """θ = ψ(u), for one u, [n]."""

    @abstractmethod
    def inverse(self, theta: Tensor) -> Tensor:
        """The u with ψ(u) = θ."""


class LinearChange(Change):
    """θ = P u. Metrics that come from the function commute with it exactly, finite steps included."""

    def __init__(self, matrix: Tensor):
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise InvalidFrames(
                f"InvalidFrames in LinearChange: a bijection has a square matrix, got {describe(matrix)}."
            )
        self.matrix = matrix

    @classmethod
    def draw(cls, n: int, group: str = "general", seed: int = 0, size: float = 1.0) -> LinearChange:
        """An element of a linear group on all parameters together."""
        return cls(linear_element(group, n, torch.Generator().manual_seed(seed), size))

    def __call__(self, u: Tensor) -> Tensor:
        return torch.mv(self.matrix.to(u), u)

    def inverse(self, theta: Tensor) -> Tensor:
        return torch.linalg.solve(self.matrix.to(theta), theta)


class SmoothChange(Change):
    """θ = Q (t + ε sin(t + c)), t = Qᵀu, with Q orthogonal and |ε| < 1: a bijection that is linear nowhere.

    Inner products pulled back from the function commute with it; a finite step along a straight line does not, by an
    order of the step's size that tells the one from the other.
    """

    def __init__(self, n: int, strength: float = 0.3, seed: int = 0):
        if not 0 < strength < 1:
            raise InvalidFrames(f"InvalidFrames in SmoothChange: strength lies between 0 and 1, got {strength!r}.")
        generator = torch.Generator().manual_seed(seed)
        self.strength, self.rotation = strength, rotation(n, generator)
        self.phase = 6.28 * torch.rand(n, generator=generator, dtype=torch.float64)

    def __call__(self, u: Tensor) -> Tensor:
        Q = self.rotation.to(u)
        t = torch.mv(Q.mT, u)
        return torch.mv(Q, t + self.strength * torch.sin(t + self.phase.to(u)))

    def inverse(self, theta: Tensor) -> Tensor:
        Q, phase, e = self.rotation.to(theta), self.phase.to(theta), self.strength
        y = torch.mv(Q.mT, theta)
        low, high = y - e, y + e
        for _ in range(80):  # bisection: the map is monotone on every axis
            middle = (low + high) / 2
            above = middle + e * torch.sin(middle + phase) > y
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        t = (low + high) / 2
        return torch.mv(Q, t)


class Reparametrized(nn.Module):
    """A module whose one parameter `u` gives those of another by ψ; the other is held, but is no part of it."""

    def __init__(self, module: nn.Module, psi: Change):
        super().__init__()
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not trained:
            raise InvalidFrames("InvalidFrames in reparametrize_parameters: the module has no trained parameter.")
        self.psi, self._held = psi, (module,)
        self._shapes = {name: p.shape for name, p in trained.items()}
        theta = torch.cat([p.detach().flatten() for p in trained.values()])
        u = psi.inverse(theta)
        back = psi(u)
        if back.shape != theta.shape or not torch.allclose(back, theta, rtol=1e-4, atol=1e-5):
            raise InvalidFrames(
                f"InvalidFrames in reparametrize_parameters: psi(psi.inverse(θ)) is not θ at the parameters, "
                f"{describe(theta)}."
            )
        self.u = nn.Parameter(u)

    @property
    def module(self) -> nn.Module:
        """The module whose function it computes. Its own parameters are not used."""
        return self._held[0]

    def effective(self) -> dict[str, Tensor]:
        """The parameters of the module, by name."""
        sizes = [shape.numel() for shape in self._shapes.values()]
        parts = self.psi(self.u).split(sizes)
        return {name: part.reshape(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with standing_in(self.module, self.effective()):
            return self.module(*args, **kwargs)

    def train(self: R, mode: bool = True) -> R:
        self.module.train(mode)
        return super().train(mode)

    def _apply(self: R, fn: Any, recurse: bool = True) -> R:
        self.module._apply(fn, recurse)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


def reparametrize_parameters(module: nn.Module, psi: Change) -> Reparametrized:
    """The same function, trained in u with θ = ψ(u), where θ are all trained parameters one after the other.

    `psi` is a `LinearChange`, a `SmoothChange` or a `Change` of your own. The module is copied.
    """
    return Reparametrized(copy.deepcopy(module), psi)
