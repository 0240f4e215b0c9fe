"""Batches of sequences of similar length, padded to one of a few lengths, so that few programs are compiled.

Batch i is a pure function of (seed, i), and every example comes exactly once an epoch. An example belongs to
the bucket of the smallest length that it fits into, and each bucket shuffles its own with the permutation of
`jdl.data.permutation`. What is left over when a bucket has filled its batches goes into the next longer one,
so that only one batch of an epoch is not full: its rest is padding of weight zero, and of "lengths" zero
where the batch has such, so that it counts in nothing that a model sums over positions either.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jdl.data.batches import _checked_index, _with_weights
from jdl.data.permutation import permute

Make = Callable[[np.ndarray, int], Mapping[str, Any]]

# Epochs of batches, which share no permutation with those of examples.
_OF_BATCHES = 2**31


@dataclass(frozen=True, eq=False)
class _Bucket:
    """Examples padded to ``length``.

    ``rows`` are its own; before them come ``carried`` examples from the bucket before. Of all, ``batches``
    batches are made.
    """

    length: int
    rows: np.ndarray
    carried: int
    batch_size: int
    batches: int

    @property
    def size(self) -> int:
        return self.carried + len(self.rows)


@dataclass(frozen=True, eq=False, repr=False)
class BucketedBatches:
    """Host batches of sequences by length: called with a Python integer, outside jit."""

    make: Make
    buckets: tuple[_Bucket, ...]
    seed: int | None
    shard: tuple[int, int]

    @property
    def num_examples(self) -> int:
        """N, the examples of an epoch."""
        return sum(len(bucket.rows) for bucket in self.buckets)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths that batches are padded to."""
        return tuple(bucket.length for bucket in self.buckets)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return sum(bucket.batches for bucket in self.buckets)

    def __repr__(self) -> str:
        way = "in order" if self.seed is None else f"shuffled with seed {self.seed}"
        part = "" if self.shard[1] == 1 else f", shard {self.shard[0]} of {self.shard[1]}"
        sizes = ", ".join(
            f"{bucket.batches} of {bucket.batch_size} x {bucket.length}" for bucket in self.buckets
        )
        return f"<BucketedBatches: {sizes} from {self.num_examples} examples, {way}{part}>"

    def __call__(self, i: Any) -> dict[str, Any]:
        """Batch ``i``, with ``weights`` that are zero where a row is padding.

        Raises:
            IndexError: if ``i`` is negative, or past the end of one pass in order.
            TypeError: if ``i`` is traced.
        """
        step = _checked_index(i, len(self) if self.seed is None else 2**31)
        epoch, place = divmod(step, len(self))
        if self.seed is not None:
            place = int(permute(np.array([place]), len(self), self.seed, _OF_BATCHES + epoch)[0])
        k = 0
        while place >= self.buckets[k].batches:
            place -= self.buckets[k].batches
            k += 1
        bucket, (index, count) = self.buckets[k], self.shard
        part = bucket.batch_size // count
        begin = place * bucket.batch_size + index * part
        positions = np.arange(begin, begin + part)
        rows = self._rows(k, positions % bucket.size, epoch)
        batch, real = dict(self.make(rows, bucket.length)), positions < bucket.size
        return _with_weights(_without(batch, ~real) if not real.all() else batch, real, np)

    def _rows(self, k: int, positions: np.ndarray, epoch: int) -> np.ndarray:
        """The examples at ``positions`` of bucket ``k`` in an epoch."""
        bucket = self.buckets[k]
        own = positions - bucket.carried
        rows = np.empty_like(positions)
        is_own = own >= 0
        if is_own.any():
            places = own[is_own]
            if self.seed is not None:
                places = permute(places, len(bucket.rows), self.seed, epoch)
            rows[is_own] = bucket.rows[places]
        if not is_own.all():
            rows[~is_own] = self._rows(k - 1, self.buckets[k - 1].size + own[~is_own], epoch)
        return rows


def _without(batch: Any, padding: np.ndarray) -> dict[str, Any]:
    """The batch, whose sequences have no real position in rows of padding."""

    def of(path: Any, x: Any) -> Any:
        is_lengths = isinstance(path[-1], jax.tree_util.DictKey) and path[-1].key == "lengths"
        return np.where(padding, 0, x).astype(x.dtype) if is_lengths else x

    return jax.tree_util.tree_map_with_path(of, batch)


def bucketed(
    make: Make,
    lengths: Sequence[int] | np.ndarray,
    batch_size: int | Sequence[int],
    boundaries: Sequence[int],
    seed: int | None = 0,
    *,
    shard: tuple[int, int] = (0, 1),
) -> BucketedBatches:
    """Batches of sequences of similar length.

    Args:
        make: ``rows, length -> batch``, a pure function: the batch of the examples ``rows`` (integers [n]),
            padded to ``length``. `padded` helps.
        lengths: of each of the N examples; the longer of the two where an example is a pair.
        batch_size: B, or one for each of ``boundaries`` (``[4096 // L for L in boundaries]`` for a number of
            tokens).
        boundaries: lengths to pad to, ascending; `bucket_boundaries` finds good ones.
        seed: integer in [0, 2**64); None for one pass, short examples first.
        shard: (index, count), as in `jdl.data.shuffled`.

    Returns:
        Batches whose entries are those of ``make`` and ``weights`` [B] (times those of ``make``), zero where
        a row is padding, as are its ``lengths``.

    Raises:
        ValueError: if there are no examples, one is longer than the last boundary, or a number is out of
            range.

    Example:
        >>> texts = [[1], [1, 2, 3], [1, 2], [4, 5, 6, 7]]
        >>> def make(rows, length):
        ...     tokens, lengths = padded([texts[row] for row in rows], length)
        ...     return {"inputs": {"tokens": tokens, "lengths": lengths}}
        >>> batches = bucketed(make, [len(text) for text in texts], 2, [2, 4], seed=None)
        >>> [batches(i)["inputs"]["tokens"].tolist() for i in range(len(batches))]
        [[[1, 0], [1, 2]], [[1, 2, 3, 0], [4, 5, 6, 7]]]
    """
    sizes = np.asarray(lengths)
    if sizes.ndim != 1 or not sizes.size or not np.issubdtype(sizes.dtype, np.integer):
        raise ValueError(
            f"lengths must be integers [N], one an example; got {sizes.dtype} of shape {sizes.shape}"
        )
    bounds = [int(bound) for bound in boundaries]
    if not bounds or bounds[0] < 1 or any(a >= b for a, b in itertools.pairwise(bounds)):
        raise ValueError(f"boundaries must be ascending lengths of at least 1; got {bounds}")
    if sizes.max() > bounds[-1] or sizes.min() < 0:
        at = int((sizes > bounds[-1]).argmax() if sizes.max() > bounds[-1] else sizes.argmin())
        raise ValueError(f"example {at} has length {sizes[at]}; boundaries go up to {bounds[-1]}")
    per_bucket = [batch_size] * len(bounds) if isinstance(batch_size, int | np.integer) else [*batch_size]
    if len(per_bucket) != len(bounds) or min(per_bucket) < 1:
        raise ValueError(f"batch_size must be positive, one or {len(bounds)} numbers; got {batch_size}")
    index, count = shard
    if count < 1 or not 0 <= index < count:
        raise ValueError(f"shard must be (index, count) with 0 <= index < count, got {tuple(shard)}")
    if any(size % count for size in per_bucket):
        raise ValueError(f"batch sizes {per_bucket} are not all divisible by the {count} shards")
    if seed is not None:
        permute(np.arange(1), 1, seed)
    of_bucket = np.searchsorted(bounds, sizes)
    used = np.unique(of_bucket)
    buckets, carried = [], 0
    for k in used:
        rows, size = np.flatnonzero(of_bucket == k), int(per_bucket[k])
        whole, rest = divmod(carried + len(rows), size)
        is_last = k == used[-1]
        buckets.append(_Bucket(bounds[k], rows, carried, size, whole + int(is_last and rest > 0)))
        carried = rest
    return BucketedBatches(make, tuple(buckets), seed, (int(index), int(count)))


def bucket_boundaries(lengths: Sequence[int] | np.ndarray, count: int, multiple: int = 8) -> tuple[int, ...]:
    """The lengths to pad to that waste the fewest positions, by dynamic programming.

    Args:
        lengths: of each example.
        count: how many boundaries to have at most.
        multiple: every boundary is one of it.

    Returns:
        Ascending multiples of ``multiple``; the last holds the longest example.

    Raises:
        ValueError: if there are no lengths, or a number is below 1.

    Example:
        >>> bucket_boundaries([3, 5, 5, 7, 30, 31], count=2, multiple=8)
        (8, 32)
    """
    sizes = np.asarray(lengths)
    if not sizes.size or count < 1 or multiple < 1:
        raise ValueError(
            f"boundaries need some lengths, a count and a multiple of at least 1; got {sizes.size} lengths, "
            f"count {count}, multiple {multiple}"
        )
    steps = np.maximum(1, -(-sizes // multiple))
    candidates, counts = np.unique(steps, return_counts=True)
    total = np.concatenate([[0], np.cumsum(counts)])
    n = len(candidates)
    # cost[j]: positions of the examples up to candidate j, in as many buckets as there have been rounds.
    cost = candidates * total[1:]
    before = np.zeros((min(count, n), n), np.int64)
    for k in range(1, min(count, n)):
        # splits[i, j]: those up to i as before, the others padded to candidate j.
        splits = cost[:, None] + candidates[None, :] * (total[1:][None, :] - total[1:][:, None])
        splits = np.where(np.tri(n, k=-1).T > 0, splits, cost[None, :])
        before[k] = splits.argmin(0)
        cost = splits.min(0)
    chosen, j = [n - 1], n - 1
    for k in range(min(count, n) - 1, 0, -1):
        if before[k, j] < j:
            j = int(before[k, j])
            chosen.append(j)
    return tuple(int(candidates[j]) * multiple for j in reversed(chosen))


def padded(
    sequences: Sequence[Any], length: int, value: int = 0, dtype: Any = np.int32
) -> tuple[np.ndarray, np.ndarray]:
    """Sequences as one array, and how long they are.

    Args:
        sequences: n arrays or lists [T_i, ...], alike but for T_i.
        length: L, at least every T_i.
        value: what fills up.
        dtype: of the array.

    Returns:
        ``dtype`` [n, L, ...] and int32 [n].

    Raises:
        ValueError: if there are none, or one is too long.

    Example:
        >>> padded([[5], [6, 7]], length=3)[0].tolist()
        [[5, 0, 0], [6, 7, 0]]
    """
    arrays = [np.asarray(sequence) for sequence in sequences]
    if not arrays:
        raise ValueError("there are no sequences to pad")
    shape = next((array.shape[1:] for array in arrays if array.size), arrays[0].shape[1:])
    out = np.full((len(arrays), length, *shape), value, dtype)
    for i, array in enumerate(arrays):
        if len(array) > length:
            raise ValueError(f"sequence {i} has length {len(array)}, more than {length}")
        out[i, : len(array)] = array
    return out, np.array([len(array) for array in arrays], np.int32)
