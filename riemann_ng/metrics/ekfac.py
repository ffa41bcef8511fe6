"""EKFAC: the Fisher's diagonal in the frame of K-FAC (George et al. 2018).

On S ⊗ Â* the frame is fᵢ ⊗ eⱼ, orthonormal for a named reference, in which both of K-FAC's factors are diagonal; the
spectrum is the true second moment of per-example gradients along it, sᵢⱼ = E[D(fᵢ ⊗ eⱼ)²], D summed over the sites of
an example first. K-FAC puts the product of the factors' spectra there instead, so as long as the samples are the same,
and the frame is orthonormal for the norm in which one measures, EKFAC is never farther from the Fisher's block.

The reference is a constant of the metric. By default it is the coordinates, on the hull of 𝒜 with their origin: what
remains are rotations about it. Relative to a reference that is data (`FixedMetric` of K-FAC at another batch) every
affine frame is kept.

A frame is as certain as the gaps between eigenvalues. Where two meet the basis of their plane is an accident, and so is
the metric; `gaps` measures how near that is. The kernel of a factor is harmless for gradients of the same batch, which
vanish there, and not for others. Factors are diagonalized in float64, whatever their dtype: in a layer of 30 × 101,
damped by a millionth of the largest entry, eigenvectors found in float32 put steps off by 1e-2, these by 7e-5.

A reference must be definite. The cotangents of a softmax sum to zero, so that of K-FAC is not on the last layer: take
it with `output=EuclideanOutput()`, which names the coordinates of the outputs and nothing before them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from ..errors import DegenerateMetric, InvalidSetting, SpaceMismatch, UnsupportedLayer
from ..factorizations import RankDeficient, rounding_unit
from ..inner_products import (
    BlockDiagonal,
    Diagonal,
    Euclidean,
    Gram,
    InnerProduct,
    RotatedDiagonal,
    Scaled,
    second_moment,
)
from ..inner_products.pencils import DIAGONAL, pencil_of_factors
from ..likelihoods import OutputMetric
from ..networks import Estimator, Exact
from ..networks.observation import LayerObservation, Observation
from ..spaces import Family
from ..symmetry import Symmetry
from .base import RiemannianMetric, given, named, value_at
from .kfac import KFAC, Bias, Sharing
from .outputs import check_output, one_output
from .per_example import LARGEST, squares

SAME = 1e-9
"""Eigenvalues of a factor that are all as close as this, relative to the largest, single out no frame."""


@dataclass(frozen=True)
class Frame:
    """The axes along S and Â*, with the factors' eigenvalues relative to the reference."""

    axes: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


@dataclass(frozen=True, repr=False)
class EKFAC(RiemannianMetric):
    """Diagonal in K-FAC's eigenframe relative to `reference`, with the second moments of per-example gradients.

    `reference` is a metric whose value on a layer is a product along S and Â*; None is the Euclidean one. `sharing` and
    `bias` say of which factors the frame is made, as in `KFAC`; the spectrum always is of the true gradients.
    `refreshed` computes the spectrum in the frames of an earlier value, so that the two blend.
    """

    reference: RiemannianMetric | None = None
    sharing: Sharing = "expand"
    bias: Bias = "joint"
    output: OutputMetric | None = None
    observed: Estimator = Exact()

    def __post_init__(self) -> None:
        if self.reference is not None and not isinstance(self.reference, RiemannianMetric):
            raise InvalidSetting(
                f"InvalidSetting in EKFAC: reference={given(self.reference)}, expected a metric. An inner product g "
                f"becomes one as FixedMetric(g)."
            )
        for name, value, choices in (
            ("sharing", self.sharing, get_args(Sharing)),
            ("bias", self.bias, get_args(Bias)),
        ):
            if value not in choices:
                raise InvalidSetting(
                    f"InvalidSetting in EKFAC: {name}={value!r}, expected {' or '.join(map(repr, choices))}."
                )
        if self.reference is not None and self.reference.sees_outputs:
            one_output([self, self.reference])

    @property
    def factors(self) -> KFAC:
        """The product whose frame is taken."""
        return KFAC(self.sharing, self.bias)

    def at(self, observation: Observation) -> InnerProduct:
        check_output(self, observation)
        references, parts = self.references(observation), {}
        for path, layer in observation.layers.items():
            with named(self, path):
                parts[path] = self.in_layer(layer, references[path])
        return BlockDiagonal(parts)

    def refreshed(self, previous: InnerProduct, observation: Observation) -> InnerProduct:
        check_output(self, observation)
        parts: dict[str, InnerProduct] = {}
        before = previous.summands() if previous.space == observation.space else None
        for path, layer in observation.layers.items():
            g = None if before is None else before[path]
            if not isinstance(g, RotatedDiagonal):
                raise SpaceMismatch(
                    f"SpaceMismatch in EKFAC.refreshed: expected an earlier value of this metric on "
                    f"{observation.space}, got {previous!r}. Make the first one with at(observation)."
                )
            parts[path] = g.with_spectrum(spectrum_of(layer, g.axes), g.made_with)
        return BlockDiagonal(parts)

    def in_layer(self, layer: LayerObservation, reference: InnerProduct | None = None) -> RotatedDiagonal:
        """The inner product on `layer.space`, relative to one there."""
        reference = Euclidean(layer.space) if reference is None else reference
        G, A = self.factors.factors(layer)
        frame = frame_of(layer, (G, A), reference)
        factors = G.symmetry * A.symmetry
        made_with = second_moment(layer.gradients).symmetry * factors * factors**-1
        spectrum = spectrum_of(layer, frame.axes)
        name = f"eigenframe of {layer.path}"
        return RotatedDiagonal(reference, frame.axes, spectrum, name, True, validate=False, made_with=made_with)

    def gaps(self, observation: Observation) -> dict[str, tuple[float, float]]:
        """For each layer the least gap between eigenvalues of the factors on S and on Â*, relative to the largest.

        Frames, and with them what a claim of symmetry promises, are accurate up to the rounding unit over the gap. Gaps
        within a kernel do not count, nor a factor that is diagonal by nature, that of one-hot inputs.
        """
        references = self.references(observation)
        gaps = {}
        for path, layer in observation.layers.items():
            frame = frame_of(layer, self.factors.factors(layer), references[path], certain=False)
            first, second = (
                1.0 if P.ndim == 1 else least_gap(v) for P, v in zip(frame.axes, frame.values, strict=True)
            )
            gaps[path] = (first, second)
        return gaps

    def references(self, observation: Observation) -> dict[str, InnerProduct]:
        """The reference, layer by layer."""
        space = observation.space
        g = Euclidean(space) if self.reference is None else value_at(self.reference, observation)
        parts = g.summands()
        if parts is None:
            raise SpaceMismatch(
                f"SpaceMismatch in {self!r}: the reference {g!r} is no direct sum over layers. Take a metric that is a "
                f"product in each, as EuclideanMetric() or a FixedMetric of KFAC at another batch."
            )
        return parts

    def estimator(self, targets: Any = None) -> Estimator:
        return self.observed


def spectrum_of(layer: LayerObservation, axes: tuple[Tensor, ...]) -> Tensor:
    """Second moments of gradients along the axes: (d_S, d_A), where a family has axes for each member (m, d_S, d_A)."""
    total = squares(layer, axes[0], axes[1])
    noise = (16 * rounding_unit(total.dtype)) ** 2  # what is left of a kernel: the square of rounding
    total = torch.where(total > noise * total.max(), total, 0.0)
    return total if any(axis.ndim == 3 for axis in axes) else total.reshape([axis.shape[-1] for axis in axes])


def frame_of(
    layer: LayerObservation, factors: tuple[InnerProduct, InnerProduct], reference: InnerProduct, certain: bool = True
) -> Frame:
    """The frame orthonormal for the reference in which both factors are diagonal, found in float64.

    With `certain`, one that nothing singles out is refused.
    """
    spaces = tuple(f.space for f in factors)
    scale, form = (reference.scalar, reference.of) if isinstance(reference, Scaled) else (1.0, reference)
    references = form.factors_on(spaces)
    if references is None:
        raise SpaceMismatch(
            f"SpaceMismatch in EKFAC: the reference {reference!r} is no product of inner products on {spaces[0]} and "
            f"{spaces[1]}, so no frame along these two is orthonormal for it. Take EuclideanMetric(), or a FixedMetric "
            f"of KFAC at another batch."
        )
    like = layer.inputs.tensor()
    members = layer.space.members if isinstance(layer.space, Family) else 1
    axes, values = [], []
    for f, h in zip(factors, references, strict=True):
        wide = widened(f, like), widened(h, like)
        try:
            (axis,), spectrum, _ = pencil_of_factors([wide], members, like.new_empty(0, dtype=torch.float64))
        except RankDeficient as short:
            raise DegenerateMetric(
                f"DegenerateMetric in EKFAC: the reference {h!r} has {short}, and no frame is orthonormal for it. Take "
                f"it from a larger batch, or damped; of the layer before a softmax, where cotangents sum to zero, "
                f"observed with output=EuclideanOutput().",
                h.space,
                short.rank,
            ) from None
        if certain and not isinstance(h, Euclidean) and spectrum.shape[-1] > 1:
            check_certain(spectrum, h)
        axes.append(axis.to(like.dtype))
        values.append(spectrum)
    if float(scale) != 1.0:
        axes[0] = axes[0] / float(scale) ** 0.5
    return Frame(tuple(axes), tuple(values))


def widened(g: InnerProduct, like: Tensor) -> InnerProduct:
    """The form in float64, with no more structure than its matrix or its diagonal."""
    if g.structure.kind in DIAGONAL:
        return Diagonal.of(g.space, g.diagonal_entries(like).double(), "", Symmetry.natural())
    side = g.space.of.dim if isinstance(g.space, Family) else g.space.dim
    if side * g.space.dim > LARGEST:
        raise UnsupportedLayer(
            f"UnsupportedLayer in EKFAC: {g!r} is diagonalized as a matrix [{side}, {side}]. Of an embedding the "
            f"moment of inputs is diagonal with sharing='expand'; else use KFAC, or Fisher(structure='diagonal')."
        )
    blocks = g.dense_blocks()
    return Gram.of(g.space, (g.dense_matrix(like) if blocks is None else blocks).double(), "", Symmetry.natural())


def check_certain(values: Tensor, reference: InnerProduct) -> None:
    largest = values.amax(-1)
    if bool(((largest - values.amin(-1) <= SAME * largest) & (largest > 0)).any()):
        raise InvalidSetting(
            f"InvalidSetting in EKFAC: the reference {reference!r} is a multiple of the factor at this observation, so "
            f"every basis that is orthonormal for it is an eigenbasis, and nothing singles one out. Take the reference "
            f"from another batch than the one that it is first used on."
        )


def least_gap(values: Tensor) -> float:
    """Between neighbours that are not both zero, relative to the largest; one where there are no two."""
    ordered = values.reshape(-1, values.shape[-1]).sort(-1).values
    between = ordered.diff(dim=-1) / ordered[:, -1:]
    told = ordered[:, 1:] > torch.finfo(values.dtype).eps * values.shape[-1] * ordered[:, -1:]
    return float(torch.where(told, between, 1.0).min()) if between.numel() else 1.0
