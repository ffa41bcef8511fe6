"""What goes wrong is counted and reported, and leaves the parameters as they were."""

import gc
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optim_cases import CE, batches, data, flat, hooks, mlp, run, step
from torch import nn

import riemann_ng as rng
from riemann_ng.errors import DegenerateMetric, NonFinite
from riemann_ng.likelihoods import Bernoulli, Categorical
from riemann_ng.metrics.kfac import KFAC
from riemann_ng.networks import Empirical
from riemann_ng.optim import Constant, Factored, LevenbergMarquardt, NaturalGradient, QuadraticModel, Schedule, Tikhonov

THOROUGH = os.environ.get("RIEMANN_NG_PROFILE") == "thorough"
EVERY = Schedule(statistics=1, factorize=1, warmup=0)
BOTH = [{}, {"estimator": Empirical()}, {"schedule": EVERY}, {"decay": 0.0, "schedule": EVERY}]


def untouched(model, opt):
    """Everything a step may change."""
    memory = opt.memory
    return flat(model), opt.steps, memory.value, memory.damped, memory.reference, memory.damping, opt._before


def same(before, after):
    return torch.equal(before[0], after[0]) and all(
        a is b or a == b for a, b in zip(before[1:], after[1:], strict=True)
    )


@pytest.mark.parametrize("settings", BOTH, ids=str)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite(settings, first, bad):
    model, opt = run(0 if first else 4, **settings)
    x, y = data()
    for spoil in (lambda: CE(model(x), y) * bad, lambda: CE(model(x * bad), y)):
        before = untouched(model, opt)
        opt.zero_grad()
        spoil().backward()
        opt.step()
        assert same(before, untouched(model, opt))
        assert opt.report.skipped == "a gradient that is not finite" and opt.report.step == opt.steps
    assert opt.tally["a gradient that is not finite"] == 2
    assert "2 × a gradient that is not finite" in str(opt.tally) and "skipped" in str(opt.report)
    step(model, opt, x, y)
    assert not opt.report.skipped and flat(model).isfinite().all() and not torch.equal(flat(model), before[0])


def test_a_closure_whose_loss_is_not_finite():
    model, opt = run(3)
    x, y = data()
    before = untouched(model, opt)

    def closure():
        opt.zero_grad()
        loss = CE(model(x), y)
        loss.backward()
        return loss.detach() * float("nan")

    opt.step(closure)
    assert same(before, untouched(model, opt)) and opt.report.skipped == "a loss that is not finite"


def test_a_step_without_gradients():
    model, opt = run(3)
    before = untouched(model, opt)
    opt.zero_grad()
    opt.step()
    assert same(before, untouched(model, opt)) and opt.tally["no gradient"] == 1
    with torch.no_grad():
        model(data()[0])
    opt.step()
    assert same(before, untouched(model, opt)) and opt.tally["no gradient"] == 2


@pytest.mark.parametrize("settings", BOTH, ids=str)
@pytest.mark.parametrize("first", [True, False])
def test_statistics_that_are_not_finite(monkeypatch, settings, first):
    model, opt = run(0 if first else 5, **settings)
    x, y = data()
    original = KFAC.at_layer

    def spoiled(self, layer):
        g = original(self, layer)
        nan = torch.full((g.factors[0].space.dim,) * 2, torch.nan, dtype=torch.float64)
        return rng.Gram(g.factors[0].space, nan, validate=False) * g.factors[1]

    monkeypatch.setattr(KFAC, "at_layer", spoiled)
    before = untouched(model, opt)
    step(model, opt, x, y)
    assert opt.tally["statistics that are not finite"] == 1
    assert opt.report.trouble == ("statistics that are not finite",)
    if first:
        assert same(before, untouched(model, opt)) and opt.report.skipped == "no statistics yet"
    else:
        assert opt.steps == 6 and opt.memory.value is before[2] and flat(model).isfinite().all()
    monkeypatch.undo()
    step(model, opt, x, y)
    assert not opt.report.trouble and flat(model).isfinite().all()


def test_an_observation_that_is_not_finite(monkeypatch):
    """The forward of the loop goes on."""
    model, opt = run(4, schedule=EVERY)
    x, y = data()
    monkeypatch.setattr("riemann_ng.networks.tape.sent_back", raising(NonFinite("NonFinite in a layer")))
    monkeypatch.setattr("riemann_ng.networks.network.sent_back", raising(NonFinite("NonFinite in a layer")))
    step(model, opt, x, y)
    assert opt.steps == 5 and opt.tally["statistics that are not finite"] == 1


def raising(error):
    def fails(*args, **kwargs):
        raise error

    return fails


def broken_cholesky(how):
    def fails(matrix, *args, **kwargs):
        if how == "raises":
            raise torch.linalg.LinAlgError("cholesky: the factorization could not be completed")
        info = torch.full(matrix.shape[:-2], int(how == "says so"), dtype=torch.int32)
        return torch.full_like(matrix, torch.nan), info

    return fails


@pytest.mark.parametrize("how", ["raises", "says so", "lies"])
def test_a_factorization_that_fails(monkeypatch, how):
    model, opt = run(2, schedule=EVERY)
    x, y = data()
    monkeypatch.setattr(torch.linalg, "cholesky_ex", broken_cholesky(how))
    monkeypatch.setattr(torch.linalg, "eigh", raising(torch.linalg.LinAlgError("eigh: failed to converge")))
    before = untouched(model, opt)
    step(model, opt, x, y)
    assert opt.steps == 3 and flat(model).isfinite().all() and not torch.equal(flat(model), before[0])
    assert opt.memory.damped is before[3] and opt.tally["a factorization that failed"] == 1
    assert opt.report.trouble == ("a factorization that failed",) and not opt.report.factorized
    assert opt.memory.damping > before[5]  # where the damping adapts, it grows
    monkeypatch.undo()
    step(model, opt, x, y)
    assert opt.report.factorized and opt.memory.damped is not before[3]


def test_a_first_factorization_that_fails_is_an_error_and_nothing_has_changed(monkeypatch):
    model, opt = run(0)
    x, y = data()
    before = untouched(model, opt)
    with monkeypatch.context() as broken:
        broken.setattr(torch.linalg, "cholesky_ex", broken_cholesky("raises"))
        with pytest.raises(torch.linalg.LinAlgError):
            step(model, opt, x, y)
    assert same(before, untouched(model, opt)) and opt.memory.average.count == 0
    step(model, opt, x, y)
    assert opt.steps == 1


def test_an_undamped_metric_that_is_degenerate_says_so():
    model = mlp()
    opt = NaturalGradient(model, Categorical(), damping=None, step_size=Constant())
    x, y = data()
    before = untouched(model, opt)
    with pytest.raises(DegenerateMetric, match=r"damp(?s:.*)In the metric KFAC\(\)"):
        step(model, opt, x, y)
    assert same(before, untouched(model, opt))


@pytest.mark.parametrize(
    "settings", [{}, {"estimator": Empirical()}, {"damping": Tikhonov(1e-2)}, {"metric": rng.EKFAC()}], ids=str
)
def test_batches_of_one_example_and_factors_of_low_rank(settings):
    for n in (1, 2):
        model = mlp()
        opt = NaturalGradient(model, Categorical(), **settings)
        for x, y in batches(8, n):
            step(model, opt, x, y)
            assert flat(model).isfinite().all()
        assert opt.steps == 8


class Shared(nn.Module):
    """Of one example it cannot be told where the examples stand."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()
        self.position = nn.Parameter(torch.randn(4, dtype=torch.float64))

    def forward(self, x):
        return self.second(torch.tanh(self.first(x + self.position)))


def test_a_batch_of_one_example_and_then_larger_ones():
    model = Shared()
    opt = NaturalGradient(model, Categorical())
    for n in (1, 12, 1, 12, 12):
        x, y = data(n)
        step(model, opt, x, y)
        assert flat(model).isfinite().all()
    assert opt.steps == 5


def test_inputs_that_are_constant_or_zero():
    for value in (0.0, 1.0):
        model = mlp()
        opt = NaturalGradient(model, Categorical())
        for _ in range(8):
            step(model, opt, torch.full((6, 4), value, dtype=torch.float64), torch.arange(6) % 3)
        assert opt.steps == 8 and flat(model).isfinite().all()


def test_a_loss_that_is_not_finite_after_the_step(monkeypatch):
    settings = {"damping": LevenbergMarquardt(Factored(0.1), every=1), "step_size": QuadraticModel()}
    model, opt = run(3, **settings)
    x, y = data()
    monkeypatch.setattr("riemann_ng.optim.quadratic.Batch.change", lambda *_: float("nan"))
    before, damping = flat(model), opt.memory.damping
    step(model, opt, x, y)
    assert torch.equal(flat(model), before) and opt.steps == 3 and opt.memory.damping > damping
    assert opt.report.skipped == "a step after which the loss was far above the model"


def test_a_displacement_that_is_not_finite(monkeypatch):
    model, opt = run(5, step_size=QuadraticModel())
    x, y = data()
    monkeypatch.setattr(
        "riemann_ng.optim.quadratic.Batch.fisher", lambda self, d, f=1.0: torch.full((len(d),) * 2, torch.nan)
    )
    before = flat(model)
    step(model, opt, x, y)
    assert torch.equal(flat(model), before) and opt.tally["a displacement that is not finite"] == 1
    monkeypatch.undo()
    step(model, opt, x, y)
    assert opt.report.factorized and not opt.report.skipped  # factorizations are made anew


FAULTS = st.sampled_from(["fine", "nan loss", "nan input", "huge", "no gradient", "one example", "zero"])


@settings(max_examples=settings.default.max_examples // 3)
@given(faults=st.lists(FAULTS, max_size=6), recipe=st.sampled_from(BOTH))
def test_parameters_are_never_spoiled(faults, recipe):
    model = mlp(torch.float32)
    opt = NaturalGradient(model, Categorical(), **recipe)
    for seed, fault in enumerate(faults):
        x, y = data(1 if fault == "one example" else 8, torch.float32, seed)
        x = {"nan input": x * float("nan"), "huge": x * 1e30, "zero": x * 0}.get(fault, x)
        opt.zero_grad()
        if fault != "no gradient":
            (CE(model(x), y) * (float("nan") if fault == "nan loss" else 1)).backward()
        opt.step()
        assert flat(model).isfinite().all()


def objects():
    gc.collect()
    return sum(isinstance(o, torch.Tensor) for o in gc.get_objects()), len(gc.get_objects())


CHEAP = {"estimator": Empirical(), "damping": 1e-2, "step_size": Constant(), "lr": 0.1}


@pytest.mark.parametrize(("settings", "steps"), [({}, 150), (CHEAP, 2_000)], ids=["default", "empirical"])
def test_long_runs_have_flat_memory(settings, steps):
    model = nn.Linear(2, 2)
    opt = NaturalGradient(model, Bernoulli(), **settings)
    x = torch.randn(4, 2)
    y = (x > 0).float()

    def some(count):
        for i in range(count):
            opt.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(model(x), y).backward()
            opt.step()
            if i % 50 == 0:
                model(x)  # gradients that nobody asks for
                opt.state_dict()

    some(100)
    tensors, everything = objects()
    count = hooks(model)
    some(50_000 if THOROUGH else steps)
    later = objects()
    assert later[0] <= tensors + 2 and later[1] <= everything + 100 and hooks(model) == count
    assert flat(model).isfinite().all()
    kept = [CE(model(x), torch.zeros(4, dtype=torch.long)) for _ in range(50)]
    assert objects()[0] >= tensors + len(kept)  # the count sees what is kept


@pytest.mark.parametrize("precision", ["bfloat16", "scaled"])
def test_mixed_precision_without_a_nan(precision):
    model = mlp(torch.float32)
    opt = NaturalGradient(model, Categorical(), step_size=QuadraticModel())
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "scaled", growth_interval=10)
    opt.scaler = scaler
    losses = []
    for seed in range(2_000 if THOROUGH else 200):
        x, y = data(128, torch.float32, seed % 7)
        opt.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = CE(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()
        losses.append(float(loss.detach()))
        assert flat(model).isfinite().all()
    assert set(opt.tally.counts) <= {"an overflow of the scaled gradient"}
    assert sum(losses[28:35]) < 0.5 * sum(losses[:7])


def test_a_step_after_which_the_loss_is_far_above_the_model_is_taken_back(monkeypatch):
    model, opt = run(3, damping=LevenbergMarquardt(Factored(0.1), every=1), step_size=QuadraticModel())
    x, y = data()
    monkeypatch.setattr("riemann_ng.optim.quadratic.Batch.change", lambda *_: 1e3)
    before, damping, tally = flat(model), opt.memory.damping, opt.tally.counts.total()
    step(model, opt, x, y)
    assert torch.equal(flat(model), before) and opt.memory.damping > damping
    assert opt.report.skipped and opt.tally.counts.total() == tally + 1
    monkeypatch.setattr("riemann_ng.optim.quadratic.Batch.change", lambda *_: 1e-9)  # a little worse is noise
    step(model, opt, x, y)
    assert not opt.report.skipped and not torch.equal(flat(model), before)
