"""What torch carries out in a plain pass, and how long that should take at given rates."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .rates import Rates, at
from .workloads import Workload

aten: Any = torch.ops.aten
DEAR = {
    aten.tanh, aten.sigmoid, aten.gelu, aten.gelu_backward, aten._log_softmax, aten._log_softmax_backward_data,
    aten.binary_cross_entropy_with_logits, aten.native_layer_norm, aten.native_layer_norm_backward,
    aten.native_group_norm, aten.native_group_norm_backward, aten.max_pool2d_with_indices,
    aten.max_pool2d_with_indices_backward, aten.exp, aten.log1p,
}  # fmt: skip
"""What takes about as long as tanh for each number."""
ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: (0, 4.0),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (1, 10.0),
}
"""Where the queries stand, and how many operations for each pair of sites: two products, and five."""
CONVOLUTIONS = {aten.convolution, aten.convolution_backward, aten._convolution}


@dataclass
class Recorded(TorchDispatchMode):
    """A context in which operations are noted: (kind, operations or numbers, the smallest side, bytes)."""

    seen: list[tuple[str, float, int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if not func.is_view:
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
            moved = float(sum(t.numel() * t.element_size() for t in tensors))
            self.seen.append(self.note(packet, func, args, kwargs or {}, out, tensors, moved))
        return out

    def note(
        self, packet: Any, func: Any, args: Any, kwargs: Any, out: Any, tensors: list[Tensor], moved: float
    ) -> tuple[str, float, int, float]:
        if packet in ATTENTION:
            q = args[ATTENTION[packet][0]]
            *many, sites, width = q.shape
            return "product", ATTENTION[packet][1] * math.prod(many) * float(sites) ** 2 * width, width, moved
        if packet in flop_registry:
            operations = float(flop_registry[packet](*args, **kwargs, out_val=out))
            matrices = [t for t in tensors if t.ndim > 1]
            kind = "convolution" if packet in CONVOLUTIONS else "product"
            if kind == "convolution":
                side = min(args[1].shape[0] if packet is not aten.convolution_backward else args[2].shape[0],
                           (args[1] if packet is not aten.convolution_backward else args[2]).shape[1])  # fmt: skip
            else:
                side = min(size for t in matrices for size in t.shape[-2:])
            return kind, operations, side, moved
        numbers = float(max((t.numel() for t in tree_leaves(out) if isinstance(t, Tensor)), default=0))
        return ("function" if packet in DEAR else "other"), numbers, 0, moved

    @property
    def operations(self) -> float:
        """Of matrix products and convolutions."""
        return sum(many for kind, many, _, _ in self.seen if kind in ("product", "convolution"))

    def seconds(self, rates: Rates) -> float:
        total = 0.0
        for kind, many, side, moved in self.seen:
            memory = moved / at(rates.bandwidth, max(moved / 2, min(rates.bandwidth)))
            if kind == "product":
                total += max(many / at(rates.gemm, side), memory)
            elif kind == "convolution":
                total += max(many / at(rates.convolution, max(side, min(rates.convolution))), memory)
            elif kind == "function":
                total += max(many / rates.function, memory)
            else:
                total += memory
            total += rates.call
        return total


def recorded(work: Workload) -> tuple[Recorded, float]:
    """A plain pass, and how much of its operations the gradients of weights are."""
    work.module.zero_grad()
    with Recorded() as seen:
        loss = work.loss(work.module(work.x))
        loss.backward()
    work.module.zero_grad()
    return seen, 1 / 3
