"""Hypothesis strategies for spaces, matrices, maps, elements, samples and inner products.

Shapes and choices are drawn and shrunk by Hypothesis; numbers come from a seed, so that a matrix is well conditioned by
construction (`draws.CONDITION`) and no example is thrown away.

    @given(cases())
    def test_something(case): ...     # case.form, case.matrix, case.vector(), case.draw
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import MissingDependency

if importlib.util.find_spec("hypothesis") is None:
    raise MissingDependency(
        "MissingDependency in riemann_ng.testing.strategies: hypothesis is not installed. "
        "Install it with: pip install 'riemann-ng[test]'. The laws themselves (check_laws) run without it."
    )

from hypothesis import strategies as st

from ..elements import Covector, Vector
from ..inner_products import InnerProduct
from ..linear_maps import LinearMap
from ..samples import Sample
from ..spaces import VectorSpace
from .cases import Case, make_case
from .draws import Draw
from .kinds import KINDS

T = TypeVar("T")


@st.composite
def draws(draw: st.DrawFn, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Draw:
    """A `Draw` whose integers Hypothesis chooses."""
    return Draw(lambda low, high: draw(st.integers(low, high)), draw(st.integers(0, 2**16)), dtype, device)


def made(make: Callable[[Draw], T], dtype: torch.dtype = torch.float64) -> st.SearchStrategy[T]:
    """What a function makes of a draw."""
    return draws(dtype).map(make)


def spaces() -> st.SearchStrategy[VectorSpace]:
    """Spaces of every sort: named, translations, hulls, duals, products, direct sums, families."""
    return made(Draw.space)


def matrices(dim: int, dtype: torch.dtype = torch.float64) -> st.SearchStrategy[Tensor]:
    """Symmetric positive matrices of bounded condition."""
    return made(lambda draw: draw.positive(dim), dtype)


def isomorphisms(onto: VectorSpace, dtype: torch.dtype = torch.float64) -> st.SearchStrategy[LinearMap]:
    """Isomorphisms of bounded condition onto a space, from one of their own."""
    return made(lambda draw: draw.isomorphism(onto), dtype)


def vectors(space: VectorSpace, *batch: int, dtype: torch.dtype = torch.float64) -> st.SearchStrategy[Vector]:
    """Vectors that are not zero."""
    return made(lambda draw: draw.vector(space, *batch), dtype)


def covectors(space: VectorSpace, *batch: int, dtype: torch.dtype = torch.float64) -> st.SearchStrategy[Covector]:
    """Covectors that are not zero."""
    return made(lambda draw: draw.covector(space, *batch), dtype)


def samples(space: VectorSpace, dtype: torch.dtype = torch.float64) -> st.SearchStrategy[Sample]:
    """Samples with draws and sites, whose second moment is definite and of bounded condition."""
    return made(lambda draw: draw.sample(space), dtype)


def cases(kinds: Iterable[str] | None = None, dtype: torch.dtype = torch.float64) -> st.SearchStrategy[Case]:
    """Inner products of every kind, or of those named, each with its dense matrix."""
    names = st.sampled_from(sorted(KINDS) if kinds is None else list(kinds))
    return names.flatmap(lambda name: made(lambda draw: make_case(KINDS[name], draw, name=name), dtype))


def inner_products(
    kinds: Iterable[str] | None = None, dtype: torch.dtype = torch.float64
) -> st.SearchStrategy[InnerProduct]:
    """Inner products of every kind, or of those named."""
    return cases(kinds, dtype).map(lambda case: case.form)
