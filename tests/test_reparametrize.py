"""Twins: the same function in other coordinates, for every kind of layer and every group that it admits."""

import copy
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import pad
from twin_cases import CASES, MOVABLE, case, twin_of

from riemann_ng.likelihoods import Bernoulli, Categorical, EuclideanOutput, Gaussian
from riemann_ng.networks import Network
from riemann_ng.reparametrize import GROUPS, Frame, Frames, NoTwin, admissible, reparametrize, spaces
from riemann_ng.reparametrize.groups import linear_element


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


LINEAR = [group for group in GROUPS if group not in ("joint scale", "translations", "isometries", "affine")]


def close(a, b, tolerance=1e-12):
    return bool((a - b).abs().max() <= tolerance * (1 + b.abs().max()))


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("name", CASES)
def test_a_twin_computes_the_same_function(name, group):
    network, x = case(name)
    on = "layers" if group == "joint scale" else MOVABLE
    assert admissible(network, x, on, group) is None
    frames = Frames.draw(network, x, on, group, seed=1)
    twin = reparametrize(network, frames, x)
    network.module.eval(), twin.module.eval()
    _, other = CASES[name][1](2), CASES[name][1](4)  # a batch of another size
    for batch in (x, other):
        z = network.outputs(batch)
        z_twin = twin.network.outputs(twin.inputs(batch))
        assert close(twin.to_original(z_twin), z)
        assert close(z_twin, twin.outputs(z))
    if "output" in frames and group != "uniform scale" and z.shape[-1] > 1:
        assert not close(z_twin, z, 1e-3)
    own = {n: p for n, p in twin.module.named_parameters() if n in network.parameters}
    assert any(not torch.equal(p, network.parameters[n]) for n, p in own.items())


@pytest.mark.parametrize("name", ["mlp", "convolutional", "conv1d", "tokens", "tied", "weight norm", "in place"])
def test_parameters_keep_their_names_types_and_owners(name):
    network, x = case(name)
    twin = twin_of(network, x, on=("activations", "pre-activations", "constants"), group="orthogonal")
    names = {n: (p.shape, p.requires_grad) for n, p in network.module.named_parameters()}
    own = {n: (p.shape, p.requires_grad) for n, p in twin.module.named_parameters()}
    if not any(isinstance(m, nn.GroupNorm | nn.LayerNorm | nn.BatchNorm2d) for m in network.module.modules()):
        assert [type(m).__name__ for m in twin.module.modules()] == [type(m).__name__ for m in network.module.modules()]
        assert set(twin.module.state_dict()) == set(network.module.state_dict())
    assert set(own) == set(names)
    assert all(own[n] == names[n] for n in names)
    if name == "tied":
        assert twin.module.out._parameters["weight"] is twin.module.embed._parameters["weight"]
        assert twin.module.left.weight is twin.module.right.weight


def test_the_original_is_left_as_it_is():
    network, x = case("normalized")
    state = copy.deepcopy(network.module.state_dict())
    twin_of(network, x, group="affine").network.observe(CASES["normalized"][1](3))
    assert all(torch.equal(t, state[k]) for k, t in network.module.state_dict().items())
    assert all(not m._forward_hooks for m in network.module.modules())


@pytest.mark.parametrize("name", ["mlp", "tied", "recurrent", "weight norm"])
def test_twins_are_copied_and_most_are_pickled(name):
    network, x = case(name)
    twin = twin_of(network, x)
    z = twin.module(twin.inputs(x))
    again = copy.deepcopy(twin.module)
    assert torch.equal(again(twin.inputs(x)), z)
    assert not {id(p) for p in again.parameters()} & {id(p) for p in twin.module.parameters()}
    if name != "weight norm":  # torch pickles no parametrized module
        file = io.BytesIO()
        torch.save(twin.module, file)
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=False)(twin.inputs(x)), z)


def test_frames_on_one_kind_of_space_leave_the_others():
    network, x = case("mlp")
    keys = {
        "inputs": {"0.A", "input"},
        "activations": {"0.A", "2.A", "input"},
        "pre-activations": {"0.S", "2.S", "output"},
        "outputs": {"2.S", "output"},
    }
    for on, expected in keys.items():
        frames = Frames.draw(network, x, on, "general")
        assert set(frames) == expected
        twin = reparametrize(network, frames, x)
        assert torch.equal(twin.inputs(x), x) is ("input" not in expected)
        assert (twin.likelihood is network.likelihood) is ("output" not in expected)
    assert torch.equal(frames["2.S"].linear, frames["output"].linear)
    identity = reparametrize(network, Frames.identity(), x)
    assert torch.equal(identity.module(x), network.module(x))


def test_one_frame_for_every_use_of_a_weight_and_every_step_of_time():
    network, x = case("recurrent")
    frames = Frames.draw(network, x, "activations", "affine")
    assert set(frames) == {"lstm.l0.input.A", "lstm.l0.hidden.A", "out.A", "input"}
    network, x = case("tied")
    assert set(Frames.draw(network, x, "activations", "affine")) == {"twice.A", "left.A"}


def test_a_networks_input_is_found_through_reshaping():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
    x = torch.randn(5, 2, 3)
    network = Network.from_torch(flat, Gaussian(), x)
    assert spaces(network, x).linked == {"1.A": "input", "1.S": "output"}
    twin = twin_of(network, x, group="affine")
    assert twin.inputs(x).shape == x.shape
    seen = twin.network.observe(twin.inputs(x))["1"].inputs.dense()[:, 0, 0, :-1]
    assert close(seen, twin.inputs(x).flatten(1))
    changed = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2), nn.ReLU(inplace=True))
    x = torch.randn(5, 3)
    assert "input" not in spaces(Network.from_torch(changed, Gaussian()), x.clone()).slots
    assert "1.S" not in spaces(Network.from_torch(changed, Gaussian()), x.clone()).linked


def test_padding_is_a_point_that_moves():
    network, x = case("images")
    frames = Frames.draw(network, x, "activations", "translations")
    twin = reparametrize(network, frames, x)
    shift, own = frames["0.A"].shift[0], twin.module[0]
    moved = x + shift[:, None, None]
    inside = pad(moved, (1, 1, 1, 1)) + (pad(torch.ones_like(x), (1, 1, 1, 1)) == 0) * shift[:, None, None]
    expected = nn.functional.conv2d(inside, own.weight, own.bias)
    assert close(network.module[0](x), expected)
    kept = reparametrize(network, frames, x, keep_padding=True)
    assert not close(kept.module(kept.inputs(x)), network.module(x), 1e-2)
    linear = Frames.draw(network, x, "activations", "general")
    kept = reparametrize(network, linear, x, keep_padding=True)
    assert close(kept.module(kept.inputs(x)), network.module(x))


def test_dropout_keeps_its_masks():
    network, x = case("encoder")
    network.module.train()
    twin = twin_of(network, x, group="affine", on=("activations", "pre-activations"))
    twin.module.train()
    torch.manual_seed(3)
    opened = reparametrize(network, Frames.identity(), x)
    torch.manual_seed(3)
    z = opened.module(x)
    torch.manual_seed(3)
    assert close(twin.to_original(twin.module(twin.inputs(x))), z)
    torch.manual_seed(4)
    assert not close(opened.module(x), z, 1e-3)


def test_single_precision_and_a_module_without_a_network():
    torch.set_default_dtype(torch.float32)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(6, 3)
    network = Network.from_torch(model, Categorical(), x)
    frames = Frames.draw(network, x, MOVABLE, "affine")
    twin = reparametrize(model, frames, x, likelihood=Categorical())
    assert twin.module(twin.inputs(x)).dtype == torch.float32
    assert close(twin.to_original(twin.module(twin.inputs(x))), model(x), 1e-5)


# --- groups -----------------------------------------------------------------------------------------------------------


@given(st.sampled_from(LINEAR), st.integers(1, 6), st.integers(0, 10_000))
def test_elements_are_in_their_group_and_far_from_the_identity(group, dim, seed):
    if group == "permutations" and dim == 1:
        return
    M = linear_element(group, dim, torch.Generator().manual_seed(seed))
    eye = torch.eye(dim)
    values = torch.linalg.svdvals(M)
    assert float(values[0] / values[-1]) < 4.2 and float((M - eye).abs().max()) > 0.02
    if group in ("orthogonal", "signed permutations", "permutations"):
        assert torch.allclose(M @ M.mT, eye)
    if group in ("monomial", "signed permutations", "permutations"):
        assert bool(((M != 0).sum(0) == 1).all() and ((M != 0).sum(1) == 1).all())
        assert dim == 1 or bool((M.diagonal() == 0).all())
    if group == "permutations":
        assert set(M.flatten().tolist()) == {0.0, 1.0}
    if group == "scaling":
        ratios = M.diagonal().log()
        assert torch.equal(M, torch.diag(M.diagonal())) and len(set(ratios.tolist())) == dim
    if group == "uniform scale":
        assert torch.equal(M, M[0, 0] * eye)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 10_000))
def test_frames_have_inverses_and_compose(members, dim, seed):
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(members, generator=draw) if seed % 2 else None
    f, g = (
        Frame(
            torch.stack([linear_element("general", dim, draw) for _ in range(members)]),
            torch.randn(members, dim, generator=draw, dtype=torch.float64),
            places,
        )
        for places in (order, None if seed % 3 else order)
    )
    x, xi = (torch.randn(5, members * dim, generator=draw, dtype=torch.float64) for _ in range(2))
    assert close(f.inverse()(f(x)), x) and close(f.then(g)(x), g(f(x)))
    v = f(x) - f(torch.zeros_like(x))
    assert close(f.on_vectors(x), v) and close((f.pulled(xi) * x).sum(-1), (xi * v).sum(-1))


def test_the_same_seed_draws_the_same_frames_and_another_draws_others():
    network, x = case("mlp")
    a, b, c = (Frames.draw(network, x, MOVABLE, "affine", seed) for seed in (5, torch.Generator().manual_seed(5), 6))
    assert all(torch.equal(a[k].linear, b[k].linear) and torch.equal(a[k].shift, b[k].shift) for k in a)
    assert not torch.equal(a["0.A"].linear, c["0.A"].linear)
    small = Frames.draw(network, x, MOVABLE, "translations", 5, size=0.1)
    assert torch.allclose(small["0.A"].shift.norm(), torch.tensor(0.1))


def test_members_of_a_family_share_their_frame_unless_asked():
    network, x = case("conv1d")
    same = Frames.draw(network, x, "pre-activations", "scaling")["0.S"].linear
    apart = Frames.draw(network, x, "pre-activations", "scaling", members="apart")["0.S"].linear
    assert same.shape == (3, 1, 1) and same.unique().numel() == 1 and apart.unique().numel() == 3


@pytest.mark.parametrize("group", ["permutations", "signed permutations", "monomial", "affine"])
@pytest.mark.parametrize("name", ["conv1d", "normalized", "convolutional", "tokens", "batch norm 1d"])
def test_members_apart_change_places_on_both_sides_alike(name, group):
    network, x = case(name)
    frames = Frames.draw(network, x, MOVABLE, group, seed=2, members="apart")
    swapped = [key for key in frames if frames[key].order is not None]
    assert (swapped == []) is (group == "affine" or name == "conv1d")  # one that sees the input keeps its places
    twin = reparametrize(network, frames, x)
    network.module.eval(), twin.module.eval()
    assert close(twin.to_original(twin.module(twin.inputs(x))), network.module(x))
    df = network.differential(x, y := torch.zeros(network.outputs(x).shape))
    df_twin = twin.network.differential(twin.inputs(x), y)
    assert close(twin.transport(df).data, df_twin.data) and close(twin.tangent_map.pullback(df_twin).data, df.data)
    if swapped:
        with pytest.raises(NoTwin, match="The members of a family change places alike on both sides of"):
            reparametrize(network, frames.only(swapped[0]), x)


def test_joint_scales_are_one_for_each_layer():
    network, x = case("tokens")
    frames = Frames.draw(network, x, "layers", "joint scale")
    scale = {key: float(frames[key].linear[0, 0, 0]) for key in frames}
    assert scale["mix.A"] == scale["mix.S"] != scale["norm.S"] == scale["norm.A"]
    assert scale["out.A"] == scale["output"]
    twin = reparametrize(network, frames, x)
    assert close(twin.module.mix.weight, network.module.mix.weight)  # W' = c W c⁻¹
    assert close(twin.module.mix.bias, scale["mix.A"] * network.module.mix.bias)


def sampled(likelihood, z):
    return likelihood.sample(z, torch.Generator().manual_seed(1))


# --- the likelihood of moved outputs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", [Bernoulli(), Categorical(), Gaussian(0.7), Categorical(minimal=True)], ids=repr)
def test_the_likelihood_is_that_of_the_moved_outputs(likelihood):
    network, x = case("mlp", likelihood=likelihood)
    twin = twin_of(network, x, on="outputs", group="general")
    moved, back = twin.likelihood, twin.frames["output"].inverse().linear[0]
    z = network.outputs(x).detach()
    w = twin.outputs(z)
    y = likelihood.sample(z, torch.Generator().manual_seed(0))[0]
    assert close(moved.loss(w, y), likelihood.loss(z, y))
    assert close(moved.score(w, y), torch.func.grad(lambda w: moved.nll(w, y).sum())(w))
    H = back.mT @ likelihood.matrix(z) @ back
    assert close(moved.matrix(w), H)
    dz, xi = torch.randn_like(w), moved.score(w, y)
    assert close(moved.apply(w, dz), torch.einsum("nij,nj->ni", H, dz))
    assert close(moved.combine(w, moved.pair(w, dz)), moved.apply(w, dz))
    assert close(moved.combine(w, moved.preimage(w, xi)), xi)
    assert close(moved.root(w).scaled(3.0).apply(dz), 9 * moved.apply(w, dz))
    assert close(moved.kl(w, twin.outputs(z + 1.0 * torch.arange(3))), likelihood.kl(z, z + 1.0 * torch.arange(3)))
    kernel, generator = moved.kernel(w), torch.Generator().manual_seed(1)
    for direction in kernel:
        assert float(moved.apply(w, direction.expand_as(w)).abs().max()) < 1e-12
    drawn = moved.sampled_cotangents(w, generator, 3)
    plain = likelihood.sampled_cotangents(z, generator.manual_seed(1), 3)
    assert close(drawn, plain @ back)
    assert close(sampled(moved, w), sampled(likelihood, z))
    assert moved.proper is likelihood.proper and not close(moved.matrix(w), likelihood.matrix(z), 1e-3)


def test_output_metrics_are_taken_along_only_when_asked():
    network, x = case("mlp")
    twin = twin_of(network, x, on="outputs")
    z = network.outputs(x).detach()
    back = twin.frames["output"].inverse().linear[0]
    moved = twin.output_metric(EuclideanOutput())
    assert close(moved.matrix(twin.outputs(z)), (back.mT @ back).expand(len(z), 3, 3))
    assert not close(EuclideanOutput().matrix(twin.outputs(z)), (back.mT @ back).expand(len(z), 3, 3), 1e-2)
