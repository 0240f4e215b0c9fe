"""Batch i is a pure function of (seed, i).

A stream of batches has no state: ``batches(i)`` is batch i, whoever asks, in whatever order, in whatever
process. A run that resumes at step i sees the very batches it would have seen.

Position p = i * batch_size + j of an endless stream belongs to epoch p // N, and its example is entry p % N
of that epoch's own permutation of the N examples (`jdl.data.permutation`). So every example comes exactly
once an epoch, nothing is dropped at the end of one, and no batch is shorter than the others; a batch that
straddles two epochs holds the end of one and the start of the next.

Batches come in two flavours behind the same functions:

* *resident*: the arrays live on the device and are the leaves of a pytree. ``batches(i)`` takes a traced i
  and gathers on the device, so that many steps run in one dispatch; passed to a jitted function as an
  argument, the data are no constants of the program.
* *host*: the arrays stay in numpy (an ``np.memmap`` is welcome) and ``batches(i)`` takes a Python integer.

Both give identical batches. ``not jax.tree_util.all_leaves([batches])`` tells a resident one.
"""

from __future__ import annotations

import functools
import hashlib
import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdl.data.permutation import MAX_SIZE, divmod_product, permute

Arrays = Mapping[str, Any]

_MAX_STEP = 2**31


@dataclass(frozen=True)
class _Order:
    """Which rows make batch i, and with what weight: everything about a stream but the data.

    ``seed`` None means one pass in order. ``shard`` (index, count) keeps that contiguous part of each batch.
    """

    num_examples: int
    batch_size: int
    seed: int | None
    shard: tuple[int, int]

    @property
    def length(self) -> int:
        return -(-self.num_examples // self.batch_size)

    def rows(self, i: Any, xp: Any) -> tuple[Any, Any]:
        """Rows of batch ``i`` (uint32 scalar), [batch_size / count], and which of them are no padding."""
        size = np.uint32(self.num_examples)
        if self.seed is None:
            # The last batch, full, may end beyond 2**30 but never beyond 2**31; batches after it are all
            # padding.
            last = xp.minimum(i, np.uint32(self.length))
            positions = last * np.uint32(self.batch_size) + self._columns(xp)
            return positions % size, (positions < size) & (i < np.uint32(self.length))
        positions, epochs = self.places(i, xp)
        return permute(positions, self.num_examples, self.seed, epochs, xp), None

    def places(self, i: Any, xp: Any) -> tuple[Any, Any]:
        """Where in its epoch each row of shuffled batch ``i`` stands, and which epoch, as `rows` uint32."""
        epoch, offset = divmod_product(i, self.batch_size, self.num_examples, xp)
        positions = offset + self._columns(xp)
        beyond = (positions >= np.uint32(self.num_examples)).astype(np.uint32)
        return positions - beyond * np.uint32(self.num_examples), epoch + beyond

    def batch(self, arrays: Arrays, i: Any, xp: Any) -> dict[str, Any]:
        """Batch ``i`` of ``arrays``."""
        rows, valid = self.rows(i, xp)
        batch = jax.tree.map(lambda x: _take(x, rows, xp), dict(arrays))
        return batch if valid is None else _with_weights(batch, valid, xp)

    def _columns(self, xp: Any) -> Any:
        """Which rows of a whole batch are the shard's."""
        index, count = self.shard
        part = self.batch_size // count
        return xp.arange(index * part, (index + 1) * part, dtype=np.uint32)


def _checked_step(i: Any, order: _Order) -> int:
    return _checked_index(i, order.length if order.seed is None else _MAX_STEP)


def _checked_index(i: Any, bound: int) -> int:
    try:
        step = operator.index(i)
    except TypeError:
        raise TypeError(f"host batches are read outside jit, with a Python integer; got {i!r}") from None
    if not 0 <= step < bound:
        raise IndexError(f"there are batches 0 to {bound - 1}; got {step}")
    return step


def _with_weights(batch: dict[str, Any], valid: Any, xp: Any) -> dict[str, Any]:
    """Zero weight where a row is padding, times the weights there are."""
    valid = valid.astype(np.float32)
    given = batch.get("weights")
    if given is not None:
        valid = xp.asarray(given).astype(np.float32) * valid.reshape((-1,) + (1,) * (given.ndim - 1))
    return {**batch, "weights": valid}


def _take(x: Any, rows: Any, xp: Any) -> Any:
    """Rows of an array, all of which there are."""
    if xp is np:
        return np.asarray(x[rows])
    return x.at[rows.astype(jnp.int32)].get(mode="promise_in_bounds")


class _Stream:
    """What resident and host batches of arrays share: their size and how they read in print."""

    order: _Order

    @property
    def batch_size(self) -> int:
        """Examples in a whole batch, over all shards."""
        return self.order.batch_size

    @property
    def num_examples(self) -> int:
        """N, the examples of an epoch."""
        return self.order.num_examples

    @property
    def shard(self) -> tuple[int, int]:
        """Which part of each batch this is, (index, count)."""
        return self.order.shard

    def __len__(self) -> int:
        """Batches in an epoch, ceil(N / batch_size)."""
        return self.order.length

    def __repr__(self) -> str:
        order = self.order
        way = "in order" if order.seed is None else f"shuffled with seed {order.seed}"
        part = "" if order.shard[1] == 1 else f", shard {order.shard[0]} of {order.shard[1]}"
        size = f"{len(self)} batches of {self.batch_size} from {self.num_examples} examples"
        return f"<{type(self).__name__}: {size}, {way}{part}>"


@functools.partial(jax.tree_util.register_dataclass, data_fields=["arrays"], meta_fields=["order"])
@dataclass(frozen=True, eq=False, repr=False)
class ResidentBatches(_Stream):
    """Batches of arrays that live on the device: a pytree, called with a concrete or a traced step."""

    arrays: dict[str, Any]
    order: _Order

    def __call__(self, i: Any) -> dict[str, Any]:
        """Batch ``i``, an int32 scalar in [0, 2**31).

        Raises:
            IndexError: if a concrete ``i`` is out of range. A traced one past the end of one pass in order
                gives padding of weight zero.
        """
        if not isinstance(i, jax.core.Tracer):
            i = _checked_step(i, self.order)
        return _read_resident(self, jnp.asarray(i).astype(jnp.uint32))


@jax.jit
def _read_resident(batches: ResidentBatches, i: jax.Array) -> dict[str, Any]:
    return batches.order.batch(batches.arrays, i, jnp)


@dataclass(frozen=True, eq=False, repr=False)
class HostBatches(_Stream):
    """Batches of arrays that stay in numpy: called with a Python integer, outside jit."""

    arrays: dict[str, Any]
    order: _Order

    def __call__(self, i: Any) -> dict[str, Any]:
        """Batch ``i``.

        Raises:
            IndexError: if ``i`` is negative, or past the end of one pass in order.
            TypeError: if ``i`` is traced.
        """
        step = np.uint32(_checked_step(i, self.order))
        return self.order.batch(self.arrays, step, np)


@dataclass(frozen=True, eq=False, repr=False)
class GrainBatches:
    """Host batches read from a grain ``MapDataset``: ``batches(i)`` is its element i."""

    dataset: Any
    batch_size: int
    weights: bool

    @property
    def num_examples(self) -> int:
        """Examples in the data set, counting a last short batch as whole."""
        return len(self) * self.batch_size

    def __len__(self) -> int:
        """Elements of the data set; after ``repeat()`` without a number that is ``sys.maxsize``."""
        return len(self.dataset)

    def __repr__(self) -> str:
        return f"<GrainBatches: {len(self)} batches of {self.batch_size} from {self.dataset!r}>"

    def __call__(self, i: Any) -> dict[str, Any]:
        """Batch ``i``.

        Raises:
            IndexError: if ``i`` is out of range.
            ValueError: if element ``i`` is no whole batch.
        """
        step = operator.index(i)
        if not 0 <= step < len(self):
            raise IndexError(f"there are batches 0 to {len(self) - 1}; got {step}")
        batch = _grain_element(self.dataset, step)
        rows = _num_examples(batch)
        if self.weights:
            order = np.arange(self.batch_size) % rows
            padded = jax.tree.map(lambda x: np.asarray(x)[order], batch)
            return _with_weights(padded, np.arange(self.batch_size) < rows, np)
        if rows != self.batch_size:
            raise ValueError(
                f"batch {step} has {rows} examples, not {self.batch_size}: "
                "batch with drop_remainder=True, or pass weights=True to have it padded"
            )
        return batch


Batches = ResidentBatches | HostBatches | GrainBatches
"""Called with a step, gives that step's batch; with ``batch_size``, ``num_examples`` and a length."""


def _grain_element(dataset: Any, i: int) -> dict[str, Any]:
    element = dataset[i]
    if not isinstance(element, Mapping):
        raise ValueError(
            f"element {i} of the grain dataset must be a dictionary of batched arrays, got "
            f"{type(element).__name__} (filter leaves None behind; map anything else to a dictionary)"
        )
    return dict(element)


def _named_leaves(arrays: Arrays) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_flatten_with_path(dict(arrays))[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in leaves]


def _num_examples(arrays: Arrays) -> int:
    """N, after the checks that every array has N rows."""
    if not isinstance(arrays, Mapping):
        raise ValueError(
            f"data must be a dictionary of arrays such as {{'inputs': ..., 'labels': ...}}, "
            f"got {type(arrays).__name__}"
        )
    sizes = {name: np.shape(x)[0] if np.ndim(x) else None for name, x in _named_leaves(arrays)}
    if not sizes:
        raise ValueError("data must hold at least one array, got an empty dictionary")
    if None in sizes.values() or len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {'none' if n is None else n}" for name, n in sizes.items())
        raise ValueError(f"arrays must have the same leading length, the number of examples; got {listed}")
    (size,) = set(sizes.values())
    if not size:
        raise ValueError(f"data hold no examples: {', '.join(sizes)} have length 0")
    if size > MAX_SIZE:
        raise ValueError(f"batches are made of at most 2**30 examples, got {size}")
    return int(size)


def _checked_order(arrays: Arrays, batch_size: int, seed: int | None, shard: tuple[int, int]) -> _Order:
    return _Order(*_checked_shape(_num_examples(arrays), batch_size, seed, shard))


def _checked_shape(
    size: int, batch_size: int, seed: int | None, shard: tuple[int, int]
) -> tuple[int, int, int | None, tuple[int, int]]:
    """The fields of an `_Order` of ``size`` examples."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}")
    if seed is not None and batch_size > size:
        raise ValueError(f"batch_size {batch_size} is larger than the data, {size} examples")
    if batch_size > MAX_SIZE:
        raise ValueError(f"batch_size is at most 2**30, got {batch_size}")
    index, count = shard
    if count < 1 or not 0 <= index < count:
        raise ValueError(f"shard must be (index, count) with 0 <= index < count, got {tuple(shard)}")
    if batch_size % count:
        raise ValueError(f"batch_size {batch_size} is not divisible by the {count} shards")
    return size, int(batch_size), seed if seed is None else int(seed), (int(index), int(count))


def _available_memory() -> int:
    """Bytes that the default device has for arrays: its limit, or on CPU the RAM that is free."""
    (device,) = jnp.zeros(()).devices()
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit:
        return int(limit)
    try:
        with open("/proc/meminfo", encoding="ascii") as meminfo:
            return next(int(line.split()[1]) * 1024 for line in meminfo if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        except (AttributeError, ValueError, OSError):
            return 2**32


def _is_resident(arrays: Arrays) -> bool:
    leaves = [leaf for _, leaf in _named_leaves(arrays)]
    if any(isinstance(leaf, jax.Array) for leaf in leaves):
        return True
    if any(leaf.dtype.kind in "OSUMm" for leaf in leaves):
        return False
    return sum(leaf.nbytes for leaf in leaves) <= _available_memory() // 4


def _make(arrays: Arrays, order: _Order, resident: bool | None) -> ResidentBatches | HostBatches:
    # asanyarray keeps an np.memmap one.
    tree = jax.tree.map(lambda x: x if isinstance(x, jax.Array) else np.asanyarray(x), dict(arrays))
    if _is_resident(tree) if resident is None else resident:
        return ResidentBatches(jax.tree.map(jnp.asarray, tree), order)
    return HostBatches(jax.tree.map(np.asanyarray, tree), order)


def shuffled(
    arrays: Arrays,
    batch_size: int,
    seed: int = 0,
    *,
    shard: tuple[int, int] = (0, 1),
    resident: bool | None = None,
) -> ResidentBatches | HostBatches:
    """An endless stream of shuffled batches, batch i a pure function of (seed, i).

    Args:
        arrays: dictionary of arrays, each [N, ...], N up to 2**30; values may be pytrees of such arrays.
        batch_size: B, 1 to N.
        seed: integer in [0, 2**64).
        shard: (index, count): rows [index * B / count, (index + 1) * B / count) of every batch, so that the
            shards' rows one after another are the whole batch. For one process of several,
            ``(jax.process_index(), jax.process_count())``.
        resident: whether the arrays live on the device; None puts them there if they fit in a quarter of the
            default device's memory (on CPU, of the free RAM) or are `jax.Array` already.

    Returns:
        A function of the step i in [0, 2**31) to the batch, a dictionary of arrays [B / count, ...], with
        attributes ``batch_size``, ``num_examples`` and a length, the batches of an epoch.

    Raises:
        ValueError: if the arrays, the batch size, the seed or the shard make no stream; the message says why.

    Example:
        >>> batches = shuffled({"inputs": np.arange(10)}, batch_size=4, seed=1)
        >>> epochs = np.concatenate([batches(i)["inputs"] for i in range(5)])
        >>> sorted(epochs[:10].tolist()) == sorted(epochs[10:].tolist()) == list(range(10))
        True
        >>> batches
        <ResidentBatches: 3 batches of 4 from 10 examples, shuffled with seed 1>
    """
    order = _checked_order(arrays, batch_size, seed, shard)
    permute(np.zeros(1, np.uint32), order.num_examples, seed)  # raises for a seed out of bounds
    return _make(arrays, order, resident)


def in_order(
    arrays: Arrays, batch_size: int, *, shard: tuple[int, int] = (0, 1), resident: bool | None = None
) -> ResidentBatches | HostBatches:
    """One pass in order, in equal batches: the last is filled up with the first rows at weight zero.

    Every batch has ``weights`` [B / count], float32, one for an example and zero for padding, multiplied into
    the ``weights`` of the arrays if they have any. A sum over the pass of what is weighted is that over the
    data.

    Args:
        arrays: as in `shuffled`.
        batch_size: B, at least 1; larger than N gives one padded batch.
        shard: as in `shuffled`.
        resident: as in `shuffled`.

    Returns:
        A function of i in [0, ceil(N / B)) to the batch, as in `shuffled`.

    Raises:
        ValueError: if the arrays, the batch size or the shard make no stream.

    Example:
        >>> batches = in_order({"inputs": np.arange(5)}, batch_size=3)
        >>> len(batches), batches(1)["inputs"].tolist(), batches(1)["weights"].tolist()
        (2, [3, 4, 0], [1.0, 1.0, 0.0])
    """
    return _make(arrays, _checked_order(arrays, batch_size, None, shard), resident)


def from_grain(dataset: Any, *, weights: bool = False) -> GrainBatches:
    """Host batches of a grain ``MapDataset`` that yields batches, for data that are larger than memory.

    A ``MapDataset`` is random-access and its shuffle a function of its seed and the index, so batch i stays a
    pure function of (seed, i). For an endless stream end it in ``.shuffle(seed=...).repeat().batch(B)``, in
    this order: repeated before they are batched, the examples leave no short batch.

    Args:
        dataset: grain ``MapDataset`` of dictionaries of arrays [B, ...].
        weights: pad a short last batch with its first rows and add float32 ``weights``, as `in_order` does.

    Returns:
        A function of i in [0, len(dataset)) to ``dataset[i]``.

    Raises:
        ValueError: if the data set is empty, is not random-access or does not yield batches.

    Example:
        >>> import grain
        >>> numbers = grain.MapDataset.source(np.arange(10)).map(lambda x: {"inputs": x})
        >>> batches = from_grain(numbers.shuffle(seed=0).repeat().batch(4))
        >>> sorted(int(x) for i in range(5) for x in batches(i)["inputs"]) == sorted([*range(10)] * 2)
        True
    """
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise ValueError(
            f"batches need a random-access grain MapDataset, got {type(dataset).__name__}; "
            "an IterDataset's batches depend on what was read before"
        )
    if not len(dataset):
        raise ValueError("the grain dataset is empty")
    return GrainBatches(dataset, _num_examples(_grain_element(dataset, 0)), weights)


def fingerprint(arrays: Any) -> str:
    """What identifies the content of arrays: sha256 over names, shapes, dtypes and bytes.

    Arrays are taken in the order of their names (dictionary keys sorted, levels joined by dots); bytes are
    little-endian and in C order, so that the machine and the memory layout do not matter.

    Args:
        arrays: dictionary (or any pytree) of arrays.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> fingerprint({"a": np.arange(3)}) == fingerprint({"a": np.arange(6)[:3]})
        True
        >>> fingerprint({"a": np.arange(3)}) == fingerprint({"a": np.arange(3, dtype=np.int8)})
        False
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(arrays)[0]:
        array = np.asanyarray(leaf)
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        # A block of rows at a time, so that a memmap larger than memory has a fingerprint too.
        rows = np.atleast_1d(array)
        step = max(1, 2**26 // max(1, rows[:1].nbytes))
        for start in range(0, len(rows), step):
            block = np.ascontiguousarray(rows[start : start + step])
            if block.dtype.kind in "iufc":
                block = block.astype(block.dtype.newbyteorder("<"), copy=False)
            digest.update(block.tobytes())
    return digest.hexdigest()
