"""Solvers against dense solves in float64; what they report, what they refuse, and which symmetries they keep."""

from __future__ import annotations

import copy
import gc
import re
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import riemann_ng as rng
from riemann_ng.errors import (
    DegenerateMetric,
    DtypeMismatch,
    InvalidSetting,
    NonFinite,
    NotAnInnerProduct,
    NotClosed,
    NotConverged,
    RiemannError,
    SpaceMismatch,
)
from riemann_ng.factorizations import IdentityFactor, ScaledFactor
from riemann_ng.solvers import CG, Auto, Cholesky, Dual, Eigen, Iterative, MinresQLP, Solver, explain
from riemann_ng.solvers.base import relative_residual

DOUBLE = torch.float64
D = 8
V, W = rng.Space("V", D), rng.Space("W", D)
seeds = st.integers(0, 2**32 - 1)
ITERATIVE = [CG, MinresQLP]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def definite(seed: int, condition: float = 1e2, d: int = D) -> Tensor:
    Q = torch.linalg.qr(normal(seed, d, d))[0]
    return (Q * torch.linspace(1, condition, d, dtype=DOUBLE)) @ Q.mT


def form(seed: int, condition: float = 1e2, d: int = D, name: str = "V") -> rng.Gram:
    return rng.Gram(rng.Space(name, d), definite(seed, condition, d))


def covector(g: rng.InnerProduct, seed: int, *batch: int) -> rng.Covector:
    return rng.Covector(g.space, normal(seed, *batch, *g.space.shape))


def discrepancy(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def shortest(A: Tensor, M: Tensor, x: Tensor) -> Tensor:
    """Of all v with |ξ - A v| least for M's dual the one shortest for M, densely."""
    E = torch.linalg.inv(torch.linalg.cholesky(M)).mT
    return x @ (E @ torch.linalg.pinv(E.mT @ A @ E, rtol=1e-10, hermitian=True) @ E.mT)


TIGHT: list[Solver] = [Auto(), Cholesky(), Eigen(), CG(1e-12), MinresQLP(1e-12)]


@pytest.mark.parametrize(
    "solver", [*TIGHT, CG(1e-12, preconditioner=form(99)), MinresQLP(1e-12, preconditioner=form(99))]
)
@given(seed=seeds)
def test_a_solver_solves(solver: Solver, seed: int) -> None:
    g = form(seed)
    xi = covector(g, seed + 1, 2, 3)
    solution = solver.solve(g, xi)
    assert solution.value.lives_in == V
    assert discrepancy(solution.value.data, xi.data @ torch.linalg.inv(g.entries)) < 1e-9
    assert solution.report.converged and solution.report.residual < 1e-11
    assert discrepancy(solver.factorize(g).solve(xi.data), solution.value.data) < 1e-10
    assert discrepancy(g.sharp(xi, solver).data, solution.value.data) < 1e-10


def test_the_control_of_the_oracle() -> None:
    """A loose tolerance and a truncation are seen, by the comparison and by the report."""
    g, xi = form(0), covector(form(0), 1)
    exact = xi.data @ torch.linalg.inv(g.entries)
    for solver in (CG(0.3), CG(iterations=2), MinresQLP(0.3), MinresQLP(iterations=2)):
        solution = solver.solve(g, xi)
        assert discrepancy(solution.value.data, exact) > 1e-3
        assert solution.report.residual > 1e-3


@pytest.mark.parametrize("kind", ITERATIVE)
@given(seed=seeds)
def test_a_batch_is_solved_as_its_elements(kind: type[Iterative], seed: int) -> None:
    """Also where they need different numbers of steps: an eigenvector is done after one."""
    g, M = form(seed), form(seed + 1)
    eigenvector = torch.linalg.eigh(g.entries)[1][:, 0]
    batch = torch.stack([normal(seed + 2, D), eigenvector, 1e-9 * normal(seed + 3, D), torch.zeros(D, dtype=DOUBLE)])
    for solver in (kind(1e-10), kind(iterations=3), kind(iterations=3, preconditioner=M)):
        together = solver.solve(g, rng.Covector(V, batch)).value.data
        for x, v in zip(batch, together, strict=True):
            alone = solver.solve(g, rng.Covector(V, x)).value.data
            assert float((v - alone).abs().max()) <= 1e-11 * float(x.abs().max())


@pytest.mark.parametrize("kind", ITERATIVE)
def test_as_many_steps_as_dimensions_are_enough_and_one_product_each_is_made(kind: type[Iterative]) -> None:
    g, calls = form(0), []
    flat = rng.LinearMap.from_functions(V, V.dual, lambda x: (calls.append(x.shape), x @ g.entries)[1], lambda y: y)
    counted = rng.Pullback(rng.LinearMap.identity(V), g)
    counted.flat_components = flat._apply  # type: ignore[method-assign]
    report = kind(iterations=D).solve(counted, covector(g, 1, 5)).report
    assert report.residual < 1e-10
    assert report.iterations == D
    assert report.note == f"truncated on purpose after {D} steps"
    assert len(calls) == (D if kind is CG else 5 * D + 1)  # CG keeps the residual up, MINRES measures it


def test_cg_minimizes_over_the_krylov_space() -> None:
    """k steps give the best of all Σ_{j<k} c_j (M⁻¹g)^j M⁻¹ξ: CG in the norm of g, MINRES in the residual's."""
    g, M, k = form(0), form(1), 3
    xi, A = covector(g, 2), form(0).entries
    inverse = torch.linalg.inv(M.entries)
    K = [inverse @ xi.data]
    for _ in range(k - 1):
        K.append(inverse @ A @ K[-1])
    B = torch.stack(K, 1)
    best = B @ torch.linalg.solve(B.mT @ A @ B, B.mT @ xi.data)
    assert discrepancy(CG(iterations=k, preconditioner=M).solve(g, xi).value.data, best) < 1e-9
    AB = A @ B
    best = B @ torch.linalg.solve(AB.mT @ inverse @ AB, AB.mT @ inverse @ xi.data)
    assert discrepancy(MinresQLP(iterations=k, preconditioner=M).solve(g, xi).value.data, best) < 1e-9


@pytest.mark.parametrize("kind", ITERATIVE)
def test_the_tolerance_is_of_the_measured_residual_in_the_norm_named(kind: type[Iterative]) -> None:
    g, M = form(0, 1e4), form(1)
    xi, inverse = covector(g, 2), torch.linalg.inv(M.entries)
    for preconditioner, H in ((None, torch.eye(D, dtype=DOUBLE)), (M, inverse)):
        solution = kind(1e-3, preconditioner=preconditioner).solve(g, xi)
        r = xi.data - solution.value.data @ g.entries
        relative = float(((r @ H @ r) / (xi.data @ H @ xi.data)).sqrt())
        assert solution.report.residual == pytest.approx(relative, rel=1e-6)
        assert relative <= 1e-3
        assert solution.report.norm == ("coordinates" if preconditioner is None else f"the dual of {M!r}")


@pytest.mark.parametrize("kind", ITERATIVE)
def test_a_warm_start_is_used(kind: type[Iterative]) -> None:
    g = form(0)
    xi = covector(g, 1, 2)
    exact = g.sharp(xi)
    assert kind(1e-8, start=exact).solve(g, xi).report.iterations == 0
    near = exact + 1e-7 * rng.Vector(V, normal(2, 2, D))
    cold, warm = (kind(1e-6, start=start).solve(g, xi).report.iterations for start in (None, near))
    assert 0 < warm < cold
    one_for_all = rng.Vector(V, normal(3, D))
    assert discrepancy(kind(1e-11, start=one_for_all).solve(g, xi).value.data, exact.data) < 1e-8
    nothing = rng.Covector(V, torch.zeros(D, dtype=DOUBLE))
    assert not kind(start=one_for_all).solve(g, nothing).value.data.any()


def test_a_preconditioner_close_to_the_form_saves_steps() -> None:
    g = rng.Gram(V := rng.Space("V", 60), definite(0, 1e5, 60))
    M = rng.Gram(V, g.entries + definite(1, 2.0, 60))
    counts = [CG(1e-8, preconditioner=h).solve(g, covector(g, 2)).report.iterations for h in (None, M, g)]
    assert counts[0] > 2 * counts[1] and counts[2] <= 2


@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("solver", [Cholesky(), CG(1e-5), MinresQLP(1e-5), MinresQLP(1e-5, least_squares=True)])
@pytest.mark.parametrize("size", [1e-30, 1e-25, 1e-20, 1e20, 1e30])
def test_solutions_are_proportional_to_covectors_of_any_size(size: float, solver: Solver, preconditioned: bool) -> None:
    """Although their squares are no numbers of single precision; the residual is that of the covector too."""
    single = rng.Gram(V, definite(0, 10.0).float())
    if preconditioned and isinstance(solver, Iterative):
        solver = replace(solver, preconditioner=rng.Gram(V, definite(1, 10.0).float()))
    xi = rng.Covector(V, torch.stack([normal(1, D), size * normal(2, D)]).float())
    exact = xi.data.double() @ torch.linalg.inv(definite(0, 10.0))
    solution = solver.solve(single, xi)
    for found, expected in zip(solution.value.data.double(), exact, strict=True):
        assert discrepancy(found, expected) < 1e-3
    assert 0 < solution.report.residual < 1e-4
    if isinstance(solver, Iterative):
        start = rng.Vector(V, 1.5 * exact.float())
        assert discrepancy(replace(solver, start=start).solve(single, xi).value.data[1].double(), exact[1]) < 1e-3


def test_the_control_of_small_covectors() -> None:
    """What the residual would be without them being brought to size."""
    xi = 1e-30 * normal(1, D).float()
    wrong = relative_residual(rng.Gram(V, definite(0).float()), torch.zeros_like(xi), xi)
    assert wrong == pytest.approx(1.0) and float(torch.linalg.vecdot(xi, xi)) == 0


@pytest.mark.parametrize("kind", ITERATIVE)
def test_a_truncated_solve_may_take_more_steps_than_it_needs(kind: type[Iterative]) -> None:
    """Once the residual is rounding nothing is asked of directions that are rounding too."""
    for seed in range(20):
        g = rng.Gram(V, definite(seed, 3.0).float())
        xi = covector(g, seed, 100 if kind is CG else 2).to(torch.float32)
        found = kind(iterations=100).solve(g, xi).value.data.double()
        assert discrepancy(found, xi.data.double() @ torch.linalg.inv(definite(seed, 3.0))) < 1e-5


@pytest.mark.parametrize("kind", ITERATIVE)
def test_what_does_not_converge_raises_with_its_report(kind: type[Iterative]) -> None:
    g = form(0, 1e6)
    with pytest.raises(NotConverged, match=rf"NotConverged in {kind.__name__}\.solve: on V the residual in the norm of "
                       r"coordinates is .* after 3 iterations, which is all it may take; asked for 1\.0e-10\. Give a "
                       r"preconditioner close to the form") as caught:  # fmt: skip
        kind(1e-10, max_iterations=3).solve(g, covector(g, 1))
    assert (caught.value.report.iterations, caught.value.report.converged) == (3, False)
    with pytest.raises(NotConverged, match=r"where it no longer improves|all it may take"):
        kind(1e-15).solve(rng.Gram(V, definite(0, 1e3).float()), rng.Covector(V, normal(1, D).float()))


def test_cg_refuses_what_is_no_inner_product() -> None:
    A = definite(0)
    indefinite = rng.Gram(V, A - 40 * torch.eye(D), validate=False)
    with pytest.raises(NotAnInnerProduct, match=r"in CG\.solve: the form on V is indefinite, g\(p, p\) = -"):
        CG().solve(indefinite, covector(indefinite, 1))
    degenerate = rng.LowRank(V, normal(0, 3, D))
    with pytest.raises(DegenerateMetric, match=r"in CG\.solve: the form on V has a kernel.*Three ways out") as caught:
        CG(1e-12).solve(degenerate, covector(degenerate, 1))
    assert caught.value.space == V
    negative = rng.Gram(V, -definite(1), validate=False)
    with pytest.raises(NotAnInnerProduct, match=r"in CG\.solve, preconditioner: the form on V is indefinite"):
        CG(preconditioner=negative).solve(form(0), covector(form(0), 1))
    negative.keep(ScaledFactor(-1.0, IdentityFactor(D)))  # one that was not looked at
    with pytest.raises(
        NotAnInnerProduct, match=r"in CG\.solve: the preconditioner Gram\(V, matrix\) .* is not positive"
    ):
        CG(preconditioner=negative).solve(form(0), covector(form(0), 1))


@given(seed=seeds, rank=st.integers(1, D - 1))
def test_minres_qlp_returns_the_shortest_solution_of_a_singular_system(seed: int, rank: int) -> None:
    rows, M = normal(seed, rank, D), form(seed + 1)
    g = rng.LowRank(V, rows)
    xi = rng.Covector(V, normal(seed + 2, 2, rank) @ rows)
    A = rows.mT @ rows
    accurate = 1e-9 * float(torch.linalg.cond(rows)) ** 2
    for h, H in ((None, torch.eye(D, dtype=DOUBLE)), (M, M.entries)):
        solver = MinresQLP(1e-11, preconditioner=h)
        assert discrepancy(solver.solve(g, xi).value.data, shortest(A, H, xi.data)) < accurate
        start = rng.Vector(V, normal(seed + 3, D))
        nearest = start.data + shortest(A, H, xi.data - start.data @ A)
        assert discrepancy(replace(solver, start=start).solve(g, xi).value.data, nearest) < accurate


@given(seed=seeds, rank=st.integers(1, D - 1))
def test_an_incompatible_system_is_refused_unless_least_squares_are_asked_for(seed: int, rank: int) -> None:
    rows, M = normal(seed, rank, D), form(seed + 1)
    g, xi = rng.LowRank(V, rows), rng.Covector(V, normal(seed + 2, 2, D))
    A = rows.mT @ rows
    accurate = 1e-9 * float(torch.linalg.cond(rows)) ** 4
    for h, H in ((None, torch.eye(D, dtype=DOUBLE)), (M, M.entries)):
        solution = MinresQLP(1e-11, preconditioner=h, least_squares=True).solve(g, xi)
        assert discrepancy(solution.value.data, shortest(A, H, xi.data)) < accurate
        assert solution.report.residual > 1e-3 and "least squares: the residual's gradient" in solution.report.note
    with pytest.raises(NotConverged, match=r"in MinresQLP\.solve: on V"):
        MinresQLP(1e-8, max_iterations=50).solve(g, xi)


def test_minres_qlp_says_that_a_system_has_no_solution() -> None:
    g = rng.LowRank(V, normal(0, 3, D))
    with pytest.raises(NotConverged, match=r"the covector does not vanish there.*MinresQLP\(least_squares=True\)"):
        MinresQLP(1e-8).solve(g, covector(g, 1))


@given(seed=seeds)
def test_minres_qlp_solves_indefinite_and_shifted_systems(seed: int) -> None:
    """The shift is a multiple of the preconditioner, not of the identity."""
    g, M = form(seed), form(seed + 1, 5.0)
    xi, shift = covector(g, seed + 2), 20.0
    shifted = g.entries - shift * M.entries
    found = MinresQLP(1e-12, preconditioner=M, shift=shift, max_iterations=200).solve(g, xi).value.data
    assert discrepancy(xi.data @ torch.linalg.inv(shifted), found) < 1e-9 * float(torch.linalg.cond(shifted))
    damped = MinresQLP(1e-12, shift=-3.0).solve(g, xi).value.data
    assert discrepancy(damped, torch.linalg.solve(g.entries + 3 * torch.eye(D), xi.data)) < 1e-9


def test_minres_qlp_stops_at_the_condition_limit() -> None:
    g = rng.Gram(V, torch.diag(torch.logspace(0, -10, D, dtype=DOUBLE)))
    with pytest.raises(NotConverged, match=r"The condition number met is .*: damp the form, or raise the limit"):
        MinresQLP(1e-14, condition_limit=1e3).solve(g, covector(g, 1))
    assert MinresQLP(1e-12).solve(g, covector(g, 1)).report.converged


def test_the_dual_solver_is_woodbury() -> None:
    rows, h = normal(0, 3, D), form(1)
    g = rng.LowRank(V, rows) + 0.1 * h
    xi = covector(g, 2, 4)
    solution = Dual().solve(g, xi)
    assert discrepancy(solution.value.data, xi.data @ torch.linalg.inv(rows.mT @ rows + 0.1 * h.entries)) < 1e-11
    assert solution.report.note == "Woodbury"
    with pytest.raises(NotClosed, match=r"NotClosed in Dual: the form on V is not a low-rank form plus a definite one"):
        Dual().solve(h, xi)


def matrix_free(d: int) -> rng.Pullback:
    space = rng.Space("V", d)
    return rng.Pullback(rng.LinearMap(space, rng.Space("U", d), definite(0, 3.0, d)), rng.Euclidean(rng.Space("U", d)))


def test_auto_reads_structure_and_cost() -> None:
    low = rng.LowRank(U := rng.Space("U", 200), normal(0, 2, 200)) + rng.Euclidean(U)
    assert explain(form(0)).startswith("Cholesky() because it is dense of dimension 8: its own factorization")
    assert explain(low).startswith("Dual() because it is low rank + definite of dimension 200: dual of 2 rows")
    free = matrix_free(D)
    assert "dense matrix" in explain(free)
    solver, why = Auto(limit=4).choose(free)
    assert solver == CG(1e-6) and "too large to factorize (limit 4)" in why
    xi = covector(free, 1)
    report = Auto(limit=4, tolerance=1e-9).solve(free, xi).report
    assert report.solver.startswith("Auto(limit=4, tolerance=1e-09) chose CG(tolerance=1e-09)")
    assert report.residual < 1e-9 and report.iterations > 0
    assert discrepancy(Auto(limit=4, tolerance=1e-12).factorize(free).solve(xi.data), free.sharp(xi).data) < 1e-9
    with pytest.raises(NotClosed, match=r"dimension 8, too large for a matrix \(limit 4\)\. Use solvers\.CG"):
        Cholesky(limit=4).solve(free, xi)


def test_an_iterative_factorization_has_no_frame_and_keeps_no_form_alive() -> None:
    free = matrix_free(D)
    F = CG().factorize(free)
    with pytest.raises(
        NotClosed, match=r"NotClosed in frame: .* knows no more of it\. Factorize it: solvers\.Cholesky"
    ):
        F.frame(normal(0, D))
    with pytest.raises(NotClosed, match=r"NotClosed in frame"):
        F.coframe(normal(0, D))
    with pytest.raises(NotClosed, match=r"NotClosed in logdet"):
        _ = F.logdet
    kept, watch = F.solve_columns(normal(0, D, 2)), weakref.ref(free)
    assert kept.shape == (D, 2)
    gc.disable()
    try:
        del free, F
        assert watch() is None
    finally:
        gc.enable()


def test_reports_name_what_is_unusual_in_a_solver() -> None:
    g = form(0)
    xi = covector(g, 1)
    assert Cholesky().solve(g, xi).report.solver == "Cholesky()"
    assert CG(1e-3, preconditioner=g).solve(g, xi).report.solver == (
        "CG(tolerance=0.001, preconditioner=Gram(V, matrix) : V* ← V)"
    )
    assert eval(MinresQLP(1e-3, shift=0.5).brief) == MinresQLP(1e-3, shift=0.5)


@pytest.mark.parametrize("solver", TIGHT)
def test_a_form_is_prepared_once_for_many_covectors(solver: Solver) -> None:
    U = rng.Hom(V, W)
    g = rng.Gram(W, definite(0)) * rng.Gram(V.dual, definite(1))
    assert g.space == U
    prepared = solver.prepare(g)
    for xi in (covector(g, 2), covector(g, 3, 2, 3)):
        found = prepared.sharp(xi)
        assert found.lives_in == U and found.data.shape == xi.data.shape
        assert discrepancy(found.data, solver.solve(g, xi).value.data) < 1e-9
    name = type(solver).__name__
    with pytest.raises(SpaceMismatch, match=rf"SpaceMismatch in {name}\(.*\), prepared: expected a covector on "):
        prepared.sharp(covector(form(0), 1))
    if not isinstance(solver, Iterative):
        with pytest.raises(DegenerateMetric, match=rf"in {name}\.prepare: the form on V has rank 3 of 8"):
            solver.prepare(rng.LowRank(V, normal(0, 3, D)))


def test_a_direct_solve_that_lost_its_digits_does_not_call_itself_converged() -> None:
    exact, wrong = form(0), form(0)
    wrong.keep(ScaledFactor(1.001, exact.factorization()))
    wrong.direct_factorization = lambda method: wrong.factorization()  # type: ignore[method-assign]
    xi = covector(exact, 1)
    assert Cholesky().solve(exact, xi).report.converged
    assert not Cholesky().solve(wrong, xi).report.converged


def test_the_limit_of_auto_bounds_own_factorizations_of_large_spaces() -> None:
    """A product of factors is small whatever the space, unless a factor is large."""
    U, L = rng.Space("U", 30), rng.Space("L", 200)
    both = [rng.Gram(S, definite(i, d=S.dim), name=f"{i}") for i, S in enumerate((L, U))]
    damped = both[0] * both[1] + rng.Euclidean(L * U)
    assert Auto(limit=1000).choose(damped)[0] == Cholesky(limit=1000)
    assert Auto(limit=100).choose(damped)[0] == CG(1e-6)


def test_a_batch_of_none_is_solved_modulo_a_kernel() -> None:
    g = rng.LowRank(V, normal(0, 3, D))
    assert g.sharp_modulo_kernel(rng.Covector(V, torch.zeros(0, D, dtype=DOUBLE)), form(1)).data.shape == (0, D)


def test_what_changes_in_place_is_factorized_again() -> None:
    M, N, x = definite(0), definite(1), normal(2, 5, D)
    weights = torch.ones(5, dtype=DOUBLE)
    sample = rng.Sample(V.dual, x, rng.Measure.weighted(weights[:, None, None]))
    damped = rng.second_moment(sample) + rng.Gram(V, N)
    forms: list[tuple[rng.InnerProduct, Tensor]] = [
        (rng.Gram(V, M), M),
        (rng.Gram(V, M, validate=False), M),
        (rng.Gram(V, M) * rng.Gram(W, N), N),
        (0.5 * rng.Gram(V, M) + rng.Euclidean(V), M),
        (rng.Gram(V, M).dual, M),
        (damped, x),
        (damped, weights),
        (rng.LowRank(V, N), N),
    ]
    for g, changed in forms:
        xi = covector(g, 3)
        first = g.sharp(xi)
        assert g.factorization() is g.factorization()  # the control: it is kept where nothing changed
        changed.mul_(4)
        assert discrepancy(g.flat(g.sharp(xi)).data, xi.data) < 1e-9
        assert discrepancy(g.sharp(xi).data, first.data) > 1e-2
        changed.div_(4)
        assert discrepancy(g.sharp(xi).data, first.data) < 1e-9


def test_a_copy_of_a_form_keeps_nothing() -> None:
    g = form(0)
    twin, xi = copy.deepcopy(g), covector(form(0), 1)
    twin.entries.mul_(4)
    assert discrepancy(twin.sharp(xi).data, g.sharp(xi).data / 4) < 1e-12


def test_what_inference_made_takes_part_in_a_later_backward() -> None:
    M, rows = definite(0), normal(1, 20, D)
    weight = torch.ones(D, dtype=DOUBLE, requires_grad=True)
    xi = covector(form(0), 2)
    with torch.inference_mode():
        g = rng.Gram(V, M)
        h = rng.second_moment(rng.Sample(V.dual, rows))
        inside = [g.sharp(xi).data, h.sharp(xi).data, h.flat(g.sharp(xi)).data]
        moved = rng.Gram(V, M.clone())  # of an inference tensor, whose changes nobody counts
        moved.sharp(xi)
        moved.entries.mul_(4)
        assert discrepancy(moved.sharp(xi).data, inside[0] / 4) < 1e-12
    outside = rng.Covector(V, weight * xi.data)
    after = [g.sharp(outside).data, h.sharp(outside).data, h.flat(g.sharp(outside)).data]
    for found, expected in zip(after, inside, strict=True):
        assert discrepancy(found.detach(), expected) < 1e-12
    assert bool(torch.autograd.grad(torch.stack(after).sum(), weight)[0].isfinite().all())


def test_the_recipe_is_in_the_repr_and_is_a_value() -> None:
    solver = CG(1e-3, preconditioner=form(0), iterations=5)
    assert repr(solver) == (
        "CG(tolerance=0.001, max_iterations=1000, preconditioner=Gram(V, matrix) : V* ← V, start=None, iterations=5)"
    )
    assert "shift=0.5, condition_limit=100000000000000.0, least_squares=True" in repr(
        MinresQLP(shift=0.5, least_squares=True)
    )
    assert CG(1e-3) == CG(1e-3) != CG(1e-4)
    assert {Cholesky(), Cholesky()} == {Cholesky()}
    report = CG(iterations=2).solve(form(0), covector(form(0), 1)).report
    assert re.fullmatch(
        r"CG\(.*\): residual \d\.\de-\d\d in the norm of coordinates, 2 iterations, truncated on purpose after 2 steps",
        str(report),
    )


def bad_inputs() -> dict[str, tuple[type[RiemannError], str, object]]:
    g, xi = form(0), covector(form(0), 1)
    other, single = form(0, name="W"), rng.Gram(V, definite(0).float())
    nan = rng.Covector(V, torch.full((D,), float("nan"), dtype=DOUBLE))
    v = rng.Vector(V, normal(0, D))
    broken = rng.Gram(V, torch.full((D, D), float("nan"), dtype=DOUBLE), validate=False)
    return {
        "a vector": (SpaceMismatch, r"CG\.solve: expected a covector on V, got a vector of", lambda: CG().solve(g, v)),
        "a tensor": (SpaceMismatch, r"expected a covector on V, got float64\[8\]", lambda: CG().solve(g, xi.data)),  # type: ignore[arg-type]
        "another space": (SpaceMismatch, r"expected a covector on W, got a covector", lambda: CG().solve(other, xi)),
        "NaN": (NonFinite, r"NonFinite in Cholesky\.solve: a covector on V", lambda: Cholesky().solve(g, nan)),
        "dtype": (DtypeMismatch, r"in CG\.solve: .*float64 .* in torch\.float32", lambda: CG().solve(single, xi)),
        "the preconditioner's dtype": (
            DtypeMismatch, r"CG\.solve, preconditioner", lambda: CG(preconditioner=single).solve(g, xi)),
        "the preconditioner's space": (
            SpaceMismatch, r"preconditioner lives on W, the form on V", lambda: CG(preconditioner=other).solve(g, xi)),
        "a degenerate preconditioner": (
            DegenerateMetric, r"CG\.solve, preconditioner: the form on V has rank 2 of 8",
            lambda: CG(preconditioner=rng.LowRank(V, normal(0, 2, D))).solve(g, xi)),
        "start": (SpaceMismatch, r"start is a vector of V, .*; got a covector", lambda: CG(start=xi).solve(g, xi)),  # type: ignore[arg-type]
        "start's batch": (
            SpaceMismatch, r"one for each covector of the batch \[\]",
            lambda: CG(start=rng.Vector(V, normal(0, 2, D))).solve(g, xi)),
        "a broken form": (NonFinite, r"CG\.solve: products with the form on V", lambda: CG().solve(broken, xi)),
        "a broken form, factorized": (
            NonFinite, r"Cholesky\.solve: the form on V holds NaN", lambda: Cholesky().solve(broken, xi)),
        "tolerance": (InvalidSetting, r"in CG: tolerance is relative, between 0 and 1, got 0", lambda: CG(0)),
        "iterations": (InvalidSetting, r"iterations is a positive number of steps, got 0", lambda: CG(iterations=0)),
        "max_iterations": (InvalidSetting, r"max_iterations is .* got 2\.5", lambda: CG(max_iterations=2.5)),  # type: ignore[arg-type]
        "a class": (InvalidSetting, r"in sharp: expected a solver, .*, got the class CG", lambda: g.sharp(xi, CG)),  # type: ignore[arg-type]
        "a name": (InvalidSetting, r"in sharp: expected a solver, .*, got str 'cg'", lambda: g.sharp(xi, "cg")),  # type: ignore[arg-type]
        "the preconditioner's kind": (
            InvalidSetting, r"in CG: a preconditioner is an inner product, .*; got float64\[8, 8\]",
            lambda: CG(preconditioner=g.entries)),  # type: ignore[arg-type]
        "too narrow": (
            DtypeMismatch, r"in sharp: the form on V is in torch\.bfloat16, too narrow to factorize\. Make it in flo",
            lambda: rng.Gram(V, definite(0).bfloat16(), validate=False).sharp(xi.to(torch.bfloat16))),
        "too narrow rows": (
            DtypeMismatch, r"in sharp: the form on V is in torch\.float16, too narrow to factorize",
            lambda: rng.LowRank(V, definite(0).half()).sharp(xi.to(torch.float16))),
        "too narrow, at once": (
            DtypeMismatch, r"in Gram: the form on V is in torch\.float16", lambda: rng.Gram(V, definite(0).half())),
        "condition_limit": (InvalidSetting, r"condition_limit is above 1", lambda: MinresQLP(condition_limit=1.0)),
        "shift": (InvalidSetting, r"shift is a finite number", lambda: MinresQLP(shift=float("inf"))),
    }  # fmt: skip


@pytest.mark.parametrize("case", list(bad_inputs()))
def test_bad_input_is_named(case: str) -> None:
    kind, text, call = bad_inputs()[case]
    with pytest.raises(kind, match=text):
        call()  # type: ignore[operator]


def test_empty_batches_and_zero_covectors_have_zero_solutions() -> None:
    g = form(0)
    for solver in (CG(), MinresQLP(), MinresQLP(least_squares=True), Cholesky()):
        assert solver.solve(g, rng.Covector(V, torch.zeros(0, D, dtype=DOUBLE))).value.data.shape == (0, D)
        solution = solver.solve(g, rng.Covector(V, torch.zeros(2, D, dtype=DOUBLE)))
        assert not solution.value.data.any() and solution.report.residual == 0


# Symmetry: a claim of `symmetry_of` holds in a twin, where everything but the constants has moved along


A = rng.AffineSpace("A", 3)
GROUPS = ("translations", "general", "orthogonal", "monomial", "scaling", "uniform scale")


def frame(group: str, seed: int) -> Tensor:
    """An element of the group, on the hull of A."""
    Q, scales = torch.linalg.qr(normal(seed, 3, 3))[0], normal(seed + 1, 3).exp() * torch.tensor([0.3, 1.0, 3.0])
    linear = {
        "translations": torch.eye(3, dtype=DOUBLE),
        "general": Q * scales,
        "orthogonal": Q,
        "monomial": torch.diag(scales)[:, [1, 2, 0]],
        "scaling": torch.diag(scales),
        "uniform scale": 2.5 * torch.eye(3, dtype=DOUBLE),
    }[group]
    whole = torch.eye(4, dtype=DOUBLE)
    whole[:3, :3] = linear
    if group == "translations":
        whole[:3, 3] = torch.tensor([0.7, -1.1, 0.4])
    return whole


def moments(seed: int, a: Tensor) -> tuple[rng.InnerProduct, rng.InnerProduct, rng.Covector]:
    """Two natural forms on the features of A and a covector on them, all seen in the frame a."""
    points = torch.cat([normal(seed, 20, 3), torch.ones(20, 1, dtype=DOUBLE)], 1)
    two = [rng.second_moment(rng.Sample(A.hull, part @ a.mT)) for part in points.split(10)]
    return two[0], two[1], rng.Covector(A.hull.dual, normal(seed + 1, 4) @ a.mT)


@pytest.mark.parametrize("kind", ITERATIVE)
@pytest.mark.parametrize("preconditioned", ["not at all", "naturally", "by coordinates"])
@pytest.mark.parametrize("group", GROUPS)
def test_a_truncated_solve_keeps_exactly_what_it_claims(kind: type[Iterative], preconditioned: str, group: str) -> None:
    def step(a: Tensor) -> tuple[Tensor, rng.Symmetry]:
        g, M, xi = moments(3, a)
        preconditioner = {"not at all": None, "naturally": M, "by coordinates": rng.Euclidean(g.space)}[preconditioned]
        solver = kind(iterations=2, preconditioner=preconditioner)
        return solver.solve(g, xi).value.data, solver.symmetry_of(g)

    a = frame(group, 11)
    here, claim = step(torch.eye(4, dtype=DOUBLE))
    there, _ = step(a)
    kept = discrepancy(there @ a, here) < 1e-9  # vectors on the dual of the hull move by the inverse transpose
    assert claim.keeps("A", group) == kept


@pytest.mark.parametrize("least_squares", [False, True])
@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("group", GROUPS)
def test_what_measures_shows_in_a_shift_and_in_least_squares(
    group: str, preconditioned: bool, least_squares: bool
) -> None:
    def step(a: Tensor) -> tuple[Tensor, rng.Symmetry]:
        g, M, xi = moments(3, a)
        g = rng.second_moment(rng.Sample(A.hull, g.sample.data.flatten(0, 2)[:2])) if least_squares else g  # type: ignore[attr-defined]
        solver = MinresQLP(1e-11, preconditioner=M if preconditioned else None, least_squares=True)
        solver = solver if least_squares else replace(solver, shift=-0.3, least_squares=False)
        return solver.solve(g, xi).value.data, solver.symmetry_of(g)

    a = frame(group, 11)
    (here, claim), (there, _) = step(torch.eye(4, dtype=DOUBLE)), step(a)
    assert claim.keeps("A", group) == (discrepancy(there @ a, here) < 1e-8)


@pytest.mark.parametrize("group", GROUPS)
def test_a_converged_solve_keeps_what_the_form_keeps(group: str) -> None:
    solver, a = CG(1e-12), frame(group, 11)
    g, _, xi = moments(3, torch.eye(4, dtype=DOUBLE))
    assert solver.symmetry_of(g) == g.symmetry == Cholesky().symmetry_of(g) == Auto().symmetry_of(g)
    g_there, _, xi_there = moments(3, a)
    assert discrepancy(solver.solve(g_there, xi_there).value.data @ a, solver.solve(g, xi).value.data) < 1e-8


def test_the_scalars_of_a_truncated_solve_mix_the_summands() -> None:
    """Two forms of different scale, side by side: one scaled alone is invisible to a factorization, not to CG."""

    def step(c: float) -> tuple[Tensor, rng.Symmetry, rng.Symmetry]:
        both = rng.direct_sum(v=rng.Gram(V, definite(0) / c**2, natural=True), w=rng.Gram(W, definite(1), natural=True))
        xi = rng.Covector(both.space, torch.cat([normal(2, D) / c, normal(3, D)]))
        solver = CG(iterations=3)
        return solver.solve(both, xi).value.data, solver.symmetry_of(both), both.symmetry

    (here, claim, whole), (there, _, _) = step(1.0), step(10.0)
    assert not claim.keeps("V", "uniform scale") and whole.keeps("V", "uniform scale")
    assert discrepancy(torch.cat([there[:D] / 10, there[D:]]), here) > 1e-2


def test_products_families_and_one_point_name_coordinates_too() -> None:
    S, F = rng.Space("S", 2), rng.Family(rng.Space("F", 2), 3)
    g = rng.Gram(rng.Hom(A.hull, S), definite(0, d=8), natural=True)
    claim = CG(iterations=1).symmetry_of(g)
    assert claim.keeps("S", "isometries") and not claim.keeps("S", "general")
    assert claim.keeps("A", "orthogonal") and not claim.keeps("A", "translations")
    members = rng.Gram(F, torch.eye(2, dtype=DOUBLE).expand(3, 2, 2), natural=True)
    assert not CG(iterations=1).symmetry_of(members).keeps("F", "scaling")
    line = rng.Gram(rng.OnePoint.hull, torch.eye(1, dtype=DOUBLE), natural=True)
    assert CG(iterations=1).symmetry_of(line) == line.symmetry
