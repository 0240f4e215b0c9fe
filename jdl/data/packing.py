"""Documents of any length in rows of one length, none of which is predicted from another.

Axes: N documents, M rows, T tokens a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jdl.data.tokenizer import checked_ids


def pack(
    documents: Sequence[Any],
    length: int,
    *,
    weights: Sequence[Any] | None = None,
    vocab_size: int | None = None,
) -> dict[str, Any]:
    """Packs documents into rows, for `jdl.data.shuffled` and `jdl.data.in_order`.

    A document of n tokens gives n - 1 of the T inputs of a row, and as many labels, the tokens after them:
    its last token is only a label. One of more than T + 1 tokens is cut; each part but the first begins with
    the last token of the part before, so that every token but the first is predicted once. Parts go to the
    fullest row that has room, the longest first (best fit decreasing). Begin and end of a document are marked
    only if its tokens do.

    Args:
        documents: N arrays or lists of ids, each of at least 2.
        length: T.
        weights: for each document an array of its length, what predicting each token counts (that of the
            first is never used): 0 for a question, 1 for its answer. All 1 when None.
        vocab_size: V; ids outside 0..V - 1 raise.

    Returns:
        ``inputs``, themselves ``tokens``, ``segments`` (1, 2, ... in each row; 0 is padding) and
        ``positions`` (from 0 in each part), int32 [M, T]; ``labels`` int32 [M, T]; ``weights`` float32
        [M, T], 0 where there is padding. 20 bytes a token.

    Raises:
        ValueError: if there are no documents, or one has nothing to predict, naming it.

    Example:
        >>> rows = pack([[1, 2, 3, 4], [5, 6], [7, 8, 9]], length=4)
        >>> rows["inputs"]["tokens"].tolist(), rows["labels"].tolist()
        ([[1, 2, 3, 5], [7, 8, 0, 0]], [[2, 3, 4, 6], [8, 9, 0, 0]])
        >>> rows["inputs"]["segments"].tolist()
        [[1, 1, 1, 2], [1, 1, 0, 0]]

    Reference:
        Krell, Kosec, Perez and Fitzgibbon, "Efficient sequence packing without cross-contamination", 2021.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1; got {length}")
    if not len(documents):
        raise ValueError("there are no documents to pack")
    if weights is not None and len(weights) != len(documents):
        raise ValueError(f"{len(documents)} documents need as many arrays of weights; got {len(weights)}")
    ids = [_document(i, document, vocab_size) for i, document in enumerate(documents)]
    parts = [
        (d, start, min(length, len(tokens) - 1 - start))
        for d, tokens in enumerate(ids)
        for start in range(0, len(tokens) - 1, length)
    ]
    row, begin = best_fit([size for _, _, size in parts], length)
    shape = (int(row.max()) + 1, length)
    tokens, segments, positions, labels = (np.zeros(shape, np.int32) for _ in range(4))
    counts = np.zeros(shape, np.float32)
    last = np.zeros(shape[0], np.int32)
    # Along each row, so that its segments are numbered from left to right.
    for p in np.lexsort((begin, row)):
        (d, start, size), r = parts[p], row[p]
        at = slice(begin[p], begin[p] + size)
        last[r] += 1
        tokens[r, at] = ids[d][start : start + size]
        labels[r, at] = ids[d][start + 1 : start + size + 1]
        segments[r, at] = last[r]
        positions[r, at] = np.arange(size)
        counts[r, at] = (
            1 if weights is None else _weights(d, weights[d], ids[d])[start + 1 : start + size + 1]
        )
    inputs = {"tokens": tokens, "segments": segments, "positions": positions}
    return {"inputs": inputs, "labels": labels, "weights": counts}


def best_fit(sizes: Sequence[int], capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each item goes: into the fullest row that has room for it, the largest items first.

    Args:
        sizes: of each item, 1 to ``capacity``.
        capacity: of a row.

    Returns:
        The row of each item, and where in it the item begins, int64 each.

    Example:
        >>> row, begin = best_fit([2, 3, 1], capacity=4)
        >>> row.tolist(), begin.tolist()
        ([1, 0, 0], [0, 0, 3])
    """
    order = np.argsort(-np.asarray(sizes), kind="stable")
    row, begin = np.zeros(len(order), np.int64), np.zeros(len(order), np.int64)
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    # Bit n says that there is a row with room for n: the lowest set bit from `size` on is the best fit.
    rooms, count = 0, 0
    for item in order:
        size = int(sizes[item])
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            where = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        else:
            room, where, count = capacity, count, count + 1
        row[item], begin[item] = where, capacity - room
        if room > size:
            by_room[room - size].append(where)
            rooms |= 1 << (room - size)
    return row, begin


def _document(i: int, document: Any, vocab_size: int | None) -> np.ndarray:
    try:
        ids = checked_ids(document, 2**31 if vocab_size is None else vocab_size)
    except ValueError as error:
        raise ValueError(f"document {i}: {error}") from None
    if len(ids) < 2:
        raise ValueError(
            f"document {i} has {len(ids)} tokens, and nothing can be predicted in fewer than 2: leave it out"
        )
    return ids


def _weights(i: int, weights: Any, ids: np.ndarray) -> np.ndarray:
    found = np.asarray(weights, np.float32)
    if found.shape != ids.shape:
        raise ValueError(f"document {i} has {len(ids)} tokens, and its weights have shape {found.shape}")
    return found
