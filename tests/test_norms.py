"""Norms: the laws of the base class for every kind, dense oracles, equivariance in twins, bad input."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from riemann_ng import (
    AffineSpace,
    Covector,
    DirectSum,
    Euclidean,
    Family,
    Gram,
    Hom,
    LowRank,
    RotatedDiagonal,
    Sample,
    Space,
    Vector,
    direct_sum,
    second_moment,
)
from riemann_ng.elements import Element
from riemann_ng.errors import (
    DegenerateMetric,
    DtypeMismatch,
    InvalidSetting,
    NonFinite,
    NotAnInnerProduct,
    RiemannError,
    SpaceMismatch,
)
from riemann_ng.inner_products import InnerProduct
from riemann_ng.norms import (
    SVD,
    Conv,
    Embed,
    FromInnerProduct,
    InvalidNorm,
    Linear,
    Max,
    ModularNorm,
    NewtonSchulz,
    Norm,
    PerSlice,
    Sign,
    Spectral,
    root_mean_square,
)
from riemann_ng.spaces import VectorSpace

F64 = torch.float64
ACT, PRE = AffineSpace("A", 3), AffineSpace("S", 4)
HULL, S = ACT.hull, PRE.translations
W = Hom(HULL, S)
C, K = Space("C", 3), Space("taps", 4)
FEW = settings.default.max_examples // 4


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def definite(n: int, seed: int) -> Tensor:
    X = normal(n, n, seed=seed)
    return X @ X.mT / n + 0.3 * torch.eye(n, dtype=F64)


def gram(V: VectorSpace, seed: int) -> Gram:
    M = (
        torch.stack([definite(V.of.dim, seed + 7 * i) for i in range(V.members)])
        if isinstance(V, Family)
        else definite(V.dim, seed)
    )
    return Gram(V, M, natural=True)


def rank(V: VectorSpace, r: int, seed: int) -> Covector:
    """A covector on Hom(Â, S) of rank r."""
    return Covector(V, normal(4, r, seed=seed) @ normal(r, 4, seed=seed + 1))


KINDS: dict[str, Callable[[int], Norm]] = {
    "spectral of the coordinates": lambda seed: Spectral().on(W),
    "spectral between forms": lambda seed: Spectral(between=gram(S, seed) * gram(HULL.dual, seed + 1)),
    "spectral, Newton-Schulz": lambda seed: Spectral(gram(S, seed) * gram(HULL.dual, seed + 1), NewtonSchulz.cubic(60)),
    "spectral, a multiple": lambda seed: Spectral(0.3 * (gram(S, seed) * gram(HULL.dual, seed + 1))),
    "spectral, three factors": lambda seed: Spectral(gram(S, seed) * gram(C.dual, seed + 1) * gram(K, seed + 2)),
    "spectral on a family": lambda seed: Spectral(gram(Family(S, 3), seed) * gram(Family(C.dual, 3), seed + 1)),
    "spectral on a family, one factor common": lambda seed: Spectral(gram(Family(S, 3), seed) * gram(C.dual, seed + 1)),
    "spectral on a direct sum": lambda seed: Spectral(
        direct_sum(a=gram(S, seed) * gram(C.dual, seed + 1), b=gram(K, seed) * gram(C, seed))
    ),
    "sign": lambda seed: Sign(W),
    "inner product": lambda seed: FromInnerProduct(gram(S, seed) * gram(HULL.dual, seed + 1)),
    "inner product on a direct sum": lambda seed: FromInnerProduct(direct_sum(a=gram(S, seed), b=gram(C, seed + 1))),
    "multiple": lambda seed: 2.5 * Sign(W),
    "largest": lambda seed: Max({"a": Sign(S), "b": 0.5 * FromInnerProduct(gram(C, seed))}),
    "largest, nested": lambda seed: Max({"a": Sign(S), "b": Max({"c": Spectral().on(W), "d": Sign(C)})}),
    "per slice": lambda seed: PerSlice(FromInnerProduct(gram(S, seed)), K.dual),
    "per slice, in the middle": lambda seed: PerSlice(Spectral(gram(S, seed) * gram(C.dual, seed + 1)), K, 1),
    "per slice, first of a family": lambda seed: PerSlice(Sign(Family(S * C, 2)), K, 0),
    "modular": lambda seed: Linear("b", Hom(S, C), mass=2.0) @ (3 * Linear("a", W) + Embed("c", Hom(K, S), 0.5)),
}


def violated(norm: Norm, seed: int, tolerance: float = 1e-9) -> set[str]:
    """The laws of `Norm` that do not hold for some random elements."""
    V = norm.space
    assert V is not None
    v, w = Vector(V, normal(5, *V.shape, seed=seed)), Vector(V, normal(5, *V.shape, seed=seed + 1))
    xi = Covector(V, normal(5, *V.shape, seed=seed + 2))
    others = norm.sharp(Covector(V, normal(200, 1, *V.shape, seed=seed + 3)))
    sharp, dual = norm.sharp(xi), norm.dual_norm(xi)

    def equal(a: Tensor, b: Tensor) -> bool:
        return bool(((a - b).abs() <= tolerance * b.abs().max().clamp(min=1)).all())

    laws = {
        "homogeneous": equal(norm.norm(v * -3.0), 3 * norm.norm(v)),
        "triangle": bool((norm.norm(v + w) <= (norm.norm(v) + norm.norm(w)) * (1 + tolerance)).all()),
        "positive": bool((norm.norm(v) > 0).all()),
        "bounded": bool((xi(v).abs() <= dual * norm.norm(v) * (1 + tolerance)).all())
        and bool((xi(others) <= dual * (1 + tolerance)).all()),
        "attained": equal(xi(sharp), dual),
        "unit": equal(norm.norm(sharp), torch.ones(5, dtype=F64)),
        "degree 0": equal(norm.sharp(xi * 1e-3).data, sharp.data) and equal(norm.sharp(xi * -2.0).data, -sharp.data),
        "dual homogeneous": equal(norm.dual_norm(xi * -2.0), 2 * dual),
        "zero": equal(norm.sharp(xi * 0.0).data, 0 * sharp.data) and equal(norm.dual_norm(xi * 0.0), 0 * dual),
        "one by one": all(equal(norm.sharp(Covector(V, x)).data, y) for x, y in zip(xi.data, sharp.data, strict=True)),
        "types": isinstance(sharp, Vector) and sharp.lives_in == V and dual.shape == (5,) and sharp.dtype == xi.dtype,
    }
    return {law for law, holds in laws.items() if not holds}


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=FEW)
def test_every_kind_keeps_every_law(kind: str, seed: int):
    assert violated(KINDS[kind](seed), seed) == set()


class Broken(Norm):
    """A spectral norm with one mistake."""

    def __init__(self, mistake: str, seed: int):
        self.mistake, self.right = mistake, Spectral(gram(S, seed) * gram(HULL.dual, seed + 1))
        self.space = self.right.space

    def norm_of(self, v: Element) -> Tensor:
        if self.mistake == "norm squared":
            return self.right.norm_of(v) ** 2
        return self.right.norm_of(v)

    def dual_norm_of(self, covector: Element) -> Tensor:
        return self.right.dual_norm_of(covector) / (2 if self.mistake == "dual norm" else 1)

    def sharp_of(self, covector: Element) -> Vector:
        if self.mistake == "not normalized":
            return self.right.sharp_of(covector) * self.right.dual_norm_of(covector)
        if self.mistake == "coordinates":
            return Spectral().sharp(covector)
        if self.mistake == "inverse frames":
            assert self.right._matrices is not None
            y = SVD()(self.right._matrices.in_frames(covector.components))
            return Vector(W, self.right._matrices.in_frames(y.flatten(-3)).reshape(covector.data.shape))
        return self.right.sharp_of(covector)

    def bound_to(self, space: VectorSpace) -> Norm:
        return self

    symmetry = Sign(W).symmetry

    def expression(self) -> str:
        return f"Broken({self.mistake})"


@pytest.mark.parametrize(
    ("mistake", "law"),
    [
        ("norm squared", "homogeneous"),
        ("dual norm", "bounded"),
        ("dual norm", "attained"),
        ("not normalized", "unit"),
        ("not normalized", "degree 0"),
        ("coordinates", "attained"),
        ("inverse frames", "unit"),
    ],
)
def test_a_mistake_breaks_a_law(mistake: str, law: str):
    assert violated(Broken("none", 3), 3) == set()
    assert law in violated(Broken(mistake, 3), 3)


# Dense oracles


def root(M: Tensor, power: float) -> Tensor:
    values, vectors = torch.linalg.eigh(M)
    return vectors @ torch.diag(values**power) @ vectors.mT


@given(seed=st.integers(0, 10**6))
@settings(max_examples=FEW)
def test_spectral_is_the_operator_norm_and_its_sharp_the_formula(seed: int):
    G, A = definite(4, seed), definite(4, seed + 1)
    norm = Spectral(between=Gram(S, G) * Gram(HULL.dual, A))
    v, xi = normal(4, 4, seed=seed + 2), normal(4, 4, seed=seed + 3)
    inputs = root(A, 0.5) @ torch.nn.functional.normalize(normal(4, 5000, seed=seed), dim=0)  # of length 1 for A⁻¹
    images = v @ inputs
    lengths = (images * (G @ images)).sum(0).sqrt()
    assert 0.9 * norm.norm(Vector(W, v)) < lengths.max() <= norm.norm(Vector(W, v)) * (1 + 1e-12)
    U, s, Vt = torch.linalg.svd(root(G, -0.5) @ xi @ root(A, -0.5))
    expected = root(G, -0.5) @ U @ Vt @ root(A, -0.5)
    torch.testing.assert_close(norm.sharp(Covector(W, xi)).data, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(norm.dual_norm(Covector(W, xi)), s.sum())


def test_without_forms_it_is_the_matrix_sign_of_torch():
    xi = normal(4, 4)
    U, _, Vt = torch.linalg.svd(xi)
    for norm in (Spectral(), Spectral().on(W), Spectral(Euclidean(W)), Spectral(Euclidean(S) * Euclidean(HULL.dual))):
        torch.testing.assert_close(norm.sharp(Covector(W, xi)).data, U @ Vt)
        torch.testing.assert_close(norm.dual_norm(Covector(W, xi)), torch.linalg.matrix_norm(xi, "nuc"))
        torch.testing.assert_close(norm.norm(Vector(W, xi)), torch.linalg.matrix_norm(xi, 2))
    # a vector of the dual is a covector
    torch.testing.assert_close(Spectral().sharp(Vector(W.dual, xi)).data, U @ Vt)


def test_on_a_family_each_member_is_a_matrix_of_its_own():
    V = Family(Hom(C, S), 3)
    g, a = gram(Family(S, 3), 1), gram(Family(C.dual, 3), 5)
    xi = normal(2, 3, 4, 3)
    together = Spectral(g * a).sharp(Covector(V, xi)).data
    for i in range(3):
        alone = Spectral(Gram(S, g.entries[i]) * Gram(C.dual, a.entries[i]))
        torch.testing.assert_close(together[:, i], alone.sharp(Covector(Hom(C, S), xi[:, i])).data)
    plain = Spectral().sharp(Covector(V, xi)).data
    torch.testing.assert_close(plain, torch.stack([SVD()(x) for x in xi.flatten(0, 1)]).reshape(xi.shape))


def test_a_frame_that_mixes_members_is_replaced_and_a_form_that_does_is_refused():
    wide = Space("U", 4)
    members, V = Family(wide, 2), Family(Hom(C, wide), 2)
    rows, xi = normal(2, 4), Covector(V, normal(2, 4, 3))
    both = torch.block_diag(rows, rows)[[0, 2, 1, 3]]
    Q, s = torch.linalg.qr(normal(4, 4))[0], torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=F64)
    order = torch.arange(8).reshape(2, 4).mT.flatten()  # axes of the first and of the second member in turn
    axes = torch.block_diag(Q, Q)[:, order]
    for g, matrix in (
        (LowRank(members, both) + 0.5 * Euclidean(members), rows.mT @ rows + 0.5 * torch.eye(4, dtype=F64)),
        (RotatedDiagonal(Euclidean(members), [axes], s.repeat(2)[order]), Q @ torch.diag(s) @ Q.mT),
    ):
        together = Spectral(g * Euclidean(C.dual)).sharp(xi)
        alone = Spectral(Gram(wide, (matrix + matrix.mT) / 2) * Euclidean(C.dual))
        for i in range(2):
            torch.testing.assert_close(together.data[i], alone.sharp(Covector(Hom(C, wide), xi.data[i])).data)
    coupled = LowRank(members, normal(12, 8)) * Euclidean(C.dual)
    with pytest.raises(InvalidNorm, match=r"couples the members of .*; on a family each member is a matrix of its own"):
        Spectral(coupled).sharp(xi)


def test_on_a_direct_sum_it_is_the_largest_and_blocks_stay_blocks():
    V = DirectSum({"a": W, "b": Hom(C, S)})
    x, y = normal(4, 4), normal(4, 3)
    xi = Covector(V, {"a": x, "b": y})
    step = Spectral().sharp(xi)
    assert not step.in_one_piece
    torch.testing.assert_close(step["a"], SVD()(x))
    torch.testing.assert_close(step["b"], SVD()(y))
    in_one = Spectral().sharp(Covector(V, xi.data.clone()))
    torch.testing.assert_close(in_one.data, step.data)


def test_an_inner_product_is_the_linear_case():
    g = gram(S, 1) * gram(HULL.dual, 2)
    norm, xi = FromInnerProduct(g), rank(W, 4, 3)
    torch.testing.assert_close((norm.sharp(xi) * norm.dual_norm(xi)).data, g.sharp(xi).data)
    torch.testing.assert_close(norm.dual_norm(xi), g.dual.norm(xi))
    torch.testing.assert_close(norm.sharp(xi * 1e-200).data, norm.sharp(xi).data)  # squares would vanish
    column = Hom(Space("one", 1), S)  # with one column a matrix is a vector
    spectral = Spectral(gram(S, 1) * Euclidean(Space("one", 1).dual))
    on_vectors = FromInnerProduct(gram(S, 1)).sharp(Covector(S, normal(4)))
    torch.testing.assert_close(spectral.sharp(Covector(column, normal(4, 1))).data[:, 0], on_vectors.data)


# The matrix sign


def test_of_a_deficient_matrix_it_is_the_partial_isometry_and_commutes_with_rotations():
    X = normal(4, 2, seed=1) @ normal(2, 5, seed=2)
    P, Q = torch.linalg.qr(normal(4, 4))[0], torch.linalg.qr(normal(5, 5, seed=9))[0]
    U, _, Vt = torch.linalg.svd(X)
    torch.testing.assert_close(SVD()(X), U[:, :2] @ Vt[:2])
    assert (SVD()(P @ X @ Q) - P @ SVD()(X) @ Q).abs().max() < 1e-13
    assert (NewtonSchulz()(P @ X @ Q) - P @ NewtonSchulz()(X) @ Q).abs().max() < 1e-11

    def naive(X: Tensor) -> Tensor:
        U, _, Vt = torch.linalg.svd(X, full_matrices=False)
        return U @ Vt

    assert (naive(P @ X @ Q) - P @ naive(X) @ Q).abs().max() > 0.1
    assert torch.equal(SVD(rtol=0.999)(torch.diag(torch.tensor([2.0, 1.0]))), torch.diag(torch.tensor([1.0, 0.0])))


@given(seed=st.integers(0, 10**6), rows=st.integers(1, 6), columns=st.integers(1, 6), r=st.integers(1, 6))
@settings(max_examples=FEW)
def test_the_cubic_iteration_converges_to_the_exact_sign(seed: int, rows: int, columns: int, r: int):
    r = min(r, rows, columns)
    U, V = (torch.linalg.qr(normal(n, r, seed=seed + i))[0] for i, n in enumerate((rows, columns)))
    X = U @ torch.diag(torch.linspace(0.05, 7, r, dtype=F64)) @ V.mT
    assert (NewtonSchulz.cubic()(X) - U @ V.mT).abs().max() < 1e-7
    assert (SVD()(X) - U @ V.mT).abs().max() < 1e-10
    quintic = torch.linalg.svdvals(NewtonSchulz()(X))[:r]
    assert quintic.min() > 0.65 and quintic.max() < 1.22
    assert (NewtonSchulz(1)(X) - NewtonSchulz.cubic()(X)).abs().max() > 1e-3


def test_the_polynomial_is_the_one_of_muon():
    X = normal(3, 5)
    Y = X / X.norm()
    for _ in range(5):
        M = Y @ Y.mT
        Y = 3.4445 * Y + (-4.7750 * M + 2.0315 * M @ M) @ Y
    torch.testing.assert_close(NewtonSchulz()(X), Y)
    torch.testing.assert_close(NewtonSchulz()(X.mT), Y.mT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [SVD(), NewtonSchulz(), NewtonSchulz.cubic(12)])
def test_works_in_the_dtype_given_at_any_scale(dtype: torch.dtype, method: SVD | NewtonSchulz):
    X = normal(3, 5).to(dtype)
    sign = Spectral(method=method).sharp(Covector(Hom(Space("V", 5), Space("U", 3)), X)).data
    assert sign.dtype == dtype
    assert (sign.double() - method(X.double())).abs().max() < (0.3 if dtype.itemsize == 2 else 1e-4)
    if dtype.itemsize > 2:
        for scale in (1e-30, 1e30):
            torch.testing.assert_close(method(X * scale), method(X), rtol=1e-3, atol=1e-3)


# Twins: frames on both spaces, data moved along, constants left where they are


def frame_of(group: str, n: int, seed: int) -> Tensor:
    q = torch.linalg.qr(normal(n, n, seed=seed))[0]
    P = torch.eye(n, dtype=F64)[torch.randperm(n, generator=torch.Generator().manual_seed(seed))].roll(1, 0)
    scales = normal(n, seed=seed + 1).abs() + 0.5
    scales[0] = 2.0
    signs = torch.ones(n, dtype=F64)
    signs[::2] = -1
    return {
        "general": q @ torch.diag(scales) @ torch.linalg.qr(normal(n, n, seed=seed + 2))[0],
        "orthogonal": q,
        "monomial": P @ torch.diag(scales * signs),
        "scaling": torch.diag(scales),
        "signed permutations": P @ torch.diag(signs),
        "permutations": P,
        "uniform scale": 1.7 * torch.eye(n, dtype=F64),
    }[group]


def in_hull(linear: Tensor, shift: Tensor | None = None) -> Tensor:
    frame = torch.block_diag(linear, torch.ones(1, 1, dtype=F64))
    if shift is not None:
        frame[:-1, -1] = shift
    return frame


def natural_forms(omega: Tensor, phi: Tensor) -> InnerProduct:
    """K-FAC's form from 9 inputs and cotangents, seen in the frames omega on Â and phi on S."""
    inputs = torch.cat([normal(9, 3, seed=11), torch.ones(9, 1, dtype=F64)], dim=-1) @ omega.mT
    cotangents = normal(9, 4, seed=12) @ torch.linalg.inv(phi)
    return second_moment(Sample(S.dual, cotangents)) * second_moment(Sample(HULL, inputs))


SUBJECTS: dict[str, Callable[[Tensor, Tensor], Norm]] = {
    "K-FAC spectral": lambda omega, phi: Spectral(between=natural_forms(omega, phi)),
    "K-FAC spectral, Muon's polynomial": lambda omega, phi: Spectral(natural_forms(omega, phi), NewtonSchulz()),
    "K-FAC": lambda omega, phi: FromInnerProduct(natural_forms(omega, phi)),
    "Muon": lambda omega, phi: Spectral(),
    "Muon, exactly truncated": lambda omega, phi: Spectral(method=NewtonSchulz(2)),
    "sign": lambda omega, phi: Sign(),
    "columns": lambda omega, phi: PerSlice(FromInnerProduct(Euclidean(S)), HULL.dual),
}


def mismatch(subject: str, omega: Tensor, phi: Tensor, r: int = 4) -> float:
    """How far the step in the twin is from the step carried over, relative to the step."""
    xi = rank(W, r, 5).data
    there, inverse = torch.linalg.inv(phi).mT @ xi @ omega.mT, torch.linalg.inv(omega)
    eye = torch.eye(4, dtype=F64)
    step = SUBJECTS[subject](eye, eye).sharp(Covector(W, xi)).data
    twin = SUBJECTS[subject](omega, phi).sharp(Covector(W, there)).data
    return float((twin - phi @ step @ inverse).abs().max() / (phi @ step @ inverse).abs().max())


@given(seed=st.integers(0, 10**6), r=st.integers(1, 4))
@settings(max_examples=FEW)
def test_between_natural_forms_it_commutes_with_all_affine_frames_and_muon_does_not(seed: int, r: int):
    omega = in_hull(frame_of("general", 3, seed), normal(3, seed=seed))
    phi = frame_of("general", 4, seed + 5)
    assert mismatch("K-FAC spectral", omega, phi, r) < 1e-10
    assert mismatch("K-FAC spectral, Muon's polynomial", omega, phi, r) < 1e-10
    assert mismatch("Muon", omega, phi, r) > 1e-2


@pytest.mark.parametrize("space", ["A", "S"])
@pytest.mark.parametrize(
    "group",
    [
        "translations",
        "general",
        "orthogonal",
        "monomial",
        "scaling",
        "signed permutations",
        "permutations",
        "uniform scale",
    ],
)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_symmetry_claimed_is_the_symmetry_measured(subject: str, group: str, space: str):
    omega, phi = torch.eye(4, dtype=F64), torch.eye(4, dtype=F64)
    if group == "translations":
        omega = in_hull(torch.eye(3, dtype=F64), normal(3)) if space == "A" else omega  # trivial on tangents of S
    elif space == "A":
        omega = in_hull(frame_of(group, 3, 2))
    else:
        phi = frame_of(group, 4, 2)
    found = mismatch(subject, omega, phi)
    claimed = SUBJECTS[subject](torch.eye(4, dtype=F64), torch.eye(4, dtype=F64)).on(W).symmetry.keeps(space, group)
    assert found < 1e-9 if claimed else found > 1e-2


def test_joint_scalings_are_claimed_where_they_hold():
    assert Spectral().on(Hom(C, S)).symmetry.keeps_joint({"C": 1, "S": 1})
    assert Sign(Hom(C, S)).symmetry.keeps_joint({"C": 1, "S": 1})
    assert not Sign(Hom(C, S)).symmetry.keeps_joint({"C": 1})
    by_summand = Max({"a": Sign(Hom(C, S)), "b": Spectral(gram(K, 1) * gram(C.dual, 1))}).symmetry
    assert by_summand.keeps("taps", "general") and not by_summand.keeps("S", "general")
    assert Sign(Family(S, 2) + C).symmetry.keeps("C", "signed permutations")
    assert [s.source for s in Sign(W).symmetry.blame("A", "translations")] == [f"Sign({W})"]


# Text, binding, bad input


def test_reprs_are_expressions():
    assert repr(Spectral()) == "Spectral()"
    assert repr(Spectral().on(Hom(C, S))) == "Spectral(between=Euclidean(S\u20d7 ← C)) : ℝ ← S\u20d7 ← C"
    assert repr(Spectral(method=NewtonSchulz())) == (
        "Spectral(method=NewtonSchulz(steps=5, coefficients=(3.4445, -4.775, 2.0315)))"
    )
    assert repr(Sign()) == "Sign()"
    assert repr(2 * Sign(C)) == "2 * Sign(C) : ℝ ← C"
    assert repr(Max({"a": Sign(C), "b": root_mean_square(K)})) == (
        "Max(a: Sign(C), b: 0.5 * FromInnerProduct(Euclidean(taps))) : ℝ ← C ⊕ taps"
    )
    assert repr(PerSlice(Sign(C), K.dual)) == "PerSlice(Sign(C), taps*) : ℝ ← C ← taps"


def test_norms_without_a_space_are_bound_to_one():
    assert Sign().space is None and Sign().on(C).space == C
    assert (2 * Spectral()).on(W).space == W
    both = Max({"a": Sign(), "b": Spectral(method=NewtonSchulz())})
    assert both.space is None
    bound = both.on(DirectSum({"b": W, "a": C}))
    assert bound.space == DirectSum({"b": W, "a": C}) and bound.on(DirectSum({"a": C, "b": W})).space == (
        DirectSum({"a": C, "b": W})
    )
    xi = Covector(DirectSum({"a": C, "b": W}), normal(19))
    torch.testing.assert_close(both.sharp(xi)["a"], xi["a"].sign())
    assert Sign(C).on(C).space == C
    assert FromInnerProduct(gram(C, 1)).on(C).space == PerSlice(Sign(C), K).on(C * K).space.factors[0]


BAD: list[tuple[Callable[[], object], type[RiemannError], str]] = [
    (
        lambda: Spectral().on(W).sharp(Vector(W, normal(4, 4))),
        SpaceMismatch,
        (
            r"SpaceMismatch in Spectral.sharp: expected a covector on S⃗ ← Â, got a vector of .*4, 4\]\).\n"
            r"Gradients from autograd are covectors: Covector\(space, grad\); their length is the dual_norm."
        ),
    ),
    (
        lambda: Sign(C).norm(Covector(C, normal(3))),
        SpaceMismatch,
        "Sign.norm: expected a vector of C, got a covector on C",
    ),
    (lambda: Sign(C).sharp(Covector(K, normal(4))), SpaceMismatch, "expected a covector on C, got a covector on taps"),
    (
        lambda: Sign().sharp(Vector(C, normal(3))),
        SpaceMismatch,
        "expected a covector on a vector space, got a vector of C",
    ),
    (
        lambda: Sign().norm(Covector(C, normal(3))),
        SpaceMismatch,
        "expected a vector of a vector space, got a covector on C",
    ),
    (lambda: Sign(C).sharp(normal(3)), SpaceMismatch, r"got float64\[3\]. Wrap the tensor: Covector\(space, tensor\)"),
    (lambda: Sign(C).norm(normal(3)), SpaceMismatch, r"Wrap the tensor: Vector\(space, tensor\)"),
    (lambda: Sign(C).on(K), SpaceMismatch, "is a norm on C, not on taps. Build the norm on taps"),
    (lambda: Max({"a": Sign()}).on(C), SpaceMismatch, "needs a direct sum of 'a', got C"),
    (lambda: Max({"a": Sign(C)}).on(DirectSum({"a": K})), SpaceMismatch, "is a norm on C, not on taps"),
    (
        lambda: Spectral().sharp(Covector(W, normal(4, 4) / 0)),
        NonFinite,
        (
            r"NonFinite in Spectral.sharp: a covector on S⃗ ← Â \(float64\[4, 4\]\) holds NaN or infinity. "
            r"Look for the layer and the batch"
        ),
    ),
    (
        lambda: Sign().sharp(
            Covector(DirectSum({"fc1": C, "fc2": K}), {"fc1": normal(3), "fc2": normal(4) * torch.nan})
        ),
        NonFinite,
        "holds NaN or infinity in 'fc2'",
    ),
    (lambda: Sign(C).norm(Vector(C, normal(3) * torch.inf)), NonFinite, "NonFinite in Sign.norm"),
    (
        lambda: Spectral(gram(S, 1) * gram(C.dual, 2)).sharp(Covector(Hom(C, S), normal(4, 3).float())),
        DtypeMismatch,
        r"DtypeMismatch in Spectral.sharp: a covector on .* in torch.float64 on cpu. Bring one to the other",
    ),
    (
        lambda: Max({"a": Sign(C), "b": FromInnerProduct(gram(K, 1))}).sharp(Covector(C + K, normal(7).float())),
        SpaceMismatch,
        "expected a covector on C ⊕ taps",
    ),
    (
        lambda: Max({"a": Sign(C), "b": FromInnerProduct(gram(K, 1))}).sharp(
            Covector(DirectSum({"a": C, "b": K}), normal(7).float())
        ),
        DtypeMismatch,
        "DtypeMismatch in Max.sharp",
    ),
    (
        lambda: Spectral().sharp(Covector(C, normal(3))),
        InvalidNorm,
        "but C is no product of two. For elements that are no",
    ),
    (
        lambda: Spectral(gram(S, 1) * gram(C.dual, 1) + Euclidean(Hom(C, S))),
        InvalidNorm,
        r"is no product of two inner products. Damp its factors, not the product: damp_factors\(g, λ, h\) or",
    ),
    (lambda: Spectral(gram(C + K, 1)), InvalidNorm, "couples the summands of C ⊕ taps. Give a direct sum of products"),
    (
        lambda: Spectral(between=normal(3, 3)),
        InvalidNorm,
        r"is a product of two, g \* a, or a metric of such values, as KFAC\(\), got float64\[3, 3\]. Leave it out",
    ),
    (
        lambda: Spectral(method="fast"),
        InvalidNorm,
        r"method is 'exact' or a MatrixSign as NewtonSchulz\(\), got str 'fast'",
    ),
    (
        lambda: Spectral(LowRank(S, normal(2, 4)) * gram(C.dual, 1)).sharp(Covector(Hom(C, S), normal(4, 3))),
        DegenerateMetric,
        r"DegenerateMetric in Spectral: the factor LowRank\(S⃗, rows\[2\]\) on S⃗ has rank 2 of 4. Three ways out: damp",
    ),
    (
        lambda: (2 * Sign()).symmetry,
        InvalidNorm,
        r"InvalidNorm in symmetry: Sign\(\) takes the coordinates of any space",
    ),
    (lambda: Max({"a": Spectral()}).symmetry, InvalidNorm, r"not known which it names. Bind it: norm.on\(V\).symmetry"),
    (
        lambda: Spectral(direct_sum(a=LowRank(S, normal(2, 4)), b=gram(C, 1)) * gram(K, 1)).sharp(
            Covector(DirectSum({"a": S, "b": C}) * K, normal(7, 4))
        ),
        DegenerateMetric,
        r"has rank 5 of 7",
    ),
    (
        lambda: Spectral(Gram(S, -definite(4, 1), validate=False) * gram(C.dual, 1)).norm(
            Vector(Hom(C, S), normal(4, 3))
        ),
        NotAnInnerProduct,
        "NotAnInnerProduct in Spectral: the form on S⃗ is indefinite",
    ),
    (lambda: FromInnerProduct(normal(3)), InvalidNorm, "FromInnerProduct: expected an inner product"),
    (lambda: 0 * Sign(C), InvalidNorm, r"a multiple of Sign\(C\) : ℝ ← C must be a positive finite number, got 0"),
    (lambda: torch.nan * Sign(C), InvalidNorm, "must be a positive finite number, got nan"),
    (lambda: "2" * Sign(C), InvalidNorm, "must be a positive finite number, got str '2'"),
    (lambda: Max({}), InvalidNorm, "InvalidNorm in Max: expected a norm for each name of a summand, got dict."),
    (lambda: PerSlice(Sign(), K), InvalidNorm, r"PerSlice: expected a norm that knows its space, got Sign Sign\(\)"),
    (lambda: PerSlice(Sign(C), C + K), InvalidNorm, "slices are taken along one factor of a product, got C ⊕ taps"),
    (lambda: PerSlice(Sign(C), K, 2), InvalidNorm, "position 2 of 2 factors"),
    (lambda: SVD(rtol=2.0), InvalidSetting, "InvalidSetting in SVD: rtol is a number from 0 to 1, got 2.0"),
    (lambda: NewtonSchulz(0), InvalidSetting, "steps is a positive integer, got 0"),
    (lambda: NewtonSchulz(5, (1.0, 2.0)), InvalidSetting, "three finite coefficients"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "error", "text"), BAD, ids=[text[:40] for _, _, text in BAD])
def test_bad_input_is_refused_with_the_reason_and_the_fix(call: Callable[[], object], error: type, text: str):
    with pytest.raises(error, match=text):
        call()


def test_a_refused_call_leaves_the_norm_as_it_was():
    norm = Spectral(gram(S, 1) * gram(C.dual, 2))
    xi = Covector(Hom(C, S), normal(4, 3))
    before = norm.sharp(xi).data
    with pytest.raises(NonFinite):
        norm.sharp(xi * torch.nan)
    assert torch.equal(norm.sharp(xi).data, before)


def test_gradients_flow_through_forms_and_nothing_of_them_is_kept():
    M = definite(4, 1).requires_grad_()
    xi = Covector(Hom(C, S), normal(4, 3))

    def length(M: Tensor) -> Tensor:
        return Spectral(Gram(S, M, validate=False) * gram(C.dual, 2), NewtonSchulz()).sharp(xi).data.square().sum()

    torch.autograd.gradcheck(lambda M: length((M + M.mT) / 2), M)


def test_modular_is_a_norm_here_too():
    assert isinstance(Conv("c", S * C.dual * K, K), ModularNorm)
