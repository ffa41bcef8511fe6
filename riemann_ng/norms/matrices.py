"""Elements as matrices in orthonormal frames of two factors, definite ones or with a kernel that is left out."""

from __future__ import annotations

from functools import reduce
from operator import mul

import torch
from torch import Tensor

from ..errors import DegenerateMetric
from ..factorizations import Factorization, KroneckerFactor, RankDeficient, factorize_dense, tolerance_of
from ..factorizations.leaves import IdentityFactor
from ..inner_products import InnerProduct
from ..solvers.base import degenerate_named
from ..spaces import Family, VectorSpace, tensor_product
from .base import InvalidNorm
from .kernels import ImageFrame, kernel_tolerance


class Matrices:
    """Elements as matrices in orthonormal frames of the two factors, (..., members, rows, columns).

    With a `reference` a factor may have a kernel: its frame is that of the complement orthogonal for the reference.
    """

    def __init__(self, between: InnerProduct, reference: InnerProduct | None = None):
        self.between = between
        self.factors = two_factors(between)
        self.references = (None, None) if reference is None else two_factors(reference)
        self.members = between.space.members if isinstance(between.space, Family) else 1
        rows, columns = (g.space.of.dim if isinstance(g.space, Family) else g.space.dim for g in self.factors)
        self.shape = (self.members, rows, columns)
        self._kept: KroneckerFactor | None = None
        self._products: list[Tensor | None] | None = None

    def frames(self, like: Tensor) -> KroneckerFactor:
        if self._kept is not None:
            return self._kept
        pairs = zip(self.factors, self.references, strict=True)
        frames = KroneckerFactor([frames_of(g, like, h) for g, h in pairs], self.shape[1:], self.members)
        if self._lasts:
            self._kept = frames
            self._products = self._matrices_of(frames, like) if self.members == 1 else None
        return frames

    @property
    def _lasts(self) -> bool:
        return self.between.dtype is not None and not self.between.differentiable

    def _matrices_of(self, frames: KroneckerFactor, like: Tensor) -> list[Tensor | None]:
        """E of each factor: one product takes a fraction of the time of a triangular solve. None for the identity."""
        return [
            None if isinstance(f, IdentityFactor) else f.frame_columns(torch.eye(f.dim).to(like))
            for f in frames.factors
        ]

    def for_kernels(self) -> list[InnerProduct]:
        """The references of the factors that have a kernel."""
        if self.between.dtype is None:
            return []
        frames = self.frames(torch.zeros((), dtype=self.between.dtype, device=self.between.device))
        pairs = zip(frames.factors, self.references, strict=True)
        return [h for f, h in pairs if isinstance(f, ImageFrame) and h is not None]

    def check_seen(self, x: Tensor) -> None:
        """Raises where a covector does not vanish on the kernel: no length measures it."""
        frames = self.frames(x)
        if not any(isinstance(f, ImageFrame) for f in frames.factors):
            return
        rest = x - self.between.flat_components(frames.solve(x))
        unseen = float(rest.norm() / x.norm().clamp(min=torch.finfo(x.dtype).tiny))
        if unseen > 10 * kernel_tolerance(x) ** 0.5:
            raise DegenerateMetric(
                f"DegenerateMetric in Spectral: a part of {unseen:.1e} of the covector is on the kernel of "
                f"{self.between.expression()}, where no vector is long. Give a covector of the same batch, or damp: "
                f"damp_factors(g * a, λ, h).",
                self.between.space,
                self.between.rank(x),
            )

    def in_frames(self, x: Tensor) -> Tensor:
        frames = self.frames(x)
        y = x.reshape(*x.shape[:-1], *self.shape)
        if self._plain(frames):
            return y
        if self._products is None:
            return frames.coframe(x).reshape(y.shape)
        left, right = self._products
        y = y if left is None else left.mT @ y
        return y if right is None else y @ right

    def out_of_frames(self, y: Tensor) -> Tensor:
        z = y.reshape(*y.shape[:-3], self.between.space.dim)
        frames = self.frames(z)
        if self._plain(frames):
            return z
        if self._products is None:
            return frames.frame(z)
        left, right = self._products
        y = y if left is None else left @ y
        return (y if right is None else y @ right.mT).reshape(z.shape)

    def _plain(self, frames: KroneckerFactor) -> bool:
        return all(isinstance(f, IdentityFactor) for f in frames.factors)


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


def frames_of(g: InnerProduct, like: Tensor, reference: InnerProduct | None = None) -> Factorization:
    """A factorization of one factor, member by member on a family; definite, or with a reference for its kernel."""
    with degenerate_named(g.space, "Spectral"):
        try:
            return _frames_of(g, like)
        except RankDeficient as short:
            if reference is not None:
                return ImageFrame.of(g, reference, like)
            rank = short.rank if short.dim == g.space.dim else g.rank(like)
            raise DegenerateMetric(
                f"DegenerateMetric in Spectral: the factor {g.expression()} on {g.space} has rank {rank} "
                f"of {g.space.dim}. Three ways out: damp it by a named inner product, (g + λ * h) * a; damp both "
                f"factors, damp_factors(g * a, λ, h); or leave the kernel out, modulo_kernel=h.",
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
