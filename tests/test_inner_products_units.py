"""Forms that go unit by unit: unit-wise, quasi-diagonal, and frames for each member of a family."""

import math

import pytest
import torch
from hypothesis import given, settings

from riemann_ng.elements import Covector, Vector
from riemann_ng.errors import (
    DegenerateMetric,
    DtypeMismatch,
    NonFinite,
    NotAnInnerProduct,
    NotClosed,
    ShapeMismatch,
    SpaceMismatch,
)
from riemann_ng.inner_products import (
    Diagonal,
    Euclidean,
    Gram,
    InnerProduct,
    LowRank,
    QuasiDiagonal,
    RotatedDiagonal,
    UnitWise,
    euclidean_on_translations,
)
from riemann_ng.solvers import explain
from riemann_ng.spaces import AffineSpace, Family, Hom, Space
from riemann_ng.symmetry import COORDINATES
from riemann_ng.testing import KINDS, LAWS, Draw, LawBroken, check_laws
from riemann_ng.testing.kinds_of_layers import quasi
from riemann_ng.testing.strategies import cases

A, S = AffineSpace("A", 3), AffineSpace("S", 2)
W = Hom(A.hull, S.translations)
f64 = torch.float64
OURS = [name for name in KINDS if "unit" in name or "quasi" in name or name.startswith("rotated")]


def draw(seed=0):
    return Draw.seeded(seed)


def quasi_diagonal(seed=0, space=W):
    d = draw(seed)
    lead, k = space.shape[:-1], space.shape[-1] - 1
    return QuasiDiagonal(space, d.between(0.5, 2.0, *lead), d.normal(*lead, k), d.between(0.2, 2.0, *lead, k))


def unit_wise(seed=0, space=W):
    return UnitWise(space, draw(seed).positive(space.shape[-1], *space.shape[:-1]))


def solved(g, seed=3):
    """Held against the dense solution, and what Auto says that it did."""
    xi = Covector(g.space, draw(seed).normal(*g.space.shape))
    expected = torch.linalg.solve(g.matrix(xi.data).double(), xi.components.double())
    torch.testing.assert_close(g.sharp(xi).components, expected.to(xi.dtype), rtol=1e-9, atol=1e-9)
    return explain(g)


@settings(max_examples=settings.default.max_examples // 2)
@given(cases(OURS))
def test_laws(case):
    for law in LAWS.values():
        law(case)


def test_the_laws_refuse_what_is_wrong():
    """Controls: the slopes left out, two units exchanged, and a frame that is not orthonormal."""

    def no_slopes(d):
        g, M = KINDS["quasi-diagonal"](d)
        return QuasiDiagonal(g.space, g.pivots, 0 * g.slopes, g.rest), M

    def exchanged(d):
        g, M = KINDS["unit-wise"](d)
        return UnitWise(g.space, g.entries.roll(1, 0)), M

    def tilted(d):
        g, M = KINDS["rotated by members"](d)
        return RotatedDiagonal(g.reference, [1.1 * g.axes[0], g.axes[1]], g.spectrum, validate=False), M

    for wrong in (no_slopes, exchanged, tilted):
        with pytest.raises(LawBroken):
            check_laws(wrong, laws=["pairing", "round trip of vectors"], dtypes=[torch.float64])


# What stays in the kind, and what it costs


def test_damping_stays_unit_by_unit():
    g, h = unit_wise(), unit_wise(1)
    entries = Diagonal(W, draw(2).between(0.2, 2.0, 2, 4))
    one_for_all = Diagonal(W.factors[0], torch.tensor([0.5, 2.0], dtype=f64)) * Gram(W.factors[1], draw(4).positive(4))
    for other in (Euclidean(W), entries, h, quasi_diagonal(), one_for_all, euclidean_on_translations(W)):
        for damped in (g + 0.3 * other, 0.3 * other + g, 2.0 * g + other + 0.1 * Euclidean(W)):
            assert damped.structure.kind == "unit-wise" and damped.structure.direct < W.dim**3 / 3
            assert "unit-wise" in solved(damped)
    assert (g + Gram(W.factors[0], draw(5).positive(2)) * Euclidean(W.factors[1])).structure.kind != "unit-wise"
    assert (g + LowRank(W, draw(6).normal(2, 8))).structure.kind != "unit-wise"


def test_damping_on_a_family_goes_member_by_member():
    V = Family(W, 3)
    g, h = unit_wise(space=V), quasi_diagonal(space=V)
    A3, S3 = (Gram(Family(U, 3), draw(7).positive(U.dim, 3)) for U in (W.factors[1], W.factors[0]))
    for other in (Euclidean(V), h, Euclidean(S3.space) * A3, Euclidean(W.factors[0]) * A3):
        assert (g + 0.3 * other).structure.kind == "unit-wise"
        solved(g + 0.3 * other)
    assert (g + S3 * A3).structure.kind != "unit-wise"
    solved(g + S3 * A3)


def test_a_damped_quasi_diagonal_form_costs_what_a_diagonal_does():
    """Two units of 20,000 weights: their matrices would be 6 gigabytes."""
    V = Hom(AffineSpace("A", 20_000).hull, S.translations)
    g = quasi_diagonal(space=V)
    xi = Covector(V, draw(1).normal(*V.shape))
    entries = Diagonal(V, draw(2).between(0.1, 1.0, *V.shape))
    for form in (g, 2.0 * g, g + 0.3 * Euclidean(V), 0.5 * Euclidean(V) + g + entries):
        assert form.structure.direct <= 12 * V.dim
        assert torch.allclose(form.flat(form.sharp(xi)).data, xi.data, atol=1e-8)


def test_where_a_weight_is_not_damped_its_unit_is_solved_densely():
    rest = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]], dtype=f64)
    g = QuasiDiagonal(W, torch.ones(2, dtype=f64), draw().normal(2, 3), rest)
    on_the_bias = torch.zeros(2, 4, dtype=f64)
    on_the_bias[:, -1] = 0.7
    solved(g + Diagonal(W, on_the_bias))


def test_kernels_are_found_and_split_off_where_nothing_stands():
    pivots, slopes = torch.tensor([0.0, 1.0], dtype=f64), draw().normal(2, 3)
    slopes[0] = 0
    rest = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 1.0]], dtype=f64)
    g = QuasiDiagonal(W, pivots, slopes, rest)
    v = Vector(W, draw(1).normal(2, 4))
    with pytest.raises(DegenerateMetric, match=r"rank 5 of 8.*Three ways out"):
        g.sharp(Covector(W, torch.ones(2, 4, dtype=f64)))
    for call in (lambda: g.frame(), lambda: g.logdet()):
        with pytest.raises(DegenerateMetric):
            call()
    still = Covector(W, torch.zeros(2, 4, dtype=f64))
    still.data[0, 1:3] = 1.0
    assert torch.allclose(g.flat(g.sharp(still)).data, still.data)
    shortest = g.sharp_modulo_kernel(g.flat(v), Euclidean(W))
    assert torch.allclose(g.flat(shortest).data, g.flat(v).data)
    assert g.rank() == 5
    with pytest.raises(DegenerateMetric, match="rank"):
        UnitWise(W, torch.diag_embed(torch.tensor([[1.0, 1, 1, 0], [1, 1, 1, 1]], dtype=f64))).sharp(still)


def test_pencils_go_unit_by_unit():
    g, h = unit_wise(), unit_wise(1)
    frame = g.pencil_with(h)
    assert [tuple(P.shape) for P in frame.axes] == [(2, 4, 4)] and frame.spectrum.shape == (2, 4)
    P = torch.block_diag(*frame.axes[0])
    torch.testing.assert_close(P.mT @ h.matrix() @ P, torch.eye(8, dtype=f64))
    torch.testing.assert_close(P.mT @ g.matrix() @ P, torch.diag(frame.spectrum.flatten()))


# Averages


def test_the_average_of_unit_wise_forms_is_their_mean():
    g = unit_wise()
    for other in (unit_wise(1), Euclidean(W), Diagonal(W, draw(2).between(0.2, 2.0, 2, 4)), quasi_diagonal()):
        mean = g.blend(other, 0.3)
        assert isinstance(mean, UnitWise)
        torch.testing.assert_close(mean.matrix(), 0.7 * g.matrix() + 0.3 * other.matrix(g.entries))
    with pytest.raises(NotClosed):
        g.blend(Gram(W, draw(3).positive(8)), 0.3)


def test_the_average_of_quasi_diagonal_forms_is_what_they_keep_of_the_mean():
    g, h = quasi_diagonal(), quasi_diagonal(1)
    average, mean = g.blend(h, 0.3), 0.7 * g.matrix() + 0.3 * h.matrix()
    blocks = [mean[i : i + 4, i : i + 4] for i in (0, 4)]
    torch.testing.assert_close(average.matrix(), torch.block_diag(*map(quasi, blocks)))
    assert (average.matrix() - mean).abs().max() > 0.01  # which is not the mean
    torch.testing.assert_close(average.diagonal_entries(), mean.diagonal())
    with pytest.raises(NotClosed):
        g.blend(Euclidean(W), 0.3)


def test_no_pivot_no_share_in_the_slopes():
    g, h = quasi_diagonal(), quasi_diagonal(1)
    empty = QuasiDiagonal(W, 0 * h.pivots, h.slopes, h.rest)
    assert torch.equal(g.blend(empty, 0.5).slopes, g.slopes)
    assert torch.isfinite(empty.blend(empty, 0.5).slopes).all()


# Symmetry, text, state


def test_constants_are_known_by_name_and_data_by_lines():
    matrices = draw().positive(4, 2)
    constant, data = UnitWise(W, matrices, "M"), UnitWise(W, matrices, "M", natural=True)
    assert not constant.keeps("S", "monomial") and not constant.keeps("A", "translations")
    assert data.keeps("A", "affine") and data.keeps("S", "monomial") and not data.keeps("S", "orthogonal")
    assert UnitWise(W, matrices).symmetry != UnitWise(W, 2 * matrices).symmetry  # nameless: known by their entries
    g = quasi_diagonal()
    moved = QuasiDiagonal(W, g.pivots, g.slopes, g.rest, "statistics", natural=True)
    assert moved.keeps("A", "translations") and moved.keeps("A", "monomial") and not moved.keeps("A", "orthogonal")
    assert not g.keeps("A", "translations") and COORDINATES not in {s.name for s in g.symmetry.fixed}


@pytest.mark.parametrize("make", [unit_wise, quasi_diagonal])
def test_state_repr_dtype(make):
    g = make()
    back = InnerProduct.from_state(W, g.state())
    assert type(back) is type(g) and torch.equal(back.matrix(), g.matrix()) and repr(back) == repr(g)
    assert g.to(torch.float32).dtype == torch.float32
    assert repr(g).startswith(f"{type(g).__name__}({W}, ") and str(W.dual) in repr(g)


def test_gradients_flow():
    matrices = draw().positive(4, 2).requires_grad_()
    xi = Covector(W, draw(1).normal(2, 4))
    form = lambda M: (UnitWise(W, M, validate=False) + 0.1 * Euclidean(W)).sharp(xi).data  # noqa: E731
    assert torch.autograd.gradcheck(lambda M: form((M + M.mT) / 2), matrices)
    g = quasi_diagonal()
    parts = [t.clone().requires_grad_() for t in g.tensors()]
    shapes = [g.space.shape[:1], (2, 3), (2, 3)]

    def step(*numbers):
        p, s, r = (t.reshape(shape) for t, shape in zip(numbers, shapes, strict=True))
        return (QuasiDiagonal.of(W, p, s, r, "", g.symmetry) + 0.1 * Euclidean(W)).sharp(xi).data

    assert torch.autograd.gradcheck(step, parts)


# Bad input, by its text

I24, ONE, V3 = torch.eye(4, dtype=f64).repeat(2, 1, 1), torch.ones(2, dtype=f64), torch.ones(2, 3, dtype=f64)
TILTED = I24 + torch.triu(torch.ones(4, 4, dtype=f64), 1)
FAMILY = Family(Space("V", 2), 3)
BAD = [
    (lambda: UnitWise(Space("V", 4), I24), SpaceMismatch, "SpaceMismatch in UnitWise: V is no product: units are the"),
    (lambda: UnitWise(W, I24[0]), ShapeMismatch, "has matrices [2, 4, 4], got float64[4, 4]."),
    (lambda: UnitWise(W, I24.long()), DtypeMismatch, "DtypeMismatch in UnitWise: the matrices on S⃗ ← Â must be"),
    (lambda: UnitWise(W, math.nan * I24), NonFinite, "NonFinite in UnitWise: the matrices on S⃗ ← Â hold NaN"),
    (lambda: UnitWise(W, TILTED), NotAnInnerProduct, "a matrix on S⃗ ← Â is not symmetric: it differs from its"),
    (lambda: UnitWise(W, -I24), NotAnInnerProduct, "NotAnInnerProduct in UnitWise"),
    (lambda: QuasiDiagonal(S.translations * A.translations.dual, ONE, V3, V3), SpaceMismatch, "has no bias to keep"),
    (lambda: QuasiDiagonal(W, V3, V3, V3), ShapeMismatch, "the pivots are [2], got float64[2, 3]."),
    (lambda: QuasiDiagonal(W, ONE, V3, ONE), ShapeMismatch, "the rest are [2, 3], got float64[2]."),
    (lambda: QuasiDiagonal(W, ONE, V3.float(), V3), DtypeMismatch, "of one dtype on one device, got float64[2]"),
    (lambda: QuasiDiagonal(W, ONE, math.inf * V3, V3), NonFinite, "NonFinite in QuasiDiagonal: the statistics on"),
    (lambda: QuasiDiagonal(W, ONE, V3, -V3), NotAnInnerProduct, "the pivots go down to 1, the rest to -1; neither"),
    (
        lambda: RotatedDiagonal(Euclidean(FAMILY), [torch.eye(2).repeat(2, 1, 1)], torch.ones(3, 2)),
        ShapeMismatch, "whose sizes multiply to 6 (or to 2, for each of 3 members), got float32[2, 2, 2].",
    ),
    (
        lambda: RotatedDiagonal(Euclidean(FAMILY), [torch.eye(2).repeat(3, 1, 1)], torch.ones(2)),
        ShapeMismatch, "one entry for each frame vector, [3, 2], got float32[2].",
    ),
    (
        lambda: RotatedDiagonal(Euclidean(W), [I24[0, :2, :2], 2 * I24[0].sum(0)], I24.sum(1)),
        NotAnInnerProduct, "the frame is not orthonormal for Euclidean(S⃗ ← Â)",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "kind", "text"), BAD, ids=[text[:40] for _, _, text in BAD])
def test_bad_input(make, kind, text):
    with pytest.raises(kind) as caught:
        make()
    assert text in str(caught.value), str(caught.value)
