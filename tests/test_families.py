"""Forms on families: products, damping and factorizations go member by member, or are refused."""

import time

import pytest
import torch
from torch import Tensor

from riemann_ng import (
    Covector,
    Diagonal,
    Euclidean,
    Family,
    Gram,
    InnerProduct,
    LowRank,
    OneHot,
    RotatedDiagonal,
    Sample,
    Space,
    second_moment,
)
from riemann_ng.errors import DegenerateMetric, NotClosed
from riemann_ng.factorizations import FrameFactor
from riemann_ng.inner_products import SecondMoment
from riemann_ng.inner_products.sums import Sum
from riemann_ng.testing import Draw

V, W, m = Space("V", 3), Space("W", 2), 4
VS, WS = Family(V, m), Family(W, m)


def joint(draw: Draw) -> SecondMoment:
    return second_moment(Sample(VS.dual, draw.normal(20, m, 3)), joint=True)


COUPLED = {
    "joint moment": joint,
    "low rank": lambda draw: LowRank(VS, draw.normal(5, 12)),
    "rotated diagonal": lambda draw: RotatedDiagonal(
        Euclidean(VS), [torch.linalg.qr(draw.normal(12, 12))[0]], draw.between(0.5, 2.0, 12)
    ),
    "sum with one that is": lambda draw: Gram(VS, draw.positive(3, m)) + LowRank(VS, draw.normal(5, 12)),
    "dual of one that is": lambda draw: (joint(draw) + Euclidean(VS)).dual,
    "product with a plain space": lambda draw: joint(draw) * Gram(Space("Z", 2), draw.positive(2)),
}
APART = {
    "moment": lambda draw: second_moment(Sample(VS.dual, draw.normal(20, m, 3))),
    "gram": lambda draw: Gram(VS, draw.positive(3, m)),
    "diagonal": lambda draw: Diagonal(VS, draw.between(0.5, 2.0, m, 3)),
    "rotated diagonal": lambda draw: RotatedDiagonal(
        Euclidean(VS), [torch.block_diag(*torch.linalg.qr(draw.normal(m, 3, 3))[0])], draw.between(0.5, 2.0, 12)
    ),
    "damped": lambda draw: Gram(VS, draw.positive(3, m)) + 0.1 * Euclidean(VS),
    "dual": lambda draw: (Gram(VS, draw.positive(3, m)) + 0.1 * Euclidean(VS)).dual,
}


@pytest.mark.parametrize("name", COUPLED)
def test_families_with_terms_between_members_do_not_multiply(name: str) -> None:
    draw = Draw.seeded(0)
    g, h = COUPLED[name](draw), Gram(WS, draw.positive(2, m), name="h")
    for product in (lambda: g * h, lambda: h * g, lambda: 2 * g * (3 * h)):
        with pytest.raises(NotClosed) as caught:
            product()
        assert str(caught.value).startswith("NotClosed in *: ")
        assert "and families multiply member by member. Make it one form for each member" in str(caught.value)


@pytest.mark.parametrize("name", APART)
def test_families_without_multiply(name: str) -> None:
    draw = Draw.seeded(1)
    g, H = APART[name](draw), draw.positive(2, m)
    product = g * Gram(WS, H)
    blocks = g.matrix().contiguous().reshape(m, 3, m, 3)
    expected = torch.block_diag(*(torch.kron(blocks[i, :, i].contiguous(), H[i]) for i in range(m)))
    torch.testing.assert_close(product.matrix(), expected)
    torch.testing.assert_close(product.matrix(), product.matrix().mT)


def test_a_form_between_members_multiplies_with_a_plain_space() -> None:
    """There the members are an index as any other."""
    draw = Draw.seeded(2)
    g, H = joint(draw), draw.positive(2)
    torch.testing.assert_close((g * Gram(W, H)).matrix(), torch.kron(g.matrix(), H))


def damped(draw: Draw, reference: str) -> tuple[InnerProduct, Tensor]:
    G, A = draw.positive(3, m), draw.positive(2, m)
    h = {
        "euclidean": lambda: Euclidean(VS * WS),
        "product": lambda: Gram(VS, draw.positive(3, m)) * Gram(WS, draw.positive(2, m)),
        "product with a plain one": lambda: Gram(VS, draw.positive(3, m)) * Euclidean(WS),
        "diagonal": lambda: Diagonal(VS * WS, draw.between(0.5, 2.0, m, 3, 2)),
    }[reference]()
    g = Gram(VS, G) * Gram(WS, A)
    return g + 0.3 * h, g.matrix() + 0.3 * h.matrix(G)


@pytest.mark.parametrize("reference", ["euclidean", "product", "product with a plain one", "diagonal"])
def test_damped_families_are_solved_exactly(reference: str) -> None:
    draw = Draw.seeded(3)
    g, M = damped(draw, reference)
    xi = draw.covector(g.space)
    torch.testing.assert_close(g.sharp(xi).components, torch.linalg.solve(M, xi.components))
    torch.testing.assert_close(g.logdet(), torch.linalg.slogdet(M)[1])
    E = g.frame().matrix(M)
    torch.testing.assert_close(E @ E.mT, torch.linalg.inv(M))


@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize("reference", ["euclidean", "product"])
def test_families_of_wide_products_are_diagonalized_together(reference: str, common: bool) -> None:
    """Three members of 30 x 20: a pencil for each factor, one of them common to all members if it is `common`."""
    draw = Draw.seeded(4)
    S, A = Family(Space("S", 30), 3), Space("A", 20) if common else Family(Space("A", 20), 3)
    G, B = draw.positive(30, 3), draw.positive(20) if common else draw.positive(20, 3)
    g = Gram(S, G) * Gram(A, B)
    h = Euclidean(g.space) if reference == "euclidean" else Gram(S, draw.positive(30, 3)) * Euclidean(A)
    total = g + 0.1 * h
    assert isinstance(total.factorization(), FrameFactor)
    M, xi = total.matrix(), draw.covector(g.space)
    torch.testing.assert_close(total.sharp(xi).components, torch.linalg.solve(M, xi.components))
    torch.testing.assert_close(total.logdet(), torch.linalg.slogdet(M)[1])


def test_members_of_very_different_scale_keep_their_own_accuracy() -> None:
    draw = Draw.seeded(5, torch.float32)
    S, A = Family(Space("S", 30), 2), Family(Space("A", 20), 2)
    scales = torch.tensor([1.0, 1e-9])[:, None, None]
    g = Gram(S, draw.positive(30, 2) * scales) * Gram(A, draw.positive(20, 2))
    total = g + Euclidean(g.space) * 1e-9
    xi = draw.covector(g.space)
    exact = torch.linalg.solve(total.matrix().double(), xi.components.double())
    for i in range(2):
        got, expected = (x.reshape(2, -1)[i].double() for x in (total.sharp(xi).components, exact))
        if i == 1:  # the small one is well conditioned, whatever the large one is
            assert float((got - expected).norm() / expected.norm()) < 1e-4


def test_a_damped_depthwise_layer_is_not_one_dense_matrix() -> None:
    draw, channels = Draw.seeded(6), 512
    S, A = Family(Space("s", 1), channels), Family(Space("a", 10), channels)
    g = Gram(S, draw.positive(1, channels)) * Gram(A, draw.positive(10, channels)) + 0.1 * Euclidean(S * A)
    xi, start = draw.covector(g.space), time.perf_counter()
    v = g.sharp(xi)
    assert time.perf_counter() - start < 2.0  # a dense matrix takes ten times as long
    torch.testing.assert_close(g.flat(v).data, xi.data)


def test_one_hot_samples_of_a_family_have_diagonal_moments() -> None:
    g = second_moment(Sample(VS.dual, OneHot(torch.tensor([0, 1, 11, 11]), torch.float64)))
    expected = torch.tensor([0.25, 0.25, *[0.0] * 9, 0.5], dtype=torch.float64)
    torch.testing.assert_close(g.matrix(), torch.diag(expected))
    H = Draw.seeded(8).positive(2, m)
    blocks = (torch.kron(torch.diag(expected[3 * i : 3 * i + 3]), H[i]) for i in range(m))
    torch.testing.assert_close((g * Gram(WS, H)).matrix(), torch.block_diag(*blocks))


def test_families_of_families_multiply_with_what_is_none() -> None:
    draw, nested = Draw.seeded(9), Family(Family(V, 2), 3)
    g, h = Diagonal(nested, draw.between(0.5, 2.0, 18)), Diagonal(Family(W, 3), draw.between(0.5, 2.0, 6))
    expected = g.entries.reshape(3, 6, 1) * h.entries.reshape(3, 1, 2)
    torch.testing.assert_close((g * h).matrix(), torch.diag(expected.flatten()))


def test_a_member_without_rank_is_found() -> None:
    draw = Draw.seeded(7)
    g = Gram(VS, draw.positive(3, m)) * Gram(WS, torch.ones(m, 2, 2, dtype=torch.float64))
    partial = g + Gram(VS, draw.positive(3, m)) * Gram(WS, torch.ones(m, 2, 2, dtype=torch.float64))
    assert isinstance(partial, Sum)
    with pytest.raises(DegenerateMetric) as caught:
        partial.sharp(Covector(partial.space, draw.normal(m, 3, 2)))
    assert caught.value.rank == m * 3
