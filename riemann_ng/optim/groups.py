"""Parameter groups of torch, and the typed tangent space."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ..elements import Covector, Vector
from ..errors import InvalidSetting
from ..networks import Network

OWN = {"params", "lr", "weight_decay", "param_names"}


def grouped(network: Network, params: Iterable[Any] | None) -> list[dict[str, Any]]:
    """The groups given, held against the trained parameters of the network: each in one group, and none else.

    Parameters may come with their names, as `named_parameters` gives them.
    """
    trained = network.parameters
    given: list[Any] = list(trained.items()) if params is None else list(params)
    groups = [dict(group) for group in given] if given and isinstance(given[0], Mapping) else [{"params": given}]
    names = {id(p): name for name, p in trained.items()}
    seen: set[int] = set()
    for group in groups:
        held = group["params"]
        group["params"] = [held] if isinstance(held, torch.Tensor) else list(held)
        seen |= {id(p) for p in map(bare, group["params"]) if p.requires_grad}
    left = [name for key, name in names.items() if key not in seen]
    strange = len(seen - set(names))
    if left or strange:
        raise InvalidSetting(
            f"InvalidSetting in NaturalGradient: params=[...] must hold every trained parameter of the model and "
            f"nothing else; {f'{left} are missing' if left else f'{strange} are not its own'}. Freeze what is not "
            f"trained with requires_grad_(False) before the optimizer is made."
        )
    return groups


def bare(given: Any) -> torch.Tensor:
    return given[1] if isinstance(given, tuple) else given


def check_group(group: Mapping[str, Any]) -> None:
    """A group has a learning rate and a weight decay of its own; the rest is one for all."""
    if strange := sorted(set(group) - OWN):
        raise InvalidSetting(
            f"InvalidSetting in NaturalGradient: a group with {', '.join(map(repr, strange))}; groups differ in 'lr' "
            f"and 'weight_decay'. Anything else is of the whole metric, and is given to the optimizer."
        )
    for name in ("lr", "weight_decay"):
        value = float(group[name])
        if not 0 <= value < float("inf"):
            raise InvalidSetting(
                f"InvalidSetting in NaturalGradient: {name}={group[name]!r}, expected a number of 0 or more."
            )


def relative_rates(network: Network, groups: Sequence[Mapping[str, Any]], v: Vector) -> Vector:
    """The vector with every parameter's part times its group's learning rate over the largest one."""
    rates = [float(group["lr"]) for group in groups]
    largest = max(rates)
    if len(set(rates)) == 1 or largest == 0:
        return v
    share = {id(p): rate / largest for group, rate in zip(groups, rates, strict=True) for p in group["params"]}
    parts, parameters = v.to_parameters(), network.parameters
    return network.vector({name: parts[name] * share[id(p)] for name, p in parameters.items()})


def gradient_of(network: Network, factor: float | torch.Tensor | None) -> Covector | None:
    """The differential in `.grad`, times a factor; None where there is none."""
    parameters = network.parameters
    if all(p.grad is None for p in parameters.values()):
        return None
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters.items()}
    df = network.covector({name: g.to_dense() if g.is_sparse else g for name, g in found.items()})
    return df if factor is None else df * factor


def decay_weights(groups: Sequence[Mapping[str, Any]]) -> None:
    """Weights shrink by their group's lr * weight_decay."""
    for group in groups:
        if group["weight_decay"]:
            torch._foreach_mul_(group["params"], 1 - float(group["lr"]) * group["weight_decay"])
