"""geomstats both ways: against closed forms, against geomstats' own metrics, and in every order of imports."""

import math
import os
import subprocess
import sys

import pytest
import torch

import riemann_ng as rng
from riemann_ng import interop
from riemann_ng.errors import (
    DegenerateMetric,
    DtypeMismatch,
    MissingDependency,
    NonFinite,
    NotAnInnerProduct,
    NotConverged,
    ShapeMismatch,
    SpaceMismatch,
)
from riemann_ng.interop.geomstats import as_geomstats, backend, from_geomstats, tangent_inclusion

# isort: split
# geomstats takes the backend that the import above has chosen
import geomstats.backend as gs
from geomstats.geometry.complex_poincare_disk import ComplexPoincareDisk
from geomstats.geometry.euclidean import Euclidean
from geomstats.geometry.hyperboloid import Hyperboloid
from geomstats.geometry.hypersphere import Hypersphere
from geomstats.geometry.minkowski import Minkowski
from geomstats.geometry.poincare_ball import PoincareBall
from geomstats.geometry.poincare_half_space import PoincareHalfSpace
from geomstats.geometry.product_manifold import ProductManifold
from geomstats.geometry.riemannian_metric import RiemannianMetric
from geomstats.geometry.spd_matrices import SPDMatrices
from geomstats.information_geometry.dirichlet import DirichletDistributions
from geomstats.information_geometry.normal import NormalDistributions

V, H = rng.Space("V", 2), rng.Space("H", 2)
float64 = torch.float64


def numbers(*values: object, dtype: torch.dtype = float64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def half_plane(x: torch.Tensor) -> rng.InnerProduct:
    return rng.Gram(H, torch.eye(2, dtype=x.dtype) / x[1] ** 2, natural=True)


def upper(x: torch.Tensor) -> torch.Tensor:
    return x[..., 1] > 0


def hyperbolic(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.acosh(1 + (a - b).square().sum(-1) / (2 * a[..., 1] * b[..., 1]))


STARTS = numbers([0.0, 1.0], [0.3, 0.7], [-1.0, 2.0])
ENDS = numbers([1.0, 1.5], [-0.5, 0.9], [-1.0, 0.8])


@pytest.fixture
def geomstats_in_double():
    with backend.geomstats_in(float64):
        yield


# --- imports, in every order ------------------------------------------------------------------------------------------

OURS_FIRST = """
import os, sys, torch, riemann_ng
print("geomstats" in sys.modules)
from riemann_ng.interop.geomstats import as_geomstats
import geomstats.backend as gs
from geomstats.geometry.poincare_ball import PoincareBall
print(gs.__name__, os.environ.get("GEOMSTATS_BACKEND"), torch.get_default_dtype(), gs.get_default_dtype())
print(round(float(PoincareBall(2).metric.dist(gs.array([0.0, 0.0]), gs.array([0.5, 0.0]))), 5))
"""

THEIRS_FIRST = """
import os, sys, torch
import geomstats.backend as gs
from geomstats.geometry.poincare_ball import PoincareBall
from riemann_ng.interop.geomstats import from_geomstats
print(gs.__name__, os.environ.get("GEOMSTATS_BACKEND"), torch.get_default_dtype(), gs.get_default_dtype())
print(from_geomstats(PoincareBall(2).metric, torch.zeros(2, dtype=torch.float64)).matrix().tolist())
"""

OTHER_BACKEND = """
import os, torch, geomstats
from riemann_ng.errors import MissingDependency
try: import riemann_ng.interop.geomstats
except MissingDependency as error: print(error)
print(os.environ.get("GEOMSTATS_BACKEND"), torch.get_default_dtype())
"""


def run(code: str, chosen: str | None) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != "GEOMSTATS_BACKEND"}
    environment |= {"GEOMSTATS_BACKEND": chosen} if chosen else {}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    return done.stdout.splitlines()


def test_our_import_first_starts_geomstats_on_torch_and_leaves_no_trace():
    assert run(OURS_FIRST, "numpy") == ["False", "geomstats.pytorch numpy torch.float32 torch.float32", "1.09861"]


def test_geomstats_first_on_torch_is_left_as_it_is():
    assert run(THEIRS_FIRST, "pytorch") == [
        "geomstats.pytorch pytorch torch.float64 torch.float64",
        "[[4.0, 0.0], [0.0, 4.0]]",
    ]


def test_geomstats_first_on_another_backend_is_refused_with_the_two_ways_out():
    message, left = run(OTHER_BACKEND, None)
    assert message == (
        "MissingDependency in riemann_ng.interop.geomstats: geomstats was started on its 'numpy' backend and cannot "
        "change it; 'pytorch' is needed. Set GEOMSTATS_BACKEND=pytorch before geomstats is imported, or import "
        "riemann_ng.interop.geomstats first."
    )
    assert left == "None torch.float32"


@pytest.mark.parametrize("chosen", [None, "autograd"])
def test_the_environment_is_put_back_even_when_geomstats_fails(chosen, monkeypatch):
    monkeypatch.delenv("GEOMSTATS_BACKEND", raising=False)
    if chosen:
        monkeypatch.setenv("GEOMSTATS_BACKEND", chosen)
    with (
        pytest.raises(MissingDependency, match=r"does not import: no geomstats. Install it with pip .* 'numpy<2.4'"),
        backend.on_torch(),
    ):
        assert os.environ["GEOMSTATS_BACKEND"] == "pytorch"
        raise ImportError("no geomstats")
    assert os.environ.get("GEOMSTATS_BACKEND") == chosen


def test_bridges_are_built_on_request():
    assert interop.geomstats.as_geomstats is as_geomstats
    assert dir(interop) == ["geomstats"]
    with pytest.raises(AttributeError, match="no attribute 'scipy'"):
        _ = interop.scipy


def test_torch_keeps_its_default_dtype():
    assert torch.get_default_dtype() == torch.float32 == gs.get_default_dtype()
    with pytest.raises(KeyError), backend.geomstats_in(float64):
        assert torch.get_default_dtype() == float64 == gs.get_default_dtype()
        raise KeyError
    assert torch.get_default_dtype() == torch.float32 == gs.get_default_dtype()


# --- our metrics in geomstats -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plane() -> RiemannianMetric:
    return as_geomstats(half_plane, H, contains=upper)


def test_the_metric_matrix_is_batched(plane):
    assert isinstance(plane, RiemannianMetric) and plane.manifold.metric is plane and plane.manifold.dim == 2
    x = torch.rand(2, 3, 2, dtype=float64) + 0.5
    expected = torch.eye(2, dtype=float64) / x[..., 1, None, None] ** 2
    torch.testing.assert_close(plane.metric_matrix(x), expected)
    torch.testing.assert_close(plane.cometric_matrix(x), expected.inverse())
    torch.testing.assert_close(plane.metric_matrix(x[0, 0]), expected[0, 0])


def christoffels_of_the_half_plane(x: torch.Tensor) -> torch.Tensor:
    signs = numbers([[0, -1], [-1, 0]], [[1, 0], [0, -1]])
    return signs / x[..., 1, None, None, None]


def test_christoffel_symbols_are_the_closed_form(plane):
    torch.testing.assert_close(plane.christoffels(STARTS), christoffels_of_the_half_plane(STARTS))
    torch.testing.assert_close(plane.christoffels(STARTS[1]), christoffels_of_the_half_plane(STARTS[1]))


def test_geodesics_and_distances_are_the_closed_form(plane, geomstats_in_double):
    theirs = PoincareHalfSpace(2).metric
    log = plane.log(ENDS, STARTS)
    torch.testing.assert_close(plane.norm(log, STARTS), hyperbolic(STARTS, ENDS), rtol=1e-6, atol=0)
    torch.testing.assert_close(log, theirs.log(ENDS, STARTS), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(plane.exp(log, STARTS), ENDS, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(plane.exp(log / 2, STARTS), theirs.exp(log / 2, STARTS), rtol=1e-5, atol=1e-6)
    middle = plane.geodesic(STARTS[0], initial_tangent_vec=log[0])(0.5)[0]
    torch.testing.assert_close(hyperbolic(STARTS[0], middle), hyperbolic(STARTS[0], ENDS[0]) / 2, rtol=1e-6, atol=0)


def test_another_metric_has_other_geodesics():
    wrong = as_geomstats(lambda x: torch.eye(2, dtype=x.dtype) / x[1], H, contains=upper)  # a power is missing
    assert (wrong.christoffels(STARTS) - christoffels_of_the_half_plane(STARTS)).abs().max() > 0.1
    wrong.exp_solver.integrator.n_steps = 10
    assert abs(wrong.dist(STARTS[1], ENDS[1]) - hyperbolic(STARTS[1], ENDS[1])) > 0.05


def test_curvature_differentiates_the_christoffel_symbols(plane):
    e1, e2 = torch.eye(2, dtype=float64)
    torch.testing.assert_close(plane.sectional_curvature(e1, e2, STARTS[1]), numbers(-1.0)[0])

    class CutOff(type(plane)):  # the derivative that geomstats comes with, which keeps no graph
        inner_product_derivative_matrix = RiemannianMetric.inner_product_derivative_matrix

    cut = plane.manifold.__class__(H, upper).equip_with_metric(CutOff, field=half_plane).metric
    assert abs(cut.sectional_curvature(e1, e2, STARTS[1]) + 1) > 0.1


def test_distances_are_differentiable_in_points_and_in_what_the_metric_is_made_of():
    a, b, c = STARTS[1].clone(), ENDS[1].clone(), numbers(2.0)[0]
    for leaf in (a, b, c):
        leaf.requires_grad_()
    scaled = as_geomstats(lambda x: rng.Gram(H, c * torch.eye(2, dtype=float64) / x[1] ** 2, natural=True), H)
    scaled.exp_solver.integrator.n_steps = 20
    found = torch.autograd.grad(scaled.dist(a, b), (a, b, c))
    expected = torch.autograd.grad(c.sqrt() * hyperbolic(a, b), (a, b, c))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert a.grad is b.grad is c.grad is None


def test_points_far_apart_are_joined(plane):
    """The straight line between them is almost twice as long as the geodesic."""
    a, b = numbers(-1.5, 0.5), numbers(1.5, 0.5)
    torch.testing.assert_close(plane.dist(a, b), hyperbolic(a, b), rtol=1e-4, atol=0)


def test_no_graph_is_kept_where_nothing_asks_for_it(plane):
    x = STARTS[0].clone().requires_grad_()
    assert plane.christoffels(x).requires_grad
    assert not plane.christoffels(x.detach()).requires_grad
    with torch.no_grad():
        assert not plane.christoffels(x).requires_grad


def test_one_inner_product_everywhere_is_a_flat_metric():
    g = rng.Gram(V, numbers([2.0, 0.5], [0.5, 1.0]))
    metric = as_geomstats(g)
    a, b = numbers(0.0, 1.0), numbers(3.0, -1.0)
    torch.testing.assert_close(metric.dist(a, b), g.norm(rng.Vector(V, b - a)))
    torch.testing.assert_close(metric.geodesic(a, end_point=b)(0.5)[0], (a + b) / 2)
    assert metric.metric_matrix(torch.zeros(4, 3, 2, dtype=float64)).shape == (4, 3, 2, 2)
    assert metric.metric_matrix().equal(g.matrix()) and not metric.christoffels(a).any()
    constant = as_geomstats(lambda x: g, V)
    assert not constant.christoffels(a).any()
    torch.testing.assert_close(constant.dist(a, b), metric.dist(a, b))


def fisher(x: torch.Tensor) -> rng.InnerProduct:
    """The second moment of the score of a Gaussian of mean x[0] and deviation x[1], by a rule that is exact for it."""
    z, weights = numbers(-math.sqrt(3), 0.0, math.sqrt(3)), numbers(1, 4, 1) / 6
    score = torch.stack([z / x[1], (z**2 - 1) / x[1]], dim=-1)
    return rng.LowRank(V, weights.sqrt()[:, None] * score, natural=True)


def test_the_fisher_metric_of_gaussians_is_that_of_geomstats(geomstats_in_double):
    """Both in (mean, deviation): diag(1, 2) / σ², √2 times the hyperbolic distance of the points (μ / √2, σ)."""
    ours, theirs = as_geomstats(fisher, V, contains=upper), NormalDistributions(1).metric
    torch.testing.assert_close(ours.metric_matrix(STARTS), theirs.metric_matrix(STARTS))
    ours.exp_solver.integrator.n_steps = 20
    log = ours.log(ENDS, STARTS)
    torch.testing.assert_close(ours.norm(log, STARTS), theirs.dist(STARTS, ENDS), rtol=1e-5, atol=0)
    squeeze = numbers(1 / math.sqrt(2), 1.0)
    closed = math.sqrt(2) * hyperbolic(STARTS * squeeze, ENDS * squeeze)
    torch.testing.assert_close(ours.norm(log, STARTS), closed, rtol=1e-5, atol=0)
    assert (theirs.dist(STARTS, ENDS) - hyperbolic(STARTS, ENDS)).abs().min() > 0.02  # the convention matters


def spherical(x: torch.Tensor) -> torch.Tensor:
    """The Jacobian of (θ, φ) ↦ (sin θ cos φ, sin θ sin φ, cos θ)."""
    (st, sp), (ct, cp) = x.sin(), x.cos()
    return torch.stack([torch.stack([ct * cp, -st * sp]), torch.stack([ct * sp, st * cp]), torch.stack([-st, 0 * st])])


def test_a_pulled_back_metric_is_that_of_the_sphere(geomstats_in_double):
    S, R3 = rng.Space("angles", 2), rng.Space("R3", 3)
    metric = as_geomstats(
        lambda x: rng.Euclidean(R3).pullback(rng.LinearMap(S, R3, spherical(x), "dφ", natural=True)), S
    )
    x, y = numbers(1.0, 0.3), numbers(1.4, 1.1)
    torch.testing.assert_close(metric.metric_matrix(x), torch.diag(torch.stack([x.new_tensor(1.0), x[0].sin() ** 2])))
    sphere = Hypersphere(2, intrinsic=True)
    torch.testing.assert_close(metric.christoffels(x), sphere.metric.christoffels(x))
    metric.exp_solver.integrator.n_steps = 20
    a, b = Hypersphere(2).spherical_to_extrinsic(x), Hypersphere(2).spherical_to_extrinsic(y)
    torch.testing.assert_close(metric.dist(x, y), torch.acos(a @ b), rtol=1e-6, atol=0)


def test_single_precision_stays_single(plane):
    a, b = STARTS[1].float(), ENDS[1].float()
    log = plane.log(b, a)
    assert log.dtype == plane.christoffels(a).dtype == plane.exp(log, a).dtype == torch.float32
    torch.testing.assert_close(plane.norm(log, a), hyperbolic(a, b), rtol=1e-4, atol=0)


def test_the_manifold_knows_its_points(plane):
    inside = numbers([0.0, 1.0], [0.0, -1.0], [math.nan, 1.0])
    assert plane.manifold.belongs(inside).tolist() == [True, False, False]
    assert not plane.manifold.belongs(numbers(1.0, 1.0, 1.0))
    assert as_geomstats(half_plane, H).manifold.belongs(inside).tolist() == [True, True, False]
    assert upper(plane.manifold.random_point(5, bound=2.0)).all() and plane.manifold.random_point().shape == (2,)
    nowhere = as_geomstats(half_plane, H, contains=lambda x: x[..., 1] > 9).manifold
    with pytest.raises(SpaceMismatch, match=r"of 1000 points in the box of side 2.0 only 0 lie on the manifold of H"):
        nowhere.random_point()


# --- geomstats metrics here -------------------------------------------------------------------------------------------

BASIS_OF_SYMMETRIC = numbers([[1, 0], [0, 0]], [[0, 1], [1, 0]], [[0, 0], [0, 1]])
COVARIANCE = numbers([2.0, 0.3], [0.3, 1.0])
P_INVERSE = COVARIANCE.inverse()
ALPHA = numbers(0.5, 1.5, 3.0)
ON_SPHERE = numbers(0.48, 0.6, 0.64)
ON_HYPERBOLOID = numbers(math.sqrt(1 + 0.09 + 0.16), 0.3, 0.4)

# a manifold, a point, and the matrix in closed form in the coordinates of the tangent space, where those are components
INTRINSIC = {
    "Euclidean": (lambda: Euclidean(3), ALPHA, torch.eye(3, dtype=float64)),
    "PoincareBall": (
        lambda: PoincareBall(2), numbers(0.3, -0.4), torch.eye(2, dtype=float64) * 4 / 0.75**2,
    ),
    "PoincareHalfSpace": (lambda: PoincareHalfSpace(2), numbers(0.3, 0.5), torch.eye(2, dtype=float64) * 4),
    "UnivariateNormalDistributions": (
        lambda: NormalDistributions(1), numbers(0.3, 0.5), torch.diag(numbers(4.0, 8.0)),
    ),
    "DirichletDistributions": (
        lambda: DirichletDistributions(3),
        ALPHA,
        torch.diag(torch.polygamma(1, ALPHA)) - torch.polygamma(1, ALPHA.sum()),
    ),
    "SPDMatrices": (
        lambda: SPDMatrices(2),
        COVARIANCE,
        torch.einsum("iab,bc,jcd,da->ij", BASIS_OF_SYMMETRIC, P_INVERSE, BASIS_OF_SYMMETRIC, P_INVERSE),
    ),
}  # fmt: skip
EMBEDDED = {
    "Hypersphere": (lambda: Hypersphere(2), ON_SPHERE),
    "Hyperboloid": (lambda: Hyperboloid(2), ON_HYPERBOLOID),
    "ProductManifold": (
        lambda: ProductManifold([Hypersphere(2), PoincareBall(2)]),
        torch.cat([ON_SPHERE, ALPHA[:2] / 4]),
    ),
}
ALL = {name: case[:2] for name, case in (INTRINSIC | EMBEDDED).items()}


@pytest.mark.parametrize("name", INTRINSIC)
def test_the_matrix_is_the_closed_form(name):
    manifold, point, closed = INTRINSIC[name]
    g = from_geomstats(manifold().metric, point)
    assert g.space == rng.Space(name, len(closed))
    torch.testing.assert_close(g.matrix(), closed, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")  # of a product
@pytest.mark.parametrize("name", ALL)
def test_flat_sharp_and_inner_are_those_of_geomstats(name, geomstats_in_double):
    make, point = ALL[name]
    metric = make().metric
    g, inclusion = from_geomstats(metric, point), tangent_inclusion(metric, point)
    assert inclusion.domain == g.space and g.space.dim == make().dim
    v, w = (rng.Vector(g.space, torch.randn(g.space.dim, dtype=float64, generator=generator(k))) for k in (0, 1))
    v_out, w_out = (inclusion(x).data.reshape(point.shape) for x in (v, w))
    assert bool(make().is_tangent(v_out, point))
    theirs = metric.inner_product(v_out, w_out, point)
    torch.testing.assert_close(g.inner(v, w), theirs.reshape(()))
    torch.testing.assert_close(g.flat(v)(w), theirs.reshape(()))
    torch.testing.assert_close(g.sharp(rng.Covector(g.space, v.data)).data, g.matrix().inverse() @ v.data)
    torch.testing.assert_close(g.sharp(g.flat(v)).data, v.data)
    elsewhere = metric.inner_product(v_out, w_out, point * 0.9 if name != "Euclidean" else point) * 1.01
    assert abs(g.inner(v, w) - elsewhere) > 1e-3


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_an_embedded_manifold_has_a_tangent_space_at_each_point():
    metric, north = Hypersphere(2).metric, numbers(0.0, 0.0, 1.0)
    g, inclusion = from_geomstats(metric, ON_SPHERE), tangent_inclusion(metric, ON_SPHERE)
    assert str(g.space) == "Hypersphere at (0.48, 0.6, 0.64)" and inclusion.natural
    columns = inclusion.matrix()
    torch.testing.assert_close(columns.mT @ columns, torch.eye(2, dtype=float64))
    torch.testing.assert_close(ON_SPHERE @ columns, torch.zeros(2, dtype=float64))
    ambient = rng.Gram(inclusion.codomain, torch.eye(3, dtype=float64))
    torch.testing.assert_close(ambient.pullback(inclusion).matrix(), g.matrix())
    with pytest.raises(SpaceMismatch, match="live on different spaces"):
        g + from_geomstats(metric, north)
    with pytest.raises(SpaceMismatch, match="live on different spaces"):
        g + from_geomstats(metric, ON_SPHERE + numbers(1e-9, 0.0, 0.0))


def test_double_precision_does_not_depend_on_defaults():
    metric, point = NormalDistributions(1).metric, numbers(0.3, 0.7)
    g = from_geomstats(metric, point)
    closed = torch.diag(numbers(1.0, 2.0)) / 0.7**2
    torch.testing.assert_close(g.matrix(), closed, rtol=1e-14, atol=0)
    e = torch.eye(2, dtype=float64)[0]
    assert abs(metric.inner_product(e, e, point) - closed[0, 0]) > 1e-9  # by itself it takes √2 in float32
    single = from_geomstats(metric, point.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.matrix(), closed.float())


def test_gradients_flow_to_the_point():
    point = ALPHA.clone().requires_grad_()
    g = from_geomstats(DirichletDistributions(3).metric, point)
    (found,) = torch.autograd.grad(g.matrix()[0, 0], point)
    total = torch.polygamma(2, ALPHA.sum())
    torch.testing.assert_close(found, numbers(1, 0, 0) * torch.polygamma(2, ALPHA) - total)


def test_both_round_trips():
    metric = as_geomstats(half_plane, H, contains=upper)
    assert from_geomstats(metric, STARTS[1]).expression() == half_plane(STARTS[1]).expression()
    assert from_geomstats(metric, STARTS[1]).matrix().equal(half_plane(STARTS[1]).matrix())
    assert from_geomstats(as_geomstats(g := rng.Euclidean(V)), STARTS[1]) is g
    renamed = from_geomstats(metric, STARTS[1], V)
    assert renamed.space == V and renamed.matrix().equal(half_plane(STARTS[1]).matrix())

    theirs = PoincareHalfSpace(2).metric
    again = as_geomstats(lambda x: from_geomstats(theirs, x, H), H)
    torch.testing.assert_close(again.christoffels(STARTS), christoffels_of_the_half_plane(STARTS))


def test_a_metric_is_known_by_its_name_and_a_varying_one_keeps_nothing():
    flat, ball = from_geomstats(Euclidean(2).metric, numbers(0.3, 0.4), V), PoincareBall(2).metric
    g = from_geomstats(ball, numbers(0.3, 0.4), V)
    assert "PoincareBallMetric at (0.3, 0.4)" in repr(g)
    assert flat.symmetry.keeps("V", "translations") and not flat.symmetry.keeps("V", "general")
    assert not any(g.symmetry.keeps("V", group) for group in ("translations", "general", "orthogonal", "permutations"))
    assert [str(s) for s in g.symmetry.blame("V", "translations")] == ["PoincareBallMetric at (0.3, 0.4)"]
    assert rng.Gram(V, g.matrix(), natural=True).symmetry.keeps("V", "affine")
    other = from_geomstats(ball, numbers(0.1, 0.4), V)
    assert (g + other).symmetry.fixed == g.symmetry.fixed | other.symmetry.fixed != g.symmetry.fixed


# --- bad input --------------------------------------------------------------------------------------------------------


class Lopsided(RiemannianMetric):
    def metric_matrix(self, base_point=None):
        return numbers([2.0, 1.0], [0.0, 2.0])


class Flattened(Euclidean):
    def to_tangent(self, vector, base_point=None):
        return vector * numbers(1.0, 0.0)


BALL = PoincareBall(2).metric


@pytest.mark.parametrize(
    ("metric", "point", "space", "error", "message"),
    [
        (PoincareBall(2), numbers(0.1, 0.2), None, SpaceMismatch, r"expected a Riemannian metric .* in \.metric"),
        (ComplexPoincareDisk().metric, numbers(0.1), None, SpaceMismatch, "that of a complex manifold is Hermitian"),
        (BALL, numbers([0.1, 0.2]), None, ShapeMismatch, r"one point of PoincareBall .* \[2\], got float64\[1, 2\]"),
        (BALL, [0.1, 0.2], None, ShapeMismatch, r"has components \[2\], got list"),
        (BALL, torch.zeros(2, dtype=torch.int64), None, DtypeMismatch, r"float32 or float64, got int64\[2\]"),
        (BALL, numbers(0.1, math.nan), None, NonFinite, "the point of PoincareBall holds NaN or infinity"),
        (BALL, numbers(1.1, 0.2), None, SpaceMismatch, r"\(1.1, 0.2\) does not lie on PoincareBall"),
        (BALL, numbers(0.1, 0.2), rng.Space("W", 3), SpaceMismatch, r"dimension 2, so it cannot be Space\('W', 3\)"),
        (BALL, numbers(0.1, 0.2), 2, SpaceMismatch, "has dimension 2, so it cannot be 2"),
        (Hypersphere(2, intrinsic=True).metric, numbers(0.3, 0.4), None, SpaceMismatch, "not lie on Hypersphere, as"),
        (Flattened(2).metric, numbers(0.6, 0.8), None, SpaceMismatch, r"has dimension 2, but its vectors at .* span 1"),
        (Minkowski(2).metric, numbers(0.1, 0.2), None, NotAnInnerProduct, "Euclidean"),
        (Lopsided(Euclidean(2)), numbers(0.1, 0.2), None, NotAnInnerProduct, "is not symmetric"),
        (as_geomstats(half_plane, H), numbers(0.1, 0.2), rng.Space("W", 3), SpaceMismatch, "has dimension 2"),
        (as_geomstats(half_plane, H), numbers(0.1), None, ShapeMismatch, r"one point of the manifold of H .* \[2\]"),
    ],
)  # fmt: skip
def test_from_geomstats_refuses(metric, point, space, error, message):
    with pytest.raises(error, match=message):
        from_geomstats(metric, point, space)


@pytest.mark.parametrize(
    ("metric", "space", "message"),
    [
        (half_plane, None, r"a function of a point together with the space of its values, got function"),
        (torch.eye(2), V, r"got float32\[2, 2\] and Space\('V', 2\). Write as_geomstats\(field, Space\('θ', 2\)\)"),
        (rng.Euclidean(V), H, r"Euclidean\(V\).* is no inner product on H"),
    ],
)
def test_as_geomstats_refuses(metric, space, message):
    with pytest.raises(SpaceMismatch, match=message):
        as_geomstats(metric, space)


@pytest.mark.parametrize(
    ("field", "error", "message"),
    [
        (half_plane, SpaceMismatch, r"the field gives Gram\(H.* at \(0.0, 1.0\); expected an inner product on V"),
        (lambda x: 1.0, SpaceMismatch, r"the field gives 1.0 at \(0.0, 1.0\)"),
        (lambda x: torch.eye(3, dtype=float64), ShapeMismatch, r"a form on V has a matrix \[2, 2\]"),
        (lambda x: numbers([1.0, 1.0], [0.0, 1.0]), NotAnInnerProduct, "is not symmetric"),
        (lambda x: numbers([1.0, 0.0], [0.0, -1.0]), NotAnInnerProduct, "V"),
        (lambda x: torch.eye(2, dtype=float64) / x[0], NonFinite, "NaN or infinity"),
        (lambda x: torch.outer(x, x), DegenerateMetric, r"the field at \(0.0, 1.0\) has rank 1 of 2 on V; .* Damp it"),
    ],
)
def test_a_field_is_checked_where_it_is_taken(field, error, message):
    with pytest.raises(error, match=message):
        as_geomstats(field, V).christoffels(STARTS)


def test_a_metric_is_asked_for_at_points_of_its_space(plane):
    for point, got in [(None, "NoneType None"), (numbers(1.0), r"float64\[1\]")]:
        with pytest.raises(ShapeMismatch, match=rf"a metric on H is taken at points \[..., 2\], got {got}"):
            plane.metric_matrix(point)


def test_a_degenerate_field_has_no_logarithm():
    with pytest.raises(DegenerateMetric, match="rank 1 of 2 on V"):
        as_geomstats(lambda x: torch.diag(numbers(1.0, 0.0)), V).dist(STARTS[1], ENDS[1])
    nowhere = as_geomstats(lambda x: rng.Gram(V, torch.eye(2, dtype=float64) / 0, validate=False), V)
    with pytest.raises(NonFinite, match=r"the field at \(0.3, 0.7\) holds NaN or infinity on V"):
        nowhere.christoffels(STARTS[1])


def test_a_logarithm_that_is_not_found_is_not_given():
    metric = as_geomstats(half_plane, H, contains=upper)
    metric.log_solver.steps, metric.exp_solver.integrator.n_steps = 1, 5
    with pytest.raises(NotConverged, match=r"after 1 Newton steps geodesics of H miss their end points by up to"):
        metric.dist(STARTS[0], ENDS[0])
