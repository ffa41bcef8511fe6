"""MNIST's files: what is read, and what is said of those that are damaged. The files are written here."""

import gzip
import hashlib
import struct

import numpy as np
import pytest
import torch

from riemann_ng.errors import MissingDependency
from riemann_ng.experiments import CorruptData, Results, Run, digits, experiment, read_idx, read_mnist
from riemann_ng.experiments import idx as module


def packed(array, code=0x08):
    kind = module.TYPES[code]
    return bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(kind).tobytes()


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (12, 28, 28))


@pytest.fixture
def folder(tmp_path, images):
    """MNIST's four files with twelve digits each, two of them gzipped."""
    labels = np.arange(12) % 10
    for train, (a, b) in module.MNIST.items():
        (tmp_path / a).write_bytes(packed(images))
        content = packed(labels)
        (tmp_path / f"{b}.gz").write_bytes(gzip.compress(content)) if train == "train" else (tmp_path / b).write_bytes(
            content
        )
    return tmp_path


@pytest.mark.parametrize("code", module.TYPES)
@pytest.mark.parametrize("squeeze", [gzip.compress, bytes], ids=["gzipped", "plain"])
def test_every_type_is_read(tmp_path, code, squeeze):
    array = np.array([[1, 2, 3], [100, 5, 6]])
    array = array if code in (0x08, 0x09) else -300 * array
    path = tmp_path / "any name"
    path.write_bytes(squeeze(packed(array, code)))
    found = read_idx(path)
    assert torch.equal(found.long(), torch.from_numpy(array))
    assert found.dtype == torch.from_numpy(np.zeros(1, np.dtype(module.TYPES[code]).newbyteorder("="))).dtype


def test_arrays_of_no_axis_and_of_no_example(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(packed(np.array(7)))
    assert int(read_idx(path)) == 7
    path.write_bytes(packed(np.zeros((0, 28, 28))))
    assert read_idx(path).shape == (0, 28, 28)


def damaged_gzip(content):
    squeezed = bytearray(gzip.compress(content))
    squeezed[-8] ^= 1  # the checksum of the content
    return bytes(squeezed)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: b"", r"an IDX file begins with two zero bytes.* of 0 bytes begins with nothing"),
        (lambda c: b"\x89PNG\r\n", r".* of 6 bytes begins with 89 50 4e 47\. Is it another format\?"),
        (lambda c: c[:2] + b"\x07" + c[3:], r"type 0x07 is none of IDX, which has 0x08, 0x09, 0x0b"),
        (lambda c: c[:9], r"cut off in its head: 3 axes need 16 bytes, there are 9"),
        (lambda c: c[:-5], r"cut off: an array \[12, 28, 28\] of 1-byte numbers takes 9408 bytes .*, there are 9403"),
        (lambda c: c + b"!", r"followed by something else: .* 9408 bytes after the head, there are 9409"),
        (lambda c: gzip.compress(c)[:-200], r"cut off: the gzip stream ends before its end"),
        (damaged_gzip, r"damaged: gzip says .CRC check failed"),
        (lambda c: b"\x1f\x8b" + c[2:], r"damaged: gzip says "),
        (lambda c: gzip.compress(c)[:40] + b"\xff" * 40 + gzip.compress(c)[80:], r"damaged: gzip says "),
    ],
)  # fmt: skip
def test_a_damaged_file_is_told_what_is_wrong(tmp_path, images, spoil, message):
    path = tmp_path / "digits"
    path.write_bytes(spoil(packed(images)))
    with pytest.raises(CorruptData, match=f"(?s)CorruptData in 'digits': {message}"):
        read_idx(path)


def test_checksums_are_of_the_file_as_it_lies(tmp_path, images):
    path = tmp_path / "digits.gz"
    path.write_bytes(gzip.compress(packed(images)))
    for kind in ("md5", "sha256"):
        right = hashlib.new(kind, path.read_bytes()).hexdigest()
        assert len(read_idx(path, f"{kind}:{right.upper()}")) == 12
        with pytest.raises(CorruptData, match=f"its {kind} is {right}, expected 00"):
            read_idx(path, f"{kind}:00")
    with pytest.raises(CorruptData, match=r"checksum='1234', expected 'md5:' or 'sha256:' and hexadecimal digits"):
        read_idx(path, "1234")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(CorruptData, match="'nothing' cannot be read: No such file or directory"):
        read_idx(tmp_path / "nothing")


def test_mnist_from_a_folder(folder, images):
    found, labels = read_mnist(folder)
    assert torch.equal(found.long(), torch.from_numpy(images)) and labels.tolist() == [k % 10 for k in range(12)]
    assert read_mnist(folder, "test")[0].shape == (12, 28, 28)


def test_a_folder_without_the_files_or_with_others(folder, images):
    with pytest.raises(CorruptData, match="part='validation', expected 'train' or 'test'"):
        read_mnist(folder, "validation")
    with pytest.raises(
        CorruptData, match=r"checksums are known of the gzipped files, and 'train-images-idx3-ubyte' is none"
    ):
        read_mnist(folder, published=True)
    path = folder / "t10k-labels-idx1-ubyte"
    for content, message in (
        (packed(np.arange(11) % 10), "12 images in 't10k-images-idx3-ubyte' and 11 labels in .*do not belong together"),
        (packed(np.arange(12)), "a label 11, expected digits 0 to 9"),
        (packed(images), r"expected labels, uint8\[n\], got uint8\[12, 28, 28\]"),
    ):
        path.write_bytes(content)
        with pytest.raises(CorruptData, match=message):
            read_mnist(folder, "test")
    path.unlink()
    with pytest.raises(
        CorruptData, match=r"there is no 't10k-labels-idx1-ubyte' in .*, nor 't10k-labels-idx1-ubyte.gz'"
    ):
        read_mnist(folder, "test")


def test_what_is_not_the_published_set_is_told_by_its_checksum(folder):
    for a, _ in module.MNIST.values():
        (folder / f"{a}.gz").write_bytes(gzip.compress((folder / a).read_bytes()))
        (folder / a).unlink()
    with pytest.raises(CorruptData, match=r"'train-images-idx3-ubyte.gz': its md5 is .*, expected f68b3c2dcbeaaa9f"):
        read_mnist(folder, published=True)


def test_digits_of_either_source(folder):
    shipped = digits()
    assert (len(shipped.images), len(shipped.test_images), shipped.side) == (1437, 360, 8)
    assert float(shipped.images.min()) == 0 and float(shipped.images.max()) == 1
    assert set(shipped.labels.tolist()) == set(range(10)) and shipped.name == "scikit-learn's digits"
    assert torch.equal(digits().labels, shipped.labels)
    up = digits(side=28, most=5, dtype=torch.float32)
    assert up.flat.shape == (5, 784) and up.images.dtype == torch.float32
    files = digits(folder, side=14)
    assert files.name == "MNIST files" and files.images.shape == (12, 14, 14) and float(files.images.max()) <= 1
    exact = read_mnist(folder)[0].double() / 255
    assert torch.allclose(files.images[0, 0, 0], exact[0, :2, :2].mean())


def test_reproductions_learn_from_the_files(folder):
    run = Run(Results("fisher-variance", 0, "quick"), folder)
    dict(experiment("fisher-variance").parts)["training"](run)
    assert run.results.data == "MNIST files"
    assert not [check for check in run.results.failed if "loss" not in check.claim]


def test_without_scikit_learn_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(
        MissingDependency, match=r"scikit-learn, which ships the digits.*riemann-ng\[experiments\].*--data"
    ):
        digits()
