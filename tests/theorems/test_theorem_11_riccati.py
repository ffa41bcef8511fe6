"""Theorem 11: the Riccati recursion solves the damped dense system."""

from itertools import pairwise

import pytest
import torch
from exact_matrices import Draws, Matrix, close, stacked
from torch import Tensor, nn

import riemann_ng as rng

DAMPING = 0.1


def recursion(A: list, B: list, R: list, H, differential, start) -> list:
    """The motion of every stage's parameters from a change `start` of the input; curvature at the output only
    (Q = M = 0). Works on matrices of either kind."""
    K, p, gains = H, differential, []
    for a, b, r in reversed(list(zip(A, B, R, strict=True))):
        S = r + b.T @ K @ b
        solve = S.LUsolve if isinstance(S, Matrix) else lambda y, S=S: torch.linalg.solve(S, y)
        gain, offset = solve(b.T @ K @ a), solve(b.T @ p)
        gains.append((gain, offset))
        K, p = a.T @ K @ a - a.T @ K @ b @ gain, a.T @ p - a.T @ K @ b @ offset
    x, motions = start, []
    for a, b, (gain, offset) in zip(A, B, reversed(gains), strict=True):
        motions.append(-(gain @ x + offset))
        x = a @ x + b @ motions[-1]
    return motions


def stages(seed: int) -> tuple[list[Matrix], list[Matrix], list[Matrix], Matrix, Matrix]:
    draws, states, controls = Draws(seed), (2, 3, 2, 2), (2, 3, 1)
    A = [draws.rational(m, n) for n, m in pairwise(states)]
    B = [draws.rational(m, n) for n, m in zip(controls, states[1:], strict=True)]
    R = [draws.rational_positive(n) for n in controls]
    return A, B, R, draws.rational_positive(states[-1]), draws.rational(states[-1], 1)


@pytest.mark.parametrize("seed", range(3))
def test_theorem_11_recursion_equals_the_dense_solve_exactly(seed):
    A, B, R, H, dz = stages(seed)
    later = [Matrix.eye(2), A[2], A[2] * A[1]]
    J = Matrix.hstack(*(a * b for a, b in zip(reversed(later), B, strict=True)))
    dense = J.T * H * J + Matrix.diag(*R)
    assert dense * stacked(recursion(A, B, R, H, dz, Matrix.zeros(2, 1))) == -J.T * dz


def test_theorem_11_fails_layer_by_layer():
    """Without the curvature of later layers after their own best motion, it is block-diagonal, and not the solution."""
    A, B, R, H, dz = stages(0)
    later = [A[2] * A[1], A[2], Matrix.eye(2)]
    J = [a * b for a, b in zip(later, B, strict=True)]
    blocks = [-(j.T * H * j + r).LUsolve(j.T * dz) for j, r in zip(J, R, strict=True)]
    assert stacked(blocks) != stacked(recursion(A, B, R, H, dz, Matrix.zeros(2, 1)))


def jacobians(model: nn.Sequential, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Of every linear layer with the tanh before it, by autograd, for all examples stacked."""
    A, B, h = [], [], x
    for layer in model:
        if isinstance(layer, nn.Tanh):
            continue
        squash = torch.tanh if A else lambda z: z
        by_input = torch.func.jacrev(lambda z, f=layer, s=squash: f(s(z)))(h)
        weights = {k: v.detach() for k, v in layer.named_parameters()}
        call = lambda w, b, f=layer, z=squash(h): torch.func.functional_call(f, {"weight": w, "bias": b}, z)  # noqa: E731
        by_weight, by_bias = torch.func.jacrev(call, (0, 1))(weights["weight"], weights["bias"])
        outputs = h.shape[0] * weights["bias"].shape[0]
        joint = torch.cat([by_weight, by_bias.unsqueeze(-1)], -1)
        A.append(by_input.reshape(outputs, -1).detach())
        B.append(joint.reshape(outputs, -1).detach())
        h = layer(squash(h)).detach()
    return A, B


def test_theorem_11_recursion_is_the_damped_fisher_solve_of_the_library():
    draws = Draws(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(draws.normal(*parameter.shape))
    x, y = draws.normal(4, 2), draws.normal(4, 2)
    network = rng.Network.from_torch(model, likelihood=rng.Gaussian(), example=x)
    A, B = jacobians(model, x)
    R = [DAMPING * torch.eye(b.shape[1], dtype=torch.float64) for b in B]
    H = torch.eye(8, dtype=torch.float64) / 4
    dz = ((model(x) - y).detach() / 4).reshape(8, 1)
    motions = recursion(A, B, R, H, dz, torch.zeros(8, 1, dtype=torch.float64))
    damped = network.fisher(x) + DAMPING * rng.Euclidean(network.tangent_space)
    dense = torch.linalg.solve(damped.matrix(), network.differential(x, y).components)
    assert close(torch.cat(motions).flatten(), -dense)
    solved = rng.solvers.Riccati().solve(damped, network.differential(x, y))
    assert close(solved.value.components, dense)
