"""Plain functions as networks, held against dense Fishers by torch.func and against closed forms."""

import gc
import weakref
from collections import namedtuple

import pytest
import torch
from torch import nn

from riemann_ng.errors import InvalidSetting, UnsupportedLayer
from riemann_ng.inner_products import second_moment
from riemann_ng.likelihoods import Bernoulli, Categorical, Gaussian, GaussianMeanScale, Poisson
from riemann_ng.metrics import KFAC, EuclideanMetric
from riemann_ng.metrics.base import RiemannianMetric
from riemann_ng.natural_gradient import natural_gradient
from riemann_ng.networks import Empirical, Network
from riemann_ng.networks.functions import KEPT


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)


class Dense(RiemannianMetric):
    """The Fisher from per-example gradients, whatever the estimator."""

    def at(self, observation):
        return second_moment(observation.gradients)


def mlp(p, x):
    return torch.tanh(x @ p["first"]["weight"].mT + p["first"]["bias"]) @ p["out"].mT


def tree():
    return {"first": {"weight": torch.randn(4, 3), "bias": torch.randn(4)}, "out": torch.randn(2, 4)}


def dense_fisher(f, parameters, x, likelihood):
    """By forward and reverse differentiation of the function alone, in the order of `to_parameters`."""
    z = f(parameters, x)
    jacobian = torch.func.jacrev(lambda p: f(p, x))(parameters)
    leaves = torch.utils._pytree.tree_leaves(jacobian)
    J = torch.cat([leaf.reshape(len(x), z[0].numel(), -1) for leaf in leaves], -1)
    return torch.einsum("nop,noq,nqr->pr", J, likelihood.matrix(z).reshape(len(x), J.shape[1], -1), J) / len(x)


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors.values()])


def expected(f, parameters, x, y, likelihood, damping=0.0):
    F = dense_fisher(f, parameters, x, likelihood)
    df = torch.func.grad(lambda p: likelihood.loss(f(p, x), y))(parameters)
    df = torch.cat([leaf.flatten() for leaf in torch.utils._pytree.tree_leaves(df)])
    return torch.linalg.solve(F + damping * torch.eye(len(F)), df)


@pytest.mark.parametrize(
    ("likelihood", "y"),
    [
        (Gaussian(0.7), lambda: torch.randn(9, 2)),
        (Bernoulli(), lambda: torch.randint(0, 2, (9, 2)).double()),
        (Poisson(), lambda: torch.randint(0, 4, (9, 2)).double()),
        (Categorical(), lambda: torch.randint(0, 2, (9,))),
    ],
    ids=["gaussian", "bernoulli", "poisson", "categorical"],
)
def test_the_damped_natural_gradient_is_that_of_the_dense_fisher(likelihood, y):
    p, x, y = tree(), torch.randn(9, 3), y()
    v = natural_gradient(mlp, Dense(), x, y, damping=0.1, parameters=p, likelihood=likelihood)
    assert list(v.to_parameters()) == ["first.weight", "first.bias", "out"]
    assert {k: t.shape for k, t in v.to_parameters().items()}["first.weight"] == (4, 3)
    want = expected(mlp, p, x, y, likelihood, damping=0.1)
    assert torch.allclose(flat(v.to_parameters()), want, rtol=1e-9)
    other = natural_gradient(
        mlp, Dense(), x, y, Empirical(y), damping=0.1, parameters=p, likelihood=likelihood
    )  # the empirical covariance is not the Fisher
    assert not torch.allclose(flat(other.to_parameters()), want, rtol=1e-2)


def test_a_gaussian_in_closed_form():
    """Mean m and log scale s of independent data: F = diag(1/σ², 2)."""
    y = torch.randn(50, 1) * 3 + 1
    p = {"m": torch.tensor(0.3), "s": torch.tensor(0.5)}

    def f(p, x):
        return torch.stack([p["m"], p["s"]]).expand(len(x), 2)

    v = natural_gradient(f, Dense(), torch.zeros(50, 1), y, parameters=p, likelihood=GaussianMeanScale())
    variance = (2 * p["s"]).exp()
    want = {"m": p["m"] - y.mean(), "s": (1 - ((y - p["m"]) ** 2).mean() / variance) / 2}
    assert all(torch.allclose(v.to_parameters()[k], want[k]) for k in p)
    assert v.to_parameters()["m"].shape == ()


def test_a_lone_tensor_and_logistic_regression_in_closed_form():
    w, x, y = torch.randn(3), torch.randn(40, 3), torch.randint(0, 2, (40, 1)).double()
    v = natural_gradient(lambda w, x: x @ w[:, None], Dense(), x, y, parameters=w, likelihood=Bernoulli())
    mu = (x @ w).sigmoid()
    want = torch.linalg.solve(x.mT @ (x * (mu * (1 - mu))[:, None]), x.mT @ (mu - y[:, 0]))
    assert torch.allclose(v.to_parameters()["parameters"], want)


def test_a_function_is_the_network_it_computes():
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2, bias=False))
    p = {
        "first": {"weight": module[0].weight.detach(), "bias": module[0].bias.detach()},
        "out": module[2].weight.detach(),
    }
    x, y = torch.randn(8, 3), torch.randint(0, 2, (8,))
    read = Network.from_torch(module, Categorical(), example=x)
    plain = Network.from_function(mlp, p, Categorical(), example=x)
    assert set(plain.coverage().constant) == {"first.weight", "first.bias", "out"}
    typed = natural_gradient(read, Dense(), x, y, damping=1e-2)
    bare = natural_gradient(plain, Dense(), x, y, damping=1e-2)
    assert torch.allclose(flat(typed.to_parameters()), flat(bare.to_parameters()), rtol=1e-9)
    assert torch.allclose(read.pushforward(typed, x), plain.pushforward(bare, x), rtol=1e-9)
    layerwise = [natural_gradient(network, KFAC(), x, y, damping=1e-2) for network in (read, plain)]
    assert not torch.allclose(flat(layerwise[0].to_parameters()), flat(layerwise[1].to_parameters()))  # no layers there


def test_moving_the_network_moves_the_tensors_given():
    p = {"w": torch.randn(2, 3)}
    network = Network.from_function(lambda p, x: x @ p["w"].mT, p, Gaussian())
    before = p["w"].clone()
    x, y = torch.randn(7, 3), torch.randn(7, 2)
    df = natural_gradient(network, EuclideanMetric(), x, y)
    network.move_(df, step=-0.5)
    assert torch.allclose(p["w"], before - 0.5 * df.to_parameters()["w"])
    assert torch.equal(network.module.as_given(network.parameters)["w"], p["w"])


def test_a_vector_keeps_its_names_and_nothing_more():
    def f(p, x):
        return x @ p.mT

    x, y, w = torch.randn(6, 3), torch.randn(6, 2), torch.randn(2, 3)
    v = 2 * natural_gradient(f, EuclideanMetric(), x, y, parameters=w, likelihood=Gaussian())
    gc.collect()
    assert list(v.to_parameters()) == ["parameters"]
    module = weakref.ref(next(iter(KEPT.values())).module)
    del v
    gc.collect()
    assert module() is None and not KEPT


def test_trees_of_every_make():
    Pair = namedtuple("Pair", "scale shift")
    p = [torch.randn(3), Pair(torch.tensor(2.0), torch.randn(1)), {"to": torch.randn(3), "a.b": torch.ones(1)}, 5, None]

    def f(p, x, z):
        (w, pair, d, five, _) = p
        return ((x * w * d["to"]).sum(-1, keepdim=True) * pair.scale + pair.shift) * d["a.b"] + five * z

    network = Network.from_function(f, p, Gaussian(), example=(torch.randn(4, 3), torch.randn(4, 1)))
    assert list(network.parameters) == ["0", "1.scale", "1.shift", "2.to", "2.a.b"]
    v = natural_gradient(network, Dense(), (torch.randn(4, 3), torch.randn(4, 1)), torch.randn(4, 1), damping=1.0)
    assert v.to_parameters()["1.scale"].shape == ()


def test_a_tensor_given_twice_is_one_parameter():
    w = torch.randn(3)
    network = Network.from_function(lambda p, x: x @ (p["a"] * p["b"])[:, None], {"a": w, "b": w}, Gaussian())
    x, y = torch.randn(6, 3), torch.randn(6, 1)
    v = natural_gradient(network, EuclideanMetric(), x, y)
    assert list(v.to_parameters()) == ["a"]
    want = torch.func.grad(lambda w: Gaussian().loss(x @ (w * w)[:, None], y))(w)
    assert torch.allclose(v.to_parameters()["a"], want)


def coupled(p, x):
    return (x - x.mean(0)) @ p.mT


def noisy(p, x):
    return x @ p.mT + torch.randn(len(x), 1)


@pytest.mark.parametrize("f", [coupled, noisy])
def test_examples_that_mix_and_chance_are_refused(f):
    x, y, w = torch.randn(6, 3), torch.randn(6, 2), torch.randn(2, 3)
    with pytest.raises(UnsupportedLayer, match=f"output of {f.__name__} at an example is another one when the example"):
        Network.from_function(f, w, Gaussian(), example=x)
    network = Network.from_function(f, w, Gaussian())
    with pytest.raises(UnsupportedLayer, match="let f treat every example by itself"):
        network.observe(x)
    Network.from_function(lambda w, x: x @ w.mT, w, Gaussian(), example=x).observe(x)  # the control
    with pytest.raises(UnsupportedLayer, match="another one when the example stands alone"):
        natural_gradient(f, Dense(), x, y, parameters=w, likelihood=Gaussian())


def test_errors_of_from_function():
    with pytest.raises(InvalidSetting, match=r"got a module, expected a function .* Network.from_torch\(module"):
        Network.from_function(nn.Linear(2, 2), torch.ones(2), Gaussian())
    with pytest.raises(InvalidSetting, match="expected a function f"):
        Network.from_function(3, torch.ones(2), Gaussian())
    with pytest.raises(
        InvalidSetting, match=r"expected a floating-point tensor or a tree of them .*, got dict with none"
    ):
        Network.from_function(mlp, {"n": 3}, Gaussian())
    with pytest.raises(InvalidSetting, match=r"two parameters are called 'a\.b'"):
        Network.from_function(mlp, {"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, Gaussian())
    with pytest.raises(UnsupportedLayer, match="the parameter 'w' is complex"):
        Network.from_function(mlp, {"w": torch.ones(1, dtype=torch.complex128)}, Gaussian())
