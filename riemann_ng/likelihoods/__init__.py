"""Likelihoods: the output manifold, its distribution, its Fisher inner product, its samples.

Also the output metrics that come from no distribution: `EuclideanOutput` and `OutputForm`.
"""

from .base import Likelihood, OutputMetric
from .categorical import Categorical
from .elementwise import Bernoulli, Gaussian, NegativeBinomial, Poisson
from .forms import EuclideanOutput, OutputForm
from .from_distribution import FromDistribution
from .roots import Root
from .sites import SiteLikelihood
from .two_parameters import Beta, Gamma, GaussianMeanScale, VonMises

__all__ = [
    "Bernoulli",
    "Beta",
    "Categorical",
    "EuclideanOutput",
    "FromDistribution",
    "Gamma",
    "Gaussian",
    "GaussianMeanScale",
    "Likelihood",
    "NegativeBinomial",
    "OutputForm",
    "OutputMetric",
    "Poisson",
    "Root",
    "SiteLikelihood",
    "VonMises",
]
