"""Linear maps: transposes without inner products, composition, tensor products."""

import copy
import pickle
import re

import pytest
import torch

from riemann_ng.elements import Covector, Vector
from riemann_ng.errors import DegenerateMetric, DtypeMismatch, ShapeMismatch, SpaceMismatch
from riemann_ng.linear_maps import LinearMap
from riemann_ng.spaces import AffineSpace, DirectSum, Family, Hom, Space

U, V, W = Space("U", 4), Space("V", 3), Space("W", 2)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


phi = LinearMap(V, W, randn(2, 3), "φ")
psi = LinearMap(U, V, randn(3, 4), "ψ")
MANY_V, MANY_W = Family(V, 4), Family(Family(W, 2), 2)
mixing = LinearMap(MANY_V, MANY_W, randn(8, 12, seed=2), "mixing")
split, joined = LinearMap(V, MANY_W, randn(8, 3, seed=3)), LinearMap(MANY_V, W, randn(2, 12, seed=4))
free = LinearMap.from_functions(V, W, lambda x: x[..., :2] * 2, lambda y: torch.nn.functional.pad(y * 2, (0, 1)))


@pytest.mark.parametrize(
    "f",
    [
        phi, phi @ psi, free, phi * psi, (phi @ psi) * free, phi.transpose, free.transpose,
        mixing * phi, phi * mixing, split * phi, phi * split, joined * split, split * joined, phi * psi * joined,
    ],
)  # fmt: skip
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


@pytest.mark.parametrize(
    ("f", "g"),
    [(mixing, phi), (phi, mixing), (joined, phi), (phi, joined), (split, phi), (phi, split), (split, joined)],
)
def test_one_factor_may_be_of_families(f, g):
    v, w = Vector(f.domain, randn(5, *f.domain.shape)), Vector(g.domain, randn(*g.domain.shape, seed=1))
    images = f(v).outer(g(w))
    assert (f * g)(v.outer(w)).lives_in == images.lives_in
    assert torch.allclose((f * g)(v.outer(w)).data, images.data)


def test_the_members_of_a_second_factor_come_first():
    """Control: where the second factor is of families, the Kronecker product is in another order."""
    plain = torch.kron(phi.matrix(), mixing.matrix())
    assert not torch.allclose((phi * mixing).matrix(randn(1)), plain)
    assert torch.allclose((mixing * phi).matrix(randn(1)), torch.kron(mixing.matrix(), phi.matrix()))


A = AffineSpace("A", 3)
MAPS = {
    "matrix": LinearMap(A.hull, W, randn(2, 4)),
    "identity": LinearMap.identity(A.hull),
    "inclusion": LinearMap.inclusion(DirectSum({"a": V, "b": A.hull}), "a"),
    "projection": LinearMap.projection(DirectSum({"a": V, "b": A.hull}), "b"),
    "translations": LinearMap.translations(A),
    "height": LinearMap.height(A),
    "at": LinearMap.at(A, randn(3)),
    "difference": LinearMap.difference(A, randn(3), "p", natural=True),
    "composed": phi @ LinearMap(U, V, randn(3, 4)),
    "product": phi * mixing,
    "transpose": (phi * psi).transpose,
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda f: pickle.loads(pickle.dumps(f))], ids=["deepcopy", "pickle"])
def test_maps_can_be_copied_and_pickled(name, copied):
    f, g = MAPS[name], copied(MAPS[name])
    v, xi = Vector(f.domain, randn(*f.domain.shape)), Covector(f.codomain, randn(*f.codomain.shape, seed=1))
    assert (g.domain, g.codomain, g.name, g.symmetry) == (f.domain, f.codomain, f.name, f.symmetry)
    assert torch.equal(g(v).data, f(v).data) and torch.equal(g.pullback(xi).data, f.pullback(xi).data)


def test_a_copy_shares_nothing_with_its_original():
    f = LinearMap(V, W, randn(2, 3))
    g, v = copy.deepcopy(f), Vector(V, randn(3))
    before = g(v).data
    f.matrix().mul_(2)
    assert torch.equal(g(v).data, before) and torch.equal(g.matrix() @ v.data, before)
    assert torch.equal(f(v).data, 2 * before)  # control: the original does change


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
        (
            lambda: mixing * joined,
            SpaceMismatch,
            "families multiply member by member, and a map may mix the members. Multiply the maps of single members.",
        ),
        (lambda: split * split, SpaceMismatch, "a map may mix the members"),
        (
            lambda: LinearMap(A, W, randn(2, 3)),
            SpaceMismatch,
            "SpaceMismatch in LinearMap: expected a vector space, got AffineSpace('A', 3). An affine space takes part",
        ),
        (lambda: LinearMap(V, A, randn(3, 3)), SpaceMismatch, "through its .translations or its .hull"),
        (
            lambda: LinearMap.from_functions(A, W, torch.clone, torch.clone),
            SpaceMismatch,
            "in LinearMap.from_functions",
        ),
        (lambda: LinearMap.identity(A), SpaceMismatch, "SpaceMismatch in identity: expected a vector space"),
        (lambda: LinearMap.inclusion(DirectSum({"a": V}), "z"), SpaceMismatch, "V has no summand 'z'; it has 'a'"),
        (
            lambda: LinearMap.inclusion(V, "z"),
            SpaceMismatch,
            "in LinearMap.inclusion: expected a direct sum, got Space('V', 3)",
        ),
        (lambda: phi @ Vector(V, randn(3)), SpaceMismatch, "Linear maps are composed; one is applied as φ(v)."),
        (lambda: LinearMap.projection(DirectSum({"a": V}), "z"), SpaceMismatch, "V has no summand 'z'; it has 'a'"),
        (
            lambda: phi(Vector(V, randn(3).float())),
            DtypeMismatch,
            "in φ: φ : W ← V with a vector of V (float32[3]): torch.float64 on cpu, torch.float32 on cpu. Bring one to",
        ),
        (lambda: phi.pullback(Covector(W, randn(2).float())), DtypeMismatch, "DtypeMismatch in φ.pullback"),
        (lambda: phi @ LinearMap(U, V, randn(3, 4).float()), DtypeMismatch, "DtypeMismatch in @: φ : W ← V with φ"),
        (lambda: phi * LinearMap(U, V, randn(3, 4).float()), DtypeMismatch, "DtypeMismatch in *"),
        (lambda: (phi @ psi)(Vector(U, randn(4).float())), DtypeMismatch, "DtypeMismatch in φ @ ψ"),
        (lambda: phi.inverse(), SpaceMismatch, "not between spaces of one dimension"),
        (lambda: LinearMap(V, V, torch.zeros(3, 3)).inverse(), DegenerateMetric, "is singular"),
    ],
)
def test_errors(make, error, text):
    with pytest.raises(error, match=re.escape(text)):
        make()
