"""The Riccati recursion: a chain of stages factorized from its end to its start.

Going back, K is the form on the states that is left when all later parameters do their best. At a stage with damping R,

    S = R + H + BᵀKB,   V = M + BᵀKA,   K ← Q + AᵀKA - VᵀS⁻¹V,

so a change x of the input is best answered by u = -S⁻¹V x. Where the stages have no curvature of their own K is kept as
a sum of squares, K = LᵀL with as many rows as the output has directions, and

    K ← Aᵀ Lᵀ (1 + Y R⁻¹ Yᵀ)⁻¹ L A,   Y = L B,

which subtracts nothing. The form itself is T S Tᵀ with T triangular by stages: it is positive where every S is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import DegenerateMetric, NotAnInnerProduct, NotClosed
from ..factorizations import DualFactor, Factorization, Indefinite, RankDeficient, factorize_dense, rounding_unit
from ..factorizations.base import solve_triangular, triangle
from ..linear_maps import LinearMap
from .base import WAYS_OUT
from .stages import Stage, Stages
from .sweeps import Damping, Gain, RiccatiFactor, Widened


def factorize_chain(chain: Stages, like: Tensor, limit: int) -> RiccatiFactor:
    """Goes through the stages from the last to the first; `limit` bounds the numbers that one of them may take."""
    gains: list[Gain] = []
    L: Tensor | None = like.new_zeros(0, chain.each[-1].outputs.dim)  # K as rows, or else as a matrix
    K: Tensor | None = None
    with torch.no_grad():
        for stage in reversed(chain.each):
            parts = None if chain.damping is None else [chain.damping[name] for name in stage.blocks]
            R = None if not parts else Damping(parts, like)
            base = None if R is None else R.definite()
            if L is not None:
                check_rows(stage, len(L), limit)
                L = with_rows(L, stage, like)
            k = stage.curvature
            curved = stage.form is not None or any(phi is not None for phi in (k.Q, k.M, k.H))
            if L is not None and not curved and (base is not None or not stage.blocks):
                gain, L = by_rows(stage, L, R, base, limit)
            else:
                check_dense(stage, limit)
                if L is not None:
                    K, L = L.mT @ L, None
                elif K is not None and stage.rows is not None:
                    rows = stage.rows.matrix(like)
                    K = K + rows.mT @ rows
                assert K is not None
                gain, K = by_matrix(stage, K, R, chain, like)
            gains.append(gain)
    return RiccatiFactor(chain, gains[::-1])


def with_rows(L: Tensor, stage: Stage, like: Tensor) -> Tensor:
    """With the cost of the stage's output; not more rows than the output has dimensions."""
    if stage.rows is not None:
        L = torch.cat([L, rows_of(stage.rows, like)])
    return triangle(L) if len(L) > L.shape[1] else L


def rows_of(phi: LinearMap, like: Tensor) -> Tensor:
    """The rows of a map, from the side where there are fewer basis vectors to carry."""
    if phi._matrix is not None:
        return phi._matrix
    if phi.codomain.dim < phi.domain.dim:
        return phi._transpose(torch.eye(phi.codomain.dim, dtype=like.dtype, device=like.device))
    return phi.matrix(like)


def by_rows(
    stage: Stage, L: Tensor, R: Damping | None, base: Factorization | None, limit: int
) -> tuple[Gain, Tensor | None]:
    """K = LᵀL: nothing is subtracted, and the kernel is that of the output's directions or of the parameters."""
    A, B = stage.A, stage.B
    through = None if A is None else A._transpose(L)
    if R is None or base is None:
        return Gain(stage, R, None, None, None), through
    Y = L.new_zeros(len(L), base.dim) if B is None else B._transpose(L)
    Z = base.coframe(Y)
    shrunk: Tensor | None = None
    S: Factorization
    if len(L) == 0:
        S, shrunk = base, through
    elif len(L) <= base.dim:
        wide = Z.double()
        S = DualFactor(
            base, lambda x: R.flat(x) + (x @ Y.mT) @ Y, lambda x: x @ Y.mT, lambda y: y @ Y, wide @ wide.mT,
            rounding_unit(L.dtype),
        )  # fmt: skip
        if through is not None:
            shrunk = solve_triangular(S.L, through.to(S.L.dtype), upper=False).to(through)
    else:
        wide = Y.double()
        S = Widened(factorize_dense(R.dense().double() + wide.mT @ wide), Y)
        if through is not None:
            wide, far = Z.double(), through.double()
            values, axes = torch.linalg.eigh(wide.mT @ wide)
            root = (1 + values.clamp(min=0)).sqrt()
            ZU = wide @ axes
            shrunk = (far - (ZU / (root * (1 + root))) @ (ZU.mT @ far)).to(through)
    if through is None:
        return Gain(stage, R, S, None, None), None
    return Gain(stage, R, S, lambda x: (x @ through.mT) @ Y, lambda c: (c @ Y.mT) @ through), shrunk


def by_matrix(stage: Stage, K: Tensor, R: Damping | None, chain: Stages, like: Tensor) -> tuple[Gain, Tensor | None]:
    """Any symmetric K, and curvature of the stage's own."""
    k = stage.curvature
    if stage.form is not None:
        K = K + symmetric(stage.form.matrix(like))
    A = None if stage.A is None else rows_of(stage.A, like)
    left = None if A is None else A.mT @ K @ A
    if left is not None and k.Q is not None:
        left = left + symmetric(k.Q.matrix(like))
    w = sum(chain.space[name].dim for name in stage.blocks)
    if not w:
        return Gain(stage, R, None, None, None), left
    B = K.new_zeros(len(K), w) if stage.B is None else rows_of(stage.B, like)
    KB = K @ B
    matrix = B.mT @ KB
    if R is not None:
        matrix = matrix + R.dense()
    if k.H is not None:
        matrix = matrix + symmetric(k.H.matrix(like))
    S = definite(symmetric(matrix), stage, R, chain)
    if A is None or left is None:
        return Gain(stage, R, S, None, None), None
    V = KB.mT @ A
    if k.M is not None:
        V = V + rows_of(k.M, like)
    return Gain(stage, R, S, lambda x: x @ V.mT, lambda c: c @ V), symmetric(left - V.mT @ S.solve_columns(V))


def symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2


def definite(matrix: Tensor, stage: Stage, R: Damping | None, chain: Stages) -> Factorization:
    """S factorized, or what is wrong with it in the units of the damping."""
    try:
        return factorize_dense(matrix)
    except RankDeficient as short:
        raise DegenerateMetric(
            f"DegenerateMetric in Riccati: at stage {stage.name!r} the form has {short} once later stages have done "
            f"their best. {WAYS_OUT}",
            chain.space,
        ) from None
    except Indefinite as error:
        base = None if R is None else R.definite()
        seen = matrix if base is None else base.coframe(base.coframe(matrix).mT)
        least = float(torch.linalg.eigvalsh(symmetric(seen))[0])
        damping = "" if base is None else ", in units of the damping"
        raise NotAnInnerProduct(
            f"NotAnInnerProduct in Riccati: at stage {stage.name!r} the curvature is indefinite once later stages have "
            f"done their best: its smallest eigenvalue is {least:.3g}{damping} ({error}). Raise λ"
            f"{'' if base is None else f', by a factor of about {1 - least:.2g}'}; or take the Gauss-Newton or Fisher "
            f"form, which is positive at every λ."
        ) from None


def check_rows(stage: Stage, rows: int, limit: int) -> None:
    more = 0 if stage.rows is None else stage.rows.codomain.dim
    here = stage.outputs.dim
    before = 0 if stage.A is None else stage.A.domain.dim
    controls = 0 if stage.B is None else stage.B.domain.dim
    kept = min(rows + more, here)
    numbers = (rows + more) * here + kept * (before + 2 * controls + kept)
    if numbers > limit:
        raise too_large(stage, f"{kept} directions of the outputs, {controls} parameters", numbers, limit)


def check_dense(stage: Stage, limit: int) -> None:
    here = stage.outputs.dim
    before = 0 if stage.A is None else stage.A.domain.dim
    controls = 0 if stage.B is None else stage.B.domain.dim
    numbers = 2 * here * here + (here + before + controls) * (before + controls)
    if numbers > limit:
        raise too_large(stage, f"states of dimension {before} and {here}, {controls} parameters", numbers, limit)


def too_large(stage: Stage, sizes: str, numbers: float, limit: int) -> NotClosed:
    return NotClosed(
        f"NotClosed in Riccati: stage {stage.name!r} has {sizes}, and takes {numbers:.2g} numbers at once (limit "
        f"{limit:.2g}). States are the activations of all examples together: take fewer examples, or "
        f"Riccati(limit=...); solvers.CG(...) needs no such matrices."
    )
