"""Elements: the pairing is the only free product; every operation checks its spaces before it touches a tensor."""

import re

import pytest
import torch

from riemann_ng.elements import Covector, Element, Vector, element
from riemann_ng.errors import DtypeMismatch, InvalidSetting, ShapeMismatch, SpaceMismatch
from riemann_ng.points import Point, barycenter, translation_in_hull
from riemann_ng.spaces import AffineSpace, DirectSum, Family, Hom, Space

V, W, A = Space("V", 3), Space("W", 2), AffineSpace("A", 3)
SUM = DirectSum({"a": V * W, "b": W})


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_wrapping_copies_nothing():
    t = randn(5, 3)
    assert Vector(V, t).data is t
    assert Covector(V, t).data is t
    assert Vector(V, t).components is t
    assert Vector(V * W, randn(3, 2)).components.shape == (6,)


def test_where_elements_live():
    v, xi = Vector(V, randn(3)), Covector(V, randn(3))
    assert (v.lives_in, v.space) == (V, V)
    assert (xi.lives_in, xi.space) == (V.dual, V)
    assert str(v) == "a vector of V (float64[3])"
    assert str(Covector(V, randn(5, 3))) == "a covector on V (float64[3], batch [5])"
    assert repr(v) == "Vector(Space('V', 3), float64[3])"


def test_pairing_is_the_contraction_and_broadcasts_over_batches():
    x, y = randn(5, 3), randn(3, seed=1)
    assert torch.equal(Covector(V, x)(Vector(V, y)), torch.linalg.vecdot(x, y))
    assert Covector(V, randn(5, 1, 3))(Vector(V, randn(4, 3))).shape == (5, 4)
    m, n = randn(3, 2), randn(3, 2, seed=1)
    assert torch.allclose(Covector(V * W, m)(Vector(V * W, n)), (m * n).sum())


def test_a_vector_of_the_dual_is_accepted_as_a_covector():
    x, y = randn(3), randn(3, seed=1)
    assert Vector(V.dual, x)(Vector(V, y)) == Covector(V, x)(Vector(V, y))
    assert torch.equal((Covector(V, x) + Vector(V.dual, y)).data, x + y)


def test_arithmetic():
    x, y = randn(4, 3), randn(4, 3, seed=1)
    v, w = Vector(V, x), Vector(V, y)
    assert torch.equal((v + w).data, x + y)
    assert torch.equal((v - w).data, x - y)
    assert torch.equal((-v).data, -x)
    assert torch.equal((2 * v).data, 2 * x) and torch.equal((v * 2).data, 2 * x)
    assert torch.equal((v / 4).data, x / 4)
    per_element = torch.arange(4.0, dtype=torch.float64)
    assert torch.equal((per_element * v).data, x * per_element[:, None])
    assert torch.equal((torch.tensor(2.0, dtype=torch.float64) * v).data, 2 * x)
    assert type(Covector(V, x) * 2) is Covector


def test_outer_is_the_tensor_product():
    v, w, xi = Vector(V, randn(5, 3)), Vector(W, randn(2)), Covector(W, randn(2))
    assert v.outer(w).lives_in == V * W
    assert torch.allclose(v.outer(w).data, torch.einsum("ni,j->nij", v.data, w.data))
    assert v.outer(xi).lives_in == Hom(W, V)


@pytest.mark.parametrize(
    ("left", "right", "letters"),
    [
        (V, Family(W, 4), "ni,mj->nmij"),
        (Family(V, 4), W, "nmi,j->nmij"),
        (Family(V, 4), Family(W, 4), "nmi,mj->nmij"),
        (Family(V, 4), Family(V * W, 4).dual, "nmi,mjk->nmijk"),
        (Family(Family(V, 2), 4), Family(W, 4), "nmki,mj->nmkij"),
        (V, Family(Family(W, 2), 4), "ni,mkj->nmkij"),
    ],
)
def test_outer_goes_member_by_member(left, right, letters):
    v, w = Vector(left, randn(5, *left.shape)), Vector(right, randn(*right.shape, seed=1))
    assert v.outer(w).lives_in == left * right
    assert torch.allclose(v.outer(w).data, torch.einsum(letters, v.data, w.data))
    every = (v.components[..., :, None] * w.components[None, :]).flatten()  # control: every member with every one
    right_alone = isinstance(left, Family) and not isinstance(right, Family)
    assert (
        every.numel() == v.outer(w).data.numel() and torch.allclose(every, v.outer(w).data.flatten())
    ) == right_alone


def test_direct_sums_keep_their_tensors_as_they_came():
    flat = Vector(SUM, randn(4, 8))
    assert flat.in_one_piece and torch.equal(flat["b"], flat.data[:, 6:])
    assert flat["a"].shape == (4, 3, 2)
    assert flat.blocks["a"].data_ptr() == flat.data.data_ptr()
    blocks = {"a": randn(3, 2), "b": randn(2)}
    pieces = Vector(SUM, blocks)
    assert pieces["a"] is blocks["a"] and not pieces.in_one_piece
    assert (pieces.batch, pieces.dtype) == ((), torch.float64)
    assert not (pieces + pieces).in_one_piece
    assert torch.equal((pieces + pieces)["a"], 2 * blocks["a"])
    assert torch.equal((3 * pieces)["b"], 3 * blocks["b"])
    assert torch.equal((pieces * torch.ones(1, dtype=torch.float64)).data[0], pieces.data)
    assert torch.equal(pieces.data, torch.cat([blocks["a"].flatten(), blocks["b"]]))
    assert torch.equal((pieces + Vector(SUM, randn(8))).data, pieces.data + randn(8))
    xi = Covector(SUM, {"a": randn(3, 2, seed=1), "b": randn(2, seed=1)})
    assert torch.allclose(xi(Vector(SUM, blocks)), (xi.data * pieces.data).sum())
    assert pieces.component("a").lives_in == V * W
    assert type(xi.component("b")) is Covector


def test_batches_of_blocks():
    v = Vector(SUM, {"a": randn(4, 3, 2), "b": randn(4, 2)})
    assert v.batch == (4,) and v.data.shape == (4, 8)
    assert "batch [4]" in str(v)


def test_to_and_detach_and_zeros():
    v = Vector(V, randn(3).requires_grad_())
    assert v.to(torch.float32).dtype == torch.float32
    assert not v.detach().data.requires_grad
    assert Vector(SUM, {"a": randn(3, 2), "b": randn(2)}).to(torch.float32).dtype == torch.float32
    zero = Covector.zeros(V, 2, like=randn(1))
    assert zero.lives_in == V.dual and zero.data.dtype == torch.float64 and not zero.data.any()
    assert Vector.zeros(SUM).data.shape == (8,)


def test_elements_without_validation_are_called_by_their_space():
    assert type(element(V, randn(3))) is Vector
    assert type(element(V.dual * W, randn(6))) is Covector
    assert element(Family(V, 2), randn(5, 6)).data.shape == (5, 2, 3)


def test_points():
    a, b = Point(A, randn(3)), Point(A, randn(3, seed=1))
    v = b - a
    assert isinstance(v, Vector) and v.lives_in == A.translations
    assert torch.allclose((a + v).data, b.data)
    assert torch.allclose((b - v).data, a.data)
    assert torch.equal(a.in_hull().data, torch.cat([a.data, torch.ones(1, dtype=torch.float64)]))
    assert a.in_hull().lives_in == A.hull
    assert torch.equal(translation_in_hull(A, v).data[:3], v.data) and translation_in_hull(A, v).data[3] == 0
    assert torch.allclose((b.in_hull() - a.in_hull()).data, translation_in_hull(A, v).data)
    assert (a.dtype, a.device.type) == (torch.float64, "cpu")
    many = Point(A, randn(4, 3).requires_grad_())
    assert (many.batch, a.batch) == ((4,), ()) and many.to(torch.float32).dtype == torch.float32
    assert not many.detach().data.requires_grad and many.detach().space == A
    assert torch.allclose((many + v).data, many.data + v.data)
    assert repr(a) == "Point(AffineSpace('A', 3), float64[3])" and str(a) == "a point of A (float64[3])"


def test_an_affine_space_over_a_vector_space():
    P = AffineSpace("parameters", 6, over=Hom(W, V))
    p = Point(P, randn(4, 6))
    v = Vector(Hom(W, V), randn(3, 2))
    moved = p + v
    assert isinstance(moved, Point) and moved.space.translations == Hom(W, V)
    back = moved - p
    assert isinstance(back, Vector) and back.data.shape == (4, 3, 2) and torch.allclose(back.data, v.data)


def test_elements_of_no_network_have_no_parameters():
    with pytest.raises(SpaceMismatch, match="V is no tangent space of a network"):
        Vector(V, randn(3)).to_parameters()


def test_barycenters_do_not_depend_on_an_origin():
    points, weights = randn(5, 3), torch.arange(1.0, 6.0, dtype=torch.float64)
    shift = randn(3, seed=2)
    moved = barycenter(Point(A, points + shift), weights).data
    assert torch.allclose(moved, barycenter(Point(A, points), weights).data + shift)
    assert torch.allclose(barycenter(Point(A, points)).data, points.mean(0))
    assert torch.equal(barycenter(Point(A, points), weights.long()).data, barycenter(Point(A, points), weights).data)
    assert not torch.allclose((weights[:, None] * (points + shift)).sum(0), (weights[:, None] * points).sum(0) + shift)


v, w, xi = Vector(V, randn(3)), Vector(W, randn(2)), Covector(V, randn(3))
point = Point(A, randn(3))


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: v + xi, SpaceMismatch, "in +: a vector of V (float64[3]) and a covector on V (float64[3])"),
        (lambda: v - xi, SpaceMismatch, "only through an inner product: use g.sharp(covector)"),
        (lambda: v + w, SpaceMismatch, "a LinearMap carries elements from one space to another"),
        (lambda: v + randn(3), SpaceMismatch, "Wrap the tensor: Vector(space, t)"),
        (lambda: v + 1, SpaceMismatch, "Wrap the tensor"),
        (lambda: v + point, SpaceMismatch, "Write point + vector, or wrap it: Vector(space, t)."),
        (
            lambda: v + Vector(V, randn(4, 3)) + Vector(V, randn(2, 3)),
            ShapeMismatch,
            "with a vector of V (float64[3], batch [2]): batches [4] and [2] do not broadcast. Give them the same",
        ),
        (lambda: Covector(V, randn(2, 3, 3))(Vector(V, randn(2, 3))), ShapeMismatch, "in pairing: a covector on V"),
        (lambda: Vector(V, randn(4, 3)).outer(Vector(W, randn(3, 2))), ShapeMismatch, "ShapeMismatch in outer"),
        (
            lambda: torch.ones(3) * Vector(V, randn(4, 3)),
            ShapeMismatch,
            "ShapeMismatch in *: a vector of V (float64[3], batch [4]) times float32[3]. Give one scalar, or one for",
        ),
        (
            lambda: Vector(Family(V, 2), randn(2, 3)).outer(Vector(Family(V, 3), randn(3, 3))),
            SpaceMismatch,
            "the same number of members",
        ),
        (lambda: v.outer(randn(2)), SpaceMismatch, "SpaceMismatch in outer: a vector of V (float64[3]) and float64[2]"),
        (
            lambda: Vector(A, randn(3)),
            SpaceMismatch,
            "SpaceMismatch in Vector: expected a vector space, got AffineSpace('A', 3). An affine space takes part",
        ),
        (lambda: Covector(A, randn(3)), SpaceMismatch, "SpaceMismatch in Covector: expected a vector space"),
        (lambda: Vector.zeros(A), SpaceMismatch, "SpaceMismatch in Vector: expected a vector space"),
        (lambda: Covector.zeros(A), SpaceMismatch, "SpaceMismatch in Covector: expected a vector space"),
        (
            lambda: Point(V, randn(3)),
            SpaceMismatch,
            "SpaceMismatch in Point: expected an affine space, got Space('V', 3). An element of a vector space is a",
        ),
        (lambda: Point(A, randn(4, 3)) + Vector(A.translations, randn(2, 3)), ShapeMismatch, "ShapeMismatch in +"),
        (lambda: Point(A, randn(4, 3)) - Point(A, randn(2, 3)), ShapeMismatch, "batches [4] and [2] do not broadcast"),
        (
            lambda: barycenter(Point(A, randn(4, 3)), torch.ones(3)),
            ShapeMismatch,
            "ShapeMismatch in barycenter: a point of A (float64[4, 3]) with weights float32[3]. Give one weight to",
        ),
        (
            lambda: barycenter(Point(A, randn(2, 3)), torch.tensor([1.0, -1.0])),
            InvalidSetting,
            "InvalidSetting in barycenter: the weights of a point of A (float64[2, 3]) sum to 0.0",
        ),
        (lambda: barycenter(Point(A, randn(2, 3)), torch.tensor([1.0, torch.inf])), InvalidSetting, "sum to inf"),
        (lambda: xi(xi), SpaceMismatch, "two elements of one space need an inner product"),
        (lambda: v(v), SpaceMismatch, "g.inner(v, w)"),
        (lambda: xi(w), SpaceMismatch, "SpaceMismatch in pairing: a covector on V (float64[3]) with a vector of W"),
        (lambda: xi(randn(3)), SpaceMismatch, "Wrap it: Vector(space, t)"),
        (lambda: xi * v, SpaceMismatch, "Pair a covector with a vector as ξ(v)"),
        (lambda: v + Vector(V, randn(3).float()), DtypeMismatch, "torch.float64 on cpu, torch.float32 on cpu"),
        (lambda: xi(Vector(V, randn(3).float())), DtypeMismatch, "DtypeMismatch in pairing"),
        (lambda: v.outer(w.to(torch.float32)), DtypeMismatch, "DtypeMismatch in outer"),
        (lambda: v + Vector(V, torch.empty(3, dtype=torch.float64, device="meta")), DtypeMismatch, "on meta"),
        (lambda: Vector(V, randn(4)), ShapeMismatch, "an element of V has components [..., 3], got float64[4]"),
        (lambda: Covector(V * W, randn(2, 3)), ShapeMismatch, "has components [..., 3, 2], got float64[2, 3]"),
        (lambda: Vector(V * W, randn(2)), ShapeMismatch, "batch dimensions come first"),
        (lambda: Vector(V, [1.0, 2.0, 3.0]), ShapeMismatch, "expected a tensor [..., 3], got list"),
        (lambda: Vector(V, 3.0), ShapeMismatch, "got float 3.0"),
        (lambda: Vector(V, torch.zeros(3, dtype=torch.long)), DtypeMismatch, "floating point, got int64[3]"),
        (lambda: Vector(V, {"a": randn(3)}), SpaceMismatch, "got blocks 'a' for V"),
        (lambda: Vector(SUM, {"a": randn(3, 2)}), SpaceMismatch, "one block for each summand"),
        (lambda: Vector(SUM, {"a": randn(4, 3, 2), "b": randn(2)}), ShapeMismatch, "different batch shapes"),
        (lambda: Vector(SUM, {"a": randn(2, 3), "b": randn(2)}), ShapeMismatch, "components [..., 3, 2]"),
        (lambda: Vector(SUM, randn(8))["c"], SpaceMismatch, "no summand 'c'; it has 'a', 'b'"),
        (lambda: v.blocks, SpaceMismatch, "V is not a direct sum; use .data"),
        (lambda: Point(A, randn(4)), ShapeMismatch, "an element of A has components [..., 3]"),
        (lambda: point + point, SpaceMismatch, "points themselves do not add: use barycenter"),
        (lambda: point + v, SpaceMismatch, "A point moves by a vector of A⃗"),
        (lambda: point - Point(AffineSpace("B", 3), randn(3)), SpaceMismatch, "Points of one affine space subtract"),
        (lambda: point - Point(A, randn(3).float()), DtypeMismatch, "torch.float32"),
        (lambda: point + Vector(A.translations, randn(3).float()), DtypeMismatch, "torch.float32"),
        (lambda: translation_in_hull(A, v), SpaceMismatch, "expected a vector of A⃗"),
    ],
)
def test_errors_name_what_was_given_and_the_fix(make, error, text):
    with pytest.raises(error, match=re.escape(text)):
        make()


def test_spaces_are_checked_before_any_tensor_work():
    """Between tensors that cannot be added the error is still about the spaces."""
    broken = Vector._of(W, torch.empty(0))
    with pytest.raises(SpaceMismatch):
        v + broken
    with pytest.raises(SpaceMismatch):
        xi(broken)


def test_elements_come_as_vectors_or_covectors():
    assert {cls.__name__ for cls in Element.__subclasses__()} == {"Vector", "Covector"}
