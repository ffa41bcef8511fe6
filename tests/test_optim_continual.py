"""What a projected step is: it vanishes on old outputs, in every frame, and is the best that does."""

import pytest
import torch
from continual_cases import (
    CE,
    EVERY,
    OGD,
    ONG,
    Categorical,
    Constant,
    Deflected,
    NaturalGradient,
    ProjectedNaturalGradient,
    Protected,
    Tikhonov,
    differentials,
    displacements,
    flat,
    in_order,
    mlp,
    nn,
    rng,
    taken,
    task,
)  # fmt: skip
from hypothesis import given, settings
from hypothesis import strategies as st

from riemann_ng.errors import RiemannError
from riemann_ng.optim import GeodesicCorrected, KLClip, QuadraticModel, Remembering, TrustRegion
from riemann_ng.optim.annihilator import complement
from riemann_ng.optim.published import AsPublished
from riemann_ng.solvers import CG

seeds = st.integers(0, 10**6)


def drawn(seed, k, d=7, condition=1e3):
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    Q = torch.linalg.qr(normal(d, d))[0]
    M = Q * torch.logspace(0, torch.tensor(condition).log10(), d, dtype=torch.float64) @ Q.mT
    return M, normal(k, d), normal(d)


# --- the projection ---------------------------------------------------------------------------------------------------


@given(seeds, st.integers(1, 6))
def test_the_projection_is_the_formula(seed, k):
    M, alpha, xi = drawn(seed, k)
    raised = torch.linalg.solve(M, alpha.mT).mT
    c = torch.linalg.solve(alpha @ raised.mT, raised @ xi)
    expected = -torch.linalg.solve(M, xi - c @ alpha)
    there = complement(alpha, raised)
    v = there.projected(-torch.linalg.solve(M, xi))
    assert there.rank == k and torch.allclose(v, expected, rtol=1e-8, atol=1e-9 * float(raised.abs().max()))
    assert float((alpha @ v).abs().max()) < 1e-10 and float(xi @ v) <= 0


@given(seeds, st.sampled_from([0.0, 1e-14, 1e-9, 1e-6, 1e-3]))
def test_dependent_and_nearly_dependent_covectors(seed, apart):
    """Covectors with a copy each, and copies that are a little off: no constraint is lost, none is counted twice."""
    M, alpha, xi = drawn(seed, 2)
    _, off, _ = drawn(seed + 1, 2)
    both = torch.cat([alpha, alpha * 5 + apart * off, torch.zeros(1, 7, dtype=torch.float64)])
    there = complement(both, torch.linalg.solve(M, both.mT).mT)
    v = there.projected(there.projected(-torch.linalg.solve(M, xi)))
    assert float((both @ v).abs().max()) < 1e-10
    assert there.rank == (2 if apart < 1e-12 else 4)


def test_by_their_gram_matrix_alone_a_constraint_would_be_lost():
    """The control for the rounds: eigenvalues below rounding, which belong to lengths of 1e-9, are noise."""
    M, alpha, xi = drawn(0, 2)
    both = torch.cat([alpha, alpha + 1e-9 * drawn(1, 2)[1]])
    raised = torch.linalg.solve(M, both.mT).mT
    v = -torch.linalg.solve(M, xi)
    once = v - torch.linalg.pinv(both @ raised.mT, rtol=1e-14, hermitian=True) @ (both @ v) @ raised
    there = complement(both, raised)
    off = (alpha - both[2:]) / 1e-9
    assert float((off @ once).abs().max()) > 1e-3
    assert there.rank == 4 and float((off @ there.projected(there.projected(v))).abs().max()) < 1e-5


@given(seeds)
def test_in_single_precision_small_systems_are_solved_in_double(seed):
    M, alpha, xi = drawn(seed, 4, condition=10)
    raised, v = torch.linalg.solve(M, alpha.mT).mT, -torch.linalg.solve(M, xi)
    there = complement(alpha.float(), raised.float())
    assert there.covectors.dtype == torch.float32 and there.rank == 4
    got = there.projected(there.projected(v.float()))
    assert float((alpha.float() @ got).abs().max()) < 1e-5 * float(alpha.abs().max() * v.norm())


def test_vectors_that_a_solver_has_only_nearly_right_still_protect():
    M, alpha, xi = drawn(3, 3)
    rough = torch.linalg.solve(M, alpha.mT).mT + 1e-4 * drawn(4, 3)[1]
    v = complement(alpha, rough).projected(xi)
    assert float((alpha @ v).abs().max()) < 1e-10


# --- in the optimizer -------------------------------------------------------------------------------------------------

METRICS = {
    "K-FAC": rng.KFAC(),
    "Fisher": rng.Fisher(structure="dense"),
    "EKFAC": rng.EKFAC(),
    "coordinates": rng.EuclideanMetric(),
}
RULES = {
    "constant": Constant(),
    "clipped": KLClip(1e-2),
    "trust region": TrustRegion(0.1),
    "quadratic": QuadraticModel(every=2, smoothing=0.5),
    "bent": GeodesicCorrected(),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("metric", METRICS)
def test_displacements_vanish_on_old_outputs_with_momentum(metric, rule):
    model = mlp()
    settings = {"metric": METRICS[metric], "lr": 0.3, "damping": 0.1, "step_size": RULES[rule], "momentum": 0.9}
    opt = ProjectedNaturalGradient(model, Categorical(), **settings)
    first, second = [task(s) for s in (1, 2, 3)], [task(s) for s in (4, 5, 6, 7)]
    displacements(model, opt, first)
    old = first[0][0][:5]
    alpha = differentials(model, old)
    opt.remember(old)
    assert opt.step_size.remembered.count == 15
    v = displacements(model, opt, second)
    assert float((v @ alpha.mT).abs().max()) < 1e-10
    assert bool((v.norm(dim=1) > 1e-6).all())


@pytest.mark.parametrize("remembered", [5, 30])
def test_in_single_precision_they_vanish_to_rounding(remembered):
    """Also where there are more covectors than parameters, and few of these are left."""
    model = mlp(torch.float32)
    opt = ProjectedNaturalGradient(model, Categorical(), damping=0.1, step_size=Constant(), lr=0.1)
    first, second = ([task(s, dtype=torch.float32) for s in seeds] for seeds in ((1, 2), (4, 5, 6)))
    displacements(model, opt, first)
    old = first[0][0][:remembered]
    alpha = differentials(model, old)
    opt.remember(old)
    v = displacements(model, opt, second)
    assert opt.step_size.remembered.rows.dtype == torch.float32 and v.dtype == torch.float32
    assert float((v @ alpha.mT).abs().max()) < 1e-5 * float(alpha.norm(dim=1).max())


def test_without_a_memory_they_do_not():
    model = mlp()
    opt = NaturalGradient(model, Categorical(), lr=0.3, damping=0.1, step_size=Constant())
    displacements(model, opt, [task(1), task(2)])
    alpha = differentials(model, task(1)[0][:5])
    assert float((displacements(model, opt, [task(4)]) @ alpha.mT).abs().max()) > 1e-3


@pytest.mark.parametrize("solver", [None, CG(1e-12)], ids=["factorized", "CG"])
@pytest.mark.parametrize("metric", ["K-FAC", "Fisher", "coordinates"])
def test_a_step_is_the_best_that_vanishes(metric, solver):
    """Against dense matrices; it descends, and any other step that vanishes has a larger model."""
    model, (x, y) = mlp(), task(5)
    damped = METRICS[metric] + 0.1 * rng.EuclideanMetric()
    opt = ProjectedNaturalGradient(
        model, Categorical(), metric=damped, lr=1.0, damping=None, step_size=Constant(), solver=solver, **EVERY
    )
    old, labels = task(1, n=4)
    opt.remember(old, labels)
    network = rng.Network.from_torch(mlp(), Categorical(), x)
    M = damped.at(network.observe(x)).matrix(x[:0])
    df, rows = network.differential(x, y).data, opt.step_size.remembered.rows
    raised = torch.linalg.solve(M, rows.mT)
    c = torch.linalg.solve(rows @ raised, raised.mT @ df)
    expected = in_order(opt, -torch.linalg.solve(M, df - c @ rows)[None])[0]
    v = taken(model, opt, x, y)
    assert torch.allclose(v, expected, rtol=1e-8, atol=1e-9 * float(expected.abs().max()))
    u = -torch.linalg.solve(M, df - c @ rows)
    assert float(df @ u) < 0 and float((rows @ u).abs().max()) < 1e-10
    basis = torch.linalg.svd(rows)[2][len(rows) :]
    model_of = lambda w: float(df @ w + w @ M @ w / 2)  # noqa: E731
    for w in basis * 0.1:
        assert model_of(u + w) > model_of(u)


def test_kept_until_the_metric_is_factorized_anew():
    model, calls = mlp(), []
    opt = ProjectedNaturalGradient(
        model, Categorical(), damping=0.1, step_size=Constant(), lr=0.1, schedule=rng.optim.Schedule(1, 3, warmup=0)
    )
    displacements(model, opt, [task(1)])
    opt.remember(task(1)[0][:3])
    for seed in range(2, 9):
        displacements(model, opt, [task(seed)])
        calls.append(opt.step_size._kept["complement"][2])
    assert len({id(c) for c in calls}) == 3  # at once, and after steps 3 and 6
    opt.remember(task(2)[0][:2])
    displacements(model, opt, [task(9)])
    assert opt.step_size._kept["complement"][2] is not calls[-1]


# --- what is remembered -----------------------------------------------------------------------------------------------


class Pictures(nn.Module):
    """Class scores for each pixel, classes second."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 3, 1)

    def forward(self, x):
        return self.out(torch.tanh(self.conv(x)))


class Bare(nn.Module):
    """A parameter without a layer."""

    def __init__(self):
        super().__init__()
        self.gain, self.body = nn.Parameter(torch.ones(4)), nn.Linear(4, 3)

    def forward(self, x):
        return self.body(torch.tanh(x * self.gain))


@pytest.mark.parametrize("case", ["all", "labels", "some", "pixels", "bare", "many at once"])
def test_covectors_are_the_differentials_of_outputs(case, monkeypatch):
    torch.manual_seed(0)
    model, x, y, more = mlp(), task(1, n=5)[0], None, {}
    of = lambda z: z.flatten()  # noqa: E731
    if case == "labels":
        y = torch.tensor([0, 2, 1, 1, 0])
        of = lambda z: z[torch.arange(5), y]  # noqa: E731
    elif case == "some":
        more, of = {"outputs": [2, 0]}, lambda z: z[:, [2, 0]].flatten()
    elif case == "pixels":
        model, x = Pictures().double(), torch.randn(3, 1, 2, 2, dtype=torch.float64)
        y = torch.randint(0, 3, (3, 2, 2))
        of = lambda z: z.gather(1, y[:, None]).flatten()  # noqa: E731
    elif case == "bare":
        model = Bare().double()
    else:
        monkeypatch.setattr("riemann_ng.optim.old_outputs.BUDGET", 1)  # two examples at a time
    opt = ProjectedNaturalGradient(model, Categorical(dim=1) if case == "pixels" else Categorical())
    state = torch.get_rng_state()
    opt.remember(x, y, **more)
    expected = differentials(model, x, of)
    got = in_order(opt, opt.step_size.remembered.rows)
    assert got.shape == expected.shape and torch.allclose(got, expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(torch.get_rng_state(), state) and all(p.grad is None for p in model.parameters())


def test_covectors_of_ones_own():
    """Anything with a differential can be kept: here the sum of all outputs."""
    model, (x, y) = mlp(), task(1)
    opt = ProjectedNaturalGradient(model, Categorical(), damping=0.1)
    taken(model, opt, x, y)
    J = differentials(model, x[:4]).sum(0)
    parts, at = {}, 0
    for name, p in opt.network.parameters.items():
        parts[name], at = J[at : at + p.numel()].reshape(p.shape), at + p.numel()
    opt.remember(opt.network.covector(parts))
    v = taken(model, opt, *task(2))
    assert abs(float(J @ v)) < 1e-12 and float((differentials(model, x[:4]) @ v).abs().max()) > 1e-6


def test_what_is_remembered_survives_a_layer_that_is_read_anew():
    """A batch of one does not show that a parameter is shared by the examples; a larger one lays it out anew."""
    model = mlp()
    opt = ProjectedNaturalGradient(model, Categorical(), damping=0.1)
    x = task(1)[0][:1]
    opt.remember(x)
    alpha = differentials(model, x)
    network = opt.network
    network._give_up({"0": "for this test"})
    assert network.tangent_space != opt.step_size.remembered._space
    v = taken(model, opt, *task(2))
    assert float((alpha @ v).abs().max()) < 1e-12 and float(v.norm()) > 1e-4
    assert torch.allclose(in_order(opt, opt.step_size.remembered.rows), alpha)


# --- for comparison ---------------------------------------------------------------------------------------------------


def test_orthogonal_gradient_descent_is_that_of_the_book():
    """Against Gram-Schmidt on gradients of logits, and plain descent."""
    model, other, lr = mlp(), mlp(), 0.2
    opt = OGD(model, Categorical(), lr=lr, capacity=40)
    basis = torch.zeros(51, 0, dtype=torch.float64)
    for number, (x, y) in enumerate([task(1), task(2), task(3)]):
        for _ in range(3):
            taken(model, opt, x, y)
            g = torch.cat([t.flatten() for t in torch.autograd.grad(CE(other(x), y), list(other.parameters()))])
            g = g - basis @ (basis.mT @ g)
            nn.utils.vector_to_parameters(flat(other) - lr * g, other.parameters())
            assert torch.allclose(flat(model), flat(other), rtol=1e-10, atol=1e-12)
        opt.remember(x[:4], y[:4])
        logits = differentials(other, x[:4], lambda z, y=y: z[torch.arange(4), y[:4]])
        basis = torch.linalg.qr(torch.cat([basis, logits.mT], 1))[0]
        assert opt.step_size.remembered.count == 4 * (number + 1)


def test_the_published_preconditioner_is_that_of_the_code():
    """Element by element on two layers; and it is no linear map."""
    network = rng.Network.from_torch(mlp(), Categorical(), task(1)[0])
    g = (rng.KFAC().damp_factors(0.1)).at(network.observe(task(1)[0]))
    xi = network.differential(*task(2))
    got = rng.Vector(network.tangent_space, AsPublished.of(g, 0.1)(xi.data[None])[0])
    for path, form in g.summands().items():
        left, right = (torch.linalg.eigh(f.matrix())[1] for f in form.factors)
        turned = left @ xi[path] @ right.mT
        expected = left.mT @ (turned / (turned**2 + 0.1)) @ right
        assert torch.allclose(got[path], expected, rtol=1e-12)
    doubled = AsPublished.of(g, 0.1)(2 * xi.data[None])[0]
    assert not torch.allclose(doubled, 2 * got.data, rtol=1e-3)


def test_orthogonal_natural_gradients_protect_where_the_metric_is_what_it_was():
    """With one metric for all times, repaired, they are the annihilator's; with another one they are not."""

    def after(rule, moved):
        model = mlp()
        schedule = rng.optim.Schedule(1, 1) if moved else rng.optim.Schedule(10**6, 10**6, warmup=0)
        opt = NaturalGradient(
            model, Categorical(), damping=Tikhonov(0.1), step_size=rule, lr=0.1, momentum=0.5, decay=0.5,
            schedule=schedule,
        )  # fmt: skip
        displacements(model, opt, [task(1)])
        opt.remember(task(1)[0][:3])
        return displacements(model, opt, [task(2), task(3), task(4)])

    same = after(Protected(), False), after(Deflected(), False)
    assert torch.allclose(*same, rtol=1e-8, atol=1e-10 * float(same[0].abs().max()))
    other = after(Protected(), True), after(Deflected(), True)
    assert not torch.allclose(*other, rtol=1e-2)


COMPARED = {
    "projected": (lambda m: ProjectedNaturalGradient(m, Categorical(), damping=0.1, step_size=Constant(), **EVERY), 2),
    "OGD": (lambda m: OGD(m, Categorical()), 2),
    "ONG": (lambda m: ONG(m, Categorical(), momentum=0.0, every=1, decay=0.0), 1),
    "ONG, repaired": (lambda m: ONG(m, Categorical(), published=False, every=1, decay=0.0), 1),
    "ONG in the coordinates": (
        lambda m: NaturalGradient(
            m, Categorical(), damping=0.1, step_size=Deflected(within="coordinates"), **EVERY
        ), 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPARED)
def test_how_old_outputs_change_with_the_length_of_a_step(name):
    """In second order where the step is in the annihilator, else in first."""
    make, slope = COMPARED[name]
    changes, rates = [], [1e-2, 1e-3, 1e-4]
    for lr in rates:
        model, old = mlp(), task(1)[0][:4]
        opt = make(model)
        for group in opt.param_groups:
            group["lr"] = 0.05
        displacements(model, opt, [task(1)])
        opt.remember(old)
        before = model(old).detach()
        for group in opt.param_groups:
            group["lr"] = lr
        displacements(model, opt, [task(2)])
        changes.append(float((model(old).detach() - before).norm()))
    measured = torch.tensor(changes).log10().diff() / torch.tensor(rates).log10().diff()
    assert torch.allclose(measured, torch.tensor(float(slope)), atol=0.05), measured


@settings(max_examples=settings.default.max_examples // 10)
@given(seeds)
def test_steps_descend(seed):
    model, (x, y) = mlp(seed=seed), task(seed)
    opt = ProjectedNaturalGradient(model, Categorical(), damping=0.1, step_size=Protected().of, lr=1.0, **EVERY)
    opt.remember(task(seed + 1)[0][:4])
    df = torch.cat([g.flatten() for g in torch.autograd.grad(CE(model(x), y), list(model.parameters()))])
    assert float(df @ taken(model, opt, x, y)) <= 0


def test_a_smaller_memory_of_what_is_longest():
    """Compressed covectors are the leading combinations in the metric, and what they span is protected."""
    model = mlp()
    opt = ProjectedNaturalGradient(model, Categorical(), damping=0.1, step_size=Constant(), capacity=6,
                                   overflow="compress")  # fmt: skip
    displacements(model, opt, [task(1)])
    damped, old = opt.memory.damped, task(1)[0][:5]
    alpha = differentials(model, old)
    opt.remember(old)
    rows = opt.step_size.remembered.rows
    assert len(rows) == 6
    every = ProjectedNaturalGradient(mlp(), Categorical())
    every.network.module.load_state_dict(model.state_dict())
    every.remember(old)
    whole = every.step_size.remembered.rows
    sharp = lambda t: damped.sharp(rng.Covector(opt.network.tangent_space, t)).components  # noqa: E731
    values = torch.linalg.eigvalsh(whole @ sharp(whole).mT).flip(0)
    got = torch.linalg.eigvalsh(rows @ sharp(rows).mT).flip(0)
    assert torch.allclose(got, values[:6], rtol=1e-8)
    left = displacements(model, opt, [task(2)]) @ alpha.mT
    assert 1e-12 < float(left.norm()) < 0.3 * float(alpha.norm())


def test_rules_and_memories_of_the_wrong_kind_are_refused():
    for make, message in (
        (lambda: Protected(of=Constant), "of=the class Constant, expected a step rule"),
        (lambda: Protected(of=Protected()), "of=Protected.* finds its directions itself: there is no natural"),
        (lambda: Protected(memory=3), "memory=3, expected Remembering"),
        (lambda: Protected(tolerance=-1.0), "tolerance=-1.0, expected a positive number"),
        (lambda: Deflected(within="frame"), "within='frame', expected 'metric' or 'coordinates'"),
        (lambda: Deflected(published=0.0), "published=0.0, expected a positive number"),
        (lambda: Deflected(memory=Remembering(overflow="compress")), "is for covectors: use Protected"),
        (lambda: Remembering(0), "capacity=0, expected 1 or more"),
        (lambda: Remembering(capacity_bytes=True), "capacity_bytes=True"),
        (lambda: Remembering(overflow="newest"), "overflow='newest', expected one of 'refuse'"),
        (lambda: Remembering(seed=0.5), "seed=0.5, expected a whole number"),
    ):
        with pytest.raises(RiemannError, match=message):
            make()
