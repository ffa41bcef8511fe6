"""What a run keeps of old outputs: a bounded number of elements of one tangent space, or of its dual."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from ..elements import Covector, Element, Vector
from ..errors import InvalidSetting, NonFinite
from ..networks import Network
from .annihilator import PIECE, default_tolerance, gram

if TYPE_CHECKING:
    from .natural_gradient import NaturalGradient

Overflow = Literal["refuse", "oldest", "reservoir", "compress"]
State = dict[str, Any]
Raise = Callable[[Tensor], Tensor]
"""From covectors (k, dim) to vectors (k, dim), by a metric."""


@dataclass(frozen=True)
class Remembering:
    """How much is remembered, and what gives way when there is more.

    At most `capacity` covectors, each as large as the trained parameters, and at most `capacity_bytes` of them. What
    the metric makes of them takes as much again, or twice that where they are nearly dependent. `overflow`: "refuse"
    more, forget the "oldest", keep a uniform sample of all that came ("reservoir", drawn by a generator of its own from
    `seed`), or "compress" them to the leading subspace in the metric: the combinations that are longest. That compares
    outputs by the units they are in; nothing else here names coordinates.
    """

    capacity: int = 1000
    capacity_bytes: int | None = None
    overflow: Overflow = "refuse"
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = [("capacity", self.capacity)]
        if self.capacity_bytes is not None:
            numbers.append(("capacity_bytes", self.capacity_bytes))
        for name, value in numbers:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidSetting(f"InvalidSetting in Remembering: {name}={value!r}, expected 1 or more.")
        if self.overflow not in get_args(Overflow):
            raise InvalidSetting(
                f"InvalidSetting in Remembering: overflow={self.overflow!r}, expected one of "
                f"{', '.join(map(repr, get_args(Overflow)))}."
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise InvalidSetting(f"InvalidSetting in Remembering: seed={self.seed!r}, expected a whole number.")

    def most(self, like: Tensor) -> int:
        """How many of these rows are allowed."""
        if self.capacity_bytes is None:
            return self.capacity
        return min(self.capacity, self.capacity_bytes // (like.shape[-1] * like.element_size()))

    def with_more(self, rows: Tensor, new: Tensor, seen: int, raised: Raise | None) -> Tensor:
        """The rows with these taken in; `seen` came before them. Only compressing needs a metric."""
        most = self.most(new)
        if most < 1 or (self.overflow == "refuse" and len(rows) + len(new) > most):
            raise InvalidSetting(self._too_many(len(rows), len(new), most, new))
        if self.overflow == "reservoir":
            return self._sampled(rows, new, seen, most)
        both = torch.cat([rows, new])
        if len(both) <= most:
            return both
        if self.overflow == "oldest":
            return both[-most:].clone()
        if raised is None:
            raise InvalidSetting(
                f"InvalidSetting in remember: {len(both)} covectors, {most} are allowed, and overflow='compress' takes "
                f"the longest combinations in the metric, which is not known before the first step. Make a step first."
            )
        values, axes = torch.linalg.eigh(gram(both, raised(both)))
        told = values > default_tolerance(both) * values[-1]  # the others are rounding
        return axes[:, told][:, -most:].flip(-1).mT.to(both.dtype).contiguous() @ both

    def _sampled(self, rows: Tensor, new: Tensor, seen: int, most: int) -> Tensor:
        room = max(0, most - len(rows))
        kept = torch.cat([rows, new[:room]])
        for i, row in enumerate(new[room:], seen + room):
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + i) % 2**63)
            place = int(torch.randint(0, i + 1, (), generator=generator))
            if place < most:
                kept[place] = row
        return kept

    def _too_many(self, kept: int, new: int, most: int, like: Tensor) -> str:
        size = like.shape[-1] * like.element_size()
        return (
            f"InvalidSetting in remember: {kept} covectors are remembered and {new} more came; {most} are allowed, of "
            f"{size} bytes each. Nothing was remembered. Remember fewer examples, or labels alone: remember(x, y); "
            f"allow more: capacity={max(kept + new, self.capacity)}"
            + ("" if self.capacity_bytes is None else f", capacity_bytes={(kept + new) * size}")
            + "; or say what is to give way: overflow='oldest', 'reservoir' or 'compress'."
        )


class Remembered:
    """The rows (k, dim) that a run remembers, `kind` of the tangent space of its network; `seen` came in all."""

    def __init__(self, policy: Remembering, network: Network, kind: type[Element]):
        self.policy, self.kind = policy, kind
        self._space, self._blocks = network.tangent_space, dict(network.blocks)
        self.rows: Tensor | None = None
        self.seen = 0
        self._loaded: dict[str, Tensor] | None = None

    @property
    def count(self) -> int:
        """How many are remembered."""
        if self._loaded is not None:
            return len(next(iter(self._loaded.values())))
        return 0 if self.rows is None else len(self.rows)

    def take(self, pieces: Iterable[Tensor], raised: Raise | None) -> None:
        """Takes rows in, piece by piece. If that fails nothing has changed."""
        rows, seen = self.rows, self.seen
        for new in pieces:
            if not bool(new.isfinite().all()):
                raise NonFinite(
                    "NonFinite in remember: covectors with NaN or infinity. Nothing was remembered; look at the "
                    "network's outputs there, and at its parameters."
                )
            rows = self.policy.with_more(new[:0] if rows is None else rows, new, seen, raised)
            seen += len(new)
        self.rows, self.seen = rows, seen

    def settle(self, network: Network) -> None:
        """Takes the tangent space as it is by now: what is remembered is laid out anew where that has changed."""
        space = network.tangent_space
        if self._loaded is not None:
            self.rows, self._loaded = self._of(space, self._loaded).data.contiguous(), None
        elif self.rows is not None and space != self._space:
            self.rows = self._moved(network, self.rows)
        self._space, self._blocks = space, dict(network.blocks)

    def _of(self, space: Any, blocks: Mapping[str, Tensor]) -> Element:
        return Covector(space, blocks) if self.kind is Covector else Vector(space, blocks)

    def _moved(self, network: Network, rows: Tensor) -> Tensor:
        """By the parameters that they belong to: their blocks have been cut otherwise."""
        parameters, moved = network.parameters, []
        for row in rows:
            into: dict[str, Tensor] = {}
            for path, part in Vector(self._space, row).blocks.items():
                self._blocks[path].scatter(part, into, parameters)
            moved.append(network.vector(into).data)
        return torch.stack(moved)

    def state(self) -> State:
        blocks = self._loaded
        if self.rows is not None:
            blocks = dict(Vector(self._space, self.rows).blocks)
        return {"policy": repr(self.policy), "seen": self.seen, "blocks": blocks}

    def load(self, state: Mapping[str, Any]) -> None:
        """Keeps a state until the space that it is on is known."""
        self.rows, self.seen, self._loaded = None, state["seen"], state["blocks"]


def raised_by(opt: NaturalGradient) -> Raise | None:
    """The metric of the optimizer as it stands; None before the first step."""
    damped, space = opt.memory.damped, opt.network.tangent_space
    if damped is None:
        return None
    return lambda rows: in_pieces(rows, lambda part: damped.sharp(Covector(space, part), opt.solver).components)


def in_pieces(rows: Tensor, f: Raise) -> Tensor:
    """A map of rows, some at a time, always the same ones: products of matrices depend on their number, in the last
    bit.
    """
    size = max(1, PIECE // rows.shape[-1])
    return torch.cat([f(part) for part in rows.split(size)])


def state_of(opt: NaturalGradient) -> State | None:
    remembered = opt.step_size.remembered
    return None if remembered is None else remembered.state()


def check_loadable(opt: NaturalGradient, state: Mapping[str, Any] | None) -> None:
    """Raises `InvalidSetting` where a rule cannot keep what is remembered in a state."""
    mine = opt.step_size.remembered
    if state is not None and state["blocks"] is None:
        return
    expected = None if mine is None else repr(mine.policy)
    if state is not None and state["policy"] != expected:
        raise InvalidSetting(
            f"InvalidSetting in load_state_dict: the state is of a run that remembers outputs, {state['policy']}, and "
            f"this optimizer has {'no memory of any' if mine is None else expected}. Make it alike."
        )


def load_into(opt: NaturalGradient, state: Mapping[str, Any] | None) -> None:
    if opt.step_size.remembered is not None:
        opt.step_size.remembered.load({"seen": 0, "blocks": None} if state is None else state)
