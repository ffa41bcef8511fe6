"""The covariance of gradients by its honest name, against gradients that plain autograd gives, one by one."""

import pytest
import torch
from networks_zoo import ZOO, in_parameters
from test_reparametrize_laws import GROUP_OF, well_posed
from torch import nn
from twin_cases import twin_of

from riemann_ng import explain_symmetry
from riemann_ng.errors import DegenerateMetric, InvalidSetting, NotClosed, ObservationMismatch
from riemann_ng.inner_products import Diagonal, InnerProduct, LowRank, direct_sum
from riemann_ng.likelihoods import Categorical, Gaussian
from riemann_ng.metrics import EuclideanMetric, Fisher
from riemann_ng.metrics.covariance import GradientCovariance
from riemann_ng.natural_gradient import natural_gradient
from riemann_ng.networks import CurvatureProp, Empirical, Exact, InputsOnly, MonteCarlo, Network
from riemann_ng.optim import NaturalGradient, Tikhonov


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def off(a, b):
    return float((a - b).norm() / b.norm())


def problem(name, n=6):
    make, batch = ZOO[name]
    model, x = make(), batch(n)
    z = model(x)
    y = torch.randint(0, z.shape[-1], z.shape[:-1])
    return model, x, y, Network.from_torch(model, Categorical(), x)


def gradients_one_by_one(model, network, x, y):
    """(examples, dim), on the tangent space; the loss of an example is summed over its sites."""
    model.eval()
    P, rows = in_parameters(network), []
    for i in range(len(y)):
        z = model(x[i : i + 1])
        loss = nn.functional.cross_entropy(z.flatten(0, -2), y[i : i + 1].flatten(), reduction="sum")
        parts = torch.autograd.grad(loss, list(network.parameters.values()), allow_unused=True)
        pairs = zip(parts, network.parameters.values(), strict=True)
        rows.append(torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in pairs]))
    return torch.stack(rows) @ P.mT


def dense(rows, centred):
    rows = rows - rows.mean(0) if centred else rows
    return rows.mT @ rows / len(rows)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("name", ["mlp", "convolutional", "conv1d", "tokens", "merged", "tied", "recurrent"])
def test_it_is_the_covariance_of_single_gradients(name, centred):
    model, x, y, network = problem(name)
    C = dense(gradients_one_by_one(model, network, x, y), centred)
    with network.observe(x, Empirical(y)) as seen:
        for structure in ("full", "dense", "dual"):
            g = GradientCovariance(centred, structure).at(seen)
            assert off(g.matrix(), C) < 1e-10
            assert torch.allclose(g.diagonal_entries(), C.diagonal(), atol=1e-12)
            v = torch.randn(2, network.tangent_space.dim)
            assert torch.allclose(g.flat_components(v), v @ C, atol=1e-10)
        blocks = GradientCovariance(centred, "block-diagonal").at(seen)
        diagonal = GradientCovariance(centred, "diagonal").at(seen)
        for path, where in network.tangent_space.slices.items():
            assert torch.allclose(blocks.parts[path].matrix(), C[where, where], atol=1e-11)
            assert torch.allclose(diagonal.parts[path].entries, C.diagonal()[where], atol=1e-11)
            assert isinstance(diagonal.parts[path], Diagonal)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("structure", ["full", "dual", "block-diagonal", "diagonal"])
def test_damped_it_is_solved(structure, centred):
    model, x, y, network = problem("mlp")
    metric = GradientCovariance(centred, structure) + 0.1 * EuclideanMetric()
    v = natural_gradient(network, metric, x, y)
    rows = gradients_one_by_one(model, network, x, y)
    C, df = dense(rows, centred), network.differential(x, y).data
    if structure == "block-diagonal":
        C = torch.block_diag(*(C[where, where] for where in network.tangent_space.slices.values()))
    if structure == "diagonal":
        C = torch.diag(C.diagonal())
    assert torch.allclose(v.data, torch.linalg.solve(C + 0.1 * torch.eye(len(C)), df), atol=1e-11)
    assert torch.allclose(df, rows.mean(0))


def test_centred_it_is_the_step_of_tonga():
    """(C + λ)⁻¹ μ by the kernel of the centred gradients, as they compute it."""
    _, x, y, network = problem("mlp", n=5)
    model = network.module
    rows, lam = gradients_one_by_one(model, network, x, y), 0.05
    mu = rows.mean(0)
    B = (rows - mu) / len(rows) ** 0.5
    tonga = (mu - B.mT @ torch.linalg.solve(B @ B.mT + lam * torch.eye(5), B @ mu)) / lam
    v = natural_gradient(network, GradientCovariance(True) + lam * EuclideanMetric(), x, y)
    assert torch.allclose(v.data, tonga, atol=1e-10)
    uncentred = natural_gradient(network, GradientCovariance() + lam * EuclideanMetric(), x, y)
    # both have one direction, by Sherman and Morrison; their lengths differ
    cosine = torch.cosine_similarity(v.data, uncentred.data, dim=0)
    assert float(cosine) > 1 - 1e-12 and float(uncentred.data.norm() / v.data.norm()) < 0.99
    assert torch.allclose(v.data, uncentred.data * (1 + mu @ v.data))


def test_enough_examples_make_it_definite_and_one_fewer_do_not():
    model = nn.Linear(2, 2)
    x, y = torch.randn(7, 2), torch.rand(7, 2)
    network = Network.from_torch(model, Gaussian(), x)
    df = network.differential(x, y)
    C = GradientCovariance(True).at(network.observe(x, Empirical(y)))
    assert torch.allclose(C.flat(C.sharp(df)).data, df.data)
    for metric in (GradientCovariance(True), GradientCovariance()):
        few = metric.at(network.observe(x[:5], Empirical(y[:5])))
        with pytest.raises(DegenerateMetric, match=f"rank {4 if metric.centred else 5} of 6"):
            few.sharp(df)
    six = x[:6], y[:6]
    assert GradientCovariance().at(network.observe(six[0], Empirical(six[1]))).rank() == 6
    assert GradientCovariance(True).at(network.observe(six[0], Empirical(six[1]))).rank() == 5


# --- low rank ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("rank", [1, 3, 50])
def test_the_largest_axes(centred, rank):
    model, x, y, network = problem("mlp", n=8)
    C = dense(gradients_one_by_one(model, network, x, y), centred)
    with network.observe(x, Empirical(y)) as seen:
        whole = GradientCovariance(centred, rank=rank).at(seen)
        parts = GradientCovariance(centred, "block-diagonal", rank).at(seen)

    def best(M):
        values, vectors = torch.linalg.eigh(M)
        return vectors[:, -rank:] @ torch.diag(values[-rank:]) @ vectors[:, -rank:].mT

    assert isinstance(whole, LowRank) and torch.allclose(whole.matrix(), best(C), atol=1e-11)
    for path, where in network.tangent_space.slices.items():
        assert torch.allclose(parts.parts[path].matrix(), best(C[where, where]), atol=1e-11)
    v = natural_gradient(network, GradientCovariance(centred, rank=rank) + 0.1 * EuclideanMetric(), x, y)
    df = network.differential(x, y).data
    assert torch.allclose(v.data, torch.linalg.solve(best(C) + 0.1 * torch.eye(len(C)), df), atol=1e-10)


# --- the name ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", [Exact(), MonteCarlo(1), CurvatureProp(), InputsOnly()], ids=str)
def test_what_is_not_of_the_data_is_refused_and_the_fisher_refuses_what_is(estimator):
    _, x, y, network = problem("mlp")
    with pytest.raises(ObservationMismatch, match=r"GradientCovariance\(\): the batch was observed with .*Empirical"):
        GradientCovariance().at(network.observe(x, estimator))
    with pytest.raises(ObservationMismatch, match=r"GradientCovariance\(\) is what empirical labels give"):
        Fisher().at(network.observe(x, Empirical(y)))
    assert GradientCovariance().estimator(y) == Empirical(y)


def test_it_is_no_fisher():
    """At a perfect fit one vanishes and the other does not; under labels of the model they are one."""
    model = nn.Linear(3, 2)
    x = torch.randn(400, 3)
    network = Network.from_torch(model, Gaussian(), x)
    y = model(x).detach()
    g, F = GradientCovariance(False, "dense").at(network.observe(x, Empirical(y))), Fisher(structure="dense")
    assert float(g.matrix().abs().max()) == 0
    F = F.at(network.observe(x)).matrix()
    draws = [GradientCovariance(False, "dense").at(network.observe(x, Empirical(y + torch.randn_like(y)))).matrix()
             for _ in range(300)]  # fmt: skip
    assert off(sum(draws) / 300, F) < 0.02


def test_bernoulli_targets_and_the_whole_zoo_of_structures():
    network, x, y = well_posed("mlp")
    seen = network.observe(x, Empirical(y))
    F = direct_sum(GradientCovariance(structure="block-diagonal").at(seen).parts).matrix()
    for structure in ("unit-wise", "quasi-diagonal", "diagonal"):
        g = GradientCovariance(structure=structure).at(seen).matrix()
        assert torch.allclose(g.diagonal(), F.diagonal())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradientCovariance(structure="kfac"), "structure='kfac', expected one of 'full', 'dense', 'dual'"),
        (lambda: GradientCovariance(True, "unit-wise"), "structure='unit-wise' of the centred one, expected one of"),
        (lambda: GradientCovariance(rank=0), "rank=0, expected a number of axes, 1 or more"),
        (lambda: GradientCovariance(structure="diagonal", rank=2), "rank=2 with structure='diagonal'"),
    ],
)
def test_settings(make, message):
    with pytest.raises(InvalidSetting, match=message):
        make()


def test_samples_of_one_batch_do_not_average_and_say_so():
    _, x, y, network = problem("mlp")
    g = GradientCovariance(True).at(network.observe(x, Empirical(y)))
    with pytest.raises(NotClosed, match="holds the samples of one batch"):
        g.blend(g, 0.5)
    again = InnerProduct.from_state(g.space, g.state())
    assert torch.allclose(again.matrix(), g.matrix())


def test_in_the_optimizer_it_takes_the_loss_s_own_backward():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(30, 3)
    y = (x[:, 0] > 0).long()
    opt = NaturalGradient(
        model, Categorical(), metric=GradientCovariance(True, "block-diagonal"), damping=Tikhonov(0.1), lr=0.5
    )
    assert opt.estimator == Empirical()
    losses = []
    for _ in range(10):
        opt.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


# --- symmetry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["mlp", "convolution", "tokens"])
@pytest.mark.parametrize("structure", ["dense", "block-diagonal"])
@pytest.mark.parametrize("centred", [False, True])
def test_it_is_carried_along_by_every_frame(which, structure, centred):
    network, x, y = well_posed(which)
    twin = twin_of(network, x, group=GROUP_OF[which])
    metric = GradientCovariance(centred, structure)
    here = metric.at(network.observe(x, Empirical(y)))
    there = metric.at(twin.network.observe(twin.inputs(x), Empirical(y)))
    T = twin.tangent_map.matrix(here.matrix())
    assert off(T.mT @ there.matrix() @ T, here.matrix()) < 1e-10
    for path in network.blocks:
        for base in network.tangent_space[path].bases:
            assert here.keeps(base, "affine")


def test_truncated_it_is_carried_along_by_rotations_alone():
    network, x, y = well_posed("mlp")
    metric = GradientCovariance(True, rank=4)
    here = metric.at(network.observe(x, Empirical(y)))
    A, S = (network.blocks["0"].space.factors[i].bases[0] for i in (1, 0))
    assert here.keeps(A, "orthogonal") and here.keeps(S, "isometries")
    assert not here.keeps(A, "translations") and not here.keeps(S, "general")
    assert "the largest axes of GradientCovariance(centred=True, rank=4)" in explain_symmetry(here)
    for group, kept in (("orthogonal", True), ("general", False), ("translations", False)):
        twin = twin_of(network, x, group=group)
        there = metric.at(twin.network.observe(twin.inputs(x), Empirical(y)))
        T = twin.tangent_map.matrix(here.matrix())
        error = off(T.mT @ there.matrix() @ T, here.matrix())
        assert (error < 1e-9) if kept else (error > 1e-3), group


def test_the_diagonal_names_lines():
    network, x, y = well_posed("mlp")
    g = GradientCovariance(True, "diagonal").at(network.observe(x, Empirical(y)))
    A = network.blocks["0"].space.factors[1].bases[0]
    assert g.keeps(A, "monomial") and not g.keeps(A, "orthogonal") and not g.keeps(A, "translations")
    twin = twin_of(network, x, group="scaling")
    there = GradientCovariance(True, "diagonal").at(twin.network.observe(twin.inputs(x), Empirical(y)))
    here = g.matrix()
    T = twin.tangent_map.matrix(here)
    assert off(T.mT @ there.matrix() @ T, here) < 1e-9
