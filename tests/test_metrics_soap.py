"""SOAP against another implementation and by hand; its memory, and when its basis is a choice."""

from types import SimpleNamespace

import pytest
import pytorch_optimizer
import torch
from adaptive_cases import EVERYTHING, ISOMETRIES, ROTATIONS, flat, kept_by, off, small
from networks_zoo import ZOO
from pytorch_optimizer.optimizer import soap as theirs
from torch import nn
from twin_cases import twin_of

from riemann_ng import explain_symmetry
from riemann_ng.elements import Covector
from riemann_ng.errors import InvalidSetting, NotClosed, ObservationMismatch, SpaceMismatch, UnsupportedLayer
from riemann_ng.inner_products import Gram, InnerProduct
from riemann_ng.likelihoods import Bernoulli, Categorical, Gaussian
from riemann_ng.metrics import EKFAC, KFAC, SOAP, EuclideanMetric, FixedMetric, MetricAverage, NamedFrame, Shampoo
from riemann_ng.metrics import soap as module
from riemann_ng.metrics.eigenbasis import KeptEigenbasis, eigenbasis, iterated
from riemann_ng.networks import Empirical, Exact, Network
from riemann_ng.optim import Constant, NaturalGradient, Schedule


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


# --- against pytorch_optimizer ----------------------------------------------------------------------------------------


class Wide(SimpleNamespace):
    """The module torch, in which float32 is float64: theirs casts its QR to float32."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def squared(z, y):
    return 0.5 * (z - y).square().sum(-1).mean()


def theirs_and_ours(monkeypatch, every, beta1, wide=True, steps=11, **options):
    """The largest distance between parameters on two trajectories.

    Square layers without biases, whose factors have full rank from the first gradient on. What differs otherwise:
    theirs takes biases as vectors that are not turned, and corrects the root for its start before ε is added to it,
    which shows where ε is not zero. The first gradient moves nothing; momentum is of gradients, and the loop's.
    """
    network, *_ = small((4, 4, 4), biases=False)
    model, here = small((4, 4, 4), biases=False)[0].module, network.module
    network = Network.from_torch(here, Gaussian(), torch.randn(3, 4))
    x, y = torch.randn(steps + 1, 30, 4), torch.randn(steps + 1, 30, 4)
    if wide:
        monkeypatch.setattr(theirs, "torch", Wide())
    optimizer = pytorch_optimizer.SOAP(
        model.parameters(), lr=0.01, betas=(beta1, 0.95), weight_decay=0.0, precondition_frequency=every, eps=0.0
    )
    average = MetricAverage(SOAP(0.0, every=every, **options), 0.95)
    momentum, worst = None, 0.0
    for t in range(steps + 1):
        optimizer.zero_grad()
        squared(model(x[t]), y[t]).backward()
        optimizer.step()
        g, df = average.update(network.observe(x[t], Empirical(y[t]))), network.differential(x[t], y[t])
        if t:
            momentum = (1 - beta1) * df if momentum is None else beta1 * momentum + (1 - beta1) * df
            network.move_(g.sharp((1 / (1 - beta1**t)) * momentum), step=-0.01)
        worst = max(worst, float((flat(model) - flat(here)).abs().max()))
    return worst


@pytest.mark.parametrize("every", [1, 3, 100])
@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_step_by_step_it_is_that_of_another_library(monkeypatch, every, beta1):
    assert theirs_and_ours(monkeypatch, every, beta1) < 1e-13


def test_what_makes_it_another_method(monkeypatch):
    """As theirs is shipped the basis has the accuracy of float32; other conventions are seen at once."""
    assert 1e-10 < theirs_and_ours(monkeypatch, 3, 0.9, wide=False) < 1e-5
    for options in ({"refresh": "eigen"}, {"first": "all"}, {"of": "examples"}, {"power": 1.0}):
        assert theirs_and_ours(monkeypatch, 3, 0.9, **options) > 1e-4, options


# --- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["basis", "all"])
@pytest.mark.parametrize("refresh", ["power", "eigen"])
def test_averages_by_hand(first, refresh):
    """Factors, basis and diagonal by loops over steps, corrected for the start; a bias inside."""
    network, x, y = small((4, 5, 5), n=160)
    metric, beta, every = SOAP(0.01, every=2, refresh=refresh, first=first, of="examples"), 0.8, 2
    average, memory = MetricAverage(metric, beta), {}
    for t in range(6):
        part = slice(26 * t, 26 * (t + 1))
        seen, df = network.observe(x[part], Empirical(y[part])), network.differential(x[part], y[part])
        g = average.update(seen)
        for path, layer in seen.layers.items():
            D = layer.gradients.dense().reshape(26, *layer.space.shape)
            m = memory.setdefault(path, {"L": 0, "R": 0, "v": 0, "steps": 0})
            counts = t > 0 or first == "all"
            if t == 0:
                L, R = (D @ D.mT).mean(0), (D.mT @ D).mean(0)
                m["P"], m["Q"] = (torch.linalg.eigh(M)[1].flip(-1) for M in (L, R))
            elif m["steps"] and m["steps"] % every == 0:
                for k, M in (("P", m["L"]), ("Q", m["R"])):
                    if refresh == "eigen":
                        m[k] = torch.linalg.eigh(M)[1].flip(-1)
                    else:
                        order = (m[k].mT @ M @ m[k]).diagonal().argsort(descending=True)
                        m["v"] = m["v"][order] if k == "P" else m["v"][:, order]
                        m[k] = torch.linalg.qr(M @ m[k][:, order])[0]
            m["L"] = beta * m["L"] + (1 - beta) * (D @ D.mT).mean(0)
            m["R"] = beta * m["R"] + (1 - beta) * (D.mT @ D).mean(0)
            if counts:
                m["steps"] += 1
                m["v"] = beta * m["v"] + (1 - beta) * (m["P"].mT @ D @ m["Q"]).square().mean(0)
                v = m["v"] / (1 - beta ** m["steps"])
            else:
                v = (m["P"].mT @ D @ m["Q"]).square().mean(0)
            expected = m["P"] @ ((m["P"].mT @ df[path] @ m["Q"]) / (v.sqrt() + 0.01)) @ m["Q"].mT
            assert off(g.sharp(df)[path], expected) < 1e-9, (t, path)


def test_the_first_step_is_the_matrix_sign_as_shampoos_is():
    network, x, y = small()
    seen, df = network.observe(x, Empirical(y)), network.differential(x, y)
    v, w = (m.at(seen).sharp(df) for m in (SOAP(1e-8), Shampoo(1e-18)))
    for path in df.blocks:
        U, s, Vt = torch.linalg.svd(df[path], full_matrices=False)
        assert s.min() > 5e-4  # ε and the rounding of eigenvectors, over ε, are small beside it
        assert off(v[path], U @ Vt) < 1e-4 and off(w[path], U @ Vt) < 1e-4


def test_on_the_same_factors_without_the_root_it_is_ekfac():
    """Of one linear layer with one output all is the same: EKFAC's spectrum is that of gradients, in another frame."""
    network, x, y = small((3, 1), n=30)
    seen = network.observe(x, Empirical(y))
    g, h = SOAP(0.0, of="examples", power=1.0).at(seen), EKFAC().at(seen)
    D = seen["0"].gradients.dense().reshape(30, -1)
    P = torch.linalg.eigh(D.mT @ D)[1]
    assert off(g.matrix(), P @ torch.diag((D @ P).square().mean(0)) @ P.mT) < 1e-11
    assert off(g.matrix(), D.mT @ D / 30) < 1e-11 and off(g.matrix(), h.matrix()) > 1e-3


@pytest.mark.parametrize("name", ["mlp", "convolutional", "conv1d", "tokens", "recurrent"])
@pytest.mark.parametrize("of", ["batch", "examples"])
def test_every_sort_of_layer(name, of):
    """Orthonormal axes, members of a family apart, and a descent direction, over a few observations."""
    make, batch = ZOO[name]
    model, xs = make(), [batch(6) for _ in range(4)]
    z = model(xs[0])
    network = Network.from_torch(model, Categorical(), xs[0])
    average = MetricAverage(SOAP(0.1, every=2, of=of), 0.9)
    for x in xs:
        y = torch.randint(0, z.shape[-1], z.shape[:-1])
        g, df = average.update(network.observe(x, Empirical(y))), network.differential(x, y)
    assert float(df(g.sharp(df))) > 0
    for path, part in g.parts.items():
        xi = Covector(part.space, df[path])
        assert torch.allclose(part.flat(part.sharp(xi)).data, xi.data, atol=1e-10)
        for P in part.turns:
            assert torch.allclose(P.mT @ P, torch.eye(P.shape[-1]).expand(P.shape), atol=1e-12)


# --- the optimizer, state ---------------------------------------------------------------------------------------------


def trained(steps, stop=None, **options):
    """Parameters after some steps, stored and loaded once in between if `stop` says so."""

    def fresh():
        network, x, y = small((4, 5, 3))
        torch.manual_seed(5)
        return network.module, x, y, NaturalGradient(
            network.module, Bernoulli(), metric=SOAP(1e-3, every=2), lr=0.02, momentum=0.0, damping=None, decay=0.9,
            schedule=Schedule(statistics=1, factorize=1), step_size=Constant(), **options,
        )  # fmt: skip

    model, x, y, optimizer = fresh()
    for t in range(steps):
        if t == stop:
            weights, state = {k: v.clone() for k, v in model.state_dict().items()}, optimizer.state_dict()
            model, x, y, optimizer = fresh()
            model.load_state_dict(weights)
            optimizer.load_state_dict(state)
        part = slice(20 * (t % 6), 20 * (t % 6 + 1))
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(model(x[part]), y[part], reduction="none").sum(
            -1
        ).mean().backward()
        optimizer.step()
    return flat(model)


def test_in_the_optimizer_it_resumes_bit_for_bit():
    assert torch.equal(trained(9), trained(9, stop=5))
    assert not torch.equal(trained(9), trained(8))


def test_forms_keep_their_state_and_blend_only_with_what_follows_them():
    network, x, y = small()
    metric, seen = SOAP(0.01), network.observe(x[:60], Empirical(y[:60]))
    later = network.observe(x[60:], Empirical(y[60:]))
    first = metric.at(seen).parts["0"]
    assert isinstance(first, KeptEigenbasis)
    again = InnerProduct.from_state(first.space, first.state())
    assert torch.equal(again.matrix(), first.matrix()) and again.symmetry == first.symmetry
    assert again.age == first.age == 0 and again.mass == first.mass == 0.0
    with pytest.raises(NotClosed, match="have no common kind"):
        first.blend(metric.at(later).parts["0"], 0.5)
    with pytest.raises(SpaceMismatch, match=r"SOAP.refreshed: expected an earlier value of this metric on"):
        metric.refreshed(KFAC().at(seen), later)
    second = metric.refreshed(metric.at(seen), later)
    assert second.parts["0"].came_from is not None


# --- symmetry ---------------------------------------------------------------------------------------------------------


def test_rotations_are_kept_while_the_frame_is_a_function_of_data():
    problem = small()
    frame = NamedFrame.of(KFAC(), problem[0].observe(problem[1][:50]), "K-FAC at the start")
    for of in ("batch", "examples"):
        assert kept_by(SOAP(of=of), problem) == {"activations": ROTATIONS, "pre-activations": ISOMETRIES}
    kept = kept_by(SOAP(of="examples", frame=frame), problem)
    assert kept == {"activations": EVERYTHING, "pre-activations": EVERYTHING}


def steps_in_twins(widths, of, group="orthogonal", on=("inputs", "activations", "pre-activations"), steps=5):
    """How far a trajectory in a twin is from the one here, and the symmetry that the last value claims here."""
    network, x, y = small(widths, n=200)
    twin = twin_of(network, x, on=on, group=group)
    outputs = []
    for net, batch, back in ((network, x, lambda z: z), (twin.network, twin.inputs(x), twin.to_original)):
        average = MetricAverage(SOAP(1e-3, every=2, refresh="eigen", of=of), 0.9)
        for t in range(steps):
            part = slice(40 * t, 40 * (t + 1))
            g = average.update(net.observe(batch[part], Empirical(y[part])))
            net.move_(g.sharp(net.differential(batch[part], y[part])), step=-0.05)
        outputs.append(back(net.outputs(batch)))
        if net is network:
            symmetry = g.symmetry
    return off(outputs[1], outputs[0]), symmetry, network


@pytest.mark.parametrize(
    ("widths", "of", "kept"),
    [
        ((4, 4, 4), "examples", True),  # spectra apart from the first basis on
        ((6, 3, 3), "examples", True),
        ((6, 3, 3), "batch", False),  # D is 3 × 7: of Dᵀ D four eigenvalues vanish, and later gradients lie there
    ],
)
def test_rotations_are_lost_where_eigenvalues_coincide_and_the_symmetry_says_so(widths, of, kept):
    error, symmetry, network = steps_in_twins(widths, of)
    bases = {base for path, V in network.tangent_space.parts for base in V.bases if path == "0"}
    assert all(symmetry.keeps(base, "orthogonal") for base in bases) is kept
    assert (error < 1e-9) if kept else (error > 1e-2)
    first = SOAP(of=of).at(network.observe(*[torch.randn(40, widths[0])], Empirical(torch.ones(40, widths[-1]))))
    assert all(first.symmetry.keeps(base, "orthogonal") for base in bases)  # of one batch alone nothing shows


def test_what_is_to_blame_is_named_and_rounding_does_not_choose():
    """Translations of 𝒮 are kept all the same: the basis of a kernel is that next to the coordinates."""
    error, symmetry, network = steps_in_twins((6, 3, 3), "batch", "translations", ("pre-activations",))
    assert error < 1e-9
    A, S = f"{network.name}/0.A", f"{network.name}/0.S"
    assert symmetry.keeps(S, "isometries") and not symmetry.keeps(A, "signed permutations")
    blame = " ".join(map(str, symmetry.blame(A, "orthogonal")))
    assert "the axes next to the coordinates' where eigenvalues of eigenbasis of 0 coincide" in blame


def test_a_tied_basis_is_a_basis_of_eigenvectors_next_to_the_axes():
    M = torch.diag(torch.tensor([0.0, 3.0, 0.0, 1.0, 1.0]))
    vectors, ties = eigenbasis(M)
    assert torch.equal(vectors.abs(), torch.eye(5)[:, [1, 3, 4, 0, 2]])
    assert ties.tolist() == [0, 1, 1, 2, 2]
    Q = torch.linalg.qr(torch.randn(5, 5))[0]
    N = Q @ M @ Q.mT
    (vectors, _), shaken = eigenbasis(N), eigenbasis(N + 1e-15 * torch.randn(5, 5))[0]
    assert torch.allclose(vectors.mT @ N @ vectors, torch.diag(torch.tensor([3.0, 1.0, 1.0, 0.0, 0.0])), atol=1e-13)
    overlap = (vectors.mT @ shaken).abs()
    assert torch.allclose(overlap, torch.eye(5), atol=1e-6)
    turned, order, _ = iterated(N, vectors[:, [4, 3, 2, 1, 0]], ties)
    assert order.tolist()[0] == 4 and torch.allclose(turned.mT @ turned, torch.eye(5))


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SOAP(every=0), "SOAP: every=0, expected a number of observations"),
        (lambda: SOAP(refresh="svd"), "refresh='svd', expected 'power' or 'eigen'"),
        (lambda: SOAP(first="none"), "first='none', expected 'basis' or 'all'"),
        (lambda: SOAP(-1.0), "SOAP: epsilon=-1.0"),
        (lambda: SOAP(of="all"), "of='all', expected 'batch' or 'examples'"),
    ],
)
def test_settings(make, said):
    with pytest.raises(InvalidSetting) as caught:
        make()
    assert said in str(caught.value)


def test_what_it_cannot_be_made_of(monkeypatch):
    network, x, y = small()
    with pytest.raises(ObservationMismatch, match="are made of the gradients of the data's own labels"):
        SOAP().at(network.observe(x, Exact()))
    whole = {path: Gram(V, torch.eye(V.dim), name="one") for path, V in network.tangent_space.parts}
    from_whole = NamedFrame.of(FixedMetric(whole, "one"), network.observe(x), "one matrix for each layer")
    with pytest.raises(InvalidSetting, match=r"has no axes along .* and the factors are of these"):
        SOAP(frame=from_whole).at(network.observe(x, Empirical(y)))
    monkeypatch.setattr(module, "LARGEST", 4)
    with pytest.raises(
        UnsupportedLayer, match=r"'0' has a side of 5 numbers, and its factor would be a matrix \[5, 5\]"
    ):
        SOAP().at(network.observe(x, Empirical(y)))


def test_it_is_a_value():
    assert repr(SOAP(every=5, refresh="eigen")) == "SOAP(every=5, refresh='eigen')" and SOAP() == SOAP()
    network, x, y = small()
    g = (SOAP(0.01) + 0.1 * EuclideanMetric()).at(network.observe(x, Empirical(y)))
    df = network.differential(x, y)
    assert torch.allclose(g.sharp(df).components, torch.linalg.solve(g.matrix(), df.components), atol=1e-10)
    assert "Euclidean(" in explain_symmetry(SOAP().at(network.observe(x, Empirical(y))))
