"""Packing: every token but the first of a document is predicted once, from its own document and no other."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdl import models, tasks
from jdl.data import in_order, pack, padded
from jdl.data.packing import best_fit

DOCUMENTS = st.lists(st.integers(2, 30), min_size=1, max_size=20)


def numbered(sizes):
    """Documents whose tokens say which document and where: 100 d + t."""
    return [100 * d + np.arange(size) for d, size in enumerate(sizes)]


@settings(max_examples=80, deadline=None)
@given(DOCUMENTS, st.integers(1, 12))
def test_no_token_is_lost_or_predicted_across_documents(sizes, length):
    rows = pack(numbered(sizes), length)
    inputs, labels, weights = rows["inputs"], rows["labels"], rows["weights"]
    real = weights > 0
    np.testing.assert_array_equal(real, inputs["segments"] > 0)
    np.testing.assert_array_equal(labels[real], inputs["tokens"][real] + 1)
    expected = np.concatenate([document[1:] for document in numbered(sizes)])
    np.testing.assert_array_equal(np.sort(labels[real]), expected)
    assert all(x.dtype == np.int32 for x in [*inputs.values(), labels])
    assert (set(np.unique(weights)) <= {0, 1}, weights.dtype) == (True, np.float32)
    assert not any(x[~real].any() for x in (labels, inputs["tokens"], inputs["positions"]))
    for tokens, segments, positions in zip(*inputs.values(), strict=True):
        used = segments[segments > 0]
        # Segments 1, 2, ... from the left, padding at the end, one document each, positions from 0.
        assert set(np.diff(used)) <= {0, 1}
        assert used[0] == 1
        assert not segments[len(used) :].any()
        for segment in np.unique(used):
            part = segments == segment
            np.testing.assert_array_equal(positions[part], np.arange(part.sum()))
            np.testing.assert_array_equal(np.diff(tokens[part]), 1)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(9, 12))
def test_best_fit(sizes, capacity):
    row, begin = best_fit(sizes, capacity)
    filled = np.zeros((row.max() + 1, capacity), int)
    for size, r, b in zip(sizes, row, begin, strict=True):
        filled[r, b : b + size] += 1
        assert b + size <= capacity
    assert filled.max() == 1
    assert filled.sum() == sum(sizes)
    # Johnson's bound: 11/9 of the best and a little; and the plain definition, with a search of all rows.
    assert len(filled) <= 11 / 9 * np.ceil(sum(sizes) / capacity) + 4
    rooms = []
    for size in sorted(sizes, reverse=True):
        fitting = [i for i, room in enumerate(rooms) if room >= size]
        if fitting:
            rooms[min(fitting, key=lambda i: rooms[i])] -= size
        else:
            rooms.append(capacity - size)
    assert sorted(rooms) == sorted(capacity - filled.sum(1))


def test_real_lengths_leave_little_padding():
    sizes = np.random.default_rng(0).lognormal(4, 1, 3000).astype(int) + 2
    rows = pack([np.ones(size, int) for size in sizes], 512)
    assert rows["weights"].mean() > 0.995


def test_weights_of_tokens_and_batches():
    documents, weights = [[1, 2, 3, 4], [5, 6]], [[9, 0, 0.5, 1], [9, 1]]
    rows = pack(documents, 4, weights=weights, vocab_size=7)
    assert rows["weights"].tolist() == [[0, 0.5, 1, 1]]
    assert rows["labels"].tolist() == [[2, 3, 4, 6]]
    long = pack([[1, 2, 3, 4]], 2, weights=[[9, 1, 2, 3]])
    assert sorted(zip(long["labels"].ravel(), long["weights"].ravel(), strict=True)) == [
        (0, 0), (2, 1), (3, 2), (4, 3)
    ]  # fmt: skip
    batch = in_order(rows, 2, resident=False)(0)
    assert batch["weights"].tolist() == [[0, 0.5, 1, 1], [0, 0, 0, 0]]
    assert batch["inputs"]["segments"].shape == (2, 4)


def test_a_model_predicts_packed_documents_as_it_does_each_alone():
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 9, size) for size in (4, 7, 3, 2, 6, 5)]
    model = models.gpt(vocab_size=9, width=8, depth=1, num_heads=2, context=8, dropout=0.0)
    task = tasks.next_token(model)
    evaluate = jax.jit(task.evaluate)
    packed = pack(documents, 8, vocab_size=9)
    # One row a document: positions after its end are padding by lengths.
    tokens, lengths = padded([document[:-1] for document in documents], 8)
    labels, _ = padded([document[1:] for document in documents], 8)
    alone = {"inputs": {"tokens": tokens, "lengths": lengths}, "labels": labels}
    variables = jax.jit(task.init)(jax.random.key(0), alone)
    together, apart = (evaluate(variables, batch, jax.random.key(0))["loss"] for batch in (packed, alone))
    assert len(packed["labels"]) < len(documents)
    assert float(together.weight) == float(apart.weight) == sum(map(len, documents)) - len(documents)
    np.testing.assert_allclose(together.total, apart.total, rtol=1e-5)


@pytest.mark.parametrize(
    ("documents", "options", "message"),
    [
        ([], {}, "no documents"),
        ([[1, 2], []], {}, "document 1 has 0 tokens, and nothing can be predicted in fewer than 2"),
        ([[1]], {}, "document 0 has 1 tokens"),
        ([[1, 2], [3, 9]], {"vocab_size": 9}, "document 1: id 9, at position 1, lies outside 0..8"),
        ([[1, -2]], {}, "document 0: id -2"),
        ([[1, 2.5]], {}, "document 0: ids must be integers"),
        ([[1, 2]], {"length": 0}, "length must be at least 1; got 0"),
        ([[1, 2]], {"weights": []}, "1 documents need as many arrays of weights; got 0"),
        ([[1, 2]], {"weights": [[1]]}, r"document 0 has 2 tokens, and its weights have shape \(1,\)"),
    ],
)
def test_errors(documents, options, message):
    with pytest.raises(ValueError, match=message):
        pack(documents, **{"length": 4, **options})
