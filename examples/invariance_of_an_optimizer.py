"""What is my optimizer invariant to? A table, a counterexample, and a metric that keeps more.

The optimizer divides every gradient by the root of a running mean of its squares, entry by entry: an "Adam" of
someone's own.
"""

import torch
from torch import nn

from riemann_ng.likelihoods import Categorical
from riemann_ng.metrics import KFAC, EuclideanMetric
from riemann_ng.testing.invariance import assert_invariant, check_invariance, optimizer

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
x, y = torch.randn(120, 4), torch.randint(0, 3, (120,))


class MyOptimizer(torch.optim.Optimizer):
    """Gradients over the root of the mean of their squares."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                squares = self.state[p].setdefault("squares", p.grad.square())
                squares.lerp_(p.grad.square(), 0.1)
                p -= group["lr"] * p.grad / squares.sqrt()


mine = optimizer(lambda model: MyOptimizer(model.parameters(), lr=0.05), "MyOptimizer")
report = check_invariance(mine, model, x, y, Categorical(), on=("activations", "pre-activations", "loss"))
print(report)

# It cannot see signs and the order of the units, and the scale of the loss; anything else changes what it learns.
assert report["activations", "signed permutations"].verdict == "held"
assert report["loss", "scale"].verdict == "held"
assert report["activations", "orthogonal"].verdict == "refuted"

# Every refutation comes with a case as small as could be found. It is a program; put your own subject into it.
print("\nA counterexample, a program but for the subject:\n")
print(report["activations", "translations"].counterexample.code)

# A metric claims its symmetries, and the claim is tested: K-FAC keeps what the optimizer above loses,
everything = [("activations", "affine"), ("pre-activations", "affine"), ("outputs", "affine")]
assert_invariant(KFAC(), model, x, y, under=everything, likelihood=Categorical())
# until it is damped by the coordinates.
try:
    assert_invariant(KFAC() + 0.01 * EuclideanMetric(), model, x, y, under=everything, likelihood=Categorical())
    raise SystemExit("damping by the coordinates went unnoticed")
except AssertionError as error:
    assert "affine of activations: refuted" in str(error)
    print(str(error).splitlines()[0])
