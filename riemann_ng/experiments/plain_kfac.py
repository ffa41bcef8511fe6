"""K-FAC in plain torch: hooks, one backward pass for each direction of the outputs, two solves. An oracle.

Nothing of the library is used here. Linear layers and two-dimensional convolutions that pad with zeros, used once or at
several steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold


@dataclass
class Seen:
    """Of one layer: its inputs with a one, (n, sites, in + 1), and the places of its outputs in the graph."""

    inputs: list[Tensor]
    outputs: list[Tensor]


def factors(model: nn.Module, x: Tensor, root: Callable[[Tensor], Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """G and A of every layer, by name. `root` gives S (n, outputs, k) with S Sᵀ the inner product at every output."""
    seen: dict[str, Seen] = {}
    hooks = []

    def listen(name: str, layer: nn.Module) -> None:
        def heard(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
            here = seen.setdefault(name, Seen([], []))
            here.inputs.append(features(module, args[0].detach()))
            here.outputs.append(y)

        hooks.append(layer.register_forward_hook(heard))

    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            listen(name, layer)
    try:
        z = model(x)
    finally:
        for hook in hooks:
            hook.remove()
    S = root(z.detach())
    found: dict[str, tuple[Tensor, Tensor]] = {}
    places = [y for here in seen.values() for y in here.outputs]
    sums = {name: torch.zeros((), dtype=z.dtype) for name in seen}
    for k in range(S.shape[-1]):
        gradients = iter(torch.autograd.grad((z * S[..., k]).sum(), places, retain_graph=True))
        for name, here in seen.items():
            for _ in here.outputs:
                g = next(gradients)
                rows = g.flatten(2).mT.flatten(0, 1) if g.ndim == 4 else g.flatten(0, -2)
                sums[name] = sums[name] + rows.mT @ rows / len(x)
    for name, here in seen.items():
        a = torch.cat([t.flatten(0, -2) for t in here.inputs])
        found[name] = (sums[name], a.mT @ a / len(a))
    return found


def features(layer: nn.Module, x: Tensor) -> Tensor:
    """What the weights of a layer act on, with a one for the bias: (n, sites, in + 1)."""
    if isinstance(layer, nn.Conv2d):
        x = unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride).mT  # type: ignore[arg-type]
    return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], dim=-1)


def directions(
    model: nn.Module, x: Tensor, root: Callable[[Tensor], Tensor], loss: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """G⁻¹ DW A⁻¹ of every layer, DW the gradient of the loss by weight and bias, as the parameters are named."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = dict(zip(names, torch.autograd.grad(loss(model(x)), parameters), strict=True))
    found = {}
    for name, (G, A) in factors(model, x, root).items():
        weight = gradients[f"{name}.weight"]
        DW = torch.cat([weight.flatten(1), gradients[f"{name}.bias"][:, None]], dim=1)
        step = torch.linalg.solve(G, torch.linalg.solve(A, DW, left=False))
        found[f"{name}.weight"] = step[:, :-1].reshape(weight.shape)
        found[f"{name}.bias"] = step[:, -1]
    return found
