"""What a twin does to samples, covectors, inner products and whole trajectories, with controls that must fail."""

import pytest
import torch
from torch import nn
from twin_cases import CASES, MOVABLE, case, descent_step, kfac, kfac_step, trajectory, twin_of

from riemann_ng.elements import Covector, Vector
from riemann_ng.inner_products import Euclidean, Gram, Pullback, damp_factors, direct_sum, second_moment
from riemann_ng.likelihoods import Bernoulli, Categorical
from riemann_ng.networks import Empirical, Network
from riemann_ng.reparametrize import (
    Frames,
    LinearChange,
    SmoothChange,
    reparametrize,
    reparametrize_parameters,
)


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def off(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("group", ["general", "affine"])
@pytest.mark.parametrize("name", CASES)
def test_samples_tangents_and_differentials_are_transported(name, group):
    """Inputs of every layer are α̂a, cotangents Φ^-T g, the differential is pulled back, J' T v = Φ J v."""
    network, x = case(name, n=4)
    network.module.eval()  # without dropout, whose masks a module in the open does not draw as a fused one
    twin = twin_of(network, x, group=group)
    x_twin = twin.inputs(x)
    seen, seen_twin = network.observe(x), twin.network.observe(x_twin)
    moved = twin.output_metric(network.likelihood)
    for path in network.blocks:
        here, there = seen[path], seen_twin[path]
        forth, _ = twin._transport.along(here.inputs.space)
        inputs, inputs_twin = (o.inputs.dense().flatten(3) for o in (here, there))
        M = forth.matrix(inputs)
        if "gru" in path:  # in the open, steps of time are sites in the order in which they are taken
            inputs, inputs_twin = inputs.sum(2), (inputs_twin @ torch.linalg.inv(M).mT).sum(2) @ M.mT
        assert float((inputs @ M.mT - inputs_twin).abs().max()) < 1e-11 * (1 + float(inputs.abs().max()))
        G, G_twin = (moment(o.cotangents) for o in (here, there))
        M = twin._transport.along(here.cotangents.space)[0].matrix(G)
        assert float((M @ G @ M.mT - G_twin).abs().max()) < 1e-11 * (1e-9 + float(G.abs().max())) + 1e-20
    y = network.likelihood.sample(network.outputs(x).detach(), torch.Generator().manual_seed(0))[0]
    df, df_twin = network.differential(x, y), twin.network.differential(x_twin, y)
    assert off(twin.transport(df).data, df_twin.data) < 1e-12
    v = Vector(network.tangent_space, torch.randn(network.tangent_space.dim))
    Jv, Jv_twin = network.pushforward(v, x), twin.network.pushforward(twin.transport(v), x_twin)
    z = network.outputs(x).detach()
    assert off(Jv_twin, twin.outputs(z + Jv) - twin.outputs(z)) < 1e-10
    assert type(moved) is type(twin.likelihood)
    assert torch.allclose(twin.transport(df)(twin.transport(v)), df(v))
    assert off(twin.tangent_map.pullback(df_twin).data, df.data) < 1e-12
    wrong = Covector(twin.network.tangent_space, df.data)
    assert off(wrong.data, df_twin.data) > 1e-2


def moment(sample):
    return second_moment(sample).matrix()


# --- K-FAC, and what is not natural -----------------------------------------------------------------------------------


def well_posed(which):
    """Networks with so many examples that every K-FAC factor is definite."""
    torch.manual_seed(1)
    if which == "mlp":
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
        x, y = torch.randn(80, 3), torch.randint(0, 2, (80, 3)).double()
    elif which == "convolution":
        model = nn.Sequential(
            nn.Conv1d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv1d(3, 4, 2, groups=1), nn.Tanh(), nn.Flatten(),
            nn.Linear(16, 3),
        )  # fmt: skip
        x, y = torch.randn(120, 2, 5), torch.randint(0, 2, (120, 3)).double()
    elif which == "tokens":
        model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 4), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))
        x, y = torch.randint(0, 5, (80, 2)), torch.randint(0, 2, (80, 3)).double()
    else:
        model, x = CASES[which][0](), CASES[which][1](80)
        y = torch.randint(0, 2, model(x).shape).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return Network.from_torch(model, Bernoulli(), x), x, y


GROUP_OF = {"mlp": "affine", "convolution": "affine", "tokens": "affine", "attention": "general", "recurrent": "affine"}


@pytest.mark.parametrize("which", ["mlp", "convolution", "tokens", "recurrent"])
def test_the_kfac_step_is_transported(which):
    network, x, y = well_posed(which)
    twin = twin_of(network, x, group=GROUP_OF[which])
    step = kfac(network.observe(x)).sharp(network.differential(x, y))
    own = kfac(twin.network.observe(twin.inputs(x))).sharp(twin.network.differential(twin.inputs(x), y))
    assert off(own.data, twin.transport(step).data) < 1e-9
    damped = kfac(network.observe(x)) + 0.1 * euclid(network)
    step = damped.sharp(network.differential(x, y))
    g = kfac(twin.network.observe(twin.inputs(x))) + 0.1 * euclid(twin.network)
    assert off(g.sharp(twin.network.differential(twin.inputs(x), y)).data, twin.transport(step).data) > 1e-2


def euclid(network):
    return direct_sum({path: Euclidean(block.space) for path, block in network.blocks.items()})


@pytest.mark.parametrize("which", ["mlp", "convolution", "recurrent"])
def test_five_steps_of_kfac_are_the_same_functions_and_of_descent_are_not(which):
    network, x, y = well_posed(which)
    frames = Frames.draw(network, x, MOVABLE, GROUP_OF[which], seed=3)
    base, twin = reparametrize(network, Frames.identity(), x), reparametrize(network, frames, x)
    start, lr = base.network.outputs(x).sigmoid().detach(), 0.05 if which == "recurrent" else 0.3

    def apart(update, update_twin):
        p = trajectory(base.network, x, y, update, torch.sigmoid)
        q = trajectory(twin.network, twin.inputs(x), y, update_twin, lambda z: twin.to_original(z).sigmoid())
        moved = float((p - start).abs().max())
        assert moved > 0.01
        return float((p - q).abs().max()) / moved

    assert apart(kfac_step(lr), kfac_step(lr)) < 1e-7
    assert apart(descent_step(0.3), descent_step(0.3)) > 1e-2
    references = kfac(base.network.observe(x[:60]))

    def carried(_):
        return 0.3 * transported(twin, base, references)

    assert apart(kfac_step(lr, lambda _: 0.3 * references), kfac_step(lr, carried)) < 1e-7
    assert apart(kfac_step(lr, lambda n: 0.1 * euclid(n)), kfac_step(lr, lambda n: 0.1 * euclid(n))) > 1e-3


def transported(twin, base, form):
    """A form on the tangent space of the identity twin, taken along: by way of the original."""
    back = base._transport
    parts = {path: Pullback(back.along(twin.original.tangent_space[path])[0], g) for path, g in form.parts.items()}
    return twin.transport(direct_sum(parts))


def test_padding_kept_at_zero_is_no_twin_under_translations():
    network, x, y = well_posed("convolution")
    frames = Frames.draw(network, x, "activations", "translations", seed=2)
    start = network.outputs(x).sigmoid().detach()
    plain = trajectory(network, x, y, kfac_step(0.3), torch.sigmoid)
    moved = float((plain - start).abs().max())
    for keep, held in ((False, True), (True, False)):
        twin = reparametrize(network, frames, x, keep_padding=keep)
        q = trajectory(twin.network, twin.inputs(x), y, kfac_step(0.3), torch.sigmoid)
        assert (float((plain - q).abs().max()) / moved < 1e-8) is held


def test_optimizers_of_torch_keep_the_groups_that_they_should():
    network, x, y = well_posed("mlp")
    sgd, adam = lambda ps: torch.optim.SGD(ps, 0.5), lambda ps: torch.optim.Adam(ps, 0.05)
    table = {
        (sgd, "orthogonal", "activations"): True,
        (sgd, "isometries", "pre-activations"): True,
        (sgd, "translations", "activations"): False,
        (sgd, "scaling", "pre-activations"): False,
        (adam, "signed permutations", "activations"): True,
        (adam, "signed permutations", "outputs"): True,
        (adam, "orthogonal", "activations"): False,
    }

    def run(twin, make):
        optimizer = make(twin.module.parameters())
        for _ in range(5):
            optimizer.zero_grad()
            twin.likelihood.loss(twin.module(twin.inputs(x)), y).backward()
            optimizer.step()
        return twin.to_original(twin.module(twin.inputs(x))).sigmoid().detach()

    start = network.outputs(x).sigmoid().detach()
    for (make, group, on), held in table.items():
        p = run(reparametrize(network, Frames.identity(), x), make)
        q = run(reparametrize(network, Frames.draw(network, x, on, group, seed=4), x), make)
        ratio = float((p - q).abs().max()) / float((p - start).abs().max())
        assert ratio < 1e-6 if held else ratio > 1e-3, (group, on, ratio)


def test_hooks_of_other_libraries_see_the_twin():
    network, x = case("mlp", n=5)
    twin = twin_of(network, x, group="general")
    x = x.requires_grad_()
    seen: dict[str, list] = {"model": [], "twin": []}
    for name, module in (("model", network.module), ("twin", twin.module)):
        leaf = module[0]
        leaf.register_forward_pre_hook(lambda m, args, name=name: seen[name].append(args[0].detach()))
        leaf.register_forward_hook(lambda m, args, y, name=name: seen[name].append(y.detach()))
        leaf.register_full_backward_hook(lambda m, into, out, name=name: seen[name].append(out[0]))
    network.likelihood.loss(network.module(x), torch.ones(5, 3)).backward()
    twin.likelihood.loss(twin.module(twin.inputs(x)), torch.ones(5, 3)).backward()
    (s, g), (a_twin, s_twin, g_twin) = seen["model"][1:], seen["twin"]
    assert torch.allclose(a_twin, twin.inputs(x))
    Phi = twin.frames["0.S"]
    assert torch.allclose(s_twin, Phi(s)) and torch.allclose(g_twin, Phi.inverse().pulled(g))
    assert not torch.allclose(s_twin, s, atol=1e-2)


# --- inner products taken along ---------------------------------------------------------------------------------------


def test_inner_products_are_transported_with_their_structure():
    network, x, _ = well_posed("mlp")
    twin = twin_of(network, x, group="affine")
    g = kfac(network.observe(x)) + 0.2 * euclid(network)
    moved = twin.transport(g)
    assert moved.space == twin.network.tangent_space
    u, v = (Vector(network.tangent_space, torch.randn(network.tangent_space.dim)) for _ in range(2))
    assert torch.allclose(moved.inner(twin.transport(u), twin.transport(v)), g.inner(u, v))
    assert off(moved.sharp(twin.transport(g.flat(v))).data, twin.transport(v).data) < 1e-9
    A, S = network.blocks["0"].input_space, network.blocks["0"].output_space
    h = Euclidean(S) * Euclidean(A.dual)
    product = twin.transport(h)
    assert product.space == twin.network.tangent_space["0"]
    assert product.structure.kind == "product"
    k = second_moment(network.observe(x)["0"].cotangents) * second_moment(network.observe(x)["0"].inputs)
    there = twin.network.observe(twin.inputs(x))["0"]
    own = second_moment(there.cotangents) * second_moment(there.inputs)
    assert torch.allclose(twin.transport(k).matrix(), own.matrix())
    damped, own_damped = damp_factors(k, 0.1, k), damp_factors(own, 0.1, twin.transport(k))
    assert torch.allclose(twin.transport(damped).matrix(), own_damped.matrix())
    assert torch.allclose(twin.transport(k.dual).matrix(), own.dual.matrix())
    assert not torch.allclose(twin.transport(Euclidean(S)).matrix(), torch.eye(4))
    a = Vector(A, torch.randn(4))
    assert twin.transport(a).lives_in == twin.network.blocks["0"].input_space
    F, F_twin = (second_moment(n.observe(b).gradients) for n, b in ((network, x), (twin.network, twin.inputs(x))))
    assert off(twin.transport(F).matrix(), F_twin.matrix()) < 1e-10
    constant = Gram(network.tangent_space, torch.eye(network.tangent_space.dim), name="mine")
    assert off(twin.transport(constant).matrix(), constant.matrix()) > 1e-2


# --- parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["linear", "smooth"])
@pytest.mark.parametrize("name", ["mlp", "tied", "recurrent", "convolutional"])
def test_parameters_in_other_coordinates_give_the_same_function(name, change):
    network, x = case(name)
    n = network.tangent_space.dim
    psi = LinearChange.draw(n) if change == "linear" else SmoothChange(n)
    model = reparametrize_parameters(network.module, psi).eval()
    network.module.eval()
    assert [name for name, _ in model.named_parameters()] == ["u"]
    assert torch.allclose(model(x), network.module(x), atol=1e-11)
    theta = torch.cat([p.flatten() for p in network.parameters.values()])
    assert torch.allclose(psi(psi.inverse(theta)), theta) and not torch.allclose(model.u, theta, atol=1e-2)
    assert not model.module.training and model.train().module.training


def test_the_fisher_commutes_with_linear_changes_exactly_and_with_smooth_ones_to_first_order():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
    x = torch.randn(40, 2)
    y = torch.randint(0, 2, (40, 2)).double()
    n = sum(p.numel() for p in plain.parameters())
    start = plain(x).detach()

    def moved(psi, eta, natural=True):
        network = Network.from_torch(reparametrize_parameters(plain, psi), Bernoulli(), x)
        df = network.differential(x, y)
        step = second_moment(network.observe(x).gradients).sharp(df) if natural else Vector(df.space, df.data)
        network.move_(step, -eta)
        return network.outputs(x).detach() - start

    def apart(psi, eta, natural=True):
        return off(moved(psi, eta, natural), moved(LinearChange(torch.eye(n)), eta, natural))

    assert apart(LinearChange.draw(n), 0.1) < 1e-7
    assert apart(LinearChange.draw(n), 0.1, natural=False) > 1e-2
    halves = [apart(SmoothChange(n), eta) for eta in (1e-3, 5e-4, 2.5e-4)]
    assert 1.7 < halves[0] / halves[1] < 2.3 and 1.7 < halves[1] / halves[2] < 2.3
    flat = [apart(SmoothChange(n), eta, natural=False) for eta in (1e-3, 5e-4)]
    assert flat[1] > 1e-2 and 0.9 < flat[0] / flat[1] < 1.1


def test_labels_of_the_data_are_transported_too():
    network, x = case("mlp", n=30, likelihood=Categorical())
    twin, y = twin_of(network, x), torch.randint(0, 3, (30,))
    g = second_moment(network.observe(x, Empirical(y)).gradients)
    own = second_moment(twin.network.observe(twin.inputs(x), Empirical(y)).gradients)
    assert off(twin.transport(g).matrix(), own.matrix()) < 1e-10
