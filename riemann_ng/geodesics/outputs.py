"""The Levi-Civita connection of an output metric H(z), from derivatives of H in z.

Lower form, of one vector twice:  Γ_♭(u, u) = (∂_u H) u - ½ grad H(u, u).  In natural parameters of an exponential
family this is half the third cumulant; nothing of it is needed here beyond H itself.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from ..errors import InvalidSetting
from ..likelihoods import FromDistribution, OutputForm, OutputMetric


def applied(output: OutputMetric, z: Tensor, u: Tensor) -> Tensor:
    """H(z) u, shaped like z, with a graph to z: where `output.apply` takes H apart, it is differentiated as given."""
    if isinstance(output, OutputForm):
        size = z.shape[1:].numel()
        matrix = output.form(z).to(z).broadcast_to(z.shape[0], size, size)
        return torch.einsum("nij,nj->ni", matrix, u.reshape(z.shape[0], size)).reshape(z.shape)
    if isinstance(output, FromDistribution):
        return information_applied(output, z, u)
    return output.apply(z, u)


def output_christoffel(output: OutputMetric, z: Tensor, u: Tensor) -> Tensor:
    """Γ_♭(u, u) of the output metric at z, for each example, shaped like z: a covector up to changes of coordinates."""
    with torch.enable_grad():
        at, w = z.detach().requires_grad_(), u.detach().clone().requires_grad_()
        paired = (w * applied(output, at, u.detach())).sum()
        (slope,) = torch.autograd.grad(paired, at, create_graph=True, allow_unused=True)
        if slope is None:
            check_constant(output, z.detach(), u.detach())
            return torch.zeros_like(z)
        turned = torch.zeros_like(z)
        if slope.requires_grad:  # slope is linear in w, so this is its transpose at u
            (turned,) = torch.autograd.grad((slope * u.detach()).sum(), w, materialize_grads=True)
    return (turned - 0.5 * slope).detach()


def check_constant(output: OutputMetric, z: Tensor, u: Tensor) -> None:
    """Refuses a metric that varies with z and has no derivative: taken for a constant it would give wrong geodesics."""
    with torch.no_grad():
        same = torch.allclose(output.apply(z, u), output.apply(z + 0.1 * (1 + z.abs()), u))
    if not same:
        raise InvalidSetting(
            f"InvalidSetting in christoffel: {output!r} varies with the outputs, and its root(z) is cut off from "
            f"autograd. Compute root(z) by torch operations on z itself, without detach, numpy or no_grad."
        )


def information_applied(family: FromDistribution, z: Tensor, u: Tensor) -> Tensor:
    """The Fisher information of a torch distribution, applied, by the family's own method.

    Where labels are quantiles they move with z, so that kinks of a density move along; the probabilities of listed
    labels change instead, and so do the weights of labels that were drawn.
    """
    method, near = family.method_at(z), z.clone()  # a second z, for derivatives of the density at a given label
    if method == "kl":
        divergence = kl_divergence(family.distribution(z), family.distribution(near)).sum()
        (slope,) = torch.autograd.grad(divergence, near, create_graph=True)
        (found,) = torch.autograd.grad((slope * u).sum(), near, create_graph=True)
        return found
    drawn = method == "monte carlo"
    y, weights = family._nodes(z.detach() if drawn else z, method)
    many = near.expand(len(y), *z.shape).flatten(0, 1)  # every node is an example of its own
    log_p = family.distribution(many).log_prob(y.flatten(0, 1)).reshape(len(many), -1)
    directions = u.expand(len(y), *u.shape).flatten(0, 1)
    total = torch.zeros_like(z)
    for part in range(log_p.shape[-1]):  # independent given z: their informations add
        (s,) = torch.autograd.grad(log_p[:, part].sum(), many, create_graph=True)
        share = weights[..., part].reshape(-1) * (s * directions).flatten(1).sum(1)
        if drawn:
            share = share * (log_p[:, part] - log_p[:, part].detach()).exp()
        moved = share.reshape(-1, *(1 for _ in z.shape[1:])) * s
        total = total + moved.reshape(len(y), *z.shape).sum(0)
    return total
