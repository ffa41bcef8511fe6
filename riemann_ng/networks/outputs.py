"""How a module is called and which tensor of what it returns is its output."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..errors import ShapeMismatch, UnsupportedLayer


def call_module(module: nn.Module, x: Any) -> Any:
    """`module(x)`; a tuple or a list are positional arguments, a mapping whose keys it names keyword arguments."""
    if isinstance(x, (tuple, list)) and not hasattr(x, "_fields"):
        return module(*x)
    if isinstance(x, Mapping) and set(x) <= keywords_of(module):
        return module(**x)
    return module(x)


def keywords_of(module: nn.Module) -> set[str]:
    signature = inspect.signature(module.forward)
    named = {n for n, p in signature.parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return named


def read_output(output: Any) -> Tensor:
    """What a likelihood is about: a tensor, the `logits` of a structure, or its only floating-point tensor."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and isinstance(output.get("logits"), Tensor):
        return output["logits"]
    if isinstance(getattr(output, "logits", None), Tensor):
        return output.logits
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        output = {f.name: getattr(output, f.name) for f in dataclasses.fields(output)}
    tensors = [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]
    if len(tensors) != 1:
        raise UnsupportedLayer(
            f"UnsupportedLayer in Network: the module returns {type(output).__name__} with {len(tensors)} "
            f"floating-point tensors. Say which is the output: from_torch(..., read=lambda out: out['name'])."
        )
    return tensors[0]


@contextmanager
def standing_in(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Other tensors in the place of some parameters, by name, wherever those are held.

    `torch.func.functional_call` restores a module that is held under two names to the tensors that stood in for it.
    """
    named = dict(module.named_parameters())
    new = {id(named[name]): tensor for name, tensor in tensors.items()}
    swapped: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for m in module.modules():
            for local, p in list(m._parameters.items()):
                if p is not None and id(p) in new:
                    swapped.append((m, local, p))
                    put(m, local, new[id(p)])
        yield
    finally:
        for m, local, p in swapped:
            put(m, local, p)


def put(module: nn.Module, local: str, tensor: Tensor) -> None:
    module._parameters[local] = tensor  # type: ignore[assignment]
    if isinstance(module, nn.RNNBase):  # recurrent modules keep a second list of their parameters
        module._flat_weights[module._flat_weights_names.index(local)] = tensor


def examples_in(x: Any) -> int:
    """The number of examples: the first dimension of every tensor of a batch."""
    sizes = {t.shape[0] if t.ndim else 0 for t in tree_leaves(x) if isinstance(t, Tensor)}
    if len(sizes) != 1:
        raise ShapeMismatch(
            f"ShapeMismatch in Network: examples are the first dimension of every tensor of a batch, "
            f"got sizes {sorted(sizes)}."
        )
    n = sizes.pop()
    if n == 0:
        raise ShapeMismatch("ShapeMismatch in Network: a batch of no examples.")
    return n


def first_examples(x: Any, count: int) -> Any:
    """The batch's first examples."""
    return tree_map(lambda t: t[:count] if isinstance(t, Tensor) else t, x)
