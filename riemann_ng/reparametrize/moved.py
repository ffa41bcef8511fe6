"""Modules that see their input and give their output in other frames, under the same names.

A moved module is of a subclass whose `__call__` changes frames around the whole of torch's call. So the parameters keep
their names and places, hooks see the moved input and the moved output, and `forward` stays the type's own, by which
readers and other libraries know it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .frame import Frame
from .leaves import Place

M = TypeVar("M", bound=nn.Module)
Step = Callable[[Any], Any]
PORTS = "forward"
"""Among the names that a moved class defines: it has ports, changes of frame inside its hooks."""
CLASSES: dict[tuple[type[nn.Module], tuple[str, ...]], type[nn.Module]] = {}


@dataclass
class Moves:
    """What is done before a module is called and after, and the frames of its own parameters.

    `entering` and `leaving` are of a whole network with layers inside: hooks on it see what the twin takes and gives.
    """

    before: list[Step] = field(default_factory=list)
    after: list[Step] = field(default_factory=list)
    whole: list[Step] = field(default_factory=list)
    entering: list[Step] = field(default_factory=list)
    leaving: list[Step] = field(default_factory=list)
    own: dict[str, Frame] = field(default_factory=dict)


@dataclass(frozen=True)
class Into:
    """A tensor into a frame, padded first with the zeros that are points there too."""

    frame: Frame
    place: Place
    pad: tuple[int, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        return self.place.apply(self.frame, nn.functional.pad(x, self.pad) if self.pad else x)


def _call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The module's own call between the changes of frame of its first argument and of what it returns."""
    moves: Moves = self._moves  # type: ignore[assignment]
    for step in moves.whole:
        args, kwargs = step((args, kwargs))
    if moves.before:
        name = None if args else next(iter(kwargs))
        x = args[0] if name is None else kwargs[name]
        for step in moves.before:
            x = step(x)
        args, kwargs = ((x, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: x})
    plain = super(type(self), self).__call__  # type: ignore[misc]
    y = plain(*args, **kwargs)
    for step in moves.after:
        y = step(y)
    return y


def _with_ports(cls: type[nn.Module]) -> Callable[..., Any]:
    """The forward of a whole network between the frames of its input and of its output, inside its hooks."""

    @wraps(cls.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        moves: Moves = self._moves  # type: ignore[assignment]
        for step in moves.entering:
            args, kwargs = step((args, kwargs))
        y = super(type(self), self).forward(*args, **kwargs)  # type: ignore[misc]
        for step in moves.leaving:
            y = step(y)
        return y

    return forward


def _state(self: nn.Module) -> tuple[Any, ...]:
    """For copies and pickles, which find no class that was made on the way."""
    cls = type(self)
    return _revived, (cls.__bases__[0], tuple(cls.__dict__["_framed"])), self.__dict__


def _revived(cls: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    made: nn.Module = object.__new__(_class_of(cls, names))
    return made


def _parameter(name: str) -> property:
    """The effective value of a parameter that is trained in a frame of its own."""

    def value(self: nn.Module) -> Tensor:
        stored = self._parameters[name]
        assert stored is not None
        moves: Moves = self._moves  # type: ignore[assignment]
        back = moves.own[name]
        # a product of a matrix and a vector, which no reading takes for one that examples could be spread over
        flat = torch.mv(back.linear[0].to(stored), stored.flatten()) + back.shift[0].to(stored)
        return flat.reshape(stored.shape)

    return property(value)


def _class_of(cls: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    if (cls, names) not in CLASSES:
        body: dict[str, Any] = {
            "__call__": _call,
            "_framed": names,
            "__module__": cls.__module__,
            "__doc__": cls.__doc__,
        }
        body["__qualname__"] = cls.__qualname__
        if "parametrize" not in str(getattr(cls, "__deepcopy__", "")):
            body["__reduce__"] = _state
        body |= {name: _with_ports(cls) if name == PORTS else _parameter(name) for name in names}
        CLASSES[cls, names] = type(cls.__name__, (cls,), body)
    return CLASSES[cls, names]


def moves_of(module: nn.Module, *names: str) -> Moves:
    """The moves of a module, which becomes a moved one if it is not; `names` are parameters in frames of their own."""
    cls, moves, before = type(module), vars(module).get("_moves"), ()
    if isinstance(moves, Moves):
        cls, before = cls.__bases__[0], cls.__dict__["_framed"]
    else:
        moves = Moves()
        module._moves = moves  # type: ignore[assignment]
    module.__class__ = _class_of(cls, tuple(dict.fromkeys((*before, *names))))
    return moves


def own_frames(root: nn.Module, frames: Mapping[int, Frame]) -> None:
    """Parameters (by id) that are trained in frames: wherever one is held, it is read through the frame's inverse."""
    with torch.no_grad():
        seen: set[int] = set()
        for m in list(root.modules()):
            mine = {k: frames[id(p)] for k, p in m._parameters.items() if p is not None and id(p) in frames}
            if not mine:
                continue
            for name, frame in mine.items():
                p = m._parameters[name]
                assert p is not None
                if id(p) not in seen:
                    p.data.copy_(frame(p.detach().flatten()).reshape(p.shape))
                    seen.add(id(p))
                moves_of(m, name).own[name] = frame.inverse()
