"""Theorem 10: the natural gradient projected on an annihilator protects, is invariant, and is optimal."""

import torch
from exact_matrices import Draws, close
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import riemann_ng as rng

seeds = st.integers(0, 10**6)
V = rng.Space("V", 5)


def projected(g: Tensor, C: Tensor, xi: Tensor) -> Tensor:
    """Minus the sharp of what is left of xi after the right combination of the protected covectors."""
    sharp = lambda covectors: rng.Gram(V, g).sharp(rng.Covector(V, covectors)).data  # noqa: E731
    multipliers = torch.linalg.solve(C @ sharp(C).mT, C @ sharp(xi))
    return -sharp(xi - multipliers @ C)


def case(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    draws = Draws(seed)
    return draws.positive(5), draws.normal(2, 5), draws.normal(5)


@given(seeds)
def test_theorem_10_protects_descends_and_is_optimal(seed):
    g, C, xi = case(seed)
    v = projected(g, C, xi)
    model = lambda u: xi @ u + u @ g @ u / 2  # noqa: E731
    assert (C @ v).abs().max() < 1e-10
    assert close(xi @ v, -v @ g @ v)
    other = torch.linalg.svd(C)[2][2:].mT @ Draws(seed + 1).normal(3)
    assert close(model(other), model(v) + (other - v) @ g @ (other - v) / 2)


@given(seeds)
def test_theorem_10_moves_with_every_frame(seed):
    g, C, xi = case(seed)
    frame = Draws(seed + 1).invertible(5)
    inverse = torch.linalg.inv(frame)
    moved = projected(inverse.mT @ g @ inverse, C @ inverse, inverse.mT @ xi)
    assert close(moved, frame @ projected(g, C, xi))


def test_theorem_10_is_what_the_optimizer_does():
    """A step of the library, in a network: the formula on its own covectors and its own damped metric."""
    draws = Draws(3)
    x, y = draws.normal(20, 3), draws.normal(20, 2)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    likelihood = rng.Gaussian()
    opt = rng.optim.ProjectedNaturalGradient(
        model, likelihood, lr=1.0, momentum=0.0, damping=0.1, step_size=rng.optim.Constant()
    )
    opt.remember(draws.normal(3, 3))
    likelihood.loss(model(x), y).backward()
    xi, before = opt.network.differential(x, y).data, opt.network.parameters_point()
    opt.step()
    v, C = (opt.network.parameters_point() - before).data, opt.step_size.remembered.rows
    g = opt.memory.damped.matrix()
    sharp = lambda covectors: torch.linalg.solve(g, covectors.mT).mT  # noqa: E731
    multipliers = torch.linalg.solve(C @ sharp(C).mT, sharp(C) @ xi)
    assert close(v, -sharp((xi - multipliers @ C)[None])[0], 1e-8) and (C @ v).abs().max() < 1e-10
    assert close(xi @ v, -v @ g @ v, 1e-8) and not close(v, -sharp(xi[None])[0], 0.05)


def test_theorem_10_fails_for_the_euclidean_projection_of_the_natural_gradient():
    """Neither protected nor invariant: the complement of the old natural gradients is taken in the coordinates."""

    def orthogonal(g: Tensor, C: Tensor, xi: Tensor) -> Tensor:
        basis = torch.linalg.qr(torch.linalg.solve(g, C.mT))[0]
        v = -torch.linalg.solve(g, xi)
        return v - basis @ (basis.mT @ v)

    g, C, xi = case(0)
    v = orthogonal(g, C, xi)
    frame = Draws(1).invertible(5)
    inverse = torch.linalg.inv(frame)
    assert (C @ v).norm() > 0.1 * v.norm()
    assert not close(orthogonal(inverse.mT @ g @ inverse, C @ inverse, inverse.mT @ xi), frame @ v, 0.05)
