"""Batch normalization and whitening as metrics: gradient descent in a network that sees normalized units."""

import pytest
import torch
from adaptive_cases import EVERYTHING, ISOMETRIES, ROTATIONS, SIGNED, UNITS, kept_by, off, small
from networks_zoo import ZOO
from test_metrics_structures import moved_layer
from torch import nn

from riemann_ng.elements import Covector
from riemann_ng.errors import DegenerateMetric, InvalidSetting, NotClosed, ObservationMismatch
from riemann_ng.inner_products import Dual
from riemann_ng.likelihoods import Categorical
from riemann_ng.metrics import (
    PRONG,
    BatchNormalization,
    EuclideanMetric,
    MetricAverage,
    Whitening,
)
from riemann_ng.natural_gradient import natural_gradient
from riemann_ng.networks import Exact, InputsOnly, Network
from riemann_ng.reparametrize import Frame, Frames, reparametrize
from riemann_ng.testing.frames import HERE, Expression
from riemann_ng.testing.fuzz import claimed, measure


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


METRICS = (BatchNormalization, Whitening)
ON = ("activations", "pre-activations", "both")


def points_of(network, x):
    """Inputs and values of every linear layer, read off the module itself."""
    inputs, values, h = {}, {}, x
    for i, layer in enumerate(network.module):
        z = layer(h).detach()
        if isinstance(layer, nn.Linear):
            inputs[str(i)], values[str(i)] = h, z
        h = z
    return inputs, values


def covariance(a, metric, epsilon):
    """What the metric keeps of it, with ε added."""
    C = torch.cov(a.mT, correction=0)
    C = torch.diag(C.diagonal()) if metric is BatchNormalization else C
    return C + epsilon * torch.eye(len(C))


# --- what they are ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.0, 0.2])
@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("metric", METRICS)
def test_by_hand(metric, on, epsilon):
    network, x, _ = small((4, 4, 3))
    inputs, values = points_of(network, x)
    g = metric(on, epsilon).at(network.observe(x, InputsOnly()))
    for path, part in g.parts.items():
        a, s = inputs[path], values[path]
        A, S = torch.eye(a.shape[1] + 1), torch.eye(s.shape[1])
        if on != "pre-activations":
            c = a.mean(0, keepdim=True).mT
            A = torch.cat(
                [torch.cat([covariance(a, metric, epsilon) + c @ c.mT, c], 1), torch.cat([c.mT, torch.ones(1, 1)], 1)]
            )
        if on != "activations":
            S = torch.linalg.inv(covariance(s, metric, epsilon))
        assert off(part.matrix(torch.ones(1)), torch.kron(S.contiguous(), A)) < 1e-9
        left, right = part.factors
        assert isinstance(left, Dual) is (on != "activations")
        assert (right.structure.kind == "identity") is (on == "pre-activations")


@pytest.mark.parametrize("epsilon", [0.0, 0.3])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_whitening_of_activations_is_prong(epsilon, sharing):
    make, batch = ZOO["tokens"]
    model, x = make(), batch(9)
    network = Network.from_torch(model, Categorical(), x)
    seen = network.observe(x)
    g, h = Whitening("activations", epsilon, sharing).at(seen), PRONG(epsilon, sharing).at(seen)
    assert torch.equal(g.matrix(), h.matrix()) and g.symmetry == h.symmetry
    assert not torch.allclose(g.matrix(), BatchNormalization("activations", epsilon, sharing).at(seen).matrix())


def test_of_decorrelated_units_both_are_one():
    """The diagonal of a covariance is all of it where units do not covary; shaken, it is not."""
    network, x, _ = small((4, 4), n=40)
    c = x.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(x.mT, correction=0))
    there = (x - c) @ vectors * torch.tensor([1.0, 2.0, 0.5, 1.5]) + 0.7
    for batch, same in ((there, True), (x, False)):
        seen = network.observe(batch, InputsOnly())
        g, h = (m("activations", 0.1).at(seen).matrix() for m in METRICS)
        assert (off(g, h) < 1e-12) is same
    assert values.min() > 0


# --- gradient descent in a network that sees normalized units ---------------------------------------------------------


def normalized_twin(network, x, metric, on, epsilon, root="symmetric"):
    """The same function, whose layers see U (a - c) and give V (s - μ): roots of the inverse covariances."""
    inputs, values = points_of(network, x)
    frames = {}
    for path in inputs:
        for key, points, wanted in (("A", inputs, "pre-activations"), ("S", values, "activations")):
            if on == wanted:
                continue
            M, mean = covariance(points[path], metric, epsilon), points[path].mean(0)
            if root == "symmetric":
                sizes, vectors = torch.linalg.eigh(M)
                U = vectors @ torch.diag(sizes.rsqrt()) @ vectors.mT
            else:
                U = torch.linalg.inv(torch.linalg.cholesky(M))
            frames[f"{path}.{key}"] = Frame(U, -U @ mean)
    return reparametrize(network, Frames(frames), x)


@pytest.mark.parametrize("root", ["symmetric", "Cholesky"])
@pytest.mark.parametrize("epsilon", [0.0, 0.2])
@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("metric", METRICS)
def test_descent_there_is_the_natural_gradient_here(metric, on, epsilon, root):
    """Both as typed steps and as torch's own SGD on the twin's parameters, one step to rounding."""
    network, x, y = small((4, 4, 3))
    twin = normalized_twin(network, x, metric, on, epsilon, root)
    assert off(twin.to_original(twin.module(twin.inputs(x))), network.outputs(x)) < 1e-12
    v = natural_gradient(network, metric(on, epsilon), x, y)
    there = natural_gradient(twin.network, EuclideanMetric(), twin.inputs(x), y)
    assert off(there.data, twin.transport(v).data) < 1e-12

    rate = 0.1
    optimizer = torch.optim.SGD(twin.module.parameters(), lr=rate)
    loss = nn.functional.binary_cross_entropy_with_logits
    loss(twin.to_original(twin.module(twin.inputs(x))), y, reduction="none").sum(-1).mean().backward()
    optimizer.step()
    before = network.outputs(x).detach()
    plain = network.differential(x, y)
    network.move_(v, step=-rate)
    assert off(network.outputs(x), twin.to_original(twin.module(twin.inputs(x)))) < 1e-12
    # controls: descent here is another step, and so are the other sides and the other statistics
    assert off(network.outputs(x), before) > 1e-3
    assert off(plain.data, v.data) > 1e-2
    fresh = small((4, 4, 3))[0]
    for other in {*ON} - {on}:
        w = natural_gradient(fresh, metric(other, epsilon), x, y)
        assert off(w.data, v.data) > 1e-2, other
    (unlike,) = (m for m in METRICS if m is not metric)
    assert off(natural_gradient(fresh, unlike(on, epsilon), x, y).data, v.data) > 1e-2


def test_units_are_normalized_there():
    """Inputs of mean zero and variance σ² / (σ² + ε), one only where ε is zero."""
    network, x, _ = small((4, 4, 3))
    for epsilon in (0.0, 0.3):
        twin = normalized_twin(network, x, BatchNormalization, "both", epsilon)
        seen = twin.network.observe(twin.inputs(x), InputsOnly())
        inputs, values = points_of(network, x)
        for path, layer in seen.layers.items():
            for got, original in (
                (layer.inputs.dense()[:, 0, 0, :-1], inputs[path]),
                (layer.values[:, 0, 0], values[path]),
            ):
                variance = original.var(0, correction=0)
                assert got.mean(0).abs().max() < 1e-12
                assert torch.allclose(got.var(0, correction=0), variance / (variance + epsilon))


def test_it_is_what_torchs_batch_norm_does_to_a_layer_that_learns_behind_it():
    """BatchNorm1d(affine=False) in front of a linear layer: SGD on that layer, its statistics held."""
    torch.manual_seed(1)
    x, y = torch.randn(60, 5) * torch.tensor([0.1, 1.0, 3.0, 0.5, 2.0]) + 1, torch.randint(0, 3, (60,))
    plain = nn.Linear(5, 3)
    norm, behind = nn.BatchNorm1d(5, eps=1e-3, affine=False), nn.Linear(5, 3)
    mean, spread = x.mean(0), (x.var(0, correction=0) + 1e-3).sqrt()
    with torch.no_grad():
        behind.weight.copy_(plain.weight * spread)
        behind.bias.copy_(plain.bias + plain.weight @ mean)
    network = Network.from_torch(plain, Categorical(), x)
    model = nn.Sequential(norm, behind)
    optimizer = torch.optim.SGD(behind.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        network.move_(natural_gradient(network, BatchNormalization(epsilon=1e-3), x, y), step=-0.1)
    assert off(network.outputs(x), model(x)) < 1e-12


# --- every sort of layer, averages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", ["mlp", "convolutional", "conv1d", "tokens", "recurrent"])
def test_every_sort_of_layer(name, metric, on):
    make, batch = ZOO[name]
    model, x = make(), batch(7)
    network = Network.from_torch(model, Categorical(), x)
    seen = network.observe(x, InputsOnly())
    g = metric(on, 0.1).at(seen)
    df = Covector(network.tangent_space, torch.randn(network.tangent_space.dim))
    for path, part in g.parts.items():
        xi = Covector(part.space, df[path])
        assert torch.allclose(part.flat(part.sharp(xi)).data, xi.data, atol=1e-9), path
        layer = seen[path]
        if on != "activations" and not layer.S.levels:
            S = torch.linalg.inv(covariance(layer.values.flatten(0, 2), metric, 0.1))
            assert off(part.factors[0].matrix(xi.data), S) < 1e-9


@pytest.mark.parametrize("metric", METRICS)
def test_averages(metric):
    """Of activations the two factors are averaged; on 𝒮 it would be a mean of inverses, and is refused."""
    network, x, _ = small()
    average, halves = MetricAverage(metric(epsilon=0.0), 0.5), (x[:60], x[60:])
    for half in halves:
        g = average.update(network.observe(half, InputsOnly()))
    parts = [metric(epsilon=0.0).at(network.observe(half, InputsOnly())) for half in halves]
    assert off(g.matrix(), (parts[0].matrix() + 2 * parts[1].matrix()) / 3) < 1e-12
    average = MetricAverage(metric("pre-activations", 0.1), 0.5)
    average.update(network.observe(x, InputsOnly()))
    with pytest.raises(NotClosed, match="have no common kind"):
        average.update(network.observe(x, InputsOnly()))


# --- symmetry ---------------------------------------------------------------------------------------------------------

KEPT = {
    (BatchNormalization, "activations", 0.0): (UNITS, ISOMETRIES),
    (BatchNormalization, "activations", 0.1): (SIGNED | {"translations"}, ISOMETRIES),
    (BatchNormalization, "pre-activations", 0.0): (ROTATIONS, UNITS),
    (BatchNormalization, "both", 0.0): (UNITS, UNITS),
    (Whitening, "activations", 0.0): (EVERYTHING, ISOMETRIES),
    (Whitening, "activations", 0.1): (ISOMETRIES, ISOMETRIES),
    (Whitening, "pre-activations", 0.0): (ROTATIONS, EVERYTHING),
    (Whitening, "both", 0.0): (EVERYTHING, EVERYTHING),
    (Whitening, "both", 0.1): (ISOMETRIES, ISOMETRIES),
}


@pytest.mark.parametrize("case", KEPT, ids=str)
def test_what_each_keeps(case):
    metric, on, epsilon = case
    activations, values = KEPT[case]
    kept = kept_by(metric(on, epsilon), small((4, 4, 3)))
    assert kept == {"activations": activations, "pre-activations": values}


def expression_of(metric, sites):
    def entries(g, frames):
        back = frames.on(g.space)
        return back.mT @ g.flat_components(back.mT.contiguous()).mT

    return Expression(lambda frames: metric.at_layer(moved_layer(frames, sites)), "form", entries, lambda g: g.symmetry)


@pytest.mark.parametrize("sites", [1, 3])
@pytest.mark.parametrize("epsilon", [0.0, 0.2])
@pytest.mark.parametrize("metric", METRICS)
def test_claims_hold_and_are_exact_with_sites(metric, epsilon, sites):
    expression = expression_of(metric("activations", epsilon), sites)
    claim, errors = expression.claim(), measure(expression, seed=1)
    assert errors is not None and len(errors) > 12
    for cell, error in errors.items():
        assert (error < 1e-9) if claimed(claim, cell) else (error > 1e-3), (cell, error)
    assert expression.form(HERE).symmetry.keeps("A", "translations")


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epsilon": -1.0}, "epsilon=-1.0, expected a number, zero or more: what is added to variances"),
        ({"epsilon": float("nan")}, "epsilon=nan"),
        ({"on": "inputs"}, "on='inputs', expected 'activations' or 'pre-activations' or 'both'"),
        ({"sharing": "both"}, "sharing='both', expected 'expand' or 'reduce'"),
    ],
)
def test_settings(metric, options, said):
    with pytest.raises(InvalidSetting) as caught:
        metric(**options)
    assert said in str(caught.value) and metric.__name__ in str(caught.value)


def test_more_outputs_than_inputs_need_an_epsilon():
    network, x, y = small((3, 5, 2))
    with pytest.raises(DegenerateMetric, match="values of '0' on this batch vary in 3 of 5 directions"):
        natural_gradient(network, Whitening("pre-activations", 0.0), x, y)
    natural_gradient(network, BatchNormalization("pre-activations", 0.0), x, y)
    natural_gradient(network, Whitening("pre-activations", 0.1), x, y)


def test_values_that_are_not_known_and_what_needs_no_labels():
    layer = moved_layer(HERE, 1)
    with pytest.raises(ObservationMismatch, match="the values of"):
        BatchNormalization("pre-activations").at_layer(layer)
    network, x, y = small()
    for metric in (BatchNormalization("both"), Whitening("activations")):
        assert metric.estimator(y) == InputsOnly()
        g, h = (metric.at(network.observe(x, e)) for e in (InputsOnly(), Exact()))
        assert torch.equal(g.matrix(), h.matrix())
    assert repr(BatchNormalization("both", 0.1)) == "BatchNormalization(on='both', epsilon=0.1)"
