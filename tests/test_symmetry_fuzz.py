"""Random expressions, each claim of symmetry tested in twins; rules broken on purpose are caught.

What holds is measured once. A broken rule changes what is claimed, not what holds: the same measurements refute it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from riemann_ng.inner_products import (
    Dual,
    InnerProduct,
    Kronecker,
    RotatedDiagonal,
    algebra,
    damp_factors,
    diagonal,
    gram,
    rotated,
    symmetries,
)
from riemann_ng.norms import Spectral
from riemann_ng.solvers import CG
from riemann_ng.spaces import Derived
from riemann_ng.symmetry import FIXES, Structure, Symmetry, Weight
from riemann_ng.testing import random_expressions
from riemann_ng.testing.fuzz import CELLS, REFUTED, SINGULAR, Cell, Errors, Report, claimed, fuzz, measure, written

EXPRESSIONS = {"ci": 300, "thorough": 5000}[os.environ.get("RIEMANN_NG_PROFILE", "ci")]
FOR_BROKEN_RULES = range(1000)


@pytest.fixture(scope="module")
def measured() -> dict[int, Errors | None]:
    return {seed: measure(written(seed), seed) for seed in range(EXPRESSIONS)}


def test_no_claim_is_refuted(
    measured: dict[int, Errors | None], record_property: Callable[[str, object], None]
) -> None:
    report = Report()
    for seed, errors in [(seed, measured[seed]) for seed in range(EXPRESSIONS)]:
        if errors is None:
            report.skipped += 1
        else:
            report.add(seed, written(seed).claim(), errors)
    record_property("symmetry fuzz", f"{report}")
    print(report)
    assert not report.unsound, f"{report}"
    assert report.share_of_pessimistic < 0.1, f"{report}"
    assert report.skipped < 0.1 * EXPRESSIONS, f"{report}"
    assert report.undecided < 0.01 * report.cells, f"{report}"
    assert 0.2 < report.claims / report.cells < 0.9, f"{report}"  # both sorts of cells are there to be tested


def test_all_finishes_and_kinds_take_part() -> None:
    texts = [f"{written(seed)}" for seed in range(300)]
    for part in (
        "form of", "step of", "spectral step of", "two steps of CG of", "second_moment", "Gram", "LowRank", "Euclidean",
        "Diagonal", "RotatedDiagonal", "Pullback(φ", "inclusion of A⃗ᵀ", "quotient", "direct_sum", "average of", ".dual",
        "in b", "orthonormal for",
    ):  # fmt: skip
        assert sum(part in text for text in texts) >= 3, part


def test_a_report_counts_and_shows_what_is_wrong() -> None:
    report = fuzz(range(3))
    assert report.expressions + report.skipped == 3 and not report.unsound
    errors = dict.fromkeys(CELLS[:2], 1.0)
    report.add(5, Symmetry.natural(), errors)
    assert report.unsound == {5: errors} and f"seed 5, {written(5)}: {errors}" in f"{report}"
    assert f"{report}".startswith(f"{report.expressions} expressions and ")


# -- Negative control: each rule broken on purpose is caught ----------------------------------------------------------


def naming_no_origin(space: Any, name: str, source: str) -> Symmetry:
    (base,) = space.bases
    sign = -1 if space.starred else 1
    return Symmetry.naming(Structure(base, "form", name, source), weight={base: 2 * sign})


def lines_only(symmetry: Symmetry, space: Any, source: str) -> Symmetry:
    return symmetry.with_structure(*(Structure(base, "lines", source=source) for base in space.bases))


def frames_without_origin(symmetry: Symmetry, space: Any, name: str, source: str) -> Symmetry:
    return symmetry.with_structure(*(Structure(base, "frame", name, source) for base in space.bases))


def first(symmetry: Symmetry, *_: object) -> Symmetry:
    return symmetry


def nothing(*_: object) -> Symmetry:
    return Symmetry.natural()


def of_the_first_weight(s: Symmetry, t: Symmetry) -> Symmetry:
    return Symmetry(s.named + t.named, s.equations + t.equations, s.defect)


def meet_by_intersection(s: Symmetry, t: Symmetry) -> Symmetry:
    return Symmetry(tuple(s.fixed & t.fixed), s.equations + t.equations, s.defect)


def fixed_whatever_the_name(s: Structure, group: str, reference: str = "") -> bool:
    return group in FIXES[s.kind]


def balanced(g: InnerProduct, strength: float, reference: InnerProduct, split: str) -> InnerProduct:
    return damp_factors(g, strength, reference, "trace")


def summands_have_the_first_weight(parts: list[Symmetry]) -> Symmetry:
    return parts[0] * Symmetry.naming(*(s for part in parts for s in part.named))


def a_summand_at_most(parts: list[Symmetry]) -> Symmetry:
    return parts[0]


RULES: dict[str, tuple[Any, str, object]] = {
    "Euclidean on a hull names no origin": (symmetries, "_of_atom", naming_no_origin),
    "Euclidean names nothing": (diagonal, "of_euclidean", nothing),
    "a diagonal names nothing": (algebra, "with_lines", first),
    "a diagonal in a hull names no origin": (algebra, "with_lines", lines_only),
    "a diagonal in a constant basis names nothing": (algebra, "with_frame", first),
    "a matrix from outside is natural": (gram, "of_matrix", nothing),
    "entries from outside are natural": (diagonal, "of_matrix", nothing),
    "weights may differ in a sum": (Symmetry, "__add__", of_the_first_weight),
    "the meet is the intersection": (Symmetry, "__add__", meet_by_intersection),
    "the weight of a product is that of one factor": (Symmetry, "__mul__", of_the_first_weight),
    "a dual weighs what the form does": (Dual, "symmetry", property(lambda g: g.of.symmetry)),
    "a product names what one factor does": (Kronecker, "symmetry", property(lambda g: g.factors[0].symmetry)),
    "summands have the first one's weight": (Symmetry, "direct_sum", summands_have_the_first_weight),
    "a direct sum names what one summand does": (Symmetry, "direct_sum", a_summand_at_most),
    "eigenframes do not name their reference": (RotatedDiagonal, "symmetry", property(nothing)),
    "constant axes name nothing": (rotated, "with_frame", first),
    "eigenframes know one scale for each summand": (
        RotatedDiagonal, "symmetry",
        property(lambda g: g.reference.symmetry**0 if g.natural else g.reference.symmetry * NOTHING_KEPT(g)),
    ),
    "a constant map is natural": (symmetries, "with_frame", first),
    "a constant map names no origin": (symmetries, "with_frame", frames_without_origin),
    "factored damping is balanced without π": (random_expressions, "damp_factors", balanced),
    "truncation names nothing": (CG, "symmetry_of", lambda solver, g: g.symmetry),
    "the spectral step names nothing": (Spectral, "symmetry", property(nothing)),
    "classes and frames are spaces of their own": (Derived, "bases", property(lambda space: (space.name,))),
    "names do not matter": (Structure, "fixed_by", fixed_whatever_the_name),
    "rotations fix lines": (FIXES, "lines", FIXES["lines"] | {"orthogonal"}),
    "a scale for each axis fixes forms": (FIXES, "form", FIXES["form"] | {"scaling"}),
    "translations fix origins": (FIXES, "origin", FIXES["origin"] | {"translations"}),
    "a finished thing may have a weight": (Symmetry, "_scales", property(lambda s: Weight.echelon(s.rows))),
}  # fmt: skip


def NOTHING_KEPT(g: InnerProduct) -> Symmetry:
    return symmetries.with_frame(Symmetry.natural(), g.space, "axes", "axes")


@pytest.fixture(scope="module")
def claims() -> list[frozenset[Cell]]:
    return [claims_of(seed) for seed in FOR_BROKEN_RULES]


def claims_of(seed: int) -> frozenset[Cell]:
    try:
        symmetry = written(seed).claim()
    except SINGULAR:  # nothing is said of what cannot be built
        return frozenset()
    return frozenset(cell for cell in CELLS if claimed(symmetry, cell))


@pytest.mark.parametrize("rule", RULES)
def test_broken_rules_are_caught(
    rule: str,
    measured: dict[int, Errors | None],
    claims: list[frozenset[Cell]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    where, name, broken = RULES[rule]
    if isinstance(where, dict):
        monkeypatch.setitem(where, name, broken)
    else:
        monkeypatch.setattr(where, name, broken)
    for seed in FOR_BROKEN_RULES:
        if more := claims_of(seed) - claims[seed]:  # else there is nothing to refute
            if seed not in measured:
                measured[seed] = measure(written(seed), seed)
            if any((measured[seed] or {}).get(cell, 0.0) >= REFUTED for cell in more):
                return
    pytest.fail(f"{rule}: nothing unsound was found in {len(FOR_BROKEN_RULES)} expressions")
