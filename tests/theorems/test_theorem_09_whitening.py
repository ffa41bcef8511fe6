"""Theorem 9: gradient descent in an orthonormal frame is natural gradient; PRONG is K-FAC with G = I."""

import torch
from exact_matrices import Draws, close
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import riemann_ng as rng
from riemann_ng.reparametrize import in_frames

seeds = st.integers(0, 10**6)
RATE = 0.1


@given(seeds)
def test_theorem_09_gradient_descent_in_an_orthonormal_frame(seed):
    draws, V = Draws(seed), rng.Space("V", 4)
    g, xi, w = rng.Gram(V, draws.positive(4)), rng.Covector(V, draws.normal(4)), draws.normal(4)
    frame = g.frame()
    E = torch.stack([frame(rng.Vector(frame.domain, e)).data for e in torch.eye(4, dtype=torch.float64)], -1)
    inner = torch.linalg.solve(E, w) - RATE * E.mT @ xi.data
    natural = w - RATE * g.sharp(xi).data
    assert close(E @ inner, natural)
    assert not close(2 * E @ (torch.linalg.solve(2 * E, w) - RATE * 2 * E.mT @ xi.data), natural)


def whitening(covariance: Tensor, kind: str) -> Tensor:
    if kind == "cholesky":
        return torch.linalg.inv(torch.linalg.cholesky(covariance))
    values, vectors = torch.linalg.eigh(covariance)
    pca = vectors.mT / values.sqrt()[:, None]
    return pca if kind == "pca" else vectors @ pca


def prong(seed: int, kind: str, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """A step of gradient descent on V, b in s = V U (h - c) + b by autograd, told as a step of [W d]; the covector on
    [W d]; and the moment of the hull with the damped covariance."""
    draws = Draws(seed)
    h, target, W, d = (
        draws.normal(30, 3) @ draws.invertible(3) + 1,
        draws.normal(30, 2),
        draws.normal(2, 3),
        draws.normal(2),
    )
    c, covariance = h.mean(0), torch.cov(h.mT, correction=0) + epsilon * torch.eye(3, dtype=torch.float64)
    U = whitening(covariance, kind)
    V = (W @ torch.linalg.inv(U)).requires_grad_()
    b = (d + W @ c).requires_grad_()
    loss = lambda s: (s.tanh() - target).square().sum(-1).mean()  # noqa: E731
    dV, db = torch.autograd.grad(loss((h - c) @ U.mT @ V.mT + b), (V, b))
    dW = -RATE * dV @ U
    step = torch.cat([dW, (-RATE * db - dW @ c)[:, None]], -1)
    own = torch.cat([W, d[:, None]], -1).requires_grad_()
    hull = torch.cat([h, torch.ones(30, 1, dtype=torch.float64)], -1)
    (X,) = torch.autograd.grad(loss(hull @ own.mT), own)
    corner = torch.ones(1, 1, dtype=torch.float64)
    moment = torch.cat([torch.cat([covariance + c[:, None] * c, c[:, None]], 1), torch.cat([c[None], corner], 1)])
    return step, X, moment


@given(seeds, st.sampled_from(["zca", "pca", "cholesky"]), st.sampled_from([0.0, 0.3]))
def test_theorem_09_prong_is_kfac_with_no_metric_on_pre_activations(seed, kind, epsilon):
    step, X, moment = prong(seed, kind, epsilon)
    A, S = rng.AffineSpace("A", 3), rng.AffineSpace("S", 2)
    metric = rng.Euclidean(S.translations) * rng.Gram(A.hull.dual, moment)
    assert close(step, -RATE * metric.sharp(rng.Covector(metric.space, X)).data)


def test_theorem_09_fails_for_damping_of_the_hull():
    """Damping the whole moment is not damping the centred covariance."""
    step, X, moment = prong(0, "zca", 0.3)
    undamped = prong(0, "zca", 0.0)[2] + 0.3 * torch.eye(4, dtype=torch.float64)
    assert not close(step, -RATE * X @ torch.linalg.inv(undamped), 0.01)
    assert close(step, -RATE * X @ torch.linalg.inv(moment))


def test_theorem_09_fails_if_a_refresh_forgets_the_parameters():
    draws = Draws(0)
    E, refreshed, w = draws.invertible(4), draws.invertible(4), draws.normal(4)
    inner = torch.linalg.solve(E, w)
    assert close(refreshed @ torch.linalg.solve(refreshed, E @ inner), w)
    assert not close(refreshed @ inner, w, 0.1)


def network_of(seed: int) -> tuple[rng.Network, Tensor, Tensor]:
    """The layer of `prong`, from the same draws, before a tanh and squared errors."""
    draws = Draws(seed)
    h, target = draws.normal(30, 3) @ draws.invertible(3) + 1, draws.normal(30, 2)
    module = nn.Sequential(nn.Linear(3, 2).double(), nn.Tanh())
    with torch.no_grad():
        module[0].weight.copy_(draws.normal(2, 3))
        module[0].bias.copy_(draws.normal(2))
    return rng.Network.from_torch(module, rng.Gaussian(), h), h, target


@given(seeds, st.sampled_from(["zca", "pca", "cholesky"]), st.sampled_from([0.0, 0.3]))
def test_theorem_09_of_the_library(seed, kind, epsilon):
    """`PRONG` takes the step of gradient descent between whitened inputs. Squared errors have half the loss here."""
    step, X, _ = prong(seed, kind, epsilon)
    network, h, target = network_of(seed)
    v = rng.natural_gradient(network, rng.PRONG(epsilon), h, target)
    assert close(network.differential(h, target).component("0").data * 2, X)
    assert close(-2 * RATE * v.component("0").data, step)


def test_theorem_09_of_the_library_fails_for_damping_of_the_hull():
    network, h, target = network_of(0)
    step = prong(0, "zca", 0.3)[0]
    damped = rng.PRONG(0.0) + 0.3 * rng.EuclideanMetric()
    assert not close(-2 * RATE * rng.natural_gradient(network, damped, h, target).component("0").data, step, 0.01)


@given(seeds, st.sampled_from(["zca", "pca", "cholesky"]), st.sampled_from([0.0, 0.3]))
def test_theorem_09_of_the_optimizer(seed, kind, epsilon):
    """`optim.PRONG` takes this step in the layer's own parameters; in `in_frames` gradient descent takes it."""
    step, _, _ = prong(seed, kind, epsilon)
    network, h, target = network_of(seed)
    other = network_of(seed)[0]
    opt = rng.optim.PRONG(network.module, network.likelihood, lr=2 * RATE, momentum=0, epsilon=epsilon)
    framed = in_frames(other, rng.PRONG(epsilon).at(other.observe(h)))
    plain = torch.optim.SGD(other.module.parameters(), lr=2 * RATE)
    before = network.parameters_point()
    for there, descent in ((network, opt), (other, plain)):
        network.likelihood.loss(there.module(h), target).backward()
        descent.step()
    framed.remove()
    for there in (network, other):
        assert close((there.parameters_point().data - before.data), step.flatten())
