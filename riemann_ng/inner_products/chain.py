"""Gaussian chains: forms on a direct sum whose inverse couples neighbours alone.

Given forms Fᵢ on the summands and what stands between neighbours, Fᵢ,ᵢ₊₁, there is one form that has these blocks and
an inverse without any other coupling: that of a Markov chain with these moments (Martens & Grosse 2015). With
Ψᵢ = Fᵢ,ᵢ₊₁ Fᵢ₊₁⁻¹, the regression of one summand on the next, and Ξ = 1 - Ψ,

    F⁻¹ = Ξᵀ Λ Ξ,   Λᵢ⁻¹ = Fᵢ - Ψᵢ Fᵢ₊₁ Ψᵢᵀ.

Between products, Fᵢ = Gᵢ ⊗ Aᵢ and Fᵢ,ᵢ₊₁ = G× ⊗ A×, so is Ψ, and Λᵢ is diagonal where Gᵢ and Aᵢ are together with what
their neighbours explain of them: 1 - d_G d_Aᵀ. It vanishes where a neighbour explains all, as beside a linear layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DegenerateMetric, SpaceMismatch
from ..factorizations import Factorization, FrameFactor, rounding_unit
from ..factorizations.base import RowFactorization
from ..solvers import Structure
from ..spaces import DirectSum, VectorSpace
from ..symmetry import Symmetry
from .base import InnerProduct, State, kind
from .damping import FactorsDampable, Split, damp_factors
from .direct_sum import summand_named
from .kronecker import Kronecker

TOLD = 0.6
"""What is left is told from nothing above this power of the rounding unit, 4e-10 in double precision.

It is one minus a number whose error is that of the factors' inverses.
"""


@dataclass(frozen=True)
class Link:
    """What stands between two neighbours: moments of the one's S with the other's, and of their inputs."""

    G: Tensor
    A: Tensor

    def lerp(self, other: Link, weight: float) -> Link:
        return Link(self.G.lerp(other.G, weight), self.A.lerp(other.A, weight))


@dataclass(frozen=True)
class Regression:
    """Ψ: V ↦ Ψ_G V Ψ_Aᵀ, from the next summand to this one."""

    G: Tensor
    A: Tensor

    def __call__(self, V: Tensor) -> Tensor:
        return self.G @ V @ self.A.mT

    def transpose(self, V: Tensor) -> Tensor:
        return self.G.mT @ V @ self.A


class ChainFactor(RowFactorization):
    """Ξ and the factorizations of what is left of each summand."""

    name = "chain"

    def __init__(self, space: DirectSum, rest: Mapping[str, Factorization], regressions: Mapping[str, Regression]):
        self.space, self.rest, self.regressions = space, dict(rest), dict(regressions)
        self.dim, self.paths = space.dim, list(space)

    def _apart(self, x: Tensor) -> dict[str, Tensor]:
        return {path: x[..., where] for path, where in self.space.slices.items()}

    def _matrix(self, path: str, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], *self.space[path].shape)

    def _together(self, parts: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([parts[path] for path in self.paths], -1)

    def lessened(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Ξ."""
        out = dict(parts)
        for path, following in zip(self.paths, self.paths[1:], strict=False):
            if path in self.regressions:
                told = self.regressions[path](self._matrix(following, parts[following]))
                out[path] = parts[path] - told.flatten(-2)
        return out

    def lessened_back(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Ξᵀ."""
        out = dict(parts)
        for path, following in zip(self.paths, self.paths[1:], strict=False):
            if path in self.regressions:
                told = self.regressions[path].transpose(self._matrix(path, parts[path]))
                out[following] = parts[following] - told.flatten(-2)
        return out

    def undone(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Ξ⁻¹."""
        out = dict(parts)
        for path, following in reversed(list(zip(self.paths, self.paths[1:], strict=False))):
            if path in self.regressions:
                told = self.regressions[path](self._matrix(following, out[following]))
                out[path] = parts[path] + told.flatten(-2)
        return out

    def undone_back(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Ξ⁻ᵀ."""
        out = dict(parts)
        for path, following in zip(self.paths, self.paths[1:], strict=False):
            if path in self.regressions:
                told = self.regressions[path].transpose(self._matrix(path, out[path]))
                out[following] = parts[following] + told.flatten(-2)
        return out

    def solve(self, x: Tensor) -> Tensor:
        parts = self.lessened(self._apart(x))
        return self._together(self.lessened_back({path: f.solve(parts[path]) for path, f in self.rest.items()}))

    def frame(self, z: Tensor) -> Tensor:
        parts = self._apart(z)
        return self._together(self.lessened_back({path: f.frame(parts[path]) for path, f in self.rest.items()}))

    def coframe(self, x: Tensor) -> Tensor:
        parts = self.lessened(self._apart(x))
        return self._together({path: f.coframe(parts[path]) for path, f in self.rest.items()})

    def for_many_solves(self) -> Factorization:
        rest = {name: factor.for_many_solves() for name, factor in self.rest.items()}
        return ChainFactor(self.space, rest, self.regressions)

    @property
    def logdet(self) -> Tensor:
        return torch.stack([f.logdet.double() for f in self.rest.values()]).sum()


@kind("chain")
class Chain(FactorsDampable):
    """The chain with these forms on the summands, and these links: `links[name]` is between it and the next one.

    Linked summands are products of two factors, S ⊗ Â*, and no families; one that is not linked stands by itself. The
    moments of links are taken to be data, of the same samples as those of the forms, so that they move with every frame
    and nothing is explained by more than all. `damp_factors` damps the forms before anything is regressed.
    """

    space: DirectSum

    def __init__(self, parts: Mapping[str, InnerProduct], links: Mapping[str, Link]):
        self.parts, self.links = dict(parts), dict(links)
        self.space = DirectSum([(name, g.space) for name, g in parts.items()])
        names = list(self.parts)
        for name, link in self.links.items():
            following = names[names.index(name) + 1] if name in names[:-1] else ""
            here, there = self.parts.get(name), self.parts.get(following)
            if not isinstance(here, Kronecker) or not isinstance(there, Kronecker):
                raise SpaceMismatch(
                    f"SpaceMismatch in Chain: the link of {name!r} is between {here!r} and {there!r}, and links stand "
                    f"between products of two factors, one after the other."
                )
            shapes = [(g.space.dim, h.space.dim) for g, h in zip(here.factors, there.factors, strict=True)]
            if [tuple(link.G.shape), tuple(link.A.shape)] != shapes or len(shapes) != 2:
                raise SpaceMismatch(
                    f"SpaceMismatch in Chain: the link of {name!r} has matrices {list(link.G.shape)} and "
                    f"{list(link.A.shape)}, expected {' and '.join(str(list(s)) for s in shapes)}."
                )

    # The factors of linked summands

    def _factors(self, name: str) -> tuple[InnerProduct, InnerProduct]:
        g = self.parts[name]
        assert isinstance(g, Kronecker)
        return g.factors[0], g.factors[1]

    def _following(self, name: str) -> str:
        names = list(self.parts)
        return names[names.index(name) + 1]

    def _regression(self, name: str) -> Regression:
        G, A = (f.factorization() for f in self._factors(self._following(name)))
        return Regression(G.solve(self.links[name].G), A.solve(self.links[name].A))

    def direct_factorization(self, method: str) -> Factorization:
        rest: dict[str, Factorization] = {}
        for name, part in self.parts.items():
            with summand_named(name):
                rest[name] = self._unexplained(name) if name in self.links else part.factorization()
        return ChainFactor(self.space, rest, {name: self._regression(name) for name in self.links})

    def _unexplained(self, name: str) -> FrameFactor:
        """What the next summand leaves of this one, diagonal in a frame of both factors."""
        link, following = self.links[name], self._following(name)
        axes, explained = [], []
        for f, g, cross in zip(self._factors(name), self._factors(following), (link.G, link.A), strict=True):
            here, there = f.factorization(), g.factorization()
            white = here.coframe(there.coframe(cross).mT).mT.double()  # E_iᵀ F_× E_j
            values, vectors = torch.linalg.eigh(white @ white.mT)
            axes.append(here.frame(vectors.mT.to(cross)).mT.contiguous())
            explained.append(values.clamp(0, 1).to(cross))
        left = 1 - explained[0][:, None] * explained[1]
        told = left > rounding_unit(left.dtype) ** TOLD  # of one, and not of the largest, which may be nothing too
        factor = FrameFactor(axes, torch.where(told, left, 0.0))
        if factor.rank < factor.dim:
            raise DegenerateMetric(
                f"DegenerateMetric in Chain: {following!r} explains all of {name!r} in {factor.dim - factor.rank} "
                f"directions, as it does where what is between them is linear. Damp the factors before they are "
                f"regressed on each other: metric.damp_factors(λ, reference), or damp_factors(g, λ, h).",
                self.space[name],
                factor.rank,
            )
        return factor

    # The form

    def flat_components(self, x: Tensor) -> Tensor:
        """Ξ⁻¹ Λ⁻¹ Ξ⁻ᵀ, and nothing of it inverted but the forms that are regressed on."""
        chain = ChainFactor(self.space, {}, {name: self._regression(name) for name in self.links})
        parts = chain.undone_back(chain._apart(x))
        out = {}
        for name, y in parts.items():
            out[name] = self.parts[name].flat_components(y)
            if name in self.links:
                psi, (G, A) = chain.regressions[name], self._factors(self._following(name))
                V = psi.transpose(chain._matrix(name, y))
                told = psi(G.flat_components(A.flat_components(V).mT).mT)
                out[name] = out[name] - told.flatten(-2)
        return chain._together(chain.undone(out))

    def tensors(self) -> Iterator[Tensor]:
        for g in self.parts.values():
            yield from g.tensors()
        for link in self.links.values():
            yield from (link.G, link.A)

    @property
    def structure(self) -> Structure:
        parts = [g.structure for g in self.parts.values()]
        sides = [sum(self.space[name].shape) for name in self.links]
        direct = sum(p.direct or 0.0 for p in parts) + sum(12.0 * side**3 for side in sides)
        apply = sum(p.apply for p in parts) + sum(6.0 * self.space[name].dim * s for name, s in zip(
            self.links, sides, strict=True))  # fmt: skip
        return Structure("chain", self.space.dim, direct, apply, sum(p.rank for p in parts))

    @property
    def symmetry(self) -> Symmetry:
        return Symmetry.direct_sum([g.symmetry for g in self.parts.values()])

    def expression(self) -> str:
        return f"chain({', '.join(f'{name}: {g.expression()}' for name, g in self.parts.items())})"

    def factors_damped(self, damping: float | Tensor, reference: InnerProduct, split: Split) -> InnerProduct:
        references = reference.summands()
        if references is None:
            raise SpaceMismatch(f"SpaceMismatch in damp_factors: {reference!r} is no direct sum of references.")
        damped = {name: damp_factors(g, damping, references[name], split) for name, g in self.parts.items()}
        return Chain(damped, self.links)

    def blended(self, other: InnerProduct, weight: float) -> InnerProduct:
        if not isinstance(other, Chain) or set(self.links) != set(other.links):
            return super().blended(other, weight)
        parts = {name: g.blend(other.parts[name], weight) for name, g in self.parts.items()}
        return Chain(parts, {name: link.lerp(other.links[name], weight) for name, link in self.links.items()})

    def own_state(self) -> State:
        return {
            "parts": {name: g.state() for name, g in self.parts.items()},
            "links": {name: [link.G, link.A] for name, link in self.links.items()},
        }

    @classmethod
    def restore(cls, space: VectorSpace, state: State) -> Chain:
        if not isinstance(space, DirectSum) or set(space) != set(state["parts"]):
            raise SpaceMismatch(f"SpaceMismatch in from_state: the state of a chain does not fit {space}.")
        parts = {name: InnerProduct.from_state(space[name], state["parts"][name]) for name in space}
        return cls(parts, {name: Link(*pair) for name, pair in state["links"].items()})
