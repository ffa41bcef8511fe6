"""Which changes of frame an expression cannot see, and what is to blame for those that it can.

Operations never lose symmetry; constants do. Contraction, sum, inverse, tensor product, pullback and moments of data
commute with every change of frame, so the symmetry of an expression is the stabilizer of the *structures* that its
constants name. The meet of two symmetries is the union of their structures: exact, never guessed, and every structure
carries the term that brought it.

Structures are fixed up to scale, and dimensional analysis keeps the scales: a constant has a *weight* (a form h on X
weighs 2 at X, its dual -2); weights add along products, agree in sums and vanish in a finished step. These equations
on log-scales find the joint scalings, which a product of groups, one per space, cannot express.

>>> h = Symmetry.naming(Structure("A", "form", source="Euclidean(A)"), weight={"A": -2})
>>> o = Symmetry.naming(Structure("A", "origin", source="Euclidean(Â)"))
>>> print(explain(Symmetry.natural() + h + o))  # Euclidean(Â) is two constants, h* + o⊗o
translations of A are lost at: Euclidean(Â)
general, monomial, scaling of A are lost at: Euclidean(A)
uniform scale of A are lost at: weight -2·A of Euclidean(A) against 0

Spaces go by their base names (`VectorSpace.bases`): one name for an affine space, its translations and its hull. What
is named nowhere keeps everything. Dimensions are not known here: in dimension one, where groups coincide, claims are
sound but smaller than they could be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any, Final

from .errors import RiemannError

Number = int | Fraction | float  # a float counts as the fraction that it is exactly: this is what is computed with

LOSS: Final = "loss"
"""The variable for the scale of the loss: a differential weighs 1 there, a covariance of gradients 2."""
COORDINATES: Final = "coordinates"

T, GL, O, M, D = "translations", "general", "orthogonal", "monomial", "scaling"  # noqa: E741
SP, P, R = "signed permutations", "permutations", "uniform scale"
GROUPS: Final = (T, GL, O, M, D, SP, P, R)  # the linear ones are about the coordinate origin, in the coordinate axes
COMPOSITE: Final = {"isometries": (T, O), "affine": (T, GL)}
WITHIN: Final = {GL: {O, M, D, SP, P, R}, O: {SP, P}, M: {D, SP, P, R}, D: {R}, SP: {P}}
STRETCHING: Final = frozenset({GL, M, D, R})  # the groups that contain the uniform scalings

FIXES: Final[dict[str, frozenset[str]]] = {
    "origin": frozenset({GL, O, M, D, SP, P, R}),
    "form": frozenset({T, O, SP, P, R}),  # on the translations; one on the hull names an origin as well
    "lines": frozenset({T, M, D, SP, P, R}),
    "units": frozenset({T, SP, P, R}),  # {±e_i}: of maps that act axis by axis and are not homogeneous
    "blocks": frozenset({T, D, R}),
    "frame": frozenset({T}),  # also for what is none of the above: flag, sketch, volume, order of the axes
}
FIXES_ELSEWHERE: Final = frozenset({T, R})  # what a structure of another name can keep; another origin keeps nothing


class InvalidSymmetry(RiemannError):
    """A structure, a group or a weight that means nothing."""


def _base(name: object) -> str:
    if not isinstance(name, str) or not name:  # a Space given here would match no name, and seem to keep everything
        raise InvalidSymmetry(f"InvalidSymmetry: expected the name of a base space, got {name!r}. Take one of V.bases.")
    return name


@dataclass(frozen=True)
class Structure:
    """What a constant names on a space, up to scale. The name is part of the type: forms of two names are two forms."""

    space: str
    kind: str
    name: str = COORDINATES
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.kind not in FIXES:
            raise InvalidSymmetry(f"InvalidSymmetry: no structure is a {self.kind!r}. Name one of {', '.join(FIXES)}.")
        if _base(self.space) == LOSS:
            raise InvalidSymmetry(f"InvalidSymmetry: {LOSS!r} is the scale of the loss. Give the space another name.")

    def fixed_by(self, group: str, reference: str = COORDINATES) -> bool:
        """Whether the group fixes it up to scale, the group of the axes and about the origin that `reference` names."""
        if self.name != reference and (self.kind == "origin" or group not in FIXES_ELSEWHERE):
            return False
        return group in FIXES[self.kind]

    def __str__(self) -> str:
        return self.source or f"{self.kind} {self.name!r} of {self.space}"


@dataclass(frozen=True)
class Weight:
    """A linear form on log-scales, `2·S - 2·A`; its sources are the constants that it comes from."""

    exponents: tuple[tuple[str, Fraction], ...] = ()
    sources: frozenset[str] = field(default=frozenset(), compare=False)

    @classmethod
    def of(cls, exponents: Mapping[str, Number], sources: Iterable[str] = ()) -> Weight:
        nonzero = ((_base(base), Fraction(p)) for base, p in exponents.items() if p)
        return cls(tuple(sorted(nonzero)), frozenset(sources) - {""})

    def __getitem__(self, base: str) -> Fraction:
        return next((p for name, p in self.exponents if name == base), Fraction(0))

    def plus(self, other: Weight, times: Number = 1) -> Weight:
        bases = [base for base, _ in self.exponents + other.exponents]
        total = {base: self[base] + Fraction(times) * other[base] for base in bases}
        return Weight.of(total, self.sources | other.sources)

    def modulo(self, rows: Mapping[str, Weight]) -> Weight:
        """What is left of it where the rows, given by their pivots, vanish."""
        rest = self
        for base, p in self.exponents:
            rest = rest.plus(rows[base], -p) if base in rows else rest
        return Weight(rest.exponents, self.sources)

    def __str__(self) -> str:
        terms = [f"{'-' if p < 0 else '+'}{'' if abs(p) == 1 else f'{abs(p)}·'}{x}" for x, p in self.exponents]
        return f"{' '.join(terms).removeprefix('+')} of {', '.join(sorted(self.sources)) or 'data'}" if terms else "0"


def echelon(weights: Iterable[Weight]) -> dict[str, Weight]:
    """The rows of the reduced echelon form, by pivot: the same for all systems that have the same solutions."""
    rows: dict[str, Weight] = {}
    for weight in weights:
        rest = weight.modulo(rows)
        if rest.exponents:
            pivot, p = rest.exponents[0]
            row = Weight().plus(rest, 1 / p)
            rows = {base: other.plus(row, -other[pivot]) if other[pivot] else other for base, other in rows.items()}
            rows[pivot] = row
    return dict(sorted(rows.items()))


Equation = tuple[Weight, Weight]  # two weights that must agree


@dataclass(frozen=True)
class Symmetry:
    """The frames in which an expression, its data moved and its constants left where they are, looks as it should.

    `fixed` are the structures named, `rows` the equations on log-scales in reduced echelon form, `defect` the weight
    left over: in frames scaled by exp(x) the expression comes out exp(defect·x) times what it should be. `named` and
    `equations` say the same with every term that brought it, and take no part in comparisons.

    A direct sum has one defect per summand. All that is ever used of them is this: *where the equations hold and the
    defects are equal, the expression is homogeneous of that degree.* So a product with a single weight shifts each, a
    power scales each, and the finished step wants each to vanish, apart from the others. Sums pair them by position
    (any pairing that leaves none out is sound). Where two direct sums are multiplied, or added and do not match, the
    summands of each must agree; the finished step asks for that in any case, so its claim is no smaller.

    Laws: `s + t` is commutative, associative, idempotent, and the largest that is `<= s` and `<= t` if weights agree;
    a group is either kept or something is to blame; `s.close()` keeps what `s` keeps.
    """

    named: tuple[Structure, ...] = field(default=(), compare=False)
    equations: tuple[Equation, ...] = field(default=(), compare=False)
    defect: tuple[Weight, ...] = (Weight(),)
    fixed: frozenset[Structure] = field(init=False, repr=False)
    rows: tuple[Weight, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rows = echelon(left.plus(right, -1) for left, right in self.equations)
        defect = tuple(weight.modulo(rows) for weight in self.defect)
        if len(set(defect)) == 1:  # for summands that agree one will do
            defect = (Weight(defect[0].exponents, frozenset().union(*(weight.sources for weight in defect))),)
        unequal = ((left, right) for left, right in self.equations if left != right)
        distinct = {(left, right, left.sources, right.sources): (left, right) for left, right in unequal}
        set_once = object.__setattr__
        set_once(self, "named", tuple({(s, s.source): s for s in self.named}.values()))
        set_once(self, "equations", tuple(distinct.values()))
        set_once(self, "defect", defect)
        set_once(self, "fixed", frozenset(self.named))
        set_once(self, "rows", tuple(rows.values()))

    @classmethod
    def natural(cls, weight: Mapping[str, Number] = {}) -> Symmetry:
        """Of what names nothing, a moment of data. On a space it weighs nothing, unless it is a determinant."""
        return cls(defect=(Weight.of(weight),))

    @classmethod
    def naming(cls, *structures: Structure, weight: Mapping[str, Number] = {}) -> Symmetry:
        """Of one constant, which the stabilizer of the structures multiplies by the scale of that weight."""
        scaling = {s.space for s in structures if s.kind in ("form", "units", "frame")} | {LOSS}
        for base in weight.keys() - scaling:  # lines admit a scale per axis; of those a weight sees only the product
            raise InvalidSymmetry(
                f"InvalidSymmetry: a constant of weight {weight[base]} at {base!r} names a form, units or a frame there, "
                f"got {', '.join(map(str, structures)) or 'nothing'}. Name one, or use natural for a determinant of data."
            )
        return cls(structures, defect=(Weight.of(weight, (s.source for s in structures)),))

    @classmethod
    def direct_sum(cls, summands: Iterable[Symmetry]) -> Symmetry:
        parts = tuple(summands)
        if not parts:
            raise InvalidSymmetry("InvalidSymmetry in direct_sum: got no summands. Give at least one symmetry.")
        return _joined(parts, defect=[weight for part in parts for weight in part.defect])

    def with_structure(self, *structures: Structure) -> Symmetry:
        """Of a function that names these besides: a diagonal names lines, an elementwise root units."""
        return Symmetry(self.named + structures, self.equations, self.defect)

    def __add__(self, other: Symmetry) -> Symmetry:
        """Of a sum or a blend: the weights must agree."""
        match = len(self.defect) == len(other.defect)
        s, t = (self, other) if match else (self._agreed(), other._agreed())
        pairs = list(zip(s.defect, t.defect, strict=True))
        return _joined([s, t], pairs, [Weight(u.exponents, u.sources | v.sources) for u, v in pairs])

    def __mul__(self, other: Symmetry) -> Symmetry:
        """Of a product, a contraction, a multiple by a scalar: the weights add up."""
        single = len(self.defect) == 1 or len(other.defect) == 1
        s, t = (self, other) if single else (self._agreed(), other._agreed())
        return _joined([s, t], defect=[u.plus(v) for u in s.defect for v in t.defect])

    def __pow__(self, exponent: Number) -> Symmetry:
        """Of a power of a scalar, a dual (-1), a frame (-1/2). The root of a form is relative to one: h * (h⁻¹A)^p."""
        return _joined([self], defect=[Weight().plus(weight, exponent) for weight in self.defect])

    def scalar_function(self) -> Symmetry:
        """Of a function that is not homogeneous, min(1, ·), a branch, a tolerance test: the weight must vanish."""
        return _joined([self], [(weight, Weight()) for weight in self.defect], [Weight()])

    close = scalar_function  # a finished step must have no weight either; keeps, blame and <= take it as closed

    def _agreed(self) -> Symmetry:
        return _joined([self], [(self.defect[0], weight) for weight in self.defect], self.defect)

    @cached_property
    def _scales(self) -> dict[str, Weight]:
        """The equations of the joint scalings that the finished expression keeps."""
        immovable = (Weight.of({s.space: 1}) for s in self.fixed if not s.fixed_by(R))
        return echelon((*self.rows, *self.defect, *immovable))

    @cached_property
    def spaces(self) -> tuple[str, ...]:
        """Where anything is named or weighed; all other spaces keep everything."""
        weighed = {base for row in self._scales.values() for base, _ in row.exponents}
        return tuple(sorted(weighed.union(s.space for s in self.fixed) - {LOSS}))

    def keeps(self, space: str, group: str) -> bool:
        """Whether the finished expression does not see the group act on this space, and on no other."""
        return not self.blame(space, group)

    def keeps_joint(self, exponents: Mapping[str, Number]) -> bool:
        """Whether it does not see these spaces scaled together: `{"A": 1, "S": 1}` is a→ca, s→cs."""
        scaling = Weight.of(exponents)
        return not any(sum(row[base] * p for base, p in scaling.exponents) for row in self._scales.values())

    def blame(self, space: str, group: str) -> tuple[Structure | str, ...]:
        """What the group is lost at: structures that it does not fix, or else weights that disagree. Empty if kept."""
        if group in COMPOSITE:
            return tuple(dict.fromkeys(guilty for part in COMPOSITE[group] for guilty in self.blame(space, part)))
        if group not in GROUPS:
            raise InvalidSymmetry(
                f"InvalidSymmetry: no group is called {group!r}. Ask for one of {', '.join((*GROUPS, *COMPOSITE))}; "
                f"of joint scalings ask keeps_joint."
            )
        guilty = tuple(s for s in self.named if s.space == _base(space) and not s.fixed_by(group))
        if guilty or group not in STRETCHING:
            return guilty
        equations = (*self.equations, *((weight, Weight()) for weight in self.defect))
        unequal = (f"weight {left} against {right}" for left, right in equations if left[space] != right[space])
        return tuple(dict.fromkeys(unequal))

    def __le__(self, other: Symmetry) -> bool:
        """Whether the other keeps all that this one keeps. Two that keep the same need not be equal."""
        cells = ((s.space, group) for s in other.fixed for group in GROUPS)
        if any(self.keeps(*cell) and not other.keeps(*cell) for cell in cells):
            return False
        return not any(row.modulo(self._scales).exponents for row in other._scales.values())

    def __str__(self) -> str:
        kept: dict[str, list[str]] = {}
        for space in self.spaces:
            kept.setdefault(_kept(self, space), []).append(space)
        parts = [f"{', '.join(spaces)} {groups}" for groups, spaces in kept.items()] or ["affine on every space"]
        lost = "; ".join(f"{groups} of {space} — {guilty}" for groups, space, guilty in _losses(self))
        return "; ".join(parts + _joint_scalings(self)) + (f". Lost: {lost}" if lost else "")

    def to_state(self) -> list[list[Any]]:
        """Lists, strings and integers."""
        named = [[s.space, s.kind, s.name, s.source] for s in self.named]
        return [named, [[_pack(weight) for weight in pair] for pair in self.equations], list(map(_pack, self.defect))]

    @classmethod
    def from_state(cls, state: list[list[Any]]) -> Symmetry:
        named, equations, defect = state
        pairs = ((_unpack(left), _unpack(right)) for left, right in equations)
        return cls(tuple(Structure(*s) for s in named), tuple(pairs), tuple(map(_unpack, defect)))


def _joined(parts: Iterable[Symmetry], equations: Iterable[Equation] = (), defect: Iterable[Weight] = ()) -> Symmetry:
    named = (s for part in parts for s in part.named)
    return Symmetry(tuple(named), (*(e for part in parts for e in part.equations), *equations), tuple(defect))


def _pack(weight: Weight) -> list[list[Any]]:
    return [[[base, p.numerator, p.denominator] for base, p in weight.exponents], sorted(weight.sources)]


def _unpack(state: list[list[Any]]) -> Weight:
    return Weight.of({base: Fraction(p, q) for base, p, q in state[0]}, state[1])


def explain(symmetry: Symmetry) -> str:
    """One line per loss, with what is to blame: `translations of fc1.A are lost at: weight apart from bias`."""
    lines = [f"{groups} of {space} are lost at: {guilty}" for groups, space, guilty in _losses(symmetry)]
    return "\n".join(lines) or "nothing is lost: every affine change of frame is kept"


def _losses(symmetry: Symmetry) -> list[tuple[str, str, str]]:
    """Groups, their space and the culprits; groups that are lost at the same terms stand together."""
    lost: dict[tuple[str, str], list[str]] = {}
    for space, groups in [*((space, GROUPS) for space in symmetry.spaces), (LOSS, (R,))]:
        for group in groups:
            if blame := symmetry.blame(space, group):
                lost.setdefault((space, ", ".join(dict.fromkeys(map(str, blame)))), []).append(group)
    return [(", ".join(groups), space, guilty) for (space, guilty), groups in lost.items()]


def _kept(symmetry: Symmetry, space: str) -> str:
    """The largest groups kept; if all structures there have one name, the groups are those of its reference."""
    here = [s for s in symmetry.fixed if s.space == space]
    names = {s.name for s in here}
    reference = names.pop() if len(names) == 1 else COORDINATES
    scalable = not any(row[space] for row in symmetry._scales.values())
    groups = [g for g in GROUPS if all(s.fixed_by(g, reference) for s in here) and (scalable or g not in STRETCHING)]
    text = " and ".join(g for g in groups if not any(g in WITHIN.get(larger, ()) for larger in groups))
    for name, parts in COMPOSITE.items():
        text = text.replace(" and ".join(parts), name)
    where = "the coordinate origin" if reference == COORDINATES else repr(reference)
    return (text or "nothing") + ("" if T in groups and reference == COORDINATES else f" about {where}")


def _joint_scalings(symmetry: Symmetry) -> list[str]:
    """A basis of the scalings kept that move several spaces at once."""
    rows = symmetry._scales
    free = sorted({base for row in rows.values() for base, _ in row.exponents} - rows.keys())
    basis = [{base: Fraction(1)} | {pivot: -row[base] for pivot, row in rows.items() if row[base]} for base in free]
    return ["joint " + ", ".join(f"{x}→c{'' if p == 1 else f'^{p}'}·{x}" for x, p in sorted(s.items())) for s in basis]
