"""Every factorization against the dense matrix in float64, and the judgement of what is definite."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import riemann_ng as rng
from riemann_ng.errors import DegenerateMetric
from riemann_ng.factorizations import (
    BlockFactor,
    CholeskyFactor,
    DiagonalFactor,
    Factorization,
    FrameFactor,
    IdentityFactor,
    Indefinite,
    InverseFactor,
    KroneckerFactor,
    NotFinite,
    RankDeficient,
    ScaledFactor,
    WoodburyFactor,
    factorize_dense,
    factorize_rows,
    fold_rows,
    pencil,
    rows_pencil,
    tolerance_of,
)

DOUBLE = torch.float64
seeds = st.integers(0, 2**32 - 1)


def normal(seed: int, *shape: int, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def definite(seed: int, *shape: int, condition: float = 1e2) -> Tensor:
    """Symmetric matrices (..., d, d) with eigenvalues from 1 down to 1 / condition."""
    Q = torch.linalg.qr(normal(seed, *shape))[0]
    values = torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), shape[-1], dtype=DOUBLE)
    return (Q * values) @ Q.mT


def blocks(M: Tensor) -> Tensor:
    return torch.block_diag(*M)


def members_product(G: Tensor, A: Tensor) -> Tensor:
    """For each member the Kronecker product; a factor (d, d) is common to all."""
    m = max(len(M) if M.ndim == 3 else 1 for M in (G, A))
    return blocks(torch.stack([torch.kron(*(M[i] if M.ndim == 3 else M for M in (G, A))) for i in range(m)]))


def frame_of(seed: int, *dims: int) -> tuple[FrameFactor, Tensor]:
    axes = [torch.linalg.qr(normal(seed + i, d, d))[0] * torch.linspace(1, 3, d) for i, d in enumerate(dims)]
    spectrum = normal(seed + 9, *dims).exp()
    P = torch.ones(1, 1, dtype=DOUBLE)
    for axis in axes:
        P = torch.kron(P, axis)
    inverse = torch.linalg.inv(P)
    return FrameFactor(axes, spectrum), inverse.mT @ torch.diag(spectrum.flatten()) @ inverse


def cases(seed: int) -> dict[str, Callable[[], tuple[Factorization, Tensor]]]:
    """One factorization of each kind with its dense matrix."""
    M, N, K, L = (definite(seed + i, d, d) for i, d in enumerate((4, 3, 2, 3)))
    family, other, eye = definite(seed, 3, 4, 4), definite(seed + 1, 3, 2, 2), torch.eye(4, dtype=DOUBLE)
    rows, tall, entries = normal(seed, 2, 4), normal(seed + 1, 9, 4), normal(seed, 4).exp()
    talls = torch.stack([tall, 2 * tall, normal(seed + 2, 9, 4)])
    c, f = factorize_dense, frame_of
    return {
        "Cholesky": lambda: (c(M), M),
        "Cholesky of members": lambda: (c(family), blocks(family)),
        "eigen": lambda: (c(M, "eigen"), M),
        "eigen of members": lambda: (c(family, "eigen"), blocks(family)),
        "QR": lambda: (factorize_rows(tall), tall.mT @ tall),
        "QR of members": lambda: (factorize_rows(talls), blocks(talls.mT @ talls)),
        "diagonal": lambda: (DiagonalFactor(entries), torch.diag(entries)),
        "identity": lambda: (IdentityFactor(4), eye),
        "multiple": lambda: (ScaledFactor(0.3, c(M)), 0.3 * M),
        "multiple of the identity": lambda: (ScaledFactor(0.3, IdentityFactor(4)), 0.3 * eye),
        "inverse": lambda: (InverseFactor(lambda x: x @ M, c(M)), torch.linalg.inv(M)),
        "blocks": lambda: (BlockFactor([c(M), DiagonalFactor(entries)]), torch.block_diag(M, torch.diag(entries))),
        "product of two": lambda: (KroneckerFactor([c(M), c(N)], [4, 3]), torch.kron(M, N)),
        "product of three": lambda: (
            KroneckerFactor([c(M), c(N), c(K)], [4, 3, 2]), torch.kron(torch.kron(M, N), K)),
        "product of members": lambda: (
            KroneckerFactor([c(family), c(other)], [4, 2], 3), members_product(family, other)),
        "product of members with a common factor": lambda: (
            KroneckerFactor([c(family), c(N)], [4, 3], 3), members_product(family, N)),
        "product with an identity": lambda: (KroneckerFactor([IdentityFactor(4), c(N)], [4, 3]), torch.kron(eye, N)),
        "frame of one axis": lambda: f(seed, 4),
        "frame of two axes": lambda: f(seed, 3, 2),
        "frame of three axes": lambda: f(seed, 3, 2, 2),
        "shifted frame": lambda: (pencil(L, c(N)).shifted(0.5), L + 0.5 * N),
        "pencil": lambda: (pencil(L, c(N)), L),
        "pencil of rows": lambda: (rows_pencil(tall, c(M)), tall.mT @ tall),
        "Woodbury": lambda: (WoodburyFactor(c(M), rows), M + rows.mT @ rows),
        "Woodbury, more rows than dimensions": lambda: (WoodburyFactor(c(M), tall), M + tall.mT @ tall),
    }  # fmt: skip


KINDS = list(cases(0))


def discrepancy(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("kind", KINDS)
@given(seed=seeds)
def test_a_factorization_is_that_of_its_matrix(kind: str, seed: int) -> None:
    F, M = cases(seed)[kind]()
    d, inverse = len(M), torch.linalg.inv(M)
    eye, batch = torch.eye(d, dtype=DOUBLE), normal(seed, 2, 3, d)
    E = F.frame_columns(eye)
    accurate = 1e-10 * float(torch.linalg.cond(M))
    assert F.dim == d
    assert discrepancy(F.solve(batch), batch @ inverse) < accurate
    assert discrepancy(F.solve(batch[0, 0]), batch[0, 0] @ inverse) < accurate
    assert discrepancy(F.solve_columns(eye), inverse) < accurate
    assert discrepancy(E @ E.mT, inverse) < accurate
    assert discrepancy(F.coframe_columns(eye), E.mT) < accurate
    assert discrepancy(F.frame(batch), batch @ E.mT) < accurate
    assert discrepancy(F.coframe(batch), batch @ E) < accurate
    assert abs(float(F.logdet) - float(torch.linalg.slogdet(M)[1])) < 1e-8 * d


def test_the_oracle_refuses_a_wrong_factorization() -> None:
    """The control: a frame taken for its transpose, and the factors of a product swapped."""
    L = torch.linalg.cholesky(definite(0, 4, 4))
    E = CholeskyFactor(L).frame_columns(torch.eye(4, dtype=DOUBLE))
    assert discrepancy(E.mT @ E, torch.linalg.inv(L @ L.mT)) > 1e-2
    G, A, x = definite(1, 3, 3), definite(2, 3, 3), normal(0, 9)
    swapped = KroneckerFactor([factorize_dense(A), factorize_dense(G)], [3, 3])
    assert discrepancy(swapped.solve(x), x @ torch.linalg.inv(torch.kron(G, A))) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_single_precision_is_kept(kind: str) -> None:
    """A float32 problem is solved in float32, to what that holds."""
    if kind in ("Cholesky", "eigen"):
        M = definite(0, 6, 6).float()
        solved = factorize_dense(M, kind.lower()).solve(normal(1, 6).float())
        assert solved.dtype == torch.float32
        assert discrepancy(solved.double(), torch.linalg.solve(M.double(), normal(1, 6).float().double())) < 1e-4


def exact_solve(rows: Tensor, x: Tensor) -> Tensor:
    """(RᵀR)⁻¹x in rational arithmetic."""
    R = [[Fraction(v) for v in row] for row in rows.tolist()]
    d = len(R[0])
    M = [[sum(row[i] * row[j] for row in R) for j in range(d)] + [Fraction(float(x[i]))] for i in range(d)]
    for i in range(d):
        pivot = next(k for k in range(i, d) if M[k][i])
        M[i], M[pivot] = M[pivot], M[i]
        M[i] = [v / M[i][i] for v in M[i]]
        for k in range(d):
            if k != i:
                M[k] = [a - M[k][i] * b for a, b in zip(M[k], M[i], strict=True)]
    return torch.tensor([float(row[-1]) for row in M], dtype=DOUBLE)


@pytest.mark.parametrize("seed", range(4))
def test_rows_are_solved_through_their_own_condition_number_not_its_square(seed: int) -> None:
    """At cond(R) = 1e10 six digits are left; through the normal matrix, none."""
    U, V = (torch.linalg.qr(normal(seed + i, n, 6))[0] for i, n in enumerate((20, 6)))
    rows = (U * torch.logspace(0, -10, 6, dtype=DOUBLE)) @ V.mT
    x = normal(seed, 6)
    exact = exact_solve(rows, x)
    assert discrepancy(factorize_rows(rows).solve(x), exact) < 2e-6
    normal_matrix = rows.mT @ rows
    with pytest.raises((RankDeficient, Indefinite)):
        factorize_dense(normal_matrix)
    assert discrepancy(torch.linalg.solve(normal_matrix, x), exact) > 1e-1


@given(seed=seeds, d=st.integers(2, 30), kernel=st.integers(1, 29), correlated=st.booleans())
def test_the_rank_of_rows_and_of_their_matrix_is_found(seed: int, d: int, kernel: int, correlated: bool) -> None:
    """On axes scaled from 1 to 1e5, also where all axes are nearly one, which hides the kernel from the pivots."""
    rank = max(1, d - kernel)
    rows = normal(seed, 3 * d, rank) @ normal(seed + 1, rank, d)
    rows = (rows + 5 * rows[:1] if correlated else rows) * torch.logspace(0, 5, d, dtype=DOUBLE)
    for factorize in (lambda: factorize_rows(rows), lambda: factorize_dense(rows.mT @ rows)):
        with pytest.raises(RankDeficient) as caught:
            factorize()
        assert (caught.value.rank, caught.value.dim) == (rank, d)


def test_a_zero_column_and_too_few_rows_are_degenerate() -> None:
    rows = normal(0, 9, 4)
    rows[:, 2] = 0
    for factorize in (lambda: factorize_rows(rows), lambda: factorize_dense(rows.mT @ rows)):
        with pytest.raises(RankDeficient, match="rank 3 of 4"):
            factorize()
    with pytest.raises(RankDeficient, match="rank 2 of 4"):
        factorize_rows(normal(1, 2, 4))
    with pytest.raises(RankDeficient, match="rank 0 of 4"):
        factorize_dense(torch.zeros(4, 4, dtype=DOUBLE))
    with pytest.raises(RankDeficient, match="rank 7 of 8"):
        factorize_dense(torch.stack([torch.eye(4), torch.diag(torch.tensor([1.0, 1.0, 0.0, 1.0]))]))


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_units_do_not_make_a_form_degenerate(dtype: torch.dtype) -> None:
    M = torch.diag(torch.tensor([1.0, 1e-20], dtype=dtype))
    for F in (factorize_dense(M), factorize_dense(M, "eigen"), factorize_rows(M.sqrt())):
        torch.testing.assert_close(F.solve(torch.ones(2, dtype=dtype)), torch.tensor([1.0, 1e20], dtype=dtype))


@pytest.mark.parametrize(("dtype", "d", "condition"), [(torch.float32, 256, 1e4), (DOUBLE, 256, 1e12)])
def test_an_ill_conditioned_form_is_not_called_degenerate(dtype: torch.dtype, d: int, condition: float) -> None:
    M = definite(0, d, d, condition=condition).to(dtype)
    F = factorize_dense(M)
    assert isinstance(F, CholeskyFactor)
    x = normal(1, d).to(dtype)
    v = F.solve(x)
    assert float((M @ v - x).norm() / v.norm()) < tolerance_of(M)  # |M| is one


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("d", [3, 64, 200])
def test_what_should_vanish_stays_below_the_tolerance(dtype: torch.dtype, d: int) -> None:
    for seed in range(4):
        rows = normal(seed, 3 * d, d - 1, dtype=dtype) @ torch.linalg.qr(normal(seed, d, d - 1, dtype=dtype))[0].mT
        rows = rows + 5 * rows[:1] if seed % 2 else rows
        with pytest.raises(RankDeficient) as caught:
            factorize_dense(rows.mT @ rows)
        assert caught.value.rank == d - 1


def test_an_indefinite_matrix_is_told_from_a_degenerate_one() -> None:
    with pytest.raises(Indefinite, match=r"at unit diagonal, from -\d"):
        factorize_dense(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(Indefinite):
        factorize_dense(torch.diag(torch.tensor([1.0, -1.0])))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_said_so(bad: float) -> None:
    M = torch.eye(3)
    M[2, 2] = bad
    for factorize in (lambda: factorize_dense(M), lambda: factorize_rows(M)):
        with pytest.raises(NotFinite):
            factorize()


def test_a_diagonal_with_zeros_solves_what_vanishes_there() -> None:
    F = DiagonalFactor(torch.tensor([2.0, 0.0, 4.0]))
    assert F.solve(torch.tensor([[2.0, 0.0, 4.0]])).tolist() == [[1.0, 0.0, 1.0]]
    for ask in (lambda: F.solve(torch.ones(3)), lambda: F.frame(torch.ones(3)), lambda: F.logdet):
        with pytest.raises(RankDeficient, match="rank 2 of 3"):
            ask()


@given(seed=seeds, sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_folded_rows_have_the_same_moment(seed: int, sizes: list[int]) -> None:
    pieces = [normal(seed + i, n, 5) for i, n in enumerate(sizes)]
    folded, whole = fold_rows(iter(pieces)), torch.cat(pieces)
    assert len(folded) <= 10
    assert discrepancy(folded.mT @ folded, whole.mT @ whole) < 1e-13


def test_folding_keeps_the_digits_that_a_running_sum_of_products_loses() -> None:
    rows = torch.cat([torch.eye(2, dtype=DOUBLE), torch.tensor([[1e9, 1e9]], dtype=DOUBLE).expand(50, 2)])
    x = torch.tensor([1.0, -1.0], dtype=DOUBLE)
    exact = exact_solve(rows, x)
    assert discrepancy(factorize_rows(fold_rows(rows.split(7))).solve(x), exact) < 1e-6
    with pytest.raises((RankDeficient, Indefinite)):
        factorize_dense(rows.mT @ rows)


@given(seed=seeds, power=st.integers(0, 18))
def test_woodbury_stays_accurate_where_the_base_is_tiny(seed: int, power: int) -> None:
    """The residual is that of a stable method at any size of the base; the textbook's loses it."""
    small, rows, x = 10.0**-power, normal(seed, 3, 8), normal(seed + 1, 8)
    v = WoodburyFactor(DiagonalFactor(torch.full((8,), small, dtype=DOUBLE)), rows).solve(x)
    residual = small * v + (v @ rows.mT) @ rows - x
    size = small * v.norm() + float(torch.linalg.matrix_norm(rows, 2)) ** 2 * v.norm()
    assert float(residual.norm() / size) < 1e-14
    along = rows.mT @ torch.linalg.solve(rows @ rows.mT, rows @ x)
    across = (x - along) / small
    assert discrepancy(v, across + rows.mT @ torch.linalg.solve(rows @ rows.mT @ (
        small * torch.eye(3, dtype=DOUBLE) + rows @ rows.mT), rows @ x)) < 1e-9  # fmt: skip


def test_the_textbook_woodbury_is_the_control() -> None:
    small, rows, x = 1e-14, normal(0, 3, 8), normal(1, 8)
    x = rows.mT @ (rows @ x)  # in the span of the rows the two terms cancel
    kernel = torch.eye(3, dtype=DOUBLE) + rows @ rows.mT / small
    textbook = x / small - rows.mT @ torch.linalg.solve(kernel, rows @ x / small) / small
    exact = torch.linalg.lstsq(rows.mT @ rows, x, driver="gelsd").solution
    assert discrepancy(textbook, exact) > 1e-3
    v = WoodburyFactor(DiagonalFactor(torch.full((8,), small, dtype=DOUBLE)), rows).solve(x)
    assert discrepancy(rows @ v, rows @ exact) < 1e-12


@given(seed=seeds, rank=st.integers(1, 5))
def test_a_pencil_solves_modulo_the_kernel(seed: int, rank: int) -> None:
    """The reference-shortest of the solutions, from the rows and from the matrix; what has no solution is refused."""
    rows, reference = normal(seed, rank, 6), definite(seed, 6, 6)
    M, factor = rows.mT @ rows, factorize_dense(reference)
    x = normal(seed + 1, 2, rank) @ rows
    E = torch.linalg.inv(torch.linalg.cholesky(reference)).mT
    shortest = x @ (E @ torch.linalg.pinv(E.mT @ M @ E, rtol=1e-9, hermitian=True) @ E.mT)
    for F in (rows_pencil(rows, factor), pencil(M, factor)):
        assert F.rank == rank
        assert discrepancy(F.solve_modulo_kernel(x), shortest) < 1e-5
        with pytest.raises(RankDeficient):
            F.solve(x)
        with pytest.raises(RankDeficient):  # one bad covector in a batch is enough, however small
            F.solve_modulo_kernel(torch.cat([1e6 * x, normal(seed + 7, 1, 6)]))


def low_rank_product(dtype: torch.dtype) -> tuple[rng.InnerProduct, rng.InnerProduct, Tensor, Tensor]:
    """A product of two factors of rank 3 of 20 and 4 of 15 with its factors, exactly of that rank."""
    S, A = rng.Space("S", 20), rng.Space("A", 15)
    R, T = normal(0, 3, 20), normal(1, 4, 15)
    G, K = (rng.Gram(V, (rows.mT @ rows).to(dtype)) for V, rows in ((S, R), (A, T)))
    return G * K, rng.Euclidean(S * A), R, T


def tikhonov(R: Tensor, T: Tensor, damping: float, X: Tensor) -> Tensor:
    """(RᵀR ⊗ TᵀT + damping)⁻¹X through the singular values of the rows, which know what is zero."""
    (s, U), (t, V) = ((torch.linalg.svd(rows)[1], torch.linalg.svd(rows)[2].mT) for rows in (R, T))
    spectrum = torch.zeros(len(U), len(V), dtype=DOUBLE)
    spectrum[: len(s), : len(t)] = s[:, None].square() * t.square()
    return U @ ((U.mT @ X @ V) / (spectrum + damping)) @ V.mT


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_a_small_damping_meets_a_kernel_and_not_its_rounding(dtype: torch.dtype) -> None:
    """However small beside the form, until it is below the rounding of the form itself: that is said."""
    g, h, R, T = low_rank_product(dtype)
    eps, largest = torch.finfo(dtype).eps, float(torch.linalg.matrix_norm(R, 2) * torch.linalg.matrix_norm(T, 2)) ** 2
    X = normal(2, 20, 15)
    for relative in (1e-2, 1e-4, 1e2 * eps, 10 * eps):
        damping = relative * largest
        found = (g + damping * h).sharp(rng.Covector(g.space, X.to(dtype))).data.double()
        assert discrepancy(found, tikhonov(R, T, damping, X)) < 50 * eps  # generic, so mostly in the kernel
    for relative in (0.5 * eps, 1e-4 * eps):
        with pytest.raises(DegenerateMetric, match=r"in sharp: the form on S ⊗ A has rank 1[23] of 300.*g \+ λ"):
            (g + relative * largest * h).sharp(rng.Covector(g.space, X.to(dtype)))


def test_the_rounding_of_a_kernel_competes_with_a_small_damping() -> None:
    """The control: the spectrum as it comes out of the eigendecomposition."""
    g, _, R, T = low_rank_product(torch.float32)
    damping = 1e-6 * float(torch.linalg.matrix_norm(R, 2) * torch.linalg.matrix_norm(T, 2)) ** 2
    (s, U), (t, V) = (torch.linalg.eigh(factor.matrix()) for factor in g.factors)  # type: ignore[attr-defined]
    X = normal(2, 20, 15)
    noisy = U @ ((U.mT @ X.float() @ V) / (s[:, None] * t + damping)) @ V.mT
    assert discrepancy(noisy.double(), tikhonov(R, T, damping, X)) > 1e-2


@given(seed=seeds, power=st.integers(0, 5), which=st.integers(0, 1))
def test_a_pencil_loses_what_the_sum_loses_and_not_what_a_term_loses(seed: int, power: int, which: int) -> None:
    """The residual of a sum of products, of which one may be ill-conditioned, is that of its own condition number."""
    S, A = rng.Space("S", 8), rng.Space("A", 6)
    well = [definite(seed, 8, 8, condition=10), definite(seed + 1, 6, 6, condition=10)]
    ill = [definite(seed + 2, 8, 8, condition=10.0**power), definite(seed + 3, 6, 6, condition=2)]
    terms = [rng.Gram(S, M.float()) * rng.Gram(A, N.float()) for M, N in ((well, ill) if which else (ill, well))]
    X = normal(seed + 4, 8, 6)
    dense = sum(term.matrix().double() for term in terms)
    v = (terms[0] + terms[1]).sharp(rng.Covector(terms[0].space, X.float())).data.double().flatten()
    x = X.float().double().flatten()
    residual = float((dense @ v - x).norm() / x.norm())
    assert residual < 5 * torch.finfo(torch.float32).eps * float(torch.linalg.cond(dense))


def test_the_spread_of_a_form_is_one_for_multiples_of_the_identity_alone() -> None:
    reference = definite(0, 5, 5, condition=1e4)
    for N, low, high in ((3 * torch.eye(5, dtype=DOUBLE), 1 - 1e-12, 1 + 1e-12), (reference, 1e2, 1e4)):
        assert low < pencil(definite(1, 5, 5), factorize_dense(N)).spread(N.trace()) < high
    frame, M = frame_of(0, 3, 2)
    N = torch.linalg.inv(torch.kron(*frame.axes) @ torch.kron(*frame.axes).mT)
    assert frame.spread(N.trace()) == pytest.approx(float(N.trace() * torch.linalg.inv(N).trace()) / 36)
    assert M.shape == (6, 6)


@pytest.mark.parametrize("factorize", [factorize_dense, lambda M: factorize_dense(M, "eigen"), factorize_rows])
def test_gradients_flow_through(factorize: object) -> None:
    M, x = definite(0, 3, 3).requires_grad_(), normal(1, 3)
    assert torch.autograd.gradcheck(lambda M: factorize((M + M.mT) / 2).solve(x), M)  # type: ignore[operator]


def test_gradients_flow_through_woodbury() -> None:
    rows, x = normal(0, 2, 4).requires_grad_(), normal(1, 4)
    assert torch.autograd.gradcheck(lambda R: WoodburyFactor(IdentityFactor(4), R).solve(x), rows)
