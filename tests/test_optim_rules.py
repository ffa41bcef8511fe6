"""One step against its definition, and the bounds and laws of the policies."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optim_cases import CE, batches, data, flat, mlp, step
from torch import nn

import riemann_ng as rng
from riemann_ng import optim
from riemann_ng.errors import InvalidSetting
from riemann_ng.likelihoods import Bernoulli, Categorical, Gaussian, Poisson
from riemann_ng.networks import Empirical, Exact, MonteCarlo, Network
from riemann_ng.optim import (
    Constant,
    Factored,
    KLClip,
    LevenbergMarquardt,
    NaturalGradient,
    QuadraticModel,
    Schedule,
    Tikhonov,
    TrustRegion,
)
from riemann_ng.optim.listening import Pass
from riemann_ng.optim.quadratic import Batch, Model
from riemann_ng.optim.random_state import RandomState
from riemann_ng.optim.smoothing import GradientAverage
from riemann_ng.optim.steps import Situation, Taken

EVERY = Schedule(statistics=1, factorize=1, warmup=0)
ONCE = {"decay": 0.0, "schedule": EVERY, "step_size": Constant(), "momentum": 0.0}


FEW = settings(max_examples=settings.default.max_examples // 5)


def taken(model, opt, x, y, **options):
    before = flat(model)
    step(model, opt, x, y, **options)
    return flat(model) - before


@pytest.mark.parametrize("metric", [rng.KFAC(), rng.EKFAC(), rng.Fisher(), rng.Fisher("block-diagonal")], ids=str)
def test_one_step_is_minus_the_learning_rate_times_the_natural_gradient(metric):
    x, y = data()
    model = mlp()
    network = Network.from_torch(model, Categorical(), x)
    v = rng.natural_gradient(network, metric, x, y, damping=1e-2)
    expected = -0.3 * torch.cat([t.flatten() for t in v.to_parameters().values()])
    damping = Tikhonov(1e-2)
    opt = NaturalGradient(model, Categorical(), metric, lr=0.3, damping=damping, estimator=Exact(), **ONCE)
    moved = taken(model, opt, x, y)
    assert torch.allclose(moved, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))
    other = mlp()
    doubled = NaturalGradient(other, Categorical(), metric, lr=0.3, damping=2e-2, estimator=Exact(), **ONCE)
    assert not torch.allclose(taken(other, doubled, x, y), expected, rtol=1e-4)


def test_the_losss_own_backward_is_the_metric_at_an_empirical_observation():
    x, y = data()
    model = mlp()
    network = Network.from_torch(model, Categorical(), x)
    form = rng.KFAC().at(network.observe(x, Empirical(y))) + 1e-2 * rng.Euclidean(network.tangent_space)
    v = form.sharp(network.differential(x, y))
    expected = -0.3 * torch.cat([t.flatten() for t in v.to_parameters().values()])
    opt = NaturalGradient(model, Categorical(), lr=0.3, damping=Tikhonov(1e-2), estimator=Empirical(), **ONCE)
    assert torch.allclose(taken(model, opt, x, y), expected, rtol=1e-10, atol=1e-12)
    other = mlp()
    summed = NaturalGradient(other, Categorical(), lr=0.3, damping=Tikhonov(1e-2), estimator=Empirical(), **ONCE)
    wrong = taken(other, summed, x, y, criterion=lambda z, y: CE(z, y, reduction="sum"))
    assert not torch.allclose(wrong, expected, rtol=1e-2)


def test_divided_by_makes_any_reduction_the_mean():
    x, y = data()
    moved = []
    for divided_by, reduction in ((None, "mean"), (1, "sum")):
        model = mlp()
        opt = NaturalGradient(
            model, Categorical(), lr=0.3, damping=1e-2, estimator=Empirical(), divided_by=divided_by, **ONCE
        )
        moved.append(taken(model, opt, x, y, criterion=lambda z, y, r=reduction: CE(z, y, reduction=r)))
    assert torch.allclose(*moved, rtol=1e-9, atol=1e-13)


@FEW
@given(bound=st.floats(1e-8, 1e2), lr=st.floats(1e-3, 10))
def test_no_step_of_klclip_is_longer_than_its_bound(bound, lr):
    x, y = data()
    model = mlp()
    recipe = ONCE | {"step_size": KLClip(bound)}
    opt = NaturalGradient(model, Categorical(), lr=lr, damping=1e-2, estimator=Exact(), **recipe)
    moved = opt.network.vector(parts(model, taken(model, opt, x, y)))
    squared = float(opt.memory.damped.inner(moved, moved))
    free = float(opt.memory.damped.inner(moved, moved)) * (lr / opt.report.alpha) ** 2
    assert squared <= bound * (1 + 1e-6)
    assert math.isclose(squared, min(bound, free), rel_tol=1e-6)


@FEW
@given(radius=st.floats(1e-6, 1e2), momentum=st.floats(0, 0.99))
def test_no_step_of_a_trust_region_is_longer_than_its_radius(radius, momentum):
    x, y = data()
    model = mlp()
    recipe = ONCE | {"step_size": TrustRegion(radius), "momentum": momentum}
    opt = NaturalGradient(model, Categorical(), damping=1e-2, estimator=Exact(), **recipe)
    for _ in range(3):
        moved = opt.network.vector(parts(model, taken(model, opt, x, y)))
        assert float(opt.memory.damped.norm(moved)) <= radius * (1 + 1e-6)
    free = mlp()
    longer = NaturalGradient(free, Categorical(), damping=1e-2, estimator=Exact(), **ONCE)
    taken(free, longer, x, y)
    step_of = longer.network.vector(parts(free, taken(free, longer, x, y)))
    assert float(longer.memory.damped.norm(step_of)) > 1e-6


def parts(model, v):
    named, at = {}, 0
    for name, p in model.named_parameters():
        named[name] = v[at : at + p.numel()].reshape(p.shape)
        at += p.numel()
    return named


def one_pass(network, x):
    z = network.module(x).detach()
    return Batch(network, [Pass(x, z, RandomState.now(torch.device("cpu")), True)], network.likelihood)


def test_the_quadratic_models_minimum_is_that_of_the_dense_fisher():
    x, y = data()
    network = Network.from_torch(mlp(), Categorical(), x)
    torch.manual_seed(3)
    u, v = (network.vector({k: torch.randn_like(p) for k, p in network.parameters.items()}) for _ in range(2))
    df, h, damping = network.differential(x, y), rng.Euclidean(network.tangent_space), 0.07
    F = rng.second_moment(network.observe(x, Exact()).gradients).matrix() + damping * torch.eye(df.data.numel())
    D = torch.stack([u.data, v.data])
    expected = -torch.linalg.solve(D @ F @ D.mT, D @ df.data)
    model = Model.along([u, v], df, one_pass(network, x), 1.0, h, damping)
    assert torch.allclose(model.minimum(), expected, rtol=1e-9)
    least = model(expected)
    assert all(model(expected + 1e-3 * torch.eye(2)[i] * s) > least for i in (0, 1) for s in (-1, 1))
    twice = Model.along([u, u * 2.0], df, one_pass(network, x), 1.0, h, damping)  # the same direction twice
    single = Model.along([u], df, one_pass(network, x), 1.0, h, damping)
    best = twice.minimum()
    assert torch.allclose(best[0] + 2 * best[1], single.minimum()[0])
    assert not torch.allclose(Model.along([u, v], df, one_pass(network, x), 1.0, None, 0.0).minimum(), expected)


def test_an_average_of_part_and_whole_batches():
    x = data()[0]
    network = Network.from_torch(mlp(), Categorical(), x)
    u = network.vector({k: torch.ones_like(p) for k, p in network.parameters.items()})
    whole = one_pass(network, x).fisher([u])
    two = Batch(network, [*one_pass(network, x[:8]).passes, *one_pass(network, x[8:]).passes], network.likelihood)
    assert torch.allclose(two.fisher([u]), whole)
    assert torch.allclose(one_pass(network, x).fisher([u], 0.5), one_pass(network, x[:12]).fisher([u]))
    assert not torch.allclose(one_pass(network, x).fisher([u], 0.5), whole)


@pytest.mark.parametrize("layers", [1, 2, 3, 5])
def test_on_deep_linear_networks_kfac_is_rescaled_by_one_over_the_number_of_layers(layers):
    """The exact Fisher is the sum over all pairs of layers, and K-FAC's blocks are exact: α = 1/L."""
    torch.manual_seed(layers)
    widths = [4] * (layers + 1)  # no bottleneck: every layer moves the outputs alike
    model = nn.Sequential(*[nn.Linear(a, b, bias=False) for a, b in pairwise(widths)]).double()
    x, y = torch.randn(40, 4, dtype=torch.float64), torch.randn(40, 4, dtype=torch.float64)
    recipe = ONCE | {"step_size": QuadraticModel()}
    opt = NaturalGradient(model, Gaussian(), lr=1.0, damping=None, estimator=Exact(), **recipe)
    step(model, opt, x, y, criterion=lambda z, y: ((z - y) ** 2).sum(1).mean() / 2)
    assert abs(opt.report.alpha - 1 / layers) < 1e-12
    assert abs(opt.report.alpha - 1 / (layers + 1)) > 1e-2


def test_one_step_reaches_the_minimum_of_a_quadratic():
    torch.manual_seed(0)
    x, y = torch.randn(30, 4, dtype=torch.float64), torch.randn(30, 2, dtype=torch.float64)
    ones = torch.cat([x, torch.ones(30, 1)], 1)
    expected = torch.linalg.lstsq(ones, y).solution.mT
    found = {}
    for damping in (1e-10, 1e-1):
        model = nn.Linear(4, 2).double()
        opt = NaturalGradient(model, Gaussian(), lr=1.0, damping=Tikhonov(damping), estimator=Exact(), **ONCE)
        step(model, opt, x, y, criterion=lambda z, y: ((z - y) ** 2).sum(1).mean() / 2)
        found[damping] = torch.cat([model.weight, model.bias[:, None]], 1).detach()
    assert torch.allclose(found[1e-10], expected, atol=1e-8)
    assert not torch.allclose(found[1e-1], expected, atol=1e-4)


def situation(seed, momentum=0.9, length=None, rate=1.0):
    """Two directions at a small classifier, with the exact model of them."""
    torch.manual_seed(seed)
    x, y = data()
    network = rng.Network.from_torch(mlp(), Categorical(), x)
    v, w = (rng.Vector(network.tangent_space, torch.randn(network.tangent_space.dim, dtype=x.dtype)) for _ in range(2))
    batch = one_pass(network, x)
    last = None if length is None else Taken(1.0, 0.0, 1.0, length)
    here = Situation(network.differential(x, y), v, w, rate, momentum, None, batch, None, 0.0, last)
    return here, Model.along([v, w], here.df, batch, 1.0, None, 0.0)


@pytest.mark.parametrize("seed", range(8))
def test_the_share_of_the_last_displacement_is_bounded_by_the_momentum(seed):
    free, model = QuadraticModel().displacement(situation(seed, momentum=1e9)[0]), situation(seed)[1]
    bound = 0.5 * abs(free.mu)
    bounded = QuadraticModel().displacement(situation(seed, momentum=bound)[0])
    assert abs(bounded.mu) == pytest.approx(bound) and abs(free.mu) > abs(bounded.mu)
    line = [model(torch.tensor([bounded.alpha + e, bounded.mu])) for e in (-1e-3, 0.0, 1e-3)]
    assert line[1] < min(line[0], line[2])  # the best along the proposal, given that share


@pytest.mark.parametrize("seed", range(4))
def test_a_displacement_grows_at_most_twofold(seed):
    free = QuadraticModel().displacement(situation(seed)[0])
    short = QuadraticModel().displacement(situation(seed, length=free.length / 5)[0])
    assert short.length == pytest.approx(0.4 * free.length)
    assert torch.allclose(short.vector.components, 0.4 * free.vector.components)
    assert QuadraticModel(growth=6).displacement(situation(seed, length=free.length / 5)[0]).length == free.length


def test_between_models_the_coefficients_stay_and_the_share_of_the_proposal_does_not_jump():
    x, y = data()
    model = mlp()
    opt = NaturalGradient(model, Categorical(), damping=1e-1, step_size=QuadraticModel(every=3), estimator=Exact())
    made, alphas = [], []
    for _ in range(9):
        step(model, opt, x, y)
        made.append(opt.report.predicted is not None)
        alphas.append(opt.report.alpha)
    assert made == [True, False, True, False, False, True, False, False, True]
    assert alphas[3] == alphas[4] == alphas[2] != alphas[5]
    here, last = situation(0)[0], Taken(2.0, 0.5, 1.0, 1.0)
    squared = -float(here.df(here.proposal))
    here = replace(here, last=last, looked_at=False, proposal=here.proposal * (1.0 if squared > 0 else -1.0))
    far = replace(here, last=replace(last, squared=abs(squared) / 100))
    near = replace(here, last=replace(last, squared=abs(squared)))
    assert QuadraticModel(every=5).displacement(near).alpha == 2.0
    assert QuadraticModel(every=5).displacement(far).alpha == pytest.approx(0.4)  # twice a tenth of the length


def smoothed_run(steps, smoothing, **options):
    """A run at a fixed metric, with its gradients and displacements."""
    model, gradients, moved, made = mlp(), [], [], []
    rule = QuadraticModel(smoothing=smoothing)
    once = Schedule(statistics=10**6, factorize=10**6, warmup=1)
    opt = NaturalGradient(
        model, Categorical(), damping=1e-1, step_size=rule, estimator=Exact(), schedule=once, momentum=0.0, **options
    )
    for x, y in batches(steps):
        gradients.append(opt.network.differential(x, y))
        moved.append(taken(model, opt, x, y))
        made.append(opt.report)
    return opt, gradients, moved, made


@pytest.mark.parametrize("smoothing", [0.5, 0.9])
def test_the_smoothed_proposal_is_of_the_mean_with_weights_that_fall(smoothing):
    opt, gradients, moved, made = smoothed_run(4, smoothing)
    for k in range(1, 5):
        weights = [smoothing ** (k - 1 - i) for i in range(k)]
        mean = sum(w / sum(weights) * g.components for w, g in zip(weights, gradients[:k], strict=True))
        v = opt.memory.damped.sharp(rng.Covector(opt.network.tangent_space, mean)).to_parameters()
        expected = -made[k - 1].alpha * torch.cat([t.flatten() for t in v.values()])
        assert torch.allclose(moved[k - 1], expected, rtol=1e-8, atol=1e-12)
    bare = opt.memory.damped.sharp(gradients[3]).to_parameters()
    cosine = torch.cosine_similarity(moved[3], -torch.cat([t.flatten() for t in bare.values()]), dim=0).abs()
    assert cosine < 0.999  # the gradient at hand alone goes elsewhere


def test_a_smoothed_proposal_is_judged_by_the_gradient_at_hand():
    opt, gradients, moved, made = smoothed_run(4, 0.9, lr=1.0)
    v = opt.network.vector(parts(opt.network.module, moved[3]))
    slope = float(gradients[3](v))  # at the minimum along a line a model promises half the slope
    share = 0.1 / (1 - 0.9**4)  # of the gradient at hand in the average
    assert made[3].predicted == pytest.approx(slope * (1 - (1 - share / 2) / 2), rel=1e-6)
    assert made[3].predicted != pytest.approx(float(opt.gradients.value(v)) / 2, rel=1e-2)


def test_half_the_share_of_the_gradient_at_hand_is_taken_for_noise():
    free = QuadraticModel(smoothing=0.9).displacement(situation(0)[0])
    first = QuadraticModel(smoothing=0.9).displacement(replace(situation(0)[0], share=1.0))
    assert first.alpha == pytest.approx(free.alpha / 2) and first.mu == pytest.approx(free.mu / 2)
    model = mlp()
    opt = NaturalGradient(model, Categorical(), step_size=QuadraticModel(smoothing=0.9), estimator=Exact(), lr=1.0)
    other = mlp()
    bare = NaturalGradient(other, Categorical(), step_size=QuadraticModel(), estimator=Exact(), lr=1.0)
    assert torch.allclose(taken(model, opt, *data()) * 2, taken(other, bare, *data()))


def test_the_average_of_gradients_takes_in_no_step_that_is_refused_and_is_part_of_the_state():
    opt = smoothed_run(3, 0.9)[0]
    model, before = opt.network.module, opt.gradients.value.components.clone()
    (next(iter(model.parameters())) * math.nan).sum().backward()
    opt.step()
    assert opt.report.skipped and torch.equal(opt.gradients.value.components, before)
    state, ends = opt.state_dict(), []
    for forgotten in (False, False, True):
        again = mlp()
        again.load_state_dict(model.state_dict())
        other = NaturalGradient(again, Categorical(), **{k: v for k, v in opt.recipe().items() if k != "likelihood"})
        other.load_state_dict(state)
        if forgotten:
            other.gradients.forget()
        step(again, other, *data(seed=9))
        ends.append(flat(again))
    assert torch.equal(ends[0], ends[1]) and not torch.allclose(ends[0], ends[2], rtol=1e-4)


@given(decay=st.floats(0, 0.99), steps=st.integers(1, 20))
def test_the_average_of_equal_gradients_is_that_gradient(decay, steps):
    space = rng.Network.from_torch(mlp(), Categorical()).tangent_space
    df = rng.Covector(space, torch.arange(float(space.dim), dtype=torch.float64))
    average = GradientAverage(decay)
    for _ in range(steps):
        average.take(average.after(df))
    assert torch.allclose(average.after(df).components, df.components, rtol=1e-12)
    assert not torch.allclose(average.after(df * 2.0).components, df.components, rtol=1e-3)
    assert average.share == (pytest.approx((1 - decay) / (1 - decay ** (steps + 1))) if decay else 0.0)
    unchanged = average.state()["weight"]
    average.after(df)
    assert average.state()["weight"] == unchanged  # until it is taken in


def test_curvature_is_not_judged_on_a_few_examples():
    here, model = situation(0)
    few, least = QuadraticModel(0.1, at_least=2), QuadraticModel(0.1, at_least=24)
    assert torch.allclose(least.displacement(here).model.curvature, model.curvature)
    assert not torch.allclose(few.displacement(here).model.curvature, model.curvature, rtol=1e-2)


LOSSES = {  # likelihood, criterion, outputs, targets
    "categorical": (Categorical(), lambda z, y: CE(z, y), 3, lambda: torch.arange(24) % 3),
    "mean over sites": (
        Categorical(sites="mean"), lambda z, y: CE(z.reshape(-1, 3), y.reshape(-1)), 6,
        lambda: torch.arange(48).reshape(24, 2) % 3,
    ),
    "bernoulli": (
        Bernoulli(),
        lambda z, y: nn.functional.binary_cross_entropy_with_logits(z, y, reduction="none").sum(1).mean(),
        3,
        lambda: (torch.arange(72.0).reshape(24, 3) % 2).double(),
    ),
    "gaussian": (
        Gaussian(0.5), lambda z, y: 2 * ((z - y) ** 2).sum(1).mean(), 3,
        lambda: torch.arange(72.0).reshape(24, 3).sin(),
    ),
    "poisson": (
        Poisson(), lambda z, y: (z.exp() - y * z).sum(1).mean(), 3, lambda: torch.arange(72.0).reshape(24, 3) % 4,
    ),
}  # fmt: skip


class Reshaped(nn.Module):
    def __init__(self, inner, sites):
        super().__init__()
        self.inner, self.sites = inner, sites

    def forward(self, x):
        z = self.inner(x)
        return z.reshape(len(z), self.sites, -1) if self.sites else z


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("parts_of_it", [1, 3])
def test_the_change_of_the_loss_is_found_without_labels(name, parts_of_it):
    likelihood, criterion, outputs, targets = LOSSES[name]
    x, y = data()[0], targets()
    model = Reshaped(mlp(outputs=outputs), 2 if "sites" in name else 0)
    opt = NaturalGradient(
        model, likelihood, damping=LevenbergMarquardt(Factored(1e-2), every=1), step_size=QuadraticModel()
    )
    for _ in range(3):
        before = criterion(model(x), y)
        opt.zero_grad()
        for rows in torch.arange(24).chunk(parts_of_it):
            (criterion(model(x[rows]), y[rows]) / parts_of_it).backward()
        opt.step()
        actual = float(criterion(model(x), y).detach() - before.detach())
        assert math.isclose(opt.report.actual, actual, rel_tol=1e-8, abs_tol=1e-12)
        assert not math.isclose(opt.report.predicted, actual, rel_tol=1e-8)


def test_masks_of_dropout_are_the_loops_own():
    """Then the change of the loss is that of the function that the gradient is of."""
    x, y = data()
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 3)).double()
    damping = LevenbergMarquardt(Factored(1e-2), every=1)
    opt = NaturalGradient(model, Categorical(), damping=damping, step_size=QuadraticModel())
    state = torch.get_rng_state()
    before = step(model, opt, x, y)
    drawn = torch.get_rng_state()
    torch.set_rng_state(state)
    after = float(CE(model(x), y).detach())
    assert torch.equal(torch.get_rng_state(), drawn)  # and the optimizer draws nothing from the global state
    assert math.isclose(opt.report.actual, after - before, rel_tol=1e-9)
    assert not math.isclose(float(CE(model(x), y).detach()) - before, after - before, rel_tol=1e-3)


@given(ratio=st.one_of(st.floats(-2, 3), st.just(math.nan), st.just(math.inf), st.just(-math.inf)))
def test_levenberg_and_marquardts_rule(ratio):
    policy = LevenbergMarquardt(Factored(1.0), rate=0.9, every=3, floor=0.5, ceiling=2.0)
    adapted = policy.adapted(1.0, ratio)
    if ratio > 0.75:
        assert adapted == pytest.approx(0.9**3)
    elif 0.25 <= ratio <= 0.75:
        assert adapted == 1.0
    else:
        assert adapted == pytest.approx(0.9**-3)
    assert policy.adapted(0.5, 1.0) == 0.5 and policy.adapted(2.0, 0.0) == 2.0
    assert Factored(1.0).adapted(1.0, ratio) == 1.0


def test_heavy_ball_adds_displacements():
    x, y = data()
    model = mlp()
    rule = ONCE | {"momentum": 0.9}
    opt = NaturalGradient(model, Categorical(), lr=0.1, damping=1e-1, estimator=Exact(), **rule)
    first = taken(model, opt, x, y)
    here = {k: p.detach().clone() for k, p in model.state_dict().items()}
    second = taken(model, opt, x, y)
    bare = mlp()
    bare.load_state_dict(here)
    plain = NaturalGradient(bare, Categorical(), lr=0.1, damping=1e-1, estimator=Exact(), **ONCE)
    assert torch.allclose(second, taken(bare, plain, x, y) + 0.9 * first, atol=1e-12)


BAD = [
    ({"metric": rng.KFAC}, r"metric=the class KFAC, expected a metric, an instance: KFAC\(\)"),
    ({"likelihood": "mse"}, "likelihood='mse', expected one"),
    ({"momentum": 1.0}, r"momentum=1.0, expected a number in \[0, 1\)"),
    ({"decay": True}, "decay=True, expected"),
    ({"damping": "adaptive"}, "damping='adaptive', expected a number, a policy"),
    ({"damping": -1.0}, "start=-1.0, expected a positive number"),
    ({"schedule": 5}, "schedule=5, expected one, an instance, as optim.Schedule"),
    ({"step_size": 0.1}, "step_size=0.1, expected one"),
    ({"step_size": Constant()}, "adapts to a quadratic model, and Constant"),
    ({"averaging": 0.9}, "averaging=0.9, expected optim.IterateAverage"),
    ({"solver": "cg"}, "solver='cg', expected one"),
    ({"inversion": "free"}, "inversion='free', expected one"),
    ({"constants": 3}, "constants=3, expected one"),
    ({"divided_by": 0}, "divided_by=0, expected a positive number"),
    ({"lr": -1}, "lr=-1, expected a number of 0 or more"),
    ({"weight_decay": float("nan")}, "weight_decay=nan, expected"),
    ({"estimator": "exact"}, "estimator='exact', expected one"),
    ({"estimator": Empirical(torch.zeros(2))}, "the loss's own backward pass: Empirical"),
    ({"estimator": Empirical(), "schedule": Schedule(fraction=0.5)}, "on the whole batch"),
    ({"metric": rng.Fisher("matrix-free")}, "known by its products alone"),
]


@pytest.mark.parametrize(("settings", "text"), BAD, ids=range(len(BAD)))
def test_what_means_nothing_is_refused_by_text(settings, text):
    model = mlp()
    with pytest.raises(InvalidSetting, match=text):
        NaturalGradient(model, **({"likelihood": Categorical()} | settings))
    assert not model._forward_hooks


POLICIES = [
    (lambda: Schedule(statistics=0), "statistics=0"), (lambda: Schedule(fraction=0), "fraction=0"),
    (lambda: Schedule(warmup=-1), "warmup=-1"), (lambda: KLClip(0), "bound=0"), (lambda: TrustRegion(-1), "radius=-1"),
    (lambda: QuadraticModel(2), "fraction=2"),
    (lambda: QuadraticModel(smoothing=1), "smoothing=1, expected a number in"),
    (lambda: Factored(math.inf), "start=inf"),
    (lambda: Factored(1.0, rng.KFAC), "the reference is a metric"), (lambda: Factored(split="half"), "split='half'"),
    (lambda: Tikhonov(1.0, 3), "the reference is a metric, .* got 3"),
    (lambda: LevenbergMarquardt(LevenbergMarquardt()), "expected Factored"),
    (lambda: LevenbergMarquardt(rate=1), "a rate in"),
    (lambda: LevenbergMarquardt(every=0), "every of at least 1"), (lambda: optim.AtStart(1.0), "got 1.0"),
    (lambda: optim.IterateAverage(1.0), "a decay in"), (lambda: optim.ConstantBlocks(-1), "full=-1"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "text"), POLICIES, ids=[text for _, text in POLICIES])
def test_policies_refuse_what_means_nothing(make, text):
    with pytest.raises(InvalidSetting, match=text):
        make()


def test_the_repr_is_the_recipe():
    model = mlp()
    settings = {
        "metric": rng.KFAC() + 0.1 * rng.EuclideanMetric(), "damping": Tikhonov(0.5, optim.AtStart(rng.KFAC())),
        "averaging": optim.IterateAverage(0.9), "estimator": MonteCarlo(2), "step_size": KLClip(), "lr": 0.5,
        "inversion": optim.InverseFree(),
    }  # fmt: skip
    for given_settings in ({}, settings):
        opt = NaturalGradient(model, Categorical(), **given_settings)
        names = {**vars(optim), **vars(rng), **vars(rng.likelihoods), **vars(rng.networks), "model": model}
        again = eval(repr(opt), names)
        assert repr(again) == repr(opt)
        assert again.recipe().keys() == opt.recipe().keys()
    scheduler = torch.optim.lr_scheduler.StepLR(opt, 1, 0.1)
    opt.step()
    scheduler.step()
    assert opt.param_groups[0]["lr"] == pytest.approx(0.05) and "lr=0.5" in repr(opt)
