"""Forms given by an orthonormal frame: their `sharp` is two matrix products, and it is `flat` that is dear."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from ..elements import describe
from ..errors import DtypeMismatch, NonFinite, NotAnInnerProduct, ShapeMismatch
from ..factorizations import Factorization, rounding_unit
from ..factorizations.base import RowFactorization
from ..solvers import Structure
from ..spaces import Family, VectorSpace, check_vector_space
from ..symmetry import Symmetry
from .base import InnerProduct, State, kind
from .common import check_name, known_as
from .symmetries import of_matrix

DEFAULT_NAME = "frame"


class FramedFactor(RowFactorization):
    """M = (K Kᵀ)⁻¹ by K itself: (d, d), (d,) where it is diagonal, or (m, d, d) for the members of a family."""

    name = "frame"

    def __init__(self, K: Tensor):
        self.K, self.dim = K, K.shape[-1] * (K.shape[0] if K.ndim == 3 else 1)

    def solve(self, x: Tensor) -> Tensor:
        return self.frame(self.coframe(x))

    def frame(self, z: Tensor) -> Tensor:
        return times(z, self.K.mT if self.K.ndim > 1 else self.K)

    def coframe(self, x: Tensor) -> Tensor:
        return times(x, self.K)

    @property
    def logdet(self) -> Tensor:
        K = self.K
        return -2 * (K.abs().log() if K.ndim == 1 else torch.linalg.slogdet(K)[1]).sum()


def times(x: Tensor, K: Tensor) -> Tensor:
    """Rows (..., dim) times K, member by member where it has a matrix for each."""
    if K.ndim < 3:
        return x * K if K.ndim == 1 else x @ K
    return (x.reshape(*x.shape[:-1], len(K), 1, K.shape[-1]) @ K).reshape(x.shape)


@kind("framed")
class Framed(InnerProduct):
    """The form for which the columns of K are an orthonormal basis, (K Kᵀ)⁻¹: `Framed(V, K)`.

    K is square, (d, d); on a family (m, d, d); a diagonal one may be given as a vector (d,). `frame()` is K as a map
    into V, from a space of its own. Nothing is factorized to solve it. The frame is a constant known by its `name`,
    unless `natural=True` says that it was computed from data and moves with the frames of V, up to a rotation of its
    own space.
    """

    always_direct = True

    def __init__(self, space: VectorSpace, K: Tensor, name: str = DEFAULT_NAME, natural: bool = False):
        check_vector_space("Framed", space)
        check_name(name, "Framed")
        m, d = (space.members, space.of.dim) if isinstance(space, Family) else (1, space.dim)
        square = (m, d, d) if isinstance(space, Family) else (d, d)
        if not isinstance(K, Tensor) or tuple(K.shape) not in (square, (space.dim,)):
            raise ShapeMismatch(
                f"ShapeMismatch in Framed: a frame of {space} is a matrix {list(square)}, or of a diagonal one the "
                f"entries [{space.dim}], got {describe(K)}."
            )
        if not K.dtype.is_floating_point:
            raise DtypeMismatch(f"DtypeMismatch in Framed: a frame of {space} must be floating point, got {K.dtype}.")
        if not bool(K.isfinite().all()):
            raise NonFinite(f"NonFinite in Framed: the frame of {space} holds NaN or infinity.")
        sizes = K.detach().abs() if K.ndim == 1 else torch.linalg.svdvals(K.detach())
        if not bool((sizes.amin(-1) > d * rounding_unit(K.dtype) * sizes.amax(-1)).all()):
            raise NotAnInnerProduct(
                f"NotAnInnerProduct in Framed: the columns of the frame of {space} are no basis, singular values go "
                f"from {float(sizes.max()):.2e} down to {float(sizes.min()):.2e}."
            )
        self._set(space, K, name, Symmetry.natural() if natural else None)

    def _set(self, space: VectorSpace, K: Tensor, name: str, symmetry: Symmetry | None) -> None:
        self.space, self.K, self.name, self._given_symmetry = space, K, name, symmetry

    @classmethod
    def of(cls, space: VectorSpace, K: Tensor, name: str, symmetry: Symmetry) -> Framed:
        """Without validation, with a symmetry known from where the frame came from."""
        form = object.__new__(cls)
        form._set(space, K, name, symmetry)
        return form

    def flat_components(self, x: Tensor) -> Tensor:
        return times(x, self._precision())

    def _precision(self) -> Tensor:
        if self.K.ndim == 1:
            return self.K.square().reciprocal()
        inverse = torch.linalg.inv(self.K)
        return inverse.mT @ inverse

    def tensors(self) -> Iterator[Tensor]:
        yield self.K

    def dense_matrix(self, like: Tensor | None = None) -> Tensor:
        M = self._precision()
        return M if M.ndim == 2 else torch.diag(M) if M.ndim == 1 else torch.block_diag(*M)

    def dense_blocks(self) -> Tensor | None:
        return None if self.K.ndim == 1 else self._precision()

    def diagonal_entries(self, like: Tensor | None = None) -> Tensor:
        M = self._precision()
        return M if M.ndim == 1 else M.diagonal(dim1=-2, dim2=-1).flatten()

    @property
    def by_members(self) -> bool:
        return self.K.ndim != 2 or super().by_members

    @property
    def structure(self) -> Structure:
        d, side = self.space.dim, self.K.shape[-1]
        if self.K.ndim == 1:
            return Structure("diagonal", d, float(d), float(d), d)
        return Structure("frame", d, 0.0, 4.0 * d * side**2, d)

    def direct_factorization(self, method: str) -> Factorization:
        return FramedFactor(self.K)

    @property
    def symmetry(self) -> Symmetry:
        return self._of_constant if self._given_symmetry is None else self._given_symmetry

    @cached_property
    def _of_constant(self) -> Symmetry:
        return of_matrix(self.space, known_as(self.name, DEFAULT_NAME, self.K), self.expression())

    def expression(self) -> str:
        return f"Framed({self.space}, {self.name})"

    def own_state(self) -> State:
        return {"frame": self.K, "name": self.name, "symmetry": self.symmetry.to_state()}

    @classmethod
    def restore(cls, space: VectorSpace, state: State) -> Framed:
        return cls.of(space, state["frame"], state["name"], Symmetry.from_state(state["symmetry"]))
