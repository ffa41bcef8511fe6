"""Data of one layer, 𝒜 → 𝒮, for the rules of symmetry inference: functions of the frames, with which they move."""

from __future__ import annotations

import torch
from torch import Tensor

from riemann_ng.inner_products import InnerProduct, SecondMoment, second_moment
from riemann_ng.linear_maps import LinearMap
from riemann_ng.samples import Measure, OneHot, Sample
from riemann_ng.spaces import Hom, Space
from riemann_ng.testing import Draw
from riemann_ng.testing.frames import A, Frames, S

TOKENS = Space("tokens", 5)
W = Hom(A.hull, S.translations)


def points(n: int, seed: int) -> Tensor:
    return torch.cat([Draw.seeded(seed).normal(n, 3) + 0.5, torch.ones(n, 1, dtype=torch.float64)], 1)


def inputs(frames: Frames, seed: int = 0, sites: int = 1) -> SecondMoment:
    x = frames.moved(A.hull, points(24, seed)).reshape(-1, 1, sites, 4)
    return second_moment(Sample(A.hull, x, name="inputs"))


def cotangents(frames: Frames, seed: int = 1) -> SecondMoment:
    s = frames.moved(S.translations.dual, Draw.seeded(seed).normal(24, 4))
    return second_moment(Sample.of_cotangents(S.translations, s, name="cotangents"))


def weighted(frames: Frames) -> InnerProduct:
    weights = Draw.seeded(3).between(0.2, 3.0, 12, 1, 2)
    x = frames.moved(A.hull, points(24, 4)).reshape(12, 1, 2, 4)
    return second_moment(Sample(A.hull, x, Measure.weighted(weights)))


def centred(frames: Frames) -> InnerProduct:
    x = frames.moved(A.hull, points(24, 0))[:, :-1]
    return second_moment(Sample(A.translations, x - x.mean(0), name="centred inputs"))


def mean(frames: Frames) -> Tensor:
    return frames.moved(A.hull, points(24, 0)).mean(0)[:-1]


def gradients(frames: Frames) -> InnerProduct:
    """Per-example covectors on the whole layer."""
    each = torch.einsum("ni,nj->nij", Draw.seeded(5).normal(60, 4), points(60, 6)).reshape(60, -1)
    return second_moment(Sample(W.dual, frames.moved(W.dual, each).reshape(60, *W.shape), name="gradients"))


def kfac(frames: Frames, seed: int = 0) -> InnerProduct:
    return cotangents(frames, seed + 1) * inputs(frames, seed)


def tokens() -> InnerProduct:
    return second_moment(Sample(TOKENS, OneHot(torch.arange(20) % 5, torch.float64)))


def jacobian(frames: Frames) -> LinearMap:
    """A map that is data, from translations of 𝒜 to those of 𝒮."""
    J = Draw.seeded(8).tall(4, 3)
    moved = frames.moved(S.translations, frames.moved(A.translations.dual, J).mT).mT
    return LinearMap(A.translations, S.translations, moved, "J", natural=True)
