"""KL-Shampoo: the equations of its factors, against a minimization of the divergence that they are made to minimize."""

import pytest
import torch
from adaptive_cases import EVERYTHING, ISOMETRIES, ROTATIONS, kept_by, off, small
from networks_zoo import ZOO
from test_metrics_structures import moved_layer
from twin_cases import twin_of

from riemann_ng.elements import Covector
from riemann_ng.errors import DegenerateMetric, InvalidSetting, ObservationMismatch, SpaceMismatch
from riemann_ng.inner_products import Kronecker, Power
from riemann_ng.likelihoods import Categorical
from riemann_ng.metrics import KFAC, FixedMetric, KLShampoo, MetricAverage
from riemann_ng.natural_gradient import natural_gradient
from riemann_ng.networks import Empirical, Exact, InputsOnly, Network
from riemann_ng.spaces import Family
from riemann_ng.testing.frames import HERE, Expression
from riemann_ng.testing.fuzz import claimed, measure


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def factors_of(part):
    assert isinstance(part, Power) and isinstance(part.of, Kronecker)
    return [f.matrix() for f in part.of.factors]


def gradients_of(layer):
    """(examples, dim S, dim Â) and the second moment of them as vectors."""
    D = layer.gradients.dense()
    D = D.reshape(-1, *layer.space.shape)
    flat = D.flatten(1)
    return D, flat.mT @ flat / len(D)


def divergence(C, L, R):
    """KL(N(0, C) | N(0, L ⊗ R)), up to what does not depend on L and R."""
    m, n = len(L), len(R)
    inner = torch.linalg.solve(torch.kron(L, R), C).diagonal().sum()
    return 0.5 * (inner + n * torch.logdet(L) + m * torch.logdet(R))


def minimized(C, m, n):
    """The product that LBFGS finds on the roots of its factors, and the divergence there."""
    scale = C.diagonal().mean()
    roots = [torch.eye(d, requires_grad=True) for d in (m, n)]
    optimizer = torch.optim.LBFGS(
        roots, lr=1, max_iter=3000, tolerance_grad=1e-13, tolerance_change=0.0, history_size=50,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        optimizer.zero_grad()
        loss = divergence(C / scale, *(r @ r.mT for r in roots))
        loss.backward()
        return loss

    for _ in range(5):
        value = optimizer.step(closure)
    L, R = (r.detach() @ r.detach().mT for r in roots)
    return torch.kron(L, R) * scale, float(value.detach() + 0.5 * len(C) * scale.log())


# --- what it is -------------------------------------------------------------------------------------------------------


def test_each_factor_is_the_moment_measured_in_the_other():
    network, x, y = small()
    seen = network.observe(x, Empirical(y))
    for path, part in KLShampoo(power=1.0).at(seen).parts.items():
        (L, R), (D, _) = factors_of(part), gradients_of(seen[path])
        assert off(L, (D @ torch.linalg.inv(R) @ D.mT).mean(0) / D.shape[2]) < 1e-11
        assert off(R, (D.mT @ torch.linalg.inv(L) @ D).mean(0) / D.shape[1]) < 1e-11
        assert off(part.matrix(), torch.kron(L, R)) < 1e-13


def test_it_minimizes_the_divergence_of_gaussians():
    """Found again by a quasi-Newton method on the roots of both factors, which knows nothing of the equations."""
    network, x, y = small((3, 3, 2), n=100)
    seen = network.observe(x, Empirical(y))
    parts = KLShampoo(power=1.0).at(seen).parts
    for path, part in parts.items():
        (L, R), (_, C) = factors_of(part), gradients_of(seen[path])
        found, reached = minimized(C, len(L), len(R))
        assert off(found, torch.kron(L, R)) < 1e-5
        assert float(divergence(C, L, R)) <= reached + 1e-9
        # other products are farther: K-FAC's, Shampoo's factors of the same moment, and small changes
        D, least = gradients_of(seen[path])[0], divergence(C, L, R)
        shampoo = (D @ D.mT).mean(0), (D.mT @ D).mean(0) / (D.square().sum() / len(D))
        for other in (shampoo, tuple(factor.matrix() for factor in KFAC().at(seen).parts[path].factors)):
            assert float(divergence(C, *other) - least) > 1e-2
        for _ in range(5):
            E = torch.randn_like(L)
            assert float(divergence(C, L + 1e-3 * L.norm() * (E + E.mT) / 10, R)) > float(least)


def test_where_the_moment_is_a_product_it_is_that():
    """A Gaussian sample of a product whose moment is one to rounding: whitened and coloured again."""
    layer = moved_layer(HERE, 1)
    L, R = (M @ M.mT + 0.1 * torch.eye(len(M)) for M in (torch.randn(4, 4), torch.randn(4, 4)))
    metric = KLShampoo(power=1.0)
    Z = torch.linalg.qr(torch.randn(60, 16))[0] * 60**0.5  # E[z zᵀ] = 1
    D = torch.linalg.cholesky(L) @ Z.reshape(60, 4, 4) @ torch.linalg.cholesky(R).mT / 60**0.5
    left, right = metric._fitted(layer, D, torch.eye(4))
    assert off(torch.kron(left, right), torch.kron(L, R)) < 1e-11


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_rounds_are_counted_from_one(rounds):
    network, x, y = small()
    seen = network.observe(x, Empirical(y))
    for path, part in KLShampoo(power=1.0, rounds=rounds).at(seen).parts.items():
        D, _ = gradients_of(seen[path])
        R = torch.eye(D.shape[2])
        for _ in range(rounds):
            L = (D @ torch.linalg.inv(R) @ D.mT).mean(0) / D.shape[2]
            R = (D.mT @ torch.linalg.inv(L) @ D).mean(0) / D.shape[1]
        assert off(part.matrix(), torch.kron(L, R)) < 1e-10


def test_the_root_is_one_of_each_factor():
    network, x, y = small()
    seen, df = network.observe(x, Empirical(y)), network.differential(x, y)
    for epsilon in (0.0, 0.01):
        for path, part in KLShampoo(epsilon).at(seen).parts.items():
            L, R = (f + epsilon * torch.eye(len(f)) for f in factors_of(part))
            roots = []
            for M in (L, R):
                values, vectors = torch.linalg.eigh(M)
                roots.append(vectors @ torch.diag(values**-0.5) @ vectors.mT)
            xi = Covector(part.space, df[path])
            assert off(part.sharp(xi).data, roots[0] @ df[path] @ roots[1]) < 1e-9
            if epsilon:  # ε is added to two that have one mean eigenvalue, and the product is the undamped one
                plain = factors_of(KLShampoo().at(seen).parts[path])
                A, B = factors_of(part)
                assert off(torch.kron(A, B), torch.kron(*plain)) < 1e-11
                assert torch.isclose(A.diagonal().mean(), B.diagonal().mean())


def test_the_average_of_batches_by_hand():
    """S_L ← β S_L + (1 - β) D (S_R + ε)⁻¹ Dᵀ / dim Â, and so the other; corrected for the start."""
    network, x, y = small()
    beta, e = 0.8, 0.05
    average, kept = MetricAverage(KLShampoo(e, "batch"), beta), {}
    for t in range(4):
        part = slice(30 * t, 30 * (t + 1))
        seen, df = network.observe(x[part], Empirical(y[part])), network.differential(x[part], y[part])
        g = average.update(seen)
        for path in seen.layers:
            D = df[path]
            m, n = D.shape
            L, R = kept.get(path, (torch.eye(m) * (1 - e), torch.eye(n) * (1 - e)))
            new = (
                D @ torch.linalg.inv(R + e * torch.eye(n)) @ D.mT / n,
                D.mT @ torch.linalg.inv(L + e * torch.eye(m)) @ D / m,
            )
            if t == 0:  # from ones, which ε is added to as well
                new = new[0] / (1 + e), new[1] / (1 + e)
            w = (1 - beta) / (1 - beta ** (t + 1))
            kept[path] = new if t == 0 else tuple((1 - w) * a + w * b for a, b in zip((L, R), new, strict=True))
            for mine, theirs in zip(factors_of(g.parts[path]), kept[path], strict=True):
                assert off(mine, theirs) < 1e-10, (t, path)


def test_an_average_of_one_moment_stays_where_it_is():
    network, x, y = small()
    average = MetricAverage(KLShampoo(power=1.0), 0.9)
    seen = network.observe(x, Empirical(y))
    first = average.update(seen)
    for _ in range(3):
        g = average.update(seen)
    assert off(g.matrix(), first.matrix()) < 1e-11


def test_of_the_models_own_labels_it_is_a_product_for_the_fisher():
    network, x, y = small()
    metric = KLShampoo(power=1.0, observed=Exact())
    seen = network.observe(x, metric.estimator(y))
    for path, part in metric.at(seen).parts.items():
        C = seen[path].gradients.moment()
        L, R = factors_of(part)
        kfac = [f.matrix() for f in KFAC().at(seen).parts[path].factors]
        assert float(divergence(C, L, R)) < float(divergence(C, *kfac)) - 1e-4
    assert KLShampoo().estimator(y) == Empirical(y)


@pytest.mark.parametrize("name", ["mlp", "convolutional", "conv1d", "tokens", "recurrent"])
def test_every_sort_of_layer(name):
    """Members of a family by themselves; kernels, as before a softmax, are kept out of the inverses."""
    make, batch = ZOO[name]
    model, x = make(), batch(40)
    z = model(x)
    y = torch.randint(0, z.shape[-1], z.shape[:-1])
    network = Network.from_torch(model, Categorical(), x)
    seen, df = network.observe(x, Empirical(y)), network.differential(x, y)
    g = KLShampoo(0.01, rounds=3).at(seen)
    assert float(df(g.sharp(df))) > 0
    for path, layer in seen.layers.items():
        if not (isinstance(layer.S, Family) and isinstance(layer.A, Family)):
            continue
        D = layer.gradients.dense().reshape(-1, *layer.space.shape)
        for member in range(layer.S.members):
            R = torch.eye(D.shape[-1])
            for _ in range(3):
                L = (D[:, member] @ torch.linalg.pinv(R) @ D[:, member].mT).mean(0) / D.shape[-1]
                R = (D[:, member].mT @ torch.linalg.pinv(L) @ D[:, member]).mean(0) / D.shape[-2]
            ours = [f.dense_blocks()[member] for f in g.parts[path].of.factors]
            assert off(torch.kron(*ours), torch.kron(L, R)) < 1e-9


# --- symmetry ---------------------------------------------------------------------------------------------------------


def test_the_solution_keeps_every_affine_frame_and_its_root_rotations():
    problem = small()
    everything = {"activations": EVERYTHING, "pre-activations": EVERYTHING}
    rotations = {"activations": ROTATIONS, "pre-activations": ISOMETRIES}
    assert kept_by(KLShampoo(power=1.0), problem) == everything
    assert kept_by(KLShampoo(), problem) == rotations
    once = kept_by(KLShampoo(power=1.0, rounds=1), problem)
    assert once == {"activations": ROTATIONS, "pre-activations": EVERYTHING}


def expression_of(metric, sites):
    def entries(g, frames):
        back = frames.on(g.space)
        return back.mT @ g.flat_components(back.mT.contiguous()).mT

    return Expression(lambda frames: metric.at_layer(moved_layer(frames, sites)), "form", entries, lambda g: g.symmetry)


CLAIMS = {
    "solution": KLShampoo(power=1.0), "root": KLShampoo(), "damped": KLShampoo(0.1, power=1.0),
    "damped root": KLShampoo(0.1), "one round": KLShampoo(power=1.0, rounds=1), "of the batch": KLShampoo(0.1, "batch"),
    "two rounds, damped": KLShampoo(0.1, rounds=2),
}  # fmt: skip


@pytest.mark.parametrize("sites", [1, 3])
@pytest.mark.parametrize("name", CLAIMS)
def test_claims_hold_and_are_exact(name, sites):
    expression = expression_of(CLAIMS[name], sites)
    claim, errors = expression.claim(), measure(expression, seed=1)
    assert errors is not None and len(errors) > 12
    for cell, error in errors.items():
        assert (error < 1e-8) if claimed(claim, cell) else (error > 1e-3), (name, cell, error)


def test_a_step_in_twins():
    network, x, y = small()
    twin = twin_of(network, x, on=("inputs", "activations", "pre-activations"), group="affine")
    errors = {}
    for metric in (KLShampoo(power=1.0), KLShampoo(), KLShampoo(power=1.0, rounds=1)):
        here = natural_gradient(network, metric, x, y)
        there = natural_gradient(twin.network, metric, twin.inputs(x), y)
        errors[metric] = off(there.data, twin.transport(here).data)
    assert errors[KLShampoo(power=1.0)] < 1e-8 and min(list(errors.values())[1:]) > 1e-2


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: KLShampoo(-1.0), "KLShampoo: epsilon=-1.0"),
        (lambda: KLShampoo(of="one"), "of='one', expected 'batch' or 'examples'"),
        (lambda: KLShampoo(power=0.0), "power=0.0, expected a power in (0, 1]"),
        (lambda: KLShampoo(rounds=0), "rounds=0, expected a number of rounds, or None"),
    ],
)
def test_settings(make, said):
    with pytest.raises(InvalidSetting) as caught:
        make()
    assert said in str(caught.value)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_too_few_examples_determine_no_product(n):
    """On the support of a few products the equations hold for a family of factors, and one would be an accident."""
    network, x, y = small((6, 4, 2), n=n)
    with pytest.raises(DegenerateMetric) as caught:
        KLShampoo(power=1.0).at(network.observe(x, Empirical(y)))
    assert f"{n} gradients of 4 × 7 numbers determine no product" in str(caught.value)
    assert "Take a larger batch, or go a number of rounds from the start: rounds=2" in str(caught.value)
    assert "layer '0'" in str(caught.value)
    assert KLShampoo(0.1, rounds=2).at(network.observe(x, Empirical(y))).space == network.tangent_space
    one = network.observe(x[:1], Empirical(y[:1]))
    for path, part in KLShampoo(power=1.0).at(one).parts.items():  # of one gradient ξ the product is ξ ⊗ ξ
        assert off(part.matrix(), gradients_of(one[path])[1]) < 1e-12


def test_a_kernel_counts_by_its_rank():
    """Before a softmax cotangents sum to zero: L has rank two of three, and the equations hold with that."""
    network, x, _ = small()
    y = torch.randint(0, 3, (120,))
    network = Network.from_torch(network.module, Categorical(), x)
    seen = network.observe(x, Empirical(y))
    part = KLShampoo(power=1.0).at(seen).parts["2"]
    (L, R), (D, _) = factors_of(part), gradients_of(seen["2"])
    assert torch.linalg.matrix_rank(L, rtol=1e-10) == 2
    assert off(L, (D @ torch.linalg.inv(R) @ D.mT).mean(0) / 6) < 1e-11
    assert off(R, (D.mT @ torch.linalg.pinv(L, rtol=1e-10) @ D).mean(0) / 2) < 1e-11
    everything = {"activations": EVERYTHING, "pre-activations": EVERYTHING}
    assert kept_by(KLShampoo(power=1.0), (network, x, y), Categorical()) == everything


def test_observations_that_do_not_fit():
    network, x, y = small()
    seen = network.observe(x, Empirical(y))
    with pytest.raises(ObservationMismatch, match="are made of the gradients of the data's own labels"):
        KLShampoo(0.1, "batch").at(network.observe(x))
    with pytest.raises(ObservationMismatch):
        KLShampoo().at(network.observe(x, InputsOnly()))
    with pytest.raises(SpaceMismatch, match=r"KLShampoo.refreshed: expected an earlier value of this metric on"):
        KLShampoo().refreshed(FixedMetric(KFAC().at(seen)).at(seen), seen)
    assert repr(KLShampoo(0.1, rounds=2)) == "KLShampoo(epsilon=0.1, rounds=2)"
