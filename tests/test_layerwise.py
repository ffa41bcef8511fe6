"""Newton and Gauss-Newton steps layer by layer, against dense Hessians made by autograd."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import riemann_ng as rng
from riemann_ng.errors import InvalidSetting, NotAnInnerProduct, NotClosed, SpaceMismatch, UnsupportedLayer
from riemann_ng.layerwise import gauss_newton_step, newton_model, newton_step
from riemann_ng.metrics import FixedMetric
from riemann_ng.reparametrize import Frames, reparametrize
from riemann_ng.solvers import Riccati
from riemann_ng.testing.networks import network_cases


def parameters_of(network):
    """The parameters as one vector, and the map from it to components of the tangent space."""
    named = {name: p.detach() for name, p in network.parameters.items()}
    sizes = [p.numel() for p in named.values()]

    def tensors(flat):
        return {k: t.view(p.shape) for (k, p), t in zip(named.items(), flat.split(sizes), strict=True)}

    flat = torch.cat([p.flatten() for p in named.values()])
    return flat, tensors, torch.stack([network.vector(tensors(e)).components for e in torch.eye(len(flat)).to(flat)])


def hessian(network, f):
    """Of a function of the parameters by name, on components; `torch.func` gets layer norms wrong."""
    flat, tensors, to_components = parameters_of(network)
    H = torch.autograd.functional.hessian(lambda p: f(tensors(p)), flat)
    return to_components.T @ H @ to_components


def dense_hessian(network, x, y):
    likelihood, read, module = network.likelihood, network.read, network.module
    return hessian(network, lambda p: likelihood.nll(read(torch.func.functional_call(module, p, x)), y).mean())


def eye(network, like):
    return torch.eye(network.tangent_space.dim).to(like)


def off(given, expected):
    return float((given - expected).norm() / expected.norm().clamp(min=1e-3))


def mlp(*widths, act=nn.Tanh, seed=0):
    torch.manual_seed(seed)
    layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), act())][:-1]
    return nn.Sequential(*layers).double()


def problem(*widths, act=nn.Tanh, n=5, likelihood=None):
    model = mlp(*(widths or (3, 4, 4, 3)), act=act)
    x = torch.randn(n, model[0].in_features).double()
    y = torch.randint(0, model[-1].out_features, (n,))
    return rng.Network.from_torch(model, likelihood=likelihood or rng.Categorical(), example=x), x, y


def grams(network, seed=0, shift=1.0):
    g, parts = torch.Generator().manual_seed(seed), {}
    for path, V in network.tangent_space.parts:
        root = torch.randn(V.dim, V.dim, generator=g).double()
        parts[path] = rng.Gram(V, root @ root.T / V.dim + shift * torch.eye(V.dim).double())
    return rng.direct_sum(parts)


# --- Newton -----------------------------------------------------------------------------------------------------------


@settings(max_examples=settings.default.max_examples // 2)
@given(network_cases(("mlp", "conv1d", "normalization", "tokens")), st.sampled_from([1.0, 4.0]))
def test_newton_is_the_dense_solve_or_says_why_not(case, factor):
    network, x, y = case.network(), case.x, case.y
    H = dense_hessian(network, x, y)
    low = float(torch.linalg.eigvalsh(H)[0])
    damping = factor * max(-low, 0.1) * 1.05
    step = newton_step(network, x, y, damping=damping)
    g = network.differential(x, y).components
    C = H + damping * eye(network, H)
    assert off(step.vector.components, -torch.linalg.solve(C, g)) < 1e-8 / (factor * 0.05)
    assert abs(float(step.change + 0.5 * g @ torch.linalg.solve(C, g))) <= 1e-8 * (1 + float(g @ g))
    if low < -0.01:
        with pytest.raises(NotAnInnerProduct, match="Raise λ, by a factor of about"):
            newton_step(network, x, y, damping=-0.9 * low)


class Gated(nn.Module):
    """A parameter without a layer inside a stage, and a stage that is not linear in its parameters."""

    def __init__(self):
        super().__init__()
        self.a, self.gain, self.b, self.c = nn.Linear(3, 4), nn.Parameter(torch.randn(4)), nn.Linear(4, 4), nn.Linear(4, 3)  # fmt: skip # noqa: E501

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.c(torch.tanh(h * self.gain + self.b(torch.tanh(self.gain * h))))


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.attn, self.out = nn.Linear(3, 4), nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        h = self.into(x)
        return self.out(self.attn(h, h, h, need_weights=False)[0].mean(1))


@pytest.mark.parametrize("kind", ["gated", "grouped", "attention", "recurrent stage"])
def test_newton_on_stages_with_curvature_in_their_parameters(kind):
    torch.manual_seed(1)
    shapes = {"gated": (4, 3), "grouped": (3, 2, 4, 4), "attention": (3, 2, 3), "recurrent stage": (3, 3, 2)}
    grouped = nn.Sequential(
        nn.Conv2d(2, 2, 2), nn.Tanh(), nn.Conv2d(2, 2, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
    )

    class Reading(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.rnn, self.out = nn.Linear(2, 3), nn.RNN(3, 3, batch_first=True), nn.Linear(3, 3)

        def forward(self, x):
            return self.out(self.rnn(self.embed(x))[0][:, -1])

    model = {"gated": Gated, "grouped": lambda: grouped, "attention": Attending, "recurrent stage": Reading}[kind]()
    x = torch.randn(shapes[kind]).double()
    y = torch.randint(0, 3, (len(x),))
    network = rng.Network.from_torch(model.double(), likelihood=rng.Categorical(), example=x)
    step = newton_step(network, x, y, damping=8.0)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        H = dense_hessian(network, x, y)
    g = network.differential(x, y).components
    assert off(step.vector.components, -torch.linalg.solve(H + 8.0 * eye(network, H), g)) < 1e-12


def test_relu_stages_are_curved_in_mixed_directions_alone():
    network, x, y = problem(3, 6, 6, 3, act=nn.ReLU, n=8)
    _, middle, last = newton_model(network, x, y).stages.each
    for stage in (middle, last):
        k = stage.curvature
        assert k.Q is None and k.H is None
        assert k.M is not None and float(k.M.matrix().abs().max()) > 0.01
    smooth = newton_model(*problem(act=nn.Tanh)).stages.each[1].curvature
    assert smooth.Q is not None and float(smooth.Q.matrix().abs().max()) > 1e-3
    # and these mixed terms are all that the Hessian has beside the Gauss-Newton form
    H, F = dense_hessian(network, x, y), network.fisher(x).matrix()
    within = network.tangent_space.slices["2"]
    assert torch.allclose(H[within, within], F[within, within], atol=1e-14)
    assert float((H - F).abs().max()) > 1e-3


def test_an_indefinite_stage_is_named_in_units_of_the_damping():
    network, x, y = problem()
    message = r"at stage '\d' the curvature is indefinite .* smallest eigenvalue is -\d.*, in units of the damping"
    with pytest.raises(NotAnInnerProduct, match=message):
        newton_step(network, x, y, damping=1e-3)
    low = float(torch.linalg.eigvalsh(dense_hessian(network, x, y))[0])
    newton_step(network, x, y, damping=-1.01 * low)
    with pytest.raises(NotAnInnerProduct, match="Raise λ"):
        newton_step(network, x, y, damping=-0.99 * low)


def test_a_linear_network_with_a_square_loss_is_solved_in_one_step_of_its_last_layer():
    network, x, _ = problem(3, 3, likelihood=rng.Gaussian(), n=20)
    y = torch.randn(20, 3).double()
    network.move_(newton_step(network, x, y, damping=1e-12).vector)
    assert float(network.differential(x, y).data.abs().max()) < 1e-10


# --- penalties, other geometries, inner products on activations -------------------------------------------------------


@pytest.mark.parametrize("step_of", [newton_step, gauss_newton_step])
def test_a_penalty_counts_in_the_gradient_and_in_the_curvature(step_of):
    network, x, y = problem()
    weights = 0.3 * rng.EuclideanMetric(on="translations")
    step = step_of(network, x, y, damping=3.0, penalty=weights)
    here = network.parameters_point().data
    L2 = 0.3 * rng.euclidean_on_translations(network.tangent_space).matrix(here)
    C = dense_hessian(network, x, y) if step_of is newton_step else network.fisher(x).matrix()
    g = network.differential(x, y).components + L2 @ here
    solution = -torch.linalg.solve(C + L2 + 3.0 * eye(network, C), g)
    assert off(step.vector.components, solution) < 1e-13
    assert torch.isclose(step.change, 0.5 * g @ solution)
    without = step_of(network, x, y, damping=3.0)
    assert off(without.vector.components, solution) > 1e-2


@pytest.mark.parametrize("output", [None, rng.EuclideanOutput(2.0)], ids=str)
def test_gauss_newton_is_the_dense_solve(output):
    network, x, y = problem()
    R = grams(network)
    step = gauss_newton_step(network, x, y, damping=R, output=output)
    C = network.fisher(x, output).matrix() + R.matrix()
    solution = -torch.linalg.solve(C, network.differential(x, y).components)
    assert off(step.vector.components, solution) < 1e-13


def hidden(network, x, upto):
    """How the values of a hidden layer move with the parameters, dense."""
    flat, tensors, to_components = parameters_of(network)
    part = network.module[: upto + 1]
    J = torch.func.jacrev(lambda p: torch.func.functional_call(part, tensors_of(tensors(p), upto), x))(flat)
    return J.flatten(0, -2) @ to_components


def tensors_of(named, upto):
    return {name: t for name, t in named.items() if int(name.split(".")[0]) <= upto}


@pytest.mark.parametrize("step_of", [newton_step, gauss_newton_step])
def test_inner_products_on_hidden_activations_are_pulled_back(step_of):
    network, x, y = problem()
    S = network.blocks["2"].output_space
    root = torch.randn(S.dim, S.dim).double()
    h = rng.Gram(S, root @ root.T)
    step = step_of(network, x, y, damping=4.0, activations={"2": h})
    J = hidden(network, x, 2)
    n = len(x)
    Q = J.T @ torch.block_diag(*[h.matrix()] * n) @ J / n
    C = dense_hessian(network, x, y) if step_of is newton_step else network.fisher(x).matrix()
    g = network.differential(x, y).components
    assert off(step.vector.components, -torch.linalg.solve(C + Q + 4.0 * eye(network, C), g)) < 1e-12


def test_on_convolutions_activations_count_every_site():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(18, 3)).double()
    x, y = torch.randn(3, 1, 4, 4).double(), torch.randint(0, 3, (3,))
    network = rng.Network.from_torch(model, likelihood=rng.Categorical(), example=x)
    h = rng.Gram(network.blocks["0"].output_space, torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double())
    step = gauss_newton_step(network, x, y, damping=1.0, activations={"0": h})
    J = hidden(network, x, 0).reshape(3, 2, 9, -1)
    Q = torch.einsum("ncta,cd,ndtb->ab", J, h.matrix(), J) / 3
    C = network.fisher(x).matrix()
    g = network.differential(x, y).components
    assert off(step.vector.components, -torch.linalg.solve(C + Q + eye(network, C), g)) < 1e-13


# --- frames -----------------------------------------------------------------------------------------------------------


def difference(step_of, group, transported):
    """How far the step in a twin is from the step taken there, relative to its size."""
    network, x, y = problem()
    R = 8.0 * grams(network, shift=1.0)
    on = ("inputs", "activations", "pre-activations", "outputs")
    twin = reparametrize(network, Frames.draw(network, x, on, group, seed=3, size=0.5), x)
    here = step_of(network, x, y, damping=R if transported else 8.0)
    carried = twin.transport(R) if transported else 8.0
    there = step_of(twin.network, twin.inputs(x), y, damping=carried)
    return off(there.vector.components, twin.transport(here.vector).components), float(there.change - here.change)


@pytest.mark.parametrize("step_of", [newton_step, gauss_newton_step])
def test_steps_move_with_affine_frames_if_the_damping_does(step_of):
    gap, change = difference(step_of, "affine", transported=True)
    assert gap < 1e-10 and abs(change) < 1e-12
    gap, _ = difference(step_of, "affine", transported=False)
    assert gap > 1e-2


# --- errors -----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_done_is_said():
    network, x, y = problem()
    whole = rng.Gram(network.tangent_space, torch.eye(network.tangent_space.dim).double())
    with pytest.raises(InvalidSetting, match="going layer by layer needs a form for each layer"):
        newton_step(network, x, y, damping=FixedMetric(whole))
    with pytest.raises(InvalidSetting, match=r"'4' is no hidden state of .*; its hidden states are the values of '0', '2'"):  # fmt: skip # noqa: E501
        newton_step(network, x, y, damping=1.0, activations={"4": whole})
    with pytest.raises(SpaceMismatch, match=r"expected an inner product on .* for '0'"):
        newton_step(network, x, y, damping=1.0, activations={"0": whole})
    with pytest.raises(NotClosed, match="stage '4' has states of dimension 20 and 15, 15 parameters"):
        newton_step(network, x, y, damping=1.0, solver=Riccati(limit=1000))


def test_a_part_that_has_no_second_derivative_is_named():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.sin()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            return g

    class Part(nn.Module):
        def forward(self, x):
            return Once.apply(x)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), Part(), nn.Linear(3, 3)).double()
    x, y = torch.randn(4, 3).double(), torch.randint(0, 3, (4,))
    network = rng.Network.from_torch(model, likelihood=rng.Categorical(), example=x)
    with pytest.raises(UnsupportedLayer, match="stage '2' has a part that torch differentiates only once"):
        newton_step(network, x, y, damping=1.0)
