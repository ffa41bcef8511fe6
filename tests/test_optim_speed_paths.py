"""What is done the fast way comes out as what is done the plain way."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import riemann_ng as rng
from riemann_ng.errors import NonFinite, UnsupportedLayer
from riemann_ng.factorizations.making import cholesky
from riemann_ng.inner_products.gram import Gram, Halved
from riemann_ng.metrics import KFAC, RunningAverage
from riemann_ng.metrics.averages import finite
from riemann_ng.networks.pushing import pushed_together
from riemann_ng.optim import Constant, Factored, NaturalGradient, Schedule
from riemann_ng.optim.steps import combined
from riemann_ng.samples import Multiple, WithOne, gram, grams


@pytest.fixture(autouse=True)
def double() -> object:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


class Small(nn.Module):
    """One-hot inputs, a normalization, a convolution and wide and narrow linear maps."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(7, 12), nn.LayerNorm(12)
        self.conv, self.wide, self.out = nn.Conv1d(12, 6, 2), nn.Linear(18, 160), nn.Linear(160, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.embed(tokens)).mT
        z: Tensor = self.out(self.wide(self.conv(x).tanh().flatten(1)).tanh())
        return z


def problem() -> tuple[Small, Tensor, Tensor]:
    torch.manual_seed(1)
    return Small(), torch.randint(0, 7, (9, 4)), torch.randint(0, 3, (9,))


def below(M: Tensor) -> Tensor:
    return M.tril()


# --- moments, and averages that take them in --------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 95, 145, 193, 300])
def test_a_product_on_top_of_a_base_holds_below_the_diagonal(d: int) -> None:
    x, base = torch.randn(20, d), torch.randn(d, d)
    base = base @ base.mT
    expected = 0.9 * base + 0.3 * x.mT @ x
    torch.testing.assert_close(below(gram(x, 0.3, base=base, kept=0.9)), below(expected))
    torch.testing.assert_close(gram(x, 0.3), 0.3 * x.mT @ x)
    spoiled = base + torch.full_like(base, torch.nan).triu(1)  # what is above the diagonal is not looked at
    torch.testing.assert_close(below(gram(x, 0.3, base=spoiled, kept=0.9)), below(expected))
    assert not torch.allclose(below(gram(x, 0.3, base=base, kept=0.8)), below(expected))


@pytest.mark.parametrize("members, d", [(1, 5), (1, 200), (3, 1), (3, 4)])
def test_every_kind_of_data_blends_as_it_multiplies_out(members: int, d: int) -> None:
    x = torch.randn(6, 1, 2, d) if members == 1 else torch.randn(6, 1, 2, members, d)
    for data in (WithOne(x), Multiple(3.0, x, members)):
        M = data.moments(0.5)
        base = torch.randn_like(M)
        base = base @ base.mT
        expected = 0.7 * base + M
        torch.testing.assert_close(below(data.moments_onto(base, 0.7, 0.5)), below(expected))
        torch.testing.assert_close(M, grams(data.dense().reshape(6, 1, 2, members, -1), 0.5))


def test_averages_of_moments_are_those_of_their_matrices() -> None:
    model, x, _ = problem()
    network = rng.Network.from_torch(model, rng.Categorical(), x)
    fused, plain = RunningAverage(0.8), RunningAverage(0.8)
    for n in (9, 5, 7):
        g, h = (KFAC().at(network.observe(x[:n])) for _ in range(2))
        for part in h.parts.values():  # type: ignore[attr-defined]
            for factor in part.factors:
                factor.member_matrices()  # a moment that is known is blended as a matrix
        a, b = fused.add(g), plain.add(h)
    kinds = set()
    for path, part in a.summands().items():  # type: ignore[union-attr]
        for ours, theirs in zip(part.factors, b.summands()[path].factors, strict=True):  # type: ignore[index]
            kinds.add(type(ours))
            torch.testing.assert_close(ours.matrix(), theirs.matrix(), rtol=1e-12, atol=1e-14)
            assert torch.equal(ours.matrix(), ours.matrix().mT)
    assert Halved in kinds
    restored = rng.InnerProduct.from_state(a.space, a.state())
    torch.testing.assert_close(restored.matrix(), a.matrix(), rtol=0, atol=0)


def test_a_triangle_is_a_form_like_any() -> None:
    V = rng.Space("V", 6)
    rows = torch.randn(9, 6)
    M = rows.mT @ rows
    half = Halved.of(V, M.tril() + torch.full_like(M, torch.nan).triu(1), "half", rng.Symmetry.natural())
    whole = Gram.of(V, M, "whole", rng.Symmetry.natural())
    assert finite(half)
    xi = rng.Covector(V, torch.randn(6))
    torch.testing.assert_close(half.diagonal_entries(), M.diagonal())
    torch.testing.assert_close(half.sharp(xi).data, whole.sharp(xi).data)
    torch.testing.assert_close(half.blend(whole, 0.5).matrix(), M)
    torch.testing.assert_close(whole.blend(half, 0.5).matrix(), M)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e200])
def test_a_moment_that_is_not_finite_is_refused_and_nothing_has_changed(bad: float) -> None:
    V = rng.Space("V", 130)
    average = RunningAverage(0.5)
    for _ in range(2):
        kept = average.add(rng.second_moment(rng.Sample(V, torch.randn(4, 130))))
    before, x = kept.matrix().clone(), torch.randn(4, 130)
    x[2, 77] = bad
    with pytest.raises(NonFinite, match="NaN or infinity"):
        average.add(rng.second_moment(rng.Sample(V, x)))
    assert average.value is kept and average.count == 2
    assert torch.equal(kept.matrix(), before)


def test_multiples_are_the_elements_times_the_number() -> None:
    V, x = rng.Space("V", 4), torch.randn(5, 2, 3, 4)
    fast = rng.Sample(V, Multiple(7.0, x), rng.Measure.exact())
    slow = rng.Sample(V, 7 * x, rng.Measure.exact())
    for each in (rng.Sample.moment, rng.Sample.dense, lambda s: s.reduced().dense(), lambda s: s.mean().data):
        torch.testing.assert_close(each(fast), each(slow))
    assert not torch.allclose(fast.moment(), rng.Sample(V, x, rng.Measure.exact()).moment())


def test_the_loss_own_backward_gives_what_labels_give() -> None:
    model, x, y = problem()
    network = rng.Network.from_torch(model, rng.Categorical(), x)
    with network.watch() as tape:
        nn.functional.cross_entropy(model(x), y).backward()
    heard, asked = tape.observe(rng.Empirical()), network.observe(x, rng.Empirical(y))
    for path, layer in asked.layers.items():
        torch.testing.assert_close(heard[path].cotangents.moment(), layer.cotangents.moment())
        torch.testing.assert_close(heard[path].cotangents.dense(), layer.cotangents.dense())


# --- factorizations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 127, 128, 256])
def test_cholesky_apart_is_cholesky(d: int) -> None:
    rows = torch.randn(2 * d, d)
    M = rows.mT @ rows + torch.eye(d)
    L, info = cholesky(M)
    torch.testing.assert_close(L, torch.linalg.cholesky(M))
    assert not info.any()
    M[0, 0] = -1.0
    assert cholesky(M)[1].any()


# --- what is pushed forward -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3])
def test_vectors_pushed_together_are_those_pushed_alone(count: int) -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3))
    x = torch.randn(6, 4)
    network = rng.Network.from_torch(model, rng.Categorical(), x)
    vectors = [rng.Vector(network.tangent_space, torch.randn(network.tangent_space.dim)) for _ in range(count)]
    here = torch.get_rng_state()
    z, moved = pushed_together(network, vectors, x)  # type: ignore[misc]
    torch.set_rng_state(here)
    torch.testing.assert_close(z.detach(), network.outputs(x).detach())
    for v, m in zip(vectors, moved, strict=True):
        torch.set_rng_state(here)  # the same masks
        torch.testing.assert_close(m, network.pushforward(v, x))
    assert not torch.allclose(moved[0], network.pushforward(vectors[0], x))  # other masks


def test_what_refuses_a_batch_of_tangents_is_asked_once() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.out(self.lstm(x)[0][:, -1])
            return z

    model, x = Recurrent(), torch.randn(5, 6, 3)
    network = rng.Network.from_torch(model, rng.Categorical(), x)
    v = rng.Vector(network.tangent_space, torch.randn(network.tangent_space.dim))
    together = pushed_together(network, [v, v], x)
    if together is None:
        assert network._refuses_batches and pushed_together(network, [v], x) is None
    else:
        torch.testing.assert_close(together[1][0], network.pushforward(v, x))


def test_a_module_that_changed_is_noticed() -> None:
    model, x, _ = problem()
    network = rng.Network.from_torch(model, rng.Categorical(), x)
    assert network.parameters == dict(model.named_parameters())

    def freeze(m: Small) -> None:
        m.wide.weight.requires_grad_(False)

    def replace(m: Small) -> None:
        m.wide.weight = nn.Parameter(m.wide.weight.detach().clone())

    def rename(m: Small) -> None:
        m.other = m.wide
        del m.wide

    def add(m: Small) -> None:
        m.conv.register_parameter("scale", nn.Parameter(torch.ones(1)))

    for change in (freeze, replace, rename, add):
        other = copy.deepcopy(model)
        network = rng.Network.from_torch(other, rng.Categorical(), x)
        change(other)
        with pytest.raises(UnsupportedLayer, match="since the module was read"):
            network.check_unchanged()


# --- whole steps ------------------------------------------------------------------------------------------------------


def test_combinations_of_vectors() -> None:
    V = rng.DirectSum({"a": rng.Space("A", 3), "b": rng.Space("B", 2)})
    v, w = (rng.Vector(V, {"a": torch.randn(3), "b": torch.randn(2)}) for _ in range(2))
    flat = rng.Vector(V, torch.randn(5))
    torch.testing.assert_close(combined(v, 2.0, w, -0.5).data, 2 * v.data - 0.5 * w.data)
    torch.testing.assert_close(combined(v, 2.0, flat, -0.5).data, 2 * v.data - 0.5 * flat.data)


def slow_steps(count: int, lr: float, momentum: float, decay: float, damping: float) -> list[Tensor]:
    """The optimizer's loop written out, with matrices that are made one by one."""
    model, x, y = problem()
    network = rng.Network.from_torch(model, rng.Categorical(), x)
    reference = rng.euclidean_on_translations(network.tangent_space)
    averages: dict[tuple[str, int], Tensor] = {}
    before, frozen = None, None
    for step in range(count):
        g = KFAC().at(network.observe(x, rng.Empirical(y)))
        weight = (1 - decay) / (1 - decay ** (step + 1))
        parts = {}
        for path, part in g.summands().items():  # type: ignore[union-attr]
            factors = []
            for i, factor in enumerate(part.factors):
                M = factor.member_matrices()
                averages[path, i] = M if step == 0 else (1 - weight) * averages[path, i] + weight * M
                form = rng.Diagonal if factor.one_hot else rng.Gram
                factors.append(form(factor.space, averages[path, i]))
            parts[path] = factors[0] * factors[1]
        frozen = rng.damp_factors(rng.direct_sum(parts), damping, reference) if step % 2 == 0 else frozen
        df = network.differential(x, y)
        v = {path: frozen.parts[path].sharp(df.component(path)).data for path in parts}  # type: ignore[union-attr]
        moved = -lr * rng.Vector(network.tangent_space, v)
        moved = moved if before is None else moved + momentum * before
        network.move_(moved)
        before = moved
    return [p.detach().clone() for p in model.parameters()]


def test_steps_of_the_optimizer_are_those_written_out() -> None:
    model, x, y = problem()
    opt = NaturalGradient(
        model, rng.Categorical(), estimator=rng.Empirical(), schedule=Schedule(1, 2, warmup=0), lr=0.05,
        step_size=Constant(), damping=Factored(1e-2, rng.EuclideanMetric(on="translations")), momentum=0.7, decay=0.8,
    )  # fmt: skip
    for _ in range(5):
        opt.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        opt.step()
    expected = slow_steps(5, 0.05, 0.7, 0.8, 1e-2)
    for p, q in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=1e-8, atol=1e-10)
    wrong = slow_steps(5, 0.05, 0.7, 0.7, 1e-2)
    assert not all(torch.allclose(p, q, rtol=1e-6) for p, q in zip(model.parameters(), wrong, strict=True))
