"""The exact natural gradient of deep linear networks, in closed form, and the straight lines that it follows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..elements import Vector
from ..likelihoods import Gaussian
from ..metrics import KFAC, EuclideanMetric, Fisher
from ..natural_gradient import natural_gradient
from ..networks import Exact, Network
from ..optim import NaturalGradient, QuadraticModel
from .autoencoders import nonlinear_autoencoder
from .base import Experiment, Run
from .records import Panel, Picture, Series, Table

SCALE = 0.7
"""Of the noise: Σ = SCALE² 1."""
SOLVED = 1e-14
"""A loss gap, relative to the first, that is drawn no more."""
WIDE = ((3, 2), (3, 5, 2), (4, 6, 5, 5, 3), (3, 4, 4, 4, 4, 4, 4, 4, 3))
NARROW = ((4, 5, 2, 5, 4), (5, 3, 2), (2, 3, 5), (4, 5, 2, 2, 6, 3))
"""Some width is smaller than the inputs' or the outputs' dimension."""


@dataclass
class Linear:
    """y = W_L ... W_1 x + noise, a batch, and the closed forms by matrices alone."""

    network: Network
    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, layers: list[Tensor], x: Tensor, y: Tensor) -> Linear:
        model = nn.Sequential(*(nn.Linear(W.shape[1], W.shape[0], bias=False).double() for W in layers))
        with torch.no_grad():
            for layer, W in zip(model, layers, strict=True):
                layer.weight.copy_(W)  # type: ignore[operator]
        return cls(Network.from_torch(model, Gaussian(SCALE), x), x, y)

    @classmethod
    def draw(cls, run: Run, widths: tuple[int, ...]) -> Linear:
        word = "-".join(map(str, widths))
        layers = [run.normal(f"{word}: W{i}", m, n) / n**0.5 for i, (n, m) in enumerate(pairwise(widths))]
        x = run.normal(f"{word}: x", 60, widths[0]) @ run.normal(f"{word}: mixing", widths[0], widths[0])
        return cls.of(layers, x, run.normal(f"{word}: y", 60, widths[-1]))

    @property
    def layers(self) -> list[Tensor]:
        return [p.detach() for p in self.network.parameters.values()]

    @property
    def L(self) -> int:
        return len(self.layers)

    @property
    def product(self) -> Tensor:
        return chain(self.layers, self.x.shape[1])

    @property
    def M(self) -> Tensor:
        """From the least-squares solution to the product."""
        return self.product - torch.linalg.lstsq(self.x, self.y).solution.mT

    def sides(self) -> list[tuple[Tensor, Tensor]]:
        """Of every layer U, the product of those after it, and D, of those before."""
        W = self.layers
        return [(chain(W[i + 1 :], W[i].shape[0]), chain(W[:i], W[0].shape[1])) for i in range(len(W))]

    def vector(self, steps: list[Tensor]) -> Vector:
        return self.network.vector(dict(zip(self.network.parameters, steps, strict=True)))

    def closed_form(self) -> Vector:
        """v_i = U⁺ M D⁺ / L."""
        pinv = torch.linalg.pinv
        return self.vector([pinv(U) @ self.M @ pinv(D) / self.L for U, D in self.sides()])

    def bottleneck_form(self) -> tuple[Vector, Tensor]:
        """v_i = U⁺ (P_i - P_{i-1}) M D⁺ in frames where Σ and the moment of inputs are identities, and J v."""
        values, axes = torch.linalg.eigh(self.x.mT @ self.x / len(self.x))
        root, back = (axes * values.sqrt()) @ axes.mT, (axes * values.rsqrt()) @ axes.mT
        M = self.M @ root
        steps, before, moved = [], torch.zeros(len(M), len(M), dtype=M.dtype), torch.zeros_like(M)
        for U, D in self.sides():
            U_inverse, D_inverse = torch.linalg.pinv(U), torch.linalg.pinv(D @ root)
            P, Q = U @ U_inverse, D_inverse @ D @ root
            steps.append(U_inverse @ (P - before) @ M @ D_inverse)
            moved, before = moved + (P - before) @ M @ Q, P
        return self.vector(steps), moved @ back

    def residual(self, v: Vector) -> float:
        """|F v - df| / |df|, with the exact Fisher of the library."""
        df = self.network.differential(self.x, self.y)
        found = self.network.fisher(self.x).flat(v)
        return float((found.components - df.components).norm() / df.components.norm())

    def moves(self, v: Vector, by: Tensor) -> float:
        """By how much J v differs from a map of the inputs, relative to it."""
        expected = self.x @ by.mT
        return float((self.network.pushforward(v, self.x) - expected).norm() / expected.norm())


def chain(layers: list[Tensor], width: int) -> Tensor:
    result = torch.eye(width, dtype=torch.float64)
    for W in layers:
        result = W @ result
    return result


def closed_form(run: Run) -> None:
    """Where every width is at least that of the inputs and of the outputs."""
    for widths in WIDE:
        net, word = Linear.draw(run, widths), "-".join(map(str, widths))
        v = net.closed_form()
        run.below(f"U⁺ M D⁺ / L solves F v = dL, {word}", net.residual(v), 1e-9, CONDITION)
        run.below(f"and moves the product by M, {word}", net.moves(v, net.M), 1e-9, CONDITION)
        shortest = natural_gradient(net.network, Fisher(), net.x, net.y, modulo_kernel=EuclideanMetric())
        run.below(f"as does the library's solution, {word}", net.moves(shortest, net.M), 1e-6, "a degenerate solve")
        if net.L > 1:
            between = (shortest - v).components.norm() / v.components.norm()
            run.number(f"the shortest solution is another vector, {word}", between)
            run.near(f"without 1/L the step is L times too long, {word}", net.residual(net.L * v), net.L - 1, 1e-8,
                     "F L v - dL = (L - 1) dL", control=True)  # fmt: skip


CONDITION = "float64, products of layers of condition below 1e4"


def bottlenecks(run: Run) -> None:
    """Where some width is smaller the closed form fails, and another one holds.

    Only a width below both the inputs' and the outputs' dimension keeps the product from moving by M.
    """
    for widths in NARROW:
        net, word = Linear.draw(run, widths), "-".join(map(str, widths))
        v, moved = net.bottleneck_form()
        run.above(f"with a bottleneck U⁺ M D⁺ / L is no solution, {word}", net.residual(net.closed_form()), 1e-5,
                  "what no rounding explains", control=True)  # fmt: skip
        run.below(f"the form with growing projectors solves F v = dL, {word}", net.residual(v), 1e-8, CONDITION)
        run.below(f"and moves the product by Σ (P_i - P_(i-1)) M Q_i, {word}", net.moves(v, moved), 1e-8, CONDITION)
        away = (moved - net.M).norm() / net.M.norm()
        if min(widths) < min(widths[0], widths[-1]):
            run.above(f"which is not M: the path is no straight line, {word}", away, 1e-3, control=True)
        else:
            run.below(f"which is M: the path is straight all the same, {word}", away, 1e-8, CONDITION)


def rescaling(run: Run) -> None:
    """K-FAC is L times too long; the minimum of the quadratic model with the exact Fisher finds 1/L."""
    for L in (1, 2, 4, 8):
        net = square(run, L, 1.0)
        v = natural_gradient(net.network, KFAC(), net.x, net.y)
        run.below(f"K-FAC moves the product by L M, L = {L}", net.moves(v, L * net.M), 1e-9, CONDITION)
        model = net.network.module
        optimizer = NaturalGradient(
            model, Gaussian(SCALE), KFAC(), lr=1.0, momentum=0.0, damping=None, estimator=Exact(), decay=0.0,
            step_size=QuadraticModel(1.0),
        )  # fmt: skip
        optimizer.zero_grad()
        optimizer.network.likelihood.loss(model(net.x), net.y).backward()
        optimizer.step()
        assert optimizer.report.alpha is not None
        run.near(f"the exact Fisher rescales it by 1/L, L = {L}", optimizer.report.alpha, 1 / L, 1e-9, "float64")
        optimizer.close()


def discrete(run: Run) -> None:
    """The product after one step of any length."""
    eta = 0.3
    for L in (1, 2, 4, 8):
        net = square(run, L, 1.0)
        W, M = net.product, net.M
        v = natural_gradient(net.network, KFAC(), net.x, net.y)
        net.network.move_(v, -eta / L)
        contraction = torch.eye(len(W)) - eta / L * M @ torch.linalg.inv(W)
        expected = torch.linalg.matrix_power(contraction, L) @ W
        miss = (net.product - expected).norm() / expected.norm()
        run.below(f"W₊ = (1 - (η/L) M W⁻¹)ᴸ W, L = {L}", miss, 1e-10, CONDITION)
        if L > 1:
            linear = (net.product - (W - eta * M)).norm() / (eta * M.norm())
            run.above(f"which is not W - η M, L = {L}", linear, 1e-3, control=True)


def square(run: Run, L: int, condition: float, dim: int = 5) -> Linear:
    """Square layers whose product starts at the same map for every depth, at 0.6 or less of its size from the solution.

    Each layer stretches by its own amounts, so that products of many are ill-conditioned though the whole is not.
    """
    start = rotation(run, "start", dim)
    layers: list[Tensor] = []
    for i in range(L - 1):
        stretch = torch.exp(0.3 * run.normal(f"stretch {i}", dim))
        layers.append(rotation(run, f"left {i}", dim) * stretch @ rotation(run, f"right {i}", dim))
    layers.append(start @ torch.linalg.inv(chain(layers, dim)))
    away = run.normal("away", dim, dim)
    target = start @ (torch.eye(dim) - 0.6 * away / torch.linalg.matrix_norm(away, 2))
    white = torch.linalg.qr(run.normal("inputs", 100, dim)).Q * 10
    x = white * torch.logspace(0, -0.5 * math.log10(condition), dim, dtype=torch.float64) @ rotation(run, "axes", dim)
    return Linear.of(layers, x, x @ target.mT)


def rotation(run: Run, word: str, dim: int) -> Tensor:
    return torch.linalg.qr(run.normal(word, dim, dim)).Q


def gap(net: Linear, layers: list[Tensor], target: Tensor) -> Tensor:
    """The loss above its minimum, without cancellation."""
    error = net.x @ (chain(layers, net.x.shape[1]) - target).mT
    return error.square().sum() / (2 * SCALE**2 * len(net.x))


def natural_line(net: Linear, eta: float, steps: int) -> tuple[Tensor, Tensor]:
    """The loss gap after every step of K-FAC / L, and the size of M W⁻¹."""
    target = net.product - net.M
    gaps, sizes = [gap(net, net.layers, target)], [size(net)]
    for _ in range(steps):
        v = natural_gradient(net.network, KFAC(), net.x, net.y)
        net.network.move_(v, -eta / net.L)
        gaps.append(gap(net, net.layers, target))
        sizes.append(size(net))
    return torch.stack(gaps), torch.stack(sizes)


def size(net: Linear) -> Tensor:
    return torch.linalg.matrix_norm(torch.linalg.solve(net.product, net.M, left=False), 2)


def descent_line(net: Linear, steps: int) -> tuple[Tensor, float]:
    """Gradient descent on the same loss with the best step size of a grid, factors of 2 apart."""
    target, best = net.product - net.M, (torch.tensor([math.inf]), 0.0)
    for k in range(20):
        rate, layers = 2.0 ** (2 - k), [W.clone().requires_grad_() for W in net.layers]
        gaps = [gap(net, layers, target).detach()]
        for _ in range(steps):
            gradients = torch.autograd.grad(gap(net, layers, target), layers)
            with torch.no_grad():
                for W, g in zip(layers, gradients, strict=True):
                    W -= rate * g
            gaps.append(gap(net, layers, target).detach())
            if not bool(gaps[-1] < 10 * gaps[0]):
                break
        else:
            if gaps[-1] < best[0][-1]:
                best = torch.stack(gaps), rate
    return best


def lines(run: Run) -> None:
    """The logarithm of the loss gap against the steps: one straight line, whatever the depth and the inputs."""
    eta, steps = run.choose(quick=0.1, full=0.02), run.choose(quick=80, full=400)
    expected, late = 2 * math.log1p(-eta), 20
    panels, rows = [], []
    for condition in (1.0, 1e4):
        word = f"condition {condition:g}"
        shown, others, ratio = [], [], []
        for k, L in enumerate((1, 2, 4, 8, 16)):
            net = square(run, L, condition)
            descent, rate = descent_line(net, steps)
            gaps, sizes = natural_line(net, eta, steps)
            slope = fitted(gaps, late)
            bound = 2 * eta**2 * float(sizes[late]) + 1e-6
            run.near(f"slope {expected:.4f} a step after the first 20, {word}, L = {L}", slope, expected, bound,
                     "second order in η: 2 η² |M W⁻¹| at step 20")  # fmt: skip
            ratio.append(float(descent[-1] / descent[0] * gaps[0] / gaps[-1]))
            last = fitted(descent, late) if bool(descent[-1] > 0) else "solved"
            rows.append((f"{condition:g}", L, slope, fitted(gaps, 0, 2), last, rate, ratio[-1]))
            shown.append(Series("natural, L = 1 to 16" * (k == 0), range(steps + 1), gaps / gaps[0], color=9))
            above = int((descent > SOLVED * descent[0]).sum())
            others.append(Series(f"descent, L = {L}", range(above), (descent / descent[0])[:above], "dashes", color=k))
        if condition > 1:
            run.above(f"gradient descent at its best step is far behind, {word}", min(ratio), 10, control=True)
        else:
            run.above("gradient descent slows with depth, tenfold at 16", ratio[-1] - 10 * ratio[0], 1, control=True)
        title = f"inputs of {word}"
        panels.append(Panel(title, "step", "loss gap", [*shown, *others], log="y"))
    run.table(Table(
        "slopes of log loss gap, a step",
        ("condition", "L", "natural", "its first step", "descent", "its step size", "descent / natural, end"), rows,
    ))  # fmt: skip
    run.picture(Picture("lines", "Natural gradient does not see depth, nor how the inputs are conditioned.", panels))


def fitted(gaps: Tensor, start: int, stop: int | None = None) -> float:
    """The slope of the logarithm between two steps, by least squares."""
    y = gaps[start:stop].log()
    t = torch.arange(len(y), dtype=y.dtype) - (len(y) - 1) / 2
    return float((t @ y) / (t @ t))


EXPERIMENT = Experiment(
    "deep-linear",
    "Exact natural gradient in deep linear networks",
    "Bernacchia, Lengyel & Hennequin 2018, NeurIPS",
    "In a deep linear network the natural gradient is U⁺ M D⁺ / L in every layer: K-FAC divided by the depth. The loss "
    "falls exponentially, at a rate that depends on nothing. Of nonlinear autoencoders: it learns faster than gradient "
    "descent (the paper's own curves are not known, so this is qualitative).",
    (
        ("closed form", closed_form), ("bottlenecks", bottlenecks), ("rescaling", rescaling),
        ("discrete steps", discrete), ("straight lines", lines), ("nonlinear autoencoder", nonlinear_autoencoder),
    ),
)  # fmt: skip
