"""Where the parameters of one site sit in a network's output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..elements import describe
from ..errors import ShapeMismatch


@dataclass(frozen=True)
class Layout:
    """Reads an output z (examples, ...) as blocks (examples, sites, parameters), and writes blocks back.

    `Layout(1)`: every entry is a site of one parameter. `Layout(None)`: one site holds all entries. With `dim`,
    that axis of z holds the parameters: all of it (`Layout(None, dim)`: classes), or `parameters` groups one after
    another (`Layout(2, dim)`: first the means of all outputs, then their log scales). Axes count from the examples'
    axis 0. Law: `join(split(z), z.shape) == z`.
    """

    parameters: int | None
    dim: int | None = None

    def axis(self, ndim: int) -> int:
        """The parameters' axis of outputs with `ndim` dimensions, counted from the end."""
        assert self.dim is not None
        return self.dim if self.dim < 0 else self.dim - ndim

    def check(self, call: str, z: Tensor) -> None:
        """Outputs that cannot be read this way, before any tensor work."""
        if not isinstance(z, Tensor) or not z.dtype.is_floating_point or z.ndim == 0:
            raise ShapeMismatch(
                f"ShapeMismatch in {call}: outputs are a floating-point tensor with examples first, got {describe(z)}."
            )
        if z.numel() == 0:
            raise ShapeMismatch(
                f"ShapeMismatch in {call}: the batch is empty: {describe(z)}. Give at least one example."
            )
        if self.dim is None:
            return
        if not -z.ndim < self.dim < z.ndim or self.dim == 0:
            raise ShapeMismatch(
                f"ShapeMismatch in {call}: dim={self.dim} is no axis of {describe(z)} after the examples' axis 0. "
                f"Name the axis that holds the parameters of one site."
            )
        size = z.shape[self.dim]
        if self.parameters is not None and size % self.parameters:
            raise ShapeMismatch(
                f"ShapeMismatch in {call}: axis {self.dim} of {describe(z)} must hold {self.parameters} parameters for "
                f"each output, one group after another; {size} is no multiple of {self.parameters}."
            )

    def grouped(self, z: Tensor, lead: int = 1) -> Tensor:
        """(*lead, *targets' axes, parameters): the blocks before their sites are flattened."""
        if self.dim is None:
            return z.unsqueeze(-1) if self.parameters == 1 else z.flatten(lead).unsqueeze(lead)
        moved = z.movedim(self.axis(z.ndim - lead + 1), -1)
        if self.parameters is None:
            return moved
        groups: Tensor = moved.unflatten(-1, (self.parameters, -1))
        return groups.transpose(-1, -2)

    def split(self, z: Tensor, lead: int = 1) -> Tensor:
        """(*lead, sites, parameters). `lead` counts the axes before one example's output."""
        groups = self.grouped(z, lead)
        return groups.reshape(*groups.shape[:lead], -1, groups.shape[-1])

    def join(self, blocks: Tensor, shape: torch.Size) -> Tensor:
        """Blocks (*lead, sites, parameters) as outputs (*lead, *shape[1:]), where `shape` is that of z."""
        lead, own = blocks.shape[:-2], shape[1:]
        if self.dim is None:
            return blocks.reshape(*lead, *own)
        axis = self.axis(len(shape))
        others = [size for i, size in enumerate(own) if i != axis % len(own)]
        if self.parameters is None:
            return blocks.reshape(*lead, *others, own[axis]).movedim(-1, axis)
        groups = blocks.reshape(*lead, *others, -1, self.parameters)
        return groups.transpose(-1, -2).flatten(-2).movedim(-1, axis)

    def ungrouped(self, groups: Tensor, shape: torch.Size, lead: int = 1) -> Tensor:
        """The way back from `grouped`."""
        return self.join(groups.reshape(*groups.shape[:lead], -1, groups.shape[-1]), shape)

    def sites(self, shape: torch.Size) -> int:
        """The number of sites of one example."""
        size = shape[1:].numel()
        if self.dim is None:
            return size if self.parameters == 1 else 1
        return size // (shape[self.dim] if self.parameters is None else self.parameters)

    def target_shape(self, shape: torch.Size) -> tuple[int, ...]:
        """The shape of targets with one number a site: classes have no axis, outputs keep theirs."""
        if self.dim is None:
            return tuple(shape)
        axis = self.dim % len(shape)
        kept = () if self.parameters is None else (shape[axis] // self.parameters,)
        return (*shape[:axis], *kept, *shape[axis + 1 :])
