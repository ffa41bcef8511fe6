"""Bridges to other libraries. Each is imported when it is first asked for, and brings its library with it."""

from importlib import import_module
from types import ModuleType

BRIDGES = frozenset({"geomstats"})


def __getattr__(name: str) -> ModuleType:
    if name in BRIDGES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(BRIDGES)
