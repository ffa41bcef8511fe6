"""What the kinds share: costs, ranks, the check that two forms can meet, and what is said of bad input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from hashlib import sha256
from itertools import count
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from ..elements import Element, Scalar, describe
from ..errors import DtypeMismatch, InvalidSetting, NotAnInnerProduct, NotClosed, SpaceMismatch
from ..factorizations import RankDeficient, tolerance_of
from ..linear_maps import LinearMap
from ..solvers import Structure
from ..solvers.base import Solvable, degenerate_named
from ..spaces import AffineSpace, Derived, DirectSum, Space, VectorSpace

G = TypeVar("G")
_NUMBERS = count(1)


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
        f"SpaceMismatch in +: {g!r} plus {given(other)}. Damping names its inner product: g + λ * Euclidean({g.space})."
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


def base_of(g: Solvable, space: object) -> str:
    """The name of one of the spaces that a form is made on."""
    bases = g.space.bases
    name = space if isinstance(space, str) else space.name if isinstance(space, (Space, AffineSpace)) else None
    if name is None or name not in bases:
        raise SpaceMismatch(
            f"SpaceMismatch in keeps: {g!r} is made on {', '.join(map(repr, bases)) or 'no space with a name'}, "
            f"got {given(space)}."
        )
    return name


def rank_by(g: Solvable, like: Tensor | None) -> int:
    """The numerical rank, found where the form is factorized."""
    try:
        factorization = g.factorization(like)
        factorization.logdet  # noqa: B018  a diagonal finds out here
    except RankDeficient as short:
        return short.rank if short.dim == g.space.dim else rank_of(g.dense_matrix(like))
    return g.space.dim


def other_space(state: Mapping[str, Any], made: VectorSpace, space: VectorSpace) -> SpaceMismatch:
    return SpaceMismatch(
        f"SpaceMismatch in from_state: the state of a {state['kind']} form is one on {made}, not on {space}."
    )


def given(x: object) -> str:
    """What a call was given: a tensor by its shape, anything else as it prints."""
    return describe(x) if isinstance(x, (Tensor, list, tuple, dict)) else f"{x}"


def check_blend(g: Solvable, form: Solvable | None, other: object, weight: float) -> None:
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= 1:
        raise NotAnInnerProduct(f"NotAnInnerProduct in blend: the weight is between 0 and 1, got {weight}.")
    if form is None or form.space != g.space:
        raise SpaceMismatch(f"SpaceMismatch in blend: {g!r} with {given(other)}: one space is needed.")
    one_kind(g, form, "blend")


def arrow(target: VectorSpace, source: VectorSpace) -> str:
    left, right = (f"({V})" if " " in f"{V}" and not f"{V}".startswith("(") else f"{V}" for V in (target, source))
    return f"{left} ← {right}"


def frame_space(space: VectorSpace, expression: str) -> VectorSpace:
    """A space of its own for each form: frames of two forms are two choices of coordinates, whatever their names."""
    return Derived(f"frame {next(_NUMBERS)} of {expression}", space, space.dim, up_to_rotation=True)


def inclusion(space: VectorSpace, to: str | LinearMap) -> LinearMap:
    if isinstance(to, LinearMap):
        return to
    if not isinstance(space, DirectSum):
        raise SpaceMismatch(f"SpaceMismatch in restrict: {space} is not a direct sum; give an inclusion map.")
    return LinearMap.inclusion(space, to)


def known_as(name: str, default: str, constant: Tensor) -> str:
    """What a constant is known by: its name, or where nobody gave it one, what it is."""
    return f"{name} {digest(constant)}" if name == default else name


def check_name(name: object, call: str) -> None:
    """A constant that picks out a basis says what it is known by. Left at its default it is known by its numbers."""
    if not isinstance(name, str) or not name.strip():
        raise InvalidSetting(
            f"InvalidSetting in {call}: name={name!r}. A constant that names a basis is known by its name: without one "
            f"its symmetry could not be stated. Give it one, name='the basis of ...', or leave the argument out."
        )


def digest(t: Tensor) -> str:
    """The same for the same numbers, and for no others."""
    numbers = t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return sha256(numbers + f"{t.dtype}{list(t.shape)}".encode()).hexdigest()[:8]


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


def no_restore(kind: str) -> NotClosed:
    return NotClosed(f"NotClosed in from_state: the kind {kind!r} does not say how it is restored: define restore.")


def check_state(state: Mapping[str, Any], space: VectorSpace, known: Mapping[str, object]) -> None:
    if state.get("kind") not in known:
        raise NotClosed(f"NotClosed in from_state: unknown kind {state.get('kind')!r}; known: {', '.join(known)}.")
    if state.get("shape") != list(space.shape):
        raise not_fitting(state, space)


def reciprocal(g: Solvable, scalar: Scalar) -> Scalar:
    if isinstance(scalar, (int, float)) and scalar == 0:
        raise NotAnInnerProduct(f"NotAnInnerProduct in /: {g!r} over 0. Divide by a positive number.")
    return 1.0 / scalar


def check_reference(g: Solvable, reference: Solvable, call: str) -> None:
    if reference.space != g.space:
        raise SpaceMismatch(f"SpaceMismatch in {call}: {reference!r} is no reference for {g.space}.")
    one_kind(g, reference, call)
