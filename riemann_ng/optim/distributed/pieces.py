"""Second moments as they travel: their lower triangles, one behind the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...errors import InvalidSetting
from ...inner_products import second_moment
from ...networks import Network
from ...networks.observation import LayerObservation, Observation
from ...networks.readers import EmbeddingReader
from ...samples import Folded, Measure, OneHot, Sample
from ...spaces import Family, VectorSpace


@dataclass(frozen=True)
class Piece:
    """The moment of one sample of one layer: `members` matrices of a side, or a diagonal."""

    path: str
    cotangents: bool
    diagonal: bool
    members: int
    side: int
    constant: bool = False
    """Whether the layer is a constant map: a bare parameter."""

    @property
    def numbers(self) -> int:
        return self.members * (self.side if self.diagonal else self.side * (self.side + 1) // 2)

    def packed(self, sample: Sample, dtype: torch.dtype) -> Tensor:
        """The moment of a sample, flat."""
        form = second_moment(sample)
        if self.diagonal:
            return form.diagonal_entries().to(dtype)
        M = form.member_matrices().reshape(self.members, self.side, self.side)
        return packed(M).to(dtype)

    def sample(self, hollow: Sample, moment: Tensor, n: int) -> Sample:
        """A sample of n examples that has this moment; of the one given only what it is called is kept."""
        _, k, t = hollow.counts
        if self.diagonal:
            data = OneHot(torch.arange(self.numbers, device=moment.device).reshape(-1, 1, 1), moment.dtype)
            weights = moment.clamp(min=0).reshape(-1, 1, 1)
            whole = Sample(hollow.space, data, Measure("weighted", given=weights), hollow.name)
        else:
            counts = (n, k, t)
            unit = hollow.measure.weights(counts)
            assert isinstance(unit, float)
            matrices = unpacked(moment, self.members, self.side)
            whole = Sample(hollow.space, Folded(matrices, unit, counts), hollow.measure, hollow.name)
        whole.through = hollow.through
        return whole


def packed(M: Tensor) -> Tensor:
    """Symmetric matrices (m, d, d) by their lower triangles, flat."""
    i, j = torch.tril_indices(M.shape[-1], M.shape[-1], device=M.device)
    return M[:, i, j].flatten()


def unpacked(flat: Tensor, members: int, side: int) -> Tensor:
    """The matrices again, on and below their diagonals; zero above."""
    i, j = torch.tril_indices(side, side, device=flat.device)
    M = flat.new_zeros(members, side, side)
    M[:, i, j] = flat.reshape(members, -1)
    return M


def mirrored(lower: Tensor) -> Tensor:
    return lower + lower.tril(-1).mT


def pieces_of(network: Network, full: int, cotangents: bool) -> list[Piece]:
    """The moments of all layers, in their order: of inputs, and of cotangents if the metric looks at them.

    Constant blocks of more than `full` numbers are known by their diagonal, and one-hot inputs have no more.
    """
    found = []
    for path, block in network.blocks.items():
        A, S = block.input_space, block.output_space
        constant = A.dim == 1 and not A.bases
        found.append(piece(path, False, isinstance(block.reader, EmbeddingReader), A, constant))
        if cotangents:
            found.append(piece(path, True, constant and S.dim > full, S, constant))
    return found


def piece(path: str, cotangents: bool, diagonal: bool, space: VectorSpace, constant: bool = False) -> Piece:
    members = space.members if isinstance(space, Family) and not diagonal else 1
    return Piece(path, cotangents, diagonal, members, space.dim // members, constant)


def sample_of(layer: LayerObservation, cotangents: bool) -> Sample:
    return layer.cotangents if cotangents else layer.inputs


def mass_of(sample: Sample) -> float:
    """How much a sample weighs beside others: the number of its elements, of examples where their weights add up."""
    n, k, t = sample.counts
    measure = sample.measure
    if measure.kind == "weighted":
        raise InvalidSetting(
            f"InvalidSetting in NaturalGradient: {sample} has weights of its own, which say nothing of what other "
            f"processes have. Train with one process."
        )
    if measure.kind != "probability":
        return float(n * k if measure.kind == "monte carlo" else n)
    return float(n * k * t) if measure.mask is None else float(measure.mask.sum()) * k


def hollowed(seen: Observation) -> Observation:
    """An observation without its numbers: what its samples are called, and what they are samples of."""
    layers = {}
    for path, layer in seen.layers.items():
        back = layer._cotangents
        layers[path] = layer._with(hollow(layer.inputs), None if back is None else hollow(back), None)
    return Observation(seen.space, layers, seen.outputs, seen.estimator, seen.output, seen.output_symmetry)


def hollow(sample: Sample) -> Sample:
    data = Folded(sample.tensor().new_empty(0), 1.0, sample.counts)
    other = Sample(sample.space, data, replace(sample.measure, mask=None), sample.name)
    other.through = sample.through
    return other


def filled(hollow: Observation, pieces: Sequence[Piece], moments: Sequence[Tensor], n: int) -> Observation:
    """The observation of n examples with these moments."""
    found = {(p.path, p.cotangents): (p, moment) for p, moment in zip(pieces, moments, strict=True)}
    layers = {}
    for path, layer in hollow.layers.items():
        samples: list[Sample | None] = []
        for cotangents in (False, True):
            known = found.get((path, cotangents))
            if known is None:
                samples.append(None)
                continue
            empty = sample_of(layer, cotangents)
            samples.append(known[0].sample(empty, known[1].to(empty.tensor().dtype), n))
        inputs, back = samples
        assert inputs is not None
        layers[path] = layer._with(inputs, back, None)
    seen = hollow
    return Observation(seen.space, layers, seen.outputs, seen.estimator, seen.output, seen.output_symmetry)
