"""Second moments of per-example gradients, of which only a part is wanted, without stacking the gradients.

A gradient is D = Σ over sites of g ⊗ a: summed over the sites of an example first, multiplied with itself after. Where
a layer has one site, D is one product and its squares are products of squares: Σ w D² = (Σ w g²)ᵀ a², as cheap as
the layer's own backward. With sites a few examples are contracted at a time. One-hot inputs stay indices.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import UnsupportedLayer
from ..networks.observation import LayerObservation, contract, dense_inputs
from ..samples import Chunked, Compact, OneHot
from ..samples.measures import times
from ..spaces import Family

BUDGET = 1 << 24
"""Numbers that the gradients of one chunk may hold."""
LARGEST = 1 << 28
"""The most numbers that the matrices of all units of a layer may have."""

Axis = Tensor | None
Weights = Tensor | float


def along(x: Tensor, axis: Axis) -> Tensor:
    """Pᵀx of components (..., [m], d), for axes P that are (d, d), diagonal as (d,), or (m, d, d); None is 1."""
    if axis is None:
        return x
    if axis.ndim == 1:
        return x * axis
    return x @ axis if axis.ndim == 2 else (x[..., None, :] @ axis)[..., 0, :]


def squares(layer: LayerObservation, left: Axis = None, right: Axis = None) -> Tensor:
    """Σ w (Lᵀ D R)², entry by entry, shaped as `layer.space`."""
    if one_hot(layer) and (right is None or right.ndim == 1):
        total = squares_of_tokens(layer, left)
        return total if right is None else total * right.square()
    if one_site(layer):
        return products(draws_together(layer, left), along(inputs_of(layer), right)[:, 0].square())
    total = layer.inputs.tensor().new_zeros(layer.space.shape)
    for D, w in gradients(layer, left, right):
        total += times(D.square().flatten(2), w).sum((0, 1)).reshape(total.shape)
    return total


def unit_moments(layer: LayerObservation) -> Tensor:
    """Σ w D_u D_uᵀ for every output unit u, (*units, d, d)."""
    *lead, d = layer.space.shape
    numbers = layer.space.dim * d
    if numbers > LARGEST:
        raise UnsupportedLayer(
            f"UnsupportedLayer in unit_wise: {layer.path!r} has {layer.space.dim // d} units with a matrix [{d}, {d}] "
            f"each, {numbers:.2g} numbers. Use quasi_diagonal or diagonal for this layer, or K-FAC, whose units share "
            f"one matrix."
        )
    if not one_site(layer):
        total = layer.inputs.tensor().new_zeros(layer.space.dim // d, d, d)
        for D, w in gradients(layer):
            rows = times(D.flatten(2), root(w)).reshape(D.shape[0] * D.shape[1], -1, d).movedim(1, 0)
            total += rows.mT @ rows
        return total.reshape(*lead, d, d)
    c, a = draws_together(layer), inputs_of(layer)[:, 0]
    m = layer.space.members if isinstance(layer.space, Family) else 1
    c, a = c.reshape(len(c), m, -1).permute(1, 2, 0), a.reshape(len(a), m, d).movedim(0, 1)  # (m, o, n), (m, n, d)
    size = max(1, BUDGET // a.numel())
    parts = []
    for some in c.sqrt().split(size, 1):
        rows = some[..., None] * a[:, None]
        parts.append(rows.mT @ rows)
    return torch.cat(parts, 1).reshape(*lead, d, d)


def bias_moments(layer: LayerObservation) -> tuple[Tensor, Tensor, Tensor]:
    """Of every unit's moment what `QuasiDiagonal` keeps: p = M₀₀, s = M₀ₖ / p, and r = Mₖₖ - p s², never negative.

    About the mean input, where little cancels: a translation of inputs moves the slopes and nothing else.
    """
    a = inputs_of(layer) if one_site(layer) else dense_inputs(layer.inputs)[:, 0]
    weighted = isinstance(layer.inputs.measure.weights(layer.inputs.counts), Tensor)
    centre = (layer.inputs.mean().data if weighted else a.mean((0, 1)))[..., :-1]
    if one_site(layer):
        c, a = draws_together(layer), a[:, 0]
        one, shifted = a[..., -1:], a[..., :-1] - centre * a[..., -1:]
        pivots = products(c, one.square())[..., 0]
        crossed, whole = products(c, one * shifted), products(c, shifted.square())
    else:
        like = layer.inputs.tensor()
        pivots, crossed = like.new_zeros(layer.S.shape), like.new_zeros(*layer.S.shape, layer.space.shape[-1] - 1)
        whole = crossed.clone()
        for D, w in contracted(layer, a):
            one = D[..., -1:]
            shifted = D[..., :-1] - one * centre.unsqueeze(-2)
            for total, part in ((pivots, one.square()), (crossed, one * shifted), (whole, shifted.square())):
                total += times(part.flatten(2), w).sum((0, 1)).reshape(total.shape)
    safe = torch.where(pivots > 0, pivots, 1.0)[..., None]
    rest, centre = whole - crossed.square() / safe, centre.unsqueeze(-2)
    rounding = 16 * torch.finfo(rest.dtype).eps
    told = rest > rounding * whole + rounding**2 * centre.square() * pivots[..., None]
    return pivots, crossed / safe + centre, torch.where(told, rest, 0.0)


def one_site(layer: LayerObservation) -> bool:
    return layer.sites == 1 and layer.cotangents.counts[2] == 1


def one_hot(layer: LayerObservation) -> bool:
    return isinstance(layer.inputs.data, OneHot) and not isinstance(layer.space, Family)


def inputs_of(layer: LayerObservation) -> Tensor:
    """(examples, sites, *A.shape); zero where all of an example is masked, whatever stands there."""
    a = dense_inputs(layer.inputs)[:, 0]
    w = weights_of(layer)
    if isinstance(w, float):
        return a
    present = (w.broadcast_to((*layer.cotangents.counts[:2], 1)) > 0).any(1)
    return torch.where(present.reshape(-1, *[1] * (a.ndim - 1)), a, 0.0)


def weights_of(layer: LayerObservation) -> Weights:
    """What the gradient of an example and draw weighs; a tensor broadcasts to (examples, draws, 1)."""
    n, k, _ = layer.cotangents.counts
    return layer.gradients.measure.weights((n, k, 1))


def root(w: Weights) -> Weights:
    return w**0.5 if isinstance(w, float) else w.sqrt()


def pieces(layer: LayerObservation, left: Axis = None) -> Iterator[tuple[slice, Tensor, Weights]]:
    """Cotangents (examples, draws, sites, *S.shape) along axes, a few examples or draws at a time, with which examples
    they are of and what they weigh."""
    sample, start = layer.cotangents, 0
    by_examples = not (isinstance(sample.data, (Chunked, Compact)) and sample.data.axis == 1)
    for x, w in sample._pieces_with(weights_of(layer)):
        rows = slice(start, start + len(x)) if by_examples else slice(0, len(x))
        start += len(x) if by_examples else 0
        yield rows, along(x.reshape(*x.shape[:3], *layer.S.shape), left), w


def draws_together(layer: LayerObservation, left: Axis = None) -> Tensor:
    """Σ over draws of w (Lᵀg)², (examples, *S.shape), of a layer with one site."""
    n = layer.cotangents.counts[0]
    total = layer.inputs.tensor().new_zeros(n, layer.S.dim)
    for rows, g, w in pieces(layer, left):
        total[rows] += times(g.square().flatten(3), w).sum((1, 2))
    return total.reshape(n, *layer.S.shape)


def products(c: Tensor, a: Tensor) -> Tensor:
    """Σ over examples of c ⊗ a, member by member."""
    return torch.einsum("nmo,nmi->moi" if c.ndim == 3 else "no,ni->oi", c, a)


def gradients(layer: LayerObservation, left: Axis = None, right: Axis = None) -> Iterator[tuple[Tensor, Weights]]:
    """Gradients Lᵀ D R (examples, draws, *space.shape), a few at a time, with their weights (examples, draws)."""
    yield from contracted(layer, along(dense_inputs(layer.inputs)[:, 0], right), left)


def contracted(layer: LayerObservation, a: Tensor, left: Axis = None) -> Iterator[tuple[Tensor, Weights]]:
    """The same from inputs (examples, sites, *A.shape)."""
    each = layer.space.dim
    for rows, g, w in pieces(layer, left):
        own, draws = a[rows], max(1, min(g.shape[1], BUDGET // each))
        size = max(1, BUDGET // (each * draws))
        for i in range(0, len(g), size):
            for k in range(0, g.shape[1], draws):
                at = (slice(i, i + size), slice(k, k + draws))
                D = contract(g[at], own[at[0]][:, None])
                yield D, w if isinstance(w, float) else w.broadcast_to(*g.shape[:2], 1)[at][..., 0]


def squares_of_tokens(layer: LayerObservation, left: Axis = None) -> Tensor:
    """`squares` where inputs are one-hot: uses of one token in one example add up, then they are squared."""
    data, (o, v) = layer.inputs.data, layer.space.shape
    assert isinstance(data, OneHot)
    indices = data.indices[:, 0]
    total = layer.inputs.tensor().new_zeros(v, o)
    for rows, g, w in pieces(layer, left):
        own = indices[rows]
        keys = torch.arange(len(own), device=own.device)[:, None] * v + own
        met, use = keys.flatten().unique(return_inverse=True)
        each = max(1, BUDGET // (len(met) * o))
        for k in range(0, g.shape[1], each):
            some = g[:, k : k + each].movedim(2, 1).flatten(0, 1)  # (examples and sites, draws, o)
            D = some.new_zeros(len(met), *some.shape[1:]).index_add_(0, use, some)
            at = w if isinstance(w, float) else w.broadcast_to(*g.shape[:2], 1)[met // v, k : k + each, 0]
            total.index_add_(0, met % v, times(D.square(), at).sum(1))
    return total.mT
