"""The groups of changes of frame by name, and elements drawn from them: well conditioned, and far from the identity."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import RiemannError
from ..symmetry import COMPOSITE, GROUPS

JOINT = "joint scale"
NAMES = (*GROUPS, *COMPOSITE, JOINT)
"""Every group that frames can be drawn from. The linear ones are about the origin; isometries and affine maps move it;
a joint scale is a → ca, s → cs, with one c for each layer."""


class InvalidFrames(RiemannError):
    """Frames that cannot be drawn or do not fit the network: an unknown group, a wrong size, a map without inverse."""


class NoTwin(RiemannError):
    """A network that has no twin in these frames: no module of its class computes the same function there."""


def parts(group: object) -> tuple[str | None, bool]:
    """The linear group in a group, None where there is none, and whether it has translations."""
    if group not in NAMES or not isinstance(group, str):
        raise InvalidFrames(f"InvalidFrames: no group is called {group!r}. The groups are {', '.join(NAMES)}.")
    if group == JOINT:
        return "uniform scale", False
    members = COMPOSITE.get(group, (group,))
    linear = [name for name in members if name != "translations"]
    return (linear[0] if linear else None), "translations" in members


def trivial(group: str, dim: int) -> str:
    """Why a space of this dimension has no element of the group but the identity, or ""."""
    return "a single coordinate has no permutation but the identity" if group == "permutations" and dim == 1 else ""


def linear_element(group: str | None, dim: int, generator: torch.Generator, size: float = 1.0) -> Tensor:
    """A matrix (dim, dim) of a linear group; `size` is that of the logarithms of its stretchings, 0.7 at most."""
    eye = torch.eye(dim, dtype=torch.float64)
    if group is None:
        return eye
    if group == "uniform scale":
        return eye * torch.exp(sign(generator) * size * (0.3 + 0.4 * uniform(generator)))
    if group in ("permutations", "signed permutations", "monomial"):
        matrix = eye[derangement(dim, generator)]
        if group != "permutations":
            signs = torch.stack([sign(generator) for _ in range(dim)])
            signs[0] = -1.0  # an element that is no permutation
            matrix = signs[:, None] * matrix
        return matrix * scales(dim, generator, size) if group == "monomial" else matrix
    if group == "scaling":
        return torch.diag(scales(dim, generator, size))
    left, right = rotation(dim, generator), rotation(dim, generator)
    if group == "orthogonal":
        return -left if dim == 1 else left
    stretching = torch.exp(size * 0.7 * (2 * torch.rand(dim, generator=generator, dtype=torch.float64) - 1))
    if dim == 1:
        stretching = scales(1, generator, size)
    return (left * stretching) @ right


def shift_element(dim: int, generator: torch.Generator, size: float = 1.0) -> Tensor:
    """A translation of length `size`: longer ones would ruin the conditioning of moments in the hull."""
    direction = torch.randn(dim, generator=generator, dtype=torch.float64)
    return size * direction / direction.norm().clamp(min=1e-12)


def uniform(generator: torch.Generator) -> Tensor:
    return torch.rand((), generator=generator, dtype=torch.float64)


def sign(generator: torch.Generator) -> Tensor:
    return 1.0 - 2.0 * torch.randint(0, 2, (), generator=generator).to(torch.float64)


def rotation(dim: int, generator: torch.Generator) -> Tensor:
    """An orthogonal matrix of either determinant; in dimension one, 1."""
    if dim == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    q, r = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    return q * torch.sign(torch.diagonal(r))


def derangement(dim: int, generator: torch.Generator) -> Tensor:
    """A permutation without fixed points: one cycle through all."""
    order = torch.randperm(dim, generator=generator)
    cycle = torch.empty_like(order)
    cycle[order] = order.roll(-1)
    return cycle


def scales(dim: int, generator: torch.Generator, size: float) -> Tensor:
    """Positive numbers, no two ratios equal, none of them one."""
    steps = (torch.arange(dim, dtype=torch.float64) + 0.2 + 0.6 * torch.rand(dim, generator=generator).double()) / dim
    if dim == 1:
        steps = torch.where(steps < 0.5, 0.1 * steps, 1 - 0.1 * steps)
    return torch.exp(size * 0.7 * (2 * steps - 1))[torch.randperm(dim, generator=generator)]
