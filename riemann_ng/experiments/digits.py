"""Handwritten digits: MNIST where its files are given, else those that scikit-learn ships (1797 of 8×8)."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import MissingDependency
from .idx import read_mnist


@dataclass(frozen=True)
class Digits:
    """Images (n, side, side) in [0, 1] and labels (n,), for training and for testing, and what they are called."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    name: str

    @property
    def side(self) -> int:
        return int(self.images.shape[-1])

    @property
    def flat(self) -> Tensor:
        return self.images.flatten(1)

    @property
    def test_flat(self) -> Tensor:
        return self.test_images.flatten(1)


def digits(
    folder: Path | None = None,
    side: int | None = None,
    dtype: torch.dtype = torch.float64,
    most: int | None = None,
) -> Digits:
    """MNIST from a folder with its files, else scikit-learn's digits, of which every fifth is kept for testing.

    `side` scales the images to so many pixels, by averages or by bilinear interpolation; `most` takes the first so
    many for training. The order is mixed, always the same way.
    """
    if folder is None:
        images, labels = shipped()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        images, labels = images[order] / 16, labels[order]
        testing = torch.arange(len(labels)) % 5 == 0
        parts = [(images[~testing], labels[~testing]), (images[testing], labels[testing])]
        name = "scikit-learn's digits"
    else:
        parts = []
        for part in ("train", "test"):
            images, labels = read_mnist(folder, part)
            parts.append((images.to(torch.float64) / 255, labels.long()))
        name = "MNIST files"
    (x, y), (x_test, y_test) = ((scaled(images, side).to(dtype), labels) for images, labels in parts)
    return Digits(x[:most], y[:most], x_test, y_test, name)


def scaled(images: Tensor, side: int | None) -> Tensor:
    if side is None or images.shape[-1] == side:
        return images
    smaller = side < images.shape[-1]
    how = {"mode": "area"} if smaller else {"mode": "bilinear", "align_corners": False}
    return interpolate(images[:, None], size=(side, side), **how)[:, 0].clamp(0, 1)


def shipped() -> tuple[Tensor, Tensor]:
    """Images with intensities 0 to 16, and labels."""
    try:
        datasets = import_module("sklearn.datasets")
    except ImportError as missing:
        raise MissingDependency(
            f"MissingDependency in digits: scikit-learn, which ships the digits, cannot be imported ({missing}). "
            f"Install it: pip install 'riemann-ng[experiments]'; or give MNIST's files with --data."
        ) from None
    images, labels = datasets.load_digits(return_X_y=True)
    return torch.from_numpy(images).reshape(-1, 8, 8), torch.from_numpy(labels).long()
