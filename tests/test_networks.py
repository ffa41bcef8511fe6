"""Any module: every parameter has a place, and the typed samples give the exact Fisher, products and gradients."""

import copy
import gc
import re

import pytest
import torch
from networks_zoo import ZOO, Coupled, Spoiled, Tokens, WeightElsewhere, in_parameters, oracle
from torch import nn

from riemann_ng.elements import Covector, Vector
from riemann_ng.errors import (
    InvalidTargets,
    NonFinite,
    ObservationMismatch,
    ShapeMismatch,
    SpaceMismatch,
    UnsupportedLayer,
)
from riemann_ng.inner_products import second_moment
from riemann_ng.likelihoods import Bernoulli, Categorical, EuclideanOutput, Gaussian
from riemann_ng.networks import CurvatureProp, Empirical, Exact, InputsOnly, MonteCarlo, Network


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def zoo(name, n=5, likelihood=None, example=True):
    make, batch = ZOO[name]
    model, x = make(), batch(n)
    model(x)
    return model, x, Network.from_torch(model, likelihood or Categorical(), x if example else None)


@pytest.mark.parametrize("n", [1, 3, 5])
@pytest.mark.parametrize("name", ZOO)
def test_the_exact_fisher_is_the_dense_one(name, n):
    model, x, network = zoo(name, n)
    observation = network.observe(x)
    J = oracle(model, network, x)
    F = torch.einsum("nop,noq,nqr->pr", J, Categorical().matrix(observation.outputs), J) / n
    P = in_parameters(network)
    assert torch.allclose(second_moment(observation.gradients).matrix(), P @ F @ P.mT, atol=1e-12)


@pytest.mark.parametrize("name", ZOO)
def test_pushforward_is_the_jacobian(name):
    model, x, network = zoo(name)
    v = Vector(network.tangent_space, torch.randn(network.tangent_space.dim))
    J = oracle(model, network, x)
    flat = torch.cat([t.flatten() for t in v.to_parameters().values()])
    assert torch.allclose(network.pushforward(v, x).flatten(1), J @ flat)


@pytest.mark.parametrize("name", ZOO)
def test_parameters_and_back(name):
    _, _, network = zoo(name)
    v = Vector(network.tangent_space, torch.randn(network.tangent_space.dim))
    assert torch.equal(network.vector(v.to_parameters()).data, v.data)
    shapes = {name: p.shape for name, p in network.parameters.items()}
    assert {name: t.shape for name, t in v.to_parameters().items()} == shapes
    P = in_parameters(network)
    assert torch.equal(P @ P.mT, torch.eye(len(P)))  # every parameter once


@pytest.mark.parametrize("name", ["mlp", "tokens", "tied", "convolutional"])
def test_the_differential_is_the_mean_gradient_and_a_step_moves_the_parameters(name):
    _, x, network = zoo(name)
    z = network.outputs(x)
    y = torch.randint(0, z.shape[-1], z.shape[:-1])
    df = network.differential(x, y)
    empirical = network.observe(x, Empirical(y)).gradients
    assert torch.allclose(empirical.dense().mean((0, 1, 2)), df.data)
    before, loss = network.parameters_point(), network.likelihood.loss(network.outputs(x), y)
    step = Vector(network.tangent_space, df.data)
    network.move_(step, -1e-6)
    assert torch.allclose((network.parameters_point() - before).data, -1e-6 * df.data, atol=1e-12)
    change = network.likelihood.loss(network.outputs(x), y) - loss
    assert torch.allclose(change, -1e-6 * df(step), rtol=1e-3)


def test_estimators_agree_in_expectation():
    _, x, network = zoo("mlp", 4)
    F = second_moment(network.observe(x).gradients).matrix()
    for estimator in (MonteCarlo(4000, seed=1), MonteCarlo(1, seed=2), CurvatureProp(seed=1)):
        draws = 1 if isinstance(estimator, MonteCarlo) and estimator.samples > 1 else 3000
        mean = sum(second_moment(network.observe(x, estimator).gradients).matrix() for _ in range(draws)) / draws
        assert float((mean - F).norm() / F.norm()) < 0.06
    y = torch.zeros(4, dtype=torch.long)
    covariance = second_moment(network.observe(x, Empirical(y)).gradients).matrix()
    assert float((covariance - F).norm() / F.norm()) > 0.2  # the data's own labels are no Fisher


def test_label_sampling_repeats_and_leaves_the_global_generator_alone():
    model, x, network = zoo("mlp")
    again = Network.from_torch(model, Categorical())
    state = torch.get_rng_state()
    first, second = (network.observe(x, MonteCarlo(2, seed=3))["0"].cotangents.dense() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, second)
    assert torch.equal(again.observe(x, MonteCarlo(2, seed=3))["0"].cotangents.dense(), first)
    for estimator in (MonteCarlo(2, seed=2**62 + 1), MonteCarlo(2, seed=-(2**40)), CurvatureProp(seed=2**90)):
        assert bool(again.observe(x, estimator)["0"].cotangents.dense().isfinite().all())  # any whole number is a seed


def test_other_output_metrics():
    model, x, network = zoo("mlp")
    J = oracle(model, network, x)
    euclidean = EuclideanOutput()
    observation = network.observe(x, output=euclidean)
    P = in_parameters(network)
    F = torch.einsum("nop,noq->pq", J, J) / 5
    assert torch.allclose(second_moment(observation.gradients).matrix(), P @ F @ P.mT)
    assert observation.output is euclidean


def test_unlabelled_and_partial_batches():
    _, x, network = zoo("tokens", 6)
    inputs = network.observe(x, InputsOnly())
    assert torch.equal(inputs["mix"].inputs.dense(), network.observe(x)["mix"].inputs.dense())
    with pytest.raises(ObservationMismatch, match="'mix' was observed with InputsOnly"):
        inputs["mix"].cotangents  # noqa: B018
    part = network.observe(x, fraction=1 / 3)
    assert part.examples == 2 and part["mix"].sites == 3
    assert torch.equal(part["mix"].inputs.dense(), network.observe(x[:2])["mix"].inputs.dense())


def test_what_hooks_cannot_see_becomes_a_constant_block():
    _, _, elsewhere = zoo("weight elsewhere")
    assert elsewhere.coverage()["first.weight"].block == "constant"
    assert "used elsewhere" in elsewhere.coverage()["first.weight"].assumed
    assert elsewhere.coverage()["second.weight"].block == "affine"
    _, _, tied = zoo("tied")
    assert tied.coverage().constant == ("embed.weight",)
    assert "tied with right" in tied.coverage()["left.weight"].assumed
    _, _, normed = zoo("weight norm")
    assert set(normed.coverage().constant) >= {"0.parametrizations.weight.original0"}


def test_coverage_is_a_table_and_a_value():
    model = Tokens()
    model.out.bias.requires_grad_(False)
    network = Network.from_torch(model, Categorical())
    coverage = network.coverage()
    assert not coverage.verified and "not verified yet" in str(coverage)
    network.verify(torch.randint(0, 6, (4, 3)))
    coverage = network.coverage()
    assert coverage.verified and coverage.frozen == ("out.bias",)
    assert [row.parameter for row in coverage] == list(network.parameters)
    assert len(coverage) == len(str(coverage).splitlines()) - 2
    assert network.tangent_space["out"].shape == (6, 4)
    assert "position" in coverage.constant


def test_a_network_reads_and_leaves_no_trace():
    model, x, network = zoo("tokens")
    state = copy.deepcopy(model.state_dict())
    for estimator in (Exact(), MonteCarlo(), CurvatureProp(), InputsOnly()):
        network.observe(x, estimator)
    assert all(p.grad is None for p in model.parameters())
    assert all(not m._forward_hooks and "forward" not in vars(m) for m in model.modules())
    assert all(torch.equal(t, state[k]) for k, t in model.state_dict().items())
    train = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    before = copy.deepcopy(train.state_dict())
    Network.from_torch(train, Categorical(), torch.randn(5, 3)).observe(torch.randn(5, 3))
    assert train[1].training and all(torch.equal(t, before[k]) for k, t in train.state_dict().items())


def test_networks_do_not_outlive_their_names():
    _, _, network = zoo("mlp")
    v = Vector(network.tangent_space, torch.randn(network.tangent_space.dim))
    del network
    gc.collect()
    with pytest.raises(SpaceMismatch, match="no tangent space of a network"):
        v.to_parameters()


def test_two_networks_never_share_a_space():
    model, x, network = zoo("mlp")
    other = Network.from_torch(model, Categorical(), x)
    with pytest.raises(SpaceMismatch):
        network.move_(Vector(other.tangent_space, torch.zeros(other.tangent_space.dim)))
    assert Network.from_torch(model, Categorical(), x, name="mine").tangent_space.bases[0] == "mine/0.S"


class Poisoned(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.second(torch.log(self.first(x) * 0 - 1))


class Shapeless(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 2)

    def forward(self, x):
        return self.first(x).sum(0)


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 2)

    def forward(self, x):
        return {"a": self.first(x), "b": self.first(x)}


def plain():
    return nn.Linear(3, 2)


x3, zeros8 = torch.randn(5, 3, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)


@pytest.mark.parametrize(
    ("make", "use", "error", "text"),
    [
        (Poisoned, lambda n: n.observe(x3), NonFinite, "the output of 'second' holds NaN"),
        (Spoiled, lambda n: n.observe(x3), UnsupportedLayer, "changed in place after it was needed"),
        (Shapeless, lambda n: n.observe(x3), ShapeMismatch, "5 examples went in and an output of shape [2] came out"),
        (TwoOutputs, lambda n: n.observe(x3), UnsupportedLayer, "from_torch(..., read=lambda out: out['name'])"),
        (plain, lambda n: n.observe(x3[:0]), ShapeMismatch, "a batch of no examples"),
        (plain, lambda n: n.observe(x3, Empirical(torch.randn(5))), InvalidTargets, "integer classes"),
        (plain, lambda n: n.differential(x3, torch.full((5,), 7)), InvalidTargets, "7"),
        (plain, lambda n: n.vector({}), SpaceMismatch, "bias, weight are missing or unknown"),
        (plain, lambda n: n.move_(n.differential(x3, torch.zeros(5).long())), SpaceMismatch, "is a covector"),
        (plain, lambda n: n.move_(Vector(n.tangent_space, torch.full((8,), torch.nan))), NonFinite, "was moved"),
        (plain, lambda n: n.pushforward(Covector(n.tangent_space, zeros8), x3), SpaceMismatch, "tangent vector"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(make, use, error, text):
    model = make()
    network = Network.from_torch(model, Categorical())
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=re.escape(text)):
        use(network)
    assert all(torch.equal(t, state[k]) for k, t in model.state_dict().items())
    assert all(p.grad is None and not m._forward_hooks for m in model.modules() for p in m.parameters())


def test_a_model_without_trainable_parameters_is_refused():
    model = nn.Linear(3, 2).requires_grad_(False)
    with pytest.raises(UnsupportedLayer, match="no trainable parameters \\(2 frozen ones\\)"):
        Network.from_torch(model, Categorical())


def test_memory_is_flat_over_many_observations():
    _, x, network = zoo("tokens")

    def alive():
        gc.collect()
        return sum(1 for o in gc.get_objects() if isinstance(o, torch.Tensor))

    network.observe(x, MonteCarlo())
    before = alive()
    for _ in range(200):
        network.observe(x, MonteCarlo())
    assert alive() <= before


@pytest.mark.parametrize("likelihood", [Gaussian(2.0), Bernoulli()])
def test_likelihoods_give_their_own_fisher(likelihood):
    model, x, network = zoo("mlp", likelihood=likelihood)
    J = oracle(model, network, x)
    observation = network.observe(x)
    F = torch.einsum("nop,noq,nqr->pr", J, likelihood.matrix(observation.outputs), J) / 5
    P = in_parameters(network)
    assert torch.allclose(second_moment(observation.gradients).matrix(), P @ F @ P.mT)


def test_examples_that_mix_are_told():
    network = Network.from_torch(Coupled(), Categorical(), torch.randn(5, 3))
    assert network.coverage()["first.weight"].block == "affine"  # the layer itself keeps examples apart


def test_unverified_networks_verify_on_the_first_batch():
    network = Network.from_torch(WeightElsewhere(), Categorical())
    network.observe(x3)
    assert network.coverage().verified and "first.weight" in network.coverage().constant
