"""Gaussian chains, drawn together with their matrices, which are inverted densely."""

from __future__ import annotations

import torch
from torch import Tensor

from ..inner_products import Gram
from ..inner_products.chain import Chain, Link
from ..inner_products.series import Series
from .draws import Draw
from .matrices import Drawn


def chain(draw: Draw) -> Drawn:
    """Two or three summands with moments of one sample for each factor, so that nothing is explained entirely."""
    count = draw.integer(2, 3)
    spaces = [(draw.simple_space(2, 2), draw.simple_space(2, 3)) for _ in range(count)]
    joint = [draw.positive(sum(V.dim for V in side)) for side in zip(*spaces, strict=True)]
    linked = [True, *(bool(draw.integer(0, 1)) for _ in range(count - 2))]
    ends: list[list[int]] = [[0], [0]]
    for pair in spaces:
        for end, V in zip(ends, pair, strict=True):
            end.append(end[-1] + V.dim)

    def block(side: int, i: int, j: int) -> Tensor:
        at = ends[side]
        return joint[side][at[i] : at[i + 1], at[j] : at[j + 1]].contiguous()

    parts = {
        f"fc{i}": Gram(V, block(0, i, i), name=draw.name("G")) * Gram(W, block(1, i, i), name=draw.name("A"))
        for i, (V, W) in enumerate(spaces)
    }
    links = {f"fc{i}": Link(block(0, i, i + 1), block(1, i, i + 1)) for i in range(count - 1) if linked[i]}
    blocks = {(i, j): torch.kron(block(0, i, j), block(1, i, j)) for i in range(count) for j in range(count)}
    for i, there in enumerate(linked):
        if not there:
            blocks[i, i + 1] = torch.zeros_like(blocks[i, i + 1])
    return Chain(parts, links), markov([[blocks[i, j] for j in range(count)] for i in range(count)])


def series(draw: Draw) -> Drawn:
    """Of a few steps, in either approximation, with lags that are contractions relative to the moments."""
    spaces = draw.simple_space(2, 3), draw.simple_space(2, 3)
    roots = [draw.invertible(V.dim) for V in spaces]
    moments = [L @ L.mT for L in roots]
    lags = []
    for L in roots:
        P = draw.normal(len(L), len(L))
        lags.append(L @ (0.8 * P / torch.linalg.matrix_norm(P, 2)) @ L.mT)
    lengths = {draw.integer(1, 4): 0.25, draw.integer(5, 9): 0.75}
    product = Gram(spaces[0], moments[0], name=draw.name("G")) * Gram(spaces[1], moments[1], name=draw.name("A"))
    how = draw.one_of(["symmetrized", "limit"])
    form = Series(product, (lags[0], lags[1]), lengths, how)  # type: ignore[arg-type]
    return form, dense_series(moments, lags, lengths, how)


def dense_series(moments: list[Tensor], lags: list[Tensor], lengths: dict[int, float], how: str) -> Tensor:
    """The sum over all pairs of steps; in the limit, the geometric series on either side, for each step."""
    roots = [torch.linalg.cholesky(M) for M in moments]
    white = [torch.linalg.solve(L, torch.linalg.solve(L, P).mT).mT for L, P in zip(roots, lags, strict=True)]
    if how == "symmetrized":
        white = [(P + P.mT) / 2 for P in white]
    psi, root = (torch.kron(*(M.contiguous() for M in pair)) for pair in (white, roots))
    eye = torch.eye(len(psi), dtype=psi.dtype)
    if how == "limit":
        one_sided = torch.linalg.inv(eye - psi)
        total = sum(t * share for t, share in lengths.items()) * (one_sided + one_sided.mT - eye)
    else:
        total = torch.zeros_like(eye)
        for length, share in lengths.items():
            for t in range(length):
                for u in range(length):
                    total = total + share * torch.linalg.matrix_power(psi, abs(t - u))
    return (root @ total @ root.mT).contiguous()


def mean_of_series(g: Series, h: Series, w: float) -> Tensor:
    """The series of the mean moments, lags and lengths."""

    def mean(M: Tensor, N: Tensor) -> Tensor:
        return (1 - w) * M + w * N

    moments = [mean(a.matrix(), b.matrix()) for a, b in zip(g.product.factors, h.product.factors, strict=True)]
    lags = [mean(P, Q) for P, Q in zip(g.lags, h.lags, strict=True)]
    both = set(g.lengths) | set(h.lengths)
    lengths = {t: (1 - w) * g.lengths.get(t, 0.0) + w * h.lengths.get(t, 0.0) for t in both}
    return dense_series(moments, lags, lengths, g.approximation)


def mean_of_chains(g: Chain, h: Chain, w: float) -> Tensor:
    """The chain whose factors are the means of theirs, and its links' too."""
    names = list(g.parts)
    count = len(names)

    def mean(M: Tensor, N: Tensor) -> Tensor:
        return (1 - w) * M + w * N

    def block(i: int, j: int) -> Tensor:
        name = names[min(i, j)]
        if abs(i - j) > 1 or (i != j and name not in g.links):
            return torch.zeros(g.space[names[i]].dim, g.space[names[j]].dim, dtype=g.dtype)
        if i != j:
            mine, theirs = g.links[name], h.links[name]
            M = torch.kron(mean(mine.G, theirs.G), mean(mine.A, theirs.A))
            return M if i < j else M.mT
        pairs = zip(g.parts[name].factors, h.parts[name].factors, strict=True)  # type: ignore[attr-defined]
        return torch.kron(*(mean(f.matrix(), k.matrix()).contiguous() for f, k in pairs))

    return markov([[block(i, j) for j in range(count)] for i in range(count)])


def markov(blocks: list[list[Tensor]]) -> Tensor:
    """The covariance of a Markov chain with these variances and covariances of neighbours, block by block."""
    count = len(blocks)
    cov: dict[tuple[int, int], Tensor] = {(i, i): blocks[i][i] for i in range(count)}
    for i in range(count):
        for j in range(i + 1, count):  # what i says of j goes through all that stand between them
            step = torch.linalg.solve(blocks[j - 1][j - 1], blocks[j - 1][j])
            cov[i, j] = cov[i, j - 1] @ step
            cov[j, i] = cov[i, j].mT
    return torch.cat([torch.cat([cov[i, j] for j in range(count)], 1) for i in range(count)])
