"""Modular duality read from a module: against the published recursion, brute force, and the slopes of real networks."""

import math
import operator

import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp

from riemann_ng import Covector, Vector
from riemann_ng.likelihoods import Categorical, Gaussian
from riemann_ng.networks import Network
from riemann_ng.norms import InvalidNorm, Modular, NewtonSchulz, norm_at
from riemann_ng.norms.slopes import GELU, MODULES, SILU

F64 = torch.float64


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    torch.set_default_dtype(F64)
    yield
    torch.set_default_dtype(torch.float32)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def rms(x):
    return float(x.square().mean().sqrt())


# The published recursion, on trees: ("atom", mass, slope, size of the weights), ("then", first, second), ...


def recursion(tree, weights):
    """(mass, slope, norm) of a tree of modules at weights by name, by the rules as they are published."""
    kind, *rest = tree
    if kind == "bond":
        return 0.0, rest[0], 0.0
    if kind == "atom":
        name, slope, size, mass = rest
        return mass, slope, size(weights[name])
    if kind == "times":
        mass, slope, norm = recursion(rest[1], weights)
        return mass, abs(rest[0]) * slope, abs(rest[0]) * norm
    (m1, s1, n1), (m2, s2, n2) = (recursion(part, weights) for part in rest)
    mass = m1 + m2

    def share(m, n, times=1.0):
        return times * mass / m * n if m else 0.0

    if kind == "then":
        return mass, s2 * s1, max(share(m1, n1, s2), share(m2, n2))
    assert kind == "plus"
    return mass, s1 + s2, max(share(m1, n1), share(m2, n2))


def operator_norm(w):
    return math.sqrt(w.shape[1] / w.shape[0]) * float(torch.linalg.matrix_norm(w, 2))


def taps(w):
    """The number of taps times the largest of them, (out, in, *kernel)."""
    each = w.flatten(2)
    return each.shape[2] * max(operator_norm(each[..., t]) for t in range(each.shape[2]))


def rows(w):
    return float(w.square().mean(1).sqrt().max())


def largest(w):
    return float(w.abs().max())


def affine(path, size=operator_norm, mass=1.0):
    """W x + b: a linear map plus a constant, of slope 0 in x."""
    return "plus", ("atom", f"{path}.weight", 1.0, size, mass), ("atom", f"{path}.bias", 0.0, rms, 1.0)


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 6), nn.Linear(6, width)

    def forward(self, x):
        return 0.75 * x + 0.25 * self.down(torch.relu(self.up(self.norm(x))))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.shift = nn.Embedding(7, 4), nn.Parameter(normal(3, 4))
        self.blocks = nn.Sequential(Residual(4), Residual(4))
        self.left, self.right = nn.Linear(4, 3, bias=False), nn.Linear(4, 2)

    def forward(self, tokens):
        h = torch.sigmoid(self.blocks(self.embed(tokens) + self.shift))
        return torch.cat([self.left(h), self.right(h) / 2], -1)


def residual(path):
    inner = ("then", affine(f"{path}.norm", largest), affine(f"{path}.up"))
    inner = ("then", ("then", inner, ("bond", 1.0)), affine(f"{path}.down", mass=3.0))
    return "plus", ("times", 0.75, ("bond", 1.0)), ("times", 0.25, inner)


WORDS = (
    "then",
    (
        "then",
        ("plus", ("atom", "embed.weight", 1.0, rows, 0.5), ("atom", "shift", 0.0, rms, 1.0)),
        ("then", ("then", residual("blocks.0"), residual("blocks.1")), ("bond", 0.25)),
    ),
    ("plus", ("atom", "left.weight", 1.0, operator_norm, 1.0), ("times", 0.5, affine("right"))),
)
CONVOLUTIONS = ("then", affine("0", taps), ("bond", 1.0))
CONVOLUTIONS = ("then", ("then", CONVOLUTIONS, ("bond", 2.0)), ("then", affine("3", taps), affine("5")))


def words():
    return Words(), torch.randint(0, 7, (5, 3)), {"embed.weight": 0.5, "*.down.weight": 3.0}, WORDS


def convolutions():
    module = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 2, (1, 2)), nn.Flatten(),
        nn.Linear(4, 3),
    )  # fmt: skip
    return module, normal(5, 2, 4, 4), {}, CONVOLUTIONS


MODELS = {"words": words, "convolutions": convolutions}


@pytest.mark.parametrize("name", MODELS)
def test_the_norm_is_that_of_the_published_recursion(name):
    module, x, masses, tree = MODELS[name]()
    network = Network.from_torch(module, Categorical(), x)
    norm = Modular(masses).over(network)
    for seed in range(5):
        weights = {name: normal(*p.shape, seed=seed) for name, p in network.parameters.items()}
        torch.manual_seed(seed)
        one = max(weights, key=lambda _: torch.rand(()).item())
        weights = weights if seed < 2 else {k: w if k == one else 0 * w for k, w in weights.items()}
        mass, slope, size = recursion(tree, weights)
        torch.testing.assert_close(float(norm.norm(network.vector(weights))), size)
        assert (norm.mass, norm.sensitivity) == pytest.approx((mass, slope))
    plain = Modular({"0.weight" if name == "convolutions" else "left.weight": 1.5}).over(network)
    weights = {name: normal(*p.shape, seed=1) for name, p in network.parameters.items()}
    assert abs(float(plain.norm(network.vector(weights))) - recursion(tree, weights)[2]) > 1e-2


def projected(name, w, budget, kind):
    """The nearest weights of at most that size, kind by kind."""
    if kind == "rms":
        return w * min(1.0, budget / rms(w)) if rms(w) else w
    if kind == "entries":
        return w.clamp(-budget, budget)
    if kind == "rows":
        return w * (budget / w.square().mean(1, keepdim=True).sqrt()).clamp(max=1)
    flat = w.flatten(2).movedim(2, 0) if w.ndim > 2 else w[None]
    U, s, Vt = torch.linalg.svd(flat, full_matrices=False)
    limit = budget / len(flat) * math.sqrt(flat.shape[1] / flat.shape[2])
    flat = U @ torch.diag_embed(s.clamp(max=limit)) @ Vt
    return flat.movedim(0, 2).reshape(w.shape) if w.ndim > 2 else flat[0]


def kind_of(name, w):
    if name == "embed.weight":
        return "rows"
    if ".norm.weight" in name:
        return "entries"
    return "matrix" if w.ndim > 1 and name != "shift" else "rms"


@pytest.mark.parametrize("name", MODELS)
def test_the_dual_norm_is_what_a_projected_search_finds_and_sharp_attains_it(name):
    module, x, masses, _ = MODELS[name]()
    network = Network.from_torch(module, Categorical(), x)
    modular = Modular(masses)
    norm, budgets = modular.over(network), modular.budgets(network)
    g = {name: normal(*p.shape, seed=i) for i, (name, p) in enumerate(network.parameters.items())}
    v = {name: 0 * t for name, t in g.items()}
    for _ in range(60):
        v = {k: projected(k, v[k] + 10 * budgets[k] * g[k], budgets[k], kind_of(k, g[k])) for k in g}
    found = sum(float((v[k] * g[k]).sum()) for k in g)
    xi = network.covector(g)
    assert float(norm.norm(network.vector(v))) == pytest.approx(1, abs=1e-9)
    assert float(norm.dual_norm(xi)) == pytest.approx(found, rel=1e-4)
    assert float(xi(norm.sharp(xi))) == pytest.approx(float(norm.dual_norm(xi)))
    assert found <= float(norm.dual_norm(xi)) * (1 + 1e-12)


def test_a_step_moves_the_output_by_one_at_most():
    """With weights and inputs of unit size, in root mean square; with larger weights it moves further."""
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 3))
    with torch.no_grad():
        for m in module:
            if isinstance(m, nn.Linear):
                m.weight.div_(operator_norm(m.weight))
                m.bias.zero_()
    x = normal(30, 4)
    x = x / x.square().mean(1, keepdim=True).sqrt()
    network = Network.from_torch(module, Gaussian(), x)
    norm = Modular().over(network)
    assert norm.sensitivity == pytest.approx(GELU)
    points = {name: p.detach() for name, p in network.parameters.items()}
    for seed in range(20):
        df = Covector(network.tangent_space, normal(network.tangent_space.dim, seed=seed))
        step = norm.sharp(df).to_parameters()
        for share in (points, *({name: p} for name, p in points.items())):
            tangents = {k: step[k] if k in share else 0 * step[k] for k in points}
            moved = jvp(lambda p: functional_call(module, p, x), (points,), (tangents,))[1]
            bound = len(share) / len(points)
            assert moved.square().mean(1).sqrt().max() <= bound + 1e-9
    with torch.no_grad():
        module[4].weight.mul_(10)  # of size 10: the bound is for unit size
    points = {name: p.detach() for name, p in network.parameters.items()}
    step = norm.sharp(network.differential(x, normal(30, 3))).to_parameters()
    moved = jvp(lambda p: functional_call(module, p, x), (points,), (step,))[1]
    assert moved.square().mean(1).sqrt().max() > 1


SMOOTH = [
    nn.Sigmoid(), nn.GELU(), nn.SiLU(), nn.Tanh(), nn.Softplus(), nn.ELU(1.5), nn.CELU(), nn.LeakyReLU(0.1), nn.ReLU(),
    nn.Softmax(-1), nn.Softsign(), nn.LogSigmoid(), nn.Hardtanh(), nn.ReLU6(),
]  # fmt: skip


@pytest.mark.parametrize("m", SMOOTH, ids=str)
def test_slopes_bound_their_modules_and_are_nearly_attained(m):
    slope = MODULES[type(m)](m).input
    x = torch.linspace(-6, 6, 4001)[:, None] if not isinstance(m, nn.Softmax) else 3 * normal(4000, 2)
    steepest = 0.0
    for v in (torch.ones_like(x), torch.ones_like(x) * torch.tensor([1.0, -1.0])[: x.shape[1]]):
        moved = jvp(m, (x,), (v,))[1]
        steepest = max(steepest, float((moved.norm(dim=-1) / v.norm(dim=-1)).max()))
    assert 0.99 * slope <= steepest <= slope * (1 + 1e-9)
    assert SILU < 1.1 and GELU < 1.13


@pytest.mark.parametrize("pool", [nn.MaxPool1d(3), nn.AvgPool1d(3)])
def test_pooling_by_the_largest_root_mean_square_of_a_site(pool):
    slope = MODULES[type(pool)](pool).input
    x, v = normal(2000, 3, 3), normal(2000, 3, 3, seed=1)
    v = v / v.square().mean(1).sqrt().amax(-1)[:, None, None]
    moved = jvp(pool, (x,), (v,))[1].square().mean(1).sqrt().amax(-1)
    assert moved.max() <= slope + 1e-12
    assert moved.max() > 1 or isinstance(pool, nn.AvgPool1d)  # so 1 would not do for the largest


def test_attention_has_a_slope_for_each_of_its_maps():
    m = nn.MultiheadAttention(8, 2, batch_first=True)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.out = m, nn.Linear(8, 3)

        def forward(self, x):
            return self.out(self.attention(x, x, x, need_weights=False)[0])

    x = normal(4, 5, 8)
    network = Network.from_torch(Model(), Categorical(), x)
    budgets = Modular().budgets(network)
    width = math.sqrt(4)
    total = len(network.parameters)
    assert (total, len(budgets)) == (6, 10)
    assert 1 / budgets["out.weight"] == pytest.approx(total)
    assert 1 / budgets["attention.out_proj.weight"] == pytest.approx(total)
    assert budgets["attention.q: attention.in_proj_weight"] == pytest.approx(1 / (3 * 6 * width))
    norm = Modular().over(network)
    parts = norm.summands()
    xi = Covector(network.tangent_space, normal(network.tangent_space.dim))
    step = norm.sharp(xi)
    for part, slope in (("q", width), ("k", width), ("v", 1.0)):
        w = step[f"attention.{part}"][:, :-1]
        assert operator_norm(w) == pytest.approx(1 / (3 * total * slope)), part
    assert set(parts) == set(network.blocks)
    # the slopes themselves: of one head with q, k and v of unit size
    for moved, slope in (("q", width), ("k", width), ("v", 1.0)):
        q, k, v, d = (normal(300, 5, 4, seed=s) for s in range(4))
        q, k, v, d = (t / t.square().mean(-1, keepdim=True).sqrt() for t in (q, k, v, d))
        tangents = tuple(d if name == moved else torch.zeros_like(d) for name in "qkv")
        attend = lambda q, k, v: torch.softmax(q @ k.mT / 2, -1) @ v  # noqa: E731
        out = jvp(attend, (q, k, v), tangents)[1]
        assert out.square().mean(-1).sqrt().max() <= slope


def test_shared_layers_add_up_masses_of_modules_and_slopes_by_hand():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.odd = nn.Linear(3, 3), nn.PReLU()

        def forward(self, x):
            return self.inner(self.inner(x)) * 2.0

    x = normal(6, 3)
    network = Network.from_torch(Twice(), Gaussian(), x)
    factors, slope = Modular(masses={"inner": 4.0, "odd": 1.0}).factors(network)
    assert (
        factors["inner", "inner.weight"] == factors["inner", "inner.bias"] == pytest.approx(5 / 2 * (2 + 2))
        and slope == 2
    )
    assert factors["odd.weight", "odd.weight"] == pytest.approx(5.0)  # the output does not depend on it

    class Gated(Twice):
        def forward(self, x):
            return self.odd(self.inner(x) * torch.tanh(x)).cumsum(-1)

    network = Network.from_torch(Gated(), Gaussian(), x)
    with pytest.raises(InvalidNorm, match=r"no slope is known of the function cumsum .*slopes=\{'cumsum': 1.0\}"):
        Modular().over(network)
    with pytest.raises(InvalidNorm, match=r"the module 'odd', a PReLU: .*slopes=\{'odd': 1.0\}"):
        Modular(slopes={"cumsum": 2.0}).over(network)
    with pytest.raises(InvalidNorm, match=r"a product of two tensors \(mul\).*slopes=\{operator.mul: 1.0\}"):
        Modular(slopes={"cumsum": 2.0, nn.PReLU: 1.0}).over(network)
    modular = Modular(slopes={"cumsum": 2.0, "odd": 3.0, operator.mul: 1.0}, method=NewtonSchulz.cubic())
    factors, _ = modular.factors(network)
    assert factors["inner", "inner.weight"] == pytest.approx(3 * 6) and factors[
        "odd.weight", "odd.weight"
    ] == pytest.approx(3 * 2)
    assert "slopes={'cumsum': 2.0" in repr(modular) and "method=NewtonSchulz" in repr(modular.over(network))

    class Branching(Twice):
        def forward(self, x):
            return self.inner(x) if float(x.sum()) > 0 else self.odd(x)

    network = Network.from_torch(Branching(), Gaussian(), x)
    with pytest.raises(InvalidNorm, match=r"the forward of Branching cannot be traced by torch.fx: TypeError"):
        Modular().over(network)


def test_a_lone_layer_and_one_read_elsewhere():
    x = normal(6, 3)
    network = Network.from_torch(nn.Linear(3, 2), Gaussian(), x)
    df = network.differential(x, normal(6, 2))
    norm = norm_at(Modular(), network, x)
    step = norm.sharp(df).to_parameters()
    assert operator_norm(step["weight"]) == pytest.approx(0.5) and rms(step["bias"]) == pytest.approx(0.5)
    other = Network.from_torch(nn.Linear(3, 2), Gaussian(), x)
    assert Modular().as_read(network).factors(other) == Modular().factors(network)
    with pytest.raises(InvalidNorm, match=r"it was read of a network with parameters weight, bias, and this one has 0"):
        Modular().as_read(network).over(Network.from_torch(nn.Sequential(nn.Linear(3, 2)), Gaussian(), x))
    grouped = Network.from_torch(nn.Sequential(nn.Conv1d(4, 6, 3, groups=2), nn.Flatten()), Gaussian(), normal(2, 4, 3))
    v = Modular().over(grouped).sharp(Covector(grouped.tangent_space, normal(grouped.tangent_space.dim)))
    weight = v.to_parameters()["0.weight"].reshape(2, 3, 2, 3)
    assert max(taps(w) for w in weight) == pytest.approx(0.5) == min(taps(w) for w in weight)
    assert isinstance(v, Vector)
