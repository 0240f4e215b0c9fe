"""Tokens on disk: written as they come, whole or not at all, and read without reading all."""

import os

import numpy as np
import psutil
import pytest

from jdl.data import fingerprint, read_tokens, windows, windows_in_order, write_tokens
from jdl.data.token_file import _HEADER, _header


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_what_is_written_is_read(tmp_path, vocab_size, dtype):
    documents = [np.array([0, 1, vocab_size - 1]), [], [7] * 5000]
    path = write_tokens(tmp_path / "x.npy", iter(documents), vocab_size)
    tokens = read_tokens(path)
    assert (tokens.dtype, isinstance(tokens, np.memmap)) == (dtype, True)
    expected = [0, 1, vocab_size - 1, *[7] * 5000]
    assert tokens.tolist() == np.load(path).tolist() == expected
    assert os.listdir(tmp_path) == ["x.npy"]
    assert path.stat().st_size == _HEADER + len(expected) * np.dtype(dtype).itemsize
    write_tokens(path, [[3]], vocab_size)
    assert read_tokens(path).tolist() == [3]


def test_batches_of_a_file_are_those_of_the_array(tmp_path):
    ids = np.random.default_rng(0).integers(0, 300, 1000)
    path = write_tokens(tmp_path / "x.npy", np.split(ids, 10), 300)
    for make in (windows, windows_in_order):
        from_file = make(read_tokens(path), 16, 4, vocab_size=300, resident=False)
        from_array = make(ids, 16, 4, vocab_size=300, resident=True)
        np.testing.assert_array_equal(from_file(2)["inputs"], from_array(2)["inputs"])
    assert fingerprint(read_tokens(path)) == fingerprint(ids.astype(np.uint16))


def test_a_file_larger_than_memory_is_read_by_the_window(tmp_path):
    size = (
        2**33 + 5
    )  # 16 GiB, and more than 32 bits count; a sparse file, in which nothing is written but the end
    path = tmp_path / "x.npy"
    with open(path, "wb") as file:
        file.write(_header(size, np.dtype("<u2")))
        file.seek(_HEADER + 2 * (size - 4))
        file.write(np.arange(1, 5, dtype="<u2").tobytes())
    process = psutil.Process()
    before = process.memory_info().rss
    tokens = read_tokens(path)
    batches = windows(tokens, 1024, 8, seed=0, vocab_size=50_257)
    assert "Host" in repr(batches)
    for i in range(5):
        assert batches(i)["inputs"].shape == (8, 1024)
    end = windows_in_order(tokens, 1024, 1)
    assert len(end) == -(-(size - 1) // 1024)
    last = end(len(end) - 1)
    assert last["labels"][last["weights"] > 0].tolist()[-4:] == [1, 2, 3, 4]
    assert process.memory_info().rss - before < 2**26


def test_nothing_is_left_of_a_file_that_failed(tmp_path):
    def dies():
        yield [1, 2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tokens(tmp_path / "x.npy", dies(), 10)
    for documents, vocab_size, message in [
        ([[1], [2, 10]], 10, "document 1: id 10, at position 1, lies outside 0..9"),
        ([[1.5]], 10, "document 0: ids must be integers"),
        ([], 10, "no tokens to write"),
        ([[]], 10, "no tokens to write"),
        ([[1]], 0, "vocab_size must lie in"),
        ([[1]], 2**31 + 1, "vocab_size must lie in"),
    ]:
        with pytest.raises(ValueError, match=message):
            write_tokens(tmp_path / "x.npy", documents, vocab_size)
    assert os.listdir(tmp_path) == []


def test_damaged_files(tmp_path):
    path = write_tokens(tmp_path / "x.npy", [range(100)], 100)
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:50], b"", b"text", whole.replace(b"NUMPY", b"NUMPI", 1)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="x.npy is damaged or holds no tokens"):
            read_tokens(path)
    for array in (np.zeros((2, 3), int), np.zeros(3)):
        np.save(path, array)
        with pytest.raises(ValueError, match="holds no tokens, integers"):
            read_tokens(path)
    np.savez(tmp_path / "y.npz", np.zeros(3, int))
    with pytest.raises(ValueError, match="but an archive"):
        read_tokens(tmp_path / "y.npz")
    with pytest.raises(FileNotFoundError):
        read_tokens(tmp_path / "z.npy")
