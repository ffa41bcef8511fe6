"""Layers made of layers against torch's modules: chains, residuals, fans, products, attention, recurrent networks."""

from copy import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from layer_laws import Case, check, close, randn, space, torch_parameters

from riemann_ng import DirectSum, Hom, Point, Space, Vector
from riemann_ng.errors import DtypeMismatch, NonFinite, ShapeMismatch, SpaceMismatch
from riemann_ng.layers import (
    Affine,
    Compose,
    Convolution,
    Embedding,
    Fan,
    Flatten,
    Identity,
    LayerNormalization,
    MaxPool,
    Nonlinearity,
    ParallelSum,
    Pointwise,
    ProductLayer,
    Recurrent,
    ScaleShift,
    Select,
    gru_cell,
    lstm_cell,
    multihead_attention,
    product_space,
    relu,
    rnn_cell,
    tanh,
)

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch.func.jvp, in torch 2.13

seeds = st.integers(0, 10**6)
small = st.integers(1, 3)
A, B, C = space("A", 3), space("B", 2), space("C", 4)
B3, C3, C2 = space("B", 3), space("C", 3), space("C2", 2)


def affine(seed, domain, codomain, bias=True):
    b = randn(seed + 1, codomain.dim) if bias else None
    return Affine(domain, codomain, randn(seed, codomain.dim, domain.dim), b)


def linear(x, of):
    return F.linear(x, of["weight"], of.get("bias"))


@given(small, small, st.lists(small, max_size=2), st.booleans(), seeds)
def test_perceptron(hidden, examples, sites, bias, seed):
    S, H = space("S", hidden), space("H", hidden)
    layer = Compose({"fc1": affine(seed, A, S, bias), "tanh": Pointwise(S, H, tanh), "fc2": affine(seed + 5, H, B)})

    def restated(x, p):
        return linear(torch.tanh(linear(x, p["fc1"])), p["fc2"])

    check(Case(layer, randn(seed, examples, *sites, 3), restated), seed)
    assert list(layer.tangent_space) == ["fc1", "fc2"]


@given(st.booleans(), seeds)
def test_residual_block(bias, seed):
    scale = ScaleShift(B3, C3, randn(seed, 3))
    inner = Compose({"norm": LayerNormalization(A, B3), "scale": scale, "fc": affine(1, C3, A, bias)})
    layer = ParallelSum({"skip": Identity(A), "branch": inner})

    def restated(x, p):
        return x + linear(F.layer_norm(x, (3,), p["branch.scale"]["weight"]), p["branch.fc"])

    check(Case(layer, randn(seed, 2, 3, 3), restated), seed)


@given(seeds)
def test_fan_and_product(seed):
    fan = Fan({"f": affine(seed, A, B), "g": affine(seed + 2, A, C, False)})
    product = ProductLayer({"f": affine(seed + 4, B, A), "g": Pointwise(C, space("D", 4), tanh)})
    last = Select((A, space("D", 4)), 1)
    layer = Compose({"fan": fan, "product": product, "last": last})

    def restated(x, p):
        y = torch.cat([linear(x, p["fan.f"]), linear(x, p["fan.g"])], -1)
        return torch.cat([linear(y[..., :2], p["product.f"]), torch.tanh(y[..., 2:])], -1)

    x = randn(seed, 2, 3, 3)
    check(Case(Compose([fan, product]), x, lambda x, p: restated(x, _renamed(p))), seed)
    check(Case(layer, x, lambda x, p: restated(x, p)[..., 3:]), seed)


def _renamed(p):
    return {path.replace("0.", "fan.").replace("1.", "product."): of for path, of in p.items()}


def test_convolutional_network():
    image, maps, pooled, flat = space("image", 2), space("maps", 3), space("maps'", 3), space("flat", 3 * 2 * 2)
    layer = Compose(
        {
            "conv": Convolution(image, maps, randn(0, 3, 2, 3, 3), randn(1, 3), padding=1),
            "relu": Pointwise(maps, pooled, relu),
            "pool": MaxPool(pooled, [2, 2]),
            "flatten": Flatten(pooled, flat),
            "fc": affine(2, flat, B),
        }
    )

    def restated(x, p):
        y = F.conv2d(x.movedim(-1, 1), p["conv"]["weight"], p["conv"]["bias"], padding=1)
        return linear(F.max_pool2d(F.relu(y), 2).flatten(1), p["fc"])

    x = randn(3, 4, 4, 5, 2)
    check(Case(layer, x, restated))
    single = _single(layer)
    dx, covector = single.pullback(x.float(), single.forward(x.float()))
    assert {dx.dtype, covector.dtype, single.pushforward(x.float(), x.float()).dtype} == {torch.float32}
    close(single.forward(x.float()).double(), layer.forward(x), "float32", 1e-4)


def _single(layer):
    """The same chain in float32."""
    parts = {name: copy(part) for name, part in layer.parts.items()}
    for part in (parts["conv"], parts["fc"]):
        part.weight = part.weight.float()
    parts["conv"].padding = parts["conv"].padding.float()
    return Compose(parts)


def test_embedding_in_front():
    layer = Compose({"embed": Embedding(Space("tokens", 5), A, randn(0, 5, 3)), "fc": affine(1, A, B)})
    x = torch.tensor([[0, 4, 4], [1, 0, 2]])
    check(Case(layer, x, lambda x, p: linear(F.embedding(x, p["embed"]["weight"]), p["fc"])))
    assert torch.equal(layer.pushforward(x, None), torch.zeros(2, 3, 2, dtype=torch.float64))


@given(st.integers(1, 2), small, small, st.booleans(), st.booleans(), seeds)
def test_multihead_attention(heads, examples, tokens, causal, bias, seed):
    """Against torch.nn.MultiheadAttention's function, its fused weight put together from the three."""
    E = 2 * heads
    domain, codomain = space("A", E), space("O", E)
    weights = tuple(randn(seed + i, E, E) for i in range(4))
    biases = tuple(randn(seed + 4 + i, E) if bias else None for i in range(4))
    layer = multihead_attention(domain, codomain, weights, biases, heads, causal)
    assert list(layer.tangent_space) == ["q", "k", "v", "out"]
    mask = torch.full((tokens, tokens), -torch.inf, dtype=torch.float64).triu(1) if causal else None

    def restated(x, p):
        t = x.transpose(0, 1)
        fused = torch.cat([p[n]["weight"] for n in "qkv"])
        fused_bias = torch.cat([p[n]["bias"] for n in "qkv"]) if bias else None
        out, out_bias = p["out"]["weight"], p["out"].get("bias")
        y, _ = F.multi_head_attention_forward(
            t, t, t, E, heads, fused, fused_bias, None, None, False, 0.0, out, out_bias, attn_mask=mask
        )
        return y.transpose(0, 1)

    check(Case(layer, randn(seed + 9, examples, tokens, E), restated), seed)


def recurrent(kind, x_dim, hidden, seed, backwards=False, initial=None):
    """The layer, and torch's weights (ih, hh, b_ih, b_hh) as functions of the layer's parameters."""
    X, H = space("X", x_dim), space("H", hidden)
    rows = {"rnn": 1, "lstm": 4, "gru": 3}[kind] * hidden
    if kind == "gru":
        shapes = ((2 * hidden, x_dim + hidden), (hidden, x_dim), (hidden, hidden))
        affines = [(randn(seed + i, *shape), randn(seed + 3 + i, shape[0])) for i, shape in enumerate(shapes)]
        cell = gru_cell(X, H, *affines)
    else:
        make = {"rnn": rnn_cell, "lstm": lstm_cell}[kind]
        cell = make(X, H, randn(seed, rows, x_dim + hidden), randn(seed + 1, rows))
    start = torch.zeros(cell.codomain.dim, dtype=torch.float64) if initial is None else initial
    layer = Recurrent(X, H, cell, Point(cell.codomain, start), backwards)

    def torch_weights(p):
        if kind != "gru":
            w, b = p[""]["weight"], p[""]["bias"]
            return w[:, :x_dim], w[:, x_dim:], b, torch.zeros_like(b)
        gates, a, b = p["gates"], p["input"], p["state"]
        ih = torch.cat([gates["weight"][:, :x_dim], a["weight"]])
        hh = torch.cat([gates["weight"][:, x_dim:], b["weight"]])
        return ih, hh, torch.cat([gates["bias"], a["bias"]]), torch.cat([0 * gates["bias"], b["bias"]])

    return layer, torch_weights


TORCH_CELLS = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}


@pytest.mark.parametrize("kind", TORCH_CELLS)
def test_recurrent_forward_against_torch_modules(kind):
    layer, torch_weights = recurrent(kind, 3, 4, 0)
    module = TORCH_CELLS[kind](3, 4, batch_first=True, dtype=torch.float64)
    tensors = torch_weights(torch_parameters(layer, layer.parameters))
    for name, tensor in zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), tensors, strict=True):
        module.get_parameter(f"{name}_l0").data.copy_(tensor)
    x = randn(5, 2, 6, 3)
    close(layer.forward(x), module(x)[0].detach(), "forward")
    backwards, _ = recurrent(kind, 3, 4, 0, backwards=True)
    close(backwards.forward(x), module(x.flip(1))[0].flip(1).detach(), "backwards")


@pytest.mark.parametrize("kind", TORCH_CELLS)
@given(small, small, small, st.integers(1, 4), st.booleans(), st.booleans(), seeds)
def test_recurrent(kind, x_dim, hidden, examples, steps, backwards, started, seed):
    """Against the cell functions of torch, called step by step."""
    start = randn(seed + 7, hidden * (2 if kind == "lstm" else 1)) if started else None
    layer, torch_weights = recurrent(kind, x_dim, hidden, seed, backwards, start)

    def restated(x, p):
        states = (torch.zeros_like(layer.initial.data) if start is None else start).expand(len(x), -1)
        outputs = [None] * steps
        for t in reversed(range(steps)) if backwards else range(steps):
            states = CELLS[kind](x[:, t], states, *torch_weights(p))
            outputs[t] = states[:, :hidden]
        return torch.stack(outputs, 1)

    check(Case(layer, randn(seed, examples, steps, x_dim), restated), seed)


def lstm_step(x, states, ih, hh, bih, bhh):
    h, c = states.chunk(2, -1)
    i, f, g, o = (F.linear(x, ih, bih) + F.linear(h, hh, bhh)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return torch.cat([o.sigmoid() * c.tanh(), c], -1)


def gru_step(x, h, ih, hh, bih, bhh):
    (ri, zi, ni), (rh, zh, nh) = F.linear(x, ih, bih).chunk(3, -1), F.linear(h, hh, bhh).chunk(3, -1)
    r, z = (ri + rh).sigmoid(), (zi + zh).sigmoid()
    return (1 - z) * (ni + r * nh).tanh() + z * h


CELLS = {
    "rnn": lambda x, h, ih, hh, bih, bhh: (F.linear(x, ih, bih) + F.linear(h, hh, bhh)).tanh(),
    "lstm": lstm_step,
    "gru": gru_step,
}


def test_every_step_is_a_site_of_the_one_weight():
    layer, _ = recurrent("rnn", 2, 3, 0)
    X, H = layer.domain, layer.codomain
    assert layer.tangent_space == Hom(product_space(X, H).hull, space("H pre-activations", 3).translations)
    x = randn(1, 5, 7, 2)
    inputs, cotangents = layer.samples(x, randn(2, 5, 7, 3))[""]
    assert inputs.counts == cotangents.counts == (5, 1, 7)
    h = torch.cat([torch.zeros(5, 1, 3, dtype=torch.float64), layer.forward(x)[:, :-1]], 1)
    expected = torch.cat([x, h, torch.ones(5, 7, 1, dtype=torch.float64)], -1)[:, None]
    close(inputs.dense(), expected, "(x, h, 1) in the order of the sites")


class Truncated(Recurrent):
    def _pull(self, x, dy):
        pulled = [Recurrent._pull(self, x, dy * (torch.arange(dy.shape[1]) == t)[:, None]) for t in range(dy.shape[1])]
        dx = torch.stack([dx * (torch.arange(dx.shape[1]) == t)[:, None] for t, (dx, _) in enumerate(pulled)]).sum(0)
        return dx, Recurrent._pull(self, x, dy)[1]


class Unskipped(ParallelSum):
    def _join_transpose(self, dy):
        return [0 * dy, dy]


def test_broken_compositions_are_caught():
    layer, torch_weights = recurrent("rnn", 2, 3, 0)
    truncated = Truncated(layer.domain, layer.codomain, layer.cell, layer.initial)

    def restated(x, p):
        h, outputs = torch.zeros(len(x), 3, dtype=torch.float64), []
        for t in range(4):
            h = CELLS["rnn"](x[:, t], h, *torch_weights(p))
            outputs.append(h)
        return torch.stack(outputs, 1)

    x = randn(1, 2, 4, 2)
    check(Case(layer, x, restated))
    with pytest.raises(AssertionError, match="pullback"):
        check(Case(truncated, x, restated))
    block = Unskipped([Identity(A), affine(0, A, A)])
    with pytest.raises(AssertionError, match="pullback"):
        check(Case(block, randn(1, 2, 3), lambda x, p: x + linear(x, p["1"])))


def test_a_composition_prints_its_parts():
    assert repr(NET).startswith("Compose({'fc': Affine(AffineSpace('A', 3), AffineSpace('B', 2)), 'tanh': Pointwise(")
    assert str(NET) == "Compose(C2 ← A)" and str(FC) == "Affine(B ← A)"


def test_a_composition_moves_without_changing():
    layer = Compose({"fc1": affine(0, A, B), "tanh": Pointwise(B, C2, tanh)})
    space_ = layer.tangent_space
    assert isinstance(space_, DirectSum)
    v = Vector(space_, randn(3, space_.dim))
    x = randn(4, 2, 3)
    before = layer.forward(x)
    moved = layer.moved(v, 2.0)
    close(moved.parts["fc1"].weight, layer.parts["fc1"].weight + 2 * v["fc1"], "moved")
    close(moved.moved(v, -2.0).forward(x), before, "and back")
    assert moved.tangent_space == space_ and moved.parts["tanh"].nonlinearity is tanh


EXP = Pointwise(B, C2, Nonlinearity("exp", torch.exp, torch.exp))
BIG = Affine(A, B, torch.full((2, 3), 1e6, dtype=torch.float64))
FC = affine(0, A, B)
NET = Compose({"fc": FC, "tanh": Pointwise(B, C2, tanh)})
ERRORS = {
    "spaces that do not meet": (
        lambda: Compose({"fc1": FC, "fc2": FC}),
        SpaceMismatch,
        r"Compose: 'fc2' takes points of AffineSpace\('A', 3\), 'fc1' gives points of AffineSpace\('B', 2\)",
    ),
    "nothing": (lambda: Compose([]), SpaceMismatch, "Compose: no parts. Give at least one layer"),
    "two inputs": (
        lambda: ParallelSum([FC, affine(0, C, B)]),
        SpaceMismatch,
        r"'1' takes points of AffineSpace\('C', 4\), the first part points of AffineSpace\('A', 3\)",
    ),
    "sums of two dimensions": (
        lambda: ParallelSum([FC, affine(0, A, C)]),
        SpaceMismatch,
        "ParallelSum: the codomain of '1', C has dimension 4, the layer needs 2",
    ),
    "two blocks of one path": (
        lambda: Fan({"": Compose({"a": FC}), "a": FC}),
        SpaceMismatch,
        "SpaceMismatch in Fan: two blocks have the path 'a'. Name the parts apart",
    ),
    "which layer overflows": (
        lambda: Compose({"big": BIG, "exp": EXP}).forward(randn(0, 4, 3).abs()),
        NonFinite,
        r"finite activations gave NaN or infinity in 'exp', exp\(C2 ← B\). Look at its parameters",
    ),
    "which branch overflows": (
        lambda: Fan({"f": FC, "g": Compose({"big": BIG, "exp": EXP})}).forward(randn(0, 4, 3).abs()),
        NonFinite,
        r"in 'g', 'exp', exp\(C2 ← B\)",
    ),
    "branches at different sites": (
        lambda: ParallelSum({"skip": Identity(A), "pool": MaxPool(A, [2])}).forward(randn(0, 1, 4, 3)),
        ShapeMismatch,
        r"the parts lead to different sites: 'skip' to \[4\], 'pool' to \[2\]",
    ),
    "a block for the whole": (
        lambda: NET.pushforward(randn(0, 1, 3), None, Vector(FC.tangent_space, randn(0, 2, 4))),
        SpaceMismatch,
        r"Compose\(C2 ← A\).pushforward: expected a vector of \(B⃗ ← Â\), got a vector of B⃗ ← Â",
    ),
    "a vector of another dtype": (
        lambda: NET.moved(Vector(NET.tangent_space, torch.zeros(8))),
        DtypeMismatch,
        "moved: the vector is torch.float32, the parameters torch.float64. Bring one to the other",
    ),
    "a vector that is not finite": (
        lambda: NET.moved(Vector(NET.tangent_space, torch.full((8,), torch.inf, dtype=torch.float64))),
        NonFinite,
        r"moved: the vector of \(B⃗ ← Â\) has NaN or infinite components",
    ),
    "dy of the wrong layer": (
        lambda: NET.pullback(randn(0, 1, 3), randn(0, 1, 3)),
        ShapeMismatch,
        r"pullback: dy at these activations is \[1, 2\], one element of C2 per example and site, got float64\[1, 3\]",
    ),
    "time on two axes": (
        lambda: recurrent("rnn", 2, 3, 0)[0].forward(randn(0, 2, 4, 4, 2)),
        ShapeMismatch,
        r"Recurrent\(H ← X\): sites are one axis, the time steps; the field has \[4, 4\]",
    ),
    "more outputs than states": (
        lambda: Recurrent(A, C, rnn_cell(A, B, randn(0, 2, 5), None), Point(B, randn(0, 2))),
        SpaceMismatch,
        "SpaceMismatch in Recurrent: the codomain C has dimension 4, the layer needs 2",
    ),
    "a cell of other spaces": (
        lambda: Recurrent(A, B, FC, Point(B, randn(0, 2))),
        SpaceMismatch,
        r"the cell goes from AffineSpace\('A × B', 5\) to its state space AffineSpace\('B', 2\)",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    call, error, text = ERRORS[case]
    with pytest.raises(error, match=text):
        call()
