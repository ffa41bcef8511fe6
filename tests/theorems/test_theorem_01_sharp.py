"""Theorem 1: the sharp is natural under isomorphisms, covectors move by the inverse transpose."""

import torch
from exact_matrices import Draws, close
from hypothesis import given
from hypothesis import strategies as st

import riemann_ng as rng

seeds = st.integers(0, 10**6)


def moved(frame: torch.Tensor, g: torch.Tensor, xi: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    inverse = torch.linalg.inv(frame)
    return inverse.mT @ g @ inverse, inverse.mT @ xi


@given(seeds, st.integers(1, 6))
def test_theorem_01_sharp_commutes_with_every_isomorphism(seed, n):
    draws, V = Draws(seed), rng.Space("V", n)
    g, xi, frame = draws.positive(n), draws.normal(n), draws.invertible(n)
    g_moved, xi_moved = moved(frame, g, xi)
    step = rng.Gram(V, g).sharp(rng.Covector(V, xi))
    step_moved = rng.Gram(V, g_moved).sharp(rng.Covector(V, xi_moved))
    assert close(step_moved.data, frame @ step.data)
    v = draws.normal(n)
    assert close(xi_moved @ (frame @ v), xi @ v)


@given(seeds)
def test_theorem_01_moment_of_a_moved_sample_is_the_moved_moment(seed):
    draws, V = Draws(seed), rng.Space("V", 4)
    covectors, frame, xi = draws.normal(20, 1, 1, 4), draws.invertible(4), draws.normal(4)
    inverse = torch.linalg.inv(frame)
    g = rng.second_moment(rng.Sample(V.dual, covectors))
    g_moved = rng.second_moment(rng.Sample(V.dual, covectors @ inverse))
    step = g.sharp(rng.Covector(V, xi))
    assert close(g_moved.sharp(rng.Covector(V, inverse.mT @ xi)).data, frame @ step.data)


def test_theorem_01_fails_for_the_components_of_the_covector():
    draws, V = Draws(0), rng.Space("V", 4)
    xi, frame = draws.normal(4), draws.invertible(4)
    euclidean = rng.Euclidean(V)
    step = euclidean.sharp(rng.Covector(V, xi)).data
    xi_moved = torch.linalg.inv(frame).mT @ xi
    assert not close(euclidean.sharp(rng.Covector(V, xi_moved)).data, frame @ step, 0.1)
    turned = draws.orthogonal(4)
    assert close(euclidean.sharp(rng.Covector(V, turned @ xi)).data, turned @ step)
