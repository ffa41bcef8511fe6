"""Theorem 2: E_a[G(D a, D' a)] = <D, G D' A>, and the sharp of this metric is DW -> G^-1 DW A^-1."""

import torch
from exact_matrices import Draws, close
from hypothesis import given
from hypothesis import strategies as st

import riemann_ng as rng

A, S = rng.AffineSpace("A", 3), rng.AffineSpace("S", 2)
W = rng.Hom(A.hull, S.translations)


def samples(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of the hull of A, and cotangents on S that depend on them."""
    draws = Draws(seed)
    a = torch.cat([draws.normal(30, 3), torch.ones(30, 1, dtype=torch.float64)], -1)
    return a, draws.normal(30, 2) * (1 + a[:, :1] ** 2)


def kfac(a: torch.Tensor, g: torch.Tensor) -> rng.InnerProduct:
    cotangents = rng.Sample(S.translations.dual, g[:, None, None], rng.Measure.exact())
    return rng.second_moment(cotangents) * rng.second_moment(rng.Sample(A.hull, a[:, None, None]))


@given(st.integers(0, 10**6))
def test_theorem_02_metric_identity_and_sharp(seed):
    a, g = samples(seed)
    draws = Draws(seed + 1)
    D, E, X = draws.normal(2, 4), draws.normal(2, 4), draws.normal(2, 4)
    G, moment = g.mT @ g / 30, a.mT @ a / 30
    averaged = torch.stack([(D @ x) @ G @ (E @ x) for x in a]).mean()
    metric = kfac(a, g)
    assert close(metric.inner(rng.Vector(W, D), rng.Vector(W, E)), averaged)
    assert close(averaged, (D * (G @ E @ moment)).sum())
    assert close(metric.sharp(rng.Covector(W, X)).data, torch.linalg.inv(G) @ X @ torch.linalg.inv(moment))


def test_theorem_02_fails_where_inputs_and_cotangents_depend_on_each_other():
    a, g = samples(0)
    draws = Draws(1)
    D, E = draws.normal(2, 4), draws.normal(2, 4)
    fisher = torch.stack([(D @ x) @ torch.outer(c, c) @ (E @ x) for x, c in zip(a, g, strict=True)]).mean()
    value = kfac(a, g).inner(rng.Vector(W, D), rng.Vector(W, E))
    product = torch.stack([(D @ x) @ torch.outer(c, c) @ (E @ x) for x in a for c in g]).mean()
    assert close(value, product)
    assert not close(value, fisher, 0.05)
