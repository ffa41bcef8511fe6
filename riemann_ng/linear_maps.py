"""Linear maps between vector spaces, with their transposes as maps between the duals.

A map needs no inner product to be transposed: `φ: V → W` has `φ.transpose: W* → V*`, and `(φ.transpose ξ)(v) = ξ(φ v)`.
An adjoint would need two inner products; there is none here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .elements import Covector, Element, Vector, check_components, element
from .errors import DegenerateMetric, ShapeMismatch, SpaceMismatch
from .spaces import DirectSum, VectorSpace

Action = Callable[[Tensor], Tensor]
"""A map on flat components, [..., dim of the domain] to [..., dim of the codomain]."""


class LinearMap:
    """`LinearMap(V, W, matrix)`, or `LinearMap.from_functions(V, W, apply, transpose)` for a map without a matrix.

    Laws: `(φ @ ψ)(v) = φ(ψ(v))`; `φ.transpose.transpose` acts as φ; `(φ @ ψ).transpose = ψ.transpose @ φ.transpose`;
    `(φ * ψ)(v.outer(w)) = φ(v).outer(ψ(w))`.
    """

    __slots__ = ("_apply", "_matrix", "_transpose", "codomain", "domain", "name", "natural")
    natural: bool
    """Whether the map comes with the spaces or the data, so that a change of frame carries it along (an inclusion, a
    Jacobian). A matrix from outside is a constant: what is built with it keeps fewer symmetries."""

    def __init__(
        self, domain: VectorSpace, codomain: VectorSpace, matrix: Tensor, name: str = "φ", natural: bool = False
    ):
        space = f"{codomain} ← {domain}"
        check_components("LinearMap", space, (codomain.dim, domain.dim), matrix)
        if matrix.ndim != 2:
            raise ShapeMismatch(f"ShapeMismatch in LinearMap: one map has one matrix, got {list(matrix.shape)} for {space}.")
        self._set(domain, codomain, lambda x: x @ matrix.mT, lambda y: y @ matrix, matrix, name, natural)

    def _set(
        self,
        domain: VectorSpace,
        codomain: VectorSpace,
        apply: Action,
        transpose: Action,
        matrix: Tensor | None,
        name: str,
        natural: bool,
    ) -> None:
        self.domain, self.codomain, self.name, self.natural = domain, codomain, name, natural
        self._apply, self._transpose, self._matrix = apply, transpose, matrix

    @classmethod
    def from_functions(
        cls,
        domain: VectorSpace,
        codomain: VectorSpace,
        apply: Action,
        transpose: Action,
        name: str = "φ",
        natural: bool = False,
    ) -> LinearMap:
        """A map given by what it does to flat components [..., dim], and what its transpose does."""
        return cls._build(domain, codomain, apply, transpose, None, name, natural)

    @classmethod
    def _build(
        cls,
        domain: VectorSpace,
        codomain: VectorSpace,
        apply: Action,
        transpose: Action,
        matrix: Tensor | None,
        name: str,
        natural: bool,
    ) -> LinearMap:
        built = object.__new__(cls)
        built._set(domain, codomain, apply, transpose, matrix, name, natural)
        return built

    @classmethod
    def identity(cls, V: VectorSpace) -> LinearMap:
        return cls._build(V, V, lambda x: x, lambda y: y, None, "id", True)

    @classmethod
    def inclusion(cls, whole: DirectSum, name: str) -> LinearMap:
        """A summand into its direct sum."""
        where, dim = whole.slices[name], whole.dim

        def apply(x: Tensor) -> Tensor:
            return torch.nn.functional.pad(x, (where.start, dim - where.stop))

        return cls._build(whole[name], whole, apply, lambda y: y[..., where], None, f"inclusion of {name}", True)

    @classmethod
    def projection(cls, whole: DirectSum, name: str) -> LinearMap:
        """A direct sum onto one summand."""
        back = cls.inclusion(whole, name)
        return cls._build(whole, whole[name], back._transpose, back._apply, None, f"projection on {name}", True)

    def __call__(self, v: Element) -> Vector | Covector:
        if not isinstance(v, Element) or (v.lives_in is not self.domain and v.lives_in != self.domain):
            raise SpaceMismatch(
                f"SpaceMismatch in {self.name}: {self} takes an element of {self.domain}, got {v}. "
                f"Covectors go the other way: {self.name}.pullback(covector)."
            )
        return element(self.codomain, self._apply(v.components))

    def pullback(self, covector: Element) -> Vector | Covector:
        """The covector `v ↦ ξ(φ v)` on the domain."""
        if not isinstance(covector, Element) or covector.lives_in != self.codomain.dual:
            raise SpaceMismatch(
                f"SpaceMismatch in {self.name}.pullback: expected a covector on {self.codomain}, got {covector}."
            )
        return element(self.domain.dual, self._transpose(covector.components))

    @property
    def transpose(self) -> LinearMap:
        matrix = None if self._matrix is None else self._matrix.mT
        domain, codomain = self.codomain.dual, self.domain.dual
        return self._build(domain, codomain, self._transpose, self._apply, matrix, f"{self.name}ᵀ", self.natural)

    def __matmul__(self, other: LinearMap) -> LinearMap:
        """Composition, `(φ @ ψ)(v) = φ(ψ(v))`."""
        if other.codomain != self.domain:
            raise SpaceMismatch(f"SpaceMismatch in @: {self} cannot follow {other}: {self.domain} is not {other.codomain}.")
        matrix = self._matrix @ other._matrix if self._matrix is not None and other._matrix is not None else None

        def apply(x: Tensor) -> Tensor:
            return self._apply(other._apply(x))

        def transpose(y: Tensor) -> Tensor:
            return other._transpose(self._transpose(y))

        name, natural = f"{self.name} @ {other.name}", self.natural and other.natural
        return self._build(other.domain, self.codomain, apply, transpose, matrix, name, natural)

    def __mul__(self, other: LinearMap) -> LinearMap:
        """The tensor product of two maps."""
        domain, codomain = self.domain * other.domain, self.codomain * other.codomain

        def on_both(first: Action, second: Action, dims: tuple[int, int], x: Tensor) -> Tensor:
            x = second(x.unflatten(-1, dims))
            return first(x.mT).mT.flatten(-2)

        def apply(x: Tensor) -> Tensor:
            return on_both(self._apply, other._apply, (self.domain.dim, other.domain.dim), x)

        def transpose(y: Tensor) -> Tensor:
            return on_both(self._transpose, other._transpose, (self.codomain.dim, other.codomain.dim), y)

        name, natural = f"{self.name} * {other.name}", self.natural and other.natural
        return self._build(domain, codomain, apply, transpose, None, name, natural)

    def matrix(self, like: Tensor | None = None) -> Tensor:
        """The matrix, (dim of the codomain, dim of the domain), in the dtype and on the device of `like`."""
        if self._matrix is not None:
            return self._matrix
        options = {} if like is None else {"dtype": like.dtype, "device": like.device}
        return self._apply(torch.eye(self.domain.dim, **options)).mT  # type: ignore[arg-type]

    def inverse(self, like: Tensor | None = None) -> LinearMap:
        """The inverse of an isomorphism, through its matrix."""
        matrix = self.matrix(like)
        if self.domain.dim != self.codomain.dim:
            raise SpaceMismatch(f"SpaceMismatch in inverse: {self} is not between spaces of one dimension.")
        inverse, failed = torch.linalg.inv_ex(matrix)
        if failed:
            raise DegenerateMetric(f"DegenerateMetric in inverse: {self} is singular.", self.domain)
        return LinearMap(self.codomain, self.domain, inverse, f"{self.name}⁻¹", self.natural)

    def __repr__(self) -> str:
        return f"LinearMap({self.domain!r}, {self.codomain!r}, name={self.name!r})"

    def __str__(self) -> str:
        return f"{self.name} : {self.codomain} ← {self.domain}"
