"""Other people's libraries as oracles: statsmodels, curvlinops and nngeometry.

Fisher scoring. Of a generalized linear model, the natural gradient with the exact Fisher and step one *is* Fisher
scoring, which statsmodels calls IRLS: iterates agree one by one.

Scales. Here A has a one in its corner, and G is the mean over examples of the sum over sites, of the example's own
loss. Theirs is c times ours, per factor (n examples, C classes, T sites):

    library                                          A              G
    curvlinops, mean of cross entropy                1              1
    curvlinops, sum of cross entropy                 1              n
    curvlinops, mean of squared errors of C outputs  1              2 / C      (the Gaussian's Fisher is for ½ |y - z|²)
    nngeometry, exact Fisher of C classes            T √(C - 1)     1 / (T √(C - 1)), so that the product is the same

curvlinops separates weight and bias unless `separate_weight_and_bias=False`. nngeometry takes no linear layer with
sites: its weight-sharing model is a convolution with a kernel of one pixel. `docs/metrics.md` has the table too.
"""

import warnings

import numpy
import pytest
import statsmodels.api as sm
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from riemann_ng.elements import Vector
from riemann_ng.inner_products import second_moment
from riemann_ng.likelihoods import Bernoulli, Categorical, EuclideanOutput, Gaussian, Poisson
from riemann_ng.metrics import KFAC, RiemannianMetric
from riemann_ng.metrics.ekfac import EKFAC
from riemann_ng.metrics.fisher import Fisher, GaussNewton
from riemann_ng.natural_gradient import natural_gradient
from riemann_ng.networks import Empirical, Network

with warnings.catch_warnings():  # torch.jit, imported by them, warns of its own end
    warnings.simplefilter("ignore")
    import curvlinops
    from nngeometry.metrics import FIM
    from nngeometry.object import PMatDense, PMatKFAC


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)


# The labels' own gradients in the place of the Fisher's: what the controls take.
class LabelsOwn(RiemannianMetric):
    def at(self, observation):
        return second_moment(observation.gradients)


# --- statsmodels: Fisher scoring --------------------------------------------------------------------------------------

N, STEPS = 60, 6


def iterates(network, metric, x, y, steps, estimator=None):
    """The trained parameters, flat, after each of so many steps of length one."""
    found = []
    for _ in range(steps):
        network.move_(natural_gradient(network, metric, x, y, estimator=estimator), step=-1.0)
        found.append(torch.cat([p.detach().flatten() for p in network.parameters.values()]))
    return torch.stack(found)


def irls(family, design, y, steps):
    """statsmodels' iterates from zero."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is stopped before it converges, which it says
        model = sm.GLM(y.numpy(), design.numpy(), family=family)
        fit = model.fit(start_params=numpy.zeros(design.shape[1]), maxiter=steps, tol=0.0, method="IRLS")
    return torch.tensor(numpy.stack(fit.fit_history["params"][2:]))


def regression(likelihood, x):
    model = nn.Linear(x.shape[1], 1)
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    return Network.from_torch(model, likelihood, example=x)


def targets(family, x):
    eta = x @ torch.tensor([0.8, -0.5, 0.3]) + 0.2
    if family == "bernoulli":
        return eta.sigmoid().bernoulli()
    return torch.poisson(eta.exp()) if family == "poisson" else eta + 0.3 * torch.randn(len(x))


FAMILIES = {
    "bernoulli": (Bernoulli(), sm.families.Binomial()),
    "poisson": (Poisson(), sm.families.Poisson()),
    "gaussian": (Gaussian(), sm.families.Gaussian()),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_natural_gradient_is_fisher_scoring(family):
    likelihood, theirs = FAMILIES[family]
    x = torch.randn(N, 3)
    y = targets(family, x)
    want = irls(theirs, torch.cat([x, torch.ones(N, 1)], 1), y, STEPS)  # the intercept last, as the bias is
    ours = iterates(regression(likelihood, x), Fisher(), x, y[:, None], STEPS)
    assert want.shape[0] >= 2 or family == "gaussian"
    assert torch.allclose(ours[: len(want)], want, rtol=0, atol=1e-8)
    assert (want[0] - want[-1]).norm() > 1e-3 or family == "gaussian"  # Gaussian: done in one step

    # the control: the covariance of the labels' own gradients is no Fisher (for Bernoulli at zero it happens to be one)
    empirical = iterates(regression(likelihood, x), LabelsOwn(), x, y[:, None], 2, Empirical(y[:, None]))
    assert (empirical[: len(want)] - want[:2]).norm() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_kfac_is_fisher_scoring_where_the_variance_is_the_same_everywhere(family):
    """At zero, and for the Gaussian; elsewhere its product leaves out that the variance goes with the input."""
    likelihood, theirs = FAMILIES[family]
    x = torch.randn(N, 3)
    y = targets(family, x)
    want = irls(theirs, torch.cat([x, torch.ones(N, 1)], 1), y, 2)
    ours = iterates(regression(likelihood, x), KFAC(), x, y[:, None], len(want))
    assert torch.allclose(ours[0], want[0], rtol=0, atol=1e-8)
    assert torch.allclose(ours[-1], want[-1], rtol=0, atol=1e-4) is (family == "gaussian")


def test_a_link_that_is_not_canonical():
    """Probit by a plain function: the Fisher is pulled back along any chart of the outputs; a Hessian is not."""
    x = torch.randn(N, 3)
    y = targets("bernoulli", x)
    family = sm.families.Binomial(link=sm.families.links.Probit())
    want = irls(family, x, y, STEPS)

    def f(w, x):
        return torch.logit(torch.distributions.Normal(0.0, 1.0).cdf(x @ w))[:, None]

    network = Network.from_function(f, torch.zeros(3), Bernoulli(), example=x)
    assert torch.allclose(iterates(network, Fisher(), x, y[:, None], STEPS), want, rtol=0, atol=1e-8)

    w = want[0]
    loss = lambda w: Bernoulli().loss(f(w, x), y[:, None])  # noqa: E731
    newton = w - torch.linalg.solve(torch.func.hessian(loss)(w), torch.func.grad(loss)(w))
    assert (newton - want[1]).norm() > 1e-4  # the control


def test_the_multinomial_logit():
    """Its link is canonical, so that Newton's method, which statsmodels has for it, is Fisher scoring."""
    x, y = torch.randn(N, 3), torch.randint(0, 3, (N,))
    zeros = numpy.zeros(6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = sm.MNLogit(y.numpy(), x.numpy())
        fit = model.fit(
            start_params=zeros,
            method="newton",
            maxiter=4,
            tol=0.0,
            ridge_factor=0.0,
            retall=True,
            disp=0,
            skip_hessian=True,
        )
    want = torch.tensor(numpy.stack([numpy.asarray(p).reshape(-1) for p in fit.mle_retvals["allvecs"][2:]]))

    def f(w, x):  # the first class is the one that others are compared with
        return torch.cat([x.new_zeros(len(x), 1), x @ w.T], 1)

    network = Network.from_function(f, torch.zeros(2, 3), Categorical(), example=x)
    ours = iterates(network, Fisher(), x, y, len(want))
    assert len(want) >= 3 and torch.allclose(ours, want, rtol=0, atol=1e-8)


# --- curvlinops and nngeometry: factors and matrices ------------------------------------------------------------------

EXAMPLES, CLASSES = 8, 3


class SharedTokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside, self.out = nn.Linear(4, 5), nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.out(torch.tanh(self.inside(x)).mean(1))


MODELS = {
    "linear": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES)),
        lambda: torch.randn(EXAMPLES, 4),
        (1, 1),
    ),
    "convolutional": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Conv2d(2, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, CLASSES)
        ),
        lambda: torch.randn(EXAMPLES, 1, 5, 5),
        (9, 4, 1),
    ),
    "weight sharing": (SharedTokens, lambda: torch.randn(EXAMPLES, 6, 4), (6, 1)),
    "one pixel": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 1), nn.Tanh(), nn.Flatten(), nn.Linear(12, CLASSES)),
        lambda: torch.randn(EXAMPLES, 2, 2, 2),
        (4, 1),
    ),
}
CURVLINOPS = ["linear", "convolutional", "weight sharing"]
NNGEOMETRY = ["linear", "convolutional", "one pixel"]


def classifier(name):
    make, inputs, sites = MODELS[name]
    model, x = make(), inputs()
    network = Network.from_torch(model, Categorical(), example=x)
    return model, network, x, torch.randint(0, CLASSES, (EXAMPLES,)), sites


def in_flat_parameters(g, network):
    """The matrix of a form, on the parameters one after the other."""
    eye = Vector(network.tangent_space, torch.eye(network.tangent_space.dim))
    P = torch.cat([t.reshape(len(t), -1) for t in eye.to_parameters().values()], 1)
    return P.mT @ g.matrix() @ P


def apart(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


def curvlinops_kfac(model, loss, x, y, approximation="expand", **settings):
    settings = {"separate_weight_and_bias": False, "fisher_type": "type-2", **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        operator = curvlinops.KFACLinearOperator(
            model, loss, list(model.parameters()), [(x, y)], kfac_approx=approximation, check_deterministic=False,
            **settings,
        )  # fmt: skip
        return operator, operator @ torch.eye(operator.shape[1])


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", CURVLINOPS)
def test_kfac_is_that_of_curvlinops(name, reduction, sharing):
    model, network, x, y, _ = classifier(name)
    operator, theirs = curvlinops_kfac(model, nn.CrossEntropyLoss(reduction=reduction), x, y, sharing)
    seen, scale = network.observe(x), EXAMPLES if reduction == "sum" else 1
    for path, layer in seen.layers.items():
        A, G = (g.matrix() for g in KFAC(sharing=sharing).factors(layer)[::-1])
        assert apart(A, operator._input_covariances[path]) < 1e-12
        assert apart(scale * G, operator._gradient_covariances[path]) < 1e-12
    ours = in_flat_parameters(KFAC(sharing=sharing).at(seen), network)
    assert apart(scale * ours, theirs) < 1e-12
    if name != "linear":  # the control: expand is not reduce where there are sites
        other = KFAC(sharing="reduce" if sharing == "expand" else "expand")
        assert apart(scale * in_flat_parameters(other.at(seen), network), theirs) > 1e-2


def test_curvlinops_separates_weight_and_bias_by_default():
    model, network, x, y, _ = classifier("linear")
    _, theirs = curvlinops_kfac(model, nn.CrossEntropyLoss(), x, y, separate_weight_and_bias=True)
    assert apart(in_flat_parameters(KFAC(bias="separate").at(network.observe(x)), network), theirs) < 1e-12
    assert apart(in_flat_parameters(KFAC().at(network.observe(x)), network), theirs) > 1e-2


def test_the_empirical_kfac_is_that_of_curvlinops():
    for name in CURVLINOPS:
        model, network, x, y, _ = classifier(name)
        _, theirs = curvlinops_kfac(model, nn.CrossEntropyLoss(), x, y, fisher_type="empirical")
        ours = in_flat_parameters(KFAC().at(network.observe(x, Empirical(y))), network)
        assert apart(ours, theirs) < 1e-12
        assert apart(in_flat_parameters(KFAC().at(network.observe(x)), network), theirs) > 1e-2


@pytest.mark.parametrize("name", CURVLINOPS)
def test_squared_errors_have_another_scale(name):
    model, _, x, _, _ = classifier(name)
    y = torch.randn(EXAMPLES, CLASSES)
    network = Network.from_torch(model, Gaussian(), example=x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        operator = curvlinops.GGNLinearOperator(
            model, nn.MSELoss(), list(model.parameters()), [(x, y)], check_deterministic=False
        )
        theirs = operator @ torch.eye(operator.shape[1])
    ours = in_flat_parameters(Fisher().at(network.observe(x)), network)
    assert apart(2 / CLASSES * ours, theirs) < 1e-12
    _, factored = curvlinops_kfac(model, nn.MSELoss(), x, y)
    assert apart(2 / CLASSES * in_flat_parameters(KFAC().at(network.observe(x)), network), factored) < 1e-12
    assert apart(ours, theirs) > 1e-2  # the control: without the scale


@pytest.mark.parametrize("name", CURVLINOPS)
def test_the_fisher_is_the_generalized_gauss_newton_of_curvlinops(name):
    model, network, x, y, _ = classifier(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        operator = curvlinops.GGNLinearOperator(
            model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, y)], check_deterministic=False
        )
        theirs = operator @ torch.eye(operator.shape[1])
    assert apart(in_flat_parameters(Fisher().at(network.observe(x)), network), theirs) < 1e-12
    plain = GaussNewton(EuclideanOutput()).at(network.observe(x, output=EuclideanOutput()))
    assert apart(in_flat_parameters(plain, network), theirs) > 1e-2  # the control


@pytest.mark.parametrize("name", NNGEOMETRY)
def test_fisher_and_factors_are_those_of_nngeometry(name):
    model, network, x, y, sites = classifier(name)
    loader, seen = DataLoader(TensorDataset(x, y), batch_size=EXAMPLES), network.observe(x)
    dense = FIM(model, loader, PMatDense, variant="classif_logits", device="cpu").to_torch()
    assert apart(in_flat_parameters(Fisher().at(seen), network), dense) < 1e-12
    factors = FIM(model, loader, PMatKFAC, variant="classif_logits", device="cpu").data
    for (layer, T), (A, G) in zip(zip(seen.layers.values(), sites, strict=True), factors.values(), strict=True):
        scale = T * (CLASSES - 1) ** 0.5
        assert layer.sites == T
        assert apart(scale * layer.inputs.moment(), A) < 1e-12
        assert apart(layer.cotangents.moment() / scale, G) < 1e-12
    ours = torch.kron(layer.cotangents.moment(), layer.inputs.moment())
    assert apart(ours, torch.kron(G, A)) < 1e-12


@pytest.mark.parametrize("name", ["linear", "convolutional"])
def test_ekfac_is_that_of_curvlinops(name):
    """Eigenframes in the coordinates, true second moments of per-example gradients along them."""
    model, network, x, y, _ = classifier(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        operator = curvlinops.EKFACLinearOperator(
            model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, y)], check_deterministic=False,
            fisher_type="type-2", separate_weight_and_bias=False,
        )  # fmt: skip
        theirs = operator @ torch.eye(operator.shape[1])
    ours = in_flat_parameters(EKFAC().at(network.observe(x)), network)
    assert apart(ours, theirs) < 1e-8
    assert apart(in_flat_parameters(KFAC().at(network.observe(x)), network), theirs) > 1e-2  # the control
