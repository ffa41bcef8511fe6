"""The natural gradient, held against dense matrices by autograd, and its errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks_zoo import ZOO, in_parameters, oracle
from torch import nn

from riemann_ng.errors import (
    DegenerateMetric,
    InvalidSetting,
    InvalidTargets,
    NonFinite,
    NotAnInnerProduct,
    ObservationMismatch,
    SpaceMismatch,
)
from riemann_ng.inner_products import Euclidean, Gram, InnerProduct, direct_sum, second_moment
from riemann_ng.likelihoods import Bernoulli, Categorical, EuclideanOutput, Gaussian
from riemann_ng.metrics import KFAC, EuclideanMetric, FixedMetric, LayerwiseMetric, RiemannianMetric
from riemann_ng.metrics.fisher import Fisher
from riemann_ng.natural_gradient import natural_gradient
from riemann_ng.networks import Empirical, InputsOnly, MonteCarlo, Network
from riemann_ng.solvers import CG


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)


class DenseFisher(RiemannianMetric):
    def at(self, observation):
        return second_moment(observation.gradients)


class DenseGaussNewton(DenseFisher):
    output = EuclideanOutput()


class Blocks(LayerwiseMetric):
    def at_layer(self, layer):
        return second_moment(layer.gradients)


def case(name="mlp", n=6, likelihood=None):
    make, inputs = ZOO[name]
    model, x = make(), inputs(n)
    network = Network.from_torch(model, likelihood or Categorical(), example=x)
    z = network.outputs(x).detach()
    return model, network, x, torch.randint(0, z.shape[-1], z.shape[:-1])


def dense(model, network, x, y, matrix):
    """(F, df) on the network's components, by plain backward passes."""
    J = oracle(model, network, x)
    P = in_parameters(network)  # components to flat parameters, row by row
    z = network.outputs(x).detach()
    H = matrix(z).reshape(len(z), J.shape[1], -1)
    F = P @ torch.einsum("nop,noq,nqr->pr", J, H, J) @ P.mT / len(z)
    loss = network.likelihood.loss(network.outputs(x), y)
    gradients = torch.autograd.grad(loss, list(network.parameters.values()), allow_unused=True)
    pairs = zip(gradients, network.parameters.values(), strict=True)
    return F, P @ torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


@pytest.mark.parametrize("name", ["mlp", "conv1d", "tokens", "tied", "weight elsewhere", "lone leaf"])
def test_damped_by_a_float_it_is_tikhonov_in_the_coordinates(name):
    model, network, x, y = case(name)
    F, df = dense(model, network, x, y, network.likelihood.matrix)
    v = natural_gradient(network, DenseFisher(), x, y, damping=0.1)
    assert torch.allclose(v.components, torch.linalg.solve(F + 0.1 * torch.eye(len(F)), df), rtol=1e-7, atol=1e-11)
    same = natural_gradient(network, DenseFisher() + 0.1 * EuclideanMetric(), x, y)
    assert torch.equal(v.components, same.components)
    assert not torch.allclose(v.components, natural_gradient(network, Blocks(), x, y, damping=0.1).components) or (
        len(network.blocks) == 1
    )


@pytest.mark.parametrize("structure", ["full", "dense", "matrix-free", "dual"])
def test_every_form_of_the_whole_fisher_gives_the_same(structure):
    model, network, x, y = case("convolutional")
    F, df = dense(model, network, x, y, network.likelihood.matrix)
    solver = CG(tolerance=1e-12) if structure == "matrix-free" else None
    v = natural_gradient(network, Fisher(structure=structure), x, y, damping=0.1, solver=solver)
    assert torch.allclose(v.components, torch.linalg.solve(F + 0.1 * torch.eye(len(F)), df), rtol=1e-6, atol=1e-9)


def test_a_fisher_of_the_labels_own_is_refused():
    _, network, x, y = case()
    with pytest.raises(ObservationMismatch, match=r"In the metric Fisher|in Fisher\(\)"):
        natural_gradient(network, Fisher(), x, y, estimator=Empirical(y), damping=0.1)


def test_the_metrics_output_is_observed():
    model, network, x, y = case()
    J = oracle(model, network, x)
    P = in_parameters(network)
    GN = P @ torch.einsum("nop,noq->pq", J, J) @ P.mT / len(x)
    _, df = dense(model, network, x, y, network.likelihood.matrix)
    v = natural_gradient(network, DenseGaussNewton(), x, y, damping=0.1)
    assert torch.allclose(v.components, torch.linalg.solve(GN + 0.1 * torch.eye(len(GN)), df), rtol=1e-7)
    fisher = natural_gradient(network, DenseFisher(), x, y, damping=0.1)
    assert not torch.allclose(v.components, fisher.components, rtol=1e-2)


@settings(max_examples=settings.default.max_examples // 5)
@given(st.integers(0, 10**6), st.sampled_from([KFAC(), KFAC(sharing="reduce"), KFAC(bias="separate"), Blocks()]))
def test_flat_of_it_is_the_differential(seed, metric):
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(seed)
    _, network, x, y = case(n=20)
    total = metric + 1e-2 * EuclideanMetric()
    v = natural_gradient(network, total, x, y)
    g = total.at(network.observe(x))
    assert torch.allclose(g.flat(v).components, network.differential(x, y).components, atol=1e-9)


def test_damping_is_a_metric_an_inner_product_or_a_float():
    _, network, x, y = case()
    space = network.tangent_space
    by_float = natural_gradient(network, KFAC(), x, y, damping=0.3)
    by_metric = natural_gradient(network, KFAC(), x, y, damping=0.3 * EuclideanMetric())
    by_form = natural_gradient(network, KFAC(), x, y, damping=0.3 * Euclidean(space))
    assert torch.equal(by_float.components, by_metric.components)
    assert torch.allclose(by_float.components, by_form.components, rtol=1e-10)
    x, y = torch.randn(30, 3), torch.randn(30, 2)
    regular = Network.from_torch(nn.Linear(3, 2), Gaussian(), example=x)
    itself = KFAC().at(regular.observe(x))
    undamped, doubled = (natural_gradient(regular, KFAC(), x, y, damping=d) for d in (None, 0.3 * itself))
    assert torch.allclose(1.3 * doubled.components, undamped.components)


def test_an_undamped_fisher_has_a_kernel_and_the_shortest_solution():
    model, network, x, y = case(n=6)
    F, df = dense(model, network, x, y, network.likelihood.matrix)
    v = natural_gradient(network, DenseFisher(), x, y, modulo_kernel=EuclideanMetric())
    assert torch.allclose(v.components, torch.linalg.pinv(F, rtol=1e-10, hermitian=True) @ df, rtol=1e-6, atol=1e-9)
    weighted = FixedMetric(Gram(network.tangent_space, torch.diag(torch.rand(len(F)) + 0.1)))
    w = natural_gradient(network, DenseFisher(), x, y, modulo_kernel=weighted)
    g = weighted.form
    assert torch.allclose(F @ w.components, df, atol=1e-9)
    assert g.norm(w) < g.norm(v) and v.data.norm() < w.data.norm()
    pushed = [network.pushforward(u, x) for u in (v, w)]
    relative = [p - p.mean(-1, keepdim=True) for p in pushed]  # softmax sees logits up to a constant
    assert torch.allclose(*relative, atol=1e-7) and not torch.allclose(*(u.components for u in (v, w)))


def test_estimators_and_solvers_are_handed_on():
    _, network, x, y = case(n=30)
    metric = KFAC() + 0.1 * EuclideanMetric()
    exact = natural_gradient(network, metric, x, y)
    empirical = natural_gradient(network, metric, x, y, estimator=Empirical(y))
    assert torch.allclose(
        empirical.components,
        metric.at(network.observe(x, Empirical(y))).sharp(network.differential(x, y)).components,
    )
    assert not torch.allclose(exact.components, empirical.components, rtol=1e-2)
    by_cg = natural_gradient(network, metric, x, y, solver=CG(tolerance=1e-12))
    assert torch.allclose(by_cg.components, exact.components, rtol=1e-7)


def test_a_mask_is_handed_on():
    words = torch.randint(0, 6, (4, 3))
    network = Network.from_torch(ZOO["tokens"][0](), Categorical(), example=words)
    there = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]], dtype=torch.bool)
    y = torch.randint(0, 6, (4, 3)).masked_fill(~there, -100)
    masked = natural_gradient(network, KFAC(), words, y, damping=1.0, mask=there)
    total = KFAC() + EuclideanMetric()
    want = total.at(network.observe(words, mask=there)).sharp(network.differential(words, y))
    assert torch.allclose(masked.components, want.components)
    assert not torch.allclose(masked.components, natural_gradient(network, KFAC(), words, y, damping=1.0).components)


def test_the_euclidean_metric_is_plain_gradient_descent():
    _, network, x, y = case()
    v = natural_gradient(network, EuclideanMetric(), x, y)
    assert torch.equal(v.components, network.differential(x, y).components)


# --- errors -----------------------------------------------------------------------------------------------------------


class Swapped(LayerwiseMetric):
    def at_layer(self, layer):
        return second_moment(layer.inputs) * second_moment(layer.cotangents)


class NotEvenAForm(LayerwiseMetric):
    def at_layer(self, layer):
        return layer.inputs.moment()


class OneLayerOnly(RiemannianMetric):
    def at(self, observation):
        return direct_sum({"0": Euclidean(observation["0"].space)})


class Tilted(InnerProduct):
    """Symmetric, and not positive."""

    def __init__(self, space):
        self.space = space

    def flat_components(self, x):
        signs = torch.ones(self.space.dim, dtype=x.dtype)
        signs[0] = -1
        return x * signs

    def expression(self):
        return f"Tilted({self.space})"


class TiltedSecondLayer(LayerwiseMetric):
    def at_layer(self, layer):
        return Tilted(layer.space) if layer.path == "2" else Euclidean(layer.space)


class Raises(LayerwiseMetric):
    def at_layer(self, layer):
        raise KeyError("a mistake of the user's")


def test_errors_name_the_metric_the_layer_and_the_fix():
    _, network, x, y = case()
    with pytest.raises(InvalidSetting, match=r"must be an instance, with brackets: KFAC\(\), got the class KFAC"):
        natural_gradient(network, KFAC, x, y)
    with pytest.raises(InvalidSetting, match=r"one inner product everywhere is FixedMetric\(g\)"):
        natural_gradient(network, Euclidean(network.tangent_space), x, y)
    with pytest.raises(InvalidSetting, match="must be a RiemannianMetric, got 'kfac'"):
        natural_gradient(network, "kfac", x, y)
    with pytest.raises(
        SpaceMismatch, match=r"Swapped.at_layer: for layer '0' it must return(.|\n)*In the metric Swapped"
    ):
        natural_gradient(network, Swapped(), x, y)
    with pytest.raises(SpaceMismatch, match=r"NotEvenAForm.at_layer: for layer '0' it must return"):
        natural_gradient(network, NotEvenAForm(), x, y)
    with pytest.raises(SpaceMismatch, match=r"OneLayerOnly.at: it must return an inner product on .*direct_sum"):
        natural_gradient(network, OneLayerOnly(), x, y)
    with pytest.raises(NotAnInnerProduct) as caught:
        natural_gradient(network, TiltedSecondLayer(), x, y)
    assert "is indefinite" in str(caught.value) and "In the summand '2'." in str(caught.value)
    assert "In the metric TiltedSecondLayer()." in str(caught.value)
    with pytest.raises(KeyError, match="a mistake of the user's"):
        natural_gradient(network, Raises(), x, y)


def test_a_degenerate_metric_says_what_to_write():
    _, network, x, y = case(n=3)
    with pytest.raises(DegenerateMetric) as caught:
        natural_gradient(network, KFAC(), x, y)
    said = str(caught.value)
    assert "In the summand '0'." in said and "In the metric KFAC()." in said
    assert "damping=λ * EuclideanMetric(), or modulo_kernel=EuclideanMetric()" in said
    assert caught.value.rank is not None
    natural_gradient(network, KFAC(), x, y, damping=1e-3)


def test_a_statistic_that_was_not_collected():
    _, network, x, y = case()
    with pytest.raises(
        ObservationMismatch, match=r"'0' was observed with InputsOnly\(\)(.|\n)*In the metric KFAC\(\), layer '0'"
    ):
        natural_gradient(network, KFAC(), x, y, estimator=InputsOnly())


@pytest.mark.parametrize("damping", [0.0, -1e-3, float("nan"), float("inf"), True, "1e-3", EuclideanMetric])
def test_damping_that_is_none(damping):
    _, network, x, y = case()
    with pytest.raises(InvalidSetting, match=r"in natural_gradient: damping"):
        natural_gradient(network, KFAC(), x, y, damping=damping)


def test_forms_on_another_space_are_refused():
    _, network, x, y = case()
    _, twin, _, _ = case()
    for name in ("damping", "modulo_kernel"):
        with pytest.raises(SpaceMismatch, match=f"natural_gradient: {name} lives on"):
            natural_gradient(network, KFAC(), x, y, **{name: Euclidean(twin.tangent_space)})
    with pytest.raises(InvalidSetting, match="a solver and modulo_kernel"):
        natural_gradient(network, KFAC(), x, y, solver=CG(), modulo_kernel=EuclideanMetric())


def test_what_is_no_network():
    model, network, x, y = case()
    with pytest.raises(InvalidSetting, match=r"got the module Sequential. Read it: Network.from_torch"):
        natural_gradient(model, KFAC(), x, y)
    with pytest.raises(InvalidSetting, match="comes without parameters and likelihood"):
        natural_gradient(lambda p, x: x, KFAC(), x, y)
    with pytest.raises(InvalidSetting, match="comes without likelihood"):
        natural_gradient(lambda p, x: x, KFAC(), x, y, parameters=torch.ones(2))
    with pytest.raises(InvalidSetting, match="a network has parameters and a likelihood of its own"):
        natural_gradient(network, KFAC(), x, y, likelihood=Categorical())
    with pytest.raises(InvalidSetting, match="expected a network or a function"):
        natural_gradient(7, KFAC(), x, y)


def test_errors_leave_everything_as_it_was():
    model, network, x, y = case(n=20)
    _, twin, _, _ = case(n=20)
    twin.module.load_state_dict(model.state_dict())
    metric = KFAC(observed=MonteCarlo(samples=1, seed=3)) + EuclideanMetric()
    before = {k: t.clone() for k, t in model.state_dict().items()}
    random = torch.get_rng_state()
    bad = x.clone()
    bad[1, 0] = torch.nan
    for broken, error, batch, targets in (
        (Swapped(), SpaceMismatch, x, y),
        (TiltedSecondLayer(), NotAnInnerProduct, x, y),
        (metric + Raises(), KeyError, x, y),  # after the labels have been drawn
        (metric, NonFinite, bad, y),
        (metric, InvalidTargets, x, y + 100),
    ):
        with pytest.raises(error):
            natural_gradient(network, broken, batch, targets)
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    here, there = (natural_gradient(n, metric, x, y) for n in (network, twin))
    assert torch.equal(here.components, there.components)  # the labels drawn are those that no error came before
    again = natural_gradient(network, metric, x, y)
    assert not torch.equal(here.components, again.components)  # the control: every call draws others


def test_non_finite_batches_name_the_layer():
    _, network, x, y = case()
    x[2, 1] = torch.inf
    with pytest.raises(NonFinite, match="'0'"):
        natural_gradient(network, KFAC(), x, y, damping=1.0)


def test_other_likelihoods():
    for likelihood, y in ((Gaussian(0.5), torch.randn(6, 3)), (Bernoulli(), torch.randint(0, 2, (6, 3)).double())):
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=False))
        x = torch.randn(6, 4)
        network = Network.from_torch(model, likelihood, example=x)
        F, df = dense(model, network, x, y, likelihood.matrix)
        v = natural_gradient(network, DenseFisher(), x, y, damping=0.1)
        assert torch.allclose(v.components, torch.linalg.solve(F + 0.1 * torch.eye(len(F)), df), rtol=1e-7)
