"""Training, validation and test parts of one data set, and cross-validation, with every class in proportion.

Rows are drawn with the permutation of `jdl.data.permutation`, so that a split is the same on every machine
and under every version of numpy.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jdl.data.batches import Arrays, _num_examples
from jdl.data.permutation import permute

# No training run gets here, so a split shares no permutation with the batches of a run with the same seed.
_EPOCH = 2**32 - 1


def _sizes(parts: Sequence[float], num_examples: int) -> list[int]:
    """Counts as they are, fractions by largest remainder."""
    if not parts or any(part < 0 for part in parts):
        raise ValueError(f"a split takes one or more fractions or counts, none negative; got {tuple(parts)}")
    if all(isinstance(part, int | np.integer) for part in parts):
        if sum(parts) > num_examples:
            raise ValueError(
                f"counts {tuple(parts)} add up to {sum(parts)}, more than the {num_examples} examples"
            )
        return [int(part) for part in parts]
    if sum(parts) > 1 + 1e-6:
        raise ValueError(f"fractions {tuple(parts)} add up to {sum(parts):g}, more than 1")
    exact = [part * num_examples for part in parts]
    sizes = [int(x + 1e-6) for x in exact]
    total = round(sum(exact))
    by_remainder = sorted(range(len(parts)), key=lambda p: sizes[p] - exact[p])
    for p in by_remainder[: total - sum(sizes)]:
        sizes[p] += 1
    return sizes


def _allocation(class_sizes: np.ndarray, part_sizes: Sequence[int]) -> np.ndarray:
    """How many of class c go to part p, [C, P]: within one of the proportional share, rows and columns exact.

    The shares are rounded down, and what is missing from rows and columns is a bipartite graph with given
    degrees, which Ryser's construction builds: serve each class from the parts that lack most.
    """
    # In whole numbers, because a share that floating point puts just below an integer would be rounded down.
    shares = np.multiply.outer(class_sizes.astype(object), np.asarray(part_sizes, object))
    total = int(sum(part_sizes))
    counts = (shares // total).astype(np.int64)
    fractions = (shares % total).astype(np.int64)
    lacking = np.asarray(part_sizes) - counts.sum(0)
    extra = np.zeros(counts.shape, bool)
    for c, size in enumerate(class_sizes):
        by_need = np.lexsort((-fractions[c], -lacking))
        given = by_need[: size - counts[c].sum()]
        counts[c, given] += 1
        lacking[given] -= 1
        extra[c, given] = True
    # Two classes trade where that brings both together nearer to their shares; every sum stays as it is.
    for p, q in itertools.permutations(range(len(part_sizes)), 2):
        gain = fractions[:, q] - fractions[:, p]
        while True:
            to_q, to_p = extra[:, p] & ~extra[:, q], extra[:, q] & ~extra[:, p]
            if not (to_q.any() and to_p.any()):
                break
            one = np.where(to_q, gain, -np.inf).argmax()
            other = np.where(to_p, gain, np.inf).argmin()
            if gain[one] <= gain[other]:
                break
            for row, before, after in ((one, p, q), (other, q, p)):
                counts[row, [before, after]] += (-1, 1)
                extra[row, [before, after]] = (False, True)
    return counts


def _partition(num_examples: int, sizes: Sequence[int], seed: int, labels: Any | None) -> list[np.ndarray]:
    """Row numbers of each part, ascending; the parts cover all rows."""
    shuffled = np.argsort(permute(np.arange(num_examples), num_examples, seed, _EPOCH))
    if labels is None:
        return [np.sort(rows) for rows in np.split(shuffled, np.cumsum(sizes)[:-1])]
    classes, codes = np.unique(np.asarray(labels), return_inverse=True)
    class_sizes = np.bincount(codes)
    used = sum(size > 0 for size in sizes)
    if class_sizes.min() < used:
        smallest = class_sizes.argmin()
        raise ValueError(
            f"class {classes[smallest]} has {class_sizes[smallest]} examples, too few for {used} parts"
        )
    counts = _allocation(class_sizes, sizes)
    parts: list[list[np.ndarray]] = [[] for _ in sizes]
    for c, of_class in enumerate(counts):
        rows = shuffled[codes[shuffled] == c]
        for p, chosen in enumerate(np.split(rows, np.cumsum(of_class)[:-1])):
            parts[p].append(chosen)
    return [np.sort(np.concatenate(rows)) for rows in parts]


def _checked_labels(labels: Any, num_examples: int, name: str) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (num_examples,):
        raise ValueError(f"{name} must have shape ({num_examples},) to stratify by, got {labels.shape}")
    return labels


def split(
    arrays: Arrays, parts: Sequence[float], *, seed: int, stratify: str | None = "labels"
) -> tuple[dict[str, Any], ...]:
    """Parts of a data set without common examples, each class in each part within one of its proportional
    share.

    Args:
        arrays: dictionary of arrays [N, ...].
        parts: fractions that add up to at most 1, or counts (integers) that add up to at most N; what is left
            over is in no part.
        seed: integer in [0, 2**64).
        stratify: the entry, [N] integers or strings, whose proportions to keep; None to draw without regard.

    Returns:
        One dictionary of arrays for each part, examples in the order of the original.

    Raises:
        ValueError: if the parts are more than there is, or a class has fewer examples than there are parts.

    Example:
        >>> labels = np.repeat([0, 1], [30, 10])
        >>> train, test = split({"inputs": np.arange(40), "labels": labels}, (0.8, 0.2), seed=0)
        >>> np.bincount(train["labels"]).tolist(), np.bincount(test["labels"]).tolist()
        ([24, 8], [6, 2])
    """
    num_examples = _num_examples(arrays)
    sizes = _sizes(parts, num_examples)
    labels = None
    if stratify is not None:
        if stratify not in arrays:
            raise ValueError(
                f"no entry {stratify!r} to stratify by among {', '.join(arrays)}; stratify=None needs none"
            )
        labels = _checked_labels(arrays[stratify], num_examples, stratify)
    rows = _partition(num_examples, [*sizes, num_examples - sum(sizes)], seed, labels)[:-1]

    def take(chosen: np.ndarray) -> dict[str, Any]:
        return jax.tree.map(lambda x: np.asarray(x)[chosen], dict(arrays))

    return tuple(take(chosen) for chosen in rows)


def k_fold(
    num_examples: int, k: int, seed: int, labels: Any | None = None
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Row numbers for k-fold cross-validation: every example is tested once.

    Args:
        num_examples: N.
        k: the number of folds, 2 to N.
        seed: integer in [0, 2**64).
        labels: [N] integers or strings, to have each class in each fold within one of its proportional share.

    Returns:
        For each fold, the training rows and the test rows, ascending. Folds differ in size by at most one.

    Raises:
        ValueError: if there are fewer examples, or fewer of a class, than folds.

    Example:
        >>> for train, test in k_fold(5, 2, seed=0):
        ...     print(train, test)
        [0 2] [1 3 4]
        [1 3 4] [0 2]
    """
    if not 2 <= k <= num_examples:
        raise ValueError(f"k must lie in [2, {num_examples}], the number of examples; got {k}")
    if labels is not None:
        labels = _checked_labels(labels, num_examples, "labels")
    sizes = [num_examples // k + (fold < num_examples % k) for fold in range(k)]
    tests = _partition(num_examples, sizes, seed, labels)
    return tuple((np.setdiff1d(np.arange(num_examples), test, assume_unique=True), test) for test in tests)
