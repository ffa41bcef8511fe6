"""Names of functions, for reports, and what can be read off them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from .problems import InvalidSubject


def second_is_likelihood(factory: Callable[..., Any]) -> bool:
    try:
        names = list(inspect.signature(factory).parameters)
    except (TypeError, ValueError):
        return False
    return len(names) > 1 and names[1] == "likelihood"


def check_callable(function: object, call: str) -> None:
    if not callable(function):
        raise InvalidSubject(f"InvalidSubject in {call}: expected a function, got {function!r}.")


def named(function: object) -> str:
    """A name for a function: its own, or where it was written."""
    name = getattr(function, "__name__", type(function).__name__)
    if name != "<lambda>":
        return str(name)
    try:
        source = inspect.getsource(function).strip()  # type: ignore[arg-type]
    except (OSError, TypeError):
        return "lambda"
    at = source.find("lambda")
    return source[at : at + expression_length(source[at:])] if at >= 0 else "lambda"


def expression_length(source: str) -> int:
    """Where an expression ends that stands among others: at a comma, a bracket or a line that is not inside of it."""
    depth, colon = 0, False
    for k, c in enumerate(source):
        depth += (c in "([{") - (c in ")]}")
        colon |= c == ":"
        if depth < 0 or (depth == 0 and (c == "\n" or (c == "," and colon))):
            return k
    return len(source)
