"""Parameters on manifolds: against formulas of their own, dense restrictions in random bases, and ways to go wrong."""

import math

import pytest
import torch
from manifold_cases import (
    CE,
    EVERYTHING,
    F64,
    NORMAL,
    Covariance,
    Direction,
    draw,
    errors_of,
    everything,
    step,
    tokens,
)  # fmt: skip
from torch import nn

import riemann_ng as rng
from riemann_ng.errors import DegenerateMetric, DtypeMismatch, InvalidSetting, NonFinite, ShapeMismatch
from riemann_ng.interop.geomstats import (
    ManifoldNaturalGradient,
    OffManifold,
    OnManifold,
    constraint_errors,
    project_,
    tangent,
)
from riemann_ng.likelihoods import Categorical, Gaussian
from riemann_ng.optim import (
    Constant,
    GeodesicCorrected,
    IterateAverage,
    KLClip,
    NaturalGradient,
    QuadraticModel,
    Tikhonov,
)

# isort: split
# geomstats takes the backend that the import above has chosen
from geomstats.geometry.hyperboloid import Hyperboloid
from geomstats.geometry.hypersphere import Hypersphere
from geomstats.geometry.poincare_ball import PoincareBall
from geomstats.geometry.spd_matrices import SPDAffineMetric, SPDMatrices
from geomstats.geometry.special_orthogonal import SpecialOrthogonal
from geomstats.geometry.stiefel import Stiefel, StiefelCanonicalMetric

PLAIN = {"step_size": Constant(), "damping": None, "momentum": 0.0, "decay": 0.0, "schedule": rng.optim.Schedule(1, 1)}


@pytest.fixture(autouse=True)
def in_double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(F64)
    yield
    torch.set_default_dtype(before)


# --- the sphere -------------------------------------------------------------------------------------------------------

A = torch.diag(torch.tensor([4.0, 2.0, 1.0], dtype=F64)) + 0.1 * (draw(3, 3) + draw(3, 3).mT)


def rayleigh(z, y):
    """-½ wᵀA w, from outputs at the rows of a root of A."""
    return -0.5 * z.square().sum()


def on_the_sphere(steps, momentum, project=True):
    """Gradient descent for the Rayleigh quotient, by cosines and sines; momentum is the projected secant."""
    w, before = nn.functional.normalize(draw(3), dim=0), torch.zeros(3)
    path = []
    for _ in range(steps):
        gradient = -A @ w
        tangent = gradient - (w @ gradient) * w if project else gradient
        v = -0.1 * tangent + momentum * (before - (w @ before) * w)
        length = v.norm()
        new = w * length.cos() + v * length.sin() / length if project else w + v
        w, before = new, new - w
        path.append(w)
    return torch.stack(path)


@pytest.mark.parametrize("momentum", [0.0, 0.7])
@pytest.mark.parametrize("metric", ["own", "pulled back"])  # the embedding's is the sphere's own
def test_the_rayleigh_quotient_on_the_sphere(momentum, metric):
    model = Direction(nn.functional.normalize(draw(3), dim=0))
    opt = ManifoldNaturalGradient(
        model, Gaussian(), {"w": OnManifold(Hypersphere(2), metric=metric)}, metric=rng.EuclideanMetric(), lr=0.1,
        **PLAIN | {"momentum": momentum},
    )  # fmt: skip
    root, path = torch.linalg.cholesky(A).mT, []
    for _ in range(60):
        step(model, opt, root, None, rayleigh)
        path.append(model.w.detach().clone())
    torch.testing.assert_close(torch.stack(path), on_the_sphere(60, momentum), rtol=0, atol=1e-12)
    assert float(1 - (path[-1] @ torch.linalg.eigh(A)[1][:, -1]).abs()) < 1e-5
    assert abs(float(on_the_sphere(5, momentum, project=False)[-1].norm()) - 1) > 0.1  # the straight step leaves it


def averaged_on_the_sphere(steps, carried=True):
    """The same along an average of gradients, which is projected to every new tangent space, or is not."""
    w, mean, weight, path = nn.functional.normalize(draw(3), dim=0), torch.zeros(3), 0.0, []
    for _ in range(steps):
        weight = 0.8 * weight + 1
        gradient = -A @ w
        mean = mean + (gradient - (w @ gradient) * w * carried - mean) / weight
        tangent = mean - (w @ mean) * w
        mean = tangent if carried else mean
        w = w * (0.1 * tangent.norm()).cos() - (0.1 * tangent.norm()).sin() * tangent / tangent.norm()
        path.append(w)
    return torch.stack(path)


def test_averages_of_gradients_come_along():
    model, root, path = Direction(nn.functional.normalize(draw(3), dim=0)), torch.linalg.cholesky(A).mT, []
    opt = ManifoldNaturalGradient(
        model, Gaussian(), {"w": Hypersphere(2)}, metric=rng.EuclideanMetric(), lr=0.1,
        **PLAIN | {"momentum": 0.8, "momentum_of": "gradients"},
    )  # fmt: skip
    for _ in range(30):
        step(model, opt, root, None, rayleigh)
        path.append(model.w.detach().clone())
    torch.testing.assert_close(torch.stack(path), averaged_on_the_sphere(30), rtol=0, atol=1e-12)
    assert float((torch.stack(path) - averaged_on_the_sphere(30, carried=False)).abs().max()) > 1e-3


# --- covariances ------------------------------------------------------------------------------------------------------


def spd(seed, n=3):
    a = draw(n, n, seed=seed)
    return a @ a.mT + 0.5 * torch.eye(n)


@pytest.mark.parametrize("kind", ["exact", "layerwise"])
def test_fisher_steps_of_a_covariance_are_geodesics_of_the_affine_metric(kind):
    """The Fisher metric of N(0, Σ) is half the affine-invariant one: the step is 2η of that gradient along it."""
    model, x, y = Covariance(spd(1)), torch.zeros(50, 1), draw(50, 3, seed=2) @ draw(3, 3, seed=3)
    metric = rng.Fisher() if kind == "exact" else rng.KFAC()
    place = {"sigma": OnManifold(SPDMatrices(3), longest=None)}
    opt = ManifoldNaturalGradient(model, NORMAL, place, metric=metric, lr=0.2, estimator=rng.Exact(), **PLAIN)
    affine, S, sigma = SPDMatrices(3).metric, y.mT @ y / 50, spd(1)
    for _ in range(8):
        step(model, opt, x, y, NORMAL.loss)
        inverse = torch.linalg.inv(sigma)
        gradient = 0.5 * (inverse - inverse @ S @ inverse)  # of the loss, symmetric
        step_of_fisher = -0.2 * 2 * sigma @ gradient @ sigma
        torch.testing.assert_close(step_of_fisher, 0.2 * (S - sigma))
        sigma = affine.exp(step_of_fisher, sigma)
        torch.testing.assert_close(model.sigma.detach(), sigma, rtol=1e-9, atol=1e-9)
    opt.close()
    with pytest.raises(DegenerateMetric):  # all nine components have no definite Fisher metric, the six do
        plain = NaturalGradient(model, NORMAL, metric=metric, estimator=rng.Exact(), **PLAIN)
        step(model, plain, x, y, NORMAL.loss)


def test_the_own_metric_of_covariances():
    model, x, y = Covariance(spd(1)), torch.zeros(50, 1), draw(50, 3, seed=2)
    space = SPDMatrices(3, equip=False)
    space.equip_with_metric(SPDAffineMetric)
    opt = ManifoldNaturalGradient(
        model, NORMAL, {"sigma": OnManifold(space, metric="own")}, metric=rng.EuclideanMetric(), lr=0.1, **PLAIN
    )
    sigma = spd(1)
    step(model, opt, x, y, NORMAL.loss)
    inverse = torch.linalg.inv(sigma)
    gradient = 0.5 * (inverse - inverse @ (y.mT @ y / 50) @ inverse)
    expected = space.metric.exp(-0.1 * sigma @ gradient @ sigma, sigma)
    torch.testing.assert_close(model.sigma.detach(), expected, rtol=1e-9, atol=1e-9)


# --- hyperbolic planes ------------------------------------------------------------------------------------------------


def plus(x, y):
    """Addition of Möbius, row by row."""
    xy, xx, yy = ((a * b).sum(-1, keepdim=True) for a, b in ((x, y), (x, x), (y, y)))
    return ((1 + 2 * xy + yy) * x + (1 - xx) * y) / (1 + 2 * xy + xx * yy)


def test_gradients_on_the_ball_are_scaled_by_the_conformal_factor():
    model = nn.Sequential(nn.Embedding(6, 2), nn.Linear(2, 3))
    with torch.no_grad():
        model[0].weight.copy_(0.25 * draw(6, 2, seed=5))
    x, y = tokens()
    place = {"0.weight": OnManifold(PoincareBall(2), metric="own")}
    opt = ManifoldNaturalGradient(model, Categorical(), place, metric=rng.EuclideanMetric(), lr=0.3, **PLAIN)
    before = [p.detach().clone() for p in model.parameters()]
    opt.zero_grad()
    CE(model(x), y).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    opt.step()
    at, factor = before[0], 2 / (1 - before[0].square().sum(-1, keepdim=True))
    v = -0.3 * gradients[0] / factor**2
    length = v.norm(dim=-1, keepdim=True).clamp(min=1e-300)
    expected = plus(at, (factor * length / 2).tanh() * v / length)
    torch.testing.assert_close(model[0].weight.detach(), expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(model[1].weight.detach(), before[1] - 0.3 * gradients[1])  # ordinary ones beside it
    assert not torch.allclose(expected, at - 0.3 * gradients[0], atol=1e-4)


def test_gradients_on_the_hyperboloid_are_turned_by_the_form_of_minkowski():
    model = nn.Sequential(nn.Embedding(6, 3), nn.Linear(3, 3))
    place = {"0.weight": OnManifold(Hyperboloid(2), metric="own")}
    project_(model, place)
    x, y = tokens()
    opt = ManifoldNaturalGradient(model, Categorical(), place, metric=rng.EuclideanMetric(), lr=0.3, **PLAIN)
    at = model[0].weight.detach().clone()
    step(model, opt, x, y)
    J = torch.tensor([-1.0, 1, 1])
    g = model[0].weight.grad * J
    v = -0.3 * (g + (at * J * g).sum(-1, keepdim=True) * at)
    length = (v * J * v).sum(-1, keepdim=True).sqrt().clamp(min=1e-300)
    expected = length.cosh() * at + length.sinh() * v / length
    torch.testing.assert_close(model[0].weight.detach(), expected, rtol=1e-9, atol=1e-9)


# --- frames -----------------------------------------------------------------------------------------------------------


def encoder(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    project_(model, FRAMES)
    return model


FRAMES = {"0.weight": OnManifold(Stiefel(5, 3), transposed=True, retraction="projection", longest=None)}
X, Y = draw(60, 5, seed=7), (draw(60, 5, seed=7) @ draw(5, 3, seed=8)).argmax(1)


def proposed(model, metric, damping):
    """What the loop does with the parameters at a small rate, over that rate: the velocity of the step."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    settings = PLAIN | {"damping": damping, "estimator": rng.Exact()}
    opt = ManifoldNaturalGradient(model, Categorical(), FRAMES, metric=metric, lr=1e-7, **settings)
    step(model, opt, X, Y)
    opt.close()
    return {name: (p.detach() - before[name]) / 1e-7 for name, p in model.named_parameters()}


def restricted(model, metric, damping, seed, mistake=False):
    """Minus B (Bᵀ g B)⁻¹ Bᵀ df, dense, in a random basis B of what Wᵀ V + Vᵀ W = 0 leaves."""
    network = rng.Network.from_torch(model, Categorical(), X)
    g = metric.at(network.observe(X, rng.Exact()))
    if damping is not None:
        g = damping.damped(g, damping.start, rng.Euclidean(g.space))
    G, df = g.matrix(), network.differential(X, Y)
    named, columns = dict(model.named_parameters()), []
    W = named["0.weight"].detach()
    condition = torch.stack([(e @ W.mT + W @ e.mT).flatten() for e in torch.eye(15).reshape(15, 3, 5)], dim=1)
    kernel = torch.linalg.svd(condition)[2][6:]  # 15 numbers, 6 equations
    kernel = draw(9, 9, seed=seed) @ kernel
    for name, p in named.items():
        for e in kernel if name == "0.weight" else torch.eye(p.numel()):
            tensors = {k: e.reshape(p.shape) if k == name else torch.zeros_like(q) for k, q in named.items()}
            columns.append(network.vector(tensors).data)
    B = torch.stack(columns, dim=1)
    if mistake:  # solved with all components, and then projected
        projector = B @ torch.linalg.solve(B.mT @ B, B.mT)
        v = -projector @ torch.linalg.solve(G, df.data)
    else:
        v = -B @ torch.linalg.solve(B.mT @ G @ B, B.mT @ df.data)
    return rng.Vector(network.tangent_space, v).to_parameters()


CASES = [
    (rng.KFAC(), rng.optim.Factored(1e-2)),
    (rng.Fisher(), Tikhonov(1e-2)),
    (rng.EKFAC(), Tikhonov(1e-2)),
    (rng.BlockTridiagonalKFAC(), rng.optim.Factored(1e-2)),
]


@pytest.mark.parametrize(("metric", "damping"), CASES, ids=lambda value: type(value).__name__)
def test_the_natural_gradient_is_that_of_the_restricted_metric_in_any_basis(metric, damping):
    velocity = proposed(encoder(), metric, damping)
    for seed in (11, 12):
        dense = restricted(encoder(), metric, damping, seed)
        size = max(float(t.abs().max()) for t in dense.values())
        for name, t in velocity.items():
            torch.testing.assert_close(t, dense[name], rtol=0, atol=3e-6 * size)
    wrong = restricted(encoder(), metric, damping, 11, mistake=True)
    assert float((wrong["0.weight"] - velocity["0.weight"]).abs().max()) > 1e-2 * size


def test_other_layers_are_as_without_manifolds():
    velocity = proposed(encoder(), rng.KFAC(), rng.optim.Factored(1e-2))
    model = encoder()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    settings = PLAIN | {"damping": 1e-2, "estimator": rng.Exact()}
    step(model, NaturalGradient(model, Categorical(), metric=rng.KFAC(), lr=1e-7, **settings), X, Y)
    for name, p in model.named_parameters():
        same = torch.allclose(velocity[name], (p.detach() - before[name]) / 1e-7, rtol=1e-6, atol=1e-8)
        assert same is not name.startswith("0.")


def test_points_too_large_for_a_basis_are_solved_by_projection(monkeypatch):
    with_basis = proposed(encoder(), rng.KFAC(), rng.optim.Factored(1e-2))
    monkeypatch.setattr(tangent, "BASIS_UP_TO", 1)
    monkeypatch.setattr("riemann_ng.interop.geomstats.training.DENSE_UP_TO", 1)
    by_projection = proposed(encoder(), rng.KFAC(), rng.optim.Factored(1e-2))
    size = float(with_basis["0.weight"].abs().max())
    for name, t in by_projection.items():
        torch.testing.assert_close(t, with_basis[name], rtol=0, atol=1e-4 * size)


def trained_in_frame(C, metric):
    """The functions of a run whose hidden layer is written in another frame: h ↦ C h + c, and its inverse after."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2), nn.Linear(2, 2))
    project_(model, FRAMES)
    with torch.no_grad():
        W, b = model[2].weight.clone(), model[2].bias.clone()
        model[2].weight.copy_(C @ W), model[2].bias.copy_(C @ b + 0.3)
        model[3].weight.copy_(model[3].weight @ torch.linalg.inv(C))
        model[3].bias.sub_(model[3].weight.sum(1) * 0.3)
    settings = PLAIN | {"damping": Tikhonov(1e-2, rng.optim.AtStart(metric)), "estimator": rng.Exact()}
    opt = ManifoldNaturalGradient(model, Gaussian(), FRAMES, metric=metric, lr=0.3, **settings | {"momentum": 0.5})
    for _ in range(5):
        step(model, opt, X, X[:, :2].sin(), Gaussian().loss)
    return model(X).detach()


def test_the_run_does_not_depend_on_frames_of_other_layers():
    C = torch.eye(2) + 0.4 * draw(2, 2, seed=4)
    kfac = trained_in_frame(torch.eye(2), rng.KFAC())
    torch.testing.assert_close(trained_in_frame(C, rng.KFAC()), kfac, rtol=0, atol=1e-7)
    plain = rng.EuclideanMetric()
    assert not torch.allclose(trained_in_frame(C, plain), trained_in_frame(torch.eye(2), plain), atol=1e-3)


def test_principal_components():
    """The reconstruction x ↦ W Wᵀ x of a frame W finds the leading ones, as an eigendecomposition does."""

    class Reconstruction(nn.Module):
        def __init__(self):
            super().__init__()
            self.W = nn.Parameter(torch.linalg.qr(draw(6, 2, seed=9))[0])

        def forward(self, x):
            return x @ self.W @ self.W.mT

    x = draw(80, 6, seed=10) * torch.tensor([3.0, 2.5, 1, 0.8, 0.6, 0.4])
    model = Reconstruction()
    qr = OnManifold(Stiefel(6, 2), retraction=StiefelCanonicalMetric.retraction)
    settings = {"damping": 1e-2, "step_size": QuadraticModel(), "momentum": 0.5}
    opt = ManifoldNaturalGradient(model, Gaussian(), {"W": qr}, metric=rng.Fisher("block-diagonal"), **settings)
    for _ in range(60):
        step(model, opt, x, x, Gaussian().loss)
    leading = torch.linalg.eigh(x.mT @ x)[1][:, -2:]
    W = model.W.detach()
    assert float((W @ W.mT - leading @ leading.mT).abs().max()) < 1e-5


# --- long runs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "steps", "most"), [(torch.float32, 1000, 3e-7), (torch.float64, 200, 1e-12)])
def test_long_runs_stay_on_five_manifolds(dtype, steps, most):
    model, (x, y) = everything(dtype), tokens(24)
    settings = {"damping": 0.1, "lr": 0.03, "step_size": Constant(), "schedule": rng.optim.Schedule(10, 10)}
    opt = ManifoldNaturalGradient(model, Categorical(), EVERYTHING, **settings)
    first = step(model, opt, x, y)
    for _ in range(steps - 1):
        last = step(model, opt, x, y)
    assert opt.steps == steps and not opt.tally.counts
    assert max(errors_of(model).values()) < most
    assert max(constraint_errors(model, EVERYTHING).values()) < most
    assert last < 0.1 * first
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_without_manifolds_they_are_left():
    model, (x, y) = everything(), tokens(24)
    opt = NaturalGradient(model, Categorical(), damping=0.1, lr=0.03, step_size=Constant())
    for _ in range(5):
        step(model, opt, x, y)
    assert max(errors_of(model).values()) > 1e-2


def test_the_default_recipe_trains_them():
    model, (x, y) = everything(), tokens(24)
    opt = ManifoldNaturalGradient(model, Categorical(), EVERYTHING)
    losses = [step(model, opt, x, y) for _ in range(60)]
    assert losses[-1] < 0.1 * losses[0]
    assert max(errors_of(model).values()) < 1e-12


def test_a_run_goes_on_bit_for_bit():
    def run(steps, resumed=None):
        model, (x, y) = everything(), tokens(24)
        opt = ManifoldNaturalGradient(model, Categorical(), EVERYTHING)
        if resumed is not None:
            model.load_state_dict(resumed[0])
            opt.load_state_dict(resumed[1])
        for _ in range(steps):
            step(model, opt, x, y)
        return model.state_dict(), opt.state_dict()

    whole, again = run(17), run(8, run(9))
    assert all(torch.equal(t, again[0][name]) for name, t in whole[0].items())


def test_a_step_at_the_edge_is_halved_and_one_too_long_is_shortened():
    model, x, y = Covariance(torch.diag(torch.tensor([1.0, 1.0, 1e-6]))), torch.zeros(50, 1), 1e-6 * draw(50, 3)
    place = {"sigma": OnManifold(SPDMatrices(3), retraction="projection", longest=None)}
    opt = ManifoldNaturalGradient(model, NORMAL, place, metric=rng.EuclideanMetric(), lr=10.0, **PLAIN)
    step(model, opt, x, y, NORMAL.loss)
    assert float(torch.linalg.eigvalsh(model.sigma.detach()).min()) > 0 and opt.steps == 1

    w = nn.functional.normalize(draw(3), dim=0)
    for longest in (0.25, None):
        model = Direction(w.clone())
        place = {"w": OnManifold(Hypersphere(2), longest=longest)}
        opt = ManifoldNaturalGradient(model, Gaussian(), place, metric=rng.EuclideanMetric(), lr=0.8, **PLAIN)
        step(model, opt, torch.linalg.cholesky(A).mT, None, rayleigh)
        angle = math.acos(float(model.w.detach() @ w))
        assert abs(angle - 0.25) < 1e-9 if longest else angle > 0.5


# --- other policies ---------------------------------------------------------------------------------------------------


def test_other_rules_solvers_and_groups():
    model = encoder()
    ordinary = [p for name, p in model.named_parameters() if name != "0.weight"]
    groups = [{"params": [model[0].weight], "lr": 0.1}, {"params": ordinary, "lr": 0.3, "weight_decay": 1e-2}]
    opt = ManifoldNaturalGradient(
        model, Categorical(), FRAMES, step_size=KLClip(1e-2), damping=1e-2, solver=rng.solvers.CG(1e-8), params=groups
    )
    losses = [step(model, opt, X, Y) for _ in range(30)]
    assert losses[-1] < losses[0] and max(constraint_errors(model, FRAMES).values()) < 1e-12
    assert "OnTangentSpaces(of=CG(" in repr(opt) and "Retracted(of=KLClip(bound=0.01))" in repr(opt)
    opt.param_groups[0]["weight_decay"] = 0.1
    with pytest.raises(InvalidSetting, match=r"weight_decay=0\.1 shrinks '0\.weight' off Stiefel"):
        step(model, opt, X, Y)


def test_rotations():
    """Wahba's problem: the rotation that fits turned points best, by an SVD."""

    class Turn(nn.Module):
        def __init__(self):
            super().__init__()
            self.R = nn.Parameter(torch.eye(3))

        def forward(self, x):
            return x @ self.R.mT

    truth = torch.linalg.qr(draw(3, 3, seed=1))[0]
    truth = truth * truth.det()
    x = draw(40, 3, seed=2)
    y, model = x @ truth.mT + 0.1 * draw(40, 3, seed=3), Turn()
    settings = {"damping": 1e-6, "step_size": QuadraticModel(), "momentum": 0.5}
    opt = ManifoldNaturalGradient(model, Gaussian(), {"R": SpecialOrthogonal(3)}, **settings)
    for _ in range(80):
        step(model, opt, x, y, Gaussian().loss)
    U, _, V = torch.linalg.svd(y.mT @ x)
    expected = U @ torch.diag(torch.tensor([1.0, 1.0, float((U @ V).det())])) @ V
    torch.testing.assert_close(model.R.detach(), expected, rtol=0, atol=1e-5)


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_parameter_that_left_is_refused_and_put_back():
    model = encoder()
    opt = ManifoldNaturalGradient(model, Categorical(), FRAMES)
    step(model, opt, X, Y)
    with torch.no_grad():
        model[0].weight[0] *= 1.5
    state, held = opt.state_dict(), [p.detach().clone() for p in model.parameters()]
    with pytest.raises(OffManifold, match=r"'0.weight' is \d.\de-01 off Stiefel, more than 1e-05(.|\n)*project_\("):
        step(model, opt, X, Y)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), held, strict=True))
    assert opt.state_dict()["riemann_ng"]["steps"] == state["riemann_ng"]["steps"] and not opt.tally.counts
    project_(model, FRAMES)
    assert max(constraint_errors(model, FRAMES).values()) < 1e-12
    step(model, opt, X, Y)
    assert opt.steps == 2
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    with pytest.raises(NonFinite, match=r"'0\.weight', on Stiefel, holds NaN or infinity\. Load a good state"):
        opt.step()
    with pytest.raises(OffManifold, match=r"is .* off Hypersphere"):
        ManifoldNaturalGradient(Direction(draw(3)), Gaussian(), {"w": Hypersphere(2)})
    with pytest.raises(OffManifold, match=r"is .* off SPDMatrices"):
        indefinite = torch.diag(torch.tensor([1.0, -1.0]))
        ManifoldNaturalGradient(Covariance(indefinite), NORMAL, {"sigma": SPDMatrices(2)})


@pytest.mark.parametrize(
    ("point", "manifold"),
    [
        (draw(3, seed=1), Hypersphere(2)),
        (draw(3, seed=1), Hyperboloid(2)),
        (torch.tensor([-3.0, 2.0], dtype=F64), PoincareBall(2)),
        (draw(3, 3, seed=1), SPDMatrices(3)),
        (draw(4, 2, seed=1), Stiefel(4, 2)),
        (draw(3, 3, seed=1), SpecialOrthogonal(3)),
    ],
    ids=lambda value: type(value).__name__.lstrip("_"),
)
def test_any_point_is_put_on_the_manifold(point, manifold):
    model = Direction(point.clone())
    project_(model, {"w": manifold})
    assert constraint_errors(model, {"w": manifold})["w"] < 1e-10


class Scores(nn.Module):
    """Outputs that do not see the last coordinate of a direction."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(nn.functional.normalize(draw(4, seed=2), dim=0))

    def forward(self, x):
        return x[:, :2] @ self.w[:2, None]


def test_a_degenerate_restricted_metric_says_how_to_go_on():
    model = Scores()
    opt = ManifoldNaturalGradient(model, Gaussian(), {"w": Hypersphere(3)}, metric=rng.KFAC(), **PLAIN)
    with pytest.raises(DegenerateMetric, match=r"the form on T\(w on Hypersphere\) has rank 2 of 3. Three ways out"):
        step(model, opt, draw(20, 4), draw(20, 1), Gaussian().loss)


W = nn.functional.normalize(draw(3), dim=0)


@pytest.mark.parametrize(
    ("manifolds", "settings", "error", "text"),
    [
        ({}, {}, InvalidSetting, "expected one or more by parameter"),
        ({"v": Hypersphere(2)}, {}, InvalidSetting, "no trained parameter is called 'v'; there are 'w'"),
        ({"w": Hypersphere(3)}, {}, ShapeMismatch, r"points of Hypersphere are \[4\], and 'w' is \[3\]"),
        ({"w": "sphere"}, {}, InvalidSetting, "expected a manifold of geomstats, an instance"),
        ({"w": Hypersphere(2)}, {"weight_decay": 0.1}, InvalidSetting, "weight_decay=0.1 shrinks 'w' off Hypersphere"),
        ({"w": Hypersphere(2)}, {"averaging": IterateAverage()}, InvalidSetting, "the average of points of a manifold"),
        ({"w": Hypersphere(2)}, {"step_size": GeodesicCorrected()}, InvalidSetting, "that goes along the proposal"),
        ({"w": Hypersphere(2)}, {"step_size": "far"}, InvalidSetting, "step_size='far', expected a rule"),
    ],
)
def test_settings_that_mean_nothing_are_refused(manifolds, settings, error, text):
    model = Direction(W.clone())
    with pytest.raises(error, match=text):
        ManifoldNaturalGradient(model, Gaussian(), manifolds, **settings)
    assert not model._forward_hooks and torch.equal(model.w, W)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"metric": "mine"}, "metric='mine', expected 'pulled back'"),
        ({"retraction": "jump"}, "retraction='jump', expected 'exp', 'projection'"),
        ({"tolerance": 0}, r"tolerance=0, expected a number in \(0, 1\)"),
        ({"longest": -1.0}, "longest=-1.0, expected a positive length"),
    ],
)
def test_places_that_mean_nothing_are_refused(settings, text):
    with pytest.raises(InvalidSetting, match=text):
        OnManifold(Hypersphere(2), **settings)


def test_what_is_no_retraction_is_refused():
    bare = Hypersphere(2, equip=False)
    with pytest.raises(InvalidSetting, match=r"retraction='exp' needs a metric, and this Hypersphere has none"):
        OnManifold(bare)
    model = Direction(W.clone())
    opt = ManifoldNaturalGradient(model, Gaussian(), {"w": OnManifold(bare, retraction="projection")})
    step(model, opt, draw(20, 3), draw(20, 1), Gaussian().loss)
    assert constraint_errors(model, {"w": bare})["w"] < 1e-12

    ball = Direction(torch.tensor([0.3, 0.2], dtype=F64))
    theirs = PoincareBall(2).metric.retraction  # steps against its vector, times a factor
    with pytest.raises(
        InvalidSetting, match=r"is none at 'w': along a step of .* it ends .* from where the step leads"
    ):
        ManifoldNaturalGradient(ball, Gaussian(), {"w": OnManifold(PoincareBall(2), retraction=theirs)})


def test_shapes_and_dtypes_are_named():
    model = encoder()
    with pytest.raises(ShapeMismatch, match=r"It holds them transposed: OnManifold\(..., transposed=True\)"):
        ManifoldNaturalGradient(model, Categorical(), {"0.weight": Stiefel(5, 3)})
    half = Direction(W.to(torch.bfloat16))
    with pytest.raises(DtypeMismatch, match="a point of Hypersphere is held in float32 or float64"):
        ManifoldNaturalGradient(half, Gaussian(), {"w": Hypersphere(2)})
