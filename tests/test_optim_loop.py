"""The optimizer in the loops that people write."""

import copy
import pickle

import pytest
import torch
from optim_cases import CE, batches, data, flat, hooks, mlp, run, step
from torch import nn

import riemann_ng as rng
from riemann_ng.errors import InvalidSetting, UnsupportedLayer
from riemann_ng.likelihoods import Categorical
from riemann_ng.networks import Empirical, MonteCarlo
from riemann_ng.optim import Constant, ConstantBlocks, IterateAverage, NaturalGradient, QuadraticModel, Schedule

EVERY = Schedule(statistics=1, factorize=1, warmup=0)
EMPIRICAL = {"estimator": Empirical(), "schedule": EVERY}
PLAIN = {"damping": 1e-2, "step_size": Constant(), "lr": 0.1}


def steps(model, opt, loop, count=4):
    for x, y in batches(count):
        loop(model, opt, x, y)
    return flat(model)


@pytest.mark.parametrize("settings", [{}, EMPIRICAL, {"schedule": Schedule(fraction=0.25)}, PLAIN], ids=str)
def test_it_learns(settings):
    model = mlp(torch.float32)
    x, y = data(64, torch.float32)
    opt = NaturalGradient(model, Categorical(), **settings)
    losses = [step(model, opt, x, y) for _ in range(40)]
    assert losses[-1] < 0.3 * losses[0] and str(opt.tally) == "nothing"
    assert opt.report.step == opt.steps == 40


def test_a_closure_is_the_plain_loop():
    def closed(model, opt, x, y):
        def closure():
            opt.zero_grad()
            loss = CE(model(x), y)
            loss.backward()
            return loss

        loss = opt.step(closure)
        assert loss.requires_grad and opt.report.loss == float(loss.detach())

    def late(model, opt, x, y):  # between the forward and the backward
        loss = CE(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()

    for settings in ({}, EMPIRICAL):
        found = []
        for loop in (step, closed, late):
            model = mlp()
            found.append(steps(model, NaturalGradient(model, Categorical(), **settings), loop))
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_closure_that_is_called_twice_counts_once():
    x, y = data()
    model, twin = mlp(), mlp()
    for m, times in ((model, 1), (twin, 3)):
        opt = NaturalGradient(m, Categorical(), **EMPIRICAL)
        for _ in range(times):
            opt.zero_grad()
            CE(m(x), y).backward()
        opt.step()
    assert torch.equal(flat(model), flat(twin))


def test_what_is_evaluated_between_steps_is_not_heard():
    def noisy(model, opt, x, y):
        with torch.no_grad():
            model(x + 1)
        model.eval()
        model(x[:5] * 3)  # with gradients that nobody asks for
        with torch.inference_mode():
            model(x)
        model.train()
        opt.zero_grad()
        loss = CE(model(x), y)
        model(x * 2)
        loss.backward()
        model(x * 5)
        opt.step()

    for settings in (EMPIRICAL, EMPIRICAL | {"estimator": rng.InputsOnly(), "metric": rng.EuclideanMetric()}):
        model, other = mlp(), mlp()
        assert torch.equal(
            steps(model, NaturalGradient(model, Categorical(), **settings), step),
            steps(other, NaturalGradient(other, Categorical(), **settings), noisy),
        )


def test_accumulated_gradients_are_the_joint_batch():
    def accumulated(model, opt, x, y):
        opt.zero_grad()
        for rows in torch.arange(len(x)).chunk(4):
            (CE(model(x[rows]), y[rows]) / 4).backward()
        opt.step()

    def undivided(model, opt, x, y):
        opt.zero_grad()
        for rows in torch.arange(len(x)).chunk(4):
            CE(model(x[rows]), y[rows]).backward()
        opt.step()

    settings = EMPIRICAL | {"step_size": QuadraticModel()}
    found = []
    for loop in (step, accumulated, undivided):
        model = mlp()
        found.append(steps(model, NaturalGradient(model, Categorical(), **settings), loop, 6))
    assert torch.allclose(found[0], found[1], rtol=1e-9, atol=1e-12)
    assert not torch.allclose(found[0], found[2], rtol=1e-3)  # the sum of four means is four times the mean
    x, y = data()
    joint, parts = mlp(), mlp()
    one = NaturalGradient(joint, Categorical(), decay=0, estimator=MonteCarlo(4000))
    several = NaturalGradient(parts, Categorical(), decay=0, estimator=MonteCarlo(4000))
    step(joint, one, x, y)
    accumulated(parts, several, x, y)
    for g, h in zip(one.memory.value.tensors(), several.memory.value.tensors(), strict=True):
        assert torch.allclose(g, h, atol=0.05 * float(g.abs().max()))


def test_two_losses_of_two_forwards():
    x, y = data()
    model, joint = mlp(), mlp()
    opt = NaturalGradient(model, Categorical(), **EMPIRICAL | {"step_size": QuadraticModel()})
    opt.zero_grad()
    (0.5 * CE(model(x[:12]), y[:12]) + 0.5 * CE(model(x[12:]), y[12:])).backward()
    opt.step()
    other = NaturalGradient(joint, Categorical(), **EMPIRICAL | {"step_size": QuadraticModel()})
    step(joint, other, x, y)
    assert torch.allclose(flat(model), flat(joint), rtol=1e-9)


def test_parameter_groups_and_schedulers():
    model = mlp()
    groups = [{"params": list(model[0].named_parameters()), "lr": 0.0}, {"params": list(model[2].named_parameters())}]
    opt = NaturalGradient(model, Categorical(), params=groups, **PLAIN)
    before = flat(model[0]), flat(model[2])
    x, y = data()
    step(model, opt, x, y)
    assert torch.equal(flat(model[0]), before[0]) and not torch.equal(flat(model[2]), before[1])
    model, half = mlp(), mlp()
    halved = [{"params": list(half[0].parameters()), "lr": 0.05}, {"params": list(half[2].parameters())}]
    step(model, NaturalGradient(model, Categorical(), **PLAIN), x, y)
    step(half, NaturalGradient(half, Categorical(), params=halved, **PLAIN), x, y)
    start = mlp()
    assert torch.allclose(flat(half[0]) - flat(start[0]), 0.5 * (flat(model[0]) - flat(start[0])))
    assert torch.equal(flat(half[2]), flat(model[2]))
    model = mlp()
    opt = NaturalGradient(model, Categorical(), params=model.named_parameters(), **PLAIN)
    assert opt.param_groups[0]["param_names"] == [name for name, _ in model.named_parameters()]
    scheduler = torch.optim.lr_scheduler.OneCycleLR(opt, 0.5, total_steps=10, cycle_momentum=False)
    for x, y in batches(5):
        step(model, opt, x, y)
        assert opt.report.alpha == pytest.approx(opt.param_groups[0]["lr"])
        scheduler.step()


def test_groups_are_held_against_the_model():
    model = mlp()
    for params, text in (
        (model[0].parameters(), r"\['2.weight', '2.bias'\] are missing"),
        ([*model.parameters(), nn.Parameter(torch.zeros(1))], "1 are not its own"),
        ([{"params": list(model.parameters()), "momentum": 0.5}], "a group with 'momentum'; groups differ in"),
        ([{"params": list(model.parameters()), "lr": -1.0}], "lr=-1.0, expected"),
    ):
        with pytest.raises(InvalidSetting, match=text):
            NaturalGradient(model, Categorical(), params=params)
    opt = NaturalGradient(model, Categorical())
    with pytest.raises(InvalidSetting, match=r"Give groups as params=\[...\] when the optimizer is made"):
        opt.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    assert len(opt.param_groups) == 1


def test_weight_decay_is_decoupled_and_after_the_step():
    x, y = data()
    model, bare = mlp(), mlp()
    step(model, NaturalGradient(model, Categorical(), weight_decay=0.5, **PLAIN), x, y)
    step(bare, NaturalGradient(bare, Categorical(), **PLAIN), x, y)
    assert torch.allclose(flat(model), (1 - 0.1 * 0.5) * flat(bare))
    decayed = mlp()
    opt = NaturalGradient(decayed, Categorical(), params=[
        {"params": [p for n, p in decayed.named_parameters() if "bias" in n], "weight_decay": 0.0},
        {"params": [p for n, p in decayed.named_parameters() if "weight" in n], "weight_decay": 0.5},
    ], **PLAIN)  # fmt: skip
    step(decayed, opt, x, y)
    assert torch.equal(decayed[0].bias, bare[0].bias) and not torch.equal(decayed[0].weight, bare[0].weight)
    assert "weight_decay=[0.0, 0.5]" in repr(opt)


def test_clipped_gradients_are_the_gradient():
    x, y = data()
    moves = []
    for limit in (None, 1e-3):
        model = mlp()
        opt = NaturalGradient(model, Categorical(), **PLAIN)
        before = flat(model)
        CE(model(x), y).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit or 1e9)
        opt.step()
        moves.append((flat(model) - before) * (float(norm) / limit if limit else 1))
    assert torch.allclose(*moves, rtol=1e-2) and not torch.equal(*moves)


@pytest.mark.parametrize("settings", [{}, EMPIRICAL, {"schedule": EVERY}], ids=["default", "empirical", "every step"])
@pytest.mark.parametrize("way", ["direct", "unscaled", "clipped"])
def test_a_gradient_scaler_changes_nothing(settings, way):
    expected = run(12, **settings)[0]
    model = mlp()
    opt = NaturalGradient(model, Categorical(), **settings)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    if way != "direct":
        opt.scaler = scaler
    for x, y in batches(12):
        opt.zero_grad()
        scaler.scale(CE(model(x), y)).backward()
        if way != "direct":
            scaler.unscale_(opt)
        if way == "clipped":
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
        scaler.step(opt)
        scaler.update()
    assert scaler.get_scale() > 1024
    assert torch.allclose(flat(model), flat(expected), rtol=1e-6, atol=1e-9)


def test_a_scale_that_is_not_known_is_asked_for():
    x, y = data()
    for settings in ({}, EMPIRICAL):
        model = mlp()
        opt = NaturalGradient(model, Categorical(), **settings)
        scaler = torch.amp.GradScaler("cpu")
        before = flat(model)
        scaler.scale(CE(model(x), y)).backward()
        scaler.unscale_(opt)
        with pytest.raises(InvalidSetting, match=r"Set opt\.scaler = scaler once"):
            scaler.step(opt)
        assert torch.equal(flat(model), before) and opt.steps == 0
    model = mlp()
    opt = NaturalGradient(model, Categorical(), **PLAIN)  # nothing but .grad is looked at
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(CE(model(x), y)).backward()
    scaler.unscale_(opt)
    scaler.step(opt)
    assert opt.steps == 1


def test_an_overflow_of_the_scaler_is_a_step_not_taken():
    x, y = data(dtype=torch.float32)
    model = mlp(torch.float32)
    opt = NaturalGradient(model, Categorical())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = flat(model)
    for _ in range(100):
        opt.zero_grad()
        scaler.scale(1e3 * CE(model(x), y)).backward()
        scaler.step(opt)
        scaler.update()
        if opt.steps:
            break
        assert torch.equal(flat(model), before)
    assert opt.steps == 1 and opt.tally["an overflow of the scaled gradient"] > 0
    assert flat(model).isfinite().all()


def test_autocast():
    model = mlp(torch.float32)
    x, y = data(64, torch.float32)
    opt = NaturalGradient(model, Categorical())
    losses = []
    for _ in range(30):
        opt.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = CE(model(x), y)
        loss.backward()
        opt.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0] and str(opt.tally) == "nothing"
    assert all(t.dtype == torch.float32 for t in opt.memory.value.tensors())


class Structured(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.other = mlp(), nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, x, labels=None):
        z = self.body(x)
        return {"scores": z, "hidden": z * 2, "loss": None if labels is None else CE(z, labels)}


def test_structures_and_parameters_outside_the_forward():
    model, plain = Structured(), mlp()
    opt = NaturalGradient(model, Categorical(), read=lambda out: out["scores"])
    reference = NaturalGradient(plain, Categorical())
    for x, y in batches(6):
        opt.zero_grad()
        model(x, labels=y)["loss"].backward()
        opt.step()
        step(plain, reference, x, y)
    assert torch.allclose(flat(model.body), flat(plain), rtol=1e-9)
    assert torch.equal(model.other, torch.ones(2, dtype=torch.float64))
    model = Structured()
    opt = NaturalGradient(model, Categorical())
    with pytest.raises(UnsupportedLayer, match="Say which is the output"):
        model(x)
    opt.close()
    model(x)


@pytest.mark.parametrize("settings", [{}, EMPIRICAL], ids=["default", "empirical"])
def test_wrappers(settings):
    with pytest.raises(UnsupportedLayer, match="DataParallel"):
        NaturalGradient(nn.DataParallel(mlp()), Categorical(), **settings)
    expected = run(7, **settings)[0]
    model = mlp()
    compiled = torch.compile(model, backend="eager")
    opt = NaturalGradient(compiled, Categorical(), **settings)
    for x, y in batches(7):
        step(compiled, opt, x, y)
    assert torch.allclose(flat(model), flat(expected), rtol=1e-9)
    assert str(opt.tally) == "nothing"


class Rounded(nn.Module):
    """The loss is of outputs in half precision, and what comes out of the module are copies in float32."""

    def __init__(self):
        super().__init__()
        self.body = mlp(torch.float32)

    def forward(self, x, labels):
        z = self.body(x).bfloat16()
        return {"logits": z.float(), "loss": CE(z, labels)}


@pytest.mark.parametrize("settings", [{}, EMPIRICAL], ids=["default", "empirical"])
def test_outputs_that_are_copies_of_what_the_loss_is_of(settings):
    model = Rounded()
    opt = NaturalGradient(model, Categorical(), **settings)
    for x, y in batches(5, dtype=torch.float32):
        opt.zero_grad()
        model(x, y)["loss"].backward()
        opt.step()
    assert opt.steps == 5 and str(opt.tally) == "nothing"
    assert opt.report.actual is not None and len(opt.memory.value.summands()) == 2


def test_copies():
    x, y = data()
    model, opt = run(5)
    clone = copy.deepcopy(model)  # a copy of the model, as of averages of it, is deaf
    for other in (clone, pickle.loads(pickle.dumps(model))):
        state = flat(other)
        CE(other(x), y).backward()
        assert not opt._listener.passes() and torch.equal(state, flat(model))
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(InvalidSetting, match="it listens to one model, and cannot be copied or pickled"):
            copied(opt)
    with pytest.raises(InvalidSetting, match=r"other\.load_state_dict"):
        copy.deepcopy((model, opt))


def test_what_changes_in_the_model_is_named():
    x, y = data()
    model, opt = run(5)
    model[0].bias.requires_grad_(False)
    before, memory = flat(model), opt.memory.value
    with pytest.raises(UnsupportedLayer, match=r"the parameter '0.bias' was frozen since the module was read"):
        for _ in range(2):
            step(model, opt, x, y)
    assert torch.equal(flat(model), before) and opt.memory.value is memory and opt.steps == 5
    model[0].bias.requires_grad_(True)
    step(model, opt, x, y)
    assert opt.steps == 6


def test_closing_and_forgetting_it_leaves_no_hook():
    model, opt = run(3)
    assert hooks(model) > 0
    opt.close()
    assert hooks(model) == 0
    model, opt = run(3)
    del opt
    assert hooks(model) == 0


def test_averages_of_the_iterates():
    model = mlp()
    opt = NaturalGradient(model, Categorical(), averaging=IterateAverage(decay=0.5, start=2))
    iterates = []
    for x, y in batches(6):
        step(model, opt, x, y)
        iterates.append(flat(model))
    expected = iterates[2]
    for count, here in enumerate(iterates[3:], start=2):
        expected = expected + max(1 / count, 0.5) * (here - expected)
    with pytest.raises(ZeroDivisionError), opt.averaged_parameters():
        assert torch.allclose(flat(model), expected, rtol=1e-12)
        raise ZeroDivisionError
    assert torch.equal(flat(model), iterates[-1])
    model, opt = run(3)
    with opt.averaged_parameters():
        assert torch.equal(flat(model), flat(model))


class Bare(nn.Module):
    """A parameter without a layer, of a given size."""

    def __init__(self, size):
        super().__init__()
        self.gain, self.body = nn.Parameter(torch.ones(size, 4, dtype=torch.float64)), mlp()

    def forward(self, x):
        return self.body(x * torch.tanh(self.gain).sum(0))


def test_parameters_without_a_layer_have_a_fallback_that_is_said():
    x, y = data(64)
    for size, kept in ((3, "its full block"), (300, "its diagonal")):
        model = Bare(size)
        opt = NaturalGradient(model, Categorical())
        losses = [step(model, opt, x, y) for _ in range(12)]
        assert losses[-1] < losses[0]
        row = opt.coverage()["gain"]
        assert row.block == "constant" and f"metric: {kept}" in row.assumed
        assert "metric" not in opt.coverage()["body.0.weight"].assumed
        assert (opt.memory.value.summands()["gain"].factors_on is not None) and "ConstantBlocks(full=1024)" in repr(opt)
    g = opt.memory.value.summands()["gain"]
    entries = [t.numel() for t in g.tensors()]
    assert max(entries) <= 1200 and opt.network.tangent_space["gain"].dim == 1200
    model = Bare(300)
    full = NaturalGradient(model, Categorical(), constants=ConstantBlocks(full=1200))
    step(model, full, x, y)
    assert max(t.numel() for t in full.memory.value.summands()["gain"].tensors()) > 1200
    metric = ConstantBlocks(0).applied(rng.EKFAC() + 0.1 * rng.EuclideanMetric())
    assert repr(metric) == repr(rng.EKFAC() + 0.1 * rng.EuclideanMetric())
    model = Bare(3)
    opt = NaturalGradient(model, Categorical(), metric=rng.EKFAC(), constants=ConstantBlocks(0))
    for x, y in batches(7):
        step(model, opt, x, y)


def test_a_parameter_too_large_for_gradients_of_examples_is_named(monkeypatch):
    monkeypatch.setattr("riemann_ng.networks.constants.LARGEST", 10_000)
    model = Bare(300)
    x, y = data(64)
    before = flat(model)
    opt = NaturalGradient(model, Categorical())
    with pytest.raises(UnsupportedLayer, match=r"the most of them of 'gain'.* untie or freeze it, or observe fewer"):
        step(model, opt, x, y)
    assert torch.equal(flat(model), before)


def test_a_step_rule_that_looks_at_the_batch_needs_one():
    model = mlp()
    opt = NaturalGradient(model, Categorical())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(InvalidSetting, match="the model was not called since the last step"):
        opt.step()
    assert opt.steps == 0


def test_a_batch_that_uses_layers_otherwise():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.again = mlp(outputs=4), nn.Linear(4, 4).double()

        def forward(self, x):
            for _ in range(int(x[0, 0] > 9) + 1):
                x = torch.tanh(self.again(x))
            return self.body(x)

    for settings in ({"schedule": EVERY}, EMPIRICAL):
        model = Twice()
        opt = NaturalGradient(model, Categorical(), **settings)
        for x, y in batches(4):
            step(model, opt, x, y)
            x[0, 0] = 10
            step(model, opt, x, y)
        assert str(opt.tally) == "nothing" and opt.steps == 8
