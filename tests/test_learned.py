"""Learned inverse preconditioners: their objective, its gradient, their structures, and that they are kept."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from torch import nn

import riemann_ng as rng
from riemann_ng.errors import InvalidSetting, NonFinite, NotClosed, ObservationMismatch
from riemann_ng.inner_products import BlockDiagonal
from riemann_ng.metrics import LearnedPreconditioner, MetricAverage
from riemann_ng.metrics.learned import sweep
from riemann_ng.metrics.learned_structures import STRUCTURES
from riemann_ng.solvers import Riccati

DAMPING = 0.3 * rng.EuclideanMetric()
AVERAGED = ("scalar", "diagonal", "dense", "kfac")


def problem(grouped=False):
    torch.manual_seed(3)
    model, x = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)), torch.randn(6, 2).double()
    if grouped:
        model = nn.Sequential(nn.Conv1d(2, 4, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2))
        x = torch.randn(6, 2, 3).double()
    y = torch.randint(0, 2, (6,))
    return rng.Network.from_torch(model.double(), likelihood=rng.Categorical(), example=x), x, y


def fast(structure, steps=50, momentum=0.9, lr=0.1, **options):
    return LearnedPreconditioner(structure, steps=steps, lr=lr, momentum=momentum, damping=DAMPING, **options)


def dense_model(network, x):
    return network.fisher(x).matrix() + 0.3 * torch.eye(network.tangent_space.dim).double()


def J(C, g, U):
    """The objective, dense."""
    u = -U @ g
    return 0.5 * u @ C @ u + g @ u


def inverse_of(value):
    return torch.block_diag(*(part.of.matrix() for part in value.parts.values()))


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_structure_learns_the_objective_it_reports(structure, grouped):
    network, x, y = problem(grouped)
    g, C = network.differential(x, y), dense_model(network, x)
    with network.observe(x, rng.Empirical(y)) as seen:
        lesson = fast(structure).learn(seen)
    value = lesson.value
    assert len(lesson.objective) == 51 and lesson.objective[-1] < lesson.objective[0] < 0
    U = inverse_of(value)
    assert torch.allclose(U, U.T) and float(torch.linalg.eigvalsh(U)[0]) > 0
    assert lesson.objective[-1] == pytest.approx(float(J(C, g.components, U)), rel=1e-12)
    v = value.sharp(g)
    assert torch.allclose(v.components, U @ g.components)
    assert torch.allclose(value.flat(v).components, g.components)
    assert lesson.objective[-1] == pytest.approx(float(0.5 * v.components @ C @ v.components - g(v)), rel=1e-12)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_at_a_small_rate_without_momentum_it_only_goes_down(structure):
    network, x, y = problem()
    with network.observe(x, rng.Empirical(y)) as seen:
        objective = fast(structure, momentum=0.0, lr=0.02).learn(seen).objective
        wild = fast(structure, momentum=0.0, lr=50.0, steps=2).learn(seen).objective
    assert all(b <= a for a, b in pairwise(objective))
    assert any(b > a for a, b in pairwise(wild))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_gradient_is_that_of_autograd_through_the_dense_model(structure):
    network, x, y = problem()
    g, C = network.differential(x, y).components, dense_model(network, x)
    with network.observe(x, rng.Empirical(y)) as seen:
        generator = torch.Generator().manual_seed(0)
        kinds, covectors, inverses = STRUCTURES[structure], network.differential(x, y).blocks, []
        for path, layer in seen.layers.items():
            start = kinds.start(layer, g, 2)
            moved = [p + 0.2 * torch.randn(p.shape, generator=generator).double() for p in start]
            inverses.append((kinds(layer, moved), covectors[path]))
        curvature = seen.pulled_back_again() + 0.3 * rng.Euclidean(network.tangent_space)
    free = [p for U, _ in inverses for p in U.parameters]
    u = -torch.cat([U.applied(xi).flatten() for U, xi in inverses])
    value, slope = sweep(curvature, g, u.detach())
    given = torch.autograd.grad(u, free, slope, retain_graph=True)
    direct = 0.5 * u @ C @ u + g @ u
    assert value == pytest.approx(float(direct.detach()), rel=1e-12)
    for one, other in zip(given, torch.autograd.grad(direct, free), strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-14)
    # the sweep without its way back, which is the gradient of g(u) alone, is another one
    assert float((slope - g).norm()) > 1e-2 * float(g.norm())


def test_on_one_batch_dense_blocks_reach_the_exact_step():
    network, x, y = problem()
    df = network.differential(x, y)
    exact = rng.natural_gradient(network, rng.Fisher(), x, y, damping=DAMPING, solver=Riccati())
    best = -0.5 * float(df(exact))
    with network.observe(x, rng.Empirical(y)) as seen:
        found = {s: fast(s, steps=2500, lr=0.3).learn(seen) for s in ("dense", "scalar")}
    assert best * (1 + 1e-12) <= found["dense"].objective[-1] < best * (1 - 1e-7)
    step = found["dense"].value.sharp(df)
    assert float((step.components - exact.components).norm()) < 1e-2 * float(exact.components.norm())
    # a number for each layer is not enough, and what is found is no block of the inverse of C
    assert found["scalar"].objective[-1] > best * (1 - 1e-2)
    blocks = torch.linalg.inv(dense_model(network, x))
    at = network.tangent_space.slices["0"]
    learned = found["dense"].value.parts["0"].of.matrix()
    assert float((learned - blocks[at, at]).norm()) > 0.1 * float(learned.norm())


@pytest.mark.parametrize("structure", STRUCTURES)
def test_it_is_kept_and_goes_on(structure):
    network, x, y = problem()
    metric = fast(structure, steps=20, momentum=0.0)
    with network.observe(x, rng.Empirical(y)) as seen:
        first = metric.learn(seen)
        again = metric.learn(seen, first.value)
        assert again.objective[0] == pytest.approx(first.objective[-1], rel=1e-12)
        assert again.objective[-1] < first.objective[-1]
        assert metric.refreshed(first.value, seen).matrix().equal(again.value.matrix())
        with pytest.raises(ObservationMismatch, match=r"to go on from .* is not possible"):
            metric.refreshed(BlockDiagonal(dict(rng.KFAC().at(network.observe(x)).parts)), seen)
    back = rng.InnerProduct.from_state(network.tangent_space, first.value.state())
    assert torch.equal(back.sharp(network.differential(x, y)).data, first.value.sharp(network.differential(x, y)).data)
    if structure in AVERAGED:
        mean = first.value.blend(again.value, 0.25)
        wanted = 0.75 * inverse_of(first.value) + 0.25 * inverse_of(again.value)
        if structure != "kfac":
            assert torch.allclose(inverse_of(mean), wanted)
        else:
            assert not torch.allclose(inverse_of(mean), wanted, rtol=1e-9)
    elif structure == "ekfac":
        with pytest.raises(NotClosed, match="no common kind"):
            first.value.blend(again.value, 0.25)


def test_averages_over_refreshes():
    network, x, y = problem()
    average = MetricAverage(fast("kfac", steps=5), decay=0.95)
    before = rng.Euclidean(network.tangent_space).matrix(x)
    for batch in (slice(0, 3), slice(3, 6)):
        with network.observe(x[batch], rng.Empirical(y[batch])) as seen:
            g = average.update(seen)
    assert average.count == 2 and not torch.allclose(g.matrix(), before)


def test_it_is_a_metric_like_any_other():
    network, x, y = problem()
    metric = LearnedPreconditioner()
    assert repr(metric) == "LearnedPreconditioner()" and metric == LearnedPreconditioner()
    assert [getattr(metric, f.name) for f in dataclasses.fields(metric)][:5] == ["kfac", 50, 1e-3, 0.9, 5.0]
    v = rng.natural_gradient(network, metric, x, y)
    assert float(network.differential(x, y)(v)) > 0
    rng.natural_gradient(network, metric + 0.1 * rng.EuclideanMetric(), x, y)
    output = rng.EuclideanOutput()
    with network.observe(x, rng.Empirical(y), output=output) as seen:
        J_euclidean = fast("dense", output=output).learn(seen).objective
        with pytest.raises(ObservationMismatch, match="it is about EuclideanOutput"):
            fast("dense", output=rng.EuclideanOutput(3.0)).learn(seen)
    with network.observe(x, rng.Empirical(y)) as seen:
        assert fast("dense").learn(seen).objective != J_euclidean


def test_it_names_the_coordinates_it_starts_from():
    network, x, y = problem()
    space = network.blocks["2"].output_space.bases[0]
    with network.observe(x, rng.Empirical(y)) as seen:
        found = {s: fast(s, steps=2).at(seen) for s in ("scalar", "kfac")}
    assert found["scalar"].symmetry.keeps(space, "orthogonal") and not found["scalar"].symmetry.keeps(space, "scaling")
    assert not found["kfac"].symmetry.keeps(space, "orthogonal")


def test_settings_and_observations_are_checked():
    for options, message in [
        ({"structure": "free"}, "structure='free', expected one of 'scalar', .*; all are symmetric"),
        ({"steps": -1}, "steps=-1, expected a whole number from 0 on"),
        ({"rank": 0}, "rank=0, expected a whole number from 1 on"),
        ({"lr": 0.0}, "lr=0.0, expected positive and finite"),
        ({"clip": float("nan")}, "clip=nan, expected positive"),
        ({"momentum": 1.0}, "momentum=1.0, expected a number in"),
        ({"damping": 0.1}, "damping=0.1, expected a metric"),
    ]:
        with pytest.raises(InvalidSetting, match=f"InvalidSetting in LearnedPreconditioner: {message}"):
            LearnedPreconditioner(**options)
    network, x, y = problem()
    with pytest.raises(ObservationMismatch, match="it learns on the gradient of labelled data"):
        LearnedPreconditioner().at(network.observe(x))
    with network.watch() as tape:
        network.likelihood.loss(network.module(x), y).backward()
    with pytest.raises(ObservationMismatch, match=r"observed with Empirical\(\) by a tape. Observe it by itself"):
        LearnedPreconditioner().at(tape.observe(rng.Empirical()))
    before = {name: p.clone() for name, p in network.parameters.items()}
    with pytest.raises(NonFinite, match=r"The rate lr=1000\.0 is too large"):
        rng.natural_gradient(network, LearnedPreconditioner("dense", lr=1e3, clip=1e300), x, y)
    assert all(torch.equal(p, before[name]) for name, p in network.parameters.items())
