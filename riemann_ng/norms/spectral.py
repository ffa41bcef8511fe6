"""The operator norm between two inner-product spaces, whose steepest step is a matrix sign."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, Literal, get_args

from torch import Tensor

from ..elements import Element, Vector, describe
from ..inner_products import Euclidean, InnerProduct
from ..metrics import EuclideanMetric, FixedMetric, RiemannianMetric
from ..spaces import DirectSum, VectorSpace
from ..symmetry import Symmetry
from .apart import BiasApart, apart
from .base import InvalidNorm, Norm, needs_a_point, symmetry_unknown
from .composed import Max
from .matrices import Matrices
from .matrix_sign import SVD, MatrixSign, singular_values

Scale = Literal["none", "original", "match_rms_adamw", "rms"]
"""How far a step goes by the shape of its matrix: see `length`."""


class Spectral(Norm):
    """The largest singular value between two inner-product spaces; the dual norm is the nuclear one.

    `Spectral(between=g * a)`, with g on S and a on Â* as K-FAC's factors are, is a norm on Hom(Â, S):

        sharp(ξ) = E_S msgn(E_Sᵀ ξ E_A) E_Aᵀ = G^-1/2 msgn(G^-1/2 ξ A^-1/2) A^-1/2

    for any orthonormal frames: rotating one rotates msgn along. With factors made of data it is free of coordinates.
    `Spectral(between=KFAC())`, of a metric, is that at every point, `at(observation)`.
    `Spectral()` takes the coordinates of whatever it is given for orthonormal, as Muon does: `Spectral().on(V)` is
    `Spectral(between=Euclidean(V))`. `bias="separate"` then makes two matrices of one on a hull, weight and bias, about
    the coordinate origin, the bias a column.
    Of more than two factors the first stands against the rest. On a family each member is a matrix of its own; on a
    direct sum of such forms (a metric's value on a network) it is the largest over the summands, each a matrix.

    `method` is how the matrix sign is computed, "exact" (an SVD) or a `MatrixSign` as `NewtonSchulz()`. The norms
    are exact in any case; that `sharp` attains them holds as far as the method is exact. `scale` multiplies the step of
    each matrix by a number of its shape: `length`. Where a factor has a kernel, on which the covector vanishes,
    `modulo_kernel` is the form for which steps are the shortest: an inner product, or a metric that is the same
    everywhere.
    """

    def __init__(
        self,
        between: InnerProduct | RiemannianMetric | None = None,
        method: MatrixSign | Literal["exact"] = "exact",
        scale: Scale = "none",
        bias: Literal["joint", "separate"] = "joint",
        modulo_kernel: InnerProduct | RiemannianMetric | None = None,
    ):
        check(between, method, scale, bias, modulo_kernel)
        self.between, self.method = between, SVD() if method == "exact" else method
        self.scale, self.bias, self.modulo_kernel = scale, bias, modulo_kernel
        self.metric = between if isinstance(between, RiemannianMetric) else None
        self.space = between.space if isinstance(between, InnerProduct) else None
        self._summands: Max | None = None
        self._matrices: Matrices | None = None
        self._length = 1.0
        if not isinstance(between, InnerProduct):
            return
        reference = None if modulo_kernel is None else constant(modulo_kernel, between.space)
        if isinstance(between.space, DirectSum):
            summands = between.summands()
            if summands is None:
                raise InvalidNorm(
                    f"InvalidNorm in Spectral: {between!r} couples the summands of {between.space}. "
                    f"Give a direct sum of products: direct_sum(...)."
                )
            kernels: dict[str, Any] = {} if reference is None else reference.summands() or {}
            self._summands = Max({k: self._like(g, kernels.get(k)) for k, g in summands.items()})
        else:
            self._matrices = Matrices(between, reference)
            self._length = length(scale, *self._matrices.shape[1:])

    def _like(self, between: Any, modulo_kernel: Any) -> Spectral:
        bias = self.bias if between is None else "joint"
        return Spectral(between, self.method, self.scale, bias, modulo_kernel)

    def summands(self) -> dict[str, Norm] | None:
        return None if self._summands is None else self._summands.summands()

    def _whole(self) -> Matrices:
        if self._matrices is None:
            raise needs_a_point(self, "Spectral")
        return self._matrices

    def norm_of(self, v: Element) -> Tensor:
        if self._summands is not None:
            return self._summands.norm_of(v)
        matrices = self._whole()
        flat = matrices.between.flat_components(v.components)  # E⁻¹v = Eᵀ flat(v)
        return singular_values(matrices.in_frames(flat)).amax(dim=(-2, -1)) / self._length

    def dual_norm_of(self, covector: Element) -> Tensor:
        if self._summands is not None:
            return self._summands.dual_norm_of(covector)
        self._whole().check_seen(covector.components)
        return singular_values(self._whole().in_frames(covector.components)).sum(dim=(-2, -1)) * self._length

    def sharp_of(self, covector: Element) -> Vector:
        if self._summands is not None:
            return self._summands.sharp_of(covector)
        matrices = self._whole()
        matrices.check_seen(covector.components)
        step = matrices.out_of_frames(self.method(matrices.in_frames(covector.components)))
        step = step if self._length == 1 else step * self._length
        return Vector._of(covector.lives_in.dual, step.reshape(covector.data.shape))

    def bound_to(self, space: VectorSpace) -> Norm:
        if self.between is not None:
            return super().bound_to(space)
        if self.bias == "separate" and isinstance(space, DirectSum):
            return Max({name: self.on(V) for name, V in space.parts})
        split = apart(space) if self.bias == "separate" else None
        if split is not None:
            weight, bias = (self._like(Euclidean(V), None) for V in split)
            return BiasApart(space, weight, bias, self.expression())
        return self._like(Euclidean(space), None)

    def with_value(self, g: InnerProduct) -> Norm:
        return self.on(g.space) if self.metric is None else self._like(g, self.modulo_kernel)

    def with_forms(self, change: Callable[[Any], Any]) -> Norm:
        between, kernel = (None if form is None else change(form) for form in (self.between, self.modulo_kernel))
        return self._like(between, kernel)

    @property
    def symmetry(self) -> Symmetry:
        if not isinstance(self.between, InnerProduct):
            raise symmetry_unknown(self)
        if self.modulo_kernel is not None and self._summands is not None:
            return self._summands.symmetry
        symmetry = self.between.symmetry ** Fraction(1, 2)
        if self._matrices is None or self.modulo_kernel is None:
            return symmetry
        return symmetry.with_structure(*(s for h in self._matrices.for_kernels() for s in h.symmetry.named))

    def expression(self) -> str:
        said = [] if self.between is None else [f"between={self.between.expression()}"]
        said += [] if self.method == SVD() else [f"method={self.method!r}"]
        said += [] if self.scale == "none" else [f"scale={self.scale!r}"]
        said += [] if self.bias == "joint" else [f"bias={self.bias!r}"]
        said += [] if self.modulo_kernel is None else [f"modulo_kernel={self.modulo_kernel.expression()}"]
        return f"Spectral({', '.join(said)})"

    def forms(self) -> Iterator[InnerProduct]:
        if isinstance(self.between, InnerProduct):
            yield self.between


def length(scale: Scale, rows: int, columns: int) -> float:
    """What a step of a matrix (rows, columns) is multiplied by; "original" and "match_rms_adamw" as in torch's Muon.

    A kernel of a convolution is the matrix (channels out, channels in × taps), a bias apart one of a single column.
    """
    if scale == "original":
        return math.sqrt(max(1.0, rows / columns))
    if scale == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(rows / columns) if scale == "rms" else 1.0


def constant(reference: InnerProduct | RiemannianMetric, space: VectorSpace) -> InnerProduct:
    """The form of a reference that is the same everywhere."""
    if isinstance(reference, EuclideanMetric):
        return Euclidean(space)
    form = reference.form if isinstance(reference, FixedMetric) else reference
    if not isinstance(form, InnerProduct) or form.space != space:
        said = f"one on {form.space}" if isinstance(form, InnerProduct) else f"{reference!r}"
        raise InvalidNorm(
            f"InvalidNorm in Spectral: modulo_kernel is an inner product on {space}, or EuclideanMetric(), or a "
            f"FixedMetric, got {said}."
        )
    return form


def check(between: object, method: object, scale: object, bias: object, modulo_kernel: object) -> None:
    if between is not None and not isinstance(between, (InnerProduct, RiemannianMetric)):
        raise InvalidNorm(
            f"InvalidNorm in Spectral: between is an inner product that is a product of two, g * a, or a metric of "
            f"such values, as KFAC(), got {describe(between)}. Leave it out for the Euclidean forms of the coordinates."
        )
    if method != "exact" and not isinstance(method, MatrixSign):
        raise InvalidNorm(
            f"InvalidNorm in Spectral: method is 'exact' or a MatrixSign as NewtonSchulz(), got {describe(method)}."
        )
    if scale not in get_args(Scale):
        raise InvalidNorm(f"InvalidNorm in Spectral: scale is one of {', '.join(get_args(Scale))}, got {scale!r}.")
    if bias not in ("joint", "separate"):
        raise InvalidNorm(f"InvalidNorm in Spectral: bias is 'joint' or 'separate', got {bias!r}.")
    if between is not None and bias == "separate":
        raise InvalidNorm(
            "InvalidNorm in Spectral: bias='separate' is about the coordinates, and between names other forms. Let "
            "those hold weight and bias apart: Spectral(between=KFAC(bias='separate'))."
        )
    if modulo_kernel is not None and between is None:
        raise InvalidNorm(
            "InvalidNorm in Spectral: modulo_kernel without between. The Euclidean forms of the coordinates have no "
            "kernel; leave it out."
        )
    if modulo_kernel is not None and not isinstance(modulo_kernel, (InnerProduct, RiemannianMetric)):
        raise InvalidNorm(
            f"InvalidNorm in Spectral: modulo_kernel is a form for the kernel of `between`, an inner product or a "
            f"metric as EuclideanMetric(), got {describe(modulo_kernel)}."
        )
