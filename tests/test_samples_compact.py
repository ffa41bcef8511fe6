"""Data kept smaller than their elements: their moments against those of the dense form."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from riemann_ng.networks.observation import Draws, in_draws
from riemann_ng.networks.patches import Patches
from riemann_ng.networks.readers import ConvolutionReader
from riemann_ng.samples import Measure, Sample, WithOne
from riemann_ng.samples.products import PANEL, gram, grams
from riemann_ng.spaces import AffineSpace, Family, Space

TINY = 1e-12


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same(left, right):
    return bool((left - right).abs().max() <= TINY * right.abs().max())


def dense_moments(sample, members=1):
    x = sample.dense().unflatten(-1, (members, -1))
    w = torch.as_tensor(sample.measure.weights(sample.counts), dtype=x.dtype).broadcast_to(sample.counts)
    return torch.einsum("nkt,nktmi,nktmj->mij", w, x, x)


@pytest.mark.parametrize("d", [1, PANEL, PANEL + 1, 3 * PANEL + 5])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_gram_matrix_is_the_plain_product(d, transposed):
    x = randn(d, 20).mT if transposed else randn(20, d)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert same(gram(x, 0.3), 0.3 * x.mT @ x)
            assert same(gram(x), gram(x).mT)
    finally:
        torch.set_num_threads(threads)
    inside = torch.full((d + 1, d + 1), 7.0, dtype=x.dtype)
    gram(x, 0.3, inside[:d, :d])
    assert same(inside[:d, :d], 0.3 * x.mT @ x) and bool((inside[-1] == 7).all())
    y = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(gram(y, 0.5).sum(), y)
    assert same(slope, x.sum(1, keepdim=True).expand_as(x))


few = st.integers(1, 3)


@given(few, few, st.integers(1, 8), st.sampled_from([1, 2, 5]), st.integers(1, 4), st.booleans())
def test_grams_know_every_layout(n, k, t, m, d, channels_first):
    x = randn(n, k, m, d, t).movedim(-1, 2) if channels_first else randn(n, k, t, m, d)
    assert same(grams(x, 0.7), 0.7 * torch.einsum("nktmi,nktmj->mij", x, x))


@given(st.integers(1, 3), st.integers(1, 4), st.sampled_from([0, 1, 3]), st.integers(1, 5), st.booleans())
def test_points_are_completed_by_a_one(n, t, members, d, masked):
    x = randn(n, 1, t, *([members] if members else []), d)
    hull = AffineSpace("A", d).hull
    mask = torch.arange(t).expand(n, t) < max(1, t - 1) if masked else None
    sample = Sample(Family(hull, members) if members else hull, WithOne(x), Measure.probability(mask))
    plain = Sample(sample.space, torch.cat([x, torch.ones_like(x[..., :1])], -1), Measure.probability(mask))
    assert torch.equal(sample.dense(), plain.dense())
    assert same(sample.member_moments(), dense_moments(plain, max(1, members)))
    assert same(sample.moment(), dense_moments(plain)[0])  # of a family: between its members too
    # control: the moment of the points alone is a block of it, not the whole
    assert sample.member_moments().shape[-1] == grams(x.reshape(n, 1, t, max(1, members), d)).shape[-1] + 1


@given(st.integers(1, 2), st.integers(2, 3), st.integers(1, 8), st.sampled_from([1, 2]), few, st.booleans())
def test_draws_need_no_stacking(n, k, t, members, d, masked):
    draws = [randn(n, t, members, d, seed=i) if members > 1 else randn(n, t, d, seed=i) for i in range(k)]
    space = Family(Space("S", d), members) if members > 1 else Space("S", d)
    mask = torch.arange(t).expand(n, t) < max(1, t - 1) if masked else None
    sample = Sample(space.dual, Draws(draws, members), Measure.exact(mask))
    plain = Sample(space.dual, torch.stack(draws, 1), Measure.exact(mask))
    assert torch.equal(sample.dense(), plain.dense())
    assert same(sample.member_moments(), dense_moments(plain, members))
    assert isinstance(in_draws(draws, space), Draws) == (n * t >= d)
    assert in_draws(draws[:1], space).shape == (n, 1, *draws[0].shape[1:])


@st.composite
def convolutions(draw):
    rank = draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    dilation = [draw(st.integers(1, 2)) for _ in range(rank)]
    stride = [1, *(draw(st.integers(1, 2)) for _ in range(rank - 1))]
    padding = draw(st.sampled_from(["valid", 1]))
    mode = draw(st.sampled_from(["zeros", "circular"]))
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1](
        draw(st.integers(1, 2)), 2, kernel, stride, 0 if padding == "valid" else padding, dilation,
        bias=draw(st.booleans()), padding_mode=mode, dtype=torch.float64,
    )  # fmt: skip
    sizes = [draw(st.integers(1, 9 if rank < 3 else 5)) for _ in range(rank)]
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    room = 0 if padding == "valid" else 2
    assume(all(s + room >= r for s, r in zip(sizes, reach, strict=True)))
    return conv, randn(2, conv.in_channels, *sizes)


@given(convolutions())
def test_patches_are_never_made_for_their_moment(case):
    conv, x = case
    reader = ConvolutionReader(conv, "conv", [name for name, _ in conv.named_parameters()])
    data = reader.compact(x, 2, lambda features: features[:, None])
    assert isinstance(data, Patches)
    sample = Sample(reader.input_space, data)
    assert sample.dense().shape[:3] == sample.counts
    assert same(sample.moment(), dense_moments(sample)[0])


def test_patches_are_left_to_readers_that_agree():
    """A reader of one's own with other features, groups and strides: their features are made."""

    class Other(ConvolutionReader):
        def features(self, x):
            return 2 * super().features(x)

    x, names = randn(2, 2, 5, 5), ["weight", "bias"]
    for reader in (
        Other(nn.Conv2d(2, 3, 3), "a", names),
        ConvolutionReader(nn.Conv2d(2, 4, 3, groups=2), "b", names),
        ConvolutionReader(nn.Conv2d(2, 4, 3, stride=2), "c", names),
        ConvolutionReader(nn.Conv2d(2, 4, 3), "d", ["bias"]),
    ):
        assert reader.compact(x, 2, lambda features: features[:, None]) is None
