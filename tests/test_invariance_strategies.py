"""Strategies for networks: what they draw is read, moved and stepped; it shrinks, and prints as code.

With them the law of K-FAC: it commutes with affine frames, in any network drawn. Descent does not.
"""

import re

import pytest
import torch
from hypothesis import Phase, assume, find, given, settings
from hypothesis import strategies as st
from torch import nn

from riemann_ng.elements import Vector
from riemann_ng.errors import InvalidSetting
from riemann_ng.inner_products import Euclidean
from riemann_ng.likelihoods import Categorical, Likelihood
from riemann_ng.metrics import KFAC, EuclideanMetric, FixedMetric
from riemann_ng.natural_gradient import natural_gradient
from riemann_ng.networks import Network
from riemann_ng.reparametrize import GROUPS
from riemann_ng.testing import architectures, network_cases
from riemann_ng.testing.architectures import ARCHITECTURES
from riemann_ng.testing.draws import Draw
from riemann_ng.testing.networks import batches, likelihoods, network_frames, networks, twin_cases
from riemann_ng.testing.networks import network_cases as cases

N = settings.default.max_examples
FEW = settings(max_examples=N // 10)
MANY = settings(max_examples=N // 4 if N <= 100 else N // 2)
SEARCH = settings(
    database=None, derandomize=True, phases=[Phase.generate, Phase.shrink]
)  # `find` goes astray in "explain"


def run_code(text):
    names = {}
    exec(text, names)
    return names


def minimal(strategy, condition=lambda case: True):
    return find(strategy, condition, settings=SEARCH)


# What is drawn


@pytest.mark.parametrize("kind", ARCHITECTURES)
@FEW
@given(data=st.data())
def test_every_drawn_network_is_read_and_stepped(kind, data):
    case = data.draw(cases([kind]))
    network = case.network()
    blocks = {row.block for row in network.coverage()}
    assert blocks <= {"affine"} or "TiedTokens" in repr(case)
    case.likelihood.validate(network.outputs(case.x), case.y)
    step = natural_gradient(network, KFAC(), case.x, case.y, modulo_kernel=EuclideanMetric())
    df = network.differential(case.x, case.y)
    assert bool(step.components.isfinite().all()) and float(df(step)) > -1e-9


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_case_is_the_same_again_and_so_is_its_code(kind):
    before = torch.random.get_rng_state()
    for seed in range(12):
        case = network_cases.network_case(Draw.seeded(seed), kind)
        again = run_code(case.code())["case"]
        for other in (case, again):
            for p, q in zip(case.module().parameters(), other.module().parameters(), strict=True):
                assert torch.equal(p, q) and p.dtype == torch.float64
        assert torch.equal(case.x, again.x) and torch.equal(case.y, again.y)
        assert torch.equal(case.module()(case.x), again.module()(again.x))
        assert not torch.equal(case.batch(4, stream=1)[0], case.batch(4, stream=2)[0]) or case.tokens
    assert torch.equal(torch.random.get_rng_state(), before) and torch.get_default_dtype() == torch.float32


def test_all_layers_are_drawn():
    seen = set()
    for kind in ARCHITECTURES:
        for seed in range(40):
            seen |= {type(m) for m in network_cases.network_case(Draw.seeded(seed), kind).module().modules()}
    assert seen >= {
        nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Embedding, nn.LayerNorm,
        nn.RMSNorm, nn.GroupNorm, nn.BatchNorm1d, nn.RNN, nn.LSTM, nn.GRU, nn.MultiheadAttention,
        architectures.Twice, architectures.TiedTokens,
    }  # fmt: skip


def test_convolutions_are_drawn_with_every_option():
    text = " ".join(
        repr(network_cases.network_case(Draw.seeded(s), k)) for s in range(60) for k in ("conv1d", "conv2d")
    )
    for option in ("groups=2", "stride=2", "dilation=2", "padding=1", "padding='same'", "'circular'", "bias=False"):
        assert option in text


@FEW
@given(data=st.data())
def test_likelihoods_fit_their_targets(data):
    likelihood, z = data.draw(likelihoods(3)), torch.randn(5, 3, dtype=torch.float64)
    assert isinstance(likelihood, Likelihood)
    likelihood.validate(z, likelihood.sample(z, torch.Generator().manual_seed(0))[0])
    assert not isinstance(data.draw(likelihoods(1)), Categorical)


@FEW
@given(data=st.data())
def test_networks_batches_and_frames(data):
    assert isinstance(data.draw(networks(["mlp"])), Network)
    case = data.draw(cases(["mlp", "tokens"], Categorical()))
    assert case.likelihood == Categorical() or isinstance(case.likelihood, Categorical)
    x, y = data.draw(batches(case, 2, 5))
    network = case.network()
    assert 2 <= len(x) == len(y) <= 5
    network.likelihood.validate(network.outputs(x), y)
    frames = data.draw(network_frames(network, case.x, group="orthogonal"))
    assert len(frames) > 0 and frames.group == "orthogonal"


@MANY
@given(case=twin_cases())
def test_twins_compute_the_same_function(case):
    assert case.group in GROUPS
    with torch.no_grad():
        z = case.network.outputs(case.x)
        moved = case.twin.module(case.twin.inputs(case.x))
        assert torch.allclose(case.twin.to_original(moved), z, atol=1e-9)
    names = vars(architectures) | vars(network_cases) | {"nn": nn}
    again = eval(repr(case), names)
    assert torch.equal(again.twin.module(again.twin.inputs(again.x)), moved)


def test_kinds_are_checked():
    with pytest.raises(InvalidSetting, match=r"no kind of network is called 'cnn'\. The kinds are mlp, conv1d"):
        network_cases.network_case(Draw.seeded(0), "cnn")


# What it shrinks to


def test_cases_shrink_to_the_smallest_layer_and_batch():
    assert "nn.Sequential(nn.Linear(1, 1)), (1,), Gaussian(), examples=6, seed=0)" in repr(minimal(cases()))
    grouped = minimal(cases(), lambda case: "groups=2" in repr(case))
    assert "Conv1d(2, 2, 1, groups=2), nn.Tanh(), " in repr(grouped) and "nn.Linear(2, 1)" in repr(grouped)
    deep = minimal(cases(["mlp"]), lambda case: sum(isinstance(m, nn.Linear) for m in case.module().modules()) == 2)
    assert "nn.Sequential(nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 1))" in repr(deep)
    assert "nn.LSTM(1, 1, batch_first=True)" in repr(minimal(cases(), lambda case: "LSTM" in repr(case)))


# The law of K-FAC


def moved(network, step, x):
    return network.pushforward(step, x)


def kfac_step(network, x, y, reference):
    return natural_gradient(network, KFAC(), x, y, modulo_kernel=FixedMetric(reference))


def descent(network, x, y, reference):
    return Vector(network.tangent_space, network.differential(x, y).data)


def mismatch(case, update):
    """How far the twin's outputs go from where the network's go, relative to how far they go."""
    reference = Euclidean(case.network.tangent_space)
    x, there = case.x, case.twin.inputs(case.x)
    here = case.network.pushforward(update(case.network, x, case.y, reference), x)
    step = update(case.twin.network, there, case.y, case.twin.transport(reference))
    seen = case.twin.to_original(case.twin.network.pushforward(step, there))
    seen = seen - case.twin.to_original(torch.zeros_like(here))  # a difference of outputs is not translated
    return float((here - seen).abs().max() / here.abs().max())


def rounding(case, update, size=1e-13):
    """The same for the network against itself with its parameters shaken."""
    shaken = case.case.network()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in shaken.parameters.values():
            p.mul_(1 + size * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    both = [
        n.pushforward(update(n, case.x, case.y, Euclidean(n.tangent_space)), case.x) for n in (case.network, shaken)
    ]
    return float((both[0] - both[1]).abs().max() / both[0].abs().max())


def well_posed(case):
    """Whether it is plain what the ranks of K-FAC's factors are: no singular value between zero and the others."""
    for layer in case.network.observe(case.x).layers.values():
        for sample in (layer.inputs, layer.cotangents):
            dims = sample.space.shape if len(sample.space.shape) == 2 else (1, sample.space.dim)
            values = torch.linalg.svdvals(sample.dense().reshape(-1, *dims).transpose(0, 1))
            relative = values / values[:, :1].clamp(min=1e-300)
            if bool(((relative > 1e-13) & (relative < 1e-5)).any()):
                return False
    return True


@MANY
@given(case=twin_cases(group="affine"))
def test_kfac_commutes_with_affine_frames(case):
    assume(well_posed(case))
    assert mismatch(case, kfac_step) <= 1e-10 + 10 * rounding(case, kfac_step)


@MANY
@given(case=twin_cases(group="orthogonal"))
def test_descent_commutes_with_orthogonal_frames(case):
    assert mismatch(case, descent) <= 1e-10


def test_descent_does_not_commute_with_affine_frames():
    """And the smallest case that shows it is a lone linear map of one number."""
    case = minimal(twin_cases(group="affine"), lambda case: mismatch(case, descent) > 0.05)
    assert re.search(r"nn.Sequential\(nn.Linear\(1, 1\)\), \(1,\), Gaussian\(\), examples=6, seed=0\)", repr(case))


def test_separate_biases_do_not_commute_with_translations():
    def separate(network, x, y, reference):
        return natural_gradient(network, KFAC(bias="separate"), x, y, modulo_kernel=FixedMetric(reference))

    case = minimal(twin_cases(["mlp"], group="translations"), lambda case: mismatch(case, separate) > 0.05)
    assert mismatch(case, kfac_step) < 1e-9
