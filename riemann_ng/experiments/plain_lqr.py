"""Layerwise LQR in plain torch: Jacobians and Hessians of stages by autograd, and the published recursion. An oracle.

Nothing of the library is used here. The whole batch is one state, stage after stage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call


@dataclass(frozen=True)
class Stage:
    """The differentials A, B of a stage by its state and its parameters, and Q, M, R, with the damping in R."""

    A: Tensor
    B: Tensor
    Q: Tensor
    M: Tensor
    R: Tensor


def modules_of(model: nn.Sequential) -> list[nn.Sequential]:
    """A linear layer and what follows it, up to the next one."""
    parts: list[list[nn.Module]] = []
    for m in model:
        if isinstance(m, nn.Linear):
            parts.append([])
        parts[-1].append(m)
    return [nn.Sequential(*part) for part in parts]


def stages_of(model: nn.Sequential, x: Tensor, costate: Tensor, damping: list[Tensor]) -> list[Stage]:
    """`costate` is the differential at the outputs of what is to have second derivatives; zero leaves none."""
    modules, states = modules_of(model), [x]
    for m in modules:
        states.append(m(states[-1]).detach())
    found, p = [], costate.flatten()
    for m, h, R in zip(reversed(modules), reversed(states[:-1]), reversed(damping), strict=True):
        f, theta = as_function(m, h.shape)
        A, B = jacobian(f, (h.flatten(), theta))

        def hamiltonian(s: Tensor, t: Tensor, f: Flat = f, p: Tensor = p) -> Tensor:
            return p @ f(s, t)

        (Q, _), (M, own) = hessian(hamiltonian, (h.flatten(), theta))
        found.append(Stage(A, B, Q, M, R + own))
        p = A.mT @ p
    return found[::-1]


Flat = Callable[[Tensor, Tensor], Tensor]


def as_function(m: nn.Module, shape: torch.Size) -> tuple[Flat, Tensor]:
    """A stage as a function of a flat state and of flat parameters, and the parameters that it has."""
    named = {name: p.detach() for name, p in m.named_parameters()}
    sizes = [p.numel() for p in named.values()]

    def f(state: Tensor, theta: Tensor) -> Tensor:
        tensors = {k: t.view(p.shape) for (k, p), t in zip(named.items(), theta.split(sizes), strict=True)}
        out: Tensor = functional_call(m, tensors, (state.view(shape),))
        return out.flatten()

    return f, torch.cat([p.flatten() for p in named.values()])


def recursion(stages: list[Stage], gradient: Tensor, form: Tensor) -> tuple[Tensor, float]:
    """The parameters' change, one stage after the other, and the change of the model: -½ gᵀC⁻¹g.

    K and l go back from the outputs, where they are the form and the gradient of the loss; the state goes forward.
    """
    K, p, value, kept = form, gradient.flatten(), 0.0, []
    for s in reversed(stages):
        S, V, r = s.R + s.B.mT @ K @ s.B, s.M + s.B.mT @ K @ s.A, s.B.mT @ p
        gain, push = torch.linalg.solve(S, V), torch.linalg.solve(S, r)
        kept.append((gain, push))
        value -= 0.5 * float(r @ push)
        K, p = s.A.mT @ K @ s.A + s.Q - V.mT @ gain, s.A.mT @ p - V.mT @ push
    state, changes = torch.zeros_like(stages[0].A[0]), []
    for s, (gain, push) in zip(stages, reversed(kept), strict=True):
        u = -(gain @ state + push)
        changes.append(u)
        state = s.A @ state + s.B @ u
    return torch.cat(changes), value


def dense_hessian(model: nn.Sequential, loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Of the loss by all parameters."""
    f, theta = as_function(model, x.shape)
    with torch.no_grad():
        shape = model(x).shape
    return hessian(lambda t: loss(f(x.flatten(), t).view(shape)), theta)


def dense_form(model: nn.Sequential, x: Tensor, form: Tensor) -> Tensor:
    """A form on the outputs of the batch, pulled back to all parameters."""
    f, theta = as_function(model, x.shape)
    J = jacobian(lambda t: f(x.flatten(), t), theta)
    return J.mT @ form @ J
