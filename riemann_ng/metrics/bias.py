"""Weight apart from bias."""

from __future__ import annotations

from ..inner_products import Diagonal, Gram, InnerProduct
from ..linear_maps import LinearMap
from ..spaces import Dual, Family, Hull
from ..symmetry import Symmetry


def apart(A: InnerProduct) -> InnerProduct:
    """A form on Â* without what stands between linear parts and constants, which is a matter of the origin.

    It is f ↦ A(linear part of f about o, same) + A(f(o), f(o)) with o the coordinate origin.
    """
    member = A.space.of if isinstance(A.space, Family) else A.space
    if not (isinstance(member, Dual) and isinstance(member.of, Hull) and member.of.of.dim > 0):
        return A
    origin = LinearMap.difference(member.of.of).symmetry
    assert origin is not None
    symmetry, name = A.symmetry * origin, f"{A.expression()}, bias apart"
    return _diagonal(A, name, symmetry) if A.structure.kind == "diagonal" else _dense(A, name, symmetry)


def _dense(A: InnerProduct, name: str, symmetry: Symmetry) -> InnerProduct:
    blocks = A.dense_blocks()
    matrix = (A.matrix() if blocks is None else blocks).clone()
    matrix[..., -1, :-1] = 0.0
    matrix[..., :-1, -1] = 0.0
    return Gram.of(A.space, matrix, name, symmetry)


def _diagonal(A: InnerProduct, name: str, symmetry: Symmetry) -> InnerProduct:
    return Diagonal.of(A.space, A.diagonal_entries(), name, symmetry)
