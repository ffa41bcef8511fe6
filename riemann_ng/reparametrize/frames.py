"""Frames: one affine bijection a' = Ωa + γ for each space of a network."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..networks import Network
from .frame import Frame
from .groups import JOINT, InvalidFrames, NoTwin, derangement, linear_element, parts, shift_element
from .leaves import Slot
from .places import chosen_kinds, not_applicable, spaces

PERMUTING = ("permutations", "signed permutations", "monomial")


@dataclass(frozen=True, eq=False)
class Frames:
    """A frame for some of the spaces of a network, by key; the others stay as they are.

    Keys are those of `spaces(network, x)`: "fc1.A" and "fc1.S" for the two sides of a layer, "position.W" for a
    parameter without a layer, "input" and "output" for what goes into the network and comes out. `group` and `left_out`
    (spaces that were asked for and have no element of the group, with the reason) are for the record.
    """

    by_key: Mapping[str, Frame]
    group: str = ""
    left_out: Mapping[str, str] | None = None

    @classmethod
    def draw(
        cls,
        network: Network,
        x: Any,
        on: str | Collection[str],
        group: str,
        seed: int | torch.Generator = 0,
        size: float = 1.0,
        members: str = "same",
    ) -> Frames:
        """Random frames of a group on the kinds of spaces named by `on`, the others left alone.

        `x`, a batch, shows which layers see the input and which gives the output. A weight that is used several times
        has one frame. The members of a family (groups of a convolution, channels of a normalization) share their
        frame, as they share their space; with `members="apart"` each has its own, and where both sides of a layer are
        moved by permutations, they change places too. Raises `NoTwin` where no space named
        has an element of the group that the network admits; those among several that have none are in `left_out`.
        """
        places = spaces(network, x)
        kinds = chosen_kinds("Frames.draw", on, group)
        if members not in ("same", "apart"):
            raise InvalidFrames(f"InvalidFrames in Frames.draw: members are 'same' or 'apart', got {members!r}.")
        if not 0 < size < 3:
            raise InvalidFrames(f"InvalidFrames in Frames.draw: size lies between 0 and 3, got {size!r}.")
        generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
        wanted = places.of_kinds(kinds)
        swaps = places.swappable(wanted) if members == "apart" and group in PERMUTING else {}
        left_out = {
            key: reason
            for key in wanted
            if places.slots[key].path not in swaps and (reason := places.refusal(key, group))
        }
        free = [key for key in wanted if key not in left_out]
        if not free:
            raise NoTwin(not_applicable(group, kinds, left_out or places.reasons(kinds)))
        drawn: dict[str, Frame] = {}
        orders: dict[str, Tensor] = {}
        scale: dict[str, Frame] = {}
        for key in free:
            slot = places.slots[key]
            root = places.linked.get(key, key)
            if root in drawn:
                drawn[key] = drawn[root]
                continue
            if group == JOINT:
                layer = places.layer_of(root)
                one = scale.setdefault(layer, _element(places.slots[root], group, generator, size, "same"))
                c = one.linear[0, 0, 0]
                found = Frame.known(
                    c * Frame.identity(slot.dim, slot.members).linear,
                    torch.zeros(slot.members, slot.dim, dtype=torch.float64),
                )
            else:
                found = _element(slot, group, generator, size, members)
            if slot.path in swaps:
                order = orders.setdefault(slot.path, derangement(slot.members, generator))
                found = Frame.known(found.linear, found.shift, order)
            drawn[root] = drawn[key] = found
        return cls({key: drawn[key] for key in free}, group, left_out)

    @classmethod
    def identity(cls) -> Frames:
        """The frames that a network is in. Its twin there is the network itself, fused modules opened."""
        return cls({})

    def __getitem__(self, key: str) -> Frame:
        return self.by_key[key]

    def get(self, key: str) -> Frame | None:
        """The frame of a space; None where it stays as it is."""
        return self.by_key.get(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_key)

    def __len__(self) -> int:
        return len(self.by_key)

    def only(self, *keys: str) -> Frames:
        """These spaces moved, the others left where they are."""
        return Frames({k: f for k, f in self.by_key.items() if k in keys}, self.group)

    def inverse(self) -> Frames:
        """The frames back."""
        return Frames({k: f.inverse() for k, f in self.by_key.items()}, self.group)

    def __repr__(self) -> str:
        return f"Frames({self.group or 'given'} on {', '.join(self.by_key) or 'nothing'})"


def _element(slot: Slot, group: str, generator: torch.Generator, size: float, members: str) -> Frame:
    linear, shifted = parts(group)
    many = slot.members if members == "apart" else 1
    matrices = [linear_element(linear, slot.dim, generator, size) for _ in range(many)]
    shifts = [
        shift_element(slot.dim, generator, size) if shifted else torch.zeros(slot.dim, dtype=torch.float64)
        for _ in range(many)
    ]
    shape = (slot.members, slot.dim)
    return Frame.known(
        torch.stack(matrices).expand(*shape, slot.dim).contiguous(), torch.stack(shifts).expand(shape).contiguous()
    )
