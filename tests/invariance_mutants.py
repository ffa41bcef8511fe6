"""Errors that real codes make, each beside the method that it spoils, and the cell in which the two must differ.

All are K-FAC and its kin written by hand, in plain matrices: A the moment of the inputs (a, 1), G that of the
cotangents, X the gradient of one layer, [W b].
"""

from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import SimpleNamespace

import torch
from torch import nn
from torch.linalg import inv, pinv

from riemann_ng.elements import Vector
from riemann_ng.likelihoods import Bernoulli
from riemann_ng.metrics import KFAC
from riemann_ng.networks import Empirical, Exact, Network
from riemann_ng.reparametrize import reparametrize
from riemann_ng.testing.invariance import direction, update
from riemann_ng.testing.invariance.probes import FrameProbe, Probe


def seen(network, x, y, estimator=None, sites="expand"):
    """Of every layer: A, G, X, the rows they are made of, and references made of the first half of the batch."""
    df, found = network.differential(x, y), {}
    with network.observe(x, estimator or Exact()) as observation:
        for path, layer in observation.layers.items():
            a, g = layer.inputs.dense(), layer.cotangents.dense()  # (examples, draws, sites, dim)
            if sites == "summed with slot one":
                a, g = torch.cat([a[..., :-1].sum(2, keepdim=True), a[:, :, :1, -1:]], -1), g.sum(2, keepdim=True)
            elif sites == "reduced":
                a, g = a.mean(2, keepdim=True), g.sum(2, keepdim=True)
            n, half = len(a), (len(a) + 1) // 2
            A, A_ref = moment(a, a.shape[0] * a.shape[2]), moment(a[:half], half * a.shape[2])
            found[path] = SimpleNamespace(
                path=path, a=a, g=g, A=A, G=moment(g, n), A_ref=A_ref, G_ref=moment(g[:half], half),
                X=df.blocks[path],
            )  # fmt: skip
    return found


def moment(x, count):
    rows = x.reshape(-1, x.shape[-1])
    return rows.mT @ rows / count


def step(network, layers, rule):
    return Vector(network.tangent_space, {path: rule(layer) for path, layer in layers.items()})


def by_layer(rule, **options):
    """The subject whose step in every layer is a function of what was seen there."""
    return direction(lambda network, x, y: step(network, seen(network, x, y, **options), rule), name=rule.__name__)


def kfac(o):
    return inv(o.G) @ o.X @ inv(o.A)


# --- One step ---------------------------------------------------------------------------------------------------------


def transported_damping(o):
    return inv(o.G + 0.1 * o.G_ref) @ o.X @ inv(o.A + 0.1 * o.A_ref)


def float_damping(o):
    return inv(o.G + 0.1 * torch.eye(len(o.G))) @ o.X @ inv(o.A + 0.1 * torch.eye(len(o.A)))


def separate_bias(o):
    A = o.A.clone()
    A[-1, :-1] = A[:-1, -1] = 0
    return inv(o.G) @ o.X @ inv(A)


def swapped_factors(o):
    """In layers whose two spaces have one dimension, where nothing else notices."""
    return inv(o.A) @ o.X @ inv(o.G) if len(o.A) == len(o.G) else kfac(o)


def transposed_factor(o):
    """L Lᵀ = A, and its inverse as L⁻¹ L⁻ᵀ."""
    L = inv(torch.linalg.cholesky(o.A))
    return inv(o.G) @ o.X @ L @ L.mT


def scaled_by_batch(o):
    """Gradients of the mean loss taken for those of the examples."""
    return inv(o.G / len(o.g)) @ o.X @ inv(o.A)


def microbatches(o, together):
    parts = o.g.split(len(o.g) // 4)
    G = sum(moment(g if together else g.mean(0, keepdim=True), len(g) if together else 1) for g in parts) / len(parts)
    return inv(G + 0.1 * o.G) @ o.X @ inv(o.A)


def squares_of_examples(o):
    return microbatches(o, True)


def squares_of_means(o):
    return microbatches(o, False)


def pseudoinverse(o):
    return pinv(o.G, rtol=1e-9, hermitian=True) @ o.X @ pinv(o.A, rtol=1e-9, hermitian=True)


def split_by_trace(o):
    pi = (o.A.trace() / len(o.A) / (o.G.trace() / len(o.G))).sqrt()
    return inv(o.G + 0.1 / pi * o.G_ref) @ o.X @ inv(o.A + 0.1 * pi * o.A_ref)


def split_by_references(o):
    pi = ((inv(o.A_ref) @ o.A).trace() / len(o.A) / ((inv(o.G_ref) @ o.G).trace() / len(o.G))).sqrt()
    return inv(o.G + 0.1 / pi * o.G_ref) @ o.X @ inv(o.A + 0.1 * pi * o.A_ref)


def in_eigenbases(o):
    """EKFAC: the second moments of the gradients of the examples in the eigenbases of the factors."""
    _, U = torch.linalg.eigh(o.G)
    _, V = torch.linalg.eigh(o.A)
    each = torch.einsum("nkto,noti->nkoi", o.g, o.a.transpose(1, 2))
    moments = (U.mT @ each @ V).square().sum(1).mean(0)
    return U @ ((U.mT @ o.X @ V) / moments) @ V.mT


def in_wrong_eigenbases(o):
    """U X Vᵀ where Uᵀ X V is meant."""
    _, U = torch.linalg.eigh(o.G)
    _, V = torch.linalg.eigh(o.A)
    each = torch.einsum("nkto,noti->nkoi", o.g, o.a.transpose(1, 2))
    moments = (U @ each @ V.mT).square().sum(1).mean(0)
    return U.mT @ ((U @ o.X @ V.mT) / moments) @ V


def bias_rate(o):
    v = kfac(o)
    return torch.cat([v[:, :-1], 2 * v[:, -1:]], 1)


def clipped(o, length):
    v = kfac(o)
    return v * (0.5 * length(o, v).rsqrt()).clamp(max=0.5)


def clipped_by_metric(o):
    return clipped(o, lambda o, v: (v * o.X).sum())


def clipped_by_norm(o):
    return clipped(o, lambda o, v: v.square().sum())


def moment_about_the_origin(o):
    """Whitening that leaves out the mean: the moment of the weights' inputs where their covariance is meant."""
    return descent_by(o, o.A[:-1, :-1])


def covariance(o):
    mean = o.A[:-1, -1:]
    return descent_by(o, o.A[:-1, :-1] - mean @ mean.mT)


def descent_by(o, C):
    """Weights by C⁻¹, biases by what the mean of the outputs of the layer says."""
    mean, b = o.A[:-1, -1], o.X[:, -1:]
    W = (o.X[:, :-1] - b * mean) @ inv(C)
    return inv(o.G) @ torch.cat([W, b - W @ mean[:, None]], 1)


def positive_part(o):
    """A root of moments of the positive parts: what is not odd sees the signs of axes."""
    return o.X / (o.X.clamp(min=0).square() + 0.01).sqrt()


def square_root(o):
    return o.X / (o.X.square() + 0.01).sqrt()


def given_labels(estimator):
    """A step for one and the same differential: the labels can enter through the metric alone."""

    def rule(network, x, y):
        own = network.likelihood.distribution(network.outputs(x).detach()).probs.round()
        layers = seen(network, x, own, estimator(y))
        return step(network, layers, lambda o: inv(o.G + 0.1 * o.G_ref) @ o.X @ inv(o.A))

    return direction(rule, name=f"given labels, {estimator(0)}")


class OtherLabels(Probe):
    """The labels of the batch handed to other examples. A Fisher metric sees none of them."""

    on, group = "outputs", "labels"

    def moved(self, problem, seed, size=1.0):
        order = torch.randperm(len(problem.y), generator=torch.Generator().manual_seed(seed))
        return replace(problem, y=problem.y[order])


class KeptPadding(FrameProbe):
    """Translations that leave the zeros around an image where they are: the number 0, and no point."""

    def moved(self, problem, seed, size=1.0):
        frames = self.frames(problem, seed)
        twin = reparametrize(problem.network, frames, problem.x, keep_padding=True)
        return replace(problem, module=twin.module, x=twin.inputs(problem.x), seen=twin.inputs(problem.seen), twin=twin)


# --- Several steps, with a memory that is kept on the model -----------------------------------------------------------


def training(rule, name, lr=0.3):
    """An update that reads the model anew, with a dict for each layer that lasts as long as the copy it trains."""

    def one_step(model, x, y):
        network = Network.from_torch(model, Bernoulli(), x)
        memory = model.__dict__.setdefault("memory", {})
        network.move_(
            step(network, seen(network, x, y), lambda o: rule(o, memory.setdefault(o.path, {}), network)), -lr
        )

    return update(one_step, name=name)


def averaged(o, memory, start):
    for key in ("A", "G"):
        new, old = getattr(o, key), memory.get(key)
        old = start(new) if old is None else old
        memory[key] = 0.8 * old + 0.2 * new
    return memory


def started_from_data(o, memory, network):
    m = averaged(o, memory, lambda new: new)
    return inv(m["G"]) @ o.X @ inv(m["A"])


def started_from_identity(o, memory, network):
    m = averaged(o, memory, lambda new: torch.eye(len(new)))
    return inv(m["G"]) @ o.X @ inv(m["A"])


def damped_in_place(o, memory, network):
    """The running factor itself gets the damping, and keeps it."""
    m = averaged(o, memory, lambda new: new)
    v = inv(m["G"]) @ o.X @ inv(m["A"])
    m["A"] += 0.1 * torch.eye(len(m["A"]))
    return v


def rotated(o, memory, kept_there):
    """Momentum in eigenbases that are found anew at every step, whose signs and order are nobody's."""
    _, U = torch.linalg.eigh(o.G)
    _, V = torch.linalg.eigh(o.A)
    there = U.mT @ o.X @ V
    if kept_there:
        memory["m"] = 0.7 * memory.get("m", torch.zeros_like(there)) + there
        m = memory["m"]
    else:
        memory["m"] = 0.7 * memory.get("m", torch.zeros_like(o.X)) + o.X
        m = U.mT @ memory["m"] @ V
    scale = there.abs() + 0.1
    return U @ (m / scale) @ V.mT


def moments_rotated_along(o, memory, network):
    return rotated(o, memory, False)


def moments_left_behind(o, memory, network):
    return rotated(o, memory, True)


def decaying(to_start):
    """K-FAC with decay of all parameters, to zero or to where they started."""

    def one_step(model, x, y):
        network = Network.from_torch(model, Bernoulli(), x)
        parameters = list(model.parameters())
        start = model.__dict__.setdefault("start", [p.detach().clone() if to_start else 0.0 for p in parameters])
        network.move_(step(network, seen(network, x, y), kfac), -0.3)
        with torch.no_grad():
            for p, there in zip(parameters, start, strict=True):
                p.sub_(0.1 * (p - there))

    return update(one_step, name=f"decay to {'the start' if to_start else 'zero'}")


# --- Problems ---------------------------------------------------------------------------------------------------------


def perceptron(examples=120, dims=(4, 5, 4, 3)):
    torch.manual_seed(0)
    layers = [m for i, o in pairwise(dims) for m in (nn.Linear(i, o), nn.Tanh())][:-1]
    x = torch.randn(examples, dims[0], dtype=torch.float64)
    return nn.Sequential(*layers).double(), x, labels(examples)


def labels(n):
    return torch.randint(0, 2, (n, 3)).double()


def few():
    """Fewer examples than any layer has inputs."""
    return perceptron(examples=8, dims=(6, 6, 6, 3))


def square():
    """Layers of n inputs and n + 1 outputs: both factors have one size."""
    return perceptron(dims=(2, 3, 4, 3))


class Pooled(nn.Module):
    """A layer that sees several sites of an example, and a mean over them."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)).mean(1))


def pooled():
    torch.manual_seed(0)
    return Pooled().double(), torch.randn(60, 3, 3, dtype=torch.float64), labels(60)


def image():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv1d(3, 3, 3, padding=1), nn.Flatten(), nn.Linear(12, 3)
    )
    return model.double(), torch.randn(80, 2, 4, dtype=torch.float64), labels(80)


@dataclass
class Mutant:
    """What is wrong, what is right, and the cell, or a probe of its own, that tells them apart."""

    wrong: object
    right: object
    cell: object
    problem: object = perceptron
    options: dict = field(default_factory=dict)


SHORT = {"steps": 2}
GENERAL, SHIFTS = ("activations", "general"), ("activations", "translations")
S_GENERAL = ("pre-activations", "general")

MUTANTS = {
    "separate bias": Mutant(separate_bias, kfac, SHIFTS),
    "float damping": Mutant(float_damping, transported_damping, GENERAL),
    "identity-started average": Mutant(
        training(started_from_identity, "from identity"), training(started_from_data, "from data"), GENERAL,
        options=SHORT,
    ),
    "accumulated damping": Mutant(
        training(damped_in_place, "damped in place"), training(started_from_data, "from data"), GENERAL,
        options=SHORT,
    ),
    "swapped factors": Mutant(swapped_factors, kfac, S_GENERAL, square),
    "transposed factor": Mutant(transposed_factor, kfac, GENERAL),
    "batch-size scaling of G": Mutant(scaled_by_batch, kfac, ("batch", "duplication")),
    "mean gradient squared": Mutant(squares_of_means, squares_of_examples, ("batch", "order")),
    "pinv on a hidden factor": Mutant(pseudoinverse, KFAC(), GENERAL, few, {"held_out": 0.5}),
    "zero padding kept": Mutant(kfac, kfac, KeptPadding(*SHIFTS), image),
    "π of traces": Mutant(split_by_trace, split_by_references, GENERAL),
    "wrong eigenbasis rotation": Mutant(in_wrong_eigenbases, in_eigenbases, ("activations", "orthogonal")),
    "basis without its moments": Mutant(
        training(moments_left_behind, "left behind"), training(moments_rotated_along, "along"),
        ("activations", "orthogonal"), options=SHORT,
    ),
    "Euclidean clipping": Mutant(clipped_by_norm, clipped_by_metric, GENERAL),
    "labels from data": Mutant(given_labels(Empirical), given_labels(lambda y: Exact()), OtherLabels()),
    "rate of its own for biases": Mutant(bias_rate, kfac, SHIFTS),
    "decay to zero": Mutant(decaying(False), decaying(True), ("pre-activations", "translations"), options=SHORT),
    "moment where a covariance is meant": Mutant(moment_about_the_origin, covariance, SHIFTS),
    "root of a positive part": Mutant(positive_part, square_root, ("activations", "signed permutations")),
    "sites summed beside a slot of one": Mutant(
        by_layer(kfac, sites="summed with slot one"), by_layer(kfac, sites="reduced"), SHIFTS, pooled
    ),
}  # fmt: skip
