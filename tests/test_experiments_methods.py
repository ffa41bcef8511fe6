"""Planted mistakes in the reproductions of methods: what is wrong must fail, and nothing beside it."""

import math

import pytest
import torch
from torch import nn

from riemann_ng.errors import NonFinite
from riemann_ng.experiments import (
    Experiment,
    adaptive_and_kfac,
    adaptive_training,
    beyond,
    carried,
    descent,
    experiment,
    layerwise_lqr,
    plain_adaptive,
    plain_lqr,
    structured,
    whitening,
)
from riemann_ng.metrics import EuclideanMetric, Whitening


def failed(name, part):
    found = experiment(name)
    results = Experiment(name, "", "", "", tuple(p for p in found.parts if p[0] == part)).run()
    assert results.checks and not results.faults, results.faults
    return [check.claim for check in results.failed]


# --- structured -------------------------------------------------------------------------------------------------------


def test_a_velocity_that_is_not_brought_along_is_found(monkeypatch):
    right = descent.refreshed
    monkeypatch.setattr(descent, "refreshed", lambda frames, g, sgd, how: right(frames, g, sgd, "velocity left"))
    found = failed("structured", "step by step")
    named = {
        f"descent in frames is the natural gradient, {k}, {m}" for k in structured.SHAPES for m in structured.METRICS
    }
    assert set(found) == named  # and a refresh leaves the function all the same


def test_parameters_that_are_not_brought_along_are_found(monkeypatch):
    right = descent.refreshed
    monkeypatch.setattr(descent, "refreshed", lambda frames, g, sgd, how: right(frames, g, sgd, "parameters left"))
    assert "a refresh leaves the function, dense, EKFAC" in failed("structured", "step by step")


def test_roots_of_the_wrong_sign_are_found(monkeypatch):
    right = structured.frame
    monkeypatch.setattr(structured, "frame", lambda form, kind, turn: right(torch.linalg.inv(form), kind, turn))
    found = failed("structured", "inserted layers")
    assert {
        f"two inserted layers make descent K-FAC, {kind} roots" for kind in ("symmetric", "triangular", "turned")
    } <= {*found}


def test_a_relative_fisher_of_the_wrong_layers_is_found(monkeypatch):
    right = structured.published

    def wrong(model, x, y, ridge):
        return {name: 2 * step if name.startswith("2") else step for name, step in right(model, x, y, ridge).items()}

    monkeypatch.setattr(structured, "published", wrong)
    assert failed("structured", "relative Fisher") == [
        "the published code is the natural gradient of a relative Fisher"
    ]


# --- whitening --------------------------------------------------------------------------------------------------------


def test_whitening_by_the_wrong_power_is_found(monkeypatch):
    right = whitening.root
    monkeypatch.setattr(whitening, "root", lambda form, kind: right(form @ form, kind))
    found = failed("whitening", "step identity")
    assert "descent in whitened layers is its step, ZCA, ε = 0.3" in found
    assert not any("leaves the function" in claim for claim in found)
    assert "covariance of what layers see, ε = 0.3" in failed("whitening", "covariance")


def test_whitening_without_centring_is_found(monkeypatch):
    def uncentred(h):
        return h.mT @ h / len(h), torch.zeros_like(h[0])

    monkeypatch.setattr(whitening, "moments", uncentred)
    found = failed("whitening", "step identity")
    assert "descent in whitened layers is its step, PCA, ε = 0" in found
    assert "which is the identity where ε = 0" in failed("whitening", "covariance")


def test_variances_over_n_minus_one_are_found(monkeypatch):
    def wrong(epsilon):
        return lambda h: (torch.diag((h.var(0) + epsilon).rsqrt()), h.mean(0))

    monkeypatch.setattr(whitening, "normalizer", wrong)
    found = failed("whitening", "batch normalization")
    assert found == [f"descent in normalized layers is a natural gradient, ε = {e}" for e in ("0", "0.3")]


# --- adaptive and K-FAC -----------------------------------------------------------------------------------------------


def test_roots_of_another_order_and_a_moment_uncorrected_are_found(monkeypatch):
    right = plain_adaptive.power
    monkeypatch.setattr(plain_adaptive, "power", lambda M, p: right(M, 2 * p))
    monkeypatch.setattr(adaptive_training, "corrected", lambda mean, beta, t: mean)
    found = failed("adaptive-and-kfac", "steps")
    trajectory = "the metric's trajectory is the optimizer's"
    assert {f"{m}, {k}: {trajectory}" for m in ("Shampoo", "Adam") for k in ("dense", "convolutional")} <= {*found}
    assert f"RMSProp, dense: {trajectory}" not in found and f"SOAP, dense: {trajectory}" not in found


def test_a_symmetry_that_is_not_there_is_found(monkeypatch):
    everything = adaptive_and_kfac.ALL
    wrong = {"whitening": (Whitening("activations", 0.0), everything, everything)}
    monkeypatch.setattr(adaptive_and_kfac, "KEEPS", wrong)
    monkeypatch.setattr(adaptive_and_kfac, "KINDS", ("dense",))
    assert failed("adaptive-and-kfac", "symmetries") == [
        "whitening, dense: what is measured is what theory says", "whitening, dense: and what the expression claims",
    ]  # fmt: skip


# --- layerwise --------------------------------------------------------------------------------------------------------


def test_a_recursion_without_mixed_terms_is_found(monkeypatch):
    right = plain_lqr.stages_of

    def wrong(model, x, costate, damping):
        return [plain_lqr.Stage(s.A, s.B, s.Q, torch.zeros_like(s.M), s.R) for s in right(model, x, costate, damping)]

    monkeypatch.setattr(layerwise_lqr, "stages_of", wrong)
    found = failed("layerwise-lqr", "steps")
    assert "the recursion as published is the damped solve, Newton, Tanh" in found
    assert "the sweep back gives -½ g C⁻¹ g, Newton, ReLU" in found
    assert not any("Fisher" in claim or "Gauss" in claim or "library" in claim for claim in found)


def test_damping_that_stays_where_it_is_is_found(monkeypatch):
    monkeypatch.setattr(layerwise_lqr, "FixedMetric", lambda form, name: EuclideanMetric())
    found = failed("layerwise-lqr", "equivariance")
    assert found == [f"{kind}, R transported: the same path in affine frames" for kind in ("Fisher", "Newton")]


def test_the_plain_recursion_by_hand():
    """One linear stage, square loss: the normal equations with a ridge."""
    x, y = torch.randn(7, 3).double(), torch.randn(7, 1).double()
    model = nn.Sequential(nn.Linear(3, 1).double())
    z = model(x).detach()
    gradient, form = ((z - y) / 7).flatten(), torch.eye(7).double() / 7
    stages = plain_lqr.stages_of(model, x, gradient, [0.1 * torch.eye(4).double()])
    u, value = plain_lqr.recursion(stages, gradient, form)
    a = torch.cat([x, torch.ones(7, 1).double()], 1)
    expected = -torch.linalg.solve(a.mT @ a / 7 + 0.1 * torch.eye(4).double(), a.mT @ gradient)
    assert torch.allclose(u, expected) and value == pytest.approx(float(0.5 * gradient @ a @ expected))


# --- beyond -----------------------------------------------------------------------------------------------------------


def test_a_corrected_step_without_its_correction_is_found(monkeypatch):
    monkeypatch.setattr(beyond, "geodesic_step", beyond.straight)
    found = failed("beyond", "finite steps")
    assert found == [
        f"geodesic-corrected: order 3, {what}" for what in ("smooth change of all parameters", "μ, σ against μ, log σ")
    ]


def test_a_balance_by_one_is_found(monkeypatch):
    monkeypatch.setattr(beyond, "SHAPES", ("dense",))
    right = beyond.damp_factors
    monkeypatch.setattr(beyond, "damp_factors", lambda g, damping, h: right(g, damping, h, "none"))
    found = failed("beyond", "transported damping")
    assert found and all(claim.startswith("π² is") for claim in found)


def test_adam_that_forgets_its_frame_is_found(monkeypatch):
    monkeypatch.setattr(beyond, "SHAPES", ("dense",))
    monkeypatch.setattr(beyond, "adam_in", lambda frame, rate: carried.plain_adam(rate))
    found = failed("beyond", "Adam in frames")
    assert found == [f"Adam in K-FAC's frame: the same path in affine frames, {kind}" for kind in beyond.SHAPES]


def test_a_spectral_step_between_coordinates_is_found(monkeypatch):
    right = carried.Spectral
    monkeypatch.setattr(carried, "Spectral", lambda between: right())
    found = failed("beyond", "spectral steps")
    assert [claim for claim in found if "same path" in claim] == [
        f"spectral between K-FAC's spaces: the same path in affine frames, {kind}" for kind in beyond.SHAPES
    ]


# --- what they share --------------------------------------------------------------------------------------------------


def test_the_best_of_several_rates_leaves_out_what_overflows():
    def curve(rate):
        if rate == 3:
            raise NonFinite("NonFinite in a test: by hand.")
        return torch.tensor([1.0, math.inf if rate == 2 else rate])

    assert descent.best_of((3, 2, 0.5, 0.1), curve)[0] == 0.1


def test_minibatches_are_epochs_one_after_the_other():
    x = torch.arange(5)
    found = descent.minibatches(x, x, 2, 4, torch.Generator().manual_seed(0))
    assert [len(a) for a, _ in found] == [2, 2, 1, 2]
    assert sorted(torch.cat([a for a, _ in found[:3]]).tolist()) == [0, 1, 2, 3, 4]
