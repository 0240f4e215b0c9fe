"""Formats: what is published parses, and what is damaged or hostile is refused in words."""

import gzip
import io
import lzma
import os
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest

from jdl.data.formats import load_array_pickle, parse_cifar_batch, parse_idx, parse_idx_pair, unpack


def idx(array, code=0x08):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape) + array.tobytes()


IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize(
    ("code", "dtype"), [(8, "u1"), (9, "i1"), (11, ">i2"), (12, ">i4"), (13, ">f4"), (14, ">f8")]
)
def test_idx_types(code, dtype):
    array = np.arange(-3 if dtype != "u1" else 0, 3).astype(dtype)
    parsed = parse_idx(idx(array, code))
    np.testing.assert_array_equal(parsed, array)
    assert parsed.dtype.isnative


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "magic number missing"),
        (b"\x1f\x8b\x08\x00rest", "f: magic number 1f8b0800 is not that of an IDX file"),
        (b"\0\0\x07\x01\0\0\0\0", "magic number 00000701"),
        (idx(IMAGES.ravel()), "announces 1 axes, expected 3"),
        (idx(IMAGES)[:10], "truncated within its header, 10 bytes of 16"),
        (idx(IMAGES)[:-1], r"truncated, shape \(2, 3, 4\) takes 40 bytes and there are 39"),
        (idx(IMAGES) + b"x", "too long, .* takes 40 bytes and there are 41"),
    ],
)
def test_idx_errors(data, message):
    with pytest.raises(ValueError, match=message):
        parse_idx(data, "f", ndim=3)


def test_idx_pairs():
    pair = parse_idx_pair(idx(IMAGES), idx(np.array([3, 1], np.uint8)), ("images", "labels"))
    assert pair["inputs"].shape == (2, 3, 4, 1)
    assert pair["labels"].dtype == np.int32
    with pytest.raises(ValueError, match="images has 2 images, labels has 3 labels"):
        parse_idx_pair(idx(IMAGES), idx(np.zeros(3, np.uint8)), ("images", "labels"))


def test_unpack_by_suffix(tmp_path):
    for name, data in (
        ("a.gz", gzip.compress(b"text")),
        ("a.xz", lzma.compress(b"text")),
        ("a.tokens", b"text"),
    ):
        (tmp_path / name).write_bytes(data)
        assert unpack(tmp_path / name) == {"": b"text"}


@pytest.mark.parametrize("suffix", ["gz", "xz", "tar.gz", "zip"])
def test_damaged_files(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    for data in (
        b"",
        b"not that format at all",
        archive(suffix)[:-12] if suffix != "tar.gz" else archive(suffix)[:60],
    ):
        path.write_bytes(data)
        if suffix != "gz" or data:  # an empty file is a valid, empty gzip stream
            with pytest.raises(ValueError, match=f"a.{suffix}"):
                unpack(path, ["folder/x"] if suffix in ("tar.gz", "zip") else [""])


def archive(suffix, members=(("folder/x", b"content" * 99),)):
    if suffix in ("gz", "xz"):
        return (gzip if suffix == "gz" else lzma).compress(b"content" * 99)
    buffer = io.BytesIO()
    if suffix == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            for name, data in members:
                file.writestr(name, data)
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz") as file:
            for name, data in members:
                file.addfile(tarfile.TarInfo(name) if data is None else sized(name, data), io.BytesIO(data))
    return buffer.getvalue()


def sized(name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info


@pytest.mark.parametrize("suffix", ["tar.gz", "zip"])
def test_archives_write_nothing_and_are_read_by_exact_name(tmp_path, suffix):
    outside = str(tmp_path / "absolute")
    members = [
        ("../escape", b"no"),
        (outside, b"no"),
        ("folder/../../escape", b"no"),
        ("folder/x", b"yes"),
        ("x", b"no"),
    ]
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / f"a.{suffix}"
    path.write_bytes(archive(suffix, members))
    assert unpack(path, ["folder/x"]) == {"folder/x": b"yes"}
    assert sorted(os.listdir(tmp_path)) == ["folder"]
    assert os.listdir(folder) == [path.name]
    with pytest.raises(ValueError, match="no member folder/y"):
        unpack(path, ["folder/x", "folder/y"])


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    info = tarfile.TarInfo("x")
    info.type, info.linkname = kind, str(secret)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as file:
        file.addfile(info)
    with pytest.raises(ValueError, match="member x is not a plain file"):
        unpack(tmp_path / "a.tar.gz", ["x"])


def cifar_batch(count=4, seed=0):
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (count, 3072), np.uint8)
    return {
        b"batch_label": b"x",
        b"labels": rng.integers(0, 10, count).tolist(),
        b"data": data,
        b"filenames": [b"a"] * count,
    }


def renamed(data):
    """The pickle with numpy's modules under their other name."""
    if b"numpy._core" in data:
        return data.replace(b"numpy._core", b"numpy.core")
    return data.replace(b"numpy.core", b"numpy._core")


@pytest.mark.parametrize("protocol", [0, 2, 3])
def test_cifar_batches(protocol):
    batch = cifar_batch()
    plain = pickle.dumps(batch, protocol)
    # Protocol 3 names modules by opcode lines without a length, so that replacing text keeps it a pickle.
    for data in (plain, renamed(plain)):
        parsed = parse_cifar_batch(data)
        assert parsed["labels"].tolist() == batch[b"labels"]
        assert parsed["inputs"].shape == (4, 32, 32, 3)
        assert parsed["inputs"][1, 2, 3, 1] == batch[b"data"][1, 1024 + 2 * 32 + 3]


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_hostile_pickles_run_nothing(tmp_path, protocol):
    marker = tmp_path / "marker"
    calls = [
        Hostile(os.system, f"touch {marker}"),
        Hostile(eval, "1"),
        Hostile(getattr, 1, "real"),
        Hostile(open, str(marker), "w"),
    ]
    for call in calls:
        for payload in (call, {b"data": call}, np.array([call], object)):
            with pytest.raises(ValueError, match="is not allowed in a pickle of arrays"):
                load_array_pickle(pickle.dumps(payload, protocol))
    nested = b"cnumpy\nload\n(S'x'\ntR."
    with pytest.raises(ValueError, match="numpy.load is not allowed"):
        load_array_pickle(nested)
    with pytest.raises(ValueError, match="not allowed"):
        load_array_pickle(b"\x80\x04\x8c\x0cnumpy._core.\x8c\x0amultiarray\x93.")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "not a dictionary with data and labels"),
        ({b"data": 1}, "not a dictionary with data and labels"),
        (
            {b"data": np.zeros((2, 10), np.uint8), b"labels": [1, 2]},
            r"uint8 \[N, 3072\], got uint8 \(2, 10\)",
        ),
        ({b"data": np.zeros((2, 3072)), b"labels": [1, 2]}, "got float64"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}, "2 images and 1 labels"),
    ],
)
def test_what_is_no_cifar_batch(content, message):
    with pytest.raises(ValueError, match=message):
        parse_cifar_batch(pickle.dumps(content, 2))
    with pytest.raises(ValueError, match="cannot be read"):
        parse_cifar_batch(pickle.dumps(content, 2)[:-3])
