"""The modular norm of a network, derived from its module: masses, sensitivities, and a norm for every parameter."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase

from torch import Tensor

from ..elements import Element, Vector
from ..inner_products import Euclidean
from ..networks import Network
from ..networks.observation import Observation
from ..networks.readers import ConvolutionReader, EmbeddingReader, ScaleShiftReader
from ..networks.structure import Block, inside
from ..spaces import Derived, Family, VectorSpace, tensor_product
from ..symmetry import Symmetry
from .apart import BiasApart, apart
from .base import InvalidNorm, Norm, Scaled, check_network, positive, symmetry_unknown
from .composed import PerSlice, Viewed
from .coordinates import Sign
from .from_inner_product import FromInnerProduct
from .matrix_sign import MatrixSign
from .modular import ModularNorm, rms_operator_norm
from .reading import Slopes, slopes_below

Factors = dict[tuple[str, str], float]
"""By path of a layer and name of a parameter."""


class Modular(Norm):
    """Modular duality over a network: `Modular().over(network)` is a norm such that a step of norm 1 moves the output,
    to first order, by 1 at most in root mean square, shared among the parameters by their masses.

    The module's forward is read: chains, sums, concatenations, convolutions, embeddings, normalizations, attention.
    Every parameter is an atom, and its part in a step of norm 1 has the size mass/(total mass · slope): slope that of
    the output in what the parameter gives. The size is, by kind of parameter,

        weight of an affine map    √(inputs/outputs) σ_max
        convolution                the number of taps times the largest such of a tap
        embedding                  the largest root mean square of a row
        scale                      the largest entry
        bias, anything else        the root mean square

    `masses` are by name of parameters, with * and ?, or by path of modules, for all their parameters together; 1
    otherwise. `slopes` are bounds for modules (by path or type) and functions without a rule, or better ones.
    """

    space: VectorSpace | None = None

    def __init__(
        self,
        masses: Mapping[str, float] | None = None,
        slopes: Slopes | None = None,
        method: MatrixSign | None = None,
    ):
        for name, told in (("masses", masses), ("slopes", slopes)):
            if told is not None and not isinstance(told, Mapping):
                raise InvalidNorm(
                    f"InvalidNorm in Modular: {name}={told!r}, expected a mapping, as {{'0.weight': 2.0}}."
                )
        self.masses = {key: positive("Modular", f"the mass of {key!r}", m) for key, m in (masses or {}).items()}
        self.slopes, self.method = dict(slopes or {}), method
        self._read: tuple[Factors, float] | None = None

    def as_read(self, network: Network) -> Modular:
        """The factors of this network's parameters, for another whose parameters have the same names."""
        norm = Modular(self.masses, self.slopes, self.method)
        norm._read = self.factors(network)
        return norm

    def over(self, network: Network) -> Norm:
        factors, sensitivity = self.factors(network)
        norms = {path: block_norm(block, factors, self.method) for path, block in network.blocks.items()}
        mass = sum(self.atoms(network).values())
        return ModularNorm(norms, dict.fromkeys(norms, 1.0), mass, sensitivity, self.expression())

    def budgets(self, network: Network) -> dict[str, float]:
        """By parameter, its size in a step of norm 1; by path and parameter where several layers have parts of one."""
        factors, _ = self.factors(network)
        holders = Counter(name for _, name in factors)
        return {name if holders[name] == 1 else f"{path}: {name}": 1 / f for (path, name), f in factors.items()}

    def factors(self, network: Network) -> tuple[Factors, float]:
        """By path of a layer and parameter, what multiplies its size; and the slope of the whole in its input."""
        check_network(self, network)
        held = [(path, name) for path, block in network.blocks.items() for name in block.names.values()]
        if self._read is not None:
            if set(self._read[0]) != set(held):
                here, there = (", ".join(dict.fromkeys(name for _, name in keys)) for keys in (held, self._read[0]))
                raise InvalidNorm(
                    f"InvalidNorm in Modular: it was read of a network with parameters {there}, and this one has "
                    f"{here}. Read it anew: Modular(...).over(network)."
                )
            return self._read
        below, sensitivity = slopes_below(network.module, self.slopes)
        masses, holders = self.atoms(network), Counter(name for _, name in held)
        total = sum(masses.values())
        return {
            (path, name): total * holders[name] / masses[name] * slope_of(path, name, below) for path, name in held
        }, sensitivity

    def atoms(self, network: Network) -> dict[str, float]:
        """The mass of each parameter."""
        masses = dict.fromkeys(network.parameters, 1.0)
        whole: list[str] = []
        for key, mass in self.masses.items():
            names = [name for name in masses if fnmatchcase(name, key)]
            if names:
                masses.update(dict.fromkeys(names, mass))
            elif any(inside(name, key) for name in masses):
                whole.append(key)
            else:
                raise InvalidNorm(
                    f"InvalidNorm in Modular: masses={{{key!r}: ...}}, and no parameter or module is called so. "
                    f"Parameters are {', '.join(masses)}."
                )
        for path in sorted(whole, key=len, reverse=True):  # the inner modules first
            names = [name for name in masses if inside(name, path)]
            share = self.masses[path] / sum(masses[name] for name in names)
            masses.update({name: masses[name] * share for name in names})
        return masses

    def bound_to(self, space: VectorSpace) -> Norm:
        raise self._unread("on")

    def at(self, observation: Observation) -> Norm:
        raise self._unread("at")

    def _unread(self, call: str) -> InvalidNorm:
        return InvalidNorm(
            f"InvalidNorm in {call}: {self!r} is made of the network's module. Put it there: norm.over(network)."
        )

    def norm_of(self, v: Element) -> Tensor:
        raise self._unread("norm")

    def dual_norm_of(self, covector: Element) -> Tensor:
        raise self._unread("dual_norm")

    def sharp_of(self, covector: Element) -> Vector:
        raise self._unread("sharp")

    @property
    def symmetry(self) -> Symmetry:
        raise symmetry_unknown(self)

    def expression(self) -> str:
        said: list[str] = []
        said += [f"masses={self.masses!r}"] if self.masses else []
        said += [f"slopes={self.slopes!r}"] if self.slopes else []
        said += [] if self.method is None else [f"method={self.method!r}"]
        return f"Modular({', '.join(said)})"


def slope_of(path: str, name: str, below: Mapping[str, float]) -> float:
    """Below a block: that of its own path, of its parameter, or of the innermost module around it that was read.

    A layer on which the output does not depend has none, and counts as the last one: nothing moves it.
    """
    for key in (path, name):
        if key in below:
            return below[key]
    around = [at for at in below if inside(path, at) or inside(name, at)]
    return below[max(around, key=len)] if around else 1.0


def block_norm(block: Block, factors: Factors, method: MatrixSign | None) -> Norm:
    """The norm of a block, its parameters each with a factor."""
    split = apart(block.space)
    if split is None:
        (name,) = block.names.values()
        return factors[block.path, name] * atom(block, block.space, method)
    weight, bias = (factors[block.path, block.names[role]] for role in roles(block))
    return BiasApart(block.space, weight * atom(block, split[0], method), bias * flat_norm(split[1]))


def roles(block: Block) -> tuple[str, str]:
    """The keys of weight and bias among the names of a block that has both."""
    weight, bias = sorted(block.names, key=lambda local: "bias" in local)
    return weight, bias


def atom(block: Block, space: VectorSpace, method: MatrixSign | None) -> Norm:
    """The size of a weight, or of what has no place in a layer, on its space."""
    reader = block.reader
    if reader is None or not reader.weight:
        return flat_norm(space)
    if isinstance(reader, EmbeddingReader):
        *rest, tokens = space.factors
        return PerSlice(flat_norm(tensor_product(*rest)), tokens)
    if isinstance(reader, ScaleShiftReader):
        return Sign(space)
    if isinstance(reader, ConvolutionReader):
        return per_tap(space, math.prod(reader.module.kernel_size), method)
    return rms_operator_norm(space, method)


def flat_norm(space: VectorSpace) -> Norm:
    """The root mean square of all entries, those of the members of a family too."""
    return Scaled(space.dim**-0.5, FromInnerProduct(Euclidean(space)))


def per_tap(space: VectorSpace, taps: int, method: MatrixSign | None) -> Norm:
    """Each tap of a kernel by itself, on the space of patches, channels × taps; and times the number of taps."""
    if taps == 1:
        return rms_operator_norm(space, method)
    family = space if isinstance(space, Family) else None
    *rest, patches = (space if family is None else family.of).factors
    A = patches.dual
    channels, tap = Derived(f"channels of {A}", A, A.dim // taps), Derived(f"taps of {A}", A, taps)
    flat = tensor_product(*rest, channels.dual)
    each = rms_operator_norm(flat if family is None else Family(flat, family.members), method)
    return taps * Viewed(PerSlice(each, tap.dual), space)
