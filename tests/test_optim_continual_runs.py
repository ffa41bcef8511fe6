"""Runs that remember: in twin networks, stopped and resumed, at their bounds, and with bad input."""

import io

import pytest
import torch
from continual_cases import (
    CE,
    OGD,
    ONG,
    Categorical,
    Constant,
    Deflected,
    Exact,
    NaturalGradient,
    ProjectedNaturalGradient,
    Protected,
    displacements,
    flat,
    mlp,
    nn,
    rng,
    taken,
    task,
)  # fmt: skip

from riemann_ng.errors import (
    InvalidSetting,
    InvalidTargets,
    NonFinite,
    RiemannError,
    ShapeMismatch,
    SpaceMismatch,
)  # fmt: skip
from riemann_ng.likelihoods import Bernoulli
from riemann_ng.networks import Network
from riemann_ng.optim import Consolidation, GeodesicCorrected, QuadraticModel, Schedule, Tikhonov
from riemann_ng.reparametrize import Frames, reparametrize
from riemann_ng.testing.invariance import check_invariance, update

# --- twins ------------------------------------------------------------------------------------------------------------

TRANSPORTED = Tikhonov(0.1, rng.optim.AtStart(rng.KFAC()))
SEEN = {"estimator": Exact(), "schedule": Schedule(2, 3, warmup=1), "damping": TRANSPORTED}
MAKERS = {
    "projected": (lambda m, of: ProjectedNaturalGradient(m, of, step_size=Constant(), lr=0.03, **SEEN), True),
    "projected, with a model": (
        lambda m, of: ProjectedNaturalGradient(m, of, step_size=QuadraticModel(every=2), **SEEN), True,
    ),
    "ONG, repaired, of K-FAC": (lambda m, of: NaturalGradient(m, of, step_size=Deflected(), lr=0.03, **SEEN), True),
    "ONG in the coordinates": (
        lambda m, of: NaturalGradient(m, of, step_size=Deflected(within="coordinates"), lr=0.03, **SEEN), False,
    ),
    "damped by the coordinates": (
        lambda m, of: ProjectedNaturalGradient(
            m, of, step_size=Constant(), lr=0.03, **{**SEEN, "damping": Tikhonov(0.1)}
        ), False,
    ),
    "OGD": (lambda m, of: OGD(m, of, lr=0.1), False),
    "ONG": (lambda m, of: ONG(m, of, lr=0.01, every=2), False),
}  # fmt: skip


def batches(start, steps=4):
    for seed in range(start, start + steps):
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(40, 4, generator=g, dtype=torch.float64)
        yield x, (x[:, :3] + 0.5 * torch.randn(40, 3, generator=g, dtype=torch.float64) > 0).double()


def outputs_along(make, model, likelihood, x_of=lambda x: x, z_of=lambda z: z):
    opt, seen = make(model, likelihood), []
    probe = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(5, 4)
    for part in (0, 10):
        for x, y in batches(part):
            opt.zero_grad()
            likelihood.loss(model(x_of(x)), y).backward()
            opt.step()
            seen.append(z_of(model(x_of(probe))).detach())
        if not part:
            opt.remember(x_of(next(batches(0, 1))[0][:3]))
    return torch.stack(seen), opt


@pytest.mark.parametrize("name", MAKERS)
def test_trajectories_in_an_affine_twin(name):
    """The same functions where the metric and what is remembered name no coordinates; else not."""
    make, same = MAKERS[name]
    own, other, opt = in_a_twin(make, "pre-activations")
    assert torch.allclose(own, other, rtol=1e-6, atol=1e-7 * float(own.abs().max())) is same
    assert opt.step_size.remembered.count and not torch.allclose(own[4], own[-1], rtol=1e-2)


def in_a_twin(make, *on):
    x = next(batches(0, 1))[0]
    network = Network.from_torch(mlp(), Bernoulli(), x)
    twin = reparametrize(network, Frames.draw(network, x, ("inputs", "activations", *on), "general", 3), x)
    own, opt = outputs_along(make, mlp(), Bernoulli())
    return own, outputs_along(make, twin.module, twin.likelihood, twin.inputs, twin.to_original)[0], opt


@pytest.mark.parametrize(("on", "same"), [((), True), (("pre-activations",), False)], ids=["hidden", "outputs too"])
def test_what_is_longest_of_old_outputs_depends_on_their_frame_and_on_no_other(on, same):
    settings = {"step_size": Constant(), "lr": 0.03, "capacity": 7, "overflow": "compress", **SEEN}
    own, other, opt = in_a_twin(lambda m, of: ProjectedNaturalGradient(m, of, **settings), *on)
    assert torch.allclose(own, other, rtol=1e-6, atol=1e-7 * float(own.abs().max())) is same
    assert opt.step_size.remembered.count == 7


def two_tasks(make):
    """Some steps on one half, which is remembered in part, and some on the other."""

    def steps(model, x, y):
        opt = make(model)
        for part in (slice(0, None, 2), slice(1, None, 2)):
            for _ in range(3):
                opt.zero_grad()
                Bernoulli().loss(model(x[part]), y[part]).backward()
                opt.step()
            if part.start == 0:
                opt.remember(x[:6:2])

    return update(steps)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            lambda m: ProjectedNaturalGradient(
                m, Bernoulli(), step_size=Constant(), lr=0.1, estimator=Exact(), damping=TRANSPORTED,
                schedule=Schedule(1, 1),
            ),
            {"activations": ("held", "held"), "pre-activations": ("held", "held")},
        ),
        (
            lambda m: OGD(m, Bernoulli(), lr=0.2),
            {"activations": ("refuted", "held"), "pre-activations": ("refuted", "held")},
        ),
        (
            lambda m: ONG(m, Bernoulli(), lr=0.02, every=2),
            {"activations": ("refuted", "refuted"), "pre-activations": ("refuted", "refuted")},
        ),
    ],
    ids=["projected", "OGD", "ONG"],
)  # fmt: skip
def test_rows_of_the_table(make, expected):
    """Linear changes of frame, and rotations: the published ONG loses even these, its frame is turned the wrong way."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False))
    x = torch.randn(60, 4)
    y = (x[:, :3] + 0.3 * torch.randn(60, 3) > 0).double()
    cells = [(on, group) for on in expected for group in ("general", "orthogonal")]
    report = check_invariance(
        two_tasks(make), model, x, y, Bernoulli(), cells=cells, shrink=False, steps=1, progress=False, held_out=0.0
    )
    for on, verdicts in expected.items():
        assert (report[on, "general"].verdict, report[on, "orthogonal"].verdict) == verdicts, str(report)


# --- nothing remembered, and runs that go on --------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [None, Constant()], ids=["usual", "constant"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_with_nothing_remembered_it_is_the_natural_gradient_bit_for_bit(rule, dtype):
    settings = {} if rule is None else {"step_size": rule, "damping": 0.1}
    one, other = mlp(dtype), mlp(dtype)
    plain, opt = (
        NaturalGradient(one, Categorical(), **settings),
        ProjectedNaturalGradient(other, Categorical(), **settings),
    )
    tasks = [task(seed, dtype=dtype) for seed in range(8)]
    assert torch.equal(displacements(one, plain, tasks), displacements(other, opt, tasks))
    opt.remember(tasks[0][0][:2])
    assert not torch.equal(taken(one, plain, *tasks[1]), taken(other, opt, *tasks[1]))


RESUMED = {
    "refuse": lambda m: ProjectedNaturalGradient(m, Categorical()),
    "oldest": lambda m: ProjectedNaturalGradient(m, Categorical(), capacity=10, overflow="oldest"),
    "reservoir": lambda m: ProjectedNaturalGradient(m, Categorical(), capacity=10, overflow="reservoir", damping=0.1,
                                                    step_size=Constant()),
    "compress": lambda m: ProjectedNaturalGradient(m, Categorical(), capacity=10, overflow="compress"),
    "bent": lambda m: ProjectedNaturalGradient(m, Categorical(), damping=0.1, step_size=GeodesicCorrected()),
    "ONG": lambda m: ONG(m, Categorical(), momentum=0.5),
}  # fmt: skip


@pytest.mark.parametrize("after", [0, 3], ids=["at once", "later"])
@pytest.mark.parametrize("name", RESUMED)
def test_a_run_that_is_resumed_goes_on_bit_for_bit(name, after):
    """Also where more is remembered before the next step."""
    make, first, second = RESUMED[name], [task(s) for s in range(4)], [task(s) for s in range(10, 17)]

    def go_on(model, opt):
        opt.remember(task(2)[0][:3])
        return displacements(model, opt, second[after:])

    model = mlp()
    opt = make(model)
    displacements(model, opt, first)
    opt.remember(task(0)[0][:4], task(0)[1][:4])
    for x, y in second[:after]:
        taken(model, opt, x, y)
    file = io.BytesIO()
    torch.save([model.state_dict(), opt.state_dict()], file)
    file.seek(0)
    fresh = mlp(seed=5)
    resumed = make(fresh)
    for thing, state in zip((fresh, resumed), torch.load(file, weights_only=True), strict=True):
        thing.load_state_dict(state)
    assert resumed.step_size.remembered.count == opt.step_size.remembered.count > 0
    again = resumed.state_dict()["riemann_ng"]["remembered"]  # before anything was done with it
    mine = opt.state_dict()["riemann_ng"]["remembered"]
    assert again["seen"] == mine["seen"] and all(torch.equal(t, mine["blocks"][k]) for k, t in again["blocks"].items())
    assert torch.equal(go_on(model, opt), go_on(fresh, resumed))


def test_a_state_with_a_memory_needs_an_optimizer_made_alike():
    model = mlp()
    opt = ProjectedNaturalGradient(model, Categorical())
    taken(model, opt, *task(1))
    empty = opt.state_dict()
    opt.remember(task(1)[0][:2])
    for other in (NaturalGradient(mlp(), Categorical()), ProjectedNaturalGradient(mlp(), Categorical(), capacity=3)):
        before = other.state_dict()
        with pytest.raises(InvalidSetting, match=r"a run that remembers outputs, Remembering\(capacity=1000.*Make it"):
            other.load_state_dict(opt.state_dict())
        assert repr(other.state_dict()) == repr(before)
        other.load_state_dict(empty)
    opt.load_state_dict(NaturalGradient(mlp(), Categorical()).state_dict())
    assert opt.step_size.remembered.count == 0


def test_the_recipe_makes_the_optimizer_anew():
    opt = ProjectedNaturalGradient(mlp(), Categorical(), capacity=7, overflow="oldest")
    names = {**vars(rng.optim), **vars(rng), **vars(rng.networks), "model": mlp()}
    assert repr(eval(repr(opt), names)) == repr(opt)
    assert "capacity=7, capacity_bytes=None, overflow='oldest'" in repr(opt)
    opt.remember(task(1)[0][:1])
    assert repr(eval(repr(opt), names)) == repr(opt)


def test_two_optimizers_of_one_rule_have_a_memory_each():
    rule = Protected()
    one, other = (NaturalGradient(mlp(), Categorical(), damping=0.1, step_size=rule) for _ in range(2))
    one.remember(task(1)[0][:2])
    assert one.step_size.remembered.count == 6 and other.step_size.remembered.count == 0 and rule.remembered is None


# --- bounds -----------------------------------------------------------------------------------------------------------


def filled(overflow, capacity=8, rounds=4, **more):
    model = mlp()
    opt = ProjectedNaturalGradient(model, Categorical(), capacity=capacity, overflow=overflow, damping=0.1, **more)
    taken(model, opt, *task(0))
    every = []
    for k in range(rounds):
        x, y = task(k, n=5)
        opt.remember(x, y)
        other = ProjectedNaturalGradient(model, Categorical())
        other.remember(x, y)
        every.append(other.step_size.remembered.rows)
    return opt, torch.cat(every)


def test_the_oldest_are_forgotten():
    opt, every = filled("oldest")
    assert torch.equal(opt.step_size.remembered.rows, every[-8:]) and opt.step_size.remembered.seen == 20


def test_a_reservoir_is_a_uniform_sample():
    """Each of 20 is kept as often as any other: over 400 seeds, 160 times, give or take five deviations of 9.8."""
    every, counts = torch.arange(20.0)[:, None], torch.zeros(20)
    for seed in range(400):
        policy = rng.optim.Remembering(8, overflow="reservoir", seed=seed)
        rows = every[:0]
        for start in range(0, 20, 5):
            rows = policy.with_more(rows, every[start : start + 5], start, None)
        assert len(rows) == len(rows.unique()) == 8
        counts[rows.flatten().long()] += 1
    assert float((counts - 160).abs().max()) < 49
    assert filled("reservoir")[0].step_size.remembered.count == 8


def test_bytes_bound_the_memory_too():
    opt, every = filled("oldest", capacity=1000, capacity_bytes=3 * 51 * 8 + 5)
    assert torch.equal(opt.step_size.remembered.rows, every[-3:])
    with pytest.raises(InvalidSetting, match=r"5 more came; 3 are allowed, of 408 bytes each.*capacity_bytes=2040"):
        filled("refuse", capacity=1000, capacity_bytes=3 * 51 * 8 + 5)
    with pytest.raises(InvalidSetting, match="0 are allowed"):
        filled("oldest", capacity_bytes=100)


def test_a_memory_larger_than_allowed_is_refused_and_stays_as_it_was():
    opt, _ = filled("refuse", rounds=1)
    rows = opt.step_size.remembered.rows
    message = (
        r"5 covectors are remembered and 15 more came; 8 are allowed, of 408 bytes each. Nothing was remembered. "
        r"Remember fewer examples, or labels alone: remember\(x, y\); allow more: capacity=20; or say what is to"
    )
    with pytest.raises(InvalidSetting, match=message):
        opt.remember(task(7, n=5)[0])
    assert opt.step_size.remembered.rows is rows


def test_compressing_needs_a_metric():
    opt = ProjectedNaturalGradient(mlp(), Categorical(), capacity=4, overflow="compress")
    with pytest.raises(InvalidSetting, match=r"not known before the first step. Make a step first"):
        opt.remember(task(1)[0][:2])
    opt.remember(task(1)[0][:1])
    assert opt.step_size.remembered.count == 3


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("rule", [Constant(), QuadraticModel()], ids=str)
def test_a_gradient_that_is_a_combination_of_what_is_remembered(rule, momentum):
    """A zero step, and the report says so; then the run goes on."""
    model, (x, y) = mlp(), task(1)
    opt = ProjectedNaturalGradient(model, Categorical(), damping=0.1, step_size=rule, momentum=momentum)
    displacements(model, opt, [task(0), task(2)])
    opt.remember(x)  # the gradient of a batch is a combination of differentials of its outputs
    before = flat(model)
    opt.zero_grad()
    CE(model(x), y).backward()
    opt.step()
    assert torch.equal(flat(model), before) and opt.report.skipped == ""
    assert opt.report.trouble == ("the gradient is a combination of what is remembered: there is no way to go",)
    assert opt.report.alpha == 0 and opt.tally[opt.report.trouble[0]] == 1
    fewer = ProjectedNaturalGradient(model, Categorical(), damping=0.1, step_size=rule)
    fewer.remember(x[:4])
    assert float(taken(model, fewer, x, y).norm()) > 1e-6 and fewer.report.trouble == ()


def nan_model():
    model = mlp()
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    return model


def covector_of_another():
    return Network.from_torch(mlp(), Categorical(), task(1)[0]).differential(*task(1))


X, Y = task(1, n=4)
BAD = {
    "another shape": (lambda o: o.remember(X[:, :3]), ShapeMismatch, "the model cannot be run at this batch: mat1"),
    "no examples": (lambda o: o.remember(X[:0]), ShapeMismatch, "a batch of no examples"),
    "labels of another shape": (lambda o: o.remember(X, Y[:2]), InvalidTargets, r"whole numbers.*float64\[4, 3\]"),
    "labels that are numbers": (lambda o: o.remember(X, X[:, 0]), InvalidTargets, r"got float64\[4\]"),
    "labels of no class": (lambda o: o.remember(X, Y * 0 - 100), InvalidTargets, "0 to 2, got -100 to -100. Leave out"),
    "labels and outputs": (lambda o: o.remember(X, Y, [0]), InvalidSetting, "give labels y, or the numbers"),
    "outputs that are not there": (lambda o: o.remember(X, outputs=[3]), InvalidSetting, r"outputs=\[3\]"),
    "an output twice": (lambda o: o.remember(X, outputs=[1, 1]), InvalidSetting, "different whole numbers"),
    "no outputs": (lambda o: o.remember(X, outputs=[]), InvalidSetting, "has 3 outputs"),
    "another model": (lambda o: o.remember(covector_of_another()), SpaceMismatch, "another model say nothing"),
    "inputs that are not finite": (lambda o: o.remember(X * torch.nan), NonFinite, "hold NaN or infinity; nothing is"),
    "covectors that are not finite": (
        lambda o: o.remember(o.network.covector({n: p * torch.inf for n, p in o.network.parameters.items()})),
        NonFinite, "covectors with NaN or infinity. Nothing was remembered",
    ),
    "a covector with labels": (
        lambda o: o.remember(o.network.differential(X, Y), Y), InvalidSetting, "covectors stand for themselves",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_and_nothing_changes(case):
    call, error, message = BAD[case]
    model = mlp()
    opt = ProjectedNaturalGradient(model, Categorical(), damping=0.1)
    opt.remember(X[:2])
    rows, parameters = opt.step_size.remembered.rows.clone(), flat(model)
    with pytest.raises(error, match=message):
        call(opt)
    assert torch.equal(opt.step_size.remembered.rows, rows) and torch.equal(flat(model), parameters)
    assert bool(taken(model, opt, *task(2)).isfinite().all())


def test_what_cannot_remember_says_so():
    with pytest.raises(InvalidSetting, match=r"keeps no outputs as they are. Use ProjectedNaturalGradient"):
        NaturalGradient(mlp(), Categorical()).remember(X)
    with pytest.raises(InvalidSetting, match="weight_decay moves parameters along themselves"):
        ProjectedNaturalGradient(mlp(), Categorical(), weight_decay=0.1).remember(X)
    with pytest.raises(InvalidSetting, match="before the first step there is no metric to make them with"):
        ONG(mlp(), Categorical()).remember(X)
    with pytest.raises(NonFinite, match="outputs at this batch hold NaN"):
        ProjectedNaturalGradient(nan_model(), Categorical()).remember(X)
    model = nn.Sequential(nn.Conv1d(4, 4, 1, groups=2), nn.Flatten(), nn.Linear(4, 3)).double()
    opt = ONG(model, Categorical())
    with pytest.raises(InvalidSetting, match=r"for '0' the metric has .*layers without groups, or published=False"):
        taken(model, opt, X[:, :, None], Y)
    assert opt.steps == 0


# --- consolidation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metric", [rng.Fisher(structure="diagonal"), rng.KFAC(), rng.Fisher(structure="dense")], ids=str
)
def test_consolidation_is_its_formula(metric):
    """Value and gradient against dense matrices, for two tasks."""
    model = mlp()
    hold = Consolidation(model, Categorical(), metric=metric, strength=3.0)
    assert float(hold.penalty().detach()) == 0
    expected, points = 0.0, []
    for seed in (1, 2):
        x = task(seed)[0]
        network = Network.from_torch(mlp(), Categorical(), x)
        network.module.load_state_dict(model.state_dict())
        points.append((network, metric.at(network.observe(x)).matrix(), network.parameters_point()))
        hold.remember(x)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed), dtype=p.dtype), alpha=0.1)
    slope = 0.0
    for network, M, point in points:
        network.module.load_state_dict(model.state_dict())
        away = (network.parameters_point() - point).data
        expected += 1.5 * float(away @ M @ away)
        slope = slope + 3.0 * M @ away
    penalty = hold.penalty()
    penalty.backward()
    got = hold.network.covector({name: p.grad for name, p in hold.network.parameters.items()}).data
    assert abs(float(penalty.detach()) - expected) < 1e-10 * expected and torch.allclose(
        got, slope, rtol=1e-10, atol=1e-12
    )
    assert not torch.allclose(got, slope / 2)


def test_consolidation_holds_a_task_in_a_plain_loop():
    """With any optimizer of torch. Without the penalty the old outputs go."""

    def moved(strength):
        model, (x, y), (x2, y2) = mlp(), task(1), task(2)
        opt = torch.optim.SGD(model.parameters(), lr=0.02)
        hold = Consolidation(model, Categorical(), strength=strength)
        for x_, y_, steps in ((x, y, 100), (x2, y2, 300)):
            for _ in range(steps):
                opt.zero_grad()
                (CE(model(x_), y_) + hold.penalty()).backward()
                opt.step()
            if steps == 100:
                hold.remember(x)
                old = model(x).detach()
        return float((model(x).detach() - old).norm())

    assert moved(30.0) < 0.7 * moved(0.0)


def test_consolidation_is_resumed_and_bounded():
    model = mlp()
    hold = Consolidation(model, Categorical(), capacity=1)
    hold.remember(X)
    with torch.no_grad():
        model[0].weight.add_(0.1)
    with pytest.raises(InvalidSetting, match=r"1 tasks are remembered, and capacity=1. Nothing was remembered"):
        hold.remember(X)
    file = io.BytesIO()
    torch.save(hold.state_dict(), file)
    file.seek(0)
    other = Consolidation(model, Categorical())
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.count == 1 and torch.equal(other.penalty(), hold.penalty()) and float(hold.penalty().detach()) > 0
    with pytest.raises(InvalidSetting, match=r"strength=1.0, and this has .* strength=2.0. Make it alike"):
        Consolidation(model, Categorical(), strength=2.0).load_state_dict(hold.state_dict())
    for given, message in (
        ({"metric": 3}, "metric=3, expected a metric"),
        ({"strength": -1.0}, "strength=-1.0, expected a number of 0 or more"),
        ({"capacity": 0}, "capacity=0, expected a number of tasks"),
    ):
        with pytest.raises(InvalidSetting, match=message):
            Consolidation(model, Categorical(), **given)
    with pytest.raises(RiemannError, match="NaN or infinity"):
        Consolidation(nan_model(), Categorical()).remember(X)
    assert repr(hold).startswith("Consolidation(model, Categorical(), metric=Fisher(structure='diagonal')")
