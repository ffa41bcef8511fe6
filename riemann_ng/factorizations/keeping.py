"""What is kept of tensors, and for how long: until one of them is changed in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
P = ParamSpec("P")


class Kept(Generic[T]):
    """A value and the tensors it was computed from, with their versions, which torch counts up at every change.

    A change through `tensor.data` is counted by nobody.
    """

    __slots__ = ("_tensors", "_versions", "value")

    def __init__(self, value: T, tensors: tuple[Tensor, ...]):
        self.value, self._tensors = value, tensors
        self._versions = [t._version for t in tensors]

    @property
    def fresh(self) -> bool:
        return [t._version for t in self._tensors] == self._versions

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """A copy of the tensors counts anew, so a copy keeps nothing."""
        return type(None), ()


def keep(value: T, tensors: tuple[Tensor, ...]) -> Kept[T] | None:
    """None where changes are not counted, which are those of tensors made in inference mode."""
    try:
        return Kept(value, tensors)
    except RuntimeError:
        return None


def normally(compute: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Not in inference mode, where a tensor would be made that could not take part in a later backward."""
    with torch.inference_mode(False):
        return compute(*args, **kwargs)
