"""Steepest descent in a norm as an optimizer: the loop, groups, resuming bit for bit, bad input."""

import copy

import pytest
import torch
from optim_cases import batches, data, flat, hooks, mlp, step
from torch import nn

from riemann_ng.errors import InvalidSetting
from riemann_ng.likelihoods import Categorical, Gaussian
from riemann_ng.metrics import KFAC
from riemann_ng.networks import Empirical, Exact, Network
from riemann_ng.norms import ByLayer, InvalidNorm, Modular, NewtonSchulz, Sign, Spectral, steepest_ascent
from riemann_ng.optim import SteepestDescent

CE = nn.functional.cross_entropy
DAMPED = KFAC().damp_factors(1e-2)
NORMS = {
    "Muon": Spectral(method=NewtonSchulz(), scale="original", bias="separate"),
    "sign": Sign(),
    "modular": Modular(),
    "K-FAC": Spectral(DAMPED),
    "K-FAC, Newton-Schulz": Spectral(DAMPED, NewtonSchulz()),
    "by layer": ByLayer({"0": Spectral(DAMPED)}, otherwise=Sign()),
}


def made(model, norm, **settings):
    return SteepestDescent(model, Categorical(), norm, **{"lr": 0.02, "momentum": 0.9, **settings})


def run(opt, model, seen):
    return [step(model, opt, x, y) for x, y in seen]


@pytest.mark.parametrize("name", NORMS)
def test_it_trains_and_resumes_bit_for_bit(name):
    settings = {"every": 3, "lr": 0.1} if "K-FAC" in name else {"lr": 0.1}
    model = mlp()
    opt = made(model, NORMS[name], **settings)
    losses = run(opt, model, batches(8))
    assert losses[-1] < losses[0] and opt.report.step == opt.steps == 8 and not opt.tally.counts
    kept, weights = copy.deepcopy(opt.state_dict()), copy.deepcopy(model.state_dict())
    later = batches(14)[8:]
    run(opt, model, later)
    again = mlp(seed=5)
    again.load_state_dict(weights)
    other = made(again, NORMS[name], **settings)
    other.load_state_dict(kept)
    assert other.state_dict()["riemann_ng"]["steps"] == 8
    run(other, again, later)
    assert torch.equal(flat(again), flat(model))
    fresh = mlp(seed=5)
    fresh.load_state_dict(weights)
    run(made(fresh, NORMS[name], **settings), fresh, later)
    assert not torch.equal(flat(fresh), flat(model))  # without the memory it is another run


def test_a_step_without_memory_is_the_steepest_one():
    x, y = data()
    for norm in (Spectral(), Spectral(DAMPED), Modular()):
        for length in ("unit", "dual"):
            model, twin = mlp(), mlp()
            network = Network.from_torch(twin, Categorical(), x)
            v = steepest_ascent(network, norm, x, y, unit=length == "unit")
            network.move_(v, step=-0.3)
            settings = {"momentum": 0.0, "decay": 0.0, "estimator": Exact(), "length": length, "lr": 0.3}
            step(model, made(model, norm, **settings), x, y)
            torch.testing.assert_close(flat(model), flat(twin))


def test_momentum_is_of_gradients():
    model = mlp()
    opt = made(model, Sign(), momentum=0.5, nesterov=False, lr=0.1)
    average = None
    for x, y in batches(3):
        before = flat(model)
        step(model, opt, x, y)
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        average = 0.5 * gradient if average is None else 0.5 * average + 0.5 * gradient
        torch.testing.assert_close(flat(model), before - 0.1 * average.sign())


def test_closures_groups_and_decay():
    model, x, y = mlp(), *data()
    weights = [model[0].weight, model[2].weight]
    groups = [
        {"params": weights, "lr": 0.1, "weight_decay": 0.5},
        {"params": [model[0].bias, model[2].bias], "lr": 0.0},
    ]
    opt = made(model, Spectral(), params=groups, momentum=0.0)
    before = copy.deepcopy(model)

    def closure():
        opt.zero_grad()
        loss = CE(model(x), y)
        loss.backward()
        return loss

    heard = []
    opt.listeners.append(heard.append)
    loss = opt.step(closure)
    assert opt.report.loss == float(loss.detach()) and heard == [opt.report]
    network = Network.from_torch(before, Categorical(), x)
    v = steepest_ascent(network, Spectral(), x, y, unit=True).to_parameters()
    torch.testing.assert_close(model[0].weight, before[0].weight * 0.95 - 0.1 * v["0.weight"])
    assert torch.equal(model[2].bias, before[2].bias)
    scheduler = torch.optim.lr_scheduler.StepLR(opt, 1, 0.1)
    opt.step(closure)
    scheduler.step()
    assert opt.param_groups[0]["lr"] == pytest.approx(0.01) and "lr=[0.1, 0.0]" in repr(opt)
    with pytest.raises(InvalidSetting, match="in add_param_group: the parameters are those of the model"):
        opt.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})


def test_what_is_not_finite_moves_nothing():
    model, (x, y) = mlp(), data()
    opt = made(model, Spectral(DAMPED), every=2)
    step(model, opt, x, y)
    before, state = flat(model), opt.state_dict()["riemann_ng"]
    opt.zero_grad()
    opt.step()
    assert opt.report.skipped == "no gradient"
    CE(model(x), y).backward()
    model[0].weight.grad[0, 0] = float("nan")
    opt.step()
    assert opt.report.skipped == "a gradient that is not finite"
    assert opt.step(lambda: float("inf")) == float("inf") and opt.report.skipped == "a loss that is not finite"
    assert torch.equal(flat(model), before) and opt.steps == 1
    after = opt.state_dict()["riemann_ng"]
    assert all(torch.equal(after["buffer"][k], state["buffer"][k]) for k in state["buffer"])
    assert dict(opt.tally.counts) == dict.fromkeys(after["tally"], 1) and len(after["tally"]) == 3
    step(model, opt, x, y)
    assert opt.steps == 2


def test_an_error_leaves_everything_as_it_was():
    model, (x, y) = mlp(), data()
    opt = made(model, Spectral(KFAC()), estimator=Exact())
    before = flat(model)
    with pytest.raises(Exception, match=r"DegenerateMetric in Spectral: the factor .* has rank 2 of 3"):
        step(model, opt, x, y)
    assert torch.equal(flat(model), before) and opt.steps == 0 and opt._buffer is None and opt._value is None
    assert opt._average.count == 0


def test_hooks_only_where_something_is_observed():
    model = mlp()
    opt = made(model, Sign())
    assert hooks(model) == 0
    opt.close()
    opt = made(model, Spectral(DAMPED))
    assert hooks(model) == 2
    opt.close()
    assert hooks(model) == 0


def test_it_says_what_it_is():
    model, (x, y) = mlp(), data()
    opt = made(model, ByLayer({"0": Sign()}, Spectral(scale="rms")))
    assert {path: text.split("(")[0] for path, text in opt.stated().items()} == {"0": "Sign", "2": "Spectral"}
    assert repr(opt) == (
        "SteepestDescent(model, likelihood=Categorical(), "
        "norm=ByLayer({'0': Sign()}, otherwise=Spectral(scale='rms')), "
        "lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.0, length='unit')"
    )
    opt = made(model, Spectral(DAMPED), divided_by=24, estimator=Empirical())
    assert "estimator=Empirical(), decay=0.9, every=1, divided_by=24)" in repr(opt)
    step(model, opt, x, y)
    assert "second" in opt.stated()["0"] or "Gram" in opt.stated()["0"] or "between" in opt.stated()["0"]
    assert "separate" in repr(SteepestDescent(model, Categorical()))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"norm": KFAC()}, r"norm=KFAC\(\), expected a norm, an instance, as norms.Spectral\(\). A metric is for"),
        ({"norm": Sign}, r"norm=the class Sign, expected a norm, an instance: Sign\(\)"),
        ({"likelihood": CE}, r"likelihood=.*, expected one, an instance, as Categorical\(\)"),
        ({"momentum": 1.0}, r"momentum=1.0, expected a number in \[0, 1\)"),
        ({"decay": -1}, r"decay=-1, expected a number in \[0, 1\)"),
        ({"every": 0}, "every=0, expected a positive number of steps"),
        ({"length": "long"}, "length='long', expected 'unit' or 'dual'"),
        ({"divided_by": 0}, "divided_by=0, expected a positive number"),
    ],
)
def test_bad_settings_are_refused(settings, text):
    with pytest.raises(InvalidSetting, match=f"InvalidSetting in SteepestDescent: {text}"):
        SteepestDescent(mlp(), **{"likelihood": Gaussian(), **settings})


def test_a_norm_that_does_not_fit_is_refused_when_it_is_made():
    with pytest.raises(InvalidNorm, match="no layer is called 'fc'"):
        made(mlp(), ByLayer({"fc": Sign()}, Sign()))
    opt = made(mlp(), Sign())
    with pytest.raises(
        InvalidSetting, match=r"the state is of norm=Sign\(\), and this optimizer has norm=Spectral\(\)"
    ):
        made(mlp(), Spectral()).load_state_dict(opt.state_dict())
    with pytest.raises(InvalidSetting, match="it belongs to one model, and cannot be copied"):
        copy.deepcopy(opt)
