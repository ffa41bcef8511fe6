"""Linear maps: transposes without inner products, composition, tensor products."""

import re

import pytest
import torch

from riemann_ng.elements import Covector, Vector
from riemann_ng.errors import DegenerateMetric, ShapeMismatch, SpaceMismatch
from riemann_ng.linear_maps import LinearMap
from riemann_ng.spaces import DirectSum, Hom, Space

U, V, W = Space("U", 4), Space("V", 3), Space("W", 2)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


phi = LinearMap(V, W, randn(2, 3), "φ")
psi = LinearMap(U, V, randn(3, 4), "ψ")
free = LinearMap.from_functions(V, W, lambda x: x[..., :2] * 2, lambda y: torch.nn.functional.pad(y * 2, (0, 1)))


@pytest.mark.parametrize("f", [phi, phi @ psi, free, phi * psi, (phi @ psi) * free, phi.transpose, free.transpose])
def test_the_transpose_is_the_transpose(f):
    v, xi = Vector(f.domain, randn(*f.domain.shape)), Covector(f.codomain, randn(*f.codomain.shape, seed=1))
    assert torch.allclose(f.pullback(xi)(v), xi(f(v)))
    assert torch.allclose(f.transpose(xi)(v), xi(f(v)))
    assert f.transpose.domain == f.codomain.dual and f.transpose.codomain == f.domain.dual
    assert torch.allclose(f.transpose.transpose(v).data, f(v).data)
    like = randn(1)
    assert torch.allclose(f.transpose.matrix(like), f.matrix(like).mT)


def test_a_wrong_transpose_is_seen():
    wrong = LinearMap.from_functions(V, W, lambda x: x[..., :2] * 2, lambda y: torch.nn.functional.pad(y * 3, (0, 1)))
    v, xi = Vector(V, randn(3)), Covector(W, randn(2))
    assert not torch.allclose(wrong.pullback(xi)(v), xi(wrong(v)))


def test_composition_and_tensor_products():
    u, v = Vector(U, randn(5, 4)), Vector(V, randn(5, 3))
    assert torch.allclose((phi @ psi)(u).data, phi(psi(u)).data)
    assert torch.allclose((phi @ psi).matrix(), phi.matrix() @ psi.matrix())
    both = (phi * psi)(v.outer(u))
    assert both.lives_in == W * V
    assert torch.allclose(both.data, phi(v).outer(psi(u)).data)
    assert torch.allclose((phi * psi).matrix(randn(1)), torch.kron(phi.matrix(), psi.matrix()))
    xi = Covector(W, randn(2))
    assert torch.allclose((phi @ psi).pullback(xi).data, psi.pullback(phi.pullback(xi)).data)


def test_tensor_products_of_maps_act_on_hom():
    """A change of frames acts on W ← V by Φ D Ω⁻¹."""
    frames = LinearMap(W, W, randn(2, 2)), LinearMap(V, V, randn(3, 3, seed=1))
    acting = frames[0] * frames[1].inverse().transpose
    D = Vector(Hom(V, W), randn(2, 3))
    assert torch.allclose(acting(D).data, frames[0].matrix() @ D.data @ torch.linalg.inv(frames[1].matrix()))


def test_identity_inclusion_projection_inverse():
    whole = DirectSum({"a": V, "b": W})
    w = Vector(W, randn(2))
    assert torch.equal(LinearMap.identity(W)(w).data, w.data)
    included = LinearMap.inclusion(whole, "b")(w)
    assert torch.equal(included["b"], w.data) and not included["a"].any()
    assert torch.equal(LinearMap.projection(whole, "b")(included).data, w.data)
    square = LinearMap(V, V, randn(3, 3))
    assert torch.allclose((square.inverse() @ square).matrix(), torch.eye(3, dtype=torch.float64))


def test_natural_maps_stay_natural_under_composition():
    whole = DirectSum({"a": V, "b": W})
    inclusion = LinearMap.inclusion(whole, "a")
    assert inclusion.natural and LinearMap.identity(V).natural and not phi.natural
    assert (LinearMap.projection(whole, "a") @ inclusion).natural
    assert not (phi @ LinearMap.projection(whole, "a")).natural


def test_text():
    assert str(phi @ psi) == "φ @ ψ : W ← U"
    assert repr(phi) == "LinearMap(Space('V', 3), Space('W', 2), name='φ')"


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: phi(Vector(W, randn(2))), SpaceMismatch, "takes an element of V, got a vector of W (float64[2])"),
        (lambda: phi(Covector(V, randn(3))), SpaceMismatch, "Covectors go the other way: φ.pullback(covector)"),
        (lambda: phi(randn(3)), SpaceMismatch, "takes an element of V"),
        (lambda: phi.pullback(Covector(V, randn(3))), SpaceMismatch, "expected a covector on W"),
        (lambda: psi @ phi, SpaceMismatch, "cannot follow φ : W ← V: U is not W"),
        (lambda: LinearMap(V, W, randn(3, 2)), ShapeMismatch, "an element of W ← V has components [..., 2, 3]"),
        (lambda: LinearMap(V, W, randn(5, 2, 3)), ShapeMismatch, "one map has one matrix"),
        (lambda: phi.inverse(), SpaceMismatch, "not between spaces of one dimension"),
        (lambda: LinearMap(V, V, torch.zeros(3, 3)).inverse(), DegenerateMetric, "is singular"),
    ],
)
def test_errors(make, error, text):
    with pytest.raises(error, match=re.escape(text)):
        make()
