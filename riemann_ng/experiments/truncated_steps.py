"""Methods that are natural gradients under other names: Hessian-free, Krylov subspaces, conjugate gradients, MINRES."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from ..elements import Covector
from ..inner_products import Gram, InnerProduct
from ..likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from ..metrics import EuclideanMetric, Fisher, RiemannianMetric
from ..networks import Estimator, Exact, InputsOnly, Network
from ..networks.observation import Observation
from ..optim import (
    ConjugateDirections,
    FromGradient,
    HessianFree,
    KrylovSubspaceDescent,
    NaturalConjugateGradient,
    NaturalGradient,
    PlaneSearch,
    Schedule,
)
from ..solvers import MinresQLP
from . import plain_hessian_free
from .base import Run
from .records import Panel, Picture, Series, Table


@dataclass(frozen=True, repr=False, eq=False)
class OneMatrix(RiemannianMetric):
    """The same matrix at every point of any network with so many parameters."""

    matrix: Tensor
    sees_outputs = False

    def at(self, observation: Observation) -> InnerProduct:
        return Gram(observation.space, self.matrix)

    def estimator(self, targets: Any = None) -> Estimator:
        return InputsOnly()

    def expression(self) -> str:
        return "OneMatrix()"


def tanh_network(run: Run, stream: str, widths: tuple[int, ...] = (4, 6, 3)) -> nn.Sequential:
    """Drawn with variance 1 / fan-in, float64."""
    layers: list[nn.Module] = []
    for k, (n, m) in enumerate(pairwise(widths)):
        layer = nn.Linear(n, m).double()
        with torch.no_grad():
            layer.weight.copy_(run.normal(f"{stream}: weights {k}", m, n) / n**0.5)
            layer.bias.copy_(0.3 * run.normal(f"{stream}: biases {k}", m))
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def half_squares(z: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (z - y).square().sum() / len(z)


def bernoulli(z: Tensor, y: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(z, y, reduction="sum") / len(z)


def squared_probabilities(z: Tensor, y: Tensor) -> Tensor:
    """A loss that does not match its output: squared errors of sigmoids."""
    return 0.5 * (torch.sigmoid(z) - y).square().sum() / len(z)


MATCHED: dict[str, tuple[Likelihood, plain_hessian_free.Loss]] = {
    "linear, squares": (Gaussian(), half_squares),
    "sigmoid, cross-entropy": (Bernoulli(), bernoulli),
    "softmax, cross-entropy": (Categorical(), cross_entropy),
}


def targets(run: Run, likelihood: Likelihood, x: Tensor, stream: str) -> Tensor:
    """Of a random linear map, with noise."""
    scores = x @ run.normal(f"{stream}: map", x.shape[1], 3) + run.normal(f"{stream}: noise", len(x), 3)
    if isinstance(likelihood, Categorical):
        return scores.argmax(1)
    return (scores > 0).double() if isinstance(likelihood, Bernoulli) else scores


def along(make: Callable[[nn.Module], torch.optim.Optimizer], model: nn.Module, loss: Any, batches: Any) -> Tensor:
    """The parameters after every step of an optimizer, on a copy of the model."""
    model = copy.deepcopy(model)
    opt, found = make(model), []
    for x, y in batches:
        opt.zero_grad()
        loss(model(x), y).backward()
        opt.step()
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    return torch.stack(found)


def off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def hessian_free(run: Run) -> None:
    """The published method against truncated natural gradients, step by step."""
    steps = run.choose(quick=6, full=10)
    rows = []
    for name, (likelihood, loss) in MATCHED.items():
        model, x = tanh_network(run, name), run.normal(f"{name}: inputs", steps, 60, 4)
        batches = [(part, targets(run, likelihood, part, f"{name}: {k}")) for k, part in enumerate(x)]
        own = along(lambda m, p=likelihood: HessianFree(m, p, damping=1.0, iterations=15), model, loss, batches)  # type: ignore[misc]

        def by_hand(of: plain_hessian_free.Loss, model: nn.Module = model, batches: Any = batches) -> Tensor:
            hand = plain_hessian_free.HessianFree(copy.deepcopy(model), of, 1.0, 15)
            return torch.stack([hand.step(part, y) for part, y in batches])

        there = by_hand(loss)
        start = torch.cat([p.detach().flatten() for p in model.parameters()])
        error = float((own - there).norm() / (there - start).norm())
        run.below(f"Hessian-free is the truncated natural gradient, {name}", error, 1e-6, "sums in another order")
        network, v = Network.from_torch(copy.deepcopy(model), likelihood, x[0]), run.normal(f"{name}: v", len(start))
        hand, fisher = plain_hessian_free.HessianFree(copy.deepcopy(model), loss, 1.0, 15), network.fisher(x[0])
        parts, at = {}, 0
        for key, p in network.parameters.items():
            parts[key], at = v[at : at + p.numel()].view_as(p), at + p.numel()
        moved = Covector(network.tangent_space, fisher.flat(network.vector(parts)).data).to_parameters()
        Fv = torch.cat([moved[key].flatten() for key in network.parameters])
        product = off(hand.product(start, *batches[0], v), Fv)
        run.below(f"the Gauss-Newton product is the Fisher's, {name}", product, 1e-10, "two passes in float64")
        if isinstance(likelihood, Bernoulli):
            hand.loss = squared_probabilities
            run.above(
                "of squared errors of sigmoids it is not", off(hand.product(start, *batches[0], v), Fv), 0.1,
                control=True,
            )  # fmt: skip
            lost = float((by_hand(squared_probabilities) - own).norm() / (own - start).norm())
            run.above("and such steps go elsewhere", lost, 0.1, control=True)
        rows.append((name, error, product))
    run.table(Table(f"{steps} steps of Hessian-free optimization", ("output and loss", "apart", "products"), rows))


def line(run: Run) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear network of 8 parameters and its data: half the squared errors are a quadratic."""
    x = run.normal("line: inputs", 60, 7) * torch.linspace(0.4, 1.6, 7, dtype=torch.float64)
    return tanh_network(run, "line", (7, 1)), x, run.normal("line: targets", 60, 1)


def lengths(path: Tensor, model: nn.Module, x: Tensor, y: Tensor) -> list[float]:
    """Of the gradient at every point, over that at the start."""
    model, found = copy.deepcopy(model), []
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    for point in (start, *path):
        with torch.no_grad():
            nn.utils.vector_to_parameters(point, model.parameters())
        slopes = torch.autograd.grad(half_squares(model(x), y), list(model.parameters()))
        found.append(float(torch.cat([s.flatten() for s in slopes]).norm()))
    return [length / found[0] for length in found]


def conjugate(run: Run) -> None:
    """On a quadratic of n = 8 dimensions, in a metric that is not the quadratic's own."""
    model, x, y = line(run)
    axes = torch.linalg.qr(run.normal("axes", 8, 8))[0]
    metric = OneMatrix((axes * torch.logspace(0, 1, 8, dtype=torch.float64)) @ axes.mT)
    plain: dict[str, Any] = {"damping": None, "decay": 0.0, "schedule": Schedule(1, 1), "estimator": Exact()}

    def made(**settings: Any) -> Callable[[nn.Module], NaturalGradient]:
        return lambda m: NaturalConjugateGradient(m, Gaussian(), metric, search="model", **plain, **settings)

    def krylov(size: int) -> Callable[[nn.Module], NaturalGradient]:
        return lambda m: KrylovSubspaceDescent(m, Gaussian(), size=size, iterations=60)

    batches = [(x, y)] * 8
    paths = {
        "Polak and Ribière": along(made(), model, half_squares, batches),
        "joint search in the plane": along(made(method="joint"), model, half_squares, batches),
        "started over at every step": along(
            made(step_size=ConjugateDirections(restart=1)), model, half_squares, batches
        ),
        "Krylov, one direction and the last step": along(krylov(1), model, half_squares, batches),
        "Krylov, eight directions": along(krylov(8), model, half_squares, batches[:1]),
        "Krylov, four directions": along(krylov(4), model, half_squares, batches[:1]),
    }
    fallen = {name: lengths(path, model, x, y) for name, path in paths.items()}
    first, joint, over, short, whole, half = paths
    why = "an exact search in float64"
    run.below("natural conjugate gradients end after n steps", fallen[first][-1], 1e-8, why)
    run.above("two steps before they have not", fallen[first][-3], 1e-6, control=True)
    same = off(paths[joint], paths[first])
    run.below("the joint search takes the same steps", same, 1e-6, why)
    run.above("directions that start over do not end there", fallen[over][-1], 1e-4, control=True)
    euclid = along(
        lambda m: NaturalGradient(
            m, Gaussian(), EuclideanMetric(), lr=1.0, momentum=0.0, step_size=PlaneSearch(), **plain
        ), model, half_squares, batches,
    )  # fmt: skip
    run.below(
        "one Krylov direction and the last step are conjugate gradients", off(paths[short], euclid), 1e-6,
        "BFGS ends at slopes of 1e-10",
    )  # fmt: skip
    newton = torch.linalg.lstsq(torch.cat([x, torch.ones(60, 1, dtype=x.dtype)], 1), y).solution.flatten()
    run.below("n Krylov directions are the natural gradient step", off(paths[whole][0], newton), 1e-6, "the same")
    run.above("half as many are not", off(paths[half][0], newton), 1e-3, control=True)
    panel = Panel(
        "a quadratic of eight dimensions", "step", "gradient, relative",
        [Series(n, range(9), [max(v, 1e-17) for v in fallen[n]]) for n in (first, over, short)], log="y",
    )  # fmt: skip
    run.picture(Picture("conjugate", "Conjugate directions in a metric end after n steps.", [panel]))


def minres(run: Run) -> None:
    """The solver of the published code, begun at the gradient, against a dense solve."""
    model, x = tanh_network(run, "minres", (4, 10, 3)), run.normal("minres: inputs", 200, 4)
    y = targets(run, Categorical(), x, "minres")
    network = Network.from_torch(model, Categorical(), x)
    df, matrix = network.differential(x, y), Fisher("dense").at(network.observe(x)).matrix()
    counts, curves = (1, 3, 10, 30, 100, 300), {}
    for damping in (1.0, 1e-2):
        form = Gram(network.tangent_space, matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype))
        exact = torch.linalg.solve(form.matrix(), df.components)
        found = []
        for most in counts:
            solver = FromGradient(MinresQLP(tolerance=1e-14, max_iterations=most))
            found.append(off(solver.solve(form, df).value.components, exact))
        curves[damping] = found
        run.below(
            f"MINRES is the dense solve, damping {damping:g}", min(found), 1e-7, "a tolerance of 1e-14 and conditions"
        )
        falls = max(b / a for a, b in pairwise(found[:4]))
        run.below(f"more iterations come nearer, damping {damping:g}", falls, 1.0, "of 1, 3, 10 and 30")
    run.above("three iterations are another step", curves[1e-2][1], 1e-2, control=True)
    run.below("thirty are within a percent where damping is 1", curves[1.0][3], 1e-2, "conditions below 10")
    panel = Panel(
        "MINRES from the gradient", "iterations", "apart from the dense solve",
        [Series(f"λ = {damping:g}", counts, found) for damping, found in curves.items()], log="xy",
    )  # fmt: skip
    run.picture(Picture("minres", "A truncated solve of (F + λ) v = df.", [panel]))
