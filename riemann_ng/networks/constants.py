"""Parameters without a layer: per-example gradients, by vmap where the module allows it and by a loop where not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..errors import UnsupportedLayer
from .precision import dense

LARGEST = 2**28
"""The most numbers that per-example gradients of constant blocks may have, all together."""


def check_size(n: int, draws: int, sizes: Mapping[str, int]) -> None:
    """Refuses per-example gradients that would exhaust the memory."""
    total = n * draws * sum(sizes.values())
    if total > LARGEST:
        largest = max(sizes, key=lambda name: sizes[name])
        raise UnsupportedLayer(
            f"UnsupportedLayer in observe: per-example gradients of parameters without a layer would be "
            f"{n} examples × {draws} draws × {sum(sizes.values()):,} numbers = {total:.2g}, the most of them of "
            f"{largest!r}. Give its module a reader (register_layer), untie or freeze it, or observe fewer at a time: "
            f"a fraction of the batch, or MonteCarlo(1)."
        )


class PerExample:
    """Pulls cotangents of the outputs back to named parameters, example by example."""

    def __init__(self, module: nn.Module, names: Sequence[str], forward: Callable[[dict[str, Tensor], Any], Tensor]):
        self.module, self.names, self.forward = module, tuple(names), forward
        self.by_loop = False

    def gradients(self, x: Any, cotangents: Tensor) -> dict[str, Tensor]:
        """(n, draws, *z.shape[1:]) to one (n, draws, size) for each name."""
        parameters = {name: p.detach() for name, p in self.module.named_parameters() if name in self.names}

        def one(x: Any, cotangents: Tensor) -> dict[str, Tensor]:
            alone = tree_map(lambda t: t[None] if isinstance(t, Tensor) else t, x)
            pull = torch.func.vjp(lambda ps: self.forward(ps, alone)[0], parameters)[1]
            draws = [pull(c)[0] for c in cotangents.unbind(0)]
            return {name: torch.stack([d[name].flatten() for d in draws]) for name in parameters}

        if not self.by_loop:
            dims = tree_map(lambda t: 0 if isinstance(t, Tensor) else None, x)
            try:
                with torch.no_grad():  # about the other parameters: only those that are asked for are differentiated
                    return torch.func.vmap(one, in_dims=(dims, 0), randomness="same")(x, cotangents)
            except (RuntimeError, NotImplementedError):
                self.by_loop = True  # a module that vmap refuses, such as a fused recurrent one: example by example
        rows = [
            self.alone(tree_map(lambda t: t[i : i + 1] if isinstance(t, Tensor) else t, x), c)  # noqa: B023
            for i, c in enumerate(cotangents)
        ]
        return {name: torch.stack([row[name] for row in rows]) for name in self.names}

    def alone(self, x: Any, cotangents: Tensor) -> dict[str, Tensor]:
        """One example, by plain autograd: that works for whatever the loss's own backward works for."""
        named = dict(self.module.named_parameters())
        parameters = {name: named[name] for name in self.names}
        with torch.enable_grad():
            z = self.forward({}, x)[0]
        rows: list[list[Tensor]] = [[] for _ in parameters]
        for c in cotangents.unbind(0):
            gradients = torch.autograd.grad(z, list(parameters.values()), c, retain_graph=True, allow_unused=True)
            for row, p, g in zip(rows, parameters.values(), gradients, strict=True):
                row.append(torch.zeros_like(p).flatten() if g is None else dense(g).flatten())
        return {name: torch.stack(row) for name, row in zip(parameters, rows, strict=True)}
