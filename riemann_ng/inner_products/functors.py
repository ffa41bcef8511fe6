"""What duality and maps make of a form: duals, pullbacks, quotients."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..errors import DtypeMismatch, SpaceMismatch
from ..factorizations import Factorization, InverseFactor, factorize_dense, factorize_rows
from ..linear_maps import LinearMap
from ..solvers import Structure
from ..solvers.stages import Stages
from ..spaces import Derived, VectorSpace
from ..symmetry import Symmetry
from .base import InnerProduct, State, kind
from .common import bracketed, degenerate_of, digest, no_state, other_space
from .maps import NoState, map_from_state, map_to_state
from .symmetries import along


@kind("dual")
class Dual(InnerProduct):
    """The form of g on covectors: its flat is g's sharp, its sharp g's flat."""

    def __init__(self, of: InnerProduct):
        self.of, self.space = of, of.space.dual

    def flat_components(self, x: Tensor) -> Tensor:
        with degenerate_of(self.of.space, self.of.rank, "dual"):
            return self.of.factorization(x).solve(x)

    def tensors(self) -> Iterator[Tensor]:
        return self.of.tensors()

    @property
    def structure(self) -> Structure:
        s = self.of.structure
        return Structure("dual", s.dim, s.apply, 2.0 * s.dim**2, s.dim)

    @property
    def by_members(self) -> bool:
        return self.of.by_members

    def direct_factorization(self, method: str) -> Factorization | None:
        return None if self.dtype is None else InverseFactor(self.of.flat_components, self.of.factorization())

    @property
    def symmetry(self) -> Symmetry:
        return self.of.symmetry**-1

    def expression(self) -> str:
        return f"{bracketed(self.of.expression(), '+*')}.dual"

    def own_state(self) -> State:
        return {"of": self.of.state()}

    @classmethod
    def restore(cls, space: VectorSpace, state: State) -> Dual:
        return cls(InnerProduct.from_state(space.dual, state["of"]))


@kind("pullback")
class Pullback(InnerProduct):
    """`Pullback(φ, h)`, the form h(φ u, φ u') on the domain of φ, without a matrix.

    It keeps what h and the map keep: a map that comes with spaces or data all, a constant one little.
    """

    def __init__(self, phi: LinearMap, of: InnerProduct, staged: Callable[[], Stages] | None = None):
        """`staged` makes the chain of stages that the map is the composition of, where it is one."""
        if phi.codomain != of.space:
            raise SpaceMismatch(f"SpaceMismatch in pullback: {phi} does not lead to {of.space}, where {of!r} lives.")
        check_map(phi, of, "pullback")
        self.phi, self.of, self.space, self._staged = phi, of, phi.domain, staged

    def stages(self) -> Stages | None:
        return None if self._staged is None else self._staged()

    def flat_components(self, x: Tensor) -> Tensor:
        return self.phi._transpose(self.of.flat_components(self.phi._apply(x)))

    def tensors(self) -> Iterator[Tensor]:
        yield from self.phi._tensors
        yield from self.of.tensors()

    def dense_matrix(self, like: Tensor | None = None) -> Tensor:
        columns = self.phi.matrix(torch.empty(0, **self._options(like)))
        return columns.mT @ self.of.flat_components(columns.mT).mT

    def rows(self) -> Tensor | None:
        rows = self.of.rows()
        return None if rows is None else self.phi._transpose(rows)

    @property
    def structure(self) -> Structure:
        d, s = self.space.dim, self.of.structure
        product = 4.0 * d * s.dim + s.apply
        return Structure("pullback", d, None, product, min(d, s.rank))

    def direct_factorization(self, method: str) -> Factorization | None:
        rows = self.rows() if method == "cholesky" else None
        return None if rows is None else factorize_rows(rows)

    @property
    def symmetry(self) -> Symmetry:
        return along(self.of.symmetry, self.phi, f"Pullback({self.phi.name}, ...)")

    def expression(self) -> str:
        return f"Pullback({self.phi.name}, {self.of.expression()})"

    def own_state(self) -> State:
        return {"along": stored(self, self.phi), "of": self.of.state()}

    @classmethod
    def restore(cls, space: VectorSpace, state: State) -> Pullback:
        phi = map_from_state(state["along"])
        if phi.domain != space:
            raise other_space(state, phi.domain, space)
        return cls(phi, InnerProduct.from_state(phi.codomain, state["of"]))


@kind("quotient")
class Quotient(InnerProduct):
    """The form on V/K: the length of a class is that of its shortest member. `projection` is V → V/K.

    If g vanishes on K it is g itself seen on classes; where g is definite it is the Schur complement. The components on
    V/K are those along an orthonormal complement of K, a choice that shows in no length.
    """

    def __init__(self, of: InnerProduct, kernel: LinearMap, like: Tensor | None = None):
        if kernel.codomain != of.space:
            raise SpaceMismatch(f"SpaceMismatch in quotient: {kernel} is no inclusion into {of.space}.")
        check_map(kernel, of, "quotient")
        K = kernel.matrix(torch.empty(0, **of._options(like)))
        G = of.dense_matrix(K)
        r = K.shape[1]
        if r >= G.shape[0] or int(torch.linalg.matrix_rank(K)) < r:
            raise SpaceMismatch(
                f"SpaceMismatch in quotient: {kernel} must include a smaller space, injectively; its rank is "
                f"{int(torch.linalg.matrix_rank(K))} of {r} in dimension {G.shape[0]}."
            )
        self.of, self.kernel = of, kernel
        classes = f"({of.space})/({kernel.domain} {digest(K)})"  # the section depends on the inclusion alone
        self.space: VectorSpace = Derived(classes, of.space, G.shape[0] - r)
        section = torch.linalg.qr(K, mode="complete")[0][:, r:]
        up_to_scale = None if kernel.symmetry is None else kernel.symmetry * kernel.symmetry**-1
        self.projection = LinearMap(of.space, self.space, section.mT, "projection", up_to_scale)
        GK = G @ K
        shortest = G - GK @ torch.linalg.pinv(K.mT @ GK, hermitian=True) @ GK.mT
        self.entries = section.mT @ shortest @ section

    def flat_components(self, x: Tensor) -> Tensor:
        return x @ self.entries

    def tensors(self) -> Iterator[Tensor]:
        yield self.entries

    def dense_matrix(self, like: Tensor | None = None) -> Tensor:
        return self.entries

    def dense_blocks(self) -> Tensor:
        return self.entries

    @property
    def structure(self) -> Structure:
        d = self.space.dim
        return Structure("dense", d, d**3 / 3, 2.0 * d * d, d)

    def direct_factorization(self, method: str) -> Factorization:
        return factorize_dense(self.entries, method)

    @property
    def symmetry(self) -> Symmetry:
        return along(self.of.symmetry, self.kernel, f"quotient by {self.kernel.name}", up_to_scale=True)

    def expression(self) -> str:
        return f"{bracketed(self.of.expression(), '+*')}.quotient({self.kernel.name})"

    def own_state(self) -> State:
        like = self.entries.new_empty(0)
        return {"kernel": stored(self, self.kernel), "of": self.of.state(), "like": like}

    @classmethod
    def restore(cls, space: VectorSpace, state: State) -> Quotient:
        kernel = map_from_state(state["kernel"])
        quotient = cls(InnerProduct.from_state(kernel.codomain, state["of"]), kernel, state["like"])
        if quotient.space != space:
            raise other_space(state, quotient.space, space)
        return quotient


def check_map(phi: LinearMap, g: InnerProduct, call: str) -> None:
    """A map with numbers of its own is of the form's dtype, on its device."""
    for t in phi._tensors:
        if g.dtype not in (None, t.dtype) or g.device not in (None, t.device):
            raise DtypeMismatch(
                f"DtypeMismatch in {call}: {phi} in {t.dtype} on {t.device} with {g!r} in {g.dtype} on {g.device}. "
                f"Bring the map's matrix, or the form, there with .to(...)."
            )


def stored(g: InnerProduct, phi: LinearMap) -> State:
    try:
        return map_to_state(phi)
    except NoState:
        raise no_state(g) from None
