"""Natural gradient revisited: its form for each output, what other methods have in its place, what it gains."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call, hessian, jacrev

from ..likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from ..metrics import Fisher, GradientCovariance
from ..networks import Empirical, Network
from ..optim import MinresNaturalGradient, Tikhonov
from ..solvers import CG
from .base import Experiment, Run
from .records import Panel, Picture, Series, Table
from .streams import autoencoder, order_of_data, unlabelled
from .truncated_steps import conjugate, hessian_free, minres, off, tanh_network, targets

BETA = 1.7
"""The precision of a linear output."""
OUTPUTS: dict[str, tuple[Likelihood, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "linear": (Gaussian(scale=1 / BETA), lambda z: z, lambda y: torch.full_like(y, BETA**2)),
    "sigmoid": (Bernoulli(), torch.sigmoid, lambda y: 1 / (y * (1 - y))),
    "softmax": (Categorical(), lambda z: z.softmax(-1), lambda y: 1 / y),
}
"""A likelihood, the nonlinearity y(z) of the outputs, and the diagonal form between the derivatives of y."""


class Plain:
    """A small network by plain torch: outputs as a function of one vector of parameters, in the library's order."""

    def __init__(self, run: Run, stream: str, likelihood: Likelihood, examples: int = 12):
        self.model = tanh_network(run, stream, (3, 4, 3))
        self.x = run.normal(f"{stream}: inputs", examples, 3)
        self.network = Network.from_torch(self.model, likelihood, self.x)
        self.here = self.network.vector({n: p.detach() for n, p in self.network.parameters.items()}).components

    def logits(self, point: Tensor, x: Tensor | None = None) -> Tensor:
        space = self.network.tangent_space
        parts = {path: point[where].reshape(space[path].shape) for path, where in space.slices.items()}
        z: Tensor = functional_call(self.model, self.network.to_parameters(parts), (self.x if x is None else x,))
        return z

    def fisher(self) -> Tensor:
        return Fisher("dense").at(self.network.observe(self.x)).matrix()


def output_activations(run: Run) -> None:
    """F = E[Jᵧᵀ D Jᵧ] for outputs y after their nonlinearity, against the library's, made at the logits."""
    rows: list[tuple[str | float, ...]] = []
    for name, (likelihood, activation, _) in OUTPUTS.items():
        plain = Plain(run, name, likelihood)
        J = jacrev(lambda w, p=plain, a=activation: a(p.logits(w)))(plain.here)
        y, F, found = activation(plain.logits(plain.here)), plain.fisher(), {}
        for other, (_, _, form) in OUTPUTS.items():
            made = torch.einsum("nop,no,noq->pq", J, form(y.clamp(1e-6, 1 - 1e-6) if other != "linear" else y), J)
            found[other] = off(made / len(y), F)
        run.below(f"{name}: the form at the outputs is the Fisher", found[name], 1e-10, "sums in float64")
        wrong = min(found[other] for other in OUTPUTS if other != name)
        run.above(f"{name}: the forms of the other outputs are not", wrong, 1e-2, control=True)
        start = plain.logits(plain.here).detach()
        bent = hessian(lambda w, p=plain, z=start, q=likelihood: q.kl(z, p.logits(w)).mean())(plain.here)
        run.below(f"{name}: the Fisher is the Hessian of the divergence", off(bent, F), 1e-8, "second derivatives")
        rows.append((name, *found.values(), off(bent, F)))
    head = ("output", *(f"form of {name}" for name in OUTPUTS), "Hessian of KL")
    run.table(Table("forms at the outputs against the Fisher, relative", head, rows))


def tonga(run: Run) -> None:
    """The covariance of gradients: with labels of the model itself it becomes the Fisher, with others it does not."""
    plain = Plain(run, "tonga", Categorical(), run.choose(quick=400, full=2000))
    F, z = plain.fisher(), plain.logits(plain.here).detach()
    model, other = z.softmax(1), (z + 2 * run.normal("other logits", *z.shape)).softmax(1)

    def enumerated(p: Tensor) -> Tensor:
        """E ∇∇ᵀ over all labels with these probabilities."""
        eye = torch.eye(3, dtype=z.dtype)
        scores = model[:, None] - eye  # (n, label, output)
        G = torch.einsum("nko,nop->nkp", scores, jacrev(plain.logits)(plain.here))
        return torch.einsum("nk,nkp,nkq->pq", p, G, G) / len(p)

    exact, wrong = off(enumerated(model), F), off(enumerated(other), F)
    run.below("the mean of the covariance under the model's labels is the Fisher", exact, 1e-10, "sums in float64")
    run.above("under other labels it is not", wrong, 0.05, control=True)
    repeats = (1, 4, 16, 64)
    found: dict[str, list[float]] = {"the model's": [], "others": []}
    for name, p in zip(found, (model, other), strict=True):
        for k in repeats:
            x = plain.x.repeat(k, 1)
            labels = torch.multinomial(p.repeat(k, 1), 1, generator=run.generator(f"labels {name} {k}"))[:, 0]
            g = GradientCovariance(centred=True, structure="dense").at(plain.network.observe(x, Empirical(labels)))
            found[name].append(off(g.matrix(), F))
    slope = float(torch.tensor(found["the model's"][-1] / found["the model's"][0]).log() / torch.tensor(64.0).log())
    run.near("drawn from the model it comes nearer as 1/√n", slope, -0.5, within=0.25, why="four numbers of one draw")
    run.above("drawn from others it stays apart", found["others"][-1], 0.5 * wrong, control=True)
    y = torch.multinomial(other, 1, generator=run.generator("labels"))[:, 0]
    df, eye = plain.network.differential(plain.x, y).components, torch.eye(len(F), dtype=F.dtype)
    C = GradientCovariance(centred=True, structure="dense").at(plain.network.observe(plain.x, Empirical(y))).matrix()
    v, u = torch.linalg.solve(F + 1e-2 * eye, df), torch.linalg.solve(C + 1e-2 * eye, df)
    run.above("TONGA's step is not the natural gradient", off(u, v), 0.05, "damping 0.01, labels of another model")
    counts = [len(plain.x) * k for k in repeats]
    lines = [Series(f"labels of {name}", counts, values) for name, values in found.items()]
    panel = Panel("centred covariance of gradients", "examples", "apart from the Fisher", lines, log="xy")
    run.picture(Picture("tonga", "The covariance of gradients is the Fisher only at the true model.", [panel]))


def labels(run: Run) -> None:
    """Labels in another order: the Fisher is the same numbers, the covariance of gradients is not."""
    plain = Plain(run, "labels", Categorical(), 80)
    y = targets(run, Categorical(), plain.x, "labels")
    shuffled = y[torch.randperm(len(y), generator=run.generator("shuffle"))]
    moved = {}
    for name, metric in {"Fisher": Fisher("dense"), "cov": GradientCovariance(structure="dense")}.items():
        own, other = (metric.at(plain.network.observe(plain.x, metric.estimator(t))).matrix() for t in (y, shuffled))
        moved[name] = off(other, own)
    run.near("labels in another order leave the Fisher, bit for bit", moved["Fisher"], 0, within=0, why="none is seen")
    run.above("they change the covariance of gradients", moved["cov"], 1e-2, control=True)
    others = run.normal("other inputs", 80, 3)
    found = {name: observed_step(plain, y, x) for name, x in {"own": None, "other": others}.items()}
    df = plain.network.differential(plain.x, y).components
    for name, x in {"own": plain.x, "other": others}.items():
        F = Fisher("dense").at(plain.network.observe(x)).matrix() + torch.eye(len(df), dtype=df.dtype)
        there = off(found[name], -torch.linalg.solve(F, df))
        run.below(f"a step by the metric of {name} inputs is F⁻¹ df of these", there, 1e-7, "a residual of 1e-10")
    run.above("and the two steps differ", off(found["other"], found["own"]), 1e-3, control=True)


def observed_step(plain: Plain, y: Tensor, x: Tensor | None) -> Tensor:
    """One step of the optimizer at λ = 1, with the metric of its own inputs or of others."""
    model = copy.deepcopy(plain.model)
    settings = {"lr": 1.0, "damping": Tikhonov(1.0), "solver": CG(1e-10)}
    opt = MinresNaturalGradient(model, Categorical(), **settings)  # type: ignore[arg-type]
    before = opt.network.parameters_point().data.clone()
    if x is not None:
        opt.observe(x)
    Categorical().loss(model(plain.x), y).backward()
    opt.step()
    return opt.network.parameters_point().data.clone() - before


EXPERIMENT = Experiment(
    "revisiting",
    "Natural gradient and the methods that are one",
    "Pascanu & Bengio 2013 (arXiv 1301.3584); Martens 2010; Vinyals & Povey 2012; Le Roux, Manzagol & Bengio 2008",
    "With the loss that matches the output, Hessian-free and Krylov subspace descent are natural gradients and TONGA "
    "is none; the metric needs inputs and no labels; natural conjugate gradients end after n steps on a quadratic.",
    (
        ("outputs", output_activations), ("Hessian-free", hessian_free), ("conjugate", conjugate), ("MINRES", minres),
        ("TONGA", tonga), ("labels", labels), ("unlabelled", unlabelled), ("order", order_of_data),
        ("autoencoder", autoencoder),
    ),
)  # fmt: skip
