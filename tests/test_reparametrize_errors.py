"""What has no twin, and says why; frames that fit nothing; native layers in frames."""

import pytest
import torch
from torch import nn
from twin_cases import case, twin_of

from riemann_ng import layers
from riemann_ng.elements import Covector, Vector
from riemann_ng.errors import SpaceMismatch
from riemann_ng.likelihoods import Gaussian
from riemann_ng.networks import Network
from riemann_ng.points import Point
from riemann_ng.reparametrize import (
    Frame,
    Frames,
    InvalidFrames,
    LinearChange,
    NoTwin,
    SmoothChange,
    admissible,
    layer_tangent_map,
    reparametrize,
    reparametrize_layer,
    reparametrize_parameters,
)
from riemann_ng.reparametrize.groups import linear_element
from riemann_ng.spaces import AffineSpace, DirectSum, Space


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def bias_free():
    x = torch.randn(6, 3)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 2, bias=False))
    return Network.from_torch(model, Gaussian(), x), x


# --- not applicable ---------------------------------------------------------------------------------------------------


def test_a_network_without_biases_has_no_twin_under_translations():
    network, x = bias_free()
    for group in ("translations", "isometries", "affine"):
        for on in ("inputs", "activations", "pre-activations"):
            why = admissible(network, x, on, group)
            assert why.startswith(f"not applicable: {group} on {on}: no twin in the model class. ")
            assert "'0' is a Linear without bias" in why or "0.A" not in why
        with pytest.raises(NoTwin, match="'0' is a Linear without bias, which nothing can absorb a translation of"):
            Frames.draw(network, x, "activations", group)
    assert admissible(network, x, "activations", "general") is None
    shifted = Frames({"0.A": Frame(torch.eye(3), torch.ones(3))})
    with pytest.raises(NoTwin, match=r"not applicable: a frame on '0.A': no twin in the model class. '0' is a Linear"):
        reparametrize(network, shifted, x)


def test_what_a_network_cannot_move_is_left_out_with_the_reason():
    network, x = case("mlp")  # its last layer has no bias
    frames = Frames.draw(network, x, ("activations", "pre-activations"), "translations")
    assert set(frames) == {"0.A", "0.S", "input"}
    assert set(frames.left_out) == {"2.A", "2.S", "output"}
    assert "'2' is a Linear without bias, which nothing can add a translation to" in frames.left_out["2.S"]


@pytest.mark.parametrize(
    ("name", "on", "group", "reason"),
    [
        ("tokens", "inputs", "general", "the network takes tokens, a finite set: nothing moves them"),
        ("weight elsewhere", "inputs", "general", "no layer takes the network's input as it comes"),
        ("weight norm", "inputs", "general", "the weight of '0' is tied with another layer's, or computed by a param"),
        ("bilinear", "inputs", "general", "the network has no such space|no layer takes the network's input"),
        ("frozen", "inputs", "translations", "the bias of '0' is frozen, and would have to move with the weight"),
        ("mlp", "constants", "general", "the network has no such space"),
        ("tied", "outputs", "orthogonal", "the weight of 'out' is tied with another layer's"),
    ],
)
def test_why_there_is_no_twin(name, on, group, reason):
    network, x = case(name)
    why = admissible(network, x, on, group)
    assert any(part in why for part in reason.split("|")), why
    with pytest.raises(NoTwin) as raised:
        Frames.draw(network, x, on, group)
    assert str(raised.value) == why


def test_lines_have_no_permutations_and_transposed_convolutions_no_translations():
    network, x = case("conv1d")  # depthwise, then linear
    frames = Frames.draw(network, x, ("activations", "pre-activations"), "permutations")
    assert set(frames) == {"3.A", "3.S", "output"}
    assert frames.left_out["0.S"] == "a single coordinate has no permutation but the identity"
    network, x = case("conv3d")
    left_out = Frames.draw(network, x, "activations", "translations").left_out
    assert "zeros stand for the inputs that do not reach an output" in left_out["1.A"]


# --- frames that fit nothing ------------------------------------------------------------------------------------------


def test_unknown_names_are_refused_with_those_there_are():
    network, x = case("mlp")
    with pytest.raises(InvalidFrames, match=r"no group is called 'rotations'. The groups are translations, general"):
        Frames.draw(network, x, "activations", "rotations")
    with pytest.raises(InvalidFrames, match="no group is called 'rotations'"):
        admissible(network, x, "activations", "rotations")
    with pytest.raises(InvalidFrames, match=r"in admissible: no space is of kind 'weights'. The kinds are inputs"):
        admissible(network, x, "weights", "general")
    with pytest.raises(InvalidFrames, match="no space is of kind ''"):
        Frames.draw(network, x, (), "general")
    with pytest.raises(InvalidFrames, match="a joint scale moves both sides of every layer: on='layers'"):
        Frames.draw(network, x, "activations", "joint scale")
    with pytest.raises(InvalidFrames, match="members are 'same' or 'apart', got 'each'"):
        Frames.draw(network, x, "activations", "general", members="each")
    with pytest.raises(InvalidFrames, match=r"size lies between 0 and 3, got -1"):
        Frames.draw(network, x, "activations", "general", size=-1)
    with pytest.raises(InvalidFrames, match=r"has no space '1.A'. Its spaces are 0.A, 0.S, 2.A, 2.S, input, output"):
        reparametrize(network, Frames({"1.A": Frame.identity(4)}), x)
    with pytest.raises(InvalidFrames, match=r"'0.A' is a space of dimension 4, got Frame\(float64\[1, 3, 3\]"):
        reparametrize(network, Frames({"0.A": Frame.identity(3)}), x)


def test_frames_must_have_inverses():
    with pytest.raises(InvalidFrames, match="the matrix is singular or not finite; a frame has an inverse"):
        Frame(torch.ones(2, 2), torch.zeros(2))
    with pytest.raises(InvalidFrames, match=r"a matrix \[d, d\] and a shift \[d\].* got float64\[1, 2, 3\]"):
        Frame(torch.ones(2, 3), torch.zeros(2))


class Behind(nn.Module):
    """Reads the weight of a layer in evaluation mode only, where verification on a training batch did not look."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        h = self.first(x)
        return self.second(torch.tanh(h)) if self.training else self.second(torch.tanh(h @ self.first.weight))


def test_a_weight_used_behind_its_layers_back_is_found_and_named():
    model, x = Behind().train(), torch.randn(6, 3)
    network = Network.from_torch(model, Gaussian(), x)
    model.eval()
    frames = Frames.draw(network, x, "activations", "general")
    state = {k: t.clone() for k, t in model.state_dict().items()}
    with pytest.raises(NoTwin, match=r"with 'first.A' moved the module computes another function \(off by .*Leave 'fi"):
        reparametrize(network, frames, x)
    assert all(torch.equal(t, state[k]) for k, t in model.state_dict().items())
    reparametrize(network, frames.only("second.A"), x)


def test_a_bare_module_needs_a_likelihood_and_only_typed_things_are_transported():
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    with pytest.raises(NoTwin, match="outputs are moved with their likelihood, and a module has none"):
        reparametrize(model, Frames.identity(), x)
    network = Network.from_torch(model, Gaussian(), x)
    twin = twin_of(network, x)
    with pytest.raises(SpaceMismatch, match=r"expected a vector, a covector or an inner .* got Tensor. Batches"):
        twin.transport(x)
    with pytest.raises(SpaceMismatch, match="V is no space of the network"):
        twin.transport(Vector(Space("V", 2), torch.ones(2)))


def test_changes_of_parameters_that_are_none():
    model = nn.Linear(2, 2)
    with pytest.raises(InvalidFrames, match=r"a bijection has a square matrix, got float64\[2, 3\]"):
        LinearChange(torch.ones(2, 3))
    with pytest.raises(InvalidFrames, match=r"strength lies between 0 and 1, got 1.0"):
        SmoothChange(6, strength=1.0)
    with pytest.raises(InvalidFrames, match="the module has no trained parameter"):
        reparametrize_parameters(nn.Tanh(), SmoothChange(6))

    class Wrong(LinearChange):
        def inverse(self, theta):
            return theta

    with pytest.raises(InvalidFrames, match=r"psi\(psi.inverse\(θ\)\) is not θ at the parameters, float64\[6\]"):
        reparametrize_parameters(model, Wrong(2 * torch.eye(6)))


# --- native layers ----------------------------------------------------------------------------------------------------


def space(name, dim):
    return AffineSpace(name, dim)


def native_chain():
    a, s, h, t, u = space("a", 2), space("s", 4), space("h", 4), space("t", 6), space("u", 6)
    z = space("z", 3)
    return layers.Compose(
        {
            "conv": layers.Convolution(a, s, torch.randn(4, 2, 3), torch.randn(4), padding=1),
            "tanh": layers.Pointwise(s, h, layers.tanh),
            "up": layers.TransposedConvolution(h, t, torch.randn(4, 3, 2), torch.randn(6), stride=2, groups=2),
            "act": layers.Pointwise(t, u, layers.sigmoid),
            "fc": layers.Affine(u, z, torch.randn(3, 6), torch.randn(3)),
        }
    )


def native_frozen():
    a, s, t = space("a", 2), space("s", 4), space("t", 4)
    return layers.Compose(
        [
            layers.Affine(a, s, torch.randn(4, 2), torch.randn(4), bias_trains=False),
            layers.ScaleShift(s, t, torch.randn(4), torch.randn(4)),
        ]
    )


def native_embedding():
    s, z = space("s", 3), space("z", 2)
    table = layers.Embedding(Space("tokens", 5), s, torch.randn(5, 3))
    return layers.Compose({"table": table, "fc": layers.Affine(s, z, torch.randn(2, 3), torch.randn(2))})


def native_recurrent():
    x, h = space("x", 2), space("h", 3)
    cell = layers.rnn_cell(x, h, torch.randn(3, 5), torch.randn(3))
    return layers.Recurrent(x, h, cell, Point(h, torch.randn(3)))


def frame(dim, members=1, seed=0, shifted=True):
    draw = torch.Generator().manual_seed(seed)
    matrices = torch.stack([linear_element("general", dim, draw) for _ in range(members)])
    shift = torch.randn(members, dim, generator=draw, dtype=torch.float64)
    return Frame(matrices, shift if shifted else 0 * shift)


NATIVE = {
    "chain": (
        native_chain,
        torch.Size((5, 6, 2)),
        {
            "conv.A": frame(2), "conv.S": frame(4, 1, 1), "up.A": frame(2, 2, 2), "up.S": frame(3, 2, 3),
            "fc.A": frame(6, 1, 4), "fc.S": frame(3, 1, 5), "input": frame(2), "output": frame(3, 1, 5),
        },
    ),
    "frozen": (
        native_frozen,
        torch.Size((5, 2)),
        {"0.A": frame(2, shifted=False), "0.S": frame(4), "1.A": frame(1, 4), "1.S": frame(1, 4, 1)},
    ),
    "embedding": (native_embedding, None, {"table.S": frame(3), "fc.A": frame(3, 1, 1), "fc.S": frame(2)}),
    "recurrent": (native_recurrent, torch.Size((4, 3, 2)), {"self.A": frame(5), "self.S": frame(3, 1, 1)}),
    "lone": (
        lambda: layers.Affine(space("a", 3), space("s", 2), torch.randn(2, 3), torch.randn(2)),
        torch.Size((5, 3)),
        {"self.A": frame(3), "self.S": frame(2)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NATIVE)
def test_native_layers_have_twins(name):
    make, shape, frames = NATIVE[name]
    layer = make()
    x = torch.randint(0, 5, (5, 3)) if shape is None else torch.randn(shape)
    twin = reparametrize_layer(layer, frames)
    out = frames.get("output")
    x_twin = frames["input"](x) if "input" in frames else x
    y, y_twin = layer.forward(x), twin.forward(x_twin)
    assert torch.allclose(y if out is None else out(y), y_twin, atol=1e-12)
    T = layer_tangent_map(layer, twin, frames)
    assert list(twin.parameters) == list(layer.parameters) and T.codomain == twin.tangent_space
    assert not torch.allclose(next(iter(twin.parameters.values())), next(iter(layer.parameters.values())), atol=1e-2)
    v = Vector(layer.tangent_space, torch.randn(layer.tangent_space.shape))
    Jv, Jv_twin = layer.pushforward(x, None, v), twin.pushforward(x_twin, None, T(v))
    assert torch.allclose(Jv if out is None else out.on_vectors(Jv), Jv_twin, atol=1e-11)
    dy = torch.randn_like(y_twin)
    xi, xi_twin = layer.pullback(x, dy if out is None else out.pulled(dy))[1], twin.pullback(x_twin, dy)[1]
    assert torch.allclose(T.pullback(xi_twin).data, xi.data, atol=1e-11)
    moved = twin.moved(T(v), 0.3).forward(x_twin)
    expected = layer.moved(v, 0.3).forward(x)
    assert torch.allclose(expected if out is None else out(expected), moved, atol=1e-11)
    assert isinstance(xi, Covector) and (isinstance(T.domain, DirectSum) or name in ("lone", "recurrent"))


def test_native_layers_refuse_what_has_no_twin():
    layer = native_frozen()
    with pytest.raises(InvalidFrames, match=r"there is no space '2.A'; there are 0.A, 0.S, 1.A, 1.S, input, output"):
        reparametrize_layer(layer, {"2.A": frame(2)})
    with pytest.raises(NoTwin, match=r"a frame on '0.A': no twin in the model class. '0': no trained bias absorbs"):
        reparametrize_layer(layer, {"0.A": frame(2)})
    with pytest.raises(InvalidFrames, match=r"'1.A' is a space of 4 members of dimension 1, got Frame\(float64\[1, 4"):
        reparametrize_layer(layer, {"1.A": frame(4)})
    with pytest.raises(NoTwin, match="'table': tokens are a finite set"):
        reparametrize_layer(native_embedding(), {"table.A": frame(3)})
