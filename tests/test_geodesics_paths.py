"""Geodesics, distances and volumes against closed forms and against geomstats; spectra of metrics."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import riemann_ng as rng
from riemann_ng import likelihoods as lk
from riemann_ng.errors import DegenerateMetric, InvalidSetting, NonFinite, NotConverged, SpaceMismatch
from riemann_ng.geodesics import Manifold, log_volume, numerical_christoffel, volume
from riemann_ng.geodesics.shooting import shoot
from riemann_ng.interop.geomstats import as_geomstats
from riemann_ng.interop.geomstats.backend import geomstats_in  # starts geomstats on torch
from riemann_ng.metrics import RiemannianMetric
from riemann_ng.networks import Network
from riemann_ng.reparametrize import Frames, SmoothChange, reparametrize, reparametrize_parameters

# isort: split

from geomstats.information_geometry.categorical import CategoricalDistributions
from geomstats.information_geometry.normal import UnivariateNormalDistributions

FEW = settings(max_examples=max(1, settings.default.max_examples // 10))


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    with geomstats_in(torch.float64):
        yield
    torch.set_default_dtype(torch.float32)


def of_function(f, theta, likelihood):
    x = torch.zeros(1, 1)
    network = Network.from_function(lambda p, x: f(p).expand(len(x), -1), torch.tensor(theta), likelihood, x)
    return Manifold(network, rng.Fisher(), x)


def normals(mu=-0.5, sigma=0.7):
    """The mean and the deviation."""
    return of_function(lambda p: torch.stack([p[0], p[1].log()]), [mu, sigma], lk.GaussianMeanScale())


def categories(p=(0.2, 0.3)):
    """The probabilities of the first two of three classes."""
    return of_function(lambda p: torch.cat([p, 1 - p.sum(0, keepdim=True)]).log(), list(p), lk.Categorical())


def point(manifold, *coordinates):
    return rng.Point(manifold.here.space, torch.tensor(coordinates))


def vector(manifold, *components):
    return rng.Vector(manifold.space, torch.tensor(components).reshape(manifold.space.shape))


def hyperbolic(a, b):
    (m, s), (n, t) = a, b
    return math.sqrt(2) * math.acosh(1 + ((m - n) ** 2 / 2 + (s - t) ** 2) / (2 * s * t))


def spherical(p, q):
    p, q = (*p, 1 - sum(p)), (*q, 1 - sum(q))
    return 2 * math.acos(sum(math.sqrt(a * b) for a, b in zip(p, q, strict=True)))


# --- geodesics --------------------------------------------------------------------------------------------------------


def test_normal_distributions_are_a_hyperbolic_plane():
    M, theirs = normals(), UnivariateNormalDistributions().metric
    end = [0.5, 0.5]
    b = point(M, *end)
    v = M.log(b, steps=16)
    found = float(M.at().norm(v))
    assert found == pytest.approx(hyperbolic(M.here.data.tolist(), end), rel=1e-6)
    assert found == pytest.approx(float(theirs.dist(M.here.data, b.data)), rel=1e-6)
    assert torch.allclose(v.components, theirs.log(b.data, M.here.data), rtol=1e-5)
    assert torch.allclose(M.exp(v, steps=16).data, b.data, atol=1e-8)
    straight = b - M.here  # negative control: the straight line of the coordinates is another
    assert float(M.at().norm(straight)) != pytest.approx(found, rel=1e-2)


def test_categories_are_a_sphere_of_radius_two():
    M, end = categories(), [0.5, 0.1]
    b = point(M, *end)
    found = M.distance(b, steps=24)
    assert found == pytest.approx(spherical(M.here.data.tolist(), end), rel=1e-7)
    theirs = CategoricalDistributions(3).metric
    full = [torch.cat([p.data, 1 - p.data.sum(0, keepdim=True)]) for p in (M.here, b)]
    assert found == pytest.approx(float(theirs.dist(*full)), rel=1e-7)
    assert found / 2 != pytest.approx(spherical(M.here.data.tolist(), end), rel=1e-2)


def test_a_metric_of_a_network_through_geomstats():
    M = normals()
    theirs = as_geomstats(M, contains=lambda p: p[..., 1] > 0)
    theirs.exp_solver.integrator.n_steps = 12
    v = vector(M, 1.0, 0.3)
    gamma = torch.einsum("kij,i,j->k", theirs.christoffels(M.here.data), v.components, v.components)
    assert torch.allclose(M.christoffel(v).components, gamma, atol=1e-12)
    assert torch.allclose(M.exp(v, steps=12).data, theirs.exp(v.components, M.here.data), atol=1e-9)
    b = point(M, 0.0, 0.8)
    assert M.distance(b, steps=12) == pytest.approx(float(theirs.dist(M.here.data, b.data)), rel=1e-6)
    assert float(theirs.sectional_curvature(*torch.eye(2), M.here.data)) == pytest.approx(-0.5, abs=1e-9)
    with pytest.raises(SpaceMismatch, match=r"as_geomstats: Manifold\(.*has the tangent space"):
        as_geomstats(M, rng.Space("θ", 2))


def small_network(metric=None, norm=True):
    model = nn.Sequential(nn.Linear(1, 2), nn.LayerNorm(2) if norm else nn.Tanh(), nn.Linear(2, 1, bias=False))
    x = torch.randn(30, 1)
    network = Network.from_torch(model, lk.Poisson(), x)
    return Manifold(network, metric or rng.Fisher() + 0.1 * rng.EuclideanMetric(), x)


def test_a_network_with_layers():
    """The matrix is the metric's own; derivatives agree with geomstats' (by autograd) and with differences."""
    M = small_network()
    v = rng.Vector(M.space, torch.randn(M.space.dim))
    g = M.metric.at(M.network.observe(M.x))
    assert torch.allclose(M.at().matrix(), g.matrix(), atol=1e-12)
    lowered = numerical_christoffel(M.network, M.metric, M.x, v)
    assert torch.allclose(M.christoffel(v).components, g.sharp(lowered).components, rtol=1e-7)
    theirs = as_geomstats(M)
    gamma = torch.einsum("kij,i,j->k", theirs.christoffels(M.here.data), v.components, v.components)
    assert torch.allclose(M.christoffel(v).components, gamma, rtol=1e-9)
    assert not torch.allclose(M.christoffel(v).components, -gamma, rtol=1e-2)


def test_the_speed_stays_and_a_way_back_leads_back():
    M = small_network(norm=False)
    before = M.here.data.clone()
    v = 0.2 * rng.Vector(M.space, torch.randn(M.space.dim))
    path = M.geodesic(v, steps=20, tolerance=1e-7)
    assert path.points.batch == (21,) and path.drift < 1e-7
    g = [M.at(rng.Point(path.points.space, p)) for p in path.points.data[::5]]
    for form, w in zip(g, path.velocities.data[::5], strict=True):
        assert float(form.norm(rng.Vector(M.space, w))) == pytest.approx(path.speed, rel=1e-6)
    back = M.exp(rng.Vector(M.space, -path.velocities.data[-1]), path.end, steps=20)
    assert torch.allclose(back.data, before, atol=1e-7)
    assert torch.equal(M.here.data, before)
    assert torch.allclose(M.log(path.end, steps=20).components, v.components, atol=1e-6)


def test_flat_metrics_have_straight_geodesics():
    M = small_network(rng.EuclideanMetric() + rng.GaussNewton(lk.EuclideanOutput()) * 1e-300)
    v = rng.Vector(M.space, torch.randn(M.space.dim))
    assert torch.allclose(M.exp(v, steps=2).data, (M.here + v).data, atol=1e-12)


def test_fourth_order():
    """Half the step, a sixteenth of the error."""
    M = normals()
    exact = M.exp(vector(M, 1.0, 0.3), steps=64).data
    errors = [float((M.exp(vector(M, 1.0, 0.3), steps=n).data - exact).norm()) for n in (8, 16)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.3)


def test_what_has_no_geodesics():
    M = normals()
    with pytest.raises(NotConverged, match=r"after 2 steps the speed is .*Take more steps or a shorter vector"):
        M.geodesic(vector(M, 1.0, 1.0), steps=2)
    with pytest.raises(NonFinite, match="the geodesic has left the points where the metric is finite"):
        M.geodesic(vector(M, 0.0, -100.0), steps=2)
    for nowhere in (lambda w: w**2 + 1, lambda w: w.exp()):
        with pytest.raises(NotConverged, match=r"NotConverged in log: .*Take points closer together"):
            shoot(nowhere, torch.ones(1), 1e-6, shots=5)
    with pytest.raises(
        NotConverged, match=r"no shot along the straight line is a geodesic(?s:.*)NonFinite in Manifold"
    ):
        M.log(point(M, 0.0, -1e4), steps=2)
    with pytest.raises(SpaceMismatch, match=r"expected a point of .*manifold.here \+ v is one"):
        M.exp(vector(M, 0.1, 0.1), M.here.data)
    with pytest.raises(InvalidSetting, match=r"Manifold: the derivatives of KFAC\(\) are not known"):
        Manifold(M.network, rng.KFAC(), M.x)
    logits = of_function(lambda p: p, [0.1, 0.2, 0.3], lk.Categorical())
    with pytest.raises(DegenerateMetric, match=r"Fisher\(\) has rank 2 of 3 at a point of the geodesic"):
        logits.exp(vector(logits, 0.1, 0.0, 0.0))
    wide = Network.from_torch(nn.Linear(30, 20), lk.Gaussian(), torch.randn(2, 30))
    with pytest.raises(InvalidSetting, match="620 parameters; geodesics factorize"):
        Manifold(wide, rng.Fisher(), torch.randn(2, 30))


# --- volumes ----------------------------------------------------------------------------------------------------------


@FEW
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_the_volume_is_the_root_of_determinants(seed, n):
    generator = torch.Generator().manual_seed(seed)
    A, B, D = (torch.randn(n, n, generator=generator, dtype=torch.float64) for _ in range(3))
    V, eye = rng.Space("V", n), 0.1 * torch.eye(n, dtype=torch.float64)
    g, h = rng.Gram(V, A @ A.mT + eye), rng.Gram(V, B @ B.mT + eye)
    expected = 0.5 * (torch.logdet(g.matrix()) - torch.logdet(h.matrix()))
    assert torch.allclose(log_volume(g, relative_to=h), expected, atol=1e-8)
    assert torch.allclose(volume(g, h), expected.exp(), rtol=1e-7)
    phi = rng.LinearMap(V, V, D + 2 * torch.eye(n, dtype=torch.float64))
    moved = [form.pullback(phi) for form in (g, h)]
    assert torch.allclose(log_volume(*moved), expected, atol=1e-6)  # in other coordinates
    density = log_volume(moved[0], rng.Euclidean(V), like=A) - log_volume(g, rng.Euclidean(V), like=A)
    assert torch.allclose(density, torch.linalg.slogdet(phi.matrix())[1], atol=1e-6)  # |det D|


def test_a_kernel_is_left_out_on_request():
    V, W = rng.Space("V", 4), rng.Space("W", 2)
    phi = rng.LinearMap(V, W, torch.randn(2, 4))
    A = torch.randn(4, 4)
    g, h = rng.Euclidean(W).pullback(phi), rng.Gram(V, A @ A.mT + torch.eye(4))
    with pytest.raises(DegenerateMetric, match=r"(?s)has rank 2 of 4, and every box.*modulo_kernel=True"):
        log_volume(g, h)
    kernel = torch.linalg.svd(phi.matrix())[2][2:].mT
    inclusion = rng.LinearMap(rng.Space("K", 2), V, kernel)
    dense, on = torch.linalg.inv(phi.matrix() @ torch.linalg.inv(h.matrix()) @ phi.matrix().mT), h.quotient(inclusion)
    found = log_volume(g, h, modulo_kernel=True)
    assert torch.allclose(found, -0.5 * torch.logdet(dense))  # h's quotient, seen on W
    complement = torch.linalg.svd(phi.matrix())[2][:2].mT
    lifted = on.pullback(rng.LinearMap(W, on.space, on.projection.matrix() @ complement))
    below = g.pullback(rng.LinearMap(W, V, complement))
    assert torch.allclose(found, log_volume(below, lifted))


def test_jeffreys_priors():
    """1 / √(p (1 - p)) of a coin, √2 / σ² of a normal distribution; by other parameters, times |det D|."""
    for p in (0.1, 0.5, 0.8):
        coin = of_function(lambda p: torch.logit(p), [p], lk.Bernoulli())
        assert float(volume(coin.at(), rng.Euclidean(coin.space))) == pytest.approx(1 / math.sqrt(p * (1 - p)))
        logit = of_function(lambda z: z, [math.log(p / (1 - p))], lk.Bernoulli())
        density = float(volume(logit.at(), rng.Euclidean(logit.space)))
        assert density == pytest.approx(math.sqrt(p * (1 - p)))  # dp = p (1 - p) dz
    for sigma in (0.4, 2.0):
        M = normals(0.3, sigma)
        density = float(volume(M.at(), rng.Euclidean(M.space)))
        assert density == pytest.approx(math.sqrt(2) / sigma**2)
        assert density != pytest.approx(1 / sigma**2)


# --- spectra ----------------------------------------------------------------------------------------------------------


class Pulled(RiemannianMetric):
    """The Euclidean metric of θ, seen from u."""

    def __init__(self, psi, u):
        self.J = torch.func.jacrev(psi)(u)

    def at(self, observation):
        return rng.Gram(observation.space, self.J.mT @ self.J, validate=False)


def test_a_metrics_spectrum_is_free_of_coordinates():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    x = torch.randn(50, 3)
    network = Network.from_torch(model, lk.Bernoulli(), x)
    here = network.observe(x)
    found = rng.Fisher().spectrum(here, relative_to=rng.KFAC())
    g, h = (metric.at(here).matrix() for metric in (rng.Fisher(), rng.KFAC()))
    assert torch.allclose(found, torch.linalg.eigvals(torch.linalg.solve(h, g)).real.sort().values, rtol=1e-6)
    assert torch.allclose(found, rng.Fisher().spectrum(here, rng.KFAC().at(here)))
    assert float(found.sum()) == pytest.approx(float((torch.linalg.solve(h, g)).trace()))
    twin = reparametrize(network, Frames.draw(network, x, {"activations"}, "affine", seed=1), x)
    there = twin.network.observe(twin.inputs(x))
    assert torch.allclose(rng.Fisher().spectrum(there, rng.KFAC()), found, rtol=1e-6)
    euclid = [rng.Fisher().spectrum(o, rng.EuclideanMetric()) for o in (here, there)]
    assert not torch.allclose(*euclid, rtol=1e-2)  # negative control: relative to coordinates
    psi = SmoothChange(20, 0.3, seed=2)  # smooth changes of all parameters, with a reference that comes along
    bent = reparametrize_parameters(model, psi)
    other = Network.from_torch(bent, lk.Bernoulli(), x).observe(x)
    carried = rng.Fisher().spectrum(other, relative_to=Pulled(psi, bent.u.detach()))
    assert torch.allclose(carried, euclid[0], rtol=1e-6, atol=1e-10)


def test_a_spectrum_is_relative_to_something_definite():
    network = Network.from_torch(nn.Linear(3, 2), lk.Gaussian(), torch.randn(2, 3))
    here = network.observe(torch.randn(2, 3))
    with pytest.raises(DegenerateMetric, match=r"relative_to=.* has rank 4 of 8, and what is to be measured by must"):
        rng.EuclideanMetric().spectrum(here, relative_to=rng.Fisher("dense"))
    with pytest.raises(InvalidSetting, match="expected a metric, an instance, with brackets"):
        rng.Fisher().spectrum(here, relative_to=rng.KFAC)
