"""A quadratic cost laid out along a chain of stages: what a solver that goes from stage to stage may know of a form.

Stage i takes a change x of its input and a change u of its parameters to a change of its output, x' = A x + B u. The
form on the parameters of all stages is the cost of what they do,

    Σ R(u, u) + Σ |rows x'|² + Q(x, x) + 2 M(x)(u) + H(u, u),

with R the damping, `rows` the roots of positive forms on outputs, and Q, M, H the second derivatives of the stages
themselves. States are the activations of a whole batch, one after the other. Everything is a typed linear map: A and B
are differentials and carry tangents, their transposes carry covectors, Q, M and H lead from tangents to covectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import SpaceMismatch
from ..linear_maps import LinearMap
from ..spaces import DirectSum, Space

if TYPE_CHECKING:
    from .base import Solvable


@dataclass(frozen=True, eq=False)
class Curvature:
    """Second derivatives of a stage: Q : X* ← X, M : W* ← X and H : W* ← W; None where they vanish.

    They are those of p(f(x, w)) for the costate p of the stage's output, so they may be indefinite.
    """

    Q: LinearMap | None = None
    M: LinearMap | None = None
    H: LinearMap | None = None


@dataclass(frozen=True, eq=False)
class Stage:
    """x' = A x + B u. `blocks` are the summands of the tangent space that make up u, in the order of B's domain.

    A is None where nothing comes in (the inputs of the network do not move), B where nothing is trained. `rows` is a
    root of a positive cost of x', and `form` a cost of x' of any sign.
    """

    name: str
    blocks: tuple[str, ...]
    outputs: Space
    A: LinearMap | None
    B: LinearMap | None
    rows: LinearMap | None = None
    form: LinearMap | None = None
    curvature: Curvature = Curvature()

    def __post_init__(self) -> None:
        for phi, domain in ((self.A, None), (self.B, None), (self.rows, self.outputs), (self.form, self.outputs)):
            if phi is not None and (phi.codomain if domain is None else phi.domain) != self.outputs:
                raise SpaceMismatch(f"SpaceMismatch in Stage {self.name!r}: {phi} does not fit {self.outputs}.")


@dataclass(frozen=True, eq=False)
class Stages:
    """All stages of a chain, the first first. `damping` has R for each summand of `space`, once there is some."""

    space: DirectSum
    each: tuple[Stage, ...]
    damping: Mapping[str, Solvable] | None = None

    def __post_init__(self) -> None:
        mine = [name for stage in self.each for name in stage.blocks]
        if sorted(mine) != sorted(self.space):
            raise SpaceMismatch(
                f"SpaceMismatch in Stages: its stages move {', '.join(mine) or 'nothing'}, and every summand of "
                f"{self.space} is moved by one stage."
            )
        for before, after in zip(self.each, self.each[1:], strict=False):
            if after.A is None or after.A.domain != before.outputs:
                raise SpaceMismatch(
                    f"SpaceMismatch in Stages: stage {after.name!r} does not start where {before.name!r} ends, in "
                    f"{before.outputs}."
                )

    def damped(self, damping: Mapping[str, Solvable]) -> Stages:
        """The same with damping, a form for each summand."""
        return replace(self, damping=damping)

    def scaled(self, c: float) -> Stages:
        """c times the cost, without the damping."""
        return replace(self, each=tuple(scaled(stage, c) for stage in self.each))


def scaled(stage: Stage, c: float) -> Stage:
    k = stage.curvature
    return replace(
        stage,
        rows=times(stage.rows, c**0.5),
        form=times(stage.form, c),
        curvature=Curvature(times(k.Q, c), times(k.M, c), times(k.H, c)),
    )


def times(phi: LinearMap | None, c: float) -> LinearMap | None:
    if phi is None or c == 1:
        return phi
    return LinearMap.from_functions(
        phi.domain, phi.codomain, lambda x: phi._apply(x) * c, lambda y: phi._transpose(y) * c, phi.name, phi.symmetry
    )
