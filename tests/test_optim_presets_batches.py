"""Metrics seen on other batches than the gradient, and losses searched on others again, in float64."""

import copy

import pytest
import torch
from optim_cases import CE, batches, data, mlp, step
from presets_cases import half_squares, line, params
from torch import nn

import riemann_ng as rng
from riemann_ng import optim
from riemann_ng.errors import InvalidSetting
from riemann_ng.likelihoods import Categorical, Gaussian
from riemann_ng.networks import CurvatureProp, Exact, Linearized, MonteCarlo, Network


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


PLAIN = {"lr": 0.3, "momentum": 0.0, "decay": 0.0, "schedule": optim.Schedule(1, 1), "step_size": optim.Constant()}
METRICS = {
    "K-FAC": (lambda: rng.KFAC(), Exact(), None),
    "Fisher": (lambda: rng.Fisher(), Exact(), None),
    "Fisher by products": (lambda: rng.Fisher("matrix-free"), Linearized(), rng.solvers.CG(1e-13)),
}


def off(a, b):
    return float((a - b).abs().max() / b.abs().max())


def made(name, model, **settings):
    metric, estimator, solver = METRICS[name]
    own = {**PLAIN, "damping": optim.Tikhonov(0.1), "estimator": estimator, "solver": solver, **settings}
    return optim.NaturalGradient(model, Categorical(), metric(), **own)


def by_hand(name, model, x, y, seen):
    """One step with the metric at `seen` and the differential at (x, y)."""
    network = Network.from_torch(model, Categorical(), x)
    g = METRICS[name][0]().at(network.observe(seen)).matrix()
    g = g + 0.1 * torch.eye(len(g))
    step = torch.linalg.solve(g, network.differential(x, y).components)
    network.move_(rng.Vector(network.tangent_space, step), -0.3)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("when", ["before the forward", "after the backward"])
def test_the_metric_is_of_the_inputs_given_and_the_gradient_of_the_loop(name, when):
    own, hand, same = mlp(), mlp(), mlp()
    opt, loop = made(name, own), made(name, same)
    for t in range(4):
        (x, y), unlabelled = data(20, seed=t), data(33, seed=50 + t)[0] * 1.5
        opt.zero_grad()
        if when == "before the forward":
            opt.observe(unlabelled)
        CE(own(x), y).backward()
        if when == "after the backward":
            opt.observe(unlabelled)
        opt.step()
        by_hand(name, hand, x, y, unlabelled)
        step(same, loop, x, y)
        assert off(params(own), params(hand)) < 1e-9
        assert opt.report.statistics
    assert off(params(same), params(hand)) > 1e-2  # the control: of the same batch it is another metric


def test_the_same_batch_given_aside_is_the_loop_s_own():
    own, same = mlp(), mlp()
    opt, loop = made("K-FAC", own), made("K-FAC", same)
    for x, y in batches(3):
        opt.observe(x)
        step(own, opt, x, y)
        step(same, loop, x, y)
        assert off(params(own), params(same)) < 1e-12


def test_no_label_is_looked_at():
    """Labels enter by the gradient alone; the covariance of gradients sees them."""
    x, y = data(40)
    shuffled = y[torch.randperm(40, generator=torch.Generator().manual_seed(0))]
    values = {}
    for name, labels in (("true", y), ("shuffled", shuffled)):
        opt = made("K-FAC", mlp())
        opt.observe(x)
        step(opt.network.module, opt, x, labels)
        values[name] = opt.memory.value.matrix()
        other = optim.TONGA(mlp(), Categorical(), decay=0.5)
        other.observe(x, labels)
        step(other.network.module, other, x, y)
        values[f"{name}, covariance"] = other.memory.value.matrix()
    assert torch.equal(values["true"], values["shuffled"])
    assert off(values["true, covariance"], values["shuffled, covariance"]) > 1e-2


def test_covariances_of_gradients_want_labels_and_others_none():
    opt = optim.TONGA(mlp(), Categorical())
    x, y = data(20)
    with pytest.raises(
        InvalidSetting, match=r"observed with Empirical\(\), which looks at the data's own labels. Give"
    ):
        opt.observe(x)
    kfac = made("K-FAC", mlp())
    with pytest.raises(InvalidSetting, match=r"labels are given, and Exact\(chunk=32\) looks at none. Leave them out"):
        kfac.observe(x, y)
    start = params(opt.network.module)
    step(opt.network.module, opt, x, y)
    assert opt.report.skipped == "" and off(params(opt.network.module), start) > 0


def test_a_covariance_of_other_examples_by_hand():
    model, (x, y), (u, w) = mlp(), data(20, seed=1), data(30, seed=2)
    opt = optim.TONGA(model, Categorical(), structure="full", lr=0.1, damping=0.5)
    rows = []
    for a, b in zip(u, w, strict=True):
        found = torch.autograd.grad(CE(model(a[None]), b[None]), list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in found]))
    rows = torch.stack(rows) - torch.stack(rows).mean(0)
    g = torch.cat([p.flatten() for p in torch.autograd.grad(CE(model(x), y), list(model.parameters()))])
    start = params(model)
    opt.observe(u, w)
    step(model, opt, x, y)
    C = rows.mT @ rows / 30 + 0.5 * torch.eye(len(g))
    assert off(params(model) - start, -0.1 * torch.linalg.solve(C, g)) < 1e-9


@pytest.mark.parametrize("estimator", [MonteCarlo(2), CurvatureProp()])
def test_labels_drawn_aside_are_resumed(estimator):
    def run(model, opt, span):
        for t in span:
            opt.observe(data(15, seed=90 + t)[0])
            step(model, opt, *data(20, seed=t))

    settings = {"estimator": estimator, "decay": 0.8, "schedule": optim.Schedule(2, 2)}
    whole = mlp()
    run(whole, made("K-FAC", whole, **settings), range(6))
    half, fresh = mlp(), mlp()
    opt = made("K-FAC", half, **settings)
    run(half, opt, range(3))
    fresh.load_state_dict(half.state_dict())
    resumed = made("K-FAC", fresh, **settings)
    resumed.observe(data(15, seed=1)[0])  # belongs to no state: loading one lets go of it
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    run(fresh, resumed, range(3, 6))
    assert torch.equal(params(fresh), params(whole))


def test_what_is_given_is_for_one_step():
    own, hand = mlp(), mlp()
    opt, plain = made("K-FAC", own), made("K-FAC", hand)
    (x, y), other = data(20), data(20, seed=9)[0]
    for given in (True, False, True, False):
        if given:
            opt.observe(other)
            by_hand("K-FAC", hand, x, y, other)
        else:
            step(hand, plain, x, y)
        step(own, opt, x, y)
        assert off(params(own), params(hand)) < 1e-9


def test_where_no_statistics_are_due_it_is_let_go_of():
    own = mlp()
    opt = made("K-FAC", own, schedule=optim.Schedule(100, 100, warmup=1))
    step(own, opt, *data(20))
    value = opt.memory.value
    opt.observe(data(20, seed=5)[0])
    step(own, opt, *data(20))
    assert opt.memory.value is value and not opt.report.statistics


def test_inputs_that_overflow_are_not_averaged():
    own = mlp()
    opt = made("K-FAC", own, decay=0.5)
    step(own, opt, *data(20))
    value = opt.memory.value.matrix()
    opt.observe(torch.full((20, 4), float("nan")))
    step(own, opt, *data(20))
    assert "statistics that are not finite" in opt.report.trouble
    assert torch.equal(opt.memory.value.matrix(), value) and bool(params(own).isfinite().all())


def test_hessian_free_with_curvature_on_a_part():
    """As its author runs it: gradient and line search on all examples, products on some."""
    x, y = data(200)
    model = mlp()
    opt = optim.HessianFree(model, Categorical(), damping=1.0)
    losses = []
    for t in range(12):
        opt.observe(x[t % 4 :: 4])
        losses.append(step(model, opt, x, y))
    assert losses[-1] < 0.2 * losses[0] and opt.tally.counts == {}


# --- losses of other examples -----------------------------------------------------------------------------------------


def test_krylov_descent_minimizes_the_loss_of_the_examples_given():
    model, x, y = line(features=5)
    u, w = x + 0.3, y.flip(0)
    opt = optim.KrylovSubspaceDescent(model, Gaussian(), size=2, iterations=60)
    here = Network.from_torch(copy.deepcopy(model), Gaussian(), x)
    F, df, start = here.fisher(x).matrix(), here.differential(x, y).data, here.parameters_point().data
    A, b = here.fisher(u).matrix(), here.differential(u, w).data
    K = torch.linalg.qr(torch.stack([df, F @ df], 1))[0]
    wanted = -K @ torch.linalg.solve(K.mT @ A @ K, K.mT @ b)
    own = -K @ torch.linalg.solve(K.mT @ F @ K, K.mT @ df)
    opt.evaluate_on(u, w)
    step(model, opt, x, y, half_squares)
    moved = Network.from_torch(copy.deepcopy(model), Gaussian(), x).parameters_point().data - start
    assert off(moved, wanted) < 1e-6 and off(moved, own) > 1e-2


def test_a_search_on_the_batch_s_own_examples_is_the_same_either_way():
    """What is known without labels is the loss itself, for a softmax."""
    x, y = data(40)
    found = []
    for given in (False, True):
        model = mlp()
        opt = optim.NaturalConjugateGradient(model, Categorical(), estimator=Exact(), schedule=optim.Schedule(1, 1))
        for _ in range(4):
            if given:
                opt.evaluate_on(x, y)
            step(model, opt, x, y)
        found.append(params(model))
    assert off(found[0], found[1]) < 1e-8


def test_a_rule_that_searches_nothing_refuses_examples():
    opt = made("K-FAC", mlp())
    with pytest.raises(
        InvalidSetting, match=r"evaluate_on: Constant\(\) searches on no loss. It is for step rules that"
    ):
        opt.evaluate_on(*data(20))


def test_dropout_has_the_masks_of_the_loop():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Dropout(0.4), nn.Linear(12, 3)).double()
    opt = optim.HessianFree(model, Categorical(), damping=1.0)
    x, y = data(60)
    for _ in range(5):
        opt.zero_grad()
        torch.manual_seed(7)
        before = CE(model(x), y)
        before.backward()
        opt.step()
        torch.manual_seed(7)
        change = float((CE(model(x), y) - before).detach())
        assert opt.report.actual == pytest.approx(change, abs=1e-12) and change < 0
