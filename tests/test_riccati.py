"""The Riccati solver against dense solves, on chains made by hand and on every kind of network."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import riemann_ng as rng
from riemann_ng.errors import (
    DegenerateMetric,
    InvalidSetting,
    NotAnInnerProduct,
    NotClosed,
    ObservationMismatch,
    SpaceMismatch,
    UnsupportedLayer,
)
from riemann_ng.metrics import FixedMetric
from riemann_ng.networks.linearization import linearized
from riemann_ng.networks.stages import segments_of
from riemann_ng.solvers import Curvature, Riccati, Stage, Stages
from riemann_ng.solvers.recursion import factorize_chain
from riemann_ng.testing import check_invariance
from riemann_ng.testing.invariance.subjects import metric
from riemann_ng.testing.networks import network_cases

CHAINS = ("mlp", "conv1d", "conv2d", "transposed", "normalization", "tokens", "recurrent", "attention")


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def positive(generator, d):
    root = normal(generator, d, d)
    return root @ root.T + torch.eye(d, dtype=torch.float64)


class Laid:
    """A chain with known matrices, and the dense matrix of its form."""

    def __init__(self, seed, curved, rows=2):
        g = torch.Generator().manual_seed(seed)
        states = torch.randint(1, 5, (4,), generator=g).tolist()
        controls = torch.randint(1, 7, (4,), generator=g).tolist()
        X = [rng.Space(f"X{i}", d) for i, d in enumerate(states)]
        W = [rng.Space(f"W{i}", d) for i, d in enumerate(controls)]
        space = rng.DirectSum({f"W{i}": V for i, V in enumerate(W)})
        self.R = {f"W{i}": rng.Gram(V, positive(g, V.dim) * (5.0 if curved else 0.3)) for i, V in enumerate(W)}
        each, reach = [], torch.zeros(0, space.dim, dtype=torch.float64)
        dense = torch.block_diag(*(form.matrix() for form in self.R.values()))
        for i, (V, Y) in enumerate(zip(W, X, strict=True)):
            into = torch.zeros(V.dim, space.dim, dtype=torch.float64)
            into[:, space.slices[f"W{i}"]] = torch.eye(V.dim, dtype=torch.float64)
            B, L = normal(g, Y.dim, V.dim), normal(g, rows, Y.dim)
            A = normal(g, Y.dim, len(reach)) if i else None
            part = Curvature()
            if curved:
                H = 0.3 * (h := normal(g, V.dim, V.dim)) + 0.3 * h.T
                dense += into.T @ H @ into
                part = Curvature(H=self.map(rng.DirectSum({f"W{i}": V}), rng.DirectSum({f"W{i}": V}).dual, H))
                if A is not None:
                    Q = 0.2 * (q := normal(g, len(reach), len(reach))) + 0.2 * q.T
                    M = 0.2 * normal(g, V.dim, len(reach))
                    dense += reach.T @ Q @ reach + into.T @ M @ reach + reach.T @ M.T @ into
                    X_before = each[-1].outputs
                    part = Curvature(
                        self.map(X_before, X_before.dual, Q),
                        self.map(X_before, rng.DirectSum({f"W{i}": V}).dual, M),
                        part.H,
                    )
            reach = B @ into if A is None else A @ reach + B @ into
            dense += reach.T @ (L.T @ L) @ reach
            before = None if A is None else self.map(each[-1].outputs, Y, A)
            here = rng.DirectSum({f"W{i}": V})
            rows_map = self.map(Y, rng.Space(f"E{i}", rows), L)
            each.append(Stage(f"s{i}", (f"W{i}",), Y, before, self.map(here, Y, B), rows_map, None, part))
        self.stages, self.dense, self.g = Stages(space, tuple(each)), dense, g

    @staticmethod
    def map(V, U, matrix):
        return rng.LinearMap(V, U, matrix)

    def factor(self):
        return factorize_chain(self.stages.damped(self.R), torch.empty(0, dtype=torch.float64), 2**27)

    def covectors(self):
        return normal(self.g, 3, self.stages.space.dim)


def off(given, expected):
    return float((given - expected).norm() / expected.norm())


@given(st.integers(0, 10_000), st.booleans(), st.integers(1, 6))
def test_a_chain_is_solved_as_its_dense_matrix_is(seed, curved, rows):
    """With roots, where nothing is subtracted, and with curvature of the stages' own; `rows` on both sides of the
    number of parameters."""
    laid = Laid(seed, curved, rows)
    if curved and float(torch.linalg.eigvalsh(laid.dense)[0]) < 0.05:
        with pytest.raises(NotAnInnerProduct, match=r"at stage 's\d' the curvature is indefinite"):
            laid.factor()
            raise NotAnInnerProduct("at stage 's0' the curvature is indefinite")  # barely definite: either is right
        return
    factor, x = laid.factor(), laid.covectors()
    assert off(factor.solve(x), torch.linalg.solve(laid.dense, x.T).T) < 1e-10
    assert off(factor.frame(factor.coframe(x)), factor.solve(x)) < 1e-10
    z = laid.covectors()
    assert torch.allclose((factor.frame(z) * x).sum(-1), (z * factor.coframe(x)).sum(-1))
    assert torch.allclose(factor.logdet, torch.logdet(laid.dense))
    assert off(factor.flat(x), x @ laid.dense) < 1e-12
    assert torch.allclose(factor.best(x), -0.5 * (x * factor.solve(x)).sum(-1))


def test_the_check_sees_a_wrong_recursion():
    """Without what later stages do best, or with a transposed M, the solution is another one."""
    laid = Laid(4, curved=True)
    x = laid.covectors()
    right = torch.linalg.solve(laid.dense, x.T).T
    alone = [Stage(s.name, s.blocks, s.outputs, None if s.A is None else rng.LinearMap(s.A.domain, s.outputs, 0 * s.A.matrix()), s.B, s.rows, None, s.curvature) for s in laid.stages.each]  # fmt: skip # noqa: E501
    wrong = factorize_chain(Stages(laid.stages.space, tuple(alone)).damped(laid.R), x[:0], 2**27)
    assert off(wrong.solve(x), right) > 1e-2


@given(network_cases(CHAINS), st.sampled_from(["likelihood", "outputs"]), st.sampled_from([1.0, 1e-2]))
def test_on_networks_it_is_the_dense_solve(case, geometry, damping):
    network = case.network()
    kind = rng.Fisher if geometry == "likelihood" else rng.GaussNewton
    step = rng.natural_gradient(network, kind(), case.x, case.y, damping=damping, solver=Riccati())
    with network.observe(case.x, output=kind().output) as seen:
        matrix = kind(structure="dense").at(seen).matrix()
    df = network.differential(case.x, case.y).components
    dense = torch.linalg.solve(matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype), df)
    assert float((step.components - dense).norm()) <= 1e-11 * max(float(dense.norm()), 1e-3)


def mlp(*widths, act=nn.Tanh, seed=0):
    torch.manual_seed(seed)
    layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), act())][:-1]
    return nn.Sequential(*layers).double()


def problem(n=5, *widths, act=nn.Tanh, likelihood=None):
    model = mlp(*(widths or (3, 4, 4, 3)), act=act)
    x, y = torch.randn(n, model[0].in_features).double(), torch.randint(0, model[-1].out_features, (n,))
    network = rng.Network.from_torch(model, likelihood=likelihood or rng.Categorical(), example=x)
    return network, x, y


@pytest.mark.parametrize("observed", [rng.Exact(), rng.Exact(chunk=1), rng.Linearized()], ids=str)
def test_every_way_of_observing_knows_the_stages(observed):
    network, x, y = problem()
    metric_ = rng.Fisher(structure="matrix-free" if isinstance(observed, rng.Linearized) else "full")
    with network.observe(x, observed) as seen:
        g = metric_.at(seen) + 0.1 * rng.Euclidean(network.tangent_space)
        df = network.differential(x, y)
        solution = Riccati().solve(g, df)
        ready = Riccati().prepare(g)
    dense = torch.linalg.solve(g.matrix() if observed == rng.Linearized() else network.fisher(x).matrix() + 0.1 * torch.eye(g.space.dim).double(), df.components)  # fmt: skip # noqa: E501
    assert off(solution.value.components, dense) < 1e-13
    assert solution.report.residual < 1e-12 and "Riccati" in str(solution.report)
    assert off(ready.sharp(df).components, dense) < 1e-13


def test_sums_and_multiples_keep_the_stages():
    network, x, y = problem()
    E = rng.Euclidean(network.tangent_space)
    forms = rng.direct_sum({path: rng.Gram(V, positive(torch.Generator().manual_seed(1), V.dim)) for path, V in network.tangent_space.parts})  # fmt: skip # noqa: E501
    g = 0.1 * E + 3.0 * network.fisher(x) + 0.2 * forms
    df = network.differential(x, y)
    assert off(Riccati().solve(g, df).value.components, torch.linalg.solve(g.matrix(), df.components)) < 1e-12


def test_a_damping_that_leaves_biases_out_is_enough_where_the_form_does_the_rest():
    """R has a kernel: S is then solved as a matrix."""
    network, x, y = problem(40, 3, 3, 4, likelihood=rng.Gaussian())
    y = torch.randn(40, 4).double()
    damping = 0.1 * rng.EuclideanMetric(on="translations")
    df = network.differential(x, y)
    with network.observe(x) as seen:
        g = (rng.Fisher() + damping).at(seen)
        step = g.sharp(df, Riccati())
        assert off(step.components, torch.linalg.solve(g.matrix(), df.components)) < 1e-11


class Skipping(nn.Module):
    def __init__(self, tied=False):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.tied = tied

    def forward(self, x):
        h = torch.tanh(self.a(x))
        if self.tied:
            return self.a(torch.tanh(self.b(h)))
        return h + self.b(h)


class Residual(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return x + self.module(x)


def test_a_residual_block_belongs_to_the_stage_of_the_next_cut():
    torch.manual_seed(0)
    branch = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model = nn.Sequential(nn.Linear(3, 4), Residual(branch), nn.Tanh(), nn.Linear(4, 3)).double()
    x = torch.randn(5, 3).double()
    network = rng.Network.from_torch(model, likelihood=rng.Categorical(), example=x)
    found = [(s.after.name, s.blocks) for s in segments_of(linearized(network, x), network.name)]
    assert found == [("0", ("0",)), ("3", ("1.module.0", "1.module.2", "3"))]


def test_one_output_of_a_split_is_no_cut():
    """Queries, keys and values come of one node of the graph, and each goes its own way."""

    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.attn, self.out = nn.Linear(3, 4), nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)  # fmt: skip # noqa: E501

        def forward(self, x):
            h = self.into(x)
            return self.out(self.attn(h, h, h, need_weights=False)[0].mean(1))

    torch.manual_seed(0)
    x = torch.randn(4, 3, 3).double()
    network = rng.Network.from_torch(Attending().double(), likelihood=rng.Categorical(), example=x)
    names = [s.after.name for s in segments_of(linearized(network, x), network.name)]
    assert names == ["into", "attn.out", "out"]


# --- errors -----------------------------------------------------------------------------------------------------------


def solve(network, x, y, metric_=None, damping=0.1, **options):
    return rng.natural_gradient(network, metric_ or rng.Fisher(), x, y, damping=damping, solver=Riccati(), **options)


def read(model, x):
    return rng.Network.from_torch(model.double(), likelihood=rng.Categorical(), example=x)


def test_a_network_that_is_no_chain_is_refused_with_the_spot():
    x, y = torch.randn(4, 3).double(), torch.randint(0, 3, (4,))
    with pytest.raises(UnsupportedLayer, match="is no chain: the parameters of 'a' are used on both sides of 'b'"):
        solve(read(Skipping(tied=True), x), x, y)
    solve(read(Skipping(), x), x, y)  # a cut after the first layer

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            h = self.a(x)
            return torch.tanh(self.b(h) * h)

    chain = segments_of(linearized(network := read(Around(), x), x), network.name)
    assert [s.blocks for s in chain] == [("a",), ("b",)]


def test_forms_that_know_no_stages_are_refused():
    network, x, y = problem()
    with pytest.raises(NotClosed, match=r"NotClosed in Riccati: the form on .* does not know the stages"):
        solve(network, x, y, rng.KFAC())
    with pytest.raises(NotClosed, match="observed with Exact\\(\\) or Linearized\\(\\)"):
        solve(network, x, y, estimator=rng.MonteCarlo(2))
    whole = rng.Gram(network.tangent_space, torch.eye(network.tangent_space.dim).double())
    with pytest.raises(NotClosed, match="plus a damping that is a direct sum over the layers"):
        solve(network, x, y, damping=FixedMetric(whole))


def test_without_damping_the_kernel_is_named():
    network, x, y = problem()
    with pytest.raises(DegenerateMetric, match=r"Riccati: at stage '.*' the form has rank \d+ of \d+ once later"):
        solve(network, x, y, damping=None)


def test_the_limit_is_said_before_memory_is_taken():
    network, x, y = problem()
    with pytest.raises(NotClosed, match=r"stage '4' has .*, and takes .* numbers at once \(limit 1e\+02\)"):
        rng.natural_gradient(network, rng.Fisher(), x, y, damping=0.1, solver=Riccati(limit=100))
    for bad in (0, 1.5, True):
        with pytest.raises(InvalidSetting, match="InvalidSetting in Riccati: limit is a positive number"):
            Riccati(limit=bad)


def test_moved_parameters_are_noticed():
    network, x, _ = problem()
    with network.observe(x) as seen:
        g = rng.Fisher().at(seen)
        with torch.no_grad():
            next(iter(network.parameters.values())).add_(1.0)
        with pytest.raises(ObservationMismatch, match="the parameters have moved since the batch was observed"):
            g.stages()


def test_stages_fit_together():
    X, W = rng.Space("X", 2), rng.Space("W", 2)
    space, one = rng.DirectSum({"W": W}), rng.LinearMap(W, X, torch.eye(2))
    with pytest.raises(SpaceMismatch, match="Stage 'a'"):
        Stage("a", ("W",), rng.Space("Y", 2), None, one)
    with pytest.raises(SpaceMismatch, match="every summand"):
        Stages(space, (Stage("a", (), X, None, None),))
    with pytest.raises(SpaceMismatch, match="stage 'b' does not start where 'a' ends"):
        Stages(space, (Stage("a", ("W",), X, None, one), Stage("b", (), X, None, None)))


# --- invariance -------------------------------------------------------------------------------------------------------

AFFINE = [("activations", "affine"), ("pre-activations", "affine")]
ORTHOGONAL = [("activations", "orthogonal"), ("pre-activations", "isometries")]


def verdicts(subject, network, x, y, cells):
    report = check_invariance(subject, network, x, y, cells=cells, shrink=False)
    return [report[cell].verdict for cell in cells]


def test_a_transported_damping_keeps_every_affine_frame():
    network, x, y = problem(6)
    g = torch.Generator().manual_seed(0)
    R = rng.direct_sum({path: rng.Gram(V, positive(g, V.dim)) for path, V in network.tangent_space.parts})
    for form in (rng.Fisher(), rng.GaussNewton()):
        cells = AFFINE[:1] if isinstance(form, rng.GaussNewton) else AFFINE
        assert verdicts(metric(form + 0.1 * FixedMetric(R), Riccati()), network, x, y, cells) == ["held"] * len(cells)


def test_a_multiple_of_the_coordinates_keeps_rotations_alone():
    network, x, y = problem(6)
    subject = metric(rng.Fisher() + 0.1 * rng.EuclideanMetric(), Riccati())
    assert verdicts(subject, network, x, y, AFFINE + ORTHOGONAL) == ["refuted"] * 2 + ["held"] * 2
