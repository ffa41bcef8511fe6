"""Random matrices: of rational numbers for exact arithmetic, of doubles for the library."""

import random

import torch
from sympy import Matrix, Rational, diag
from torch import Tensor

__all__ = ["Draws", "Matrix", "Rational", "close", "diag", "kronecker", "row_major", "stacked"]


class Draws:
    """One generator, named by its seed, for both kinds."""

    def __init__(self, seed: int):
        self.integers = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def rational(self, rows: int, columns: int) -> Matrix:
        entry = lambda: Rational(self.integers.randint(-4, 4), self.integers.randint(1, 3))  # noqa: E731
        return Matrix(rows, columns, lambda i, j: entry())

    def rational_invertible(self, n: int) -> Matrix:
        """Triangular times triangular, with no zero on the diagonals."""
        lower, upper = self.rational(n, n), self.rational(n, n)
        for i in range(n):
            lower[i, i] = upper[i, i] = self.integers.choice([1, 2, -1])
            for j in range(i):
                lower[j, i] = upper[i, j] = 0
        return lower * upper

    def rational_positive(self, n: int) -> Matrix:
        root = self.rational_invertible(n)
        return root * root.T

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=self.generator)

    def orthogonal(self, n: int) -> Tensor:
        return torch.linalg.qr(self.normal(n, n))[0]

    def invertible(self, n: int) -> Tensor:
        """Singular values between 1/2 and 2, no two of them equal but by accident."""
        stretch = torch.rand(n, dtype=torch.float64, generator=self.generator).mul(2).sub(1).exp2()
        return self.orthogonal(n) * stretch @ self.orthogonal(n)

    def affine(self, n: int) -> Tensor:
        """An affine map of a space of dimension n, on its hull."""
        frame = torch.eye(n + 1, dtype=torch.float64)
        frame[:n, :n], frame[:n, n] = self.invertible(n), self.normal(n)
        return frame

    def positive(self, n: int) -> Tensor:
        root = self.invertible(n)
        return root @ root.mT


def close(x: Tensor, y: Tensor, tolerance: float = 1e-8) -> bool:
    """Whether the difference is small beside the two."""
    return bool((x - y).norm() <= tolerance * (x.norm() + y.norm()))


def kronecker(left: Matrix, right: Matrix) -> Matrix:
    rows = [[left[i, j] * right for j in range(left.cols)] for i in range(left.rows)]
    return Matrix.vstack(*(Matrix.hstack(*row) for row in rows))


def row_major(x: Matrix) -> Matrix:
    """The entries of a matrix in one column, row by row: (G ⊗ A) row_major(V) = row_major(G V A) for symmetric A."""
    return Matrix(x.rows * x.cols, 1, list(x))


def stacked(parts: list[Matrix]) -> Matrix:
    return Matrix.vstack(*(row_major(part) for part in parts))
