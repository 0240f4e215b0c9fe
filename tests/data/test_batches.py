"""Batches: a pure function of (seed, i), equal on host and device, exact over epochs, shards and padding."""

import pickle
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdl.data import fingerprint, from_grain, in_order, shuffled


def numbered(size):
    return {
        "inputs": np.arange(size * 2, dtype=np.float32).reshape(size, 2),
        "labels": np.arange(size, dtype=np.int32),
    }


def labels(batches, steps):
    return np.concatenate([batches(i)["labels"] for i in steps])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.data())
def test_every_example_once_an_epoch(size, data):
    batch_size = data.draw(st.integers(1, size))
    batches = shuffled(numbered(size), batch_size, data.draw(st.integers(0, 2**64 - 1)), resident=False)
    seen = labels(batches, range(-(-3 * size // batch_size)))
    for epoch in range(3):
        np.testing.assert_array_equal(np.sort(seen[epoch * size : (epoch + 1) * size]), np.arange(size))


@pytest.mark.parametrize(("size", "batch_size"), [(1, 1), (7, 3), (1437, 128), (50_000, 50_000)])
def test_host_and_resident_agree(size, batch_size):
    arrays = {"labels": np.arange(size, dtype=np.int32)}
    host = shuffled(arrays, batch_size, 3, resident=False)
    resident = shuffled(arrays, batch_size, 3, resident=True)
    for i in (0, 1, 12, 10**8, 2**31 - 1):
        got = resident(i)["labels"]
        assert isinstance(got, jax.Array)
        assert isinstance(host(i)["labels"], np.ndarray)
        np.testing.assert_array_equal(got, host(i)["labels"])


def test_long_runs_do_not_overflow():
    size, batch_size, i = 1437, 128, 10**8
    steps = range(i, i + 24)
    seen = labels(shuffled(numbered(size), batch_size, 0, resident=False), steps)
    start = -(i * batch_size) % size  # of the first whole epoch
    np.testing.assert_array_equal(np.sort(seen[start : start + size]), np.arange(size))


def test_traced_step_and_scan():
    batches = shuffled(numbered(50), 8, 1, resident=True)

    @jax.jit
    def run(batches):
        return jax.lax.scan(lambda carry, i: (carry, batches(i)["labels"]), 0, jnp.arange(20))[1]

    np.testing.assert_array_equal(run(batches).ravel(), labels(batches, range(20)))


def test_data_are_arguments_not_constants():
    batches = shuffled({"inputs": np.random.default_rng(0).random((1000, 100), np.float32)}, 8, resident=True)
    program = jax.jit(lambda batches, i: batches(i)).lower(batches, 0).as_text()
    assert max(map(len, program.splitlines())) < 2000
    assert [x.shape for x in jax.tree.leaves(batches)] == [(1000, 100)]


def test_flavours_are_recognised():
    arrays = numbered(10)
    assert not jax.tree_util.all_leaves([shuffled(arrays, 2, resident=True)])
    assert jax.tree_util.all_leaves([shuffled(arrays, 2, resident=False)])
    assert not jax.tree_util.all_leaves([in_order(arrays, 2)])


def test_resident_none_goes_by_memory(monkeypatch):
    arrays = numbered(10)  # 120 bytes
    monkeypatch.setattr("jdl.data.batches._available_memory", lambda: 120 * 4)
    assert "Resident" in repr(shuffled(arrays, 2))
    monkeypatch.setattr("jdl.data.batches._available_memory", lambda: 120 * 4 - 4)
    assert "Host" in repr(shuffled(arrays, 2))
    assert "Resident" in repr(shuffled(jax.tree.map(jnp.asarray, arrays), 2))
    assert "Host" in repr(shuffled({"inputs": np.array(["a", "b"])}, 1))


def test_seeds_epochs_and_order_of_calls():
    one, other = (shuffled(numbered(100), 10, seed, resident=False) for seed in (0, 1))
    first = labels(one, range(10))
    assert (first != labels(other, range(10))).any()
    assert (first != labels(one, range(10, 20))).any()
    backwards = [one(i)["labels"] for i in reversed(range(10))][::-1]
    np.testing.assert_array_equal(np.concatenate(backwards), first)


def test_equal_in_every_process_and_python():
    batches = shuffled({"inputs": np.arange(1000)}, 100, seed=42, resident=False)
    assert fingerprint(
        {"x": np.concatenate([batches(i)["inputs"] for i in (0, 9, 10, 10**8)]).astype(np.int32)}
    ) == ("852f44847272861b36f72457682bfbd7a4adb421c43ad9d3115a26ffd9d51c07")


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("make", [shuffled, in_order])
def test_shards_make_up_the_batch(make, resident):
    arrays = numbered(50)
    whole = make(arrays, 8, resident=resident)
    parts = [make(arrays, 8, shard=(k, 4), resident=resident) for k in range(4)]
    for i in (0, 3, 6):
        joined = jax.tree.map(lambda *x: np.concatenate(x), *(part(i) for part in parts))
        jax.tree.map(np.testing.assert_array_equal, joined, dict(whole(i)))
    assert {part.batch_size for part in parts} == {8}
    assert parts[0](0)["labels"].shape == (2,)


@pytest.mark.parametrize("resident", [True, False])
@settings(max_examples=10, deadline=None)
@given(size=st.integers(1, 40), batch_size=st.integers(1, 50))
def test_one_pass_in_order(resident, size, batch_size):
    batches = in_order(numbered(size), batch_size, resident=resident)
    assert len(batches) == -(-size // batch_size)
    every = [batches(i) for i in range(len(batches))]
    weights = np.concatenate([batch["weights"] for batch in every])
    assert weights.dtype == np.float32
    seen = np.concatenate([batch["labels"] for batch in every])
    assert all(batch["labels"].shape == (batch_size,) for batch in every)
    np.testing.assert_array_equal(seen[:size], np.arange(size))
    np.testing.assert_array_equal(weights, np.arange(len(weights)) < size)
    np.testing.assert_array_equal(seen[size:], np.arange(len(seen) - size) % size)


@pytest.mark.parametrize("resident", [True, False])
def test_weights_multiply_into_those_there_are(resident):
    arrays = {"inputs": np.ones((5, 2)), "weights": np.full((5, 3), 0.5)}
    batch = in_order(arrays, 4, resident=resident)(1)
    np.testing.assert_array_equal(batch["weights"], np.outer([0.5, 0, 0, 0], np.ones(3)).astype(np.float32))
    assert batch["weights"].dtype == np.float32


def test_past_the_end():
    for resident in (True, False):
        batches = in_order(numbered(5), 2, resident=resident)
        for i in (3, -1):
            with pytest.raises(IndexError, match="batches 0 to 2"):
                batches(i)
    traced = jax.jit(lambda batches, i: batches(i))(in_order(numbered(5), 2, resident=True), 7)
    assert float(traced["weights"].sum()) == 0


def test_steps_that_are_none():
    host = shuffled(numbered(5), 2, resident=False)
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda i: host(i))(0)
    with pytest.raises(TypeError, match="integer"):
        host(1.5)
    with pytest.raises(IndexError, match="-1"):
        shuffled(numbered(5), 2, resident=True)(-1)
    with pytest.raises(IndexError, match="2147483648"):
        host(2**31)
    np.testing.assert_array_equal(host(np.int64(3))["labels"], host(jnp.int32(3))["labels"])


def test_nested_and_memmapped_arrays(tmp_path):
    stored = np.memmap(tmp_path / "x", np.uint8, "w+", shape=(20, 4))
    stored[:] = np.arange(80).reshape(20, 4)
    arrays = {"inputs": {"image": stored, "length": np.arange(20)}, "labels": np.arange(20)}
    batch = shuffled(arrays, 5, resident=False)(2)
    np.testing.assert_array_equal(batch["inputs"]["image"][:, 0], batch["labels"] * 4)
    np.testing.assert_array_equal(batch["inputs"]["length"], batch["labels"])
    assert not isinstance(batch["inputs"]["image"], np.memmap)


def test_attributes_and_repr():
    batches = shuffled(numbered(10), 4, 7, shard=(1, 2), resident=False)
    assert (batches.batch_size, batches.num_examples, len(batches)) == (4, 10, 3)
    assert (
        repr(batches) == "<HostBatches: 3 batches of 4 from 10 examples, shuffled with seed 7, shard 1 of 2>"
    )
    copy = pickle.loads(pickle.dumps(batches))
    np.testing.assert_array_equal(copy(5)["labels"], batches(5)["labels"])


@pytest.mark.parametrize(
    ("arrays", "batch_size", "options", "message"),
    [
        ([1, 2], 1, {}, "dictionary of arrays .* got list"),
        ({}, 1, {}, "empty dictionary"),
        ({"inputs": np.zeros((0, 2))}, 1, {}, "no examples: inputs"),
        ({"inputs": np.zeros(3), "labels": np.zeros(4)}, 1, {}, "inputs 3, labels 4"),
        ({"inputs": {"a": np.zeros(3), "b": np.zeros(())}}, 1, {}, "inputs.a 3, inputs.b none"),
        ({"inputs": np.zeros(3)}, 0, {}, "batch_size must be positive, got 0"),
        ({"inputs": np.zeros(3)}, 4, {}, "batch_size 4 is larger than the data, 3 examples"),
        ({"inputs": np.zeros(3)}, 3, {"shard": (0, 2)}, "batch_size 3 is not divisible by the 2 shards"),
        ({"inputs": np.zeros(4)}, 2, {"shard": (2, 2)}, "shard must be"),
        ({"inputs": np.zeros(4)}, 2, {"shard": (0, 0)}, "shard must be"),
        ({"inputs": np.zeros(4)}, 2, {"seed": -1}, "seed must lie"),
    ],
)
def test_errors(arrays, batch_size, options, message):
    with pytest.raises(ValueError, match=message):
        shuffled(arrays, batch_size, **options)


def grain_numbers(size):
    grain = pytest.importorskip("grain")
    return grain.MapDataset.source(np.arange(size)).map(lambda x: {"inputs": x})


def test_grain_batches_are_a_function_of_the_step():
    make = [from_grain(grain_numbers(23).shuffle(seed=5).repeat().batch(4)) for _ in range(2)]
    forwards = [make[0](i)["inputs"] for i in range(12)]
    backwards = [make[1](i)["inputs"] for i in reversed(range(12))][::-1]
    np.testing.assert_array_equal(forwards, backwards)
    np.testing.assert_array_equal(np.sort(np.concatenate(forwards)[:23]), np.arange(23))
    assert (make[0].batch_size, len(make[0])) == (4, sys.maxsize // 4) or len(make[0]) > 10**9
    assert jax.tree_util.all_leaves([make[0]])


def test_grain_short_batch():
    dataset = grain_numbers(5).batch(2)
    assert from_grain(dataset)(0)["inputs"].tolist() == [0, 1]
    with pytest.raises(ValueError, match="batch 2 has 1 examples, not 2"):
        from_grain(dataset)(2)
    batches = from_grain(dataset, weights=True)
    assert batches(2)["inputs"].tolist() == [4, 4]
    assert batches(2)["weights"].tolist() == [1, 0]
    assert batches(0)["weights"].dtype == np.float32
    for i in (3, -1):
        with pytest.raises(IndexError, match="batches 0 to 2"):
            batches(i)
    assert "3 batches of 2" in repr(batches)


def test_grain_errors():
    dataset = grain_numbers(4)
    with pytest.raises(ValueError, match="random-access"):
        from_grain(iter([1]))
    with pytest.raises(ValueError, match="got int64"):
        from_grain(dataset.map(lambda x: x["inputs"]))
    with pytest.raises(ValueError, match="NoneType"):
        from_grain(dataset.filter(lambda x: False))
    with pytest.raises(ValueError, match="leading length"):
        from_grain(dataset)
    with pytest.raises(ValueError, match="empty"):
        from_grain(dataset.batch(8, drop_remainder=True))


def test_fingerprint_tells_content_and_nothing_else():
    x = np.arange(24, dtype=np.int32).reshape(4, 6)
    reference = fingerprint({"a": x, "b": x[:2]})
    same = [
        {"b": x[:2], "a": x},
        {"a": np.asfortranarray(x), "b": jnp.asarray(x[:2])},
        {"a": x.astype(">i4"), "b": x[:2]},
    ]
    assert all(fingerprint(arrays) == reference for arrays in same)
    changed = x.copy()
    changed[3, 5] += 1
    others = [
        {"a": changed, "b": x[:2]},
        {"a": x.reshape(6, 4), "b": x[:2]},
        {"a": x.astype(np.int64), "b": x[:2]},
    ]
    assert all(fingerprint(arrays) != reference for arrays in [*others, {"a": x, "c": x[:2]}, {"a": x}])
    assert fingerprint({"a": x}) == "53c83566697047d892df61593ef1cedc172f72f1bd1d3dac96625aba1f15bfe6"
