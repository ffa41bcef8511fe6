"""What an output metric names on the outputs of a network, and with it on every cotangent that comes back."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from ..likelihoods import EuclideanOutput, Likelihood, OutputMetric
from ..linear_maps import LinearMap
from ..samples import Sample
from ..symmetry import Structure, Symmetry
from .recording import Call

OUTPUTS = "outputs"


def symmetry_of_output(output: OutputMetric, bases: Sequence[str]) -> Symmetry:
    """A distribution names nothing; a Euclidean output the basis in which it is Euclidean; any other is a constant.

    `bases` are the names under which the outputs go: their own, and that of the last layer's S where this is the same.
    """
    if isinstance(output, Likelihood):
        return Symmetry.natural()
    kinds = ("form",) if isinstance(output, EuclideanOutput) else ("frame", "origin")
    structures = [Structure(base, kind, source=f"{output}") for base in bases for kind in kinds]
    return Symmetry.naming(*structures, weight=dict.fromkeys(bases, 2))


def output_bases(name: str, z: Tensor, calls: Sequence[Call]) -> list[str]:
    """`name.outputs`, and the S of a layer whose output is the network's, as it stands."""
    last = [call for call in calls if z.requires_grad and call.edge == get_gradient_edge(z)]
    spaces = [base for call in last for base in call.reader.output_space.bases]
    return list(dict.fromkeys([f"{name}.{OUTPUTS}", *spaces]))


def marked(cotangents: Sample, output: OutputMetric, symmetry: Symmetry) -> Sample:
    """Cotangents that know what the output metric they come from has named."""
    if symmetry != Symmetry.natural():
        root = LinearMap.identity(cotangents.space)
        root.name, root.symmetry = f"{output}", symmetry ** Fraction(1, 2)
        cotangents.through = (root,)
    return cotangents
