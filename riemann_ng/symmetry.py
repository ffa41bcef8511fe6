"""Which changes of frame an expression cannot see, and what is to blame for those that it can.

Operations never lose symmetry; constants do. Sums, contractions, inverses, tensor products, pullbacks and moments of
data commute with every change of frame, so the symmetry of an expression is the stabilizer of the *structures* that
its constants name, and the meet of two symmetries is the union of their structures: exact, each with its source.

Structures are fixed up to scale; dimensional analysis keeps the scales. A constant has a *weight* (a form h on X weighs
2 at X, its dual -2); weights add along products, agree in sums and vanish in a finished step. These equations on
log-scales find the joint scalings, which no product of groups, one per space, can express.

>>> damping = Symmetry.naming(Structure("A", "form", source="damping"), weight={"A": -2})
>>> print(Symmetry.natural() + damping)
A isometries. Lost: general, monomial, scaling of A — damping; uniform scale of A — weight -2·A of damping against 0

A space goes by its base name (`VectorSpace.bases`), which an affine space shares with its translations and its hull;
one never named keeps everything. In dimension one, where groups coincide, claims are sound but not as large as can be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any, Final

from .errors import RiemannError

Number = int | Fraction | float  # a float counts as the fraction that it is exactly: this is what is computed with
COORDINATES: Final = "coordinates"  # the name of the reference that comes with the components
LOSS: Final = "loss"  # the scale of the loss, as a space: a differential weighs 1 there, a covariance of gradients 2

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
        if self.kind not in FIXES or _base(self.space) == LOSS:
            known = f"{', '.join(FIXES)}, on a space that is not {LOSS!r}"
            raise InvalidSymmetry(f"InvalidSymmetry: no {self.kind!r} on {self.space!r}. Name one of {known}.")

    def fixed_by(self, group: str, reference: str = COORDINATES) -> bool:
        """Whether the group fixes it up to scale, the group of the axes and about the origin that `reference` names."""
        elsewhere = self.name != reference and (self.kind == "origin" or group not in FIXES_ELSEWHERE)
        return group in FIXES[self.kind] and not elsewhere

    def __str__(self) -> str:
        return self.source or f"{self.kind} {self.name!r} of {self.space}"


@dataclass(frozen=True)
class Weight:
    """A linear form on log-scales, `2·S - 2·A`; its sources are the constants that it comes from."""

    exponents: tuple[tuple[str, Fraction], ...] = ()
    sources: frozenset[str] = field(default=frozenset(), compare=False)

    @classmethod
    def of(cls, exponents: Mapping[str, Number], sources: Iterable[str] = ()) -> Weight:
        nonzero = sorted((_base(base), Fraction(p)) for base, p in exponents.items() if p)
        return cls(tuple(nonzero), frozenset(sources if nonzero else ()) - {""})

    def __getitem__(self, base: str) -> Fraction:
        return next((p for name, p in self.exponents if name == base), Fraction(0))

    def plus(self, other: Weight, times: Number = 1) -> Weight:
        bases = (base for base, _ in self.exponents + other.exponents)
        return Weight.of({x: self[x] + Fraction(times) * other[x] for x in bases}, self.sources | other.sources)

    def must_be(self, other: Weight) -> Weight:
        """The equation that two weights agree. Its source is its own account, for the blame."""
        left, right = (self, other) if self.exponents else (other, self)
        return Weight(left.plus(right, -1).exponents, frozenset({f"weight {left} against {right}"}))

    def modulo(self, rows: Mapping[str, Weight]) -> Weight:
        """What is left of it where the rows, given by their pivots, vanish."""
        rest = self
        for base, p in self.exponents:
            rest = rest.plus(rows[base], -p) if base in rows else rest
        return Weight.of(dict(rest.exponents), self.sources)

    @staticmethod
    def echelon(equations: Iterable[Weight]) -> dict[str, Weight]:
        """The rows of the reduced echelon form, by pivot: the same for all systems that have the same solutions."""
        rows: dict[str, Weight] = {}
        for equation in equations:
            if (rest := equation.modulo(rows)).exponents:
                pivot, p = rest.exponents[0]
                row = Weight().plus(rest, 1 / p)
                rows = {x: old.plus(row, -old[pivot]) if old[pivot] else old for x, old in rows.items()} | {pivot: row}
        return dict(sorted(rows.items()))

    def __str__(self) -> str:
        terms = [f"{'-' if p < 0 else '+'}{'' if abs(p) == 1 else f'{abs(p)}·'}{x}" for x, p in self.exponents]
        return f"{' '.join(terms).removeprefix('+')} of {', '.join(sorted(self.sources)) or 'data'}" if terms else "0"


@dataclass(frozen=True)
class Symmetry:
    """The frames in which an expression, its data moved and its constants left where they are, looks as it should.

    `fixed` are the structures named, `rows` the equations on log-scales in reduced echelon form, `defect` the weight
    left over: in frames scaled by exp(x) the expression comes out exp(defect·x) times what it should be. `named` and
    `equations` tell the same with the sources; comparisons leave them aside.

    A direct sum has one defect per summand. All that is ever used of them is this: *where the equations hold and the
    defects are equal, the expression is homogeneous of that degree.* A factor shifts each, a power scales each, closing
    wants each to vanish by itself. Sums pair them by position; any pairing that leaves none out would be sound. In
    products of two direct sums, and sums that do not match, those of each must agree: closing asks for it in any case.
    Laws: `s + t` is commutative, associative and idempotent, `s + t <= s`; a group is kept or something is to blame.
    """

    named: tuple[Structure, ...] = field(default=(), compare=False)
    equations: tuple[Weight, ...] = field(default=(), compare=False)
    defect: tuple[Weight, ...] = (Weight(),)
    fixed: frozenset[Structure] = field(init=False, repr=False)
    rows: tuple[Weight, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rows = Weight.echelon(self.equations)
        defect = tuple(weight.modulo(rows) for weight in self.defect)
        if len(set(defect)) == 1:  # for summands that agree one will do
            defect = (Weight(defect[0].exponents, frozenset().union(*(weight.sources for weight in defect))),)
        self.__dict__.update(defect=defect, fixed=frozenset(self.named), rows=tuple(rows.values()))
        self.__dict__["named"] = tuple({(s, s.source): s for s in self.named}.values())
        self.__dict__["equations"] = tuple({(e, e.sources): e for e in self.equations if e.exponents}.values())

    @classmethod
    def natural(cls, weight: Mapping[str, Number] = {}) -> Symmetry:
        """Of what names nothing, a moment of data. On a space it weighs nothing, unless it is a determinant."""
        return cls(defect=(Weight.of(weight),)) if weight else NATURAL

    @classmethod
    def naming(cls, *structures: Structure, weight: Mapping[str, Number] = {}) -> Symmetry:
        """Of one constant, of that weight. Euclidean(Â) is a sum of two: h* of weight -2 at A, and o⊗o of weight 0."""
        scaling = {s.space for s in structures if s.kind in ("form", "units", "frame")}
        for base in weight.keys() - scaling - {LOSS}:  # lines admit a scale per axis: a weight sees only the product
            raise InvalidSymmetry(
                f"InvalidSymmetry: a constant of weight {weight[base]} at {base!r} must name a form, units or a frame "
                f"there, got {list(map(str, structures))}. Name one, or use Symmetry.natural for a determinant of data."
            )
        return cls(structures, defect=(Weight.of(weight, (s.source for s in structures)),))

    @classmethod
    def direct_sum(cls, summands: Sequence[Symmetry]) -> Symmetry:
        return _joined(summands, [weight for part in summands for weight in part.defect] or [Weight()])

    def with_structure(self, *structures: Structure) -> Symmetry:
        """Of a function that names these besides: a diagonal names lines, an elementwise root units."""
        return Symmetry(self.named + structures, self.equations, self.defect)

    def __add__(self, other: Symmetry) -> Symmetry:
        """Of a sum or a blend: the weights must agree."""
        if (
            not any((self.named, other.named, self.equations, other.equations))
            and self._weightless
            and other._weightless
        ):
            return self  # two of data alone: the usual case, in every step of a running average
        s, t = (self, other) if len(self.defect) == len(other.defect) else (self._agreed(), other._agreed())
        pairs = list(zip(s.defect, t.defect, strict=True))
        return _joined([s, t], [u.plus(v, times=0) for u, v in pairs], [u.must_be(v) for u, v in pairs])

    def __mul__(self, other: Symmetry) -> Symmetry:
        """Of a product, a contraction, a multiple by a scalar: the weights add up."""
        s, t = (self, other) if 1 in (len(self.defect), len(other.defect)) else (self._agreed(), other._agreed())
        return _joined([s, t], [u.plus(v) for u in s.defect for v in t.defect])

    def __pow__(self, exponent: Number) -> Symmetry:
        """Of a power of a scalar, a dual (-1), a frame (-1/2). The root of a form is relative to one: h * (h⁻¹A)^p."""
        return _joined([self], [Weight().plus(weight, exponent) for weight in self.defect])

    def scalar_function(self) -> Symmetry:
        """Of a function that is not homogeneous, min(1, ·), a branch, a tolerance test: the weight must vanish."""
        return _joined([self], [Weight()], [weight.must_be(Weight()) for weight in self.defect])

    close = scalar_function  # a finished step must have no weight either; keeps, blame and <= take it as closed

    @property
    def _weightless(self) -> bool:
        return not any(weight.exponents for weight in self.defect)

    def _agreed(self) -> Symmetry:
        return _joined([self], self.defect, [self.defect[0].must_be(weight) for weight in self.defect])

    @cached_property
    def _scales(self) -> dict[str, Weight]:
        """The equations of the joint scalings that the finished expression keeps."""
        unscalable = (Weight.of({s.space: 1}) for s in self.fixed if not s.fixed_by(R))
        return Weight.echelon((*self.rows, *self.defect, *unscalable))

    @cached_property
    def spaces(self) -> tuple[str, ...]:
        """Where anything is named or weighed; all other spaces keep everything."""
        weighed = (x for row in self._scales.values() for x, _ in row.exponents)
        return tuple(sorted({s.space for s in self.fixed}.union(weighed) - {LOSS}))

    def keeps(self, space: str, group: str) -> bool:
        """Whether the finished expression does not see the group act on this space, and on no other."""
        return not self.blame(space, group)

    def keeps_joint(self, exponents: Mapping[str, Number]) -> bool:
        """Whether it does not see these spaces scaled together: `{"A": 1, "S": 1}` is a→ca, s→cs."""
        scaling = Weight.of(exponents)
        return not any(sum(row[x] * p for x, p in scaling.exponents) for row in self._scales.values())

    def blame(self, space: str, group: str) -> tuple[Structure | str, ...]:
        """What the group is lost at: structures that it does not fix, or else weights that disagree. Empty if kept."""
        groups = COMPOSITE.get(group, (group,))
        if not set(groups) <= set(GROUPS):
            known = f"{', '.join((*GROUPS, *COMPOSITE))}, or ask keeps_joint"
            raise InvalidSymmetry(f"InvalidSymmetry: no group is called {group!r}. Ask for one of {known}.")
        space = _base(space)
        guilty = tuple(s for s in self.named if s.space == space and not all(s.fixed_by(g) for g in groups))
        if guilty or STRETCHING.isdisjoint(groups):
            return guilty
        unequal = [e for e in (*self.equations, *(weight.must_be(Weight()) for weight in self.defect)) if e[space]]
        return tuple(dict.fromkeys(account for equation in unequal for account in equation.sources))

    def __le__(self, other: Symmetry) -> bool:
        """Whether the other keeps all that this one keeps. Two that keep the same need not be equal."""
        cells = ((s.space, group) for s in other.fixed for group in GROUPS)
        scales = (row.modulo(self._scales) for row in other._scales.values())
        return all(other.keeps(*c) or not self.keeps(*c) for c in cells) and not any(row.exponents for row in scales)

    def to_state(self) -> list[list[Any]]:
        groups = (self.equations, self.defect)
        plain = [[[[[x, str(p)] for x, p in w.exponents], sorted(w.sources)] for w in group] for group in groups]
        return [[[s.space, s.kind, s.name, s.source] for s in self.named], *plain]

    @classmethod
    def from_state(cls, state: list[list[Any]]) -> Symmetry:
        named, *groups = state
        weights = (tuple(Weight.of(dict(terms), sources) for terms, sources in group) for group in groups)
        return cls(tuple(Structure(*fields) for fields in named), *weights)

    def __str__(self) -> str:
        kept: dict[str, list[str]] = {}
        for space in self.spaces:
            kept.setdefault(self._kept(space), []).append(space)
        parts = [f"{', '.join(spaces)} {groups}" for groups, spaces in kept.items()] or ["affine on every space"]
        lost = "; ".join(self._losses(" — "))
        return "; ".join(parts + self._joint_scalings()) + (f". Lost: {lost}" if lost else "")

    def _kept(self, space: str) -> str:
        """The largest groups kept; if all structures there have one name, the groups are those of its reference."""
        here = [s for s in self.fixed if s.space == space]
        reference = names.pop() if len(names := {s.name for s in here}) == 1 else COORDINATES
        lost = STRETCHING if any(weight[space] for weight in self.rows + self.defect) else ()
        groups = [g for g in GROUPS if g not in lost and all(s.fixed_by(g, reference) for s in here)]
        text = " and ".join(g for g in groups if not any(g in WITHIN.get(larger, ()) for larger in groups)) or "nothing"
        text = text.replace(f"{T} and {GL}", "affine").replace(f"{T} and {O}", "isometries")
        origin = "" if T in groups else " about the coordinate origin"
        return text + (origin if reference == COORDINATES else f" about {reference!r}")

    def _joint_scalings(self) -> list[str]:
        """A basis of the scalings kept that move several spaces at once."""
        free = sorted({x for row in self._scales.values() for x, _ in row.exponents} - self._scales.keys())
        basis = [{x: Fraction(1)} | {pivot: -row[x] for pivot, row in self._scales.items() if row[x]} for x in free]
        return ["joint " + ", ".join(f"{x}→c{f'^{p}' * (p != 1)}·{x}" for x, p in sorted(s.items())) for s in basis]

    def _losses(self, at: str) -> list[str]:
        """Groups, their space and the culprits; groups that are lost at the same terms stand together."""
        lost: dict[tuple[str, str], list[str]] = {}
        for space, group in [*((space, group) for space in self.spaces for group in GROUPS), (LOSS, R)]:
            lost.setdefault((space, ", ".join(dict.fromkeys(map(str, self.blame(space, group))))), []).append(group)
        return [
            f"{', '.join(groups)} of {space}{at.format('is' if groups == [R] else 'are')}{guilty}"
            for (space, guilty), groups in lost.items()
            if guilty
        ]


NATURAL = Symmetry()


def explain(symmetry: Symmetry) -> str:
    """One line per loss, with what is to blame: `translations of fc1.A are lost at: weight apart from bias`."""
    return "\n".join(symmetry._losses(" {} lost at: ")) or "nothing is lost: every affine change of frame is kept"


def _joined(parts: Iterable[Symmetry], defect: Iterable[Weight], equations: Iterable[Weight] = ()) -> Symmetry:
    named = (s for part in parts for s in part.named)
    return Symmetry(tuple(named), (*(e for part in parts for e in part.equations), *equations), tuple(defect))
