"""Theorem 15: what the static rule claims, the update has; what a constant named in the expression moves, it loses."""

import pytest
import torch
from exact_matrices import Draws, close
from torch import Tensor

import riemann_ng as rng

A, S = rng.AffineSpace("A", 3), rng.AffineSpace("S", 3)
W = rng.Hom(A.hull, S.translations)
GROUPS = ("translations", "general", "orthogonal")


def data(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    draws = Draws(seed)
    a = torch.cat([draws.normal(20, 3), torch.ones(20, 1, dtype=torch.float64)], -1)
    return a, draws.normal(20, 3), draws.normal(3, 4)


def moments(a: Tensor, g: Tensor) -> tuple[rng.InnerProduct, rng.InnerProduct]:
    cotangents = rng.Sample(S.translations.dual, g[:, None, None], rng.Measure.exact())
    return rng.second_moment(cotangents), rng.second_moment(rng.Sample(A.hull, a[:, None, None]))


EXPRESSIONS = {
    "K-FAC": lambda G, M: G * M,
    "K-FAC damped on the hull": lambda G, M: G * M + 0.5 * rng.Euclidean(W),
    "K-FAC damped on weights": lambda G, M: G * M + 0.5 * rng.euclidean_on_translations(W),
    "damped inputs": lambda G, M: G * (M + 0.5 * rng.Euclidean(A.hull.dual)),
    "damped cotangents": lambda G, M: (G + 0.5 * rng.Euclidean(S.translations)) * M,
    "one-sided": lambda G, M: rng.Euclidean(S.translations) * M,
    "gradient descent": lambda G, M: rng.Euclidean(W),
    "diagonal of K-FAC": lambda G, M: (G * M).diagonal(),
}


def frame(space: str, group: str, draws: Draws) -> tuple[Tensor, Tensor]:
    """A random element of the group on one space, as a frame of the hull and a frame of pre-activations."""
    alpha, phi = torch.eye(4, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    if group == "translations":
        if space == "A":
            alpha[:3, 3] = draws.normal(3)
        return alpha, phi
    linear = draws.invertible(3) if group == "general" else draws.orthogonal(3)
    if space == "A":
        alpha[:3, :3] = linear
        return alpha, phi
    return alpha, linear


def keeps(build, space: str, group: str) -> bool:
    """Whether the step has the symmetry, measured with moved data and constants that stay."""
    a, g, X = data(0)
    alpha, phi = frame(space, group, Draws(5))
    back = torch.linalg.inv(phi)
    own = build(*moments(a, g)).sharp(rng.Covector(W, X)).data
    moved = build(*moments(a @ alpha.mT, g @ back)).sharp(rng.Covector(W, back.mT @ X @ alpha.mT)).data
    return close(moved, phi @ own @ torch.linalg.inv(alpha), 1e-8)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("space", ["A", "S"])
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_theorem_15_the_claim_is_sound_and_exact(name, space, group):
    build = EXPRESSIONS[name]
    assert build(*moments(*data(0)[:2])).symmetry.keeps(space, group) == keeps(build, space, group)


def test_theorem_15_some_claims_are_kept_and_some_lost():
    """So that the equality above says something."""
    measured = {keeps(build, "A", group) for build in EXPRESSIONS.values() for group in GROUPS}
    assert measured == {True, False}


def test_theorem_15_the_other_refuter_moves_the_constants_instead():
    """e(r·d; c) = r·e(d; r^-1·c): what is lost is what the expression sees when its constants move."""
    a, g, X = data(1)
    draws, inverse = Draws(2), torch.linalg.inv
    alpha, phi = draws.affine(3), draws.invertible(3)

    def step(points: Tensor, cotangents: Tensor, covector: Tensor, constant: Tensor) -> Tensor:
        G, M = moments(points, cotangents)
        return (G * (M + rng.Gram(A.hull.dual, constant))).sharp(rng.Covector(W, covector)).data

    c = draws.positive(4)
    back, c_back = inverse(phi), inverse(alpha) @ c @ inverse(alpha).mT
    moved = step(a @ alpha.mT, g @ back, back.mT @ X @ alpha.mT, c)
    other = phi @ step(a, g, X, (c_back + c_back.mT) / 2) @ inverse(alpha)
    assert close(moved, other)
    assert not close(moved, phi @ step(a, g, X, c) @ inverse(alpha), 0.01)


def test_theorem_15_joint_scales_are_found_by_the_weights_of_constants():
    """Euclid on both factors has weights that cancel: a -> c a, s -> c s together leaves gradient descent on weights
    as it is, while each alone does not."""
    V, U = rng.Space("V", 3), rng.Space("U", 2)
    symmetry = rng.Euclidean(U * V.dual).symmetry
    assert symmetry.keeps_joint({"V": 1, "U": 1})
    assert not symmetry.keeps_joint({"V": 1}) and not symmetry.keeps_joint({"U": 1})
