"""The operator norm between two inner-product spaces, whose steepest step is a matrix sign."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import reduce
from operator import mul
from typing import Literal

import torch
from torch import Tensor

from ..elements import Element, Vector, describe
from ..errors import DegenerateMetric
from ..factorizations import Factorization, KroneckerFactor, RankDeficient, factorize_dense, tolerance_of
from ..inner_products import Euclidean, InnerProduct
from ..solvers.base import degenerate_named
from ..spaces import DirectSum, Family, VectorSpace, tensor_product
from ..symmetry import Symmetry
from .base import InvalidNorm, Norm, symmetry_unknown
from .composed import Max
from .matrix_sign import SVD, MatrixSign, singular_values


class Spectral(Norm):
    """The largest singular value between two inner-product spaces; the dual norm is the nuclear one.

    `Spectral(between=g * a)`, with g on S and a on Â* as K-FAC's factors are, is a norm on Hom(Â, S):

        sharp(ξ) = E_S msgn(E_Sᵀ ξ E_A) E_Aᵀ = G^-1/2 msgn(G^-1/2 ξ A^-1/2) A^-1/2

    for any orthonormal frames: rotating one rotates msgn along. With factors made of data it is free of coordinates.
    `Spectral()` takes the coordinates of whatever it is given for orthonormal, as Muon does: `Spectral().on(V)` is
    `Spectral(between=Euclidean(V))`.
    Of more than two factors the first stands against the rest. On a family each member is a matrix of its own; on a
    direct sum of such forms (a metric's value on a network) it is the largest over the summands, each a matrix.

    `method` is how the matrix sign is computed, "exact" (an SVD) or a `MatrixSign` as `NewtonSchulz()`. The norms
    are exact in any case; that `sharp` attains them holds as far as the method is exact.
    """

    def __init__(self, between: InnerProduct | None = None, method: MatrixSign | Literal["exact"] = "exact"):
        if between is not None and not isinstance(between, InnerProduct):
            raise InvalidNorm(
                f"InvalidNorm in Spectral: between is an inner product that is a product of two, g * a, "
                f"got {describe(between)}. Leave it out for the Euclidean forms of the coordinates."
            )
        if method != "exact" and not isinstance(method, MatrixSign):
            raise InvalidNorm(
                f"InvalidNorm in Spectral: method is 'exact' or a MatrixSign as NewtonSchulz(), got {describe(method)}."
            )
        self.between, self.method = between, SVD() if method == "exact" else method
        self.space = None if between is None else between.space
        self._summands: Max | None = None
        self._matrices: Matrices | None = None
        if between is not None and isinstance(between.space, DirectSum):
            summands = between.summands()
            if summands is None:
                raise InvalidNorm(
                    f"InvalidNorm in Spectral: {between!r} couples the summands of {between.space}. "
                    f"Give a direct sum of products: direct_sum(...)."
                )
            self._summands = Max({name: Spectral(g, self.method) for name, g in summands.items()})
        elif between is not None:
            self._matrices = Matrices(between)

    def norm_of(self, v: Element) -> Tensor:
        if self._summands is not None:
            return self._summands.norm_of(v)
        assert self.between is not None and self._matrices is not None
        flat = self.between.flat_components(v.components)  # E⁻¹v = Eᵀ flat(v)
        return singular_values(self._matrices.in_frames(flat)).amax(dim=(-2, -1))

    def dual_norm_of(self, covector: Element) -> Tensor:
        if self._summands is not None:
            return self._summands.dual_norm_of(covector)
        assert self._matrices is not None
        return singular_values(self._matrices.in_frames(covector.components)).sum(dim=(-2, -1))

    def sharp_of(self, covector: Element) -> Vector:
        if self._summands is not None:
            return self._summands.sharp_of(covector)
        assert self._matrices is not None
        step = self._matrices.out_of_frames(self.method(self._matrices.in_frames(covector.components)))
        return Vector._of(covector.lives_in.dual, step.reshape(covector.data.shape))

    def bound_to(self, space: VectorSpace) -> Norm:
        return Spectral(Euclidean(space), self.method)

    @property
    def symmetry(self) -> Symmetry:
        if self.between is None:
            raise symmetry_unknown(self)
        return self.between.symmetry ** Fraction(1, 2)

    def expression(self) -> str:
        between = [] if self.between is None else [f"between={self.between.expression()}"]
        method = [] if self.method == SVD() else [f"method={self.method!r}"]
        return f"Spectral({', '.join(between + method)})"

    def forms(self) -> Iterator[InnerProduct]:
        if self.between is not None:
            yield self.between


class Matrices:
    """Elements as matrices in orthonormal frames of the two factors, (..., members, rows, columns)."""

    def __init__(self, between: InnerProduct):
        self.between = between
        self.factors = two_factors(between)
        self.members = between.space.members if isinstance(between.space, Family) else 1
        rows, columns = (g.space.of.dim if isinstance(g.space, Family) else g.space.dim for g in self.factors)
        self.shape = (self.members, rows, columns)
        self._kept: KroneckerFactor | None = None

    def frames(self, like: Tensor) -> KroneckerFactor:
        if self._kept is not None:
            return self._kept
        frames = KroneckerFactor([frames_of(g, like) for g in self.factors], self.shape[1:], self.members)
        if self.between.dtype is not None and not self.between.differentiable:
            self._kept = frames
        return frames

    def in_frames(self, x: Tensor) -> Tensor:
        return self.frames(x).coframe(x).reshape(*x.shape[:-1], *self.shape)

    def out_of_frames(self, y: Tensor) -> Tensor:
        z = y.reshape(*y.shape[:-3], self.between.space.dim)
        return self.frames(z).frame(z)


def two_factors(between: InnerProduct) -> tuple[InnerProduct, InnerProduct]:
    """The form as a product of two, along the first place where its space can be cut."""
    space = between.space
    atoms = (space.of if isinstance(space, Family) else space).factors

    def candidates(part: VectorSpace) -> list[VectorSpace]:
        return [Family(part, space.members), part] if isinstance(space, Family) else [part]

    for cut in range(1, len(atoms)):
        for first in candidates(tensor_product(*atoms[:cut])):
            for second in candidates(tensor_product(*atoms[cut:])):
                found = between.factors_on((first, second))
                if found is not None:
                    return found[0], found[1]
    several = between.factors_on(atoms) if len(atoms) > 2 else None
    if several is not None:
        return several[0], reduce(mul, several[1:])
    if len(atoms) < 2:
        cause, fix = f"{space} is no product of two", "For elements that are no matrices use FromInnerProduct(g)"
    else:
        cause = f"{between!r} is no product of two inner products"
        fix = "Damp its factors, not the product: damp_factors(g, λ, h) or (g + λ * h) * a"
    raise InvalidNorm(f"InvalidNorm in Spectral: an operator norm is between two spaces, but {cause}. {fix}.")


def frames_of(g: InnerProduct, like: Tensor) -> Factorization:
    """A factorization of one factor, definite, and member by member on a family."""
    with degenerate_named(g.space, "Spectral"):
        try:
            return _frames_of(g, like)
        except RankDeficient as short:
            rank = short.rank if short.dim == g.space.dim else g.rank(like)
            raise DegenerateMetric(
                f"DegenerateMetric in Spectral: the factor {g.expression()} on {g.space} has rank {rank} "
                f"of {g.space.dim}. Three ways out: damp it by a named inner product, (g + λ * h) * a; damp both "
                f"factors, damp_factors(g * a, λ, h); or leave the kernel out, g.quotient(kernel).",
                g.space,
                rank,
            ) from None


def _frames_of(g: InnerProduct, like: Tensor) -> Factorization:
    f = g.factorization(like)
    if not isinstance(g.space, Family):
        f.frame_columns(like.new_zeros(g.space.dim, 0))  # some kinds find their kernel only here
        return f
    m, d = g.space.members, g.space.of.dim
    outside = 1 - torch.eye(m).to(like)
    one_each = torch.eye(m).to(like).repeat_interleave(d, 0) * torch.linspace(1, 2, m * d).to(like)[:, None]
    if not bool((f.frame_columns(one_each).reshape(m, d, m).abs().sum(1) * outside).any()):
        return f
    # the frame mixes the members, as that of an eigendecomposition may where the form does not
    M = g.dense_matrix(like)
    size = M.diagonal().clamp(min=torch.finfo(M.dtype).tiny).sqrt()
    blocks, relative = (X.reshape(m, d, m, d).movedim(2, 1) for X in (M, M / size[:, None] / size))
    if bool((relative.abs().amax((2, 3)) * outside > tolerance_of(M)).any()):
        raise InvalidNorm(
            f"InvalidNorm in Spectral: {g!r} couples the members of {g.space}; on a family each member is a matrix of "
            f"its own. Use a form made member by member, or a Product in place of the Family."
        )
    return factorize_dense(blocks.diagonal(dim1=0, dim2=1).movedim(-1, 0).contiguous())
