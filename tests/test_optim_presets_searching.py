"""Presets that search: Hessian-free, Krylov subspaces, conjugate directions; against dense algebra, in float64."""

import copy

import pytest
import torch
from optim_cases import CE, batches, data, mlp, step
from presets_cases import PRESETS, Fixed, HandMadeHessianFree, half_squares, line, params, random_form, trained

from riemann_ng import optim
from riemann_ng.elements import Covector, Vector
from riemann_ng.likelihoods import Categorical, Gaussian
from riemann_ng.networks import Exact, Network
from riemann_ng.optim.searching import Armijo, bfgs, nelder_mead
from riemann_ng.optim.truncated import cg_path


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def off(a, b):
    return float((a - b).abs().max() / b.abs().max())


# --- Hessian-free optimization ----------------------------------------------------------------------------------------


def hessian_free(model, likelihood):
    return optim.HessianFree(model, likelihood, damping=1.0)


def by_hand(steps, wrong=""):
    model = mlp()
    hand = HandMadeHessianFree(model, 1.0, wrong=wrong)
    return torch.stack([hand.step(x, y) for x, y in steps]), hand


def test_hessian_free_is_the_truncated_natural_gradient_step_by_step():
    steps = batches(8, n=40)
    own, opt = trained(hessian_free, steps)
    hand, loop = by_hand(steps)
    assert off(own, hand) < 1e-8  # conjugate gradients in another order of sums
    assert opt.memory.damping == pytest.approx(loop.damping, rel=1e-12)
    assert float((own[-1] - own[0]).abs().max()) > 0.5 and opt.report.trouble == ()


@pytest.mark.parametrize("wrong", ["outputs", "cold", "believing"])
def test_another_hessian_free_loop_goes_elsewhere(wrong):
    steps = batches(8, n=40)
    own, _ = trained(hessian_free, steps)
    assert off(own[-1], by_hand(steps, wrong)[0][-1]) > 1e-5


@pytest.mark.parametrize("started", [False, True])
def test_iterates_of_the_path_are_the_minima_over_krylov_spaces(started):
    A, xi = random_form(12)
    M = random_form(12, 1, 10.0)[0]
    start = 0.3 * torch.randn(12, generator=torch.Generator().manual_seed(2)) if started else None
    path = cg_path(lambda v: A @ v, lambda r: torch.linalg.solve(M, r), xi, start, 6, apart=1.0)
    v0 = torch.zeros(12) if start is None else start
    assert path.steps == [1, 2, 3, 4, 5, 6]
    r = torch.linalg.solve(M, -xi - A @ v0)
    K = torch.empty(12, 0)
    for k, v in enumerate(path.points, 1):
        K = torch.linalg.qr(torch.cat([K, r[:, None]], 1))[0]
        c = torch.linalg.solve(K.mT @ A @ K, K.mT @ (-xi - A @ v0))
        assert off(v, v0 + K @ c) < 1e-9
        assert path.values[k] == pytest.approx(float(xi @ v + 0.5 * v @ A @ v), rel=1e-10)
        r = torch.linalg.solve(M, A @ K[:, -1])
    plain = cg_path(lambda v: A @ v, lambda r: r, xi, start, 6, apart=1.0)
    assert off(plain.points[2], path.points[2]) > 1e-2  # the control: in another geometry the path is another


def test_the_path_ends_where_it_makes_little_progress():
    A, xi = random_form(200, condition=1e4)
    path = cg_path(lambda v: A @ v, lambda r: r, xi, None, 1000)
    k, values = len(path.values) - 1, path.values
    little = [
        j for j in range(11, k + 1)
        if (values[j] - values[j - max(10, -(-j // 10))]) / values[j] < max(10, -(-j // 10)) * 5e-4
    ]  # fmt: skip
    assert little == [k] and 11 < k < 150
    assert path.steps[:6] == [1, 2, 3, 4, 6, 8] and path.steps[-1] == k


# --- Krylov subspaces -------------------------------------------------------------------------------------------------


def spanned_minimum(F, df, directions):
    K = torch.linalg.qr(torch.stack(directions, 1))[0]
    return -K @ torch.linalg.solve(K.mT @ F @ K, K.mT @ df)


def test_a_krylov_step_is_the_minimum_over_the_subspace():
    """Of a quadratic loss, by dense linear algebra; the second step has the last displacement in the span."""
    model, x, y = line(features=6)
    opt = optim.KrylovSubspaceDescent(model, Gaussian(), size=3, iterations=60)
    network = Network.from_torch(copy.deepcopy(model), Gaussian(), x)
    F = network.fisher(x).matrix()
    last = None
    for _ in range(3):
        twin = Network.from_torch(copy.deepcopy(model), Gaussian(), x)
        df = twin.differential(x, y).data
        before = twin.parameters_point().data
        step(model, opt, x, y, half_squares)
        moved = Network.from_torch(copy.deepcopy(model), Gaussian(), x).parameters_point().data - before
        span = [df, F @ df, F @ F @ df] + ([] if last is None else [last])
        assert off(moved, spanned_minimum(F, df, span)) < 1e-6
        if last is not None:
            assert off(moved, spanned_minimum(F, df, span[:-1])) > 1e-3
        last = moved
    assert opt.tally.counts == {}


def test_bfgs_finds_a_minimum():
    A, b = random_form(5)

    def f(x):
        quartic = (x * x).sum()
        return float(0.5 * x @ A @ x + b @ x + 0.1 * quartic**2), A @ x + b + 0.4 * quartic * x

    x, value = bfgs(f, torch.eye(5), 100)
    assert float(f(x)[1].norm()) < 1e-6 and value == f(x)[0] < 0
    assert float(f(bfgs(f, torch.eye(5), 2)[0])[1].norm()) > 1e-3


def test_nelder_and_mead_find_a_minimum():
    def f(c):
        return float((c[0] - 1) ** 2 + 3 * (c[1] + 2) ** 2 + 0.5 * c[0] * c[1])

    c, value = nelder_mead(f, torch.zeros(2), torch.ones(2), 200)
    exact = torch.linalg.solve(torch.tensor([[2.0, 0.5], [0.5, 6.0]]), torch.tensor([2.0, -12.0]))
    assert torch.allclose(c, exact, atol=1e-6) and value == f(c)
    used = []
    nelder_mead(lambda c: used.append(0) or f(c), torch.zeros(2), torch.ones(2), 12)
    assert 12 <= len(used) <= 14


def test_a_line_search_takes_the_first_step_that_is_low_enough():
    def f(t):
        return -t + 2 * t * t

    rate, value = Armijo(0.1, 0.5).along(f, -1.0)
    assert rate == 0.25 and value == f(0.25)
    assert Armijo(0.1, 0.5, most=2).along(f, -1.0) is None
    assert Armijo(0.1, 0.5, most=9).along(lambda t: float("nan"), -1.0) is None


# --- natural conjugate gradients --------------------------------------------------------------------------------------


def conjugate(rule, matrix):
    return lambda m, p: optim.NaturalGradient(
        m, p, Fixed(matrix), lr=1.0, momentum=0.0, damping=None, decay=0.0, schedule=optim.Schedule(1, 1),
        estimator=Exact(), step_size=rule,
    )  # fmt: skip


class Nothing(optim.Transport):
    """Forgets what is brought."""

    def vector(self, v, along):
        return v * 0.0

    def covector(self, xi, along):
        return xi * 0.0


def slopes(rule, steps=9, metric=None):
    """The length of the gradient after every step on a quadratic of n = 8 parameters with a metric of its own."""
    model, x, y = line(features=7, targets=1)
    matrix = random_form(8, 3, 20.0)[0] if metric is None else metric
    seen, opt = trained(conjugate(rule, matrix), [(x, y)] * steps, model, Gaussian(), half_squares)
    lengths = []
    for point in seen:
        with torch.no_grad():
            model.weight.copy_(point[:7].view(1, 7))
            model.bias.copy_(point[7:])
        found = torch.autograd.grad(half_squares(model(x), y), list(model.parameters()))
        lengths.append(float(torch.cat([g.flatten() for g in found]).norm()))
    return seen, lengths, opt


def test_natural_conjugate_gradients_end_after_n_steps():
    seen, lengths, opt = slopes(optim.ConjugateDirections("model"), 8)
    assert lengths[7] < 1e-9 * lengths[0] and lengths[5] > 1e-5 * lengths[0]
    joint = slopes(optim.PlaneSearch("model"), 8)
    assert off(joint[0], seen) < 1e-7  # the joint search takes the same steps there
    assert opt.tally.counts == joint[2].tally.counts == {}


@pytest.mark.parametrize(
    "rule", [optim.ConjugateDirections("model", restart=3), optim.ConjugateDirections("model", transport=Nothing())]
)
def test_with_restarts_or_without_transport_they_do_not(rule):
    assert slopes(rule, 8)[1][7] > 1e-4 * slopes(rule, 8)[1][0]


def test_without_transport_directions_are_those_of_descent():
    forgetful = slopes(optim.ConjugateDirections("model", transport=Nothing()), 4)[0]
    descent = slopes(optim.ConjugateDirections("model", restart=1), 4)[0]
    assert off(forgetful, descent) < 1e-12


def test_directions_by_hand():
    """The rule of Polak and Ribière on a loss that is no quadratic, the metric fixed, exact on the model."""
    model = mlp()
    n = params(model).numel()
    matrix = random_form(n, 5, 5.0)[0]
    x, y = data(40)
    own, opt = trained(conjugate(optim.ConjugateDirections("model"), matrix), [(x, y)] * 6)
    d = g_before = fall = None
    restarts = 0
    for t in range(6):
        network = Network.from_torch(model, Categorical(), x)
        g, F = network.differential(x, y).components, network.fisher(x).matrix()
        v = torch.linalg.solve(matrix, g)
        beta = 0.0 if d is None else max(float(v @ (g - g_before) / fall), 0.0)
        restarts += t > 0 and beta == 0.0
        d = -v if not beta else -v + beta * d
        network.move_(Vector(network.tangent_space, -(g @ d) / (d @ F @ d) * d))
        g_before, fall = g, v @ g
        assert off(own[t], params(model)) < 1e-9
    assert restarts < 5 and opt.report.mu >= 0


def test_a_transport_is_asked_for_both():
    asked = []

    class Asked(optim.Transport):
        def vector(self, v, along):
            asked.append(("vector", type(v), type(along)))
            return v

        def covector(self, xi, along):
            asked.append(("covector", type(xi), type(along)))
            return xi

    model, x, y = line(features=7, targets=1)
    rule = optim.ConjugateDirections("model", transport=Asked())
    trained(conjugate(rule, random_form(8, 3)[0]), [(x, y)] * 2, model, Gaussian(), half_squares)
    assert asked == [("covector", Covector, Vector), ("vector", Vector, Vector)]


def test_the_search_in_the_plane_goes_below_the_model_s_minimum():
    x, y = data(60)
    for steps in (1, 4):
        model, loss = mlp(), {}
        state = None
        if steps > 1:
            opt = trained(PRESETS["joint on the model"], [(x, y)] * (steps - 1), model)[1]
            state = copy.deepcopy(opt.state_dict())
        for name in ("joint on the model", "joint on the loss"):
            twin = copy.deepcopy(model)
            other = PRESETS[name](twin, Categorical())
            if state is not None:
                other.load_state_dict(copy.deepcopy(state))
            step(twin, other, x, y)
            loss[name] = float(CE(twin(x), y).detach())
        assert loss["joint on the loss"] < loss["joint on the model"]
