"""`riemann-ng demo`: the algebra on one layer, then a whole module. Every line shown is the line that runs."""

from __future__ import annotations

from importlib import import_module

import torch

from .errors import RiemannError

SCENES: list[tuple[str, str]] = [
    (
        "Spaces are values with a name. The parameters of a layer are affine maps, their tangents the space S ← Â.",
        """
A, S = rng.AffineSpace("fc.A", 5), rng.AffineSpace("fc.S", 3)
W = rng.Hom(A.hull, S.translations)
print(W, "has dimension", W.dim, "and components", list(W.shape))
""",
    ),
    (
        "Backpropagation returns a covector. Added to a vector, or with two factors swapped, it does not type-check.",
        """
gradient = rng.Covector(W, torch.randn(3, 6, dtype=torch.float64))
step = rng.Vector(W, torch.zeros(3, 6, dtype=torch.float64))
step - gradient
""",
    ),
    (
        "Data are samples. Moments of samples are inner products; K-FAC is the product of two of them.",
        """
inputs = rng.Sample(A.hull, rng.Point(A, torch.randn(200, 5, dtype=torch.float64)).in_hull().data, name="inputs")
cotangents = rng.Sample.of_cotangents(S.translations, torch.randn(200, 3, dtype=torch.float64))
kfac = rng.second_moment(cotangents) * rng.second_moment(inputs)
print(kfac)
rng.second_moment(inputs) * rng.second_moment(cotangents) + kfac
""",
    ),
    (
        "An inner product turns the covector into a step. The solver reads the structure and says what it does.",
        """
step = kfac.sharp(gradient)
print(step, "with", f"{float(gradient(step)):.4f} = |step|² = {float(kfac.norm(step)) ** 2:.4f}")
print(rng.solvers.explain(kfac))
""",
    ),
    (
        "An expression knows its symmetries: this one commutes with every affine change of activations.",
        """
print(kfac.symmetry)
""",
    ),
    (
        "Damping is another inner product, added. The identity matrix names a basis and an origin, and it shows:",
        """
damped = kfac + 1e-3 * rng.Euclidean(W)
print(rng.explain_symmetry(damped))
""",
    ),
    (
        "Damped by a reference that is data itself, the moments of another batch, nothing is lost.",
        """
other = rng.Sample(A.hull, rng.Point(A, torch.randn(50, 5, dtype=torch.float64)).in_hull().data, name="other inputs")
natural = kfac + 1e-3 * rng.second_moment(cotangents) * rng.second_moment(other)
print(natural.symmetry)
""",
    ),
    (
        "Degenerate is a case, not an accident.",
        """
few = rng.Sample(A.hull, rng.Point(A, torch.randn(2, 5, dtype=torch.float64)).in_hull().data, name="two inputs")
(rng.second_moment(cotangents) * rng.second_moment(few)).sharp(gradient)
""",
    ),
    (
        "A whole module is read as typed layers, and the reading is held against autograd.",
        """
x = torch.randn(256, 4, dtype=torch.float64)
y = (x @ torch.randn(4, 3, dtype=torch.float64)).argmax(1)
model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)).double()
network = rng.Network.from_torch(model, likelihood=rng.Categorical(), example=x, name="net")
print(network.coverage())
""",
    ),
    (
        "A metric is an inner product at every point. Metrics add and scale, and one function makes the step of any.",
        """
metric = rng.KFAC() + 1e-2 * rng.EuclideanMetric()
print(metric, "on layer 0 is", metric.at(network.observe(x)).restrict("0").expression())
for m in (metric, rng.Fisher() + 1e-2 * rng.EuclideanMetric()): print(m, rng.natural_gradient(network, m, x, y))
rng.natural_gradient(network, rng.KFAC(), x, y)
""",
    ),
    (
        "In a training loop it is an optimizer like any other.",
        """
optimizer = rng.optim.NaturalGradient(model, likelihood=rng.Categorical())
criterion = torch.nn.functional.cross_entropy
print(f"loss {float(criterion(model(x), y).detach()):.4f}")
for _ in range(60): optimizer.zero_grad(); criterion(model(x), y).backward(); optimizer.step()
print(f"loss {float(criterion(model(x), y).detach()):.4f}, {optimizer.report}")
""",
    ),
]


def main() -> None:
    """Plays the scenes one after the other; an error that a scene is about is part of the show."""
    torch.manual_seed(0)
    names = {"rng": import_module(__package__), "torch": torch}
    for text, code in SCENES:
        print(f"\n\n{text}\n")
        for line in code.strip().splitlines():
            print(f">>> {line}")
            try:
                exec(line, names)
            except RiemannError as error:
                print(error)
    print()
