"""How damped forms are solved: by the frame, the diagonal or the low rank that they have, and exactly."""

import time

import pytest
import torch

from riemann_ng import (
    Diagonal,
    Euclidean,
    Gram,
    InnerProduct,
    LowRank,
    OneHot,
    RotatedDiagonal,
    Sample,
    Space,
    damp_factors,
    direct_sum,
    second_moment,
)
from riemann_ng.errors import DegenerateMetric, NotAnInnerProduct
from riemann_ng.factorizations import CholeskyFactor, FrameFactor, WoodburyFactor
from riemann_ng.solvers import CG, Auto
from riemann_ng.testing import Draw

V, W = Space("V", 3), Space("W", 2)
DOUBLE = torch.float64


def check_solves(g: InnerProduct, draw: Draw, rtol: float = 1e-10) -> None:
    M, xi = g.matrix(), draw.covector(g.space)
    torch.testing.assert_close(g.sharp(xi).components, torch.linalg.solve(M, xi.components), rtol=rtol, atol=rtol)
    torch.testing.assert_close(g.logdet(), torch.linalg.slogdet(M)[1], rtol=rtol, atol=rtol)
    E = g.frame().matrix(M)
    torch.testing.assert_close(E @ E.mT, torch.linalg.inv(M), rtol=1e3 * rtol, atol=rtol)


# --- low rank beside what may be degenerate ---------------------------------------------------------------------------


def low_rank_and_diagonal(d: int, zeros: int, draw: Draw) -> InnerProduct:
    entries = torch.ones(d, dtype=DOUBLE)
    entries[:zeros] = 0
    return LowRank(Space("X", d), torch.eye(d, dtype=DOUBLE)[:1] * 2) + Diagonal(Space("X", d), entries)


def test_a_low_rank_form_beside_a_degenerate_one_is_solved_by_its_matrix() -> None:
    """Definite together: where one vanishes the other does not."""
    draw = Draw.seeded(0)
    g = low_rank_and_diagonal(40, 1, draw)
    assert isinstance(g.factorization(), CholeskyFactor)
    check_solves(g, draw)
    assert isinstance(low_rank_and_diagonal(40, 0, draw).factorization(), WoodburyFactor)
    with pytest.raises(DegenerateMetric) as caught:  # and where both vanish it is degenerate, and says so
        low_rank_and_diagonal(40, 2, draw).sharp(draw.covector(Space("X", 40)))
    assert caught.value.rank == 39


def test_an_indefinite_part_is_called_so_by_the_sum() -> None:
    tilted = Gram(V, torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=DOUBLE)), validate=False)
    g = LowRank(V, torch.ones(1, 3, dtype=DOUBLE)) + tilted
    assert g.structure.low_rank is None
    with pytest.raises(NotAnInnerProduct, match=r"NotAnInnerProduct in sharp: the form on V is indefinite"):
        g.sharp(Draw.seeded(0).covector(V))


def test_of_two_degenerate_matrices_too() -> None:
    draw, X = Draw.seeded(1), Space("X", 20)
    rows = draw.normal(18, 20)
    g = LowRank(X, draw.normal(3, 20)) + Gram(X, rows.mT @ rows)
    check_solves(g, draw, 1e-7)


# --- rotated diagonals ------------------------------------------------------------------------------------------------


def rotated(draw: Draw, reference: InnerProduct, sides: list[int]) -> RotatedDiagonal:
    factors = reference.factors_on(tuple(reference.space.factors))
    assert factors is not None
    axes = []
    for h, d in zip(factors, sides, strict=True):
        E = torch.linalg.inv(torch.linalg.cholesky(h.matrix(torch.empty(0, dtype=DOUBLE)))).mT
        axes.append(E @ torch.linalg.qr(draw.normal(d, d))[0])
    return RotatedDiagonal(reference, axes, draw.between(0.05, 2.0, *sides))


@pytest.mark.parametrize("c", [0.3, torch.tensor(0.3, dtype=DOUBLE)])
def test_a_form_in_a_frame_damped_by_its_reference_stays_in_the_frame(c: object) -> None:
    draw = Draw.seeded(2)
    h = Gram(V, draw.positive(3), name="h")
    for reference, sides in (
        (Euclidean(V * W), [3, 2]),
        (h, [3]),
        (2 * h, [3]),
        (h * Gram(W, draw.positive(2)), [3, 2]),
    ):
        g = rotated(draw, reference, sides)
        for damped in (g + c * reference, c * reference + 2 * g, (g + 0.1 * reference) + 0.2 * reference):  # type: ignore[operator]
            assert isinstance(damped.factorization(), FrameFactor)
            assert damped.structure.kind == "rotated diagonal" and damped.structure.direct == g.space.dim
            check_solves(damped, draw)
            assert damped.symmetry == g.symmetry + reference.symmetry  # it claims what a sum does


def test_a_form_in_a_frame_damped_by_another_form_leaves_the_frame() -> None:
    draw = Draw.seeded(3)
    h = Gram(V, draw.positive(3), name="h")
    g = rotated(draw, h, [3])
    for other in (Euclidean(V), Gram(V, draw.positive(3), name="h"), h + Euclidean(V)):
        damped = g + 0.1 * other
        assert damped.structure.kind != "rotated diagonal"
        check_solves(damped, draw)


def test_a_large_form_in_a_frame_is_never_dense() -> None:
    draw, S, A = Draw.seeded(4), Space("S", 150), Space("A", 150)
    axes = [torch.linalg.qr(draw.normal(150, 150))[0] for _ in range(2)]
    g = RotatedDiagonal(Euclidean(S * A), axes, draw.between(0.1, 2.0, 150, 150)) + 0.1 * Euclidean(S * A)
    xi = draw.covector(g.space)
    torch.testing.assert_close(g.flat(g.sharp(xi)).data, xi.data)


# --- one-hot inputs ---------------------------------------------------------------------------------------------------


def embedding(draw: Draw, tokens: int, d: int) -> InnerProduct:
    seen = torch.arange(tokens - 2) % (tokens - 2)
    inputs = second_moment(Sample(Space("T", tokens), OneHot(seen, DOUBLE)))
    return Gram(Space("S", d), draw.positive(d), name="G") * inputs


@pytest.mark.parametrize("reference", ["euclidean", "diagonal", "product", "multiple"])
def test_damped_one_hot_inputs_are_solved_on_their_diagonal(reference: str) -> None:
    draw = Draw.seeded(5)
    g = embedding(draw, 7, 3)
    S, T = g.space.factors
    h = {
        "euclidean": lambda: Euclidean(S * T),
        "diagonal": lambda: Euclidean(S) * Diagonal(T, draw.between(0.5, 2.0, 7)),
        "product": lambda: Gram(S, draw.positive(3), name="h") * Euclidean(T),
        "multiple": lambda: 3 * (Gram(S, draw.positive(3), name="h") * (2 * Euclidean(T))),
    }[reference]()
    damped = g + 0.2 * h
    assert isinstance(damped.factorization(), FrameFactor)
    check_solves(damped, draw)


def test_many_tokens_cost_no_more_than_their_number() -> None:
    draw = Draw.seeded(6)
    g = embedding(draw, 30_000, 8) + 0.1 * Euclidean(Space("S", 8) * Space("T", 30_000).dual)
    assert g.structure.direct is not None and g.structure.direct < 1e5
    xi, start = draw.covector(g.space), time.perf_counter()
    v = g.sharp(xi)
    assert time.perf_counter() - start < 5.0  # a dense pencil takes days
    torch.testing.assert_close(g.flat(v).data, xi.data)


def test_a_factor_too_large_for_a_matrix_is_left_to_iteration() -> None:
    draw, T = Draw.seeded(7), Space("T", 10_000)
    g = Gram(V, draw.positive(3)) * LowRank(T, draw.normal(2, 10_000)) + 0.1 * Euclidean(V * T)
    assert g.structure.direct is None
    assert isinstance(Auto().choose(g)[0], CG)


# --- factors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["trace", "frobenius", "none"])
@pytest.mark.parametrize("zero", ["first", "second", "both"])
def test_a_factor_that_is_zero_is_damped_with_an_equal_split(split: str, zero: str) -> None:
    draw = Draw.seeded(8)
    G = torch.zeros(3, 3, dtype=DOUBLE) if zero in ("first", "both") else draw.positive(3)
    A = torch.zeros(2, 2, dtype=DOUBLE) if zero in ("second", "both") else draw.positive(2)
    g = Gram(V, G) * Gram(W, A)
    damped = damp_factors(g, 0.04, Euclidean(g.space), split)  # type: ignore[arg-type]
    one, two = torch.eye(3, dtype=DOUBLE), torch.eye(2, dtype=DOUBLE)
    torch.testing.assert_close(damped.matrix(), torch.kron(G + 0.2 * one, A + 0.2 * two))
    assert "nan" not in repr(damped)
    check_solves(damped, draw)


def test_direct_sums_are_damped_block_by_block_in_their_frames() -> None:
    draw = Draw.seeded(9)
    g = direct_sum(a=rotated(draw, Euclidean(V * W), [3, 2]), b=Gram(V, draw.positive(3)))
    damped = g + 0.1 * Euclidean(g.space)
    assert damped.summands()["a"].structure.kind == "rotated diagonal"  # type: ignore[index]
    check_solves(damped, draw)
