"""Steps that are to leave old outputs alone: the formulas that have been proposed, and what a change of frames shows.

Old outputs are rows α of covectors, ξ is the differential of the new loss, M the metric now and M_old that of the time
when something was remembered. All of it is plain matrices here, so that nothing is taken from the library.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..likelihoods import Likelihood
from ..metrics import KFAC
from ..networks import Exact
from ..optim import (
    OGD,
    ONG,
    AtStart,
    Constant,
    Deflected,
    NaturalGradient,
    ProjectedNaturalGradient,
    Schedule,
    Tikhonov,
)
from ..reparametrize import Twin
from .framed import Problem


@dataclass(frozen=True)
class Given:
    """ξ (n), α (k, n), M and M_old (n, n), in one frame."""

    xi: Tensor
    alpha: Tensor
    now: Tensor
    old: Tensor

    @classmethod
    def draw(cls, generator: torch.Generator, n: int = 9, k: int = 3, condition: float = 100.0) -> Given:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        def form() -> Tensor:
            axes = torch.linalg.qr(normal(n, n))[0]
            return (axes * torch.tensor(condition, dtype=torch.float64) ** torch.linspace(0, 1, n)) @ axes.mT

        return cls(normal(n), normal(k, n), form(), form())

    def after(self, T: Tensor) -> Given:
        """The same where vectors have the components T v."""
        back = torch.linalg.inv(T)
        return Given(
            back.mT @ self.xi, self.alpha @ back, back.mT @ self.now @ back, back.mT @ self.old @ back
        )  # fmt: skip


Way = Callable[[Given], Tensor]


def annihilated(g: Given) -> Tensor:
    """-M⁻¹ (ξ - Σ c_i α_i), with (α M⁻¹ αᵀ) c = α M⁻¹ ξ."""
    raised = torch.linalg.solve(g.now, g.alpha.mT)
    c = torch.linalg.solve(g.alpha @ raised, raised.mT @ g.xi)
    return -torch.linalg.solve(g.now, g.xi - c @ g.alpha)


def ogd(g: Given) -> Tensor:
    """Gradients without their part along the α, all by coordinates."""
    return -without(g.alpha.mT, torch.eye(len(g.xi), dtype=g.xi.dtype)) @ g.xi


def ong(g: Given) -> Tensor:
    """Natural gradients without their part along old natural gradients, orthogonal in the coordinates."""
    kept = torch.linalg.solve(g.old, g.alpha.mT)
    return -without(kept, torch.eye(len(g.xi), dtype=g.xi.dtype)) @ torch.linalg.solve(g.now, g.xi)


def ong_in_metric(g: Given) -> Tensor:
    """The same, orthogonal in the metric of the step."""
    return -without(torch.linalg.solve(g.old, g.alpha.mT), g.now) @ torch.linalg.solve(g.now, g.xi)


def fopng(g: Given) -> Tensor:
    """-F⁻¹ (1 - F_o Gᵀ (G F_o F⁻¹ F_o Gᵀ)⁻¹ G F_o) ξ: F_o, a form, is given covectors."""
    A = g.old @ g.alpha.mT
    c = torch.linalg.solve(A.mT @ torch.linalg.solve(g.now, A), A.mT @ g.xi)
    return -torch.linalg.solve(g.now, g.xi - A @ c)


def fopng_repaired(g: Given) -> Tensor:
    """With F⁻¹ before ξ, so that it does what it sets out to: G F_o v = 0."""
    A = g.old @ g.alpha.mT
    c = torch.linalg.solve(A.mT @ torch.linalg.solve(g.now, A), A.mT @ torch.linalg.solve(g.now, g.xi))
    return -torch.linalg.solve(g.now, g.xi - A @ c)


def without(vectors: Tensor, form: Tensor) -> Tensor:
    """The projection along these columns that is orthogonal for a form."""
    flat = form @ vectors
    return torch.eye(len(form), dtype=form.dtype) - vectors @ torch.linalg.solve(flat.mT @ vectors, flat.mT)


WAYS: dict[str, tuple[Way, bool, bool, bool]] = {
    "annihilator": (annihilated, True, True, True),
    "OGD": (ogd, True, False, True),
    "ONG, in the coordinates": (ong, False, False, False),
    "ONG, in the metric": (ong_in_metric, False, True, True),
    "FOPNG": (fopng, False, False, False),
    "FOPNG, repaired": (fopng_repaired, False, False, True),
}
"""Each with what theory says of it: whether it protects, is equivariant, and never ascends."""


def protection(g: Given, v: Tensor) -> float:
    """|α(v)| over the lengths of both."""
    return float((g.alpha @ v).norm() / (g.alpha.norm() * v.norm()))


def inequivariance(way: Way, g: Given, T: Tensor) -> float:
    """How far the step in another frame, brought back, is from the step here."""
    v = way(g)
    return float((torch.linalg.solve(T, way(g.after(T))) - v).norm() / v.norm())


# The library's optimizers, on a network

EVERY: dict[str, Any] = {"schedule": Schedule(1, 1), "decay": 0.0, "estimator": Exact(), "momentum": 0.0}
TRANSPORTED = Tikhonov(0.1, AtStart(KFAC()))
Make = Callable[[nn.Module, Likelihood, float], NaturalGradient]
METHODS: dict[str, tuple[Make, int, bool, bool]] = {
    "projected natural gradient": (
        lambda m, p, lr: ProjectedNaturalGradient(
            m, p, KFAC(), step_size=Constant(), lr=lr, damping=TRANSPORTED, **EVERY
        ), 2, True, True,
    ),
    "OGD": (lambda m, p, lr: OGD(m, p, lr=lr), 2, False, True),
    "ONG, repaired": (
        lambda m, p, lr: ONG(m, p, lr=lr, published=False, metric=KFAC(), damping=TRANSPORTED, **EVERY), 1, True, True,
    ),
    "ONG, in the coordinates": (
        lambda m, p, lr: NaturalGradient(
            m, p, KFAC(), lr=lr, damping=TRANSPORTED, step_size=Deflected(within="coordinates"), **EVERY
        ), 1, False, True,
    ),
    "ONG, published": (lambda m, p, lr: ONG(m, p, lr=lr, every=1, decay=0.0), 1, False, False),
}  # fmt: skip
"""Each with the order in η to which old outputs change, and whether affine frames and rotations are kept."""


@dataclass
class Two:
    """A network that has made two steps on one task, remembers outputs of it, and goes on to another."""

    problem: Problem
    old: Tensor
    second: Tensor
    labels: Tensor

    def begun(self, make: Make, twin: Twin | None, rate: float) -> tuple[nn.Module, NaturalGradient]:
        model = copy.deepcopy(self.problem.network.module if twin is None else twin.module)
        opt = make(model, self.problem.network.likelihood if twin is None else twin.likelihood, rate)
        for _ in range(2):
            step(model, opt, self._seen(self.problem.x, twin), self.problem.y)
        opt.remember(self._seen(self.old, twin))
        return model, opt

    def path(self, make: Make, twin: Twin | None = None, rate: float = 0.05, steps: int = 4) -> Tensor:
        """Predictions after every step on the second task, in the network or in a twin."""
        model, opt = self.begun(make, twin, rate)
        found = []
        for k in range(steps + 1):
            with torch.no_grad():
                z: Tensor = model(self._seen(self.problem.others, twin))
            found.append(torch.sigmoid(z if twin is None else twin.to_original(z)))
            if k < steps:
                step(model, opt, self._seen(self.second, twin), self.labels)
        return torch.stack(found)

    def change(self, make: Make, rate: float) -> tuple[float, float]:
        """How much the remembered outputs change in one step of this rate, and |α(v)| of it over both lengths."""
        model, opt = self.begun(make, None, 0.05)
        for group in opt.param_groups:
            group["lr"] = rate
        with torch.no_grad():
            before = model(self.old)
        jacobian, start = differentials(model, self.old), flat(model)
        step(model, opt, self.second, self.labels)
        v = flat(model) - start
        with torch.no_grad():
            moved = float((model(self.old) - before).norm())
        return moved, float((jacobian @ v).norm() / (jacobian.norm() * v.norm()))

    def _seen(self, x: Tensor, twin: Twin | None) -> Tensor:
        return x if twin is None else twin.inputs(x)


def step(model: nn.Module, opt: NaturalGradient, x: Tensor, y: Tensor) -> None:
    opt.zero_grad()
    opt.network.likelihood.loss(model(x), y).backward()
    opt.step()


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def differentials(model: nn.Module, x: Tensor) -> Tensor:
    """Of every output, a row each, by autograd alone."""
    parameters = list(model.parameters())
    rows = [torch.autograd.grad(z, parameters, retain_graph=True) for z in model(x).flatten()]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
