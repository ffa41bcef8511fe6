"""What a step costs: floating point operations, counted as torch carries them out.

    counter = Operations()
    with counter:
        opt.step()
    print(counter.total)

Matrix products, factorizations and solves count as usual for dense matrices; everything else that writes numbers counts
one operation for each number written. Counts depend on shapes alone, so they are the same on every machine.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .directions import Direction
from .problems import Problem
from .subjects import Training

aten: Any = torch.ops.aten
RATE = 1e-3
"""Of what an atlas's row is set to: costs are those of small steps, at which nothing diverges."""


def square(matrix: Tensor) -> tuple[int, int]:
    """How many matrices there are, and their size."""
    return math.prod(matrix.shape[:-2]), matrix.shape[-1]


def thin(matrix: Tensor) -> tuple[int, int, int]:
    """How many matrices there are, their larger and their smaller side."""
    return math.prod(matrix.shape[:-2]), max(matrix.shape[-2:]), min(matrix.shape[-2:])


def cholesky(matrix: Tensor, *_: Any) -> float:
    many, n = square(matrix)
    return many * n**3 / 3


def eigenvectors(matrix: Tensor, *_: Any) -> float:
    many, n = square(matrix)
    return many * 9.0 * n**3


def singular(matrix: Tensor, *_: Any) -> float:
    many, m, n = thin(matrix)
    return many * (14.0 * m * n**2 + 8.0 * n**3)


def orthogonal(matrix: Tensor, *_: Any) -> float:
    many, m, n = thin(matrix)
    return many * 4.0 * (m * n**2 - n**3 / 3)


def inverse_of_cholesky(factor: Tensor, *_: Any) -> float:
    many, n = square(factor)
    return many * 2 * n**3 / 3


def solved_by_cholesky(columns: Tensor, factor: Tensor, *_: Any) -> float:
    return 2.0 * columns.numel() * factor.shape[-1]


def triangular(matrix: Tensor, columns: Tensor, *_: Any) -> float:
    return 1.0 * columns.numel() * matrix.shape[-1]


def solved(matrix: Tensor, columns: Tensor, *_: Any) -> float:
    many, n = square(matrix)
    return many * 2 * n**3 / 3 + 2.0 * columns.numel() * n


def least_squares(matrix: Tensor, columns: Tensor, *_: Any) -> float:
    many, m, n = thin(matrix)
    return many * 2.0 * m * n**2 + 2.0 * columns.numel() * n


def matrix_vector(matrix: Tensor, *_: Any) -> float:
    return 2.0 * matrix.numel()


DENSE: dict[Any, Callable[..., float]] = {
    aten.linalg_cholesky_ex: cholesky, aten._linalg_eigh: eigenvectors, aten._linalg_svd: singular,
    aten.linalg_qr: orthogonal, aten.cholesky_inverse: inverse_of_cholesky, aten.cholesky_solve: solved_by_cholesky,
    aten.linalg_solve_triangular: triangular, aten._linalg_solve_ex: solved, aten.linalg_lstsq: least_squares,
    aten.mv: matrix_vector, aten.dot: matrix_vector,
}  # fmt: skip


class Operations(TorchDispatchMode):
    """A context in which operations are counted."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet in DENSE:
            self.total += DENSE[packet](*args)
        elif packet in flop_registry:
            self.total += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        elif not func.is_view:
            self.total += sum(t.numel() for t in tree_leaves(out) if isinstance(t, Tensor))
        return out


# A step of a method


def passes(problem: Problem) -> float:
    """Operations of one forward and one backward pass of the loss."""
    with Operations() as counter:
        problem.loss(problem.module).backward()
    problem.module.zero_grad()
    return counter.total


def one_direction(subject: Direction, problem: Problem) -> float:
    """Operations of one direction with all that it looks at, in passes; a pass for the loss's gradient among them."""
    with Operations() as counter:
        subject.vector(problem)
    return counter.total / passes(problem)


def step_cost(subject: Training, problem: Problem, steps: int) -> float:
    """Operations of a step, the loss's forward and backward among them, in units of these; the mean of a few steps."""
    at = subject.prepared(problem)
    module = copy.deepcopy(at.module)
    step = subject.started(module, at, RATE)
    with Operations() as counter:
        for _ in range(steps):
            step()
    return counter.total / steps / passes(problem)
