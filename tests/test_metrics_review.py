"""Metrics where something vanishes, is large, or is written another way than expected."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import riemann_ng as rng
from riemann_ng import EKFAC, KFAC, EuclideanMetric, natural_gradient, second_moment
from riemann_ng.errors import InvalidSetting, NotAnInnerProduct, UnsupportedLayer
from riemann_ng.inner_products import damp_factors, euclidean_on_translations
from riemann_ng.metrics import RiemannianMetric


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


# --- factors that vanish to rounding ----------------------------------------------------------------------------------


class Attending(nn.Module):
    """Where all tokens are the same, queries and keys do not matter: their gradients are zero up to rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.out(self.attention(x, x, x, need_weights=False)[0].mean(1))
        return h


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_makes_no_step_of_biases(dtype: torch.dtype) -> None:
    """π made of it was 1e8 or 1e17, and biases, which the reference leaves out, had next to no damping."""
    module, x, y = (
        Attending().to(dtype),
        torch.randn(16, 1, 8, dtype=dtype).expand(16, 3, 8),
        torch.randint(0, 3, (16,)),
    )
    network = rng.Network.from_torch(module, rng.Categorical(), x)
    v = natural_gradient(network, KFAC().damp_factors(1e-3), x, y)
    queries_and_keys, values = v.to_parameters()["attention.in_proj_bias"].split([16, 8])
    assert 0 < float(queries_and_keys.abs().max()) < 1e-5 < 1e-2 < float(values.abs().max())


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_small_factors_are_balanced_wherever_the_scale_stands(scale: float) -> None:
    """Only what is lost beside the damping counts as zero, so that a scale may move from one factor to the other."""
    torch.set_default_dtype(torch.float64)
    A, S = rng.AffineSpace("A", 3), rng.Space("S", 2)
    M, G = (torch.randn(9, d) for d in (4, 2))
    left = rng.Gram(S, scale * 1e-9 * G.mT @ G)
    right = rng.Gram(A.hull.dual, 1e-3 / scale * M.mT @ M)
    reference = euclidean_on_translations(S * A.hull.dual)
    damped = damp_factors(left * right, 0.1, reference)
    plain = rng.Gram(S, 1e-9 * G.mT @ G) * rng.Gram(A.hull.dual, 1e-3 * M.mT @ M)
    torch.testing.assert_close(damped.matrix(), damp_factors(plain, 0.1, reference).matrix(), rtol=1e-9, atol=1e-14)


# --- large spaces -----------------------------------------------------------------------------------------------------

TOKENS = 60_000


def words() -> tuple[rng.Network, Tensor, Tensor]:
    embed, out = nn.Embedding(TOKENS, 4), nn.Linear(4, 3)

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = embed, out

        def forward(self, x: Tensor) -> Tensor:
            h: Tensor = self.out(torch.tanh(self.embed(x)).mean(1))
            return h

    x, y = torch.randint(0, TOKENS, (5, 7)), torch.randint(0, 3, (5,))
    return rng.Network.from_torch(Bag(), rng.Categorical(), x), x, y


@pytest.mark.parametrize("split", ["trace", "frobenius", "none"])
def test_reduced_inputs_of_many_tokens_are_damped_without_their_matrix(
    split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, x, y = words()
    refuse_matrices_of(TOKENS, monkeypatch)
    metric = KFAC(sharing="reduce").damp_factors(1e-2, split=split)  # type: ignore[arg-type]
    g, df = metric.at(network.observe(x)), network.differential(x, y)
    torch.testing.assert_close(g.flat(g.sharp(df)).components, df.components, rtol=1e-3, atol=1e-6)


def refuse_matrices_of(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    member_matrices = rng.inner_products.SecondMoment.member_matrices

    def checked(self: rng.inner_products.SecondMoment) -> Tensor:
        assert self.one_hot or self.space.dim < tokens, f"{self!r} was written down"
        return member_matrices(self)

    monkeypatch.setattr(rng.inner_products.SecondMoment, "member_matrices", checked)


def test_sizes_from_rows_are_those_of_the_matrix() -> None:
    torch.set_default_dtype(torch.float64)
    V, few = rng.Space("V", 6), torch.randn(3, 6)
    g = second_moment(rng.Sample(V.dual, few))
    torch.testing.assert_close(g.diagonal_entries(), (few.mT @ few / 3).diagonal())
    for split in ("trace", "frobenius"):
        W = V * rng.Space("U", 2).dual
        other = rng.Gram(rng.Space("U", 2).dual, torch.eye(2))
        by_rows = damp_factors(g * other, 0.1, rng.Euclidean(W), split)  # type: ignore[arg-type]
        by_matrix = damp_factors(rng.Gram(V, few.mT @ few / 3) * other, 0.1, rng.Euclidean(W), split)  # type: ignore[arg-type]
        torch.testing.assert_close(by_rows.matrix(), by_matrix.matrix())


def test_a_frame_of_too_many_tokens_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x, _ = words()
    refuse_matrices_of(TOKENS, monkeypatch)
    with pytest.raises(UnsupportedLayer) as caught:
        EKFAC(sharing="reduce").at(network.observe(x))
    said = str(caught.value)
    assert f"is diagonalized as a matrix [{TOKENS}, {TOKENS}]" in said and "layer 'embed'" in said
    EKFAC().at(network.observe(x))


# --- what a caller may write ------------------------------------------------------------------------------------------


def small() -> tuple[rng.Network, Tensor, Tensor]:
    x, y = torch.randn(9, 4), torch.randint(0, 3, (9,))
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    return rng.Network.from_torch(module, rng.Categorical(), x), x, y


def test_a_reference_for_factors_is_a_metric() -> None:
    network, _, _ = small()
    for reference in (1.0, rng.Euclidean(network.tangent_space)):
        with pytest.raises(InvalidSetting, match=r"InvalidSetting in damp_factors: reference=.*expected a metric"):
            KFAC().damp_factors(0.1, reference)  # type: ignore[arg-type]


def test_numbers_of_other_makers_are_numbers() -> None:
    network, x, y = small()
    plain = natural_gradient(network, KFAC(), x, y, damping=0.125).components
    for damping in (np.float32(0.125), torch.tensor(0.125)):
        assert torch.equal(natural_gradient(network, KFAC(), x, y, damping=damping).components, plain)
        assert repr(damping * KFAC()) == repr(KFAC() * damping) == "0.125 * KFAC()"
        assert repr(KFAC() / damping) == "8 * KFAC()"
    for zero in (0, torch.tensor(0.0)):
        with pytest.raises(NotAnInnerProduct):
            KFAC() / zero  # type: ignore[operator]
    with pytest.raises(InvalidSetting, match="must be positive and finite"):
        natural_gradient(network, KFAC(), x, y, damping=torch.tensor(-1.0))
    with pytest.raises(InvalidSetting, match="damping must be a RiemannianMetric"):
        natural_gradient(network, KFAC(), x, y, damping=torch.ones(2))


def test_labels_of_the_data_need_not_be_said_twice() -> None:
    network, x, y = small()
    metric: RiemannianMetric = KFAC() + 0.1 * EuclideanMetric()
    expected = natural_gradient(network, metric, x, y, estimator=rng.Empirical(y)).components
    assert torch.equal(natural_gradient(network, metric, x, y, estimator=rng.Empirical()).components, expected)
    asked = KFAC(observed=rng.Empirical()) + 0.1 * EuclideanMetric()
    assert torch.equal(natural_gradient(network, asked, x, y).components, expected)
    assert not torch.equal(natural_gradient(network, metric, x, y).components, expected)


def test_the_repr_makes_the_same_metric_again() -> None:
    names = {"KFAC": KFAC, "EuclideanMetric": EuclideanMetric}
    for number in (0.5, 1e-7, 2, 0.123456789, 1 / 3):
        metric = number * KFAC() + KFAC().damp_factors(number, number * EuclideanMetric())
        assert eval(repr(metric), names) == metric
    assert repr(0.5 * KFAC() + KFAC().damp_factors(1e-7, 2 * EuclideanMetric())) == (
        "0.5 * KFAC() + KFAC().damp_factors(1e-07, 2 * EuclideanMetric())"
    )


@pytest.mark.parametrize("structure", ["dense", "matrix-free"])
def test_matrices_of_all_parameters_are_refused_before_they_are_made(structure: str) -> None:
    """In words, and not by the allocator."""
    network, x, y = words()
    metric = rng.Fisher(structure=structure)  # type: ignore[arg-type]
    with pytest.raises(
        rng.RiemannError, match=r"make a matrix of|would be a matrix \[240000, 240000\]|\[240015, 240015\]"
    ):
        natural_gradient(network, metric, x, y, modulo_kernel=EuclideanMetric())
    for kept in (rng.Fisher(), rng.Fisher(structure="block-diagonal")):
        assert natural_gradient(network, kept, x, y, modulo_kernel=EuclideanMetric()).components.isfinite().all()


def test_many_pieces_are_copied_once() -> None:
    """Folding was quadratic in their number while they were fewer than twice the dimension."""
    pieces = [torch.randn(3, 200, dtype=torch.float64) for _ in range(100)]
    copied = []
    cat = torch.cat

    def counting(parts: list[Tensor], *how: int) -> Tensor:
        whole = cat(parts, *how)
        copied.append(len(whole))
        return whole

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "cat", counting)
        folded = rng.factorizations.fold_rows(iter(pieces))
    whole = cat(pieces)
    torch.testing.assert_close(folded, whole)
    assert sum(copied) == len(whole)


@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-8])
def test_groups_stay_coupled_where_the_damping_hides_it(scale: float) -> None:
    """The damping leaves the biases out, and these are coupled however small their block is beside it."""
    module = nn.Sequential(nn.Conv1d(2, 4, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3))
    with torch.no_grad():
        module[3].weight.mul_(scale)  # type: ignore[operator]
    x = torch.randn(40, 2, 4)
    observation = rng.Network.from_torch(module, rng.Gaussian(), x).observe(x)
    damped = rng.Fisher(structure="block-diagonal") + 0.03 * EuclideanMetric(on="translations")
    g = damped.at(observation).restrict("0")
    v = rng.Vector(g.space, torch.randn(g.space.shape))
    assert not g.by_members
    torch.testing.assert_close(g.sharp(g.flat(v)).data, v.data, rtol=1e-3, atol=1e-3)


def test_an_average_of_a_whole_fisher_is_refused_at_the_first_batch() -> None:
    network, x, _ = small()
    for metric in (rng.Fisher(), rng.Fisher(structure="dual") + 0.1 * EuclideanMetric()):
        average = rng.metrics.MetricAverage(metric)
        with pytest.raises(rng.RiemannError, match=r"structure='block-diagonal' or KFAC\(\), or one with"):
            average.update(network.observe(x))
        assert average.count == 0
    last = rng.metrics.MetricAverage(rng.Fisher(), decay=0)
    for _ in range(2):
        g = last.update(network.observe(x))
    assert torch.equal(g.matrix(), rng.Fisher().at(network.observe(x)).matrix()) and last.count == 2


def test_an_average_of_a_vocabulary_squared_is_refused_before_it_is_made() -> None:
    module = nn.Sequential(nn.Embedding(60_000, 4), nn.Linear(4, 3))
    x = torch.randint(0, 60_000, (4, 5))
    network = rng.Network.from_torch(module, rng.Categorical(), x)
    average = rng.metrics.MetricAverage(KFAC(sharing="reduce"))
    with pytest.raises(rng.RiemannError) as caught:
        average.update(network.observe(x))
    said = str(caught.value)
    assert said.startswith("NotClosed in state: second_moment(inputs of 0, reduced of")
    assert "would be kept as a matrix [60000, 60000]" in said and "KFAC(sharing='expand')" in said
    assert average.count == 0
    expand = rng.metrics.MetricAverage(KFAC())
    for _ in range(2):
        expand.update(network.observe(x))
    assert expand.count == 2


def test_a_linearized_batch_is_called_so() -> None:
    network, x, _ = small()
    with pytest.raises(rng.RiemannError) as caught:
        KFAC().at(network.observe(x, rng.Linearized()))
    assert "was observed with Linearized(), and cotangents are asked for" in str(caught.value)
    with pytest.raises(rng.RiemannError, match=r"was observed with InputsOnly\(\), and cotangents"):
        KFAC(sharing="reduce").at(network.observe(x, rng.InputsOnly()))


def test_a_batch_in_another_precision_is_named() -> None:
    module = nn.Sequential(nn.Linear(4, 3)).float()
    x = torch.randn(5, 4, dtype=torch.float64)
    network = rng.Network.from_torch(module, rng.Categorical())
    for call in (
        lambda: rng.Network.from_torch(module, rng.Categorical(), x),
        lambda: network.observe(x),
        lambda: network.observe(x, rng.Linearized()),
        lambda: natural_gradient(network, KFAC(), x, torch.zeros(5, dtype=torch.long)),
    ):
        with pytest.raises(rng.RiemannError) as caught:
            call()  # type: ignore[no-untyped-call]
        assert str(caught.value) == (
            "DtypeMismatch in Network: the batch is in torch.float64, the parameters are in torch.float32. Bring one "
            "to the other: x.to(torch.float32), or module.to(torch.float64) before the network is read."
        )
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):  # anything else is left as torch says it
        network.observe(x.float()[:, :2])
