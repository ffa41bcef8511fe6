"""Second moments of per-example gradients that are never written down where that can be avoided.

F = BᵀB with (B v)_nc = N^-½ Σ g · V a, over examples n, output directions c, sites and layers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property

import torch
from torch import Tensor

from ..errors import NotClosed
from ..factorizations import Factorization, RankDeficient, factorize_dense, factorize_rows, fold_rows, tolerance_of
from ..inner_products import Euclidean, InnerProduct
from ..inner_products.dualized import Dualized
from ..samples import Measure
from ..samples.products import gram
from ..solvers import Structure
from ..solvers.direct import DENSE_LIMIT
from .layer_rows import BUDGET, LayerRows, mirrored_


class PerExample(Dualized):
    """The second moment of per-example gradients, from the samples of the layers they are made of.

    `layers` knows inputs, `together()` yields cotangents: the same draws in each layer, some at a time.
    """

    n: int
    k: int
    solved: str = "full"
    weights: Tensor | float
    _kept: dict[str, Tensor] | None = None

    @property
    @abstractmethod
    def layers(self) -> Mapping[str, LayerRows]:
        """The rows of each layer."""

    @property
    @abstractmethod
    def slices(self) -> Mapping[str, slice]:
        """Where a layer's components stand."""

    @abstractmethod
    def references(self, reference: InnerProduct) -> Mapping[str, InnerProduct] | None:
        """A form on the space, layer by layer, if it is one for each."""

    @abstractmethod
    def together(self) -> Iterator[dict[str, Tensor]]:
        """The cotangents (examples, draws, sites, *shape) of all layers. One that was not used may be missing."""

    @property
    def products(self) -> InnerProduct | None:
        """The form in a way that needs no directions, if there is one."""
        return None

    def _weigh(self, measure: Measure, n: int, k: int) -> None:
        self.n, self.k, self.count = n, k, n * k
        weights = measure.weights((n, k, 1))
        self.weights = weights if isinstance(weights, float) else weights[..., 0]

    # The cotangents

    @cached_property
    def _numbers(self) -> int:
        return sum(self.count * rows.t * rows.S.dim for rows in self.layers.values())

    def pieces(self) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        """Which draws, and the cotangents of all layers there; kept if there are not too many."""
        if self._kept is None and self._numbers <= BUDGET:
            self._kept = self._together()
        if self._kept is not None:
            yield slice(0, self.k), self._kept
            return
        start = 0
        for found in self.together():
            width = max(g.shape[1] for g in found.values())
            yield slice(start, start + width), self._used(found, width)
            start += width

    def _used(self, found: dict[str, Tensor], draws: int) -> dict[str, Tensor]:
        """Without the layers that the batch did not use: they have one draw, of zeros."""
        return {path: g for path, g in found.items() if g.shape[1] == draws}

    def _together(self) -> dict[str, Tensor]:
        parts = [self._used(found, max(g.shape[1] for g in found.values())) for found in self.together()]
        paths = parts[0]
        return {p: parts[0][p] if len(parts) == 1 else torch.cat([part[p] for part in parts], 1) for p in paths}

    def _root(self, draws: slice) -> Tensor | float:
        if isinstance(self.weights, float):
            return self.weights**0.5
        return (self.weights if self.weights.shape[1] == 1 else self.weights[:, draws]).sqrt()

    def _weighted(self, y: Tensor, draws: slice) -> Tensor:
        """(n, k, b) times the roots of the weights."""
        root = self._root(draws)
        return y * (root if isinstance(root, float) else root.to(y)[..., None])

    # B and its transpose

    def push(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, self.space.dim)
        parts = []
        for draws, found in self.pieces():
            y: Tensor | None = None
            for path, g in found.items():
                part = self.layers[path].push(flat[:, self.slices[path]], g)
                y = part if y is None else y.add_(part)
            assert y is not None
            parts.append(self._weighted(y, draws))
        seen = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return seen.flatten(0, 1).mT.reshape(*x.shape[:-1], self.count)

    def pull(self, y: Tensor) -> Tensor:
        flat = y.reshape(-1, self.n, self.k).permute(1, 2, 0)
        out = y.new_zeros(flat.shape[-1], self.space.dim)
        for draws, found in self.pieces():
            weighted = self._weighted(flat[:, draws], draws)
            for path, g in found.items():
                out[:, self.slices[path]] += self.layers[path].pull(weighted, g)
        return out.reshape(*y.shape[:-1], self.space.dim)

    @cached_property
    def _products(self) -> InnerProduct | None:
        """Where directions are too many to be kept: the linearized network, whose products need none of them."""
        return self.products if self._numbers > BUDGET else None

    def flat_components(self, x: Tensor) -> Tensor:
        return super().flat_components(x) if self._products is None else self._products.flat_components(x)

    # The rows, where they are wanted

    def row_pieces(self) -> Iterator[Tensor]:
        """Weighted rows (some, dim), some examples at a time."""
        for draws, found in self.pieces():
            k = draws.stop - draws.start
            size = max(1, BUDGET // (k * self.space.dim))
            for start in range(0, self.n, size):
                at = slice(start, min(start + size, self.n))
                rows = next(iter(found.values())).new_zeros(at.stop - start, k, self.space.dim)
                for path, g in found.items():
                    rows[..., self.slices[path]] = self.layers[path].rows(g, at)
                root = self._root(draws)
                weigh = root if isinstance(root, float) or root.shape[0] == 1 else root[at]
                yield self._times(rows, weigh).flatten(0, 1)

    def _times(self, rows: Tensor, root: Tensor | float) -> Tensor:
        return rows * (root if isinstance(root, float) else root.to(rows)[..., None])

    @property
    def small(self) -> bool:
        """Whether the rows may be written down."""
        return self.solved == "full" and self.count * self.space.dim <= BUDGET

    def rows(self) -> Tensor | None:
        return torch.cat(list(self.row_pieces())) if self.small else None

    def dense_matrix(self, like: Tensor | None = None) -> Tensor:
        total: Tensor | None = None
        for rows in self.row_pieces():
            total = gram(rows) if total is None else total.add_(gram(rows))
        assert total is not None
        return total

    def diagonal_entries(self, like: Tensor | None = None) -> Tensor:
        out = torch.zeros(self.space.dim, **self._options(like))
        for draws, found in self.pieces():
            root = self._root(draws)
            weights = root * root
            for path, g in found.items():
                out[self.slices[path]] += self.layers[path].squares(g, weights)
        return out

    # The kernel

    def kernel(self, reference: InnerProduct, wide: bool = False) -> Tensor:
        found, parts = self._stacked(), self.references(reference)
        if parts is None:
            factorization = reference.factorization(next(iter(found.values())))
            white = torch.cat([factorization.coframe(rows) for rows in self.row_pieces()])
            return gram((white.double() if wide else white).mT)
        like = next(iter(found.values()))
        K = torch.zeros(self.count, self.count, dtype=torch.float64 if wide else like.dtype, device=like.device)
        for path, g in found.items():
            self.layers[path].add_kernel(K, parts[path], g, self._root(slice(0, self.k)))
        return mirrored_(K)

    def _stacked(self) -> dict[str, Tensor]:
        if self.count > 4 * DENSE_LIMIT:
            raise NotClosed(
                f"NotClosed in {self.expression()}: {self.n} examples with {self.k} directions each make a kernel of "
                f"dimension {self.count}. Observe with MonteCarlo(...), or solve by solvers.CG(...)."
            )
        if self._kept is None:
            self._kept = self._together()
        return self._kept

    def cost_of_kernel(self, reference: InnerProduct) -> float:
        parts = self.references(reference)
        if parts is None:
            return float(self.count) ** 2 * self.space.dim + 2.0 * self.count * self.space.dim**2
        total = 0.0
        for path, rows in self.layers.items():
            pairs, gradients = rows.costs(self.k)
            total += pairs if rows.by_sites(parts[path], self.k) else gradients
        return total

    # Solving it alone

    @property
    def structure(self) -> Structure:
        d = self.space.dim
        apply = sum(4.0 * rows.n * rows.t * (rows.space.dim + self.k * rows.S.dim) for rows in self.layers.values())
        direct = 2.0 * self.count * d * d if self.solved == "full" and d <= DENSE_LIMIT else None
        degenerate = self.count < d
        return Structure("gradients", d, 0.0 if degenerate else direct, apply, min(self.count, d))

    def direct_factorization(self, method: str) -> Factorization | None:
        """By QR of the rows. Fewer of them than dimensions are known to be too few."""
        d = self.space.dim
        if self.count < d:
            raise RankDeficient(rank_of_kernel(self, self.unit), d)
        if self.solved != "full" or d > DENSE_LIMIT:
            return None
        if method != "cholesky":
            return factorize_dense(self.dense_matrix(), method)
        return factorize_rows(fold_rows(self.row_pieces()))

    @property
    def unit(self) -> float:
        """What is rounding in a row, relative to the largest."""
        return tolerance_of(next(iter(self._stacked().values()))[..., :1])

    def tensors(self) -> Iterator[Tensor]:
        for rows in self.layers.values():
            if rows.indices is None:
                yield rows.a
            else:
                yield rows.sample.tensor()


def rank_of_kernel(form: Dualized, unit: float) -> int:
    """The rank of a form of few rows, where these are not too many to find out."""
    if form.count > DENSE_LIMIT:
        return form.count
    K = form.kernel(Euclidean(form.space), wide=True)
    values = torch.linalg.eigvalsh(K)
    return int((values > max(tolerance_of(K), len(K) * unit**2) * values[-1]).sum())
