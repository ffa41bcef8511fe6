"""How a damped metric is made ready to be inverted: by factorizations, or by frames that are multiplied along.

A metric M on a space has an orthonormal frame K with K Kᵀ = M⁻¹, unique up to a rotation of the frame's own space. When
M changes little, K follows by products alone: with H = Kᵀ M K, which is the identity where K is a frame of M,

    K ← K (1 - rate ½ (H - 1)),

whose fixed points are the frames of M and at rate 1 is a step of Newton and Schulz. K is a map from a space of its own,
and H a form on that space: nothing in the update names a basis of the space that M is on. So the frames move with every
change of coordinates that moves M, if the first one did: it is made by one factorization of the first M. An identity
matrix in its place names a basis, and an origin, for as long as the memory lasts.

On products this is K-FAC without inverses (IKFAC); on sums of products along the same factors, as of exact damping,
each factor follows the sum weighted by the traces of the others' H, which is the nearest product to the sum's inverse
in Kullback-Leibler divergence (SINGD; Lin et al. 2023, 2024).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..elements import Scalar
from ..errors import InvalidSetting, NonFinite, SpaceMismatch
from ..inner_products import BlockDiagonal, Euclidean, InnerProduct, Kronecker, Sum, made_ready
from ..inner_products import inverted as inverses_of
from ..inner_products.common import degenerate_of
from ..inner_products.framed import Framed
from ..inner_products.pencils import DIAGONAL
from ..inner_products.sums import Scaled, unscaled
from ..inner_products.symmetries import of_euclidean
from ..solvers.direct import DENSE_LIMIT
from ..spaces import Family


class Inversion(ABC):
    """How the damped metric is made into the form that is inverted, whenever a factorization is due."""

    remembers: bool = False
    """Whether what is made depends on what was made before, and belongs to the state of a run."""

    @abstractmethod
    def inverted(self, damped: InnerProduct, before: InnerProduct | None) -> InnerProduct:
        """The form that steps are made with; `before` is the last one. After an error that one is as it was."""

    def for_steps_alone(self, damped: InnerProduct, before: InnerProduct | None) -> InnerProduct | None:
        """As `inverted`, where nothing but `sharp` is asked of the form: one that holds nothing of the damped metric.

        None where there is no such form, or none that a state could be restored to bit for bit.
        """
        return None


@dataclass(frozen=True)
class Factorized(Inversion):
    """Factorizations, made now and not when they are first needed."""

    def inverted(self, damped: InnerProduct, before: InnerProduct | None) -> InnerProduct:
        return made_ready(damped)

    def for_steps_alone(self, damped: InnerProduct, before: InnerProduct | None) -> InnerProduct | None:
        return inverses_of(damped)


@dataclass(frozen=True)
class InverseFree(Inversion):
    """Frames of the factors, `updates` times multiplied along whenever a factorization would be due.

    What differs from the damped metric decays by 1 - rate an update. No update turns a frame around: where the metric
    has grown by more than the rate can follow, it is made smaller. `start="first"` takes the first frames from one
    factorization of the first metric, and keeps its symmetries; `start="identity"`, the usual choice, factorizes
    nothing and keeps those of the coordinates. What is no product is followed as a whole. A step costs two products
    for each factor, as with explicit inverses, and an update three.
    """

    rate: float = 0.5
    updates: int = 1
    start: Literal["first", "identity"] = "first"
    remembers = True

    def __post_init__(self) -> None:
        if isinstance(self.rate, bool) or not isinstance(self.rate, (int, float)) or not 0 < self.rate <= 1:
            raise InvalidSetting(f"InvalidSetting in InverseFree: rate={self.rate!r}, expected a number in (0, 1].")
        if isinstance(self.updates, bool) or not isinstance(self.updates, int) or self.updates < 1:
            raise InvalidSetting(f"InvalidSetting in InverseFree: updates={self.updates!r}, expected 1 or more.")
        if self.start not in ("first", "identity"):
            raise InvalidSetting(
                f"InvalidSetting in InverseFree: start={self.start!r}, expected 'first' or 'identity'."
            )

    def inverted(self, damped: InnerProduct, before: InnerProduct | None) -> InnerProduct:
        targets = damped.summands()
        if targets is None:
            made = self._followed(damped, before)
        else:
            frames = {} if before is None else before.summands()
            if frames is None or (before is not None and before.space != damped.space):
                raise stranger(damped, before)
            made = BlockDiagonal({name: self._followed(part, frames.get(name)) for name, part in targets.items()})
        sums = [t.detach().sum().double() for t in made.tensors()]
        if sums and not bool(torch.stack(sums).isfinite().all()):
            raise NonFinite(
                f"NonFinite in InverseFree: in the frames of {made!r} there is NaN or infinity. Those before stay."
            )
        return made

    def _followed(self, target: InnerProduct, before: InnerProduct | None) -> InnerProduct:
        scalar, terms = products(target)
        count = len(terms[0][1])
        if before is None:
            frames = [self._first([(c ** (1 / count), along[i]) for c, along in terms]) for i in range(count)]
            updates = self.updates if self.start == "identity" or len(terms) > 1 else 0
        else:
            kept = unscaled(before)[1].factors_on(tuple(f.space for f in terms[0][1]))
            if kept is None:
                raise stranger(target, before)
            frames, updates = list(kept), self.updates
        for _ in range(updates):
            for i in range(count):
                frames[i] = self._updated(frames, terms, i)
        product = frames[0] if count == 1 else Kronecker(frames)
        return product if scalar is None else Scaled(scalar, product)

    def _first(self, terms: Sequence[tuple[Scalar, InnerProduct]]) -> InnerProduct:
        forms = [form for _, form in terms]
        if all(form.dtype is None for form in forms):  # constants of no type, which cost nothing to invert
            return forms[0] if len(forms) == 1 else Euclidean(forms[0].space)
        total = forms[0] if len(forms) == 1 else Sum([Scaled(c, form) for c, form in terms])
        space, options = total.space, total._options(None)
        name = f"frame of {space}"
        diagonal = all(form.structure.kind in DIAGONAL for form in forms)
        by_members = isinstance(space, Family) and all(form.by_members for form in forms)
        m, d = (space.members, space.of.dim) if isinstance(space, Family) and by_members else (1, space.dim)
        if not diagonal and d > DENSE_LIMIT:
            raise InvalidSetting(
                f"InvalidSetting in InverseFree: a frame of {forms[0]!r} is a matrix of side {d}. Take a metric that "
                f"is a product in each layer, as KFAC(), or Factorized()."
            )
        rows = torch.ones(1, d * m, **options) if diagonal else torch.eye(d, **options).repeat(1, m)
        symmetry = total.symmetry
        if self.start == "identity":
            symmetry = symmetry + of_euclidean(space, "InverseFree(start='identity')")
        else:
            with degenerate_of(space, total.rank, "InverseFree"):
                rows = total.factorization().frame(rows)  # row j: the j-th vector of the frame of every member
        K = rows[0] if diagonal else rows.reshape(d, m, d).permute(1, 2, 0).contiguous()
        return Framed.of(space, K if diagonal or by_members else K[0], name, symmetry)

    def _updated(self, frames: Sequence[InnerProduct], terms: Sequence[Term], i: int) -> InnerProduct:
        g = frames[i]
        if not isinstance(g, Framed):
            return terms[0][1][i] if len(terms) == 1 else g
        total, symmetry = torch.zeros((), dtype=g.dtype, device=g.device), g.symmetry
        for c, along in terms:
            H, seen = whitened(along[i], g.K), along[i].symmetry
            if len(terms) > 1:
                H = H * c
                for other, form in zip(frames, along, strict=True):
                    if other is not g:
                        H = weighted(H, mean_of(form, other, H), g)
                        seen = seen * form.symmetry * other.symmetry**-1
            total, symmetry = total + H, symmetry + seen
        return Framed.of(g.space, multiplied_along(g.K, total, self.rate), g.name, symmetry)


Term = tuple[Scalar, tuple[InnerProduct, ...]]


def products(g: InnerProduct) -> tuple[Scalar | None, list[Term]]:
    """A form as one product times a number, or as a sum of such along the same factors; or else as it is."""
    c, form = unscaled(g)
    if isinstance(form, Kronecker):
        return (None if c == 1.0 else c), [(1.0, form.factors)]
    if isinstance(form, Sum):
        first = next((unscaled(term)[1] for term in form.terms if isinstance(unscaled(term)[1], Kronecker)), None)
        if isinstance(first, Kronecker):
            spaces = tuple(f.space for f in first.factors)
            split = [(unscaled(term)[0], unscaled(term)[1].factors_on(spaces)) for term in form.terms]
            found = [(b, along) for b, along in split if along is not None]
            if len(found) == len(split):
                return (None if c == 1.0 else c), found
    return None, [(1.0, (g,))]


def whitened(form: InnerProduct, K: Tensor) -> Tensor:
    """H = Kᵀ M K, in the shape of K; products alone."""
    if K.ndim == 1:
        return form.diagonal_entries(K) * K.square()
    if K.ndim == 2:
        return form.flat_components(K.mT) @ K
    m, d = K.shape[:2]
    moved = form.flat_components(K.permute(2, 0, 1).reshape(d, m * d)).reshape(d, m, d).movedim(1, 0)
    return moved @ K


def mean_of(form: InnerProduct, frame: InnerProduct, like: Tensor) -> Tensor:
    """tr H / d of another factor: a number, or one for each member of a family."""
    members = form.space.members if isinstance(form.space, Family) else 1
    if isinstance(frame, Framed):
        H = whitened(form, frame.K)
        entries = H if H.ndim == 1 else H.diagonal(dim1=-2, dim2=-1)
    else:
        entries = form.diagonal_entries(like)
    return entries.reshape(members, -1).mean(-1)


def weighted(H: Tensor, means: Tensor, frame: Framed) -> Tensor:
    """H times what another factor says, member by member where both have members."""
    own = frame.space.members if isinstance(frame.space, Family) and frame.K.ndim != 2 else 1
    return (H.reshape(own, -1) * means[:, None]).reshape(H.shape) if own == len(means) else H * means.mean()


def multiplied_along(K: Tensor, H: Tensor, rate: float) -> Tensor:
    """K (1 - rate ½ (H - 1)), the rate made smaller where 1 - rate ½ (H - 1) would have eigenvalues below ½.

    From tr H and tr H² alone: no eigenvalue is above the mean by more than √(d - 1) standard deviations.
    """
    if K.ndim == 1:
        excess = (H - 1) / 2
        return K * (1 - rate * excess / (2 * rate * excess).clamp(min=1))
    d = K.shape[-1]
    mean = H.diagonal(dim1=-2, dim2=-1).mean(-1)
    variance = (H.square().sum((-2, -1)) / d - mean.square()).clamp(min=0)
    largest = (mean + (variance * (d - 1)).sqrt() - 1) / 2
    half = (rate / (2 * rate * largest).clamp(min=1) / 2)[..., None, None]
    return K * (1 + half) - (K @ H) * half


def stranger(target: InnerProduct, before: InnerProduct | None) -> SpaceMismatch:
    return SpaceMismatch(
        f"SpaceMismatch in InverseFree: {before!r} holds no frames of the factors of {target!r}. Start anew, without "
        f"what was made before."
    )
