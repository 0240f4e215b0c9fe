"""Batches of a long stream of tokens: windows of it for training and evaluation, and rows that continue.

Batch i is a pure function of (seed, i), as in `jdl.data.batches`, resident or on the host. Axes: B batch,
T tokens a window, N tokens of the stream. A window of T + 1 tokens gives ``inputs`` [B, T], all but its last,
and ``labels`` [B, T], all but its first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jdl.data.batches import (
    HostBatches,
    ResidentBatches,
    _checked_shape,
    _is_resident,
    _make,
    _Order,
)
from jdl.data.permutation import MAX_SIZE, permute

# No training run gets here, so phases share no permutation with windows.
_LAST_EPOCH = 2**32 - 2


@dataclass(frozen=True)
class _Stream(_Order):
    """What the orders below share. ``num_examples`` counts windows."""

    num_tokens: int
    window: int
    vocab_size: int | None

    def _read(self, tokens: Any, start: Any, xp: Any) -> tuple[Any, Any, Any]:
        """``inputs``, ``labels`` and the index of each label, of the windows that begin at ``start`` [B]."""
        wide = np.int64 if xp is np else np.int32
        at = start.astype(wide)[:, None] + xp.arange(self.window + 1, dtype=wide)[None, :]
        inside = xp.minimum(at, wide(self.num_tokens - 1))
        if xp is np:
            found = np.asarray(tokens[inside])
            _check_ids(found, self.vocab_size)
        else:
            found = tokens.at[inside].get(mode="promise_in_bounds")
        found = found.astype(np.int32)
        return found[:, :-1], found[:, 1:], at[:, 1:]

    def _phase(self, epochs: Any, count: int, xp: Any) -> Any:
        """What the windows of an epoch are shifted by, one of ``count``: each once in that many epochs."""
        assert self.seed is not None
        size = np.uint32(count)
        return permute(epochs % size, count, self.seed, np.uint32(_LAST_EPOCH) - epochs // size, xp)


@dataclass(frozen=True)
class _RandomWindows(_Stream):
    stride: int
    phases: int

    def batch(self, arrays: Any, i: Any, xp: Any) -> dict[str, Any]:
        assert self.seed is not None
        positions, epochs = self.places(i, xp)
        windows = permute(positions, self.num_examples, self.seed, epochs, xp)
        wide = np.int64 if xp is np else np.int32
        start = windows.astype(wide) * wide(self.stride) + self._phase(epochs, self.phases, xp).astype(wide)
        inputs, labels, _ = self._read(arrays["tokens"], start, xp)
        return {"inputs": inputs, "labels": labels}


@dataclass(frozen=True)
class _WindowsInOrder(_Stream):
    stride: int

    def batch(self, arrays: Any, i: Any, xp: Any) -> dict[str, Any]:
        windows, valid = self.rows(i, xp)
        wide = np.int64 if xp is np else np.int32
        inputs, labels, at = self._read(arrays["tokens"], windows.astype(wide) * wide(self.stride), xp)
        # Of a window that overlaps the one before, only the labels that are new to it count.
        new = xp.arange(self.window)[None, :] >= self.window - self.stride
        counts = (at < self.num_tokens) & valid[:, None] & (new | (windows == 0)[:, None])
        return {"inputs": inputs, "labels": labels, "weights": counts.astype(np.float32)}


@dataclass(frozen=True)
class _Rows(_Stream):
    """Row b reads ``part`` labels, those after token b * part, window after window."""

    part: int
    phases: int

    def batch(self, arrays: Any, i: Any, xp: Any) -> dict[str, Any]:
        wide = np.int64 if xp is np else np.int32
        steps = np.uint32(self.length)
        begin = self._columns(xp).astype(wide) * wide(self.part)
        offset = (i % steps).astype(wide) * wide(self.window)
        if self.seed is not None:
            phase = self._phase(xp.asarray(i // steps)[None], self.phases, xp)
            inputs, labels, _ = self._read(arrays["tokens"], begin + offset + phase.astype(wide), xp)
            return {"inputs": inputs, "labels": labels}
        inputs, labels, at = self._read(arrays["tokens"], begin + offset, xp)
        inside = (at <= begin[:, None] + wide(self.part)) & (at < self.num_tokens) & (i < steps)
        return {"inputs": inputs, "labels": labels, "weights": inside.astype(np.float32)}


def windows(
    tokens: Any,
    length: int,
    batch_size: int,
    seed: int = 0,
    *,
    anywhere: bool = False,
    vocab_size: int | None = None,
    shard: tuple[int, int] = (0, 1),
    resident: bool | None = None,
) -> ResidentBatches | HostBatches:
    """An endless stream of random windows of a text.

    Each epoch cuts the text, from a random phase on, into windows that meet at their ends, and visits them
    in random order: every token is predicted once an epoch (but for fewer than 2 T at the two ends), in ever
    other contexts. Phases do not repeat within T epochs.

    Args:
        tokens: integers [N]: an array, or an ``np.memmap`` (`read_tokens`) larger than memory.
        length: T, tokens of a window.
        batch_size: B, 1 to the number of windows.
        seed: integer in [0, 2**64).
        anywhere: whether windows may overlap.
        vocab_size: V; ids outside 0..V - 1 raise. On the device they would be read as others, in silence.
        shard: (index, count), as in `jdl.data.shuffled`.
        resident: whether the tokens live on the device; None puts them there if they fit in a quarter of the
            memory that is free there.

    Returns:
        Batches: ``batches(i)`` is {"inputs": int32 [B, T], "labels": int32 [B, T]}, and ``len(batches)`` how
        many of them make an epoch.

    Raises:
        ValueError: if the text is too short, the tokens are no ids, or a number is out of range.

    Example:
        >>> batches = windows(np.arange(100, dtype=np.uint16), length=8, batch_size=4, seed=0)
        >>> batch = batches(0)
        >>> batch["inputs"].shape, bool((batch["labels"] == batch["inputs"] + 1).all()), len(batches)
        ((4, 8), True, 3)
    """
    size = _checked_tokens(tokens, length, vocab_size)
    whole = (size - 1) // length
    if not whole:
        raise ValueError(
            f"a window of {length} tokens and the one to predict do not fit into a stream of {size} tokens"
        )
    count = _few(size - length, length) if anywhere else max(1, whole - 1)
    stride, phases = (1, 1) if anywhere else (length, min(length, size - count * length))
    if batch_size > count:
        raise ValueError(
            f"batch_size {batch_size} is more than the windows of {length} tokens that a stream of {size} "
            f"tokens has, {count}"
        )
    shape = _checked_shape(_few(count, length), batch_size, seed, shard)
    return _stream(tokens, _RandomWindows(*shape, size, length, vocab_size, stride, phases), resident)


def windows_in_order(
    tokens: Any,
    length: int,
    batch_size: int,
    *,
    stride: int | None = None,
    vocab_size: int | None = None,
    shard: tuple[int, int] = (0, 1),
    resident: bool | None = None,
) -> ResidentBatches | HostBatches:
    """One pass over a text in windows, for evaluation: every token but the first is predicted exactly once.

    Args:
        tokens: integers [N], N >= 2.
        length: T, tokens of a window; where the text is shorter, the rest is padding.
        batch_size: B.
        stride: how far a window begins after the one before, 1 to T: with less than T, each token but those
            of the first window sees at least T - stride others before it, at T / stride times the cost.
            T when None.
        vocab_size: as in `windows`.
        shard: as in `windows`.
        resident: as in `windows`.

    Returns:
        Batches of {"inputs": int32 [B, T], "labels": int32 [B, T], "weights": float32 [B, T]}; the weights of
        a pass add up to N - 1.

    Raises:
        ValueError: as `windows`.

    Example:
        >>> batches = windows_in_order(np.arange(11), length=4, batch_size=2)
        >>> float(sum(batches(i)["weights"].sum() for i in range(len(batches))))
        10.0
    """
    size = _checked_tokens(tokens, length, vocab_size)
    stride = length if stride is None else stride
    if not 1 <= stride <= length:
        raise ValueError(f"stride must lie in [1, {length}], the length of a window; got {stride}")
    count = 1 + max(0, -(-(size - 1 - length) // stride))
    shape = _checked_shape(_few(count, length), batch_size, None, shard)
    return _stream(tokens, _WindowsInOrder(*shape, size, length, vocab_size, stride), resident)


def continuing_rows(
    tokens: Any,
    length: int,
    batch_size: int,
    seed: int | None = 0,
    *,
    vocab_size: int | None = None,
    shard: tuple[int, int] = (0, 1),
    resident: bool | None = None,
) -> ResidentBatches | HostBatches:
    """A text as rows that continue from batch to batch, for truncated backpropagation through time.

    The text is cut into B parts; row b of each batch goes on where row b of the one before ended, so a
    recurrent carry stays with its text. Where a pass over the parts ends the next one begins at their start,
    shifted by a random phase, so that the cuts fall elsewhere.

    Args:
        tokens: integers [N].
        length: T, tokens of a row in one batch.
        batch_size: B.
        seed: integer in [0, 2**64); None for one pass without a phase in which every token but the first is
            predicted exactly once, with weights, for evaluation.
        vocab_size: as in `windows`.
        shard: as in `windows`.
        resident: as in `windows`.

    Returns:
        Batches of {"inputs": int32 [B, T], "labels": int32 [B, T]}, and without a seed "weights" float32
        [B, T]; ``len(batches)`` of them are a pass.

    Raises:
        ValueError: as `windows`.

    Example:
        >>> batches = continuing_rows(np.arange(50), length=3, batch_size=2, seed=None)
        >>> [batches(i)["inputs"][0].tolist() for i in range(3)]
        [[0, 1, 2], [3, 4, 5], [6, 7, 8]]

    Reference:
        Merity, Keskar and Socher, "Regularizing and optimizing LSTM language models", 2018, section 5, where
        each batch draws a length of its own instead of each pass a phase.
    """
    size = _checked_tokens(tokens, length, vocab_size)
    if batch_size < 1 or batch_size > size - 1:
        raise ValueError(f"batch_size must lie in [1, {size - 1}] for a stream of {size} tokens; "
                         f"got {batch_size}")  # fmt: skip
    if seed is None:
        part, phases = -(-(size - 1) // batch_size), 1
        steps = -(-part // length)
    else:
        part = (size - 1) // batch_size
        steps = max(1, part // length - 1)
        phases = min(length, part - steps * length + 1)
        if part < length:
            raise ValueError(
                f"a stream of {size} tokens in {batch_size} rows has {part} tokens to predict a row, fewer "
                f"than the length {length}"
            )
    shape = _checked_shape(_few(steps * batch_size, length), batch_size, seed, shard)
    return _stream(tokens, _Rows(*shape, size, length, vocab_size, part, phases), resident)


def _few(count: int, length: int) -> int:
    if count > MAX_SIZE:
        raise ValueError(f"a stream has at most 2**30 windows; of length {length} there are {count}")
    return count


def _checked_tokens(tokens: Any, length: int, vocab_size: int | None) -> int:
    """N, after the checks that need not read the tokens."""
    if np.ndim(tokens) != 1 or not hasattr(tokens, "dtype"):
        raise ValueError(f"tokens must be one array of ids [N]; got {type(tokens).__name__} of shape "
                         f"{np.shape(tokens)}")  # fmt: skip
    if not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"tokens must be integers; got {tokens.dtype}")
    if length < 1:
        raise ValueError(f"length must be at least 1; got {length}")
    if vocab_size is not None and vocab_size < 1:
        raise ValueError(f"vocab_size must be at least 1; got {vocab_size}")
    if len(tokens) < 2:
        raise ValueError(f"a stream needs at least 2 tokens, one to predict the other; got {len(tokens)}")
    return len(tokens)


def _check_ids(ids: np.ndarray, vocab_size: int | None) -> None:
    fits = ids.dtype.itemsize < 4 or ids.dtype == np.int32
    if not ids.size or (vocab_size is None and fits):
        return
    # Batches are int32: without a vocabulary, what does not fit them would come out as another token.
    least, most = (0, vocab_size - 1) if vocab_size is not None else (-(2**31), 2**31 - 1)
    low, high = int(ids.min()), int(ids.max())
    if low < least or high > most:
        bounds = "the ids of the vocabulary" if vocab_size is not None else "which int32 holds"
        raise ValueError(f"token {low if low < least else high} lies outside {least}..{most}, {bounds}")


def _stream(tokens: Any, order: _Stream, resident: bool | None) -> ResidentBatches | HostBatches:
    arrays = {"tokens": tokens}
    if resident is None:
        resident = _is_resident(arrays) and order.num_tokens <= MAX_SIZE
    if resident:
        if order.num_tokens > MAX_SIZE:
            raise ValueError(f"at most 2**30 tokens can live on a device, got {order.num_tokens}")
        if order.vocab_size is not None or isinstance(tokens, np.ndarray):
            _check_ids(np.asarray(jax.device_get(tokens)), order.vocab_size)
    return _make(arrays, order, resident)
