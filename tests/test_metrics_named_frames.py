"""Adam in frames that have a name: what it is, what it keeps, and what is refused."""

import pytest
import torch
from adaptive_cases import EVERYTHING, SIGNED, kept_by, off, small
from networks_zoo import ZOO
from torch import nn
from twin_cases import twin_of

from riemann_ng import explain_symmetry
from riemann_ng.elements import Covector
from riemann_ng.errors import InvalidSetting, SpaceMismatch
from riemann_ng.inner_products import Diagonal, Euclidean, Framed, Gram, InnerProduct, RotatedDiagonal
from riemann_ng.likelihoods import Categorical
from riemann_ng.metrics import (
    KFAC,
    SOAP,
    EuclideanMetric,
    Fisher,
    FixedMetric,
    GradientCovariance,
    MetricAverage,
    NamedFrame,
    RootMeanSquare,
)  # fmt: skip
from riemann_ng.natural_gradient import natural_gradient
from riemann_ng.networks import Empirical, Network
from riemann_ng.reparametrize import Frame, Frames, reparametrize
from riemann_ng.spaces import Family, Space


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def kfac_frame(network, x, name="K-FAC at the start"):
    return NamedFrame.of(KFAC(), network.observe(x[:50]), name)


def dense_frame(form):
    """The matrix of the frame's vectors, from its definition: K Kᵀ is the inverse of the form."""
    parts = form.factors if hasattr(form, "factors") else (form,)
    K = torch.ones(1, 1)
    for part in parts:
        K = torch.kron(K, part.K if isinstance(part, Framed) else torch.eye(part.space.dim))
    assert torch.allclose(K @ K.mT, torch.linalg.inv(form.matrix()), atol=1e-10)
    return K


# --- what they are ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["batch", "examples"])
@pytest.mark.parametrize("power", [0.5, 1.0])
def test_squares_are_of_components_in_the_frame(of, power):
    """By hand: ξᵢ = ξ(kᵢ) for the columns of K, and the step Σ ξᵢ / (√vᵢ + ε) kᵢ."""
    network, x, y = small(n=20)
    frame = kfac_frame(network, x)
    seen, df = network.observe(x, Empirical(y)), network.differential(x, y)
    v = RootMeanSquare(0.1, of, power, frame).at(seen).sharp(df)
    for path, layer in seen.layers.items():
        K, each = dense_frame(frame.on(layer)), layer.gradients.dense().reshape(20, -1)
        batch = df[path].flatten()
        assert torch.allclose(each.mean(0), batch)
        square = (K.mT @ batch) ** 2 if of == "batch" else ((each @ K) ** 2).mean(0)
        assert off(v[path].flatten(), K @ ((K.mT @ batch) / (square**power + 0.1))) < 1e-11


def test_a_frame_of_a_layer_that_is_no_product():
    """One matrix for a whole layer, that of the Fisher's block: squares of examples are a diagonal of their moment."""
    network, x, y = small((3, 3, 2), n=60)
    seen = network.observe(x, Empirical(y))
    frame = NamedFrame.of(Fisher(structure="block-diagonal"), network.observe(x), "the Fisher at the start")
    g = RootMeanSquare(0.0, "examples", power=1.0, frame=frame).at(seen)
    C = GradientCovariance(structure="block-diagonal").at(seen)
    for path, layer in seen.layers.items():
        K = dense_frame(frame.on(layer))
        inside = (K.mT @ C.parts[path].matrix() @ K).diagonal()
        back = torch.linalg.inv(K)
        assert off(g.parts[path].matrix(), back.mT @ torch.diag(inside) @ back) < 1e-9
    with pytest.raises(SpaceMismatch, match=r"the value of Fisher\(structure='dense'\) is no direct sum over layers"):
        NamedFrame.of(Fisher(structure="dense"), network.observe(x), "the Fisher at the start")


def test_in_the_frame_of_the_coordinates_it_is_the_plain_one():
    network, x, y = small()
    seen = network.observe(x, Empirical(y))
    frame = NamedFrame.of(EuclideanMetric(), network.observe(x), "the coordinates")
    g, h = RootMeanSquare(0.1, frame=frame).at(seen), RootMeanSquare(0.1).at(seen)
    assert torch.equal(g.matrix(), h.matrix()) and g.symmetry == h.symmetry


def test_the_frame_as_a_metric_is_that_of_which_it_was_taken():
    network, x, y = small()
    frame = kfac_frame(network, x)
    assert torch.allclose(frame.at(network.observe(x)).matrix(), KFAC().at(network.observe(x[:50])).matrix())
    assert repr(frame) == "NamedFrame(K-FAC at the start)"
    assert repr(RootMeanSquare(frame=frame)) == "RootMeanSquare(frame=NamedFrame(K-FAC at the start))"
    df = network.differential(x, y)
    v = frame.at(network.observe(x)).sharp(df)
    assert torch.allclose(v.components, natural_gradient(network, frame, x, y).components)


@pytest.mark.parametrize("name", ["mlp", "convolutional", "conv1d", "tokens", "recurrent"])
@pytest.mark.parametrize("of", ["batch", "examples"])
def test_every_sort_of_layer(name, of):
    """Groups of a convolution have frames of their own, and embeddings a diagonal one."""
    make, batch = ZOO[name]
    model, x = make(), batch(12)
    z = model(x)
    y = torch.randint(0, z.shape[-1], z.shape[:-1])
    network = Network.from_torch(model, Categorical(), x)
    damped = KFAC() + 0.1 * EuclideanMetric()
    frame = NamedFrame.of(damped.damp_factors(0.1), network.observe(x), "damped")
    observation, df = network.observe(x, Empirical(y)), network.differential(x, y)
    g = RootMeanSquare(0.1, of, frame=frame).at(observation)
    for path, layer in observation.layers.items():
        part, xi = g.parts[path], Covector(layer.space, df[path])
        M = torch.linalg.inv(frame.on(layer).matrix(xi.data))
        each = layer.gradients.dense().reshape(len(x), -1)
        assert torch.allclose(part.flat(part.sharp(xi)).data, xi.data, atol=1e-10)
        step = part.sharp(xi).components
        assert float(xi(part.sharp(xi))) > 0 and bool(step.isfinite().all())
        if of == "examples":  # the trace in the frame does not depend on its rotation
            squares = part.of.spectrum.sum()
            assert torch.allclose(squares, torch.einsum("ni,ij,nj->", each, M, each) / len(x))


# --- averages ---------------------------------------------------------------------------------------------------------


def test_an_average_is_adam_of_torch_in_a_network_seen_in_the_frame():
    """A twin whose layers see a' = Ωa and give s' = Φs with Φ, Ω the frames: Adam there is the average here."""
    network, x, y = small()
    start = NamedFrame.of(KFAC(bias="separate"), network.observe(x[:50]), "K-FAC at the start")
    frames, one = {}, torch.tensor(0.0)
    for path, layer in network.observe(x).layers.items():
        left, right = start.on(layer).factors
        scale = right.K[-1, -1]  # on Â* the bias apart, and the constant one of length one
        Omega = right.K[:-1, :-1].mT / scale
        one = max(one, right.K[:-1, -1].abs().max(), right.K[-1, :-1].abs().max(), (scale - 1).abs())
        frames[f"{path}.A"] = Frame(Omega, torch.zeros(len(Omega)))
        frames[f"{path}.S"] = Frame(torch.linalg.inv(left.K), torch.zeros(len(left.K)))
    assert one < 1e-12
    twin = reparametrize(network, Frames(frames), x)
    optimizer = torch.optim.Adam(twin.module.parameters(), lr=0.01, betas=(0.0, 0.9), eps=1e-4)
    average = MetricAverage(RootMeanSquare(1e-4, frame=start), 0.9)
    for i in range(6):
        part = slice(20 * i, 20 * (i + 1))
        optimizer.zero_grad()
        z = twin.to_original(twin.module(twin.inputs(x[part])))
        nn.functional.binary_cross_entropy_with_logits(z, y[part], reduction="none").sum(-1).mean().backward()
        optimizer.step()
        g = average.update(network.observe(x[part], Empirical(y[part])))
        network.move_(g.sharp(network.differential(x[part], y[part])), step=-0.01)
    assert off(network.outputs(x), twin.to_original(twin.module(twin.inputs(x))).detach()) < 1e-11
    assert off(network.outputs(x), small()[0].outputs(x)) > 1e-3


def test_averages_go_on_from_their_state():
    network, x, y = small()
    metric = RootMeanSquare(0.01, frame=kfac_frame(network, x)) + 0.1 * EuclideanMetric()
    here, there = MetricAverage(metric, 0.8), MetricAverage(metric, 0.8)
    for i in range(3):
        part = slice(40 * i, 40 * (i + 1))
        seen = network.observe(x[part], Empirical(y[part]))
        g, h = here.update(seen), there.update(seen)
        assert torch.equal(g.matrix(), h.matrix())
        stored, there = there.state(), MetricAverage(metric, 0.8)
        there.load_state(network.tangent_space, stored)
    assert isinstance(InnerProduct.from_state(g.space, g.state()), InnerProduct)


# --- symmetry ---------------------------------------------------------------------------------------------------------


def test_in_a_frame_of_data_every_affine_frame_is_kept():
    problem = small()
    frame = kfac_frame(problem[0], problem[1])
    for of in ("batch", "examples"):
        kept = kept_by(RootMeanSquare(frame=frame, of=of), problem)
        assert kept == {"activations": EVERYTHING, "pre-activations": EVERYTHING}
    assert kept_by(RootMeanSquare(), problem) == {
        "activations": SIGNED, "pre-activations": SIGNED | {"translations"},
    }  # fmt: skip


def test_a_frame_made_anew_in_other_coordinates_is_another():
    """The negative control: an orthonormal frame of K-FAC is a choice, and Adam sees which one was made."""
    network, x, y = small()
    twin = twin_of(network, x, on=("inputs", "activations", "pre-activations"), group="orthogonal")
    here = kfac_frame(network, x)
    anew = kfac_frame(twin.network, twin.inputs(x))
    carried = NamedFrame(twin.transport(here.form), here.name)
    v = natural_gradient(network, RootMeanSquare(frame=here), x, y)
    errors = [
        off(natural_gradient(twin.network, RootMeanSquare(frame=f), twin.inputs(x), y).data, twin.transport(v).data)
        for f in (carried, anew)
    ]
    assert errors[0] < 1e-9 and errors[1] > 1e-1


def test_a_frame_that_is_a_constant_keeps_what_a_frame_keeps():
    network, x, y = small()
    seen = network.observe(x, Empirical(y))
    K = {path: torch.linalg.qr(torch.randn(V.dim, V.dim))[0] for path, V in network.tangent_space.parts}
    frame = NamedFrame({path: Framed(V, K[path], f"K of {path}") for path, V in network.tangent_space.parts}, "mine")
    g = RootMeanSquare(frame=frame).at(seen)
    A, S = seen["0"].A.bases[0], seen["0"].S.bases[0]
    assert g.symmetry.keeps(S, "translations")
    assert not any(g.symmetry.keeps(V, group) for V in (A, S) for group in ("orthogonal", "signed permutations"))
    assert "the frame 'mine'" in explain_symmetry(g)
    assert KFAC().at(network.observe(x)).symmetry.keeps(A, "affine")


# --- bad input --------------------------------------------------------------------------------------------------------


def unnamed():
    V = Space("V", 2)
    network, x, _ = small(n=10)
    seen = network.observe(x)
    kfac, eye = KFAC().at(seen), torch.eye(2)
    other = {path: Gram(V, torch.eye(V.dim)) for path, V in network.tangent_space.parts}
    return {
        "adam, a metric": (lambda: RootMeanSquare(frame=KFAC()), "frame=KFAC() is a frame without a name"),
        "adam, a matrix": (lambda: RootMeanSquare(frame=eye), "RootMeanSquare: frame=float64[2, 2] is a frame without"),
        "adam, a form": (lambda: RootMeanSquare(frame=kfac), "is a frame without a name"),
        "adam, a word": (lambda: RootMeanSquare(frame="eigen"), "frame='eigen' is a frame without a name"),
        "soap": (lambda: SOAP(frame=FixedMetric(kfac)), "frame=FixedMetric(fixed) is a frame without a name"),
        "named frame": (lambda: NamedFrame(kfac, "K-FAC"), "has many orthonormal frames, and none of them is named"),
        "named frame, gram": (lambda: NamedFrame(other, "one"), "for layer '0' it is given Gram("),
        "named frame, no name": (lambda: NamedFrame.of(KFAC(), seen, ""), "InvalidSetting in NamedFrame: name=''"),
        "named frame, none": (lambda: NamedFrame.of(KFAC(), seen, None), "name=None"),
        "diagonal": (lambda: Diagonal(V, torch.ones(2), name=""), "InvalidSetting in Diagonal: name=''"),
        "framed": (lambda: Framed(V, eye, name=" "), "InvalidSetting in Framed: name=' '"),
        "rotated": (
            lambda: RotatedDiagonal(Euclidean(V), [eye], torch.ones(2), name=""), "InvalidSetting in RotatedDiagonal",
        ),
        "fixed": (lambda: FixedMetric(kfac, name=""), "InvalidSetting in FixedMetric: name=''"),
    }  # fmt: skip


@pytest.mark.parametrize("case", list(unnamed()))
def test_a_frame_without_a_name_is_refused_with_the_reason(case):
    make, said = unnamed()[case]
    with pytest.raises(InvalidSetting) as caught:
        make()
    text = str(caught.value)
    assert said in text and "could not be stated" in text
    assert any(fix in text for fix in ("NamedFrame.of(", "Give it one, name='the basis of ...'")), text


def test_what_a_frame_without_a_name_would_claim():
    """The reason itself: two frames of one form give two Adams, and neither is told from the other by the form."""
    network, x, y = small()
    seen = network.observe(x[:50])
    here = kfac_frame(network, x)
    turned = {}
    for path, layer in seen.layers.items():
        f, g = here.on(layer).factors
        Q = torch.linalg.qr(torch.randn(len(f.K), len(f.K)))[0]
        turned[path] = Framed(f.space, f.K @ Q, "turned") * g
    other = NamedFrame(turned, "K-FAC at the start, turned")
    assert torch.allclose(here.at(seen).matrix(), other.at(seen).matrix(), atol=1e-9)
    v, w = (natural_gradient(network, RootMeanSquare(frame=f), x, y).data for f in (here, other))
    assert off(v, w) > 1e-1


def test_frames_of_other_networks_and_spaces():
    network, x, y = small()
    frame = kfac_frame(*small(seed=1)[:2])
    with pytest.raises(SpaceMismatch, match="Make it of the network that it is used on; a twin's is carried there"):
        RootMeanSquare(frame=frame).at(network.observe(x, Empirical(y)))
    with pytest.raises(SpaceMismatch, match=r"its frames are of .* Make it of the network"):
        frame.at(network.observe(x))
    with pytest.raises(SpaceMismatch, match=r"is no direct sum over layers. Give a frame for each"):
        NamedFrame(Euclidean(Space("V", 3)), "V")
    family = Family(Space("V", 2), 3)
    assert NamedFrame({"a": Euclidean(family)}, "a").name == "a"
    metric = RootMeanSquare(frame=kfac_frame(network, x))
    assert metric.estimator(y) == Empirical(y)
