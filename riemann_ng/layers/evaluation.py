"""What layers with parameters share: a linear map, evaluated at features of the input at every output site."""

from __future__ import annotations

from abc import abstractmethod
from copy import copy
from typing import TypeVar

import torch
from torch import Tensor

from ..elements import describe
from ..errors import ShapeMismatch
from ..samples import Data
from ..spaces import AffineSpace, Family, VectorSpace
from .base import Blocks, Layer, Use, Uses

P = TypeVar("P", bound="ParametricLayer")


class ParametricLayer(Layer):
    """A layer with one block of parameters, `weight`: an element of `output_space * input_space.dual`.

    Its data is (outputs, inputs), a family's members first. Where there is a bias, `input_space` is a hull (or a family
    of hulls), its last component the homogeneous 1, and the bias the last column.
    """

    input_space: VectorSpace
    output_space: VectorSpace
    weight: Tensor

    @property
    def parameter_spaces(self) -> dict[str, VectorSpace]:
        return {"": self.output_space * self.input_space.dual}

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {"": self.weight}

    @abstractmethod
    def inputs(self, x: Tensor) -> Data:
        """What the parameters are evaluated at: (examples, 1, sites, *input_space.shape)."""

    def cotangents(self, dy: Tensor) -> Tensor:
        """The cotangents of the values, (examples, 1, sites, *output_space.shape)."""
        return dy.reshape(dy.shape[0], 1, -1, *self.output_space.shape)

    @abstractmethod
    def as_parameters(self, data: Tensor) -> dict[str, Tensor]:
        """The data of a tangent (or of `weight` itself) as the "weight" and "bias" that the constructor takes."""

    def _use(self, x: Tensor, dy: Tensor) -> Use:
        return Use(self.input_space, self.output_space, self.inputs(x), self.cotangents(dy))

    def _moved(self: P, by: Blocks) -> P:
        moved = copy(self)
        moved.weight = self.weight + by[""]
        return moved


class EvaluationLayer(ParametricLayer):
    """A parametric layer over an affine space of activations: y = W·(features(x), 1).

    A kind writes the affine map from activations to features, its linear part and the transpose of that. A frozen bias
    is a part of the layer, not of its parameters: their space is then that of linear maps, as without a bias.
    """

    feature_space: AffineSpace
    frozen_bias: Tensor | None

    def _set_parameters(
        self,
        features: AffineSpace,
        values: AffineSpace,
        weight: Tensor,
        bias: Tensor | None,
        bias_trains: bool,
        members: int = 0,
    ) -> None:
        """`weight` is ([members,] dim of the values, dim of the features), `bias` ([members,] dim of the values)."""
        trained = bias if bias_trains else None
        point = features.translations if trained is None else features.hull
        self.feature_space = features
        self.input_space = Family(point, members) if members else point
        self.output_space = Family(values.translations, members) if members else values.translations
        shape = (*((members,) if members else ()), values.dim, features.dim)
        self._check_parameter("weight", weight, shape)
        if bias is not None:
            self._check_parameter("bias", bias, shape[:-1])
        self.frozen_bias = None if bias is None or bias_trains else bias.detach()
        self.weight = weight.detach() if trained is None else torch.cat([weight, trained[..., None]], dim=-1).detach()

    def _check_parameter(self, what: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != shape:
            raise ShapeMismatch(
                f"ShapeMismatch in {self}: its {what} is {list(shape)}, got {describe(tensor)}. "
                f"Outputs come before inputs; look at the dimensions of the two spaces."
            )
        self._check_numbers("parameters", what, tensor)

    @abstractmethod
    def _features(self, x: Tensor) -> Tensor:
        """(examples, *output sites, [members,] dim of the feature space)."""

    @abstractmethod
    def _linear_features(self, dx: Tensor) -> Tensor: ...

    @abstractmethod
    def _features_transpose(self, x: Tensor, d: Tensor) -> Tensor: ...

    @property
    def _m(self) -> str:
        return "m" if self.weight.ndim == 3 else ""

    @property
    def _linear_part(self) -> Tensor:
        return self.weight[..., : self.feature_space.dim]

    def _with_one(self, features: Tensor) -> Tensor:
        if self.weight.shape[-1] == self.feature_space.dim:
            return features
        return torch.cat([features, features.new_ones(*features.shape[:-1], 1)], dim=-1)

    def _evaluate(self, weight: Tensor, features: Tensor) -> Tensor:
        """The values as a field of the codomain."""
        values = torch.einsum(f"{self._m}oi,...{self._m}i->...{self._m}o", weight, features)
        return values.flatten(-2) if self._m else values

    def inputs(self, x: Tensor) -> Tensor:
        return self._with_one(self._features(x)).reshape(x.shape[0], 1, -1, *self.input_space.shape)

    def _forward(self, x: Tensor) -> Tensor:
        y = self._evaluate(self.weight, self._with_one(self._features(x)))
        return y if self.frozen_bias is None else y + self.frozen_bias.flatten()

    def _push(self, x: Tensor, dx: Tensor, dw: Blocks | None) -> Tensor:
        dy = self._evaluate(self._linear_part, self._linear_features(dx))
        return dy if dw is None else dy + self._evaluate(dw[""], self._with_one(self._features(x)))

    def _pull(self, x: Tensor, dy: Tensor) -> tuple[Tensor, Uses]:
        values = dy.unflatten(-1, self.output_space.shape)
        d = torch.einsum(f"{self._m}oi,...{self._m}o->...{self._m}i", self._linear_part, values)
        return self._features_transpose(x, d), {"": self._use(x, dy)}

    def _split(self, data: Tensor) -> dict[str, Tensor]:
        """The linear part and, if it is trained, the bias."""
        k = self.feature_space.dim
        return {"weight": data[..., :k], "bias": data[..., k]} if data.shape[-1] > k else {"weight": data}
