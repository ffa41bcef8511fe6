"""The relative Fisher: against the Fisher of one-unit networks, the published code's formulas, and moved data."""

import pytest
import torch
from networks_zoo import ZOO
from test_metrics_structures import moved_layer
from test_reparametrize_laws import well_posed
from torch import nn
from twin_cases import twin_of

from riemann_ng import explain_symmetry
from riemann_ng.elements import Covector
from riemann_ng.errors import InvalidSetting, ObservationMismatch, UnsupportedLayer
from riemann_ng.inner_products import Diagonal, Kronecker, UnitWise, second_moment
from riemann_ng.likelihoods import Categorical, Gaussian
from riemann_ng.metrics import EuclideanMetric, Fisher
from riemann_ng.metrics import relative_fisher as module
from riemann_ng.metrics.relative_fisher import RelativeFisher, in_common
from riemann_ng.natural_gradient import natural_gradient
from riemann_ng.networks import Exact, InputsOnly, MonteCarlo, Network
from riemann_ng.networks.observation import LayerObservation
from riemann_ng.testing import Draw
from riemann_ng.testing.frames import HERE, Expression, S
from riemann_ng.testing.fuzz import claimed, measure


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def off(a, b):
    return float((a - b).norm() / b.norm())


def read(model, x, likelihood=None):
    return Network.from_torch(model, likelihood or Categorical(), x)


# --- the values of a layer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", [InputsOnly(), Exact(), Exact(chunk=1), MonteCarlo(1)], ids=str)
@pytest.mark.parametrize("name", ["mlp", "convolutional", "conv1d", "tokens", "batch norm 1d"])
def test_values_are_what_the_layers_gave(name, estimator):
    make, batch = ZOO[name]
    model, x = make(), batch(5)
    model(x)
    network = read(model, x)
    model.eval()
    given, handles = {}, []
    for path, leaf in model.named_modules():
        if path in network.blocks and network.blocks[path].reader is not None:
            handles.append(leaf.register_forward_hook(lambda m, a, y, at=path: given.update({at: y.detach().clone()})))
    model(x)
    for handle in handles:
        handle.remove()
    observation = network.observe(x, estimator)
    compared = 0
    for path, y in given.items():
        values, block = observation[path].values, network.blocks[path]
        assert values.shape[:2] == (5, 1) and values.shape[3:] == block.output_space.shape
        reader = block.reader
        theirs = reader.values(y)
        if path != "mix":  # used time first
            assert torch.allclose(values[:, 0].flatten(1), theirs.reshape(5, -1), atol=1e-12), path
            compared += 1
    assert compared


def test_values_of_a_layer_that_is_frozen_in_part_or_of_samples_alone_are_not_known():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    x = torch.randn(5, 3)
    layer = read(model, x).observe(x, InputsOnly())["0"]
    bare = LayerObservation(layer.path, layer.A, layer.S, layer.inputs, None)
    for unknown in (layer, bare):
        with pytest.raises(ObservationMismatch, match="the values of '0' are asked for, and of this layer only"):
            _ = unknown.values


def test_of_parameters_without_a_layer_they_are_the_parameters():
    make, batch = ZOO["tokens"]
    model, x = make(), batch(4)
    values = read(model, x).observe(x, InputsOnly())["position"].values
    assert torch.equal(values.expand(4, 1, *values.shape[2:])[0].flatten()[:12], model.position.detach().flatten())


# --- what it is -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slope", "unit"), [("tanh", nn.Tanh()), ("sigmoid", nn.Sigmoid()), ("identity", nn.Identity())]
)
def test_it_is_the_fisher_of_each_unit_observed_by_itself(slope, unit):
    """With the layer's own outputs as the network's, its exact Fisher, unit by unit."""
    model, x = nn.Sequential(nn.Linear(3, 4), unit), torch.randn(20, 3)
    network = read(model, x, Gaussian())
    g = RelativeFisher(slope, shared=()).at(network.observe(x, InputsOnly()))
    assert torch.allclose(g.matrix(), Fisher(structure="dense").at(network.observe(x)).matrix(), atol=1e-13)
    other = RelativeFisher("logistic", shared=()).at(network.observe(x, InputsOnly()))
    assert not torch.allclose(g.matrix(), other.matrix(), atol=1e-2)


def test_a_step_is_that_of_the_published_code():
    """Columns of W (inputs × outputs), each by the inverse of its own metric; the first and last layers by one."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    x, y, ridge = torch.randn(60, 4), torch.randint(0, 3, (60,)), 0.02
    network = read(model, x)
    v = natural_gradient(network, RelativeFisher() + ridge * EuclideanMetric(), x, y).to_parameters()
    df, h = network.differential(x, y).to_parameters(), x
    for i in (0, 2, 4):
        bar = torch.cat([h, torch.ones(60, 1)], 1)
        s = model[i](h).detach()
        gradient = torch.cat([df[f"{i}.weight"], df[f"{i}.bias"][:, None]], 1).mT
        for o in range(s.shape[1]):
            w = torch.sigmoid(s[:, o]) ** 2 if i == 2 else torch.ones(60)
            G = (bar * w[:, None]).mT @ bar / 60 + ridge * torch.eye(bar.shape[1])
            step = torch.linalg.solve(G, gradient[:, o])
            assert torch.allclose(torch.cat([v[f"{i}.weight"][o], v[f"{i}.bias"][o : o + 1]]), step, atol=1e-10)
        h = model[i + 1](model[i](h)).detach() if i < 4 else h


@pytest.mark.parametrize("budget", [1, 1 << 24])
@pytest.mark.parametrize("name", ["mlp", "convolutional", "conv1d", "tokens", "batch norm 1d"])
def test_every_sort_of_layer(name, budget, monkeypatch):
    """By a loop over examples, sites and units."""
    monkeypatch.setattr(module, "BUDGET", budget)
    make, batch = ZOO[name]
    model, x = make(), batch(4)
    model(x)
    observation = read(model, x).observe(x, InputsOnly())
    g = RelativeFisher("tanh", shared=()).at(observation)
    for path, layer in observation.layers.items():
        part = g.parts[path]
        if not layer.A.bases:
            assert isinstance(part, Kronecker) and torch.allclose(part.matrix(), in_common(layer).matrix())
            continue
        *lead, d = layer.space.shape
        s, a = layer.values.flatten(0, 2), layer.inputs.dense().flatten(0, 2)
        s, total = s.reshape(len(s), -1), torch.zeros(layer.space.dim, layer.space.dim)
        for unit in range(s.shape[1]):
            member = unit // lead[-1] if len(lead) > 1 else 0
            for k in range(len(s)):
                own = a[k].reshape(-1, d)
                row = own[member if len(own) > 1 else 0] * (1 - s[k, unit].tanh() ** 2)
                where = slice(unit * d, unit * d + d)
                total[where, where] += torch.outer(row, row) / len(s)
        assert torch.allclose(part.matrix(), total, atol=1e-13), path
        assert isinstance(part, Diagonal if path == "embed" else UnitWise)


def test_padding_weighs_nothing():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 9))
    x, there = torch.randint(0, 9, (4, 5)), torch.arange(5) < torch.tensor([5, 2, 3, 4])[:, None]
    network = read(model, x)
    layer = network.observe(x, InputsOnly(), mask=there)["1"]
    a, s = layer.inputs.dense()[:, 0][there], layer.values[:, 0][there]
    g = RelativeFisher(shared=()).by_units(layer)
    for o in range(5):
        M = (a * torch.sigmoid(s[:, o : o + 1]) ** 2).mT @ a / len(a)
        assert torch.allclose(g.entries[o], M)


def test_the_first_and_the_last_layer_share_unless_named():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(30, 3)
    observation = read(model, x).observe(x, InputsOnly())
    kinds = {path: type(g) for path, g in RelativeFisher().at(observation).parts.items()}
    assert kinds == {"0": Kronecker, "2": UnitWise, "4": Kronecker}
    for path, g in RelativeFisher(shared=("2",)).at(observation).parts.items():
        layer = observation[path]
        A = second_moment(layer.inputs).matrix()
        assert torch.allclose(g.matrix(), torch.kron(torch.eye(layer.S.dim), A)) == (path == "2")
    with pytest.raises(InvalidSetting, match="no layer is called '7'; there are '0', '2', '4'"):
        RelativeFisher(shared=("7",)).at(observation)


def test_it_needs_no_labels_and_averages():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(30, 3)
    network = read(model, x)
    metric = RelativeFisher("tanh", shared=())
    assert metric.estimator(torch.zeros(3)) == InputsOnly()
    first, second = (metric.at(network.observe(b, InputsOnly())) for b in (x[:15], x[15:]))
    assert torch.allclose(first.blend(second, 0.5).matrix(), metric.at(network.observe(x, InputsOnly())).matrix())
    v = first.sharp(Covector(network.tangent_space, torch.randn(network.tangent_space.dim)))
    assert v.lives_in == network.tangent_space


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RelativeFisher("relu"), "slope='relu', expected one of 'logistic', 'rectifier', 'tanh'"),
        (lambda: RelativeFisher(shared="0"), "shared='0', expected a tuple of the layers' paths"),
    ],
)
def test_settings(make, message):
    with pytest.raises(InvalidSetting, match=message):
        make()


def test_too_many_units_are_refused(monkeypatch):
    monkeypatch.setattr(module, "LARGEST", 50)
    model, x = nn.Sequential(nn.Linear(3, 4)), torch.randn(5, 3)
    observation = read(model, x).observe(x, InputsOnly())
    with pytest.raises(UnsupportedLayer, match=r"'0' has 4 units with a matrix \[4, 4\] each, 64 numbers. Name it in"):
        RelativeFisher(shared=()).at(observation)


# --- symmetry ---------------------------------------------------------------------------------------------------------


def expression(slope):
    """A layer whose map D moves with the frames as its data do."""
    D = Draw.seeded(9).normal(4, 4)

    def form(frames):
        layer = moved_layer(frames, 2)
        point = affine(frames, D)
        seen = LayerObservation("fc", layer.A, layer.S, layer.inputs, None, map_of=lambda: point)
        return RelativeFisher(slope, shared=()).by_units(seen)

    def entries(g, frames):
        back = frames.on(g.space)
        return back.mT @ g.flat_components(back.mT.contiguous()).mT

    return Expression(form, "form", entries, lambda g: g.symmetry)


def affine(frames, D):
    """Φ D α̂⁻¹ with the translation of 𝒮 added to the constants."""
    A_hat, Phi = frames.on(moved_layer(HERE).A), frames.on(S.translations)
    hull = frames.on(S.hull)
    moved = Phi @ D @ torch.linalg.inv(A_hat)
    moved[:, -1] += hull[:-1, -1]
    return moved


@pytest.mark.parametrize("slope", ["logistic", "tanh"])
def test_claims_hold(slope):
    subject = expression(slope)
    claim, errors = subject.claim(), measure(subject, seed=1)
    assert errors is not None and len(errors) > 12
    for cell, error in errors.items():
        if claimed(claim, cell):
            assert error < 1e-9, (cell, error)
        elif "permutations" not in str(cell) and not all(group == "joint" for _, group in cell):
            assert error > 1e-4, (cell, error)  # order is kept and not claimed: no structure has only that


def test_what_it_keeps():
    g = expression("logistic").form(HERE)
    assert g.keeps("A", "affine")
    assert not any(g.keeps("S", group) for group in ("translations", "scaling", "orthogonal", "general"))
    assert "the values of fc" in explain_symmetry(g)


def test_in_twins():
    network, x, y = well_posed("mlp")
    for on, sees in ((("inputs", "activations"), False), (("pre-activations",), True)):
        twin = twin_of(network, x, on=on, group="affine")
        steps = []
        for n, b in ((network, x), (twin.network, twin.inputs(x))):
            steps.append(natural_gradient(n, RelativeFisher("tanh", shared=()), b, y))
        error = off(steps[1].data, twin.transport(steps[0]).data)
        assert (error > 1e-2) if sees else (error < 1e-8)
    twin = twin_of(network, x, on=("inputs", "activations"), group="affine")
    metric = RelativeFisher("tanh", shared=()) + 0.1 * EuclideanMetric()
    here = natural_gradient(network, metric, x, y)
    there = natural_gradient(twin.network, metric, twin.inputs(x), y)
    assert off(there.data, twin.transport(here).data) > 1e-3
