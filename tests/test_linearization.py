"""J and the exact Fisher of a batch as maps that are made once: against dense Jacobians and the typed samples."""

import copy
import gc

import pytest
import torch
from networks_zoo import ZOO
from torch import nn

from riemann_ng.elements import Vector
from riemann_ng.errors import ObservationMismatch, SpaceMismatch
from riemann_ng.inner_products import second_moment
from riemann_ng.likelihoods import Bernoulli, Categorical, EuclideanOutput
from riemann_ng.networks import Network
from riemann_ng.networks.linearization import Linearization, linearized
from riemann_ng.networks.uses import ConvolutionUse, FeatureUse, LinearUse, ScaleUse


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def zoo(name, n=3, likelihood=None):
    make, batch = ZOO[name]
    model, x = make(), batch(n)
    model(x)
    return Network.from_torch(model, likelihood or Categorical(), x), x


@pytest.mark.parametrize("name", ZOO)
def test_both_ways_are_the_jacobian(name):
    network, x = zoo(name)
    J = network.linearize(x)
    assert J.domain == network.tangent_space and J.codomain.dim == network.outputs(x).numel() and J.natural
    matrix = J.matrix()
    assert torch.allclose(J.transpose.matrix(), matrix.mT, atol=1e-12)
    v = Vector(network.tangent_space, torch.randn(network.tangent_space.dim))
    assert torch.allclose(J(v).data, network.pushforward(v, x).flatten(), atol=1e-12)


@pytest.mark.parametrize("output", [None, EuclideanOutput()])
@pytest.mark.parametrize("name", ZOO)
def test_the_fisher_is_that_of_the_samples(name, output):
    network, x = zoo(name)
    F = network.fisher(x, output)
    expected = second_moment(network.observe(x, output=output).gradients).matrix()
    vectors = Vector(network.tangent_space, torch.randn(2, 2, network.tangent_space.dim))
    assert torch.allclose(F.flat(vectors).data, vectors.data @ expected, atol=1e-12)
    one = Vector(network.tangent_space, vectors.data[0, 0])
    assert torch.allclose(F.flat(one).data, vectors.data[0, 0] @ expected, atol=1e-12)
    assert torch.allclose(F.matrix(), expected, atol=1e-12)


def test_what_a_form_says_of_itself():
    network, x = zoo("mlp")
    F, G = network.fisher(x), network.fisher(x, EuclideanOutput())
    assert F.expression() == "Pullback(J, mean of Categorical())" and F.dtype == torch.float64
    assert F.symmetry == second_moment(network.observe(x).gradients).symmetry != G.symmetry
    h = second_moment(network.observe(x).gradients).diagonal()
    xi = network.differential(x, torch.zeros(3, dtype=torch.long))
    step = (F + 0.1 * h).sharp(xi)
    dense = second_moment(network.observe(x).gradients) + 0.1 * h
    assert torch.allclose(step.data, dense.sharp(xi).data, rtol=1e-4, atol=1e-8)


class Attends(nn.Module):
    """A fused attention, whose kernel has no second derivative, and a bare parameter."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out, self.scale = nn.Linear(4, 12), nn.Linear(4, 2), nn.Parameter(torch.randn(4))

    def forward(self, x):
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, -1)
        return self.out(self.scale * nn.functional.scaled_dot_product_attention(q, k, v)[:, 0])


class Once(torch.autograd.Function):
    """x³, which can be differentiated once and no way but backwards."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g

    @staticmethod
    def jvp(ctx, t):
        return 3 * ctx.saved_tensors[0] ** 2 * t


def test_attention_is_differentiated_twice():
    x = torch.randn(3, 5, 4)
    network = Network.from_torch(Attends(), Categorical(), x)
    linearization = linearized(network, x)
    assert torch.allclose(linearization.map.matrix(), linearization.map.transpose.matrix().mT, atol=1e-12)
    assert linearization.twice
    expected = second_moment(network.observe(x).gradients).matrix()
    assert torch.allclose(network.fisher(x).matrix(), expected, atol=1e-12)


def test_the_fallback_runs_the_module_anew():
    network, x = zoo("convolutional")
    expected = network.linearize(x).matrix()
    linearization = linearized(network, x)
    linearization.twice = False
    assert torch.allclose(linearization.map.matrix(), expected, atol=1e-12)
    assert linearization.kept is None


def test_every_way_to_use_a_layer_is_taken():
    kinds = {type(use) for name in ZOO for _, use in linearized(*zoo(name)).uses}
    assert kinds == {LinearUse, ConvolutionUse, ScaleUse, FeatureUse}


def test_dropout_has_one_mask_for_both_ways():
    torch.manual_seed(3)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 2)), torch.randn(3, 4)
    network = Network.from_torch(model.train(), Categorical(), x)
    state = torch.get_rng_state()
    J = network.linearize(x)
    assert torch.equal(torch.get_rng_state(), state)
    torch.randn(10)
    assert torch.allclose(J.transpose.matrix().mT, J.matrix(), atol=1e-12)


def test_it_leaves_no_trace():
    network, x = zoo("convolutional")
    state = copy.deepcopy(network.module.state_dict())

    def alive():
        gc.collect()
        return sum(1 for o in gc.get_objects() if isinstance(o, torch.Tensor))

    v = Vector(network.tangent_space, torch.randn(network.tangent_space.dim))
    network.fisher(x).flat(v)
    before = alive()
    for _ in range(10):
        network.fisher(x).flat(v)
    assert alive() <= before
    assert all(p.grad is None and not m._forward_hooks for m in network.module.modules() for p in m.parameters())
    assert all(torch.equal(t, state[k]) for k, t in network.module.state_dict().items())


def test_moved_parameters_and_wrong_elements_are_refused():
    network, x = zoo("mlp")
    F, v = network.fisher(x), Vector(network.tangent_space, torch.randn(network.tangent_space.dim))
    before = F.flat(v).data
    with pytest.raises(SpaceMismatch):
        F.flat(F.flat(v))
    with pytest.raises(SpaceMismatch):
        network.linearize(x)(network.differential(x, torch.zeros(3, dtype=torch.long)))
    network.move_(v)
    with pytest.raises(ObservationMismatch, match="the parameters have moved since"):
        F.flat(v)
    assert not torch.allclose(network.fisher(x).flat(v).data, before)


def test_directions_of_unused_blocks_do_not_move_the_outputs():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused, self.bare = nn.Linear(3, 2), nn.Linear(2, 2), nn.Parameter(torch.randn(2))

        def forward(self, x):
            return self.used(x)

    x = torch.randn(4, 3)
    network = Network.from_torch(Unused(), Bernoulli(), x)
    F = network.fisher(x)
    v = Vector(network.tangent_space, torch.randn(network.tangent_space.dim))
    assert torch.allclose(F.flat(v).data, v.data @ second_moment(network.observe(x).gradients).matrix())
    assert bool((F.flat(v)["unused"] == 0).all()) and isinstance(linearized(network, x), Linearization)
