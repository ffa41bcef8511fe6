"""Norms of whole networks, derived from the norms of their layers: masses, sensitivities, and three rules.

A module f has a norm on its weights, a `mass` (its share of the change that a step may make) and a `sensitivity` (a
bound on its slope in its input). The norms are such that ‖∂f/∂w · Δw‖ <= ‖Δw‖ where weights, and the inputs of every
layer, have at most the size 1: so let residual sums be averages. With m the sum of the masses:

    f2 @ f1             max(s2 m/m1 ‖w1‖, m/m2 ‖w2‖)    sensitivity s2 s1      first f1, then f2
    concatenate(f, g)   max(m/m1 ‖w1‖, m/m2 ‖w2‖)       sensitivity s1 + s2    (f(x), g(x)); f + g adds them up
    c * f               |c| ‖w‖                         sensitivity |c| s

So the norm of a network is the largest of its layers' norms, each times a factor that these rules derive, and its
`sharp` is the layers' own, each within the budget 1/factor. Laws: `@` and `concatenate` are associative;
`c * (f @ g) == (c * f) @ g`; of the bound on the first-order change of the output, layer k has the share mass_k/m.
(J. Bernstein and L. Newhouse, Modular duality in deep learning, 2024.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from ..elements import Element, Vector, describe
from ..errors import SpaceMismatch
from ..inner_products import InnerProduct
from ..spaces import DirectSum, Family, VectorSpace, tensor_product
from ..symmetry import Symmetry
from .base import InvalidNorm, Norm, Scaled, positive
from .composed import Max, PerSlice
from .from_inner_product import root_mean_square
from .matrix_sign import MatrixSign
from .spectral import Spectral

MAKE_MODULES = "Modules are made with ModularNorm.atom(name, norm)."


class ModularNorm(Norm):
    """A norm on a direct sum of layers, with `mass`, `sensitivity` and the `budgets` that its composition derives.

    Made of atoms (`Linear`, `Embed`, `Conv`, or any norm: `ModularNorm.atom(name, norm)`) and of `Bond`s, which have
    no weights, by `@`, `+`, `concatenate` and multiples. The summands stand in the order of evaluation.
    """

    def __init__(
        self, norms: Mapping[str, Norm], factors: Mapping[str, float], mass: float, sensitivity: float, text: str
    ):
        self.norms, self.factors, self.text = dict(norms), dict(factors), text
        self.mass, self.sensitivity = mass, sensitivity
        self._max = Max({name: factors[name] * norm for name, norm in norms.items()}) if norms else None
        self.space = None if self._max is None else self._max.space

    @classmethod
    def atom(
        cls, name: str, norm: Norm, mass: float = 1.0, sensitivity: float = 1.0, text: str | None = None
    ) -> ModularNorm:
        """One layer: ‖∂f/∂w · Δw‖ <= norm(Δw) for inputs of size 1, and its slope is at most `sensitivity`."""
        if not isinstance(norm, Norm):
            raise InvalidNorm(
                f"InvalidNorm in ModularNorm.atom: the norm of {name!r} is {describe(norm)}. Give a Norm."
            )
        mass, sensitivity = positive(name, "the mass", mass), positive(name, "the sensitivity", sensitivity)
        return cls({name: norm}, {name: 1.0}, mass, sensitivity, text or f"atom({name!r}, {norm.expression()})")

    @property
    def budgets(self) -> dict[str, float]:
        """The norm of each layer's part in a step of norm 1."""
        return {name: 1 / factor for name, factor in self.factors.items()}

    def with_mass(self, mass: float) -> ModularNorm:
        """The same module with another share in what it becomes a part of."""
        mass = positive("with_mass", "the mass", mass)
        if self._max is None:
            raise InvalidNorm(f"InvalidNorm in with_mass: {self.text} has no weights, so its mass is 0.")
        return ModularNorm(self.norms, self.factors, mass, self.sensitivity, f"({self.text}).with_mass({mass:.4g})")

    def __matmul__(self, inner: ModularNorm) -> ModularNorm:
        if not isinstance(inner, ModularNorm):
            raise InvalidNorm(f"InvalidNorm in @: {self.text} after {describe(inner)}. {MAKE_MODULES}")
        text = f"{self.text} @ {inner.text}"
        return _joined([(inner, self.sensitivity), (self, 1.0)], self.sensitivity * inner.sensitivity, text)

    def __add__(self, other: ModularNorm) -> ModularNorm:
        """The sum of what the two give on the same input."""
        if not isinstance(other, ModularNorm):
            raise InvalidNorm(f"InvalidNorm in +: {self.text} and {describe(other)}. {MAKE_MODULES}")
        return _joined(
            [(self, 1.0), (other, 1.0)], self.sensitivity + other.sensitivity, f"({self.text} + {other.text})"
        )

    def __rmul__(self, c: float) -> ModularNorm:
        """The module with its output multiplied by c."""
        size = positive("*", f"the size of a multiple of {self.text}", abs(c))
        factors = {name: size * factor for name, factor in self.factors.items()}
        text = f"{float(c):.4g} * {self.text}"
        return ModularNorm(self.norms, factors, self.mass, size * self.sensitivity, text)

    __mul__ = __rmul__

    def _whole(self) -> Max:
        assert self._max is not None
        return self._max

    def on(self, space: VectorSpace) -> Norm:
        return self if self.space == space else self.bound_to(space)

    def summands(self) -> dict[str, Norm] | None:
        return None if self._max is None else self._max.summands()

    def norm_of(self, v: Element) -> Tensor:
        return self._whole().norm_of(v)

    def dual_norm_of(self, covector: Element) -> Tensor:
        return self._whole().dual_norm_of(covector)

    def sharp_of(self, covector: Element) -> Vector:
        return self._whole().sharp_of(covector)

    def bound_to(self, space: VectorSpace) -> Norm:
        if not isinstance(space, DirectSum) or set(space.summands) != set(self.norms):
            names = f"a direct sum of {', '.join(map(repr, self.norms))}" if self.norms else "no space: no weights"
            raise SpaceMismatch(f"SpaceMismatch in on: {self.text} is a norm on {names}; got {space}.")
        norms = {name: self.norms[name].on(V) for name, V in space.parts}
        return ModularNorm(norms, self.factors, self.mass, self.sensitivity, self.text)

    @property
    def symmetry(self) -> Symmetry:
        return Symmetry.natural() if self._max is None else self._max.symmetry

    def expression(self) -> str:
        return self.text

    def forms(self) -> Iterator[InnerProduct]:
        for norm in self.norms.values():
            yield from norm.forms()


def _joined(parts: list[tuple[ModularNorm, float]], sensitivity: float, text: str) -> ModularNorm:
    """Modules side by side, each with what multiplies its norm besides its share of the mass."""
    mass = sum(module.mass for module, _ in parts)
    norms: dict[str, Norm] = {}
    factors: dict[str, float] = {}
    for module, times in parts:
        for name, norm in module.norms.items():
            if name in norms:
                raise InvalidNorm(
                    f"InvalidNorm in {text}: two layers are named {name!r}. Name them apart: each has its own."
                )
            norms[name], factors[name] = norm, times * mass / module.mass * module.factors[name]
    return ModularNorm(norms, factors, mass, sensitivity, text)


def concatenate(*modules: ModularNorm) -> ModularNorm:
    """The modules side by side on the same input, their outputs as a tuple, whose size is the sum of their sizes."""
    if not modules or not all(isinstance(module, ModularNorm) for module in modules):
        given = ", ".join(map(describe, modules)) or "none"
        raise InvalidNorm(f"InvalidNorm in concatenate: expected modules, got {given}. {MAKE_MODULES}")
    text = f"concatenate({', '.join(module.text for module in modules)})"
    return _joined([(module, 1.0) for module in modules], sum(module.sensitivity for module in modules), text)


def Bond(sensitivity: float = 1.0) -> ModularNorm:
    """A map without weights, whose slope is at most `sensitivity`: ReLU, tanh, the identity of a residual sum."""
    return ModularNorm({}, {}, 0.0, positive("Bond", "the sensitivity", sensitivity), f"Bond({sensitivity:.4g})")


def Linear(name: str, space: VectorSpace, mass: float = 1.0, method: MatrixSign | None = None) -> ModularNorm:
    """W ↦ W x on Hom(V, S): the operator norm for root mean squares, `sharp(ξ) = √(dim S / dim V) msgn(ξ)`."""
    return ModularNorm.atom(name, rms_operator_norm(space, method, f"Linear({name!r})"), mass, text=f"Linear({name!r})")


def Embed(name: str, space: VectorSpace, mass: float = 1.0) -> ModularNorm:
    """Columns of a table, on Hom(tokens, S): the largest root mean square of one; `sharp` brings each of them to 1."""
    if len(space.factors) < 2:
        raise InvalidNorm(f"InvalidNorm in Embed({name!r}): expected Hom(tokens, S), got {space}.")
    *rest, tokens = space.factors
    return ModularNorm.atom(
        name, PerSlice(root_mean_square(tensor_product(*rest)), tokens), mass, text=f"Embed({name!r})"
    )


def Conv(
    name: str, space: VectorSpace, taps: VectorSpace, mass: float = 1.0, method: MatrixSign | None = None
) -> ModularNorm:
    """A convolution, on S ⊗ C* ⊗ taps: each tap a `Linear`, and in `sharp` each one over the number of taps.

    With k² taps at 1/k² each, their sum stays within the norm 1. The factor `taps` may stand anywhere after S.
    """
    factors = list((space.of if isinstance(space, Family) else space).factors)
    if taps not in factors or len(factors) < 3:
        raise InvalidNorm(
            f"InvalidNorm in Conv({name!r}): {taps} must be one of three factors of {space}. Keep taps and channels "
            f"apart, S * C.dual * taps."
        )
    position = factors.index(taps)
    channels = tensor_product(*factors[:position], *factors[position + 1 :])
    each = Family(channels, space.members) if isinstance(space, Family) else channels
    norm = PerSlice(rms_operator_norm(each, method, f"Conv({name!r})"), taps, position)
    return ModularNorm.atom(name, taps.dim * norm, mass, text=f"Conv({name!r})")


def _matrix_of(space: VectorSpace, call: str) -> tuple[int, int]:
    member = space.of if isinstance(space, Family) else space
    if len(member.factors) < 2:
        raise InvalidNorm(f"InvalidNorm in {call}: expected a space of linear maps, Hom(V, S), got {space}.")
    rows = member.factors[0].dim
    return rows, member.dim // rows


def rms_operator_norm(space: VectorSpace, method: MatrixSign | None, call: str = "Modular") -> Norm:
    """√(columns/rows) σ_max: the operator norm for root mean squares."""
    rows, columns = _matrix_of(space, call)
    return Scaled((columns / rows) ** 0.5, Spectral(method=method or "exact").on(space))
