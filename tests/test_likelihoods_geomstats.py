"""Fisher-Rao matrices against geomstats, carried between charts by Jacobians. Only numbers cross."""

import pytest
import torch

from riemann_ng.interop.geomstats.backend import geomstats_in  # starts geomstats on torch

# isort: split

import geomstats.backend as gs
from geomstats.information_geometry.beta import BetaDistributions
from geomstats.information_geometry.binomial import BinomialDistributions
from geomstats.information_geometry.categorical import CategoricalDistributions
from geomstats.information_geometry.dirichlet import DirichletDistributions
from geomstats.information_geometry.exponential import ExponentialDistributions
from geomstats.information_geometry.gamma import GammaDistributions
from geomstats.information_geometry.geometric import GeometricDistributions
from geomstats.information_geometry.normal import UnivariateNormalDistributions
from geomstats.information_geometry.poisson import PoissonDistributions
from torch import distributions

from riemann_ng import likelihoods as lk


def fisher_rao(space, point):
    with geomstats_in(torch.float64):
        return torch.tensor(space.metric.metric_matrix(gs.array(point.tolist())).tolist(), dtype=torch.float64)


def gamma_chart(z):  # geomstats has the concentration and the mean
    return torch.stack([z[0].exp(), (z[0] - z[1]).exp()])


FAMILIES = {
    "normal": (lk.GaussianMeanScale(), UnivariateNormalDistributions(), lambda z: torch.stack([z[0], z[1].exp()]), 2),
    "gamma": (lk.Gamma(), GammaDistributions(), gamma_chart, 2),
    "beta": (lk.Beta(), BetaDistributions(), torch.exp, 2),
    "poisson": (lk.Poisson(), PoissonDistributions(), torch.exp, 1),
    "bernoulli": (lk.Bernoulli(), BinomialDistributions(n_draws=1), torch.sigmoid, 1),
    "categorical": (lk.Categorical(), CategoricalDistributions(3), lambda z: z.softmax(-1), 4),
    "dirichlet": (
        lk.FromDistribution(lambda z: distributions.Dirichlet(z.exp())), DirichletDistributions(3), torch.exp, 3,
    ),
    "geometric": (
        lk.FromDistribution(lambda z: distributions.Geometric(logits=z)), GeometricDistributions(), torch.sigmoid, 1,
    ),
    "exponential": (
        lk.FromDistribution(lambda z: distributions.Exponential(z.exp())), ExponentialDistributions(), torch.exp, 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_h_is_the_pullback_of_geomstats_fisher_rao_metric(name):
    likelihood, space, chart, size = FAMILIES[name]
    z = torch.randn(3, size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for at, h in zip(z, likelihood.matrix(z), strict=True):
        jacobian = torch.func.jacrev(chart)(at)
        expected = jacobian.mT @ fisher_rao(space, chart(at)).reshape(size, size) @ jacobian
        assert torch.allclose(h, expected, rtol=1e-8, atol=1e-10)
        # The same numbers in the wrong chart are another metric.
        wrong = fisher_rao(space, chart(at)).reshape(size, size)
        assert not torch.allclose(h, wrong, rtol=1e-2)


def test_a_geomstats_metric_is_an_output_form():
    space = BetaDistributions()
    metric = lk.OutputForm(lambda z: fisher_rao(space, z))
    z = torch.tensor([[2.0, 3.0], [0.5, 4.0]], dtype=torch.float64)
    pulled = torch.diag_embed(z) @ metric.matrix(z) @ torch.diag_embed(z)
    assert torch.allclose(pulled, lk.Beta().matrix(z.log()), rtol=1e-9)
