"""A norm for each layer of a network, by the layer's path: the largest of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from ..elements import Element, Vector, describe
from ..errors import SpaceMismatch
from ..inner_products import InnerProduct
from ..spaces import DirectSum, VectorSpace
from ..symmetry import Symmetry
from .base import InvalidNorm, Norm, needs_a_point, symmetry_unknown
from .composed import Max


class ByLayer(Norm):
    """`ByLayer({"embed": Sign(), "blocks.*": Spectral()}, otherwise=Sign())`: the first pattern that fits decides.

    Patterns are those of file names, for the paths of `network.coverage()`. A layer that none fits, without
    `otherwise`, is refused, and so is a pattern that fits none. Of the norms, those made of a metric share it.
    """

    space: VectorSpace | None = None

    def __init__(self, rules: Mapping[str, Norm], otherwise: Norm | None = None):
        norms = (
            [*rules.values(), *([] if otherwise is None else [otherwise])] if isinstance(rules, Mapping) else [rules]
        )
        wrong = [norm for norm in norms if not isinstance(norm, Norm) or norm.space is not None]
        if wrong or not norms:
            said = describe(wrong[0]) if wrong else "none"
            raise InvalidNorm(
                f"InvalidNorm in ByLayer: expected a norm that takes any layer, as Spectral(), for each pattern of "
                f"paths, got {said}."
            )
        metrics = {repr(norm.metric): norm.metric for norm in norms if norm.metric is not None}
        if len(metrics) > 1:
            raise InvalidNorm(
                f"InvalidNorm in ByLayer: norms of {len(metrics)} metrics, {', '.join(metrics)}, and a batch is "
                f"observed for one. Give them the same metric."
            )
        self.rules, self.otherwise = dict(rules), otherwise
        self.metric = next(iter(metrics.values()), None)

    def chosen(self, space: VectorSpace) -> dict[str, Norm]:
        """The norm for each summand of a network's tangent space."""
        if not isinstance(space, DirectSum):
            raise SpaceMismatch(f"SpaceMismatch in on: {self!r} needs a direct sum of layers, got {space}.")
        found: dict[str, Norm] = {}
        used: set[str] = set()
        for path in space:
            pattern = next((p for p in self.rules if fnmatchcase(path, p)), None)
            norm = self.otherwise if pattern is None else self.rules[pattern]
            if norm is None:
                raise InvalidNorm(
                    f"InvalidNorm in ByLayer: no pattern of {', '.join(map(repr, self.rules))} fits the layer "
                    f"{path!r}. Add one, or otherwise=Sign()."
                )
            found[path] = norm
            used |= {p for p in self.rules if fnmatchcase(path, p)}
        if idle := [p for p in self.rules if p not in used]:
            raise InvalidNorm(
                f"InvalidNorm in ByLayer: no layer is called {idle[0]!r}. There are {', '.join(map(repr, space))}."
            )
        return found

    def bound_to(self, space: VectorSpace) -> Norm:
        if self.metric is not None:
            raise needs_a_point(self, "on")
        assert isinstance(space, DirectSum)
        return Max({path: norm.on(space[path]) for path, norm in self.chosen(space).items()})

    def on(self, space: VectorSpace) -> Norm:
        self.chosen(space)
        return self.bound_to(space)

    def with_value(self, g: InnerProduct) -> Norm:
        parts, found = g.summands() or {}, {}
        for path, norm in self.chosen(g.space).items():
            assert isinstance(g.space, DirectSum)
            if norm.metric is None:
                found[path] = norm.on(g.space[path])
            elif path in parts:
                found[path] = norm.with_value(parts[path])
            else:
                raise InvalidNorm(
                    f"InvalidNorm in ByLayer: {g!r} couples the layers of {g.space}. Use a metric without terms "
                    f"between them, as KFAC()."
                )
        return Max(found)

    def with_forms(self, change: Callable[[Any], Any]) -> Norm:
        rules = {pattern: norm.with_forms(change) for pattern, norm in self.rules.items()}
        return ByLayer(rules, None if self.otherwise is None else self.otherwise.with_forms(change))

    def norm_of(self, v: Element) -> Tensor:
        raise needs_a_point(self, "norm")

    def dual_norm_of(self, covector: Element) -> Tensor:
        raise needs_a_point(self, "dual_norm")

    def sharp_of(self, covector: Element) -> Vector:
        raise needs_a_point(self, "sharp")

    @property
    def symmetry(self) -> Symmetry:
        raise symmetry_unknown(self)

    def expression(self) -> str:
        rules = ", ".join(f"{pattern!r}: {norm.expression()}" for pattern, norm in self.rules.items())
        otherwise = "" if self.otherwise is None else f", otherwise={self.otherwise.expression()}"
        return f"ByLayer({{{rules}}}{otherwise})"
