"""What the kinds share: costs, ranks, the check that two forms can meet, and what is said of bad input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from ..elements import Element, Scalar, describe
from ..errors import DtypeMismatch, NotAnInnerProduct, NotClosed, SpaceMismatch
from ..factorizations import RankDeficient, tolerance_of
from ..linear_maps import LinearMap
from ..solvers import Structure
from ..solvers.base import Solvable, degenerate_named
from ..spaces import VectorSpace

G = TypeVar("G")


class Algebra(ABC, Generic[G]):
    """The operations of the algebra, which know all kinds; `algebra.py` provides the one instance."""

    @abstractmethod
    def sum(self, g: G, h: G) -> G: ...
    @abstractmethod
    def scale(self, c: Scalar, g: G) -> G: ...
    @abstractmethod
    def product(self, g: G, h: G) -> G: ...
    @abstractmethod
    def dual(self, g: G) -> G: ...
    @abstractmethod
    def pullback(self, phi: LinearMap, g: G) -> G: ...
    @abstractmethod
    def diagonal(self, g: G, basis: LinearMap | None) -> G: ...
    @abstractmethod
    def quotient(self, g: G, kernel: LinearMap) -> G: ...


def cost(s: Structure) -> float:
    """What factorizing a part of a form costs, in flops: by its own means, or through its matrix."""
    return s.apply * s.dim + s.dim**3 / 3 if s.direct is None else s.direct


def bracketed(text: str, operators: str = "+") -> str:
    """An expression as a part of another, in brackets if one of the operators stands in it outside of brackets."""
    depth = 0
    for before, sign, after in zip(" " + text[:-1], text, text[1:] + " ", strict=True):
        depth += (sign in "([") - (sign in ")]")
        if depth == 0 and sign in operators and before == after == " ":
            return f"({text})"
    return text


def one_kind(g: Solvable, h: Solvable, call: str) -> None:
    """Two forms that meet in one expression have one dtype and device, or take any."""
    if (g.dtype or h.dtype) != (h.dtype or g.dtype) or (g.device or h.device) != (h.device or g.device):
        raise DtypeMismatch(
            f"DtypeMismatch in {call}: {g!r} in {g.dtype} on {g.device}, {h!r} in {h.dtype} on {h.device}. "
            f"Bring one to the other with .to(...) where its tensors are made."
        )


def rank_of(matrix: Tensor) -> int:
    """The rank of a symmetric matrix seen at unit diagonal, as the factorizations count it."""
    diagonal = matrix.diagonal().clamp(min=0)
    scale = torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal)).sqrt()
    values = torch.linalg.eigvalsh(matrix / (scale[:, None] * scale))
    return int((values > tolerance_of(matrix) * values.max()).sum())


class degenerate_of(degenerate_named):
    """As `degenerate_named`, with the rank of the form where the short cause counts that of a factor or a summand."""

    def __init__(self, space: VectorSpace, rank: Callable[[], int], call: str):
        super().__init__(space, call)
        self.rank = rank

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RankDeficient) and error.dim != self.space.dim:
            error = RankDeficient(self.rank(), self.space.dim)
        super().__exit__(kind, error, trace)


def not_a_vector(g: Solvable, v: object, call: str) -> SpaceMismatch:
    return SpaceMismatch(
        f"SpaceMismatch in {call}: expected a vector of {g.space}, got {given(v)}.\n"
        f"A gradient is a covector: it has g.sharp(ξ), and lengths in g.dual."
    )


def of_another_kind(g: Solvable, v: Element, call: str) -> DtypeMismatch:
    return DtypeMismatch(
        f"DtypeMismatch in {call}: {v} on {v.device} with {g!r} in {g.dtype} on {g.device}. "
        f"Bring one to the other with .to(...)."
    )


def no_damping(g: Solvable, other: object) -> SpaceMismatch:
    return SpaceMismatch(
        f"SpaceMismatch in +: {g!r} plus {given(other)}. "
        f"Damping names its inner product: g + λ * Euclidean({g.space})."
    )


def no_difference(g: Solvable, other: object) -> NotAnInnerProduct:
    return NotAnInnerProduct(
        f"NotAnInnerProduct in -: {g!r} minus {given(other)}. "
        f"A difference of inner products need not be one; leave the term out where the sum is made."
    )


def not_fitting(state: Mapping[str, Any], space: VectorSpace) -> SpaceMismatch:
    return SpaceMismatch(
        f"SpaceMismatch in from_state: the state of a {state['kind']} form does not fit {space}: its elements have "
        f"shape {state.get('shape')}, those of {space} {list(space.shape)}."
    )


def given(x: object) -> str:
    """What a call was given: a tensor by its shape, anything else as it prints."""
    return describe(x) if isinstance(x, (Tensor, list, tuple, dict)) else f"{x}"


class Kinded(Protocol):
    @property
    def kind(self) -> str: ...


def no_common_kind(g: Kinded, other: Kinded) -> NotClosed:
    return NotClosed(
        f"NotClosed in blend: a {g.kind} form and a {other.kind} form have no common kind: {g!r} with {other!r}. "
        f"Average the forms they were made of, or write the sum (1 - w) * g + w * h."
    )


def no_state(g: Kinded) -> NotClosed:
    return NotClosed(
        f"NotClosed in state: {g!r} keeps no state: it holds what is no tensor, number or string, or does not say how. "
        f"Store what it was made of; a kind of your own defines own_state and restore, and is named by @kind."
    )
