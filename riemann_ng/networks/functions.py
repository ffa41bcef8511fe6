"""Plain functions f(parameters, x) as networks: no modules, no layers, and the same metrics.

The parameters are constant maps of the one-point space, known by their per-example gradients: the full Fisher is exact
on them, and layerwise metrics are what they are on a constant block, one for each tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import (
    GetAttrKey,
    MappingKey,
    SequenceKey,
    tree_flatten_with_path,
    tree_map,
    tree_unflatten,
)

from ..elements import Vector
from ..errors import InvalidSetting, UnsupportedLayer
from ..spaces import DirectSum
from .outputs import examples_in
from .precision import tolerance
from .running import untouched_randomness
from .verification import agree

if TYPE_CHECKING:
    from .network import Network

Function = Callable[..., Any]
"""f(parameters, x) -> outputs; a tuple x is several arguments."""
KEPT: WeakKeyDictionary[DirectSum, Network] = WeakKeyDictionary()
"""Networks that live as long as a vector of theirs."""


class FunctionModule(nn.Module):
    """The module x ↦ f(parameters, x), whose own parameters are the floating-point tensors of a tree.

    Their names are the keys on the way to them, joined by dots; a lone tensor is called "parameters". Memory is shared
    with the tensors given, so that a network that moves its parameters moves those. Other leaves stay as they are.
    """

    def __init__(self, f: Function, parameters: Any):
        super().__init__()
        leaves, self.tree = tree_flatten_with_path(parameters)
        self.f, self.leaves = f, [leaf for _, leaf in leaves]
        self.places: dict[str, int] = {}
        known: dict[int, nn.Parameter] = {}
        for at, (path, leaf) in enumerate(leaves):
            if not isinstance(leaf, Tensor) or not (leaf.is_floating_point() or leaf.is_complex()):
                continue
            name = ".".join(str(part_of(entry)) for entry in path) or "parameters"
            if name in self.places:
                raise InvalidSetting(
                    f"InvalidSetting in Network.from_function: two parameters are called {name!r}. Names are the keys "
                    f"on the way to a tensor, joined by dots: rename one."
                )
            self.places[name] = at
            # past register_parameter, which refuses dots and the names of a module's own methods
            self._parameters[name] = known.setdefault(id(leaf), nn.Parameter(leaf.detach()))
        if not self.places:
            raise InvalidSetting(
                f"InvalidSetting in Network.from_function: expected a floating-point tensor or a tree of them (dicts, "
                f"lists, tuples) as parameters, got {type(parameters).__name__} with none."
            )

    def as_given(self, tensors: Mapping[str, Any]) -> Any:
        """Tensors by name in the shape of the tree that the parameters came in."""
        leaves = list(self.leaves)
        for name, at in self.places.items():
            leaves[at] = tensors[name]
        return tree_unflatten(leaves, self.tree)

    def forward(self, *x: Any) -> Any:
        return self.f(self.as_given(self._parameters), *x)


def part_of(entry: Any) -> object:
    """What a step into a tree goes by: the key of a mapping, the index of a sequence, the name of a field."""
    if isinstance(entry, MappingKey):
        return entry.key
    if isinstance(entry, SequenceKey):
        return entry.idx
    return entry.name if isinstance(entry, GetAttrKey) else entry


def function_module(f: object, parameters: Any) -> FunctionModule:
    if isinstance(f, nn.Module):
        raise InvalidSetting(
            "InvalidSetting in Network.from_function: got a module, expected a function f(parameters, x). "
            "A module is read by Network.from_torch(module, likelihood)."
        )
    if not callable(f):
        raise InvalidSetting(
            f"InvalidSetting in Network.from_function: expected a function f(parameters, x), got {f!r}."
        )
    return FunctionModule(f, parameters)


def keeping(network: Network, vector: Vector) -> Vector:
    """The vector, keeping a network that nobody else holds for as long as its space, or a sum with it, is in use.

    Only the network knows how its tangent space lies in parameters.
    """
    space = DirectSum(list(network.tangent_space.parts))  # an object of its own: the network itself holds the other
    KEPT[space] = network
    return Vector._of(space, vector._data, vector._blocks)


def check_apart(network: Network, x: Any, z: Tensor) -> None:
    """Refuses a function whose output at one example depends on the others, or on chance.

    A module shows in its layers where the examples stand; a function is only known by what it returns.
    """
    n = examples_in(x)
    if not isinstance(network.module, FunctionModule) or n < 2:
        return
    for one in sorted({0, n // 2}):
        alone = tree_map(lambda t: t[one : one + 1] if isinstance(t, Tensor) else t, x)  # noqa: B023
        with torch.no_grad(), untouched_randomness(network.module):
            row = network.outputs(alone).detach()
        z_row = z[one : one + 1].detach()
        both_zero = row.shape == z_row.shape and not bool(row.any() or z_row.any())
        if not both_zero and not agree(row, z_row, tolerance(z, *network.parameters.values())):
            raise UnsupportedLayer(
                f"UnsupportedLayer in Network.from_function: the output of {name_of(network.module.f)} at an example "
                f"is another one when the example stands alone, so the examples of a batch are coupled, or chance "
                f"takes part. Per-example gradients do not exist; let f treat every example by itself."
            )


def name_of(f: object) -> str:
    return str(getattr(f, "__name__", type(f).__name__))
