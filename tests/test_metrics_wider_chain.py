"""Block-tridiagonal K-FAC: a chain with K-FAC's moments and an inverse that couples neighbours alone."""

from itertools import pairwise

import pytest
import torch
from networks_zoo import ZOO
from test_reparametrize_laws import GROUP_OF, well_posed
from torch import nn
from twin_cases import twin_of

from riemann_ng.elements import Covector
from riemann_ng.errors import (
    DegenerateMetric,
    InvalidSetting,
    NotClosed,
    ObservationMismatch,
    SpaceMismatch,
    UnsupportedLayer,
)
from riemann_ng.inner_products import Chain, Euclidean, Gram, InnerProduct, Kronecker, Link, damp_factors, second_moment
from riemann_ng.likelihoods import Bernoulli, Gaussian
from riemann_ng.metrics import KFAC, EuclideanMetric, FixedMetric, MetricAverage
from riemann_ng.metrics.tridiagonal import BlockTridiagonalKFAC
from riemann_ng.natural_gradient import natural_gradient
from riemann_ng.networks import Empirical, Exact, InputsOnly, MonteCarlo, Network
from riemann_ng.optim import Constant, Factored, NaturalGradient
from riemann_ng.spaces import Space
from riemann_ng.testing.kinds_of_chains import markov


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def off(a, b):
    return float((a - b).norm() / b.norm())


def tanh_net(*dims, linear=()):
    layers = []
    for i, (a, b) in enumerate(pairwise(dims)):
        layers += [nn.Linear(a, b)] + ([nn.Tanh()] if i < len(dims) - 2 and i not in linear else [])
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def read(model, x):
    return Network.from_torch(model, Bernoulli(), x)


def samples(layer, sharing):
    """Inputs and cotangents, by hand: (examples, sites, dim) and (examples, draws, sites, dim)."""
    a, g = layer.inputs.dense()[:, 0], layer.aligned.dense()
    if sharing == "reduce":
        a, g = a.mean(1, keepdim=True), g.sum(2, keepdim=True)
    return a, g.reshape(*g.shape[:3], -1)


def moments(layer, after, sharing, weight):
    (a, g), (b, h) = samples(layer, sharing), samples(after, sharing)
    A = torch.einsum("nti,ntj->ij", a, b) / (len(a) * a.shape[1])
    G = torch.einsum("nkti,nktj->ij", g, h) * weight
    return torch.kron(G, A)


def dense(observation, sharing="expand", weight=None):
    """The covariance of the chain, by what a Markov chain is."""
    layers = list(observation.layers.values())
    weight = 1 / len(observation.outputs) if weight is None else weight
    count = range(len(layers))
    return markov([[moments(layers[i], layers[j], sharing, weight) for j in count] for i in count])


# --- what it is -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", [Exact(), MonteCarlo(3), "empirical"], ids=str)
def test_it_is_the_chain_with_these_moments(estimator):
    model, x = tanh_net(3, 4, 5, 3, 2), torch.randn(90, 3)
    network = read(model, x)
    y = torch.randint(0, 2, (90, 2)).double()
    chosen = Empirical(y) if estimator == "empirical" else estimator
    observation = network.observe(x, chosen)
    g = BlockTridiagonalKFAC().at(observation)
    weight = 1 / 270 if isinstance(chosen, MonteCarlo) else None
    F = dense(observation, weight=weight)
    assert isinstance(g, Chain) and off(g.matrix(), F) < 1e-12
    inverse = g.dual.matrix()
    assert off(inverse @ F, torch.eye(len(F))) < 1e-7
    where = list(network.tangent_space.slices.values())
    for i in range(4):
        for j in range(4):
            block = torch.linalg.inv(F)[where[i], where[j]]
            scale = inverse[where[i], where[i]].norm() * inverse[where[j], where[j]].norm()
            if abs(i - j) > 1:
                assert float(inverse[where[i], where[j]].abs().max()) == 0
                assert float(block.norm()) < 1e-6 * float(scale) ** 0.5
            elif i != j:
                assert float(block.norm()) > 1e-3 * float(scale) ** 0.5  # and neighbours are coupled
    v = torch.randn(len(F))
    E = g.frame().matrix(v)
    assert off(E @ E.mT, inverse) < 1e-12 and abs(float(g.logdet() - torch.linalg.slogdet(F)[1])) < 1e-6


def test_it_agrees_with_the_published_algorithm():
    """V1, V2, V3 of the authors' code, with their symmetric roots."""
    model, x = tanh_net(3, 4, 5, 2), torch.randn(90, 3)
    network = read(model, x)
    observation = network.observe(x)
    layers = list(observation.layers.values())
    A = {(i, j): torch.einsum("nti,ntj->ij", samples(layers[i], "")[0], samples(layers[j], "")[0]) / 90
         for i in range(3) for j in range(3)}  # fmt: skip
    G = {(i, j): torch.einsum("nkti,nktj->ij", samples(layers[i], "")[1], samples(layers[j], "")[1]) / 90
         for i in range(3) for j in range(3)}  # fmt: skip
    psi = {(s, i): M[i, i + 1] @ torch.linalg.inv(M[i + 1, i + 1]) for s, M in (("A", A), ("G", G)) for i in range(2)}
    xi = Covector(network.tangent_space, torch.randn(network.tangent_space.dim))
    V = [xi[path] for path in network.blocks]
    V1 = [V[i] - psi["G", i] @ V[i + 1] @ psi["A", i].mT if i < 2 else V[i] for i in range(3)]
    V2 = []
    for i in range(3):
        if i == 2:
            V2.append(torch.linalg.inv(G[2, 2]) @ V1[2] @ torch.linalg.inv(A[2, 2]))
            continue
        K, d = {}, {}
        for s, M in (("A", A), ("G", G)):
            values, vectors = torch.linalg.eigh(M[i, i])
            root = vectors @ torch.diag(values.rsqrt()) @ vectors.mT
            d[s], U = torch.linalg.eigh(root @ psi[s, i] @ M[i + 1, i + 1] @ psi[s, i].mT @ root)
            K[s] = root @ U
        inner = (K["G"].mT @ V1[i] @ K["A"]) / (1 - d["G"][:, None] * d["A"])
        V2.append(K["G"] @ inner @ K["A"].mT)
    V3 = [V2[i] - psi["G", i - 1].mT @ V2[i - 1] @ psi["A", i - 1] if i else V2[i] for i in range(3)]
    v = BlockTridiagonalKFAC().at(observation).sharp(xi)
    for path, expected in zip(network.blocks, V3, strict=True):
        assert off(v[path], expected) < 1e-9


def test_it_is_nearer_to_the_inverse_of_the_fisher_than_kfac():
    """The point of it: with what neighbours say of each other, the quadratic model is better."""
    model, x = tanh_net(4, 5, 5, 5, 3), torch.randn(400, 4)
    network = read(model, x)
    y = torch.randint(0, 2, (400, 3)).double()
    F, df = network.fisher(x).matrix(), network.differential(x, y)
    F = F + 1e-3 * torch.eye(len(F))
    decrease = {}
    for metric in (KFAC(), BlockTridiagonalKFAC()):
        v = natural_gradient(network, metric.damp_factors(1e-3, EuclideanMetric()), x, y).data
        decrease[type(metric).__name__] = float((df.data @ v) ** 2 / (v @ F @ v))
    assert decrease["BlockTridiagonalKFAC"] > 1.05 * decrease["KFAC"]


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_sites_are_paired(sharing):
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(2, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.second(torch.tanh(self.first(x))).sum(1)

    model, x = Sequence(), torch.randn(60, 3, 2)
    observation = read(model, x).observe(x)
    g = BlockTridiagonalKFAC(sharing).at(observation)
    assert off(g.matrix(), dense(observation, sharing)) < 1e-12
    other = BlockTridiagonalKFAC("expand" if sharing == "reduce" else "reduce").at(observation)
    assert off(other.matrix(), g.matrix()) > 1e-2


def test_padding_weighs_nothing():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4))
    x, there = torch.randint(0, 9, (40, 5)), torch.arange(5) < torch.randint(1, 6, (40, 1))
    network = Network.from_torch(model, Gaussian(), x)
    observation = network.observe(x, mask=there)
    g = BlockTridiagonalKFAC().at(observation)
    assert set(g.links) == {"1"}
    a, b = (observation[p].inputs.dense()[:, 0][there] for p in ("1", "3"))
    assert torch.allclose(g.links["1"].A, a.mT @ b / len(a))
    c, d = (observation[p].aligned.dense().movedim(2, 1)[there] for p in ("1", "3"))
    assert torch.allclose(g.links["1"].G, torch.einsum("ski,skj->ij", c, d) / 40)


def test_many_exact_directions_are_aligned():
    """More outputs than are stacked, through a narrow layer, where cotangents are rotated layer by layer."""
    model, x = tanh_net(6, 4, 3, 12), torch.randn(40, 6)
    network = Network.from_torch(model, Gaussian(), x)
    few = BlockTridiagonalKFAC().at(network.observe(x, Exact(chunk=5)))
    assert off(few.links["0"].G, BlockTridiagonalKFAC().at(network.observe(x)).links["0"].G) < 1e-12


@pytest.mark.parametrize("name", ["convolutional", "conv1d", "tokens", "tied"])
def test_what_cannot_be_linked_stands_by_itself(name):
    make, batch = ZOO[name]
    model, x = make(), batch(9)
    z = model(x)
    network = Network.from_torch(model, Gaussian(), x)
    observation = network.observe(x)
    g, kfac = BlockTridiagonalKFAC("reduce").at(observation), KFAC("reduce").at(observation)
    chained = {*g.links, *(list(g.parts)[list(g.parts).index(name) + 1] for name in g.links)}
    for path, part in g.parts.items():
        assert torch.allclose(part.matrix(), kfac.parts[path].matrix())
        if path not in chained:
            where = network.tangent_space.slices[path]
            assert torch.allclose(g.matrix()[where, where], part.matrix()) and z.ndim > 1
    assert ("mix" in chained) == (name == "tokens")
    xi = Covector(network.tangent_space, torch.randn(network.tangent_space.dim))
    damped = BlockTridiagonalKFAC("reduce").damp_factors(0.1, EuclideanMetric()).at(observation)
    assert torch.allclose(damped.flat(damped.sharp(xi)).data, xi.data, atol=1e-8)


def test_a_lone_layer_is_kfac():
    model, x = nn.Linear(3, 2), torch.randn(30, 3)
    observation = read(model, x).observe(x)
    g = BlockTridiagonalKFAC().at(observation)
    assert not g.links and torch.allclose(g.matrix(), KFAC().at(observation).matrix())


# --- beside linear layers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dims", "linear", "path"), [((4, 3, 4, 3), 0, "0"), ((4, 3, 2, 4, 3), 1, "2")])
def test_beside_a_linear_layer_it_is_degenerate_and_says_so(dims, linear, path):
    model, x = tanh_net(*dims, linear=(linear,)), torch.randn(200, 4)
    network = read(model, x)
    g = BlockTridiagonalKFAC().at(network.observe(x))
    df = network.differential(x, torch.randint(0, 2, (200, 3)).double())
    with pytest.raises(DegenerateMetric, match=rf"explains all of '{path}' in \d+ directions, as it does"):
        g.sharp(df)
    assert KFAC().at(network.observe(x)).sharp(df).data.isfinite().all()  # K-FAC alone is not affected
    damped = BlockTridiagonalKFAC().damp_factors(1e-2, EuclideanMetric()).at(network.observe(x))
    assert torch.allclose(damped.flat(damped.sharp(df)).data, df.data, atol=1e-9)


def test_a_code_layer_of_width_two_has_six_directions():
    """k (k + 1) of them: maps of the code, and its translations."""
    model, x = tanh_net(4, 5, 2, 5, 4, linear=(1,)), torch.randn(300, 4)
    network = read(model, x)
    g = BlockTridiagonalKFAC().at(network.observe(x))
    with pytest.raises(DegenerateMetric, match="in 6 directions"):
        g.factorization()


def test_damped_before_anything_is_regressed():
    model, x = tanh_net(3, 4, 5, 2), torch.randn(60, 3)
    network = read(model, x)
    g = BlockTridiagonalKFAC().at(network.observe(x))
    reference = Euclidean(g.space)
    damped = damp_factors(g, 0.2, reference)
    assert isinstance(damped, Chain) and damped.links["0"] is g.links["0"]
    for path, part in g.parts.items():
        expected = damp_factors(part, 0.2, reference.summands()[path])
        assert torch.allclose(damped.parts[path].matrix(), expected.matrix())
    where = network.tangent_space.slices
    assert torch.allclose(damped.matrix()[where["0"], where["2"]], g.matrix()[where["0"], where["2"]])
    assert not torch.allclose(damped.matrix()[where["0"], where["4"]], g.matrix()[where["0"], where["4"]])


# --- memory, settings -------------------------------------------------------------------------------------------------


def test_averages_and_states():
    model, x = tanh_net(3, 4, 5, 2), torch.randn(120, 3)
    network = read(model, x)
    metric, average = BlockTridiagonalKFAC(), MetricAverage(BlockTridiagonalKFAC(), 0.5)
    for part in x.chunk(3):
        g = average.update(network.observe(part))
    again = InnerProduct.from_state(g.space, g.state())
    assert torch.equal(again.matrix(), g.matrix())
    halves = [metric.at(network.observe(part)) for part in x.chunk(2)]
    mean = halves[0].blend(halves[1], 0.5)
    whole = metric.at(network.observe(x))
    assert off(mean.matrix(), whole.matrix()) < 1e-12  # moments of equal halves average to those of the whole
    with pytest.raises(NotClosed):
        halves[0].blend(KFAC().at(network.observe(x)), 0.5)


def test_in_the_optimizer():
    model, x = tanh_net(3, 4, 2, 4, 2, linear=(1,)), torch.randn(60, 3)
    y = torch.sigmoid(x[:, :2] * 2).round()
    opt = NaturalGradient(
        model,
        Bernoulli(),
        metric=BlockTridiagonalKFAC(),
        damping=Factored(0.05),
        lr=0.1,
        momentum=0.0,
        step_size=Constant(),
    )
    losses = []
    for _ in range(15):
        opt.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(model(x), y, reduction="sum") / 60
        loss.backward()
        opt.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_errors():
    with pytest.raises(InvalidSetting, match="BlockTridiagonalKFAC: sharing='both'"):
        BlockTridiagonalKFAC("both")
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(9, 2))
    x = torch.randn(50, 2, 5)
    observation = read(model, x).observe(x)
    with pytest.raises(UnsupportedLayer, match=r"'0' has 3 sites and '3', which follows it, 1.*sharing='reduce'"):
        BlockTridiagonalKFAC().at(observation)
    assert set(BlockTridiagonalKFAC("reduce").at(observation).links) == {"0"}
    with pytest.raises(ObservationMismatch, match=r"was observed with InputsOnly"):
        BlockTridiagonalKFAC().at(read(model, x).observe(x, InputsOnly()))
    V, W = Space("V", 2), Space("W", 3)
    part = Gram(V, torch.eye(2)) * Gram(W, torch.eye(3))
    with pytest.raises(SpaceMismatch, match=r"the link of 'b' is between .* and None, and links stand"):
        Chain({"a": part, "b": part}, {"b": Link(torch.eye(2), torch.eye(3))})
    with pytest.raises(SpaceMismatch, match=r"has matrices \[2, 2\] and \[2, 2\], expected \[2, 2\] and \[3, 3\]"):
        Chain({"a": part, "b": part}, {"a": Link(torch.eye(2), torch.eye(2))})


# --- symmetry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["mlp", "convolution", "tokens"])
def test_steps_are_carried_along_by_every_frame(which):
    network, x, y = well_posed(which)
    twin = twin_of(network, x, group=GROUP_OF[which])
    metric = BlockTridiagonalKFAC("reduce")
    here = metric.at(network.observe(x))
    for path, block in network.blocks.items():
        assert all(here.keeps(base, "affine") for base in block.space.bases), path
    try:
        step = natural_gradient(network, metric, x, y)
    except DegenerateMetric:  # fewer examples than directions in what is left: damped by data, as it should be
        assert which != "mlp"
        start = KFAC("reduce").at(network.observe(x[:60]))
        start = InnerProduct.from_state(start.space, start.state())
        fixed = {n: FixedMetric(s, "start") for n, s in ((network, start), (twin.network, twin.transport(start)))}
        step = natural_gradient(network, metric.damp_factors(0.1, fixed[network]), x, y)
        there = natural_gradient(twin.network, metric.damp_factors(0.1, fixed[twin.network]), twin.inputs(x), y)
    else:
        there = natural_gradient(twin.network, metric, twin.inputs(x), y)
    assert off(there.data, twin.transport(step).data) < 1e-7


def test_damped_by_data_it_keeps_all_frames_and_by_coordinates_rotations():
    network, x, y = well_posed("mlp")
    start = KFAC().at(network.observe(x[:40]))
    start = InnerProduct.from_state(start.space, start.state())
    metric = BlockTridiagonalKFAC()
    by_data = metric.damp_factors(0.1, FixedMetric(start, "start"))
    by_euclid = metric.damp_factors(0.1, EuclideanMetric())
    for group, kept in (("affine", False), ("orthogonal", True)):
        twin = twin_of(network, x, group=group)
        b = twin.inputs(x)
        carried = metric.damp_factors(0.1, FixedMetric(twin.transport(start), "start"))
        here, there = natural_gradient(network, by_data, x, y), natural_gradient(twin.network, carried, b, y)
        assert off(there.data, twin.transport(here).data) < 1e-8
        here, there = natural_gradient(network, by_euclid, x, y), natural_gradient(twin.network, by_euclid, b, y)
        error = off(there.data, twin.transport(here).data)
        assert (error < 1e-9) if kept else (error > 1e-2), group
    A = network.blocks["0"].space.factors[1].bases[0]
    assert by_euclid.at(network.observe(x)).keeps(A, "orthogonal")
    assert not by_euclid.at(network.observe(x)).keeps(A, "general")


def test_a_factor_of_the_chain_is_a_moment():
    model, x = tanh_net(3, 4, 2), torch.randn(30, 3)
    observation = read(model, x).observe(x)
    part = BlockTridiagonalKFAC().at(observation).parts["0"]
    assert isinstance(part, Kronecker)
    assert torch.equal(part.factors[1].matrix(), second_moment(observation["0"].inputs).matrix())


def test_with_linear_layers_alone_damped_by_data_it_is_regular_and_carried_along():
    model, x = tanh_net(3, 3, 3, 3, linear=(0, 1)), torch.randn(150, 3)
    y = torch.randint(0, 2, (150, 3)).double()
    network = read(model, x)
    start = KFAC().at(network.observe(x[:60]))
    start = InnerProduct.from_state(start.space, start.state())
    twin = twin_of(network, x, group="affine")
    metrics = [
        BlockTridiagonalKFAC().damp_factors(0.1, FixedMetric(form, "start")) for form in (start, twin.transport(start))
    ]
    here = natural_gradient(network, metrics[0], x, y)
    there = natural_gradient(twin.network, metrics[1], twin.inputs(x), y)
    assert off(there.data, twin.transport(here).data) < 1e-9
    with pytest.raises(DegenerateMetric, match="explains all of '0' in 12 directions"):
        natural_gradient(network, BlockTridiagonalKFAC(), x, y)
