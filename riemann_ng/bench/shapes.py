"""What a network is to K-FAC, by sizes alone: operations and bytes, counted before anything is run."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..errors import InvalidSetting
from ..networks import MonteCarlo, Network
from ..networks.observation import LayerObservation
from ..networks.patches import Patches
from ..samples import OneHot
from ..samples.products import PANEL
from ..spaces import Family

HALVES_FROM = 3
"""A product of rows with themselves is halved where its side is more than 3/2 panels."""


@dataclass(frozen=True)
class Image:
    """How a convolution's input is multiplied with itself: taps and step along the first axis, and what is beside."""

    taps: int
    step: int
    high: int
    columns: int
    side: int


@dataclass(frozen=True)
class Layer:
    """One layer: `out` and `into` are the sides of its factors along S and Â*, of `members` matrices each.

    `sites` is how often one example uses it; `uses` how often the network has a layer like it. A factor of one-hot
    inputs is diagonal, and so may that along S be, where a table of tokens is too large.
    """

    path: str
    out: int
    into: int
    sites: int = 1
    members: int = 1
    uses: int = 1
    diagonal_inputs: bool = False
    diagonal_outputs: bool = False
    image: Image | None = None

    @property
    def parameters(self) -> int:
        return self.uses * self.members * self.out * self.into

    @property
    def factors(self) -> list[tuple[int, bool]]:
        """Side and whether diagonal, along S first."""
        return [(self.out, self.diagonal_outputs), (self.into, self.diagonal_inputs)]

    @property
    def entries(self) -> int:
        """Numbers that the two factors hold."""
        return self.uses * self.members * sum(d if diagonal else d * d for d, diagonal in self.factors)

    @property
    def packed(self) -> int:
        """Numbers of their triangles, as they travel."""
        return self.uses * self.members * sum(d if diagonal else d * (d + 1) // 2 for d, diagonal in self.factors)

    def products(self, examples: int, panel: int = PANEL) -> list[tuple[int, int, float]]:
        """The symmetric products of one batch, as (rows, side, operations); the 1 of the hull is a border of them."""
        n = examples * self.sites
        out: list[tuple[int, int, float]] = []
        for (d, diagonal), inputs in zip(self.factors, (False, True), strict=True):
            if diagonal or self.members > 1:
                continue
            if inputs and self.image is not None:
                out.append((n, d, image_products(self.image, examples, panel)))
                continue
            side = d - 1 if inputs else d
            rows = examples if not inputs and side <= self.sites and self.image is not None else n
            whole = rows != n
            out.append((n, side, 2.0 * n * side**2 if whole else gram_operations(n, side, panel)))
        return out * self.uses

    @property
    def inversions(self) -> float:
        """Operations of a Cholesky factorization and of the inverse made of it: d³/3 + 2d³/3."""
        return self.uses * self.members * sum(float(d) ** 3 for d, diagonal in self.factors if not diagonal)

    @property
    def applications(self) -> float:
        """Operations of one product from each side."""
        D = 2.0 * self.uses * self.members * self.out * self.into
        return D * sum(1 if diagonal else d for d, diagonal in self.factors)


def gram_operations(n: int, d: int, panel: int = PANEL) -> float:
    """Of xᵀx for rows (n, d), one triangle in panels where that pays."""
    if 2 * d <= HALVES_FROM * panel:
        return 2.0 * n * d * d
    return sum(2.0 * n * (min(start + panel, d) - start) * min(start + panel, d) for start in range(0, d, panel))


def image_products(of: Image, items: int, panel: int = PANEL) -> float:
    """Of all distances between taps: one long product each, and short ones at the ends."""
    total = 0.0

    def product(rows: int, apart: int) -> float:
        n = rows * items * of.columns
        return gram_operations(n, of.side, panel) if not apart else 2.0 * of.side**2 * n

    for apart in range(of.taps):
        common = (of.taps - 1 - apart) * of.step
        long = 0 < common < of.high
        total += product(of.high - common, apart) if long else 0.0
        for a in range(of.taps - apart):
            first = a * of.step
            if not long:
                total += product(of.high, apart)
                continue
            total += product(common - first, apart) if first < common else 0.0
            total += product(first, apart) if first else 0.0
    return total


def layers_of(network: Network, x: Tensor) -> list[Layer]:
    """The layers of a network as a batch goes through them."""
    found = []
    with network.observe(x, MonteCarlo(1)) as seen:
        for path, layer in seen.layers.items():
            found.append(layer_of(path, layer))
    return found


def layer_of(path: str, layer: LayerObservation) -> Layer:
    space, data = layer.space, layer.inputs.data
    members = space.members if isinstance(space, Family) else 1
    into, out = layer.inputs.space, layer.cotangents.space
    sides = [V.of.dim if isinstance(V, Family) else V.dim for V in (out, into)]
    image = None
    if isinstance(data, Patches):
        columns = 1
        for size in data.sites[1:]:
            columns *= size
        side = data.x.shape[1]
        for k in data.kernel[1:]:
            side *= k
        image = Image(data.kernel[0], data.dilation[0], data.sites[0], columns, side)
    sites = max(layer.inputs.counts[2], layer.cotangents.counts[2])
    return Layer(path, sides[0], sides[1], sites, members, 1, isinstance(data, OneHot), False, image)


@dataclass(frozen=True)
class Paper:
    """A decoder of standard layers, known by its sizes."""

    depth: int
    width: int
    context: int
    tokens: int

    def layers(self) -> list[Layer]:
        """The head is the table of tokens; along tokens both are diagonal, for want of 10 GB and more."""
        d, t = self.width, self.context
        return [
            Layer("embed", d, self.tokens, t, diagonal_inputs=True),
            Layer("norms", 1, 2, t, d, 2 * self.depth + 1),
            Layer("attention.qkv", 3 * d, d + 1, t, uses=self.depth),
            Layer("attention.out", d, d + 1, t, uses=self.depth),
            Layer("mlp.up", 4 * d, d + 1, t, uses=self.depth),
            Layer("mlp.down", d, 4 * d + 1, t, uses=self.depth),
            Layer("head", self.tokens, d, t, diagonal_outputs=True),
        ]

    def passes(self, examples: int) -> float:
        """Operations of a forward and a backward pass: 6 for each weight and token, and attention's own products."""
        n = examples * self.context
        weights = sum(x.parameters for x in self.layers() if x.path not in ("embed", "norms"))
        return 6.0 * n * weights + 3 * 4.0 * n * self.context * self.width * self.depth


SHAPES = {
    "gpt2-small": Paper(12, 768, 1024, 50257),
    "1.3B": Paper(24, 2048, 2048, 50257),
    "7B": Paper(32, 4096, 2048, 32000),
}


def shape_named(name: str) -> Paper:
    if name not in SHAPES:
        raise InvalidSetting(f"there is no shape {name!r}; there are {', '.join(SHAPES)}.")
    return SHAPES[name]
