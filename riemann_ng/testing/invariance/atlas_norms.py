"""The subjects of the atlas that descend in a norm, with the claims that theory makes for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ...likelihoods import Likelihood
from ...metrics import KFAC
from ...networks import Exact
from ...norms import ByLayer, Modular, NewtonSchulz, Norm, Sign, Spectral
from ...optim import SteepestDescent
from .atlas_rows import Row, torch_optimizer
from .subjects import norm


def descent(of: Norm, lr: float) -> Any:
    """Exact factors, the momentum of Muon."""

    def make(model: nn.Module, likelihood: Likelihood) -> Optimizer:
        estimator = None if of.metric is None else Exact()
        return SteepestDescent(model, likelihood, of, lr=lr, momentum=0.8, estimator=estimator, decay=0.5)

    return make


def rows() -> Iterator[Row]:
    def row(name: str, of: Norm, lr: float, *claims: Any, **more: Any) -> Row:
        return Row(name, "norms", torch_optimizer(name, descent(of, lr)), *claims, **more)

    AFF, OR, TO, SP, TSP = "Aff", "O", "T.O", "SP", "T.SP"
    muon = Spectral(method=NewtonSchulz(), scale="original", bias="separate")
    yield row("spectral norm, bias inside", Spectral(), 0.1, OR, TO, TO, True, True)
    yield row("spectral norm, bias apart, Newton-Schulz", muon, 0.1, OR, TO, TO, True, True, quick=True, note="float64")
    yield row("largest entry, momentum", Sign(), 0.05, SP, TSP, TSP, True, True)
    mixed = ByLayer({"0": Spectral()}, otherwise=Sign())
    yield row("spectral norm first, then largest entry", mixed, 0.05, SP, TSP, TSP, True, True)
    kfac, product = "K-FAC's operator norm, momentum", Spectral(KFAC(), NewtonSchulz())
    yield row(kfac, Spectral(KFAC()), 0.1, AFF, AFF, AFF, True, True, quick=True)
    yield row(f"{kfac}, Newton-Schulz", product, 0.1, AFF, AFF, AFF, True, True)
    damped = Spectral(KFAC().damp_factors(0.1, split="none"))
    yield row("K-FAC's operator norm, factors damped", damped, 0.1, OR, TO, TO, False, True)
    name = "modular duality"
    yield Row(name, "norms", lambda: norm(Modular(), name), OR, TO, TO, True, False, note="one step")
