"""Planted mistakes in the reproductions of continual learning and of second-order methods: each must be found."""

from dataclasses import replace

import pytest
import torch

from riemann_ng.experiments import (
    Experiment,
    experiment,
    orthogonal_natural_gradient,
    orthogonal_steps,
    plain_hessian_free,
    revisiting,
    streams,
    task_sequences,
    truncated_steps,
)
from riemann_ng.experiments.orthogonal_steps import Given
from riemann_ng.optim import ConjugateDirections, Constant, NaturalGradient


def failed(name, part):
    found = experiment(name)
    results = Experiment(name, "", "", "", tuple(p for p in found.parts if p[0] == part)).run()
    assert results.checks and not results.faults, results.faults
    return [check.claim for check in results.failed]


# --- orthogonal natural gradients -------------------------------------------------------------------------------------


def test_a_projection_in_the_wrong_geometry_is_found(monkeypatch):
    """Covectors taken out along themselves, and not along what the metric makes of them."""

    def wrong(g):
        v = -torch.linalg.solve(g.now, g.xi)
        return v - g.alpha.mT @ torch.linalg.solve(g.alpha @ g.alpha.mT, g.alpha @ v)

    ways = {**orthogonal_steps.WAYS, "annihilator": (wrong, True, True, True)}
    monkeypatch.setattr(orthogonal_natural_gradient, "WAYS", ways)
    found = failed("orthogonal-natural-gradient", "formulas")
    assert "annihilator: its step is the same in every frame" in found
    assert "annihilator: it leaves old outputs alone" not in found  # that needs no metric


def test_old_metrics_that_never_age_are_found(monkeypatch):
    """Where the metric has not moved, orthogonal natural gradients protect: the controls that say otherwise fail."""
    draw = Given.draw.__func__

    def unmoved(cls, *args, **options):
        g = draw(cls, *args, **options)
        return Given(g.xi, g.alpha, g.now, g.now)

    monkeypatch.setattr(Given, "draw", classmethod(unmoved))
    found = failed("orthogonal-natural-gradient", "formulas")
    assert found == ["ONG, in the metric: it is not so that it leaves old outputs alone"]


def test_an_optimizer_that_remembers_nothing_is_found(monkeypatch):
    def forgetful(model, likelihood, lr):
        opt = orthogonal_steps.METHODS["projected natural gradient"][0](model, likelihood, lr)
        monkeypatch.setattr(opt, "remember", lambda x: None)
        return opt

    monkeypatch.setattr(
        orthogonal_natural_gradient, "METHODS", {"projected natural gradient": (forgetful, 2, True, True)}
    )
    assert failed("orthogonal-natural-gradient", "one step") == [
        "projected natural gradient: old outputs change as η^2", "projected natural gradient: α(v) = 0",
    ]  # fmt: skip


def test_a_method_that_does_not_learn_is_found(monkeypatch):
    lazy = task_sequences.remembering(
        task_sequences.ProjectedNaturalGradient, momentum=0.0, damping=0.1, step_size=Constant()
    )
    makers = {**task_sequences.METHODS, "annihilator": (lazy, (1e-6,))}
    monkeypatch.setattr(orthogonal_natural_gradient, "LEARNERS", makers)
    short = replace(task_sequences.QUICK, tasks=2, epochs=1, stored=5)
    monkeypatch.setattr(orthogonal_natural_gradient, "QUICK", short)
    found = failed("orthogonal-natural-gradient", "permuted")
    assert "permuted: the annihilator is better than SGD, EWC, OGD and published ONG" in found


def test_forgetting_is_counted_from_the_best():
    after = torch.tensor([[0.9, 0.1, 0.1], [0.95, 0.8, 0.1], [0.5, 0.7, 0.9]])
    record = task_sequences.Record(after, 0.0)
    assert record.forgotten == pytest.approx((0.45 + 0.1) / 2)
    assert record.average == pytest.approx(0.7) and record.learned == pytest.approx(2.6 / 3)


def test_tasks_are_permuted_and_turned_as_said():
    image = torch.zeros(1, 8, 8)
    image[0, 1, 3:5] = 1
    quarter = task_sequences.turned(image, 90.0)
    assert torch.allclose(quarter.sum(), image.sum(), atol=1e-4)
    assert torch.allclose(quarter[0, 3:5, 6], torch.ones(2), atol=1e-4) or torch.allclose(
        quarter[0, 3:5, 1], torch.ones(2), atol=1e-4
    )
    assert torch.allclose(task_sequences.turned(image, 0.0), image, atol=1e-5)


# --- revisiting -------------------------------------------------------------------------------------------------------


def test_a_form_of_the_wrong_output_is_found(monkeypatch):
    likelihood, activation, _ = revisiting.OUTPUTS["sigmoid"]
    wrong = {**revisiting.OUTPUTS, "sigmoid": (likelihood, activation, lambda y: y * (1 - y))}
    monkeypatch.setattr(revisiting, "OUTPUTS", wrong)
    assert failed("revisiting", "outputs") == ["sigmoid: the form at the outputs is the Fisher"]


def test_conjugate_gradients_that_begin_elsewhere_are_found(monkeypatch):
    right = plain_hessian_free.HessianFree.solved

    def cold(self, *args):
        self.solution = torch.zeros_like(self.solution)
        return right(self, *args)

    monkeypatch.setattr(plain_hessian_free.HessianFree, "solved", cold)
    found = failed("revisiting", "Hessian-free")
    assert found == [f"Hessian-free is the truncated natural gradient, {name}" for name in truncated_steps.MATCHED]


def test_a_loss_that_does_not_match_is_found(monkeypatch):
    name = "sigmoid, cross-entropy"
    matched = {name: (truncated_steps.MATCHED[name][0], truncated_steps.squared_probabilities)}
    monkeypatch.setattr(truncated_steps, "MATCHED", matched)
    found = failed("revisiting", "Hessian-free")
    assert f"the Gauss-Newton product is the Fisher's, {name}" in found


def test_directions_that_start_over_are_found(monkeypatch):
    right = truncated_steps.NaturalConjugateGradient

    def wrong(model, likelihood, metric, **settings):
        return right(model, likelihood, metric, **{"step_size": ConjugateDirections(restart=3), **settings})

    monkeypatch.setattr(truncated_steps, "NaturalConjugateGradient", wrong)
    assert "natural conjugate gradients end after n steps" in failed("revisiting", "conjugate")


def test_a_solver_that_stops_early_is_found(monkeypatch):
    right = truncated_steps.MinresQLP
    monkeypatch.setattr(
        truncated_steps, "MinresQLP", lambda tolerance, max_iterations: right(tolerance, max_iterations=2)
    )
    assert "MINRES is the dense solve, damping 0.01" in failed("revisiting", "MINRES")


def test_labels_of_another_model_are_found(monkeypatch):
    right = revisiting.Plain.fisher
    monkeypatch.setattr(revisiting.Plain, "fisher", lambda self: 1.1 * right(self))
    found = failed("revisiting", "TONGA")
    assert "the mean of the covariance under the model's labels is the Fisher" in found


def test_a_metric_that_looks_at_labels_is_found(monkeypatch):
    """Of the data's own labels in the place of the model's."""
    right = revisiting.Fisher

    def looking(structure):
        calls.append(structure)
        return revisiting.GradientCovariance(structure=structure) if len(calls) == 1 else right(structure)

    calls = []
    monkeypatch.setattr(revisiting, "Fisher", looking)
    assert failed("revisiting", "labels") == ["labels in another order leave the Fisher, bit for bit"]


def test_an_observation_that_is_ignored_is_found(monkeypatch):
    monkeypatch.setattr(NaturalGradient, "observe", lambda self, x: None)
    assert failed("revisiting", "labels") == [
        "a step by the metric of other inputs is F⁻¹ df of these", "and the two steps differ",
    ]  # fmt: skip


def test_an_autoencoder_that_stands_still_is_found(monkeypatch):
    right = streams.HessianFree
    monkeypatch.setattr(streams, "HessianFree", lambda *a, **k: right(*a, **{**k, "lr": 1e-9}))
    assert "autoencoder: Hessian-free is below SGD after as many steps" in failed("revisiting", "autoencoder")
