"""Theorem 8: both estimators of the Fisher are unbiased; their covariances, bounds and cases of no variance, by
enumeration of every label in rational arithmetic."""

from fractions import Fraction
from itertools import product

import pytest
import torch
from exact_matrices import Draws, close
from torch import nn

import riemann_ng as rng

CLASSES, PARAMETERS = 3, 2
PROBABILITIES = (Fraction(1, 2), Fraction(1, 3), Fraction(1, 6))
OUT, IN = range(CLASSES), range(PARAMETERS)
PAIRS = list(product(IN, IN))


class Model:
    """Logits h(theta) of three classes with Jacobian J[a][i] and Hessians H[a][i][j]; t(y) is the label's indicator."""

    def __init__(self, seed: int, curved: bool = True):
        draw = Draws(seed).integers.randint
        self.J = [[Fraction(draw(-3, 3)) for _ in IN] for _ in OUT]
        lower = [{(i, j): Fraction(draw(-3, 3)) for i, j in PAIRS if j <= i} for _ in OUT]
        self.H = [[[curved * h[max(i, j), min(i, j)] for j in IN] for i in IN] for h in lower]
        self.I = [[PROBABILITIES[a] * ((a == b) - PROBABILITIES[b]) for b in OUT] for a in OUT]
        self.fisher = {
            (i, j): sum(self.J[a][i] * self.I[a][b] * self.J[b][j] for a in OUT for b in OUT) for i, j in PAIRS
        }
        self.fourth = {
            abcd: expect(lambda y, abcd=abcd: prod(deviation(y, a) for a in abcd)) for abcd in product(OUT, repeat=4)
        }

    def first(self, y: int) -> dict:
        s = [sum(self.J[a][i] * deviation(y, a) for a in OUT) for i in IN]
        return {(i, j): s[i] * s[j] for i, j in PAIRS}

    def second(self, y: int) -> dict:
        return {(i, j): self.fisher[i, j] - sum(deviation(y, a) * self.H[a][i][j] for a in OUT) for i, j in PAIRS}

    def first_covariance(self, ij: tuple, kl: tuple) -> Fraction:
        J, (i, j), (k, m) = self.J, ij, kl
        return sum(
            J[a][i] * J[b][j] * J[c][k] * J[d][m] * (self.fourth[a, b, c, d] - self.I[a][b] * self.I[c][d])
            for a, b, c, d in product(OUT, repeat=4)
        )

    def second_covariance(self, ij: tuple, kl: tuple) -> Fraction:
        (i, j), (k, m) = ij, kl
        return sum(self.H[a][i][j] * self.H[b][k][m] * self.I[a][b] for a in OUT for b in OUT)


def prod(factors) -> Fraction:
    result = Fraction(1)
    for factor in factors:
        result *= factor
    return result


def expect(f) -> Fraction:
    return sum(p * f(y) for y, p in enumerate(PROBABILITIES))


def deviation(y: int, a: int) -> Fraction:
    return (y == a) - PROBABILITIES[a]


def squares(values) -> Fraction:
    return sum(v**2 for v in values)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["first", "second"])
def test_theorem_08_unbiased_with_the_stated_covariance(seed, kind):
    model = Model(seed)
    estimate, covariance = getattr(model, kind), getattr(model, f"{kind}_covariance")
    for ij in PAIRS:
        assert expect(lambda y, ij=ij: estimate(y)[ij]) == model.fisher[ij]
        for kl in PAIRS:
            moment = expect(lambda y, ij=ij, kl=kl: estimate(y)[ij] * estimate(y)[kl])
            assert moment - model.fisher[ij] * model.fisher[kl] == covariance(ij, kl)


def test_theorem_08_means_of_draws_have_one_nth_of_the_covariance():
    model, ij = Model(0), (0, 1)
    mean_square = sum(
        PROBABILITIES[y] * PROBABILITIES[z] * ((model.first(y)[ij] + model.first(z)[ij]) / 2) ** 2
        for y, z in product(OUT, OUT)
    )
    assert mean_square - model.fisher[ij] ** 2 == model.first_covariance(ij, ij) / 2


@pytest.mark.parametrize("seed", range(3))
def test_theorem_08_bounds(seed):
    """Squared, so that they stay rational: |Cov I1| <= |J|^4 |K - I x I| and |Cov I2| <= |H|^2 |I|, Frobenius norms."""
    model = Model(seed)
    quads = list(product(PAIRS, PAIRS))
    excess = squares(model.fourth[a, b, c, d] - model.I[a][b] * model.I[c][d] for a, b, c, d in product(OUT, repeat=4))
    first = squares(model.first_covariance(*q) for q in quads)
    assert first <= squares(v for row in model.J for v in row) ** 4 * excess
    hessian = squares(v for h in model.H for row in h for v in row)
    second = squares(model.second_covariance(*q) for q in quads)
    assert second <= hessian**2 * squares(v for row in model.I for v in row)


def test_theorem_08_no_variance_where_logits_are_affine_in_the_parameters():
    flat, curved = Model(0, curved=False), Model(0)
    assert all(flat.second(y) == flat.fisher for y in OUT)
    assert any(curved.second(y) != curved.fisher for y in OUT)
    assert flat.first_covariance((0, 0), (0, 0)) > 0


def test_theorem_08_no_variance_of_a_probability_of_one_half():
    """One logit: K - I^2 = p (1 - p) (1 - 2p)^2, which vanishes at 0, 1/2 and 1 and nowhere else."""
    for p in (Fraction(k, 12) for k in range(13)):
        variance = p * (1 - p)
        fourth = p * (1 - p) ** 4 + (1 - p) * p**4
        assert fourth - variance**2 == p * (1 - p) * (1 - 2 * p) ** 2
        assert (fourth == variance**2) == (p in (0, Fraction(1, 2), 1))


def test_theorem_08_model_labels_average_to_the_fisher_and_data_labels_do_not():
    """The library, with every label of a softmax classifier enumerated."""
    draws = Draws(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, CLASSES)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(draws.normal(*parameter.shape))
    x = draws.normal(1, 2)
    network = rng.Network.from_torch(model, likelihood=rng.Categorical(), example=x)
    moment = lambda y: rng.second_moment(network.observe(x, rng.Empirical(torch.tensor([y]))).gradients).matrix()  # noqa: E731
    moments = torch.stack([moment(y) for y in OUT])
    fisher = network.fisher(x).matrix()
    assert close(torch.einsum("y,yij->ij", model(x).softmax(-1)[0].detach(), moments), fisher)
    assert not any(close(m, fisher, 0.05) for m in moments)


def test_theorem_08_of_the_library():
    """`Exact` has no variance; that of `MonteCarlo` falls with the number of its draws; `Empirical` is no estimator."""
    draws = Draws(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, CLASSES)).double()
    x, y = draws.normal(4, 2), torch.tensor([0, 1, 2, 0])
    network = rng.Network.from_torch(model, likelihood=rng.Categorical(), example=x)
    fisher = network.fisher(x).matrix()
    error = lambda estimator: float(  # noqa: E731
        (rng.second_moment(network.observe(x, estimator).gradients).matrix() - fisher).norm() / fisher.norm()
    )
    assert error(rng.Exact()) < 1e-12
    few, many = (max(error(rng.MonteCarlo(samples, seed)) for seed in range(5)) for samples in (20, 2000))
    assert many < 0.05 < few
    assert error(rng.Empirical(y)) > 0.2
