"""The frame of the reproductions: claims that can fail, runs that repeat, and what becomes of errors."""

import math

import pytest
import torch
from torch import nn

from riemann_ng.errors import InvalidSetting, NotConverged
from riemann_ng.experiments import (
    EXPERIMENTS,
    Check,
    Experiment,
    Results,
    Run,
    Series,
    Table,
    UnknownExperiment,
    experiment,
)
from riemann_ng.experiments.records import number


def run_of(*parts, **options):
    return Experiment("toy", "A toy", "nobody", "One is one.", parts).run(**options)


def fresh(quick=True, seed=0):
    return Run(Results("toy", seed, "quick" if quick else "full"))


# --- checks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("relation", "measured", "expected", "within", "held"),
    [
        ("below", 1.0, 2.0, 0.0, True),
        ("below", 2.0, 2.0, 0.0, False),
        ("above", 3.0, 2.0, 0.0, True),
        ("above", 2.0, 2.0, 0.0, False),
        ("near", 2.5, 2.0, 0.5, True),
        ("near", 2.6, 2.0, 0.5, False),
        ("near", 0.0, 0.0, 0.0, True),
        ("below", math.nan, 2.0, 0.0, False),
        ("above", math.inf, 2.0, 0.0, False),
        ("near", math.nan, math.nan, 1.0, False),
        ("below", 1.0, math.inf, 0.0, False),
    ],
)
def test_a_check_holds_where_it_should(relation, measured, expected, within, held):
    assert Check("a claim", measured, relation, expected, within).held is held


def test_a_check_says_what_was_expected_and_what_was_measured():
    assert str(Check("slopes", -0.2, "near", -0.21, 0.001)) == "claim: slopes: expected -0.21 ± 0.001, measured -0.2"
    assert (
        str(Check("it breaks", 0.5, "above", 1e-3, control=True))
        == "control: it breaks: expected > 0.001, measured 0.5"
    )


def test_numbers_are_short():
    said = {0.0: "0", 3.0: "3", 1e-16: "1.0e-16", 0.12345678: "0.1235", -2e7: "-2.0e+07", math.inf: "inf"}
    assert {x: number(x) for x in said} == said


def test_results_hold_only_if_everything_does_and_something_was_claimed():
    assert run_of(("part", lambda run: run.below("less", 1, 2))).held
    assert not run_of(("part", lambda run: None)).held
    results = run_of(("part", lambda run: run.below("less", 2, 1)), ("other", lambda run: run.above("more", 2, 1)))
    assert not results.held and [check.claim for check in results.failed] == ["less"]


def test_a_part_that_stops_is_a_fault_and_the_others_run():
    def stops(run):
        raise NotConverged("NotConverged in a part: no.")

    def crashes(run):
        raise ZeroDivisionError("by hand")

    results = run_of(("one", stops), ("two", crashes), ("three", lambda run: run.below("less", 1, 2)))
    assert [fault.part for fault in results.faults] == ["one", "two"]
    assert results.faults[0].error == "NotConverged in a part: no."
    assert results.faults[1].error.endswith("ZeroDivisionError: by hand")
    assert len(results.checks) == 1 and not results.held


def test_the_same_claim_or_number_twice_is_a_mistake():
    run = fresh()
    run.below("less", 1, 2)
    run.number("x", 1)
    with pytest.raises(InvalidSetting, match="two checks claim 'less'"):
        run.above("less", 1, 2)
    with pytest.raises(InvalidSetting, match="two numbers are called 'x'"):
        run.number("x", 1)
    assert len(run.results.checks) == 1 and run.results.numbers == {"x": 1.0}


def test_curves_and_tables_must_fit():
    with pytest.raises(InvalidSetting, match="'c': a curve has as many x as y, got 2 and 3"):
        Series("c", [1, 2], [1, 2, 3])
    with pytest.raises(InvalidSetting, match="Table 't': 2 columns, and a row of 1"):
        Table("t", ("a", "b"), [("x",)])
    assert Series("c", range(2), torch.tensor([1.0, 2.0])).y == (1.0, 2.0)


# --- randomness -------------------------------------------------------------------------------------------------------


def test_draws_depend_on_the_seed_the_experiment_and_the_word():
    run = fresh()
    assert torch.equal(run.normal("x", 3), fresh().normal("x", 3))
    others = [fresh(seed=1).normal("x", 3), run.normal("y", 3), Run(Results("other", 0, "quick")).normal("x", 3)]
    assert not any(torch.equal(run.normal("x", 3), other) for other in others)


def test_a_run_repeats_and_leaves_the_global_random_state():
    def part(run):
        run.number("global", torch.randn(()))
        run.number("own", run.normal("x", 1))
        run.below("less", 0, 1)

    before = torch.random.get_rng_state()
    first = run_of(("part", part), seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.randn(7)
    assert run_of(("part", part), seed=5).numbers == first.numbers
    assert run_of(("part", part), seed=6).numbers != first.numbers


def test_sizes_and_progress():
    told = []
    parts = [(word, lambda run, word=word: run.number(word, run.choose(1, 2))) for word in "ab"]
    assert run_of(*parts).numbers == {"a": 1, "b": 1}
    assert run_of(*parts, quick=False, progress=lambda *now: told.append(now)).numbers == {"a": 2, "b": 2}
    assert told == [(0, 2, "toy: a"), (1, 2, "toy: b"), (2, 2, "toy")]


# --- the registry -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_are_called_what_the_registry_calls_them(name):
    found = experiment(name)
    assert found.name == name and found.parts and found.claim.endswith(".") and found.source


def test_an_unknown_name_gets_a_proposal():
    with pytest.raises(
        UnknownExperiment, match=r"no reproduction is called 'deep-liner'; did you mean 'deep-linear'\? "
    ):
        experiment("deep-liner")
    with pytest.raises(UnknownExperiment, match="called 'xyz'; There are kfac-as-metric, "):
        experiment("xyz")


# --- planted mistakes: what the reproductions must find ---------------------------------------------------------------


def failed(name, part):
    found = experiment(name)
    results = Experiment(name, "", "", "", tuple(p for p in found.parts if p[0] == part)).run()
    assert results.checks and not results.faults
    return [check.claim for check in results.failed]


@pytest.fixture
def modules():
    from riemann_ng.experiments import deep_linear, kfac_as_metric, label_estimators, overlaps

    return {"deep": deep_linear, "kfac": kfac_as_metric, "labels": label_estimators, "overlaps": overlaps}


def test_an_oracle_with_its_factors_transposed_is_found(modules, monkeypatch):
    right = modules["kfac"].directions

    def wrong(model, x, root, loss):
        return {name: -step if name.endswith("bias") else step for name, step in right(model, x, root, loss).items()}

    monkeypatch.setattr(modules["kfac"], "directions", wrong)
    assert failed("kfac-as-metric", "sharp") == [f"sharp is K-FAC, {kind}" for kind in modules["kfac"].SHAPES]


def test_whitening_by_the_wrong_power_is_found(modules, monkeypatch):
    right = modules["kfac"].power
    monkeypatch.setattr(modules["kfac"], "power", lambda matrix, p: right(matrix, abs(p)))
    assert "gradient descent in the whitened twin is the K-FAC step" in failed("kfac-as-metric", "whitened twin")


def test_a_closed_form_without_one_over_L_is_found(modules, monkeypatch):
    right = modules["deep"].Linear.closed_form
    monkeypatch.setattr(modules["deep"].Linear, "closed_form", lambda self: self.L * right(self))
    assert "U⁺ M D⁺ / L solves F v = dL, 3-5-2" in failed("deep-linear", "closed form")


def test_projectors_that_do_not_grow_are_found(modules, monkeypatch):
    monkeypatch.setattr(modules["deep"].Linear, "bottleneck_form", lambda self: (self.closed_form(), self.M))
    found = failed("deep-linear", "bottlenecks")
    assert "the form with growing projectors solves F v = dL, 4-5-2-5-4" in found


def test_a_covariance_without_its_mean_is_found(modules, monkeypatch):
    monkeypatch.setattr(modules["labels"].Model, "excess", property(lambda self: self.K))
    assert "covariance of the first estimator in closed form" in failed("fisher-variance", "covariances")
    assert "one probability: K - I² is p (1 - p) (1 - 2p)²" in failed("fisher-variance", "without variance")


def test_a_slope_that_is_not_transposed_is_found(modules, monkeypatch):
    right = modules["overlaps"].Overlaps.field

    def wrong(self, xi, Q):
        R = self.R
        mixed = torch.cat([xi[: R * R].reshape(R, R).mT.flatten(), xi[R * R :]])
        return right(self, mixed, Q)

    monkeypatch.setattr(modules["overlaps"].Overlaps, "field", wrong)
    found = failed("low-rank-rnn", "velocities")
    assert "gradient flow of 20 and 60 units by overlaps, rank 2" in found
    assert not any("flow" in claim and "rank 1" in claim for claim in found)  # of one number there is no transpose


def test_a_kernel_without_its_cross_terms_is_found(modules, monkeypatch):
    right = modules["overlaps"].Overlaps.kernel
    monkeypatch.setattr(modules["overlaps"].Overlaps, "kernel", lambda self, Q: torch.diag(right(self, Q).diagonal()))
    assert "damped natural flow of 20 and 60 units by overlaps, rank 2" in failed("low-rank-rnn", "velocities")


# --- the parts that the reproductions share ---------------------------------------------------------------------------


def test_plain_kfac_by_hand():
    """One linear layer and square loss: G is H, A the moment of (x, 1)."""
    from riemann_ng.experiments.plain_kfac import factors

    x, H = torch.randn(7, 3).double(), torch.diag(torch.tensor([1.0, 4.0]).double())
    layer = nn.Linear(3, 2).double()
    ((G, A),) = factors(nn.Sequential(layer), x, lambda z: H.sqrt().expand(len(z), 2, 2)).values()
    a = torch.cat([x, torch.ones(7, 1).double()], 1)
    assert torch.allclose(G, H) and torch.allclose(A, a.mT @ a / 7)
    assert not layer._forward_hooks


def test_the_rule_of_the_fourth_order():
    from riemann_ng.experiments.overlaps import runge_kutta

    def error(steps):
        return abs(float(runge_kutta(lambda x: x, torch.ones(1).double(), 1 / steps, steps)[-1]) - math.e)

    assert error(10) / error(20) == pytest.approx(16, rel=0.1)
