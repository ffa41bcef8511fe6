"""The registry of all kinds of inner products, each drawn together with its matrix, which is computed without it.

A new kind enters by one line of `KINDS`: a name, and a function from a `Draw` to a form and its matrix on components.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..inner_products import (
    Diagonal,
    Euclidean,
    Gram,
    LowRank,
    Pullback,
    damp_factors,
    direct_sum,
    second_moment,
)
from ..linear_maps import LinearMap
from ..samples import Chunked, Measure, OneHot, Sample
from ..spaces import Family, Space, VectorSpace
from .draws import Draw
from .kinds_by_inverse import by_inverses
from .kinds_learned import learned_inverse
from .kinds_of_chains import chain, series
from .kinds_of_layers import (
    damped_quasi_diagonal,
    damped_unit_wise,
    framed,
    kept_eigenbasis,
    power,
    quasi_diagonal,
    rotated_by_members,
    rotated_diagonal,
    rotated_with_vectors,
    unit_wise,
    unit_wise_of_a_family,
)
from .kinds_on_hulls import damped_on_translations
from .matrices import Drawn, Factory, by_member, kron, moment

# Leaves


def gram(draw: Draw, space: VectorSpace | None = None) -> Drawn:
    V = draw.simple_space() if space is None else space
    M = draw.positive(V.dim)
    return Gram(V, M, name=draw.name("M")), M


def euclidean(draw: Draw) -> Drawn:
    V = draw.space()
    return Euclidean(V), torch.eye(V.dim, dtype=draw.dtype, device=draw.device)


def diagonal(draw: Draw) -> Drawn:
    V = draw.space()
    entries = draw.between(0.2, 5.0, V.dim)
    return Diagonal(V, entries.reshape(V.shape)), torch.diag(entries)


def gram_of_a_family(draw: Draw) -> Drawn:
    V = Family(draw.simple_space(1, 3), draw.integer(1, 3))
    M = draw.positive(V.of.dim, V.members)
    return Gram(V, M), torch.block_diag(*M)


def low_rank(draw: Draw) -> Drawn:
    V = draw.space()
    rows = draw.tall(V.dim + draw.integer(0, 3), V.dim)
    return LowRank(V, rows), rows.mT @ rows


# Moments


def moment_of_a_sample(draw: Draw) -> Drawn:
    sample = draw.sample(draw.simple_space())
    n, k, t = sample.counts
    return second_moment(sample), moment(sample.dense(), 1 / (n * k * t))


def moment_of_cotangents(draw: Draw) -> Drawn:
    sample, kind = draw.sample(draw.simple_space()), draw.one_of(["exact", "monte carlo"])
    (n, k, _), S = sample.counts, sample.space.dual
    data = sample.dense().reshape(*sample.counts, *S.shape)
    weight = 1 / n if kind == "exact" else 1 / (n * k)
    return second_moment(Sample.of_cotangents(S, data, kind)), moment(sample.dense(), weight)


def moment_with_a_mask(draw: Draw) -> Drawn:
    V = draw.simple_space()
    n, t = V.dim + draw.integer(1, 3), 3
    present = torch.zeros(n, t, dtype=torch.bool)
    for i in range(n):
        present[i, : draw.integer(1, t)] = True
    x = draw.normal(n, 1, t, V.dim)
    x[:, 0][present] = draw.tall(int(present.sum()), V.dim) * n**0.5
    weights = (present.double() / present.sum()).reshape(n, 1, t).to(x)
    return second_moment(Sample(V, x.reshape(n, 1, t, *V.shape), Measure.probability(present))), moment(x, weights)


def moment_with_weights(draw: Draw) -> Drawn:
    sample = draw.sample(draw.simple_space())
    weights = draw.between(0.5, 2.0, *sample.counts)
    data = sample.dense().reshape(*sample.counts, *sample.space.shape)
    return second_moment(Sample(sample.space, data, Measure.weighted(weights))), moment(sample.dense(), weights)


def moment_in_chunks(draw: Draw) -> Drawn:
    sample, axis = draw.sample(draw.simple_space()), draw.integer(0, 1)
    n, k, t = sample.counts
    data = sample.dense().reshape(n, k, t, *sample.space.shape)
    chunks = data.split(draw.integer(1, 3), dim=axis)
    chunked = Sample(sample.space, Chunked(lambda: iter(chunks), (n, k, t), axis))
    return second_moment(chunked), moment(sample.dense(), 1 / (n * k * t))


def moment_of_one_hot(draw: Draw) -> Drawn:
    V = draw.simple_space()
    indices = torch.cat([torch.arange(V.dim), torch.tensor([draw.integer(0, V.dim - 1) for _ in range(3)])])
    x = torch.nn.functional.one_hot(indices, V.dim).to(draw.dtype)[:, None, None]
    return second_moment(Sample(V, OneHot(indices.to(draw.device), draw.dtype))), moment(
        x.to(draw.device), 1 / len(indices)
    )


def moment_of_a_family(draw: Draw) -> Drawn:
    V = Family(draw.simple_space(2, 3), draw.integer(1, 3))
    joint = bool(draw.integer(0, 1))
    x = draw.sample(V).dense()
    n, k, t, d = *x.shape[:3], V.of.dim
    whole = moment(x, 1 / (n * k * t))
    blocks = [whole[i : i + d, i : i + d] for i in range(0, V.dim, d)]
    form = second_moment(Sample(V, x.reshape(n, k, t, *V.shape)), joint=joint)
    return form, whole if joint else torch.block_diag(*blocks)


# Products and sums


def product(draw: Draw) -> Drawn:
    (g, G), (h, H) = draw.one_of([gram, moment_of_a_sample])(draw), draw.one_of([gram, moment_of_one_hot])(draw)
    return g * h, kron(G, H)


def product_of_three(draw: Draw) -> Drawn:
    drawn = [gram(draw, draw.simple_space(2, 3)) for _ in range(3)]
    return drawn[0][0] * (drawn[1][0] * drawn[2][0]), kron(*(M for _, M in drawn))


def product_with_euclidean(draw: Draw) -> Drawn:
    (g, G), V = gram(draw), draw.simple_space()
    return Euclidean(V) * g, kron(torch.eye(V.dim, dtype=G.dtype, device=G.device), G)


def product_of_families(draw: Draw) -> Drawn:
    """Grouped layers: members of their own on either side, or a factor common to all."""
    m = draw.integer(1, 3)
    V, W = draw.simple_space(2, 3), draw.simple_space(2, 3)
    left, right = draw.one_of([(True, True), (True, False), (False, True)])
    G, A = (draw.positive(U.dim, m) if own else draw.positive(U.dim) for U, own in ((V, left), (W, right)))
    g, a = Gram(Family(V, m) if left else V, G, name="G"), Gram(Family(W, m) if right else W, A, name="A")
    return g * a, by_member(m, [G, A])


def blocks(draw: Draw) -> Drawn:
    leaves: list[Factory] = [gram, product]
    (g, G), (h, H), (k, K) = draw.one_of(leaves)(draw), moment_of_a_sample(draw), euclidean(draw)
    return direct_sum({"fc1": g, "fc2": h, "rest": k}), torch.block_diag(G, H, K)


def multiple(draw: Draw) -> Drawn:
    (g, M), c = draw.one_of([gram, product, euclidean, blocks])(draw), 0.25 * draw.integer(1, 12)
    return c * g, c * M


def multiple_by_a_tensor(draw: Draw) -> Drawn:
    (g, M), c = draw.one_of([gram, product, moment_of_a_sample])(draw), draw.between(0.2, 5.0)
    return c * g, c * M


def sum_of_grams(draw: Draw) -> Drawn:
    g, M = gram(draw)
    h, N = gram(draw, g.space)
    return g + 0.5 * h, M + 0.5 * N


def damped_moment(draw: Draw) -> Drawn:
    """A low-rank form plus a definite one."""
    V = draw.simple_space(3, 5)
    x = draw.normal(draw.integer(1, 2), 1, 1, V.dim)
    on: list[Callable[[Draw, VectorSpace], Drawn]] = [gram, diagonal_on]
    h, H = draw.one_of(on)(draw, V.dual)
    return second_moment(Sample(V, x.reshape(*x.shape[:3], *V.shape))) + 0.5 * h, moment(x, 1 / len(x)) + 0.5 * H


def diagonal_on(draw: Draw, V: VectorSpace) -> Drawn:
    entries = draw.between(0.2, 5.0, V.dim)
    return Diagonal(V, entries.reshape(V.shape)), torch.diag(entries)


def tikhonov(draw: Draw) -> Drawn:
    """Exact damping of a product, in Euclidean, given and data references; a factor may be degenerate."""
    V, W, c = draw.simple_space(2, 3), draw.simple_space(2, 4), draw.between(0.05, 2.0)
    G, A = draw.positive(V.dim), draw.positive(W.dim)
    if draw.integer(0, 1):
        G = (r := draw.normal(1, V.dim)).mT @ r
    product = Gram(V, G, name="G") * Gram(W, A, name="A")
    reference, H = draw.one_of([euclidean_reference, product_reference, data_reference])(draw, V, W)
    return product + float(c) * reference, kron(G, A) + float(c) * H


def euclidean_reference(draw: Draw, V: VectorSpace, W: VectorSpace) -> Drawn:
    return Euclidean(V * W), torch.eye(V.dim * W.dim, dtype=draw.dtype, device=draw.device)


def product_reference(draw: Draw, V: VectorSpace, W: VectorSpace) -> Drawn:
    (h, H), (k, K) = gram(draw, V), gram(draw, W)
    return h * k, kron(H, K)


def data_reference(draw: Draw, V: VectorSpace, W: VectorSpace) -> Drawn:
    left, right = draw.sample(V.dual), draw.sample(W.dual)
    H, K = (moment(s.dense(), 1 / s.dense()[..., 0].numel()) for s in (left, right))
    return second_moment(left) * second_moment(right), kron(H, K)


def damped_factors(draw: Draw) -> Drawn:
    """(G + √λ/π h) ⊗ (A + √λ π k), in every split and reference."""
    V, W, damping = draw.simple_space(2, 3), draw.simple_space(2, 4), float(draw.between(0.01, 1.0))
    (g, G), (a, A) = gram(draw, V), gram(draw, W)
    reference, both = draw.one_of([euclidean_reference, product_reference, data_reference])(draw, V, W)
    h, k = reference.factors_on((V, W)) or ()
    H, K = h.matrix(G), k.matrix(A)
    split = draw.one_of(["trace", "frobenius", "none"])
    assert torch.allclose(kron(H, K), both)
    pi = 1.0
    if split != "none":
        sizes = []
        for M, N in ((G, H), (A, K)):
            spectrum = torch.linalg.eigvals(torch.linalg.solve(N, M)).real
            sizes.append(float(spectrum.mean() if split == "trace" else spectrum.square().mean().sqrt()))
        pi = (sizes[1] / sizes[0]) ** 0.5
    dense = kron(G + damping**0.5 / pi * H, A + damping**0.5 * pi * K)
    return damp_factors(g * a, damping, reference, split), dense  # type: ignore[arg-type]


# Duals and maps


def dual(draw: Draw) -> Drawn:
    form, M = draw.one_of([gram, product, blocks, moment_of_a_sample, multiple, sum_of_grams, low_rank, damped_moment])(
        draw
    )
    return form.dual, torch.linalg.inv(M).contiguous()


def pulled_back(draw: Draw) -> Drawn:
    (g, M), k = draw.one_of([gram, product, moment_of_a_sample, diagonal])(draw), draw.integer(1, 3)
    U = Space(draw.name("U"), min(k, g.space.dim))
    P = draw.tall(g.space.dim, U.dim)
    return Pullback(LinearMap(U, g.space, P), g), P.mT @ M @ P


def restricted(draw: Draw) -> Drawn:
    form, M = blocks(draw)
    coupled = form.pullback(LinearMap(form.space, form.space, P := draw.invertible(form.space.dim)))
    where = form.space.slices["fc2"]  # type: ignore[attr-defined]
    return coupled.restrict("fc2"), (P.mT @ M @ P)[where, where]


def quotient(draw: Draw) -> Drawn:
    """The Schur complement, in the components that the quotient chose."""
    g, M = draw.one_of([gram, product, moment_of_a_sample])(draw)
    K = draw.tall(g.space.dim, 1)
    form = g.quotient(LinearMap(Space(draw.name("K"), 1), g.space, K))
    section = torch.linalg.pinv(form.projection.matrix(M))  # type: ignore[attr-defined]
    schur = M - M @ K @ torch.linalg.solve(K.mT @ M @ K, K.mT @ M)
    return form, section.mT @ schur @ section


def diagonal_in_a_basis(draw: Draw) -> Drawn:
    g, M = draw.one_of([gram, product, moment_of_a_sample])(draw)
    basis = draw.isomorphism(g.space)
    P = basis.matrix()
    inverse = torch.linalg.inv(P)
    return g.diagonal(basis), inverse.mT @ torch.diag((P.mT @ M @ P).diagonal()) @ inverse


def damped_network(draw: Draw) -> Drawn:
    """What an optimizer meets: a direct sum of products, each damped exactly or factor by factor."""
    (g, G), (h, H) = tikhonov(draw), damped_factors(draw)
    return direct_sum(fc1=g, fc2=h), torch.block_diag(G, H)


KINDS: dict[str, Factory] = {
    "euclidean": euclidean,
    "diagonal": diagonal,
    "gram": gram,
    "gram of a family": gram_of_a_family,
    "low rank": low_rank,
    "framed": framed,
    "power": power,
    "kept eigenbasis": kept_eigenbasis,
    "rotated diagonal": rotated_diagonal,
    "rotated by members": rotated_by_members,
    "rotated with vectors": rotated_with_vectors,
    "unit-wise": unit_wise,
    "unit-wise of a family": unit_wise_of_a_family,
    "damped unit-wise": damped_unit_wise,
    "quasi-diagonal": quasi_diagonal,
    "damped quasi-diagonal": damped_quasi_diagonal,
    "moment of a sample": moment_of_a_sample,
    "moment of cotangents": moment_of_cotangents,
    "moment with a mask": moment_with_a_mask,
    "moment with weights": moment_with_weights,
    "moment in chunks": moment_in_chunks,
    "moment of one-hot": moment_of_one_hot,
    "moment of a family": moment_of_a_family,
    "product": product,
    "product of three": product_of_three,
    "product with euclidean": product_with_euclidean,
    "product of families": product_of_families,
    "direct sum": blocks,
    "chain": chain,
    "series": series,
    "multiple": multiple,
    "multiple by a tensor": multiple_by_a_tensor,
    "sum of grams": sum_of_grams,
    "damped moment": damped_moment,
    "damped on translations": damped_on_translations,
    "tikhonov": tikhonov,
    "damped factors": damped_factors,
    "damped network": damped_network,
    "by inverses": by_inverses,
    "learned inverse": learned_inverse,
    "dual": dual,
    "pullback": pulled_back,
    "restriction": restricted,
    "quotient": quotient,
    "diagonal in a basis": diagonal_in_a_basis,
}
