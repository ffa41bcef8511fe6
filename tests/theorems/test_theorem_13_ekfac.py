"""Theorem 13: EKFAC is Frobenius-optimal in its basis, and not affine invariant."""

import pytest
import torch
from exact_matrices import Draws, Matrix, Rational, close
from hypothesis import given
from hypothesis import strategies as st
from networks_and_twins import step_is_off, tanh_network

import riemann_ng as rng


def spectrum(U: Matrix, F: Matrix) -> list:
    """Moments along the columns of U, which are orthogonal but need not be normalized."""
    return [(u.T * F * u)[0] / (u.T * u)[0] ** 2 for u in (U[:, i] for i in range(U.cols))]


def with_spectrum(U: Matrix, s: list) -> Matrix:
    return U * Matrix.diag(*s) * U.T


def distance(F: Matrix, H: Matrix) -> Rational:
    return ((F - H).T * (F - H)).trace()


@pytest.mark.parametrize("seed", range(5))
def test_theorem_13_moments_are_frobenius_optimal(seed):
    draws, U = Draws(seed), Matrix([[1, 2, 2], [2, 1, -2], [2, -2, 1]])
    F, best = draws.rational_positive(3), None
    best = spectrum(U, F)
    for _ in range(20):
        other = [s + t for s, t in zip(best, draws.rational(3, 1), strict=True)]
        # Pythagoras: what is left over is orthogonal to every form that is diagonal in this basis.
        apart = distance(with_spectrum(U, best), with_spectrum(U, other))
        assert distance(F, with_spectrum(U, other)) == distance(F, with_spectrum(U, best)) + apart


@given(st.integers(0, 10**6))
def test_theorem_13_nearer_than_kfac(seed):
    draws = Draws(seed)
    a, g = draws.normal(12, 3), draws.normal(12, 2)
    gradients = torch.einsum("no,ni->noi", g * (1 + a[:, :1] ** 2), a).flatten(1)
    F = gradients.mT @ gradients / 12
    scaled = g * (1 + a[:, :1] ** 2)
    G, A = scaled.mT @ scaled / 12, a.mT @ a / 12
    U = torch.kron(torch.linalg.eigh(G)[1], torch.linalg.eigh(A)[1])
    ekfac = U * (gradients @ U).square().mean(0) @ U.mT
    assert (F - ekfac).norm() <= (F - torch.kron(G, A)).norm() * (1 + 1e-12)
    turned = torch.linalg.qr(draws.normal(6, 6))[0]
    assert close((U.mT @ torch.kron(G, A) @ U).diag().diag(), U.mT @ torch.kron(G, A) @ U)
    assert not close((turned.mT @ F @ turned).diag().diag(), turned.mT @ F @ turned, 0.01)


INPUTS, VARIANCES = [Matrix([1, 1]), Matrix([1, -1]), Matrix([1, 0])], [3, 1, 1]


def ekfac_step(frame: Matrix, xi: Matrix, eigenbasis: Matrix) -> Matrix:
    """A layer with one output whose inputs are seen in a frame."""
    inputs = [frame * a for a in INPUTS]
    A = sum((a * a.T for a in inputs), Matrix.zeros(2, 2))
    F = sum((v * a * a.T for v, a in zip(VARIANCES, inputs, strict=True)), Matrix.zeros(2, 2))
    assert (eigenbasis.T * A * eigenbasis).is_diagonal() and (eigenbasis.T * eigenbasis).is_diagonal()
    columns = [eigenbasis[:, i] for i in range(2)]
    return sum((u * (u.T * frame * xi)[0] / (u.T * F * u)[0] for u in columns), Matrix.zeros(2, 1))


def test_theorem_13_a_shear_is_lost_exactly():
    shear, turn, xi = Matrix([[1, 1], [0, 1]]), Matrix([[3, -4], [4, 3]]) / 5, Matrix([40, 0])
    own = ekfac_step(Matrix.eye(2), xi, Matrix.eye(2))
    assert ekfac_step(shear, xi, Matrix([[2, -1], [1, 2]])) == Matrix([10, -15])
    assert shear.inv().T * own == Matrix([8, -8])
    assert ekfac_step(turn, xi, turn) == turn * own


@given(st.integers(0, 10**6))
def test_theorem_13_of_the_library(seed):
    """`EKFAC` of every layer is the nearest to the block of the Fisher among the forms of its frame, by Pythagoras."""
    draws = Draws(seed)
    network, x, _ = tanh_network(draws, (3, 4, 2))
    seen = network.observe(x)
    ekfac, kfac, fisher = (m.at(seen) for m in (rng.EKFAC(), rng.KFAC(), rng.Fisher(structure="block-diagonal")))
    for path in network.blocks:
        g, F = ekfac.restrict(path), fisher.restrict(path).matrix()
        assert isinstance(g, rng.RotatedDiagonal)
        other = rng.RotatedDiagonal(g.reference, g.axes, g.spectrum + draws.normal(*g.spectrum.shape).abs())
        best, apart = (F - g.matrix()).square().sum(), (g.matrix() - other.matrix()).square().sum()
        assert close((F - other.matrix()).square().sum(), best + apart)
        assert best.sqrt() <= (F - kfac.restrict(path).matrix()).norm() + 1e-12 * F.norm()


def test_theorem_13_of_the_library_keeps_isometries_and_loses_the_rest():
    network, x, _ = tanh_network(Draws(0), (3, 4, 2))
    assert step_is_off(network, x, rng.EKFAC(), seed=1, group="orthogonal") < 1e-7
    assert step_is_off(network, x, rng.EKFAC(), seed=1) > 1e-2
    transported = rng.FixedMetric(rng.KFAC().at(network.observe(x.flip(0) + 0.1)), "K-FAC elsewhere")
    assert transported.at(network.observe(x)).keeps(f"{network.name}/0.A", "affine")
