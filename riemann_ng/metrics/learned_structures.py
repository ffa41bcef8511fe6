"""Inverse preconditioners U of one layer, as they are learned: inner products on covectors, by their free parameters.

Each is symmetric and positive whatever its parameters are, since it is made of squares; each starts at the identity.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from ..inner_products import Diagonal, Euclidean, Gram, InnerProduct, Kronecker, LowRank, RotatedDiagonal
from ..inner_products.symmetries import of_matrix
from ..networks.observation import LayerObservation
from ..spaces import VectorSpace
from ..symmetry import Symmetry

Structured = Literal["scalar", "diagonal", "dense", "kfac", "ekfac", "low-rank"]
NAME = "learned"


class Inverse(ABC):
    """U on the covectors of one layer. `parameters` are to be learned; `of` is its sides' spaces S* and Â."""

    def __init__(self, layer: LayerObservation, parameters: list[Tensor]):
        self.space: VectorSpace = layer.space.dual
        self.of = layer.S.dual, layer.A
        self.parameters = [p.detach().clone().requires_grad_(True) for p in parameters]

    @classmethod
    @abstractmethod
    def start(cls, layer: LayerObservation, like: Tensor, rank: int) -> list[Tensor]:
        """The parameters of the identity."""

    @abstractmethod
    def applied(self, g: Tensor) -> Tensor:
        """U g, in the shape of the layer's space, differentiable in the parameters."""

    @abstractmethod
    def form(self) -> InnerProduct:
        """U as an inner product."""

    @classmethod
    @abstractmethod
    def parameters_of(cls, form: InnerProduct) -> list[Tensor]:
        """The parameters that make a form of this structure."""


class ScalarInverse(Inverse):
    @classmethod
    def start(cls, layer: LayerObservation, like: Tensor, rank: int) -> list[Tensor]:
        return [like.new_ones(())]

    def applied(self, g: Tensor) -> Tensor:
        return self.parameters[0].square() * g

    def form(self) -> InnerProduct:
        entries = self.parameters[0].detach().square().expand(self.space.dim).clone()
        return Diagonal.of(self.space, entries, f"{NAME} scalar", Euclidean(self.space).symmetry)

    @classmethod
    def parameters_of(cls, form: InnerProduct) -> list[Tensor]:
        return [form.diagonal_entries().mean().sqrt()]


class DiagonalInverse(Inverse):
    @classmethod
    def start(cls, layer: LayerObservation, like: Tensor, rank: int) -> list[Tensor]:
        return [like.new_ones(layer.space.shape)]

    def applied(self, g: Tensor) -> Tensor:
        return self.parameters[0].square() * g

    def form(self) -> InnerProduct:
        return Diagonal(self.space, self.parameters[0].detach().square().flatten(), name=f"{NAME} diagonal")

    @classmethod
    def parameters_of(cls, form: InnerProduct) -> list[Tensor]:
        return [form.diagonal_entries().sqrt().reshape(form.space.shape)]


class DenseInverse(Inverse):
    @classmethod
    def start(cls, layer: LayerObservation, like: Tensor, rank: int) -> list[Tensor]:
        return [torch.eye(layer.space.dim, dtype=like.dtype, device=like.device)]

    def applied(self, g: Tensor) -> Tensor:
        (L,) = self.parameters
        return ((g.flatten() @ L) @ L.mT).reshape(g.shape)

    def form(self) -> InnerProduct:
        return Gram.of(self.space, square(self.parameters[0].detach()), NAME, unknown(self.space))

    @classmethod
    def parameters_of(cls, form: InnerProduct) -> list[Tensor]:
        return [root_of(form.dense_matrix())]


class KroneckerInverse(Inverse):
    """P Pᵀ ⊗ Q Qᵀ, one pair for each member of a family."""

    @classmethod
    def start(cls, layer: LayerObservation, like: Tensor, rank: int) -> list[Tensor]:
        *members, outputs, inputs = layer.space.shape
        eyes = (torch.eye(d, dtype=like.dtype, device=like.device) for d in (outputs, inputs))
        return [eye.expand(*members, *eye.shape) for eye in eyes]

    def applied(self, g: Tensor) -> Tensor:
        P, Q = self.parameters
        return P @ (P.mT @ g @ Q) @ Q.mT

    def form(self) -> InnerProduct:
        P, Q = (p.detach() for p in self.parameters[:2])
        sides = zip(self.of, (P, Q), strict=True)
        left, right = (Gram.of(V, square(side), NAME, unknown(V)) for V, side in sides)
        return left * right

    @classmethod
    def parameters_of(cls, form: InnerProduct) -> list[Tensor]:
        assert isinstance(form, Kronecker)
        blocks = [factor.dense_blocks() for factor in form.factors]
        return [root_of(block) for block in blocks if block is not None]


class RotatedInverse(KroneckerInverse):
    """E D² Eᵀ with E = P ⊗ Q free and D diagonal."""

    @classmethod
    def start(cls, layer: LayerObservation, like: Tensor, rank: int) -> list[Tensor]:
        return [*super().start(layer, like, rank), like.new_ones(layer.space.shape)]

    def applied(self, g: Tensor) -> Tensor:
        P, Q, d = self.parameters
        return P @ (d.square() * (P.mT @ g @ Q)) @ Q.mT

    def form(self) -> InnerProduct:
        P, Q, d = (p.detach() for p in self.parameters)
        axes = [torch.linalg.inv(P).mT.contiguous(), torch.linalg.inv(Q).mT.contiguous()]
        return RotatedDiagonal(super().form(), axes, d.square(), name=f"{NAME} axes", validate=False)

    @classmethod
    def parameters_of(cls, form: InnerProduct) -> list[Tensor]:
        assert isinstance(form, RotatedDiagonal)
        return [*(torch.linalg.inv(axes).mT for axes in form.axes), form.spectrum.sqrt()]


class LowRankInverse(Inverse):
    """s² + VᵀV with few rows V, which start small and at random: at zero they would have no gradient."""

    @classmethod
    def start(cls, layer: LayerObservation, like: Tensor, rank: int) -> list[Tensor]:
        shape = (min(rank, layer.space.dim), layer.space.dim)
        rows = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return [like.new_ones(()), rows.to(like) / (10 * layer.space.dim**0.5)]

    def applied(self, g: Tensor) -> Tensor:
        s, V = self.parameters
        return s.square() * g + ((V @ g.flatten()) @ V).reshape(g.shape)

    def form(self) -> InnerProduct:
        s, V = (p.detach() for p in self.parameters)
        return float(s.square()) * Euclidean(self.space) + LowRank(self.space, V.clone(), name=f"{NAME} rows")

    @classmethod
    def parameters_of(cls, form: InnerProduct) -> list[Tensor]:
        """Also of an average, where rows have come together."""
        parts = form.low_rank_parts()
        assert parts is not None
        base, rows = parts
        return [base.diagonal_entries(rows)[0].sqrt(), rows]


STRUCTURES: dict[str, type[Inverse]] = {
    "scalar": ScalarInverse,
    "diagonal": DiagonalInverse,
    "dense": DenseInverse,
    "kfac": KroneckerInverse,
    "ekfac": RotatedInverse,
    "low-rank": LowRankInverse,
}


def square(P: Tensor) -> Tensor:
    return P @ P.mT


def root_of(matrix: Tensor) -> Tensor:
    """P with P Pᵀ the matrix."""
    P: Tensor = torch.linalg.cholesky(matrix)
    return P


def unknown(space: VectorSpace) -> Symmetry:
    """Of a matrix that started at the identity: what a constant keeps."""
    return of_matrix(space, NAME, f"{NAME} on {space}")
