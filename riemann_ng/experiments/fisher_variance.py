"""Two estimators of the Fisher, from the gradient and from the Hessian of a label's loss: how they scatter."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..inner_products import second_moment
from ..likelihoods import Categorical
from ..networks import Empirical, MonteCarlo, Network
from .base import Experiment, Run
from .classifier import training
from .label_estimators import Model
from .records import Panel, Picture, Series, Table

ENUMERATED = "sums over labels in float64"


class Tied(nn.Module):
    """ReLU units whose weight is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.outer(torch.relu(self.inner(torch.relu(self.inner(x)))))
        return y


def network(run: Run, word: str, module: nn.Module, x: Tensor) -> Network:
    """The module with parameters of its own, in float64."""
    module = module.double()
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(run.normal(f"{word}: {name}", *p.shape))
    return Network.from_torch(module, Categorical(), x)


def small(run: Run, activation: type[nn.Module] = nn.Tanh, classes: int = 3) -> tuple[Network, Tensor]:
    x = run.normal("x", 1, 3)
    return network(run, "small", nn.Sequential(nn.Linear(3, 3), activation(), nn.Linear(3, classes)), x), x


def awake(layer: nn.Linear, x: Tensor) -> None:
    """Biases with which every ReLU unit of the layer is on at x."""
    with torch.no_grad():
        layer.bias.copy_(0.5 + (x @ layer.weight.mT).abs()[0])


def undecided(net: Network, last: nn.Module, x: Tensor) -> None:
    """Logits of length one at x, so that no probability is close to 0 or 1."""
    with torch.no_grad():
        length = net.outputs(x).norm()
        for p in last.parameters():
            p.div_(length)


def oracle(net: Network, x: Tensor) -> tuple[Model, dict[str, slice]]:
    """The model in plain torch, and where the blocks of the network's tangent space are."""
    space = net.tangent_space

    def logits(flat: Tensor) -> Tensor:
        parts = {path: flat[where].reshape(space[path].shape) for path, where in space.slices.items()}
        z: Tensor = functional_call(net.module, net.to_parameters(parts), (x,))[0]
        return z

    here = net.vector({name: p.detach() for name, p in net.parameters.items()}).components
    return Model.at(logits, here), dict(space.slices)


def linear(net: Network, k: int) -> nn.Linear:
    """The layer number k of a sequential module."""
    assert isinstance(net.module, nn.Sequential)
    layer = net.module[k]
    assert isinstance(layer, nn.Linear)
    return layer


def trace(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1)


def largest(variances: Tensor, rows: slice, columns: slice) -> float:
    """Of a block."""
    return float(variances[rows, columns].abs().max())


def off(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def unbiased(run: Run) -> None:
    """Both average to the Fisher over the model's labels; over the data's they do not."""
    net, x = small(run)
    model, _ = oracle(net, x)
    fisher = net.fisher(x).matrix()
    labels = range(len(model.p))
    seen = [second_moment(net.observe(x, Empirical(torch.tensor([y]))).gradients).matrix() for y in labels]
    run.below("the library's Fisher is Jᵀ I J", off(fisher, model.fisher), 1e-12, ENUMERATED)
    run.below(
        "its gradients of one label are the first estimator", off(torch.stack(seen), model.first()), 1e-12, ENUMERATED
    )
    mean = torch.einsum("y,yij->ij", model.p, torch.stack(seen))
    run.below("the first estimator has the Fisher for its mean", off(mean, fisher), 1e-12, ENUMERATED)
    second = torch.einsum("y,yij->ij", model.p, model.second())
    run.below("the second estimator has the Fisher for its mean", off(second, fisher), 1e-12, ENUMERATED)
    uniform = torch.stack(seen).mean(0)
    run.above("labels that are not the model's give another matrix", off(uniform, fisher), 1e-2, control=True)
    lowest = min(float(torch.linalg.eigvalsh(m)[0]) for m in model.second())
    run.below("the second estimator need not be positive", lowest, -1e-3 * float(fisher.norm()), control=True)
    rank = max(int(torch.linalg.matrix_rank(m)) for m in model.first())
    run.near("the first has rank one for each label", rank, 1, 0)


def covariances(run: Run) -> None:
    """The closed forms of all P⁴ covariances, and their bounds."""
    net, x = small(run)
    model, _ = oracle(net, x)
    rows: list[tuple[str | float, ...]] = []
    first, second, spectral = model.bounds()
    for name, values, closed, bounds in (
        ("first", model.first(), model.first_covariance(), (first,)),
        ("second", model.second(), model.second_covariance(), (second, spectral)),
    ):
        run.below(f"covariance of the {name} estimator in closed form", off(closed, model.covariance(values)), 1e-11,
                  ENUMERATED)  # fmt: skip
        size = float(closed.norm())
        for word, bound in zip(("", ", the tighter one"), bounds, strict=False):
            run.below(f"its norm is within the bound, {name}{word}", size, bound)
        rows.append((name, size, *bounds, *[""] * (2 - len(bounds))))
    wrong = torch.einsum("ai,bj,ck,dl,abcd->ijkl", *[model.J] * 4, model.K)
    run.above("without I ⊗ I the first formula fails", off(wrong, model.covariance(model.first())), 1e-2, control=True)
    d1, d2 = model.variances()
    P = len(d1)
    diagonal = torch.arange(P)
    whole = torch.stack([c[diagonal[:, None], diagonal, diagonal[:, None], diagonal] for c in (model.first_covariance(),
                         model.second_covariance())])  # fmt: skip
    run.below(
        "entrywise variances are the diagonal of the covariances", off(torch.stack([d1, d2]), whole), 1e-10, ENUMERATED
    )
    run.table(Table("norms of the covariances", ("estimator", "norm", "bound", "tighter bound"), rows))


def sampled(run: Run) -> None:
    """The library's draws of labels scatter as the closed form says, to five standard errors."""
    net, x = small(run)
    model, _ = oracle(net, x)
    draws, repeats = run.choose(quick=20, full=20), run.choose(quick=600, full=20_000)
    values = trace(model.first())
    mean = float(model.p @ values)
    variance = float(torch.einsum("iijj->", model.first_covariance())) / draws
    tracing = torch.einsum("iijj->", model.covariance(model.first())) / draws
    run.near("the variance of the trace is the trace of the covariance", variance, tracing, 1e-10 * float(tracing))
    found, estimator = [], MonteCarlo(draws, run.number_of("labels") % 2**31)  # every observation draws anew
    for _ in range(repeats):
        gradients = net.observe(x, estimator).gradients
        found.append(float(trace(gradients.moment().reshape(len(model.J[0]), -1))))
    sample = torch.tensor(found, dtype=torch.float64)
    run.near(f"mean trace of {draws} drawn labels", sample.mean(), mean, 5 * (variance / repeats) ** 0.5,
             "five standard errors, from the closed form")  # fmt: skip
    fourth = float(model.p @ (values - mean) ** 4) / draws**3 + 3 * variance**2 * (1 - 1 / draws)
    error = ((fourth - variance**2) / repeats) ** 0.5
    run.near(f"variance of the trace of {draws} drawn labels", sample.var(), variance, 5 * error,
             "five standard errors, from fourth moments")  # fmt: skip
    run.above("of a single label the variance would be another", abs(float(sample.var()) - draws * variance), 5 * error,
              control=True)  # fmt: skip


def without_variance(run: Run) -> None:
    """Where the logits are affine in a block of parameters the second estimator has no variance there."""
    net, x = small(run)
    model, blocks = oracle(net, x)
    v1, v2 = model.variances()
    inner, last = blocks.values()
    run.below(
        "last layer: the second estimator has no variance", largest(v2, last, last), 1e-24, "H = 0, squared rounding"
    )
    run.above("last layer: the first has", largest(v1, last, last), 1e-6, control=True)
    run.above("first layer of tanh units: the second has too", largest(v2, inner, inner), 1e-8, control=True)
    net, x = small(run, nn.ReLU)
    awake(linear(net, 0), x)
    undecided(net, linear(net, 2), x)
    model, blocks = oracle(net, x)
    inner, last = blocks.values()
    v1, v2 = model.variances()
    within = max(largest(v2, inner, inner), largest(v2, last, last))
    run.below("ReLU units: no variance of the second within any layer", within, 1e-24, "H = 0 there")
    run.above("ReLU units: between layers there is", largest(v2, inner, last), 1e-8, control=True)
    module = Tied()
    tied = network(run, "tied", module, x)
    module.inner.weight.data.abs_()  # then units are on at both uses
    awake(module.inner, x)
    undecided(tied, module.outer, x)
    model, blocks = oracle(tied, x)
    v2 = model.variances()[1]
    run.above("ReLU units whose weight is used twice: there is", largest(v2, blocks["inner"], blocks["inner"]), 1e-8,
              control=True)  # fmt: skip
    worst = 0.0
    p = torch.linspace(0, 1, 201, dtype=torch.float64)
    closed = p * (1 - p) * (1 - 2 * p) ** 2
    for q, expected in zip(p, closed, strict=True):
        both = torch.stack([q, 1 - q])
        two = Model(both, torch.ones(2, 1).double(), torch.zeros(2, 1, 1).double())
        worst = max(worst, float((two.excess[0, 0, 0, 0] - expected).abs()))
    run.below("one probability: K - I² is p (1 - p) (1 - 2p)²", worst, 1e-14, "float64")
    run.below("so there is none at 0, 1/2 and 1", float(closed[[0, 100, 200]].abs().max()), 1e-30)
    run.above("and some elsewhere", float(closed[[20, 60, 140]].min()), 1e-2, control=True)
    run.picture(
        Picture("one-probability", "Variance of the first estimator of one probability.", [
            Panel("K - I²", "p", "p (1 - p) (1 - 2p)²", [Series("", p, closed)])
        ])
    )  # fmt: skip


def neither(run: Run) -> None:
    """Which estimator scatters less depends on the layer and on the probabilities."""
    net, x = small(run, classes=2)
    rows, shares, last = [], [], linear(net, 2)
    for chance in (0.5, 0.6, 0.8, 0.95):
        with torch.no_grad():
            z = net.outputs(x)[0]
            last.bias[0] += torch.logit(torch.tensor(chance).double()) - (z[0] - z[1])
        model, blocks = oracle(net, x)
        v1, v2 = (torch.stack([v.diagonal()[where].sum() for where in blocks.values()]) for v in model.variances())
        rows.append((chance, *v1.tolist(), *v2.tolist()))
        shares.append((v1, v2))
    (v1, v2) = shares[0]
    run.below("with a probability of 1/2 the first has no variance", v1.max(), 1e-12, "K - I² = 0, and rounding")
    run.above("and the second has, in the first layer", v2[0], 1e-8)
    (v1, v2) = shares[2]
    run.above("with 0.8 the first has, in the last layer", v1[1], 1e-8)
    run.below("and the second has not: neither dominates", v2[1], 1e-24, "H = 0")
    run.table(Table(
        "variances of the diagonal, summed over a layer, two classes",
        ("probability", "first estimator, layer 1", "layer 2", "second estimator, layer 1", "layer 2"), rows,
    ))  # fmt: skip


def classifier(run: Run) -> None:
    """A classifier with three hidden layers of sigmoids: variances of both by layer, over the epochs."""
    record = training(run)
    run.results.data = record.data
    layers, epochs = list(record.first), range(len(record.loss))
    last = layers[-1]
    run.below("training: in the last layer the second has no variance, ever", max(record.second[last]), 1e-24, "H = 0")
    run.above("training: its first always has", min(record.first[last]), 1e-12, control=True)
    run.below("training: the diagonal is that of the full Hessian of the logits", record.oracle, 1e-9, "float64")
    run.below("training: every variance of the first is within its bound", max(record.first_ratio), 1.0)
    run.below("training: every variance of the second is within its bound", max(record.second_ratio), 1.0)
    run.below("training: the loss falls", record.loss[-1], 0.7 * record.loss[0], "it is a training")
    for layer in layers:
        run.number(f"training: first / second at the end, {layer}",
                   record.first[layer][-1] / record.second[layer][-1] if layer != last else float("inf"))  # fmt: skip
    run.number("training: accuracy on test digits", record.accuracy)
    panels = [
        Panel(title, "epoch", "variance of the diagonal, summed", [
            Series(layer, epochs, found[layer], color=k) for k, layer in enumerate(layers)], log="y")
        for title, found in (("first estimator", record.first), ("second estimator", record.second))
    ]  # fmt: skip
    run.picture(Picture("training", f"A sigmoid classifier of {record.data}, by layer.", panels))


EXPERIMENT = Experiment(
    "fisher-variance",
    "The variance of two estimators of the Fisher",
    "Soen & Sun 2021, NeurIPS, arXiv:2107.04205",
    "Labels drawn from the model give two unbiased estimators, the outer product of gradients and the Hessian. Their "
    "covariances have closed forms and bounds; the second has no variance where the logits are affine in a layer's "
    "parameters, as in the last layer; neither dominates.",
    (
        ("unbiased", unbiased), ("covariances", covariances), ("drawn labels", sampled),
        ("without variance", without_variance), ("neither dominates", neither), ("training", classifier),
    ),
)  # fmt: skip
