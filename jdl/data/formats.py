"""Files as data sets are published in them: compressed files, archives, IDX, and CIFAR's pickles.

Everything here reads bytes that may come from anywhere, so nothing is ever unpacked onto the disk and nothing
that a file names is executed: members of an archive are read by the exact name that is asked for, and pickles
may rebuild numpy arrays and do nothing else.
"""

from __future__ import annotations

import gzip
import io
import lzma
import math
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

_BROKEN = (EOFError, OSError, lzma.LZMAError, zlib.error, tarfile.TarError, zipfile.BadZipFile, RuntimeError)

_IDX_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

# `_codecs.encode` is how Python 3 writes an array's bytes in the protocols of Python 2.
_NUMPY_NAMES = {
    (module, name)
    for core in ("numpy.core", "numpy._core")
    for module, name in ((f"{core}.multiarray", "_reconstruct"), (f"{core}.numeric", "_frombuffer"))
} | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}


def unpack(path: Path, members: Iterable[str] = ("",)) -> dict[str, bytes]:
    """What is inside a file, in memory: by member for .tar.gz and .zip, under "" for .gz, .xz and plain
    files.

    Args:
        path: the file; its suffix says what it is.
        members: names of members as the archive spells them, or "" for the whole of a file that is no
            archive.

    Returns:
        The bytes of each member.

    Raises:
        ValueError: if the file is damaged, or has no such member, or the member is a link or a folder.
    """
    members = list(members)
    try:
        if path.name.endswith((".tar.gz", ".tgz", ".tar")):
            return _untar(path, set(members))
        if path.suffix == ".zip":
            return _unzip(path, members)
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        elif path.suffix == ".xz":
            data = lzma.decompress(data)
        return dict.fromkeys(members, data)
    except _BROKEN as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{path} is damaged: {error or type(error).__name__}") from error


def _untar(path: Path, members: set[str]) -> dict[str, bytes]:
    found = {}
    with tarfile.open(path) as tar:
        for info in tar:
            if info.name in members:
                file = tar.extractfile(info) if info.isreg() else None
                if file is None:
                    raise ValueError(f"{path}: member {info.name} is not a plain file")
                found[info.name] = file.read()
                if len(found) == len(members):
                    return found
    raise ValueError(f"{path} has no member {', '.join(sorted(members - set(found)))}")


def _unzip(path: Path, members: list[str]) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        absent = sorted(set(members) - set(archive.namelist()))
        if absent:
            raise ValueError(f"{path} has no member {', '.join(absent)}")
        return {member: archive.read(member) for member in members}


def parse_idx(data: bytes, name: str = "IDX data", *, ndim: int | None = None) -> np.ndarray:
    """The array of an IDX file, MNIST's format: two zero bytes, a type, the rank, big-endian sizes, then
    values.

    Args:
        data: the file's bytes, uncompressed.
        name: what errors call it.
        ndim: the rank that is expected, None for any.

    Returns:
        The array in native byte order.

    Raises:
        ValueError: if the magic number is wrong, or the values are fewer or more than the sizes say.

    Example:
        >>> parse_idx(bytes([0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 3, 7, 8, 9])).tolist()
        [[7, 8, 9]]

    Reference: http://yann.lecun.com/exdb/mnist/
    """
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _IDX_DTYPES:
        raise ValueError(f"{name}: magic number {data[:4].hex() or 'missing'} is not that of an IDX file")
    rank = data[3]
    if ndim is not None and rank != ndim:
        raise ValueError(f"{name}: magic number {data[:4].hex()} announces {rank} axes, expected {ndim}")
    start = 4 + 4 * rank
    if len(data) < start:
        raise ValueError(f"{name}: truncated within its header, {len(data)} bytes of {start}")
    dtype = np.dtype(_IDX_DTYPES[data[2]])
    shape = tuple(int.from_bytes(data[4 + 4 * k : 8 + 4 * k], "big") for k in range(rank))
    expected = start + math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        problem = "truncated" if len(data) < expected else "too long"
        raise ValueError(f"{name}: {problem}, shape {shape} takes {expected} bytes and there are {len(data)}")
    return np.frombuffer(data, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def parse_idx_pair(images: bytes, labels: bytes, names: tuple[str, str]) -> dict[str, np.ndarray]:
    """Images and labels of MNIST's kind as ``inputs`` uint8 [N, H, W, 1] and ``labels`` int32 [N].

    Args:
        images: bytes of an IDX file of rank 3.
        labels: bytes of an IDX file of rank 1.
        names: what errors call the two.

    Raises:
        ValueError: if either is no such file, or they differ in length.
    """
    inputs, targets = parse_idx(images, names[0], ndim=3), parse_idx(labels, names[1], ndim=1)
    if len(inputs) != len(targets):
        raise ValueError(f"{names[0]} has {len(inputs)} images, {names[1]} has {len(targets)} labels")
    return {"inputs": inputs[..., None], "labels": targets.astype(np.int32)}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NUMPY_NAMES:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a pickle of arrays")
        # Releases of numpy moved these; whichever spelling a pickle has, resolve the one that is there.
        if module.startswith("numpy.core."):
            module = module.replace("numpy.core.", "numpy._core.")
        return super().find_class(module, name)


def load_array_pickle(data: bytes, name: str = "pickle") -> Any:
    """A pickle of containers, strings, numbers and numpy arrays, Python 2's included; anything else is
    refused.

    Args:
        data: the pickle.
        name: what errors call it.

    Raises:
        ValueError: if the pickle is damaged or names anything but what rebuilds a numpy array.
    """
    try:
        return _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(
            f"{name} cannot be read as a pickle of arrays: {error or type(error).__name__}"
        ) from error


def parse_cifar_batch(data: bytes, name: str = "CIFAR batch") -> dict[str, np.ndarray]:
    """One batch of CIFAR-10's Python version as ``inputs`` uint8 [N, 32, 32, 3] and ``labels`` int32 [N].

    Args:
        data: a pickled dictionary with ``data`` uint8 [N, 3072], channel by channel, and ``labels``, N
            integers.
        name: what errors call it.

    Raises:
        ValueError: if it is not such a batch.

    Reference: https://www.cs.toronto.edu/~kriz/cifar.html
    """
    batch = load_array_pickle(data, name)
    try:
        pixels, labels = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"], np.int32)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{name} is not a dictionary with data and labels") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3072:
        raise ValueError(f"{name}: data must be uint8 [N, 3072], got {pixels.dtype} {pixels.shape}")
    if labels.shape != pixels.shape[:1]:
        raise ValueError(f"{name} has {len(pixels)} images and {labels.size} labels")
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return {"inputs": np.ascontiguousarray(images), "labels": labels}
