"""What a network gives at a batch, as covectors: the differentials of its outputs at the parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..elements import Element, describe
from ..errors import InvalidSetting, InvalidTargets, NonFinite, ShapeMismatch, SpaceMismatch
from ..likelihoods import OutputMetric
from ..likelihoods.layout import Layout
from ..likelihoods.roots import BlockRoot
from ..networks import Exact, Network
from ..networks.outputs import examples_in
from ..networks.precision import at_least_single
from ..networks.running import untouched_randomness

CALL = "remember"
BUDGET = 1 << 24
"""Numbers that the covectors of one piece may hold."""


class Chosen(OutputMetric):
    """The form Σ e eᵀ over some basis covectors e of the outputs of each example, `columns` (n, k, *outputs)."""

    def __init__(self, columns: Tensor):
        self.columns = columns

    def root(self, z: Tensor) -> BlockRoot:
        return BlockRoot(Layout(None), z.shape, self.columns.flatten(2).mT[:, None].to(z))

    def kernel(self, z: Tensor) -> Tensor | None:
        return None

    def __repr__(self) -> str:
        return "Chosen(outputs)"


def covectors_at(network: Network, x: Any, y: Any = None, outputs: Sequence[int] | None = None) -> Iterator[Tensor]:
    """The differentials of outputs at a batch, (some, dim) at a time, example by example.

    With labels y those of the true labels' outputs, with `outputs` those of these numbers, else of all.
    """
    z = outputs_at(network, x)
    columns = labelled(z, y) if y is not None else numbered(z, outputs)
    n, count = columns.shape[:2]
    size = max(2, BUDGET // (count * network.tangent_space.dim))
    starts = list(range(0, n, size))
    if len(starts) > 1 and n - starts[-1] == 1:  # one example alone does not show what is shared
        starts.pop()
    for start, stop in zip(starts, [*starts[1:], n], strict=True):
        part = tree_map(lambda t, a=start, b=stop: t[a:b] if isinstance(t, Tensor) else t, x)
        with network.observe(part, Exact(), Chosen(columns[start:stop])) as seen:
            yield seen.gradients.dense().flatten(0, 2).detach()


@torch.no_grad()
def outputs_at(network: Network, x: Any) -> Tensor:
    network.check_unchanged()
    examples_in(x)
    try:
        with untouched_randomness(network.module):
            z = at_least_single(network.outputs(x))
    except RuntimeError as error:
        raise ShapeMismatch(
            f"ShapeMismatch in {CALL}: the model cannot be run at this batch: {error}\n"
            f"Give inputs as in the loop, examples first; a tuple is its arguments."
        ) from error
    if not bool(z.isfinite().all()):
        raise NonFinite(f"NonFinite in {CALL}: the outputs at this batch hold NaN or infinity; nothing is remembered.")
    return z


def labelled(z: Tensor, y: Any) -> Tensor:
    """The covectors of the outputs of true labels, one for each site of an example."""
    last = isinstance(y, Tensor) and z.ndim > 1 and y.shape == z.shape[:-1]
    second = isinstance(y, Tensor) and z.ndim > 1 and y.shape == (z.shape[0], *z.shape[2:])
    if not isinstance(y, Tensor) or y.is_floating_point() or not (last or second):
        raise InvalidTargets(
            f"InvalidTargets in {CALL}: labels are whole numbers, one for each place of outputs {describe(z)}, got "
            f"{describe(y)}. Of outputs without labels remember all, remember(x), or some: remember(x, outputs=[0])."
        )
    axis = z.ndim - 1 if last else 1
    if not bool(((y >= 0) & (y < z.shape[axis])).all()):
        raise InvalidTargets(
            f"InvalidTargets in {CALL}: labels of {z.shape[axis]} classes are 0 to {z.shape[axis] - 1}, got "
            f"{int(y.min())} to {int(y.max())}. Leave out what has no label."
        )
    each = z.shape[1:].numel() // z.shape[axis]
    numbers = torch.arange(z.shape[1:].numel(), device=z.device).reshape(z.shape[1:])
    found = numbers.movedim(axis - 1, -1).expand(*y.shape, -1).gather(-1, y.to(z.device)[..., None])
    return one_hot(z, found.reshape(len(z), each))


def numbered(z: Tensor, outputs: Sequence[int] | None) -> Tensor:
    """The covectors of outputs by their numbers, counted through all of an example."""
    size = z.shape[1:].numel()
    numbers = list(range(size)) if outputs is None else list(outputs)
    whole = all(isinstance(k, int) and not isinstance(k, bool) and 0 <= k < size for k in numbers)
    if not numbers or not whole or len(set(numbers)) < len(numbers):
        raise InvalidSetting(
            f"InvalidSetting in {CALL}: outputs={numbers}, expected different whole numbers from 0 to {size - 1}: an "
            f"example has {size} outputs."
        )
    return one_hot(z, torch.tensor(numbers, device=z.device).expand(len(z), -1))


def one_hot(z: Tensor, numbers: Tensor) -> Tensor:
    size = z.shape[1:].numel()
    return torch.nn.functional.one_hot(numbers, size).to(z).reshape(*numbers.shape, *z.shape[1:])


def given(network: Network, covectors: Element) -> Iterator[Tensor]:
    """Covectors that somebody has ready, as rows."""
    space = network.tangent_space.dual
    if covectors.lives_in != space:
        raise SpaceMismatch(
            f"SpaceMismatch in {CALL}: expected covectors on the tangent space of {network.name}, got {covectors}. "
            f"Differentials of outputs of another model say nothing of this one."
        )
    yield at_least_single(covectors.components.detach()).reshape(-1, space.dim).clone()
