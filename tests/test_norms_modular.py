"""The algebra of modular norms, against the slopes of real networks, brute force and the published formulas."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.functional import jvp
from torch.nn.functional import conv2d

from riemann_ng import Covector, DirectSum, Family, Hom, Space, Vector
from riemann_ng.errors import SpaceMismatch
from riemann_ng.norms import Bond, Conv, Embed, InvalidNorm, Linear, Max, ModularNorm, NewtonSchulz, Sign, concatenate

F64 = torch.float64
X, H, Y, T = Space("X", 3), Space("H", 5), Space("Y", 4), Space("tokens", 6)
FEW = settings.default.max_examples // 4


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def polar(x: Tensor) -> Tensor:
    U, _, Vt = torch.linalg.svd(x, full_matrices=False)
    return U @ Vt


def rms(x: Tensor, dim: int = -1) -> Tensor:
    return x.square().mean(dim).sqrt()


# Atoms


def test_linear_is_the_operator_norm_of_root_mean_squares():
    atom, g = Linear("fc", Hom(X, Y), mass=3.0), normal(4, 3)
    assert (atom.mass, atom.sensitivity, atom.space) == (3.0, 1.0, DirectSum({"fc": Hom(X, Y)}))
    step = atom.sharp(Covector(atom.space, {"fc": g}))["fc"]
    torch.testing.assert_close(step, (4 / 3) ** 0.5 * polar(g))
    inputs = normal(3, 2000)
    gains = rms(g @ inputs, 0) / rms(inputs, 0)
    norm = atom.norm(Vector(atom.space, {"fc": g}))
    assert 0.98 * norm < gains.max() <= norm
    fast = Linear("fc", Hom(X, Y), method=NewtonSchulz.cubic()).sharp(Covector(atom.space, {"fc": g}))["fc"]
    torch.testing.assert_close(fast, step)


def test_embed_brings_every_column_to_root_mean_square_one():
    atom, g = Embed("table", Hom(T, Y)), normal(4, 6)
    step = atom.sharp(Covector(atom.space, {"table": g}))["table"]
    torch.testing.assert_close(step, g / rms(g, 0))
    torch.testing.assert_close(atom.norm(Vector(atom.space, {"table": g})), rms(g, 0).max())
    g[:, 2] = 0  # a token that was not seen does not move
    assert torch.equal(atom.sharp(Covector(atom.space, {"table": g}))["table"][:, 2], torch.zeros(4, dtype=F64))


@pytest.mark.parametrize("last", [True, False])
def test_conv_takes_tap_by_tap_and_bounds_a_real_convolution(last: bool):
    taps = Space("taps", 9)
    space = Y * X.dual * taps if last else Y * taps * X.dual
    atom = Conv("conv", space, taps)
    g = normal(4, 3, 9)
    given_as = g if last else g.movedim(-1, 1).contiguous()
    step = atom.sharp(Covector(atom.space, {"conv": given_as}))["conv"]
    step = step if last else step.movedim(1, -1)
    for t in range(9):
        torch.testing.assert_close(step[..., t], (4 / 3) ** 0.5 * polar(g[..., t]) / 9)
    image = normal(50, 3, 5, 5)
    image = image / rms(image, 1)[:, None]
    change = conv2d(image, step.reshape(4, 3, 3, 3))
    assert rms(change, 1).max() <= 1 + 1e-12


def test_grouped_convolutions_and_families_of_maps():
    taps = Space("taps", 2)
    atom = Conv("conv", Family(Y * X.dual * taps, 2), taps)
    g = normal(2, 4, 3, 2)
    step = atom.sharp(Covector(atom.space, {"conv": g}))["conv"]
    torch.testing.assert_close(step[1, :, :, 0], (4 / 3) ** 0.5 * polar(g[1, :, :, 0]) / 2)
    heads = Linear("heads", Family(Hom(X, Y), 2))
    step = heads.sharp(Covector(heads.space, {"heads": g[..., 0]}))["heads"]
    torch.testing.assert_close(step[1], (4 / 3) ** 0.5 * polar(g[1, ..., 0]))


# The rules


def chain(s1: float = 1.0, s2: float = 1.0, m1: float = 1.0, m2: float = 1.0) -> tuple[ModularNorm, ModularNorm]:
    first = ModularNorm.atom("1", Sign(X), m1, s1)
    return first, ModularNorm.atom("2", Sign(Y), m2, s2)


positive = st.floats(0.1, 10)


@given(s1=positive, s2=positive, m1=positive, m2=positive, c=positive)
@settings(max_examples=FEW)
def test_the_rules_as_published(s1: float, s2: float, m1: float, m2: float, c: float):
    first, second = chain(s1, s2, m1, m2)
    n1, n2 = 2.0, 0.5  # the sizes of the two parts of v, by ℓ∞
    v = {"1": torch.tensor([2.0, 0, -1], dtype=F64), "2": torch.tensor([0.5, 0, 0, -0.2], dtype=F64)}
    composed, side, multiple = second @ first, concatenate(first, second), -c * first
    norm = float(composed.norm(Vector(composed.space, v)))
    assert norm == pytest.approx(max(s2 * (m1 + m2) / m1 * n1, (m1 + m2) / m2 * n2))
    assert (composed.mass, composed.sensitivity) == pytest.approx((m1 + m2, s1 * s2))
    norm = float(side.norm(Vector(side.space, v)))
    assert norm == pytest.approx(max((m1 + m2) / m1 * n1, (m1 + m2) / m2 * n2))
    assert (side.mass, side.sensitivity) == pytest.approx((m1 + m2, s1 + s2))
    assert float(multiple.norm(Vector(multiple.space, {"1": v["1"]}))) == pytest.approx(c * n1)
    assert (multiple.mass, multiple.sensitivity) == pytest.approx((m1, c * s1))
    added = first + second
    assert (added.factors, added.mass, added.sensitivity) == (side.factors, side.mass, side.sensitivity)


@given(st.lists(st.tuples(positive, positive), min_size=3, max_size=3), positive)
@settings(max_examples=FEW)
def test_the_algebra_is_associative_and_bonds_are_maps_without_weights(numbers: list[tuple[float, float]], c: float):
    f, g, h = (ModularNorm.atom(name, Sign(X), m, s) for name, (m, s) in zip("fgh", numbers, strict=True))

    def same(a: ModularNorm, b: ModularNorm) -> bool:
        close = [a.factors[k] == pytest.approx(b.factors[k]) for k in a.factors]
        return all(close) and a.space == b.space and (a.mass, a.sensitivity) == pytest.approx((b.mass, b.sensitivity))

    assert same((f @ g) @ h, f @ (g @ h))
    assert same(concatenate(concatenate(f, g), h), concatenate(f, g, h))
    assert same(c * (f @ g), (c * f) @ g)
    assert same(Bond(c) @ f, c * f)
    assert same(Bond() @ f @ Bond(), f)
    assert not same(f @ Bond(2.0), f)  # the norm is the same, the sensitivity is not
    assert (f @ Bond(2.0)).factors == f.factors
    assert (f + Bond()).factors == f.factors and (f + Bond()).sensitivity == pytest.approx(f.sensitivity + 1)
    assert not same(f @ (2 * g), 2 * (f @ g))  # a multiple inside does not reach the weights outside
    whole = f @ (g + h)
    shares = {k: whole.budgets[k] for k in whole.budgets}
    m = whole.mass
    assert shares["f"] == pytest.approx(f.mass / m)
    assert shares["g"] * f.sensitivity == pytest.approx(g.mass / m)
    assert same(
        (f @ g).with_mass(c) @ h,
        f.with_mass(c * f.mass / (f.mass + g.mass)) @ g.with_mass(c * g.mass / (f.mass + g.mass)) @ h,
    )


# Against real networks


def slope(f: Callable[[dict[str, Tensor]], Tensor], w: dict[str, Tensor], along: dict[str, Tensor]) -> Tensor:
    """The derivative of f at w along a direction."""
    change: Tensor = jvp(lambda *t: f(dict(zip(w, t, strict=True))), tuple(w.values()), tuple(along[k] for k in w))[1]
    return change


def residual(masses: tuple[float, float, float] = (1.0, 2.0, 0.5), stream: float = 0.5) -> ModularNorm:
    """x ↦ 2 W₃ (c h + ½ tanh(W₂ h)) with h = W₁ x. With c = ½ nothing inside exceeds the size 1."""
    block = Bond(stream) + 0.5 * (Bond() @ Linear("2", Hom(H, H), masses[1]))
    return 2 * (Linear("3", Hom(H, Y), masses[2]) @ block @ Linear("1", Hom(X, H), masses[0]))


def network(w: dict[str, Tensor], x: Tensor, stream: float = 0.5) -> Tensor:
    h = x @ w["1"].mT
    return 2 * (stream * h + 0.5 * torch.tanh(h @ w["2"].mT)) @ w["3"].mT


def unit_weights(seed: int) -> dict[str, Tensor]:
    sides = {"1": (5, 3), "2": (5, 5), "3": (4, 5)}
    return {k: (o / i) ** 0.5 * polar(normal(o, i, seed=seed + n)) for n, (k, (o, i)) in enumerate(sides.items())}


@given(seed=st.integers(0, 10**6), m=st.tuples(positive, positive, positive))
@settings(max_examples=FEW)
def test_a_step_of_norm_one_moves_the_output_by_at_most_one(seed: int, m: tuple[float, float, float]):
    norm, w = residual(m), unit_weights(seed)
    space = norm.space
    assert isinstance(space, DirectSum)
    x = normal(20, 3, seed=seed + 9)
    x = x / rms(x)[:, None]
    cotangent = normal(20, 4, seed=seed + 5)
    df = torch.func.grad(lambda w: (network(w, x) * cotangent).sum())(w)
    step = norm.sharp(Covector(space, df))
    torch.testing.assert_close(norm.norm(step), torch.tensor(1.0, dtype=F64))
    change = slope(lambda w: network(w, x), w, step.blocks)
    assert rms(change).max() <= 1 + 1e-12
    for k, share in (("1", m[0]), ("2", m[1]), ("3", m[2])):
        alone = {j: step[j] if j == k else torch.zeros_like(step[j]) for j in w}
        change = slope(lambda w: network(w, x), w, alone)
        assert rms(change).max() <= share / sum(m) + 1e-12
    wider = jvp(lambda x: network(w, x), x, x)[1]
    assert rms(wider).max() <= norm.sensitivity + 1e-12


def test_the_bound_wants_inputs_of_size_one_at_every_layer():
    w, x = {k: torch.ones(1, 1, dtype=F64) for k in "123"}, torch.ones(1, 1, dtype=F64)
    moved = {}
    for stream in (0.5, 1.0):
        last = {"1": 0 * x, "2": 0 * x, "3": residual(stream=stream).budgets["3"] * x}
        moved[stream] = float(slope(lambda w, c=stream: network(w, x, c), w, last))
    assert moved[0.5] <= 0.5 / 3.5  # its share
    assert moved[1.0] > 1.3 * 0.5 / 3.5  # the sum, no average, hands it more than 1


def test_the_bound_is_sharp_and_without_the_rules_it_fails():
    one = Space("one", 1)
    w = {k: torch.ones(1, 1, dtype=F64) for k in ("1", "2")}
    norm = Linear("2", Hom(one, one), 3.0) @ Linear("1", Hom(one, one))
    x = torch.ones(1, 1, dtype=F64)

    def f(w: dict[str, Tensor]) -> Tensor:
        return x @ w["1"] @ w["2"]

    assert isinstance(norm.space, DirectSum)
    df = Covector(norm.space, torch.func.grad(lambda w: f(w).sum())(w))
    step = norm.sharp(df)
    assert float(slope(f, w, step.blocks)) == pytest.approx(1)
    assert (float(step["1"]), float(step["2"])) == pytest.approx((0.25, 0.75))
    naive = Max(norm.norms).sharp(df)
    assert float(slope(f, w, naive.blocks)) == pytest.approx(2)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=max(1, FEW // 5))
def test_sharp_is_what_a_projected_search_finds(seed: int):
    norm = residual()
    assert isinstance(norm.space, DirectSum)
    sides = {"1": (5, 3), "2": (5, 5), "3": (4, 5)}
    g = {k: normal(*sides[k], seed=seed + i) for i, k in enumerate(sides)}
    # by hand: the slopes of what follows are 2, 1 and 2, and the shares 1, 2 and ½ of 3.5
    radius = {"1": 1 / 3.5 / 2, "2": 2 / 3.5 / 1, "3": 0.5 / 3.5 / 2}
    v = {k: normal(*sides[k], seed=seed + 7) for k in sides}
    for _ in range(1000):
        for k, (rows, columns) in sides.items():
            U, s, Vt = torch.linalg.svd(v[k] + g[k], full_matrices=False)
            v[k] = U @ torch.diag(s.clamp(max=radius[k] * (rows / columns) ** 0.5)) @ Vt
        found = sum((v[k] * g[k]).sum() for k in sides)
        if found >= norm.dual_norm(Covector(norm.space, g)) * (1 - 1e-9):
            break
    xi = Covector(norm.space, g)
    torch.testing.assert_close(norm.dual_norm(xi), found)
    step = norm.sharp(xi)
    torch.testing.assert_close(xi(step), found)
    for k in sides:
        torch.testing.assert_close(step[k], v[k], rtol=1e-3, atol=1e-3)


# Text, binding, bad input


def test_reprs_are_expressions_and_on_reorders_the_summands():
    norm = residual()
    assert repr(norm).startswith("2 * Linear('3') @ (Bond(0.5) + 0.5 * Bond(1) @ Linear('2')) @ Linear('1') : ℝ ← ")
    assert repr(concatenate(*chain())) == ("concatenate(atom('1', Sign(X)), atom('2', Sign(Y))) : ℝ ← X ⊕ Y")
    assert repr(chain()[0].with_mass(2)) == "(atom('1', Sign(X))).with_mass(2) : ℝ ← X"
    assert isinstance(norm.space, DirectSum)
    other = DirectSum(dict(reversed(norm.space.parts)))
    assert norm.on(norm.space) is norm
    xi = Covector(other, normal(60))
    there = norm.on(other).sharp(xi)
    here = norm.sharp(Covector(norm.space, {k: xi[k] for k in norm.space}))
    for k in norm.space:
        torch.testing.assert_close(there[k], here[k])
    assert ModularNorm.atom("a", Sign()).on(DirectSum({"a": X})).space == DirectSum({"a": X})


def test_the_symmetry_is_that_of_the_layers():
    norm = Linear("2", Hom(H, Y)) @ Embed("1", Hom(T, H))
    kept = [g for g in ("general", "orthogonal", "signed permutations") if norm.symmetry.keeps("H", g)]
    assert kept == ["orthogonal", "signed permutations"]
    assert norm.symmetry.keeps("tokens", "permutations") and not norm.symmetry.keeps("tokens", "orthogonal")
    assert Bond().symmetry.keeps("H", "general")
    assert list(Linear("2", Hom(H, Y)).forms())


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: chain()[0] @ chain()[0], InvalidNorm, "two layers are named '1'. Name them apart"),
        (
            lambda: chain()[0] @ Sign(X),
            InvalidNorm,
            r"after Sign .* Modules are made with ModularNorm.atom\(name, norm\)",
        ),
        (
            lambda: chain()[0] + Sign(X),
            InvalidNorm,
            r"and Sign .* Modules are made with ModularNorm.atom\(name, norm\)",
        ),
        (lambda: concatenate(), InvalidNorm, "concatenate: expected modules, got none"),
        (lambda: concatenate(Sign(X)), InvalidNorm, "concatenate: expected modules, got Sign"),  # type: ignore[arg-type]
        (lambda: ModularNorm.atom("a", X), InvalidNorm, "the norm of 'a' is Space .* Give a Norm"),  # type: ignore[arg-type]
        (
            lambda: Linear("a", Hom(X, Y), mass=0.0),
            InvalidNorm,
            "InvalidNorm in a: the mass must be a positive finite number",
        ),
        (
            lambda: Bond(-1.0),
            InvalidNorm,
            "InvalidNorm in Bond: the sensitivity must be a positive finite number, got -1.0",
        ),
        (lambda: 0.0 * chain()[0], InvalidNorm, "must be a positive finite number, got 0.0"),
        (lambda: Bond().with_mass(1.0), InvalidNorm, r"Bond\(1\) has no weights, so its mass is 0"),
        (
            lambda: Linear("a", X),
            InvalidNorm,
            r"InvalidNorm in Linear\('a'\): expected a space of linear maps, Hom\(V, S\), got X",
        ),
        (lambda: Embed("a", X), InvalidNorm, r"InvalidNorm in Embed\('a'\): expected Hom\(tokens, S\), got X"),
        (lambda: Conv("a", Hom(X, Y), T), InvalidNorm, r"Conv\('a'\): tokens must be one of three factors of Y ← X"),
        (
            lambda: Bond().norm(Vector(X, normal(3))),
            SpaceMismatch,
            r"Bond\(1\) is a norm on no space: no weights; got X",
        ),
        (lambda: chain()[0].on(Y), SpaceMismatch, "is a norm on a direct sum of '1'; got Y"),
    ],
)
def test_bad_input_is_refused_with_the_reason_and_the_fix(call, error, text):
    with pytest.raises(error, match=text):
        call()
