"""Layers with parameters against torch's own: affine, scale and shift, embedding, convolutions."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from layer_laws import Case, channels_first, check, close, randn, space

from riemann_ng import AffineSpace, Hom, OnePoint, Point, Space, Vector
from riemann_ng.errors import DtypeMismatch, NonFinite, ShapeMismatch, SpaceMismatch
from riemann_ng.layers import Affine, Convolution, Embedding, ScaleShift, TransposedConvolution, constant
from riemann_ng.spaces import Family

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch.func.jvp, in torch 2.13

seeds = st.integers(0, 10**6)
small = st.integers(1, 4)
axes = st.sampled_from([1, 2, 2, 3])
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@st.composite
def fields(draw, dim, least_sites=0, most_sites=2, least=1, most=4):
    sites = draw(st.lists(st.integers(least, most), min_size=least_sites, max_size=most_sites))
    return randn(draw(seeds), draw(st.integers(1, 3)), *sites, dim)


@st.composite
def affines(draw):
    a, s, seed, bias = draw(small), draw(small), draw(seeds), draw(st.sampled_from(["trained", "frozen", "none"]))
    b = None if bias == "none" else randn(seed + 1, s)
    layer = Affine(space("A", a), space("S", s), randn(seed, s, a), b, bias_trains=bias == "trained")

    def restated(x, p):
        return F.linear(x, p[""]["weight"], p[""].get("bias", b))

    return Case(layer, draw(fields(a)), restated)


@st.composite
def scale_shifts(draw):
    c, seed, shifted = draw(small), draw(seeds), draw(st.booleans())
    layer = ScaleShift(space("A", c), space("B", c), randn(seed, c), randn(seed + 1, c) if shifted else None)
    return Case(layer, draw(fields(c)), lambda x, p: x * p[""]["weight"] + p[""].get("bias", 0.0))


@st.composite
def embeddings(draw):
    tokens, s, seed = draw(small), draw(small), draw(seeds)
    layer = Embedding(Space("tokens", tokens), space("S", s), randn(seed, tokens, s))
    shape = draw(st.lists(small, min_size=1, max_size=3))
    x = torch.randint(tokens, shape, generator=torch.Generator().manual_seed(seed))
    return Case(layer, x, lambda x, p: F.embedding(x, p[""]["weight"]))


@st.composite
def convolutions(draw, axes):
    groups, cin, cout, seed = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(seeds)
    sizes = st.lists(st.integers(1, 3 if axes < 3 else 2), min_size=axes, max_size=axes)
    kernel, stride, dilation = draw(sizes), draw(sizes), draw(sizes)
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    padding = draw(st.lists(st.integers(0, 2), min_size=axes, max_size=axes))
    A, S = space("A", groups * cin), space("S", groups * cout)
    weight = randn(seed, S.dim, cin, *kernel)
    bias = draw(st.sampled_from(["trained", "frozen", "none"]))
    b = None if bias == "none" else randn(seed + 1, S.dim)
    point = randn(seed + 2, A.dim) if draw(st.booleans()) else None
    layer = Convolution(
        A, S, weight, b, stride=stride, padding=padding, dilation=dilation, groups=groups, mode=mode,
        padding_point=None if point is None else Point(A, point), bias_trains=bias == "trained",
    )  # fmt: skip
    x = draw(fields(A.dim, axes, axes, 3 if axes < 3 else 2, 5 if axes < 3 else 3))
    around = [side for p in reversed(padding) for side in (p, p)]
    assume(all(s + 2 * p > d * (k - 1) for s, p, d, k in zip(x.shape[1:-1], padding, dilation, kernel, strict=True)))
    assume(mode != "reflect" or all(p < s for s, p in zip(x.shape[1:-1], padding, strict=True)))

    @channels_first
    def restated(x, p):
        if mode == "zeros":
            shift = 0.0 if point is None else point.reshape(-1, *(1,) * axes)
            x = F.pad(x - shift, around) + shift
        else:
            x = F.pad(x, around, mode=mode)
        weight, bias = p[""]["weight"], p[""].get("bias", b)
        return CONV[axes](x, weight, bias, stride=stride, dilation=dilation, groups=groups)

    return Case(layer, x, restated)


@st.composite
def transposed_convolutions(draw, axes):
    groups, cin, cout, seed = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(seeds)
    sizes = st.lists(st.integers(1, 3 if axes < 3 else 2), min_size=axes, max_size=axes)
    kernel, stride, dilation = draw(sizes), draw(sizes), draw(sizes)
    padding = draw(st.lists(st.integers(0, 1), min_size=axes, max_size=axes))
    extra = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
    A, S = space("A", groups * cin), space("S", groups * cout)
    weight, b = randn(seed, A.dim, cout, *kernel), randn(seed + 1, S.dim) if draw(st.booleans()) else None
    options = {"stride": stride, "padding": padding, "output_padding": extra, "dilation": dilation, "groups": groups}
    x = draw(fields(A.dim, axes, axes, 1, 4 if axes < 3 else 2))
    for at, size in enumerate(x.shape[1:-1]):
        reach = (size - 1) * stride[at] - 2 * padding[at] + dilation[at] * (kernel[at] - 1) + extra[at] + 1
        assume(reach >= 1)

    @channels_first
    def restated(x, p):
        return CONV_TRANSPOSE[axes](x, p[""]["weight"], p[""].get("bias"), **options)

    return Case(TransposedConvolution(A, S, weight, b, **options), x, restated)


@given(affines(), seeds)
def test_affine(case, seed):
    check(case, seed)


@given(scale_shifts(), seeds)
def test_scale_and_shift(case, seed):
    check(case, seed)


@given(embeddings(), seeds)
def test_embedding(case, seed):
    check(case, seed)


@given(axes.flatmap(convolutions), seeds)
def test_convolution(case, seed):
    check(case, seed)


@given(axes.flatmap(transposed_convolutions), seeds)
def test_transposed_convolution(case, seed):
    check(case, seed)


def test_constant_is_the_affine_map_of_one_point():
    W = space("W", 3)
    value = randn(0, 3)
    layer = constant(W, value)
    assert layer.tangent_space == Hom(OnePoint.hull, W.translations)
    x = torch.zeros(4, 2, 0, dtype=torch.float64)
    check(Case(layer, x, lambda x, p: p[""]["bias"].expand(4, 2, 3)))
    close(layer.inputs(x), torch.ones(4, 1, 2, 1, dtype=torch.float64), "its input is 1")


def test_same_padding():
    weight = randn(0, 2, 3, 4, 3)  # an even kernel pads one side more
    layer = Convolution(space("A", 3), space("S", 2), weight, padding="same", dilation=(1, 2))
    restated = channels_first(lambda x, p: F.conv2d(x, p[""]["weight"], padding="same", dilation=(1, 2)))
    with pytest.warns(UserWarning, match="even kernel"):
        check(Case(layer, randn(1, 2, 5, 6, 3), restated))


def test_tangent_spaces():
    A, S = space("A", 4), space("S", 6)
    weight, bias = randn(0, 6, 4), randn(1, 6)
    assert Affine(A, S, weight, bias).tangent_space == Hom(A.hull, S.translations)
    assert Affine(A, S, weight).tangent_space == Hom(A.translations, S.translations)
    assert Affine(A, S, weight, bias, bias_trains=False).tangent_space == Hom(A.translations, S.translations)
    patches = AffineSpace("A patches", 4 * 9)
    kernel = randn(2, 6, 4, 3, 3)
    assert Convolution(A, S, kernel, bias).tangent_space == Hom(patches.hull, S.translations)
    grouped = Convolution(A, S, kernel[:, :2], bias, groups=2).tangent_space
    patches, part = AffineSpace("A group patches", 2 * 9), AffineSpace("S group", 3)
    assert grouped == Family(Hom(patches.hull, part.translations), 2) and grouped.shape == (2, 3, 19)
    line, image = AffineSpace("A channel", 1), AffineSpace("B channel", 1)
    norm = ScaleShift(A, space("B", 4), randn(3, 4), randn(4, 4))
    assert norm.tangent_space == Family(Hom(line.hull, image.translations), 4) and norm.tangent_space.shape == (4, 1, 2)
    tokens = Space("tokens", 5)
    assert Embedding(tokens, S, randn(5, 5, 6)).tangent_space == Hom(tokens, S.translations)


def test_parameters_come_back_as_they_were_given():
    weight, bias = randn(0, 6, 2, 3, 2), randn(1, 6)
    layer = Convolution(space("A", 4), space("S", 6), weight, bias, groups=2)
    assert torch.equal(layer.as_parameters(layer.weight)["weight"], weight)
    assert torch.equal(layer.as_parameters(layer.weight)["bias"], bias)
    weight = randn(2, 4, 3, 3, 2)
    layer = TransposedConvolution(space("A", 4), space("S", 6), weight, bias, groups=2)
    assert torch.equal(layer.as_parameters(layer.weight)["weight"], weight)


@pytest.mark.parametrize("kind", ["convolution", "transposed"])
def test_a_translation_that_moves_the_padding_point_commutes_with_the_layer(kind):
    """And one that leaves the padding at zero does not: the padding is a point."""
    A, S, gamma = space("A", 3), space("S", 2), randn(3, 3)
    x, bias, point = randn(1, 2, 5, 4, 3), randn(2, 2), randn(4, 3)
    if kind == "convolution":
        weight = randn(0, 2, 3, 3, 3)
        moved_bias = bias - torch.einsum("ocij,c->o", weight, gamma)
        make = lambda b, pad: Convolution(A, S, weight, b, padding=(2, 1), stride=(1, 2), padding_point=pad)  # noqa: E731
    else:
        weight = randn(0, 3, 2, 3, 3)
        moved_bias = bias - torch.einsum("coij,c->o", weight, gamma)
        make = lambda b, pad: TransposedConvolution(A, S, weight, b, stride=2, padding=1, padding_point=pad)  # noqa: E731
    y = make(bias, Point(A, point)).forward(x)
    close(make(moved_bias, Point(A, point + gamma)).forward(x + gamma), y, "padding moved")
    close(make(moved_bias, Point(A, gamma)).forward(x + gamma), make(bias, None).forward(x), "zero padding moved")
    kept = make(moved_bias, None).forward(x + gamma)
    assert (kept - make(bias, None).forward(x)).abs().max() > 0.1


class WrongTranspose(Affine):
    def _features_transpose(self, x, d):
        return d.flip(-1)


class WithoutTheOne(Affine):
    def inputs(self, x):
        inputs = Affine.inputs(self, x).clone()
        inputs[..., -1] = 0
        return inputs


class PaddingIgnored(Convolution):
    def _features(self, x):
        return self._linear_features(x)


class PaddingInTheDifferential(Convolution):
    def _linear_features(self, dx):
        return self._features(dx)


@pytest.mark.parametrize(
    ("kind", "law"), [(WrongTranspose, "pullback to the activations"), (WithoutTheOne, "adjointness")]
)
def test_a_broken_affine_layer_is_caught(kind, law):
    layer = kind(space("A", 3), space("S", 2), randn(0, 2, 3), randn(1, 2))
    with pytest.raises(AssertionError, match=law):
        check(Case(layer, randn(2, 4, 3), lambda x, p: F.linear(x, p[""]["weight"], p[""]["bias"])))


@pytest.mark.parametrize(("kind", "law"), [(PaddingIgnored, "forward"), (PaddingInTheDifferential, "pushforward")])
def test_a_broken_padding_is_caught(kind, law):
    A, point = space("A", 2), randn(2, 2)
    layer = kind(A, space("S", 2), randn(0, 2, 2, 3), padding=1, padding_point=Point(A, point))

    @channels_first
    def restated(x, p):
        return F.conv1d(F.pad(x - point[:, None], (1, 1)) + point[:, None], p[""]["weight"])

    with pytest.raises(AssertionError, match=law):
        check(Case(layer, randn(1, 3, 5, 2), restated))
    sound = Convolution(A, space("S", 2), randn(0, 2, 2, 3), padding=1, padding_point=Point(A, point))
    check(Case(sound, randn(1, 3, 5, 2), restated))


A, S = space("A", 3), space("S", 2)
FC = Affine(A, S, randn(0, 2, 3), randn(1, 2))
X = randn(2, 4, 5, 3)
NAN = torch.full_like(X, torch.nan)
BATCH = Vector(FC.tangent_space, randn(0, 7, 2, 4))
ERRORS = {
    "channels not last": (
        lambda: FC.forward(X.movedim(-1, 1)),
        ShapeMismatch,
        (
            r"ShapeMismatch in Affine\(S ← A\).forward: activations are points of A, \(examples, \*sites, 3\), got "
            r"float64\[4, 3, 5\]. Components come last: move the channels to the last axis."
        ),
    ),
    "no examples": (
        lambda: FC.forward(X[:0]),
        ShapeMismatch,
        r"forward: no examples or no sites in float64\[0, 5, 3\]",
    ),
    "not finite": (
        lambda: FC.forward(NAN),
        NonFinite,
        r"NonFinite in Affine\(S ← A\).forward: 60 of 60 components of the activations are NaN or infinite",
    ),
    "of another dtype": (
        lambda: FC.forward(X.float()),
        DtypeMismatch,
        r"Affine\(S ← A\).forward: activations are torch.float32, the parameters torch.float64. Bring one",
    ),
    "dx of another shape": (
        lambda: FC.pushforward(X, X[:, :1]),
        ShapeMismatch,
        (
            r"Affine\(S ← A\).pushforward: dx at these activations is \[4, 5, 3\], one element of A per example and "
            r"site, got float64\[4, 1, 3\]"
        ),
    ),
    "dx not finite": (
        lambda: FC.pushforward(X, NAN),
        NonFinite,
        "pushforward: 60 of 60 components of the dx are NaN",
    ),
    "dy of another shape": (
        lambda: FC.pullback(X, X),
        ShapeMismatch,
        r"pullback: dy at these activations is \[4, 5, 2\], one element of S",
    ),
    "dw of another layer": (
        lambda: FC.pushforward(X, X, Vector(Hom(A.hull, space("T", 2).translations), randn(0, 2, 4))),
        SpaceMismatch,
        r"pushforward: expected a vector of S⃗ ← Â, got a vector of T⃗ ← Â .*Tangents of another layer do not act here",
    ),
    "dw without a type": (
        lambda: FC.pushforward(X, X, randn(0, 2, 4)),
        SpaceMismatch,
        r"got float64\[2, 4\]. .*wrap the tensor as Vector",
    ),
    "a step along a covector": (
        lambda: FC.moved(FC.pullback(X, randn(3, 4, 5, 2))[1], -0.1),
        SpaceMismatch,
        r"moved: expected a vector of S⃗ ← Â, got a covector on S⃗ ← Â .*only through an inner product: use g.sharp",
    ),
    "a batch of vectors": (
        lambda: FC.moved(BATCH),
        ShapeMismatch,
        r"moved: expected one vector, got a batch \[7\]",
    ),
    "a weight transposed": (
        lambda: Affine(A, S, randn(0, 3, 2)),
        ShapeMismatch,
        r"Affine\(S ← A\): its weight is \[2, 3\], got float64\[3, 2\]",
    ),
    "a weight not finite": (
        lambda: Affine(A, S, NAN[0, :2]),
        NonFinite,
        "components of the weight are NaN",
    ),
    "scales of other channels": (
        lambda: ScaleShift(A, S, randn(0, 3)),
        SpaceMismatch,
        "the codomain S has dimension 2, the layer needs 3",
    ),
    "tokens as floats": (
        lambda: Embedding(Space("tokens", 4), S, randn(0, 4, 2)).forward(X),
        DtypeMismatch,
        r"Embedding\(S ← tokens\).forward: tokens are integers \(examples, \*sites\), got float64\[4, 5, 3\]",
    ),
    "unknown tokens": (
        lambda: Embedding(Space("tokens", 4), S, randn(0, 4, 2)).forward(torch.tensor([[3, 4]])),
        ShapeMismatch,
        "tokens of tokens are 0 to 3, got 3 to 4. Look at the vocabulary",
    ),
    "a field of other axes": (
        lambda: Convolution(A, S, randn(0, 2, 3, 3, 3)).forward(X),
        ShapeMismatch,
        r"Convolution\(S ← A\): the kernel is over 2 axes of sites, the field has \[5\]",
    ),
    "a kernel that does not fit": (
        lambda: Convolution(A, S, randn(0, 2, 3, 7)).forward(X),
        ShapeMismatch,
        r"Convolution\(S ← A\): 5 sites with padding \(0, 0\) are fewer than a window of 7. Give a larger field",
    ),
    "reflection too far": (
        lambda: Convolution(A, S, randn(0, 2, 3, 3), padding=5, mode="reflect").forward(X),
        ShapeMismatch,
        r"padding \(5, 5\) in mode 'reflect' reaches further than the 5 sites. Pad less",
    ),
    "a padding mode of another name": (
        lambda: Convolution(A, S, randn(0, 2, 3, 3), mode="mirror"),
        ShapeMismatch,
        "no padding mode 'mirror'. Use one of",
    ),
    "groups that do not divide": (
        lambda: Convolution(A, S, randn(0, 2, 3, 3), groups=2),
        ShapeMismatch,
        r"2 groups of 1 outputs and 1 channels each, with a kernel over 1 axes, do not fit the weight: \[2, 1, 3, 3\]",
    ),
    "a padding of another space": (
        lambda: Convolution(A, S, randn(0, 2, 3, 3), padding_point=Point(S, randn(0, 2))),
        SpaceMismatch,
        r"Convolution\(S ← A\): the padding is one point of A, got a point of S",
    ),
    "a table transposed": (
        lambda: Embedding(Space("tokens", 4), S, randn(0, 2, 4)),
        ShapeMismatch,
        r"Embedding\(S ← tokens\): its table is \[4, 2\], one row per token, got float64\[2, 4\]",
    ),
    "no tokens": (
        lambda: Embedding(Space("tokens", 4), S, randn(0, 4, 2)).forward(torch.zeros(0, 3).long()),
        ShapeMismatch,
        r"tokens are \(examples, \*sites\), got int64\[0, 3\]",
    ),
    "dx of another dtype": (
        lambda: FC.pushforward(X, X.float()),
        DtypeMismatch,
        "pushforward: dx is torch.float32, the activations are torch.float64. Bring one to the other",
    ),
    "a weight without a kernel": (
        lambda: Convolution(A, S, randn(0, 2, 3)),
        ShapeMismatch,
        r"a weight is \(outputs, channels / groups, \*kernel\), got \[2, 3\] with 1 groups",
    ),
    "a transposed weight without a kernel": (
        lambda: TransposedConvolution(A, S, randn(0, 3, 2)),
        ShapeMismatch,
        r"a weight is \(channels, outputs / groups, \*kernel\), got \[3, 2\] with 1 groups",
    ),
    "no output sites": (
        lambda: TransposedConvolution(A, S, randn(0, 3, 2, 1), padding=3).forward(X),
        ShapeMismatch,
        "5 sites with padding 3 leave no output sites. Pad less",
    ),
    "a stride of zero": (
        lambda: Convolution(A, S, randn(0, 2, 3, 3), stride=0),
        ShapeMismatch,
        "Convolution's stride: expected 1 integers of at least 1, got 0",
    ),
    "a negative padding": (
        lambda: Convolution(A, S, randn(0, 2, 3, 3), padding=-1),
        ShapeMismatch,
        "'same', none negative; got -1",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    call, error, text = ERRORS[case]
    before = FC.weight.clone()
    with pytest.raises(error, match=text):
        call()
    assert torch.equal(FC.weight, before)
