"""The classical methods: the one optimizer with its policies set. The repr of each is its recipe, in full.

    opt = HessianFree(model, likelihood=Bernoulli())

`settings` are those of `NaturalGradient` (of `SteepestDescent` for the two spectral ones), and win over the preset's.
PRONG and SNGD, gradient descent in frames, are in `in_frames`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import nn

from .. import metrics
from ..likelihoods import Likelihood
from ..metrics import Fisher, GradientCovariance, NamedFrame, RiemannianMetric, RootMeanSquare
from ..networks import Empirical, Linearized, MonteCarlo
from ..norms import NewtonSchulz, Norm, Spectral
from ..solvers import CG, MinresQLP
from .averaging import IterateAverage
from .conjugate import ConjugateDirections, Flat, PlaneSearch, Transport
from .corrected import GeodesicCorrected
from .damping import Damping, Factored, LevenbergMarquardt, Tikhonov
from .from_gradient import FromGradient
from .krylov import KrylovSubspace
from .natural_gradient import NaturalGradient
from .plain import OverDepth, Promised
from .schedule import Schedule
from .searched import Searched
from .steepest import SteepestDescent
from .steps import Constant, StepRule
from .truncated import TruncatedNewton

ALWAYS = Schedule(1, 1)


def policy(damping: Damping | float | None, adaptive: Callable[[float], Damping]) -> Damping | None:
    """A number for damping is where the preset's own policy starts; anything else is taken as it is."""
    number = isinstance(damping, (int, float)) and not isinstance(damping, bool)
    return adaptive(float(damping)) if number else damping  # type: ignore[arg-type, return-value]


def PublishedKFAC(
    model: nn.Module,
    likelihood: Likelihood,
    metric: RiemannianMetric = metrics.KFAC(),
    damping: Damping | float | None = 150.0,
    fraction: float = 1 / 8,
    **settings: Any,
) -> NaturalGradient:
    """K-FAC as its authors run it (Martens & Grosse 2015), for large batches, which a loop may let grow.

    λ is Levenberg's and Marquardt's, by (19/20)⁵ every five steps; the factors are damped by a γ of their own, tried at
    three values every twenty steps on the exact quadratic model; steps are the minimum of that model over the natural
    gradient and the last displacement. Statistics are of one sampled label on an eighth of the batch, their mean
    until it is the average with decay 0.95; iterates are averaged from step 200 on: `opt.averaged_parameters()`.
    The λ at the start is for autoencoders whose loss is a sum over pixels; classifiers want about 1. The published
    default for the metric is `BlockTridiagonalKFAC()`. An L2 penalty is left to `weight_decay`.
    """
    own: dict[str, Any] = {
        "lr": 1.0, "momentum": 0.0, "estimator": MonteCarlo(1), "decay": 0.95, "averages": "growing",
        "damping": policy(
            damping, lambda x: Searched(LevenbergMarquardt(Factored(x, split="frobenius"), 19 / 20, 5, 1e-5, 1e3))
        ),
        "schedule": Schedule(1, 20, fraction, warmup=3), "step_size": PlaneSearch(),
        "averaging": IterateAverage(0.99, start=200),
    }  # fmt: skip
    return NaturalGradient(model, likelihood, metric, **{**own, **settings})


def OnlineNaturalGradient(
    model: nn.Module,
    likelihood: Likelihood,
    lr: float = 0.03,
    damping: Damping | float | None = 1e-2,
    **settings: Any,
) -> NaturalGradient:
    """The online algorithm of deep linear theory (Bernacchia, Lengyel & Hennequin 2018): K-FAC's blocks, steps 1/L.

    In every one of L layers dW = -(lr/L) G⁻¹ df A⁻¹, with G of targets drawn from the model, A of activations, both
    averaged over time and each damped by √λ. On deep linear networks the function then moves as it would with one
    layer.
    """
    own: dict[str, Any] = {
        "momentum": 0.0, "estimator": MonteCarlo(1), "decay": 0.95,
        "damping": policy(damping, lambda x: Factored(x, split="none")),
        "step_size": OverDepth(Constant()),
    }  # fmt: skip
    return NaturalGradient(model, likelihood, metrics.KFAC(), lr=lr, **{**own, **settings})


def HessianFree(
    model: nn.Module,
    likelihood: Likelihood,
    metric: RiemannianMetric = Fisher("matrix-free"),
    damping: Damping | float | None = 45.0,
    iterations: int = 250,
    **settings: Any,
) -> NaturalGradient:
    """Hessian-free optimization (Martens 2010): truncated Newton steps on the Gauss-Newton form.

    For a likelihood and its own output, as all of ours, that form is the Fisher: the steps are truncated natural
    gradients. Conjugate gradients start at 0.95 times the last solution and end where they make little progress; the
    loss on the batch says which iterate to take, a line search how far along it; λ changes by 2/3 at every step. The
    gradient wants a large batch; the metric may have a smaller one: `opt.observe(x)`. The λ at the start is for sums
    over pixels.
    """
    own: dict[str, Any] = {
        "lr": 1.0, "momentum": 0.0, "estimator": Linearized(), "decay": 0.0, "schedule": ALWAYS,
        "damping": policy(damping, lambda x: LevenbergMarquardt(Tikhonov(x), 2 / 3, 1, 1e-6, 1e6)),
        "step_size": TruncatedNewton(iterations),
    }  # fmt: skip
    return NaturalGradient(model, likelihood, metric, **{**own, **settings})


def KrylovSubspaceDescent(
    model: nn.Module,
    likelihood: Likelihood,
    metric: RiemannianMetric = Fisher("matrix-free"),
    size: int = 16,
    iterations: int = 12,
    **settings: Any,
) -> NaturalGradient:
    """Krylov subspace descent (Vinyals & Povey 2012): BFGS on the loss, over the span of df, F df, ..., the last step.

    Three batches may differ: that of the gradient is the loop's, that of the metric is given by `opt.observe(x)`, and
    that of BFGS by `opt.evaluate_on(x, y)`.
    """
    own: dict[str, Any] = {
        "lr": 1.0, "momentum": 0.0, "estimator": Linearized(), "decay": 0.0, "schedule": ALWAYS, "damping": None,
        "step_size": KrylovSubspace(size, iterations),
    }  # fmt: skip
    return NaturalGradient(model, likelihood, metric, **{**own, **settings})


def NaturalConjugateGradient(
    model: nn.Module,
    likelihood: Likelihood,
    metric: RiemannianMetric = metrics.KFAC(),
    method: Literal["polak-ribiere", "joint"] = "polak-ribiere",
    search: Literal["model", "loss"] = "loss",
    transport: Transport = Flat(),
    damping: Damping | float | None = LevenbergMarquardt(Factored(1.0)),
    **settings: Any,
) -> NaturalGradient:
    """Natural conjugate gradients (Pascanu & Bengio 2013; Gonzalez & Dorronsoro 2006).

    "polak-ribiere" makes directions by that rule in the metric, and searches along them: on the quadratic model, or
    from its minimum back until the loss has fallen enough. "joint" searches in the plane of the natural gradient and
    the last displacement: the minimum of the quadratic model, or of the loss itself without derivatives.
    """
    rule: StepRule = (
        ConjugateDirections("armijo" if search == "loss" else "model", transport=transport)
        if method == "polak-ribiere"
        else PlaneSearch(search, transport=transport)
    )
    own: dict[str, Any] = {"lr": 1.0, "momentum": 0.0, "damping": damping, "step_size": rule}
    return NaturalGradient(model, likelihood, metric, **{**own, **settings})


def MinresNaturalGradient(
    model: nn.Module,
    likelihood: Likelihood,
    metric: RiemannianMetric = Fisher("matrix-free"),
    lr: float = 1.0,
    damping: Damping | float | None = 6.0,
    iterations: int = 30,
    **settings: Any,
) -> NaturalGradient:
    """Natural gradient by MINRES-QLP, with the damping rule of pascanur/natgrad (Pascanu & Bengio 2013).

    The solver begins at the gradient itself, and takes what it has at a residual of 1e-4 or after 30 iterations. λ
    becomes 3/2 of what it was where the loss falls by less than a quarter of what the *gradient* promises, 2/3 where by
    more than three quarters, and never less than 1e-4. Its learning rates are
    `LambdaLR(opt, lambda t: 1 / (1 + max(t - 150, 0) / 20))`. Other inputs for the metric: `opt.observe(x)`.
    """
    solver = FromGradient(MinresQLP(tolerance=1e-4, max_iterations=iterations))
    own: dict[str, Any] = {
        "momentum": 0.0, "estimator": Linearized(), "decay": 0.0, "schedule": ALWAYS, "solver": solver,
        "damping": policy(damping, lambda x: LevenbergMarquardt(Tikhonov(x), 2 / 3, 1, 1e-4, 1e6)),
        "step_size": Promised(),
    }  # fmt: skip
    return NaturalGradient(model, likelihood, metric, lr=lr, **{**own, **settings})


def TONGA(
    model: nn.Module,
    likelihood: Likelihood,
    structure: Literal["full", "block-diagonal"] = "block-diagonal",
    rank: int | None = None,
    lr: float = 0.1,
    damping: Damping | float | None = 1.0,
    **settings: Any,
) -> NaturalGradient:
    """Topmoumoute online natural gradient (Le Roux, Manzagol & Bengio 2008): the covariance of gradients.

    It is centred, and of the data's own labels: no Fisher. `rank` keeps its largest axes alone, in every layer by
    itself or of all parameters together.
    """
    covariance = GradientCovariance(centred=True, structure=structure, rank=rank)
    own: dict[str, Any] = {
        "momentum": 0.0, "damping": policy(damping, Tikhonov), "estimator": Empirical(), "decay": 0.0,
        "schedule": ALWAYS, "step_size": Constant(),
    }  # fmt: skip
    return NaturalGradient(model, likelihood, covariance, lr=lr, **{**own, **settings})


def GeodesicNaturalGradient(
    model: nn.Module,
    likelihood: Likelihood,
    metric: RiemannianMetric = Fisher("matrix-free"),
    lr: float = 1.0,
    damping: Damping | float | None = 1.0,
    iterations: int = 20,
    **settings: Any,
) -> NaturalGradient:
    """Natural gradient steps bent along the geodesic (Song, Song & Ermon 2018), as long as the quadratic model says.

    Truncated conjugate gradients solve both for the step and for its correction; λ adapts.
    """
    own: dict[str, Any] = {
        "momentum": 0.0, "estimator": Linearized(), "decay": 0.0, "schedule": ALWAYS,
        "solver": CG(iterations=iterations),
        "damping": policy(damping, lambda x: LevenbergMarquardt(Tikhonov(x), 0.9, 5, 1e-3, 1e6)),
        "step_size": GeodesicCorrected(PlaneSearch()),
    }  # fmt: skip
    return NaturalGradient(model, likelihood, metric, lr=lr, **{**own, **settings})


def Adam(
    model: nn.Module,
    likelihood: Likelihood,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    frame: NamedFrame | None = None,
    **settings: Any,
) -> NaturalGradient:
    """Adam as a natural gradient: the metric √v + eps in a frame, and momentum of gradients.

    In the coordinates, which are the frame where none is given, its steps are those of `torch.optim.Adam`.
    """
    own: dict[str, Any] = {
        "momentum": betas[0], "momentum_of": "gradients", "decay": betas[1], "damping": None,
        "estimator": Empirical(), "schedule": ALWAYS, "step_size": Constant(),
    }  # fmt: skip
    return NaturalGradient(model, likelihood, RootMeanSquare(eps, frame=frame), lr=lr, **{**own, **settings})


def Muon(
    model: nn.Module, likelihood: Likelihood, lr: float = 0.02, momentum: float = 0.95, **settings: Any
) -> SteepestDescent:
    """Muon: steepest descent in the spectral norm of every weight, in the coordinates, by five Newton-Schulz steps."""
    norm: Norm = Spectral(method=NewtonSchulz(), scale="original", bias="separate")
    return SteepestDescent(model, likelihood, **{"norm": norm, "lr": lr, "momentum": momentum, **settings})


def SpectralNaturalGradient(
    model: nn.Module,
    likelihood: Likelihood,
    metric: RiemannianMetric = metrics.KFAC().damp_factors(1e-3),
    lr: float = 0.02,
    momentum: float = 0.95,
    **settings: Any,
) -> SteepestDescent:
    """Steepest descent in the operator norm between the spaces of K-FAC: Muon that keeps what K-FAC keeps.

    With `metric=KFAC()`, undamped, that is every affine frame.
    """
    norm: Norm = Spectral(metric, NewtonSchulz())
    return SteepestDescent(model, likelihood, **{"norm": norm, "lr": lr, "momentum": momentum, **settings})
