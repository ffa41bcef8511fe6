"""Direct sums of inner products: one form for each summand, and nothing between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from ..elements import Covector, Element, Vector
from ..errors import InvalidSpace, RiemannError, SpaceMismatch
from ..factorizations import BlockFactor, Factorization
from ..solvers import Eigen, Solver, Structure
from ..solvers.base import checked_covector
from ..spaces import DirectSum, VectorSpace
from ..symmetry import Symmetry
from .base import InnerProduct, State, kind
from .common import cost, given, one_kind


@contextmanager
def summand_named(name: str) -> Iterator[None]:
    """Errors of a solve say in which summand it was."""
    try:
        yield
    except RiemannError as error:
        error.args = (f"{error}\nIn the summand {name!r}.",)
        raise


@kind("direct sum")
class BlockDiagonal(InnerProduct):
    """`direct_sum({"fc1": g, "fc2": h})`: elements that came in blocks stay in blocks."""

    space: DirectSum

    def __init__(self, parts: Mapping[str, InnerProduct], space: DirectSum | None = None):
        """`space`, where the direct sum is at hand, is taken for that of the parts."""
        self.parts = dict(parts)
        self.space = DirectSum([(name, g.space) for name, g in parts.items()]) if space is None else space

    def flat_components(self, x: Tensor) -> Tensor:
        slices = self.space.slices
        return torch.cat([g.flat_components(x[..., slices[name]]) for name, g in self.parts.items()], dim=-1)

    def flat(self, v: Element) -> Covector:
        if not isinstance(v, Element) or v.in_one_piece or v.lives_in != self.space:
            return super().flat(v)
        blocks = {name: g.flat(v.component(name)).data for name, g in self.parts.items()}
        return Covector._of(self.space.dual, None, blocks)

    def sharp(self, covector: Element, solver: Solver | None = None) -> Vector:
        """Summand by summand, each by the solver given or by its own."""
        if not isinstance(covector, Element) or covector.lives_in != self.space.dual:
            checked_covector(self, covector, "sharp")
        blocks = {}
        for name, g in self.parts.items():
            with summand_named(name):
                blocks[name] = g.sharp(covector.component(name), solver).data
        return Vector._of(self.space, None, blocks)

    def sharp_modulo_kernel(self, covector: Element, reference: InnerProduct) -> Vector:
        references = reference.summands()
        if references is None or reference.space != self.space or covector.lives_in != self.space.dual:
            return super().sharp_modulo_kernel(covector, reference)
        blocks = {}
        for name, g in self.parts.items():
            with summand_named(name):
                blocks[name] = g.sharp_modulo_kernel(covector.component(name), references[name]).data
        return Vector._of(self.space, None, blocks)

    def tensors(self) -> Iterator[Tensor]:
        for g in self.parts.values():
            yield from g.tensors()

    def dense_matrix(self, like: Tensor | None = None) -> Tensor:
        probe = torch.empty(0, **self._options(like))
        return torch.block_diag(*(g.dense_matrix(probe) for g in self.parts.values()))

    @property
    def dtype(self) -> torch.dtype | None:
        return next((g.dtype for g in self.parts.values() if g.dtype is not None), None)

    @property
    def device(self) -> torch.device | None:
        return next((g.device for g in self.parts.values() if g.device is not None), None)

    def diagonal_entries(self, like: Tensor | None = None) -> Tensor:
        probe = torch.empty(0, **self._options(like))
        return torch.cat([g.diagonal_entries(probe) for g in self.parts.values()])

    @property
    def structure(self) -> Structure:
        parts = [g.structure for g in self.parts.values()]
        direct, apply = sum(cost(p) for p in parts), sum(p.apply for p in parts)
        return Structure("direct sum", self.space.dim, direct, apply, sum(p.rank for p in parts))

    def direct_factorization(self, method: str) -> Factorization | None:
        if self.dtype is None and any(g.structure.kind != "identity" for g in self.parts.values()):
            return None  # made for the dtype asked for, which only a dense matrix is
        probe, parts = torch.empty(0, **self._options(None)), self.parts.values()
        return BlockFactor(
            [g.factorization(probe) if method == "cholesky" else Eigen().factorize(g, probe) for g in parts]
        )

    def rank(self, like: Tensor | None = None) -> int:
        return sum(g.rank(torch.empty(0, **self._options(like))) for g in self.parts.values())

    def summands(self) -> dict[str, InnerProduct]:
        return self.parts

    @property
    def symmetry(self) -> Symmetry:
        return Symmetry.direct_sum([g.symmetry for g in self.parts.values()])

    def expression(self) -> str:
        return f"direct_sum({', '.join(f'{name}: {g.expression()}' for name, g in self.parts.items())})"

    def blended(self, other: InnerProduct, weight: float) -> InnerProduct:
        theirs = other.summands()
        if theirs is None:
            return super().blended(other, weight)
        return BlockDiagonal({name: g.blend(theirs[name], weight) for name, g in self.parts.items()}, self.space)

    def own_state(self) -> State:
        return {"parts": {name: g.state() for name, g in self.parts.items()}}

    @classmethod
    def restore(cls, space: VectorSpace, state: State) -> BlockDiagonal:
        if not isinstance(space, DirectSum) or set(space) != set(state["parts"]):
            raise SpaceMismatch(
                f"SpaceMismatch in from_state: the state of a direct sum of {', '.join(map(repr, state['parts']))} "
                f"does not fit {space}."
            )
        return cls({name: InnerProduct.from_state(space[name], part) for name, part in state["parts"].items()})


def direct_sum(parts: Mapping[str, InnerProduct] | None = None, **named: InnerProduct) -> BlockDiagonal:
    """The form on the direct sum of the spaces: `direct_sum({"fc1": g, "fc2": h})` or `direct_sum(fc1=g, fc2=h)`."""
    if twice := sorted(set(parts or {}) & set(named)):
        raise InvalidSpace(
            f"InvalidSpace in direct_sum: two summands are named {', '.join(map(repr, twice))}. Name them apart."
        )
    forms = {**(parts or {}), **named}
    for name, g in forms.items():
        if not isinstance(g, InnerProduct):
            raise SpaceMismatch(
                f"SpaceMismatch in direct_sum: expected an inner product for {name!r}, got {given(g)}. "
                f"Of spaces it is DirectSum({{...}})."
            )
    typed = [g for g in forms.values() if g.dtype is not None]
    for g in typed[1:]:
        one_kind(typed[0], g, "direct_sum")
    return BlockDiagonal(forms)
