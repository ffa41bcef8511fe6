"""States of linear maps and of spaces, for the forms that hold some: tensors, numbers and strings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from .. import actions
from ..linear_maps import LinearMap
from ..spaces import (
    AffineSpace,
    Derived,
    DirectSum,
    Dual,
    Family,
    Hull,
    OnePoint,
    Product,
    Space,
    Translations,
)
from ..symmetry import Symmetry


@dataclass(frozen=True, eq=False)
class OnMembers:
    """One action on each member of a family."""

    action: actions.Action
    members: int

    def __call__(self, x: Tensor) -> Tensor:
        return self.action(x.unflatten(-1, (self.members, -1))).flatten(-2)


ACTIONS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        OnMembers, actions.Same, actions.Times, actions.TimesTransposed, actions.Pad, actions.Cut, actions.AlongPoint,
        actions.ValueAt, actions.LessPoint, actions.ZeroAt, actions.Then, actions.OnBoth,
    )
}  # fmt: skip
SPACES: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (AffineSpace, Derived, Dual, Family, Hull, Product, Space, Translations)
}


class NoState(Exception):
    """The short cause: something is held that is no tensor, number or string."""


def map_to_state(phi: LinearMap) -> dict[str, Any]:
    """Of a map that the library made or that has a matrix; functions from outside cannot be stored."""
    return {
        "domain": to_state(phi.domain), "codomain": to_state(phi.codomain), "name": phi.name,
        "apply": to_state(phi._apply), "transpose": to_state(phi._transpose), "matrix": to_state(phi._matrix),
        "tensors": list(phi._tensors), "symmetry": None if phi.symmetry is None else phi.symmetry.to_state(),
    }  # fmt: skip


def map_from_state(state: Mapping[str, Any]) -> LinearMap:
    symmetry = None if state["symmetry"] is None else Symmetry.from_state(state["symmetry"])
    domain, codomain, apply, transpose, matrix = (
        from_state(state[part]) for part in ("domain", "codomain", "apply", "transpose", "matrix")
    )
    phi = LinearMap._build(domain, codomain, apply, transpose, matrix, state["name"], symmetry)
    phi._tensors = tuple(state["tensors"])
    return phi


def to_state(value: Any) -> Any:
    """A space, an action, or what they hold."""
    if value is None or isinstance(value, (bool, int, str, Tensor)):
        return value
    if isinstance(value, tuple):
        return [to_state(item) for item in value]
    if isinstance(value, DirectSum):
        return {"type": "DirectSum", "summands": [[name, to_state(V)] for name, V in value.parts]}
    if value is OnePoint:
        return {"type": "OnePoint"}
    kind = type(value).__name__
    if (SPACES | ACTIONS).get(kind) is not type(value):
        raise NoState
    return {"type": kind, **{field.name: to_state(getattr(value, field.name)) for field in fields(value)}}


def from_state(state: Any) -> Any:
    if isinstance(state, list):
        return tuple(map(from_state, state))
    if not isinstance(state, dict):
        return state
    if state["type"] == "OnePoint":
        return OnePoint
    if state["type"] == "DirectSum":
        return DirectSum([(name, from_state(V)) for name, V in state["summands"]])
    return (SPACES | ACTIONS)[state["type"]](**{key: from_state(x) for key, x in state.items() if key != "type"})
