"""The invariance suite: what it says of methods whose symmetries are known, and what it refuses to say."""

import copy
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from invariance_claims import CLAIMS, verdicts
from torch import nn
from torch.nn.functional import cross_entropy

import riemann_ng.testing.invariance.expressions as expressions
from riemann_ng.elements import Vector
from riemann_ng.errors import InvalidSetting, UnsupportedLayer
from riemann_ng.inner_products import Gram
from riemann_ng.likelihoods import Bernoulli, Categorical, Gaussian
from riemann_ng.metrics import EKFAC, KFAC, EuclideanMetric, Fisher, FixedMetric, GaussNewton
from riemann_ng.metrics.base import value_at
from riemann_ng.networks import MonteCarlo, Network
from riemann_ng.norms import Spectral
from riemann_ng.optim import NaturalGradient
from riemann_ng.reparametrize import Frame, Frames, reparametrize
from riemann_ng.testing.architectures import TiedTokens
from riemann_ng.testing.invariance import (
    Cell,
    Counterexample,
    InvalidSubject,
    InvarianceReport,
    InvarianceSuite,
    assert_invariant,
    check_invariance,
    direction,
    discrepancy,
    metric,
    optimizer,
    update,
)
from riemann_ng.testing.invariance.checking import check_cells, named_probes
from riemann_ng.testing.invariance.probes import FrameProbe
from riemann_ng.testing.invariance.problems import problem_of
from riemann_ng.testing.invariance.running import Runner
from riemann_ng.testing.invariance.subjects import subject_of
from riemann_ng.testing.invariance.verdicts import Case, verdict
from riemann_ng.testing.network_cases import NetworkCase
from riemann_ng.testing.networks import network_cases

A, S, OUT = "activations", "pre-activations", "outputs"
SOME = ("translations", "general", "orthogonal", "permutations")
GROUPS = (
    "translations", "general", "orthogonal", "isometries", "monomial", "scaling", "signed permutations",
    "permutations", "uniform scale",
)  # fmt: skip
HELD, REFUTED, UNDECIDED, NOT_APPLICABLE = "held", "refuted", "undecided", "not applicable"


def perceptron(dims=(3, 4, 3), examples=48, seed=0):
    torch.manual_seed(seed)
    layers = [m for i, o in pairwise(dims) for m in (nn.Linear(i, o), nn.Tanh())][:-1]
    x = torch.randn(examples, dims[0], dtype=torch.float64)
    return nn.Sequential(*layers).double(), x, torch.randint(0, dims[-1], (examples,))


def table(subject, on, likelihood=None, problem=None, groups=SOME, **options):
    model, x, y = problem or perceptron()
    options = {"shrink": False, "progress": False, "examples": 1, **options}
    return check_invariance(subject, model, x, y, likelihood or Categorical(), on=on, groups=groups, **options)


def kept(report, on):
    return {cell.group for cell in report if cell.on == on and cell.verdict == HELD}


# --- What is known ----------------------------------------------------------------------------------------------------

EVERYTHING = set(GROUPS)
ORTHOGONAL = {"orthogonal", "signed permutations", "permutations"}
ISOMETRIES = ORTHOGONAL | {"translations", "isometries"}
AXES = {"signed permutations", "permutations"}
ABOUT_ORIGIN = EVERYTHING - {"translations", "isometries"}
MONOMIAL = {"monomial", "scaling", "uniform scale", *AXES}
SHIFTED_AXES = MONOMIAL | {"translations"}


def adam():
    return optimizer(lambda model: torch.optim.Adam(model.parameters(), lr=0.01))


def descent(**options):
    if options:
        return optimizer(lambda model: torch.optim.SGD(model.parameters(), lr=0.3, **options))
    return optimizer(lambda model: torch.optim.SGD(model.parameters(), lr=0.3))


ATLAS = {
    "K-FAC": (KFAC(), EVERYTHING, EVERYTHING, EVERYTHING),
    "K-FAC, separate bias": (KFAC(bias="separate"), ABOUT_ORIGIN, EVERYTHING, EVERYTHING),
    "K-FAC, damped on translations": (
        KFAC() + 0.1 * EuclideanMetric(on="translations"), ISOMETRIES, ISOMETRIES, ISOMETRIES,
    ),
    "Fisher": (Fisher(), EVERYTHING, EVERYTHING, EVERYTHING),
    "Gauss-Newton": (GaussNewton(), EVERYTHING, ISOMETRIES, ISOMETRIES),
    "EKFAC": (EKFAC(), ORTHOGONAL, ISOMETRIES | {"uniform scale"}, ISOMETRIES | {"uniform scale"}),
    "diagonal Fisher": (Fisher(structure="diagonal"), MONOMIAL, MONOMIAL | {"translations"}, SHIFTED_AXES),
    "momentum": (descent(momentum=0.9), ORTHOGONAL, ISOMETRIES, ISOMETRIES),
    "weight decay": (descent(weight_decay=0.1), ORTHOGONAL, ORTHOGONAL, ORTHOGONAL),
    "Adam": (adam(), AXES, AXES | {"translations"}, AXES | {"translations"}),
    "spectral norm": (Spectral(), ORTHOGONAL, ISOMETRIES, ISOMETRIES),
}  # fmt: skip


@pytest.mark.parametrize("name", ATLAS)
def test_the_table_is_what_the_theory_says(name):
    """Each group is held or refuted, and nothing in between; what a metric claims statically is the same."""
    subject, *expected = ATLAS[name]
    report = table(subject, (A, S, OUT), groups=GROUPS)
    for on, groups in zip((A, S, OUT), expected, strict=True):
        assert kept(report, on) == groups, f"{name}, {on}\n{report}"
        assert {cell.group for cell in report.refuted if cell.on == on} == EVERYTHING - groups, f"{report}"
    assert not report.notes
    for cell in report:
        assert cell.claimed in (None, cell.verdict == HELD), cell
        assert cell.discrepancy < 1e-7 if cell.verdict == HELD else cell.discrepancy > 5e-3
        if cell.verdict == REFUTED and cell.claimed is not None:
            assert cell.blame


def test_joint_scales():
    """A product of factors damped apart needs its π for them; exact damping and descent without biases keep them."""

    def at(subject, problem=None):
        return table(subject, "layers", groups="joint scale", problem=problem)["layers", "joint scale"]

    assert at(KFAC()).verdict == HELD
    assert at(KFAC().damp_factors(0.1, EuclideanMetric(on="translations"))).verdict == HELD
    assert at(KFAC().damp_factors(0.1, split="none")).verdict == REFUTED
    assert at(descent()).verdict == REFUTED
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 3, bias=False)).double()
    x, y = torch.randn(48, 3, dtype=torch.float64), torch.randint(0, 3, (48,))
    assert at(descent(), (plain, x, y)).verdict == HELD


def test_a_library_optimizer_keeps_what_it_should():
    """Averages, Monte Carlo labels, momentum, adaptive damping: hooks on the whole twin see the twin's own input."""
    subject = optimizer(lambda model, likelihood: NaturalGradient(model, likelihood))
    report = table(subject, ("inputs", S), groups=("orthogonal", "permutations", "isometries", "general"), steps=3)
    assert {c.key for c in report.held} == {
        ("inputs", "orthogonal"), ("inputs", "permutations"),
        (S, "orthogonal"), (S, "permutations"), (S, "isometries"),
    } | ({("inputs", "isometries")} if report["inputs", "isometries"].verdict == HELD else set())  # fmt: skip
    assert report["inputs", "general"].verdict == report[S, "general"].verdict == REFUTED


def test_hooks_on_a_twin_see_what_it_takes_and_gives():
    model, x, _ = perceptron()
    network = Network.from_torch(model, Categorical(), x)
    twin = reparametrize(network, Frames.draw(network, x, (A, S), "affine", 1), x)
    seen = []
    twin.module.register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    out = copy.deepcopy(twin.module)(twin.inputs(x))
    twin.module(twin.inputs(x))
    assert torch.equal(seen[-1][0], twin.inputs(x)) and torch.equal(seen[-1][1], out)
    assert torch.allclose(out, twin.outputs(model(x)))


def test_an_update_brings_its_own_loss():
    def step(model, x, y):
        loss = cross_entropy(model(x), y)
        with torch.no_grad():
            for p, g in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
                p.sub_(0.3 * g)

    report = table(update(step), (A, OUT), groups=("orthogonal", "general"))
    assert {c.key for c in report.held} == {(A, "orthogonal"), (OUT, "orthogonal")}


def test_parameters_or_a_model_or_a_bare_function():
    assert kept(table(torch.optim.Adagrad, A), A) == {"permutations"}
    bare = table(lambda params: torch.optim.SGD(params, lr=0.3), A)
    assert kept(bare, A) == kept(table(descent(), A), A) == {"orthogonal", "permutations"}
    assert bare.subject == "lambda params: torch.optim.SGD(params, lr=0.3)"


# --- Metrics: constants, kernels, references --------------------------------------------------------------------------


def test_fixed_forms_are_carried_to_twins_and_coordinates_are_not():
    model, x, y = perceptron()
    network = Network.from_torch(model, Categorical(), x)
    start = value_at(KFAC(), network.observe(x[:24])) + 0.1 * value_at(Fisher(), network.observe(x[24:]))
    by_data = KFAC() + 0.1 * FixedMetric(start)

    def of_network(damping):
        return lambda n: KFAC() + damping * (FixedMetric(value_at(EuclideanMetric(), n.observe(x[:2]))))

    problem = network, x, y
    assert kept(table(by_data, (A, S), problem=problem), A) == set(SOME)
    assert kept(table(metric(lambda n: KFAC()), A, problem=problem), A) == set(SOME)
    assert kept(table(metric(of_network(0.1)), A, problem=problem), A) == {"orthogonal", "permutations"}


def test_a_kernel_has_one_representative_for_all_twins():
    """Eight examples for six inputs, and softmax: the solution is chosen by one form, and compared as a function."""
    few = perceptron((6, 6, 3), 8)
    report = table(KFAC(), (A, S), problem=few)
    assert kept(report, A) == kept(report, S) == set(SOME)
    network = Network.from_torch(few[0], Categorical(), few[1])

    def by_coordinates(n, x, y):
        g, reference = value_at(KFAC(), n.observe(x)), value_at(EuclideanMetric(), n.observe(x))
        return g.sharp_modulo_kernel(n.differential(x, y), reference)

    here = direction(by_coordinates)
    report = table(here, A, problem=(network, *few[1:]), groups=("general", "orthogonal"), held_out=0.5)
    assert report[A, "general"].verdict == REFUTED and report[A, "orthogonal"].verdict == HELD


def test_sampled_labels_are_the_same_in_both():
    assert kept(table(KFAC(observed=MonteCarlo(2)), A, Bernoulli(), binary()), A) == set(SOME)


def binary():
    model, x, _ = perceptron()
    return model, x, torch.randint(0, 2, (48, 3)).double()


def test_regression_and_drawn_targets():
    model, x, _ = perceptron()
    report = table(KFAC(), (A, OUT), Gaussian(), (model, x, None))
    assert kept(report, A) == kept(report, OUT) == set(SOME)


# --- The two refuters -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "subject",
    [KFAC(), EKFAC(), GaussNewton(), KFAC() + 0.1 * EuclideanMetric(), Fisher(structure="unit-wise")],
    ids=str,
)
def test_moving_the_data_finds_what_a_twin_finds(subject):
    runner = Runner(subject_of(subject), problem_of(*perceptron(), Categorical(), 0.2))
    for on in (A, S, OUT):
        for group in ("general", "isometries", "monomial"):
            probe = FrameProbe(on, group)
            found = expressions.by_moved_data(runner, probe.moved(runner.problem, 1))
            assert found == pytest.approx(runner.case(probe, 1).discrepancy, abs=1e-7)


def test_refuters_that_disagree_are_told(monkeypatch):
    def left(sample, twin):
        moved = kept_function(sample, twin)
        return type(moved)(moved.space, sample.dense(), sample.measure) if "cotangents" in sample.name else moved

    kept_function = expressions.carried_sample
    monkeypatch.setattr(expressions, "carried_sample", left)
    report = table(KFAC(), S, Bernoulli(), binary(), groups="general")
    assert report[S, "general"].verdict == UNDECIDED
    assert "the two refuters disagree on general of pre-activations" in report.notes[0]


def test_what_is_held_apart_and_not_together_is_told():
    """A cheat that descends where it finds both sides of a layer moved."""
    model, x, y = perceptron()

    def traces(n, x):
        layer = n.observe(x)["0"]
        return float(layer.inputs.moment().trace()), float(layer.cotangents.moment().trace())

    start = traces(Network.from_torch(model, Categorical(), x), x[:39])

    def cheat(n, x, y):
        df = n.differential(x, y)
        if all(abs(a - b) > 1e-6 for a, b in zip(traces(n, x), start, strict=True)):
            return Vector(n.tangent_space, df.data)
        return value_at(KFAC(), n.observe(x)).sharp_modulo_kernel(df, value_at(EuclideanMetric(), n.observe(x)))

    groups = ("general", "scaling")
    report = table(direction(cheat), (A, S), problem=(model, x, y), groups=groups)
    honest = table(KFAC(), (A, S), problem=(model, x, y), groups=groups)
    assert not honest.notes
    if report[A, "general"].verdict == report[S, "general"].verdict == HELD:
        assert "are held one by one, and not together" in report.notes[0]


# --- No false refutation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLAIMS)
@settings(max_examples=max(3, (settings.default.max_examples - 100) * 10 // 19))
@given(case=network_cases())
def test_what_holds_is_never_refuted(name, case):
    """On random networks of every kind. The default looks at a few; the thorough profile at a thousand of each."""
    for cell in verdicts(name, case, some=case.seed):
        assert cell.verdict != REFUTED, cell


def test_an_eigenbasis_that_nothing_determines_is_undecided():
    """Equal eigenvalues, exactly: jitter of the parameters does not show them, frames next to the identity do."""
    case = NetworkCase(lambda: TiedTokens(2, 3), (3,), Gaussian(), examples=14, tokens=2, seed=612)
    report = check_cells(
        EKFAC(), case.module(), case.x, case.y, named_probes([(S, "permutations")]), Gaussian(), held_out=0
    )
    assert report[S, "permutations"].verdict == UNDECIDED
    assert "beside a rounding noise" in report[S, "permutations"].reason


def test_low_precision_is_noise_and_no_refutation():
    """Orthogonal changes are lost to bfloat16 inside Muon; permutations, which round alike, are not."""
    subject = optimizer(lambda model: torch.optim.Muon([p for p in model.parameters() if p.ndim == 2], lr=0.05))
    report = table(subject, A, groups=("orthogonal", "signed permutations"))
    assert report[A, "orthogonal"].verdict == UNDECIDED
    assert report[A, "signed permutations"].verdict == HELD
    assert "a precision of 8e-03" in report.notes[0]


def test_verdicts():
    """Held needs all, refuted two beyond the noise; noise never turns into either."""
    assert verdict([Case(1, 1e-9, 1e-12), Case(2, 1e-7, 1e-12)])[0] == HELD
    assert verdict([Case(1, 5e-6, 8e-6), Case(2, 1e-7, 1e-12)])[0] == HELD
    assert verdict([Case(1, 5e-5, 1e-4), Case(2, 5e-5, 1e-4)])[0] == UNDECIDED
    assert verdict([Case(1, 1e-4, 1e-12), Case(2, 1e-4, 1e-12)])[0] == UNDECIDED
    assert verdict([Case(1, 0.5, 1e-12), Case(2, 0.5, 1e-12)])[0] == REFUTED
    assert verdict([Case(1, 0.5, 1e-12), Case(2, 1e-9, 1e-12)])[0] == UNDECIDED
    assert verdict([Case(1, 0.5, 0.1), Case(2, 0.5, 0.1)])[0] == UNDECIDED
    assert verdict([Case(1, math.inf, 1e-12), Case(2, math.inf, 1e-12)])[0] == UNDECIDED
    assert verdict([])[0] == UNDECIDED


# --- Not applicable ---------------------------------------------------------------------------------------------------


def test_groups_without_a_twin_are_not_applicable():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 3, bias=False)).double()
    x, y = torch.randint(0, 5, (40, 2)), torch.randint(0, 3, (40,))
    report = table(descent(), ("inputs", A), problem=(model, x, y), groups=("translations", "orthogonal"))
    assert report["inputs", "orthogonal"].verdict == NOT_APPLICABLE
    assert "the network takes tokens, a finite set" in report["inputs", "orthogonal"].reason
    assert report[A, "translations"].verdict == NOT_APPLICABLE and "without bias" in report[A, "translations"].reason
    assert report[A, "orthogonal"].verdict == HELD
    assert report[A, "translations"].claimed is None and report[A, "translations"].discrepancy is None


def test_fused_modules_are_compared_in_the_open():
    torch.manual_seed(0)

    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn, self.out = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

        def forward(self, x):
            return self.out(self.attn(x, x, x, need_weights=False)[0].mean(1))

    model, x, y = Attending().double(), torch.randn(40, 3, 4).double(), torch.randint(0, 3, (40,))
    for subject in (KFAC(), descent()):
        report = table(subject, A, problem=(model, x, y), groups=("orthogonal", "general"))
        assert kept(report, A) == ({"orthogonal", "general"} if isinstance(subject, KFAC) else {"orthogonal"})


# --- Bad input --------------------------------------------------------------------------------------------------------


def refused(subject, text, error=InvalidSubject, problem=None, likelihood=None):
    model, x, y = problem or perceptron()
    with pytest.raises(error, match=text):
        check_invariance(subject, model, x, y, likelihood or Categorical(), on=A, groups="orthogonal")


def test_a_subject_that_changes_the_structure():
    def grow(model, x, y):
        model[0] = nn.Linear(3, 4, bias=False).double()

    refused(update(grow), r"changes the structure of the model: 0\.bias came, went or changed shape.*before")
    refused(update(lambda model, x, y: copy.deepcopy(model)), "returns another model.*in place")


def test_an_optimizer_that_needs_a_closure():
    refused(torch.optim.LBFGS, r"LBFGS\.step needs a closure.*update\(f\)")


def test_a_subject_that_keeps_state():
    kept_state = []

    def step(model, x, y):
        kept_state.append(1)
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(0.01 * len(kept_state))

    refused(update(step), "two runs of .*step from one start differ.*keeps state between runs.*anew for every run")


def test_a_model_with_dropout_and_a_batch_of_nan():
    model, x, y = perceptron()
    noisy = nn.Sequential(model[0], nn.Dropout(0.5), nn.Tanh(), model[2])
    refused(KFAC(), r"two outputs for one input: dropout is on in 1\..*model\.eval\(\)", problem=(noisy, x, y))
    assert kept(table(KFAC(), A, problem=(noisy.eval(), x, y), groups="general"), A) == {"general"}


def test_a_model_without_a_layer():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return x * self.scale

    _, x, y = perceptron()
    refused(
        descent(),
        "(?s)no layer of Bare has activations.*Bare has no reader.*Supported are linear maps",
        UnsupportedLayer,
        (Bare(), x, y),
    )


def test_what_is_no_subject():
    model, x, y = perceptron()
    refused(3, "expected a metric, a norm, optimizer")
    refused(KFAC, r"give an instance of the metric: KFAC\(\)")
    refused(torch.optim.SGD(model.parameters(), lr=0.1), r"at work.*optimizer\(lambda model: SGD")
    refused(optimizer(lambda model: model), "must return a torch optimizer, got Sequential.*update")
    refused(direction(lambda n, x, y: 0), "must return a tangent vector of the network, got 0")
    refused(metric(lambda n: 0), "must return a metric, got 0")
    with pytest.raises(InvalidSubject, match="expected a function, got 3"):
        update(3)
    with pytest.raises(InvalidSubject, match="compared as distributions, and the likelihood is None"):
        check_invariance(KFAC(), model, x, y)
    with pytest.raises(InvalidSubject, match=r"must be an nn\.Module or a Network, got 5"):
        check_invariance(KFAC(), 5, x, y, Categorical())


def test_unknown_cells():
    model, x, y = perceptron()
    for options, text in (
        ({"on": "weights"}, "on='weights' is unknown. There are inputs, activations"),
        ({"groups": "affinity"}, "groups='affinity' is unknown"),
        ({"on": "loss", "groups": "general"}, "no group of 'general' acts on 'loss'"),
        ({"cells": [("activations", "duplication")]}, "is no cell"),
        ({"examples": 0}, "examples=0, expected at least 1"),
    ):
        with pytest.raises(InvalidSetting, match=text):
            check_invariance(KFAC(), model, x, y, Categorical(), **options)
    with pytest.raises(InvalidSetting, match="asks for nothing"):
        assert_invariant(KFAC(), model, x, y, [], Categorical())


def test_a_subject_that_stands_still_or_diverges_is_undecided():
    for lr, text in ((1e-12, "barely moves the predictions"), (1e200, "its predictions are not finite")):
        subject = optimizer(lambda model, lr=lr: torch.optim.SGD(model.parameters(), lr=lr))
        report = table(subject, A, Gaussian(), (*perceptron()[:2], None), groups="orthogonal")
        cell = report[A, "orthogonal"]
        assert cell.verdict == UNDECIDED and cell.cases == 0 and text in cell.reason


def test_a_metric_without_a_step_is_undecided():
    report = table(EuclideanMetric(on="translations"), A, groups="orthogonal")
    cell = report[A, "orthogonal"]
    assert cell.verdict == UNDECIDED and cell.cases == 0
    assert "there is no step: DegenerateMetric in sharp_modulo_kernel: ξ does not vanish on the kernel" in cell.reason


def test_a_subject_that_fails_on_its_twin_is_undecided():
    start = perceptron()[0][0].weight.detach()

    def step(model, x, y):
        if not torch.allclose(model[0].weight, start):
            raise RuntimeError("no such weights here")
        with torch.no_grad():
            model[2].weight[0].sub_(0.1)

    cell = table(update(step), A, groups="orthogonal")[A, "orthogonal"]
    assert cell.verdict == UNDECIDED
    assert cell.reason == "the subject works on the original and fails on its twin: no such weights here"


def test_nothing_of_the_users_is_touched():
    model, x, y = perceptron()
    model.float()
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    table(adam(), A, problem=(model, x.float(), y), groups=("orthogonal", "permutations"))
    assert all(torch.equal(before[k], v) and v.dtype == torch.float32 for k, v in model.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state()) and model[0].weight.grad is None


# --- Counterexamples, assertions, the base class, records -------------------------------------------------------------


@pytest.mark.parametrize(
    "subject, key",
    [
        (KFAC(bias="separate"), (A, "translations")),
        (adam(), (A, "orthogonal")),
        (adam(), (A, "general")),
        (descent(), (S, "scaling")),
        (torch.optim.Adagrad, (S, "isometries")),
        (GaussNewton(), (OUT, "uniform scale")),
        (descent(), ("layers", "joint scale")),
    ],
    ids=str,
)
def test_a_counterexample_is_small_and_runs(subject, key):
    """The printed program, run as it is, prints the discrepancy found: two layers, one space, plain numbers."""
    report = table(subject, key[0], groups=key[1], shrink=True)
    found = report[key].counterexample
    assert "nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)" in found.model
    assert len(found.moved) == 1 or key[0] == "layers"
    printed = []
    exec(found.code, {"print": printed.append})
    assert printed == [pytest.approx(found.discrepancy, rel=1e-6)] and found.discrepancy > 1e-3


def test_where_the_subject_needs_its_own_model_the_code_says_so():
    subject = optimizer(lambda model: torch.optim.Adam([model[2].weight, model[4].weight], lr=0.1))
    report = table(subject, A, groups="general", problem=perceptron((3, 4, 3, 3)), shrink=True)
    found = report[A, "general"].counterexample
    assert len(found.moved) == 1 and "model, x, y = ...  # those that were checked" in found.code
    hidden = [nn.Module]
    own = optimizer(lambda model: [torch.optim.Adam(model.parameters())][len(hidden) - 1])
    found = table(own, A, groups="general", shrink=True)[A, "general"].counterexample
    assert "subject = ...  # lambda model" in found.code


def test_discrepancy_in_given_frames():
    model, x, y = perceptron()
    shift = Frame(torch.eye(3, dtype=torch.float64), torch.tensor([1.0, 0, 0], dtype=torch.float64))
    turn = Frame(torch.eye(3, dtype=torch.float64).flip(0), torch.zeros(3, dtype=torch.float64))
    assert discrepancy(descent(), model, x, y, Categorical(), {"0.A": shift}) > 1e-2
    assert discrepancy(descent(), model, x, y, Categorical(), {"input": turn}) < 1e-9
    with pytest.raises(InvalidSetting, match="barely moves"):
        still = optimizer(lambda model: torch.optim.SGD(model.parameters(), lr=1e-12))
        discrepancy(still, model, x, y, Categorical(), {"0.A": shift})


def test_assert_invariant():
    model, x, y = perceptron()
    report = assert_invariant(KFAC(), model, x, y, [(A, "general"), (S, "affine")], Categorical())
    assert len(report) == 2
    assert_invariant(adam(), model, x, y, (A, "permutations"), Categorical())
    with pytest.raises(AssertionError, match=r"(?s)general of activations: refuted.*with .*x → .*discrepancy\("):
        assert_invariant(adam(), model, x, y, [(A, "general"), (A, "permutations")], Categorical())


def test_assert_what_an_expression_claims():
    model, x, y = perceptron()
    options = {"on": A, "groups": SOME, "examples": 1}
    report = assert_invariant(KFAC(bias="separate"), model, x, y, "claims", Categorical(), **options)
    assert [cell.group for cell in report.held] == ["general", "orthogonal", "permutations"]
    with pytest.raises(AssertionError, match="general of activations: refuted"):
        assert_invariant(Lying(), *binary(), "claims", Bernoulli(), **options)
    with pytest.raises(InvalidSetting, match="claims nothing: only metrics and norms"):
        assert_invariant(adam(), model, x, y, "claims", Categorical(), **options)


class Lying(KFAC):
    """A metric that says it is natural, and is not."""

    def at_layer(self, layer):
        matrix = super().at_layer(layer).matrix() + torch.eye(layer.space.dim, dtype=torch.float64)
        return Gram(layer.space, matrix, natural=True)


class TestSuite(InvarianceSuite):
    subject = adam()
    held = ((A, "permutations"), (S, "translations"))
    refuted = ((A, "orthogonal"),)


def test_the_base_class_finds_claims_that_are_wrong_either_way():
    class Much(InvarianceSuite):
        subject = adam()
        held = ((A, "orthogonal"),)
        refuted = ((A, "permutations"),)

    suite = Much()
    with pytest.raises(AssertionError, match=r"(?s)expected held:.*orthogonal of activations: refuted.*discrepancy\("):
        suite.test_what_must_hold_is_held()
    with pytest.raises(AssertionError, match=r"(?s)expected refuted:.*permutations of activations: held"):
        suite.test_what_must_not_hold_is_refuted()
    with pytest.raises(InvalidSetting, match="give it a `subject`"):
        type("None_", (InvarianceSuite,), {})().report()
    with pytest.raises(InvalidSetting, match="name cells"):
        type("Nothing", (InvarianceSuite,), {"subject": KFAC()})().report()


def test_a_claim_that_is_refuted_is_noted():
    report = table(Lying(), A, Bernoulli(), binary(), groups=("general", "orthogonal"))
    assert report[A, "general"].surprising
    assert "general of activations is claimed by the expression and refuted by measurement" in report.notes
    assert report[A, "orthogonal"].verdict == HELD


def test_progress():
    seen = []
    table(adam(), A, groups=("general", "permutations"), progress=lambda k, n, cell: seen.append((k, n, cell.verdict)))
    assert seen == [(1, 2, REFUTED), (2, 2, HELD)]


def test_reports_are_values():
    report = table(adam(), A, groups=("general", "permutations"), shrink=True)
    again = InvarianceReport.from_json(report.to_json())
    assert again.cells == report.cells and again.settings == report.settings and again.notes == report.notes
    assert str(again) == str(report) and [c.verdict for c in report] == [REFUTED, HELD]
    cell = Cell(A, "general", REFUTED, float("inf"), counterexample=Counterexample(1.0, 3, ("a.A",)), claimed=True)
    other = InvarianceReport("s", "m", {cell.key: cell})
    back = InvarianceReport.from_json(other.to_json())
    assert back[A, "general"] == replace(cell, discrepancy=None) and back[A, "general"].surprising
    with pytest.raises(KeyError, match="was not tried"):
        report[S, "general"]
    with pytest.raises(ValueError, match="a verdict is one of"):
        Cell(A, "general", "maybe")
