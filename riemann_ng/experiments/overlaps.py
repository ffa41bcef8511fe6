"""A linear recurrent network of low rank, in its own coordinates and in overlaps of its vectors.

    x' = -x + W x + u I(t),  W = Σ_r m_r n_rᵀ / N,  z = w · x / N,  steps of Euler's rule

x stays in the span of the m_r and u, so that z depends on the overlaps σ_rs = n_r · m_s / N, ν_r = n_r · u / N,
ω_r = w · m_r / N and c = w · u / N alone. All overlaps together, Q = ZᵀZ / N of Z = [M N u w], obey an equation of
their own, for the gradient flow and for the damped natural one. That equation is in plain torch here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jacrev

DT = 0.2
Field = Callable[[Tensor], Tensor]


def simulated(parameters: dict[str, Tensor], u: Tensor, w: Tensor, inputs: Tensor) -> Tensor:
    """z (examples, steps) of the whole network, by its states x (examples, N); parameters are m and n, (N, R)."""
    m, n = parameters["m"], parameters["n"]
    x, z = inputs.new_zeros(len(inputs), len(u)), []
    for t in range(inputs.shape[1]):
        x = x + DT * (-x + (x @ n) @ m.mT / len(u) + inputs[:, t, None] * u)
        z.append(x @ w / len(u))
    return torch.stack(z, 1)


def reduced(sigma: Tensor, nu: Tensor, omega: Tensor, c: Tensor | float, inputs: Tensor) -> Tensor:
    """z (examples, steps) from the overlaps: x = Σ κ_r m_r + v u."""
    kappa, v, z = inputs.new_zeros(len(inputs), len(nu)), inputs.new_zeros(len(inputs)), []
    for t in range(inputs.shape[1]):
        kappa, v = kappa + DT * (-kappa + kappa @ sigma.mT + v[:, None] * nu), v + DT * (-v + inputs[:, t])
        z.append(kappa @ omega + c * v)
    return torch.stack(z, 1)


@dataclass(frozen=True)
class Overlaps:
    """The equation of Q for rank R and a batch: inputs and targets (examples, steps)."""

    R: int
    inputs: Tensor
    targets: Tensor

    @property
    def blocks(self) -> tuple[slice, slice, int, int]:
        """Where M, N, u and w stand in Q."""
        return slice(0, self.R), slice(self.R, 2 * self.R), 2 * self.R, 2 * self.R + 1

    def coordinates(self, Q: Tensor) -> Tensor:
        """(σ, ν, ω), flat."""
        m, n, u, w = self.blocks
        return torch.cat([Q[n, m].flatten(), Q[n, u], Q[w, m]])

    def outputs(self, q: Tensor, c: Tensor | float) -> Tensor:
        R = self.R
        return reduced(q[: R * R].reshape(R, R), q[R * R : R * R + R], q[R * R + R :], c, self.inputs)

    def loss(self, q: Tensor, c: Tensor | float) -> Tensor:
        return (self.outputs(q, c) - self.targets).square().sum() / (2 * len(self.inputs))

    def slope(self, Q: Tensor) -> Tensor:
        """The derivative of the loss by (σ, ν, ω)."""
        return jacrev(self.loss)(self.coordinates(Q), Q[self.blocks[3], self.blocks[2]])

    def fisher(self, Q: Tensor) -> Tensor:
        """On (σ, ν, ω), of outputs with unit noise."""
        J = jacrev(self.outputs)(self.coordinates(Q), Q[self.blocks[3], self.blocks[2]]).flatten(0, 1)
        return J.mT @ J / len(self.inputs)

    def kernel(self, Q: Tensor) -> Tensor:
        """N J Jᵀ of the map from (M, N) to (σ, ν, ω), by overlaps alone."""
        (m, n, u, w), R = self.blocks, self.R
        eye = torch.eye(R, dtype=Q.dtype)
        ss = torch.kron(Q[n, n].contiguous(), eye) + torch.kron(eye, Q[m, m].contiguous())
        sn = torch.kron(eye, Q[m, u][:, None])  # σ_rs with ν_r
        so = torch.kron(Q[n, w][:, None], eye)  # σ_rs with ω_s
        nn, oo, no = Q[u, u] * eye, Q[w, w] * eye, torch.zeros_like(eye)
        return torch.cat([torch.cat([ss, sn, so], 1), torch.cat([sn.mT, nn, no], 1), torch.cat([so.mT, no, oo], 1)])

    def field(self, xi: Tensor, Q: Tensor) -> Tensor:
        """Q' where (M, N)' = -N Jᵀ ξ, for ξ on (σ, ν, ω)."""
        (m, n, u, w), R = self.blocks, self.R
        Lam = torch.zeros_like(Q)
        sigma = xi[: R * R].reshape(R, R)
        Lam[n, m], Lam[m, n] = sigma, sigma.mT
        Lam[u, n], Lam[w, m] = xi[R * R : R * R + R], xi[R * R + R :]
        return -(Q @ Lam + Lam.mT @ Q)

    def descent(self, Q: Tensor) -> Tensor:
        """Q' of the gradient flow at the rate N."""
        return self.field(self.slope(Q), Q)

    def natural(self, damping: float) -> Field:
        """Q' of the natural flow with the metric F + (λ/N) times the coordinates."""

        def velocity(Q: Tensor) -> Tensor:
            A = self.fisher(Q) @ self.kernel(Q)
            return self.field(torch.linalg.solve(A + damping * torch.eye(len(A), dtype=Q.dtype), self.slope(Q)), Q)

        return velocity


def embedded(Q: Tensor, N: int, generator: torch.Generator) -> Tensor:
    """Vectors (N, k) with these overlaps, in random directions."""
    axes = torch.linalg.qr(torch.randn(N, len(Q), generator=generator, dtype=Q.dtype)).Q
    return N**0.5 * axes @ torch.linalg.cholesky(Q).mT


def runge_kutta(field: Field, state: Tensor, dt: float, steps: int) -> Tensor:
    """The states at the start and after every step of the fourth-order rule."""
    states = [state]
    for _ in range(steps):
        a = field(state)
        b = field(state + dt / 2 * a)
        c = field(state + dt / 2 * b)
        d = field(state + dt * c)
        state = state + dt / 6 * (a + 2 * b + 2 * c + d)
        states.append(state)
    return torch.stack(states)
