"""Models in orthonormal frames: gradient descent there is the natural gradient, whatever the layer and the metric."""

import copy
import io

import pytest
import torch
from frames_cases import CE, MODELS, mlp, network_of, problem, side_by_side, step
from torch import nn

import riemann_ng as rng
from riemann_ng.errors import DegenerateMetric, InvalidSetting, RiemannError, SpaceMismatch
from riemann_ng.likelihoods import Categorical
from riemann_ng.networks import Network
from riemann_ng.reparametrize import InFrames, InvalidFrames, in_frames

METRICS = {
    "K-FAC": rng.KFAC() + 0.1 * rng.EuclideanMetric(),
    "K-FAC, factors damped": rng.KFAC().damp_factors(0.1),
    "EKFAC": rng.EKFAC() + 0.1 * rng.EuclideanMetric(),
    "PRONG": rng.PRONG(0.1),
    "blocks": rng.Fisher("block-diagonal") + 0.1 * rng.EuclideanMetric(),
    "units": rng.Fisher("unit-wise") + 0.1 * rng.EuclideanMetric(),
    "diagonal": rng.Fisher("diagonal") + 0.1 * rng.EuclideanMetric(),
    "relative": rng.RelativeFisher() + 0.1 * rng.EuclideanMetric(),
    "multiple": 3.0 * (rng.PRONG(0.1)),
}
DAMPED = METRICS["K-FAC"]


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def off(a, b, x):
    with torch.no_grad():
        return float((a(x) - b(x)).abs().max())


def framed_mlp(metric=DAMPED, **more):
    model, x, y = problem("mlp")
    network = network_of(model, x)
    return model, in_frames(network, metric.at(network.observe(x)), **more), x, y


# --- gradient descent in frames is the natural gradient ---------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", MODELS)
def test_gradient_descent_in_frames_is_the_natural_gradient(name, metric):
    """With momentum, and through a refresh; then the frames are taken off, and momentum goes on."""
    model, framed_model, framed, sgd, velocity, x = side_by_side(name, METRICS[metric])
    start = problem(name)[0]
    assert off(start, model, x) > 0.05  # they have moved
    assert off(model, framed_model, x) < 1e-12
    framed.remove(sgd)
    assert off(model, framed_model, x) < 1e-12
    names = [name for name, _ in model.named_parameters()]
    assert names == [name for name, _ in framed_model.named_parameters()]
    assert [type(m) for m in model.modules()] == [type(m) for m in framed_model.modules()]
    for name, p in framed_model.named_parameters():
        assert float((p - model.get_parameter(name)).detach().abs().max()) < 1e-12
        if p.requires_grad:
            expected = velocity.to_parameters()[name]
            assert float((sgd.state[p]["momentum_buffer"] - expected).abs().max()) < 1e-12


def test_plain_gradient_descent_is_another():
    model, framed_model, *_, x = side_by_side("mlp", DAMPED, steps=1)
    plain, _, y = problem("mlp")
    step(plain, torch.optim.SGD(plain.parameters(), lr=0.1), x, y)
    assert off(model, framed_model, x) < 1e-13 < 1e-2 < off(model, plain, x)


def test_velocities_that_are_not_brought_along_go_elsewhere():
    model, framed_model, *_, x = side_by_side("mlp", DAMPED, transport=False)
    assert off(model, framed_model, x) > 1e-3


def test_a_refresh_that_forgets_the_parameters_changes_the_function():
    """The raw parameters are those of the frames that they were in."""
    model, framed, x, _ = framed_mlp()
    before = model(x).detach()
    with framed.off() as network:
        g = rng.PRONG(0.1).at(network.observe(x))
        framed.refresh(g)
    assert float((model(x) - before).detach().abs().max()) < 1e-13
    path = framed.layers[0]
    framed.frame(path).left = None if framed.frame(path).left is not None else 2 * torch.eye(5)
    framed.frame(path).right = 2 * framed.frame(path).right  # new frames, the raw parameters as they were
    assert float((model(x) - before).detach().abs().max()) > 0.1


def test_a_step_in_kfac_frames_is_between_two_fixed_maps():
    """W = E_S W' E_Aᵀ, by hand."""
    model, x, _y = problem("mlp")
    network = network_of(model, x)
    g = rng.KFAC().damp_factors(0.1).at(network.observe(x))
    G, A = (f.matrix() for f in g.parts["0"].factors)
    before = torch.cat([model[0].weight, model[0].bias[:, None]], 1).detach().clone()
    framed = in_frames(network, g)
    E = framed.frame("0")
    assert torch.allclose(E.left @ E.left.mT, torch.linalg.inv(G)) and torch.allclose(
        E.right @ E.right.mT, torch.linalg.inv(A)
    )
    raw = [model[0].parametrizations[k].original.detach() for k in ("weight", "bias")]
    assert torch.allclose(E.left @ torch.cat([raw[0], raw[1][:, None]], 1) @ E.right.mT, before)


def test_in_frames_of_the_exact_blocks_the_fisher_of_raw_parameters_is_the_identity_on_each():
    """A model in frames is read like any other: its raw parameters have no layers, and the Fisher is exact on them."""
    model, _framed, x, _ = framed_mlp(rng.Fisher("block-diagonal"), layers=["0"])
    seen = Network.from_torch(model, Categorical(), x)
    assert {row.block for row in seen.coverage()} == {"constant", "affine"}
    assert seen.coverage()["2.weight"].block == "affine"
    names = ["0.parametrizations.weight.original", "0.parametrizations.bias.original"]
    gradients = seen.observe(x).gradients.dense()
    F = rng.second_moment(seen.observe(x).gradients).matrix()
    sizes = [seen.tangent_space[path].dim for path in seen.blocks]
    starts = {path: sum(sizes[:i]) for i, path in enumerate(seen.blocks)}
    at = torch.cat([torch.arange(starts[n], starts[n] + seen.tangent_space[n].dim) for n in names])
    assert gradients.shape[-1] == F.shape[0]
    assert torch.allclose(F[at][:, at], torch.eye(25), atol=1e-9)


# --- a module like any other ------------------------------------------------------------------------------------------


def test_names_shapes_and_parameter_objects():
    model, x, _y = problem("mlp")
    objects, shapes = list(model.parameters()), [p.shape for p in model.parameters()]
    before = model(x)
    network = network_of(model, x)
    framed = in_frames(network, DAMPED.at(network.observe(x)))
    assert list(map(id, model.parameters())) == list(map(id, objects))
    assert [p.shape for p in model.parameters()] == shapes
    assert [name for name, _ in model.named_parameters()][:2] == [
        "0.parametrizations.weight.original", "0.parametrizations.bias.original",
    ]  # fmt: skip
    assert "0.parametrizations.weight.0.frames.0.left" in model.state_dict()
    assert repr(framed) == "InFrames(net: 0, 2)" and "[5, 5]" in repr(model)
    framed.remove()
    assert list(map(id, model.parameters())) == list(map(id, objects)) and torch.allclose(model(x), before)
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    network.observe(x)  # the network is of this module still


def test_the_state_of_a_model_in_frames_is_loaded_by_one_in_others():
    model, _framed, x, y = framed_mlp()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step(model, sgd, x, y)
    file = io.BytesIO()
    torch.save([model.state_dict(), sgd.state_dict()], file)
    file.seek(0)
    state, opt_state = torch.load(file, weights_only=True)
    other, _, x, y = framed_mlp(rng.KFAC() + 7.0 * rng.EuclideanMetric())
    resumed = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    assert off(model, other, x) > 1e-3
    other.load_state_dict(state)
    resumed.load_state_dict(opt_state)
    for _ in range(3):
        step(model, sgd, x, y)
        step(other, resumed, x, y)
    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))


def test_to_another_dtype_and_back():
    model, framed, x, _ = framed_mlp()
    before = model(x).detach()
    model.to(torch.float32)
    assert {t.dtype for t in model.state_dict().values()} == {torch.float32}
    assert torch.allclose(model(x.float()).double(), before, atol=1e-5)
    model.to(torch.float64)
    framed.remove()
    assert torch.allclose(model(x), before, atol=1e-5)


def test_half_precision_parameters_have_frames_in_single():
    model, x, _y = problem("mlp")
    model, x = model.to(torch.bfloat16), x.to(torch.bfloat16)
    network = network_of(model, x)
    before = model(x).detach()
    framed = in_frames(network, rng.PRONG(0.1).at(network.observe(x)))
    assert framed.frame("0").right.dtype == torch.float32
    assert torch.allclose(model(x), before, atol=0.1) and model(x).dtype == torch.bfloat16


@pytest.mark.parametrize("name", [name for name in MODELS if name != "recurrent"])
def test_a_copy_has_frames_of_its_own(name):
    model, x, y = problem(name)
    network = network_of(model, x)
    framed = in_frames(network, DAMPED.at(network.observe(x)))
    twin = copy.deepcopy(model)
    assert off(model, twin, x) == 0
    sgd = torch.optim.SGD(twin.parameters(), lr=0.5)
    step(twin, sgd, x, y)
    assert off(model, twin, x) > 1e-2
    untouched = framed.frame(framed.layers[0])
    assert untouched is not next(m for m in twin.modules() if type(m) is type(untouched))


def test_parameters_may_be_frozen_and_decayed():
    """Decay shrinks raw parameters as it would shrink the model's own: frames are linear."""
    model, framed, _x, _y = framed_mlp()
    plain, _, _ = problem("mlp")
    before = [p.detach().clone() for p in plain.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5, betas=(0.0, 0.0))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    framed.remove()
    assert all(torch.allclose(p, 0.95 * q) for p, q in zip(model.parameters(), before, strict=True))


def test_gradients_of_the_old_frames_are_gone():
    model, framed, x, y = framed_mlp()
    CE(model(x), y).backward()
    with framed.off() as network:
        framed.refresh(rng.PRONG(0.1).at(network.observe(x)))
    assert all(p.grad is None for p in model.parameters())


def test_velocities_of_an_optimizer_that_came_first():
    model, x, y = problem("mlp")
    plain = copy.deepcopy(model)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    own = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    step(model, sgd, x, y), step(plain, own, x, y)
    network = network_of(model, x)
    framed = in_frames(network, DAMPED.at(network.observe(x)), optimizer=sgd)
    framed.remove(sgd)
    step(model, sgd, x, y), step(plain, own, x, y)
    assert off(model, plain, x) < 1e-13


def test_inside_off_the_model_is_ordinary_and_may_be_moved():
    model, framed, x, _y = framed_mlp()
    with framed.off() as network:
        assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
        network.move_(network.parameters_point() - network.parameters_point() + 0.5 * direction(network), 1.0)
        moved = model(x).detach()
        with framed.off() as again:
            assert again is network
    assert torch.allclose(model(x), moved) and len(model.state_dict()) > 4
    with pytest.raises(KeyError), framed.off():
        raise KeyError
    assert torch.allclose(model(x), moved) and len(model.state_dict()) > 4


def direction(network):
    return rng.Vector(network.tangent_space, torch.ones(network.tangent_space.dim))


# --- which layers -----------------------------------------------------------------------------------------------------


def test_layers_that_are_named_and_the_table():
    model, framed, _x, _ = framed_mlp(layers=["2"])
    assert framed.layers == ("2",)
    assert list(model.state_dict())[:2] == ["0.weight", "0.bias"]
    rows = framed.coverage()
    assert rows["0.weight"].assumed == "left as it is"
    assert rows["2.bias"].assumed == "frame: [3, 3] on S, [6, 6] on Â, [3, 6] a number each"


def test_parts_of_a_fused_layer():
    """Rows of a parameter in a frame, the others not: the rest is trained as it is."""
    model, x, y = problem("attention")
    network = network_of(model, x)
    other = copy.deepcopy(model)
    seen = network_of(other, x)
    g = DAMPED.at(network.observe(x))
    v = g.sharp(network.differential(x, y))
    plain = {path: t if path == "mix.q" else network.differential(x, y)[path] for path, t in v.blocks.items()}
    network.move_(rng.Vector(network.tangent_space, plain), -0.1)
    framed = in_frames(seen, DAMPED.at(seen.observe(x)), layers=["mix.q"])
    assert "mix.q: " not in framed.coverage()["mix.in_proj_weight"].assumed
    assert "mix.k: left as it is" in framed.coverage()["mix.in_proj_weight"].assumed
    step(other, torch.optim.SGD(other.parameters(), lr=0.1), x, y)
    assert off(model, other, x) < 1e-13
    framed.remove()
    assert off(model, other, x) < 1e-13


def test_a_parameter_that_another_parametrization_is_made_of_is_left_as_it_is():
    torch.manual_seed(0)
    model, x = mlp(), torch.randn(20, 4)
    nn.utils.parametrizations.weight_norm(model[0])
    before = model(x).detach()
    network = network_of(model, x)
    g = DAMPED.at(network.observe(x))
    framed = in_frames(network, g)
    assert "0.parametrizations.weight.original0" not in framed.layers and "2" in framed.layers
    said = framed.coverage()["0.parametrizations.weight.original0"].assumed
    assert said.endswith("left as it is: another parametrization is made of it")
    assert torch.allclose(model(x), before)
    framed.remove()
    with pytest.raises(InvalidFrames, match="is what another parametrization is made of"):
        in_frames(network, g, layers=["0.parametrizations.weight.original0"])


# --- what has no frame, and what has changed --------------------------------------------------------------------------


def unchanged(model, before):
    assert list(model.state_dict()) == list(before)
    assert all(map(torch.equal, model.state_dict().values(), before.values()))


def snapshot(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def test_a_degenerate_form_has_no_frame():
    """The output's logits have a kernel. The error says what else there is; nothing has changed."""
    model, x, _ = problem("mlp")
    network, before = network_of(model, x), snapshot(model)
    with pytest.raises(
        DegenerateMetric, match=r"(?s)three ways out|sharp_modulo_kernel.*In in_frames, layer '2'"
    ) as error:
        in_frames(network, rng.KFAC().at(network.observe(x)))
    assert "damp" in str(error.value) and "quotient" in str(error.value) and error.value.rank is not None
    unchanged(model, before)
    in_frames(network, rng.KFAC().at(network.observe(x)), layers=["0"])
    model, framed, x, _ = framed_mlp()
    before = snapshot(model)
    with pytest.raises(DegenerateMetric, match="In refresh, layer '2'"), framed.off() as network:
        framed.refresh(rng.KFAC().at(network.observe(x)))
    unchanged_function(model, before)


def unchanged_function(model, before):
    assert list(model.state_dict()) == list(before)
    assert all(torch.allclose(t, before[k], atol=1e-13) for k, t in model.state_dict().items())


def test_words_that_a_batch_did_not_use_have_no_frame():
    model, x, _ = problem("attention")
    network = network_of(model, x)
    with pytest.raises(DegenerateMetric, match="In in_frames, layer 'embed'"):
        in_frames(network, rng.PRONG(0.0).at(network.observe(x.clamp(max=3))))


def test_refusals():
    model, x, y = problem("mlp")
    network = network_of(model, x)
    g, before = DAMPED.at(network.observe(x)), snapshot(model)
    other = network_of(mlp(), x)
    other = Network.from_torch(mlp(), Categorical(), x)
    adam = torch.optim.Adam(model.parameters())
    step(model, adam, x, y)
    before = snapshot(model)
    cases = [
        (lambda: in_frames(model, g), InvalidFrames, "expected a network, got Sequential. Read the module first"),
        (lambda: in_frames(network, DAMPED), SpaceMismatch, r"in_frames: expected an inner product on the tangent"),
        (lambda: in_frames(network, DAMPED.at(other.observe(x))), SpaceMismatch, "in_frames: .* got one on"),
        (lambda: in_frames(network, network.fisher(x)), InvalidFrames, "has terms between layers.*Take a layerwise"),
        (lambda: in_frames(network, g, ["0", "fc9"]), InvalidFrames, "no layer is called 'fc9'; there are '0', '2'"),
        (lambda: in_frames(network, g, "0"), InvalidFrames, "layers='0', expected a collection of paths"),
        (lambda: in_frames(network, g, []), InvalidFrames, "no layer is left to be put in a frame"),
        (lambda: in_frames(network, g, optimizer=adam), InvalidSetting, "Adam keeps exp_avg, exp_avg_sq of '0.weight'"),
        (lambda: in_frames(network, g, optimizer=0.1), InvalidSetting, "optimizer=0.1, expected the torch optimizer"),
    ]
    for call, kind, text in cases:
        with pytest.raises(kind, match=text):
            call()
        unchanged(model, before)


def test_a_frame_that_would_be_too_large():
    model = nn.Sequential(nn.Linear(80, 60), nn.Linear(60, 2))
    network = Network.from_torch(model, Categorical(), x := torch.randn(10, 80))
    low_rank = rng.Fisher("block-diagonal") + rng.EuclideanMetric()
    with pytest.raises(InvalidFrames, match=r"one matrix \[4860, 4860\], of more than 4,096 rows.*\n?.*layer '0'"):
        in_frames(network, low_rank.at(network.observe(x)))
    in_frames(network, low_rank.at(network.observe(x)), layers=["1"])


def test_frames_that_are_there_already_or_are_gone():
    model, framed, x, _ = framed_mlp()
    before = snapshot(model)
    again = Network.from_torch(model, Categorical(), x)
    with pytest.raises(InvalidFrames, match="is in a frame already"):
        in_frames(again, DAMPED.at(again.observe(x)))
    with pytest.raises(RiemannError, match=r"'0.weight' is gone since the module was read"):
        framed.network.observe(x)
    with pytest.raises(InvalidFrames, match="no layer '1' is in a frame; those are '0', '2'"):
        framed.frame("1")
    unchanged(model, before)
    framed.remove()
    for call in (framed.remove, lambda: framed.refresh(None), lambda: framed.off().__enter__()):
        with pytest.raises(InvalidFrames, match="the frames were removed"):
            call()


class Half(nn.Module):
    def forward(self, x):
        return x / 2


def test_a_model_that_was_changed_meanwhile():
    def removed(model):
        nn.utils.parametrize.remove_parametrizations(model[0], "weight")

    def beside(model):
        nn.utils.parametrize.register_parametrization(model[2], "bias", Half())

    def replaced(model):
        model[0].parametrizations.weight.original = nn.Parameter(torch.zeros(5, 4))

    for meddle, text in (
        (removed, "'0.weight' is in no frame any more"),
        (beside, "'2.bias' has another parametrization beside its frame"),
        (replaced, "'0.weight' is another one than when it was put in its frame"),
    ):
        model, framed, x, _ = framed_mlp()
        with framed.off() as network:
            g = DAMPED.at(network.observe(x))
        meddle(model)
        before = snapshot(model)
        for call in (lambda: framed.refresh(g), framed.remove, lambda: framed.off().__enter__()):  # noqa: B023
            with pytest.raises(InvalidFrames, match=text):
                call()
            unchanged(model, before)


def test_velocities_that_have_no_components_elsewhere():
    model, framed, x, y = framed_mlp()
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    step(model, adam, x, y)
    with framed.off() as network:
        g = rng.PRONG(0.1).at(network.observe(x))
    before = snapshot(model)
    with pytest.raises(InvalidSetting, match=r"Use SGD, or leave the optimizer out and let it start over"):
        framed.refresh(g, adam)
    unchanged(model, before)
    framed.refresh(g)
    assert isinstance(framed, InFrames)
