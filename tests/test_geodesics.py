"""Christoffel symbols against numerical differentiation, and the order of finite steps under other coordinates."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks_zoo import ZOO
from torch import distributions, nn

import riemann_ng as rng
from riemann_ng import likelihoods as lk
from riemann_ng.errors import DegenerateMetric, InvalidSetting, NonFinite, SpaceMismatch, UnsupportedLayer
from riemann_ng.geodesics import (
    christoffel,
    geodesic_correction,
    geodesic_step,
    midpoint_step,
    numerical_christoffel,
    output_christoffel,
)
from riemann_ng.geodesics.second_order import along, backwards
from riemann_ng.metrics import RiemannianMetric
from riemann_ng.natural_gradient import natural_gradient
from riemann_ng.networks import Linearized, Network
from riemann_ng.reparametrize import Change, SmoothChange, reparametrize_parameters

FEW = settings(max_examples=max(1, settings.default.max_examples // 10))


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def off(a, b):
    return float((a - b).abs().max() / b.abs().max())


def random_vector(network):
    return rng.Vector(network.tangent_space, torch.randn(network.tangent_space.dim))


OUTPUTS = {
    "categorical": (lk.Categorical(), 3),
    "minimal": (lk.Categorical(minimal=True), 3),
    "weighted": (lk.Categorical(weight=torch.tensor([1.0, 2.0, 0.5]), label_smoothing=0.1), 3),
    "bernoulli": (lk.Bernoulli(sites="mean"), 2),
    "gaussian": (lk.Gaussian(0.7), 2),
    "poisson": (lk.Poisson(), 2),
    "negative binomial": (lk.NegativeBinomial(3.0), 2),
    "mean and scale": (lk.GaussianMeanScale(), 4),
    "gamma": (lk.Gamma(), 2),
    "beta": (lk.Beta(), 2),
    "von Mises": (lk.VonMises(), 2),
    "euclidean": (lk.EuclideanOutput(2.0), 2),
    "form": (lk.OutputForm(lambda z: torch.eye(2) * (1 + z.square().sum(-1))[:, None, None]), 2),
    "dirichlet": (lk.FromDistribution(lambda z: distributions.Dirichlet(z.exp())), 3),
    "by kl": (lk.FromDistribution(lambda z: distributions.Categorical(logits=z), "kl"), 3),
    "enumerated": (lk.FromDistribution(lambda z: distributions.Categorical(logits=z), "enumerate"), 3),
    "quantiles": (lk.FromDistribution(lambda z: distributions.Laplace(z[:, :1], z[:, 1:].exp())), 2),
}


def network_of(output, size, n=4):
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, size))
    x = torch.randn(n, 2)
    known = isinstance(output, lk.Likelihood)
    metric = rng.Fisher() if known else rng.GaussNewton(output)
    return Network.from_torch(model, output if known else lk.Gaussian(), x), metric, x


@pytest.mark.parametrize("name", OUTPUTS)
def test_christoffel_symbols_are_those_of_the_metric_itself(name):
    """Against central differences of the metric's values, which know nothing of the formula."""
    network, metric, x = network_of(*OUTPUTS[name])
    v = random_vector(network)
    found = christoffel(network, metric, x, v)
    expected = numerical_christoffel(network, metric, x, v)
    assert found.lives_in == network.tangent_space.dual
    assert off(found.data, expected.data) < 1e-8
    if name not in ("gaussian", "euclidean"):  # negative control: the curvature of the outputs' metric left out
        flat = christoffel(network, rng.GaussNewton(lk.OutputForm(frozen(metric, network, x))), x, v)
        assert off(flat.data, expected.data) > 1e-2


def frozen(metric, network, x):
    output = network.likelihood if metric.output is None else metric.output
    matrix = output.matrix(network.outputs(x).detach())
    return lambda z: matrix


def test_drawn_labels_move_their_weights():
    """The symbols of an information that is known by sampled labels come near the exact ones."""
    make = lambda z: distributions.Poisson(z.exp())  # noqa: E731
    z, u = 0.3 * torch.randn(5, 1), torch.randn(5, 1)
    drawn = output_christoffel(lk.FromDistribution(make, "monte carlo", draws=40_000), z, u)
    assert off(drawn, output_christoffel(lk.Poisson(), z, u)) < 0.1
    assert torch.allclose(output_christoffel(lk.Poisson(), z, u), 0.5 * z.exp() * u**2)  # half the third cumulant


class CutOff(lk.OutputMetric):
    """Varies with z, and no derivative tells."""

    def root(self, z):
        return lk.EuclideanOutput().root(z).scaled(float(z.detach().square().mean()))

    def kernel(self, z):
        return None

    def __repr__(self):
        return "CutOff()"


def test_an_output_metric_without_derivatives_is_refused():
    network, metric, x = network_of(CutOff(), 2)
    with pytest.raises(InvalidSetting, match=r"CutOff\(\) varies with the outputs, and its root\(z\) is cut off"):
        christoffel(network, metric, x, random_vector(network))


@pytest.mark.parametrize("name", ZOO)
def test_every_module_of_the_zoo(name):
    """Normalizations among them, of which torch's own second derivatives forget what they keep."""
    make, inputs = ZOO[name]
    model, x = make(), inputs(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch: no batching rule for an operation
        network = Network.from_torch(model, lk.Bernoulli(), x)
        v = random_vector(network)
        found = christoffel(network, rng.Fisher(), x, v)
        points = {k: p.detach() for k, p in network.parameters.items()}
        moves = network._moves("test", v)
        if network.tangent_space.dim < 60:
            assert off(found.data, numerical_christoffel(network, rng.Fisher(), x, v).data) < 1e-7
        else:  # the second derivative of the outputs, by a difference of the first

            def at(t):
                return network._functional({k: p + t * moves[k] for k, p in points.items()}, x).detach()

            h = 1e-3
            second = (16 * (at(h) + at(-h)) - 30 * at(0) - at(2 * h) - at(-2 * h)) / (12 * h * h)
            assert off(along(network, x, points, moves)[2], second) < 1e-5


NORMS = {"layer": nn.LayerNorm, "group": lambda d: nn.GroupNorm(1, d), "rms": nn.RMSNorm}


@pytest.mark.parametrize("norm", NORMS)
def test_backward_passes_alone_give_the_same(norm):
    model = nn.Sequential(nn.Linear(3, 4), NORMS[norm](4), nn.GELU(), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    network = Network.from_torch(model, lk.Bernoulli(), x)
    points = {k: p.detach() for k, p in network.parameters.items()}
    moves = network._moves("test", random_vector(network))
    for a, b in zip(along(network, x, points, moves), backwards(network, x, points, moves), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


class Once(torch.autograd.Function):
    """Cubes, with a derivative and no second one, and no forward differentiation."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g


class Reverse(torch.autograd.Function):
    """Cubes, without forward differentiation."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g


class Cubed(nn.Module):
    def __init__(self, cube):
        super().__init__()
        self.first, self.cube = nn.Linear(3, 2), cube

    def forward(self, x):
        return self.cube(self.first(x))


def test_what_torch_cannot_differentiate_forwards_is_done_backwards():
    x = torch.randn(4, 3)
    network = Network.from_torch(Cubed(Reverse.apply), lk.Bernoulli(), x)
    plain = Cubed(lambda z: z**3)
    plain.load_state_dict(network.module.state_dict())
    other = Network.from_torch(plain, lk.Bernoulli(), x)
    v = random_vector(network)
    w = rng.Vector(other.tangent_space, v.data)
    assert torch.allclose(christoffel(network, rng.Fisher(), x, v).data, christoffel(other, rng.Fisher(), x, w).data)


def test_sums_and_masks_and_other_structures():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, mask = torch.randn(4, 5, 3), torch.rand(4, 5) < 0.7
    network = Network.from_torch(model, lk.Categorical(), x)
    v = random_vector(network)
    alone = christoffel(network, rng.Fisher(), x, v)
    sum_of = 0.5 * rng.Fisher("dual") + 0.1 * rng.EuclideanMetric()
    assert torch.allclose(christoffel(network, sum_of, x, v).data, 0.5 * alone.data)
    masked = christoffel(network, rng.Fisher(), x, v, mask=mask)
    assert off(masked.data, numerical_christoffel(network, rng.Fisher(), x, v, mask=mask).data) < 1e-8
    assert off(masked.data, alone.data) > 1e-2
    by_layer = christoffel(network, rng.Fisher("block-diagonal"), x, v, numerical=True)
    assert off(by_layer.data, alone.data) > 1e-2


def test_what_is_refused():
    network, metric, x = network_of(lk.Categorical(), 3)
    v, y = random_vector(network), torch.tensor([0, 1, 2, 0])
    with pytest.raises(InvalidSetting, match=r"derivative of KFAC\(\) along the parameters is not known"):
        christoffel(network, rng.KFAC(), x, v)
    with pytest.raises(SpaceMismatch, match="expected a vector of its tangent space, got a covector"):
        christoffel(network, metric, x, network.differential(x, y))
    with pytest.raises(NonFinite, match=r"second derivative of the outputs of .* along the vector holds NaN"):
        christoffel(network, metric, x, v * 1e200)
    with pytest.raises(InvalidSetting, match="InvalidSetting in geodesic_step: expected a network or a function"):
        geodesic_step(3, metric, x, y, step=-0.1)
    with pytest.raises(InvalidSetting, match=r"InvalidSetting in midpoint_step: metric must be an instance"):
        midpoint_step(network, rng.KFAC, x, y, step=-0.1)
    with pytest.raises(DegenerateMetric, match=r"(?s)DegenerateMetric.*In geodesic_step: damping=λ"):
        geodesic_step(network, metric, x, y, step=-0.1)
    once = Network.from_torch(Cubed(Once.apply), lk.Bernoulli(), torch.randn(4, 3))
    with pytest.raises(UnsupportedLayer, match="no second derivative in torch"):
        christoffel(once, rng.Fisher(), torch.randn(4, 3), random_vector(once))
    wide = Network.from_torch(nn.Linear(30, 20), lk.Gaussian(), torch.randn(2, 30))
    with pytest.raises(InvalidSetting, match="620 parameters take 2484 observations"):
        numerical_christoffel(wide, rng.KFAC(), torch.randn(2, 30), random_vector(wide))


def test_nothing_is_moved_and_errors_leave_everything_as_it_was():
    network, _, x = network_of(lk.Categorical(), 3)
    y = torch.tensor([0, 1, 2, 0])
    before, v = {k: p.detach().clone() for k, p in network.parameters.items()}, random_vector(network)
    state = torch.random.get_rng_state()
    damped = rng.Fisher() + 0.1 * rng.EuclideanMetric()
    geodesic_step(network, damped, x, y, step=-0.3)
    midpoint_step(network, rng.KFAC() + 0.1 * rng.EuclideanMetric(), x, y, step=-0.3)
    with pytest.raises(NonFinite):
        midpoint_step(network, damped, x, y, step=float("inf"))

    class Fails(RiemannianMetric):
        def at(self, observation):
            if not torch.equal(network.parameters["0.weight"], before["0.weight"]):
                raise InvalidSetting("halfway")
            return rng.Euclidean(observation.space)

    with pytest.raises(InvalidSetting, match="halfway"):
        midpoint_step(network, Fails(), x, y, step=-0.3)
    numerical_christoffel(network, rng.KFAC(), x, v)
    assert all(torch.equal(before[k], p) and p.grad is None for k, p in network.parameters.items())
    assert torch.equal(state, torch.random.get_rng_state())


@FEW
@given(st.integers(0, 10**6))
def test_symbols_are_carried_to_other_parameters_with_the_bend_of_the_change(seed):
    """Γ_u♭(w, w) = ψ'ᵀ (Γ_θ♭(v, v) + g D²ψ(w, w)) with v = ψ' w: not a covector, but for affine changes."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(seed)
    model, x = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)), torch.randn(7, 2)
    psi = SmoothChange(12, 0.4, seed=seed)
    twin = reparametrize_parameters(model, psi)
    here, there = (Network.from_torch(m, lk.Bernoulli(), x) for m in (model, twin))
    u, w = twin.u.detach(), torch.randn(12)
    J, bend = torch.func.jacrev(psi)(u), torch.func.hessian(psi)(u) @ w @ w
    places = torch.stack([place(here, e) for e in torch.eye(12)], -1)  # from components to θ
    v, a = (rng.Vector(here.tangent_space, places.mT @ t) for t in (J @ w, bend))
    g = rng.Fisher().at(here.observe(x))
    there_is = christoffel(there, rng.Fisher(), x, rng.Vector(there.tangent_space, w))
    carried = christoffel(here, rng.Fisher(), x, v).components
    expected = J.mT @ places @ (carried + g.flat(a).components)
    assert torch.allclose(there_is.components, expected, rtol=1e-8, atol=1e-10 * float(expected.abs().max()))
    assert not torch.allclose(there_is.components, J.mT @ places @ carried, rtol=1e-3, atol=0)


# --- the order of finite steps ----------------------------------------------------------------------------------------


class LogScale(Change):
    """(μ, log σ) for the last parameter."""

    def __call__(self, u):
        return torch.cat([u[:-1], u[-1:].exp()])

    def inverse(self, theta):
        return torch.cat([theta[:-1], theta[-1:].log()])


class Elementwise(Change):
    """θ = t + ε sin(t + c) for every parameter."""

    def __init__(self, n, strength=0.4):
        self.smooth = SmoothChange(n, strength, seed=5)
        self.smooth.rotation = torch.eye(n)

    def __call__(self, u):
        return self.smooth(u)

    def inverse(self, theta):
        return self.smooth.inverse(theta)


class Normal(nn.Module):
    """Mean and deviation of all targets."""

    def __init__(self):
        super().__init__()
        self.mu, self.sigma = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(0.8))

    def forward(self, x):
        return torch.stack([self.mu, self.sigma.log()]).expand(len(x), 2)


def normal():
    return Normal(), torch.zeros(20, 1), 1.5 + 0.6 * torch.randn(20, 1), lk.GaussianMeanScale(), LogScale()


def narrow():
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    x = torch.randn(60, 2)
    y = torch.bernoulli(torch.sigmoid(3 * model(x).detach() + 1))
    return model, x, y, lk.Bernoulli(), Elementwise(12)


def mixed():
    model, x, y, likelihood, _ = narrow()
    return model, x, y, likelihood, SmoothChange(12, 0.3, seed=2)


ETAS = [0.008, 0.004, 0.002, 0.001]
EULER = lambda network, metric, x, y, step: natural_gradient(network, metric, x, y) * step  # noqa: E731


def order(problem, rule, metric, other=None):
    """The slope of log |ψ(u + δ_u) - (θ + δ_θ)| over log η, by least squares; `other` is the metric of the twin."""
    model, x, y, likelihood, psi = problem
    twin = reparametrize_parameters(model, psi)
    here, there = (Network.from_torch(m, likelihood, x) for m in (model, twin))
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])
    found = []
    for eta in ETAS:
        v = rule(here, metric, x, y, step=-eta).to_parameters()
        w = rule(there, metric if other is None else other(there), x, y, step=-eta).to_parameters()["u"]
        moved = theta + torch.cat([v[name].flatten() for name, _ in model.named_parameters()])
        found.append(float((psi(twin.u.detach() + w) - moved).norm()))
    t, m = (torch.tensor(a).log() for a in (ETAS, found))
    return float(((t - t.mean()) * (m - m.mean())).sum() / ((t - t.mean()) ** 2).sum())


def with_factor(c):
    """θ + v - c Γ(v, v)"""

    def rule(network, metric, x, y, step):
        v = natural_gradient(network, metric, x, y) * step
        return v + geodesic_correction(network, metric, x, v) * (2 * c)

    return rule


PROBLEMS = {"mean and deviation": normal, "a network, elementwise": narrow, "a network, mixed": mixed}


@pytest.mark.parametrize("name", PROBLEMS)
def test_finite_steps_see_coordinates_in_second_or_third_order(name):
    problem = PROBLEMS[name]()
    assert order(problem, EULER, rng.Fisher()) == pytest.approx(2, abs=0.1)
    assert order(problem, geodesic_step, rng.Fisher()) == pytest.approx(3, abs=0.1)
    assert order(problem, midpoint_step, rng.Fisher()) == pytest.approx(3, abs=0.1)
    assert order(problem, with_factor(0.5), rng.Fisher()) == pytest.approx(3, abs=0.1)
    for wrong in (1.0, -0.5, 0.25):  # negative controls: without the half, with the other sign, with half of it
        assert order(problem, with_factor(wrong), rng.Fisher()) == pytest.approx(2, abs=0.1)


class Carried(RiemannianMetric):
    """A reference that is constant in θ, wherever it is seen from: at u it is the pullback along ψ."""

    def __init__(self, psi, twin, frozen=False):
        self.psi, self.twin, self.at_start = psi, twin, twin.u.detach().clone() if frozen else None

    def at(self, observation):
        u = self.twin.u.detach() if self.at_start is None else self.at_start
        J = torch.func.jacrev(self.psi)(u)
        return rng.Gram(observation.space, J.mT @ J, validate=False)


def test_damping_sets_the_order():
    """By coordinates: first. By a form carried over at the point: second, for it does not bend. By a field: third."""
    problem = mixed()
    psi, euclid = problem[-1], 0.2 * rng.EuclideanMetric()
    damped = rng.Fisher() + euclid
    numerically = lambda *args, step: geodesic_step(*args, step=step, numerical=True)  # noqa: E731

    def carried(frozen):
        return lambda twin: rng.Fisher() + 0.2 * Carried(psi, twin.module, frozen)

    for rule in (EULER, geodesic_step, midpoint_step):
        assert order(problem, rule, damped) == pytest.approx(1, abs=0.1)
    for rule in (EULER, midpoint_step):
        assert order(problem, rule, damped, carried(frozen=True)) == pytest.approx(2, abs=0.1)
    fixed = lambda twin: rng.Fisher() + 0.2 * rng.FixedMetric(value(carried(True)(twin).terms[1].of, twin, problem[1]))  # noqa: E731
    assert order(problem, geodesic_step, damped, fixed) == pytest.approx(2, abs=0.1)
    for rule in (numerically, midpoint_step):
        assert order(problem, rule, damped, carried(frozen=False)) == pytest.approx(3, abs=0.1)


def value(metric, network, x):
    return metric.at(network.observe(x))


def test_over_parametrized_networks_agree_in_what_they_do():
    """Modulo the kernel of the Fisher the function moves alike, to third order; the parameters need not."""
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
    x, psi = torch.randn(4, 2), SmoothChange(22, 0.3, seed=2)
    y = model(x).detach() + 0.5 * torch.randn(4, 2)
    twin = reparametrize_parameters(model, psi)
    here, there = (Network.from_torch(m, lk.Gaussian(), x) for m in (model, twin))
    jacobian = torch.func.jacrev(psi)(twin.u.detach())
    places = torch.stack([place(here, e) for e in torch.eye(22)], -1)  # from components to flat parameters
    D = places.mT @ jacobian
    lengths = rng.FixedMetric(rng.Gram(there.tangent_space, D.mT @ D))

    def slope(rule):
        found = []
        for eta in ETAS:
            ends = []
            for network, reference in ((here, rng.EuclideanMetric()), (there, lengths)):
                v = rule(network, rng.Fisher(), x, y, step=-eta, modulo_kernel=reference)
                points = {k: p.detach() + v.to_parameters()[k] for k, p in network.parameters.items()}
                ends.append(network._functional(points, x))
            found.append(float((ends[0] - ends[1]).norm()))
        return float(torch.tensor(found[0] / found[-1]).log() / torch.tensor(ETAS[0] / ETAS[-1]).log())

    euler = lambda network, metric, x, y, step, **rest: natural_gradient(network, metric, x, y, **rest) * step  # noqa: E731
    assert slope(geodesic_step) == pytest.approx(3, abs=0.1)
    assert slope(midpoint_step) == pytest.approx(3, abs=0.1)
    assert slope(euler) == pytest.approx(2, abs=0.1)


def place(network, components):
    v = rng.Vector(network.tangent_space, components).to_parameters()
    return torch.cat([v[name].flatten() for name in network.parameters])


def test_a_function_and_a_linear_change_and_products_alone():
    f = lambda p, x: torch.stack([p["mu"], p["sigma"].log()]).expand(len(x), 2)  # noqa: E731
    x, y = torch.zeros(5, 1), torch.randn(5, 1)
    tree = {"mu": torch.tensor(0.1), "sigma": torch.tensor(0.7)}
    given = {"parameters": tree, "likelihood": lk.GaussianMeanScale()}
    for rule in (geodesic_step, midpoint_step):
        v = rule(f, rng.Fisher(), x, y, step=-0.1, **given)
        assert set(v.to_parameters()) == {"mu", "sigma"}
    network, _, x = network_of(lk.Bernoulli(), 1, n=40)
    y, v = torch.rand(40, 1), random_vector(network)
    damped = rng.Fisher("matrix-free") + 0.1 * rng.EuclideanMetric()
    kept = rng.Fisher("dense") + 0.1 * rng.EuclideanMetric()
    cg = rng.solvers.CG(tolerance=1e-12)
    a = geodesic_step(network, damped, x, y, step=-0.5, solver=cg, estimator=Linearized())
    b = geodesic_step(network, rng.Fisher("dense"), x, y, step=-0.5, damping=0.1)
    assert torch.allclose(a.data, b.data, atol=1e-8)
    step = natural_gradient(network, kept, x, y) * -0.5
    assert torch.allclose(b.data, (step + geodesic_correction(network, kept, x, step)).data, atol=1e-12)
    assert torch.allclose(  # quadratic in the vector
        christoffel(network, kept, x, v * 3.0).data, 9 * christoffel(network, kept, x, v).data
    )
