"""Layers without parameters against torch's own: nonlinearities, normalizations, poolings, attention."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from layer_laws import Case, channels_first, check, close, randn, space

from riemann_ng import Point
from riemann_ng.errors import NonFinite, ShapeMismatch, SpaceMismatch
from riemann_ng.layers import (
    AdaptiveAveragePool,
    AveragePool,
    BatchNormalization,
    Flatten,
    GroupNormalization,
    LayerNormalization,
    MaxPool,
    Nonlinearity,
    Pointwise,
    SoftmaxAttention,
    gelu,
    gelu_tanh,
    identity,
    relu,
    sigmoid,
    silu,
    softplus,
    tanh,
)

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch.func.jvp, in torch 2.13

seeds = st.integers(0, 10**6)
small = st.integers(1, 4)
axes = st.sampled_from([1, 2, 2, 3])
MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
ADAPTIVE_POOL = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
NONLINEARITIES = {
    identity: lambda x: x,
    relu: F.relu,
    tanh: torch.tanh,
    sigmoid: torch.sigmoid,
    silu: F.silu,
    softplus: F.softplus,
    gelu: F.gelu,
    gelu_tanh: lambda x: F.gelu(x, approximate="tanh"),
    Nonlinearity("cube", lambda x: x**3, lambda x: 3 * x**2): lambda x: x**3,
}


def fields(draw, dim, axes=None, least=1):
    axes = draw(st.integers(0, 2)) if axes is None else axes
    sites = [draw(st.integers(least, 5 if axes < 3 else 3)) for _ in range(axes)]
    return randn(draw(seeds), draw(st.integers(1, 3)), *sites, dim)


@given(st.data(), st.sampled_from(list(NONLINEARITIES)), seeds)
def test_pointwise(data, nonlinearity, seed):
    dim = data.draw(small)
    x = 2 * fields(data.draw, dim)
    layer = Pointwise(space("S", dim), space("A", dim), nonlinearity)
    check(Case(layer, x, lambda x, p: NONLINEARITIES[nonlinearity](x)), seed)


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES, ids=lambda f: f.name)
def test_pointwise_far_out(nonlinearity):
    """Where exponentials overflow; the slopes of torch's own at ±800 may be 0·∞, so they are left out."""
    x = torch.tensor([[-800.0, -40.0, -0.0, 0.0, 40.0, 800.0]], dtype=torch.float64)
    layer = Pointwise(space("S", 6), space("A", 6), nonlinearity)
    close(layer.forward(x), NONLINEARITIES[nonlinearity](x), "forward")
    assert torch.isfinite(layer.pushforward(x, torch.ones_like(x))).all()


@given(st.data(), st.booleans(), st.sampled_from([1e-5, 0.3]), seeds)
def test_layer_normalization(data, centred, epsilon, seed):
    dim = data.draw(small)
    layer = LayerNormalization(space("A", dim), space("B", dim), epsilon, centred)
    assume(dim > 1 or not centred)  # of one component nothing is left, but for rounding errors over √ε

    def restated(x, p):
        return F.layer_norm(x, (dim,), eps=epsilon) if centred else F.rms_norm(x, (dim,), eps=epsilon)

    check(Case(layer, fields(data.draw, dim), restated), seed)


@given(st.data(), st.integers(1, 2), st.integers(1, 3), seeds)
def test_group_normalization(data, groups, each, seed):
    dim = groups * each
    x = fields(data.draw, dim)
    assume(x[0].numel() > groups)
    layer = GroupNormalization(space("A", dim), space("B", dim), groups, 0.1)
    check(Case(layer, x, channels_first(lambda x, p: F.group_norm(x, groups, eps=0.1))), seed)


@given(st.data(), seeds)
def test_batch_normalization(data, seed):
    dim = data.draw(small)
    A, mean, variance = space("A", dim), randn(seed, dim), randn(seed + 1, dim).exp()
    layer = BatchNormalization(A, space("B", dim), Point(A, mean), variance, 1e-3)
    restated = channels_first(lambda x, p: F.batch_norm(x, mean, variance, eps=1e-3))
    check(Case(layer, fields(data.draw, dim), restated), seed)


def pools(draw, axes, strides=True):
    sizes = st.lists(st.integers(1, 3), min_size=axes, max_size=axes)
    kernel = draw(sizes)
    stride = draw(st.one_of(st.none(), sizes)) if strides else None
    return kernel, stride, [draw(st.integers(0, k // 2)) for k in kernel], draw(sizes)


@given(axes, st.data(), seeds)
def test_max_pool(axes, data, seed):
    dim = data.draw(st.integers(1, 2))
    kernel, stride, padding, dilation = pools(data.draw, axes)
    x = fields(data.draw, dim, axes, 3)
    spans = zip(x.shape[1:-1], padding, dilation, kernel, strict=True)
    assume(all(s + 2 * p > d * (k - 1) for s, p, d, k in spans))
    layer = MaxPool(space("A", dim), kernel, stride, padding, dilation)
    restated = channels_first(lambda x, p: MAX_POOL[axes](x, kernel, stride or kernel, padding, dilation))
    check(Case(layer, x, restated), seed)


@given(axes, st.data(), st.booleans(), seeds)
def test_average_pool(axes, data, count, seed):
    dim = data.draw(st.integers(1, 2))
    kernel, stride, padding, _ = pools(data.draw, axes)
    x, A = fields(data.draw, dim, axes, 3), space("A", dim)
    point = randn(seed, dim).reshape(-1, *(1,) * axes)
    layer = AveragePool(A, kernel, stride, padding, Point(A, point.flatten()) if count else None)

    @channels_first
    def restated(x, p):
        shift = point if count else 0.0  # counted padding, at a point
        return AVERAGE_POOL[axes](x - shift, kernel, stride or kernel, padding, count_include_pad=count) + shift

    check(Case(layer, x, restated), seed)


@given(axes, st.data(), seeds)
def test_adaptive_average_pool(axes, data, seed):
    dim, sites = data.draw(st.integers(1, 2)), data.draw(st.lists(small, min_size=axes, max_size=axes))
    layer = AdaptiveAveragePool(space("A", dim), sites)
    restated = channels_first(lambda x, p: ADAPTIVE_POOL[axes](x, sites))
    check(Case(layer, fields(data.draw, dim, axes), restated), seed)


@given(st.data(), st.booleans(), seeds)
def test_flatten(data, channels_first, seed):
    dim = data.draw(small)
    x = fields(data.draw, dim)
    layer = Flatten(space("A", dim), space("B", x[0].numel()), channels_first)
    check(Case(layer, x, lambda x, p: (x.movedim(-1, 1) if channels_first else x).flatten(1)), seed)


@given(st.data(), st.sampled_from(["all", "causal", "mask", "both"]), seeds)
def test_attention(data, seen, seed):
    heads, dq, dv = data.draw(st.integers(1, 3)), data.draw(small), data.draw(small)
    examples, tokens = data.draw(small), data.draw(small)
    Q, K, V, O = (space(n, heads * d) for n, d in zip("QKVO", (dq, dq, dv, dv), strict=True))  # noqa: E741
    mask = None
    if seen in ("mask", "both"):
        mask = (randn(seed, tokens, tokens) > 0) | torch.eye(tokens, dtype=torch.bool)
    causal = seen in ("causal", "both")
    scale = data.draw(st.sampled_from([None, 0.7]))
    layer = SoftmaxAttention(Q, K, V, O, heads, causal, mask, scale)
    allowed = torch.ones(tokens, tokens, dtype=torch.bool)
    allowed = allowed.tril() if causal else allowed
    allowed = allowed if mask is None else allowed & mask

    def restated(x, p):
        q, k, v = (
            part.reshape(examples, tokens, heads, -1).transpose(1, 2) for part in x.split([Q.dim, K.dim, V.dim], -1)
        )
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # the one with a forward mode
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=scale)
        return y.transpose(1, 2).flatten(2)

    x = randn(seed + 1, examples, tokens, Q.dim + K.dim + V.dim)
    check(Case(layer, x, restated), seed)


class Uncentred(LayerNormalization):
    def _differential(self, x, dx):
        y, rate = self._normalized(x)
        return rate * (dx - y * (y * dx).mean(-1, keepdim=True))


class KeysForgotten(SoftmaxAttention):
    def _transpose(self, x, dy):
        return SoftmaxAttention._transpose(self, x, dy) * (torch.arange(x.shape[-1]) % 3 != 1)


class AllTaps(MaxPool):
    def _transpose(self, x, dy):
        return AveragePool(self.domain, self.kernel)._transpose(x, dy)


def test_broken_maps_are_caught():
    A, B = space("A", 4), space("B", 4)
    x = randn(0, 2, 4, 4)
    halved = Nonlinearity("halved", torch.tanh, lambda x: (1 - x.tanh() ** 2) / 2)
    with pytest.raises(AssertionError, match="pullback"):
        check(Case(Pointwise(A, B, halved), x, lambda x, p: x.tanh()))
    with pytest.raises(AssertionError, match="pullback"):
        check(Case(Uncentred(A, B), x, lambda x, p: F.layer_norm(x, (4,))))
    with pytest.raises(AssertionError, match="pullback"):
        pooled = channels_first(lambda x, p: F.max_pool1d(x, 2))
        check(Case(AllTaps(A, [2]), x, pooled))
    one = space("V", 1)
    unmasked = Case(SoftmaxAttention(one, one, one, one), randn(1, 2, 3, 3), lambda x, p: attention(x, causal=True))
    with pytest.raises(AssertionError, match="forward"):
        check(unmasked)
    forgetful = Case(KeysForgotten(one, one, one, one), randn(1, 2, 3, 3), lambda x, p: attention(x, causal=False))
    with pytest.raises(AssertionError, match="pullback"):
        check(forgetful)


def attention(x, causal):
    q, k, v = x[..., :1], x[..., 1:2], x[..., 2:]
    scores = q @ k.mT
    if causal:
        scores = scores.masked_fill(torch.ones(3, 3).triu(1).bool(), -torch.inf)
    return scores.softmax(-1) @ v


A, B = space("A", 4), space("B", 4)
X = randn(0, 2, 3, 4)
LOOK_AHEAD = torch.tensor([[False, True, True], [True, True, True], [True, True, True]])
ERRORS = {
    "another dimension": (
        lambda: Pointwise(A, space("B", 3), tanh),
        SpaceMismatch,
        "Pointwise: the codomain B has dimension 3, the layer needs 4. Give an AffineSpace of dimension 4",
    ),
    "an overflow": (
        lambda: Pointwise(A, B, Nonlinearity("exp", torch.exp, torch.exp)).forward(1000 + X),
        NonFinite,
        r"NonFinite in exp\(B ← A\).forward: finite activations gave NaN or infinity in exp\(B ← A\)",
    ),
    "parameters where there are none": (
        lambda: Pointwise(A, B, tanh).moved(X),
        SpaceMismatch,
        r"tanh\(B ← A\).moved: the layer has no parameters, got float64\[2, 3, 4\]. Leave it out",
    ),
    "groups": (lambda: GroupNormalization(A, B, 3), ShapeMismatch, "4 channels are not 3 equal groups"),
    "a mean elsewhere": (
        lambda: BatchNormalization(A, B, Point(B, X[0, 0]), X[0, 0].abs()),
        SpaceMismatch,
        "the mean is one point of A, got a point of B",
    ),
    "negative variances": (
        lambda: BatchNormalization(A, B, Point(A, X[0, 0]), -X[0, 0].abs()),
        ShapeMismatch,
        "expected 4 variances, none negative",
    ),
    "axes of a pool": (
        lambda: MaxPool(A, [2, 2]).forward(X),
        ShapeMismatch,
        r"MaxPool\(A ← A\): windows are over 2 axes of sites, the field has \[3\]",
    ),
    "windows in the padding": (
        lambda: MaxPool(A, [2], padding=2),
        ShapeMismatch,
        r"a window \[2\] padded by \[2\] may see no site at all. Pad by at most half",
    ),
    "a pool too large": (lambda: MaxPool(A, [5]).forward(X), ShapeMismatch, "fewer than a window of 5"),
    "adaptive axes": (
        lambda: AdaptiveAveragePool(A, [1, 1]).forward(X),
        ShapeMismatch,
        r"asked for sites \[1, 1\], the field has \[3\]",
    ),
    "flat in another dimension": (
        lambda: Flatten(A, B).forward(X),
        SpaceMismatch,
        r"SpaceMismatch in Flatten: at sites \[3\] the codomain B has dimension 4, the layer needs 12",
    ),
    "heads": (
        lambda: SoftmaxAttention(A, A, A, B, heads=3),
        SpaceMismatch,
        "queries of dimension 4 and values of dimension 4 do not split into 3 heads",
    ),
    "a mask of numbers": (
        lambda: SoftmaxAttention(A, A, A, B, mask=torch.zeros(3, 3)),
        ShapeMismatch,
        "a mask is boolean, .*true where the row's token may see the column's",
    ),
    "a mask of other tokens": (
        lambda: SoftmaxAttention(A, A, A, B, mask=LOOK_AHEAD).forward(randn(0, 1, 4, 12)),
        ShapeMismatch,
        r"sites are one axis, 3 tokens; the field has \[4\]",
    ),
    "a token that sees nothing": (
        lambda: SoftmaxAttention(A, A, A, B, causal=True, mask=LOOK_AHEAD).forward(randn(0, 1, 3, 12)),
        NonFinite,
        "the mask and causality leave a token that sees nothing. Let it see itself",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    call, error, text = ERRORS[case]
    with pytest.raises(error, match=text):
        call()
