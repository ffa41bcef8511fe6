"""Inverse-free K-FAC: frames that are multiplied along are frames of the metric, in every frame of the network."""

import copy
import itertools

import pytest
import torch
from networks_zoo import ZOO
from test_reparametrize_laws import GROUP_OF, well_posed
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from twin_cases import twin_of

import riemann_ng as rng
from riemann_ng.elements import Covector
from riemann_ng.errors import DegenerateMetric, InvalidSetting, NonFinite, NotAnInnerProduct, SpaceMismatch
from riemann_ng.inner_products import (
    Euclidean,
    Framed,
    Gram,
    InnerProduct,
    Kronecker,
    damp_factors,
    euclidean_on_translations,
    second_moment,
)  # fmt: skip
from riemann_ng.likelihoods import Bernoulli, Categorical
from riemann_ng.metrics import KFAC, EuclideanMetric, Fisher, RunningAverage
from riemann_ng.networks import Exact, Network
from riemann_ng.optim import Constant, Factored, Factorized, InverseFree, NaturalGradient, Schedule, Tikhonov
from riemann_ng.spaces import AffineSpace, Family, Hom, Space
from riemann_ng.testing import Draw


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def off(a, b):
    return float((a - b).norm() / b.norm())


FACTORIZING = ("cholesky", "qr", "eig", "svd", "inv", "lu", "solve", "triangular", "det", "lstsq", "geqrf")


class Operations(TorchDispatchMode):
    """Counts what torch is asked to factorize or to solve."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        name = f.__name__.split(".")[0]
        if any(word in name.split("_") or name.startswith(f"linalg_{word}") for word in FACTORIZING):
            self.seen.append(name)
        return f(*args, **(kwargs or {}))


V, W = Space("V", 3), AffineSpace("A", 4).hull.dual


def product(seed, scale=1.0):
    draw = Draw.seeded(seed)
    G, A = draw.positive(3), scale * draw.positive(5)
    return Gram(V, G, name="G", natural=True) * Gram(W, A, name="A", natural=True), G, A


def followed(policy, g, times, before=None):
    for _ in range(times):
        before = policy.inverted(g, before)
    return before


# --- the fixed point --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("start", ["first", "identity"])
def test_the_fixed_point_is_the_damped_inverse(rate, start):
    """K Kᵀ = (A + λ)⁻¹ and C Cᵀ = (G + λ)⁻¹, from the identity, and after the metric has become another one."""
    g, _, _ = product(0)
    h, G, A = product(1, 3.0)
    policy, lam = InverseFree(rate, start=start), 0.01
    before = policy.inverted(damp_factors(g, lam, Euclidean(g.space), "none"), None)
    g = followed(policy, damp_factors(h, lam, Euclidean(g.space), "none"), round(120 / rate), before)
    assert isinstance(g, Kronecker)
    for f, M in zip(g.factors, (G, A), strict=True):
        assert isinstance(f, Framed)
        assert off(f.K @ f.K.mT, torch.linalg.inv(M + lam**0.5 * torch.eye(len(M)))) < 1e-10


def test_one_update_is_the_published_one():
    g, _, _ = product(0)
    h, G_new, A_new = product(1)
    beta = 0.1
    g = followed(InverseFree(beta), g, 1)
    K = {f.space: f.K for f in g.factors}
    H = {V: K[V].mT @ G_new @ K[V], W: K[W].mT @ A_new @ K[W]}
    for f in InverseFree(beta).inverted(h, g).factors:
        m = (H[f.space] - torch.eye(len(f.K))) / 2
        sizes = torch.linalg.eigvalsh(H[f.space])
        bound = (sizes.mean() + (sizes.var(correction=0) * (len(m) - 1)).sqrt() - 1) / 2
        assert bound >= torch.linalg.eigvalsh(m).max()
        assert torch.allclose(f.K, K[f.space] @ (torch.eye(len(m)) - beta / max(1, 2 * beta * float(bound)) * m))


def test_what_is_off_decays_by_the_rate():
    g, G, A = product(0)
    policy = InverseFree(0.3)
    assert off(policy.inverted(3.0 * g, policy.inverted(g, None)).matrix(), 3.0 * g.matrix()) < 1e-12
    A_new = A + 0.02 * A
    moved = Gram(V, G) * Gram(W, A_new)
    before, errors = policy.inverted(g, None), []
    for _ in range(8):
        before = policy.inverted(moved, before)
        errors.append(off(before.factors[1].K @ before.factors[1].K.mT, torch.linalg.inv(A_new)))
    ratios = [b / a for a, b in itertools.pairwise(errors)]
    assert all(abs(r - 0.7) < 0.02 for r in ratios)


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 30.0, 1e6])
def test_a_metric_that_jumps_turns_no_frame_around(factor):
    g, _, _ = product(0)
    h, G, A = product(1, factor)
    before, policy = InverseFree(1.0).inverted(g, None), InverseFree(1.0)
    for _ in range(60):
        before = policy.inverted(h, before)
        assert all(float(torch.linalg.det(f.K)) for f in before.factors)
    assert off(before.matrix(), torch.kron(G, A)) < 1e-10


def test_exact_damping_is_followed_by_the_nearest_product():
    """The fixed point for G ⊗ A + λ h ⊗ k, against a flip-flop with dense inverses; and what makes it the nearest."""
    g, G, A = product(0)
    _, H, K = product(2)
    reference = Gram(V, H) * Gram(W, K)
    lam = 0.3
    found = followed(InverseFree(0.5), g + lam * reference, 200)
    X, Y = torch.eye(3), torch.eye(5)  # the inverses of the two factors
    for _ in range(300):
        Y = torch.linalg.inv((X @ G).trace() / 3 * A + lam * (X @ H).trace() / 3 * K)
        X = torch.linalg.inv((Y @ A).trace() / 5 * G + lam * (Y @ K).trace() / 5 * H)
    assert off(found.dual.matrix(), torch.kron(X, Y)) < 1e-10
    exact = (g + lam * reference).matrix()

    def divergence(inverse):
        return float((inverse @ exact).trace() - torch.linalg.slogdet(inverse)[1])

    here = divergence(found.dual.matrix())
    for seed in range(4):
        D = Draw.seeded(seed)
        nudge = [torch.linalg.matrix_exp(0.05 * (B + B.mT)) for B in (D.normal(3, 3), D.normal(5, 5))]
        roots = [torch.linalg.cholesky(M) for M in (X, Y)]
        near = torch.kron(*((L @ E @ L.mT).contiguous() for L, E in zip(roots, nudge, strict=True)))
        assert divergence(near) > here
    assert here < divergence(damp_factors(g, lam, reference).dual.matrix())


# --- on networks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_every_layer_of_the_zoo(name):
    """Families, one-hot inputs, bare parameters: after some batches the step is that of the factorized metric."""
    make, batch = ZOO[name]
    model, x = make(), batch(9)
    model(x)
    network = Network.from_torch(model, Categorical(), x)
    average, policy, before = RunningAverage(0.9), InverseFree(0.7), None
    for _ in range(3):
        g = average.add(KFAC().at(network.observe(batch(9))))
        target = damp_factors(g, 0.1, euclidean_on_translations(g.space))
        before = policy.inverted(target, before)
    with Operations() as done:
        before = followed(policy, target, 40, before)
    assert not done.seen
    df = Covector(network.tangent_space, torch.randn(network.tangent_space.dim))
    assert off(before.sharp(df).data, target.sharp(df).data) < 1e-9
    for path, part in before.parts.items():
        for f, M in zip(part.factors, target.parts[path].factors, strict=True):
            diagonal = M.structure.kind in ("diagonal", "identity")
            family = isinstance(M.space, Family)
            assert not isinstance(f, Framed) or f.K.ndim == (1 if diagonal else 3 if family else 2)


def test_the_zoo_has_factors_of_every_sort():
    shapes = set()
    for name in ("mlp", "convolutional", "tokens"):
        make, batch = ZOO[name]
        model, x = make(), batch(9)
        model(x)
        network = Network.from_torch(model, Categorical(), x)
        g = KFAC().damp_factors(0.1).at(network.observe(x))
        shapes |= {f.K.ndim for p in InverseFree().inverted(g, None).parts.values() for f in p.factors
                   if isinstance(f, Framed)}  # fmt: skip
    assert shapes == {1, 2, 3}


def train(network, batches, policy, reference):
    """Steps of an optimizer with a running average; each batch is (x, y)."""
    average, before = RunningAverage(0.8), None
    for x, y in batches:
        g = average.add(KFAC().at(network.observe(x)))
        damped = g if reference is None else damp_factors(g, 0.1, reference(network))
        before = policy.inverted(damped, before)
        network.move_(before.sharp(network.differential(x, y)), step=-0.1)


def mismatch(which, policy, group, references=None, steps=5):
    network, x, y = well_posed(which)
    model = copy.deepcopy(network.module)
    batches = [(x[i::2], y[i::2]) for i in range(2)] * steps
    base = Network.from_torch(copy.deepcopy(model), Bernoulli(), x)
    twin = twin_of(base, x, group=group)
    here, there = (None, None) if references is None else references(base, twin, x)
    train(twin.network, [(twin.inputs(a), b) for a, b in batches], policy, there)
    q = twin.to_original(twin.network.outputs(twin.inputs(x)).detach()).sigmoid()
    base = Network.from_torch(copy.deepcopy(model), Bernoulli(), x, name=base.name)
    start = base.outputs(x).detach().sigmoid()
    train(base, batches, policy, here)
    p = base.outputs(x).detach().sigmoid()
    assert float((p - start).norm()) > 0.1
    return off(q, p)


@pytest.mark.parametrize("which", ["mlp", "convolution", "tokens"])
def test_trajectories_are_equivariant_from_a_first_frame_that_is_data(which):
    policy = InverseFree(0.4, updates=2)
    assert mismatch(which, policy, GROUP_OF[which]) < 1e-7


def test_from_the_identity_they_are_not():
    policy = InverseFree(0.4, updates=2, start="identity")
    assert mismatch("mlp", policy, "affine") > 1e-3
    assert mismatch("mlp", policy, "orthogonal") < 1e-9


def test_damping_by_a_transported_reference_keeps_them_equivariant():
    def transported(base, twin, x):
        form = KFAC().at(base.observe(x[:40]))
        form = InnerProduct.from_state(form.space, form.state())
        moved = twin.transport(form)
        return (lambda network: form), (lambda network: moved)

    def coordinates(base, twin, x):
        return (lambda network: Euclidean(network.tangent_space),) * 2

    assert mismatch("mlp", InverseFree(0.4), "affine", transported) < 1e-7
    assert mismatch("mlp", InverseFree(0.4), "affine", coordinates) > 1e-3


def test_the_claim_is_what_was_measured():
    network, x, _ = well_posed("mlp")
    g = KFAC().at(network.observe(x))
    A, S = (network.blocks["0"].space.factors[i].bases[0] for i in (1, 0))
    natural, identity = InverseFree().inverted(g, None), InverseFree(start="identity").inverted(g, None)
    assert natural.keeps(A, "affine") and natural.keeps(S, "affine")
    assert identity.keeps(A, "orthogonal") and identity.keeps(S, "isometries")
    assert not identity.keeps(A, "translations") and not identity.keeps(S, "general")
    assert "InverseFree(start='identity')" in rng.explain_symmetry(identity)
    later = InverseFree().inverted(damp_factors(g, 0.1, Euclidean(g.space)), natural)
    assert later.keeps(A, "orthogonal") and not later.keeps(A, "general")
    assert "Euclidean" in rng.explain_symmetry(later)


# --- in the optimizer -------------------------------------------------------------------------------------------------


def problem():
    torch.manual_seed(3)
    x = torch.randn(120, 5)
    y = torch.randint(0, 3, (120,))
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    return model, x, y


def optimizer(model, inversion, **more):
    settings = {
        "metric": KFAC(), "lr": 0.1, "momentum": 0.0, "damping": Factored(0.05), "estimator": Exact(), "decay": 0.9,
        "schedule": Schedule(statistics=1, factorize=1), "step_size": Constant(),
    }  # fmt: skip
    return NaturalGradient(model, Categorical(), inversion=inversion, **{**settings, **more})


def steps(model, opt, x, y, count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    for _ in range(count):
        i = torch.randperm(len(x), generator=draw)[:60]
        opt.zero_grad()
        nn.functional.cross_entropy(model(x[i]), y[i]).backward()
        opt.step()
    return nn.functional.cross_entropy(model(x), y).detach()


def test_no_factorization_after_the_first():
    model, x, y = problem()
    opt = optimizer(model, InverseFree())
    steps(model, opt, x, y, 1)
    with Operations() as done:
        steps(model, opt, x, y, 4)
    assert done.seen == []
    model, x, y = problem()
    control = optimizer(model, Factorized())
    steps(model, control, x, y, 1)
    with Operations() as done:
        steps(model, control, x, y, 4)
    assert len(done.seen) > 8


def test_the_direction_drifts_little_from_cholesky():
    model, x, y = problem()
    opt = optimizer(model, InverseFree(0.5))
    angles = []
    for i in range(30):
        steps(model, opt, x, y, 1, seed=i)
        memory = opt.memory
        damped = memory.policy.damped(memory.value, memory.damping, memory.reference)
        df = opt.network.differential(x, y)
        v, w = memory.damped.sharp(df), damped.sharp(df)
        angles.append(float(damped.norm(v - w) / damped.norm(w)))
    assert angles[0] < 1e-12 and max(angles[4:]) < 0.05
    model, x, y = problem()
    reached = float(steps(model, optimizer(model, Factorized()), x, y, 30))
    model, x, y = problem()
    assert abs(float(steps(model, optimizer(model, InverseFree()), x, y, 30)) / reached - 1) < 0.01


def test_a_slow_rate_drifts_more():
    """The control of the test above."""
    drift = {}
    for rate in (0.02, 1.0):
        model, x, y = problem()
        opt = optimizer(model, InverseFree(rate), lr=0.5)
        steps(model, opt, x, y, 12)
        damped = opt.memory.policy.damped(opt.memory.value, opt.memory.damping, opt.memory.reference)
        df = opt.network.differential(x, y)
        drift[rate] = off(opt.memory.damped.sharp(df).data, damped.sharp(df).data)
    assert drift[1.0] < 0.01 < 0.05 < drift[0.02]


@pytest.mark.parametrize("decay", [0.9, 0.0])
@pytest.mark.parametrize("damping", [Factored(0.05), Tikhonov(0.05)])
def test_a_run_resumes_bit_for_bit(damping, decay, tmp_path):
    model, x, y = problem()
    opt = optimizer(model, InverseFree(0.3), damping=damping, decay=decay)
    steps(model, opt, x, y, 5)
    torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, tmp_path / "state")
    steps(model, opt, x, y, 4, seed=1)
    again, x, y = problem()
    resumed = optimizer(again, InverseFree(0.3), damping=damping, decay=decay)
    state = torch.load(tmp_path / "state", weights_only=True)
    again.load_state_dict(state["model"])
    resumed.load_state_dict(state["opt"])
    steps(again, resumed, x, y, 4, seed=1)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    fresh, x, y = problem()
    fresh.load_state_dict(state["model"])
    other = optimizer(fresh, InverseFree(0.3), damping=damping, decay=decay)
    steps(fresh, other, x, y, 4, seed=1)
    assert not all(torch.equal(p, q) for p, q in zip(model.parameters(), fresh.parameters(), strict=True))


def test_exact_damping_takes_no_eigendecomposition_either():
    model, x, y = problem()
    opt = optimizer(model, InverseFree(), damping=Tikhonov(0.05))
    steps(model, opt, x, y, 1)
    with Operations() as done:
        after = steps(model, opt, x, y, 10)
    model, x, y = problem()
    reached = float(steps(model, optimizer(model, Factorized(), damping=Tikhonov(0.05)), x, y, 11))
    assert done.seen == [] and abs(float(after) / reached - 1) < 0.02


def test_the_recipe_says_so():
    model, _, _ = problem()
    assert "inversion=InverseFree(rate=0.25, updates=1, start='first')" in repr(optimizer(model, InverseFree(0.25)))


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InverseFree(0.0), r"InverseFree: rate=0.0, expected a number in \(0, 1\]"),
        (lambda: InverseFree(1.5), "rate=1.5"),
        (lambda: InverseFree(updates=0), "updates=0, expected 1 or more"),
        (lambda: InverseFree(start="zero"), "start='zero', expected 'first' or 'identity'"),
        (lambda: optimizer(problem()[0], "free"), "inversion='free', expected one, an instance"),
        (lambda: optimizer(problem()[0], InverseFree), "inversion=the class InverseFree, expected one, an instance"),
        (
            lambda: optimizer(problem()[0], InverseFree(), solver=rng.solvers.CG()),
            r"inversion=InverseFree\(.*\) inverts by frames, and solver=.* Leave one of them out",
        ),
    ],
)  # fmt: skip
def test_settings(make, message):
    with pytest.raises(InvalidSetting, match=message):
        make()


def test_a_first_metric_without_inverse_is_refused_and_a_later_one_that_is_not_finite():
    g, _, A = product(0)
    few = Gram(V, torch.diag(torch.tensor([1.0, 1.0, 0.0])), name="few") * Gram(W, A)
    with pytest.raises(DegenerateMetric, match="rank 2 of 3"):
        InverseFree().inverted(few, None)
    before = InverseFree().inverted(g, None)
    kept = [f.K.clone() for f in before.factors]
    broken = Gram(V, torch.full((3, 3), float("nan")), validate=False) * Gram(W, A)
    with pytest.raises(NonFinite, match=r"in the frames of .* there is NaN or infinity. Those before stay"):
        InverseFree().inverted(broken, before)
    assert all(torch.equal(f.K, K) for f, K in zip(before.factors, kept, strict=True))


def test_frames_of_another_metric_are_refused():
    g, _, _ = product(0)
    other = Gram(V, torch.eye(3)) * Gram(Space("U", 5), torch.eye(5))
    with pytest.raises(SpaceMismatch, match="holds no frames of the factors of"):
        InverseFree().inverted(g, InverseFree().inverted(other, None))


def test_a_form_that_is_no_product_is_followed_as_a_whole_or_refused():
    model, x, _ = problem()
    network = Network.from_torch(model, Categorical(), x)
    F = (Fisher(structure="block-diagonal") + 0.1 * EuclideanMetric()).at(network.observe(x))
    followed_ = InverseFree().inverted(F, None)
    df = Covector(network.tangent_space, torch.randn(network.tangent_space.dim))
    assert off(followed_.sharp(df).data, F.sharp(df).data) < 1e-10
    U = Hom(Space("I", 100), Space("O", 100))
    rows = second_moment(rng.Sample(U.dual, torch.randn(2, 100, 100))) + 0.1 * Euclidean(U)
    with pytest.raises(InvalidSetting, match=r"is a matrix of side 10000. Take a metric that is a product"):
        InverseFree().inverted(rows, None)


@pytest.mark.parametrize(
    ("K", "error", "message"),
    [
        (torch.zeros(3, 3), NotAnInnerProduct, "the columns of the frame of V are no basis"),
        (torch.ones(2, 3), rng.RiemannError, r"ShapeMismatch in Framed: a frame of V is a matrix \[3, 3\]"),
        (torch.full((3, 3), float("inf")), NonFinite, "holds NaN or infinity"),
        (torch.eye(3, dtype=torch.int64), rng.RiemannError, "DtypeMismatch in Framed"),
    ],
)
def test_frames_that_are_none(K, error, message):
    with pytest.raises(error, match=message):
        Framed(V, K)


def test_a_framed_form_is_what_its_frame_says():
    K = Draw.seeded(0).invertible(3)
    g = Framed(V, K, natural=True)
    E = g.frame()
    assert E.codomain == V and E.natural and torch.allclose(E.matrix(K), K)
    assert g.keeps(V, "general") and not Framed(V, K).keeps(V, "orthogonal")
    with Operations() as done:
        v = g.sharp(Covector(V, torch.randn(3)))
    assert not done.seen and torch.allclose(g.norm(v) ** 2, g.flat(v)(v))
