"""The differential of a network's loss at a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import NonFinite
from .precision import dense

if TYPE_CHECKING:
    from .network import Network


def gradients_of_loss(network: Network, x: Any, y: Any) -> dict[str, Tensor]:
    """The gradients of the mean negative log-likelihood, by parameter name."""
    network.check_unchanged()
    parameters = network.parameters
    with torch.enable_grad():
        z = network.outputs(x)
        network.likelihood.validate(z.detach(), y)
        loss = network.likelihood.loss(z, y)
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    pairs = zip(parameters.items(), gradients, strict=True)
    found = {name: torch.zeros_like(p) if g is None else dense(g) for (name, p), g in pairs}
    for name, g in found.items():
        if not bool(g.isfinite().all()):
            network._watched(x)  # names the first layer, where it is the forward's
            raise NonFinite(
                f"NonFinite in {network.name}.differential: the gradient of {name!r} holds NaN or infinity."
            )
    return found
