"""States of forms: what they are called on another space than the one they were made on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import SpaceMismatch
from ..spaces import VectorSpace


def on_bases(state: Mapping[str, Any], space: VectorSpace) -> dict[str, Any]:
    """The state with the bases that its symmetries name called as the space calls them."""
    bases = list(space.bases)
    stored = state.get("bases", bases)
    if stored == bases:
        return dict(state)
    if len(stored) != len(bases):
        raise SpaceMismatch(
            f"SpaceMismatch in from_state: the state of a {state['kind']} form names {', '.join(stored)}, "
            f"{space} is made of {', '.join(bases)}. Give a space made as the form's own was."
        )
    names = dict(zip(stored, bases, strict=True))
    return {key: _renamed(key, part, names) for key, part in state.items()}


def _renamed(key: str, part: Any, names: Mapping[str, str], owner: Any = None) -> Any:
    if key == "bases":
        return [names.get(base, base) for base in part]
    if key == "symmetry" and part is not None:
        return _renamed_symmetry(part, names)
    if key == "name" and isinstance(owner, dict) and owner.get("type") in ("Space", "AffineSpace"):
        return names.get(part, part)
    if isinstance(part, dict):
        return {inner: _renamed(inner, value, names, part) for inner, value in part.items()}
    return [_renamed("", item, names) for item in part] if isinstance(part, list) else part


def _renamed_symmetry(state: list[list[Any]], names: Mapping[str, str]) -> list[list[Any]]:
    named, *groups = state
    structures = [[names.get(space, space), *rest] for space, *rest in named]
    weights = [
        [[[[names.get(x, x), power] for x, power in terms], sources] for terms, sources in group] for group in groups
    ]
    return [structures, *weights]


def converted(part: Any, *to: Any) -> Any:
    """The state with its floating point tensors as `Tensor.to(*to)` gives them."""
    if isinstance(part, Tensor):
        return part.to(*to) if part.is_floating_point() else part
    if isinstance(part, dict):
        return {key: converted(value, *to) for key, value in part.items()}
    return [converted(item, *to) for item in part] if isinstance(part, list) else part
