"""Samples of a joint batch whose moments are added up when a metric reads them.

For metrics that read more of a layer than the moments of its inputs and cotangents: reduced sites, gradients. What a
metric does to single elements it cannot do to those of other processes, and says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ...errors import ObservationMismatch
from ...networks.observation import LayerObservation, Observation
from ...samples import Compact, OneHot, Sample
from .pieces import Piece, mass_of, mirrored, piece, unpacked
from .wire import Wire


class Apart(Compact):
    """Elements on several processes, of which their second moment can be had. To read it is a collective operation."""

    dear = True

    def __init__(self, own: Sample, of: Piece, unit: float, total: Callable[[], Tensor]):
        self.own, self.of, self.unit, self.total = own, of, unit, total
        self.counts, self.members = own.counts, of.members
        self._moment: Tensor | None = None

    def tensor(self) -> Tensor:
        return self.own.tensor()

    def dense(self) -> Tensor:
        raise ObservationMismatch(
            f"ObservationMismatch: single elements of {self.own} are asked for, and they are on several processes. "
            f"Metrics that read samples by second_moment(...) alone are of the joint batch, as KFAC(); with another "
            f"one train in one process."
        )

    def moments(self, weight: float) -> Tensor:
        if self._moment is None:
            self._moment = mirrored(unpacked(self.total(), self.of.members, self.of.side))
        return self._moment * (weight / self.unit)

    def squares(self) -> Tensor:
        return self.moments(self.unit).diagonal(dim1=-2, dim2=-1).sum()


def apart(wire: Wire, own: Sample, of: Piece) -> Sample:
    """The joint sample of which every process has a part."""

    def total() -> Tensor:
        mass = mass_of(own)
        dtype = own.tensor().dtype
        flat = torch.cat([of.packed(own, dtype) * mass, torch.full((1,), mass, dtype=dtype, device=own.device)])
        summed = wire.start_sum(flat, "statistics").wait()
        return summed[:-1] / summed[-1] if float(summed[-1]) else summed[:-1]

    measure = replace(own.measure, mask=None)
    if of.diagonal:
        return of.sample(own, total(), own.counts[0])
    unit = measure.weights(own.counts)
    assert isinstance(unit, float)
    whole = Sample(own.space, Apart(own, of, unit, total), measure, own.name)
    whole.through = own.through
    return whole


class JointLayer(LayerObservation):
    """One layer of a joint batch; of what is read, every process reads all."""

    @classmethod
    def of(cls, own: LayerObservation, wire: Wire, full: int) -> JointLayer:
        back = own._cotangents
        mine = cls(own.path, own.A, own.S, own.inputs, back, None, None, own._estimator)
        mine.own, mine.wire, mine.full = own, wire, full
        mine.read = {}
        return mine

    own: LayerObservation
    wire: Wire
    full: int
    read: dict[str, Sample]

    def _once(self, name: str, make: Callable[[], Sample], diagonal: bool = False) -> Sample:
        if name not in self.read:
            own = make()
            diagonal = diagonal or isinstance(own.data, OneHot)
            self.read[name] = apart(self.wire, own, piece(self.path, False, diagonal, own.space))
        return self.read[name]

    @property
    def inputs(self) -> Sample:
        return self._once("inputs", lambda: self.own.inputs)

    @property
    def cotangents(self) -> Sample:
        constant = self.A.dim == 1 and not self.A.bases and self.S.dim > self.full
        return self._once("cotangents", lambda: self.own.cotangents, constant)

    @property
    def aligned(self) -> Sample:
        return self.cotangents

    @property
    def gradients(self) -> Sample:
        return self._once("gradients", lambda: self.own.gradients)

    def reduced(self) -> LayerObservation:
        return JointLayer.of(self.own.reduced(), self.wire, self.full)


def joint_of(own: Observation, wire: Wire, full: int) -> Observation:
    layers = {path: JointLayer.of(layer, wire, full) for path, layer in own.layers.items()}
    return Observation(own.space, layers, own.outputs, own.estimator, own.output, own.output_symmetry)
