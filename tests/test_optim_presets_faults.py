"""What goes wrong in the presets is said, and leaves the parameters finite and where they were, in float64."""

import copy

import pytest
import torch
from optim_cases import CE, data, mlp, step
from presets_cases import PRESETS, Fixed, half_squares, line, params
from torch import nn

import riemann_ng as rng
from riemann_ng import optim
from riemann_ng.errors import InvalidSetting
from riemann_ng.likelihoods import Categorical, Gaussian
from riemann_ng.networks import Exact
from riemann_ng.optim.krylov import COLLAPSED
from riemann_ng.optim.truncated import NEGATIVE, NOTHING_LOWER
from riemann_ng.solvers import MinresQLP


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def saddle(n, seed=0):
    """Curvature of both signs."""
    Q = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(seed)))[0]
    return Q @ torch.diag(torch.linspace(-1, 2, n)) @ Q.mT


MADE = {
    "Hessian-free": lambda m, g: optim.HessianFree(m, Categorical(), g, damping=None, estimator=Exact()),
    "Krylov": lambda m, g: optim.KrylovSubspaceDescent(m, Categorical(), g, estimator=Exact()),
}


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_negative_curvature_is_told_and_the_loss_falls(name, sign):
    model, (x, y) = mlp(), data(40)
    opt = MADE[name](model, Fixed(sign * saddle(params(model).numel())))
    losses = [step(model, opt, x, y) for _ in range(6)]
    assert losses[-1] < losses[0] and bool(params(model).isfinite().all())
    assert opt.tally[NEGATIVE] > 0 and NEGATIVE in str(opt.tally)


@pytest.mark.parametrize("name", MADE)
def test_a_form_that_is_negative_everywhere_leaves_the_gradient(name):
    model, (x, y) = mlp(), data(40)
    opt = MADE[name](model, Fixed(-torch.eye(params(model).numel())))
    before = step(model, opt, x, y)
    assert opt.report.trouble == (NEGATIVE,) and opt.report.skipped == ""
    assert step(model, opt, x, y) < before


def test_a_positive_form_meets_none():
    model, (x, y) = mlp(), data(40)
    for make in MADE.values():
        opt = make(model, Fixed(torch.eye(params(model).numel())))
        step(model, opt, x, y)
        assert opt.tally[NEGATIVE] == 0


def test_a_krylov_space_that_collapses_is_told_and_used():
    """Of a linear layer with one target there are as many directions as features."""
    model, x, y = line(features=3, targets=1)
    opt = optim.KrylovSubspaceDescent(model, Gaussian(), size=9, iterations=60)
    step(model, opt, x, y, half_squares)
    assert opt.report.trouble == (COLLAPSED,) and opt.report.skipped == ""
    g = torch.autograd.grad(half_squares(model(x), y), list(model.parameters()))
    assert float(torch.cat([p.flatten() for p in g]).norm()) < 1e-5
    small = optim.KrylovSubspaceDescent(line(features=3, targets=1)[0], Gaussian(), size=4)
    step(small.network.module, small, x, y, half_squares)
    assert small.tally.counts == {}


class Cliff(nn.Module):
    """NaN, or infinite, wherever the parameters have moved by more than `width`; at zero width everywhere else."""

    def __init__(self, width, value=float("nan")):
        super().__init__()
        self.body, self.width, self.value = mlp(), width, value
        self.start = params(self.body)

    def forward(self, x):
        z = self.body(x)
        gone = torch.cat([p.flatten() for p in self.body.parameters()]).detach() - self.start
        return z * self.value if float(gone.norm()) > self.width else z


SEARCHING = ["Hessian-free", "Krylov", "conjugate", "joint on the loss"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", SEARCHING)
def test_searches_keep_off_where_the_loss_is_not_finite(name, value):
    model = Cliff(0.05, value)
    opt = PRESETS[name](model, Categorical())
    x, y = data(40)
    losses = [step(model, opt, x, y) for _ in range(4)]
    assert losses[1] < losses[0] and all(map(torch.isfinite, map(torch.tensor, losses)))
    assert 0 < float((params(model) - model.start).norm()) <= 0.05


@pytest.mark.parametrize("name", SEARCHING)
def test_where_nothing_is_lower_nothing_moves(name):
    model = Cliff(0.0)
    opt = PRESETS[name](model, Categorical())
    x, y = data(40)
    start, damping = params(model), opt.memory.damping
    for t in range(3):
        step(model, opt, x, y)
        assert opt.report.skipped == NOTHING_LOWER and opt.tally[NOTHING_LOWER] == t + 1
    assert torch.equal(params(model), start) and opt.steps == 0
    assert opt.memory.damping > damping or name == "Krylov"  # which has none
    if name == "Hessian-free":
        model.width = 1.0
        step(model, opt, x, y)
        assert opt.report.skipped == "" and opt.steps == 1


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_not_finite_in_the_loop_moves_nothing(name):
    model, (x, y) = mlp(), data(30)
    opt = PRESETS[name](model, Categorical())
    for _ in range(2):
        step(model, opt, x, y)
    start, state = params(model), copy.deepcopy(opt.state_dict())
    step(model, opt, x * float("nan"), y)
    assert opt.report.skipped == "a gradient that is not finite" and torch.equal(params(model), start)
    opt.zero_grad()
    (CE(model(x), y) * float("inf")).backward()
    opt.step()
    assert torch.equal(params(model), start)

    def closure():
        opt.zero_grad()
        return CE(model(x), y) * float("nan")

    opt.step(closure)
    assert opt.report.skipped == "a loss that is not finite" and torch.equal(params(model), start)
    step(model, opt, x, y)
    assert opt.report.skipped == "" and bool(params(model).isfinite().all())
    assert state["riemann_ng"]["steps"] == 2


@pytest.mark.parametrize("name", ["Hessian-free", "Krylov"])
def test_a_step_without_the_model_is_refused(name):
    model, (x, y) = mlp(), data(30)
    opt = PRESETS[name](model, Categorical())
    CE(copy.deepcopy(model)(x), y).backward()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(InvalidSetting, match="looks at the batch, and the model was not called since the last step"):
        opt.step()


def test_directions_in_all_parameters_take_one_learning_rate():
    model, (x, y) = mlp(), data(30)
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters()}]
    opt = optim.HessianFree(model, Categorical(), params=groups)
    with pytest.raises(InvalidSetting, match=r"finds directions in all parameters together, and the groups have"):
        step(model, opt, x, y)


def test_a_loss_that_is_not_of_the_outputs_is_asked_for():
    class Odd(nn.Module):
        """Its outputs come beside what the loss is made of."""

        def __init__(self):
            super().__init__()
            self.body = mlp()

        def forward(self, x):
            return self.body(x), self.body(x)

    model, (x, y) = Odd(), data(30)
    opt = optim.HessianFree(model, Categorical(), read=lambda out: out[0])
    opt.zero_grad()
    outputs = model(x)
    CE(outputs[1], y).backward()
    with pytest.raises(
        InvalidSetting, match=r"no gradient arrived at the outputs of the model, .* optimizer.evaluate_on\(x, y\)"
    ):
        opt.step()
    opt.evaluate_on(x, y)
    outputs = model(x)
    CE(outputs[1], y).backward()
    opt.step()
    assert opt.report.skipped == ""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim.TruncatedNewton(0), "InvalidSetting in TruncatedNewton: most=0, expected a positive number"),
        (lambda: optim.TruncatedNewton(warm=2), "expected warm in .0, 1., apart of at least 1 and a search"),
        (lambda: optim.KrylovSubspace(0), "expected size and iterations of at least 1, collapse in"),
        (lambda: optim.ConjugateDirections("far"), "search='far', expected 'model' or 'armijo'"),
        (lambda: optim.ConjugateDirections(restart=0), "restart=0, expected a number of steps, or None"),
        (lambda: optim.ConjugateDirections(transport=optim.Flat), "transport=the class Flat, .* expected instances"),
        (lambda: optim.PlaneSearch("nowhere"), "expected on='model' or 'loss', evaluations of at least 4"),
        (lambda: optim.Armijo(shrink=1.0), "expected sufficient in .0, 1., shrink in .0, 1. and most of at least 1"),
        (lambda: optim.Searched(optim.Tikhonov()), "expected Factored.*, or LevenbergMarquardt of one"),
        (lambda: optim.Searched(floor=2.0), "expected every of at least 1, a rate in .0, 1., and floor <= ceiling"),
        (lambda: optim.OverDepth(optim.QuadraticModel()), "measures how far to go, and 1/L is told beforehand"),
        (lambda: optim.Promised(3), "Promised: of=3, expected a step rule, an instance, as Constant"),
        (lambda: optim.FromGradient(MinresQLP(iterations=3)), "expected an iterative solver without a start"),
        (
            lambda: optim.NaturalGradient(mlp(), Categorical(), momentum_of="gradients"),
            "momentum_of='gradients' averages gradients, and QuadraticModel.* has an average of its own",
        ),
        (
            lambda: optim.NaturalGradient(mlp(), Categorical(), momentum_of="forces"),
            "momentum_of='forces', expected 'displacements' or 'gradients'",
        ),
        (
            lambda: optim.NaturalGradient(mlp(), Categorical(), averages="shrinking"),
            "averages='shrinking', expected 'corrected' or 'growing'",
        ),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(InvalidSetting, match=message):
        make()


def test_the_state_of_another_damping_strength_is_taken_over():
    model, (x, y) = mlp(), data(40)
    opt = optim.PublishedKFAC(model, Categorical(), damping=1.0, fraction=1.0)
    for _ in range(21):
        step(model, opt, x, y)
    fresh = optim.PublishedKFAC(copy.deepcopy(model), Categorical(), damping=1.0, fraction=1.0)
    fresh.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert fresh.memory.strength == opt.memory.strength != opt.memory.damping
    assert rng.optim.Damping.tried(opt.policy.of, 1.0, 20) == ()
