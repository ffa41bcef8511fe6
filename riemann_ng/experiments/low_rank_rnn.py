"""Learning in a linear recurrent network of low rank, in overlap space: what closes, and what natural gradient does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..likelihoods import Gaussian
from ..metrics import EuclideanMetric, Fisher
from ..natural_gradient import natural_gradient
from ..networks import Network
from .base import Experiment, Run
from .overlaps import Field, Overlaps, embedded, reduced, runge_kutta, simulated
from .records import Panel, Picture, Series, Table

ROUNDING = "float64, vectors with overlaps of condition below 1e3"
DAMPING = 0.1


@dataclass
class Full:
    """The network with N units, read by the library: a function of m and n, which are Z's first columns."""

    network: Network
    overlaps: Overlaps
    Z: Tensor

    @classmethod
    def of(cls, overlaps: Overlaps, Z: Tensor) -> Full:
        R = overlaps.R
        u, w = Z[:, 2 * R].clone(), Z[:, 2 * R + 1].clone()
        parameters = {"m": Z[:, :R].clone(), "n": Z[:, R : 2 * R].clone()}
        network = Network.from_function(
            lambda p, inputs: simulated(p, u, w, inputs), parameters, Gaussian(), overlaps.inputs
        )
        return cls(network, overlaps, Z)

    @property
    def N(self) -> int:
        return len(self.Z)

    def move_to(self, state: Tensor) -> None:
        with torch.no_grad():
            for p, part in zip(self.network.parameters.values(), state.split(self.overlaps.R, 1), strict=True):
                p.copy_(part)

    def start(self) -> Tensor:
        """M and N side by side."""
        return self.Z[:, : 2 * self.overlaps.R]

    def descent(self, state: Tensor) -> Tensor:
        """The gradient flow at the rate N."""
        self.move_to(state)
        v = natural_gradient(self.network, EuclideanMetric(), self.overlaps.inputs, self.overlaps.targets)
        return -self.N * self.flat(v.to_parameters())

    def natural(self, damping: float | None) -> Field:
        """The natural flow, damped by the coordinates over N; without damping the shortest."""

        def velocity(state: Tensor) -> Tensor:
            self.move_to(state)
            x, y, coordinates = self.overlaps.inputs, self.overlaps.targets, EuclideanMetric()
            if damping is None:
                v = natural_gradient(self.network, Fisher(), x, y, modulo_kernel=coordinates)
            else:
                v = natural_gradient(self.network, Fisher(), x, y, damping=damping / self.N * coordinates)
            return -self.flat(v.to_parameters())

        return velocity

    def flat(self, parts: dict[str, Tensor]) -> Tensor:
        return torch.cat([parts[name] for name in self.network.parameters], 1)

    def Q(self, state: Tensor) -> Tensor:
        """Overlaps (..., k, k) of states (..., N, 2R)."""
        fixed = self.Z[:, 2 * self.overlaps.R :].expand(*state.shape[:-1], 2)
        Z = torch.cat([state, fixed], -1)
        return Z.mT @ Z / self.N

    def dQ(self, velocity: Tensor) -> Tensor:
        """How the overlaps move at the start when M and N do."""
        moved = torch.cat([velocity, torch.zeros(self.N, 2, dtype=velocity.dtype)], -1)
        half = self.Z.mT @ moved / self.N
        return half + half.mT


def task(run: Run, R: int) -> Overlaps:
    """Random smooth inputs, and targets from a teacher of the same rank."""
    examples, steps = run.choose(quick=(6, 20), full=(12, 30))
    phase, speed = run.normal("phase", examples, 1), run.normal("speed", examples, 1)
    inputs = torch.cos(phase + (0.3 + 0.2 * speed) * torch.arange(steps))
    sigma = 0.3 * torch.eye(R).double() + 0.2 * run.normal(f"teacher {R}", R, R)
    targets = reduced(sigma, torch.full((R,), 0.8).double(), torch.linspace(0.9, 0.6, R).double(), 0.1, inputs)
    return Overlaps(R, inputs, targets)


def overlaps_at_start(run: Run, R: int) -> Tensor:
    """Q of moderate condition, with ν and ω away from zero, where the function would not depend on σ."""
    A = run.normal(f"overlaps {R}", 2 * R + 2, 2 * R + 2) / (2 * R + 2) ** 0.5
    Q = torch.eye(len(A)).double() + 0.1 * A @ A.mT
    along = torch.arange(R)
    for i, j in ((R + along, 2 * R), (along, 2 * R + 1)):
        Q[i, j] += 0.3
        Q[j, i] += 0.3
    return Q


def rescaled(Q: Tensor, R: int, factor: float) -> Tensor:
    """The same σ, ν, ω and c, with vectors that are longer by other overlaps: still overlaps of vectors."""
    return Q + (factor - 1) * torch.diag(Q.diagonal())


def off(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def velocities(run: Run) -> None:
    """At one moment: outputs, slopes and velocities by N units and by overlaps."""
    for R in (1, 2, 3):
        law, Q = task(run, R), overlaps_at_start(run, R)
        found: dict[str, list[float]] = {}
        for N in (20, 60):
            full = Full.of(law, embedded(Q, N, run.generator(f"axes {R} {N}")))
            z = full.network.outputs(law.inputs).detach()
            expected = law.outputs(law.coordinates(Q), Q[law.blocks[3], law.blocks[2]])
            found.setdefault("outputs", []).append(off(z, expected))
            descent, natural = full.dQ(full.descent(full.start())), full.dQ(full.natural(DAMPING)(full.start()))
            found.setdefault("gradient flow", []).append(off(descent, law.descent(Q)))
            found.setdefault("damped natural flow", []).append(off(natural, law.natural(DAMPING)(Q)))
        for what, values in found.items():
            run.below(f"{what} of 20 and 60 units by overlaps, rank {R}", max(values), 1e-9, ROUNDING)
        m, n, u, w = law.blocks
        xi = law.slope(Q)
        swapped = torch.cat([xi[: R * R], xi[R * R + R :], xi[R * R : R * R + R]])  # ν and ω exchanged
        wrong = off(law.field(swapped, Q), law.descent(Q))
        run.above(f"with the slopes of ν and ω exchanged it fails, rank {R}", wrong, 1e-2, control=True)
        sigma, nu, omega = Q[n, m], Q[n, u], Q[w, m]
        L_sigma, L_nu, L_omega = xi[: R * R].reshape(R, R), xi[R * R : R * R + R], xi[R * R + R :]
        gauge = sigma.mT @ L_sigma - L_sigma @ sigma.mT + torch.outer(omega, L_omega) - torch.outer(L_nu, nu)
        run.below(f"the loss does not see (M, N) → (M B, N B⁻ᵀ), rank {R}", gauge.norm() / xi.norm(), 1e-12, ROUNDING)
    law, Q = task(run, 1), overlaps_at_start(run, 1)
    run.below("rank 1: the seven equations written out", off(law.descent(Q), rank_one(law, Q)), 1e-13, ROUNDING)


def rank_one(law: Overlaps, Q: Tensor) -> Tensor:
    """Q' of the gradient flow for rank 1, overlap by overlap."""
    (a_m, sigma, mu, omega), (_, a_n, nu, rho), (_, _, U, c), (_, _, _, V) = Q.tolist()
    p, q, r = law.slope(Q).tolist()
    d = {
        (0, 1): -(p * (a_m + a_n) + q * mu + r * rho), (1, 2): -(p * mu + q * U), (0, 3): -(p * rho + r * V),
        (0, 0): -2 * (p * sigma + r * omega), (1, 1): -2 * (p * sigma + q * nu),
        (0, 2): -(p * nu + r * c), (1, 3): -(p * omega + q * c),
    }  # fmt: skip
    result = torch.zeros_like(Q)
    for (i, j), value in d.items():
        result[i, j] = result[j, i] = value
    return result


def trajectories(run: Run) -> None:
    """Whole paths, integrated in both coordinates; what differs is the integration's error, and what is conserved."""
    N, step, steps = run.choose(quick=(30, 0.1, 12), full=(100, 0.05, 24))
    panels = []
    for R in (1, 2):
        law, Q = task(run, R), overlaps_at_start(run, R)
        full = Full.of(law, embedded(Q, N, run.generator(f"axes {R}")))
        m, n = law.blocks[:2]
        flows = (
            ("gradient flow", full.descent, law.descent, 2 * step),
            ("damped natural flow", full.natural(DAMPING), law.natural(DAMPING), step / 2),
        )  # fmt: skip
        for flow, whole, small, longest in flows:
            dt, own, error = integrated(small, Q, longest, steps)
            path = full.Q(runge_kutta(whole, full.start(), dt, steps))
            between = (path - own).abs().max()
            run.below(f"{flow}, rank {R}: paths of {N} units and of overlaps", between, 20 * error + 1e-12,
                      "twenty times the error of the integration, by steps a fourth as long")  # fmt: skip
            run.number(f"{flow}, rank {R}: error of the integration", error)
            run.number(f"{flow}, rank {R}: its step", dt)
            if R == 1 and whole == full.descent:
                halved = full.Q(runge_kutta(whole, full.start(), dt / 2, 2 * steps))[::2]
                nearer = (halved - runge_kutta(small, Q, dt / 2, 2 * steps)[::2]).abs().max()
                run.above("half the step brings the paths together, 2⁴ times", (path - own).abs().max() / nearer, 8,
                          "a rule of the fourth order")  # fmt: skip
            kept = path[:, m, m] - path[:, n, n]
            drift = float((kept - kept[0]).abs().max())
            run.below(f"{flow}, rank {R}: MᵀM - NᵀN is conserved", drift, 20 * error + 1e-12, "the same")
            changed = path[:, m, m] + path[:, n, n]
            run.above(f"{flow}, rank {R}: MᵀM + NᵀN is not", (changed - changed[0]).abs().max(), max(1e-4, 100 * error),
                      control=True)  # fmt: skip
            if R == 1:
                names = {"σ": (1, 0), "ν": (1, 2), "ω": (3, 0), "a_m": (0, 0), "a_n": (1, 1), "μ": (0, 2), "ρ": (1, 3)}
                time = [dt * k for k in range(steps + 1)]
                lines = [Series(name, time, own[:, i, j], color=k) for k, (name, (i, j)) in enumerate(names.items())]
                dots = [Series("", time, path[:, i, j], "points", k) for k, (i, j) in enumerate(names.values())]
                panels.append(Panel(f"{flow}, rank 1", "time", "overlap", [*lines, *dots]))
    caption = f"Overlaps in time: lines by their own equation, points from {N} units."
    run.picture(Picture("overlaps", caption, panels))


def integrated(
    field: Field, start: Tensor, dt: float, steps: int, accuracy: float = 1e-5
) -> tuple[float, Tensor, float]:
    """The longest of dt, dt/2, ... with which the path is accurate, the path, and its distance to one of steps dt/4."""
    while True:
        path = runge_kutta(field, start, dt, steps)
        error = float((path - runge_kutta(field, start, dt / 4, 4 * steps)[::4]).abs().max())
        if error < accuracy:
            return dt, path, error
        dt /= 2


def gauge_invariant(run: Run) -> None:
    """Rank 1, undamped: the function's velocity is a natural gradient in σ and ων, whatever the vectors."""
    law, Q = task(run, 1), overlaps_at_start(run, 1)
    _, _, u, w = law.blocks
    c = Q[w, u]

    def function(p: Tensor, inputs: Tensor) -> Tensor:
        one = torch.ones(1, dtype=inputs.dtype)
        return reduced(p[:1].reshape(1, 1), one, p[1:], c, inputs)

    def own(Q: Tensor) -> Tensor:
        return torch.stack([Q[1, 0], Q[3, 0] * Q[1, 2]])

    two = Network.from_function(function, own(Q), Gaussian(), law.inputs)
    expected = -next(iter(natural_gradient(two, Fisher(), law.inputs, law.targets).to_parameters().values()))
    rows: list[tuple[str | float, ...]] = [("two numbers", "", *expected.tolist(), "", "")]
    natural, descent = [], []
    for N in (20, 60):
        for factor in (1.0, 3.0):
            full = Full.of(law, embedded(rescaled(Q, 1, factor), N, run.generator(f"axes {N} {factor}")))

            def moved(velocity: Tensor, full: Full = full) -> Tensor:
                d = full.dQ(velocity)
                return torch.stack([d[1, 0], d[3, 0] * Q[1, 2] + Q[3, 0] * d[1, 2]])

            natural.append(moved(full.natural(None)(full.start())))
            descent.append(moved(full.descent(full.start())))
            rows.append((f"{N} units", f"lengths² × {factor:g}", *natural[-1].tolist(), *descent[-1].tolist()))
    run.below("natural: (σ, ων)' does not see N, nor the vectors", max(off(v, expected) for v in natural), 1e-7,
              "a degenerate solve, of condition below 1e8")  # fmt: skip
    run.above("gradient: it depends on the vectors' lengths", off(descent[1], descent[0]), 0.1, control=True)
    run.below("gradient: at the rate N it does not see N", off(descent[2], descent[0]), 1e-9, ROUNDING)
    run.table(Table("velocities of σ and ων", ("", "", "natural σ'", "(ων)'", "gradient σ'", "(ων)'"), rows))
    law, Q = task(run, 2), overlaps_at_start(run, 2)
    pushed = []
    for N, factor in ((20, 1.0), (60, 3.0)):
        full = Full.of(law, embedded(rescaled(Q, 2, factor), N, run.generator(f"axes of two {N}")))
        v = natural_gradient(full.network, Fisher(), law.inputs, law.targets, modulo_kernel=EuclideanMetric())
        pushed.append(full.network.pushforward(v, law.inputs))
    run.below("rank 2: the velocity of the outputs does not see N, nor the vectors", off(pushed[1], pushed[0]), 1e-5,
              "a degenerate solve: Fishers of linear dynamics are ill-conditioned")  # fmt: skip
    draw_flows(run)


def draw_flows(run: Run) -> None:
    """Paths in the plane of σ and ων, and the loss in time, for vectors of several lengths."""
    law, dt, steps = task(run, 1), 0.1, run.choose(quick=30, full=100)
    plane, losses = [], []
    for k, factor in enumerate((1.0, 2.0, 3.0)):
        Q = rescaled(overlaps_at_start(run, 1), 1, factor)
        for name, field in (("gradient", law.descent), ("natural, λ = 1e-6", law.natural(1e-6))):
            path = runge_kutta(field, Q, dt, steps)
            found = torch.stack([law.loss(law.coordinates(q), q[3, 2]) for q in path])
            look: Literal["line", "dashes"] = "dashes" if name == "gradient" else "line"
            label = f"{name}, lengths² × {factor:g}"
            plane.append(Series(label, path[:, 1, 0], path[:, 3, 0] * path[:, 1, 2], look, k))
            losses.append(Series(label, [dt * i for i in range(steps + 1)], found, look, k))
    run.picture(
        Picture("flows", "The natural flow does not see the lengths of the vectors, the gradient flow does.", [
            Panel("in the plane of what the function depends on", "σ", "ων", plane),
            Panel("the loss", "time", "loss", losses, log="y"),
        ])
    )  # fmt: skip


EXPERIMENT = Experiment(
    "low-rank-rnn",
    "Learning in overlap space",
    "derived here: overlaps of linear low-rank recurrent networks, and their natural gradient",
    "Gradient flow of a linear recurrent network of rank R closes, for every N, on its vectors' overlaps. So does the "
    " damped natural flow. The undamped natural flow closes on what the function depends on: for rank 1 on two "
    "numbers, whatever N and the vectors are.",
    (("velocities", velocities), ("trajectories", trajectories), ("gauge-invariant part", gauge_invariant)),
)
