"""Nonlinearities that act on every component by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..spaces import AffineSpace
from .base import ParameterFreeLayer, check_dims

Scalar = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Nonlinearity:
    """A function of one variable with its derivative, both elementwise on tensors."""

    name: str
    function: Scalar
    derivative: Scalar


def _step(x: Tensor) -> Tensor:
    return (x > 0).to(x)


def _tanh_slope(x: Tensor) -> Tensor:
    return 1 - torch.tanh(x) ** 2


def _sigmoid_slope(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 - s)


def _silu_slope(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-x / math.sqrt(2))


def _gelu_slope(x: Tensor) -> Tensor:
    return _normal_cdf(x) + x * torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def _gelu_tanh_inner(x: Tensor) -> Tensor:
    return torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


def _gelu_tanh_slope(x: Tensor) -> Tensor:
    t = _gelu_tanh_inner(x)
    return 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)


def _softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


identity = Nonlinearity("identity", lambda x: x, torch.ones_like)
relu = Nonlinearity("relu", lambda x: x.clamp(min=0), _step)
tanh = Nonlinearity("tanh", torch.tanh, _tanh_slope)
sigmoid = Nonlinearity("sigmoid", torch.sigmoid, _sigmoid_slope)
silu = Nonlinearity("silu", lambda x: x * torch.sigmoid(x), _silu_slope)
softplus = Nonlinearity("softplus", _softplus, torch.sigmoid)
gelu = Nonlinearity("gelu", lambda x: x * _normal_cdf(x), _gelu_slope)
gelu_tanh = Nonlinearity("gelu_tanh", lambda x: 0.5 * x * (1 + _gelu_tanh_inner(x)), _gelu_tanh_slope)


class Pointwise(ParameterFreeLayer):
    """`y_i = f(x_i)` for every component: `Pointwise(S, A, tanh)`, or with a `Nonlinearity` of one's own."""

    def __init__(self, domain: AffineSpace, codomain: AffineSpace, nonlinearity: Nonlinearity):
        check_dims("Pointwise", "the codomain", codomain, domain.dim)
        self.domain, self.codomain, self.nonlinearity = domain, codomain, nonlinearity

    def _forward(self, x: Tensor) -> Tensor:
        return self.nonlinearity.function(x)

    def _differential(self, x: Tensor, dx: Tensor) -> Tensor:
        return self.nonlinearity.derivative(x) * dx

    def _transpose(self, x: Tensor, dy: Tensor) -> Tensor:
        return self.nonlinearity.derivative(x) * dy

    def __str__(self) -> str:
        return f"{self.nonlinearity.name}({self.codomain} ← {self.domain})"
