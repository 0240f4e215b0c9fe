"""Streams of tokens: a pure function of (seed, i), equal on host and device, every token counted once."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdl.data import continuing_rows, windows, windows_in_order
from jdl.data.tokens import _check_ids


def numbered(size, dtype=np.uint16):
    """Tokens that say where they stand."""
    return np.arange(size, dtype=dtype)


def epoch(batches, number=0):
    """The rows of an epoch, where batches divide it."""
    every = range(number * len(batches), (number + 1) * len(batches))
    parts = [batches(i) for i in every]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 300), st.integers(1, 20), st.integers(0, 2**64 - 1))
def test_an_epoch_of_windows_predicts_no_token_twice(size, length, seed):
    if size - 1 < length:
        with pytest.raises(ValueError, match=f"a window of {length} tokens .* a stream of {size} tokens"):
            windows(numbered(size), length, 1, seed)
        return
    count = windows(numbered(size), length, 1, seed, resident=False).num_examples
    batches = windows(numbered(size), length, count, seed, resident=False)
    for number in (0, 1, 7):
        seen = batches(number)
        np.testing.assert_array_equal(seen["labels"], seen["inputs"] + 1)
        labels = np.sort(seen["labels"].ravel())
        # Without a gap: what is missing lies at the two ends.
        np.testing.assert_array_equal(np.diff(labels), 1)
        assert labels.size > size - 1 - 2 * length
        assert seen["labels"].dtype == np.int32


def test_every_phase_comes_once_in_as_many_epochs():
    length = 6
    batches = windows(numbered(50), length, 1, seed=3, resident=False)
    phases = [epoch(batches, number)["inputs"].min() for number in range(2 * length)]
    assert sorted(phases[:length]) == sorted(phases[length:]) == list(range(length))
    assert phases[:length] != phases[length:]


def test_windows_that_begin_anywhere():
    batches = windows(numbered(50), 6, 4, seed=3, anywhere=True, resident=False)
    assert batches.num_examples == 44
    seen = epoch(batches)
    assert sorted(seen["inputs"][:44, 0]) == list(range(44))
    np.testing.assert_array_equal(seen["labels"], seen["inputs"] + 1)
    assert (np.diff(seen["inputs"][:44, 0]) != 6).mean() > 0.8
    assert windows(numbered(20), 10, 10, anywhere=True, resident=False)(0)["labels"].max() <= 19


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 200), st.integers(1, 20), st.integers(1, 9), st.data())
def test_one_pass_counts_every_token_but_the_first_once(size, length, batch_size, data):
    stride = data.draw(st.integers(1, length))
    batches = windows_in_order(numbered(size), length, batch_size, stride=stride, resident=False)
    seen = epoch(batches)
    counted = seen["weights"] > 0
    np.testing.assert_array_equal(np.sort(seen["labels"][counted]), np.arange(1, size))
    np.testing.assert_array_equal(seen["labels"][counted], seen["inputs"][counted] + 1)
    assert set(np.unique(seen["weights"])) <= {0, 1}
    # Every label but those of the first window has seen the tokens that the stride leaves it.
    _, column = np.nonzero(counted[1:])
    assert (column >= length - stride).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 200), st.integers(1, 20), st.data())
def test_rows_of_one_pass(size, length, data):
    batch_size = data.draw(st.integers(1, size - 1))
    batches = continuing_rows(numbered(size), length, batch_size, seed=None, resident=False)
    seen = [batches(i) for i in range(len(batches))]
    counted = [batch["labels"][batch["weights"] > 0] for batch in seen]
    np.testing.assert_array_equal(np.sort(np.concatenate(counted)), np.arange(1, size))
    follows(seen)


def follows(batches):
    """Asserts that every row goes on where it ended."""
    for before, after in itertools.pairwise(batches):
        going_on = after.get("weights", np.ones_like(after["labels"]))[:, 0] > 0
        np.testing.assert_array_equal(before["labels"][going_on, -1], after["inputs"][going_on, 0])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 12), st.integers(0, 60))
def test_rows_continue_within_each_pass(batch_size, length, more):
    size = batch_size * length + 1 + more
    batches = continuing_rows(numbered(size), length, batch_size, seed=5, resident=False)
    passes = [[batches(n * len(batches) + i) for i in range(len(batches))] for n in range(3)]
    for each in passes:
        follows(each)
        labels = np.concatenate([batch["labels"] for batch in each]).ravel()
        assert len(set(labels.tolist())) == labels.size


def test_rows_are_shifted_in_each_pass():
    batches = continuing_rows(numbered(101), 5, 2, seed=0, resident=False)
    starts = [int(batches(n * len(batches))["inputs"][0, 0]) for n in range(10)]
    assert sorted(starts[:5]) == sorted(starts[5:]) == list(range(5))


MAKERS = {
    "windows": lambda **options: windows(numbered(300), 7, 6, 9, **options),
    "anywhere": lambda **options: windows(numbered(300), 7, 6, 9, anywhere=True, **options),
    "windows_in_order": lambda **options: windows_in_order(numbered(300), 7, 6, stride=5, **options),
    "continuing_rows": lambda **options: continuing_rows(numbered(300), 7, 6, 9, **options),
    "one pass of rows": lambda **options: continuing_rows(numbered(300), 7, 6, None, **options),
}


@pytest.mark.parametrize("name", MAKERS)
def test_host_device_shards_and_traced_steps_agree(name):
    make = MAKERS[name]
    host, resident = make(resident=False), make(resident=True)
    parts = [make(resident=False, shard=(k, 3)) for k in range(3)]
    assert len(host) == len(resident)
    last = len(host) - 1 if "order" in name or "pass" in name else 2**31 - 1
    traced = jax.jit(lambda batches, i: batches(i))
    for i in (0, 3, last):
        expected = host(i)
        assert all(isinstance(x, np.ndarray) for x in expected.values())
        assert {x.dtype for k, x in expected.items() if k != "weights"} == {np.dtype(np.int32)}
        for found in (resident(i), traced(resident, i)):
            jax.tree.map(np.testing.assert_array_equal, dict(found), expected)
        joined = jax.tree.map(lambda *x: np.concatenate(x), *(part(i) for part in parts))
        jax.tree.map(np.testing.assert_array_equal, joined, expected)


@pytest.mark.parametrize("name", ["windows_in_order", "one pass of rows"])
def test_past_the_end_nothing_counts(name):
    batches = MAKERS[name](resident=True)
    with pytest.raises(IndexError, match=f"batches 0 to {len(batches) - 1}"):
        batches(len(batches))
    assert float(jax.jit(lambda batches, i: batches(i))(batches, len(batches))["weights"].sum()) == 0


def test_seeds_and_tokens_on_the_device():
    one, other = (windows(numbered(300), 7, 6, seed, resident=False)(0)["inputs"] for seed in (0, 1))
    assert (one != other).any()
    on_device = windows(jnp.arange(300), 7, 6, 0)
    assert "Resident" in repr(on_device)
    np.testing.assert_array_equal(on_device(0)["inputs"], one)


@pytest.mark.parametrize("make", [windows, windows_in_order, continuing_rows])
def test_ids_outside_the_vocabulary(make):
    tokens = numbered(50)
    with pytest.raises(ValueError, match="token 49 lies outside 0..48, the ids of the vocabulary"):
        make(tokens, 4, 2, vocab_size=49, resident=True)
    batches = make(tokens, 4, 2, vocab_size=10, resident=False)
    with pytest.raises(ValueError, match="lies outside 0..9"):
        for i in range(len(batches)):
            batches(i)
    make(tokens, 4, 2, vocab_size=50, resident=True)
    with pytest.raises(ValueError, match="token -1 lies outside"):
        _check_ids(np.array([3, -1]), 5)
    large = tokens.astype(np.int64)
    large[2] = 2**33 + 5  # which would be 5
    for resident in (True, False):
        with pytest.raises(ValueError, match="token 8589934597 lies outside .* which int32 holds"):
            made = make(large, 4, 2, resident=resident)
            for i in range(len(made)):
                made(i)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (windows, ([1, 2, 3], 1, 1), "one array of ids .* got list"),
        (windows, (np.zeros((2, 3), int), 1, 1), r"shape \(2, 3\)"),
        (windows, (np.zeros(9), 1, 1), "must be integers; got float64"),
        (windows, (np.zeros(9, int), 0, 1), "length must be at least 1; got 0"),
        (windows, (np.zeros(9, int), 9, 1), "a window of 9 tokens and the one to predict do not fit"),
        (windows, (np.zeros(1, int), 1, 1), "at least 2 tokens"),
        (windows, (np.zeros(20, int), 4, 4), "batch_size 4 is more than the windows .* 20 tokens has, 3"),
        (windows_in_order, (np.zeros(9, int), 4, 0), "batch_size must be positive"),
        (windows_in_order, (np.zeros(0, int), 4, 1), "at least 2 tokens"),
        (continuing_rows, (np.zeros(9, int), 5, 2), "2 rows has 4 tokens to predict a row, fewer than"),
        (continuing_rows, (np.zeros(9, int), 1, 9), "batch_size must lie in"),
    ],
)
def test_errors(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(*arguments)


def test_more_errors():
    for stride in (0, 5):
        with pytest.raises(ValueError, match=f"stride must lie in .1, 4., .*; got {stride}"):
            windows_in_order(numbered(20), 4, 2, stride=stride)
    with pytest.raises(ValueError, match="vocab_size must be at least 1"):
        windows(numbered(20), 4, 2, vocab_size=0)
    with pytest.raises(ValueError, match="not divisible by the 2 shards"):
        windows(numbered(40), 4, 3, shard=(0, 2))
    huge = np.broadcast_to(np.uint16(1), 2**30 + 1)
    assert "Host" in repr(windows(huge, 2**10, 2))
    with pytest.raises(ValueError, match=r"at most 2\*\*30 tokens can live on a device"):
        windows(huge, 2**10, 2, resident=True)
    with pytest.raises(ValueError, match=r"at most 2\*\*30 windows"):
        windows_in_order(np.broadcast_to(np.uint16(1), 2**31), 1, 2)
