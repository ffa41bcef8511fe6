"""Damped metrics: exactly, factor by factor, and by which reference; against dense matrices, and in moved frames."""

from collections.abc import Callable

import pytest
import torch
from networks_zoo import ZOO
from symmetry_data import W, cotangents, inputs, kfac, points
from torch import Tensor, nn

import riemann_ng as rng
from riemann_ng import (
    Covector,
    Diagonal,
    DirectSum,
    Euclidean,
    Family,
    Gram,
    InnerProduct,
    Pullback,
    Sample,
    Space,
    damp_factors,
    euclidean_on_translations,
    second_moment,
)
from riemann_ng.errors import DegenerateMetric
from riemann_ng.factorizations import CentredFactor, MatrixFactor
from riemann_ng.inner_products import EuclideanOnTranslations, made_ready
from riemann_ng.linear_maps import LinearMap
from riemann_ng.metrics import KFAC, EuclideanMetric, FixedMetric, LayerwiseMetric
from riemann_ng.metrics.base import Split
from riemann_ng.networks.observation import LayerObservation
from riemann_ng.testing import Draw
from riemann_ng.testing.frames import HERE, MOVED, A, Frames
from riemann_ng.testing.fuzz import element, off

DOUBLE = torch.float64
SPLITS: list[Split] = ["trace", "frobenius", "none"]


@pytest.fixture(autouse=True)
def _float64() -> None:
    torch.set_default_dtype(DOUBLE)
    torch.manual_seed(0)


def observed(name: str, examples: int = 7) -> rng.networks.Observation:
    make, batch = ZOO[name]
    model, x = make(), batch(examples)
    return rng.Network.from_torch(model, rng.Gaussian(), x).observe(x)


def random_covector(g: InnerProduct) -> Covector:
    return Covector(g.space, torch.randn(g.space.shape))


# --- every model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_exact_damping_of_every_model(name: str) -> None:
    observation = observed(name)
    g = (KFAC() + 0.3 * EuclideanMetric()).at(observation)
    dense = KFAC().at(observation).matrix() + 0.3 * torch.eye(g.space.dim)
    xi = random_covector(g)
    torch.testing.assert_close(g.matrix(), dense)
    torch.testing.assert_close(g.sharp(xi).components, torch.linalg.solve(dense, xi.components), rtol=1e-9, atol=1e-9)


def relative_sizes(M: Tensor, h: Tensor) -> Tensor:
    """Eigenvalues relative to a form: by a Schur complement where it vanishes on the last component, the constants."""
    if not h[-1].any():
        M, h = M[:-1, :-1] - torch.outer(M[:-1, -1], M[-1, :-1]) / M[-1, -1], h[:-1, :-1]
    return torch.linalg.eigvals(torch.linalg.solve(h, M)).real


def balanced(of_A: Tensor, of_G: Tensor, damping: float, split: Split) -> float:
    """π from the eigenvalues of both; of what is left of zero in rounding it is one."""
    a, g = ((x.mean() if split == "trace" else x.square().mean().sqrt()) for x in (of_A, of_G))
    return float((a / g).sqrt()) if a * g > 2.3e-16 * damping else 1.0


def by_hand(G: Tensor, A: Tensor, h_S: Tensor, h_A: Tensor, damping: float, split: Split) -> Tensor:
    pi = 1.0
    if split != "none":
        pi = balanced(relative_sizes(A, h_A), relative_sizes(G, h_S), damping, split)
    left, right = G + damping**0.5 / pi * h_S, A + damping**0.5 * pi * h_A
    return torch.einsum("ij,kl->ikjl", left, right).reshape(len(G) * len(A), -1)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ZOO)
def test_factored_damping_of_every_model_with_nothing_else_said(name: str, split: Split) -> None:
    observation = observed(name)
    plain, g = KFAC().at(observation), KFAC().damp_factors(0.3, split=split).at(observation)
    for path, part in g.summands().items():  # type: ignore[union-attr]
        factors = plain.restrict(path).factors  # type: ignore[attr-defined]
        if isinstance(part.space, Family):
            continue  # below
        G, M = (f.matrix() for f in factors)
        h_S, h_A = (torch.eye(f.space.dim) for f in factors)
        one_input = len(M) == 1 and not factors[1].space.bases
        expected = torch.kron(G, M) + 0.3 * torch.eye(len(G)) if one_input else by_hand(G, M, h_S, h_A, 0.3, split)
        torch.testing.assert_close(part.matrix(), expected)
    xi = random_covector(g)
    expected = torch.linalg.solve(g.matrix(), xi.components)
    torch.testing.assert_close(g.sharp(xi).components, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(made_ready(g).sharp(xi).components, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("split", ["trace", "frobenius"])
def test_of_a_family_the_sizes_are_means_over_its_members(split: Split) -> None:
    observation, translations = observed("conv1d"), EuclideanMetric(on="translations")
    part = KFAC().damp_factors(0.3, translations, split=split).at(observation).restrict("0")
    G, M = (f.dense_blocks() for f in KFAC().at(observation).restrict("0").factors)  # type: ignore[attr-defined]
    h = torch.diag(torch.tensor([1.0] * 3 + [0.0]))
    of_A = torch.cat([relative_sizes(one, h) for one in M])
    of_G = torch.cat([relative_sizes(one, torch.eye(1)) for one in G])
    assert float(of_A.mean() * of_G.mean()) > 1e-3
    pi = balanced(of_A, of_G, 0.3, split)
    left, right = G + 0.3**0.5 / pi * torch.eye(1), M + 0.3**0.5 * pi * h
    torch.testing.assert_close(
        part.matrix(), torch.block_diag(*(torch.kron(a, b) for a, b in zip(left, right, strict=True)))
    )


class Mixed(LayerwiseMetric):
    """Products in one layer, and forms that are none in the others."""

    def at_layer(self, layer: LayerObservation) -> InnerProduct:
        if layer.path == "0":
            return second_moment(layer.cotangents) * second_moment(layer.inputs)
        return second_moment(layer.gradients)


def test_what_is_no_product_is_damped_exactly() -> None:
    observation = observed("mlp")
    g = Mixed().damp_factors(0.3).at(observation)
    one, two = g.summands()["0"], g.summands()["2"]  # type: ignore[index]
    torch.testing.assert_close(one.matrix(), KFAC().damp_factors(0.3).at(observation).restrict("0").matrix())
    torch.testing.assert_close(two.matrix(), Mixed().at(observation).restrict("2").matrix() + 0.3 * torch.eye(15))


def test_a_dead_layer_is_damped_with_an_equal_split() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(5, 3)
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    observation = rng.Network.from_torch(model, rng.Gaussian(), x).observe(x)
    g = KFAC().damp_factors(0.04, EuclideanMetric(on="translations")).at(observation)
    M = x.new_ones(5, 1)
    points_of_0 = torch.cat([x, M], 1)
    E, flat = torch.eye(4), torch.diag(torch.tensor([1.0, 1, 1, 0]))
    torch.testing.assert_close(
        g.restrict("0").matrix(), torch.kron(0.2 * E, points_of_0.mT @ points_of_0 / 5 + 0.2 * flat)
    )
    last = torch.diag(torch.tensor([0.2] * 4 + [1.0]))  # its inputs never vary
    torch.testing.assert_close(g.restrict("2").matrix(), torch.kron(1.2 * torch.eye(2), last))
    assert bool(g.sharp(random_covector(g)).data.isfinite().all())


def test_inputs_that_do_not_vary_have_no_size() -> None:
    """Far from the origin their covariance is rounding, which π must not be made of."""
    far = torch.tensor([1e3, -2e3, 5e2, 1.0]).expand(6, 4)
    still = cotangents(HERE) * second_moment(Sample(A.hull, far))
    left, right = damp_factors(still, 0.04, euclidean_on_translations(W)).factors  # type: ignore[attr-defined]
    torch.testing.assert_close(left.matrix() - cotangents(HERE).matrix(), 0.2 * torch.eye(4))
    assert float(right.terms[-1].scalar) == pytest.approx(0.2)


# --- the Euclidean form on the translations ---------------------------------------------------------------------------


def test_damping_by_it_adds_to_the_diagonal() -> None:
    """It is diagonal, of any dtype, and solved as a product of Cholesky factors; nothing is multiplied out."""
    h = euclidean_on_translations(W)
    assert isinstance(h, EuclideanOnTranslations) and h.dtype is None
    assert h.structure.kind == "diagonal" and h.structure.rank == 12
    for dtype in (torch.float32, DOUBLE):
        v = rng.Vector(W, torch.randn(W.shape, dtype=dtype))
        assert h.flat(v).data.dtype == dtype
    assert (2 * h + h).expression() == f"3 * {h.expression()}"
    damped = inputs(HERE) + 0.1 * euclidean_on_translations(A.hull.dual)
    assert isinstance(damped.factorization(), CentredFactor)
    network = DirectSum({"layer": W, "bare": Space("V", 3)})
    parts = euclidean_on_translations(network).summands()
    assert parts is not None and isinstance(parts["bare"], Euclidean)


def test_alone_it_is_degenerate_and_solves_what_does_not_touch_a_bias() -> None:
    h, xi = euclidean_on_translations(W), torch.randn(W.shape)
    with pytest.raises(DegenerateMetric) as caught:
        h.sharp(Covector(W, xi))
    assert caught.value.rank == 12
    xi[:, -1] = 0
    assert torch.equal(h.sharp(Covector(W, xi)).data, xi)


def test_in_single_precision_a_far_origin_does_no_harm() -> None:
    """In its own coordinates the form is singular to rounding; seen from the mean of the inputs it is not."""
    torch.set_default_dtype(torch.float32)
    x = torch.cat([torch.rand(2000, 300), torch.ones(2000, 1)], 1)
    form = second_moment(Sample(rng.AffineSpace("far", 300).hull, x))
    damped = form + 1e-2 * euclidean_on_translations(form.space)
    xi = random_covector(damped)
    exact = torch.linalg.solve(damped.matrix().double(), xi.data.double())
    torch.testing.assert_close(damped.sharp(xi).data.double(), exact, rtol=1e-3, atol=1e-3 * float(exact.abs().max()))
    torch.testing.assert_close(
        made_ready(damped).sharp(xi).data.double(), exact, rtol=1e-3, atol=1e-3 * float(exact.abs().max())
    )


def centred_factors(members: int) -> tuple[InnerProduct, Tensor]:
    draw, space = Draw.seeded(4), A.hull.dual
    M = draw.positive(4, members)
    g = Gram(Family(space, members), M) if members > 1 else Gram(space, M[0])
    damped = g + 0.2 * euclidean_on_translations(g.space)
    return damped, torch.block_diag(*(M + 0.2 * torch.diag(torch.tensor([1.0, 1, 1, 0]))))


@pytest.mark.parametrize("ready", [False, True])
@pytest.mark.parametrize("members", [1, 3])
def test_seen_from_the_mean_it_is_the_same_form(members: int, ready: bool) -> None:
    g, M = centred_factors(members)
    if ready:
        made_ready(g)
    assert isinstance(g.factorization(), MatrixFactor if ready else CentredFactor)
    X = torch.randn(5, len(M))
    torch.testing.assert_close(g.factorization().solve(X), torch.linalg.solve(M, X.mT).mT)
    torch.testing.assert_close(g.factorization().solve_columns(X.mT), torch.linalg.solve(M, X.mT))
    E = g.frame().matrix(M)
    torch.testing.assert_close(E @ E.mT, torch.linalg.inv(M))
    torch.testing.assert_close(g.frame().transpose.matrix(M), E.mT)
    torch.testing.assert_close(g.logdet(), torch.linalg.slogdet(M)[1])


def test_a_degenerate_one_knows_its_rank() -> None:
    few = second_moment(Sample(A.hull, points(2, 0)))
    g = few + 0.1 * Diagonal(A.hull.dual, torch.tensor([1.0, 0, 0, 0]))
    with pytest.raises(DegenerateMetric) as caught:
        g.sharp(random_covector(g))
    assert caught.value.rank == 3


# --- many solves ------------------------------------------------------------------------------------------------------


def test_made_ready_solves_by_products() -> None:
    g = damp_factors(cotangents(HERE) * inputs(HERE), 0.1, Euclidean(W))
    xi = random_covector(g)
    before, frame = g.sharp(xi), g.frame().matrix()
    assert made_ready(g) is g
    factors = g.factorization().factors  # type: ignore[attr-defined]
    assert isinstance(factors[0], MatrixFactor)
    torch.testing.assert_close(g.sharp(xi).data, before.data)
    torch.testing.assert_close(g.frame().matrix() @ g.frame().matrix().mT, frame @ frame.mT)
    matrices = Gram(Family(Space("V", 3), 2), Draw.seeded(0).positive(3, 2))
    y = random_covector(matrices)
    expected = matrices.sharp(y).data
    torch.testing.assert_close(made_ready(matrices).sharp(y).data, expected)


def test_what_was_made_ready_is_made_anew_after_a_change() -> None:
    M = Draw.seeded(0).positive(3)
    g = made_ready(Gram(Space("V", 3), M))
    M.mul_(2)
    xi = random_covector(g)
    torch.testing.assert_close(g.sharp(xi).data, torch.linalg.solve(M, xi.data))


# --- natural references -----------------------------------------------------------------------------------------------


def random_frames(seed: int) -> Frames:
    draw = Draw.seeded(seed)
    maps = {name: element("general", MOVED[name], draw) for name in ("A", "S")}
    return Frames({name: (linear, draw.normal(MOVED[name])) for name, (linear, _) in maps.items()})


def step(g: InnerProduct, frames: Frames) -> Tensor:
    """The step of one covector of the layer, seen where the numbers were drawn."""
    xi = Draw.seeded(9).normal(*W.shape)
    v = g.sharp(Covector(W, frames.moved(W.dual, xi.reshape(-1)).reshape(W.shape)))
    return torch.linalg.solve(frames.on(W), v.components)


def balanced_by_coordinates(f: Frames) -> InnerProduct:
    """Transported references with the usual π, made of traces in the coordinates."""
    G, M, first = cotangents(f), inputs(f), kfac(f, 10)
    pi = float((M.diagonal_entries().mean() / G.diagonal_entries().mean()).sqrt())
    h_S, h_A = first.factors  # type: ignore[attr-defined]
    return (G + 0.3**0.5 / pi * h_S) * (M + 0.3**0.5 * pi * h_A)


def centred_reference(f: Frames) -> InnerProduct:
    """Of data, and without the constants: the covariance of an earlier batch."""
    linear_part = LinearMap.translations(A).transpose
    x = f.moved(A.hull, points(24, 30))[:, :-1]
    return cotangents(f, 11) * Pullback(linear_part, second_moment(Sample(A.translations, x - x.mean(0))))


AFFINE: dict[str, Callable[[Frames], InnerProduct]] = {
    "undamped": kfac,
    "exact": lambda f: kfac(f) + 0.3 * kfac(f, 10),
    **{
        f"{kind}, {split}": lambda f, split=split, of=of: damp_factors(kfac(f), 0.3, of(f), split)
        for split in SPLITS
        for kind, of in (("transported", lambda f: kfac(f, 10)), ("transported, centred", centred_reference))
    },
}  # fmt: skip
NOT_AFFINE: dict[str, Callable[[Frames], InnerProduct]] = {
    "exact, Euclidean": lambda f: kfac(f) + 0.3 * Euclidean(W),
    "on translations": lambda f: damp_factors(kfac(f), 0.3, euclidean_on_translations(W)),
    "transported, π from coordinates": balanced_by_coordinates,
}


@pytest.mark.parametrize("name", AFFINE)
def test_transported_references_keep_affine_frames(name: str) -> None:
    frames = random_frames(5)
    assert off(step(AFFINE[name](frames), frames), step(AFFINE[name](HERE), HERE)) < 1e-9
    assert AFFINE[name](HERE).keeps("A", "affine") and AFFINE[name](HERE).keeps("S", "general")


@pytest.mark.parametrize("name", NOT_AFFINE)
def test_constants_do_not_and_a_balance_by_coordinates_neither(name: str) -> None:
    frames = random_frames(5)
    assert off(step(NOT_AFFINE[name](frames), frames), step(NOT_AFFINE[name](HERE), HERE)) > 1e-2


@pytest.mark.parametrize("split", SPLITS)
def test_by_default_translations_and_rotations_are_kept(split: Split) -> None:
    """Far away, too; with the origin in the reference they are lost."""
    draw = Draw.seeded(6)
    rotation, shift = torch.linalg.qr(draw.normal(3, 3))[0], 50 * draw.normal(3)
    frames = Frames({"A": (rotation, shift)})
    natural, at_origin = (
        lambda f, h=h: damp_factors(kfac(f), 0.3, h, split) for h in (euclidean_on_translations(W), Euclidean(W))
    )
    assert natural(HERE).keeps("A", "isometries") and not at_origin(HERE).keeps("A", "translations")
    assert off(step(natural(frames), frames), step(natural(HERE), HERE)) < 1e-8
    assert off(step(at_origin(frames), frames), step(at_origin(HERE), HERE)) > 1e-2


def test_a_fixed_metric_of_the_start_is_a_reference() -> None:
    make, batch = ZOO["mlp"]
    model, x, later = make(), batch(20), batch(20)
    network = rng.Network.from_torch(model, rng.Gaussian(), x)
    start = FixedMetric(KFAC().at(network.observe(x)), name="start")
    observation = network.observe(later)
    exact, factored = KFAC() + 0.1 * start, KFAC().damp_factors(0.1, start)
    assert repr(factored) == "KFAC().damp_factors(0.1, FixedMetric(start))"
    dense = KFAC().at(observation).matrix() + 0.1 * start.at(observation).matrix()
    xi = random_covector(exact.at(observation))
    solved = exact.at(observation).sharp(xi).components
    torch.testing.assert_close(solved, torch.linalg.solve(dense, xi.components), rtol=1e-8, atol=1e-8)
    for g in (exact.at(observation), factored.at(observation)):
        for base in g.space.bases:
            assert g.keeps(base, "affine")


# --- λ ----------------------------------------------------------------------------------------------------------------


def test_damping_may_be_a_tensor_and_is_differentiated_through() -> None:
    damping = torch.tensor(0.3, requires_grad=True)
    g = damp_factors(kfac(HERE), damping, euclidean_on_translations(W))
    torch.testing.assert_close(g.matrix(), damp_factors(kfac(HERE), 0.3, euclidean_on_translations(W)).matrix())
    (slope,) = torch.autograd.grad(g.logdet(), damping)
    logdets = [damp_factors(kfac(HERE), 0.3 + e, euclidean_on_translations(W)).logdet() for e in (1e-6, -1e-6)]
    assert float(slope) == pytest.approx(float((logdets[0] - logdets[1]) / 2e-6), rel=1e-6)
