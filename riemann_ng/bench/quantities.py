"""What is measured: by the library, and bare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..elements import Covector, Vector
from ..inner_products import Euclidean, InnerProduct, damp_factors, made_ready, second_moment
from ..likelihoods import Bernoulli, Categorical
from ..metrics import EKFAC, KFAC, Fisher, RunningAverage
from ..networks import Empirical, Estimator, Exact, Linearized, MonteCarlo, Network
from ..solvers import CG, Dual
from . import floor
from .floor_eigen import eigen
from .kernels import Halved, Kernels, Plain
from .loops import RECIPES, BareLoop, Loop
from .matrix_free import KeptGraph, conjugate_gradients, dual_solve
from .timing import Work
from .workloads import Workload, autoencoder, copied

BARE: tuple[Kernels, ...] = (Plain(), Halved())
DAMPING, DAMPING_OF_FACTORS = 1e-3, 1e-2
SOME = 16
"""Output directions that a loop over all of them is measured on."""
MOST = 600
"""Output directions of an example beyond which nobody waits for exact statistics, unless they narrow on the way."""
EXAMPLES = 64
"""Of a dual solve."""


class Skipped(Exception):
    """A quantity that a workload does not have; says why."""


@dataclass
class Case:
    """Works by who does them. `per` is how many units one run of it counts for: ten steps, or a part of a loop."""

    works: dict[str, Work]
    per: dict[str, float] = field(default_factory=dict)
    plain: Work | None = None
    note: str = ""


Make = Callable[[Workload], Case]


def network_of(work: Workload, likelihood: bool = False) -> Network:
    """With `likelihood`, its shortest root, of as many columns as the rank."""
    of = Categorical(minimal=True) if likelihood and isinstance(work.likelihood, Categorical) else work.likelihood
    return Network.from_torch(work.module, of, work.x)


def statistics(work: Workload, estimator: Estimator) -> Work:
    network = network_of(work, True)

    def run() -> list[Tensor]:
        with network.observe(work.x, estimator) as seen:
            return [
                second_moment(sample).member_matrices()
                for layer in seen.layers.values()
                for sample in (layer.inputs, layer.cotangents)
            ]

    return run


def bare(make: Callable[[Workload, Kernels], Work], work: Workload) -> dict[str, Work]:
    """By both kinds of products; the floor is the faster one."""
    return {f"floor, {kernels.name}": make(copied(work), kernels) for kernels in BARE}


def sampled(work: Workload) -> Case:
    return Case({"riemann_ng": statistics(work, MonteCarlo(1)), **bare(floor.sampled_statistics, work)})


def empirical(work: Workload) -> Case:
    ours = statistics(work, Empirical(work.targets))
    return Case({"riemann_ng": ours, **bare(floor.empirical_statistics, work)})


def exact(work: Workload) -> Case:
    with torch.no_grad():
        z = work.module(work.x[:1])
    narrow = isinstance(work.likelihood, Bernoulli)
    size = z.numel() if narrow else z.numel() // z.shape[-1] * (z.shape[-1] - 1)
    if size > MOST and not narrow:
        raise Skipped(f"{size:,} output directions an example")
    some = min(SOME, size)
    bare_works = bare(lambda w, k: floor.exact_statistics(w, k, some), work)
    note = "" if some == size else f"the floor loops over {some} of {size} directions, times {size / some:g}"
    return Case(
        {"riemann_ng": statistics(work, Exact()), **bare_works}, dict.fromkeys(bare_works, some / size), note=note
    )


def ekfac(work: Workload) -> Case:
    network = network_of(work)
    seen = network.observe(work.x, MonteCarlo(1))
    metric = EKFAC()

    def bare_eigen(w: Workload, kernels: Kernels) -> Work:
        heard = floor.Heard(w)
        z, calls = heard.forward()
        g = torch.autograd.grad(z, [y for _, _, y in calls], heard.sampled(z))
        return lambda: eigen(kernels, calls, g)

    return Case({"riemann_ng": lambda: metric.at(seen), **bare(bare_eigen, work)}, note="moments, frames and spectra")


@dataclass
class Factors:
    """Forms and matrices of one batch, for what comes after the statistics."""

    value: InnerProduct
    reference: InnerProduct
    gradient: Covector
    pairs: list[floor.Pair]
    blocks: list[Tensor]

    @classmethod
    def of(cls, work: Workload) -> Factors:
        network = network_of(work)
        g = KFAC().at(network.observe(work.x, MonteCarlo(1)))
        average = RunningAverage(0.9)
        value = average.add(g)
        work.plain()
        df = network.covector({name: p.grad for name, p in network.parameters.items() if p.grad is not None})
        pairs = floor.sampled_statistics(copied(work), Plain())()
        layers = floor.Heard(work).layers
        blocks = []
        for m in layers:
            weight, bias = m.weight, getattr(m, "bias", None)
            blocks.append(floor.block(m, weight.grad, None if bias is None else bias.grad))  # type: ignore[arg-type]
        return cls(value, Euclidean(network.tangent_space), df, pairs, blocks)

    def ready(self) -> InnerProduct:
        return made_ready(damp_factors(self.value, DAMPING_OF_FACTORS, self.reference))


def invert(work: Workload) -> Case:
    of = Factors.of(work)
    return Case({"riemann_ng": of.ready, "floor": lambda: floor.inverses(of.pairs, DAMPING_OF_FACTORS)})


def apply(work: Workload) -> Case:
    of = Factors.of(work)
    ready, inverted = of.ready(), floor.inverses(of.pairs, DAMPING_OF_FACTORS)
    return Case({
        "riemann_ng": lambda: ready.sharp(of.gradient), "floor": lambda: floor.applied(inverted, of.blocks)
    })  # fmt: skip


def step(name: str) -> Make:
    def make(work: Workload) -> Case:
        recipe = RECIPES[name]
        works: dict[str, Work] = {"riemann_ng": Loop(copied(work), recipe).ten}
        works |= bare(lambda w, k: BareLoop(w, recipe, k).ten, work)
        return Case(works, dict.fromkeys(works, 10.0))

    return make


def product(work: Workload) -> Case:
    network = network_of(work)
    F = network.fisher(work.x)
    v = Vector(network.tangent_space, torch.randn_like(network.differential(work.x, work.targets).data))
    kept = KeptGraph(copied(work))
    tangents = [torch.randn_like(p) for p in kept.parameters]
    return Case({"riemann_ng": lambda: F.flat(v), "floor": lambda: kept.product(tangents)})


def cg(work: Workload) -> Case:
    network = network_of(work)
    xi = network.differential(work.x, work.targets)
    damping, metric, solver = (
        DAMPING * Euclidean(network.tangent_space),
        Fisher(structure="matrix-free"),
        CG(iterations=10),
    )

    def solve() -> None:
        (metric.at(network.observe(work.x, Linearized())) + damping).sharp(xi, solver)

    flat = xi.data.detach().clone()
    other = copied(work)
    return Case({"riemann_ng": solve, "floor": lambda: conjugate_gradients(other, flat, DAMPING)})


def dual(work: Workload) -> Case:
    x, y = work.x[:EXAMPLES], work.targets[:EXAMPLES]
    some = type(work)(work.name, work.module, work.likelihood, x, y, work.loss)
    if isinstance(work.likelihood, Bernoulli) or y.ndim > 1:
        raise Skipped("too many output directions for a kernel of 64 examples")
    others = [m for m in work.module.modules() if isinstance(m, floor.READ[2:])]
    if others:
        raise Skipped("the floor is written for linear layers and convolutions alone")
    some.loss = lambda z: cross_entropy(z, y)
    network = network_of(some)
    xi, damping = network.differential(x, y), DAMPING * Euclidean(network.tangent_space)
    metric = Fisher(structure="dual")

    def solve() -> None:
        Dual().solve(metric.at(network.observe(x, Exact())) + damping, xi)

    other = copied(some)
    cotangent = [g.detach() for g in torch.autograd.grad(some.loss(work.module(x)), list(work.module.parameters()))]
    bare_solve = dual_solve(other, DAMPING)
    return Case({"riemann_ng": solve, "floor": lambda: bare_solve(cotangent)}, plain=some.plain,
                note=f"{len(x)} examples, also the unit")  # fmt: skip


def overhead(full: Workload) -> Case:
    """A step of a network so small that arithmetic takes no time, against the same bare."""
    work = tiny(full)
    recipe = RECIPES["empirical"]
    works: dict[str, Work] = {
        "riemann_ng": Loop(copied(work), recipe).ten,
        "floor": BareLoop(copied(work), recipe, Plain()).ten,
    }
    return Case(works, dict.fromkeys(works, 10.0))


def types(full: Workload) -> Case:
    """The typed objects of a step of such a network, against the same on tensors: average, a tenth inverse, apply."""
    work = tiny(full)
    of, average = Factors.of(work), RunningAverage(0.9)
    g = KFAC().at(network_of(work).observe(work.x, MonteCarlo(1)))
    average.add(g)
    inverted = floor.inverses(of.pairs, DAMPING_OF_FACTORS)

    def typed() -> None:
        ready = of.ready()
        for _ in range(10):
            average.add(g)
            ready.sharp(of.gradient)

    def bare_step() -> None:
        floor.inverses(of.pairs, DAMPING_OF_FACTORS)
        for _ in range(10):
            for pair in of.pairs:
                for M in pair:
                    M.lerp(M, 0.1)
            floor.applied(inverted, of.blocks)

    return Case({"riemann_ng": typed, "floor": bare_step}, {"riemann_ng": 10.0, "floor": 10.0})


def tiny(full: Workload) -> Workload:
    if not full.name.startswith("W1"):
        raise Skipped("measured on W1")
    return autoencoder(batch=4, widths=(4,) * 13)


QUANTITIES: dict[str, tuple[Make, str]] = {
    "statistics": (sampled, "moments of all layers from one sampled label: forward, backward, products"),
    "empirical": (empirical, "the same from the loss's own backward pass"),
    "exact": (exact, "the same along all output directions"),
    "ekfac": (ekfac, "EKFAC of an observed batch"),
    "invert": (invert, "factors damped, factorized and inverted"),
    "apply": (apply, "the inverse applied to a gradient"),
    "step-empirical": (step("empirical"), "a whole step, statistics each from the loss's backward, inverses every 10"),
    "step-sampled": (step("sampled"), "the same with a sampled label"),
    "step-default": (step("default"), "a whole step of NaturalGradient as it comes"),
    "fvp": (product, "a product with the exact Fisher, the linearization kept"),
    "cg": (cg, "ten steps of conjugate gradients, from the forward pass on"),
    "dual": (dual, "the exact damped solve through the kernel of 64 examples"),
}
"""Those that are measured by works taking turns, beside a plain pass."""
SMALL: dict[str, tuple[Make, str]] = {
    "typed": (types, "what typed objects cost in a step of W1"),
    "overhead": (overhead, "what the whole library costs in a step of W1, beside arithmetic"),
}
"""Differences of two works on a tiny network, as a share of a step of the full one."""
OTHERS = {
    "profile": "where the time of a step goes, in plain passes, by recipe",
    "memory": "peak of resident memory of 25 steps, in fresh processes",
    "import": "what `import riemann_ng` costs over `import torch`",
}
"""Measured in ways of their own, the last two in fresh processes."""
