"""Forms that are diagonal in an eigenbasis that is kept for a while, with what the next basis is made of.

The factors' eigenvectors are a function of the factors where their eigenvalues are apart. Where some coincide, those of
a kernel above all, the basis of their space is a choice. Here it is the one next to the axes of the frame that the
factors are written in: rounding does not change it, and it is named where it shows, when entries of the diagonal along
these vectors differ.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import SpaceMismatch
from ..factorizations import Factorization
from ..inner_products import InnerProduct, Power, RotatedDiagonal
from ..inner_products.base import State, kind
from ..inner_products.symmetries import with_frame
from ..solvers import Structure
from ..spaces import Family, VectorSpace, tensor_product
from ..symmetry import Symmetry
from .named_frames import is_data

TIED = 1e-12
"""Neighbouring eigenvalues that differ by less, relative to the largest, are one."""
SEEN = 1e-9
"""Entries of the diagonal along tied vectors that differ by more, relative to the largest, show the choice of basis."""

Pair = tuple[Tensor, Tensor]


@kind("kept eigenbasis")
class KeptEigenbasis(InnerProduct):
    """A power of a diagonal in an eigenbasis, with the averages of the two factors that the next basis is made of.

    `value` is the form. `moments` are matrices in the frame that `turns`, the eigenvectors, are relative to; `ties`
    give eigenvalues that coincide the same number. `age` counts the forms that the diagonal is the mean of, and
    `mass` is what they weigh. `came_from` are the turns of the form that this one is to be blended with, and `order`
    says which of their vectors stands where.
    """

    def __init__(
        self,
        value: Power,
        moments: Pair,
        turns: Pair,
        ties: Pair,
        age: int = 1,
        mass: float = 1.0,
        came_from: Pair | None = None,
        order: Pair | None = None,
    ):
        if not isinstance(value.of, RotatedDiagonal):
            raise SpaceMismatch(f"SpaceMismatch in KeptEigenbasis: {value!r} is no power of a diagonal in a frame.")
        self.value, self.diagonal_form, self.space = value, value.of, value.space
        self.moments, self.turns, self.ties, self.age, self.mass = moments, turns, ties, age, mass
        self.came_from, self.order = came_from, order

    def flat_components(self, x: Tensor) -> Tensor:
        return self.value.flat_components(x)

    def tensors(self) -> Iterator[Tensor]:
        return self.value.tensors()

    @property
    def by_members(self) -> bool:
        return self.value.by_members

    @property
    def structure(self) -> Structure:
        return self.value.value.structure

    def diagonal_entries(self, like: Tensor | None = None) -> Tensor:
        return self.value.diagonal_entries(like)

    def direct_factorization(self, method: str) -> Factorization | None:
        return self.value.direct_factorization(method)

    @property
    def symmetry(self) -> Symmetry:
        return self.value.symmetry

    def expression(self) -> str:
        return self.value.expression()

    def blended(self, other: InnerProduct, weight: float) -> InnerProduct:
        """The factors' averages, and that of the diagonals, the earlier one carried over to the later basis."""
        if not isinstance(other, KeptEigenbasis) or not other.follows(self):
            return super().blended(other, weight)
        mine, theirs = self.diagonal_form, other.diagonal_form
        earlier = mine.spectrum
        if other.order is not None and not same(other.turns, self.turns):
            earlier = reordered(earlier, other.order)
        old, new = (1 - weight) * self.mass, weight * other.mass
        share = new / (old + new) if old + new else 1.0
        squares, made_with = earlier.lerp(theirs.spectrum, share), mine.made_with + theirs.made_with
        made_with = chosen(made_with, other.ties, squares, theirs)
        value = Power(
            theirs.with_spectrum(squares, made_with), other.value.power, other.value.before, other.value.after
        )
        left, right = (a.lerp(b, weight) for a, b in zip(self.moments, other.moments, strict=True))
        return KeptEigenbasis(value, (left, right), other.turns, other.ties, other.age, old + new)

    def follows(self, other: KeptEigenbasis) -> bool:
        """Whether it is in the basis of the other, or in one that was made of it."""
        return same(self.turns, other.turns) or same(self.came_from, other.turns)

    def own_state(self) -> State:
        pairs = {"moments": self.moments, "turns": self.turns, "ties": self.ties}
        return {
            "value": self.value.state(), "age": self.age, "mass": self.mass, **{k: list(p) for k, p in pairs.items()},
        }  # fmt: skip

    @classmethod
    def restore(cls, space: VectorSpace, state: State) -> KeptEigenbasis:
        value = InnerProduct.from_state(space, state["value"])
        assert isinstance(value, Power)
        moments, turns, ties = (tuple(state[k]) for k in ("moments", "turns", "ties"))
        return cls(value, moments, turns, ties, state["age"], state["mass"])


def same(a: Pair | None, b: Pair) -> bool:
    return a is not None and all(x is y for x, y in zip(a, b, strict=True))


def reordered(squares: Tensor, order: Pair) -> Tensor:
    """Entries, those along the vectors that now stand in another place taken along."""
    for axis, o in zip((-2, -1), order, strict=True):
        index = o if o.ndim == 1 else o.unsqueeze(-1 if axis == -2 else -2).expand(squares.shape)
        squares = squares.index_select(axis, o) if o.ndim == 1 else squares.gather(axis, index)
    return squares


def chosen(symmetry: Symmetry, ties: Pair, squares: Tensor, form: RotatedDiagonal) -> Symmetry:
    """The symmetry with the frame that tied vectors were chosen by, where the diagonal tells them apart."""
    if is_data(form.reference):
        return symmetry
    for axis, tie, side in zip((-2, -1), ties, sides(form), strict=True):
        if tells_apart(squares, tie, axis):
            source = f"the axes next to the coordinates' where eigenvalues of {form.name} coincide"
            symmetry = with_frame(symmetry, side, form.name, source)
    return symmetry


def sides(form: RotatedDiagonal) -> tuple[VectorSpace, VectorSpace]:
    """The two spaces that the axes are of."""
    member = form.space.of if isinstance(form.space, Family) else form.space
    atoms, first, dim = member.factors, 0, 1
    while dim < form.axes[0].shape[-1] or first == 0:
        dim *= atoms[first].dim
        first += 1
    return tensor_product(*atoms[:first]), tensor_product(*atoms[first:])


def tells_apart(squares: Tensor, tie: Tensor, axis: int) -> bool:
    """Whether entries differ along vectors of one number."""
    rows = squares.movedim(axis, -2)
    if tie.ndim == 1 or rows.ndim == 2:
        return _differ(rows, tie if tie.ndim == 1 else tie[0], squares)
    return any(_differ(row, each, squares) for row, each in zip(rows, tie, strict=True))


def _differ(rows: Tensor, tie: Tensor, squares: Tensor) -> bool:
    _, counts = number = torch.unique(tie, return_counts=True)
    for label in number[0][counts > 1]:
        some = rows[..., tie == label, :]
        if bool((some.amax(-2) - some.amin(-2) > SEEN * squares.max()).any()):
            return True
    return False


# Bases


def eigenbasis(M: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors of a matrix, or of each of several, the largest eigenvalue first; and which of these coincide."""
    if M.ndim == 3:
        found = [eigenbasis(each) for each in M]
        return torch.stack([v for v, _ in found]), torch.stack([t for _, t in found])
    values, vectors = torch.linalg.eigh(M.double())
    values, vectors = values.flip(-1), vectors.flip(-1)
    apart = values[:-1] - values[1:] > TIED * values[0]
    tie = torch.cat([apart.new_zeros(1), apart]).cumsum(0)
    labels, counts = torch.unique(tie, return_counts=True)
    for label in labels[counts > 1]:
        vectors[:, tie == label] = next_to_axes(vectors[:, tie == label])
    return vectors.to(M), tie


def next_to_axes(V: Tensor) -> Tensor:
    """An orthonormal basis of the span of orthonormal columns, from the axes that are nearest, in their order.

    Each vector is that in the span next to an axis, orthogonal to the ones before: an axis that lies in it is one.
    """
    rest, chosen_by, made = V.clone(), [], []
    for _ in range(V.shape[1]):
        lengths = rest.square().sum(-1)
        longest = torch.nonzero(lengths >= (1 - 1e-6) * lengths.max())[0, 0]  # of equals the first, whatever rounding
        w = rest[longest] / lengths[longest].sqrt()
        chosen_by.append(int(longest))
        made.append(V @ w)
        rest = rest - torch.outer(rest @ w, w)
    order = sorted(range(len(made)), key=chosen_by.__getitem__)
    return torch.stack([made[i] for i in order], -1)


def iterated(M: Tensor, turn: Tensor, tie: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One power iteration of a basis, columns in the order of Qᵀ M Q; with that order, and the ties along with it.

    Vectors that M takes to nothing stay, orthogonal to the others: what rounding leaves of them says nothing.
    """
    moved = M @ turn
    order = (turn * moved).sum(-2).argsort(dim=-1, descending=True)
    columns = order.unsqueeze(-2).expand(moved.shape)
    moved, before = moved.gather(-1, columns), turn.gather(-1, columns)
    lengths = moved.square().sum(-2, keepdim=True).sqrt()
    seen = lengths > TIED * lengths.amax(-1, keepdim=True)
    return torch.linalg.qr(torch.where(seen, moved, before))[0], order, tie.gather(-1, order)
