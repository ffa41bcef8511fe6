"""Theorem 7: exact natural gradient of deep linear networks: closed form, bottlenecks, product formula, rate."""

from itertools import pairwise

import pytest
import sympy
import torch
from exact_matrices import Draws, Matrix, Rational, close
from torch import nn

import riemann_ng as rng


class DeepLinear:
    """Rational layers W_1, ..., W_L, noise of precision P, inputs of second moment S, distance M to the solution."""

    def __init__(self, seed: int, *widths: int):
        draws = Draws(seed)
        self.W = [draws.rational(m, n) for n, m in pairwise(widths)]
        self.P, self.S = draws.rational_positive(widths[-1]), draws.rational_positive(widths[0])
        self.M = draws.rational(widths[-1], widths[0])
        self.L = len(self.W)
        self.U = [self.product(self.W[i + 1 :], widths[i + 1]) for i in range(self.L)]
        self.D = [self.product(self.W[:i], widths[0]) for i in range(self.L)]

    @staticmethod
    def product(layers: list[Matrix], width: int) -> Matrix:
        result = Matrix.eye(width)
        for layer in layers:
            result = layer * result
        return result

    def J(self, v: list[Matrix]) -> Matrix:
        return sum((u * x * d for u, x, d in zip(self.U, v, self.D, strict=True)), Matrix.zeros(*self.M.shape))

    def transposed(self, X: Matrix) -> list[Matrix]:
        return [u.T * self.P * X * self.S * d.T for u, d in zip(self.U, self.D, strict=True)]

    def fisher(self, v: list[Matrix]) -> list[Matrix]:
        return self.transposed(self.J(v))

    def closed_form(self) -> list[Matrix]:
        return [u.pinv() * self.M * d.pinv() / self.L for u, d in zip(self.U, self.D, strict=True)]

    def bottleneck_form(self) -> list[Matrix]:
        """v_i = R_i (Pi_i - Pi_(i-1)) M T_i: Pi_i = U_i R_i projects on the range of U_i, self-adjoint for P, and
        T_i D_i on the row space of D_i, self-adjoint for S; through a basis, since U_i need not have full rank."""
        steps, before = [], Matrix.zeros(self.M.rows)
        for u, d in zip(self.U, self.D, strict=True):
            R, T = self.inverse(u, self.P), self.inverse(d.T, self.S).T
            steps.append(R * (u * R - before) * self.M * T)
            before = u * R
        return steps

    @staticmethod
    def inverse(u: Matrix, form: Matrix) -> Matrix:
        basis = Matrix.hstack(*u.columnspace())
        coordinates = (basis.T * form * basis).inv() * basis.T * form
        return u.pinv() * basis * coordinates


def zero(parts: list[Matrix]) -> bool:
    return all(part.is_zero_matrix for part in parts)


def difference(v: list[Matrix], w: list[Matrix]) -> list[Matrix]:
    return [x - y for x, y in zip(v, w, strict=True)]


@pytest.mark.parametrize("widths", [(2, 3, 2), (2, 3, 3, 2), (1, 2, 2)])
def test_theorem_07_closed_form_solves_the_fisher(widths):
    net = DeepLinear(0, *widths)
    v = net.closed_form()
    assert zero([net.J(v) - net.M])
    assert zero(difference(net.fisher(v), net.transposed(net.M)))


def test_theorem_07_fails_with_a_bottleneck_and_without_one_over_L():
    narrow, wide = DeepLinear(0, 2, 1, 2), DeepLinear(0, 2, 3, 2)
    assert not zero(difference(narrow.fisher(narrow.closed_form()), narrow.transposed(narrow.M)))
    overshooting = [wide.L * x for x in wide.closed_form()]
    assert zero([wide.J(overshooting) - wide.L * wide.M])
    assert not zero(difference(wide.fisher(overshooting), wide.transposed(wide.M)))


@pytest.mark.parametrize("widths", [(2, 1, 2), (3, 2, 1, 2), (3, 1, 2), (2, 3, 2)])
def test_theorem_07_bottleneck_form_solves_the_fisher(widths):
    net = DeepLinear(1, *widths)
    assert zero(difference(net.fisher(net.bottleneck_form()), net.transposed(net.M)))


def test_theorem_07_discrete_product_formula():
    net, eta = DeepLinear(2, 2, 2, 2, 2), Rational(1, 3)
    W = net.product(net.W, 2)
    moved = [w - eta * v for w, v in zip(net.W, net.closed_form(), strict=True)]
    contraction = Matrix.eye(2) - eta / net.L * net.M * W.inv()
    assert net.product(moved, 2) == contraction**net.L * W


def test_theorem_07_rate_does_not_depend_on_depth():
    """One unit of width one: the distance to the solution shrinks by 1 - eta per step up to O(eta^2), and the flow by
    exp(-t), whatever L. Without 1/L the rate is L."""
    eta, w, target = sympy.symbols("eta w target", positive=True)
    m = w - target
    for L in (1, 2, 3, 5):
        after = (1 - eta / L * m / w) ** L * w - target
        assert sympy.simplify(sympy.diff(after / m, eta).subs(eta, 0)) == -1
        overshooting = (1 - eta * m / w) ** L * w - target
        assert sympy.simplify(sympy.diff(overshooting / m, eta).subs(eta, 0)) == -L


def test_theorem_07_the_fisher_of_the_library_agrees():
    draws = Draws(3)
    model = nn.Sequential(*(nn.Linear(n, m, bias=False).double() for n, m in ((3, 4), (4, 4), (4, 2))))
    with torch.no_grad():
        for layer in model:
            layer.weight.copy_(draws.normal(*layer.weight.shape))
    x, y = draws.normal(20, 3), draws.normal(20, 2)
    network = rng.Network.from_torch(model, likelihood=rng.Gaussian(), example=x)
    W1, W2, W3 = (layer.weight.detach() for layer in model)
    M = W3 @ W2 @ W1 - torch.linalg.lstsq(x, y).solution.mT
    pinv, eye = torch.linalg.pinv, lambda n: torch.eye(n, dtype=torch.float64)
    U, D = [W3 @ W2, W3, eye(2)], [eye(3), W1, W2 @ W1]
    step = network.vector({f"{i}.weight": pinv(u) @ M @ pinv(d) / 3 for i, (u, d) in enumerate(zip(U, D, strict=True))})
    df = network.differential(x, y)
    assert close(network.fisher(x).flat(step).data, df.data)
    assert not close(network.fisher(x).flat(3 * step).data, df.data, 0.1)
