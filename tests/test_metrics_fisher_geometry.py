"""What the Fisher is: the Hessian of the divergence, and in deep linear networks a form with known solutions."""

import itertools

import pytest
import torch
from torch import nn

from riemann_ng.elements import Covector, Vector
from riemann_ng.inner_products import Euclidean
from riemann_ng.likelihoods import Bernoulli, Categorical, Gaussian, OutputForm, Poisson
from riemann_ng.metrics import KFAC
from riemann_ng.metrics.fisher import Fisher, GaussNewton
from riemann_ng.networks import Exact, Network
from riemann_ng.solvers import Dual


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("likelihood", [Categorical(), Bernoulli(), Gaussian(0.7), Poisson()], ids=str)
def test_the_fisher_is_the_hessian_of_the_divergence(likelihood):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    x = torch.randn(5, 3)
    network = Network.from_torch(model, likelihood, x)
    here = {name: p.detach() for name, p in network.parameters.items()}
    at = model(x).detach()
    flat = torch.cat([p.flatten() for p in here.values()])

    def divergence(theta):
        parts = theta.split([p.numel() for p in here.values()])
        moved = {name: part.view_as(p) for (name, p), part in zip(here.items(), parts, strict=True)}
        return likelihood.kl(at, torch.func.functional_call(model, moved, (x,))).mean()

    hessian = torch.func.hessian(divergence)(flat)
    F = Fisher().at(network.observe(x))
    eye = Vector(network.tangent_space, torch.eye(F.space.dim))
    P = torch.cat([t.reshape(len(t), -1) for t in eye.to_parameters().values()], dim=1)
    assert torch.allclose(F.matrix(), P @ hessian @ P.mT, atol=1e-12)
    labels = KFAC().at(network.observe(x)).matrix()  # negative control: another metric is not
    assert not torch.allclose(F.matrix(), labels, atol=1e-3)


class Deep:
    """y = W_L ... W_1 x + noise of covariance Σ, with a gradient of the mean of squares in Σ⁻¹."""

    def __init__(self, *dims, n=30):
        self.dims, self.L = dims, len(dims) - 1
        self.model = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(dims)))
        self.x, self.target = torch.randn(n, dims[0]), torch.randn(n, dims[-1])
        A = torch.randn(dims[-1], dims[-1])
        self.noise = A @ A.mT + torch.eye(dims[-1])
        inverse = torch.linalg.inv(self.noise)
        self.output = OutputForm(lambda z: inverse)
        self.network = Network.from_torch(self.model, Gaussian(), self.x)
        self.W = [layer.weight.detach() for layer in self.model]
        self.U = [self.product(i + 1, self.L) for i in range(self.L)]
        self.D = [self.product(0, i) for i in range(self.L)]
        self.S0 = self.x.mT @ self.x / n
        errors = self.model(self.x).detach() - self.target
        self.G = inverse @ errors.mT @ self.x / n  # the gradient at the product of all
        self.M = self.noise @ self.G @ torch.linalg.inv(self.S0)  # W - W*
        self.F = GaussNewton(self.output).at(self.network.observe(self.x, Exact(), output=self.output))
        gradient = {str(i): U.mT @ self.G @ D.mT for i, (U, D) in enumerate(zip(self.U, self.D, strict=True))}
        self.xi = Covector(self.F.space, gradient)

    def product(self, start, stop):
        out = torch.eye(self.dims[start])
        for W in self.W[start:stop]:
            out = W @ out
        return out

    def pushed(self, v):
        """J v at the product: the motion of the function."""
        return sum(self.U[i] @ v[str(i)] @ self.D[i] for i in range(self.L))

    def vector(self, blocks):
        return Vector(self.F.space, {str(i): b for i, b in enumerate(blocks)})

    def shared(self):
        """v = (1/L) U⁺ M D⁺ in every layer."""
        pinv = torch.linalg.pinv
        return self.vector([pinv(U) @ self.M @ pinv(D) / self.L for U, D in zip(self.U, self.D, strict=True)])


@pytest.mark.parametrize("dims", [(3, 4, 5, 3), (2, 3), (3, 5, 4)], ids=str)
def test_every_layer_takes_its_share(dims):
    """F v = dL and J v = W - W* for v = (1/L) U⁺ M D⁺, if hidden layers are as wide as both ends."""
    net = Deep(*dims)
    v = net.shared()
    assert torch.allclose(net.F.flat(v).data, net.xi.data, atol=1e-11)
    assert torch.allclose(net.pushed(v), net.M, atol=1e-10)
    if net.L > 1:  # negative control: without 1/L the function moves L times as far
        assert torch.allclose(net.pushed(net.L * v), net.L * net.M, atol=1e-9)
        assert not torch.allclose(net.F.flat(net.L * v).data, net.xi.data, atol=1e-3)


def test_with_a_bottleneck_the_shares_are_no_solution():
    net = Deep(4, 2, 3)
    assert not torch.allclose(net.F.flat(net.shared()).data, net.xi.data, atol=1e-3)


@pytest.mark.parametrize("dims", [(4, 5, 2, 5, 4), (5, 3, 2), (2, 3, 5), (3, 4, 5, 3)], ids=str)
def test_the_motion_of_the_function_with_bottlenecks(dims):
    """J v = Σ (P_i - P_{i-1}) M Q_i with projectors on the ranges of U_i and on the row spaces of D_i."""
    net = Deep(*dims)
    inverse, expected, last = torch.linalg.inv(net.noise), torch.zeros_like(net.M), torch.zeros_like(net.noise)
    for U, D in zip(net.U, net.D, strict=True):
        P = U @ torch.linalg.pinv(U.mT @ inverse @ U, hermitian=True, rtol=1e-10) @ U.mT @ inverse
        Q = net.S0 @ D.mT @ torch.linalg.pinv(D @ net.S0 @ D.mT, hermitian=True, rtol=1e-10) @ D
        expected, last = expected + (P - last) @ net.M @ Q, P
    v = net.F.sharp_modulo_kernel(net.xi, Euclidean(net.F.space))
    assert torch.allclose(net.F.flat(v).data, net.xi.data, atol=1e-9)
    assert torch.allclose(net.pushed(v), expected, atol=1e-8)


def test_solutions_are_a_coset():
    """The shares, the shortest and the limit of damping differ as vectors and move the function alike."""
    net = Deep(3, 4, 5, 3)
    short = net.F.sharp_modulo_kernel(net.xi, Euclidean(net.F.space))
    pinv = Vector(net.F.space, torch.linalg.pinv(net.F.matrix(), hermitian=True, rtol=1e-10) @ net.xi.data)
    limit = (net.F + 1e-9 * Euclidean(net.F.space)).sharp(net.xi, Dual())
    motion = net.pushed(net.shared())
    for v in (short, pinv, limit):
        assert torch.allclose(net.pushed(v), motion, atol=1e-5)
    assert torch.allclose(short.data, pinv.data, atol=1e-8)
    assert not torch.allclose(net.shared().data, short.data, atol=1e-2)
    observation = net.network.observe(net.x, output=net.output)
    reference = KFAC(output=net.output).at(observation) + 0.1 * Euclidean(net.F.space)
    other = net.F.sharp_modulo_kernel(net.xi, reference)  # another representative
    assert torch.allclose(net.pushed(other), motion, atol=1e-8)
    assert not torch.allclose(other.data, short.data, atol=1e-3)


def test_blocks_alone_overshoot_as_often_as_there_are_layers():
    """K-FAC is exact in each block of a deep linear network, and goes L times too far; the exact rescaling says so."""
    net = Deep(3, 4, 5, 3)
    o = net.network.observe(net.x, output=net.output)
    blocks = GaussNewton(net.output, "block-diagonal").at(o)
    assert torch.allclose(blocks.matrix(), KFAC(output=net.output).at(o).matrix(), atol=1e-11)
    v = blocks.sharp_modulo_kernel(net.xi, Euclidean(net.F.space))
    assert torch.allclose(net.pushed(v), net.L * net.M, atol=1e-8)
    assert torch.isclose(net.xi(v) / net.F.inner(v, v), torch.tensor(1 / net.L), atol=1e-9)
