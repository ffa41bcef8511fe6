"""Spaces: laws of duals, products and sums; nominal identity; repr is code, str is mathematics."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import riemann_ng as rng
from riemann_ng.errors import InvalidSpace, SpaceMismatch
from riemann_ng.spaces import AffineSpace, Derived, DirectSum, Family, Hom, OnePoint, Space, VectorSpace, tensor_product
from riemann_ng.symmetry import LOSS

V, W, A = Space("V", 3), Space("W", 2), AffineSpace("A", 4)
NAMESPACE = vars(rng)

atoms = st.one_of(
    st.builds(Space, st.sampled_from(["V", "W", "net/fc1.x", "ψ"]), st.integers(1, 4)),
    st.builds(lambda n: AffineSpace("A", n).translations, st.integers(1, 4)),
    st.builds(lambda n: AffineSpace("A", n).hull, st.integers(1, 4)),
    st.just(OnePoint.hull),
)
plain = st.recursive(
    st.one_of(atoms, atoms.map(lambda V: V.dual)),
    lambda inner: st.one_of(
        st.builds(lambda a, b: a * b, inner, inner),
        st.builds(lambda a, b: DirectSum({"a": a, "b": b}), inner, inner),
        inner.map(lambda V: V.dual),
    ),
    max_leaves=4,
)
spaces = st.one_of(plain, st.builds(Family, plain, st.integers(1, 3)))


@given(spaces)
def test_dual_is_an_involution_of_the_same_dimension(V):
    assert V.dual.dual == V
    assert V.dual != V
    assert (V.dual.dim, V.dual.shape, V.dual.bases) == (V.dim, V.shape, V.bases)


@given(spaces)
def test_repr_is_code_and_hash_agrees(V):
    assert eval(repr(V), NAMESPACE) == V
    assert hash(eval(repr(V), NAMESPACE)) == hash(V)
    assert len(str(V)) > 0


@given(plain, plain, plain)
def test_products(a, b, c):
    assert (a * b) * c == a * (b * c) == tensor_product(a, b, c)
    assert (a * b).dim == a.dim * b.dim
    assert (a * b).dual == a.dual * b.dual
    assert Hom(a, b) == b * a.dual
    assert (a * b).shape == a.shape + b.shape


@given(st.lists(plain, min_size=1, max_size=3))
def test_sums(parts):
    whole = DirectSum({str(i): V for i, V in enumerate(parts)})
    assert whole.dim == sum(V.dim for V in parts)
    assert whole.dual == DirectSum({str(i): V.dual for i, V in enumerate(parts)})
    assert list(whole) == [str(i) for i in range(len(parts))]
    assert [whole[name] for name in whole] == parts
    assert [s.stop - s.start for s in whole.slices.values()] == [V.dim for V in parts]


@given(plain, plain, st.integers(1, 3))
def test_families_multiply_member_by_member(a, b, m):
    assert Family(a, m) * Family(b, m) == Family(a * b, m)
    assert Family(a, m) * b == Family(a * b, m)
    assert a * Family(b, m) == Family(a * b, m)
    assert Hom(Family(a, m), Family(b, m)) == Family(Hom(a, b), m)
    assert Family(a, m).dim == m * a.dim
    assert Family(a, m).shape == (m, *a.shape)
    assert a.levels == () and Family(Family(a, m), 2).levels == (2, m) == (Family(Family(a, m), 2) * b).dual.levels


def test_identity_is_nominal():
    assert Space("V", 3) == V
    assert Space("V", 4) != V
    assert Space("U", 3) != V
    assert AffineSpace("V", 3).translations != V
    assert V * W != W * V
    assert V + W != W + V


def test_affine_spaces():
    assert A.hull.dim == A.dim + 1
    assert A.translations.dim == A.dim
    assert A.hull.bases == A.translations.dual.bases == ("A",)
    assert OnePoint.hull.dim == 1
    assert Hom(OnePoint.hull, W).shape == (2, 1)
    assert not isinstance(A, VectorSpace)
    over = AffineSpace("P", 6, over=Hom(W, V))
    assert over.translations == Hom(W, V)
    assert eval(repr(over), NAMESPACE) == over != AffineSpace("P", 6)


@pytest.mark.parametrize(
    ("space", "text"),
    [
        (V, "V"),
        (V.dual, "V*"),
        (A.hull, "Â"),
        (A.translations, "A⃗"),
        (Hom(V, W), "W ← V"),
        (Hom(V, W).dual, "(W ← V)*"),
        (V * W, "V ⊗ W"),
        (V.dual * W.dual, "V* ⊗ W*"),
        (V * W * A.hull, "V ⊗ W ⊗ Â"),
        (V + W, "V ⊕ W"),
        (Hom(V, W) + W, "(W ← V) ⊕ W"),
        ((V + W) * V, "(V ⊕ W) ⊗ V"),
        (Family(V, 3), "(V)^3"),
        (OnePoint, "•"),
        (OnePoint.hull, "ℝ"),
    ],
)
def test_str_is_mathematics(space, text):
    assert str(space) == text


def test_starred_says_what_elements_are_called():
    assert V.dual.starred and (V.dual * W).starred and (V + W).dual.starred and Family(V.dual, 2).starred
    assert not (V.starred or Hom(V, W).starred or (V + W).starred or Family(V, 2).starred or A.hull.starred)


def test_plus_flattens_and_names_by_the_spaces():
    assert (V + W) + A.hull == DirectSum({"V": V, "W": W, "Â": A.hull})


def test_derived_spaces_are_known_by_their_name_and_what_they_are_made_of():
    classes = Derived("V/K", V * W, 4)
    assert classes == Derived("V/K", V * W, 4) != Derived("V/K", V * W, 4, up_to_rotation=True)
    assert classes != Derived("V/L", V * W, 4) and classes != Derived("V/K", W * V, 4)
    assert (str(classes), classes.bases, classes.shape) == ("V/K", ("V", "W"), (4,))
    assert classes.dual.dual == classes != classes.dual


def test_spaces_hold_no_tensors_and_are_cheap():
    assert Hom(A.hull, V).dual is Hom(A.hull, V).dual or Hom(A.hull, V).dual == Hom(A.hull, V).dual
    W_ = Hom(A.hull, V)
    assert W_.dual is W_.dual and W_.dual.dual is W_


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Space("", 3), InvalidSpace, "known by its name, got ''"),
        (lambda: Space(LOSS, 3), InvalidSpace, "Space: 'loss' is kept for the scale of the loss. Name it otherwise."),
        (lambda: AffineSpace("loss", 3), InvalidSpace, "AffineSpace: 'loss' is kept for the scale of the loss"),
        (lambda: Hom(A, V), SpaceMismatch, "Hom: expected a vector space, got AffineSpace('A', 4)"),
        (lambda: Hom(V, A), SpaceMismatch, "takes part through its .translations or its .hull"),
        (lambda: AffineSpace("B", 4, over=A), SpaceMismatch, "AffineSpace: expected a vector space"),
        (lambda: Space(3, 3), InvalidSpace, "known by its name, got 3"),
        (lambda: Space("V", 0), InvalidSpace, "Space('V', 0): the dimension must be a positive integer"),
        (lambda: Space("V", True), InvalidSpace, "positive integer"),
        (lambda: Space("V", 2.0), InvalidSpace, "positive integer"),
        (lambda: AffineSpace("A", 0), InvalidSpace, "the one-point affine space is OnePoint"),
        (lambda: AffineSpace("A", 4, over=V), InvalidSpace, "its translations V have dimension 3"),
        (lambda: OnePoint.translations, InvalidSpace, "Use OnePoint.hull"),
        (lambda: V + V, InvalidSpace, "two summands are named 'V'"),
        (lambda: DirectSum({}), InvalidSpace, "at least one summand"),
        (lambda: DirectSum({"a": A}), InvalidSpace, "through its .translations or its .hull"),
        (lambda: DirectSum({"": V}), InvalidSpace, "expected a name and a vector space"),
        (lambda: Derived("V/K", V, 0), InvalidSpace, "InvalidSpace in Derived('V/K', 0): the dimension must be"),
        (lambda: Family(A, 2), InvalidSpace, "Family: expected a vector space"),
        (lambda: Family(V, 0), InvalidSpace, "positive integer"),
        (lambda: Family(V, 2) * Family(V, 3), SpaceMismatch, "the same number of members"),
        (lambda: (V + W)["U"], SpaceMismatch, "no summand 'U'; it has 'V', 'W'"),
    ],
)
def test_errors_name_what_was_given_and_the_fix(make, error, text):
    with pytest.raises(error, match=re.escape(text)):
        make()


@pytest.mark.parametrize("operation", [lambda: V * 3, lambda: V + 3, lambda: V * A])
def test_spaces_multiply_with_spaces_alone(operation):
    with pytest.raises(TypeError, match="unsupported operand"):
        operation()
