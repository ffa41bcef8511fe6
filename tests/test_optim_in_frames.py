"""PRONG and SNGD: the steps of gradient descent in frames, refreshed as they say, in the model's own parameters."""

import copy
import io
from itertools import pairwise

import pytest
import torch
from frames_cases import CE, MODELS, network_of, problem, step
from optim_cases import batches, data, mlp
from sklearn.datasets import load_digits
from torch import nn

import riemann_ng as rng
from riemann_ng.errors import DegenerateMetric, InvalidSetting
from riemann_ng.experiments import curves_like
from riemann_ng.likelihoods import Bernoulli, Categorical
from riemann_ng.networks import Exact, Network
from riemann_ng.optim import PRONG, SNGD, AtStart, NaturalGradient, Tikhonov
from riemann_ng.reparametrize import in_frames
from riemann_ng.testing.invariance import check_invariance, optimizer


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# --- the same steps as the network that is really rewritten -----------------------------------------------------------


def in_frames_by_hand(model, metric, steps, lr, momentum, every, data_of, refreshed=True):
    """SGD on a model that is put in frames of the metric at every so-many-th batch, and the outputs along the way."""
    network = Network.from_torch(model, Categorical(), data_of[0][0])
    framed = sgd = None
    seen = []
    for t, (x, y) in enumerate(data_of[:steps]):
        if framed is None:
            framed = in_frames(network, metric.at(network.observe(x)))
            sgd = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
        elif t % every == 0 and refreshed:
            with framed.off():
                framed.refresh(metric.at(network.observe(x)), sgd)
        step(model, sgd, x, y)
        seen.append(model(data_of[0][0]).detach())
    return torch.stack(seen)


def by_the_preset(model, make, steps, data_of):
    opt, seen = make(model), []
    for x, y in data_of[:steps]:
        step(model, opt, x, y)
        seen.append(model(data_of[0][0]).detach())
    return torch.stack(seen), opt


def repeated(name, steps):
    """Batches of a problem: the same examples in another order, some of them left out."""
    model, x, y = problem(name, n=60)
    order = [torch.randperm(60, generator=torch.Generator().manual_seed(t))[:48] for t in range(steps)]
    return model, [(x[i], y[i]) for i in order]


RUNS = {
    "PRONG": (
        lambda m: PRONG(m, Categorical(), lr=0.1, momentum=0.9, epsilon=0.1, every=3, statistics=3, decay=0, warmup=1),
        rng.PRONG(0.1),
    ),
    "SNGD": (
        lambda m: SNGD(
            m, Categorical(), lr=0.1, momentum=0.9, damping=0.1, every=3, statistics=3, decay=0, warmup=1
        ),
        rng.RelativeFisher().damp_factors(0.1),
    ),
    "SNGD, K-FAC": (
        lambda m: SNGD(
            m, Categorical(), rng.KFAC(), 0.1, 0.9, damping=Tikhonov(0.1), every=3, statistics=3, decay=0, warmup=1,
            estimator=Exact(),
        ),
        rng.KFAC() + 0.1 * rng.EuclideanMetric(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", MODELS)
def test_a_preset_takes_the_steps_of_gradient_descent_in_frames(name, run):
    model, batches = repeated(name, 8)
    make, metric = RUNS[run]
    own, opt = by_the_preset(copy.deepcopy(model), make, 8, batches)
    hand = in_frames_by_hand(copy.deepcopy(model), metric, 8, 0.1, 0.9, 3, batches)
    assert opt.steps == 8 and float((own[-1] - own[0]).abs().max()) > 1e-2
    assert float((own - hand).abs().max()) < 1e-12 * max(1.0, float(own.abs().max()))


def test_frames_that_are_not_refreshed_go_elsewhere():
    model, batches = repeated("mlp", 8)
    make, metric = RUNS["PRONG"]
    own, _ = by_the_preset(copy.deepcopy(model), make, 8, batches)
    hand = in_frames_by_hand(copy.deepcopy(model), metric, 8, 0.1, 0.9, 3, batches, refreshed=False)
    assert float((own[:3] - hand[:3]).abs().max()) < 1e-12 < 1e-4 < float((own[-1] - hand[-1]).abs().max())


@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_a_step_of_prong_by_its_formula(epsilon):
    """[dW db] = -η DW A_ε⁻¹, with the c and Σ of the batch at which it was whitened last."""
    model, x, y = problem("mlp")
    other, labels = torch.randn(40, 4), torch.randint(0, 3, (40,))
    opt = PRONG(model, Categorical(), lr=0.1, momentum=0, epsilon=epsilon, every=2, statistics=2, decay=0, warmup=1)
    whitened = inputs_of(model, x)
    step(model, opt, x, y)
    for t in (1, 2):  # stale, and then whitened anew
        whitened = inputs_of(model, other) if t % 2 == 0 else whitened
        before = [together(model[i]) for i in (0, 2)]
        df = network_of(copy.deepcopy(model), other).differential(other, labels)
        step(model, opt, other, labels)
        for i, h, old in zip((0, 2), whitened, before, strict=True):
            c, covariance = h.mean(0), torch.cov(h.mT, correction=0)
            step_of = lambda A, i=i: -0.1 * df[str(i)] @ torch.linalg.inv(A)  # noqa: B023, E731
            assert torch.allclose(together(model[i]) - old, step_of(hull(covariance, c, epsilon)), atol=1e-12)
            assert not torch.allclose(together(model[i]) - old, step_of(hull(covariance, 0 * c, epsilon)), rtol=1e-2)


def together(layer):
    return torch.cat([layer.weight, layer.bias[:, None]], 1).detach().clone()


def hull(covariance, c, epsilon):
    """[[Σ + ε + ccᵀ, c], [cᵀ, 1]]."""
    linear = covariance + epsilon * torch.eye(len(c)) + c[:, None] * c
    return torch.cat([torch.cat([linear, c[:, None]], 1), torch.cat([c, torch.ones(1)])[None]])


def inputs_of(model, x):
    return [x, model[1](model[0](x)).detach()]


# --- averages ---------------------------------------------------------------------------------------------------------


def test_whitening_stands_on_the_average_of_the_batches():
    model, batches = repeated("mlp", 5)
    opt = PRONG(model, Categorical(), epsilon=0.2, statistics=1, every=5, decay=0.5, warmup=5)
    moments, weights = [], [0.5**k for k in reversed(range(5))]
    for x, y in batches:
        moments.append(torch.cat([x, torch.ones(len(x), 1)], 1))
        step(model, opt, x, y)
    A = sum(w * m.mT @ m / len(m) for w, m in zip(weights, moments, strict=True)) / sum(weights)
    expected = torch.kron(torch.eye(5), A + 0.2 * torch.diag(torch.tensor([1.0, 1, 1, 1, 0])))
    assert torch.allclose(opt.memory.value.summands()["0"].matrix(), expected)


def test_numbers_that_are_not_finite_are_told_from_memory_that_was_never_written():
    """Averages of large moments are computed below the diagonal alone; above it there may be anything."""
    x = torch.rand(50, 300)
    layers = nn.Sequential(nn.Linear(300, 2))
    opt = PRONG(layers, Categorical(), statistics=1, every=50, decay=0.9, warmup=1)
    for t in range(12):
        step(layers, opt, x, torch.arange(50) % 2)
        moment = opt.memory.average.averages[0].value.summands()["0"].factors[1].terms[0]
        if t:
            moment.triangle[moment.triangle.tril() == 0] = float("nan")
    assert opt.steps == 12 and not opt.tally.counts
    opt.zero_grad()
    CE(layers(torch.full_like(x, float("inf"))), torch.arange(50) % 2).backward()
    opt.step()
    assert opt.tally.counts


def test_the_schedule():
    model = mlp()
    opt = PRONG(model, Categorical(), every=4, statistics=2, warmup=2)
    seen = []
    for x, y in batches(9):
        step(model, opt, x, y)
        seen.append((opt.report.statistics, opt.report.factorized))
    assert [s for s, _ in seen] == [True, True, True, False, True, False, True, False, True]
    assert [f for _, f in seen] == [True, True, False, False, True, False, False, False, True]


# --- an optimizer like any other --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [PRONG, SNGD])
def test_a_run_resumes_bit_for_bit(make):
    settings = {"every": 4, "statistics": 2, "warmup": 1}
    model = mlp()
    opt = make(model, Categorical(), **settings)
    for x, y in batches(5):
        step(model, opt, x, y)
    file = io.BytesIO()
    torch.save([model.state_dict(), opt.state_dict()], file)
    file.seek(0)
    fresh = mlp(seed=7)
    resumed = make(fresh, Categorical(), **settings)
    for thing, state in zip((fresh, resumed), torch.load(file, weights_only=True), strict=True):
        thing.load_state_dict(state)
    for x, y in batches(7):
        step(model, opt, x, y)
        step(fresh, resumed, x, y)
    assert all(map(torch.equal, model.parameters(), fresh.parameters()))


@pytest.mark.parametrize("make", [PRONG, SNGD])
def test_closures_and_the_model_stays_as_it_is(make):
    model, (x, y) = mlp(), data()
    names = list(model.state_dict())
    opt = make(model, likelihood=Categorical(), lr=0.05)
    assert isinstance(opt, torch.optim.Optimizer) and isinstance(opt, NaturalGradient)

    def closure():
        opt.zero_grad()
        loss = CE(model(x), y)
        loss.backward()
        return loss

    losses = [float(opt.step(closure).detach()) for _ in range(60)]
    assert losses[-1] < 0.7 * losses[0] and not opt.tally.counts
    assert list(model.state_dict()) == names and type(model[0]) is nn.Linear
    assert repr(eval(repr(opt), {**vars(rng.optim), **vars(rng), **vars(rng.networks), "PRONG": rng.PRONG,
                                 "model": model})) == repr(opt)  # fmt: skip


def test_no_label_is_looked_at():
    """Of what makes the frames: other labels make other gradients, and the same whitening."""
    values = []
    for seed in (0, 1):
        model, (x, y) = mlp(), data()
        opt = PRONG(model, Categorical(), lr=1e-3)
        step(model, opt, x, (y + seed) % 3)
        values.append(opt.memory.value.matrix())
    assert torch.equal(*values)


def test_bad_settings():
    model = mlp()
    for call, text in (
        (lambda: PRONG(model, Categorical(), epsilon=-1), "PRONG: epsilon=-1, expected a number, zero or more"),
        (lambda: PRONG(model, Categorical(), every=0), "Schedule: factorize=0, expected a number of steps"),
        (lambda: PRONG(model, Categorical(), momentum=1), "momentum=1, expected a number in"),
        (lambda: SNGD(model, Categorical(), metric=rng.KFAC), r"metric=the class KFAC.*an instance: KFAC\(\)"),
        (lambda: SNGD(model, likelihood=CE), "likelihood=<function cross_entropy"),
    ):
        with pytest.raises(InvalidSetting, match=text):
            call()


def test_what_is_degenerate_says_so_and_moves_nothing():
    """Logits have a kernel: the undamped frames of K-FAC do not exist there."""
    model, (x, y) = mlp(), data()
    before = [p.detach().clone() for p in model.parameters()]
    opt = SNGD(model, Categorical(), rng.KFAC(), damping=None, estimator=Exact())
    with pytest.raises(DegenerateMetric, match="sharp_modulo_kernel"):
        step(model, opt, x, y)
    assert all(map(torch.equal, before, model.parameters()))


# --- invariance -------------------------------------------------------------------------------------------------------

EVERY = [("activations", "affine"), ("activations", "isometries"), ("pre-activations", "general"),
         ("pre-activations", "isometries")]  # fmt: skip


def verdicts(subject):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x = torch.randn(100, 4)
    y = (x[:, :3] + 0.5 * torch.randn(100, 3) > 0).double()
    report = check_invariance(subject, model, x, y, Bernoulli(), cells=EVERY, shrink=False)
    return {key: report[key].verdict for key in EVERY}


def claimed(metric):
    """What the expression of the metric keeps, on the spaces of a hidden layer."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    g = metric.at(Network.from_torch(model, Bernoulli(), x := torch.randn(50, 4), name="net").observe(x)).parts["0"]
    spaces = {"activations": "net/0.A", "pre-activations": "net/0.S"}
    return {(on, group): "held" if g.keeps(spaces[on], group) else "refuted" for on, group in EVERY}


PRESETS = {
    "PRONG, ε = 0": (
        lambda m, likelihood: PRONG(m, likelihood, lr=0.3, epsilon=0, every=2, statistics=1, warmup=1),
        rng.PRONG(0.0),
        ["held", "held", "refuted", "held"],
    ),
    "PRONG": (
        lambda m, likelihood: PRONG(m, likelihood, lr=0.3, epsilon=0.1, every=2, statistics=1, warmup=1),
        rng.PRONG(0.1),
        ["refuted", "held", "refuted", "held"],
    ),
    "SNGD in K-FAC frames": (
        lambda m, likelihood: SNGD(
            m, likelihood, rng.KFAC(), 0.3, damping=None, every=2, statistics=1, warmup=1, estimator=Exact()
        ),
        rng.KFAC(),
        ["held", "held", "held", "held"],
    ),
    "SNGD, transported damping": (
        lambda m, likelihood: SNGD(
            m, likelihood, rng.KFAC(), 0.3, damping=Tikhonov(0.1, AtStart(rng.KFAC())), every=2, statistics=1,
            warmup=1, estimator=Exact(),
        ),
        rng.KFAC(),
        ["held", "held", "held", "held"],
    ),
    "SNGD, damped by coordinates": (
        lambda m, likelihood: SNGD(
            m, likelihood, rng.KFAC(), 0.3, damping=Tikhonov(0.1), every=2, statistics=1, warmup=1, estimator=Exact()
        ),
        rng.KFAC() + 0.1 * rng.EuclideanMetric(),
        ["refuted", "refuted", "refuted", "held"],
    ),
    "SNGD, relative Fisher": (
        lambda m, likelihood: SNGD(
            m, likelihood, rng.RelativeFisher(shared=()), 0.3, damping=None, every=2, statistics=1, warmup=1
        ),
        rng.RelativeFisher(shared=()),
        ["held", "held", "refuted", "refuted"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_kept_is_what_is_claimed(name):
    make, metric, expected = PRESETS[name]
    expected = dict(zip(EVERY, expected, strict=True))
    assert claimed(metric) == expected
    assert verdicts(optimizer(make)) == expected


# --- training ---------------------------------------------------------------------------------------------------------

METHODS = {
    "PRONG": PRONG,
    "SNGD": SNGD,
    "SNGD, K-FAC": lambda m, likelihood, **more: SNGD(m, likelihood, rng.KFAC(), **more),
}


def trained(model, make, likelihood, x, y, steps, size, **settings):
    """The losses on the way, and the optimizer."""
    opt, order = make(model, likelihood=likelihood, **settings), torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        i = torch.randint(0, len(x), (size,), generator=order)
        opt.zero_grad()
        loss = likelihood.loss(model(x[i]), y[i])
        loss.backward()
        opt.step()
        losses.append(float(loss.detach()))
    return losses, opt


@pytest.mark.parametrize("name", METHODS)
def test_digits(name):
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16).float(), torch.tensor(digits.target)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 40), nn.Tanh(), nn.Linear(40, 10)).float()
    losses, opt = trained(model, METHODS[name], Categorical(), x[:1500], y[:1500], 300, 100, lr=0.1)
    assert max(losses) < 3 and sum(losses[-10:]) / 10 < 0.1 and not opt.tally.counts
    with torch.no_grad():
        assert float((model(x[1500:]).argmax(1) == y[1500:]).float().mean()) > 0.85


@pytest.mark.parametrize("name", METHODS)
def test_a_curves_like_autoencoder(name):
    x = curves_like(400)
    torch.manual_seed(0)
    sizes = [784, 60, 6, 60, 784]
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    model = nn.Sequential(layers[0], nn.Sigmoid(), layers[1], layers[2], nn.Sigmoid(), layers[3]).float()
    losses, _ = trained(model, METHODS[name], Bernoulli(), x, x, 120, 100)
    assert losses[0] > 500 and max(losses) < 1.1 * losses[0] and sum(losses[-10:]) / 10 < 110
    assert all(bool(p.isfinite().all()) for p in model.parameters())
