"""Theorem 12: the spectral norm between inner-product spaces, its duality map, its invariance."""

import torch
from exact_matrices import Draws, Matrix, Rational, close
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import riemann_ng as rng

A, S = rng.AffineSpace("A", 3), rng.AffineSpace("S", 3)
W = rng.Hom(A.hull, S.translations)
seeds = st.integers(0, 10**6)


def between(G: Tensor, moment: Tensor) -> rng.InnerProduct:
    return rng.Gram(S.translations, G) * rng.Gram(A.hull.dual, moment)


def symmetric(form: Tensor) -> Tensor:
    return (form + form.mT) / 2


def moved_and_not(norm_of, seed: int, rank: int) -> tuple[Tensor, Tensor]:
    """The duality map in moved coordinates, and the moved one, of a covector of this rank."""
    draws = Draws(seed)
    G, moment, X = draws.positive(3), draws.positive(4), draws.normal(3, rank) @ draws.normal(rank, 4)
    alpha, phi = draws.affine(3), draws.invertible(3)
    back = torch.linalg.inv(phi)
    own = norm_of(between(G, moment)).sharp(rng.Covector(W, X)).data
    twin = norm_of(between(symmetric(back.mT @ G @ back), symmetric(alpha @ moment @ alpha.mT)))
    return twin.sharp(rng.Covector(W, back.mT @ X @ alpha.mT)).data, phi @ own @ torch.linalg.inv(alpha)


@given(seeds, st.integers(1, 3))
def test_theorem_12_duality_map_moves_with_every_frame(seed, rank):
    assert close(*moved_and_not(lambda g: rng.norms.Spectral(between=g), seed, rank), 1e-6)


def test_theorem_12_fails_in_the_coordinates():
    assert not close(*moved_and_not(lambda g: rng.norms.Spectral(), 0, 2), 0.1)


@given(seeds)
def test_theorem_12_nothing_else_in_the_ball_is_better(seed):
    draws = Draws(seed)
    norm = rng.norms.Spectral(between=between(draws.positive(3), draws.positive(4)))
    X = rng.Covector(W, draws.normal(3, 4))
    best = norm.sharp(X)
    other = rng.Vector(W, draws.normal(3, 4))
    assert close(norm.norm(best), torch.tensor(1.0, dtype=torch.float64))
    assert X(other) <= X(best) * norm.norm(other) * (1 + 1e-9)


def test_theorem_12_polar_factor_exactly():
    """X = P y y^T with P rational and orthogonal: every other rational orthogonal matrix has a smaller value, and a
    P that shortens what y spans is no maximizer."""
    turn = lambda m, n, k: Matrix([[Rational(m, k), Rational(-n, k)], [Rational(n, k), Rational(m, k)]])  # noqa: E731
    turns = [turn(m, n, k) for m, n, k in ((1, 0, 1), (3, 4, 5), (4, -3, 5), (5, 12, 13), (-8, 15, 17))]
    value = lambda X, D: (X.T * D).trace()  # noqa: E731
    for seed, P in enumerate(turns):
        y = Draws(seed).rational(2, 3)
        X = P * y * y.T
        assert value(X, P) == (y * y.T).trace()
        assert all(value(X, other) <= value(X, P) for other in turns)
        assert value(X, P / 2) < value(X, P)
