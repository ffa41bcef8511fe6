"""Krylov subspace descent: the loss itself, minimized over the span of a few directions that the metric makes.

The directions are M⁻¹df, (M⁻¹g) M⁻¹df, (M⁻¹g)² M⁻¹df, ... for the metric g and the reference M of the damping, and the
last displacement (Vinyals & Povey 2012). They move with every frame that g and M move with; so does the span, and what
is minimized over it is a function of the point alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidSetting
from .carried import Carried
from .quadratic import Model
from .searching import bfgs
from .steps import Displacement, Situation, StepRule
from .truncated import NEGATIVE, NOTHING_LOWER, Map, element, sharp_by

COLLAPSED = "a Krylov space of fewer directions than were asked for"


@dataclass
class Basis:
    """Rows that are orthonormal for M, and their products with M and with g."""

    rows: list[Tensor]
    flat: list[Tensor]
    bent: list[Tensor]
    collapsed: bool = False

    def part_beside(self, v: Tensor, M: Map) -> tuple[Tensor, float, float]:
        """v without its part in the span, and its lengths after and before."""
        before = float(torch.dot(v, M(v))) ** 0.5
        for _ in range(2):  # once more takes out what rounding left
            for b, Mb in zip(self.rows, self.flat, strict=True):
                v = v - torch.dot(Mb, v) * b
        return v, max(float(torch.dot(v, M(v))), 0.0) ** 0.5, before

    def add(self, v: Tensor, M: Map, g: Map, least: float) -> bool:
        """Whether v had a part beside the span, of at least this share of its length."""
        beside, length, before = self.part_beside(v, M)
        if not length > least * before or not before < float("inf"):
            return False
        b = beside / length
        self.rows.append(b)
        self.flat.append(M(b))
        self.bent.append(g(b))
        return True

    @property
    def curvature(self) -> Tensor:
        matrix = (torch.stack(self.rows) @ torch.stack(self.bent).mT).double()
        return (matrix + matrix.mT) / 2


def krylov(first: Tensor, sharp: Map, M: Map, g: Map, size: int, least: float) -> Basis:
    """Orthonormal rows of the span of M⁻¹ξ, (M⁻¹g) M⁻¹ξ, ...; fewer where the span is closed under M⁻¹g before."""
    basis, v = Basis([], [], []), first
    while len(basis.rows) < size:
        if not basis.add(v, M, g, least):
            basis.collapsed = True
            break
        v = sharp(basis.bent[-1])
    return basis


@dataclass(frozen=True)
class KrylovSubspace(StepRule):
    """A span of `size` Krylov directions and the last displacement, and on it BFGS on the loss, `iterations` of it.

    BFGS starts from the inverse of the metric on the span. `collapse` is the share of a direction beside those before
    that is told from rounding. The loss is that of the batch, or of what `optimizer.evaluate_on(x, y)` is given: the
    method as published takes another batch for it.
    """

    size: int = 16
    iterations: int = 12
    collapse: float = 1e-7
    needs_batch = True
    proposes = True
    needs_loss = True

    def __post_init__(self) -> None:
        whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in (self.size, self.iterations))
        if not whole or not 0 < self.collapse < 1:
            raise InvalidSetting(
                f"InvalidSetting in {self!r}: expected size and iterations of at least 1, collapse in (0, 1)."
            )

    def displacement(self, here: Situation) -> Displacement:
        assert here.loss is not None and here.reference is not None
        loss, xi, M = here.loss, here.df.components, here.reference
        sharp, g = sharp_by(M, xi), here.metric.flat_components
        basis = krylov(sharp(xi), sharp, M.flat_components, g, self.size, self.collapse)
        last = here.kept.vectors.get("displacement")
        if last is not None:
            basis.add(last.components, M.flat_components, g, self.collapse)
        if not basis.rows:
            return Displacement(here.proposal * 0.0, 0.0, 0.0)
        rows, bend = torch.stack(basis.rows), basis.curvature
        inverse, negative = inverse_of(bend)

        def f(c: Tensor) -> tuple[float, Tensor]:
            value, df = loss.differential(element(here, c.to(rows) @ rows))
            return value, (rows @ df.components).double().cpu()

        c, lowest = bfgs(f, inverse, self.iterations)
        note = NEGATIVE if negative else COLLAPSED if basis.collapsed else ""
        if not lowest < 0:
            return Displacement(here.proposal * 0.0, 0.0, 0.0, failed=NOTHING_LOWER)
        c = c * here.learning_rate
        v = element(here, c.to(rows) @ rows)
        model = Model((rows @ xi).double().cpu(), bend - here.damping * torch.eye(len(bend), dtype=bend.dtype))
        actual = lowest if here.learning_rate == 1 and here.loss.examples is None else None
        return Displacement(
            v, float(c[0]), 0.0, model, c, along=v, note=note, kept=Carried({"displacement": v}), actual=actual
        )


def inverse_of(bend: Tensor, least: float = 1e-6) -> tuple[Tensor, bool]:
    """A definite inverse of the metric on the span, and whether there was negative curvature there."""
    bend = bend.cpu()
    values, axes = torch.linalg.eigh(bend)
    floor = least * float(values.abs().max().clamp(min=1e-300))
    return (axes / values.abs().clamp(min=floor)) @ axes.mT, bool((values < -floor).any())
