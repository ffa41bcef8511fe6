"""Theorem 5: convolutions with a pad point, the reduce form, and recurrence keep one frame for all sites."""

import torch
from exact_matrices import Draws, close
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import riemann_ng as rng
from riemann_ng.layers import Convolution

A, S = rng.AffineSpace("A", 3), rng.AffineSpace("S", 2)
seeds = st.integers(0, 10**6)


def split(frame: Tensor) -> tuple[Tensor, Tensor]:
    return frame[:-1, :-1], frame[:-1, -1]


def convolution(weight: Tensor, bias: Tensor, pad: Tensor) -> Convolution:
    return Convolution(A, S, weight, bias, padding=1, padding_point=rng.Point(A, pad))


def outputs(seed: int, move_the_pad: bool) -> tuple[Tensor, Tensor]:
    """The twin's outputs, and the moved outputs."""
    draws = Draws(seed)
    x, weight, bias, pad = draws.normal(2, 5, 3), draws.normal(2, 3, 3), draws.normal(2), draws.normal(3)
    (omega, shift), phi = split(draws.affine(3)), draws.invertible(2)
    kernel = torch.einsum("oik,ij->ojk", weight, torch.linalg.inv(omega))
    offset = bias - torch.einsum("ojk,j->o", kernel, shift)
    twin_pad = omega @ pad + shift if move_the_pad else pad
    twin = convolution(torch.einsum("po,ojk->pjk", phi, kernel), phi @ offset, twin_pad)
    return twin.forward(x @ omega.mT + shift), convolution(weight, bias, pad).forward(x) @ phi.mT


@given(seeds)
def test_theorem_05_convolution_commutes_with_frames_that_move_its_pad(seed):
    assert close(*outputs(seed, move_the_pad=True))


def test_theorem_05_fails_for_a_pad_that_stays():
    assert not close(*outputs(0, move_the_pad=False), 0.01)


def reduced_step(a: Tensor, g: Tensor, X: Tensor) -> Tensor:
    inputs = rng.Sample(A.hull, a[:, None]).reduced()
    cotangents = rng.Sample(S.translations.dual, g[:, None], rng.Measure.exact()).reduced()
    metric = rng.second_moment(cotangents) * rng.second_moment(inputs)
    return metric.sharp(rng.Covector(metric.space, X)).data


@given(seeds)
def test_theorem_05_reduced_and_cross_moments_are_tensors(seed):
    draws = Draws(seed)
    a = torch.cat([draws.normal(20, 4, 3), torch.ones(20, 4, 1, dtype=torch.float64)], -1)
    g, X = draws.normal(20, 4, 2), draws.normal(2, 4)
    alpha, phi = draws.affine(3), draws.invertible(2)
    inverse = torch.linalg.inv(phi)
    moved = reduced_step(a @ alpha.mT, g @ inverse, inverse.mT @ X @ alpha.mT)
    assert close(moved, phi @ reduced_step(a, g, X) @ torch.linalg.inv(alpha))
    across = lambda x: x[:, 0].mT @ x[:, 1]  # noqa: E731
    assert close(across(a @ alpha.mT), alpha @ across(a) @ alpha.mT)
    assert close(rng.Sample(A.hull, a[:, None]).reduced().dense()[..., -1], torch.ones(20, 1, 1, dtype=torch.float64))


def test_theorem_05_fails_for_summed_features_with_a_bias_of_one():
    """Sums of points are no points: translations are lost."""
    draws = Draws(0)
    a, g, X = draws.normal(20, 4, 3), draws.normal(20, 4, 2), draws.normal(2, 4)
    shift = torch.eye(4, dtype=torch.float64)
    shift[:3, 3] = draws.normal(3)

    def step(points: Tensor, covector: Tensor) -> Tensor:
        sums = torch.cat([points.sum(1), torch.ones(20, 1, dtype=torch.float64)], -1)
        G = g.sum(1).mT @ g.sum(1)
        return torch.linalg.inv(G) @ covector @ torch.linalg.inv(sums.mT @ sums)

    assert not close(step(a + shift[:3, 3], X @ shift.mT), step(a, X) @ torch.linalg.inv(shift), 0.05)
