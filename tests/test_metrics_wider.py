"""One-sided metrics and PRONG: what they are, against dense algebra and an explicit whitened network."""

import pytest
import torch
from networks_zoo import ZOO
from test_metrics_structures import moved_layer
from test_reparametrize_laws import GROUP_OF, well_posed
from torch import nn
from twin_cases import twin_of

from riemann_ng import explain_symmetry
from riemann_ng.elements import Covector
from riemann_ng.errors import InvalidSetting, ObservationMismatch, SpaceMismatch
from riemann_ng.inner_products import Euclidean, InnerProduct, second_moment
from riemann_ng.likelihoods import Categorical, EuclideanOutput, Gaussian
from riemann_ng.metrics import KFAC, EuclideanMetric, Fisher, FixedMetric
from riemann_ng.metrics.one_sided import PRONG, CotangentsOnly, ForwardOnly
from riemann_ng.natural_gradient import natural_gradient
from riemann_ng.networks import Exact, InputsOnly, MonteCarlo, Network
from riemann_ng.testing.frames import HERE, Expression
from riemann_ng.testing.fuzz import claimed, measure


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def off(a, b):
    return float((a - b).norm() / b.norm())


def seen(name, n=9, estimator=Exact()):
    make, batch = ZOO[name]
    model, x = make(), batch(n)
    model(x)
    network = Network.from_torch(model, Categorical(), x)
    return network.observe(x, estimator), network, x


# --- what they are ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("name", ["mlp", "convolutional", "tokens", "tied", "recurrent"])
def test_one_side_is_data_and_the_other_the_reference(name, sharing):
    """g(D, D) = E |D(a)|², and Σ over the columns of D of E[g(column)²]."""
    observation, _, _ = seen(name)
    forward, back = ForwardOnly(sharing=sharing).at(observation), CotangentsOnly(sharing=sharing).at(observation)
    for path, layer in observation.layers.items():
        layer = layer.reduced() if sharing == "reduce" else layer
        D = torch.randn(layer.space.shape)
        a, g = layer.inputs.dense(), layer.cotangents.dense()
        members = layer.space.shape[0] if D.ndim == 3 else 1
        a = a.reshape(-1, members, D.shape[-1])
        moved = torch.einsum("moi,nmi->nmo", D.reshape(members, *D.shape[-2:]), a)
        part = forward.parts[path]
        assert torch.allclose(part.flat_components(D.flatten()) @ D.flatten(), moved.square().sum() / len(a))
        g = g.reshape(-1, members, D.shape[-2])
        paired = torch.einsum("moi,nmo->nmi", D.reshape(members, *D.shape[-2:]), g)
        part = back.parts[path]
        total = paired.square().sum() / len(observation.outputs)
        assert torch.allclose(part.flat_components(D.flatten()) @ D.flatten(), total)


def test_forward_only_looks_at_no_cotangent():
    observation, network, x = seen("mlp", estimator=InputsOnly())
    y = torch.randint(0, 3, (9,))
    assert ForwardOnly().estimator(y) == PRONG().estimator(y) == InputsOnly()
    assert torch.equal(ForwardOnly().at(observation).matrix(), ForwardOnly().at(network.observe(x)).matrix())
    with pytest.raises(ObservationMismatch, match="was observed with InputsOnly"):
        CotangentsOnly().at(observation)


def test_a_reference_that_is_data():
    observation, network, _ = seen("mlp")
    start = FixedMetric(KFAC().at(network.observe(torch.randn(30, 4))), "start")
    for path, g in ForwardOnly(start).at(observation).parts.items():
        G0 = start.form.parts[path].factors[0].matrix()
        assert torch.allclose(g.matrix(), torch.kron(G0, second_moment(observation[path].inputs).matrix()))
    for path, g in CotangentsOnly(start).at(observation).parts.items():
        A0 = start.form.parts[path].factors[1].matrix()
        assert torch.allclose(g.matrix(), torch.kron(second_moment(observation[path].cotangents).matrix(), A0))


def test_between_the_two_stands_kfac():
    """K-FAC is the forward metric relative to the cotangents' own moment, and the other way round."""
    observation, _, _ = seen("mlp")
    own = FixedMetric(KFAC().at(observation), "here")
    for metric in (ForwardOnly(own), CotangentsOnly(own)):
        assert torch.allclose(metric.at(observation).matrix(), KFAC().at(observation).matrix())


def test_layers_without_a_reference_in_factors_are_refused():
    observation, _, _ = seen("mlp")
    whole = FixedMetric(Fisher(structure="dense").at(observation), "whole")
    with pytest.raises(SpaceMismatch, match=r"ForwardOnly: the reference FixedMetric\(whole\) is no product along"):
        ForwardOnly(whole).at(observation)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PRONG(-1.0), r"PRONG: epsilon=-1.0, expected a number, zero or more"),
        (lambda: PRONG(float("inf")), "epsilon=inf"),
        (lambda: PRONG(sharing="both"), "sharing='both', expected 'expand' or 'reduce'"),
        (lambda: ForwardOnly(KFAC), "ForwardOnly: reference=the class KFAC, expected a metric"),
        (lambda: CotangentsOnly(KFAC(output=EuclideanOutput())), "one observation has one"),
    ],
)
def test_settings(make, message):
    with pytest.raises(InvalidSetting, match=message):
        make()


def test_they_are_values():
    assert repr(PRONG(0.1)) == "PRONG(epsilon=0.1)" and PRONG(0.1) == PRONG(0.1)
    assert repr(ForwardOnly() + 0.5 * CotangentsOnly(sharing="reduce")) == (
        "ForwardOnly() + 0.5 * CotangentsOnly(sharing='reduce')"
    )


# --- PRONG: the whitened network itself -------------------------------------------------------------------------------


def roots(M):
    """Three roots of M⁻¹, Uᵀ U = M⁻¹: symmetric, principal axes, Cholesky."""
    values, vectors = torch.linalg.eigh(M)
    return {
        "ZCA": vectors @ torch.diag(values.rsqrt()) @ vectors.mT,
        "PCA": torch.diag(values.rsqrt()) @ vectors.mT,
        "Cholesky": torch.linalg.inv(torch.linalg.cholesky(M)),
    }


class Whitened(nn.Module):
    """V U (a - c) + d, the same function as W a + b."""

    def __init__(self, linear, U, c):
        super().__init__()
        V = linear.weight.detach() @ torch.linalg.inv(U)
        self.register_buffer("U", U)
        self.register_buffer("c", c)
        self.V, self.d = nn.Parameter(V), nn.Parameter(linear.bias.detach() + linear.weight.detach() @ c)

    def forward(self, a):
        return (a - self.c) @ self.U.mT @ self.V.mT + self.d

    def original(self):
        weight = self.V @ self.U
        return weight.detach(), (self.d - weight @ self.c).detach()


def inputs_of(model, x):
    found, h = {}, x
    for i, layer in enumerate(model):
        found[str(i)], h = h.detach(), layer(h)
    return found


@pytest.mark.parametrize("root", ["ZCA", "PCA", "Cholesky"])
@pytest.mark.parametrize("epsilon", [0.0, 0.3])
@pytest.mark.parametrize("stale", [False, True])
def test_a_step_is_one_of_gradient_descent_in_the_whitened_network(root, epsilon, stale):
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y, before = torch.randn(40, 4) + 1, torch.randint(0, 3, (40,)), torch.randn(60, 4)
    network = Network.from_torch(model, Categorical(), x)
    whitened, lr = nn.Sequential(*model), 0.1
    for i, a in inputs_of(model, before if stale else x).items():
        if isinstance(model[int(i)], nn.Linear):
            c, S = a.mean(0), torch.cov(a.mT, correction=0)
            U = roots(S + epsilon * torch.eye(len(c)))[root]
            whitened[int(i)] = Whitened(model[int(i)], U, c)
    assert torch.allclose(whitened(x), model(x), atol=1e-10)  # the function is the same
    metric = PRONG(epsilon)
    if stale:
        metric = FixedMetric(metric.at(network.observe(before, InputsOnly())), "stale")
    v = natural_gradient(network, metric, x, y)
    nn.functional.cross_entropy(whitened(x), y).backward()
    with torch.no_grad():
        for p in whitened.parameters():
            p.sub_(lr * p.grad)
    moved, plain = v.to_parameters(), network.differential(x, y).to_parameters()
    for i in ("0", "2"):
        weight, bias = whitened[int(i)].original()
        W, b = model[int(i)].weight.detach(), model[int(i)].bias.detach()
        assert float((weight - (W - lr * moved[f"{i}.weight"])).abs().max()) < 1e-12
        assert float((bias - (b - lr * moved[f"{i}.bias"])).abs().max()) < 1e-12
        assert float((weight - (W - lr * plain[f"{i}.weight"])).abs().max()) > 1e-3


def test_the_damping_is_of_the_centred_covariance():
    """ε on the whole second moment would be another metric: the homogeneous slot is not damped."""
    observation, network, x = seen("mlp", n=20)
    a = x
    c, S = a.mean(0, keepdim=True).mT, torch.cov(a.mT, correction=0)
    A = torch.cat([torch.cat([S + 0.2 * torch.eye(4) + c @ c.mT, c], 1), torch.cat([c.mT, torch.ones(1, 1)], 1)])
    g = PRONG(0.2).at(observation).parts["0"]
    assert torch.allclose(g.matrix(), torch.kron(torch.eye(5), A))
    whole = ForwardOnly().at(observation).parts["0"].matrix() + 0.2 * torch.eye(25)
    assert not torch.allclose(g.matrix(), whole)
    assert g.space == network.tangent_space["0"]


@pytest.mark.parametrize("name", ZOO)
def test_it_solves_every_layer(name):
    """Damped it is definite everywhere, and costs factorizations of inputs alone."""
    observation, network, _ = seen(name, n=3, estimator=InputsOnly())
    g = PRONG(0.1).at(observation)
    df = Covector(network.tangent_space, torch.randn(network.tangent_space.dim))
    for path, part in g.parts.items():
        if observation[path].inputs.tensor().any():  # a layer that the batch used
            xi = Covector(part.space, df[path])
            assert torch.allclose(part.flat(part.sharp(xi)).data, xi.data, atol=1e-9), path


# --- symmetry: claims against moved data ------------------------------------------------------------------------------


def expression_of(metric, sites, fixed=False):
    def form(frames):
        layer = moved_layer(frames, sites)
        h = None
        if fixed:
            other = moved_layer(frames, sites, seed=5)
            h = (second_moment(other.cotangents), second_moment(other.inputs))
        if isinstance(metric, PRONG):
            return metric.at_layer(layer)
        return metric.in_layer(layer, *(h or (Euclidean(layer.S), Euclidean(layer.A.dual))))

    def entries(g, frames):
        back = frames.on(g.space)
        return back.mT @ g.flat_components(back.mT.contiguous()).mT

    return Expression(form, "form", entries, lambda g: g.symmetry)


CLAIMS = {
    "forward": (ForwardOnly(), False), "back": (CotangentsOnly(), False), "prong": (PRONG(0.3), False),
    "prong, undamped": (PRONG(0.0), False), "forward, data": (ForwardOnly(), True),
    "back, data": (CotangentsOnly(), True),
}  # fmt: skip


@pytest.mark.parametrize("sites", [1, 3])
@pytest.mark.parametrize("name", CLAIMS)
def test_claims_hold_and_are_exact(name, sites):
    expression = expression_of(*(CLAIMS[name][0], sites, CLAIMS[name][1]))
    claim, errors = expression.claim(), measure(expression, seed=1)
    assert errors is not None and len(errors) > 12
    for cell, error in errors.items():
        assert (error < 1e-9) if claimed(claim, cell) else (error > 1e-2), (name, cell, error)


def test_what_each_keeps():
    def kept(metric, fixed=False):
        g = expression_of(metric, 1, fixed).form(HERE)
        return {s: [k for k in ("affine", "isometries", "orthogonal") if g.keeps(s, k)] for s in "AS"}

    linear = ["orthogonal"]
    isometries = ["isometries", *linear]
    everything = ["affine", *isometries]
    assert kept(ForwardOnly()) == {"A": everything, "S": isometries}
    assert kept(CotangentsOnly()) == {"A": linear, "S": everything}
    assert kept(PRONG(0.0)) == {"A": everything, "S": isometries}
    assert kept(PRONG(0.1)) == {"A": isometries, "S": isometries}
    assert kept(ForwardOnly(), True) == kept(CotangentsOnly(), True) == {"A": everything, "S": everything}
    assert "Euclidean" in explain_symmetry(expression_of(ForwardOnly(), 1).form(HERE))


@pytest.mark.parametrize("which", ["mlp", "convolution", "tokens"])
def test_steps_in_twins(which):
    """Frames of activations alone are not seen; those of pre-activations are, unless the reference goes along."""
    network, x, y = well_posed(which)
    for on, moves_outputs in ((("inputs", "activations"), False), (("pre-activations",), True)):
        twin = twin_of(network, x, on=on, group=GROUP_OF[which])
        for metric in (ForwardOnly(), PRONG(0.0)):
            here = natural_gradient(network, metric, x, y)
            there = natural_gradient(twin.network, metric, twin.inputs(x), y)
            error = off(there.data, twin.transport(here).data)
            assert (error > 1e-2) if moves_outputs else (error < 1e-8), (on, metric)
    start = KFAC().at(network.observe(x[:60]))
    start = InnerProduct.from_state(start.space, start.state())
    twin = twin_of(network, x, group=GROUP_OF[which])
    for kind in (ForwardOnly, CotangentsOnly):
        here = natural_gradient(network, kind(FixedMetric(start, "start")), x, y)
        there = natural_gradient(twin.network, kind(FixedMetric(twin.transport(start), "start")), twin.inputs(x), y)
        assert off(there.data, twin.transport(here).data) < 1e-8


def test_damped_prong_sees_frames_that_are_no_isometries():
    network, x, y = well_posed("mlp")
    for group, seen_there in (("isometries", False), ("general", True)):
        twin = twin_of(network, x, on=("inputs", "activations"), group=group)
        here, there = (natural_gradient(n, PRONG(0.5), b, y) for n, b in ((network, x), (twin.network, twin.inputs(x))))
        error = off(there.data, twin.transport(here).data)
        assert (error > 1e-2) if seen_there else (error < 1e-9), group


def test_in_sums_and_on_any_estimator():
    observation, network, x = seen("mlp", estimator=MonteCarlo(2))
    g = (CotangentsOnly() + 0.1 * EuclideanMetric()).at(observation)
    df = Covector(network.tangent_space, torch.randn(network.tangent_space.dim))
    assert torch.allclose(g.sharp(df).data, torch.linalg.solve(g.matrix(), df.data), atol=1e-9)
    metric = CotangentsOnly(output=EuclideanOutput())
    with pytest.raises(ObservationMismatch, match="is about EuclideanOutput"):
        metric.at(observation)
    other = Network.from_torch(network.module, Gaussian(), x)
    assert torch.allclose(
        metric.at(network.observe(x, output=EuclideanOutput())).matrix(), CotangentsOnly().at(other.observe(x)).matrix()
    )
