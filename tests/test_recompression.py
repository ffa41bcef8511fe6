"""Exact directions without looping over all of them: the same second moments as the plain loop, and no way to mix them.

`Exact(chunk=10_000)` stacks all directions from a plain loop; `Exact(chunk=3)` keeps at most three and recompresses.
"""

import gc
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks_zoo import ZOO
from torch import nn

from riemann_ng.errors import ObservationMismatch
from riemann_ng.inner_products import second_moment
from riemann_ng.likelihoods import Bernoulli, Categorical, Gaussian
from riemann_ng.networks import Exact, Network
from riemann_ng.networks import recompression as module
from riemann_ng.networks.exact import ExactObservation
from riemann_ng.networks.forms import Dense, Diagonal, Factor
from riemann_ng.networks.recompression import Recompression

LOOP, FEW = Exact(chunk=10_000), Exact(chunk=3)
LIKELIHOODS = {"bernoulli": Bernoulli(), "categorical": Categorical(), "gaussian": Gaussian(0.7)}
ACTIVATIONS = {
    "tanh": nn.Tanh,
    "relu": lambda: nn.ReLU(inplace=True),
    "sigmoid": nn.Sigmoid,
    "swish": nn.SiLU,
    "norm": lambda: nn.Sequential(nn.Softplus(), nn.Dropout(0.3).train()),
}


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def chain(widths, activation="tanh", linear=None):
    layers = []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        layers += [nn.Linear(a, b, bias=i % 3 != 1)]
        if i not in (linear, len(widths) - 2):
            layers += [ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


def both(model, x, likelihood, estimator=FEW):
    """The plain loop, and what is carried, of one network; equal random states, for dropout."""
    network = Network.from_torch(model, likelihood, x)
    torch.manual_seed(1)
    loop = network.observe(x, LOOP)
    torch.manual_seed(1)
    few = network.observe(x, estimator)
    assert type(loop) is not ExactObservation and type(few) is ExactObservation
    return loop, few


def assert_equal(loop, few):
    for path in loop:
        expected, found = (second_moment(o[path].cotangents).member_matrices() for o in (loop, few))
        assert (found - expected).abs().max() <= 1e-10 * expected.abs().max(), path


def rotated(few):
    return {path for path in few if few[path].cotangents.counts[1] < few[path].aligned.counts[1]}


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_bottleneck_has_the_moments_of_the_plain_loop(likelihood, activation):
    model = chain([9, 7, 5, 3, 4, 8, 9], activation, linear=2)
    loop, few = both(model, torch.randn(6, 9), LIKELIHOODS[likelihood])
    assert_equal(loop, few)
    assert len(rotated(few)) == 2  # the two layers before the code of width 3
    for path in rotated(few):
        assert few[path].cotangents.counts == (6, 3, 1)
        assert second_moment(few[path].gradients).matrix().allclose(second_moment(loop[path].gradients).matrix())


@given(st.lists(st.integers(1, 9), min_size=2, max_size=6), st.integers(1, 4), st.sampled_from(sorted(LIKELIHOODS)))
def test_any_chain_has_the_moments_of_the_plain_loop(widths, n, likelihood):
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(sum(widths))
    loop, few = both(chain([*widths, 8]), torch.randn(n, widths[0]), LIKELIHOODS[likelihood])
    assert_equal(loop, few)


def test_chunks_of_examples_change_nothing(monkeypatch):
    monkeypatch.setattr(module, "BUDGET", 300)
    loop, few = both(chain([9, 7, 5, 3, 4, 8, 9], linear=2), torch.randn(7, 9), Bernoulli())
    assert_equal(loop, few)


def test_across_layers_the_directions_are_honest():
    loop, few = both(chain([5, 4, 2, 4, 5], linear=1), torch.randn(3, 5), Bernoulli())
    expected, found = (second_moment(o.gradients).matrix() for o in (loop, few))
    assert torch.allclose(found, expected, atol=1e-12)
    for path in loop:
        assert torch.allclose(few[path].aligned.dense(), loop[path].cotangents.dense())


def cross(first, second):
    return torch.einsum("nktp,nktq->pq", first.dense(), second.dense())


def test_rotated_draws_cannot_be_paired_with_others():
    """As many draws mean the same rotation: pairing others fails by its shapes, and pairing these is right."""
    loop, few = both(chain([9, 8, 2, 8, 7, 5, 3, 8, 9]), torch.randn(4, 9), Bernoulli())
    assert {few[path].cotangents.counts[1] for path in few} == {9, 3, 2}
    for first in loop:
        for second in loop:
            expected = cross(loop[first].cotangents, loop[second].cotangents)
            assert torch.allclose(cross(few[first].aligned, few[second].aligned), expected, atol=1e-12)
            mine, its = few[first].cotangents, few[second].cotangents
            if mine.counts == its.counts:
                assert torch.allclose(cross(mine, its), expected, atol=1e-12)
            else:
                with pytest.raises(RuntimeError, match="subscript k"):
                    cross(mine, its)


def test_a_line_is_no_cut():
    """One draw would broadcast with any other number of them, so a layer of width one stops nothing."""
    loop, few = both(chain([6, 5, 1, 5, 8]), torch.randn(4, 6), Bernoulli())
    assert_equal(loop, few)
    assert all(few[path].cotangents.counts[1] > 1 for path in few)


class Residual(nn.Module):
    """The code is narrow, and the input goes around it."""

    def __init__(self, around=True):
        super().__init__()
        self.inner, self.code = nn.Linear(5, 4), nn.Linear(4, 2)
        self.outer, self.last = nn.Linear(2, 4), nn.Linear(4, 8)
        self.around = around

    def forward(self, x):
        h = torch.tanh(self.inner(x))
        return self.last(torch.tanh(self.outer(self.code(h))) + (h if self.around else 0))


class Shared(nn.Module):
    """One layer before the narrow place and behind it."""

    def __init__(self):
        super().__init__()
        self.twice, self.code = nn.Linear(4, 4), nn.Linear(4, 2)
        self.outer, self.last = nn.Linear(2, 4), nn.Linear(4, 8)

    def forward(self, x):
        h = self.outer(self.code(torch.tanh(self.twice(x))))
        return self.last(torch.tanh(self.twice(h)))


class Elsewhere(nn.Module):
    """A bare parameter before the narrow place, and a weight used behind its layer's back."""

    def __init__(self):
        super().__init__()
        self.scale, self.first = nn.Parameter(torch.randn(4)), nn.Linear(4, 4)
        self.code, self.outer, self.last = nn.Linear(4, 2), nn.Linear(2, 4), nn.Linear(4, 8)

    def forward(self, x):
        h = torch.tanh(nn.functional.linear(self.first(x * self.scale), self.first.weight))
        return self.last(torch.tanh(self.outer(self.code(h))))


class Convolutional(nn.Module):
    """A convolutional encoder with groups, a code, and a decoder that ends in a convolution."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, stride=2), nn.Conv2d(4, 4, 2, groups=2)
        self.code, self.outer, self.last = nn.Linear(16, 3), nn.Linear(3, 8), nn.ConvTranspose2d(2, 1, 2, stride=2)

    def forward(self, x):
        h = torch.tanh(self.second(torch.relu(self.first(x)))).flatten(1)
        return self.last(torch.tanh(self.outer(self.code(h))).reshape(-1, 2, 2, 2)).flatten(1)


class Coupled(nn.Module):
    """Examples are mixed between two narrow places."""

    def __init__(self):
        super().__init__()
        self.inner, self.code = nn.Linear(5, 4), nn.Linear(4, 2)
        self.outer, self.last = nn.Linear(2, 4), nn.Linear(4, 8)

    def forward(self, x):
        h = self.code(torch.tanh(self.inner(x)))
        return self.last(torch.tanh(self.outer(h - h.mean(0))))


def softmaxed():
    narrow, wide = (nn.Linear(4, 3), nn.Softmax(-1)), (nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 8))
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), *narrow, *wide)


@pytest.mark.parametrize(
    ("make", "shape", "expected"),
    [
        (Residual, (5,), set()),
        (lambda: Residual(around=False), (5,), {"inner"}),
        (Shared, (4,), set()),
        (Elsewhere, (4,), {"first.bias", "scale"}),  # first.weight is known by per-example gradients alone
        (Convolutional, (1, 7, 7), {"first", "second"}),
        (Coupled, (5,), set()),
        (softmaxed, (5,), {"0", "2"}),
    ],
)
def test_what_is_no_chain_falls_back(make, shape, expected):
    loop, few = both(make(), torch.randn(4, *shape), Bernoulli())
    assert_equal(loop, few)
    assert rotated(few) == expected
    assert torch.allclose(few.gradients.dense(), loop.gradients.dense(), atol=1e-12)


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_in_chunks(name):
    make, batch = ZOO[name]
    model, x = make(), batch(3)
    model(x)
    loop, few = both(model, x, Categorical(), Exact(chunk=1))
    assert_equal(loop, few)
    for path in loop:
        assert torch.allclose(few[path].reduced().aligned.dense(), loop[path].reduced().cotangents.dense(), atol=1e-12)
        if few[path].S.dim < 10:
            moments = [second_moment(o[path].gradients).matrix() for o in (loop, few)]
            assert torch.allclose(*moments, atol=1e-12)
    assert torch.allclose(few.gradients.dense(), loop.gradients.dense(), atol=1e-12)


def test_a_mask_is_never_recompressed():
    make, batch = ZOO["tokens"]
    model, x = make(), batch(4)
    network = Network.from_torch(model, Categorical(), x)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 1]]).bool()
    loop, few = (network.observe(x, e, mask=mask) for e in (LOOP, FEW))
    assert_equal(loop, few)
    assert torch.allclose(few.gradients.dense(), loop.gradients.dense())
    unmasked = second_moment(network.observe(x, FEW)["out"].cotangents).matrix()
    assert not torch.allclose(second_moment(few["out"].cotangents).matrix(), unmasked)


def test_a_wrong_claim_of_a_chain_is_seen_on_the_batch():
    """The same shapes with a map between the layers that is not pointwise: no step in matrices."""

    class Rolled(nn.Module):
        def forward(self, x):
            return torch.tanh(x).roll(1, -1)

    steps = {}
    for name, between in {"pointwise": nn.Tanh(), "rolled": Rolled()}.items():
        model = nn.Sequential(nn.Linear(5, 4), between, nn.Linear(4, 8))
        loop, few = both(model, torch.randn(3, 5), Bernoulli())
        assert_equal(loop, few)
        steps[name] = [step.scale is None for step in Recompression(few._directions).steps]
    assert steps == {"pointwise": [False, False], "rolled": [False, True]}


def test_per_example_forms():
    h, scale, weight = torch.rand(3, 6), torch.rand(3, 4), torch.randn(6, 4)
    expected = torch.einsum("ni,oi,no,oj,nj->ij", scale, weight, h.square(), weight, scale)
    forms = (Diagonal(h), Factor(torch.diag_embed(h)), Dense(torch.diag_embed(h.square())))
    for form in forms:
        assert torch.allclose(form.pulled(weight, scale).moment(), expected)
        assert torch.allclose(form.factored().pulled(weight, scale).moment(), expected)
        assert torch.allclose(form.pulled(None, h).moment(), torch.diag((h**4).sum(0)))
        assert form.pulled(weight, scale).rank == 4
        assert form.pulled(torch.randn(6, 9), torch.rand(3, 9)).rank == 6


def test_moving_the_parameters_first_is_refused():
    network = Network.from_torch(chain([5, 4, 2, 4, 8]), Bernoulli(), torch.randn(3, 5))
    observation = network.observe(torch.randn(3, 5), FEW)
    kept = second_moment(observation["0"].cotangents).matrix()
    late = network.observe(torch.randn(3, 5), FEW)
    with torch.no_grad():
        network.module[2].weight.add_(1.0)
    assert torch.equal(second_moment(observation["0"].cotangents).matrix(), kept)  # made before, and kept
    with pytest.raises(ObservationMismatch, match="the parameters have moved since the batch was observed"):
        second_moment(late["0"].cotangents).matrix()
    with pytest.raises(ObservationMismatch, match="Read second moments before the step"):
        late.gradients.dense()


def test_nothing_is_left_behind():
    x = torch.randn(4, 5)
    network = Network.from_torch(chain([5, 4, 2, 4, 8]), Bernoulli(), x)

    def alive():
        gc.collect()
        return sum(1 for o in gc.get_objects() if isinstance(o, torch.Tensor))

    second_moment(network.observe(x, FEW)["0"].cotangents).matrix()
    before = alive()
    for _ in range(20):
        with network.observe(x, FEW) as observation:
            second_moment(observation["0"].cotangents).matrix()
    del observation
    assert alive() <= before
    assert all(p.grad is None for p in network.module.parameters())


def test_directions_are_never_stacked():
    """Of 600 directions at most the chunk is alive: the largest tensor made is far from what a stack would hold."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(t, torch.Tensor):
                    self.size = max(self.size, t.numel())
            return out

    class PerToken(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mix, self.out = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 20)

        def forward(self, tokens):
            h = self.embed(tokens)
            return self.out(h + torch.tanh(self.mix(h).cumsum(1)))

    x = torch.randint(0, 20, (2, 30))
    network = Network.from_torch(PerToken(), Categorical(), x)
    observation = network.observe(x, Exact(chunk=8))
    with Largest() as largest:
        for path in observation:
            second_moment(observation[path].cotangents).member_matrices()
    assert observation["mix"].cotangents.counts == (2, 600, 30)
    assert largest.size <= 8 * 2 * 30 * 20 < 600 * 2 * 30 * 8
