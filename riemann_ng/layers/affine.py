"""Affine maps, constants, the scale and shift of normalizations, and embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from ..elements import describe
from ..errors import DtypeMismatch, ShapeMismatch
from ..samples import OneHot
from ..spaces import AffineSpace, OnePoint, Space
from .base import Blocks, Uses, check_dims
from .evaluation import EvaluationLayer, ParametricLayer


class Affine(EvaluationLayer):
    """`y = W x + b` at every site: `Affine(A, S, weight, bias)`, with weight (dim S, dim A) and bias (dim S).

    Its parameters live in Hom(A.hull, S.translations); without a bias, or with `bias_trains=False`, in
    Hom(A.translations, S.translations).
    """

    def __init__(
        self,
        domain: AffineSpace,
        codomain: AffineSpace,
        weight: Tensor,
        bias: Tensor | None = None,
        bias_trains: bool = True,
    ):
        self.domain, self.codomain = domain, codomain
        self._set_parameters(domain, codomain, weight, bias, bias_trains)

    def _features(self, x: Tensor) -> Tensor:
        return x

    def _linear_features(self, dx: Tensor) -> Tensor:
        return dx

    def _features_transpose(self, x: Tensor, d: Tensor) -> Tensor:
        return d

    def as_parameters(self, data: Tensor) -> dict[str, Tensor]:
        return self._split(data)


def constant(codomain: AffineSpace, value: Tensor) -> Affine:
    """Parameters without an input: an affine map of the one-point space. Activations are (examples, *sites, 0)."""
    return Affine(OnePoint, codomain, value.new_zeros(codomain.dim, 0), value)


class ScaleShift(EvaluationLayer):
    """Every channel scaled and shifted by itself: `ScaleShift(A, S, scale, shift)`, one number each per channel.

    A family, over the channels, of affine maps of lines: channels never mix, so its frames are monomial.
    """

    def __init__(
        self,
        domain: AffineSpace,
        codomain: AffineSpace,
        scale: Tensor,
        shift: Tensor | None = None,
        shift_trains: bool = True,
    ):
        self.domain, self.codomain = domain, codomain
        check_dims("ScaleShift", "the codomain", codomain, domain.dim)
        line, image = AffineSpace(f"{domain.name} channel", 1), AffineSpace(f"{codomain.name} channel", 1)
        bias = None if shift is None else shift[:, None]
        self._set_parameters(line, image, scale[:, None, None], bias, shift_trains, domain.dim)

    def _features(self, x: Tensor) -> Tensor:
        return x[..., None]

    def _linear_features(self, dx: Tensor) -> Tensor:
        return dx[..., None]

    def _features_transpose(self, x: Tensor, d: Tensor) -> Tensor:
        return d[..., 0]

    def as_parameters(self, data: Tensor) -> dict[str, Tensor]:
        return {name: block.flatten() for name, block in self._split(data).items()}


class Embedding(ParametricLayer):
    """A vector for every token: `Embedding(tokens, S, table)`, with a table (tokens, dim S).

    Its input is a field of integers, (examples, *sites). A finite set has no directions to move in: as a domain it
    counts as the one-point space, and tangents `dx` are (examples, *sites, 0). The parameters live in
    Hom(tokens, S.translations), transposed to the table, and are evaluated at one-hot inputs.
    """

    def __init__(self, tokens: Space, codomain: AffineSpace, table: Tensor):
        self.domain, self.codomain, self.tokens = OnePoint, codomain, tokens
        self.input_space, self.output_space = tokens, codomain.translations
        if tuple(table.shape) != (tokens.dim, codomain.dim):
            raise ShapeMismatch(
                f"ShapeMismatch in {self}: its table is {[tokens.dim, codomain.dim]}, one row per token, "
                f"got {describe(table)}."
            )
        self._check_numbers("parameters", "table", table)
        self.weight = table.detach().mT

    def inputs(self, x: Tensor) -> OneHot:
        return OneHot(x.reshape(x.shape[0], 1, -1), self.weight.dtype)

    def as_parameters(self, data: Tensor) -> dict[str, Tensor]:
        return {"weight": data.mT}

    def check_points(self, call: str, x: Tensor) -> None:
        if not isinstance(x, Tensor) or x.dtype not in (torch.int32, torch.int64):
            raise DtypeMismatch(
                f"DtypeMismatch in {self}.{call}: tokens are integers (examples, *sites), got "
                f"{describe(x)}. Use .long()."
            )
        if x.ndim < 1 or x.numel() == 0:
            raise ShapeMismatch(f"ShapeMismatch in {self}.{call}: tokens are (examples, *sites), got {describe(x)}.")
        least, most = int(x.min()), int(x.max())
        if least < 0 or most >= self.tokens.dim:
            raise ShapeMismatch(
                f"ShapeMismatch in {self}.{call}: tokens of {self.tokens} are 0 to {self.tokens.dim - 1}, "
                f"got {least} to {most}. Look at the vocabulary."
            )

    def tangent_shape(self, x: Tensor) -> tuple[int, ...]:
        return (*x.shape, 0)

    def _forward(self, x: Tensor) -> Tensor:
        return self.weight.mT[x]

    def _push(self, x: Tensor, dx: Tensor, dw: Blocks | None) -> Tensor:
        return self.weight.new_zeros(*x.shape, self.codomain.dim) if dw is None else dw[""].mT[x]

    def _pull(self, x: Tensor, dy: Tensor) -> tuple[Tensor, Uses]:
        return dy[..., :0], {"": self._use(x, dy)}

    def __str__(self) -> str:
        return f"Embedding({self.codomain} ← {self.tokens})"
