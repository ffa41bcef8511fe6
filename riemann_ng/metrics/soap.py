"""SOAP: Adam in the eigenbasis of Shampoo's factors (Vyas et al. 2024).

The factors are D Dᵀ on S and Dᵀ D on Â* of the batch's gradient D; along their eigenvectors fᵢ ⊗ eⱼ the metric is the
diagonal √vᵢⱼ + ε, vᵢⱼ = D(fᵢ ⊗ eⱼ)². Over time factors and diagonal are averaged each by itself, and the basis is made
anew every few observations. What it needs to be told is one inner product, the coordinates or that of a
`NamedFrame`: relative to one that is data every affine frame is kept.

    average = MetricAverage(SOAP(), decay=0.95)  # average.update(observation).sharp(df)

Of coordinates it keeps rotations, as long as the eigenvalues of both factors are apart. The gradient of a first batch
has no more rank than its smaller side: the larger one has a kernel, later gradients lie in it, and the basis there is a
choice. The symmetry of the value says so from the first step on that it shows. EKFAC is the same construction on the
factors of K-FAC, without the root and without this trouble.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from ..errors import InvalidSetting, SpaceMismatch, UnsupportedLayer
from ..inner_products import BlockDiagonal, Euclidean, InnerProduct, Power, RotatedDiagonal
from ..networks.observation import LayerObservation, Observation
from ..samples.measures import times
from ..spaces import Family
from . import structures
from .adaptive import Adaptive, check_labels, check_of, mean_gradient, squares_in
from .base import named
from .eigenbasis import KeptEigenbasis, Pair, chosen, eigenbasis, iterated
from .named_frames import Axes, NamedFrame, axes_of, check_frame, factor_in
from .per_example import gradients, root

Refresh = Literal["power", "eigen"]
First = Literal["basis", "all"]
LARGEST = 10_000
"""The largest side of a layer whose factor is made."""


@dataclass(frozen=True, repr=False)
class SOAP(Adaptive):
    """√v + ε along the eigenvectors of D Dᵀ and Dᵀ D, kept for `every` observations of an average.

    `refresh` says how the basis is made anew: "power", by one power iteration and a QR from the one before, as the
    authors do, or "eigen". Entries of the diagonal stay with their vectors, in the order of eigenvalues. `first` says
    what the first observation of an average counts for: the "basis" alone, as the authors have it, or "all". `of`,
    `power` and `frame` are as in `RootMeanSquare`.
    """

    epsilon: float = 1e-8
    every: int = 10
    refresh: Refresh = "power"
    first: First = "basis"
    of: Literal["batch", "examples"] = "batch"
    power: float = 0.5
    frame: NamedFrame | None = None

    def __post_init__(self) -> None:
        self._check()
        check_of(self, self.of)
        check_frame(self, self.frame)
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise InvalidSetting(f"InvalidSetting in SOAP: every={self.every!r}, expected a number of observations.")
        for name, value, choices in (
            ("refresh", self.refresh, get_args(Refresh)),
            ("first", self.first, get_args(First)),
        ):
            if value not in choices:
                raise InvalidSetting(
                    f"InvalidSetting in SOAP: {name}={value!r}, expected {' or '.join(map(repr, choices))}."
                )

    def at_layer(self, layer: LayerObservation) -> InnerProduct:
        factors = self._factors(layer)
        (left, one), (right, other) = (eigenbasis(M) for M in factors)
        counts = 1 if self.first == "all" else 0
        return self._form(layer, factors, (left, right), (one, other), counts, float(counts))

    def refreshed(self, previous: InnerProduct, observation: Observation) -> InnerProduct:
        """In the basis of the earlier value, or where that is old enough in the next one, which is made of it."""
        check_labels(self, observation)
        before = previous.summands() if previous.space == observation.space else None
        parts: dict[str, InnerProduct] = {}
        for path, layer in observation.layers.items():
            g = None if before is None else before[path]
            if not isinstance(g, KeptEigenbasis):
                raise SpaceMismatch(
                    f"SpaceMismatch in SOAP.refreshed: expected an earlier value of this metric on "
                    f"{observation.space}, got {previous!r}. Make the first one with at(observation)."
                )
            with named(self, path):
                parts[path] = self._next(layer, g)
        return BlockDiagonal(parts)

    def _next(self, layer: LayerObservation, g: KeptEigenbasis) -> KeptEigenbasis:
        factors = self._factors(layer)
        if not g.age or g.age % self.every:
            return self._form(layer, factors, g.turns, g.ties, g.age + 1, 1.0, g)
        if self.refresh == "eigen":
            (left, one), (right, other) = (eigenbasis(M) for M in g.moments)
            return self._form(layer, factors, (left, right), (one, other), g.age + 1, 1.0, g)
        made = [iterated(M, turn, tie) for M, turn, tie in zip(g.moments, g.turns, g.ties, strict=True)]
        turns, order, ties = ((a, b) for a, b in zip(*made, strict=True))
        return self._form(layer, factors, turns, ties, g.age + 1, 1.0, g, order)

    def _form(
        self,
        layer: LayerObservation,
        factors: Pair,
        turns: Pair,
        ties: Pair,
        age: int,
        mass: float,
        before: KeptEigenbasis | None = None,
        order: Pair | None = None,
    ) -> KeptEigenbasis:
        reference, axes = self._reference(layer)
        name = f"eigenbasis of {layer.path}"
        if before is not None and turns is before.turns:
            turned: Axes = before.diagonal_form.axes
        else:
            turned = tuple(turn if P is None else times_axis(P, turn) for P, turn in zip(axes, turns, strict=True))
        squares = squares_in(layer, turned, self.of)
        data = structures.block_diagonal(layer).symmetry
        form = RotatedDiagonal(reference, turned, squares, name, natural=True, validate=False, made_with=data)
        form = form.with_spectrum(squares, chosen(data, ties, squares, form))
        came_from = None if before is None else before.turns
        return KeptEigenbasis(
            Power(form, self.power, after=self.epsilon), factors, turns, ties, age, mass, came_from, order
        )

    def _reference(self, layer: LayerObservation) -> tuple[InnerProduct, tuple[Tensor | None, ...]]:
        """The form on the layer that the eigenvectors are relative to, and its frame; None for the coordinates."""
        h = Euclidean(layer.space) if self.frame is None else self.frame.on(layer)
        if isinstance(h, Euclidean):
            return h, (None, None)
        axes = axes_of(h, layer.inputs.tensor())
        if len(axes) != 2:
            raise InvalidSetting(
                f"InvalidSetting in SOAP: the frame {self.frame!r} has no axes along {layer.S} and {layer.A.dual}, and "
                f"the factors are of these. Take that of a metric which is a product there, as KFAC()."
            )
        return h, axes

    def _factors(self, layer: LayerObservation) -> Pair:
        """D Dᵀ and Dᵀ D for the components D of the gradient in the frame; of a family member by member."""
        if (side := max(largest_side(layer.S), largest_side(layer.A))) > LARGEST:
            raise UnsupportedLayer(
                f"UnsupportedLayer in SOAP: {layer.path!r} has a side of {side} numbers, and its factor would be a "
                f"matrix [{side}, {side}]. Use RootMeanSquare() for this layer."
            )
        _, axes = self._reference(layer)
        factor = None if axes[0] is None else factor_in([P for P in axes if P is not None], layer.space)
        if self.of == "batch":
            D = mean_gradient(layer)
            D = D if factor is None else factor.to_axes(D.flatten()).reshape(D.shape)
            return sided(layer, D @ D.mT, D.mT @ D)
        left, right = None, None
        for D, w in gradients(layer):
            D = times(D.flatten(2), root(w)).reshape(D.shape)
            if factor is not None:
                D = factor.to_axes(D.flatten(2)).reshape(D.shape)
            one, other = (D @ D.mT).sum((0, 1)), (D.mT @ D).sum((0, 1))
            left, right = (one, other) if left is None or right is None else (left + one, right + other)
        assert left is not None and right is not None
        return sided(layer, left, right)


def sided(layer: LayerObservation, left: Tensor, right: Tensor) -> Pair:
    """The two factors, summed over members on a side that has none of its own."""
    if not isinstance(layer.space, Family):
        return left, right
    left, right = (M if isinstance(side, Family) else M.sum(0) for M, side in ((left, layer.S), (right, layer.A)))
    return left, right


def largest_side(space: object) -> int:
    of = space.of if isinstance(space, Family) else space
    return int(of.dim)  # type: ignore[attr-defined]


def times_axis(P: Tensor, turn: Tensor) -> Tensor:
    """The frame turned; a diagonal one is a vector."""
    return P[..., None] * turn if P.ndim == 1 else P @ turn
