"""Norms over the parameters of networks: Muon, sign descent, K-FAC's operator norm, and what they claim."""

import math

import pytest
import torch
from networks_zoo import ZOO
from torch import nn

from riemann_ng import Covector, EuclideanMetric, natural_gradient
from riemann_ng.errors import DegenerateMetric, InvalidSetting, SpaceMismatch
from riemann_ng.inner_products import Euclidean
from riemann_ng.likelihoods import Bernoulli, Categorical, Gaussian
from riemann_ng.metrics import EKFAC, KFAC, BlockTridiagonalKFAC, FixedMetric
from riemann_ng.networks import Empirical, Exact, Network
from riemann_ng.norms import (
    ByLayer,
    FromInnerProduct,
    InvalidNorm,
    Max,
    Modular,
    NewtonSchulz,
    Sign,
    Spectral,
    norm_at,
    steepest_ascent,
)
from riemann_ng.optim import SteepestDescent
from riemann_ng.testing import check_invariance, optimizer
from riemann_ng.testing import norm as norm_of

F64 = torch.float64


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    torch.set_default_dtype(F64)
    yield
    torch.set_default_dtype(torch.float32)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def mlp(likelihood=None, outputs=3, bias=True):
    module = nn.Sequential(nn.Linear(4, 5, bias=bias), nn.Tanh(), nn.Linear(5, outputs, bias=bias))
    x = normal(40, 4, seed=1)
    return Network.from_torch(module, likelihood or Bernoulli(), x), x, (normal(40, outputs, seed=2) > 0).double()


def polar(x):
    U, s, Vt = torch.linalg.svd(x, full_matrices=False)
    return U[..., s > 1e-9] @ Vt[..., s > 1e-9, :]


def root(M, power):
    values, vectors = torch.linalg.eigh(M)
    return vectors @ torch.diag(values**power) @ vectors.mT


# A field over the parameters


def test_over_a_network_and_at_a_point():
    network, x, y = mlp()
    df = network.differential(x, y)
    V = network.tangent_space
    assert Spectral().over(network).space == Sign().over(network).space == (2 * Spectral()).over(network).space == V
    with network.observe(x) as seen:
        assert Spectral().at(seen).space == Sign().at(seen).space == V
        there = Spectral(between=KFAC()).at(seen)
        again = (2 * Spectral(between=KFAC())).at(seen)
    assert Spectral(between=KFAC()).metric == KFAC() and Spectral().metric is None
    assert repr(2 * Spectral(between=KFAC())) == "2 * Spectral(between=KFAC())"
    torch.testing.assert_close(again.sharp(df).data, there.sharp(df).data / 2)
    assert set(there.summands()) == set((2 * there).summands()) == {"0", "2"}
    assert set(Sign().over(network).summands()) == set(Modular().over(network).summands()) == {"0", "2"}


def test_steepest_ascent_keeps_its_laws_and_is_the_natural_gradient_of_an_inner_product():
    network, x, y = mlp()
    df = network.differential(x, y)
    for norm in (Spectral(), Sign(), Modular(), Spectral(between=KFAC()), ByLayer({"0": Sign()}, Spectral(KFAC()))):
        v, there = steepest_ascent(network, norm, x, y), norm_at(norm, network, x, y)
        torch.testing.assert_close(there.norm(v), there.dual_norm(df))
        torch.testing.assert_close(df(v), there.dual_norm(df) ** 2)
        unit = steepest_ascent(network, norm, x, y, unit=True)
        torch.testing.assert_close(there.norm(unit), torch.tensor(1.0))
        assert torch.equal(natural_gradient(network, norm, x, y).data, v.data)
    with network.observe(x) as seen:
        g = KFAC().at(seen)
        v = steepest_ascent(network, FromInnerProduct(g), x, y)
    torch.testing.assert_close(v.data, natural_gradient(network, KFAC(), x, y).data)
    empirical = steepest_ascent(network, Spectral(KFAC()), x, y, Empirical())
    assert (empirical.data - steepest_ascent(network, Spectral(KFAC()), x, y).data).abs().max() > 1e-3
    f = natural_gradient(lambda p, x: x @ p["w"], Sign(), x, y, parameters={"w": normal(4, 3)}, likelihood=Bernoulli())
    assert f.to_parameters()["w"].abs().max() == f.to_parameters()["w"].abs().min() > 0


def test_sign_is_sign_descent():
    network, x, y = mlp()
    df = network.differential(x, y)
    v = steepest_ascent(network, Sign(), x, y)
    torch.testing.assert_close(v.data, df.data.sign() * df.data.abs().sum())


# Muon


def newton_schulz(x, steps=5):
    a, b, c = 3.4445, -4.7750, 2.0315
    y = x / x.norm()
    if y.shape[0] > y.shape[1]:
        return newton_schulz(x.mT, steps).mT
    for _ in range(steps):
        m = y @ y.mT
        y = a * y + (b * m + c * m @ m) @ y
    return y


ADJUSTED = {
    "original": lambda m, n: math.sqrt(max(1, m / n)),
    "match_rms_adamw": lambda m, n: 0.2 * math.sqrt(max(m, n)),
    "rms": lambda m, n: math.sqrt(m / n),
    "none": lambda m, n: 1.0,
}


@pytest.mark.parametrize("scale", ADJUSTED)
def test_spectral_over_a_network_is_newton_schulz_layer_by_layer(scale):
    network, x, y = mlp()
    df = network.differential(x, y)
    apart = Spectral(method=NewtonSchulz(), scale=scale, bias="separate").over(network).sharp(df).to_parameters()
    joint = Spectral(scale=scale).over(network).sharp(df)
    grads = df.to_parameters()
    for path in ("0", "2"):
        w, b = grads[f"{path}.weight"], grads[f"{path}.bias"]
        m, n = w.shape
        torch.testing.assert_close(apart[f"{path}.weight"], ADJUSTED[scale](m, n) * newton_schulz(w))
        column = newton_schulz(b[:, None])[:, 0]  # 0.7 or so of the direction: near the sign only
        torch.testing.assert_close(apart[f"{path}.bias"], ADJUSTED[scale](m, 1) * column)
        exact = ADJUSTED[scale](m, n + 1) * polar(torch.cat([w, b[:, None]], 1))
        torch.testing.assert_close(joint[path], exact)
    norm = Spectral(scale=scale).over(network)
    torch.testing.assert_close(norm.norm(norm.sharp(df)), torch.tensor(1.0))


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_the_optimizer_is_torchs_muon_to_its_precision(adjust):
    shapes, steps, lr = [(12, 8), (8, 12), (10, 10)], 6, 0.05
    # what one step differs by is the rounding of five products in bfloat16, 2^-8 each, through slopes of a few
    errors = {}
    for precision in (torch.bfloat16, None):
        ours, theirs = (nn.ModuleList(nn.Linear(n, m, bias=False) for m, n in shapes).float() for _ in range(2))
        theirs.load_state_dict(ours.state_dict())
        muon = torch.optim.Muon(
            theirs.parameters(), lr=lr, momentum=0.9, weight_decay=0.3, nesterov=True, adjust_lr_fn=adjust
        )
        norm = Spectral(method=NewtonSchulz(precision=precision), scale=adjust)
        own = SteepestDescent(ours, Gaussian(), norm, lr=lr, momentum=0.9, weight_decay=0.3)
        start = [p.detach().clone() for p in ours.parameters()]
        exact = [p.double() for p in start]
        buffers = [torch.zeros_like(p) for p in exact]
        for step in range(steps):
            for i, (p, q) in enumerate(zip(ours.parameters(), theirs.parameters(), strict=True)):
                p.grad = normal(*p.shape, seed=10 * step + i).float()
                q.grad = p.grad.clone()
                buffers[i] = 0.9 * buffers[i] + 0.1 * p.grad.double()
                ahead = 0.1 * p.grad.double() + 0.9 * buffers[i]
                exact[i] = exact[i] * (1 - lr * 0.3) - lr * ADJUSTED[adjust](*p.shape) * newton_schulz(ahead)
            own.step()
            muon.step()
        moved = max(float((p - q).abs().max()) for p, q in zip(exact, start, strict=True))

        def off(first, second, moved=moved):
            pairs = zip(first, second, strict=True)
            return max(float((p.double() - q.double()).detach().abs().max()) for p, q in pairs) / moved

        errors[precision] = off(ours.parameters(), exact), off(ours.parameters(), theirs.parameters())
    assert errors[None][0] < 1e-5  # float32 against float64
    assert errors[None][1] < 0.03 and errors[torch.bfloat16][1] < 0.03
    assert errors[torch.bfloat16][0] > 1e-4  # what bfloat16 is


def test_another_scale_is_not_muons():
    network, x, y = mlp(bias=False)
    df = network.differential(x, y)
    one, two = (Spectral(scale=scale).over(network).sharp(df).data for scale in ("none", "match_rms_adamw"))
    assert (one - two).abs().max() > 0.1


def test_products_of_gram_matrices_are_the_same_polynomial_in_single_precision():
    sign = NewtonSchulz()
    assert sign._is_long(64, 256, torch.float32) and not sign._is_long(64, 64, torch.float32)
    assert not NewtonSchulz.cubic()._is_long(64, 256, F64) and not sign._is_long(64, 256, torch.bfloat16)
    U, V = torch.linalg.qr(normal(64, 64))[0], torch.linalg.qr(normal(256, 64))[0]
    for low in (1e-1, 1e-3, 1e-6):
        X = U @ torch.diag(torch.logspace(0, math.log10(low), 64)) @ V.mT
        exact = newton_schulz(X)
        torch.testing.assert_close(sign(X), exact, rtol=0, atol=1e-9)
        by_steps = (sign._step_by_step((X / X.norm()).float()).double() - exact).abs().max()
        assert (sign(X.float()).double() - exact).abs().max() < max(1e-3, 10 * float(by_steps))


# K-FAC's spaces


@pytest.mark.parametrize("method", ["exact", NewtonSchulz.cubic(60)])
def test_between_kfacs_spaces_it_is_the_formula(method):
    network, x, y = mlp()
    df = network.differential(x, y)
    v = norm_at(Spectral(between=KFAC(), method=method), network, x).sharp(df)
    with network.observe(x) as seen:
        for path in ("0", "2"):
            G, A = seen[path].cotangents.moment(), seen[path].inputs.moment()
            expected = root(G, -0.5) @ polar(root(G, -0.5) @ df[path] @ root(A, -0.5)) @ root(A, -0.5)
            torch.testing.assert_close(v[path], expected, rtol=1e-6, atol=1e-6)


ALL = ("general", "translations", "orthogonal")
SIDES = ("activations", "pre-activations")


def spectral_descent(norm, **settings):
    def make(model, likelihood):
        from_start = {"lr": 0.1, "momentum": 0.5, "estimator": None, **settings}
        return SteepestDescent(model, likelihood, norm, **from_start)

    return optimizer(make, f"steepest descent, {norm!r}")


def trained(subject, likelihood=None, outputs=2):
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs))
    x, y = normal(80, 3, seed=3), (normal(80, outputs, seed=4) > 0).double()
    if isinstance(likelihood, Categorical):
        y = y.argmax(-1)
    return check_invariance(
        subject, module, x, y, likelihood=likelihood or Bernoulli(), on=SIDES, groups=ALL, examples=1
    )


def verdicts(report):
    return {key: cell.verdict for key, cell in report.cells.items()}


def test_trajectories_between_kfacs_spaces_are_those_of_affine_twins():
    for norm in (Spectral(KFAC()), Spectral(KFAC(), NewtonSchulz(), scale="rms")):
        report = trained(spectral_descent(norm, estimator=Exact(), every=2))
        assert set(verdicts(report).values()) == {"held"}, str(report)
        assert max(cell.discrepancy for cell in report) < 1e-6
    plain = verdicts(trained(spectral_descent(Spectral())))
    assert plain["activations", "general"] == plain["pre-activations", "general"] == "refuted"
    assert plain["activations", "orthogonal"] == plain["pre-activations", "orthogonal"] == "held"


DAMPED = {
    "Euclidean": (lambda n, x: EuclideanMetric(), {"orthogonal"}),
    "transported": (lambda n, x: FixedMetric(KFAC().at(n.observe(x)), "another batch"), set(ALL)),
}


@pytest.mark.parametrize("reference", DAMPED)
def test_damping_keeps_the_symmetry_of_its_reference_with_fewer_examples_than_units(reference):
    make, kept = DAMPED[reference]
    few, many = normal(3, 6), normal(60, 6, seed=8)
    module = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3))
    subject = norm_of(lambda n: Spectral(KFAC().damp_factors(0.1, make(n, many), "none")))
    report = check_invariance(
        subject, module, few, (normal(3, 3) > 0).double(), likelihood=Bernoulli(), on=SIDES, groups=ALL, examples=1
    )
    for (on, group), cell in report.cells.items():
        expected = group in kept or (on == "pre-activations" and group == "translations")
        assert (cell.verdict == "held") is expected is cell.claimed, (on, group, str(report))


def test_a_kernel_is_refused_or_left_out():
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    x, y = normal(50, 3), normal(50, 3, seed=5).argmax(-1)
    network = Network.from_torch(module, Categorical(), x)
    df = network.differential(x, y)
    with pytest.raises(DegenerateMetric, match=r"(?s)has rank 2 of 3. Three ways out: damp it .* modulo_kernel=h"):
        norm_at(Spectral(KFAC()), network, x).sharp(df)
    norm = norm_at(Spectral(KFAC(), modulo_kernel=EuclideanMetric()), network, x)
    v = norm.sharp(df)
    torch.testing.assert_close(norm.norm(v), torch.tensor(1.0))
    torch.testing.assert_close(df(v), norm.dual_norm(df))
    assert v["2"].sum(0).abs().max() < 1e-12  # the shortest: no part along the kernel
    one = {path: torch.zeros_like(t) for path, t in df.blocks.items()}
    one["2"][:] = 1.0
    with pytest.raises(DegenerateMetric, match=r"a part of 1.* of the covector is on the kernel of"):
        norm.sharp(Covector(network.tangent_space, one))
    with network.observe(x) as seen:
        g = KFAC().at(seen)
        reference = FixedMetric(Euclidean(network.tangent_space))
        same = Spectral(g, modulo_kernel=reference.form).sharp(df)
        fixed = Spectral(KFAC(), modulo_kernel=reference).at(seen).sharp(df)
    torch.testing.assert_close(same.data, v.data)
    torch.testing.assert_close(fixed.data, v.data)
    report = trained(Spectral(KFAC()), Categorical(), outputs=3)  # the suite carries a reference to the twins
    assert set(verdicts(report).values()) == {"held"} and all(cell.claimed for cell in report)


# Claims


CLAIMS = {
    "Muon": Spectral(scale="original", bias="separate"),
    "Muon, bias inside": Spectral(),
    "sign": Sign(),
    "modular": Modular(masses={"0": 2.0}),
    "K-FAC": Spectral(KFAC()),
    "K-FAC, Newton-Schulz": Spectral(KFAC(), NewtonSchulz()),
    "K-FAC, bias apart": Spectral(KFAC(bias="separate")),
    "by layer": ByLayer({"0": Spectral(KFAC())}, otherwise=Sign()),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_what_is_claimed_is_what_is_measured(name):
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = normal(60, 3, seed=3), (normal(60, 2, seed=4) > 0).double()
    report = check_invariance(CLAIMS[name], module, x, y, likelihood=Bernoulli(), examples=1)
    cells = [cell for cell in report if cell.claimed is not None and cell.verdict != "not applicable"]
    assert len(cells) > 20
    wrong = [(c.on, c.group, c.verdict) for c in cells if (c.verdict == "held") is not c.claimed]
    assert wrong == []


# Every parameter


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_parameter_of_every_network_has_a_norm(name):
    make, batch = ZOO[name]
    network = Network.from_torch(make(), Gaussian(), batch(4))
    V = network.tangent_space
    xi = Covector(V, torch.randn(V.dim))
    for norm in (Spectral(bias="separate", scale="original"), Sign(), ByLayer({}, otherwise=Spectral())):
        there = norm.over(network)
        step = there.sharp(xi)
        assert set(there.summands()) == set(network.blocks)
        torch.testing.assert_close(there.norm(step), torch.ones_like(there.norm(step)), rtol=1e-4, atol=1e-4)
        for parameter, moved in step.to_parameters().items():
            assert bool((moved != 0).any()), parameter


def test_by_layer_chooses_by_path():
    network, x, y = mlp()
    df = network.differential(x, y)
    v = ByLayer({"2": Sign(), "*": Spectral()}).over(network).sharp(df)
    torch.testing.assert_close(v["2"], df["2"].sign())
    torch.testing.assert_close(v["0"], polar(df["0"]))
    assert repr(ByLayer({"2": Sign()}, Spectral())) == "ByLayer({'2': Sign()}, otherwise=Spectral())"
    assert isinstance(ByLayer({"2": Sign()}, Spectral(KFAC())).at(network.observe(x)), Max)
    assert ByLayer({"2": Sign()}, Spectral(KFAC())).with_forms(lambda g: g).metric == KFAC()


NETWORK = Network.from_torch(nn.Linear(2, 3, dtype=F64), Gaussian(), name="n")
ONE = Covector(NETWORK.tangent_space, torch.ones(9, dtype=F64))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: Spectral(KFAC()).sharp(ONE),
            InvalidNorm,
            r"is a norm at every point.*norm.at\(network.observe\(x\)\)",
        ),
        (lambda: Spectral(KFAC()).symmetry, InvalidNorm, r"norm.at\(observation\).symmetry"),
        (lambda: Spectral(KFAC).sharp(ONE), InvalidNorm, r"or a metric of such values, as KFAC\(\), got"),
        (
            lambda: Spectral(scale="muon"),
            InvalidNorm,
            "scale is one of none, original, match_rms_adamw, rms, got 'muon'",
        ),
        (lambda: Spectral(bias="none"), InvalidNorm, "bias is 'joint' or 'separate', got 'none'"),
        (lambda: Spectral(KFAC(), bias="separate"), InvalidNorm, r"Spectral\(between=KFAC\(bias='separate'\)\)"),
        (lambda: Spectral(modulo_kernel=EuclideanMetric()), InvalidNorm, "modulo_kernel without between"),
        (lambda: Spectral(KFAC(), modulo_kernel=1.0), InvalidNorm, "or a metric as EuclideanMetric.., got float 1.0"),
        (
            lambda: norm_at(Spectral(KFAC(), modulo_kernel=KFAC()), NETWORK, normal(9, 2)).sharp(ONE),
            InvalidNorm,
            r"modulo_kernel is an inner product on .*, or EuclideanMetric\(\), or a FixedMetric, got KFAC\(\)",
        ),
        (lambda: norm_at(Spectral(EKFAC()), NETWORK, normal(9, 2)), InvalidNorm, "is no product of two"),
        (lambda: norm_at(KFAC(), NETWORK, None), InvalidNorm, r"expected a norm, as norms.Spectral\(\), got KFAC"),
        (lambda: norm_at(Sign, NETWORK, None), InvalidNorm, r"an instance, with brackets: Sign\(\)"),
        (lambda: ByLayer({}), InvalidNorm, r"expected a norm that takes any layer, .*, got none"),
        (
            lambda: norm_at(Spectral(KFAC() + 0.1 * EuclideanMetric()), NETWORK, normal(9, 2)),
            InvalidNorm,
            r"is no product of two inner products. Damp its factors, not the product: damp_factors",
        ),
        (lambda: ByLayer({"0": KFAC()}), InvalidNorm, r"expected a norm that takes any layer, .*, got KFAC"),
        (
            lambda: ByLayer({"0": Spectral(KFAC())}, Spectral(KFAC(sharing="reduce"))),
            InvalidNorm,
            "norms of 2 metrics, .* Give them the same metric",
        ),
        (
            lambda: ByLayer({"self": Sign(), "fc": Sign()}).over(NETWORK),
            InvalidNorm,
            "no layer is called 'fc'. There are",
        ),
        (lambda: ByLayer({"f": Sign()}).over(NETWORK), InvalidNorm, "fits the layer 'self'. Add one, or otherwise"),
        (
            lambda: ByLayer({"*": Sign()}).on(NETWORK.tangent_space["self"]),
            SpaceMismatch,
            "needs a direct sum of layers",
        ),
        (lambda: NewtonSchulz(precision="bfloat16"), InvalidSetting, "precision is a floating-point dtype"),
        (
            lambda: natural_gradient(NETWORK, Sign(), normal(9, 2), normal(9, 3), damping=1.0),
            InvalidSetting,
            "a norm with solver, damping or modulo_kernel. These are of the metric that it is made of",
        ),
        (lambda: Modular().sharp(ONE), InvalidNorm, r"is made of the network's module.*norm.over\(network\)"),
        (lambda: Modular().at(NETWORK.observe(normal(9, 2))), InvalidNorm, r"norm.over\(network\)"),
        (lambda: Modular().symmetry, InvalidNorm, "symmetry"),
        (lambda: Modular(masses={"weight": 0.0}), InvalidNorm, "the mass of 'weight' must be a positive finite number"),
        (lambda: Modular(masses={"fc": 1.0}).over(NETWORK), InvalidNorm, "no parameter or module is called so"),
        (
            lambda: Modular(slopes={"fc": 1.0}).over(NETWORK),
            InvalidNorm,
            "and no module, or method that is called, has this",
        ),
    ],
)
def test_bad_input_is_refused_with_the_reason_and_the_fix(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_a_metric_that_couples_layers_has_no_matrices():
    network, x, _ = mlp()
    with pytest.raises(InvalidNorm, match="couples the summands"):
        norm_at(Spectral(BlockTridiagonalKFAC()), network, x)
    with pytest.raises(InvalidNorm, match=r"couples the layers of .* Use a metric without terms"):
        norm_at(ByLayer({"0": Sign()}, Spectral(BlockTridiagonalKFAC())), network, x)
