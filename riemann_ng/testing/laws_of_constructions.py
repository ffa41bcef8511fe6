"""The laws of what is made of a form: duals, pullbacks, sums, products, frames, means."""

from __future__ import annotations

import torch
from torch import Tensor

from ..elements import Vector
from ..errors import NotClosed
from ..inner_products import (
    BlockDiagonal,
    Chain,
    Euclidean,
    Gram,
    InnerProduct,
    Kronecker,
    Power,
    QuasiDiagonal,
    Scaled,
    Series,
    Sum,
)
from ..linear_maps import LinearMap
from ..metrics.learned import LearnedInverse
from ..spaces import DirectSum, Family, Space
from .cases import Case, law
from .kinds_of_chains import mean_of_chains, mean_of_series
from .kinds_of_layers import mean_of_powers, quasi
from .matrices import by_member


@law
def naturality(case: Case) -> None:
    """φ ((g.pullback φ).sharp(φ.pullback ξ)) == g.sharp(ξ): covectors go by the inverse transpose."""
    phi, xi = case.draw.isomorphism(case.form.space), case.covector()
    P = phi.matrix()
    seen = case.form.pullback(phi)
    back = torch.linalg.solve(
        P.mT, seen.flat(Vector(phi.domain, torch.linalg.solve(P, case.form.sharp(xi).components))).data
    )
    case.agree(back, xi.components, "flat seen through an isomorphism")
    case.agree(
        phi(seen.sharp(phi.pullback(xi))).components, case.inverse @ xi.components, "sharp seen through an isomorphism"
    )


@law
def pullback(case: Case) -> None:
    """(g.pullback φ)(u, u') == g(φ u, φ u')."""
    U = Space(case.draw.name("U"), max(1, case.dim - 1))
    P = case.draw.tall(case.dim, U.dim)
    pulled, u = case.form.pullback(LinearMap(U, case.form.space, P)), case.draw.vector(U)
    M = P.mT @ case.matrix @ P
    case.agree(pulled.matrix(P), M, "the matrix of a pullback")
    case.agree(pulled.flat(u).data, M @ u.data, "flat of a pullback")
    case.agree(pulled.sharp(pulled.flat(u)).data, u.data, "the round trip of a pullback")


@law
def restriction(case: Case) -> str | None:
    """On a summand it is the block of the matrix."""
    space = case.form.space
    if not isinstance(space, DirectSum):
        return "its space is not a direct sum"
    for name, where in space.slices.items():
        part = case.form.restrict(name)
        case.require(part.space == space[name], f"restrict({name!r}) lives on {part.space}")
        case.agree(part.matrix(case.matrix), case.matrix[where, where], f"restrict({name!r})")
    return None


@law
def quotient(case: Case) -> str | None:
    """The length of a class is that of its shortest member (the Schur complement)."""
    if case.dim < 2:
        return "a space of dimension one has no quotient"
    K, M, v = case.draw.tall(case.dim, 1), case.matrix, case.vector()
    seen = case.form.quotient(LinearMap(Space(case.draw.name("K"), 1), case.form.space, K))
    shortest = v.components - K @ torch.linalg.solve(K.mT @ M @ K, K.mT @ M @ v.components)
    u = seen.projection(v)  # type: ignore[attr-defined]
    size = v.components @ M @ v.components
    case.agree(seen.inner(u, u), shortest @ M @ shortest, "the length of a class", size)
    return None


@law
def frame(case: Case) -> None:
    """E Eᵀ == sharp, and the columns of E are orthonormal."""
    E = case.form.frame(case.matrix)
    matrix = E.matrix(case.matrix)
    case.agree(matrix @ matrix.mT, case.inverse, "E Eᵀ and the inverse")
    case.agree(E.transpose.matrix(case.matrix), matrix.mT, "the transpose of the frame")
    case.agree(matrix.mT @ case.matrix @ matrix, torch.eye(case.dim).to(matrix), "g on the frame and the identity")


@law
def dual(case: Case) -> None:
    """flat and sharp change places, the dual of the dual acts as g, logdet changes sign."""
    g, v, xi = case.form, case.vector(), case.covector()
    case.require(g.dual.space == g.space.dual, f"the dual lives on {g.dual.space}")
    case.agree(g.dual.flat(xi).components, case.inverse @ xi.components, "flat of the dual")
    case.agree(g.dual.sharp(v).components, case.matrix @ v.components, "sharp of the dual")
    case.agree(g.dual.dual.flat(v).components, case.matrix @ v.components, "flat of the dual of the dual")
    case.agree(g.dual.matrix(case.matrix), case.inverse, "the matrix of the dual")
    E = g.dual.frame(case.matrix).matrix(case.matrix)
    case.agree(E @ E.mT, case.matrix, "the frame of the dual")
    gap = g.dual.logdet(case.matrix) + torch.linalg.slogdet(case.matrix)[1]
    case.agree(gap, torch.zeros_like(gap), "logdet of the dual and minus that of the matrix", float(case.dim))


@law
def logdet(case: Case) -> None:
    """logdet is that of the matrix."""
    gap = case.form.logdet(case.matrix) - torch.linalg.slogdet(case.matrix)[1]
    case.agree(gap, torch.zeros_like(gap), "logdet and that of the matrix", float(case.dim))


@law
def diagonal(case: Case) -> None:
    """The diagonal in the coordinates, or in a basis."""
    M, phi = case.matrix, case.draw.isomorphism(case.form.space)
    case.agree(case.form.diagonal().matrix(M), torch.diag(M.diagonal()), "diagonal()")
    P, back = phi.matrix(), torch.linalg.inv(phi.matrix())
    expected = back.mT @ torch.diag((P.mT @ M @ P).diagonal()) @ back
    case.agree(case.form.diagonal(phi).matrix(M), expected, "diagonal(basis)")


@law
def sums_and_multiples(case: Case) -> None:
    """(c g + h).flat == c g.flat + h.flat, and its sharp is the inverse."""
    V, M, v = case.form.space, case.matrix, case.vector()
    N = case.draw.positive(case.dim)
    h = Euclidean(V) if isinstance(V, Family) else Gram(V, N)
    N = torch.eye(case.dim).to(M) if isinstance(V, Family) else N
    for text, form, matrix in (
        ("3 g", 3 * case.form, 3 * M), ("g / 3", case.form / 3, M / 3), ("g + g", case.form + case.form, 2 * M),
        ("2 g + h", 2 * case.form + h, 2 * M + N), ("h + g", h + case.form, M + N),
    ):  # fmt: skip
        case.agree(form.flat(v).components, matrix @ v.components, f"flat of {text}")
        case.agree(form.sharp(form.flat(v)).components, v.components, f"the round trip of {text}")


@law
def products(case: Case) -> None:
    """(g * h)(v ⊗ w, v' ⊗ w') == g(v, v') h(w, w'), from either side."""
    W = Space(case.draw.name("W"), 2)
    N = case.draw.positive(2)
    h = Gram(W, N)
    right = case.form * h
    x = case.draw.vector(right.space)
    case.agree(right.flat(x).components, torch.kron(case.matrix, N) @ x.components, "flat of g * h")
    case.agree(right.sharp(right.flat(x)).components, x.components, "the round trip of g * h")
    if isinstance(case.form.space, Family):
        return
    left = h * case.form
    x = case.draw.vector(left.space)
    case.agree(left.flat(x).components, torch.kron(N, case.matrix) @ x.components, "flat of h * g")
    case.agree(left.sharp(left.flat(x)).components, x.components, "the round trip of h * g")


@law
def pencil(case: Case) -> None:
    """A frame orthonormal for a reference in which g is diagonal; sharp modulo no kernel is sharp."""
    V, xi, N = case.form.space, case.covector(), case.draw.positive(case.dim)
    references = [(Euclidean(V), torch.eye(case.dim).to(N))] + ([] if isinstance(V, Family) else [(Gram(V, N), N)])
    for h, H in references:
        factor = case.form.pencil_with(h, H)
        P = factor.from_axes(torch.eye(case.dim).to(H).reshape(case.dim, *factor.spectrum.shape)).mT
        case.agree(P.mT @ H @ P, torch.eye(case.dim).to(H), "the reference in the frame of the pencil")
        case.agree(P.mT @ case.matrix @ P, torch.diag(factor.spectrum.flatten()), "g in the frame of the pencil")
        solved = case.form.sharp_modulo_kernel(xi, h)
        case.agree(solved.components, case.inverse @ xi.components, "sharp_modulo_kernel of a definite form")


@law
def blend(case: Case) -> str | None:
    """The mean of the two, if the kind is closed; of products factor by factor, of sums term by term.

    Of a quasi-diagonal the mean of the part that is kept.
    """
    g = case.form
    if case.other is None:
        return "no second form was drawn"
    try:
        mixed = g.blend(case.other[0], 0.25)
    except NotClosed:
        return "its kind is not closed under means"
    case.agree(mixed.matrix(case.matrix), _mean(g, case.matrix, *case.other, 0.25), "blend(other, 0.25)")
    case.agree(g.blend(case.other[0], 0.0).matrix(case.matrix), case.matrix, "blend(other, 0)")
    case.agree(g.blend(case.other[0], 1.0).matrix(case.matrix), case.other[1], "blend(other, 1)")
    return None


def _mean(g: InnerProduct, G: Tensor, h: InnerProduct, H: Tensor, w: float) -> Tensor:
    if isinstance(g, Scaled):
        return g.scalar * _mean(g.of, G / g.scalar, (1 / g.scalar) * h, H / g.scalar, w)
    if isinstance(g, Kronecker):
        (c, like) = (h.scalar, h.of) if isinstance(h, Scaled) else (1.0, h)
        assert isinstance(like, Kronecker)
        theirs = [c * like.factors[0], *like.factors[1:]]
        means = [_mean(a, a.matrix(G), b, b.matrix(G), w) for a, b in zip(g.factors, theirs, strict=True)]
        return by_member(g.members, [_members(M, a) for M, a in zip(means, g.factors, strict=True)])
    if isinstance(g, Sum) and isinstance(h, Sum):
        pairs = zip(g.terms, h.terms, strict=True)
        return torch.stack([_mean(a, a.matrix(G), b, b.matrix(G), w) for a, b in pairs]).sum(0)
    if isinstance(g, BlockDiagonal) and isinstance(h, BlockDiagonal):
        where = g.space.slices
        return torch.block_diag(*(_mean(g.parts[k], G[s, s], h.parts[k], H[s, s], w) for k, s in where.items()))
    if isinstance(g, LearnedInverse) and isinstance(h, LearnedInverse):
        return torch.linalg.inv(_mean(g.of, torch.linalg.inv(G), h.of, torch.linalg.inv(H), w))
    if isinstance(g, Chain) and isinstance(h, Chain):
        return mean_of_chains(g, h, w)
    if isinstance(g, Power) and isinstance(h, Power):
        return mean_of_powers(g, h, w)
    if isinstance(g, Series) and isinstance(h, Series):
        return mean_of_series(g, h, w)
    if isinstance(g, QuasiDiagonal):
        d, mean = g.space.shape[-1], (1 - w) * G + w * H
        return torch.block_diag(*(quasi(mean[i : i + d, i : i + d]) for i in range(0, len(mean), d)))
    return (1 - w) * G + w * H


def _members(M: Tensor, g: InnerProduct) -> Tensor:
    if not isinstance(g.space, Family):
        return M
    d = g.space.of.dim
    return torch.stack([M[i : i + d, i : i + d] for i in range(0, len(M), d)])
