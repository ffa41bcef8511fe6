"""The kinds that metrics make of a layer: diagonal in a frame, unit by unit, and quasi-diagonal."""

from __future__ import annotations

import torch
from torch import Tensor

from ..inner_products import (
    Diagonal,
    Euclidean,
    Framed,
    Gram,
    InnerProduct,
    Kronecker,
    Power,
    QuasiDiagonal,
    RotatedDiagonal,
    UnitWise,
)
from ..metrics.eigenbasis import KeptEigenbasis, eigenbasis
from ..spaces import AffineSpace, Family, Hom, VectorSpace
from .draws import Draw
from .matrices import Drawn, kron


def framed(draw: Draw) -> Drawn:
    """By a frame, a diagonal one, or one for each member of a family."""
    V, sort = draw.simple_space(2, 3), draw.integer(0, 2)
    if sort == 0:
        k = draw.between(0.5, 2.0, V.dim)
        return Framed(V, k), torch.diag(1 / k**2)
    if sort == 1:
        return Framed(V, K := draw.invertible(V.dim)), torch.linalg.inv(K @ K.mT).contiguous()
    K = torch.stack([draw.invertible(V.dim) for _ in range(draw.integer(1, 3))])
    return Framed(Family(V, len(K)), K), torch.block_diag(*torch.linalg.inv(K @ K.mT))


def power(draw: Draw) -> Drawn:
    """Of a diagonal form, of a matrix, or of both factors of a product."""
    V, W, p = draw.simple_space(2, 3), draw.simple_space(2, 3), draw.one_of([0.5, 0.25])
    M, N = draw.positive(V.dim), draw.positive(W.dim)
    sort, before = draw.integer(0, 2), 0.1 * draw.integer(0, 3)
    if sort == 2:
        form = Power(Gram(V, M, name=draw.name("M")) * Gram(W, N, name=draw.name("N")), p, before)
        return form, kron(to_power(M, p, before), to_power(N, p, before))
    if sort == 1:
        return Power(Gram(V, M, name=draw.name("M")), p, before, 0.5), to_power(M, p, before, 0.5)
    entries = draw.between(0.2, 5.0, V.dim)
    return Power(Diagonal(V, entries), p, before, 0.5), to_power(torch.diag(entries), p, before, 0.5)


def kept_eigenbasis(draw: Draw) -> Drawn:
    """A root of a diagonal in the eigenbasis of two factors, which are remembered."""
    V, W = draw.simple_space(2, 3), draw.simple_space(2, 3)
    factors = draw.positive(V.dim), draw.positive(W.dim)
    turns, ties = zip(*(eigenbasis(M) for M in factors), strict=True)
    spectrum = draw.between(0.2, 5.0, V.dim, W.dim)
    form = RotatedDiagonal(Euclidean(V * W), turns, spectrum, "eigenbasis", natural=True)
    P = kron(*turns)
    dense = P @ torch.diag(spectrum.flatten().sqrt() + 0.1) @ P.mT
    return KeptEigenbasis(Power(form, 0.5, after=0.1), factors, turns, ties), dense


def to_power(M: Tensor, p: float, before: float, after: float = 0.0) -> Tensor:
    values, vectors = torch.linalg.eigh(M)
    return (vectors * ((values + before) ** p + after)) @ vectors.mT


def mean_of_powers(g: Power, h: Power, w: float) -> Tensor:
    """The power of the mean."""
    pairs = [(g.of, h.of)]
    if isinstance(g.of, Kronecker) and isinstance(h.of, Kronecker):
        pairs = list(zip(g.of.factors, h.of.factors, strict=True))
    means = [(1 - w) * a.matrix() + w * b.matrix() for a, b in pairs]
    return kron(*(to_power(M, g.power, g.before, g.after) for M in means))


def rotated_diagonal(draw: Draw) -> Drawn:
    sides = [draw.simple_space(2, 3) for _ in range(draw.integer(1, 3))]
    drawn = [(Gram(V, M := draw.positive(V.dim), name=draw.name("M")), M) for V in sides]
    axes = [torch.linalg.inv(torch.linalg.cholesky(M)).mT for _, M in drawn]
    axes = [E @ torch.linalg.qr(draw.normal(len(E), len(E)))[0] for E in axes]
    spectrum = draw.between(0.2, 5.0, *(V.dim for V in sides))
    coframe = torch.linalg.inv(kron(*axes))
    reference: InnerProduct = drawn[0][0]
    for h, _ in drawn[1:]:
        reference = reference * h
    return RotatedDiagonal(reference, axes, spectrum), coframe.mT @ torch.diag(spectrum.flatten()) @ coframe


def rotated_by_members(draw: Draw) -> Drawn:
    """A frame for each member of a family, or one common to all."""
    m, dims = draw.integer(2, 3), (draw.integer(2, 3), draw.integer(2, 3))
    V, W = (Family(draw.simple_space(d, d), m) for d in dims)
    common = draw.integer(0, 1)
    axes = [
        torch.linalg.qr(draw.normal(*([] if common and i else [m]), V.of.dim, V.of.dim))[0]
        for i, V in enumerate((V, W))
    ]
    spectrum = draw.between(0.2, 5.0, m, V.of.dim, W.of.dim)
    members = []
    for i in range(m):
        P = kron(*(Q if Q.ndim == 2 else Q[i] for Q in axes))
        members.append(P @ torch.diag(spectrum[i].flatten()) @ P.mT)
    return RotatedDiagonal(Euclidean(V * W), axes, spectrum), torch.block_diag(*members)


def rotated_with_vectors(draw: Draw) -> Drawn:
    """Along one factor the frame is diagonal, and kept as a vector."""
    V, W = draw.simple_space(2, 3), draw.simple_space(2, 4)
    M, entries = draw.positive(V.dim), draw.between(0.2, 5.0, W.dim)
    P = torch.linalg.inv(torch.linalg.cholesky(M)).mT @ torch.linalg.qr(draw.normal(V.dim, V.dim))[0]
    spectrum = draw.between(0.2, 5.0, V.dim, W.dim)
    reference = Gram(V, M, name="M") * Diagonal(W, entries.reshape(W.shape), name="D")
    coframe = torch.linalg.inv(kron(P, torch.diag(entries.rsqrt())))
    return (
        RotatedDiagonal(reference, [P, entries.rsqrt()], spectrum),
        coframe.mT @ torch.diag(spectrum.flatten()) @ coframe,
    )


def layer(draw: Draw) -> VectorSpace:
    A, S = AffineSpace(draw.name("A"), draw.integer(1, 3)), AffineSpace(draw.name("S"), draw.integer(1, 3))
    return Hom(A.hull, S.translations)


def unit_wise(draw: Draw) -> Drawn:
    V = draw.one_of([draw.simple_space(2, 3) * draw.simple_space(2, 3), layer(draw)])
    M = draw.positive(V.shape[1], V.shape[0])
    return UnitWise(V, M), torch.block_diag(*M)


def unit_wise_of_a_family(draw: Draw) -> Drawn:
    V = Family(layer(draw), draw.integer(1, 2))
    M = draw.positive(V.shape[2], *V.shape[:2])
    return UnitWise(V, M, natural=True), torch.block_diag(*M.flatten(0, 1))


def damped_unit_wise(draw: Draw) -> Drawn:
    (g, M), c = unit_wise(draw), float(draw.between(0.1, 1.0))
    S, V = g.space.factors
    K, entries = draw.positive(V.dim), draw.between(0.2, 5.0, g.space.dim)
    h, H = draw.one_of(
        [
            (Euclidean(g.space), torch.eye(len(M)).to(M)),
            (Diagonal(g.space, entries), torch.diag(entries)),
            (Euclidean(S) * Gram(V, K, name="K"), kron(torch.eye(S.dim).to(K), K)),
        ]
    )
    return g + c * h, M + c * H


def quasi(M: Tensor) -> Tensor:
    """Of a matrix with the bias last, its last row and its diagonal kept, and what completes the square."""
    row = M[-1] / M[-1, -1]
    whole = torch.outer(row, row) * M[-1, -1]
    return whole + torch.diag(M.diagonal() - whole.diagonal())


def quasi_diagonal(draw: Draw) -> Drawn:
    V = layer(draw)
    M = draw.positive(V.shape[1], V.shape[0])
    pivots = M[:, -1, -1]
    slopes = M[:, -1, :-1] / pivots[:, None]
    rest = M.diagonal(dim1=1, dim2=2)[:, :-1] - pivots[:, None] * slopes**2
    return QuasiDiagonal(V, pivots, slopes, rest), torch.block_diag(*map(quasi, M))


def damped_quasi_diagonal(draw: Draw) -> Drawn:
    (g, M), c = quasi_diagonal(draw), float(draw.between(0.1, 1.0))
    entries = draw.between(0.2, 5.0, len(M))
    h, H = draw.one_of(
        [(Euclidean(g.space), torch.eye(len(M)).to(M)), (Diagonal(g.space, entries), torch.diag(entries))]
    )
    return c * h + 2.0 * g, 2.0 * M + c * H
