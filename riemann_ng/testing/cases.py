"""What a law is a function of, and how it says that it is broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps

import torch
from torch import Tensor

from ..elements import Covector, Vector
from ..errors import RiemannError
from ..inner_products import InnerProduct
from .draws import Draw

Drawn = tuple[InnerProduct, Tensor]
Factory = Callable[[Draw], Drawn] | Callable[[Draw], InnerProduct]


class LawBroken(AssertionError):
    """A law does not hold: which, for what, and by how much."""


@dataclass(frozen=True)
class Case:
    """A form with its matrix, computed by other means; `other` is a second one of the same kind on the same space."""

    form: InnerProduct
    matrix: Tensor
    draw: Draw
    other: tuple[InnerProduct, Tensor] | None = None
    name: str = ""

    @property
    def inverse(self) -> Tensor:
        return torch.linalg.inv(self.matrix).contiguous()

    @property
    def dim(self) -> int:
        return self.form.space.dim

    def vector(self, *batch: int) -> Vector:
        return self.draw.vector(self.form.space, *batch)

    def covector(self, *batch: int) -> Covector:
        return self.draw.covector(self.form.space, *batch)

    def require(self, condition: bool, what: str) -> None:
        if not condition:
            raise LawBroken(f"{what}, of {self.form!r}")

    def agree(self, got: Tensor, expected: Tensor, what: str, size: Tensor | float | None = None) -> None:
        """Equal, as far as the dtype and the condition of the matrix allow.

        `size` is what they are compared with, for numbers that may cancel; else the largest entry expected.
        """
        if got.shape != expected.shape:
            raise LawBroken(f"{what}: shape {list(got.shape)}, expected {list(expected.shape)}, of {self.form!r}")
        tolerance = 256 * torch.finfo(self.draw.dtype).eps * self.dim * float(torch.linalg.cond(self.matrix.double()))
        scale = torch.as_tensor(expected.detach().abs().max() if size is None else size)
        off = float(((got.detach() - expected.detach()).abs() / torch.where(scale > 0, scale, 1.0)).max())
        if not off <= tolerance:
            raise LawBroken(f"{what}: off by {off:.1e}, allowed {tolerance:.1e}, of {self.form!r}")


Law = Callable[[Case], str | None]
LAWS: dict[str, Law] = {}
"""All laws by name. A law of your own enters with the decorator `law`."""


def law(function: Law) -> Law:
    """Enters a law into the table, and has it say its name and the kind when it is broken."""
    name = function.__name__.strip("_").replace("_", " ")

    @wraps(function)
    def named(case: Case) -> str | None:
        try:
            return function(case)
        except (LawBroken, RiemannError) as broken:
            cause = None if isinstance(broken, LawBroken) else broken
            raise LawBroken(f"the law of {name} is broken by {case.name or case.form.kind}: {broken}") from cause

    LAWS[name] = named
    return named


def make_case(
    make: Factory,
    draw: Draw,
    oracle: Callable[[InnerProduct], Tensor] | None = None,
    name: str = "",
) -> Case:
    form, matrix = drawn(make, draw, oracle)
    other = drawn(make, draw.again(draw.generator.initial_seed() + 1), oracle)
    return Case(form, matrix, draw, other if other[0].space == form.space else None, name)


def drawn(make: Factory, draw: Draw, oracle: Callable[[InnerProduct], Tensor] | None = None) -> Drawn:
    made = make(draw)
    if isinstance(made, tuple):
        return made
    if oracle is not None:
        return made, oracle(made)
    V = made.space
    basis = torch.eye(V.dim, dtype=draw.dtype, device=draw.device).reshape(-1, *V.shape)
    return made, torch.stack([made.inner(Vector(V, e.expand(basis.shape)), Vector(V, basis)) for e in basis])
