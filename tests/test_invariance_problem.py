"""Changes of the training problem and of all parameters: for each, what keeps it and what does not."""

import re
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from riemann_ng.inner_products import Gram
from riemann_ng.likelihoods import Bernoulli, Categorical, Gaussian
from riemann_ng.metrics import KFAC, EuclideanMetric, Fisher, FixedMetric, GaussNewton
from riemann_ng.natural_gradient import natural_gradient
from riemann_ng.networks import Exact, MonteCarlo, Network
from riemann_ng.norms import Spectral
from riemann_ng.optim import Constant, NaturalGradient, Tikhonov, Undamped
from riemann_ng.reparametrize import LinearChange, SmoothChange
from riemann_ng.testing.invariance import check_invariance, direction, optimizer, update
from riemann_ng.testing.invariance.carriers import ParameterTwin, flat_parameters
from riemann_ng.testing.invariance.checking import check_cells
from riemann_ng.testing.invariance.parameters import OF_PARAMETERS, changed, judged, refined, slope
from riemann_ng.testing.invariance.problem_probes import OF_THE_PROBLEM, Halves, Splitting, relabelled, splittable
from riemann_ng.testing.invariance.problems import problem_of

HELD, REFUTED, UNDECIDED, NOT_APPLICABLE = "held", "refuted", "undecided", "not applicable"


def classifier():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    return model, torch.randn(40, 3, dtype=torch.float64), torch.randint(0, 3, (40,))


def sentences(outputs=3):
    torch.manual_seed(0)
    mean = nn.Sequential(nn.Flatten(), nn.Linear(12, outputs))
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 3), nn.Tanh(), mean).double()
    return model, torch.randint(0, 5, (40, 4)), torch.randint(0, outputs, (40,))


def cell(subject, on, group, problem=None, likelihood=None, **options):
    model, x, y = problem or classifier()
    return check_invariance(subject, model, x, y, likelihood or Categorical(), on=on, groups=group, **options)[
        on, group
    ]


def descend(loss):
    """One step of gradient descent on a loss of one's own."""

    def step(model, x, y):
        gradients = torch.autograd.grad(loss(model, x, y), list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradients, strict=True):
                p.sub_(0.3 * g)

    return update(step)


mean_loss = descend(lambda model, x, y: cross_entropy(model(x), y))
sgd = optimizer(lambda model: torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9))
adam = optimizer(lambda model: torch.optim.Adam(model.parameters(), lr=0.03, eps=1e-30))


def natural(metric, lr=0.1, damping=Tikhonov(1e-2)):
    def make(model, likelihood):
        return NaturalGradient(
            model, likelihood, metric=metric, lr=lr, momentum=0.0, damping=damping, decay=0.0, estimator=Exact(),
            step_size=Constant(),
        )  # fmt: skip

    return optimizer(make)


# The loss


def test_the_scale_of_the_loss():
    assert cell(adam, "loss", "scale").verdict == HELD
    found = cell(sgd, "loss", "scale")
    assert found.verdict == REFUTED and found.counterexample.element == "loss → 3 loss"
    own = cell(mean_loss, "loss", "scale")
    assert own.verdict == NOT_APPLICABLE and own.reason.startswith("the subject computes the loss itself")


@pytest.mark.parametrize("subject", [KFAC(), Fisher(), EuclideanMetric(), Spectral()])
def test_a_metric_says_how_its_step_goes_with_the_loss(subject):
    found = cell(subject, "loss", "scale")
    assert found.verdict == REFUTED and found.reason == "the step goes like the power 1 of the loss"


def test_a_direction_of_length_one_keeps_the_scale():
    def unit(network, x, y):
        df = network.differential(x, y)
        return Spectral().on(network.tangent_space).sharp(df)

    assert cell(direction(unit), "loss", "scale").verdict == NOT_APPLICABLE  # it makes its differential itself


# The batch


@pytest.mark.parametrize("group", ["duplication", "order"])
@pytest.mark.parametrize("subject", [sgd, adam, mean_loss, KFAC(), Fisher(), natural(KFAC())])
def test_the_batch_is_a_measure(subject, group):
    assert cell(subject, "batch", group).verdict == HELD


def test_a_summed_loss_sees_duplicates():
    subject = descend(lambda model, x, y: cross_entropy(model(x), y, reduction="sum") / 40)
    found = cell(subject, "batch", "duplication")
    assert found.verdict == REFUTED and found.counterexample.element == "every example twice"
    assert cell(subject, "batch", "order").verdict == HELD


def test_a_method_that_looks_at_the_first_examples_sees_their_order():
    subject = descend(lambda model, x, y: cross_entropy(model(x[: len(x) // 2]), y[: len(y) // 2]))
    assert cell(subject, "batch", "order").verdict == REFUTED


@pytest.mark.parametrize(("on", "group"), [("batch", "duplication"), ("batch", "order"), ("outputs", "relabelling")])
def test_random_labels_follow_the_order_of_examples_and_classes(on, group):
    found = cell(KFAC(observed=MonteCarlo(2)), on, group)
    assert found.verdict == UNDECIDED and "two runs can agree in law at most" in found.reason
    assert found.counterexample is None


def test_random_numbers_that_do_not_matter_are_no_excuse():
    def wrong(model, x, y):
        torch.rand(len(x))
        return cross_entropy(model(x[:20]), y[:20])

    assert cell(descend(wrong), "batch", "order").verdict == REFUTED


# The classes


SUBJECTS = [sgd, adam, mean_loss, KFAC(), Fisher(), GaussNewton(), natural(KFAC()), Spectral()]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_names_of_classes_do_not_matter(subject):
    assert cell(subject, "outputs", "relabelling").verdict == HELD


def test_class_weights_of_ones_own_know_the_classes():
    weight = torch.tensor([1.0, 3.0, 0.3], dtype=torch.float64)
    found = cell(descend(lambda model, x, y: cross_entropy(model(x), y, weight)), "outputs", "relabelling")
    assert found.verdict == REFUTED and found.counterexample.element.startswith("class k becomes class [")


def test_class_weights_of_the_likelihood_are_relabelled():
    weighted = Categorical(weight=torch.tensor([1.0, 3.0, 0.3], dtype=torch.float64))
    for subject in (sgd, KFAC(), KFAC(output=weighted), natural(KFAC())):
        assert cell(subject, "outputs", "relabelling", likelihood=weighted).verdict == HELD
    assert "class weights cannot be moved" in cell(mean_loss, "outputs", "relabelling", likelihood=weighted).reason


def test_probabilities_and_ignored_labels_are_relabelled():
    order = torch.tensor([2, 0, 1])  # class 2 of the original is class 0 now
    assert relabelled(torch.tensor([0, 1, 2, -100]), order, -100, -1).tolist() == [1, 2, 0, -100]
    labels = torch.tensor([0, 1, 2])
    soft = one_hot(labels, 3).double()
    assert torch.equal(relabelled(soft, order, -100, -1), one_hot(relabelled(labels, order, None, -1), 3).double())
    model, x, y = classifier()
    soft = 0.8 * one_hot(y, 3).double() + 0.2 / 3
    assert cell(sgd, "outputs", "relabelling", (model, x, soft)).verdict == HELD


def test_relabelling_needs_classes():
    model, x, y = classifier()
    found = cell(sgd, "outputs", "relabelling", (model, x, one_hot(y, 3).double()), Bernoulli())
    assert found.verdict == NOT_APPLICABLE and found.reason == "the targets of Bernoulli() are no classes"


# How often a layer is called


@pytest.mark.parametrize("subject", [sgd, adam, KFAC(), KFAC(sharing="reduce"), Fisher(), natural(KFAC())])
def test_uses_may_be_split(subject):
    assert cell(subject, "parameters", "splitting", sentences()).verdict == HELD


def kfac_by_hooks(last_only):
    """The second layer's inputs by a hook, for steps preconditioned by their moment; `last_only` forgets the others."""

    def step(model, x, y):
        seen = []
        layer = next(m for m in model.modules() if isinstance(m, nn.Linear))
        handle = layer.register_forward_hook(lambda m, args, out: seen.append(args[0].detach().flatten(0, -2)))
        loss = cross_entropy(model(x), y)
        handle.remove()
        a = torch.cat(seen[-1:] if last_only else seen)
        gradient = torch.autograd.grad(loss, layer.weight)[0]
        with torch.no_grad():
            layer.weight.sub_(gradient @ torch.linalg.inv(a.T @ a / len(a)))

    return update(step)


def test_a_hook_that_keeps_the_last_call_alone_is_found():
    class ByOneModule(Splitting):
        """The other half of the elements has two modules, of which that hook sees one."""

        def moved(self, problem, seed, size=1.0):
            return super().moved(problem, 2 * seed + 1, size)

    run = partial(check_cells, model=sentences()[0], x=sentences()[1], y=sentences()[2], likelihood=Categorical())
    for last_only, verdict in ((True, REFUTED), (False, HELD)):
        report = run(kfac_by_hooks(last_only), probes=[ByOneModule()])
        assert report["parameters", "splitting"].verdict == verdict
        assert verdict == HELD or "by one module, twice" in report["parameters", "splitting"].counterexample.element


def test_split_layers_compute_the_same():
    model, x, y = sentences()
    problem = problem_of(model, x, y, Categorical(), 0.0)
    assert splittable(problem) == ["0", "1"]  # the last layer sees one site
    for seed in (1, 2):
        moved = Splitting().moved(problem, seed)
        assert isinstance(moved.module[1], Halves) and (moved.module[1].layer is moved.module[1].other) == (seed == 1)
        assert torch.allclose(moved.module(x), model(x), atol=1e-14)
        assert len(list(moved.module.parameters())) == len(list(model.parameters()))
        form = Gram(problem.network.tangent_space, torch.eye(problem.network.tangent_space.dim, dtype=torch.float64))
        assert moved.twin.transport(form).space == moved.network.tangent_space
    assert splittable(problem_of(*classifier(), Categorical(), 0.0)) == []


# All parameters together


@pytest.mark.parametrize("group", ["linear", "smooth"])
def test_what_comes_from_the_function_does_not_see_parameters(group):
    for subject in (Fisher(), GaussNewton()):
        found = cell(subject, "parameters", group)
        assert found.verdict == HELD and found.discrepancy < 1e-10
    for subject in (EuclideanMetric(), Fisher() + 0.1 * EuclideanMetric()):
        assert cell(subject, "parameters", group).verdict == REFUTED


def test_a_reference_that_is_carried_loses_nothing():
    model, x, _ = classifier()
    network = Network.from_torch(model, Categorical(), x)
    h = Gram(network.tangent_space, 0.3 * torch.eye(network.tangent_space.dim, dtype=torch.float64))
    problem = (network, x, classifier()[2])
    for group in ("linear", "smooth"):
        assert cell(Fisher() + FixedMetric(h), "parameters", group, problem).verdict == HELD


@pytest.mark.parametrize("subject", [KFAC(), Spectral(), natural(KFAC())])
def test_structure_by_layers_has_no_counterpart(subject):
    for group in ("linear", "smooth"):
        found = cell(subject, "parameters", group)
        assert found.verdict == NOT_APPLICABLE and found.reason.startswith(
            "the subject treats layers or tensors one by"
        )


def test_descent_sees_parameters():
    for subject in (sgd, adam):
        assert cell(subject, "parameters", "linear").verdict == REFUTED
        found = cell(subject, "parameters", "smooth")
        assert found.verdict == REFUTED and found.reason.startswith("mismatch / displacement")
    found = cell(mean_loss, "parameters", "smooth")
    assert found.verdict == NOT_APPLICABLE and "no learning rate" in found.reason


def test_natural_steps_follow_one_flow():
    """Exact under linear changes; under smooth ones the mismatch is of first order in the learning rate."""
    torch.manual_seed(0)
    narrow = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)).double()
    x = torch.randn(60, 2, dtype=torch.float64)
    problem, g = (narrow, x, narrow(x).detach() + 0.3 * torch.randn(60, 2)), Gaussian()
    flow = natural(Fisher(), damping=Undamped())
    assert cell(flow, "parameters", "linear", problem, g).verdict == HELD
    found = cell(flow, "parameters", "smooth", problem, g)
    assert found.verdict == HELD and found.discrepancy > 1e-4 and re.search(r"slope (0\.[89]|1\.0)", found.reason)
    assert cell(natural(EuclideanMetric()), "parameters", "smooth", problem, g).verdict == REFUTED


def test_large_models_are_left_alone():
    model = nn.Sequential(nn.Linear(3, 600), nn.Tanh(), nn.Linear(600, 3)).double()
    found = cell(sgd, "parameters", "linear", (model, *classifier()[1:]))
    assert found.verdict == NOT_APPLICABLE and "is a matrix with 4203 rows; 2048 at most" in found.reason


@pytest.mark.parametrize("psi", [LinearChange.draw(31, seed=3), SmoothChange(31, seed=3)])
def test_constants_are_carried_to_other_parameters(psi):
    """The isomorphism is dψ: pushing forward through it is pushing forward, and covectors are pulled back."""
    problem = problem_of(*classifier(), Categorical(), 0.0)
    moved = changed(problem, psi)
    twin, here, there = moved.twin, problem.network, moved.network
    assert isinstance(twin, ParameterTwin) and here.tangent_space.dim == 31
    v = natural_gradient(there, EuclideanMetric(), moved.x, moved.y)
    assert torch.allclose(there.pushforward(v, moved.x), here.pushforward(twin.to_original(v), problem.x), atol=1e-12)
    df = here.differential(problem.x, problem.y)
    assert torch.allclose(
        twin.to_original.pullback(df).components, there.differential(moved.x, moved.y).components, atol=1e-12
    )
    g = Gram(here.tangent_space, 2.0 * torch.eye(31, dtype=torch.float64))
    w = twin.to_original(v)
    assert torch.allclose(twin.transport(g).inner(v, v), g.inner(w, w))
    theta = torch.cat([p.detach().flatten() for p in here.parameters.values()])
    point = here.vector({name: p.detach() for name, p in here.parameters.items()})
    assert torch.allclose(flat_parameters(here) @ point.components, theta)


def test_slopes():
    small = [0.04, 0.02, 0.01]
    assert slope([0.4, 0.2, 0.1]) == pytest.approx(1.0) and judged([0.4, 0.2, 0.1], small, 1e-12) == HELD
    assert judged([0.4, 0.39, 0.38], small, 1e-12) == REFUTED
    assert judged([0.4, 0.3, 0.22], small, 1e-12) == UNDECIDED  # neither order
    assert judged([1e-7, 1e-7, 1e-7], small, 1e-12) == HELD  # the same at every step
    assert judged([0.4, 0.39, 0.38], small, 0.1) == UNDECIDED  # noise
    assert judged([0.4, float("inf"), 0.1], small, 1e-12) == UNDECIDED
    assert judged([0.4, 0.1, 0.1], small, 1e-12) == UNDECIDED  # it stopped shrinking
    for ratios in ([0.4, 0.39, 0.38], [0.4, 0.2, 0.1]):
        assert judged(ratios, [1.0, 0.8, 0.5], 1e-12) == UNDECIDED  # the steps are too long


def test_the_learning_rate_halves_until_an_order_shows():
    """With a displacement that is straight below .01 only, and a mismatch that is first flat, then of order one."""
    assert refined(lambda rate: (rate / (rate + 0.01), rate / (1 + 10 * rate)), 1e-12)[0] == HELD
    assert refined(lambda rate: (0.3 + rate, rate / (1 + 10 * rate)), 1e-12)[0] == REFUTED
    assert refined(lambda rate: (0.3 * rate**0.5, rate), 1e-12)[0] == UNDECIDED  # order one half
    assert refined(lambda rate: (0.3, 0.0), 1e-12)[0] == UNDECIDED  # no step at all


# Every probe moves nothing


@pytest.mark.parametrize("probe", [*OF_PARAMETERS, *OF_THE_PROBLEM], ids=lambda probe: probe.group)
def test_a_moved_problem_makes_the_same_predictions(probe):
    model, x, y = sentences()
    problem = problem_of(model, x, y, Categorical(), 0.25)
    before = problem.predictions(problem.module)
    for seed in (1, 2):
        moved = probe.moved(problem, seed)
        assert torch.allclose(moved.predictions(moved.module), before, atol=1e-12)
        loss, expected = moved.loss(moved.module) / moved.loss_scale, problem.loss(problem.module)
        assert torch.allclose(loss, expected, atol=1e-12)
        assert probe.told(problem, seed)[1]
    assert torch.equal(problem.predictions(problem.module), before)
