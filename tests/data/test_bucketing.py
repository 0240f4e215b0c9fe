"""Batches by length: every example once an epoch, in the bucket it fits, in few shapes."""

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdl.data import bucket_boundaries, bucketed, padded

LENGTHS = st.lists(st.integers(0, 30), min_size=1, max_size=60)


def make(rows, length):
    return {"inputs": np.tile(rows[:, None], length), "rows": rows}


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.data())
def test_every_example_once_an_epoch_and_long_enough(lengths, data):
    bounds = sorted({*data.draw(st.sets(st.integers(1, 29), max_size=3)), 30})
    sizes = data.draw(st.lists(st.integers(1, 7), min_size=len(bounds), max_size=len(bounds)))
    seed = data.draw(st.one_of(st.none(), st.integers(0, 2**64 - 1)))
    batches = bucketed(make, lengths, sizes, bounds, seed)
    for epoch in (0, 3) if seed is not None else (0,):
        seen, partial = [], 0
        for i in range(epoch * len(batches), (epoch + 1) * len(batches)):
            batch = batches(i)
            rows, weights = batch["rows"], batch["weights"]
            assert batch["inputs"].shape == (
                sizes[bounds.index(batch["inputs"].shape[1])],
                len(batch["inputs"][0]),
            )
            assert (np.array(lengths)[rows] <= batch["inputs"].shape[1]).all()
            assert set(np.unique(weights)) <= {0, 1}
            partial += weights.min() == 0
            seen += rows[weights > 0].tolist()
        assert sorted(seen) == list(range(len(lengths)))
        assert partial <= 1


def test_examples_are_padded_to_the_next_boundary_but_for_what_is_left_over():
    lengths = np.random.default_rng(0).integers(1, 41, 1000)
    batches = bucketed(make, lengths, 16, [10, 20, 40], seed=1)
    longer = 0
    for i in range(len(batches)):
        batch = batches(i)
        longer += (np.searchsorted([10, 20, 40], lengths[batch["rows"]])
                   < [10, 20, 40].index(batch["inputs"].shape[1])).sum()  # fmt: skip
    assert len(batches) == 63
    assert longer < 2 * 16


def test_epochs_and_seeds_shuffle_examples_and_batches():
    lengths = np.random.default_rng(0).integers(1, 41, 300)
    one, other = (bucketed(make, lengths, 8, [20, 40], seed) for seed in (0, 1))
    n = len(one)

    def rows(batches, steps):
        return [tuple(batches(i)["rows"]) for i in steps]

    first = rows(one, range(n))
    assert set(first).isdisjoint(rows(one, range(n, 2 * n)))
    assert set(first).isdisjoint(rows(other, range(n)))
    assert rows(one, reversed(range(n)))[::-1] == first
    shapes = [one(i)["inputs"].shape[1] for i in range(n)]
    assert shapes != sorted(shapes)
    assert [bucketed(make, lengths, 8, [20, 40], None)(i)["inputs"].shape[1] for i in range(n)] == sorted(
        shapes
    )
    copy = pickle.loads(pickle.dumps(one))
    assert rows(copy, range(5)) == first[:5]
    assert one(2**31 - 1)["rows"].shape == (8,)


def test_shards_make_up_the_batch():
    lengths = [3, 9, 4, 8, 2, 7, 7]
    whole = bucketed(make, lengths, [4, 2], [5, 10], 3)
    parts = [bucketed(make, lengths, [4, 2], [5, 10], 3, shard=(k, 2)) for k in range(2)]
    for i in range(2 * len(whole)):
        for name in ("rows", "weights"):
            np.testing.assert_array_equal(np.concatenate([part(i)[name] for part in parts]), whole(i)[name])


def test_rows_of_padding_have_no_length():
    def make(rows, length):
        side = {"tokens": np.ones((len(rows), length), int), "lengths": np.full(len(rows), 2, np.int32)}
        return {"inputs": {"source": side, "target": side}, "lengths": rows}

    whole, last = (bucketed(make, [2, 2, 2], 2, [3], None)(i) for i in range(2))
    assert whole["inputs"]["source"]["lengths"].tolist() == [2, 2]
    for side in last["inputs"].values():
        assert side["lengths"].tolist() == [2, 0]
        assert side["lengths"].dtype == np.int32


def test_weights_multiply_and_repr():
    batches = bucketed(
        lambda rows, length: {"weights": np.full((len(rows), length), 0.5)}, [2, 2, 2], 2, [3], None
    )
    assert batches(1)["weights"].tolist() == [[0.5] * 3, [0] * 3]
    assert repr(batches) == "<BucketedBatches: 2 of 2 x 3 from 3 examples, in order>"
    assert (batches.num_examples, batches.lengths, len(batches)) == (3, (3,), 2)
    for i in (-1, 2):
        with pytest.raises(IndexError, match="batches 0 to 1"):
            batches(i)
    with pytest.raises(TypeError, match="Python integer"):
        batches(0.5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=30), st.integers(1, 4), st.integers(1, 5))
def test_boundaries_waste_the_fewest_positions(lengths, count, multiple):
    def positions(bounds):
        return sum(min(bound for bound in bounds if bound >= length) for length in lengths)

    found = bucket_boundaries(lengths, count, multiple)
    assert list(found) == sorted(set(found))
    assert len(found) <= count
    assert all(bound % multiple == 0 for bound in found)
    last = max(1, -(-max(lengths) // multiple)) * multiple
    others = range(multiple, last, multiple)
    every = (
        [*chosen, last]
        for n in range(min(count, len(others) + 1))
        for chosen in itertools.combinations(others, n)
    )
    assert positions(found) == min(map(positions, every))


def test_padded():
    x, lengths = padded([[[1.5, 2]], np.zeros((0, 2)), [[3, 4], [5, 6]]], 2, value=-1, dtype=np.float32)
    assert x.tolist() == [[[1.5, 2], [-1, -1]], [[-1, -1], [-1, -1]], [[3, 4], [5, 6]]]
    assert (x.dtype, lengths.dtype, lengths.tolist()) == (np.float32, np.int32, [1, 0, 2])
    with pytest.raises(ValueError, match="sequence 1 has length 3, more than 2"):
        padded([[1], [1, 2, 3]], 2)
    with pytest.raises(ValueError, match="no sequences"):
        padded([], 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 1, [2]), "lengths must be integers"),
        (([0.5], 1, [2]), "lengths must be integers .* float64"),
        (([1, 3, 5], 1, [2, 4]), "example 2 has length 5; boundaries go up to 4"),
        (([1, -3], 1, [4]), "example 1 has length -3"),
        (([1], 1, []), "ascending"),
        (([1], 1, [4, 4]), "ascending"),
        (([1], 1, [0, 4]), "at least 1; got .0, 4."),
        (([1], 0, [4]), "batch_size must be positive"),
        (([1], [1, 2], [4]), "one or 1 numbers"),
        (([1], 1, [4], -1), "seed must lie"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        bucketed(make, *arguments)


def test_more_errors():
    with pytest.raises(ValueError, match="shard must be"):
        bucketed(make, [1], 2, [4], shard=(2, 2))
    with pytest.raises(ValueError, match="not all divisible by the 2 shards"):
        bucketed(make, [1, 2], [2, 3], [1, 4], shard=(0, 2))
    with pytest.raises(ValueError, match="boundaries need some lengths"):
        bucket_boundaries([], 2)
