"""Tokens on disk, larger than memory: a ``.npy`` file that is written piece by piece and read by the page."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jdl.data.tokenizer import checked_ids

# Room for the header, which is written last, when the length is known; numpy reads any that is as long as it
# says.
_HEADER = 128


def write_tokens(path: str | os.PathLike[str], documents: Iterable[Any], vocab_size: int) -> Path:
    """Writes the tokens of documents, one after another, as they come.

    A file is there whole or not at all: a process that dies leaves at most a temporary one beside it.

    Args:
        path: the file, by custom ``NAME.npy``.
        documents: arrays or lists of ids, such as an iterator of what ``tokenizer.encode`` gives; whatever
            should mark where a document ends is among its ids.
        vocab_size: V; ids are 0 to V - 1. Up to 65,536 they take two bytes each, else four.

    Returns:
        The path.

    Raises:
        ValueError: for an id outside the vocabulary, naming its document, or if there are no tokens.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_tokens(Path(folder) / "tokens.npy", [[1, 2], [], [3]], vocab_size=50257)
        ...     tokens = read_tokens(path)
        ...     tokens.tolist(), tokens.dtype.name
        ([1, 2, 3], 'uint16')
    """
    path = Path(path)
    dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
    if not 1 <= vocab_size <= 2**31:
        raise ValueError(f"vocab_size must lie in [1, 2**31]; got {vocab_size}")
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(draft, "wb") as file:
            file.seek(_HEADER)
            size = 0
            for i, document in enumerate(documents):
                try:
                    ids = checked_ids(document, vocab_size)
                except ValueError as error:
                    raise ValueError(f"document {i}: {error}") from None
                file.write(ids.astype(dtype).tobytes())
                size += len(ids)
            if not size:
                raise ValueError(f"there are no tokens to write into {path}")
            file.seek(0)
            file.write(_header(size, dtype))
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return path


def _header(size: int, dtype: np.dtype[Any]) -> bytes:
    """Version 1.0 of numpy's format, filled up with spaces."""
    text = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': ({size},), }}"
    body = text.ljust(_HEADER - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body.encode("ascii")


def read_tokens(path: str | os.PathLike[str]) -> np.memmap:
    """The tokens of a file, of which only what is looked at is read.

    Args:
        path: what `write_tokens` wrote, or any ``.npy`` file of integers [N].

    Returns:
        Integers [N], for `jdl.data.windows`, `jdl.data.windows_in_order` and `jdl.data.continuing_rows`.

    Raises:
        ValueError: if the file is damaged, or holds something else.
        OSError: if it cannot be read.
    """
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged or holds no tokens: {error}") from None
    if not isinstance(tokens, np.memmap) or tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        found = f"{tokens.dtype} of shape {tokens.shape}" if isinstance(tokens, np.ndarray) else "an archive"
        raise ValueError(f"{path} holds no tokens, integers [N], but {found}")
    return tokens
