"""A module's forward as a graph, and for each layer how much the output can move with the layer's own.

Rules for parts, composed by the chain rule: along a chain slopes multiply, over the branches of a sum they add. The
forward is traced symbolically by torch.fx; what a rule is missing for is refused, with the way to give one.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import fx, nn

from ..networks.blocks import within
from .base import InvalidNorm, positive
from .slopes import FUNCTIONS, METHODS, MODULES, MULTIPLES, SHAPES, SIZES, Slope

Slopes = Mapping[Any, float]


class Tracer(fx.Tracer):
    """Stops at modules that have a rule."""

    def __init__(self, known: Slopes):
        super().__init__()
        self.known = known

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return rule(m, module_qualified_name, self.known) is not None or not list(m.children())


def rule(m: nn.Module, path: str, known: Slopes) -> Slope | None:
    """The slope of a module: by its path or type as given, or as its type, or a base with the same forward, has it."""
    for key in (path, type(m)):
        if key in known:
            return Slope(positive("Modular", f"the slope of {key!r}", known[key]), {})
    for cls in type(m).__mro__:
        if cls in MODULES and type(m).forward is cls.forward:
            return MODULES[cls](m)
    return None


def slopes_below(module: nn.Module, known: Slopes) -> tuple[dict[str, float], float]:
    """By path of a module or name of a bare parameter, the slope of the output in what it gives; and that in the input.

    A layer used several times has the sum over its uses. A module of `parts` goes by their paths.
    """
    found: defaultdict[str, float] = defaultdict(float)
    alone = rule(module, "", known)
    if alone is not None:
        check_names(known, {""})
        return {within("self", part): slope for part, slope in alone.parts.items()} or {"": 1.0}, alone.input
    try:
        graph = Tracer(known).trace(module)
    except Exception as error:  # what a forward may do is not ours to know
        raise InvalidNorm(
            f"InvalidNorm in Modular: the forward of {type(module).__name__} cannot be traced by torch.fx: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''} Give a slope to the module in "
            f"which it depends on data: Modular(slopes={{path: slope}})."
        ) from None
    modules = dict(module.named_modules())
    methods = {str(node.target) for node in graph.nodes if node.op == "call_method"}
    check_names(known, {*modules, *methods})
    below: dict[fx.Node, float] = {}
    entry = 0.0
    for node in reversed(graph.nodes):
        slope = below.get(node, 0.0)
        if node.op == "output":
            slope = 1.0
        if slope == 0 or silent(node):
            continue
        if node.op == "placeholder":
            entry += slope
            continue
        if node.op == "get_attr":
            found[str(node.target)] += slope
            continue
        own = 1.0
        if node.op == "call_module":
            path = str(node.target)
            read = rule(modules[path], path, known)
            if read is None:
                raise refused(f"the module {path!r}, a {type(modules[path]).__name__}", repr(path))
            own = read.input
            for part, times in (read.parts or {"": 1.0}).items():
                found[within(path, part)] += slope * times
            arguments: list[fx.Node] = list(dict.fromkeys(node.all_input_nodes))
        elif node.op == "output":
            arguments = list(node.all_input_nodes)
        else:
            own, arguments = of_function(node, known)
        for argument in arguments:
            below[argument] = below.get(argument, 0.0) + slope * own
    return dict(found), entry


def check_names(known: Slopes, names: Collection[str]) -> None:
    unused = [key for key in known if isinstance(key, str) and key not in names]
    if unused:
        raise InvalidNorm(
            f"InvalidNorm in Modular: slopes={{{unused[0]!r}: ...}}, and no module, or method that is called, has this "
            f"name. Take the path of a module, its type, or the function."
        )


def silent(node: fx.Node) -> bool:
    return node.target in (SIZES if node.op == "call_method" else SHAPES if node.op == "call_function" else ())


def of_function(node: fx.Node, known: Slopes) -> tuple[float, list[fx.Node]]:
    """The slope of a function and the arguments it is in, one for each time that it stands there."""
    target: Any = node.target
    arguments: list[fx.Node] = []
    torch.fx.node.map_arg((node.args, node.kwargs), lambda n: arguments.append(n))
    if target in known:
        return positive("Modular", f"the slope of {target!r}", known[target]), arguments
    if target in MULTIPLES:
        numbers = [x for x in node.args if isinstance(x, (int, float))]
        quotient = target in (operator.truediv, torch.div, "div")
        if len(numbers) == 1 and len(arguments) == 1 and not (quotient and node.args[0] is numbers[0]):
            c = abs(float(numbers[0]))
            return (1 / c if quotient else c), arguments
        what = "a number divided by a tensor" if quotient and numbers else "a product of two tensors"
        raise refused(f"{what} ({node.name})", "operator.truediv" if quotient else "operator.mul")
    rules: Mapping[Any, float] = METHODS if node.op == "call_method" else FUNCTIONS
    if target not in rules:
        name = target if isinstance(target, str) else getattr(target, "__name__", repr(target))
        raise refused(f"the function {name} ({node.name})", repr(target) if isinstance(target, str) else name)
    alpha, divisor = node.kwargs.get("alpha", 1), node.kwargs.get("divisor_override")
    if divisor is not None or not isinstance(alpha, (int, float)):
        raise refused(f"{node.name} with {'alpha' if divisor is None else 'divisor_override'}", "its function")
    return rules[target] * max(1.0, abs(float(alpha))), arguments  # alpha is on one of two terms: a bound for both


def refused(what: str, key: str) -> InvalidNorm:
    return InvalidNorm(
        f"InvalidNorm in Modular: no slope is known of {what}: a bound on how far its output moves with its input, in "
        f"root mean squares. Give one: Modular(slopes={{{key}: 1.0}})."
    )
