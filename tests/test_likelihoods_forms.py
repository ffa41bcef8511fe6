"""Output metrics without a distribution, and likelihoods of any distribution."""

import pytest
import torch
from likelihood_cases import check_roots
from torch import distributions as td

from riemann_ng import likelihoods as lk
from riemann_ng.errors import InvalidTargets, NonFinite, NotAnInnerProduct, RiemannError, ShapeMismatch

Z = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_euclidean_outputs():
    metric = lk.EuclideanOutput(2.0)
    assert torch.equal(metric.apply(Z, Z), 2.0**0.5 * 2.0**0.5 * Z)
    assert metric.diagonal
    check_roots(metric, Z.reshape(3, 2, 2))


def test_a_form_of_the_user_depends_on_the_output():
    def form(z):
        flat = z.flatten(1)
        return torch.diag_embed(flat.square()) + flat[:, :, None] * flat[:, None, :]

    metric = lk.OutputForm(form)
    z = Z.reshape(3, 2, 2)
    check_roots(metric, z)
    assert torch.allclose(metric.matrix(z), form(z))
    assert metric.kernel(z) is None
    constant = torch.eye(4, dtype=torch.float64)
    constant[0, 0] = 0  # degenerate is allowed
    check_roots(lk.OutputForm(lambda z: constant), z)
    # For outputs in another chart, z = w³: the form is a tensor and goes along by the Jacobian.
    jacobian = torch.diag_embed(3 * Z.square())
    pulled = lk.OutputForm(lambda w: jacobian.mT @ form(w**3) @ jacobian)
    assert torch.allclose(pulled.matrix(Z), jacobian @ metric.matrix(Z**3) @ jacobian)


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (torch.eye(3), ShapeMismatch, r"a form is \[3, 4, 4\] or \[4, 4\], got float32\[3, 3\]"),
        (torch.full((4, 4), torch.nan), NonFinite, r"the form has entries that are NaN or infinite"),
        (torch.ones(4, 4).triu(), NotAnInnerProduct, r"the form is not symmetric. Symmetrize it"),
        (torch.diag(torch.tensor([1.0, 1.0, 1.0, -0.5])), NotAnInnerProduct, r"an eigenvalue -0.5 below zero"),
        (torch.diag(torch.tensor([1.0, 1.0, 1.0, -1e-6])), NotAnInnerProduct, r"an eigenvalue -1e-06 below zero"),
    ],
)
def test_what_is_no_form_is_refused(matrix, error, message):
    with pytest.raises(error, match=message):
        lk.OutputForm(lambda z: matrix).matrix(Z)


POSITIVE = torch.arange(1.0, 13.0, dtype=torch.float64).reshape(3, 4) / 5
KNOWN = {
    "bernoulli": (lambda z: td.Bernoulli(logits=z), lk.Bernoulli()),
    "poisson": (lambda z: td.Poisson(z.exp()), lk.Poisson()),
    "gaussian": (lambda z: td.Normal(z, 0.5), lk.Gaussian(0.5)),
    "mean and scale": (lambda z: td.Normal(z[:, :2], z[:, 2:].exp()), lk.GaussianMeanScale()),
    "gamma": (lambda z: td.Gamma(z[:, :2].exp(), z[:, 2:].exp()), lk.Gamma()),
    "beta": (lambda z: td.Beta(z[:, :2].exp(), z[:, 2:].exp()), lk.Beta()),
    "categorical": (lambda z: td.Categorical(logits=z), lk.Categorical()),
    "independent": (lambda z: td.Independent(td.Normal(z, 0.5), 1), lk.Gaussian(0.5)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_distribution_known_otherwise_has_the_same_information(name):
    make, known = KNOWN[name]
    likelihood = lk.FromDistribution(make)
    assert likelihood.method_at(Z) == ("enumerate" if name == "categorical" else "kl")
    assert torch.allclose(likelihood.matrix(Z), known.matrix(Z), rtol=1e-9, atol=1e-11)
    check_roots(likelihood, Z)
    y = known.sample(Z, torch.Generator().manual_seed(0))[0]
    likelihood.validate(Z, y)
    assert torch.allclose(likelihood.nll(Z, y), known.nll(Z, y))
    assert torch.allclose(likelihood.score(Z, y), known.score(Z, y))
    assert torch.allclose(likelihood.kl(Z, -Z), known.kl(Z, -Z))


def test_a_finite_support_is_enumerated():
    likelihood = lk.FromDistribution(KNOWN["categorical"][0], method="enumerate")
    assert torch.allclose(likelihood.matrix(Z), lk.Categorical().matrix(Z), atol=1e-12)
    assert torch.allclose(likelihood.kl(Z, -Z), lk.Categorical().kl(Z, -Z))
    binomial = lk.FromDistribution(lambda z: td.Binomial(6, logits=z))
    several = lk.FromDistribution(lambda z: td.Binomial(6, logits=z), method="enumerate")
    assert torch.allclose(several.matrix(Z), 6 * lk.Bernoulli().matrix(Z), atol=1e-12)
    assert torch.allclose(binomial.matrix(Z), 6 * lk.Bernoulli().matrix(Z), atol=1e-12)


def test_quadrature_where_there_is_no_closed_form():
    cauchy = lk.FromDistribution(lambda z: td.Cauchy(z[:, :2], z[:, 2:].exp()), method="quadrature")
    z = Z[:, [0, 1, 2, 3]]
    scale = z[:, 2:].exp()
    expected = torch.cat([0.5 / scale.square(), torch.full_like(scale, 0.5)], 1)
    assert torch.allclose(cauchy.matrix(z), torch.diag_embed(expected), rtol=1e-6, atol=1e-8)
    gaussian = lk.FromDistribution(KNOWN["mean and scale"][0], method="quadrature")
    assert torch.allclose(gaussian.matrix(Z), lk.GaussianMeanScale().matrix(Z), rtol=1e-6, atol=1e-8)


def test_a_divergence_with_a_kink_is_not_differentiated_twice():
    laplace = lk.FromDistribution(lambda z: td.Laplace(z[:, :2], z[:, 2:].exp()))
    assert laplace.method_at(Z) == "quadrature"
    scale = Z[:, 2:].exp()
    expected = torch.diag_embed(torch.cat([1 / scale.square(), torch.ones_like(scale)], 1))
    assert torch.allclose(laplace.matrix(Z), expected, rtol=1e-6, atol=1e-8)
    # Autograd takes the derivative of |x| at 0 to be 0, and loses the information of the location.
    by_kl = lk.FromDistribution(laplace.make, method="kl").matrix(Z)
    assert not torch.allclose(by_kl, expected, rtol=1e-1)


def test_monte_carlo_where_nothing_else_is_known():
    student = lk.FromDistribution(lambda z: td.StudentT(5.0, z, 1.0), draws=4000, seed=3)
    z = Z[:2, :2]
    assert student.method_at(z) == "monte carlo"
    expected = (5 + 1) / (5 + 3) * torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    found = student.matrix(z)
    assert torch.allclose(found, expected, atol=0.08)
    assert not torch.allclose(found, 1.2 * expected, atol=0.08)
    assert torch.equal(student.matrix(z), found)  # seeded


def test_what_a_distribution_cannot_be_is_said():
    likelihood = lk.FromDistribution(lambda z: td.Poisson(z.exp()))
    with pytest.raises(InvalidTargets, match=r"expected targets \[3, 4\], got float64\[3\]"):
        likelihood.loss(Z, Z[:, 0])
    with pytest.raises(InvalidTargets, match=r"targets lie outside the support"):
        likelihood.loss(Z, Z)
    with pytest.raises(ShapeMismatch, match=r"must have examples first, got batch shape \[\] and event shape \[3\]"):
        lk.FromDistribution(lambda z: td.Independent(td.Normal(z[:, 0], 1.0), 1)).matrix(Z)
    with pytest.raises(RiemannError, match=r"the scores do not have mean zero: the family is not regular"):
        lk.FromDistribution(lambda z: td.Uniform(z[:, :2], z[:, :2] + z[:, 2:].exp())).matrix(Z)
