"""Symmetry inference against brute force: what is claimed is compared with what matrices do.

`check_table`, `check_meets`, `check_methods` and `check_scales` are the refuters. Beside them stands the negative
control: rules broken on purpose, each of which a refuter must find to claim too much.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from riemann_ng import symmetry as module
from riemann_ng.spaces import Space
from riemann_ng.symmetry import (
    COMPOSITE,
    FIXES,
    FIXES_ELSEWHERE,
    GROUPS,
    LOSS,
    WITHIN,
    InvalidSymmetry,
    Structure,
    Symmetry,
    Weight,
    explain,
)

Array = np.ndarray
Element = tuple[Array, Array]  # L, t of x ↦ Lx + t
naming, natural = Symmetry.naming, Symmetry.natural
HALF = Fraction(1, 2)


class Unsound(AssertionError):
    """A claim that matrices refute."""


class Verdicts:
    """Claims beside what was found: too much is refuted at once, too little is remembered."""

    def __init__(self) -> None:
        self.missed: list[object] = []

    def compare(self, claimed: bool, found: bool, *where: object) -> None:
        if claimed and not found:
            raise Unsound(where)
        if found and not claimed:
            self.missed.append(where)


# -- Groups and structures, as matrices -------------------------------------------------------------------------------


def element(group: str, n: int, rng: np.random.Generator) -> Element:
    """A random element of a group, about the origin and in the axes of the coordinates."""
    order = rng.permutation(n)
    permutation = np.zeros((n, n))
    permutation[np.roll(order, 1), order] = 1  # one cycle through all axes: no axis and no block stays where it is
    signs = np.diag(rng.permutation([-1.0, *rng.choice([-1.0, 1.0], n - 1)]))
    rotation, other = (np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(2))
    spread = np.diag(np.exp(np.linspace(-0.7, 0.6, n) + rng.uniform(-0.05, 0.05, n)))
    linear = {
        "translations": np.eye(n),
        "general": rotation @ spread @ other,
        "orthogonal": rotation,
        "monomial": signs @ spread @ permutation,
        "scaling": spread,
        "signed permutations": signs @ permutation,
        "permutations": permutation,
        "uniform scale": np.exp(rng.choice([-1, 1]) * rng.uniform(0.3, 0.7)) * np.eye(n),
    }
    return linear[group], rng.normal(size=n) if group == "translations" else np.zeros(n)


def is_monomial(C: Array) -> bool:
    entries = abs(C) > 1e-9
    return bool((entries.sum(0) == 1).all() and (entries.sum(1) == 1).all())


def fixes(kind: str, moved_by: Element, axes: Array, origin: Array) -> bool:
    """Whether an affine map fixes, up to scale, the structure that these axes and this origin define."""
    L, t = moved_by
    n, C = len(L), np.linalg.solve(axes, L @ axes)
    if kind == "origin":
        return np.allclose(L @ origin + t, origin)
    if kind == "form":
        return np.allclose(C.T @ C, (C.T @ C)[0, 0] * np.eye(n))
    if kind == "lines":
        return is_monomial(C)
    if kind == "units":
        return is_monomial(C) and np.allclose(abs(C).max(0), abs(C).max())
    if kind == "blocks":
        block = (np.arange(n) >= n // 2).astype(int)
        image = [set(block[abs(C[:, block == b]).max(1) > 1e-9]) for b in sorted(set(block))]
        return all(len(blocks) == 1 for blocks in image)
    return np.allclose(C, np.eye(n))


def references(n: int, rng: np.random.Generator) -> dict[str, tuple[Array, Array]]:
    """The axes and the origin of the coordinates, and two more."""
    others = {name: (rng.normal(size=(n, n)), 1 + rng.uniform(size=n)) for name in ("M1", "M2")}
    return {"coordinates": (np.eye(n), np.zeros(n)), **others}


def fixed_by_all(structures: Sequence[Structure], group: str, n: int) -> bool:
    rng = np.random.default_rng(0)
    frames = references(n, rng)
    elements = [element(group, n, rng) for _ in range(4)]
    return all(fixes(s.kind, g, *frames[s.name]) for s in structures for g in elements)


def check_table() -> None:
    """A structure is claimed to be fixed by a group exactly when every element of the group fixes it."""
    verdicts = Verdicts()
    for kind, name, group in itertools.product(FIXES, ("coordinates", "M1"), GROUPS):
        thing = Structure("X", kind, name)
        verdicts.compare(naming(thing).keeps("X", group), fixed_by_all([thing], group, 5), kind, name, group)
    assert not verdicts.missed


def check_meets() -> None:
    """A sum of constants is claimed to keep exactly the groups that fix all of them."""
    verdicts = Verdicts()
    things = [Structure("X", kind, name) for kind in FIXES for name in ("coordinates", "M1", "M2")]
    for pair in itertools.combinations_with_replacement(things, 2):
        meet = naming(pair[0]) + naming(pair[1])
        for group in GROUPS:
            verdicts.compare(meet.keeps("X", group), fixed_by_all(pair, group, 5), pair, group)
    assert not verdicts.missed


def test_each_row_of_the_table_is_what_matrices_do() -> None:
    check_table()


def test_each_meet_of_two_structures_is_what_matrices_do() -> None:
    check_meets()


def test_in_dimension_one_claims_are_sound() -> None:
    for kind, group in itertools.product(FIXES, GROUPS):
        assert fixed_by_all([Structure("X", kind)], group, 1) or not naming(Structure("X", kind)).keeps("X", group)


def test_the_order_of_the_groups_is_what_the_table_says_of_them() -> None:
    for kind, (larger, smaller) in itertools.product(FIXES, WITHIN.items()):
        assert larger not in FIXES[kind] or smaller <= FIXES[kind]


def test_the_names_cover_the_rows_of_the_theory() -> None:
    T, GL, O, M, D = "translations", "general", "orthogonal", "monomial", "scaling"  # noqa: E741
    SP, P, R = "signed permutations", "permutations", "uniform scale"
    rows = {
        "origin": {GL, O, M, D, SP, P, R},
        "form": {T, O, SP, P, R},
        "lines": {T, M, D, SP, P, R},
        "units": {T, SP, P, R},
        "blocks": {T, D, R},
        "frame": {T},
    }
    elsewhere = {"origin": set(), "frame": {T}}
    for kind, kept in rows.items():
        here, other = naming(Structure("X", kind)), naming(Structure("X", kind, "p"))
        assert {g for g in GROUPS if here.keeps("X", g)} == kept
        assert {g for g in GROUPS if other.keeps("X", g)} == elsewhere.get(kind, {T, R})
        assert here.keeps("X", "isometries") == (T in kept and O in kept)
        assert here.keeps("X", "affine") is False
        assert here.keeps("Y", "affine")


def monomials(entries: tuple[float, ...]) -> Iterator[Element]:
    for order in itertools.permutations(range(3)):
        for values in itertools.product(entries, repeat=3):
            yield np.diag(values)[:, order], np.zeros(3)


def fixing(kinds: tuple[str, ...], elements: Iterator[Element]) -> list[Array]:
    return [g[0] for g in elements if all(fixes(kind, g, np.eye(3), np.zeros(3)) for kind in kinds)]


def test_orthogonal_and_monomial_meet_in_signed_permutations() -> None:
    met = fixing(("form", "lines"), monomials((1, -1, 2, -2)))
    assert len(met) == 96  # similarities ∩ monomial = uniform scale × signed permutations
    assert sum(np.allclose(L @ L.T, np.eye(3)) for L in met) == 48
    assert np.allclose(met, fixing(("units",), monomials((1, -1, 2, -2))))
    meet = naming(Structure("X", "form")) + naming(Structure("X", "lines"))
    units = naming(Structure("X", "units"))
    assert meet <= units <= meet and meet != units
    assert meet.keeps("X", "signed permutations") and not meet.keeps("X", "scaling")


def test_small_intersections_have_the_elements_they_should() -> None:
    diagonal = ((np.diag(values), np.zeros(3)) for values in itertools.product((1, -1, 2, -2), repeat=3))
    assert sum(np.allclose(L @ L.T, np.eye(3)) for L in fixing(("form",), diagonal)) == 8
    permutations = [np.eye(3)[:, order] for order in itertools.permutations(range(3))]
    assert sum(np.allclose(L, np.diag(np.diag(L))) for L in permutations) == 1


def test_two_forms_or_two_origins_of_different_names_are_two_structures() -> None:
    # Each of the two terms is orthogonal for its own reference; their sum is orthogonal for none.
    forms = naming(Structure("X", "form", "M1")) + naming(Structure("X", "form", "M2"))
    assert [g for g in GROUPS if forms.keeps("X", g)] == ["translations", "uniform scale"]
    origins = naming(Structure("X", "origin")) + naming(Structure("X", "origin", "padding"))
    assert not any(origins.keeps("X", g) for g in GROUPS)


# -- Whole steps, as matrices -----------------------------------------------------------------------------------------
#
# A step is computed from data of one layer, W = S ⊗ A* (or S ⊗ Â*): a form G on S, a form A on A* (or Â*), a covector
# xi, per-example covectors `each`, a loss f. Frames move the data; a group is kept if the step moves along.


def root(form: Array, p: float) -> Array:
    values, vectors = np.linalg.eigh(form)
    return vectors @ np.diag(values**p) @ vectors.T


def eigenbasis(form: Array) -> Array:
    return np.linalg.eigh(form)[1]


@dataclass(frozen=True)
class Data:
    G: Array
    A: Array
    xi: Array
    each: Array
    f: float

    @classmethod
    def draw(cls, hull: bool) -> Data:
        rng = np.random.default_rng(1)
        s, a = rng.normal(size=(2, 12, 4))
        s, a = s[:, :3], np.concatenate([a[:, :3] + 0.4, np.ones((12, 1))], 1) if hull else a
        each = np.einsum("ni,nj->nij", s + rng.normal(size=s.shape), a)
        return cls(s.T @ s / 12, a.T @ a / 12, each.mean(0) + 0.3, each, 1.7)

    def moved(self, Phi: Array, alpha: Array, loss: float) -> Data:
        back = np.linalg.inv(Phi)
        xi, each = (loss * (back.T @ covectors @ alpha.T) for covectors in (self.xi, self.each))
        return Data(back.T @ self.G @ back, alpha @ self.A @ alpha.T, xi, each, loss * self.f)


@dataclass(frozen=True)
class Method:
    name: str
    step: Callable[[Data], Array]
    symmetry: Callable[[], Symmetry]
    hull: bool = False

    def follows(self, Phi: Array, alpha: Array, loss: float = 1.0) -> bool:
        data = Data.draw(self.hull)
        expected = Phi @ self.step(data) @ np.linalg.inv(alpha)
        off = abs(self.step(data.moved(Phi, alpha, loss)) - expected).max() / abs(expected).max()
        assert not 1e-8 < off < 1e-3, f"{self.name}: undecided, off by {off}"
        return bool(off <= 1e-8)

    def in_hull(self, of: Element) -> Array:
        L, t = of
        return np.block([[L, t[:, None]], [np.zeros((1, len(L))), np.ones((1, 1))]]) if self.hull else L


def form(space: str, kind: str = "form") -> Symmetry:
    return naming(Structure(space, kind), weight={space: 2})


def dual_form(space: str, kind: str = "form") -> Symmetry:
    return form(space, kind) ** -1


def euclidean(kind: str = "form") -> Symmetry:
    """h_S ⊗ h_A* on W."""
    return form("S", kind) * dual_form("A", kind)


def hull_euclidean() -> Symmetry:
    return dual_form("A") + naming(Structure("A", "origin"))


def fisher() -> Symmetry:
    return natural({LOSS: 2})


def df() -> Symmetry:
    return natural({LOSS: 1})


def sgd() -> Symmetry:
    return euclidean() ** -1 * df()


G = A = natural


def pi() -> Symmetry:
    return ((A() * form("A")) * (G() * dual_form("S")) ** -1) ** HALF  # (tr(A; h) / tr(G; h))^½


def kfac(g: Symmetry, a: Symmetry) -> Symmetry:
    return g**-1 * df() * a**-1


def matrix_root(g: Symmetry, h: Symmetry, p: Fraction) -> Symmetry:
    return h * (h**-1 * g) ** p


def solve(g: Array, xi: Array, a: Array) -> Array:
    return np.linalg.solve(g, xi) @ np.linalg.inv(a)


def tikhonov(d: Data, pi: float, on: Array | None = None) -> Array:
    on = np.eye(len(d.A)) if on is None else on
    return solve(d.G + 0.3 / pi * np.eye(len(d.G)), d.xi, d.A + 0.3 * pi * on)


def pi_of(d: Data) -> float:
    return math.sqrt(np.trace(d.A) / np.trace(d.G))


def exact(d: Data, damping: float, F: Array | None = None) -> Array:
    F = np.kron(d.G, d.A) if F is None else F
    return np.linalg.solve(F + damping * np.eye(len(F)), d.xi.ravel()).reshape(d.xi.shape)


def empirical(d: Data) -> Array:
    flat = d.each.reshape(len(d.each), -1)
    return flat.T @ flat / len(flat)


def shampoo(d: Data) -> Array:
    left, right = np.einsum("nij,nkj->ik", d.each, d.each), np.einsum("nij,nik->jk", d.each, d.each)
    return root(left, -0.25) @ d.xi @ root(right, -0.25)


def shampoo_symmetry() -> Symmetry:
    left = fisher() * form("A")  # Σ ξ h ξᵀ, a form on S; the identity that contracts A is a constant
    right = fisher() * dual_form("S")
    quarter = Fraction(1, 4)
    return kfac(matrix_root(left, form("S"), quarter), matrix_root(right, dual_form("A"), quarter))


def ekfac(d: Data) -> Array:
    U, V = eigenbasis(d.G), eigenbasis(d.A)
    second = ((U.T @ d.each @ V) ** 2).mean(0)
    return U @ ((U.T @ d.xi @ V) / second) @ V.T


def muon(d: Data) -> Array:
    U, _, Vt = np.linalg.svd(d.xi, full_matrices=False)
    return U @ Vt


def apart(A: Array) -> Array:
    return np.block([[A[:-1, :-1], np.zeros((len(A) - 1, 1))], [np.zeros((1, len(A) - 1)), A[-1:, -1:]]])


def norm(xi: Array) -> float:
    return math.sqrt((xi**2).sum())


def euclidean_norm() -> Symmetry:
    return (euclidean() ** -1 * df() * df()) ** HALF


def squares(d: Data) -> Array:
    return (d.each**2).mean(0)


def axis_root(p: Fraction) -> Symmetry:
    return matrix_root(fisher(), euclidean("units"), p)


def on_both(kind: str) -> list[Structure]:
    return [Structure(space, kind) for space in ("S", "A")]


METHODS = [
    Method("SGD", lambda d: d.xi, lambda: sgd()),
    Method("normalized SGD", lambda d: d.xi / norm(d.xi), lambda: sgd() * euclidean_norm() ** -1),
    Method("Polyak's step", lambda d: d.f / norm(d.xi) ** 2 * d.xi, lambda: df() * euclidean_norm() ** -2 * sgd()),
    Method("K-FAC", lambda d: solve(d.G, d.xi, d.A), lambda: kfac(G(), A())),
    Method("K-FAC in the hull", lambda d: solve(d.G, d.xi, d.A), lambda: kfac(G(), A()), hull=True),
    Method(
        "K-FAC, weight apart from bias",
        lambda d: solve(d.G, d.xi, apart(d.A)),
        lambda: kfac(G(), A().with_structure(Structure("A", "origin"))),
        hull=True,
    ),
    Method("factored Tikhonov", lambda d: tikhonov(d, 1), lambda: kfac(G() + form("S"), A() + dual_form("A"))),
    Method(
        "factored Tikhonov with π",
        lambda d: tikhonov(d, pi_of(d)),
        lambda: kfac(G() + pi() ** -1 * form("S"), A() + pi() * dual_form("A")),
    ),
    Method(
        "factored Tikhonov in the hull",
        lambda d: tikhonov(d, 1),
        lambda: kfac(G() + form("S"), A() + hull_euclidean()),
        hull=True,
    ),
    Method(
        "factored Tikhonov on the translations",
        lambda d: tikhonov(d, 1, np.diag([1.0, 1, 1, 0])),
        lambda: kfac(G() + form("S"), A() + dual_form("A")),
        hull=True,
    ),
    Method("exact Tikhonov", lambda d: exact(d, 0.3), lambda: (G() * A() + euclidean()) ** -1 * df()),
    Method(
        "relative damping",
        lambda d: solve(d.G, d.xi, d.A + 0.3 * np.trace(d.A) * np.eye(4)),
        lambda: kfac(G(), A() + A() * form("A") * dual_form("A")),
    ),
    Method(
        "damping by a matrix of its own name",
        lambda d: solve(d.G, d.xi, d.A + np.diag([1.0, 2.0, 3.0, 4.0]) + 0.5),
        lambda: kfac(G(), A() + naming(Structure("A", "form", "M1"), weight={"A": -2})),
    ),
    Method("empirical Fisher", lambda d: exact(d, 0.0, empirical(d)), lambda: fisher() ** -1 * df()),
    Method("damped", lambda d: exact(d, 0.3, empirical(d)), lambda: (fisher() + euclidean()) ** -1 * df()),
    Method(
        "diagonal Fisher", lambda d: d.xi / squares(d), lambda: fisher().with_structure(*on_both("lines")) ** -1 * df()
    ),
    Method("Adam", lambda d: d.xi / squares(d) ** 0.5, lambda: axis_root(HALF) ** -1 * df()),
    Method(
        "Adam with ε",
        lambda d: d.xi / (squares(d) ** 0.5 + 0.1),
        lambda: (axis_root(HALF) + euclidean("units")) ** -1 * df(),
    ),
    Method(
        "two roots whose weights cancel",  # of degree zero by uniform scales, not by a scale for each axis
        lambda d: (empirical(d) @ (d.xi / squares(d) ** 1.5).ravel()).reshape(d.xi.shape) / squares(d) ** 0.5,
        lambda: axis_root(HALF) ** -1 * fisher() * axis_root(3 * HALF) ** -1 * df(),
    ),
    Method(
        "clip by value",
        lambda d: np.clip(d.xi, -0.3, 0.3),
        lambda: (euclidean("units") ** -HALF * df()).scalar_function() * euclidean("units") ** -HALF,
    ),
    Method("Shampoo", shampoo, shampoo_symmetry),
    Method("EKFAC", ekfac, lambda: (fisher() * naming(*on_both("form"))) ** -1 * df()),
    Method("Muon", muon, lambda: euclidean() ** -HALF),
    Method(
        "K-FAC shortened by the Euclidean norm",
        lambda d: 1 / (1 + norm(d.xi)) * solve(d.G, d.xi, d.A),
        lambda: euclidean_norm().scalar_function() * kfac(G(), A()),
    ),
    Method(
        "K-FAC shortened by its own norm",
        lambda d: 1 / (1 + (d.xi * solve(d.G, d.xi, d.A)).sum()) * solve(d.G, d.xi, d.A),
        lambda: (kfac(G(), A()) * df()).scalar_function() * kfac(G(), A()),
    ),
]


def check_methods() -> None:
    """Every cell of every method: a group, or a joint scaling, is claimed exactly when the step follows it."""
    verdicts = Verdicts()
    for method in METHODS:
        claim, rng = method.symmetry(), np.random.default_rng(2)
        n = 3 if method.hull else 4
        for group in GROUPS:
            elements = [(element(group, 3, rng), element(group, n, rng)) for _ in range(3)]
            on_S = all(method.follows(of_S[0], np.eye(4)) for of_S, _ in elements)
            verdicts.compare(claim.keeps("S", group), on_S, method.name, "S", group)
            if method.hull or group != "translations":
                on_A = all(method.follows(np.eye(3), method.in_hull(of_A)) for _, of_A in elements)
                verdicts.compare(claim.keeps("A", group), on_A, method.name, "A", group)
        for s, a, f in itertools.product((-1, 0, 1), repeat=3):
            alpha = method.in_hull((math.exp(0.4 * a) * np.eye(n), np.zeros(n)))
            kept = method.follows(math.exp(0.4 * s) * np.eye(3), alpha, math.exp(0.4 * f))
            verdicts.compare(claim.keeps_joint({"S": s, "A": a, LOSS: f}), kept, method.name, s, a, f)
    assert not verdicts.missed


def test_claims_for_whole_steps_are_what_matrices_do() -> None:
    check_methods()


@pytest.mark.parametrize(
    ("name", "joint", "a", "s", "loss"),
    [
        ("SGD", True, False, False, False),
        ("normalized SGD", True, False, False, True),
        ("factored Tikhonov", False, False, False, False),
        ("factored Tikhonov with π", True, False, False, False),
        ("exact Tikhonov", True, False, False, False),
        ("Adam", True, False, False, True),
        ("Adam with ε", True, False, False, False),
        ("Shampoo", True, False, False, True),
        ("EKFAC", True, True, True, False),
        ("Muon", True, False, False, True),
        ("K-FAC", True, True, True, False),
        ("factored Tikhonov in the hull", False, False, False, False),
    ],
)
def test_scales_that_well_known_methods_keep(name: str, joint: bool, a: bool, s: bool, loss: bool) -> None:
    claim = next(method for method in METHODS if method.name == name).symmetry()
    assert claim.keeps_joint({"A": 1, "S": 1}) == joint
    assert (claim.keeps("A", "uniform scale"), claim.keeps("S", "uniform scale")) == (a, s)
    assert claim.keeps(LOSS, "uniform scale") == loss


# -- Scales of random expressions -------------------------------------------------------------------------------------
#
# Under scalings alone an expression is a number per component: a constant of weight w comes out exp(w·x) times what it
# should be, sums add such numbers up, and so on. A claim says for which x everything comes out as it should.

SPACES = ("A", "B", "S")
Values = Callable[[dict[str, float]], list[float]]
SCALES = [dict(zip((*SPACES, LOSS), x, strict=True)) for x in itertools.product((-1, 0, 1, 2), repeat=4)]


@st.composite
def leaves(draw: st.DrawFn, kinds: tuple[str, ...] = ("form", "units", "lines", "origin")) -> tuple[Symmetry, Values]:
    source = draw(st.sampled_from(("", "damping", "decay", "root")))
    kind, space = draw(st.sampled_from(("data", *kinds))), draw(st.sampled_from(SPACES))
    scalable = kind in ("form", "units", "frame")
    weight = {space if scalable else LOSS: draw(st.sampled_from((-2, -1, HALF, 1, 2)))} if kind != "lines" else {}
    name = draw(st.sampled_from(("coordinates", "coordinates", "other"))) if "frame" in kinds else "coordinates"
    value = draw(st.floats(0.5, 2))
    found = natural(weight) if kind == "data" else naming(Structure(space, kind, name, source), weight=weight)
    return found, lambda x: [value * math.exp(sum(float(p) * x[base] for base, p in weight.items()))]


def extended(children: st.SearchStrategy[tuple[Symmetry, Values]]) -> st.SearchStrategy[tuple[Symmetry, Values]]:
    def pairs(u: list[float], v: list[float], op: Callable[[float, float], float]) -> list[float]:
        matched = zip(u, v, strict=True) if len(u) == len(v) else itertools.product(u, v)
        return [op(a, b) for a, b in matched]

    def add(s: Any, t: Any) -> Any:
        return s[0] + t[0], lambda x: pairs(s[1](x), t[1](x), lambda a, b: a + b)

    def compose(s: Any, t: Any) -> Any:
        return s[0] * t[0], lambda x: pairs(s[1](x), t[1](x), lambda a, b: a * b)

    def contract(s: Any, t: Any) -> Any:
        return s[0] * t[0], lambda x: [sum(pairs(s[1](x), t[1](x), lambda a, b: a * b))]

    def tensor(s: Any, t: Any) -> Any:
        return s[0] * t[0], lambda x: [a * b for a in s[1](x) for b in t[1](x)]

    def power(s: Any, p: Fraction) -> Any:
        return s[0] ** p, lambda x: [a ** float(p) for a in s[1](x)]

    def function(s: Any) -> Any:
        return s[0].scalar_function(), lambda x: [math.log1p(a) for a in s[1](x)]

    def stack(parts: Any) -> Any:
        return Symmetry.direct_sum([s for s, _ in parts]), lambda x: [a for _, values in parts for a in values(x)]

    two = (children, children)
    return st.one_of(
        st.builds(add, *two),
        st.builds(compose, *two),
        st.builds(contract, *two),
        st.builds(tensor, *two),
        st.builds(power, children, st.sampled_from((Fraction(-1), HALF, Fraction(2)))),
        st.builds(function, children),
        st.builds(stack, st.lists(children, min_size=1, max_size=3)),
    )


expressions = st.recursive(leaves(), extended, max_leaves=6)
symmetries = st.recursive(leaves(kinds=tuple(FIXES)), extended, max_leaves=5).map(lambda e: e[0])


def check_scales() -> None:
    @settings(max_examples=3 * settings.default.max_examples, phases=[Phase.generate], database=None)
    @given(expressions)
    def claims_are_sound(expression: tuple[Symmetry, Values]) -> None:
        claim, values = expression
        expected = values(dict.fromkeys((*SPACES, LOSS), 0.0))
        for x in SCALES:
            if claim.keeps_joint(x):
                found = values({base: 0.1 * p for base, p in x.items()})
                if not np.allclose(np.log(found), np.log(expected), atol=1e-9):
                    raise Unsound(x)

    claims_are_sound()


def test_claims_on_scales_of_random_expressions_are_sound() -> None:
    check_scales()


def test_one_scale_common_to_all_layers_is_found() -> None:
    # Polyak's step divides by one number for all layers: it keeps a scale common to all, gradient descent keeps none.
    layers = [naming(Structure(f"S{i}", "form", source=f"Euclidean(S{i})"), weight={f"S{i}": 2}) for i in (1, 2)]
    h = Symmetry.direct_sum(layers)
    direction = h**-1 * df()
    polyak = df() * (h**-1 * df() * df()) ** -1 * direction
    together = {"S1": 1, "S2": 1}
    assert len(direction.defect) == 2
    assert polyak.keeps_joint(together) and not polyak.keeps_joint({"S1": 1})
    assert polyak.keeps(LOSS, "uniform scale")
    assert not direction.keeps_joint(together)
    assert direction.keeps_joint({"S1": 1, "S2": 1, LOSS: 2})
    # A step whose layers are normalized one by one keeps every scale, on its own.
    alone = Symmetry.direct_sum([s**-1 * df() * (s**-1 * df() * df()) ** -HALF * s**HALF for s in layers])
    assert alone.defect == (Weight(),) and alone.keeps_joint({"S1": 1})


def test_a_summand_is_blamed_by_itself() -> None:
    layers = [naming(Structure(x, "form", source=f"Euclidean({x})"), weight={x: 2}) for x in "ST"]
    step = Symmetry.direct_sum([natural(), *layers]) ** -1 * df()
    assert step.blame("T", "uniform scale") == ("weight -2·T +loss of Euclidean(T) against 0",)
    assert step.rows == ()  # the summands need not agree with each other
    assert Symmetry.direct_sum([]) == natural() == Symmetry.direct_sum([natural(), natural()])


def test_direct_sums_that_do_not_match_must_agree() -> None:
    two, three = (Symmetry.direct_sum([form(x) for x in spaces]) for spaces in ("AB", "ABS"))
    assert [len(s.defect) for s in (two, three, two + two, two * natural())] == [2, 3, 2, 2]
    assert [len(s.defect) for s in (two + three, two * three)] == [1, 1]
    assert (two + three).rows == (two * three).rows
    assert not (two + three).keeps_joint({"A": 1})


# -- Negative control: each rule broken on purpose is caught ----------------------------------------------------------


def meet_by_intersection(s: Symmetry, t: Symmetry) -> Symmetry:
    return Symmetry(tuple(s.fixed & t.fixed), s.equations + t.equations, s.defect)


def of_the_first_weight(s: Symmetry, t: Symmetry) -> Symmetry:
    return Symmetry(s.named + t.named, s.equations + t.equations, s.defect)


def by_position(s: Symmetry, t: Symmetry) -> Symmetry:
    pairs = zip(s.defect, t.defect, strict=False)
    return Symmetry(s.named + t.named, s.equations + t.equations, tuple(u.plus(v) for u, v in pairs))


def forgetting_weight(s: Symmetry) -> Symmetry:
    return Symmetry(s.named, s.equations)


def direct_sum_of_the_first_weight(parts: list[Symmetry]) -> Symmetry:
    return parts[0] * naming(*(s for part in parts for s in part.named))


def fixed_whatever_the_name(s: Structure, group: str, reference: str = "") -> bool:
    return group in FIXES[s.kind]


def fixed_by_linear_maps_about_any_origin(s: Structure, group: str, reference: str = "") -> bool:
    return group in FIXES[s.kind] and (s.name == "coordinates" or group in FIXES_ELSEWHERE)


unclosed = property(lambda s: Weight.echelon(s.rows))

BROKEN: dict[str, tuple[Any, str, object, Callable[[], None]]] = {
    "forms are fixed by all linear maps": (FIXES, "form", FIXES["form"] | {"general"}, check_table),
    "forms are fixed by a scale for each axis": (FIXES, "form", FIXES["form"] | {"scaling"}, check_meets),
    "lines are fixed by rotations": (FIXES, "lines", FIXES["lines"] | {"orthogonal"}, check_meets),
    "origins are fixed by translations": (FIXES, "origin", FIXES["origin"] | {"translations"}, check_methods),
    "roots name only lines": (FIXES, "units", FIXES["lines"], check_methods),
    "blocks are fixed by permutations": (FIXES, "blocks", FIXES["blocks"] | {"permutations"}, check_table),
    "names do not matter": (Structure, "fixed_by", fixed_whatever_the_name, check_meets),
    "origins are all the same": (Structure, "fixed_by", fixed_by_linear_maps_about_any_origin, check_table),
    "the meet is the intersection": (Symmetry, "__add__", meet_by_intersection, check_meets),
    "sums compare no weights": (Symmetry, "__add__", of_the_first_weight, check_methods),
    "sums compare no weights (scales)": (Symmetry, "__add__", of_the_first_weight, check_scales),
    "products have the weight of one factor": (Symmetry, "__mul__", of_the_first_weight, check_methods),
    "products of direct sums go by position": (Symmetry, "__mul__", by_position, check_scales),
    "a power has the weight of its base": (Symmetry, "__pow__", lambda s, p: s, check_methods),
    "functions need not be homogeneous": (Symmetry, "scalar_function", forgetting_weight, check_methods),
    "a finished step may have a weight": (Symmetry, "_scales", unclosed, check_methods),
    "summands have the first one's weight": (Symmetry, "direct_sum", direct_sum_of_the_first_weight, check_scales),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_broken_rules_are_caught(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, wrong, refuter = BROKEN[rule]
    with monkeypatch.context() as patch:
        if isinstance(owner, dict):
            patch.setitem(owner, name, wrong)
        else:
            patch.setattr(owner, name, wrong)
        with pytest.raises(Unsound):
            refuter()


# -- Laws -------------------------------------------------------------------------------------------------------------


SOME = SCALES[::7]


def same_claims(s: Symmetry, t: Symmetry) -> bool:
    cells = itertools.product(SPACES, (*GROUPS, *COMPOSITE))
    return all(s.keeps(*c) == t.keeps(*c) for c in cells) and all(s.keeps_joint(x) == t.keeps_joint(x) for x in SOME)


@given(symmetries, symmetries, symmetries)
def test_sum_is_a_meet(s: Symmetry, t: Symmetry, u: Symmetry) -> None:
    assert s + t == t + s and hash(s + t) == hash(t + s)
    assert (s + t) + u == s + (t + u)
    assert s + s == s
    assert s + t <= s and s + t <= t
    for space, group in itertools.product(SPACES, GROUPS):
        both = s.keeps(space, group) and t.keeps(space, group)
        assert both or not (s + t).keeps(space, group)


@given(symmetries, symmetries, symmetries)
def test_the_meet_of_closed_symmetries_keeps_all_that_both_keep(s: Symmetry, t: Symmetry, u: Symmetry) -> None:
    s, t, u = s.close(), t.close(), u.close()
    for space, group in itertools.product(SPACES, (*GROUPS, *COMPOSITE)):
        assert (s + t).keeps(space, group) == (s.keeps(space, group) and t.keeps(space, group))
    assert all((s + t).keeps_joint(x) == (s.keeps_joint(x) and t.keeps_joint(x)) for x in SOME)
    assert not (u <= s and u <= t) or u <= s + t  # the largest below both
    assert s <= natural() and s + natural() == s


@given(symmetries, symmetries, symmetries)
def test_order(s: Symmetry, t: Symmetry, u: Symmetry) -> None:
    assert s <= s
    assert not (s <= t and t <= s) or same_claims(s, t)
    assert not (s <= t and t <= u) or s <= u
    if s <= t:
        assert all(t.keeps(*c) for c in itertools.product(SPACES, (*GROUPS, *COMPOSITE)) if s.keeps(*c))
        assert all(t.keeps_joint(x) for x in SOME if s.keeps_joint(x))
    else:
        cells = itertools.product(SPACES, GROUPS)
        assert s != t and (
            any(row not in s._scales.values() for row in t._scales.values())
            or any(s.keeps(*c) and not t.keeps(*c) for c in cells)
        )


def test_order_sees_joint_scalings() -> None:
    one, two = (naming(*on_both("form"), weight={"S": 2, "A": -2 * p}).close() for p in (1, 2))
    assert one.keeps_joint({"A": 1, "S": 1}) and two.keeps_joint({"A": 1, "S": 2})
    assert not one <= two and not two <= one
    assert one + two <= one and not one <= one + two
    assert not natural() <= one <= natural()


@given(symmetries, symmetries)
def test_products_and_powers(s: Symmetry, t: Symmetry) -> None:
    assert s * t == t * s
    assert (s**-1) ** -1 == s and s**1 == s
    assert (s**2) ** HALF == s
    assert (s * t) ** -1 == s**-1 * t**-1
    assert same_claims(s * natural(), s) and s * natural() == s
    assert same_claims(s.close(), s) and s.close().close() == s.close()
    assert s.close().defect == (Weight(),)
    assert same_claims(s**-1, s)


@given(symmetries, st.sampled_from(SPACES), st.sampled_from((*GROUPS, *COMPOSITE)))
def test_a_group_is_kept_or_something_is_to_blame(s: Symmetry, space: str, group: str) -> None:
    blame = s.blame(space, group)
    assert s.keeps(space, group) == (not blame)
    assert all(culprit.space == space if isinstance(culprit, Structure) else "weight" in culprit for culprit in blame)
    if group in COMPOSITE:
        assert s.keeps(space, group) == all(s.keeps(space, part) for part in COMPOSITE[group])
    if group == "uniform scale":
        assert s.keeps(space, group) == s.keeps_joint({space: 1}) == s.keeps_joint({space: HALF, "unnamed": 3})
    for culprit in blame:
        assert str(culprit) in str(s) and str(culprit) in explain(s)
    assert s.keeps("unnamed", group)


@given(symmetries)
def test_written_out_and_read_back(s: Symmetry) -> None:
    names = {"Symmetry": Symmetry, "Structure": Structure, "Weight": Weight, "Fraction": Fraction}
    for copy in (Symmetry.from_state(s.to_state()), eval(repr(s), names)):
        assert copy == s and str(copy) == str(s) and explain(copy) == explain(s)


def test_a_state_fits_into_a_checkpoint(tmp_path: Any) -> None:
    s = (dual_form("A") + naming(Structure("A", "origin", source="decay"))) ** Fraction(1, 3)
    torch.save({"symmetry": s.to_state()}, tmp_path / "checkpoint.pt")
    loaded = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert Symmetry.from_state(loaded["symmetry"]) == s


def test_equality_is_of_what_is_named_not_of_where_it_came_from() -> None:
    here, there = (naming(Structure("A", "form", source=source), weight={"A": 2}) for source in ("damping", "decay"))
    assert here == there and hash(here) == hash(there)
    assert here != naming(Structure("A", "form", "M1"), weight={"A": 2})
    assert here != naming(Structure("A", "form"))
    assert [str(culprit) for culprit in (here + there).blame("A", "general")] == ["damping", "decay"]


def test_sums_of_many_equal_terms_do_not_grow() -> None:
    term = average = dual_form("A") + natural()
    for _ in range(20):
        average = average + term
    assert average.equations == term.equations and average.named == term.named


# -- What is said -----------------------------------------------------------------------------------------------------


def test_each_loss_is_explained_by_its_term() -> None:
    biases = Structure("fc1.A", "origin", source="weight apart from bias")
    damping = naming(Structure("fc1.S", "form", source="Euclidean(fc1.S) in damping"), weight={"fc1.S": 2})
    s = kfac(natural() + damping, natural().with_structure(biases))
    assert explain(s).splitlines() == [
        "translations of fc1.A are lost at: weight apart from bias",
        "general, monomial, scaling of fc1.S are lost at: Euclidean(fc1.S) in damping",
        "uniform scale of fc1.S is lost at: weight 2·fc1.S of Euclidean(fc1.S) in damping against 0",
        "uniform scale of loss is lost at: weight loss of data against 0",
    ]
    assert s.blame("fc1.A", "affine") == (biases,)
    assert s.blame("fc1.A", "general") == s.blame("fc1.S", "isometries") == ()
    assert s.spaces == ("fc1.A", "fc1.S")


def test_nothing_lost() -> None:
    assert str(natural()) == "affine on every space"
    assert explain(natural()) == "nothing is lost: every affine change of frame is kept"


ALL_LINEAR = "general, orthogonal, monomial, scaling, signed permutations, permutations, uniform scale"
DISPLAYED = {
    "hull": (
        hull_euclidean(),
        "A orthogonal about the coordinate origin",
        "translations of A — origin 'coordinates' of A",
        "general, monomial, scaling of A — form 'coordinates' of A",
        "uniform scale of A — weight -2·A of data against 0",
    ),
    "origins": (
        naming(Structure("A", "origin", source="zero padding")) + naming(Structure("B", "origin")),
        "A, B general about the coordinate origin",
        "translations of A — zero padding",
        "translations of B — origin 'coordinates' of B",
    ),
    "joint": (
        euclidean(),
        "A, S isometries; joint A→c·A, S→c·S",
        "general, monomial, scaling of A — form 'coordinates' of A",
        "uniform scale of A — weight -2·A +2·S of data against 0",
        "general, monomial, scaling of S — form 'coordinates' of S",
        "uniform scale of S — weight -2·A +2·S of data against 0",
    ),
    "determinant": (
        natural({LOSS: 1, "A": HALF}),
        "A isometries; joint A→c^-2·A, loss→c·loss",
        "general, monomial, scaling, uniform scale of A — weight 1/2·A +loss of data against 0",
        "uniform scale of loss — weight 1/2·A +loss of data against 0",
    ),
    "other form": (
        naming(Structure("A", "form", "M1", "Gram(A, M1)")),
        "A isometries and uniform scale about 'M1'",
        "general, orthogonal, monomial, scaling, signed permutations, permutations of A — Gram(A, M1)",
    ),
    "other origin": (
        naming(Structure("A", "origin", "p", "padding at p")),
        "A general about 'p'",
        f"translations, {ALL_LINEAR} of A — padding at p",
    ),
    "two origins": (
        naming(Structure("A", "origin", "p", "p"), Structure("A", "origin", "q", "q")),
        "A nothing about the coordinate origin",
        f"translations, {ALL_LINEAR} of A — p, q",
    ),
    "diagonals": (
        naming(Structure("A", "units", source="root"), Structure("B", "lines", source="diagonal")),
        "A translations and signed permutations and uniform scale; B translations and monomial",
        "general, orthogonal, monomial, scaling of A — root",
        "general, orthogonal of B — diagonal",
    ),
    "frame": (
        naming(Structure("A", "frame", source="sketch")),
        "A translations",
        f"{ALL_LINEAR} of A — sketch",
    ),
}


@pytest.mark.parametrize("case", DISPLAYED)
def test_display(case: str) -> None:
    shown, kept, *lost = DISPLAYED[case]
    assert str(shown) == f"{kept}. Lost: {'; '.join(lost)}"
    verbs = ["is" if line.startswith("uniform") else "are" for line in lost]
    assert explain(shown) == "\n".join(
        line.replace(" — ", f" {verb} lost at: ") for line, verb in zip(lost, verbs, strict=True)
    )


# -- Bad input --------------------------------------------------------------------------------------------------------


NO_STRUCTURE = "Name one of origin, form, lines, units, blocks, frame, on a space that is not 'loss'."
NO_BASE = "InvalidSymmetry: expected the name of a base space, got {}. Take one of V.bases."
NO_GROUP = (
    "InvalidSymmetry: no group is called 'joint scale'. Ask for one of translations, general, orthogonal, monomial, "
    "scaling, signed permutations, permutations, uniform scale, isometries, affine, or ask keeps_joint."
)
NO_WEIGHT = (
    "InvalidSymmetry: a constant of weight 2 at 'A' must name a form, units or a frame there, got ['diagonal']. "
    "Name one, or use Symmetry.natural for a determinant of data."
)
V: Any = Space("V", 3)
REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: Structure("A", "metric"), f"InvalidSymmetry: no 'metric' on 'A'. {NO_STRUCTURE}"),
    (lambda: Structure("loss", "form"), f"InvalidSymmetry: no 'form' on 'loss'. {NO_STRUCTURE}"),
    (lambda: Structure(V, "form"), NO_BASE.format(repr(V))),
    (lambda: natural({V: 1}), NO_BASE.format(repr(V))),
    (lambda: natural().keeps(V, "general"), NO_BASE.format(repr(V))),
    (lambda: natural().keeps_joint({"": 1}), NO_BASE.format("''")),
    (lambda: natural().keeps("A", "joint scale"), NO_GROUP),
    (lambda: naming(Structure("A", "lines", source="diagonal"), weight={"A": 2}), NO_WEIGHT),
]


@pytest.mark.parametrize(("call", "text"), REFUSED)
def test_bad_input(call: Callable[[], object], text: str) -> None:
    with pytest.raises(InvalidSymmetry) as error:
        call()
    assert str(error.value) == text


def test_the_module_stands_on_the_ground_floor() -> None:
    imports = [node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.ImportFrom)]
    assert {node.module for node in imports if node.level} == {"errors"}
    assert {node.module for node in imports if not node.level} <= sys.stdlib_module_names | {"collections.abc"}
