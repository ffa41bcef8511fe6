"""Recurrent K-FAC: sums over all pairs of steps, against sums that are written out."""

import pytest
import torch
from torch import nn
from twin_cases import twin_of

from riemann_ng.elements import Covector
from riemann_ng.errors import DegenerateMetric, InvalidSetting, NotClosed, SpaceMismatch
from riemann_ng.inner_products import Euclidean, Gram, InnerProduct, Kronecker, Series, damp_factors
from riemann_ng.inner_products.series import MARGIN, steps
from riemann_ng.likelihoods import Bernoulli, Gaussian
from riemann_ng.metrics import KFAC, EuclideanMetric, Fisher, MetricAverage
from riemann_ng.metrics.recurrent import RecurrentKFAC, series_of
from riemann_ng.natural_gradient import natural_gradient
from riemann_ng.networks import Empirical, Exact, MonteCarlo, Network
from riemann_ng.networks.observation import LayerObservation
from riemann_ng.samples import Measure, Sample
from riemann_ng.spaces import AffineSpace, Space
from riemann_ng.testing.kinds_of_chains import dense_series


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def off(a, b):
    return float((a - b).norm() / b.norm())


class Unrolled(nn.Module):
    """h ← tanh(W (x_t, h) + b), one layer used at each step, and an output at the last."""

    def __init__(self, inputs=2, hidden=3, outputs=2):
        super().__init__()
        self.cell, self.out, self.hidden = nn.Linear(inputs + hidden, hidden), nn.Linear(hidden, outputs), hidden

    def forward(self, x):
        h = x.new_zeros(len(x), self.hidden)
        for t in range(x.shape[1]):
            h = torch.tanh(self.cell(torch.cat([x[:, t], h], 1)))
        return self.out(h)


def problem(n=200, T=6):
    model, x = Unrolled(), torch.randn(n, T, 2).cumsum(1) / T**0.5
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model, x, Network.from_torch(model, Bernoulli(), x)


def moments_by_hand(layer, T):
    """Per-step moments, and moments one step apart: over T and over T - 1 terms."""
    a, g = layer.inputs.dense()[:, 0], layer.cotangents.dense()
    n = len(a)
    A0 = torch.einsum("nti,ntj->ij", a, a) / (n * T)
    G0 = torch.einsum("nkti,nktj->ij", g, g) / (n * T)
    A1 = torch.einsum("nti,ntj->ij", a[:, 1:], a[:, :-1]) / (n * (T - 1))
    G1 = torch.einsum("nkti,nktj->ij", g[:, :, 1:], g[:, :, :-1]) / (n * (T - 1))
    return [G0, A0], [G1, A1]


def clipped(moments, lags):
    """What the guards make of the lags, for a dense oracle: singular values brought to at most one."""
    out = []
    for M, P in zip(moments, lags, strict=True):
        L = torch.linalg.cholesky(M)
        U, s, Vt = torch.linalg.svd(torch.linalg.solve(L, torch.linalg.solve(L, P).mT).mT)
        out.append(L @ U @ torch.diag(s.clamp(max=(1 - MARGIN) ** 0.5)) @ Vt @ L.mT)
    return out


@pytest.mark.parametrize("structure", ["symmetrized", "limit"])
def test_it_is_the_sum_over_all_pairs_of_steps(structure):
    _, x, network = problem()
    observation = network.observe(x)
    g = RecurrentKFAC(structure).at(observation).parts["cell"]
    moments, lags = moments_by_hand(observation["cell"], 6)
    assert isinstance(g, Series) and g.lengths == {6: 1.0}
    assert off(g.lags[0], lags[0]) < 1e-12 and off(g.lags[1], lags[1]) < 1e-12
    used = clipped(moments, lags) if structure == "limit" else lags
    F = dense_series(moments, used, {6: 1.0}, structure)
    assert off(g.matrix(), F) < (1e-6 if structure == "limit" else 1e-5)  # a correlation of one is kept below it
    xi = Covector(g.space, torch.randn(g.space.shape))
    assert torch.allclose(g.flat(g.sharp(xi)).data, xi.data, atol=1e-8)
    assert off(g.sharp(xi).components, torch.linalg.solve(g.matrix(), xi.components)) < 1e-6
    assert torch.equal(
        RecurrentKFAC(structure).at(observation).parts["out"].matrix(), KFAC().at(observation).parts["out"].matrix()
    )


def test_independent_steps_are_kfac():
    _, x, network = problem()
    observation = network.observe(x)
    assert torch.equal(RecurrentKFAC("independent").at(observation).matrix(), KFAC().at(observation).matrix())
    layer = observation["cell"]
    g = series_of(layer, "symmetrized")
    assert torch.allclose(6 * g.product.matrix(), KFAC().at_layer(layer).matrix())  # G is the sum over steps


def gaussian_series(n, T, PA, PG, seed=0):
    """Stationary series a_{t+1} = PA a_t + noise, unit variance, and cotangents alike, independent of them."""
    draw = torch.Generator().manual_seed(seed)

    def run(P):
        root = torch.linalg.cholesky(torch.eye(len(P)) - P @ P.mT)
        state, out = torch.randn(n, len(P), generator=draw), []
        for _ in range(T):
            out.append(state)
            state = state @ P.mT + torch.randn(n, len(P), generator=draw) @ root.mT
        return torch.stack(out, 1)

    return run(PA), run(PG)


@pytest.mark.parametrize("structure", ["symmetrized", "limit"])
def test_it_is_the_fisher_of_a_linear_gaussian_chain(structure):
    """Samples of one: its per-example gradients Σ g ⊗ a have this second moment, and K-FAC's is far from it."""
    n, T = 40_000, 8 if structure == "symmetrized" else 60
    PA = torch.tensor([[0.5, 0.2], [0.2, -0.3]])
    PG = torch.diag(torch.tensor([0.7, 0.4, 0.1]))
    if structure == "limit":
        PA = torch.tensor([[0.5, 0.4], [-0.4, 0.3]])
        n = 8_000
    a, g = gaussian_series(n, T, PA, PG)
    A, S = Space("A", 2), AffineSpace("S", 3).translations
    layer = LayerObservation(
        "fc", A, S, Sample(A, a[:, None], Measure.probability()), Sample(S.dual, g[:, None], Measure.exact())
    )
    D = torch.einsum("nto,nti->noi", g, a).flatten(1)
    F = D.mT @ D / n
    near = off(series_of(layer, structure).matrix(), F)
    far = off(KFAC().at_layer(layer).matrix(), F)
    assert near < 0.06 < 0.25 < far


def test_for_one_step_and_for_independent_steps_they_are_all_the_same():
    a, g = torch.randn(4000, 1, 5, 2), torch.randn(4000, 1, 5, 3)
    A, S = Space("A", 2), AffineSpace("S", 3).translations
    layer = LayerObservation("fc", A, S, Sample(A, a), Sample(S.dual, g, Measure.exact()))
    for structure in ("symmetrized", "limit"):
        assert off(series_of(layer, structure).matrix(), KFAC().at_layer(layer).matrix()) < 0.03
    one = LayerObservation("fc", A, S, Sample(A, a[:, :, :1]), Sample(S.dual, g[:, :, :1], Measure.exact()))
    assert torch.equal(RecurrentKFAC().at_layer(one).matrix(), KFAC().at_layer(one).matrix())


@pytest.mark.parametrize("length", [1, 2, 7, 40])
def test_the_closed_form_near_one_and_away_from_it(length):
    x = torch.cat([torch.linspace(-1 + 1e-6, 1 - 1e-6, 101), 1 - torch.logspace(-12, -1, 40)])
    expected = sum((length - abs(d)) * x ** abs(d) for d in range(1 - length, length))
    assert torch.allclose(steps(x, length), expected, rtol=1e-9)
    assert torch.allclose(steps(torch.ones(1), length), torch.tensor([float(length**2)]))


def test_an_estimate_above_one_is_brought_back():
    """Few samples put lags above one: without the guard the form is indefinite."""
    found = 0
    for seed in range(20):
        a, g = gaussian_series(4, 5, 0.95 * torch.eye(2), 0.95 * torch.eye(2), seed)
        A, S = Space("A", 2), AffineSpace("S", 2).translations
        layer = LayerObservation(
            "fc", A, S, Sample(A, a[:, None], Measure.probability()), Sample(S.dual, g[:, None], Measure.exact())
        )
        form = series_of(layer, "limit")
        L = torch.linalg.cholesky(form.product.factors[1].matrix())
        white = torch.linalg.solve(L, torch.linalg.solve(L, form.lags[1]).mT).mT
        found += float(torch.linalg.matrix_norm(white, 2)) > 1
        for structure in ("symmetrized", "limit"):
            values = torch.linalg.eigvalsh(series_of(layer, structure).dual.matrix())
            assert float(values.min()) > -1e-12 * float(values.max())
    assert found > 3


def test_steps_of_different_number():
    """Padding at the end: moments of the steps that are there, and s(x) averaged over the lengths."""
    n, T = 300, 5
    there = torch.arange(T) < torch.randint(1, T + 1, (n, 1))
    a, g = gaussian_series(n, T, 0.5 * torch.eye(2), 0.6 * torch.eye(3))
    A, S = Space("A", 2), AffineSpace("S", 3).translations
    a[~there], g[~there] = float("nan"), float("inf")
    layer = LayerObservation(
        "fc", A, S, Sample(A, a[:, None], Measure.probability(there)), Sample(S.dual, g[:, None], Measure.exact(there))
    )
    form = series_of(layer, "symmetrized")
    lengths = {int(k): float((there.sum(1) == k).double().mean()) for k in there.sum(1).unique()}
    assert form.lengths == pytest.approx(lengths)
    pairs, total = [(i, t) for i in range(n) for t in range(T - 1) if there[i, t + 1]], int(there.sum())
    moments = [sum(torch.outer(x[i, t], x[i, t]) for i in range(n) for t in range(T) if there[i, t]) / total
               for x in (g, a)]  # fmt: skip
    lags = [sum(torch.outer(x[i, t + 1], x[i, t]) for i, t in pairs) / len(pairs) for x in (g, a)]
    assert off(form.matrix(), dense_series(moments, lags, lengths, "symmetrized")) < 1e-9
    holes = there.clone()
    holes[:, 1], holes[:, 2] = False, True
    broken = LayerObservation("fc", A, S, Sample(A, torch.zeros(n, 1, T, 2), Measure.probability(holes)), None)
    with pytest.raises(InvalidSetting, match="in 'fc' a step comes after one that is masked"):
        series_of(broken, "limit")


# --- memory, damping, settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", ["symmetrized", "limit"])
def test_damping_goes_to_the_moments_by_the_number_of_steps(structure):
    _, x, network = problem()
    observation = network.observe(x)
    metric = RecurrentKFAC(structure).damp_factors(0.6, EuclideanMetric())
    g = RecurrentKFAC(structure).at(observation).parts["cell"]
    damped = metric.at(observation).parts["cell"]

    expected = damp_factors(g.product, 0.1, Euclidean(g.space))
    assert isinstance(damped, Series) and torch.allclose(damped.product.matrix(), expected.matrix())
    xi = Covector(g.space, torch.randn(g.space.shape))
    assert torch.allclose(damped.flat(damped.sharp(xi)).data, xi.data, atol=1e-9)


def test_averages_states_and_estimators():
    _, x, network = problem()
    y = torch.randint(0, 2, (200, 2)).double()
    for estimator in (Exact(), MonteCarlo(2), Empirical(y)):
        average = MetricAverage(RecurrentKFAC("limit"), 0.5)
        for part, target in zip(x.chunk(2), y.chunk(2), strict=True):
            chosen = Empirical(target) if isinstance(estimator, Empirical) else estimator
            g = average.update(network.observe(part, chosen))
        assert torch.allclose(InnerProduct.from_state(g.space, g.state()).matrix(), g.matrix())
    whole = RecurrentKFAC().at(network.observe(x)).parts["cell"]
    halves = [RecurrentKFAC().at(network.observe(part)).parts["cell"] for part in x.chunk(2)]
    assert off(halves[0].blend(halves[1], 0.5).matrix(), whole.matrix()) < 1e-10
    with pytest.raises(NotClosed):
        whole.blend(RecurrentKFAC("limit").at(network.observe(x)).parts["cell"], 0.5)


def test_it_models_the_loss_better_than_independent_steps():
    _, x, network = problem(400, 8)
    y = torch.randint(0, 2, (400, 2)).double()
    df = network.differential(x, y)
    F = Fisher(structure="dense").at(network.observe(x)).matrix() + 1e-3 * torch.eye(df.data.numel())

    def promised(structure):
        v = natural_gradient(network, RecurrentKFAC(structure).damp_factors(1e-3, EuclideanMetric()), x, y).data
        return float((df.data @ v) ** 2 / (v @ F @ v))

    assert promised("symmetrized") > promised("independent")


def test_layers_may_be_named_and_others_left_alone():
    _, x, network = problem()
    observation = network.observe(x)
    assert isinstance(RecurrentKFAC().at(observation).parts["cell"], Series)
    assert isinstance(RecurrentKFAC(layers=("out",)).at(observation).parts["cell"], Kronecker)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RecurrentKFAC("markov"), "structure='markov', expected one of 'independent', 'symmetrized', 'limit'"),
        (lambda: RecurrentKFAC(layers="cell"), "layers='cell', expected a tuple of the layers' paths"),
    ],
)
def test_settings(make, message):
    with pytest.raises(InvalidSetting, match=message):
        make()


def test_a_series_of_wrong_lags_is_refused():
    V, W = Space("V", 2), Space("W", 3)
    product = Gram(V, torch.eye(2)) * Gram(W, torch.eye(3))
    with pytest.raises(SpaceMismatch, match=r"with lags \[3, 3\] and \[3, 3\]. Expected a product of two factors"):
        Series(product, (torch.eye(3), torch.eye(3)), {2: 1.0})


# --- symmetry ---------------------------------------------------------------------------------------------------------


class Scanned(nn.Module):
    """A layer used at every step, on what came before through an opaque sum; all its frames may be moved."""

    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(torch.tanh(torch.tanh(self.into(x)).cumsum(1)).mean(1))


@pytest.mark.parametrize("structure", ["independent", "symmetrized", "limit"])
def test_steps_are_carried_along_by_every_frame(structure):
    model, x = Scanned(), torch.randn(150, 5, 3).cumsum(1) / 2
    y = torch.rand(150, 2)
    network = Network.from_torch(model, Gaussian(), x)
    metric = RecurrentKFAC(structure)
    here = metric.at(network.observe(x))
    for block in network.blocks.values():
        assert all(here.keeps(base, "affine") for base in block.space.bases)
    twin = twin_of(network, x, group="affine")
    step = natural_gradient(network, metric, x, y)
    there = natural_gradient(twin.network, metric, twin.inputs(x), y)
    assert off(there.data, twin.transport(step).data) < 1e-7
    damped = metric.damp_factors(0.1, EuclideanMetric())
    step = natural_gradient(network, damped, x, y)
    there = natural_gradient(twin.network, damped, twin.inputs(x), y)
    assert off(there.data, twin.transport(step).data) > 1e-2


@pytest.mark.parametrize("approximation", ["symmetrized", "limit"])
def test_a_moment_without_rank_is_a_degenerate_metric(approximation):
    """The lags are taken relative to the moments, so without them there is no form at all; damped there is one."""
    V, W = Space("V", 3), Space("W", 2)
    nothing, one = Gram(V, torch.zeros(3, 3), validate=False), Gram(W, torch.eye(2))
    form = Series(nothing * one, (torch.zeros(3, 3), torch.zeros(2, 2)), {3: 1.0}, approximation)
    covector = Covector(form.space, torch.ones(3, 2))
    with pytest.raises(DegenerateMetric, match=r"in Series: .* on V has rank 0 of 3, .*: damp_factors\(g, λ, h\)"):
        form.sharp(covector)
    damped = damp_factors(form, 0.1, Euclidean(form.space))
    assert bool(damped.sharp(covector).data.isfinite().all())
