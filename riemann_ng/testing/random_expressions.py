"""Random expressions over the whole algebra, each written as a builder that moves its data and not its constants.

`Writer(draw).expression()` draws an expression and its numbers once; `expression.form(frames)` builds it in a frame, as
often as wanted. Beside Euclidean and named constants stand moments, natural forms and natural maps: those move.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ..elements import Covector
from ..inner_products import (
    Euclidean,
    InnerProduct,
    Quotient,
    RotatedDiagonal,
    Scaled,
    damp_factors,
    direct_sum,
    euclidean_on_translations,
)
from ..linear_maps import LinearMap
from ..norms import Spectral
from ..solvers import CG
from ..spaces import DirectSum, Dual, Hull, Product, Space, VectorSpace, tensor_product
from .frames import HERE, Build, Expression, Frames
from .random_leaves import Leaves

SPLITS: list[Literal["trace", "frobenius", "none"]] = ["trace", "frobenius", "none", "none"]
ONE = torch.ones(1, dtype=torch.float64)


def symmetric(M: Tensor) -> Tensor:
    return (M + M.mT) / 2


def sum_of(forms: list[InnerProduct]) -> InnerProduct:
    total = forms[0]
    for form in forms[1:]:
        total = total + form
    return total


def eigenframe(M: Tensor, reference: Tensor) -> Tensor:
    """The frame, orthonormal for the reference, in which M is diagonal."""
    E = torch.linalg.inv(torch.linalg.cholesky(reference)).mT
    return E @ torch.linalg.eigh(E.mT @ M @ E)[1]


class Writer(Leaves):
    """Writes expressions, a node at a time."""

    # Nodes

    def form(self, space: VectorSpace, depth: int) -> Build:
        if depth == 0:
            return self.leaf(space)
        nodes: list[Callable[[VectorSpace, int], Build]] = [
            self.sum, self.sum, self.sum, self.multiple, self.dual, self.diagonal, self.pullback, self.quotient,
            self.restriction, self.rotated, self.relative_damping, self.blend, self.through_a_frame, self.leaf_of_depth,
        ]  # fmt: skip
        if isinstance(space, Product):
            nodes += [self.product] * 4 + [self.damped] * 6 + [self.tikhonov] * 3 + [self.on_translations]
        if isinstance(space, DirectSum):
            nodes += [self.direct_sum] * 5 + [self.rotated] * 2
        if isinstance(space, Dual) and isinstance(space.of, Hull):
            nodes += [self.linear_parts, self.on_translations, self.on_translations, self.apart, self.apart]
        if isinstance(space, Hull):
            nodes += [self.leaf_of_depth]
        return self.draw.one_of(nodes)(space, depth - 1)

    def leaf_of_depth(self, space: VectorSpace, depth: int) -> Build:
        return self.leaf(space)

    def sum(self, space: VectorSpace, depth: int) -> Build:
        g, h, c = self.form(space, depth), self.form(space, 0), float(self.draw.between(0.5, 2.0))
        return lambda frames: g(frames) + c * h(frames)

    def tikhonov(self, space: VectorSpace, depth: int) -> Build:
        """Damped by a product of constants, whose scales may cancel."""
        g, c = self.form(space, depth), float(self.draw.between(0.5, 2.0))
        first, *others = [self.constant(U) for U in space.factors]

        def build(frames: Frames) -> InnerProduct:
            reference = first(frames)
            for h in others:
                reference = reference * h(frames)
            return g(frames) + c * reference

        return build

    def multiple(self, space: VectorSpace, depth: int) -> Build:
        g, c = self.form(space, depth), float(self.draw.between(0.3, 3.0))
        return lambda frames: c * g(frames)

    def dual(self, space: VectorSpace, depth: int) -> Build:
        g = self.form(space.dual, depth)
        return lambda frames: g(frames).dual

    def product(self, space: VectorSpace, depth: int) -> Build:
        first, *others = space.factors
        g, h = self.form(first, depth), self.form(tensor_product(*others), depth)
        return lambda frames: g(frames) * h(frames)

    def direct_sum(self, space: VectorSpace, depth: int) -> Build:
        assert isinstance(space, DirectSum)
        parts = {name: self.form(U, depth) for name, U in space.parts}
        return lambda frames: direct_sum({name: g(frames) for name, g in parts.items()})

    def diagonal(self, space: VectorSpace, depth: int) -> Build:
        g, sort = self.form(space, depth), self.draw.integer(0, 3)
        if sort:
            return lambda frames: g(frames).diagonal()
        basis = LinearMap(Space("axes", space.dim), space, self.draw.invertible(space.dim), self.draw.name("b"))
        return lambda frames: g(frames).diagonal(basis)

    def pullback(self, space: VectorSpace, depth: int) -> Build:
        """By a map that is one to one, along an inclusion or a projection."""
        other, sort = self.space(), self.draw.integer(0, 2)
        if sort == 0 or (other.dim < space.dim and sort == 1):
            whole = DirectSum({"it": space, "rest": other})
            g = self.form(whole, depth)
            return lambda frames: g(frames).pullback(LinearMap.inclusion(whole, "it"))
        if sort == 1:
            g, phi = self.form(other, depth), self.map(space, other)
            return lambda frames: g(frames).pullback(phi(frames))
        if isinstance(space, DirectSum):
            parts = {name: self.form(U, depth) for name, U in space.parts}
            return lambda frames: sum_of([g(frames).pullback(LinearMap.projection(space, k)) for k, g in parts.items()])
        g, h, phi = self.form(space, depth), self.form(other, 0), self.map(space, other)
        return lambda frames: g(frames) + h(frames).pullback(phi(frames))

    def linear_parts(self, space: VectorSpace, depth: int) -> Build:
        """A form on V* seen on Â*, and one on Â* itself, for it does not see the constants."""
        assert isinstance(space, Dual) and isinstance(space.of, Hull)
        restriction = LinearMap.translations(space.of.of).transpose
        g, h = self.form(restriction.codomain, depth), self.form(space, 0)
        return lambda frames: g(frames).pullback(restriction) + h(frames)

    def apart(self, space: VectorSpace, depth: int) -> Build:
        """Linear parts apart from values at a point: the origin, a constant, or data."""
        assert isinstance(space, Dual) and isinstance(space.of, Hull)
        affine, g, h = space.of.of, self.form(space, depth), self.form(space, 0)
        sort, p = self.draw.integer(0, 2), self.draw.normal(affine.dim)

        def build(frames: Frames) -> InnerProduct:
            moved = frames.moved(affine.hull, torch.cat([p, ONE]))[:-1]
            point = {"point": moved, "natural": True} if sort == 0 else {"point": p} if sort == 1 else {}
            split = LinearMap.difference(affine, **point).transpose
            linear = g(frames).pullback(split).pullback(LinearMap.translations(affine).transpose)
            values = h(frames).pullback(LinearMap.height(affine).transpose)
            return linear + values.pullback(LinearMap.at(affine, **point).transpose)

        return build

    def through_a_frame(self, space: VectorSpace, depth: int) -> Build:
        """Seen in an orthonormal frame of a form, and back: what is added there is that form."""
        g, h, added = self.form(space, depth), self.moment(space), self.draw.integer(0, 2)

        def build(frames: Frames) -> InnerProduct:
            E = g(frames).frame(ONE)
            there = h(frames).pullback(E)
            if added == 0:
                there = there + 0.7 * Euclidean(E.domain)
            if added == 1:
                there = there.diagonal()
            return there.pullback(E.inverse(ONE))

        return build

    def on_translations(self, space: VectorSpace, depth: int) -> Build:
        g, c = self.form(space, depth), float(self.draw.between(0.5, 2.0))
        if not all(isinstance(U, Dual) or not isinstance(U, Hull) for U in space.factors):
            return g
        return lambda frames: g(frames) + c * euclidean_on_translations(space)

    def quotient(self, space: VectorSpace, depth: int) -> Build:
        """Seen on the space again, where a form on it must be added: classes have no length along the kernel."""
        g, h, on_classes = self.sum(space, depth), self.moment(space), self.draw.integer(0, 3)
        if isinstance(space, Hull):
            kernel = [lambda frames: LinearMap.translations(space.of)]
        elif isinstance(space, DirectSum):
            kernel = [lambda frames: LinearMap.inclusion(space, next(iter(space)))]
        else:
            kernel = []
        K = self.draw.one_of([*kernel, *kernel, self.map(Space("K", 2), space)])

        def build(frames: Frames) -> InnerProduct:
            classes = Quotient(g(frames), K(frames))
            projection, q = classes.projection, classes if on_classes else classes + Euclidean(classes.space)
            return q.pullback(projection) + h(frames)

        return build

    def restriction(self, space: VectorSpace, depth: int) -> Build:
        whole = DirectSum({"other": self.atom(), "it": space})
        g = self.form(whole, depth)
        return lambda frames: g(frames).restrict("it")

    def rotated(self, space: VectorSpace, depth: int) -> Build:
        """Diagonal in eigenframes of data relative to a reference, or in constant axes."""
        factors = [space] if not isinstance(space, Product) else list(space.factors)
        spectrum, name = self.draw.between(0.4, 2.5, *(U.dim for U in factors)), self.draw.name("f")
        if self.draw.integer(0, 3) == 0:
            axes = [torch.linalg.qr(self.draw.normal(U.dim, U.dim))[0] for U in factors]
            return lambda frames: RotatedDiagonal(Euclidean(space), axes, spectrum, name)
        if isinstance(space, DirectSum):
            references = [self.direct_sum(space, depth)]
        else:
            references = [self.form(U, depth if len(factors) == 1 else 0) for U in factors]
        first = [self.natural_gram(U) for U in factors]
        second = self.natural_gram(space)

        def build(frames: Frames) -> InnerProduct:
            hs = [h(frames) for h in references]
            axes = [eigenframe(M(frames), h.matrix(ONE)) for M, h in zip(first, hs, strict=True)]
            reference = hs[0]
            for h in hs[1:]:
                reference = reference * h
            P = axes[0]
            for axis in axes[1:]:
                P = torch.kron(P, axis)
            seconds = (P.mT @ second(frames) @ P).diagonal().reshape(spectrum.shape)
            return RotatedDiagonal(reference, axes, seconds, name, natural=True)

        return build

    def natural_gram(self, space: VectorSpace) -> Callable[[Frames], Tensor]:
        M = self.draw.positive(space.dim)
        return lambda frames: symmetric(frames.moved(space.dual, frames.moved(space.dual, M).mT))

    def damped(self, space: VectorSpace, depth: int) -> Build:
        first, *others = space.factors
        U, W = first, tensor_product(*others)
        split = self.draw.one_of(SPLITS)
        if self.draw.integer(0, 2):
            G, H = self.moment(U), self.moment(W)
        else:
            G, H = self.form(U, depth), self.form(W, depth)
        g, h = self.form(U, 0), self.form(W, 0)
        common, strength = self.draw.integer(0, 3) > 0, float(self.draw.between(0.5, 2.0))

        def build(frames: Frames) -> InnerProduct:
            reference = Euclidean(space) if common else g(frames) * h(frames)
            return damp_factors(G(frames) * H(frames), strength, reference, split)

        return build

    def relative_damping(self, space: VectorSpace, depth: int) -> Build:
        """g + ε tr(g; h) h: of degree zero in h."""
        g, h, strength = self.form(space, depth), self.form(space, 0), float(self.draw.between(0.3, 1.0))

        def build(frames: Frames) -> InnerProduct:
            G, H = g(frames), h(frames)
            trace = torch.linalg.solve(H.matrix(ONE), G.matrix(ONE)).diagonal().sum() / space.dim
            return G + Scaled(strength * trace, H, G.symmetry * H.symmetry**-1)

        return build

    def blend(self, space: VectorSpace, depth: int) -> Build:
        weight, product = float(self.draw.between(0.2, 0.8)), isinstance(space, Product)
        if not product:
            g, h = self.moment(space, any_kind=False), self.gram(space)
            return lambda frames: g(frames).blend(h(frames), weight)
        first, *others = space.factors
        U, W = first, tensor_product(*others)
        g, h, k, m = self.moment(U, False), self.moment(W, False), self.moment(U, False), self.gram(W)
        return lambda frames: (g(frames) * h(frames)).blend(k(frames) * m(frames), weight)

    # Finished things

    def expression(self) -> Expression:
        space = self.space()
        form = self.form(space, self.draw.integer(1, self.depth))
        finish = self.draw.one_of(["form", "form", "step", "step", "truncated", "spectral"])
        xi = self.draw.normal(space.dim)

        def covector(frames: Frames) -> Covector:
            return Covector(space, frames.moved(space.dual, xi).reshape(space.shape))

        def back(v: Tensor, frames: Frames) -> Tensor:
            return torch.linalg.solve(frames.on(space), v)

        if finish == "spectral" and isinstance(space, Product):
            form = self.draw.one_of([self.product, self.damped])(space, self.depth - 1)
            return Expression(
                form, "spectral step", lambda g, frames: back(Spectral(g).sharp(covector(frames)).components, frames),
                lambda g: Spectral(g).symmetry,
            )  # fmt: skip
        if finish == "truncated":
            other = self.form(space, 1)
            M: Build | None = other if self.draw.integer(0, 2) else None

            def solver(frames: Frames) -> CG:
                return CG(iterations=2, preconditioner=None if M is None else M(frames))

            return Expression(
                form, "two steps of CG",
                lambda g, frames: back(solver(frames).solve(g, covector(frames)).value.components, frames),
                lambda g: solver(HERE).symmetry_of(g),
            )  # fmt: skip
        if finish == "step":
            return Expression(
                form, "step", lambda g, frames: back(g.sharp(covector(frames)).components, frames),
                lambda g: g.symmetry,
            )  # fmt: skip

        def entries(g: InnerProduct, frames: Frames) -> Tensor:
            return frames.on(space).mT @ g.flat_components(frames.on(space).mT).mT

        return Expression(form, "form", entries, lambda g: g.symmetry)
