"""The classical methods of `riemann_ng.optim` as subjects of the atlas, with the claims that theory makes for them.

What searches on the loss, counts iterations or stops early does so by numbers, which no frame changes that keeps what
lengths are measured by: the reference of the damping. Those are rotations where it is the coordinates, and all affine
frames where it is the metric's own value at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ... import optim
from ...likelihoods import EuclideanOutput, Likelihood
from ...metrics import KFAC, Fisher, GaussNewton
from ...networks import Exact
from ...optim import AtStart, Factored, LevenbergMarquardt, Schedule, Searched, Tikhonov
from .atlas_rows import Row, torch_optimizer

EXACT: dict[str, Any] = {"estimator": Exact(), "schedule": Schedule(1, 1), "decay": 0.0}
START = AtStart(KFAC())


def with_settings(make: Callable[..., Optimizer], **settings: Any) -> Callable[[nn.Module, Likelihood], Optimizer]:
    return lambda model, likelihood: make(model, likelihood, **settings)


def rows() -> Iterator[Row]:
    def row(name: str, make: Callable[..., Optimizer], settings: dict[str, Any], *claims: Any, **more: Any) -> Row:
        return Row(name, "presets", torch_optimizer(name, with_settings(make, **settings)), *claims, **more)

    coordinates = ("O", "T.O", "T.O", True, False)
    everything = ("Aff", "Aff", "Aff", True, False)
    often: dict[str, Any] = {"estimator": Exact(), "schedule": Schedule(1, 2, warmup=1), "decay": 0.8}
    search = Searched(LevenbergMarquardt(Factored(0.3, split="frobenius"), every=2), every=2)
    moved = Searched(LevenbergMarquardt(Factored(0.3, START), every=2), every=2)
    yield row("K-FAC as published", optim.PublishedKFAC, {**often, "lr": 0.3, "damping": search}, *coordinates)
    yield row(
        "K-FAC as published, damping transported", optim.PublishedKFAC, {**often, "lr": 0.3, "damping": moved},
        *everything, quick=True,
    )  # fmt: skip
    online, undamped = optim.OnlineNaturalGradient, {**EXACT, "damping": None}
    yield row("online natural gradient, 1/L", online, {**EXACT, "lr": 0.5}, "O", "T.O", "T.O", False, False)
    yield row("online natural gradient, undamped", online, {**EXACT, "lr": 0.5, "damping": None}, *everything)
    free: dict[str, Any] = {"damping": 1.0, "iterations": 5}
    yield row("Hessian-free", optim.HessianFree, free, *coordinates)
    by_start = LevenbergMarquardt(Tikhonov(1.0, START), 2 / 3, 1)
    free = {"damping": by_start, "iterations": 5, "metric": Fisher(), "estimator": Exact()}
    yield row("Hessian-free, damping transported", optim.HessianFree, free, *everything, quick=True)
    span: dict[str, Any] = {"size": 3, "iterations": 2, "lr": 0.3}
    yield row("Krylov subspace descent", optim.KrylovSubspaceDescent, span, *coordinates)
    span |= {"damping": Tikhonov(0.1, START), "metric": Fisher(), "estimator": Exact()}
    yield row("Krylov subspace descent, in K-FAC's geometry", optim.KrylovSubspaceDescent, span, *everything)
    cg, half = optim.NaturalConjugateGradient, {**undamped, "lr": 0.3}
    yield row("natural conjugate gradients", cg, half, *everything)
    yield row("natural conjugate gradients, on the model", cg, {**half, "search": "model"}, *everything, quick=True)
    joint = {**half, "method": "joint"}
    yield row("natural conjugate gradients, joint search", cg, joint, *everything)
    yield row("natural conjugate gradients, joint on the model", cg, {**joint, "search": "model"}, *everything)
    minres = {"lr": 0.5, "damping": 1.0, "iterations": 5}
    yield row("natural gradient by MINRES from the gradient", optim.MinresNaturalGradient, minres, *coordinates)
    yield row("TONGA", optim.TONGA, {"lr": 0.1, "damping": None}, *everything)
    yield row("TONGA, damped", optim.TONGA, {"lr": 0.1, "damping": 0.1}, *coordinates)
    yield row("TONGA, low rank", optim.TONGA, {"lr": 0.1, "damping": 0.1, "rank": 3}, *coordinates)
    frames: dict[str, Any] = {"every": 2, "statistics": 1, "warmup": 1}
    yield row("PRONG, a preset", optim.PRONG, {**frames, "lr": 0.3, "epsilon": 0.0}, "Aff", "T.O", "T.O", False, False)
    frames |= {"lr": 0.1, "metric": KFAC(), "estimator": Exact(), "decay": 0.5, "damping": None}
    yield row("SNGD in K-FAC's frames", optim.SNGD, frames, *everything)
    bent: dict[str, Any] = {"metric": GaussNewton(structure="matrix-free"), "damping": 1.0, "iterations": 5, "lr": 0.5}
    geodesic, words = optim.GeodesicNaturalGradient, "Euclidean outputs"
    yield row("geodesic-corrected", geodesic, bent, "O", "T.O", "T.O", False, False, note=words)
    by_outputs = LevenbergMarquardt(Tikhonov(1.0, AtStart(KFAC(output=EuclideanOutput()))))
    bent |= {"metric": GaussNewton(), "damping": by_outputs, "solver": None, "estimator": Exact()}
    name = "geodesic-corrected, damping transported"
    yield row(name, geodesic, bent, "Aff", "Aff", "T.O", False, False, note=words)
    adam = {"lr": 0.05, "eps": 0.0}
    yield row("Adam as a natural gradient", optim.Adam, adam, "SP", "T.SP", "T.SP", True, True, note="ε = 0")
    yield row("Muon, a preset", optim.Muon, {"lr": 0.1}, "O", "T.O", "T.O", True, True, note="float64")
    spectral = {"lr": 0.1, "metric": KFAC(), "estimator": Exact()}
    yield row("spectral natural gradient", optim.SpectralNaturalGradient, spectral, "Aff", "Aff", "Aff", True, True)
