"""The loss of a batch to second order, as a cost laid out along the stages of a network.

Of the loss itself (Newton) the stages have curvature of their own: with the costate p of a stage's output, which is the
differential of the loss there, they are the second derivatives of p(f(x, w)), and the output has the Hessian of the
loss. A Gauss-Newton or Fisher model has the output metric at the end and nothing else upstream, unless inner products
on hidden activations are added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..elements import Covector
from ..errors import InvalidSetting, SpaceMismatch
from ..inner_products import InnerProduct
from ..likelihoods import Likelihood, OutputMetric
from ..linear_maps import LinearMap
from ..networks import Network
from ..networks.linearization import OutputForm, linearization_of, linearized
from ..networks.recording import Call
from ..networks.rows import by_row
from ..networks.stages import segments_of, stages_of
from ..solvers import Stage, Stages
from ..solvers.recursion import check_dense
from ..spaces import Space
from ..symmetry import Symmetry
from .curvature import curvature_of

Activations = Mapping[str, InnerProduct]


@dataclass(frozen=True, eq=False)
class LossModel:
    """The loss near the parameters, loss + df(v) + ½ C(v, v), with C along `stages`, not damped yet."""

    stages: Stages
    differential: Covector
    kind: str


def gauss_newton_model(
    network: Network, x: Any, y: Any, output: OutputMetric | None = None, activations: Activations | None = None
) -> LossModel:
    """Of the output metric, by default the likelihood's Fisher, pulled back along the network.

    `activations` adds inner products on hidden pre-activations, by the path of a layer: h on `network.blocks[path]
    .output_space` counts the mean over examples, and the sum over sites, of h(ds, ds).
    """
    lin = linearized(network, x)
    at_outputs = OutputForm(lin.outputs, lin.z, network.likelihood if output is None else output, Symmetry.natural())
    stages = with_activations(stages_of(lin, at_outputs.rows_map), lin.calls, network, activations or {})
    return LossModel(stages, network.differential(x, y), "Gauss-Newton")


def newton_model(
    network: Network, x: Any, y: Any, activations: Activations | None = None, limit: int = 2**27
) -> LossModel:
    """Of the loss itself. It may be indefinite; where it is, the damping has to make up for it.

    States are dense here, so the numbers that a stage takes are bounded by `limit` before any are made.
    """
    with sdpa_kernel(SDPBackend.MATH):
        z, calls = network._seen(x)
    lin = linearization_of(network, x, z, calls)
    segments = segments_of(lin, network.name)
    costate, hessian = at_loss(network.likelihood, z, y, lin.outputs)
    each: list[Stage] = []
    for segment in reversed(segments):
        stage = Stage(segment.after.name, segment.blocks, segment.after.space, segment.A, segment.B)
        check_dense(stage, limit)
        each.append(replace(stage, curvature=curvature_of(segment, network, costate)))
        if segment.A is not None:
            costate = segment.A._transpose(costate)
    each[0] = replace(each[0], form=hessian)
    stages = with_activations(Stages(network.tangent_space, tuple(reversed(each))), calls, network, activations or {})
    return LossModel(stages, network.differential(x, y), "Newton")


def at_loss(likelihood: Likelihood, z: Tensor, y: Any, space: Space) -> tuple[Tensor, LinearMap]:
    """The differential of the loss at the outputs, and its Hessian there."""
    with torch.enable_grad():
        at = z.detach().clone().requires_grad_(True)
        (g,) = torch.autograd.grad(likelihood.loss(at, y), [at], create_graph=True)

    def along(row: Tensor) -> Tensor:
        if not g.requires_grad:
            return torch.zeros_like(row)
        (moved,) = torch.autograd.grad(g, [at], row.view(at.shape), retain_graph=True, allow_unused=True)
        return torch.zeros_like(row) if moved is None else moved.flatten()

    def apply(x: Tensor) -> Tensor:
        return by_row(along, x)

    return g.detach().flatten(), LinearMap.from_functions(space, space.dual, apply, apply, "Hessian of the loss", True)


def with_activations(stages: Stages, calls: Any, network: Network, forms: Activations) -> Stages:
    """With inner products on the values of layers that are cuts, and not the last."""
    hidden = {stage.name: i for i, stage in enumerate(stages.each[:-1])}
    each = list(stages.each)
    for path, h in forms.items():
        if path not in hidden:
            raise InvalidSetting(
                f"InvalidSetting in activations: {path!r} is no hidden state of {network.name}; its hidden states are "
                f"the values of {', '.join(map(repr, hidden)) or 'no layer'}. The outputs have output=..."
            )
        space = network.blocks[path].output_space
        if not isinstance(h, InnerProduct) or h.space != space:
            raise SpaceMismatch(
                f"SpaceMismatch in activations: expected an inner product on {space} for {path!r}, got {h!r}."
            )
        (call,) = [call for call in calls if call.path == path]
        i = hidden[path]
        each[i] = replace(each[i], rows=root_on(call, h, each[i].outputs))
    return replace(stages, each=tuple(each))


def root_on(call: Call, h: InnerProduct, space: Space) -> LinearMap:
    """A root of the mean over examples, and the sum over sites, of a form on the values of one use."""
    n, like = call.shape[0], torch.empty(0, dtype=call.x.dtype, device=call.x.device)
    values, vectors = torch.linalg.eigh(h.dense_matrix(like))
    root = vectors * values.clamp(min=0).sqrt()  # h = root rootᵀ

    def seen(row: Tensor) -> Tensor:
        return call.cotangents(row.view(call.shape), n).flatten(2) / n**0.5

    def apply(x: Tensor) -> Tensor:
        return by_row(lambda row: (seen(row) @ root).flatten(), x)

    def transpose(y: Tensor) -> Tensor:
        def back(row: Tensor) -> Tensor:
            zero = row.new_zeros(space.dim)
            at, pull = torch.func.vjp(seen, zero)[:2]
            return pull(row.view(at.shape) @ root.mT)[0]

        return by_row(back, y)

    return LinearMap.from_functions(space, Space(f"root of {h.expression()}", space.dim), apply, transpose, "root")
