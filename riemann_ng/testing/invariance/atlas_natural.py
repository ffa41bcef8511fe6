"""The subjects of the atlas that observe the network, with the claims that theory makes for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ... import optim
from ...likelihoods import EuclideanOutput
from ...metrics import (
    EKFAC,
    KFAC,
    SOAP,
    BatchNormalization,
    EuclideanMetric,
    Fisher,
    GaussNewton,
    KLShampoo,
    Whitening,
)
from ...networks import Network
from .atlas_rows import NaturalTraining, Row, library, natural, torch_optimizer
from .methods.metrics import EmpiricalFisher, FlipFlop, InputsDamped
from .methods.metrics import Whitening as WhitenedInputs
from .methods.natural import (
    GradientMomentum,
    IdentityStarted,
    InverseFree,
    Natural,
    OverTime,
    bias_rate,
    damped_by_the_start,
    decay,
    euclidean_clip,
    frame_of_half,
    half_of_the_batch,
)
from .subjects import Subject

AFF, GL, O, TO, TM = "Aff", "GL", "O", "T.O", "T.M"  # noqa: E741


def made(name: str, make: Callable[[Network], Natural]) -> Callable[[], Subject]:
    return lambda: NaturalTraining(make, name)


def kfac() -> Iterator[Row]:
    def row(name: str, metric: Any, lr: float, changes: tuple[Any, ...], *claims: Any, **more: Any) -> Row:
        options = {key: more.pop(key) for key in ("l2", "spectral") if key in more}
        return Row(name, "K-FAC", natural(name, metric, lr, *changes, **options), *claims, **more)

    def own(name: str, lr: float, *claims: Any, **options: Any) -> Row:
        return Row(name, "K-FAC", torch_optimizer(name, library(lr, **options)), *claims)

    joint, coordinates = KFAC(), EuclideanMetric()
    yield row("K-FAC", joint, 0.15, (), AFF, AFF, AFF, True, False, quick=True)
    yield own("K-FAC, running averages, momentum", 0.1, AFF, AFF, AFF, True, False, decay=0.8, momentum=0.8)
    yield row("K-FAC, momentum of gradients", joint, 0.15, (GradientMomentum,), AFF, AFF, AFF, True, False)
    yield own("K-FAC, KL clip", 100.0, AFF, AFF, AFF, True, True, step_size=optim.KLClip(0.02))
    yield own(
        "K-FAC, rescaled by the exact Fisher", 0.3, AFF, AFF, AFF, True, False,
        momentum=0.5, step_size=optim.QuadraticModel(),
    )  # fmt: skip
    yield row("K-FAC, weight and bias apart", KFAC(bias="separate"), 0.15, (), GL, AFF, AFF, True, False, quick=True)
    yield row("K-FAC, other rate for biases", joint, 0.15, (lambda: bias_rate(0.3),), GL, AFF, AFF, True, False)
    yield row("K-FAC, other rate at the mean", joint, 0.15, (lambda: bias_rate(0.3, True),), AFF, AFF, AFF, True, False)
    yield row(
        "K-FAC, factors damped", joint.damp_factors(0.1, coordinates, "none"), 0.3, (), O, TO, TO, False, False,
        quick=True,
    )  # fmt: skip
    yield row(
        "K-FAC, factors damped, π by traces", joint.damp_factors(0.1, coordinates), 0.3, (), O, TO, TO, True, False
    )
    by_norms = joint.damp_factors(0.1, coordinates, "frobenius")
    yield row("K-FAC, factors damped, π by norms", by_norms, 0.3, (), O, TO, TO, True, False)
    yield row("K-FAC, exact Tikhonov", joint + 0.03 * coordinates, 0.2, (), O, TO, TO, True, False)
    yield row("K-FAC, inputs damped on V", InputsDamped(0.1), 0.2, (), TO, AFF, AFF, False, False)
    yield row("K-FAC, inputs damped relative to V", InputsDamped(0.1, True), 0.2, (), "T.CO", AFF, AFF, True, False)
    yield Row(
        "K-FAC, transported damping", "K-FAC",
        made("K-FAC, transported damping", lambda n: descent_from_the_start(n)), AFF, AFF, AFF, True, False, quick=True,
    )  # fmt: skip
    yield Row(
        "K-FAC, averages from the identity", "K-FAC",
        made("K-FAC, averages from the identity", lambda n: IdentityStarted(n, 0.2)), O, TO, TO, False, False,
    )  # fmt: skip
    yield row("K-FAC, Euclidean clip", joint, 0.3, (lambda: euclidean_clip(0.2),), O, TO, TO, True, True)
    yield row("K-FAC, decay", joint, 0.15, (lambda: decay(0.5),), AFF, GL, GL, True, False)
    yield row("K-FAC, decay of weights", joint, 0.15, (lambda: decay(0.5, "weights"),), GL, AFF, AFF, True, False)
    yield row(
        "K-FAC, decay to the start", joint, 0.15, (lambda: decay(0.5, to_start=True),), AFF, AFF, AFF, True, False
    )
    yield row("K-FAC, L2 in the loss", joint, 0.1, (), O, O, O, True, False, l2=0.01)
    yield row("spectral norm in K-FAC's spaces", joint, 0.1, (), AFF, AFF, AFF, True, True, spectral=True, quick=True)


def descent_from_the_start(network: Network) -> Natural:
    from_start = natural("", damped_by_the_start(0.3), 0.2)()
    assert isinstance(from_start, NaturalTraining)
    return from_start.make(network)


def others() -> Iterator[Row]:
    def row(name: str, family: str, metric: Any, lr: float, *claims: Any, **more: Any) -> Row:
        return Row(name, family, natural(name, metric, lr), *claims, **more)

    def singd(start: str, lr: float, from_factors: bool, *claims: Any) -> Row:
        name = f"SINGD, dense, from {start}"
        return Row(name, frames, made(name, lambda n: InverseFree(n, lr, from_factors=from_factors)), *claims)

    coordinates, full, frames = EuclideanMetric(), "full and structured", "eigenframes and whitening"
    yield row("EKFAC", frames, EKFAC(), 0.15, O, "T.CO", "T.CO", True, False, note="ε = 0", quick=True)
    yield row("EKFAC, damped", frames, EKFAC() + 0.03 * coordinates, 0.15, O, TO, TO, True, False)
    yield row(
        "EKFAC relative to another sample", frames, lambda n, x: EKFAC(reference=half_of_the_batch(n, x)), 0.15,
        AFF, AFF, AFF, True, False,
    )  # fmt: skip
    yield row("PRONG", frames, WhitenedInputs(), 0.5, AFF, TO, TO, False, False, note="ε = 0", quick=True)
    yield row("PRONG, ε > 0", frames, WhitenedInputs(0.1), 0.5, TO, TO, TO, False, False)
    by_units, both = BatchNormalization("activations", 0.0), Whitening("both", 0.0)
    given = BatchNormalization("pre-activations", 0.0)
    yield row("batch normalization of activations", frames, by_units, 0.5, TM, TO, TO, False, False, note="ε = 0")
    yield row("batch normalization of pre-activations", frames, given, 0.5, O, TM, TM, False, False, note="ε = 0")
    yield row("whitening of both", frames, both, 0.3, AFF, AFF, AFF, True, False, note="ε = 0")
    yield Row(
        "SOAP, a metric over time", frames, made("SOAP", lambda n: OverTime(n, SOAP(1e-3, every=2), 0.05)),
        O, TO, TO, True, False, note="ε = 1e-3; factors whose eigenvalues are apart", steps=6,
    )  # fmt: skip
    yield row(
        "SOAP relative to another sample", frames,
        lambda n, x: SOAP(0.0, of="examples", frame=frame_of_half(n, x)), 0.05,
        AFF, AFF, AFF, True, False, note="ε = 0",
    )  # fmt: skip
    yield row("KL-Shampoo", frames, KLShampoo(), 0.1, O, TO, TO, True, False, note="ε = 0")
    yield row("KL-Shampoo, no root", frames, KLShampoo(power=1.0), 0.5, AFF, AFF, AFF, True, False, note="ε = 0")
    yield singd("the identity", 0.8, False, O, TO, TO, False, False)
    yield singd("the first factors", 0.15, True, AFF, AFF, AFF, True, False)
    yield row("flip-flop, converged", frames, FlipFlop(), 10.0, AFF, AFF, AFF, True, False)
    yield row("flip-flop, one iteration", frames, FlipFlop(1), 10.0, O, AFF, AFF, True, False)
    yield row("exact Fisher", full, Fisher(), 0.15, AFF, AFF, AFF, True, False, quick=True)
    yield row("block Fisher", full, Fisher(structure="block-diagonal"), 0.15, AFF, AFF, AFF, True, False)
    yield row("empirical Fisher", full, EmpiricalFisher(), 0.15, AFF, AFF, AFF, True, False)
    yield row("exact Fisher + λ", full, Fisher() + 0.03 * coordinates, 0.15, O, TO, TO, True, False)
    yield row("Gauss-Newton, Euclidean outputs", full, GaussNewton(EuclideanOutput()), 0.5, AFF, AFF, TO, False, False,
              quick=True)  # fmt: skip
    yield row("unit-wise Fisher", full, Fisher(structure="unit-wise"), 0.15, AFF, "T.M", "T.M", True, False)
    yield row("quasi-diagonal Fisher", full, Fisher(structure="quasi-diagonal"), 0.15, "T.M", "T.M", "T.M", True, False)
    yield row("diagonal Fisher", full, Fisher(structure="diagonal"), 0.15, "M", "T.M", "T.M", True, False, quick=True)
