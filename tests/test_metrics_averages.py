"""Running averages: their weights, that they keep the natural symmetries, and that they go on from a file."""

import io
from collections.abc import Callable

import pytest
import torch
from networks_zoo import ZOO
from symmetry_data import W, cotangents, inputs, kfac
from torch import Tensor

import riemann_ng as rng
from riemann_ng import Euclidean, InnerProduct, second_moment
from riemann_ng.errors import InvalidSetting, NonFinite, SpaceMismatch
from riemann_ng.inner_products import Kronecker
from riemann_ng.metrics import (
    EKFAC,
    KFAC,
    EuclideanMetric,
    LayerwiseMetric,
    MetricAverage,
    RiemannianMetric,
    RunningAverage,
)
from riemann_ng.networks.observation import LayerObservation, Observation
from riemann_ng.samples import Sample
from riemann_ng.testing import Draw
from riemann_ng.testing.frames import HERE, MOVED, Frames
from riemann_ng.testing.fuzz import element, off


@pytest.fixture(autouse=True)
def _float64() -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)


class DiagonalMetric(LayerwiseMetric):
    def at_layer(self, layer: LayerObservation) -> InnerProduct:
        return second_moment(layer.gradients).diagonal()


def batches(name: str = "mlp", count: int = 4, examples: int = 8) -> list[Observation]:
    make, batch = ZOO[name]
    model = make()
    network = rng.Network.from_torch(model, rng.Gaussian(), batch(examples))
    return [network.observe(batch(examples)) for _ in range(count)]


# --- weights ----------------------------------------------------------------------------------------------------------


def test_corrected_weights_are_those_of_an_average_from_zero_divided_by_their_sum() -> None:
    forms = [inputs(HERE, seed) for seed in range(5)]
    average = RunningAverage(0.9)
    total, weights = torch.zeros(4, 4), 0.0
    for g in forms:
        total, weights = 0.9 * total + 0.1 * g.matrix(), 0.9 * weights + 0.1
        torch.testing.assert_close(average.add(g).matrix(), total / weights)
    assert average.count == 5


def test_growing_weights_are_the_mean_at_first() -> None:
    forms = [inputs(HERE, seed) for seed in range(6)]
    average, total = RunningAverage(0.75, "growing"), torch.zeros(4, 4)
    for k, g in enumerate(forms, start=1):
        keep = min(1 - 1 / k, 0.75)
        total = keep * total + (1 - keep) * g.matrix()
        torch.testing.assert_close(average.add(g).matrix(), total)
        if k <= 4:
            torch.testing.assert_close(total, torch.stack([h.matrix() for h in forms[:k]]).mean(0))


def test_factors_are_averaged_by_themselves() -> None:
    average = RunningAverage(0.5)
    average.add(kfac(HERE, 0))
    g = average.add(kfac(HERE, 5))
    G = (cotangents(HERE, 1).matrix() + 2 * cotangents(HERE, 6).matrix()) / 3
    M = (inputs(HERE, 0).matrix() + 2 * inputs(HERE, 5).matrix()) / 3
    torch.testing.assert_close(g.matrix(), torch.kron(G, M))


def test_no_decay_is_the_last_form_alone() -> None:
    average = RunningAverage(0.0)
    average.add(inputs(HERE, 0))
    torch.testing.assert_close(average.add(inputs(HERE, 1)).matrix(), inputs(HERE, 1).matrix())


def test_a_moment_is_multiplied_out_once_and_its_batch_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    products = []
    moments = Sample._moments
    monkeypatch.setattr(Sample, "_moments", lambda self, *how: products.append(self) or moments(self, *how))
    average = RunningAverage()
    for seed in range(3):
        average.add(inputs(HERE, seed))
    assert len(products) == 3
    assert all(t.shape == (4, 4) for t in average.value.tensors())  # type: ignore[union-attr]


# --- symmetry ---------------------------------------------------------------------------------------------------------


def random_frames(seed: int) -> Frames:
    draw = Draw.seeded(seed)
    maps = {name: element("general", MOVED[name], draw) for name in ("A", "S")}
    return Frames({name: (linear, draw.normal(MOVED[name])) for name, (linear, _) in maps.items()})


def averaged(frames: Frames, start: InnerProduct | None = None) -> InnerProduct:
    average = RunningAverage(0.8)
    if start is not None:  # what many do: an identity matrix as the value before the first
        average.value, average.count = start, 1
    for seed in (0, 3, 6):
        average.add(kfac(frames, seed))
    assert average.value is not None
    return average.value


def seen(g: InnerProduct, frames: Frames) -> Tensor:
    M = frames.on(W)
    return M.mT @ g.matrix() @ M


def test_an_average_of_data_is_data() -> None:
    frames = random_frames(1)
    assert off(seen(averaged(frames), frames), seen(averaged(HERE), HERE)) < 1e-10
    assert averaged(HERE).keeps("A", "affine") and averaged(HERE).keeps("S", "general")


def test_one_that_starts_with_an_identity_matrix_is_not() -> None:
    """The negative control: in no frame but the first one was it the identity."""
    frames = random_frames(1)
    identity = Kronecker([Euclidean(V) for V in W.factors])
    assert off(seen(averaged(frames, identity), frames), seen(averaged(HERE, identity), HERE)) > 1e-2
    g = averaged(HERE, identity)
    assert not g.keeps("A", "translations") and not g.keeps("A", "general") and g.keeps("A", "orthogonal")


# --- metrics ----------------------------------------------------------------------------------------------------------

METRICS: dict[str, Callable[[], RiemannianMetric]] = {
    "K-FAC": KFAC,
    "reduced": lambda: KFAC(sharing="reduce"),
    "EKFAC": EKFAC,
    "diagonal": DiagonalMetric,
    "a sum": lambda: 0.5 * KFAC() + DiagonalMetric(),
    "damped": lambda: KFAC() + 0.1 * EuclideanMetric(),
    "damped factors": lambda: KFAC().damp_factors(0.1),
    "a multiple": lambda: 2 * KFAC(),
}


@pytest.mark.parametrize("name", METRICS)
def test_of_one_batch_over_and_over_it_is_the_metric(name: str) -> None:
    metric, (observation, *_) = METRICS[name](), batches(count=1)
    average = MetricAverage(metric, 0.9)
    for _ in range(3):
        g = average.update(observation)
    torch.testing.assert_close(g.matrix(), metric.at(observation).matrix(), rtol=1e-8, atol=1e-9)
    assert average.count == 3


@pytest.mark.parametrize("name", METRICS)
def test_from_a_file_it_goes_on_bit_for_bit(name: str) -> None:
    metric, observations = METRICS[name](), batches()
    average = MetricAverage(metric, 0.9, "growing")
    for observation in observations[:2]:
        average.update(observation)
    file = io.BytesIO()
    torch.save(average.state(), file)
    file.seek(0)
    restored = MetricAverage(metric)
    restored.load_state(observations[0].space, torch.load(file, weights_only=True))
    for observation in observations[2:]:
        g, h = average.update(observation), restored.update(observation)
        assert torch.equal(g.matrix(), h.matrix())
    assert restored.count == 4 and repr(restored) == repr(average)


def test_factors_are_damped_after_they_were_averaged() -> None:
    one, two, *_ = batches()
    average = MetricAverage(KFAC().damp_factors(0.1), 0.5)
    average.update(one)
    plain = RunningAverage(0.5)
    plain.add(KFAC().at(one))
    expected = rng.damp_factors(plain.add(KFAC().at(two)), 0.1, rng.Euclidean(one.space))
    torch.testing.assert_close(average.update(two).matrix(), expected.matrix())


# --- errors -----------------------------------------------------------------------------------------------------------


def test_what_is_not_finite_is_refused_and_changes_nothing() -> None:
    one, two, *_ = batches()
    average = MetricAverage(KFAC() + DiagonalMetric())
    before = average.update(one).matrix()
    two["2"].inputs.data.mul_(float("nan"))  # type: ignore[union-attr]
    with pytest.raises(NonFinite, match=r"add: in '2' of .* there is NaN or infinity. The average is as it was"):
        average.update(two)
    assert average.count == 1 and torch.equal(average.at(one).matrix(), before)


def test_bad_input() -> None:
    for decay in (1.0, -0.1, float("nan"), True, "0.9"):
        with pytest.raises(InvalidSetting, match=r"decay=.*, expected a number in \[0, 1\)"):
            RunningAverage(decay)  # type: ignore[arg-type]
    with pytest.raises(InvalidSetting, match="schedule='linear', expected 'corrected' or 'growing'"):
        RunningAverage(schedule="linear")  # type: ignore[arg-type]
    with pytest.raises(SpaceMismatch, match="expected an inner product, got"):
        RunningAverage().add(torch.eye(3))  # type: ignore[arg-type]
    average = RunningAverage()
    average.add(kfac(HERE))
    with pytest.raises(SpaceMismatch, match="one space is needed"):
        average.add(inputs(HERE))
    torch.testing.assert_close(average.value.matrix(), kfac(HERE).matrix())  # type: ignore[union-attr]
    (one,) = batches(count=1)
    with pytest.raises(InvalidSetting, match="nothing was averaged yet"):
        MetricAverage(KFAC()).at(one)
    with pytest.raises(InvalidSetting, match="the state is one of 1 terms, the metric has 2"):
        MetricAverage(KFAC() + DiagonalMetric()).load_state(one.space, MetricAverage(KFAC()).state())


def test_repr_is_the_call() -> None:
    assert repr(RunningAverage()) == "RunningAverage(0.95)"
    assert repr(RunningAverage(0.9, "growing")) == "RunningAverage(0.9, schedule='growing')"
    assert repr(MetricAverage(KFAC(), 0.9)) == "MetricAverage(KFAC(), 0.9)"
