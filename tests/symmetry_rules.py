"""The rules of symmetry inference: expressions on one layer, 𝒜 → 𝒮, with what each keeps and what it loses, and where.

What moves is in functions of the frames; what stands in an expression besides is constant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from symmetry_data import TOKENS, W, centred, cotangents, gradients, inputs, jacobian, kfac, mean, tokens, weighted
from torch import Tensor

from riemann_ng.inner_products import (
    Euclidean,
    Gram,
    InnerProduct,
    LowRank,
    RotatedDiagonal,
    Scaled,
    damp_factors,
    direct_sum,
    euclidean_on_translations,
    second_moment,
)
from riemann_ng.linear_maps import LinearMap
from riemann_ng.norms import FromInnerProduct, NewtonSchulz, Norm, Spectral
from riemann_ng.solvers import CG, Solver
from riemann_ng.spaces import Hom, OnePoint, Space
from riemann_ng.symmetry import Symmetry
from riemann_ng.testing import Draw
from riemann_ng.testing.frames import A, Frames, S
from riemann_ng.testing.fuzz import Cell
from riemann_ng.testing.random_expressions import eigenframe

LINEAR = Hom(A.translations, S.translations)
AFFINE = "A: T GL O M D SP P R"
ALL = f"{AFFINE}; S: T GL O M D SP P R"
DRAW = Draw.seeded(7)


# -- Expressions ------------------------------------------------------------------------------------------------------


def trace(g: InnerProduct, h: InnerProduct) -> Tensor:
    return torch.linalg.solve(h.matrix(ONE), g.matrix(ONE)).diagonal().sum() / g.space.dim


ONE = torch.ones(1, dtype=torch.float64)
E_S, E_A = Euclidean(S.translations), Euclidean(A.hull.dual)


def apart(frames: Frames, at: str = "origin") -> InnerProduct:
    """Weight apart from bias: the inputs' moment without what couples linear parts and values at a point."""
    point = {"point": mean(frames), "natural": True} if at == "mean" else {}
    if at == "a point":
        point = {"point": torch.tensor([0.5, -0.3, 0.8], dtype=torch.float64)}
    split, values = LinearMap.difference(A, **point).transpose, LinearMap.at(A, **point).transpose
    linear = inputs(frames).pullback(split).pullback(LinearMap.translations(A).transpose)
    return linear + inputs(frames).pullback(LinearMap.height(A).transpose).pullback(values)


def ekfac(frames: Frames, h_S: InnerProduct, h_A: InnerProduct) -> InnerProduct:
    P = eigenframe(cotangents(frames).matrix(ONE), h_S.matrix(ONE))
    Q = eigenframe(inputs(frames).matrix(ONE), h_A.matrix(ONE))
    spectrum = gradients(frames).pullback(LinearMap(Space("axes", 16), W, torch.kron(P, Q))).diagonal_entries()
    return RotatedDiagonal(h_S * h_A, [P, Q], spectrum.reshape(4, 4), "eigenframe", natural=True)


def outer_blocks(frames: Frames) -> InnerProduct:
    return cotangents(frames).diagonal() * inputs(frames)


@dataclass(frozen=True)
class Rule:
    """`keeps` and the keys of `loses` are written `space: groups; space: groups`; the values are what is to blame."""

    name: str
    form: Callable[[Frames], InnerProduct]
    keeps: str
    loses: dict[str, str] = field(default_factory=dict)
    solver: Callable[[Frames], Solver] | None = None
    norm: Callable[[InnerProduct], Norm] | None = None
    joint: tuple[Cell, ...] = ()
    not_joint: tuple[Cell, ...] = ()


J: Cell = (("A", 1), ("S", 1))
E_V = Euclidean(A.translations.dual)
AXES = Space("axes", 4)
MATRIX = DRAW.positive(4)
RULES = [
    Rule("second moment in the hull", inputs, AFFINE),
    Rule("weighted moment over many sites", weighted, AFFINE),
    Rule("moment of cotangents", cotangents, "S: T GL O M D SP P R"),
    Rule("centred covariance", centred, AFFINE),
    Rule(
        "moment without the 1",
        lambda f: inputs(f).pullback(LinearMap.difference(A).transpose),
        "A: GL O M D SP P R", {"A: T": "the origin of A"},
    ),
    Rule("K-FAC", kfac, ALL, joint=(J,)),
    Rule("exact Fisher of a layer", gradients, ALL, joint=(J,)),
    Rule("sums of Kroneckers", lambda f: kfac(f) + 0.5 * kfac(f, 10), ALL, joint=(J,)),
    Rule(
        "Gram of a raw matrix", lambda f: Gram(S.translations, MATRIX, name="K"), "S: T",
        {"S: GL O M D SP P R": "Gram(S⃗, K)"},
    ),
    Rule(
        "rows of a raw matrix", lambda f: LowRank(S.translations, MATRIX, name="K"), "S: T",
        {"S: GL O M D SP P R": "LowRank(S⃗, K)"},
    ),
    Rule(
        "two raw matrices", lambda f: Gram(S.translations, MATRIX, name="K") + Euclidean(S.translations), "S: T",
        {"S: O SP": "Gram(S⃗, K)", "S: GL M D": "Euclidean(S⃗)"},
    ),
    Rule("Gram declared natural", lambda f: Gram(S.translations, cotangents(f).matrix(), natural=True), "S: GL O M D"),
    Rule(
        "Euclidean on the hull", lambda f: E_A, "A: O SP P", {"A: T GL M D R": "Euclidean(Â*)"},
    ),
    Rule(
        "Euclidean on translations", lambda f: E_S, "S: T O SP P", {"S: GL M D": "Euclidean(S⃗)", "S: R": "weight 2·S"},
    ),
    Rule(
        "damping on the hull", lambda f: cotangents(f) * (inputs(f) + 0.3 * E_A), "A: O SP P; S: T GL O M D SP P R",
        {"A: T GL M D": "Euclidean(Â*)"},
    ),
    Rule(
        "damping on V only", lambda f: cotangents(f) * (inputs(f) + 0.3 * euclidean_on_translations(A.hull.dual)),
        "A: T O SP P; S: T GL O M D SP P R", {"A: GL M D": "Euclidean(A⃗*)", "A: R": "weight -2·A of Euclidean(A⃗*)"},
    ),
    Rule(
        "exact Tikhonov on V only", lambda f: kfac(f) + 0.3 * euclidean_on_translations(W), "A: T O SP P; S: T O SP P",
        {"A: GL M D": "Euclidean(A⃗*)", "S: GL M D": "Euclidean(S⃗)", "A: R": "weight"}, joint=(J,),
    ),
    Rule(
        "exact Tikhonov", lambda f: kfac(f) + 0.3 * Euclidean(W), "A: O SP P; S: T O SP P",
        {"A: T GL M D": "Euclidean(S⃗ ← Â)", "S: GL M D R": "Euclidean(S⃗ ← Â)"}, not_joint=(J,),
    ),
    Rule(
        "exact Tikhonov without bias", lambda f: cotangents(f) * centred(f) + 0.3 * Euclidean(LINEAR),
        "A: T O SP P; S: T O SP P", {"A: R": "weight", "S: R": "weight"}, joint=(J,),
    ),
    Rule(
        "damping by the trace relative to h",
        lambda f: centred(f) + Scaled(0.3 * trace(centred(f), E_V), E_V, centred(f).symmetry * E_V.symmetry**-1),
        "A: T O SP P R", {"A: GL M D": "Euclidean(A⃗*)"},
    ),
    Rule("damping by another batch", lambda f: kfac(f) + 0.3 * kfac(f, 10), ALL, joint=(J,)),
    Rule(
        "diagonal", lambda f: (cotangents(f) * centred(f)).diagonal(), "A: T M D SP P R; S: T M D SP P R",
        {"A: GL O": ").diagonal()", "S: GL O": ").diagonal()"}, joint=(J,),
    ),
    Rule(
        "diagonal in the hull", lambda f: inputs(f).diagonal(), "A: M D SP P R",
        {"A: T GL O": "(second_moment(inputs of Â)).diagonal()"},
    ),
    Rule(
        "diagonal damped by a constant", lambda f: cotangents(f).diagonal() + 0.3 * E_S, "S: T SP P",
        {"S: O": ").diagonal()", "S: M D": "Euclidean(S⃗)", "S: R": "weight"},
    ),
    Rule(
        "diagonal in a constant basis",
        lambda f: cotangents(f).diagonal(LinearMap(AXES, S.translations, Draw.seeded(3).invertible(4), "b")),
        "S: T", {"S: GL O M D SP P": "in b"},
    ),
    Rule(
        "unit-wise", outer_blocks, f"{AFFINE}; S: T M D SP P R",
        {"S: GL O": "(second_moment(cotangents of S⃗*)).diagonal()"},
    ),
    Rule(
        "weight apart from bias at the origin", lambda f: cotangents(f) * apart(f),
        "A: GL O M D SP P R; S: T GL O M D SP P R", {"A: T": "the origin of A"}, joint=(J,),
    ),
    Rule("weight apart from bias at the mean", lambda f: cotangents(f) * apart(f, "mean"), ALL, joint=(J,)),
    Rule(
        "weight apart from bias at a constant point", lambda f: apart(f, "a point"), "",
        {"A: T GL O M D R": "a point of A"},
    ),
    Rule(
        "weight and bias as spaces of their own",
        lambda f: direct_sum(weight=cotangents(f) * centred(f), bias=cotangents(f, 4) * Euclidean(OnePoint.hull)),
        "A: T GL O M D; S: T GL O M D",
    ),
    Rule(
        "restrict to biases",
        lambda f: kfac(f).pullback(LinearMap.identity(S.translations) * LinearMap.height(A).transpose),
        "S: T GL O M D",
    ),
    Rule(
        "restrict to weights",
        lambda f: kfac(f).pullback(LinearMap.identity(S.translations) * LinearMap.difference(A).transpose),
        "A: GL O M D; S: T GL O M D", {"A: T": "the origin of A"},
    ),
    Rule(
        "quotient by biases", lambda f: seen_on_the_whole(kfac(f)), "A: T GL O M D R; S: T GL O M D",
    ),
    Rule(
        "quotient by a constant subspace",
        lambda f: seen_on_the_whole(
            cotangents(f), LinearMap(Space("K", 1), S.translations, torch.tensor([[1.0], [2], [3], [-1]]).double(), "k")
        ),
        "S: T", {"S: GL O M D": "quotient by k"},
    ),
    Rule("restrict", lambda f: direct_sum(a=kfac(f), b=Euclidean(W)).restrict("a"), ALL, joint=(J,)),
    Rule(
        "direct sum", lambda f: direct_sum(a=kfac(f), b=0.3 * E_S), "A: T GL O M D; S: T O SP P",
        {"S: GL M D": "Euclidean(S⃗)", "S: R": "weight"},
    ),
    Rule(
        "pullback along a map that is data", lambda f: cotangents(f).pullback(jacobian(f)),
        "A: T GL O M D; S: T GL O M D",
    ),
    Rule(
        "pullback of a constant along data", lambda f: E_S.pullback(jacobian(f)), "A: T GL O M D SP P R; S: T O SP P",
        {"S: GL M D": "Euclidean(S⃗)", "S: R": "weight"},
    ),
    Rule(
        "pullback along a constant",
        lambda f: cotangents(f).pullback(LinearMap(A.translations, S.translations, Draw.seeded(8).tall(4, 3), "B")),
        "A: T; S: T", {"A: GL O M D SP P R": "Pullback(B, ...)", "S: GL O M D SP P R": "Pullback(B, ...)"},
    ),
    Rule(
        "moment of a sample seen through a constant",
        lambda f: second_moment(cotangents(f).sample.map(LinearMap(S.translations.dual, AXES, MATRIX, "B"))),
        "", {"S: GL O M D": "through B"},
    ),
    Rule(
        "moment of a sample without the 1", lambda f: second_moment(inputs(f).sample.map(LinearMap.difference(A))),
        "A: GL O M D SP P R", {"A: T": "the origin of A"},
    ),
    Rule("dual", lambda f: kfac(f).dual, ALL, joint=(J,)),
    Rule(
        "dual of damped", lambda f: (cotangents(f) + E_S).dual, "S: T O SP P",
        {"S: GL M D": "Euclidean(S⃗)", "S: R": "weight 2·S of Euclidean(S⃗)"},
    ),
    Rule(
        "constants on a space that nobody moves",
        lambda f: cotangents(f) * (tokens() + Euclidean(TOKENS.dual)),
        "S: T GL O M D",
    ),
    Rule(
        "eigenframes", lambda f: ekfac(f, E_S, E_A), "A: O SP P; S: T O SP P R",
        {"A: T GL M D R": "Euclidean(S⃗ ← Â)", "S: GL M D": "Euclidean(S⃗ ← Â)"}, not_joint=(J,),
    ),
    Rule("eigenframes relative to data", lambda f: ekfac(f, cotangents(f, 21), inputs(f, 20)), ALL, joint=(J,)),
    Rule(
        "constant axes",
        lambda f: RotatedDiagonal(E_S, [torch.linalg.qr(MATRIX)[0]], torch.tensor([1.0, 2, 3, 4]).double(), "axes"),
        "S: T", {"S: GL O M D SP P R": "RotatedDiagonal(axes"},
    ),
    Rule(
        "factored Tikhonov without π",
        lambda f: damp_factors(cotangents(f) * centred(f), 0.3, Euclidean(LINEAR), "none"),
        "A: T O SP P; S: T O SP P", {"A: R": "weight", "S: R": "weight"}, not_joint=(J,),
    ),
    *(
        Rule(
            f"factored Tikhonov with π by {split}",
            lambda f, split=split: damp_factors(cotangents(f) * centred(f), 0.3, Euclidean(LINEAR), split),
            "A: T O SP P; S: T O SP P", {"A: R": "weight", "A: GL M D": "Euclidean(A⃗*)"}, joint=(J,),
        )
        for split in ("trace", "frobenius")
    ),
    Rule(
        "factored Tikhonov in the hull", lambda f: damp_factors(kfac(f), 0.3, Euclidean(W), "trace"),
        "A: O SP P; S: T O SP P", {"A: T": "Euclidean(Â*)"}, not_joint=(J,),
    ),
    Rule(
        "factored Tikhonov on V only", lambda f: damp_factors(kfac(f), 0.3, euclidean_on_translations(W), "none"),
        "A: T O SP P; S: T O SP P", {"A: GL M D": "Euclidean(A⃗*)"}, not_joint=(J,),
    ),
    *(
        Rule(
            f"factored Tikhonov on V only with π by {split}",
            lambda f, split=split: damp_factors(kfac(f), 0.3, euclidean_on_translations(W), split),
            "A: T O SP P; S: T O SP P", {"A: R": "weight", "A: GL M D": "Euclidean(A⃗*)"}, joint=(J,),
        )
        for split in ("trace", "frobenius")
    ),
    *(
        Rule(
            f"factored Tikhonov relative to data, {split}",
            lambda f, split=split: damp_factors(kfac(f), 0.3, kfac(f, 10), split), ALL, joint=(J,),
        )
        for split in ("none", "trace", "frobenius")
    ),
    Rule(
        "traces with constants beside natural references",
        lambda f: damp(f, trace(inputs(f), E_A), inputs(f).symmetry * E_A.symmetry**-1),
        "A: O SP P; S: T GL O M D", {"A: T GL M D R": "Euclidean(Â*)"},
    ),
    Rule(
        "traces relative to data beside natural references",
        lambda f: damp(f, trace(inputs(f), inputs(f, 30)), inputs(f).symmetry * inputs(f).symmetry**-1), ALL,
    ),
    Rule("frame, then an O-invariant core (msgn)", kfac, ALL, norm=Spectral, joint=(J,)),
    Rule(
        "the same truncated", kfac, ALL, norm=lambda g: Spectral(g, NewtonSchulz()), joint=(J,),
    ),
    Rule(
        "msgn in the coordinates", lambda f: Euclidean(W), "A: O SP P; S: T O SP P",
        {"A: T": "Euclidean", "S: GL M D R": "Euclidean"}, norm=Spectral,
    ),
    Rule("at unit length", kfac, ALL, norm=FromInnerProduct, joint=(J,)),
    Rule("CG converged", gradients, ALL, solver=lambda f: CG(1e-12), joint=(J,)),
    Rule(
        "CG truncated", gradients, "A: O SP P; S: T O SP P",
        {"A: T GL M D": "CG without a preconditioner", "S: GL M D": "CG without a preconditioner"},
        solver=lambda f: CG(iterations=2), not_joint=(J,),
    ),
    Rule(
        "CG truncated, preconditioner of data", gradients, ALL, joint=(J,),
        solver=lambda f: CG(iterations=2, preconditioner=kfac(f)),
    ),
]  # fmt: skip


def damp(frames: Frames, scalar: Tensor, names: Symmetry) -> InnerProduct:
    return kfac(frames) + Scaled(0.3 * scalar, kfac(frames, 10), names)


def seen_on_the_whole(g: InnerProduct, kernel: LinearMap | None = None) -> InnerProduct:
    if kernel is None:
        kernel = LinearMap.identity(S.translations) * LinearMap.height(A).transpose
    q = g.quotient(kernel)
    return q.pullback(q.projection)  # type: ignore[attr-defined]
