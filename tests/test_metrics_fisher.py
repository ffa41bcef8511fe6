"""The exact Fisher in its structures, against dense Jacobians and the second moment of stacked gradients."""

import pytest
import torch
from networks_zoo import ZOO, in_parameters, oracle
from torch import nn

import riemann_ng as rng
from riemann_ng.elements import Covector, Vector
from riemann_ng.errors import DegenerateMetric, InvalidSetting, NotClosed, ObservationMismatch
from riemann_ng.inner_products import Euclidean, Gram, InnerProduct, Pullback, second_moment
from riemann_ng.likelihoods import Bernoulli, Categorical, EuclideanOutput, Gaussian, OutputForm, Poisson
from riemann_ng.metrics import KFAC, EuclideanMetric
from riemann_ng.metrics.fisher import Fisher, GaussNewton
from riemann_ng.metrics.gradient_moment import GradientMoment
from riemann_ng.networks import CurvatureProp, Empirical, Exact, InputsOnly, Linearized, MonteCarlo, Network
from riemann_ng.solvers import CG, Auto, Dual, explain
from riemann_ng.testing import LAWS, check_laws


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


def mlp(n=4, likelihood=None):
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x = torch.randn(n, 4)
    return Network.from_torch(model, likelihood or Categorical(), x), x


def close(a, b, size=1e-11):
    return bool((a - b).abs().max() <= size * (1 + b.abs().max()))


def dense_fisher(network, x, output):
    """E[Jᵀ H J] on the components of the tangent space, by one backward pass for each output."""
    J = oracle(network.module, network, x) @ in_parameters(network).mT
    H = output.matrix(network.outputs(x).detach())
    return torch.einsum("nap,nab,nbq->pq", J, H, J) / len(J)


# --- all structures are the same form --------------------------------------------------------------------------------


@pytest.mark.parametrize("output", [None, EuclideanOutput(2.0)], ids=["fisher", "gauss-newton"])
@pytest.mark.parametrize("name", ZOO)
def test_every_structure_is_the_dense_fisher(name, output):
    network, x = zoo(name)
    metric = (lambda s: Fisher(s)) if output is None else (lambda s: GaussNewton(output, s))
    expected = dense_fisher(network, x, network.likelihood if output is None else output)
    observation = network.observe(x, output=output)
    forms = {s: metric(s).at(observation) for s in ("full", "dense", "matrix-free", "dual")}
    forms["products"] = metric("matrix-free").at(network.observe(x, Linearized(), output=output))
    v = Vector(network.tangent_space, torch.randn(2, network.tangent_space.dim))
    for form in forms.values():
        assert form.space == network.tangent_space
        assert close(form.flat(v).data, v.data @ expected)
        assert close(form.matrix(), expected)
        assert close(form.diagonal_entries(), expected.diagonal())
    assert isinstance(forms["dense"], Gram) and isinstance(forms["products"], Pullback)


@pytest.mark.parametrize("estimator", [Exact(chunk=2), MonteCarlo(2, seed=1), CurvatureProp()], ids=str)
@pytest.mark.parametrize("name", ["mlp", "convolutional", "tokens", "tied", "weight elsewhere"])
def test_its_definition_is_the_second_moment_of_gradients(name, estimator):
    network, x = zoo(name)
    observation = network.observe(x, estimator)
    F = Fisher().at(observation)
    expected = second_moment(observation.gradients).matrix()
    assert close(F.matrix(), expected) and close(F.rows().mT @ F.rows(), expected)
    y = torch.randn(2, F.count)
    x = torch.randn(2, F.space.dim)
    assert close((F.push(x) * y).sum(-1), (F.pull(y) * x).sum(-1))  # transposes of each other
    assert close(F.pull(torch.eye(F.count)), F.rows())


def test_many_directions_are_never_kept(monkeypatch):
    """As if the cotangents were too many: they are folded in chunks, and products go through the linearized network."""
    network, x = zoo("mlp", likelihood=Bernoulli())
    observation = network.observe(x, Exact(chunk=1))
    expected = second_moment(observation.gradients).matrix()
    monkeypatch.setattr("riemann_ng.metrics.gradients.BUDGET", 1)
    F = Fisher().at(observation)
    v = torch.randn(2, F.space.dim)
    assert close(F.flat_components(v), v @ expected) and F._kept is None
    assert close(F.pull(F.push(v)), v @ expected)
    assert close(F.matrix(), expected) and close(F.diagonal_entries(), expected.diagonal())
    assert F.rows() is None
    with pytest.raises(NotClosed, match="NotClosed in state: Fisher\\(\\) has 9 rows of dimension 40, too many"):
        F.state()


def test_padding_weighs_nothing():
    tokens = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 6))
    x = torch.randint(0, 6, (3, 4))
    mask = torch.arange(4) < torch.tensor([4, 1, 2])[:, None]
    network = Network.from_torch(tokens, Categorical(), x)
    observation = network.observe(x, mask=mask)
    expected = second_moment(observation.gradients).matrix()
    F = Fisher().at(observation)
    assert close(F.matrix(), expected)
    assert close(Fisher("matrix-free").at(network.observe(x, Linearized(), mask=mask)).matrix(), expected)
    assert not close(expected, Fisher().at(network.observe(x)).matrix(), 1e-3)
    lazy = network.observe(x, Exact(chunk=4), mask=mask)
    assert close(lazy.products.matrix(), expected)


# --- the dual solve --------------------------------------------------------------------------------------------------


def references(F, observation):
    space = F.space
    yield "euclidean", 1e-2 * Euclidean(space)
    yield "products", KFAC().at(observation) + 0.1 * Euclidean(space)
    yield "one of products", KFAC().damp_factors(0.1).at(observation)
    entries = torch.rand(space.dim) + 0.5
    yield "diagonal", rng.Diagonal(space, entries)
    A = torch.randn(space.dim, space.dim)
    yield "matrix", Gram(space, A @ A.mT / space.dim + torch.eye(space.dim))


@pytest.mark.parametrize("name", ZOO)
def test_the_dual_is_the_dense_solve(name):
    network, x = zoo(name)
    observation = network.observe(x)
    F = Fisher().at(observation)
    M, B = F.matrix(), F.rows()
    xi = Covector(F.space, torch.randn(2, F.space.dim))
    for which, R in references(F, observation):
        dense = R.matrix(B)
        assert close(F.kernel(R), B @ torch.linalg.solve(dense, B.mT), 1e-9), which
        damped = F + R
        factor = Dual().factorize(damped)
        assert factor.name == "dual"
        expected = torch.linalg.solve(M + dense, xi.data.mT).mT
        assert close(factor.solve(xi.data), expected, 1e-9), which
        E = factor.frame(torch.eye(F.space.dim)).mT
        assert close(E @ E.mT, torch.linalg.inv(M + dense), 1e-9) and close(factor.coframe(torch.eye(len(E))), E, 1e-9)
        assert close(factor.logdet, torch.linalg.slogdet(M + dense)[1], 1e-9)
        assert close(damped.sharp(xi).data, expected, 1e-9)  # whatever Auto takes


def test_sites_are_paired_with_all_sites():
    """Negative control: the kernel of a convolution without the terms between sites is another one."""
    network, x = zoo("convolutional", 4)
    observation = network.observe(x)
    F, R = Fisher().at(observation), Euclidean(network.tangent_space)
    K = F.kernel(R)
    same = torch.zeros_like(K)
    for layer in observation.layers.values():
        g, a = layer.cotangents.dense(), layer.inputs.dense()
        if layer.S.shape != (layer.S.dim,):  # families: only what is plain is taken apart here
            g, a = g.reshape(*g.shape[:3], *layer.S.shape), a.reshape(*a.shape[:3], *layer.A.shape)
            pairs = torch.einsum("nksmo,plsmo,nsmi,psmi->nkpl", g, g, a[:, 0], a[:, 0])
        else:
            pairs = torch.einsum("nkso,plso,nsi,psi->nkpl", g, g, a[:, 0], a[:, 0])
        same += pairs.reshape(K.shape) / len(x)
    assert (same - K).norm() > 0.05 * K.norm()


def test_pairs_of_sites_and_gradients_make_one_kernel(monkeypatch):
    for name in ("tokens", "merged", "tied", "mlp"):
        network, x = zoo(name)
        observation = network.observe(x)
        F, R = Fisher().at(observation), KFAC().at(observation) + 0.3 * Euclidean(network.tangent_space)
        monkeypatch.setattr("riemann_ng.metrics.layer_rows.LayerRows.costs", lambda self, k: (0.0, 1.0))
        by_pairs = F.kernel(R)
        monkeypatch.setattr("riemann_ng.metrics.layer_rows.LayerRows.costs", lambda self, k: (1.0, 0.0))
        assert close(F.kernel(R), by_pairs, 1e-10)
        monkeypatch.undo()


@pytest.mark.parametrize("damping", [1e-2, 1e-4, 1e-6])
def test_small_damping_in_single_precision(damping):
    torch.set_default_dtype(torch.float32)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))
    x, y = torch.randn(12, 6), torch.randint(0, 4, (12,))
    network = Network.from_torch(model, Categorical(), x)
    F, xi = Fisher("dual").at(network.observe(x)), network.differential(x, y)
    damped = F + damping * Euclidean(F.space)
    B = torch.cat(list(F.row_pieces())).double()
    M = B.mT @ B + damping * torch.eye(F.space.dim, dtype=torch.float64)
    value = Dual().solve(damped, xi).value.data.double()
    assert float((M @ value - xi.data).norm() / xi.data.norm()) < 1e-4
    textbook = xi.data / damping  # negative control: what cancellation makes of the formula as it is usually written
    K = F.kernel(damping * Euclidean(F.space)) + torch.eye(F.count)
    textbook = textbook - F.pull(torch.linalg.solve(K, F.push(textbook))) / damping
    wrong = float((M @ textbook.double() - xi.data).norm() / xi.data.norm())
    assert damping > 1e-5 or wrong > 1e-4


def test_auto_picks_by_cost():
    network, x = mlp(2)
    F = Fisher().at(network.observe(x))
    few = F + 1e-2 * Euclidean(F.space)
    assert explain(few).startswith("Dual() because it is low rank + definite of dimension 43: dual of 6 rows")
    many = Fisher().at(network.observe(torch.randn(400, 4))) + 1e-2 * Euclidean(F.space)
    assert explain(many).startswith("Cholesky()")
    asked = Fisher("dual").at(network.observe(torch.randn(400, 4))) + 1e-2 * Euclidean(F.space)
    assert explain(asked).startswith("Dual()")
    kept = Fisher("matrix-free").at(network.observe(x, Linearized())) + 1e-2 * Euclidean(F.space)
    xi = network.differential(x, torch.tensor([0, 2]))
    assert close(CG(1e-12).solve(kept, xi).value.data, few.sharp(xi).data, 1e-8)
    assert type(Auto().choose(many)[0]).__name__ == "Cholesky"
    assert close(Dual().solve(many, xi).value.data, many.sharp(xi).data, 1e-8)
    assert close(Dual().solve(2 * many, xi).value.data, many.sharp(xi).data / 2, 1e-8)
    assert close(few.logdet(), torch.linalg.slogdet(few.matrix())[1], 1e-10)


def test_beside_what_is_not_definite_there_is_no_dual():
    network, x = mlp(2)
    F = Fisher().at(network.observe(x))
    weights = F + EuclideanMetric(on="translations").at(network.observe(x))
    assert weights.dual_factorization() is None and weights.structure.dual is None
    two = F + Fisher().at(network.observe(torch.randn(3, 4))) + Euclidean(F.space)
    assert two.dual_factorization() is None
    xi = Covector(F.space, torch.randn(F.space.dim))
    assert close(two.flat(two.sharp(xi)).data, xi.data, 1e-9)


# --- without damping -------------------------------------------------------------------------------------------------


def test_degenerate_it_says_so_with_its_rank():
    network, x = mlp(2)
    F = Fisher().at(network.observe(x))
    rank = int(torch.linalg.matrix_rank(F.matrix()))
    xi = network.differential(x, torch.tensor([0, 1]))
    with pytest.raises(DegenerateMetric, match=rf"has rank {rank} of 43\. Three ways out") as caught:
        F.sharp(xi)
    assert caught.value.rank == rank == F.rank()


def test_undamped_it_is_solved_from_its_rows():
    network, x = mlp(60, Gaussian())
    F = Fisher().at(network.observe(x))
    xi = Covector(F.space, torch.randn(F.space.dim))
    assert close(F.sharp(xi).data, torch.linalg.solve(F.matrix(), xi.data), 1e-6)
    assert F.rank() == F.space.dim


@pytest.mark.parametrize("structure", ["full", "dual"])
def test_the_shortest_solution(structure):
    network, x = zoo("convolutional", 2)
    observation = network.observe(x)
    F, M = Fisher(structure).at(observation), Fisher("dense").at(observation)
    xi = network.differential(x, torch.tensor([0, 2]))
    for reference in (Euclidean(F.space), KFAC().at(observation) + 0.1 * Euclidean(F.space)):
        short = F.sharp_modulo_kernel(xi, reference)
        assert close(F.flat(short).data, xi.data, 1e-9)
        assert close(short.data, M.sharp_modulo_kernel(xi, reference).data, 1e-7)
    limit = (F + 1e-9 * Euclidean(F.space)).sharp(xi, Dual())
    assert close(limit.data, F.sharp_modulo_kernel(xi, Euclidean(F.space)).data, 1e-4)
    with pytest.raises(DegenerateMetric, match="ξ does not vanish on the kernel"):
        F.sharp_modulo_kernel(Covector(F.space, torch.randn(F.space.dim)), Euclidean(F.space))


# --- what it says of itself ------------------------------------------------------------------------------------------


def test_values_and_their_text():
    assert repr(Fisher()) == "Fisher()" and repr(Fisher("dual")) == "Fisher(structure='dual')"
    assert repr(GaussNewton()) == "GaussNewton()" and Fisher() == Fisher("full")
    assert repr(GaussNewton(EuclideanOutput(2.0), "diagonal")) == (
        "GaussNewton(output=EuclideanOutput(scale=2.0), structure='diagonal')"
    )
    assert Fisher().estimator() == Exact() and Fisher("matrix-free").estimator() == Linearized()
    network, x = mlp()
    F = Fisher().at(network.observe(x))
    assert F.expression() == "Fisher()" and "Fisher() + 0.5 * Euclidean" in repr(F + 0.5 * Euclidean(F.space))


@pytest.mark.parametrize("structure", ["block-diagonal", "unit-wise", "diagonal"])
def test_layerwise_structures_are_parts_of_it(structure):
    network, x = mlp()
    observation = network.observe(x)
    part, M = Fisher(structure).at(observation).matrix(), Fisher().at(observation).matrix()
    kept = part != 0
    assert close(part[kept], M[kept]) and 0 < int(kept.sum()) < M.numel()
    assert close(part.diagonal(), M.diagonal())


def test_states():
    network, x = mlp()
    F = Fisher().at(network.observe(x))
    again = InnerProduct.from_state(F.space, F.state())
    assert close(again.matrix(), F.matrix()) and again.symmetry == F.symmetry
    with pytest.raises(NotClosed, match="NotClosed in blend: Fisher\\(\\) holds the samples of one batch"):
        F.blend(F, 0.5)


def test_the_symmetry_is_that_of_the_outputs():
    network, x = mlp()
    assert str(Fisher().at(network.observe(x)).symmetry) == "affine on every space"
    last, hidden = "2.S", "0.S"
    for structure in ("full", "dense", "matrix-free", "block-diagonal"):
        estimator = Linearized() if structure == "matrix-free" else Exact()
        G = GaussNewton(structure=structure).at(network.observe(x, estimator, output=EuclideanOutput()))
        name = network.name
        assert G.keeps(f"{name}/{last}", "isometries") and not G.keeps(f"{name}/{last}", "general")
        assert G.keeps(f"{name}/{hidden}", "affine") and G.keeps(f"{name}/2.A", "affine")
        assert not G.symmetry.keeps(f"{name}.outputs", "general") and G.symmetry.keeps(f"{name}.outputs", "isometries")
    assert (
        not KFAC(output=EuclideanOutput())
        .at(network.observe(x, output=EuclideanOutput()))
        .keeps(f"{network.name}/{last}", "general")
    )
    own = OutputForm(lambda z: torch.eye(3))
    assert not GaussNewton(own).at(network.observe(x, output=own)).keeps(f"{network.name}/{last}", "orthogonal")


# --- what it refuses -------------------------------------------------------------------------------------------------


def test_what_is_refused():
    network, x = mlp()
    y = torch.zeros(4, dtype=torch.long)
    with pytest.raises(InvalidSetting, match="structure='blocks', expected one of 'full', 'dense', 'matrix-free'"):
        Fisher("blocks")
    with pytest.raises(InvalidSetting, match="InvalidSetting in GaussNewton: output='euclidean', expected an output"):
        GaussNewton("euclidean")
    with pytest.raises(ObservationMismatch, match="observed with the data's own labels, Empirical\\(\\), whose"):
        Fisher().at(network.observe(x, Empirical(y)))
    with pytest.raises(ObservationMismatch, match="observed with EuclideanOutput\\(\\) on the outputs, which is no"):
        Fisher().at(network.observe(x, output=EuclideanOutput()))
    with pytest.raises(ObservationMismatch, match=r"GaussNewton\(\): it is about EuclideanOutput\(\) on the outputs"):
        GaussNewton().at(network.observe(x))
    for structure in ("full", "dense", "dual", "diagonal", "matrix-free"):
        with pytest.raises(ObservationMismatch, match=r"InputsOnly\(\), and of layer '0', .* cotangents are needed"):
            Fisher(structure).at(network.observe(x, InputsOnly()))
    with pytest.raises(ObservationMismatch, match=r"Linearized\(\), and of layer '0'"):
        Fisher().at(network.observe(x, Linearized()))
    with pytest.raises(ObservationMismatch, match=r"in \.pulled_back: .* keeps samples and no diff"):
        network.observe(x).pulled_back  # noqa: B018
    with pytest.raises(ObservationMismatch, match=r"in \.differential_map: .* Observe with Linearized"):
        network.observe(x).differential_map  # noqa: B018


def test_a_linearized_observation():
    network, x = mlp()
    with network.observe(x, Linearized()) as observation:
        assert close(observation.differential_map.matrix(), network.linearize(x).matrix())
        assert list(observation) == ["0", "2"] and observation.examples == 4
        assert close(observation["0"].inputs.dense(), network.observe(x)["0"].inputs.dense())
        assert "Linearized()" in repr(observation)
        assert EuclideanMetric().at(observation).space == network.tangent_space


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(2.0), Poisson()], ids=str)
def test_other_likelihoods(likelihood):
    network, x = mlp(3, likelihood)
    assert close(Fisher().at(network.observe(x)).matrix(), dense_fisher(network, x, likelihood))


def test_your_own_output_form():
    network, x = mlp(3)
    own = OutputForm(lambda z: torch.diag_embed(1 + z.square()) + 0.5)
    G = GaussNewton(own).at(network.observe(x, output=own))
    assert close(G.matrix(), dense_fisher(network, x, own)) and isinstance(G, GradientMoment)


def of_a_network(draw):
    """The Fisher of a small network with random weights beside a definite reference, and the matrix of the sum."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).to(draw.dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(draw.normal(*p.shape))
    network = Network.from_torch(model, Categorical(), name="laws")
    F = Fisher("dual").at(network.observe(draw.normal(4, 2)))
    R = rng.Diagonal(F.space, draw.normal(F.space.dim).square() + 0.5)
    B = torch.cat(list(F.row_pieces()))
    return F + R, B.mT @ B + R.matrix()


def test_the_laws_of_inner_products_hold_beside_a_reference():
    check_laws(of_a_network, laws=set(LAWS) - {"state", "differentiation"}, cases=1)


class Norms(nn.Module):
    """Layer norms with a scale of their own, without one, and with a bare parameter for it."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 6)
        self.plain, self.scale, self.out = (
            nn.LayerNorm((3, 6), elementwise_affine=False),
            nn.Parameter(torch.rand(6)),
            nn.Linear(6, 2),
        )

    def forward(self, x):
        h = self.plain(torch.tanh(self.second(self.norm(self.first(x)))))
        return self.out(nn.functional.layer_norm(h.sin(), (6,), self.scale)).mean(1)


def test_layer_norms_are_linearized_without_what_nobody_asks_for():
    model, x = Norms(), torch.randn(5, 3, 4)
    network = Network.from_torch(model, Categorical(), x)
    observation = network.observe(x, Linearized())
    seen, left = set(), [observation._linearization.z.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [following for following, _ in node.next_functions]
    names = sorted(type(node).__name__ for node in seen if "Norm" in type(node).__name__)
    assert names == ["NativeLayerNormBackward0", "NormBackward", "NormBackward"]  # the bare scale needs torch's own
    J = observation.differential_map
    each = [network.pushforward(Vector(J.domain, e), x).flatten() for e in torch.eye(J.domain.dim)]
    assert close(J.matrix(), torch.stack(each, 1)) and close(J.transpose.matrix().mT, J.matrix())
