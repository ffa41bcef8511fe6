"""Products and solves with the exact Fisher, bare: a graph of the backward pass is kept and differentiated again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..likelihoods import Bernoulli
from .floor import Heard
from .workloads import Workload


def curvature(work: Workload, z: Tensor, t: Tensor) -> Tensor:
    """The Fisher of the outputs times a tangent."""
    if isinstance(work.likelihood, Bernoulli):
        p = z.sigmoid()
        return p * (1 - p) * t
    p = z.softmax(-1)
    return p * (t - (p * t).sum(-1, keepdim=True))


class KeptGraph:
    """J v = d/du (Jᵀu) · v, with the graph of Jᵀu kept; the fused attention has no second derivative."""

    def __init__(self, work: Workload):
        self.work = work
        self.parameters = list(work.module.parameters())
        with sdpa_kernel(SDPBackend.MATH):
            self.z = work.module(work.x)
            self.u = torch.zeros_like(self.z, requires_grad=True)
            self.back = torch.autograd.grad(self.z, self.parameters, self.u, create_graph=True)
            self.outputs = self.z.detach()

    def product(self, v: list[Tensor]) -> list[Tensor]:
        with sdpa_kernel(SDPBackend.MATH):
            (t,) = torch.autograd.grad(self.back, self.u, v, retain_graph=True)
            c = curvature(self.work, self.outputs, t).div_(len(self.outputs))
            return list(torch.autograd.grad(self.z, self.parameters, c, retain_graph=True))


def conjugate_gradients(work: Workload, xi: Tensor, damping: float, iterations: int = 10) -> Tensor:
    """So many steps from zero, from the forward pass on."""
    kept = KeptGraph(work)
    sizes, shapes = [p.numel() for p in kept.parameters], [p.shape for p in kept.parameters]

    def times(v: Tensor) -> Tensor:
        pieces = [piece.view(shape) for piece, shape in zip(v.split(sizes), shapes, strict=True)]
        return torch.cat([g.flatten() for g in kept.product(pieces)]).add_(v, alpha=damping)

    x, r = torch.zeros_like(xi), xi.clone()
    p, rho = r.clone(), r @ r
    for _ in range(iterations):
        q = times(p)
        alpha = rho / (p @ q)
        x.add_(p * alpha)
        r.sub_(q * alpha)
        new = r @ r
        p.mul_(new / rho).add_(r)
        rho = new
    return x


def dual_solve(work: Workload, damping: float) -> Callable[[list[Tensor]], list[Tensor]]:
    """(F + λ)⁻¹ through the kernel of all examples' output directions, for linear layers and convolutions."""
    heard = Heard(work)

    def solve(xi: list[Tensor]) -> list[Tensor]:
        z, calls = heard.forward()
        columns, ys = heard.directions(z), [y for _, _, y in calls]
        of = [torch.autograd.grad(z, ys, c, retain_graph=True) for c in columns]
        n, k = len(z), len(columns)
        kernel, image = z.new_zeros(n * k, n * k), z.new_zeros(n * k)
        rows: list[tuple[Tensor, Tensor | None]] = []
        for i, (m, a, _) in enumerate(calls):
            c = torch.stack([g[i] for g in of], 1)  # (n, k, ...)
            W, b = xi[2 * i], xi[2 * i + 1]
            if isinstance(m, nn.Conv2d):
                patches = nn.functional.unfold(a, m.kernel_size, m.dilation, m.padding, m.stride)  # type: ignore[arg-type]
                D = (c.flatten(3).flatten(0, 1) @ patches.mT.repeat_interleave(k, 0)).flatten(1)
                D = torch.cat([D, c.flatten(3).sum(-1).flatten(0, 1)], 1)
                kernel.addmm_(D, D.mT)
                image += D @ torch.cat([W.flatten(), b])
                rows.append((D, None))
            else:
                flat = c.flatten(0, 1)
                inputs = (a @ a.mT + 1).repeat_interleave(k, 0).repeat_interleave(k, 1)
                kernel += (flat @ flat.mT) * inputs
                image += (flat * (a @ W.mT + b).repeat_interleave(k, 0)).sum(1)
                rows.append((c, a))
        kernel.diagonal().add_(n * damping)
        alpha = torch.cholesky_solve(image.detach()[:, None], torch.linalg.cholesky(kernel.detach()))[:, 0]
        out = []
        for i, (x, inputs_of) in enumerate(rows):
            W, b = xi[2 * i], xi[2 * i + 1]
            if inputs_of is None:
                v = alpha @ x
                out += [(W - v[: W.numel()].view_as(W)) / damping, (b - v[W.numel() :]) / damping]
            else:
                s = (x * alpha.view(n, k, 1)).sum(1)
                out += [(W - s.mT @ inputs_of) / damping, (b - s.sum(0)) / damping]
        return out

    return solve
