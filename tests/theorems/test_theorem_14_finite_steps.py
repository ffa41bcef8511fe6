"""Theorem 14: a natural gradient step misses a nonlinear reparametrization by O(eta^2), with the geodesic correction by
O(eta^3)."""

import sympy
import torch

import riemann_ng as rng

eta = sympy.Symbol("eta")


def christoffel(metric: sympy.Matrix, u: tuple) -> list[sympy.Matrix]:
    inverse, n = metric.inv(), len(u)
    lowered = [
        sympy.Matrix(n, n, lambda i, j, k=k: sum(
            (metric[k, i].diff(u[j]), metric[k, j].diff(u[i]), -metric[i, j].diff(u[k])), sympy.S.Zero) / 2)
        for k in range(n)
    ]  # fmt: skip
    return [sum((inverse[k, m] * lowered[m] for m in range(n)), sympy.zeros(n, n)) for k in range(n)]


def step(metric: sympy.Matrix, covector: sympy.Matrix, u: tuple, corrected: bool) -> sympy.Matrix:
    """The displacement: v = -eta sharp(covector), with -Gamma(v, v) / 2 where corrected."""
    v = -eta * metric.LUsolve(covector)
    if not corrected:
        return v
    return v - sympy.Matrix([(v.T * gamma * v)[0] for gamma in christoffel(metric, u)]) / 2


def mismatch(metric, loss, u: tuple, psi: list, at: dict, corrected: bool) -> list[sympy.Expr]:
    """Landing point of a step taken in u and mapped by theta = psi(u), minus that of the step taken in theta; expanded
    in eta up to the third order, at rational numbers."""
    J = sympy.Matrix(psi).jacobian(u)
    theta = sympy.symbols(f"theta:{len(u)}")
    there = dict(zip(theta, psi, strict=True))
    g, differential = metric(*theta), sympy.Matrix([loss(*theta).diff(t) for t in theta])
    pulled = (J.T * g.subs(there) * J).applyfunc(sympy.simplify)
    du = step(pulled, J.T * differential.subs(there), u, corrected).subs(at)
    dtheta = step(g, differential, theta, corrected).subs(there).subs(at)
    landed = [p.subs({x: x + d for x, d in zip(u, du, strict=True)}, simultaneous=True).subs(at) for p in psi]
    apart = [a - p.subs(at) - d for a, p, d in zip(landed, psi, dtheta, strict=True)]
    return [sympy.series(e, eta, 0, 4).removeO() for e in apart]


def orders(expressions: list[sympy.Expr]) -> set[int]:
    """The powers of eta with a coefficient that is not zero."""
    return {k for e in expressions for k in range(4) if sympy.simplify(e.coeff(eta, k)) != 0}


def gaussian_fisher(mean: sympy.Expr, deviation: sympy.Expr) -> sympy.Matrix:
    return sympy.diag(1, 2) / deviation**2


def loss(mean: sympy.Expr, deviation: sympy.Expr) -> sympy.Expr:
    return (mean - 2) ** 2 + mean * deviation + deviation**3


def in_log_deviation(corrected: bool) -> set[int]:
    u = sympy.symbols("u:2")
    return orders(mismatch(gaussian_fisher, loss, u, [u[0], sympy.exp(u[1])], {u[0]: 1, u[1]: 0}, corrected))


def test_theorem_14_plain_steps_differ_at_the_second_order():
    assert min(in_log_deviation(corrected=False)) == 2


def test_theorem_14_geodesic_correction_moves_it_to_the_third():
    assert min(in_log_deviation(corrected=True)) == 3


def test_theorem_14_affine_reparametrizations_leave_no_difference():
    u = sympy.symbols("u:2")
    affine = [2 * u[0] + u[1] + 1, u[0] - u[1] + 3]
    assert orders(mismatch(gaussian_fisher, loss, u, affine, {u[0]: 1, u[1]: 2}, corrected=False)) == set()


def test_theorem_14_a_quadratic_reparametrization_of_a_curved_metric():
    """Not only for the Gaussian: both coordinates bend, and the metric is not diagonal."""
    u = sympy.symbols("u:2")
    metric = lambda x, y: sympy.Matrix([[1 + x**2, x * y], [x * y, 2 + y**2]])  # noqa: E731
    psi = [u[0] + u[1] ** 2 / 2 + u[0] * u[1], u[1] - u[0] ** 2 / 3]
    at = {u[0]: sympy.Rational(1, 2), u[1]: sympy.Rational(1, 3)}
    assert min(orders(mismatch(metric, loss, u, psi, at, corrected=False))) == 2
    assert min(orders(mismatch(metric, loss, u, psi, at, corrected=True))) == 3


def test_theorem_14_first_order_holds_for_the_library_and_not_for_euclid():
    """Mismatch over displacement shrinks like eta for the Fisher; for gradient descent it does not shrink."""

    def step(form: torch.Tensor, differential: torch.Tensor) -> torch.Tensor:
        V = rng.Space("V", 2)
        return rng.Gram(V, form).sharp(rng.Covector(V, differential)).data

    mean, deviation = 1.0, 0.5
    differential = torch.tensor([-0.7, 1.3], dtype=torch.float64)
    fisher = torch.diag(torch.tensor([1.0, 2.0], dtype=torch.float64)) / deviation**2
    J = torch.diag(torch.tensor([1.0, deviation], dtype=torch.float64))

    def relative(rate: float, form: torch.Tensor, form_in_log: torch.Tensor) -> float:
        own = torch.tensor([mean, deviation], dtype=torch.float64) - rate * step(form, differential)
        logs = -rate * step(form_in_log, J @ differential)
        other = torch.stack([mean + logs[0], deviation * logs[1].exp()])
        return float((own - other).norm() / rate)

    eye = torch.eye(2, dtype=torch.float64)
    pulled = J @ fisher @ J
    assert relative(1e-4, fisher, pulled) < 0.2 * relative(1e-3, fisher, pulled)
    assert relative(1e-4, eye, eye) > 0.9 * relative(1e-3, eye, eye)


def test_theorem_14_of_the_library():
    """`natural_gradient` of one function by weights, and by their logarithms: per step they part like eta."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 3, dtype=torch.float64, generator=generator)
    y = torch.randint(0, 2, (30, 1), generator=generator).double()
    w = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)

    def relative(rate: float, metric: rng.RiemannianMetric) -> float:
        steps = [
            rng.natural_gradient(f, metric, x, y, parameters={"p": p}, likelihood=rng.Bernoulli()).components
            for f, p in (
                (lambda q, x: x @ q["p"][:, None], w.clone().requires_grad_()),
                (lambda q, x: x @ q["p"].exp()[:, None], w.log().requires_grad_()),
            )
        ]
        return float(((w - rate * steps[0]) - (w.log() - rate * steps[1]).exp()).norm() / rate)

    assert relative(1e-4, rng.Fisher()) < 0.2 * relative(1e-3, rng.Fisher())
    assert relative(1e-4, rng.EuclideanMetric()) > 0.9 * relative(1e-3, rng.EuclideanMetric())
