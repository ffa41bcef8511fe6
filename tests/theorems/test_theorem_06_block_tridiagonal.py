"""Theorem 6: the three sweeps of block-tridiagonal K-FAC invert the Gaussian chain, and keep every affine frame."""

from itertools import pairwise

import pytest
import torch
from exact_matrices import Draws, Matrix, close, kronecker, row_major, stacked
from networks_and_twins import seen_by_hand, step_is_off, tanh_network

import riemann_ng as rng

ACTIVATIONS, PREACTIVATIONS = (2, 2, 1), (1, 2, 2)
L = len(ACTIVATIONS) - 1


def chain(draws: Draws) -> tuple[list[Matrix], list[Matrix], list[Matrix], list[Matrix]]:
    """Factors and cross factors of neighbours, from samples of all layers together."""
    features = [draws.rational(n, 6) for n in ACTIVATIONS]
    cotangents = [draws.rational(n, 6) for n in PREACTIVATIONS]
    moments = lambda x: [u * u.T for u in x]  # noqa: E731
    crosses = lambda x: [u * v.T for u, v in pairwise(x)]  # noqa: E731
    return moments(features), crosses(features), moments(cotangents), crosses(cotangents)


def step(A: list[Matrix], Ax: list[Matrix], G: list[Matrix], Gx: list[Matrix], X: list[Matrix]) -> list[Matrix]:
    psi_A, psi_G = [Ax[i] * A[i + 1].inv() for i in range(L)], [Gx[i] * G[i + 1].inv() for i in range(L)]
    V = [X[i] - psi_G[i] * X[i + 1] * psi_A[i].T if i < L else X[i] for i in range(L + 1)]
    for i in range(L + 1):
        flat = kronecker(G[i], A[i])
        if i < L:
            flat -= kronecker(psi_G[i] * G[i + 1] * psi_G[i].T, psi_A[i] * A[i + 1] * psi_A[i].T)
        V[i] = Matrix(*V[i].shape, list(flat.LUsolve(row_major(V[i]))))
    return [V[i] - psi_G[i - 1].T * V[i - 1] * psi_A[i - 1] if i else V[0] for i in range(L + 1)]


def covariance(A: list[Matrix], Ax: list[Matrix], G: list[Matrix], Gx: list[Matrix]) -> Matrix:
    """Of the Gaussian Markov chain with these moments of neighbours: farther apart, regressions multiply."""
    rows = []
    for i in range(L + 1):
        row = []
        for j in range(L + 1):
            low, high = min(i, j), max(i, j)
            a, g = A[high], G[high]
            for k in reversed(range(low, high)):
                a, g = Ax[k] * A[k + 1].inv() * a, Gx[k] * G[k + 1].inv() * g
            block = kronecker(g, a)
            row.append(block if i <= j else block.T)
        rows.append(Matrix.hstack(*row))
    return Matrix.vstack(*rows)


@pytest.mark.parametrize("seed", range(3))
def test_theorem_06_the_sweeps_solve_the_chain_exactly(seed):
    draws = Draws(seed)
    factors = chain(draws)
    X = [draws.rational(s, a) for s, a in zip(PREACTIVATIONS, ACTIVATIONS, strict=True)]
    assert covariance(*factors) * stacked(step(*factors, X)) == stacked(X)


def moved_and_not(seed: int, damping: int) -> tuple[list[Matrix], list[Matrix]]:
    """The step in moved coordinates, and the moved step; damping by the identity, which does not move."""
    draws = Draws(seed)
    A, Ax, G, Gx = chain(draws)
    X = [draws.rational(s, a) for s, a in zip(PREACTIVATIONS, ACTIVATIONS, strict=True)]
    alpha, phi = (
        [draws.rational_invertible(n) for n in ACTIVATIONS],
        [draws.rational_invertible(n) for n in PREACTIVATIONS],
    )
    back = [p.inv() for p in phi]
    damped = lambda forms: [f + damping * Matrix.eye(f.rows) for f in forms]  # noqa: E731
    own = step(damped(A), Ax, damped(G), Gx, X)
    twin = step(
        damped([a * f * a.T for a, f in zip(alpha, A, strict=True)]),
        [alpha[i] * Ax[i] * alpha[i + 1].T for i in range(L)],
        damped([b.T * f * b for b, f in zip(back, G, strict=True)]),
        [back[i].T * Gx[i] * back[i + 1] for i in range(L)],
        [b.T * x * a.T for b, x, a in zip(back, X, alpha, strict=True)],
    )
    return twin, [p * v * a.inv() for p, v, a in zip(phi, own, alpha, strict=True)]


@pytest.mark.parametrize("seed", range(3))
def test_theorem_06_the_step_moves_with_the_frames(seed):
    twin, moved = moved_and_not(seed, damping=0)
    assert twin == moved


def test_theorem_06_fails_for_damping_that_stays():
    twin, moved = moved_and_not(0, damping=1)
    assert twin != moved


@pytest.mark.parametrize("seed", range(3))
def test_theorem_06_of_the_library(seed):
    """`BlockTridiagonalKFAC` inverts the chain of the moments that autograd gives, and its steps are the sweeps."""
    draws = Draws(seed)
    network, x, _ = tanh_network(draws, (2, 2, 1, 2))
    features, jacobians = seen_by_hand(network, x)
    between = lambda samples, pattern: [  # noqa: E731
        [torch.einsum(pattern, u, v) / len(x) for u, v in pairs]
        for pairs in (zip(samples, samples, strict=True), pairwise(samples))
    ]
    moments = (*between(features, "ni,nj->ij"), *between(jacobians, "noi,noj->ij"))
    A, Ax, G, Gx = ([Matrix(M.tolist()) for M in each] for each in moments)
    g = rng.BlockTridiagonalKFAC().at(network.observe(x))
    xi = rng.Covector(network.tangent_space, draws.normal(g.space.dim))
    step_of_library = g.sharp(xi)
    C = torch.tensor(covariance(A, Ax, G, Gx).tolist(), dtype=torch.float64)
    assert close(C @ step_of_library.components, xi.components, 1e-9)
    swept = step(A, Ax, G, Gx, [Matrix(xi.component(path).data.tolist()) for path in network.blocks])
    assert close(torch.tensor(stacked(swept).tolist(), dtype=torch.float64)[:, 0], step_of_library.components, 1e-9)
    assert not close(rng.KFAC().at(network.observe(x)).sharp(xi).components, step_of_library.components, 0.01)


def test_theorem_06_of_the_library_moves_with_every_frame_but_for_damping_that_stays():
    network, x, _ = tanh_network(Draws(0), (2, 2, 1, 2))
    metric = rng.BlockTridiagonalKFAC()
    assert step_is_off(network, x, metric, seed=1) < 1e-9
    assert step_is_off(network, x, metric.damp_factors(0.1), seed=1) > 1e-2
