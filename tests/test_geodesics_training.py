"""Corrected steps in the plain loop: the functions' own steps, orders by the invariance suite, and resuming."""

import io
import re
from dataclasses import replace

import pytest
import torch
from optim_cases import CE, batches, data, flat, mlp, run, step
from torch import nn

import riemann_ng as rng
from riemann_ng import optim
from riemann_ng.errors import InvalidSetting
from riemann_ng.geodesics import geodesic_step, midpoint_step
from riemann_ng.likelihoods import Categorical, Gaussian
from riemann_ng.networks import Exact, Network
from riemann_ng.optim import Constant, GeodesicCorrected, KLClip, Midpoint, NaturalGradient, QuadraticModel, Schedule
from riemann_ng.testing.invariance import check_invariance, optimizer, update

EVERY = {"decay": 0.0, "schedule": Schedule(statistics=1, factorize=1, warmup=0), "estimator": Exact()}


def moved(model, opt, x, y, calls=1):
    before = flat(model)
    for _ in range(calls):
        step(model, opt, x, y)
    return flat(model) - before


def functional(rule, metric, x, y, **settings):
    network = Network.from_torch(mlp(), Categorical(), x)
    v = rule(network, metric, x, y, step=-0.3, **settings)
    return torch.cat([t.flatten() for t in v.to_parameters().values()])


def test_a_corrected_step_is_geodesic_step():
    x, y = data()
    expected = functional(geodesic_step, rng.Fisher("dense"), x, y, damping=1e-1)
    settings = {"lr": 0.3, "damping": optim.Tikhonov(0.1), "momentum": 0.0, **EVERY}
    opt = NaturalGradient(model := mlp(), Categorical(), rng.Fisher(), step_size=GeodesicCorrected(), **settings)
    assert torch.allclose(moved(model, opt, x, y), expected, rtol=1e-9, atol=1e-12)
    plain = NaturalGradient(model := mlp(), Categorical(), rng.Fisher(), step_size=Constant(), **settings)
    assert not torch.allclose(moved(model, plain, x, y), expected, rtol=1e-3)
    halves = NaturalGradient(model := mlp(), Categorical(), rng.Fisher(), step_size=GeodesicCorrected(), **settings)
    before = flat(model)
    halves.zero_grad()
    for part in (slice(0, 8), slice(8, 24)):  # accumulated gradients: the joint batch
        (CE(model(x[part]), y[part]) * len(x[part]) / 24).backward()
    halves.step()
    assert torch.allclose(flat(model) - before, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("metric", [rng.Fisher(), rng.KFAC()], ids=str)
def test_two_calls_of_the_midpoint_rule_are_midpoint_step(metric):
    x, y = data()
    expected = functional(midpoint_step, metric, x, y, damping=1e-1)
    settings = {"lr": 0.3, "damping": optim.Tikhonov(0.1), "momentum": 0.9, **EVERY}
    opt = NaturalGradient(model := mlp(), Categorical(), metric, step_size=Midpoint(), **settings)
    assert torch.allclose(moved(model, opt, x, y, calls=2), expected, rtol=1e-9, atol=1e-12)
    euler = NaturalGradient(model := mlp(), Categorical(), metric, step_size=Constant(), **settings | {"momentum": 0.0})
    assert not torch.allclose(moved(model, euler, x, y), expected, rtol=1e-3)


def test_a_correction_is_bounded_and_rules_are_composed():
    x, y = data()
    settings = {"lr": 0.3, "damping": optim.Tikhonov(1e-3), "momentum": 0.0, **EVERY}

    def bend(longest, of=Constant()):
        """The length of the correction over that of the step, in the metric."""
        models, steps = [mlp(), mlp()], []
        for model, rule in zip(models, (of, GeodesicCorrected(of, longest=longest)), strict=True):
            opt = NaturalGradient(model, Categorical(), rng.Fisher(), step_size=rule, **settings)
            steps.append(moved(model, opt, x, y))
        network = Network.from_torch(mlp(), Categorical(), x)
        g = (rng.Fisher() + 1e-3 * rng.EuclideanMetric()).at(network.observe(x))
        tensors = [
            dict(zip(network.parameters, split(network, s), strict=True)) for s in (steps[1] - steps[0], steps[0])
        ]
        return float(g.norm(network.vector(tensors[0])) / g.norm(network.vector(tensors[1])))

    free = bend(100.0)
    assert free > 0.02 and bend(free / 2) == pytest.approx(free / 2, rel=1e-6)
    assert bend(100.0, KLClip(1e-4)) < free / 2  # shorter steps bend less
    _, opt = run(steps=6, step_size=GeodesicCorrected(QuadraticModel()))
    assert opt.report.predicted is not None and not opt.tally.counts


def split(network, flat):
    sizes = [p.numel() for p in network.parameters.values()]
    return [t.view(p.shape) for t, p in zip(flat.split(sizes), network.parameters.values(), strict=True)]


@pytest.mark.parametrize("rule", [GeodesicCorrected(), GeodesicCorrected(QuadraticModel()), Midpoint()], ids=str)
def test_they_train(rule):
    damping = optim.LevenbergMarquardt() if rule.needs_batch and rule.of.needs_batch else 1e-2
    x, y = data(64)
    model, _ = run(data_of=[(x, y)] * 60, step_size=rule, damping=damping, momentum=0.5, lr=0.5)
    with torch.no_grad():
        assert float(CE(model(x), y)) < 0.1 < float(CE(mlp()(x), y))


@pytest.mark.parametrize("rule", [GeodesicCorrected(), Midpoint(KLClip(1e-2))], ids=str)
def test_a_run_resumes_bit_for_bit(rule):
    settings = {"step_size": rule, "damping": 1e-2, "momentum": 0.5}
    whole, opt = run(data_of=batches(7), **settings)
    assert repr(eval(repr(opt), {**vars(optim), **vars(rng), **vars(rng.networks), "model": whole})) == repr(opt)
    model, half = run(data_of=batches(7)[:3], **settings)  # in the middle of a step of two calls
    file = io.BytesIO()
    torch.save([model.state_dict(), half.state_dict()], file)
    file.seek(0)
    fresh = mlp(seed=5)
    resumed = NaturalGradient(fresh, Categorical(), **settings)
    for thing, state in zip((fresh, resumed), torch.load(file, weights_only=True), strict=True):
        thing.load_state_dict(state)
    for x, y in batches(7)[3:]:
        step(fresh, resumed, x, y)
    assert torch.equal(flat(fresh), flat(whole))


def test_dropout_has_the_masks_of_the_loop():
    """With them the same step comes out of the same state; and the global random state is the loop's."""
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)).double()
        opt = NaturalGradient(model, Categorical(), damping=1e-2, step_size=GeodesicCorrected(), lr=0.1)
        for x, y in batches(3):
            step(model, opt, x, y)
        found.append((flat(model), torch.rand(3)))
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    opt = NaturalGradient(model, Categorical(), damping=1e-2, step_size=Constant(), lr=0.1)
    for x, y in batches(3):
        step(model, opt, x, y)
    assert all(map(torch.equal, *found)) and torch.equal(torch.rand(3), found[0][1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GeodesicCorrected(Constant), r"GeodesicCorrected: of=the class Constant, expected a step rule"),
        (lambda: GeodesicCorrected(longest=0.0), r"GeodesicCorrected: longest=0.0, expected a positive number"),
        (lambda: Midpoint(QuadraticModel()), r"Midpoint: of=QuadraticModel\(.*Use Constant\(\)"),
        (
            lambda: run(steps=1, step_size=Midpoint(), damping=1e-2, momentum=0.0),
            r"Midpoint: the way back .*momentum=0.9",
        ),
    ],
)
def test_what_means_nothing_is_refused(make, message):
    with pytest.raises(InvalidSetting, match=message):
        make()


# --- the invariance suite ---------------------------------------------------------------------------------------------


def narrow():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)).double()
    x = torch.randn(60, 2, dtype=torch.float64)
    return model, x, model(x).detach() + 0.3 * torch.randn(60, 2, dtype=torch.float64)


def natural(rule, **settings):
    given = {"lr": 0.2, "damping": optim.Undamped(), "momentum": 0.0, **EVERY, **settings}
    return optimizer(
        lambda model, likelihood: NaturalGradient(model, likelihood, rng.Fisher(), step_size=rule, **given)
    )


def slope_of(subject):
    """By the suite: of log mismatch / displacement over log learning rate, one less than the order of a step."""
    model, x, y = narrow()
    report = check_invariance(subject, model, x, y, Gaussian(), on="parameters", groups="smooth", shrink=False)
    cell = report["parameters", "smooth"]
    return cell.verdict, float(re.search(r"slope (-?[\d.]+)", cell.reason)[1])


def test_the_suite_measures_the_orders():
    assert slope_of(natural(Constant())) == ("held", pytest.approx(1, abs=0.15))
    assert slope_of(natural(GeodesicCorrected(longest=100.0))) == ("held", pytest.approx(2, abs=0.15))
    verdict, slope = slope_of(natural(GeodesicCorrected(), damping=optim.Tikhonov(0.3)))
    assert verdict == "refuted" and slope < 0.3  # damping by coordinates


def test_corrected_kfac_keeps_its_frames():
    """The acceleration is a covector under affine changes, so K-FAC's symmetries stay: any frame, where undamped."""

    def kfac(model, likelihood):
        settings = {"lr": 0.2, "damping": optim.Undamped(), "momentum": 0.9, **EVERY}
        return NaturalGradient(model, likelihood, rng.KFAC(), step_size=GeodesicCorrected(), **settings)

    model, x, y = narrow()
    keys = [("activations", "affine"), ("pre-activations", "affine")]
    report = check_invariance(optimizer(kfac), model, x, y, Gaussian(), cells=keys, shrink=False)
    assert [report[key].verdict for key in keys] == ["held", "held"]

    def spoiled(model, x, y):  # negative control: a correction that is raised by the coordinates
        network = Network.from_torch(model, Gaussian(), x)
        v = rng.natural_gradient(network, rng.KFAC(), x, y) * -0.2
        bend = rng.geodesics.christoffel(network, rng.Fisher(), x, v)
        network.move_(v - 0.5 * rng.Euclidean(network.tangent_space).sharp(bend))

    report = check_invariance(update(spoiled), model, x, y, Gaussian(), cells=keys, shrink=False)
    assert [report[key].verdict for key in keys] == ["refuted", "refuted"]


def test_rules_are_values():
    assert GeodesicCorrected() == GeodesicCorrected(Constant(), 0.5) != GeodesicCorrected(longest=0.1)
    assert repr(Midpoint()) == "Midpoint(of=Constant())" and replace(Midpoint(), of=KLClip()).of == KLClip()
