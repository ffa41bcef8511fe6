"""Linear maps between vector spaces, with their transposes as maps between the duals.

A map needs no inner product to be transposed: `φ: V → W` has `φ.transpose: W* → V*`, and `(φ.transpose ξ)(v) = ξ(φ v)`.
An adjoint would need two inner products; there is none here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import actions
from .actions import Action
from .elements import Covector, Element, Vector, check_components, element
from .errors import DegenerateMetric, DtypeMismatch, ShapeMismatch, SpaceMismatch
from .spaces import AffineSpace, DirectSum, OnePoint, VectorSpace, check_vector_space
from .symmetry import Structure, Symmetry

NATURAL = Symmetry.natural()


class LinearMap:
    """`LinearMap(V, W, matrix)`, or `LinearMap.from_functions(V, W, apply, transpose)` for a map without a matrix.

    Laws: `(φ @ ψ)(v) = φ(ψ(v))`; `φ.transpose.transpose` acts as φ; `(φ @ ψ).transpose = ψ.transpose @ φ.transpose`;
    `(φ * ψ)(v.outer(w)) = φ(v).outer(ψ(w))`.
    """

    __slots__ = ("_apply", "_matrix", "_tensors", "_transpose", "codomain", "domain", "name", "symmetry")
    symmetry: Symmetry | None
    """The changes of frame that carry the map along: all where it comes with the spaces or the data (an inclusion, a
    Jacobian), those of an origin or of an inner product that it was made with. None is a matrix from outside, a
    constant without structure. What is built with the map keeps no more."""

    def __init__(
        self,
        domain: VectorSpace,
        codomain: VectorSpace,
        matrix: Tensor,
        name: str = "φ",
        natural: bool | Symmetry | None = False,
    ):
        space = f"{check_vector_space('LinearMap', codomain)} ← {check_vector_space('LinearMap', domain)}"
        check_components("LinearMap", space, (codomain.dim, domain.dim), matrix)
        if matrix.ndim != 2:
            raise ShapeMismatch(
                f"ShapeMismatch in LinearMap: one map has one matrix, got {list(matrix.shape)} for {space}."
            )
        self._set(domain, codomain, actions.Times(matrix), actions.TimesTransposed(matrix), matrix, name, natural)

    def _set(
        self,
        domain: VectorSpace,
        codomain: VectorSpace,
        apply: Action,
        transpose: Action,
        matrix: Tensor | None,
        name: str,
        natural: bool | Symmetry | None,
    ) -> None:
        self.domain, self.codomain, self.name = domain, codomain, name
        self.symmetry = (NATURAL if natural else None) if isinstance(natural, bool) else natural
        self._apply, self._transpose, self._matrix = apply, transpose, matrix
        self._tensors: tuple[Tensor, ...] = () if matrix is None else (matrix,)

    def _with_tensors_of(self, *maps: LinearMap) -> LinearMap:
        """Of a map made of others: it is of their dtype, on their device."""
        self._tensors = tuple(t for phi in maps for t in phi._tensors)
        return self

    def _check_kind(self, call: str, other: object, tensors: tuple[Tensor, ...]) -> None:
        """That what meets the map is of its dtype, on its device; a map without tensors of its own takes all."""
        for t in tensors:
            for mine in self._tensors:
                if mine.dtype != t.dtype or mine.device != t.device:
                    raise DtypeMismatch(
                        f"DtypeMismatch in {call}: {self} with {other}: {mine.dtype} on {mine.device}, {t.dtype} on "
                        f"{t.device}. Bring one to the other with .to(...): an element, or a map's matrix."
                    )

    @classmethod
    def from_functions(
        cls,
        domain: VectorSpace,
        codomain: VectorSpace,
        apply: Action,
        transpose: Action,
        name: str = "φ",
        natural: bool | Symmetry | None = False,
    ) -> LinearMap:
        """A map given by what it does to flat components [..., dim], and what its transpose does."""
        for space in (domain, codomain):
            check_vector_space("LinearMap.from_functions", space)
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
        natural: bool | Symmetry | None,
    ) -> LinearMap:
        built = object.__new__(cls)
        built._set(domain, codomain, apply, transpose, matrix, name, natural)
        return built

    @classmethod
    def identity(cls, V: VectorSpace) -> LinearMap:
        return cls._build(check_vector_space("identity", V), V, actions.Same(), actions.Same(), None, "id", True)

    @classmethod
    def inclusion(cls, whole: DirectSum, name: str) -> LinearMap:
        """A summand into its direct sum."""
        if not isinstance(whole, DirectSum):
            raise SpaceMismatch(
                f"SpaceMismatch in LinearMap.inclusion: expected a direct sum, got {whole!r}. Give a DirectSum."
            )
        summand, where = whole[name], whole.slices[name]
        pad, cut = actions.Pad(where.start, whole.dim - where.stop), actions.Cut(where.start, where.stop)
        return cls._build(summand, whole, pad, cut, None, f"inclusion of {name}", True)

    @classmethod
    def projection(cls, whole: DirectSum, name: str) -> LinearMap:
        """A direct sum onto one summand."""
        back = cls.inclusion(whole, name)
        return cls._build(whole, whole[name], back._transpose, back._apply, None, f"projection on {name}", True)

    @classmethod
    def translations(cls, affine: AffineSpace) -> LinearMap:
        """The translations into the hull, v as (v, 0). Its transpose takes an affine functional to its linear part."""
        V = affine.translations
        return cls._build(V, affine.hull, actions.Pad(0, 1), actions.Cut(0, V.dim), None, f"inclusion of {V}", True)

    @classmethod
    def height(cls, affine: AffineSpace) -> LinearMap:
        """The hull onto ℝ, 1 on points and 0 on translations. Its transpose takes a number to the constant function."""
        last, zeros = actions.Cut(affine.dim, affine.dim + 1), actions.Pad(affine.dim, 0)
        return cls._build(affine.hull, OnePoint.hull, last, zeros, None, f"1 of {affine}", True)

    @classmethod
    def at(cls, affine: AffineSpace, point: Tensor | None = None, name: str = "", natural: bool = False) -> LinearMap:
        """ℝ into the hull along a point; its transpose evaluates functionals there. Without a point, at the origin.

        A point that is data, a mean say, is `natural`: it moves with the frames.
        """
        label, p, symmetry = _place(affine, point, name, natural)
        return cls._build(
            OnePoint.hull, affine.hull, actions.AlongPoint(p), actions.ValueAt(p), None, f"at {label}", symmetry
        )

    @classmethod
    def difference(
        cls, affine: AffineSpace, point: Tensor | None = None, name: str = "", natural: bool = False
    ) -> LinearMap:
        """The hull onto the translations along a point p, a ↦ a - p. Its transpose makes ℓ into the function ℓ(a - p).

        Without a point it is the origin: the weight apart from the bias.
        """
        label, p, symmetry = _place(affine, point, name, natural)
        V = affine.translations
        return cls._build(affine.hull, V, actions.LessPoint(p), actions.ZeroAt(p), None, f"from {label}", symmetry)

    @property
    def natural(self) -> bool:
        """Whether all changes of frame carry it along."""
        return self.symmetry == NATURAL

    def __call__(self, v: Element) -> Vector | Covector:
        if not isinstance(v, Element) or (v.lives_in is not self.domain and v.lives_in != self.domain):
            raise SpaceMismatch(
                f"SpaceMismatch in {self.name}: {self} takes an element of {self.domain}, got {v}. "
                f"Covectors go the other way: {self.name}.pullback(covector)."
            )
        x = v.components
        self._check_kind(self.name, v, (x,))
        return element(self.codomain, self._apply(x))

    def pullback(self, covector: Element) -> Vector | Covector:
        """The covector `v ↦ ξ(φ v)` on the domain."""
        if not isinstance(covector, Element) or covector.lives_in != self.codomain.dual:
            raise SpaceMismatch(
                f"SpaceMismatch in {self.name}.pullback: expected a covector on {self.codomain}, got {covector}."
            )
        x = covector.components
        self._check_kind(f"{self.name}.pullback", covector, (x,))
        return element(self.domain.dual, self._transpose(x))

    @property
    def transpose(self) -> LinearMap:
        matrix = None if self._matrix is None else self._matrix.mT
        domain, codomain = self.codomain.dual, self.domain.dual
        name, symmetry = f"{self.name}ᵀ", self.symmetry
        turned = self._build(domain, codomain, self._transpose, self._apply, matrix, name, symmetry)
        return turned._with_tensors_of(self)

    def __matmul__(self, other: LinearMap) -> LinearMap:
        """Composition, `(φ @ ψ)(v) = φ(ψ(v))`."""
        if not isinstance(other, LinearMap):
            raise SpaceMismatch(
                f"SpaceMismatch in @: {self} and {other}. Linear maps are composed; one is applied as {self.name}(v)."
            )
        if other.codomain != self.domain:
            raise SpaceMismatch(
                f"SpaceMismatch in @: {self} cannot follow {other}: {self.domain} is not {other.codomain}."
            )
        self._check_kind("@", other, other._tensors)
        matrix = self._matrix @ other._matrix if self._matrix is not None and other._matrix is not None else None
        apply, transpose = actions.Then(other._apply, self._apply), actions.Then(self._transpose, other._transpose)
        name, symmetry = f"{self.name} @ {other.name}", _of_both(self.symmetry, other.symmetry)
        composed = self._build(other.domain, self.codomain, apply, transpose, matrix, name, symmetry)
        return composed._with_tensors_of(self, other)

    def __mul__(self, other: LinearMap) -> LinearMap:
        """The tensor product of two maps. Only one of them may be of families: members are not told apart in a map."""
        for mine, its in ((self.domain, other.domain), (self.codomain, other.codomain)):
            if mine.levels and its.levels:
                raise SpaceMismatch(
                    f"SpaceMismatch in *: {self} and {other}: families multiply member by member, and a map may mix "
                    f"the members. Multiply the maps of single members."
                )
        self._check_kind("*", other, other._tensors)
        domains, codomains = (self.domain, other.domain), (self.codomain, other.codomain)
        apply = actions.OnBoth((self._apply, other._apply), domains, codomains)
        transpose = actions.OnBoth((self._transpose, other._transpose), codomains, domains)
        domain, codomain = domains[0] * domains[1], codomains[0] * codomains[1]
        name, symmetry = f"{self.name} * {other.name}", _of_both(self.symmetry, other.symmetry)
        return self._build(domain, codomain, apply, transpose, None, name, symmetry)._with_tensors_of(self, other)

    def matrix(self, like: Tensor | None = None) -> Tensor:
        """The matrix, (dim of the codomain, dim of the domain), in the dtype and on the device of `like`."""
        if self._matrix is not None:
            return self._matrix
        eye = (
            torch.eye(self.domain.dim)
            if like is None
            else torch.eye(self.domain.dim, dtype=like.dtype, device=like.device)
        )
        return self._apply(eye).mT

    def inverse(self, like: Tensor | None = None) -> LinearMap:
        """The inverse of an isomorphism, through its matrix."""
        matrix = self.matrix(like)
        if self.domain.dim != self.codomain.dim:
            raise SpaceMismatch(f"SpaceMismatch in inverse: {self} is not between spaces of one dimension.")
        inverse, failed = torch.linalg.inv_ex(matrix)
        if failed:
            raise DegenerateMetric(f"DegenerateMetric in inverse: {self} is singular.", self.domain)
        symmetry = None if self.symmetry is None else self.symmetry**-1
        return LinearMap(self.codomain, self.domain, inverse, f"{self.name}⁻¹", symmetry)

    def __repr__(self) -> str:
        return f"LinearMap({self.domain!r}, {self.codomain!r}, name={self.name!r})"

    def __str__(self) -> str:
        return f"{self.name} : {self.codomain} ← {self.domain}"


def _of_both(s: Symmetry | None, t: Symmetry | None) -> Symmetry | None:
    if s is None or t is None:
        return None
    return s if t is NATURAL else s * t


def _place(affine: AffineSpace, point: Tensor | None, name: str, natural: bool) -> tuple[str, Tensor, Symmetry]:
    """What to call a point, its components, and what it names."""
    label = name or ("the origin" if point is None else "a point")
    where = torch.zeros(affine.dim) if point is None else check_components("LinearMap", affine, (affine.dim,), point)
    known_as = {} if point is None else {"name": label}
    origin = Structure(affine.name, "origin", source=f"{label} of {affine}", **known_as)
    return label, where, NATURAL if natural else Symmetry.naming(origin)
