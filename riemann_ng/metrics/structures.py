"""What can be kept of the Fisher of one layer, from most to least: functions of what was seen of a layer.

Each is that part of the second moment of the layer's per-example gradients, the block of the Fisher, and each names
what tells its parts apart:

    block_diagonal   all of it                                                   keeps all affine frames
    unit_wise        a matrix for each output unit                               names the lines of S
    quasi_diagonal   of each unit the bias's row and the diagonal                names the lines of S and of 𝒜
    diagonal         the diagonal                                                names these and the origin of 𝒜

Sites of one example are summed first, so where weights are shared these are parts of the Fisher too.
"""

from __future__ import annotations

from torch import Tensor

from ..inner_products import Diagonal, InnerProduct, QuasiDiagonal, UnitWise
from ..inner_products.quasi_diagonal import has_bias, named_by_quasi, named_by_units
from ..inner_products.symmetries import with_lines
from ..networks.observation import LayerObservation
from .layer_moment import LayerMoment
from .per_example import bias_moments, one_hot, one_site, squares, unit_moments


def block_diagonal(layer: LayerObservation) -> LayerMoment:
    """The whole block: the second moment of per-example gradients, known by its products."""
    return LayerMoment(layer)


def unit_wise(layer: LayerObservation) -> InnerProduct:
    """One form on Â* for each output unit. It keeps all affine frames of 𝒜. One-hot inputs make it diagonal."""
    F, name = block_diagonal(layer), f"units of {layer.path}"
    symmetry = F.symmetry * named_by_units(layer.space, name)
    if one_hot(layer) and one_site(layer):
        return Diagonal.of(layer.space, squares(layer).flatten(), name, symmetry)
    return UnitWise.of(layer.space, unit_moments(layer), name, symmetry)


def quasi_diagonal(layer: LayerObservation) -> InnerProduct:
    """Of each unit the bias exact, and the diagonal beside it; translations of 𝒜 are kept. Without a bias, diagonal."""
    if not has_bias(layer.space):
        return diagonal(layer)
    F, name = block_diagonal(layer), f"quasi-diagonal of {layer.path}"
    return QuasiDiagonal.of(
        layer.space, *bias_moments(layer), name=name, symmetry=F.symmetry * named_by_quasi(layer.space, name)
    )


def diagonal(layer: LayerObservation) -> Diagonal:
    """The squares of per-example gradients, averaged."""
    F, name = block_diagonal(layer), f"diagonal of {layer.path}"
    entries: Tensor = squares(layer).flatten()
    return Diagonal.of(layer.space, entries, name, with_lines(F.symmetry, layer.space, name))
