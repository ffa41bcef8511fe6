"""What the laws do not reach: degenerate forms, gradients by the matrix, measures, running averages, like terms."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from riemann_ng import (
    AffineSpace,
    Chunked,
    Covector,
    Diagonal,
    DirectSum,
    Euclidean,
    Family,
    Gram,
    InnerProduct,
    LinearMap,
    LowRank,
    Measure,
    OneHot,
    Pullback,
    RotatedDiagonal,
    Sample,
    Space,
    Vector,
    damp_factors,
    direct_sum,
    second_moment,
    solvers,
)
from riemann_ng.errors import DegenerateMetric
from riemann_ng.inner_products import BlockDiagonal, Kronecker, Scaled, Sum
from riemann_ng.testing import Draw
from riemann_ng.testing.strategies import draws

torch_close = torch.testing.assert_close
V, W = Space("V", 3), Space("W", 2)


def close(got: Tensor, expected: Tensor, rtol: float = 1e-9) -> None:
    torch_close(got, expected, rtol=rtol, atol=rtol * float(expected.abs().max()))


def degenerate(draw: Draw, d: int, rank: int) -> Tensor:
    rows = draw.normal(rank, d)
    return rows.mT @ rows


# --- degenerate forms -------------------------------------------------------------------------------------------------


def test_the_rank_is_found_and_named() -> None:
    draw = Draw.seeded(0)
    forms: list[tuple[InnerProduct, int]] = [
        (Gram(V, degenerate(draw, 3, 2)), 2),
        (LowRank(V, draw.normal(1, 3)), 1),
        (Diagonal(V, torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)), 2),
        (second_moment(Sample(V.dual, draw.normal(2, 3))), 2),
        (Gram(V, degenerate(draw, 3, 2)) * Gram(W, draw.positive(2)), 4),
        (Gram(W, draw.positive(2)) * Gram(V, degenerate(draw, 3, 1)), 2),
        (3 * (Gram(V, degenerate(draw, 3, 2)) * Gram(W, degenerate(draw, 2, 1))), 2),
        (direct_sum(a=Gram(V, degenerate(draw, 3, 1)), b=Gram(W, draw.positive(2))), 3),
        (LowRank(V, draw.normal(1, 3)) + LowRank(V, draw.normal(1, 3)), 2),
        (Gram(Family(W, 3), torch.stack([degenerate(draw, 2, 1), draw.positive(2), draw.positive(2)])), 5),
        (Gram(Family(W, 2), torch.stack([degenerate(draw, 2, 1), draw.positive(2)])) * Gram(V, draw.positive(3)), 9),
        (Pullback(LinearMap(V, W, draw.normal(2, 3)), Gram(W, draw.positive(2))), 2),
        (RotatedDiagonal(Gram(V, E := torch.eye(3, dtype=torch.float64)), [E], torch.tensor([1.0, 2, 0]).double()), 2),
    ]
    for g, rank in forms:
        assert g.rank() == rank, g
        for call in (lambda g=g: g.sharp(draw.covector(g.space)), g.logdet, g.frame, g.random_vector):
            with pytest.raises(DegenerateMetric) as caught:
                call()
            text, error = str(caught.value), caught.value
            if (
                not isinstance(g, BlockDiagonal) or "summand" not in text
            ):  # sharp goes summand by summand, and says in which
                assert error.space == g.space and error.rank == rank
                assert f"the form on {g.space} has rank {rank} of {g.space.dim}" in text
            for way in ("g + λ * h", "g.sharp_modulo_kernel(ξ, reference=h)", "g.quotient(kernel)"):
                assert way in text


@given(draws())
def test_sharp_modulo_the_kernel_is_the_shortest_solution(draw: Draw) -> None:
    d = draw.integer(2, 5)
    r, X = draw.integer(1, d - 1), Space("X", d)
    rows, H = draw.tall(d, r).mT, draw.positive(d)
    M, reference = rows.mT @ rows, Gram(X, H, name="h")
    xi = Covector(X, rows.mT @ draw.normal(r))
    root = torch.linalg.cholesky(H)
    expected = torch.linalg.solve(root.mT, torch.linalg.pinv(torch.linalg.solve(root, M).mT, rtol=1e-8) @ xi.data)
    for g in (Gram(X, M), LowRank(X, rows), second_moment(Sample(X.dual, rows * r**0.5)), 0.5 * Gram(X, 2 * M)):
        v = g.sharp_modulo_kernel(xi, reference)
        close(g.flat(v).data, xi.data, 1e-7)
        close(v.data, expected, 1e-6)
        with pytest.raises(DegenerateMetric, match="ξ does not vanish on the kernel"):
            g.sharp_modulo_kernel(draw.covector(X), reference)


def test_sharp_modulo_the_kernel_of_a_product_and_of_a_direct_sum() -> None:
    draw = Draw.seeded(1)
    g = Gram(V, degenerate(draw, 3, 2)) * Gram(W, degenerate(draw, 2, 1))
    h = Gram(V, draw.positive(3)) * Gram(W, draw.positive(2))
    whole, reference = direct_sum(a=g, b=Gram(W, draw.positive(2))), direct_sum(a=h, b=Euclidean(W))
    for form, ref in ((g, h), (g, Gram(V * W, h.matrix())), (g, Euclidean(V * W)), (whole, reference)):
        xi = form.flat(draw.vector(form.space))
        v = form.sharp_modulo_kernel(xi, ref)
        close(form.flat(v).data, xi.data, 1e-8)
        kernel = torch.linalg.eigh(form.matrix())[1][:, : form.space.dim - form.rank()].mT
        orthogonal = kernel @ ref.flat(v).components  # the shortest solution is orthogonal to the kernel
        assert float(orthogonal.abs().max()) < 1e-8
    with pytest.raises(DegenerateMetric):
        g.sharp_modulo_kernel(draw.covector(g.space), h)


def test_a_quotient_by_the_kernel_is_definite() -> None:
    draw = Draw.seeded(2)
    rows = draw.normal(2, 3)
    g = Gram(V, rows.mT @ rows)
    kernel = LinearMap(Space("K", 1), V, torch.linalg.svd(rows)[2][2:].mT)
    q, v = g.quotient(kernel), draw.vector(V, 5)
    close(q.norm(q.projection(v)), g.norm(v), 1e-7)
    u = draw.covector(q.space)
    close(q.flat(q.sharp(u)).data, u.data)
    assert q.rank() == 2


def test_unseen_rows_of_an_embedding_are_left_out() -> None:
    tokens, S = Space("tokens", 5), Space("S", 2)
    A = second_moment(Sample(tokens, OneHot(torch.tensor([0, 0, 3, 4]), torch.float64)))
    G = Gram(S, Draw.seeded(3).positive(2))
    g = G * A
    close(A.matrix(), torch.diag(torch.tensor([2.0, 0, 0, 1, 1]).double()) / 4)
    xi = Draw.seeded(3).normal(2, 5)
    with pytest.raises(DegenerateMetric, match="rank 6 of 10"):
        g.sharp(Covector(g.space, xi))
    xi[:, 1:3] = 0
    v = g.sharp(Covector(g.space, xi))
    assert bool((v.data[:, 1:3] == 0).all())
    close(g.flat(v).data, xi)


# --- damping ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("damping", [1e-8, 1e-2, 10.0])
def test_tikhonov_damping_is_exact_in_any_reference(rank: int, damping: float) -> None:
    draw = Draw.seeded(rank)
    G, A = degenerate(draw, 3, rank), draw.positive(2)
    g = Gram(V, G, name="G") * Gram(W, A, name="A")
    h, k = (second_moment(Sample(U.dual, draw.normal(7, U.dim))) for U in (V, W))
    for reference, H in (
        (Euclidean(V * W), torch.eye(6).double()),
        (2 * Euclidean(V * W), 2 * torch.eye(6).double()),
        (h * k, torch.kron(h.matrix(), k.matrix())),
        (Gram(V, h.matrix()) * Euclidean(W), torch.kron(h.matrix(), torch.eye(2).double())),
    ):
        damped = g + damping * reference
        M = torch.kron(G, A) + damping * H
        assert solvers.explain(damped).count("product + product")
        xi = damped.flat(draw.vector(V * W))
        residual = M @ damped.sharp(xi).components - xi.components
        assert float(residual.norm() / xi.data.norm()) < 1e-10
        close(damped.matrix(), M)


@pytest.mark.parametrize("split", ["trace", "frobenius", "none"])
@pytest.mark.parametrize("c", [1.0, 9.0])
def test_damped_factors_do_not_depend_on_how_a_scale_is_split(split: str, c: float) -> None:
    draw = Draw.seeded(0)
    G, A = draw.positive(3), draw.positive(2)
    references = [Euclidean(V * W), 2 * Euclidean(V * W), Gram(V, draw.positive(3)) * Gram(W, draw.positive(2))]
    for h in references:
        damped = [damp_factors(Gram(V, G * b) * Gram(W, A / b), 0.1, h, split).matrix() for b in (1.0, c)]  # type: ignore[arg-type]
        same = torch.allclose(damped[0], damped[1], rtol=1e-10)
        assert same == (split != "none" or c == 1.0)


def test_damping_by_a_multiple_is_damping_by_more() -> None:
    draw = Draw.seeded(0)
    g, h = Gram(V, draw.positive(3)) * Gram(W, draw.positive(2)), Gram(V, draw.positive(3)) * Gram(W, draw.positive(2))
    for reference in (h, Euclidean(V * W)):
        for split in ("trace", "frobenius"):
            twice, double = damp_factors(g, 0.2, reference, split), damp_factors(g, 0.1, 2 * reference, split)  # type: ignore[arg-type]
            close(twice.matrix(), double.matrix())
        close(damp_factors(3 * g, 0.3, reference).matrix(), 3 * damp_factors(g, 0.1, reference).matrix())


def test_damping_a_network_is_damping_its_layers() -> None:
    draw = Draw.seeded(4)
    g = Gram(V, draw.positive(3)) * Gram(W, draw.positive(2))
    net = direct_sum(fc1=g, fc2=2 * Gram(W, draw.positive(2)))
    damped = net + 0.1 * Euclidean(net.space)
    assert isinstance(damped, BlockDiagonal)
    close(damped.matrix(), net.matrix() + 0.1 * torch.eye(8).double())
    two = direct_sum(a=g, b=g)
    factored = damp_factors(two, 0.1, 3 * Euclidean(two.space))
    one = damp_factors(g, 0.1, 3 * Euclidean(g.space)).matrix()
    close(factored.matrix(), torch.block_diag(one, one))


# --- expressions ------------------------------------------------------------------------------------------------------


def test_like_terms_collect_and_scalars_move_out() -> None:
    g, h, E = Gram(V, torch.eye(3), name="G"), Gram(V, torch.eye(3), name="H"), Euclidean(V)
    cases: list[tuple[InnerProduct, str]] = [
        (2 * E + 3 * E, "5 * Euclidean(V)"),
        (g + g, "2 * Gram(V, G)"),
        (g + h, "Gram(V, G) + Gram(V, H)"),
        (2 * (g + 3 * h), "2 * Gram(V, G) + 6 * Gram(V, H)"),
        ((g + h) + (g + E), "2 * Gram(V, G) + Gram(V, H) + Euclidean(V)"),
        ((2 * g) * (3 * h), "6 * Gram(V, G) * Gram(V, H)"),
        ((g + h) * E, "(Gram(V, G) + Gram(V, H)) * Euclidean(V)"),
        (E * Euclidean(W), "Euclidean(V ⊗ W)"),
        (g.dual.dual, "Gram(V, G)"),
        ((g * h).dual, "Gram(V, G).dual * Gram(V, H).dual"),
        ((4 * g).dual, "0.25 * Gram(V, G).dual"),
        (E.dual, "Euclidean(V*)"),
        (1 * g, "Gram(V, G)"),
        (g / 2, "0.5 * Gram(V, G)"),
        (2 * direct_sum(a=g, b=h), "direct_sum(a: 2 * Gram(V, G), b: 2 * Gram(V, H))"),
        (E.diagonal(), "Euclidean(V)"),
    ]
    for form, text in cases:
        assert form.expression() == text
    assert repr(g * Euclidean(W.dual)) == "Gram(V, G) * Euclidean(W*) : (V ← W)* ← (V ← W)"


def test_a_sum_of_a_diagonal_and_a_full_form_is_not_diagonal() -> None:
    draw = Draw.seeded(0)
    M, s = draw.positive(3), draw.between(0.5, 2, 3)
    for g in (Diagonal(V, s) + Gram(V, M), Gram(V, M) + Diagonal(V, s)):
        close(g.diagonal().matrix(), torch.diag(M.diagonal() + s))
        close(g.matrix(), M + torch.diag(s))
    assert (Diagonal(V, s) + 2.0 * Euclidean(V)).structure.kind == "diagonal"


def test_multiples_of_multiples() -> None:
    draw = Draw.seeded(0)
    c = Scaled(2.0, Euclidean(V))
    close((Gram(V, M := draw.positive(3)) + Scaled(3.0, c, c.symmetry)).matrix(), M + 6 * torch.eye(3).double())


def test_the_tensors_of_a_number_give_no_dtype() -> None:
    g = torch.tensor(2.0) * Euclidean(V)
    assert g.dtype is None
    close((Gram(V, M := Draw.seeded(0).positive(3)) + g).matrix(), M + 2 * torch.eye(3).double())


def test_elements_in_blocks_stay_in_blocks() -> None:
    draw = Draw.seeded(0)
    g = direct_sum(a=Gram(V, draw.positive(3)), b=Gram(W, draw.positive(2)))
    v = Vector(g.space, {"a": draw.normal(3), "b": draw.normal(2)})
    assert not g.flat(v).in_one_piece and not g.sharp(g.flat(v)).in_one_piece
    assert (g.restrict("a"), g.restrict("b")) == tuple(g.parts.values())


def test_a_factorization_is_made_once_and_kept() -> None:
    draw = Draw.seeded(0)
    G = Gram(V, draw.positive(3))
    g, h = G * Gram(W, draw.positive(2)), G * Gram(Space("U", 2), draw.positive(2))
    assert g.factorization().factors[0] is h.factorization().factors[0] is G.factorization()
    assert g.factorization() is g.factorization()


# --- running averages -------------------------------------------------------------------------------------------------


def test_a_running_average_of_moments_is_the_moment_of_all() -> None:
    draw = Draw.seeded(0)
    batches = [draw.normal(4, 3) for _ in range(3)]
    average: InnerProduct = second_moment(Sample(V, batches[0]))
    for i, batch in enumerate(batches[1:], start=2):
        average = average.blend(second_moment(Sample(V, batch)), 1 / i)
    close(average.matrix(), second_moment(Sample(V, torch.cat(batches))).matrix())
    assert average.symmetry.keeps("V", "general")
    assert average.expression() == "Gram(V*, average of second_moment(sample of V))"


def test_products_blend_factor_by_factor() -> None:
    draw = Draw.seeded(0)
    (g, G), (a, A), (h, H), (b, B) = ((Gram(U, M := draw.positive(U.dim)), M) for U in (V, W, V, W))
    close((g * a).blend(h * b, 0.1).matrix(), torch.kron(0.9 * G + 0.1 * H, 0.9 * A + 0.1 * B))
    assert not torch.allclose((g * a).blend(h * b, 0.1).matrix(), 0.9 * torch.kron(G, A) + 0.1 * torch.kron(H, B))


def test_what_blends_with_what() -> None:
    draw = Draw.seeded(0)
    M, N, s = draw.positive(3), draw.positive(3), draw.between(0.5, 2, 3)
    pairs = [
        (Gram(V, M), 3 * Gram(V, N), 3 * N),
        (2 * Gram(V, M / 2), 3 * Gram(V, N), 3 * N),
        (Gram(V, M), Gram(V, N) + second_moment(Sample(V.dual, x := draw.normal(5, 3))), N + x.mT @ x / 5),
        (second_moment(Sample(V.dual, y := draw.normal(5, 3))), Gram(V, N), N),
    ]
    for g, h, H in pairs:
        close(g.blend(h, 0.3).matrix(), 0.7 * (M if "second" not in g.expression() else y.mT @ y / 5) + 0.3 * H)
    close(Diagonal(V, s).blend(2 * Euclidean(V), 0.5).matrix(), torch.diag(s / 2 + 1))
    close(Gram(V, M).blend(2 * Euclidean(V), 0.5).matrix(), M / 2 + torch.eye(3))
    close(Euclidean(V).blend(Gram(V, M), 0.2).matrix(), 0.8 * torch.eye(3, dtype=torch.float64) + 0.2 * M)
    close(Euclidean(V).blend(Diagonal(V, s), 0.2).matrix(), torch.diag(0.8 + 0.2 * s))
    one_hot = second_moment(Sample(V.dual, OneHot(torch.tensor([0, 1, 1, 2]), torch.float64)))
    close(one_hot.blend(Diagonal(V, s), 0.5).matrix(), torch.diag(s + torch.tensor([1, 2, 1]) / 4) / 2)


# --- samples ----------------------------------------------------------------------------------------------------------


@given(draws(), st.sampled_from(["probability", "exact", "monte carlo"]))
def test_chunks_masks_and_padding_are_only_weights(draw: Draw, kind: str) -> None:
    n, k, t, d = draw.integer(2, 4), draw.integer(1, 3), draw.integer(1, 3), draw.integer(1, 3)
    X, x = Space("X", d), draw.normal(n, k, t, d)
    mask = torch.tensor([[draw.integer(0, 1) for _ in range(t)] for _ in range(n)], dtype=torch.bool)
    mask[0, 0] = True
    make = {"probability": Measure.probability, "exact": Measure.exact, "monte carlo": Measure.monte_carlo}[kind]
    each = {"probability": 1 / (int(mask.sum()) * k), "exact": 1 / n, "monte carlo": 1 / (n * k)}[kind]
    present = mask[:, None, :, None].expand(n, k, t, 1)
    rows = (x * present).reshape(-1, d)
    expected = each * rows.mT @ rows
    garbage = torch.where(present, x, torch.full_like(x, 1e3))  # padding may hold anything
    forms = [second_moment(Sample(X, garbage, make(mask)))]
    for axis in (0, 1):
        pieces = garbage.split(draw.integer(1, 2), dim=axis)
        forms.append(second_moment(Sample(X, Chunked(lambda pieces=pieces: iter(pieces), (n, k, t), axis), make(mask))))
    for g in forms:
        close(g.matrix(), expected)
        close(g.rows().mT @ g.rows(), expected)
        close(g.flat(v := draw.vector(X.dual)).data, expected @ v.data)


def test_reduced_samples_give_the_reduce_form() -> None:
    draw = Draw.seeded(0)
    x, s = draw.normal(4, 1, 5, 3), draw.normal(4, 2, 5, 2)
    inputs, cotangents = Sample(V, x), Sample.of_cotangents(W, s)
    close(second_moment(inputs.reduced()).matrix(), torch.einsum("nki,nkj->ij", x.mean(2), x.mean(2)) / 4)
    close(second_moment(cotangents.reduced()).matrix(), torch.einsum("nki,nkj->ij", s.sum(2), s.sum(2)) / 4)
    expand = second_moment(cotangents) * second_moment(inputs)
    close(
        expand.matrix(), torch.kron(torch.einsum("nkti,nktj->ij", s, s) / 4, torch.einsum("nkti,nktj->ij", x, x) / 20)
    )
    assert expand.space == W * V.dual


def test_the_moment_of_inputs_is_one_at_the_point() -> None:
    A = AffineSpace("A", 2)
    x = torch.cat([torch.randn(6, 3, 2, generator=torch.Generator().manual_seed(0)), torch.ones(6, 3, 1)], -1).double()
    g = second_moment(Sample(A.hull, x[:, None]))
    one = Vector(A.hull.dual, torch.tensor([0.0, 0, 1]).double())
    close(g.inner(one, one), torch.tensor(1.0).double())


def test_moments_are_solved_from_rows() -> None:
    """cond(rows) = 1e7 is 1e14 in the matrix, whose Cholesky factor would keep two digits."""
    draw = Draw.seeded(0)
    Q = torch.linalg.qr(draw.normal(20, 4))[0]
    rows = Q * torch.tensor([1.0, 1e-2, 1e-5, 1e-7]).double() @ torch.linalg.qr(draw.normal(4, 4))[0]
    X = Space("X", 4)
    v = draw.vector(X)
    for g in (second_moment(Sample(X.dual, rows * 20**0.5)), LowRank(X, rows), 2 * LowRank(X, rows)):
        scale = 2.0 if isinstance(g, Scaled) else 1.0
        xi = Covector(X, scale * rows.mT @ (rows @ v.data))
        assert float((rows @ (g.sharp(xi).data - v.data)).norm() / (rows @ v.data).norm()) < 1e-7


def test_families_are_taken_member_by_member() -> None:
    draw = Draw.seeded(0)
    F = Family(W, 3)
    x = draw.normal(6, 1, 2, 3, 2)
    g = second_moment(Sample(F, x))
    for i in range(3):
        close(g.dense_blocks()[i], second_moment(Sample(W, x[:, :, :, i])).matrix())
    xi = draw.covector(g.space, 4)
    whole = g.sharp(xi)
    for i in range(3):
        member = second_moment(Sample(W, x[:, :, :, i])).sharp(Covector(W.dual, xi.data[:, i]))
        close(whole.data[:, i], member.data)
    joint = second_moment(Sample(F, x), joint=True)
    close(joint.matrix(), torch.einsum("nktai,nktbj->aibj", x, x).reshape(6, 6) / 12)


# --- gradients --------------------------------------------------------------------------------------------------------


def symmetric(A: Tensor) -> Tensor:
    return A @ A.mT + torch.eye(len(A), dtype=A.dtype)


FORMS = {
    "gram": lambda A, B: Gram(W, symmetric(A)),
    "dual": lambda A, B: Gram(W.dual, symmetric(A)).dual,
    "product": lambda A, B: Gram(W, symmetric(A)) * Gram(Space("U", 2), symmetric(B)),
    "sum": lambda A, B: Gram(W, symmetric(A)) + B.square().sum() * Gram(W, symmetric(B)),
    "tikhonov": lambda A, B: (
        Gram(W, symmetric(A)) * Gram(Space("U", 2), symmetric(B)) + 0.1 * Euclidean(W * Space("U", 2))
    ),
    "degenerate tikhonov": lambda A, B: (
        LowRank(W, A[:1]) * Gram(Space("U", 2), symmetric(B)) + 0.1 * Euclidean(W * Space("U", 2))
    ),
    "low rank": lambda A, B: LowRank(W, A + 3 * torch.eye(2)),
    "damped low rank": lambda A, B: LowRank(W, A[:1]) + Gram(W, symmetric(B)),
    "damped factors": lambda A, B: damp_factors(
        Gram(W, symmetric(A)) * Gram(Space("U", 2), symmetric(B)), 0.1, Euclidean(W * Space("U", 2))
    ),
    "direct sum": lambda A, B: direct_sum(a=Gram(W, symmetric(A)), b=B.square().sum() * Gram(W, symmetric(B))),
    "pullback": lambda A, B: Pullback(LinearMap(W, Space("U", 2), A), Gram(Space("U", 2), symmetric(B))),
    "moment": lambda A, B: second_moment(Sample(W.dual, torch.cat([A, B, torch.eye(2)]))),
    "diagonal": lambda A, B: Diagonal(W, A.square().sum(0)),
}


@pytest.mark.parametrize("name", FORMS)
def test_gradients_go_through_to_the_matrices(name: str) -> None:
    draw = Draw.seeded(5)
    A, B = (draw.normal(2, 2).requires_grad_() for _ in range(2))
    make = FORMS[name]
    x = draw.normal(make(A, B).space.dim)

    def sharp(A: Tensor, B: Tensor) -> Tensor:
        g = make(A, B)
        return g.sharp(Covector(g.space, x.reshape(g.space.shape))).components

    def flat(A: Tensor, B: Tensor) -> Tensor:
        g = make(A, B)
        return g.flat(Vector(g.space, x.reshape(g.space.shape))).components

    for f in (sharp, flat, lambda A, B: make(A, B).logdet()):
        assert torch.autograd.gradcheck(f, (A, B), atol=1e-6)


def test_what_gradients_flow_through_is_not_kept() -> None:
    A = Draw.seeded(0).positive(3).requires_grad_()
    g = Gram(V, A)
    first, second = g.factorization(), g.factorization()
    assert first is not second
    torch.autograd.grad(g.logdet(), A), torch.autograd.grad(g.logdet(), A)  # a kept graph would be gone the second time
    assert (2.0 * Gram(V, A.detach())).factorization() is not None


def test_large_products_are_never_made_dense() -> None:
    S, A, draw = Space("S", 200), Space("A", 300), Draw.seeded(0)
    x, s = draw.normal(400, 300), draw.normal(400, 200)
    g = second_moment(Sample(S.dual, s)) * second_moment(Sample(A.dual, x))
    damped = g + 0.1 * Euclidean(g.space)
    for form in (g, damped, direct_sum(fc=damped)):
        xi = draw.covector(form.space)
        close(form.flat(form.sharp(xi)).data, xi.data, 1e-6)
    assert isinstance(damped, Sum) and isinstance(g, Kronecker)
    assert DirectSum({"fc": S * A}) == direct_sum(fc=damped).space
