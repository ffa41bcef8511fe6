"""Fused modules run in the open, uses shared between examples spread over them: the full Fisher is the dense one."""

import sys
import types

import pytest
import torch
import torch.nn.utils.prune
from networks_zoo import in_parameters, oracle
from torch import nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from riemann_ng.elements import Vector
from riemann_ng.errors import UnsupportedLayer
from riemann_ng.inner_products import second_moment
from riemann_ng.likelihoods import Categorical
from riemann_ng.networks import Exact, InputsOnly, MonteCarlo, Network, constants
from riemann_ng.networks.blocks import FUSED, Fused
from riemann_ng.networks.spreading import Graph, lookups_checked


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def check(model, x, constant=(), pushforward=True):
    """The Fisher from the samples is the dense one, and these parameters alone are constant blocks."""
    before = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    network = Network.from_torch(model, Categorical(), x)
    n = len(x[0] if isinstance(x, tuple) else x)
    observation = network.observe(x)
    J = oracle(model, network, x)
    F = torch.einsum("nop,noq,nqr->pr", J, Categorical().matrix(observation.outputs), J) / n
    P = in_parameters(network)
    assert torch.equal(P @ P.mT, torch.eye(len(P)))
    assert torch.allclose(second_moment(observation.gradients).matrix(), P @ F @ P.mT, atol=1e-11)
    assert sorted(network.coverage().constant) == sorted(constant)
    if pushforward:
        v = Vector(network.tangent_space, torch.randn(network.tangent_space.dim))
        moved = J @ torch.cat([t.flatten() for t in v.to_parameters().values()])
        assert torch.allclose(network.pushforward(v, x).flatten(1), moved)
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == before
    assert not any("forward" in vars(m) for m in model.modules())
    assert all(isinstance(p, nn.Parameter) for m in model.modules() for p in m._parameters.values() if p is not None)
    return network


# Attention


class Attending(nn.Module):
    def __init__(self, call=None, cross=False, **options):
        super().__init__()
        options = {"batch_first": True, **options}
        self.attn, self.out = nn.MultiheadAttention(4, 2, **options), nn.Linear(4, 2)
        self.call, self.cross = call or {}, cross
        self.kdim, self.vdim = options.get("kdim") or 4, options.get("vdim") or 4
        with torch.no_grad():
            for p in self.attn.parameters():  # biases start at zero
                p.add_(0.3 * torch.randn_like(p))

    def forward(self, x):
        first = self.attn.batch_first
        other = x[:, :2].sin() if self.cross else x
        q, k, v = (t if first else t.transpose(0, 1) for t in (x, other[..., : self.kdim], other[..., : self.vdim]))
        call = {name: value(x) if callable(value) else value for name, value in self.call.items()}
        y, weights = self.attn(q, k, v, **call)
        y = (y if first else y.transpose(0, 1)).mean(1)
        if weights is not None:
            y = y + weights.flatten(1).square().sum(1, keepdim=True)
        return self.out(y)


CAUSAL = nn.Transformer.generate_square_subsequent_mask(3, dtype=torch.float64)
PADDED = lambda x: torch.arange(3) >= 1 + torch.arange(len(x))[:, None] % 3  # noqa: E731
ATTENTION = {
    "plain": ({}, {}),
    "time first": ({"batch_first": False}, {}),
    "no weights": ({"batch_first": False}, {"need_weights": False}),
    "weights of all heads": ({}, {"average_attn_weights": False}),
    "no bias": ({"bias": False}, {}),
    "other sizes": ({"kdim": 3, "vdim": 2}, {}),
    "cross": ({"cross": True}, {"need_weights": False}),
    "cross with other sizes": ({"cross": True, "kdim": 3, "vdim": 2, "batch_first": False}, {}),
    "float mask": ({}, {"attn_mask": CAUSAL}),
    "bool mask": ({"batch_first": False}, {"attn_mask": CAUSAL.bool(), "need_weights": False}),
    "causal hint": ({}, {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False}),
    "causal hint with weights": ({}, {"attn_mask": CAUSAL, "is_causal": True}),
    "mask for every head": ({}, {"attn_mask": lambda x: CAUSAL.expand(2 * len(x), 3, 3) * 0.5, "need_weights": False}),
    "padding": ({}, {"key_padding_mask": PADDED}),
    "padding and mask": ({}, {"key_padding_mask": PADDED, "attn_mask": CAUSAL.bool(), "need_weights": False}),
    "zero attention": ({"add_zero_attn": True}, {"attn_mask": CAUSAL}),
}


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("case", ATTENTION)
def test_attention_in_the_open(case, n):
    options, call = ATTENTION[case]
    network = check(Attending(call, **options), torch.randn(n, 3, 4))
    assert list(network.blocks) == ["attn.q", "attn.k", "attn.v", "attn.out", "out"]
    assert network.tangent_space["attn.k"].shape[0] == 4


@pytest.mark.parametrize("need_weights", [True, False])
def test_learned_keys_and_values_keep_a_place_of_their_own(need_weights):
    model = Attending({"key_padding_mask": PADDED, "need_weights": need_weights}, add_bias_kv=True, add_zero_attn=True)
    network = check(model, torch.randn(3, 3, 4), ["attn.bias_k", "attn.bias_v"])
    assert network._per_example.names == ()  # they stand in once for every example


@pytest.mark.parametrize("frozen", ["in_proj_bias", "in_proj_weight", "in_proj_weight in_proj_bias", "out_proj.weight"])
def test_attention_partly_frozen(frozen):
    model = Attending()
    for name in frozen.split():
        model.attn.get_parameter(name).requires_grad_(False)
    network = check(model, torch.randn(3, 3, 4))
    assert "attn.out" in network.blocks


def test_attention_called_twice_and_tied():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn, self.again = nn.MultiheadAttention(4, 2), nn.MultiheadAttention(4, 1)
            self.again.in_proj_weight, self.again.in_proj_bias = self.attn.in_proj_weight, self.attn.in_proj_bias
            self.again.out_proj.weight, self.again.out_proj.bias = self.attn.out_proj.weight, self.attn.out_proj.bias
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            x = x.transpose(0, 1)
            for attn in (self.attn, self.again, self.attn):
                x = x + attn(x, x, x, need_weights=False)[0]
            return self.head(x[0])

    network = check(Twice(), torch.randn(3, 3, 4))
    assert network.observe(torch.randn(3, 3, 4), InputsOnly())["attn.q"].sites == 9
    assert "tied with again" in network.coverage()["attn.in_proj_weight"].assumed


def test_a_fused_parameter_is_in_the_table_once():
    coverage = Network.from_torch(Attending(), Categorical()).coverage()
    row = coverage["attn.in_proj_weight"]
    assert row.layer == "attn.q, attn.k, attn.v" and row.size == 48
    assert row.factor_bytes == 3 * (5**2 + 4**2) * 8


def test_a_lone_attention():
    class Self(nn.MultiheadAttention):
        """A subclass that keeps the forward; called with three tensors."""

    model = Self(2, 1, batch_first=True)
    network = Network.from_torch(model, Categorical(), (torch.randn(3, 2, 2),) * 3, read=lambda out: out[0])
    assert list(network.blocks) == ["self.q", "self.k", "self.v", "self.out"]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer])
def test_transformer_layers(kind, training):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = kind(4, 2, 6, dropout=0.0, batch_first=True, activation="gelu")
            self.out = nn.Linear(4, 2)

        def forward(self, x):
            decoding = kind is nn.TransformerDecoderLayer
            h = self.layer(x, x.cos()) if decoding else self.layer(x, src_key_padding_mask=PADDED(x))
            return self.out(h[:, 0])

    model = Model()
    model.train(training)
    network = check(model, torch.randn(3, 3, 4))
    assert "layer.self_attn.q" in network.blocks


def test_dropout_inside_fused_modules_draws_the_same_masks():
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.4, batch_first=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 2))
    x = torch.randn(4, 3, 4)
    network = Network.from_torch(model, Categorical(), x)
    assert network.coverage().constant == ()
    torch.manual_seed(3)
    outputs = network.observe(x).outputs
    torch.manual_seed(3)
    assert torch.allclose(outputs, model(x))


# Recurrent modules


class Reading(nn.Module):
    def __init__(self, kind, start=False, **options):
        super().__init__()
        self.rnn = kind(2, 3, **options)
        directions = 2 if options.get("bidirectional") else 1
        width = options.get("proj_size") or 3
        self.out = nn.Linear(directions * width, 2)
        self.start = nn.Linear(2, 3 * directions * options.get("num_layers", 1)) if start else None

    def forward(self, x):
        first = x[:, 0]
        x = x if self.rnn.batch_first else x.transpose(0, 1)
        hx = None
        if self.start is not None:
            hx = self.start(first).tanh().reshape(len(first), -1, 3).transpose(0, 1)
            hx = (hx, hx.cos()) if isinstance(self.rnn, nn.LSTM) else hx
        y, last = self.rnn(x, hx)
        h = last[0] if isinstance(self.rnn, nn.LSTM) else last
        z = self.out(y.mean(1 if self.rnn.batch_first else 0))
        return z + h.square().sum((0, 2))[:, None] * torch.tensor([1.0, -1])


RECURRENT = {
    "rnn": (nn.RNN, {}),
    "rnn relu": (nn.RNN, {"nonlinearity": "relu", "batch_first": True, "num_layers": 2}),
    "lstm": (nn.LSTM, {"start": True}),
    "lstm deep": (nn.LSTM, {"num_layers": 2, "bidirectional": True, "batch_first": True, "start": True}),
    "lstm projected": (nn.LSTM, {"proj_size": 2, "bidirectional": True}),
    "lstm no bias": (nn.LSTM, {"bias": False}),
    "gru": (nn.GRU, {"batch_first": True}),
    "gru deep": (nn.GRU, {"num_layers": 2, "bidirectional": True, "start": True}),
    "gru no bias": (nn.GRU, {"bias": False, "bidirectional": True}),
}


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("case", RECURRENT)
def test_recurrent_modules_in_the_open(case, n):
    kind, options = RECURRENT[case]
    network = check(Reading(kind, **options), torch.randn(n, 3, 2))
    assert "rnn.l0.input" in network.blocks and network.observe(torch.randn(4, 5, 2))["rnn.l0.hidden"].sites == 5
    if options.get("bidirectional"):
        assert "rnn.l0r.hidden" in network.blocks


def test_a_recurrent_map_alone_is_trained():
    model = Reading(nn.LSTM)
    model.rnn.weight_ih_l0.requires_grad_(False)
    model.rnn.bias_ih_l0.requires_grad_(False)
    assert "rnn.l0.input" not in check(model, torch.randn(3, 3, 2)).blocks


def test_dropout_between_recurrent_layers():
    model = Reading(nn.GRU, num_layers=2, dropout=0.5)
    assert Network.from_torch(model, Categorical(), torch.randn(4, 3, 2)).coverage().constant == ()


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("sorted_already", [True, False])
def test_packed_sequences(kind, sorted_already):
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = kind(2, 3, batch_first=True, bidirectional=True), nn.Linear(6, 2)

        def forward(self, x, lengths):
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=sorted_already)
            y, last = self.rnn(packed)
            h = last[0] if isinstance(self.rnn, nn.LSTM) else last
            z = self.out(pad_packed_sequence(y, batch_first=True)[0].sum(1))
            return z + h.sum((0, 2))[:, None].sin() * torch.tensor([1.0, 2])

    lengths = torch.tensor([4, 2, 1]) if sorted_already else torch.tensor([2, 4, 1])
    check(Packed(), (torch.randn(3, 4, 2), lengths), pushforward=False)  # torch.func knows no pad_packed_sequence


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
@pytest.mark.parametrize("bias", [True, False])
def test_cells_used_over_time(kind, bias):
    class Unrolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.out = kind(2, 3, bias=bias), nn.Linear(3, 2)

        def forward(self, x):
            state = None
            for t in range(x.shape[1]):
                state = self.cell(x[:, t], state)
            return self.out(state[0] if isinstance(state, tuple) else state)

    network = check(Unrolled(), torch.randn(3, 3, 2))
    assert network.observe(torch.randn(3, 3, 2))["cell.hidden"].sites == 3


def test_bilinear():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair, self.out = nn.Bilinear(2, 3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.out(self.pair(x[..., :2].tanh(), x).relu()).sum(1)

    network = check(Model(), torch.randn(3, 3, 3))
    assert network.tangent_space["pair"].shape == (4, 7)
    alone = Network.from_torch(nn.Bilinear(2, 3, 4), Categorical(), (torch.randn(5, 2), torch.randn(5, 3)))
    assert list(alone.blocks) == ["self"]


def test_a_fused_module_with_a_weight_made_of_others():
    model, made = Reading(nn.LSTM), "parametrizations.weight_hh_l0.original"
    nn.utils.parametrizations.weight_norm(model.rnn, "weight_hh_l0")
    network = check(model, torch.randn(3, 3, 2), [f"rnn.{made}0", f"rnn.{made}1"])
    assert "rnn.l0.input" in network.blocks


# Wrong open forwards


@pytest.fixture
def wrong(monkeypatch):
    def put(change):
        fused = FUSED[nn.LSTM]

        def expand(module, record):
            forward = fused.expand(module, record)
            return lambda *args: change(*forward(*args))

        monkeypatch.setitem(FUSED, nn.LSTM, Fused(fused.parts, expand))

    return put


def test_a_forward_in_the_open_that_is_wrong_is_closed(wrong):
    wrong(lambda y, last: (y * 1.001, last))
    x = torch.randn(3, 3, 2)
    model = Both(Reading(nn.LSTM), Reading(nn.GRU))
    network = check(model, x, [f"a.rnn.{name}" for name, _ in model.a.rnn.named_parameters()])
    assert "run in the open, it gives other outputs" in network.coverage()["a.rnn.weight_ih_l0"].assumed
    assert "b.rnn.l0.input" in network.blocks


def test_a_forward_in_the_open_that_depends_on_less_is_closed(wrong):
    wrong(lambda y, last: (y.detach() + 0 * y, last))
    network = Network.from_torch(Reading(nn.LSTM), Categorical(), torch.randn(3, 3, 2))
    assert "it gives other gradients" in network.coverage()["rnn.weight_hh_l0"].assumed


def test_single_precision_behind_a_double_output():
    model = Reading(nn.LSTM, num_layers=2).float()  # a constant of its forward is double
    network = Network.from_torch(model, Categorical(), torch.randn(5, 20, 2).float())
    assert network.observe(torch.randn(2, 3, 2).float()).outputs.dtype == torch.float64
    assert not network.coverage().constant


def test_a_forward_in_the_open_that_raises_is_closed(wrong):
    def refuse(y, last):
        raise NotImplementedError

    wrong(refuse)
    network = Network.from_torch(Reading(nn.LSTM), Categorical(), torch.randn(3, 3, 2))
    assert "it raises NotImplementedError" in network.coverage()["rnn.weight_hh_l0"].assumed


def test_a_reading_in_the_open_that_is_wrong_is_given_up(monkeypatch):
    fused = FUSED[nn.MultiheadAttention]

    def expand(module, record):
        return fused.expand(module, lambda part, x, y: record(part, 2 * x if part == "k" else x, y))

    monkeypatch.setitem(FUSED, nn.MultiheadAttention, Fused(fused.parts, expand, fused.children))
    network = check(Attending(), torch.randn(3, 3, 4), ["attn.in_proj_weight", "attn.in_proj_bias"])
    assert "attn.out" in network.blocks  # the parts that share a parameter go together, and no others


class Both(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x):
        return self.a(x) + self.b(x)


def test_a_forward_of_ones_own_is_not_opened():
    class Own(nn.LSTM):
        def forward(self, x):
            y, (h, _) = super().forward(x)
            return y + h[-1][:, None]

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = Own(2, 3, batch_first=True), nn.Linear(3, 2)

        def forward(self, x):
            return self.out(self.rnn(x).sum(1))

    check(Model(), torch.randn(3, 3, 2), [f"rnn.{k}_l0" for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")])


# A type known by its name


def test_the_transposed_linear_map_of_transformers(monkeypatch):
    package = types.ModuleType("transformers.pytorch_utils")

    class Conv1D(nn.Module):
        def __init__(self, nf, nx):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))

        def forward(self, x):
            return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], -1)

    Conv1D.__module__, Conv1D.__qualname__ = package.__name__, "Conv1D"
    monkeypatch.setitem(sys.modules, package.__name__, package)
    model = nn.Sequential(Conv1D(3, 2), nn.Tanh(), Conv1D(2, 3), nn.Flatten(1))
    network = check(model, torch.randn(3, 2, 2))
    assert network.tangent_space["0"].shape == (3, 3)
    Conv1D.__module__ = "elsewhere"
    assert len(Network.from_torch(model, Categorical()).coverage().constant) == 4


# Shared between examples


class Positions(nn.Module):
    """Positions embedded once for a batch, in several shapes, and maps of what has no examples."""

    def __init__(self, how):
        super().__init__()
        self.embed, self.position, self.out = nn.Embedding(6, 4), nn.Embedding(3, 4), nn.Linear(4, 3)
        self.how = how

    def forward(self, tokens):
        h = self.embed(tokens)
        t = torch.arange(tokens.shape[1], device=tokens.device)
        if self.how == "row":
            h = h + self.position(t)
        elif self.how == "batch of one":
            h = h + self.position(t[None])
        elif self.how == "time first":
            h = (h.transpose(0, 1) + self.position(t[:, None])).transpose(0, 1)
        elif self.how == "twice, once with examples":
            h = self.position(tokens % 3) * self.position(t)
        elif self.how == "last":
            h = (h * self.position(t))[:, -1:]
        return self.out(h.tanh()).sum(1)


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("how", ["row", "batch of one", "time first", "twice, once with examples", "last"])
def test_positions_are_read_as_tokens_are(how, n):
    network = check(Positions(how), torch.randint(0, 6, (n, 3)))
    assert network.blocks["position"].reader is not None
    assert not network.coverage().constant


def test_an_output_that_looks_at_one_site_does_not_pass_for_an_example():
    """With as many sites as examples, the gradient of one example stands alone at one position."""
    network = check(Positions("last"), torch.randint(0, 6, (2, 2)))
    assert network._spreading


def test_a_padding_token_has_no_gradient():
    model = nn.Sequential(nn.Embedding(6, 4, padding_idx=2), nn.Linear(4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(9, 2))
    with torch.no_grad():
        model[0].weight.add_(1.0)
    # the outputs do depend on its row, and J v says so; what torch's backward leaves out is left out of gradients
    network = check(model, torch.tensor([[2, 2, 1], [0, 1, 2], [3, 3, 3], [1, 5, 0]]), pushforward=False)
    assert not network.coverage().constant


def test_positions_of_a_batch_of_one_are_looked_at_again():
    model, x = Positions("row"), torch.randint(0, 6, (4, 3))
    network = Network.from_torch(model, Categorical(), x[:1])
    expected = second_moment(Network.from_torch(model, Categorical(), x).observe(x).gradients).matrix()
    assert torch.allclose(second_moment(network.observe(x).gradients).matrix(), expected)
    one = second_moment(network.observe(x[:1]).gradients).matrix()
    assert torch.allclose(second_moment(network.observe(x).gradients).matrix(), expected)
    assert not torch.allclose(one, expected)


def test_other_lengths_than_those_verified():
    model, x = Positions("row"), torch.randint(0, 6, (4, 3))
    network = Network.from_torch(model, Categorical(), x)
    for part in (x[:, :2], x[:1], x[:, :1]):
        ours = second_moment(network.observe(part).gradients).matrix()
        J = oracle(model, network, part)
        F = torch.einsum("nop,noq,nqr->pr", J, Categorical().matrix(model(part).detach()), J) / len(part)
        P = in_parameters(network)
        assert torch.allclose(ours, P @ F @ P.mT)


class Bare(nn.Module):
    """Bare parameters in the ways in which they are used."""

    def __init__(self, shape, use):
        super().__init__()
        self.first, self.p, self.out, self.use = nn.Linear(4, 4), nn.Parameter(torch.randn(shape)), nn.Linear(4, 3), use

    def forward(self, x):
        return self.out(self.use(self.first(x), self.p).tanh()).sum(1)


BARE = {
    "positions": ((3, 4), lambda h, p: h + p),
    "positions of a batch of one": ((1, 3, 4), lambda h, p: h + p),
    "positions time first": ((3, 1, 4), lambda h, p: (h.transpose(0, 1) + p).transpose(0, 1)),
    "token": ((1, 1, 4), lambda h, p: torch.cat([p.expand(len(h), -1, -1), h], 1)),
    "scale": ((4,), lambda h, p: h * p),
    "number": ((), lambda h, p: h * p),
    "gate of one token": ((4,), lambda h, p: h[:, -1:] * p),
    "matrix": ((4, 4), lambda h, p: h @ p),
}
ALONE = {
    "weight": ((4, 4), lambda h, p: nn.functional.linear(h, p)),
    "table": ((5, 4), lambda h, p: h + p[torch.tensor([0, 4, 2])]),
    "inner": ((4, 4), lambda h, p: h * (p @ p).trace()),
    "mixed over examples and time": ((3, 4), lambda h, p: h * nn.functional.normalize(p, dim=0)),
}


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("case", BARE)
def test_bare_parameters_stand_in_once_for_every_example(case, n):
    network = check(Bare(*BARE[case]), torch.randn(n, 3, 4), ["p"])
    assert network._per_example.names == ()


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("case", ALONE)
def test_other_bare_parameters_are_differentiated_example_by_example(case, n):
    check(Bare(*ALONE[case]), torch.randn(n, 3, 4), ["p"])


def test_what_is_tried_is_safe_to_try():
    """Shapes that do not fit must be refused by whatever meets them: no LAPACK, no lookup out of range."""
    p = nn.Parameter(torch.eye(3))
    node = get_gradient_edge(p).node
    x = torch.randn(2, 3)
    assert Graph((x * p[0].sigmoid()).tanh() @ torch.linalg.inv(x.mT @ x + torch.eye(3))).robust(node)
    assert not Graph(x @ torch.linalg.inv(p.mT)).robust(node)
    assert not Graph(x @ torch.linalg.householder_product(p, torch.ones(3))).robust(node)
    table, wrong = torch.randn(4, 2), torch.tensor([1, 7])
    looked = [lambda: table[wrong], lambda: nn.functional.embedding(wrong, table), lambda: table.index_select(0, wrong)]
    for look in looked:
        with lookups_checked(), pytest.raises(IndexError, match="index out of range for a dimension of size 4"):
            look()
    with lookups_checked():
        assert torch.equal(table[torch.tensor([-1, 3])], table[[3, 3]])


def test_an_exception_in_the_open_leaves_no_trace():
    model = Reading(nn.LSTM)
    network = Network.from_torch(model, Categorical(), torch.randn(3, 3, 2))
    with pytest.raises(RuntimeError):
        network.observe(torch.randn(3, 3, 4))
    assert all("forward" not in vars(m) and not m._forward_hooks for m in model.modules())


def test_a_training_loop_sees_what_is_shared():
    model, x = Bare(*BARE["positions"]), torch.randn(3, 3, 4)
    network = Network.from_torch(model, Categorical(), x)
    with network.watch() as tape:
        loss = model(x).logsumexp(1).mean()
        assert isinstance(model.p, nn.Parameter)
    seen = second_moment(tape.observe(Exact()).gradients).matrix()
    loss.backward()
    assert model.p.grad is not None and model.p.grad.shape == (3, 4)
    assert torch.allclose(seen, second_moment(network.observe(x).gradients).matrix())
    with network.watch() as tape:
        with pytest.raises(RuntimeError):
            model(torch.randn(3, 3, 5))
        assert isinstance(model.p, nn.Parameter)  # also where the forward fails


def test_too_many_per_example_gradients_are_refused(monkeypatch):
    network = Network.from_torch(Bare(*BARE["positions"]), Categorical(), torch.randn(3, 3, 4))
    monkeypatch.setattr(constants, "LARGEST", 50)
    with pytest.raises(UnsupportedLayer, match=r"3 examples × 3 draws × 12 numbers .* 'p'.*MonteCarlo\(1\)"):
        network.observe(torch.randn(3, 3, 4))
    network.observe(torch.randn(3, 3, 4), MonteCarlo(1))


def test_the_table_says_what_is_shared_and_what_is_large():
    coverage = Network.from_torch(Bare(*BARE["positions"]), Categorical(), torch.randn(3, 3, 4)).coverage()
    assert "spread over them" in coverage["p"].assumed and "at most" not in coverage["p"].assumed
    assert "spread over them" not in coverage["first.weight"].assumed
    large = Network.from_torch(Bare((300, 300), None), Categorical()).coverage()
    assert "at most 2,982 examples × draws at a time" in large["p"].assumed


# Weights made of other parameters


def half(module):
    mask = torch.ones_like(module.weight)
    mask.view(-1)[::2] = 0
    return nn.utils.prune.custom_from_mask(module, "weight", mask)


class Symmetric(nn.Module):
    def forward(self, w):
        return w.triu() + w.triu(1).mT


def own(module):
    nn.utils.parametrize.register_parametrization(module, "weight", Symmetric())
    return module


ORIGINAL = "1.parametrizations.weight.original"
REPARAMETRIZED = {
    "weight norm": (nn.utils.parametrizations.weight_norm, {f"{ORIGINAL}0", f"{ORIGINAL}1"}),
    "spectral norm": (nn.utils.parametrizations.spectral_norm, {ORIGINAL}),
    "orthogonal": (nn.utils.parametrizations.orthogonal, {ORIGINAL}),
    "own": (own, {ORIGINAL}),
    "pruned": (half, {"1.weight_orig"}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", REPARAMETRIZED)
def test_weights_made_of_other_parameters(case):
    make, constant = REPARAMETRIZED[case]
    model = nn.Sequential(nn.Linear(3, 3), make(nn.Linear(3, 3)), nn.Tanh(), nn.Linear(3, 2))
    model.eval()
    check(model, torch.randn(4, 3), constant)
