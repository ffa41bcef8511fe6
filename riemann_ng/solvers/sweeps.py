"""A chain of stages that has been gone through: the inverse of its form by a sweep back and one forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DegenerateMetric
from ..factorizations import BlockFactor, Factorization, RankDeficient
from ..factorizations.base import RowFactorization
from ..linear_maps import LinearMap
from .base import Solvable
from .stages import Stage, Stages

Action = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Gain:
    """A stage that has been gone through: S as it is inverted, and V with its transpose, on rows."""

    stage: Stage
    R: Damping | None
    S: Factorization | None
    V: Action | None
    V_transpose: Action | None


class Damping:
    """R on the parameters of one stage."""

    def __init__(self, parts: list[Solvable], like: Tensor):
        self.parts, self.like = parts, like

    def dense(self) -> Tensor:
        return torch.block_diag(*(g.dense_matrix(self.like) for g in self.parts))

    def flat(self, x: Tensor) -> Tensor:
        pieces = x.split([g.space.dim for g in self.parts], -1)
        return torch.cat([g.flat_components(piece) for g, piece in zip(self.parts, pieces, strict=True)], -1)

    def definite(self) -> Factorization | None:
        """Its factorization; None where it has a kernel."""
        try:
            factor = BlockFactor([g.factorization(self.like) for g in self.parts])
            factor.logdet  # noqa: B018  a diagonal finds out here
        except (RankDeficient, DegenerateMetric):
            return None
        return factor


class Widened(RowFactorization):
    """A factorization in double precision, for elements like `like`: single precision loses R beside YᵀY."""

    def __init__(self, of: Factorization, like: Tensor):
        self.of, self.like, self.dim, self.name = of, like, of.dim, of.name

    def solve(self, x: Tensor) -> Tensor:
        return self.of.solve(x.double()).to(self.like.dtype)

    def frame(self, z: Tensor) -> Tensor:
        return self.of.frame(z.double()).to(self.like.dtype)

    def coframe(self, x: Tensor) -> Tensor:
        return self.of.coframe(x.double()).to(self.like.dtype)

    @property
    def logdet(self) -> Tensor:
        return self.of.logdet.to(self.like.dtype)


class RiccatiFactor(RowFactorization):
    """The inverse of a chain's form, stage by stage: a sweep of covectors back, and one of vectors forward."""

    name = "Riccati"

    def __init__(self, chain: Stages, gains: list[Gain]):
        self.chain, self.gains, self.dim = chain, gains, chain.space.dim

    def solve(self, x: Tensor) -> Tensor:
        """With one look at what is left."""
        value = self._once(x)
        return value + self._once(x - self.flat(value))

    def _once(self, x: Tensor) -> Tensor:
        return self._forward(self._back(x, lambda S, c: S.solve(c)))

    def flat(self, u: Tensor) -> Tensor:
        """The form itself: forward through the stages, and what the costs there make of it back."""
        states: list[Tensor | None] = []
        state: Tensor | None = None
        for gain in self.gains:
            states.append(state)
            after = None if gain.stage.B is None else gain.stage.B._apply(self._cut(u, gain))
            if state is not None and gain.stage.A is not None:
                through = gain.stage.A._apply(state)
                after = through if after is None else after + through
            state = after
        parts: list[Tensor | None] = []
        back: Tensor | None = None
        for gain, before in zip(reversed(self.gains), reversed(states), strict=True):
            stage, k = gain.stage, gain.stage.curvature
            back = added(back, None if state is None or stage.rows is None else squared(stage.rows, state))
            back = added(back, None if state is None or stage.form is None else stage.form._apply(state))
            part, here = None, None
            if stage.blocks:
                here = self._cut(u, gain)
                part = torch.zeros_like(here) if gain.R is None else gain.R.flat(here)
                part = added(part, None if back is None or stage.B is None else stage.B._transpose(back))
                part = added(part, None if k.H is None else k.H._apply(here))
                part = added(part, None if k.M is None or before is None else k.M._apply(before))
            parts.append(part)
            back = None if back is None or stage.A is None else stage.A._transpose(back)
            back = added(back, None if k.Q is None or before is None else k.Q._apply(before))
            back = added(back, None if k.M is None or here is None else k.M._transpose(here))
            state = before
        return self._join(parts[::-1])

    def frame(self, z: Tensor) -> Tensor:
        return self._forward([None if g.S is None else g.S.frame(self._cut(z, g)) for g in self.gains])

    def coframe(self, x: Tensor) -> Tensor:
        found = self._back(x, lambda S, c: S.solve(c), lambda S, c: S.coframe(c))
        return self._join(found)

    @property
    def logdet(self) -> Tensor:
        parts = [g.S.logdet.double() for g in self.gains if g.S is not None]
        return sum(parts[1:], parts[0])

    def best(self, x: Tensor) -> Tensor:
        """The value of the cost less ξ at its minimum, -½ ξ(C⁻¹ξ), from the sweep back alone."""
        total = x.new_zeros(x.shape[:-1])
        for z in self._back(x, lambda S, c: S.solve(c), lambda S, c: S.coframe(c)):
            total = total if z is None else total - 0.5 * z.square().sum(-1)
        return total

    def _cut(self, x: Tensor, gain: Gain) -> Tensor:
        slices = self.chain.space.slices
        return torch.cat([x[..., slices[name]] for name in gain.stage.blocks], -1)

    def _join(self, parts: list[Tensor | None]) -> Tensor:
        space = self.chain.space
        found: dict[str, Tensor] = {}
        for gain, part in zip(self.gains, parts, strict=True):
            if part is not None:
                sizes = [space[name].dim for name in gain.stage.blocks]
                found |= dict(zip(gain.stage.blocks, part.split(sizes, -1), strict=True))
        return torch.cat([found[name] for name in space], -1)

    def _back(
        self,
        x: Tensor,
        solve: Callable[[Factorization, Tensor], Tensor],
        keep: Callable[[Factorization, Tensor], Tensor] | None = None,
    ) -> list[Tensor | None]:
        """For every stage S⁻¹ of the covector that arrives at its parameters, or what `keep` makes of that."""
        kept: list[Tensor | None] = []
        costate: Tensor | None = None
        for gain in reversed(self.gains):
            stage, answer = gain.stage, None
            if gain.S is not None:
                c = self._cut(x, gain)
                if costate is not None and stage.B is not None:
                    c = c + stage.B._transpose(costate)
                answer = solve(gain.S, c)
                kept.append(answer if keep is None else keep(gain.S, c))
            else:
                kept.append(None)
            if stage.A is None:
                continue
            before = None if costate is None else stage.A._transpose(costate)
            if answer is not None and gain.V_transpose is not None:
                through = gain.V_transpose(answer)
                before = -through if before is None else before - through
            costate = before
        return kept[::-1]

    def _forward(self, answers: list[Tensor | None]) -> Tensor:
        """The parameters' changes: each stage's own answer, less its best answer to what comes in."""
        state: Tensor | None = None
        moves: list[Tensor | None] = []
        for gain, answer in zip(self.gains, answers, strict=True):
            stage, u = gain.stage, answer
            if u is not None and state is not None and gain.V is not None and gain.S is not None:
                u = u - gain.S.solve(gain.V(state))
            moves.append(u)
            after = None if state is None or stage.A is None else stage.A._apply(state)
            if u is not None and stage.B is not None:
                moved = stage.B._apply(u)
                after = moved if after is None else after + moved
            state = after
        return self._join(moves)


def added(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def squared(rows: LinearMap, x: Tensor) -> Tensor:
    return rows._transpose(rows._apply(x))
