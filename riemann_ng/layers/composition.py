"""Layers made of layers: chains, sums, products and fans, with the parameters of all their parts.

Their tangent space is the direct sum of the blocks of the parts, named by path: "encoder.fc1". A part with an
empty name leaves no trace in the path. A layer that stands in two places is two blocks; one weight used many times is
for layers that say so, such as `Recurrent`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import ShapeMismatch, SpaceMismatch
from ..spaces import AffineSpace, VectorSpace
from .base import Blocks, Layer, ParameterFreeLayer, Sites, Uses, check_dims, join_path, product_space

C = TypeVar("C", bound="Composite")
Parts = Mapping[str, Layer] | Sequence[Layer]


class Composite(Layer):
    """What layers made of layers share: `parts`, by name."""

    parts: dict[str, Layer]

    def _set_parts(self, parts: Parts) -> None:
        self.parts = dict(parts) if isinstance(parts, Mapping) else {str(i): part for i, part in enumerate(parts)}
        if not self.parts:
            raise SpaceMismatch(f"SpaceMismatch in {type(self).__name__}: no parts. Give at least one layer.")
        paths = [join_path(name, path) for name, part in self.parts.items() for path in part.parameter_spaces]
        twice = sorted({path for path in paths if paths.count(path) > 1})
        if twice:
            raise SpaceMismatch(
                f"SpaceMismatch in {type(self).__name__}: two blocks have the path {', '.join(map(repr, twice))}. "
                f"Name the parts apart."
            )

    @property
    def parameter_spaces(self) -> dict[str, VectorSpace]:
        return {
            join_path(name, path): space
            for name, part in self.parts.items()
            for path, space in part.parameter_spaces.items()
        }

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {
            join_path(name, path): weight
            for name, part in self.parts.items()
            for path, weight in part.parameters.items()
        }

    def _of_part(self, name: str, blocks: Blocks | None) -> Blocks | None:
        if blocks is None:
            return None
        mine = {path: blocks[join_path(name, path)] for path in self.parts[name].parameter_spaces}
        return mine or None

    def _moved(self: C, by: Blocks) -> C:
        moved = copy(self)
        moved.parts = {name: part._moved(self._of_part(name, by) or {}) for name, part in self.parts.items()}
        return moved

    def _named(self, name: str, uses: Uses) -> Uses:
        return {join_path(name, path): use for path, use in uses.items()}

    @property
    def _first(self) -> Layer:
        return next(iter(self.parts.values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({{{', '.join(f'{name!r}: {part!r}' for name, part in self.parts.items())}}})"


class Compose(Composite):
    """One layer after the other, the first first: `Compose({"fc1": f, "tanh": g, "fc2": h})` or a list."""

    def __init__(self, parts: Parts):
        self._set_parts(parts)
        chain = list(self.parts.items())
        for (before, f), (after, g) in pairwise(chain):
            if f.codomain != g.domain:
                raise SpaceMismatch(
                    f"SpaceMismatch in Compose: {after!r} takes points of {g.domain!r}, {before!r} gives points of "
                    f"{f.codomain!r}. Give the two layers the same space between them."
                )
        self.domain, self.codomain = chain[0][1].domain, chain[-1][1].codomain

    def check_points(self, call: str, x: Tensor) -> None:
        self._first.check_points(call, x)
        self.output_sites(self._first.tangent_shape(x)[1:-1])

    def tangent_shape(self, x: Tensor) -> tuple[int, ...]:
        return self._first.tangent_shape(x)

    def output_sites(self, sites: Sites) -> Sites:
        for part in self.parts.values():
            sites = part.output_sites(sites)
        return sites

    def culprit(self, x: Tensor) -> str:
        for name, part in self.parts.items():
            y = part._forward(x)
            if not bool(torch.isfinite(y).all()):
                return f"{name!r}, {part.culprit(x)}"
            x = y
        return str(self)

    def _forward(self, x: Tensor) -> Tensor:
        for part in self.parts.values():
            x = part._forward(x)
        return x

    def _push(self, x: Tensor, dx: Tensor, dw: Blocks | None) -> Tensor:
        for name, part in self.parts.items():
            x, dx = part._forward(x), part._push(x, dx, self._of_part(name, dw))
        return dx

    def _pull(self, x: Tensor, dy: Tensor) -> tuple[Tensor, Uses]:
        points = [x]
        for part in list(self.parts.values())[:-1]:
            points.append(part._forward(points[-1]))
        uses: Uses = {}
        for (name, part), point in zip(reversed(self.parts.items()), reversed(points), strict=True):
            dy, of_part = part._pull(point, dy)
            uses |= self._named(name, of_part)
        return dy, uses


class _Parallel(Composite):
    """Layers side by side, site by site: what goes into each part, and how their outputs join, is the kind's."""

    @abstractmethod
    def _inputs_of(self, x: Tensor) -> list[Tensor]: ...

    @abstractmethod
    def _inputs_transpose(self, dxs: list[Tensor]) -> Tensor: ...

    @abstractmethod
    def _join(self, ys: list[Tensor]) -> Tensor: ...

    @abstractmethod
    def _join_transpose(self, dy: Tensor) -> list[Tensor]: ...

    def output_sites(self, sites: Sites) -> Sites:
        found = {name: part.output_sites(sites) for name, part in self.parts.items()}
        if len(set(found.values())) > 1:
            raise ShapeMismatch(
                f"ShapeMismatch in {self}: the parts lead to different sites: "
                f"{', '.join(f'{name!r} to {list(to)}' for name, to in found.items())}."
            )
        return next(iter(found.values()))

    def culprit(self, x: Tensor) -> str:
        for (name, part), point in zip(self.parts.items(), self._inputs_of(x), strict=True):
            if not bool(torch.isfinite(part._forward(point)).all()):
                return f"{name!r}, {part.culprit(point)}"
        return str(self)

    def _forward(self, x: Tensor) -> Tensor:
        pairs = zip(self.parts.values(), self._inputs_of(x), strict=True)
        return self._join([part._forward(point) for part, point in pairs])

    def _push(self, x: Tensor, dx: Tensor, dw: Blocks | None) -> Tensor:
        triples = zip(self.parts.items(), self._inputs_of(x), self._inputs_of(dx), strict=True)
        return self._join([part._push(at, d, self._of_part(name, dw)) for (name, part), at, d in triples])

    def _pull(self, x: Tensor, dy: Tensor) -> tuple[Tensor, Uses]:
        dxs: list[Tensor] = []
        uses: Uses = {}
        for (name, part), at, d in zip(self.parts.items(), self._inputs_of(x), self._join_transpose(dy), strict=True):
            dx, of_part = part._pull(at, d)
            dxs.append(dx)
            uses |= self._named(name, of_part)
        return self._inputs_transpose(dxs), uses


class _OnOneInput(_Parallel):
    """Parts that all take the same point."""

    def _set_shared_domain(self, parts: Parts) -> None:
        self._set_parts(parts)
        self.domain = self._first.domain
        for name, part in self.parts.items():
            if part.domain != self.domain:
                raise SpaceMismatch(
                    f"SpaceMismatch in {type(self).__name__}: {name!r} takes points of {part.domain!r}, the first part "
                    f"points of {self.domain!r}. All parts take the same point; side by side they are a ProductLayer."
                )

    def check_points(self, call: str, x: Tensor) -> None:
        for part in self.parts.values():
            part.check_points(call, x)
        self.output_sites(self._first.tangent_shape(x)[1:-1])

    def tangent_shape(self, x: Tensor) -> tuple[int, ...]:
        return self._first.tangent_shape(x)

    def _inputs_of(self, x: Tensor) -> list[Tensor]:
        return [x] * len(self.parts)

    def _inputs_transpose(self, dxs: list[Tensor]) -> Tensor:
        return torch.stack(dxs).sum(0)


class ParallelSum(_OnOneInput):
    """`y = f(x) + g(x) + ...`: a residual block is `ParallelSum({"skip": Identity(A), "branch": f})`.

    Points do not add. The first part gives the point, in its codomain; the others give displacements of it, as points
    seen from the origin of their own codomains. So their codomains have the first one's dimension but not its frames: a
    change of frame of the sum moves the first part's codomain as an affine space, the others' linearly.
    """

    def __init__(self, parts: Parts):
        self._set_shared_domain(parts)
        self.codomain = self._first.codomain
        for name, part in self.parts.items():
            check_dims("ParallelSum", f"the codomain of {name!r},", part.codomain, self.codomain.dim)

    def _join(self, ys: list[Tensor]) -> Tensor:
        return torch.stack(ys).sum(0)

    def _join_transpose(self, dy: Tensor) -> list[Tensor]:
        return [dy] * len(self.parts)


class Fan(_OnOneInput):
    """`y = (f(x), g(x), ...)`, a point of the product of the codomains: the queries, keys and values of one field."""

    def __init__(self, parts: Parts):
        self._set_shared_domain(parts)
        self.codomain = product_space(*(part.codomain for part in self.parts.values()))

    def _join(self, ys: list[Tensor]) -> Tensor:
        return torch.cat(ys, dim=-1)

    def _join_transpose(self, dy: Tensor) -> list[Tensor]:
        return list(dy.split([part.codomain.dim for part in self.parts.values()], dim=-1))


class ProductLayer(_Parallel):
    """`(x, x', ...) ↦ (f(x), f'(x'), ...)`, from the product of the domains to that of the codomains."""

    def __init__(self, parts: Parts):
        self._set_parts(parts)
        self.domain = product_space(*(part.domain for part in self.parts.values()))
        self.codomain = product_space(*(part.codomain for part in self.parts.values()))

    def _inputs_of(self, x: Tensor) -> list[Tensor]:
        return list(x.split([part.domain.dim for part in self.parts.values()], dim=-1))

    def _inputs_transpose(self, dxs: list[Tensor]) -> Tensor:
        return torch.cat(dxs, dim=-1)

    def _join(self, ys: list[Tensor]) -> Tensor:
        return torch.cat(ys, dim=-1)

    def _join_transpose(self, dy: Tensor) -> list[Tensor]:
        return list(dy.split([part.codomain.dim for part in self.parts.values()], dim=-1))


class Identity(ParameterFreeLayer):
    """The identity of a space: the skip of a residual block."""

    def __init__(self, space: AffineSpace):
        self.domain = self.codomain = space

    def _forward(self, x: Tensor) -> Tensor:
        return x

    def _differential(self, x: Tensor, dx: Tensor) -> Tensor:
        return dx

    def _transpose(self, x: Tensor, dy: Tensor) -> Tensor:
        return dy


class Select(ParameterFreeLayer):
    """The projection of a product of spaces on one factor: `Select((A, B, C), 1)` has the points of B."""

    def __init__(self, factors: Sequence[AffineSpace], which: int):
        self.domain, self.codomain = product_space(*factors), factors[which]
        self.start = sum(space.dim for space in factors[:which])

    def _forward(self, x: Tensor) -> Tensor:
        return x.narrow(-1, self.start, self.codomain.dim)

    def _differential(self, x: Tensor, dx: Tensor) -> Tensor:
        return self._forward(dx)

    def _transpose(self, x: Tensor, dy: Tensor) -> Tensor:
        after = self.domain.dim - self.start - self.codomain.dim
        return torch.nn.functional.pad(dy, (self.start, after))
