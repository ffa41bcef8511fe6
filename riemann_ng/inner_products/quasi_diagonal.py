"""Forms that keep, for every output unit, the bias exact and the weights diagonal beside it (Ollivier 2015)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from ..elements import describe
from ..errors import DtypeMismatch, NonFinite, NotAnInnerProduct, ShapeMismatch, SpaceMismatch
from ..factorizations import Factorization, RankDeficient
from ..factorizations.base import RowFactorization
from ..solvers import Structure
from ..spaces import Dual, Family, Hull, Product, VectorSpace, check_vector_space, tensor_product
from ..symmetry import Structure as Named
from ..symmetry import Symmetry
from .base import InnerProduct, State, kind
from .common import known_as
from .symmetries import of_matrix, with_lines

DEFAULT_NAME = "statistics"


class CompletedSquares(RowFactorization):
    """diag(rest, extra) + pivot (slope, 1) (slope, 1)ᵀ for each unit, in closed form: by completing squares.

    `rest` and `slopes` are (units, d - 1), `pivots` and `extra` (units,); the bias stands last.
    """

    name = "completed squares"

    def __init__(self, pivots: Tensor, slopes: Tensor, rest: Tensor, extra: Tensor | None = None):
        whole = pivots if extra is None else pivots + extra
        self.units, self.side = slopes.shape[0], slopes.shape[1] + 1
        self.dim = self.units * self.side
        self.entries = torch.cat([rest, whole[:, None]], 1)
        zero = self.entries.detach() <= 0
        self.zero = zero if bool(zero.any()) else None
        safe = self.entries if self.zero is None else torch.where(zero, 1.0, self.entries)
        self.roots = safe.rsqrt()
        self.slopes = slopes * (pivots / safe[:, -1])[:, None]
        self.u: Tensor | None = None
        if extra is not None:  # what is left of the weights is diag(rest) + pivot extra / (pivot + extra) slope slopeᵀ
            self.u = slopes * (pivots * extra / safe[:, -1]).sqrt()[:, None] * self.roots[:, :-1]

    def _sheared(self, z: Tensor) -> Tensor:
        """The symmetric root of (1 + u uᵀ)⁻¹."""
        if self.u is None:
            return z
        root = (1 + self.u.square().sum(-1, keepdim=True)).sqrt()
        return z - self.u * ((z * self.u).sum(-1, keepdim=True) / (root * (root + 1)))

    def _degenerate(self) -> None:
        if self.zero is not None:
            raise RankDeficient(self.dim - int(self.zero.sum()), self.dim)

    def _apart(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Eᵀx, the weights and the biases. Where the form vanishes x must vanish too."""
        y = x.reshape(*x.shape[:-1], self.units, self.side)
        weights, bias = y[..., :-1] - self.slopes * y[..., -1:], y[..., -1:]
        if self.zero is not None and bool((torch.cat([weights, bias], -1)[..., self.zero] != 0).any()):
            self._degenerate()
        return self._sheared(weights * self.roots[:, :-1]), bias * self.roots[:, -1:]

    def _together(self, weights: Tensor, bias: Tensor) -> Tensor:
        w = self._sheared(weights) * self.roots[:, :-1]
        b = bias * self.roots[:, -1:] - (self.slopes * w).sum(-1, keepdim=True)
        return torch.cat([w, b], -1).flatten(-2)

    def solve(self, x: Tensor) -> Tensor:
        return self._together(*self._apart(x))

    def frame(self, z: Tensor) -> Tensor:
        self._degenerate()
        y = z.reshape(*z.shape[:-1], self.units, self.side)
        return self._together(y[..., :-1], y[..., -1:])

    def coframe(self, x: Tensor) -> Tensor:
        self._degenerate()
        return torch.cat(self._apart(x), -1).flatten(-2)

    @property
    def logdet(self) -> Tensor:
        self._degenerate()
        logdet = self.entries.log().sum()
        return logdet if self.u is None else logdet + self.u.square().sum(-1).log1p().sum()


@kind("quasi-diagonal")
class QuasiDiagonal(InnerProduct):
    """Σ over units of p (b + Σ sₖ wₖ)² + Σ rₖ wₖ², for the weights wₖ and the bias b of each: on S ⊗ Â*.

    `pivots` p are (*units), `slopes` s and `rest` r (*units, dim A). Of a form with matrix M in one unit, it keeps the
    bias's row and the diagonal: p = M₀₀, s = M₀ₖ / M₀₀, r = Mₖₖ - M₀ₖ² / M₀₀. It names the lines of S and of 𝒜, but no
    origin: translations of 𝒜 move the slopes. `natural=True` says that the numbers come from data; else they are a
    constant, known by its `name`. To solve it costs what the diagonal does. `blend` keeps the bias's row and the
    diagonal of the mean.
    """

    always_direct = True

    def __init__(
        self,
        space: VectorSpace,
        pivots: Tensor,
        slopes: Tensor,
        rest: Tensor,
        name: str = DEFAULT_NAME,
        natural: bool = False,
    ):
        check_vector_space("QuasiDiagonal", space)
        if not has_bias(space):
            raise SpaceMismatch(
                f"SpaceMismatch in QuasiDiagonal: {space} has no bias to keep: the last factor must be the dual of a "
                f"hull, as in Hom(A.hull, S). Without a bias it is Diagonal({space}, entries)."
            )
        lead, d = space.shape[:-1], space.shape[-1] - 1
        for what, t, shape in (("pivots", pivots, lead), ("slopes", slopes, (*lead, d)), ("rest", rest, (*lead, d))):
            if not isinstance(t, Tensor) or tuple(t.shape) != shape:
                raise ShapeMismatch(
                    f"ShapeMismatch in QuasiDiagonal: on {space} the {what} are {list(shape)}, got {describe(t)}."
                )
        if len({(t.dtype, t.device) for t in (pivots, slopes, rest)}) > 1 or not pivots.dtype.is_floating_point:
            raise DtypeMismatch(
                f"DtypeMismatch in QuasiDiagonal: pivots, slopes and rest on {space} must be floating point, of one "
                f"dtype on one device, got {', '.join(map(describe, (pivots, slopes, rest)))}."
            )
        if not all(bool(t.isfinite().all()) for t in (pivots, slopes, rest)):
            raise NonFinite(f"NonFinite in QuasiDiagonal: the statistics on {space} hold NaN or infinity.")
        if bool((pivots < 0).any()) or bool((rest < 0).any()):
            raise NotAnInnerProduct(
                f"NotAnInnerProduct in QuasiDiagonal: on {space} the pivots go down to {float(pivots.min()):.3g}, the "
                f"rest to {float(rest.min()):.3g}; neither may be negative."
            )
        self._set(space, pivots, slopes, rest, name, named_by_quasi(space, name) if natural else None)

    def _set(
        self, space: VectorSpace, pivots: Tensor, slopes: Tensor, rest: Tensor, name: str, symmetry: Symmetry | None
    ) -> None:
        d = space.shape[-1] - 1
        self.space, self.name, self._given_symmetry = space, name, symmetry
        self.pivots, self.slopes, self.rest = pivots.reshape(-1), slopes.reshape(-1, d), rest.reshape(-1, d)

    @classmethod
    def of(
        cls, space: VectorSpace, pivots: Tensor, slopes: Tensor, rest: Tensor, name: str, symmetry: Symmetry
    ) -> QuasiDiagonal:
        """Without validation, with a symmetry known from where the numbers came from."""
        form = object.__new__(cls)
        form._set(space, pivots, slopes, rest, name, symmetry)
        return form

    def flat_components(self, x: Tensor) -> Tensor:
        y = x.reshape(*x.shape[:-1], *self.rest.shape[:1], self.rest.shape[1] + 1)
        along = (self.slopes * y[..., :-1]).sum(-1) + y[..., -1]
        bias = (self.pivots * along)[..., None]
        return torch.cat([self.slopes * bias + self.rest * y[..., :-1], bias], -1).reshape(x.shape)

    def tensors(self) -> Iterator[Tensor]:
        yield from (self.pivots, self.slopes, self.rest)

    @property
    def by_members(self) -> bool:
        return True

    def diagonal_entries(self, like: Tensor | None = None) -> Tensor:
        weights = self.pivots[:, None] * self.slopes.square() + self.rest
        return torch.cat([weights, self.pivots[:, None]], 1).flatten()

    def unit_matrices(self) -> Tensor:
        """Dense, (units, d, d)."""
        row = torch.cat([self.slopes, torch.ones_like(self.pivots)[:, None]], 1)
        rest = torch.cat([self.rest, torch.zeros_like(self.pivots)[:, None]], 1)
        return self.pivots[:, None, None] * row[:, :, None] * row[:, None, :] + torch.diag_embed(rest)

    def dense_matrix(self, like: Tensor | None = None) -> Tensor:
        return torch.block_diag(*self.unit_matrices())

    @property
    def structure(self) -> Structure:
        d = self.space.dim
        return Structure("quasi-diagonal", d, 4.0 * d, 6.0 * d, d)

    def direct_factorization(self, method: str) -> Factorization:
        return CompletedSquares(self.pivots, self.slopes, self.rest)

    @property
    def symmetry(self) -> Symmetry:
        return self._of_constant if self._given_symmetry is None else self._given_symmetry

    @cached_property
    def _of_constant(self) -> Symmetry:
        numbers = torch.cat([self.pivots[:, None], self.slopes, self.rest], 1)
        return of_matrix(self.space, known_as(self.name, DEFAULT_NAME, numbers), self.expression())

    def expression(self) -> str:
        return f"QuasiDiagonal({self.space}, {self.name})"

    def blended(self, other: InnerProduct, weight: float) -> InnerProduct:
        if not isinstance(other, QuasiDiagonal):
            return super().blended(other, weight)
        mine, theirs = (1 - weight) * self.pivots, weight * other.pivots
        pivots = mine + theirs
        safe = torch.where(pivots > 0, pivots, 1.0)
        share = (theirs / safe)[:, None]
        slopes = self.slopes.lerp(other.slopes, share)
        between = (mine * theirs / safe)[:, None] * (self.slopes - other.slopes).square()
        rest = self.rest.lerp(other.rest, weight) + between  # as a variance: that within, and that between the means
        name, symmetry = self.name, self.symmetry + other.symmetry
        return QuasiDiagonal.of(self.space, pivots, slopes, rest, name, symmetry)

    def own_state(self) -> State:
        return {
            "pivots": self.pivots, "slopes": self.slopes, "rest": self.rest, "name": self.name,
            "symmetry": self.symmetry.to_state(),
        }  # fmt: skip

    @classmethod
    def restore(cls, space: VectorSpace, state: State) -> QuasiDiagonal:
        symmetry = Symmetry.from_state(state["symmetry"])
        return cls.of(space, state["pivots"], state["slopes"], state["rest"], state["name"], symmetry)


def units_and_rest(space: VectorSpace) -> tuple[VectorSpace, VectorSpace] | None:
    """The product of all factors but the last, whose basis elements are the units, and the last; of a member, on a
    family. None where there is no product."""
    member = space.of if isinstance(space, Family) else space
    if not isinstance(member, Product):
        return None
    return tensor_product(*member.factors[:-1]), member.factors[-1]


def has_bias(space: VectorSpace) -> bool:
    """Whether it is made of affine functionals, one for each unit: the last component of each is then its bias."""
    parts = units_and_rest(space)
    last = None if parts is None else parts[1]
    return isinstance(last, Dual) and isinstance(last.of, Hull) and last.of.of.dim > 0


def named_by_units(space: VectorSpace, source: str) -> Symmetry:
    """What telling the units apart names: their lines."""
    parts = units_and_rest(space)
    assert parts is not None
    return with_lines(Symmetry.natural(), parts[0], source)


def named_by_quasi(space: VectorSpace, source: str) -> Symmetry:
    """Lines of the units and of the weights. The bias apart by completed squares is what remains of an origin: none."""
    parts = units_and_rest(space)
    assert parts is not None
    return named_by_units(space, source).with_structure(
        *(Named(base, "lines", source=source) for base in parts[1].bases)
    )
