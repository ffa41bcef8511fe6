"""K-FAC as a metric: the textbook's formulas, written out by hand, and where it is the exact Fisher and where not."""

from collections.abc import Callable, Iterator

import pytest
import torch
from networks_zoo import in_parameters, oracle
from torch import Tensor, nn
from torch.nn.functional import unfold

import riemann_ng as rng
from riemann_ng.errors import InvalidSetting, ObservationMismatch
from riemann_ng.metrics import KFAC

Rows = tuple[Tensor, Tensor]


@pytest.fixture(autouse=True)
def _float64() -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)


# --- the textbook -----------------------------------------------------------------------------------------------------


def with_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(*x.shape[:-1], 1)], -1)


def seen(m: nn.Module, x: Tensor) -> Tensor:
    """What a call of the module multiplies its weight with: (examples, sites, features)."""
    if isinstance(m, nn.Embedding):
        return nn.functional.one_hot(x, m.num_embeddings).to(torch.float64).flatten(1, -2)
    if isinstance(m, nn.Conv2d):
        x = unfold(x, m.kernel_size, m.dilation, m.padding, m.stride).mT
    x = x[:, None] if x.ndim == 2 else x.flatten(1, -2)
    return x if m.bias is None else with_one(x)  # type: ignore[arg-type]


def backwards(m: nn.Module, g: Tensor) -> Tensor:
    """The gradient of a call's output, (examples, sites, outputs)."""
    if isinstance(m, nn.Conv2d):
        return g.flatten(2).mT
    return g[:, None] if g.ndim == 2 else g.flatten(1, -2)


def textbook(model: nn.Module, x: Tensor, uses: dict[str, list[str]], reduce: bool) -> dict[str, Rows]:
    """G and A of each weight, from hooks on the modules that use it, for a classifier: expected over all labels."""
    modules = dict(model.named_modules())
    paths = {modules[name]: path for path, users in uses.items() for name in users}
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []
    hooks = [m.register_forward_hook(lambda m, i, y: calls.append((m, seen(m, i[0]), y))) for m in paths]
    z = model(x)
    for hook in hooks:
        hook.remove()
    n, p = len(z), z.softmax(-1).detach()
    summed: dict[str, Tensor] = {}
    for c in range(z.shape[-1]):
        of_loss = p - nn.functional.one_hot(torch.tensor(c), z.shape[-1])
        arrived = torch.autograd.grad(z, [y for _, _, y in calls], of_loss, retain_graph=True)
        pairs = list(zip(calls, arrived, strict=True))
        for path in uses:
            g = torch.cat([backwards(m, g) for (m, _, _), g in pairs if paths[m] == path], 1)  # each use: more sites
            g = g.sum(1, keepdim=True) if reduce else g
            weighted = torch.einsum("n,nto,ntp->op", p[:, c], g, g) / n
            summed[path] = summed.get(path, 0) + weighted
    factors = {}
    for path in uses:
        a = torch.cat([a for m, a, _ in calls if paths[m] == path], 1).detach()
        a = a.mean(1, keepdim=True) if reduce else a
        factors[path] = (summed[path], torch.einsum("nti,ntj->ij", a, a) / (a.shape[0] * a.shape[1]))
    return factors


class Attention(nn.Module):
    """One head with maps of its own, which differ from token to token, and the mean over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.q, self.k, self.v, self.out = (nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 4),
                                            nn.Linear(4, 3))  # fmt: skip

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        scores = self.q(h) @ self.k(h).mT / 2
        return self.out(torch.tanh(scores.softmax(-1) @ self.v(h)).mean(1))


class Shared(nn.Module):
    """A module that is called twice, and one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.left, self.right, self.out = (nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4),
                                                       nn.Linear(4, 3))  # fmt: skip
        self.right.weight, self.right.bias = self.left.weight, self.left.bias

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.twice(torch.tanh(self.twice(x))))
        return self.out(torch.tanh(self.left(h) + self.right(torch.sin(h))))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, stride=2),
        nn.Tanh(),
        nn.Conv2d(3, 2, 2, bias=False),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


BOOK: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], dict[str, list[str]]]] = {
    "dense": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)),
        lambda: torch.randn(6, 4), {"0": ["0"], "2": ["2"]},
    ),
    "convolutional": (convolutional, lambda: torch.randn(4, 2, 6, 6), {"0": ["0"], "2": ["2"], "4": ["4"]}),
    "attention": (
        Attention, lambda: torch.randint(0, 5, (6, 3)),
        {name: [name] for name in ("embed", "q", "k", "v", "out")},
    ),
    "shared and tied": (
        Shared, lambda: torch.randn(6, 4), {"twice": ["twice"], "left": ["left", "right"], "out": ["out"]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("name", BOOK)
def test_the_textbook_formulas(name: str, sharing: str) -> None:
    make, batch, uses = BOOK[name]
    model, x = make(), batch()
    network = rng.Network.from_torch(model, rng.Categorical(), x)
    g = KFAC(sharing=sharing).at(network.observe(x))  # type: ignore[arg-type]
    book = textbook(model, x, uses, sharing == "reduce")
    assert set(g.summands() or ()) == set(book)
    for path, (G, A) in book.items():
        ours = g.summands()[path].factors  # type: ignore[index,attr-defined]
        torch.testing.assert_close(ours[0].matrix(), G)
        torch.testing.assert_close(ours[1].matrix(), A)


def test_sharp_is_the_kfac_step() -> None:
    """G⁻¹ (dL/dW) A⁻¹ for the loss's own gradient, weights beside biases."""
    make, _, uses = BOOK["dense"]
    model, x, y = make(), torch.randn(40, 4), torch.randint(0, 3, (40,))
    network = rng.Network.from_torch(model, rng.Categorical(), x)
    step = KFAC().at(network.observe(x)).restrict("0").sharp(network.differential(x, y).component("0"))
    nn.functional.cross_entropy(model(x), y).backward()
    G, A = textbook(model, x, uses, False)["0"]
    first = model[0]  # type: ignore[index]
    gradient = torch.cat([first.weight.grad, first.bias.grad[:, None]], 1)
    torch.testing.assert_close(step.data, torch.linalg.inv(G) @ gradient @ torch.linalg.inv(A))


# --- as a metric ------------------------------------------------------------------------------------------------------


def test_it_is_the_moment_of_cotangents_pulled_back_along_evaluation() -> None:
    """g(D, D') = E over inputs of G(D a, D'a) = <D, G D' A>."""
    network, x = Shared(), torch.randn(6, 4)
    observation = rng.Network.from_torch(network, rng.Categorical(), x).observe(x)
    layer = observation["twice"]
    g = KFAC().at(observation).restrict("twice")
    D, E = (rng.Vector(layer.space, torch.randn(layer.space.shape)) for _ in range(2))
    a = layer.inputs.dense().flatten(0, -2)
    G, A = (f.matrix() for f in g.factors)  # type: ignore[attr-defined]
    by_evaluation = torch.stack([(D.data @ point) @ G @ (E.data @ point) for point in a]).mean()
    torch.testing.assert_close(g.inner(D, E), by_evaluation)
    torch.testing.assert_close(g.inner(D, E), (D.data * (G @ E.data @ A)).sum())


def test_the_bias_by_itself_is_a_block_by_itself_and_names_an_origin() -> None:
    make, batch, uses = BOOK["dense"]
    model, x = make(), batch()
    network = rng.Network.from_torch(model, rng.Categorical(), x)
    observation = network.observe(x)
    joint, apart = (KFAC(bias=bias).at(observation).restrict("0") for bias in ("joint", "separate"))
    G, A = textbook(model, x, uses, False)["0"]
    expected = torch.block_diag(A[:-1, :-1], A[-1:, -1:])
    torch.testing.assert_close(apart.matrix(), torch.einsum("ij,kl->ikjl", G, expected).reshape(30 - 5, 30 - 5))
    assert float((joint.matrix() - apart.matrix()).norm() / joint.matrix().norm()) > 0.05
    (place,) = (base for base in apart.space.bases if base.endswith((".A", "input")))
    assert joint.keeps(place, "affine")
    assert apart.keeps(place, "general") and not apart.keeps(
        place, "translations"
    )  # GL about the origin, which is named


# --- where it is exact ------------------------------------------------------------------------------------------------


def blocks_of_the_fisher(model: nn.Module, network: rng.Network, x: Tensor) -> dict[str, Tensor]:
    """For the square loss, from the Jacobian of plain backward passes; layer by layer, on the tangent space."""
    J = oracle(model, network, x) @ in_parameters(network).mT
    F = torch.einsum("nop,noq->pq", J, J) / len(J)
    return {path: F[part, part] for path, part in network.tangent_space.slices.items()}


def errors(model: nn.Module, x: Tensor, sharing: str = "expand") -> Iterator[float]:
    network = rng.Network.from_torch(model, rng.Gaussian(), x)
    g = KFAC(sharing=sharing).at(network.observe(x))  # type: ignore[arg-type]
    for path, exact in blocks_of_the_fisher(model, network, x).items():
        yield float((g.restrict(path).matrix() - exact).norm() / exact.norm())


def deep(activation: type[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), activation(), nn.Linear(4, 3), activation(), nn.Linear(3, 2))


def test_exact_for_a_deep_linear_network_with_square_loss_and_not_for_a_nonlinear_one() -> None:
    x = torch.randn(12, 3)
    assert max(errors(deep(nn.Identity), x)) < 1e-13
    assert max(errors(deep(nn.Tanh), x)) > 0.05


def test_exact_for_one_example_with_one_site_whatever_the_network() -> None:
    assert max(errors(deep(nn.Tanh), torch.randn(1, 3))) < 1e-13


class Pooled(nn.Module):
    """Per token, and the mean over tokens, or all of them as outputs."""

    def __init__(self, activation: type[nn.Module], pooled: bool):
        super().__init__()
        self.of, self.pooled = deep(activation), pooled

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.of(x)
        return z.mean(1) if self.pooled else z


SHARED = [("reduce", True), ("expand", False)]


@pytest.mark.parametrize(("sharing", "pooled"), SHARED)
@pytest.mark.parametrize("examples", [1, 9])
def test_reduce_is_exact_for_a_mean_over_sites_expand_for_independent_sites(
    sharing: str, pooled: bool, examples: int
) -> None:
    """For deep linear networks and square loss; the other of the two is far off, as both are for nonlinear ones."""
    x, other = torch.randn(examples, 3, 3), "expand" if sharing == "reduce" else "reduce"
    assert max(errors(Pooled(nn.Identity, pooled), x, sharing)) < 1e-13
    assert max(errors(Pooled(nn.Identity, pooled), x, other)) > 0.2
    assert max(errors(Pooled(nn.Tanh, pooled), x, sharing)) > 0.02


def test_on_deep_linear_maps_each_layer_alone_takes_the_whole_step() -> None:
    """The step of L layers moves the product of the maps by L times the natural step of one."""
    model = nn.Sequential(*(nn.Linear(3, 3, bias=False) for _ in range(3)))
    x, y = torch.randn(30, 3), torch.randn(30, 3)
    network = rng.Network.from_torch(model, rng.Gaussian(), x)
    step = KFAC().at(network.observe(x)).sharp(network.differential(x, y)).to_parameters()
    W = [layer.weight.detach() for layer in model]  # type: ignore[union-attr]
    V = [step[f"{i}.weight"] for i in range(3)]
    moved = V[2] @ W[1] @ W[0] + W[2] @ V[1] @ W[0] + W[2] @ W[1] @ V[0]
    second = x.mT @ x / 30
    natural = (x @ (W[2] @ W[1] @ W[0]).mT - y).mT @ x / 30 @ torch.linalg.inv(second)
    torch.testing.assert_close(moved, 3 * natural)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_bad_settings_and_observations() -> None:
    with pytest.raises(InvalidSetting, match="sharing='both', expected 'expand' or 'reduce'"):
        KFAC(sharing="both")  # type: ignore[arg-type]
    with pytest.raises(InvalidSetting, match="bias='none', expected 'joint' or 'separate'"):
        KFAC(bias="none")  # type: ignore[arg-type]
    model, x = deep(nn.Tanh), torch.randn(4, 3)
    seen_inputs = rng.Network.from_torch(model, rng.Gaussian(), x).observe(x, rng.InputsOnly())
    with pytest.raises(ObservationMismatch, match=r"(?s)cotangents are asked for.*In the metric KFAC\(\), layer '0'"):
        KFAC().at(seen_inputs)


def test_repr_is_the_call() -> None:
    assert repr(KFAC()) == "KFAC()" and repr(KFAC(sharing="reduce")) == "KFAC(sharing='reduce')"
    damped = 2 * KFAC(bias="separate")
    assert repr(damped) == "2 * KFAC(bias='separate')"
    reference = rng.metrics.EuclideanMetric()
    assert repr(KFAC().damp_factors(0.01)) == repr(KFAC().damp_factors(0.01, reference))
    assert repr(KFAC().damp_factors(0.01)) == "KFAC().damp_factors(0.01, EuclideanMetric())"
