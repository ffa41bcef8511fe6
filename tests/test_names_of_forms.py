"""What is told apart and what is one: names of constants, of frames and classes, of the bases of a stored form."""

import io

import pytest
import torch
from torch import Tensor

from riemann_ng import (
    AffineSpace,
    Diagonal,
    DirectSum,
    Euclidean,
    Family,
    Gram,
    InnerProduct,
    LinearMap,
    LowRank,
    Pullback,
    RotatedDiagonal,
    Sample,
    Space,
    damp_factors,
    direct_sum,
    second_moment,
)
from riemann_ng.errors import DtypeMismatch, NotClosed, SpaceMismatch
from riemann_ng.inner_products import euclidean_on_translations
from riemann_ng.testing import Draw

V, W, A = Space("V", 3), Space("W", 2), AffineSpace("A", 2)
draw = Draw.seeded(0)
M, N = draw.positive(3), draw.positive(3)


# --- constants --------------------------------------------------------------------------------------------------------


def test_matrices_without_a_name_are_known_by_their_entries() -> None:
    """Two of them are two references: their sum keeps less than either; the same one twice is one."""
    assert (Gram(V, M) + Gram(V, N)).keeps(V, "scaling") is False
    for pair in (
        (Gram(V, M), Gram(V, N)),
        (Diagonal(V, M.diagonal()), Diagonal(V, N.diagonal())),
        (LowRank(V, M), LowRank(V, N)),
    ):
        g, h = pair
        assert g.symmetry != h.symmetry
        assert set((g + h).symmetry.fixed) == set(g.symmetry.fixed) | set(h.symmetry.fixed)
        assert len((g + h).symmetry.fixed) == 2 * len(g.symmetry.fixed)
    assert Gram(V, M).symmetry == Gram(V, M.clone()).symmetry
    assert Gram(V, M, name="h").symmetry == Gram(V, N, name="h").symmetry  # the name says it


def test_frames_without_a_name_are_known_by_their_axes() -> None:
    P, Q = (torch.linalg.qr(draw.normal(3, 3))[0] for _ in range(2))
    s = draw.between(0.5, 2.0, 3)
    g, h, again = (RotatedDiagonal(Euclidean(V), [axes], s) for axes in (P, Q, P.clone()))
    assert g.symmetry != h.symmetry and g.symmetry == again.symmetry


def test_frames_of_two_forms_come_from_two_spaces() -> None:
    g, h = Gram(V, M), Gram(V, N)
    assert g.frame().domain == g.frame().domain
    assert g.frame().domain != h.frame().domain
    with pytest.raises(SpaceMismatch):
        h.frame()(g.frame().pullback(g.flat(draw.vector(V))))


def test_classes_modulo_two_kernels_are_two_spaces() -> None:
    K = Space("K", 1)
    first, second = (LinearMap(K, V, draw.normal(3, 1)) for _ in range(2))
    g, h = Gram(V, M), Gram(V, N)
    assert g.quotient(first).space == h.quotient(first).space  # one kernel, one space of classes
    assert g.quotient(first).space != g.quotient(second).space
    g.quotient(first) + h.quotient(first)
    with pytest.raises(SpaceMismatch, match=r"SpaceMismatch in \+: .* live on different spaces"):
        g.quotient(first) + g.quotient(second)


def test_a_group_is_asked_for_on_a_space_that_is_there() -> None:
    g = Gram(V, M, name="h") * Euclidean(W)
    assert g.keeps(V, "orthogonal") == g.keeps("V", "orthogonal") == g.symmetry.keeps("V", "orthogonal")
    assert second_moment(Sample(A.hull, draw.normal(5, 3))).keeps(A, "translations")
    assert not Euclidean(A.hull).keeps(A, "translations")
    for space in ("typo", Space("U", 2), W * W, 3):
        with pytest.raises(SpaceMismatch) as caught:
            g.keeps(space, "orthogonal")  # type: ignore[arg-type]
        assert "is made on 'V', 'W', got" in str(caught.value)


# --- states -----------------------------------------------------------------------------------------------------------


def through_a_file(g: InnerProduct, space: object = None) -> InnerProduct:
    file = io.BytesIO()
    torch.save(g.state(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    return InnerProduct.from_state(g.space if space is None else space, state)  # type: ignore[arg-type]


def test_a_state_on_a_space_of_another_name_names_that_one() -> None:
    Z, Y = Space("Z", 3), Space("Y", 2)
    g = Gram(V, M, name="h") * Gram(W, draw.positive(2)) + 0.1 * damp_factors(
        second_moment(Sample(V.dual, draw.normal(5, 3))) * Gram(W, draw.positive(2)), 0.1, Euclidean(V * W)
    )
    back = through_a_file(g, Z * Y)
    assert back.space == Z * Y and set(back.symmetry.spaces) == {"Y", "Z"}
    for group in ("scaling", "orthogonal", "permutations"):
        assert back.keeps("Z", group) == g.keeps("V", group) and back.keeps("Y", group) == g.keeps("W", group)
    swapped = through_a_file(Gram(V * V.dual, draw.positive(9), name="h"), Z * Z.dual)
    assert swapped.symmetry.spaces == ("Z",)
    with pytest.raises(SpaceMismatch) as caught:
        InnerProduct.from_state(V * V, Gram(V * Space("X", 3), draw.positive(9)).state())
    assert "the state of a gram form names V, X, V ⊗ V is made of V." in str(caught.value)


SUM = DirectSum({"a": V, "b": W})


def natural_pullbacks() -> dict[str, InnerProduct]:
    h = Gram(V, M, name="h")
    on_hull = second_moment(Sample(A.hull.dual, draw.normal(6, 3)))
    layer = V * A.hull.dual
    K = LinearMap(Space("K", 1), V, draw.normal(3, 1), natural=True)
    return {
        "inclusion": Gram(SUM, draw.positive(5)).restrict("a"),
        "projection": h.pullback(LinearMap.projection(SUM, "a")),
        "translations": on_hull.pullback(LinearMap.translations(A)),
        "height": Euclidean(LinearMap.height(A).codomain).pullback(LinearMap.height(A)),
        "at": on_hull.pullback(LinearMap.at(A, draw.normal(2), "p")),
        "difference": Gram(A.translations, draw.positive(2)).pullback(LinearMap.difference(A)),
        "identity": Pullback(LinearMap.identity(V), h),
        "matrix": h.pullback(LinearMap(W, V, draw.normal(3, 2), "ψ")),
        "composition": h.pullback(LinearMap.projection(SUM, "a") @ LinearMap.inclusion(SUM, "a")),
        "product": (h * h).pullback(LinearMap(W, V, draw.normal(3, 2)) * LinearMap.identity(V)),
        "translations only": euclidean_on_translations(layer),
        "a family of them": euclidean_on_translations(Family(V, 2) * Family(A.hull.dual, 2)),
        "damped by it": Gram(V, M) * second_moment(Sample(A.hull, draw.normal(5, 3)))
        + 0.1 * euclidean_on_translations(layer),
        "quotient": Gram(V, M).quotient(K),
        "quotient of a Euclidean form": Euclidean(SUM).quotient(LinearMap.inclusion(SUM, "b")),
        "diagonal in a frame": Gram(V, M).diagonal(LinearMap(V, V, N, "basis")),
    }


@pytest.mark.parametrize("name", natural_pullbacks())
def test_maps_are_kept_in_the_state(name: str) -> None:
    g = natural_pullbacks()[name]
    back, v = through_a_file(g), Draw.seeded(1).normal(g.space.dim).to(g.dtype or torch.float32)
    assert back.space == g.space
    torch.testing.assert_close(back.flat_components(v), g.flat_components(v))
    assert back.symmetry == g.symmetry


def test_a_map_by_functions_from_outside_keeps_no_state() -> None:
    def twice(x: Tensor) -> Tensor:
        return 2 * x

    with pytest.raises(NotClosed, match="keeps no state: it holds what is no tensor, number or string"):
        Pullback(LinearMap.from_functions(V, V, twice, twice), Gram(V, M)).state()


def test_a_form_goes_to_another_dtype() -> None:
    g = Gram(V, M) * second_moment(Sample(W.dual, draw.normal(5, 2))) + 0.1 * Euclidean(V * W)
    single = g.to(torch.float32)
    assert single.dtype == torch.float32 and g.dtype == torch.float64
    torch.testing.assert_close(single.matrix(), g.matrix().float())
    assert single.symmetry == g.symmetry
    xi = draw.covector(g.space)
    with pytest.raises(DtypeMismatch):
        single.sharp(xi)
    torch.testing.assert_close(single.sharp(xi.to(torch.float32)).data.double(), g.sharp(xi).data, rtol=1e-3, atol=1e-4)


def test_forms_add_up_from_zero() -> None:
    g, h = Gram(V, M), Gram(V, N)
    torch.testing.assert_close(sum([g, h], start=0).matrix(), M + N)  # type: ignore[union-attr]
    for other in (1, 1.0, False, None, "0"):
        with pytest.raises(SpaceMismatch, match=r"Damping names its inner product"):
            other + g  # type: ignore[operator]


def test_direct_sums_of_other_things_keep_what_they_know() -> None:
    g = direct_sum(a=Gram(V, M), b=second_moment(Sample(W.dual, draw.normal(5, 2))))
    assert through_a_file(g).symmetry == g.symmetry
