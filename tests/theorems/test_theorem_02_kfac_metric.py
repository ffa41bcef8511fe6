"""Theorem 2: E_a[G(D a, D' a)] = <D, G D' A>, and the sharp of this metric is DW -> G^-1 DW A^-1."""

import torch
from exact_matrices import Draws, close
from hypothesis import given
from hypothesis import strategies as st
from networks_and_twins import seen_by_hand, step_is_off, tanh_network

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


@given(st.integers(0, 10**6))
def test_theorem_02_of_the_library(seed):
    """`KFAC` on every layer of a network: the metric of its definition, by samples from autograd alone."""
    draws = Draws(seed)
    network, x, y = tanh_network(draws, (3, 4, 2))
    metric, df = rng.KFAC().at(network.observe(x)), network.differential(x, y)
    step = rng.natural_gradient(network, rng.KFAC(), x, y)
    for path, a, J in zip(network.blocks, *seen_by_hand(network, x), strict=True):
        g, space = metric.restrict(path), network.tangent_space[path]
        assert isinstance(g, rng.inner_products.Kronecker)
        G, moment = torch.einsum("noi,noj->ij", J, J) / len(x), a.mT @ a / len(x)
        D, E = draws.normal(*space.shape), draws.normal(*space.shape)
        averaged = torch.stack([(D @ point) @ G @ (E @ point) for point in a]).mean()
        assert close(g.inner(rng.Vector(space, D), rng.Vector(space, E)), averaged)
        solved = torch.linalg.inv(G) @ df.component(path).data @ torch.linalg.inv(moment)
        assert close(step.component(path).data, solved, 1e-6)


def test_theorem_02_of_the_library_moves_with_every_frame():
    network, x, _ = tanh_network(Draws(0), (3, 4, 2))
    assert step_is_off(network, x, rng.KFAC(), seed=1) < 1e-9
    assert step_is_off(network, x, rng.KFAC(bias="separate"), seed=1) > 1e-2  # names the origin of the activations
