"""Frames known by a name: what methods that work entry by entry need to be told.

The square of an entry, or its root, is one of a component, and components are those in a frame. A method that takes
them says in which, and the symmetry of its value is then that of the frame: signed permutations of the coordinates,
where these are it, and every affine change where the frame is data, that goes along with the spaces.

    frame = NamedFrame.of(KFAC(), network.observe(x), name="K-FAC at the start")
    RootMeanSquare(frame=frame)  # Adam in K-FAC's frame
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..elements import describe
from ..errors import InvalidSetting, SpaceMismatch
from ..factorizations import FrameFactor
from ..inner_products import Euclidean, Framed, InnerProduct, Kronecker, Pullback, direct_sum
from ..inner_products.symmetries import with_frame
from ..linear_maps import LinearMap
from ..networks import Estimator, InputsOnly
from ..networks.observation import LayerObservation, Observation
from ..spaces import Family, VectorSpace
from ..symmetry import Symmetry
from .base import RiemannianMetric, given, named, value_at

HOW = "NamedFrame.of(KFAC(), network.observe(x), name='K-FAC at the start')"


@dataclass(frozen=True, repr=False, eq=False)
class NamedFrame(RiemannianMetric):
    """A frame of every layer's space, known by its name. As a metric it is the one for which they are orthonormal.

    `form` is an inner product on the tangent space, or a mapping from layers' paths, whose value on a layer is
    `Framed(V, K)`, `Euclidean(V)`, or a product of these along S and Â*. `NamedFrame.of` takes the frames of a metric.
    A frame that is data is *transported* to other coordinates, as `FixedMetric` is, and loses no symmetry; one that is
    a constant keeps little.
    """

    form: InnerProduct | Mapping[str, InnerProduct]
    name: str
    sees_outputs = False

    def __post_init__(self) -> None:
        check_name(self.name)
        parts = self.form.summands() if isinstance(self.form, InnerProduct) else self.form
        if parts is None:
            raise SpaceMismatch(
                f"SpaceMismatch in NamedFrame: {self.form!r} is no direct sum over layers. Give a frame for each: "
                f"NamedFrame({{path: Framed(V, K)}}, name)."
            )
        object.__setattr__(self, "form", direct_sum({path: self._framed(g, path) for path, g in parts.items()}))

    def _framed(self, g: InnerProduct, path: str) -> InnerProduct:
        factors = [framed(f) for f in (g.factors if isinstance(g, Kronecker) else (g,))]
        good = [f for f in factors if f is not None]
        if len(good) < len(factors):
            raise InvalidSetting(
                f"InvalidSetting in NamedFrame: for layer {path!r} it is given {g!r}, which has many orthonormal "
                f"frames, and none of them is named: the symmetry of what is made entry by entry could not be stated. "
                f"Choose one: {HOW}, or Framed(V, K) for a frame K of your own."
            )
        return good[0] if len(good) == 1 else Kronecker(good, g.space)

    @classmethod
    def of(cls, metric: RiemannianMetric, observation: Observation, name: str) -> NamedFrame:
        """The frames of a metric's value: of a product along S and Â* one for each factor."""
        check_name(name)
        if not isinstance(metric, RiemannianMetric) or not isinstance(observation, Observation):
            wrong = metric if not isinstance(metric, RiemannianMetric) else observation
            raise InvalidSetting(
                f"InvalidSetting in NamedFrame.of: expected a metric and an observation, got {given(wrong)}. A frame "
                f"is taken where a batch was observed: {HOW}."
            )
        parts = value_at(metric, observation).summands()
        if parts is None:
            raise SpaceMismatch(
                f"SpaceMismatch in NamedFrame.of: the value of {metric!r} is no direct sum over layers, and a frame is "
                f"taken in each. Take a layerwise metric, as KFAC() or EuclideanMetric()."
            )
        frames: dict[str, InnerProduct] = {}
        for path, layer in observation.layers.items():
            with named(metric, path):
                like, g = layer.inputs.tensor(), parts[path]
                factors = g.factors_on((layer.S, layer.A.dual)) or (g,)
                made = [frame_of_form(f, like, name) for f in factors]
                frames[path] = made[0] if len(made) == 1 else made[0] * made[1]
        return cls(frames, name)

    def on(self, layer: LayerObservation) -> InnerProduct:
        """The form on a layer for which its frame is orthonormal."""
        assert isinstance(self.form, InnerProduct)
        g = (self.form.summands() or {}).get(layer.path)
        if g is None or g.space != layer.space:
            raise SpaceMismatch(
                f"SpaceMismatch in {self!r}: it has {'no frame' if g is None else f'a frame of {g.space}'} for the "
                f"layer {layer.path!r}, on {layer.space}. Make it of the network that it is used on; a twin's is "
                f"carried there by its transport."
            )
        return g

    def at(self, observation: Observation) -> InnerProduct:
        assert isinstance(self.form, InnerProduct)
        if self.form.space != observation.space:
            raise SpaceMismatch(
                f"SpaceMismatch in {self!r}: its frames are of {self.form.space}, the network's tangent space is "
                f"{observation.space}. Make it of the network that it is used on."
            )
        return self.form

    def estimator(self, targets: Any = None) -> Estimator:
        return InputsOnly()

    def expression(self) -> str:
        return f"NamedFrame({self.name})"


Axes = tuple[Tensor, ...]


def check_name(name: object) -> None:
    if not isinstance(name, str) or not name.strip():
        raise InvalidSetting(
            f"InvalidSetting in NamedFrame: name={name!r}. What is made entry by entry in a frame has the symmetry of "
            f"the frame, which without a name could not be stated. Name it: {HOW}."
        )


def check_frame(metric: object, frame: object) -> None:
    """That the setting `frame` of a metric is one that has a name."""
    if frame is None or isinstance(frame, NamedFrame):
        return
    what = describe(frame) if isinstance(frame, Tensor) else given(frame)
    of = f"{frame!r}, " if isinstance(frame, RiemannianMetric) else "KFAC(), "
    raise InvalidSetting(
        f"InvalidSetting in {type(metric).__name__}: frame={what} is a frame without a name. Squares and roots of "
        f"components depend on the frame, and the symmetry of the metric could not be stated. Give it a name: "
        f"frame={HOW.replace('KFAC(), ', of)}; without a frame it is the coordinates."
    )


def framed(g: InnerProduct) -> InnerProduct | None:
    """The form by a frame of its own that it knows, seen from where it has been carried to; None if it knows none."""
    if isinstance(g, (Framed, Euclidean)):
        return g
    inner = framed(g.of) if isinstance(g, Pullback) and g.phi.domain.dim == g.phi.codomain.dim else None
    if inner is None or not isinstance(g, Pullback):
        return None
    K = axes_of(inner)[0] if not isinstance(inner, Euclidean) else None
    like = torch.empty(0, dtype=torch.float64) if K is None else K
    M = g.phi.matrix(like)
    whole = torch.eye(len(M), dtype=M.dtype, device=M.device) if K is None else dense(K)
    moved = torch.linalg.solve(M, whole)
    return Framed.of(g.space, by_members(moved, g.space), getattr(inner, "name", "the coordinates"), g.symmetry)


def frame_of_form(g: InnerProduct, like: Tensor, name: str) -> InnerProduct:
    if isinstance(g, Euclidean):
        return g
    E: LinearMap = g.frame(like)
    return Framed.of(g.space, by_members(E.matrix(like.new_empty(0)), g.space), name, g.symmetry)


def by_members(K: Tensor, space: VectorSpace) -> Tensor:
    """The blocks (m, d, d) of a frame of a family; of any other the matrix itself."""
    if not isinstance(space, Family):
        return K
    m, d = space.members, space.of.dim
    index = torch.arange(m, device=K.device)
    blocks: Tensor = K.reshape(m, d, m, d)[index, :, index]
    return blocks.contiguous()


def dense(K: Tensor) -> Tensor:
    return torch.diag(K) if K.ndim == 1 else torch.block_diag(*K) if K.ndim == 3 else K


def axes_of(g: InnerProduct, like: Tensor | None = None) -> Axes:
    """The vectors of the frame of a form that is made of frames, one matrix for each factor."""
    axes = []
    for f in g.factors if isinstance(g, Kronecker) else (g,):
        if isinstance(f, Framed):
            axes.append(f.K if not isinstance(f.space, Family) or f.K.ndim == 3 else by_members(dense(f.K), f.space))
        else:
            d = f.space.of.dim if isinstance(f.space, Family) else f.space.dim
            axes.append(torch.ones(d) if like is None else like.new_ones(d))
    return tuple(axes)


def factor_in(axes: Sequence[Tensor], space: VectorSpace) -> FrameFactor:
    """Components along axes, and back: `to_axes` of a covector, `from_axes`."""
    sides = [P.shape[-1] for P in axes]
    many = isinstance(space, Family) and (any(P.ndim == 3 for P in axes) or torch.Size(sides).numel() != space.dim)
    shape = [space.members, *sides] if many and isinstance(space, Family) else sides
    return FrameFactor(axes, axes[0].new_ones(shape))


def is_data(g: InnerProduct) -> bool:
    """Whether all of the frame was computed from data and moves with the spaces."""
    factors = g.factors if isinstance(g, Kronecker) else (g,)
    return all(isinstance(f, Framed) and f._given_symmetry is not None for f in factors)


def naming(symmetry: Symmetry, g: InnerProduct, name: str) -> Symmetry:
    """Of what is made entry by entry in the frame of a form: a constant frame is named, one of data is not."""
    return symmetry if is_data(g) else with_frame(symmetry, g.space, name, f"the frame {name!r}")
