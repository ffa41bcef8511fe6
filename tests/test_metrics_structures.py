"""Parts of a layer's Fisher: each is that part of the dense matrix, which plain autograd makes."""

import math

import pytest
import torch
from networks_zoo import ZOO, in_parameters, oracle
from torch import nn

from riemann_ng.elements import Covector, Vector
from riemann_ng.errors import DegenerateMetric, NotClosed, UnsupportedLayer
from riemann_ng.inner_products import Diagonal, Euclidean, InnerProduct, QuasiDiagonal, UnitWise, second_moment
from riemann_ng.likelihoods import Categorical, Gaussian
from riemann_ng.metrics import Fisher, MetricAverage, per_example
from riemann_ng.metrics.layer_moment import LayerMoment
from riemann_ng.metrics.layer_rows import LayerRows
from riemann_ng.metrics.structures import block_diagonal, diagonal, quasi_diagonal, unit_wise
from riemann_ng.networks import CurvatureProp, Empirical, MonteCarlo, Network
from riemann_ng.networks.observation import LayerObservation
from riemann_ng.samples import Chunked, Measure, OneHot, Sample
from riemann_ng.spaces import AffineSpace, Dual, Family, Hull, Space
from riemann_ng.testing import Draw
from riemann_ng.testing.frames import HERE, A, Expression, Frames, S
from riemann_ng.testing.fuzz import claimed, measure, off

STRUCTURES = {"unit-wise": unit_wise, "quasi-diagonal": quasi_diagonal, "diagonal": diagonal}


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def units(M, space):
    """The same, with everything between units struck out."""
    d = space.shape[-1]
    mask = torch.block_diag(*[torch.ones(d, d)] * (len(M) // d))
    return M * mask


def with_bias(space):
    last = (space.of if isinstance(space, Family) else space).factors[-1]
    return isinstance(last, Dual) and isinstance(last.of, Hull) and last.of.dim > 1


def quasi(M, space):
    """A loop over the units: the bias's row and the diagonal kept, the square completed."""
    if not with_bias(space):
        return torch.diag(M.diagonal())
    d, out = space.shape[-1], torch.zeros_like(M)
    for i in range(0, len(M), d):
        block, part = M[i : i + d, i : i + d], out[i : i + d, i : i + d]
        p = block[-1, -1]
        for k in range(d):
            for m in range(d):
                part[k, m] = block[k, -1] * block[m, -1] / p if p > 0 else 0.0
            part[k, k] = block[k, k]
    return out


PARTS = {
    "unit-wise": units,
    "quasi-diagonal": quasi,
    "diagonal": lambda M, space: torch.diag(M.diagonal()),
}


def dense_blocks(model, network, x, outputs):
    """The Fisher's block of every layer, by the Jacobian that plain autograd gives."""
    J = oracle(model, network, x)
    F = torch.einsum("nop,noq,nqr->pr", J, network.likelihood.matrix(outputs), J) / len(J)
    P = in_parameters(network)
    whole = P @ F @ P.mT
    return {path: whole[where, where] for path, where in network.tangent_space.slices.items()}


def seen(name, n=5):
    make, batch = ZOO[name]
    model, x = make(), batch(n)
    model(x)
    return model, x, Network.from_torch(model, Categorical(), x)


@pytest.mark.parametrize("name", ZOO)
def test_each_structure_is_its_part_of_the_dense_block(name):
    model, x, network = seen(name)
    observation = network.observe(x)
    blocks = dense_blocks(model, network, x, observation.outputs)
    for path, layer in observation.layers.items():
        F = blocks[path]
        assert torch.allclose(block_diagonal(layer).matrix(), F, atol=1e-12), path
        for kind, structure in STRUCTURES.items():
            g = structure(layer)
            assert g.space == layer.space
            assert torch.allclose(g.matrix(), PARTS[kind](F, layer.space), atol=1e-12), (path, kind)


@pytest.mark.parametrize("name", ["mlp", "convolutional", "tokens", "tied"])
@pytest.mark.parametrize("estimator", ["monte carlo", "curvature propagation", "empirical"])
def test_of_drawn_and_observed_labels_too(name, estimator):
    _, x, network = seen(name)
    shape = network.observe(x, MonteCarlo(1)).outputs.shape[:-1]
    labels = torch.zeros(shape, dtype=torch.long)
    chosen = {
        "monte carlo": MonteCarlo(3, seed=1),
        "curvature propagation": CurvatureProp(seed=1),
        "empirical": Empirical(labels),
    }[estimator]
    for path, layer in network.observe(x, chosen).layers.items():
        F = second_moment(layer.gradients, joint=True).matrix()
        for kind, structure in STRUCTURES.items():
            assert torch.allclose(structure(layer).matrix(), PARTS[kind](F, layer.space), atol=1e-12), (path, kind)


@pytest.mark.parametrize("budget", [1, 40])
@pytest.mark.parametrize("name", ["mlp", "convolutional", "tokens", "recurrent"])
def test_pieces_of_any_size_add_up(name, budget, monkeypatch):
    _, x, network = seen(name)
    layers = network.observe(x).layers
    at_once = {path: [f(layer).matrix() for f in STRUCTURES.values()] for path, layer in layers.items()}
    monkeypatch.setattr(per_example, "BUDGET", budget)
    for path, layer in layers.items():
        for structure, expected in zip(STRUCTURES.values(), at_once[path], strict=True):
            assert torch.allclose(structure(layer).matrix(), expected, atol=1e-13)


def test_many_exact_directions_lazily():
    """More outputs than are stacked, through narrow layers where directions are rotated."""
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 12))
    x = torch.randn(7, 6)
    network = Network.from_torch(model, Gaussian(), x)
    observation = network.observe(x)
    blocks = dense_blocks(model, network, x, observation.outputs)
    for path, layer in observation.layers.items():
        for kind, structure in STRUCTURES.items():
            assert torch.allclose(structure(layer).matrix(), PARTS[kind](blocks[path], layer.space), atol=1e-12)


def test_padding_weighs_nothing():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 9))
    x, there = torch.randint(0, 9, (4, 5)), torch.arange(5) < torch.tensor([5, 2, 3, 4])[:, None]
    network = Network.from_torch(model, Categorical(), x)
    for layers in (
        network.observe(x, mask=there).layers,
        network.observe(x, Empirical(x.masked_fill(~there, -100))).layers,
    ):
        for layer in layers.values():
            F = second_moment(layer.gradients, joint=True).matrix()
            for kind, structure in STRUCTURES.items():
                assert torch.allclose(structure(layer).matrix(), PARTS[kind](F, layer.space), atol=1e-12)


def by_hand(seed=0, draws=2, sites=1, weights=None, chunked=False, hot=False, members=0):
    """A layer's samples, written down, and its second moment by a loop."""
    draw = Draw.seeded(seed)
    n, A, S = 6, AffineSpace("A", 3), AffineSpace("S", 2)
    into = Space("tokens", 5) if hot else A.hull
    lead = [members] if members else []
    U, V = (Family(into, members), Family(S.translations, members)) if members else (into, S.translations)
    index = torch.arange(n * sites).reshape(n, 1, sites) % 5
    a = nn.functional.one_hot(index, 5).double() if hot else draw.normal(n, 1, sites, *lead, 4)
    if not hot:
        a[..., -1] = 1
    g = draw.normal(n, draws, sites, *lead, 2)
    measure = Measure.exact() if weights is None else Measure.weighted(weights)
    data = Chunked(lambda: iter(g.split(2, chunked - 1)), (n, draws, sites), chunked - 1) if chunked else g
    layer = LayerObservation(
        "fc", U, V, Sample(U, OneHot(index, torch.float64) if hot else a, Measure.probability()),
        Sample(V.dual, data, measure),
    )  # fmt: skip
    F = torch.zeros(layer.space.dim, layer.space.dim)
    w = torch.full((n, draws), 1 / n) if weights is None else weights.reshape(n, -1).expand(n, draws)
    for i in range(n):
        for k in range(draws):
            D = sum(g[i, k, t][..., :, None] * a[i, 0, t][..., None, :] for t in range(sites)).flatten()
            F += w[i, k] * torch.outer(D, D)
    return layer, F


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"sites": 3}, {"weights": torch.tensor([0.5, 0.0, 2.0, 1.0, 0.3, 0.7])}, {"hot": True}, {"members": 3},
        {"hot": True, "sites": 3}, {"chunked": 1}, {"chunked": 2}, {"chunked": 1, "sites": 3},
        {"members": 3, "sites": 2}, {"hot": True, "sites": 3, "chunked": 2, "draws": 5}, {"members": 1},
        {"hot": True, "chunked": 1, "sites": 2},
    ],
    ids=str,
)  # fmt: skip
def test_samples_of_every_sort(settings):
    layer, F = by_hand(**settings)
    for kind, structure in STRUCTURES.items():
        assert torch.allclose(structure(layer).matrix(), PARTS[kind](F, layer.space), atol=1e-13), kind


def test_an_example_without_weight_may_hold_anything():
    weights = torch.tensor([0.5, 0.0, 2.0, 1.0, 0.3, 0.7])
    layer, F = by_hand(weights=weights)
    layer.inputs.data[1] = math.nan
    layer.cotangents.data[1] = math.inf
    for kind in ("unit-wise", "diagonal"):
        assert torch.allclose(STRUCTURES[kind](layer).matrix(), PARTS[kind](F, layer.space), atol=1e-13)


def test_one_hot_inputs_never_meet_as_a_matrix():
    """A vocabulary of 50,000: a matrix of it would be 20 gigabytes."""
    tokens, S = Space("tokens", 50_000), Space("S", 3)
    index = torch.randint(0, 50_000, (8, 1, 4))
    inputs = Sample(tokens, OneHot(index, torch.float64))
    several = LayerObservation("embed", tokens, S, inputs, Sample(S.dual, torch.randn(8, 2, 4, 3), Measure.exact()))
    assert diagonal(several).space.dim == 150_000
    assert isinstance(quasi_diagonal(several), Diagonal)
    with pytest.raises(UnsupportedLayer) as caught:
        unit_wise(several)
    assert str(caught.value).startswith(
        "UnsupportedLayer in unit_wise: 'embed' has 3 units with a matrix [50000, 50000] each, 7.5e+09 numbers. "
        "Use quasi_diagonal or diagonal for this layer"
    )
    one = LayerObservation(
        "embed", tokens, S, Sample(tokens, OneHot(index[:, :, :1], torch.float64)),
        Sample(S.dual, torch.randn(8, 2, 1, 3), Measure.exact()),
    )  # fmt: skip
    g = unit_wise(one)
    assert isinstance(g, Diagonal) and torch.equal(g.entries, diagonal(one).entries)
    assert g.keeps("S", "monomial") and not g.keeps("S", "orthogonal")


def test_damped_they_are_solved_unit_by_unit():
    _, x, network = seen("convolutional")
    for layer in network.observe(x).layers.values():
        xi = Covector(layer.space, torch.randn(layer.space.shape))
        for kind, structure in STRUCTURES.items():
            damped = structure(layer) + 0.1 * Euclidean(layer.space)
            assert damped.structure.kind in ("unit-wise", "diagonal"), kind
            expected = torch.linalg.solve(damped.matrix(), xi.components)
            assert torch.allclose(damped.sharp(xi).components, expected, atol=1e-9)


def test_dead_units_and_inputs():
    """A unit without a gradient and an input that never comes: a kernel, on which covectors of the batch vanish."""
    layer, _ = by_hand(draws=3)
    layer.cotangents.data[..., 0] = 0
    layer.inputs.data[..., 0] = 0
    g = quasi_diagonal(layer)
    xi = Covector(layer.space, layer.gradients.mean().data)
    v = g.sharp(xi)
    assert torch.allclose(g.flat(v).data, xi.data) and bool((v.data[0] == 0).all()) and bool((v.data[:, 0] == 0).all())
    with pytest.raises(DegenerateMetric, match=r"rank 3 of 8"):
        g.sharp(Covector(layer.space, torch.ones(layer.space.shape)))


def test_an_input_that_never_changes_is_known_from_the_bias():
    layer, _ = by_hand(draws=3)
    layer.inputs.data[..., 1] = 1e3 + 1 / 3
    g = quasi_diagonal(layer)
    assert isinstance(g, QuasiDiagonal) and bool((g.rest[:, 1] == 0).all()) and bool((g.rest[:, [0, 2]] > 0).all())


def test_far_from_the_origin_nothing_cancels():
    """Inputs moved by 1e6: the quasi-diagonal form moves with them, to the accuracy of the inputs themselves."""
    layer, _ = by_hand(draws=3)
    here = quasi_diagonal(layer)
    layer.inputs.data[..., :-1] += 1e6
    there = quasi_diagonal(layer)
    assert torch.allclose(there.rest, here.rest, rtol=1e-8)
    assert torch.allclose(there.slopes - 1e6, here.slopes, atol=1e-8)


# The whole block, by products


SORTS = [
    {}, {"sites": 3}, {"weights": torch.tensor([0.5, 0.0, 2.0, 1.0, 0.3, 0.7])}, {"hot": True}, {"members": 3},
    {"hot": True, "sites": 3}, {"chunked": 1}, {"chunked": 2, "draws": 4}, {"members": 3, "sites": 2, "chunked": 2},
]  # fmt: skip


@pytest.mark.parametrize("settings", SORTS, ids=str)
def test_the_block_is_solved_as_its_dense_matrix(settings):
    layer, F = by_hand(**settings)
    g, E = block_diagonal(layer), Euclidean(layer.space)
    x, y = torch.randn(2, g.space.dim), torch.randn(2, g.count)
    assert torch.allclose(g.matrix(), F, atol=1e-13) and torch.allclose(g.diagonal_entries(), F.diagonal())
    assert torch.allclose(g.flat_components(x), x @ F, atol=1e-13)
    assert torch.allclose((g.push(x) * y).sum(-1), (g.pull(y) * x).sum(-1))
    assert torch.allclose(g.kernel(E), g.rows() @ g.rows().mT, atol=1e-13)
    xi = Covector(layer.space, torch.randn(layer.space.shape))
    expected = torch.linalg.solve(F + 0.1 * torch.eye(len(F)), xi.components)
    assert torch.allclose((g + 0.1 * E).sharp(xi).components, expected, atol=1e-11)
    seen = g.flat(Vector(layer.space, torch.randn(layer.space.shape)))
    shortest = torch.linalg.pinv(F, rtol=1e-10, hermitian=True) @ seen.components
    assert torch.allclose(g.sharp_modulo_kernel(seen, E).components, shortest, atol=1e-8)
    rank = int(torch.linalg.matrix_rank(F, rtol=1e-10, hermitian=True))
    assert g.rank() == rank
    if rank < len(F):
        with pytest.raises(DegenerateMetric, match=f"rank {rank} of {len(F)}"):
            g.sharp(xi)
    else:
        assert torch.allclose(g.sharp(xi).components, torch.linalg.solve(F, xi.components), atol=1e-8)


def test_between_members_there_is_something():
    """The negative control: member by member it is another form."""
    layer, F = by_hand(members=3, draws=1)
    apart = second_moment(layer.gradients).matrix()
    assert not torch.allclose(apart, F) and torch.allclose(block_diagonal(layer).matrix(), F, atol=1e-13)


def test_an_example_without_weight_may_hold_anything_in_the_block_too():
    weights = torch.tensor([0.5, 0.0, 2.0, 1.0, 0.3, 0.7])
    layer, F = by_hand(weights=weights)
    layer.inputs.data[1] = math.nan
    layer.cotangents.data[1] = math.inf
    g = block_diagonal(layer)
    assert torch.allclose(g.matrix(), F, atol=1e-13)
    assert torch.allclose(g.flat_components(torch.ones(8)), F.sum(0), atol=1e-13)


def test_the_block_of_a_large_layer_costs_what_its_samples_do(monkeypatch):
    """784 inputs, 1000 units and 32 examples: no gradient of an example is ever written down, and no row of it."""
    n, A, S = 32, AffineSpace("A", 784), AffineSpace("S", 1000)
    a = torch.cat([torch.randn(n, 1, 1, 784), torch.ones(n, 1, 1, 1)], -1)
    layer = LayerObservation(
        "fc", A.hull, S.translations, Sample(A.hull, a, Measure.probability()),
        Sample(S.translations.dual, torch.randn(n, 9, 1, 1000), Measure.exact()),
    )  # fmt: skip
    written = []
    rows = LayerRows.rows
    monkeypatch.setattr(LayerRows, "rows", lambda self, *how: written.append(how) or rows(self, *how))
    g, E = block_diagonal(layer), Euclidean(layer.space)
    assert isinstance(g, LayerMoment) and g.space.dim == 785_000
    v = Vector(layer.space, torch.randn(layer.space.shape))
    xi = g.flat(v)
    damped = g + 0.5 * E
    assert damped.structure.low_rank == 288
    assert torch.allclose(damped.sharp(damped.flat(v)).data, v.data, atol=1e-9)
    assert torch.allclose(g.flat(g.sharp_modulo_kernel(xi, E)).data, xi.data, atol=1e-9)
    with pytest.raises(DegenerateMetric, match="rank 288 of 785000"):
        g.sharp(xi)
    assert written == []
    with pytest.raises(NotClosed, match=r"of layer 'fc' would be a matrix \[785000, 785000\]. Take a metric that is"):
        g.matrix()
    assert block_diagonal(by_hand()[0]).matrix().shape == (8, 8) and written != []  # the counter counts


def test_an_average_of_blocks_is_a_matrix():
    _, x, network = seen("convolutional")
    average = MetricAverage(Fisher(structure="block-diagonal"), 0.5)
    first, second = (network.observe(torch.randn_like(x)) for _ in range(2))
    average.update(first)
    g = average.update(second)
    for path in network.tangent_space:
        F, G = (block_diagonal(o[path]).matrix() for o in (first, second))
        assert torch.allclose(g.parts[path].matrix(), (F + 2 * G) / 3, atol=1e-12)
    again = InnerProduct.from_state(g.space, g.state())
    assert torch.equal(again.matrix(), g.matrix()) and again.symmetry == g.symmetry


@pytest.mark.parametrize("power", [18, 20, 21, 22, 33])
def test_units_whose_squares_leave_the_numbers_are_degenerate(power):
    """Never indefinite, and never solved from the digits that are left."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).float()
    with torch.no_grad():
        for p in model[0].parameters():
            p.mul_(10.0**-power)
    x = torch.randn(64, 4, dtype=torch.float32)
    g = unit_wise(Network.from_torch(model, Gaussian(), x).observe(x)["2"])
    with pytest.raises(DegenerateMetric):
        g.sharp(Covector(g.space, torch.ones(g.space.shape, dtype=torch.float32)))
    with torch.no_grad():
        for p in model[2].parameters():
            p.mul_(10.0**-power)
    g = unit_wise(Network.from_torch(model, Gaussian(), x).observe(x)["0"])
    xi = Covector(g.space, torch.ones(g.space.shape, dtype=torch.float32))
    if power < 20:  # still numbers
        assert torch.allclose(g.flat(g.sharp(xi)).data, xi.data, rtol=1e-4)
    else:
        with pytest.raises(DegenerateMetric, match="rank 0 of 25"):
            g.sharp(xi)


# Symmetry: claims against moved data


def moved_layer(frames, sites=1, seed=0):
    """A layer between the spaces that the frames act on, with the data moved along."""
    draw, n = Draw.seeded(seed), 40
    a = torch.cat([draw.normal(n, sites, 3) + 0.5, torch.ones(n, sites, 1)], -1)
    g = draw.normal(n, 2, sites, 4) * (1 + a[:, None, :, :1].abs())
    V = S.translations
    inputs = Sample(A.hull, frames.moved(A.hull, a)[:, None], Measure.probability())
    return LayerObservation("fc", A.hull, V, inputs, Sample(V.dual, frames.moved(V.dual, g), Measure.exact()))


def expression_of(structure, sites):
    def entries(g, frames):
        back = frames.on(g.space)
        return back.mT @ g.flat_components(back.mT.contiguous()).mT

    return Expression(lambda frames: structure(moved_layer(frames, sites)), "form", entries, lambda g: g.symmetry)


@pytest.mark.parametrize("sites", [1, 3])
@pytest.mark.parametrize("kind", ["block-diagonal", *STRUCTURES])
def test_claims_hold_and_are_exact(kind, sites):
    structure = {"block-diagonal": block_diagonal, **STRUCTURES}[kind]
    expression = expression_of(structure, sites)
    claim, errors = expression.claim(), measure(expression, seed=1)
    assert errors is not None and len(errors) > 12
    for cell, error in errors.items():
        assert (error < 1e-9) if claimed(claim, cell) else (error > 1e-2), (kind, cell, error)


def test_what_each_keeps():
    layer = moved_layer(HERE)
    kept = {
        kind: [
            f"{space} {group}"
            for space in "AS"
            for group in ("affine", "translations", "general", "monomial", "orthogonal", "signed permutations")
            if structure(layer).keeps(space, group)
        ]
        for kind, structure in STRUCTURES.items()
    }
    assert kept["unit-wise"] == [
        "A affine", "A translations", "A general", "A monomial", "A orthogonal", "A signed permutations",
        "S translations", "S monomial", "S signed permutations",
    ]  # fmt: skip
    assert kept["quasi-diagonal"] == [
        "A translations", "A monomial", "A signed permutations",
        "S translations", "S monomial", "S signed permutations",
    ]  # fmt: skip
    assert kept["diagonal"] == [
        "A monomial", "A signed permutations", "S translations", "S monomial", "S signed permutations",
    ]  # fmt: skip


def test_steps_are_what_they_should_be():
    """The step that a quasi-diagonal form makes is the same function in a moved frame; that of the diagonal is not."""
    scaling = torch.diag(torch.tensor([2.0, 0.5, 3.0, 1.0]))
    frames = Frames({"A": (torch.eye(3), torch.tensor([1.0, -2.0, 0.5])), "S": (scaling, torch.zeros(4))})

    def step(structure, where):
        layer = moved_layer(where)
        xi = Covector(layer.space, layer.gradients.mean().data)
        return torch.linalg.solve(where.on(layer.space), structure(layer).sharp(xi).components)

    for kind, structure in STRUCTURES.items():
        error = off(step(structure, frames), step(structure, HERE))
        assert (error > 1e-2) if kind == "diagonal" else (error < 1e-10), (kind, error)


def test_unit_wise_values_are_of_their_kind():
    layer = moved_layer(HERE)
    assert isinstance(unit_wise(layer), UnitWise) and isinstance(quasi_diagonal(layer), QuasiDiagonal)
    assert repr(unit_wise(layer)).startswith(f"UnitWise({layer.space}, units of fc) : ")
    average = quasi_diagonal(layer).blend(quasi_diagonal(moved_layer(HERE, seed=1)), 0.5)
    assert isinstance(average, QuasiDiagonal)
