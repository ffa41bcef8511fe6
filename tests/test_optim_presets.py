"""The classical methods as presets, held against theory and against loops written out by hand, in float64."""

import copy
from itertools import pairwise

import pytest
import torch
from optim_cases import CE, batches, data, mlp, step
from presets_cases import PRESETS, half_squares, params, random_form, trained
from scipy.sparse.linalg import minres
from torch import nn

import riemann_ng as rng
from riemann_ng import optim
from riemann_ng.elements import Covector
from riemann_ng.inner_products import Gram
from riemann_ng.likelihoods import Categorical, Gaussian
from riemann_ng.networks import Exact, Network
from riemann_ng.solvers import MinresQLP
from riemann_ng.spaces import Space


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def off(a, b):
    return float((a - b).abs().max() / b.abs().max())


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_one_optimizer_and_its_repr_the_recipe(name):
    opt = PRESETS[name](mlp(), Categorical())
    assert type(opt) in (optim.NaturalGradient, optim.SteepestDescent)
    names = {**vars(rng.optim), **vars(rng), **vars(rng.networks), **vars(rng.norms), **vars(rng.solvers)}
    names |= {"PRONG": rng.metrics.PRONG, "model": mlp()}
    assert repr(eval(repr(opt), names)) == repr(opt)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_trains_and_nothing_goes_wrong(name):
    x, y = data(60)
    model = mlp()
    opt = PRESETS[name](model, Categorical())
    first = float(CE(model(x), y).detach())
    for _ in range(30):
        last = step(model, opt, x, y)
    assert last < first and bool(params(model).isfinite().all())


@pytest.mark.parametrize("name", PRESETS)
def test_a_closure_takes_the_steps_of_the_loop(name):
    plain, opt = trained(PRESETS[name], batches(4))
    model, seen = mlp(), []
    other = PRESETS[name](model, Categorical())
    for x, y in batches(4):

        def closure(x=x, y=y):
            other.zero_grad()
            loss = CE(model(x), y)
            loss.backward()
            return loss

        other.step(closure)
        seen.append(params(model))
    assert torch.equal(plain, torch.stack(seen))
    assert opt.steps == other.steps == 4


@pytest.mark.parametrize("name", PRESETS)
def test_a_run_is_resumed_bit_for_bit(name):
    whole, _ = trained(PRESETS[name], batches(6))
    model = mlp()
    half, opt = trained(PRESETS[name], batches(6)[:3], model)
    other = mlp()
    other.load_state_dict(model.state_dict())
    fresh = PRESETS[name](other, Categorical())
    fresh.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert torch.equal(half, whole[:3])
    for x, y in batches(6)[3:]:
        step(other, fresh, x, y)
    assert torch.equal(params(other), whole[-1])


@pytest.mark.parametrize("name", ["Hessian-free", "Krylov", "conjugate", "joint on the model"])
def test_what_a_rule_carries_is_part_of_the_state(name):
    """The control: without it the run goes elsewhere."""
    whole, _ = trained(PRESETS[name], batches(6))
    model = mlp()
    _, opt = trained(PRESETS[name], batches(6)[:3], model)
    opt.carrying.forget()
    for x, y in batches(6)[3:]:
        step(model, opt, x, y)
    assert off(params(model), whole[-1]) > 1e-4


# --- K-FAC's own rules ------------------------------------------------------------------------------------------------


def deep_linear(depth, width=4, code=None, nonlinear=False, seed=0):
    torch.manual_seed(seed)
    widths = [width] * (depth + 1)
    if code is not None:
        widths[depth // 2] = code
    layers = []
    for n, m in pairwise(widths):
        layers += [nn.Linear(n, m, bias=False), nn.Tanh() if nonlinear else nn.Identity()]
    model = nn.Sequential(*layers[:-1])
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.eye(*p.shape) + 0.3 * torch.randn(*p.shape))
    x = torch.randn(60, width) @ torch.randn(width, width)
    return model, x, torch.randn(60, width)


def rescaled(model, x, y, **settings):
    own = {"lr": 1.0, "momentum": 0.0, "damping": None, "estimator": Exact(), "schedule": optim.Schedule(1, 1)}
    opt = optim.NaturalGradient(model, Gaussian(), decay=0.0, step_size=optim.PlaneSearch(), **own | settings)
    step(model, opt, x, y, half_squares)
    return opt.report.alpha


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_the_exact_fisher_rescales_a_step_of_a_deep_linear_network_by_one_over_its_depth(depth):
    assert rescaled(*deep_linear(depth)) == pytest.approx(1 / depth, abs=1e-11)


def test_elsewhere_it_does_not():
    assert abs(rescaled(*deep_linear(3, nonlinear=True)) - 1 / 3) > 1e-3
    assert abs(rescaled(*deep_linear(4, code=3), damping=1e-8) - 1 / 4) > 1e-4


@pytest.mark.parametrize("depth", [1, 3])
def test_the_online_natural_gradient_divides_by_the_depth(depth):
    model, x, y = deep_linear(depth)
    network = Network.from_torch(copy.deepcopy(model), Gaussian(), x)
    v = rng.natural_gradient(network, rng.KFAC().damp_factors(1e-2, split="none"), x, y)
    start = params(model)
    opt = optim.OnlineNaturalGradient(model, Gaussian(), lr=0.2, estimator=Exact())
    step(model, opt, x, y, half_squares)
    network.move_(v, step=-0.2 / depth)
    assert off(params(model) - start, params(network.module) - start) < 1e-10
    assert "OverDepth(of=Constant())" in repr(opt)


def published(model, likelihood):
    return optim.PublishedKFAC(model, likelihood, damping=1.0, fraction=1.0, estimator=Exact())


def test_gamma_is_the_one_of_three_with_the_lowest_model():
    x, y = data(60)
    seen = []
    model = mlp()
    opt = published(model, Categorical())
    for _ in range(45):
        before, state = copy.deepcopy(model.state_dict()), copy.deepcopy(opt.state_dict())
        was = opt.memory.strength
        step(model, opt, x, y)
        if opt.steps in (21, 41):
            tried = opt.policy.tried(was, opt.steps - 1)
            assert was in tried or min(tried) >= was / 2
            promised = {strength: one_strength(before, state, strength, x, y) for strength in tried}
            assert promised[opt.memory.strength] == min(promised.values()) == pytest.approx(opt.report.predicted)
            assert len(set(promised.values())) == len(promised) > 1
            seen.append(opt.memory.strength)
        else:
            assert opt.memory.strength == (was if opt.steps > 20 else opt.memory.damping)
    assert len(seen) == 2 and opt.memory.damping not in seen


def one_strength(parameters, state, strength, x, y):
    class One(optim.Searched):
        def tried(self, _, step):
            return (strength,) if step % 20 == 0 else ()

    model = mlp()
    model.load_state_dict(parameters)
    opt = published(model, Categorical())
    opt.policy = One(opt.policy.of)
    opt.memory.policy = opt.policy
    opt.load_state_dict(state)
    step(model, opt, x, y)
    return opt.report.predicted


def test_the_strengths_that_are_tried():
    rule = optim.Searched(optim.Factored(1.0), floor=1e-4, ceiling=1.0)
    factor = 0.95**20
    assert rule.tried(0.1, 0) == rule.tried(0.1, 19) == ()
    assert rule.tried(0.1, 40) == pytest.approx((0.1, 0.1 * factor, 0.1 / factor))
    assert rule.tried(5.0, 20) == (1.0,) or rule.tried(5.0, 20) == pytest.approx((1.0, min(1.0, 5 * factor)))
    assert rule.tried(1e-4, 20) == pytest.approx((1e-4, 1e-4 / factor))


def test_statistics_are_averaged_as_a_mean_until_the_decay():
    opt = published(mlp(), Categorical())
    weights = []
    for _ in range(30):
        weights.append(opt.memory.average.averages[0].next_weight)
        step(opt.network.module, opt, *data(12))
    assert weights == [max(1 / k, 1 - 0.95) for k in range(1, 31)]
    corrected = optim.NaturalGradient(mlp(), Categorical(), decay=0.95)
    step(corrected.network.module, corrected, *data(12))
    assert corrected.memory.average.averages[0].next_weight != pytest.approx(1 / 2, abs=1e-3)


# --- MINRES and its damping rule --------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [3, 8])
def test_the_solver_begins_at_the_gradient(steps):
    A, xi = random_form(20, condition=300.0)
    V = Space("V", 20)
    solver = optim.FromGradient(MinresQLP(tolerance=1e-12, max_iterations=steps))
    own = solver.solve(Gram(V, A), Covector(V, xi))
    unit = xi / xi.norm()
    theirs = minres(A.numpy(), unit.numpy(), x0=unit.numpy().copy(), maxiter=steps, rtol=1e-15)[0]
    assert off(own.value.data, xi.norm() * torch.from_numpy(theirs)) < 1e-8
    assert own.report.iterations == steps and not own.report.converged
    cold = minres(A.numpy(), unit.numpy(), maxiter=steps, rtol=1e-15)[0]
    assert off(own.value.data, xi.norm() * torch.from_numpy(cold)) > 1e-3


def test_with_steps_enough_it_solves():
    A, xi = random_form(20, condition=300.0)
    V = Space("V", 20)
    solver = optim.FromGradient(MinresQLP(tolerance=1e-10, max_iterations=200))
    solution = solver.solve(Gram(V, A), Covector(V, xi))
    assert solution.report.converged and off(solution.value.data, torch.linalg.solve(A, xi)) < 1e-7


def test_the_damping_goes_by_what_the_gradient_promises():
    """λ after every step, by the losses themselves and the linear model; and another rule would have gone elsewhere."""
    model = mlp()
    opt = optim.MinresNaturalGradient(model, Categorical(), lr=1.0)
    assert opt.memory.damping == 6.0
    changes = {"3/2": 0, "2/3": 0, "none": 0}
    elsewhere = 0
    for x, y in batches(14, n=60):
        before, point, damping = float(CE(model(x), y).detach()), params(model), opt.memory.damping
        g = torch.cat([p.flatten() for p in torch.autograd.grad(CE(model(x), y), list(model.parameters()))])
        step(model, opt, x, y)
        promised = float(g @ (params(model) - point))
        ratio = (float(CE(model(x), y).detach()) - before) / promised
        factor, name = (1.5, "3/2") if ratio < 0.25 else (2 / 3, "2/3") if ratio > 0.75 else (1.0, "none")
        changes[name] += 1
        assert opt.memory.damping == pytest.approx(max(damping * factor, 1e-4), rel=1e-12)
        assert opt.report.predicted == pytest.approx(promised, rel=1e-9)
        elsewhere += ratio * promised / (promised / 2) > 0.75 and name != "2/3"
    assert changes["2/3"] and changes["none"] and elsewhere


def test_the_damping_has_a_floor():
    policy = optim.MinresNaturalGradient(mlp(), Categorical()).policy
    assert policy.adapted(1.2e-4, 0.9) == 1e-4 and policy.adapted(1.0, 0.5) == 1.0
    assert policy.adapted(1.0, 0.2) == policy.adapted(1.0, float("nan")) == pytest.approx(1.5)
    assert policy.adapted(1.0, 0.8) == pytest.approx(2 / 3)


def test_learning_rates_are_scheduled_by_torch():
    model = mlp()
    opt = optim.MinresNaturalGradient(model, Categorical())
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: 1 / (1 + max(t - 2, 0) / 20))
    for x, y in batches(5):
        step(model, opt, x, y)
        schedule.step()
    assert opt.report.alpha == pytest.approx(1 / (1 + 2 / 20))


# --- TONGA ------------------------------------------------------------------------------------------------------------


def gradients(model, x, y):
    rows = []
    for a, b in zip(x, y, strict=True):
        found = torch.autograd.grad(CE(model(a[None]), b[None]), list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows)


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("structure", ["full", "block-diagonal"])
def test_tonga_descends_by_the_centred_covariance_of_gradients(structure, rank):
    model, (x, y) = mlp(), data(30)
    rows = gradients(model, x, y)
    start = params(model)
    step(model, optim.TONGA(model, Categorical(), structure, rank, lr=0.1, damping=0.3), x, y)
    blocks = [slice(0, 30), slice(30, 51)] if structure == "block-diagonal" else [slice(0, 51)]

    def by_hand(centred):
        moved = torch.zeros_like(start)
        for at in blocks:
            part = rows[:, at] - (rows[:, at].mean(0) if centred else 0.0)
            C = part.mT @ part / len(x)
            values, axes = torch.linalg.eigh(C)
            values[: len(values) - (rank or len(values))] = 0
            moved[at] = -0.1 * axes @ ((axes.mT @ rows[:, at].mean(0)) / (values.clamp(min=0) + 0.3))
        return moved

    assert off(params(model) - start, by_hand(True)) < 1e-9
    assert off(params(model) - start, by_hand(False)) > 1e-4


# --- Adam, Muon, spectral steps, geodesics ----------------------------------------------------------------------------


def minibatches(steps=60):
    return [data(12, seed=s) for s in range(1, steps + 1)]


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9)])
def test_adam_is_torch_s(betas):
    own, opt = trained(lambda m, p: optim.Adam(m, p, lr=0.01, betas=betas), minibatches())
    theirs, _ = trained(lambda m, p: torch.optim.Adam(m.parameters(), lr=0.01, betas=betas), minibatches())
    assert off(own, theirs) < 1e-12 and off(own[-1], own[0]) > 0.1
    assert "momentum_of='gradients'" in repr(opt)


def test_momentum_of_displacements_is_another_method():
    def other(m, p):
        return optim.Adam(m, p, lr=0.01, momentum_of="displacements")

    theirs, _ = trained(lambda m, p: torch.optim.Adam(m.parameters(), lr=0.01), minibatches())
    assert off(trained(other, minibatches())[0], theirs) > 1e-2


def test_momentum_of_gradients_has_its_bias_corrected():
    own, _ = trained(
        lambda m, p: optim.NaturalGradient(
            m, p, rng.EuclideanMetric(), lr=0.1, momentum=0.8, momentum_of="gradients", damping=None,
            step_size=optim.Constant(),
        ),
        minibatches(6),
    )  # fmt: skip
    model, mean = mlp(), 0.0
    for t, (x, y) in enumerate(minibatches(6), 1):
        g = torch.autograd.grad(CE(model(x), y), list(model.parameters()))
        mean = 0.8 * mean + 0.2 * torch.cat([p.flatten() for p in g])
        with torch.no_grad():
            nn.utils.vector_to_parameters(params(model) - 0.1 * mean / (1 - 0.8**t), model.parameters())
        assert off(own[t - 1], params(model)) < 1e-12


def test_muon_is_steepest_descent_by_the_spectral_norm():
    assert repr(optim.Muon(mlp(), Categorical())) == repr(optim.SteepestDescent(mlp(), Categorical()))
    own, _ = trained(optim.Muon, batches(5))
    theirs, _ = trained(lambda m, p: optim.SteepestDescent(m, p), batches(5))
    assert torch.equal(own, theirs)


def test_a_geodesic_step_is_bent():
    """To second order it is the geodesic's; without the correction it is straight."""
    x, y = data(40)
    settings = {"damping": None, "solver": None, "step_size": optim.GeodesicCorrected(optim.Constant())}
    model = mlp(outputs=2)
    y = torch.stack([y == 0, y == 1], 1).double()
    likelihood = rng.Bernoulli()
    network = Network.from_torch(copy.deepcopy(model), likelihood, x)
    exact = rng.geodesics.geodesic_step(network, rng.Fisher() + 0.1 * rng.EuclideanMetric(), x, y, step=-0.05)
    start = params(model)
    opt = optim.GeodesicNaturalGradient(
        model, likelihood, rng.Fisher() + 0.1 * rng.EuclideanMetric(), lr=0.05, estimator=Exact(), **settings
    )
    step(model, opt, x, y, likelihood.loss)
    network.move_(exact)
    assert off(params(model) - start, params(network.module) - start) < 1e-8
