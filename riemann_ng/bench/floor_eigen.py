"""EKFAC bare: eigenvectors of both factors, and the second moments of per-example gradients along them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from .floor import Call, moments, normalized
from .kernels import Kernels, with_one

Spectra = list[tuple[Tensor, Tensor, Tensor]]


def axes(M: Tensor) -> Tensor:
    """Found in float64; of a diagonal matrix they are the coordinates."""
    return M if M.ndim == 1 else torch.linalg.eigh(M.double())[1].to(M.dtype)


def eigen(kernels: Kernels, calls: Sequence[Call], gradients: Sequence[Tensor]) -> Spectra:
    """Axes along S and Â*, and the spectrum, layer by layer; `gradients` are of a label each, per example."""
    out: Spectra = []
    n = len(gradients[0])
    pairs = moments(kernels, calls, gradients, 1 / n)
    for (m, a, _), g, (G, A) in zip(calls, gradients, pairs, strict=True):
        left, right = axes(G), axes(A)
        out.append((left, right, spectrum(m, a, g, left, right) / len(g)))
    return out


def spectrum(m: nn.Module, a: Tensor, g: Tensor, left: Tensor, right: Tensor) -> Tensor:
    n = len(g)
    if isinstance(m, nn.Embedding):
        c = g.flatten(1, -2) @ left
        D = c.new_zeros(n, m.num_embeddings, c.shape[-1])
        D.scatter_add_(1, a.flatten(1)[..., None].expand_as(c), c)
        return D.square_().sum(0).mT
    if isinstance(m, (nn.LayerNorm, nn.GroupNorm)):
        h = normalized(m, a).unflatten(0, (n, -1))
        c = (g.movedim(1, -1) if isinstance(m, nn.GroupNorm) else g).reshape(h.shape)
        D = torch.stack([(c * h).sum(1), c.sum(1)], -1)[..., None, :] @ right
        return D.square_().sum(0)
    if isinstance(m, nn.Conv2d):
        rows = unfold(a, m.kernel_size, m.dilation, m.padding, m.stride).mT  # type: ignore[arg-type]
        c = g.flatten(2).mT
    else:
        rows, c = a.reshape(n, -1, a.shape[-1]), g.reshape(n, -1, g.shape[-1])
    flat = rows.flatten(0, 1)
    flat = (with_one(flat) if m.bias is not None else flat) @ right
    c = c @ left
    if rows.shape[1] == 1:
        return c[:, 0].square_().mT @ flat.square_()
    return (c.mT @ flat.unflatten(0, (n, -1))).square_().sum(0)
