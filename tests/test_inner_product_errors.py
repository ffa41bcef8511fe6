"""Bad input to inner products: refused at once, in these words, and the form is as it was before."""
# ruff: noqa: E501, ISC004  one case a line, with the text it must show

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from riemann_ng import (
    AffineSpace,
    Covector,
    Diagonal,
    DirectSum,
    Euclidean,
    Family,
    Gram,
    InnerProduct,
    LinearMap,
    LowRank,
    OneHot,
    Pullback,
    RotatedDiagonal,
    Sample,
    Space,
    Vector,
    damp_factors,
    direct_sum,
    second_moment,
)
from riemann_ng.errors import (
    DegenerateMetric,
    DtypeMismatch,
    InvalidSpace,
    NonFinite,
    NotAnInnerProduct,
    NotClosed,
    RiemannError,
    ShapeMismatch,
    SpaceMismatch,
)

V, W = Space("V", 2), Space("W", 3)
I2, I3 = torch.eye(2), torch.eye(3)
G, H = Gram(V, torch.tensor([[2.0, 1.0], [1.0, 3.0]]), name="G"), Gram(W, I3, name="H")
GH = G * H
NET = direct_sum(fc1=GH, fc2=G)
DEGENERATE = Gram(V, torch.tensor([[1.0, 1.0], [1.0, 1.0]]), name="D")
v, xi = Vector(V, torch.ones(2)), Covector(V, torch.ones(2))
nan = float("nan")
NESTED = Family(Family(V, 2), 3)


def with_entry(value: float) -> torch.Tensor:
    matrix = I2.clone()
    matrix[0, 0] = value
    return matrix


Call = Callable[[], Any]
BAD: list[tuple[str, Call, type[RiemannError], str]] = [
    # spaces
    ("flat of a covector", lambda: G.flat(xi), SpaceMismatch,
     "SpaceMismatch in flat: expected a vector of V, got a covector on V (float32[2]).\n"
     "A gradient is a covector: it has g.sharp(ξ), and lengths in g.dual."),
    ("flat of another space", lambda: G.flat(Vector(W, torch.ones(3))), SpaceMismatch,
     "SpaceMismatch in flat: expected a vector of V, got a vector of W (float32[3])."),
    ("inner with a covector", lambda: G.inner(v, xi), SpaceMismatch,
     "SpaceMismatch in inner: expected a vector of V, got a covector on V (float32[2])."),
    ("norm of a covector", lambda: G.norm(xi), SpaceMismatch, "SpaceMismatch in inner: expected a vector of V"),
    ("flat of a tensor", lambda: G.flat(torch.ones(2)), SpaceMismatch,  # type: ignore[arg-type]
     "SpaceMismatch in flat: expected a vector of V, got float32[2]"),
    ("sharp of a vector", lambda: G.sharp(v), SpaceMismatch,
     "SpaceMismatch in sharp: expected a covector on V, got a vector of V (float32[2]).\n"
     "Gradients from autograd are covectors: wrap them with Covector(space, grad)."),
    ("sharp of a tensor", lambda: G.sharp(torch.ones(2)), SpaceMismatch,  # type: ignore[arg-type]
     "expected a covector on V, got float32[2]"),
    ("sharp of another layer", lambda: GH.sharp(Covector(H.space * G.space, torch.ones(3, 2))), SpaceMismatch,
     "SpaceMismatch in sharp: expected a covector on V ⊗ W, got a covector on W ⊗ V (float32[3, 2])."),
    ("sharp of a vector of a network", lambda: NET.sharp(Vector(NET.space, torch.ones(8))), SpaceMismatch,
     "SpaceMismatch in sharp: expected a covector on (V ⊗ W) ⊕ V, got a vector of (V ⊗ W) ⊕ V (float32[8])."),
    ("flat of a tensor on a network", lambda: NET.flat(torch.ones(8)), SpaceMismatch,  # type: ignore[arg-type]
     "SpaceMismatch in flat: expected a vector of (V ⊗ W) ⊕ V, got float32[8]"),
    ("K-FAC with swapped factors", lambda: (second_moment(Sample(V, torch.eye(2))) * H.dual).sharp(Covector(GH.space.dual, torch.ones(3, 2))),
     ShapeMismatch, "ShapeMismatch in Covector: an element of V* ⊗ W* has components [..., 2, 3], got float32[3, 2]."),
    ("sum on different spaces", lambda: G + H, SpaceMismatch,
     "SpaceMismatch in +: Gram(V, G) : V* ← V and Gram(W, H) : W* ← W live on different spaces."),
    ("sum with the dual", lambda: G + G.dual, SpaceMismatch,
     "SpaceMismatch in +: Gram(V, G) : V* ← V and Gram(V, G).dual : V ← V* live on different spaces."),
    ("damping by a bare number", lambda: G + 1e-3, SpaceMismatch,  # type: ignore[operator]
     "SpaceMismatch in +: Gram(V, G) : V* ← V plus 0.001. Damping names its inner product: g + λ * Euclidean(V)."),
    ("damping by a bare number, reversed", lambda: 1e-3 + G, SpaceMismatch,  # type: ignore[operator]
     "SpaceMismatch in +: Gram(V, G) : V* ← V plus 0.001. Damping names its inner product: g + λ * Euclidean(V)."),
    ("damping by a tensor", lambda: G + I2, SpaceMismatch,  # type: ignore[operator]
     "plus float32[2, 2]. Damping names its inner product: g + λ * Euclidean(V)."),
    ("restrict of what is no sum", lambda: G.restrict("fc1"), SpaceMismatch,
     "SpaceMismatch in restrict: V is not a direct sum; give an inclusion map."),
    ("restrict to an unknown summand", lambda: NET.restrict("fc3"), SpaceMismatch,
     "SpaceMismatch: (V ⊗ W) ⊕ V has no summand 'fc3'; it has 'fc1', 'fc2'."),
    ("pullback by a map elsewhere", lambda: G.pullback(LinearMap(V, W, torch.ones(3, 2))), SpaceMismatch,
     "SpaceMismatch in pullback: φ : W ← V does not lead to V, where Gram(V, G) : V* ← V lives."),
    ("quotient by a map that is not injective", lambda: H.quotient(LinearMap(V, W, torch.ones(3, 2))), SpaceMismatch,
     "SpaceMismatch in quotient: φ : W ← V must include a smaller space, injectively; its rank is 1 of 2 in dimension 3."),
    ("quotient by everything", lambda: G.quotient(LinearMap(V, V, I2)), SpaceMismatch,
     "SpaceMismatch in quotient: φ : V ← V must include a smaller space, injectively; its rank is 2 of 2 in dimension 2."),
    ("quotient by a map elsewhere", lambda: G.quotient(LinearMap(V, W, torch.ones(3, 2))), SpaceMismatch,
     "SpaceMismatch in quotient: φ : W ← V is no inclusion into V."),
    ("a reference elsewhere", lambda: G.sharp_modulo_kernel(xi, H), SpaceMismatch,
     "SpaceMismatch in sharp_modulo_kernel: Gram(W, H) : W* ← W is no reference for V."),
    ("blend elsewhere", lambda: G.blend(H, 0.5), SpaceMismatch,
     "SpaceMismatch in blend: Gram(V, G) : V* ← V with Gram(W, H) : W* ← W: one space is needed."),
    ("families of different sizes", lambda: Euclidean(Family(V, 2)) * Euclidean(Family(W, 3)), SpaceMismatch,
     "SpaceMismatch in *: families multiply member by member, got (V)^2 and (W)^3."),
    *((f"{kind} on an affine space", lambda make=make: make(AffineSpace("A", 2)), SpaceMismatch, f"SpaceMismatch in {kind}: ")
      for kind, make in (("Gram", lambda A: Gram(A, I2)), ("Euclidean", Euclidean), ("Diagonal", lambda A: Diagonal(A, I2[0])),
                         ("LowRank", lambda A: LowRank(A, I2)))),
    ("the moment of a covector", lambda: second_moment(xi), SpaceMismatch,  # type: ignore[arg-type]
     "SpaceMismatch in second_moment: expected a sample, got a covector on V (float32[2])."),
    ("families of families", lambda: Diagonal(NESTED, torch.ones(12)) * Diagonal(NESTED, torch.ones(12)), NotClosed,
     "live on families of families, which do not multiply. Make each one family, of all members."),
    # shapes
    ("gram of a wrong shape", lambda: Gram(V, I3), ShapeMismatch,
     "ShapeMismatch in Gram: a form on V has a matrix [2, 2], got float32[3, 3]."),
    ("gram of one matrix for a family", lambda: Gram(Family(V, 3), I2), ShapeMismatch,
     "ShapeMismatch in Gram: a form on (V)^3 has a matrix [3, 2, 2], got float32[2, 2]."),
    ("gram of a list", lambda: Gram(V, [[1.0, 0.0], [0.0, 1.0]]), ShapeMismatch,  # type: ignore[arg-type]
     "ShapeMismatch in Gram: a form on V has a matrix [2, 2], got list."),
    ("diagonal of a wrong shape", lambda: Diagonal(V, torch.ones(3)), ShapeMismatch,
     "ShapeMismatch in Diagonal: entries on V have shape [2], got float32[3]."),
    ("low rank of a wrong shape", lambda: LowRank(V, torch.ones(4, 3)), ShapeMismatch,
     "ShapeMismatch in LowRank: rows on V have shape [rank, 2], got float32[4, 3]."),
    ("axes of a wrong size", lambda: RotatedDiagonal(G, [I3], torch.ones(3)), ShapeMismatch,
     "ShapeMismatch in RotatedDiagonal: the axes of a frame of V are square matrices whose sizes multiply to 2, got float32[3, 3]."),
    ("a spectrum of a wrong shape", lambda: RotatedDiagonal(G, [I2], torch.ones(3)), ShapeMismatch,
     "ShapeMismatch in RotatedDiagonal: one entry for each frame vector, [2], got float32[3]."),
    ("gram of a wrong shape, unchecked", lambda: Gram(V, I3, validate=False), ShapeMismatch,
     "ShapeMismatch in Gram: a form on V has a matrix [2, 2], got float32[3, 3]."),
    ("gram of a list, unchecked", lambda: Gram(V, [[1.0]], validate=False), ShapeMismatch,  # type: ignore[arg-type]
     "ShapeMismatch in Gram: a form on V has a matrix [2, 2], got list."),
    ("a direct sum of a space", lambda: direct_sum(a=V), SpaceMismatch,  # type: ignore[arg-type]
     "SpaceMismatch in direct_sum: expected an inner product for 'a', got V. Of spaces it is DirectSum({...})."),
    ("a summand given twice", lambda: direct_sum({"a": G}, a=H), InvalidSpace,
     "InvalidSpace in direct_sum: two summands are named 'a'. Name them apart."),
    # dtypes
    ("flat in another dtype", lambda: G.flat(v.to(torch.float64)), DtypeMismatch,
     "DtypeMismatch in flat: a vector of V (float64[2]) on cpu with Gram(V, G) : V* ← V in torch.float32 on cpu. "
     "Bring one to the other with .to(...)."),
    ("sharp in another dtype", lambda: G.sharp(xi.to(torch.float64)), DtypeMismatch, "DtypeMismatch in sharp: a covector on V"),
    ("sharp of a network in another dtype", lambda: NET.sharp(Covector(NET.space, torch.ones(8).double())), DtypeMismatch,
     "DtypeMismatch in sharp"),
    ("sharp on another device", lambda: G.sharp(xi.to("meta")), DtypeMismatch, "on meta"),
    ("a frame of another dtype", lambda: RotatedDiagonal(Euclidean(V), [I2], torch.ones(2).double()), DtypeMismatch,
     "DtypeMismatch in RotatedDiagonal: axes, spectrum and reference on V must be floating point, of one dtype on one device, "
     "got torch.float32 on cpu, torch.float64 on cpu. Bring one to the other with .to(...)."),
    ("a frame of another dtype than its reference", lambda: RotatedDiagonal(G, [I2.double()], torch.ones(2).double()), DtypeMismatch,
     "got torch.float64 on cpu, torch.float32 on cpu."),
    ("a reference of another dtype", lambda: G.sharp_modulo_kernel(xi, Gram(V, I2.double(), name="h")), DtypeMismatch,
     "DtypeMismatch in sharp_modulo_kernel: Gram(V, G) : V* ← V in torch.float32 on cpu, Gram(V, h) : V* ← V in torch.float64 on cpu."),
    ("a pullback of two dtypes", lambda: G.pullback(LinearMap(W, V, torch.ones(2, 3).double())), DtypeMismatch,
     "DtypeMismatch in pullback: φ : V ← W in torch.float64 on cpu with Gram(V, G) : V* ← V in torch.float32 on cpu."),
    ("a quotient of two dtypes", lambda: H.quotient(LinearMap(V, W, torch.ones(3, 2).double())), DtypeMismatch,
     "DtypeMismatch in quotient: φ : W ← V in torch.float64 on cpu"),
    ("a basis of another dtype", lambda: G.diagonal(LinearMap(V, V, I2.double())), DtypeMismatch, "DtypeMismatch in pullback: φ"),
    ("a sum of two dtypes", lambda: G + Gram(V, I2.double(), name="D"), DtypeMismatch,
     "DtypeMismatch in +: Gram(V, G) : V* ← V in torch.float32 on cpu, Gram(V, D) : V* ← V in torch.float64 on cpu."),
    ("a product of two dtypes", lambda: G * Gram(W, I3.double()), DtypeMismatch, "DtypeMismatch in *: Gram(V, G)"),
    ("a direct sum of two dtypes", lambda: direct_sum(a=G, b=Gram(W, I3.double())), DtypeMismatch,
     "DtypeMismatch in direct_sum: Gram(V, G) : V* ← V in torch.float32 on cpu, Gram(W, matrix)"),
    ("a blend of two dtypes", lambda: G.blend(Gram(V, I2.double()), 0.5), DtypeMismatch, "DtypeMismatch in blend: Gram(V, G)"),
    ("gram of integers", lambda: Gram(V, I2.long()), DtypeMismatch,
     "DtypeMismatch in Gram: the matrix on V must be floating point, got int64[2, 2]."),
    ("low rank of integers", lambda: LowRank(V, torch.ones(1, 2).long()), DtypeMismatch,
     "DtypeMismatch in LowRank: the rows on V must be floating point, got int64[1, 2]."),
    ("diagonal of integers", lambda: Diagonal(V, torch.ones(2).long()), DtypeMismatch,
     "DtypeMismatch in Diagonal: the entries on V must be floating point, got int64[2]."),
    # numbers
    ("NaN in a gram", lambda: Gram(V, with_entry(nan)), NonFinite, "NonFinite in Gram: the matrix on V holds NaN or infinity."),
    ("infinity in a gram", lambda: Gram(V, with_entry(float("inf"))), NonFinite, "NonFinite in Gram: the matrix on V holds NaN"),
    ("NaN in a diagonal", lambda: Diagonal(V, torch.tensor([1.0, nan])), NonFinite, "NonFinite in Diagonal: the entries on V hold NaN"),
    ("NaN in rows", lambda: LowRank(V, torch.tensor([[1.0, nan]])), NonFinite, "NonFinite in LowRank: the rows on V hold NaN"),
    ("NaN in a spectrum", lambda: RotatedDiagonal(G, [I2], torch.tensor([1.0, nan])), NonFinite,
     "NonFinite in RotatedDiagonal: the frame or the spectrum on V holds NaN or infinity."),
    ("NaN in a covector", lambda: G.sharp(Covector(V, torch.tensor([1.0, nan]))), NonFinite,
     "NonFinite in sharp: a covector on V (float32[2]) holds NaN or infinity. Look for the layer and the batch it came from."),
    ("infinities that cancel", lambda: G.sharp(Covector(V, torch.tensor([float("inf"), -float("inf")]))), NonFinite, "NonFinite in sharp"),
    ("NaN in one layer", lambda: NET.sharp(Covector(NET.space, torch.tensor([1.0] * 7 + [nan]))), NonFinite, "NonFinite in sharp"),
    ("not symmetric", lambda: Gram(V, torch.tensor([[1.0, 0.5], [0.0, 1.0]])), NotAnInnerProduct,
     "NotAnInnerProduct in Gram: the matrix on V is not symmetric: it differs from its transpose by 5.00e-01 with entries up to "
     "1.00e+00, at unit diagonal. Pass (M + M.mT) / 2 if that is what is meant."),
    ("not symmetric in axes of small units", lambda: Gram(W, torch.tensor([[1.0, 0, 0], [0, 1e-8, 2e-9], [0, 0, 1e-8]])), NotAnInnerProduct,
     "NotAnInnerProduct in Gram: the matrix on W is not symmetric"),
    ("a frame that is not orthonormal", lambda: RotatedDiagonal(G, [I2], torch.ones(2)), NotAnInnerProduct,
     "NotAnInnerProduct in RotatedDiagonal: the frame is not orthonormal for Gram(V, G) : V* ← V: PᵀhP is off the identity by "),
    ("indefinite", lambda: Gram(V, torch.tensor([[1.0, 2.0], [2.0, 1.0]])), NotAnInnerProduct,
     "NotAnInnerProduct in Gram: the form on V is indefinite (eigenvalues, at unit diagonal, from -1.00e+00 to 3.00e+00)."),
    ("negative on the diagonal", lambda: Gram(V, -I2), NotAnInnerProduct, "NotAnInnerProduct in Gram: the form on V is indefinite"),
    ("one negative member", lambda: Gram(Family(V, 2), torch.stack([I2, -I2])), NotAnInnerProduct,
     "NotAnInnerProduct in Gram: the form on (V)^2 is indefinite"),
    ("a negative entry", lambda: Diagonal(V, torch.tensor([1.0, -2.0])), NotAnInnerProduct,
     "NotAnInnerProduct in Diagonal: an entry on V is -2. Entries of an inner product are positive; zero is allowed until"),
    ("a negative spectrum", lambda: RotatedDiagonal(G, [I2], torch.tensor([1.0, -2.0])), NotAnInnerProduct,
     "NotAnInnerProduct in RotatedDiagonal: the spectrum on V goes down to -2."),
    *((f"times {c}", lambda c=c: c * G, NotAnInnerProduct,
       f"NotAnInnerProduct in *: Gram(V, G) : V* ← V times {text}. A multiple of an inner product is by a positive finite number; "
       f"leave a term of weight zero out.")
      for c, text in ((0.0, "0.0"), (-1, "-1.0"), (nan, "nan"), (float("inf"), "inf"), (torch.tensor(-2.0), "-2.0"),
                      (torch.ones(2), "float32[2]"), ("2", "str '2'"), (True, "bool True"))),
    ("over zero", lambda: G / 0, NotAnInnerProduct, "NotAnInnerProduct in /: Gram(V, G) : V* ← V over 0"),
    ("minus", lambda: G - G, NotAnInnerProduct,
     "NotAnInnerProduct in -: Gram(V, G) : V* ← V minus Gram(V, G) : V* ← V. A difference of inner products need not be one"),
    ("a weight above one", lambda: G.blend(G, 1.5), NotAnInnerProduct,
     "NotAnInnerProduct in blend: the weight is between 0 and 1, got 1.5."),
    ("a weight of NaN", lambda: G.blend(G, nan), NotAnInnerProduct, "NotAnInnerProduct in blend: the weight is between 0 and 1, got nan."),
    # degenerate
    ("sharp of a degenerate form", lambda: DEGENERATE.sharp(xi), DegenerateMetric,
     "DegenerateMetric in sharp: the form on V has rank 1 of 2. Three ways out: damp it by a named inner product, g + λ * h; "
     "take the h-shortest of the solutions, g.sharp_modulo_kernel(ξ, reference=h); or leave the kernel out, g.quotient(kernel)."),
    ("dual of a degenerate form", lambda: DEGENERATE.dual.flat(xi), DegenerateMetric, "DegenerateMetric in dual: the form on V has rank 1"),
    ("degenerate in one summand", lambda: direct_sum(a=G, b=DEGENERATE).sharp(Covector(DirectSum({"a": V, "b": V}), torch.ones(4))),
     DegenerateMetric, "Three ways out: damp it by a named inner product, g + λ * h; take the h-shortest of the solutions, "
     "g.sharp_modulo_kernel(ξ, reference=h); or leave the kernel out, g.quotient(kernel).\nIn the summand 'b'."),
    ("a degenerate factor", lambda: (DEGENERATE * H).sharp(Covector(GH.space, torch.ones(2, 3))), DegenerateMetric,
     "DegenerateMetric in sharp: the form on V ⊗ W has rank 3 of 6."),
    ("an unseen row", lambda: second_moment(Sample(W, OneHot(torch.tensor([0, 2])))).sharp(Covector(W.dual, torch.ones(3))),
     DegenerateMetric, "DegenerateMetric in sharp: the form on W* has rank 2 of 3."),
    ("a zero form", lambda: Gram(V, 0 * I2).logdet(), DegenerateMetric, "DegenerateMetric in logdet: the form on V has rank 0 of 2."),
    # what is not closed, or not known
    ("blend across kinds", lambda: G.blend(LowRank(V, I2), 0.5), NotClosed,
     "NotClosed in blend: a gram form and a low rank form have no common kind: Gram(V, G) : V* ← V with LowRank(V, rows[2]) : V* ← V. "
     "Average the forms they were made of, or write the sum (1 - w) * g + w * h."),
    ("blend of a product and a matrix", lambda: GH.blend(Gram(V * W, torch.eye(6)), 0.5), NotClosed,
     "NotClosed in blend: a product form and a gram form have no common kind"),
    ("blend of two frames", lambda: RotatedDiagonal(Euclidean(V), [I2], torch.ones(2)).blend(
        RotatedDiagonal(Euclidean(V), [I2.flip(0)], torch.ones(2)), 0.5), NotClosed,
     "NotClosed in blend: a rotated diagonal form and a rotated diagonal form have no common kind"),
    ("an unknown kind of state", lambda: InnerProduct.from_state(V, {"kind": "magic"}), NotClosed,
     "NotClosed in from_state: unknown kind 'magic'; known: "),
    ("a state without a kind", lambda: InnerProduct.from_state(V, {}), NotClosed, "NotClosed in from_state: unknown kind None"),
    ("the state of another space", lambda: InnerProduct.from_state(W, G.state()), SpaceMismatch,
     "SpaceMismatch in from_state: the state of a gram form does not fit W"),
    ("the state of a product elsewhere", lambda: InnerProduct.from_state(V * V, GH.state()), SpaceMismatch,
     "SpaceMismatch in from_state: the state of a"),
    ("the state of a sum elsewhere", lambda: InnerProduct.from_state(V, NET.state()), SpaceMismatch,
     "SpaceMismatch in from_state: the state of a direct sum form does not fit V"),
    ("state of a pullback by functions", lambda: Pullback(LinearMap.from_functions(W, V, lambda x: x[..., :2], lambda y: y), G).state(), NotClosed,
     "NotClosed in state: Pullback(φ, Gram(V, G)) : W* ← W keeps no state"),
    # damping the factors
    ("factored damping by what is no product", lambda: damp_factors(GH, 0.1, Gram(V * W, torch.eye(6))), SpaceMismatch,
     "a product of two factors needs a reference that is one along the same factors. Use g + λ * reference for others."),
    ("factored damping elsewhere", lambda: damp_factors(GH, 0.1, Euclidean(V)), SpaceMismatch,
     "SpaceMismatch in damp_factors: Euclidean(V) : V* ← V is no reference for Gram(V, G) * Gram(W, H)"),
    ("factored damping of a network by a matrix", lambda: damp_factors(NET, 0.1, Gram(NET.space, torch.eye(8))), SpaceMismatch,
     "is no direct sum of references."),
    ("factored damping by zero", lambda: damp_factors(GH, 0.0, Euclidean(GH.space)), NotAnInnerProduct,
     "NotAnInnerProduct in damp_factors: damping must be positive and finite, got 0.0."),
    ("factored damping by infinity", lambda: damp_factors(GH, float("inf"), Euclidean(GH.space)), NotAnInnerProduct, "got inf."),
    ("an unknown split", lambda: damp_factors(GH, 0.1, Euclidean(GH.space), "norm"), NotAnInnerProduct,  # type: ignore[arg-type]
     "NotAnInnerProduct in damp_factors: split is 'trace', 'frobenius' or 'none', got 'norm'."),
]  # fmt: skip


def snapshot() -> list[Any]:
    forms = (G, H, GH, NET, DEGENERATE)
    return [(repr(g), str(g.symmetry), [t.clone() for t in g.tensors()], g.matrix()) for g in forms]


def same(before: list[Any], after: list[Any]) -> bool:
    return all(
        a[:2] == b[:2] and all(map(torch.equal, a[2], b[2])) and torch.equal(a[3], b[3])
        for a, b in zip(before, after, strict=True)
    )


@pytest.mark.parametrize("call, error, text", [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_refused(call: Call, error: type[RiemannError], text: str) -> None:
    before = snapshot()
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)
    assert str(caught.value).startswith(error.__name__)
    assert type(caught.value) is error
    assert same(before, snapshot())
    assert torch.equal(G.sharp(G.flat(v)).data.round(decimals=4), v.data)  # and still works


def test_a_degenerate_form_knows_its_space_and_rank() -> None:
    with pytest.raises(DegenerateMetric) as caught:
        (DEGENERATE * H).sharp(Covector(GH.space, torch.ones(2, 3)))
    assert (caught.value.space, caught.value.rank) == (GH.space, 3)
    with pytest.raises(DegenerateMetric) as caught:
        direct_sum(a=G, b=DEGENERATE).logdet()
    assert (caught.value.space, caught.value.rank) == (DirectSum({"a": V, "b": V}), 3)


def test_the_ways_out_of_a_degenerate_form_lead_out() -> None:
    in_image = Covector(V, torch.tensor([3.0, 3.0]))
    assert torch.allclose(DEGENERATE.sharp_modulo_kernel(in_image, Euclidean(V)).data, torch.tensor([1.5, 1.5]))
    (DEGENERATE + 1e-3 * Euclidean(V)).sharp(xi)
    kernel = LinearMap(Space("K", 1), V, torch.tensor([[1.0], [-1.0]]))
    q = DEGENERATE.quotient(kernel)
    q.sharp(q.flat(q.projection(v)))  # type: ignore[attr-defined]


def test_validation_can_be_left_out() -> None:
    unchecked = Gram(V, torch.tensor([[1.0, 2.0], [2.0, 1.0]]), validate=False)
    assert torch.equal(unchecked.flat(v).data, torch.tensor([3.0, 3.0]))
    with pytest.raises(NotAnInnerProduct, match="NotAnInnerProduct in sharp: the form on V is indefinite"):
        unchecked.sharp(xi)


def test_a_frame_can_be_taken_as_it_comes() -> None:
    rotated = RotatedDiagonal(G, [I2], torch.ones(2), validate=False)
    assert torch.equal(rotated.axes[0], I2)
    tilted = torch.tensor([[1.0, 1e-5], [0.0, 1.0]])
    RotatedDiagonal(Euclidean(V), [tilted], torch.ones(2))  # rounding, in float32
    with pytest.raises(NotAnInnerProduct, match="off the identity"):
        RotatedDiagonal(Euclidean(V), [tilted.double()], torch.ones(2).double())


def test_a_matrix_symmetric_up_to_rounding_is_accepted() -> None:
    M = torch.randn(50, 50, generator=torch.Generator().manual_seed(0))
    Gram(Space("X", 50), M @ torch.diag(torch.rand(50, generator=torch.Generator().manual_seed(1)) + 0.1) @ M.mT)
    with pytest.raises(NotAnInnerProduct):
        Gram(Space("X", 50), M @ M.mT + 1e-2 * M.triu())


def test_a_state_survives_a_file(tmp_path: Path) -> None:
    A = AffineSpace("A", 2)
    form = direct_sum(
        fc1=G * second_moment(Sample(A.hull, torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))),
        fc2=Diagonal(W, torch.ones(3)) + 0.1 * Euclidean(W),
    )
    torch.save(form.state(), tmp_path / "form.pt")
    back = InnerProduct.from_state(form.space, torch.load(tmp_path / "form.pt", weights_only=True))
    assert torch.equal(back.matrix(), form.matrix())
    assert str(back.symmetry) == str(form.symmetry)
