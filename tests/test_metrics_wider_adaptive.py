"""Adaptive metrics against torch's own optimizers; spectra against dense algebra and in every frame."""

import pytest
import torch
from networks_zoo import ZOO
from test_metrics_structures import moved_layer
from test_reparametrize_laws import well_posed
from torch import nn
from twin_cases import twin_of

from riemann_ng import explain_symmetry
from riemann_ng.errors import InvalidSetting, NotAnInnerProduct, ObservationMismatch, SpaceMismatch
from riemann_ng.inner_products import Diagonal, Euclidean, Gram, InnerProduct, Power, direct_sum
from riemann_ng.likelihoods import Categorical
from riemann_ng.metrics import KFAC, EuclideanMetric, Fisher, GradientCovariance, MetricAverage
from riemann_ng.metrics.adaptive import RootMeanSquare, Shampoo
from riemann_ng.metrics.spectra import spectrum
from riemann_ng.natural_gradient import natural_gradient
from riemann_ng.networks import Empirical, Exact, Network
from riemann_ng.optim import Constant, NaturalGradient, Schedule
from riemann_ng.spaces import Space
from riemann_ng.testing.frames import HERE, Expression
from riemann_ng.testing.fuzz import claimed, measure


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def off(a, b):
    return float((a - b).norm() / b.norm())


def problem():
    torch.manual_seed(3)
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(40, 4)
    return model, x, torch.randint(0, 3, (40,))


def by_torch(make, steps, batches):
    model, x, y = problem()
    optimizer = make(model.parameters())
    for i in range(steps):
        part = batches[i % len(batches)]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[part]), y[part]).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def by_metric(metric, decay, schedule, steps, batches, lr):
    """The running average of the metric, and minus lr times the natural gradient."""
    model, x, y = problem()
    network = Network.from_torch(model, Categorical(), x)
    average = MetricAverage(metric, decay, schedule)
    for i in range(steps):
        part = batches[i % len(batches)]
        g = average.update(network.observe(x[part], Empirical(y[part])))
        network.move_(g.sharp(network.differential(x[part], y[part])), step=-lr(i + 1))
    return torch.cat([p.detach().flatten() for p in model.parameters()])


BATCHES = [torch.arange(0, 20), torch.arange(20, 40), torch.arange(10, 30)]


def test_with_bias_correction_it_is_adam():
    torch_s = by_torch(lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.0, 0.9), eps=1e-4), 12, BATCHES)
    ours = by_metric(RootMeanSquare(1e-4), 0.9, "corrected", 12, BATCHES, lambda t: 0.01)
    assert float((ours - torch_s).abs().max()) < 1e-12
    other = by_metric(RootMeanSquare(1e-4, "examples"), 0.9, "corrected", 12, BATCHES, lambda t: 0.01)
    assert float((other - torch_s).abs().max()) > 1e-3


def by_loop(metric, decay, schedule, steps, beta1=0.0, lr=lambda t: 0.01, epsilon_at=None):
    """As `by_metric`, with the first moment kept beside the metric, and ε that may depend on the step.

    An optimizer's momentum here is of displacements. Adam's is of gradients: a running mean of covectors, corrected for
    its start, of which the metric takes the sharp.
    """
    model, x, y = problem()
    network = Network.from_torch(model, Categorical(), x)
    average, mean = MetricAverage(metric, decay, schedule), None
    for t in range(1, steps + 1):
        part = BATCHES[(t - 1) % len(BATCHES)]
        g, df = average.update(network.observe(x[part], Empirical(y[part]))), network.differential(x[part], y[part])
        mean = (1 - beta1) * df if mean is None else beta1 * mean + (1 - beta1) * df
        if epsilon_at is not None:
            g = direct_sum({k: Power(p.of, p.power, after=epsilon_at(t)) for k, p in g.parts.items()})
        network.move_(g.sharp((1 / (1 - beta1**t)) * mean), step=-lr(t))
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(("beta1", "beta2", "eps"), [(0.9, 0.999, 1e-8), (0.9, 0.9, 1e-3), (0.5, 0.99, 0.0)])
def test_adam_with_both_its_moments(beta1, beta2, eps):
    """Bias correction of both; without that of the first, or with momentum of steps, it is another trajectory."""
    torch_s = by_torch(lambda p: torch.optim.Adam(p, lr=0.01, betas=(beta1, beta2), eps=eps), 15, BATCHES)
    ours = by_loop(RootMeanSquare(eps), beta2, "corrected", 15, beta1)
    assert float((ours - torch_s).abs().max()) < 1e-12
    uncorrected = by_loop(RootMeanSquare(eps), beta2, "corrected", 15, beta1, lambda t: 0.01 * (1 - beta1**t))
    assert float((uncorrected - torch_s).abs().max()) > 1e-3


@pytest.mark.parametrize("eps", [0.0, 1e-8, 1e-2])
def test_rmsprop_whose_average_starts_at_zero(eps):
    """Torch's v is (1 - βᵗ) times the corrected mean, so its √v + ε is √(1 - βᵗ) (√mean + ε / √(1 - βᵗ))."""
    beta = 0.9
    torch_s = by_torch(lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=beta, eps=eps), 15, BATCHES)

    def short(t):
        return (1 - beta**t) ** 0.5

    args = RootMeanSquare(eps), beta, "corrected", 15
    ours = by_loop(*args, lr=lambda t: 0.01 / short(t), epsilon_at=lambda t: eps / short(t))
    assert float((ours - torch_s).abs().max()) < 1e-12
    assert float((by_loop(*args) - torch_s).abs().max()) > 1e-3
    if eps == 0.0:  # then the rate alone makes up for the start
        assert float((by_metric(*args, BATCHES, lambda t: 0.01 / short(t)) - torch_s).abs().max()) < 1e-12


@pytest.mark.parametrize("eps", [1e-10, 1e-2])
def test_adagrad_with_its_epsilon(eps):
    """The sum of squares is t times their mean: √sum + ε = √t (√mean + ε / √t)."""
    torch_s = by_torch(lambda p: torch.optim.Adagrad(p, lr=0.02, eps=eps), 15, BATCHES)
    args = RootMeanSquare(eps), 0.9999, "growing", 15
    ours = by_loop(*args, lr=lambda t: 0.02 / t**0.5, epsilon_at=lambda t: eps / t**0.5)
    assert float((ours - torch_s).abs().max()) < 1e-12
    assert float((by_loop(*args, lr=lambda t: 0.02) - torch_s).abs().max()) > 1e-3


def test_with_growing_sums_it_is_adagrad():
    """The sum of squares is t times their mean, and a rate over √t makes up for it."""
    torch_s = by_torch(lambda p: torch.optim.Adagrad(p, lr=0.02, eps=0.0), 12, BATCHES)
    ours = by_metric(RootMeanSquare(0.0), 0.9999, "growing", 12, BATCHES, lambda t: 0.02 / t**0.5)
    assert float((ours - torch_s).abs().max()) < 1e-12


def test_with_no_memory_it_is_the_sign():
    ours = by_metric(RootMeanSquare(0.0), 0.0, "corrected", 3, BATCHES, lambda t: 0.01)
    model, x, y = problem()
    for i in range(3):
        part = BATCHES[i]
        grads = torch.autograd.grad(nn.functional.cross_entropy(model(x[part]), y[part]), list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                p.sub_(0.01 * g.sign())
    assert torch.allclose(ours, torch.cat([p.detach().flatten() for p in model.parameters()]))


def test_in_the_optimizer_it_is_adam_too():
    torch_s = by_torch(lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.0, 0.9), eps=1e-4), 9, BATCHES)
    model, x, y = problem()
    opt = NaturalGradient(
        model, Categorical(), metric=RootMeanSquare(1e-4), lr=0.01, momentum=0.0, damping=None, decay=0.9,
        schedule=Schedule(statistics=1, factorize=1), step_size=Constant(),
    )  # fmt: skip
    for i in range(9):
        part = BATCHES[i % 3]
        opt.zero_grad()
        nn.functional.cross_entropy(model(x[part]), y[part]).backward()
        opt.step()
    assert float((torch.cat([p.detach().flatten() for p in model.parameters()]) - torch_s).abs().max()) < 1e-12


def test_shampoo_by_its_formula():
    """L ← β L + (1 - β) D Dᵀ, corrected; the step is (L + ε)^-¼ D (R + ε)^-¼."""
    model, x, y = problem()
    network, metric, beta = Network.from_torch(model, Categorical(), x), Shampoo(0.01), 0.8
    average, L, R = MetricAverage(metric, beta), {}, {}
    for i, part in enumerate(BATCHES):
        g = average.update(network.observe(x[part], Empirical(y[part])))
        df = network.differential(x[part], y[part])
        v = g.sharp(df)
        for path in ("0", "2"):
            D = df[path]
            L[path] = beta * L.get(path, 0) + (1 - beta) * D @ D.mT
            R[path] = beta * R.get(path, 0) + (1 - beta) * D.mT @ D
            roots = []
            for M in (L[path], R[path]):
                values, vectors = torch.linalg.eigh(M / (1 - beta ** (i + 1)) + 0.01 * torch.eye(len(M)))
                roots.append(vectors @ torch.diag(values**-0.25) @ vectors.mT)
            assert torch.allclose(v[path], roots[0] @ D @ roots[1], atol=1e-12)


def test_the_first_step_of_shampoo_is_the_matrix_sign():
    model, x, y = problem()
    network = Network.from_torch(model, Categorical(), x)
    v, df = natural_gradient(network, Shampoo(1e-13), x, y), network.differential(x, y)
    U, s, Vt = torch.linalg.svd(df["0"], full_matrices=False)
    told = s > 1e-4
    assert torch.allclose(v["0"], U[:, told] @ Vt[told], atol=1e-4)


@pytest.mark.parametrize("name", ["mlp", "convolutional", "conv1d", "tokens", "recurrent"])
def test_every_sort_of_layer(name):
    make, batch = ZOO[name]
    model, x = make(), batch(6)
    z = model(x)
    y = torch.randint(0, z.shape[-1], z.shape[:-1])
    network = Network.from_torch(model, Categorical(), x)
    observation, df = network.observe(x, Empirical(y)), network.differential(x, y)
    g = RootMeanSquare(0.1).at(observation)
    assert torch.allclose(g.sharp(df).data, df.data / (df.data.abs() + 0.1), atol=1e-12)
    v = Shampoo(0.1).at(observation).sharp(df)
    assert bool(v.data.isfinite().all()) and float(df(v)) > 0


def test_of_examples_it_is_the_root_of_the_diagonal_covariance():
    model, x, y = problem()
    network = Network.from_torch(model, Categorical(), x)
    seen = network.observe(x, Empirical(y))
    C = GradientCovariance(structure="diagonal").at(seen)
    assert torch.allclose(RootMeanSquare(0.0, "examples").at(seen).matrix(), C.matrix().sqrt())
    assert torch.allclose(RootMeanSquare(0.0, "examples", power=1.0).at(seen).matrix(), C.matrix())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: RootMeanSquare(-1.0), InvalidSetting, "RootMeanSquare: epsilon=-1.0, expected a number, zero or more"),
        (lambda: RootMeanSquare(power=0), InvalidSetting, r"power=0, expected a power in \(0, 1\]"),
        (lambda: RootMeanSquare(of="all"), InvalidSetting, "of='all', expected 'batch' or 'examples'"),
        (lambda: Shampoo(power=2.0), InvalidSetting, "Shampoo: power=2.0"),
        (lambda: Power(Euclidean(Space("V", 2)), 0.0), NotAnInnerProduct, "power=0.0"),
        (
            lambda: Power(Gram(Space("V", 2), torch.eye(2)) * Gram(Space("W", 2), torch.eye(2)), 0.5, after=1.0),
            NotAnInnerProduct,
            "after=1.0 beside a product, whose factors are taken to the power one by one",
        ),
    ],
)
def test_settings(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_only_labels_of_the_data():
    model, x, _ = problem()
    network = Network.from_torch(model, Categorical(), x)
    for metric in (RootMeanSquare(), Shampoo()):
        with pytest.raises(ObservationMismatch, match="are made of the gradients of the data's own labels"):
            metric.at(network.observe(x, Exact()))


# --- symmetry ---------------------------------------------------------------------------------------------------------


def expression_of(metric, sites):
    def entries(g, frames):
        back = frames.on(g.space)
        return back.mT @ g.flat_components(back.mT.contiguous()).mT

    return Expression(lambda frames: metric.at_layer(moved_layer(frames, sites)), "form", entries, lambda g: g.symmetry)


CLAIMS = {
    "root": RootMeanSquare(0.0), "root, damped": RootMeanSquare(0.1),
    "root of examples": RootMeanSquare(0.0, "examples"), "no root": RootMeanSquare(0.0, power=1.0),
    "shampoo": Shampoo(0.1),
}  # fmt: skip


@pytest.mark.parametrize("sites", [1, 3])
@pytest.mark.parametrize("name", CLAIMS)
def test_claims_hold_and_are_exact(name, sites):
    expression = expression_of(CLAIMS[name], sites)
    claim, errors = expression.claim(), measure(expression, seed=1)
    assert errors is not None and len(errors) > 12
    for cell, error in errors.items():
        if claimed(claim, cell):
            assert error < 1e-9, (name, cell, error)
        else:
            assert error > 1e-3, (name, cell, error)


def test_what_each_keeps():
    def kept(metric):
        g = expression_of(metric, 1).form(HERE)
        groups = ("translations", "general", "orthogonal", "monomial", "signed permutations")
        return {s: [k for k in groups if g.keeps(s, k)] for s in "AS"}

    signed = ["signed permutations"]
    assert kept(RootMeanSquare(1e-8)) == {"A": signed, "S": ["translations", *signed]}
    assert kept(RootMeanSquare(0.0, power=1.0)) == {
        "A": ["monomial", *signed], "S": ["translations", "monomial", *signed],
    }  # fmt: skip
    assert kept(Shampoo()) == {"A": ["orthogonal", *signed], "S": ["translations", "orthogonal", *signed]}
    assert "the power 0.5 of" in explain_symmetry(expression_of(RootMeanSquare(), 1).form(HERE))


def test_trajectories_in_twins():
    """Signed permutations are not seen, rotations are by the diagonal and not by Shampoo."""
    network, x, y = well_posed("mlp")
    cells = {
        (RootMeanSquare(0.01), "signed permutations"): True, (RootMeanSquare(0.01), "orthogonal"): False,
        (Shampoo(0.01), "orthogonal"): True, (Shampoo(0.01), "general"): False,
    }  # fmt: skip
    for (metric, group), kept in cells.items():
        twin = twin_of(network, x, on=("inputs", "activations", "pre-activations"), group=group)
        here = natural_gradient(network, metric, x, y)
        there = natural_gradient(twin.network, metric, twin.inputs(x), y)
        error = off(there.data, twin.transport(here).data)
        assert (error < 1e-9) if kept else (error > 1e-2), (metric, group, error)


# --- spectra ----------------------------------------------------------------------------------------------------------


def test_the_spectrum_is_that_of_the_pencil():
    network, x, _ = well_posed("mlp")
    seen, before = network.observe(x), network.observe(x[:60])
    F, K, H = Fisher(structure="dense").at(seen), KFAC().at(seen), KFAC().at(before)
    damped = (KFAC() + 0.1 * EuclideanMetric()).at(seen)
    for g, h in ((F, K), (K, H), (K, Euclidean(K.space)), (damped, H), (H, damped)):
        expected = torch.linalg.eigvals(torch.linalg.solve(h.matrix(K.matrix()), g.matrix())).real.sort().values
        assert torch.allclose(spectrum(g, relative_to=h), expected, rtol=1e-6, atol=1e-9)
    assert torch.allclose(spectrum(3.0 * K, K), torch.full((K.space.dim,), 3.0))


def test_it_is_the_same_in_every_frame_and_that_relative_to_coordinates_is_not():
    network, x, _ = well_posed("mlp")
    twin = twin_of(network, x, group="affine")
    seen, there = network.observe(x), twin.network.observe(twin.inputs(x))
    part, part_there = network.observe(x[:60]), twin.network.observe(twin.inputs(x[:60]))
    here = spectrum(KFAC().at(seen), relative_to=KFAC().at(part))
    assert off(spectrum(KFAC().at(there), relative_to=KFAC().at(part_there)), here) < 1e-8
    here = spectrum(KFAC().at(seen), relative_to=Euclidean(network.tangent_space))
    assert off(spectrum(KFAC().at(there), relative_to=Euclidean(twin.network.tangent_space)), here) > 1e-2


def test_zeros_tell_the_kernel():
    V = Space("V", 4)
    g = Gram(V, torch.diag(torch.tensor([2.0, 0.0, 1.0, 0.0])), validate=False)
    assert spectrum(g, Diagonal(V, torch.tensor([1.0, 1.0, 2.0, 1.0]))).tolist() == pytest.approx([0.0, 0.0, 0.5, 2.0])
    with pytest.raises(SpaceMismatch, match=r"relative_to is KFAC\(\), expected an inner product. Of a metric"):
        spectrum(g, KFAC())
    with pytest.raises(SpaceMismatch, match="they live on different spaces"):
        spectrum(g, Euclidean(Space("W", 4)))
    assert isinstance(g, InnerProduct)
