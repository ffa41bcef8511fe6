"""The floor: the passes, products and factorizations of K-FAC called bare in torch, with no library around them.

Layers are heard by hooks, samples are plain tensors, nothing is checked and nothing has a type. The numbers are those
of the library: `BareLoop` takes the same steps as `NaturalGradient` does, to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm, layer_norm

from ..likelihoods import Bernoulli
from .kernels import Kernels
from .workloads import Workload

READ = (nn.Linear, nn.Conv2d, nn.Embedding, nn.LayerNorm, nn.GroupNorm)
Pair = tuple[Tensor, Tensor]
"""What stands along S and along Â*; one dimension less where a moment is diagonal."""
Call = tuple[nn.Module, Tensor, Tensor]


class Heard:
    """The layers of a network with their inputs and outputs, from one forward pass."""

    def __init__(self, work: Workload):
        self.work = work
        self.layers = [m for m in work.module.modules() if isinstance(m, READ)]
        self.seed = count()

    def forward(self, x: Tensor | None = None) -> tuple[Tensor, list[Call]]:
        calls: list[Call] = []

        def note(m: nn.Module, args: tuple[Tensor], y: Tensor) -> None:
            calls.append((m, args[0].detach(), y))

        hooks = [m.register_forward_hook(note) for m in self.layers]
        z = self.work.module(self.work.x if x is None else x)
        for hook in hooks:
            hook.remove()
        return z, calls

    def sampled(self, z: Tensor) -> Tensor:
        """The cotangent of a label drawn from the model, per example."""
        generator = torch.Generator(z.device).manual_seed(next(self.seed))
        z = z.detach()
        if isinstance(self.work.likelihood, Bernoulli):
            p = z.sigmoid()
            return p - torch.bernoulli(p, generator=generator)
        p = z.softmax(-1)
        drawn = torch.multinomial(p.flatten(0, -2), 1, generator=generator)
        return p.scatter_add(-1, drawn.view(*p.shape[:-1], 1), p.new_full((*p.shape[:-1], 1), -1.0))

    def directions(self, z: Tensor, some: int | None = None) -> list[Tensor]:
        """Columns of a root of the Fisher of the outputs, the first few of them or all."""
        z = z.detach()
        if isinstance(self.work.likelihood, Bernoulli):
            p = z.sigmoid()
            roots = (p * (1 - p)).sqrt()
            columns = []
            for k in range(z.shape[-1] if some is None else some):
                columns.append(torch.zeros_like(z))
                columns[-1][..., k] = roots[..., k]
            return columns
        return list(type(self.work.likelihood)(minimal=True).directions(z).unbind(1))[:some]  # type: ignore[call-arg]


def per_example(work: Workload, z: Tensor) -> float:
    """What makes of Σ g gᵀ, with g the gradients of the mean loss, the mean over examples."""
    return float(len(z))


# Moments


def of_inputs(kernels: Kernels, m: nn.Module, a: Tensor, onto: Tensor | None = None, kept: float = 0.0) -> Tensor:
    if isinstance(m, nn.Embedding):
        seen = torch.bincount(a.flatten(), minlength=m.num_embeddings).to(m.weight) / a.numel()
        return blended(seen, onto, kept)
    if isinstance(m, nn.Conv2d):
        sites = a.shape[0]
        for size, k, s, p in zip(a.shape[2:], m.kernel_size, m.stride, m.padding, strict=True):
            sites *= (size + 2 * int(p) - k) // s + 1  # type: ignore[call-overload]
        return blended(kernels.patches(m, a, 1 / sites), onto, kept)
    if isinstance(m, (nn.LayerNorm, nn.GroupNorm)):
        h = normalized(m, a)
        square, mean = h.square().mean(0), h.mean(0)
        seen = torch.stack([square, mean, mean, torch.ones_like(mean)], -1).unflatten(-1, (2, 2))
        return blended(seen, onto, kept)
    rows = a.flatten(0, -2)
    weight_of_row, d = (1 - kept) / len(rows), rows.shape[1]
    if m.bias is None:
        return kernels.square(rows, weight_of_row, onto, kept)
    M = rows.new_empty(d + 1, d + 1) if onto is None else onto
    if onto is None:
        M[:d, :d] = kernels.square(rows, weight_of_row)
    else:
        kernels.square(rows, weight_of_row, M[:d, :d], kept)
    M[d, :d] = rows.sum(0) * weight_of_row + (kept * M[d, :d] if kept else 0.0)
    M[:d, d], M[d, d] = M[d, :d], 1.0
    return M


def of_cotangents(
    kernels: Kernels, m: nn.Module, g: Tensor, weight: float, onto: Tensor | None = None, kept: float = 0.0
) -> Tensor:
    """The weight is that of each site."""
    if isinstance(m, (nn.LayerNorm, nn.GroupNorm)):
        rows = g.movedim(1, -1).flatten(0, -2) if isinstance(m, nn.GroupNorm) else g.flatten(0, -2)
        return blended(rows.square().sum(0).mul_(weight)[:, None, None], onto, kept)
    if isinstance(m, nn.Conv2d):
        x = g.flatten(2)
        if x.shape[1] <= x.shape[2]:
            return blended((x @ x.mT).sum(0).mul_(weight), onto, kept)
        rows = x.mT.flatten(0, 1)
    else:
        rows = g.flatten(0, -2)
    return kernels.square(rows, (1 - kept) * weight, onto, kept)


def blended(M: Tensor, onto: Tensor | None, kept: float) -> Tensor:
    return M if onto is None else onto.mul_(kept).add_(M, alpha=1 - kept)


def normalized(m: nn.Module, a: Tensor) -> Tensor:
    """Rows of what the gain of a normalization multiplies."""
    if isinstance(m, nn.GroupNorm):
        return group_norm(a, m.num_groups, None, None, m.eps).movedim(1, -1).flatten(0, -2)
    assert isinstance(m, nn.LayerNorm)
    return layer_norm(a, m.normalized_shape, None, None, m.eps).flatten(0, -2)


def moments(kernels: Kernels, calls: Sequence[Call], gradients: Sequence[Tensor], weight: float) -> list[Pair]:
    """Along S and along Â*, layer by layer."""
    return [
        (of_cotangents(kernels, m, g, weight), of_inputs(kernels, m, a))
        for (m, a, _), g in zip(calls, gradients, strict=True)
    ]


def averaged(
    kernels: Kernels, calls: Sequence[Call], gradients: Sequence[Tensor], weight: float, onto: list[Pair], kept: float
) -> None:
    """The same onto running averages, which are overwritten."""
    for (m, a, _), g, (G, A) in zip(calls, gradients, onto, strict=True):
        of_cotangents(kernels, m, g, weight, G, kept)
        of_inputs(kernels, m, a, A, kept)


# Statistics


def sampled_statistics(work: Workload, kernels: Kernels) -> Callable[[], list[Pair]]:
    heard = Heard(work)

    def run() -> list[Pair]:
        z, calls = heard.forward()
        g = torch.autograd.grad(z, [y for _, _, y in calls], heard.sampled(z))
        return moments(kernels, calls, g, 1 / len(z))

    return run


def empirical_statistics(work: Workload, kernels: Kernels) -> Callable[[], list[Pair]]:
    heard = Heard(work)

    def run() -> list[Pair]:
        z, calls = heard.forward()
        g = torch.autograd.grad(work.loss(z), [y for _, _, y in calls])
        return moments(kernels, calls, g, per_example(work, z))

    return run


def exact_statistics(work: Workload, kernels: Kernels, some: int | None = None) -> Callable[[], list[Pair]]:
    """A loop over the output directions, or over `some` of them."""
    heard = Heard(work)

    def run() -> list[Pair]:
        z, calls = heard.forward()
        columns = heard.directions(z, some)
        ys = [y for _, _, y in calls]
        total: list[Pair] = []
        for k, column in enumerate(columns):
            g = torch.autograd.grad(z, ys, column, retain_graph=k + 1 < len(columns))
            if not total:
                total = moments(kernels, calls, g, 1 / len(z))
                continue
            for (m, _, _), gradient, (G, _) in zip(calls, g, total, strict=True):
                G += of_cotangents(kernels, m, gradient, 1 / len(z))
        return total

    return run


# Factorizations and steps


def inverses(of: Sequence[Pair], damping: float) -> list[Pair]:
    """Both factors damped by √λ, split by their mean eigenvalues, and inverted."""
    out: list[Pair] = []
    for G, A in of:
        pi = (mean_eigenvalue(A) / mean_eigenvalue(G)).sqrt()
        out.append((inverse(G, damping**0.5 / pi), inverse(A, damping**0.5 * pi)))
    return out


def mean_eigenvalue(M: Tensor) -> Tensor:
    return (M if M.ndim == 1 else M.diagonal(dim1=-2, dim2=-1)).mean()


def inverse(M: Tensor, damping: Tensor) -> Tensor:
    if M.ndim == 1:
        return (M + damping).reciprocal()
    damped = M.clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(damping)
    if M.ndim == 3:
        return torch.linalg.inv(damped)
    return torch.cholesky_inverse(torch.linalg.cholesky(damped))


def block(m: nn.Module, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The gradient of a layer as a matrix along S and Â*."""
    if isinstance(m, nn.Embedding):
        return weight.mT
    if isinstance(m, (nn.LayerNorm, nn.GroupNorm)):
        assert bias is not None
        return torch.stack([weight, bias], -1)[:, None]
    W = weight.flatten(1)
    return W if bias is None else torch.cat([W, bias[:, None]], 1)


def applied(inverted: Sequence[Pair], blocks: Sequence[Tensor]) -> list[Tensor]:
    return [(G @ x) * A if A.ndim == 1 else G @ x @ A for (G, A), x in zip(inverted, blocks, strict=True)]


def parts(m: nn.Module, x: Tensor) -> list[Tensor]:
    """A block as the parameters of the layer."""
    if isinstance(m, nn.Embedding):
        return [x.mT]
    if isinstance(m, (nn.LayerNorm, nn.GroupNorm)):
        return list(x[:, 0].unbind(-1))
    assert isinstance(m, (nn.Linear, nn.Conv2d))
    if m.bias is None:
        return [x.view_as(m.weight)]
    return [x[:, :-1].reshape(m.weight.shape), x[:, -1]]
