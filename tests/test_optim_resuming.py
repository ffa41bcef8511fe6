"""A run that is killed and resumed goes on as if nothing had happened."""

import io

import pytest
import torch
from optim_cases import CE, batches, data, flat, mlp, run, step
from torch import nn

import riemann_ng as rng
from riemann_ng.errors import InvalidSetting
from riemann_ng.likelihoods import Categorical
from riemann_ng.networks import Empirical
from riemann_ng.optim import (
    AtStart,
    Constant,
    InverseFree,
    IterateAverage,
    LevenbergMarquardt,
    NaturalGradient,
    QuadraticModel,
    Schedule,
    Tikhonov,
)

STALE = Schedule(statistics=3, factorize=7, warmup=2)
RECIPES = {
    "default": {},
    "everything": {"schedule": STALE, "averaging": IterateAverage(0.9), "weight_decay": 1e-3},
    "empirical": {"estimator": Empirical(), "schedule": STALE},
    "no memory": {"decay": 0.0, "schedule": STALE},
    "no memory at all": {"decay": 0.0, "schedule": Schedule(1, 1, warmup=0)},
    "own forward": {"schedule": Schedule(3, 7, fraction=0.5)},
    "transported": {"damping": LevenbergMarquardt(Tikhonov(0.1, AtStart(rng.KFAC() + rng.EuclideanMetric())))},
    "exact damping": {"damping": Tikhonov(0.1), "step_size": Constant(), "lr": 0.1, "schedule": STALE},
    "eigenframes": {"metric": rng.EKFAC(), "schedule": STALE},
    "block-diagonal": {"metric": rng.Fisher("block-diagonal"), "schedule": STALE},
    "inverse-free": {"inversion": InverseFree(), "schedule": STALE},
}


def saved(*things):
    """Through a file, as a run that has ended leaves it."""
    file = io.BytesIO()
    torch.save([thing.state_dict() for thing in things], file)
    return file.getvalue()


def restored(file, *things):
    for thing, state in zip(things, torch.load(io.BytesIO(file), weights_only=True), strict=True):
        thing.load_state_dict(state)


def noisy():
    return nn.Sequential(mlp(), nn.Dropout(0.1), nn.Linear(3, 3)).double()


def trajectory(settings, kill, steps, make=mlp):
    """The parameters after each step of a run; killed and resumed after each step in `kill`, on a model made anew."""
    model = make()
    opt = NaturalGradient(model, Categorical(), **settings)
    found = []
    for t, (x, y) in enumerate(batches(steps)):
        if t in kill:
            file, random = saved(model, opt), torch.get_rng_state()
            opt.close()
            model = make()
            opt = NaturalGradient(model, Categorical(), **settings)
            restored(file, model, opt)
            torch.set_rng_state(random)
        step(model, opt, x, y)
        found.append(flat(model))
    return torch.stack(found), opt


@pytest.mark.parametrize("name", RECIPES)
def test_killed_before_any_step_it_takes_the_same_trajectory(name):
    expected, opt = trajectory(RECIPES[name], (), 30)
    found, resumed = trajectory(RECIPES[name], range(30), 30)
    assert torch.equal(found, expected)
    assert resumed.steps == opt.steps == 30 and resumed.tally.counts == opt.tally.counts
    assert resumed.memory.damping == opt.memory.damping
    if opt.averaged is not None:
        assert all(torch.equal(v, opt.averaged.values[k]) for k, v in resumed.averaged.values.items())


def test_dropout_goes_on_with_the_global_random_state():
    assert torch.equal(trajectory({}, range(12), 12, noisy)[0], trajectory({}, (), 12, noisy)[0])


@pytest.mark.parametrize("lost", ["steps", "observations", "displacement", "memory"])
def test_what_is_stored_is_needed(lost):
    model, opt = run(9)
    file = saved(model, opt)
    ends = []
    for losing in (False, True):
        other = mlp()
        resumed = NaturalGradient(other, Categorical())
        states = torch.load(io.BytesIO(file), weights_only=True)
        own = states[1]["riemann_ng"]
        if losing:
            own[lost] = {"steps": 0, "observations": 0, "displacement": None, "memory": resumed.memory.state()}[lost]
        other.load_state_dict(states[0])
        resumed.load_state_dict(states[1])
        for x, y in batches(4):
            step(other, resumed, x, y)
        ends.append(flat(other))
    assert not torch.equal(*ends)


def test_a_state_is_no_window_into_the_run():
    model, opt = run(6, averaging=IterateAverage())
    state = opt.state_dict()
    file = saved(opt)
    x, y = data()
    for _ in range(12):
        step(model, opt, x, y)
    again = io.BytesIO()
    torch.save([state], again)
    assert torch.equal(flattened(torch.load(io.BytesIO(file))), flattened(torch.load(io.BytesIO(again.getvalue()))))


def flattened(state):
    return torch.cat(
        [t.double().flatten() for t in torch.utils._pytree.tree_leaves(state) if isinstance(t, torch.Tensor)]
    )


def test_states_of_others_are_refused_and_nothing_has_changed():
    model, opt = run(6)
    before = flattened(opt.state_dict())
    for state, text in (
        (torch.optim.SGD(model.parameters()).state_dict(), "this is not the state of a NaturalGradient"),
        (run(3, metric=rng.EKFAC())[1].state_dict(), r"the state is of metric=EKFAC\(\)"),
        (run(3, averaging=IterateAverage())[1].state_dict(), "a run with averages of iterates"),
    ):
        with pytest.raises(InvalidSetting, match=text):
            opt.load_state_dict(state)
        assert torch.equal(flattened(opt.state_dict()), before)
    with pytest.raises(InvalidSetting, match=r"without an average|with an average"):
        NaturalGradient(mlp(), Categorical(), decay=0.0).load_state_dict(opt.state_dict())


def test_loaded_twice_and_saved_before_any_step():
    model, opt = run(8)
    other = mlp()
    resumed = NaturalGradient(other, Categorical())
    restored(saved(model, opt), other, resumed)
    third = mlp()
    again = NaturalGradient(third, Categorical())
    restored(saved(other, resumed), third, again)
    for m, o in ((model, opt), (other, resumed), (third, again)):
        for x, y in batches(5):
            step(m, o, x, y)
    assert torch.equal(flat(model), flat(other)) and torch.equal(flat(model), flat(third))


def test_loading_lets_go_of_what_was_heard():
    model, opt = run(4)
    x, y = data()
    file = saved(model, opt)
    CE(model(x), y).backward()
    restored(file, model, opt)
    assert not opt._listener.passes()
    assert opt.report.step == 4 and isinstance(opt.step_size, QuadraticModel)
