"""A cell unrolled over time, with one set of parameters used at every step; the usual cells."""

from __future__ import annotations

from abc import abstractmethod
from copy import copy

import torch
from torch import Tensor

from ..errors import ShapeMismatch, SpaceMismatch
from ..points import Point
from ..spaces import AffineSpace, VectorSpace
from .affine import Affine
from .base import Blocks, Layer, ParameterFreeLayer, Sites, Use, Uses, check_dims, product_space
from .composition import Compose, Fan, Identity, ProductLayer, Select
from .pointwise import Nonlinearity, Pointwise, tanh


class Recurrent(Layer):
    """`state_t = cell(x_t, state_{t-1})` over the one axis of sites: `Recurrent(A, codomain, cell, initial)`.

    The cell goes from the product of A and the state space to the state space; the output at a step is the first
    components of its state, as many as the codomain has. Every step is a site of the cell's parameters. The initial
    state is a point of the state space, the same for all examples. `backwards` runs from the last step to the first.
    """

    def __init__(
        self, domain: AffineSpace, codomain: AffineSpace, cell: Layer, initial: Point, backwards: bool = False
    ):
        state = cell.codomain
        if cell.domain != product_space(domain, state) or initial.space != state or initial.data.shape != (state.dim,):
            raise SpaceMismatch(
                f"SpaceMismatch in Recurrent: the cell goes from {product_space(domain, state)!r} to its state space "
                f"{state!r} and starts at one point there, got {cell} and {initial}."
            )
        if codomain.dim > state.dim:
            check_dims("Recurrent", "the codomain", codomain, state.dim)
        self.domain, self.codomain, self.cell, self.initial, self.backwards = domain, codomain, cell, initial, backwards

    @property
    def parameter_spaces(self) -> dict[str, VectorSpace]:
        return self.cell.parameter_spaces

    @property
    def parameters(self) -> dict[str, Tensor]:
        return self.cell.parameters

    def output_sites(self, sites: Sites) -> Sites:
        if len(sites) != 1:
            raise ShapeMismatch(
                f"ShapeMismatch in {self}: sites are one axis, the time steps; the field has {list(sites)}."
            )
        return sites

    def _steps(self, x: Tensor) -> list[int]:
        steps = range(x.shape[1])
        return list(reversed(steps)) if self.backwards else list(steps)

    def _unrolled(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The states, site by site, and what the cell met at each step, in the order of time."""
        state = self.initial.data.to(x).expand(x.shape[0], -1)
        states, met = x.new_empty(*x.shape[:2], state.shape[-1]), []
        for t in self._steps(x):
            met.append(torch.cat([x[:, t], state], dim=-1))
            state = states[:, t] = self.cell._forward(met[-1])
        return states, met

    def _forward(self, x: Tensor) -> Tensor:
        return self._unrolled(x)[0][..., : self.codomain.dim]

    def _push(self, x: Tensor, dx: Tensor, dw: Blocks | None) -> Tensor:
        states, met = self._unrolled(x)
        d, moved = torch.zeros_like(states[:, 0]), torch.empty_like(states)
        for t, point in zip(self._steps(x), met, strict=True):
            d = moved[:, t] = self.cell._push(point, torch.cat([dx[:, t], d], dim=-1), dw)
        return moved[..., : self.codomain.dim]

    def _pull(self, x: Tensor, dy: Tensor) -> tuple[Tensor, Uses]:
        states, met = self._unrolled(x)
        outputs, d, dx = self.codomain.dim, torch.zeros_like(states[:, 0]), torch.empty_like(x)
        uses: list[Uses] = [{}] * len(met)
        for t, point in zip(reversed(self._steps(x)), reversed(met), strict=True):
            d = torch.cat([d[:, :outputs] + dy[:, t], d[:, outputs:]], dim=-1)
            both, uses[t] = self.cell._pull(point, d)
            dx[:, t], d = both[:, : x.shape[-1]], both[:, x.shape[-1] :]
        return dx, {path: Use.at_all([here[path] for here in uses]) for path in self.parameter_spaces}

    def _moved(self, by: Blocks) -> Recurrent:
        moved = copy(self)
        moved.cell = self.cell._moved(by)
        return moved


class Gates(ParameterFreeLayer):
    """A map of several vectors of units to several others that acts unit by unit: what gates a cell.

    A kind writes the outputs and their partial derivatives, `partials[j][i]` of output j by input i, None where it
    vanishes; the inputs stand side by side in the domain, the outputs in the codomain.
    """

    units: int

    @abstractmethod
    def _outputs(self, *inputs: Tensor) -> list[Tensor]: ...

    @abstractmethod
    def _partials(self, *inputs: Tensor) -> list[list[Tensor | None]]: ...

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.split(self.units, dim=-1))

    def _forward(self, x: Tensor) -> Tensor:
        return torch.cat(self._outputs(*self._split(x)), dim=-1)

    def _differential(self, x: Tensor, dx: Tensor) -> Tensor:
        dxs = self._split(dx)
        return torch.cat([_dot(row, dxs) for row in self._partials(*self._split(x))], dim=-1)

    def _transpose(self, x: Tensor, dy: Tensor) -> Tensor:
        rows, dys = self._partials(*self._split(x)), self._split(dy)
        return torch.cat([_dot([row[i] for row in rows], dys) for i in range(len(rows[0]))], dim=-1)


def _dot(row: list[Tensor | None], parts: tuple[Tensor, ...]) -> Tensor:
    zero = torch.zeros_like(parts[0])
    return torch.stack([zero if p is None else p * d for p, d in zip(row, parts, strict=True)]).sum(0)


class LSTMGates(Gates):
    """(i, f, g, o, c) ↦ (h, c'): c' = σ(f) c + σ(i) tanh(g), h = σ(o) tanh(c')."""

    def __init__(self, domain: AffineSpace, codomain: AffineSpace):
        self.domain, self.codomain, self.units = domain, codomain, codomain.dim // 2
        check_dims("LSTMGates", "the domain", domain, 5 * self.units)

    def _outputs(self, *inputs: Tensor) -> list[Tensor]:
        i, f, g, o, c = inputs
        cell = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return [o.sigmoid() * cell.tanh(), cell]

    def _partials(self, *inputs: Tensor) -> list[list[Tensor | None]]:
        i, f, o, g = inputs[0].sigmoid(), inputs[1].sigmoid(), inputs[3].sigmoid(), inputs[2].tanh()
        c = inputs[4]
        through = (f * c + i * g).tanh()
        of_cell = [i * (1 - i) * g, f * (1 - f) * c, i * (1 - g**2), None, f]
        slope = o * (1 - through**2)
        of_output = [None if p is None else slope * p for p in of_cell]
        of_output[3] = o * (1 - o) * through
        return [of_output, of_cell]


class GRUGates(Gates):
    """(r, z, a, b, h) ↦ (1 - σ(z)) tanh(a + σ(r) b) + σ(z) h."""

    def __init__(self, domain: AffineSpace, codomain: AffineSpace):
        self.domain, self.codomain, self.units = domain, codomain, codomain.dim
        check_dims("GRUGates", "the domain", domain, 5 * self.units)

    def _outputs(self, *inputs: Tensor) -> list[Tensor]:
        r, z, a, b, h = inputs
        return [(1 - z.sigmoid()) * (a + r.sigmoid() * b).tanh() + z.sigmoid() * h]

    def _partials(self, *inputs: Tensor) -> list[list[Tensor | None]]:
        r, z, (a, b, h) = inputs[0].sigmoid(), inputs[1].sigmoid(), inputs[2:]
        candidate = (a + r * b).tanh()
        slope = (1 - z) * (1 - candidate**2)
        return [[slope * r * (1 - r) * b, z * (1 - z) * (h - candidate), slope, slope * r, z]]


def rnn_cell(
    domain: AffineSpace, state: AffineSpace, weight: Tensor, bias: Tensor | None, nonlinearity: Nonlinearity = tanh
) -> Compose:
    """`h' = f(W (x, h) + b)`, with weight (dim h, dim x + dim h)."""
    both, S = product_space(domain, state), AffineSpace(f"{state.name} pre-activations", state.dim)
    return Compose({"": Affine(both, S, weight, bias), "nonlinearity": Pointwise(S, state, nonlinearity)})


def lstm_cell(domain: AffineSpace, hidden: AffineSpace, weight: Tensor, bias: Tensor | None) -> Compose:
    """A cell over the product of the hidden space and that of the cell's memory, whose gates i, f, g, o are one affine
    map of (x, h): weight (4 dim h, dim x + dim h)."""
    memory = AffineSpace(f"{hidden.name} memory", hidden.dim)
    gates = Affine(product_space(domain, hidden), AffineSpace(f"{hidden.name} gates", 4 * hidden.dim), weight, bias)
    state = product_space(hidden, memory)
    side_by_side = ProductLayer({"": gates, "memory": Identity(memory)})
    return Compose({"": side_by_side, "gates": LSTMGates(side_by_side.codomain, state)})


def gru_cell(
    domain: AffineSpace,
    state: AffineSpace,
    gates: tuple[Tensor, Tensor | None],
    from_input: tuple[Tensor, Tensor | None],
    from_state: tuple[Tensor, Tensor | None],
) -> Compose:
    """Blocks "gates" (r and z, of (x, h)), "input" and "state" (the candidate's two parts): weight and bias of each."""
    factors, n = (domain, state), state.dim
    spaces = {part: AffineSpace(f"{state.name} {part}", size * n) for part, size in (("r z", 2), ("a", 1), ("b", 1))}
    fan = Fan(
        {
            "gates": Affine(product_space(*factors), spaces["r z"], *gates),
            "input": Compose({"select": Select(factors, 0), "": Affine(domain, spaces["a"], *from_input)}),
            "state": Compose({"select": Select(factors, 1), "": Affine(state, spaces["b"], *from_state)}),
            "keep": Select(factors, 1),
        }
    )
    return Compose({"": fan, "combine": GRUGates(fan.codomain, state)})
