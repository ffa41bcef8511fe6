"""The rules of symmetry inference, one by one: what an expression keeps, and what the next larger group loses at.

A positive cell must be claimed and hold to 1e-9 when the data move; a negative one must not be claimed, must fail by
1e-2, and must be blamed on the right term.
"""

from __future__ import annotations

import pytest
import torch
from symmetry_data import W, cotangents, kfac, mean, points
from symmetry_rules import ONE, RULES, Rule
from torch import Tensor

from riemann_ng.elements import Covector
from riemann_ng.errors import DegenerateMetric, InvalidSpace, ShapeMismatch, SpaceMismatch
from riemann_ng.inner_products import (
    Diagonal,
    Euclidean,
    Gram,
    damp_factors,
    euclidean_on_translations,
    explain_symmetry,
    second_moment,
)
from riemann_ng.linear_maps import LinearMap
from riemann_ng.norms import Sign
from riemann_ng.samples import Sample
from riemann_ng.solvers import CG, Cholesky
from riemann_ng.spaces import Derived, DirectSum, Family, Hom, OnePoint, Space, VectorSpace
from riemann_ng.symmetry import Symmetry
from riemann_ng.testing import Draw
from riemann_ng.testing.frames import HERE, MOVED, A, Frames, S
from riemann_ng.testing.fuzz import CELLS, Cell, claimed, element, off

SHORT = {
    "T": "translations", "GL": "general", "O": "orthogonal", "M": "monomial", "D": "scaling",
    "SP": "signed permutations", "P": "permutations", "R": "uniform scale",
}  # fmt: skip


def cells(text: str) -> list[Cell]:
    """`A: T O; S: GL` as cells."""
    parts = [part.split(":") for part in text.split(";") if part.strip()]
    return [((space.strip(), SHORT[group]),) for space, groups in parts for group in groups.split()]


def outcome(rule: Rule, frames: Frames) -> Tensor:
    """What the rule makes, seen from where its numbers were drawn."""
    g = rule.form(frames)
    back = frames.on(g.space)
    if rule.solver is None and rule.norm is None:
        return back.mT @ g.flat_components(back.mT.contiguous()).mT
    xi = Draw.seeded(11).normal(g.space.dim)
    covector = Covector(g.space, frames.moved(g.space.dual, xi).reshape(g.space.shape))
    step = rule.norm(g).sharp(covector) if rule.norm else g.sharp(covector, rule.solver(frames))  # type: ignore[misc]
    return torch.linalg.solve(back, step.components)


def claim(rule: Rule) -> Symmetry:
    g = rule.form(HERE)
    if rule.norm is not None:
        return rule.norm(g).symmetry
    return g.symmetry if rule.solver is None else rule.solver(HERE).symmetry_of(g)


def error(rule: Rule, cell: Cell) -> float:
    """The largest of three elements: over a diagonal group, say, one may happen to be close to the identity."""
    draw, here = Draw.seeded(1), outcome(rule, HERE)
    maps = [{space: element(group, MOVED[space], draw) for space, group in cell} for _ in range(2)]
    return max(off(outcome(rule, Frames(m)), here) for m in maps)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule(rule: Rule) -> None:
    symmetry = claim(rule)
    for cell in (*cells(rule.keeps), *rule.joint):
        assert claimed(symmetry, cell), f"{cell} is kept and not claimed: {symmetry}"
        assert error(rule, cell) <= 1e-9, cell
    for text, term in rule.loses.items():
        for cell in cells(text):
            ((space, group),) = cell
            assert not claimed(symmetry, cell), f"{cell} is claimed: {symmetry}"
            assert error(rule, cell) >= 1e-2, cell
            assert any(term in f"{guilty}" for guilty in symmetry.blame(space, str(group))), (cell, symmetry)
    for cell in rule.not_joint:
        assert not claimed(symmetry, cell) and error(rule, cell) >= 1e-2, cell


def test_rules_that_lose_nothing_are_those_of_data_alone() -> None:
    for rule in RULES:
        natural = all(claimed(claim(rule), cell) for cell in CELLS)
        assert natural == (not rule.loses and not rule.not_joint), rule.name


def test_a_wrong_claim_does_not_pass() -> None:
    """The negative control of the measurement itself."""
    rule = next(rule for rule in RULES if rule.name == "damping on V only")
    assert error(rule, (("A", "translations"),)) <= 1e-9
    assert error(rule, (("A", "general"),)) >= 1e-2


# -- Explained --------------------------------------------------------------------------------------------------------


def test_explain_symmetry_names_the_term_of_each_loss() -> None:
    apart = next(rule for rule in RULES if rule.name == "weight apart from bias at the origin")
    assert explain_symmetry(apart.form(HERE)) == "translations of A are lost at: the origin of A"
    damped = kfac(HERE) + 0.1 * Euclidean(W)
    assert explain_symmetry(damped).splitlines()[0] == (
        "translations, general, monomial, scaling of A are lost at: Euclidean(S⃗ ← Â)"
    )
    assert explain_symmetry(kfac(HERE)) == "nothing is lost: every affine change of frame is kept"


def test_a_matrix_called_coordinates_is_no_reference() -> None:
    g = Gram(S.translations, Draw.seeded(0).positive(4), name="coordinates")
    assert not claimed(g.symmetry, (("S", "orthogonal"),)) and not claimed(g.symmetry, (("S", "permutations"),))


# -- Damping on the translations --------------------------------------------------------------------------------------


def test_euclidean_on_translations_is_the_square_of_the_weight() -> None:
    v = Draw.seeded(2).vector(W)
    h = euclidean_on_translations(W)
    assert torch.allclose(h.inner(v, v), v.data[:, :-1].square().sum())
    assert torch.equal(h.matrix(ONE), torch.kron(torch.eye(4), torch.diag(torch.tensor([1.0, 1, 1, 0]))).double())
    assert h.rank(ONE) == 12 and h.space == W


@pytest.mark.parametrize(
    ("space", "diagonal"),
    [
        (A.hull.dual, [1, 1, 1, 0]),
        (Family(A.hull.dual, 2), [1, 1, 1, 0] * 2),
        (Family(Space("U", 2) * A.hull.dual, 2), [1, 1, 1, 0] * 4),
        (DirectSum({"a": A.hull.dual, "b": Space("U", 2)}), [1, 1, 1, 0, 1, 1]),
        (A.translations, [1, 1, 1]),
        (Hom(OnePoint.hull, Space("U", 2)), [1, 1]),
    ],
    ids=str,
)
def test_euclidean_on_translations_of_every_sort_of_space(space: VectorSpace, diagonal: list[int]) -> None:
    h = euclidean_on_translations(space)
    assert h.space == space
    assert torch.equal(h.matrix(ONE), torch.diag(torch.tensor(diagonal).double()))


def test_a_length_of_points_needs_an_origin() -> None:
    with pytest.raises(SpaceMismatch, match="on Â lengths of translations say nothing of points without an origin"):
        euclidean_on_translations(A.hull)


@pytest.mark.parametrize("definite", [True, False])
def test_exact_damping_by_a_degenerate_reference_is_solved(definite: bool) -> None:
    """Also where the product alone is degenerate: what one does not see, the other does."""
    few = second_moment(Sample(A.hull, points(2, 0)))
    g = (kfac(HERE) if definite else cotangents(HERE) * few) + 0.3 * euclidean_on_translations(W)
    xi = Draw.seeded(3).covector(W)
    expected = torch.linalg.solve(g.matrix(), xi.components)
    assert torch.allclose(g.sharp(xi).components, expected, rtol=1e-10)
    assert torch.allclose(g.sharp(xi, Cholesky()).components, expected, rtol=1e-10)


def test_traces_relative_to_a_degenerate_reference_do_not_exist() -> None:
    """But for one that vanishes on constants alone: relative to it they are those of the centred covariance."""
    flat = Diagonal(A.hull.dual, torch.tensor([0.0, 1, 1, 1]).double())
    for split in ("trace", "frobenius"):
        with pytest.raises(DegenerateMetric, match=r"it has rank 3 of 4. Use split='none'") as error:
            damp_factors(kfac(HERE), 0.3, Euclidean(S.translations) * flat, split)  # type: ignore[arg-type]
        assert error.value.rank == 3


# -- The maps of a hull -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", [None, torch.tensor([0.5, -2.0, 1.0], dtype=torch.float64)])
def test_a_point_splits_the_hull(point: Tensor | None) -> None:
    along, height = LinearMap.translations(A), LinearMap.height(A)
    at, difference = LinearMap.at(A, point), LinearMap.difference(A, point)
    assert torch.equal((along @ difference).matrix(ONE) + (at @ height).matrix(ONE), torch.eye(4).double())
    assert torch.equal((difference @ along).matrix(ONE), torch.eye(3).double())
    assert not (difference @ at).matrix(ONE).any() and not (height @ along).matrix(ONE).any()
    for phi in (along, height, at, difference):
        assert torch.equal(phi.transpose.matrix(ONE), phi.matrix(ONE).mT)


def test_what_the_maps_of_a_hull_name() -> None:
    assert LinearMap.translations(A).natural and LinearMap.height(A).transpose.natural
    assert LinearMap.at(A, mean(HERE), natural=True).natural
    for phi in (LinearMap.at(A), LinearMap.difference(A).transpose, LinearMap.difference(A) @ LinearMap.at(A)):
        assert not phi.natural and phi.symmetry is not None
        assert [f"{guilty}" for guilty in phi.symmetry.blame("A", "translations")][:1] == ["the origin of A"]
        assert phi.symmetry.keeps("A", "general")
    elsewhere = LinearMap.at(A, mean(HERE), name="p").symmetry
    assert elsewhere is not None and not elsewhere.keeps("A", "general")
    constant = LinearMap(A.translations, A.translations, torch.eye(3))
    assert constant.symmetry is None and (constant @ LinearMap.difference(A)).symmetry is None
    with pytest.raises(ShapeMismatch, match=r"an element of A has components \[..., 3\]"):
        LinearMap.at(A, torch.zeros(4))


def test_a_frame_names_what_its_form_does() -> None:
    E = (cotangents(HERE) + Euclidean(S.translations)).frame()
    assert E.symmetry is not None and not E.natural and cotangents(HERE).frame().natural
    h = cotangents(HERE, 5)
    there_and_back = h.pullback(E).pullback(E.inverse())
    assert torch.allclose(there_and_back.matrix(), h.matrix(), rtol=1e-10)
    assert not h.pullback(E).symmetry.keeps("S", "general") and h.pullback(E).symmetry.keeps("S", "orthogonal")


# -- Spaces whose coordinates were chosen -----------------------------------------------------------------------------


def test_derived_spaces_are_values_that_stand_on_another() -> None:
    V = Derived("V/K", Space("U", 4) * Space("X", 3).dual, 3)
    assert eval(repr(V)) == V and str(V.dual) == "V/K*" and V.bases == ("U", "X") and V.dual.dual is V
    with pytest.raises(InvalidSpace, match="the dimension must be a positive integer"):
        Derived("V/K", S.translations, 0)


def test_constants_on_classes_name_all_of_the_space_they_are_of() -> None:
    q = kfac(HERE).quotient(LinearMap.identity(S.translations) * LinearMap.height(A).transpose)
    assert isinstance(q.space, Derived) and q.symmetry == Symmetry.natural()
    constants = (
        Euclidean(q.space).symmetry, (Euclidean(q.space.dual) * Euclidean(W)).symmetry, Sign(q.space).symmetry,
        Gram(q.space, torch.eye(q.space.dim)).symmetry, q.diagonal().symmetry, CG(iterations=2).symmetry_of(q),
    )  # fmt: skip
    for symmetry in constants:
        assert not any(symmetry.keeps("S", group) for group in SHORT.values() if group != "translations")
        assert not any(symmetry.keeps("A", group) for group in SHORT.values())


def test_a_euclidean_form_in_an_orthonormal_frame_is_the_form_itself() -> None:
    g = kfac(HERE)
    E = g.frame()
    assert Euclidean(E.domain).symmetry == CG(iterations=2).symmetry_of(Euclidean(E.domain)) == Symmetry.natural()
    there_and_back = Euclidean(E.domain).pullback(E.inverse())
    assert torch.allclose(there_and_back.matrix(ONE), g.matrix(), rtol=1e-9)
    assert not (g.pullback(E).diagonal().symmetry).keeps("S", "orthogonal")
