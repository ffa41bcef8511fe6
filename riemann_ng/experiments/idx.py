"""MNIST's files: the IDX format, plain or gzipped, read with every fault named.

A file is two zero bytes, the type of its numbers, how many axes there are, their lengths (32 bits each), and the
numbers, all with the high byte first.

    images, labels = read_mnist("folder", "train")     # (60000, 28, 28) uint8, (60000,) uint8
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import RiemannError

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""By the code in the third byte: numpy's names."""
MNIST = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
PUBLISHED = {
    "train-images-idx3-ubyte.gz": "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "md5:d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "md5:9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "md5:ec29112dd5afa0611ce80d1b7f02629c",
}
"""Checksums of the files as they were published, gzipped."""


class CorruptData(RiemannError):
    """A data file that is missing, or is not what it says it is."""


def read_idx(path: str | Path, checksum: str | None = None) -> Tensor:
    """The array in an IDX file, gzipped or not; `checksum`, "md5:..." or "sha256:...", is that of the file as it lies.

    Numbers keep their type. Raises `CorruptData`, and returns no part of a file that is not whole.
    """
    path = Path(path)
    try:
        stored = path.read_bytes()
    except OSError as error:
        raise CorruptData(f"CorruptData in read_idx: {path.name!r} cannot be read: {error.strerror}.") from None
    if checksum is not None:
        check(path, stored, checksum)
    content = unpacked(path, stored)
    if len(content) < 4 or content[:2] != b"\0\0":
        raise CorruptData(
            f"CorruptData in {path.name!r}: an IDX file begins with two zero bytes, its type and its number of axes; "
            f"this one of {len(content)} bytes begins with {content[:4].hex(' ') or 'nothing'}. Is it another format?"
        )
    code, axes = content[2], content[3]
    if code not in TYPES:
        known = ", ".join(f"{code:#04x}" for code in TYPES)
        raise CorruptData(f"CorruptData in {path.name!r}: type {code:#04x} is none of IDX, which has {known}.")
    start = 4 + 4 * axes
    if len(content) < start:
        raise CorruptData(
            f"CorruptData in {path.name!r}: cut off in its head: {axes} axes need {start} bytes, there are "
            f"{len(content)}."
        )
    shape = [int.from_bytes(content[k : k + 4], "big") for k in range(4, start, 4)]
    kind = np.dtype(TYPES[code])
    expected, there = math.prod(shape) * kind.itemsize, len(content) - start
    if there != expected:
        what = "cut off" if there < expected else "followed by something else"
        raise CorruptData(
            f"CorruptData in {path.name!r}: {what}: an array {shape} of {kind.itemsize}-byte numbers takes {expected} "
            f"bytes after the head, there are {there}. Download it again."
        )
    numbers = np.frombuffer(content, kind, offset=start).reshape(shape)
    return torch.from_numpy(numbers.astype(kind.newbyteorder("=")))


def unpacked(path: Path, stored: bytes) -> bytes:
    """The content of a file that is gzipped if it begins like one, whatever it is called."""
    if stored[:2] != b"\x1f\x8b":
        return stored
    try:
        return gzip.decompress(stored)
    except EOFError:
        raise CorruptData(
            f"CorruptData in {path.name!r}: cut off: the gzip stream ends before its end. Download it again."
        ) from None
    except (zlib.error, gzip.BadGzipFile) as error:
        raise CorruptData(
            f"CorruptData in {path.name!r}: damaged: gzip says {str(error)!r}. Download it again."
        ) from None


def check(path: Path, stored: bytes, checksum: str) -> None:
    kind, _, expected = checksum.partition(":")
    if kind not in ("md5", "sha256") or not expected:
        raise CorruptData(
            f"CorruptData in read_idx: checksum={checksum!r}, expected 'md5:' or 'sha256:' and hexadecimal digits."
        )
    found = hashlib.new(kind, stored, usedforsecurity=False).hexdigest()
    if found != expected.lower():
        raise CorruptData(
            f"CorruptData in {path.name!r}: its {kind} is {found}, expected {expected}: it is damaged, or another file."
        )


def find(folder: Path, name: str) -> Path:
    """A file, gzipped or not."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise CorruptData(
        f"CorruptData in read_mnist: there is no {name!r} in {folder.name!r}, nor {name + '.gz'!r}. The four files of "
        f"MNIST are {', '.join(file for pair in MNIST.values() for file in pair)}."
    )


def read_mnist(folder: str | Path, part: str = "train", published: bool = False) -> tuple[Tensor, Tensor]:
    """Images (n, rows, columns) and labels (n,), uint8, of the part "train" or "test".

    `published` demands the very files of MNIST, gzipped, by their checksums; other sets in the same form go without.
    """
    if part not in MNIST:
        raise CorruptData(f"CorruptData in read_mnist: part={part!r}, expected {' or '.join(map(repr, MNIST))}.")
    paths = [find(Path(folder), name) for name in MNIST[part]]
    arrays = []
    for path in paths:
        if published and path.name not in PUBLISHED:
            raise CorruptData(
                f"CorruptData in read_mnist: checksums are known of the gzipped files, and {path.name!r} is none. Give "
                f"{path.name + '.gz'!r}, or leave out published=True."
            )
        arrays.append(read_idx(path, PUBLISHED[path.name] if published else None))
    images, labels = arrays
    if images.ndim != 3 or images.dtype != torch.uint8:
        raise CorruptData(
            f"CorruptData in {paths[0].name!r}: expected images, uint8[n, rows, columns], got {a(images)}."
        )
    if labels.ndim != 1 or labels.dtype != torch.uint8:
        raise CorruptData(f"CorruptData in {paths[1].name!r}: expected labels, uint8[n], got {a(labels)}.")
    if len(images) != len(labels):
        raise CorruptData(
            f"CorruptData in read_mnist: {len(images)} images in {paths[0].name!r} and {len(labels)} labels in "
            f"{paths[1].name!r}: they do not belong together."
        )
    if len(labels) and int(labels.max()) > 9:
        raise CorruptData(f"CorruptData in {paths[1].name!r}: a label {int(labels.max())}, expected digits 0 to 9.")
    return images, labels


def a(array: Tensor) -> str:
    return f"{str(array.dtype).removeprefix('torch.')}{list(array.shape)}"
