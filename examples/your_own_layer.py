"""A layer of one's own, read as affine maps: ten lines, after which every metric knows it.

`Quadratic` is y = W (x, x ⊙ x) + b. It is linear in its parameters, so it is an affine map of *features* of its input,
and saying what those are is all there is to a reader. Without one the layer still has its place: its parameters are
constant blocks, known by their per-example gradients, and the full Fisher is the same. What the reader adds is the
structure `S ← Â` that layerwise metrics live on. A reader that is wrong is found out, on the first batch.

    python examples/your_own_layer.py
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

import riemann_ng as rng
from riemann_ng.likelihoods import Categorical
from riemann_ng.networks import Network, Reader, register_layer
from riemann_ng.networks.blocks import READERS


class Quadratic(nn.Module):
    """y = W (x, x ⊙ x) + b."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(outputs, 2 * inputs) / 2), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x * x], dim=-1) @ self.weight.mT + self.bias


class QuadraticReader(Reader):
    def spaces(self) -> tuple[rng.spaces.VectorSpace, rng.spaces.VectorSpace]:
        return self.affine(features=self.module.weight.shape[1], outputs=self.module.weight.shape[0])

    def features(self, x: Tensor) -> Tensor:
        return self.with_one(torch.cat([x, x * x], dim=-1)).unsqueeze(-2)  # (*leading, one site, features and the 1)

    def values(self, y: Tensor) -> Tensor:
        return y.unsqueeze(-2)  # (*leading, one site, outputs)

    def leading(self, y: Tensor) -> int:
        return y.ndim - 1  # all but the last

    def to_parameters(self, data: Tensor) -> dict[str, Tensor]:
        return self.split(data)  # (..., outputs, features + 1) into weight and bias

    def from_parameters(self, tensors: dict[str, Tensor]) -> Tensor:
        return self.join(tensors)


class ForgetsTheSquare(QuadraticReader):
    """A mistake: the features of the square are left at zero."""

    def features(self, x: Tensor) -> Tensor:
        return self.with_one(torch.cat([x, 0 * x], dim=-1)).unsqueeze(-2)


def model() -> nn.Module:
    return nn.Sequential(Quadratic(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), Quadratic(4, 3))


@contextmanager
def registered(reader: type[Reader]) -> Iterator[None]:
    """For this page only; a program says `@register_layer(Quadratic)` above its reader, once and for all."""
    register_layer(Quadratic)(reader)
    yield
    del READERS[Quadratic]


def fisher(module: nn.Module, network: Network, x: Tensor) -> Tensor:
    """The Fisher by brute force: one backward pass for every output of every example. In the network's coordinates."""
    rows = []
    z = module(x)
    for entry in z.flatten():
        gradients = torch.autograd.grad(entry, list(network.parameters.values()), retain_graph=True)
        rows.append(network.covector(dict(zip(network.parameters, gradients, strict=True))).data)
    J = torch.stack(rows).reshape(len(x), -1, network.tangent_space.dim)
    return torch.einsum("nop,noq,nqr->pr", J, Categorical().matrix(z.detach()), J) / len(x)


def main() -> None:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    module, x = model(), torch.randn(8, 3)

    unread = Network.from_torch(module, Categorical(), example=x)
    with registered(QuadraticReader):
        network = Network.from_torch(module, Categorical(), example=x)
    with registered(ForgetsTheSquare):
        mistaken = Network.from_torch(module, Categorical(), example=x)

    print("Without a reader:", *unread.coverage().constant)
    print(f"With one: {network.tangent_space['0']}, {network.tangent_space['4']}")
    print("With a wrong one:", mistaken.coverage()["0.weight"].assumed)
    assert network.coverage().constant == ()
    assert unread.coverage().constant == ("0.weight", "0.bias", "4.weight", "4.bias")
    assert mistaken.coverage()["0.weight"].block == "constant"  # found out, and read without structure

    for read in (network, unread, mistaken):
        exact = rng.second_moment(read.observe(x).gradients).matrix()
        gap = float((exact - fisher(module, read, x)).norm().detach() / exact.norm())
        print(f"Fisher against brute force, {len(read.blocks)} blocks: {gap:.0e}")
        assert gap < 1e-12

    layer = network.observe(x)["0"]
    kfac = rng.second_moment(layer.cotangents) * rng.second_moment(layer.inputs)
    print(f"K-FAC's inner product on the layer: {kfac}")
    assert kfac.space == network.tangent_space["0"]


if __name__ == "__main__":
    main()
