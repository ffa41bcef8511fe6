"""Networks inside training loops: the loop's own passes observed, what surrounds a module in practice, bad input."""

import gc
import re
import runpy
import subprocess
import sys
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from networks_zoo import ZOO, Merged, Tokens
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from riemann_ng.errors import (
    DtypeMismatch,
    InvalidTargets,
    NonFinite,
    ObservationMismatch,
    ShapeMismatch,
    UnsupportedLayer,
)
from riemann_ng.inner_products import second_moment
from riemann_ng.likelihoods import Categorical, Gaussian
from riemann_ng.networks import CurvatureProp, Empirical, Exact, InputsOnly, MonteCarlo, Network


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))


def batch(n=6):
    return torch.randn(n, 4), torch.randint(0, 3, (n,))


def without_hooks(model):
    """No hook, no patched forward, no gradient on any parameter's accumulator."""
    return all(
        not (m._forward_hooks or m._forward_pre_hooks or m._backward_hooks) and "forward" not in vars(m)
        for m in model.modules()
    )


def same(one, other, **tolerance):
    assert list(one) == list(other)
    for path in one:
        for ours, theirs in ((one[path].inputs, other[path].inputs), (one[path].cotangents, other[path].cotangents)):
            assert ours.counts == theirs.counts
            assert torch.allclose(ours.dense(), theirs.dense(), **tolerance), path


# A loop's own passes


@pytest.mark.parametrize("name", [n for n in ZOO if n not in ("conv1d", "conv3d", "batch norm 1d")])
@pytest.mark.parametrize("estimator", [Exact(), MonteCarlo(2, seed=1), CurvatureProp(), "empirical", "backward"])
def test_a_watched_loop_says_what_an_observation_says(name, estimator):
    make, inputs = ZOO[name]
    model, x = make().eval(), inputs(5)
    y = torch.randint(0, model(x).shape[-1], model(x).shape[:-1])
    network, reference = (Network.from_torch(model, Categorical(), x, name="net") for _ in range(2))
    kind = Empirical() if estimator == "backward" else Empirical(y) if estimator == "empirical" else estimator
    with network.watch() as tape:
        loss = Categorical().loss(model(x), y)
        if estimator == "backward":
            loss.backward()
    observation = tape.observe(kind)
    if estimator != "backward":
        loss.backward()  # the graph is still the loop's
    same(observation, reference.observe(x, Empirical(y) if isinstance(kind, Empirical) else kind))
    assert not observation.outputs.requires_grad
    for layer in observation.layers.values():
        assert not layer.inputs.dense().requires_grad and not layer.cotangents.dense().requires_grad
    df = reference.differential(x, y)
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in network.parameters.items()}
    assert torch.allclose(network.covector(gradients).data, df.data)
    assert without_hooks(model)


class Counting(nn.Module):
    """Counts what is run."""

    def __init__(self):
        super().__init__()
        self.body, self.forwards, self.backwards = mlp(), 0, 0

    def forward(self, x):
        self.forwards += 1
        z = self.body(x)
        if z.requires_grad:
            z.register_hook(self.count)
        return z

    def count(self, gradient):
        self.backwards += 1


def test_one_forward_and_one_backward_and_nothing_else():
    x, y = batch()
    model = Counting()
    network = Network.from_torch(model, Categorical(), x)
    model.forwards = model.backwards = 0
    with network.watch() as tape:
        F.cross_entropy(model(x), y).backward()
    tape.observe(Empirical())
    assert (model.forwards, model.backwards) == (1, 1)
    with network.watch() as tape:
        loss = F.cross_entropy(model(x), y)
    tape.observe(MonteCarlo(1))
    loss.backward()
    assert (model.forwards, model.backwards) == (2, 3)
    network.observe(x, Empirical(y))
    assert model.forwards == 3  # the count sees a forward of our own


def test_an_unverified_network_is_verified_on_the_first_batch_of_the_loop():
    make, inputs = ZOO["weight elsewhere"]
    model, x = make(), inputs(5)
    network = Network.from_torch(model, Categorical())
    with network.watch() as tape:
        loss = model(x).square().sum()
    tape.observe(MonteCarlo())
    loss.backward()
    assert network.coverage().verified and "first" not in network.blocks


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_several_backwards_are_more_examples(parts):
    x, y = batch()
    model = mlp()
    network = Network.from_torch(model, Categorical(), x, name="net")
    tape = network.watch().start()
    for rows in torch.arange(6).chunk(parts):
        (F.cross_entropy(model(x[rows]), y[rows]) / parts).backward()
    assert tape.examples == 6
    observation = tape.observe(Empirical(), divided_by=6)
    same(observation, network.observe(x, Empirical(y)))
    for rows in torch.arange(6).chunk(parts):
        F.cross_entropy(model(x[rows]), y[rows], reduction="sum").backward()
    same(tape.observe(Empirical(), divided_by=1), observation)
    for rows in torch.arange(6).chunk(parts):
        F.cross_entropy(model(x[rows]), y[rows]).backward()
    same(tape.observe(Empirical()), observation)
    for rows in torch.arange(6).chunk(parts):
        F.cross_entropy(model(x[rows]), y[rows]).backward()
    wrong = tape.observe(Empirical(), divided_by=1)
    assert not torch.allclose(wrong["0"].cotangents.dense(), observation["0"].cotangents.dense())
    tape.close()


def test_micro_batches_of_different_lengths_are_padded():
    model = Tokens()
    model.position = nn.Parameter(torch.randn(1, 4))  # any length
    long, short = torch.randint(0, 6, (4, 3)), torch.randint(0, 6, (2, 2))
    network = Network.from_torch(model, Categorical(), long)
    with network.watch() as tape:
        for x in (long, short):
            Categorical().loss(model(x), x).backward()
    observation = tape.observe(Empirical())
    layer = observation["mix"]
    assert observation.outputs.shape == (6, 3, 6) and not observation.outputs[4:, 2].any()
    assert layer.inputs.counts == (6, 1, 3) and float(layer.inputs.measure.mask.sum()) == 4 * 3 + 2 * 2
    A = second_moment(layer.inputs).matrix()
    parts = [network.observe(x, Empirical(x))["mix"] for x in (long, short)]
    tokens = [second_moment(part.inputs).matrix() * part.inputs.counts[0] * part.sites for part in parts]
    assert torch.allclose(A, sum(tokens) / 16)
    assert torch.allclose(A[-1, -1], torch.ones(()))
    G = sum(second_moment(part.cotangents).matrix() * part.inputs.counts[0] for part in parts) / 6
    assert torch.allclose(second_moment(layer.cotangents).matrix(), G)


def test_a_scaled_loss_and_two_losses_of_one_forward():
    x, y = batch()
    model = mlp()
    network = Network.from_torch(model, Categorical(), x, name="net")
    with network.watch() as tape:
        (1024 * F.cross_entropy(model(x), y)).backward()
    same(tape.observe(Empirical(), divided_by=6 / 1024), network.observe(x, Empirical(y)))
    with network.watch() as tape:
        z = model(x)
        (0.25 * F.cross_entropy(z, y)).backward(retain_graph=True)
        (0.75 * F.cross_entropy(z, y)).backward()
    same(tape.observe(Empirical()), network.observe(x, Empirical(y)))


def test_off_costs_nothing_and_records_nothing():
    x, y = batch()
    model = mlp()
    network = Network.from_torch(model, Categorical(), x)
    tape = network.watch()
    F.cross_entropy(model(x), y).backward()
    assert tape.examples == 0 and without_hooks(model) and not tape.recording
    tape.start()
    with torch.no_grad():
        model(x)
    with torch.inference_mode():
        model(x)
    assert tape.examples == 0 and tape.recording and not without_hooks(model)
    model[0](x)  # a layer by itself belongs to no pass
    with pytest.raises(ObservationMismatch, match="no forward pass with gradients and examples has been"):
        tape.observe()
    F.cross_entropy(model(x), y).backward()
    assert tape.examples == 6
    tape.stop()
    assert without_hooks(model)
    F.cross_entropy(model(x), y).backward()
    assert tape.observe(Empirical()).examples == 6 and tape.examples == 0
    tape.close()
    with pytest.raises(ObservationMismatch, match="the tape is closed"):
        tape.start()


class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.fail = nn.Linear(4, 3), False
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        x = self.attention(x[:, None], x[:, None], x[:, None])[0][:, 0]
        z = self.first(x)
        if self.fail:
            raise KeyError("the loop's own")
        return z


def test_hooks_are_gone_after_the_loops_own_exception():
    x, y = batch()
    model = Fails()
    network = Network.from_torch(model, Categorical(), x)
    model.fail = True
    tape = network.watch()
    with pytest.raises(KeyError), tape:
        model(x)
    assert without_hooks(model) and tape.examples == 0
    model.fail = False
    with pytest.raises(ZeroDivisionError), tape:
        F.cross_entropy(model(x), y).backward()
        raise ZeroDivisionError
    assert without_hooks(model) and tape.observe(Empirical()).examples == 6
    model.fail = True
    with pytest.raises(KeyError):
        network.observe(x)
    assert without_hooks(model)


def test_a_tape_lets_go_of_the_graph():
    x, y = batch()
    model = mlp()
    network = Network.from_torch(model, Categorical(), x)

    def alive():
        gc.collect()
        return sum(1 for o in gc.get_objects() if isinstance(o, torch.Tensor))

    tape = network.watch().start()

    def loop():
        for estimator in (Empirical(), MonteCarlo(1), InputsOnly()):
            loss = F.cross_entropy(model(x), y)
            if isinstance(estimator, Empirical):
                loss.backward()
            tape.observe(estimator)
        F.cross_entropy(model(x), y).backward()  # recorded, and not observed
        tape.clear()

    loop()
    before = alive()
    for _ in range(50):
        loop()
    assert alive() <= before
    F.cross_entropy(model(x), y)
    assert alive() > before  # what is recorded is alive: the count sees it
    tape.close()
    assert alive() <= before


MEMORY = """
import gc, resource, sys, torch
from torch import nn
from riemann_ng import Categorical, Empirical, MonteCarlo, Network

x, y = torch.randn(256, 64), torch.randint(0, 10, (256,))
model = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 10))
network = Network.from_torch(model, Categorical(), x)
tape = network.watch()

def once():
    if sys.argv[1] == "observe":
        return network.observe(x, MonteCarlo())
    with tape:
        nn.functional.cross_entropy(model(x), y).backward()
    return tape.observe(Empirical())

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20

for _ in range(20):
    once()
gc.disable()  # nothing may wait for the collector: a cycle through the graph would
start = resident()
for _ in range(200):
    once()
grown = resident() - start
held = [once() for _ in range(200)]
print(grown, resident() - start)
"""


@pytest.mark.parametrize("way", ["observe", "watch"])
def test_two_hundred_observations_take_no_more_memory_than_a_few(way):
    """In a process of its own, whose memory in MiB shows what is kept: an observation weighs about one."""
    done = subprocess.run([sys.executable, "-c", MEMORY, way], capture_output=True, text=True, check=True)
    grown, held = map(float, done.stdout.split())
    assert grown < 20
    assert held > 50


def test_a_forgotten_tape_takes_its_hooks_with_it():
    model = mlp()
    network = Network.from_torch(model, Categorical(), batch()[0])
    tape = network.watch()
    tape.start()
    assert not without_hooks(model)  # they hold the tape
    state, held = model.state_dict(), weakref.ref(tape)
    del tape, network
    gc.collect()
    assert held() is not None  # by the hooks
    del model
    gc.collect()
    assert held() is None and state


# What surrounds a module in practice


class Blocks(nn.Module):
    """Two residual blocks, which may be checkpointed."""

    def __init__(self, how=None):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.how = how

    def block(self, layer, x):
        return x + torch.tanh(layer(x))

    def forward(self, x):
        for layer in (self.first, self.second):
            x = self.block(layer, x) if self.how is None else checkpoint(self.block, layer, x, **self.how)
        return self.out(x)


@pytest.mark.parametrize("estimator", [Exact(), MonteCarlo(2), Empirical(torch.tensor([0, 1, 2, 0, 1, 2]))])
def test_checkpoints_record_once(estimator):
    x, y = batch()[0], torch.tensor([0, 1, 2, 0, 1, 2])
    plain, saving = Blocks(), Blocks({"use_reentrant": False})
    saving.load_state_dict(plain.state_dict())
    expected = Network.from_torch(plain, Categorical(), x).observe(x, estimator)
    network = Network.from_torch(saving, Categorical(), x)
    same(network.observe(x, estimator), expected)
    again = Network.from_torch(saving, Categorical(), x)
    with again.watch() as tape:
        loss = F.cross_entropy(saving(x), y)
        if isinstance(estimator, Empirical):
            loss.backward()  # computes the blocks again, while they are watched
    same(tape.observe(Empirical() if isinstance(estimator, Empirical) else estimator), expected)
    assert without_hooks(saving)


@pytest.mark.parametrize("way", ["observe", "watch"])
def test_reentrant_checkpoints_are_told_how_to_mend(way):
    x = batch()[0].requires_grad_()
    model = Blocks({"use_reentrant": True})
    network = Network.from_torch(model, Categorical())
    with pytest.raises(UnsupportedLayer, match=r"'first' is inside a checkpoint .*use_reentrant=False"):
        if way == "observe":
            network.observe(x)
        else:
            with network.watch():
                model(x)
    assert without_hooks(model)


def test_layers_used_without_gradients_are_no_mistake():
    x, _ = batch()

    class Features(Blocks):
        def forward(self, x):
            with torch.no_grad():
                x = torch.tanh(self.first(x))
            return self.out(torch.tanh(self.second(x)))

    observation = Network.from_torch(Features(), Categorical(), x).observe(x)
    assert not observation["first"].cotangents.dense().any() and observation["second"].cotangents.dense().any()


@pytest.mark.parametrize("whole", [True, False])
def test_compiled_modules_are_watched_as_written(whole):
    x, y = batch()
    plain = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    body = torch.compile(plain, backend="eager")
    body(x)  # compiled before it is read
    model = body if whole else nn.Sequential(body, nn.Linear(3, 3))
    network = Network.from_torch(model, Categorical(), x)
    assert list(network.blocks) == (["0", "2"] if whole else ["0._orig_mod.0", "0._orig_mod.2", "1"])
    reference = Network.from_torch(plain if whole else nn.Sequential(plain, model[1]), Categorical(), x)
    for estimator in (Exact(), Empirical(y)):
        one, other = network.observe(x, estimator), reference.observe(x, estimator)
        assert torch.equal(second_moment(one.gradients).matrix(), second_moment(other.gradients).matrix())
    with network.watch() as tape:
        F.cross_entropy(model(x), y).backward()
    watched = tape.observe(Empirical())
    assert torch.allclose(watched.gradients.dense(), network.observe(x, Empirical(y)).gradients.dense())


def test_compiled_code_runs_as_written_while_it_is_watched_and_only_then():
    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            self.compiled = torch.compiler.is_compiling()
            return self.layer(x)

    x, _ = batch()
    asks = Asks()
    model = torch.compile(asks, backend="eager")

    def compiled():
        model(x)
        return asks.compiled

    assert compiled()
    network = Network.from_torch(model, Categorical(), x)
    assert not asks.compiled and compiled()
    with network.watch() as tape:
        assert not compiled()
    assert tape.examples == 6 and compiled()
    tape = network.watch().start()
    assert not compiled()
    tape.stop()
    assert compiled()


def test_a_compiled_module_with_a_constant_block():
    x, _ = batch()

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.out = nn.Parameter(torch.randn(3, 4)), nn.Linear(3, 3)

        def forward(self, x):
            return self.out(torch.tanh(x @ self.scale.T))

    plain = Scaled()
    compiled = nn.Sequential(torch.compile(plain, backend="eager"))
    compiled(x)
    one, other = (Network.from_torch(m, Categorical(), x) for m in (compiled, plain))
    assert torch.allclose(one.observe(x).gradients.dense(), other.observe(x).gradients.dense())
    v = {name: torch.randn_like(p) for name, p in other.parameters.items()}
    renamed = dict(zip(one.parameters, v.values(), strict=True))
    assert torch.allclose(one.pushforward(one.vector(renamed), x), other.pushforward(other.vector(v), x))


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_distributed_modules(one_process):
    x, y = batch()
    plain = mlp()
    model = nn.parallel.DistributedDataParallel(plain)
    network = Network.from_torch(model, Categorical(), x)
    assert list(network.parameters) == list(dict(plain.named_parameters()))
    expected = Network.from_torch(plain, Categorical(), x).observe(x, Empirical(y))
    same(network.observe(x, Empirical(y)), expected)
    for _ in range(2):  # the reducer's own state survives
        with network.watch() as tape:
            loss = F.cross_entropy(model(x), y)
        same(tape.observe(Empirical(y)), expected)
        with network.watch() as tape:
            F.cross_entropy(model(x), y).backward()
        same(tape.observe(Empirical()), expected)
        loss.backward()
    assert torch.allclose(plain[0].weight.grad, 4 * network.differential(x, y).blocks["0"][:, :-1])


@pytest.mark.parametrize("nested", [False, True])
def test_data_parallel_is_refused(nested):
    model = nn.DataParallel(mlp())
    with pytest.raises(UnsupportedLayer, match=r"nn.DataParallel, which copies its layers.*Read its .module"):
        Network.from_torch(nn.Sequential(model) if nested else model, Categorical())


@pytest.mark.parametrize("way", ["observe", "watch"])
def test_autocast(way):
    torch.set_default_dtype(torch.float32)
    x, y = batch(64)
    model = nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 3))
    reference = Network.from_torch(model, Categorical(), x).observe(x, Empirical(y))
    network = Network.from_torch(model, Categorical())
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
        if way == "observe":
            observation = network.observe(x, Empirical(y))
        else:
            with network.watch() as tape:
                F.cross_entropy(model(x), y).backward()
            observation = tape.observe(Empirical())
    assert network.coverage().constant == ()  # verified in half precision, and not rejected for its rounding
    for path in reference:
        for ours, exact in (
            (observation[path].inputs, reference[path].inputs),
            (observation[path].cotangents, reference[path].cotangents),
        ):
            assert ours.dtype == torch.float32
            moment = second_moment(ours).matrix()
            assert moment.dtype == torch.float32
            wanted = second_moment(exact).matrix()
            assert 1e-7 < float((moment - wanted).norm() / wanted.norm()) < 0.02 or path == "0"


def test_half_precision_is_still_held_against_autograd():
    torch.set_default_dtype(torch.float32)
    make, inputs = ZOO["weight elsewhere"]
    network = Network.from_torch(make(), Categorical())
    with torch.autocast("cpu", torch.bfloat16):
        network.observe(inputs(5))
    assert "first" not in network.blocks and "used elsewhere" in network.coverage()["first.weight"].assumed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_in_half_precision(dtype):
    torch.set_default_dtype(torch.float32)
    model = nn.Sequential(nn.Embedding(6, 8), nn.Flatten(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)
    x, y = torch.randint(0, 6, (32, 3)), torch.randint(0, 3, (32,))
    single = nn.Sequential(*(type(m)(*(a for a in shape)) for m, shape in zip(
        model, ((6, 8), (), (24, 16), (), (16, 3)), strict=True)))  # fmt: skip
    single.load_state_dict(model.state_dict())
    network, reference = Network.from_torch(model, Categorical(), x), Network.from_torch(single, Categorical(), x)
    assert network.coverage().constant == ()
    one, other = network.observe(x, Empirical(y)), reference.observe(x, Empirical(y))
    for path in one:
        assert one[path].inputs.dtype == one[path].cotangents.dtype == torch.float32
        G, exact = (second_moment(o[path].cotangents).matrix() for o in (one, other))
        assert float((G - exact).norm() / exact.norm()) < 0.02
    df, exact = network.differential(x, y), reference.differential(x, y)
    assert df.data.dtype == torch.float32
    assert float((df.data - exact.data).norm() / exact.data.norm()) < 0.02
    v = network.vector({name: p.detach() for name, p in network.parameters.items()})
    network.move_(v, -0.5)
    assert all(p.dtype == dtype for p in model.parameters())
    assert torch.equal(model[2].weight, (single[2].weight / 2).to(dtype))
    assert network.pushforward(v, x).dtype == dtype


def test_dropout_has_the_masks_of_the_next_forward():
    x, y = batch(50)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)).train()
    network = Network.from_torch(model, Categorical(), x)
    state = torch.get_rng_state()
    seen = network.observe(x, Empirical(y))
    assert torch.equal(torch.get_rng_state(), state)
    with network.watch() as tape:
        F.cross_entropy(model(x), y).backward()
    same(tape.observe(Empirical()), seen)
    assert float((seen["2"].inputs.dense()[..., :-1] == 0).double().mean()) == pytest.approx(0.5, abs=0.1)
    model.eval()
    assert (network.observe(x)["2"].inputs.dense() != 0).all()


def test_batch_norm_is_frozen_for_an_observation_and_the_loops_own_in_a_loop():
    x, y = torch.randn(6, 4), torch.randint(0, 3, (6,))
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).train()
    network = Network.from_torch(model, Categorical(), x)
    statistics = model[1].running_mean.clone()
    network.observe(x)
    assert torch.equal(model[1].running_mean, statistics)
    with network.watch() as tape:
        F.cross_entropy(model(x), y).backward()
    observation = tape.observe(Empirical())
    assert not torch.equal(model[1].running_mean, statistics)
    normalized = F.batch_norm(model[0](x), None, None, training=True)
    assert torch.allclose(observation["1"].inputs.dense()[:, 0, 0].reshape(6, 5, 2)[..., 0], normalized)
    mean = {path: seen.gradients.dense().mean(0).reshape(seen.space.shape) for path, seen in observation.layers.items()}
    total = network.to_parameters(mean)
    assert all(torch.allclose(total[name], p.grad) for name, p in network.parameters.items())


@dataclass
class Out:
    logits: torch.Tensor
    hidden: torch.Tensor


class ModelOutput(OrderedDict):
    """Items that are attributes too."""


class Rich(nn.Module):
    """Inputs of any structure, outputs of several kinds, an optional branch."""

    def __init__(self, kind="tensor"):
        super().__init__()
        self.left, self.right, self.out, self.kind = nn.Linear(4, 3), nn.Linear(2, 3), nn.Linear(3, 3), kind

    def forward(self, a, b=None, scale=1.0):
        h = torch.tanh(self.left(a) if b is None else self.left(a) + self.right(b)) * scale
        z = self.out(h)
        match self.kind:
            case "dict":
                return {"logits": z, "hidden": h}
            case "dataclass":
                return Out(z, h)
            case "tuple":
                return (z,)
            case "mapping with attributes":
                out = ModelOutput(logits=z, hidden=h)
                out.logits = z
                return out
        return z


@pytest.mark.parametrize("kind", ["tensor", "dict", "dataclass", "tuple", "mapping with attributes"])
@pytest.mark.parametrize("given", ["positional", "keywords", "mixed"])
def test_structured_inputs_and_outputs(kind, given):
    a, b, y = torch.randn(5, 4), torch.randn(5, 2), torch.randint(0, 3, (5,))
    model = Rich(kind)
    network = Network.from_torch(model, Categorical(), (a, b))
    x = {"a": a, "b": b} if given == "keywords" else (a, b)
    expected = network.observe(x, Empirical(y))
    with network.watch() as tape:
        out = model(a, b) if given == "positional" else model(a=a, b=b) if given == "keywords" else model(a, b=b)
        z = network.read(out)
        F.cross_entropy(z, y).backward()
    same(tape.observe(Empirical()), expected)
    F.cross_entropy(network.read(model(a, b)), y).backward()
    assert all(torch.allclose(p.grad, 2 * network.to_parameters(network.differential(x, y).blocks)[n])
               for n, p in network.parameters.items())  # fmt: skip


def test_branches_that_a_forward_leaves_out_are_zero_there():
    a, b = torch.randn(5, 4), torch.randn(5, 2)
    model = Rich()
    network = Network.from_torch(model, Categorical(), (a,))  # verified without the branch
    without = network.observe((a,))
    assert not without["right"].cotangents.dense().any()
    both = network.observe((a, b))
    same(both, Network.from_torch(model, Categorical(), (a, b), name=network.name).observe((a, b)))
    with network.watch() as tape:
        network.read(model(a)).sum().backward()
    assert not tape.observe(Empirical())["right"].cotangents.dense().any()


def test_a_watched_use_that_no_batch_has_shown_is_not_guessed():
    a, b = torch.randn(5, 4), torch.randn(5, 2)
    model = Rich()
    network = Network.from_torch(model, Categorical(), (a,))
    with network.watch() as tape:
        model(a, b).sum().backward()
    with pytest.raises(UnsupportedLayer, match=r"Call network.verify\(x\) with this batch"):
        tape.observe(Empirical())


def test_one_example_does_not_verify_where_examples_stand():
    model = Merged()
    network = Network.from_torch(model, Categorical(), torch.randn(1, 3, 2), name="net")
    x = torch.randn(5, 3, 2)
    same(network.observe(x), Network.from_torch(model, Categorical(), x, name="net").observe(x))


def test_parameters_without_a_layer_inside_a_checkpoint():
    class Bare(nn.Module):
        def __init__(self, saving):
            super().__init__()
            self.shift, self.layer, self.saving = nn.Parameter(torch.ones(4)), nn.Linear(4, 3), saving

        def body(self, x):
            return self.layer(torch.tanh(x + self.shift))

        def forward(self, x):
            return checkpoint(self.body, x, use_reentrant=False) if self.saving else self.body(x)

    x, y = batch()
    saving, plain = Bare(True), Bare(False)
    plain.load_state_dict(saving.state_dict())
    network = Network.from_torch(saving, Categorical(), x)
    expected = Network.from_torch(plain, Categorical(), x).observe(x)
    same(network.observe(x), expected)
    with network.watch() as tape:
        F.cross_entropy(saving(x), y).backward()
    assert torch.allclose(tape.observe(Empirical())["shift"].cotangents.dense().mean(0).flatten(), saving.shift.grad)


@pytest.mark.parametrize("way", ["observe", "watch"])
def test_sparse_gradients(way):
    model = nn.Sequential(nn.Embedding(6, 2, sparse=True), nn.Flatten(), nn.Linear(6, 3))
    plain = nn.Sequential(nn.Embedding(6, 2), nn.Flatten(), nn.Linear(6, 3))
    plain.load_state_dict(model.state_dict())
    x, y = torch.randint(0, 6, (5, 3)), torch.randint(0, 3, (5,))
    network, reference = (Network.from_torch(m, Categorical(), x) for m in (model, plain))
    if way == "observe":
        observation = network.observe(x, Empirical(y))
    else:
        with network.watch() as tape:
            F.cross_entropy(model(x), y).backward()
        observation = tape.observe(Empirical())
    df = network.differential(x, y)
    mean = observation.gradients.dense().mean((0, 1, 2))
    assert torch.allclose(mean, df.data)
    named, wanted = (n.to_parameters(d.blocks) for n, d in ((network, df), (reference, reference.differential(x, y))))
    assert all(torch.allclose(named[name], wanted[name]) for name in wanted)


def test_the_example_of_a_layer_of_ones_own(capsys):
    runpy.run_path(str(Path(__file__).parent.parent / "examples" / "your_own_layer.py"), run_name="__main__")
    assert "With a wrong one: its gradient is not what" in capsys.readouterr().out


# Padding


class Sentence(nn.Module):
    """Attention over tokens that are there, and an output per token or their mean."""

    def __init__(self, pooled):
        super().__init__()
        self.embed, self.mix, self.out, self.pooled = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 3), pooled
        self.norm = nn.LayerNorm(4)

    def forward(self, tokens, there):
        h = self.norm(self.embed(tokens))
        scores = (self.mix(h) @ h.mT).masked_fill(~there[:, None], -torch.inf)
        h = h + scores.softmax(-1) @ h
        if self.pooled:
            h = (h * there[..., None]).sum(1) / there.sum(1, keepdim=True)
        return self.out(h)


LENGTHS = torch.tensor([4, 1, 3, 2, 4])
THERE = torch.arange(4) < LENGTHS[:, None]


def one_by_one(model, tokens, y, likelihood):
    """Every sentence by itself, without padding: its tokens, its cotangents and its gradients, layer by layer."""
    alone = []
    for i, length in enumerate(LENGTHS):
        network = Network.from_torch(model, likelihood, name="alone")
        x = {"tokens": tokens[i : i + 1, :length], "there": THERE[i : i + 1, :length]}
        alone.append(network.observe(x, Empirical(y[i : i + 1] if model.pooled else y[i : i + 1, :length])))
    return alone


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("way", ["observe", "watch", "ignored targets"])
def test_padding_weighs_nothing(pooled, way):
    if pooled and way == "ignored targets":
        way = "observe"
    model = Sentence(pooled)
    tokens = torch.randint(0, 7, (5, 4))
    y = torch.randint(0, 3, (5,) if pooled else (5, 4))
    labels = y if pooled else y.masked_fill(~THERE, -100)
    x = {"tokens": tokens, "there": THERE}
    network = Network.from_torch(model, Categorical(), x)
    if way == "watch":
        with network.watch() as tape:
            Categorical().loss(model(**x), labels).backward()
        observation = tape.observe(Empirical(), mask=THERE)
    elif way == "observe":
        observation = network.observe(x, Empirical(y), mask=THERE)  # what the labels of padding are does not matter
    else:
        observation = network.observe(x, Empirical(labels))
    alone = one_by_one(model, tokens, y, Categorical())
    for path, layer in observation.layers.items():
        per_token = not (pooled and path == "out")
        M = int(LENGTHS.sum()) if per_token else 5
        parts = [a[path] for a in alone]
        a = torch.cat([p.inputs.dense().flatten(0, 2) for p in parts])
        g = torch.cat([p.cotangents.dense().flatten(0, 2) for p in parts])
        assert len(a) == M
        A, G = layer.inputs.moment(), layer.cotangents.moment()
        A = torch.diag(A) if A.ndim == 1 else A
        assert torch.allclose(A, a.mT @ a / M)  # a probability over the tokens that are there
        assert torch.allclose(G, g.mT @ g / 5)  # a mean over examples of a sum over tokens
        reduced = layer.reduced()
        mean = torch.cat([p.inputs.dense().mean((0, 1, 2))[None] for p in parts])
        total = torch.cat([p.cotangents.dense().sum((0, 1, 2))[None] for p in parts])
        assert torch.allclose(reduced.inputs.dense().flatten(0, 2), mean)
        assert torch.allclose(reduced.cotangents.moment(), total.mT @ total / 5)
        if path in ("mix", "out"):
            assert torch.allclose(mean[:, -1], torch.ones(5))  # a barycentre is a point
    exact = torch.cat([a.gradients.dense() for a in alone])
    assert torch.allclose(observation.gradients.dense(), exact)
    padded = network.observe(x, Empirical(y))
    assert not torch.allclose(padded["mix"].inputs.moment(), observation["mix"].inputs.moment())


@pytest.mark.parametrize("estimator", [Exact(), Exact(chunk=2), MonteCarlo(3), CurvatureProp()])
def test_directions_of_padding_are_zero(estimator):
    model = Sentence(False)
    x = {"tokens": torch.randint(0, 7, (5, 4)), "there": THERE}
    network = Network.from_torch(model, Categorical(), x)
    layer = network.observe(x, estimator, mask=THERE)["out"]
    there = THERE[:, None, :, None].expand(5, layer.cotangents.counts[1], 4, 3)
    assert not layer.cotangents.dense()[~there].any() and layer.cotangents.dense()[there].any()
    assert layer.cotangents.measure.mask.equal(THERE)
    if isinstance(estimator, Exact):
        J = [Network.from_torch(model, Categorical()).observe({k: t[i : i + 1, :m] for k, t in x.items()})
             for i, m in enumerate(LENGTHS)]  # fmt: skip
        F = sum(second_moment(o.gradients).matrix() for o in J) / 5
        assert torch.allclose(second_moment(network.observe(x, estimator, mask=THERE).gradients).matrix(), F)


def test_what_flows_through_a_masked_site_stays_in_the_exact_fisher():
    model = Tokens()  # no attention, so that nothing but the output knows of padding
    tokens = torch.randint(0, 6, (5, 3))
    network = Network.from_torch(model, Gaussian(), tokens, read=lambda z: z.sum(1))
    mask = torch.tensor([[1, 1, 0]] * 5).bool()
    masked, plain = network.observe(tokens, mask=mask), network.observe(tokens)
    assert torch.equal(masked.gradients.dense(), plain.gradients.dense())
    assert not torch.allclose(masked["mix"].cotangents.moment(), plain["mix"].cotangents.moment())


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (torch.ones(5, 4), "a mask is bool, (5 examples, sites)"),
        (torch.ones(4, 4).bool(), "a mask is bool, (5 examples, sites)"),
        (torch.ones(5).bool(), "a mask is bool, (5 examples, sites)"),
        (torch.zeros(5, 4).bool(), "the mask leaves no site at all"),
        (torch.ones(5, 9).bool(), "9 sites fits neither the output nor any layer"),
    ],
)
def test_bad_masks(mask, text):
    model = Sentence(False)
    x = {"tokens": torch.randint(0, 7, (5, 4)), "there": THERE}
    network = Network.from_torch(model, Categorical(), x)
    with pytest.raises(ShapeMismatch, match=re.escape(text)):
        network.observe(x, mask=mask)
    with network.watch() as tape:
        model(**x).sum().backward()
    with pytest.raises(ShapeMismatch, match=re.escape(text)):
        tape.observe(Empirical(), mask=mask)
    assert tape.examples == 5 and without_hooks(model)


# Bad input: named, nothing changed, no hook left


class Adds(nn.Module):
    """Lets the loop do to it what a case says."""

    def __init__(self):
        super().__init__()
        self.body, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.body(x)))


def replaced(model):
    model.out.weight = nn.Parameter(model.out.weight.detach().clone())


def added(model):
    model.more = nn.Linear(2, 2)


def removed(model):
    model.out.bias = None


def nan(model):
    with torch.no_grad():
        model.out.weight[0, 0] = torch.nan


def kept(model):
    return None


def frozen(model):
    model.body.requires_grad_(False)


X, Y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
CASES = [
    (replaced, X, Y, UnsupportedLayer, "the parameter 'out.weight' is another one since the module was read"),
    (added, X, Y, UnsupportedLayer, "the parameter 'more.weight' is new since the module was read"),
    (removed, X, Y, UnsupportedLayer, "the parameter 'out.bias' is gone since the module was read"),
    (frozen, X, Y, UnsupportedLayer, "the parameter 'body.weight' was frozen since the module was read"),
    (nan, X, Y, NonFinite, "the output of 'out' holds NaN"),
    (kept, X * torch.inf, Y, NonFinite, "the output of 'body' holds NaN"),
    (kept, X, Y[:4], (InvalidTargets, ShapeMismatch), "4"),
    (kept, X, Y.double(), InvalidTargets, "expected integer classes"),
    (kept, X, Y + 7, InvalidTargets, "classes are 0 to 2"),
    (kept, X[:0], Y[:0], (ShapeMismatch, ObservationMismatch), "no "),
    (kept, X.to("meta"), Y, DtypeMismatch, "the batch is on meta, the parameters are on cpu. Move one of them: x.to("),
]  # fmt: skip


@pytest.mark.parametrize("way", ["observe", "watch", "differential"])
@pytest.mark.parametrize(("change", "x", "y", "error", "text"), CASES)
def test_bad_input(way, change, x, y, error, text):
    model = Adds()
    network = Network.from_torch(model, Categorical(), X)
    change(model)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(error, match=re.escape(text)):
        if way == "observe":
            network.observe(x, Empirical(y))
        elif way == "differential":
            network.differential(x, y)
        elif x.is_meta:
            network.observe(x)  # the loop's own forward fails with torch's own words
        else:
            with network.watch() as tape:
                model(x)
            tape.observe(Empirical(y))
    assert without_hooks(model)
    assert all(torch.equal(t.nan_to_num(), state[name].nan_to_num()) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(3)), "'0.weight' is lazy and has no shape yet. Run the module on one"),
        (lambda: nn.Linear(3, 2, dtype=torch.complex64), "the parameter 'weight' is complex. Hold its real"),
        (lambda: nn.Linear(3, 2, device="meta"), "the parameter 'weight' is on the meta device and has no values"),
        (lambda: nn.Linear(3, 2).requires_grad_(False), "no trainable parameters (2 frozen ones)"),
    ],
)  # fmt: skip
def test_modules_that_cannot_be_read(make, text):
    with pytest.raises(UnsupportedLayer, match=re.escape(text)):
        Network.from_torch(make(), Categorical())


def test_lazy_modules_after_one_batch():
    model = nn.Sequential(nn.LazyLinear(3))
    model(X)
    assert Network.from_torch(model, Categorical(), X).tangent_space["0"].shape == (3, 5)


def test_a_tape_says_what_is_missing():
    model = Adds()
    network = Network.from_torch(model, Categorical(), X)
    with network.watch() as tape:
        loss = F.cross_entropy(model(X), Y)
    with pytest.raises(ObservationMismatch, match=r"none has come through\. Call loss\.backward"):
        tape.observe(Empirical())
    assert tape.examples == 6  # nothing was lost by asking
    loss.backward()
    for estimator in (MonteCarlo(), Exact(), Empirical(Y)):
        with pytest.raises(ObservationMismatch, match=r"the graph was freed before .* could send anything"):
            tape.observe(estimator)
    assert tape.observe(InputsOnly()).examples == 6
    with pytest.raises(InvalidTargets, match="Empirical\\(\\) without targets means the loss's own backward"):
        network.observe(X, Empirical())


def test_a_tape_names_where_a_gradient_is_not_finite():
    model = Adds()
    network = Network.from_torch(model, Categorical(), X)
    with network.watch() as tape:
        (model(X).sum() * torch.inf).backward()
    with pytest.raises(NonFinite, match="the gradient at the output of 'body' holds NaN or infinity"):
        tape.observe(Empirical())
    tape.clear()
    assert tape.examples == 0


def test_a_batch_that_is_overwritten_before_the_observation():
    model, x = Adds(), X.clone()
    network = Network.from_torch(model, Categorical(), X)
    with network.watch() as tape:
        loss = F.cross_entropy(model(x), Y)
    x.zero_()
    with pytest.raises(UnsupportedLayer, match="the input of 'body' was changed in place between the forward"):
        tape.observe(MonteCarlo())
    del loss


def test_an_output_that_the_loop_changes_in_place():
    model = Adds()
    network = Network.from_torch(model, Categorical(), X)
    with network.watch() as tape:
        z = model(X)
        z.mul_(2)
    with pytest.raises(ObservationMismatch, match="the network's output was changed in place after its forward"):
        tape.observe(MonteCarlo())


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    @torch.no_grad()
    def forward(self, x):
        return self.layer(x)


def test_an_output_without_gradients():
    with torch.no_grad():
        assert Network.from_torch(Adds(), Categorical()).observe(X).examples == 6  # gradients are on inside
    for make, mode in ((Adds, torch.inference_mode), (Detached, torch.enable_grad)):
        model = make()
        network = Network.from_torch(model, Categorical())
        with mode(), pytest.raises(UnsupportedLayer, match="the output depends on no trained parameter, for autograd"):
            network.observe(X)
        assert without_hooks(model)


def test_a_network_that_is_checkpointed_as_a_whole():
    x, y = batch()
    model = mlp()
    network = Network.from_torch(model, Categorical(), x)
    with network.watch() as tape:
        F.cross_entropy(checkpoint(model, x, use_reentrant=False), y).backward()  # runs the module again
    assert tape.examples == 6
    same(tape.observe(Empirical()), network.observe(x, Empirical(y)))


def test_an_observation_of_ones_own_while_a_tape_records():
    x, y = batch()
    model = Fails()  # with a fused module, which runs in the open while it is watched
    network = Network.from_torch(model, Categorical(), x)
    with network.watch() as tape:
        expected = network.observe(x, Empirical(y))
        assert tape.examples == 0
        F.cross_entropy(model(x), y).backward()
    same(tape.observe(Empirical()), expected)
    assert without_hooks(model)
