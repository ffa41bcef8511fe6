"""Steps that hold little: moments folded as they come, averages written over, inverses kept alone."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from optim_cases import CE, batches, data, flat, mlp, run, step
from torch import Tensor, nn

import riemann_ng as rng
from riemann_ng.errors import DegenerateMetric, NonFinite, ObservationMismatch
from riemann_ng.inner_products import ByInverse, Gram, Kronecker, damp_factors, inverted
from riemann_ng.likelihoods import Categorical
from riemann_ng.metrics import EKFAC, KFAC, EuclideanMetric, MetricAverage, RunningAverage
from riemann_ng.metrics.base import RiemannianMetric
from riemann_ng.networks import Empirical
from riemann_ng.networks.observation import observation_folded
from riemann_ng.optim import Constant, KLClip, NaturalGradient, QuadraticModel, Schedule, TrustRegion
from riemann_ng.optim.memory import Memory
from riemann_ng.samples import Folded, Measure, Multiple, WithOne, folded, whole_folded

EMPIRICAL: dict[str, Any] = {
    "estimator": Empirical(), "schedule": Schedule(1, 3, warmup=0), "step_size": Constant(), "damping": 0.1, "lr": 0.05,
}  # fmt: skip
MONTE_CARLO: dict[str, Any] = {**EMPIRICAL, "estimator": rng.MonteCarlo(2)}


@pytest.fixture(autouse=True)
def double() -> object:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


class Mixed(nn.Module):
    """A convolution, a layer used twice, a normalization, a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.twice, self.norm = nn.Conv1d(2, 4, 3, padding=1), nn.Linear(4, 4), nn.LayerNorm(4)
        self.shift, self.out = nn.Parameter(torch.randn(4)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x).mT.tanh()
        h = self.norm(self.twice(self.twice(h).tanh()))
        z: Tensor = self.out((h + self.shift).mean(1))
        return z


def mixed(n: int = 24) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(3)
    return Mixed(), torch.randn(n, 2, 5), torch.randint(0, 3, (n,))


# --- folded samples ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["probability", "exact", "monte_carlo"])
@pytest.mark.parametrize("members", [1, 3])
def test_a_folded_moment_is_that_of_the_whole(kind: str, members: int) -> None:
    V = rng.Space("V", 5) if members == 1 else rng.Family(rng.Space("V", 5), members)
    x = torch.randn(30, 1, 2, *V.shape)
    whole = rng.Sample(V, x, getattr(Measure, kind)())
    known = folded(x, V, 0.1)
    assert isinstance(known, Folded)
    little = rng.Sample(V, known, getattr(Measure, kind)())
    torch.testing.assert_close(little.member_moments(), whole.member_moments(), rtol=1e-13, atol=1e-14)
    average = rng.second_moment(rng.Sample(V, torch.randn(9, 1, 1, *V.shape)))
    base = Gram(V.dual, average.member_matrices())
    mine, theirs = (base.blend(rng.second_moment(s), 0.3) for s in (little, whole))
    torch.testing.assert_close(mine.matrix(), theirs.matrix(), rtol=1e-13, atol=1e-14)
    assert not torch.allclose(rng.Sample(V, known.times(2.0)).member_moments(), whole.member_moments())


@pytest.mark.parametrize("compact", [WithOne, lambda x: Multiple(3.0, x)], ids=["hull", "multiple"])
def test_what_is_kept_smaller_is_folded_too(compact: Callable[[Tensor], Any]) -> None:
    x = torch.randn(40, 1, 3, 4)
    data_of = compact(x)
    d = data_of.dense().shape[-1]
    known = folded(data_of, rng.Space("V", d), 0.5)
    assert isinstance(known, Folded)
    torch.testing.assert_close(known.moments(0.25), data_of.moments(0.25))


def test_elements_fewer_than_the_moment_stay() -> None:
    few = torch.randn(3, 1, 1, 5)
    assert folded(few, rng.Space("V", 5), 1.0) is few
    assert isinstance(whole_folded(few, rng.Space("V", 5)), Folded)


def test_folded_elements_are_gone_and_say_so() -> None:
    known = whole_folded(torch.randn(8, 1, 1, 3), rng.Space("V", 3))
    with pytest.raises(ObservationMismatch, match=r"8 examples were folded(?s:.*)sees_moments_alone"):
        rng.Sample(rng.Space("V", 3), known).dense()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e200])
def test_a_folded_moment_that_is_not_finite_is_seen(bad: float) -> None:
    x = torch.randn(20, 1, 1, 3)
    assert whole_folded(x, rng.Space("V", 3)).squares().isfinite()
    x[4, 0, 0, 1] = bad
    assert not whole_folded(x, rng.Space("V", 3)).squares().isfinite()


# --- folded as the backward pass comes by -----------------------------------------------------------------------------


def heard(fold: bool, parts: int = 1, keep: bool = False, sizes: list[int] | None = None) -> Any:
    model, x, y = mixed()
    network = rng.Network.from_torch(model, Categorical(), x)
    tape = network.watch()
    tape.folds = fold
    with tape:
        sizes = sizes or [len(x) // parts] * parts
        for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
            CE(model(a), b).backward(retain_graph=keep)
    return tape.observe(Empirical())


@pytest.mark.parametrize("parts", [1, 2])
def test_what_is_folded_on_the_way_is_what_is_heard(parts: int) -> None:
    plain, little = heard(False, parts), heard(True, parts)
    for path, layer in plain.layers.items():
        for name in ("inputs", "cotangents"):
            mine, theirs = getattr(little[path], name), getattr(layer, name)
            torch.testing.assert_close(mine.member_moments(), theirs.member_moments(), rtol=1e-11, atol=1e-13)
    for path in ("conv", "twice"):
        assert isinstance(little[path].inputs.data, Folded) and isinstance(little[path].cotangents.data, Folded)
    unscaled = little["twice"].cotangents.data
    forgotten = Folded(unscaled.matrices, 1.0, unscaled.counts).moments(1 / 24)[0]
    assert not torch.allclose(forgotten, plain["twice"].cotangents.moment())


def test_parts_of_unlike_sizes_and_samples_that_stay() -> None:
    plain, little = (heard(fold, 2, sizes=[22, 2]) for fold in (False, True))
    for path, layer in plain.layers.items():
        for name in ("inputs", "cotangents"):
            mine, theirs = getattr(little[path], name), getattr(layer, name)
            torch.testing.assert_close(mine.member_moments(), theirs.member_moments(), rtol=1e-11, atol=1e-13)


def test_sequences_of_unlike_lengths_are_stacked_without_padding() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    xs = [torch.randn(8, 4, 3), torch.randn(8, 7, 3)]
    found = []
    for fold in (False, True):
        network = rng.Network.from_torch(model, rng.Gaussian(), xs[0])
        tape = network.watch()
        tape.folds = fold
        with tape:
            for x in xs:
                (model(x).square().sum() / 16).backward()
        found.append(tape.observe(Empirical(), divided_by=16))
    for path, layer in found[0].layers.items():
        torch.testing.assert_close(found[1][path].inputs.moment(), layer.inputs.moment())
        torch.testing.assert_close(found[1][path].cotangents.moment(), layer.cotangents.moment())
    assert isinstance(found[1]["0"].inputs.data, Folded) and not isinstance(found[0]["0"].inputs.data, Folded)


def test_a_graph_that_is_kept_is_listened_to_twice() -> None:
    """Gradients that arrive twice add up before they are squared: nothing is folded while others may come."""
    model, x, y = mixed()
    found = []
    for fold in (False, True):
        network = rng.Network.from_torch(model, Categorical(), x)
        tape = network.watch()
        tape.folds = fold
        with tape:
            loss = CE(model(x), y)
            (0.25 * loss).backward(retain_graph=True)
            (0.75 * loss).backward()
        found.append(tape.observe(Empirical()))
    torch.testing.assert_close(found[1]["twice"].cotangents.moment(), found[0]["twice"].cotangents.moment())
    once = heard(True)["twice"].cotangents.moment()
    torch.testing.assert_close(found[1]["twice"].cotangents.moment(), once)
    assert not isinstance(found[1]["twice"].cotangents.data, Folded)


def test_an_observation_is_folded_after_it_was_made() -> None:
    model, x, _ = mixed()
    network = rng.Network.from_torch(model, Categorical(), x)
    seen = network.observe(x, rng.MonteCarlo(3, seed=1))
    little = observation_folded(seen)
    torch.testing.assert_close(KFAC().at(little).matrix(), KFAC().at(seen).matrix(), rtol=1e-11, atol=1e-13)
    assert isinstance(little["twice"].cotangents.data, Folded)
    with pytest.raises(ObservationMismatch, match="folded into their second moment"):
        little["twice"].gradients.moment()


def test_only_a_metric_that_reads_moments_alone_is_folded_for() -> None:
    layerwise = KFAC()
    for yes in (layerwise, 2.0 * layerwise, layerwise + EuclideanMetric(), layerwise.damp_factors(0.1)):
        assert yes.sees_moments_alone()
    for no in (KFAC(sharing="reduce"), EKFAC(), rng.Fisher("diagonal"), layerwise + EKFAC(), Own()):
        assert not no.sees_moments_alone()


class Own(rng.LayerwiseMetric):
    """It may read anything, and says nothing."""

    def at_layer(self, layer: Any) -> rng.InnerProduct:
        gradients = layer.gradients.dense()
        assert gradients.shape[0] == layer.inputs.counts[0]
        return rng.second_moment(layer.cotangents) * rng.second_moment(layer.inputs)


def test_a_metric_that_reads_elements_trains() -> None:
    model, opt = run(4, metric=Own(), **EMPIRICAL)
    assert opt.steps == 4 and flat(model).isfinite().all()


@pytest.mark.parametrize("settings", [EMPIRICAL, MONTE_CARLO], ids=["empirical", "monte carlo"])
def test_folding_changes_no_step_but_in_rounding(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    little, opt = run(8, **settings)
    assert opt._listener.folds
    monkeypatch.setattr(KFAC, "sees_moments_alone", lambda self: False)
    plain, other = run(8, **settings)
    assert not other._listener.folds
    torch.testing.assert_close(flat(little), flat(plain), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(opt.memory.value.matrix(), other.memory.value.matrix(), rtol=1e-10, atol=1e-12)


# --- what is alive after a backward pass ------------------------------------------------------------------------------


def alive_after_backward(monkeypatch: pytest.MonkeyPatch, fold: bool, settings: dict[str, Any]) -> int:
    """How many numbers of tensors with an example in each row are alive that were not before the pass."""
    with monkeypatch.context() as m:
        if not fold:
            m.setattr(KFAC, "sees_moments_alone", lambda self: False)
        torch.manual_seed(0)
        model, n = nn.Sequential(*(f() for _ in range(4) for f in (lambda: nn.Linear(6, 6), nn.Tanh))), 997
        opt = NaturalGradient(model, Categorical(), **settings)
        x, y = torch.randn(n, 6), torch.randint(0, 6, (n,))
        for _ in range(2):
            step(model, opt, x, y)
        opt.zero_grad()
        before = rows(n)
        CE(model(x), y).backward()
        found = rows(n) - before
        opt.step()
        assert rows(n) <= before
        return found


def rows(n: int) -> int:
    gc.collect()
    storages = {
        t.untyped_storage().data_ptr(): t.numel() for t in gc.get_objects() if type(t) is Tensor and n in t.shape
    }
    return sum(storages.values())


@pytest.mark.parametrize("settings", [EMPIRICAL, MONTE_CARLO], ids=["empirical", "monte carlo"])
def test_nothing_of_a_layer_that_is_batch_sized_outlives_the_backward(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    of_outputs = 997 * 6
    assert alive_after_backward(monkeypatch, True, settings) <= of_outputs  # the outputs, which the step may ask for
    assert alive_after_backward(monkeypatch, False, settings) >= 4 * 997 * 6  # inputs and gradients of four layers


# --- averages written over --------------------------------------------------------------------------------------------


def moments(seed: int) -> Kronecker:
    g = torch.Generator().manual_seed(seed)
    A, S = rng.AffineSpace("A", 130), rng.Space("S", 3)
    inputs = rng.Sample(A.hull, WithOne(torch.randn(8, 1, 4, 130, generator=g)))
    back = rng.Sample(S.dual, torch.randn(8, 1, 4, 3, generator=g), Measure.exact())
    form = rng.second_moment(back) * rng.second_moment(inputs)
    assert isinstance(form, Kronecker)
    return form


def test_an_average_written_over_is_the_average_bit_for_bit() -> None:
    beside, over = RunningAverage(0.8), RunningAverage(0.8)
    for t in range(6):
        beside.add(moments(t))
        later: list[Callable[[], None]] = []
        value = over.added_over(moments(t), later)
        assert bool(later) == (t >= 2)
        held = None if over.value is None or t < 2 else over.value.factors[1].triangle  # type: ignore[attr-defined]
        for blend in later:
            blend()
        over.value, over.count = value, over.count + 1
        assert held is None or value.factors[1].triangle is held  # type: ignore[attr-defined]
        assert torch.equal(over.value.matrix(), beside.value.matrix())  # type: ignore[union-attr]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e200])
def test_what_is_not_finite_is_refused_before_anything_is_written(bad: float) -> None:
    average = RunningAverage(0.8)
    for t in range(3):
        average.add(moments(t))
    assert average.value is not None
    before, spoiled, later = average.value.matrix().clone(), moments(9), []
    spoiled.factors[1].sample.data.points[3, 0, 2, 77] = bad  # type: ignore[attr-defined]
    with pytest.raises(NonFinite, match="NaN or infinity"):
        average.added_over(spoiled, later)
    assert not later and average.count == 3 and torch.equal(average.value.matrix(), before)


def test_factors_that_are_damped_after_averaging_are_not_written_over() -> None:
    assert MetricAverage(KFAC() + EuclideanMetric()).overwrites
    assert not MetricAverage(2.0 * KFAC().damp_factors(0.1) + EuclideanMetric()).overwrites


def beside_and_over(settings: dict[str, Any], steps: int = 10) -> list[Tensor]:
    class Beside(Memory):
        overwrites = property(lambda self: False)  # type: ignore[assignment]

    found = []
    for kind in (Memory, Beside):
        model = mlp()
        opt = NaturalGradient(model, Categorical(), **settings)
        opt.memory.__class__ = kind
        for x, y in batches(steps):
            step(model, opt, x, y)
        found.append(flat(model))
    return found


@pytest.mark.parametrize("settings", [EMPIRICAL, MONTE_CARLO, {}], ids=["empirical", "monte carlo", "default"])
def test_whether_averages_are_written_over_changes_no_bit(settings: dict[str, Any]) -> None:
    over, beside = beside_and_over(settings)
    assert torch.equal(over, beside)


def test_who_asks_for_the_average_holds_it() -> None:
    model, opt = run(7, **EMPIRICAL)
    assert opt.memory.overwrites
    held = opt.memory.value
    assert held is not None and not opt.memory.overwrites
    matrix = held.matrix().clone()
    step(model, opt, *data(seed=30))
    assert torch.equal(held.matrix(), matrix)
    triangle = opt.memory._value.parts["0"].factors[0].triangle  # type: ignore[union-attr]
    before = triangle.clone()
    step(model, opt, *data(seed=31))
    assert opt.memory._value.parts["0"].factors[0].triangle is triangle  # type: ignore[union-attr]
    assert not torch.equal(triangle, before)


def test_a_rule_that_fails_leaves_the_average(monkeypatch: pytest.MonkeyPatch) -> None:
    model, opt = run(7, **EMPIRICAL)
    before = copy.deepcopy(opt.memory.state())

    def fails(self: object, here: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(Constant, "displacement", fails)
        with pytest.raises(KeyboardInterrupt):
            step(model, opt, *data(seed=30))
    after = opt.memory.state()
    for mine, theirs in zip(tensors(before), tensors(after), strict=True):
        assert torch.equal(mine, theirs)
    step(model, opt, *data(seed=30))
    assert any(not torch.equal(a, b) for a, b in zip(tensors(before), tensors(opt.memory.state()), strict=True))


def tensors(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return [t for value in values for t in tensors(value)]


# --- inverses alone ---------------------------------------------------------------------------------------------------


def product(condition: float = 10.0) -> Kronecker:
    spaces = rng.Space("V", 4), rng.Space("W", 3)
    grams = []
    for V in spaces:
        Q = torch.linalg.qr(torch.randn(V.dim, V.dim))[0]
        grams.append(Gram(V, Q @ torch.diag(torch.logspace(0, 1, V.dim)) @ Q.mT, natural=True))
    form = grams[0] * grams[1]
    assert isinstance(form, Kronecker)
    return form


def test_inverses_act_as_the_form_they_are_of() -> None:
    g = damp_factors(product(), 0.1, rng.Euclidean(product().space))
    kept = inverted(g)
    assert kept is not None and all(isinstance(f, ByInverse) for f in kept.factors)  # type: ignore[attr-defined]
    xi = rng.Covector(g.space, torch.randn(4, 3))
    torch.testing.assert_close(kept.sharp(xi).data, g.sharp(xi).data)
    torch.testing.assert_close(kept.matrix(), g.matrix())
    torch.testing.assert_close(kept.logdet(), g.logdet())
    assert str(kept.symmetry) == str(g.symmetry)
    again = rng.InnerProduct.from_state(g.space, kept.state())
    assert torch.equal(again.sharp(xi).data, kept.sharp(xi).data)
    undamped = inverted(product())
    assert undamped is not None and not torch.allclose(undamped.sharp(xi).data, kept.sharp(xi).data)


def test_inverses_hold_nothing_of_what_they_were_made_of() -> None:
    g = product()
    matrices = [weakref.ref(f.entries) for f in g.factors]  # type: ignore[attr-defined]
    kept, whole = inverted(damp_factors(g, 0.1, rng.Euclidean(g.space))), None
    del g
    assert kept is not None and all(ref() is None for ref in matrices)
    g = product()
    matrices = [weakref.ref(f.entries) for f in g.factors]  # type: ignore[attr-defined]
    whole = damp_factors(g, 0.1, rng.Euclidean(g.space))
    del g
    assert whole is not None and all(ref() is not None for ref in matrices)


def test_only_forms_of_dense_and_diagonal_parts_have_them() -> None:
    g = product()
    assert inverted(g + 0.1 * g.dual.dual + rng.Euclidean(g.space)) is None
    assert inverted(rng.direct_sum(a=g, b=rng.Euclidean(rng.Space("U", 2)))) is not None
    degenerate = Gram(rng.Space("V", 2), torch.tensor([[1.0, 1.0], [1.0, 1.0]]))
    with pytest.raises(DegenerateMetric, match="DegenerateMetric in inverted"):
        inverted(degenerate)


@pytest.mark.parametrize(
    ("rule", "alone"),
    [(Constant(), True), (QuadraticModel(), True), (KLClip(), False), (TrustRegion(), False)],
    ids=str,
)
def test_the_damped_metric_is_kept_for_rules_that_look_at_it(rule: Any, alone: bool) -> None:
    _, opt = run(4, step_size=rule, damping=0.1, lr=0.1)
    assert opt.memory.damped is not None
    kinds = {type(f) for part in opt.memory.damped.parts.values() for f in part.factors}  # type: ignore[attr-defined]
    assert (kinds == {ByInverse}) == alone and (opt.memory._made_of is None) == alone


def test_metrics_without_inverses_are_kept_as_they_are() -> None:
    for settings in (
        {"metric": EKFAC()},
        {"damping": rng.optim.Tikhonov(0.1)},
        {"metric": rng.Fisher("block-diagonal")},
    ):
        _, opt = run(4, step_size=Constant(), lr=0.1, **{"damping": 0.1, **settings})
        assert opt.steps == 4 and not isinstance(opt.memory.damped, ByInverse)
        assert isinstance(opt.metric, RiemannianMetric)
