"""Theorem 4: transported damping keeps invariance, a fixed inner product leaves exactly its isometries."""

import torch
from exact_matrices import Draws, close
from hypothesis import given
from hypothesis import strategies as st

import riemann_ng as rng

V = rng.Space("V", 4)
seeds = st.integers(0, 10**6)


def step(g: torch.Tensor, h: torch.Tensor, xi: torch.Tensor) -> torch.Tensor:
    return (rng.Gram(V, g) + 0.3 * rng.Gram(V, h, natural=True)).sharp(rng.Covector(V, xi)).data


def move(frame: torch.Tensor, form: torch.Tensor) -> torch.Tensor:
    inverse = torch.linalg.inv(frame)
    moved = inverse.mT @ form @ inverse
    return (moved + moved.mT) / 2


def keeps(frame: torch.Tensor, h: torch.Tensor, h_moved: torch.Tensor) -> bool:
    draws = Draws(99)
    g, xi = draws.positive(4), draws.normal(4)
    return close(step(move(frame, g), h_moved, torch.linalg.inv(frame).mT @ xi), frame @ step(g, h, xi), 1e-7)


def isometry(h: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """An orthogonal map, seen in an orthonormal frame of h."""
    root = torch.linalg.cholesky(h).mT
    return torch.linalg.inv(root) @ turn @ root


@given(seeds)
def test_theorem_04_transported_damping_keeps_every_frame(seed):
    draws = Draws(seed)
    frame, h = draws.invertible(4), draws.positive(4)
    assert keeps(frame, h, move(frame, h))


@given(seeds)
def test_theorem_04_fixed_damping_keeps_its_isometries(seed):
    draws = Draws(seed)
    h = draws.positive(4)
    frame = isometry(h, draws.orthogonal(4))
    assert close(frame.mT @ h @ frame, h)
    assert keeps(frame, h, h)


@given(seeds)
def test_theorem_04_fixed_damping_loses_everything_else(seed):
    draws = Draws(seed)
    frame, h = draws.invertible(4), draws.positive(4)
    assert keeps(frame, h, h) == close(frame.mT @ h @ frame, h, 1e-6)
    assert not keeps(frame, h, h)


def test_theorem_04_the_library_claims_just_that():
    A, S = rng.AffineSpace("A", 3), rng.AffineSpace("S", 2)
    draws = Draws(0)
    cotangents = rng.Sample(S.translations.dual, draws.normal(20, 1, 1, 2), rng.Measure.exact())
    a = torch.cat([draws.normal(20, 1, 1, 3), torch.ones(20, 1, 1, 1, dtype=torch.float64)], -1)
    g = rng.second_moment(cotangents) * rng.second_moment(rng.Sample(A.hull, a))
    fixed = (g + 0.1 * rng.Euclidean(g.space)).symmetry
    assert g.symmetry.keeps("A", "affine") and g.symmetry.keeps("S", "affine")
    assert fixed.keeps("A", "orthogonal") and fixed.keeps("S", "isometries")
    assert not fixed.keeps("A", "translations") and not fixed.keeps("S", "general")
