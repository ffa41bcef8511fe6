"""From a forward pass that was watched to typed samples: what is sent back, and where it arrives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InvalidTargets, ShapeMismatch
from ..inner_products import InnerProduct
from ..likelihoods import Likelihood, OutputMetric
from ..samples import Compact, Folded, Measure, Multiple, OneHot, Sample
from ..spaces import Family, VectorSpace
from .constants import check_size
from .directions import Directions, moved
from .estimators import CurvatureProp, Empirical, Estimator, Exact, InputsOnly, MonteCarlo
from .exact import exact_observation
from .linearization import linearization_of, linearized
from .masks import block_mask, output_mask
from .observation import LayerObservation, Observation, in_draws, joined
from .output_symmetry import marked, output_bases, symmetry_of_output
from .precision import at_least_single
from .recording import Call, backpropagate

if TYPE_CHECKING:
    from .network import Network


def sent_back(
    network: Network,
    x: Any,
    z: Tensor,
    calls: Sequence[Call],
    estimator: Estimator,
    output: OutputMetric | None,
    mask: Tensor | None = None,
    keep: bool = False,
) -> Observation:
    """Sends back what the estimator says; `keep` the graph for others who want to."""
    output = network.likelihood if output is None else output
    if mask is None and isinstance(estimator, Empirical) and isinstance(estimator.targets, Tensor):
        mask = network.likelihood.mask(estimator.targets)
    if isinstance(estimator, Exact) and not keep and output.count(at_least_single(z.detach())) > estimator.chunk:
        return exactly(network, x, z, calls, estimator, output, mask)
    directions = cotangents(network, at_least_single(z.detach()), estimator, output)
    bare = {path: block.space.dim for path, block in network.blocks.items() if block.reader is None}
    check_size(z.shape[0], len(directions), bare)
    there = None if mask is None else output_mask(mask, z, output)
    directions = directions if there is None else [direction * there for direction in directions]
    arrived: list[list[Tensor | None]] = [[] for _ in calls]
    for k, direction in enumerate(directions):
        gradients = backpropagate(z, direction.to(z.dtype), calls, keep=keep or k + 1 < len(directions))
        for found, g in zip(arrived, gradients, strict=True):
            found.append(g)
    seen = assembled(network, x, z, calls, arrived, directions, estimator, output, mask)
    if isinstance(estimator, (Exact, Empirical)) and x is not None:
        seen.pulled_back_again = partial(again, network, x, z.detach(), output, there)
    return seen


def again(network: Network, x: Any, z: Tensor, output: OutputMetric, there: Tensor | None) -> InnerProduct:
    """The output metric pulled back along the network, linearized anew at a batch whose outputs are known."""
    linearization = linearized(network, x)
    if not torch.allclose(linearization.z, z, rtol=1e-6, atol=1e-6 * float(z.abs().max())):
        raise moved()
    return linearization.form(output, there)


def exactly(
    network: Network,
    x: Any,
    z: Tensor,
    calls: Sequence[Call],
    estimator: Exact,
    output: OutputMetric,
    mask: Tensor | None,
) -> Observation:
    """All exact directions, more than are worth stacking."""
    bare = {path: block for path, block in network.blocks.items() if block.reader is None}
    blocks = {path: block.names["value"] for path, block in bare.items() if path not in network._spreading}

    def constants(columns: Tensor) -> dict[str, Tensor]:
        gradients = network._per_example.gradients(x, columns.to(z.dtype))
        return {path: at_least_single(gradients[name][:, :, None]) for path, name in blocks.items()}

    seen = assembled(network, x, z, calls, [[] for _ in calls], [], estimator, output, mask)
    there = None if mask is None else output_mask(mask, z, output)
    directions = Directions(z, output, estimator.chunk, calls, constants, list(blocks), there)
    linearization = partial(linearization_of, network, x, z, calls)
    return exact_observation(seen, directions, mask is not None, linearization)


def assembled(
    network: Network,
    x: Any,
    z: Tensor,
    calls: Sequence[Call],
    arrived: Sequence[Sequence[Tensor | Compact | None]],
    directions: Sequence[Tensor],
    estimator: Estimator,
    output: OutputMetric,
    mask: Tensor | None,
    factor: float = 1.0,
) -> Observation:
    """The samples of every block, from the gradients that arrived at the outputs of each call, one a direction.

    They are to be multiplied by the factor, as the directions were. Half precision becomes float32 here.
    """
    n, layers = z.shape[0], {}
    constants = {}
    if directions and network._per_example.names:
        constants = network._per_example.gradients(x, torch.stack([d.to(z.dtype) for d in directions], 1))
    symmetry = symmetry_of_output(output, output_bases(network.name, z, calls))
    kind = "monte carlo" if isinstance(estimator, (MonteCarlo, CurvatureProp)) else "exact"
    ones = at_least_single(z.detach()).new_ones(())
    with torch.autocast(z.device.type, enabled=False):
        for path, block in network.blocks.items():
            S, A = block.output_space, block.input_space
            inputs: Tensor | OneHot | Compact = ones.expand(n, 1, 1, *A.shape)
            back: Tensor | OneHot | Compact | None = None
            there: Tensor | None = None
            mine = [(call, found) for call, found in zip(calls, arrived, strict=True) if call.path == path]
            if block.reader is None and path not in network._spreading:
                back = at_least_single(constants[block.names["value"]][:, :, None]) if directions else None
            elif mine:
                each = [call.data(n) for call, _ in mine]
                inputs = joined(each, A)
                if mask is not None:
                    there = block_mask(mask, [Sample(A, features).counts[2] for features in each])
                if directions:
                    back = joined([cotangents_of(call, found, S, z) for call, found in mine], S)
                    if factor != 1 and isinstance(back, Folded):
                        back = back.times(factor)
                    elif factor != 1 and isinstance(back, Tensor):
                        back = Multiple(factor, back, S.members if isinstance(S, Family) else 1)
            else:  # not used in this forward: the Fisher is zero there
                inputs = ones.new_zeros(n, 1, 1, *A.shape)
                back = ones.new_zeros(n, len(directions), 1, *S.shape) if directions else None
            measure = Measure(kind, there)
            returned = None if back is None else Sample(S.dual, back, measure, f"cotangents of {path}")
            layers[path] = LayerObservation(
                path,
                A,
                S,
                Sample(A, inputs, Measure.probability(there), f"inputs of {path}"),
                None if returned is None else marked(returned, output, symmetry),
                map_of=None if block.partly_frozen else partial(map_of, network, path),
                estimator=estimator,
            )
    masked = any(layer.inputs.measure.mask is not None for layer in layers.values())
    if mask is not None and not masked and output_mask(mask, z, output) is None:
        raise ShapeMismatch(
            f"ShapeMismatch in {network.name}.observe: a mask of {mask[0].numel()} sites fits neither the output nor "
            f"any layer."
        )
    return Observation(network.tangent_space, layers, z.detach(), estimator, output, symmetry)


def cotangents_of(call: Call, found: Sequence[Tensor | Compact | None], S: VectorSpace, z: Tensor) -> Tensor | Compact:
    """What arrived at the output of a call, one for each direction; what was folded there is one, and as it is."""
    first = found[0]
    if isinstance(first, Compact):
        return first
    n, there = z.shape[0], [call.zeros(z) if g is None else g for g in found]
    return in_draws([call.cotangents(g, n) for g in there if isinstance(g, Tensor)], S)


def map_of(network: Network, path: str) -> Tensor:
    """A block's parameters as its affine map, as they are by now."""
    tensors = {name: p.detach() for name, p in network.parameters.items()}
    return at_least_single(network.blocks[path].gather(tensors))


def cotangents(network: Network, z: Tensor, estimator: Estimator, output: OutputMetric) -> list[Tensor]:
    """The cotangents of the outputs that an estimator sends back, each shaped like z."""
    if isinstance(estimator, InputsOnly):
        return []
    if isinstance(estimator, Exact):
        return list(output.directions(z).unbind(1))
    if isinstance(estimator, Empirical):
        if estimator.targets is None:
            raise InvalidTargets(
                f"InvalidTargets in {network.name}.observe: Empirical() without targets means the loss's own "
                f"backward. Give Empirical(targets), or watch the training loop: with network.watch() as tape: ... "
                f"loss.backward(), then tape.observe(Empirical())."
            )
        network.likelihood.validate(z, estimator.targets)
        return [network.likelihood.score(z, estimator.targets)]
    assert isinstance(estimator, (MonteCarlo, CurvatureProp))
    network._observations += 1
    number = estimator.seed * 1_000_003 + network._observations
    generator = torch.Generator(z.device).manual_seed(number % 2**63)
    draws = estimator.samples if isinstance(estimator, MonteCarlo) else 1
    if isinstance(estimator, MonteCarlo) and isinstance(output, Likelihood):
        return list(output.sampled_cotangents(z, generator, draws).unbind(1))
    shape = (draws, z.shape[0], output.count(z))
    signs = torch.randint(0, 2, shape, generator=generator, device=z.device).to(z) * 2 - 1
    return [output.combine(z, w) for w in signs]
