"""Metrics add up over any way to cut a batch, and the collectives act where the batch axis is bound."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from jdl import core
from jdl.core import AXIS, FAULTS, Mean, add, example_weights, objective, summarize, weighted
from jdl.train.mesh import make_mesh


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_means_add_up_over_any_partition_with_padding(data):
    size = data.draw(st.integers(1, 12))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    values, weights = rng.normal(size=size).astype(np.float32), rng.uniform(0.1, 2, size).astype(np.float32)
    cuts = sorted(data.draw(st.lists(st.integers(0, size), max_size=4)))
    parts = []
    for start, stop in zip([0, *cuts], [*cuts, size], strict=True):
        padding = data.draw(st.integers(0, 3))
        padded = np.pad(values[start:stop], (0, padding), constant_values=1e6)
        parts.append(
            {"loss": weighted(jnp.asarray(padded), jnp.asarray(np.pad(weights[start:stop], (0, padding))))}
        )
    whole = summarize(functools.reduce(add, parts))["loss"]
    assert whole == pytest.approx(np.average(values, weights=weights), rel=1e-5, abs=1e-5)


def test_mean_of_nothing_is_nan():
    nothing = Mean(jnp.zeros(()), jnp.zeros(()))
    assert np.isnan(nothing.value())
    assert np.isnan(summarize({"loss": nothing})["loss"])


def test_summary_keeps_arrays_and_leaves_faults_out():
    metrics = {
        "loss": Mean(jnp.array([2.0, 6.0]), jnp.array([1.0, 2.0])),
        "count": jnp.array(3),
        FAULTS: {"x": 1},
    }
    summary = summarize(metrics)
    assert summary["loss"].tolist() == [2.0, 3.0]
    assert summary["count"] == 3
    assert FAULTS not in summary


def test_means_are_float32_whatever_the_values():
    mean = weighted(jnp.ones(1000, jnp.bfloat16))
    assert mean.total.dtype == mean.weight.dtype == jnp.float32
    assert float(mean.total) == 1000


def test_weights_missing_mean_one():
    np.testing.assert_array_equal(example_weights({"inputs": {"a": jnp.zeros((3, 2))}}), np.ones(3))
    assert example_weights({"inputs": jnp.zeros(2), "weights": np.array([1, 0])}).dtype == jnp.float32


@pytest.mark.parametrize("text", ["accuracy", "best accuracy", "max", "max "])
def test_objective_says_what_it_expects(text):
    with pytest.raises(ValueError, match=f"such as .max accuracy.; got '{text}'"):
        objective(text)
    assert objective("min mean squared error") == ("min", "mean squared error")


def collectives(x, key):
    return core.psum(x.sum()), core.all_gather(x), jax.random.uniform(core.local_key(key), (1,))


def test_collectives_do_nothing_where_values_are_global():
    x, key = jnp.arange(8.0), jax.random.key(0)
    assert not core.axis_is_bound()
    total, gathered, noise = jax.jit(collectives)(x, key)
    assert total == 28
    np.testing.assert_array_equal(gathered, x)
    np.testing.assert_array_equal(noise, jax.random.uniform(key, (1,)))


def test_collectives_act_over_shards(devices):
    x, key = jnp.arange(16.0), jax.random.key(0)
    by_map = jax.shard_map(
        collectives,
        mesh=make_mesh(),
        in_specs=(P(AXIS), P()),
        out_specs=(P(), P(), P(AXIS)),
        check_vma=False,
    )
    mapped = jax.pmap(
        collectives, axis_name=AXIS, in_axes=(0, None), out_axes=(None, None, 0), devices=devices
    )
    noise = [jax.random.uniform(jax.random.fold_in(key, i), (1,)) for i in range(8)]
    for total, gathered, drawn in (jax.jit(by_map)(x, key), mapped(x.reshape(8, 2), key)):
        assert total == 120
        np.testing.assert_array_equal(gathered, x)
        np.testing.assert_array_equal(drawn.ravel(), np.concatenate(noise))
